//! Logical destinations: a cluster of sixteen, and a bit for each of them (SDM volume 3,
//! 12.12.10.2). The machine has more CPUs than one cluster.

use crate::{VECTOR, expect_at, logical, msr, read, start_all};
use payload_rt::apic::{self, Delivery, Destination};
use payload_rt::*;

/// CPUs 0 to 15 are cluster 0, the others cluster 1.
const CPUS: usize = 18;

fn start() -> usize {
    irq::count_only(VECTOR);
    let cpus = start_all(CPUS);
    for cpu in 0..cpus {
        check_eq!(smp::apic_id(cpu), cpu as u32, "identifier of cpu {cpu}");
    }
    cpus
}

pub(crate) fn to(mask: u32) -> impl Fn() + Send {
    move || apic::local().send(Delivery::Fixed(VECTOR), Destination::Logical(mask))
}

test!(ldr_in_two_clusters, "LDR has the cluster above and the place below.", || {
    for cpu in 0..start() {
        let ldr = smp::run_on(cpu, || read(msr::LDR));
        check_eq!(ldr, logical(cpu as u32).into(), "LDR of cpu {cpu}");
    }
});

test!(
    one_of_a_cluster,
    "One bit of a cluster is one CPU, and none of the other cluster's.",
    || {
        let cpus = start();
        for wanted in [0, 1, 15, 16, 17] {
            let mask = logical(wanted as u32);
            expect_at(cpus, 0, VECTOR, "one of a cluster", to(mask), |cpu| cpu == wanted);
        }
    }
);

test!(several_of_a_cluster, "Several bits of a cluster are several of its CPUs.", || {
    let cpus = start();
    for mask in [0x0000_8421_u32, 0x0001_0003, 0x0001_fffe, 0x0000_0300] {
        let is_in = |cpu: usize| mask >> 16 == cpu as u32 >> 4 && mask & 1 << (cpu & 15) != 0;
        expect_at(cpus, 1, VECTOR, "several of a cluster", to(mask), is_in);
    }
});

test!(whole_clusters, "All bits of a cluster are all of its CPUs, and no others.", || {
    let cpus = start();
    for cluster in 0..3_u32 {
        let mask = cluster << 16 | 0xffff;
        expect_at(cpus, 17, VECTOR, "a whole cluster", to(mask), |cpu| cpu as u32 >> 4 == cluster);
    }
});

test!(no_cluster, "A cluster without CPUs, and one without bits, are nobody.", || {
    let cpus = start();
    for mask in [0x0002_0001, 0x00ff_ffff, 0x7fff_ffff, 0xfffe_ffff, 0x0001_0000, 0x0001_fffc, 0] {
        expect_at(cpus, 0, VECTOR, "nobody's cluster", to(mask), |_| false);
    }
});

test!(logical_broadcast, "The logical destination of all ones is everybody.", || {
    let cpus = start();
    for from in [0, 16] {
        expect_at(cpus, from, VECTOR, "logical broadcast", to(u32::MAX), |_| true);
    }
});

test!(lowest_priority_in_a_cluster, "One of a cluster takes a lowest-priority IPI.", || {
    let cpus = start();
    let total = || (0..cpus).map(|cpu| irq::count_on(cpu, VECTOR)).sum::<u32>();
    for round in 1..=8 {
        let send = Delivery::LowestPriority(VECTOR);
        apic::local().send(send, Destination::Logical(0x0001_0003));
        // On a host with one processor the others get on while this CPU is out of guest mode.
        let came = time::wait_until(crate::PATIENCE, || {
            port::in8(0x80);
            total() >= round
        });
        check!(came, "nobody took IPI {round}");
        time::wait_until(crate::SETTLE, || {
            port::in8(0x80);
            false
        });
        check_eq!(total(), round, "CPUs that took {round} IPIs");
    }
    let outside = (0..16).map(|cpu| irq::count_on(cpu, VECTOR)).sum::<u32>();
    check_eq!(outside, 0, "interrupts outside of the cluster");
});
