//! The lab itself: each of its operations does what it says, seen from both sides.
//!
//! Linux, Documentation/virt/kvm/api.rst, by section.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::lab::{self, Advice, Backing, Errno, Memory, Rule, kind, kvm};
use payload_rt::*;

const PAGE: u64 = 4096;

/// An MSR that no processor has: KVM knows none of the numbers that Intel reserved for VMMs'
/// software beyond its own (SDM volume 4, 2.1).
const NO_MSR: u32 = 0x4000_1234;

test!(registers, "The host sees the registers that the guest has, and can set them.", || {
    let sregs = check_ok!(lab::sregs());
    check_eq!((sregs.cr3, sregs.cr0), (reg::cr3(), reg::cr0()));
    check_eq!(sregs.cs.selector, reg::cs());
    check_eq!(sregs.efer, check_ok!(reg::rdmsr(reg::EFER)));
    let regs = check_ok!(lab::regs());
    check!(cpu::stack_range().contains(&regs.rsp), "rsp {:#x}", regs.rsp);
    check_ok!(lab::set_sregs(&kvm::Sregs { cr2: 0x1234_5000, ..sregs }));
    check_eq!(reg::cr2(), 0x1234_5000);
});

test!(refused, "What the lab does not know, or may not do, is an error number.", || {
    let ask = |op, args: &[u64]| lab::ask(op, args).err();
    check_eq!(ask(99, &[]), Some(Errno::EINVAL), "an operation");
    check_eq!(ask(lab::op::IOCTL, &[3]), Some(Errno::EINVAL), "a target");
    // KVM_RUN is not on the list.
    let run = u64::from(kvm::io(0x80));
    check_eq!(ask(lab::op::IOCTL, &[lab::target::VCPU, run]), Some(Errno::EPERM));
    let get = u64::from(kvm::ior(0x81, 144));
    let get_regs = |at, len| ask(lab::op::IOCTL, &[lab::target::VCPU, get, at, len]);
    check_eq!(get_regs(0xc000_0000, 144), Some(Errno::EFAULT), "outside of RAM");
    check_eq!(get_regs(u64::MAX, 144), Some(Errno::EFAULT), "around the end of memory");
    check_eq!(get_regs(0x8000, 143), Some(Errno::EINVAL), "too short");
    check_eq!(get_regs(0x8000, 2 << 20), Some(Errno::E2BIG), "too long");
    check_eq!(lab::enable_cap(163, 0).err(), Some(Errno::EPERM), "a host's pointer");
    check_eq!(
        ask(lab::op::SLOT, &[0, 0, lab::AREA, PAGE, 0, 0]),
        Some(Errno::EPERM),
        "the board's"
    );
    check_eq!(
        ask(lab::op::SLOT, &[20, 0, lab::AREA, PAGE, 7, 0]),
        Some(Errno::EFAULT),
        "no memory"
    );
});

test!(unreachable, "A request that is not in memory ends the VM.", || {
    port::out32(lab::PORT, 0xd000_0000);
    fail!("the VMM went on");
});

// 4.35: a slot is made, moved and deleted by its size and address.
test!(slots, "A slot shows lab memory, moves, and is gone.", || {
    let memory = check_ok!(Memory::new(4 * PAGE, Backing::Small));
    let mut slot = check_ok!(memory.slot(lab::AREA, PAGE, 2 * PAGE, 0));
    check_ok!(mem::write(lab::AREA + 8, 0x1122_3344_5566_7788u64));
    check_eq!(memory.read_u64(PAGE + 8), Ok(0x1122_3344_5566_7788));
    check_ok!(memory.write_u64(2 * PAGE, 42));
    check_eq!(mem::read::<u64>(lab::AREA + PAGE), Ok(42));
    check_eq!(mem::read::<u64>(lab::AREA + 2 * PAGE), Ok(u64::MAX), "behind it is nothing");
    let to = lab::AREA + (1 << 20);
    check_ok!(slot.move_to(to));
    check_eq!(mem::read::<u64>(lab::AREA + 8), Ok(u64::MAX), "it has moved");
    check_eq!(mem::read::<u64>(to + 8), Ok(0x1122_3344_5566_7788));
    let log = check_ok!(lab::record(&[Rule::on(kind::MMIO).range(to..=to + 0xfff).value(0x77)]));
    check_ok!(slot.delete());
    check_eq!(mem::read::<u32>(to + 8), Ok(0x77), "the test's own answer");
    let exit = log.get(0);
    check_eq!(log.count(), 1);
    check_eq!(exit.map(|e| (e.kind, e.words[0], e.words[1])), Some((kind::MMIO, to + 8, 4)));
    check_ok!(slot.set());
    check_eq!(mem::read::<u64>(to + 8), Ok(0x1122_3344_5566_7788), "it is back");
});

