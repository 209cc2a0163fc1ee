//! The machine: its tables, the registers at the start, a run.

use super::table::{self, Tss, flat, segment, sure, tss32};
use super::*;
use crate::{cpu, frames, mem, paging, reg};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Legacy mode for a piece of code: descriptor tables, and the registers at the start. Tables and code lie at
/// fixed places, so a new machine takes those of the one before it.
#[derive(Debug)]
pub struct Machine {
    /// Registers at the start. At first: 32-bit protected mode at CPL 0 without paging, flat segments, EIP at
    /// [`CODE`], a stack that ends at [`STACK`] + [`TOP`], all else zero.
    pub regs: Regs,
    /// Limit of the GDT.
    pub gdt_limit: u16,
    /// Limit of the IDT, or of real mode's interrupt table.
    pub idt_limit: u16,
    /// Selector of the segment that DS, ES, FS, GS and SS are loaded from before real mode starts, of which
    /// their limits and attributes stay: `None` gives what real mode has, limit 0xffff.
    pub cached: Option<u32>,
    way: Way,
    page_table: u32,
}

/// Whether the stubs are in place.
static FILLED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn rt_legacy_run();
    fn rt_legacy_trap();
    fn rt_legacy_real();
    fn rt_legacy_real_trap();
    fn rt_legacy_real_end();
}

/// Vectors with an error code that legacy mode has (Intel SDM volume 3, table 7-1).
const fn has_error_code(vector: u32) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21)
}

impl Machine {
    /// Tables as at the start, and `code` at [`CODE`], in flat 32-bit segments.
    pub fn new(code: &[u8]) -> Machine {
        let mut m = Machine {
            regs: Regs {
                esp: STACK + TOP,
                eip: CODE,
                eflags: 2,
                es: DATA32,
                cs: CODE32,
                ss: DATA32,
                ds: DATA32,
                fs: DATA32,
                gs: DATA32,
                ldtr: LDT_SELECTOR,
                tr: TSS_SELECTOR,
                cr0: (reg::CR0_PE | reg::CR0_NE | 0x10) as u32,
                cr4: 0,
                cr3: 0,
                ..Regs::default()
            },
            gdt_limit: (GDT_ENTRIES * 8 - 1) as u16,
            idt_limit: 256 * 8 - 1,
            cached: None,
            way: Way::Same,
            page_table: 0,
        };
        m.fill_tables();
        m.code(code);
        m
    }

    /// As [`Machine::new`] in 16-bit segments: code, data and stack at [`CODE`], [`DATA`] and [`STACK`].
    pub fn new16(code: &[u8]) -> Machine {
        let mut m = Machine::new(code);
        m.regs.eip = 0;
        m.regs.cs = CODE16;
        (m.regs.ds, m.regs.es) = (DATA16, DATA16);
        (m.regs.ss, m.regs.esp) = (STACK16, TOP);
        m
    }

    /// As [`Machine::new`] at CPL 3, on the stack at [`OUTER_STACK`]; traps find [`STACK`].
    pub fn outer(code: &[u8]) -> Machine {
        let mut m = Machine::new(code);
        m.regs.cs = OUTER_CODE;
        let r = &mut m.regs;
        (r.ds, r.es, r.fs, r.gs, r.ss) =
            (OUTER_DATA, OUTER_DATA, OUTER_DATA, OUTER_DATA, OUTER_DATA);
        r.esp = OUTER_STACK + TOP;
        m.way = Way::Outward;
        m
    }

    /// Real mode: code, data and stack at [`CODE`], [`DATA`] and [`STACK`].
    pub fn real(code: &[u8]) -> Machine {
        let mut m = Machine::new(code);
        m.real_segments();
        m.regs.cr0 &= !(reg::CR0_PE as u32);
        m.idt_limit = 256 * 4 - 1;
        m.way = Way::Real;
        m
    }

    /// Virtual-8086 mode, with the same segments and IOPL 0. Traps find the stack of CPL 0 at [`STACK`], the
    /// code's own is at [`OUTER_STACK`].
    pub fn virtual_8086(code: &[u8]) -> Machine {
        let mut m = Machine::new(code);
        m.real_segments();
        m.regs.ss = OUTER_STACK >> 4;
        m.regs.eflags |= FLAG_VM;
        m.regs.cr4 = 0;
        m.way = Way::Virtual;
        m
    }

    fn real_segments(&mut self) {
        let r = &mut self.regs;
        r.eip = 0;
        r.cs = CODE >> 4;
        (r.ds, r.es, r.fs, r.gs) = (DATA >> 4, DATA >> 4, DATA >> 4, DATA >> 4);
        (r.ss, r.esp) = (STACK >> 4, TOP);
    }

