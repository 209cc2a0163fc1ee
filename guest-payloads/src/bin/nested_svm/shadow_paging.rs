//! A guest's own page tables, with and without nested paging below them (AMD APM volume 2, 15.16 and
//! 15.25.1).

use crate::{guest, page, run_to_end};
use payload_rt::paging::{Entry, Flags, Size};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::{self, Guest, NPT, vmcb};
use payload_rt::trap::PF;
use payload_rt::{asm_code, check, check_eq, check_ok, mem, reg, test};

/// Where the guest's own tables map what L1's do not.
const HERE: u64 = 1 << 39;

/// A guest with tables of its own that map [`HERE`] to the first of two pages, which hold 11 and 22.
struct Own {
    guest: Guest,
    leaf: Entry,
    pages: [u64; 2],
    tables: Npt,
}

fn own(code: &'static [u8], nested: bool) -> Own {
    let mut guest = guest(code);
    if nested {
        NPT.require();
        guest.nest(&Npt::identity());
    }
    let pages = [page(), page()];
    for (page, value) in pages.into_iter().zip([11_u64, 22]) {
        check_ok!(mem::write(page, value));
    }
    // The same format as nested tables.
    let tables = Npt::identity();
    let leaf = tables.map(HERE, pages[0], Size::K4, Flags::RW);
    guest.vmcb.set(vmcb::CR3, tables.root());
    guest.regs.rcx = HERE;
    guest.regs.rdi = leaf.at;
    guest.regs.rsi = pages[1] | Flags::RW.0;
    Own { guest, leaf, pages, tables }
}

fn reads(own: &mut Own, value: u64, what: &str) {
    run_to_end(&mut own.guest, what);
    check_eq!(own.guest.vmcb.get(vmcb::RAX), value, "what the guest reads {what}");
}

const READ: fn() -> &'static [u8] = || asm_code!("mov rax, [rcx]", "vmmcall");

macro_rules! both {
    ($($plain:ident $nested:ident $about:literal: $body:expr;)*) => {$(
        test!($plain, $about, || $body(false));
        test!($nested, $about, || $body(true));
    )*};
}

