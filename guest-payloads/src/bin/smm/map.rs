//! What an SMI saves: the state-save map of AMD64 (APM 10.2.3, table 10-1), by offsets from SMBASE.

use crate::code::{self, SMBASE, saved};
use payload_rt::lab::{self, Chain, kvm};
use payload_rt::user::{self, End, User};
use payload_rt::{asm_code, check, check_eq, check_ok, cpu, cpuid, insn, reg, test};

/// Selectors with their bases and limits.
const ES: u64 = 0xfe00;
const CS: u64 = 0xfe10;
const SS: u64 = 0xfe20;
const DS: u64 = 0xfe30;
const FS: u64 = 0xfe40;
const GS: u64 = 0xfe50;
const GDTR: u64 = 0xfe60;
const LDTR: u64 = 0xfe70;
const IDTR: u64 = 0xfe80;
const TR: u64 = 0xfe90;
pub const IO_RESTART: u64 = 0xfec8;
pub const AUTO_HALT: u64 = 0xfec9;
pub const EFER: u64 = 0xfed0;
const REVISION: u64 = 0xfefc;
pub const SMBASE_FIELD: u64 = 0xff00;
pub const CR4: u64 = 0xff48;
pub const CR3: u64 = 0xff50;
pub const CR0: u64 = 0xff58;
pub const DR7: u64 = 0xff60;
pub const DR6: u64 = 0xff68;
pub const RFLAGS: u64 = 0xff70;
pub const RIP: u64 = 0xff78;
/// R15; the others follow down to RAX.
pub const R15: u64 = 0xff80;
pub const RSP: u64 = 0xffd8;

/// RIP and RSP behind an OUT that brings an SMI.
struct Place {
    rip: u64,
    rsp: u64,
}

/// Takes an SMI behind an OUT of its own, with these flags, carry among them.
fn smi_here(flags: u64) -> Place {
    let chain = code::smi_chain();
    let (rip, rsp): (u64, u64);
    check_ok!(insn!(
        "pushfq", "push {flags}", "lea {rip}, [rip + 3f]", "lea {rsp}, [rsp + 8]", "popfq",
        "out dx, eax", "3:", "popfq";
        rip = out(reg) rip, rsp = out(reg) rsp, flags = in(reg) flags,
        in("dx") lab::PORT, in("eax") chain.address()
    ));
    check_ok!(chain.all_ok(), "KVM_SMI");
    check_eq!(code::count(), 1, "SMIs taken");
    Place { rip, rsp }
}

// 10.2.4; bit 17 says that SMBASE can be relocated, which other tests do.
test!(revision, "The revision identifier is 64h, with relocation of SMBASE.", || {
    code::install(&[]);
    code::smi();
    let revision: u32 = saved(REVISION);
    check_eq!(revision & 0xffff, 0x64, "revision level of {revision:#x}");
    check!(revision & 1 << 17 != 0, "bit 17 of {revision:#x}");
    check_eq!(revision & !0x3_ffff, 0, "reserved bits");
});

test!(base, "The map holds SMBASE, which is 30000h after a reset.", || {
    code::install(&[]);
    code::smi();
    check_eq!(u64::from(saved::<u32>(SMBASE_FIELD)), SMBASE, "SMBASE");
});

test!(instruction_and_stack, "The map holds the next instruction's RIP, RSP and RFLAGS.", || {
    code::install(&[]);
    let here = smi_here(0xcd7 | 1 << 18 | 1 << 21);
    check_eq!(saved::<u64>(RIP), here.rip, "RIP");
    check_eq!(saved::<u64>(RSP), here.rsp, "RSP");
    check_eq!(saved::<u64>(RFLAGS), 0xcd7 | 1 << 18 | 1 << 21, "RFLAGS");
});

test!(control, "The map holds CR0, CR3, CR4 and EFER.", || {
    code::install(&[]);
    check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_WP | reg::CR0_TS));
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_DE | reg::CR4_PGE));
    let efer = check_ok!(reg::rdmsr(reg::EFER)) | reg::EFER_SCE;
    check_ok!(reg::wrmsr(reg::EFER, efer));
    code::smi();
    check_eq!(saved::<u64>(CR0), reg::cr0(), "CR0");
    check_eq!(saved::<u64>(CR3), reg::cr3(), "CR3");
    check_eq!(saved::<u64>(CR4), reg::cr4(), "CR4");
    check_eq!(saved::<u64>(EFER), efer, "EFER");
});