test!(aliases, "Two slots show the same memory.", || {
    let memory = check_ok!(Memory::new(PAGE, Backing::Small));
    check_ok!(memory.slot(lab::AREA, 0, PAGE, 0));
    check_ok!(memory.slot(lab::AREA + PAGE, 0, PAGE, 0));
    check_ok!(mem::write(lab::AREA, 7u64));
    check_eq!(mem::read::<u64>(lab::AREA + PAGE), Ok(7));
});

test!(host_side, "The host fills, sums up and drops pages that the guest has.", || {
    let memory = check_ok!(Memory::new(4 * PAGE, Backing::Small));
    check_ok!(memory.slot(lab::AREA, 0, 4 * PAGE, 0));
    check_ok!(memory.fill(PAGE, PAGE, 0xabcd_ef01_2345_6789));
    check_eq!(mem::read::<u64>(lab::AREA + 2 * PAGE - 8), Ok(0xabcd_ef01_2345_6789));
    check_eq!(mem::read::<u64>(lab::AREA + 2 * PAGE), Ok(0));
    let mut bytes = [0; 64];
    check_ok!(mem::read_bytes(lab::AREA + PAGE, &mut bytes));
    check_eq!(memory.hash(PAGE, 64), Ok(lab::hash(&bytes)));
    check_ok!(memory.advise(PAGE, PAGE, Advice::Drop));
    check_eq!(mem::read::<u64>(lab::AREA + PAGE), Ok(0), "dropped");
    check_eq!(memory.read(4 * PAGE - 4, &mut bytes).err(), Some(Errno::EFAULT), "over the end");
});

// 4.8: the bitmap has the pages written since the last call.
test!(dirty_log, "The log names the pages that were written, and no others.", || {
    let memory = check_ok!(Memory::new(100 * PAGE, Backing::Small));
    let slot = check_ok!(memory.slot(lab::AREA, 0, 100 * PAGE, kvm::slot::LOG_DIRTY));
    let mut bitmap = [u64::MAX; 2];
    check_ok!(mem::read::<u64>(lab::AREA + 9 * PAGE));
    for page in [0, 5, 99] {
        check_ok!(mem::write(lab::AREA + page * PAGE, 1u8));
    }
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [1 | 1 << 5, 1 << (99 - 64)]);
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [0, 0], "told once");
    check_ok!(mem::write(lab::AREA + 5 * PAGE, 1u8));
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [1 << 5, 0], "again");
});

// 8.29: the ring has an entry for each page that became dirty.
test!(dirty_ring, "The ring names the pages that were written, in their order.", || {
    let memory = check_ok!(Memory::new(64 * PAGE, Backing::Small));
    let slot = check_ok!(memory.slot(lab::AREA, 0, 64 * PAGE, kvm::slot::LOG_DIRTY));
    let mut pages = [lab::DirtyPage::default(); 16];
    check_ok!(lab::harvest(&mut pages));
    check_ok!(lab::reset_dirty_rings());
    for page in [9, 3, 40] {
        check_ok!(mem::write(lab::AREA + page * PAGE, 1u8));
    }
    check_eq!(lab::harvest(&mut pages), Ok(3));
    for (found, page) in pages.iter().zip([9, 3, 40]) {
        check_eq!((found.slot, found.page), (slot.id, page));
    }
    check_eq!(lab::reset_dirty_rings(), Ok(3));
});

