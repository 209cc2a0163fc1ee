//! Bytes to scripts.
//!
//! The first four bytes are about the whole script: which kinds of operation there are (two bytes), the
//! device that most of it is about, and which costly [laws](crate::oracles::Laws) are asked of it. Then
//! each 16 bytes are one operation, whatever stands before and after it: to take one out of an input, or
//! to put it elsewhere, leaves all others what they were. That is what [`crate::mutate`] does.
//!
//! The script is played while it is made, so that it can use what the board answered: values that
//! were read come back in writes, time goes to the deadlines that devices have, addresses are
//! those that are mapped now. Bytes that are not there are 0, so an empty input is a valid, boring
//! script: a read of the first register. A script without resets gets further than one in which
//! everything is as likely, so an input says which kinds of operation it has at all.
//!
//! What a byte means does not depend on what else there is to choose from, as far as that can be:
//! new kinds of operation go into free places of their tables, so that a corpus stays worth
//! something.

mod exact;
mod exits;
mod host;
mod memory;
mod odd;
mod setup;
mod tables;
pub(crate) mod values;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use vmm::access::{Access, Dir, Size, Space};
use vmm::bus::Mapping;
use vmm::chips::pci::{DATA_PORT, Slot};
use vmm::exit::Exit;
use vmm::script::replay::{Endless, Outcome, Player};
use vmm::script::{Answer, Op, Script, Step};

use crate::Board;
use crate::models::Models;
use crate::oracles::{self, Laws, Violation};
use crate::registers::{self, Registers};
pub use exact::encode;
pub use setup::go_on;
pub(crate) use tables::EDGES;
use tables::{KINDS, Kind, PLACES, SET_UP};

/// The most operations of one script; a burst may go beyond.
pub const MAX_OPS: usize = 200;
/// Bytes about the whole script.
pub const HEADER: usize = 4;
/// Which of them chooses the device that most is about; 0 is none.
pub const FOCUS: usize = 2;
/// Which of them asks for laws.
pub const LAWS: usize = 3;
/// Bytes of an operation.
pub const RECORD: usize = 16;

/// A script, and what happened when it was made.
#[derive(Debug)]
pub struct Generated {
    /// The script.
    pub script: Script,
    /// How each operation ended, or what went wrong at the last one.
    pub played: Result<Vec<Outcome>, Violation>,
    /// The costly laws that the input asks for.
    pub laws: Laws,
}

/// The script that `bytes` describe for this board.
///
/// # Panics
/// When the board cannot be built.
pub fn script(bytes: &[u8], board: &Board<'_>) -> Generated {
    let mut player = Player::new(&board.spec, board.build).expect("a board that can be built");
    play(bytes, board, &mut player, &mut Room::default())
}

/// What scripts for one board were made in. The next one is made there, too: to allocate takes a good part
/// of a short execution with AddressSanitizer.
#[derive(Debug, Default)]
pub struct Room {
    script: Option<Script>,
    outcomes: Vec<Outcome>,
    mappings: Vec<Mapping>,
    focused: Vec<usize>,
    functions: Vec<Slot>,
}

impl Room {
    /// A script that is not needed any more.
    pub fn give_back(&mut self, script: Script, outcomes: Vec<Outcome>) {
        (self.script, self.outcomes) = (Some(script), outcomes);
    }
}

/// The script that `bytes` describe for this board, which `player` has and which was just switched on.
pub fn play(
    bytes: &[u8],
    board: &Board<'_>,
    player: &mut Player<'_>,
    room: &mut Room,
) -> Generated {
    Generator::new(bytes, board, player, room).played(room)
}

/// Hears of an operation.
type Journal = Box<dyn FnMut(&Op)>;

thread_local! {
    static JOURNAL: RefCell<Option<Journal>> = const { RefCell::new(None) };
}

/// From now on, `tell` hears of each operation that this thread generates, before it is done: what ends the
/// process is heard of.
pub fn journal(tell: impl FnMut(&Op) + 'static) {
    JOURNAL.set(Some(Box::new(tell)));
}

