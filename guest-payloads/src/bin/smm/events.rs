//! What SMM holds back: SMIs and NMIs (APM 10.3.5 and 10.3.6; SDM "NMI Handling While in SMM").

use crate::PATIENCE;
use crate::code::{self, ask, ask_second, asking_second, note, stack_and_idt};
use payload_rt::lab::{self, Chain, kvm};
use payload_rt::trap::NMI;
use payload_rt::{asm_code, check, check_eq, check_ok, irq, mem, test, time};

/// A chain that makes this pending, and tells what events are then.
fn making(call: kvm::Call) -> (Chain, lab::Place<kvm::Events>) {
    let mut chain = Chain::new();
    chain.call(call, 0);
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    (chain, events)
}

/// Code that notes how many SMIs there were when it ended, at the index of this SMI.
fn noting_count() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov ecx, dword ptr [esi]",
        "mov edi, ecx",
        "shl edi, 2",
        "mov dword ptr [esi + edi + 0x3c], ecx",
        "cmp ecx, 2",
        "jb 2f",
        // No more of them.
        "mov dword ptr [esi + 4], 0",
        "2:",
    )
}

test!(smi_waits, "An SMI in SMM waits for RSM, and is taken before the next instruction.", || {
    code::install(&[noting_count()]);
    let (chain, events) = making(kvm::SMI);
    ask(&chain);
    check_ok!(lab::call(kvm::SMI));
    // The first SMI made a second one pending, that a third one.
    check_eq!(code::count(), 3, "SMIs taken");
    check_eq!([note(0), note(1), note(2)], [1, 2, 3], "SMIs taken by the end of each");
    check_eq!((events.read().smi_smm, events.read().smi_pending), (1, 1), "events in SMM");
    let now = check_ok!(lab::events());
    check_eq!((now.smi_smm, now.smi_pending), (0, 0), "events afterwards");
});

test!(one_smi_is_kept, "Of several SMIs in SMM, one is kept.", || {
    code::install(&[noting_count()]);
    let mut chain = Chain::new();
    for _ in 0..3 {
        chain.call(kvm::SMI, 0);
    }
    ask(&chain);
    check_ok!(lab::call(kvm::SMI));
    time::delay(100);
    check_eq!(code::count(), 3, "SMIs taken: one of the test's, and one of each of two in SMM");
});

/// Counts NMIs, and notes how many SMIs there were at the first.
fn count_nmis() {
    irq::handle(NMI, |_| {
        if irq::count(NMI) == 1 {
            code::set_note(3, code::count());
        }
    });
}

test!(nmi_waits, "An NMI in SMM waits for RSM, and is taken behind it.", || {
    count_nmis();
    code::install(&[asking_second(), asm_code!(".code16", "mov dword ptr [esi + 0x40], 1")]);
    let (chain, events) = making(kvm::NMI);
    ask_second(&chain);
    code::smi();
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "the NMI does not come");
    check_eq!((note(0), note(3)), (1, 1), "the SMI's end, and SMIs at the NMI");
    let inside = events.read();
    check_eq!((inside.nmi_pending, inside.nmi_masked), (1, 1), "events in SMM");
    let now = check_ok!(lab::events());
    check_eq!((now.nmi_pending, now.nmi_masked), (0, 0), "events afterwards");
    time::delay(100);
    check_eq!(irq::count(NMI), 1, "NMIs");
});

/// Code that counts NMIs in SMM.
fn counting_nmi() -> &'static [u8] {
    asm_code!(".code16", "inc dword ptr [esi + 0x44]")
}

test!(nmi_is_blocked, "An NMI in SMM does not go through the IDT of SMM code.", || {
    count_nmis();
    code::install(&[stack_and_idt(), asking_second(), asm_code!(".code16", "nop", "nop")]);
    code::set_vector(NMI, counting_nmi());
    let (chain, _) = making(kvm::NMI);
    ask_second(&chain);
    code::smi();
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "the NMI does not come");
    check_eq!(note(1), 0, "NMIs in SMM");
});

test!(iret_unblocks_nmi, "IRET in SMM lets NMIs in, through the IDT of SMM code.", || {
    count_nmis();
    code::install(&[
        stack_and_idt(),
        // The call is one of 16 bits, over the jump behind it.
        asm_code!(
            ".code16",
            "pushf",
            "push cs",
            ".byte 0xe8, 2, 0",
            ".byte 0xeb, 1",
            "iret",
            "nop",
            "nop"
        ),
        asking_second(),
        asm_code!(".code16", "nop", "nop"),
    ]);
    code::set_vector(NMI, counting_nmi());
    let (chain, _) = making(kvm::NMI);
    ask_second(&chain);
    code::smi();
    check_eq!(note(1), 1, "NMIs in SMM");
    time::delay(100);
    check_eq!(irq::count(NMI), 0, "NMIs outside");
    check_ok!(lab::call(kvm::NMI));
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "NMIs are blocked afterwards");
});

// SDM "NMI Handling While in SMM"; APM 10.3.6.
test!(
    smi_in_nmi,
    "An SMI in an NMI handler leaves NMIs blocked, until the handler's IRET.",
    || {
        irq::handle(NMI, |_| {
            let first = irq::count(NMI) == 1;
            if first {
                code::smi();
                check_ok!(lab::call(kvm::NMI));
                time::delay(100);
                code::set_note(0, irq::count(NMI));
            }
        });
        let mut chain = Chain::new();
        let events = chain.get(kvm::GET_VCPU_EVENTS);
        code::install(&[]);
        ask(&chain);
        check_ok!(lab::call(kvm::NMI));
        check!(time::wait_until(PATIENCE, || irq::count(NMI) == 2), "{} NMIs", irq::count(NMI));
        check_eq!(note(0), 1, "NMIs when the first handler ended");
        check_eq!((events.read().smi_smm, events.read().smi_inside_nmi), (1, 1), "events in SMM");
    }
);

test!(smi_before_nmi, "Of an SMI and an NMI that are both due, the SMI is taken first.", || {
    count_nmis();
    code::install(&[]);
    let mut chain = Chain::new();
    chain.call(kvm::NMI, 0);
    chain.call(kvm::SMI, 0);
    chain.run();
    check!(time::wait_until(PATIENCE, || irq::count(NMI) == 1), "the NMI does not come");
    check_eq!((code::count(), note(3)), (1, 1), "SMIs, and SMIs at the NMI");
    check_eq!(mem::read(code::SMBASE + crate::map::RIP).map(in_handler), Ok(false), "it was first");
});

/// Whether an address is that of the NMI's stub, where the SMI would come if it came second.
fn in_handler(rip: u64) -> bool {
    (0x10_1000..0x10_3000).contains(&rip)
}
