//! KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_NMI, KVM_SMI, KVM_INTERRUPT: what the host makes pending.

use crate::{PATIENCE, transplant};
use payload_rt::lab::{self, Chain, Errno, kvm};
use payload_rt::trap::{self, AC, DB, DE, DF, GP, MF, NM, NMI, NP, PF, SS, TS, UD, XM};
use payload_rt::{check, check_eq, check_err, check_ok, check_trap, irq, reg, test, time};

/// No event.
fn none() -> kvm::Events {
    kvm::Events::default()
}

/// An exception that is injected.
fn exception(vector: u8, error_code: Option<u32>) -> kvm::Events {
    kvm::Events {
        exception_injected: 1,
        exception_nr: vector,
        exception_has_error_code: error_code.is_some().into(),
        exception_error_code: error_code.unwrap_or(0),
        ..none()
    }
}

/// Has the host set events that raise this exception, and checks that the guest takes it.
fn check_taken(events: &kvm::Events, vector: u8, error_code: u64) -> trap::Trap {
    check_trap!(
        trap::catch(|| lab::set_events(events)),
        vector,
        error_code,
        "vector {vector} of the host's"
    )
}

// KVM_SET_VCPU_EVENTS; SDM volume 3, table 7-1. #BP and #OF are those of an instruction, whose length an
// injection would need.
test!(without_code, "Each exception without an error code arrives as the host injects it.", || {
    for vector in [DE, DB, 5, UD, NM, MF, XM] {
        check_taken(&exception(vector, None), vector, 0);
        check_eq!(check_ok!(lab::events()).exception_injected, 0, "after vector {vector}");
    }
});

test!(with_code, "Each exception with an error code arrives with the host's.", || {
    for (vector, code) in
        [(DF, 0), (TS, 0x1234), (NP, 0x10), (SS, 0), (GP, 0xfff8), (PF, 7), (AC, 0)]
    {
        check_taken(&exception(vector, Some(code)), vector, code.into());
        check_eq!(check_ok!(lab::events()).exception_injected, 0, "after vector {vector}");
    }
});

test!(page_fault, "An injected #PF comes with the CR2 that the host set.", || {
    let sregs = check_ok!(lab::sregs());
    check_ok!(lab::set_sregs(&kvm::Sregs { cr2: 0x1234_5678, ..sregs }));
    let trap = check_taken(&exception(PF, Some(2)), PF, 2);
    check_eq!(trap.cr2, 0x1234_5678, "CR2");
});

/// Enables the payload of exceptions.
fn with_payload() {
    lab::require_cap(kvm::cap::EXCEPTION_PAYLOAD, "EXCEPTION_PAYLOAD");
    check_ok!(lab::enable_cap(kvm::cap::EXCEPTION_PAYLOAD, 1));
}

/// A pending exception with a payload.
fn pending(vector: u8, error_code: Option<u32>, payload: u64) -> kvm::Events {
    kvm::Events {
        exception_injected: 0,
        exception_pending: 1,
        exception_has_payload: 1,
        exception_payload: payload,
        flags: kvm::events::PAYLOAD,
        ..exception(vector, error_code)
    }
}

// KVM_CAP_EXCEPTION_PAYLOAD.
test!(
    payload_page_fault,
    "The payload of a pending #PF becomes CR2 as the guest takes it.",
    || {
        with_payload();
        check_ok!(reg::set_cr2(0x1111));
        let trap = check_taken(&pending(PF, Some(0), 0x7654_3210), PF, 0);
        check_eq!(trap.cr2, 0x7654_3210, "CR2");
    }
);

test!(payload_debug, "The payload of a pending #DB is merged into DR6.", || {
    with_payload();
    check_ok!(reg::set_dr(6, 0xffff_0ff0));
    check_taken(&pending(DB, None, 1 << 14 | 1), DB, 0);
    check_eq!(reg::dr(6), Ok(0xffff_4ff1), "DR6");
});

test!(payload_refused, "A payload is EINVAL before its capability is enabled.", || {
    lab::require_cap(kvm::cap::EXCEPTION_PAYLOAD, "EXCEPTION_PAYLOAD");
    check_eq!(lab::set_events(&pending(PF, Some(0), 1)), Err(Errno::EINVAL));
});

// KVM_SET_VCPU_EVENTS, of an event that the old VM never saw.
test!(exception_transplanted, "An exception that the host injects arrives in the new VM.", || {
    let mut chain = Chain::new();
    chain.set(kvm::SET_VCPU_EVENTS, exception(GP, Some(0x50)));
    let moved = chain.ask(lab::op::TRANSPLANT, &[]);
    check_trap!(trap::catch(|| chain.run()), GP, 0x50, "#GP of the host's");
    check_ok!(chain.result(moved));
});

// KVM_CAP_EXCEPTION_PAYLOAD: `exception_pending` tells it from one that is injected.
test!(pending_transplanted, "A pending #PF arrives in the new VM, with its address.", || {
    with_payload();
    check_ok!(reg::set_cr2(0x1111));
    let mut chain = Chain::new();
    chain.set(kvm::SET_VCPU_EVENTS, pending(PF, Some(6), 0x7000_5000));
    let moved = chain.ask(lab::op::TRANSPLANT, &[]);
    let trap = check_trap!(trap::catch(|| chain.run()), PF, 6, "#PF of the host's");
    check_ok!(chain.result(moved));
    check_eq!(trap.cr2, 0x7000_5000, "CR2");
});

