//! Registers that a guest has in the new VM as it had them in the old one.

use crate::{transplant, transplant_chain};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::lab;
use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::trap::{DB, UD};
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, cpuid, frames, insn, insn_raw, irq, mem, simd_fn, test,
    time,
};

/// CF, PF, AF, ZF, SF, DF, OF and ID.
const FLAGS: u64 = 0x20_0cd5;

// KVM_GET_REGS, KVM_SET_REGS.
test!(general_registers, "General registers and flags are those of the old VM.", || {
    let chain = transplant_chain();
    // What goes in, in the order of the code below, and what came out.
    let mut words: [u64; 32] =
        core::array::from_fn(|i| 0x1111_1111_1111_1111 * (i as u64 % 15 + 1));
    words[0] = chain.address().into();
    words[13] = FLAGS | 2;
    insn_raw!(
        "push rbp", "push rbx", "push rsi",
        "mov rax, [rsi]",
        "mov rbx, [rsi + 8]", "mov rcx, [rsi + 16]", "mov rdi, [rsi + 24]", "mov rbp, [rsi + 32]",
        "mov r8, [rsi + 40]", "mov r9, [rsi + 48]", "mov r10, [rsi + 56]", "mov r11, [rsi + 64]",
        "mov r12, [rsi + 72]", "mov r13, [rsi + 80]", "mov r14, [rsi + 88]", "mov r15, [rsi + 96]",
        "push qword ptr [rsi + 104]", "popfq",
        "mov rsi, [rsi + 112]",
        "out dx, eax",
        "pushfq", "push rsi",
        "mov rsi, [rsp + 16]",
        "mov [rsi + 128], rax",
        "mov [rsi + 136], rbx", "mov [rsi + 144], rcx", "mov [rsi + 152], rdi", "mov [rsi + 160], rbp",
        "mov [rsi + 168], r8", "mov [rsi + 176], r9", "mov [rsi + 184], r10", "mov [rsi + 192], r11",
        "mov [rsi + 200], r12", "mov [rsi + 208], r13", "mov [rsi + 216], r14", "mov [rsi + 224], r15",
        "pop qword ptr [rsi + 240]", "pop qword ptr [rsi + 232]",
        "cld", "pop rsi", "pop rbx", "pop rbp";
        inout("rsi") words.as_mut_ptr() => _, in("edx") u32::from(lab::PORT),
        out("rax") _, out("rcx") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _,
        out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _
    );
    check_ok!(chain.all_ok());
    for i in 0..15 {
        check_eq!(words[16 + i], words[i], "word {i}");
    }
});

/// Writes these MSRs, transplants, and checks that each reads as it was written.
fn check_msrs(msrs: &[(u32, u64)]) {
    for &(msr, value) in msrs {
        check_ok!(wrmsr(msr, value), "write {value:#x} to MSR {msr:#x}");
    }
    transplant();
    for &(msr, value) in msrs {
        check_eq!(rdmsr(msr), Ok(value), "MSR {msr:#x}");
    }
}

// KVM_GET_MSRS, KVM_SET_MSRS.
test!(syscall_msrs, "STAR, LSTAR, CSTAR and SFMASK are kept.", || {
    check_msrs(&[
        (reg::STAR, 0x0033_0008_1234_5678),
        (reg::LSTAR, 0x7fff_1234_5000),
        (reg::CSTAR, 0x7fff_2345_6000),
        (reg::FMASK, 0x4_7700),
    ]);
});

test!(base_msrs, "The bases of FS and GS, and what SWAPGS brings, are kept.", || {
    check_msrs(&[
        (reg::FS_BASE, 0x7fff_3456_7000),
        (reg::GS_BASE, 0xffff_8765_4321_0000),
        (reg::KERNEL_GS_BASE, 0x7fff_4567_8000),
    ]);
    check_ok!(insn!("swapgs"));
    check_eq!(rdmsr(reg::GS_BASE), Ok(0x7fff_4567_8000), "GS base after SWAPGS");
});

test!(sysenter_msrs, "The three MSRs of SYSENTER are kept.", || {
    check_msrs(&[
        (reg::SYSENTER_CS, 0x1238),
        (reg::SYSENTER_ESP, 0x7654_8000),
        (reg::SYSENTER_EIP, 0x7643_9000),
    ]);
});

