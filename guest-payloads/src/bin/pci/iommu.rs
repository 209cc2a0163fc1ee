//! The IOMMU: Intel Virtualization Technology for Directed I/O specification, revision 3.3.

use super::{EDU, edu, function, read, write};
use payload_rt::pci::Function;
use payload_rt::*;

const PATIENCE: u64 = 1_000_000;
const SETTLE: u64 = 100;
const VECTOR: u8 = 0x61;

/// Its registers (section 11.4).
const BASE: u64 = 0xfed9_0000;
const CAPABILITY: u64 = BASE + 0x08;
const EXTENDED: u64 = BASE + 0x10;
const COMMAND: u64 = BASE + 0x18;
const STATUS: u64 = BASE + 0x1c;
const ROOT: u64 = BASE + 0x20;
const FAULTS: u64 = BASE + 0x34;
const QUEUE_HEAD: u64 = BASE + 0x80;
const QUEUE_TAIL: u64 = BASE + 0x88;
const QUEUE: u64 = BASE + 0x90;
const INTERRUPTS: u64 = BASE + 0xb8;
/// Bits of command and status.
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUED: u32 = 1 << 26;
const REMAPPING: u32 = 1 << 25;
const SET_TABLE: u32 = 1 << 24;
/// Rights of an entry.
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;

fn read64(address: u64) -> u64 {
    check_ok!(mem::read(address))
}

fn write64(address: u64, value: u64) {
    check_ok!(mem::write(address, value));
}

/// Switches bits of the global status on, and waits for them (11.4.4.1).
fn command(on: u32) {
    let levels = read(STATUS) & (TRANSLATION | QUEUED | REMAPPING);
    write(COMMAND, levels | on);
    let done = time::wait_until(PATIENCE, || read(STATUS) & on == on);
    check!(done, "status {:#x} after the command {on:#x}", read(STATUS));
}

/// A page of zeroes that the unit reads.
fn page() -> u64 {
    let mut frame = frames::alloc();
    frame.bytes().fill(0);
    frame.address()
}

/// edu as a bus master whose bus page N is `pages[N]`, address and rights, by three levels.
fn translated(pages: &[(u64, u64)]) -> (Function, u64) {
    let device = function(EDU);
    device.command(pci::MASTER, 0);
    let [root, contexts, top, middle, last] = [0; 5].map(|_| page());
    write64(root, contexts | 1);
    let entry = contexts + 16 * u64::from(device.0);
    write64(entry, top | 1);
    // 39 bits, domain 5.
    write64(entry + 8, 1 | 5 << 8);
    write64(top, middle | READABLE | WRITABLE);
    write64(middle, last | READABLE | WRITABLE);
    for (at, (page, rights)) in (last..).step_by(8).zip(pages) {
        write64(at, page | rights);
    }
    write64(ROOT, root);
    command(SET_ROOT);
    command(TRANSLATION);
    (device, device.bar(0))
}

/// Moves 4 bytes between edu's buffer and a bus address.
fn transfer(registers: u64, address: u64, to_memory: bool) {
    let (source, destination) =
        if to_memory { (edu::BUFFER, address) } else { (address, edu::BUFFER) };
    write64(registers + edu::SOURCE, source);
    write64(registers + edu::DESTINATION, destination);
    write64(registers + edu::LENGTH, 4);
    write(registers + edu::COMMAND, 1 | if to_memory { 2 } else { 0 });
    let done = time::wait_until(PATIENCE, || read(registers + edu::COMMAND) & 1 == 0);
    check!(done, "a transfer takes more than a second");
}

test!(
    iommu_capabilities,
    "The IOMMU says what it can: levels, page sizes, queue, interrupts.",
    || {
        let (capability, extended) = (read64(CAPABILITY), read64(EXTENDED));
        check_eq!(capability >> 8 & 0x1f & 0b110, 0b110, "3 and 4 levels");
        check_eq!(capability >> 34 & 3, 3, "pages of 2 MiB and 1 GiB");
        check_eq!(extended & 0b1010, 0b1010, "queued invalidation and interrupt remapping");
        check_eq!((read(STATUS), read(FAULTS)), (0, 0), "status and faults after power-on");
    }
);

test!(iommu_translates, "A transfer goes where the tables lead, and as far as they allow.", || {
    let pages = [0; 3].map(|_| page());
    let rights = [READABLE | WRITABLE, READABLE, WRITABLE];
    let mapped = [0, 1, 2].map(|i: usize| (pages[i], rights[i]));
    let (_, registers) = translated(&mapped);
    write(pages[0] + 0x10, 0x1234_5678);
    transfer(registers, 0x10, false);
    transfer(registers, 0x20, true);
    check_eq!(read(pages[0] + 0x20), 0x1234_5678, "read and written through page 0");
    transfer(registers, 0x2000, true);
    check_eq!(read(pages[2]), 0x1234_5678, "written through page 2");
    check_eq!(read(FAULTS), 0, "faults");
    transfer(registers, 0x1000, true);
    check_eq!(read(pages[1]), 0, "written through what is read-only");
    check_eq!(read(FAULTS) & 2, 2, "a fault is pending");
});

