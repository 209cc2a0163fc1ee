//! Single port accesses.

use crate::{LATCH, LATCH_BYTES};
use payload_rt::user::{End, User};
use payload_rt::*;

/// Reads `size` bytes from `port`, widened.
fn read(port: u16, size: u16) -> u32 {
    match size {
        1 => port::in8(port).into(),
        2 => port::in16(port).into(),
        _ => port::in32(port),
    }
}

/// Writes the low `size` bytes of `value`.
fn write(port: u16, size: u16, value: u32) {
    match size {
        1 => port::out8(port, value as u8),
        2 => port::out16(port, value as u16),
        _ => port::out32(port, value),
    }
}

/// All ones of `size` bytes.
fn ones(size: u16) -> u32 {
    u32::MAX >> (32 - 8 * size)
}

/// Where in the latch an access of a size can be.
const PLACES: [(u16, u16); 8] = [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (4, 0)];

test!(
    latch_widths,
    "A port access of 1, 2 or 4 bytes, aligned or not, writes and reads just those bytes.",
    || {
        let mut latch = 0x0123_4567;
        port::out32(LATCH, latch);
        for (round, (size, offset)) in (1..).zip(PLACES) {
            let value = 0x9abc_def0_u32.rotate_left(round * 4);
            write(LATCH + offset, size, value);
            let mask = ones(size) << (8 * offset);
            latch = latch & !mask | value << (8 * offset) & mask;
            for (size_read, at) in PLACES {
                check_eq!(
                    read(LATCH + at, size_read),
                    latch >> (8 * at) & ones(size_read),
                    "{size_read} bytes at port {:#x} after {size} bytes to {:#x}",
                    LATCH + at,
                    LATCH + offset
                );
            }
        }
    }
);

test!(latch_bytewise, "The latch's byte ports reach the same bytes, each by itself.", || {
    port::out32(LATCH, 0);
    for i in 0..4 {
        port::out8(LATCH_BYTES + i, 0xa0 + i as u8);
        let others = read(LATCH, 4) & !(0xff << (8 * i));
        check_eq!(others >> (8 * i), 0, "bytes above {i}, which was written last");
        check_eq!(port::in8(LATCH_BYTES + i), 0xa0 + i as u8, "byte {i}");
    }
    check_eq!(port::in32(LATCH), 0xa3a2_a1a0);
    // A wide access to a byte-wide device goes there in bytes, as an ISA bridge makes it.
    check_eq!(port::in32(LATCH_BYTES), 0xa3a2_a1a0, "a dword read of the byte ports");
    port::out16(LATCH_BYTES + 1, 0x1122);
    check_eq!(port::in32(LATCH), 0xa311_22a0, "after a word written to the byte ports");
});

test!(
    reaches_over_an_edge,
    "An access that begins below a device reaches it with the bytes that are its own.",
    || {
        // Ports 0xde and 0xdf belong to nobody here.
        port::out32(LATCH, 0x5555_5555);
        port::out32(LATCH - 2, 0xaabb_ccdd);
        check_eq!(port::in32(LATCH), 0x5555_aabb, "after a dword written two ports below");
        check_eq!(port::in32(LATCH - 2), 0xaabb_ffff, "a dword read two ports below");
    }
);

test!(
    unclaimed_ports,
    "A port that belongs to nobody reads as all ones of the width asked.",
    || {
        for port in [0x0200, 0x0300, 0x1234, 0x5678, 0x9abc, 0xfff0] {
            for size in [1, 2, 4] {
                write(port, size, 0);
                check_eq!(read(port, size), ones(size), "{size} bytes at port {port:#x}");
            }
        }
    }
);