// 4.87: each instruction is followed by a debug exit.
test!(single_step, "A single-step log holds the address of each instruction.", || {
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG)]));
    check_ok!(lab::guest_debug(kvm::debug::ENABLE | kvm::debug::SINGLE_STEP, [0; 8]));
    let start: u64;
    insn_raw!("lea {}, [rip + 771f]", "771:", "nop", "nop", "nop"; out(reg) start);
    check_ok!(lab::guest_debug(0, [0; 8]));
    check_ok!(log.stop());
    let at = |pc: u64| log.entries().position(|e| e.words[0] == pc);
    let Some(first) = at(start) else { fail!("{} steps, none at {start:#x}", log.count()) };
    for n in 1..=3 {
        check_eq!(at(start + n), Some(first + n as usize), "nop {n}");
    }
    let bs = log.entries().all(|e| e.words[1] & 1 << 14 != 0);
    check!(bs, "DR6 without BS: {:x?}", log.get(0));
});

test!(software_breakpoint, "`int3` leaves the guest, which goes on behind it.", || {
    let log = check_ok!(lab::record(&[Rule::on(kind::DEBUG).skip(1)]));
    check_ok!(lab::guest_debug(kvm::debug::ENABLE | kvm::debug::USE_SW_BP, [0; 8]));
    let (at, after): (u64, u64);
    insn_raw!(
        "lea {}, [rip + 771f]", "771:", "int3", "mov {}, 5";
        out(reg) at, out(reg) after
    );
    check_ok!(lab::guest_debug(0, [0; 8]));
    check_eq!(after, 5);
    check_eq!(log.count(), 1);
    check_eq!(log.get(0).map(|e| (e.words[0], e.words[3])), Some((at, 3)));
});

// 7.21: accesses that KVM does not know leave the guest.
test!(msr_exits, "An MSR that leaves the guest is answered as the test says.", || {
    lab::require_cap(kvm::cap::X86_USER_SPACE_MSR, "X86_USER_SPACE_MSR");
    check_ok!(lab::msr_exits(2));
    let rules = [
        Rule::on(kind::RDMSR).range(NO_MSR.into()..=NO_MSR.into()).value(0x1234_5678_9abc),
        Rule::on(kind::WRMSR).fault(),
    ];
    let log = check_ok!(lab::record(&rules));
    check_eq!(reg::rdmsr(NO_MSR), Ok(0x1234_5678_9abc));
    let fault = check_err!(reg::wrmsr(NO_MSR, 77));
    check!(fault.is(trap::GP, 0), "{fault}");
    let kinds = [0, 1].map(|i| log.get(i).map(|e| (e.kind, e.words[0], e.words[1])));
    check_eq!(kinds[0], Some((kind::RDMSR, NO_MSR.into(), 0)));
    check_eq!(kinds[1], Some((kind::WRMSR, NO_MSR.into(), 77)));
});

// 4.97: a filter takes accesses away from what it denies.
test!(msr_filter, "A filter denies what it names.", || {
    lab::require_cap(kvm::cap::X86_MSR_FILTER, "X86_MSR_FILTER");
    check_ok!(lab::msr_exits(4));
    let first = reg::STAR;
    let range = lab::MsrRange { flags: 3, first, count: 2, bitmap: &[0b10] };
    check_ok!(lab::msr_filter(false, &[range]));
    let log = check_ok!(lab::record(&[Rule::on(kind::RDMSR).value(0x55)]));
    check_eq!(reg::rdmsr(first), Ok(0x55), "denied");
    check_ok!(reg::rdmsr(first + 1), "let through");
    check_eq!(log.count(), 1);
    check_ok!(lab::msr_filter(false, &[]));
    check!(reg::rdmsr(first) != Ok(0x55), "the filter is still there");
});

test!(requests_at_exits, "The host carries out requests at an exit.", || {
    let mut chain = lab::Chain::new();
    let regs = chain.get(kvm::GET_REGS);
    let rule = Rule::on(kind::MMIO).range(lab::AREA..=lab::AREA).value(3).then(&chain);
    check_ok!(lab::record(&[rule]));
    let at: u64;
    insn_raw!(
        "mov r12, 0x77", "lea {at}, [rip + 771f]", "mov {v}, [{area}]", "771:";
        at = out(reg) at, v = out(reg) _, area = in(reg) lab::AREA, out("r12") _
    );
    check_ok!(chain.all_ok());
    check_eq!((regs.read().r12, regs.read().rip), (0x77, at));
});

