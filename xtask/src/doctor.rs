//! `cargo xtask doctor`: what this machine offers, and what to do about what is missing.

use std::process::{Command, ExitCode};

use hosts::name::Name;
use testcases::facts::{Files, HostFacts, KvmFlavour};
use testcases::facts_table::FactsTable;

use crate::flags;
use crate::support::{Out, Outcome, emulated};

/// Processor flags that decide what can be tested here.
const FLAGS: &[&str] = &[
    "vmx",
    "svm",
    "ept",
    "npt",
    "vpid",
    "hypervisor",
    "x2apic",
    "tsc_deadline_timer",
    "constant_tsc",
    "nonstop_tsc",
    "pcid",
    "invpcid",
    "smep",
    "smap",
    "umip",
    "pku",
    "la57",
    "xsave",
    "avx",
    "avx2",
    "avx512f",
    "pdpe1gb",
];

/// Parameters of the KVM modules that decide what can be tested here.
const PARAMS: &[(&str, &str)] = &[
    ("kvm", "enable_pmu"),
    ("kvm", "force_emulation_prefix"),
    ("kvm", "ignore_msrs"),
    ("kvm", "tdp_mmu"),
    ("kvm_intel", "ept"),
    ("kvm_intel", "unrestricted_guest"),
    ("kvm_intel", "nested"),
    ("kvm_intel", "enable_apicv"),
    ("kvm_amd", "npt"),
    ("kvm_amd", "nested"),
    ("kvm_amd", "avic"),
    ("kvm_amd", "vgif"),
];

/// Capabilities that decide what can be tested here.
const CAPS: &[&str] = &[
    "IRQCHIP",
    "SPLIT_IRQCHIP",
    "PIT2",
    "IRQFD",
    "IOEVENTFD",
    "SIGNAL_MSI",
    "X2APIC_API",
    "SYNC_REGS",
    "IMMEDIATE_EXIT",
    "TSC_DEADLINE_TIMER",
    "TSC_CONTROL",
    "ADJUST_CLOCK",
    "XSAVE2",
    "NESTED_STATE",
    "X86_SMM",
    "HYPERV",
    "HYPERV_SYNIC",
    "XEN_HVM",
    "PMU_CAPABILITY",
    "X86_USER_SPACE_MSR",
    "X86_MSR_FILTER",
    "EXIT_HYPERCALL",
    "EXCEPTION_PAYLOAD",
    "X86_TRIPLE_FAULT_EVENT",
    "X86_DISABLE_EXITS",
    "DIRTY_LOG_RING",
    "MANUAL_DIRTY_LOG_PROTECT2",
    "GUEST_MEMFD",
    "MEMORY_ATTRIBUTES",
    "BINARY_STATS_FD",
];

/// Programs that commands call, and what for.
const PROGRAMS: &[(&str, &[&str], &str)] = &[
    ("cargo", &["--version"], "to build anything"),
    ("cargo", &["fmt", "--version"], "for `cargo xtask ci`: rustup component add rustfmt"),
    ("cargo", &["clippy", "--version"], "for `cargo xtask ci`: rustup component add clippy"),
    ("git", &["--version"], "for `cargo xtask tidy`"),
];

/// Runs the command.
pub fn run(_: &flags::NoFlags, out: &mut Out) -> Outcome {
    let facts = FactsTable::collect();
    let mut advice = Vec::new();
    machine(out, &facts, &mut advice);
    programs(out, &mut advice);
    let usable = kvm(out, &facts, &mut advice);
    let emulated = emulated_hosts(out, &mut advice);
    writeln!(out);
    match &advice[..] {
        [] => writeln!(out, "nothing is missing"),
        advice => {
            writeln!(out, "what to do:");
            advice.iter().for_each(|line| writeln!(out, "  - {line}"));
        }
    }
    if usable {
        writeln!(out, "cases can run here: `cargo xtask test`");
        Ok(ExitCode::SUCCESS)
    } else if emulated {
        writeln!(out, "cases can run here on emulated hosts: `cargo xtask test --host amd,intel`");
        Ok(ExitCode::SUCCESS)
    } else {
        writeln!(out, "no case can run here");
        Ok(ExitCode::from(1))
    }
}

fn row(out: &mut Out, key: &str, value: impl std::fmt::Display) {
    writeln!(out, "{key:<14} {value}");
}

/// The words on one or more lines, the first of which is a row.
fn words(out: &mut Out, key: &str, words: &[&str]) {
    let lines = wrap(words, 85);
    row(out, key, lines.first().map_or("none", String::as_str));
    lines.iter().skip(1).for_each(|line| row(out, "", line));
}

