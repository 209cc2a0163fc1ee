//! Intercepts of exceptions (AMD APM volume 2, 15.12): the exit comes in the place of the guest's
//! handler, with nothing on the guest's stack.

use crate::instructions::nothing;
use crate::l1::L1;
use crate::{guest, page, run_to};
use payload_rt::svm::vmcb::{self, Seg, Segment};
use payload_rt::svm::{Guest, exit};
use payload_rt::trap::*;
use payload_rt::{asm_code, check_eq, cpu, reg, test};

/// An address that no table maps: at 5 GiB.
const UNMAPPED: u64 = 5 << 30;
/// Not canonical.
const WILD: u64 = 1 << 62;

/// Tests one exception. `at` is where RIP must be from the start of the code, `error` the error code.
fn excepted(code: &'static [u8], vector: u8, at: u64, error: Option<u64>, prepare: fn(&mut Guest)) {
    let ready = || {
        let mut guest = guest(code);
        guest.regs.rbx = page();
        prepare(&mut guest);
        guest
    };
    let mut guest = ready();
    guest.intercept(&[exit::exception(vector)]);
    let rsp = guest.vmcb.get(vmcb::RSP);
    let l1 = L1::now();
    let found = run_to(&mut guest, exit::exception(vector), "intercepted");
    let rip = code.as_ptr() as u64 + at;
    check_eq!(guest.rip(), rip, "RIP at the exit");
    if let Some(error) = error {
        check_eq!(found.info1, error, "EXITINFO1, the error code");
    }
    check_eq!(guest.vmcb.get(vmcb::RSP), rsp, "RSP at the exit");
    check_eq!(guest.vmcb.get(vmcb::EXITINTINFO) >> 31 & 1, 0, "EXITINTINFO's valid bit");
    l1.check_intact("after the exit");

    let mut guest = ready();
    let found = guest.run();
    let Some(trap) = guest.trap() else {
        payload_rt::fail!("without the intercept: {found:?} at {:#x}", guest.rip())
    };
    check_eq!(trap.vector, vector, "without the intercept");
    check_eq!(trap.error_code, error.unwrap_or(0), "the error code on the guest's stack");
}

macro_rules! exceptions {
    ($($name:ident $about:literal: $vector:expr, [$($line:literal),+], $at:expr, $error:expr
       $(, $prepare:expr)?;)*) => {$(
        test!($name, $about, || {
            let prepare: &[fn(&mut Guest)] = &[nothing, $($prepare)?];
            let prepare = prepare[prepare.len() - 1];
            excepted(asm_code!($($line,)+ "vmmcall"), $vector, $at, $error, prepare)
        });
    )*};
}

/// Makes the guest run 32-bit code at CPL 0, under its hypervisor's 64-bit tables.
fn compatibility(guest: &mut Guest) {
    let mut cs = guest.vmcb.segment(Seg::Cs);
    (cs.selector, cs.attributes) = (cpu::KERNEL_CS32, 0xc9b);
    guest.vmcb.set_segment(Seg::Cs, cs);
}

/// A data segment that is not present, in RAX.
fn absent_segment(guest: &mut Guest) {
    let selector = cpu::set_descriptor(0, 0x00cf_1300_0000_ffff);
    guest.vmcb.set(vmcb::RAX, selector.into());
}

exceptions! {
    de_exits "An intercepted #DE exits at the division.":
        DE, ["xor edx, edx", "xor ecx, ecx", "div ecx"], 4, None;
    db_exits "An intercepted #DB of a single step exits behind the instruction.":
        DB, ["nop"], 1, None, |g| g.vmcb.add(vmcb::RFLAGS, reg::FLAG_TF);
    bp_exits "An intercepted #BP exits at INT3.": BP, ["int3"], 0, None;
    of_exits "An intercepted #OF exits at INTO.":
        OF, [".code32", "mov eax, 0x7fffffff", "inc eax", ".byte 0xce"], 6, None, compatibility;
    br_exits "An intercepted #BR exits at BOUND.":
        BR, [".code32", "mov eax, -1", ".byte 0x62, 0x03"], 5, None, compatibility;
    ud_exits "An intercepted #UD exits at the instruction.": UD, ["ud2"], 0, None;
    nm_exits "An intercepted #NM exits at the x87 instruction under CR0.TS.":
        NM, ["fnop"], 0, None, |g| g.vmcb.add(vmcb::CR0, reg::CR0_TS);
    np_exits "An intercepted #NP exits with the selector as error code.":
        NP, ["mov ds, eax"], 0, Some(cpu::FREE_SELECTOR.into()), absent_segment;
    ss_exits "An intercepted #SS exits with the selector as error code.":
        SS, ["mov ss, eax"], 0, Some(cpu::FREE_SELECTOR.into()), absent_segment;
    gp_exits "An intercepted #GP exits with error code 0 for an address that is not canonical.":
        GP, ["mov rax, [rcx]"], 0, Some(0), |g| g.regs.rcx = WILD;
    mf_exits "An intercepted #MF exits at the x87 instruction that waits.":
        MF, ["mov word ptr [rbx], 0x300", "fninit", "fldcw [rbx]", "fld1", "fldz",
             "fdivp st(1), st(0)", "fwait"], 15, None;
    xm_exits "An intercepted #XM exits at the SSE instruction.":
        XM, ["mov dword ptr [rbx], 0", "ldmxcsr [rbx]", "xorps xmm0, xmm0", "divps xmm0, xmm0"],
        12, None;
}

