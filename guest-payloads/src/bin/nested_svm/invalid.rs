//! What VMRUN refuses (AMD APM volume 2, 15.5.1, "canonicalization and consistency checks"): the exit
//! INVALID, with the hypervisor as it was.

use crate::l1::L1;
use crate::{guest, run_to_end};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::vmcb::{self, Seg};
use payload_rt::svm::{EFER_SVME, Exit, Guest, NPT, asids, exit};
use payload_rt::{asm_code, check, check_eq, cpuid, reg, test};

/// Whether this is the exit INVALID, by the 32 bits that older processors have.
pub fn is_invalid(exit: Exit) -> bool {
    exit.code as u32 == exit::INVALID as u32
}

/// A VMCB that one `change` made illegal must be refused, and the next good one be run.
fn refused(what: &str, change: impl Fn(&mut Guest)) {
    let mut bad = guest(asm_code!("vmmcall"));
    change(&mut bad);
    let l1 = L1::now();
    let exit = bad.run();
    let trap = bad.trap();
    check!(is_invalid(exit), "{what}: {exit:?} {trap:#x?}, must be INVALID");
    l1.check_intact(what);
    let mut good = guest(asm_code!("mov ebx, 7", "vmmcall"));
    run_to_end(&mut good, "a good VMCB after the bad one");
    check_eq!(good.regs.rbx, 7, "RBX of the good guest");
}

/// Each of these bits of a field, set alone, must be refused.
fn refused_bits(field: vmcb::Field, bits: impl IntoIterator<Item = u32>) {
    for bit in bits {
        let mut bad = guest(asm_code!("vmmcall"));
        bad.vmcb.add(field, 1 << bit);
        let exit = bad.run();
        check!(is_invalid(exit), "{field:?} with bit {bit}: {exit:?}, must be INVALID");
    }
    refused("the first bit once more", |guest| guest.vmcb.add(field, 1 << 63));
}

macro_rules! refusals {
    ($($name:ident $about:literal: $change:expr;)*) => {$(
        test!($name, $about, || refused(stringify!($name), $change));
    )*};
}

refusals! {
    svme_clear "VMRUN refuses a guest with EFER.SVME clear.":
        |g: &mut Guest| g.vmcb.remove(vmcb::EFER, EFER_SVME);
    cr0_nw_alone "VMRUN refuses CR0.NW without CD.":
        |g: &mut Guest| g.vmcb.add(vmcb::CR0, reg::CR0_NW);
    long_without_pae "VMRUN refuses EFER.LME and CR0.PG without CR4.PAE.":
        |g: &mut Guest| g.vmcb.remove(vmcb::CR4, reg::CR4_PAE);
    long_without_pe "VMRUN refuses EFER.LME and CR0.PG without CR0.PE.":
        |g: &mut Guest| g.vmcb.remove(vmcb::CR0, reg::CR0_PE);
    cs_l_and_d "VMRUN refuses a 64-bit code segment with CS.D.": |g: &mut Guest| {
        let mut cs = g.vmcb.segment(Seg::Cs);
        cs.attributes |= 1 << 10;
        g.vmcb.set_segment(Seg::Cs, cs);
    };
    vmrun_not_intercepted "VMRUN refuses a VMCB that does not intercept VMRUN.":
        |g: &mut Guest| g.vmcb.intercept(exit::VMRUN, false);
    asid_0 "VMRUN refuses ASID 0.": |g: &mut Guest| g.vmcb.set(vmcb::ASID, 0);
    iopm_beyond "VMRUN refuses an I/O permission map beyond physical memory's addresses.":
        |g: &mut Guest| g.vmcb.set(vmcb::IOPM_BASE, (1 << cpuid::physical_bits()) - 0x1000);
    msrpm_beyond "VMRUN refuses an MSR permission map beyond physical memory's addresses.":
        |g: &mut Guest| g.vmcb.set(vmcb::MSRPM_BASE, (1 << cpuid::physical_bits()) - 0x1000);
}

test!(cr0_high, "VMRUN refuses each of CR0's upper 32 bits.", || {
    refused_bits(vmcb::CR0, [32, 33, 47, 62]);
});

test!(cr3_mbz, "VMRUN refuses address bits of CR3 above the physical width.", || {
    refused_bits(vmcb::CR3, [u32::from(cpuid::physical_bits()), 51]);
});

// AMD APM volume 2, 3.1.3: bits 63:32 and those no feature has; 13 and 14 are Intel's alone.
test!(cr4_reserved, "VMRUN refuses reserved bits of CR4.", || {
    refused_bits(vmcb::CR4, [13, 14, 15, 25, 31, 32, 62]);
});

test!(dr6_high, "VMRUN refuses each of DR6's upper 32 bits.", || {
    refused_bits(vmcb::DR6, [32, 48, 62]);
});

test!(dr7_high, "VMRUN refuses each of DR7's upper 32 bits.", || {
    refused_bits(vmcb::DR7, [32, 48, 62]);
});

