//! Nested EPT (SDM volume 3, "The Extended Page Table Mechanism (EPT)": "EPT Violations", "EPT
//! Misconfigurations", "Accessed and Dirty Flags for EPT"; table "Exit Qualification for EPT
//! Violations"; "INVEPT").

use super::{L1, check_l1, vm};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::ept::{self, A, D, Ept, LEAF, R, RWX, W, WB, X};
use payload_rt::vmx::exit::{EVENT_VALID, Kind, event};
use payload_rt::vmx::{Exit, Field, Reason, Refusal, Vm, get, invept, set};
use payload_rt::{asm_code, check, check_eq, check_ok, cpuid, frames, mem, test};

/// Qualification: what was tried.
const READ: u64 = 1;
const WRITE: u64 = 2;
const FETCH: u64 = 4;
/// Qualification: the linear address is valid, and it is of the access itself, not of a table.
const LINEAR: u64 = 1 << 7;
const FINAL: u64 = 1 << 8;
/// Access, rights, linear address.
const DEFINED: u64 = 7 | 7 << 3 | LINEAR | FINAL;

/// Starts L2 with one access to RBX.
fn access(vm: &mut Vm, kind: u64, address: u64) -> u64 {
    let at = match kind {
        READ => vm.start(asm_code!("mov rax, [rbx]")),
        WRITE => vm.start(asm_code!("mov [rbx], rax")),
        _ => vm.start(asm_code!("call rbx")),
    };
    vm.regs.rbx = address;
    at
}

/// A page with RET at its start, and its EPT entry at level 1.
fn page(ept: Ept) -> (u64, ept::Slot) {
    let page = frames::alloc().address();
    check_ok!(mem::write(page, 0xc3u8));
    (page, ept.slot(page, 1))
}

/// Where nothing else of L2's lies, so that an entry of any level can be spoilt.
const FAR: u64 = 0xa000_0000;

/// A page at [`FAR`], and its EPT entry.
fn far_page(ept: Ept) -> (u64, ept::Slot) {
    let page = frames::alloc().address();
    let slot = ept.slot(FAR, 1);
    slot.set(page | WB | RWX);
    (page, slot)
}

fn guest() -> (Vm, Ept) {
    let mut vm = vm();
    let ept = vm.with_ept();
    (vm, ept)
}

fn violation(vm: &mut Vm, address: u64, what: &str) -> Exit {
    let exit = vm.run_until(Reason::EPT_VIOLATION, what);
    check_eq!(get(Field::GUEST_PHYSICAL), address, "guest-physical address, {what}");
    exit
}

test!(
    ept_identity,
    "L2 runs under EPT in pages of 2 MiB and 4 KiB, and reads what L1 wrote.",
    || {
        let (mut vm, ept) = guest();
        let (page, slot) = page(ept);
        for i in 0..8 {
            check_ok!(mem::write(page + 8, 0x1111_2222_3333_4444u64 + i));
            access(&mut vm, READ, page + 8);
            vm.run_until(Reason::VMCALL, "a read");
            check_eq!(vm.regs.rax, 0x1111_2222_3333_4444 + i, "what L2 read");
        }
        check_eq!(slot.level, 1, "level");
    }
);

test!(
    ept_elsewhere,
    "EPT puts L2's page where it says, for reads, writes and code, in 4 KiB and 2 MiB.",
    || {
        let (mut vm, ept) = guest();
        let (here, there) = (frames::alloc().address(), frames::alloc().address());
        check_ok!(mem::write(here, 0xaaaau64));
        check_ok!(mem::write(there, 0xbbbbu64));
        ept.slot(here, 1).set(there | WB | RWX);
        access(&mut vm, READ, here);
        vm.run_until(Reason::VMCALL, "a read");
        check_eq!(vm.regs.rax, 0xbbbb, "what L2 read");
        access(&mut vm, WRITE, here + 8);
        vm.regs.rax = 0xcccc;
        vm.run_until(Reason::VMCALL, "a write");
        check_eq!(mem::read(there + 8), Ok(0xccccu64), "where L2 wrote");
        check_eq!(mem::read(here + 8), Ok(0u64), "where it did not");
        // Code: MOV EAX, 7; RET.
        check_ok!(mem::write(there, 0xc300_0000_07b8u64));
        access(&mut vm, FETCH, here);
        vm.run_until(Reason::VMCALL, "a call");
        check_eq!(vm.regs.rax, 7, "what L2's code gave");
        // 2 MiB that are no memory of L1's at 3 GiB, on the page's own.
        let large = there & !0x1f_ffff;
        ept.slot(0xa000_0000, 2).set(large | LEAF | WB | RWX);
        access(&mut vm, READ, 0xa000_0000 + (there - large) + 8);
        vm.run_until(Reason::VMCALL, "a read in 2 MiB");
        check_eq!(vm.regs.rax, 0xcccc, "what L2 read in 2 MiB");
    }
);

