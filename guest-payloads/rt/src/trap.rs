//! Traps: what the CPU says when an instruction cannot go on, as values.
//!
//! # How a trap is recovered from
//!
//! Two ways, and neither needs the compiler to know.
//!
//! *[`insn!`](crate::insn)* wraps a few instructions of inline assembly and leaves their address
//! range in a table (`.exitlab.extable`). When a trap's RIP lies in such a range, the handler notes the
//! trap in the CPU's block and resumes at the range's end. This is sound because control leaves
//! the assembly block where it always does, at its end, with every register that the block does
//! not name unchanged (the trap entry saves and restores all of them); registers it names as
//! outputs hold something, and the caller looks at the noted trap before it believes them.
//!
//! *[`catch`]* runs a closure under a saved stack pointer and callee-saved registers, as setjmp
//! does; a trap anywhere below comes back there. It abandons the frames in between without
//! running destructors, which is sound as for `mem::forget`: nothing in this runtime relies on a
//! destructor for safety, there is no unwinding (panics end the payload), and the call is opaque
//! to the compiler, so all memory it could have changed is reloaded. What the closure was in the
//! middle of changing is left half-changed: use it for calls into code that is expected to trap,
//! and let the closure's results leave through its return value.

use crate::cpu::{self, Caught};
use crate::{irq, reg, report, user};
use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

/// Registers at a trap, as they will be again when the handler returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The fields are the registers they are named for.
pub struct Frame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    /// The vector; 256 stands for `syscall`.
    pub vector: u64,
    /// The error code; 0 for vectors without one.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// Vector that stands for `syscall` in a [`Frame`].
pub const SYSCALL: u64 = 256;

/// A trap that was recovered from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Which exception.
    pub vector: u8,
    /// Its error code; 0 for vectors without one.
    pub error_code: u64,
    /// Where: the faulting instruction, or the one after it for trap-class exceptions.
    pub rip: u64,
    /// CR2 of a page fault; 0 for other vectors.
    pub cr2: u64,
    /// RFLAGS as the CPU saved it.
    pub rflags: u64,
}

