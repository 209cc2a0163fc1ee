//! Three levels: L1, a hypervisor that lets L2 be one, too, and runs L3 for it (AMD APM volume 2,
//! 15.5: VMRUN always exits from a guest). L1 merges what L2 asks for with what it wants for itself
//! into a VMCB of its own, as the hypervisor under test does one level down.

use crate::{guest, page};
use payload_rt::apic;
use payload_rt::paging::{Flags, Size};
use payload_rt::svm::npt::Npt;
use payload_rt::svm::vmcb::{self, Field, Seg, Vmcb};
use payload_rt::svm::{Exit, Guest, NPT, exit};
use payload_rt::{asm_code, check, check_eq, check_ok, irq, mem, test, time, trap};

/// Bytes of `vmrun` and of `cpuid`.
const VMRUN_LENGTH: u64 = 3;
const CPUID_LENGTH: u64 = 2;
/// Fields of which L1's bits are added to L2's.
const INTERCEPTS: [Field; 6] = [
    vmcb::INTERCEPT_CR,
    vmcb::INTERCEPT_DR,
    vmcb::INTERCEPT_EXCEPTION,
    vmcb::INTERCEPT_3,
    vmcb::INTERCEPT_4,
    vmcb::INTERCEPT_5,
];
const SEGMENTS: [Seg; 6] = [Seg::Es, Seg::Cs, Seg::Ss, Seg::Ds, Seg::Gdtr, Seg::Idtr];

/// L2 runs L3 again and again: it skips each CPUID that exits, counts in R8, and ends at any other exit,
/// whose code is in RDX then. RAX is the VMCB's address, where it finds EXITCODE and RIP.
fn hypervisor() -> &'static [u8] {
    asm_code!(
        "2: vmrun",
        "inc r8",
        "mov rdx, [rax + 0x70]",
        "cmp rdx, 0x72",
        "jne 3f",
        "add qword ptr [rax + 0x578], 2",
        "jmp 2b",
        "3: vmmcall",
    )
}

/// The three levels, seen from the first.
struct Levels {
    l2: Guest,
    /// L3 as L2 has set it up.
    asked: Guest,
    /// L3 as it runs.
    merged: Guest,
    /// What L1 intercepts of L3 for itself.
    own: &'static [u64],
    /// How often that came.
    own_exits: u64,
    /// What L1 adds to the TSC of its guests.
    tsc_offset: u64,
}

impl Levels {
    /// L3 runs `code`.
    fn new(code: &'static [u8], own: &'static [u64]) -> Levels {
        let mut l2 = guest(hypervisor());
        let asked = Guest::new(code);
        l2.vmcb.set(vmcb::RAX, asked.vmcb.address());
        Levels { l2, asked, merged: Guest::new(code), own, own_exits: 0, tsc_offset: 0 }
    }

    /// Runs L2, and L3 whenever it wants that, until L2 exits for another reason.
    fn run(&mut self) -> Exit {
        self.l2.vmcb.set(vmcb::TSC_OFFSET, self.tsc_offset);
        loop {
            let exit = self.l2.run();
            if exit.code != exit::VMRUN {
                return exit;
            }
            let named = self.l2.vmcb.get(vmcb::RAX);
            check_eq!(named, self.asked.vmcb.address(), "RAX at L2's VMRUN");
            self.run_l3();
            self.l2.skip(VMRUN_LENGTH);
        }
    }

    /// Runs L3 until an exit that L2 asked for, and hands that to L2.
    fn run_l3(&mut self) {
        let merged = &mut self.merged.vmcb;
        copy(&self.asked.vmcb, merged, vmcb::CONTROL);
        copy(&self.asked.vmcb, merged, vmcb::STATE);
        segments(&self.asked.vmcb, merged);
        for code in self.own {
            merged.intercept(*code, true);
        }
        let offset = self.asked.vmcb.get(vmcb::TSC_OFFSET).wrapping_add(self.tsc_offset);
        merged.set(vmcb::TSC_OFFSET, offset);
        merged.set(vmcb::CLEAN, 0);
        // VMRUN leaves the other registers as L2 has them.
        self.merged.regs = self.l2.regs;
        while {
            let code = self.merged.run().code;
            let mine = self.own.contains(&code) && !self.wants(code);
            self.own_exits += u64::from(mine);
            if mine && code == exit::CPUID {
                self.merged.skip(CPUID_LENGTH);
            }
            if mine && code == exit::INTR {
                irq::let_in(100);
            }
            // What was injected is in.
            self.merged.vmcb.set(vmcb::EVENTINJ, 0);
            mine
        } {}
        self.l2.regs = self.merged.regs;
        let asked = &mut self.asked.vmcb;
        copy(&self.merged.vmcb, asked, vmcb::STATE);
        segments(&self.merged.vmcb, asked);
        let results = [vmcb::EXITCODE, vmcb::EXITINFO1, vmcb::EXITINFO2, vmcb::EVENTINJ];
        copy(&self.merged.vmcb, asked, &results);
    }

