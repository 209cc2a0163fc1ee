//! Whose an access is, for who counts them: no way of an exit goes through here.

use super::{Context, Machine};
use crate::access::{Size, Space};
use crate::bus::Decoded;

impl Machine {
    /// The place in [`Machine::devices`] of the device that an access is to: of several, the one that has the lowest
    /// byte that is anybody's. A configuration cycle is the function's that it selects. The number behind
    /// the last device, where it is nobody's.
    ///
    /// It is the same before and after the access, but for one that moves or selects what it goes to.
    #[inline(always)]
    pub fn owner(&self, cx: &mut Context, space: Space, addr: u64, size: Size) -> usize {
        match self.bus.decode(&mut cx.hint, space, addr, size) {
            Decoded::At(device, _) if device < self.slots.len() => device,
            // Nobody's, all of it, and there is no other bus.
            Decoded::At(..) if self.pci.is_none() => self.slots.len(),
            _ => self.owner_of(space, addr, size),
        }
    }

    #[inline(never)]
    fn owner_of(&self, space: Space, addr: u64, size: Size) -> usize {
        let bytes = || (0..size.bytes()).map(|i| addr.wrapping_add(i));
        let fixed = || bytes().find_map(|byte| self.bus.owner(space, byte));
        let on_pci = || {
            let pci = self.pci.as_ref()?;
            bytes().find_map(|byte| self.pci_owner(pci, space, byte))
        };
        fixed().or_else(on_pci).map_or(self.slots.len(), usize::from)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::access::{Access, Dir};
    use crate::exit::Exit;
    use crate::machine::{ManualClock, Nowhere, PcConfig, PciDevice, pc};
    use crate::ram::{Backing, GuestRam};

    fn board(pci: Option<Vec<PciDevice>>) -> Machine {
        let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
        let config = PcConfig { pci, ..PcConfig::default() };
        pc(&config, ram, Arc::new(ManualClock::default()), Arc::new(Nowhere)).expect("a board")
    }

    fn name(machine: &Machine, space: Space, addr: u64, size: Size) -> Option<&'static str> {
        let mut cx = Context::new();
        let twice = [0, 1].map(|_| machine.owner(&mut cx, space, addr, size));
        assert_eq!(twice[0], twice[1], "a hint changes nothing");
        machine.devices().nth(twice[0])
    }

    #[test]
    fn an_access_belongs_to_who_has_its_first_byte_that_is_anybodys() {
        let board = board(None);
        assert_eq!(name(&board, Space::Port, 0x3f8, Size::B1), Some("com1"));
        assert_eq!(name(&board, Space::Port, 0x3f8, Size::B4), Some("com1"), "too wide");
        assert_eq!(name(&board, Space::Port, 0x3f7, Size::B2), Some("com1"), "only its tail");
        assert_eq!(name(&board, Space::Port, 0x1, Size::B1), None);
        assert_eq!(name(&board, Space::Port, 0xcfc, Size::B4), None, "no PCI bus");
        assert_eq!(name(&board, Space::Mmio, 0xfed8_0000, Size::B4), None);
        assert_eq!(name(&board, Space::Mmio, u64::MAX, Size::B8), None);
        let count = board.devices().count();
        assert_eq!(board.owner(&mut Context::new(), Space::Port, 0x1, Size::B1), count);
    }

    #[test]
    fn a_configuration_cycle_belongs_to_the_function_that_is_selected() {
        let board = board(Some(vec![PciDevice::Edu]));
        let mut cx = Context::new();
        let mut select = |word| {
            let dir = Dir::Write(word);
            let access = Access { space: Space::Port, addr: 0xcf8, size: Size::B4, dir };
            board.handle(&mut cx, &Exit::Io(access));
        };
        let (slot, _) = board.pci_functions().find(|(_, name)| *name == "edu").expect("edu");
        select(1 << 31 | u64::from(slot.number()) << 8);
        assert_eq!(name(&board, Space::Port, 0xcfe, Size::B2), Some("edu"));
        select(1 << 31 | 31 << 11);
        assert_eq!(name(&board, Space::Port, 0xcfc, Size::B4), None, "nobody is there");
        let window = board.pci_mappings().into_iter().find(|m| m.region.space == Space::Mmio);
        let window = window.expect("edu's registers");
        assert_eq!(name(&board, Space::Mmio, window.base + 4, Size::B4), Some("edu"));
    }
}
