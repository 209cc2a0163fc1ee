//! What people and files say in words.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use testcases::kut::config;
use testcases::load;
use testcases::transcript::{Report, Transcript};
use vmm::boot::Protocol;
use vmm::cpuid::CpuModel;
use vmm::hyperv::Enlightenments;
use vmm::launch::Serial;
use vmm::machine::PciDevice;
use vmm::script::parse;
use vmm::units;

use super::grammars;
use super::{Said, Subject, Target, beyond};
use crate::forms;

pub static SCRIPT: Target = Target {
    name: "script",
    about: "the text form of scripts",
    subject: Subject::Bytes {
        make: |b| forms::made(grammars::SCRIPT, b),
        check: script,
        canary: |b| parse(b).is_ok_and(|s| s.steps.len() > 1),
    },
    sources: &["vmm/src/script/parse.rs", "vmm/src/script/cursor.rs", "vmm/src/script/text.rs"],
    beyond: &[],
    floor: 92,
    uncovered: "words that are wrong in one letter",
    words: &[
        b"# exitlab script 1\n",
        b"machine pc\n",
        b"machine pc memory=2M cpus=1 unix-time=0\n",
        b"effects listed\n",
        b"hlt\n",
        b"in 0x3f8 1 -> 0x0\n",
        b"out 0x3f8 1 0x41\n",
        b"read 0xfee00000 4\n",
        b"write 0x1000 8 0x1\n",
        b"ram 0x1000 0011\n",
        b"after 1",
        b"input com1 \"a\\x00\"\n",
        b"advance 1000\n",
        b"timer\n",
        b"save-restore -> ok\n",
        b"reset\n",
        b"cpu 0\n",
        b"line 4 high\n",
        b"output com1 \"A\"\n",
        b"deadline 600\n",
        b"remap 0x1000\n",
        b"-> stop halted\n",
        b"rdmsr 0x10\n",
        b"wrmsr 0x10 0x0\n",
        b"hypercall 0x1 0x0 0x0 0x0\n",
        b"shutdown\n",
        b" -> ",
        b"\n",
        b"0x",
        b"\"",
    ],
    seeds: || {
        vec![forms::raw(include_bytes!(
            "../../regressions/board/edges-of-the-address-spaces.script"
        ))]
    },
};

pub static OPTIONS: Target = Target {
    name: "options",
    about: "values of the command line: sizes, times, processors, devices, protocols",
    subject: Subject::Bytes {
        make: |b| forms::made(grammars::OPTIONS, b),
        check: options,
        canary: |b| b.first().is_some_and(|b| b % 7 == 3) && options(b).is_ok(),
    },
    sources: &["vmm/src/units.rs", "vmm/src/boot/protocol.rs", "vmm/src/cpuid/model.rs"],
    beyond: &[&[beyond("is_model", "", "for who reads QEMU's options; target `unittests`")]],
    floor: 95,
    uncovered: "words that are wrong in one letter",
    words: &[
        b"10s",
        b"500ms",
        b"256M",
        b"4G",
        b"flat:",
        b"flat:0x7c00:real16",
        b"pvh",
        b"multiboot",
        b"elf",
        b"auto",
        b"pci-testdev",
        b"edu",
        b"stdio",
        b"null",
        b"file:x",
        b"all",
        b"enforce",
        b"hv-time",
        b"+",
        b"-",
        b"=",
        b",",
        b":",
        b"host",
        b"max",
        b"x2apic",
        b"sse2",
        b"avx",
        b"level=",
        b"vendor=",
        b"family=",
        b"model=",
        b"stepping=",
    ],
    seeds: Vec::new,
};

/// Reads directories, where the target has a text.
const READS_DIRS: &str = "reads directories";

pub static CASE: Target = Target {
    name: "case",
    about: "case files",
    subject: Subject::Bytes {
        make: |b| forms::made(grammars::CASE, b),
        check: case,
        canary: |b| b.len() > 60 && case(b).is_ok(),
    },
    sources: &[
        "testcases/src/load.rs",
        "testcases/src/case/spec.rs",
        "testcases/src/case/machine.rs",
    ],
    beyond: &[&[
        beyond("of_dir", "", READS_DIRS),
        beyond("load", "", READS_DIRS),
        beyond("load_named", "", READS_DIRS),
        beyond("entries", "", READS_DIRS),
        beyond("read", "", READS_DIRS),
        beyond("new", "", "of what was read"),
        beyond("add", "", "of what was read"),
        beyond("get", "", "of what was read"),
        beyond("iter", "", "of what was read"),
        beyond("payload", "", "of what was read"),
        beyond("test", "", "of what was read"),
        beyond("fmt", "", "of what was read"),
        beyond("arguments", "", "of what was read"),
        beyond("word", "", "of what was read"),
    ]],
    floor: 82,
    uncovered: "variants that are no tables, and keys that contradict each other",
    words: &[
        b"about = \"x\"\n",
        b"payload = \"boot::long_mode\"\n",
        b"timeout = \"10s\"\n",
        b"needs = []\n",
        b"needs = [\"cpuid:x2apic\"]\n",
        b"covers = []\n",
        b"covers = [\"exit:KVM_EXIT_MMIO\"]\n",
        b"[machine]\n",
        b"vcpus = 2\n",
        b"memory = \"64M\"\n",
        b"lab = true\n",
        b"[variant.a]\n",
        b"machine.vcpus = 2\n",
        b"known_bug = \"x\"\n",
        b"[deviates]\n",
        b"tcg = \"x\"\n",
        b"bochs = { because = \"x\", run = false }\n",
        b"host-test = \"x\"\n",
        b"[",
        b"]",
        b"=",
        b"\"",
        b"\n",
    ],
    seeds: Vec::new,
};

