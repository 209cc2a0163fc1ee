//! Instructions of what runs without KVM: the bench `counts`, which gungraun runs under Callgrind.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use benches::scenes::{self, COUNTED};
use serde_json::Value;

use crate::support::out::complain;
use crate::support::{Failure, cargo};

/// The version of gungraun; its runner must have the same.
const VERSION: &str = "0.20.0";
/// Where the runner is installed, below the workspace, and where its results go.
const TOOLS: &str = "target/tools";
const RESULTS: &str = "target/gungraun";
const VALGRIND: &str = "apt install valgrind (Debian, Ubuntu) or dnf install valgrind (Fedora)";

/// What was counted of one scene.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// `GROUP/NAME`.
    pub name: String,
    /// Instructions of one turn, in each repetition.
    pub counts: Vec<f64>,
}

impl Counted {
    /// The least and the most.
    pub fn range(&self) -> (f64, f64) {
        let fold = |f: fn(f64, f64) -> f64| self.counts.iter().copied().reduce(f).unwrap_or(0.0);
        (fold(f64::min), fold(f64::max))
    }
}

/// Counts the scenes whose name holds one of `wanted`, all if that is empty, so many times.
///
/// # Errors
///
/// Valgrind is missing, the bench cannot be built, or its runner fails.
pub fn count(
    root: &Path,
    wanted: &[String],
    repeats: u32,
    cancel: &AtomicBool,
) -> Result<Vec<Counted>, Failure> {
    let name = |scene: &scenes::Scene| format!("{}/{}", scene.group, scene.name);
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|w| name.contains(&w[..]));
    let mut counted: Vec<(usize, Counted)> = scenes::all()
        .map(name)
        .enumerate()
        .filter(|(_, name)| is_wanted(name))
        .map(|(number, name)| (number, Counted { name, counts: Vec::new() }))
        .collect();
    if counted.is_empty() {
        let all: Vec<String> = scenes::all().map(name).collect();
        return Err(Failure::input(format!(
            "no scene is called `{}`; there are {}",
            wanted.join("` or `"),
            all.join(", ")
        )));
    }
    valgrind("valgrind")?;
    let runner = runner(root)?;
    // A filter of gungraun's is a path with patterns: all are counted where several are wanted.
    let filter = match (&counted[..], wanted.len()) {
        ([(number, _)], 1) => format!("*::scene_{number}"),
        _ => "*".to_owned(),
    };
    for _ in 0..repeats {
        if cancel.load(Ordering::Relaxed) {
            return Err(Failure::stopped());
        }
        let said = once(root, &runner, &filter)?;
        for (number, counted) in &mut counted {
            let found = instructions(&said, *number).ok_or_else(|| {
                Failure::bad(format!(
                    "gungraun {VERSION} tells no instructions of {}; it said:\n{said}",
                    counted.name
                ))
            })?;
            counted.counts.push(found as f64 / COUNTED as f64);
        }
    }
    Ok(counted.into_iter().map(|(_, counted)| counted).collect())
}

/// Looks that valgrind, `program`, can be run.
fn valgrind(program: &str) -> Result<(), Failure> {
    let said = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    match said {
        Ok(said) if said.status.success() => Ok(()),
        Ok(said) => Err(Failure::input(format!(
            "`{program} --version` ended with {}; install it anew: {VALGRIND}",
            said.status
        ))),
        Err(e) => Err(Failure::input(format!(
            "instructions are counted by valgrind, and {program} cannot be run: {e}; {VALGRIND}"
        ))),
    }
}

/// The runner: built once, below the workspace.
fn runner(root: &Path) -> Result<PathBuf, Failure> {
    let tools = root.join(TOOLS);
    let path = tools.join("bin/gungraun-runner");
    let said = Command::new(&path).arg("--version").stdin(Stdio::null()).output();
    let is_there =
        said.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).trim().ends_with(VERSION));
    if is_there {
        return Ok(path);
    }
    let version = format!("={VERSION}");
    let words =
        ["install", "gungraun-runner", "--version", &version, "--locked", "--force", "--root"];
    let again = format!("cargo {} {}", words.join(" "), tools.display());
    complain(format_args!("installing gungraun's runner, once: {again}"));
    let mut install = Command::new(cargo());
    install.args(words).arg(&tools).arg("--target-dir").arg(tools.join("build"));
    install.stdin(Stdio::null());
    let done = install.status();
    match done {
        Ok(status) if status.success() => Ok(path),
        Ok(status) => Err(Failure::bad(format!(
            "gungraun's runner could not be installed ({status}); `{again}` tells why"
        ))),
        Err(e) => Err(Failure::input(format!("cannot run cargo: {e}"))),
    }
}

/// Runs the bench; what it tells, as lines of JSON.
fn once(root: &Path, runner: &Path, filter: &str) -> Result<String, Failure> {
    // Results of before would only be compared with.
    let results = root.join(RESULTS);
    match std::fs::remove_dir_all(&results) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Failure::input(format!("cannot remove {}: {e}", results.display())));
        }
        _ => {}
    }
    let mut bench = Command::new(cargo());
    bench.args(["bench", "--quiet", "--package", "benches", "--features", "counts"]);
    bench.args(["--bench", "counts"]).current_dir(root).stdin(Stdio::null());
    bench.env("GUNGRAUN_RUNNER", runner).env("GUNGRAUN_HOME", &results);
    bench.env("GUNGRAUN_OUTPUT_FORMAT", "json").env("GUNGRAUN_FILTER", filter);
    let said = bench.stderr(Stdio::inherit()).output();
    let said = said.map_err(|e| Failure::input(format!("cannot run cargo: {e}")))?;
    match said.status.success() {
        true => Ok(String::from_utf8_lossy(&said.stdout).into_owned()),
        false => Err(Failure::bad(format!(
            "the bench `counts` ended with {}; what it said stands above",
            said.status
        ))),
    }
}

/// The instructions of the scene of this number, of what gungraun told.
fn instructions(said: &str, number: usize) -> Option<u64> {
    let id = format!("scene_{number}");
    let summaries = said.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let summary = summaries.into_iter().find(|summary| summary["id"] == id.as_str())?;
    // Results of before are removed, so there are new ones alone.
    summary["profiles"][0]["data"]["total"]["metrics"]["Ir"]["values"]["new"].as_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gungraun_is_understood_and_a_missing_valgrind_is_told_with_a_way_out() {
        let metrics = r#"{"metrics":{"Dr":{"values":{"new":7}},"Ir":{"values":{"new":11251}}}}"#;
        let data = format!(r#"{{"parts":[],"total":{metrics}}}"#);
        let line = format!(r#"{{"id":"scene_2","profiles":[{{"data":{data}}}]}}"#);
        let said = format!("a line of somebody else's\n{line}\n");
        assert_eq!(instructions(&said, 2), Some(11251));
        assert_eq!(instructions(&said, 1), None);
        assert_eq!(instructions(&said.replace("Ir", "It"), 2), None);
        let missing = valgrind("/nonexistent/valgrind").expect_err("no such program").message;
        assert!(missing.contains("apt install valgrind"), "{missing}");
    }

    #[test]
    fn the_runner_is_of_the_version_of_the_library() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
        let manifest = std::fs::read_to_string(root).expect("the workspace's manifest");
        assert!(manifest.contains(&format!("gungraun = \"={VERSION}\"")));
    }
}
