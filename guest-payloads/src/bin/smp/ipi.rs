//! Interprocessor interrupts: who gets which.

use crate::{in_each_mode, start_all};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use payload_rt::apic::{self, Delivery, Destination, Mode, Register};
use payload_rt::*;

const VECTOR: u8 = 0x45;
/// How long an interrupt may take that must come, in microseconds.
const PATIENCE: u64 = 5_000_000;
/// How long to look for an interrupt that must not come, in microseconds.
const SETTLE: u64 = 300;
/// More CPUs than these are not told apart here.
const MAX: usize = 64;

/// Interrupts on `vector` that each CPU took so far.
fn counts(cpus: usize, vector: u8) -> [u32; MAX] {
    let mut counts = [0; MAX];
    for (cpu, count) in counts.iter_mut().enumerate().take(cpus.min(MAX)) {
        *count = irq::count_on(cpu, vector);
    }
    counts
}

/// Has CPU `from` send, and checks that each CPU `to` chooses, and no other, takes one interrupt
/// on `vector` more than before.
fn expect_at(
    cpus: usize,
    from: usize,
    vector: u8,
    what: &str,
    send: impl Fn() + Send,
    to: impl Fn(usize) -> bool,
) {
    let before = counts(cpus, vector);
    smp::run_on(from, send);
    for cpu in (0..cpus).filter(|&cpu| to(cpu)) {
        let taken = || {
            if cpu == 0 {
                irq::let_in(1);
            }
            irq::count_on(cpu, vector) > before[cpu]
        };
        let came = time::wait_until(PATIENCE, taken);
        check!(came, "{what} from cpu {from}: vector {vector:#x} did not come to cpu {cpu}");
    }
    irq::let_in(SETTLE);
    for (cpu, (now, before)) in counts(cpus, vector).into_iter().zip(before).enumerate().take(cpus)
    {
        let took = now - before;
        check_eq!(took, u32::from(to(cpu)), "{what} from cpu {from}: interrupts at cpu {cpu}");
    }
}

test!(
    fixed_between_all_pairs,
    "A fixed IPI goes from each CPU to each, once, and to no other.",
    || {
        irq::count_only(VECTOR);
        let cpus = start_all();
        in_each_mode(cpus, |mode| {
            for from in 0..cpus {
                for to in 0..cpus {
                    let id = smp::apic_id(to);
                    let send =
                        || apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(id));
                    let what = if mode == Mode::X2Apic { "x2APIC IPI" } else { "xAPIC IPI" };
                    expect_at(cpus, from, VECTOR, what, send, |cpu| cpu == to);
                }
            }
        });
    }
);

test!(shorthands, "The shorthands self, all and all-but-self reach just those CPUs.", || {
    irq::count_only(VECTOR);
    let cpus = start_all();
    in_each_mode(cpus, |_| {
        for from in 0..cpus {
            let send = |whom| move || apic::local().send(Delivery::Fixed(VECTOR), whom);
            expect_at(cpus, from, VECTOR, "self", send(Destination::Own), |cpu| cpu == from);
            expect_at(cpus, from, VECTOR, "all", send(Destination::All), |_| true);
            expect_at(cpus, from, VECTOR, "others", send(Destination::Others), |cpu| cpu != from);
        }
    });
});

test!(
    physical_broadcast,
    "The physical destination of all ones (8 bits as xAPIC, 32 as x2APIC) is every CPU.",
    || {
        irq::count_only(VECTOR);
        let cpus = start_all();
        in_each_mode(cpus, |mode| {
            let id = if mode == Mode::X2Apic { u32::MAX } else { 0xff };
            let send = || apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(id));
            for from in 0..cpus {
                expect_at(cpus, from, VECTOR, "broadcast", send, |_| true);
            }
        });
    }
);

test!(absent_destination, "An IPI to an APIC that is not there goes nowhere.", || {
    irq::count_only(VECTOR);
    let cpus = start_all();
    in_each_mode(cpus, |mode| {
        let ids: &[u32] = match mode {
            // In 32 bits, none is to be taken for a CPU whose identifier ends in the same 8.
            Mode::X2Apic => &[0xfe, 0x100, 0x1_0000, 0x8000_0000, 0xffff_fffe],
            _ => &[0xfe],
        };
        for &id in ids {
            let send = || apic::local().send(Delivery::Fixed(VECTOR), Destination::Physical(id));
            expect_at(cpus, cpus - 1, VECTOR, "IPI to nobody", send, |_| false);
        }
    });
});

