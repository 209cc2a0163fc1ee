//! A virtual processor: its index, its time, its assist page, and its APIC by MSRs (TLFS, Virtual
//! Processors, and Virtual Interrupt Controller).

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::*;
use payload_rt::apic::Register;
use payload_rt::{check_eq, report, smp, test, time};

const VECTOR: u8 = 0x52;

test!(vp_index, "Processors have indices from 0 on, which cannot be written.", || {
    let cpus = smp::start();
    for cpu in 0..cpus {
        let index = smp::run_on(cpu, || read(VP_INDEX));
        check_eq!(index, cpu as u64, "at cpu {cpu}");
    }
    refused(VP_INDEX, 0);
    refused(VP_INDEX, 1);
});

test!(vp_runtime, "A processor's run time goes on while it runs, and cannot be written.", || {
    let start = read(VP_RUNTIME);
    let mut last = start;
    let goes_on = time::wait_until(PATIENCE, || {
        let next = read(VP_RUNTIME);
        check!(next >= last, "it went from {last} back to {next}");
        last = next;
        // A hundredth of a second.
        last - start >= SECOND / 100
    });
    check!(goes_on, "from {start} it got to {last}");
    refused(VP_RUNTIME, 0);
});

test!(assist_page, "The assist page is kept, and its first word begins as 0.", || {
    check_eq!(read(VP_ASSIST_PAGE), 0, "after a reset");
    let at = page();
    put(at, 0xffff_ffff_ffff_ffffu64);
    write(VP_ASSIST_PAGE, at | 1);
    check_eq!(read(VP_ASSIST_PAGE), at | 1);
    check_eq!(word::<u32>(at), 0, "the word of the APIC");
    check_eq!(word::<u32>(at + 4), u32::MAX, "what is behind it");
    write(VP_ASSIST_PAGE, 0);
    check_eq!(read(VP_ASSIST_PAGE), 0, "disabled");
    refused(VP_ASSIST_PAGE, NOWHERE | 1);
    check_eq!(read(VP_ASSIST_PAGE), 0, "after a page that is no memory");
});

/// Where the assist page is, for the handler.
static ASSIST: AtomicU64 = AtomicU64::new(0);
/// Interrupts that needed no EOI.
static SPARED: AtomicU64 = AtomicU64::new(0);

// Bit 0 of the assist page's first word: no EOI required. Whoever finds it clears it, instead.
test!(no_eoi_required, "Where the assist page spares the EOI, clearing its bit is one.", || {
    let at = page();
    apic::local().enable();
    write(VP_ASSIST_PAGE, at | 1);
    ASSIST.store(at, SeqCst);
    irq::handle(VECTOR, |_| {
        let at = ASSIST.load(SeqCst);
        let mut bit = 0u8;
        let done = insn!("btr dword ptr [{at}], 0", "setc {bit}"; at = in(reg) at, bit = inout(reg_byte) bit);
        check_ok!(done);
        match bit {
            0 => write(EOI, 0),
            _ => {
                SPARED.fetch_add(1, SeqCst);
            }
        }
    });
    for times in 1..=20 {
        apic::local().self_ipi(VECTOR);
        check!(irq::wait_for(VECTOR, times, PATIENCE), "interrupt {times} does not come");
    }
    check!(!apic::local().bit(Register::ISR, VECTOR), "still in service");
    report::value("spared_eois", SPARED.load(SeqCst));
});

test!(tpr_msr, "TPR by its MSR is CR8 and the local APIC's.", || {
    apic::local().enable();
    for class in [0u64, 3, 15, 0] {
        write(TPR, class << 4);
        check_eq!(read(TPR), class << 4);
        check_eq!(reg::cr8(), class, "CR8");
        check_eq!(u64::from(apic::local().read(Register::TPR)), class << 4, "the register");
    }
    check_ok!(reg::set_cr8(5));
    check_eq!(read(TPR), 0x50, "after CR8");
    check_ok!(reg::set_cr8(0));
});

test!(icr_msr, "ICR by its MSR sends interrupts.", || {
    apic::local().enable();
    irq::count_only(VECTOR);
    // Fixed, physical, to this processor; then to itself by shorthand.
    let own = u64::from(apic::local().id()) << 56;
    write(ICR, own | u64::from(VECTOR));
    expect_interrupts(VECTOR, 1);
    check_eq!(read(ICR) & !(1 << 12), own | u64::from(VECTOR), "read back");
    write(ICR, 1 << 18 | u64::from(VECTOR));
    expect_interrupts(VECTOR, 2);
});

test!(eoi_msr, "EOI by its MSR ends the interrupt in service, and cannot be read.", || {
    apic::local().enable();
    irq::handle(VECTOR, |_| {
        check!(apic::local().bit(Register::ISR, VECTOR), "not in service");
        write(EOI, 0);
        check!(!apic::local().bit(Register::ISR, VECTOR), "still in service");
    });
    for times in 1..=2 {
        apic::local().self_ipi(VECTOR);
        check!(irq::wait_for(VECTOR, times, PATIENCE), "interrupt {times} does not come");
    }
    unreadable(EOI);
});
