//! The board's answers to accesses, device by device.

use std::hint::black_box;
use std::sync::Arc;

use vmm::access::{Access, Size, Space};
use vmm::chips::pci::Slot;
use vmm::chips::pci::memory::Iommu;
use vmm::chips::pci::vtd::{self, Vtd, reg, status};
use vmm::chips::{acpi_pm, fw_cfg, i8042, rtc};
use vmm::device::{Actions, At, Device as _, Env};
use vmm::exit::{Entry, Exit};
use vmm::machine::{IommuConfig, ManualClock, PciDevice};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};

use super::{Pair, Scene};
use crate::{Rig, WORKLOADS, Workload};

const NOTHING: &str = "an empty call";
const UNCLAIMED: &str = "as many accesses that nobody claims";

macro_rules! board {
    ($($name:literal $index:literal)*) => {
        &[$(Scene {
            group: "board",
            name: $name,
            against: NOTHING,
            make: || board(&WORKLOADS[$index]),
        },)*
        scene("uart_transmit", || accesses(&[out(0x3f8, Size::B1, 0x41)])),
        scene("uart_status", || accesses(&[input(0x3fd, Size::B1)])),
        Scene { against: UNCLAIMED, ..scene("uart_receive", receive) },
        scene("rtc_read", || accesses(&[out(RTC, Size::B1, 0x0d), input(RTC + 1, Size::B1)])),
        scene("pci_config_read", || accesses(&[
            out(0xcf8, Size::B4, 0x8000_0000),
            input(0xcfc, Size::B4),
        ])),
        scene("fw_cfg_signature", || accesses(&[
            out(fw_cfg::SELECTOR_PORT, Size::B2, 0),
            input(fw_cfg::SELECTOR_PORT + 1, Size::B1),
            input(fw_cfg::SELECTOR_PORT + 1, Size::B1),
            input(fw_cfg::SELECTOR_PORT + 1, Size::B1),
            input(fw_cfg::SELECTOR_PORT + 1, Size::B1),
        ])),
        scene("keyboard_status", || accesses(&[input(i8042::COMMAND_PORT, Size::B1)])),
        scene("pm_timer", || accesses(&[input(acpi_pm::PM_BASE + 8, Size::B4)])),
        scene("vtd_register", || accesses(&[
            Exit::Io(Access::read(Space::Mmio, vtd::BASE + reg::CAPABILITY, Size::B8)),
        ])),
        Scene { against: "two reads of memory", ..scene("vtd_translate", translate) },
        ]
    };
}

const RTC: u64 = rtc::BASE as u64;

/// The exits of `WORKLOADS`, and devices.
pub(super) const SCENES: &[Scene] = board! {
    "port_read" 0
    "port_write" 1
    "mmio_read" 2
    "mmio_write" 3
    "unclaimed_port_read" 4
    "unclaimed_mmio_read" 5
    "split_port_read" 6
};

const fn scene(name: &'static str, make: fn() -> Pair) -> Scene {
    Scene { group: "device", name, against: UNCLAIMED, make }
}

const fn input(port: u64, size: Size) -> Exit {
    Exit::Io(Access::read(Space::Port, port, size))
}

const fn out(port: u64, size: Size, value: u64) -> Exit {
    Exit::Io(Access::write(Space::Port, port, size, value))
}

fn board(workload: &'static Workload) -> Pair {
    let mut rig = Rig::new();
    let entry = rig.machine.handle(&mut rig.cx, &workload.exit);
    assert_eq!(entry, workload.entry, "{}: the board has changed", workload.name);
    let ours = move || {
        black_box(rig.machine.handle(&mut rig.cx, black_box(&workload.exit)));
    };
    Pair::new(ours, || {
        black_box(black_box(&WORKLOADS[0].exit));
    })
}

/// A board with all that it can have.
fn full() -> Rig {
    Rig::with(Some(PciDevice::ALL.to_vec()), Some(IommuConfig { interrupts: true }))
}

/// Plays these on a board that has all, beside as many accesses that nobody claims.
fn accesses(exits: &[Exit]) -> Pair {
    let (exits, count) = (exits.to_vec(), exits.len());
    let (mut rig, mut other) = (full(), full());
    for exit in &exits {
        let faults = rig.cx.faults;
        let entry = rig.machine.handle(&mut rig.cx, exit);
        assert!(matches!(entry, Entry::Resume | Entry::Read(_)), "{exit} is answered {entry:?}");
        assert_eq!(rig.cx.faults, faults, "{exit} is taken by no device");
    }
    let ours = move || {
        for exit in &exits {
            black_box(rig.machine.handle(&mut rig.cx, black_box(exit)));
        }
    };
    let bare = move || {
        for _ in 0..count {
            black_box(other.machine.handle(&mut other.cx, black_box(&input(0x1, Size::B1))));
        }
    };
    Pair::new(ours, bare)
}

/// A byte arrives, and is read.
fn receive() -> Pair {
    let (mut rig, mut other) = (full(), full());
    let read = input(0x3f8, Size::B1);
    let mut ours = move || {
        assert_eq!(rig.machine.input(&mut rig.cx, "com1", b"x"), Some(1));
        let entry = rig.machine.handle(&mut rig.cx, black_box(&read));
        assert_eq!(entry, Entry::Read(b'x'.into()));
    };
    ours();
    Pair::new(ours, move || {
        black_box(other.machine.handle(&mut other.cx, black_box(&input(0x1, Size::B1))));
    })
}

/// An address that goes through tables of three levels.
fn translate() -> Pair {
    const ROOT: u64 = 0x1000;
    const CONTEXTS: u64 = 0x2000;
    const TABLE: u64 = 0x3000;
    const NEXT: u64 = 0x4000;
    const LAST: u64 = 0x5000;
    const TO: u64 = 0x6000;
    let requester = Slot::new(4, 0);
    let ram = GuestRam::new(MIN_SIZE, Backing::Auto).expect("the host has 2 MiB");
    let put = |at: u64, words: &[u64]| {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        ram.write(at, &bytes).expect("RAM");
    };
    // Root, context (a domain, 39 bits), and one entry of each level (VT-d, 9.1, 9.3, 9.8).
    put(ROOT, &[CONTEXTS | 1, 0]);
    put(CONTEXTS + 16 * 0x20, &[TABLE | 1, 1 | 7 << 8]);
    put(TABLE, &[NEXT | 3]);
    put(NEXT, &[LAST | 3]);
    put(LAST, &[TO | 3]);
    let clock = Arc::new(ManualClock::default());
    let mut actions = Actions::default();
    let mut unit = Vtd::new(false);
    for (register, size, value) in [
        (reg::ROOT, Size::B8, ROOT),
        (reg::COMMAND, Size::B4, status::ROOT.into()),
        (reg::COMMAND, Size::B4, status::TRANSLATION.into()),
    ] {
        let mut env = Env::new(&*clock, &ram, &mut actions);
        let at = At { region: 0, offset: register };
        unit.write(&mut env, at, size, value).expect("a register");
    }
    let other = ram.clone();
    let ours = move || {
        let mut env = Env::new(&*clock, &ram, &mut actions);
        let to = unit.translate(&mut env, requester, black_box(0x10), true);
        assert_eq!(to.map(|(address, _)| address), Some(TO + 0x10));
    };
    let bare = move || {
        let mut entry = [0; 16];
        for at in [ROOT, CONTEXTS] {
            other.read(black_box(at), &mut entry).expect("RAM");
            black_box(&entry);
        }
    };
    Pair::new(ours, bare)
}
