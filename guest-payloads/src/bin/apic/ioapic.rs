//! The I/O APIC, with lines that the test device drives.

use crate::{PATIENCE, SETTLE, let_in, modes, note, note_and_eoi, taken};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Mode, Register};
use payload_rt::ioapic::{self, LEVEL, MASKED, REMOTE_IRR};
use payload_rt::*;

const VECTOR: u8 = 0x75;
/// GSIs with nothing on them but the test device, whose numbers are the pins' too.
const LINES: [u8; 3] = [5, 10, 11];
const LINE: u8 = 11;

fn start() {
    testdev::require();
    ioapic::require();
    ioapic::mask_all();
    LINES.iter().for_each(|&line| testdev::set_line(line, false));
}

/// A redirection entry for this CPU.
fn to_me(vector: u8) -> u64 {
    ioapic::destination(apic::local().id() as u8) | u64::from(vector)
}

test!(
    ioapic_identity,
    "The I/O APIC has a version, 24 entries at least, and an identifier to write.",
    || {
        // 82093AA datasheet, 3.2.1 and 3.2.2.
        ioapic::require();
        let version = ioapic::read(ioapic::VERSION);
        check!((0x10..=0x2f).contains(&(version & 0xff)), "version register {version:#x}");
        check!(ioapic::entries() >= 24, "{} redirection entries", ioapic::entries());
        for id in [5, 10, 15, 0] {
            ioapic::write(ioapic::ID, id << 24);
            check_eq!(ioapic::read(ioapic::ID) >> 24 & 0xf, id, "identifier");
            check_eq!(
                ioapic::read(ioapic::VERSION),
                version,
                "version after a write of the identifier"
            );
        }
        ioapic::write(ioapic::VERSION, !version);
        check_eq!(ioapic::read(ioapic::VERSION), version, "version after a write to it");
        // The register select is a register itself.
        for register in [0_u32, 1, 0x10, 0x3f] {
            check_ok!(mem::write(ioapic::BASE, register));
            check_eq!(mem::read(ioapic::BASE), Ok(register), "I/O register select");
        }
    }
);

test!(ioapic_entries, "Each redirection entry keeps what can be written, and is its own.", || {
    // 82093AA datasheet, 3.2.4. Delivery status and remote IRR are read-only.
    ioapic::require();
    ioapic::mask_all();
    const KEPT: u64 = 0xff00_0000_0001_afff;
    let pins = 0..ioapic::entries();
    for pattern in [0xa500_0000_0001_2075, 0x5a00_0000_0001_08fe, 0xff00_0000_0001_ffff, MASKED] {
        for pin in pins.clone() {
            // The vector tells the entries apart.
            ioapic::set_entry(pin, pattern & !0xff | u64::from(0x40 + pin));
        }
        for pin in pins.clone() {
            let wanted = pattern & KEPT & !0xff | u64::from(0x40 + pin);
            check_eq!(ioapic::entry(pin) & KEPT, wanted, "entry {pin} after {pattern:#x}");
            let read_only = ioapic::entry(pin) & (REMOTE_IRR | ioapic::DELIVERY_STATUS);
            check_eq!(read_only, 0, "read-only bits of entry {pin} after {pattern:#x}");
        }
    }
    ioapic::mask_all();
});

test!(
    edge,
    "An edge-triggered line interrupts once when it rises, and not while it is high.",
    || {
        start();
        irq::handle(VECTOR, note_and_eoi);
        for apic in modes() {
            ioapic::set_entry(LINE, to_me(VECTOR));
            let mode = apic.mode();
            for round in 0..3 {
                testdev::set_line(LINE, true);
                let_in(1);
                check_eq!(
                    taken().count(),
                    1,
                    "{mode:?}, round {round}: interrupts of a rising line"
                );
                check_eq!(ioapic::entry(LINE) & REMOTE_IRR, 0, "remote IRR of an edge");
                testdev::set_line(LINE, true);
                let_in(0);
                check_eq!(
                    taken().count(),
                    0,
                    "{mode:?}, round {round}: interrupts of a line still high"
                );
                testdev::set_line(LINE, false);
                let_in(0);
                check_eq!(
                    taken().count(),
                    0,
                    "{mode:?}, round {round}: interrupts of a falling line"
                );
            }
            check!(!apic.bit(Register::TMR, VECTOR), "TMR says level for an edge");
        }
    }
);