    /// Puts `code` at [`CODE`].
    pub fn code(&mut self, code: &[u8]) {
        put(CODE, code);
    }

    /// Puts a descriptor into slot `slot` of those from [`FREE`] on, and gives its selector.
    pub fn set(&mut self, slot: u32, descriptor: u64) -> u32 {
        self.set_at(FREE + 8 * slot, descriptor)
    }

    /// Puts a descriptor where a selector of the GDT leads.
    pub fn set_at(&mut self, selector: u32, descriptor: u64) -> u32 {
        assert!(selector / 8 < GDT_ENTRIES, "selector {selector:#x} is beyond the GDT");
        write(GDT + (selector & !7), descriptor);
        selector
    }

    /// Puts a descriptor into a slot of the LDT, and gives its selector.
    pub fn set_local(&mut self, slot: u32, descriptor: u64) -> u32 {
        assert!(slot < LDT_ENTRIES, "slot {slot} is beyond the LDT");
        write(LDT + 8 * slot, descriptor);
        slot << 3 | 4
    }

    /// The descriptor that a selector leads to, as it is in memory.
    pub fn descriptor(&self, selector: u32) -> u64 {
        let table = if selector & 4 != 0 { LDT } else { GDT };
        sure(mem::read((table + (selector & !7)).into()))
    }

    /// Sets a gate of the IDT.
    pub fn gate(&mut self, vector: u8, gate: u64) {
        write(IDT + 8 * u32::from(vector), gate);
    }

    /// Lets a vector lead to the runtime's stub again, by an interrupt gate of this DPL.
    pub fn stub(&mut self, vector: u8, dpl: u64) {
        self.gate(vector, stub_gate(vector.into(), dpl));
    }

    /// Lets a vector of real mode lead to `segment`:`offset`.
    pub fn real_vector(&mut self, vector: u8, segment: u32, offset: u32) {
        write(IVT + 4 * u32::from(vector), segment << 16 | offset & 0xffff);
    }

    /// Switches 32-bit paging on: everything is mapped to itself, for CPL 3 too; the first 4 MiB by 4 KiB
    /// pages.
    pub fn page(&mut self) {
        let directory = frames::alloc().address();
        let table = frames::alloc().address();
        for i in 0..1024_u64 {
            sure(mem::write(directory + 4 * i, (i << 22 | 0x87) as u32));
            sure(mem::write(table + 4 * i, (i << 12 | 7) as u32));
        }
        sure(mem::write(directory, table as u32 | 7));
        self.page_table = table as u32;
        self.regs.cr3 = directory as u32;
        self.regs.cr4 |= reg::CR4_PSE as u32;
        self.regs.cr0 |= (reg::CR0_PG | reg::CR0_WP) as u32;
    }

    /// Another page directory that maps the same by the same tables, as a CR3 of its own.
    pub fn second_directory(&self) -> u32 {
        let copy = frames::alloc().address();
        for i in 0..1024_u64 {
            let entry: u32 = sure(mem::read(u64::from(self.regs.cr3) + 4 * i));
            sure(mem::write(copy + 4 * i, entry));
        }
        copy as u32
    }

    /// Takes flags of a page-table entry away (1 is P, 2 is W, 4 is U) for the page at `linear`, below 4 MiB.
    pub fn forbid(&mut self, linear: u32, flags: u32) {
        assert!(self.page_table != 0 && linear < 1 << 22, "no 4 KiB page at {linear:#x}");
        let at = u64::from(self.page_table + 4 * (linear >> 12));
        let entry: u32 = sure(mem::read(at));
        sure(mem::write(at, entry & !flags));
    }

