//! VM-entry checks on the host state (SDM volume 3, "Checks on Host-State Area"): each is VM-instruction
//! error 8.

use super::checks::{HOST_STATE, each_refused, enters_with, refused_with, too_wide};
use super::vm;
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::{CR4_VMXE, Field, get, set};
use payload_rt::{check_ok, reg, test};

/// An address that is not canonical, however wide linear addresses are.
const NOT_CANONICAL: u64 = 0x4000_0000_0000_0000;

test!(host_cr0, "Host CR0 must keep the bits that are fixed in VMX operation.", || {
    let mut vm = vm();
    let good = get(Field::HOST_CR0);
    let (zero, one) = (caps::read(caps::CR0_FIXED0), caps::read(caps::CR0_FIXED1));
    for bit in (0..64).map(|bit| 1 << bit) {
        if zero & bit != 0 {
            refused_with(&mut vm, HOST_STATE, &[(Field::HOST_CR0, good & !bit)], "fixed to 1");
        } else if one & bit == 0 {
            refused_with(&mut vm, HOST_STATE, &[(Field::HOST_CR0, good | bit)], "fixed to 0");
        }
    }
    enters_with(&mut vm, &[(Field::HOST_CR0, good)], "as it was");
});

test!(host_cr4, "Host CR4 must keep the bits that are fixed in VMX operation, and PAE.", || {
    let mut vm = vm();
    let good = get(Field::HOST_CR4);
    let (zero, one) = (caps::read(caps::CR4_FIXED0), caps::read(caps::CR4_FIXED1));
    for bit in (0..64).map(|bit| 1 << bit) {
        if zero & bit != 0 || bit == reg::CR4_PAE {
            refused_with(&mut vm, HOST_STATE, &[(Field::HOST_CR4, good & !bit)], "fixed to 1");
        } else if one & bit == 0 {
            refused_with(&mut vm, HOST_STATE, &[(Field::HOST_CR4, good | bit)], "fixed to 0");
        }
    }
    enters_with(&mut vm, &[(Field::HOST_CR4, good | CR4_VMXE)], "as it was");
});

test!(host_cr3, "Host CR3 beyond the physical width is refused.", || {
    let mut vm = vm();
    let good = get(Field::HOST_CR3);
    each_refused(
        &mut vm,
        HOST_STATE,
        &[
            (Field::HOST_CR3, good | too_wide(), "too wide"),
            (Field::HOST_CR3, good | 1 << 51, "bit 51"),
            (Field::HOST_CR3, good | 1 << 62, "bit 62"),
        ],
    );
});

test!(host_canonical, "Host addresses that are not canonical are refused, each of them.", || {
    let mut vm = vm();
    for field in [
        Field::HOST_FS_BASE,
        Field::HOST_GS_BASE,
        Field::HOST_TR_BASE,
        Field::HOST_GDTR_BASE,
        Field::HOST_IDTR_BASE,
        Field::HOST_SYSENTER_ESP,
        Field::HOST_SYSENTER_EIP,
        Field::HOST_RIP,
    ] {
        each_refused(
            &mut vm,
            HOST_STATE,
            &[
                (field, NOT_CANONICAL, "not canonical"),
                (field, 0x0100_0000_0000_0000, "just not canonical with 57 bits"),
                (field, 0xfeff_ffff_ffff_ffff, "just not canonical from above"),
            ],
        );
    }
});

test!(host_selectors, "Host selectors with RPL or TI are refused, and null CS and TR.", || {
    let mut vm = vm();
    for field in [
        Field::HOST_ES,
        Field::HOST_CS,
        Field::HOST_SS,
        Field::HOST_DS,
        Field::HOST_FS,
        Field::HOST_GS,
        Field::HOST_TR,
    ] {
        let good = get(field) | 8;
        each_refused(
            &mut vm,
            HOST_STATE,
            &[
                (field, good | 1, "RPL 1"),
                (field, good | 2, "RPL 2"),
                (field, good | 3, "RPL 3"),
                (field, good | 4, "TI"),
            ],
        );
    }
    each_refused(
        &mut vm,
        HOST_STATE,
        &[(Field::HOST_CS, 0, "null CS"), (Field::HOST_TR, 0, "null TR")],
    );
    enters_with(&mut vm, &[(Field::HOST_DS, 0), (Field::HOST_ES, 0)], "null DS and ES");
});

test!(host_address_space, "In IA-32e mode host address-space size must be 1.", || {
    let mut vm = vm();
    let exit = get(Field::EXIT_CONTROLS) & !EXIT_HOST64;
    let entry = get(Field::ENTRY_CONTROLS) & !ENTRY_GUEST64;
    refused_with(&mut vm, HOST_STATE, &[(Field::EXIT_CONTROLS, exit)], "a 32-bit host");
    let changes = [(Field::EXIT_CONTROLS, exit), (Field::ENTRY_CONTROLS, entry)];
    refused_with(&mut vm, HOST_STATE, &changes, "a 32-bit host and guest");
});

test!(
    host_efer,
    "Host EFER that is loaded must have no reserved bit, and LMA and LME as host address-space size.",
    || {
        let mut vm = vm();
        vm.add(Field::EXIT_CONTROLS, EXIT_LOAD_EFER);
        let good = check_ok!(reg::rdmsr(reg::EFER));
        set(Field::HOST_EFER, good);
        each_refused(
            &mut vm,
            HOST_STATE,
            &[
                (Field::HOST_EFER, good & !reg::EFER_LMA, "LMA clear"),
                (Field::HOST_EFER, good & !reg::EFER_LME, "LME clear"),
                (Field::HOST_EFER, good & !(reg::EFER_LMA | reg::EFER_LME), "LMA and LME clear"),
                (Field::HOST_EFER, good | 1 << 1, "bit 1"),
                (Field::HOST_EFER, good | 1 << 9, "bit 9"),
                (Field::HOST_EFER, good | 1 << 16, "bit 16"),
                (Field::HOST_EFER, good | 1 << 63, "bit 63"),
            ],
        );
        vm.remove(Field::EXIT_CONTROLS, EXIT_LOAD_EFER);
        enters_with(&mut vm, &[(Field::HOST_EFER, u64::MAX)], "an EFER that is not loaded");
    }
);

test!(host_pat, "Host PAT that is loaded must have memory types only: 0, 1, 4, 5, 6, 7.", || {
    let mut vm = vm();
    vm.add(Field::EXIT_CONTROLS, EXIT_LOAD_PAT);
    let good = check_ok!(reg::rdmsr(reg::PAT));
    set(Field::HOST_PAT, good);
    for byte in 0..8 {
        let with = |kind: u64| good & !(0xff << (8 * byte)) | kind << (8 * byte);
        each_refused(
            &mut vm,
            HOST_STATE,
            &[
                (Field::HOST_PAT, with(2), "type 2"),
                (Field::HOST_PAT, with(3), "type 3"),
                (Field::HOST_PAT, with(8), "type 8"),
                (Field::HOST_PAT, with(0x86), "bit 7 of a byte"),
            ],
        );
    }
    vm.remove(Field::EXIT_CONTROLS, EXIT_LOAD_PAT);
    enters_with(&mut vm, &[(Field::HOST_PAT, u64::MAX)], "a PAT that is not loaded");
});
