//! VM-entry checks on the controls (SDM volume 3, "Checks on VMX Controls": VM-execution, VM-exit and
//! VM-entry control fields): each is VM-instruction error 7.

use super::checks::{CONTROLS, each_refused, enters, enters_with, refused_with, too_wide};
use super::vm;
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::{Field, Vm, get, set};
use payload_rt::{check_ok, frames, mem, skip, test};

/// Each bit that must be 1 cleared, and each that may not be 1 set.
fn reserved_bits(vm: &mut Vm, field: Field, allowed: Allowed) {
    let good = get(field);
    for bit in (0..32).map(|bit| 1 << bit) {
        if allowed.must & bit != 0 {
            refused_with(vm, CONTROLS, &[(field, good & !bit)], "a bit that must be 1 is 0");
        } else if allowed.may & bit == 0 {
            refused_with(vm, CONTROLS, &[(field, good | bit)], "a bit that may not be 1 is 1");
        }
    }
    enters(vm, "with nothing changed");
}

test!(controls_pin, "Reserved pin-based controls are refused, bit by bit.", || {
    reserved_bits(&mut vm(), Field::PIN_CONTROLS, caps::pin());
});

test!(controls_cpu, "Reserved primary processor-based controls are refused, bit by bit.", || {
    reserved_bits(&mut vm(), Field::CPU_CONTROLS, caps::cpu());
});

test!(
    controls_cpu2,
    "Reserved secondary processor-based controls are refused, bit by bit.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, 0);
        reserved_bits(&mut vm, Field::CPU_CONTROLS2, caps::cpu2());
    }
);

test!(
    controls_cpu2_inactive,
    "Secondary controls are not looked at until they are activated.",
    || {
        let mut vm = vm();
        enters_with(&mut vm, &[(Field::CPU_CONTROLS2, 0xffff_ffff)], "all ones, not activated");
    }
);

test!(controls_exit, "Reserved VM-exit controls are refused, bit by bit.", || {
    reserved_bits(&mut vm(), Field::EXIT_CONTROLS, caps::exit());
});

test!(controls_entry, "Reserved VM-entry controls are refused, bit by bit.", || {
    reserved_bits(&mut vm(), Field::ENTRY_CONTROLS, caps::entry());
});

test!(controls_cr3_targets, "A CR3-target count above that of IA32_VMX_MISC is refused.", || {
    let most = caps::read(caps::MISC) >> 16 & 0x1ff;
    each_refused(
        &mut vm(),
        CONTROLS,
        &[
            (Field::CR3_TARGET_COUNT, most + 1, "one too many"),
            (Field::CR3_TARGET_COUNT, 0x100, "far too many"),
            (Field::CR3_TARGET_COUNT, 0xffff_ffff, "as many as there can be"),
        ],
    );
});

test!(
    controls_bitmaps,
    "Addresses of I/O and MSR bitmaps that are not aligned or too wide are refused, if they are used.",
    || {
        let mut vm = vm();
        let page = frames::alloc().address();
        let io = [Field::IO_BITMAP_A, Field::IO_BITMAP_B];
        for field in io {
            set(field, page);
            enters_with(&mut vm, &[(field, page + 1)], "I/O bitmaps that are not used");
        }
        vm.add(Field::CPU_CONTROLS, CPU_IO_BITMAPS);
        for field in [io[0], io[1], Field::MSR_BITMAP] {
            each_refused(
                &mut vm,
                CONTROLS,
                &[
                    (field, page + 1, "not aligned"),
                    (field, page + 0x800, "not aligned to a page"),
                    (field, too_wide(), "too wide"),
                    (field, 1 << 63, "far too wide"),
                ],
            );
        }
        vm.remove(Field::CPU_CONTROLS, CPU_MSR_BITMAPS);
        enters_with(&mut vm, &[(Field::MSR_BITMAP, 1)], "an MSR bitmap that is not used");
    }
);

