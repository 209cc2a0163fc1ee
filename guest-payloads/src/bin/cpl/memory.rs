//! Pages: what CPL 3 reaches, and what CPL 0 is kept from.

use payload_rt::paging::{self, Flags, Size};
use payload_rt::reg;
use payload_rt::trap::{self, PF, Trap};
use payload_rt::user::{End, User};
use payload_rt::{asm_code, check, check_eq, check_ok, check_trap, cpuid, frames, insn, mem, test};

/// An address whose page-table entries nothing else goes through, from level 4 down.
const AT: u64 = 0x6543_2100_0000;

/// Bits of a page fault's error code (SDM volume 3, 5.7).
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const I: u64 = 16;

/// What CPL 3 does to the address.
#[derive(Clone, Copy, Debug)]
enum How {
    Read,
    Write,
    Fetch,
}

/// Tries it at CPL 3; the page fault, if there is one.
fn attempt(how: How) -> Option<Trap> {
    let code = match how {
        How::Read => asm_code!("mov rbx, [rax]", "ret"),
        How::Write => asm_code!("mov [rax], rbx", "ret"),
        How::Fetch => asm_code!("call rax", "ret"),
    };
    let mut user = User::new(code);
    user.regs.rax = AT;
    // A write leaves the `ret` that a fetch runs.
    user.regs.rbx = 0xc3;
    match user.run().end {
        End::Done => None,
        End::Trap(trap) => Some(trap),
        other => payload_rt::fail!("{how:?}: {other:?}"),
    }
}

/// Maps a page that holds `ret`.
fn page(flags: Flags) {
    let mut frame = frames::alloc();
    frame.bytes()[0] = 0xc3;
    paging::map(AT, frame.address(), Size::K4, flags);
}

// SDM volume 3, 5.6.1 and 5.7: U/S, R/W and XD of all levels are put together.
test!(
    levels,
    "CPL 3 needs U, W and no NX at every level, and the error code says what it did.",
    || {
        page(Flags::RWU);
        let all = [(How::Read, 0), (How::Write, W), (How::Fetch, I)];
        // Without NX the error code does not tell a fetch.
        let fetch_bit = |code: u64| if cpuid::NX.present() { code } else { code & !I };
        for (how, _) in all {
            check_eq!(attempt(how), None, "{how:?} of a page for CPL 3");
        }
        for level in 1..=4 {
            let entry = paging::entry(AT, level);
            check_eq!(entry.level, level, "level of the entry");
            let old = entry.reload().value;
            let nx = if cpuid::NX.present() { Flags::NX.0 } else { 0 };
            for (what, value) in [
                ("not present", old & !Flags::P.0),
                ("for CPL 0", old & !Flags::U.0),
                ("read-only", old & !Flags::W.0),
                ("not executable", old | nx),
            ] {
                paging::set(AT, &entry, value);
                for (how, bits) in all {
                    let present = value & Flags::P.0;
                    let open = present != 0
                        && value & Flags::U.0 != 0
                        && (bits & W == 0 || value & Flags::W.0 != 0)
                        && (bits & I == 0 || value & Flags::NX.0 == 0);
                    match attempt(how) {
                        None => check!(open, "{how:?} of a page {what} at level {level}: no fault"),
                        Some(fault) => {
                            check!(!open, "{how:?} of a page {what} at level {level}: {fault}");
                            let code = fetch_bit(present | U | bits);
                            let fits = fault.is(PF, code) && fault.cr2 == AT;
                            check!(
                                fits,
                                "{how:?} of a page {what} at level {level}: {fault}, must be error {code:#x} on {AT:#x}"
                            );
                        }
                    }
                }
            }
            paging::set(AT, &entry, old);
        }
    }
);

// SDM volume 3, 5.6.1: CR0.WP.
test!(
    write_protect,
    "CR0.WP decides whether CPL 0 may write a read-only page; CPL 3 never may.",
    || {
        page(Flags::U);
        let cr0 = reg::cr0();
        check_ok!(reg::set_cr0(cr0 | reg::CR0_WP));
        let fault = check_trap!(mem::write(AT, 1_u64), PF, P | W, "write at CPL 0 with WP");
        check_eq!(fault.cr2, AT, "CR2");
        check!(attempt(How::Write).is_some_and(|t| t.is(PF, P | W | U)), "write at CPL 3 with WP");
        check_ok!(reg::set_cr0(cr0 & !reg::CR0_WP));
        check_ok!(mem::write(AT, 0xc3_u64), "write at CPL 0 without WP");
        check_eq!(mem::read(AT), Ok(0xc3_u64), "what was written without WP");
        check!(
            attempt(How::Write).is_some_and(|t| t.is(PF, P | W | U)),
            "write at CPL 3 without WP"
        );
        check_ok!(reg::set_cr0(cr0 | reg::CR0_WP));
        check_trap!(mem::write(AT, 1_u64), PF, P | W, "write at CPL 0 with WP again");
    }
);