    /// Whether L2 intercepts what has this exit code.
    fn wants(&self, code: u64) -> bool {
        let mut with = Vmcb::new();
        copy(&self.asked.vmcb, &mut with, &INTERCEPTS);
        let before = INTERCEPTS.map(|field| with.get(field));
        with.intercept(code, true);
        INTERCEPTS.map(|field| with.get(field)) == before
    }

    /// Runs until L2 has an exit of L3 that it does not know what to do with, which must be this.
    fn ends(&mut self, code: u64, what: &str) {
        let exit = self.run();
        check_eq!(exit.code, exit::VMMCALL, "{what}: L2's exit, {exit:?}");
        check!(self.l2.trap().is_none(), "{what}: L2 took {:?}", self.l2.trap());
        check_eq!(self.l2.regs.rdx, code, "{what}: what L2 saw of L3");
    }
}

fn copy(from: &Vmcb, to: &mut Vmcb, fields: &[Field]) {
    fields.iter().for_each(|&field| to.set(field, from.get(field)));
}

fn segments(from: &Vmcb, to: &mut Vmcb) {
    SEGMENTS.into_iter().for_each(|segment| to.set_segment(segment, from.segment(segment)));
}

test!(third_level_exits, "L3's exits reach L2, which goes on with L3.", || {
    let code = asm_code!("mov r9d, 25", "2: cpuid", "dec r9d", "jnz 2b", "mov r10d, 77", "vmmcall");
    let mut levels = Levels::new(code, &[]);
    levels.asked.intercept(&[exit::CPUID]);
    levels.ends(exit::VMMCALL, "25 CPUIDs");
    check_eq!(levels.l2.regs.r8, 26, "exits that L2 counted");
    check_eq!((levels.l2.regs.r9, levels.l2.regs.r10), (0, 77), "what L3 left");
});

test!(third_level_own_exits, "What L1 intercepts of L3 for itself, L2 does not see.", || {
    let code = asm_code!("mov r9d, 25", "2: cpuid", "dec r9d", "jnz 2b", "vmmcall");
    let mut levels = Levels::new(code, &[exit::CPUID]);
    levels.ends(exit::VMMCALL, "25 CPUIDs");
    check_eq!((levels.l2.regs.r8, levels.own_exits), (1, 25), "exits of L2's, and of L1's");
    check_eq!(levels.l2.regs.r9, 0, "what L3 left");
});

test!(third_level_halts, "HLT in L3 is L2's, and L2 ends in its own way.", || {
    let mut levels = Levels::new(asm_code!("hlt"), &[]);
    levels.ends(exit::HLT, "HLT");
    check_eq!(levels.asked.rip(), levels.merged.rip(), "RIP of L3 for L2");
    let mut levels = Levels::new(asm_code!("ud2"), &[]);
    levels.asked.intercept(&[exit::exception(trap::UD)]);
    levels.ends(exit::exception(trap::UD), "UD2");
});

test!(
    third_level_vmrun,
    "VMRUN of L3 is an exit to L2: a fourth level would be L2's to make.",
    || {
        let mut levels = Levels::new(asm_code!("vmrun"), &[]);
        levels.ends(exit::VMRUN, "VMRUN of L3");
    }
);

