//! Nested paging (AMD APM volume 2, 15.25).

use crate::{guest, page, run_to, run_to_end};
use payload_rt::paging::{Flags, Size};
use payload_rt::svm::exit::{NPF_FINAL, NPF_WALK};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::{Guest, NPT, exit, vmcb};
use payload_rt::{asm_code, check, check_eq, check_ok, cpuid, frames, mem, paging, reg, test};

/// Bits of the error code in EXITINFO1's lower half (15.25.6; those of a #PF, 8.4.2).
const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const RSV: u64 = 8;
const ID: u64 = 16;

/// A guest under an identity map, that reads, writes and jumps to RCX.
fn nested(code: &'static [u8]) -> (Guest, Npt) {
    NPT.require();
    let mut guest = guest(code);
    let tables = Npt::identity();
    guest.nest(&tables);
    (guest, tables)
}

fn load() -> (Guest, Npt) {
    nested(asm_code!("mov rax, [rcx]", "vmmcall"))
}

fn store() -> (Guest, Npt) {
    nested(asm_code!("mov [rcx], rax", "vmmcall"))
}

/// The next exit must be a nested page fault with this error at `address`, with RIP where it was.
fn faults(guest: &mut Guest, error: u64, address: u64, what: &str) {
    let rip = guest.rip();
    let found = run_to(guest, exit::NPF, what);
    check_eq!(found.info1, error, "EXITINFO1, {what}");
    check_eq!(found.info2, address, "EXITINFO2, {what}");
    check_eq!(guest.rip(), rip, "RIP at the exit, {what}");
}

test!(npt_identity, "A guest runs under nested tables, and reads and writes through them.", || {
    let (mut guest, _) = nested(asm_code!("mov rax, [rcx]", "mov [rcx + 8], rax", "vmmcall"));
    guest.regs.rcx = page();
    check_ok!(mem::write(guest.regs.rcx, 0x1234_5678_9abc_u64));
    run_to_end(&mut guest, "the guest");
    check_eq!(mem::read(guest.regs.rcx + 8), Ok(0x1234_5678_9abc_u64));
});

test!(npt_not_present_read, "A read of a page that is not present is NPF with U.", || {
    let (mut guest, tables) = load();
    let page = page();
    guest.regs.rcx = page + 0x128;
    tables.reach(page, 1).set(0);
    faults(&mut guest, NPF_FINAL | U, page + 0x128, "a read");
});

test!(npt_not_present_write, "A write of a page that is not present is NPF with W.", || {
    let (mut guest, tables) = store();
    let page = page();
    guest.regs.rcx = page + 0x128;
    tables.reach(page, 1).set(0);
    faults(&mut guest, NPF_FINAL | U | W, page + 0x128, "a write");
});

test!(npt_not_present_fetch, "A fetch from a page that is not present is NPF with I/D.", || {
    let (mut guest, tables) = nested(asm_code!("jmp rcx", "vmmcall"));
    let page = page();
    guest.regs.rcx = page + 0x20;
    tables.reach(page, 1).set(0);
    run_to(&mut guest, exit::NPF, "a fetch");
    check_eq!(guest.vmcb.get(vmcb::EXITINFO1), NPF_FINAL | U | ID, "EXITINFO1");
    check_eq!(guest.vmcb.get(vmcb::EXITINFO2), page + 0x20, "EXITINFO2");
    check_eq!(guest.rip(), page + 0x20, "RIP");
});

test!(npt_read_only, "A write to a read-only page is NPF with P and W; a read is none.", || {
    let (mut guest, tables) = nested(asm_code!("mov rax, [rcx]", "mov [rcx], rax", "vmmcall"));
    let page = page();
    guest.regs.rcx = page;
    let leaf = tables.reach(page, 1);
    leaf.set(page | (Flags::P | Flags::U).0);
    let found = run_to(&mut guest, exit::NPF, "the write");
    check_eq!(found.info1, NPF_FINAL | P | U | W, "EXITINFO1");
    check_eq!(found.info2, page, "EXITINFO2");
    leaf.set(page | Flags::RWU.0);
    guest.vmcb.set(vmcb::TLB_CONTROL, 1);
    run_to_end(&mut guest, "once it is writable");
});