test!(edges_while_pending, "Edges on a vector that is pending are one interrupt.", || {
    start();
    irq::handle(VECTOR, note_and_eoi);
    apic::local().enable();
    ioapic::set_entry(LINE, to_me(VECTOR));
    (0..4).for_each(|_| testdev::pulse(LINE));
    let_in(1);
    check_eq!(taken().count(), 1, "interrupts of four edges with interrupts off");
});

test!(masked_edge, "An edge on a masked pin is lost.", || {
    // 82093AA datasheet, 3.2.4, interrupt mask: not delivered nor held pending.
    start();
    irq::handle(VECTOR, note_and_eoi);
    apic::local().enable();
    ioapic::set_entry(LINE, to_me(VECTOR) | MASKED);
    testdev::pulse(LINE);
    let_in(0);
    check_eq!(taken().count(), 0, "interrupts of a masked pin");
    ioapic::set_entry(LINE, to_me(VECTOR));
    let_in(0);
    check_eq!(taken().count(), 0, "interrupts of an edge that came while masked");
    testdev::pulse(LINE);
    let_in(1);
    check_eq!(taken().count(), 1, "interrupts of an edge after that");
});

/// The redirection entry as the handler found it.
static ENTRY: AtomicU64 = AtomicU64::new(0);

test!(
    level,
    "A level-triggered line interrupts once while it is served: remote IRR from delivery to EOI.",
    || {
        start();
        irq::handle(VECTOR, |frame| {
            note(frame);
            ENTRY.store(ioapic::entry(LINE), SeqCst);
            check!(apic::local().bit(Register::TMR, VECTOR), "TMR says edge for a level");
            testdev::set_line(LINE, false);
            let entry = ioapic::entry(LINE);
            check!(entry & REMOTE_IRR != 0, "the fall of the line cleared remote IRR: {entry:#x}");
            apic::eoi();
        });
        for apic in modes() {
            let mode = apic.mode();
            ioapic::set_entry(LINE, to_me(VECTOR) | LEVEL);
            check_eq!(ioapic::entry(LINE) & REMOTE_IRR, 0, "{mode:?}: remote IRR at the start");
            for round in 0..3 {
                testdev::set_line(LINE, true);
                check!(irq::wait_for(VECTOR, 1, PATIENCE), "{mode:?}: no interrupt of a high line");
                let_in(1);
                check_eq!(taken().count(), 1, "{mode:?}, round {round}: interrupts");
                check!(ENTRY.load(SeqCst) & REMOTE_IRR != 0, "remote IRR is clear in the handler");
                check_eq!(ioapic::entry(LINE) & REMOTE_IRR, 0, "{mode:?}: remote IRR after EOI");
                irq::reset();
            }
        }
    }
);

test!(
    level_still_high,
    "A line that is still high at EOI interrupts again, until it falls.",
    || {
        start();
        irq::handle(VECTOR, |frame| {
            note(frame);
            if irq::count(VECTOR) == 5 {
                testdev::set_line(LINE, false);
            }
            apic::eoi();
        });
        for apic in modes() {
            irq::reset();
            ioapic::set_entry(LINE, to_me(VECTOR) | LEVEL);
            testdev::set_line(LINE, true);
            check!(irq::wait_for(VECTOR, 5, PATIENCE), "{} interrupts of 5", irq::count(VECTOR));
            irq::let_in(2 * SETTLE);
            check_eq!(
                irq::count(VECTOR),
                5,
                "{:?}: interrupts of a line held high for 5",
                apic.mode()
            );
            taken().for_each(|_| ());
        }
    }
);

