//! Translation: which byte of memory an address leads to.

use crate::{AT, frame_with, is_fault, map};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::*;

const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

/// Checks that the 8 bytes at `address` are those at `physical`, by what is written to either.
fn same_word(address: u64, physical: u64, what: &str) {
    let old = check_ok!(mem::read::<u64>(physical), "{what}: read {physical:#x}");
    for (i, (write, read)) in [(address, physical), (physical, address)].into_iter().enumerate() {
        let mark = 0x0123_4567_89ab_cde0 ^ address ^ i as u64;
        check_ok!(mem::write(write, mark), "{what}: write {write:#x}");
        let found = check_ok!(mem::read::<u64>(read), "{what}: read {read:#x}");
        check_eq!(found, mark, "{what}: {read:#x} after a write to {write:#x}");
    }
    check_ok!(mem::write(physical, old), "{what}: write {physical:#x}");
}

test!(k4, "A 4 KiB page leads to its frame, from its first byte to its last.", || {
    let frames = [frame_with(0), frame_with(0), frame_with(0)];
    // In reverse, so that neighbours in one space are none in the other.
    for (i, frame) in frames.iter().rev().enumerate() {
        map(AT + 0x1000 * i as u64, *frame);
    }
    for (i, frame) in frames.iter().rev().enumerate() {
        for offset in [0, 8, 0x7f8, 0xff8] {
            same_word(AT + 0x1000 * i as u64 + offset, frame + offset, "4 KiB");
        }
    }
});

test!(m2, "A 2 MiB page leads to its memory, from its first byte to its last.", || {
    let memory = frames::alloc_range(1024, M2);
    let at = AT & !(M2 - 1);
    paging::map(at, memory + M2, Size::M2, Flags::RW);
    paging::map(at + M2, memory, Size::M2, Flags::RW);
    for offset in [0, 0xff8, 0x1000, 0x10_0000, 0x1f_f000, 0x1f_fff8] {
        same_word(at + offset, memory + M2 + offset, "2 MiB");
        same_word(at + M2 + offset, memory + offset, "2 MiB");
    }
});

test!(g1, "A 1 GiB page leads to its memory, from its first byte to its last that is RAM.", || {
    cpuid::PAGE_1G.require();
    let at = AT & !(G1 - 1);
    paging::map(at, 0, Size::G1, Flags::RW);
    // The payload's own memory, and the last there is in this gigabyte.
    let own = frame_with(0);
    let holds = |r: &&boot::Region| r.kind == boot::Kind::Ram && r.start <= own && own < r.end();
    let Some(ram) = boot::info().regions().iter().find(holds) else {
        report::error(format_args!("the memory map has no RAM at {own:#x}"));
    };
    let last = (ram.end().min(G1) - 8) & !7;
    for physical in [0x9000, own, own + 0xff8, last] {
        same_word(at + physical, physical, "1 GiB");
    }
    report::value("last_byte", last + 7);
});

test!(high_half, "The upper half of the address space translates like the lower.", || {
    let frames = [frame_with(1), frame_with(2), frame_with(3)];
    for (at, frame) in [0xffff_8000_0000_0000, 0xffff_ffff_ffff_f000, 0x0000_7fff_ffff_f000]
        .into_iter()
        .zip(frames)
    {
        map(at, frame);
        same_word(at, frame, "4 KiB at an end of the address space");
        same_word(at + 0xff8, frame + 0xff8, "4 KiB at an end of the address space");
    }
});

test!(across_pages, "An access across the edge of two pages uses each one's frame.", || {
    let (left, right) = (frame_with(0), frame_with(0));
    // The frame behind the left one in memory must not be touched.
    let decoy = left + 0x1000;
    map(AT, left);
    map(AT + 0x1000, right);
    let bytes = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    for before in 1..8_u64 {
        let at = AT + 0x1000 - before;
        let decoy_word = check_ok!(mem::read::<u64>(decoy));
        check_ok!(
            mem::write(at, u64::from_le_bytes(bytes)),
            "a write {before} bytes before the edge"
        );
        for (i, byte) in (0..).zip(bytes) {
            let home = if i < before { left + 0x1000 - before + i } else { right + i - before };
            let found = check_ok!(mem::read::<u8>(home));
            check_eq!(found, byte, "byte {i} of a write {before} bytes before the edge");
        }
        let read = check_ok!(mem::read::<u64>(at), "a read {before} bytes before the edge");
        check_eq!(read.to_le_bytes(), bytes, "a read {before} bytes before the edge");
        if decoy != right {
            check_eq!(mem::read(decoy), Ok(decoy_word), "the frame behind the first page's");
        }
    }
});

