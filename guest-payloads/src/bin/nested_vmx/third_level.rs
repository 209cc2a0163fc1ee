//! Three levels: L1, a hypervisor that lets L2 be one, too, and runs L3 for it. Each VMX instruction
//! of L2 exits (SDM volume 3, "Instructions That Cause VM Exits Unconditionally"); L1 carries out on a
//! VMCS of its own what L2 asks for, and keeps what L2 calls its host state for itself.

use super::vm;
use payload_rt::vmx::exit::ENTRY_FAILED;
use payload_rt::vmx::{Entry, Exit, Field, Reason, Vm, caps, get, set};
use payload_rt::{asm_code, check, check_eq, fail, test, time};

/// The flags that VMX instructions clear when they succeed: OF, SF, ZF, AF, PF and CF.
const STATUS_FLAGS: u64 = 0x8d5;

/// L2: it goes into VMX operation, says where L3 starts (R9) and where it comes back to itself, enters
/// it, counts its exits in R8, has it skip CPUID, and ends at any other exit, whose reason is in RDX
/// then. It names fields by RAX, writes from RBX and reads to RDX, which L1 relies on.
fn hypervisor() -> &'static [u8] {
    asm_code!(
        "xor r8d, r8d",
        "vmxon [rsp]",
        "vmclear [rsp]",
        "vmptrld [rsp]",
        "mov eax, 0x681e",
        "mov rbx, r9",
        "vmwrite rax, rbx",
        "mov eax, 0x6c16",
        "lea rbx, [rip + 3f]",
        "vmwrite rax, rbx",
        "mov eax, 0x6c14",
        "mov rbx, rsp",
        "vmwrite rax, rbx",
        "vmlaunch",
        // Only if the entry is refused.
        "mov edx, -1",
        "vmcall",
        "3: inc r8",
        "mov eax, 0x4402",
        "vmread rdx, rax",
        "cmp rdx, 10",
        "jne 4f",
        "mov eax, 0x681e",
        "vmread rdx, rax",
        "lea rbx, [rdx + 2]",
        "vmwrite rax, rbx",
        "vmresume",
        "4: vmcall",
    )
}

/// The three levels, seen from the first.
struct Levels {
    l2: Vm,
    l3: Vm,
    /// What exits of L3 are L1's, and not L2's.
    own: &'static [Reason],
    own_exits: u64,
    /// Where L2 wants to be behind an exit of L3: RIP and RSP.
    host: [u64; 2],
    /// VMX instructions of L2.
    instructions: u64,
}

impl Levels {
    /// L3 runs `code`.
    fn new(code: &[u8], own: &'static [Reason]) -> Levels {
        let mut l3 = vm();
        let start = l3.start(code);
        // L2 says where it is.
        set(Field::GUEST_RIP, 0);
        let mut l2 = Vm::new();
        l2.start(hypervisor());
        l2.regs.r9 = start;
        Levels { l2, l3, own, own_exits: 0, host: [0; 2], instructions: 0 }
    }

    /// Runs L2, and L3 whenever it wants that, until L2's VMCALL.
    fn run(&mut self) {
        loop {
            self.l2.load();
            let exit = self.l2.run();
            match exit.reason {
                Reason::VMCALL => return,
                Reason::VMLAUNCH | Reason::VMRESUME => self.run_l3(),
                Reason::VMXON | Reason::VMCLEAR | Reason::VMPTRLD => self.done(&exit),
                Reason::VMWRITE => {
                    self.done(&exit);
                    self.write(Field(self.l2.regs.rax), self.l2.regs.rbx);
                }
                Reason::VMREAD => {
                    self.done(&exit);
                    self.l3.load();
                    self.l2.regs.rdx = get(Field(self.l2.regs.rax));
                }
                _ => fail!("L2: {exit}"),
            }
            self.instructions += 1;
        }
    }

    /// L2's instruction has succeeded.
    fn done(&mut self, exit: &Exit) {
        self.l2.skip(exit);
        set(Field::GUEST_RFLAGS, get(Field::GUEST_RFLAGS) & !STATUS_FLAGS);
    }

    fn write(&mut self, field: Field, value: u64) {
        match field {
            Field::HOST_RIP => self.host[0] = value,
            Field::HOST_RSP => self.host[1] = value,
            _ => {
                self.l3.load();
                set(field, value);
            }
        }
    }

    /// Enters L3 until an exit that is L2's, and puts L2 where it wants to be behind it.
    fn run_l3(&mut self) {
        self.l3.load();
        self.l3.regs = self.l2.regs;
        loop {
            let exit = match self.l3.enter() {
                Entry::Exit(exit) => exit,
                Entry::Refused(refusal) => fail!("L3 was not entered: {refusal:x?}"),
            };
            if !self.own.contains(&exit.reason) || exit.entry_failed() {
                break;
            }
            self.own_exits += 1;
            self.l3.skip(&exit);
        }
        self.l2.regs = self.l3.regs;
        self.l2.load();
        set(Field::GUEST_RIP, self.host[0]);
        set(Field::GUEST_RSP, self.host[1]);
        set(Field::GUEST_RFLAGS, 2);
    }

