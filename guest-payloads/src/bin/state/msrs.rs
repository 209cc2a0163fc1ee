//! MSRs from both sides: KVM_GET_MSRS and KVM_SET_MSRS against RDMSR and WRMSR, filters, and exits to user
//! space.

use crate::transplant;
use payload_rt::lab::{self, Errno, MsrRange, Rule, kind, kvm};
use payload_rt::reg::{self, rdmsr, wrmsr};
use payload_rt::trap::GP;
use payload_rt::{apic, check, check_eq, check_ok, check_trap, report, test};

/// An MSR that no processor has (SDM volume 4, 2.1: 4000_0000H to 4000_00FFH alone are set aside).
const NO_MSR: u32 = 0x4000_1234;
/// MSRs that go on by themselves: TSC, MPERF, APERF, and Hyper-V's runtime and reference counter.
const RUNNING: [u32; 5] = [reg::TSC, 0xe7, 0xe8, 0x4000_0010, 0x4000_0020];

/// Those that KVM says are to be saved.
fn list() -> impl Iterator<Item = u32> {
    let mut all = [0; 512];
    let count = check_ok!(lab::msr_index_list(&mut all));
    check!(count > 20, "KVM_GET_MSR_INDEX_LIST has {count} MSRs");
    report::value("msrs", count as u64);
    all.into_iter().take(count)
}

// KVM_GET_MSR_INDEX_LIST, KVM_GET_MSRS.
test!(list_reads, "What RDMSR gives of each MSR in KVM's list, KVM_GET_MSRS gives.", || {
    let mut same = 0;
    for msr in list().filter(|msr| !RUNNING.contains(msr)) {
        if let Ok(value) = rdmsr(msr) {
            check_eq!(lab::msr(msr), Ok(Some(value)), "MSR {msr:#x}");
            same += 1;
        }
    }
    check!(same > 15, "the guest has {same} of them");
});

// KVM_SET_MSRS.
test!(
    list_writes,
    "KVM_SET_MSRS takes what KVM_GET_MSRS gave, and the guest reads the same.",
    || {
        for msr in list().filter(|msr| !RUNNING.contains(msr)) {
            let before = rdmsr(msr).ok();
            if let Some(value) = check_ok!(lab::msr(msr)) {
                check_eq!(lab::set_msr(msr, value), Ok(true), "MSR {msr:#x} = {value:#x}");
            }
            check_eq!(rdmsr(msr).ok(), before, "MSR {msr:#x} afterwards");
        }
    }
);

test!(both_sides, "What one side writes to an MSR, the other reads.", || {
    for (msr, ours, theirs) in [
        (reg::STAR, 0x0033_0008_0000_0000, 0x0023_0010_0000_0000),
        (reg::LSTAR, 0x1234_5000, 0xffff_8000_0000_1000),
        (reg::FMASK, 0x4_7700, 0x300),
        (reg::KERNEL_GS_BASE, 0x7fff_0000, 0x1_0000),
        (reg::SYSENTER_ESP, 0x8000, 0x9000),
        (reg::PAT, 0x0007_0406_0007_0406, 0x0606_0606_0606_0606),
    ] {
        check_ok!(wrmsr(msr, ours), "MSR {msr:#x}");
        check_eq!(lab::msr(msr), Ok(Some(ours)), "MSR {msr:#x}, written by the guest");
        check_eq!(lab::set_msr(msr, theirs), Ok(true), "MSR {msr:#x}, by the host");
        check_eq!(rdmsr(msr), Ok(theirs), "MSR {msr:#x}, written by the host");
    }
});

/// Checks that neither side may write this, and that the value stays.
fn check_refused(msr: u32, value: u64) {
    let before = check_ok!(rdmsr(msr), "read MSR {msr:#x}");
    check_trap!(wrmsr(msr, value), GP, 0, "WRMSR of {value:#x} to {msr:#x}");
    check_eq!(lab::set_msr(msr, value), Ok(false), "KVM_SET_MSRS of {value:#x} to {msr:#x}");
    check_eq!(rdmsr(msr), Ok(before), "MSR {msr:#x} after {value:#x}");
}

// SDM volume 3, 2.2.1, 12.4.4, 13.11.2.1 and 13.12.2.
test!(reserved, "Reserved bits are refused alike by WRMSR and by KVM_SET_MSRS.", || {
    let efer = check_ok!(rdmsr(reg::EFER));
    for bit in [1, 9, 16, 40, 63] {
        check_refused(reg::EFER, efer | 1 << bit);
    }
    let base = check_ok!(rdmsr(reg::APIC_BASE));
    for bit in [0, 7, 63] {
        check_refused(reg::APIC_BASE, base | 1 << bit);
    }
    for value in [2, 0x10, 1 << 12, 1 << 32] {
        check_refused(0x2ff, value);
    }
});

test!(reserved_pat, "Reserved types in PAT are refused alike by both.", || {
    for kind in [2, 3, 8] {
        check_refused(reg::PAT, 0x0007_0406_0007_0400 | kind);
    }
});

