//! Scripts that guests do in the cases of the area `replay`: without KVM they hold as well.

use std::path::Path;

use fuzz::direct::{Preparer, ops_of};
use fuzz::regressions::files;
use vmm::script::parse;
use vmm::script::replay;

#[test]
fn scripts_of_cases_hold_on_the_board_alone_and_are_a_guests_to_do() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testcases/cases/replay");
    let scripts = files(&dir).expect("the cases of the area");
    assert!(scripts.len() >= 10, "{scripts:?}");
    for file in scripts {
        let shown = file.display();
        let summary = replay::file(&file).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(summary.checked, summary.steps, "{shown} does not say what each answer is");
        let script = parse(&std::fs::read(&file).expect("a file")).expect("a script");
        let mut preparer = Preparer::new(&script.board);
        let steps = script.steps.len();
        preparer.add(ops_of(script));
        let prepared = preparer.finish();
        assert_eq!(prepared.script.steps.len(), steps, "{shown}: {:?}", prepared.left_out);
    }
}
