//! The PC16550D UART, after National Semiconductor's datasheet ("PC16550D Universal Asynchronous
//! Receiver/Transmitter with FIFOs"); section numbers are its own.
//!
//! What a guest could tell from the real chip:
//!
//! - Transmission takes no time: THR and the transmit FIFO are always empty, and a byte leaves as
//!   [`Action::Output`] in the very access that wrote it.
//! - Reception takes no time either, but is bounded by the chip's own FIFO: [`Device::input`]
//!   takes what fits, so the host's bytes never overrun. Only loop-back can.
//! - The other end of the cable is always there: CTS, DSR and DCD are on, RI is off.
//! - The divisor sets the character time-out (8.11) and nothing else; 0 counts as 1 (8.3 only
//!   recommends against it).
//! - Auto-flow, the DMA pins and the factory's writes to LSR and MSR do not exist.

use serde::{Deserialize, Serialize};

use crate::access::{IoError, Size, Space};
use crate::device::{Action, At, Device, Env, Nanos, Region, SECOND, StateError};
use crate::planted::{self, Flaw};
use crate::state::{decode, encode};

/// First port and GSI of a PC's first serial port.
pub const COM1: (u16, u32) = (0x3f8, 4);
/// First port and GSI of the second.
pub const COM2: (u16, u32) = (0x2f8, 3);
/// First port and GSI of the third; its line is COM1's.
pub const COM3: (u16, u32) = (0x3e8, 4);
/// First port and GSI of the fourth; its line is COM2's.
pub const COM4: (u16, u32) = (0x2e8, 3);

/// Bytes of the receive FIFO.
const FIFO: u8 = 16;
/// What a divisor of 1 stands for: 1.8432 MHz / 16.
const BASE_BAUD: u64 = 115_200;
/// Divisor after power-on: 9600 baud. (The datasheet leaves it undefined.)
const POWER_ON_DIVISOR: u16 = 12;
/// Receive FIFO levels that the upper two bits of FCR choose from (8.5).
const TRIGGER: [u8; 4] = [1, 4, 8, 14];

const IER_RX: u8 = 1;
const IER_THRE: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;

const LCR_BREAK: u8 = 1 << 6;
const LCR_DLAB: u8 = 1 << 7;

const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;

const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RX: u8 = 2;

const LSR_READY: u8 = 1;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_BREAK: u8 = 1 << 4;
/// THRE and TEMT: both always set here.
const LSR_IDLE: u8 = 3 << 5;
const LSR_FIFO_ERROR: u8 = 1 << 7;

/// CTS, DSR and DCD of the cable's other end, as the upper half of MSR has them.
const CABLE: u8 = 0b1011;
/// The bit of RI in the lines: its delta bit tells the trailing edge only (8.9).
const RI: u8 = 1 << 2;

/// The causes of an interrupt as IIR names them (8.6, table IV), highest priority first.
const CAUSE_LINE: u8 = 6;
const CAUSE_DATA: u8 = 4;
const CAUSE_TIMEOUT: u8 = 0xc;
const CAUSE_THRE: u8 = 2;
const CAUSE_MODEM: u8 = 0;
const CAUSE_NONE: u8 = 1;

/// All that a guest can change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u16,
    /// FCR's enable bit.
    fifo: bool,
    /// Index into [`TRIGGER`].
    trigger: u8,
    /// Received characters: a ring of which 1 is used while the FIFO is off.
    rx: [u8; FIFO as usize],
    /// Which slots of the ring hold a break not yet seen in LSR.
    breaks: u16,
    head: u8,
    len: u8,
    overrun: bool,
    /// "THR became empty" is pending: IIR has not told it yet.
    thre: bool,
    /// The character time-out has struck.
    timeout: bool,
    /// When the FIFO last took or gave a character; runs while it holds some.
    quiet_since: Nanos,
    /// Lower half of MSR.
    deltas: u8,
}

impl Default for Regs {
    fn default() -> Self {
        Regs {
            ier: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            divisor: POWER_ON_DIVISOR,
            fifo: false,
            trigger: 0,
            rx: [0; FIFO as usize],
            breaks: 0,
            head: 0,
            len: 0,
            overrun: false,
            thre: false,
            timeout: false,
            quiet_since: 0,
            deltas: 0,
        }
    }
}

