//! Reads the case files, and checks them against the payloads that were built.

mod area;
mod check;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::case::{Case, CaseId, Spec, is_word};

pub use check::check;

/// The payload whose tests misbehave on purpose. The runner's own tests use it; no case does.
pub const SELFTEST: &str = "selftest";

/// Everything that is wrong with a set of cases.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

/// One thing that is wrong with a case file or the set of cases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file to change.
    pub file: PathBuf,
    /// What is wrong and what would be right.
    pub message: String,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{}: {}", p.file.display(), p.message.trim_end())?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problems {
    fn add(&mut self, file: &Path, message: impl Into<String>) {
        self.0.push(Problem { file: file.into(), message: message.into() });
    }

    fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

/// The payloads that were built, and the tests each one lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Catalog {
    payloads: BTreeMap<String, Payload>,
}

/// One payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Its ELF file.
    pub path: PathBuf,
    /// The tests in its table: name, and what the test shows.
    pub tests: Vec<(String, String)>,
}

impl Catalog {
    /// An empty catalog.
    pub fn new() -> Catalog {
        Catalog::default()
    }

    /// The payloads in a directory that holds nothing else, each under its file's name. The files are
    /// not read, and their tests not listed.
    ///
    /// # Errors
    ///
    /// When the directory cannot be listed.
    pub fn of_dir(dir: &Path) -> Result<Catalog, Problems> {
        let mut problems = Problems::default();
        let payloads = entries(dir, &mut problems).into_iter();
        let payloads = payloads.map(|(name, path)| (name, Payload { path, tests: Vec::new() }));
        problems.or(Catalog { payloads: payloads.collect() })
    }

    /// Adds a payload under its name; a name that is there already is replaced.
    pub fn add(&mut self, name: impl Into<String>, payload: Payload) {
        self.payloads.insert(name.into(), payload);
    }

    /// The payload of this name.
    pub fn get(&self, name: &str) -> Option<&Payload> {
        self.payloads.get(name)
    }

    /// All payloads by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Payload)> {
        self.payloads.iter().map(|(name, payload)| (name.as_str(), payload))
    }
}

/// Reads every case below `dir` (`AREA/NAME.toml`), sorted by id, variants after their base. What
/// `AREA/area.toml` says of all cases of the area is in each of them.
///
/// # Errors
///
/// Everything that is wrong in any of the files; a file that is not a case, too, so that none is
/// overlooked because of its name or its place.
pub fn load(dir: &Path) -> Result<Vec<Case>, Problems> {
    let mut problems = Problems::default();
    let mut cases = Vec::new();
    for (area, area_path) in entries(dir, &mut problems) {
        if !area_path.is_dir() {
            problems.add(&area_path, "no case: cases are AREA/NAME.toml below the cases directory");
            continue;
        }
        let area_file = area_path.join(area::FILE);
        let shared = area::read(&area_file, &mut problems);
        let first = cases.len();
        let mut scripts = Vec::new();
        for (file, path) in entries(&area_path, &mut problems) {
            match file.strip_suffix(".toml") {
                _ if file == area::FILE => {}
                None if file.ends_with(".script") => scripts.push((file, path)),
                Some(name) if is_word(&area) && is_word(name) => {
                    read(&area, name, &path, &mut cases, &mut problems);
                }
                _ => problems.add(
                    &path,
                    "no case: write AREA/NAME.toml, both of lower-case letters, digits, - and _",
                ),
            }
        }
        for (file, path) in scripts {
            let named =
                |case: &Case| case.spec.machine.modules.iter().any(|m| *m == Path::new(&file));
            if !cases[first..].iter().any(named) {
                problems.add(
                    &path,
                    "no case of the area hands it to a guest: name it in machine.modules",
                );
            }
        }
        area::apply(&area_file, &shared, &mut cases[first..], &mut problems);
    }
    cases.sort_by(|a, b| a.id.cmp(&b.id));
    problems.or(cases)
}

/// Reads those of the cases below `dir` that are named, and no more files than that takes: what all
/// cases of an area cover is not in them, and running them does not ask for it. Returns them in the
/// order of the names.
///
/// # Errors
///
/// Everything that is wrong in those files, and names of cases that are not there.
pub fn load_named(dir: &Path, ids: &[&str]) -> Result<Vec<Case>, Problems> {
    let mut problems = Problems::default();
    let mut read_files = BTreeSet::new();
    let mut cases = Vec::new();
    for id in ids {
        let file = id.split('@').next().unwrap_or(id);
        let (area, name) = file.split_once('/').unwrap_or((file, ""));
        if is_word(area) && is_word(name) && read_files.insert(file) {
            let path = dir.join(area).join(format!("{name}.toml"));
            read(area, name, &path, &mut cases, &mut problems);
        }
    }
    let cases: BTreeMap<_, _> = cases.into_iter().map(|case| (case.id.to_string(), case)).collect();
    let mut named = Vec::with_capacity(ids.len());
    for id in ids {
        match cases.get(*id) {
            Some(case) => named.push(case.clone()),
            None => problems.add(dir, format!("there is no case `{id}`")),
        }
    }
    problems.or(named)
}

