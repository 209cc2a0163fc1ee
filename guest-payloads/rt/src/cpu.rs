//! What each CPU owns: its block of memory with stacks, TSS, GDT and bookkeeping.
//!
//! A block is [`BLOCK_SIZE`] bytes and aligned to its size, and every stack a CPU runs kernel
//! code on lies inside it. So the stack pointer alone says which CPU this is, in any handler, on
//! any IST stack, whatever a test did to the GS base or to the local APIC.

use crate::reg;
use core::arch::asm;
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bytes of a CPU's block, and its alignment.
pub const BLOCK_SIZE: usize = 0x1_0000;
/// Bottom of the main stack within the block; the top is the block's end.
const STACK_BOTTOM: usize = 0x8000;
/// The IST stacks lie between the CPU's data and its main stack.
const IST_SIZE: usize = 0x1800;
const IST_BOTTOM: usize = 0x2000;
/// IST stacks a CPU has: 1 for #DF, 2 for NMI, 3 for #MC, 4 for a test's own use.
pub const IST_STACKS: usize = 4;
const CANARY: u64 = 0x5afe_57ac_4b07_70b1;

/// Selector of the 64-bit code segment at CPL 0.
pub const KERNEL_CS: u16 = 0x08;
/// Selector of the data segment at CPL 0.
pub const KERNEL_DS: u16 = 0x10;
/// Selector of the 32-bit code segment at CPL 3.
pub const USER_CS32: u16 = 0x18 | 3;
/// Selector of the data segment at CPL 3.
pub const USER_DS: u16 = 0x20 | 3;
/// Selector of the 64-bit code segment at CPL 3.
pub const USER_CS: u16 = 0x28 | 3;
/// Selector of the 32-bit code segment at CPL 0.
pub const KERNEL_CS32: u16 = 0x30;
/// Selector of the TSS.
pub const TSS_SELECTOR: u16 = 0x38;
/// Selector of the first of [`GDT_FREE_SLOTS`] descriptors a test may fill.
pub const FREE_SELECTOR: u16 = 0x48;
/// Descriptors a test may fill.
pub const GDT_FREE_SLOTS: usize = 4;

pub(crate) const GDT_CODE64: u64 = 0x00af_9b00_0000_ffff;
pub(crate) const GDT_DATA: u64 = 0x00cf_9300_0000_ffff;
pub(crate) const GDT_CODE32: u64 = 0x00cf_9b00_0000_ffff;
/// DPL 3, in a segment descriptor.
const DPL3: u64 = 3 << 45;

/// The 64-bit task state segment (Intel SDM volume 3, 9.7), in 32-bit words because its 64-bit
/// fields are not aligned.
#[repr(C)]
pub(crate) struct Tss {
    words: [AtomicU32; TSS_WORDS],
    /// I/O permission map for ports below [`IO_MAP_PORTS`], and the word of ones that ends it.
    io_map: [AtomicU32; IO_MAP_PORTS / 32 + 1],
}

const TSS_WORDS: usize = 26;
/// Ports that the TSS's I/O permission map has a bit for; see [`open_ports`].
pub const IO_MAP_PORTS: usize = 0x800;

impl Tss {
    fn set64(&self, word: usize, value: u64) {
        self.words[word].store(value as u32, Relaxed);
        self.words[word + 1].store((value >> 32) as u32, Relaxed);
    }
    /// RSP0: the stack for traps from CPL 3.
    pub(crate) fn set_rsp0(&self, value: u64) {
        self.set64(1, value);
    }
    fn set_ist(&self, index: usize, value: u64) {
        self.set64(9 + 2 * (index - 1), value);
    }
    /// Where RSP0 lies; the entry to CPL 3 writes it.
    pub(crate) fn rsp0_ptr(&self) -> *mut u64 {
        self.words[1].as_ptr().cast()
    }
}

/// A trap that was recovered from, until its reader takes it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Caught {
    pub(crate) valid: u64,
    pub(crate) vector: u64,
    pub(crate) error_code: u64,
    pub(crate) rip: u64,
    pub(crate) cr2: u64,
    pub(crate) rflags: u64,
}

