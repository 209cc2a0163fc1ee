//! INIT and start-up IPIs to a CPU in VMX operation, and two CPUs with guests (SDM volume 3, "Other
//! Causes of VM Exits": INIT signals, start-up IPIs; "VMX Non-Root Operation" of activity states).

use super::{L1, vm};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination, Mode};
use payload_rt::vmx::caps;
use payload_rt::vmx::exit::EVENT_VALID;
use payload_rt::vmx::{Field, Reason, set};
use payload_rt::{asm_code, check, check_eq, cpu, reg, skip, smp, test, time};

/// Enters a guest that loops for a while with interrupts on; the exit's reason, and in bits 63:32 what
/// else of the exit is wrong.
fn loop_in_l2(_: u64) -> u64 {
    let mut vm = vm();
    IN_VMX.store(true, SeqCst);
    vm.start(asm_code!("mov ecx, 200000000", "2: dec ecx", "jnz 2b"));
    set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
    let l1 = L1::now();
    let exit = vm.run();
    let wrong = u64::from(exit.qualification != 0)
        | u64::from(exit.event & EVENT_VALID != 0) << 1
        | u64::from(L1::now() != l1) << 2
        | u64::from(exit.host_rflags != 2) << 3;
    wrong << 32 | exit.full_reason
}

/// The activity state in which a CPU waits for a start-up IPI (SDM volume 3, 26.4.2).
const WAIT_FOR_SIPI: u64 = 3;

static IN_VMX: AtomicBool = AtomicBool::new(false);

/// Waits until the other CPU is in VMX operation, and then some, so that it may be in L2.
fn wait_for_vmx() {
    check!(time::wait_until(5_000_000, || IN_VMX.load(SeqCst)), "CPU 1 is not in VMX operation");
    time::delay(5_000);
}

fn second_cpu() -> u32 {
    if smp::start() < 2 {
        skip!("one CPU");
    }
    smp::apic_id(1)
}

test!(init_exits, "INIT to a CPU that runs L2 is an exit, and L1 goes on.", || {
    let id = second_cpu();
    let job = smp::spawn(1, loop_in_l2, 0);
    // Not before VMXON: that INIT would stop L1.
    wait_for_vmx();
    apic::local().send(Delivery::Init, Destination::Physical(id));
    check_eq!(job.wait(), Reason::INIT.0.into(), "the exit");
});

test!(
    sipi_is_ignored,
    "A start-up IPI to a CPU that runs L2 in the active state is ignored.",
    || {
        let id = second_cpu();
        let job = smp::spawn(1, short_loop, 0);
        for _ in 0..20 {
            time::delay(500);
            apic::local().send(Delivery::StartUp(0x12), Destination::Physical(id));
        }
        check_eq!(job.wait(), Reason::VMCALL.0.into(), "the exit");
    }
);

test!(
    sipi_exits,
    "A start-up IPI to a CPU whose L2 waits for it is an exit, with its vector.",
    || {
        const VECTOR: u8 = 0x34;
        let id = second_cpu();
        if caps::read(caps::MISC) & 1 << 8 == 0 {
            skip!("no activity state wait-for-SIPI in IA32_VMX_MISC");
        }
        let job = smp::spawn(
            1,
            |_| {
                let mut vm = vm();
                vm.start(asm_code!("nop"));
                set(Field::ACTIVITY, WAIT_FOR_SIPI);
                IN_VMX.store(true, SeqCst);
                let exit = vm.run();
                u64::from(exit.qualification as u32) << 32 | exit.full_reason
            },
            0,
        );
        wait_for_vmx();
        apic::local().send(Delivery::StartUp(VECTOR), Destination::Physical(id));
        let expected = u64::from(VECTOR) << 32 | u64::from(Reason::SIPI.0);
        let seen = job.wait();
        check!(seen == expected, "qualification and exit {seen:#x}, must be {expected:#x}");
    }
);

fn short_loop(_: u64) -> u64 {
    let mut vm = vm();
    vm.start(asm_code!("mov ecx, 500000", "2: dec ecx", "jnz 2b"));
    set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
    vm.run().full_reason
}

/// Runs a guest that counts its exits; the count.
fn count_in_l2(exits: u64) -> u64 {
    let mut vm = vm();
    vm.start(asm_code!("2: inc rbx", "cpuid", "jmp 2b"));
    vm.regs.rbx = 0;
    for _ in 0..exits {
        let exit = vm.run_until(Reason::CPUID, "a count");
        vm.skip(&exit);
    }
    vm.regs.rbx << 8 | cpu::index() as u64
}

test!(two_cpus, "Two CPUs run guests of their own at the same time.", || {
    second_cpu();
    let job = smp::spawn(1, count_in_l2, 300);
    check_eq!(count_in_l2(300), 300 << 8, "the count of CPU 0");
    check_eq!(job.wait(), 300 << 8 | 1, "the count of CPU 1");
});

test!(
    ipi_between_guests,
    "An IPI that L2 sends to another CPU's L2 exits there to its L1.",
    || {
        let id = second_cpu();
        apic::set_mode(Mode::X2Apic).enable();
        let job = smp::spawn(
            1,
            |_| {
                apic::set_mode(Mode::X2Apic).enable();
                let mut vm = vm();
                vm.add(Field::PIN_CONTROLS, caps::PIN_EXTERNAL);
                vm.add(Field::EXIT_CONTROLS, caps::EXIT_ACKNOWLEDGE);
                vm.start(asm_code!("mov ecx, 200000000", "2: dec ecx", "jnz 2b"));
                set(Field::GUEST_RFLAGS, 2 | reg::FLAG_IF);
                let exit = vm.run();
                apic::eoi();
                exit.event << 32 | exit.full_reason
            },
            0,
        );
        time::delay(20_000);
        let mut vm = vm();
        vm.start(asm_code!("wrmsr"));
        (vm.regs.rcx, vm.regs.rax, vm.regs.rdx) = (0x830, 1 << 14 | 0x51, id.into());
        vm.run_until(Reason::VMCALL, "the sender");
        let expected = 0x8000_0051 << 32 | u64::from(Reason::EXTERNAL_INTERRUPT.0);
        let seen = job.wait();
        check!(seen == expected, "event and exit {seen:#x}, must be {expected:#x}");
    }
);
