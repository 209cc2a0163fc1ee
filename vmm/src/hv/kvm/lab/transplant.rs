//! All state of a guest out of one VM and into another, over the same memory.
//!
//! What is saved and restored is what Linux, Documentation/virt/kvm/api.rst names as state, in an
//! order that its sections ask for: the MP state is read first, since reading it makes KVM take up
//! pending INIT and SIPI (4.38); CPUID comes before what depends on it (4.20), the special registers
//! before the local APIC, whose mode they hold, that before the MSRs, of which the TSC deadline needs
//! its timer, and events after the special registers (4.32), since both hold interrupts. The local
//! APIC precedes the I/O APIC, which sends it what is pending anew. The nested state needs EFER, CR4
//! and the MSRs of nested virtualization (4.115).

use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use kvm_bindings::*;
use payload_abi::lab::step;

use super::table::{self, Shape, TABLE};
use super::{KvmLab, KvmVm, Setting, device_attr, raw, set_filter, set_region};
use crate::hv::kvm::Irqchip;
use crate::hv::kvm::vcpu::KvmVcpu;
use crate::hv::lab::{AttrCall, Errno, Target};
use crate::hv::{Vcpu, Vm};

/// The TSC (SDM volume 4, 2.1): its offset is carried over instead, where KVM gives it.
const MSR_TSC: u32 = 0x10;
/// The MTRRs (SDM volume 4, 2.1): variable ranges, fixed ranges, default type.
const MTRRS: [RangeInclusive<u32>; 5] =
    [0x200..=0x20f, 0x250..=0x250, 0x258..=0x259, 0x268..=0x26f, 0x2ff..=0x2ff];
/// SVERSION, SIEFP, SIMP, SINT0 to SINT15 (TLFS, Virtual Interrupt Controller).
const SYNIC: [RangeInclusive<u32>; 2] = [0x4000_0081..=0x4000_0083, 0x4000_0090..=0x4000_009f];
/// The synthetic timers (TLFS, Timers), each with its count before its configuration: a write of the
/// count starts a timer that starts by itself, and one that is over must not run again.
const TIMERS: [u32; 8] = [
    0x4000_00b1,
    STIMER0_CONFIG,
    0x4000_00b3,
    0x4000_00b2,
    0x4000_00b5,
    0x4000_00b4,
    0x4000_00b7,
    0x4000_00b6,
];
/// In KVM's list this stands for all of them.
const STIMER0_CONFIG: u32 = 0x4000_00b0;
/// The most CPUID leaves that KVM takes (`KVM_MAX_CPUID_ENTRIES`).
const CPUID_LEAVES: u32 = 256;
/// Room for a nested state, in bytes: KVM_CAP_NESTED_STATE gives less.
const MAX_NESTED: usize = 64 << 10;

type Step<T> = Result<T, (Errno, u64)>;

/// One MSR and its value.
#[derive(Clone, Copy, Debug)]
struct Msr {
    index: u32,
    value: u64,
}

/// The state of a vCPU.
#[derive(Debug)]
struct VcpuState {
    mp_state: Vec<u8>,
    cpuid: Vec<u8>,
    tsc_khz: Option<i64>,
    tsc_offset: Option<u64>,
    /// Whether these are of `KVM_GET_SREGS2`.
    sregs2: bool,
    sregs: Vec<u8>,
    lapic: Option<Vec<u8>>,
    msrs: Vec<Msr>,
    xcrs: Option<Vec<u8>>,
    xsave: Vec<u8>,
    debugregs: Vec<u8>,
    regs: Vec<u8>,
    events: Vec<u8>,
    nested: Option<Vec<u8>>,
}

/// The state of a VM.
#[derive(Debug)]
struct VmState {
    irqchips: Vec<Vec<u8>>,
    pit: Option<Vec<u8>>,
    clock: Vec<u8>,
}

