//! A stand-in for `vmm`: takes the same command line and ends in the way that `--test` names, so that
//! the runner can be tested without KVM, and with ends that a sound VMM never shows.

use std::io::Write;
use std::process::exit;
use std::time::Duration;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |key: &str| {
        let at = args.iter().position(|a| a == key).unwrap_or_else(|| panic!("no {key}"));
        args[at + 1].clone()
    };
    assert_eq!(args[1], "run");
    assert_eq!(value("--serial"), "stdio");
    let timeout = value("--timeout");
    let test = value("--test");
    let say = |text: &str| {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).expect("standard output");
    };
    let begin = || say(&format!("booting\n## begin {test}\n"));
    match &test[..] {
        "pass" | "slow" => {
            begin();
            if test == "slow" {
                std::thread::sleep(Duration::from_millis(300));
            }
            say(&format!("## value {test} exit_ticks 42\n## pass {test}\n"));
            exit(1)
        }
        "fail" => {
            begin();
            say("## fail fail: x.rs:1: wrong\n");
            exit(3)
        }
        "skip" => {
            begin();
            say("## skip skip: no such feature\n");
            exit(77)
        }
        "error" => {
            begin();
            say("## error error: trap #PF at 0x1234\n");
            exit(127)
        }
        "silent" => exit(1),
        "liar" => {
            begin();
            say("## fail liar: x.rs:1: wrong\n");
            exit(1)
        }
        "garbage" => {
            begin();
            std::io::stdout().write_all(b"## \xff\xfe\n\x00\x1b[2J").expect("standard output");
            exit(1)
        }
        // Speaks, and goes on for ever: the runner's own deadline must end it.
        "hang" => {
            begin();
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        // A hang that the VMM ends itself.
        "timeout" => {
            begin();
            eprintln!("the guest did not end within {timeout}\nrip 0x100000");
            exit(124)
        }
        "flood" => {
            begin();
            let line = [b'x'; 1 << 16];
            for _ in 0..1024 {
                let _ = std::io::stdout().write_all(&line);
                let _ = std::io::stderr().write_all(&line);
            }
            say("\n## pass flood\n");
            exit(1)
        }
        "segv" => {
            begin();
            // The first one only disarms the handler by which Rust tells a stack overflow.
            let me = rustix::process::getpid();
            loop {
                rustix::process::kill_process(me, rustix::process::Signal::SEGV).expect("a signal");
            }
        }
        "args" => {
            begin();
            eprintln!("{}", args[1..].join("|"));
            exit(0)
        }
        other => match other.strip_prefix("status_").and_then(|n| n.parse().ok()) {
            Some(status) => {
                begin();
                exit(status)
            }
            None => panic!("the fake VMM knows no test {other}"),
        },
    }
}