test!(nmi, "An NMI comes to the CPUs it is sent to, whatever their interrupt flag.", || {
    irq::handle(trap::NMI, |_| {});
    let cpus = start_all();
    in_each_mode(cpus, |_| {
        for from in 0..cpus {
            for to in (0..cpus).filter(|&to| to != from) {
                let id = Destination::Physical(smp::apic_id(to));
                let send = || apic::local().send(Delivery::Nmi, id);
                expect_at(cpus, from, trap::NMI, "NMI", send, |cpu| cpu == to);
            }
            let send = || apic::local().send(Delivery::Nmi, Destination::Others);
            expect_at(cpus, from, trap::NMI, "NMI to others", send, |cpu| cpu != from);
        }
    });
});

/// What CPU 1 did in `nmi_is_blocked_by_nmi`.
static IN_NMI: AtomicBool = AtomicBool::new(false);
static LEAVE_NMI: AtomicBool = AtomicBool::new(false);
static NESTED: AtomicBool = AtomicBool::new(false);

test!(
    nmi_waits_for_the_end_of_another,
    "An NMI that comes while another is handled waits for the IRET; of several, one is kept.",
    || {
        // SDM volume 3, 7.7.1: NMIs are blocked until the next IRET, and one is held pending.
        irq::handle(trap::NMI, |_| {
            if IN_NMI.swap(true, SeqCst) {
                NESTED.store(true, SeqCst);
            }
            while !LEAVE_NMI.load(SeqCst) {
                reg::pause();
            }
            IN_NMI.store(false, SeqCst);
        });
        start_all();
        let id = Destination::Physical(smp::apic_id(1));
        let apic = apic::local();
        apic.send(Delivery::Nmi, id);
        check!(time::wait_until(PATIENCE, || IN_NMI.load(SeqCst)), "no NMI came to cpu 1");
        for _ in 0..3 {
            apic.send(Delivery::Nmi, id);
            time::delay(SETTLE);
            check!(!NESTED.load(SeqCst), "cpu 1 took an NMI within its NMI handler");
            check_eq!(irq::count_on(1, trap::NMI), 1, "NMIs at cpu 1 before the first one's IRET");
        }
        LEAVE_NMI.store(true, SeqCst);
        let second = time::wait_until(PATIENCE, || irq::count_on(1, trap::NMI) >= 2);
        check!(second, "the NMI that came during another was lost");
        check_eq!(smp::run_on(1, cpu::index), 1);
        check_eq!(irq::count_on(1, trap::NMI), 2, "NMIs at cpu 1, of four sent");
    }
);

/// Puts a CPU's logical destination where `in_each_mode` and flat or cluster format want it.
fn set_logical(dfr: u32, ldr: u32) {
    let apic = apic::local();
    apic.write(Register::DFR, dfr);
    apic.write(Register::LDR, ldr << 24);
}

fn xapic(cpus: usize) {
    (0..cpus).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(Mode::XApic).enable()));
}

fn send_logical(mask: u32) -> impl Fn() + Send {
    move || apic::local().send(Delivery::Fixed(VECTOR), Destination::Logical(mask))
}

test!(logical_flat, "xAPIC, flat: each bit of a logical destination is a CPU.", || {
    irq::count_only(VECTOR);
    let cpus = start_all().min(8);
    xapic(cpus);
    for cpu in 0..cpus {
        smp::run_on(cpu, || set_logical(0xffff_ffff, 1 << cpu));
    }
    let all = (1_u32 << cpus) - 1;
    for from in 0..cpus {
        for mask in (0..=all).chain([0xff]) {
            let to = |cpu: usize| mask & 1 << cpu != 0;
            expect_at(cpus, from, VECTOR, "flat logical IPI", send_logical(mask), to);
        }
    }
    // Two CPUs that share a bit both match.
    smp::run_on(1, || set_logical(0xffff_ffff, 1));
    expect_at(cpus, 0, VECTOR, "shared bit", send_logical(1), |cpu| cpu < 2);
    // A CPU with no bit is none's destination.
    smp::run_on(1, || set_logical(0xffff_ffff, 0));
    expect_at(cpus, 0, VECTOR, "no bit", send_logical(2), |_| false);
});

test!(logical_cluster, "xAPIC, cluster: four bits name the cluster, four its CPUs.", || {
    irq::count_only(VECTOR);
    let cpus = start_all().min(8);
    xapic(cpus);
    // CPUs 0, 2, 4 are in cluster 1, the others in cluster 2; places by halves of their index.
    let place = |cpu: usize| ((1 + cpu as u32 % 2) << 4) | 1 << (cpu / 2);
    for cpu in 0..cpus {
        smp::run_on(cpu, || set_logical(0x0fff_ffff, place(cpu)));
    }
    for cluster in 0..4_u32 {
        for members in 0..16_u32 {
            let mask = cluster << 4 | members;
            let to = |cpu: usize| place(cpu) >> 4 == cluster && place(cpu) & members != 0;
            let from = members as usize % cpus;
            expect_at(cpus, from, VECTOR, "cluster logical IPI", send_logical(mask), to);
        }
    }
    // Cluster 15, all members: the broadcast (SDM volume 3, 12.6.2.2).
    expect_at(cpus, 1, VECTOR, "cluster broadcast", send_logical(0xff), |_| true);
});

