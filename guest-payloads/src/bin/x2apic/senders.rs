//! The interrupt command register: shorthands, physical destinations, delivery modes (SDM volume
//! 3, 12.12.9 and 12.6.1).

use crate::{PATIENCE, SETTLE, VECTOR, bit, enabled, expect_at, msr, start_all, write};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::*;

const CPUS: usize = 4;

fn start() -> usize {
    irq::count_only(VECTOR);
    start_all(CPUS)
}

fn command(low: u32, destination: u32) -> impl Fn() + Send {
    move || write(msr::ICR, u64::from(destination) << 32 | u64::from(low))
}

const FIXED: u32 = 0x4000 | VECTOR as u32;

test!(shorthand_self, "The shorthand `self` reaches the sender, whatever the destination.", || {
    let cpus = start();
    for destination in [0, 2, u32::MAX] {
        let send = command(FIXED | 1 << 18, destination);
        expect_at(cpus, 1, VECTOR, "self", send, |cpu| cpu == 1);
    }
});

test!(shorthand_all, "The shorthand `all` reaches everybody, whatever the destination.", || {
    let cpus = start();
    for destination in [0, 0x1234_5678] {
        expect_at(cpus, 2, VECTOR, "all", command(FIXED | 2 << 18, destination), |_| true);
    }
});

test!(shorthand_others, "The shorthand `all but self` reaches everybody else.", || {
    let cpus = start();
    for from in 0..CPUS {
        let send = command(FIXED | 3 << 18, from as u32);
        expect_at(cpus, from, VECTOR, "all but self", send, |cpu| cpu != from);
    }
});

test!(physical, "A physical destination is the one CPU of that identifier.", || {
    let cpus = start();
    for to in 0..cpus {
        let send = command(FIXED, smp::apic_id(to));
        expect_at(cpus, (to + 1) % cpus, VECTOR, "physical", send, |cpu| cpu == to);
    }
});

test!(physical_broadcast, "The physical destination of all ones is everybody.", || {
    let cpus = start();
    expect_at(cpus, 3, VECTOR, "broadcast", command(FIXED, u32::MAX), |_| true);
});

test!(physical_needs_32_bits, "Of a physical destination all 32 bits count.", || {
    let cpus = start();
    // 0xff is the xAPIC's broadcast; the others end in the identifier of a CPU.
    for to in [0xff, 0x101, 0xff02, 0x8000_0003, 0x1_0000, 0xffff_ff00, 0xffff_fffe] {
        expect_at(cpus, 0, VECTOR, "IPI to nobody", command(FIXED, to), |_| false);
    }
});

// 12.6.1: INIT level de-assert is for older processors; no other mode looks at the level.
test!(trigger_bits, "Level and trigger mode of ICR make no difference to a fixed IPI.", || {
    let cpus = start();
    for bits in [0, 0x4000, 0x8000, 0xc000] {
        let send = command(u32::from(VECTOR) | bits, smp::apic_id(1));
        let (at, what) = (smp::run_on(1, || irq::count(VECTOR)), "fixed IPI");
        smp::run_on(0, send);
        let came = time::wait_until(PATIENCE / 50, || irq::count_on(1, VECTOR) > at);
        // A level-triggered de-assert is nothing to deliver on some processors.
        check!(came || bits == 0x8000, "{what} with {bits:#x} did not come");
        check_eq!(irq::count_on(2, VECTOR), 0, "{what} with {bits:#x} at cpu 2");
    }
    check!(cpus >= 3);
});

test!(nmi, "An NMI by ICR comes to a CPU whose interrupts are off, and has no vector.", || {
    irq::handle(trap::NMI, |_| {});
    let cpus = start();
    // The vector of an NMI means nothing.
    for vector in [0, 5, 0x80] {
        let send = command(0x4400 | vector, smp::apic_id(2));
        expect_at(cpus, 0, trap::NMI, "NMI", send, |cpu| cpu == 2);
    }
    let send = command(0x4400 | 3 << 18, 0);
    expect_at(cpus, 1, trap::NMI, "NMI to all but self", send, |cpu| cpu != 1);
});

test!(lowest_priority, "A lowest-priority IPI to a physical destination is for that one.", || {
    let cpus = start();
    for to in 0..cpus {
        let send = command(FIXED | 1 << 8, smp::apic_id(to));
        expect_at(cpus, 0, VECTOR, "lowest priority", send, |cpu| cpu == to);
    }
});

test!(
    init_keeps_the_mode,
    "INIT leaves an x2APIC an x2APIC, with its identifier, and its registers as after reset.",
    || {
        // SDM volume 3, 12.12.5.1, and 12.4.7.3; seen by the CPU itself after it starts again.
        const PAGE: u8 = 0x40;
        let code = asm_code!(
            ".code16",
            "cli",
            "mov ecx, 0x1b",
            "rdmsr",
            "mov dword ptr [0x6004], eax",
            "mov ecx, 0x802",
            "rdmsr",
            "mov dword ptr [0x6008], eax",
            "mov ecx, 0x80d",
            "rdmsr",
            "mov dword ptr [0x600c], eax",
            "mov ecx, 0x808",
            "rdmsr",
            "mov dword ptr [0x6010], eax",
            "mov ecx, 0x80f",
            "rdmsr",
            "mov dword ptr [0x6014], eax",
            "mov dword ptr [0x6000], 1",
            "2: hlt",
            "jmp 2b"
        );
        start();
        let id = smp::apic_id(1);
        smp::run_on(1, || write(msr::TPR, 0x50));
        check_ok!(mem::write_bytes(u64::from(PAGE) << 12, code));
        (0..8).for_each(|i| check_ok!(mem::write::<u32>(0x6000 + 4 * i, 0)));
        let apic = apic::local();
        apic.send(Delivery::Init, Destination::Physical(id));
        time::delay(100);
        apic.send(Delivery::StartUp(PAGE), Destination::Physical(id));
        let word = |i: u64| check_ok!(mem::read::<u32>(0x6000 + 4 * i));
        check!(time::wait_until(PATIENCE, || word(0) == 1), "cpu 1 does not start");
        check_eq!(word(1) & 0xd00, 0xc00, "IA32_APIC_BASE's mode and BSP");
        check_eq!([word(2), word(3)], [id, crate::logical(id)], "ID and LDR");
        check_eq!([word(4), word(5)], [0, 0xff], "TPR and SVR");
    }
);

static STEPS: AtomicU32 = AtomicU32::new(0);

test!(self_ipi_by_three_ways, "ICR, shorthand and self-IPI register reach the sender.", || {
    let apic = enabled();
    irq::handle(VECTOR, |_| {
        STEPS.fetch_add(1, SeqCst);
        write(msr::EOI, 0);
    });
    let own = u64::from(apic.id()) << 32;
    let ways = [(msr::ICR, own | u64::from(FIXED)), (msr::ICR, u64::from(FIXED | 1 << 18))];
    for (register, value) in ways.into_iter().chain([(msr::SELF_IPI, VECTOR.into())]) {
        let before = STEPS.load(SeqCst);
        write(register, value);
        check!(bit(msr::IRR, VECTOR), "MSR {register:#x}: IRR does not have it");
        irq::wait_for(VECTOR, before + 1, PATIENCE);
        irq::let_in(SETTLE);
        check_eq!(STEPS.load(SeqCst), before + 1, "interrupts by MSR {register:#x}");
    }
});
