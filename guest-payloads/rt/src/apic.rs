//! The local APIC, as xAPIC (MMIO) and as x2APIC (MSRs), behind one type.
//!
//! Registers: Intel SDM volume 3, 12.4.1 and 12.12.1; AMD APM volume 2, 16.3.

use crate::reg::{self, rdmsr, wrmsr};
use crate::trap::Trap;
use crate::{cpuid, mem};

/// Where the xAPIC's registers are after reset.
pub const DEFAULT_BASE: u64 = 0xfee0_0000;
/// Vector of spurious interrupts after [`Apic::enable`].
pub const SPURIOUS: u8 = 0xff;

/// IA32_APIC_BASE: this is the CPU that booted.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the local APIC is there at all.
pub const BASE_ENABLE: u64 = 1 << 11;

/// How the local APIC is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Not at all: switched off in IA32_APIC_BASE.
    Disabled,
    /// Through memory.
    XApic,
    /// Through MSRs.
    X2Apic,
}

/// A register, by its offset in the xAPIC's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u16);

macro_rules! registers {
    ($($name:ident = $offset:literal, $about:literal;)*) => {
        impl Register {
            $(#[doc = $about] pub const $name: Register = Register($offset);)*
        }
    };
}
registers! {
    ID = 0x20, "Identifier.";
    VERSION = 0x30, "Version and number of LVT entries.";
    TPR = 0x80, "Task priority.";
    PPR = 0xa0, "Processor priority.";
    EOI = 0xb0, "End of interrupt.";
    LDR = 0xd0, "Logical destination.";
    DFR = 0xe0, "Destination format; xAPIC only.";
    SVR = 0xf0, "Spurious vector, software enable.";
    ISR = 0x100, "In service: eight registers, 0x10 apart.";
    TMR = 0x180, "Trigger mode: eight registers.";
    IRR = 0x200, "Requests: eight registers.";
    ESR = 0x280, "Errors.";
    ICR = 0x300, "Interrupt command.";
    ICR_HIGH = 0x310, "Interrupt command's destination; xAPIC only.";
    LVT_TIMER = 0x320, "Timer entry of the local vector table.";
    LVT_THERMAL = 0x330, "Thermal entry.";
    LVT_PERF = 0x340, "Performance counter entry.";
    LVT_LINT0 = 0x350, "LINT0 entry.";
    LVT_LINT1 = 0x360, "LINT1 entry.";
    LVT_ERROR = 0x370, "Error entry.";
    TIMER_INITIAL = 0x380, "Timer's initial count.";
    TIMER_CURRENT = 0x390, "Timer's current count.";
    TIMER_DIVIDE = 0x3e0, "Timer's divider.";
    SELF_IPI = 0x3f0, "Self-IPI; x2APIC only.";
}

/// LVT and ICR: masked.
pub const LVT_MASKED: u32 = 1 << 16;

/// How an interrupt command is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// On the vector given.
    Fixed(u8),
    /// On the vector given, at the least busy of the destinations.
    LowestPriority(u8),
    /// As a system-management interrupt.
    Smi,
    /// As a non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up, at the given page number below 1 MiB.
    StartUp(u8),
}

/// Whom an interrupt command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// The APIC with this identifier.
    Physical(u32),
    /// The APICs whose logical destination matches.
    Logical(u32),
    /// The sender.
    Own,
    /// All, the sender too.
    All,
    /// All but the sender.
    Others,
}

/// The interrupt command register's low word for a command.
pub const fn command(delivery: Delivery, destination: Destination) -> u32 {
    let what = match delivery {
        Delivery::Fixed(vector) => vector as u32,
        Delivery::LowestPriority(vector) => 1 << 8 | vector as u32,
        Delivery::Smi => 2 << 8,
        Delivery::Nmi => 4 << 8,
        Delivery::Init => 5 << 8,
        Delivery::StartUp(page) => 6 << 8 | page as u32,
    };
    let whom = match destination {
        Destination::Physical(_) => 0,
        Destination::Logical(_) => 1 << 11,
        Destination::Own => 1 << 18,
        Destination::All => 2 << 18,
        Destination::Others => 3 << 18,
    };
    // Level: assert, which all but a de-asserting INIT have.
    what | whom | 1 << 14
}

