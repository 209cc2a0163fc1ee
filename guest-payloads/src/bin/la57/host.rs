//! Five levels as the host sees them, and more than one CPU with them (Linux, Documentation/virt/kvm/api.rst:
//! KVM_GET_SREGS, KVM_SET_SREGS, KVM_TRANSLATE).

use crate::{ADDRESSES, AT, check_fault, frame_with, map};
use payload_rt::lab::{self, Errno, kvm};
use payload_rt::levels::{self, LOWER_END, UPPER};
use payload_rt::*;

test!(host_sees, "KVM_GET_SREGS has CR4.LA57 and the top table of five levels.", || {
    check_eq!(check_ok!(lab::sregs()).cr4 & reg::CR4_LA57, 0, "before");
    let root = levels::five();
    let sregs = check_ok!(lab::sregs());
    check_eq!((sregs.cr3, sregs.cr4), (root, reg::cr4()), "CR3 and CR4");
    check!(sregs.cr4 & reg::CR4_LA57 != 0);
    // What it gave, it takes.
    check_ok!(lab::set_sregs(&sregs));
    map(AT, frame_with(0x57));
    check_eq!(mem::read::<u64>(AT), Ok(0x57));
});

// So a guest with five levels is restored: KVM_SET_SREGS changes all at once.
test!(host_switches, "KVM_SET_SREGS takes a guest to five levels and back.", || {
    cpuid::LA57.require();
    let four = check_ok!(lab::sregs());
    let root = levels::top_over(four.cr3);
    let five = kvm::Sregs { cr3: root, cr4: four.cr4 | reg::CR4_LA57, ..four };
    for round in 0..4_u64 {
        check_ok!(lab::set_sregs(&five));
        check_eq!((reg::cr3(), reg::cr4()), (root, five.cr4), "round {round}: five levels");
        map(AT, frame_with(round));
        check_eq!(mem::read::<u64>(AT), Ok(round), "round {round}");
        check_ok!(lab::set_sregs(&four));
        check_eq!((reg::cr3(), reg::cr4()), (four.cr3, four.cr4), "round {round}: four levels");
        check_trap!(mem::read::<u64>(AT), trap::GP, 0, "round {round}: an address of 57 bits");
    }
});

test!(host_refused, "KVM_SET_SREGS refuses CR4.LA57 where CPUID lacks it.", || {
    if cpuid::LA57.present() {
        skip!("CPUID has LA57");
    }
    let before = check_ok!(lab::sregs());
    let wrong = kvm::Sregs { cr4: before.cr4 | reg::CR4_LA57, ..before };
    check_eq!(lab::set_sregs(&wrong), Err(Errno::EINVAL));
    check_eq!(check_ok!(lab::sregs()), before, "afterwards");
});

fn translate(linear_address: u64) -> (bool, u64) {
    let asked = kvm::Translation { linear_address, ..Default::default() };
    let found = check_ok!(lab::swap(kvm::TRANSLATE, asked));
    (found.valid != 0, found.physical_address)
}

test!(host_translates, "KVM_TRANSLATE walks five levels.", || {
    levels::five();
    for at in ADDRESSES {
        check!(!translate(at).0, "{at:#x} before");
        let frame = frame_with(0);
        map(at, frame);
        check_eq!(translate(at + 0x123), (true, frame + 0x123), "{at:#x}");
        let top = crate::top(at);
        paging::set(at, &top, top.value & !1);
        check!(!translate(at).0, "{at:#x} without its entry of the fifth level");
        paging::set(at, &top, top.value);
    }
});

