//! Which cases cover which feature.

use std::collections::{BTreeMap, BTreeSet};

use vmm::cpuid;

use super::{Cover, Kind};
use crate::caps;
use crate::case::{Case, Expect, Irqchip, Pit, Subject};
use crate::need::Need;
use crate::status::VmmEnd;

/// What the VMM does for every guest, whatever the case is about: the calls that make a VM, and the
/// write to the exit port.
const EVERY_GUEST: &[(Kind, &str)] = &[
    (Kind::Exit, "KVM_EXIT_IO"),
    (Kind::Ioctl, "KVM_GET_API_VERSION"),
    (Kind::Ioctl, "KVM_CHECK_EXTENSION"),
    (Kind::Ioctl, "KVM_GET_VCPU_MMAP_SIZE"),
    (Kind::Ioctl, "KVM_GET_SUPPORTED_CPUID"),
    (Kind::Ioctl, "KVM_CREATE_VM"),
    (Kind::Ioctl, "KVM_SET_IDENTITY_MAP_ADDR"),
    (Kind::Ioctl, "KVM_SET_TSS_ADDR"),
    (Kind::Ioctl, "KVM_SET_USER_MEMORY_REGION"),
    (Kind::Ioctl, "KVM_CREATE_VCPU"),
    (Kind::Ioctl, "KVM_SET_CPUID2"),
    (Kind::Ioctl, "KVM_GET_SREGS"),
    (Kind::Ioctl, "KVM_SET_SREGS"),
    (Kind::Ioctl, "KVM_SET_REGS"),
    (Kind::Ioctl, "KVM_RUN"),
    (Kind::Cap, "KVM_CAP_USER_MEMORY"),
    (Kind::Cap, "KVM_CAP_EXT_CPUID"),
    (Kind::Cap, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// Cases by what they cover.
#[derive(Clone, Debug)]
pub struct Map<'a> {
    by_cover: BTreeMap<Cover, Vec<&'a Case>>,
}

impl<'a> Map<'a> {
    /// Sorts the cases by what they say that they cover, and by what follows from the rest of what
    /// they say:
    ///
    /// - a need for a capability or a CPUID feature covers it;
    /// - every guest takes what it takes to make a VM and run it, and some more by its machine;
    /// - some ends of the VM that are expected are known by one exit or call alone.
    pub fn of(cases: &'a [Case]) -> Map<'a> {
        let mut by_cover: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for case in cases {
            for cover in covers(case) {
                by_cover.entry(cover).or_default().push(case);
            }
        }
        Map { by_cover }
    }

    /// The cases of a feature.
    pub fn cases(&self, cover: &Cover) -> &[&'a Case] {
        self.by_cover.get(cover).map_or(&[], Vec::as_slice)
    }

    /// All that is covered.
    pub fn covers(&self) -> impl Iterator<Item = &Cover> {
        self.by_cover.keys()
    }
}

/// Whether the VMM does it for every guest, so that a case covers it without being about it.
pub(super) fn is_in_every_guest(cover: &Cover) -> bool {
    EVERY_GUEST.iter().any(|(kind, name)| (cover.kind(), cover.name()) == (*kind, *name))
}

fn has_guest(case: &Case) -> bool {
    !matches!(case.spec.subject, Subject::Host(_))
}

/// All that a case covers: what it says, and what follows.
fn covers(case: &Case) -> BTreeSet<Cover> {
    let spec = &case.spec;
    let mut all: BTreeSet<Cover> = spec.covers.iter().cloned().collect();
    for need in &spec.needs {
        all.extend(match need {
            Need::Cpuid(name) => cpuid::feature(name).map(|f| Cover::new(Kind::Cpuid, f.name)),
            Need::KvmCap(name) => {
                caps::number(name).map(|_| Cover::new(Kind::Cap, format!("KVM_CAP_{name}")))
            }
            Need::Kvm | Need::Hyperv(_) | Need::Module { .. } | Need::Host(_) => None,
        });
    }
    if !has_guest(case) {
        return all;
    }
    let mut add = |more: &[(Kind, &str)]| {
        all.extend(more.iter().map(|(kind, name)| Cover::new(*kind, *name)));
    };
    add(EVERY_GUEST);
    let machine = &spec.machine;
    add(match machine.irqchip {
        None | Some(Irqchip::Kernel) => {
            &[(Kind::Ioctl, "KVM_CREATE_IRQCHIP"), (Kind::Cap, "KVM_CAP_IRQCHIP")]
        }
        Some(Irqchip::Split) => {
            &[(Kind::Ioctl, "KVM_ENABLE_CAP"), (Kind::Cap, "KVM_CAP_SPLIT_IRQCHIP")]
        }
        Some(Irqchip::None) => &[],
    });
    if matches!(machine.irqchip, None | Some(Irqchip::Kernel)) && machine.pit != Some(Pit::None) {
        add(&[(Kind::Ioctl, "KVM_CREATE_PIT2"), (Kind::Cap, "KVM_CAP_PIT2")]);
    }
    if machine.cpu_pm {
        add(&[(Kind::Ioctl, "KVM_ENABLE_CAP"), (Kind::Cap, "KVM_CAP_X86_DISABLE_EXITS")]);
    }
    if machine.dirty_ring.is_some() {
        add(&[(Kind::Ioctl, "KVM_ENABLE_CAP")]);
    }
    add(match spec.expect {
        Expect::Vmm(VmmEnd::TripleFault) => &[(Kind::Exit, "KVM_EXIT_SHUTDOWN")],
        // The supervisor asks each vCPU whether it will ever wake up.
        Expect::Vmm(VmmEnd::Halted) => &[(Kind::Ioctl, "KVM_GET_MP_STATE")],
        _ => &[],
    });
    all
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::case::CaseId;

    /// Cases of these ids, which say no more than this.
    pub(in super::super) fn cases(texts: &[(&str, &str)]) -> Vec<Case> {
        let case = |(id, text): &(&str, &str)| {
            let (area, name) = id.split_once('/').expect("AREA/NAME");
            let subject = match area {
                "host" => "host-test = \"vfio\"",
                _ => "payload = \"apic::ipi\"",
            };
            let spec = toml::from_str(&format!("about = \"x\"\n{subject}\n{text}"));
            let id = CaseId { area: area.into(), name: name.into(), variant: None };
            Case { id, file: "x.toml".into(), spec: spec.expect("a case") }
        };
        texts.iter().map(case).collect()
    }

    fn names(text: &str) -> Vec<String> {
        let case = &cases(&[("a/b", text)])[0];
        let plain = covers(&cases(&[("a/b", "machine.irqchip = \"none\"")])[0]);
        covers(case).iter().filter(|cover| !plain.contains(cover)).map(Cover::to_string).collect()
    }

    #[test]
    fn what_follows_from_a_case_need_not_be_said() {
        for (text, follows) in [
            ("machine.irqchip = \"none\"", &[][..]),
            (
                "",
                &[
                    "ioctl:KVM_CREATE_IRQCHIP",
                    "ioctl:KVM_CREATE_PIT2",
                    "cap:KVM_CAP_IRQCHIP",
                    "cap:KVM_CAP_PIT2",
                ],
            ),
            ("machine.pit = \"none\"", &["ioctl:KVM_CREATE_IRQCHIP", "cap:KVM_CAP_IRQCHIP"]),
            (
                "machine.irqchip = \"none\"\nneeds = [\"cpuid:x2apic\", \"kvm-cap:X86_SMM\", \"kvm\"]",
                &["cap:KVM_CAP_X86_SMM", "cpuid:x2apic"],
            ),
            ("machine.irqchip = \"split\"", &["ioctl:KVM_ENABLE_CAP", "cap:KVM_CAP_SPLIT_IRQCHIP"]),
            (
                "machine.irqchip = \"none\"\nmachine.cpu_pm = true",
                &["ioctl:KVM_ENABLE_CAP", "cap:KVM_CAP_X86_DISABLE_EXITS"],
            ),
            ("machine.irqchip = \"none\"\nexpect = \"triple-fault\"", &["exit:KVM_EXIT_SHUTDOWN"]),
            (
                "machine.irqchip = \"none\"\ncovers = [\"sdm:Paging\"]\nexpect = \"halted\"",
                &["ioctl:KVM_GET_MP_STATE", "sdm:Paging"],
            ),
        ] {
            assert_eq!(names(text), follows, "{text}");
        }
    }

    #[test]
    fn every_guest_runs_and_a_test_of_the_host_does_not() {
        let run = Cover::new(Kind::Ioctl, "KVM_RUN");
        let cases = cases(&[("a/b", ""), ("a/c", "covers = [\"apm:2.5\"]"), ("host/vfio", "")]);
        let map = Map::of(&cases);
        assert_eq!(map.cases(&run).len(), 2);
        assert!(is_in_every_guest(&run));
        let chapter = Cover::new(Kind::Apm, "2.5");
        assert_eq!(map.cases(&chapter)[0].id.to_string(), "a/c");
        assert!(!is_in_every_guest(&chapter));
        assert_eq!(map.cases(&Cover::new(Kind::Apm, "2.6")), [] as [&Case; 0]);
    }

    #[test]
    fn what_every_guest_takes_is_on_the_lists() {
        for (kind, name) in EVERY_GUEST {
            let text = Cover::new(*kind, *name).to_string();
            assert!(Cover::try_from(text.clone()).is_ok(), "{text}");
        }
    }
}
