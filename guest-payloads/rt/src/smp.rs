//! The other CPUs: starting them, and giving them work.
//!
//! A CPU without work waits with interrupts on: in a loop for a moment, then halted, from which
//! an IPI on [`WAKE`] brings it back when there is work. Work runs with interrupts off, as a test
//! does. Indices are in the order of APIC identifiers; 0 is the CPU that booted.

use crate::apic::{self, Delivery, Destination, Mode};
use crate::cpu::{self, BLOCK_SIZE, Cpu};
use crate::{boot, frames, irq, reg, time};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The vector that wakes a halted CPU for work.
pub const WAKE: u8 = 0xf0;
/// CPUs there can be.
pub const MAX_CPUS: usize = 255;
/// CPUs looked for if the command line does not say (`cpus=N`).
const MAX_UNANNOUNCED: usize = 64;
/// Where the real-mode trampoline goes: a page below 1 MiB that no loader's tables are needed in
/// any more by the time it is written.
const TRAMPOLINE: u64 = 0x8000;
/// How long CPUs have to come up, and to finish a piece of work, in microseconds.
const PATIENCE: u64 = 10_000_000;

const IDLE: u32 = 0;
const POSTED: u32 = 1;

type Thunk = fn(u64) -> u64;

/// How a CPU is given work.
#[repr(C)]
pub(crate) struct Mailbox {
    state: AtomicU32,
    halted: AtomicU32,
    thunk: AtomicU64,
    argument: AtomicU64,
    result: AtomicU64,
}

unsafe extern "C" {
    static rt_boot_block: Cpu;
    static rt_trampoline: u8;
    static rt_trampoline_end: u8;
    static rt_ap_limit: AtomicU32;
    static rt_ap_blocks: AtomicU32;
}

static STARTED: AtomicU32 = AtomicU32::new(0);
static ONLINE: AtomicU32 = AtomicU32::new(0);
/// For each index above 0, less one: as how manyeth the CPU arrived.
static ORDER: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];

/// The block of the CPU that arrived as number `arrival` at the trampoline.
fn arrival_block(arrival: u32) -> &'static Cpu {
    // SAFETY: the address was reserved by `start`, and the CPU initialised its block before it
    // counted itself online.
    unsafe {
        let base = rt_ap_blocks.load(Ordering::Relaxed) as usize;
        &*((base + arrival as usize * BLOCK_SIZE) as *const Cpu)
    }
}

/// The block of CPU `index`.
pub(crate) fn block(index: usize) -> &'static Cpu {
    assert!(index < count(), "CPU {index} of {}", count());
    match index.checked_sub(1) {
        // SAFETY: initialised at boot, lives for ever.
        None => unsafe { &rt_boot_block },
        Some(i) => arrival_block(ORDER[i].load(Ordering::Relaxed)),
    }
}

/// The last identifier of a local APIC that an xAPIC can name: 255 is everybody.
const LAST_SHORT_ID: u32 = 254;

/// CPUs that are up, this one included: 1 until [`start`].
pub fn count() -> usize {
    STARTED.load(Ordering::Acquire).max(1) as usize
}

/// The local APIC's identifier of CPU `index`.
pub fn apic_id(index: usize) -> u32 {
    // Before `start` nobody has noted the identifier of the CPU that booted.
    if index == cpu::index() {
        return apic::local().id();
    }
    block(index).apic_id.load(Ordering::Relaxed)
}

