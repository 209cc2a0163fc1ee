//! Hyper-V's interfaces for a guest, its "enlightenments": which there are, what each adds to CPUID, and
//! what it needs (Hyper-V's Top Level Functional Specification, TLFS, Feature and Interface Discovery).
//!
//! Nothing here knows KVM: what a host offers comes in as leaves of CPUID (`KVM_GET_SUPPORTED_HV_CPUID`),
//! and what a guest is told goes out as leaves.

mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use crate::cpuid::{Cpuid, Leaf, Reg};
use crate::words::distance;
use table::{ROWS, Row};

/// The first leaf of Hyper-V's, and the one behind the last that a guest gets.
const FIRST: u32 = 0x4000_0000;
const END: u32 = 0x4000_0006;
/// How far KVM's own leaves go up, to make room.
const STEP: u32 = 0x100;
/// The leaf of features: what may be used.
const FEATURES: u32 = 0x4000_0003;
/// The leaf of recommendations: what should be used.
const ADVICE: u32 = 0x4000_0004;
/// `SPINLOCKS`' value for a guest that need not tell of its long spins.
const NEVER: u32 = u32::MAX;

/// Words of a list beside the names of the table.
const ALL: &str = "all";
const ENFORCE: &str = "enforce-cpuid";
const SPINLOCKS: &str = "spinlocks";

/// What a guest is to be offered. Its text form is a list of names: `relaxed,time,synic,stimer`.
///
/// | word | meaning |
/// |---|---|
/// | a name of [`names`] | that enlightenment |
/// | `spinlocks=N` | as `spinlocks`, which the guest then tells of after N tries |
/// | `all` | every one that the host offers |
/// | `enforce-cpuid` | KVM refuses what CPUID does not offer |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enlightenments {
    /// A bit for each row of the table.
    set: u32,
    all: bool,
    enforce: bool,
    /// Tries before a guest tells of a long spin, instead of the host's number.
    retries: Option<u32>,
}

/// Why a guest cannot have what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HypervError {
    /// A word that is no name.
    #[error(
        "Hyper-V option: `{word}` is no enlightenment{}; known are {}, `{ALL}` and `{ENFORCE}`",
        .nearest.map_or(String::new(), |n| format!(" (is `{n}` meant?)")),
        names().collect::<Vec<_>>().join(", ")
    )]
    Unknown {
        /// The word.
        word: String,
        /// The name most like it.
        nearest: Option<&'static str>,
    },
    /// A value that cannot be.
    #[error("Hyper-V option: `{0}`: {SPINLOCKS} is a number of tries from 0xfff to 0xfffffffe")]
    Value(String),
    /// One that only makes sense with others.
    #[error("Hyper-V's `{name}` needs `{missing}`: add it to the list, or leave `{name}` out")]
    Needs {
        /// What was asked for.
        name: &'static str,
        /// What else there must be.
        missing: &'static str,
    },
    /// The host's KVM does not have it.
    #[error(
        "Hyper-V's `{name}` is not offered by this host's KVM (leaf {leaf:#x}, {reg} bit {bit} of \
         KVM_GET_SUPPORTED_HV_CPUID); leave it out, or write `{ALL}` for what there is"
    )]
    NotOffered {
        /// What was asked for.
        name: &'static str,
        /// The leaf that would tell.
        leaf: u32,
        /// The register.
        reg: Reg,
        /// The bit.
        bit: u8,
    },
}

/// The names of the enlightenments, as users of QEMU know them, without the `hv-` before them.
pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|row| row.name)
}

/// Whether a host with these leaves has the enlightenment of this name; `None` if no such is known.
pub fn is_offered(name: &str, offered: &Cpuid) -> Option<bool> {
    ROWS.iter().find(|row| row.name == name).map(|row| row.missing(offered).is_none())
}

impl Row {
    /// The first of its bits that is not among `offered`.
    fn missing(&self, offered: &Cpuid) -> Option<(u32, Reg, u8)> {
        let has =
            |leaf, reg, bit: u8| offered.get(leaf, 0).is_some_and(|l| l.reg(reg) >> bit & 1 == 1);
        self.bits.iter().copied().find(|&(leaf, reg, bit)| !has(leaf, reg, bit))
    }
}