test!(unknown, "An MSR that is not there is #GP for the guest, and none for the host.", || {
    check_trap!(rdmsr(NO_MSR), GP, 0, "RDMSR");
    check_trap!(wrmsr(NO_MSR, 0), GP, 0, "WRMSR");
    check_eq!(lab::msr(NO_MSR), Ok(None), "KVM_GET_MSRS");
    check_eq!(lab::set_msr(NO_MSR, 0), Ok(false), "KVM_SET_MSRS");
});

test!(stops_at_first, "KVM_SET_MSRS and KVM_GET_MSRS stop at the first that they refuse.", || {
    let msr = |index, data| kvm::Msr { index, reserved: 0, data };
    let mut set = [msr(reg::STAR, 1 << 32), msr(NO_MSR, 0), msr(reg::LSTAR, 0x5000)];
    check_ok!(wrmsr(reg::LSTAR, 0x4000));
    check_eq!(lab::set_msrs(&mut set), Ok(1), "how many were set");
    check_eq!(rdmsr(reg::STAR), Ok(1 << 32), "the one before");
    check_eq!(rdmsr(reg::LSTAR), Ok(0x4000), "the one behind");
    let mut get = [msr(reg::STAR, 0), msr(NO_MSR, 0), msr(reg::LSTAR, 77)];
    check_eq!(lab::msrs(&mut get), Ok(1), "how many were read");
    check_eq!((get[0].data, get[2].data), (1 << 32, 77), "the values");
});

// KVM_GET_MSR_FEATURE_INDEX_LIST; KVM_GET_MSRS of the system.
test!(features, "Each MSR of the feature list has a value.", || {
    let mut all = [0; 256];
    let count = check_ok!(lab::msr_feature_index_list(&mut all));
    check!(count > 0, "the list is empty");
    for &index in &all[..count] {
        let mut one = [kvm::Msr { index, ..Default::default() }];
        check_eq!(lab::feature_msrs(&mut one), Ok(1), "feature MSR {index:#x}");
    }
});

fn require_filter() {
    lab::require_cap(kvm::cap::X86_MSR_FILTER, "X86_MSR_FILTER");
}

const READ: u32 = 1;
const WRITE: u32 = 2;

/// A range of one MSR: denied, or let through.
fn one(flags: u32, first: u32, allow: bool) -> MsrRange<'static> {
    MsrRange { flags, first, count: 1, bitmap: if allow { &[1] } else { &[0] } }
}

// KVM_X86_SET_MSR_FILTER.
test!(filter_read, "A filter of reads denies reads, and not writes.", || {
    require_filter();
    check_ok!(lab::msr_filter(false, &[one(READ, reg::STAR, false)]));
    check_trap!(rdmsr(reg::STAR), GP, 0, "RDMSR of what is denied");
    check_ok!(wrmsr(reg::STAR, 0x1234_0000_0000));
    check_eq!(lab::msr(reg::STAR), Ok(Some(0x1234_0000_0000)), "the host reads it");
    check_ok!(lab::msr_filter(false, &[]));
    check_eq!(rdmsr(reg::STAR), Ok(0x1234_0000_0000), "without the filter");
});

test!(filter_write, "A filter of writes denies writes, and not reads.", || {
    require_filter();
    check_ok!(wrmsr(reg::STAR, 0x1111_0000_0000));
    check_ok!(lab::msr_filter(false, &[one(WRITE, reg::STAR, false)]));
    check_trap!(wrmsr(reg::STAR, 0), GP, 0, "WRMSR of what is denied");
    check_eq!(rdmsr(reg::STAR), Ok(0x1111_0000_0000), "RDMSR");
    check_eq!(lab::set_msr(reg::STAR, 0x2222_0000_0000), Ok(true), "the host writes it");
    check_eq!(rdmsr(reg::STAR), Ok(0x2222_0000_0000), "RDMSR");
});

test!(
    filter_default,
    "With denial as the default, what a range lets through is let through.",
    || {
        require_filter();
        let ranges = [one(READ | WRITE, reg::STAR, true), one(READ, reg::PAT, true)];
        check_ok!(lab::msr_filter(true, &ranges));
        check_ok!(wrmsr(reg::STAR, 0x3333_0000_0000));
        check_eq!(rdmsr(reg::STAR), Ok(0x3333_0000_0000), "what both ways are open to");
        let pat = check_ok!(rdmsr(reg::PAT), "what reads are open to");
        check_trap!(wrmsr(reg::PAT, pat), GP, 0, "its write");
        check_trap!(rdmsr(reg::SYSENTER_CS), GP, 0, "of no range");
        check_ok!(lab::msr_filter(false, &[]));
        check_ok!(rdmsr(reg::SYSENTER_CS), "without the filter");
    }
);

