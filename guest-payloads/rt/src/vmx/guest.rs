//! A guest: its VMCS, its registers, the way into it and back.

use super::exit::{Exit, Reason};
use super::{Done, Field, Refusal, caps, ept, get, set};
use crate::cpu::{self, KERNEL_CS, KERNEL_DS, TSS_SELECTOR};
use crate::trap::{self, Trap};
use crate::{check_eq, fail, frames, idt, mem, reg};

/// The general registers of a guest; RSP and RIP are in the VMCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs)] // The fields are the registers they are named for.
pub struct Regs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Regs {
    /// A value of its own in each register, none that an instruction under test would like.
    pub fn marked() -> Regs {
        let mark = |n: u64| 0x4d41_524b_0000_0000 | n << 16 | (0xa5 - n);
        Regs {
            rax: mark(0),
            rbx: mark(1),
            rcx: mark(2),
            rdx: mark(3),
            rsi: mark(4),
            rdi: mark(5),
            rbp: mark(6),
            r8: mark(7),
            r9: mark(8),
            r10: mark(9),
            r11: mark(10),
            r12: mark(11),
            r13: mark(12),
            r14: mark(13),
            r15: mark(14),
        }
    }
}

/// A guest on the CPU that made it: 64-bit mode at CPL 0, in the memory and page tables of this
/// payload, on a CPU block (stacks, GDT, TSS) and with an IDT of its own, interrupts off. It exits for
/// nothing but what always exits. Rust code of the runtime works in it, [`crate::trap::catch`] and
/// [`crate::irq`] too.
pub struct Vm {
    /// The general registers, as they go in and as they came out.
    pub regs: Regs,
    vmcs: u64,
    block: u64,
    idt: u64,
    code: u64,
    launched: bool,
}

/// What came of an attempt to enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A VM exit, the one of a failed entry included.
    Exit(Exit),
    /// The instruction did not succeed.
    Refused(Refusal),
}

#[cfg(feature = "bare-metal")]
core::arch::global_asm!(include_str!("../../asm/vmx.s"), options(att_syntax));

unsafe extern "C" {
    fn rt_vmx_enter(regs: *mut Regs, resume: u64, flags: *mut u64) -> u64;
    fn rt_vmx_exit();
    fn rt_vmx_thunk();
    fn rt_vmx_done();
}

/// Where a VM exit goes.
pub fn host_rip() -> u64 {
    rt_vmx_exit as *const () as u64
}

impl Vm {
    /// Makes a guest, and its VMCS the current one. VMX operation is on ([`super::enable`]).
    pub fn new() -> Vm {
        let block =
            frames::alloc_range((cpu::BLOCK_SIZE as u64) / frames::PAGE, cpu::BLOCK_SIZE as u64);
        let idt = frames::alloc().address();
        let mut table = [0; idt::LIMIT as usize + 1];
        let copied =
            mem::read_bytes(idt::base(), &mut table).and_then(|()| mem::write_bytes(idt, &table));
        if let Err(trap) = copied {
            panic!("copy the IDT: {trap}");
        }
        let mut vm = Vm {
            regs: Regs::default(),
            vmcs: super::region(),
            block,
            idt,
            code: frames::alloc().address(),
            launched: false,
        };
        vm.clear();
        vm.load();
        vm.reset_controls();
        vm.reset_host();
        vm.reset_guest();
        vm
    }

    /// Physical address of its VMCS.
    pub fn vmcs(&self) -> u64 {
        self.vmcs
    }

    /// Address of its IDT: 256 gates, which are the runtime's at the start.
    pub fn idt(&self) -> u64 {
        self.idt
    }

    /// VMCLEAR: the next entry is a launch.
    pub fn clear(&mut self) {
        sure(super::vmclear(self.vmcs), "VMCLEAR");
        self.launched = false;
    }

    /// VMPTRLD: makes its VMCS the current one.
    pub fn load(&self) {
        sure(super::vmptrld(self.vmcs), "VMPTRLD");
    }

    /// The least controls: MSR bitmaps that let everything through, a 64-bit guest and host.
    fn reset_controls(&mut self) {
        let bitmap = frames::alloc().address();
        set(Field::PIN_CONTROLS, caps::pin().must);
        set(Field::CPU_CONTROLS, caps::cpu().with(caps::CPU_MSR_BITMAPS, "processor-based"));
        set(Field::EXIT_CONTROLS, caps::exit().with(caps::EXIT_HOST64, "VM-exit"));
        set(Field::ENTRY_CONTROLS, caps::entry().with(caps::ENTRY_GUEST64, "VM-entry"));
        set(Field::MSR_BITMAP, bitmap);
        set(Field::LINK, u64::MAX);
    }

