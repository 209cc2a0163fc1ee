//! Instruction forms with a memory operand that is MMIO: each must leave memory, registers and
//! flags as it does with RAM.
//!
//! What is right is not written down here but tried out: the same bytes run on RAM at CPL 3, which
//! every host executes on its processor, and then on MMIO and RAM at CPL 0 and on MMIO at CPL 3.
//! What each form does is in SDM volume 2 and APM volume 3 under its mnemonic; so is which flags it
//! leaves undefined, and those are not compared.

use crate::WINDOW;
use crate::area::{Area, Page};
use payload_rt::paging::Flags;
use payload_rt::user::{End, User};
use payload_rt::*;

const CF: u64 = 1;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const ALL: u64 = CF | PF | AF | ZF | SF | OF;
const LOGIC: u64 = ALL & !AF;

/// Memory around the operand, from 8 bytes before it.
const MEMORY: [u64; 5] = [
    0x0f1e_2d3c_4b5a_6978,
    0x8070_6050_c0b0_a090,
    0x0123_4567_89ab_cdef,
    0x5a5a_a5a5_3c3c_c3c3,
    0x1111_2222_3333_4444,
];
/// What lies at rsi.
const SOURCE: [u64; 4] =
    [0xdead_beef_0bad_cafe, 0x0706_0504_0302_0100, 0xfedc_ba98_7654_3210, 0x9999_8888_7777_6666];

/// One form: its code, the registers it starts with, the flags that it defines.
struct Form {
    what: &'static str,
    code: &'static [u8],
    rax: u64,
    rcx: u64,
    rdx: u64,
    flags: u64,
    /// Whether it locks the bus, explicitly or not: not for operands over a page's edge.
    locked: bool,
}

const RAX: u64 = 0x1122_3344_5566_7788;

macro_rules! form {
    ($($line:expr),+ ; $flags:expr $(, rax $rax:expr)? $(, rcx $rcx:expr)? $(, rdx $rdx:expr)?
     $(, locked $locked:literal)?) => {{
        #[allow(unused_mut, unused_assignments)]
        let mut form = Form {
            what: concat!($($line, "; "),+),
            code: asm_code!($($line),+, "ret"),
            rax: RAX, rcx: 3, rdx: 0, flags: $flags, locked: false,
        };
        $(form.rax = $rax;)?
        $(form.rcx = $rcx;)?
        $(form.rdx = $rdx;)?
        $(form.locked = $locked;)?
        form
    }};
}

/// A two-operand instruction of each size, in both directions and with an immediate.
macro_rules! binary {
    ($name:literal, $flags:expr) => {
        [
            form!(concat!($name, " [rdi], al"); $flags),
            form!(concat!($name, " [rdi], ax"); $flags),
            form!(concat!($name, " [rdi], eax"); $flags),
            form!(concat!($name, " [rdi], rax"); $flags),
            form!(concat!($name, " al, [rdi]"); $flags),
            form!(concat!($name, " ax, [rdi]"); $flags),
            form!(concat!($name, " eax, [rdi]"); $flags),
            form!(concat!($name, " rax, [rdi]"); $flags),
            form!(concat!($name, " byte ptr [rdi], 0x91"); $flags),
            form!(concat!($name, " word ptr [rdi], 0x1234"); $flags),
            form!(concat!($name, " dword ptr [rdi], 0x76543210"); $flags),
            form!(concat!($name, " qword ptr [rdi], -2"); $flags),
        ]
    };
}

/// An instruction with LOCK, of each size.
macro_rules! locked {
    ($name:literal, $flags:expr $(, rax $rax:expr)?) => {
        [
            form!(concat!($name, " [rdi], al"); $flags $(, rax $rax)?, locked true),
            form!(concat!($name, " [rdi], ax"); $flags $(, rax $rax)?, locked true),
            form!(concat!($name, " [rdi], eax"); $flags $(, rax $rax)?, locked true),
            form!(concat!($name, " [rdi], rax"); $flags $(, rax $rax)?, locked true),
        ]
    };
}

/// An instruction whose only operand is memory, of each size.
macro_rules! unary {
    ($name:literal, $flags:expr, $locked:literal) => {
        [
            form!(concat!($name, " byte ptr [rdi]"); $flags, locked $locked),
            form!(concat!($name, " word ptr [rdi]"); $flags, locked $locked),
            form!(concat!($name, " dword ptr [rdi]"); $flags, locked $locked),
            form!(concat!($name, " qword ptr [rdi]"); $flags, locked $locked),
        ]
    };
}

