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

// By RSI: an address in RBP that is not canonical would be #SS, not #GP.
macro_rules! word {
    ($($type:ty, $class:ident, $read:literal, $write:literal;)*) => {$(
        impl sealed::Sealed for $type {}
        impl Word for $type {
            #[inline]
            fn load(address: u64) -> Result<$type, Trap> {
                let value: $type;
                insn!($read; value = out($class) value, in("rsi") address)?;
                Ok(value)
            }
            #[inline]
            fn store(address: u64, value: $type) -> Result<(), Trap> {
                insn!($write; value = in($class) value, in("rsi") address)
            }
        }
    )*};
}
word! {
    u8, reg_byte, "mov {value}, byte ptr [rsi]", "mov byte ptr [rsi], {value}";
    u16, reg, "mov {value:x}, word ptr [rsi]", "mov word ptr [rsi], {value:x}";
    u32, reg, "mov {value:e}, dword ptr [rsi]", "mov dword ptr [rsi], {value:e}";
    u64, reg, "mov {value:r}, qword ptr [rsi]", "mov qword ptr [rsi], {value:r}";
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