/// Starts all other CPUs by a broadcast INIT and start-up IPI, and says how many CPUs there are.
/// If there is one with an identifier above 254, this CPU's APIC becomes an x2APIC.
/// With `cpus=N` on the command line it waits for N and ends the test with an error if they do
/// not come; without, it waits until none has come for a tenth of a second. Once is enough.
pub fn start() -> usize {
    if STARTED.load(Ordering::Acquire) != 0 {
        return count();
    }
    let expected = boot::number("cpus").map(|n| n as usize);
    if let Some(n) = expected
        && !(1..=MAX_CPUS).contains(&n)
    {
        panic!("cpus={n} on the command line: it takes 1 to {MAX_CPUS}");
    }
    let room = expected.unwrap_or(MAX_UNANNOUNCED) as u64 - 1;
    let room = (1..=room)
        .rev()
        .find_map(|n| {
            let pages = n * (BLOCK_SIZE as u64 / frames::PAGE);
            // Stay clear of memory's end: tests want pages too.
            let enough = frames::left() > pages * frames::PAGE + (1 << 20);
            let base = enough.then(|| frames::try_alloc_range(pages, BLOCK_SIZE as u64))??;
            Some((n, base))
        })
        .unwrap_or((0, 0));
    irq::count_only(WAKE);
    // SAFETY: the statics of the trampoline; no other CPU runs yet. The page at TRAMPOLINE is
    // ordinary RAM and what the loader had there was copied at boot.
    unsafe {
        rt_ap_limit.store(room.0 as u32, Ordering::Relaxed);
        rt_ap_blocks.store(room.1 as u32, Ordering::Relaxed);
        let from = &raw const rt_trampoline;
        let len = &raw const rt_trampoline_end as usize - from as usize;
        core::ptr::copy_nonoverlapping(from, TRAMPOLINE as *mut u8, len);
    }
    let apic = apic::local();
    if apic.mode() == Mode::Disabled {
        panic!("the local APIC is off, so no other CPU can be started");
    }
    apic.enable();
    cpu::this().apic_id.store(apic.id(), Ordering::Relaxed);
    let start_up = Delivery::StartUp((TRAMPOLINE / frames::PAGE) as u8);
    apic.send(Delivery::Init, Destination::Others);
    time::delay(200);
    apic.send(start_up, Destination::Others);
    let online = || ONLINE.load(Ordering::Acquire);
    match expected {
        Some(n) => {
            let all = || online() as usize >= n - 1;
            // The manual wants a second start-up IPI (SDM volume 3, 10.4.4.1); it is only needed
            // when the first was lost.
            if !time::wait_until(PATIENCE / 20, all) {
                apic.send(start_up, Destination::Others);
                if !time::wait_until(PATIENCE, all) {
                    panic!("{} of {n} CPUs came up", online() + 1);
                }
            }
        }
        None => {
            let mut seen = u32::MAX;
            while seen != online() {
                seen = online();
                time::wait_until(100_000, || online() != seen);
            }
        }
    }
    let others = online();
    order(others);
    if (0..others).any(|cpu| arrival_block(cpu).apic_id.load(Ordering::Relaxed) > LAST_SHORT_ID) {
        // As xAPIC it could not reach that one.
        apic::set_mode(Mode::X2Apic).enable();
    }
    STARTED.store(others + 1, Ordering::Release);
    count()
}

/// Gives the CPUs that arrived their indices, by APIC identifier.
fn order(others: u32) {
    let id = |arrival| arrival_block(arrival).apic_id.load(Ordering::Relaxed);
    for arrival in 0..others {
        let before = (0..others).filter(|&other| id(other) < id(arrival)).count();
        ORDER[before].store(arrival, Ordering::Relaxed);
        arrival_block(arrival).index.store(before as u32 + 1, Ordering::Relaxed);
    }
}

/// Where another CPU gets to Rust, on its own stack.
pub(crate) extern "C" fn ap_start(arrival: u32) -> ! {
    cpu::init(arrival + 1);
    // With an identifier that eight bits do not hold, it is of no use as xAPIC (SDM volume 3, 12.12.1).
    let apic = match apic::initial_id() {
        id if id > LAST_SHORT_ID => apic::set_mode(Mode::X2Apic),
        _ => apic::local(),
    };
    apic.enable();
    let cpu = cpu::this();
    cpu.apic_id.store(apic.id(), Ordering::Relaxed);
    ONLINE.fetch_add(1, Ordering::AcqRel);
    let mailbox = &cpu.mailbox;
    loop {
        reg::sti();
        for _ in 0..2000 {
            if mailbox.state.load(Ordering::Acquire) == POSTED {
                break;
            }
            reg::pause();
        }
        reg::cli();
        // Either the poster sees `halted`, or this sees what was posted.
        mailbox.halted.store(1, Ordering::SeqCst);
        if mailbox.state.load(Ordering::SeqCst) != POSTED {
            reg::wait_for_interrupt();
        }
        mailbox.halted.store(0, Ordering::SeqCst);
        if mailbox.state.load(Ordering::Acquire) == POSTED {
            // SAFETY: `post` stores a `Thunk` before it sets POSTED.
            let thunk = unsafe {
                core::mem::transmute::<usize, Thunk>(mailbox.thunk.load(Ordering::Relaxed) as usize)
            };
            let result = thunk(mailbox.argument.load(Ordering::Relaxed));
            reg::cli();
            if cpu::stack_overflowed() {
                panic!("the stack of cpu {} overflowed", cpu::index());
            }
            mailbox.result.store(result, Ordering::Relaxed);
            mailbox.state.store(IDLE, Ordering::Release);
        }
    }
}