    fn fill_tables(&mut self) {
        let empty = [0; (LDT + 8 * LDT_ENTRIES - GDT) as usize];
        put(GDT, &empty);
        for (selector, descriptor) in [
            (0x08, cpu::GDT_CODE64),
            (DATA32, cpu::GDT_DATA),
            (OUTER_CODE, flat(table::READABLE | table::DPL3)),
            (OUTER_DATA, flat(table::WRITABLE | table::DPL3)),
            (CODE32, flat(table::READABLE)),
            (TSS_SELECTOR, segment(TSS, 103, table::TSS32)),
            (LDT_SELECTOR, segment(LDT, LDT_ENTRIES * 8 - 1, table::AN_LDT)),
            (TSS2_SELECTOR, segment(TSS2, 103, table::TSS32)),
            (REAL_CODE, segment(REAL, 0xffff, table::READABLE)),
            (REAL_DATA, segment(LOW, 0xffff, table::WRITABLE)),
            (CODE16, segment(CODE, 0xffff, table::READABLE)),
            (DATA16, segment(DATA, 0xffff, table::WRITABLE)),
            (STACK16, segment(STACK, 0xffff, table::WRITABLE)),
        ] {
            self.set_at(selector, descriptor);
        }
        for tss in [Tss::FIRST, Tss::SECOND] {
            tss.fill(104, 0);
            tss.set(tss32::ESP0, STACK + TOP);
            tss.set(tss32::SS0, DATA32);
            tss.set16(tss32::MAP, 104);
        }
        if !FILLED.swap(true, Relaxed) {
            fill_stubs();
            // So that no stack is touched for the first time by the delivery of an event: TCG tells KVM
            // of the wrong event then.
            for stack in [STACK, OUTER_STACK, OTHER] {
                for page in (stack..stack + 0x1_0000).step_by(0x1000) {
                    write(page, 0_u32);
                }
            }
        }
        // All at once: a test makes many machines, and some hosts interpret this.
        let mut idt = [0_u64; 256];
        let mut ivt = [0_u32; 256];
        for vector in 0..256 {
            idt[vector as usize] = stub_gate(vector, 0);
            ivt[vector as usize] =
                (REAL >> 4) << 16 | (REAL_STUBS - REAL + REAL_STUB_SIZE * vector);
        }
        // SAFETY: low RAM that is identity-mapped, aligned, and the machine's own.
        unsafe {
            (IDT as *mut [u64; 256]).write_volatile(idt);
            (IVT as *mut [u32; 256]).write_volatile(ivt);
        }
    }

    /// Runs the code until a trap or an interrupt leads to a stub of the runtime.
    pub fn run(&mut self) -> Outcome {
        assert!(
            reg::cr4() & (reg::CR4_PCIDE | reg::CR4_LA57) == 0,
            "legacy mode needs CR4.PCIDE and LA57 off before"
        );
        assert!(
            paging::translate(LOW.into()) == Some(LOW.into()),
            "low memory is mapped elsewhere"
        );
        let real = self.way == Way::Real;
        if self.regs.tr != 0 {
            // A run before this one left it busy.
            let tss = self.descriptor(self.regs.tr);
            self.set_at(self.regs.tr, tss & !(table::BUSY << 40));
        }
        let state = State {
            regs: self.regs,
            way: self.way as u32,
            cached: self.cached.unwrap_or(REAL_DATA),
            gdt_limit: self.gdt_limit,
            gdt_base: GDT,
            idt_limit: self.idt_limit,
            idt_base: if real { IVT } else { IDT },
            ..State::default()
        };
        let at = STATE as *mut State;
        // SAFETY: low RAM that is identity-mapped and no one else's; the assembly keeps all registers that
        // the ABI wants kept, and comes back in long mode on the same stack with the same tables. What the
        // code under test does to memory is the test's business, as with `insn!`.
        unsafe {
            at.write_volatile(state);
            rt_legacy_run();
            Outcome::new(at.read_volatile(), real)
        }
    }
}

/// The interrupt gate that leads to the stub of a vector.
const fn stub_gate(vector: u32, dpl: u64) -> u64 {
    table::gate(CODE32, STUBS + STUB_SIZE * vector, table::INTERRUPT_GATE32 | dpl << 5, 0)
}

/// Writes the stubs and the runtime's real-mode code.
fn fill_stubs() {
    let from = rt_legacy_real as *const () as usize;
    let length = rt_legacy_real_end as *const () as usize - from;
    // SAFETY: the bytes between two symbols of asm/legacy.s.
    let real = unsafe { core::slice::from_raw_parts(from as *const u8, length) };
    assert!(length <= (REAL_STUBS - REAL) as usize, "the real-mode code reaches its stubs");
    put(REAL, real);
    let real_trap = REAL + (rt_legacy_real_trap as *const () as usize - from) as u32;
    let trap = rt_legacy_trap as *const () as u64 as u32;
    for vector in 0..256 {
        let at = REAL_STUBS + REAL_STUB_SIZE * vector;
        // push imm16; jmp rel16
        write(at, 0x68 | vector << 8 | 0xe9 << 24);
        write(at + 4, real_trap.wrapping_sub(at + 6) as u16);
        let at = STUBS + STUB_SIZE * vector;
        // push 0 (or two nops); push imm32; jmp rel32
        let first = if has_error_code(vector) { 0x9090 } else { 0x006a };
        write(at, (first | 0x68 << 16 | vector << 24) as u64 | (0xe9 << 56));
        write(at + 8, trap.wrapping_sub(at + 12));
    }
}

fn write<T: mem::Word>(at: u32, value: T) {
    sure(mem::write(at.into(), value));
}

/// Puts bytes into memory below 1 MiB.
fn put(at: u32, bytes: &[u8]) {
    assert!(at >= LOW && at as usize + bytes.len() <= 0x8_0000, "no low memory at {at:#x}");
    sure(mem::write_bytes(at.into(), bytes));
}
