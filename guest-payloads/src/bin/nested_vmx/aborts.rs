//! VMX aborts: VM exits that cannot be completed (SDM volume 3, "VMX Aborts"; "Saving MSRs", "Loading
//! MSRs"). The processor shuts down, which KVM tells as `KVM_EXIT_SHUTDOWN` of L1's vCPU.

use super::vm;
use payload_rt::lab::{self, kind};
use payload_rt::vmx::{Field, set};
use payload_rt::{check_eq, check_ok, fail, frames, mem, reg, test};

/// The VMX-abort indicator: the second word of the VMCS region. 1: guest MSRs cannot be saved, 4: host MSRs
/// cannot be loaded.
const SAVING: u32 = 1;
const LOADING: u32 = 4;

const STORE: [Field; 2] = [Field::EXIT_MSR_STORE, Field::EXIT_MSR_STORE_COUNT];
const LOAD: [Field; 2] = [Field::EXIT_MSR_LOAD, Field::EXIT_MSR_LOAD_COUNT];

/// Has a VM exit fail by the second entry of an MSR area; the indicator.
fn abort([address, count]: [Field; 2], bad: (u64, u64), what: &str) -> u32 {
    let mut vm = vm();
    let area = frames::alloc().address();
    for (i, (index, value)) in [(reg::LSTAR.into(), 0x1000), bad].into_iter().enumerate() {
        check_ok!(mem::write(area + 16 * i as u64, index));
        check_ok!(mem::write(area + 16 * i as u64 + 8, value));
    }
    set(address, area);
    set(count, 2);
    check_ok!(mem::write(vm.vmcs() + 4, 0u32));
    vm.start(&[]);
    match lab::until_exit(kind::SHUTDOWN, || vm.enter()) {
        Ok(entry) => fail!("{what}: the exit is completed: {entry:x?}"),
        Err(entry) => check_eq!(entry.kind, kind::SHUTDOWN, "{what}"),
    }
    check_ok!(mem::read(vm.vmcs() + 4))
}

// "Loading MSRs", for the reasons that a VM entry refuses an entry for.
const BAD: [((u64, u64), &str); 3] = [
    ((reg::FS_BASE as u64, 0), "IA32_FS_BASE"),
    ((reg::LSTAR as u64 | 1 << 32, 0), "reserved bits of the entry"),
    ((reg::LSTAR as u64, 1 << 62), "a value that is #GP"),
];

macro_rules! aborts {
    ($($name:ident $about:literal: $area:expr, $bad:expr;)*) => {$(
        test!($name, $about, || {
            let (bad, what) = $bad;
            abort($area, bad, what);
        });
    )*};
}
// One a test: the vCPU does not go on from a shutdown with all that it was.
aborts! {
    exit_load_fs_base_aborts "An exit that is to load IA32_FS_BASE from its MSR area shuts down.":
        LOAD, BAD[0];
    exit_load_reserved_aborts "An exit with reserved bits in an entry of its MSR area shuts down.":
        LOAD, BAD[1];
    exit_load_value_aborts "An exit whose MSR area has a value that is #GP shuts down.": LOAD, BAD[2];
    exit_store_aborts "An exit that is to store by an entry with reserved bits shuts down.":
        STORE, BAD[1];
}

test!(
    abort_indicator_load,
    "An exit that cannot load an MSR leaves 4 in the VMX-abort indicator.",
    || {
        check_eq!(abort(LOAD, BAD[0].0, BAD[0].1), LOADING, "the VMX-abort indicator");
    }
);

test!(
    abort_indicator_store,
    "An exit that cannot store an MSR leaves 1 in the VMX-abort indicator.",
    || {
        check_eq!(abort(STORE, BAD[1].0, BAD[1].1), SAVING, "the VMX-abort indicator");
    }
);