/// What a panic says.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    if let Some(endless) = panic.downcast_ref::<Endless>() {
        return endless.to_string();
    }
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref().copied()).unwrap_or("a panic without words").to_owned()
}

/// How many of the latest values and addresses are remembered.
const REMEMBERED: usize = 4;

/// Whether it is the port of what is selected of PCI configuration space.
fn is_data(m: &Mapping) -> bool {
    (m.region.space, m.base) == (Space::Port, DATA_PORT)
}

struct Generator<'b, 'p, 'a> {
    /// Operations that were not looked at yet.
    bytes: &'b [u8],
    /// The present one, and how much of it was used.
    record: [u8; RECORD],
    at: usize,
    player: &'p mut Player<'a>,
    models: Models,
    words: &'p [&'p [u8]],
    numbers: &'p [u64],
    registers: Rc<Registers>,
    script: Script,
    outcomes: Vec<Outcome>,
    wrong: Option<Violation>,
    laws: Laws,
    mappings: Vec<Mapping>,
    /// How many of them do not move.
    fixed: usize,
    /// Those of the device that most accesses go to, as indices.
    focused: Vec<usize>,
    focus: Option<u16>,
    /// Slots of the PCI bus with a function, and that of the focus.
    functions: Vec<Slot>,
    function: Option<Slot>,
    /// The kinds of operation that there are.
    mask: u16,
    last: Access,
    values: [u64; REMEMBERED],
    /// What was written.
    written: [u64; REMEMBERED],
    places: [u64; REMEMBERED],
    /// Memory was filled, and no value has led there since.
    filled: bool,
    /// A device has taken input from the host, or would have.
    heard: bool,
}

