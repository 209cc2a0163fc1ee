//! What the CPUID instruction answers: its leaves, the features in them by name, and the model
//! that turns what a host supports into what a guest's processor is told.
//!
//! Nothing here knows KVM: a [`Cpuid`] comes in as a list of leaves and goes out as one.

mod apply;
mod base;
mod model;
mod table;
#[cfg(test)]
mod tests;

pub use apply::Topology;
pub use base::{Base, MODELS};
pub use model::{CpuModel, Switch};
pub use table::{feature, features, nearest};

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the four registers that CPUID answers in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reg {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

impl Reg {
    /// All four, in the order of their names.
    pub const ALL: [Reg; 4] = [Reg::Eax, Reg::Ebx, Reg::Ecx, Reg::Edx];
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reg::Eax => "EAX",
            Reg::Ebx => "EBX",
            Reg::Ecx => "ECX",
            Reg::Edx => "EDX",
        })
    }
}

/// A bit of CPUID with a name. Its display form is `x2apic (leaf 0x1, ECX bit 21)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name, as users type it: `x2apic`.
    pub name: &'static str,
    /// The leaf (EAX of the request).
    pub leaf: u32,
    /// The subleaf (ECX of the request); 0 where it means nothing.
    pub subleaf: u32,
    /// The register.
    pub reg: Reg,
    /// The bit in it, 0 to 31.
    pub bit: u8,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Feature { name, leaf, subleaf, reg, bit } = self;
        write!(f, "{name} (leaf {leaf:#x}")?;
        if has_subleaves(*leaf) {
            write!(f, ".{subleaf}")?;
        }
        write!(f, ", {reg} bit {bit})")
    }
}

/// One answer of CPUID.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// The leaf (EAX of the request).
    pub leaf: u32,
    /// The subleaf (ECX of the request).
    pub subleaf: u32,
    /// EAX of the answer.
    pub eax: u32,
    /// EBX of the answer.
    pub ebx: u32,
    /// ECX of the answer.
    pub ecx: u32,
    /// EDX of the answer.
    pub edx: u32,
    /// Whether the subleaf matters; if not, this is the answer for every subleaf.
    pub significant_subleaf: bool,
}

impl Leaf {
    /// One register of the answer.
    pub fn reg(&self, reg: Reg) -> u32 {
        match reg {
            Reg::Eax => self.eax,
            Reg::Ebx => self.ebx,
            Reg::Ecx => self.ecx,
            Reg::Edx => self.edx,
        }
    }

    pub(crate) fn reg_mut(&mut self, reg: Reg) -> &mut u32 {
        match reg {
            Reg::Eax => &mut self.eax,
            Reg::Ebx => &mut self.ebx,
            Reg::Ecx => &mut self.ecx,
            Reg::Edx => &mut self.edx,
        }
    }
}

/// Whether answers in `leaf` depend on the subleaf.
const fn has_subleaves(leaf: u32) -> bool {
    matches!(
        leaf,
        4 | 7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1b | 0x1d
            ..=0x20 | 0x23 | 0x24 | 0x8000_001d | 0x8000_0020 | 0x8000_0026
    )
}

/// The first leaf of the range that extended leaves are in.
const EXTENDED: u32 = 0x8000_0000;
/// The first leaf of the range that a hypervisor's are in, and the mask of that range.
const HYPERVISOR: u32 = 0x4000_0000;
const RANGE: u32 = 0xffff_0000;

/// All that CPUID answers on one processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpuid(pub Vec<Leaf>);

impl Cpuid {
    fn position(&self, leaf: u32, subleaf: u32) -> Option<usize> {
        self.0
            .iter()
            .position(|l| l.leaf == leaf && (!l.significant_subleaf || l.subleaf == subleaf))
    }

