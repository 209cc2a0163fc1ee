//! What the commands share.

pub mod bench;
pub mod emulated;
pub mod fetching;
pub mod fuzz;
pub mod git;
pub mod html;
pub mod lex;
pub mod out;
pub mod perf;
pub mod ready;
pub mod repository;
pub mod running;
pub mod sabotage;
pub mod terminal;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use testcases::build::{Options, build_payloads};
use testcases::load::Catalog;
use testcases::require::{self, Require};

pub use out::Out;

/// Why a command could not do its work, and the status the process ends with.
#[derive(Debug)]
pub struct Failure {
    /// 1: what was to be checked is bad. 2: the command or its input is wrong.
    pub status: u8,
    /// What was tried, on what, and what to do next.
    pub message: String,
}

/// What a command returns: a status of its own, or a failure to tell.
pub type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// The input is wrong: status 2.
    pub fn input(message: impl ToString) -> Failure {
        Failure { status: 2, message: message.to_string() }
    }

    /// What was checked is bad: status 1.
    pub fn bad(message: impl ToString) -> Failure {
        Failure { status: 1, message: message.to_string() }
    }

    /// The user stopped it: status 130, as a shell tells of SIGINT.
    pub fn stopped() -> Failure {
        Failure { status: 130, message: "stopped".into() }
    }
}

/// The directory of the workspace: of the sources this program was built from.
pub fn root() -> PathBuf {
    let package = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    package.parent().map_or_else(|| package.clone(), PathBuf::from)
}

/// The cargo that runs us.
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// A flag that becomes true on Ctrl-C or a request to end. The second Ctrl-C ends this process at
/// once.
pub fn cancel_flag() -> Result<Arc<AtomicBool>, Failure> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The order matters: the first signal finds the flag false, sets it, and only the next one
        // ends the process.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&flag)))
            .map_err(|e| Failure::input(format!("cannot catch signal {signal}: {e}")))?;
    }
    Ok(flag)
}

/// What `--require` and the environment require together.
pub fn required(flag: &str) -> Result<Require, Failure> {
    let read = |text: &str, from: &str| {
        Require::parse(text).map_err(|e| Failure::input(format!("{from}: {e}")))
    };
    let environment = std::env::var(require::VARIABLE).unwrap_or_default();
    Ok(read(flag, "--require")?.and(read(&environment, require::VARIABLE)?))
}

/// Builds the payloads, and lists their tests.
pub fn payloads(root: &Path) -> Result<Catalog, Failure> {
    let built = build_payloads(root, &Options::default()).map_err(Failure::bad)?;
    Ok(built.catalog)
}
