//! What cases cover, feature by feature: exits and ioctls of KVM's API, its capabilities, CPUID
//! features, chapters of the manuals.
//!
//! A case says `covers = ["exit:KVM_EXIT_MMIO", "apm:2.15.20"]`; what all cases of an area cover is
//! said once, in `AREA/area.toml`. What follows from the rest of a case is not said: see
//! [`Map::of`]. Each feature is a row of a fixed list, so one without a case is seen, and a name
//! that is on no list is an error.
//!
//! | written as | what it is |
//! |---|---|
//! | `exit:KVM_EXIT_NAME` | a reason why a vCPU leaves guest mode ([`vmm::hv::kvm::api::EXITS`]) |
//! | `ioctl:KVM_NAME` | an ioctl of x86 ([`vmm::hv::kvm::api::IOCTLS`]) |
//! | `cap:KVM_CAP_NAME` | a capability ([`crate::caps`]) |
//! | `cpuid:NAME` | a feature that CPUID announces ([`vmm::cpuid::features`]) |
//! | `sdm:TITLE` | a chapter of Intel's SDM, by its title ([`chapters::SDM`]) |
//! | `apm:VOLUME.CHAPTER` | a chapter of AMD's APM, or a section of its chapter on SVM ([`chapters::APM`]) |

pub mod chapters;
mod columns;
mod map;
mod page;

use std::fmt;

use serde::Deserialize;
use vmm::cpuid;
use vmm::hv::kvm::api::{EXITS, IOCTLS};
use vmm::hv::lab::Target;

use crate::{caps, nearest};

pub use columns::{Column, Mark, planned, results};
pub use map::Map;
pub use page::page;

/// What kind of thing is covered; a table of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A reason why a vCPU leaves guest mode.
    Exit,
    /// An ioctl.
    Ioctl,
    /// A capability of KVM's.
    Cap,
    /// A feature that CPUID announces.
    Cpuid,
    /// A chapter of Intel's manual.
    Sdm,
    /// A chapter of AMD's manual.
    Apm,
}

/// One thing that a case covers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Cover {
    kind: Kind,
    name: String,
}

/// A row of the page: something that a case can cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What a case names it by.
    pub cover: Cover,
    /// Its number, or where it stands.
    pub number: String,
    /// What it is; empty where the name tells.
    pub about: &'static str,
    /// Whether x86 has it: what has not is there to be complete, and no case can cover it.
    pub x86: bool,
}

impl Cover {
    /// The feature of this kind with the name that its list gives it; the caller knows that it is
    /// there.
    fn new(kind: Kind, name: impl Into<String>) -> Cover {
        Cover { kind, name: name.into() }
    }

    /// What kind of thing it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name, without the kind.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Cover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.word(), self.name)
    }
}

impl TryFrom<String> for Cover {
    type Error = String;

    fn try_from(text: String) -> Result<Cover, String> {
        let kinds = Kind::ALL.map(Kind::word);
        let known = || format!("known are {}:", kinds.join(":, "));
        let Some((word, name)) = text.split_once(':') else {
            return Err(format!("covers `{text}`: no kind is before the name; {}", known()));
        };
        let Some(kind) = Kind::ALL.into_iter().find(|kind| kind.word() == word) else {
            let hint = nearest::hint(word, kinds);
            return Err(format!("covers `{text}`: no kind is called `{word}:`{hint}; {}", known()));
        };
        if let Some(name) = kind.known(name) {
            return Ok(Cover { kind, name });
        }
        let rows = kind.rows();
        let names = rows.iter().filter(|row| row.x86).map(|row| row.cover.name());
        let hint = nearest::hint(name, names);
        Err(format!("covers `{text}`: {} is `{name}`{hint}", kind.none()))
    }
}

impl Kind {
    /// All, in the order of the page.
    pub const ALL: [Kind; 6] =
        [Kind::Exit, Kind::Ioctl, Kind::Cap, Kind::Cpuid, Kind::Sdm, Kind::Apm];

