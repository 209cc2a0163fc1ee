//! The runtime itself: what tests of a hypervisor stand on.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination, Mode};
use payload_rt::paging::{self, Flags, Size};
use payload_rt::user::{self, End, User};
use payload_rt::*;

test!(cpl3_done, "Code at CPL 3 runs, sees its registers, and hands them back.", || {
    let code = asm_code!("mov ecx, cs", "push rax", "add qword ptr [rsp], 2", "pop rbx", "ret");
    let mut user = User::new(code);
    user.regs.rax = 40;
    user.regs.r15 = 0x1515;
    let outcome = user.run();
    check_eq!(outcome.end, End::Done);
    check_eq!(outcome.regs.rbx, 42);
    check_eq!(outcome.regs.rcx & 3, 3, "CPL");
    check_eq!(outcome.regs.r15, 0x1515);
});

test!(cpl3_traps, "Traps at CPL 3 come back as values, with the registers.", || {
    for (code, vector, what) in [
        (asm_code!("hlt"), trap::GP, "hlt"),
        (asm_code!("ud2"), trap::UD, "ud2"),
        (asm_code!("xor ecx, ecx", "div ecx"), trap::DE, "division by zero"),
        (asm_code!("mov eax, [0x100000]"), trap::PF, "a read of the payload"),
    ] {
        let End::Trap(fault) = User::new(code).run().end else { fail!("{what}: no trap") };
        check_eq!(fault.vector, vector, "{what}");
    }
});

test!(
    cpl3_gate,
    "`int n` at CPL 3 goes through a gate of DPL 3, and is #GP for one of DPL 0.",
    || {
        let outcome = User::new(asm_code!("int 0x80")).run();
        check_eq!(outcome.end, End::Gate(0x80));
        check_eq!(outcome.regs.rip, user::code_address() + 2);
        let End::Trap(fault) = User::new(asm_code!("int 0x81")).run().end else { fail!("no trap") };
        check_eq!(fault.vector, trap::GP);
    }
);

test!(cpl3_syscall, "`syscall` at CPL 3 arrives, where it is allowed.", || {
    let outcome = User::new(asm_code!("mov eax, 7", "syscall")).allow_syscall().run();
    check_eq!(outcome.end, End::Syscall);
    check_eq!(outcome.regs.rax, 7);
    check_eq!(outcome.regs.rip, user::code_address() + 7);
    // And once more: the kernel side has to be as it was.
    check_eq!(User::new(asm_code!("syscall")).allow_syscall().run().end, End::Syscall);
});

test!(cpl3_compat, "32-bit code at CPL 3 runs in compatibility mode.", || {
    // `inc eax` is a prefix of the next instruction in 64-bit code.
    let outcome = User::new(asm_code!(".code32", "inc eax", "inc eax", "ret")).compat().run();
    check_eq!(outcome.end, End::Done);
    check_eq!(outcome.regs.rax, 2);
});

test!(cpl3_function, "A Rust function runs at CPL 3 and returns its value.", || {
    extern "C" fn square(x: u64) -> u64 {
        x * x + u64::from(reg::cs() & 3)
    }
    extern "C" fn forbidden(_: u64) -> u64 {
        reg::cr0()
    }
    check_eq!(user::call(square, 12), Ok(147));
    check_eq!(check_err!(user::call(forbidden, 0)).vector, trap::GP);
    check!(!paging::walk(0x10_0000).flags().has(Flags::U), "the payload is still open to CPL 3");
});

test!(cpl3_interrupted, "An interrupt at CPL 3 goes to its handler, and CPL 3 goes on.", || {
    irq::count_only(0x40);
    let apic = apic::local();
    apic.enable();
    // Pending until CPL 3 turns interrupts on.
    apic.self_ipi(0x40);
    let outcome = User::new(asm_code!("mov ecx, 1000000", "2: loop 2b", "ret")).run();
    check_eq!(outcome.end, End::Done);
    check_eq!(irq::count(0x40), 1);
});

