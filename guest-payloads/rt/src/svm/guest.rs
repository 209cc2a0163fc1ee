//! A guest that is ready to run.

use super::exit::{self, Exit};
use super::npt::Npt;
use super::run::{self, Around, Registers};
use super::vmcb::{self, Seg, Segment, Vmcb};
use crate::frames::{self, PAGE};
use crate::idt::Gate;
use crate::trap::Trap;
use crate::{asm_code, cpu, mem, reg};

/// Attributes of a 64-bit code segment at CPL 0, as a VMCB has them.
const CODE64: u16 = 0xa9b;
/// Attributes of a 32-bit data segment at DPL 0.
const DATA32: u16 = 0xc93;

/// Pages of a guest's stack.
const STACK_PAGES: u64 = 2;
/// Bytes from one trap stub to the next.
const STUB: u64 = 4;

/// A guest: its VMCB, its registers, its stack and its IDT.
#[derive(Debug)]
pub struct Guest {
    /// The VMCB.
    pub vmcb: Vmcb,
    /// The registers that are not in the VMCB.
    pub regs: Registers,
    /// What the hypervisor does around VMRUN.
    pub around: Around,
    idt: u64,
    stubs: u64,
    stack: u64,
}

/// A trap that the guest took, seen through its own IDT: what is on its stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTrap {
    /// The vector.
    pub vector: u8,
    /// The error code; 0 for a vector without one.
    pub error_code: u64,
    /// RIP on the stack.
    pub rip: u64,
    /// CS on the stack.
    pub cs: u64,
    /// RFLAGS on the stack.
    pub rflags: u64,
    /// RSP on the stack.
    pub rsp: u64,
}

impl Guest {
    /// A guest that starts at the beginning of `code`, where it lies (see the [module](super)).
    /// VMRUN, VMMCALL, HLT and SHUTDOWN are intercepted, nothing else.
    pub fn new(code: &'static [u8]) -> Guest {
        let stack = frames::alloc_range(STACK_PAGES, PAGE);
        let stubs = frames::alloc().address();
        let idt = frames::alloc().address();
        // Each stub is `vmmcall` and a filler.
        for stub in (stubs..stubs + 256 * STUB).step_by(STUB as usize) {
            store(stub, 0x90d9_010f_u32);
        }
        let mut guest = Guest {
            vmcb: Vmcb::new(),
            regs: Registers::default(),
            around: Around::USUAL,
            idt,
            stubs,
            stack: stack + STACK_PAGES * PAGE,
        };
        for vector in 0..=255 {
            guest.set_gate(vector, stubs + STUB * u64::from(vector), 0);
        }
        guest.set_up(code.as_ptr() as u64);
        guest
    }

    fn set_up(&mut self, rip: u64) {
        let v = &mut self.vmcb;
        for code in [exit::VMRUN, exit::VMMCALL, exit::HLT, exit::SHUTDOWN] {
            v.intercept(code, true);
        }
        let segment =
            |selector, attributes| Segment { selector, attributes, limit: u32::MAX, base: 0 };
        v.set_segment(Seg::Cs, segment(cpu::KERNEL_CS, CODE64));
        for data in [Seg::Ss, Seg::Ds, Seg::Es] {
            v.set_segment(data, segment(cpu::KERNEL_DS, DATA32));
        }
        let table = |base, limit: u16| Segment { base, limit: limit.into(), ..Segment::default() };
        if let Ok(gdt) = reg::sgdt() {
            v.set_segment(Seg::Gdtr, table(gdt.base, gdt.limit));
        }
        v.set_segment(Seg::Idtr, table(self.idt, 256 * 16 - 1));
        let efer = reg::rdmsr(reg::EFER).unwrap_or_else(|trap| panic!("read EFER: {trap}"));
        for (field, value) in [
            (vmcb::ASID, 1),
            (vmcb::EFER, efer),
            (vmcb::CR0, reg::cr0()),
            (vmcb::CR3, reg::cr3()),
            (vmcb::CR4, reg::cr4()),
            (vmcb::DR6, 0xffff_0ff0),
            (vmcb::DR7, 0x400),
            (vmcb::G_PAT, 0x0007_0406_0007_0406),
            (vmcb::RFLAGS, 2),
            (vmcb::RIP, rip),
            (vmcb::RSP, self.stack - 8),
        ] {
            v.set(field, value);
        }
    }

    /// Runs until the next #VMEXIT. Ends the test with `error` if VMRUN itself faults.
    pub fn run(&mut self) -> Exit {
        match self.try_run() {
            Ok(exit) => exit,
            Err(trap) => panic!("vmrun of the VMCB at {:#x}: {trap}", self.vmcb.address()),
        }
    }

