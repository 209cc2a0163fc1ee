//! What `cargo xtask fuzz` makes of wrong input, and the layout that OSS-Fuzz and ClusterFuzzLite expect.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

fn xtask(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("fuzz").args(words).output().expect("xtask starts")
}

fn wrong(words: &[&str], says: &str) {
    let out = xtask(words);
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(2), "{words:?}: {text}");
    assert!(text.contains(says), "{words:?}: {text}");
}

#[test]
fn wrong_input_is_status_2_with_a_way_out() {
    wrong(&["run", "uarrt"], "the nearest is `uart`");
    wrong(&["cover", "nonsense-beyond-words"], "cargo xtask fuzz list");
    wrong(&["floors", "uarrt"], "the nearest is `uart`");
    // The names come before anything is built.
    wrong(&["speed", "uart", "rtc", "uarrt"], "the nearest is `uart`");
    wrong(&["run", "uart", "--time", "soon"], "--time soon");
    wrong(&["repro", "/no/such/input"], "/no/such/input cannot be read");
    wrong(&["export", "uart", "--sanitizer", "memory"], "address, coverage and none");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let stray = dir.path().join("crash-0");
    fs::write(&stray, [1, 2, 3]).expect("written");
    let named = |name: &str| dir.path().join(name).display().to_string();
    wrong(&["min", &named("crash-0")], "give --target NAME");
    wrong(&["repro", &named("")], "cannot be read: Is a directory");
    wrong(&["repro", &named(""), "--target", "uart"], "cannot be read: Is a directory");
    fs::write(named("empty"), "").expect("written");
    wrong(&["min", &named("empty")], "give --target NAME");
    fs::write(named("other.script"), "# exitlab script 1\nmachine uart\n").expect("written");
    let other = named("other.script");
    wrong(&["repro", &other, "--target", "rtc"], "is for a machine `uart`, and target rtc has");
    wrong(&["repro", &other, "--target", "rtcc"], "the nearest is `rtc`");
    fs::write(&other, "# exitlab script 1\nmachine uart\nout 0x3f8 3 0\n").expect("written");
    wrong(&["direct", "--script", &other], "line 3, column 11");
}

#[test]
fn targets_are_listed() {
    let out = xtask(&["list"]);
    let text = String::from_utf8_lossy(&out.stdout);
    for name in ["uart", "board", "pci", "script", "wire"] {
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
        assert!(line.is_some(), "{name}: {text}");
    }
    let count = text.lines().count() - 1;
    assert!(text.ends_with(&format!("{count} targets\n")), "{text}");
}

/// The value of a key of a project.yaml, and the words of the list below it.
fn value<'a>(yaml: &'a str, key: &str) -> Option<Vec<&'a str>> {
    let mut lines = yaml.lines().skip_while(|line| line.split(':').next() != Some(key));
    let (_, first) = lines.next()?.split_once(':')?;
    let list = lines.map_while(|line| line.trim_start().strip_prefix("- "));
    Some([first].into_iter().chain(list).map(|word| word.trim().trim_matches('"')).collect())
}

/// ClusterFuzzLite asks for the language, and OSS-Fuzz also for a homepage, a contact and a repository: those
/// are a project's own, and not here until one fills them in.
#[test]
fn project_yaml_says_nothing_that_is_not_so() {
    let path = root().join(".clusterfuzzlite/project.yaml");
    let yaml = fs::read_to_string(&path).expect("project.yaml");
    assert_eq!(value(&yaml, "language").as_deref(), Some(&["rust"][..]));
    assert_eq!(value(&yaml, "fuzzing_engines").as_deref(), Some(&["", "libfuzzer"][..]));
    assert_eq!(value(&yaml, "sanitizers").as_deref(), Some(&["", "address"][..]));
    for key in ["homepage", "primary_contact", "main_repo"] {
        assert!(yaml.contains(&format!("{key}:")), "{key} is a line to be filled in");
        let Some(words) = value(&yaml, key) else { continue };
        let is_placeholder = words[0].is_empty() || words[0].contains("example.");
        assert!(
            !is_placeholder,
            "{}: `{key}` is a placeholder. For OSS-Fuzz put the project's own there; ClusterFuzzLite takes none, \
             so the line may be a comment",
            path.display()
        );
    }
}

/// Builds with a nightly compiler, so `cargo xtask ci` runs it by itself.
#[test]
#[ignore = "builds a fuzzer; cargo xtask ci runs it"]
fn the_build_script_makes_the_layout_that_clusterfuzz_expects() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let script = root().join(".clusterfuzzlite/build.sh");
    let mut command = Command::new(&script);
    command.env("OUT", dir.path()).env("SANITIZER", "none");
    let targets = ["uart", "script"];
    command.env("EXITLAB_FUZZ_TARGETS", targets.join(" "));
    let out = command.output().expect("the build script starts");
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let nightly = Command::new("rustup").args(["run", "nightly", "rustc", "--version"]).output();
    if !nightly.is_ok_and(|out| out.status.success()) {
        // Nothing can be laid out; what is to be done is said.
        assert!(
            !out.status.success() && text.contains("rustup toolchain install nightly"),
            "{text}"
        );
        return;
    }
    assert!(out.status.success(), "{text}");
    for target in targets {
        let at = |end: &str| dir.path().join(format!("{target}{end}"));
        let mode = fs::metadata(at("")).expect("the fuzzer").permissions().mode();
        assert_ne!(mode & 0o111, 0, "{target} can be run");
        let seeds = fs::read(at("_seed_corpus.zip")).expect("the seeds");
        assert!(seeds.starts_with(b"PK\x03\x04"), "{target}'s seeds are an archive");
        let options = fs::read_to_string(at(".options")).expect("the options");
        assert!(options.starts_with("[libfuzzer]\n"), "{options}");
        assert_eq!(options.contains("dict = "), at(".dict").exists(), "{options}");
        let ran = Command::new(at("")).arg("-runs=100").arg("-seed=1").output().expect("it starts");
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(ran.status.success() && text.contains("Done 100 runs"), "{text}");
    }
    assert!(dir.path().join("script.dict").exists(), "what reads text has words");
    let names = fs::read_dir(dir.path()).expect("the directory");
    for name in names.map(|entry| entry.expect("an entry").file_name()) {
        let name = name.to_string_lossy().into_owned();
        assert!(targets.iter().any(|target| name.starts_with(target)), "{name} is nobody's");
    }
}
