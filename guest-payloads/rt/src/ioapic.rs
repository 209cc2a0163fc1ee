//! The I/O APIC of a PC, at [`BASE`]: lines in, messages to local APICs out.
//!
//! Intel 82093AA datasheet (order number 290566), section 3.

use crate::mem;

/// Where a PC's first I/O APIC is.
pub const BASE: u64 = 0xfec0_0000;
/// Register: identifier, in bits 27:24.
pub const ID: u8 = 0;
/// Register: version in bits 7:0, the last entry's number in bits 23:16.
pub const VERSION: u8 = 1;
/// Register: arbitration priority.
pub const ARBITRATION: u8 = 2;
/// Register: the low word of redirection entry 0; its high word and the other entries follow.
pub const REDIRECTION: u8 = 0x10;

/// Redirection entry: lowest-priority delivery, the vector left to be filled in.
pub const LOWEST_PRIORITY: u64 = 1 << 8;
/// Redirection entry: delivered as NMI.
pub const NMI: u64 = 4 << 8;
/// Redirection entry: the destination is a logical one.
pub const LOGICAL: u64 = 1 << 11;
/// Redirection entry: a message is on its way; read-only.
pub const DELIVERY_STATUS: u64 = 1 << 12;
/// Redirection entry: active low.
pub const ACTIVE_LOW: u64 = 1 << 13;
/// Redirection entry: a level interrupt was accepted and not yet acknowledged; read-only.
pub const REMOTE_IRR: u64 = 1 << 14;
/// Redirection entry: level-triggered.
pub const LEVEL: u64 = 1 << 15;
/// Redirection entry: masked.
pub const MASKED: u64 = 1 << 16;

/// A redirection entry's destination field.
pub const fn destination(id: u8) -> u64 {
    (id as u64) << 56
}

/// Reads a register.
pub fn read(register: u8) -> u32 {
    select(register);
    match mem::read(BASE + 0x10) {
        Ok(value) => value,
        Err(trap) => panic!("read I/O APIC register {register:#x}: {trap}"),
    }
}

/// Writes a register.
pub fn write(register: u8, value: u32) {
    select(register);
    if let Err(trap) = mem::write(BASE + 0x10, value) {
        panic!("write {value:#x} to I/O APIC register {register:#x}: {trap}");
    }
}

fn select(register: u8) {
    if let Err(trap) = mem::write(BASE, u32::from(register)) {
        panic!("select I/O APIC register {register:#x}: {trap}");
    }
}

/// Ends the test with `skip` if nothing answers at [`BASE`].
pub fn require() {
    if read(VERSION) == u32::MAX {
        crate::skip!("no I/O APIC at {BASE:#x}");
    }
}

/// How many redirection entries there are.
pub fn entries() -> u8 {
    ((read(VERSION) >> 16) as u8).saturating_add(1)
}

/// Reads the redirection entry of `pin`.
pub fn entry(pin: u8) -> u64 {
    let low = REDIRECTION + 2 * pin;
    u64::from(read(low)) | u64::from(read(low + 1)) << 32
}

/// Writes the redirection entry of `pin`: the destination first, so that nothing goes to the old
/// one when the low word unmasks it.
pub fn set_entry(pin: u8, value: u64) {
    let low = REDIRECTION + 2 * pin;
    write(low + 1, (value >> 32) as u32);
    write(low, value as u32);
}

/// Masks all pins.
pub fn mask_all() {
    for pin in 0..entries() {
        set_entry(pin, MASKED);
    }
}
