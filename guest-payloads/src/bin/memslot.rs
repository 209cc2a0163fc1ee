//! Memslots and the translation behind them: what a guest-physical address leads to, under EPT, nested
//! paging and shadow paging alike.
//!
//! Linux, Documentation/virt/kvm/api.rst, by the title of a section; Intel SDM volume 3, chapter 29
//! (EPT); AMD APM volume 2, 15.25 (nested paging). The tests say nothing of which of the two-level
//! translations is in use, and nothing that one of them would not do.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "memslot/backing.rs"]
mod backing;
#[path = "memslot/demand.rs"]
mod demand;
#[path = "memslot/dirty.rs"]
mod dirty;
#[path = "memslot/edges.rs"]
mod edges;
#[path = "memslot/host.rs"]
mod host;
#[path = "memslot/manual.rs"]
mod manual;
#[path = "memslot/readonly.rs"]
mod readonly;
#[path = "memslot/ring.rs"]
mod ring;
#[path = "memslot/roots.rs"]
mod roots;
#[path = "memslot/running.rs"]
mod running;
#[path = "memslot/slots.rs"]
mod slots;
#[path = "memslot/tables.rs"]
mod tables;

use payload_rt::lab::{self, Backing, Log, Memory, Rule, Slot, kind};
use payload_rt::{boot, check, check_eq, check_ok, mem, skip, smp};

const PAGE: u64 = 4096;
/// What a large page maps.
const LARGE: u64 = 2 << 20;
/// Where slots begin.
const AREA: u64 = lab::AREA;
/// Linear addresses for tests with page tables of their own: nothing else is in their slot of the
/// top table.
const AT: u64 = 0x1234_4321_5000;
/// Eight bytes that are all different.
const MARK: u64 = 0x8877_6655_4433_2211;
/// What recorded reads of nothing give.
const NOTHING: u64 = 0xf0e1_d2c3_b4a5_9687;

/// So many small pages, shown at [`AREA`].
fn show(pages: u64, flags: u32) -> (Memory, Slot) {
    let memory = check_ok!(Memory::new(pages * PAGE, Backing::Small), "{pages} pages");
    let slot = check_ok!(memory.slot(AREA, 0, pages * PAGE, flags), "a slot of {pages} pages");
    (memory, slot)
}

/// What backs the memory and how large it is, by the command line: `backing=0` to 3.
fn backing() -> (Backing, u64) {
    match boot::number("backing").unwrap_or(0) {
        0 => (Backing::Small, 2 * LARGE),
        1 => (Backing::Transparent, 2 * LARGE),
        2 => (Backing::Huge2M, LARGE),
        3 => (Backing::Huge1G, 1 << 30),
        other => panic!("backing={other} on the command line: it takes 0 to 3"),
    }
}

/// All ones, `size` bytes of them.
fn ones(size: u64) -> u64 {
    u64::MAX >> (64 - 8 * size)
}

/// Reads 1, 2, 4 or 8 bytes.
fn read(at: u64, size: u64) -> u64 {
    let value = match size {
        1 => mem::read::<u8>(at).map(u64::from),
        2 => mem::read::<u16>(at).map(u64::from),
        4 => mem::read::<u32>(at).map(u64::from),
        _ => mem::read::<u64>(at),
    };
    check_ok!(value, "read {size} bytes at {at:#x}")
}

/// Writes 1, 2, 4 or 8 bytes.
fn write(at: u64, size: u64, value: u64) {
    let done = match size {
        1 => mem::write(at, value as u8),
        2 => mem::write(at, value as u16),
        4 => mem::write(at, value as u32),
        _ => mem::write(at, value),
    };
    check_ok!(done, "write {size} bytes at {at:#x}");
}

/// Records accesses of these addresses; reads get [`NOTHING`].
fn watch(from: u64, to: u64) -> Log {
    check_ok!(lab::record(&[Rule::on(kind::MMIO).range(from..=to - 1).value(NOTHING)]))
}

/// Checks that the log holds one access after the other from `first` on: address, size, whether it is
/// a write, and the value of a write.
fn check_exits(log: &Log, first: u64, what: &str, wanted: &[(u64, u64, u64, u64)]) {
    for (index, wanted) in (first..).zip(wanted) {
        let Some(exit) = log.get(index) else {
            payload_rt::fail!("{what}: {} exits, {wanted:x?} is missing", log.count());
        };
        let [at, size, write, value, _] = exit.words;
        check_eq!((at, size, write, value), *wanted, "{what}: exit {index}");
    }
    check_eq!(log.count(), first + wanted.len() as u64, "{what}: exits");
}

/// Checks that the exits from `first` on are accesses of the bytes from `at` on, one piece behind the
/// other: how an access over an edge is cut is KVM's business. Gives the number of the next exit.
fn check_pieces(log: &Log, first: u64, what: &str, at: u64, write: bool, bytes: &[u8]) -> u64 {
    let (mut next, mut done) = (first, 0);
    while done < bytes.len() {
        let Some(exit) = log.get(next) else {
            payload_rt::fail!("{what}: {done} of {} bytes in {next} exits", bytes.len());
        };
        let [found, size, is_write, value, _] = exit.words;
        let wanted = (at + done as u64, u64::from(write));
        check_eq!((found, is_write), wanted, "{what}: exit {next}");
        check!(size as usize <= bytes.len() - done, "{what}: {size} bytes at {found:#x}");
        let value = value.to_le_bytes();
        if write {
            let size = size as usize;
            check_eq!(value[..size], bytes[done..done + size], "{what}: at {found:#x}");
        }
        done += size as usize;
        next += 1;
    }
    next
}

/// Starts all CPUs, at least two.
fn start_all() -> usize {
    let cpus = smp::start();
    if cpus < 2 {
        skip!("one CPU");
    }
    cpus
}
