//! Where a payload starts, and the symbols only a bare machine has.

use crate::{boot, cpu, smp, test, trap};
use core::arch::global_asm;

global_asm!(
    include_str!("../asm/entry.s"),
    block_size = const cpu::BLOCK_SIZE,
    gdt_limit = const 0x37,
    gdt_code64 = const cpu::GDT_CODE64,
    gdt_data = const cpu::GDT_DATA,
    gdt_code32 = const cpu::GDT_CODE32,
    start = sym start,
    ap_start = sym smp::ap_start,
    options(att_syntax)
);

global_asm!(
    include_str!("../asm/traps.s"),
    trap = sym trap::rt_trap,
    scratch = const cpu::OFFSET_SCRATCH,
    user_rsp = const cpu::OFFSET_USER_RSP,
    options(att_syntax)
);

/// The first CPU in long mode, on its own stack.
extern "C" fn start(magic: u32, info: u32) -> ! {
    cpu::init(0);
    // Firmware leaves a timer ticking into vector 8; a test that wants the PICs sets them up.
    crate::port::out8(0x21, 0xff);
    crate::port::out8(0xa1, 0xff);
    crate::serial::init();
    boot::init(magic, info);
    test::main()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    match info.location() {
        Some(at) => crate::report::error(format_args!(
            "panic at {}:{}: {}",
            at.file(),
            at.line(),
            info.message()
        )),
        None => crate::report::error(format_args!("panic: {}", info.message())),
    }
}

/// The C names the compiler calls for copies and comparisons.
mod memory {
    use core::arch::asm;

    // SAFETY: the contract is C's memcpy; `rep movsb` reads `n` bytes at `from` and writes as
    // many at `to`, and DF is clear throughout (the ABI's rule, kept by the trap entry).
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        // SAFETY: as above.
        unsafe {
            asm!(
                "mov rdx, rcx", "shr rcx, 3", "rep movsq", "mov ecx, edx", "and ecx, 7",
                "rep movsb",
                inout("rdi") to => _, inout("rsi") from => _, inout("rcx") n => _, out("rdx") _,
                options(nostack)
            );
        }
        to
    }

    // SAFETY: C's memmove; copying downwards when the target starts inside the source.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= n {
            // SAFETY: an upward copy does not overwrite what it has yet to read.
            return unsafe { memcpy(to, from, n) };
        }
        // SAFETY: `n` > 0 here; both last bytes are inside the caller's ranges, and DF is put
        // back before anything else runs.
        unsafe {
            asm!(
                "std", "rep movsb", "cld",
                inout("rdi") to.add(n - 1) => _, inout("rsi") from.add(n - 1) => _,
                inout("rcx") n => _,
                options(nostack)
            );
        }
        to
    }

    // SAFETY: C's memset.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
        let word = (byte as u8 as u64) * 0x0101_0101_0101_0101;
        // SAFETY: writes the caller's `n` bytes at `to`, DF clear.
        unsafe {
            asm!(
                "mov rdx, rcx", "shr rcx, 3", "rep stosq", "mov ecx, edx", "and ecx, 7",
                "rep stosb",
                inout("rdi") to => _, inout("rcx") n => _, in("rax") word, out("rdx") _,
                options(nostack)
            );
        }
        to
    }

    // SAFETY: C's memcmp.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        let (x, y): (u32, u32);
        // SAFETY: reads at most `n` bytes of each. The first instruction sets ZF, so that
        // nothing is compared (and both results are equal) when `n` is 0.
        unsafe {
            asm!(
                "xor eax, eax", "xor edx, edx", "repe cmpsb", "seta al", "setb dl",
                inout("rsi") a => _, inout("rdi") b => _, inout("rcx") n => _,
                out("eax") x, out("edx") y,
                options(nostack, readonly)
            );
        }
        x as i32 - y as i32
    }

    // SAFETY: C's bcmp, which memcmp satisfies.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the same contract.
        unsafe { memcmp(a, b, n) }
    }
}