test!(third_level_event, "An event that L2 injects arrives in L3, through L3's IDT.", || {
    // 15.20: type 3 is an exception, bit 31 makes it valid.
    let mut levels = Levels::new(asm_code!("nop", "vmmcall"), &[]);
    let start = levels.asked.rip();
    levels.asked.vmcb.set(vmcb::EVENTINJ, 1 << 31 | 3 << 8 | u64::from(trap::UD));
    levels.ends(exit::VMMCALL, "an injected #UD");
    let Some(trap) = levels.asked.trap() else {
        payload_rt::fail!("L3 took no trap: RIP is {:#x}", levels.asked.rip());
    };
    check_eq!((trap.vector, trap.rip), (trap::UD, start), "the trap");
});

test!(third_level_tsc, "Of L3's TSC the offsets of L1 and of L2 are parts.", || {
    let code = asm_code!("rdtsc", "shl rdx, 32", "or rax, rdx", "mov r9, rax", "vmmcall");
    let mut levels = Levels::new(code, &[]);
    let (first, second) = (1 << 50, 1 << 52);
    levels.tsc_offset = first;
    levels.asked.vmcb.set(vmcb::TSC_OFFSET, second);
    let before = time::rdtsc();
    levels.ends(exit::VMMCALL, "RDTSC");
    let (seen, after) = (levels.l2.regs.r9, time::rdtsc());
    let all = before + first + second..=after + first + second;
    check!(all.contains(&seen), "L3 read {seen:#x}, must be in {all:#x?}");
});

test!(third_level_interrupt, "A physical interrupt while L3 runs is L1's, and L3 goes on.", || {
    const VECTOR: u8 = 0x43;
    let code = asm_code!("sti", "2: cmp qword ptr [rcx], 0", "je 2b", "vmmcall");
    let mut levels = Levels::new(code, &[exit::INTR]);
    levels.l2.intercept(&[exit::INTR]);
    let done = page();
    levels.l2.regs.rcx = done;
    apic::local().enable();
    static DONE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    DONE.store(done, core::sync::atomic::Ordering::SeqCst);
    irq::handle(VECTOR, |_| {
        let done = DONE.load(core::sync::atomic::Ordering::SeqCst);
        let _ = mem::write(done, 1_u64);
        apic::eoi();
    });
    let apic = apic::local();
    apic.set_timer(apic::Timer::OneShot, VECTOR);
    apic.start_timer(20_000_000);
    levels.ends(exit::VMMCALL, "a timer of L1's");
    check_eq!(irq::count(VECTOR), 1, "interrupts");
    check!(levels.own_exits >= 1, "L3 did not exit for it");
});

test!(third_level_pages, "Under nested paging L3's memory is L2's, and L2's is L1's.", || {
    NPT.require();
    let code = asm_code!("mov r9, [rcx]", "mov qword ptr [rcx + 8], 99", "vmmcall");
    let mut levels = Levels::new(code, &[]);
    // What L3 takes for `far`, L2 takes for `near`, and is `here`.
    let [far, near, here] = [page(), page(), page()];
    check_ok!(mem::write(here, 0x1111_2222_u64));
    let (of_l2, of_l3) = (Npt::identity(), Npt::identity());
    of_l2.map(near, here, Size::K4, Flags::RWU);
    of_l3.map(far, here, Size::K4, Flags::RWU);
    levels.l2.nest(&of_l2);
    levels.asked.nest(&of_l3);
    levels.l2.regs.rcx = far;
    levels.ends(exit::VMMCALL, "a read and a write");
    check_eq!(levels.l2.regs.r9, 0x1111_2222, "what L3 read");
    check_eq!(mem::read(here + 8), Ok(99_u64), "where it wrote");
    check_eq!((mem::read(near + 8), mem::read(far + 8)), (Ok(0_u64), Ok(0_u64)), "and where not");
    of_l3.reach(far, 1).set(0);
    levels.asked.vmcb.set(vmcb::RIP, code.as_ptr() as u64);
    levels.merged.vmcb.set(vmcb::TLB_CONTROL, 1);
    levels.asked.vmcb.set(vmcb::TLB_CONTROL, 1);
    levels.l2.vmcb.set(vmcb::RIP, hypervisor().as_ptr() as u64);
    levels.l2.regs.rcx = far;
    levels.ends(exit::NPF, "a page that is not there");
    check_eq!(levels.asked.vmcb.get(vmcb::EXITINFO2), far, "where L2 sees the fault");
});