// 15.25.5: CR0.WP of the guest has no say in the nested tables.
test!(
    npt_read_only_without_wp,
    "A guest with CR0.WP clear cannot write a read-only nested page.",
    || {
        let (mut guest, tables) = store();
        let page = page();
        guest.regs.rcx = page;
        guest.vmcb.remove(vmcb::CR0, reg::CR0_WP);
        tables.reach(page, 1).set(page | (Flags::P | Flags::U).0);
        faults(&mut guest, NPF_FINAL | P | U | W, page, "the write");
    }
);

test!(npt_no_execute, "A fetch from a page with NX is NPF with P and I/D; a read is none.", || {
    let (mut guest, tables) = nested(asm_code!("mov rax, [rcx]", "jmp rcx", "vmmcall"));
    let page = page();
    guest.regs.rcx = page;
    tables.reach(page, 1).set(page | (Flags::RWU | Flags::NX).0);
    let found = run_to(&mut guest, exit::NPF, "the fetch");
    check_eq!(found.info1, NPF_FINAL | P | U | ID, "EXITINFO1");
    check_eq!(found.info2, page, "EXITINFO2");
});

// 15.25.5: all accesses of a guest are user accesses in the nested tables.
test!(npt_supervisor, "A page without U in the nested tables is NPF with P, at CPL 0 too.", || {
    let (mut guest, tables) = load();
    let page = page();
    guest.regs.rcx = page;
    tables.reach(page, 1).set(page | Flags::RW.0);
    faults(&mut guest, NPF_FINAL | P | U, page, "a read at CPL 0");
});

// 5.3.3: bit 7 of a PML4 entry and address bits above the physical width are reserved.
test!(
    npt_reserved,
    "Reserved bits in a nested entry of each level are NPF with P and RSV.",
    || {
        let beyond = 1_u64 << 51;
        check!(cpuid::physical_bits() <= 51, "{} physical bits", cpuid::physical_bits());
        for (level, bits) in [(1, beyond), (2, beyond), (3, beyond), (4, 1 << 7), (4, beyond)] {
            let (mut guest, tables) = load();
            // Its code and tables lie below 4 GiB; what is tried lies in a PML4 entry of its own.
            let page = page();
            let address = 1 << 39;
            let own = Npt::identity();
            own.map(address, address, Size::K4, Flags::RWU);
            guest.vmcb.set(vmcb::CR3, own.root());
            tables.map(address, page, Size::K4, Flags::RWU);
            let entry = tables.reach(address, level);
            entry.set(entry.value | bits);
            guest.regs.rcx = address;
            faults(&mut guest, NPF_FINAL | P | U | RSV, address, "a reserved bit");
        }
    }
);

// 15.25.6: a fault in the walk of the guest's own tables has bit 33, and their address.
fn own_tables() -> (Guest, Npt, Npt) {
    let (mut guest, tables) = load();
    let own = Npt::identity();
    guest.vmcb.set(vmcb::CR3, own.root());
    guest.regs.rcx = 0x40_0000_0000;
    own.map(guest.regs.rcx, page(), Size::K4, Flags::RW);
    (guest, tables, own)
}

test!(npt_walk_not_present, "A guest's page table that is not present is NPF of the walk.", || {
    let (mut guest, tables, own) = own_tables();
    let entry = own.entry(guest.regs.rcx, 1);
    let table = entry.at & !0xfff;
    tables.reach(table, 1).set(0);
    let found = run_to(&mut guest, exit::NPF, "the walk");
    check_eq!(found.info2, entry.at, "EXITINFO2, the guest's entry");
    check_eq!(found.info1 & !W, NPF_WALK | U, "EXITINFO1 but for W");
});

test!(
    npt_walk_is_a_write,
    "The walk of a guest's tables is a write: NPF with W where they are absent.",
    || {
        let (mut guest, tables, own) = own_tables();
        tables.reach(own.entry(guest.regs.rcx, 1).at & !0xfff, 1).set(0);
        let found = run_to(&mut guest, exit::NPF, "the walk");
        check_eq!(found.info1, NPF_WALK | U | W, "EXITINFO1");
    }
);

