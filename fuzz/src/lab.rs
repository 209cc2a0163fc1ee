//! Lab requests of a hostile guest, and what the decoder must make of them: an operation whose buffers
//! are bounded, or an error number.

use payload_abi::lab::{MAGIC, MAX_BUFFER, REQUEST_SIZE, Request};
use vmm::hv::lab::Errno;
use vmm::lab::request::{Buffer, Op, decode};

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
