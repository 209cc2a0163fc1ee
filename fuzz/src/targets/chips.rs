//! Boards: the whole PC, and one for each chip that holds the chip and what it cannot be without.

use std::sync::Arc;

use vmm::access::{Access, Space};
use vmm::chips::acpi_pm::{self, AcpiPm, TimerWidth};
use vmm::chips::exit::{self, DebugExit};
use vmm::chips::fw_cfg::{self, FwCfg, Standard};
use vmm::chips::hyperv_testdev::{self, HypervTestDevice};
use vmm::chips::i8042::{self, I8042};
use vmm::chips::ioapic::{self, IoApic};
use vmm::chips::pci::Slot;
use vmm::chips::pci::bridge::{self, HostBridge};
use vmm::chips::pci::config::{Placement, Shape};
use vmm::chips::pci::edu::{self, Edu};
use vmm::chips::pci::memory::{BusMemory, Iommu};
use vmm::chips::pci::testdev::{self as pci_testdev, PciTestDevice};
use vmm::chips::pci::vtd::{self, Vtd, status};
use vmm::chips::post::{self, PostPort};
use vmm::chips::resets::{self, Port92, ResetControl};
use vmm::chips::rtc::{self, Rtc};
use vmm::chips::shutdown::{self, ShutdownPort};
use vmm::chips::testdev::{self, TestDevice};
use vmm::chips::uart::{self, Uart};
use vmm::exit::{Exit, Stop};
use vmm::machine::{BoardError, IommuConfig, Machine, PCI_GSIS, PciDevice};
use vmm::ram::MIN_SIZE;
use vmm::script::replay::Outcome;
use vmm::script::{Answer, BoardSpec, Effect, Op};

use super::pins::{self, Pins};
use super::{Beyond, Put, Subject, Target, beyond, seeds, whole};

/// What no exit leads to in any chip.
const CHIP: &[Beyond] = &[
    beyond("default", "", "boards are built with `new`"),
    beyond("fmt", "", "for who debugs"),
    beyond("restore", "StateError {", UNSAVED),
    beyond("restore", "let what =", UNSAVED),
    beyond("restore", "error(", UNSAVED),
    beyond("", "_ => Err(IoError::NoRegister)", ROUTED),
    beyond("", "_ => return Err(IoError::NoRegister)", ROUTED),
    beyond("", "(0, _) => Err(IoError::Width)", DIVIDED),
    beyond("", "(0, _) => return Err(IoError::Width)", DIVIDED),
];
const UNSAVED: &str = "a state that no device saved; target `snapshot` has them";
const DIVIDED: &str = "the bus divides what is wider than a region takes";
const ROUTED: &str = "the bus hands a device what lies in its regions";
const BREAK: &str = "follows a break, which the host sends";
const TABLE: &str = "a table that the compiler makes";
const PUT_TOGETHER: &str = "asked of it while a machine is put together";
const JUDGE: &str = "asked by who draws scripts or judges them";
const HOST: &str = "asked by the host, and no script says it";

/// What no exit leads to on a board.
const MACHINE: &[Beyond] = &[
    beyond("", "BoardError::", PUT_TOGETHER),
    beyond("add", "(regions.len(), bases.len())", PUT_TOGETHER),
    beyond("map", "", PUT_TOGETHER),
    beyond("add_pci", "", PUT_TOGETHER),
    beyond("add_function", "", PUT_TOGETHER),
    beyond("line", "", JUDGE),
    beyond("owner", "", "asked by who counts a guest's exits (`vmm run --stats`)"),
    beyond("takes", "", JUDGE),
    beyond("mappings", "", JUDGE),
];

/// What targets about chips have in common.
const BASE: Target = Target {
    name: "",
    about: "",
    subject: Subject::Bytes { make: whole, check: |_| Ok(()), canary: |_| false },
    sources: &[],
    beyond: &[CHIP],
    floor: 0,
    uncovered: "",
    words: &[b"Shutdown"],
    seeds: Vec::new,
};