test!(ept_1g, "EPT maps pages of 1 GiB.", || {
    caps::require_ept_vpid(EPT_1G, "1 GiB pages");
    let (mut vm, ept) = guest();
    let there = frames::alloc().address();
    check_ok!(mem::write(there, 0x1_2345u64));
    // The first GiB again at 2 GiB, where L2's page tables find it.
    ept.slot(0x8000_0000, 3).set(LEAF | WB | RWX);
    access(&mut vm, READ, 0x8000_0000 + there);
    vm.run_until(Reason::VMCALL, "a read in 1 GiB");
    check_eq!(vm.regs.rax, 0x1_2345, "what L2 read in 1 GiB");
});

test!(
    ept_violations,
    "Each access against each rights of a page is allowed or exits with qualification, addresses and L1 right.",
    || {
        let (mut vm, ept) = guest();
        let (page, slot) = page(ept);
        let only = caps::ept_vpid() & EPT_EXECUTE_ONLY != 0;
        for rights in [0, R, R | W, R | X, RWX, X] {
            if rights == X && !only {
                continue;
            }
            slot.set(if rights == 0 { 0 } else { page | WB | rights });
            ept.flush();
            for kind in [READ, WRITE, FETCH] {
                let at = access(&mut vm, kind, page);
                if kind == WRITE {
                    vm.regs.rax = 0xc3;
                }
                if rights & kind != 0 {
                    vm.run_until(Reason::VMCALL, "an access that is allowed");
                    continue;
                }
                let (regs, l1) = (vm.regs, L1::now());
                let exit = violation(&mut vm, page, "an access that is not allowed");
                let expected = kind | rights << 3 | LINEAR | FINAL;
                check_eq!(exit.qualification & DEFINED, expected, "access {kind}, rights {rights}");
                check_eq!(get(Field::LINEAR), page, "linear address");
                check_eq!(exit.rip, if kind == FETCH { page } else { at }, "RIP");
                check_eq!(vm.regs, regs, "registers");
                check_eq!(exit.vectoring & EVENT_VALID, 0, "vectoring");
                check_l1(&exit, l1, "an EPT violation");
            }
        }
    }
);

test!(
    ept_rights_add_up,
    "The rights in the qualification are those of all levels together.",
    || {
        let (mut vm, ept) = guest();
        let address = 0xc000_0000;
        ept.slot(address, 1);
        for (level, rights) in [(1, R), (2, R | X), (3, R | W), (4, RWX)] {
            let entry = ept.slot(address, level);
            let old = entry.get();
            let table = if level == 1 { frames::alloc().address() | WB } else { old & !RWX };
            entry.set(table | rights);
            if level == 4 {
                continue;
            }
            ept.flush();
            // No rights but R are left at level 3 and below; level 4 is all of memory.
            access(&mut vm, WRITE, address);
            let exit = vm.run();
            if level == 3 {
                // Level 1 and 2 took W away already.
                check_eq!(exit.qualification >> 3 & 7, R, "rights of all levels");
            }
            check_eq!(exit.reason, Reason::EPT_VIOLATION, "a write at level {level}: {exit}");
            check_eq!(exit.qualification >> 3 & W, 0, "W in the rights, level {level}");
        }
    }
);

