//! Ioctls on a vCPU: special registers, CPUID, translation, XSAVE, XCRs, TSC, MP state, machine checks.

use payload_rt::cpuid::leaf;
use payload_rt::lab::{self, Chain, Cpuid, Errno, kvm, target};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::{
    apic, check, check_eq, check_ok, check_trap, cpuid, frames, reg, test, time, trap,
};

/// Checks that KVM_SET_SREGS refuses this, and changes nothing.
fn check_sregs(what: &str, change: fn(&mut kvm::Sregs)) {
    let before = check_ok!(lab::sregs());
    let mut wrong = before;
    change(&mut wrong);
    check_eq!(lab::set_sregs(&wrong), Err(Errno::EINVAL), "{what}");
    check_eq!(check_ok!(lab::sregs()), before, "after {what}");
}

// KVM_SET_SREGS; SDM volume 3, 2.5 and 11.8.5 (which bits of CR0, CR4 and EFER go together).
test!(
    sregs_refused,
    "KVM_SET_SREGS refuses CR0, CR4 and EFER that do not fit, and changes nothing.",
    || {
        check_sregs("CR0 with an upper bit", |s| s.cr0 |= 1 << 32);
        check_sregs("CR0.PG without PE", |s| s.cr0 &= !reg::CR0_PE);
        check_sregs("CR0.NW without CD", |s| s.cr0 = s.cr0 & !reg::CR0_CD | reg::CR0_NW);
        check_sregs("CR4 with a reserved bit", |s| s.cr4 |= 1 << 31);
        check_sregs("long mode without CR4.PAE", |s| s.cr4 &= !reg::CR4_PAE);
        check_sregs("EFER.LME under paging without LMA", |s| s.efer &= !reg::EFER_LMA);
        check_sregs("EFER.LMA without LME", |s| s.efer &= !reg::EFER_LME);
        check_sregs("a reserved bit of CR3", |s| s.cr3 |= 1 << 63);
    }
);

test!(sregs_apic_base, "KVM_SET_SREGS refuses an illegal APIC base, and the mode stays.", || {
    check_sregs("a reserved bit of the APIC base", |s| s.apic_base |= 1);
    check_sregs("x2APIC mode without the enable bit", |s| {
        s.apic_base = s.apic_base & !apic::BASE_ENABLE | apic::BASE_X2APIC
    });
});

test!(
    sregs_segments,
    "The hidden parts of segments that the host sets are those that the guest uses.",
    || {
        let page = frames::alloc();
        check_ok!(payload_rt::mem::write(page.address() + 8, 0x1234_5678u64));
        let mut sregs = check_ok!(lab::sregs());
        sregs.fs.base = page.address();
        sregs.gs.base = 0xffff_8000_0000_0000;
        check_ok!(lab::set_sregs(&sregs));
        check_eq!(reg::rdmsr(reg::FS_BASE), Ok(page.address()), "base of FS");
        check_eq!(reg::rdmsr(reg::GS_BASE), Ok(0xffff_8000_0000_0000), "base of GS");
        let word: u64;
        check_ok!(payload_rt::insn!("mov {}, fs:[8]"; out(reg) word));
        check_eq!(word, 0x1234_5678, "by FS");
    }
);

/// What of a leaf two reads may tell differently: the APIC identifier and OSXSAVE are as CPUID has them
/// now, and KVM's copy is brought up to date at the next entry.
fn mask(function: u32, index: u32) -> [u32; 4] {
    match (function, index) {
        (1, _) => [!0, !0, !(1 << 27), !0],
        (0xd, 0 | 1) => [!0, 0, !0, !0],
        _ => [!0; 4],
    }
}

// KVM_GET_CPUID2.
test!(cpuid_equals, "KVM_GET_CPUID2 gives what the guest's CPUID gives.", || {
    let all = check_ok!(Cpuid::of_vcpu());
    check!(all.leaves().len() > 5, "{} leaves", all.leaves().len());
    for entry in all.leaves() {
        let words = leaf(entry.function, entry.index);
        let mask = mask(entry.function, entry.index);
        let guest = [words.eax, words.ebx, words.ecx, words.edx];
        let host = [entry.eax, entry.ebx, entry.ecx, entry.edx];
        for i in 0..4 {
            let what = (entry.function, entry.index);
            check_eq!(guest[i] & mask[i], host[i] & mask[i], "leaf {what:x?}, register {i}");
        }
    }
});

// KVM_SET_CPUID2: since Linux 5.17 a vCPU that has run keeps its CPUID.
test!(
    cpuid_after_run,
    "Once the guest has run, KVM_SET_CPUID2 takes the same leaves and no others.",
    || {
        let mut all = check_ok!(Cpuid::of_vcpu());
        check_ok!(all.set(), "the same leaves");
        let before = leaf(1, 0);
        match all.find(1, 0) {
            Some(entry) => entry.ecx ^= 1 << 30,
            None => payload_rt::fail!("no leaf 1"),
        }
        check_eq!(all.set(), Err(Errno::EINVAL), "without RDRAND, or with it");
        check_eq!(leaf(1, 0).ecx, before.ecx, "leaf 1 afterwards");
        let mut empty = check_ok!(Cpuid::of_vcpu());
        empty.count = 1;
        check_eq!(empty.set(), Err(Errno::EINVAL), "one leaf alone");
    }
);

