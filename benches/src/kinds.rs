//! The kinds of exit that are measured: tests of the payload `trips`, and the machine that each wants.

use testcases::facts_table::FactsTable;
use testcases::need::{Met, Need};
use vmm::hv::kvm::{Irqchip, KvmConfig};

/// What KVM does in the place of an exit, where it is asked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Any write to the port signals an eventfd.
    Write(u16),
    /// A write of four bytes with this value does.
    Value(u16, u32),
    /// A write of 1 to the test device's port of the line makes a pulse on that, by way of an eventfd.
    Line,
}

/// A kind of exit.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Its name in reports.
    pub name: &'static str,
    /// The test of the payload.
    pub test: &'static str,
    /// vCPUs.
    pub cpus: u32,
    /// Without an interrupt controller in the kernel: the VMM asks for interrupt windows.
    pub windows: bool,
    /// MSRs that KVM refuses come to the board.
    pub msr_exits: bool,
    /// The hypercall that may be passed on is.
    pub hypercall_exits: bool,
    /// What KVM does in the place of an exit.
    pub event: Option<Event>,
    /// What the host must have: one of these; nothing if there is none.
    pub needs: &'static [&'static str],
}

const fn kind(name: &'static str) -> Kind {
    Kind {
        name,
        test: name,
        cpus: 1,
        windows: false,
        msr_exits: false,
        hypercall_exits: false,
        event: None,
        needs: &[],
    }
}

const fn event(name: &'static str, test: &'static str, event: Event) -> Kind {
    Kind { test, event: Some(event), ..kind(name) }
}

/// The port of the test device's latch, and what the payload writes there.
const LATCH: (u16, u32) = (0xe0, 0x8765_4321);
const HARDWARE: &[&str] = &["host:hardware-cpl0"];
const TWO: &[&str] = &["host:cpus>=2"];

/// All of them, in the order of reports.
pub const KINDS: [Kind; 40] = [
    kind("nothing"),
    kind("in_8"),
    kind("in_16"),
    kind("in_32"),
    kind("out_8"),
    kind("out_16"),
    kind("out_32"),
    kind("in_unclaimed"),
    kind("out_unclaimed"),
    kind("out_string"),
    kind("read_8"),
    kind("read_16"),
    kind("read_32"),
    kind("read_64"),
    kind("write_8"),
    kind("write_16"),
    kind("write_32"),
    kind("write_64"),
    kind("read_unclaimed"),
    kind("write_unclaimed"),
    kind("cpuid_leaf"),
    kind("rdmsr"),
    kind("wrmsr"),
    Kind { msr_exits: true, ..kind("rdmsr_user") },
    Kind { msr_exits: true, ..kind("wrmsr_user") },
    Kind { needs: HARDWARE, ..kind("hypercall") },
    Kind { needs: HARDWARE, hypercall_exits: true, ..kind("hypercall_user") },
    kind("eoi"),
    kind("self_ipi"),
    Kind { cpus: 2, needs: TWO, ..kind("ipi") },
    kind("hlt_wake"),
    Kind { cpus: 2, needs: TWO, ..kind("ipi_wake") },
    Kind { needs: &["cpuid:tsc-deadline"], ..kind("deadline") },
    kind("line"),
    event("irqfd", "line", Event::Line),
    event("ioeventfd_wildcard", "out_32", Event::Write(LATCH.0)),
    event("ioeventfd_datamatch", "out_32", Event::Value(LATCH.0, LATCH.1)),
    Kind { windows: true, ..kind("window") },
    kind("absent"),
    Kind { needs: &["cpuid:vmx", "cpuid:svm"], ..kind("nested") },
];

impl Kind {
    /// Why this host has it not, if so.
    pub fn missing(&self, facts: &FactsTable) -> Option<String> {
        let check = |name: &&str| match Need::try_from((*name).to_owned()) {
            Ok(need) => match need.check(facts) {
                Met::Yes => None,
                Met::No(why) | Met::Unknown(why) => Some(why),
            },
            Err(why) => Some(why),
        };
        let reasons: Vec<Option<String>> = self.needs.iter().map(check).collect();
        if reasons.is_empty() || reasons.iter().any(Option::is_none) {
            return None;
        }
        Some(reasons.into_iter().flatten().collect::<Vec<_>>().join("; "))
    }

    /// The VM for it.
    pub fn config(&self) -> KvmConfig {
        KvmConfig {
            irqchip: if self.windows { Irqchip::None } else { Irqchip::Kernel },
            msr_exits: self.msr_exits,
            hypercall_exits: self.hypercall_exits,
            cpus: self.cpus,
            last_apic_id: self.cpus - 1,
            ..KvmConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_needs_are_known() {
        let mut names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), KINDS.len());
        for need in KINDS.iter().flat_map(|kind| kind.needs) {
            assert!(Need::try_from((*need).to_owned()).is_ok(), "{need}");
        }
    }
}
