//! The list of ioctls, and what their arguments must be.

use super::super::api::IOCTLS;
use super::table::{Shape, TABLE, find};
use super::*;

#[test]
fn lengths_are_those_of_kvms_structures() {
    let sizes = [
        (table::GET_REGS, size_of::<kvm_regs>()),
        (table::GET_SREGS, size_of::<kvm_sregs>()),
        (table::GET_SREGS2, size_of::<kvm_sregs2>()),
        (table::GET_EVENTS, size_of::<kvm_vcpu_events>()),
        (table::GET_DEBUGREGS, size_of::<kvm_debugregs>()),
        (table::GET_XCRS, size_of::<kvm_xcrs>()),
        (table::GET_LAPIC, size_of::<kvm_lapic_state>()),
        (table::GET_CLOCK, size_of::<kvm_clock_data>()),
        (table::GET_IRQCHIP, size_of::<kvm_irqchip>()),
        (table::GET_PIT2, size_of::<kvm_pit_state2>()),
        (table::ENABLE_CAP, size_of::<kvm_enable_cap>()),
        (table::SET_GUEST_DEBUG, size_of::<kvm_guest_debug>()),
        (SET_USER_MEMORY_REGION, size_of::<kvm_userspace_memory_region>()),
        (GET_DIRTY_LOG, size_of::<kvm_dirty_log>()),
        (CLEAR_DIRTY_LOG, size_of::<kvm_clear_dirty_log>()),
        (SET_MSR_FILTER, size_of::<kvm_msr_filter>()),
        (GET_DEVICE_ATTR, size_of::<kvm_device_attr>()),
    ];
    for (number, size) in sizes {
        assert_eq!((number >> 16 & 0x3fff) as usize, size, "{number:#x}");
    }
}

#[test]
fn an_ioctl_is_in_the_table_once() {
    for (i, a) in TABLE.iter().enumerate() {
        let same = |b: &&table::Allowed| (a.target, a.number) == (b.target, b.number);
        assert_eq!(TABLE.iter().position(|b| same(&b)), Some(i), "{:#x}", a.number);
    }
}

#[test]
fn what_is_not_listed_is_refused() {
    // KVM_RUN, KVM_SET_USER_MEMORY_REGION, KVM_CREATE_VCPU.
    for number in [table::io(0x80), SET_USER_MEMORY_REGION, table::io(0x41)] {
        for target in [Target::System, Target::Vm, Target::Vcpu] {
            assert!(find(target, number, &[]).is_err(), "{number:#x}");
        }
    }
    let mut cap = [0; 104];
    cap[0] = 163;
    assert!(find(Target::Vcpu, table::ENABLE_CAP, &cap).is_err());
    cap[0] = 188;
    assert!(find(Target::Vm, table::ENABLE_CAP, &cap).is_ok());
}

#[test]
fn an_argument_has_its_length() {
    let room = |shape: Shape, bytes: &[u8], value| shape.room(bytes, value, 8192).map_err(|e| e.0);
    let (inval, big) = (Err(libc::EINVAL), Err(libc::E2BIG));
    assert_eq!(room(Shape::Nothing, &[], 0), Ok(0));
    assert_eq!(room(Shape::Nothing, &[], 1), inval);
    assert_eq!(room(Shape::Number, &[1], 1), inval);
    assert_eq!(room(Shape::Bytes(4), &[0; 4], 0), Ok(4));
    assert_eq!(room(Shape::Bytes(4), &[0; 4], 1), inval);
    assert_eq!(room(Shape::Bytes(4), &[0; 5], 0), inval);
    let mut msrs = [0; 24];
    msrs[0] = 1;
    assert_eq!(room(table::MSRS, &msrs, 0), Ok(24));
    msrs[0] = 2;
    assert_eq!(room(table::MSRS, &msrs, 0), big);
    assert_eq!(room(table::MSRS, &[0xff; 24], 0), big);
    assert_eq!(room(table::MSRS, &[0; 7], 0), inval);
    assert_eq!(room(Shape::Sized, &[0; 127], 0), inval);
    assert_eq!(room(Shape::Sized, &[0xff; 128], 0), big);
    assert_eq!(room(Shape::Xsave, &[0; 4095], 0), inval);
    assert_eq!(room(Shape::Xsave, &[0; 4096], 0), Ok(8192));
}

#[test]
fn the_board_has_its_slots_in_each_of_its_address_spaces() {
    let all = [0, 1, 2, 0x1_0000, 0x1_0001, 0x1_0002, 0x2_0000, u32::MAX];
    let of = |board: Board| all.map(|slot| board.has(slot));
    let (yes, no) = (true, false);
    let both = of(Board { slots: 2, spaces: 2 });
    assert_eq!(both, [yes, yes, no, yes, yes, no, no, no]);
    assert_eq!(of(Board { slots: 2, spaces: 1 }), [yes, yes, no, no, no, no, no, no]);
}

#[test]
fn all_ioctls_of_the_table_have_a_name() {
    for allowed in TABLE {
        let (number, direction) = (allowed.number & 0xff, allowed.number >> 30);
        let named = IOCTLS.iter().find(|ioctl| {
            (u32::from(ioctl.number), ioctl.direction as u32) == (number, direction)
                && ioctl.on.contains(&allowed.target)
        });
        assert!(named.is_some(), "{:?} {:#x}", allowed.target, allowed.number);
    }
}
