//! A stand-in for `vmm`: takes the same command line and ends in the way that `--test` names, so that
//! the runner can be tested without KVM, and with ends that a sound VMM never shows.

use std::io::Write;
use std::process::exit;
use std::time::{Duration, Instant};

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
        "pass" => {
            begin();
            say("## value pass exit_ticks 42\n## pass pass\n");
            exit(1)
        }
        // Passes if as many processes as the command line says come to a directory before the time
        // is over.
        "meet" => {
            begin();
            let cmdline = value("--cmdline");
            let (count, dir) = cmdline.split_once(' ').expect("a count and a directory");
            let count = count.parse().expect("a count");
            std::fs::write(format!("{dir}/{}", std::process::id()), "").expect("a file");
            let until = Instant::now() + vmm::units::duration(&timeout).expect("a time");
            while std::fs::read_dir(dir).expect("a directory").count() < count {
                if Instant::now() >= until {
                    let _ = std::fs::remove_file(format!("{dir}/{}", std::process::id()));
                    exit(124)
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            say("## pass meet\n");
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
