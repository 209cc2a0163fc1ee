//! Memory and MMIO by address, with faults as values.
//!
//! Each access is one plain `mov` of the size asked for, which is what devices and the instruction
//! emulators of hypervisors understand best. Any address may be tried.

use crate::insn;
use crate::trap::Trap;

mod sealed {
    pub trait Sealed {}
}

/// An integer that one instruction moves: `u8` to `u64`.
pub trait Word: sealed::Sealed + Copy {
    #[doc(hidden)]
    fn load(address: u64) -> Result<Self, Trap>;
    #[doc(hidden)]
    fn store(address: u64, value: Self) -> Result<(), Trap>;
}

macro_rules! word {
    ($($type:ty, $class:ident, $read:literal, $write:literal;)*) => {$(
        impl sealed::Sealed for $type {}
        impl Word for $type {
            #[inline]
            fn load(address: u64) -> Result<$type, Trap> {
                let value: $type;
                insn!($read; in(reg) address, out($class) value)?;
                Ok(value)
            }
            #[inline]
            fn store(address: u64, value: $type) -> Result<(), Trap> {
                insn!($write; in(reg) address, in($class) value)
            }
        }
    )*};
}
word! {
    u8, reg_byte, "mov {1}, byte ptr [{0}]", "mov byte ptr [{0}], {1}";
    u16, reg, "mov {1:x}, word ptr [{0}]", "mov word ptr [{0}], {1:x}";
    u32, reg, "mov {1:e}, dword ptr [{0}]", "mov dword ptr [{0}], {1:e}";
    u64, reg, "mov {1:r}, qword ptr [{0}]", "mov qword ptr [{0}], {1:r}";
}

/// Reads from a linear address.
#[inline]
pub fn read<T: Word>(address: u64) -> Result<T, Trap> {
    T::load(address)
}

/// Writes to a linear address.
#[inline]
pub fn write<T: Word>(address: u64, value: T) -> Result<(), Trap> {
    T::store(address, value)
}

/// Calls the code at a linear address, which must return (`ret`) or trap. RAX is its result.
pub fn call(address: u64) -> Result<u64, Trap> {
    crate::trap::catch(|| {
        // SAFETY: the test vouches for what lies at the address; a trap there, the fetch
        // included, comes back through `catch`.
        let code: extern "C" fn() -> u64 = unsafe { core::mem::transmute(address) };
        code()
    })
}

/// Copies bytes out of memory, byte by byte, up to the first fault.
pub fn read_bytes(address: u64, to: &mut [u8]) -> Result<(), Trap> {
    insn!(
        "rep movsb";
        inout("rsi") address => _, inout("rdi") to.as_mut_ptr() => _, inout("rcx") to.len() => _
    )
}

/// Copies bytes into memory, byte by byte, up to the first fault.
pub fn write_bytes(address: u64, from: &[u8]) -> Result<(), Trap> {
    insn!(
        "rep movsb";
        inout("rdi") address => _, inout("rsi") from.as_ptr() => _, inout("rcx") from.len() => _
    )
}
