//! Page faults: which access is allowed, and what a fault says.

use crate::{ACCESSES, AT, Access, E_I, E_P, E_RSVD, E_U, E_W, RET, frame_of_ret, is_fault, map};
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::trap::Trap;
use payload_rt::user::{End, User};
use payload_rt::*;

/// Who accesses, under which control bits.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mode {
    user: bool,
    wp: bool,
    smep: bool,
    smap: bool,
}

/// What the manual says of an access through these entries, from the top level down to the leaf:
/// `None`, or a page fault's error code (SDM volume 3, 5.6 and 5.7). NX is taken to be enabled.
fn expected(entries: &[u64], access: Access, mode: Mode) -> Option<u64> {
    let error = access.error() | if mode.user { E_U } else { 0 };
    if entries.iter().any(|entry| entry & Flags::P.0 == 0) {
        return Some(error);
    }
    let all = |flag: Flags| entries.iter().all(|entry| entry & flag.0 != 0);
    let any = |flag: Flags| entries.iter().any(|entry| entry & flag.0 != 0);
    let (user_page, writable, no_execute) = (all(Flags::U), all(Flags::W), any(Flags::NX));
    let allowed = match access {
        _ if mode.user && !user_page => false,
        Access::Fetch => !no_execute && (mode.user || !mode.smep || !user_page),
        _ if !mode.user && mode.smap && user_page => false,
        Access::Read => true,
        Access::Write => writable || !mode.user && !mode.wp,
    };
    (!allowed).then_some(error | E_P)
}

/// Runs `access` at CPL 3 on `address`.
fn run_user(access: Access, address: u64) -> Result<(), Trap> {
    let code = match access {
        Access::Read => asm_code!("mov al, [rdi]", "ret"),
        Access::Write => asm_code!("mov [rdi], al", "ret"),
        Access::Fetch => asm_code!("call rdi", "ret"),
    };
    let mut user = User::new(code);
    user.regs.rdi = address;
    user.regs.rax = RET.into();
    match user.run().end {
        End::Done => Ok(()),
        End::Trap(trap) => Err(trap),
        other => fail!("{access:?} at CPL 3 ended by {other:?}"),
    }
}

/// What the entry above says in a sweep: all is allowed, or one thing is not, or next to nothing is.
const UPPER: [u64; 6] = [
    Flags::P.0 | Flags::W.0 | Flags::U.0,
    Flags::P.0 | Flags::U.0,
    Flags::P.0 | Flags::W.0,
    Flags::P.0 | Flags::W.0 | Flags::U.0 | Flags::NX.0,
    Flags::P.0 | Flags::NX.0,
    Flags::W.0 | Flags::U.0,
];

/// Goes through all that the leaf of [`AT`] may say under each of [`UPPER`], at level 2 or at that
/// which `level=` says, and compares each access with the model.
fn sweep(mode: Mode) {
    let level = boot::number("level").unwrap_or(2) as u32;
    if !(2..=4).contains(&level) {
        report::error(format_args!("level={level}: it takes 2 to 4"));
    }
    // What is not present is the same whatever else it says: one of those is enough.
    let leaves = (0..8_u64)
        .map(|mask| Flags::P.0 | (mask & 1) << 1 | (mask & 2) << 1 | (mask & 4) << 61)
        .chain([Flags::W.0 | Flags::U.0]);
    let leaf = map(AT, frame_of_ret());
    let upper = paging::entry(AT, level);
    let (frame, table) = (leaf.value & paging::ADDRESS, upper.value & paging::ADDRESS);
    for above in UPPER {
        upper.set(table | above);
        for below in leaves.clone() {
            leaf.set(frame | below);
            paging::invlpg(AT);
            for access in ACCESSES {
                let result = match mode.user {
                    true => run_user(access, AT),
                    false => access.run(AT),
                };
                judge(result, expected(&[above, below], access, mode), || {
                    println!("{access:?}, level {level}: {above:#x}, leaf: {below:#x}, {mode:?}");
                });
            }
        }
    }
    upper.set(upper.value);
    leaf.set(leaf.value);
    paging::flush();
}