both! {
    own_tables own_tables_nested "A guest's own CR3 leads where its tables say, and L1's stays.":
        |nested| {
            let cr3 = reg::cr3();
            let mut own = own(READ(), nested);
            reads(&mut own, 11, "by its own tables");
            check_eq!(reg::cr3(), cr3, "CR3 of L1");
            check_eq!(own.guest.vmcb.get(vmcb::CR3), own.tables.root(), "CR3 of the guest");
        };
    own_invlpg own_invlpg_nested "A guest that changes its entry and does INVLPG reads the new page.":
        |nested| {
            let code = asm_code!(
                "mov rbx, [rcx]", "mov [rdi], rsi", "invlpg [rcx]", "mov rax, [rcx]", "vmmcall",
            );
            let mut own = own(code, nested);
            reads(&mut own, 22, "after INVLPG");
            check_eq!(own.guest.regs.rbx, 11, "before");
        };
    own_cr3_write own_cr3_write_nested "A guest that changes its entry and writes CR3 reads the new page.":
        |nested| {
            let code = asm_code!(
                "mov rbx, [rcx]", "mov [rdi], rsi", "mov rax, cr3", "mov cr3, rax",
                "mov rax, [rcx]", "vmmcall",
            );
            let mut own = own(code, nested);
            reads(&mut own, 22, "after the write of CR3");
            check_eq!(own.guest.regs.rbx, 11, "before");
        };
    own_other_cr3 own_other_cr3_nested "A guest that loads another CR3 reads by those tables.":
        |nested| {
            let code = asm_code!(
                "mov rbx, [rcx]", "mov cr3, rdx", "mov rax, [rcx]", "vmmcall",
            );
            let mut own = own(code, nested);
            let other = Npt::identity();
            other.map(HERE, own.pages[1], Size::K4, Flags::RW);
            own.guest.regs.rdx = other.root();
            reads(&mut own, 22, "by the other tables");
            check_eq!(own.guest.regs.rbx, 11, "by the first");
            check_eq!(own.guest.vmcb.get(vmcb::CR3), other.root(), "CR3 in the VMCB");
        };
    own_flush_all own_flush_all_nested "An entry that L1 changes counts after TLB_CONTROL 1.":
        |nested| {
            let mut own = own(READ(), nested);
            let rip = own.guest.rip();
            reads(&mut own, 11, "at first");
            own.leaf.set(own.pages[1] | Flags::RW.0);
            own.guest.vmcb.set(vmcb::TLB_CONTROL, 1);
            own.guest.vmcb.set(vmcb::RIP, rip);
            reads(&mut own, 22, "after the flush");
        };
    own_invlpga own_invlpga_nested "An entry that L1 changes counts after INVLPGA of its ASID.":
        |nested| {
            let mut own = own(READ(), nested);
            let rip = own.guest.rip();
            reads(&mut own, 11, "at first");
            own.leaf.set(own.pages[1] | Flags::RW.0);
            check_ok!(svm::invlpga(HERE, 1));
            own.guest.vmcb.set(vmcb::RIP, rip);
            reads(&mut own, 22, "after INVLPGA");
        };
    own_next_asid own_next_asid_nested "An ASID that was never used has nothing in the TLB.":
        |nested| {
            let mut own = own(READ(), nested);
            let rip = own.guest.rip();
            for asid in 1..u64::from(svm::asids()).min(5) {
                let i = asid as usize % 2;
                own.leaf.set(own.pages[i] | Flags::RW.0);
                own.guest.vmcb.set(vmcb::ASID, asid);
                own.guest.vmcb.set(vmcb::RIP, rip);
                reads(&mut own, [11, 22][i], "under a new ASID");
            }
        };
    own_accessed own_accessed_nested "The guest's accesses set A and D in its own tables.":
        |nested| {
            let code = asm_code!(
                "mov rax, [rcx]", "mov rbx, [rdi]", "mov [rcx], rax", "mov rdx, [rdi]", "vmmcall",
            );
            let mut own = own(code, nested);
            run_to_end(&mut own.guest, "the guest");
            let bits = (Flags::A | Flags::D).0;
            check_eq!(own.guest.regs.rbx & bits, Flags::A.0, "after the read");
            check_eq!(own.guest.regs.rdx & bits, bits, "after the write");
        };
    own_faults own_faults_nested "The guest's #PF is by its own tables, with their error codes.":
        |nested| {
            let write = asm_code!("mov [rcx], rax", "vmmcall");
            let fetch = asm_code!("jmp rcx", "vmmcall");
            for (code, entry, error) in [
                (READ(), 0, 0),
                (write, 0, 2),
                (write, Flags::P.0, 3),
                (fetch, (Flags::RW | Flags::NX).0, 0x11),
            ] {
                let mut own = own(code, nested);
                let page = if entry == 0 { 0 } else { own.pages[0] };
                own.leaf.set(page | entry);
                let found = own.guest.run();
                let Some(trap) = own.guest.trap() else { payload_rt::fail!("{found:?}") };
                check_eq!((trap.vector, trap.error_code), (PF, error), "entry {entry:#x}");
                check_eq!(own.guest.vmcb.get(vmcb::CR2), HERE, "CR2");
            }
        };
}

// CR0.WP of the guest decides by the guest's own tables.
both! {
    own_write_protect own_write_protect_nested "The guest's CR0.WP decides about its read-only pages.":
        |nested| {
            let mut own = own(asm_code!("mov [rcx], rax", "vmmcall"), nested);
            own.leaf.set(own.pages[0] | Flags::P.0);
            own.guest.vmcb.remove(vmcb::CR0, reg::CR0_WP);
            own.guest.vmcb.set(vmcb::RAX, 33);
            run_to_end(&mut own.guest, "with WP clear");
            check!(mem::read(own.pages[0]) == Ok(33_u64), "the page must have been written");
        };
}
