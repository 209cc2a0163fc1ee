//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE of a hypervisor on SVM. L1 intercepts no port, or not the
//! lab's: so L2 itself asks for the calls, and is in the middle of its run while they are made.

use crate::{
    GIF_SET, GUEST_MODE, Nested, RUN_PENDING, check_nested_refused, nested, round_trip, set_nested,
    transplant_chain,
};
use payload_rt::lab::{self, Chain};
use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::{self, Guest, exit, vmcb};
use payload_rt::{apic, asm_code, check, check_eq, check_ok, frames, irq, test};

/// KVM_STATE_NESTED_FORMAT_SVM, as the header's first word has it.
const FORMAT_SVM: u64 = 1 << 16;
const FORMAT: u64 = 0xffff << 16;

/// A guest that has the host carry out the chain, counts in R12, and ends.
fn guest(chain: &Chain) -> Guest {
    svm::enable();
    let mut guest =
        Guest::new(asm_code!("out dx, eax", "inc r12", "vmmcall", "inc r13", "vmmcall"));
    ask(&mut guest, chain);
    guest
}

fn ask(guest: &mut Guest, chain: &Chain) {
    guest.vmcb.set(vmcb::RAX, chain.address().into());
    guest.regs.rdx = lab::PORT.into();
}

/// Runs it to its second `vmmcall`, and checks what it has done and kept, and L1.
fn check_runs(mut guest: Guest, chain: &Chain) {
    guest.regs.rbx = 0x1234_5678_9abc_def0;
    guest.regs.r15 = 0x0fed_cba9_8765_4321;
    check_ok!(wrmsr(reg::LSTAR, 0x7fff_1000));
    let (cr3, cr4, rsp) = (reg::cr3(), reg::cr4(), guest.vmcb.get(vmcb::RSP));
    let start = guest.rip();
    let first = guest.run();
    check_ok!(chain.all_ok(), "the calls in the middle of L2");
    check_eq!(first.code, exit::VMMCALL, "{first:?} at {:#x}", guest.rip());
    check_eq!((guest.rip(), guest.regs.r12), (start + 4, 1), "RIP and R12 at the exit");
    check_eq!(guest.regs.rbx, 0x1234_5678_9abc_def0, "RBX");
    check_eq!(guest.regs.r15, 0x0fed_cba9_8765_4321, "R15");
    check_eq!(guest.vmcb.get(vmcb::RSP), rsp, "RSP");
    check_eq!(rdmsr(reg::LSTAR), Ok(0x7fff_1000), "LSTAR of L1");
    check_eq!((reg::cr3(), reg::cr4()), (cr3, cr4), "CR3 and CR4 of L1");
    guest.skip(3);
    let second = guest.run();
    check_eq!(second.code, exit::VMMCALL, "the next run: {second:?}");
    check_eq!((guest.regs.r12, guest.regs.r13), (1, 1), "what L2 did in both");
    check_eq!(nested()[0] & 0xffff, GIF_SET, "flags of the state, back in L1");
}

// KVM_GET_NESTED_STATE.
test!(svm_get_in_l2, "In the middle of L2 the state says so, and names the VMCB.", || {
    let (chain, state) = round_trip(false);
    let guest = guest(&chain);
    let vmcb = guest.vmcb.address();
    check_runs(guest, &chain);
    let state = state.read();
    check_eq!(state[0] & 0xffff_ffff, FORMAT_SVM | GUEST_MODE | GIF_SET, "flags and format");
    check_eq!(state[0] >> 32, 128 + 4096, "size");
    check_eq!(state[1], vmcb, "address of the VMCB");
});

// KVM_SET_NESTED_STATE.
test!(svm_set_in_l2, "L2 goes on after its state was got and set again.", || {
    let (chain, _) = round_trip(true);
    check_runs(guest(&chain), &chain);
});

test!(svm_transplant, "L2 goes on in another VM, and exits to L1 there.", || {
    let chain = transplant_chain();
    check_runs(guest(&chain), &chain);
});

test!(svm_transplant_npt, "L2 under nested paging goes on in another VM.", || {
    let chain = transplant_chain();
    let mut guest = guest(&chain);
    guest.nest(&Npt::identity());
    check_runs(guest, &chain);
});

