//! Builds the guest payloads, and refuses one that would not run everywhere.
//!
//! A payload is compiled for the bare machine by the toolchain that is there anyway: same target
//! as the host, other flags. Nothing here is done by hand, and nothing else builds payloads.
//!
//! ```no_run
//! use testcases::build::{Options, build_payloads};
//! let built = build_payloads(".".as_ref(), &Options::default())?;
//! for (area, payload) in built.catalog.iter() {
//!     println!("{area}: {} tests in {}", payload.tests.len(), payload.path.display());
//! }
//! # Ok::<(), testcases::build::BuildError>(())
//! ```

#[cfg(test)]
#[path = "../../vmm/src/payload/synthetic.rs"]
mod synthetic;
pub mod vector;

pub use vmm::payload::{ElfError, Image, TestInfo, list_tests};

use crate::load::{Catalog, Payload};
use crate::reproducible;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How payloads are built.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cargo to call.
    pub cargo: PathBuf,
}

impl Default for Options {
    /// The cargo that runs this process (`$CARGO`), else the one in the search path.
    fn default() -> Self {
        Options { cargo: std::env::var_os("CARGO").map_or_else(|| "cargo".into(), PathBuf::from) }
    }
}

/// Payloads, built and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The directory of the ELF files, `target/payloads`.
    pub dir: PathBuf,
    /// Each payload by its area, with its ELF (`boot` is at `target/payloads/boot`) and its tests.
    pub catalog: Catalog,
}

/// Why there are no payloads.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Cargo did not start.
    #[error("cannot start {} to build the payloads: {source}; set CARGO to a cargo", cargo.display())]
    Start {
        /// What was to be started.
        cargo: PathBuf,
        /// Why it did not.
        source: io::Error,
    },
    /// There is no compiler to build them for.
    #[error("the payloads cannot be built: {0}")]
    Toolchain(String),
    /// The compiler or linker refused.
    #[error("the payloads do not build ({status}); cargo said:\n{output}")]
    Cargo {
        /// How cargo ended.
        status: std::process::ExitStatus,
        /// What it wrote for people.
        output: String,
    },
    /// Cargo said something unexpected.
    #[error("cargo's message on payloads is not understood: {source}, in: {line}")]
    Message {
        /// What is wrong with it.
        source: serde_json::Error,
        /// The message.
        line: String,
    },
    /// Cargo was content, and built no payload.
    #[error("cargo built no payload: guest-payloads/Cargo.toml has no [[bin]]")]
    Nothing,
    /// A file could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A payload is not what its loaders or the runner expect.
    #[error("payload {payload}: {source}")]
    Elf {
        /// Which.
        payload: String,
        /// What is wrong.
        source: ElfError,
    },
    /// A payload holds vector or x87 instructions where none may be.
    #[error("payload {payload}: {found}")]
    Vector {
        /// Which.
        payload: String,
        /// The first such instruction.
        found: vector::Found,
    },
}

/// Builds all payloads below `workspace` and leaves them in `target/payloads`, checked. Takes a
/// moment if nothing changed; says nothing if it succeeds.
pub fn build_payloads(workspace: &Path, options: &Options) -> Result<Built, BuildError> {
    let workspace = fs::canonicalize(workspace).map_err(file("find", workspace))?;
    let mut command = cargo(&workspace, options, "build")?;
    command.arg("--message-format=json-render-diagnostics");
    let executables = executables(&run(command, options)?)?;
    if executables.is_empty() {
        return Err(BuildError::Nothing);
    }
    let dir = workspace.join("target/payloads");
    let mut catalog = Catalog::new();
    for (area, built) in executables {
        let bytes = fs::read(&built).map_err(file("read", &built))?;
        let tests = check(&area, &bytes)?.into_iter().map(|test| (test.name, test.about)).collect();
        let path = dir.join(&area);
        publish(&bytes, &path)?;
        catalog.add(area, Payload { path, tests });
    }
    remove_others(&dir, &catalog)?;
    Ok(Built { dir, catalog })
}

/// Runs clippy on the payloads, which an ordinary run for the host leaves out; warnings are errors.
pub fn lint_payloads(workspace: &Path, options: &Options) -> Result<(), BuildError> {
    let workspace = fs::canonicalize(workspace).map_err(file("find", workspace))?;
    let mut command = cargo(&workspace, options, "clippy")?;
    command.args(["--", "-D", "warnings"]);
    run(command, options).map(drop)
}

/// Refuses a payload that no loader takes, whose tests cannot be listed, or that holds vector
/// instructions in code that did not ask for them.
pub fn check(payload: &str, bytes: &[u8]) -> Result<Vec<TestInfo>, BuildError> {
    let named = |source| BuildError::Elf { payload: payload.to_owned(), source };
    let image = Image::parse(bytes).map_err(named)?;
    image.check_loaders().map_err(named)?;
    if let Some(found) = vector::find(&image).map_err(named)? {
        return Err(BuildError::Vector { payload: payload.to_owned(), found });
    }
    list_tests(bytes).map_err(named)
}