/// Reads the text of one file: its base case and its variants.
///
/// # Errors
///
/// Everything that is wrong in it.
pub fn read_text(area: &str, name: &str, text: &str) -> Result<Vec<Case>, Problems> {
    let (mut cases, mut problems) = (Vec::new(), Problems::default());
    let file = Path::new(area).join(format!("{name}.toml"));
    parse(area, name, &file, text, &mut cases, &mut problems);
    problems.or(cases)
}

fn entries(dir: &Path, problems: &mut Problems) -> Vec<(String, PathBuf)> {
    let read = fs::read_dir(dir).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    match read {
        Ok(entries) => entries
            .into_iter()
            .map(|e| (e.file_name().to_string_lossy().into_owned(), e.path()))
            .collect(),
        Err(e) => {
            problems.add(dir, format!("cannot be listed: {e}"));
            Vec::new()
        }
    }
}

/// Reads one file: its base case and its variants.
fn read(area: &str, name: &str, file: &Path, cases: &mut Vec<Case>, problems: &mut Problems) {
    match fs::read_to_string(file) {
        Ok(text) => parse(area, name, file, &text, cases, problems),
        Err(e) => problems.add(file, format!("cannot be read: {e}")),
    }
}

fn parse(
    area: &str,
    name: &str,
    file: &Path,
    text: &str,
    cases: &mut Vec<Case>,
    problems: &mut Problems,
) {
    let mut table = match text.parse::<toml::Table>() {
        Ok(table) => table,
        Err(e) => return problems.add(file, e.to_string()),
    };
    let variants = match table.remove("variant") {
        None => toml::Table::new(),
        Some(toml::Value::Table(variants)) => variants,
        Some(_) => return problems.add(file, "`variant` is no table: write [variant.NAME]"),
    };
    let id = |variant: Option<&str>| CaseId {
        area: area.into(),
        name: name.into(),
        variant: variant.map(str::to_string),
    };
    // An error in the base would come again with each variant.
    match Spec::deserialize(table.clone()) {
        Ok(spec) => cases.push(Case { id: id(None), file: file.into(), spec }),
        Err(e) => return problems.add(file, located(text, &e)),
    }
    for (variant, overlay) in variants {
        let toml::Value::Table(overlay) = overlay else {
            let message = format!("variant `{variant}` is no table: write [variant.{variant}]");
            problems.add(file, message);
            continue;
        };
        if !is_word(&variant) {
            let message = format!("variant `{variant}`: write lower-case letters, digits, - and _");
            problems.add(file, message);
            continue;
        }
        let mut merged = table.clone();
        merge(&mut merged, overlay);
        if merged == table {
            problems.add(file, format!("variant `{variant}` changes nothing"));
            continue;
        }
        match Spec::deserialize(merged) {
            Ok(spec) => cases.push(Case { id: id(Some(&variant)), file: file.into(), spec }),
            Err(e) => problems.add(file, format!("variant `{variant}`: {e}")),
        }
    }
}

/// The error as the parser of the text shows it, with line and column, if it can: the variants,
/// which it would refuse, are cut off by reading only what comes before them.
fn located(text: &str, error: &toml::de::Error) -> String {
    let base = text.find("\n[variant").map_or(text, |end| &text[..=end]);
    match toml::from_str::<Spec>(base) {
        Err(with_place) if with_place.message() == error.message() => with_place.to_string(),
        _ => error.to_string(),
    }
}