test!(
    controls_nmi,
    "Virtual NMIs need NMI exiting, and NMI-window exiting needs virtual NMIs.",
    || {
        let mut vm = vm();
        caps::pin().with(PIN_NMI | PIN_VIRTUAL_NMIS, "pin-based");
        caps::cpu().with(CPU_NMI_WINDOW, "processor-based");
        let (pin, cpu) = (get(Field::PIN_CONTROLS), get(Field::CPU_CONTROLS));
        let window = (Field::CPU_CONTROLS, cpu | CPU_NMI_WINDOW);
        let pins = |bits| (Field::PIN_CONTROLS, pin | bits);
        refused_with(&mut vm, CONTROLS, &[pins(PIN_VIRTUAL_NMIS)], "virtual NMIs alone");
        refused_with(&mut vm, CONTROLS, &[window], "NMI window alone");
        refused_with(
            &mut vm,
            CONTROLS,
            &[pins(PIN_NMI), window],
            "NMI window without virtual NMIs",
        );
        enters_with(&mut vm, &[pins(PIN_NMI)], "NMI exiting");
        enters_with(&mut vm, &[pins(PIN_NMI | PIN_VIRTUAL_NMIS)], "NMI exiting and virtual NMIs");
    }
);

test!(controls_vpid, "VPID 0 is refused once VPIDs are enabled.", || {
    let mut vm = vm();
    enters_with(&mut vm, &[(Field::VPID, 0)], "VPID 0, not enabled");
    vm.add(Field::CPU_CONTROLS2, CPU2_VPID);
    set(Field::VPID, 1);
    each_refused(&mut vm, CONTROLS, &[(Field::VPID, 0, "VPID 0")]);
    enters_with(&mut vm, &[(Field::VPID, 0xffff)], "VPID 0xffff");
});

test!(
    controls_eptp,
    "An EPT pointer with a memory type, walk length or address that cannot be is refused.",
    || {
        let mut vm = vm();
        let ept = vm.with_ept();
        let good = ept.pointer();
        let caps = caps::ept_vpid();
        let types = (0..8u64).filter(|kind| match kind {
            0 => caps & EPT_UC == 0,
            6 => caps & EPT_WB == 0,
            _ => true,
        });
        for kind in types {
            let pointer = (Field::EPTP, good & !7 | kind);
            refused_with(&mut vm, CONTROLS, &[pointer], "memory type of the EPT pointer");
        }
        for length in [0, 1, 2, 5, 7] {
            let pointer = (Field::EPTP, good & !(7 << 3) | length << 3);
            refused_with(&mut vm, CONTROLS, &[pointer], "walk length of the EPT pointer");
        }
        for bit in 7..12 {
            let pointer = (Field::EPTP, good | 1 << bit);
            refused_with(&mut vm, CONTROLS, &[pointer], "reserved bit of the EPT pointer");
        }
        if caps & EPT_ACCESSED_DIRTY == 0 {
            let pointer = (Field::EPTP, good | 1 << 6);
            refused_with(&mut vm, CONTROLS, &[pointer], "accessed and dirty flags, not offered");
        }
        for bits in [too_wide(), 1 << 51, 1 << 63] {
            refused_with(
                &mut vm,
                CONTROLS,
                &[(Field::EPTP, good | bits)],
                "too wide an EPT pointer",
            );
        }
        enters(&mut vm, "with nothing changed");
        vm.remove(Field::CPU_CONTROLS2, CPU2_EPT);
        enters_with(&mut vm, &[(Field::EPTP, u64::MAX)], "an EPT pointer that is not used");
    }
);

test!(controls_need_ept, "Unrestricted guest and PML need EPT.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, 0);
    let good = get(Field::CPU_CONTROLS2);
    let may = caps::cpu2().may;
    let offered =
        [(CPU2_UNRESTRICTED, "unrestricted guest without EPT"), (CPU2_PML, "PML without EPT")];
    if offered.iter().all(|(control, _)| may & control == 0) {
        skip!("neither unrestricted guest nor PML");
    }
    for (control, what) in offered.into_iter().filter(|(control, _)| may & control != 0) {
        refused_with(&mut vm, CONTROLS, &[(Field::CPU_CONTROLS2, good | control)], what);
    }
    enters(&mut vm, "with neither");
});