/// A shift or rotation by 1, by an immediate and by cl.
macro_rules! shift {
    ($name:literal, $by_one:expr, $by_more:expr) => {
        [
            form!(concat!($name, " byte ptr [rdi], 1"); $by_one),
            form!(concat!($name, " word ptr [rdi], 1"); $by_one),
            form!(concat!($name, " dword ptr [rdi], 5"); $by_more),
            form!(concat!($name, " qword ptr [rdi], cl"); $by_more),
        ]
    };
}

/// A bit test by register, inside the operand and beyond it on either side, and by immediate.
macro_rules! bits {
    ($name:literal, $locked:literal) => {
        [
            form!(concat!($name, " word ptr [rdi], cx"); CF, rcx 9, locked $locked),
            form!(concat!($name, " dword ptr [rdi], ecx"); CF, rcx 37, locked $locked),
            form!(concat!($name, " dword ptr [rdi], ecx"); CF, rcx -5_i64 as u64, locked $locked),
            form!(concat!($name, " qword ptr [rdi], rcx"); CF, rcx 70, locked $locked),
            form!(concat!($name, " dword ptr [rdi], 30"); CF, locked $locked),
        ]
    };
}

/// String instructions of one size: `rdi` leads to MMIO, `rsi` to RAM; and the other way round.
macro_rules! strings {
    ($letter:literal) => {
        [
            form!(concat!("movs", $letter); 0),
            form!(concat!("rep movs", $letter); 0),
            form!("xchg rsi, rdi", concat!("rep movs", $letter), "xchg rsi, rdi"; 0),
            form!("lea rsi, [rdi - 8]", concat!("rep movs", $letter), "sub rsi, rdi"; 0),
            form!("add rdi, 8", "add rsi, 8", "std", concat!("rep movs", $letter), "cld"; 0, rcx 2),
            form!(concat!("stos", $letter); 0),
            form!(concat!("rep stos", $letter); 0),
            form!("xchg rsi, rdi", concat!("lods", $letter), "xchg rsi, rdi"; 0),
            form!("xchg rsi, rdi", concat!("rep lods", $letter), "xchg rsi, rdi"; 0),
            form!(concat!("scas", $letter); ALL),
            form!(concat!("repne scas", $letter); ALL, rax 0x0123_4567_89ab_cdef),
            form!(concat!("repe scas", $letter); ALL, rax 0x8070_6050_c0b0_a090),
            form!(concat!("cmps", $letter); ALL),
            form!("mov rax, [rdi]", "mov [rsi], rax", concat!("repe cmps", $letter); ALL),
        ]
    };
}

/// A place a form runs at.
struct Place {
    what: &'static str,
    cpl: u8,
    target: u64,
    source: u64,
}

/// What a form leaves behind. Addresses are relative to where the operand is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Left {
    memory: [u64; 5],
    source: [u64; 4],
    rax: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    flags: u64,
}

/// Copies words: as one instruction, for a host that interprets each.
fn copy(from: u64, to: u64, words: usize) {
    check_ok!(insn!(
        "rep movsq"; inout("rsi") from => _, inout("rdi") to => _, inout("rcx") words => _
    ));
}

