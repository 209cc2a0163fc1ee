//! What CPUID adds to paging: PCID and INVPCID, protection keys, five levels.

use crate::{AT, E_P, E_PK, E_U, E_W, RET, frame_of_ret, frame_with, is_fault, map};
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::trap::Trap;
use payload_rt::user::{End, User};
use payload_rt::*;

const MARKS: [u64; 2] = [0x1111_1111_1111_1111, 0x2222_2222_2222_2222];
/// In a value for CR3 under CR4.PCIDE: keep what the TLB has of that PCID.
const KEEP: u64 = 1 << 63;

/// Two address spaces, with PCID 1 and 2: values for CR3, leaves of [`AT`] that lead to the first and
/// to the second frame, and the frames.
struct Spaces {
    cr3: [u64; 2],
    leaves: [Entry; 2],
    frames: [u64; 2],
}

/// Makes the address spaces, and enters the second, with CR4.PCIDE set.
fn two_spaces() -> Spaces {
    cpuid::PCID.require();
    let frames = MARKS.map(frame_with);
    let first = reg::cr3() & paging::ADDRESS;
    let one = map(AT, frames[0]);
    let second = frames::alloc().address();
    for slot in 0..512 {
        let entry = check_ok!(mem::read::<u64>(first + 8 * slot));
        check_ok!(mem::write(second + 8 * slot, if slot == AT >> 39 { 0 } else { entry }));
    }
    check_ok!(reg::set_cr3(second));
    let two = map(AT, frames[1]);
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_PCIDE), "set CR4.PCIDE");
    let cr3 = [first | 1, second | 2];
    check_ok!(reg::set_cr3(cr3[0]), "load CR3 with PCID 1");
    check_ok!(reg::set_cr3(cr3[1]), "load CR3 with PCID 2");
    Spaces { cr3, leaves: [one, two], frames }
}

fn check_reads(wanted: u64, what: &str) {
    let found = check_ok!(mem::read::<u64>(AT), "{what}: a read of {AT:#x}");
    check_eq!(found, wanted, "{what}: a read of {AT:#x}");
}

test!(
    pcid,
    "Address spaces with PCIDs do not leak into each other when CR3 keeps the TLB.",
    || {
        // SDM volume 3, 5.10.1 and 5.10.4.1.
        let Spaces { cr3, leaves, frames } = two_spaces();
        for round in 0..16 {
            check_ok!(reg::set_cr3(cr3[round % 2] | KEEP), "load CR3, keeping the TLB");
            check_eq!(reg::cr3(), cr3[round % 2], "CR3, whose bit 63 reads as 0");
            check_reads(MARKS[round % 2], "with its own PCID");
        }
        // Without the bit the PCID's translations go.
        for round in 0..8 {
            leaves[0].set(frames[round % 2] | Flags::RW.0);
            check_ok!(reg::set_cr3(cr3[0]), "load CR3, flushing its PCID");
            check_reads(MARKS[round % 2], "after a flush of PCID 1");
            check_ok!(reg::set_cr3(cr3[1] | KEEP));
            check_reads(MARKS[1], "with PCID 2");
        }
        // INVLPG is for the current PCID.
        check_ok!(reg::set_cr3(cr3[0]));
        for round in 0..8 {
            leaves[0].set(frames[round % 2] | Flags::RW.0);
            paging::invlpg(AT);
            check_reads(MARKS[round % 2], "after INVLPG under PCID 1");
        }
        // Clearing PCIDE flushes all.
        check_ok!(reg::set_cr3(cr3[0] & paging::ADDRESS), "load CR3 with PCID 0");
        check_reads(MARKS[1], "with PCID 0");
        leaves[0].set(frames[0] | Flags::RW.0);
        check_ok!(reg::set_cr4(reg::cr4() & !reg::CR4_PCIDE), "clear CR4.PCIDE");
        check_reads(MARKS[0], "after CR4.PCIDE was cleared");
    }
);

test!(pcide_rules, "CR4.PCIDE wants PCID 0 in CR3; without it CR3's bit 63 is reserved.", || {
    // SDM volume 3, 2.5 and volume 2, MOV to control registers.
    cpuid::PCID.require();
    let (cr3, cr4) = (reg::cr3(), reg::cr4());
    let fault = check_err!(reg::set_cr3(cr3 | KEEP), "bit 63 of CR3, CR4.PCIDE clear");
    check!(fault.is(trap::GP, 0), "bit 63 of CR3, CR4.PCIDE clear: {fault}");
    check_eq!(reg::cr3(), cr3, "CR3 after #GP");
    // PWT and PCD lie where the PCID is.
    check_ok!(reg::set_cr3(cr3 & paging::ADDRESS | Flags::PWT.0));
    let fault = check_err!(reg::set_cr4(cr4 | reg::CR4_PCIDE), "CR4.PCIDE with CR3[11:0] = 8");
    check!(fault.is(trap::GP, 0), "CR4.PCIDE with CR3[11:0] = 8: {fault}");
    check_eq!(reg::cr4(), cr4, "CR4 after #GP");
    check_ok!(reg::set_cr3(cr3 & paging::ADDRESS));
    check_ok!(reg::set_cr4(cr4 | reg::CR4_PCIDE), "CR4.PCIDE with CR3[11:0] = 0");
    check_ok!(reg::set_cr3(cr3 & paging::ADDRESS | 0xfff), "PCID 0xfff");
    check_eq!(reg::cr3() & 0xfff, 0xfff, "PCID in CR3");
    check_ok!(reg::set_cr3(cr3 & paging::ADDRESS));
    check_ok!(reg::set_cr4(cr4), "put CR4 back");
});