test!(
    level_mask,
    "A high line on a masked pin waits, and interrupts when the pin is unmasked.",
    || {
        start();
        irq::handle(VECTOR, |frame| {
            note(frame);
            testdev::set_line(LINE, false);
            apic::eoi();
        });
        apic::local().enable();
        ioapic::set_entry(LINE, to_me(VECTOR) | LEVEL | MASKED);
        testdev::set_line(LINE, true);
        let_in(0);
        check_eq!(taken().count(), 0, "interrupts of a masked pin");
        check_eq!(ioapic::entry(LINE) & REMOTE_IRR, 0, "remote IRR of a masked pin");
        ioapic::set_entry(LINE, to_me(VECTOR) | LEVEL);
        let_in(1);
        check!(taken().count() >= 1, "no interrupt once the pin was unmasked with its line high");
        // High and low again while masked: nothing is left of it. Some hosts send the first request
        // twice, and the second time late, so this one has a vector of its own.
        irq::handle(VECTOR + 1, note_and_eoi);
        ioapic::set_entry(LINE, to_me(VECTOR + 1) | LEVEL | MASKED);
        testdev::pulse(LINE);
        ioapic::set_entry(LINE, to_me(VECTOR + 1) | LEVEL);
        let_in(0);
        let fallen = taken().filter(|vector| *vector == VECTOR + 1).count();
        check_eq!(fallen, 0, "interrupts of a line that fell before the pin was unmasked");
    }
);

test!(pins_are_apart, "Each line comes on its own pin's vector.", || {
    start();
    apic::local().enable();
    for (i, &line) in LINES.iter().enumerate() {
        irq::handle(VECTOR + i as u8, note_and_eoi);
        ioapic::set_entry(line, to_me(VECTOR + i as u8));
    }
    for (i, &line) in LINES.iter().enumerate() {
        testdev::pulse(line);
        let_in(1);
        let mut came = taken();
        check_eq!(came.next(), Some(VECTOR + i as u8), "vector of line {line}");
        check_eq!(came.next(), None, "a second interrupt of line {line}");
    }
});

test!(nmi_pin, "A pin whose delivery mode is NMI gives NMIs, with interrupts off too.", || {
    start();
    irq::handle(trap::NMI, |_| {});
    for apic in modes() {
        irq::reset();
        ioapic::set_entry(LINE, to_me(0) | ioapic::NMI);
        for round in 1..=2 {
            testdev::pulse(LINE);
            let came = time::wait_until(PATIENCE, || irq::count(trap::NMI) == round);
            check!(came, "{:?}: no NMI of edge {round}", apic.mode());
        }
    }
});

test!(
    logical_pin,
    "A logical destination of a pin reaches the CPU whose bit it has, and no other.",
    || {
        start();
        irq::handle(VECTOR, note_and_eoi);
        let apic = apic::set_mode(Mode::XApic);
        apic.enable();
        apic.write(Register::DFR, 0xffff_ffff);
        apic.write(Register::LDR, 4 << 24);
        for (mask, wanted) in [(4, 1), (0xff, 1), (6, 1), (2, 0), (0xfb, 0)] {
            for delivery in [0, ioapic::LOWEST_PRIORITY] {
                let entry =
                    ioapic::destination(mask) | ioapic::LOGICAL | delivery | u64::from(VECTOR);
                ioapic::set_entry(LINE, entry);
                testdev::pulse(LINE);
                let_in(wanted);
                check_eq!(taken().count(), wanted, "interrupts with entry {entry:#x} and LDR 0x04");
            }
        }
    }
);

test!(each_cpu, "A pin's interrupt goes to the CPU that its entry names.", || {
    start();
    irq::count_only(VECTOR);
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    for to in (0..cpus).chain([0, cpus - 1]) {
        let id = ioapic::destination(smp::apic_id(to) as u8);
        ioapic::set_entry(LINE, id | u64::from(VECTOR));
        let count = |cpu| irq::count_on(cpu, VECTOR);
        let before = (0..cpus).map(count).sum::<u32>();
        let mine = count(to);
        testdev::pulse(LINE);
        let came = time::wait_until(PATIENCE, || {
            irq::let_in(1);
            count(to) == mine + 1
        });
        check!(came, "no interrupt at cpu {to}");
        irq::let_in(SETTLE);
        check_eq!(
            (0..cpus).map(count).sum::<u32>(),
            before + 1,
            "interrupts at all, meant for {to}"
        );
    }
});
