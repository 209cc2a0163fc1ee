//! Virtual interrupts that the processor delivers to L2 by itself (SDM volume 3, "APIC Virtualization and
//! Virtual Interrupts": "Evaluation and Delivery of Virtual Interrupts", "EOI Virtualization", "Self-IPI
//! Virtualization", "Posted-Interrupt Processing").

use super::{L1, check_l1, vm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Register};
use payload_rt::vmx::caps::*;
use payload_rt::vmx::{Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, check_ok, frames, irq, mem, test};

const VECTOR: u8 = 0x63;
const LOWER: u8 = 0x45;
/// The vector by which L1's APIC tells that interrupts are posted.
const NOTIFY: u8 = 0xd2;
/// Guest interrupt status: RVI, the highest that is requested, and above it SVI, what is in service.
const STATUS: Field = Field(0x0810);
/// The EOI-exit bitmap of vectors 64 to 127.
const EOI_EXIT1: Field = Field(0x201e);
/// Offsets in the virtual-APIC page.
const VTPR: u64 = 0x80;
const VISR: u64 = 0x100;
const VIRR: u64 = 0x200;

/// How often L2 took each.
static TAKEN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

fn taken() -> (u64, u64) {
    (TAKEN[0].load(SeqCst), TAKEN[1].load(SeqCst))
}

/// The word of a register of 256 bits that a vector is in, and its bit.
fn place(page: u64, register: u64, vector: u8) -> (u64, u32) {
    (page + register + 0x10 * u64::from(vector / 32), 1 << (vector % 32))
}

fn has(page: u64, register: u64, vector: u8) -> bool {
    let (at, bit) = place(page, register, vector);
    check_ok!(mem::read::<u32>(at)) & bit != 0
}

/// Requests a vector, as L1 does it for its guest.
fn request(page: u64, vector: u8) {
    let (at, bit) = place(page, VIRR, vector);
    check_ok!(mem::write(at, check_ok!(mem::read::<u32>(at)) | bit));
    set(STATUS, get(STATUS).max(vector.into()));
}

/// A guest with virtual-interrupt delivery and a virtual x2APIC, and its virtual-APIC page. Its handlers
/// count, and do no EOI. It has not touched its stack and its tables yet.
fn fresh() -> (Vm, u64) {
    let mut vm = vm();
    let page = frames::alloc().address();
    set(Field::VIRTUAL_APIC, page);
    vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
    vm.add(Field::CPU_CONTROLS, CPU_TPR_SHADOW);
    vm.add(Field::CPU_CONTROLS2, CPU2_INTERRUPTS | CPU2_X2APIC);
    irq::handle(VECTOR, |_| {
        TAKEN[0].fetch_add(1, SeqCst);
    });
    irq::handle(LOWER, |_| {
        TAKEN[1].fetch_add(1, SeqCst);
    });
    (vm, page)
}

/// The same, after it took both vectors by INT: L0 may map the stack and the tables at their first touch, and
/// that would be in the middle of a delivery.
fn delivering() -> (Vm, u64) {
    let (mut vm, page) = fresh();
    vm.start(asm_code!("int 0x63", "int 0x45"));
    vm.run_until(Reason::VMCALL, "the handlers by INT");
    check_eq!(taken(), (1, 1), "taken by INT");
    TAKEN.iter().for_each(|count| count.store(0, SeqCst));
    (vm, page)
}

test!(
    virtual_interrupt,
    "A requested virtual interrupt waits for L2's IF, and is in service then, with no exit.",
    || {
        let (mut vm, page) = delivering();
        request(page, VECTOR);
        vm.start(asm_code!("nop", "nop"));
        vm.run_until(Reason::VMCALL, "without IF");
        check_eq!((taken(), get(STATUS)), ((0, 0), VECTOR.into()), "taken and status without IF");
        vm.start(asm_code!("sti", "nop", "nop", "cli"));
        let l1 = L1::now();
        let exit = vm.run_until(Reason::VMCALL, "with IF");
        check_eq!((taken(), get(STATUS)), ((1, 0), u64::from(VECTOR) << 8), "with IF");
        check!(has(page, VISR, VECTOR) && !has(page, VIRR, VECTOR), "in service, not requested");
        check_l1(&exit, l1, "behind a virtual interrupt");
    }
);

