//! What once went wrong stays right.

use std::fs;
use std::path::Path;

use fuzz::regressions::{files, play, play_all};

#[test]
fn what_once_went_wrong_stays_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let (played, back) = play_all(&folder).expect("the folder of regressions");
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
    let (played, back) = play_all(dir.path()).expect("a directory");
    assert_eq!((played, back.len()), (3, 3));
}
