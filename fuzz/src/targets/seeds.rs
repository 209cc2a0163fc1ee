//! Sessions that a driver would have, as inputs to begin with: what takes tables in memory and registers
//! that agree with each other, chance alone does not put together in a minute.

use vmm::access::{Access, Size, Space};
use vmm::chips::ioapic;
use vmm::chips::pci::edu::{self, reg as dma};
use vmm::chips::pci::vtd::{self, reg, status};
use vmm::script::{BoardSpec, Op, Script};

use super::pins;
use crate::generators;

/// Where the edu device's registers are, and its function's number.
const EDU: u64 = 0xe000_0000;
const SLOT: u64 = 3 << 3;

/// The input for these operations; none of them is input from the host, so no device has to be known.
fn input(kind: &str, ops: impl IntoIterator<Item = Op>) -> Vec<u8> {
    let spec = BoardSpec { kind: kind.to_owned().into(), ..BoardSpec::default() };
    generators::encode(&Script::new(spec, ops), &[])
}

fn write4(addr: u64, value: u64) -> Op {
    Op::io(Access::write(Space::Mmio, addr, Size::B4, value))
}

fn write8(addr: u64, value: u64) -> Op {
    Op::io(Access::write(Space::Mmio, addr, Size::B8, value))
}

fn read4(addr: u64) -> Op {
    Op::io(Access::read(Space::Mmio, addr, Size::B4))
}

fn out4(port: u64, value: u64) -> Op {
    Op::io(Access::write(Space::Port, port, Size::B4, value))
}

fn words(addr: u64, words: &[u64]) -> Op {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    Op::Ram { addr, bytes, after: 0 }
}

/// A write to the configuration space of the function in slot 3.
fn config(offset: u64, value: u64) -> [Op; 2] {
    [out4(0xcf8, 1 << 31 | SLOT << 8 | offset), out4(0xcfc, value)]
}

/// Memory decoded, and a bus master (PCI 3.0, 6.2.2).
fn master() -> Vec<Op> {
    config(4, 6).into()
}

/// Messages: address, data, and that they are used (PCI 3.0, 6.8.1).
fn messages(address: u64, data: u64) -> Vec<Op> {
    let parts = [config(0x44, address), config(0x48, 0), config(0x4c, data), config(0x40, 1 << 16)];
    parts.concat()
}

/// A transfer of 16 bytes between memory and the engine's buffer, until it is over.
fn transfer(address: u64, to_memory: bool) -> Vec<Op> {
    let (from, to, command) =
        if to_memory { (edu::BUFFER, address, 7) } else { (address, edu::BUFFER, 5) };
    vec![
        write8(EDU + dma::SOURCE, from),
        write8(EDU + dma::DESTINATION, to),
        write8(EDU + dma::LENGTH, 16),
        write8(EDU + dma::COMMAND, command),
        Op::Advance(edu::BUSY),
        Op::Timer,
    ]
}

/// The edu device: its DMA engine, both ways, and its interrupts, by pin and by message.
pub fn edu() -> Vec<Vec<u8>> {
    let ends = vec![
        read4(EDU + dma::CAUSES),
        write4(EDU + dma::ACKNOWLEDGE, 0x101),
        write4(EDU + dma::STATUS, 0x80),
        write4(EDU + dma::FACTORIAL, 5),
        write4(EDU + dma::RAISE, 2),
    ];
    let there = [master(), vec![words(0x1000, &[1, 2])], transfer(0x1000, false), ends.clone()];
    let back = [master(), messages(0xfee0_1000, 0x41), transfer(0x2000, true), ends];
    vec![input("edu", there.concat()), input("edu", back.concat())]
}

/// Messages that are enabled, masked while one comes, and then not (PCI 3.0, 6.8.1.6).
pub fn pci_config() -> Vec<Vec<u8>> {
    let slot: u64 = 4 << 3;
    let config = |offset, value| [out4(0xcf8, 1 << 31 | slot << 8 | offset), out4(0xcfc, value)];
    let raise = |value| write4(EDU + (1 << 20) + dma::RAISE, value);
    let parts = [
        &config(4, 6)[..],
        &config(0x44, 0xfee0_1000),
        &config(0x4c, 0x41),
        &config(0x50, 1),
        &config(0x40, 1 << 16),
        &[raise(1)],
        &config(0x50, 0),
        &[raise(2)],
    ];
    vec![input("pci-config", parts.concat())]
}