/// Lays `over` upon `base`: tables are merged, anything else is replaced.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const SMALL: &str = "about = \"It works.\"\npayload = \"apic::self_ipi\"\n";

    pub(super) fn load_files(files: &[(&str, &str)]) -> Result<Vec<Case>, Problems> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
            fs::write(path, text).expect("a file");
        }
        load(dir.path())
    }

    fn ids(cases: &[Case]) -> Vec<String> {
        cases.iter().map(|case| case.id.to_string()).collect()
    }

    #[test]
    fn named_cases_come_in_the_order_of_their_names() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("apic")).expect("a directory");
        let write = |name: &str, text: &str| fs::write(dir.path().join("apic").join(name), text);
        write("one.toml", &format!("{SMALL}[variant.smp2]\nmachine.vcpus = 2\n")).expect("a file");
        write("two.toml", SMALL).expect("a file");
        write("broken.toml", "no TOML").expect("a file");
        let names = ["apic/two", "apic/one@smp2", "apic/one"];
        assert_eq!(ids(&load_named(dir.path(), &names).expect("cases")), names);
        for absent in ["apic/one@smp3", "apic/three", "../apic/one", "apic", ""] {
            let problems = load_named(dir.path(), &["apic/one", absent]).unwrap_err().to_string();
            assert!(problems.contains(&format!("no case `{absent}`")), "{problems}");
        }
        let problems = load_named(dir.path(), &["apic/broken"]).unwrap_err().to_string();
        assert!(problems.contains("broken.toml: TOML parse error"), "{problems}");
    }

    #[test]
    fn a_directory_of_payloads_is_a_catalog() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::write(dir.path().join("apic"), "anything").expect("a file");
        let catalog = Catalog::of_dir(dir.path()).expect("a catalog");
        assert_eq!(catalog.get("apic").expect("a payload").path, dir.path().join("apic"));
        assert_eq!(catalog.iter().count(), 1);
        assert!(Catalog::of_dir(&dir.path().join("no")).unwrap_err().to_string().contains("/no"));
    }

    #[test]
    fn variants_overlay_their_base() {
        let text = format!(
            "{SMALL}[machine]\nvcpus = 1\nmemory = \"64M\"\n\
             [variant.smp2]\nmachine.vcpus = 2\n[variant.slow]\ntimeout = \"60s\"\n"
        );
        let cases = load_files(&[("apic/ipi.toml", &text)]).expect("cases");
        assert_eq!(ids(&cases), ["apic/ipi", "apic/ipi@slow", "apic/ipi@smp2"]);
        let vcpus: Vec<_> = cases.iter().map(|c| c.spec.machine.vcpus.0).collect();
        assert_eq!(vcpus, [1, 1, 2]);
        assert!(cases.iter().all(|c| c.spec.machine.memory.is_some()));
        assert_eq!(cases[1].spec.timeout.0.as_secs(), 60);
    }

    #[test]
    fn cases_are_sorted_whatever_the_directory_says() {
        let cases = load_files(&[("b/z.toml", SMALL), ("a/y.toml", SMALL), ("b/a.toml", SMALL)]);
        assert_eq!(ids(&cases.expect("cases")), ["a/y", "b/a", "b/z"]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_file() {
        for (path, text, says) in [
            ("a/b.toml", "about = ", "line 1"),
            ("a/b.toml", &format!("{SMALL}tmeout = \"1s\"\n") as &str, "line 3, column 1"),
            ("a/b.toml", &format!("{SMALL}tmeout = \"1s\"\n[variant.v]\ntimeout=\"1s\""), "line 3"),
            (
                "a/b.toml",
                &format!("{SMALL}[variant.v]\nmachine.cpus = 2\n"),
                "variant `v`: unknown",
            ),
            ("a/b.toml", &format!("{SMALL}[variant.v]\n"), "variant `v` changes nothing"),
            (
                "a/b.toml",
                &format!("{SMALL}[variant.v]\nvariant.w.about = \"x\"\n"),
                "unknown field",
            ),
            ("a/b.toml", &format!("{SMALL}[variant.V]\ntimeout = \"1s\"\n"), "lower-case"),
            ("a/b.toml", &format!("{SMALL}[variant]\nv = 1\n"), "variant `v` is no table"),
            ("a/b.toml", &format!("{SMALL}variant = 1\n"), "`variant` is no table"),
            ("a/B.toml", SMALL, "no case"),
            ("a/b.script", "", "no case of the area hands it to a guest"),
            ("a/b.txt", SMALL, "no case"),
            ("b.toml", SMALL, "no case"),
            ("A/b.toml", SMALL, "no case"),
        ] {
            let problems = load_files(&[(path, text)]).expect_err(text);
            assert_eq!(problems.0.len(), 1, "{problems}");
            assert!(problems.0[0].file.ends_with(path), "{problems}");
            assert!(problems.0[0].message.contains(says), "{says}: {problems}");
        }
    }

    #[test]
    fn all_wrong_files_are_told_at_once() {
        let problems = load_files(&[("a/b.toml", "x = 1"), ("a/c.toml", "x = 1")]).unwrap_err();
        assert_eq!(problems.0.len(), 2);
        assert!(load(Path::new("/no/such/dir")).unwrap_err().to_string().contains("/no/such/dir"));
    }
}