/// An ioctl of the table's, with as many bytes as its shape has.
fn call(fd: i32, target: Target, number: u32, bytes: &mut [u8]) -> Result<i64, Errno> {
    let known = TABLE.iter().any(|a| a.target == target && a.number == number);
    debug_assert!(known, "{number:#x} of {target:?} is in the table");
    // SAFETY: callers give the bytes that the ioctl has: `get` and `set` below by its number, the
    // others those of their structure with a count of the items behind it.
    unsafe { raw(fd, number, bytes, 0) }
}

/// A structure whose length is in the ioctl's number.
fn get(fd: i32, target: Target, number: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; (number >> 16 & 0x3fff) as usize];
    call(fd, target, number, &mut bytes)?;
    Ok(bytes)
}

fn put(fd: i32, target: Target, number: u32, bytes: &[u8]) -> Result<(), Errno> {
    call(fd, target, number, &mut bytes.to_vec()).map(|_| ())
}

fn msrs(items: &[Msr]) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes[..4].copy_from_slice(&(items.len() as u32).to_le_bytes());
    for msr in items {
        bytes.extend(u64::from(msr.index).to_le_bytes());
        bytes.extend(msr.value.to_le_bytes());
    }
    bytes
}

/// `None` if KVM does not give it.
fn get_msr(fd: i32, index: u32) -> Option<u64> {
    let mut bytes = msrs(&[Msr { index, value: 0 }]);
    (call(fd, Target::Vcpu, table::GET_MSRS, &mut bytes) == Ok(1))
        .then(|| u64::from_le_bytes(std::array::from_fn(|i| bytes[16 + i])))
}

fn set_msr(fd: i32, msr: Msr) -> bool {
    call(fd, Target::Vcpu, table::SET_MSRS, &mut msrs(&[msr])) == Ok(1)
}

impl KvmLab {
    /// The MSRs that are state: KVM's list, and what it leaves out: the MTRRs, and of Hyper-V's synthetic
    /// interrupt controllers and timers all but the first of each.
    fn msr_list(&self) -> Result<Vec<u32>, Errno> {
        let list = self.host.kvm.get_msr_index_list().map_err(|e| Errno(e.errno()))?;
        let mut all = list.as_slice().to_vec();
        all.retain(|&msr| msr != STIMER0_CONFIG);
        let unlisted = MTRRS.into_iter().chain(SYNIC).flatten().chain(TIMERS);
        for msr in unlisted {
            if !all.contains(&msr) {
                all.push(msr);
            }
        }
        Ok(all)
    }

    fn has(&self, cap: u32) -> bool {
        self.host.check_extension(cap) > 0
    }

    fn save_vcpu(&self, fd: i32) -> Result<VcpuState, Errno> {
        let of = |number| get(fd, Target::Vcpu, number);
        let mp_state = of(table::GET_MP_STATE)?;
        let Shape::Items { header, item, .. } = table::CPUID2 else {
            return Err(Errno(libc::EINVAL));
        };
        let mut cpuid = vec![0; (header + CPUID_LEAVES * item) as usize];
        cpuid[..4].copy_from_slice(&CPUID_LEAVES.to_le_bytes());
        call(fd, Target::Vcpu, table::GET_CPUID2, &mut cpuid)?;
        let mut nested = None;
        if self.has(KVM_CAP_NESTED_STATE) {
            let mut bytes = vec![0; MAX_NESTED];
            bytes[4..8].copy_from_slice(&(MAX_NESTED as u32).to_le_bytes());
            call(fd, Target::Vcpu, table::GET_NESTED_STATE, &mut bytes)?;
            nested = Some(bytes);
        }
        let mut xsave = vec![0; self.xsave_size()];
        let by = if self.has(KVM_CAP_XSAVE2) { table::GET_XSAVE2 } else { table::GET_XSAVE };
        call(fd, Target::Vcpu, by, &mut xsave)?;
        let sregs2 = self.has(KVM_CAP_SREGS2);
        // SAFETY: the ioctl takes no argument.
        let tsc_khz = unsafe { raw(fd, table::GET_TSC_KHZ, &mut [], 0) };
        let tsc_offset =
            device_attr(fd, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET.into(), AttrCall::Get);
        let get_msr = |index: &u32| Some(Msr { index: *index, value: get_msr(fd, *index)? });
        Ok(VcpuState {
            mp_state,
            cpuid,
            tsc_khz: tsc_khz.ok(),
            tsc_offset: tsc_offset.ok(),
            sregs2,
            sregs: of(if sregs2 { table::GET_SREGS2 } else { table::GET_SREGS })?,
            lapic: match self.config.irqchip {
                Irqchip::None => None,
                _ => Some(of(table::GET_LAPIC)?),
            },
            msrs: self.msr_list()?.iter().filter_map(get_msr).collect(),
            xcrs: self.has(KVM_CAP_XCRS).then(|| of(table::GET_XCRS)).transpose()?,
            xsave,
            debugregs: of(table::GET_DEBUGREGS)?,
            regs: of(table::GET_REGS)?,
            events: of(table::GET_EVENTS)?,
            nested,
        })
    }

