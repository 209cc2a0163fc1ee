//! The x2APIC: each MSR of it, its modes, its destinations, and the same seen from the host.
//!
//! Intel SDM volume 3, 12.12 (x2APIC), 12.4 to 12.8 (what it has in common with the xAPIC); AMD APM
//! volume 2, 16.11; Linux, Documentation/virt/kvm/api.rst, for what the host sees.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

mod clusters;
mod host;
mod messages;
mod modes;
mod registers;
mod reserved;
mod senders;
mod timer;
mod user;
mod wide;
mod window;

use payload_rt::apic::{self, Apic, Mode, Register};
use payload_rt::{check, check_err, check_ok, cpuid, irq, reg, smp, time, trap};

/// How long to look for an interrupt that must not come, in microseconds.
const SETTLE: u64 = 300;
/// How long an interrupt may take that must come, in microseconds.
const PATIENCE: u64 = 5_000_000;
/// The vector of tests that need one.
const VECTOR: u8 = 0x4d;

/// MSRs by their names in SDM volume 3, table 12-6.
mod msr {
    pub const ID: u32 = 0x802;
    pub const VERSION: u32 = 0x803;
    pub const TPR: u32 = 0x808;
    pub const PPR: u32 = 0x80a;
    pub const EOI: u32 = 0x80b;
    pub const LDR: u32 = 0x80d;
    pub const SVR: u32 = 0x80f;
    pub const ISR: u32 = 0x810;
    pub const TMR: u32 = 0x818;
    pub const IRR: u32 = 0x820;
    pub const ESR: u32 = 0x828;
    pub const CMCI: u32 = 0x82f;
    pub const ICR: u32 = 0x830;
    pub const LVT_TIMER: u32 = 0x832;
    pub const LVT_THERMAL: u32 = 0x833;
    pub const LVT_PERF: u32 = 0x834;
    pub const LVT_LINT0: u32 = 0x835;
    pub const LVT_LINT1: u32 = 0x836;
    pub const LVT_ERROR: u32 = 0x837;
    pub const INITIAL: u32 = 0x838;
    pub const CURRENT: u32 = 0x839;
    pub const DIVIDE: u32 = 0x83e;
    pub const SELF_IPI: u32 = 0x83f;
}

/// The entries of the local vector table, with the bits that software can set: vector and mask, then
/// delivery mode, polarity and trigger mode, timer mode (SDM volume 3, 12.5.1).
const LVT: [(u32, u32); 6] = [
    (msr::LVT_TIMER, 0x3_00ff),
    (msr::LVT_THERMAL, 0x1_07ff),
    (msr::LVT_PERF, 0x1_07ff),
    (msr::LVT_LINT0, 0x1_a7ff),
    (msr::LVT_LINT1, 0x1_a7ff),
    (msr::LVT_ERROR, 0x1_00ff),
];

fn read(msr: u32) -> u64 {
    check_ok!(reg::rdmsr(msr), "read of MSR {msr:#x}")
}

fn write(msr: u32, value: u64) {
    check_ok!(reg::wrmsr(msr, value), "write of {value:#x} to MSR {msr:#x}");
}

/// Checks that WRMSR raises #GP(0).
fn refused(msr: u32, value: u64) {
    let fault = check_err!(reg::wrmsr(msr, value), "write of {value:#x} to MSR {msr:#x}");
    check!(fault.is(trap::GP, 0), "write of {value:#x} to MSR {msr:#x}: {fault}");
}

/// Checks that RDMSR raises #GP(0).
fn unreadable(msr: u32) {
    let fault = check_err!(reg::rdmsr(msr), "read of MSR {msr:#x}");
    check!(fault.is(trap::GP, 0), "read of MSR {msr:#x}: {fault}");
}

/// Entries of the local vector table, by the version register.
fn lvt_entries() -> u64 {
    (read(msr::VERSION) >> 16 & 0xff) + 1
}

/// The table's entries that this APIC has.
fn lvt() -> impl Iterator<Item = (u32, u32)> {
    let entries = lvt_entries();
    LVT.into_iter().filter(move |(register, _)| match *register {
        msr::LVT_PERF => entries >= 5,
        msr::LVT_THERMAL => entries >= 6,
        _ => true,
    })
}

/// This CPU's APIC as x2APIC, as it is after reset but for the mode.
fn fresh() -> Apic {
    cpuid::X2APIC.require();
    apic::set_mode(Mode::X2Apic)
}

/// This CPU's APIC as x2APIC, enabled by software.
fn enabled() -> Apic {
    let apic = fresh();
    apic.enable();
    apic
}

/// Whether `vector` is set in one of the 256-bit registers.
fn bit(bank: u32, vector: u8) -> bool {
    read(bank + u32::from(vector / 32)) & 1 << (vector % 32) != 0
}

/// The logical identifier that follows from an identifier (SDM volume 3, 12.12.10.2).
fn logical(id: u32) -> u32 {
    (id >> 4) << 16 | 1 << (id & 15)
}

/// Starts all CPUs, at least `least`, and makes x2APICs of their APICs; how many there are.
fn start_all(least: usize) -> usize {
    cpuid::X2APIC.require();
    let cpus = smp::start();
    check!(cpus >= least, "{cpus} CPUs: the case must give the machine {least}");
    (0..cpus).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(Mode::X2Apic).enable()));
    cpus
}

/// Has CPU `from` call `send`, and checks that each CPU that `to` chooses takes one interrupt on
/// `vector`, and no other CPU any.
fn expect_at(
    cpus: usize,
    from: usize,
    vector: u8,
    what: &str,
    send: impl Fn() + Send,
    to: impl Fn(usize) -> bool,
) {
    const MAX: usize = 32;
    let mut before = [0; MAX];
    for (cpu, count) in before.iter_mut().enumerate().take(cpus) {
        *count = irq::count_on(cpu, vector);
    }
    smp::run_on(from, send);
    let came = time::wait_until(PATIENCE, || {
        irq::let_in(1);
        (0..cpus).all(|cpu| !to(cpu) || irq::count_on(cpu, vector) != before[cpu])
    });
    irq::let_in(SETTLE);
    for (cpu, before) in before.into_iter().enumerate().take(cpus) {
        let took = irq::count_on(cpu, vector).wrapping_sub(before);
        let wanted = u32::from(to(cpu));
        check!(
            came && took == wanted,
            "{what} from cpu {from}: cpu {cpu} took {took} interrupts, must take {wanted}"
        );
    }
}

/// The offset in the xAPIC's page of an x2APIC MSR, which is that in `KVM_GET_LAPIC`'s, too.
fn offset(msr: u32) -> usize {
    (msr as usize - 0x800) << 4
}

/// Makes the register of an MSR.
fn register(msr: u32) -> Register {
    Register(offset(msr) as u16)
}
