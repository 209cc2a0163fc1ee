//! Interrupts that are pending, in service, held back or due when the guest goes into another VM.

use crate::{PATIENCE, transplant};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use payload_rt::apic::{self, Apic, Delivery, Destination, Mode, Register, Timer};
use payload_rt::lab::{self, Chain, Rule, kind, kvm};
use payload_rt::trap::NMI;
use payload_rt::{
    asm_code, check, check_eq, check_ok, cpuid, frames, idt, ioapic, irq, mem, pic, reg, test,
    testdev, time,
};

const VECTOR: u8 = 0x52;
/// SDM volume 4, 2.1: IA32_TSC_DEADLINE.
const TSC_DEADLINE: u32 = 0x6e0;

fn enabled() -> Apic {
    let apic = apic::local();
    apic.enable();
    apic
}

// KVM_GET_LAPIC, KVM_SET_LAPIC.
test!(pending, "An interrupt that is pending with interrupts off arrives in the new VM.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.self_ipi(VECTOR);
    check!(apic.bit(Register::IRR, VECTOR), "no request");
    transplant();
    check!(apic.bit(Register::IRR, VECTOR), "the request was lost");
    check_eq!(irq::count(VECTOR), 0, "interrupts while they are off");
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not arrive");
    check!(!apic.bit(Register::IRR, VECTOR), "the request is still there");
});

static STILL: AtomicBool = AtomicBool::new(false);

test!(in_service, "An interrupt in service is so in the new VM, until its EOI.", || {
    const HIGHER: u8 = 0x72;
    irq::count_only(VECTOR);
    irq::handle(HIGHER, |_| {
        transplant();
        let apic = apic::local();
        STILL.store(apic.bit(Register::ISR, HIGHER), SeqCst);
        // Of a lower class: it has to wait for the EOI.
        apic.self_ipi(VECTOR);
        irq::let_in(2_000);
        STILL.fetch_and(irq::count(VECTOR) == 0, SeqCst);
        apic.eoi();
        STILL.fetch_and(!apic.bit(Register::ISR, HIGHER), SeqCst);
    });
    let apic = enabled();
    apic.self_ipi(HIGHER);
    check!(irq::wait_for(HIGHER, 1, PATIENCE), "the first did not arrive");
    check!(STILL.load(SeqCst), "it was not in service, did not hold the other back, or stayed");
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "the other did not arrive");
});

/// Registers that are state: not the current count, which runs.
fn registers(apic: Apic) -> [u32; 36] {
    let names = [
        Register::ID,
        Register::VERSION,
        Register::TPR,
        Register::LDR,
        Register::SVR,
        Register::ESR,
        Register::LVT_TIMER,
        Register::LVT_THERMAL,
        Register::LVT_PERF,
        Register::LVT_LINT0,
        Register::LVT_LINT1,
        Register::LVT_ERROR,
    ];
    core::array::from_fn(|i| match i {
        0..12 => apic.read(names[i]),
        _ => {
            // ISR, TMR and IRR: eight registers each, without a gap.
            apic.read(Register(0x100 + 0x10 * (i as u16 - 12)))
        }
    })
}

/// Fills registers of the local APIC in a mode, and checks that the new VM's has them.
fn check_registers(mode: Mode) {
    let apic = apic::set_mode(mode);
    apic.enable();
    apic.set_tpr(0x30);
    apic.write(Register::LVT_THERMAL, 0x1_0041);
    apic.write(Register::LVT_LINT0, 0x1_0042);
    apic.write(Register::LVT_ERROR, 0x43);
    apic.set_timer(Timer::Periodic, 0x44);
    apic.self_ipi(0x21);
    apic.self_ipi(0xa1);
    let before = registers(apic);
    let base = reg::rdmsr(reg::APIC_BASE);
    transplant();
    check_eq!(reg::rdmsr(reg::APIC_BASE), base, "IA32_APIC_BASE");
    check_eq!(apic::local().mode(), mode, "mode");
    check_eq!(registers(apic), before, "registers of the local APIC");
    apic.set_tpr(0);
    irq::count_only(0xa1);
    irq::count_only(0x21);
    check!(irq::wait_for(0x21, 1, PATIENCE), "the lower of two requests did not arrive");
    check_eq!(irq::count(0xa1), 1, "the higher one");
}

test!(xapic, "The registers of an xAPIC are kept.", || check_registers(Mode::XApic));

test!(x2apic, "The registers of an x2APIC are kept.", || check_registers(Mode::X2Apic));