    fn save_vm(&self, vm: &KvmVm) -> Result<VmState, Errno> {
        let fd = vm.fd.as_raw_fd();
        let irqchip = |chip: u32| {
            let mut bytes = vec![0; size_of::<kvm_irqchip>()];
            bytes[..4].copy_from_slice(&chip.to_le_bytes());
            call(fd, Target::Vm, table::GET_IRQCHIP, &mut bytes).map(|_| bytes)
        };
        let chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
        let in_kernel = self.config.irqchip == Irqchip::Kernel;
        Ok(VmState {
            irqchips: match in_kernel {
                true => chips.into_iter().map(irqchip).collect::<Result<_, _>>()?,
                false => Vec::new(),
            },
            pit: (in_kernel && self.config.pit)
                .then(|| get(fd, Target::Vm, table::GET_PIT2))
                .transpose()?,
            clock: get(fd, Target::Vm, table::GET_CLOCK)?,
        })
    }

    fn restore_vcpu(&self, fd: i32, state: &VcpuState) -> Step<()> {
        let failed = |e| (e, step::VCPU_STATE);
        let put = |number, bytes: &[u8]| put(fd, Target::Vcpu, number, bytes).map_err(failed);
        put(table::SET_CPUID2, &state.cpuid)?;
        if let Some(khz) = state.tsc_khz {
            // SAFETY: neither call takes more than a number.
            unsafe {
                if raw(fd, table::GET_TSC_KHZ, &mut [], 0) != Ok(khz) {
                    raw(fd, table::SET_TSC_KHZ, &mut [], khz as u64).map_err(failed)?;
                }
            }
        }
        if let Some(offset) = state.tsc_offset {
            let attribute = KVM_VCPU_TSC_OFFSET.into();
            device_attr(fd, KVM_VCPU_TSC_CTRL, attribute, AttrCall::Set(offset)).map_err(failed)?;
        }
        put(if state.sregs2 { table::SET_SREGS2 } else { table::SET_SREGS }, &state.sregs)?;
        if let Some(lapic) = &state.lapic {
            put(table::SET_LAPIC, lapic)?;
        }
        for &msr in &state.msrs {
            if msr.index == MSR_TSC && state.tsc_offset.is_some() {
                continue;
            }
            // One that only the processor writes has its value already.
            if !set_msr(fd, msr) && get_msr(fd, msr.index) != Some(msr.value) {
                return Err((Errno(libc::EIO), step::MSRS));
            }
        }
        if let Some(xcrs) = &state.xcrs {
            put(table::SET_XCRS, xcrs)?;
        }
        put(table::SET_XSAVE, &state.xsave)?;
        put(table::SET_DEBUGREGS, &state.debugregs)?;
        put(table::SET_REGS, &state.regs)?;
        put(table::SET_EVENTS, &state.events)?;
        put(table::SET_MP_STATE, &state.mp_state)?;
        match &state.nested {
            None => Ok(()),
            Some(nested) => {
                let mut bytes = nested.clone();
                let set = call(fd, Target::Vcpu, table::SET_NESTED_STATE, &mut bytes);
                set.map(|_| ()).map_err(|e| (e, step::NESTED))
            }
        }
    }