test!(debug, "The map holds DR6 and DR7.", || {
    code::install(&[]);
    check_ok!(reg::set_dr(6, 0xffff_4ff5));
    check_ok!(reg::set_dr(7, 0x702));
    code::smi();
    check_eq!(saved::<u64>(DR6), 0xffff_4ff5, "DR6");
    check_eq!(saved::<u64>(DR7), 0x702, "DR7");
});

test!(segments, "The map holds each segment's selector, limit and base.", || {
    code::install(&[]);
    check_ok!(reg::set_fs(cpu::KERNEL_DS));
    check_ok!(reg::wrmsr(reg::FS_BASE, 0xffff_8000_1234_5000));
    check_ok!(reg::set_gs(0));
    check_ok!(reg::wrmsr(reg::GS_BASE, 0x7fff_1234_5678));
    let mut chain = Chain::new();
    let place = chain.get(kvm::GET_SREGS);
    chain.run();
    let host = place.read();
    code::smi();
    let all = [
        ("ES", ES, host.es),
        ("CS", CS, host.cs),
        ("SS", SS, host.ss),
        ("DS", DS, host.ds),
        ("FS", FS, host.fs),
        ("GS", GS, host.gs),
        ("LDTR", LDTR, host.ldt),
        ("TR", TR, host.tr),
    ];
    for (name, at, segment) in all {
        check_eq!(saved::<u16>(at), segment.selector, "{name}'s selector");
        check_eq!(saved::<u64>(at + 8), segment.base, "{name}'s base");
        if segment.unusable == 0 {
            check_eq!(saved::<u32>(at + 4), segment.limit, "{name}'s limit");
        }
    }
    check_eq!(saved::<u16>(CS), cpu::KERNEL_CS, "CS");
    check_eq!(saved::<u64>(FS + 8), 0xffff_8000_1234_5000, "FS's base");
    check_eq!(saved::<u64>(GS + 8), 0x7fff_1234_5678, "GS's base");
});

test!(tables, "The map holds base and limit of GDTR and IDTR.", || {
    code::install(&[]);
    code::smi();
    for (name, at, table) in
        [("GDTR", GDTR, check_ok!(reg::sgdt())), ("IDTR", IDTR, check_ok!(reg::sidt()))]
    {
        check_eq!(saved::<u64>(at + 8), table.base, "{name}'s base");
        check_eq!(saved::<u32>(at + 4), u32::from(table.limit), "{name}'s limit");
    }
});

/// Where [`with_registers`] leaves them, from RAX on in the order of their numbers.
const AFTER: u64 = 0x3_6100;
/// What it fills each with, and its number.
const FILL: u64 = 0x0a0a_5050_0000_0000;

/// Fills the registers but RSP, takes an SMI in which this runs, and gives what each holds afterwards,
/// by its number; RAX and RDX are those of the OUT.
pub fn with_registers(body: &[&[u8]]) -> [u64; 16] {
    code::install(body);
    let chain = code::smi_chain();
    check_ok!(insn!(
        "push rbx", "push rbp",
        "movabs rbx, 0x0a0a505000000003", "movabs rcx, 0x0a0a505000000001",
        "movabs rbp, 0x0a0a505000000005", "movabs rsi, 0x0a0a505000000006",
        "movabs rdi, 0x0a0a505000000007", "movabs r8, 0x0a0a505000000008",
        "movabs r9, 0x0a0a505000000009", "movabs r10, 0x0a0a50500000000a",
        "movabs r11, 0x0a0a50500000000b", "movabs r12, 0x0a0a50500000000c",
        "movabs r13, 0x0a0a50500000000d", "movabs r14, 0x0a0a50500000000e",
        "movabs r15, 0x0a0a50500000000f",
        "out dx, eax",
        "mov [0x36100], rax", "mov [0x36108], rcx", "mov [0x36110], rdx", "mov [0x36118], rbx",
        "mov [0x36120], rsp", "mov [0x36128], rbp", "mov [0x36130], rsi", "mov [0x36138], rdi",
        "mov [0x36140], r8", "mov [0x36148], r9", "mov [0x36150], r10", "mov [0x36158], r11",
        "mov [0x36160], r12", "mov [0x36168], r13", "mov [0x36170], r14", "mov [0x36178], r15",
        "pop rbp", "pop rbx";
        inout("rdx") u64::from(lab::PORT) => _, inout("rax") u64::from(chain.address()) => _,
        out("rcx") _, out("rsi") _, out("rdi") _, out("r8") _, out("r9") _, out("r10") _,
        out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _
    ));
    check_ok!(chain.all_ok(), "KVM_SMI");
    check_eq!(code::count(), 1, "SMIs taken");
    core::array::from_fn(|n| check_ok!(payload_rt::mem::read(AFTER + 8 * n as u64)))
}

