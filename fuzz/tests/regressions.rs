//! What once went wrong stays right.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use fuzz::regressions::{Back, files, play, play_all};

fn all(dir: &Path) -> (usize, Vec<Back>) {
    let player = Path::new(env!("CARGO_BIN_EXE_fuzz-tool"));
    play_all(dir, (player, &["play"]), &AtomicBool::new(false)).expect("a directory of regressions")
}

#[test]
fn what_once_went_wrong_stays_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let (played, back) = all(&folder);
    assert!(played > 0, "no script in {}: the folder has moved", folder.display());
    assert!(back.is_empty(), "{}", back.iter().map(|b| format!("{b}\n")).collect::<String>());
}

#[test]
fn what_cannot_be_played_says_where_and_why() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(&path, text).expect("written");
        path
    };
    let wrong =
        put("uart/syntax.script", "# exitlab script 1\nmachine pc\nin 0x3fd 1\nout 0x3f8 3 0\n");
    let says = play(&wrong).expect_err("a width of 3").to_string();
    assert!(says.contains("syntax.script: line 4, column 11"), "{says}");
    let lost = put("nowhere/x.input", "");
    assert!(play(&lost).expect_err("no target").what.contains("fuzz/regressions/TARGET"));
    put("uart/notes.txt", "no regression");
    let back = put("uart/other.script", "# exitlab script 1\nmachine pc\nin 0x3fd 1 -> 0x61\n");
    let says = play(&back).expect_err("it answers 0x60").to_string();
    assert!(says.contains("operation 1") && says.contains("0x60"), "{says}");
    assert_eq!(files(dir.path()).expect("a directory").len(), 3);
    let (played, back) = all(dir.path());
    assert_eq!((played, back.len()), (3, 3));
    assert!(back[0].to_string().contains("nowhere/x.input: lies in no target's"), "{}", back[0]);
}

#[test]
fn what_takes_its_process_along_is_told_by_name() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("deep.script"), "").expect("written");
    let dies = ["-c", "echo overflowed >&2; kill -SEGV $$"];
    let (played, back) = play_all(dir.path(), (Path::new("sh"), &dies), &AtomicBool::new(false))
        .expect("a directory of regressions");
    let says = back.first().expect("it died").to_string();
    assert_eq!((played, back.len()), (1, 1));
    for part in ["deep.script: ", "signal 11", "overflowed"] {
        assert!(says.contains(part), "{says}");
    }
}
