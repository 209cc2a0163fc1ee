//! How much memory devices may read and write in one operation.
//!
//! A bound is what the specifications of the board's devices say that the operation leads to. What else
//! is on the board, or what a guest wrote into registers before, makes it no larger.

use vmm::access::{Access, Space};
use vmm::chips::pci::edu::BUFFER_BYTES;
use vmm::chips::{fw_cfg, pci::vtd};
use vmm::exit::Exit;
use vmm::machine::Machine;
use vmm::ram::PAGE;
use vmm::script::replay::Touch;
use vmm::script::{BoardSpec, Op};

/// Accesses, and bytes in them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Traffic {
    accesses: u64,
    bytes: u64,
}

const fn traffic(accesses: u64, bytes: u64) -> Traffic {
    Traffic { accesses, bytes }
}

impl Traffic {
    const fn and(self, more: Traffic) -> Traffic {
        traffic(self.accesses + more.accesses, self.bytes + more.bytes)
    }

    const fn times(self, n: u64) -> Traffic {
        traffic(self.accesses * n, self.bytes * n)
    }

    const fn if_so(self, so: bool) -> Traffic {
        if so { self } else { traffic(0, 0) }
    }
}

/// By default: each of the eight pieces of an access may lead to a word. A device that does more has a line
/// below that says what.
const WORDS: Traffic = traffic(1, 8).times(8);
/// A translation: root and context entry, whose halves may be read one after the other, and an entry at each
/// of four levels (VT-d 3.4, 3.7, for 48 bits).
const WALK: Traffic = traffic(2 + 2 + 4, 16 + 16 + 4 * 8);
/// A message of a function: a dword in memory (PCI 3.0, 6.8.3), or the interrupt's entry is read (VT-d 5.1.3).
const MESSAGE: Traffic = WALK.and(traffic(1, 4));
/// At most so many leave in one operation: the edu device has one, which an access may let go twice (a
/// transfer ends, and a cause is raised), and an access has eight pieces.
const MESSAGES: Traffic = MESSAGE.times(16);
/// A transfer of the edu device: its buffer, on two pages.
const TRANSFER: Traffic = WALK.and(traffic(1, 0)).times(2).and(traffic(0, BUFFER_BYTES as u64));
/// The invalidation queue (VT-d 6.5.2, 11.4.9.3): 128 pages of descriptors of 16 bytes, each of which may
/// have a dword written.
const QUEUE: Traffic = traffic(2, 16 + 4).times(128 * PAGE / 16);
/// The longest item that fw_cfg has on a board that is fuzzed.
const ITEM: u64 = 4096;
/// fw_cfg's DMA: the descriptor, its answer, the item, and zeroes by the page.
const FW_CFG: Traffic =
    traffic(3, 16 + 4 + ITEM).and(traffic(fw_cfg::MAX_FILL as u64 / PAGE, fw_cfg::MAX_FILL as u64));
/// Hyper-V's message (TLFS 11.9, 11.10): its slot is looked at, marked, looked at again, and filled.
const DELIVERY: Traffic = traffic(5, 4 + 1 + 4 + 256);
/// HvPostMessage reads it; HvSignalEvent reads its parameter and changes a bit, which is less; a page that is
/// enabled is made zeroes.
const HYPERV: Traffic = DELIVERY.and(traffic(1, 256)).and(traffic(1, PAGE));
/// Each connection that the test device can make may have a message that waits.
const WAITING: Traffic = DELIVERY.times(256);
/// What the I/O APIC waits for is looked at: the entry of each pin's interrupt.
const PINS: u64 = 24;
const AWAITED: Traffic = traffic(1, 16).times(PINS);

/// Whether an access falls on some of this.
fn meets(access: &Access, space: Space, base: u64, len: u64) -> bool {
    let before = base.wrapping_sub(access.addr);
    access.space == space && (before < access.size.bytes() || access.addr.wrapping_sub(base) < len)
}

