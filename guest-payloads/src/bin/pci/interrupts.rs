//! Interrupts by pin (PCI Local Bus Specification 3.0, 2.2.6, 6.2.2 to 6.2.4) and by message (6.8).

use super::{EDU, edu, function, read, write};
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use payload_rt::pci::Function;
use payload_rt::*;

const VECTOR: u8 = 0x61;
/// How long an interrupt may take, in microseconds.
const PATIENCE: u64 = 1_000_000;
/// How long is waited for one that must not come.
const SETTLE: u64 = 100;

/// edu's registers, for the handler.
static REGISTERS: AtomicU64 = AtomicU64::new(0);
/// The function, for the handler.
static FUNCTION: AtomicU8 = AtomicU8::new(0);

/// The function, with interrupts of its pin on [`VECTOR`], whose handler acknowledges every cause.
fn by_pin() -> (Function, u64) {
    ioapic::require();
    ioapic::mask_all();
    let device = function(EDU);
    let registers = device.bar(0);
    REGISTERS.store(registers, SeqCst);
    apic::local().enable();
    irq::handle(VECTOR, |_| {
        let registers = REGISTERS.load(SeqCst);
        write(registers + edu::ACKNOWLEDGE, u32::MAX);
        apic::eoi();
    });
    let to_me = ioapic::destination(apic::local().id() as u8);
    let line = device.read8(pci::LINE);
    check!(line < ioapic::entries(), "interrupt line {line}");
    ioapic::set_entry(line, to_me | ioapic::LEVEL | u64::from(VECTOR));
    (device, registers)
}

test!(
    pin,
    "A function's pin interrupts at its line, level-triggered, as long as it is asserted.",
    || {
        let (device, registers) = by_pin();
        check_eq!(device.read8(pci::LINE + 1), 1, "the pin is INTA#");
        // The handler holds the pin where it comes from.
        FUNCTION.store(device.0, SeqCst);
        irq::handle(VECTOR, |_| {
            Function(FUNCTION.load(SeqCst)).command(pci::INTX_DISABLE, 0);
            apic::eoi();
        });
        for cause in 1..4 {
            write(registers + edu::RAISE, cause);
            check!(irq::wait_for(VECTOR, cause, PATIENCE), "interrupt {cause} did not come");
            check_eq!(read(registers + edu::CAUSES), cause, "causes");
            write(registers + edu::ACKNOWLEDGE, cause);
            device.command(0, pci::INTX_DISABLE);
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), cause, "interrupts after the acknowledgement");
        }
        // Let go without an acknowledgement, it comes again.
        write(registers + edu::RAISE, 1);
        for count in 4..7 {
            check!(irq::wait_for(VECTOR, count, PATIENCE), "interrupt {count} did not come");
            device.command(0, pci::INTX_DISABLE);
        }
    }
);

test!(pin_acknowledged, "A handler that acknowledges the cause is called once for it.", || {
    let (_, registers) = by_pin();
    for cause in 1..4 {
        write(registers + edu::RAISE, cause);
        check!(irq::wait_for(VECTOR, cause, PATIENCE), "interrupt {cause} did not come");
        check_eq!(read(registers + edu::CAUSES), 0, "causes after the handler");
        irq::let_in(SETTLE);
        check_eq!(irq::count(VECTOR), cause, "interrupts after the acknowledgement");
    }
});

test!(
    pin_disabled,
    "The interrupt disable bit holds the pin, and the status tells it all the same.",
    || {
        let (device, registers) = by_pin();
        check_eq!(device.read16(pci::STATUS) & pci::INTERRUPT, 0, "status before");
        device.command(pci::INTX_DISABLE, 0);
        write(registers + edu::RAISE, 1);
        irq::let_in(SETTLE);
        check_eq!(irq::count(VECTOR), 0, "interrupts while disabled");
        check_eq!(device.read16(pci::STATUS) & pci::INTERRUPT, pci::INTERRUPT, "status");
        device.command(0, pci::INTX_DISABLE);
        check!(irq::wait_for(VECTOR, 1, PATIENCE), "no interrupt after it is enabled");
        check_eq!(device.read16(pci::STATUS) & pci::INTERRUPT, 0, "status after");
    }
);