test!(filter_bits, "Each bit of a range is about its own MSR.", || {
    require_filter();
    let bitmap = [0b0101];
    let range = MsrRange { flags: READ, first: reg::SYSENTER_CS, count: 3, bitmap: &bitmap };
    check_ok!(lab::msr_filter(false, &[range]));
    check_ok!(rdmsr(reg::SYSENTER_CS));
    check_trap!(rdmsr(reg::SYSENTER_ESP), GP, 0, "bit 1");
    check_ok!(rdmsr(reg::SYSENTER_EIP));
});

test!(filter_sixteen, "Sixteen ranges each count.", || {
    require_filter();
    let ranges: [MsrRange; 16] = core::array::from_fn(|i| match i {
        15 => one(READ, reg::STAR, false),
        _ => one(READ, NO_MSR + i as u32, false),
    });
    check_ok!(lab::msr_filter(false, &ranges));
    check_trap!(rdmsr(reg::STAR), GP, 0, "the last range");
});

test!(filter_refused, "A filter that denies all, or has unknown flags, is EINVAL.", || {
    require_filter();
    check_eq!(lab::msr_filter(true, &[]), Err(Errno::EINVAL), "denial without ranges");
    check_eq!(lab::msr_filter(false, &[one(4, reg::STAR, true)]), Err(Errno::EINVAL), "flags 4");
    check_eq!(lab::msr_filter(false, &[one(0, reg::STAR, true)]), Err(Errno::EINVAL), "flags 0");
    check_ok!(rdmsr(reg::STAR), "after refused filters");
});

// "MSR filters: x2APIC MSRs cannot be filtered".
test!(filter_x2apic, "A filter does not deny the MSRs of the x2APIC.", || {
    require_filter();
    let apic = apic::set_mode(apic::Mode::X2Apic);
    let tpr = apic::Register::TPR.msr();
    let ranges = [one(READ | WRITE, tpr, false), one(READ, reg::STAR, false)];
    check_ok!(lab::msr_filter(false, &ranges));
    check_ok!(apic.try_write(apic::Register::TPR, 0x20));
    check_eq!(rdmsr(tpr), Ok(0x20), "TPR");
    check_trap!(rdmsr(reg::STAR), GP, 0, "what is filtered beside it");
});

test!(filter_transplanted, "A filter holds in the new VM.", || {
    require_filter();
    check_ok!(lab::msr_exits(4));
    check_ok!(lab::msr_filter(false, &[one(READ | WRITE, reg::STAR, false)]));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR).value(0x77), Rule::on(kind::WRMSR)]));
    transplant();
    check_eq!(rdmsr(reg::STAR), Ok(0x77), "RDMSR of what is denied");
    check_ok!(wrmsr(reg::STAR, 0x5555));
    check_eq!(log.count(), 2, "exits");
    check!(lab::msr(reg::STAR) != Ok(Some(0x5555)), "the denied write was carried out");
});

// KVM_CAP_X86_USER_SPACE_MSR; KVM_EXIT_X86_RDMSR.
test!(exit_invalid, "An access that KVM refuses leaves the guest, and is answered.", || {
    lab::require_cap(kvm::cap::X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR");
    check_ok!(lab::msr_exits(1));
    let at = u64::from(reg::EFER);
    let rules = [Rule::on(kind::WRMSR).range(at..=at).limit(1), Rule::on(kind::WRMSR).fault()];
    let log = check_ok!(lab::record(&rules));
    let efer = check_ok!(rdmsr(reg::EFER));
    check_ok!(wrmsr(reg::EFER, efer | 2), "answered without a fault");
    check_trap!(wrmsr(reg::EFER, efer | 4), GP, 0, "answered with a fault");
    let seen = [0, 1].map(|i| log.get(i).map(|e| (e.words[0], e.words[1])));
    check_eq!(seen, [Some((at, efer | 2)), Some((at, efer | 4))], "the exits");
    check_eq!(rdmsr(reg::EFER), Ok(efer), "EFER");
});

test!(exit_reasons, "Exits come for the reasons that were asked for alone.", || {
    lab::require_cap(kvm::cap::X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR");
    check_ok!(lab::msr_exits(4));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR | kind::WRMSR).value(5)]));
    check_trap!(rdmsr(NO_MSR), GP, 0, "unknown, under exits for filters");
    check_trap!(wrmsr(reg::EFER, u64::MAX), GP, 0, "invalid, under exits for filters");
    check_ok!(lab::msr_exits(2));
    check_eq!(rdmsr(NO_MSR), Ok(5), "unknown");
    check_ok!(lab::msr_exits(0));
    check_trap!(rdmsr(NO_MSR), GP, 0, "unknown, without exits");
    check_eq!(log.count(), 1, "exits");
    check_eq!(lab::msr_exits(1 << 3), Err(Errno::EINVAL), "an unknown reason");
});

test!(exit_value, "A read of 64 bits that the host answers arrives whole.", || {
    lab::require_cap(kvm::cap::X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR");
    check_ok!(lab::msr_exits(2));
    check_ok!(lab::record(&[Rule::on(kind::RDMSR).value(0xfedc_ba98_7654_3210)]));
    check_eq!(rdmsr(NO_MSR), Ok(0xfedc_ba98_7654_3210));
});
