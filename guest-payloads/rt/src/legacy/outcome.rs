//! How a run in legacy mode ended.

use super::*;
use crate::trap::UD;
use crate::{check, check_eq, mem};

/// How a run ended: by which vector, with which registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The vector.
    pub vector: u8,
    /// Its error code; 0 for vectors without one.
    pub error: u32,
    /// The registers of the interrupted code. Of CR0 and CR3 what they were in the handler; selectors have
    /// their upper halves zero.
    pub regs: Regs,
    /// SS and ESP in the handler, with all that the processor pushed taken off.
    pub inner: (u32, u32),
    real: bool,
}

impl Outcome {
    pub(super) fn new(state: State, real: bool) -> Outcome {
        let mut regs = state.regs;
        for selector in
            [&mut regs.es, &mut regs.cs, &mut regs.ss, &mut regs.ds, &mut regs.fs, &mut regs.gs]
        {
            *selector &= 0xffff;
        }
        Outcome {
            vector: state.vector as u8,
            error: state.error,
            regs,
            inner: (state.inner_ss & 0xffff, state.inner_esp),
            real,
        }
    }

    /// The linear address of the interrupted instruction, by the tables as they are now.
    pub fn address(&self) -> u32 {
        let Regs { cs, eip, eflags, .. } = self.regs;
        if self.real || eflags & FLAG_VM != 0 {
            return (cs << 4) + eip;
        }
        let table = if cs & 4 != 0 { LDT } else { GDT };
        let descriptor: u64 = table::sure(mem::read((table + (cs & !7)).into()));
        let base = (descriptor >> 16 & 0xff_ffff) | (descriptor >> 56) << 24;
        (base as u32).wrapping_add(eip)
    }

    /// Whether the code was done: it came to its end.
    pub fn is_done(&self) -> bool {
        let at = u64::from(self.address());
        self.vector == UD && mem::read(at) == Ok(0xc88e_u16)
    }

    /// Checks that the code was done.
    pub fn done(&self, what: &str) -> &Outcome {
        check!(
            self.is_done(),
            "{what}: vector {} with error {:#x} at {:#x}:{:#x}, must be done",
            self.vector,
            self.error,
            self.regs.cs,
            self.regs.eip
        );
        self
    }

    /// Checks that it ended by this vector and error code, at the instruction `at` bytes into [`CODE`].
    pub fn faults(&self, vector: u8, error: u32, at: u32, what: &str) -> &Outcome {
        self.raises(vector, error, what);
        check_eq!(self.address(), CODE + at, "address of the instruction: {what}");
        self
    }

    /// Checks that it ended by this vector and error code, wherever.
    pub fn raises(&self, vector: u8, error: u32, what: &str) -> &Outcome {
        check!(
            self.vector == vector && self.error == error,
            "{what}: vector {} with error {:#x} at {:#x}:{:#x}, must be vector {vector} with {error:#x}",
            self.vector,
            self.error,
            self.regs.cs,
            self.regs.eip
        );
        self
    }
}
