//! ACPI's S3: the vCPUs and the devices lose their state, memory stays, and an event of the board
//! starts the first vCPU at the waking vector (ACPI 6.5, sections 7.4.2.2 and 16.1).
//!
//! The real-time clock's alarm is the event there is, if the guest enabled it. A guest that none can
//! wake has ended.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{LaunchError, Options, Prepared, Supported, assemble};
use crate::access::{Access, Dir, Size, Space};
use crate::boot;
use crate::chips::{acpi_pm, rtc};
use crate::exit::{Entry, Exit, Stop};
use crate::host::clock::HostClock;
use crate::host::events::{EndSignals, Event, wait};
use crate::hv::kvm::Host;
use crate::machine::{Context, Machine, acpi};

/// The sleep state that a guest comes back from.
pub(super) const STATE: u8 = 3;

/// The device of the PM registers.
const PM: &str = "acpi-pm";

/// What became of a sleep.
pub(super) enum Sleep {
    /// An event woke the machine.
    Woken,
    /// None can.
    ForEver,
    /// The user or the guest's time ended it.
    Ended(Stop),
}

/// Waits until an event wakes the machine, the user ends it, or it is `end`.
///
/// # Errors
/// When the host cannot wait.
pub(super) fn until_woken(
    machine: &Machine,
    signals: &EndSignals,
    end: Option<Instant>,
) -> std::io::Result<Sleep> {
    let mut cx = Context::new();
    let enables =
        Access { space: Space::Port, addr: acpi_pm::PM_BASE + 2, size: Size::B2, dir: Dir::Read };
    let enabled = match machine.handle(&mut cx, &Exit::Io(enables)) {
        Entry::Read(bits) => bits & u64::from(acpi_pm::event::RTC) != 0,
        _ => false,
    };
    loop {
        if enabled && machine.line(rtc::GSI) {
            return Ok(Sleep::Woken);
        }
        // The PM timer does not wake: its status is none of S3's.
        let alarm = machine.next_deadline().filter(|_| enabled);
        let Some(alarm) = alarm else { return Ok(Sleep::ForEver) };
        if end.is_some_and(|end| end <= Instant::now()) {
            return Ok(Sleep::Ended(Stop::Timeout));
        }
        let alarm = Duration::from_nanos(alarm.saturating_sub(machine.now()));
        let end = end.map(|end| end.saturating_duration_since(Instant::now()));
        let sleep = end.map_or(alarm, |end| end.min(alarm));
        let [interrupted] = wait([Some(Event::Readable(signals.as_raw_fd()))], Some(sleep))?;
        if interrupted {
            return Ok(Sleep::Ended(Stop::Interrupted));
        }
        if let Some(stop) = machine.advance(&mut cx) {
            return Ok(Sleep::Ended(stop));
        }
    }
}

/// The machine as it wakes: new vCPUs, devices after a reset, and the memory there was.
///
/// # Errors
/// When there is no such VM to be had; never for what the guest wrote.
pub(super) fn resume(options: &mut Options, before: &Machine) -> Result<Prepared, LaunchError> {
    let ram = before.ram().clone();
    // The tables lie in RAM, whatever the guest made of them.
    let vector = ram.read_u32(acpi::WAKING_VECTOR_AT).unwrap_or(0);
    // What it wrote to a file stays there.
    options.again = true;
    let state = before.save();
    let host = Host::open(&options.kvm)?;
    let clock = std::sync::Arc::new(HostClock::start_at(state.now));
    let prepared = assemble(options, host, Supported::later(), ram, clock, &boot::waking(vector))?;
    let (machine, mut cx) = (&prepared.machine, Context::new());
    machine.restore(&mut cx, &state).map_err(LaunchError::Resume)?;
    machine.reset(&mut cx);
    machine.input(&mut cx, PM, &[acpi_pm::WAKE, acpi_pm::RTC_ALARM]);
    Ok(prepared)
}
