//! A stand-in for QEMU with a host in it: takes the same command line, finds its job where a host does,
//! and does what FAKE_ACTS says, so that all the ends of a host can be tested in no time.
//!
//! FAKE_ACTS holds acts with `;` between them: the first boot that runs cases plays the first one, and
//! so on; the last one is played again and again. A boot that asks for facts always goes well. An act
//! `WORD:N` does its harm with N cases done and the next one started. Each boot leaves a file in
//! FAKE_LOG, `facts-N` or `cases-N`, with its process id and the parameters of its modules.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::exit;
use std::time::Duration;

use rustix::process::{Signal, getpid, kill_process};
use testcases::facts::{KvmFlavour, Processor};
use testcases::facts_table::{FactsTable, KvmTable};
use testcases::job::{Job, Task};
use testcases::process::Ended;
use testcases::runner::CaseReport;
use testcases::verdict::{Outcome, Verdict};
use testcases::wire::{Envelope, Hello, MAGIC, Message, PROTOCOL};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let value = |key: &str| {
        let at = args.iter().position(|a| a == key).unwrap_or_else(|| panic!("no {key}"));
        args[at + 1].clone()
    };
    let console = args.iter().find_map(|a| a.strip_prefix("file,id=console,path="));
    let job = job(&fs::read(value("-initrd")).expect("an initrd"));
    let mut host = Host {
        console: File::create(console.expect("a console")).expect("a file"),
        out: Vec::new(),
        now: 0,
    };
    writeln!(host.console, "this is the fake's console").expect("a file");
    match &job.task {
        Task::Facts => {
            log("facts", &job);
            host.hello(PROTOCOL, &job);
            host.bye(0)
        }
        Task::Cases { cases, .. } => {
            let number = log("cases", &job);
            let acts = std::env::var("FAKE_ACTS").expect("FAKE_ACTS");
            let acts: Vec<&str> = acts.split(';').collect();
            let act = acts[number.min(acts.len() - 1)];
            let (word, count) = act.split_once(':').unwrap_or((act, "0"));
            host.play(word, count.parse().expect("a count"), &job, cases)
        }
        other => panic!("no such task here: {other:?}"),
    }
}

/// The job, which is the last file of the last archive.
fn job(initrd: &[u8]) -> Job {
    let at = initrd.windows(6).rposition(|w| w == b"070701").expect("the trailer");
    let at = initrd[..at].windows(6).rposition(|w| w == b"070701").expect("the job");
    let field = |n: usize| {
        let digits = std::str::from_utf8(&initrd[at + 6 + 8 * n..][..8]).expect("digits");
        usize::from_str_radix(digits, 16).expect("digits")
    };
    let (len, name) = (field(6), field(11));
    let start = (at + 110 + name).next_multiple_of(4);
    serde_json::from_slice(&initrd[start..start + len]).expect("a job")
}

/// Leaves a file for this boot, and returns how many of its kind came before.
fn log(kind: &str, job: &Job) -> usize {
    let dir = std::env::var("FAKE_LOG").expect("FAKE_LOG");
    let own = |n: &usize| {
        let path = Path::new(&dir).join(format!("{kind}-{n}"));
        let file = File::options().write(true).create_new(true).open(path);
        file.and_then(|mut file| write!(file, "{} {:?}", std::process::id(), job.modules)).is_ok()
    };
    (0..1000).find(own).expect("a free name")
}

/// What the host is that the fake has in it.
struct Host {
    console: File,
    /// What is not written yet: what is written at once is read at once, however busy the machine.
    out: Vec<u8>,
    /// Its clock, which this program makes up. ns.
    now: u64,
}

impl Host {
    fn say(&mut self, message: Message) {
        self.now += 1_000_000_000;
        let frame = Envelope { at: self.now, message }.frame().expect("a short message");
        self.out.extend(frame);
    }

    fn flush(&mut self) {
        let mut out = std::io::stdout().lock();
        // The test may have closed it.
        let _ = out.write_all(&self.out).and_then(|()| out.flush());
        self.out.clear();
    }

