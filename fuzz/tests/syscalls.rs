//! A steady execution makes no system call: memory, boards and their tables are there from the first on.

use std::path::Path;
use std::process::Command;

use fuzz::mutate::Rng;
use fuzz::targets::{ALL, Subject, Target};
use testcases::require;

/// With this variable set the test is the program that is looked at; it holds how often each input is
/// tried.
const ROUNDS: &str = "EXITLAB_FUZZ_ROUNDS";

/// Inputs of 16 operations, none of which asks for a costly law.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(target.name.len() as u64);
    let input = |_| {
        let mut bytes: Vec<u8> = (0..4 + 16 * 16).map(|_| (rng.number() >> 40) as u8).collect();
        bytes[..4].fill(0);
        bytes
    };
    (0..64).map(input).collect()
}

/// What the program does: as often as it is told, each input of each board.
fn play(rounds: usize) {
    let boards = ALL.iter().filter(|target| matches!(target.subject, Subject::Board { .. }));
    let all: Vec<_> = boards.map(|target| (target, inputs(target))).collect();
    for _ in 0..rounds {
        for (target, inputs) in &all {
            assert!(inputs.iter().all(|input| target.run(input)));
        }
    }
}

/// How many system calls strace counts.
fn counted(rounds: usize, file: &Path) -> u64 {
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-U", "calls,name", "-o"]).arg(file);
    command.arg(std::env::current_exe().expect("this program"));
    command.args(["--exact", "a_steady_execution_makes_no_system_call", "--nocapture"]);
    let status = command.env(ROUNDS, rounds.to_string()).status().expect("strace");
    assert!(status.success(), "strace: {status}");
    let table = std::fs::read_to_string(file).expect("strace's table");
    let total = table.lines().find(|line| line.ends_with("total")).expect("a total");
    total.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn a_steady_execution_makes_no_system_call() {
    if let Some(rounds) = std::env::var_os(ROUNDS) {
        return play(rounds.to_str().and_then(|word| word.parse().ok()).expect("a number"));
    }
    if Command::new("strace").arg("-V").output().is_err() {
        let required = std::env::var(require::VARIABLE).unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "all"), "required, but there is no strace");
        println!(
            "skipped: there is no strace; install it, and this counts the system calls of boards"
        );
        return;
    }
    let file = std::env::temp_dir().join(format!("exitlab-calls-{}", std::process::id()));
    let executions = 18 * 64;
    let (few, many) = (counted(20, &file), counted(60, &file));
    std::fs::remove_file(&file).expect("it was there");
    // 40 rounds more: an allocator grows now and then, a test harness waits.
    let more = many.saturating_sub(few);
    println!("{few} calls in 20 rounds, {many} in 60, of {executions} executions each");
    assert!(more < executions / 10, "{more} system calls in {} executions", 40 * executions);
}
