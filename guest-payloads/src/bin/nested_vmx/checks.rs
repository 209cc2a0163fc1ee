//! VM-entry checks: what the tests of controls, host and guest state share.

use super::{L1, check_l1};
use payload_rt::vmx::{Entry, Field, Reason, Refusal, Vm, get, set};
use payload_rt::{check, check_eq, cpuid, fail};

/// A change of one field, and what is wrong with it.
pub type Row = (Field, u64, &'static str);

/// VM-instruction error: invalid control fields.
pub const CONTROLS: u64 = 7;
/// VM-instruction error: invalid host-state fields.
pub const HOST_STATE: u64 = 8;

/// The lowest address that is too wide.
pub fn too_wide() -> u64 {
    1 << cpuid::physical_bits()
}

/// Enters with each row's change alone, which must fail with this VM-instruction error and leave L1
/// as it was. Then enters without any, which must work.
pub fn each_refused(vm: &mut Vm, error: u64, rows: &[Row]) {
    for (field, value, what) in rows {
        refused_with(vm, error, &[(*field, *value)], what);
    }
    enters(vm, "with nothing changed");
}

/// Enters with some changes, which must fail with this VM-instruction error and leave L1 as it was, and
/// takes them back.
pub fn refused_with(vm: &mut Vm, error: u64, changes: &[(Field, u64)], what: &str) {
    let old = change(changes);
    vm.start(&[]);
    let (regs, l1) = (vm.regs, L1::now());
    let entry = vm.enter();
    let expected = Entry::Refused(Refusal::Valid(error));
    check!(entry == expected, "{what}: {changes:x?}: must be error {error}, is {entry:x?}");
    check_eq!((vm.regs, L1::now()), (regs, l1), "L1 behind a refused entry, {what}");
    restore(changes, old);
}

/// Enters with each row's change alone: a VM exit that says invalid guest state, with this
/// qualification, before L2 runs. Then enters without any, which must work.
pub fn each_invalid(vm: &mut Vm, qualification: u64, rows: &[Row]) {
    for (field, value, what) in rows {
        invalid_with(vm, qualification, &[(*field, *value)], what);
    }
    enters(vm, "with nothing changed");
}

/// [`each_invalid`] for some changes at once.
pub fn invalid_with(vm: &mut Vm, qualification: u64, changes: &[(Field, u64)], what: &str) {
    // First, so that a change of RIP or RFLAGS is not overwritten.
    vm.start(&[]);
    // Should it be entered, whatever exception follows is an exit.
    let limit = get(Field::IDTR_LIMIT);
    set(Field::IDTR_LIMIT, 0);
    let old = change(changes);
    let (regs, l1) = (vm.regs, L1::now());
    let Entry::Exit(exit) = vm.enter() else {
        fail!("{what}: {changes:x?}: no VM exit, error {}", get(Field::INSTRUCTION_ERROR));
    };
    check!(exit.entry_failed(), "{what}: {changes:x?}: entered, and then {exit}");
    check_eq!(exit.reason, Reason::INVALID_GUEST_STATE, "{what}: {changes:x?}: {exit}");
    check_eq!(exit.full_reason, 0x8000_0021, "exit reason, {what}");
    check_eq!(exit.qualification, qualification, "qualification, {what}: {changes:x?}");
    check_eq!(vm.regs, regs, "registers behind a failed entry, {what}");
    check_l1(&exit, l1, what);
    for (field, value) in changes {
        let bits = u64::MAX >> (64 - field.bits());
        check_eq!(get(*field) & bits, *value & bits, "{field} behind a failed entry, {what}");
    }
    restore(changes, old);
    set(Field::IDTR_LIMIT, limit);
}

/// Enters, which must work, up to the VMCALL.
pub fn enters(vm: &mut Vm, what: &str) {
    vm.start(&[]);
    vm.run_until(Reason::VMCALL, what);
}

/// Enters with some changes, which must work, and takes them back.
pub fn enters_with(vm: &mut Vm, changes: &[(Field, u64)], what: &str) {
    let old = change(changes);
    enters(vm, what);
    restore(changes, old);
}

const MOST: usize = 8;

fn change(changes: &[(Field, u64)]) -> [u64; MOST] {
    let mut old = [0; MOST];
    for (old, (field, value)) in old.iter_mut().zip(changes) {
        *old = get(*field);
        set(*field, *value);
    }
    old
}

fn restore(changes: &[(Field, u64)], old: [u64; MOST]) {
    for ((field, _), old) in changes.iter().zip(old) {
        set(*field, old);
    }
}