fn run(form: &Form, place: &Place) -> Left {
    copy(MEMORY.as_ptr() as u64, place.target - 8, MEMORY.len());
    copy(SOURCE.as_ptr() as u64, place.source, SOURCE.len());
    let mut left = Left {
        rax: form.rax,
        rcx: form.rcx,
        rdx: form.rdx,
        rsi: place.source,
        rdi: place.target,
        ..Left::default()
    };
    // CF is set, so that ADC and its kin have something to add.
    let flags = 2 | CF;
    if place.cpl == 3 {
        let mut user = User::new(form.code);
        let r = &mut user.regs;
        (r.rax, r.rcx, r.rdx, r.rsi, r.rdi) = (left.rax, left.rcx, left.rdx, left.rsi, left.rdi);
        r.rflags |= flags;
        let outcome = user.run();
        check_eq!(outcome.end, End::Done, "`{}` on {}", form.what, place.what);
        let r = outcome.regs;
        (left.rax, left.rcx, left.rdx, left.rsi, left.rdi) = (r.rax, r.rcx, r.rdx, r.rsi, r.rdi);
        left.flags = r.rflags;
    } else {
        let done = trap::catch(|| {
            insn_raw!(
                "push {flags}", "popfq", "call {code}", "pushfq", "pop {flags}";
                flags = inout(reg) flags => left.flags, code = in(reg) form.code.as_ptr(),
                inout("rax") left.rax, inout("rcx") left.rcx, inout("rdx") left.rdx,
                inout("rsi") left.rsi, inout("rdi") left.rdi
            );
            left
        });
        left = check_ok!(done, "`{}` on {}", form.what, place.what);
    }
    left.flags &= form.flags;
    left.rsi = left.rsi.wrapping_sub(place.source);
    left.rdi = left.rdi.wrapping_sub(place.target);
    copy(place.target - 8, left.memory.as_mut_ptr() as u64, left.memory.len());
    copy(place.source, left.source.as_mut_ptr() as u64, left.source.len());
    left
}

/// Runs forms at all places: the operand aligned, and over a page's edge.
fn run_all<const N: usize>(forms: [Form; N]) {
    let window = [Page::At(WINDOW + 0x3000), Page::At(WINDOW + 0x4000)];
    let ram = Area::with_flags(1, &[Page::Ram, Page::Ram, Page::Ram], Flags::U);
    let mmio = Area::with_flags(2, &window, Flags::U);
    let source = ram.page(2) + 0x40;
    // The processor accesses MMIO as it does RAM with plain bytes, so an aligned operand is the
    // rule; 3 bytes before the edge, each of 4 or 8 bytes is in two pages.
    for (where_, offset) in [("aligned", 0x100), ("over a page's edge", 0xffd)] {
        let place = |what, cpl, area: &Area| {
            let target = area.start() + offset;
            Place { what, cpl, target, source }
        };
        let right = place("RAM at CPL 3", 3, &ram);
        let others = [
            place("RAM at CPL 0", 0, &ram),
            place("MMIO at CPL 0", 0, &mmio),
            place("MMIO at CPL 3", 3, &mmio),
        ];
        for form in &forms {
            if form.locked && offset % 8 != 0 {
                continue;
            }
            let expected = run(form, &right);
            // Over a page's edge RAM has been tried at CPL 3.
            for other in if offset % 8 == 0 { &others[..] } else { &others[1..] } {
                let seen = run(form, other);
                check!(
                    seen == expected,
                    "`{}` {where_}: {} gives another result than {}: memory {:x?} for {:x?}, \
                     registers {:x?} for {:x?}",
                    form.what,
                    other.what,
                    right.what,
                    seen.memory,
                    expected.memory,
                    [seen.rax, seen.rcx, seen.rdx, seen.rsi, seen.rdi, seen.flags],
                    [
                        expected.rax,
                        expected.rcx,
                        expected.rdx,
                        expected.rsi,
                        expected.rdi,
                        expected.flags
                    ]
                );
            }
        }
    }
}

test!(
    mmio_moves,
    "MOV and its extending and conditional kin do on MMIO what they do on RAM.",
    || {
        run_all([
            form!("mov al, [rdi]"; 0),
            form!("mov ah, [rdi]"; 0),
            form!("mov ax, [rdi]"; 0),
            form!("mov eax, [rdi]"; 0),
            form!("mov rax, [rdi]"; 0),
            form!("mov [rdi], al"; 0),
            form!("mov [rdi], ah"; 0),
            form!("mov [rdi], ax"; 0),
            form!("mov [rdi], eax"; 0),
            form!("mov [rdi], rax"; 0),
            form!("mov byte ptr [rdi], 0x5a"; 0),
            form!("mov word ptr [rdi], 0x5aa5"; 0),
            form!("mov dword ptr [rdi], 0x12345678"; 0),
            form!("mov qword ptr [rdi], -3"; 0),
            form!("movzx ax, byte ptr [rdi]"; 0),
            form!("movzx eax, byte ptr [rdi]"; 0),
            form!("movzx rax, byte ptr [rdi]"; 0),
            form!("movzx eax, word ptr [rdi]"; 0),
            form!("movzx rax, word ptr [rdi]"; 0),
            form!("movsx ax, byte ptr [rdi]"; 0),
            form!("movsx eax, byte ptr [rdi]"; 0),
            form!("movsx rax, byte ptr [rdi]"; 0),
            form!("movsx eax, word ptr [rdi]"; 0),
            form!("movsx rax, word ptr [rdi]"; 0),
            form!("movsxd rax, dword ptr [rdi]"; 0),
            form!("cmovc ax, [rdi]"; 0),
            form!("cmovc eax, [rdi]"; 0),
            form!("cmovnc eax, [rdi]"; 0),
            form!("cmovnc rax, [rdi]"; 0),
            form!("setc byte ptr [rdi]"; 0),
            form!("setnc byte ptr [rdi]"; 0),
            form!("movnti [rdi], eax"; 0),
            form!("movnti [rdi], rax"; 0),
            form!("push qword ptr [rdi]", "pop rax"; 0),
            form!("push word ptr [rdi]", "pop ax"; 0),
            form!("push rax", "pop qword ptr [rdi]"; 0),
            form!("mov eax, [rdi + rcx * 4 + 1]"; 0),
        ]);
    }
);

