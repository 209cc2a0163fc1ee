//! Direct against guest: a script is done by a guest's instructions under KVM, and what becomes of it there
//! must be what becomes of it on the board alone.
//!
//! [`Preparer`] leaves of a script what a guest can do without ending or breaking its machine; the payload
//! `replay` does that ([`payload_abi::replay`]), while its VMM records every exit; [`compare`] then holds
//! three things against each other:
//!
//! - the exits of the guest are the accesses of the script: address, width, direction, value;
//! - the recording, played directly, has the same answers and effects at the same virtual time;
//! - what each read left in the guest's register is the answer, in the bytes that the SDM says.
//!
//! So whatever KVM and the VMM do between an instruction and [`Machine::handle`], and back, is looked at
//! from both ends.
//!
//! [`Machine::handle`]: vmm::machine::Machine::handle
mod compare;
mod prepare;

use vmm::access::{Access, Dir, Size, Space};
use vmm::chips::pci::DATA_PORT;
use vmm::exit::Exit;
use vmm::machine::{IommuConfig, PciDevice};
use vmm::ram::PAGE;
use vmm::script::replay::{self, Player};
use vmm::script::{Answer, BoardSpec, Op, Script};

use crate::Board;
use crate::generators::{self, HEADER, RECORD};
use crate::mutate::Rng;
use crate::targets::Target;
pub use compare::{Compared, Difference, compare};
pub use prepare::{Prepared, Preparer, Why};

/// The PC that scripts for this board are done on: with the devices that it has on its PCI bus, so that they
/// are where its scripts look for them, or with all that go there. If it has an I/O APIC, so has the PC, and
/// that one's registers, too, are reached by exits.
///
/// # Panics
/// When the board cannot be built.
pub fn board(own: &Board<'_>) -> BoardSpec {
    let player = Player::new(&own.spec, own.build).expect("a board that can be built");
    let has = |name| player.machine().devices().any(|device| device == name);
    let mut pci: Vec<PciDevice> = PciDevice::ALL.into_iter().filter(|d| has(d.name())).collect();
    if pci.is_empty() {
        pci = PciDevice::ALL.to_vec();
    }
    let iommu = Some(IommuConfig { interrupts: false });
    BoardSpec { pci: Some(pci), ioapic: has("ioapic"), iommu, ..BoardSpec::default() }
}

/// The same as options of `vmm run`.
pub fn arguments(spec: &BoardSpec) -> Vec<String> {
    let mut words = vec!["--memory".to_owned(), format!("{}K", spec.memory >> 10)];
    for device in spec.pci.iter().flatten() {
        words.extend(["--device".to_owned(), device.name().to_owned()]);
    }
    words.extend(["--device", "intel-iommu"].map(str::to_owned));
    if spec.ioapic {
        words.extend(["--irqchip", "split"].map(str::to_owned));
    }
    words
}

/// A script for a target, drawn by chance; `None` if its inputs are no scripts.
pub fn drawn(target: &Target, rng: &mut Rng, ops: usize) -> Option<Vec<Op>> {
    let board = target.board()?;
    let mut bytes = rng.number().to_le_bytes()[..HEADER].to_vec();
    for _ in 0..ops {
        // Zeros at the end of a record are the common thing.
        let used = 1 + rng.below(RECORD);
        let record: [u8; RECORD] = std::array::from_fn(|_| rng.number() as u8);
        bytes.extend(record.iter().enumerate().map(|(i, byte)| if i < used { *byte } else { 0 }));
    }
    Some(ops_of(generators::script(&bytes, &board).script))
}

/// What happens in a script.
pub fn ops_of(script: Script) -> Vec<Op> {
    script.steps.into_iter().map(|step| step.op).collect()
}

/// Accesses that put base addresses and commands of a board's PCI functions back, so that a script after
/// others finds devices where it looks for them.
///
/// # Panics
/// When the board cannot be built.
pub fn homeward(spec: &BoardSpec) -> Vec<Op> {
    let mut player = player(spec);
    let functions: Vec<_> = player.machine().pci_functions().map(|(slot, _)| slot).collect();
    let mut ops = Vec::new();
    for slot in functions {
        // Base addresses, then the command (PCI Local Bus Specification 3.0, 6.1).
        for offset in (0x10..0x28).step_by(4).chain([4]) {
            let address = 1 << 31 | u64::from(slot.number()) << 8 | offset;
            let select = Op::io(Access::write(Space::Port, DATA_PORT - 4, Size::B4, address));
            player.step(&select);
            let read = Op::io(Access::read(Space::Port, DATA_PORT, Size::B4));
            if let Answer::Value(value) = player.step(&read).answer {
                let write = Access::write(Space::Port, DATA_PORT, Size::B4, value);
                ops.extend([select, Op::io(write)]);
            }
        }
    }
    ops
}

fn player(spec: &BoardSpec) -> Player<'static> {
    Player::new(spec, &replay::board).expect("a board of the VMM's own")
}

/// An access in the pieces in which it leaves a guest, and how far into it each begins, in bytes. What lies
/// in two pages comes in two parts, as KVM translates each page by itself, and the VMM hands a part of an odd
/// length to the board in natural widths.
fn pieces(access: &Access) -> Vec<(u64, Access)> {
    let Access { space, addr, size, dir } = *access;
    let first = PAGE - addr % PAGE;
    if space == Space::Port || size.bytes() <= first {
        return vec![(0, *access)];
    }
    let mut pieces = Vec::new();
    for (start, end) in [(0, first), (first, size.bytes())] {
        let mut done = start;
        while done < end {
            let whole = Size::from_bytes(end - start).filter(|_| done == start);
            let size = whole.unwrap_or(Size::widest(addr + done, end - done));
            let piece = match dir {
                Dir::Read => Access::read(space, addr + done, size),
                Dir::Write(value) => Access::write(space, addr + done, size, value >> (8 * done)),
            };
            pieces.push((done, piece));
            done += size.bytes();
        }
    }
    pieces
}

fn exits(op: &Op) -> Vec<Op> {
    match op {
        Op::Exit { exit: Exit::Io(access), .. } => {
            pieces(access).into_iter().map(|(_, piece)| Op::io(piece)).collect()
        }
        op => vec![op.clone()],
    }
}

#[cfg(test)]
mod tests;
