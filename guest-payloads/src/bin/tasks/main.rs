//! Hardware task switches: what they save, load and mark, the ways into them, and the faults on the way.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod checks;
mod loads;
mod state;
mod ways;

use payload_rt::legacy::table::{self, BUSY, Tss, segment, tss32};
use payload_rt::legacy::{
    CODE, CODE32, DATA32, LDT_SELECTOR, Machine, OTHER, Outcome, TOP, TSS, TSS_SELECTOR, TSS2,
    TSS2_SELECTOR,
};
use payload_rt::mem::{self, Word};
use payload_rt::{check_eq, check_ok};

/// Where the second task starts.
const TARGET: u32 = CODE + 0x200;

/// CR0.TS.
const TS_FLAG: u32 = 1 << 3;

/// Writes to low memory.
fn put<T: Word>(at: u32, value: T) {
    check_ok!(mem::write(at.into(), value));
}

/// Puts code where the second task starts.
fn target(code: &[u8]) {
    for (i, &byte) in code.iter().enumerate() {
        put(TARGET + i as u32, byte);
    }
}

/// Makes the TSS at [`TSS2`] one of a task with flat segments that starts at [`TARGET`], with a value of its
/// own in each register, on the stack at [`OTHER`]; and gives the first TSS the CR3 it would be back to.
fn second(m: &Machine, code: &[u8]) {
    target(code);
    let t = Tss::SECOND;
    for (field, value) in [
        (tss32::CR3, m.regs.cr3),
        (tss32::EIP, TARGET),
        (tss32::EFLAGS, 2),
        (tss32::EAX, 0xa0a0_0001),
        (tss32::ECX, 0xa0a0_0002),
        (tss32::EDX, 0xa0a0_0003),
        (tss32::EBX, 0xa0a0_0004),
        (tss32::ESP, OTHER + TOP),
        (tss32::EBP, 0xa0a0_0005),
        (tss32::ESI, 0xa0a0_0006),
        (tss32::EDI, 0xa0a0_0007),
        (tss32::ES, DATA32),
        (tss32::CS, CODE32),
        (tss32::SS, DATA32),
        (tss32::DS, DATA32),
        (tss32::FS, DATA32),
        (tss32::GS, DATA32),
        (tss32::LDTR, LDT_SELECTOR),
        (tss32::LINK, 0x7777),
    ] {
        t.set(field, value);
    }
    Tss::FIRST.set(tss32::CR3, m.regs.cr3);
    Tss::FIRST.set(tss32::LDTR, LDT_SELECTOR);
    Tss::FIRST.set(tss32::LINK, 0x6666);
}

/// The descriptors of both TSSs, free or busy.
const fn first_tss(busy: bool) -> u64 {
    segment(TSS, 103, table::TSS32 | if busy { BUSY } else { 0 })
}
const fn second_tss(busy: bool) -> u64 {
    segment(TSS2, 103, table::TSS32 | if busy { BUSY } else { 0 })
}

/// Checks that the second task is the one that ended, with these tasks busy and NT as it should be.
fn check_second(m: &Machine, out: &Outcome, first_busy: bool, nested: bool, what: &str) {
    check_eq!(out.regs.tr, TSS2_SELECTOR, "TR: {what}");
    check_eq!(
        m.descriptor(TSS_SELECTOR),
        first_tss(first_busy),
        "descriptor of the first TSS: {what}"
    );
    check_eq!(
        m.descriptor(TSS2_SELECTOR),
        second_tss(true),
        "descriptor of the second TSS: {what}"
    );
    check_eq!(out.regs.eflags >> 14 & 1, u32::from(nested), "NT: {what}");
    let link = if nested { TSS_SELECTOR } else { 0x7777 };
    check_eq!(Tss::SECOND.get16(tss32::LINK), link, "link of the second TSS: {what}");
    check_eq!(out.regs.cr0 & TS_FLAG, TS_FLAG, "CR0.TS: {what}");
    check_eq!(out.regs.cs, CODE32, "CS: {what}");
}
