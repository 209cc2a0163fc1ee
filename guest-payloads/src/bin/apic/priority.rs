//! Which interrupt is taken when: task and processor priority, requests, service, EOI.

use crate::{PATIENCE, check_taken, let_in, modes, note, note_and_eoi, taken};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::apic::{self, Register};
use payload_rt::*;

test!(cr8_is_tpr, "CR8 is the upper half of TPR, in both directions.", || {
    // SDM volume 3, 12.8.6.
    for apic in modes() {
        for tpr in [0_u32, 0x10, 0x70, 0x80, 0xf0] {
            apic.write(Register::TPR, tpr);
            check_eq!(reg::cr8(), u64::from(tpr >> 4), "CR8 after TPR {tpr:#x}");
            check_eq!(apic.read(Register::TPR), tpr, "TPR");
        }
        for class in (0..16).rev() {
            check_ok!(reg::set_cr8(class), "write of {class} to CR8");
            check_eq!(reg::cr8(), class, "CR8");
            check_eq!(apic.read(Register::TPR), (class as u32) << 4, "TPR after CR8 {class}");
        }
    }
});

test!(tpr_low_bits, "TPR keeps its lower half, and PPR shows it.", || {
    // SDM volume 3, 12.8.3.1: the task-priority sub-class.
    for apic in modes() {
        for tpr in [0x0f_u32, 0x1f, 0x7c, 0xff] {
            apic.write(Register::TPR, tpr);
            check_eq!(apic.read(Register::TPR), tpr, "TPR");
            check_eq!(reg::cr8(), u64::from(tpr >> 4), "CR8 after TPR {tpr:#x}");
            check_eq!(apic.read(Register::PPR), tpr, "PPR with TPR {tpr:#x}");
        }
    }
});

test!(cr8_reserved_bits, "Bits 63:4 of CR8 are reserved: #GP, and CR8 stays.", || {
    check_ok!(reg::set_cr8(5));
    for bit in [4, 5, 7, 8, 31, 32, 63] {
        let fault = check_err!(reg::set_cr8(1 << bit), "bit {bit} of CR8");
        check!(fault.is(trap::GP, 0), "bit {bit} of CR8: {fault}");
        check_eq!(reg::cr8(), 5, "CR8 after #GP");
    }
});

test!(ppr_without_service, "With nothing in service PPR is TPR.", || {
    for apic in modes() {
        for tpr in [0, 0x10, 0x30, 0xf0] {
            apic.write(Register::TPR, tpr);
            check_eq!(apic.read(Register::PPR), tpr, "PPR with TPR {tpr:#x}");
        }
        // Read-only: as xAPIC a write is ignored.
        apic.set_tpr(0x20);
        if apic.mode() == apic::Mode::XApic {
            apic.write(Register::PPR, 0xf0);
            check_eq!(apic.read(Register::PPR), 0x20, "PPR after a write");
        }
    }
});

static PPR: AtomicU32 = AtomicU32::new(0);
static BITS: AtomicU32 = AtomicU32::new(0);
const VECTOR: u8 = 0x6b;

/// ISR, IRR and TMR bits of `vector`, as bits 0, 1 and 2.
fn bits(vector: u8) -> u32 {
    let apic = apic::local();
    let bit = |register, place: u32| u32::from(apic.bit(register, vector)) << place;
    bit(Register::ISR, 0) | bit(Register::IRR, 1) | bit(Register::TMR, 2)
}

test!(
    request_then_service,
    "A pending vector is in IRR, one in its handler in ISR, one after EOI in neither.",
    || {
        // SDM volume 3, 12.8.4.
        irq::handle(VECTOR, |frame| {
            note(frame);
            BITS.store(bits(VECTOR), SeqCst);
            PPR.store(apic::local().read(Register::PPR), SeqCst);
            apic::eoi();
        });
        for apic in modes() {
            check_eq!(bits(VECTOR), 0, "(ISR, IRR, TMR) before");
            apic.self_ipi(VECTOR);
            check_eq!(bits(VECTOR), 2, "(ISR, IRR, TMR) with the interrupt pending");
            check_taken(&[VECTOR], "self-IPI");
            check_eq!(BITS.load(SeqCst), 1, "(ISR, IRR, TMR) in the handler");
            check_eq!(PPR.load(SeqCst), u32::from(VECTOR & 0xf0), "PPR in the handler");
            check_eq!(bits(VECTOR), 0, "(ISR, IRR, TMR) after EOI");
            check_eq!(apic.read(Register::PPR), 0, "PPR after EOI");
        }
    }
);

