//! What becomes of one input: nothing, or a law broken and by whom.
//!
//! Two inputs are of one [`Cause`] if the same law is broken in the same place: the line that panics, or
//! the device. What differs from input to input, numbers above all, is no part of it.

use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use vmm::exit::Exit;
use vmm::script::replay::Player;
use vmm::script::{Op, Script};

use crate::Board;
use crate::generators::words;
use crate::oracles::{self, Law, Restores, Violation};
use crate::targets::Target;

/// Why an input is a finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cause {
    /// The device, or the file that panics.
    pub device: String,
    /// The law, in a word or two.
    pub law: String,
    /// The message without its numbers; for a panic, where it was, too.
    pub what: String,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.device, self.law, self.what)
    }
}

/// A finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it has in common with others.
    pub cause: Cause,
    /// The operation at which it showed, if it was one; the first is 1.
    pub step: Option<usize>,
    /// The whole message.
    pub message: String,
    /// The stack of the panic; empty if none happened.
    pub stack: String,
}

/// A panic as its hook saw it.
#[derive(Clone, Debug)]
struct Seen {
    message: String,
    file: String,
    line: u32,
    stack: String,
}

thread_local! {
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// Keeps the first panic of this thread for [`script`] and [`input`], and prints none of any thread. With
/// `stacks`, its stack, too, which takes long.
pub fn listen(stacks: bool) {
    panic::set_hook(Box::new(move |info| {
        let (file, line) = info.location().map_or(("", 0), |at| (at.file(), at.line()));
        let message = words(info.payload());
        SEEN.with_borrow_mut(|seen| {
            let stack = || Backtrace::force_capture().to_string();
            seen.get_or_insert_with(|| Seen {
                message,
                file: file.to_owned(),
                line,
                stack: if stacks { stack() } else { String::new() },
            });
        });
    }));
}

/// Whether a script breaks a law on this board. Without [`listen`], a panic has no place.
pub fn script(script: &Script, board: &Board<'_>, restores: Restores) -> Option<Finding> {
    SEEN.with_borrow_mut(Option::take);
    let violation = oracles::check(script, board, restores).err()?;
    let seen = SEEN.with_borrow_mut(Option::take);
    Some(of_violation(script, board, violation, seen))
}

/// Whether a target panics on these bytes.
pub fn input(target: &Target, bytes: &[u8]) -> Option<Finding> {
    SEEN.with_borrow_mut(Option::take);
    let panic = panic::catch_unwind(AssertUnwindSafe(|| target.run(bytes))).err()?;
    let seen = SEEN.with_borrow_mut(Option::take);
    let message = words(&*panic);
    let cause = match &seen {
        Some(seen) => of_panic(seen),
        None => Cause { device: target.name.into(), law: "panic".into(), what: normal(&message) },
    };
    // A panic of the target's own is its word on what it asked for.
    let own = cause.device == "fuzz";
    let cause = if own { Cause { device: target.name.into(), ..cause } } else { cause };
    let stack = seen.map(|seen| seen.stack).unwrap_or_default();
    Some(Finding { cause, step: None, message, stack })
}

fn of_violation(
    script: &Script,
    board: &Board<'_>,
    violation: Violation,
    seen: Option<Seen>,
) -> Finding {
    let message = violation.to_string();
    let cause = match (violation.law, &seen) {
        (Law::Panics, Some(seen)) => of_panic(seen),
        (law, _) => {
            let named = violation.what.split('`').nth(1).filter(|_| law == Law::Resets);
            let of_step = || device_at(script, board, violation.step?);
            let device = named.map(str::to_owned).or_else(|| of_refusal(&violation.what));
            let device = device.or_else(of_step).unwrap_or_else(|| "board".to_owned());
            let what = match law {
                Law::Resets => "remembers what it was".to_owned(),
                _ => normal(&law.to_string()),
            };
            Cause { device, law: format!("{law:?}").to_lowercase(), what }
        }
    };
    let stack = seen.map(|seen| seen.stack).unwrap_or_default();
    Finding { cause, step: violation.step, message, stack }
}

/// The device that an error of a restored state names.
fn of_refusal(what: &str) -> Option<String> {
    let rest = what.split_once("device `").map(|(_, rest)| rest)?;
    rest.split_once('`').map(|(name, _)| name.to_owned())
}

fn of_panic(seen: &Seen) -> Cause {
    let file = seen.file.replace('\\', "/");
    // A path of this machine is none on another one.
    let inner = file.rsplit_once("/src/").or(file.split_once("src/")).map_or("", |(_, end)| end);
    let krate = file.split("/src/").next().and_then(|c| c.rsplit('/').next()).unwrap_or("");
    let device = match (krate, Path::new(inner).with_extension("")) {
        ("fuzz", _) => "fuzz".to_owned(),
        (_, path) => {
            let parts: Vec<_> = path.iter().map(|p| p.to_string_lossy().into_owned()).collect();
            match &parts[..] {
                [chips, pci, unit, ..] if chips == "chips" && pci == "pci" => unit.clone(),
                [chips, unit, ..] if chips == "chips" => unit.replace('_', "-"),
                [first, ..] => first.clone(),
                [] => "panic".to_owned(),
            }
        }
    };
    let what = format!("{} ({krate}/{inner}:{})", normal(&seen.message), seen.line);
    Cause { device, law: "panic".to_owned(), what }
}

/// A message with every number as `N`, and of its first line only.
fn normal(message: &str) -> String {
    let mut out = String::new();
    let mut in_number = false;
    for c in message.lines().next().unwrap_or("").chars().take(200) {
        let digit = c.is_ascii_digit() || (in_number && (c.is_ascii_hexdigit() || c == 'x'));
        match (digit, in_number) {
            (true, false) => out.push('N'),
            (true, true) => {}
            (false, _) => out.push(c),
        }
        in_number = digit;
    }
    out
}

/// The device that operation number `step` (from 1) goes to.
fn device_at(script: &Script, board: &Board<'_>, step: usize) -> Option<String> {
    match &script.steps.get(step.checked_sub(1)?)?.op {
        Op::Input { device, .. } => Some(device.to_string()),
        Op::Exit { exit: Exit::Io(access), .. } => {
            let mut player = Player::new(&script.board, board.build).ok()?;
            // Base addresses move.
            for before in &script.steps[..step - 1] {
                panic::catch_unwind(AssertUnwindSafe(|| player.step(&before.op))).ok()?;
            }
            let machine = player.machine();
            let mapping = machine.mappings().find(|m| m.takes(access))?;
            machine.devices().nth(usize::from(mapping.device)).map(str::to_owned)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_no_part_of_a_cause() {
        let one = normal("index 17 of 0xdeadbeef is out\nsecond line");
        assert_eq!(one, "index N of N is out");
        assert_eq!(normal("index 3 of 0x1 is out"), one);
        assert_ne!(normal("index 3 of 0x1 is in"), one);
    }

    #[test]
    fn a_panic_is_of_the_file_that_panics() {
        let seen = |file: &str| Seen {
            message: "index 9".into(),
            file: file.into(),
            line: 7,
            stack: String::new(),
        };
        for (file, device, place) in [
            ("vmm/src/chips/uart.rs", "uart", "(vmm/chips/uart.rs:7)"),
            ("/home/me/lab/vmm/src/chips/pci/vtd/walk.rs", "vtd", "(vmm/chips/pci/vtd/walk.rs:7)"),
            ("vmm/src/boot/elf.rs", "boot", "(vmm/boot/elf.rs:7)"),
            ("vmm/src/chips/fw_cfg.rs", "fw-cfg", "(vmm/chips/fw_cfg.rs:7)"),
            ("fuzz/src/wire.rs", "fuzz", "(fuzz/wire.rs:7)"),
        ] {
            let cause = of_panic(&seen(file));
            assert_eq!(cause.device, device, "{file}");
            assert!(cause.what.starts_with("index N") && cause.what.ends_with(place), "{cause}");
        }
    }
}
