//! What an emulated host is made of: programs, a kernel and firmware, wherever they came from.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

/// A program, with what it takes to start it from where it was unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// The dynamic loader and the directories of libraries to start it with, if they are not the
    /// machine's own.
    pub loader: Option<Loader>,
    /// Environment variables it needs.
    pub env: Vec<(String, OsString)>,
    /// Directories with its data files (QEMU's `-L`, Bochs's BXSHARE), first choice first.
    pub data: Vec<PathBuf>,
    /// The version it tells of itself, such as `10.0.13`.
    pub version: String,
    /// Where it came from, for people: `qemu-system-x86_64 on PATH`, `package bochs 3.0+dfsg-1`.
    pub origin: String,
}

/// A dynamic loader with its libraries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loader {
    /// `ld-linux-x86-64.so.2`.
    pub path: PathBuf,
    /// Where libraries are looked for.
    pub libraries: Vec<PathBuf>,
}

/// A kernel with its modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The bzImage.
    pub image: PathBuf,
    /// The directory `lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// Where it came from, for people.
    pub origin: String,
}

/// The firmware of the Bochs machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BochsFirmware {
    /// The system BIOS.
    pub bios: PathBuf,
    /// The VGA BIOS.
    pub vga: PathBuf,
}

impl Program {
    /// A command that starts it, still without arguments.
    pub fn command(&self) -> Command {
        let mut command = match &self.loader {
            None => Command::new(&self.path),
            Some(loader) => {
                let mut command = Command::new(&loader.path);
                let paths = std::env::join_paths(&loader.libraries).unwrap_or_default();
                command.arg("--library-path").arg(paths).arg(&self.path);
                command
            }
        };
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }
}