test!(mmio_arithmetic, "Arithmetic with an MMIO operand gives RAM's results and flags.", || {
    run_all(binary!("add", ALL));
    run_all(binary!("adc", ALL));
    run_all(binary!("sub", ALL));
    run_all(binary!("sbb", ALL));
    run_all(binary!("cmp", ALL));
});

test!(mmio_logic, "Logic with an MMIO operand gives RAM's results and flags.", || {
    run_all(binary!("and", LOGIC));
    run_all(binary!("or", LOGIC));
    run_all(binary!("xor", LOGIC));
    run_all([
        form!("test [rdi], al"; LOGIC),
        form!("test [rdi], ax"; LOGIC),
        form!("test [rdi], eax"; LOGIC),
        form!("test [rdi], rax"; LOGIC),
        form!("test byte ptr [rdi], 0x90"; LOGIC),
        form!("test dword ptr [rdi], 0x40000000"; LOGIC),
    ]);
});

test!(mmio_unary, "INC, DEC, NOT and NEG of MMIO give RAM's results and flags.", || {
    run_all(unary!("inc", ALL, false));
    run_all(unary!("dec", ALL, false));
    run_all(unary!("not", ALL, false));
    run_all(unary!("neg", ALL, false));
});

test!(mmio_shifts, "Shifts and rotations of MMIO give RAM's results and flags.", || {
    const SHIFT: u64 = CF | PF | ZF | SF;
    run_all(shift!("shl", SHIFT | OF, SHIFT));
    run_all(shift!("shr", SHIFT | OF, SHIFT));
    run_all(shift!("sar", SHIFT | OF, SHIFT));
    run_all(shift!("rol", CF | OF, CF));
    run_all(shift!("ror", CF | OF, CF));
    run_all(shift!("rcl", CF | OF, CF));
    run_all(shift!("rcr", CF | OF, CF));
    run_all([
        form!("shld dword ptr [rdi], eax, 7"; SHIFT),
        form!("shrd qword ptr [rdi], rax, cl"; SHIFT),
    ]);
});

test!(mmio_multiply, "MUL, IMUL and DIV with an MMIO operand give RAM's results.", || {
    run_all([
        form!("mul byte ptr [rdi]"; CF | OF),
        form!("mul dword ptr [rdi]"; CF | OF),
        form!("mul qword ptr [rdi]"; CF | OF),
        form!("imul word ptr [rdi]"; CF | OF),
        form!("imul qword ptr [rdi]"; CF | OF),
        form!("imul eax, [rdi]"; CF | OF),
        form!("imul rax, [rdi]"; CF | OF),
        form!("imul eax, [rdi], 77"; CF | OF),
        form!("div dword ptr [rdi]"; 0),
        form!("div qword ptr [rdi]"; 0),
        form!("idiv dword ptr [rdi]"; 0),
    ]);
});

test!(mmio_bits, "Bit tests of MMIO reach the bit they name, also beyond the operand.", || {
    run_all(bits!("bt", false));
    run_all(bits!("bts", false));
    run_all(bits!("btr", false));
    run_all(bits!("btc", false));
});

