//! SMIs in HLT, and the auto-halt restart flag (APM 10.2.6; SDM "Auto HALT Restart").

use crate::code::{self, saved};
use crate::map::{AUTO_HALT, RIP};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::trap::NMI;
use payload_rt::{asm_code, check, check_eq, check_ok, insn, irq, smp, test, time};

/// The first CPU is behind its HLT.
static BEHIND: AtomicBool = AtomicBool::new(false);
/// The address behind that HLT.
static RESUMES: AtomicU64 = AtomicU64::new(0);

fn send(delivery: Delivery) {
    apic::local().send(delivery, Destination::Physical(smp::apic_id(0)));
}

/// Sends SMIs until one came in HLT; then NMIs, until the first CPU goes on. Whether it went on
/// without an NMI.
fn wake(_: u64) -> u64 {
    let halted = || code::count() > 0 && saved::<u64>(RIP) == RESUMES.load(SeqCst);
    let until = |what, done: &dyn Fn() -> bool| {
        (0..1000).any(|_| {
            send(what);
            time::wait_until(10_000, done)
        })
    };
    if !until(Delivery::Smi, &halted) {
        return 2;
    }
    let by_itself = time::wait_until(100_000, || BEHIND.load(SeqCst));
    if !by_itself {
        until(Delivery::Nmi, &|| BEHIND.load(SeqCst));
    }
    by_itself.into()
}

/// Halts until another CPU's SMI came there. Whether HLT ended by that.
fn halted_smi() -> bool {
    irq::handle(NMI, |_| {});
    smp::start();
    let job = smp::spawn(1, wake, 0);
    check_ok!(insn!(
        "lea {at}, [rip + 3f]", "mov [{note}], {at}", "hlt", "3: nop";
        at = out(reg) _, note = in(reg) RESUMES.as_ptr()
    ));
    BEHIND.store(true, SeqCst);
    let woke = job.wait();
    check!(woke != 2, "no SMI came in HLT");
    check!(code::count() > 0, "SMIs");
    woke == 1
}

test!(flag, "An SMI in HLT has RIP behind HLT and auto-halt restart 1 in its map.", || {
    code::install(&[]);
    halted_smi();
    check_eq!(saved::<u64>(RIP), RESUMES.load(SeqCst), "RIP");
    check_eq!(saved::<u8>(AUTO_HALT), 1, "auto-halt restart");
});

test!(restart, "With auto-halt restart as it is, RSM goes back to HLT.", || {
    code::install(&[]);
    check!(!halted_smi(), "HLT ended without an interrupt");
});

test!(no_restart, "With auto-halt restart cleared, RSM goes on behind HLT.", || {
    code::install(&[asm_code!(".code16", "mov edi, 0x3fec9", "mov byte ptr [edi], 0")]);
    check!(halted_smi(), "HLT did not end");
});
