//! NMIs, and the shadows in which interrupts wait (SDM volume 3, 7.7 and 7.8; AMD APM volume 2,
//! 8.2.3 and 8.1.4).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::trap::{NMI, UD};
use payload_rt::{
    check, check_eq, check_ok, check_trap, idt, insn, irq, reg, skip, smp, test, time,
};

static COUNT: AtomicU32 = AtomicU32::new(0);
static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);
/// NMIs that the first handler sends.
static SEND: AtomicU32 = AtomicU32::new(0);
/// Whether the handler executes an IRET in its middle.
static RETURN: AtomicU32 = AtomicU32::new(0);

fn send() {
    let apic = apic::local();
    apic.send(Delivery::Nmi, Destination::Physical(apic.id()));
}

/// Counts NMIs and how deep they nest.
fn prepare(send_inside: u32, return_inside: bool) {
    COUNT.store(0, SeqCst);
    DEEPEST.store(0, SeqCst);
    SEND.store(send_inside, SeqCst);
    RETURN.store(return_inside.into(), SeqCst);
    // A nested one must not start over on the same stack.
    idt::set_ist(NMI, 0);
    apic::local().enable();
    irq::handle(NMI, |_| {
        let depth = DEPTH.fetch_add(1, SeqCst) + 1;
        DEEPEST.fetch_max(depth, SeqCst);
        if COUNT.fetch_add(1, SeqCst) == 0 {
            for _ in 0..SEND.load(SeqCst) {
                send();
            }
            settle();
            if RETURN.load(SeqCst) != 0 {
                // The handler of #UD ends with IRET.
                check_trap!(insn!("ud2"), UD, 0, "ud2 in the NMI's handler");
                settle();
            }
        }
        DEPTH.fetch_sub(1, SeqCst);
    });
}

/// Long enough for what is due to arrive.
fn settle() {
    time::delay(500);
}

fn arrived(count: u32) -> bool {
    time::wait_until(1_000_000, || COUNT.load(SeqCst) >= count)
}

test!(nmi, "An NMI arrives with interrupts off, once for each that is sent.", || {
    prepare(0, false);
    reg::cli();
    for n in 1..=5 {
        send();
        arrived(n);
        check_eq!(COUNT.load(SeqCst), n, "NMIs that arrived");
    }
    settle();
    check_eq!(COUNT.load(SeqCst), 5, "NMIs that arrived in the end");
    check_eq!(DEEPEST.load(SeqCst), 1, "depth");
});

test!(
    nmi_blocked,
    "An NMI waits until the handler of another ends with IRET, and only one does.",
    || {
        for sent in [1, 3] {
            prepare(sent, false);
            send();
            arrived(2);
            settle();
            check_eq!(DEEPEST.load(SeqCst), 1, "depth, with {sent} sent inside the handler");
            check_eq!(COUNT.load(SeqCst), 2, "NMIs, with {sent} sent inside the handler");
        }
    }
);

test!(nmi_iret, "An IRET of another handler inside that of an NMI lets the next NMI in.", || {
    prepare(1, true);
    send();
    arrived(2);
    settle();
    check_eq!(COUNT.load(SeqCst), 2, "NMIs");
    check_eq!(DEEPEST.load(SeqCst), 2, "depth");
});

test!(nmi_halt, "An NMI ends HLT with interrupts off.", || {
    if smp::start() < 2 {
        skip!("one CPU");
    }
    prepare(0, false);
    for round in 1..=4 {
        COUNT.store(0, SeqCst);
        let job = smp::spawn(
            1,
            |_| {
                reg::cli();
                reg::hlt();
                1
            },
            0,
        );
        // Before the halt, an NMI does not end it; the next one will.
        let ended = time::wait_until(5_000_000, || {
            let seen = COUNT.load(SeqCst);
            apic::local().send(Delivery::Nmi, Destination::Physical(smp::apic_id(1)));
            time::wait_until(20_000, || COUNT.load(SeqCst) > seen);
            job.is_done()
        });
        check!(ended, "round {round}: {} NMIs did not end the halt", COUNT.load(SeqCst));
        check_eq!(job.wait(), 1, "the job's value");
    }
});

const VECTOR: u8 = 0x50;
static RIP: AtomicU64 = AtomicU64::new(0);

/// Makes an interrupt pending, with interrupts off.
fn pend() {
    RIP.store(0, SeqCst);
    let apic = apic::local();
    apic.enable();
    irq::handle(VECTOR, |frame| {
        RIP.store(frame.rip, SeqCst);
        apic::eoi();
    });
    reg::cli();
    apic.self_ipi(VECTOR);
}

// SDM volume 2, STI: interrupts are recognized from the end of the next instruction on.
test!(sti_shadow, "A pending interrupt arrives behind the instruction that follows STI.", || {
    for _ in 0..4 {
        pend();
        let at: u64;
        check_ok!(insn!("lea {}, [rip + 2f]", "sti", "nop", "2: nop", "nop", "cli"; out(reg) at));
        check_eq!(RIP.load(SeqCst), at, "RIP at which the interrupt came");
    }
});

test!(sti_cli, "STI followed by CLI lets no interrupt in.", || {
    pend();
    for _ in 0..8 {
        check_ok!(insn!("sti", "cli"));
    }
    check_eq!(RIP.load(SeqCst), 0, "RIP at which an interrupt came");
    check_eq!(irq::wait_for(VECTOR, 1, 1_000_000), true, "whether it comes once it may");
});

test!(sti_halt, "STI and HLT with an interrupt pending go on behind the HLT.", || {
    for _ in 0..4 {
        pend();
        let at: u64;
        check_ok!(insn!("lea {}, [rip + 2f]", "sti", "hlt", "2: cli"; out(reg) at));
        check_eq!(RIP.load(SeqCst), at, "RIP at which the interrupt came");
    }
});

// SDM volume 3, 7.8.3: MOV SS holds interrupts off as STI does.
test!(
    mov_ss_shadow,
    "A pending interrupt does not arrive between MOV SS and what follows.",
    || {
        let ss = reg::ss();
        for _ in 0..4 {
            pend();
            // TPR keeps it off until CR8 is written, in the instruction before.
            check_ok!(reg::set_cr8(15));
            reg::sti();
            let at: u64;
            let done = insn!(
                "lea {0}, [rip + 2f]", "cli", "xor {1:e}, {1:e}", "mov cr8, {1}", "sti",
                "mov ss, {2:e}", "nop", "2: nop", "nop", "cli";
                out(reg) at, out(reg) _, in(reg) u32::from(ss)
            );
            check_ok!(done);
            let rip = RIP.load(SeqCst);
            // STI's shadow ends behind MOV SS, whose own covers the NOP, if the CPU adds them up.
            let possible = [at - 1, at];
            check!(possible.contains(&rip), "it came at {rip:#x}, {at:#x} is right");
        }
    }
);
