//! A VMM that does one thing wrong, which the environment names ([`crate::sabotage`]).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::LaunchError;
use crate::access::{Access, Dir, Size, Space};
use crate::cpuid::{Cpuid, feature};
use crate::device::Nanos;
use crate::exit::{Entry, Exit, Stop};
use crate::hv::kvm::{KvmLab, KvmVcpu, WrongLab};
use crate::machine::{Backplane, Context, Machine};
use crate::run::Handler;
use crate::sabotage::Flaw;

/// The lab of a guest.
pub(super) type GuestLab = WrongLab;

/// The test device's latch, the ACPI PM timer and the RTC's data, as ports.
const LATCH: u64 = 0xe0;
const PM_TIMER: u64 = 0x608;
const RTC_DATA: u64 = 0x71;
/// The GSIs of the RTC and of the serial port, and one that no device has.
const RTC: u32 = 8;
const UART: u32 = 4;
const ELSEWHERE: u32 = 3;
/// How far kvmclock goes back. Nanoseconds.
const BACK: u64 = 1_000_000;

/// Does the one thing wrong.
pub(super) struct Saboteur {
    flaw: Option<Flaw>,
    lab: OnceLock<WrongLab>,
    exits: AtomicU64,
}

impl Saboteur {
    pub(super) fn new() -> Result<Saboteur, LaunchError> {
        let flaw = Flaw::chosen().map_err(LaunchError::Sabotage)?;
        Ok(Saboteur { flaw, lab: OnceLock::new(), exits: AtomicU64::new(0) })
    }

    pub(super) fn cpuid(&self, mut leaves: Cpuid) -> Cpuid {
        let mut hide = |name: &str| {
            if let Some(feature) = feature(name) {
                leaves.set(&feature, false);
            }
        };
        match self.flaw {
            Some(Flaw::CpuidNoX2apic) => hide("x2apic"),
            Some(Flaw::CpuidNoHypervisor) => hide("hypervisor"),
            Some(Flaw::CpuidNoFxsr) => hide("fxsr"),
            Some(Flaw::CpuidApicId) => {
                for leaf in &mut leaves.0 {
                    match leaf.leaf {
                        1 => leaf.ebx = leaf.ebx.wrapping_add(1 << 24),
                        0xb | 0x1f => leaf.edx += 1,
                        0x8000_001e => leaf.eax += 1,
                        _ => {}
                    }
                }
            }
            Some(Flaw::CpuidVendor) => {
                if let Some(leaf) = leaves.get_mut(0, 0) {
                    leaf.ecx ^= 0x20;
                }
            }
            Some(Flaw::CpuidAvxSize) => {
                if let Some(leaf) = leaves.get_mut(0xd, 2) {
                    leaf.eax /= 2;
                }
            }
            _ => {}
        }
        leaves
    }

    pub(super) fn backplane(&self, behind: Arc<dyn Backplane>) -> Arc<dyn Backplane> {
        match self.flaw {
            Some(flaw) => Arc::new(WrongLines { flaw, behind }),
            None => behind,
        }
    }

    /// Whether a guest without a lab needs one all the same.
    pub(super) fn needs_lab(&self) -> bool {
        self.flaw.is_some()
    }

    pub(super) fn lab(&self, lab: KvmLab, vcpus: &mut [KvmVcpu]) -> GuestLab {
        let lab = WrongLab::new(lab, self.flaw);
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            // A host that refuses is not wrong, which tests will tell by all passing.
            let _ = lab.prepare(vcpu, index);
        }
        self.lab.get_or_init(|| lab).clone()
    }

    pub(super) fn around<H: Handler<KvmVcpu>>(&self, handler: H) -> WrongHandler<'_, H> {
        WrongHandler { saboteur: self, handler }
    }
}

/// Interrupt lines that go wrong.
struct WrongLines {
    flaw: Flaw,
    behind: Arc<dyn Backplane>,
}

impl Backplane for WrongLines {
    fn set_line(&self, gsi: u32, level: bool) {
        let (gsi, level) = match (self.flaw, gsi) {
            (Flaw::LineLost, RTC) => (gsi, false),
            (Flaw::LineStuck, UART) => (gsi, true),
            (Flaw::LineElsewhere, UART) => (ELSEWHERE, level),
            _ => (gsi, level),
        };
        self.behind.set_line(gsi, level);
    }

    fn output(&self, device: &'static str, byte: u8) {
        self.behind.output(device, byte);
    }