test!(ppr_in_service, "PPR in a handler is the higher of TPR and the vector's class.", || {
    // SDM volume 3, 12.8.3.1.
    irq::handle(VECTOR, |_| {
        let apic = apic::local();
        // 0x6b is in service.
        for (tpr, ppr) in [(0, 0x60), (0x5f, 0x60), (0x60, 0x60), (0x70, 0x70), (0xf0, 0xf0)] {
            apic.write(Register::TPR, tpr);
            check_eq!(
                apic.read(Register::PPR),
                ppr,
                "PPR with TPR {tpr:#x}, {VECTOR:#x} in service"
            );
        }
        apic.set_tpr(0);
        apic.eoi();
    });
    for apic in modes() {
        irq::reset();
        apic.self_ipi(VECTOR);
        check!(irq::wait_for(VECTOR, 1, PATIENCE), "no self-IPI");
    }
});

test!(
    task_priority_masks,
    "TPR holds back the vectors of its class and below, and no other.",
    || {
        // SDM volume 3, 12.8.3.1: a vector is taken if its class is above PPR's.
        let vectors = [0x2f, 0x30, 0x5f, 0x60, 0x6f, 0xef, 0xf1];
        vectors.iter().for_each(|&vector| irq::handle(vector, note_and_eoi));
        for apic in modes() {
            for tpr in [0x00, 0x20, 0x2f, 0x30, 0x50, 0x5f, 0x60, 0xe0, 0xf0] {
                for vector in vectors {
                    apic.set_tpr(tpr);
                    apic.self_ipi(vector);
                    let open = vector >> 4 > tpr >> 4;
                    let_in(open.into());
                    let (mode, count) = (apic.mode(), taken().count());
                    check_eq!(count, usize::from(open), "{mode:?}: {vector:#x} under TPR {tpr:#x}");
                    check_eq!(
                        apic.bit(Register::IRR, vector),
                        !open,
                        "{vector:#x} in IRR, TPR {tpr:#x}"
                    );
                    apic.set_tpr(0);
                    let_in((!open).into());
                    check_eq!(
                        taken().count(),
                        usize::from(!open),
                        "{vector:#x} after TPR {tpr:#x} fell"
                    );
                }
            }
        }
    }
);

test!(cr8_masks, "CR8 holds back interrupts as TPR does, and lets them in when it falls.", || {
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        for class in 0..16_u64 {
            check_ok!(reg::set_cr8(class));
            apic.self_ipi(VECTOR);
            let open = u64::from(VECTOR >> 4) > class;
            let_in(open.into());
            check_eq!(taken().count(), usize::from(open), "{VECTOR:#x} under CR8 {class}");
            check_ok!(reg::set_cr8(0));
            let_in((!open).into());
            check_eq!(taken().count(), usize::from(!open), "{VECTOR:#x} after CR8 {class} fell");
        }
    }
});

test!(highest_first, "Of several pending vectors the highest is taken first.", || {
    let vectors = [0x41, 0x9a, 0x33, 0xf3, 0x72, 0x71, 0x7f, 0x21, 0xe0];
    let sorted = [0xf3, 0xe0, 0x9a, 0x7f, 0x72, 0x71, 0x41, 0x33, 0x21];
    vectors.iter().for_each(|&vector| irq::handle(vector, note_and_eoi));
    for apic in modes() {
        vectors.iter().for_each(|&vector| apic.self_ipi(vector));
        check_taken(&sorted, "nine at once");
    }
});