test!(
    ept_violation_of_a_table,
    "A walk of L2's page tables that EPT stops exits with bit 8 clear and the table's address.",
    || {
        let (mut vm, ept) = guest();
        let linear = 0x60_0000_0000;
        let page = frames::alloc().address();
        paging::map(linear, page, Size::K4, Flags::RW);
        let entry = paging::entry(linear, 1);
        let slot = ept.slot(entry.at, 1);
        let whole = slot.get();
        slot.set(0);
        ept.flush();
        access(&mut vm, READ, linear + 0x10);
        let exit = violation(&mut vm, entry.at, "a table that is absent");
        check_eq!(exit.qualification & (LINEAR | FINAL), LINEAR, "linear address: {exit}");
        check_eq!(exit.qualification & READ, READ, "access: {exit}");
        check_eq!(get(Field::LINEAR), linear + 0x10, "linear address");
        slot.set(whole);
        ept.flush();
        access(&mut vm, READ, linear + 0x10);
        vm.run_until(Reason::VMCALL, "the table is back");
    }
);

test!(
    ept_violation_of_accessed,
    "Setting the accessed flag in a table of L2's that EPT makes read-only is a violation, of a write.",
    || {
        let (mut vm, ept) = guest();
        let linear = 0x60_0000_0000;
        paging::map(linear, frames::alloc().address(), Size::K4, Flags::RW);
        let entry = paging::entry(linear, 1);
        let slot = ept.slot(entry.at, 1);
        slot.set(slot.get() & !W);
        ept.flush();
        access(&mut vm, READ, linear + 0x10);
        let exit = violation(&mut vm, entry.at, "a table that is read-only");
        check_eq!(exit.qualification & (LINEAR | FINAL | WRITE), LINEAR | WRITE, "{exit}");
    }
);

test!(
    ept_violation_in_delivery,
    "An EPT violation in the delivery of an event names it as IDT-vectoring information.",
    || {
        let (mut vm, ept) = guest();
        let slot = ept.slot(vm.stack_top() - 8, 1);
        let whole = slot.get();
        slot.set(0);
        vm.start(asm_code!("nop"));
        set(Field::ENTRY_EVENT, event(Kind::Hardware, 6));
        let exit = vm.run_until(Reason::EPT_VIOLATION, "an absent stack");
        check_eq!(exit.vectoring, event(Kind::Hardware, 6), "vectoring: {exit}");
        check_eq!(exit.qualification & WRITE, WRITE, "access: {exit}");
        slot.set(whole);
    }
);

/// Checks that an entry exits as a misconfiguration, and takes it back.
fn misconfigured(vm: &mut Vm, ept: Ept, slot: ept::Slot, value: u64, address: u64, what: &str) {
    let old = slot.get();
    slot.set(value);
    ept.flush();
    access(vm, READ, address);
    let l1 = L1::now();
    let exit = vm.run();
    check_eq!(exit.reason, Reason::EPT_MISCONFIGURATION, "{what}: {value:#x}: {exit}");
    check_eq!(get(Field::GUEST_PHYSICAL), address, "guest-physical address, {what}");
    check_l1(&exit, l1, what);
    slot.set(old);
    ept.flush();
    access(vm, READ, address);
    vm.run_until(Reason::VMCALL, "the entry is back");
}

test!(
    ept_misconfigured_rights,
    "W without R, and X alone where it is not offered, are misconfigurations.",
    || {
        let (mut vm, ept) = guest();
        let (page, slot) = far_page(ept);
        misconfigured(&mut vm, ept, slot, page | WB | W, FAR, "W alone");
        misconfigured(&mut vm, ept, slot, page | WB | W | X, FAR, "W and X");
        if caps::ept_vpid() & EPT_EXECUTE_ONLY == 0 {
            misconfigured(&mut vm, ept, slot, page | WB | X, FAR, "X alone, not offered");
        }
        for level in [2, 3] {
            let table = ept.slot(FAR, level);
            let value = table.get() & !RWX | W;
            misconfigured(&mut vm, ept, table, value, FAR, "W alone in a table's entry");
        }
    }
);

test!(ept_misconfigured_types, "Memory types 2, 3 and 7 of a leaf are misconfigurations.", || {
    let (mut vm, ept) = guest();
    let (page, slot) = far_page(ept);
    for kind in [2, 3, 7] {
        misconfigured(&mut vm, ept, slot, page | kind << 3 | RWX, FAR, "memory type");
    }
    for kind in [0, 1, 4, 5, 6] {
        slot.set(page | kind << 3 | RWX);
        ept.flush();
        access(&mut vm, READ, FAR);
        vm.run_until(Reason::VMCALL, "a memory type that there is");
    }
});

