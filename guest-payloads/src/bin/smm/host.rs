//! What the host sees of SMM, and puts there: events, and a guest that goes on in another VM in SMM
//! (KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, KVM_SMI).

use crate::code::{self, ask, note};
use crate::msrs::SMBASE_MSR;
use payload_rt::lab::{self, Chain, kvm, kvm::Events, op};
use payload_rt::trap::UD;
use payload_rt::{asm_code, check_eq, check_ok, check_trap, insn, irq, test, time, trap};

/// Events of which only those of SMM count.
fn smm_events() -> Events {
    Events { flags: kvm::events::SMM, ..Events::default() }
}

test!(events, "smi.smm is set in SMM and at no other time.", || {
    code::install(&[]);
    let mut chain = Chain::new();
    let inside = chain.get(kvm::GET_VCPU_EVENTS);
    ask(&chain);
    code::smi();
    let of = |e: Events| {
        (e.flags & kvm::events::SMM, e.smi_smm, e.smi_pending, e.smi_inside_nmi, e.smi_latched_init)
    };
    check_eq!(of(inside.read()), (kvm::events::SMM, 1, 0, 0, 0), "in SMM");
    check_eq!(of(check_ok!(lab::events())), (kvm::events::SMM, 0, 0, 0, 0), "afterwards");
});

test!(pending, "An SMI that the host makes pending by KVM_SET_VCPU_EVENTS is taken.", || {
    code::install(&[]);
    check_ok!(lab::set_events(&Events { smi_pending: 1, ..smm_events() }));
    time::delay(100);
    check_eq!(code::count(), 1, "SMIs taken");
    // Without the flag what it says of SMIs does not count.
    check_ok!(lab::set_events(&Events { smi_pending: 1, flags: 0, ..smm_events() }));
    time::delay(100);
    check_eq!(code::count(), 1, "SMIs taken after one without the flag");
});

/// Takes an SMI back behind these requests; none must come.
fn take_back(mut chain: Chain) {
    code::install(&[]);
    chain.set(kvm::SET_VCPU_EVENTS, smm_events());
    chain.run();
    check_ok!(chain.all_ok());
    time::delay(100);
    check_eq!(code::count(), 0, "SMIs taken");
}

test!(taken_back, "A pending SMI that the host has seen it can take back.", || {
    let mut chain = code::smi_chain();
    chain.get(kvm::GET_VCPU_EVENTS);
    take_back(chain);
});

test!(
    taken_back_unseen,
    "An SMI of KVM_SMI is not pending after KVM_SET_VCPU_EVENTS said so.",
    || {
        take_back(code::smi_chain());
    }
);

test!(into_smm, "The host can put a vCPU into SMM, and RSM is good there.", || {
    code::install(&[]);
    // A map of this CPU as it is but for the registers.
    code::smi();
    let mut chain = Chain::new();
    chain.set(kvm::SET_VCPU_EVENTS, Events { smi_smm: 1, ..smm_events() });
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    check_ok!(insn!(
        "mov [0x3ff80], r15", "mov [0x3ff88], r14", "mov [0x3ff90], r13", "mov [0x3ff98], r12",
        "mov [0x3ffd0], rbp", "mov [0x3ffd8], rsp", "mov [0x3ffe0], rbx",
        "lea rcx, [rip + 3f]", "mov [0x3ff78], rcx", "out dx, eax", "rsm", "ud2", "3: nop";
        inout("rdx") u64::from(lab::PORT) => _,
        inout("rax") u64::from(chain.address()) => _, out("rcx") _, out("rsi") _, out("rdi") _,
        out("r8") _, out("r9") _, out("r10") _, out("r11") _
    ));
    check_ok!(chain.all_ok(), "into SMM");
    check_eq!(events.read().smi_smm, 1, "smi.smm");
    check_eq!(check_ok!(lab::events()).smi_smm, 0, "smi.smm after RSM");
    check_eq!(code::count(), 1, "SMIs that ran the code of SMM");
    check_trap!(insn!("rsm"), UD, 0, "RSM afterwards");
});

