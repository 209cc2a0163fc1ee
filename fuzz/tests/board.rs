//! The PC board obeys the laws: on inputs that no fuzzer chose, and on every script that once
//! broke one.

mod common;

use std::path::Path;

use common::input;
use fuzz::{Board, generators, oracles};
use vmm::script::replay::check;
use vmm::script::{Op, parse};

#[test]
fn the_pc_obeys_the_laws() {
    let board = Board::pc();
    for n in 0..300 {
        let generated = generators::script(&input(n), &board);
        if let Err(violation) = oracles::generated(&generated, &board) {
            panic!("input {n}: {violation}\n{}", generated.script);
        }
    }
}

#[test]
fn an_empty_input_is_one_read() {
    let board = Board::pc();
    let generated = generators::script(&[], &board);
    assert!(matches!(&generated.script.steps[..], [step] if matches!(step.op, Op::Exit { .. })));
    oracles::generated(&generated, &board).expect("a boring script");
}

#[test]
fn what_once_went_wrong_stays_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut scripts = 0;
    for entry in folder.read_dir().expect("the folder of regressions") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|ext| ext != "script") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let script =
            parse(&std::fs::read(&path).expect("a file")).unwrap_or_else(|e| panic!("{name}, {e}"));
        let trace = oracles::check(&script, &Board::pc()).unwrap_or_else(|v| panic!("{name}: {v}"));
        check(&script, &trace).unwrap_or_else(|d| panic!("{name}, operation {}: {d}", d.step + 1));
        scripts += 1;
    }
    assert!(scripts > 0, "no script in {}: the folder has moved", folder.display());
}
