//! Intercepts of instructions (AMD APM volume 2, 15.9): with the intercept on, the exit comes before
//! the instruction has done anything; with it off there is none.

use crate::l1::L1;
use crate::{guest, page};
use payload_rt::svm::vmcb::{self, Field};
use payload_rt::svm::{Guest, exit};
use payload_rt::{asm_code, check, check_eq, cpuid, mem, reg, test, trap};

/// What the instruction does in the guest when it is not intercepted.
#[derive(Clone, Copy, PartialEq)]
pub enum Alone {
    /// It runs.
    Runs,
    /// It raises this vector.
    Raises(u8),
    /// Nobody tries.
    Untried,
}
pub use Alone::*;

/// What #VMEXIT may change in the VMCB of a guest that has not come further.
const VOLATILE: &[Field] = &[
    vmcb::EXITCODE,
    vmcb::EXITINFO1,
    vmcb::EXITINFO2,
    vmcb::EXITINTINFO,
    vmcb::NRIP,
    vmcb::FETCHED,
    vmcb::FETCHED_MORE,
    vmcb::INTERRUPT_SHADOW,
    vmcb::V_INTR,
];

/// A guest whose registers hold something: RBX a page of zeroes, RSI that page too.
fn prepared(code: &'static [u8], prepare: fn(&mut Guest)) -> Guest {
    let mut guest = guest(code);
    let page = page();
    let r = &mut guest.regs;
    (r.rbx, r.rsi) = (page, page);
    (r.rdi, r.rbp, r.r8, r.r9) = (0x1111, 0x2222, 0x3333, 0x4444_4444_4444);
    (r.r10, r.r11, r.r12, r.r13) = (0x5555, 0x6666, 0x7777, !0x8888);
    (r.r14, r.r15) = (0x9999, 0xaaaa);
    prepare(&mut guest);
    guest
}

/// Tests one intercept: `code` is the instruction, and `vmmcall` behind it.
pub fn intercepted(code: &'static [u8], exit: u64, alone: Alone, prepare: fn(&mut Guest)) {
    let mut guest = prepared(code, prepare);
    guest.intercept(&[exit]);
    let l1 = L1::now();
    let before = guest.vmcb.snapshot();
    let regs = guest.regs;
    let found = guest.run();
    check!(found.code == exit, "{found:?} at {:#x}, must be code {exit:#x}", guest.rip());
    check_eq!(guest.rip(), code.as_ptr() as u64, "RIP at the exit");
    let host_rax = guest.regs.host_rax;
    check_eq!(host_rax, guest.vmcb.address(), "the hypervisor's RAX");
    check_eq!(payload_rt::svm::Registers { host_rax: 0, ..guest.regs }, regs, "registers");
    if let Some(offset) = guest.vmcb.differs(&before, VOLATILE) {
        payload_rt::fail!("the VMCB changed at {offset:#x} although nothing was executed");
    }
    l1.check_intact("after the exit");
    if alone == Untried {
        return;
    }
    let mut guest = prepared(code, prepare);
    let found = guest.run();
    check_eq!(found.code, exit::VMMCALL, "without the intercept: {found:?}");
    match (alone, guest.trap()) {
        (Raises(vector), Some(trap)) => {
            check_eq!(trap.vector, vector, "without the intercept: {trap:#x?}");
        }
        (Runs, None) => {
            let end = (code.as_ptr() as u64) + code.len() as u64 - 3;
            check_eq!(guest.rip(), end, "RIP behind the instruction that is not intercepted");
        }
        (Raises(vector), None) => payload_rt::fail!("without the intercept: no vector {vector}"),
        (_, Some(trap)) => payload_rt::fail!("without the intercept: {trap:#x?}"),
        (Untried, None) => {}
    }
    l1.check_intact("without the intercept");
}

/// Leaves the guest as it is.
pub fn nothing(_: &mut Guest) {}

macro_rules! intercepts {
    ($($name:ident $about:literal: $exit:expr, [$($line:literal),+], $alone:expr
       $(, $prepare:expr)?;)*) => {$(
        test!($name, $about, || {
            let prepare: &[fn(&mut Guest)] = &[nothing, $($prepare)?];
            intercepted(asm_code!($($line,)+ "vmmcall"), $exit, $alone, prepare[prepare.len() - 1])
        });
    )*};
}
pub(crate) use intercepts;

/// Makes the guest's page the operand of a descriptor-table load.
fn table(guest: &mut Guest, register: vmcb::Seg) {
    let now = guest.vmcb.segment(register);
    let page = guest.regs.rbx;
    let stored = mem::write(page, now.limit as u16).and_then(|()| mem::write(page + 2, now.base));
    stored.unwrap_or_else(|trap| panic!("write the operand at {page:#x}: {trap}"));
}