    /// The host state: this CPU's own.
    fn reset_host(&mut self) {
        let msr = |index| match reg::rdmsr(index) {
            Ok(value) => value,
            Err(trap) => panic!("read MSR {index:#x}: {trap}"),
        };
        let tables = (sure_trap(reg::sgdt(), "SGDT"), sure_trap(reg::sidt(), "SIDT"));
        for (field, value) in [
            (Field::HOST_CR0, reg::cr0()),
            (Field::HOST_CR3, reg::cr3()),
            (Field::HOST_CR4, reg::cr4()),
            (Field::HOST_CS, KERNEL_CS.into()),
            (Field::HOST_SS, reg::ss().into()),
            (Field::HOST_DS, reg::ds().into()),
            (Field::HOST_ES, reg::es().into()),
            (Field::HOST_FS, reg::fs().into()),
            (Field::HOST_GS, reg::gs().into()),
            (Field::HOST_TR, TSS_SELECTOR.into()),
            (Field::HOST_FS_BASE, msr(reg::FS_BASE)),
            (Field::HOST_GS_BASE, msr(reg::GS_BASE)),
            (Field::HOST_TR_BASE, cpu::tss_address()),
            (Field::HOST_GDTR_BASE, tables.0.base),
            (Field::HOST_IDTR_BASE, tables.1.base),
            (Field::HOST_SYSENTER_CS, msr(reg::SYSENTER_CS)),
            (Field::HOST_SYSENTER_ESP, msr(reg::SYSENTER_ESP)),
            (Field::HOST_SYSENTER_EIP, msr(reg::SYSENTER_EIP)),
            (Field::HOST_RIP, host_rip()),
        ] {
            set(field, value);
        }
    }

    /// The guest state of a [`Vm::new`]: 64-bit mode on its own block. RIP and registers are zero.
    pub fn reset_guest(&mut self) {
        // SAFETY: `new` took the block for this guest alone, which does not run now.
        let block = unsafe { cpu::fill(self.block as usize, cpu::index() as u32) };
        let (tss, tss_limit) = block.tss_place();
        let (gdt, gdt_limit) = block.gdt_place();
        for (field, value) in [
            (Field::GUEST_CR0, reg::cr0()),
            (Field::GUEST_CR3, reg::cr3()),
            (Field::GUEST_CR4, reg::cr4()),
            (Field::GUEST_DR7, 0x400),
            (Field::GUEST_RSP, self.stack_top()),
            (Field::GUEST_RIP, 0),
            (Field::GUEST_RFLAGS, 2),
            (Field::GUEST_CS, KERNEL_CS.into()),
            (Field::CS_RIGHTS, 0xa09b),
            (Field::CS_LIMIT, 0xffff_ffff),
            (Field::GUEST_TR, TSS_SELECTOR.into()),
            (Field::TR_BASE, tss),
            (Field::TR_LIMIT, tss_limit),
            (Field::TR_RIGHTS, 0x8b),
            (Field::LDTR_RIGHTS, UNUSABLE),
            (Field::GDTR_BASE, gdt),
            (Field::GDTR_LIMIT, gdt_limit),
            (Field::IDTR_BASE, self.idt),
            (Field::IDTR_LIMIT, idt::LIMIT.into()),
        ] {
            set(field, value);
        }
        for index in [0, 4, 6] {
            // ES, SS, DS: flat data segments.
            set(Field(Field::GUEST_ES.0 + index), KERNEL_DS.into());
            set(Field(Field::ES_RIGHTS.0 + index), 0xc093);
            set(Field(Field::ES_LIMIT.0 + index), 0xffff_ffff);
        }
        for index in [8, 10] {
            // FS, GS.
            set(Field(Field::ES_RIGHTS.0 + index), UNUSABLE);
        }
        self.regs = Regs::default();
    }

    /// Top of its main stack.
    pub fn stack_top(&self) -> u64 {
        self.block + cpu::BLOCK_SIZE as u64
    }

    /// Adds controls to those that are on. Ends the test with `skip` where one may not be.
    pub fn add(&mut self, field: Field, controls: u64) {
        let allowed = match field {
            Field::PIN_CONTROLS => caps::pin(),
            Field::CPU_CONTROLS => caps::cpu(),
            Field::EXIT_CONTROLS => caps::exit(),
            Field::ENTRY_CONTROLS => caps::entry(),
            Field::CPU_CONTROLS2 => {
                self.add(Field::CPU_CONTROLS, caps::CPU_SECONDARY);
                caps::cpu2()
            }
            _ => panic!("{field} holds no controls"),
        };
        let wanted = allowed
            .with(controls, if field == Field::CPU_CONTROLS2 { "secondary" } else { "primary" });
        set(field, get(field) | wanted);
    }

