//! Lab requests of a hostile guest, and what the decoder must make of them: an operation whose buffers
//! are bounded, or an error number.

use payload_abi::lab::{MAGIC, MAX_BUFFER, REQUEST_SIZE, RULE_SIZE, Request, op};
use vmm::hv::lab::Errno;
use vmm::lab::request::{Buffer, Op, decode};

use crate::forms::{Choices, How, damage, how};

/// Each operation with its arguments: a number that is less than a digit, a 32-bit (`w`) or 64-bit one
/// (`l`), a buffer (`b`), one of items of 16 bytes (`i`) or of rules (`r`), a protection (`p`).
const OPERATIONS: &[(u32, &str)] = &[
    (op::IOCTL, "3wbl"),
    (op::DEVICE_ATTR, "33wll"),
    (op::MSR_FILTER, "wi"),
    (op::MEMORY, "l4"),
    (op::SLOT, "wwllwl"),
    (op::RAM_SLOT, "l"),
    (op::RAM_FLAGS, "ww"),
    (op::READ, "wlb"),
    (op::WRITE, "wlb"),
    (op::FILL, "wlll"),
    (op::HASH, "wll"),
    (op::ADVISE, "wll4"),
    (op::PROTECT, "wllp"),
    (op::DIRTY_LOG, "wb"),
    (op::CLEAR_DIRTY_LOG, "wlwb"),
    (op::HARVEST, "i"),
    (op::RECORD, "rb"),
    (op::TRANSPLANT, ""),
    (op::USERFAULT, "wlll"),
    (op::USERFAULT_COUNT, "w"),
    (op::INTERRUPT_WINDOW, "3"),
];

/// The request that these bytes make.
pub fn made(bytes: &[u8]) -> Vec<u8> {
    let (how, rest) = how(bytes);
    if how == How::Raw {
        return rest.to_vec();
    }
    let mut choices = Choices(rest);
    let (op, arguments) = OPERATIONS[choices.below(OPERATIONS.len())];
    let mut request = vec![0; 32];
    request[4..8].copy_from_slice(&op.to_le_bytes());
    for kind in arguments.bytes() {
        let mut put = |value: u64| request.extend(value.to_le_bytes());
        match kind {
            b'w' => put(choices.number(32)),
            b'l' => put(choices.number(64)),
            b'p' => put([0, 1, 3][choices.below(3)]),
            b'b' => [choices.number(40), choices.number(20)].into_iter().for_each(put),
            b'i' => [choices.number(40), 16 * choices.number(4)].into_iter().for_each(put),
            b'r' => {
                [choices.number(40), RULE_SIZE as u64 * choices.number(4)].into_iter().for_each(put)
            }
            digit => put(choices.below(usize::from(digit - b'0')) as u64),
        }
    }
    if how == How::Damaged {
        damage(&mut request, rest);
    }
    request
}

/// What the target `lab` does with its input: whether it is a request.
///
/// # Panics
/// When the decoder lets through what it must not.
pub fn check(bytes: &[u8]) -> bool {
    let mut all = [0; REQUEST_SIZE];
    let len = bytes.len().min(REQUEST_SIZE);
    all[..len].copy_from_slice(&bytes[..len]);
    // The first words are known to every guest; the rest is what it makes up.
    all[..4].copy_from_slice(&MAGIC.to_le_bytes());
    all[5..8].fill(0);
    all[12..16].fill(0);
    let bounded = |b: Buffer| {
        assert!(b.len <= MAX_BUFFER && b.at.checked_add(b.len).is_some(), "{b:?} of {all:x?}");
    };
    match decode(&Request::from_bytes(&all)) {
        Err(Errno(errno)) => {
            assert!(errno > 0, "{all:x?}");
            false
        }
        Ok(op) => {
            match op {
                Op::Ioctl { buffer, .. }
                | Op::MsrFilter { ranges: buffer, .. }
                | Op::Read { buffer, .. }
                | Op::Write { buffer, .. }
                | Op::DirtyLog { buffer, .. }
                | Op::ClearDirtyLog { buffer, .. }
                | Op::Harvest(buffer) => bounded(buffer),
                Op::Record { rules, log } => {
                    bounded(rules);
                    bounded(log);
                }
                _ => {}
            }
            true
        }
    }
}
