//! Identifiers that eight bits do not hold: what an x2APIC is for (SDM volume 3, 12.12). The machine
//! has few CPUs, whose identifiers are far apart, some with the same low byte.

use crate::{SETTLE, VECTOR, expect_at, logical, msr, read, start_all, write};
use crate::{clusters, host, messages};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::lab::{self, kvm};
use payload_rt::*;

const CPUS: usize = 4;
/// A pin of the I/O APIC that nothing else uses.
const PIN: u8 = 20;
/// Where `KVM_GET_LAPIC` has the identifier.
const ID: usize = 0x20;

/// Starts all CPUs, and checks that their identifiers are as far apart as the case says, the last of
/// them above 255.
fn start() -> usize {
    irq::count_only(VECTOR);
    let cpus = start_all(CPUS);
    let step = smp::apic_id(1);
    check!(step.is_power_of_two() && step >= 128, "identifiers {step} apart: the case gives 128");
    for cpu in 0..cpus {
        check_eq!(smp::apic_id(cpu), cpu as u32 * step, "identifier of cpu {cpu}");
    }
    cpus
}

fn physical(to: u32) -> impl Fn() + Send {
    move || apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(to))
}

/// The CPU with this identifier.
fn is(id: u32) -> impl Fn(usize) -> bool {
    move |cpu| smp::apic_id(cpu) == id
}

test!(wide_identity, "MSR and CPUID have all bits of an identifier, CPUID's leaf 1 eight.", || {
    for cpu in 0..start() {
        let [id, ldr, initial, short] = smp::run_on(cpu, || {
            let short = cpuid::leaf(1, 0).ebx >> 24;
            [read(msr::ID), read(msr::LDR), apic::initial_id().into(), short.into()]
        });
        let wanted = smp::apic_id(cpu);
        check_eq!(id, wanted.into(), "MSR of cpu {cpu}");
        check_eq!(initial, wanted.into(), "CPUID leaf 0xb of cpu {cpu}");
        check_eq!(short, u64::from(wanted & 0xff), "CPUID leaf 1 of cpu {cpu}");
        check_eq!(ldr, logical(wanted).into(), "LDR of cpu {cpu}");
    }
});

test!(wide_levels, "CPUID's levels have as many bits as the identifiers need.", || {
    // SDM volume 3, 10.9.1: what is left of an identifier shifted by the last level is the package.
    let cpus = start();
    let Some(threads) = cpuid::get(0xb, 0) else { skip!("no CPUID leaf 0xb") };
    let Some(cores) = cpuid::get(0xb, 1) else { skip!("no CPUID leaf 0xb, level 1") };
    check_eq!(1 << (threads.eax & 0x1f), smp::apic_id(1), "identifiers of a core");
    check_eq!(smp::apic_id(cpus - 1) >> (cores.eax & 0x1f), 0, "package of the last CPU");
});

test!(wide_physical, "A physical destination is the one CPU with that identifier.", || {
    let cpus = start();
    for to in 0..cpus {
        let id = smp::apic_id(to);
        for from in [0, cpus - 1] {
            expect_at(cpus, from, VECTOR, "physical IPI", physical(id), is(id));
        }
    }
});

test!(
    wide_aliases,
    "An identifier that has only its low bits from a CPU's reaches nobody.",
    || {
        let cpus = start();
        let last = smp::apic_id(cpus - 1);
        for to in [last << 1, last << 1 | smp::apic_id(1), last | 1 << 16, 1 << 31, last | 1] {
            check!((0..cpus).all(|cpu| smp::apic_id(cpu) != to), "{to:#x} is a CPU's");
            expect_at(cpus, 0, VECTOR, "IPI to nobody", physical(to), |_| false);
        }
    }
);

test!(wide_broadcast, "All ones are everybody; 255, which is so for xAPICs, is nobody.", || {
    let cpus = start();
    for from in [0, cpus - 1] {
        expect_at(cpus, from, VECTOR, "IPI to 255", physical(0xff), |_| false);
        expect_at(cpus, from, VECTOR, "IPI to all ones", physical(u32::MAX), |_| true);
    }
});

test!(wide_shorthands, "Shorthands reach CPUs of all identifiers.", || {
    let cpus = start();
    for from in 0..cpus {
        for (shorthand, what) in [(1, "self"), (2, "all"), (3, "all but self")] {
            let send = move || write(msr::ICR, shorthand << 18 | 0x4000 | u64::from(VECTOR));
            expect_at(cpus, from, VECTOR, what, send, |cpu| match shorthand {
                1 => cpu == from,
                2 => true,
                _ => cpu != from,
            });
        }
    }
});

