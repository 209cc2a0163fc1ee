//! Port I/O. Nothing faults here: at CPL 0 every port may be touched.

use core::arch::asm;

macro_rules! ports {
    ($($read:ident $write:ident $read_rep:ident $write_rep:ident $type:ty, $reg:tt, $letter:literal, $size:literal;)*) => {$(
        #[doc = concat!("Reads ", $size, " from `port`.")]
        #[inline]
        pub fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: a port read; the machine is the test's.
            unsafe {
                asm!(concat!("in ", $reg, ", dx"), in("dx") port, out($reg) value,
                    options(nostack, preserves_flags));
            }
            value
        }
        #[doc = concat!("Writes ", $size, " to `port`.")]
        #[inline]
        pub fn $write(port: u16, value: $type) {
            // SAFETY: a port write; the machine is the test's.
            unsafe {
                asm!(concat!("out dx, ", $reg), in("dx") port, in($reg) value,
                    options(nostack, preserves_flags));
            }
        }
        #[doc = concat!("Fills `values` from `port` with one `rep ins`, each of ", $size, ".")]
        pub fn $read_rep(port: u16, values: &mut [$type]) {
            // SAFETY: writes exactly the slice; DF is clear.
            unsafe {
                asm!(concat!("rep ins", $letter), in("dx") port,
                    inout("rdi") values.as_mut_ptr() => _, inout("rcx") values.len() => _,
                    options(nostack, preserves_flags));
            }
        }
        #[doc = concat!("Writes `values` to `port` with one `rep outs`, each of ", $size, ".")]
        pub fn $write_rep(port: u16, values: &[$type]) {
            // SAFETY: reads exactly the slice; DF is clear.
            unsafe {
                asm!(concat!("rep outs", $letter), in("dx") port,
                    inout("rsi") values.as_ptr() => _, inout("rcx") values.len() => _,
                    options(nostack, preserves_flags));
            }
        }
    )*};
}
ports! {
    in8 out8 in8_rep out8_rep u8, "al", "b", "one byte";
    in16 out16 in16_rep out16_rep u16, "ax", "w", "two bytes";
    in32 out32 in32_rep out32_rep u32, "eax", "d", "four bytes";
}