/// Cargo on the payloads, with the flags they need.
fn cargo(workspace: &Path, options: &Options, subcommand: &str) -> Result<Command, BuildError> {
    let flags = [
        // CPL 0 may be interpreted by a hypervisor that knows few vector instructions. rustc warns
        // that the ABI of floating-point values changes with this; payloads pass none.
        "-Ctarget-feature=-sse,-sse2",
        // Linked at fixed addresses, and interrupts arrive on the stack that is in use.
        "-Crelocation-model=static",
        "-Cno-redzone=yes",
        "-Cforce-unwind-tables=no",
    ];
    let mut command = reproducible::cargo(&options.cargo, workspace, subcommand, &flags)
        .map_err(BuildError::Toolchain)?;
    command
        .args(["--quiet", "--package=guest-payloads", "--bins"])
        .args(["--profile=payload", "--features=bare-metal"])
        .args(["--target-dir", "target/payloads/build"]);
    Ok(command)
}

/// Runs cargo to its end: its standard output, or an error with what it had to say.
fn run(mut command: Command, options: &Options) -> Result<String, BuildError> {
    let output = command
        .output()
        .map_err(|source| BuildError::Start { cargo: options.cargo.clone(), source })?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(BuildError::Cargo { status: output.status, output: text(&output.stderr) }),
    }
}

/// The binaries that cargo's messages name, by area.
fn executables(messages: &str) -> Result<BTreeMap<String, PathBuf>, BuildError> {
    #[derive(serde::Deserialize)]
    struct Message {
        reason: String,
        executable: Option<PathBuf>,
    }
    let mut found = BTreeMap::new();
    for line in messages.lines().filter(|line| line.starts_with('{')) {
        let message: Message = serde_json::from_str(line)
            .map_err(|source| BuildError::Message { source, line: line.to_owned() })?;
        let name = message.executable.as_deref().and_then(Path::file_name).and_then(OsStr::to_str);
        if let ("compiler-artifact", Some(name)) = (message.reason.as_str(), name) {
            found.insert(name.to_owned(), message.executable.unwrap_or_default());
        }
    }
    Ok(found)
}

/// Writes a payload to its place unless it is there already; never seen half-written.
fn publish(bytes: &[u8], place: &Path) -> Result<(), BuildError> {
    if fs::read(place).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    let mut draft = place.as_os_str().to_owned();
    draft.push(format!(".{}.tmp", std::process::id()));
    let draft = PathBuf::from(draft);
    fs::write(&draft, bytes).map_err(file("write", &draft))?;
    fs::rename(&draft, place).map_err(file("put a payload at", place))
}

/// Removes payloads that are no more.
fn remove_others(dir: &Path, catalog: &Catalog) -> Result<(), BuildError> {
    for entry in fs::read_dir(dir).map_err(file("list", dir))? {
        let entry = entry.map_err(file("list", dir))?;
        let path = entry.path();
        let is_file = entry.file_type().map_err(file("look at", &path))?.is_file();
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| catalog.get(name).is_some());
        // Another process may be about to put its draft into place.
        let draft = path.extension().is_some_and(|extension| extension == "tmp");
        if is_file && !known && !draft {
            fs::remove_file(&path).map_err(file("remove", &path))?;
        }
    }
    Ok(())
}

fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BuildError + use<> {
    let path = path.to_owned();
    move |source| BuildError::File { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_among_cargos_messages() {
        let messages = concat!(
            "{\"reason\":\"compiler-artifact\",\"executable\":null}\n",
            "{\"reason\":\"compiler-artifact\",\"executable\":\"/t/payload/boot\"}\n",
            "{\"reason\":\"build-finished\",\"success\":true}\n",
        );
        let found = executables(messages).unwrap();
        assert_eq!(found, BTreeMap::from([("boot".to_owned(), PathBuf::from("/t/payload/boot"))]));
        assert!(matches!(executables("{\"reason\":"), Err(BuildError::Message { .. })));
    }

    #[test]
    fn a_missing_cargo_and_a_missing_workspace_are_named() {
        let options = Options { cargo: "/nonexistent/cargo".into() };
        let error = build_payloads(".".as_ref(), &options).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/cargo"), "{error}");
        let error = build_payloads("/nonexistent".as_ref(), &options).unwrap_err().to_string();
        assert!(error.contains("/nonexistent"), "{error}");
    }

    #[test]
    fn a_refused_payload_is_named() {
        let error = check("boot", b"no ELF").unwrap_err().to_string();
        assert!(error.starts_with("payload boot: "), "{error}");
    }
}