    /// Takes controls away.
    pub fn remove(&mut self, field: Field, controls: u64) {
        set(field, get(field) & !controls);
    }

    /// Gives it EPT with all of the first 4 GiB at its place, in pages of 2 MiB.
    pub fn with_ept(&mut self) -> ept::Ept {
        self.add(Field::CPU_CONTROLS2, caps::CPU2_EPT);
        let ept = ept::Ept::identity();
        set(Field::EPTP, ept.pointer());
        ept
    }

    /// Starts it anew with `code`, copied to a page of its own with a VMCALL behind it, and marked
    /// registers. Gives the address of the code.
    pub fn start(&mut self, code: &[u8]) -> u64 {
        const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
        let end = self.code + code.len() as u64;
        let copied =
            mem::write_bytes(self.code, code).and_then(|()| mem::write_bytes(end, &VMCALL));
        if let Err(trap) = copied {
            panic!("copy {} bytes of code: {trap}", code.len());
        }
        set(Field::GUEST_RIP, self.code);
        set(Field::GUEST_RSP, self.stack_top());
        set(Field::GUEST_RFLAGS, 2);
        self.regs = Regs::marked();
        self.code
    }

    /// Starts it anew with a function, whose value [`Vm::value`] gives.
    pub fn call(&mut self, function: extern "C" fn(u64) -> u64, argument: u64) {
        self.start(&[]);
        self.regs.rax = function as *const () as u64;
        self.regs.rdi = argument;
        set(Field::GUEST_RIP, rt_vmx_thunk as *const () as u64);
    }

    /// The value of the function it was started with; ends the test with `fail` if this exit is not
    /// the function's end.
    pub fn value(&self, exit: &Exit) -> u64 {
        if exit.reason != Reason::VMCALL || exit.rip != rt_vmx_done as *const () as u64 {
            fail!("the guest's function did not end: {exit}");
        }
        self.regs.rax
    }

    /// Runs a function in it to its end, without any exit in between, and gives its value.
    pub fn run_to_end(&mut self, function: extern "C" fn(u64) -> u64, argument: u64) -> u64 {
        self.call(function, argument);
        let exit = self.run();
        self.value(&exit)
    }

    /// Enters it, by VMLAUNCH the first time and VMRESUME from then on.
    pub fn enter(&mut self) -> Entry {
        self.enter_by(self.launched)
    }

    /// Enters it by VMLAUNCH, or by VMRESUME.
    pub fn enter_by(&mut self, resume: bool) -> Entry {
        let mut flags = 0;
        trap::arm();
        // SAFETY: the VMCS's host state is this CPU's, with `rt_vmx_exit` for its RIP; if the test
        // changed that it owns what follows. What the guest does to memory is the test's business, as
        // for `insn!`; the landing puts the registers back that a call preserves.
        let failed = unsafe { rt_vmx_enter(&raw mut self.regs, resume.into(), &raw mut flags) };
        if failed == 0 {
            let exit = Exit::read(flags);
            // A failed entry leaves the launch state as it was.
            self.launched |= !exit.entry_failed();
            return Entry::Exit(exit);
        }
        let trapped: Result<(), Trap> = trap::taken();
        match super::outcome(trapped, flags) {
            Err(refusal) => Entry::Refused(refusal),
            Ok(()) => Entry::Refused(Refusal::Flags(flags)),
        }
    }

    /// Enters it and gives the VM exit. Ends the test with `fail` if it did not enter.
    #[track_caller]
    pub fn run(&mut self) -> Exit {
        match self.enter() {
            Entry::Exit(exit) if !exit.entry_failed() => exit,
            other => fail!("the guest was not entered: {other:x?}"),
        }
    }

    /// Enters it, checks the reason of the VM exit, and gives the exit.
    #[track_caller]
    pub fn run_until(&mut self, reason: Reason, what: &str) -> Exit {
        let exit = self.run();
        check_eq!(exit.reason, reason, "{what}: {exit}");
        exit
    }

    /// Moves its RIP behind the instruction that exited.
    pub fn skip(&mut self, exit: &Exit) {
        set(Field::GUEST_RIP, exit.rip + exit.length);
        set(Field::INTERRUPTIBILITY, get(Field::INTERRUPTIBILITY) & !3);
    }
}

impl Default for Vm {
    fn default() -> Vm {
        Vm::new()
    }
}

/// Access rights of a segment that is not there.
const UNUSABLE: u64 = 1 << 16;

fn sure(done: Done, what: &str) {
    if let Err(refusal) = done {
        panic!("{what}: {refusal:?}");
    }
}

fn sure_trap<T>(result: Result<T, Trap>, what: &str) -> T {
    match result {
        Ok(value) => value,
        Err(trap) => panic!("{what}: {trap}"),
    }
}
