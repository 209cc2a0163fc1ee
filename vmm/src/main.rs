//! The `vmm` program. Exit status: odd is the guest's own word (`value * 2 + 1` of what it wrote
//! to the exit device), even is the VMM's; `vmm run --help` lists them.

mod cli;

use std::io::Write;
use std::process::ExitCode;

/// Exit status when this program itself is at fault.
const BUG: u8 = 14;

fn main() -> ExitCode {
    let panicked = |info: &std::panic::PanicHookInfo<'_>| {
        vmm::host::terminal::restore();
        // A panic in here would abort; there is nowhere left to tell of a failure.
        let _ = writeln!(
            std::io::stderr(),
            "vmm: this is a bug in vmm, not in the guest or its host: {info}\n\
             Please report it with the command line and, if it comes again, its --trace file."
        );
    };
    std::panic::set_hook(Box::new(panicked));
    // A panic's usual exit status, 101, is odd: it would be read as the guest's word.
    let status = std::panic::catch_unwind(cli::main).unwrap_or(BUG);
    ExitCode::from(status)
}