test!(no_pcid, "Without PCID in CPUID CR4.PCIDE is reserved.", || {
    if cpuid::PCID.present() {
        skip!("PCID is in CPUID");
    }
    let cr4 = reg::cr4();
    let fault = check_err!(reg::set_cr4(cr4 | reg::CR4_PCIDE), "CR4.PCIDE without PCID");
    check!(fault.is(trap::GP, 0), "CR4.PCIDE without PCID: {fault}");
    check_eq!(reg::cr4(), cr4, "CR4 after #GP");
});

/// INVPCID of `kind` with a descriptor of a PCID and an address.
fn invpcid(kind: u64, pcid: u64, address: u64) -> Result<(), Trap> {
    let descriptor = [pcid, address];
    insn!("invpcid {}, [{}]"; in(reg) kind, in(reg) &raw const descriptor)
}

test!(
    invpcid_flushes,
    "Each type of INVPCID forgets what it must, of PCIDs that are not current.",
    || {
        // SDM volume 2, INVPCID.
        cpuid::INVPCID.require();
        let Spaces { cr3, leaves, frames } = two_spaces();
        for (kind, pcid, name) in [
            (0, 1, "individual address"),
            (1, 1, "single context"),
            (2, 0, "all contexts with global pages"),
            (3, 0, "all contexts"),
        ] {
            for round in 0..6 {
                check_ok!(reg::set_cr3(cr3[0] | KEEP));
                leaves[0].set(frames[round % 2] | Flags::RW.0);
                paging::invlpg(AT);
                check_reads(MARKS[round % 2], name);
                check_ok!(reg::set_cr3(cr3[1] | KEEP));
                leaves[0].set(frames[(round + 1) % 2] | Flags::RW.0);
                check_ok!(invpcid(kind, pcid, if kind == 0 { AT } else { 0 }), "INVPCID: {name}");
                check_reads(MARKS[1], "under the current PCID");
                check_ok!(reg::set_cr3(cr3[0] | KEEP));
                check_reads(MARKS[(round + 1) % 2], name);
            }
        }
        check_ok!(reg::set_cr3(cr3[0] & paging::ADDRESS));
        check_ok!(reg::set_cr4(reg::cr4() & !reg::CR4_PCIDE));
    }
);

test!(invpcid_faults, "INVPCID with a bad type, PCID or address is #GP.", || {
    cpuid::INVPCID.require();
    for (kind, pcid, address, what) in [
        (4, 0, 0, "type 4"),
        (u64::MAX, 0, 0, "type 2^64 - 1"),
        (0, 1 << 12, 0, "reserved bit 12"),
        (1, 1 << 63, 0, "reserved bit 63"),
        (0, 0, 0x8000_0000_0000_0000, "an address that is not canonical"),
        (0, 1, 0, "PCID 1 with CR4.PCIDE clear"),
        (1, 1, 0, "PCID 1 with CR4.PCIDE clear"),
    ] {
        let fault = check_err!(invpcid(kind, pcid, address), "{what}");
        check!(fault.is(trap::GP, 0), "{what}: {fault}");
    }
    (0..4).for_each(|kind| check_ok!(invpcid(kind, 0, 0), "INVPCID type {kind} of PCID 0"));
});

test!(la57_is_fixed_in_long_mode, "CR4.LA57 cannot be changed in long mode: #GP.", || {
    // SDM volume 3, 5.1.1: not while IA32_EFER.LMA is 1. Without the feature it is reserved.
    let cr4 = reg::cr4();
    let fault = check_err!(reg::set_cr4(cr4 ^ reg::CR4_LA57), "a change of CR4.LA57");
    check!(fault.is(trap::GP, 0), "a change of CR4.LA57: {fault}");
    check_eq!(reg::cr4(), cr4, "CR4 after #GP");
});