// "Information for VM Exits During Event Delivery": a fault of L0's own in the delivery leaves no trace.
test!(
    virtual_interrupt_first,
    "A virtual interrupt comes although L2 has not touched its stack.",
    || {
        let (mut vm, page) = fresh();
        request(page, VECTOR);
        vm.start(asm_code!("sti", "nop", "nop", "cli"));
        vm.run_until(Reason::VMCALL, "with IF");
        check_eq!((taken(), get(STATUS)), ((1, 0), u64::from(VECTOR) << 8), "with IF");
    }
);

test!(
    virtual_interrupt_and_tpr,
    "A virtual interrupt waits until the virtual TPR is below it.",
    || {
        let (mut vm, page) = delivering();
        check_ok!(mem::write(page + VTPR, 0x60u32));
        request(page, VECTOR);
        let code = asm_code!(
            "sti",
            "nop",
            "nop",
            "mov rbx, [r8]",
            "mov eax, 5",
            "mov cr8, rax",
            "nop",
            "nop",
            "cli"
        );
        vm.start(code);
        vm.regs.r8 = TAKEN[0].as_ptr() as u64;
        vm.run_until(Reason::VMCALL, "the guest");
        check_eq!(vm.regs.rbx, 0, "taken with the TPR at its class");
        check_eq!(taken(), (1, 0), "taken with the TPR below");
    }
);

/// Takes what is requested, ends it, and takes more; RBX, RSI: what of each was taken at first.
const END_AND_GO_ON: fn() -> &'static [u8] = || {
    asm_code!(
        "sti",
        "nop",
        "nop",
        "cli",
        "mov rbx, [r8]",
        "mov rsi, [r8 + 8]",
        "mov ecx, 0x80b",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "sti",
        "nop",
        "nop",
        "cli",
    )
};

test!(virtual_eoi, "L2's EOI ends what is in service, and the next lower one comes.", || {
    let (mut vm, page) = delivering();
    request(page, LOWER);
    request(page, VECTOR);
    vm.start(END_AND_GO_ON());
    vm.regs.r8 = TAKEN[0].as_ptr() as u64;
    vm.run_until(Reason::VMCALL, "the guest");
    check_eq!((vm.regs.rbx, vm.regs.rsi), (1, 0), "the higher and the lower one before the EOI");
    check_eq!((taken(), get(STATUS)), ((1, 1), u64::from(LOWER) << 8), "in the end");
    check!(!has(page, VISR, VECTOR) && has(page, VISR, LOWER), "what is in service");
});

test!(virtual_eoi_exits, "An EOI whose bit is in the EOI-exit bitmap exits behind itself.", || {
    let (mut vm, page) = delivering();
    request(page, VECTOR);
    set(EOI_EXIT1, 1 << (VECTOR - 64));
    let code = END_AND_GO_ON();
    let at = vm.start(code);
    vm.regs.r8 = TAKEN[0].as_ptr() as u64;
    let l1 = L1::now();
    let exit = vm.run_until(Reason::VIRTUAL_EOI, "the EOI");
    check_eq!(exit.qualification, VECTOR.into(), "qualification");
    check_eq!(exit.rip, at + code.len() as u64 - 4, "RIP, behind WRMSR");
    check!(!has(page, VISR, VECTOR), "still in service");
    check_eq!(get(STATUS) >> 8, 0, "SVI");
    check_l1(&exit, l1, "an EOI");
    vm.run_until(Reason::VMCALL, "behind the EOI");
});

