//! The first process of an emulated host: loads KVM, runs cases, tells what came out.
//!
//! The program runs twice. As process 1 ([`init`]) it mounts what a system has mounted, starts itself
//! once more, buries orphans, and switches the machine off when that second process ends, however it
//! does. As the second process ([`work`]) it does its [job](testcases::job) and reports by messages
//! on the debug console ([`report`]). So no crash, panic or signal goes untold, or leaves the machine
//! running.

mod init;
mod modules;
mod report;
mod tasks;
mod work;

use std::process::ExitCode;

/// The argument of the second process.
const WORK: &str = "work";

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        return init::main();
    }
    if std::env::args().nth(1).as_deref() == Some(WORK) {
        return work::main();
    }
    eprintln!(
        "agent: this program is the first process of an emulated host, and does nothing elsewhere; \
         `cargo xtask test --host amd` starts one"
    );
    ExitCode::from(2)
}
