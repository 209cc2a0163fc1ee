//! Exits that are no accesses.

use vmm::access::{Access, Size, Space};
use vmm::exit::{Exit, SystemEvent};
use vmm::script::Op;

use super::{Generator, RECORD};

/// Of a hypercall: its parameter is no address (TLFS 3.7).
const FAST: u64 = 1 << 16;

impl Generator<'_, '_, '_> {
    /// What a guest does for a message or an event: pages, a connection by the test device, a call.
    fn synic(&mut self) {
        let what = self.byte();
        // Rarely: a parameter passed the other way, bits where none are, a processor that there is not.
        let odd = match self.record[RECORD - 1] {
            byte @ 0xe0.. => byte,
            _ => 0,
        };
        let (vp, sint) = (u16::from(what & 1), u32::from(what >> 1 & 3));
        let vp = if odd == 0xff { u16::MAX } else { vp };
        let connection = u32::from(what >> 3 & 3);
        let is_event = what & 0x80 != 0;
        let [events, messages] = [0, 1].map(|i| self.places[i % self.places.len()] & !0xfff | 1);
        let control = u64::from(self.byte() & 0xf0 != 0);
        let msr = 0x4000_0080 + u32::from(self.byte() % 4);
        let exit = Exit::HypervSynic { vp, msr, control, events, messages };
        self.play(Op::Exit { cpu: 0, exit });
        // A route and its interrupt; then a connection, or the end of one.
        let connect = [4, 6, 5, 7][usize::from(self.byte() % 4)];
        for command in [1, 3, connect] {
            let word = connection << 24 | command << 16 | u32::from(vp & 0xff) << 8 | sint;
            self.access(Access::write(Space::Port, 0x3000, Size::B4, word.into()));
        }
        let (input, param) = match is_event {
            true => (0x1_005d, u64::from(connection)),
            false => {
                let addr = self.places[0] & !7;
                let words = [connection, 0, u32::from(self.byte()), u32::from(self.byte())];
                let bytes = words.iter().flat_map(|w| w.to_le_bytes()).collect();
                self.play(Op::Ram { addr, bytes, after: 0 });
                (0x5c, addr)
            }
        };
        let input = if odd & 1 == 1 { input ^ FAST } else { input };
        let param = param | if odd & 4 != 0 { 1 << (32 + (odd >> 3 & 1) * 16) } else { 0 };
        let exit = Exit::HypervCall { input, params: [param, 0] };
        self.play(Op::Exit { cpu: 0, exit });
    }

    /// Exits that are no I/O.
    pub(super) fn exit(&mut self) {
        let exit = match self.byte() % 16 {
            0 => Exit::Interrupted,
            1 => Exit::Hlt,
            2 => Exit::Rdmsr { index: self.value(Size::B4) as u32 },
            3 => Exit::Wrmsr { index: self.value(Size::B4) as u32, value: self.value(Size::B8) },
            4 => Exit::Hypercall { nr: self.value(Size::B8), args: [self.value(Size::B8), 0, 0] },
            // Mostly of an interrupt that somebody asked for.
            5 => match self.byte() {
                0..0xc0 => Exit::IoapicEoi(self.pick(self.written) as u8),
                byte => Exit::IoapicEoi(byte),
            },
            6 => Exit::SystemEvent(self.pick([
                SystemEvent::Reset,
                SystemEvent::Shutdown,
                SystemEvent::Crash,
            ])),
            7 => Exit::SystemEvent(SystemEvent::Other(self.byte().into())),
            8 => Exit::Shutdown,
            9 => Exit::InternalError { suberror: self.byte().into() },
            10 => Exit::MemoryFault { flags: 8, gpa: self.place(), size: 4096 },
            11 => Exit::IrqWindow,
            12 => Exit::SetTpr,
            13 => Exit::BusLock,
            14 => Exit::Notify,
            _ => match self.byte() {
                reason @ 0..0x10 => Exit::Unknown(reason.into()),
                msr @ 0x10..0x20 => Exit::HypervDebug { msr: msr.into() },
                _ => return self.synic(),
            },
        };
        self.play(Op::Exit { cpu: 0, exit });
    }
}
