//! Instructions of what runs without KVM, counted by Callgrind: for `cargo xtask bench counts`, which knows the
//! scenes by their numbers.
#![allow(missing_docs)] // Of what gungraun's macros make.

use benches::scenes::{self, COUNTED, Work};
use gungraun::{library_benchmark, library_benchmark_group, main};

/// A scene that is not done for the first time.
fn set_up(number: usize) -> Work {
    let scene = scenes::all().nth(number).expect("a scene of this number");
    let mut work = (scene.make)().ours;
    for _ in 0..COUNTED {
        work();
    }
    work
}

// It gives the work back, so that its end is not counted.
#[library_benchmark]
#[benches::scene(iter = 0..scenes::all().count(), setup = set_up)]
fn counted(mut work: Work) -> Work {
    for _ in 0..COUNTED {
        work();
    }
    work
}

library_benchmark_group!(name = plain, benchmarks = counted);
main!(library_benchmark_groups = plain);