/// How the timer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// Down to zero, once.
    OneShot,
    /// Down to zero, over and over.
    Periodic,
    /// Until the TSC reaches the MSR [`reg::TSC_DEADLINE`].
    Deadline,
}

/// The local APIC of the CPU that asks, in the mode it was in when asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apic {
    mode: Mode,
    base: u64,
}

/// The local APIC of this CPU, as IA32_APIC_BASE has it now.
pub fn local() -> Apic {
    let base = sure(rdmsr(reg::APIC_BASE), "read IA32_APIC_BASE");
    let mode = match (base & BASE_ENABLE != 0, base & BASE_X2APIC != 0) {
        (false, _) => Mode::Disabled,
        (true, false) => Mode::XApic,
        (true, true) => Mode::X2Apic,
    };
    Apic { mode, base: base & 0x000f_ffff_ffff_f000 }
}

/// Acknowledges the interrupt in service on this CPU.
pub fn eoi() {
    local().eoi();
}

/// Brings this CPU's local APIC into a mode, through `Disabled` where the manual wants it (SDM
/// volume 3, 12.12.5). Ends the test with `skip` if there is no x2APIC. Coming from `Disabled`,
/// the registers are as after reset: see [`Apic::enable`].
pub fn set_mode(mode: Mode) -> Apic {
    let old = sure(rdmsr(reg::APIC_BASE), "read IA32_APIC_BASE");
    let off = old & !(BASE_ENABLE | BASE_X2APIC);
    let set = |value| sure(wrmsr(reg::APIC_BASE, value), "write IA32_APIC_BASE");
    let now = local().mode;
    if mode == Mode::X2Apic {
        cpuid::X2APIC.require();
    }
    match (now, mode) {
        (a, b) if a == b => {}
        (_, Mode::Disabled) => set(off),
        (Mode::X2Apic, Mode::XApic) => {
            set(off);
            set(off | BASE_ENABLE);
        }
        (_, Mode::XApic) => set(off | BASE_ENABLE),
        (Mode::Disabled, Mode::X2Apic) => {
            set(off | BASE_ENABLE);
            set(off | BASE_ENABLE | BASE_X2APIC);
        }
        (_, Mode::X2Apic) => set(off | BASE_ENABLE | BASE_X2APIC),
    }
    local()
}

/// The APIC identifier by CPUID, which does not change with the APIC's mode: leaf 0xb if there
/// is one, else leaf 1.
pub fn initial_id() -> u32 {
    match cpuid::get(0xb, 0) {
        Some(words) if words.ebx != 0 => words.edx,
        _ => cpuid::leaf(1, 0).ebx >> 24,
    }
}

fn sure<T>(result: Result<T, Trap>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(trap) => panic!("{what}: {trap}"),
    }
}

impl Apic {
    /// How it is reached.
    pub fn mode(self) -> Mode {
        self.mode
    }

    /// Reads a register. `Err` where x2APIC mode refuses, or if the page is not mapped.
    pub fn try_read(self, register: Register) -> Result<u32, Trap> {
        match self.mode {
            Mode::X2Apic => rdmsr(register.msr()).map(|value| value as u32),
            _ => mem::read(self.base + u64::from(register.0)),
        }
    }

    /// Writes a register. `Err` where x2APIC mode refuses, or if the page is not mapped.
    pub fn try_write(self, register: Register, value: u32) -> Result<(), Trap> {
        match self.mode {
            Mode::X2Apic => wrmsr(register.msr(), value.into()),
            _ => mem::write(self.base + u64::from(register.0), value),
        }
    }

    /// Reads a register that is there.
    pub fn read(self, register: Register) -> u32 {
        sure(self.try_read(register), "read an APIC register")
    }