/// The first of some expressions.
macro_rules! first {
    ($first:expr $(, $rest:expr)*) => {
        $first
    };
}

/// A target about what `put` puts on a board.
macro_rules! chip {
    ($name:ident, $text:literal, $about:literal, [$($source:literal),+], $floor:literal $uncovered:literal,
        $(numbers: $numbers:expr,)? $(guides: $guides:expr,)? canary: $canary:expr, $put:expr $(, $field:ident: $value:expr)*) => {
        #[doc = concat!("Target `", $text, "`.")]
        pub static $name: Target = Target {
            name: $text,
            about: $about,
            subject: Subject::Board {
                spec: || BoardSpec { kind: $text.into(), ..BoardSpec::default() },
                put: $put,
                numbers: first!($($numbers,)? &[]),
                guides: first!($($guides,)? &[]),
                canary: $canary,
            },
            sources: &[$(concat!("vmm/src/chips/", $source)),+],
            floor: $floor,
            uncovered: $uncovered,
            $($field: $value,)*
            ..BASE
        };
    };
}

/// Target `board`: the PC that the `vmm` program has, with the least memory.
pub static BOARD: Target = Target {
    name: "board",
    about: "the PC board with its fixed chips",
    subject: Subject::Board {
        spec: BoardSpec::default,
        put: NOTHING,
        numbers: &[],
        guides: &[],
        canary: |_, outcome| outcome.answer == Answer::Stop(Stop::PowerOff),
    },
    sources: &[
        "vmm/src/machine/mod.rs",
        "vmm/src/machine/dispatch.rs",
        "vmm/src/machine/synic.rs",
        "vmm/src/bus.rs",
    ],
    beyond: &[
        CHIP,
        MACHINE,
        &[
            beyond("act", "Action::Message", "asked by functions of a PCI bus; target `pci`"),
            beyond("act", "Action::Interrupt", "asked by an IOMMU; target `pci`"),
            beyond("nobody", "Some(pci) =>", "there is no PCI bus; target `pci`"),
            beyond("restored", "", UNSAVED),
        ],
    ],
    floor: 86,
    uncovered: "a message slot that fills while it is looked at, and hypercalls with bits that are reserved",
    words: &[b"Shutdown"],
    seeds: Vec::new,
};

/// Target `pci`: the same with an I/O APIC, an IOMMU, a PCI bus and every device that goes there.
pub static PCI: Target = Target {
    name: "pci",
    about: "the PC board with an I/O APIC, an IOMMU and a PCI bus",
    subject: Subject::Board {
        spec: || {
            // What the I/O APIC waits for is then a function of its registers alone.
            let iommu = Some(IommuConfig { interrupts: false });
            let pci = Some(PciDevice::ALL.to_vec());
            BoardSpec { pci, ioapic: true, iommu, ..BoardSpec::default() }
        },
        put: NOTHING,
        numbers: &[],
        guides: &[],
        canary: moved,
    },
    sources: &["vmm/src/machine/pci.rs", "vmm/src/machine/interrupts.rs"],
    beyond: &[CHIP, MACHINE],
    floor: 91,
    uncovered: "what a board does that has no I/O APIC, or whose IOMMU remaps interrupts",
    words: &[b"Shutdown"],
    seeds: seeds::pci,
};

const NOTHING: Put = |_| Ok(());

fn has(outcome: &Outcome, what: fn(&Effect) -> bool) -> bool {
    outcome.effects.iter().any(what)
}

fn access(op: &Op) -> Option<Access> {
    match op {
        Op::Exit { exit: Exit::Io(access), .. } => Some(*access),
        _ => None,
    }
}

/// A base address register of a function was moved, and something answers there.
fn moved(op: &Op, outcome: &Outcome) -> bool {
    let placed = 0xe000_0000..0xe020_0000;
    match (access(op), outcome.answer) {
        (Some(Access { space: Space::Mmio, addr, size, .. }), Answer::Value(value)) => {
            !placed.contains(&addr)
                && value != size.mask()
                && !(0xfec0_0000..1 << 32).contains(&addr)
        }
        _ => false,
    }
}

