//! Reads what criterion leaves behind: of each benchmark `new/benchmark.json`, which names it, and
//! `new/sample.json`, which has of each sample the iterations and the nanoseconds they took together.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::record::{Measurement, Metric};
use crate::support::Failure;

/// Criterion's files lie this deep at most: group, function, value, and the run's name.
const DEEP: usize = 5;

/// `benchmark.json`, of which we need the name.
#[derive(Deserialize)]
struct Named {
    full_id: String,
}

/// `sample.json`.
#[derive(Deserialize)]
struct Samples {
    iters: Vec<f64>,
    times: Vec<f64>,
}

/// Every benchmark of which there is a result, by name.
///
/// # Errors
///
/// There is none, or a file cannot be read or is damaged.
pub fn read(dir: &Path) -> Result<Vec<Measurement>, Failure> {
    let mut runs = Vec::new();
    find(dir, DEEP, &mut runs).map_err(|e| {
        let shown = dir.display();
        Failure::input(format!(
            "cannot read criterion's results in {shown}: {e}; `cargo bench -p benches` writes them"
        ))
    })?;
    let mut all = Vec::new();
    for run in runs {
        let named: Named = parse(&run.join("benchmark.json"))?;
        let file = run.join("sample.json");
        let Samples { iters, times } = parse(&file)?;
        if iters.len() != times.len() || iters.is_empty() || iters.iter().any(|n| *n < 1.0) {
            let counts = format!("{} times of {} samples", times.len(), iters.len());
            return Err(Failure::input(format!("{} is damaged: {counts}", file.display())));
        }
        let samples = times.iter().zip(&iters).map(|(time, iters)| time / iters).collect();
        let metric = Metric::time(format!("{}/time", named.full_id), "ns");
        all.push(Measurement { metric, samples });
    }
    if all.is_empty() {
        return Err(Failure::input(format!(
            "there are no results of criterion in {}; `cargo bench -p benches` writes some",
            dir.display()
        )));
    }
    all.sort_by(|a, b| a.metric.cmp(&b.metric));
    Ok(all)
}

/// Directories called `new` that hold a result.
fn find(dir: &Path, deep: usize, runs: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        if entry.file_name() == "new" && path.join("sample.json").exists() {
            runs.push(path);
        } else if deep > 0 {
            find(&path, deep - 1, runs)?;
        }
    }
    Ok(())
}

fn parse<T: for<'a> Deserialize<'a>>(file: &Path) -> Result<T, Failure> {
    let shown = file.display();
    let text = fs::read_to_string(file)
        .map_err(|e| Failure::input(format!("cannot read {shown}: {e}")))?;
    serde_json::from_str(&text).map_err(|e| Failure::input(format!("{shown} is damaged: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, at: &str, name: &str, sample: &str) {
        let dir = dir.join(at).join("new");
        fs::create_dir_all(&dir).expect("made");
        let text =
            format!(r#"{{"group_id":"g","function_id":"f","full_id":"{name}","title":"t"}}"#);
        fs::write(dir.join("benchmark.json"), text).expect("written");
        fs::write(dir.join("sample.json"), sample).expect("written");
    }

    #[test]
    fn samples_are_times_of_one_iteration() {
        let dir = tempfile::tempdir().expect("a directory");
        let sample = r#"{"sampling_mode":"Linear","iters":[10.0,20.0],"times":[1000.0,2200.0]}"#;
        write(dir.path(), "board/port-read", "board/port-read", sample);
        write(dir.path(), "board/empty", "board/empty", sample);
        fs::create_dir_all(dir.path().join("report/new")).expect("made");
        let all = read(dir.path()).expect("two");
        let names: Vec<&str> = all.iter().map(|m| &m.metric.name[..]).collect();
        assert_eq!(names, ["board/empty/time", "board/port-read/time"]);
        assert_eq!(all[1].samples, [100.0, 110.0]);
    }

    #[test]
    fn what_is_missing_or_damaged_is_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let why = |dir: &Path| read(dir).expect_err("bad").message;
        assert!(why(dir.path()).contains("no results of criterion in"));
        assert!(why(&dir.path().join("none")).contains("cannot read criterion's results"));
        for damaged in ["{", r#"{"iters":[1.0],"times":[]}"#, r#"{"iters":[0.0],"times":[3.0]}"#] {
            write(dir.path(), "a", "a", damaged);
            let why = why(dir.path());
            assert!(why.contains("a/new/sample.json is damaged"), "{why}");
        }
    }
}
