//! The dirty log: pages that were written, whoever in the guest wrote them, and no others.
//!
//! KVM API, KVM_GET_DIRTY_LOG.

use crate::tables::{TABLES, entry, lay};
use crate::{AREA, AT, LARGE, MARK, PAGE, show};
use payload_rt::lab::{Backing, Errno, Memory, RamSlot, Slot, kvm};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::user::{End, User};
use payload_rt::*;

const LOG: u32 = kvm::slot::LOG_DIRTY;

fn log(slot: &Slot) -> u64 {
    let mut bitmap = [0];
    check_ok!(slot.dirty_log(&mut bitmap));
    bitmap[0]
}

fn check_dirty(slot: &Slot, what: &str, wanted: u64, f: impl FnOnce()) {
    log(slot);
    f();
    check_eq!(log(slot), wanted, "pages after {what}");
    check_eq!(log(slot), 0, "pages after {what}, asked again");
}

test!(by_instruction, "Each kind of store marks the pages that it wrote, and no others.", || {
    let (_, slot) = show(16, LOG);
    let at = |page: u64| AREA + page * PAGE;
    check_dirty(&slot, "a store", 1 << 3, || crate::write(at(3) + 0xff8, 8, MARK));
    check_dirty(&slot, "a byte at the end", 1 << 4, || crate::write(at(5) - 1, 1, 1));
    check_dirty(&slot, "a store over the edge", 3 << 6, || crate::write(at(7) - 1, 2, 0x102));
    check_dirty(&slot, "`lock inc`", 1 << 8, || {
        check_ok!(insn!("lock inc dword ptr [{}]"; in(reg) at(8)));
    });
    check_dirty(&slot, "`xchg`", 1 << 9, || {
        check_ok!(insn!("xchg [{}], {}"; in(reg) at(9), inout(reg) 1u64 => _));
    });
    check_dirty(&slot, "`rep stosq` over three pages", 7 << 10, || {
        check_ok!(insn!(
            "rep stosq";
            inout("rdi") at(11) - 8 => _, inout("rcx") 514u64 => _, in("rax") MARK
        ));
    });
    check_dirty(&slot, "`rep movsb` from page 1 to page 2", 1 << 2, || {
        check_ok!(insn!(
            "rep movsb";
            inout("rsi") at(1) => _, inout("rdi") at(2) => _, inout("rcx") 40u64 => _
        ));
    });
    check_dirty(&slot, "`push`", 1 << 14, || {
        check_ok!(insn!(
            "mov r8, rsp", "mov rsp, {top}", "push r8", "mov rsp, r8";
            top = in(reg) at(15), out("r8") _
        ));
    });
});

test!(not_by_reads, "Reads, fetches and stores elsewhere mark nothing.", || {
    let (memory, slot) = show(8, LOG);
    // mov eax, 9; ret
    check_ok!(memory.write(3 * PAGE, &[0xb8, 9, 0, 0, 0, 0xc3]));
    let other = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(other.slot(AREA + 8 * PAGE, 0, PAGE, 0));
    let read_all = || {
        for page in 0..8 {
            check_ok!(mem::read::<u64>(AREA + page * PAGE + 8));
        }
    };
    // KVM may map pages for writing at once and count that: `first_read`.
    read_all();
    check_dirty(&slot, "reads and a fetch", 0, || {
        read_all();
        check_eq!(mem::call(AREA + 3 * PAGE), Ok(9));
        check_ok!(mem::write(AREA + 8 * PAGE, MARK));
    });
});

test!(first_read, "A page that the host has written is clean after the guest has read it.", || {
    let (memory, slot) = show(4, LOG);
    check_ok!(memory.write_u64(PAGE, MARK));
    check_dirty(&slot, "the first read", 0, || {
        check_eq!(mem::read::<u64>(AREA + PAGE), Ok(MARK));
    });
});

// KVM knows nothing of writes by the host's own process.
test!(not_by_the_host, "What the host writes is not in the log.", || {
    let (memory, slot) = show(4, LOG);
    check_ok!(memory.write_u64(PAGE, !MARK));
    check_eq!(mem::read::<u64>(AREA + PAGE), Ok(!MARK));
    check_dirty(&slot, "a write of the host's", 0, || {
        check_ok!(memory.write_u64(PAGE, MARK));
        check_eq!(mem::read::<u64>(AREA + PAGE), Ok(MARK));
    });
});