    /// Writes a register that is there, with a value it takes.
    pub fn write(self, register: Register, value: u32) {
        sure(self.try_write(register, value), "write an APIC register");
    }

    /// The identifier: 8 bits as xAPIC, 32 as x2APIC.
    pub fn id(self) -> u32 {
        match self.mode {
            Mode::X2Apic => self.read(Register::ID),
            _ => self.read(Register::ID) >> 24,
        }
    }

    /// Enables it by software, with [`SPURIOUS`] as the spurious vector.
    pub fn enable(self) {
        self.write(Register::SVR, 1 << 8 | u32::from(SPURIOUS));
    }

    /// Disables it by software; what is in the registers stays, the LVT is masked.
    pub fn disable(self) {
        let svr = self.read(Register::SVR);
        self.write(Register::SVR, svr & !(1 << 8));
    }

    /// Acknowledges the interrupt in service.
    pub fn eoi(self) {
        self.write(Register::EOI, 0);
    }

    /// Sets the task priority: vectors up to `priority | 0xf` wait.
    pub fn set_tpr(self, priority: u8) {
        self.write(Register::TPR, priority.into());
    }

    /// Sends an interrupt command.
    pub fn send(self, delivery: Delivery, destination: Destination) {
        let whom = match destination {
            Destination::Physical(id) | Destination::Logical(id) => id,
            _ => 0,
        };
        self.send_raw(whom, command(delivery, destination));
    }

    /// Writes the interrupt command register: destination as the mode has it, and low word.
    pub fn send_raw(self, destination: u32, low: u32) {
        match self.mode {
            Mode::X2Apic => {
                let value = u64::from(destination) << 32 | u64::from(low);
                sure(wrmsr(Register::ICR.msr(), value), "write the x2APIC's ICR");
            }
            _ => {
                self.write(Register::ICR_HIGH, destination << 24);
                self.write(Register::ICR, low);
                // Delivery status; a hypervisor has delivered by now.
                for _ in 0..1000 {
                    if self.read(Register::ICR) & 1 << 12 == 0 {
                        break;
                    }
                }
            }
        }
    }

    /// Sends `vector` to this CPU: the self-IPI register as x2APIC, a shorthand as xAPIC.
    pub fn self_ipi(self, vector: u8) {
        match self.mode {
            Mode::X2Apic => self.write(Register::SELF_IPI, vector.into()),
            _ => self.send(Delivery::Fixed(vector), Destination::Own),
        }
    }

    /// Sets up the timer, divided by 1; [`Apic::start_timer`] starts it.
    pub fn set_timer(self, timer: Timer, vector: u8) {
        let mode = match timer {
            Timer::OneShot => 0,
            Timer::Periodic => 1 << 17,
            Timer::Deadline => 2 << 17,
        };
        self.write(Register::TIMER_DIVIDE, 0b1011);
        self.write(Register::LVT_TIMER, mode | u32::from(vector));
    }

    /// Writes the timer's initial count; 0 stops it.
    pub fn start_timer(self, count: u32) {
        self.write(Register::TIMER_INITIAL, count);
    }

    /// Whether `vector` is set in one of the 256-bit registers ISR, TMR and IRR.
    pub fn bit(self, register: Register, vector: u8) -> bool {
        let word = Register(register.0 + u16::from(vector / 32) * 0x10);
        self.read(word) & 1 << (vector % 32) != 0
    }
}

impl Register {
    /// The register's MSR in x2APIC mode.
    pub const fn msr(self) -> u32 {
        0x800 + (self.0 >> 4) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_of_the_manual() {
        assert_eq!(command(Delivery::Init, Destination::Others), 0xc_4500);
        assert_eq!(command(Delivery::StartUp(8), Destination::Others), 0xc_4608);
        assert_eq!(command(Delivery::Fixed(0x40), Destination::Logical(3)), 0x4840);
        assert_eq!(Register::SELF_IPI.msr(), 0x83f);
    }
}
