//! Stolen time, asynchronous page faults and paravirtual EOI.

use crate::{SECOND, Shared, clock, feature, read, write};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Register};
use payload_rt::cpuid::Feature;
use payload_rt::*;

const ASYNC_PF: u32 = 0x4b56_4d02;
const STEAL_TIME: u32 = 0x4b56_4d03;
const PV_EOI: u32 = 0x4b56_4d04;
const HAS_ASYNC_PF: Feature = feature("kvm-asyncpf", 4);
const HAS_STEAL_TIME: Feature = feature("kvm-steal-time", 5);

// msr.rst: bit 0 enables, bits 1 to 5 must be zero, the structure is 64 bytes and aligned to that.
test!(
    steal_time,
    "Stolen time has its structure, only grows, and by no more than the time that passes.",
    || {
        HAS_STEAL_TIME.require();
        let system = clock();
        let shared = Shared::new(0x440, 0);
        check_eq!(read(STEAL_TIME), 0, "MSR_KVM_STEAL_TIME before it was written");
        // The page is zeroes around a place that must be zero, too, but for steal and version.
        write(STEAL_TIME, shared.at | 1);
        check_eq!(read(STEAL_TIME), shared.at | 1, "MSR_KVM_STEAL_TIME");
        let read_steal = || loop {
            let version: u32 = shared.get(8);
            let steal: u64 = shared.get(0);
            if version.is_multiple_of(2) && shared.get::<u32>(8) == version {
                break steal;
            }
        };
        let (first, start) = (read_steal(), system.now());
        for _ in 0..50 {
            let steal = read_steal();
            check_eq!(shared.get::<u32>(12), 0, "flags");
            check_eq!(shared.get::<u8>(16) & 1, 0, "`preempted` of a CPU that runs");
            let passed = system.now() - start;
            check!(steal >= first, "{steal} ns stolen after {first} ns");
            // What was stolen before the first look may be accounted after it.
            check!(steal - first <= passed + SECOND, "{} ns of {passed} ns", steal - first);
            time::delay(200);
        }
        shared.check_around(64, 0);
        for bit in 1..=5 {
            let fault = check_err!(reg::wrmsr(STEAL_TIME, shared.at | 1 << bit | 1), "bit {bit}");
            check!(fault.is(trap::GP, 0), "reserved bit {bit}: {fault}");
            check_eq!(read(STEAL_TIME), shared.at | 1, "after a refused write");
        }
        write(STEAL_TIME, 0);
        report::value("steal_ns", read_steal());
    }
);

// msr.rst, MSR_KVM_ASYNC_PF_EN: bits 4 and 5 are reserved, the place is 64 bytes and aligned.
test!(async_pf_bits, "The MSR of asynchronous page faults refuses what is reserved.", || {
    HAS_ASYNC_PF.require();
    let shared = Shared::new(0x80, 0);
    check_eq!(read(ASYNC_PF), 0, "MSR_KVM_ASYNC_PF_EN before it was written");
    for bit in [4, 5] {
        for enable in [0, 1] {
            let value = shared.at | 1 << bit | enable;
            let fault = check_err!(reg::wrmsr(ASYNC_PF, value), "{value:#x}");
            check!(fault.is(trap::GP, 0), "{value:#x}: {fault}");
            check_eq!(read(ASYNC_PF), 0, "after a refused write");
        }
    }
    write(ASYNC_PF, 0);
});

static EOI_WORD: AtomicU64 = AtomicU64::new(0);
static SKIPPED: AtomicU64 = AtomicU64::new(0);

// msr.rst, MSR_KVM_EOI_EN: where KVM has set bit 0 of the word, the guest clears it instead of
// writing the EOI register.
test!(
    pv_eoi,
    "With paravirtual EOI, clearing the bit acknowledges as well as the EOI register does.",
    || {
        const VECTOR: u8 = 0x61;
        cpuid::KVM_PV_EOI.require();
        let apic = apic::local();
        apic.enable();
        let shared = Shared::new(0x20, 0);
        EOI_WORD.store(shared.at, SeqCst);
        write(PV_EOI, shared.at | 1);
        check_eq!(read(PV_EOI), shared.at | 1, "MSR_KVM_EOI_EN");
        irq::handle(VECTOR, |_| {
            let word = EOI_WORD.load(SeqCst);
            let set: u8;
            let done = insn!("btr dword ptr [{}], 0", "setc {}"; in(reg) word, out(reg_byte) set);
            if done.is_ok() && set != 0 {
                SKIPPED.fetch_add(1, SeqCst);
            } else {
                apic::eoi();
            }
        });
        for i in 1..=20 {
            apic.self_ipi(VECTOR);
            check!(irq::wait_for(VECTOR, i, 1_000_000), "interrupt {i} did not come");
            let in_service = apic.bit(Register::ISR, VECTOR);
            check!(!in_service, "vector {VECTOR:#x} in service after its end, interrupt {i}");
        }
        check_eq!(apic.read(Register::PPR), 0, "the processor's priority after all of them");
        write(PV_EOI, 0);
        shared.check_around(4, 0);
        check_eq!(shared.get::<u32>(0), 0, "the word in the end");
        let fault = check_err!(reg::wrmsr(PV_EOI, (shared.at + 1) & !1 | 2 | 1), "reserved bit 1");
        check!(fault.is(trap::GP, 0), "reserved bit 1: {fault}");
        apic.self_ipi(VECTOR);
        check!(irq::wait_for(VECTOR, 21, 1_000_000), "no interrupt after PV EOI was turned off");
        report::value("skipped_eois", SKIPPED.load(SeqCst));
    }
);