fn judge(result: Result<(), Trap>, expected: Option<u64>, describe: impl Fn()) {
    let right = match (result, expected) {
        (Ok(()), None) => true,
        (Err(fault), Some(error)) => is_fault(&fault, error, AT),
        _ => false,
    };
    if !right {
        describe();
        match (result, expected) {
            (Ok(()), Some(error)) => fail!("no fault, where error {error:#x} is due (see above)"),
            (Ok(()), None) => fail!("neither fault nor expectation"),
            (Err(fault), None) => fail!("{fault}, where none is due (see above)"),
            (Err(fault), Some(error)) => {
                fail!("{fault}, where error {error:#x} on {AT:#x} is due (see above)")
            }
        }
    }
}

const KERNEL: Mode = Mode { user: false, wp: true, smep: false, smap: false };

test!(
    rights_at_cpl0,
    "At CPL 0 with CR0.WP, each mix of P, W, U and NX at two levels allows what it must.",
    || {
        cpuid::NX.require();
        sweep(KERNEL);
    }
);

test!(
    rights_at_cpl0_without_wp,
    "At CPL 0 without CR0.WP, read-only pages can be written, and the rest is as with it.",
    || {
        cpuid::NX.require();
        let cr0 = reg::cr0();
        check_ok!(reg::set_cr0(cr0 & !reg::CR0_WP), "clear CR0.WP");
        sweep(Mode { wp: false, ..KERNEL });
        check_ok!(reg::set_cr0(cr0), "set CR0.WP");
    }
);

test!(
    rights_at_cpl3,
    "At CPL 3 each mix of P, W, U and NX at two levels allows what it must.",
    || {
        cpuid::NX.require();
        sweep(Mode { user: true, ..KERNEL });
    }
);

test!(
    rights_under_smep,
    "CR4.SMEP forbids CPL 0 to fetch from user pages, and nothing else.",
    || {
        cpuid::NX.require();
        cpuid::SMEP.require();
        let cr4 = reg::cr4();
        check_ok!(reg::set_cr4(cr4 | reg::CR4_SMEP), "set CR4.SMEP");
        sweep(Mode { smep: true, ..KERNEL });
        check_ok!(reg::set_cr4(cr4), "clear CR4.SMEP");
    }
);

test!(
    rights_under_smap,
    "CR4.SMAP forbids CPL 0 data accesses to user pages, and nothing else; RFLAGS.AC lifts it.",
    || {
        cpuid::NX.require();
        cpuid::SMAP.require();
        let cr4 = reg::cr4();
        check_ok!(reg::set_cr4(cr4 | reg::CR4_SMAP), "set CR4.SMAP");
        sweep(Mode { smap: true, ..KERNEL });
        paging::map(AT, frame_of_ret(), Size::K4, Flags::RWU);
        let fault = check_err!(mem::read::<u8>(AT), "a read of a user page under SMAP");
        check!(is_fault(&fault, E_P, AT), "a read of a user page under SMAP: {fault}");
        let value: u64;
        check_ok!(
            insn!(
                "pushfq", "or dword ptr [rsp], 0x40000", "popfq",
                "mov {0}, [{1}]", "pushfq", "and dword ptr [rsp], 0xfffbffff", "popfq";
                out(reg) value, in(reg) AT
            ),
            "a read of a user page under SMAP with RFLAGS.AC"
        );
        check_eq!(value, u64::from_le_bytes([RET; 8]), "what it read");
        check_ok!(reg::set_cr4(cr4), "clear CR4.SMAP");
    }
);