// SDM volume 3, 13.11.2: the default type, the fixed ranges, and each variable range that MTRRCAP counts.
test!(memory_type_msrs, "PAT and MTRRs are kept.", || {
    let pat = 0x0007_0106_0507_0406;
    check_msrs(&[
        (reg::PAT, pat),
        (0x250, 0x0606_0606_0606_0606),
        (0x258, 0x0404_0404_0404_0404),
        (0x26f, 0x0505_0505_0505_0505),
        (0x200, 0xc000_0000),
        (0x201, 0xf_c000_0800),
        (0x20e, 0xe000_0001),
        (0x20f, 0xf_f000_0800),
        (0x2ff, 0xc06),
    ]);
});

test!(tsc_aux, "IA32_TSC_AUX is kept.", || {
    check_msrs(&[(reg::TSC_AUX, 0x1234_5678)]);
});

/// IA32_TSC_ADJUST.
const TSC_ADJUST: u32 = 0x3b;

test!(tsc_adjust, "IA32_TSC_ADJUST is kept.", || {
    check_msrs(&[(TSC_ADJUST, 1 << 44)]);
    check_eq!(lab::msr(TSC_ADJUST), Ok(Some(1 << 44)), "as the host has it");
});

// SDM volume 3, 19.17.3: a write moves the TSC by the difference.
test!(tsc_adjust_moves, "IA32_TSC_ADJUST moves the TSC once, and not again in the new VM.", || {
    const STEP: u64 = 1 << 44;
    let before = time::rdtsc();
    check_ok!(wrmsr(TSC_ADJUST, STEP));
    let moved = time::rdtsc();
    check!(moved.wrapping_sub(before) >= STEP, "a write moved the TSC from {before} to {moved}");
    transplant();
    let after = time::rdtsc();
    check!(after.wrapping_sub(moved) < STEP / 2, "the TSC went from {moved} to {after}");
});

// KVM_SET_MSRS: the host's write of IA32_TSC_ADJUST is state, and moves nothing.
test!(
    tsc_adjust_by_host,
    "The host's write of IA32_TSC_ADJUST is seen, and leaves the TSC.",
    || {
        const STEP: u64 = 1 << 44;
        let before = time::rdtsc();
        check_eq!(lab::set_msr(TSC_ADJUST, STEP), Ok(true));
        let after = time::rdtsc();
        check!(after.wrapping_sub(before) < STEP / 2, "the TSC went from {before} to {after}");
        check_eq!(rdmsr(TSC_ADJUST), Ok(STEP), "IA32_TSC_ADJUST");
    }
);

test!(tsc, "The TSC goes on from where it was.", || {
    let before = time::rdtsc();
    // Far beyond what any host takes for it.
    const FAR: u64 = 1 << 46;
    check_ok!(wrmsr(reg::TSC, before + FAR));
    let moved = time::rdtsc();
    transplant();
    let after = time::rdtsc();
    check!(after >= moved, "the TSC went back from {moved} to {after}");
    check!(after - moved < FAR / 2, "the TSC jumped from {moved} to {after}");
});

test!(control_registers, "Control registers, EFER and table registers are kept.", || {
    check_ok!(reg::set_cr2(0x1234_5678_9000));
    check_ok!(reg::set_cr8(5));
    let now = || {
        let efer = check_ok!(rdmsr(reg::EFER));
        let tables = [check_ok!(reg::sgdt()), check_ok!(reg::sidt())];
        let selectors = [reg::ds(), reg::es(), reg::fs(), reg::gs(), reg::ss(), reg::cs()];
        ([reg::cr0(), reg::cr2(), reg::cr3(), reg::cr4(), reg::cr8(), efer], tables, selectors)
    };
    let before = now();
    transplant();
    check_eq!(now(), before);
});

test!(debug_registers, "Debug registers are kept.", || {
    for n in 0..4 {
        check_ok!(reg::set_dr(n, 0x1111_0000 * (u64::from(n) + 1)));
    }
    check_ok!(reg::set_dr(6, 0xffff_4ff5));
    let dr6 = reg::dr(6);
    transplant();
    for n in 0..4 {
        check_eq!(reg::dr(n), Ok(0x1111_0000 * (u64::from(n) + 1)), "DR{n}");
    }
    check_eq!(reg::dr(6), dr6, "DR6");
    check_eq!(reg::dr(7), Ok(0x400), "DR7");
});