/// A serial port.
#[derive(Clone, Debug)]
pub struct Uart {
    name: &'static str,
    regs: Regs,
}

impl Uart {
    /// A serial port after power-on, called `name` on its board.
    pub fn new(name: &'static str) -> Uart {
        Uart { name, regs: Regs::default() }
    }

    /// The host holds the line in a break condition: one zero character with BI set arrives
    /// (8.4), unless the receiver is full or looped back. Tells whether it arrived.
    pub fn receive_break(&mut self, env: &mut Env<'_>) -> bool {
        let room = self.input_room() > 0;
        if room {
            let slot = (self.regs.head + self.regs.len) % FIFO;
            self.receive(env, 0);
            self.regs.breaks |= 1 << slot;
        }
        room
    }

    fn capacity(&self) -> u8 {
        if self.regs.fifo { FIFO } else { 1 }
    }

    /// Four character times (8.11): what the FIFO waits for more.
    fn patience(&self) -> Nanos {
        let lcr = self.regs.lcr;
        let data = 5 + u64::from(lcr & 3);
        let parity = u64::from(lcr >> 3 & 1);
        // In half bits, as 5 data bits go with 1.5 stop bits (8.1).
        let stop = match (lcr & 4 != 0, data) {
            (false, _) => 2,
            (true, 5) => 3,
            (true, _) if planted::has(Flaw::UartPatience) => 2,
            (true, _) => 4,
        };
        let half_bits = 2 * (1 + data + parity) + stop;
        4 * half_bits * u64::from(self.regs.divisor.max(1)) * SECOND / (2 * BASE_BAUD)
    }

    /// Lets the character time-out strike if it is over. Reads the clock only if it may.
    #[inline(always)]
    fn sync(&mut self, env: &mut Env<'_>) {
        if self.waits() {
            self.regs.timeout = env.now() >= self.timeout_at();
        }
    }

    /// Whether the FIFO holds characters that nobody came for yet.
    #[inline(always)]
    fn waits(&self) -> bool {
        self.regs.fifo && self.regs.len > 0 && !self.regs.timeout
    }

    #[inline(never)]
    fn timeout_at(&self) -> Nanos {
        self.regs.quiet_since.saturating_add(self.patience())
    }

    /// A character reaches the receiver.
    fn receive(&mut self, env: &mut Env<'_>, byte: u8) {
        self.sync(env);
        let r = &mut self.regs;
        if r.fifo && r.len == FIFO {
            // 8.4, bit 1: the FIFO keeps what it has, the new character is lost.
            r.overrun = !planted::has(Flaw::UartOverrun);
            return;
        }
        if r.fifo {
            r.quiet_since = env.now();
        } else if r.len == 1 {
            // The same: the character in RBR is destroyed by the next.
            r.overrun = true;
            r.len = 0;
            r.breaks = 0;
        }
        let ring = if planted::has(Flaw::UartRing) { u8::MAX } else { FIFO };
        let slot = (r.head + r.len) % ring;
        r.rx[usize::from(slot)] = byte;
        r.len += 1;
    }

    #[inline(never)]
    fn take_rx(&mut self, env: &mut Env<'_>) -> u8 {
        let r = &mut self.regs;
        if r.len == 0 {
            return 0;
        }
        let byte = r.rx[usize::from(r.head)];
        r.breaks &= !(1 << r.head);
        r.head = (r.head + 1) % FIFO;
        r.len -= 1;
        r.timeout = false;
        if r.fifo && r.len > 0 {
            r.quiet_since = env.now();
        }
        byte
    }

    fn clear_rx(&mut self) {
        let r = &mut self.regs;
        let timeout = r.timeout && planted::has(Flaw::UartCleared);
        (r.head, r.len, r.breaks, r.timeout) = (0, 0, 0, timeout);
    }

    /// Whether LSR shows an error: an overrun, or a break at the head of the FIFO.
    fn line_error(&self) -> bool {
        let r = &self.regs;
        r.overrun || r.breaks >> r.head & 1 == 1
    }

    #[inline(never)]
    fn read_iir(&mut self) -> u8 {
        let cause = self.cause();
        if cause == CAUSE_THRE {
            self.regs.thre = false;
        }
        cause | if self.regs.fifo { 0xc0 } else { 0 }
    }