fn high(outcome: &Outcome) -> bool {
    has(outcome, |effect| matches!(effect, Effect::Line { level: true, .. }))
}

fn port(port: u16) -> [u64; 1] {
    [u64::from(port)]
}

chip!(UART, "uart", "a 16550 at COM1", ["uart.rs"],
95 "which of two causes an interrupt has, where that is chosen without a branch: no input is kept for it",
canary: |op, outcome| matches!(op, Op::Input { .. }) && high(outcome),
|m| m.add(Box::new(Uart::new("com1")), &port(uart::COM1.0), Some(uart::COM1.1)),
beyond: &[CHIP, &[
    beyond("receive_break", "", HOST),
    beyond("read_lsr", "_FIFO_ERROR;", BREAK),
    beyond("read_lsr", "if r.fifo {", BREAK),
    beyond("read_lsr", "LSR_BREAK;", BREAK),
    beyond("read_lsr", "r.breaks", BREAK),
    beyond("", "return Err(IoError::Width)", DIVIDED),
]]);

chip!(RTC, "rtc", "the clock with its battery's memory", ["rtc.rs", "rtc/calendar.rs"], 91 "",
canary: |op, outcome| *op == Op::Timer && high(outcome),
|m| {
    let mut chip = Rtc::new(0);
    chip.set_memory(MIN_SIZE);
    m.add(Box::new(chip), &port(rtc::BASE), Some(rtc::GSI))
}, beyond: &[CHIP, &[
    beyond("nmi_masked", "", HOST),
    beyond("", "(0 | 1, _) => return Err(IoError::Width)", DIVIDED),
]]);

chip!(I8042, "i8042", "the keyboard controller with its keyboard", ["i8042.rs", "i8042/keyboard.rs"],
88 "commands of the keyboard that a hunt of seconds does not send in their order",
// Commands of the keyboard that are answered with more than one byte, or take an option.
numbers: &[0xf2, 0xf3, 0xf0, 0xff],
canary: |_, outcome| high(outcome),
|m| {
    let places = [i8042::DATA_PORT, i8042::COMMAND_PORT];
    m.add(Box::new(I8042::new()), &places, Some(i8042::GSI))
}, beyond: &[CHIP, &[
    beyond("", "return Err(IoError::NoRegister)", ROUTED),
    beyond("", "Some(\"", UNSAVED),
    beyond("", "Some(what) => Err(StateError", UNSAVED),
]]);

chip!(ACPI_PM, "acpi-pm", "ACPI's fixed power management", ["acpi_pm.rs"], 90 "",
canary: |_, outcome| matches!(outcome.answer, Answer::Stop(Stop::Sleep(_))),
|m| {
    let pm = acpi_pm::PM_BASE;
    let places = [pm, pm + 4, pm + 8, acpi_pm::SMI_PORT];
    m.add(Box::new(AcpiPm::new(TimerWidth::Bits24)), &places, Some(acpi_pm::GSI))
}, beyond: &[CHIP, &[
    beyond("bits", "Bits32 =>", "no board has the wider timer"),
    beyond("within", "Err(IoError::Width)", DIVIDED),
    beyond("restore", "\"bits set", UNSAVED),
    beyond("restore", "\"a timer that", UNSAVED),
]]);

chip!(FW_CFG, "fw-cfg", "fw_cfg with its DMA", ["fw_cfg.rs"], 90
"",
// A byte of a file.
    canary: |_, outcome| outcome.answer == Answer::Value(0x5a),
    |m| {
    let standard = Standard { ram_size: MIN_SIZE, cpus: 1, max_cpus: 1, display: false, uuid: None };
    let mut chip = FwCfg::new(&standard);
    chip.add_file("opt/exitlab", vec![0x5a; 300]).expect("an empty directory has room");
    m.add(Box::new(chip), &[fw_cfg::SELECTOR_PORT, fw_cfg::DMA_PORT], None)
}, beyond: &[CHIP, &[
    beyond("add", "", PUT_TOGETHER),
    beyond("add_file", "FwCfgError::", PUT_TOGETHER),
    beyond("", "key::UUID", PUT_TOGETHER),
    beyond("", "is no key\"", UNSAVED),
    beyond("", "which has {len} bytes here\"", UNSAVED),
    beyond("", "let Regs { selector, offset, .. } = regs;", UNSAVED),
    beyond("", "(0, 1, _) => Err(IoError::Width)", DIVIDED),
]]);

