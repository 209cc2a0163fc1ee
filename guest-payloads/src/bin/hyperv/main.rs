//! Hyper-V's interfaces as KVM offers them: CPUID, hypercalls, clocks, the virtual APIC, synthetic
//! interrupts and timers, TLB flushes and IPIs, crash and reset.
//!
//! What is expected is that of Hyper-V's Top Level Functional Specification (TLFS), by the title of its
//! chapters, and of Linux, Documentation/virt/kvm/api.rst.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod abi;
mod connections;
mod crash;
mod flush;
mod identity;
mod ipi;
mod leaves;
mod processor;
mod sources;
mod state;
mod synic;
mod time;
mod timers;
mod transplant;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use payload_rt::{
    apic, check, check_eq, check_ok, check_trap, cpuid, frames, insn, irq, mem, port, reg, trap,
};

/// How long an interrupt may take that must come, in microseconds.
const PATIENCE: u64 = 5_000_000;
/// How long to look for what must not come, in microseconds.
const SETTLE: u64 = 300;

macro_rules! msrs {
    ($($name:ident = $index:literal;)*) => { $(const $name: u32 = $index;)* };
}
msrs! {
    GUEST_OS_ID = 0x4000_0000;
    HYPERCALL = 0x4000_0001;
    VP_INDEX = 0x4000_0002;
    RESET = 0x4000_0003;
    VP_RUNTIME = 0x4000_0010;
    TIME_REF_COUNT = 0x4000_0020;
    REFERENCE_TSC = 0x4000_0021;
    TSC_FREQUENCY = 0x4000_0022;
    APIC_FREQUENCY = 0x4000_0023;
    EOI = 0x4000_0070;
    ICR = 0x4000_0071;
    TPR = 0x4000_0072;
    VP_ASSIST_PAGE = 0x4000_0073;
    SCONTROL = 0x4000_0080;
    SVERSION = 0x4000_0081;
    SIEFP = 0x4000_0082;
    SIMP = 0x4000_0083;
    EOM = 0x4000_0084;
    SINT0 = 0x4000_0090;
    STIMER0_CONFIG = 0x4000_00b0;
    STIMER0_COUNT = 0x4000_00b1;
    CRASH_P0 = 0x4000_0100;
    CRASH_CTL = 0x4000_0105;
    REENLIGHTENMENT_CONTROL = 0x4000_0106;
    TSC_EMULATION_CONTROL = 0x4000_0107;
    TSC_EMULATION_STATUS = 0x4000_0108;
}

/// Leaves of CPUID: features, and recommendations.
const FEATURES: u32 = 0x4000_0003;
const ADVICE: u32 = 0x4000_0004;

/// Units of Hyper-V's time, of 100 ns, in a second.
const SECOND: u64 = 10_000_000;

/// An identity as an open-source system has it: bit 63, and a vendor (TLFS, Hypercall Interface).
const IDENTITY: u64 = 0x8100_0000_0000_0000;

/// Results of hypercalls (TLFS, Hypercall Interface).
mod status {
    pub const SUCCESS: u64 = 0;
    pub const INVALID_HYPERCALL_CODE: u64 = 2;
    pub const INVALID_HYPERCALL_INPUT: u64 = 3;
    pub const INVALID_ALIGNMENT: u64 = 4;
    pub const INVALID_PARAMETER: u64 = 5;
    pub const ACCESS_DENIED: u64 = 6;
    pub const INVALID_CONNECTION_ID: u64 = 0x12;
    pub const INSUFFICIENT_BUFFERS: u64 = 0x13;
    pub const INVALID_SYNIC_STATE: u64 = 0x18;
}

/// Bits of a hypercall's input value: fast, and where the counts begin.
const FAST: u64 = 1 << 16;
const VARIABLE: u32 = 17;
const REPS: u32 = 32;
const START: u32 = 48;

/// Call codes.
mod code {
    pub const FLUSH_SPACE: u64 = 2;
    pub const FLUSH_LIST: u64 = 3;
    pub const LONG_SPIN_WAIT: u64 = 8;
    pub const SEND_IPI: u64 = 0xb;
    pub const FLUSH_SPACE_EX: u64 = 0x13;
    pub const FLUSH_LIST_EX: u64 = 0x14;
    pub const SEND_IPI_EX: u64 = 0x15;
    pub const POST_MESSAGE: u64 = 0x5c;
    pub const SIGNAL_EVENT: u64 = 0x5d;
    /// None that anybody knows.
    pub const NONE: u64 = 0x7fff;
}

#[track_caller]
fn read(msr: u32) -> u64 {
    check_ok!(reg::rdmsr(msr), "read MSR {msr:#x}")
}

fn write(msr: u32, value: u64) {
    check_ok!(reg::wrmsr(msr, value), "write {value:#x} to MSR {msr:#x}");
}