fn translate(linear_address: u64) -> kvm::Translation {
    let asked = kvm::Translation { linear_address, ..Default::default() };
    check_ok!(lab::swap(kvm::TRANSLATE, asked))
}

// KVM_TRANSLATE.
test!(translates, "KVM_TRANSLATE gives what the guest's own page tables give.", || {
    const AT: u64 = 0x7000_0000_0000;
    let frame = frames::alloc().address();
    check_eq!(translate(AT).valid, 0, "an address that is not mapped");
    paging::map(AT, frame, Size::K4, Flags::RWU);
    for address in [AT + 0x123, 0x10_1000, 0x10_0000, 0x20_0fff, 0xfee0_0000] {
        let found = translate(address);
        check_eq!(found.valid, 1, "{address:#x}");
        check_eq!(Some(found.physical_address), paging::translate(address), "{address:#x}");
    }
    paging::unmap(AT);
    check_eq!(translate(AT).valid, 0, "unmapped again");
});

/// Words of an XSAVE area: MXCSR and its mask, XMM0, and XSTATE_BV.
const MXCSR: usize = 3;
const XMM0: usize = 20;
const XSTATE_BV: usize = 64;

// KVM_GET_XSAVE; SDM volume 1, 13.4.1.
test!(xsave_reads, "KVM_GET_XSAVE has the guest's XMM registers.", || {
    let mut chain = Chain::new();
    let area = chain.get(kvm::GET_XSAVE);
    let mut words = crate::transplant::pattern();
    crate::transplant::xmm_around_out(chain.address(), &mut words);
    check_ok!(chain.all_ok());
    let area = area.read();
    check_eq!(area[XMM0..XMM0 + 32], words[..32], "XMM0 to XMM15");
    check_eq!(area[XSTATE_BV] & 2, 2, "XSTATE_BV: SSE");
});

test!(xsave_writes, "KVM_SET_XSAVE gives the guest its XMM registers.", || {
    let mut area = check_ok!(lab::get(kvm::GET_XSAVE));
    for (i, word) in area[XMM0..XMM0 + 32].iter_mut().enumerate() {
        *word = 0xfeed_0000_0000_0000 + i as u64;
    }
    area[XSTATE_BV] |= 2;
    let mut chain = Chain::new();
    chain.set(kvm::SET_XSAVE, area);
    let mut words = crate::transplant::pattern();
    crate::transplant::xmm_around_out(chain.address(), &mut words);
    check_ok!(chain.all_ok());
    check_eq!(words[32..], area[XMM0..XMM0 + 32], "XMM0 to XMM15");
});

test!(
    xsave_refused,
    "KVM_SET_XSAVE refuses reserved bits of MXCSR, and components that are not there.",
    || {
        let area = check_ok!(lab::get(kvm::GET_XSAVE));
        let mut wrong = area;
        wrong[MXCSR] |= 0xffff_0000;
        wrong[XSTATE_BV] |= 2;
        check_eq!(lab::set(kvm::SET_XSAVE, &wrong), Err(Errno::EINVAL), "MXCSR");
        wrong = area;
        wrong[XSTATE_BV] |= 1 << 62;
        check_eq!(lab::set(kvm::SET_XSAVE, &wrong), Err(Errno::EINVAL), "XSTATE_BV");
        check_ok!(lab::set(kvm::SET_XSAVE, &area), "as it was");
    }
);

// KVM_SET_XCRS; SDM volume 1, 13.3.
test!(xcrs, "KVM_GET_XCRS has XCR0, and KVM_SET_XCRS refuses what XSETBV refuses.", || {
    cpuid::XSAVE.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSXSAVE));
    let xcrs = check_ok!(lab::get(kvm::GET_XCRS));
    check_eq!((xcrs.nr_xcrs, xcrs.xcrs[0].xcr), (1, 0), "XCRs");
    check_eq!(reg::xgetbv(0), Ok(xcrs.xcrs[0].value), "XCR0");
    let with = |value| {
        let mut wrong = xcrs;
        wrong.xcrs[0].value = value;
        lab::set(kvm::SET_XCRS, &wrong)
    };
    for value in [0, 2, 1 | 4, 3 | 1 << 62] {
        check_eq!(with(value), Err(Errno::EINVAL), "XCR0 = {value:#x}");
        check_eq!(reg::xgetbv(0), Ok(xcrs.xcrs[0].value), "XCR0 after {value:#x}");
    }
    check_ok!(with(3));
    check_eq!(reg::xgetbv(0), Ok(3), "XCR0 by the host");
    check_eq!(
        lab::set(kvm::SET_XCRS, &kvm::Xcrs { flags: 1, ..xcrs }),
        Err(Errno::EINVAL),
        "flags"
    );
    let many = kvm::Xcrs { nr_xcrs: 17, ..xcrs };
    check_eq!(lab::set(kvm::SET_XCRS, &many), Err(Errno::EINVAL), "17 XCRs");
});