// 3.1.7: bits 7:1 read as zero, 9 and those from 16 up are reserved where CPUID has no feature.
test!(efer_reserved, "VMRUN refuses reserved bits of EFER.", || {
    refused_bits(vmcb::EFER, [9, 16, 19, 32, 62]);
});

// Appendix C: VMEXIT_INVALID is -1 in the 64 bits of EXITCODE.
test!(invalid_is_64_bits, "EXITCODE of INVALID is -1 in all its 64 bits.", || {
    let mut bad = guest(asm_code!("vmmcall"));
    bad.vmcb.set(vmcb::ASID, 0);
    check_eq!(bad.run().code, exit::INVALID, "EXITCODE");
});

// 15.20: reserved types, and exceptions that are none.
fn refused_event(what: &str, event: u64) {
    refused(what, |guest| guest.vmcb.set(vmcb::EVENTINJ, 1 << 31 | event));
}

test!(event_types, "VMRUN refuses to inject an event of a reserved type.", || {
    for kind in [1, 5, 6, 7] {
        refused_event("a reserved type", kind << 8 | 0x40);
    }
});

test!(event_nmi_as_exception, "VMRUN refuses to inject vector 2 as an exception.", || {
    refused_event("vector 2 as an exception", 3 << 8 | 2);
});

test!(event_vector_32, "VMRUN refuses to inject a vector above 31 as an exception.", || {
    refused_event("vector 32 as an exception", 3 << 8 | 32);
    refused_event("vector 255 as an exception", 3 << 8 | 255);
});

// 15.25.3.
test!(n_cr3_mbz, "With nested paging VMRUN refuses N_CR3 above the physical width.", || {
    NPT.require();
    refused("N_CR3", |guest| {
        guest.nest(&Npt::identity());
        guest.vmcb.add(vmcb::N_CR3, 1 << cpuid::physical_bits());
    });
});

test!(g_pat_type, "With nested paging VMRUN refuses a reserved memory type in G_PAT.", || {
    NPT.require();
    for kind in [2, 3, 8] {
        refused("a reserved type in G_PAT", |guest| {
            guest.nest(&Npt::identity());
            guest.vmcb.set(vmcb::G_PAT, 0x0007_0406_0007_0400 | kind);
        });
    }
});

fn accepted(what: &str, change: impl Fn(&mut Guest)) {
    let mut good = guest(asm_code!("mov ebx, 7", "vmmcall"));
    change(&mut good);
    run_to_end(&mut good, what);
    check_eq!(good.regs.rbx, 7, "RBX: {what}");
}

macro_rules! acceptances {
    ($($name:ident $about:literal: $change:expr;)*) => {$(
        test!($name, $about, || accepted(stringify!($name), $change));
    )*};
}

acceptances! {
    cr0_cd_is_legal "VMRUN takes CR0.CD, with NW and without.": |g: &mut Guest| {
        g.vmcb.add(vmcb::CR0, reg::CR0_CD);
    };
    cr0_cd_nw_is_legal "VMRUN takes CR0.NW together with CD.": |g: &mut Guest| {
        g.vmcb.add(vmcb::CR0, reg::CR0_CD | reg::CR0_NW);
    };
    rflags_bit_1 "VMRUN forces RFLAGS bit 1.": |g: &mut Guest| g.vmcb.set(vmcb::RFLAGS, 0);
    last_asid "VMRUN takes the last ASID that CPUID has.":
        |g: &mut Guest| g.vmcb.set(vmcb::ASID, u64::from(asids()) - 1);
    map_addresses_round_down "VMRUN ignores bits 11:0 of the maps' addresses.": |g: &mut Guest| {
        g.vmcb.set(vmcb::IOPM_BASE, 0xfff);
        g.vmcb.set(vmcb::MSRPM_BASE, 0xabc);
    };
    exitinfo_is_ignored "VMRUN ignores what the exit fields held before.": |g: &mut Guest| {
        for field in [vmcb::EXITCODE, vmcb::EXITINFO1, vmcb::EXITINFO2, vmcb::EXITINTINFO] {
            g.vmcb.set(field, u64::MAX);
        }
    };
    invalid_event_is_ignored "VMRUN ignores EVENTINJ without its valid bit.":
        |g: &mut Guest| g.vmcb.set(vmcb::EVENTINJ, 0xffff_ffff_7fff_ffff);
}

// 15.5.1: a segment's base is sign-extended from the top bit of a linear address, be that 47 or 56.
test!(bases_canonicalise, "VMRUN makes the bases of segments canonical.", || {
    let mut guest = guest(asm_code!("vmmcall"));
    for segment in [Seg::Ds, Seg::Es, Seg::Ss, Seg::Cs] {
        let mut value = guest.vmcb.segment(segment);
        value.base = 0x1200_0000_0000_0000;
        guest.vmcb.set_segment(segment, value);
    }
    run_to_end(&mut guest, "with wild bases");
    for segment in [Seg::Ds, Seg::Es, Seg::Ss, Seg::Cs] {
        check_eq!(guest.vmcb.segment(segment).base, 0, "the base of {segment:?}");
    }
});