    /// Runs until L2 has an exit of L3 that it does not know what to do with, which must be this.
    fn ends(&mut self, reason: u64, what: &str) {
        self.run();
        check_eq!(self.l2.regs.rdx, reason, "{what}: the exit reason that L2 read");
    }
}

const CPUIDS: u64 = 25;

fn counts() -> &'static [u8] {
    asm_code!("mov r10d, 25", "2: cpuid", "dec r10d", "jnz 2b", "mov r11d, 77", "vmcall")
}

test!(third_level_exits, "L3's exits reach L2, which goes on with L3.", || {
    let mut levels = Levels::new(counts(), &[]);
    levels.ends(Reason::VMCALL.0.into(), "CPUIDs");
    check_eq!(levels.l2.regs.r8, CPUIDS + 1, "exits that L2 counted");
    check_eq!((levels.l2.regs.r10, levels.l2.regs.r11), (0, 77), "what L3 left");
    // 7 until the first entry, 4 a CPUID, one at the end.
    check_eq!(levels.instructions, 7 + 4 * CPUIDS + 1, "VMX instructions of L2");
});

test!(third_level_own_exits, "What L1 takes of L3's exits for itself, L2 does not see.", || {
    let mut levels = Levels::new(counts(), &[Reason::CPUID]);
    levels.ends(Reason::VMCALL.0.into(), "CPUIDs");
    check_eq!((levels.l2.regs.r8, levels.own_exits), (1, CPUIDS), "exits of L2's, and of L1's");
    check_eq!((levels.l2.regs.r10, levels.l2.regs.r11), (0, 77), "what L3 left");
});

test!(third_level_halts, "HLT exits from L3 under a control of its VMCS, and L2 is told.", || {
    let mut levels = Levels::new(asm_code!("hlt"), &[]);
    levels.l3.load();
    levels.l3.add(Field::CPU_CONTROLS, caps::CPU_HLT);
    levels.ends(Reason::HLT.0.into(), "HLT");
});

test!(
    third_level_vmlaunch,
    "VMLAUNCH of L3 is an exit to L2: a fourth level would be L2's to make.",
    || {
        let mut levels = Levels::new(asm_code!("vmlaunch"), &[]);
        levels.ends(Reason::VMLAUNCH.0.into(), "VMLAUNCH");
    }
);

test!(
    third_level_refused,
    "An entry into L3 that fails in its guest state is an exit to L2.",
    || {
        // SDM volume 3, "Checks on Guest RIP, RFLAGS, and SSP": bit 1 of RFLAGS must be 1.
        let mut levels = Levels::new(asm_code!("nop"), &[]);
        levels.l3.load();
        set(Field::GUEST_RFLAGS, 0);
        levels.ends(ENTRY_FAILED | u64::from(Reason::INVALID_GUEST_STATE.0), "RFLAGS of 0");
        check_eq!(levels.l2.regs.r8, 1, "exits that L2 counted");
    }
);

test!(third_level_tsc, "Of L3's TSC the offsets of L1 and of L2 are parts.", || {
    let code = asm_code!("rdtsc", "shl rdx, 32", "or rax, rdx", "mov r11, rax", "vmcall");
    let mut levels = Levels::new(code, &[]);
    let offset = (1 << 50) + (1 << 52);
    levels.l3.load();
    levels.l3.add(Field::CPU_CONTROLS, caps::CPU_TSC_OFFSET);
    set(Field::TSC_OFFSET, offset);
    let before = time::rdtsc();
    levels.ends(Reason::VMCALL.0.into(), "RDTSC");
    let (seen, after) = (levels.l2.regs.r11, time::rdtsc());
    let all = before + offset..=after + offset;
    check!(all.contains(&seen), "L3 read {seen:#x}, must be in {all:#x?}");
});

test!(
    third_level_ept,
    "L2 under EPT and L3 under another: an EPT violation of L3 is told to L2.",
    || {
        let mut levels = Levels::new(asm_code!("mov r11, [r12]", "vmcall"), &[]);
        levels.l2.load();
        let of_l2 = levels.l2.with_ept();
        levels.l3.load();
        let of_l3 = levels.l3.with_ept();
        check!(of_l2.pointer() != of_l3.pointer(), "the same tables");
        let page = payload_rt::frames::alloc().address();
        levels.l2.regs.r12 = page;
        of_l3.slot(page, 1).set(0);
        levels.ends(Reason::EPT_VIOLATION.0.into(), "a page that is not there");
        levels.l3.load();
        check_eq!(get(Field::GUEST_PHYSICAL), page, "guest-physical address of the violation");
    }
);