test!(by_cpl3, "Stores of CPL 3 are in the log.", || {
    let (memory, slot) = show(8, LOG);
    paging::map(AT, AREA + 5 * PAGE, Size::K4, Flags::RWU);
    paging::map(AT + PAGE, AREA + 2 * PAGE, Size::K4, Flags::RWU);
    let run = |code| {
        let mut user = User::new(code);
        user.regs.rdi = AT;
        check_eq!(user.run().end, End::Done);
    };
    check_dirty(&slot, "a store of CPL 3", 1 << 5, || {
        run(asm_code!("mov dword ptr [rdi], 5", "ret"))
    });
    check_dirty(&slot, "a second one", 1 << 5, || run(asm_code!("mov dword ptr [rdi], 6", "ret")));
    check_dirty(&slot, "`lock inc` of CPL 3", 1 << 2, || {
        run(asm_code!("lock inc dword ptr [rdi + 0x1000]", "ret"));
    });
    check_dirty(&slot, "a store over the edge", 1 << 2 | 1 << 5, || {
        run(asm_code!("mov dword ptr [rdi + 0xffe], 0x04030201", "ret"));
    });
    check_dirty(&slot, "a read of CPL 3", 0, || run(asm_code!("mov eax, [rdi]", "ret")));
    check_eq!(memory.read_u64(5 * PAGE), Ok(6));
});

simd_fn! {
    fn fxsave(at: u64) {
        check_ok!(insn!("fxsave [{}]"; in(reg) at));
    }
    fn xsave(at: u64) {
        check_ok!(insn!("xsave [{}]"; in(reg) at, in("eax") 7, in("edx") 0));
    }
}

test!(by_fxsave, "FXSAVE marks the page that it wrote.", || {
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR), "set CR4.OSFXSR");
    let (_, slot) = show(4, LOG);
    check_dirty(&slot, "FXSAVE", 1 << 1, || fxsave(AREA + PAGE));
    check_dirty(&slot, "FXSAVE at the end of a page", 1 << 1, || fxsave(AREA + 2 * PAGE - 512));
});

test!(by_xsave, "XSAVE over an edge marks both pages.", || {
    cpuid::XSAVE.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR | reg::CR4_OSXSAVE));
    let (_, slot) = show(4, LOG);
    check_dirty(&slot, "XSAVE", 1 << 1, || xsave(AREA + PAGE));
    // The header lies behind the 512 bytes of the legacy area.
    check_dirty(&slot, "XSAVE over an edge", 3 << 1, || xsave(AREA + 2 * PAGE - 512));
});

test!(by_interrupt_frame, "The frame that the processor pushes marks its page.", || {
    const IST: u8 = 2;
    // The frame of a page fault, error code included, just fits between the edge of a page and the
    // stack's top: all that lies there comes from the processor, what the handler pushes below.
    let edge = cpu::ist_range(IST.into()).start.next_multiple_of(PAGE);
    let below = cpu::ist_range(1).start;
    check!(edge - below >= PAGE, "{below:#x} and {edge:#x}: no room for the handler");
    // SDM volume 3, 8.7: IST1 is at 0x24 of the TSS.
    check_ok!(mem::write(cpu::tss_address() + 0x24 + 8 * (u64::from(IST) - 1), edge + 48));
    idt::set_ist(trap::PF, IST);
    let slot = check_ok!(RamSlot::of(edge));
    check_ok!(slot.set_flags(LOG));
    let mut bitmap = [0u64; 2048];
    let page = ((edge - slot.gpa) / PAGE) as usize;
    check_ok!(slot.dirty_log(&mut bitmap));
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap[page / 64] >> (page % 64) & 1, 0, "before");
    let fault = check_err!(mem::read::<u8>(AT));
    check_eq!((fault.vector, fault.cr2), (trap::PF, AT));
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap[page / 64] >> (page % 64) & 1, 1, "after");
    let frame = [0, 8, 16, 24].map(|at| check_ok!(mem::read::<u64>(edge + at)));
    check_eq!(frame[0], fault.error_code, "the error code");
    check_eq!(frame[2], cpu::KERNEL_CS.into(), "CS");
    idt::set_ist(trap::PF, 0);
});

