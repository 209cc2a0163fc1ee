//! Entries of the fifth level: permissions, reserved and ignored bits, A, and what the TLB keeps (SDM volume
//! 3, 5.5.4, table 5-20 and 5.6 to 5.8; APM volume 2, 5.3.3).

use crate::{AT, check_fault, frame_of_ret, frame_with, map, top};
use payload_rt::paging::{self, Entry, Flags, Size};
use payload_rt::user::{End, User};
use payload_rt::*;

const P: u64 = 1;
const W: u64 = 2;
const U: u64 = 4;
const RSVD: u64 = 8;
const I: u64 = 16;

/// Five levels, with [`AT`] mapped for CPL 3 to a frame of `ret` and NX enabled: the fifth level's entry.
fn mapped() -> Entry {
    levels::five();
    if cpuid::NX.present() {
        check_ok!(reg::wrmsr(reg::EFER, check_ok!(reg::rdmsr(reg::EFER)) | reg::EFER_NXE));
    }
    paging::map(AT, frame_of_ret(), Size::K4, Flags::RWU);
    top(AT)
}

/// Changes the fifth level's entry, and flushes.
fn set(entry: &Entry, value: u64) {
    paging::set(AT, entry, value);
}

/// A read of [`AT`] at CPL 3: its error code if it was a page fault there.
fn read_at_cpl3() -> Option<u64> {
    let mut user = User::new(asm_code!("mov al, [rdi]", "ret"));
    user.regs.rdi = AT;
    match user.run().end {
        End::Done => None,
        End::Trap(fault) if fault.vector == trap::PF && fault.cr2 == AT => Some(fault.error_code),
        end => fail!("a read at CPL 3: {end:?}"),
    }
}

test!(
    write_protected,
    "Without W in the fifth level's entry writes fault, by CR0.WP at CPL 0.",
    || {
        let entry = mapped();
        set(&entry, entry.value & !Flags::W.0);
        check_ok!(mem::read::<u8>(AT));
        check_fault(mem::write(AT, crate::RET), P | W, AT, "a write");
        check_ok!(reg::set_cr0(reg::cr0() & !reg::CR0_WP));
        check_ok!(mem::write(AT, crate::RET), "a write with CR0.WP clear");
        check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_WP));
        check_fault(mem::write(AT, crate::RET), P | W, AT, "a write with CR0.WP set");
        set(&entry, entry.value);
        check_ok!(mem::write(AT, crate::RET), "a write with W");
    }
);

test!(supervisor, "Without U in the fifth level's entry CPL 3 faults.", || {
    let entry = mapped();
    check_eq!(read_at_cpl3(), None, "with U at each level");
    set(&entry, entry.value & !Flags::U.0);
    check_eq!(read_at_cpl3(), Some(P | U), "without U at the fifth");
    check_ok!(mem::read::<u8>(AT), "a read at CPL 0");
    set(&entry, entry.value);
    check_eq!(read_at_cpl3(), None, "with U again");
});

test!(no_execute, "With NX in the fifth level's entry fetches fault.", || {
    cpuid::NX.require();
    let entry = mapped();
    check_ok!(mem::call(AT));
    set(&entry, entry.value | Flags::NX.0);
    check_fault(mem::call(AT), P | I, AT, "a call");
    check_ok!(mem::read::<u8>(AT));
    check_ok!(mem::write(AT, crate::RET));
    set(&entry, entry.value);
    check_ok!(mem::call(AT), "a call without NX");
});

// SDM volume 3, 5.6.1: a page is for users if U is set in all entries that lead to it.
test!(
    smep_smap,
    "A page is the supervisor's by the fifth level alone: SMEP and SMAP let it be.",
    || {
        let entry = mapped();
        let mut bits = 0;
        for (feature, bit) in [(cpuid::SMEP, reg::CR4_SMEP), (cpuid::SMAP, reg::CR4_SMAP)] {
            bits |= if feature.present() { bit } else { 0 };
        }
        if bits == 0 {
            skip!("neither SMEP nor SMAP in CPUID");
        }
        let cr4 = reg::cr4();
        check_ok!(reg::set_cr4(cr4 | bits));
        if bits & reg::CR4_SMAP != 0 {
            check_fault(mem::read::<u8>(AT), P, AT, "a read of a user page under SMAP");
        }
        if bits & reg::CR4_SMEP != 0 {
            check_fault(mem::call(AT), P | I, AT, "a call of a user page under SMEP");
        }
        set(&entry, entry.value & !Flags::U.0);
        check_ok!(mem::read::<u8>(AT), "a read");
        check_ok!(mem::call(AT), "a call");
        check_ok!(reg::set_cr4(cr4));
    }
);

/// Bits that are reserved in an entry of the fifth level.
fn reserved_bits() -> impl Iterator<Item = u64> {
    [7, u64::from(cpuid::physical_bits()), 51].into_iter().filter(|&bit| bit <= 51)
}

