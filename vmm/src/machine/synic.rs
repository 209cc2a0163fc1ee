//! Hyper-V's synthetic interrupt controllers, as far as they are the VMM's: messages and events that
//! guests send through connections (TLFS, Inter-Partition Communication).
//!
//! The registers and the interrupts of the sources are the hypervisor's that runs the guest. It tells
//! where each virtual processor has its message page and its event flags page; both lie in guest
//! memory, where the hypervisor puts messages of its own (of timers).

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};

use super::Backplane;
use crate::device::{StateError, SynicCall};
use crate::ram::{GuestRam, OutOfRam, PAGE};
use crate::state::{decode, encode};

/// What its state is called among those of the devices.
pub(super) const NAME: &str = "synic";
/// The most virtual processors that are known: more than any KVM has.
const MAX_VPS: u16 = 4096;
/// Sources of a virtual processor.
const SOURCES: u8 = 16;
/// Flags of a source.
const FLAGS: u32 = 2048;

/// SIEFP and SIMP.
const SIEFP: u32 = 0x4000_0082;
const SIMP: u32 = 0x4000_0083;

/// Call codes, and bits of a hypercall's input.
const POST_MESSAGE: u16 = 0x5c;
const SIGNAL_EVENT: u16 = 0x5d;
const FAST: u64 = 1 << 16;

/// A message in its slot: type, payload size, flags, sender, payload.
const MESSAGE: usize = 256;
const PAYLOAD_AT: usize = 16;
const SIZE_AT: usize = 4;
const FLAGS_AT: u64 = 5;
/// Message flags: another message waits for the slot.
const PENDING: u8 = 1;
/// Types with this bit are the hypervisor's own.
const OWN_TYPE: u32 = 1 << 31;
/// The most bytes of a payload.
const MAX_PAYLOAD: usize = MESSAGE - PAYLOAD_AT;

/// Results of hypercalls (TLFS, Hypercall Interface).
mod status {
    pub(super) const SUCCESS: u64 = 0;
    pub(super) const INVALID_HYPERCALL_CODE: u64 = 2;
    pub(super) const INVALID_HYPERCALL_INPUT: u64 = 3;
    pub(super) const INVALID_ALIGNMENT: u64 = 4;
    pub(super) const INVALID_PARAMETER: u64 = 5;
    pub(super) const INVALID_CONNECTION_ID: u64 = 0x12;
    pub(super) const INSUFFICIENT_BUFFERS: u64 = 0x13;
    pub(super) const INVALID_SYNIC_STATE: u64 = 0x18;
}

/// What the guest has in the registers of one controller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Registers {
    /// SCONTROL; bit 0 enables it.
    pub(super) control: u64,
    /// SIEFP, the event flags page; bit 0 enables it.
    pub(super) events: u64,
    /// SIMP, the message page; bit 0 enables it.
    pub(super) messages: u64,
}

impl Registers {
    /// The page of a register, if that is enabled and the controller is.
    fn page(&self, register: u64) -> Option<u64> {
        (self.control & register & 1 == 1).then_some(register & !(PAGE - 1))
    }
}

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Port {
    vp: u16,
    sint: u8,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// Messages go to the source's slot; one may wait for room.
    Messages(Option<Vec<u8>>),
    Events,
}

/// All controllers of a board.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Synic {
    processors: BTreeMap<u16, Registers>,
    ports: BTreeMap<u32, Port>,
}

/// What a controller reaches.
#[derive(Clone, Copy)]
pub(super) struct Behind<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) backplane: &'a dyn Backplane,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Done,
    /// The slot is taken, and says that another message waits.
    Busy,
    /// There is no slot.
    NoPage,
}

impl Synic {
    pub(super) fn save(&self) -> Vec<u8> {
        encode(self)
    }