test!(
    ept_misconfigured_reserved,
    "Reserved bits of addresses, tables' entries and large leaves are misconfigurations.",
    || {
        let (mut vm, ept) = guest();
        let (page, slot) = far_page(ept);
        let width = cpuid::physical_bits();
        for bit in u32::from(width)..52 {
            misconfigured(&mut vm, ept, slot, page | 1 << bit | WB | RWX, FAR, "too wide");
        }
        for (level, bits) in [(2, 3..7), (3, 3..7)] {
            let table = ept.slot(FAR, level);
            for bit in bits {
                misconfigured(&mut vm, ept, table, table.get() | 1 << bit, FAR, "a table's entry");
            }
        }
        let large = ept.slot(0x4000_0000, 2);
        for bit in [12, 15, 20] {
            let value = large.get() | 1 << bit;
            let old = large.get();
            large.set(page & !0x1f_ffff | LEAF | WB | RWX | value & 1 << bit);
            ept.flush();
            access(&mut vm, READ, 0x4000_0000);
            let exit = vm.run();
            check_eq!(
                exit.reason,
                Reason::EPT_MISCONFIGURATION,
                "bit {bit} of a 2 MiB leaf: {exit}"
            );
            large.set(old);
        }
    }
);

test!(
    ept_top_reserved,
    "Bit 7 and other reserved bits of an entry at level 4 are misconfigurations.",
    || {
        let (mut vm, ept) = guest();
        // All of L2 is below this entry: it does not come to its first instruction.
        let top = ept.slot(0, 4);
        let old = top.get();
        for bit in 3..8 {
            top.set(old | 1 << bit);
            ept.flush();
            vm.start(&[]);
            let exit = vm.run();
            check_eq!(exit.reason, Reason::EPT_MISCONFIGURATION, "bit {bit}: {exit}");
        }
        top.set(old);
        ept.flush();
        vm.start(&[]);
        vm.run_until(Reason::VMCALL, "the entry is back");
    }
);

test!(
    ept_accessed_dirty,
    "With the EPT pointer's bit 6 reads set A at all levels and writes D in the leaf; without it nothing does.",
    || {
        caps::require_ept_vpid(EPT_ACCESSED_DIRTY, "accessed and dirty flags");
        let (mut vm, ept) = guest();
        let (page, slot) = page(ept);
        let flags = |level| ept.slot(page, level).get() & (A | D);
        access(&mut vm, WRITE, page + 8);
        vm.run_until(Reason::VMCALL, "a write without the flags");
        check_eq!([1, 2, 3, 4].map(flags), [0; 4], "flags that are off");
        set(Field::EPTP, ept.pointer() | ept::POINTER_AD);
        access(&mut vm, READ, page);
        vm.run_until(Reason::VMCALL, "a read");
        check_eq!([1, 2, 3, 4].map(flags), [A; 4], "flags behind a read");
        access(&mut vm, WRITE, page + 8);
        vm.run_until(Reason::VMCALL, "a write");
        check_eq!([1, 2, 3, 4].map(flags), [A | D, A, A, A], "flags behind a write");
        slot.set(slot.get() & !D);
        ept.flush();
        access(&mut vm, READ, page);
        vm.run_until(Reason::VMCALL, "a read behind INVEPT");
        check_eq!(flags(1), A, "flags behind another read");
        access(&mut vm, WRITE, page + 8);
        vm.run_until(Reason::VMCALL, "a write behind INVEPT");
        check_eq!(flags(1), A | D, "flags behind another write");
    }
);

/// L2 reads through a page table that EPT lets it read only, with accessed and dirty flags: the exit.
fn walk_of_read_only_tables() -> Exit {
    caps::require_ept_vpid(EPT_ACCESSED_DIRTY, "accessed and dirty flags");
    let (mut vm, ept) = guest();
    set(Field::EPTP, ept.pointer() | ept::POINTER_AD);
    let linear = 0x60_0000_0000;
    paging::map(linear, frames::alloc().address(), Size::K4, Flags::RW | Flags::A | Flags::D);
    let entry = paging::entry(linear, 1);
    let slot = ept.slot(entry.at, 1);
    slot.set(slot.get() & !W);
    ept.flush();
    access(&mut vm, READ, linear);
    violation(&mut vm, entry.at, "a table that is read-only")
}