test!(wp_toggles, "CR0.WP takes effect at once, without a flush, in both directions.", || {
    let frame = frame_of_ret();
    paging::map(AT, frame, Size::K4, Flags::P);
    let cr0 = reg::cr0();
    for round in 0..20_u64 {
        let fault = check_err!(mem::write(AT, round), "round {round}: a write under WP");
        check!(is_fault(&fault, E_P | E_W, AT), "round {round}: {fault}");
        check_ok!(reg::set_cr0(cr0 & !reg::CR0_WP), "clear CR0.WP");
        check_ok!(mem::write(AT, round), "round {round}: a write without WP");
        check_eq!(mem::read(frame), Ok(round), "what was written without WP");
        check_ok!(reg::set_cr0(cr0), "set CR0.WP");
    }
});

test!(
    user_page_without_wp,
    "A user page that CPL 0 wrote to without CR0.WP stays read-only for CPL 3.",
    || {
        // A shadow MMU that makes such a page writable must not let CPL 3 have it.
        let frame = frame_of_ret();
        paging::map(AT, frame, Size::K4, Flags::P | Flags::U);
        let cr0 = reg::cr0();
        for round in 0..5_u64 {
            check_ok!(reg::set_cr0(cr0 & !reg::CR0_WP), "clear CR0.WP");
            check_ok!(mem::write(AT + 8, round), "round {round}: a write of CPL 0 without WP");
            let fault = check_err!(run_user(Access::Write, AT), "a write of CPL 3, WP clear");
            check!(is_fault(&fault, E_P | E_W | E_U, AT), "round {round}: {fault}");
            check_ok!(run_user(Access::Read, AT), "a read of CPL 3, WP clear");
            check_ok!(reg::set_cr0(cr0), "set CR0.WP");
            let fault = check_err!(run_user(Access::Write, AT), "a write of CPL 3, WP set");
            check!(is_fault(&fault, E_P | E_W | E_U, AT), "round {round}: {fault}");
        }
    }
);

test!(
    large_page_rights,
    "Leaves at level 2 and 3 obey W, U and NX as those at level 1 do.",
    || {
        cpuid::NX.require();
        let code = frame_of_ret();
        for (size, here) in [(Size::M2, true), (Size::G1, cpuid::PAGE_1G.present())] {
            if !here {
                continue;
            }
            let inside = size.bytes() - 1;
            let base = AT & !inside;
            let at = base + (code & inside);
            for flags in 0..8_u64 {
                let flags = [Flags::W, Flags::U, Flags::NX]
                    .into_iter()
                    .enumerate()
                    .filter(|(i, _)| flags & 1 << i != 0)
                    .fold(Flags::P, |all, (_, flag)| all | flag);
                paging::map(base, code & !inside, size, flags);
                for user in [false, true] {
                    let mode = Mode { user, ..KERNEL };
                    for access in ACCESSES {
                        let result = if user { run_user(access, at) } else { access.run(at) };
                        let wanted = expected(&[flags.0], access, mode);
                        let seen =
                            result.err().map(|fault| (fault.vector, fault.error_code, fault.cr2));
                        check_eq!(
                            seen,
                            wanted.map(|error| (trap::PF, error, at)),
                            "{size:?} with {flags:x?}: {access:?}, {mode:?}"
                        );
                    }
                }
            }
        }
    }
);

test!(
    not_present_levels,
    "Without P at a level the fault says not present, whatever else is set.",
    || {
        let leaf = map(AT, frame_of_ret());
        let offset = AT + 0x123;
        for level in 1..=4 {
            let entry = if level == 1 { leaf } else { paging::entry(AT, level) };
            // All bits but P; reserved ones do not count in an entry that is not present.
            for value in [0, entry.value & !1, !1, 0x7fff_ffff_ffff_fffe] {
                entry.set(value);
                paging::flush();
                for access in ACCESSES {
                    let fault =
                        check_err!(access.run(offset), "{access:?}, level {level}: {value:#x}");
                    let error = if access == Access::Fetch && !cpuid::NX.present() {
                        0
                    } else {
                        access.error()
                    };
                    check!(
                        is_fault(&fault, error, offset),
                        "{access:?}, level {level} {value:#x}: {fault}"
                    );
                }
            }
            entry.set(entry.value);
            paging::flush();
            check_ok!(Access::Read.run(offset), "level {level} put back");
        }
    }
);