test!(moves, "A guest with five levels goes on in another VM.", || {
    let root = levels::five();
    map(AT, frame_with(0));
    check_ok!(reg::wrmsr(reg::KERNEL_GS_BASE, UPPER + 0x1000));
    check_ok!(reg::wrmsr(reg::FS_BASE, LOWER_END - 0x1000));
    check_ok!(reg::set_dr(0, UPPER + 0x40));
    for round in 1..4_u64 {
        check_ok!(mem::write(AT, round));
        check_ok!(lab::transplant());
        check_eq!(reg::cr3(), root, "CR3");
        check!(reg::cr4() & reg::CR4_LA57 != 0, "CR4.LA57");
        check_eq!(mem::read::<u64>(AT), Ok(round), "memory at a 57-bit address");
        check_eq!(reg::rdmsr(reg::KERNEL_GS_BASE), Ok(UPPER + 0x1000), "KERNEL_GS_BASE");
        check_eq!(reg::rdmsr(reg::FS_BASE), Ok(LOWER_END - 0x1000), "FS_BASE");
        check_eq!(reg::dr(0), Ok(UPPER + 0x40), "DR0");
        check_fault(mem::read::<u8>(AT + 0x1000), 0, AT + 0x1000, "a read beside it");
    }
});

const MSRS: [u32; 4] = [reg::LSTAR, reg::FS_BASE, reg::GS_BASE, reg::KERNEL_GS_BASE];

fn host_sets_msrs() {
    for msr in MSRS {
        for value in [LOWER_END - 1, UPPER, 1 << 50, 0] {
            check_eq!(lab::set_msr(msr, value), Ok(true), "MSR {msr:#x} = {value:#x}");
            check_eq!(lab::msr(msr), Ok(Some(value)), "MSR {msr:#x}");
            check_eq!(reg::rdmsr(msr), Ok(value), "MSR {msr:#x} in the guest");
        }
        for value in [LOWER_END, UPPER - 1, 1 << 63] {
            check_eq!(lab::set_msr(msr, value), Ok(false), "MSR {msr:#x} = {value:#x}");
            check_eq!(lab::msr(msr), Ok(Some(0)), "MSR {msr:#x} after {value:#x}");
        }
    }
}

test!(host_msrs, "KVM_SET_MSRS takes 57 bits for linear addresses, and refuses more.", || {
    levels::five();
    host_sets_msrs();
});

// A processor goes by what it has, not by CR4.LA57; so the order in which state is restored is free.
test!(
    host_msrs_with_four,
    "KVM_SET_MSRS takes 57 bits while the guest has four levels, too.",
    || {
        cpuid::LA57.require();
        host_sets_msrs();
    }
);

test!(cpus, "Each CPU has its own number of levels, over the same tables.", || {
    let four = reg::cr3();
    let cpus = smp::start();
    check!(cpus >= 3, "{cpus} CPUs, must be 3");
    let root = levels::five();
    map(AT, frame_with(0x57));
    let others =
        |cpu: usize| smp::run_on(cpu, || (reg::cr4() & reg::CR4_LA57, mem::read::<u64>(AT)));
    for round in 0..3_u64 {
        smp::run_on(1, || levels::switch(root, true));
        check_ok!(mem::write(AT, round));
        check_eq!(others(1), (reg::CR4_LA57, Ok(round)), "round {round}: cpu 1 with five levels");
        let (la57, read) = others(2);
        check_eq!(la57, 0, "round {round}: cpu 2 has four levels");
        check_trap!(read, trap::GP, 0, "round {round}: cpu 2");
        // What is in the first 256 TiB all see by the same tables.
        let low = 0x1234_5678_9000;
        map(low, frame_with(round + 100));
        smp::on_all(|_| paging::flush());
        for cpu in 0..3 {
            let seen = smp::run_on(cpu, || mem::read::<u64>(low));
            check_eq!(seen, Ok(round + 100), "round {round}: cpu {cpu}");
        }
        smp::run_on(1, || levels::switch(four, false));
        check_eq!(others(1).0, 0, "round {round}: cpu 1 with four levels");
        check_eq!(mem::read::<u64>(AT), Ok(round), "round {round}: cpu 0");
    }
});