/// Bookkeeping of one CPU, at the start of its block. All zeroes is its initial state.
#[repr(C)]
pub(crate) struct Cpu {
    /// Stack pointer to come back to from CPL 3; 0 if no excursion is under way.
    pub(crate) user_rsp: AtomicU64,
    /// The user's stack pointer while `syscall` switches stacks.
    pub(crate) scratch: AtomicU64,
    /// Address of the innermost `trap::catch` record; 0 if there is none.
    pub(crate) catch: AtomicUsize,
    pub(crate) index: AtomicU32,
    /// The local APIC's identifier as the CPU read it when it came up.
    pub(crate) apic_id: AtomicU32,
    caught: UnsafeCell<Caught>,
    pub(crate) user: UnsafeCell<crate::trap::Frame>,
    /// Traps and interrupts seen by vector; the last entry counts `syscall`.
    pub(crate) hits: [AtomicU32; 257],
    pub(crate) mailbox: crate::smp::Mailbox,
    pub(crate) gdt: [AtomicU64; 9 + GDT_FREE_SLOTS],
    pub(crate) tss: Tss,
}

const _: () = assert!(size_of::<Cpu>() <= IST_BOTTOM);
const _: () = assert!(IST_BOTTOM + IST_STACKS * IST_SIZE <= STACK_BOTTOM);

pub(crate) const OFFSET_USER_RSP: usize = offset_of!(Cpu, user_rsp);
pub(crate) const OFFSET_SCRATCH: usize = offset_of!(Cpu, scratch);

// SAFETY: everything but `caught` and `user` is atomic; those two are only touched by the CPU
// that owns the block, through `caught`, `set_caught` and `rt::user`, which copy values in and
// out and hand out no reference.
unsafe impl Sync for Cpu {}

impl Cpu {
    pub(crate) fn caught(&self) -> Caught {
        // SAFETY: only the owning CPU reaches this (`this()`); a handler that runs in between
        // puts the old value back before it returns. Volatile, as that handler is unseen.
        unsafe { self.caught.get().read_volatile() }
    }
    pub(crate) fn set_caught(&self, caught: Caught) {
        // SAFETY: as in `caught`.
        unsafe { self.caught.get().write_volatile(caught) }
    }
    pub(crate) fn has_caught(&self) -> bool {
        // SAFETY: as in `caught`.
        unsafe { (&raw const (*self.caught.get()).valid).read_volatile() != 0 }
    }
    /// Forgets what was caught.
    pub(crate) fn clear_caught(&self) {
        // SAFETY: as in `caught`.
        unsafe { (&raw mut (*self.caught.get()).valid).write_volatile(0) }
    }
    /// Address and limit of the TSS.
    pub(crate) fn tss_place(&self) -> (u64, u64) {
        (self.tss.words.as_ptr() as u64, size_of::<Tss>() as u64 - 1)
    }
    /// Address and limit of the GDT.
    pub(crate) fn gdt_place(&self) -> (u64, u64) {
        (self.gdt.as_ptr() as u64, size_of_val(&self.gdt) as u64 - 1)
    }
    /// Address of the block.
    pub(crate) fn base(&self) -> usize {
        core::ptr::from_ref(self) as usize
    }
}

/// The block of the CPU this runs on.
#[inline(always)]
pub(crate) fn this() -> &'static Cpu {
    let rsp: usize;
    // SAFETY: reads a register. Kernel code only ever runs on stacks inside a CPU's block, whose
    // start is that CPU's `Cpu`, initialised by `init` before anything calls this.
    unsafe {
        asm!("mov {}, rsp", out(reg) rsp, options(nomem, nostack, preserves_flags));
        &*((rsp & !(BLOCK_SIZE - 1)) as *const Cpu)
    }
}

/// Makes the CPU that runs this ready for Rust code: block, GDT, TSS, IDT, EFER.NXE.
pub(crate) fn init(index: u32) {
    // SAFETY: this CPU's own block; its stack is in use, which `fill` leaves alone.
    let cpu = unsafe { fill(this().base(), index) };
    reg::load_tables(cpu.gdt.as_ptr() as u64, size_of_val(&cpu.gdt) as u16 - 1);
    let id = crate::cpuid::leaf(0x8000_0001, 0);
    if id.edx & 1 << 20 != 0
        && let Ok(efer) = reg::rdmsr(reg::EFER)
    {
        // Cannot fault: the bit is announced. If it does, no-execute pages will tell.
        let _ = reg::wrmsr(reg::EFER, efer | reg::EFER_NXE);
    }
}