test!(
    wide_logical,
    "Logical identifiers follow from all bits: each CPU is in a cluster far off.",
    || {
        let cpus = start();
        for to in 0..cpus {
            let id = smp::apic_id(to);
            let own = logical(id);
            expect_at(cpus, 0, VECTOR, "logical IPI", clusters::to(own), is(id));
            expect_at(cpus, 0, VECTOR, "IPI to its cluster", clusters::to(own | 0xffff), is(id));
            let others = own & !0xffff | !own & 0xffff;
            expect_at(cpus, 0, VECTOR, "IPI to the rest of it", clusters::to(others), |_| false);
            let beside = own.wrapping_add(1 << 16);
            expect_at(cpus, 0, VECTOR, "IPI to the next cluster", clusters::to(beside), |_| false);
        }
    }
);

test!(wide_nmi, "An NMI reaches the one CPU with that identifier.", || {
    irq::handle(trap::NMI, |_| {});
    let cpus = start();
    for to in 0..cpus {
        let id = smp::apic_id(to);
        let send = move || apic::local().send(Delivery::Nmi, Destination::Physical(id));
        expect_at(cpus, cpus - 1 - to, trap::NMI, "NMI", send, is(id));
    }
});

test!(wide_init, "INIT stops the one CPU with that identifier.", || {
    let cpus = start();
    let last = cpus - 1;
    let id = smp::apic_id(last);
    apic::local().send(Delivery::Init, Destination::Physical(id));
    time::delay(SETTLE);
    // It waits for a start-up IPI: its APIC is disabled by software, and nothing comes to it.
    expect_at(cpus, 0, VECTOR, "broadcast beside INIT", physical(u32::MAX), |cpu| cpu != last);
});

test!(wide_messages, "An MSI reaches the CPU that both halves of its address name.", || {
    // Linux, Documentation/virt/kvm/api.rst, 7.1: the upper half has bits 31:8.
    let cpus = start();
    let send = |id| messages::send(messages::address(id), VECTOR.into());
    for to in 0..cpus {
        let id = smp::apic_id(to);
        expect_at(cpus, 0, VECTOR, "MSI", send(id), is(id));
    }
    let beyond = smp::apic_id(cpus - 1) << 1;
    expect_at(cpus, 0, VECTOR, "MSI to nobody", send(beyond), |_| false);
    expect_at(cpus, 0, VECTOR, "MSI to 255", send(0xff), |_| false);
});

test!(
    wide_io_apic,
    "The I/O APIC, with eight bits, reaches the CPU whose identifier they are.",
    || {
        let cpus = start();
        for to in 0..cpus {
            let id = smp::apic_id(to);
            let low = id & 0xff;
            ioapic::set_entry(PIN, u64::from(VECTOR) | ioapic::destination(low as u8));
            let raise = || {
                check_ok!(lab::irq_line(PIN.into(), true));
                check_ok!(lab::irq_line(PIN.into(), false));
            };
            expect_at(cpus, 0, VECTOR, "the pin", raise, is(low));
        }
    }
);

test!(wide_page, "The host sees all bits of an identifier, and can set what it sees.", || {
    let cpus = start();
    for cpu in 0..cpus {
        let id = smp::apic_id(cpu);
        let (page, set) = smp::run_on(cpu, || {
            let page = host::lapic();
            (page, lab::set(kvm::SET_LAPIC, &page))
        });
        check_eq!(host::word(&page, ID), id, "identifier of cpu {cpu} for the host");
        check_ok!(set, "set anew on cpu {cpu}");
        check_eq!(smp::run_on(cpu, || read(msr::ID)), id.into(), "and for itself");
    }
    expect_at(cpus, 0, VECTOR, "physical IPI", physical(smp::apic_id(cpus - 1)), |cpu| {
        cpu == cpus - 1
    });
});

test!(wide_timer, "The timer of a CPU with a long identifier is its own.", || {
    let cpus = start();
    let last = cpus - 1;
    let shot = || {
        write(msr::LVT_TIMER, VECTOR.into());
        write(msr::DIVIDE, 0xb);
        write(msr::INITIAL, 1000);
    };
    expect_at(cpus, last, VECTOR, "a timer", shot, |cpu| cpu == last);
    check_eq!(smp::run_on(last, || read(msr::CURRENT)), 0, "its count");
});