test!(
    nested_by_priority,
    "In a handler with interrupts on, only a higher class gets through before EOI.",
    || {
        const OUTER: u8 = 0x64;
        const SAME_CLASS: u8 = 0x6f;
        const LOWER: u8 = 0x5f;
        const HIGHER: u8 = 0x70;
        irq::handle(OUTER, |frame| {
            note(frame);
            let apic = apic::local();
            [LOWER, SAME_CLASS, HIGHER].iter().for_each(|&vector| apic.self_ipi(vector));
            check_taken(&[OUTER, HIGHER], "before the EOI of 0x64");
            for vector in [LOWER, SAME_CLASS] {
                check!(apic.bit(Register::IRR, vector), "{vector:#x} is not pending in 0x64");
            }
            check!(apic.bit(Register::ISR, OUTER), "{OUTER:#x} is not in service in its handler");
            apic.eoi();
            check_taken(&[SAME_CLASS, LOWER], "after the EOI of 0x64");
        });
        [LOWER, SAME_CLASS, HIGHER].iter().for_each(|&vector| irq::handle(vector, note_and_eoi));
        for apic in modes() {
            apic.self_ipi(OUTER);
            check!(irq::wait_for(OUTER, 1, PATIENCE), "no self-IPI {OUTER:#x}");
            irq::reset();
        }
    }
);

test!(
    no_second_before_eoi,
    "Without EOI the same vector does not come again; with it, it does, once for all requests.",
    || {
        irq::handle(VECTOR, note);
        for apic in modes() {
            apic.self_ipi(VECTOR);
            check_taken(&[VECTOR], "the first");
            apic.self_ipi(VECTOR);
            apic.self_ipi(VECTOR);
            apic.self_ipi(VECTOR);
            check_taken(&[], "before EOI");
            check_eq!(bits(VECTOR), 3, "(ISR, IRR, TMR): one in service, one pending");
            apic.eoi();
            check_taken(&[VECTOR], "after EOI");
            apic.eoi();
            check_taken(&[], "after the second EOI");
            check_eq!(bits(VECTOR), 0, "(ISR, IRR, TMR) in the end");
        }
    }
);

test!(requests_collapse, "Requests on a vector that is pending already are one interrupt.", || {
    irq::handle(VECTOR, note_and_eoi);
    for apic in modes() {
        (0..5).for_each(|_| apic.self_ipi(VECTOR));
        check_taken(&[VECTOR], "five requests");
    }
});

test!(
    every_vector,
    "Each vector from 0x20 to 0xff comes by self-IPI, once, and no other with it.",
    || {
        (0x20..=0xff).for_each(|vector| irq::handle(vector, note_and_eoi));
        for apic in modes() {
            for vector in 0x20..=0xff_u8 {
                apic.self_ipi(vector);
                check!(irq::wait_for(vector, 1, PATIENCE), "vector {vector:#x} did not come");
                check_taken(&[vector], "self-IPI");
            }
            irq::reset();
        }
    }
);

test!(
    eoi_of_nothing,
    "EOI with nothing in service does nothing, to what is pending either.",
    || {
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            (0..3).for_each(|_| apic.eoi());
            apic.self_ipi(VECTOR);
            apic.eoi();
            check_eq!(bits(VECTOR), 2, "(ISR, IRR, TMR) of a pending vector after EOI");
            check_taken(&[VECTOR], "after EOI of nothing");
        }
    }
);

test!(
    software_disabled_takes_nothing,
    "A software-disabled APIC takes no fixed IPI, and takes them again when enabled.",
    || {
        // SDM volume 3, 12.4.7.2: what is in IRR and ISR is held; new ones are not accepted.
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            apic.disable();
            apic.send(apic::Delivery::Fixed(VECTOR), apic::Destination::Own);
            check_taken(&[], "while disabled");
            apic.enable();
            let_in(0);
            taken().for_each(|_| ());
            apic.self_ipi(VECTOR);
            check_taken(&[VECTOR], "once enabled");
        }
    }
);
