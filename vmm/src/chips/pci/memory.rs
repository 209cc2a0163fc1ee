//! Memory as a function sees it: through the IOMMU, where the board has one.

use std::fmt;
use std::sync::Arc;

use super::Slot;
use crate::device::Env;
use crate::planted::{self, Flaw};

/// What stands between the functions of a bus and memory.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// Where an access by `requester` to a bus address goes: a guest-physical address, and how many
    /// bytes from there on belong together (at least 1). `None` if it is refused.
    fn translate(
        &self,
        env: &mut Env<'_>,
        requester: Slot,
        address: u64,
        write: bool,
    ) -> Option<(u64, u64)>;

    /// The interrupt message that arrives at the local APICs for one of `requester`, or of the I/O APIC
    /// (`None`). `None` if it is refused; `record` says whether that is a fault to be told.
    fn remap(
        &self,
        env: &mut Env<'_>,
        requester: Option<Slot>,
        address: u64,
        data: u32,
        record: bool,
    ) -> Option<(u64, u32)>;
}

/// An access that did not reach memory, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bus address {address:#x}: the IOMMU refuses it, or no memory is behind it")]
pub struct Refused {
    /// The first byte that was refused, or of a run that was.
    pub address: u64,
}

/// A function's way to memory.
#[derive(Clone, Debug)]
pub struct BusMemory {
    requester: Slot,
    iommu: Option<Arc<dyn Iommu>>,
}

impl BusMemory {
    /// The way of the function in this slot.
    pub fn new(requester: Slot, iommu: Option<Arc<dyn Iommu>>) -> BusMemory {
        BusMemory { requester, iommu }
    }

    /// Fills `bytes` from a bus address.
    ///
    /// # Errors
    /// When some of it cannot be read; runs that were read before are in `bytes`.
    pub fn read(&self, env: &mut Env<'_>, address: u64, bytes: &mut [u8]) -> Result<(), Refused> {
        let mut done = 0;
        while done < bytes.len() {
            let address = address.wrapping_add(done as u64);
            let (at, len) = self.run(env, address, bytes.len() - done, false)?;
            // All of a run or nothing: what comes before the end of memory does not arrive either.
            if !env.ram.contains(at, len as u64) {
                return Err(Refused { address });
            }
            let part = &mut bytes[done..done + len];
            env.ram.read(at, part).map_err(|_| Refused { address })?;
            done += len;
        }
        Ok(())
    }

    /// Writes `bytes` to a bus address.
    ///
    /// # Errors
    /// When some of it cannot be written; what came before it was.
    pub fn write(&self, env: &mut Env<'_>, address: u64, bytes: &[u8]) -> Result<(), Refused> {
        let mut done = 0;
        while done < bytes.len() {
            let address = address.wrapping_add(done as u64);
            let (at, len) = self.run(env, address, bytes.len() - done, true)?;
            env.ram.write(at, &bytes[done..done + len]).map_err(|_| Refused { address })?;
            done += len;
        }
        Ok(())
    }

    /// Where at most `len` bytes go, as a guest-physical address and as many as lie together there.
    fn run(
        &self,
        env: &mut Env<'_>,
        address: u64,
        len: usize,
        write: bool,
    ) -> Result<(u64, usize), Refused> {
        let Some(iommu) = &self.iommu else { return Ok((address, len)) };
        let len = if planted::has(Flaw::VtdDwords) { len.min(4) } else { len };
        let run = iommu.translate(env, self.requester, address, write);
        let (at, run) = run.ok_or(Refused { address })?;
        Ok((at, len.min(usize::try_from(run).unwrap_or(len)).max(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Actions;
    use crate::machine::ManualClock;
    use crate::ram::{Backing, GuestRam};

    /// Bus pages are memory's in reverse order, of 16 bytes each; odd ones cannot be written.
    #[derive(Debug)]
    struct Reversed;

    impl Iommu for Reversed {
        fn translate(
            &self,
            _: &mut Env<'_>,
            requester: Slot,
            address: u64,
            write: bool,
        ) -> Option<(u64, u64)> {
            let (page, offset) = (address / 16, address % 16);
            let allowed = requester == Slot::new(3, 1) && !(write && page % 2 == 1);
            let page = 0xfu64.checked_sub(page).filter(|_| allowed)?;
            Some((page * 16 + offset, 16 - offset))
        }

        fn remap(
            &self,
            _: &mut Env<'_>,
            _: Option<Slot>,
            address: u64,
            data: u32,
            _: bool,
        ) -> Option<(u64, u32)> {
            Some((address, data))
        }
    }

    #[test]
    fn what_crosses_pages_is_translated_page_by_page() {
        let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
        ram.write(0, &(0..=255).collect::<Vec<u8>>()).expect("RAM");
        let (clock, mut actions) = (ManualClock::default(), Actions::default());
        let mut env = Env::new(&clock, &ram, &mut actions);
        let memory = BusMemory::new(Slot::new(3, 1), Some(Arc::new(Reversed)));
        let mut bytes = [0; 20];
        memory.read(&mut env, 14, &mut bytes).expect("mapped");
        let expected = [254, 255].into_iter().chain(224..240).chain([208, 209]);
        assert!(bytes.iter().copied().eq(expected), "{bytes:?}");
        assert_eq!(memory.write(&mut env, 14, &[1, 2, 3]), Err(Refused { address: 16 }));
        // Without an IOMMU all of it is one run, and of that nothing is read if memory ends within.
        let (direct, mut four) = (BusMemory::new(Slot::new(3, 0), None), [7; 4]);
        let refused = direct.read(&mut env, (2 << 20) - 2, &mut four);
        assert_eq!((refused, four), (Err(Refused { address: (2 << 20) - 2 }), [7; 4]));
        assert_eq!(ram.read_u32(252), Ok(0x0201_fdfc), "what came before the refusal");
        assert_eq!(memory.read(&mut env, 255, &mut bytes), Err(Refused { address: 256 }));
        let other = BusMemory::new(Slot::new(3, 0), Some(Arc::new(Reversed)));
        assert_eq!(other.read(&mut env, 0, &mut bytes), Err(Refused { address: 0 }));
        let plain = BusMemory::new(Slot::new(3, 0), None);
        assert_eq!(plain.write(&mut env, u64::MAX, &[1, 2]), Err(Refused { address: u64::MAX }));
        assert_eq!(plain.read(&mut env, 0, &mut []), Ok(()));
    }
}