impl Enlightenments {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set == 0 && !self.all
    }

    /// Whether the one of this name was asked for.
    pub fn has(&self, name: &str) -> bool {
        self.rows().any(|row| row.name == name)
    }

    /// Whether KVM is to refuse what CPUID does not offer.
    pub fn is_enforced(&self) -> bool {
        self.enforce
    }

    /// Whether all that a host offers was asked for.
    pub fn wants_all(&self) -> bool {
        self.all
    }

    /// The names of those that were asked for one by one.
    pub fn named(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.rows().map(|row| row.name)
    }

    fn rows(&self) -> impl Iterator<Item = &'static Row> + '_ {
        ROWS.iter().enumerate().filter(|(i, _)| self.set >> i & 1 == 1).map(|(_, row)| row)
    }

    /// The same with `all` replaced by what a host with these leaves offers.
    ///
    /// # Errors
    /// When one is not offered.
    pub fn on(&self, offered: &Cpuid) -> Result<Enlightenments, HypervError> {
        let mut on = Enlightenments { all: false, ..self.clone() };
        for (i, row) in ROWS.iter().enumerate() {
            match row.missing(offered) {
                None if self.all => on.set |= 1 << i,
                Some((leaf, reg, bit)) if self.set >> i & 1 == 1 => {
                    return Err(HypervError::NotOffered { name: row.name, leaf, reg, bit });
                }
                _ => {}
            }
        }
        on.check()?;
        Ok(on)
    }

    fn check(&self) -> Result<(), HypervError> {
        for row in self.rows().filter(|_| !self.all) {
            if let Some(missing) = row.needs.iter().find(|name| !self.has(name)) {
                return Err(HypervError::Needs { name: row.name, missing });
            }
        }
        Ok(())
    }

    /// Puts Hyper-V's leaves into `cpuid`, and moves those of KVM that were there up by 0x100. A set
    /// that [`Enlightenments::on`] gave for the same host.
    pub fn apply(&self, offered: &Cpuid, cpuid: &mut Cpuid) {
        if self.is_empty() {
            return;
        }
        for leaf in cpuid.0.iter_mut().filter(|l| (FIRST..FIRST + STEP).contains(&l.leaf)) {
            // The first one tells the last.
            if leaf.leaf == FIRST && leaf.eax >= FIRST {
                leaf.eax += STEP;
            }
            leaf.leaf += STEP;
        }
        for number in FIRST..END {
            let given = offered.get(number, 0).copied().unwrap_or_default();
            let mut leaf = Leaf { leaf: number, subleaf: 0, significant_subleaf: false, ..given };
            match number {
                FIRST => leaf.eax = END - 1,
                FEATURES | ADVICE => self.choose(&mut leaf),
                _ => {}
            }
            cpuid.put(leaf);
        }
    }

    /// Leaves the bits of a leaf that were asked for.
    fn choose(&self, leaf: &mut Leaf) {
        let given = *leaf;
        let mut put = |reg, bits: u32| *leaf.reg_mut(reg) = given.reg(reg) & bits;
        for reg in Reg::ALL {
            let rows = self.rows().flat_map(|row| row.bits);
            let own = rows.filter(|&&(l, r, _)| (l, r) == (given.leaf, reg));
            let mut bits = own.fold(0, |bits, (_, _, bit)| bits | 1 << bit);
            if given.leaf == FEATURES && reg == Reg::Eax {
                bits |= table::HYPERCALL_MSRS;
            }
            if given.leaf == FEATURES && reg == Reg::Ebx && self.has("synic") {
                bits |= table::CONNECTIONS;
            }
            put(reg, bits);
        }
        if given.leaf == ADVICE {
            leaf.ebx = match (self.has(SPINLOCKS), self.retries) {
                (true, Some(retries)) => retries,
                (true, None) => given.ebx,
                (false, _) => NEVER,
            };
        }
    }
}

impl FromStr for Enlightenments {
    type Err = HypervError;

    fn from_str(text: &str) -> Result<Enlightenments, HypervError> {
        let mut list = Enlightenments::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                ALL => list.all = true,
                ENFORCE => list.enforce = true,
                _ => list.add(word)?,
            }
        }
        list.check()?;
        Ok(list)
    }
}

impl Enlightenments {
    fn add(&mut self, word: &str) -> Result<(), HypervError> {
        let name = match word.split_once('=') {
            Some((SPINLOCKS, value)) => {
                self.retries = Some(retries(value).ok_or(HypervError::Value(word.into()))?);
                SPINLOCKS
            }
            _ => word,
        };
        let Some(at) = ROWS.iter().position(|row| row.name == name) else {
            let near = names().map(|n| (distance(n, name), n)).min();
            let nearest = near.filter(|(far, _)| *far <= 2).map(|(_, n)| n);
            return Err(HypervError::Unknown { word: word.to_owned(), nearest });
        };
        self.set |= 1 << at;
        Ok(())
    }
}

/// A number of tries: at least as many as KVM's own, since a spin is long only then.
fn retries(text: &str) -> Option<u32> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.ok().filter(|n| (0xfff..NEVER).contains(n))
}

impl fmt::Display for Enlightenments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        if self.all {
            words.push(ALL.to_owned());
        }
        for name in self.named() {
            match self.retries.filter(|_| name == SPINLOCKS) {
                Some(retries) => words.push(format!("{name}={retries:#x}")),
                None => words.push(name.to_owned()),
            }
        }
        if self.enforce {
            words.push(ENFORCE.to_owned());
        }
        f.write_str(&words.join(","))
    }
}