test!(interrupt, "An interrupt that the host injects arrives, once.", || {
    const VECTOR: u8 = 0x61;
    irq::handle(VECTOR, |_| {});
    reg::sti();
    let events = kvm::Events { interrupt_injected: 1, interrupt_nr: VECTOR, ..none() };
    let set = lab::set_events(&events);
    reg::cli();
    check_ok!(set);
    check_eq!(irq::count(VECTOR), 1, "interrupts");
    check_eq!(check_ok!(lab::events()).interrupt_injected, 0);
});

/// Counts NMIs.
fn count_nmis() {
    irq::handle(NMI, |_| {});
}

test!(nmi_pending, "An NMI that the host makes pending arrives, and is pending no more.", || {
    count_nmis();
    let events = kvm::Events { nmi_pending: 1, flags: kvm::events::NMI_PENDING, ..none() };
    check_ok!(lab::set_events(&events));
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "{} NMIs", irq::count(NMI));
    let now = check_ok!(lab::events());
    check_eq!((now.nmi_pending, now.nmi_injected, now.nmi_masked), (0, 0, 0), "events afterwards");
});

test!(nmi_injected, "An NMI that the host injects arrives.", || {
    count_nmis();
    check_ok!(lab::set_events(&kvm::Events { nmi_injected: 1, ..none() }));
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "{} NMIs", irq::count(NMI));
});

test!(nmi_masked, "While the host masks NMIs, one of KVM_NMI waits; unmasked, it arrives.", || {
    count_nmis();
    check_ok!(lab::set_events(&kvm::Events { nmi_masked: 1, ..none() }));
    check_ok!(lab::call(kvm::NMI));
    time::delay(2_000);
    check_eq!(irq::count(NMI), 0, "NMIs while they are masked");
    let now = check_ok!(lab::events());
    check_eq!((now.nmi_pending, now.nmi_masked), (1, 1), "events");
    transplant();
    check_eq!(irq::count(NMI), 0, "NMIs in the new VM");
    // Pending it stays: the flag says that `nmi_pending` is not set.
    check_ok!(lab::set_events(&kvm::Events { nmi_masked: 0, ..none() }));
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "{} NMIs", irq::count(NMI));
});

test!(nmi, "KVM_NMI brings an NMI with interrupts off.", || {
    count_nmis();
    for n in 1..=3 {
        check_ok!(lab::call(kvm::NMI));
        check!(time::wait_until(PATIENCE, || irq::count(NMI) == n), "{} of {n}", irq::count(NMI));
    }
});

test!(invalid, "Vectors that are no exception's, and unknown flags, are EINVAL.", || {
    let refused = |events: kvm::Events, what: &str| {
        check_eq!(lab::set_events(&events), Err(Errno::EINVAL), "{what}");
    };
    refused(exception(NMI, None), "vector 2 as an exception");
    for vector in [32, 0x80, 255] {
        refused(exception(vector, None), "a vector above 31");
    }
    for bit in 6..32 {
        refused(kvm::Events { flags: 1 << bit, ..none() }, "an unknown flag");
    }
    let now = check_ok!(lab::events());
    check_eq!(now.exception_injected, 0, "events afterwards");
    let triple = kvm::Events { flags: kvm::events::TRIPLE_FAULT, ..none() };
    refused(triple, "a triple fault before its capability");
});

// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
test!(triple_fault, "A triple fault that the host makes pending ends the guest's run.", || {
    lab::require_cap(kvm::cap::X86_TRIPLE_FAULT_EVENT, "X86_TRIPLE_FAULT_EVENT");
    check_ok!(lab::enable_cap(kvm::cap::X86_TRIPLE_FAULT_EVENT, 1));
    let flags = kvm::events::TRIPLE_FAULT;
    let events = kvm::Events { triple_fault_pending: 1, flags, ..none() };
    let exit = check_err!(lab::until_exit(lab::kind::SHUTDOWN, || lab::set_events(&events)));
    check_eq!(exit.kind, lab::kind::SHUTDOWN);
    check_eq!(check_ok!(lab::events()).triple_fault_pending, 0, "after the exit");
});

// KVM_INTERRUPT: "-ENXIO if the PIC is in the kernel".
test!(interrupt_in_kernel, "KVM_INTERRUPT is ENXIO with the PIC in the kernel.", || {
    check_eq!(lab::set(kvm::INTERRUPT, &0x61), Err(Errno::ENXIO));
});

test!(interrupt_user, "Without an irqchip, KVM_INTERRUPT brings one interrupt.", || {
    const VECTOR: u8 = 0x61;
    irq::handle(VECTOR, |_| {});
    reg::sti();
    let set = lab::set(kvm::INTERRUPT, &VECTOR.into());
    reg::cli();
    check_ok!(set);
    check_eq!(irq::count(VECTOR), 1, "interrupts");
    check_eq!(lab::set(kvm::INTERRUPT, &256), Err(Errno::EINVAL), "no vector");
});

// KVM_SMI: the guest of a machine without SMM code must not be sent there, so it stays pending.
test!(smi_pending, "KVM_SMI makes an SMI pending, where there is SMM.", || {
    let there = lab::check_extension(kvm::cap::SMM) != 0;
    let mut chain = Chain::new();
    let smi = chain.call(kvm::SMI, 0);
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    let gone = kvm::Events { flags: kvm::events::SMM, ..none() };
    chain.set(kvm::SET_VCPU_EVENTS, gone);
    chain.run();
    let done = chain.result(smi);
    if !there {
        check!(done.is_err(), "without KVM_CAP_X86_SMM it is {done:?}");
        return;
    }
    check_ok!(done);
    check_eq!(events.read().smi_pending, 1, "smi.pending");
    check_eq!(events.read().smi_smm, 0, "smi.smm");
    check_eq!(check_ok!(lab::events()).smi_pending, 0, "cleared by the host");
});