test!(virtual_self_ipi, "L2's self-IPI is a virtual interrupt, with no exit.", || {
    let (mut vm, page) = delivering();
    let code = asm_code!("wrmsr", "mov rbx, [r8]", "sti", "nop", "nop", "cli");
    vm.start(code);
    (vm.regs.rcx, vm.regs.rax, vm.regs.rdx) = (0x83f, VECTOR.into(), 0);
    vm.regs.r8 = TAKEN[0].as_ptr() as u64;
    vm.run_until(Reason::VMCALL, "the guest");
    check_eq!((vm.regs.rbx, taken()), (0, (1, 0)), "taken without IF, and with");
    check!(has(page, VISR, VECTOR), "it is not in service");
    check!(!apic::local().bit(Register::IRR, VECTOR), "L1's own APIC got it");
});

/// Makes `vm` process posted interrupts; the descriptor's address.
fn posting(vm: &mut Vm) -> u64 {
    let descriptor = frames::alloc().address();
    vm.add(Field::PIN_CONTROLS, PIN_POSTED);
    vm.add(Field::EXIT_CONTROLS, EXIT_ACKNOWLEDGE);
    set(Field::POSTED_DESCRIPTOR, descriptor);
    set(Field::POSTED_VECTOR, NOTIFY.into());
    apic::local().enable();
    descriptor
}

/// Offset of the descriptor's word with ON, outstanding notification, in bit 0.
const OUTSTANDING: u64 = 32;

test!(
    posted_interrupts,
    "The notification vector has L2 take what is posted, with no exit.",
    || {
        let (mut vm, page) = delivering();
        let descriptor = posting(&mut vm);
        for vector in [VECTOR, LOWER] {
            let at = descriptor + 4 * u64::from(vector / 32);
            check_ok!(mem::write(at, 1u32 << (vector % 32)));
        }
        check_ok!(mem::write(descriptor + OUTSTANDING, 1u32));
        // Pending in L1's APIC, it comes as soon as L2 is entered.
        apic::local().self_ipi(NOTIFY);
        vm.start(END_AND_GO_ON());
        vm.regs.r8 = TAKEN[0].as_ptr() as u64;
        vm.run_until(Reason::VMCALL, "the guest");
        check_eq!(
            (vm.regs.rbx, vm.regs.rsi),
            (1, 0),
            "the higher and the lower one before the EOI"
        );
        check_eq!(taken(), (1, 1), "in the end");
        check!(!has(page, VIRR, VECTOR) && !has(page, VIRR, LOWER), "still requested");
        let left: [u64; 5] =
            core::array::from_fn(|i| check_ok!(mem::read(descriptor + 8 * i as u64)));
        check_eq!((left[..4].iter().max(), left[4] & 1), (Some(&0), 0), "PIR and ON afterwards");
        let apic = apic::local();
        check!(!apic.bit(Register::IRR, NOTIFY), "the notification is still pending in L1's APIC");
        check!(!apic.bit(Register::ISR, NOTIFY), "the notification is in service in L1's APIC");
    }
);

test!(
    other_interrupts_exit,
    "With posted interrupts any other vector is an exit, and posts nothing.",
    || {
        const OTHER: u8 = NOTIFY - 0x10;
        let (mut vm, _) = delivering();
        let descriptor = posting(&mut vm);
        check_ok!(mem::write(descriptor + 4 * u64::from(VECTOR / 32), 1u32 << (VECTOR % 32)));
        apic::local().self_ipi(OTHER);
        vm.start(asm_code!("sti", "nop", "nop", "cli"));
        let exit = vm.run_until(Reason::EXTERNAL_INTERRUPT, "another vector");
        apic::eoi();
        check_eq!(exit.event & 0xff, OTHER.into(), "the vector");
        check_eq!(taken(), (0, 0), "taken");
        vm.run_until(Reason::VMCALL, "without the notification");
        check_eq!(taken(), (0, 0), "taken without the notification");
    }
);