/// Sets PKRU at CPL 3, where each host runs WRPKRU, and then accesses AT there, if `access` says so.
fn with_pkru(pkru: u32, access: &[u8]) -> Result<(), Trap> {
    let mut code = [0x90; 64];
    let set = asm_code!("mov eax, esi", "xor ecx, ecx", "xor edx, edx", "wrpkru");
    code[..set.len()].copy_from_slice(set);
    code[set.len()..set.len() + access.len()].copy_from_slice(access);
    let mut user = User::new(&code[..set.len() + access.len()]);
    user.regs.rsi = pkru.into();
    user.regs.rdi = AT;
    match user.run().end {
        End::Done => Ok(()),
        End::Trap(trap) => Err(trap),
        other => fail!("{other:?} at CPL 3"),
    }
}

test!(
    pku,
    "A protection key forbids data accesses by PKRU, at CPL 3 and CPL 0, and no fetches.",
    || {
        // SDM volume 3, 5.6.2.
        cpuid::PKU.require();
        let frame = frame_of_ret();
        let cr4 = reg::cr4();
        check_ok!(reg::set_cr4(cr4 | reg::CR4_PKE), "set CR4.PKE");
        let read = asm_code!("mov al, [rdi]", "ret");
        let write = asm_code!("mov byte ptr [rdi], 0xc3", "ret");
        let call = asm_code!("call rdi", "ret");
        for key in [0, 1, 7, 15_u64] {
            paging::map(AT, frame, Size::K4, Flags(Flags::RWU.0 | key << 59));
            for rights in 0..4_u32 {
                // The other keys are closed, but for key 0, under which CPL 3 runs.
                let others = if key == 0 { 0 } else { 0xffff_fffc & !(3 << (2 * key)) };
                // Key 0 closed would close the code's stack as well.
                if key == 0 && rights != 0 {
                    continue;
                }
                let pkru = others | rights << (2 * key);
                let (no_access, no_write) = (rights & 1 != 0, rights & 2 != 0);
                for (name, code, forbidden, error) in [
                    ("a read", read, no_access, E_P | E_U | E_PK),
                    ("a write", write, no_access || no_write, E_P | E_U | E_W | E_PK),
                    ("a fetch", call, false, 0),
                ] {
                    let seen = with_pkru(pkru, code).err();
                    let seen = seen.map(|fault| (fault.vector, fault.error_code, fault.cr2));
                    let wanted = forbidden.then_some((trap::PF, error, AT));
                    check_eq!(seen, wanted, "{name} at CPL 3, key {key}, PKRU {pkru:#x}");
                }
                // PKRU is still what CPL 3 made it.
                let read = mem::read::<u8>(AT).err().map(|fault| (fault.error_code, fault.cr2));
                let wanted = no_access.then_some((E_P | E_PK, AT));
                check_eq!(read, wanted, "a read at CPL 0, key {key}, PKRU {pkru:#x}");
                let write = mem::write(AT, RET).err().map(|fault| (fault.error_code, fault.cr2));
                let wanted = (no_access || no_write).then_some((E_P | E_W | E_PK, AT));
                check_eq!(write, wanted, "a write at CPL 0, key {key}, PKRU {pkru:#x}");
            }
        }
        // A page of CPL 0 has no key that counts.
        check_ok!(with_pkru(0xffff_fffc, asm_code!("ret")));
        paging::map(AT, frame, Size::K4, Flags(Flags::RW.0 | 5 << 59));
        check_ok!(mem::read::<u8>(AT), "a read of a page of CPL 0 with a closed key");
        // And without CR4.PKE none counts.
        check_ok!(reg::set_cr4(cr4), "clear CR4.PKE");
        paging::map(AT, frame, Size::K4, Flags(Flags::RWU.0 | 5 << 59));
        check_ok!(mem::read::<u8>(AT), "a read with CR4.PKE clear");
        let fault = check_err!(with_pkru(0, asm_code!("ret")), "WRPKRU with CR4.PKE clear");
        check!(fault.is(trap::UD, 0), "WRPKRU with CR4.PKE clear: {fault}");
    }
);

test!(no_pku, "Without CR4.PKE a protection key in an entry is ignored.", || {
    let frame = frame_of_ret();
    for key in [1, 8, 15_u64] {
        paging::map(AT, frame, Size::K4, Flags(Flags::RWU.0 | key << 59));
        check_ok!(mem::read::<u8>(AT), "a read with key {key}");
        check_ok!(mem::write(AT, RET), "a write with key {key}");
    }
    // As are the bits that belong to software.
    for bit in [9, 10, 11, 52, 58, 62] {
        paging::map(AT, frame, Size::K4, Flags(Flags::P.0 | 1 << bit));
        check_ok!(mem::read::<u8>(AT), "a read with bit {bit}");
        let fault = check_err!(mem::write(AT, RET), "a write with bit {bit} and no W");
        check!(is_fault(&fault, E_P | E_W, AT), "a write with bit {bit} and no W: {fault}");
    }
});
