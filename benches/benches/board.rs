//! The board's answer to an exit, without KVM, beside a loop that does nothing.

use std::hint::black_box;

use benches::{Rig, WORKLOADS};
use criterion::{Criterion, criterion_group, criterion_main};

fn board(c: &mut Criterion) {
    let mut group = c.benchmark_group("board");
    group.bench_function("empty", |b| b.iter(|| black_box(black_box(&WORKLOADS[0].exit))));
    for workload in &WORKLOADS {
        let mut rig = Rig::new();
        let entry = rig.machine.handle(&mut rig.cx, &workload.exit);
        assert_eq!(entry, workload.entry, "{}", workload.name);
        group.bench_function(workload.name, |b| {
            b.iter(|| black_box(rig.machine.handle(&mut rig.cx, black_box(&workload.exit))));
        });
    }
    group.finish();
}

criterion_group!(benches, board);
criterion_main!(benches);