/// Joins words to lines of at most `width` characters.
fn wrap(words: &[&str], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

fn machine(out: &mut Out, facts: &FactsTable, advice: &mut Vec<String>) {
    let files = Files::default();
    row(out, "kernel", &facts.kernel);
    let cpu = |key| files.cpuinfo(key).unwrap_or_else(|| "unknown".into());
    row(out, "processor", format!("{} ({})", cpu("model name"), cpu("vendor_id")));
    let has = files.cpu_flags();
    let (yes, no): (Vec<&str>, Vec<&str>) =
        FLAGS.iter().partition(|flag| has.iter().any(|f| f == *flag));
    words(out, "  has", &yes);
    words(out, "  lacks", &no);
    row(out, "processors", facts.cpus());
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    row(out, "memory", format!("{}, {} free", mib(files.memory()), mib(files.memory_available())));
    for (name, size) in [("2M", 2 << 20), ("1G", 1 << 30)] {
        let (free, all) = files.hugepages(size);
        row(out, "huge pages", format!("{free} of {all} free, {name} each"));
        if all == 0 && size == 2 << 20 {
            advice.push(
                "for cases that need huge pages: echo 64 > \
                 /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages (as root)"
                    .into(),
            );
        }
    }
}

fn programs(out: &mut Out, advice: &mut Vec<String>) {
    for (program, args, purpose) in PROGRAMS {
        let shown = [&[*program], &args[..args.len() - 1]].concat().join(" ");
        match Command::new(program).args(*args).output() {
            Ok(ran) if ran.status.success() => {
                let version = String::from_utf8_lossy(&ran.stdout).trim().to_string();
                row(out, &shown, version);
            }
            _ => {
                row(out, &shown, "missing");
                advice.push(format!("install `{shown}`: needed {purpose}"));
            }
        }
    }
}

/// Tells about emulated hosts; whether one can be had.
fn emulated_hosts(out: &mut Out, advice: &mut Vec<String>) -> bool {
    let apt = Command::new("apt-get").arg("--version").output();
    let apt = apt.is_ok_and(|ran| ran.status.success());
    let mut can = false;
    for name in Name::ALL {
        let missing = emulated::missing(name, &flags::Make::default());
        can |= missing.is_none() || apt;
        let key = format!("host {name}");
        match missing {
            None => row(out, &key, "ready"),
            Some(_) if apt => {
                row(out, &key, format!("`cargo xtask host setup {name}` fetches what it needs"));
            }
            Some(why) => {
                row(out, &key, "not set up");
                advice.push(format!("for host {name}: {why}"));
            }
        }
    }
    can
}

/// Tells about KVM; whether it can be used.
fn kvm(out: &mut Out, facts: &FactsTable, advice: &mut Vec<String>) -> bool {
    let flavour = facts.flavour();
    row(out, "kvm", flavour);
    match flavour {
        KvmFlavour::Intel | KvmFlavour::Amd => {}
        KvmFlavour::Pvm => advice.push(
            "kvm-pvm interprets guest CPL 0 code, and does not enter CPL 0 by `int n` or `syscall`: \
             cases that need host:hardware-cpl0 or host:cpl3-entry are skipped here; \
             `cargo xtask test --host amd,intel` runs them on emulated machines"
                .into(),
        ),
        KvmFlavour::Unknown => advice.push(
            "no KVM vendor module is loaded: `modprobe kvm_intel` or `modprobe kvm_amd` (as root); \
             if that fails, switch on VT-x or SVM in the firmware, or nested virtualisation in the \
             hypervisor that runs this machine"
                .into(),
        ),
    }
    for (module, param) in PARAMS {
        if let Some(value) = facts.module_param(module, param) {
            row(out, &format!("  {module}"), format!("{param}={value}"));
        }
    }
    let kvm = match &facts.kvm {
        Ok(kvm) => kvm,
        Err(why) => {
            row(out, "/dev/kvm", "cannot be used");
            advice.push(why.to_string());
            return false;
        }
    };
    row(out, "/dev/kvm", format!("usable, up to {} vCPUs in a VM", kvm.max_cpus));
    let (mut yes, mut no) = (Vec::new(), Vec::new());
    for cap in CAPS {
        if kvm.cap(cap) > 0 { &mut yes } else { &mut no }.push(*cap);
    }
    words(out, "  can", &yes);
    words(out, "  cannot", &no);
    let shown: Vec<&str> =
        vmm::cpuid::features().filter(|f| kvm.cpuid.has(f)).map(|feature| feature.name).collect();
    words(out, "  cpuid", &shown);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_asked_for_is_known() {
        for cap in CAPS {
            assert!(testcases::caps::number(cap).is_some(), "{cap}");
        }
    }

    #[test]
    fn words_are_wrapped() {
        assert_eq!(wrap(&["aa", "bb", "cc"], 5), ["aa bb", "cc"]);
        assert_eq!(wrap(&["a-long-word", "b"], 5), ["a-long-word", "b"]);
        assert_eq!(wrap(&[], 5), Vec::<String>::new());
    }
}