fn post(index: usize, thunk: Thunk, argument: u64) {
    assert!(index != 0 && index != cpu::index(), "CPU {index} cannot be given work from here");
    let mailbox = &block(index).mailbox;
    wait(index);
    mailbox.thunk.store(thunk as usize as u64, Ordering::Relaxed);
    mailbox.argument.store(argument, Ordering::Relaxed);
    mailbox.state.store(POSTED, Ordering::SeqCst);
    if mailbox.halted.load(Ordering::SeqCst) != 0 {
        let id = block(index).apic_id.load(Ordering::Relaxed);
        apic::local().send(Delivery::Fixed(WAKE), Destination::Physical(id));
    }
}

/// Waits until CPU `index` is without work; what its last piece gave.
fn wait(index: usize) -> u64 {
    let mailbox = &block(index).mailbox;
    if !time::wait_until(PATIENCE, || mailbox.state.load(Ordering::Acquire) == IDLE) {
        panic!("cpu {index} did not finish its work in {} s", PATIENCE / 1_000_000);
    }
    mailbox.result.load(Ordering::Relaxed)
}

/// Work under way on another CPU.
#[must_use = "wait for it, or the test may end before the work does"]
#[derive(Debug)]
pub struct Job(usize);

impl Job {
    /// Whether it is done.
    pub fn is_done(&self) -> bool {
        block(self.0).mailbox.state.load(Ordering::Acquire) == IDLE
    }

    /// Waits for it and gives its result. Ends the test with an error after ten seconds.
    pub fn wait(self) -> u64 {
        wait(self.0)
    }
}

/// Starts `work(argument)` on CPU `index` (not 0, not this one) and goes on.
pub fn spawn(index: usize, work: fn(u64) -> u64, argument: u64) -> Job {
    post(index, work, argument);
    Job(index)
}

/// Runs `work` on CPU `index` and waits for its value; on this CPU, if it is that one.
pub fn run_on<T: Send>(index: usize, work: impl FnOnce() -> T + Send) -> T {
    struct Call<F, T> {
        work: Option<F>,
        value: Option<T>,
    }
    fn thunk<T, F: FnOnce() -> T>(call: u64) -> u64 {
        // SAFETY: `call` is the `Call<F, T>` below, whose owner waits and does not touch it.
        let call = unsafe { &mut *(call as *mut Call<F, T>) };
        call.value = call.work.take().map(|work| work());
        0
    }
    fn thunk_of<T, F: FnOnce() -> T>(_: &F) -> Thunk {
        thunk::<T, F>
    }
    if index == cpu::index() {
        return work();
    }
    let thunk = thunk_of::<T, _>(&work);
    let mut call = Call { work: Some(work), value: None };
    post(index, thunk, &raw mut call as u64);
    wait(index);
    match call.value {
        Some(value) => value,
        None => panic!("cpu {index} lost its work"),
    }
}

/// Runs `work(index)` on all CPUs at the same time, this one included, and waits for all. For
/// CPU 0 to call.
pub fn on_all(work: impl Fn(usize) + Sync) {
    fn thunk<F: Fn(usize)>(work: u64) -> u64 {
        // SAFETY: the address of `work` below, which outlives the wait for all.
        let work = unsafe { &*(work as *const F) };
        work(cpu::index());
        0
    }
    fn thunk_of<F: Fn(usize)>(_: &F) -> Thunk {
        thunk::<F>
    }
    let thunk = thunk_of(&work);
    for index in 1..count() {
        post(index, thunk, &raw const work as u64);
    }
    work(cpu::index());
    for index in 1..count() {
        wait(index);
    }
}
