//! Which code a target's corpus reaches: by the compiler's own counters, read with LLVM's tools.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fuzz::targets::Target;
use serde::Deserialize;
use testcases::process::{self, Ended};

use super::build::{self, Flavour};
use super::{Shop, cannot};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// The versions of LLVM that are looked for, the newest first.
const VERSIONS: std::ops::RangeInclusive<u32> = 14..=30;
/// How long a corpus may take to be run.
const LIMIT: Duration = Duration::from_secs(1800);

/// LLVM's tools for coverage: the directory that they are in, and what stands behind their names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Llvm {
    dir: Option<PathBuf>,
    suffix: String,
}

impl Llvm {
    fn program(&self, name: &str) -> PathBuf {
        let name = format!("{name}{}", self.suffix);
        self.dir.as_ref().map_or_else(|| name.clone().into(), |dir| dir.join(&name))
    }

    /// Where they may be: the toolchain's component llvm-tools, Debian's packages, the path.
    fn candidates(root: &Path) -> Vec<Llvm> {
        let sysroot = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--print", "sysroot"])
            .current_dir(root)
            .output();
        let own = sysroot.ok().filter(|out| out.status.success()).map(|out| {
            let sysroot = String::from_utf8_lossy(&out.stdout).trim().to_owned();
            Path::new(&sysroot).join("lib/rustlib/x86_64-unknown-linux-gnu/bin")
        });
        let plain = String::new;
        let mut all: Vec<Llvm> =
            own.into_iter().map(|dir| Llvm { dir: Some(dir), suffix: plain() }).collect();
        for version in VERSIONS.rev() {
            let dir = PathBuf::from(format!("/usr/lib/llvm-{version}/bin"));
            all.push(Llvm { dir: Some(dir), suffix: plain() });
            all.push(Llvm { dir: None, suffix: format!("-{version}") });
        }
        all.push(Llvm { dir: None, suffix: plain() });
        all.retain(|llvm| {
            let mut command = Command::new(llvm.program("llvm-profdata"));
            command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null());
            command.stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        all
    }

    /// Those that read what this compiler writes.
    fn reading(root: &Path, raw: &[PathBuf], merged: &Path) -> Result<Llvm, Failure> {
        let mut why = Vec::new();
        for llvm in Llvm::candidates(root) {
            let program = llvm.program("llvm-profdata");
            let shown = program.display().to_string();
            let mut command = Command::new(&program);
            command.args(["merge", "-sparse"]).args(raw).arg("-o").arg(merged);
            match command.stdin(Stdio::null()).output() {
                Ok(out) if out.status.success() => return Ok(llvm),
                Ok(out) => {
                    let text = String::from_utf8_lossy(&out.stderr).into_owned();
                    why.push(format!("{shown}: {}", text.lines().next().unwrap_or("fails")));
                }
                Err(e) => why.push(format!("{shown}: {e}")),
            }
        }
        let tried = if why.is_empty() { "there is none".to_owned() } else { why.join("; ") };
        Err(Failure::input(format!(
            "no llvm-profdata reads this compiler's counters ({tried}). Install one that does: `rustup \
             component add llvm-tools` brings the compiler's own, and Debian's package llvm-19 or later \
             reads profiles of version 10"
        )))
    }
}

/// What `llvm-cov export -summary-only` says, as far as it is told.
#[derive(Debug, Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Debug, Deserialize)]
struct Data {
    files: Vec<File>,
    totals: Summary,
}

#[derive(Debug, Deserialize)]
struct File {
    filename: String,
    summary: Summary,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Summary {
    lines: Count,
    regions: Count,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Count {
    count: u64,
    covered: u64,
    percent: f64,
}

/// Tells the coverage of each target's corpus, and writes an HTML page for each.
///
/// # Errors
///
/// There are no tools that read the counters, or something cannot be built, run or written.
pub fn run(shop: Shop<'_>, targets: &[&Target], out: &mut Out) -> Result<(), Failure> {
    let tool = build::build(shop, Flavour::Cover, "fuzz-tool")?;
    let pages = build::directory(shop.root.join("target/fuzz-cover/pages"))?;
    for target in targets {
        one(shop, target, &tool, &pages.join(target.name), out)?;
    }
    Ok(())
}

fn one(
    shop: Shop<'_>,
    target: &Target,
    tool: &Path,
    page: &Path,
    out: &mut Out,
) -> Result<(), Failure> {
    let work = shop.root.join("target/fuzz-cover/work").join(target.name);
    if work.exists() {
        fs::remove_dir_all(&work).map_err(cannot("empty the directory", &work))?;
    }
    let work = build::directory(work)?;
    let corpus = shop.corpus(target.name);
    let inputs = fuzz::stable::files(&corpus).map_err(cannot("read the corpus", &corpus))?.len();
    let seeds = work.join("seeds");
    let mut dirs = vec![corpus];
    if inputs == 0 {
        complain(format_args!(
            "{}: its corpus is empty, so only its seeds are run; `cargo xtask fuzz run {}` fills it",
            target.name, target.name
        ));
        build::directory(seeds.clone())?;
        for seed in (target.seeds)().into_iter().chain([Vec::new()]) {
            let path = seeds.join(fuzz::stable::name_of(&seed));
            fs::write(&path, seed).map_err(cannot("write", &path))?;
        }
        dirs = vec![seeds];
    }
    let raw = work.join("run.profraw");
    let mut command = Command::new(tool);
    command.args(["run", target.name]).args(&dirs).env("LLVM_PROFILE_FILE", &raw);
    let mut said = Vec::new();
    let ended = process::run(&mut command, LIMIT, shop.cancel, &mut |_, bytes| {
        said.truncate(4096);
        said.extend_from_slice(bytes);
    });
    if ended != Ended::Exited(0) {
        let said = String::from_utf8_lossy(&said).into_owned();
        return Err(Failure::bad(format!("{}: its corpus: {ended}: {}", target.name, said.trim())));
    }
    let merged = work.join("run.profdata");
    let llvm = Llvm::reading(shop.root, &[raw], &merged)?;
    let sources: Vec<PathBuf> = target.sources.iter().map(|s| shop.root.join(s)).collect();
    let cov = |words: &[&str]| {
        let mut command = Command::new(llvm.program("llvm-cov"));
        command.args(words).arg(tool).arg(format!("-instr-profile={}", merged.display()));
        command.args(&sources).stdin(Stdio::null());
        command
    };
    let mut command = cov(&["export", "-summary-only"]);
    let text = command.output().map_err(cannot("start", &llvm.program("llvm-cov")))?;
    let bad = |what: &str| {
        let said = String::from_utf8_lossy(&text.stderr).into_owned();
        Failure::bad(format!("llvm-cov {what} for {}: {}", target.name, said.trim()))
    };
    let export: Export = serde_json::from_slice(&text.stdout).map_err(|e| bad(&e.to_string()))?;
    let format = format!("-output-dir={}", page.display());
    let html = cov(&["show", "-format=html", "-show-line-counts-or-regions", &format]).output();
    if !html.is_ok_and(|out| out.status.success()) {
        return Err(bad("show"));
    }
    let Some(data) = export.data.first() else { return Err(bad("export")) };
    let line = |name: &str, s: &Summary| {
        format!(
            "{name:44} {:>5.1} % of {:>5} lines  {:>5.1} % of {:>5} regions",
            s.lines.percent, s.lines.count, s.regions.percent, s.regions.count
        )
    };
    let total = &data.totals;
    let title = format!("{} ({inputs} inputs)", target.name);
    writeln!(out, "{}", line(&title, total));
    for file in &data.files {
        let name = Path::new(&file.filename);
        let name = name.strip_prefix(shop.root).unwrap_or(name).display().to_string();
        writeln!(out, "  {}", line(&name, &file.summary).replacen("  ", "", 1));
    }
    if !target.uncovered.is_empty() && total.lines.covered < total.lines.count {
        writeln!(out, "  not reached: {}", target.uncovered);
    }
    let index = page.join("index.html");
    let shown = index.strip_prefix(shop.root).unwrap_or(&index).display();
    writeln!(out, "  {shown}");
    Ok(())
}