/// Makes a block of [`BLOCK_SIZE`] bytes at `base`, aligned to its size, that of a CPU: bookkeeping,
/// GDT and TSS, which are not loaded.
///
/// # Safety
///
/// The block is memory of the caller's own, for good, and no CPU uses its data meanwhile.
pub(crate) unsafe fn fill(base: usize, index: u32) -> &'static Cpu {
    assert!(base != 0 && base.is_multiple_of(BLOCK_SIZE), "no CPU block at {base:#x}");
    // SAFETY: the caller owns the block, and all zeroes, which is written next, is a valid `Cpu`.
    let cpu = unsafe { &*(base as *const Cpu) };
    // SAFETY: the block's start is this CPU's own, no reference into its interior is alive yet,
    // and all zeroes is a valid `Cpu`; the canary lies below every live stack frame.
    unsafe {
        core::ptr::write_bytes(base as *mut u8, 0, size_of::<Cpu>());
        *((base + STACK_BOTTOM) as *mut u64) = CANARY;
    }
    cpu.index.store(index, Relaxed);
    let tss = cpu.tss.words.as_ptr() as u64;
    let descriptors = [
        0,
        GDT_CODE64,
        GDT_DATA,
        GDT_CODE32 | DPL3,
        GDT_DATA | DPL3,
        GDT_CODE64 | DPL3,
        GDT_CODE32,
        // Available 64-bit TSS (SDM volume 3, 9.2.3).
        (size_of::<Tss>() as u64 - 1)
            | (tss & 0xff_ffff) << 16
            | 0x89 << 40
            | (tss >> 24 & 0xff) << 56,
        tss >> 32,
    ];
    for (slot, value) in cpu.gdt.iter().zip(descriptors) {
        slot.store(value, Relaxed);
    }
    cpu.tss.set_rsp0((base + BLOCK_SIZE) as u64);
    for ist in 1..=IST_STACKS {
        cpu.tss.set_ist(ist, (base + IST_BOTTOM + ist * IST_SIZE) as u64);
    }
    for word in &cpu.tss.io_map {
        word.store(u32::MAX, Relaxed);
    }
    cpu.tss.words[25].store((size_of::<Tss>() as u32) << 16, Relaxed);
    cpu
}

/// Index of the CPU this runs on: 0 is the one that booted, the others follow in the order of
/// their APIC identifiers.
pub fn index() -> usize {
    this().index.load(Relaxed) as usize
}

/// Whether the main stack of this CPU has grown out of its place.
pub(crate) fn stack_overflowed() -> bool {
    let bottom = (this().base() + STACK_BOTTOM) as *const u64;
    // SAFETY: a word of this CPU's block, written by `init`.
    unsafe { bottom.read_volatile() != CANARY }
}

/// Puts a descriptor into one of this CPU's free GDT slots (`slot` < [`GDT_FREE_SLOTS`]) and
/// returns its selector, RPL 0.
pub fn set_descriptor(slot: usize, descriptor: u64) -> u16 {
    assert!(slot < GDT_FREE_SLOTS, "GDT slot {slot} of {GDT_FREE_SLOTS}");
    this().gdt[9 + slot].store(descriptor, Relaxed);
    FREE_SELECTOR + 8 * slot as u16
}

/// Lets CPL 3 touch `ports`, each below [`IO_MAP_PORTS`], and no others, on this CPU: gives the TSS an
/// I/O permission map.
pub fn open_ports(ports: &[u16]) {
    let tss = &this().tss;
    for word in &tss.io_map {
        word.store(u32::MAX, Relaxed);
    }
    for &port in ports {
        assert!((port as usize) < IO_MAP_PORTS, "port {port:#x} has no bit in the map");
        tss.io_map[port as usize / 32].fetch_and(!(1 << (port % 32)), Relaxed);
    }
    tss.words[25].store((offset_of!(Tss, io_map) as u32) << 16, Relaxed);
}

/// Takes the I/O permission map away: its offset is beyond the TSS's limit, as at the start.
pub fn close_ports() {
    this().tss.words[25].store((size_of::<Tss>() as u32) << 16, Relaxed);
}

/// Address of this CPU's TSS.
pub fn tss_address() -> u64 {
    this().tss.words.as_ptr() as u64
}

/// The range of this CPU's main stack: bottom (included) to top (excluded).
pub fn stack_range() -> core::ops::Range<u64> {
    let base = this().base();
    (base + STACK_BOTTOM) as u64..(base + BLOCK_SIZE) as u64
}

/// The range of this CPU's IST stack `ist`, 1 to [`IST_STACKS`].
pub fn ist_range(ist: usize) -> core::ops::Range<u64> {
    assert!((1..=IST_STACKS).contains(&ist), "IST {ist} of {IST_STACKS}");
    let bottom = (this().base() + IST_BOTTOM + (ist - 1) * IST_SIZE) as u64;
    bottom..bottom + IST_SIZE as u64
}