// SDM volume 1, 3.4.1.1: a 32-bit result zero-extends into the 64-bit register, 8-bit and 16-bit
// results leave the rest as it is. IN has no 64-bit form: REX.W changes nothing (volume 2, IN).
test!(
    register_halves,
    "`in` to al and ax leaves the rest of rax alone; to eax it zero-extends, REX.W or not.",
    || {
        const RAX: u64 = 0x1122_3344_5566_7788;
        port::out32(LATCH, 0x8a9b_acbd);
        type Form = (&'static str, fn(&mut u64) -> Result<(), trap::Trap>, u64);
        macro_rules! form {
            ($code:literal => $result:literal) => {
                ($code, |rax| insn!($code; in("dx") LATCH, inout("rax") *rax), $result)
            };
        }
        const FORMS: &[Form] = &[
            form!("in al, dx" => 0x1122_3344_5566_77bd),
            form!("in ax, dx" => 0x1122_3344_5566_acbd),
            form!("in eax, dx" => 0x8a9b_acbd),
            form!("in al, 0xe0" => 0x1122_3344_5566_77bd),
            form!("in ax, 0xe0" => 0x1122_3344_5566_acbd),
            form!("in eax, 0xe0" => 0x8a9b_acbd),
            form!("in al, 0xe3" => 0x1122_3344_5566_778a),
            form!(".byte 0x48, 0xed # rex.w in eax, dx" => 0x8a9b_acbd),
            form!(".byte 0x48, 0xe5, 0xe0 # rex.w in eax, 0xe0" => 0x8a9b_acbd),
            form!(".byte 0x66, 0x48, 0xed # data16 rex.w in eax, dx" => 0x8a9b_acbd),
            form!("out dx, al" => 0x1122_3344_5566_7788),
            form!("out 0xe0, eax" => 0x1122_3344_5566_7788),
        ];
        for (what, run, expected) in FORMS {
            let mut rax = RAX;
            check_ok!(run(&mut rax), "{what}");
            check_eq!(rax, *expected, "rax after {what}");
        }
        check_eq!(port::in32(LATCH), 0x5566_7788, "what `out 0xe0, eax` wrote");
        // All ones from nobody obey the same rule.
        let mut rax = RAX;
        check_ok!(insn!("in ax, dx"; in("dx") 0x1234_u16, inout("rax") rax));
        check_eq!(rax, 0x1122_3344_5566_ffff, "rax after `in ax, dx` from an unclaimed port");
    }
);

// SDM volume 1, 19.5: with CPL above IOPL and no permission bitmap in the TSS every port is #GP.
test!(cpl3_without_iopl, "Port I/O at CPL 3 above IOPL is #GP(0), and reaches no device.", || {
    port::out32(LATCH, 0x1111_1111);
    for (what, code) in [
        ("in al, dx", asm_code!("in al, dx", "ret")),
        ("in eax, 0xe0", asm_code!("in eax, 0xe0", "ret")),
        ("out dx, al", asm_code!("out dx, al", "ret")),
        ("out dx, eax", asm_code!("out dx, eax", "ret")),
        ("rep outsb", asm_code!("mov rsi, rsp", "mov ecx, 1", "rep outsb", "ret")),
        ("insb", asm_code!("mov rdi, rsp", "insb", "ret")),
    ] {
        let mut user = User::new(code);
        user.regs.rdx = LATCH.into();
        user.regs.rax = 0x2222_2222;
        let End::Trap(fault) = user.run().end else { fail!("{what} at CPL 3: no fault") };
        check!(fault.is(trap::GP, 0), "{what} at CPL 3: {fault}");
        check_eq!(port::in32(LATCH), 0x1111_1111, "the latch after {what} at CPL 3");
    }
});

test!(cpl3_with_iopl, "With IOPL 3, port I/O at CPL 3 does what it does at CPL 0.", || {
    port::out32(LATCH, 0x8a9b_acbd);
    for (what, code, rax, latch) in [
        ("in al, dx", asm_code!("in al, dx", "ret"), 0x1122_3344_5566_77bd_u64, 0x8a9b_acbd_u32),
        ("in ax, dx", asm_code!("in ax, dx", "ret"), 0x1122_3344_5566_acbd, 0x8a9b_acbd),
        ("in eax, dx", asm_code!("in eax, dx", "ret"), 0x8a9b_acbd, 0x8a9b_acbd),
        ("out dx, al", asm_code!("out dx, al", "ret"), 0x1122_3344_5566_7788, 0x8a9b_ac88),
        ("out dx, ax", asm_code!("out dx, ax", "ret"), 0x1122_3344_5566_7788, 0x8a9b_7788),
        ("out dx, eax", asm_code!("out dx, eax", "ret"), 0x1122_3344_5566_7788, 0x5566_7788),
    ] {
        port::out32(LATCH, 0x8a9b_acbd);
        let mut user = User::new(code);
        user.regs.rflags |= 3 << 12;
        user.regs.rdx = LATCH.into();
        user.regs.rax = 0x1122_3344_5566_7788;
        let outcome = user.run();
        check_eq!(outcome.end, End::Done, "{what} at CPL 3 with IOPL 3");
        check_eq!(outcome.regs.rax, rax, "rax after {what} at CPL 3");
        check_eq!(port::in32(LATCH), latch, "the latch after {what} at CPL 3");
    }
});
