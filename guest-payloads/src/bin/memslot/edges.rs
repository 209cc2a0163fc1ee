//! Accesses that begin in RAM and end where none is, and the other way round.
//!
//! KVM API, The kvm_run structure: KVM_EXIT_MMIO.

use crate::{AREA, MARK, NOTHING, PAGE, check_exits, check_pieces, ones, read, show, watch, write};
use payload_rt::lab::Backing;
use payload_rt::lab::Memory;
use payload_rt::*;

/// Bytes that reads over an edge get from outside, piece by piece: each piece is answered with the low
/// bytes of the same word, so a word of one byte is the same however it is cut.
const OUTSIDE: u64 = 0x7b7b_7b7b_7b7b_7b7b;

fn watch_same(from: u64, to: u64) -> lab::Log {
    let rule = lab::Rule::on(lab::kind::MMIO).range(from..=to - 1).value(OUTSIDE);
    check_ok!(lab::record(&[rule]))
}

test!(
    into_nothing,
    "An access from RAM into nothing: RAM has its half, an exit the other.",
    || {
        let (memory, _) = show(1, 0);
        let edge = AREA + PAGE;
        let log = watch_same(edge - 16, edge + PAGE);
        let mut next = 0;
        for size in [2, 4, 8] {
            for below in 1..size {
                let (at, outside) = (edge - below, (size - below) as usize);
                check_ok!(memory.write_u64(PAGE - 8, MARK));
                let what = "a read from RAM into nothing";
                let kept = MARK >> (64 - 8 * below);
                let wanted = (kept | OUTSIDE << (8 * below)) & ones(size);
                check_eq!(read(at, size), wanted, "{what}, {size} bytes at {at:#x}");
                next = check_pieces(&log, next, what, edge, false, &[0; 8][..outside]);
                check_eq!(log.count(), next, "{what}: exits");
                let what = "a write from RAM into nothing";
                write(at, size, !MARK);
                let bytes = (!MARK).to_le_bytes();
                let (inside, rest) = bytes[..size as usize].split_at(below as usize);
                next = check_pieces(&log, next, what, edge, true, rest);
                check_eq!(log.count(), next, "{what}: exits");
                let mut found = [0; 8];
                check_ok!(memory.read(PAGE - 8, &mut found));
                check_eq!(&found[8 - below as usize..], inside, "{what}, {size} bytes at {at:#x}");
            }
        }
    }
);

test!(
    out_of_nothing,
    "An access from nothing into RAM: an exit has its half, RAM the other.",
    || {
        let (memory, _) = show(1, 0);
        let edge = AREA;
        // Below the area is the end of RAM, far away.
        let log = watch_same(edge - 16, edge);
        let mut next = 0;
        for size in [2, 4, 8] {
            for below in 1..size {
                let at = edge - below;
                check_ok!(memory.write_u64(0, MARK));
                let what = "a read from nothing into RAM";
                let wanted = (OUTSIDE & ones(below) | MARK << (8 * below)) & ones(size);
                check_eq!(read(at, size), wanted, "{what}, {size} bytes at {at:#x}");
                next = check_pieces(&log, next, what, at, false, &[0; 8][..below as usize]);
                check_eq!(log.count(), next, "{what}: exits");
                let what = "a write from nothing into RAM";
                write(at, size, !MARK);
                let bytes = (!MARK).to_le_bytes();
                let (rest, inside) = bytes[..size as usize].split_at(below as usize);
                next = check_pieces(&log, next, what, at, true, rest);
                check_eq!(log.count(), next, "{what}: exits");
                let mut found = [0; 8];
                check_ok!(memory.read(0, &mut found));
                check_eq!(&found[..inside.len()], inside, "{what}, {size} bytes at {at:#x}");
            }
        }
    }
);

test!(stack_over_edge, "Push and pop over the end of a slot have their bytes in order.", || {
    let (memory, _) = show(1, 0);
    let edge = AREA + PAGE;
    let log = watch_same(edge, edge + PAGE);
    let popped: u64;
    check_ok!(insn!(
        "mov r8, rsp", "mov rsp, {top}", "push {value}", "pop {value}", "mov rsp, r8";
        top = in(reg) edge + 4, value = inout(reg) MARK => popped, out("r8") _
    ));
    check_eq!(popped, MARK & ones(4) | OUTSIDE << 32, "what the pop read");
    let bytes = MARK.to_le_bytes();
    let next = check_pieces(&log, 0, "the push", edge, true, &bytes[4..]);
    let next = check_pieces(&log, next, "the pop", edge, false, &[0; 4]);
    check_eq!(log.count(), next, "exits");
    let mut found = [0; 4];
    check_ok!(memory.read(PAGE - 4, &mut found));
    check_eq!(found, bytes[..4]);
});

test!(strings_over_edge, "A string goes over the end of a slot, item by item.", || {
    let (memory, _) = show(1, 0);
    let edge = AREA + PAGE;
    let frame = frames::alloc().address();
    for n in 0..4 {
        check_ok!(mem::write(frame + 8 * n, MARK ^ n));
    }
    let log = watch(edge, edge + PAGE);
    check_ok!(insn!(
        "rep movsq";
        inout("rcx") 4u64 => _, inout("rsi") frame => _, inout("rdi") edge - 16 => _
    ));
    check_exits(&log, 0, "`rep movsq` out", &[(edge, 8, 1, MARK ^ 2), (edge + 8, 8, 1, MARK ^ 3)]);
    check_eq!(memory.read_u64(PAGE - 16), Ok(MARK));
    check_eq!(memory.read_u64(PAGE - 8), Ok(MARK ^ 1));
    check_ok!(insn!(
        "rep movsq";
        inout("rcx") 3u64 => _, inout("rsi") edge - 8 => _, inout("rdi") frame => _
    ));
    check_exits(&log, 2, "`rep movsq` in", &[(edge, 8, 0, 0), (edge + 8, 8, 0, 0)]);
    let found = [0, 8, 16].map(|at| read(frame + at, 8));
    check_eq!(found, [MARK ^ 1, NOTHING, NOTHING]);
});

test!(
    exchange_over_edge,
    "An exchange over the end of a slot reads both halves, then writes.",
    || {
        let (memory, _) = show(1, 0);
        let edge = AREA + PAGE;
        check_ok!(memory.write_u64(PAGE - 8, MARK));
        let log = watch_same(edge, edge + PAGE);
        let old: u32;
        check_ok!(insn!("xchg [{}], {:e}"; in(reg) edge - 2, inout(reg) 0x1234_5678u32 => old));
        check_eq!(old, 0x7b7b_8877, "what `xchg` read");
        let next = check_pieces(&log, 0, "the read", edge, false, &[0; 2]);
        let next = check_pieces(&log, next, "the write", edge, true, &[0x34, 0x12]);
        check_eq!(log.count(), next, "exits");
        check_eq!(memory.read_u64(PAGE - 8), Ok(0x5678_6655_4433_2211));
    }
);

test!(code_over_edge, "Code that ends with its slot runs to the end.", || {
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(memory.slot(AREA, 0, PAGE, 0));
    // mov eax, 9; ret
    check_ok!(memory.write(PAGE - 6, &[0xb8, 9, 0, 0, 0, 0xc3]));
    let log = watch(AREA + PAGE, AREA + 2 * PAGE);
    check_eq!(mem::call(AREA + PAGE - 6), Ok(9));
    check_eq!(log.count(), 0, "exits");
});
