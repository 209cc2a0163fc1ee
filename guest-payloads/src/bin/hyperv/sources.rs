//! Synthetic interrupt sources, which the test device at port 0x3000 requests (TLFS, Virtual Interrupt
//! Controller).

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use crate::*;
use payload_rt::apic::Register;
use payload_rt::{check_eq, irq, smp, test};

const VECTOR: u8 = 0x60;

/// Requests an interrupt of this processor's source.
fn raise(sint: u64) {
    tell(command::ROUTE, 0, sint, 0);
    tell(command::RAISE, 0, sint, 0);
}

test!(sint_each, "Each of the 16 sources interrupts with its own vector.", || {
    Synic::start();
    for sint in 0..16 {
        let vector = VECTOR + sint as u8;
        open(sint, vector);
        raise(sint);
        expect_interrupts(vector, 1);
    }
});

test!(sint_masked, "A masked source does not interrupt, and has nothing pending later.", || {
    Synic::start();
    open(4, VECTOR);
    write(SINT0 + 4, 1 << 16 | u64::from(VECTOR));
    raise(4);
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 0, "masked");
    write(SINT0 + 4, VECTOR.into());
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 0, "no longer masked");
    raise(4);
    expect_interrupts(VECTOR, 1);
});

// Bit 17: auto EOI. The interrupt is not in service while it is handled.
test!(sint_auto_eoi, "An interrupt with auto EOI is at its end when it is delivered.", || {
    Synic::start();
    for (sint, auto) in [(5u64, true), (6, false)] {
        let vector = VECTOR + sint as u8;
        irq::handle(vector, |frame| {
            let vector = frame.vector as u8;
            if apic::local().bit(Register::ISR, vector) {
                apic::eoi();
                IN_SERVICE.fetch_add(1, SeqCst);
            }
        });
        write(SINT0 + sint as u32, u64::from(vector) | u64::from(auto) << 17);
        for times in 1..=3 {
            raise(sint);
            check!(irq::wait_for(vector, times, PATIENCE), "interrupt {times} of source {sint}");
        }
        check_eq!(IN_SERVICE.load(SeqCst), if auto { 0 } else { 3 }, "interrupts in service");
    }
});

/// Interrupts that were in service in their handler.
static IN_SERVICE: AtomicU32 = AtomicU32::new(0);

test!(sint_shared_vector, "Two sources may have one vector.", || {
    Synic::start();
    open(7, VECTOR);
    open(8, VECTOR);
    raise(7);
    expect_interrupts(VECTOR, 1);
    raise(8);
    expect_interrupts(VECTOR, 2);
    // One of them goes; the other stays.
    write(SINT0 + 7, 1 << 16 | u64::from(VECTOR));
    raise(7);
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 2, "the masked one");
    raise(8);
    expect_interrupts(VECTOR, 3);
});

test!(sint_vector_changes, "A source interrupts with the vector that it has by then.", || {
    Synic::start();
    open(9, VECTOR);
    open(9, VECTOR + 1);
    raise(9);
    expect_interrupts(VECTOR + 1, 1);
    check_eq!(irq::count(VECTOR), 0, "interrupts of the old vector");
});

test!(sint_without_route, "The test device has no interrupt for a source without a route.", || {
    Synic::start();
    open(10, VECTOR);
    tell(command::RAISE, 0, 10, 0);
    raise(10);
    expect_interrupts(VECTOR, 1);
    tell(command::UNROUTE, 0, 10, 0);
    tell(command::RAISE, 0, 10, 0);
    irq::let_in(10 * SETTLE);
    check_eq!(irq::count(VECTOR), 1, "interrupts");
});

test!(sint_other_processor, "A source of another processor interrupts that one.", || {
    irq::count_only(VECTOR);
    let cpus = smp::start();
    check!(cpus >= 2, "{cpus} CPUs: the case must give the machine two");
    for cpu in 1..cpus {
        smp::run_on(cpu, || {
            Synic::start();
            open(2, VECTOR);
        });
        tell(command::ROUTE, cpu as u32, 2, 0);
        tell(command::RAISE, cpu as u32, 2, 0);
        let came = payload_rt::time::wait_until(PATIENCE, || irq::count_on(cpu, VECTOR) == 1);
        check!(came, "no interrupt at cpu {cpu}");
    }
    irq::let_in(SETTLE);
    check_eq!(irq::count(VECTOR), 0, "interrupts at cpu 0");
});
