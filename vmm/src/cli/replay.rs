//! `vmm replay`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use vmm::script::replay::{self, ReplayError};

use super::{USAGE, complain};

/// Exit status when the board answers otherwise than the script expects.
const DIFFERS: u8 = 6;

/// Run a recorded or written script of exits against the board, without KVM. Exit status: 0 if the
/// board answers as the script expects, 2 if it is no script, 6 at the first difference.
#[derive(Debug, Args)]
pub struct Replay {
    /// The script: what `vmm run --trace` writes, or anything in that form.
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Replay {
    /// Replays; gives the exit status.
    pub fn main(self) -> u8 {
        match replay::file(&self.file) {
            Ok(summary) => {
                // The status tells the same to whoever does not read it.
                let _ = writeln!(std::io::stdout(), "{summary}");
                0
            }
            Err(e) => {
                complain(&e);
                match e {
                    ReplayError::Differs { .. } => DIFFERS,
                    _ => USAGE,
                }
            }
        }
    }
}
