//! Excursions to CPL 3: run code there until it traps, and look at what came of it.
//!
//! Code comes as bytes ([`asm_code!`](crate::asm_code) makes them from assembly), copied to a page
//! of its own that CPL 3 may execute, with a stack beside it; or as a Rust function, see
//! [`call`]. An excursion ends with the first trap for which no handler is registered. Code that
//! is done returns (`ret`): what it returns to is an invalid opcode at an address the runtime knows,
//! since that is the one way out which every hypervisor gets right.

use crate::cpu::{self, Cpu, USER_CS, USER_CS32, USER_DS};
use crate::paging::{self, Flags, Size};
use crate::trap::{self, Frame, SYSCALL, Trap};
use crate::{frames, mem, reg, report};
use core::sync::atomic::Ordering::Relaxed;

/// First address of the pages for CPL 3; each CPU has 64 KiB of its own from here.
pub const BASE: u64 = 0x7fe0_0000;
const AREA: u64 = 0x1_0000;
const STACK_PAGES: u64 = 4;

/// Where the pages of a CPU lie.
fn area() -> u64 {
    BASE + AREA * cpu::index() as u64
}

/// Offset in the code page of what code returns to.
const RETURN: u64 = 0xff8;
/// `ud2`.
const UD2: [u8; 2] = [0x0f, 0x0b];

/// Where this CPU's code page for CPL 3 lies.
pub fn code_address() -> u64 {
    area()
}

/// Top of this CPU's stack for CPL 3, where the return address lies.
pub fn stack_top() -> u64 {
    area() + frames::PAGE * (1 + STACK_PAGES) - 8
}

/// How an excursion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The code was done: it returned.
    Done,
    /// By `int n` through a gate open to CPL 3; 0x80 is such a gate from the start.
    Gate(u8),
    /// By `syscall`, where allowed.
    Syscall,
    /// By a trap.
    Trap(Trap),
}

/// An excursion: how it starts.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Registers at the start. RIP, CS, RSP, SS and RFLAGS are set up by [`User::new`] and may
    /// be changed.
    pub regs: Frame,
    syscall: bool,
}

/// An excursion: how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// Registers at that point.
    pub regs: Frame,
}

impl User {
    /// Copies `code` (at most 0xff8 bytes) to this CPU's code page and starts there in 64-bit mode,
    /// with interrupts on, on a stack with nothing but a return address, and all other registers
    /// zero.
    pub fn new(code: &[u8]) -> User {
        prepare();
        assert!(code.len() <= RETURN as usize, "{} bytes of code for one page", code.len());
        put(code_address(), code);
        User::at(code_address())
    }

    /// Starts at an address that CPL 3 can execute by the caller's own doing.
    pub fn at(rip: u64) -> User {
        prepare();
        put(code_address() + RETURN, &UD2);
        put(stack_top(), &(code_address() + RETURN).to_le_bytes());
        let regs = Frame {
            rip,
            cs: USER_CS.into(),
            rflags: 2 | reg::FLAG_IF,
            rsp: stack_top(),
            ss: USER_DS.into(),
            ..Frame::default()
        };
        User { regs, syscall: false }
    }

    /// Starts in 32-bit compatibility mode.
    pub fn compat(mut self) -> User {
        self.regs.cs = USER_CS32.into();
        self
    }

    /// Lets `syscall` end the excursion. Sets EFER.SCE, STAR, LSTAR, CSTAR, FMASK and the GS base
    /// that `swapgs` brings, and leaves them so.
    pub fn allow_syscall(mut self) -> User {
        self.syscall = true;
        self
    }

    /// Goes to CPL 3 and comes back. Interrupts that arrive meanwhile go to their handlers.
    pub fn run(&self) -> Outcome {
        let cpu = cpu::this();
        assert!(cpu.user_rsp.load(Relaxed) == 0, "an excursion from within an excursion");
        if self.syscall {
            set_up_syscall(cpu);
        }
        // SAFETY: `regs` is a complete frame; the landing restores what the call saved, on the
        // stack whose pointer went to `user_rsp`, and CPL 3 has no way to write either.
        unsafe { rt_enter_user(&self.regs, cpu.user_rsp.as_ptr(), cpu.tss.rsp0_ptr()) };
        cpu.user_rsp.store(0, Relaxed);
        cpu.tss.set_rsp0((cpu.base() + cpu::BLOCK_SIZE) as u64);
        // SAFETY: `leave` wrote it on this CPU before it came back here.
        let regs = unsafe { cpu.user.get().read() };
        let end = match regs.vector {
            SYSCALL => End::Syscall,
            _ if regs.vector == u64::from(trap::UD) && is_return(regs.rip) => End::Done,
            vector @ 32.. => End::Gate(vector as u8),
            vector => End::Trap(Trap {
                vector: vector as u8,
                error_code: regs.error_code,
                rip: regs.rip,
                cr2: if vector == u64::from(trap::PF) { reg::cr2() } else { 0 },
                rflags: regs.rflags,
            }),
        };
        Outcome { end, regs }
    }
}