/// The function with messages of [`VECTOR`] to this CPU, and where its capability stands.
fn by_message() -> (Function, u64, u8) {
    let device = function(EDU);
    let registers = device.bar(0);
    apic::local().enable();
    irq::count_only(VECTOR);
    let Some(at) = device.capability(pci::MSI) else { fail!("no MSI capability") };
    // 64-bit addresses and masks, one message (6.8.1.3).
    check_eq!(device.read16(at + 2) & 0x18e, 0x180, "message control");
    let id = apic::local().id() & 0xff;
    device.write32(at + 4, 0xfee0_0000 | id << 12);
    device.write32(at + 8, 0);
    device.write16(at + 12, VECTOR.into());
    device.command(pci::MASTER, 0);
    device.write16(at + 2, 1);
    (device, registers, at)
}

test!(message, "With messages each cause interrupts once, and the pin is silent.", || {
    let (device, registers, at) = by_message();
    ioapic::mask_all();
    let line = device.read8(pci::LINE);
    irq::count_only(VECTOR + 1);
    let to_me = ioapic::destination(apic::local().id() as u8);
    ioapic::set_entry(line, to_me | ioapic::LEVEL | u64::from(VECTOR + 1));
    for n in 1..4 {
        write(registers + edu::RAISE, 1 << n);
        check!(irq::wait_for(VECTOR, n, PATIENCE), "message {n} did not come");
    }
    irq::let_in(SETTLE);
    check_eq!(
        (irq::count(VECTOR), irq::count(VECTOR + 1)),
        (3, 0),
        "messages, interrupts of the pin"
    );
    check_eq!(device.read16(pci::STATUS) & pci::INTERRUPT, 0, "status while messages are used");
    // Without messages the pin tells what is not acknowledged.
    device.write16(at + 2, 0);
    reg::sti();
    let came = time::wait_until(PATIENCE, || irq::count(VECTOR + 1) > 0);
    write(registers + edu::ACKNOWLEDGE, u32::MAX);
    reg::cli();
    check!(came, "no interrupt of the pin without messages");
});

test!(message_masked, "A masked message is pending, and is sent when it is unmasked.", || {
    let (device, registers, at) = by_message();
    device.write32(at + 16, 1);
    write(registers + edu::RAISE, 1);
    write(registers + edu::RAISE, 2);
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 0, "messages while masked");
    check_eq!(device.read32(at + 20), 1, "pending");
    device.write32(at + 20, 0);
    check_eq!(device.read32(at + 20), 1, "pending cannot be written");
    device.write32(at + 16, 0);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "no message after the mask");
    irq::let_in(SETTLE);
    check_eq!(
        (irq::count(VECTOR), device.read32(at + 20)),
        (1, 0),
        "messages, and what is pending"
    );
});

test!(message_of_no_master, "What is no bus master sends no message until it is one.", || {
    let (device, registers, _) = by_message();
    device.command(0, pci::MASTER);
    write(registers + edu::RAISE, 1);
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 0, "messages of what is no bus master");
    device.command(pci::MASTER, 0);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "no message of a bus master");
});

test!(
    message_to_memory,
    "A message is a dword, and goes to memory where its address is memory.",
    || {
        let (device, registers, at) = by_message();
        let mut frame = frames::alloc();
        frame.bytes().fill(0xee);
        let address = frame.address();
        check!(address < 1 << 32, "a frame above 4 GiB");
        device.write32(at + 4, address as u32 + 8);
        device.write16(at + 12, 0x1234);
        write(registers + edu::RAISE, 1);
        let words = [4, 8, 12].map(|offset| read(address + offset));
        check_eq!(words, [0xeeee_eeee, 0x1234, 0xeeee_eeee]);
        check_eq!(irq::count(VECTOR), 0, "interrupts");
        frame.free();
    }
);

test!(message_to_each_cpu, "A message goes to the CPU that its address names.", || {
    let (device, registers, at) = by_message();
    for cpu in 0..smp::start() {
        device.write32(at + 4, 0xfee0_0000 | smp::apic_id(cpu) << 12);
        let before = irq::count_on(cpu, VECTOR);
        write(registers + edu::RAISE, 1);
        reg::sti();
        let came = time::wait_until(PATIENCE, || irq::count_on(cpu, VECTOR) > before);
        reg::cli();
        check!(came, "no message at CPU {cpu}");
    }
});