static HITS: AtomicU32 = AtomicU32::new(0);
static HIT_AT: AtomicU64 = AtomicU64::new(0);

test!(armed_breakpoint, "A breakpoint that was armed in the old VM is hit in the new one.", || {
    irq::handle(DB, |frame| {
        HITS.fetch_add(1, SeqCst);
        HIT_AT.store(frame.rip, SeqCst);
        frame.rflags |= reg::FLAG_RF;
    });
    let chain = transplant_chain();
    let at: u64;
    check_ok!(insn!(
        "lea {0}, [rip + 2f]", "mov dr0, {0}", "mov {1}, dr7", "or {1}, 2", "mov dr7, {1}",
        "out dx, eax", "nop", "2: nop", "nop", "and {1}, -3", "mov dr7, {1}";
        out(reg) at, out(reg) _, in("edx") u32::from(lab::PORT), in("eax") chain.address()
    ));
    check_ok!(chain.all_ok());
    check_eq!((HITS.load(SeqCst), HIT_AT.load(SeqCst)), (1, at), "hits, and where");
});

simd_fn! {
    /// XMM0 to XMM15 from 32 words, an OUT of a chain's address, and back to the words behind them.
    pub fn xmm_around_out(chain: u32, words: &mut [u64; 64]) {
        insn_raw!(
            "movups xmm0, [rsi]", "movups xmm1, [rsi + 16]", "movups xmm2, [rsi + 32]",
            "movups xmm3, [rsi + 48]", "movups xmm4, [rsi + 64]", "movups xmm5, [rsi + 80]",
            "movups xmm6, [rsi + 96]", "movups xmm7, [rsi + 112]", "movups xmm8, [rsi + 128]",
            "movups xmm9, [rsi + 144]", "movups xmm10, [rsi + 160]", "movups xmm11, [rsi + 176]",
            "movups xmm12, [rsi + 192]", "movups xmm13, [rsi + 208]", "movups xmm14, [rsi + 224]",
            "movups xmm15, [rsi + 240]",
            "out dx, eax",
            "movups [rsi + 256], xmm0", "movups [rsi + 272], xmm1", "movups [rsi + 288], xmm2",
            "movups [rsi + 304], xmm3", "movups [rsi + 320], xmm4", "movups [rsi + 336], xmm5",
            "movups [rsi + 352], xmm6", "movups [rsi + 368], xmm7", "movups [rsi + 384], xmm8",
            "movups [rsi + 400], xmm9", "movups [rsi + 416], xmm10", "movups [rsi + 432], xmm11",
            "movups [rsi + 448], xmm12", "movups [rsi + 464], xmm13", "movups [rsi + 480], xmm14",
            "movups [rsi + 496], xmm15";
            in("rsi") words.as_mut_ptr(), in("edx") u32::from(lab::PORT), in("eax") chain
        );
    }
}

/// 32 words that differ, and 32 of zeroes behind them.
pub fn pattern() -> [u64; 64] {
    core::array::from_fn(|i| if i < 32 { 0x0123_4567_89ab_cd00 + 3 * i as u64 } else { 0 })
}

// KVM_GET_XSAVE, KVM_SET_XSAVE.
test!(xmm, "XMM0 to XMM15 are kept.", || {
    let chain = transplant_chain();
    let mut words = pattern();
    xmm_around_out(chain.address(), &mut words);
    check_ok!(chain.all_ok());
    check_eq!(words[32..], words[..32]);
});

/// Runs code at CPL 3 that ends with `ret`; each `ud2` in it has the guest go on in another VM. RSI is the
/// address of a page, which holds the words.
fn run_user(code: &'static [u8], words: &mut [u64; 64]) {
    irq::handle(UD, |frame| {
        // What the code returns to is a `ud2` as well.
        if frame.cs & 3 == 3 && HITS.fetch_add(1, SeqCst) == 0 {
            transplant();
            frame.rip += 2;
        } else {
            irq::unhandle(UD);
        }
    });
    let mut user = User::new(code);
    let page = user.regs.rip + 0x800;
    user.regs.rsi = page;
    for (i, word) in words.iter().enumerate() {
        let at = check_ok!(payload_rt::paging::translate(page).ok_or("not mapped"));
        check_ok!(mem::write(at + 8 * i as u64, *word));
    }
    check_eq!(user.run().end, End::Done, "code at CPL 3");
    for (i, word) in words.iter_mut().enumerate() {
        let at = check_ok!(payload_rt::paging::translate(page).ok_or("not mapped"));
        *word = check_ok!(mem::read(at + 8 * i as u64));
    }
    check!(HITS.load(SeqCst) >= 1, "no transplant");
}

