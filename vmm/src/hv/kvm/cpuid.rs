//! CPUID leaves to and from KVM's form.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::cpuid::{Cpuid, Leaf};

pub(super) fn from_kvm(cpuid: &CpuId) -> Cpuid {
    let leaf = |e: &kvm_cpuid_entry2| Leaf {
        leaf: e.function,
        subleaf: e.index,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
        significant_subleaf: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
    };
    Cpuid(cpuid.as_slice().iter().map(leaf).collect())
}

/// `None` if there are more leaves than KVM takes.
pub(super) fn to_kvm(cpuid: &Cpuid) -> Option<CpuId> {
    let entry = |l: &Leaf| kvm_cpuid_entry2 {
        function: l.leaf,
        index: l.subleaf,
        flags: if l.significant_subleaf { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: l.eax,
        ebx: l.ebx,
        ecx: l.ecx,
        edx: l.edx,
        ..Default::default()
    };
    CpuId::from_entries(&cpuid.0.iter().map(entry).collect::<Vec<_>>()).ok()
}