test!(
    across_2m_pages,
    "An access across the edge of 2 MiB pages, or of 2 MiB and 4 KiB, uses both.",
    || {
        let memory = frames::alloc_range(1024, M2);
        let at = AT & !(M2 - 1);
        let small = frame_with(0);
        paging::map(at, memory + M2, Size::M2, Flags::RW);
        paging::map(at + M2, memory, Size::M2, Flags::RW);
        map(at + 2 * M2, small);
        for (edge, left, right) in
            [(at + M2, memory + 2 * M2, memory), (at + 2 * M2, memory + M2, small)]
        {
            for before in [1_u64, 4, 7] {
                let mark = 0x8877_6655_4433_2211_u64.rotate_left(before as u32 * 4);
                check_ok!(mem::write(edge - before, mark), "a write across {edge:#x}");
                let mut bytes = [0; 8];
                for (i, byte) in (0..).zip(&mut bytes) {
                    let home = if i < before { left - before + i } else { right + i - before };
                    *byte = check_ok!(mem::read::<u8>(home));
                }
                check_eq!(
                    u64::from_le_bytes(bytes),
                    mark,
                    "a write {before} bytes before {edge:#x}"
                );
                check_eq!(
                    mem::read(edge - before),
                    Ok(mark),
                    "a read {before} bytes before {edge:#x}"
                );
            }
        }
    }
);

test!(
    across_to_nowhere,
    "An access across an edge to a page that is not there faults on that page's first byte.",
    || {
        let left = frame_with(0);
        map(AT, left);
        for before in 1..8_u64 {
            let at = AT + 0x1000 - before;
            let fault = check_err!(mem::read::<u64>(at), "a read {before} bytes before the edge");
            check!(is_fault(&fault, 0, AT + 0x1000), "a read {before} bytes before: {fault}");
            let fault =
                check_err!(mem::write(at, u64::MAX), "a write {before} bytes before the edge");
            check!(
                is_fault(&fault, crate::E_W, AT + 0x1000),
                "a write {before} bytes before: {fault}"
            );
        }
        // From nowhere into a page: the first byte it wants is the one that is not there.
        let right = AT + 0x3000;
        map(right, left);
        for before in 1..8_u64 {
            let at = right - before;
            let fault = check_err!(mem::read::<u64>(at), "a read {before} bytes before the page");
            check!(is_fault(&fault, 0, at), "a read {before} bytes before the page: {fault}");
        }
    }
);

// At CPL 3, so that the processor itself does it on every host.
test!(
    faulting_write_changes_nothing,
    "A write across an edge that faults on the second page changes nothing in the first (CPL 3).",
    || {
        let left = frame_with(0);
        paging::map(AT, left, Size::K4, Flags::RWU);
        paging::map(AT + 0x1000, frame_with(0), Size::K4, Flags::P | Flags::U);
        for before in 1..8_u64 {
            let mut user = user::User::new(asm_code!("mov [rdi], rax", "ret"));
            user.regs.rdi = AT + 0x1000 - before;
            user.regs.rax = u64::MAX;
            let end = user.run().end;
            let user::End::Trap(fault) = end else { fail!("{before} bytes before: {end:?}") };
            check!(is_fault(&fault, 7, AT + 0x1000), "{before} bytes before the edge: {fault}");
            let word = check_ok!(mem::read::<u64>(left + 0xff8));
            check_eq!(word, 0, "the first page after a write that faulted {before} bytes in");
        }
    }
);

/// For each way to lay code that returns 0x12345678 across the edge: writes it, and calls `check` with
/// the bytes before the edge, its address, and the second page's entry.
fn across_the_edge(check: impl Fn(u64, u64, &paging::Entry)) {
    // mov eax, 0x12345678; ret
    let code = [0xb8, 0x78, 0x56, 0x34, 0x12, 0xc3];
    let (left, right) = (frame_with(0), frame_with(0));
    map(AT, left);
    let second = map(AT + 0x1000, right);
    for before in 1..code.len() as u64 {
        let at = AT + 0x1000 - before;
        check_ok!(mem::write_bytes(at, &code), "write code {before} bytes before the edge");
        check(before, at, &second);
    }
}

