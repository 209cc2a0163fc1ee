//! The first process of an emulated host: loads KVM, runs cases, tells what came out.

fn main() {}