test!(
    user,
    "Code at CPL 3 goes on in the new VM, in the handler of its trap and behind it.",
    || {
        let mut words = pattern();
        run_user(
            asm_code!(
                "mov rbx, [rsi]",
                "mov r15, [rsi + 8]",
                "ud2",
                "mov [rsi + 256], rbx",
                "mov [rsi + 264], r15",
                "pushfq",
                "pop qword ptr [rsi + 272]",
                "mov ax, cs",
                "mov [rsi + 280], rax",
                "ret"
            ),
            &mut words,
        );
        check_eq!(words[32..34], words[..2], "RBX and R15");
        check_eq!(words[34] & reg::FLAG_IF, reg::FLAG_IF, "RFLAGS.IF");
        check_eq!(words[35] & 3, 3, "CPL");
    }
);

test!(mxcsr, "MXCSR, and XMM registers at CPL 3, are kept.", || {
    let mut words = pattern();
    words[16] = 0x7fa1;
    run_user(
        asm_code!(
            "ldmxcsr [rsi + 128]",
            "movups xmm3, [rsi]",
            "movups xmm15, [rsi + 16]",
            "ud2",
            "stmxcsr [rsi + 384]",
            "movups [rsi + 256], xmm3",
            "movups [rsi + 272], xmm15",
            "ret"
        ),
        &mut words,
    );
    check_eq!(words[48], 0x7fa1, "MXCSR");
    check_eq!(words[32..36], words[..4], "XMM3 and XMM15");
});

/// XCR0: x87, SSE and AVX state.
const XCR0_AVX: u64 = 7;

// KVM_GET_XCRS, KVM_SET_XCRS.
test!(ymm, "YMM registers and XCR0 are kept.", || {
    cpuid::AVX.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSXSAVE));
    check_ok!(reg::xsetbv(0, XCR0_AVX));
    let mut words = pattern();
    run_user(
        asm_code!(
            "vmovups ymm0, [rsi]",
            "vmovups ymm7, [rsi + 32]",
            "vmovups ymm8, [rsi + 64]",
            "vmovups ymm15, [rsi + 96]",
            "ud2",
            "vmovups [rsi + 256], ymm0",
            "vmovups [rsi + 288], ymm7",
            "vmovups [rsi + 320], ymm8",
            "vmovups [rsi + 352], ymm15",
            "ret"
        ),
        &mut words,
    );
    check_eq!(words[32..48], words[..16], "YMM0, YMM7, YMM8 and YMM15");
    check_eq!(reg::xgetbv(0), Ok(XCR0_AVX), "XCR0");
});

test!(x87, "The x87 stack and its control word are kept.", || {
    let mut words = pattern();
    words[0] = 0x3ff8_0000_0000_0000;
    words[1] = 0x0c7f;
    run_user(
        asm_code!(
            "fninit",
            "fldcw [rsi + 8]",
            "fld qword ptr [rsi]",
            "ud2",
            "fnstcw [rsi + 264]",
            "fstp qword ptr [rsi + 256]",
            "ret"
        ),
        &mut words,
    );
    check_eq!(words[32], words[0], "ST0");
    check_eq!(words[33] & 0xffff, 0x0c7f, "the control word");
});

test!(five, "A guest goes on through five VMs.", || {
    let page = frames::alloc();
    for round in 1..=5u64 {
        check_ok!(wrmsr(reg::LSTAR, round << 12));
        check_ok!(reg::set_dr(2, round << 20));
        check_ok!(mem::write(page.address() + 8 * round, round));
        transplant();
        check_eq!(rdmsr(reg::LSTAR), Ok(round << 12), "LSTAR in VM {round}");
        check_eq!(reg::dr(2), Ok(round << 20), "DR2 in VM {round}");
        for before in 1..=round {
            check_eq!(mem::read(page.address() + 8 * before), Ok(before), "memory in VM {round}");
        }
    }
});