impl Trap {
    /// The exception's mnemonic, `#GP`; `#?` for a vector that has none.
    pub const fn mnemonic(&self) -> &'static str {
        match self.vector {
            DE => "#DE",
            DB => "#DB",
            NMI => "NMI",
            BP => "#BP",
            OF => "#OF",
            BR => "#BR",
            UD => "#UD",
            NM => "#NM",
            DF => "#DF",
            TS => "#TS",
            NP => "#NP",
            SS => "#SS",
            GP => "#GP",
            PF => "#PF",
            MF => "#MF",
            AC => "#AC",
            MC => "#MC",
            XM => "#XM",
            VE => "#VE",
            CP => "#CP",
            _ => "#?",
        }
    }

    /// Whether this is `vector` with error code `error_code`.
    pub const fn is(&self, vector: u8, error_code: u64) -> bool {
        self.vector == vector && self.error_code == error_code
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "trap {} (vector {})", self.mnemonic(), self.vector)?;
        write!(f, " error {:#x} at {:#x}", self.error_code, self.rip)?;
        if self.vector == PF {
            write!(f, " on address {:#x}", self.cr2)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Trap {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

macro_rules! vectors {
    ($($name:ident = $value:literal, $about:literal;)*) => {
        $(#[doc = $about] pub const $name: u8 = $value;)*
    };
}
vectors! {
    DE = 0, "Divide error.";
    DB = 1, "Debug.";
    NMI = 2, "Non-maskable interrupt.";
    BP = 3, "Breakpoint (`int3`).";
    OF = 4, "Overflow (`into`).";
    BR = 5, "Bound range exceeded.";
    UD = 6, "Invalid opcode.";
    NM = 7, "Device not available.";
    DF = 8, "Double fault.";
    TS = 10, "Invalid TSS.";
    NP = 11, "Segment not present.";
    SS = 12, "Stack segment fault.";
    GP = 13, "General protection.";
    PF = 14, "Page fault.";
    MF = 16, "x87 floating-point error.";
    AC = 17, "Alignment check.";
    MC = 18, "Machine check.";
    XM = 19, "SIMD floating-point.";
    VE = 20, "Virtualization exception.";
    CP = 21, "Control protection.";
}

/// Runs instructions and says whether they trapped: `Ok(())`, or the [`Trap`](crate::trap::Trap).
///
/// Takes what `core::arch::asm!` takes (Intel syntax), with a semicolon between the instructions
/// and the operands. After a trap execution goes on behind the last instruction; so a sequence
/// that pushes must not trap before it pops, and outputs mean nothing after an `Err`. What the
/// instructions do is the test's business: a payload owns its machine, so this is safe to write.
///
/// ```ignore
/// let fault = insn!("mov cr4, {}"; in(reg) 1u64 << 63).unwrap_err();
/// check_eq!(fault.vector, trap::GP);
/// ```
#[macro_export]
macro_rules! insn {
    ($($template:expr),+ $(; $($operands:tt)*)?) => {{
        $crate::trap::arm();
        // SAFETY: the range's end is where control goes in either case, see rt::trap.
        #[allow(unused_unsafe)]
        unsafe {
            ::core::arch::asm!(
                "771:",
                $($template,)+
                "772:",
                ".pushsection .exitlab.extable, \"a\", @progbits",
                ".balign 4",
                ".long 771b - .",
                ".long 772b - .",
                ".popsection",
                $($($operands)*)?
            );
        }
        $crate::trap::taken()
    }};
}

/// Runs instructions as they are, with nothing around them: for what is timed, and for code that
/// runs at CPL 3, where [`insn!`](crate::insn) has no place to note a trap. Takes the same; a trap
/// is one that nobody expects.
#[macro_export]
macro_rules! insn_raw {
    ($($template:expr),+ $(; $($operands:tt)*)?) => {{
        // SAFETY: as for `insn!`, the machine is the test's.
        #[allow(unused_unsafe)]
        unsafe {
            ::core::arch::asm!($($template,)+ $($($operands)*)?);
        }
    }};
}

/// Forgets a trap noted earlier; part of [`insn!`](crate::insn).
#[inline(always)]
pub fn arm() {
    cpu::this().clear_caught();
}

/// The trap noted since [`arm`]; part of [`insn!`](crate::insn).
#[inline(always)]
pub fn taken() -> Result<(), Trap> {
    let cpu = cpu::this();
    if cpu.has_caught() { Err(Trap::from(cpu.caught())) } else { Ok(()) }
}

impl From<Caught> for Trap {
    fn from(c: Caught) -> Trap {
        Trap {
            vector: c.vector as u8,
            error_code: c.error_code,
            rip: c.rip,
            cr2: c.cr2,
            rflags: c.rflags,
        }
    }
}

/// Where a `catch` under way comes back to; lies on the stack of the function that catches.
#[repr(C)]
struct Record {
    rsp: u64,
    outer: usize,
}

unsafe extern "C" {
    fn rt_catch_call(f: extern "C" fn(*mut u8), data: *mut u8, record: *mut Record) -> u64;
    fn rt_catch_landing();
    static __extable_start: [i32; 2];
    static __extable_end: [i32; 2];
}

/// Runs `f`, and comes back with the trap if it trapped anywhere on the way; see the
/// [module](self) for what that leaves behind.
pub fn catch<T>(f: impl FnOnce() -> T) -> Result<T, Trap> {
    struct Job<F, T> {
        f: Option<F>,
        value: Option<T>,
    }
    extern "C" fn run<T, F: FnOnce() -> T>(job: *mut u8) {
        // SAFETY: `job` is the `Job<F, T>` below, alive and not otherwise used until this ends.
        let job = unsafe { &mut *job.cast::<Job<F, T>>() };
        if let Some(f) = job.f.take() {
            job.value = Some(f());
        }
    }
    fn run_of<T, F: FnOnce() -> T>(_: &F) -> extern "C" fn(*mut u8) {
        run::<T, F>
    }

    let cpu = cpu::this();
    let run = run_of::<T, _>(&f);
    let mut job = Job { f: Some(f), value: None };
    let outer = cpu.catch.load(Relaxed);
    let mut record = Record { rsp: 0, outer };
    let record = &raw mut record;
    cpu.catch.store(record as usize, Relaxed);
    cpu.clear_caught();
    // SAFETY: `run` is given the job it was made for; the record lives until the call is over,
    // and the handler uses it only while `cpu.catch` names it.
    let trapped = unsafe { rt_catch_call(run, (&raw mut job).cast(), record) };
    cpu.catch.store(outer, Relaxed);
    match (trapped, job.value) {
        (0, Some(value)) => Ok(value),
        _ => Err(Trap::from(cpu.caught())),
    }
}

/// The one place all vectors lead to.
pub(crate) extern "C" fn rt_trap(frame: &mut Frame) {
    let cpu = cpu::this();
    let vector = frame.vector as usize & 0x1ff;
    if let Some(hits) = cpu.hits.get(vector) {
        hits.store(hits.load(Relaxed).wrapping_add(1), Relaxed);
    }
    if let Some(handler) = irq::handler(vector) {
        // The handler may itself catch traps, in the middle of somebody else's `insn!`.
        let caught = cpu.caught();
        handler(frame);
        cpu.set_caught(caught);
        return;
    }
    if frame.cs & 3 == 3 || frame.vector == SYSCALL {
        return user::leave(cpu, frame);
    }
    let cr2 = if vector == PF as usize { reg::cr2() } else { 0 };
    let caught = Caught {
        valid: 1,
        vector: frame.vector,
        error_code: frame.error_code,
        rip: frame.rip,
        cr2,
        rflags: frame.rflags,
    };
    // An interrupt nobody registered for is no business of the interrupted instruction.
    if vector < 32 && vector != NMI as usize {
        if let Some(end) = range_end(frame.rip, vector) {
            cpu.set_caught(caught);
            frame.rip = end;
            // A single step has done its work; what it would stop at next is the runtime.
            frame.rflags &= !reg::FLAG_TF;
            return;
        }
        let record = cpu.catch.load(Relaxed) as *const Record;
        if !record.is_null() {
            cpu.set_caught(caught);
            // SAFETY: `catch` keeps the record alive while `cpu.catch` names it.
            let Record { rsp, outer } = unsafe { record.read() };
            cpu.catch.store(outer, Relaxed);
            return land(frame, rsp);
        }
    }
    fatal(frame, Trap::from(caught))
}

/// Makes the return from a trap arrive at the end of `rt_catch_call` or `rt_enter_user` that
/// left `rsp`.
pub(crate) fn land(frame: &mut Frame, rsp: u64) {
    frame.rax = 1;
    frame.rip = rt_catch_landing as *const () as u64;
    frame.cs = cpu::KERNEL_CS.into();
    frame.ss = cpu::KERNEL_DS.into();
    frame.rsp = rsp;
    // Interrupts stay off until the landing restores the flags that were saved there.
    frame.rflags = 2;
}

/// End of the `insn!` range in which `rip` lies. The address just behind a range belongs to it
/// for the vectors that are reported after their instruction.
fn range_end(rip: u64, vector: usize) -> Option<u64> {
    let start = &raw const __extable_start;
    let count = (&raw const __extable_end as usize - start as usize) / size_of::<[i32; 2]>();
    // SAFETY: the linker script puts all entries, and nothing else, between the two symbols.
    let table = unsafe { core::slice::from_raw_parts(start, count) };
    let after = matches!(vector as u8, DB | BP | OF);
    for entry in table {
        let at = |word: &i32| (core::ptr::from_ref(word) as u64).wrapping_add_signed(*word as i64);
        let (start, end) = (at(&entry[0]), at(&entry[1]));
        if start <= rip && (rip < end || after && rip == end) {
            return Some(end);
        }
    }
    None
}

fn fatal(frame: &Frame, trap: Trap) -> ! {
    crate::println!(
        "cpu {} rip {:#x} rsp {:#x} rflags {:#x} cs {:#x} cr3 {:#x}",
        cpu::index(),
        frame.rip,
        frame.rsp,
        frame.rflags,
        frame.cs,
        reg::cr3()
    );
    if frame.vector >= 32 {
        report::error(format_args!("interrupt {:#x} has no handler", frame.vector));
    }
    report::error(format_args!("unexpected {trap}"))
}