    /// With a saved state. The backplane is told which sources are watched.
    pub(super) fn restored(state: &[u8], backplane: &dyn Backplane) -> Result<Synic, StateError> {
        let synic: Synic = decode(NAME, state)?;
        let sound = |(connection, port): (&u32, &Port)| match &port.kind {
            Kind::Messages(waiting) => waiting.as_ref().is_none_or(|m| m.len() == MESSAGE),
            Kind::Events => *connection < FLAGS,
        };
        let places = synic.ports.values().all(|port| is_source(port.vp, port.sint));
        let known = synic.processors.keys().all(|&vp| vp < MAX_VPS);
        if !places || !known || !synic.ports.iter().all(sound) {
            let what = "a connection to nowhere, or a message of another size".to_owned();
            return Err(StateError { device: NAME, what });
        }
        for port in synic.ports.values().filter(|port| port.kind != Kind::Events) {
            backplane.watch_sint(port.vp.into(), port.sint);
        }
        Ok(synic)
    }

    /// The guest wrote an MSR of processor `vp`'s controller. A page that it enables begins as zeroes.
    pub(super) fn changed(&mut self, ram: &GuestRam, vp: u16, msr: u32, registers: Registers) {
        if vp >= MAX_VPS {
            return;
        }
        let before = self.processors.insert(vp, registers).unwrap_or_default();
        let (old, new) = match msr {
            SIEFP => (before.events, registers.events),
            SIMP => (before.messages, registers.messages),
            _ => return,
        };
        if new & 1 == 1 && new != old {
            // One that is no RAM takes nothing.
            let _ = ram.write(new & !(PAGE - 1), &[0; PAGE as usize]);
        }
    }

    /// A device asks for something. What makes no sense changes nothing.
    pub(super) fn ask(&mut self, backplane: &dyn Backplane, call: SynicCall) {
        match call {
            SynicCall::Raise { vp, sint } if is_source(vp, sint) => {
                backplane.raise_sint(vp.into(), sint);
            }
            SynicCall::ConnectMessages { connection, vp, sint } if is_source(vp, sint) => {
                self.ports.insert(connection, Port { vp, sint, kind: Kind::Messages(None) });
                backplane.watch_sint(vp.into(), sint);
            }
            SynicCall::ConnectEvents { connection, vp, sint }
                if is_source(vp, sint) && connection < FLAGS =>
            {
                self.ports.insert(connection, Port { vp, sint, kind: Kind::Events });
            }
            SynicCall::Disconnect { connection, events } => {
                let kind = self.ports.get(&connection).map(|port| port.kind == Kind::Events);
                if kind == Some(events) {
                    self.ports.remove(&connection);
                }
            }
            _ => {}
        }
    }

    /// The result of a hypercall.
    pub(super) fn call(&mut self, behind: Behind<'_>, input: u64, params: [u64; 2]) -> u64 {
        let fast = input & FAST != 0;
        match input as u16 {
            POST_MESSAGE if fast => status::INVALID_HYPERCALL_INPUT,
            POST_MESSAGE => self.post(behind, params[0]),
            SIGNAL_EVENT if fast => self.signal(behind, params[0]),
            SIGNAL_EVENT => match read(behind.ram, params[0]).map(u64::from_le_bytes) {
                Some(param) => self.signal(behind, param),
                None => status::INVALID_ALIGNMENT,
            },
            _ => status::INVALID_HYPERCALL_CODE,
        }
    }