intercepts! {
    cpuid_exits "CPUID exits, or runs.": exit::CPUID, ["cpuid"], Runs;
    rdtsc_exits "RDTSC exits, or runs.": exit::RDTSC, ["rdtsc"], Runs;
    pushf_exits "PUSHF exits, or runs.": exit::PUSHF, ["pushfq"], Runs;
    popf_exits "POPF exits, or runs.": exit::POPF, ["popfq"], Runs;
    swint_exits "INT n exits, or enters the guest's handler.":
        exit::SWINT, ["int 0x50"], Raises(0x50);
    invd_exits "INVD exits before it does anything.": exit::INVD, ["invd"], Untried;
    wbinvd_exits "WBINVD exits, or runs.": exit::WBINVD, ["wbinvd"], Runs;
    pause_exits "PAUSE exits, or runs.": exit::PAUSE, ["pause"], Runs;
    hlt_exits "HLT exits before it halts.": exit::HLT, ["hlt"], Untried;
    invlpg_exits "INVLPG exits, or runs.": exit::INVLPG, ["invlpg [rbx]"], Runs;
    invlpga_exits "INVLPGA exits, or runs.": exit::INVLPGA, ["invlpga"], Runs;
    sidt_exits "SIDT exits, or runs.": exit::IDTR_READ, ["sidt [rbx]"], Runs;
    sgdt_exits "SGDT exits, or runs.": exit::GDTR_READ, ["sgdt [rbx]"], Runs;
    sldt_exits "SLDT exits, or runs.": exit::LDTR_READ, ["sldt eax"], Runs;
    str_exits "STR exits, or runs.": exit::TR_READ, ["str eax"], Runs;
    lidt_exits "LIDT exits, or runs.":
        exit::IDTR_WRITE, ["lidt [rbx]"], Runs, |g| table(g, vmcb::Seg::Idtr);
    lgdt_exits "LGDT exits, or runs.":
        exit::GDTR_WRITE, ["lgdt [rbx]"], Runs, |g| table(g, vmcb::Seg::Gdtr);
    lldt_exits "LLDT exits, or runs.": exit::LDTR_WRITE, ["lldt ax"], Runs;
    ltr_exits "LTR exits before it looks at its operand.": exit::TR_WRITE, ["ltr ax"], Untried;
    rsm_exits "RSM outside of SMM exits, or is #UD.": exit::RSM, ["rsm"], Raises(trap::UD);
    iret_exits "IRET exits before it touches the stack.": exit::IRET, ["iretq"], Untried;
    vmrun_exits "VMRUN exits.": exit::VMRUN, ["vmrun"], Untried;
    vmmcall_exits "VMMCALL exits with RIP at it.": exit::VMMCALL, ["vmmcall"], Untried;
    vmload_exits "VMLOAD exits.": exit::VMLOAD, ["vmload"], Untried;
    vmsave_exits "VMSAVE exits, or writes the page at RAX.":
        exit::VMSAVE, ["vmsave"], Runs, |g| g.vmcb.set(vmcb::RAX, g.regs.rbx);
    stgi_exits "STGI exits, or runs.": exit::STGI, ["stgi"], Runs;
    clgi_exits "CLGI exits.": exit::CLGI, ["clgi"], Untried;
    skinit_exits "SKINIT exits.": exit::SKINIT, ["skinit"], Untried;
    icebp_exits "ICEBP exits, or is #DB.": exit::ICEBP, [".byte 0xf1"], Raises(trap::DB);
    xsetbv_exits "XSETBV exits, or runs.": exit::XSETBV, ["xsetbv"], Runs, |g| {
        cpuid::XSAVE.require();
        g.vmcb.add(vmcb::CR4, reg::CR4_OSXSAVE);
        g.vmcb.set(vmcb::RAX, 1);
    };
    monitor_exits "MONITOR exits.":
        exit::MONITOR, ["monitor"], Untried, |g| g.vmcb.set(vmcb::RAX, g.regs.rbx);
    mwait_exits "MWAIT exits.": exit::MWAIT, ["mwait"], Untried;
    rdpmc_exits "RDPMC exits.": exit::RDPMC, ["rdpmc"], Untried;
}

test!(rdtscp_exits, "RDTSCP exits, or runs.", || {
    cpuid::RDTSCP.require();
    intercepted(asm_code!("rdtscp", "vmmcall"), exit::RDTSCP, Runs, nothing);
});
