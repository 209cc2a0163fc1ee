//! The program's statuses: 2 for wrong input, told before anything is built or run.

use std::process::{Command, Output, Stdio};

fn xtask(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(line.split_whitespace()).output().expect("xtask starts")
}

#[test]
fn wrong_input_is_status_2_with_a_way_out() {
    for (line, says) in [
        ("test no/such/case", "no case matches `no/such/case`"),
        ("test --exact boot", "no case matches `boot`"),
        ("test --host arm", "[possible values: kvm, amd, intel, all]"),
        ("test --host kvm --kvm-param ept=0", "add --host amd or intel"),
        ("test --host amd,intel --deterministic", "--host amd"),
        ("host setup kvm", "[possible values: amd, intel]"),
        ("host run amd", "<COMMAND>"),
        ("test --require kmv", "cannot require `kmv`"),
        ("test --jobs 0", "1..=1024"),
        ("test --json /no/such/directory/x", "cannot write the report /no/such/directory/x"),
        ("test --json /dev/null --junit /dev/null", "give each its own"),
        ("kut", "--images <DIR>"),
        ("kut --images /no/such/directory", "neither x86/unittests.cfg nor unittests.cfg"),
        ("ci --require kmv", "cannot require `kmv`"),
        ("tset", "test"),
        ("", "Usage"),
    ] {
        let out = xtask(line);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{line}: {text}");
        assert!(text.contains(says), "{line}: {text}");
        assert!(out.stdout.is_empty(), "{line}: an error is not output");
    }
}

#[test]
fn the_doctor_tells_whether_cases_can_run() {
    let out = xtask("doctor");
    let text = String::from_utf8_lossy(&out.stdout);
    let last = text.lines().last().expect("output");
    match out.status.code() {
        Some(0) => assert!(last.starts_with("cases can run here"), "{text}"),
        Some(1) => assert_eq!(last, "no case can run here"),
        other => panic!("status {other:?}: {text}"),
    }
    for key in ["kernel", "processor", "memory", "/dev/kvm", "huge pages"] {
        assert!(text.lines().any(|line| line.starts_with(key)), "{key} in {text}");
    }
}

#[test]
fn a_reader_that_goes_away_changes_no_status() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("doctor").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("xtask starts");
    drop(child.stdout.take());
    let out = child.wait_with_output().expect("xtask ends");
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), xtask("doctor").status.code(), "{text}");
    assert!(text.is_empty(), "{text}");
}