chip!(POST, "post", "the port of POST codes", ["post.rs"], 97 "",
    canary: |_, outcome| outcome.answer == Answer::Value(0x80),
    |m| m.add(Box::new(PostPort::default()), &port(post::BASE), None));

chip!(RESETS, "resets", "port 0x92 and the reset control register", ["resets.rs"], 97 "",
canary: |_, outcome| outcome.answer == Answer::Stop(Stop::Reset),
|m| {
    m.add(Box::new(Port92::new()), &port(resets::PORT92), None)?;
    m.add(Box::new(ResetControl::default()), &port(resets::RESET_CONTROL), None)
}, beyond: &[CHIP, &[beyond("config_address", "", "only a board with a PCI bus asks; targets about functions")]]);

chip!(EXIT, "exit", "the port that ends the VM", ["exit.rs"], 97 "",
    canary: |_, outcome| outcome.answer == Answer::Stop(Stop::Exit(0x55)),
    |m| m.add(Box::new(DebugExit), &port(exit::BASE), None),
    beyond: &[CHIP, &[beyond("", "return Err(IoError::NoRegister)", ROUTED)]]);

chip!(SHUTDOWN, "shutdown", "the port that takes the word `Shutdown`", ["shutdown.rs"], 97 "",
    canary: |_, outcome| outcome.answer == Answer::Stop(Stop::PowerOff),
    |m| m.add(Box::new(ShutdownPort::default()), &port(shutdown::BASE), None));

chip!(HYPERV_TESTDEV, "hyperv-testdev", "the test device of Hyper-V's messages and events",
    ["hyperv_testdev.rs"], 97 "",
    canary: |_, outcome| has(outcome, |e| matches!(e, Effect::Sint { .. })),
    |m| m.add(Box::new(HypervTestDevice::default()), &port(hyperv_testdev::BASE), None));

chip!(TESTDEV, "testdev", "the test device of kvm-unit-tests", ["testdev.rs"], 97 "",
canary: |_, outcome| has(outcome, |e| matches!(e, Effect::Remap(_))),
|m| m.add(Box::new(TestDevice::new()), &testdev::BASES, None),
beyond: &[CHIP, &[
    beyond("region", "", TABLE),
    beyond("latch_bits", "IoError::NoRegister", ROUTED),
    beyond("", "_ => Err(IoError::Width)", DIVIDED),
    beyond("write", "return Err(IoError::Width)", DIVIDED),
]]);

chip!(IOAPIC, "ioapic", "an I/O APIC whose lines a guest drives", ["ioapic.rs"], 96 "",
canary: |_, outcome| has(outcome, |e| matches!(e, Effect::AwaitEnd { .. })),
|m| {
    m.add(Box::new(Pins::default()), &[pins::PORT], None)?;
    m.add_controller(Box::new(IoApic::new()), &[ioapic::BASE])
}, seeds: seeds::ioapic);