    /// The word before a name.
    pub const fn word(self) -> &'static str {
        match self {
            Kind::Exit => "exit",
            Kind::Ioctl => "ioctl",
            Kind::Cap => "cap",
            Kind::Cpuid => "cpuid",
            Kind::Sdm => "sdm",
            Kind::Apm => "apm",
        }
    }

    /// How an error about an unknown name begins.
    const fn none(self) -> &'static str {
        match self {
            Kind::Exit => "no exit reason of KVM on x86",
            Kind::Ioctl => "no ioctl of KVM on x86",
            Kind::Cap => "no capability of testcases::caps",
            Kind::Cpuid => "no CPUID feature of vmm::cpuid",
            Kind::Sdm => "no chapter of the SDM's (testcases::coverage::chapters)",
            Kind::Apm => "no chapter of the APM's (testcases::coverage::chapters)",
        }
    }

    /// The name as its list has it, if it is on the list and x86 has it.
    fn known(self, name: &str) -> Option<String> {
        let there = match self {
            Kind::Exit => EXITS.iter().any(|exit| exit.name == name && exit.about.is_some()),
            Kind::Ioctl => IOCTLS.iter().any(|ioctl| ioctl.name == name),
            Kind::Cap => name.strip_prefix("KVM_CAP_").and_then(caps::number).is_some(),
            Kind::Cpuid => return cpuid::feature(name).map(|feature| feature.name.into()),
            Kind::Sdm => chapters::SDM.iter().any(|chapter| chapter.title == name),
            Kind::Apm => chapters::APM.iter().any(|chapter| chapter.number == name),
        };
        there.then(|| name.to_string())
    }

    /// All that there is of this kind, in the order of its list.
    pub fn rows(self) -> Vec<Row> {
        let row = |name: String, number: String, about: &'static str| Row {
            cover: Cover { kind: self, name },
            number,
            about,
            x86: true,
        };
        match self {
            Kind::Exit => EXITS
                .iter()
                .map(|exit| Row {
                    x86: exit.about.is_some(),
                    ..row(exit.name.into(), exit.number.to_string(), exit.about.unwrap_or_default())
                })
                .collect(),
            Kind::Ioctl => IOCTLS
                .iter()
                .map(|ioctl| {
                    let on: Vec<_> = ioctl.on.iter().map(|on| target(*on)).collect();
                    let number = format!("{:#04x} {}", ioctl.number, on.join(", "));
                    row(ioctl.name.into(), number, ioctl.about)
                })
                .collect(),
            Kind::Cap => caps::CAPS
                .iter()
                .map(|(name, number)| row(format!("KVM_CAP_{name}"), number.to_string(), ""))
                .collect(),
            Kind::Cpuid => cpuid::features()
                .map(|f| {
                    let place = format!("{:#x}.{} {:?} {}", f.leaf, f.subleaf, f.reg, f.bit);
                    row(f.name.into(), place.to_lowercase(), "")
                })
                .collect(),
            Kind::Sdm => chapters::SDM
                .iter()
                .map(|chapter| row(chapter.title.into(), format!("volume {}", chapter.volume), ""))
                .collect(),
            Kind::Apm => chapters::APM
                .iter()
                .map(|chapter| row(chapter.number.into(), String::new(), chapter.title))
                .collect(),
        }
    }
}

/// What an ioctl is made on, as the page says it.
fn target(on: Target) -> &'static str {
    match on {
        Target::System => "system",
        Target::Vm => "VM",
        Target::Vcpu => "vCPU",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cover(text: &str) -> Result<Cover, String> {
        Cover::try_from(text.to_string())
    }

    #[test]
    fn each_row_is_named_once_and_read_back() {
        for kind in Kind::ALL {
            let rows = kind.rows();
            let names: BTreeSet<_> = rows.iter().map(|row| row.cover.name()).collect();
            assert_eq!(names.len(), rows.len(), "{kind:?}");
            for row in rows.iter().filter(|row| row.x86) {
                assert_eq!(cover(&row.cover.to_string()).as_ref(), Ok(&row.cover));
            }
        }
    }

    #[test]
    fn no_exit_and_no_ioctl_is_left_out() {
        let exits: Vec<_> = Kind::Exit.rows().into_iter().map(|row| row.number).collect();
        assert_eq!(exits, (0..=41).map(|n| n.to_string()).collect::<Vec<_>>());
        let ioctls = Kind::Ioctl.rows();
        assert_eq!(ioctls.len(), IOCTLS.len());
        let of = |on: &str| ioctls.iter().filter(|row| row.number.contains(on)).count();
        assert!(of("vCPU") >= 55 && of("VM") >= 52 && of("system") >= 13);
    }

    #[test]
    fn a_feature_has_the_name_of_its_list() {
        assert_eq!(cover("cpuid:TSC_Deadline").expect("a cover").to_string(), "cpuid:tsc-deadline");
    }

    #[test]
    fn what_is_unknown_is_told_with_the_nearest() {
        for (text, says) in [
            ("KVM_EXIT_MMIO", "no kind is before the name; known are exit:, ioctl:"),
            ("exits:KVM_EXIT_MMIO", "no kind is called `exits:`; the nearest is `exit`"),
            ("exit:MMIO", "no exit reason of KVM on x86 is `MMIO`; the nearest is `KVM_EXIT_MMIO`"),
            ("exit:KVM_EXIT_DCR", "no exit reason of KVM on x86 is `KVM_EXIT_DCR`"),
            ("ioctl:KVM_GET_REG", "the nearest is `KVM_GET_REGS`"),
            ("cap:X86_SMM", "the nearest is `KVM_CAP_X86_SMM`"),
            ("cpuid:x3apic", "no CPUID feature of vmm::cpuid is `x3apic`; the nearest is `x2apic`"),
            ("sdm:VM Entrys", "the nearest is `VM Entries`"),
            ("apm:15.20", "no chapter of the APM's"),
        ] {
            let error = cover(text).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