    #[inline(always)]
    fn read_lsr(&mut self) -> u8 {
        let r = &mut self.regs;
        let mut lsr = LSR_IDLE;
        if r.len > 0 {
            lsr |= LSR_READY;
        }
        if r.overrun {
            lsr |= LSR_OVERRUN;
            r.overrun = false;
        }
        if r.breaks != 0 {
            if r.fifo {
                lsr |= LSR_FIFO_ERROR;
            }
            if r.breaks >> r.head & 1 == 1 {
                lsr |= LSR_BREAK;
                r.breaks &= !(1 << r.head);
            }
        }
        lsr
    }

    #[inline(never)]
    fn cause(&self) -> u8 {
        let r = &self.regs;
        let level = if r.fifo { TRIGGER[usize::from(r.trigger)] } else { 1 };
        let level = level + u8::from(level == 14 && planted::has(Flaw::UartTrigger));
        let empty = r.ier & IER_THRE != 0 && r.thre;
        if r.ier & IER_LINE != 0 && self.line_error() {
            CAUSE_LINE
        } else if empty && planted::has(Flaw::UartPriority) {
            CAUSE_THRE
        } else if r.ier & IER_RX != 0 && r.len >= level {
            CAUSE_DATA
        } else if r.ier & IER_RX != 0 && r.timeout {
            CAUSE_TIMEOUT
        } else if empty {
            CAUSE_THRE
        } else if r.ier & IER_MODEM != 0 && r.deltas != 0 {
            CAUSE_MODEM
        } else {
            CAUSE_NONE
        }
    }

    /// The modem's lines as MSR's upper half has them. Looped back (8.8, bit 4), they are the
    /// chip's own outputs: RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
    fn modem_lines(&self) -> u8 {
        let mcr = self.regs.mcr;
        if mcr & MCR_LOOP == 0 {
            return CABLE;
        }
        (mcr >> 1 & 1) | (mcr & 1) << 1 | (mcr & 0xc)
    }

    #[inline(never)]
    fn transmit(&mut self, env: &mut Env<'_>, byte: u8) {
        if self.regs.mcr & MCR_LOOP != 0 {
            self.receive(env, byte);
        } else if self.regs.lcr & LCR_BREAK == 0 {
            env.act(Action::Output(byte));
        }
        // Else SOUT is held in a break (8.1, bit 6), and the other end sees none of this.
        self.regs.thre = true;
    }

    #[inline(never)]
    fn write_fcr(&mut self, value: u8) {
        let enable = value & FCR_ENABLE != 0;
        // 8.5: a change of the mode empties the FIFOs; other bits count only with bit 0 set.
        if enable != self.regs.fifo || (enable && value & FCR_CLEAR_RX != 0) {
            self.clear_rx();
        }
        self.regs.fifo = enable;
        self.regs.trigger = if enable { value >> 6 } else { 0 };
    }

    #[inline(never)]
    fn write_mcr(&mut self, value: u8) {
        let before = self.modem_lines();
        self.regs.mcr = value & 0x1f;
        let after = self.modem_lines();
        let changed = before ^ after;
        self.regs.deltas |= (changed & !RI) | (changed & before & RI);
    }
}

