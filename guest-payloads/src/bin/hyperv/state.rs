//! Hyper-V's MSRs as state: what KVM lists of them, gives and takes (api.rst, KVM_GET_MSR_INDEX_LIST,
//! KVM_GET_MSRS, KVM_SET_MSRS).

use crate::*;
use payload_rt::lab;
use payload_rt::{check_eq, test};

/// Those that KVM lists: of controllers and timers, one stands for all.
const LISTED: &[u32] = &[
    GUEST_OS_ID,
    HYPERCALL,
    TIME_REF_COUNT,
    REFERENCE_TSC,
    CRASH_P0,
    CRASH_P0 + 4,
    CRASH_CTL,
    RESET,
    VP_INDEX,
    VP_RUNTIME,
    SCONTROL,
    STIMER0_CONFIG,
    VP_ASSIST_PAGE,
    REENLIGHTENMENT_CONTROL,
    TSC_EMULATION_CONTROL,
    TSC_EMULATION_STATUS,
];

test!(
    state_listed,
    "KVM_GET_MSR_INDEX_LIST has Hyper-V's MSRs, and KVM_GET_MSRS gives each.",
    || {
        let mut list = [0; 1024];
        let count = check_ok!(lab::msr_index_list(&mut list));
        for msr in LISTED {
            check!(list[..count].contains(msr), "MSR {msr:#x} is not in the list");
        }
        for msr in list[..count].iter().filter(|&&msr| msr >> 12 == 0x40000) {
            check!(check_ok!(lab::msr(*msr)).is_some(), "MSR {msr:#x} is not given");
        }
    }
);

test!(state_host_reads, "The host reads what the guest wrote.", || {
    let (messages, events, assist) = (page(), page(), page());
    for (msr, value) in [
        (GUEST_OS_ID, IDENTITY),
        (SCONTROL, 1),
        (SIMP, messages | 1),
        (SIEFP, events | 1),
        (SINT0 + 9, 0x2_0079),
        (STIMER0_COUNT + 4, 0x1234_5678),
        (STIMER0_CONFIG + 4, 0x1792),
        (CRASH_P0 + 2, 0x5555),
        (VP_ASSIST_PAGE, assist | 1),
        (REENLIGHTENMENT_CONTROL, 0x1_0051),
    ] {
        write(msr, value);
        check_eq!(lab::msr(msr), Ok(Some(value)), "MSR {msr:#x}");
    }
    check_eq!(lab::msr(VP_INDEX), Ok(Some(0)), "the index");
});

test!(state_host_writes, "The guest reads what the host wrote.", || {
    let (messages, events) = (page(), page());
    put(messages + 8, 0x77u64);
    for (msr, value) in [
        (GUEST_OS_ID, IDENTITY),
        (SCONTROL, 1),
        (SIMP, messages | 1),
        (SIEFP, events | 1),
        (SINT0, 0),
        (SINT0 + 15, 0x44),
        (STIMER0_COUNT + 6, 0x8765_4321),
        (STIMER0_CONFIG + 6, 0x1792),
        (CRASH_P0 + 3, 0x6666),
        (REENLIGHTENMENT_CONTROL, 0x1_0052),
        (TSC_EMULATION_STATUS, 1),
    ] {
        check_eq!(lab::set_msr(msr, value), Ok(true), "MSR {msr:#x} by the host");
        check_eq!(read(msr), value, "MSR {msr:#x}");
    }
    check_eq!(word::<u64>(messages + 8), 0x77, "what was in a page that the host enables");
});

// What only the host may write: those that go on by themselves take no value, and are no error.
test!(state_host_writes_the_rest, "The host may write the MSRs that the guest may not.", || {
    for msr in [TIME_REF_COUNT, TSC_FREQUENCY, APIC_FREQUENCY] {
        let before = read(msr);
        check_eq!(lab::set_msr(msr, before / 2), Ok(true), "MSR {msr:#x} by the host");
        check!(read(msr) >= before, "MSR {msr:#x} took {}", before / 2);
    }
    let runtime = read(VP_RUNTIME);
    check_eq!(lab::set_msr(VP_RUNTIME, runtime + 1000 * SECOND), Ok(true));
    check!(read(VP_RUNTIME) >= runtime + 1000 * SECOND, "the run time");
    check_eq!(lab::set_msr(VP_INDEX, 7), Ok(true));
    check_eq!(read(VP_INDEX), 7, "the index");
});
