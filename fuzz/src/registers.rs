//! Which registers a large region has. A new board is asked once, so that no device has to say: where
//! reads find no register, there is none to be met.

use std::cell::RefCell;
use std::rc::Rc;

use vmm::access::{Access, IoError, Size};
use vmm::bus::Mapping;
use vmm::exit::Exit;
use vmm::machine::{Context, Machine};
use vmm::script::replay::Player;
use vmm::script::{Answer, BoardSpec};

use crate::Board;
use crate::generators::values;

/// Of a region up to this long, every place is as good as another.
pub const SMALL: u64 = 64;
/// A region in which more than this many places answer is memory.
const MOST: usize = 1024;
/// In one in which more than this many answer, unused places do, too.
const FEW: usize = 64;
/// How far apart registers begin.
pub const STRIDE: usize = 4;

/// The registers of a board's large regions.
#[derive(Debug, Default)]
pub struct Registers(Vec<Known>);

#[derive(Debug)]
struct Known {
    device: u16,
    index: u8,
    offsets: Box<[u64]>,
    /// Those of them that have values of their own; all, if none has.
    with_values: Box<[u64]>,
}

impl Registers {
    /// Offsets of the registers in the region of a mapping, in order; none of a small one or of memory.
    pub fn of(&self, mapping: &Mapping) -> &[u64] {
        self.known(mapping).map_or(&[], |k| &k.offsets)
    }

    /// Of these, those whose documentation names values; all, if there are none such.
    pub fn with_values(&self, mapping: &Mapping) -> &[u64] {
        self.known(mapping).map_or(&[], |k| &k.with_values)
    }

    fn known(&self, mapping: &Mapping) -> Option<&Known> {
        let here = |k: &&Known| (k.device, k.index) == (mapping.device, mapping.index);
        self.0.iter().find(here)
    }

    fn ask(board: &Board<'_>, mappings: &[Mapping]) -> Registers {
        let mut known = Vec::new();
        let large = mappings.iter().filter(|m| m.region.len > SMALL);
        if large.clone().next().is_none() {
            return Registers(known);
        }
        let mut player = Player::new(&board.spec, board.build).expect("a board that can be built");
        for m in large {
            let mut offsets = answering(&mut player, m);
            if offsets.len() > FEW {
                // Of some registers nothing shows while there is nothing to tell: they are known by their values.
                let known = |offset| !values::of(m.region.name, offset).is_empty();
                offsets.retain(|&offset| known(offset) || holds(&mut player, m, offset));
            }
            // Upper halves that are 0 are as good as any.
            let has_some =
                |offset: &u64| values::of(m.region.name, *offset).iter().any(|&v| v != 0);
            let with_values: Vec<u64> = offsets.iter().copied().filter(has_some).collect();
            let with_values = if with_values.is_empty() { offsets.clone() } else { with_values };
            known.push(Known {
                device: m.device,
                index: m.index,
                offsets: offsets.into(),
                with_values: with_values.into(),
            });
        }
        Registers(known)
    }
}

/// What tells boards from each other: two may have one specification and be built by different means.
type Key = (BoardSpec, Vec<Mapping>);

/// A new board, however it was used.
fn renew<'p>(player: &'p mut Player<'_>) -> &'p Machine {
    player.renew().expect("a board that was built before");
    player.machine()
}

fn size(m: &Mapping) -> Size {
    m.region.widest.min(Size::B4)
}

/// Places of a region at which reads find a register; none if it is memory.
fn answering(player: &mut Player<'_>, m: &Mapping) -> Vec<u64> {
    let machine = renew(player);
    let size = size(m);
    let mut cx = Context::new();
    let missing = |cx: &Context| {
        cx.faults[IoError::NoRegister as usize] + cx.faults[IoError::Unclaimed as usize]
    };
    let mut offsets = Vec::new();
    for offset in (0..m.region.len - size.bytes()).step_by(STRIDE) {
        let before = missing(&cx);
        machine.handle(&mut cx, &Exit::Io(Access::read(m.region.space, m.base + offset, size)));
        if missing(&cx) == before {
            offsets.push(offset);
        }
        if offsets.len() > MOST {
            return Vec::new();
        }
    }
    offsets
}

/// Whether a place holds something, or takes something, with any width: where unused places read as 0, that
/// is what makes a register.
fn holds(player: &mut Player<'_>, m: &Mapping, offset: u64) -> bool {
    let (space, addr) = (m.region.space, m.base + offset);
    let fits = |size: &Size| *size <= m.region.widest && offset.is_multiple_of(size.bytes());
    Size::ALL.into_iter().filter(fits).any(|size| {
        let machine = renew(player);
        let mut cx = Context::new();
        let read = machine.handle(&mut cx, &Exit::Io(Access::read(space, addr, size)));
        let nothing = [Answer::Value(0), Answer::Value(size.mask())];
        let before = machine.save();
        !nothing.contains(&Answer::from(read))
            || [size.mask(), 0, 1].iter().any(|&value| {
                let write = Access::write(space, addr, size, value);
                machine.handle(&mut cx, &Exit::Io(write));
                machine.save() != before
            })
    })
}

thread_local! {
    static KNOWN: RefCell<Vec<(Key, Rc<Registers>)>> = const { RefCell::new(Vec::new()) };
}

/// The registers of a board like this one, which has these mappings when it is switched on; it is asked
/// the first time.
///
/// # Panics
/// When the board cannot be built.
pub fn of(board: &Board<'_>, mappings: &[Mapping]) -> Rc<Registers> {
    let same = |(spec, known): &Key| *spec == board.spec && known == mappings;
    KNOWN.with_borrow_mut(|all| match all.iter().find(|(key, _)| same(key)) {
        Some((_, registers)) => registers.clone(),
        None => {
            let registers = Rc::new(Registers::ask(board, mappings));
            all.push(((board.spec.clone(), mappings.to_vec()), registers.clone()));
            registers
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets;

    #[test]
    fn a_board_tells_where_its_registers_are() {
        let offsets = |target: &str, len: u64| {
            let board =
                targets::named(target).and_then(|t| t.board()).expect("a target with a board");
            let player = Player::new(&board.spec, board.build).expect("a board");
            let machine = player.machine();
            let all: Vec<Mapping> = machine.mappings().collect();
            let m = all.iter().find(|m| m.region.len == len).expect("a region of this length");
            of(&board, &all).of(m).to_vec()
        };
        // docs/specs/edu.rst: those that are written only are registers, too.
        let edu = offsets("edu", 1 << 20);
        let all = [0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x8c, 0x90, 0x94, 0x98, 0x9c];
        assert_eq!(edu, all);
        // VT-d specification, 11.4: the version, capabilities, extended capabilities, global command (which
        // is written only), the root table's address.
        let vtd = offsets("vtd", 0x1000);
        // Faults are told by registers that hold nothing before.
        let some = [0, 8, 0xc, 0x10, 0x18, 0x20, 0x24, 0x34, 0x9c, 0x22c];
        assert!(some.iter().all(|o| vtd.contains(o)), "{vtd:x?}");
        assert!(vtd.len() < 64, "{vtd:x?}");
        // docs/specs/pci-testdev.rst: the header begins with the test, a byte that takes numbers of tests.
        assert_eq!(offsets("pci-testdev", 0x1000), [0]);
    }
}