// KVM_GET_TSC_KHZ; the guest's measure is against the PM timer or the PIT, so within a few in a hundred.
test!(tsc_khz, "KVM_GET_TSC_KHZ is the rate of the guest's TSC.", || {
    let khz = check_ok!(lab::call(kvm::GET_TSC_KHZ)) as u64;
    let measured = time::tsc_hz() / 1000;
    check!(measured.abs_diff(khz) < khz / 20, "{khz} kHz, and the guest has {measured}");
    check_ok!(lab::call_with(kvm::SET_TSC_KHZ, khz), "the same rate");
});

// "KVM_VCPU_TSC_CTRL": KVM_VCPU_TSC_OFFSET.
test!(tsc_offset, "KVM_VCPU_TSC_OFFSET moves the guest's TSC.", || {
    const STEP: u64 = 1 << 44;
    check!(lab::has_attribute(target::VCPU, 0, 0), "no KVM_VCPU_TSC_OFFSET");
    let offset = check_ok!(lab::tsc_offset());
    let before = time::rdtsc();
    check_ok!(lab::set_tsc_offset(offset.wrapping_add(STEP)));
    let after = time::rdtsc();
    check!((STEP..2 * STEP).contains(&after.wrapping_sub(before)), "from {before} to {after}");
    check_eq!(lab::tsc_offset(), Ok(offset.wrapping_add(STEP)));
    check!(!lab::has_attribute(target::VCPU, 0, 1), "an attribute that is not there");
    check_eq!(lab::attribute(target::VCPU, 0, 1).err(), Some(Errno::ENXIO));
});

// KVM_SET_MP_STATE.
test!(mp_state, "The guest is runnable; unknown states are EINVAL.", || {
    use kvm::mp_state::RUNNABLE;
    check_eq!(lab::get(kvm::GET_MP_STATE), Ok(RUNNABLE));
    for state in [5, 6, 77, u32::MAX] {
        check_eq!(lab::set(kvm::SET_MP_STATE, &state), Err(Errno::EINVAL), "state {state}");
    }
    check_eq!(lab::get(kvm::GET_MP_STATE), Ok(RUNNABLE));
});

test!(mp_state_user, "Without an APIC in the kernel there is no state but runnable.", || {
    for state in [kvm::mp_state::UNINITIALIZED, kvm::mp_state::INIT_RECEIVED] {
        check_eq!(lab::set(kvm::SET_MP_STATE, &state), Err(Errno::EINVAL), "state {state}");
    }
    check_ok!(lab::set(kvm::SET_MP_STATE, &kvm::mp_state::RUNNABLE));
});

// KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_X86_SETUP_MCE, KVM_X86_SET_MCE; SDM volume 3, 17.3.
test!(
    machine_check,
    "A machine check that the host injects is #MC, with its bank's registers.",
    || {
        const MCG_CAP: u32 = 0x179;
        const MCG_STATUS: u32 = 0x17a;
        const CR4_MCE: u64 = 1 << 6;
        // VAL, UC, EN, MISCV, ADDRV; MCIP.
        const STATUS: u64 = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 59 | 1 << 58 | 0x134;
        const MCIP: u64 = 4;
        cpuid::MCA.require();
        let supported = check_ok!(lab::get(kvm::X86_GET_MCE_CAP_SUPPORTED));
        let cap = supported & !0xff | 4;
        check_ok!(lab::set(kvm::X86_SETUP_MCE, &cap));
        // Bits 63:9 are reserved on AMD (APM volume 2, 9.3.2.1), where KVM drops them.
        check_eq!(check_ok!(reg::rdmsr(MCG_CAP)) & 0x1ff, cap & 0x1ff, "MCG_CAP");
        let mce = kvm::Mce {
            status: STATUS,
            addr: 0x1234_5000,
            misc: 0x8c,
            mcg_status: MCIP,
            bank: 2,
            ..Default::default()
        };
        let beyond = kvm::Mce { bank: 4, ..mce };
        check_eq!(lab::set(kvm::X86_SET_MCE, &beyond), Err(Errno::EINVAL), "bank 4 of 4");
        check_eq!(lab::set(kvm::X86_SET_MCE, &kvm::Mce { status: 0, ..mce }), Err(Errno::EINVAL));
        check_ok!(reg::set_cr4(reg::cr4() | CR4_MCE));
        let taken = trap::catch(|| lab::set(kvm::X86_SET_MCE, &mce));
        check_trap!(taken, trap::MC, 0, "#MC of the host's");
        check_eq!(reg::rdmsr(MCG_STATUS), Ok(MCIP), "MCG_STATUS");
        for (offset, value) in [(1, STATUS), (2, 0x1234_5000), (3, 0x8c)] {
            check_eq!(reg::rdmsr(0x400 + 4 * 2 + offset), Ok(value), "bank 2, register {offset}");
        }
        check_eq!(reg::rdmsr(0x400 + 4 + 1), Ok(0), "status of bank 1");
    }
);