test!(deadline, "A TSC deadline that is set is set in the new VM, and fires there.", || {
    // SDM volume 3, 12.5.4.1.
    cpuid::TSC_DEADLINE.require();
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::Deadline, VECTOR);
    let at = time::rdtsc() + time::tsc_hz() / 5;
    reg::wrmsr(TSC_DEADLINE, at).expect("the MSR is there");
    transplant();
    if time::rdtsc() < at {
        check_eq!(reg::rdmsr(TSC_DEADLINE), Ok(at), "the deadline");
        check_eq!(irq::count(VECTOR), 0, "interrupts before it");
    }
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not fire");
    check!(time::rdtsc() >= at, "it fired before its time");
    check_eq!(reg::rdmsr(TSC_DEADLINE), Ok(0), "the deadline behind it");
});

test!(halted, "A guest that the host halts goes on when an interrupt comes.", || {
    // KVM_SET_MP_STATE, KVM_MP_STATE_HALTED.
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::OneShot, VECTOR);
    reg::sti();
    apic.start_timer(100_000_000);
    let set = lab::set(kvm::SET_MP_STATE, &kvm::mp_state::HALTED);
    let came = irq::count(VECTOR);
    reg::cli();
    check_ok!(set);
    check_eq!(came, 1, "interrupts when it goes on");
    check_eq!(lab::get(kvm::GET_MP_STATE), Ok(kvm::mp_state::RUNNABLE));
});

test!(one_shot, "A one-shot timer that runs goes on, and fires once.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::OneShot, VECTOR);
    apic.start_timer(200_000_000);
    let before = apic.read(Register::TIMER_CURRENT);
    transplant();
    let after = apic.read(Register::TIMER_CURRENT);
    check!(after <= before, "the current count rose from {before} to {after}");
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not fire");
    check_eq!(apic.read(Register::TIMER_CURRENT), 0, "current count");
    irq::let_in(2_000);
    check_eq!(irq::count(VECTOR), 1, "interrupts");
});

test!(periodic, "A periodic timer goes on.", || {
    irq::count_only(VECTOR);
    let apic = enabled();
    apic.set_timer(Timer::Periodic, VECTOR);
    apic.start_timer(5_000_000);
    check!(irq::wait_for(VECTOR, 1, PATIENCE), "it did not fire in the old VM");
    transplant();
    check_eq!(apic.read(Register::TIMER_INITIAL), 5_000_000, "initial count");
    let count = irq::count(VECTOR);
    check!(irq::wait_for(VECTOR, count + 3, PATIENCE), "it stopped at {count}");
    apic.start_timer(0);
});

static ARRIVED_AT: AtomicU64 = AtomicU64::new(0);

// SDM volume 2, STI. The exit is at a breakpoint of the host's, on the instruction behind STI.
test!(sti_shadow, "The shadow of STI is kept: an interrupt arrives one instruction later.", || {
    irq::handle(VECTOR, |frame| {
        ARRIVED_AT.store(frame.rip, SeqCst);
        apic::eoi();
    });
    let code = frames::alloc().address();
    check_ok!(mem::write_bytes(code, asm_code!("sti", "nop", "nop", "nop", "cli", "ret")));
    let mut chain = Chain::new();
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    chain.set(kvm::SET_GUEST_DEBUG, kvm::GuestDebug::default());
    let moved = chain.ask(lab::op::TRANSPLANT, &[]);
    check_ok!(lab::record(&[Rule::on(kind::DEBUG).then(&chain).limit(1)]));
    enabled().self_ipi(VECTOR);
    let at_nop = [code + 1, 0, 0, 0, 0, 0, 0, 0x402];
    check_ok!(lab::guest_debug(kvm::debug::ENABLE | kvm::debug::USE_HW_BP, at_nop));
    check_ok!(mem::call(code));
    check_ok!(chain.result(moved));
    check!(events.read().interrupt_shadow != 0, "no shadow behind STI");
    check_eq!(ARRIVED_AT.load(SeqCst), code + 2, "where the interrupt arrived");
});

static DEPTH: AtomicU32 = AtomicU32::new(0);
static DEEPEST: AtomicU32 = AtomicU32::new(0);
static MASKED: AtomicU32 = AtomicU32::new(0);

// SDM volume 3, 7.7.1; KVM_GET_VCPU_EVENTS, `nmi.masked` and `nmi.pending`.
test!(nmi_blocked, "NMIs stay blocked in the handler of one, and another one is kept.", || {
    idt::set_ist(NMI, 0);
    irq::handle(NMI, |_| {
        DEEPEST.fetch_max(DEPTH.fetch_add(1, SeqCst) + 1, SeqCst);
        if irq::count(NMI) == 1 {
            let apic = apic::local();
            apic.send(Delivery::Nmi, Destination::Physical(apic.id()));
            transplant();
            MASKED.store(check_ok!(lab::events()).nmi_masked.into(), SeqCst);
            time::delay(500);
        }
        DEPTH.fetch_sub(1, SeqCst);
    });
    let apic = enabled();
    apic.send(Delivery::Nmi, Destination::Physical(apic.id()));
    check!(time::wait_until(PATIENCE, || irq::count(NMI) >= 2), "{} NMIs", irq::count(NMI));
    time::delay(500);
    check_eq!(irq::count(NMI), 2, "NMIs");
    check_eq!(DEEPEST.load(SeqCst), 1, "depth");
    check_eq!(MASKED.load(SeqCst), 1, "nmi.masked in the handler");
    check_eq!(check_ok!(lab::events()).nmi_masked, 0, "nmi.masked behind it");
});