/// An entry of the I/O APIC (82093AA, 3.2.4): its lower half.
fn entry(pin: u64, low: u64) -> [Op; 2] {
    [write4(ioapic::BASE, 0x10 + 2 * pin), write4(ioapic::BASE + 0x10, low)]
}

/// A level-triggered and an edge-triggered entry, whose lines go high, and low.
pub fn ioapic() -> Vec<Vec<u8>> {
    let pins = |levels| out4(pins::PORT, levels);
    let level = [&entry(3, 0x8043)[..], &[pins(8), pins(0), pins(8)]].concat();
    let edge = [&entry(2, 0x42)[..], &[pins(4), pins(0), pins(4)]].concat();
    vec![input("ioapic", level), input("ioapic", edge)]
}

/// The edu device of a PC, in slot 4: its interrupt by the I/O APIC, and by message.
pub fn pci() -> Vec<Vec<u8>> {
    let config = |offset: u64, value| [out4(0xcf8, 0x8000_2000 | offset), out4(0xcfc, value)];
    let raise = [write4(EDU + (1 << 20) + dma::RAISE, 1)];
    let lines = [&entry(10, 0xa043)[..], &entry(11, 0xa044), &raise[..]].concat();
    let message = [&config(4, 6)[..], &config(0x44, 0xfee0_1000), &config(0x40, 1 << 16), &raise];
    let memory = [&config(4, 6)[..], &config(0x44, 0x1000), &config(0x40, 1 << 16), &raise];
    let all = [lines, message.concat(), memory.concat()];
    all.into_iter().map(|ops| input("pc", ops)).collect()
}

/// Where the tables of the IOMMU lie.
const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const TABLES: u64 = 0x3000;
const QUEUE: u64 = 0x8000;
const INTERRUPTS: u64 = 0x9000;

/// A register of the IOMMU.
const fn at(register: u64) -> u64 {
    vtd::BASE + register
}

fn command(bits: u32) -> Op {
    write4(at(reg::COMMAND), bits.into())
}

/// Root and context entry of the function, and a table of each level, of which the first entry leads to
/// the next and the last to page 0x10 (VT-d specification, 9.1, 9.3, 9.8).
fn tables(levels: u64) -> Vec<Op> {
    let mut ops = vec![
        words(ROOT, &[CONTEXTS | 1, 0]),
        words(CONTEXTS + 16 * SLOT, &[TABLES | 1, 1 << 8 | (levels - 2)]),
    ];
    for level in 1..levels {
        let table = TABLES + (level - 1) * 0x1000;
        ops.push(words(table, &[(table + 0x1000) | 3]));
    }
    ops.push(words(TABLES + (levels - 1) * 0x1000, &[0x1_0003, 0x1_1003, 0x1_2001, 0x1_3002]));
    ops
}

/// The tables are used, and faults are told by an interrupt (11.4.5, 11.4.4, 11.4.7.2).
fn translation() -> Vec<Op> {
    vec![
        write8(at(reg::ROOT), ROOT),
        command(status::ROOT),
        write4(at(reg::FAULT_EVENT + 4), 0x42),
        write4(at(reg::FAULT_EVENT + 8), 0xfee0_2000),
        write4(at(reg::FAULT_EVENT), 0),
        command(status::TRANSLATION),
    ]
}

/// The fault is looked at and cleared (11.4.7.1, 11.4.14).
fn faulted() -> Vec<Op> {
    vec![
        read4(at(reg::FAULTS)),
        Op::io(Access::read(Space::Mmio, at(reg::RECORD + 8), Size::B8)),
        write4(at(reg::RECORD + 12), 1 << 31),
        write4(at(reg::FAULTS), 0x11),
    ]
}

