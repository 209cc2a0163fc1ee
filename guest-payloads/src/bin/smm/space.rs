//! The address space of SMM: memory that only it sees, or that it does not see (Linux,
//! Documentation/virt/kvm/api.rst, KVM_SET_USER_MEMORY_REGION and KVM_CAP_MULTI_ADDRESS_SPACE).

use crate::code::{self, note};
use crate::map::SMBASE_FIELD;
use payload_rt::lab::{self, AREA, Backing, Errno, Memory, RamSlot, Slot, kvm};
use payload_rt::{asm_code, check, check_eq, check_ok, mem, test};

const PAGE: u64 = 4096;
/// Where PCs have SMRAM behind the VGA window (APM 10.2.2).
const SMRAM: u64 = 0xa_0000;
const SMRAM_LEN: u64 = 0x2_0000;

/// Copies SMM code that was put to RAM into a memory, from this offset on.
fn copy_code(memory: Memory, from: u64, to: u64) {
    let mut bytes = [0; 128];
    check_ok!(mem::read_bytes(from, &mut bytes));
    check_ok!(memory.write(to, &bytes));
}

test!(
    smram,
    "Memory in the address space of SMM alone holds code and map, and is not seen outside.",
    || {
        let memory = check_ok!(Memory::new(SMRAM_LEN, Backing::Small));
        check_ok!(memory.smm_slot(SMRAM, 0, SMRAM_LEN, 0));
        check_eq!(mem::read(SMRAM), Ok(u32::MAX), "A0000h outside");
        code::install(&[code::poking()]);
        code::poke(SMBASE_FIELD, 0, SMRAM as u32);
        code::smi();
        code::install(&[asm_code!(
            ".code16",
            "mov edi, 0xa0000",
            "mov dword ptr [edi], 0x5ec2e7",
            "mov eax, dword ptr [edi]",
            "mov dword ptr [esi + 0x40], eax",
        )]);
        copy_code(memory, code::SMBASE + code::ENTRY, code::ENTRY);
        for _ in 0..2 {
            code::smi();
        }
        check_eq!(note(0), 0x5e_c2e7, "what SMM code read there");
        check_eq!(memory.read_u64(0), Ok(0x5e_c2e7), "what the host reads there");
        check_eq!(
            memory.read_u64(SMBASE_FIELD).map(|w| w as u32),
            Ok(SMRAM as u32),
            "SMBASE in the map"
        );
        check_eq!(mem::read(SMRAM), Ok(u32::MAX), "A0000h outside, afterwards");
        check_ok!(mem::write(SMRAM, 0x1234_u32));
        check_eq!(memory.read_u64(0), Ok(0x5e_c2e7), "after a write from outside");
    }
);

/// SMM code that notes a word of [`AREA`], and writes another one there.
fn touching_area() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov edi, 0x80000000",
        "mov eax, dword ptr [edi]",
        "mov dword ptr [esi + 0x40], eax",
        "mov dword ptr [edi + 4], 0x77",
    )
}

test!(outside_alone, "A memslot of address space 0 is not there in SMM.", || {
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(memory.write_u64(0, 0x1122_3344));
    check_ok!(memory.slot(AREA, 0, PAGE, 0));
    check_eq!(mem::read(AREA), Ok(0x1122_3344_u32), "outside");
    code::install(&[touching_area()]);
    code::smi();
    check_eq!(note(0), u32::MAX, "in SMM");
    check_eq!(mem::read(AREA + 4), Ok(0_u32), "what SMM wrote");
});

test!(two_memories, "One address leads to two memories, by the address space.", || {
    let outside = check_ok!(Memory::new(PAGE, Backing::Small));
    let inside = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(outside.slot(AREA, 0, PAGE, 0));
    let slot = check_ok!(inside.smm_slot(AREA, 0, PAGE, 0));
    check_ok!(inside.write_u64(0, 0xaa));
    check_ok!(mem::write(AREA, 0xbb_u64));
    code::install(&[touching_area()]);
    for _ in 0..2 {
        code::smi();
        check_eq!(note(0), 0xaa, "in SMM");
        check_eq!(mem::read(AREA), Ok(0xbb_u64), "outside");
    }
    check_eq!(inside.read_u64(0), Ok(0xaa | 0x77 << 32), "the memory of SMM");
    check_ok!(slot.delete());
    code::smi();
    check_eq!(note(0), u32::MAX, "in SMM without its slot");
    check_eq!(mem::read(AREA), Ok(0xbb_u64), "outside, without that slot");
});