/// Checks that a write is #GP.
fn refused(msr: u32, value: u64) {
    check_trap!(reg::wrmsr(msr, value), trap::GP, 0, "write {value:#x} to MSR {msr:#x}");
}

/// Checks that a read is #GP.
fn unreadable(msr: u32) {
    check_trap!(reg::rdmsr(msr), trap::GP, 0, "read MSR {msr:#x}");
}

/// A page of zeroes, never given back: its address.
fn page() -> u64 {
    frames::alloc().address()
}

fn word<T: mem::Word>(at: u64) -> T {
    check_ok!(mem::read(at))
}

fn put<T: mem::Word>(at: u64, value: T) {
    check_ok!(mem::write(at, value));
}

/// An address where the machine has no memory and no device.
const NOWHERE: u64 = 0xd000_0000;

/// Whether hypercalls are VMMCALL here.
fn amd() -> bool {
    matches!(&cpuid::signature(0), b"AuthenticAMD" | b"HygonGenuine")
}

/// Where the hypercall page is; 0 before there is one.
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Says who the guest is, and gives it a hypercall page, whose address is the result.
fn introduce() -> u64 {
    write(GUEST_OS_ID, IDENTITY);
    let at = page();
    write(HYPERCALL, at | 1);
    check_eq!(read(HYPERCALL), at | 1, "the hypercall page");
    CALLS.store(at, Relaxed);
    at
}

/// Makes a hypercall through the page of [`introduce`].
fn call(input: u64, first: u64, second: u64) -> u64 {
    let at = CALLS.load(Relaxed);
    check!(at != 0, "a hypercall without a page");
    call_at(at, input, first, second)
}

/// Makes a hypercall through the code at `at`: parameters in RCX, RDX and R8, the result in RAX.
fn call_at(at: u64, input: u64, first: u64, second: u64) -> u64 {
    let result: u64;
    let done = insn!(
        "call {at}";
        at = in(reg) at, out("rax") result,
        inout("rcx") input => _, inout("rdx") first => _, inout("r8") second => _,
        out("r9") _, out("r10") _, out("r11") _
    );
    check_ok!(done, "hypercall {input:#x}");
    result
}

/// The time by the MSR, in units of 100 ns.
fn now() -> u64 {
    read(TIME_REF_COUNT)
}

/// Message types: those of timers, and none.
const TIMER_EXPIRED: u32 = 0x8000_0010;

/// This processor's synthetic interrupt controller, switched on, with its two pages.
#[derive(Clone, Copy)]
struct Synic {
    messages: u64,
    events: u64,
}

impl Synic {
    /// Switches it on, and the local APIC.
    fn start() -> Synic {
        apic::local().enable();
        let synic = Synic { messages: page(), events: page() };
        write(SIMP, synic.messages | 1);
        write(SIEFP, synic.events | 1);
        write(SCONTROL, 1);
        synic
    }

    /// The slot of a source: type, size, flags, sender, payload from byte 16 on.
    fn slot(&self, sint: u64) -> u64 {
        self.messages + sint * 256
    }

    /// The type of the message in a slot; 0 for none.
    fn kind(&self, sint: u64) -> u32 {
        word(self.slot(sint))
    }

    fn flags(&self, sint: u64) -> u8 {
        word(self.slot(sint) + 5)
    }

    /// Empties a slot, and says so.
    fn done(&self, sint: u64) {
        put(self.slot(sint), 0u32);
        write(EOM, 0);
    }

    /// The word of a source's event flags in which flag `number` lies.
    fn events(&self, sint: u64, number: u64) -> u32 {
        word(self.events + sint * 256 + number / 32 * 4)
    }
}

/// Lets source `sint` interrupt with `vector`.
fn open(sint: u64, vector: u8) {
    irq::count_only(vector);
    write(SINT0 + sint as u32, vector.into());
}

/// Commands of the test device (port 0x3000): a route, an interrupt, connections.
mod command {
    pub const ROUTE: u32 = 1;
    pub const UNROUTE: u32 = 2;
    pub const RAISE: u32 = 3;
    pub const CONNECT_MESSAGES: u32 = 4;
    pub const DISCONNECT_MESSAGES: u32 = 5;
    pub const CONNECT_EVENTS: u32 = 6;
    pub const DISCONNECT_EVENTS: u32 = 7;
}

fn tell(command: u32, vp: u32, sint: u64, connection: u32) {
    port::out32(0x3000, connection << 24 | command << 16 | vp << 8 | sint as u32);
}

/// Waits for `times` interrupts, then looks whether there are more.
fn expect_interrupts(vector: u8, times: u32) {
    check!(
        irq::wait_for(vector, times, PATIENCE),
        "vector {vector:#x} came {} times of {times}",
        irq::count(vector)
    );
    irq::let_in(SETTLE);
    check_eq!(irq::count(vector), times, "interrupts of vector {vector:#x}");
}