// SDM volume 3, 5.8: setting A or D is a write to the table.
test!(by_page_walk, "A and D mark the page of the table that they are set in.", || {
    let (memory, slot) = show(TABLES, LOG);
    let frame = frames::alloc().address();
    lay(memory, AREA, AT, frame | Flags::RW.0);
    log(&slot);
    check_ok!(mem::read::<u64>(AT));
    check_eq!(log(&slot), 7, "tables after a read: A at each level");
    check_ok!(mem::write(AT, MARK));
    check!(log(&slot) & 4 != 0, "the last table after a write: D");
    let leaf = check_ok!(memory.read_u64(entry(AT, 1)));
    check_eq!(leaf & (Flags::A | Flags::D).0, (Flags::A | Flags::D).0);
});

test!(over_slots_logged, "A store over the edge of two slots is in both logs.", || {
    let memory = check_ok!(Memory::new(8 * PAGE, Backing::Small));
    let below = check_ok!(memory.slot(AREA, 4 * PAGE, 2 * PAGE, LOG));
    let above = check_ok!(memory.slot(AREA + 2 * PAGE, 0, 2 * PAGE, LOG));
    check_ok!(mem::write(AREA + 2 * PAGE - 3, MARK));
    check_eq!((log(&below), log(&above)), (2, 1));
});

test!(off_and_on, "Without the flag there is no log; with it again, an empty one.", || {
    let (memory, mut slot) = show(8, LOG);
    check_ok!(mem::write(AREA + PAGE, 1u8));
    check_ok!(slot.set_flags(0));
    let mut bitmap = [0];
    check_eq!(slot.dirty_log(&mut bitmap), Err(Errno::ENOENT), "no log");
    check_ok!(mem::write(AREA + 2 * PAGE, 1u8));
    check_ok!(slot.set_flags(LOG));
    check_eq!(log(&slot), 0, "a new log");
    for page in [2, 1, 5] {
        check_ok!(mem::write(AREA + page * PAGE, 2u8));
    }
    check_eq!(log(&slot), 1 << 1 | 1 << 2 | 1 << 5);
    check_eq!(memory.read_u64(2 * PAGE), Ok(2));
});

test!(logged_after_move, "Writes after a slot has moved are in its log.", || {
    let (_, mut slot) = show(8, LOG);
    for page in 0..8 {
        check_ok!(mem::write(AREA + page * PAGE, 1u8));
    }
    log(&slot);
    check_ok!(slot.move_to(AREA + LARGE));
    check_dirty(&slot, "a move and a write", 1 << 6, || {
        check_ok!(mem::write(AREA + LARGE + 6 * PAGE, 1u8));
    });
});

test!(large_pages_logged, "A large page is logged by small ones, and keeps its bytes.", || {
    const WORDS: usize = (LARGE / PAGE / 64) as usize;
    let memory = check_ok!(Memory::new(LARGE, Backing::Transparent));
    check_ok!(memory.fill(0, LARGE, MARK));
    let mut slot = check_ok!(memory.slot(AREA, 0, LARGE, 0));
    // It is mapped for writing as a whole.
    check_ok!(mem::write(AREA, 0u64));
    check_ok!(slot.set_flags(LOG));
    let pages = [3, 255, 256, 511];
    for round in 1..4 {
        for page in pages {
            check_ok!(mem::write(AREA + page * PAGE + 8 * round, page));
        }
        let mut bitmap = [0; WORDS];
        check_ok!(slot.dirty_log(&mut bitmap));
        for (n, word) in bitmap.into_iter().enumerate() {
            let here = pages.iter().filter(|&&page| page / 64 == n as u64);
            let wanted = here.fold(0, |bits, page| bits | 1u64 << (page % 64));
            check_eq!(word, wanted, "word {n} of the log in round {round}");
        }
    }
    check_ok!(slot.set_flags(0));
    check_ok!(mem::write(AREA + 300 * PAGE, 0u64));
    for page in 0..LARGE / PAGE {
        let changed = pages.contains(&page);
        let wanted = if [0, 300].contains(&page) { 0 } else { MARK };
        check_eq!(mem::read::<u64>(AREA + page * PAGE), Ok(wanted), "page {page}, first word");
        let wanted = if changed { page } else { MARK };
        check_eq!(mem::read::<u64>(AREA + page * PAGE + 16), Ok(wanted), "page {page}");
        check_eq!(memory.read_u64(page * PAGE + 24), Ok(wanted), "page {page}, the host");
    }
});