// An emulator has no bus to lock, but a locked instruction must still do all of its work.
test!(mmio_locked, "Locked instructions on MMIO give RAM's results and flags.", || {
    run_all(locked!("lock add", ALL));
    run_all(locked!("lock adc", ALL));
    run_all(locked!("lock sub", ALL));
    run_all(locked!("lock sbb", ALL));
    run_all(locked!("lock and", LOGIC));
    run_all(locked!("lock or", LOGIC));
    run_all(locked!("lock xor", LOGIC));
    run_all(locked!("lock xadd", ALL));
    run_all(locked!("xchg", 0));
    run_all(unary!("lock inc", ALL, true));
    run_all(unary!("lock dec", ALL, true));
    run_all(unary!("lock not", ALL, true));
    run_all(unary!("lock neg", ALL, true));
    run_all(bits!("lock bts", true));
    run_all(bits!("lock btr", true));
    run_all(bits!("lock btc", true));
});

test!(mmio_cmpxchg, "CMPXCHG and CMPXCHG8B on MMIO store or load as the comparison says.", || {
    const EQUAL: u64 = MEMORY[1];
    run_all([
        form!("lock cmpxchg [rdi], cl"; ALL, rax EQUAL, locked true),
        form!("lock cmpxchg [rdi], cx"; ALL, rax EQUAL, locked true),
        form!("lock cmpxchg [rdi], ecx"; ALL, rax EQUAL, locked true),
        form!("lock cmpxchg [rdi], rcx"; ALL, rax EQUAL, locked true),
        form!("lock cmpxchg [rdi], cl"; ALL, locked true),
        form!("lock cmpxchg [rdi], cx"; ALL, locked true),
        form!("lock cmpxchg [rdi], ecx"; ALL, locked true),
        form!("lock cmpxchg [rdi], rcx"; ALL, locked true),
        form!("cmpxchg [rdi], ecx"; ALL, rax EQUAL),
        form!("cmpxchg [rdi], rcx"; ALL),
        form!(
            "push rbx", "mov ebx, 0x600d600d", "lock cmpxchg8b [rdi]", "pop rbx";
            ZF, rax EQUAL & 0xffff_ffff, rcx 0x1234, rdx EQUAL >> 32, locked true
        ),
        form!(
            "push rbx", "mov ebx, 0x600d600d", "lock cmpxchg8b [rdi]", "pop rbx";
            ZF, rax EQUAL & 0xffff_ffff, rcx 0x1234, rdx 5, locked true
        ),
    ]);
});

test!(
    mmio_strings,
    "String instructions move, store, load and compare MMIO as they do RAM.",
    || {
        run_all(strings!("b"));
        run_all(strings!("w"));
        run_all(strings!("d"));
        run_all(strings!("q"));
    }
);

test!(mmio_branches, "A call, a jump and a table look-up through MMIO lead where it says.", || {
    run_all([
        form!(
            "lea rax, [rip + 2f]", "mov [rdi], rax", "call qword ptr [rdi]",
            "mov qword ptr [rdi], 1", "ret", "2: mov eax, 42";
            0
        ),
        form!(
            "lea rax, [rip + 2f]", "mov [rdi], rax", "jmp qword ptr [rdi]", "ud2",
            "2: mov qword ptr [rdi], 2", "mov eax, 43";
            0
        ),
        form!("push rbx", "mov rbx, rdi", "mov al, 5", "xlatb", "pop rbx"; 0),
    ]);
});

test!(mmio_sse, "SSE moves of 16 bytes load and store MMIO as they do RAM.", || {
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR), "set CR4.OSFXSR");
    run_all([
        form!("movups xmm0, [rsi]", "movups [rdi], xmm0"; 0),
        form!("movdqu xmm1, [rdi]", "movdqu [rsi], xmm1"; 0),
        form!("movdqu xmm9, [rdi]", "movdqu [rsi], xmm9"; 0),
    ]);
});

test!(mmio_sse_aligned, "SSE moves that want alignment load and store aligned MMIO.", || {
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR), "set CR4.OSFXSR");
    // `locked` keeps these off the page's edge, where they are #GP.
    run_all([
        form!("movaps xmm0, [rsi]", "movaps [rdi], xmm0"; 0, locked true),
        form!("movdqa xmm1, [rdi]", "movdqa [rsi], xmm1"; 0, locked true),
        form!("movdqu xmm1, [rsi]", "movntps [rdi], xmm1"; 0, locked true),
    ]);
});
