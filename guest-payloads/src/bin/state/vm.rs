//! The state of a VM: its clock, its memslots, what was set up for it.

use crate::{PAGE, transplant};
use payload_rt::lab::{self, Backing, Errno, Memory, Rule, kind, kvm};
use payload_rt::{check, check_eq, check_ok, cpuid, frames, mem, reg, test, time};

/// An hour, in nanoseconds: more than a VM of a test lives.
const HOUR: u64 = 3600 * 1_000_000_000;
/// MSR_KVM_SYSTEM_TIME_NEW.
const SYSTEM_TIME: u32 = 0x4b56_4d01;

/// The paravirtual clock of this vCPU (Linux, Documentation/virt/kvm/x86/msr.rst).
struct Pvclock(u64);

impl Pvclock {
    fn new() -> Pvclock {
        let page = frames::alloc().address();
        check_ok!(reg::wrmsr(SYSTEM_TIME, page | 1));
        Pvclock(page)
    }

    fn word(&self, offset: u64) -> u64 {
        check_ok!(mem::read(self.0 + offset))
    }

    /// Nanoseconds now: the system time of the page, and what the TSC has gone since.
    fn now(&self) -> u64 {
        loop {
            let version = self.word(0) as u32;
            let (stamp, system, scale) = (self.word(8), self.word(16), self.word(24));
            let ticks = time::rdtsc().wrapping_sub(stamp);
            if version & 1 == 1 || self.word(0) as u32 != version {
                continue;
            }
            let (mul, shift) = (scale as u32, (scale >> 32) as i8);
            let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
            return system + ((u128::from(ticks) * u128::from(mul)) >> 32) as u64;
        }
    }
}

fn set_clock(clock: u64) {
    check_ok!(lab::set(kvm::SET_CLOCK, &kvm::ClockData { clock, ..Default::default() }));
}

fn clock() -> u64 {
    check_ok!(lab::get(kvm::GET_CLOCK)).clock
}

// KVM_SET_CLOCK, KVM_GET_CLOCK.
test!(clock_set, "KVM_SET_CLOCK sets the VM's clock, on both sides.", || {
    let pvclock = Pvclock::new();
    for hours in [2, 5, 3] {
        set_clock(hours * HOUR);
        let (guest, host) = (pvclock.now(), clock());
        check!((hours * HOUR..(hours + 1) * HOUR).contains(&guest), "the guest has {guest}");
        check!(guest.abs_diff(host) < HOUR, "the guest has {guest}, the host {host}");
    }
});

test!(clock_transplanted, "The paravirtual clock goes on in the new VM.", || {
    set_clock(7 * HOUR);
    let pvclock = Pvclock::new();
    let before = pvclock.now();
    check!(before >= 7 * HOUR, "the clock is {before}");
    transplant();
    let after = pvclock.now();
    check!(after >= before, "the clock went back from {before} to {after}");
    check!(after - before < HOUR, "the clock jumped from {before} to {after}");
    check_eq!(reg::rdmsr(SYSTEM_TIME), Ok(pvclock.0 | 1), "its MSR");
});

test!(clock_flags, "KVM_SET_CLOCK refuses unknown flags, and leaves the clock.", || {
    set_clock(7 * HOUR);
    for bit in [0, 4, 31] {
        let data = kvm::ClockData { clock: HOUR, flags: 1 << bit, ..Default::default() };
        check_eq!(lab::set(kvm::SET_CLOCK, &data), Err(Errno::EINVAL), "flag {bit}");
    }
    check!(clock() >= 7 * HOUR, "the clock is {}", clock());
});

// KVM_SET_USER_MEMORY_REGION: all slots are those of the old VM.
test!(slots, "Memslots and what they show are in the new VM, with their flags.", || {
    let memory = check_ok!(Memory::new(8 * PAGE, Backing::Small));
    check_ok!(memory.slot(lab::AREA, 0, 2 * PAGE, 0));
    let readonly = lab::AREA + 4 * PAGE;
    check_ok!(memory.slot(readonly, 2 * PAGE, PAGE, kvm::slot::READONLY));
    let gone = lab::AREA + 6 * PAGE;
    let deleted = check_ok!(memory.slot(gone, 3 * PAGE, PAGE, 0));
    check_ok!(deleted.delete());
    check_ok!(mem::write(lab::AREA + PAGE, 0x77u64));
    check_ok!(memory.write_u64(2 * PAGE, 0x88));
    transplant();
    check_eq!(mem::read(lab::AREA + PAGE), Ok(0x77u64), "what was written before");
    check_ok!(mem::write(lab::AREA, 0x99u64));
    check_eq!(memory.read_u64(0), Ok(0x99), "what is written now");
    check_eq!(mem::read(readonly), Ok(0x88u64), "the read-only slot");
    let log = check_ok!(lab::record(&[Rule::on(kind::MMIO)]));
    check_ok!(mem::write(readonly, 1u64));
    check_eq!(log.count(), 1, "a write of the read-only slot is an exit");
    check_eq!(memory.read_u64(2 * PAGE), Ok(0x88), "and changes nothing");
    check_ok!(mem::read::<u64>(gone));
    check_eq!(log.count(), 2, "the deleted slot is not there");
});

// KVM_GET_DIRTY_LOG.
test!(dirty_log, "A slot that is logged is logged in the new VM.", || {
    let memory = check_ok!(Memory::new(64 * PAGE, Backing::Small));
    let slot = check_ok!(memory.slot(lab::AREA, 0, 64 * PAGE, kvm::slot::LOG_DIRTY));
    transplant();
    let mut bitmap = [0];
    check_ok!(slot.dirty_log(&mut bitmap));
    for page in [3, 60] {
        check_ok!(mem::write(lab::AREA + page * PAGE, 1u8));
    }
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [1 << 3 | 1 << 60]);
});

// KVM_CAP_X86_USER_SPACE_MSR is the VM's.
test!(capabilities, "A capability that was enabled is so in the new VM.", || {
    const NO_MSR: u32 = 0x4000_1234;
    lab::require_cap(kvm::cap::X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR");
    check_ok!(lab::msr_exits(2));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR).value(0x99)]));
    transplant();
    check_eq!(reg::rdmsr(NO_MSR), Ok(0x99));
    check_eq!(log.count(), 1, "exits");
});

test!(cpuid_transplanted, "CPUID is that of the old VM.", || {
    let read = || [0, 1, 7, 0xd, 0x8000_0001, 0x8000_0008].map(|leaf| cpuid::leaf(leaf, 0));
    let before = read();
    transplant();
    let after = read();
    for (b, a) in before.iter().zip(&after) {
        check_eq!([a.eax, a.ebx, a.ecx, a.edx], [b.eax, b.ebx, b.ecx, b.edx]);
    }
});