test!(controls_pml, "A PML address that is not aligned or too wide is refused.", || {
    let mut vm = vm();
    vm.with_ept();
    vm.add(Field::CPU_CONTROLS2, CPU2_PML);
    let page = frames::alloc().address();
    set(Field::PML_ADDRESS, page);
    each_refused(
        &mut vm,
        CONTROLS,
        &[
            (Field::PML_ADDRESS, page + 8, "not aligned"),
            (Field::PML_ADDRESS, page | too_wide(), "too wide"),
        ],
    );
});

test!(controls_tpr_shadow, "With the TPR shadow a bad virtual-APIC address is refused.", || {
    let mut vm = vm();
    let page = frames::alloc().address();
    set(Field::VIRTUAL_APIC, page);
    enters_with(&mut vm, &[(Field::VIRTUAL_APIC, 1)], "a virtual-APIC address, not used");
    vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
    each_refused(
        &mut vm,
        CONTROLS,
        &[
            (Field::VIRTUAL_APIC, page + 0x10, "not aligned"),
            (Field::VIRTUAL_APIC, page | too_wide(), "too wide"),
        ],
    );
});

test!(
    controls_tpr_threshold,
    "With the TPR shadow a threshold above 15, or above the virtual TPR's class, is refused.",
    || {
        let mut vm = vm();
        let page = frames::alloc().address();
        set(Field::VIRTUAL_APIC, page);
        vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
        check_ok!(mem::write(page + 0x80, 0x50u32));
        each_refused(
            &mut vm,
            CONTROLS,
            &[
                (Field::TPR_THRESHOLD, 0x10, "bit 4"),
                (Field::TPR_THRESHOLD, 0x8000_0000, "bit 31"),
                (Field::TPR_THRESHOLD, 6, "above bits 7:4 of VTPR"),
                (Field::TPR_THRESHOLD, 15, "far above bits 7:4 of VTPR"),
            ],
        );
        enters_with(&mut vm, &[(Field::TPR_THRESHOLD, 5)], "the threshold at VTPR");
    }
);

test!(
    controls_apic,
    "APIC virtualization needs the TPR shadow; x2APIC mode excludes APIC accesses; addresses are checked.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, 0);
        let good = get(Field::CPU_CONTROLS2);
        let may = caps::cpu2().may;
        let page = frames::alloc().address();
        set(Field::VIRTUAL_APIC, page);
        set(Field::APIC_ACCESS, page);
        for (control, what) in [
            (CPU2_X2APIC, "virtualize x2APIC mode without the TPR shadow"),
            (CPU2_APIC_REGISTERS, "APIC-register virtualization without the TPR shadow"),
            (CPU2_INTERRUPTS, "virtual-interrupt delivery without the TPR shadow"),
        ] {
            if may & control != 0 {
                refused_with(&mut vm, CONTROLS, &[(Field::CPU_CONTROLS2, good | control)], what);
            }
        }
        vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
        let both = CPU2_X2APIC | CPU2_APIC_ACCESSES;
        if may & both == both {
            refused_with(
                &mut vm,
                CONTROLS,
                &[(Field::CPU_CONTROLS2, good | both)],
                "x2APIC and accesses",
            );
        }
        if may & CPU2_INTERRUPTS != 0 {
            let changes = [(Field::CPU_CONTROLS2, good | CPU2_INTERRUPTS)];
            refused_with(
                &mut vm,
                CONTROLS,
                &changes,
                "delivery without external-interrupt exiting",
            );
        }
        vm.add(Field::CPU_CONTROLS2, CPU2_APIC_ACCESSES);
        each_refused(
            &mut vm,
            CONTROLS,
            &[
                (Field::APIC_ACCESS, page + 0x10, "APIC-access address not aligned"),
                (Field::APIC_ACCESS, page | too_wide(), "APIC-access address too wide"),
            ],
        );
    }
);

