//! The PICs, through LINT0 as ExtINT, with lines that the test device drives.

use crate::modes;
use payload_rt::apic::{self, Register};
use payload_rt::*;

/// Vectors of IRQ 0 to 15.
const BASE: u8 = 0x60;
/// How long an interrupt may take that waits already, in microseconds.
const AT_ONCE: u64 = 200_000;
/// One line at each controller with nothing on it but the test device.
const LINES: [u8; 2] = [5, 11];

fn note_and_end(frame: &mut trap::Frame) {
    crate::note(frame);
    pic::eoi(frame.vector as u8 - BASE);
}

/// Both controllers initialised, LINT0 as ExtINT, lines low.
fn start() {
    testdev::require();
    pic::require();
    ioapic::require();
    ioapic::mask_all();
    LINES.iter().for_each(|&line| testdev::set_line(line, false));
    (BASE..BASE + 16).for_each(|vector| irq::handle(vector, note_and_end));
    apic::local().enable();
    apic::local().write(Register::LVT_LINT0, 7 << 8);
    pic::init(BASE);
}

fn check_taken(irqs: &[u8], what: &str) {
    check_taken_within(crate::PATIENCE, irqs, what);
}

fn check_taken_within(patience: u64, irqs: &[u8], what: &str) {
    let mut vectors = [0; 16];
    vectors.iter_mut().zip(irqs).for_each(|(vector, irq)| *vector = BASE + irq);
    crate::check_taken_within(patience, &vectors[..irqs.len()], what);
}

test!(pic_masks, "The PICs' mask registers read back, each bit its own.", || {
    start();
    for mask in (0..16).map(|bit| 1 << bit).chain([0, 0xffff, 0xa5a5, 0x5a5a]) {
        pic::set_mask(mask);
        check_eq!(pic::mask(), mask, "masks of both PICs");
    }
    pic::set_mask(0xffff);
    // ICW1 clears the mask; the runtime's initialisation then writes it.
    check_eq!((pic::requests() & 0xfc20, pic::in_service()), (0, 0), "(requests, in service)");
});

test!(
    pic_interrupts,
    "A rising line at either PIC comes on its vector, by way of the cascade.",
    || {
        start();
        for apic in modes() {
            apic.write(Register::LVT_LINT0, 7 << 8);
            for line in LINES {
                pic::set_mask(!(1 << line | 1 << 2));
                testdev::pulse(line);
                check_taken(&[line], "a pulse");
                testdev::set_line(line, true);
                check_taken(&[line], "a rising line");
                check_taken(&[], "a line still high, edge-triggered");
                testdev::set_line(line, false);
                check_taken(&[], "a falling line");
                check_eq!(pic::in_service(), 0, "in service after the end of interrupt");
            }
        }
    }
);

test!(pic_mask_holds, "A masked request is kept, and comes when it is unmasked.", || {
    // 8259A datasheet: the mask register acts on the output, not on the request register.
    start();
    for line in LINES {
        pic::set_mask(0xffff);
        testdev::set_line(line, true);
        check_taken(&[], "masked");
        check!(pic::requests() & 1 << line != 0, "IRQ {line} is not in {:#x}", pic::requests());
        pic::set_mask(!(1 << line | 1 << 2));
        check_taken(&[line], "unmasked");
        check_eq!(pic::requests() & 1 << line, 0, "request of IRQ {line} after it was taken");
        testdev::set_line(line, false);
    }
});

test!(pic_cascade_mask, "With IRQ 2 masked at the first PIC nothing comes of the second.", || {
    start();
    pic::set_mask(!(1 << 11));
    testdev::pulse(11);
    check_taken(&[], "with the cascade masked");
    pic::set_mask(!(1 << 11 | 1 << 2));
    check_taken(&[11], "with the cascade open");
});

test!(
    pic_priority,
    "Of two pending requests the lower IRQ is first, the second PIC's at IRQ 2's place.",
    || {
        start();
        pic::set_mask(!(1 << 5 | 1 << 11 | 1 << 10 | 1 << 2));
        for line in [5, 11, 10] {
            testdev::pulse(line);
        }
        check_taken(&[10, 11, 5], "three at once");
    }
);

test!(
    pic_in_service,
    "Until its end of interrupt an IRQ holds back those below it, and itself.",
    || {
        start();
        irq::handle(BASE + 10, |frame| {
            crate::note(frame);
            if irq::count(BASE + 10) == 1 {
                check_eq!(
                    pic::in_service(),
                    1 << 10 | 1 << 2,
                    "in service in the handler of IRQ 10"
                );
                [11, 5, 10].into_iter().for_each(testdev::pulse);
                check_taken(&[10], "before the end of IRQ 10");
            }
            pic::eoi(10);
        });
        pic::set_mask(!(1 << 5 | 1 << 11 | 1 << 10 | 1 << 2));
        testdev::pulse(10);
        check_taken(&[10, 11, 5], "after the end of IRQ 10");
    }
);

test!(
    lint0_masked,
    "With LINT0 masked, or the APIC software-disabled, ExtINT does not get through.",
    || {
        start();
        pic::set_mask(!(1 << 5));
        for apic in modes() {
            apic.write(Register::LVT_LINT0, apic::LVT_MASKED | 7 << 8);
            testdev::pulse(5);
            check_taken(&[], "with LINT0 masked");
            apic.write(Register::LVT_LINT0, 7 << 8);
            // It waits already: it comes at once, or with the next event of another kind.
            check_taken_within(AT_ONCE, &[5], "with LINT0 unmasked");
        }
    }
);

test!(extint_ignores_tpr, "ExtINT gets through whatever the task priority is.", || {
    // SDM volume 3, 12.8.3: delivery modes other than fixed bypass the priorities.
    start();
    pic::set_mask(!(1 << 5));
    for apic in modes() {
        apic.write(Register::LVT_LINT0, 7 << 8);
        apic.set_tpr(0xff);
        testdev::pulse(5);
        check_taken(&[5], "with TPR 0xff");
        apic.set_tpr(0);
    }
});

test!(
    pic_without_apic,
    "With the local APIC off, the PIC's interrupt goes to the CPU by itself.",
    || {
        // SDM volume 3, 12.4.3: LINT0 and LINT1 are INTR and NMI then.
        start();
        pic::set_mask(!(1 << 5));
        apic::set_mode(apic::Mode::Disabled);
        testdev::pulse(5);
        check_taken(&[5], "with the local APIC disabled");
        apic::set_mode(apic::Mode::XApic);
    }
);
