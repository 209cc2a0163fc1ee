//! The state of a vCPU and its VM: what KVM's ioctls give and take of it, and whether a guest goes on
//! where it was after all of it went into another VM (Linux, Documentation/virt/kvm/api.rst, by the title
//! of its sections).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "state/debug.rs"]
mod debug;
#[path = "state/events.rs"]
mod events;
#[path = "state/interrupts.rs"]
mod interrupts;
#[path = "state/msrs.rs"]
mod msrs;
#[path = "state/nested_svm.rs"]
mod nested_svm;
#[path = "state/nested_vmx.rs"]
mod nested_vmx;
#[path = "state/transplant.rs"]
mod transplant;
#[path = "state/vcpu.rs"]
mod vcpu;
#[path = "state/vm.rs"]
mod vm;

use payload_rt::lab::{self, Chain, Place, kvm, op, target};
use payload_rt::{check_eq, check_ok};

/// Bytes of a page.
const PAGE: u64 = 4096;
/// How long what is due may take, in microseconds.
const PATIENCE: u64 = 10_000_000;

/// Goes on in another VM.
#[track_caller]
fn transplant() {
    check_ok!(lab::transplant(), "into another VM");
}

/// A chain of one request, which goes on in another VM: for a test's own OUT.
fn transplant_chain() -> Chain {
    let mut chain = Chain::new();
    chain.ask(lab::op::TRANSPLANT, &[]);
    chain
}

/// A nested state, of either kind: 128 bytes of header, and a VMCB or VMCS.
type Nested = [u64; 528];

/// Flags of a nested state: L2 runs, a VM entry is under way, GIF is set.
const GUEST_MODE: u64 = 1;
const RUN_PENDING: u64 = 2;
const GIF_SET: u64 = 1 << 8;

/// What a buffer for a nested state holds before it is filled: its own length.
fn empty() -> Nested {
    let mut state = [0; 528];
    state[0] = (size_of::<Nested>() as u64) << 32;
    state
}

/// KVM_GET_NESTED_STATE.
fn nested() -> Nested {
    let mut state = empty();
    check_ok!(nested_call(kvm::number::GET_NESTED_STATE, &mut state), "KVM_GET_NESTED_STATE");
    state
}

/// KVM_SET_NESTED_STATE.
fn set_nested(state: &Nested) -> lab::Result<()> {
    nested_call(kvm::number::SET_NESTED_STATE, &mut { *state })
}

fn nested_call(number: u32, state: &mut Nested) -> lab::Result<()> {
    let (at, len) = (state.as_mut_ptr() as u64, size_of::<Nested>() as u64);
    lab::ask(op::IOCTL, &[target::VCPU, number.into(), at, len]).map(|_| ())
}

/// A chain that gets the nested state, and sets it again if told to.
fn round_trip(set: bool) -> (Chain, Place<Nested>) {
    let mut chain = Chain::new();
    let place = chain.place(empty());
    chain.ioctl(target::VCPU, kvm::number::GET_NESTED_STATE, place);
    if set {
        chain.ioctl(target::VCPU, kvm::number::SET_NESTED_STATE, place);
    }
    (chain, place)
}

/// Checks that this is refused as invalid.
#[track_caller]
fn check_nested_refused(state: &Nested, what: &str) {
    check_eq!(set_nested(state), Err(lab::Errno::EINVAL), "{what}");
}
