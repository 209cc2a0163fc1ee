//! What a guest can do of a script.

use payload_abi::replay::TELL;
use vmm::access::{Access, Size, Space};
use vmm::exit::Exit;
use vmm::ram::{GuestRam, PAGE};
use vmm::script::replay::{Outcome, Player};
use vmm::script::{Answer, BoardSpec, Effect, Op, Script};

use super::{exits, player};

/// The most that a guest waits for one `advance`, in nanoseconds.
const LONGEST_WAIT: u64 = 200_000;
/// Bytes of one `ram`: they fit a line of [`payload_abi::replay::LONGEST`].
const RAM_BYTES: usize = 128;
/// How many bytes of memory an operation fills at most, so that tables of an IOMMU do not take a guest most
/// of its time: the entries of the first 64 pages, or of four devices on the bus.
const MOST_RAM: usize = 512;
/// Where the payload's image begins: RAM below is the script's.
const IMAGE: u64 = 1 << 20;
/// Guest-physical addresses below this every processor has (CPUID leaf 0x80000008; 36 bits without it).
const PHYSICAL: u64 = 1 << 36;
/// The longest time that a device takes for something, in nanoseconds, roughly.
const WHILE: u64 = 1_000_000;

/// Why an operation is not the guest's to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// No instruction does it: host input, a reset from outside, an exit that is no access.
    Host,
    /// KVM answers in the kernel, and the board never hears of it.
    Kernel,
    /// RAM is there, so nothing leaves the guest.
    Memory,
    /// Beyond the address space of some processor.
    Address,
    /// It ends the machine.
    Ends,
    /// A device reads or writes memory that holds the payload, or nothing that is known.
    Elsewhere,
    /// An interrupt that is taken although interrupts are off: NMI, INIT, SMI, start-up.
    Interrupt,
    /// It is where the guest tells what it saw.
    Tell,
}

impl Why {
    /// All of them; its place here is its index in [`Prepared::left_out`].
    pub const ALL: [Why; 8] = [
        Why::Host,
        Why::Kernel,
        Why::Memory,
        Why::Address,
        Why::Ends,
        Why::Elsewhere,
        Why::Interrupt,
        Why::Tell,
    ];

    /// A few words for it.
    pub const fn words(self) -> &'static str {
        match self {
            Why::Host => "no instruction does",
            Why::Kernel => "KVM answers itself",
            Why::Memory => "go to RAM",
            Why::Address => "are beyond some processors",
            Why::Ends => "end the machine",
            Why::Elsewhere => "have devices use the payload's memory",
            Why::Interrupt => "raise what cannot be masked",
            Why::Tell => "are where the guest tells",
        }
    }
}

/// A script that a guest can do.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// It, without expectations: what the guest sees depends on the time.
    pub script: Script,
    /// How many operations are not in it, by [`Why`]'s place in [`Why::ALL`].
    pub left_out: [u64; Why::ALL.len()],
}

/// Makes scripts for a guest, operation by operation.
pub struct Preparer {
    spec: BoardSpec,
    /// Boards that try each operation before a guest does: one on which no time passes, and one on which
    /// devices are done with everything before the next operation. A guest is between the two.
    rehearsals: [Player<'static>; 2],
    ops: Vec<Op>,
    left_out: [u64; Why::ALL.len()],
}

impl Preparer {
    /// For a board.
    ///
    /// # Panics
    /// When the board cannot be built.
    pub fn new(spec: &BoardSpec) -> Preparer {
        let rehearsals = [player(spec), player(spec)];
        Preparer { spec: spec.clone(), rehearsals, ops: Vec::new(), left_out: Default::default() }
    }

    /// How many operations there are.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// What was added, and nothing more.
    pub fn finish(self) -> Prepared {
        let Preparer { spec, ops, left_out, .. } = self;
        Prepared { script: Script::new(spec, ops), left_out }
    }

    /// Adds those of the operations that a guest can do.
    pub fn add(&mut self, ops: impl IntoIterator<Item = Op>) {
        for op in ops {
            match op {
                Op::Ram { addr, bytes, after: 0 } => {
                    for (at, part) in
                        (0..MOST_RAM as u64).step_by(RAM_BYTES).zip(bytes.chunks(RAM_BYTES))
                    {
                        self.memory(addr.wrapping_add(at), part);
                    }
                }
                // For a guest time passes anyway; this is more of it.
                Op::Advance(by) => self.try_one(Op::Advance(by.min(LONGEST_WAIT))),
                op => self.try_one(op),
            }
        }
    }

    /// Memory that is to hold these bytes: what it holds anyway, as most of a table does, is not for the
    /// guest to write, which takes it long where a kernel interprets it.
    fn memory(&mut self, addr: u64, bytes: &[u8]) {
        let mut held = [0; RAM_BYTES];
        let held = &mut held[..bytes.len()];
        let known = self.rehearsals[0].machine().ram().peek(addr, held).is_ok();
        let differs = |i: &usize| !known || held[*i] != bytes[*i];
        let Some(first) = (0..bytes.len()).find(differs) else { return };
        let last = (0..bytes.len()).rfind(differs).unwrap_or(first);
        let bytes = bytes[first..=last].to_vec();
        self.try_one(Op::Ram { addr: addr.wrapping_add(first as u64), bytes, after: 0 });
    }