    fn remap_page(&self, gpa: u64) {
        self.behind.remap_page(gpa);
    }

    fn raise_sint(&self, vp: u32, sint: u8) {
        self.behind.raise_sint(vp, sint);
    }

    fn watch_sint(&self, vp: u32, sint: u8) {
        self.behind.watch_sint(vp, sint);
    }

    fn message(&self, address: u64, data: u32) {
        self.behind.message(address, data);
    }

    fn await_end(&self, pin: u32, message: Option<(u64, u32)>) {
        self.behind.await_end(pin, message);
    }

    fn deadline(&self, at: Nanos) {
        self.behind.deadline(at);
    }
}

/// A handler whose answers go wrong.
pub(super) struct WrongHandler<'a, H> {
    saboteur: &'a Saboteur,
    handler: H,
}

impl<H: Handler<KvmVcpu>> Handler<KvmVcpu> for WrongHandler<'_, H> {
    fn map(&self) -> Option<&Machine> {
        self.handler.map()
    }

    fn handle(&self, cx: &mut Context, index: usize, vcpu: &mut KvmVcpu, exit: &Exit) -> Entry {
        let Some(flaw) = self.saboteur.flaw else {
            return self.handler.handle(cx, index, vcpu, exit);
        };
        let count = self.saboteur.exits.fetch_add(1, Ordering::Relaxed);
        let mut exit = *exit;
        match (flaw, &mut exit) {
            (
                Flaw::WriteHalf,
                Exit::Io(Access { space: Space::Port, size, dir: Dir::Write(value), .. }),
            ) if *size == Size::B4 => {
                *size = Size::B2;
                *value &= 0xffff;
            }
            (Flaw::WriteLost, Exit::Io(Access { addr: LATCH, dir: Dir::Write(_), .. }))
                if count.is_multiple_of(5) =>
            {
                return Entry::Resume;
            }
            (
                Flaw::MmioLost,
                Exit::Io(Access { space: Space::Mmio, size: Size::B1, dir: Dir::Write(_), .. }),
            ) => return Entry::Resume,
            (Flaw::MsrWriteLost, Exit::Wrmsr { .. }) => return Entry::Resume,
            (Flaw::MsrReadZero, Exit::Rdmsr { .. }) => return Entry::Read(0),
            (Flaw::TripleIsReset, Exit::Shutdown) => return Entry::Stop(Stop::Reset),
            _ => {}
        }
        let entry = self.handler.handle(cx, index, vcpu, &exit);
        let Some(lab) = self.saboteur.lab.get() else { return entry };
        if flaw == Flaw::ClockBack && count % 16 == 15 {
            lab.clock_back(vcpu, BACK);
        }
        let entry = match entry {
            Entry::Read(value) if flaw == Flaw::NestedIoWrong => {
                Entry::Read(value ^ u64::from(lab.is_nested(vcpu)))
            }
            Entry::Read(value) => Entry::Read(wrong_read(flaw, &exit, value)),
            entry => entry,
        };
        let (r13, flags) = match (flaw, &exit) {
            (Flaw::RegisterClobbered, Exit::Io(Access { space: Space::Mmio, dir, .. })) => {
                (*dir == Dir::Read, 0)
            }
            (Flaw::FlagClobbered, Exit::Io(Access { space: Space::Mmio, dir, .. })) => {
                (false, u64::from(*dir != Dir::Read))
            }
            _ => return entry,
        };
        if !r13 && flags == 0 || matches!(entry, Entry::Stop(_)) {
            return entry;
        }
        match lab.clobber(vcpu, entry, r13, flags) {
            Exit::Interrupted => Entry::Resume,
            next => self.handle(cx, index, vcpu, &next),
        }
    }
}

/// What a guest reads where `value` would be right.
fn wrong_read(flaw: Flaw, exit: &Exit, value: u64) -> u64 {
    let Exit::Io(Access { space, addr, size, .. }) = *exit else { return value };
    match (flaw, space, size, addr) {
        (Flaw::ReadBit, Space::Port, Size::B2, _) => value & 0x7fff,
        (Flaw::MmioSwapped, Space::Mmio, Size::B4, _) => u64::from((value as u32).swap_bytes()),
        (Flaw::NothingIsZero, ..) if value & size.mask() == size.mask() => 0,
        (Flaw::PmTimerFast, Space::Port, _, PM_TIMER) => value << 1 & size.mask(),
        (Flaw::RtcOdd, Space::Port, _, RTC_DATA) => value & !1,
        _ => value,
    }
}
