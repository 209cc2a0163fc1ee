//! Builds the `vmm` program that cases run, and other programs of this workspace.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::process::{self, Ended, Stream};

/// How long a build may take; the first one compiles all dependencies.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// Builds package `vmm` of the workspace at `root` with this `cargo`, in the development profile (it
/// is optimised enough to run cases, and shares its objects with the tests), and returns the
/// program's path. With `sabotage` it is the one that can be wrong on purpose, in a place of its own. The
/// compiler's messages go to this process's standard error.
///
/// # Errors
///
/// The build failed or took longer than twenty minutes; what to run to see it alone.
pub fn build_vmm(
    root: &Path,
    cargo: &OsStr,
    sabotage: bool,
    cancel: &AtomicBool,
) -> Result<PathBuf, String> {
    let mut command = Command::new(cargo);
    command.args(["build", "--package", "vmm", "--bin", "vmm"]).current_dir(root);
    match sabotage {
        // A place of its own: the one that is wrong is never where somebody looks for the VMM.
        true => command.args(["--features", "sabotage", "--target-dir", "target/sabotage"]),
        // Cargo builds dependencies with the features that the chosen packages want together. Naming
        // xtask, which is built already, makes that the same set, and nothing twice.
        false => command.args(["--package", "xtask"]),
    };
    let [vmm] = build(&mut command, ["vmm"], cancel)
        .map_err(|why| format!("{why}; `cargo build --package vmm --bin vmm` shows it alone"))?;
    Ok(vmm)
}

/// Runs this `cargo build` and returns the paths of the programs of these names that it made. The
/// compiler's messages go to this process's standard error.
///
/// # Errors
///
/// The build failed or took longer than twenty minutes, or does not make such a program.
pub fn build<const N: usize>(
    command: &mut Command,
    names: [&str; N],
    cancel: &AtomicBool,
) -> Result<[PathBuf; N], String> {
    build_telling(command, names, cancel, &mut std::io::stderr())
}

/// As [`build`], with the compiler's messages written to `log`.
///
/// # Errors
///
/// As of [`build`].
pub fn build_telling<const N: usize>(
    command: &mut Command,
    names: [&str; N],
    cancel: &AtomicBool,
    log: &mut dyn Write,
) -> Result<[PathBuf; N], String> {
    let mut messages = Vec::new();
    let ended = process::run(
        command.arg("--message-format=json-render-diagnostics"),
        LIMIT,
        cancel,
        &mut |stream, bytes| match stream {
            Stream::Out => messages.extend_from_slice(bytes),
            Stream::Err => {
                // That nobody takes them is no reason to fail.
                let _ = log.write_all(bytes);
            }
        },
    );
    if ended != Ended::Exited(0) {
        return Err(format!("cannot build the program {}: {ended}", names.join(" and ")));
    }
    let messages = String::from_utf8_lossy(&messages);
    let mut paths = names.map(|_| PathBuf::new());
    for (path, name) in paths.iter_mut().zip(names) {
        *path = executable(&messages, name).ok_or_else(|| {
            format!("cargo built no program `{name}`; is its [[bin]] still there?")
        })?;
    }
    Ok(paths)
}

/// The path of the program `name` in cargo's JSON messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|m| m["reason"] == "compiler-artifact" && m["target"]["name"] == name)
        .find_map(|m| m["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = "noise\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vmm\"},\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"x\"},\"executable\":\"/t/x\"}\n\
            {\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"vmm\"},\"executable\":\"/t/v\"}\n";
        assert_eq!(executable(messages, "vmm"), Some("/t/v".into()));
        assert_eq!(executable("{}", "vmm"), None);
    }

    #[test]
    fn a_build_that_fails_says_so() {
        let cancel = AtomicBool::new(false);
        let error = build_vmm(Path::new("/"), OsStr::new("false"), false, &cancel).unwrap_err();
        assert!(error.contains("status 1") && error.contains("cargo build"), "{error}");
        let error = build_vmm(Path::new("/"), OsStr::new("true"), false, &cancel).unwrap_err();
        assert!(error.contains("no program `vmm`"), "{error}");
    }
}
