//! Accessed and dirty bits: set when they must be, where they must be, and not otherwise.
//!
//! SDM volume 3, 5.8; AMD APM volume 2, 5.4.2.

use crate::{AT, Access, E_P, E_W, RET, frame_of_ret, is_fault, map};
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::user::{End, User};
use payload_rt::*;

const AD: u64 = Flags::A.0 | Flags::D.0;

/// The entries for [`AT`] from `top` down to `leaf`, both included, with A and D clear and nothing of
/// them in the TLB.
fn clear(top: u32, leaf: u32) -> [Option<Entry>; 5] {
    let mut entries = [None; 5];
    for level in leaf..=top {
        let entry = paging::entry(AT, level);
        entry.set(entry.value & !AD);
        entries[level as usize] = Some(entry.reload());
    }
    paging::flush();
    entries
}

fn ad(entry: &Entry) -> (bool, bool) {
    let now = entry.reload().flags();
    (now.has(Flags::A), now.has(Flags::D))
}

/// Checks A at each level and D at the leaf after an access that succeeded.
fn check_after(
    what: &str,
    access: Access,
    leaf: u32,
    run: impl FnOnce() -> Result<(), trap::Trap>,
) {
    let entries = clear(4, leaf);
    check_ok!(run(), "{what}: {access:?}");
    for entry in entries.iter().flatten() {
        let (level, (accessed, dirty)) = (entry.level, ad(entry));
        check!(accessed, "{what}: {access:?} left A clear at level {level}");
        if level == leaf {
            let wanted = access == Access::Write;
            check_eq!(dirty, wanted, "{what}: D of the leaf (level {level}) after {access:?}");
        } else {
            // Bit 6 of an entry that leads to a table is ignored: no business of the CPU's.
            check!(!dirty, "{what}: {access:?} set bit 6 at level {level}");
        }
        let changed = (entry.value ^ entry.reload().value) & !AD;
        check_eq!(changed, 0, "{what}: other bits that {access:?} changed at level {level}");
    }
}

test!(
    accessed_and_dirty,
    "An access sets A at each level, and D at the leaf if it is a write.",
    || {
        let code = frame_of_ret();
        for (size, here) in
            [(Size::K4, true), (Size::M2, true), (Size::G1, cpuid::PAGE_1G.present())]
        {
            if !here {
                continue;
            }
            // Below a leaf of the larger size there is no table to get in the way.
            let base = AT & !(size.bytes() - 1);
            for level in (1..4).rev() {
                let entry = paging::entry(AT, level);
                if entry.level == level {
                    entry.set(0);
                }
            }
            paging::map(base, code & !(size.bytes() - 1), size, Flags::RW);
            let at = base + (code & (size.bytes() - 1));
            // `clear` and the walk go by AT, which shares all entries with `at`.
            for access in [Access::Read, Access::Fetch, Access::Write] {
                let name = match size {
                    Size::K4 => "4 KiB",
                    Size::M2 => "2 MiB",
                    Size::G1 => "1 GiB",
                };
                check_after(name, access, size as u32, || access.run(at));
            }
        }
    }
);

test!(at_cpl3, "Accesses at CPL 3 set the same bits.", || {
    paging::map(AT, frame_of_ret(), Size::K4, Flags::RWU);
    for (access, code) in [
        (Access::Read, asm_code!("mov al, [rdi]", "ret")),
        (Access::Fetch, asm_code!("call rdi", "ret")),
        (Access::Write, asm_code!("mov [rdi], al", "ret")),
    ] {
        let mut user = User::new(code);
        user.regs.rdi = AT;
        user.regs.rax = RET.into();
        check_after("CPL 3", access, 1, || match user.run().end {
            End::Done => Ok(()),
            End::Trap(trap) => Err(trap),
            other => fail!("{other:?}"),
        });
    }
});

/// Clears A and D of the leaf, runs, and checks both.
fn check_leaf(what: &str, wanted: (bool, bool), run: impl FnOnce() -> Result<(), trap::Trap>) {
    let [_, Some(leaf), ..] = clear(1, 1) else { fail!("no leaf for {AT:#x}") };
    check_ok!(run(), "{what}");
    check_eq!(ad(&leaf), wanted, "(A, D) after {what}");
}

const READ: (bool, bool) = (true, false);
const WRITTEN: (bool, bool) = (true, true);

test!(
    by_instruction,
    "What reads sets A; what writes sets D, even if it writes the same back.",
    || {
        map(AT, frame_of_ret());
        let other = frame_of_ret();
        check_leaf("cmp", READ, || insn!("cmp dword ptr [{}], 1"; in(reg) AT));
        check_leaf("bt", READ, || insn!("bt dword ptr [{}], 5"; in(reg) AT));
        check_leaf(
            "push of memory",
            READ,
            || insn!("push qword ptr [{}]", "pop {}"; in(reg) AT, out(reg) _),
        );
        check_leaf("lods", READ, || insn!("lodsb"; inout("rsi") AT => _, out("al") _));
        check_leaf(
            "movs from it",
            READ,
            || insn!("rep movsb"; inout("rsi") AT => _, inout("rdi") other => _, inout("rcx") 16_u64 => _),
        );
        check_leaf("lea", (false, false), || insn!("lea {0}, [{1}]"; out(reg) _, in(reg) AT));
        check_leaf(
            "movs of no byte",
            (false, false),
            || insn!("rep movsb"; inout("rsi") AT => _, inout("rdi") AT => _, inout("rcx") 0_u64 => _),
        );
        check_leaf("or with 0", WRITTEN, || insn!("or dword ptr [{}], 0"; in(reg) AT));
        check_leaf("mov of the same", WRITTEN, || insn!("mov byte ptr [{}], 0xc3"; in(reg) AT));
        check_leaf("xchg", WRITTEN, || insn!("xchg [{0}], {1}"; in(reg) AT, inout(reg) 0_u64 => _));
        check_leaf("lock bts", WRITTEN, || insn!("lock bts dword ptr [{}], 3"; in(reg) AT));
        check_leaf(
            "movs to it",
            WRITTEN,
            || insn!("rep movsb"; inout("rsi") other => _, inout("rdi") AT => _, inout("rcx") 16_u64 => _),
        );
        check_leaf("stos", WRITTEN, || insn!("stosq"; inout("rdi") AT => _, in("rax") 0_u64));
        // SDM volume 2, CMPXCHG: the destination is written whatever the comparison gives.
        check_leaf(
            "lock cmpxchg that fails",
            WRITTEN,
            || insn!("lock cmpxchg [{}], {}"; in(reg) AT, in(reg) 0_u64, inout("rax") 1_u64 => _),
        );
    }
);