test!(iommu_fault, "A fault has its reason, its requester and its address on record.", || {
    let (device, registers) = translated(&[(page(), READABLE)]);
    let record = BASE + 16 * (read64(CAPABILITY) >> 24 & 0x3ff);
    for (address, to_memory, reason) in [(0x10, true, 5), (0x3abc, false, 6), (0xfff_f123, true, 5)]
    {
        transfer(registers, address, to_memory);
        check_eq!(read(FAULTS), 2, "a fault is pending");
        let (low, high) = (read64(record), read64(record + 8));
        check_eq!(high >> 63, 1, "it is recorded");
        check_eq!(high >> 62 & 1, u64::from(!to_memory), "type of the request at {address:#x}");
        check_eq!(high >> 32 & 0xff, reason, "reason at {address:#x}");
        check_eq!(high & 0xffff, device.0.into(), "requester");
        check_eq!(low, address & !0xfff, "page");
        write64(record + 8, 1 << 63);
        check_eq!(read(FAULTS), 0, "acknowledged");
    }
});

test!(
    iommu_queue,
    "The invalidation queue runs to its tail, and a wait descriptor writes its word.",
    || {
        let (queue, status) = (page(), page());
        // 6.5.2: context cache, IOTLB, interrupt entries, and a wait with a status write.
        let words = [1 | 1 << 4, 0, 2 | 1 << 4, 0, 4, 0, 5 | 1 << 5 | 0x5a5a << 32, status + 8];
        for (at, word) in (queue..).step_by(8).zip(words) {
            write64(at, word);
        }
        write64(QUEUE, queue);
        write64(QUEUE_TAIL, 0);
        command(QUEUED);
        write64(QUEUE_TAIL, 0x40);
        let done = time::wait_until(PATIENCE, || read(status + 8) == 0x5a5a);
        check!(done, "status {:#x}, head {:#x}", read(status + 8), read64(QUEUE_HEAD));
        check_eq!((read64(QUEUE_HEAD), read(FAULTS)), (0x40, 0), "head and faults");
        // A descriptor of no type (6.5.2.10).
        write64(queue + 0x40, 0xf);
        write64(QUEUE_TAIL, 0x50);
        check_eq!(
            (read64(QUEUE_HEAD), read(FAULTS)),
            (0x40, 0x10),
            "head and faults at a wrong one"
        );
    }
);

/// An interrupt table of 256 entries, of which entry 3 is this (9.10).
fn remapped(low: u64, high: u64) {
    let table = page();
    write64(table + 16 * 3, low);
    write64(table + 16 * 3 + 8, high);
    write64(INTERRUPTS, table | 7);
    command(SET_TABLE);
    command(REMAPPING);
}

/// An entry for [`VECTOR`] at this CPU.
fn entry() -> u64 {
    1 | u64::from(VECTOR) << 16 | u64::from(apic::local().id() & 0xff) << 40
}

/// edu with messages to entry `index`.
fn by_message(index: u32) -> (Function, u64) {
    let device = function(EDU);
    apic::local().enable();
    irq::count_only(VECTOR);
    let Some(at) = device.capability(pci::MSI) else { fail!("no MSI capability") };
    device.write32(at + 4, 0xfee0_0010 | index << 5);
    device.write32(at + 8, 0);
    device.write16(at + 12, 0);
    device.command(pci::MASTER, 0);
    device.write16(at + 2, 1);
    (device, device.bar(0))
}

test!(
    iommu_message,
    "A message becomes the interrupt that its entry describes, for its requester only.",
    || {
        let (device, registers) = by_message(3);
        // The source is verified (9.10: SVT 1).
        remapped(entry(), u64::from(device.0) | 1 << 18);
        for count in 1..4 {
            write(registers + edu::RAISE, 1);
            check!(irq::wait_for(VECTOR, count, PATIENCE), "message {count} did not come");
        }
        check_eq!(read(FAULTS), 0, "faults");
        remapped(entry(), u64::from(device.0 ^ 1) | 1 << 18);
        write(registers + edu::RAISE, 1);
        irq::let_in(SETTLE);
        check_eq!(
            (irq::count(VECTOR), read(FAULTS)),
            (3, 2),
            "interrupts, faults for another requester"
        );
    }
);

test!(
    iommu_message_refused,
    "What has no entry, or is not of the remappable format, does not interrupt.",
    || {
        let (device, registers) = by_message(2);
        remapped(entry(), 0);
        let record = BASE + 16 * (read64(CAPABILITY) >> 24 & 0x3ff);
        let Some(at) = device.capability(pci::MSI) else { fail!("no MSI capability") };
        let id = apic::local().id() & 0xff;
        for (address, reason) in
            [(0xfee0_0050, 0x22), (0xfee0_2010, 0x21), (0xfee0_0000 | id << 12, 0x25)]
        {
            device.write32(at + 4, address);
            device.write16(at + 12, VECTOR.into());
            write(registers + edu::RAISE, 1);
            irq::let_in(SETTLE);
            check_eq!(irq::count(VECTOR), 0, "interrupts by {address:#x}");
            check_eq!(read64(record + 8) >> 32 & 0xff, reason, "reason for {address:#x}");
            write64(record + 8, 1 << 63);
        }
    }
);

test!(
    iommu_pin,
    "A line through the I/O APIC becomes the interrupt that its entry describes.",
    || {
        ioapic::require();
        ioapic::mask_all();
        let device = function(EDU);
        let registers = device.bar(0);
        apic::local().enable();
        irq::count_only(VECTOR);
        remapped(entry(), 0);
        // Remappable format in the redirection entry (5.1.5.1): index 3, edge.
        ioapic::set_entry(device.read8(pci::LINE), 3 << 49 | 1 << 48 | u64::from(VECTOR));
        for count in 1..4 {
            write(registers + edu::RAISE, 1);
            check!(irq::wait_for(VECTOR, count, PATIENCE), "interrupt {count} did not come");
            write(registers + edu::ACKNOWLEDGE, 1);
        }
        check_eq!(read(FAULTS), 0, "faults");
    }
);
