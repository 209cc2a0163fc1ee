//! #PF: every bit of the error code, CR2, and what was done before (SDM volume 3, 5.7 and 7.15).

use super::check_rf;
use payload_rt::paging::{self, Flags, Size};
use payload_rt::trap::PF;
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, cpuid, frames, insn, mem, reg, test,
};

/// A page of our own, with nothing behind it.
const AT: u64 = 0x7654_3210_0000;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const RSVD: u64 = 8;
const I: u64 = 16;

fn map(flags: Flags) -> paging::Entry {
    let mut frame = frames::alloc();
    frame.bytes().fill(0xc3); // ret
    paging::map(AT, frame.address(), Size::K4, flags)
}

/// What is wrong with a page, its entry, and the error codes of a read, of a write but for W, and of a
/// call but for I; none if it is done.
type Wrong = (&'static str, u64, Option<u64>, Option<u64>, Option<u64>);

/// Checks accesses to a page by each entry.
fn check_codes(leaf: &paging::Entry, wrong: &[Wrong]) {
    let fetch = if cpuid::NX.present() { I } else { 0 };
    for &(what, value, read, write, call) in wrong {
        paging::set(AT, leaf, value);
        let tries = [
            ("read", read, 0, mem::read::<u64>(AT).map(drop)),
            ("write", write, W, mem::write(AT, 0xc3c3_c3c3_u32)),
            ("call", call, fetch, mem::call(AT).map(drop)),
        ];
        for (how, expected, bits, result) in tries {
            let Some(code) = expected else {
                check_ok!(result, "{how} of a page: {what}");
                continue;
            };
            let fault = check_trap!(result, PF, code | bits, "{how} of a page: {what}");
            check_eq!(fault.cr2, AT, "CR2, {how} of a page: {what}");
            check_rf(fault.rflags, how);
            check!(how != "call" || fault.rip == AT, "call of a page: {what}: {fault}");
        }
    }
}

test!(
    pf_codes,
    "The error code of a page fault at CPL 0 says what was done and what was wrong.",
    || {
        let leaf = map(Flags::RW);
        let nx = cpuid::NX.present();
        let wrong = [
            ("not present", leaf.value & !Flags::P.0, Some(0), Some(0), Some(0)),
            ("all bits but P", !Flags::P.0, Some(0), Some(0), Some(0)),
            ("read-only", leaf.value & !Flags::W.0, None, Some(P), None),
            (
                "no execution",
                leaf.value | if nx { Flags::NX.0 } else { 0 },
                None,
                None,
                nx.then_some(P),
            ),
            ("right", leaf.value, None, None, None),
            ("for CPL 3", leaf.value | Flags::U.0, None, None, None),
        ];
        check_codes(&leaf, &wrong);
    }
);

/// Bit 51, beyond the physical bits of every CPU that has fewer than 52.
fn reserved() -> u64 {
    if cpuid::physical_bits() > 51 {
        payload_rt::skip!("no bit of a page-table entry is reserved");
    }
    1 << 51
}

test!(pf_reserved, "A reserved bit shows in the error code at CPL 0, with P.", || {
    let leaf = map(Flags::RW);
    let code = Some(P | RSVD);
    check_codes(&leaf, &[("reserved", leaf.value | reserved(), code, code, code)]);
});

test!(pf_user_reserved, "A reserved bit shows in the error code at CPL 3, with U.", || {
    let leaf = map(Flags::RWU);
    paging::set(AT, &leaf, leaf.value | reserved());
    for (code, bits) in [
        (asm_code!("mov rbx, [rax]", "ret"), 0),
        (asm_code!("mov [rax], rbx", "ret"), W),
        (asm_code!("jmp rax"), if cpuid::NX.present() { I } else { 0 }),
    ] {
        let mut user = User::new(code);
        user.regs.rax = AT;
        let End::Trap(trap) = user.run().end else { payload_rt::fail!("no fault at CPL 3") };
        check!(
            trap.is(PF, P | RSVD | U | bits),
            "{trap}, must be error {:#x}",
            P | RSVD | U | bits
        );
        check_eq!(trap.cr2, AT, "CR2");
    }
});

// SDM volume 3, 5.6.1 and 5.7: with EFER.NXE clear bit 63 is reserved, and there is no I.
test!(pf_nxe, "With EFER.NXE clear, NX in an entry is a reserved bit.", || {
    cpuid::NX.require();
    let leaf = map(Flags::RW | Flags::NX);
    let efer = check_ok!(reg::rdmsr(reg::EFER));
    check_ok!(mem::read::<u64>(AT), "read with NXE");
    check_trap!(mem::call(AT), PF, P | I, "call with NXE");
    check_ok!(reg::wrmsr(reg::EFER, efer & !reg::EFER_NXE));
    paging::flush();
    check_trap!(mem::read::<u64>(AT), PF, P | RSVD, "read without NXE");
    check_trap!(mem::write(AT, 0_u8), PF, P | RSVD | W, "write without NXE");
    check_trap!(mem::call(AT), PF, P | RSVD, "call without NXE");
    paging::set(AT, &leaf, leaf.value & !Flags::NX.0);
    check_ok!(mem::call(AT), "call without NXE and NX");
    check_ok!(reg::wrmsr(reg::EFER, efer));
});

test!(pf_address, "CR2 is the first byte that faults, at any width and over a page's end.", || {
    map(Flags::RW);
    let end = AT + 0x1000;
    for offset in [0, 1, 7, 0x123, 0xff8, 0xfff] {
        let at = end + offset;
        let fault = check_trap!(mem::read::<u8>(at), PF, 0, "read a byte at {at:#x}");
        check_eq!(fault.cr2, at, "CR2");
        let fault = check_trap!(mem::write(at, 0_u64), PF, W, "write a quadword at {at:#x}");
        check_eq!(fault.cr2, at, "CR2");
    }
    // Over the end of a page that is there: the second page's first byte.
    for (result, code, what) in [
        (mem::read::<u16>(end - 1).map(drop), 0, "read of a word"),
        (mem::read::<u32>(end - 2).map(drop), 0, "read of a doubleword"),
        (mem::read::<u64>(end - 5).map(drop), 0, "read of a quadword"),
        (mem::write(end - 1, 0_u16), W, "write of a word"),
        (mem::write(end - 7, u64::MAX), W, "write of a quadword"),
    ] {
        let fault = check_trap!(result, PF, code, "{what} over a page's end");
        check_eq!(fault.cr2, end, "CR2, {what} over a page's end");
    }
});

test!(pf_split_write, "A write over a page's end that faults writes nothing.", || {
    map(Flags::RW);
    let end = AT + 0x1000;
    for before in 1..8 {
        let fault = check_trap!(mem::write(end - before, u64::MAX), PF, W, "{before} bytes before");
        check_eq!(fault.cr2, end, "CR2, {before} bytes before");
        let kept = Ok(0xc3c3_c3c3_c3c3_c3c3_u64);
        check_eq!(mem::read(end - 8), kept, "memory after a write {before} bytes before the end");
    }
});

test!(pf_cr2_stays, "Other exceptions leave CR2 alone, and it can be written.", || {
    let fault = check_trap!(mem::read::<u8>(AT + 0x5678), PF, 0, "read");
    check_eq!(reg::cr2(), fault.cr2, "CR2 after the fault");
    let _ = check_trap!(insn!("ud2"), payload_rt::trap::UD, 0, "ud2");
    let _ = check_trap!(mem::read::<u8>(1 << 63), payload_rt::trap::GP, 0, "read");
    check_eq!(reg::cr2(), AT + 0x5678, "CR2 after other exceptions");
    for value in [0, u64::MAX, 0x1234_5678_9abc_def0] {
        check_ok!(reg::set_cr2(value));
        check_eq!(reg::cr2(), value, "CR2");
    }
});

test!(pf_read_modify_write, "An instruction that reads and writes faults as a write.", || {
    let leaf = map(Flags::RW);
    paging::set(AT, &leaf, leaf.value & !Flags::W.0);
    let at = AT + 8;
    for (what, result) in [
        ("add", insn!("add qword ptr [{}], 1"; in(reg) at)),
        ("lock add", insn!("lock add qword ptr [{}], 1"; in(reg) at)),
        ("xchg", insn!("xchg [{}], {}"; in(reg) at, inout(reg) 0_u64 => _)),
        ("inc", insn!("inc byte ptr [{}]"; in(reg) at)),
        ("bts", insn!("bts qword ptr [{}], 3"; in(reg) at)),
        ("not", insn!("not dword ptr [{}]"; in(reg) at)),
    ] {
        let fault = check_trap!(result, PF, P | W, "{what} of a read-only page");
        check_eq!(fault.cr2, at, "CR2, {what}");
        check_eq!(mem::read(at), Ok(0xc3c3_c3c3_c3c3_c3c3_u64), "memory after {what}");
    }
    paging::unmap(AT);
    // A comparison only reads.
    let fault = insn!("cmp qword ptr [{}], 1"; in(reg) at);
    check_trap!(fault, PF, 0, "cmp with a page that is not there");
});

test!(pf_absent_read_modify_write, "So does one of a page that is not there.", || {
    let fault = insn!("add qword ptr [{}], 1"; in(reg) AT + 8);
    check_trap!(fault, PF, W, "add to a page that is not there");
});

// SDM volume 1, 7.3.9.3: RCX, RSI and RDI are as after the last iteration that was done.
test!(
    pf_string,
    "A string instruction that faults has done what lies before, and can go on.",
    || {
        map(Flags::RW);
        let mut source = frames::alloc();
        source.bytes().fill(0x5a);
        let end = AT + 0x1000;
        for (width, before) in [(1_u64, 10_u64), (8, 16), (4, 12)] {
            let (mut rsi, mut rdi, mut rcx) = (source.address(), end - before, 64 / width);
            let fault = match width {
                1 => insn!("rep movsb"; inout("rsi") rsi, inout("rdi") rdi, inout("rcx") rcx),
                4 => insn!("rep movsd"; inout("rsi") rsi, inout("rdi") rdi, inout("rcx") rcx),
                _ => insn!("rep movsq"; inout("rsi") rsi, inout("rdi") rdi, inout("rcx") rcx),
            };
            let fault = check_trap!(fault, PF, W, "rep movs of {width} over a page's end");
            check_eq!(fault.cr2, end, "CR2");
            check_eq!(rdi, end, "RDI, width {width}");
            check_eq!(rsi, source.address() + before, "RSI, width {width}");
            check_eq!(rcx, 64 / width - before / width, "RCX, width {width}");
            check_eq!(mem::read(end - before), Ok(0x5a_u8), "first byte, width {width}");
            check_eq!(mem::read(end - 1), Ok(0x5a_u8), "last byte before the end, width {width}");
        }
    }
);

test!(pf_stack, "PUSH, POP and CALL that fault leave RSP where it was.", || {
    let top = AT; // nothing below
    map(Flags::RW);
    for (what, result, code, cr2) in [
        ("push", stack(top, 0), W, top - 8),
        ("pop", stack(top - 16, 1), 0, top - 16),
        ("call", stack(top, 2), W, top - 8),
        ("pushfq", stack(top, 3), W, top - 8),
        ("ret", stack(top - 16, 4), 0, top - 16),
    ] {
        let (result, rsp) = result;
        let fault = match result {
            End::Trap(trap) => trap,
            other => payload_rt::fail!("{what}: {other:?}"),
        };
        check!(fault.is(PF, code | U), "{what}: {fault}, must be #PF error {:#x}", code | U);
        check_eq!(fault.cr2, cr2, "CR2, {what}");
        check_eq!(rsp, cr2 + if code == W { 8 } else { 0 }, "RSP, {what}");
    }
});

/// Runs a stack instruction at CPL 3 with RSP as given: how it ended, and RSP then.
fn stack(rsp: u64, which: usize) -> (End, u64) {
    let code = [
        asm_code!("push rax"),
        asm_code!("pop rax"),
        asm_code!("call rax"),
        asm_code!("pushfq"),
        asm_code!("ret"),
    ][which];
    let mut user = User::new(code);
    user.regs.rsp = rsp;
    let outcome = user.run();
    (outcome.end, outcome.regs.rsp)
}