test!(survives_a_triple_fault, "A guest goes on after a triple fault, as it was before.", || {
    let none = reg::Table { limit: 0, base: 0 };
    let idt = check_ok!(reg::sidt());
    let exit = check_err!(lab::until_exit(kind::SHUTDOWN, || {
        check_ok!(reg::lidt(none));
        insn_raw!("ud2");
    }));
    check_eq!(exit.kind, kind::SHUTDOWN);
    check_eq!(check_ok!(reg::sidt()).limit, idt.limit);
    check_eq!(check_ok!(lab::until_exit(kind::SHUTDOWN, || 5)), 5);
});

test!(event_injection, "An exception that the host injects arrives.", || {
    let mut events = check_ok!(lab::events());
    events.exception_injected = 1;
    events.exception_nr = trap::UD;
    events.exception_has_error_code = 0;
    let caught = check_err!(trap::catch(|| lab::set_events(&events)));
    check_eq!(caught.vector, trap::UD);
});

// 4.114: the header alone says how long the state is.
test!(nested_state, "The nested state is told, or there is none.", || {
    let mut bytes = [0; 128];
    match lab::check_extension(kvm::cap::NESTED_STATE) {
        0 => check!(lab::nested_state(&mut bytes).is_err(), "KVM has none, and gives one"),
        _ => check_eq!(lab::nested_state(&mut bytes), Ok(128)),
    }
});

test!(
    transplant,
    "The guest goes on in another VM: memory, registers, and a timer that runs.",
    || {
        const VECTOR: u8 = 0x51;
        let memory = check_ok!(Memory::new(PAGE, Backing::Small));
        check_ok!(memory.slot(lab::AREA, 0, PAGE, 0));
        check_ok!(mem::write(lab::AREA, 0x1234u64));
        irq::count_only(VECTOR);
        check_ok!(reg::wrmsr(reg::STAR, 0x1b_0008_0000_0000));
        check_ok!(reg::set_dr(1, 0x4_5678));
        let apic = apic::local();
        apic.enable();
        apic.set_timer(apic::Timer::OneShot, VECTOR);
        let before = time::rdtsc();
        apic.start_timer(2_000_000);
        check_ok!(lab::transplant());
        check!(time::rdtsc() > before, "the TSC went back");
        check!(irq::wait_for(VECTOR, 1, 10_000_000), "the timer was lost");
        check_eq!(mem::read::<u64>(lab::AREA), Ok(0x1234));
        check_eq!(reg::rdmsr(reg::STAR), Ok(0x1b_0008_0000_0000));
        check_eq!(reg::dr(1), Ok(0x4_5678));
        check_ok!(lab::transplant(), "a second time");
    }
);

test!(transplant_lines, "Interrupt lines of the board lead to the new VM.", || {
    testdev::require();
    const VECTOR: u8 = 0x52;
    irq::count_only(VECTOR);
    apic::local().enable();
    ioapic::set_entry(20, u64::from(VECTOR) | ioapic::destination(apic::local().id() as u8));
    check_ok!(lab::transplant());
    testdev::pulse(20);
    check!(irq::wait_for(VECTOR, 1, 10_000_000), "nothing arrives in the new VM");
});

test!(userfault, "Pages appear when they are touched.", || {
    const SEED: u64 = 0x5eed_0000_0000_0000;
    let memory = check_ok!(Memory::new(16 * PAGE, Backing::Small));
    check_ok!(memory.slot(lab::AREA, 0, 16 * PAGE, 0));
    check_ok!(memory.userfault(0, 16 * PAGE, SEED));
    check_eq!(memory.userfaults(), Ok(0));
    for at in [3 * PAGE + 8, 9 * PAGE, 3 * PAGE] {
        check_eq!(mem::read::<u64>(lab::AREA + at), Ok(SEED ^ at));
    }
    check_eq!(memory.userfaults(), Ok(2));
});