/// Sets `bits` in an entry, and checks that every access is a reserved-bit fault.
fn check_reserved(entry: Entry, bits: u64, what: &str) {
    entry.set(entry.value | bits);
    paging::flush();
    for access in ACCESSES {
        let fault =
            check_err!(access.run(AT), "{what}: level {} with {bits:#x}: {access:?}", entry.level);
        let error = E_P | E_RSVD | access.error();
        check!(
            is_fault(&fault, error, AT),
            "{what}: level {} with {bits:#x}: {fault}",
            entry.level
        );
    }
    entry.set(entry.value);
    paging::flush();
}

test!(
    reserved_address_bits,
    "Address bits above the physical width are reserved at each level.",
    || {
        // SDM volume 3, 5.7: RSVD in the error code.
        cpuid::NX.require();
        let width = u32::from(cpuid::physical_bits());
        if width >= 52 {
            skip!("the physical address width is 52 bits: no address bit is reserved");
        }
        map(AT, frame_of_ret());
        for level in 1..=4 {
            for bit in [width, (width + 51) / 2, 51] {
                check_reserved(paging::entry(AT, level), 1 << bit, "above the physical width");
            }
        }
        check_ok!(Access::Read.run(AT), "with all put back");
    }
);

test!(
    reserved_ps,
    "The page-size bit is reserved at level 4, and at level 3 without 1 GiB pages.",
    || {
        cpuid::NX.require();
        map(AT, frame_of_ret());
        check_reserved(paging::entry(AT, 4), Flags::PS.0, "page size");
        if !cpuid::PAGE_1G.present() {
            check_reserved(paging::entry(AT, 3), Flags::PS.0, "page size");
        }
    }
);

test!(reserved_in_large, "A large page's low address bits are reserved, but for PAT's.", || {
    cpuid::NX.require();
    let code = frame_of_ret();
    let m2 = Size::M2.bytes();
    // Leaves that map AT's 2 MiB, or 1 GiB, to somewhere: none of them is got through.
    let entry = paging::map(AT & !(m2 - 1), code & !(m2 - 1), Size::M2, Flags::RW);
    (13..21).for_each(|bit| check_reserved(entry, 1 << bit, "2 MiB"));
    if cpuid::PAGE_1G.present() {
        let g1 = Size::G1.bytes();
        let entry = paging::map(AT & !(g1 - 1), 0, Size::G1, Flags::RW);
        (13..30).for_each(|bit| check_reserved(entry, 1 << bit, "1 GiB"));
    }
});

test!(
    reserved_nx,
    "Without EFER.NXE the NX bit is reserved, and a fetch is not told from a read.",
    || {
        let efer = check_ok!(reg::rdmsr(reg::EFER));
        map(AT, frame_of_ret());
        check_ok!(reg::wrmsr(reg::EFER, efer & !reg::EFER_NXE), "clear EFER.NXE");
        for level in 1..=4 {
            let entry = paging::entry(AT, level);
            entry.set(entry.value | Flags::NX.0);
            paging::flush();
            for access in ACCESSES {
                let fault =
                    check_err!(access.run(AT), "{access:?} with NX at level {level}, NXE clear");
                // The fetch bit is there under NXE or SMEP only (SDM volume 3, 5.7).
                let error = E_P | E_RSVD | access.error() & !E_I;
                check!(is_fault(&fault, error, AT), "{access:?}, NX at level {level}: {fault}");
            }
            entry.set(entry.value);
            paging::flush();
        }
        check_ok!(Access::Fetch.run(AT), "a fetch with NXE clear and no NX bit");
        check_ok!(reg::wrmsr(reg::EFER, efer), "put EFER back");
    }
);

