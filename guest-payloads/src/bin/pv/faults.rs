//! Asynchronous page faults (msr.rst, MSR_KVM_ASYNC_PF_EN, _INT and _ACK).

use crate::{
    ASYNC_PF_ACK, ASYNC_PF_EN, ASYNC_PF_INT, PATIENCE, VECTOR, feature, page, put, read, refused,
    word, write,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, AREA, Backing, Memory};
use payload_rt::*;

/// Bits of MSR_KVM_ASYNC_PF_EN.
const ENABLE: u64 = 1;
const SEND_ALWAYS: u64 = 2;
const BY_INTERRUPT: u64 = 8;

fn require() {
    feature("kvm-asyncpf-int", 14).require();
    apic::local().enable();
}

test!(apf_vector, "The vector of `page ready` is any of 8 bits; above is #GP.", || {
    require();
    check_eq!(read(ASYNC_PF_INT), 0);
    for vector in [0x20, 0x57, 0xff, 0] {
        write(ASYNC_PF_INT, vector);
        check_eq!(read(ASYNC_PF_INT), vector);
    }
    for bit in 8..64 {
        refused(ASYNC_PF_INT, 1 << bit);
    }
});

test!(apf_acknowledge, "The acknowledgement takes 0 and 1, and reads 0.", || {
    require();
    for value in [0, 1, 0] {
        write(ASYNC_PF_ACK, value);
        check_eq!(read(ASYNC_PF_ACK), 0);
    }
});

test!(
    apf_enable,
    "Each way of delivery that CPUID announces can be enabled, and read back.",
    || {
        require();
        let at = page() + 0x40;
        let vmexit = if feature("", 10).present() { 4 } else { 0 };
        for bits in [BY_INTERRUPT, BY_INTERRUPT | SEND_ALWAYS, BY_INTERRUPT | vmexit] {
            write(ASYNC_PF_EN, at | bits | ENABLE);
            check_eq!(read(ASYNC_PF_EN), at | bits | ENABLE);
            write(ASYNC_PF_EN, 0);
            check_eq!(read(ASYNC_PF_EN), 0);
        }
        for bit in [4, 5] {
            refused(ASYNC_PF_EN, at | 1 << bit | BY_INTERRUPT | ENABLE);
        }
    }
);

test!(apf_needs_an_apic, "Without an APIC in the kernel they cannot be enabled.", || {
    feature("kvm-asyncpf-int", 14).require();
    refused(ASYNC_PF_EN, (page() + 0x40) | BY_INTERRUPT | ENABLE);
    write(ASYNC_PF_EN, 0);
});

test!(apf_moves_to_another_vm, "What is enabled is so in another VM.", || {
    require();
    let at = page();
    write(ASYNC_PF_INT, VECTOR.into());
    write(ASYNC_PF_EN, at | BY_INTERRUPT | ENABLE);
    check_ok!(lab::transplant());
    check_eq!(read(ASYNC_PF_EN), at | BY_INTERRUPT | ENABLE);
    check_eq!(read(ASYNC_PF_INT), VECTOR.into());
});

static AREA_AT: AtomicU64 = AtomicU64::new(0);
static MISSING: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
static WAITING: AtomicU64 = AtomicU64::new(0);
static STRANGE: AtomicU32 = AtomicU32::new(0);

/// `page ready`: its token is that of a page that is missing, or of all of them.
fn ready(_: &mut trap::Frame) {
    let at = AREA_AT.load(SeqCst);
    let token: u32 = word(at + 4);
    put(at + 4, 0u32);
    let waiting = WAITING.swap(0, SeqCst);
    // All pages are said to be ready when the faults are enabled.
    if token != u32::MAX {
        STRANGE.fetch_add(u32::from(waiting != u64::from(token)), SeqCst);
        READY.fetch_add(1, SeqCst);
    }
    write(ASYNC_PF_ACK, 1);
    apic::eoi();
}

/// `page not present`, as a page fault whose CR2 is the token; a real one ends the test.
fn missing(frame: &mut trap::Frame) {
    let at = AREA_AT.load(SeqCst);
    let token = reg::cr2();
    if word::<u32>(at) != 1 {
        fail!("a page fault on {token:#x} with error {:#x}, and no reason", frame.error_code);
    }
    put(at, 0u32);
    WAITING.store(token, SeqCst);
    MISSING.fetch_add(1, SeqCst);
    reg::sti();
    let came = time::wait_until(PATIENCE, || WAITING.load(SeqCst) == 0);
    reg::cli();
    check!(came, "the page of token {token:#x} never becomes ready");
}

test!(
    apf_delivery,
    "A page that the host lacks is told as missing, and then as ready, with one token.",
    || {
        const SEED: u64 = 0x5eed_0000_0000_0000;
        const PAGES: u64 = 8;
        require();
        let memory = check_ok!(Memory::new(PAGES * 4096, Backing::Small));
        check_ok!(memory.slot(AREA, 0, PAGES * 4096, 0));
        check_ok!(memory.userfault(0, PAGES * 4096, SEED));
        let at = page();
        AREA_AT.store(at, SeqCst);
        irq::handle(VECTOR, ready);
        irq::handle(trap::PF, missing);
        write(ASYNC_PF_INT, VECTOR.into());
        write(ASYNC_PF_EN, at | BY_INTERRUPT | SEND_ALWAYS | ENABLE);
        for page in 0..PAGES {
            let offset = page * 4096 + 8 * page;
            reg::sti();
            let value = mem::read::<u64>(AREA + offset);
            reg::cli();
            check_eq!(value, Ok(SEED ^ offset), "page {page}");
        }
        irq::let_in(crate::SETTLE);
        write(ASYNC_PF_EN, 0);
        irq::unhandle(trap::PF);
        let (missing, ready) = (MISSING.load(SeqCst), READY.load(SeqCst));
        report::value("missing", missing.into());
        report::value("ready", ready.into());
        check_eq!(STRANGE.load(SeqCst), 0, "pages that are ready and were not missing");
        check!(missing > 0, "no page was told as missing");
        check_eq!((ready, word::<u32>(at)), (missing, 0));
    }
);

test!(apf_off, "While they are off, pages that the host lacks are waited for.", || {
    const SEED: u64 = 0x5eed_0000_0000_0000;
    require();
    let memory = check_ok!(Memory::new(4 * 4096, Backing::Small));
    check_ok!(memory.slot(AREA, 0, 4 * 4096, 0));
    check_ok!(memory.userfault(0, 4 * 4096, SEED));
    irq::handle(trap::PF, |_| fail!("a page fault"));
    for page in 0..4 {
        reg::sti();
        let value = mem::read::<u64>(AREA + page * 4096);
        reg::cli();
        check_eq!(value, Ok(SEED ^ (page * 4096)));
    }
    check_eq!(check_ok!(memory.userfaults()), 4);
});