    fn restore_vm(&self, vm: &KvmVm, state: &VmState) -> Step<()> {
        let fd = vm.fd.as_raw_fd();
        let put = |number, bytes: &[u8]| {
            put(fd, Target::Vm, number, bytes).map_err(|e| (e, step::VM_STATE))
        };
        state.irqchips.iter().try_for_each(|chip| put(table::SET_IRQCHIP, chip))?;
        state.pit.iter().try_for_each(|pit| put(table::SET_PIT2, pit))
    }

    fn restore_clock(&self, vm: &KvmVm, state: &VmState) -> Result<(), Errno> {
        let mut clock = state.clock.clone();
        // An older KVM tells flags that it does not take.
        let takes = u32::try_from(self.host.check_extension(KVM_CAP_ADJUST_CLOCK)).unwrap_or(0);
        for (byte, takes) in clock[8..12].iter_mut().zip(takes.to_le_bytes()) {
            *byte &= takes;
        }
        put(vm.fd.as_raw_fd(), Target::Vm, table::SET_CLOCK, &clock)
    }

    fn restore_settings(
        &self,
        vm: &KvmVm,
        vcpu: &KvmVcpu,
        settings: &[Setting],
        target: Target,
    ) -> Step<()> {
        let fd = if target == Target::Vm { vm.fd.as_raw_fd() } else { vcpu.raw };
        for setting in settings.iter().filter(|s| s.target == target) {
            // SAFETY: the ioctl was made once with these bytes, which had its shape.
            unsafe { raw(fd, setting.number, &mut setting.bytes.clone(), setting.value) }
                .map_err(|e| (e, step::SETTINGS))?;
        }
        Ok(())
    }
}

/// Makes a VM in which the guest of `vcpu` goes on, and puts it in the old one's place.
pub(super) fn transplant(lab: &KvmLab, vcpu: &mut KvmVcpu) -> Step<()> {
    // From here on nobody else changes the VM: a line that is to change waits.
    let mut current = lab.current.lock();
    let kept = lab.state();
    let save = |e| (e, step::SAVE);
    let vcpu_state = lab.save_vcpu(vcpu.raw).map_err(save)?;
    let vm_state = lab.save_vm(&current).map_err(save)?;

    let made = |_| (Errno(libc::EIO), step::NEW_VM);
    let vm = lab.host.create_vm(&lab.config, Some(lab.ram.clone())).map_err(made)?;
    let slots = kept.slots.values().filter(|r| !kept.board.has(r.slot) || r.flags != 0);
    slots.into_iter().try_for_each(|r| set_region(&vm, r)).map_err(|e| (e, step::NEW_VM))?;
    // Some capabilities must be there before the first vCPU is.
    let mut next = None;
    for target in [Target::Vm, Target::Vcpu] {
        if target == Target::Vcpu {
            next = Some(vm.create_vcpu(vcpu.index).map_err(made)?);
        }
        lab.restore_settings(&vm, next.as_ref().unwrap_or(vcpu), &kept.settings, target)?;
    }
    let mut next = next.ok_or((Errno(libc::EIO), step::NEW_VM))?;
    lab.current.sints.move_to(&vm).map_err(made)?;
    if let Some((flags, ranges)) = &kept.filter {
        set_filter(&vm, *flags, ranges).map_err(|e| (e, step::SETTINGS))?;
    }
    lab.restore_vcpu(next.raw, &vcpu_state)?;
    lab.restore_vm(&vm, &vm_state)?;
    lab.restore_clock(&vm, &vm_state).map_err(|e| (e, step::CLOCK))?;

    // Kicks reach the thread; what they set is the new vCPU's from here on.
    next.bind();
    *vcpu = next;
    *current = Arc::new(vm);
    Ok(())
}