test!(
    not_by_a_fault,
    "An access that faults sets neither A nor D of the leaf that forbids it.",
    || {
        cpuid::NX.require();
        let frame = frame_of_ret();
        let nx = Flags::P | Flags::W | Flags::NX;
        for (what, flags, access, error) in [
            ("a write to a read-only page", Flags::P, Access::Write, E_P | E_W),
            ("a fetch from a no-execute page", nx, Access::Fetch, crate::E_P | crate::E_I),
        ] {
            paging::map(AT, frame, Size::K4, flags);
            let [_, Some(leaf), ..] = clear(4, 1) else { fail!("no leaf for {AT:#x}") };
            let fault = check_err!(access.run(AT), "{what}");
            check!(is_fault(&fault, error, AT), "{what}: {fault}");
            check_eq!(ad(&leaf), (false, false), "(A, D) after {what}");
        }
        // A page of CPL 0, from CPL 3.
        map(AT, frame);
        for (what, code) in [
            ("a read of CPL 3", asm_code!("mov al, [rdi]", "ret")),
            ("a write of CPL 3", asm_code!("mov [rdi], al", "ret")),
        ] {
            let mut user = User::new(code);
            user.regs.rdi = AT;
            let [_, Some(leaf), ..] = clear(4, 1) else { fail!("no leaf for {AT:#x}") };
            let end = user.run().end;
            let End::Trap(fault) = end else { fail!("{what} of a page of CPL 0: {end:?}") };
            check_eq!(fault.vector, trap::PF, "{what} of a page of CPL 0");
            check_eq!(ad(&leaf), (false, false), "(A, D) after {what} of a page of CPL 0");
        }
    }
);

test!(without_wp, "A write of CPL 0 to a read-only page without CR0.WP sets D.", || {
    paging::map(AT, frame_of_ret(), Size::K4, Flags::P);
    let cr0 = reg::cr0();
    check_ok!(reg::set_cr0(cr0 & !reg::CR0_WP), "clear CR0.WP");
    check_after("CR0.WP clear", Access::Write, 1, || Access::Write.run(AT));
    check_ok!(reg::set_cr0(cr0), "set CR0.WP");
});

test!(
    second_access_sets_dirty,
    "A page that was read, and is in the TLB so, gets D with the first write.",
    || {
        map(AT, frame_of_ret());
        for round in 0..20 {
            let [_, Some(leaf), ..] = clear(1, 1) else { fail!("no leaf for {AT:#x}") };
            check_ok!(Access::Read.run(AT));
            check_eq!(ad(&leaf), READ, "round {round}: (A, D) after a read");
            check_ok!(Access::Write.run(AT));
            check_eq!(ad(&leaf), WRITTEN, "round {round}: (A, D) after a write behind it");
        }
    }
);

test!(kept_by_software, "A and D that software set stay set, whatever the CPU does.", || {
    let leaf = map(AT, frame_of_ret());
    for access in crate::ACCESSES {
        leaf.set(leaf.value | AD);
        paging::invlpg(AT);
        check_ok!(access.run(AT), "{access:?}");
        check_eq!(ad(&leaf), WRITTEN, "(A, D) after {access:?}");
    }
});

test!(
    both_pages_of_a_crossing,
    "A write across an edge sets A and D of both pages, a read only A.",
    || {
        let pages = [map(AT, frame_of_ret()), map(AT + 0x1000, frame_of_ret())];
        for (write, wanted) in [(false, READ), (true, WRITTEN)] {
            for page in &pages {
                page.set(page.value & !AD);
            }
            paging::flush();
            let at = AT + 0xffd;
            match write {
                true => check_ok!(mem::write(at, 0_u64), "a write across the edge"),
                false => check_ok!(mem::read::<u64>(at).map(|_| ()), "a read across the edge"),
            }
            for (page, name) in pages.iter().zip(["first", "second"]) {
                check_eq!(ad(page), wanted, "(A, D) of the {name} page, write: {write}");
            }
        }
    }
);

test!(
    of_the_tables_pages,
    "The CPU's own write of A and D to a table makes the table's page no dirtier.",
    || {
        // The walk reaches tables by physical address: entries that map a table are not used by it.
        let leaf = map(AT, frame_of_ret());
        let window = AT ^ 1 << 30;
        let table = leaf.at & !0xfff;
        let seen = map(window, table);
        leaf.set(leaf.value & !AD);
        seen.set(seen.value & !AD);
        paging::flush();
        check_ok!(Access::Write.run(AT));
        check_eq!(ad(&leaf), WRITTEN, "(A, D) of the leaf");
        check_eq!(ad(&seen), (false, false), "(A, D) of an entry that maps the leaf's table");
        check_eq!(
            mem::read(window + (leaf.at & 0xfff)),
            Ok(leaf.reload().value),
            "the entry as memory"
        );
    }
);