// Without an I/O APIC: what that waits for would depend on tables in memory, which are no part of what is
// saved. Target `pci` has both.
chip!(VTD, "vtd", "an IOMMU between the edu device and memory",
["pci/vtd/mod.rs", "pci/vtd/queue.rs", "pci/vtd/remap.rs", "pci/vtd/walk.rs", "pci/memory.rs"], 94 "",
// Commands; descriptors of the queue (6.5.2), of which the last waits and tells; the engine of the edu device.
numbers: &[
    (status::ROOT | status::TRANSLATION) as u64, (status::TABLE | status::INTERRUPTS) as u64, status::QUEUE as u64,
    1, 2, 4, 5 | 1 << 4 | 1 << 5, 16, edu::BUFFER, 3, 7,
],
guides: &["vmm/src/chips/pci/config.rs", "vmm/src/chips/pci/edu.rs"],
// Translation is on.
canary: |op, outcome| match (access(op), outcome.answer) {
    (Some(Access { addr, size, .. }), Answer::Value(value)) => {
        addr.wrapping_add(size.bytes()) == vtd::BASE + 0x20 && value >> (size.bytes() * 8 - 1) == 1
    }
    _ => false,
},
|m| {
    let unit = Vtd::new(true);
    m.add_iommu(Box::new(unit.clone()), &[vtd::BASE], Arc::new(unit.clone()))?;
    bus(m, Some(Arc::new(unit)), &[PciDevice::Edu])
}, seeds: seeds::vtd);

chip!(PCI_CONFIG, "pci-config", "PCI configuration space, with base addresses that move",
["pci/config.rs", "pci/mod.rs", "pci/bridge.rs", "pci/msi.rs"], 95 "",
canary: moved,
|m| bus(m, None, &PciDevice::ALL),
seeds: seeds::pci_config, beyond: &[CHIP, &[
    beyond("", "Bar::Memory64", "no function has a base address of 64 bits"),
    beyond("is_empty", "", PUT_TOGETHER),
    beyond("config_region", "", TABLE),
    beyond("device", "", "for who writes a slot down"),
    beyond("lanes", "return Err(IoError::NoRegister)", ROUTED),
    beyond("lanes", "return Err(IoError::Width)", DIVIDED),
    beyond("check", "error(format!(", UNSAVED),
]]);

chip!(PCI_TESTDEV, "pci-testdev", "the test device on a PCI bus", ["pci/testdev.rs"], 93 "",
    canary: moved,
    |m| bus(m, None, &[PciDevice::TestDevice]));

chip!(EDU, "edu", "the edu device: factorials, DMA and interrupts", ["pci/edu.rs"], 95 "",
// Where the engine's buffer begins and nearly ends; lengths; commands.
numbers: &[edu::BUFFER, edu::BUFFER + edu::BUFFER_BYTES as u64 - 4, edu::BUFFER_BYTES as u64, 4, 1, 3, 5, 7],
guides: &["vmm/src/chips/pci/config.rs"],
canary: |_, outcome| high(outcome),
|m| bus(m, None, &[PciDevice::Edu]),
seeds: seeds::edu, beyond: &[CHIP, &[
]]);

/// A PCI bus with these devices, from slot 3 on as on a PC.
fn bus(
    m: &mut Machine,
    iommu: Option<Arc<dyn Iommu>>,
    devices: &[PciDevice],
) -> Result<(), BoardError> {
    let address = ResetControl::default();
    m.add(Box::new(address), &port(resets::RESET_CONTROL), None)?;
    m.add_pci("reset-control")?;
    m.add_function(Box::new(HostBridge::new()), bridge::SLOT, None)?;
    let (mut ports, mut memory) = (0xc000, 0xe000_0000);
    for (number, device) in (3..).zip(devices) {
        let slot = Slot::new(number, 0);
        let gsi = PCI_GSIS[usize::from(number % 4)];
        let mut place =
            |shape: &Shape| Placement::assign(shape, gsi as u8, &mut ports, &mut memory);
        match device {
            PciDevice::TestDevice => {
                let placement = Placement { line: 0, ..place(&pci_testdev::SHAPE) };
                m.add_function(Box::new(PciTestDevice::new(placement)), slot, None)?;
            }
            PciDevice::Edu => {
                let memory = BusMemory::new(slot, iommu.clone());
                let edu = Edu::new(memory, place(&edu::SHAPE));
                m.add_function(Box::new(edu), slot, Some(gsi))?;
            }
        }
    }
    Ok(())
}