impl Device for Uart {
    fn name(&self) -> &'static str {
        self.name
    }

    fn regions(&self) -> &'static [Region] {
        &[Region { name: "uart", space: Space::Port, len: 8, widest: Size::B1 }]
    }

    #[inline(always)]
    fn look(&self, at: At, size: Size) -> Option<u64> {
        let r = &self.regs;
        if size != Size::B1 || self.waits() {
            return None;
        }
        match at.offset {
            5 if !r.overrun && r.breaks == 0 && r.len == 0 => Some(LSR_IDLE.into()),
            7 => Some(r.scr.into()),
            _ => None,
        }
    }

    #[inline(always)]
    fn keep(&mut self, at: At, size: Size, value: u64) -> bool {
        let scratch = at.offset == 7 && size == Size::B1 && !self.waits();
        if scratch {
            self.regs.scr = value as u8;
        }
        scratch
    }

    #[inline(always)]
    fn read(&mut self, env: &mut Env<'_>, at: At, size: Size) -> Result<u64, IoError> {
        if size != Size::B1 {
            return Err(IoError::Width);
        }
        // Before what this access changes: what else holds the line high may be taken away by it, and
        // no deadline is kept while it is high.
        self.sync(env);
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        let value = match at.offset {
            0 if dlab => self.regs.divisor as u8,
            0 => self.take_rx(env),
            1 if dlab => (self.regs.divisor >> 8) as u8,
            1 => self.regs.ier,
            2 => self.read_iir(),
            3 => self.regs.lcr,
            4 => self.regs.mcr,
            5 => self.read_lsr(),
            6 => self.modem_lines() << 4 | std::mem::take(&mut self.regs.deltas),
            7 => self.regs.scr,
            _ => return Err(IoError::NoRegister),
        };
        Ok(u64::from(value))
    }

    #[inline(always)]
    fn write(&mut self, env: &mut Env<'_>, at: At, size: Size, value: u64) -> Result<(), IoError> {
        if size != Size::B1 {
            return Err(IoError::Width);
        }
        self.sync(env);
        let value = value as u8;
        let dlab = self.regs.lcr & LCR_DLAB != 0;
        match at.offset {
            0 if dlab => {
                self.regs.divisor = self.regs.divisor & 0xff00 | u16::from(value);
                if planted::has(Flaw::UartDivisor) {
                    self.regs.quiet_since += BASE_BAUD / u64::from(self.regs.divisor) / BASE_BAUD;
                }
            }
            0 => self.transmit(env, value),
            1 if dlab => {
                self.regs.divisor = self.regs.divisor & 0xff | u16::from(value) << 8;
            }
            1 => {
                // THR is empty: to enable its interrupt is to get it (8.4, bit 5).
                if value & !self.regs.ier & IER_THRE != 0 {
                    self.regs.thre = true;
                }
                self.regs.ier = value & 0xf;
            }
            2 => self.write_fcr(value),
            3 => self.regs.lcr = value,
            4 => self.write_mcr(value),
            5 | 6 => return Err(IoError::ReadOnly),
            7 => self.regs.scr = value,
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }

    /// On a PC the line passes a gate that OUT2 opens; looped back, the chip's OUT2 pin is off
    /// (8.8, bit 4).
    #[inline(always)]
    fn irq(&self) -> bool {
        self.regs.mcr & (MCR_OUT2 | MCR_LOOP) == MCR_OUT2 && self.cause() != CAUSE_NONE
    }

    #[inline(always)]
    fn deadline(&self) -> Option<Nanos> {
        let waits = self.waits() && self.regs.ier & IER_RX != 0 && !self.irq();
        waits.then(|| self.timeout_at())
    }

    fn advance(&mut self, env: &mut Env<'_>) {
        self.sync(env);
    }

    fn input(&mut self, env: &mut Env<'_>, bytes: &[u8]) -> usize {
        let took = bytes.len().min(self.input_room());
        for &byte in &bytes[..took] {
            self.receive(env, byte);
        }
        took
    }

    /// None while looped back: SIN is disconnected then, and the host's bytes wait.
    fn input_room(&self) -> usize {
        let looped = self.regs.mcr & MCR_LOOP != 0;
        if looped { 0 } else { usize::from(self.capacity() - self.regs.len) }
    }

    fn reset(&mut self, _: &mut Env<'_>) {
        let scr = if planted::has(Flaw::UartScratch) { self.regs.scr } else { 0 };
        self.regs = Regs { scr, ..Regs::default() };
    }

    fn save(&self) -> Vec<u8> {
        let Uart { name: _, regs } = self;
        if planted::has(Flaw::UartThre) {
            return encode(&Regs { thre: false, ..regs.clone() });
        }
        encode(regs)
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StateError> {
        let r: Regs = decode(self.name, state)?;
        let capacity = if r.fifo { FIFO } else { 1 };
        // The ring's slots that hold something, as a rotated run of `len` ones.
        let run = ((1u32 << r.len.min(FIFO)) - 1) as u16;
        let sound = r.ier <= 0xf
            && r.mcr <= 0x1f
            && r.deltas <= 0xf
            && r.trigger <= if r.fifo { 3 } else { 0 }
            && (r.head < FIFO || planted::has(Flaw::UartHead))
            && r.len <= capacity
            && r.breaks & !run.rotate_left(u32::from(r.head)) == 0
            && (!r.timeout || (r.fifo && r.len > 0));
        if !sound {
            let what = "registers that the chip cannot have".to_owned();
            return Err(StateError { device: self.name, what });
        }
        self.regs = r;
        Ok(())
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