    fn hello(&mut self, protocol: u32, job: &Job) {
        self.say(Message::Hello(Hello { protocol, kernel: "6.1".into(), cmdline: "quiet".into() }));
        let mut params = BTreeMap::from([("kvm".to_string(), BTreeMap::new())]);
        for (name, value) in [("ignore_msrs", "N"), ("forced", "N"), ("broken", "N")] {
            params.entry("kvm".into()).or_default().insert(name.to_string(), value.to_string());
        }
        for (module, words) in &job.modules {
            for (name, value) in words.split(' ').filter_map(|word| word.split_once('=')) {
                let module = params.entry(module.clone()).or_default();
                module.insert(name.to_string(), value.to_string());
            }
        }
        let kvm = match params["kvm"]["broken"].as_str() {
            "N" => Ok(KvmTable::default()),
            _ => Err("kvm is broken".to_string()),
        };
        self.say(Message::Facts(Box::new(FactsTable {
            kernel: "6.1".into(),
            cpu: "fake".into(),
            processor: Processor::Tcg,
            flavour: KvmFlavour::Amd,
            kvm,
            params,
            cpus: 2,
            memory: 1 << 30,
            free_hugepages: BTreeMap::new(),
            userfault: Err("no userfaultfd".into()),
            vfio_device: Err("no vfio-pci".into()),
        })));
    }

    fn ended(&mut self, index: u32, outcome: Outcome) {
        let report = CaseReport {
            ended: Some(Ended::Exited(1)),
            duration: Duration::from_millis(1),
            ..CaseReport::unrun(Verdict::new(outcome, "said by the fake"))
        };
        self.say(Message::Ended { index, report: Box::new(report) });
    }

    /// Runs a case: one whose name says so fails.
    fn case(&mut self, (index, id): &(u32, String)) {
        self.say(Message::Started { index: *index });
        let outcome = if id.contains("fail") { Outcome::Fail } else { Outcome::Pass };
        self.ended(*index, outcome);
    }

    fn bye(&mut self, status: u8) -> ! {
        self.say(Message::Bye { status });
        self.flush();
        exit(0)
    }

    fn sleep(&mut self) -> ! {
        self.flush();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn play(&mut self, word: &str, count: usize, job: &Job, cases: &[(u32, String)]) -> ! {
        match word {
            "silent" => self.sleep(),
            "gone" => {
                eprintln!("the fake gives up at once");
                exit(3)
            }
            "protocol" => {
                self.hello(PROTOCOL + 1, job);
                self.sleep()
            }
            _ => self.hello(PROTOCOL, job),
        }
        let (done, rest) = cases.split_at(count.min(cases.len()));
        done.iter().for_each(|case| self.case(case));
        let start_next = |host: &mut Host| {
            let (index, _) = rest.first().expect("a case to die in");
            host.say(Message::Started { index: *index });
        };
        match word {
            "well" => rest.iter().for_each(|case| self.case(case)),
            // A kernel that panics: QEMU ends as if all were well.
            "panic" => {
                start_next(self);
                self.flush();
                writeln!(self.console, "Kernel panic - not syncing: fake").expect("a file");
                exit(0)
            }
            "kill" => {
                start_next(self);
                self.flush();
                kill_process(getpid(), Signal::KILL).expect("a signal");
            }
            "hang" => {
                start_next(self);
                self.sleep()
            }
            // Half of the report of a case, and then nothing.
            "half" => {
                start_next(self);
                let whole = self.out.len();
                self.ended(rest[0].0, Outcome::Pass);
                let half = whole + (self.out.len() - whole) / 2;
                self.out.truncate(half);
                self.flush();
                exit(0)
            }
            "flood" => {
                start_next(self);
                self.flush();
                loop {
                    self.out = [&MAGIC[..], &[0x20; 60_000]].concat();
                    self.flush();
                }
            }
            // What firmware and a kernel's early messages look like, and what begins like a frame.
            "garbage" => {
                for case in rest {
                    self.out.extend(b"SeaBIOS (version 1.16)\n\0\0\xff");
                    self.out.extend(MAGIC);
                    self.out.extend([7, 0, 0, 0, 0, 0, 0, 0]);
                    self.case(case);
                    self.out.extend(&MAGIC[..3]);
                }
            }
            "twice" => {
                for case in rest {
                    self.case(case);
                    self.case(case);
                    self.ended(case.0, Outcome::Fail);
                }
            }
            "stranger" => {
                for index in [cases.len() as u32, 77, u32::MAX] {
                    self.case(&(index, "a/fail".into()));
                }
                rest.iter().for_each(|case| self.case(case));
            }
            "unfinished" => start_next(self),
            "trouble" => {
                self.say(Message::Trouble("the fake has no payloads".into()));
                self.bye(1)
            }
            "stay" => {
                rest.iter().for_each(|case| self.case(case));
                self.say(Message::Bye { status: 0 });
                self.sleep()
            }
            other => panic!("the fake QEMU knows no act {other}"),
        }
        self.bye(0)
    }
}