const PIN: u8 = 20;

/// Whether the I/O APIC waits for an EOI.
fn remote_irr() -> bool {
    ioapic::entry(PIN) & ioapic::REMOTE_IRR != 0
}

/// How often the line's handler ran, and what it saw.
static SEEN: AtomicU32 = AtomicU32::new(0);

// KVM_GET_IRQCHIP; 82093AA datasheet, 3.2.4.
test!(
    level,
    "A level interrupt in service keeps remote IRR, and comes again while the line is high.",
    || {
        testdev::require();
        irq::handle(VECTOR, |_| {
            if irq::count(VECTOR) == 1 {
                SEEN.fetch_or(remote_irr().into(), SeqCst);
                transplant();
                SEEN.fetch_or(u32::from(remote_irr()) << 1, SeqCst);
            } else {
                testdev::set_line(PIN, false);
            }
            apic::eoi();
        });
        let apic = enabled();
        let to = ioapic::destination(apic.id() as u8);
        ioapic::set_entry(PIN, u64::from(VECTOR) | ioapic::LEVEL | to);
        testdev::set_line(PIN, true);
        check!(irq::wait_for(VECTOR, 2, PATIENCE), "{} interrupts", irq::count(VECTOR));
        irq::let_in(2_000);
        check_eq!(irq::count(VECTOR), 2, "interrupts");
        check_eq!(SEEN.load(SeqCst), 0b11, "remote IRR before (1) and after (2)");
        check!(!remote_irr(), "remote IRR after the EOI");
    }
);

test!(ioapic_entries, "Redirection entries are kept, and masked ones stay masked.", || {
    ioapic::require();
    for pin in 0..ioapic::entries() {
        let masked = if pin % 3 == 0 { 0 } else { ioapic::MASKED };
        ioapic::set_entry(pin, (0x30 + u64::from(pin)) | masked | ioapic::destination(pin));
    }
    transplant();
    for pin in 0..ioapic::entries() {
        let masked = if pin % 3 == 0 { 0 } else { ioapic::MASKED };
        let entry = (0x30 + u64::from(pin)) | masked | ioapic::destination(pin);
        check_eq!(ioapic::entry(pin), entry, "entry {pin}");
    }
});

// 8259A datasheet, ICW and OCW.
test!(pics, "The PICs keep masks, vectors and requests.", || {
    pic::require();
    testdev::require();
    pic::init(0x40);
    pic::set_mask(0x5fbb);
    testdev::set_line(5, true);
    testdev::set_line(13, true);
    let before = (pic::mask(), pic::requests(), pic::in_service());
    check_eq!(before.1 & 0x2020, 0x2020, "requests");
    transplant();
    check_eq!(
        (pic::mask(), pic::requests(), pic::in_service()),
        before,
        "masks, requests, in service"
    );
    let chip = check_ok!(lab::irqchip(0)).chip;
    // struct kvm_pic_state: the sixth byte is the vector's base.
    check_eq!(chip[0].to_le_bytes()[5], 0x40, "vector of IRQ 0");
});

// KVM_GET_PIT2, KVM_SET_PIT2.
test!(pit, "The PIT's channels keep their modes and counts, and channel 2 goes on.", || {
    use payload_rt::port;
    port::out8(0x43, 0b1011_0100); // channel 2, both bytes, mode 2
    port::out8(0x42, 0x34);
    port::out8(0x42, 0xf2);
    port::out8(0x61, port::in8(0x61) & !2 | 1);
    let programmed =
        |pit: kvm::Pit2| pit.channels.map(|c| (c.count, c.mode, c.rw_mode, c.bcd, c.gate));
    let before = programmed(check_ok!(lab::get(kvm::GET_PIT2)));
    transplant();
    check_eq!(programmed(check_ok!(lab::get(kvm::GET_PIT2))), before, "channels");
    check_eq!(before[2], (0xf234, 2, 3, 0, 1), "channel 2");
    let count = || {
        port::out8(0x43, 0x80); // latch channel 2
        u16::from_le_bytes([port::in8(0x42), port::in8(0x42)])
    };
    let first = count();
    check!(time::wait_until(PATIENCE, || count() != first), "the count stands still at {first:#x}");
});
