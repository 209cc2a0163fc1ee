//! Cargo for programs that shall come out the same, bit for bit, wherever the workspace lies and
//! whoever builds it: payloads, and what runs inside an emulated host.
//!
//! Flags go through the environment and with `--target`, so build scripts and macros, which run on
//! the machine itself, do not get them. What they replace are flags of whoever runs this.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The one target that such programs are built for.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Variables of whoever runs this that would change how programs are compiled, or where they go.
const NOT_INHERITED: &[&str] = &[
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_INCREMENTAL",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

/// A command of this `cargo` on the workspace, for [`TARGET`], with these flags of rustc; its other
/// arguments are still to be given.
///
/// # Errors
/// The toolchain's rustc (`$RUSTC`, else the one on PATH) does not say which it is.
pub fn cargo(
    cargo: impl AsRef<OsStr>,
    workspace: &Path,
    subcommand: &str,
    flags: &[&str],
) -> Result<Command, String> {
    let mut all: Vec<OsString> = flags.iter().map(OsString::from).collect();
    for (from, to) in prefixes(workspace)? {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push(format!("={to}"));
        all.push(flag);
    }
    let mut command = Command::new(cargo);
    command
        .current_dir(workspace)
        .arg(subcommand)
        .args(["--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", all.join(OsStr::new("\x1f")));
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    Ok(command)
}

/// The beginnings of paths that would end up in a program's panic messages, and what stands there
/// instead.
fn prefixes(workspace: &Path) -> Result<Vec<(PathBuf, String)>, String> {
    let mut prefixes = vec![(workspace.to_owned(), ".".to_owned())];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    if let Some(home) = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))) {
        prefixes.push((std::path::absolute(&home).unwrap_or(home), "cargo".to_owned()));
    }
    let version = rustc(workspace, &["-vV"])?;
    let field = |name: &str| {
        let value = version.lines().find_map(|line| line.strip_prefix(name));
        value.map(str::trim).filter(|value| *value != "unknown")
    };
    // The standard library's own paths begin with /rustc and its commit. But where its sources are
    // installed (rust-src), rustc writes their place into what it compiles of it.
    if let Some(commit) = field("commit-hash:").or_else(|| field("release:")) {
        let root = rustc(workspace, &["--print", "sysroot"])?;
        let sources = Path::new(root.trim()).join("lib/rustlib/src/rust");
        prefixes.push((sources, format!("/rustc/{commit}")));
    }
    Ok(prefixes)
}

/// What the toolchain's compiler answers.
fn rustc(workspace: &Path, args: &[&str]) -> Result<String, String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    ask(Command::new(&rustc).args(args).current_dir(workspace)).map_err(|why| {
        let line = format!("{} {}", rustc.display(), args.join(" "));
        format!("`{line}` does not work: {why}; set RUSTC to the compiler that cargo uses")
    })
}

/// A command's standard output, or why there is none.
fn ask(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}, {}", output.status, said.trim_end()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_variables_of_this_machine_are_left_out() {
        let command = cargo("cargo", Path::new("/"), "build", &["-Ca=b c"]).expect("a toolchain");
        let envs: Vec<_> = command.get_envs().collect();
        let flags = envs.iter().find(|(key, _)| *key == "CARGO_ENCODED_RUSTFLAGS");
        let flags = flags.and_then(|(_, value)| value.as_ref()).expect("flags").to_string_lossy();
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert_eq!(flags[..2], ["-Ca=b c", "--remap-path-prefix=/=."]);
        assert!(flags.iter().any(|flag| flag.ends_with("=cargo")), "{flags:?}");
        assert!(flags.iter().any(|flag| flag.contains("rustlib/src/rust=/rustc/")), "{flags:?}");
        for name in NOT_INHERITED {
            assert!(envs.iter().any(|(key, value)| key == name && value.is_none()), "{name}");
        }
    }

    #[test]
    fn a_command_that_fails_says_why() {
        let error = ask(Command::new("sh").args(["-c", "echo no toolchain >&2; exit 3"]));
        assert_eq!(error, Err("exit status: 3, no toolchain".into()));
        let error = ask(&mut Command::new("/no/such/rustc")).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
    }
}