/// Runs a Rust function at CPL 3. For that time the payload's own pages are open to CPL 3, so
/// CR4.SMEP and SMAP must be off; the function must not touch ports, MSRs, or other CPUs' data.
/// `Err` is the trap that ended it early.
pub fn call(function: extern "C" fn(u64) -> u64, argument: u64) -> Result<u64, Trap> {
    let cr4 = reg::cr4();
    assert!(
        cr4 & (reg::CR4_SMEP | reg::CR4_SMAP) == 0,
        "a Rust function at CPL 3 needs CR4.SMEP and SMAP off"
    );
    let image = || (0..frames::image_end()).step_by(Size::M2.bytes() as usize);
    image().for_each(|page| open(page, true));
    let mut user = User::at(rt_user_thunk as *const () as u64);
    user.regs.rax = function as *const () as u64;
    user.regs.rdi = argument;
    let outcome = user.run();
    image().for_each(|page| open(page, false));
    match outcome.end {
        End::Done => Ok(outcome.regs.rax),
        End::Trap(trap) => Err(trap),
        other => panic!("a Rust function at CPL 3 ended by {other:?}"),
    }
}

/// Opens or closes 2 MiB of the identity map to CPL 3.
fn open(page: u64, user: bool) {
    let (add, remove) = if user { (Flags::U, Flags::NONE) } else { (Flags::NONE, Flags::U) };
    let entry = paging::entry(page, 2);
    if entry.is_leaf() {
        paging::change(page, add, remove);
    } else {
        for small in (page..page + Size::M2.bytes()).step_by(Size::K4.bytes() as usize) {
            if paging::walk(small).is_leaf() {
                paging::change(small, add, remove);
            }
        }
    }
}

/// Ends the excursion under way: called for a trap that came from CPL 3.
pub(crate) fn leave(cpu: &Cpu, frame: &mut Frame) {
    let rsp = cpu.user_rsp.load(Relaxed);
    if rsp == 0 {
        report::error(format_args!("vector {} from CPL 3 outside an excursion", frame.vector));
    }
    // SAFETY: this CPU's own; `User::run` reads it after the landing.
    unsafe { cpu.user.get().write(*frame) };
    trap::land(frame, rsp);
}

unsafe extern "C" {
    fn rt_enter_user(regs: *const Frame, user_rsp: *mut u64, rsp0: *mut u64);
    fn rt_syscall_entry();
    fn rt_user_thunk();
    fn rt_user_done();
}

/// Whether an invalid opcode at `rip` is where code returns to.
fn is_return(rip: u64) -> bool {
    rip == code_address() + RETURN || rip == rt_user_done as *const () as u64
}

/// Maps this CPU's pages for CPL 3, once.
fn prepare() {
    if paging::walk(area()).flags().has(Flags::U) {
        return;
    }
    for page in 0..=STACK_PAGES {
        let frame = frames::alloc().address();
        paging::map(area() + page * frames::PAGE, frame, Size::K4, Flags::RWU);
    }
}

/// Writes into a page for CPL 3, by its supervisor mapping (so that SMAP does not matter).
fn put(address: u64, bytes: &[u8]) {
    let Some(physical) = paging::translate(address) else {
        panic!("the page for CPL 3 at {address:#x} is not mapped any more");
    };
    if let Err(trap) = mem::write_bytes(physical, bytes) {
        panic!("write to the page for CPL 3 at {address:#x}: {trap}");
    }
}

fn set_up_syscall(cpu: &Cpu) {
    let star = u64::from(cpu::KERNEL_CS) << 32 | u64::from(USER_CS32) << 48;
    let entry = rt_syscall_entry as *const () as u64;
    // The entry must find interrupts off, strings upwards, no single step.
    let mask = reg::FLAG_TF | reg::FLAG_IF | reg::FLAG_DF | reg::FLAG_AC;
    for (msr, value) in [
        (reg::STAR, star),
        (reg::LSTAR, entry),
        (reg::CSTAR, entry),
        (reg::FMASK, mask),
        (reg::KERNEL_GS_BASE, cpu.base() as u64),
    ] {
        set(msr, value);
    }
    match reg::rdmsr(reg::EFER) {
        Ok(efer) => set(reg::EFER, efer | reg::EFER_SCE),
        Err(trap) => panic!("read EFER: {trap}"),
    }
}

fn set(msr: u32, value: u64) {
    if let Err(trap) = reg::wrmsr(msr, value) {
        panic!("write {value:#x} to MSR {msr:#x}: {trap}");
    }
}

/// Machine code from assembly (Intel syntax, position-independent), as a `&'static [u8]`, to run
/// elsewhere: `asm_code!("mov eax, 1", "ret")`. Begin with `".code32"` for 32-bit code.
#[macro_export]
macro_rules! asm_code {
    ($($line:expr),+ $(,)?) => {{
        let (start, end): (u64, u64);
        // SAFETY: emits the code into read-only data, and gives its bounds.
        #[allow(unused_unsafe)]
        unsafe {
            ::core::arch::asm!(
                ".pushsection .rodata.exitlab.code, \"a\", @progbits",
                "781:",
                $($line,)+
                ".code64",
                "782:",
                ".popsection",
                "lea {0}, [rip + 781b]",
                "lea {1}, [rip + 782b]",
                out(reg) start, out(reg) end,
                options(nomem, nostack, preserves_flags)
            );
        }
        $crate::user::code_between(start, end)
    }};
}

/// Part of [`asm_code!`](crate::asm_code).
#[doc(hidden)]
pub fn code_between(start: u64, end: u64) -> &'static [u8] {
    // SAFETY: the bounds of what one `asm_code!` put into read-only data.
    unsafe { core::slice::from_raw_parts(start as *const u8, (end - start) as usize) }
}