/// Addresses that are not canonical with four-level paging (SDM volume 1, 3.3.7.1).
const NOT_CANONICAL: [u64; 4] =
    [0x0000_8000_0000_0000, 0xffff_7fff_ffff_ffff, 0x8000_0000_0000_0000, 0x1234 << 48];

fn require_four_levels() {
    if reg::cr4() & reg::CR4_LA57 != 0 {
        skip!("five-level paging has another idea of what is canonical");
    }
}

test!(not_canonical, "An address that is not canonical is #GP(0), never #PF.", || {
    require_four_levels();
    for at in NOT_CANONICAL {
        for (what, result) in [
            ("a read", mem::read::<u8>(at).map(|_| ())),
            ("a write", mem::write(at, 0_u8)),
            ("a call", mem::call(at).map(|_| ())),
        ] {
            check_trap!(result, trap::GP, 0, "{what} at {at:#x}");
        }
    }
});

test!(not_canonical_stack, "Through RBP it is #SS(0).", || {
    require_four_levels();
    for at in NOT_CANONICAL {
        let by_rbp = trap::catch(|| {
            insn_raw!(
                "xchg rbp, {0}", "mov al, [rbp]", "xchg rbp, {0}";
                inout(reg) at => _, out("al") _
            );
        });
        check_trap!(by_rbp, trap::SS, 0, "a read by RBP at {at:#x}");
    }
});

/// An instruction that accesses 8 bytes where RDI and RBP lead.
type Mov = (&'static str, &'static [u8]);

/// By other registers than those of the stack.
fn plain() -> [Mov; 2] {
    [
        ("a read", asm_code!("mov rax, [rdi]", "ret")),
        ("a write", asm_code!("mov [rdi], rax", "ret")),
    ]
}

/// By RSP and RBP.
fn by_stack() -> [Mov; 3] {
    [
        ("a read by RBP", asm_code!("mov rax, [rbp]", "ret")),
        ("a read by RSP", asm_code!("mov rsp, rdi", "mov rax, [rsp]", "ud2")),
        ("a pop", asm_code!("mov rsp, rdi", "pop rax", "ud2")),
    ]
}

/// Checks that accesses of 8 bytes at `at` by CPL 3 fault as those do that are not canonical.
fn check_not_canonical(at: u64, accesses: &[Mov], vector: u8) {
    for (what, code) in accesses {
        let mut user = User::new(code);
        user.regs.rdi = at;
        user.regs.rbp = at;
        let end = user.run().end;
        let End::Trap(fault) = end else { fail!("{what} at {at:#x}: {end:?}") };
        check!(fault.is(vector, 0), "{what} at {at:#x}: {fault}");
    }
}

test!(not_canonical_at_cpl3, "At CPL 3 too it is #GP(0).", || {
    require_four_levels();
    NOT_CANONICAL.into_iter().for_each(|at| check_not_canonical(at, &plain(), trap::GP));
});

test!(not_canonical_stack_at_cpl3, "At CPL 3 too it is #SS(0) by way of the stack.", || {
    require_four_levels();
    NOT_CANONICAL.into_iter().for_each(|at| check_not_canonical(at, &by_stack(), trap::SS));
});

/// Addresses whose last bytes of 8 are beyond the lower half, and the others are mapped.
fn over_the_half() -> impl Iterator<Item = u64> {
    require_four_levels();
    let last = 0x0000_7fff_ffff_f000;
    paging::map(last, frame_of_ret(), Size::K4, Flags::RWU);
    check_ok!(mem::read::<u64>(last + 0xff8), "the last word of the lower half");
    (0xff9..0x1000).map(move |offset| last + offset)
}

test!(
    half_canonical,
    "An access whose last bytes are beyond the lower half is not canonical either (CPL 3).",
    || over_the_half().for_each(|at| check_not_canonical(at, &plain(), trap::GP))
);

test!(half_canonical_stack, "Nor is one by way of the stack (CPL 3).", || {
    over_the_half().for_each(|at| check_not_canonical(at, &by_stack(), trap::SS));
});
