//! Which code a target's inputs reach: by the compiler's own counters, read with LLVM's tools.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use fuzz::targets::{Beyond, Target};
use serde::Deserialize;
use testcases::process::{self, Ended};

use super::build::{self, Flavour};
use super::lines::{self, Source};
use super::llvm::Llvm;
use super::{Shop, cannot, run};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// How long a corpus may take to be run.
const LIMIT: Duration = Duration::from_secs(1800);

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

/// Where the work of a target lies, empty.
///
/// # Errors
///
/// It cannot be made.
pub fn work(shop: Shop<'_>, target: &Target) -> Result<PathBuf, Failure> {
    build::empty(shop.root.join("target/fuzz-cover/work").join(target.name))
}

/// Counters of a target's inputs, merged, and what reads them.
pub struct Counted<'a> {
    target: &'a Target,
    root: &'a Path,
    tool: &'a Path,
    merged: PathBuf,
    llvm: Llvm,
}

impl<'a> Counted<'a> {
    /// Runs the inputs in `dirs`, and nothing else.
    ///
    /// # Errors
    ///
    /// There are no tools that read the counters, or an input takes the process along.
    pub fn new(
        shop: Shop<'a>,
        target: &'a Target,
        tool: &'a Path,
        work: &Path,
        dirs: &[PathBuf],
    ) -> Result<Counted<'a>, Failure> {
        let raw = work.join("run.profraw");
        let mut command = Command::new(tool);
        command.args(["run", target.name]).args(dirs).env("LLVM_PROFILE_FILE", &raw);
        let mut said = Vec::new();
        let ended = process::run(&mut command, LIMIT, shop.cancel, &mut |_, bytes| {
            said.truncate(4096);
            said.extend_from_slice(bytes);
        });
        match ended {
            Ended::Exited(0) => {}
            Ended::Cancelled => return Err(Failure::stopped()),
            ended => {
                let (name, said) = (target.name, String::from_utf8_lossy(&said).into_owned());
                return Err(Failure::bad(format!("{name}: its corpus: {ended}: {}", said.trim())));
            }
        }
        let merged = work.join("run.profdata");
        let llvm = Llvm::reading(shop, &[raw], &merged)?;
        Ok(Counted { target, root: shop.root, tool, merged, llvm })
    }

    /// What `llvm-cov` says with these words about the target's sources.
    fn ask(&self, words: &[&OsStr]) -> Result<Output, Failure> {
        let mut command = self.llvm.command("llvm-cov");
        command.args(words).arg(self.tool);
        command.arg(format!("-instr-profile={}", self.merged.display()));
        command.args(self.target.sources.iter().map(|source| self.root.join(source)));
        let program = command.get_program().to_owned();
        let out = command.output().map_err(cannot("start", Path::new(&program)))?;
        if !out.status.success() {
            return Err(self.wrong(words, String::from_utf8_lossy(&out.stderr).trim()));
        }
        Ok(out)
    }

    fn wrong(&self, words: &[&OsStr], why: &str) -> Failure {
        let what = words.first().map_or_else(String::new, |word| word.display().to_string());
        Failure::bad(format!("llvm-cov {what} for {}: {why}", self.target.name))
    }

    fn summary(&self) -> Result<Data, Failure> {
        let words = ["export", "-summary-only"].map(OsStr::new);
        let text = self.ask(&words)?.stdout;
        let export = serde_json::from_slice::<Export>(&text);
        let export = export.map_err(|e| self.wrong(&words, &e.to_string()))?;
        export.data.into_iter().next().ok_or_else(|| self.wrong(&words, "it says nothing"))
    }

    /// The lines of the target's sources that inputs can reach at all, each file with its text.
    ///
    /// # Errors
    ///
    /// They cannot be asked for.
    pub fn lines(&self) -> Result<Vec<(Source, String)>, Failure> {
        let words = ["export", "-format=lcov"].map(OsStr::new);
        let text = self.ask(&words)?.stdout;
        let sources = lines::read(&String::from_utf8_lossy(&text), self.root);
        // One that holds no code would be missing, and so would one that was not compiled in.
        if sources.len() != self.target.sources.len() {
            let names: Vec<&str> = sources.iter().map(|source| &source.name[..]).collect();
            let why = format!("of {:?} it knows {names:?}", self.target.sources);
            return Err(self.wrong(&words, &why));
        }
        let beyond: Vec<&Beyond> = self.target.beyond.iter().copied().flatten().collect();
        let mut with_text = Vec::new();
        for mut source in sources {
            let path = self.root.join(&source.name);
            let text = fs::read_to_string(&path).map_err(cannot("read", &path))?;
            source.leave_out(&text, &beyond);
            with_text.push((source, text));
        }
        Ok(with_text)
    }

    /// Writes the HTML page.
    fn page(&self, to: &Path) -> Result<(), Failure> {
        let dir = format!("-output-dir={}", to.display());
        let words = ["show", "-format=html", "-show-line-counts-or-regions", &dir];
        self.ask(&words.map(OsStr::new)).map(drop)
    }
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
        if shop.stopped() {
            return Err(Failure::stopped());
        }
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
    let work = work(shop, target)?;
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
        run::sow(&seeds, target)?;
        run::put(&seeds, &[])?;
        dirs = vec![seeds];
    }
    let counted = Counted::new(shop, target, tool, &work, &dirs)?;
    let data = counted.summary()?;
    counted.page(page)?;
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
    if total.lines.covered < total.lines.count {
        tell_missed(target, &counted.lines()?, out);
        for Beyond { function, text, why } in target.beyond.iter().copied().flatten() {
            let space = if function.is_empty() || text.is_empty() { "" } else { ": " };
            writeln!(out, "  no input reaches `{function}{space}{text}`: {why}");
        }
    }
    let index = page.join("index.html");
    let shown = index.strip_prefix(shop.root).unwrap_or(&index).display();
    writeln!(out, "  {shown}");
    Ok(())
}

/// Tells which lines were not reached, a line for each function, and why.
pub fn tell_missed(target: &Target, sources: &[(Source, String)], out: &mut Out) {
    let mut any = false;
    for (source, text) in sources {
        for (function, lines) in source.missed(text) {
            writeln!(out, "  missed: {}:{lines} in {function}", source.name);
            any = true;
        }
    }
    match (any, target.uncovered) {
        (false, _) => {}
        (true, "") => {
            writeln!(out, "  not reached: no reason is known (`uncovered` of the target)")
        }
        (true, why) => writeln!(out, "  not reached: {why}"),
    }
}