pub static UNITTESTS: Target = Target {
    name: "unittests",
    about: "the unittests.cfg of kvm-unit-tests",
    subject: Subject::Bytes {
        make: |b| forms::made(grammars::UNITTESTS, b),
        check: unittests,
        canary: |b| b.len() > 8 && config::parse(&text(b)).is_ok_and(|c| !c.is_empty()),
    },
    sources: &[
        "testcases/src/kut/config.rs",
        "testcases/src/kut/options.rs",
        "testcases/src/kut/words.rs",
    ],
    beyond: &[],
    floor: 93,
    uncovered: "",
    words: &[
        b"[apic]\n",
        b"[smp]\n",
        b"file = apic.flat\n",
        b"smp = 2\n",
        b"smp = $MAX_SMP\n",
        b"timeout = 30\n",
        b"arch = x86_64\n",
        b"groups = nodefault\n",
        b"accel = kvm\n",
        b"check = /sys/module/kvm_intel/parameters/ept=Y\n",
        b"extra_params = -cpu qemu64,+x2apic,+tsc-deadline -machine kernel_irqchip=split\n",
        b"extra_params = -append 'a b' -m 2048\n",
        b"test_args = \"one two\"\n",
        b"qemu_params = -device edu\n",
        b"\"\"\"",
        b"$(date +%s)",
        b"#",
        b"\n",
        b" ",
        b"=",
    ],
    seeds: Vec::new,
};

pub static TRANSCRIPT: Target = Target {
    name: "transcript",
    about: "what a hostile guest says of its test",
    subject: Subject::Bytes {
        make: |b| forms::made(grammars::TRANSCRIPT, b),
        check: transcript,
        canary: |b| matches!(Transcript::of("t", b).report(), Report::Ended(..)),
    },
    sources: &["testcases/src/transcript.rs"],
    beyond: &[],
    floor: 88,
    uncovered: "thousands of values",
    words: &[
        b"## ",
        b"## begin t\n",
        b"## pass t\n",
        b"## fail t: x\n",
        b"## value t ticks 7\n",
        b"## skip t: x\n",
        b"## error t: x\n",
        b"\n",
    ],
    seeds: Vec::new,
};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is a script says the same when it is written and read again; what is none has a place.
fn script(bytes: &[u8]) -> Said {
    match parse(bytes) {
        Ok(script) => {
            let again = parse(script.to_string().as_bytes());
            assert_eq!(again.as_ref(), Ok(&script), "a script survives its text");
            Ok(())
        }
        Err(e) => {
            let e = e.to_string();
            assert!(e.contains("line ") && e.contains("column "), "no place is named: {e}");
            Err(e)
        }
    }
}

/// The first byte says whose value it is.
fn options(bytes: &[u8]) -> Said {
    let (&whose, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let text = text(rest);
    let said = match whose % 7 {
        0 => units::size(&text).map(drop).map_err(|e| e.to_string()),
        1 => units::duration(&text)
            .map(|time| assert_eq!(units::duration(&units::show_duration(time)), Ok(time)))
            .map_err(|e| e.to_string()),
        2 => again::<Protocol>(&text),
        3 => again::<CpuModel>(&text),
        4 => text.parse::<PciDevice>().map(drop),
        5 => text.parse::<Serial>().map(drop),
        _ => text.parse::<Enlightenments>().map(drop).map_err(|e| e.to_string()),
    };
    if let Err(words) = &said {
        assert!(
            !words.is_empty() && words.len() < 4096 + 8 * rest.len(),
            "{} bytes of error",
            words.len()
        );
    }
    said
}

/// What is read from a text is read again from what it says itself.
fn again<T>(text: &str) -> Said
where
    T: FromStr<Err: Display> + Display + Debug + PartialEq,
{
    let value: T = text.parse().map_err(|e: T::Err| e.to_string())?;
    let shown = value.to_string();
    match shown.parse::<T>() {
        Ok(again) => assert_eq!(again, value, "`{text}` says of itself `{shown}`"),
        Err(e) => panic!("`{text}` says of itself `{shown}`: {e}"),
    }
    Ok(())
}

fn case(bytes: &[u8]) -> Said {
    load::read_text("area", "name", &text(bytes))
        .map(|cases| assert!(!cases.is_empty()))
        .map_err(|e| e.to_string())
}

fn unittests(bytes: &[u8]) -> Said {
    match config::parse(&text(bytes)) {
        Ok(configs) => {
            for config in &configs {
                testcases::kut::options::translate(config);
            }
            Ok(())
        }
        Err(wrong) => {
            assert!(!wrong.is_empty(), "it is refused for no reason");
            Err(wrong.join("\n"))
        }
    }
}

/// However it is cut, a log says the same.
fn transcript(bytes: &[u8]) -> Said {
    let (&cut, log) = bytes.split_first().unwrap_or((&0, &[]));
    let whole = Transcript::of("t", log);
    let mut parts = Transcript::new("t");
    log.chunks(usize::from(cut % 16) + 1).for_each(|part| parts.push(part));
    parts.finish();
    assert_eq!(
        (whole.report(), whole.values()),
        (parts.report(), parts.values()),
        "it matters how a log is cut"
    );
    match whole.report() {
        Report::Silent => Err(String::new()),
        Report::Broken(why) => Err(why.clone()),
        _ => Ok(()),
    }
}