test!(
    npt_walk_read_only,
    "A guest's page table on a read-only page is NPF of the walk with P and W.",
    || {
        let (mut guest, tables, own) = own_tables();
        let entry = own.entry(guest.regs.rcx, 1);
        let table = entry.at & !0xfff;
        tables.reach(table, 1).set(table | (Flags::P | Flags::U).0);
        let found = run_to(&mut guest, exit::NPF, "the walk");
        check_eq!(found.info1, NPF_WALK | P | U | W, "EXITINFO1");
        check_eq!(found.info2, entry.at, "EXITINFO2, the guest's entry");
    }
);

test!(npt_walk_cr3, "A guest's CR3 that the nested tables do not map is NPF of the walk.", || {
    let (mut guest, tables, own) = own_tables();
    tables.reach(own.root(), 1).set(0);
    let found = run_to(&mut guest, exit::NPF, "the walk");
    check_eq!(found.info2 & !0xfff, own.root(), "the page in EXITINFO2");
    check_eq!(found.info1 & !(W | ID), NPF_WALK | U, "EXITINFO1 but for W and I/D");
});

// 15.25.6: a fault of the guest's own tables is the guest's, and comes first.
test!(
    npt_guest_fault_first,
    "A page that the guest's own tables lack is the guest's #PF, no NPF.",
    || {
        let (mut guest, _, own) = own_tables();
        own.entry(guest.regs.rcx, 1).set(0);
        let found = guest.run();
        check_eq!(guest.trap().map(|trap| trap.vector), Some(payload_rt::trap::PF), "{found:?}");
    }
);

/// A guest-physical page of this size far from all RAM leads to `physical`.
fn maps(size: Size) {
    if size == Size::G1 {
        cpuid::PAGE_1G.require();
    }
    let (mut guest, tables) = nested(asm_code!("mov rax, [rcx]", "mov [rcx + 8], rax", "vmmcall"));
    let target = page();
    check_ok!(mem::write(target, 0x77_u64));
    let inside = size.bytes() - 1;
    let high = 1_u64 << 38;
    tables.map(high, target & !inside, size, Flags::RWU);
    let own = Npt::identity();
    own.map(high | (target & inside), high | (target & inside), Size::K4, Flags::RW);
    guest.vmcb.set(vmcb::CR3, own.root());
    guest.regs.rcx = high | (target & inside);
    run_to_end(&mut guest, "through the page");
    check_eq!(mem::read(target + 8), Ok(0x77_u64), "{size:?}");
}

test!(npt_4k, "A nested page of 4 KiB leads where its entry says.", || maps(Size::K4));
test!(npt_2m, "A nested page of 2 MiB leads where its entry says.", || maps(Size::M2));
test!(npt_1g, "A nested page of 1 GiB leads where its entry says.", || maps(Size::G1));

// 15.16.1: TLB_CONTROL 1 flushes all, 3 this guest's entries, 7 its entries but for global pages.
fn remapped(control: u64) {
    let (mut guest, tables) = nested(asm_code!("mov rax, [rcx]", "vmmcall"));
    let pages = [page(), page()];
    for (page, value) in pages.into_iter().zip([11_u64, 22]) {
        check_ok!(mem::write(page, value));
    }
    guest.regs.rcx = pages[0];
    let rip = guest.rip();
    for round in 0..4 {
        let target = pages[round % 2];
        tables.reach(pages[0], 1).set(target | Flags::RWU.0);
        guest.vmcb.set(vmcb::TLB_CONTROL, control);
        guest.vmcb.set(vmcb::RIP, rip);
        run_to_end(&mut guest, "a read");
        check_eq!(guest.vmcb.get(vmcb::RAX), [11, 22][round % 2], "round {round}");
    }
}

test!(npt_flush_all, "A changed nested entry counts after TLB_CONTROL 1.", || remapped(1));

test!(npt_flush_asid, "A changed nested entry counts after TLB_CONTROL 3.", || {
    payload_rt::svm::FLUSH_BY_ASID.require();
    remapped(3);
});

test!(npt_flush_asid_not_global, "A changed nested entry counts after TLB_CONTROL 7.", || {
    payload_rt::svm::FLUSH_BY_ASID.require();
    remapped(7);
});