// SDM volume 3, 5.6.1: CR4.SMEP.
test!(smep, "With CR4.SMEP CPL 0 cannot execute a page of CPL 3; CPL 3 can.", || {
    cpuid::SMEP.require();
    page(Flags::RWU);
    let cr4 = reg::cr4();
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_SMEP));
    check_ok!(mem::call(AT), "call without SMEP");
    check_ok!(reg::set_cr4(cr4 | reg::CR4_SMEP));
    let fault = check_trap!(mem::call(AT), PF, P | I, "call with SMEP");
    check_eq!((fault.rip, fault.cr2), (AT, AT), "RIP and CR2");
    check_ok!(mem::read::<u8>(AT), "read with SMEP");
    check_eq!(attempt(How::Fetch), None, "CPL 3 with SMEP");
    // One level that is for CPL 0 makes the page one of CPL 0.
    let table = paging::entry(AT, 3);
    paging::set(AT, &table, table.value & !Flags::U.0);
    check_ok!(mem::call(AT), "call of a page that level 3 makes CPL 0's");
    paging::set(AT, &table, table.value);
    check_trap!(mem::call(AT), PF, P | I, "call with SMEP again");
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_SMEP));
    check_ok!(mem::call(AT), "call without SMEP again");
});

/// Reads and writes the page with RFLAGS.AC as given.
fn touch(ac: u64) -> (Result<(), Trap>, Result<(), Trap>) {
    let flags = reg::rflags();
    let set = |value: u64| check_ok!(insn!("push {}", "popfq"; in(reg) value));
    set(flags & !reg::FLAG_AC | ac);
    let read = insn!("mov {0}, [{0}]"; inout(reg) AT => _);
    set(flags & !reg::FLAG_AC | ac);
    let write = insn!("mov byte ptr [{}], 0xc3"; in(reg) AT);
    set(flags);
    (read, write)
}

// SDM volume 3, 5.6.1: CR4.SMAP; RFLAGS.AC lets explicit accesses through.
test!(smap, "With CR4.SMAP CPL 0 cannot touch a page of CPL 3 unless RFLAGS.AC is set.", || {
    cpuid::SMAP.require();
    page(Flags::RWU);
    let cr4 = reg::cr4();
    check_ok!(reg::set_cr4(cr4 | reg::CR4_SMAP));
    let (read, write) = touch(0);
    let fault = check_trap!(read, PF, P, "read with SMAP");
    check_eq!(fault.cr2, AT, "CR2");
    check_trap!(write, PF, P | W, "write with SMAP");
    let (read, write) = touch(reg::FLAG_AC);
    check_ok!(read, "read with SMAP and AC");
    check_ok!(write, "write with SMAP and AC");
    for how in [How::Read, How::Write, How::Fetch] {
        check_eq!(attempt(how), None, "{how:?} at CPL 3 with SMAP");
    }
    check_ok!(reg::set_cr4(cr4 & !reg::CR4_SMAP));
    let (read, write) = touch(0);
    check_ok!(read, "read without SMAP");
    check_ok!(write, "write without SMAP");
});

// SDM volume 3, 5.7: the access by which a trap is delivered is CPL 0's own, whatever CPL it
// interrupts; so no U in the error code.
test!(
    implicit,
    "The CPU's own reads of the GDT at CPL 3 are CPL 0's: no fault on its pages.",
    || {
        // Loading a segment register reads the GDT, on a page for CPL 0.
        let outcome = User::new(asm_code!("mov eax, 0x23", "mov ds, eax", "ret")).run();
        check_eq!(outcome.end, End::Done, "load of a data segment at CPL 3");
        let gdt = check_ok!(reg::sgdt()).base;
        let mut user = User::new(asm_code!("mov rbx, [rax]", "ret"));
        user.regs.rax = gdt;
        let End::Trap(fault) = user.run().end else { payload_rt::fail!("CPL 3 reads the GDT") };
        check!(fault.is(PF, P | U), "read of the GDT at CPL 3: {fault}");
        check_eq!(fault.vector, trap::PF);
    }
);