test!(
    page_tables,
    "Pages of each size are mapped, changed, unmapped; faults say what is wrong.",
    || {
        let mut page = frames::alloc();
        page.bytes()[..8].copy_from_slice(&0x1122_3344_5566_7788_u64.to_le_bytes());
        let at = 0x1234_5678_9000;
        paging::map(at, page.address(), Size::K4, Flags::RW);
        check_eq!(paging::translate(at + 8), Some(page.address() + 8));
        check_eq!(mem::read(at), Ok(0x1122_3344_5566_7788_u64));
        paging::change(at, Flags::NONE, Flags::W);
        let fault = check_err!(mem::write(at, 1_u8));
        check_eq!((fault.vector, fault.error_code, fault.cr2), (trap::PF, 3, at));
        paging::unmap(at);
        let fault = check_err!(mem::read::<u8>(at));
        check_eq!((fault.vector, fault.error_code, fault.cr2), (trap::PF, 0, at));

        let large = 0x1234_5660_0000;
        paging::map(large, 0, Size::M2, Flags::RW);
        check_eq!(paging::translate(large + 0x10_0000), Some(0x10_0000));
        let small = paging::reach(large + 0x10_0000, 1);
        check_eq!(small.level, 1);
        check_eq!(paging::translate(large + 0x10_0000), Some(0x10_0000), "after the split");
        check_eq!(mem::read::<u32>(large + 0x10_0000), mem::read::<u32>(0x10_0000));
    }
);

test!(no_execute, "A page with NX faults on a fetch, and runs without.", || {
    cpuid::NX.require();
    let mut page = frames::alloc();
    page.bytes()[0] = 0xc3; // ret
    let at = 0x1234_5678_9000;
    paging::map(at, page.address(), Size::K4, Flags::RW | Flags::NX);
    let fault = check_err!(mem::call(at));
    check_eq!((fault.vector, fault.error_code, fault.rip), (trap::PF, 0x11, at));
    paging::change(at, Flags::NONE, Flags::NX);
    check!(mem::call(at).is_ok());
});

test!(
    apic_modes,
    "The local APIC sends a self-IPI as xAPIC and, if there is one, as x2APIC.",
    || {
        irq::count_only(0x41);
        let id = apic::set_mode(Mode::XApic).id();
        for (mode, times) in [(Mode::XApic, 1), (Mode::X2Apic, 2)] {
            if mode == Mode::X2Apic && !cpuid::X2APIC.present() {
                println!("no x2APIC");
                break;
            }
            let apic = apic::set_mode(mode);
            apic.enable();
            check_eq!(apic.id(), id);
            apic.self_ipi(0x41);
            check!(irq::wait_for(0x41, times, 1_000_000), "no interrupt as {mode:?}");
            check!(!apic.bit(apic::Register::ISR, 0x41), "still in service as {mode:?}");
        }
    }
);

test!(cpus, "All CPUs come up, with stacks, indices and APIC identifiers of their own.", || {
    let count = smp::start();
    report::value("cpus", count as u64);
    check_eq!(smp::start(), count, "the second time");
    for cpu in 0..count {
        check_eq!(smp::run_on(cpu, cpu::index), cpu);
        check_eq!(smp::run_on(cpu, || apic::local().id()), smp::apic_id(cpu));
        let stack = smp::run_on(cpu, cpu::stack_range);
        check!((0..cpu).all(|other| smp::run_on(other, cpu::stack_range) != stack));
        check!(cpu == 0 || smp::apic_id(cpu - 1) < smp::apic_id(cpu) || cpu == 1);
    }
    static SUM: AtomicU32 = AtomicU32::new(0);
    static BARRIER: sync::Barrier = sync::Barrier::new();
    smp::on_all(|cpu| {
        BARRIER.wait(count);
        SUM.fetch_add(1 << cpu, SeqCst);
    });
    check_eq!(SUM.load(SeqCst), (1 << count) - 1);
    for cpu in 1..count {
        let job = smp::spawn(cpu, |x| x + cpu::index() as u64, 100);
        check_eq!(job.wait(), 100 + cpu as u64);
    }
});