    fn try_one(&mut self, op: Op) {
        match self.refused(&op).map_or_else(|| self.rehearse(&op), Err) {
            Ok(()) => self.ops.push(op),
            Err(why) => self.left_out[why as usize] += 1,
        }
    }

    /// Why it is no operation for a guest, whatever the state of the board.
    fn refused(&self, op: &Op) -> Option<Why> {
        match op {
            Op::Exit { exit: Exit::Io(access), .. } => {
                refused_access(access, self.rehearsals[0].machine().ram(), self.spec.ioapic)
            }
            Op::Ram { addr, bytes, after: 0 } => {
                (!is_ours(*addr, bytes.len() as u64)).then_some(Why::Elsewhere)
            }
            Op::Advance(_) => None,
            Op::Exit { .. }
            | Op::Ram { .. }
            | Op::Input { .. }
            | Op::Timer
            | Op::SaveRestore
            | Op::Reset => Some(Why::Host),
        }
    }

    /// Does it on the boards; if that leads to something that a guest would not survive, they are then as
    /// if it had never been.
    fn rehearse(&mut self, op: &Op) -> Result<(), Why> {
        let [hasty, patient] = &mut self.rehearsals;
        let done = step(hasty, op).and_then(|()| {
            step(patient, op)?;
            while_passes(patient)
        });
        if done.is_err() {
            for (patience, player) in self.rehearsals.iter_mut().enumerate() {
                player.renew().expect("a board that was built before");
                for op in &self.ops {
                    // They were sound before, and everything is as then.
                    let _ = step(player, op);
                    if patience == 1 {
                        let _ = while_passes(player);
                    }
                }
            }
        }
        done
    }
}

fn while_passes(player: &mut Player<'_>) -> Result<(), Why> {
    step(player, &Op::Advance(WHILE))?;
    step(player, &Op::Timer)
}

/// Does an operation as a guest's exits come; whether the guest survives it.
fn step(player: &mut Player<'_>, op: &Op) -> Result<(), Why> {
    for op in exits(op) {
        let outcome = player.step(&op);
        survives(player, &outcome)?;
    }
    let covers = |m: &vmm::bus::Mapping| {
        m.region.space == Space::Port && overlap(m.base, m.region.len, TELL.into(), 4)
    };
    // A base address that moves there would have the guest tell a device.
    match player.machine().pci_mappings().iter().any(covers) {
        true => Err(Why::Tell),
        false => Ok(()),
    }
}

/// Whether a guest goes on as if nothing had happened after what came of an operation.
pub(super) fn survives(player: &Player<'_>, outcome: &Outcome) -> Result<(), Why> {
    match outcome.answer {
        Answer::Stop(_) => return Err(Why::Ends),
        Answer::Refused | Answer::Fault => return Err(Why::Memory),
        Answer::Ok | Answer::Value(_) => {}
    }
    // Bits 10:8 are the delivery mode; fixed and lowest priority wait for interrupts to be on (SDM volume
    // 3, 12.11.2).
    let unmasked =
        |effect: &Effect| matches!(effect, Effect::Message { data, .. } if data >> 8 & 7 > 1);
    if outcome.effects.iter().any(unmasked) {
        return Err(Why::Interrupt);
    }
    match player.touched(|all| all.iter().all(|touch| is_ours(touch.addr, touch.len))) {
        true => Ok(()),
        false => Err(Why::Elsewhere),
    }
}

/// Whether memory there is the script's: not the payload's image, its tables, or the script itself.
fn is_ours(addr: u64, len: u64) -> bool {
    addr.checked_add(len).is_some_and(|end| end <= IMAGE)
}

fn overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a.wrapping_sub(b) < b_len || b.wrapping_sub(a) < a_len
}

fn refused_access(access: &Access, ram: &GuestRam, ioapic: bool) -> Option<Why> {
    let Access { space, addr, size, .. } = *access;
    let meets = |places: &[(u64, u64)]| {
        places.iter().any(|&(base, len)| overlap(addr, size.bytes(), base, len))
    };
    if space == Space::Port {
        if addr > 0xffff || size == Size::B8 {
            return Some(Why::Address);
        }
        if meets(&[(TELL.into(), 4)]) {
            return Some(Why::Tell);
        }
        // With its interrupt controllers and PIT in the kernel, KVM answers there itself: the two PICs, the
        // PIT, the speaker's port with the PIT's gate, the PICs' edge and level registers. An access that
        // only reaches into them does leave the guest, whole, but the kernel's table says so, no manual.
        let kernel = [(0x20, 2), (0xa0, 2), (0x40, 4), (0x61, 1), (0x4d0, 2)];
        return (!ioapic && meets(&kernel)).then_some(Why::Kernel);
    }
    // All of it below, so that it does not wrap either.
    if addr > PHYSICAL - size.bytes() {
        return Some(Why::Address);
    }
    // The local APIC is in the kernel in any case; its page is where a reset leaves it.
    let apic = (0xfee0_0000, PAGE);
    // On Intel without unrestricted guests, KVM keeps memory of its own here, as the VMM told it to
    // (KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR): four pages.
    let own = (0xfffb_c000, 4 * PAGE);
    if meets(&[apic, own]) || (!ioapic && meets(&[(0xfec0_0000, 0x100)])) {
        return Some(Why::Kernel);
    }
    let mut ranges = ram.ranges();
    ranges.any(|range| overlap(addr, size.bytes(), range.start, range.len)).then_some(Why::Memory)
}