    /// The answer for a leaf and subleaf, if there is one.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&Leaf> {
        self.position(leaf, subleaf).map(|at| &self.0[at])
    }

    /// The answer for a leaf and subleaf, to be changed, if there is one.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut Leaf> {
        self.position(leaf, subleaf).map(|at| &mut self.0[at])
    }

    /// Puts an answer in the place of the one for the same leaf and subleaf, or adds it.
    pub fn put(&mut self, leaf: Leaf) {
        match self.position(leaf.leaf, leaf.subleaf) {
            Some(at) => self.0[at] = leaf,
            None => {
                let key = (leaf.leaf, leaf.subleaf);
                let at = self.0.iter().position(|l| (l.leaf, l.subleaf) > key);
                self.0.insert(at.unwrap_or(self.0.len()), leaf);
            }
        }
    }

    /// Whether a feature's bit is set.
    pub fn has(&self, feature: &Feature) -> bool {
        let leaf = self.get(feature.leaf, feature.subleaf);
        leaf.is_some_and(|l| l.reg(feature.reg) >> feature.bit & 1 == 1)
    }

    /// Whether the feature of this name is there; an unknown name is not. See [`feature`].
    pub fn has_named(&self, name: &str) -> bool {
        feature(name).is_some_and(|f| self.has(&f))
    }

    /// Sets or clears a feature's bit. Setting one in a leaf that is missing adds the leaf, and
    /// raises the highest leaf of its range up to it.
    pub fn set(&mut self, feature: &Feature, on: bool) {
        let Feature { leaf, subleaf, reg, bit, .. } = *feature;
        if on && self.get(leaf, subleaf).is_none() {
            let significant_subleaf = has_subleaves(leaf);
            self.put(Leaf { leaf, subleaf, significant_subleaf, ..Leaf::default() });
            self.raise(leaf);
            if subleaf > 0 && leaf == 7 {
                // EAX of subleaf 0 is the highest subleaf.
                let mut first = self.get(7, 0).copied().unwrap_or(Leaf {
                    leaf,
                    significant_subleaf,
                    ..Leaf::default()
                });
                first.eax = first.eax.max(subleaf);
                self.put(first);
            }
        }
        if let Some(leaf) = self.get_mut(leaf, subleaf) {
            let word = leaf.reg_mut(reg);
            *word = *word & !(1 << bit) | u32::from(on) << bit;
        }
    }

    /// The highest leaf of the range that `leaf` is in, as its first leaf tells.
    pub fn highest(&self, leaf: u32) -> u32 {
        self.get(leaf & RANGE, 0).map_or(0, |first| first.eax)
    }

    fn raise(&mut self, leaf: u32) {
        let range = leaf & RANGE;
        let first = self.get(range, 0).copied();
        let mut first = first.unwrap_or(Leaf { leaf: range, ..Leaf::default() });
        first.eax = first.eax.max(leaf);
        self.put(first);
    }

    /// The vendor's twelve characters, as leaf 0 has them.
    pub fn vendor(&self) -> [u8; 12] {
        let Leaf { ebx, ecx, edx, .. } = self.get(0, 0).copied().unwrap_or_default();
        let mut vendor = [0; 12];
        for (bytes, word) in vendor.chunks_exact_mut(4).zip([ebx, edx, ecx]) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        vendor
    }

    /// Whether the vendor is one whose processors follow AMD's manuals.
    pub fn is_amd(&self) -> bool {
        matches!(&self.vendor(), b"AuthenticAMD" | b"HygonGenuine")
    }
}

/// Why a processor cannot be what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuidError {
    /// A word of the option is neither a feature nor a key.
    #[error(
        "CPU option: `{word}` is no feature, model or key{}; write `+NAME`, `-NAME` or `KEY=VALUE`",
        .nearest.map_or(String::new(), |n| format!(" (is `{n}` meant?)"))
    )]
    Unknown {
        /// The word.
        word: String,
        /// The name most like it.
        nearest: Option<&'static str>,
    },
    /// A key's value is not one that it can have.
    #[error("CPU option: `{key}={value}` cannot be; {key} is {expected}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
    /// The host does not support a feature that was asked for.
    #[error(
        "CPU feature {0} is not supported by this host's KVM; leave it out, or add `force` \
         to tell the guest that it is there all the same"
    )]
    Unsupported(Feature),
    /// The host has fewer physical address bits.
    #[error(
        "phys-bits={asked}: this host has {host} physical address bits; ask for fewer, or add \
         `force`"
    )]
    PhysBits {
        /// What was asked for.
        asked: u8,
        /// What there is.
        host: u8,
    },
    /// The topology is not one that APIC IDs and CPUID can express.
    #[error(
        "topology of {} sockets, {} cores, {} threads with APIC IDs {} apart: each must be at least \
         1, the last a power of two, and APIC IDs must fit 16 bits; choose others",
        .0.sockets, .0.cores, .0.threads, .0.step
    )]
    Topology(Topology),
    /// There is no such vCPU in the topology.
    #[error("vCPU {vcpu} of {cpus}: there is none; count from 0, or enlarge the topology")]
    Vcpu {
        /// Its index.
        vcpu: u32,
        /// How many there are.
        cpus: u32,
    },
}