fn page_fault(code: &'static [u8], error: u64, prepare: fn(&mut Guest)) {
    let mut guest = guest(code);
    guest.regs.rcx = UNMAPPED + 0x123;
    prepare(&mut guest);
    guest.vmcb.set(vmcb::CR2, 0x1111);
    guest.intercept(&[exit::exception(PF)]);
    let found = run_to(&mut guest, exit::exception(PF), "intercepted");
    check_eq!(found.info1, error, "EXITINFO1, the error code");
    check_eq!(found.info2, UNMAPPED + 0x123, "EXITINFO2, the address");
    check_eq!(guest.vmcb.get(vmcb::CR2), 0x1111, "CR2 in the VMCB");
    guest.vmcb.intercept(exit::exception(PF), false);
    let found = guest.run();
    let Some(trap) = guest.trap() else { payload_rt::fail!("without the intercept: {found:?}") };
    check_eq!((trap.vector, trap.error_code), (PF, error), "without the intercept");
    check_eq!(guest.vmcb.get(vmcb::CR2), UNMAPPED + 0x123, "CR2 after a #PF that the guest took");
}

// 15.12.15: the error code in EXITINFO1, the address in EXITINFO2, CR2 as it was.
test!(
    pf_read_exits,
    "An intercepted #PF of a read has its address in EXITINFO2, and spares CR2.",
    || {
        page_fault(asm_code!("mov rax, [rcx]", "vmmcall"), 0, nothing);
    }
);

test!(pf_write_exits, "An intercepted #PF of a write has the W bit in EXITINFO1.", || {
    page_fault(asm_code!("mov [rcx], rax", "vmmcall"), 2, nothing);
});

test!(
    pf_fetch_exits,
    "An intercepted #PF of a fetch has the I/D bit in EXITINFO1 under NXE.",
    || {
        page_fault(asm_code!("jmp rcx", "vmmcall"), 0x10, nothing);
    }
);

// 15.12.10 with 8.2.9: #GP whose gate is absent is #NP, which makes a double fault.
test!(df_exits, "An intercepted #DF exits with error code 0.", || {
    let mut guest = guest(asm_code!("mov rax, [rcx]", "vmmcall"));
    guest.regs.rcx = WILD;
    guest.close_gate(GP);
    guest.close_gate(NP);
    let rip = guest.rip();
    guest.intercept(&[exit::exception(DF)]);
    let found = run_to(&mut guest, exit::exception(DF), "intercepted");
    check_eq!(found.info1, 0, "EXITINFO1");
    check_eq!(guest.rip(), rip, "RIP at the exit");
});

// 15.12.2: DR6 as the guest's handler would see it.
test!(db_dr6, "An intercepted single step has DR6.BS in the VMCB.", || {
    let mut guest = guest(asm_code!("nop", "vmmcall"));
    guest.vmcb.add(vmcb::RFLAGS, reg::FLAG_TF);
    guest.intercept(&[exit::exception(DB)]);
    run_to(&mut guest, exit::exception(DB), "the step");
    check_eq!(guest.vmcb.get(vmcb::DR6), 0xffff_4ff0, "DR6");
});

// Chapter 13.1.1: DR0 to DR3 are shared, DR7 of the guest enables them.
test!(breakpoint_exits, "A breakpoint that the guest's DR7 enables is an intercepted #DB.", || {
    let code = asm_code!("nop", "nop", "vmmcall");
    let mut guest = guest(code);
    let at = code.as_ptr() as u64 + 1;
    reg::set_dr(0, at).unwrap_or_else(|trap| panic!("write DR0: {trap}"));
    guest.vmcb.set(vmcb::DR7, 0x401);
    guest.intercept(&[exit::exception(DB)]);
    run_to(&mut guest, exit::exception(DB), "the breakpoint");
    check_eq!(guest.rip(), at, "RIP at the exit");
    check_eq!(guest.vmcb.get(vmcb::DR6) & 0xf, 1, "DR6.B0 to B3");
});

// 15.12: the intercept of one vector is no other's.
test!(
    only_the_vector_named,
    "With all other vectors intercepted, a #UD goes to the guest.",
    || {
        let mut guest = guest(asm_code!("ud2", "vmmcall"));
        for vector in (0..32).filter(|&vector| vector != UD) {
            guest.intercept(&[exit::exception(vector)]);
        }
        let found = guest.run();
        check_eq!(guest.trap().map(|trap| trap.vector), Some(UD), "{found:?}");
    }
);

// 15.14.3.
test!(triple_fault, "A triple fault of the guest is the exit SHUTDOWN, and L1 goes on.", || {
    let mut guest = guest(asm_code!("ud2", "vmmcall"));
    guest.vmcb.set_segment(Seg::Idtr, Segment::default());
    let l1 = L1::now();
    run_to(&mut guest, exit::SHUTDOWN, "without an IDT");
    l1.check_intact("after SHUTDOWN");
    let mut next = crate::guest(asm_code!("mov ebx, 7", "vmmcall"));
    crate::run_to_end(&mut next, "another guest");
    check_eq!(next.regs.rbx, 7, "RBX of the other guest");
});