/// The most that `op` may lead to on a board that shows `effects` of it.
fn most(op: &Op, effects: usize, spec: &BoardSpec, machine: &Machine) -> Traffic {
    let has = |device: &str| machine.devices().any(|name| name == device);
    let messages = MESSAGES.if_so(machine.pci_functions().next().is_some());
    let own = match op {
        Op::Exit { exit: Exit::Io(access), .. } => {
            let fw_cfg = meets(access, Space::Port, fw_cfg::DMA_PORT, 8) && has("fw-cfg");
            let queue = meets(access, Space::Mmio, vtd::BASE, 0x1000) && has("intel-iommu");
            let own = FW_CFG.if_so(fw_cfg).and(QUEUE.if_so(queue));
            own.and(WORDS).and(TRANSFER.if_so(has("edu"))).and(messages)
        }
        Op::Exit { exit: Exit::HypervCall { .. } | Exit::HypervSynic { .. }, .. } => HYPERV,
        Op::Timer => WAITING.and(messages),
        Op::Reset => messages,
        _ => traffic(0, 0),
    };
    // It is looked at after each piece of an access, each change of a line, and the end of each pin's interrupt.
    let remaps = spec.iommu.is_some_and(|iommu| iommu.interrupts) && spec.ioapic;
    let looks = AWAITED.and(traffic(1, 16)).times(8 + PINS + effects as u64);
    own.and(looks.if_so(remaps))
}

/// Whether devices did no more to memory than `op` leads to; if not, what they did.
pub(super) fn bounded(
    op: &Op,
    effects: usize,
    touched: &[Touch],
    spec: &BoardSpec,
    machine: &Machine,
) -> Result<(), String> {
    if touched.is_empty() {
        return Ok(());
    }
    let bytes = touched.iter().fold(0, |all: u64, touch| all.saturating_add(touch.len));
    let (did, most) = (traffic(touched.len() as u64, bytes), most(op, effects, spec, machine));
    if did.accesses > most.accesses || did.bytes > most.bytes {
        let Traffic { accesses, bytes } = did;
        return Err(format!(
            "`{op}` has devices access memory {accesses} times with {bytes} bytes, above {} with {}",
            most.accesses, most.bytes
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm::access::Size;
    use vmm::machine::{ManualClock, Nowhere, PcConfig, PciDevice, pc};
    use vmm::ram::{Backing, GuestRam, MIN_SIZE};

    use super::*;

    #[test]
    fn a_bound_is_that_of_what_the_operation_falls_on() {
        let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("2 MiB");
        let pci = Some(vec![PciDevice::Edu]);
        let config = PcConfig { cpus: 1, pci, ..PcConfig::default() };
        let machine = pc(&config, ram, Arc::new(ManualClock::default()), Arc::new(Nowhere));
        let (machine, spec) = (machine.expect("a board"), BoardSpec::default());
        let read = |space, addr| Op::io(Access::read(space, addr, Size::B4));
        let touch = Touch { addr: 0x1000, len: 4, is_write: true };
        let times = |op: &Op, n| bounded(op, 0, &vec![touch; n], &spec, &machine).is_ok();
        // The engine may be behind any access; a transfer is two runs, and messages are few.
        let other = read(Space::Port, 0x510);
        assert!(times(&other, 170) && !times(&other, 171));
        // Its last byte is that of the DMA register.
        let dma = read(Space::Port, 0x511);
        assert!(times(&dma, 429) && !times(&dma, 430));
        let long = FW_CFG.and(WORDS).and(TRANSFER).and(MESSAGES).bytes;
        let long = Touch { len: long, ..touch };
        assert_eq!(bounded(&dma, 0, &[long], &spec, &machine), Ok(()));
        bounded(&dma, 0, &[long, touch], &spec, &machine).expect_err("four bytes more");
        // There is no IOMMU on this board.
        assert!(!times(&read(Space::Mmio, vtd::BASE), 171));
        assert!(times(&Op::Advance(1), 0) && !times(&Op::Advance(1), 1));
    }
}
