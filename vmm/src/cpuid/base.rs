//! Processor models by name: a family, a model and a list of features, as QEMU has them (measured with
//! its `query-cpu-model-expansion`, version 10.0). kvm-unit-tests' configurations name these.
//!
//! A model takes features away from what the host supports and adds none; the vendor stays the
//! host's. What is in no register of the feature table (caches, times, the hypervisor's own leaves)
//! stays as it is, but for performance counters, which a model has not.

use super::table::{feature, processor_words};
use super::{Cpuid, Leaf};

/// A model.
#[derive(Debug, PartialEq, Eq)]
pub struct Base {
    /// Its name.
    pub name: &'static str,
    /// Its family.
    pub family: u32,
    /// Its model within the family.
    pub model: u32,
    /// Its stepping.
    pub stepping: u32,
    /// The groups of features that it has, each a list of names.
    features: &'static [&'static str],
}

/// What every x86-64 processor of these has.
const X86_64: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx \
                      fxsr sse sse2 sse3 syscall nx lm";
/// What a hypervisor adds under KVM, whatever the processor is.
const ADDED: &str = "x2apic hypervisor";
const IVY_BRIDGE: &str = "pclmulqdq ssse3 cx16 sse4.1 sse4.2 popcnt tsc-deadline aes xsave avx f16c \
                          rdrand rdtscp lahf-lm fsgsbase smep erms xsaveopt";
const SKYLAKE_SERVER: &str = "fma movbe pcid invpcid 3dnowprefetch abm pdpe1gb bmi1 hle avx2 bmi2 rtm \
                              rdseed adx smap clflushopt clwb avx512f avx512dq avx512cd avx512bw \
                              avx512vl pku xsavec xgetbv1";

/// The models that have a name.
pub static MODELS: [Base; 4] = [
    Base {
        name: "qemu64",
        family: 15,
        model: 107,
        stepping: 1,
        features: &[X86_64, ADDED, "cx16 lahf-lm"],
    },
    Base { name: "Opteron_G1", family: 15, model: 6, stepping: 1, features: &[X86_64, ADDED] },
    Base {
        name: "IvyBridge",
        family: 6,
        model: 58,
        stepping: 9,
        features: &[X86_64, ADDED, IVY_BRIDGE],
    },
    Base {
        name: "Skylake-Server",
        family: 6,
        model: 85,
        stepping: 4,
        features: &[X86_64, ADDED, IVY_BRIDGE, SKYLAKE_SERVER],
    },
];

/// The leaf that tells of performance counters.
const COUNTERS: u32 = 0xa;

impl Base {
    /// Physical address bits of a model, unless the host's are asked for.
    pub(super) const PHYS_BITS: u8 = 40;

    /// The model of this name.
    pub fn named(name: &str) -> Option<&'static Base> {
        MODELS.iter().find(|base| base.name == name)
    }

    /// The names of its features.
    pub fn features(&self) -> impl Iterator<Item = &'static str> {
        self.features.iter().flat_map(|group| group.split_whitespace())
    }

    /// Takes away what the model does not have.
    pub(super) fn limit(&self, cpuid: &mut Cpuid) {
        for (leaf, subleaf, reg) in processor_words() {
            let bits = self
                .features()
                .filter_map(feature)
                .filter(|f| (f.leaf, f.subleaf, f.reg) == (leaf, subleaf, reg))
                .fold(0, |bits, f| bits | 1 << f.bit);
            if let Some(leaf) = cpuid.get_mut(leaf, subleaf) {
                *leaf.reg_mut(reg) &= bits;
            }
        }
        if let Some(leaf) = cpuid.get_mut(COUNTERS, 0) {
            *leaf = Leaf { leaf: COUNTERS, ..Leaf::default() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_of_a_model_is_known_once() {
        for base in &MODELS {
            let mut names: Vec<_> = base.features().collect();
            assert!(
                names.iter().all(|name| feature(name).is_some_and(|f| f.name == *name)),
                "{}",
                base.name
            );
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{}", base.name);
        }
    }
}