/// Entries of the interrupt remapping table: fixed to processor 0, of any source; of the function only;
/// of bus 0 only; one that is not there (9.10).
fn remapping() -> Vec<Op> {
    let of_function = 1 << 18 | SLOT;
    let entries = [0x0041_0001, 0, 0x0042_0011, of_function, 0x0043_0001, 2 << 18, 0, 0];
    vec![
        words(INTERRUPTS, &entries),
        write8(at(reg::INTERRUPTS), INTERRUPTS | 3),
        command(status::TABLE),
        command(status::INTERRUPTS),
    ]
}

/// A message of remappable format for an entry (5.1.2.2).
fn remappable(entry: u64) -> u64 {
    0xfee0_0010 | entry << 5
}

/// The IOMMU: DMA by 3 and 4 levels, large pages and pass-through, with faults; the invalidation queue;
/// messages that are remapped, and that are not.
pub fn vtd() -> Vec<Vec<u8>> {
    let begin = |levels| [tables(levels), master(), translation()].concat();
    let dma = |levels, address, to_memory| [begin(levels), transfer(address, to_memory)].concat();
    let mut all = vec![
        dma(3, 0xff8, true),
        dma(4, 0x1000, false),
        [dma(3, 0x2000, true), faulted()].concat(),
        [dma(4, 0x3000, false), transfer(0x5000, false), faulted()].concat(),
        [dma(3, 0xfee0_0000 & 0xfff_ffff, true), faulted()].concat(),
    ];
    // One entry is something else.
    let context = CONTEXTS + 16 * SLOT;
    let odd = [
        words(ROOT, &[0, 0]),
        words(ROOT, &[CONTEXTS | 3, 0]),
        words(ROOT, &[1 << 40 | 1, 0]),
        words(context, &[0, 0]),
        words(context, &[TABLES | 0x11, 1]),
        words(context, &[TABLES | 1, 7]),
        words(context, &[1 << 3 | 1, 2]),
        words(context, &[1 << 40 | 1, 1]),
        words(context, &[2, 0]),
        // A leaf of 2 MiB, and one that does not lie at a multiple of its length.
        words(TABLES + 0x1000, &[0x83]),
        words(TABLES + 0x1000, &[0x1083]),
    ];
    for op in odd {
        let parts = [tables(3), vec![op], master(), translation(), transfer(0, true), faulted()];
        all.push(parts.concat());
    }
    // The queue: invalidations, a wait that writes and tells, and a descriptor of no kind (6.5.2).
    let wait = 5 | 1 << 4 | 1 << 5 | 7 << 32;
    let queue = |last| {
        vec![
            words(QUEUE, &[1, 0, 2, 0, 4, 0, wait, 0x7000, last, 0]),
            write8(at(reg::QUEUE), QUEUE),
            write4(at(reg::COMPLETION_EVENT + 4), 0x43),
            write4(at(reg::COMPLETION_EVENT + 8), 0xfee0_3000),
            write4(at(reg::COMPLETION_EVENT), 0),
            command(status::QUEUE),
            write4(at(reg::QUEUE_TAIL), 0x50),
            write4(at(reg::COMPLETION), 1),
        ]
    };
    all.push(queue(wait));
    all.push([queue(0xf), faulted()].concat());
    all.push(vec![
        write8(at(reg::QUEUE), 1 << 40),
        command(status::QUEUE),
        write4(at(reg::QUEUE_TAIL), 16),
    ]);
    let raise = write4(EDU + dma::RAISE, 1);
    for (address, data) in [
        (remappable(0), 0),
        (remappable(1), 0),
        (remappable(2) | 8, 0),
        (remappable(3), 0),
        (remappable(0) | 8, 20),
        (0xfee0_0000, 0x44),
    ] {
        let parts =
            [remapping(), master(), messages(address, data), vec![raise.clone()], faulted()];
        all.push(parts.concat());
    }
    let compatible = command(status::INTERRUPTS | status::COMPATIBILITY);
    let parts = [remapping(), vec![compatible], master(), messages(0xfee0_0000, 0x44), vec![raise]];
    all.push(parts.concat());
    all.into_iter().map(|ops| input("vtd", ops)).collect()
}