    /// Runs until the next #VMEXIT; `Err` is what VMRUN itself raised.
    pub fn try_run(&mut self) -> Result<Exit, Trap> {
        run::vmrun(&mut self.regs, self.vmcb.address(), self.around)?;
        Ok(run::exit_of(&self.vmcb))
    }

    /// Nested paging by these tables.
    pub fn nest(&mut self, tables: &Npt) {
        self.vmcb.add(vmcb::NP_ENABLE, 1);
        self.vmcb.set(vmcb::N_CR3, tables.root());
    }

    /// Intercepts all of these exit codes.
    pub fn intercept(&mut self, codes: &[u64]) {
        for &code in codes {
            self.vmcb.intercept(code, true);
        }
    }

    /// The guest's RIP.
    pub fn rip(&self) -> u64 {
        self.vmcb.get(vmcb::RIP)
    }

    /// Moves the guest's RIP over an instruction of `bytes` bytes.
    pub fn skip(&mut self, bytes: u64) {
        self.vmcb.set(vmcb::RIP, self.rip() + bytes);
    }

    /// Top of the guest's stack.
    pub fn stack_top(&self) -> u64 {
        self.stack
    }

    /// Address of the guest's IDT.
    pub fn idt(&self) -> u64 {
        self.idt
    }

    /// Lets a vector of the guest lead to `offset` at CPL 0, open to `int n` from CPL `dpl`.
    pub fn set_gate(&mut self, vector: u8, offset: u64, dpl: u8) {
        let gate = Gate { offset, dpl, ist: 0, ..Gate::stub(vector) };
        let at = self.idt + 16 * u64::from(vector);
        let [low, high] = gate.encode();
        store(at, low);
        store(at + 8, high);
    }

    /// Makes a vector's gate not present.
    pub fn close_gate(&mut self, vector: u8) {
        let [low, high] = Gate { present: false, ..Gate::stub(vector) }.encode();
        let at = self.idt + 16 * u64::from(vector);
        store(at, low);
        store(at + 8, high);
    }

    /// Lets the guest read its code, IDT, stubs and GDT and write its stack, and makes it as it was.
    /// A hypervisor below may build its tables at a guest's first touch; after this, events of the
    /// guest are delivered without such a fault in the middle.
    pub fn warm(&mut self) {
        let touch = asm_code!(
            "mov [rsp - 64], rax",
            "mov rax, [rdi]",
            "mov rax, [rsi]",
            "mov rax, [rbx]",
            "mov rax, [rcx]",
            "mov rax, [rdx]",
            "vmmcall"
        );
        let kept: [u64; 2] = [vmcb::RIP, vmcb::RAX].map(|field| self.vmcb.get(field));
        let regs = self.regs;
        let half = self.idt + PAGE / 2;
        let gdt = self.vmcb.segment(Seg::Gdtr).base;
        let (rbx, rcx, rdx) = (self.stubs, gdt, kept[0]);
        self.regs = Registers { rdi: self.idt, rsi: half, rbx, rcx, rdx, ..regs };
        self.vmcb.set(vmcb::RIP, touch.as_ptr() as u64);
        let exit = self.run();
        assert!(exit.code == exit::VMMCALL, "a guest that touches its own memory: {exit:?}");
        self.regs = regs;
        self.vmcb.set(vmcb::RIP, kept[0]);
        self.vmcb.set(vmcb::RAX, kept[1]);
    }

    /// The trap that the guest has just taken, if the last exit was that of a stub of its IDT.
    pub fn trap(&self) -> Option<GuestTrap> {
        let offset = self.rip().wrapping_sub(self.stubs);
        if run::exit_of(&self.vmcb).code != exit::VMMCALL || offset >= 256 * STUB {
            return None;
        }
        let vector = (offset / STUB) as u8;
        let has_code = matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30);
        let mut at = self.vmcb.get(vmcb::RSP);
        let mut word = || {
            let value = mem::read(at).unwrap_or_else(|trap| panic!("read {at:#x}: {trap}"));
            at += 8;
            value
        };
        let error_code = if has_code { word() } else { 0 };
        Some(GuestTrap { vector, error_code, rip: word(), cs: word(), rflags: word(), rsp: word() })
    }

    /// Takes the guest out of its trap's handler as `iretq` would, to `rip` on the old stack.
    pub fn resume_at(&mut self, rip: u64) {
        let Some(frame) = self.trap() else {
            panic!("the guest at {:#x} is in no handler of a trap", self.rip());
        };
        self.vmcb.set(vmcb::RIP, rip);
        self.vmcb.set(vmcb::RSP, frame.rsp);
        self.vmcb.set(vmcb::RFLAGS, frame.rflags);
    }
}

fn store<T: mem::Word>(at: u64, value: T) {
    mem::write(at, value).unwrap_or_else(|trap| panic!("write a page of the guest: {trap}"));
}
