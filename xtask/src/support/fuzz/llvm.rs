//! LLVM's tools that read the compiler's counters: the machine's own, or a Debian package.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use hosts::fetch::{Fetcher, Own};
use hosts::pieces::Program;

use super::Shop;
use crate::support::Failure;
use crate::support::emulated::CACHE;
use crate::support::fetching::Bar;

/// The versions of LLVM that are looked for, the newest first.
const VERSIONS: std::ops::RangeInclusive<u32> = 14..=30;

/// `llvm-profdata` and `llvm-cov`.
#[derive(Clone, Debug)]
pub enum Llvm {
    /// The machine's own: where they are, if that is not left to PATH, and what stands behind their names.
    Own {
        /// The directory.
        dir: Option<PathBuf>,
        /// Such as `-19`.
        suffix: String,
    },
    /// Those of a package that was unpacked: the program `llvm-cov`.
    Fetched(Program),
}

impl Llvm {
    /// A command that starts one of them, still without arguments.
    pub fn command(&self, name: &str) -> Command {
        let mut command = match self {
            Llvm::Own { dir, suffix } => {
                let name = format!("{name}{suffix}");
                Command::new(
                    dir.as_ref().map_or_else(|| name.clone().into(), |dir| dir.join(&name)),
                )
            }
            Llvm::Fetched(program) => {
                Program { path: program.path.with_file_name(name), ..program.clone() }.command()
            }
        };
        command.stdin(Stdio::null());
        command
    }

    /// Where they may be: the toolchain's component llvm-tools, Debian's packages, the path.
    fn candidates(root: &Path) -> Vec<Llvm> {
        let own = |dir, suffix: &str| Llvm::Own { dir, suffix: suffix.to_owned() };
        let sysroot = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--print", "sysroot"])
            .current_dir(root)
            .output();
        let bin = sysroot.ok().filter(|out| out.status.success()).map(|out| {
            let sysroot = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            Path::new(&sysroot).join("lib/rustlib/x86_64-unknown-linux-gnu/bin")
        });
        let mut all: Vec<Llvm> = bin.into_iter().map(|dir| own(Some(dir), "")).collect();
        for version in VERSIONS.rev() {
            all.push(own(Some(format!("/usr/lib/llvm-{version}/bin").into()), ""));
            all.push(own(None, &format!("-{version}")));
        }
        all.push(own(None, ""));
        all.retain(|llvm| {
            let mut command = llvm.command("llvm-profdata");
            command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        });
        all
    }

    /// Merges counters that a program wrote.
    fn merge(&self, raw: &[PathBuf], merged: &Path) -> std::io::Result<Output> {
        let mut command = self.command("llvm-profdata");
        command.args(["merge", "-sparse"]).args(raw).arg("-o").arg(merged);
        command.output()
    }

    /// Those that read what this compiler writes, of which `raw` are examples; these are merged. What is on
    /// the machine comes first, and then Debian's package, as for emulated hosts.
    ///
    /// # Errors
    ///
    /// There are none, and none can be fetched: what to install.
    pub fn reading(shop: Shop<'_>, raw: &[PathBuf], merged: &Path) -> Result<Llvm, Failure> {
        let mut why = Vec::new();
        let mut reads = |llvm: &Llvm| {
            let shown = llvm.command("llvm-profdata").get_program().to_string_lossy().into_owned();
            match llvm.merge(raw, merged) {
                Ok(out) if out.status.success() => return true,
                Ok(out) => {
                    let text = String::from_utf8_lossy(&out.stderr).into_owned();
                    why.push(format!("{shown}: {}", text.lines().next().unwrap_or("fails")));
                }
                Err(e) => why.push(format!("{shown}: {e}")),
            }
            false
        };
        if let Some(llvm) = Llvm::candidates(shop.root).into_iter().find(&mut reads) {
            return Ok(llvm);
        }
        if why.is_empty() {
            why.push("there is no llvm-profdata on this machine".to_owned());
        }
        let mut bar = Bar::default();
        let cache = shop.root.join(CACHE);
        let mut fetcher = Fetcher::new(&cache, Own::default(), shop.cancel, &mut bar);
        let fetched = fetcher.llvm(why).map_err(|e| Failure::input(e.to_string()))?;
        let llvm = Llvm::Fetched(fetched);
        match llvm.merge(raw, merged) {
            Ok(out) if out.status.success() => Ok(llvm),
            Ok(out) => Err(unread(&String::from_utf8_lossy(&out.stderr))),
            Err(e) => Err(unread(&e.to_string())),
        }
    }
}

/// A compiler that is newer than every LLVM there is.
fn unread(why: &str) -> Failure {
    Failure::input(format!(
        "the llvm-profdata of Debian's llvm-19, which was fetched, does not read this compiler's counters ({}). \
         Install the compiler's own: `rustup component add llvm-tools`",
        why.trim()
    ))
}