test!(
    ipi_to_idle,
    "An IPI arrives at CPUs that wait for work, and halted ones take work again.",
    || {
        const VECTOR: u8 = 0x42;
        irq::count_only(VECTOR);
        let count = smp::start();
        // Long enough that all of them halt.
        time::delay(100_000);
        for cpu in 1..count {
            apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(smp::apic_id(cpu)));
            let came = time::wait_until(5_000_000, || irq::count_on(cpu, VECTOR) == 1);
            check!(came, "no interrupt at cpu {cpu}");
        }
        check_eq!(irq::count(VECTOR), 0, "at cpu 0");
        time::delay(100_000);
        for cpu in 1..count {
            check_eq!(smp::run_on(cpu, cpu::index), cpu);
        }
    }
);

test!(faults_elsewhere, "Traps on another CPU are that CPU's, also at CPL 3.", || {
    for cpu in 0..smp::start() {
        let fault = smp::run_on(cpu, || mem::read::<u8>(0x7000_0000_0000));
        check_eq!(check_err!(fault).vector, trap::PF);
        let end = smp::run_on(cpu, || User::new(asm_code!("hlt")).run().end);
        check!(matches!(end, End::Trap(t) if t.vector == trap::GP), "cpu {cpu}: {end:?}");
    }
});

test!(double_fault_stack, "A trap on an IST stack is recovered from like any other.", || {
    idt::set_ist(trap::UD, 4);
    check_eq!(check_err!(insn!("ud2")).vector, trap::UD);
    static SEEN: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    irq::handle(trap::UD, |frame| {
        let local = 0_u8;
        SEEN.store(&raw const local as u64, SeqCst);
        frame.rip += 2;
    });
    check_eq!(insn!("ud2"), Ok(()));
    let at = SEEN.load(SeqCst);
    check!(cpu::ist_range(4).contains(&at), "the handler's stack is at {at:#x}");
});

test!(clocks, "The TSC's rate is plausible, and a wait takes about as long as it should.", || {
    let hz = time::tsc_hz();
    report::value("tsc_hz", hz);
    // An emulator's may count instructions, and those it executes tens of millions of a second.
    check!((5_000_000..10_000_000_000).contains(&hz), "{hz} Hz");
    let start = time::rdtsc_ordered();
    time::delay(1000);
    check!(time::rdtsc_ordered() - start >= hz / 4000, "a millisecond is too short");
});

simd_fn! {
    /// Adds with SSE, at whatever CPL it is run.
    extern "C" fn sse_sum(x: u64) -> u64 {
        let sum: u64;
        insn_raw!(
            "movq xmm0, {0}", "movq xmm1, {0}", "paddq xmm0, xmm1", "movq {1}, xmm0";
            in(reg) x, out(reg) sum
        );
        sum
    }
}

test!(sse, "A function that asked for SSE may hold it; at CPL 3 it runs on every host.", || {
    check_eq!(user::call(sse_sum, 21), Ok(42));
});

test!(string_io, "`rep outs` and `rep ins` move what they should.", || {
    // The PIT's channel 2 in mode 3, low byte then high byte.
    port::out8(0x43, 0b1011_0110);
    port::out8_rep(0x42, &[0xff, 0xff]);
    port::out8(0x43, 0b1110_1000); // latch the status of channel 2
    let mut status = [0; 1];
    port::in8_rep(0x42, &mut status);
    if status[0] == 0xff {
        skip!("no PIT with a read-back command");
    }
    check_eq!(status[0] & 0x3f, 0b0011_0110);
});
