//! The time-stamp counter, how fast it is, and waiting within bounds.

use crate::{boot, cpuid, port, reg};
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Reads the time-stamp counter.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: at CPL 0 this cannot fault.
    unsafe { _rdtsc() }
}

/// Reads the time-stamp counter after all earlier instructions are done.
#[inline]
pub fn rdtsc_ordered() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: as above; not `nomem`, so that memory accesses keep their side of it.
    unsafe {
        core::arch::asm!("lfence", "rdtsc", out("eax") low, out("edx") high,
            options(nostack, preserves_flags));
    }
    u64::from(low) | u64::from(high) << 32
}

/// Taken where a rate is only needed for a timeout and nobody tells.
const GUESS_HZ: u64 = 3_000_000_000;

static HZ: AtomicU64 = AtomicU64::new(0);
static ROUGH_HZ: AtomicU64 = AtomicU64::new(0);

/// TSC ticks a second: from CPUID leaf 0x15, else from kvmclock, else measured against the PM
/// timer (if the command line has its port, `pmtimer=0x608`), else against the PIT's channel 2.
/// Measuring takes 10 ms, once, or a few times that on a busy host.
pub fn tsc_hz() -> u64 {
    let known = HZ.load(Relaxed);
    if known != 0 {
        return known;
    }
    let hz = announced_hz().or_else(pm_timer_hz).or_else(pit_hz);
    let Some(hz) = hz else {
        panic!("no way to tell the TSC's rate: no CPUID leaf 0x15, kvmclock, PM timer or PIT");
    };
    HZ.store(hz, Relaxed);
    hz
}

/// TSC ticks a second, good enough for a timeout and never measured.
fn rough_hz() -> u64 {
    let known = ROUGH_HZ.load(Relaxed);
    if known != 0 {
        return known;
    }
    let hz = announced_hz().unwrap_or(GUESS_HZ);
    ROUGH_HZ.store(hz, Relaxed);
    hz
}

fn announced_hz() -> Option<u64> {
    crystal_hz().or_else(kvmclock_hz).filter(|&hz| hz > 1_000_000)
}

/// CPUID leaf 0x15: ratio of the TSC to a crystal, and the crystal's rate.
fn crystal_hz() -> Option<u64> {
    let words = cpuid::get(0x15, 0)?;
    if words.eax == 0 || words.ebx == 0 || words.ecx == 0 {
        return None;
    }
    Some(u64::from(words.ecx) * u64::from(words.ebx) / u64::from(words.eax))
}

/// The scale that kvmclock gives for this CPU (KVM's documentation, x86/msr.rst,
/// MSR_KVM_SYSTEM_TIME_NEW): ns = (ticks << shift) * mul >> 32.
fn kvmclock_hz() -> Option<u64> {
    const SYSTEM_TIME: u32 = 0x4b56_4d01;
    // KVM's leaves are the first ones, or those behind Hyper-V's.
    let bases = [0x4000_0000, 0x4000_0100];
    let base = bases.into_iter().find(|&base| &cpuid::signature(base) == b"KVMKVMKVM\0\0\0")?;
    // Bit 3: the clock by the MSR above.
    if cpuid::leaf(base + 1, 0).eax & 1 << 3 == 0 {
        return None;
    }
    #[repr(C, align(64))]
    struct Page([AtomicU64; 4]);
    static PAGE: Page = Page([const { AtomicU64::new(0) }; 4]);
    let old = reg::rdmsr(SYSTEM_TIME).ok()?;
    reg::wrmsr(SYSTEM_TIME, &raw const PAGE as u64 | 1).ok()?;
    // KVM fills the page before the guest goes on.
    let scale = PAGE.0[3].load(Relaxed);
    reg::wrmsr(SYSTEM_TIME, old).ok()?;
    let (mul, shift) = (scale as u32, (scale >> 32) as i8);
    hz_of_scale(mul, shift)
}

fn hz_of_scale(mul: u32, shift: i8) -> Option<u64> {
    if mul == 0 || !(-31..32).contains(&shift) {
        return None;
    }
    let hz = (1_000_000_000_u64 << 32) / u64::from(mul);
    Some(if shift >= 0 { hz >> shift } else { hz << -shift })
}

/// TSC ticks that a stretch of another clock took: no fewer than `least`, no more than `most`. They
/// are apart by what the reads themselves took, and by whatever the host did meanwhile.
struct Stretch {
    least: u64,
    most: u64,
    /// Ticks of the other clock.
    passed: u64,
}

impl Stretch {
    fn gap(&self) -> u64 {
        self.most - self.least
    }

    /// TSC ticks a second, by a clock of `hz`.
    fn rate(&self, hz: u64) -> u64 {
        (self.least + self.gap() / 2) * hz / self.passed
    }
}

