//! Builds the programs that run inside an emulated host: the agent and the VMM.
//!
//! They are linked statically, because an image has no libraries, and at fixed addresses, because
//! relocating them would be work for an emulated processor.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use goblin::elf::Elf;
use testcases::{program, reproducible};

/// Where cargo builds them, below the workspace: apart from everything else, because other flags
/// would make it build everything again.
const TARGET_DIR: &str = "target/hosts/build";

/// What to install where there is no libc.a.
const STATIC_LIBC: &str = "static programs need a static C library: libc6-dev has it on Debian, \
                           glibc-static on Fedora";

/// What programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// To run cases: small, and quickly built.
    Cases,
    /// To run cases, with a VMM that can be wrong on purpose.
    Sabotage,
    /// To be measured: as optimised as those that people use.
    Measured,
}

impl Kind {
    /// The profile that they are built with.
    pub fn profile(self) -> &'static str {
        if self == Kind::Measured { "release" } else { "host" }
    }
}

/// The programs of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The first process.
    pub agent: PathBuf,
    /// The VMM.
    pub vmm: PathBuf,
}

/// Builds the programs of the workspace at `root` with this `cargo`. The compiler's messages go to
/// this process's standard error. Flags that the user has for rustc are left out: the same sources
/// and the same compiler make the same programs.
///
/// # Errors
///
/// They do not build, or are not static.
pub fn build(
    root: &Path,
    cargo: &OsStr,
    kind: Kind,
    cancel: &AtomicBool,
) -> Result<Programs, String> {
    build_telling(root, cargo, kind, cancel, &mut std::io::stderr())
}

/// As [`build`], with the compiler's messages written to `log`.
///
/// # Errors
///
/// As of [`build`].
pub fn build_telling(
    root: &Path,
    cargo: &OsStr,
    kind: Kind,
    cancel: &AtomicBool,
    log: &mut dyn Write,
) -> Result<Programs, String> {
    let flags = ["-Ctarget-feature=+crt-static", "-Crelocation-model=static"];
    let mut command = reproducible::cargo(cargo, root, "build", &flags)?;
    command
        .args(["--package", "agent", "--package", "vmm", "--bin", "agent", "--bin", "vmm"])
        .args(["--target-dir", TARGET_DIR]);
    command.args(["--profile", kind.profile()]);
    if kind == Kind::Sabotage {
        command.args(["--features", "vmm/sabotage"]);
    }
    let [agent, vmm] = program::build_telling(&mut command, ["agent", "vmm"], cancel, log)
        .map_err(|why| format!("{why}, for emulated hosts; {STATIC_LIBC}"))?;
    check_static(&agent)?;
    check_static(&vmm)?;
    Ok(Programs { agent, vmm })
}

/// Refuses a program that would look for libraries.
fn check_static(program: &Path) -> Result<(), String> {
    let shown = program.display();
    let bytes = fs::read(program).map_err(|e| format!("cannot read {shown}: {e}"))?;
    let elf = Elf::parse(&bytes).map_err(|e| format!("{shown} is no program: {e}"))?;
    match elf.interpreter {
        None => Ok(()),
        Some(loader) => Err(format!("{shown} wants {loader}, which no image has; {STATIC_LIBC}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_with_a_loader_is_refused() {
        // Tests are linked to shared libraries.
        let me = std::env::current_exe().expect("a path");
        let error = check_static(&me).unwrap_err();
        assert!(error.contains("ld-linux") && error.contains("libc6-dev"), "{error}");
    }

    #[test]
    fn what_does_not_build_says_so() {
        let cancel = AtomicBool::new(false);
        let error = build(Path::new("/"), OsStr::new("false"), Kind::Cases, &cancel).unwrap_err();
        assert!(error.contains("agent and vmm") && error.contains("libc6-dev"), "{error}");
    }
}
