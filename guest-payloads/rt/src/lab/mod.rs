//! The lab: KVM ioctls on the machine that the payload runs in, asked for by the payload.
//!
//! The machine must have one (`machine.lab = true` in the case, `vmm run --lab`). Every call is one
//! OUT; when it returns, the host has done it. Calls on the vCPU are on the one that asks. What
//! registers the host sees or sets are those behind the OUT, inside this module: RIP and RSP there,
//! what the test keeps in memory or callee-saved registers as the test left it.
//!
//! ```ignore
//! test!(written_pages_are_logged, "The log names the page that was written.", || {
//!     let memory = check_ok!(lab::Memory::new(16 * 4096, lab::Backing::Small));
//!     let slot = check_ok!(memory.slot(lab::AREA, 0, 16 * 4096, kvm::slot::LOG_DIRTY));
//!     check_ok!(mem::write(lab::AREA + 5 * 4096, 0xabu8));
//!     let mut bitmap = [0u64; 1];
//!     check_ok!(slot.dirty_log(&mut bitmap));
//!     check_eq!(bitmap[0], 1 << 5);
//!     check_eq!(memory.read_u64(5 * 4096), Ok(0xab));
//! });
//! ```

pub mod calls;
pub mod exits;
pub mod kvm;
pub mod memory;

use crate::{port, report};
use core::fmt;
use payload_abi::lab::{self as abi, MAGIC, Request, UNANSWERED};

pub use abi::{DirtyPage, LogEntry, PORT, hash, kind, op, step, target};
pub use calls::*;
pub use exits::{Chain, Log, Place, Rule, record, record_many, until_exit};
pub use kvm::Plain;
pub use memory::{AREA, Advice, Backing, Memory, Protection, RamSlot, Slot};

/// An error number of Linux, positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub u32);

macro_rules! errnos {
    ($($name:ident = $number:literal;)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`.")] pub const $name: Errno = Errno($number);)*

            /// Its name; empty for a rare one.
            pub const fn name(self) -> &'static str {
                match self.0 {
                    $($number => stringify!($name),)*
                    _ => "",
                }
            }
        }
    };
}
errnos! {
    EPERM = 1; ENOENT = 2; EINTR = 4; EIO = 5; ENXIO = 6; E2BIG = 7; EAGAIN = 11; ENOMEM = 12;
    EACCES = 13; EFAULT = 14; EBUSY = 16; EEXIST = 17; ENODEV = 19; EINVAL = 22; ENOTTY = 25;
    ENOSPC = 28; ENOSYS = 38; EOPNOTSUPP = 95;
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "error {} {}", self.0, self.name())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What came of a call.
pub type Result<T> = core::result::Result<T, Errno>;

/// Whether the machine has a lab.
pub fn present() -> bool {
    port::in32(PORT) == MAGIC
}

/// A request; what it does not use is 0.
pub(crate) fn request(op: u32, args: &[u64]) -> Request {
    let mut all = [0; 8];
    all[..args.len()].copy_from_slice(args);
    Request { magic: MAGIC, op, next: 0, reserved: 0, result: UNANSWERED, value: 0, args: all }
}

/// The answer in a request. Ends the test with `error` if nobody gave one.
pub(crate) fn answer(request: &Request) -> core::result::Result<(i64, u64), (Errno, u64)> {
    let Request { result, value, op, .. } = *request;
    match result {
        UNANSWERED => report::error(format_args!(
            "nobody answered operation {op} of the lab: the case needs machine.lab = true"
        )),
        0.. => Ok((result, value)),
        errno => Err((Errno(errno.unsigned_abs() as u32), value)),
    }
}

/// Makes any request by its number in [`op`]: its result and value, or the error and the value.
///
/// Addresses among the arguments are physical, which below 4 GiB is what the runtime's linear ones
/// are. What lies there is the test's business.
pub fn ask_for(op: u32, args: &[u64]) -> core::result::Result<(i64, u64), (Errno, u64)> {
    let mut request = request(op, args);
    let at = &raw mut request;
    port::out32(PORT, at as u64 as u32);
    // SAFETY: the request above, which the host has written to meanwhile.
    answer(&unsafe { at.read_volatile() })
}

/// As [`ask_for`], with the error alone.
pub fn ask(op: u32, args: &[u64]) -> Result<(i64, u64)> {
    ask_for(op, args).map_err(|(e, _)| e)
}

/// The physical address of a value that the runtime's own tables map.
pub(crate) fn physical<T: ?Sized>(at: *const T) -> u64 {
    at.cast::<u8>() as u64
}

/// Makes an ioctl with a buffer: for those with items or data behind a header, and for wrong ones.
pub fn ioctl(target: u64, number: u32, bytes: &mut [u8]) -> Result<i64> {
    let (at, len) = (bytes.as_mut_ptr(), bytes.len() as u64);
    Ok(ask(op::IOCTL, &[target, number.into(), physical(at), len])?.0)
}

/// Makes an ioctl that gives a structure.
pub fn get<T: Plain>(call: kvm::Get<T>) -> Result<T> {
    let mut value = T::zeroed();
    swap_raw(call.target, call.number, &mut value)?;
    Ok(value)
}

/// Makes an ioctl that takes a structure.
pub fn set<T: Plain>(call: kvm::Set<T>, value: &T) -> Result<()> {
    let mut value = *value;
    swap_raw(call.target, call.number, &mut value).map(|_| ())
}

/// Makes an ioctl that changes a structure.
pub fn swap<T: Plain>(call: kvm::Swap<T>, mut value: T) -> Result<T> {
    swap_raw(call.target, call.number, &mut value)?;
    Ok(value)
}

/// Makes an ioctl that takes nothing; what it gives.
pub fn call(call: kvm::Call) -> Result<i64> {
    call_with(call, 0)
}

/// Makes an ioctl that takes a number; what it gives.
pub fn call_with(call: kvm::Call, value: u64) -> Result<i64> {
    Ok(ask(op::IOCTL, &[call.target, call.number.into(), 0, 0, value])?.0)
}

fn swap_raw<T: Plain>(target: u64, number: u32, value: &mut T) -> Result<i64> {
    let len = size_of::<T>() as u64;
    Ok(ask(op::IOCTL, &[target, number.into(), physical(&raw mut *value), len])?.0)
}