    /// HvPostMessage, with its parameters at `at`.
    fn post(&mut self, behind: Behind<'_>, at: u64) -> u64 {
        let Some(input) = read::<MESSAGE>(behind.ram, at) else {
            return status::INVALID_ALIGNMENT;
        };
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| input[at + i]));
        let (connection, reserved, kind, size) = (word(0), word(4), word(8), word(12) as usize);
        if reserved != 0 || kind == 0 || kind & OWN_TYPE != 0 || size > MAX_PAYLOAD {
            return status::INVALID_PARAMETER;
        }
        let Some(Port { vp, sint, kind: Kind::Messages(waiting) }) =
            self.ports.get_mut(&connection)
        else {
            return status::INVALID_CONNECTION_ID;
        };
        if waiting.is_some() {
            return status::INSUFFICIENT_BUFFERS;
        }
        let mut message = [0; MESSAGE];
        message[..4].copy_from_slice(&kind.to_le_bytes());
        message[SIZE_AT] = size as u8;
        message[8..12].copy_from_slice(&connection.to_le_bytes());
        message[PAYLOAD_AT..][..size].copy_from_slice(&input[PAYLOAD_AT..][..size]);
        let registers = self.processors.get(vp).copied().unwrap_or_default();
        match deliver(behind, registers, (*vp, *sint), &message) {
            Ok(Delivery::Done) => status::SUCCESS,
            Ok(Delivery::Busy) => {
                *waiting = Some(message.to_vec());
                status::SUCCESS
            }
            Ok(Delivery::NoPage) | Err(OutOfRam { .. }) => status::INVALID_SYNIC_STATE,
        }
    }

    /// HvSignalEvent: connection in bits 31:0, flag number in bits 47:32.
    fn signal(&mut self, behind: Behind<'_>, param: u64) -> u64 {
        let (connection, flag, reserved) = (param as u32, param >> 32 & 0xffff, param >> 48);
        if reserved != 0 {
            return status::INVALID_HYPERCALL_INPUT;
        }
        let Some(Port { vp, sint, kind: Kind::Events }) = self.ports.get(&connection) else {
            return status::INVALID_CONNECTION_ID;
        };
        // A connection of this board has one flag, that of its number.
        if flag != 0 {
            return status::INVALID_PARAMETER;
        }
        let registers = self.processors.get(vp).copied().unwrap_or_default();
        let Some(page) = registers.page(registers.events) else {
            return status::INVALID_SYNIC_STATE;
        };
        let at = page + u64::from(*sint) * u64::from(FLAGS / 8) + u64::from(connection / 8);
        match behind.ram.set_bit(at, (connection % 8) as u8) {
            // The guest has not looked at the last one yet.
            Ok(true) => status::SUCCESS,
            Ok(false) => {
                behind.backplane.raise_sint((*vp).into(), *sint);
                status::SUCCESS
            }
            Err(OutOfRam { .. }) => status::INVALID_SYNIC_STATE,
        }
    }

    /// Tries again to deliver what waits.
    pub(super) fn retry(&mut self, behind: Behind<'_>) {
        for port in self.ports.values_mut() {
            let Kind::Messages(waiting) = &mut port.kind else { continue };
            let Some(message) = waiting.as_ref().and_then(|m| m.first_chunk()) else { continue };
            let registers = self.processors.get(&port.vp).copied().unwrap_or_default();
            let delivery = deliver(behind, registers, (port.vp, port.sint), message);
            // A page that is gone took its slot along, and the message.
            if delivery != Ok(Delivery::Busy) {
                *waiting = None;
            }
        }
    }
}

fn is_source(vp: u16, sint: u8) -> bool {
    vp < MAX_VPS && sint < SOURCES
}

/// The input of a hypercall: aligned to 8, in one page, in RAM.
fn read<const N: usize>(ram: &GuestRam, at: u64) -> Option<[u8; N]> {
    if !at.is_multiple_of(8) || at % PAGE + N as u64 > PAGE {
        return None;
    }
    let mut bytes = [0; N];
    ram.read(at, &mut bytes).ok()?;
    Some(bytes)
}

/// Puts a message into its slot and requests the interrupt, or marks the slot.
///
/// The guest empties the slot (type 0), and then looks at the mark; here the mark is made, and then
/// the type looked at again. So one of the two sees what the other did.
fn deliver(
    behind: Behind<'_>,
    registers: Registers,
    (vp, sint): (u16, u8),
    message: &[u8; MESSAGE],
) -> Result<Delivery, OutOfRam> {
    let Behind { ram, backplane } = behind;
    let Some(page) = registers.page(registers.messages) else { return Ok(Delivery::NoPage) };
    let slot = page + u64::from(sint) * MESSAGE as u64;
    if ram.read_u32(slot)? != 0 {
        ram.write(slot + FLAGS_AT, &[PENDING])?;
        fence(Ordering::SeqCst);
        if ram.read_u32(slot)? != 0 {
            return Ok(Delivery::Busy);
        }
    }
    // The type comes last: with it the slot is taken.
    ram.write(slot + SIZE_AT as u64, &message[SIZE_AT..])?;
    fence(Ordering::SeqCst);
    ram.write(slot, &message[..SIZE_AT])?;
    backplane.raise_sint(vp.into(), sint);
    Ok(Delivery::Done)
}

#[cfg(test)]
#[path = "synic/tests.rs"]
mod tests;