test!(
    ept_walks_are_writes,
    "With accessed and dirty flags a walk of L2's page tables counts as a write of them.",
    || {
        let exit = walk_of_read_only_tables();
        check_eq!(exit.qualification & (WRITE | FINAL), WRITE, "access: {exit}");
    }
);

// The same table, note 1: such an access sets both bits.
test!(
    ept_walks_are_reads_too,
    "With accessed and dirty flags a violation of a walk says that it was a read and a write.",
    || {
        let exit = walk_of_read_only_tables();
        check_eq!(exit.qualification & (READ | WRITE), READ | WRITE, "access: {exit}");
    }
);

test!(
    invept_is_seen,
    "What L1 takes from an EPT entry L2 misses behind INVEPT of its context, and of all contexts.",
    || {
        let (mut vm, ept) = guest();
        let (page, slot) = page(ept);
        let whole = slot.get();
        for (kind, cap) in [(1, EPT_INVEPT_SINGLE), (2, EPT_INVEPT_ALL)] {
            if caps::ept_vpid() & cap == 0 {
                continue;
            }
            for (rights, access_kind) in [(R | X, WRITE), (0, READ)] {
                slot.set(whole);
                check_eq!(invept(kind, [ept.pointer(), 0]), Ok(()), "INVEPT type {kind}");
                access(&mut vm, access_kind, page + 8);
                vm.run_until(Reason::VMCALL, "an access that is allowed");
                slot.set(if rights == 0 { 0 } else { whole & !RWX | rights });
                check_eq!(invept(kind, [ept.pointer(), 0]), Ok(()), "INVEPT type {kind}");
                access(&mut vm, access_kind, page + 8);
                violation(&mut vm, page + 8, "behind INVEPT");
            }
        }
        // A violation drops what is cached of that address.
        slot.set(whole);
        vm.run_until(Reason::VMCALL, "the entry is back, without INVEPT");
    }
);

test!(
    invept_errors,
    "INVEPT of a type that there is not, or of a bad EPT pointer, is error 28.",
    || {
        let (_vm, ept) = guest();
        let refused = Err(Refusal::Valid(28));
        for kind in [0, 3, 4, 1 << 32, u64::MAX] {
            check_eq!(invept(kind, [ept.pointer(), 0]), refused, "INVEPT type {kind:#x}");
        }
        for pointer in [ept.pointer() & !7 | 2, ept.pointer() & !0x38, ept.pointer() | 1 << 63] {
            check_eq!(invept(1, [pointer, 0]), refused, "INVEPT of {pointer:#x}");
        }
        check_eq!(invept(2, [u64::MAX, 0]), Ok(()), "INVEPT of all contexts");
    }
);

test!(pml, "L2's first write to a page is in the page-modification log; a full log exits.", || {
    let (mut vm, ept) = guest();
    vm.add(Field::CPU_CONTROLS2, CPU2_PML);
    set(Field::EPTP, ept.pointer() | ept::POINTER_AD);
    let log = frames::alloc().address();
    set(Field::PML_ADDRESS, log);
    set(Field::PML_INDEX, 511);
    let (page, slot) = page(ept);
    // Stack, code and tables are logged, too.
    access(&mut vm, WRITE, page + 0x18);
    vm.run_until(Reason::VMCALL, "a write");
    let index = get(Field::PML_INDEX);
    let logged =
        |from: u64| (from..512).filter(|i| mem::read::<u64>(log + 8 * i) == Ok(page)).count();
    check!(index < 511, "nothing was logged, index {index}");
    check_eq!(logged(index + 1), 1, "entries of the page");
    access(&mut vm, WRITE, page + 0x20);
    vm.run_until(Reason::VMCALL, "a write to a dirty page");
    check_eq!(get(Field::PML_INDEX), index, "index behind a write to a dirty page");
    slot.set(slot.get() & !D);
    ept.flush();
    set(Field::PML_INDEX, 0xffff);
    let at = access(&mut vm, WRITE, page + 0x28);
    let exit = vm.run_until(Reason::PML_FULL, "a full log");
    check_eq!(exit.rip, at, "RIP");
    check_eq!(slot.get() & D, 0, "dirty flag behind a full log");
});