/// The rate by the tightest of a few stretches; the first one that is tight to 1 in 2000 will do.
fn tightest(hz: u64, mut measure: impl FnMut() -> Option<Stretch>) -> Option<u64> {
    let mut best = measure()?;
    for _ in 0..20 {
        if best.gap() < best.least / 2000 {
            break;
        }
        let next = measure()?;
        if next.gap() < best.gap() {
            best = next;
        }
    }
    Some(best.rate(hz))
}

/// By the ACPI PM timer, 3.579545 MHz, of which 24 bits are used.
fn pm_timer_hz() -> Option<u64> {
    let port = boot::number("pmtimer")? as u16;
    let read = || {
        let before = rdtsc();
        let value = port::in32(port);
        (before, value, rdtsc())
    };
    tightest(3_579_545, || {
        let start = read();
        loop {
            let end = read();
            let passed = u64::from(end.1.wrapping_sub(start.1) & 0xff_ffff);
            if passed >= 35_795 {
                let (least, most) = (end.0 - start.2, end.2 - start.0);
                return Some(Stretch { least, most, passed });
            }
            if passed == 0 && end.2 - start.0 > GUESS_HZ / 10 {
                return None;
            }
        }
    })
}

/// By the PIT's channel 2, whose gate and output are at port 0x61.
fn pit_hz() -> Option<u64> {
    const COUNT: u16 = 11_932;
    tightest(1_193_182, || {
        let gate = port::in8(0x61) & !3;
        port::out8(0x61, gate);
        port::out8(0x43, 0b1011_0000); // channel 2, both bytes, mode 0
        port::out8(0x42, COUNT as u8);
        // The gate starts it; KVM's PIT begins to count when the count is there.
        let before = rdtsc();
        port::out8(0x42, (COUNT >> 8) as u8);
        port::out8(0x61, gate | 1);
        let start = rdtsc();
        let mut low = start;
        loop {
            let done = port::in8(0x61) & 0x20 != 0;
            let now = rdtsc();
            if done {
                port::out8(0x61, gate);
                let (least, most) = (low - start, now - before);
                // An output that is high at once is that of no timer.
                return (most > 100_000).then_some(Stretch { least, most, passed: COUNT.into() });
            }
            low = now;
            if now - start > GUESS_HZ {
                return None;
            }
        }
    })
}

/// Waits until `done` or until about `microseconds` are over; whether it was done. With
/// interrupts as they are.
pub fn wait_until(microseconds: u64, mut done: impl FnMut() -> bool) -> bool {
    let end = rdtsc().saturating_add(ticks(microseconds, rough_hz()));
    loop {
        if done() {
            return true;
        }
        if rdtsc() >= end {
            return done();
        }
        reg::pause();
    }
}

/// Lets about `microseconds` go by.
pub fn delay(microseconds: u64) {
    wait_until(microseconds, || false);
}

/// Lets about `microseconds` go by as [`delay`] does, but halted for the most part: the local APIC's
/// timer wakes this CPU each millisecond. For waits so long that other guests want the processor.
/// Uses the timer and vector 0xef; leaves the timer stopped, and interrupts off.
pub fn sleep(microseconds: u64) {
    use crate::apic::{self, Timer};
    const VECTOR: u8 = 0xef;
    crate::irq::count_only(VECTOR);
    let apic = apic::local();
    apic.enable();
    apic.set_timer(Timer::OneShot, VECTOR);
    let end = rdtsc().saturating_add(ticks(microseconds, rough_hz()));
    while rdtsc() < end {
        // About a millisecond on what KVM emulates, 1 GHz; the TSC decides when it is over.
        apic.start_timer(1_000_000);
        reg::wait_for_interrupt();
    }
    apic.start_timer(0);
}

fn ticks(microseconds: u64, hz: u64) -> u64 {
    (u128::from(microseconds) * u128::from(hz) / 1_000_000).try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_stretch_gives_the_rate() {
        // A clock of 1 kHz against a TSC of 1 MHz; the host takes time out of most stretches.
        let delays = [400, 300, 2, 500];
        let mut measured = delays.into_iter().map(|delay| Stretch {
            least: 99_999,
            most: 99_999 + delay,
            passed: 100,
        });
        assert_eq!(tightest(1000, || measured.next()), Some(1_000_000));
        assert_eq!(measured.count(), 1);
        assert_eq!(tightest(1000, || None), None);
    }

    #[test]
    fn a_kvmclock_scale_gives_the_rate() {
        // 2 GHz: half a nanosecond a tick is mul = 2^31 with no shift, or 2^32 - ish shifted.
        assert_eq!(hz_of_scale(1 << 31, 0), Some(2_000_000_000));
        assert_eq!(hz_of_scale(1 << 31, -1), Some(4_000_000_000));
        assert_eq!(hz_of_scale(1 << 31, 1), Some(1_000_000_000));
        assert_eq!(hz_of_scale(0, 0), None);
        assert_eq!(hz_of_scale(1, -100), None);
    }

    #[test]
    fn ticks_do_not_overflow() {
        assert_eq!(ticks(1_000_000, 3), 3);
        assert_eq!(ticks(u64::MAX, u64::MAX), u64::MAX);
    }
}
