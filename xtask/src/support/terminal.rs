//! The terminal that this process was started on.

use std::io;
use std::path::PathBuf;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr, ttyname};

/// The terminal with the settings it had, which come back when this goes away: an emulator that was
/// killed leaves it raw.
pub struct Kept {
    /// Its device.
    pub path: PathBuf,
    settings: Termios,
}

impl Kept {
    /// The terminal that standard input is; `None` if it is none.
    pub fn take() -> Option<Kept> {
        let settings = tcgetattr(io::stdin()).ok()?;
        let name = ttyname(io::stdin(), Vec::new()).ok()?;
        Some(Kept { path: name.to_string_lossy().into_owned().into(), settings })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.settings);
    }
}