/// Checks that the fifth level's entry with each reserved bit is #PF: with this error code of a read, if one
/// is given, and with RSVD at least.
fn reserved_faults(code: Option<u64>) {
    let entry = mapped();
    for bit in reserved_bits() {
        set(&entry, entry.value | 1 << bit);
        check_reserved(code, "a reserved bit");
        set(&entry, entry.value);
        check_ok!(mem::read::<u8>(AT), "without bit {bit}");
    }
}

/// Checks that a read and a write of [`AT`] tell of a reserved bit.
fn check_reserved(code: Option<u64>, what: &str) {
    let (read, write) = (mem::read::<u8>(AT).map(|_| ()), mem::write(AT, 0_u8));
    for (result, of_access) in [(read, 0), (write, W)] {
        match code {
            Some(code) => check_fault(result, code | of_access, AT, what),
            None => {
                let fault = check_err!(result, "{what}");
                check_eq!((fault.vector, fault.cr2), (trap::PF, AT), "{what}: {fault}");
                check_eq!(fault.error_code & RSVD, RSVD, "{what}: {fault}");
            }
        }
    }
}

test!(reserved, "The page-size bit and addresses beyond MAXPHYADDR are reserved there.", || {
    reserved_faults(None)
});

test!(reserved_code, "What is reserved there is #PF with RSVD and P.", || {
    reserved_faults(Some(P | RSVD))
});

/// Checks that NX is reserved with EFER.NXE clear.
fn nx_faults(code: Option<u64>) {
    cpuid::NX.require();
    let entry = mapped();
    set(&entry, entry.value | Flags::NX.0);
    check_ok!(mem::read::<u8>(AT), "a read under EFER.NXE");
    let efer = check_ok!(reg::rdmsr(reg::EFER));
    check_ok!(reg::wrmsr(reg::EFER, efer & !reg::EFER_NXE));
    check_reserved(code, "NX with EFER.NXE clear");
    check_ok!(reg::wrmsr(reg::EFER, efer));
    check_ok!(mem::read::<u8>(AT), "a read under EFER.NXE again");
}

test!(nx_reserved, "NX is reserved there while EFER.NXE is clear.", || nx_faults(None));

test!(nx_reserved_code, "So it is #PF with RSVD and P.", || nx_faults(Some(P | RSVD)));

test!(ignored, "Bits that belong to software, PWT and PCD change nothing there.", || {
    let entry = mapped();
    let frame = check_some(paging::translate(AT));
    for bit in [3, 4, 6, 9, 10, 11, 52, 55, 58, 59, 62] {
        set(&entry, entry.value | 1 << bit);
        check_ok!(mem::write(AT + 8, bit), "a write with bit {bit}");
        check_eq!(mem::read::<u64>(frame + 8), Ok(bit), "memory with bit {bit}");
        let left = entry.reload().value;
        check_eq!(left | Flags::A.0, entry.value | 1 << bit | Flags::A.0, "the entry");
    }
});

fn check_some(frame: Option<u64>) -> u64 {
    match frame {
        Some(frame) => frame,
        None => fail!("{AT:#x} is not mapped"),
    }
}

test!(accessed, "Each access sets A in the fifth level's entry, and never D.", || {
    let entry = mapped();
    let clean = entry.value & !(Flags::A.0 | Flags::D.0);
    for what in ["read", "write", "call"] {
        set(&entry, clean);
        check_eq!(entry.reload().value, clean, "before the {what}");
        match what {
            "read" => check_ok!(mem::read::<u8>(AT)),
            "write" => {
                check_ok!(mem::write(AT, crate::RET));
                0
            }
            _ => {
                check_ok!(mem::call(AT));
                0
            }
        };
        check_eq!(entry.reload().value, clean | Flags::A.0, "after the {what}");
    }
});

test!(exchanged, "An entry of the fifth level that leads elsewhere counts after a flush.", || {
    let entry = mapped();
    check_ok!(mem::write(AT, 1_u64));
    // Other tables of four levels, which map AT's lower 48 bits to another frame.
    let other = 0xff00_0000_0000_0000 | AT & 0xffff_ffff_ffff;
    map(other, frame_with(2));
    let values = [entry.value, top(other).value | Flags::RWU.0];
    for round in 0..12 {
        let n = round % 2;
        entry.set(values[n]);
        if round % 4 < 2 {
            paging::flush();
        } else {
            // Which also forgets what the paging-structure caches have (SDM volume 3, 5.10.4.1).
            paging::invlpg(AT);
        }
        check_eq!(mem::read::<u64>(AT), Ok(n as u64 + 1), "round {round}");
    }
});

test!(
    absent_table,
    "A fifth level's entry that leads where no memory is: a page fault, no hang.",
    || {
        let entry = mapped();
        let absent = lab::AREA;
        set(&entry, absent | Flags::RWU.0);
        let fault = check_err!(mem::read::<u8>(AT), "a read");
        check_eq!((fault.vector, fault.cr2), (trap::PF, AT), "a read");
        set(&entry, entry.value);
        check_ok!(mem::read::<u8>(AT));
    }
);