test!(
    svm_transplant_ports,
    "L2 goes on in another VM under the port map of L1, which still counts.",
    || {
        let chain = transplant_chain();
        svm::enable();
        let code = asm_code!("out dx, eax", "out 0x80, al", "vmmcall");
        let mut guest = Guest::new(code);
        ask(&mut guest, &chain);
        let map = frames::alloc_range(3, 4096);
        for at in (map..map + 3 * 4096).step_by(8) {
            check_ok!(payload_rt::mem::write(at, 0u64));
        }
        check_ok!(payload_rt::mem::write(map + 0x80 / 8, 1u8));
        guest.intercept(&[exit::IOIO]);
        guest.vmcb.set(vmcb::IOPM_BASE, map);
        let start = guest.rip();
        let found = guest.run();
        check_ok!(chain.all_ok(), "the transplant");
        check_eq!((found.code, guest.rip()), (exit::IOIO, start + 1), "{found:?}");
        check_eq!(found.info1 >> 16, 0x80, "the port");
    }
);

test!(svm_transplant_l1, "L1 goes on in another VM, with what it keeps of its guest.", || {
    let (chain, _) = round_trip(false);
    let mut guest = guest(&chain);
    check_eq!(guest.run().code, exit::VMMCALL, "the first run");
    crate::transplant();
    guest.skip(3);
    check_eq!(guest.run().code, exit::VMMCALL, "the run in the new VM");
    check_eq!(guest.regs.r13, 1, "what L2 did there");
});

// APM volume 2, 15.17: GIF is a part of the state.
test!(svm_gif, "GIF is a part of the state, and holds interrupts back in the new VM.", || {
    const VECTOR: u8 = 0x56;
    svm::enable();
    irq::count_only(VECTOR);
    let apic = apic::local();
    apic.enable();
    check_eq!(nested()[0] & 0xffff, GIF_SET, "with GIF set");
    check_ok!(svm::clgi());
    check_eq!(nested()[0] & 0xffff, 0, "with GIF clear");
    crate::transplant();
    check_eq!(nested()[0] & 0xffff, 0, "in the new VM");
    apic.self_ipi(VECTOR);
    irq::let_in(2_000);
    check_eq!(irq::count(VECTOR), 0, "interrupts with GIF clear");
    check_ok!(svm::stgi());
    check!(irq::wait_for(VECTOR, 1, crate::PATIENCE), "none after STGI");
    let mut state = nested();
    state[0] &= !GIF_SET;
    check_ok!(set_nested(&state));
    check_eq!(nested()[0] & 0xffff, 0, "cleared by the host");
    check_ok!(svm::stgi());
});

test!(svm_refused, "A state that cannot be is EINVAL, and nothing changes.", || {
    svm::enable();
    let good = nested();
    let refused = |what: &str, change: fn(&mut Nested)| {
        let mut state = good;
        change(&mut state);
        check_nested_refused(&state, what);
        check_eq!(nested()[..2], good[..2], "the state after {what}");
    };
    refused("an unknown flag", |s| s[0] |= 1 << 9);
    refused("another unknown flag", |s| s[0] |= 1 << 4);
    refused("a size below the header's", |s| s[0] = s[0] & 0xffff_ffff | 127 << 32);
    refused("the format of VMX", |s| s[0] &= !FORMAT);
    refused("an unknown format", |s| s[0] |= 7 << 16);
    refused("an entry under way outside of L2", |s| s[0] |= RUN_PENDING);
    refused("a VMCB that is not aligned", |s| {
        (s[0], s[1]) = (s[0] & 0xffff_ffff | GUEST_MODE | 4224 << 32, 0x8008)
    });
    refused("L2 without its VMCB", |s| {
        (s[0], s[1]) = (s[0] & 0xffff_ffff | GUEST_MODE | 128 << 32, 0x8000)
    });
});

test!(svm_refused_off, "Without EFER.SVME there is no state but GIF.", || {
    payload_rt::cpuid::SVM.require();
    let good = nested();
    check_eq!(good[0] & 0xffff, GIF_SET, "flags");
    for flags in [0, GUEST_MODE | GIF_SET] {
        let mut state = good;
        state[0] = state[0] & !0xffff | flags;
        check_nested_refused(&state, "flags without EFER.SVME");
    }
    check_ok!(set_nested(&good));
});

test!(svm_header, "Outside of L2 the header is all of the state.", || {
    svm::enable();
    let mut bytes = [0; 128];
    check_eq!(lab::nested_state(&mut bytes), Ok(128), "its size");
});