test!(out_of_smm, "The host can take a vCPU out of SMM, and RSM is #UD from then on.", || {
    code::install(&[
        code::stack_and_idt(),
        code::asking_second(),
        // RSM, which is two bytes, and a count if it trapped.
        asm_code!(".code16", "rsm", "mov dword ptr [esi + 0x44], 1"),
        code::asking_second(),
    ]);
    code::set_vector(
        UD,
        asm_code!(
            ".code16",
            "inc dword ptr [esi + 0x40]",
            "mov bp, sp",
            "add word ptr [bp], 2",
            // The chain back into SMM.
            "mov eax, dword ptr [esi + 0x4c]",
            "mov dword ptr [esi + 0x30], eax",
        ),
    );
    let (mut out, mut back) = (Chain::new(), Chain::new());
    out.set(kvm::SET_VCPU_EVENTS, smm_events());
    back.set(kvm::SET_VCPU_EVENTS, Events { smi_smm: 1, ..smm_events() });
    code::ask_second(&out);
    code::set_note(3, back.address());
    code::smi();
    check_ok!(out.all_ok(), "out of SMM");
    check_ok!(back.all_ok(), "back into SMM");
    check_eq!((note(0), note(1)), (1, 1), "#UD of RSM, and what is behind it");
});

/// A chain that goes on in another VM.
fn moving() -> Chain {
    let mut chain = Chain::new();
    chain.ask(op::TRANSPLANT, &[]);
    chain
}

test!(moved_inside, "SMM goes on in another VM, and RSM leads back to the guest there.", || {
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x40], 1")]);
    let mut chain = moving();
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    ask(&chain);
    code::smi();
    check_ok!(chain.all_ok(), "into another VM");
    check_eq!(note(0), 1, "SMM code behind the move");
    check_eq!(events.read().smi_smm, 1, "smi.smm in the new VM");
    check_eq!(check_ok!(lab::events()).smi_smm, 0, "smi.smm behind RSM");
    check_trap!(insn!("rsm"), UD, 0, "RSM behind it");
    code::install(&[]);
    code::smi();
});

test!(moved_with_smi, "An SMI that is pending in SMM is taken in the new VM, behind RSM.", || {
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 4], 0")]);
    let mut chain = code::smi_chain();
    chain.ask(op::TRANSPLANT, &[]);
    ask(&chain);
    check_ok!(lab::call(kvm::SMI));
    check_ok!(chain.all_ok(), "into another VM");
    check_eq!(code::count(), 2, "SMIs taken");
});

test!(moved_with_nmi, "An NMI that waits for RSM comes in the new VM, behind RSM.", || {
    irq::handle(trap::NMI, |_| {});
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x40], 1")]);
    let mut chain = Chain::new();
    chain.call(kvm::NMI, 0);
    chain.ask(op::TRANSPLANT, &[]);
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    ask(&chain);
    code::smi();
    check_ok!(chain.all_ok(), "into another VM");
    let came = time::wait_until(crate::PATIENCE, || irq::count(trap::NMI) == 1);
    payload_rt::check!(came, "{} NMIs", irq::count(trap::NMI));
    check_eq!(note(0), 1, "SMM code behind the move");
    check_eq!((events.read().nmi_pending, events.read().nmi_masked), (1, 1), "events in SMM");
});

test!(moved_base, "SMBASE goes along into another VM.", || {
    const OTHER: u64 = 0x4_0000;
    crate::resume::relocate(OTHER);
    check_ok!(lab::transplant(), "into another VM");
    check_eq!(lab::msr(SMBASE_MSR), Ok(Some(OTHER)), "IA32_SMBASE");
    code::install_at(OTHER, &[asm_code!(".code16", "mov dword ptr [esi + 0x40], 1")]);
    code::smi();
    check_eq!(note(0), 1, "SMM code at the new SMBASE");
});