impl<'b, 'p, 'a> Generator<'b, 'p, 'a> {
    fn new(
        bytes: &'b [u8],
        board: &'p Board<'_>,
        player: &'p mut Player<'a>,
        room: &mut Room,
    ) -> Self {
        let machine = player.machine();
        let Room { script, mut outcomes, mut mappings, focused, mut functions } =
            std::mem::take(room);
        let mut script = script.unwrap_or_else(|| Script::new(board.spec.clone(), []));
        script.steps.clear();
        outcomes.clear();
        mappings.clear();
        mappings.extend(machine.bus().mappings());
        let fixed = mappings.len();
        mappings.extend(machine.pci_mappings());
        functions.clear();
        functions.extend(machine.pci_functions().map(|(slot, _)| slot));
        let devices = machine.devices().count();
        let header: [u8; HEADER] = std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0));
        let [low, high, focus, laws] = header;
        let focus = match (focus, devices) {
            (0, _) | (_, 0) => None,
            (byte, devices) => Some(usize::from(byte) % devices),
        };
        let name = focus.and_then(|focus| machine.devices().nth(focus));
        let function = machine.pci_functions().find(|f| Some(f.1) == name).map(|(slot, _)| slot);
        let first = mappings.first().map_or((Space::Port, 0), |m| (m.region.space, m.base));
        let records = bytes.get(HEADER..).unwrap_or(&[]);
        let mut generator = Generator {
            bytes: records,
            record: [0; RECORD],
            at: 0,
            player,
            models: Models::of(&board.spec),
            words: board.words,
            numbers: board.numbers,
            registers: registers::of(board, &mappings),
            script,
            outcomes,
            wrong: None,
            laws: Laws::asked(laws),
            mappings,
            fixed,
            focused,
            focus: focus.map(|focus| focus as u16),
            functions,
            function,
            mask: match u16::from_le_bytes([low, high]) {
                0 => u16::MAX,
                mask => mask,
            },
            last: Access::read(first.0, first.1, Size::B1),
            values: [0; REMEMBERED],
            written: [0; REMEMBERED],
            places: [PLACES[0]; REMEMBERED],
            filled: false,
            heard: false,
        };
        let expected = (records.len() / RECORD + 2).min(MAX_OPS);
        generator.script.steps.reserve(expected);
        generator.outcomes.reserve(expected);
        generator.refocus();
        generator
    }

    /// Which mappings the focus has now.
    fn refocus(&mut self) {
        self.focused.clear();
        let Some(focus) = self.focus else { return };
        // A function of the bus is configured, too.
        let of_focus =
            |(_, m): &(usize, &Mapping)| m.device == focus || self.function.is_some() && is_data(m);
        self.focused.extend(self.mappings.iter().enumerate().filter(of_focus).map(|(i, _)| i));
    }

    /// Base addresses may have moved.
    fn moved(&mut self) {
        if !self.functions.is_empty() {
            self.mappings.truncate(self.fixed);
            self.mappings.extend(self.player.machine().pci_mappings());
            self.refocus();
        }
    }

    fn played(mut self, room: &mut Room) -> Generated {
        let made = catch_unwind(AssertUnwindSafe(|| self.run()));
        let Generator { script, outcomes, wrong, laws, mappings, focused, functions, .. } = self;
        (room.mappings, room.focused, room.functions) = (mappings, focused, functions);
        let played = match (made, wrong) {
            (Err(panic), _) => Err(oracles::panicked(Some(script.steps.len()), &*panic)),
            (Ok(()), Some(violation)) => Err(violation),
            (Ok(()), None) => Ok(outcomes),
        };
        Generated { script, played, laws }
    }

    fn run(&mut self) {
        loop {
            let len = self.bytes.len().min(RECORD);
            let (record, rest) = self.bytes.split_at(len);
            self.record = [0; RECORD];
            self.record[..len].copy_from_slice(record);
            (self.bytes, self.at) = (rest, 0);
            self.operation();
            if self.bytes.is_empty() || self.script.steps.len() >= MAX_OPS || self.wrong.is_some() {
                return;
            }
        }
    }

    /// The next byte of the operation; 0 when there is none.
    fn byte(&mut self) -> u8 {
        let byte = self.record.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn word(&mut self) -> u64 {
        u64::from(self.byte()) | u64::from(self.byte()) << 8
    }

    fn number<const BYTES: usize>(&mut self) -> u64 {
        (0..BYTES).fold(0, |all, i| all | u64::from(self.byte()) << (8 * i))
    }

    /// One of `n` (not 0), by one byte if that is enough.
    fn below(&mut self, n: u64) -> u64 {
        match n {
            0..=0x100 => u64::from(self.byte()) % n,
            0x101..=0x1_0000 => self.word() % n,
            _ => self.number::<4>() % n,
        }
    }

    fn pick<T: Copy, const N: usize>(&mut self, from: [T; N]) -> T {
        from[usize::from(self.byte()) % N]
    }

    fn play(&mut self, op: Op) {
        if self.wrong.is_some() {
            return;
        }
        // Written down first: if the board panics, this is what it panicked at.
        self.script.steps.push(Step::new(op));
        let at = self.script.steps.len() - 1;
        let op = &self.script.steps[at].op;
        JOURNAL.with_borrow_mut(|journal| journal.iter_mut().for_each(|tell| tell(op)));
        self.models.before(op, self.player.machine());
        let outcome = self.player.step(op);
        self.wrong = oracles::after(at, op, &outcome, self.player, &mut self.models).err();
        if let Op::Exit { exit: Exit::Io(access), .. } = op {
            if let Answer::Value(value) = outcome.answer {
                self.values.rotate_right(1);
                self.values[0] = value;
            }
            let data = access.space == Space::Port && access.addr.wrapping_sub(DATA_PORT) < 4;
            if data && access.dir != Dir::Read {
                self.moved();
            }
        } else if matches!(op, Op::Reset | Op::SaveRestore) {
            self.moved();
        }
        self.outcomes.push(outcome);
    }

    fn access(&mut self, access: Access) {
        self.last = access;
        if let Dir::Write(value) = access.dir {
            self.written.rotate_right(1);
            self.written[0] = value;
        }
        self.play(Op::io(access));
    }

    fn operation(&mut self) {
        let byte = self.byte();
        let place = usize::from(byte) % KINDS.len();
        let mut kind = KINDS[place];
        if !self.functions.is_empty() && SET_UP.contains(&place) {
            kind = Kind::SetUp;
        }
        if self.mask & kind as u16 == 0 && kind != Kind::Exact {
            kind = if byte & 0x80 == 0 { Kind::Read } else { Kind::Write };
        }
        match kind {
            Kind::Read => self.register(false),
            Kind::Write => self.register(true),
            Kind::Again => self.again(),
            Kind::Edge => self.edge(),
            Kind::Nowhere => self.nowhere(),
            Kind::Ram => self.ram(),
            Kind::Input if self.hears() => self.input(),
            // Where nobody does, more of what a driver does leads further.
            Kind::Input if self.base_of(values::IOMMU).is_some() => self.chain(),
            Kind::Input if self.functions.is_empty() => self.register(true),
            Kind::Input => self.set_up(),
            Kind::Advance => self.advance(),
            Kind::Timer => {
                self.at_deadline(0);
                self.play(Op::Timer);
            }
            Kind::SaveRestore => self.play(Op::SaveRestore),
            Kind::Reset => self.play(Op::Reset),
            Kind::Exit => self.exit(),
            Kind::Word => self.burst(),
            Kind::Chain => self.chain(),
            // The few registers of other devices are met one by one.
            Kind::SetUp if self.functions.is_empty() => self.register(true),
            Kind::SetUp => self.set_up(),
            Kind::Exact => self.exact(),
        }
    }

    fn mapping(&mut self) -> Option<Mapping> {
        let byte = self.byte();
        if !self.focused.is_empty() && byte & 0xc0 != 0xc0 {
            return Some(self.mappings[self.focused[usize::from(byte) % self.focused.len()]]);
        }
        let n = self.mappings.len();
        (n > 0).then(|| self.mappings[usize::from(byte) % n])
    }

    /// Mostly as wide as the region takes, so that registers are met whole.
    fn size(&mut self, mapping: &Mapping) -> Size {
        let sizes = match mapping.region.space {
            Space::Port => &Size::ALL[..3],
            Space::Mmio => &Size::ALL[..],
        };
        match self.byte() {
            0..0xa0 => mapping.region.widest.min(sizes[sizes.len() - 1]),
            byte => sizes[usize::from(byte) % sizes.len()],
        }
    }

    /// An access inside a region.
    fn register(&mut self, write: bool) {
        let Some(m) = self.mapping() else { return self.nowhere() };
        if is_data(&m) && !self.functions.is_empty() {
            let (slot, offset) = self.dword();
            self.select(slot, offset);
        }
        let size = self.size(&m);
        let offset = self.offset(&m);
        let offset = if self.byte() < 0xe0 { offset - offset % size.bytes() } else { offset };
        let mut access = self.make(m.region.space, m.base + offset, size, write);
        let (own, up) = values::of_access(m.region.name, offset, size);
        if let (Dir::Write(value), [_, ..]) = (&mut access.dir, own)
            && let byte @ 0x80.. = self.byte()
        {
            *value = own[usize::from(byte) % own.len()] << up & size.mask();
        }
        self.access(access);
    }

    /// A place in a region: of a large one, mostly one of its registers, often one that has values of its own, or
    /// else one of the first places or of the last.
    fn offset(&mut self, m: &Mapping) -> u64 {
        if m.region.len <= registers::SMALL {
            return self.below(m.region.len);
        }
        let how = self.byte();
        let registers = self.registers.clone();
        let known = match how {
            0..0x60 => registers.of(m),
            0x60..0xc0 => registers.with_values(m),
            _ => &[],
        };
        if !known.is_empty() {
            return known[self.below(known.len() as u64) as usize];
        }
        self.below(match how % 8 {
            0..3 => 64,
            3 => return m.region.len - 64 + self.below(64),
            4..6 => m.region.len.min(0x400),
            _ => m.region.len,
        })
    }

    fn make(&mut self, space: Space, addr: u64, size: Size, write: bool) -> Access {
        // A port's number has 16 bits; an access that reaches over the end begins within.
        let addr = if space == Space::Port { addr & 0xffff } else { addr };
        if write {
            let value = self.value(size);
            Access::write(space, addr, size, value)
        } else {
            Access::read(space, addr, size)
        }
    }
}
