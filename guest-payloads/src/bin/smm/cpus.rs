//! SMIs on other CPUs, and INIT while one is in SMM (APM 10.3.5; SDM volume 3, "Interrupt Command
//! Register (ICR)" and "System Management Mode").

use crate::PATIENCE;
use crate::code::{self, SMBASE, note, saved};
use crate::map::{CR0, RIP, SMBASE_FIELD};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::lab::{Chain, kvm};
use payload_rt::{asm_code, check, check_eq, check_ok, mem, reg, smp, test, time};

/// Waits until this many SMIs were taken.
fn wait_for_count(n: u32) {
    let came = time::wait_until(PATIENCE, || code::count() >= n);
    check!(came, "{} SMIs taken of {n}", code::count());
}

/// As [`wait_for_count`], and until this CPU has left SMM.
fn wait_for_end(n: u32, cpu: usize) {
    wait_for_count(n);
    smp::run_on(cpu, || ());
    check_eq!(code::count(), n, "SMIs taken");
}

/// SMM code that notes the local APIC's identifier of the CPU that runs it.
fn noting_cpu() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov edi, 0xfee00020",
        "mov eax, dword ptr [edi]",
        "shr eax, 24",
        "mov dword ptr [esi + 0x40], eax",
    )
}

test!(
    from_another_cpu,
    "An SMI by ICR is taken by the CPU that it is for, on its own SMBASE.",
    || {
        apic::set_mode(apic::Mode::XApic).enable();
        let cpus = smp::start();
        code::install(&[noting_cpu()]);
        for to in 0..cpus {
            let from = (to + 1) % cpus;
            let before = code::count();
            let id = smp::apic_id(to);
            smp::run_on(from, || apic::local().send(Delivery::Smi, Destination::Physical(id)));
            wait_for_end(before + 1, to);
            check_eq!(note(0), id, "the CPU that took it");
        }
    }
);

test!(to_all_others, "An SMI to all but the sender is not the sender's.", || {
    apic::set_mode(apic::Mode::XApic).enable();
    smp::start();
    code::install(&[noting_cpu()]);
    apic::local().send(Delivery::Smi, Destination::Others);
    wait_for_end(1, 1);
    check_eq!(note(0), smp::apic_id(1), "the CPU that took it");
});

test!(own_bases, "SMBASE is each CPU's own.", || {
    const OTHER: u64 = 0x4_0000;
    smp::start();
    let smi_at = |cpu: usize| {
        let before = code::count();
        apic::local().send(Delivery::Smi, Destination::Physical(smp::apic_id(cpu)));
        wait_for_end(before + 1, cpu);
    };
    code::install(&[code::poking()]);
    code::poke(SMBASE_FIELD, 0, OTHER as u32);
    smi_at(1);
    // From now on this CPU's code is what it was, without the change, and the other's is elsewhere.
    code::install_at(OTHER, &[asm_code!(".code16", "mov dword ptr [esi + 0x40], 1")]);
    code::install(&[asm_code!(".code16", "mov dword ptr [esi + 0x44], 1")]);
    smi_at(0);
    check_eq!((note(0), note(1)), (0, 1), "code of cpu 1 and of cpu 0, after an SMI at cpu 0");
    check_eq!(u64::from(saved::<u32>(SMBASE_FIELD)), SMBASE, "SMBASE of cpu 0");
    code::set_note(1, 0);
    smi_at(1);
    check_eq!((note(0), note(1)), (1, 0), "code of cpu 1 and of cpu 0, after an SMI at cpu 1");
    check_eq!(mem::read(OTHER + SMBASE_FIELD), Ok(OTHER as u32), "SMBASE of cpu 1");
});

/// The page of real-mode code that a start-up IPI leads to.
const PAGE: u8 = 0x40;

/// Puts 16-bit code there.
fn put_start(code: &[u8]) {
    check_ok!(mem::write_bytes(u64::from(PAGE) << 12, code));
}

/// Starts CPU 1 there, with an INIT before it or without.
fn start_up(init: bool) {
    let (apic, to) = (apic::local(), Destination::Physical(smp::apic_id(1)));
    if init {
        apic.send(Delivery::Init, to);
        time::delay(200);
    }
    apic.send(Delivery::StartUp(PAGE), to);
}

/// SMM code that counts in its second note until the first one is set, and has the host carry out the
/// second chain then, which the fourth tells.
fn waiting() -> [&'static [u8]; 3] {
    let wait = asm_code!(
        ".code16",
        "2: inc dword ptr [esi + 0x44]",
        "pause",
        "cmp dword ptr [esi + 0x40], 0",
        "je 2b",
    );
    let tell = asm_code!(".code16", "mov dword ptr [esi + 0x4c], 1");
    [wait, code::asking_second(), tell]
}

test!(init_waits, "INIT in SMM waits for RSM, and is taken behind it.", || {
    smp::start();
    code::install(&waiting());
    let mut chain = Chain::new();
    let events = chain.get(kvm::GET_VCPU_EVENTS);
    code::ask_second(&chain);
    put_start(asm_code!(
        ".code16",
        "cli",
        "mov ax, 0x3600",
        "mov ds, ax",
        "mov dword ptr [0x48], 1",
        "2: hlt",
        "jmp 2b",
    ));
    let to = Destination::Physical(smp::apic_id(1));
    apic::local().send(Delivery::Smi, to);
    wait_for_count(1);
    apic::local().send(Delivery::Init, to);
    time::delay(2_000);
    let at = note(1);
    check!(time::wait_until(PATIENCE, || note(1) > at), "SMM does not go on after INIT");
    code::set_note(0, 1);
    check!(time::wait_until(PATIENCE, || note(3) == 1), "SMM does not end");
    // INIT comes with RSM, a moment later: a start-up IPI before it would be lost.
    let started = (0..100).any(|_| {
        start_up(false);
        time::wait_until(PATIENCE / 100, || note(2) == 1)
    });
    check!(started, "cpu 1 does not wait for its start-up IPI");
    check_ok!(chain.all_ok());
    let inside = events.read();
    check_eq!((inside.smi_smm, inside.smi_latched_init), (1, 1), "events in SMM");
});

test!(real_mode, "An SMI in real mode is taken, and RSM goes back there.", || {
    smp::start();
    let chain = code::smi_chain();
    code::install(&[]);
    put_start(asm_code!(
        ".code16",
        "cli",
        "mov bx, 0x4000",
        "mov ds, bx",
        "mov eax, dword ptr [0xf00]",
        "mov dx, 0x1ab0",
        "out dx, eax",
        "mov dword ptr [0xf04], 0x1234",
        "mov word ptr [0xf08], ds",
        "2: hlt",
        "jmp 2b",
    ));
    let at = u64::from(PAGE) << 12;
    check_ok!(mem::write(at + 0xf00, chain.address()));
    check_ok!(mem::write(at + 0xf04, 0_u32));
    start_up(true);
    let went_on = || mem::read(at + 0xf04) == Ok(0x1234_u32);
    check!(time::wait_until(PATIENCE, went_on), "cpu 1 does not go on; {} SMIs", code::count());
    check_eq!(code::count(), 1, "SMIs taken");
    check_eq!(mem::read(at + 0xf08), Ok(0x4000_u16), "DS");
    check_eq!(saved::<u64>(CR0) & reg::CR0_PE, 0, "CR0.PE in the map");
    check_eq!(saved::<u64>(RIP) & !0x3f, 0, "RIP in the map");
    check_eq!(saved::<u16>(0xfe10), 0x4000, "CS in the map");
});