// 15.25.5: accessed and dirty bits of the nested tables, by the accesses of the guest.
test!(npt_accessed, "A read sets the A bits of the nested entries, and no D bit.", || {
    let (mut guest, tables) = load();
    let page = page();
    guest.regs.rcx = page;
    let leaf = tables.reach(page, 1);
    run_to_end(&mut guest, "the read");
    check_eq!(leaf.reload().value & (Flags::A | Flags::D).0, Flags::A.0, "A and D of the leaf");
    for level in 2..=4 {
        check!(tables.entry(page, level).flags().has(Flags::A), "A at level {level}");
    }
});

test!(npt_dirty, "A write sets the D bit of the nested leaf.", || {
    let (mut guest, tables) = store();
    let page = page();
    guest.regs.rcx = page;
    let leaf = tables.reach(page, 1);
    run_to_end(&mut guest, "the write");
    check!(leaf.reload().flags().has(Flags::A | Flags::D), "{:#x}", leaf.reload().value);
});

test!(
    npt_own_tables_dirty,
    "The guest's own walk sets A and D in its tables and dirties their page.",
    || {
        let (mut guest, tables, own) = own_tables();
        let entry = own.entry(guest.regs.rcx, 1);
        let nested = tables.reach(entry.at & !0xfff, 1);
        run_to_end(&mut guest, "the read");
        check!(entry.reload().flags().has(Flags::A), "A of the guest's own leaf");
        check!(nested.reload().flags().has(Flags::A | Flags::D), "{:#x}", nested.reload().value);
    }
);

// 15.25.4: under nested paging the guest's PAT is G_PAT.
test!(npt_g_pat, "Under nested paging a guest's PAT is G_PAT, and L1's PAT is its own.", || {
    let (mut guest, _) = nested(asm_code!("mov ecx, 0x277", "rdmsr", "vmmcall"));
    let pat = check_ok!(reg::rdmsr(reg::PAT));
    guest.vmcb.set(vmcb::G_PAT, 0x0007_0406_0007_0401);
    run_to_end(&mut guest, "the read of PAT");
    check_eq!(reg::rdmsr(reg::PAT), Ok(pat), "PAT of L1");
    let read = guest.vmcb.get(vmcb::RAX) & 0xffff_ffff | guest.regs.rdx << 32;
    check_eq!(read, 0x0007_0406_0007_0401, "PAT as the guest reads it");
});

// A nested page that leads to a device of L1.
test!(npt_device, "A guest reaches a device of L1 through the nested tables.", || {
    let (mut guest, tables) = nested(asm_code!("mov [rcx], eax", "mov ebx, [rcx]", "vmmcall"));
    let window = 0xff00_0000;
    let page = page();
    tables.map(page, window, Size::K4, Flags::RWU);
    guest.regs.rcx = page + 0x10;
    guest.vmcb.set(vmcb::RAX, 0x1234_5678);
    run_to_end(&mut guest, "the guest");
    check_eq!(guest.regs.rbx, 0x1234_5678, "what the guest reads back");
    check_eq!(mem::read::<u32>(window + 0x10), Ok(0x1234_5678), "what L1 reads");
});

// 15.25.9: pages of the guest that are larger than those below them.
test!(
    npt_splinters,
    "A 2 MiB page of the guest over nested pages of 4 KiB reaches each of them.",
    || {
        let (mut guest, tables) =
            nested(asm_code!("mov rax, [rcx]", "mov rbx, [rcx + 0x1000]", "vmmcall"));
        let base = frames::alloc_range(512, 1 << 21);
        let swapped = [base + 0x1000, base];
        for (i, target) in swapped.into_iter().enumerate() {
            tables.reach(base + 0x1000 * i as u64, 1).set(target | Flags::RWU.0);
            check_ok!(mem::write(base + 0x1000 * i as u64, i as u64 + 1));
        }
        check!(paging::walk(base).level >= 2, "the guest maps it by a large page");
        guest.regs.rcx = base;
        run_to_end(&mut guest, "the reads");
        check_eq!((guest.vmcb.get(vmcb::RAX), guest.regs.rbx), (2, 1), "the two pages, swapped");
    }
);