/// What register `n` is filled with; `None` for RAX, RDX and RSP.
pub fn filled(n: usize) -> Option<u64> {
    (![0, 2, 4].contains(&n)).then_some(FILL | n as u64)
}

/// What the map holds of register `n`.
pub fn saved_register(n: usize) -> u64 {
    saved(R15 + 8 * (15 - n as u64))
}

test!(general_registers, "The map holds the sixteen general registers, with all 64 bits.", || {
    let after = with_registers(&[]);
    for (n, after) in after.into_iter().enumerate() {
        check_eq!(saved_register(n), filled(n).unwrap_or(after), "register {n}");
    }
});

test!(
    user_mode,
    "The map of an SMI in 64-bit code at CPL 3 holds its CS, SS, RIP and RSP.",
    || {
        at_cpl_3(false);
    }
);

test!(compatibility_mode, "An SMI in 32-bit code at CPL 3 is taken, and the code goes on.", || {
    at_cpl_3(true);
});

/// Takes an SMI in code at CPL 3 that may use ports.
fn at_cpl_3(compat: bool) {
    code::install(&[]);
    let chain = code::smi_chain();
    let (user, cs) = match compat {
        false => (User::new(asm_code!("out dx, eax", "inc ebx", "ret")), cpu::USER_CS),
        true => {
            let code = asm_code!(".code32", "out dx, eax", "inc ebx", "ret");
            (User::new(code).compat(), cpu::USER_CS32)
        }
    };
    let mut user = user;
    user.regs.rflags |= 3 << 12;
    (user.regs.rax, user.regs.rdx) = (chain.address().into(), lab::PORT.into());
    let outcome = user.run();
    check_eq!(outcome.end, End::Done, "the code at CPL 3");
    check_eq!(outcome.regs.rbx, 1, "RBX of the code at CPL 3");
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!((saved::<u16>(CS), saved::<u16>(SS)), (cs, cpu::USER_DS), "CS and SS");
    check_eq!(saved::<u64>(RIP), user::code_address() + 1, "RIP");
    check_eq!(saved::<u64>(RSP), user::stack_top(), "RSP");
    check_eq!(saved::<u64>(RFLAGS) & 3 << 12, 3 << 12, "IOPL");
}

// 10.2.5 and 10.2.6: both are clear unless the SMI came in HLT or at an I/O instruction that it was for.
test!(restart_flags, "Outside of HLT, both restart flags are clear.", || {
    code::install(&[]);
    code::smi();
    check_eq!(saved::<u8>(AUTO_HALT), 0, "auto-halt restart");
    check_eq!(saved::<u8>(IO_RESTART), 0, "I/O instruction restart");
});

// SDM "SMRAM State Save Map and Intel 64 Architecture": SMBASE is at 7EF8h from SMBASE + 8000h, RIP at
// 7FD8h. APM 10.2.3: at 7F00h and 7F78h.
test!(layout_of_the_vendor, "The map has the layout of the vendor that CPUID names.", || {
    code::install(&[]);
    let here = smi_here(0x2);
    let intel = cpuid::leaf(0, 0).ebx == u32::from_le_bytes(*b"Genu");
    let (base, rip) = if intel { (0xfef8, 0xffd8) } else { (SMBASE_FIELD, RIP) };
    check_eq!(u64::from(saved::<u32>(base)), SMBASE, "SMBASE");
    check_eq!(saved::<u64>(rip), here.rip, "RIP");
});
