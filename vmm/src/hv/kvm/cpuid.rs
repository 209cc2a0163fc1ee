//! CPUID leaves to and from KVM's form.

use std::io;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use crate::cpuid::{Cpuid, Leaf};
use crate::hv::HvError;

/// `KVM_GET_SUPPORTED_HV_CPUID`: `_IOWR(KVMIO, 0xc1, struct kvm_cpuid2)`.
const GET_SUPPORTED_HV_CPUID: libc::c_ulong = 0xc008_aec1;

/// The leaves of Hyper-V's that KVM offers, from its own descriptor or a vCPU's.
pub(super) fn hyperv(fd: i32) -> Result<Cpuid, HvError> {
    let failed = |source| HvError::Call { what: "KVM_GET_SUPPORTED_HV_CPUID".to_owned(), source };
    let mut leaves = CpuId::new(KVM_MAX_CPUID_ENTRIES).map_err(|e| failed(io::Error::other(e)))?;
    // SAFETY: the structure has room for as many entries as its head says.
    match unsafe { libc::ioctl(fd, GET_SUPPORTED_HV_CPUID, leaves.as_mut_fam_struct_ptr()) } {
        -1 => Err(failed(io::Error::last_os_error())),
        _ => Ok(from_kvm(&leaves)),
    }
}

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