test!(
    fetch_across_pages,
    "An instruction that lies across an edge is fetched from both pages.",
    || across_the_edge(|before, at, _| {
        let value = check_ok!(mem::call(at), "an instruction {before} bytes before the edge");
        check_eq!(value, 0x1234_5678, "an instruction {before} bytes before the edge");
    })
);

test!(
    fetch_across_pages_faults,
    "Without the second page the fault is on that, at the instruction that wants it.",
    || across_the_edge(|before, at, second| {
        check_ok!(mem::call(at), "an instruction {before} bytes before the edge");
        paging::set(AT + 0x1000, second, second.value & !Flags::P.0);
        let fault = check_err!(mem::call(at), "an instruction into a page that is not there");
        let error = if cpuid::NX.present() { crate::E_I } else { 0 };
        // That is `ret` if all but it lies in the first page.
        let rip = if before == 5 { AT + 0x1000 } else { at };
        check!(is_fault(&fault, error, AT + 0x1000), "{before} bytes before the edge: {fault}");
        check_eq!(fault.rip, rip, "RIP of a fetch fault {before} bytes before the edge");
        paging::set(AT + 0x1000, second, second.value);
    })
);

test!(many_names, "A frame that many addresses lead to is one, and stays when they go.", || {
    const NAMES: u64 = 100;
    let frame = frame_with(0);
    let name = |i: u64| AT + 0x1000 * i;
    (0..NAMES).for_each(|i| {
        map(name(i), frame);
    });
    for i in 0..NAMES {
        check_ok!(mem::write(name(i), i), "write by name {i}");
        let other = (i * 7 + 1) % NAMES;
        check_eq!(mem::read(name(other)), Ok(i), "name {other} after a write by name {i}");
    }
    for i in 0..NAMES - 1 {
        paging::unmap(name(i));
        check_err!(mem::read::<u64>(name(i)), "read by name {i}, which was taken away");
    }
    check_eq!(mem::read(name(NAMES - 1)), Ok(NAMES - 1), "the last name");
});

test!(
    recursive,
    "A top-level entry that leads to its own table shows the tables as pages, which can be edited.",
    || {
        // Slot 300: addresses whose walk goes round in the top-level table once or more often.
        const SLOT: u64 = 300;
        let base = 0xffff_0000_0000_0000 | SLOT << 39;
        let [one, two] = [frame_with(0x1111), frame_with(0x2222)];
        let leaf = map(AT, one);
        let top = paging::entry(base, 4);
        check_eq!(top.value, 0, "slot {SLOT} of the top-level table");
        top.set(reg::cr3() & paging::ADDRESS | Flags::RW.0);
        paging::flush();
        // The leaf of `AT`, seen as memory: its table is four levels down, of which one is the loop.
        let seen_at = base | AT >> 9 & 0x7f_ffff_fff8;
        check_eq!(mem::read(seen_at), Ok(leaf.reload().value), "the entry of {AT:#x} as memory");
        for (frame, mark) in [(two, 0x2222_u64), (one, 0x1111), (two, 0x2222)] {
            check_ok!(mem::write(seen_at, frame | Flags::RW.0), "edit the entry through itself");
            paging::invlpg(AT);
            check_eq!(mem::read(AT), Ok(mark), "{AT:#x} after an edit through the recursive map");
        }
        top.set(0);
        paging::flush();
    }
);

test!(shared_table, "A page table that two entries lead to maps the same at both places.", || {
    let frames = [frame_with(0x1111), frame_with(0x2222)];
    map(AT, frames[0]);
    let other = AT ^ 1 << 21;
    let table = paging::entry(AT, 2);
    let second = paging::reach(other, 2);
    second.set(table.value);
    paging::flush();
    check_eq!(mem::read(other), Ok(0x1111_u64), "the second place");
    // A change in the table is a change at both.
    paging::walk(AT).set(frames[1] | Flags::RW.0);
    paging::invlpg(AT);
    paging::invlpg(other);
    check_eq!(mem::read(AT), Ok(0x2222_u64), "the first place after a change");
    check_eq!(mem::read(other), Ok(0x2222_u64), "the second place after a change");
    // And read-only by one of the ways only.
    second.set(table.value & !Flags::W.0);
    paging::flush();
    check_ok!(mem::write(AT + 8, 1_u64), "write by the way that is writable");
    let fault = check_err!(mem::write(other + 8, 1_u64), "write by the way that is not");
    check!(is_fault(&fault, 3, other + 8), "{fault}");
});