test!(
    controls_posted_interrupts,
    "Posted interrupts need virtual-interrupt delivery, acknowledgement on exit and good addresses.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_POSTED | PIN_EXTERNAL);
        vm.add(Field::EXIT_CONTROLS, EXIT_ACKNOWLEDGE);
        let page = frames::alloc().address();
        set(Field::VIRTUAL_APIC, page);
        set(Field::POSTED_DESCRIPTOR, page);
        vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
        refused_with(&mut vm, CONTROLS, &[], "posted interrupts without delivery");
        vm.add(Field::CPU_CONTROLS2, CPU2_INTERRUPTS);
        let exit = get(Field::EXIT_CONTROLS);
        each_refused(
            &mut vm,
            CONTROLS,
            &[
                (Field::POSTED_VECTOR, 0x100, "vector above 255"),
                (Field::POSTED_DESCRIPTOR, page + 0x20, "descriptor not aligned to 64"),
                (Field::POSTED_DESCRIPTOR, page | too_wide(), "descriptor too wide"),
                (Field::EXIT_CONTROLS, exit & !EXIT_ACKNOWLEDGE, "no acknowledgement"),
            ],
        );
    }
);

test!(controls_shadow, "Bad addresses of the VMREAD and VMWRITE bitmaps are refused.", || {
    let mut vm = vm();
    vm.add(Field::CPU_CONTROLS2, CPU2_SHADOW);
    let page = frames::alloc().address();
    set(Field::VMREAD_BITMAP, page);
    set(Field::VMWRITE_BITMAP, page);
    each_refused(
        &mut vm,
        CONTROLS,
        &[
            (Field::VMREAD_BITMAP, page + 8, "VMREAD bitmap not aligned"),
            (Field::VMREAD_BITMAP, page | too_wide(), "VMREAD bitmap too wide"),
            (Field::VMWRITE_BITMAP, page + 8, "VMWRITE bitmap not aligned"),
            (Field::VMWRITE_BITMAP, page | too_wide(), "VMWRITE bitmap too wide"),
        ],
    );
});

test!(controls_timer, "Saving the preemption timer's value needs the timer.", || {
    let mut vm = vm();
    caps::exit().with(EXIT_SAVE_TIMER, "VM-exit");
    let good = get(Field::EXIT_CONTROLS);
    let row = (Field::EXIT_CONTROLS, good | EXIT_SAVE_TIMER, "no timer whose value to save");
    each_refused(&mut vm, CONTROLS, &[row]);
    vm.add(Field::PIN_CONTROLS, PIN_TIMER);
    set(Field::PREEMPTION_TIMER, 0xffff_ffff);
    enters_with(&mut vm, &[(Field::EXIT_CONTROLS, good | EXIT_SAVE_TIMER)], "with the timer");
});

test!(
    controls_msr_areas,
    "Addresses of MSR areas that are not aligned to 16, or whose end is too wide, are refused.",
    || {
        let mut vm = vm();
        let page = frames::alloc().address();
        for (address, count, what) in [
            (Field::EXIT_MSR_STORE, Field::EXIT_MSR_STORE_COUNT, "VM-exit MSR store"),
            (Field::EXIT_MSR_LOAD, Field::EXIT_MSR_LOAD_COUNT, "VM-exit MSR load"),
            (Field::ENTRY_MSR_LOAD, Field::ENTRY_MSR_LOAD_COUNT, "VM-entry MSR load"),
        ] {
            for bad in [page + 1, page + 8, page | too_wide(), page | 1 << 63, too_wide() - 16] {
                enters_with(&mut vm, &[(address, bad)], "an area that has no entry");
                // Two entries, so that the last of the addresses reaches over the width.
                refused_with(&mut vm, CONTROLS, &[(address, bad), (count, 2)], what);
            }
        }
        enters(&mut vm, "with no area");
    }
);