test!(
    logical_x2apic,
    "x2APIC: the logical identifier follows from the APIC's, and is matched.",
    || {
        cpuid::X2APIC.require();
        irq::count_only(VECTOR);
        let cpus = start_all().min(MAX);
        (0..cpus).for_each(|cpu| smp::run_on(cpu, || apic::set_mode(Mode::X2Apic).enable()));
        let logical = |id: u32| (id >> 4) << 16 | 1 << (id & 15);
        for cpu in 0..cpus {
            let ldr = smp::run_on(cpu, || apic::local().read(Register::LDR));
            check_eq!(ldr, logical(smp::apic_id(cpu)), "LDR of cpu {cpu}");
        }
        for from in 0..cpus {
            for to in 0..cpus {
                let mask = logical(smp::apic_id(to));
                expect_at(cpus, from, VECTOR, "x2APIC logical", send_logical(mask), |cpu| {
                    cpu == to
                });
            }
            let cluster = smp::apic_id(from) >> 4;
            let in_cluster = |cpu: usize| smp::apic_id(cpu) >> 4 == cluster;
            let mask = cluster << 16 | 0xffff;
            let id_0 = smp::apic_id(0);
            check_eq!(id_0 >> 4, 0, "cluster of cpu 0");
            expect_at(cpus, from, VECTOR, "x2APIC cluster", send_logical(mask), in_cluster);
            // No CPU's cluster.
            expect_at(cpus, from, VECTOR, "far cluster", send_logical(0x7fff_ffff), |_| false);
        }
        expect_at(cpus, 1, VECTOR, "x2APIC logical broadcast", send_logical(u32::MAX), |_| true);
    }
);

test!(lowest_priority, "Of the CPUs a lowest-priority IPI is for, one takes it.", || {
    const ROUNDS: u32 = 16;
    irq::count_only(VECTOR);
    let cpus = start_all().min(8);
    xapic(cpus);
    for cpu in 0..cpus {
        smp::run_on(cpu, || set_logical(0xffff_ffff, 1 << cpu));
    }
    let total = || counts(cpus, VECTOR).iter().sum::<u32>();
    for round in 1..=ROUNDS {
        let all = (1 << cpus) - 1;
        let mask = if round % 2 == 0 { all } else { all & !1 };
        let at_0 = irq::count(VECTOR);
        apic::local().send(Delivery::LowestPriority(VECTOR), Destination::Logical(mask));
        let came = time::wait_until(PATIENCE, || {
            irq::let_in(1);
            total() >= round
        });
        check!(came, "nobody took lowest-priority IPI {round} to logical {mask:#x}");
        irq::let_in(SETTLE);
        check_eq!(total(), round, "CPUs that took lowest-priority IPIs, after {round} of them");
        let mine = irq::count(VECTOR) - at_0;
        check!(mask & 1 != 0 || mine == 0, "cpu 0 took an IPI for logical {mask:#x}");
    }
});

static LAST: AtomicU32 = AtomicU32::new(0);

test!(
    data_before_ipi,
    "What a CPU wrote before it sent an IPI is seen by the IPI's handler.",
    || {
        // Writing the xAPIC's ICR is an uncacheable store, which waits for those before it; as
        // x2APIC the WRMSR does not, so a fence is due (SDM volume 3, 12.12.3).
        const ROUNDS: u32 = 40;
        static DATA: AtomicU32 = AtomicU32::new(0);
        irq::handle(VECTOR, |_| {
            LAST.store(DATA.load(SeqCst), SeqCst);
            apic::eoi();
        });
        let cpus = start_all();
        in_each_mode(cpus, |mode| {
            let id = Destination::Physical(smp::apic_id(1));
            let start = irq::count_on(1, VECTOR);
            for round in 1..=ROUNDS {
                DATA.store(round, core::sync::atomic::Ordering::Relaxed);
                if mode == Mode::X2Apic {
                    check_ok!(insn!("mfence", "lfence"));
                }
                apic::local().send(Delivery::Fixed(VECTOR), id);
                let came = || irq::count_on(1, VECTOR) == start + round;
                check!(time::wait_until(PATIENCE, came), "IPI {round} did not come to cpu 1");
                // The count rises when the handler starts; its value is there when it ends.
                let told = || LAST.load(SeqCst) == round;
                let told = time::wait_until(PATIENCE / 5, told);
                check!(told, "IPI {round} found {} in memory as {mode:?}", LAST.load(SeqCst));
            }
        });
    }
);