test!(dirty_log, "What SMM writes is logged in the slot of its own address space.", || {
    const WORDS: usize = 1024;
    let outside = check_ok!(RamSlot::of(code::SMBASE));
    let inside = outside.in_smm();
    check_eq!(outside.gpa, 0, "the slot's first address");
    code::install(&[asm_code!(".code16", "mov edi, 0x47000", "mov dword ptr [edi], 1")]);
    check_ok!(mem::write(0x4_7000, 0_u32));
    check_ok!(inside.set_flags(kvm::slot::LOG_DIRTY));
    check_ok!(outside.set_flags(kvm::slot::LOG_DIRTY));
    let mut log = [0; WORDS];
    for slot in [inside, outside] {
        check_ok!(slot.dirty_log(&mut log));
    }
    code::smi();
    let has = |log: &[u64], page: usize| log[page / 64] >> (page % 64) & 1 == 1;
    check_ok!(inside.dirty_log(&mut log));
    check!(has(&log, 0x47), "the page that SMM code wrote");
    check!(has(&log, 0x3f), "the page of the map");
    check_ok!(outside.dirty_log(&mut log));
    check!(!has(&log, 0x47), "the page that SMM code wrote, outside");
    check_ok!(mem::write(0x4_7000, 2_u32));
    check_ok!(inside.dirty_log(&mut log));
    check!(!has(&log, 0x47), "a page that was written outside, in the log of SMM");
    check_ok!(outside.dirty_log(&mut log));
    check!(has(&log, 0x47), "a page that was written outside, in its own log");
});

test!(board_slots, "The board's slots are the board's in both address spaces.", || {
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    let ram = check_ok!(RamSlot::of(code::SMBASE));
    for id in [ram.id, ram.in_smm().id] {
        let slot = Slot { id, gpa: AREA, size: PAGE, flags: 0, memory, offset: 0 };
        check_eq!(slot.set(), Err(Errno::EPERM), "slot {id:#x}");
        check_eq!(slot.delete(), Err(Errno::EPERM), "deleting slot {id:#x}");
    }
    let third = Slot { id: 2 << 16, gpa: AREA, size: PAGE, flags: 0, memory, offset: 0 };
    check_eq!(third.set(), Err(Errno::EINVAL), "a slot of a third address space");
    let overlap = memory.smm_slot(code::SMBASE, 0, PAGE, 0);
    check_eq!(overlap.map(|_| ()), Err(Errno::EEXIST), "a slot over RAM in SMM");
    code::install(&[]);
    code::smi();
});

// KVM_MEM_READONLY in SMM: writes leave the guest, and nobody is there to take them.
test!(
    read_only,
    "Memory that SMM may only read keeps what it holds, and outside it is written.",
    || {
        let memory = check_ok!(Memory::new(PAGE, Backing::Small));
        lab::require_cap(kvm::cap::READONLY_MEM, "READONLY_MEM");
        check_ok!(memory.slot(AREA, 0, PAGE, 0));
        check_ok!(memory.smm_slot(AREA, 0, PAGE, kvm::slot::READONLY));
        check_ok!(mem::write(AREA, 0x99_u64));
        code::install(&[touching_area()]);
        code::smi();
        check_eq!(note(0), 0x99, "in SMM");
        check_eq!(mem::read(AREA), Ok(0x99_u64), "after SMM wrote");
    }
);

test!(
    lab_alone,
    "Without the board's memory in SMM, memslots of the lab are all that is there.",
    || {
        const LEN: u64 = 0x1_0000;
        let memory = check_ok!(Memory::new(LEN, Backing::Small));
        code::install(&[asm_code!(
            ".code16",
            "mov edi, 0x100000",
            "mov eax, dword ptr [edi]",
            "mov dword ptr [esi + 0x40], eax",
        )]);
        // The number that the board's first slot would have there.
        let slot = Slot { id: 1 << 16, gpa: code::SMBASE, size: LEN, flags: 0, memory, offset: 0 };
        check_ok!(slot.set());
        copy_code(memory, code::SMBASE + code::ENTRY, code::ENTRY);
        for n in 1..=2 {
            check_ok!(lab::call(kvm::SMI));
            check_eq!(
                memory.read_u64(0x6000).map(|word| word as u32),
                Ok(n),
                "SMIs that SMM counted"
            );
            check_eq!(memory.read_u64(0x6040).map(|word| word as u32), Ok(u32::MAX), "RAM in SMM");
            // The slot goes along into another VM.
            check_ok!(lab::transplant(), "into another VM");
        }
        check_eq!(code::count(), 0, "SMIs counted outside");
    }
);
