//! The guest's identity and the hypercall page (TLFS, Hypercall Interface).

use crate::*;
use payload_rt::test;

test!(identity, "The identity is nothing at first, and what the guest writes.", || {
    check_eq!(read(GUEST_OS_ID), 0, "after a reset");
    check_eq!(read(HYPERCALL), 0, "after a reset");
    for id in [IDENTITY, 0x8100_0406_0000_1234, 1, 0] {
        write(GUEST_OS_ID, id);
        check_eq!(read(GUEST_OS_ID), id);
    }
});

test!(
    call_page_needs_identity,
    "There is no hypercall page for a guest without an identity.",
    || {
        let at = page();
        write(HYPERCALL, at | 1);
        check_eq!(read(HYPERCALL) & 1, 0, "enabled");
        check_eq!(word::<u64>(at), 0, "the page");
    }
);

test!(call_page_is_code, "The hypercall page is code that makes hypercalls.", || {
    let at = introduce();
    check!(word::<u64>(at) != 0, "nothing is in the page");
    check_eq!(call_at(at, code::NONE, 0, 0), status::INVALID_HYPERCALL_CODE);
});

// The page is there for every processor: the MSR is the partition's.
test!(call_page_is_for_all, "What one processor sets up, all have.", || {
    let at = introduce();
    for cpu in 1..payload_rt::smp::start() {
        let (id, page) = payload_rt::smp::run_on(cpu, || (read(GUEST_OS_ID), read(HYPERCALL)));
        check_eq!((id, page), (IDENTITY, at | 1), "at cpu {cpu}");
        let result = payload_rt::smp::run_on(cpu, || call(code::NONE, 0, 0));
        check_eq!(result, status::INVALID_HYPERCALL_CODE, "a hypercall of cpu {cpu}");
    }
});

test!(call_page_moves, "The hypercall page can be put elsewhere, and be disabled.", || {
    introduce();
    let at = page();
    write(HYPERCALL, at | 1);
    check_eq!(call_at(at, code::NONE, 0, 0), status::INVALID_HYPERCALL_CODE);
    write(HYPERCALL, at);
    check_eq!(read(HYPERCALL), at, "disabled");
    write(HYPERCALL, at | 1);
    check_eq!(read(HYPERCALL), at | 1, "enabled again");
    check_eq!(call_at(at, code::NONE, 0, 0), status::INVALID_HYPERCALL_CODE);
});

test!(
    call_page_goes_with_identity,
    "Without its identity the guest loses the hypercall page.",
    || {
        let at = introduce();
        write(GUEST_OS_ID, 0);
        check_eq!(read(HYPERCALL) & 1, 0, "enabled");
        write(GUEST_OS_ID, IDENTITY);
        check_eq!(read(HYPERCALL) & 1, 0, "enabled by the identity alone");
        write(HYPERCALL, at | 1);
        check_eq!(read(HYPERCALL), at | 1);
    }
);

test!(call_page_outside_memory, "A hypercall page where there is no memory is #GP.", || {
    write(GUEST_OS_ID, IDENTITY);
    refused(HYPERCALL, NOWHERE | 1);
    check_eq!(read(HYPERCALL) & 1, 0, "enabled");
});

// Bit 1: locked. Only a reset makes the register writable again.
test!(call_page_is_locked, "A locked hypercall page stays where it is.", || {
    write(GUEST_OS_ID, IDENTITY);
    let (at, other) = (page(), page());
    write(HYPERCALL, at | 3);
    // Whether the write is ignored or faults the chapter leaves open.
    let _ = reg::wrmsr(HYPERCALL, other | 1);
    check_eq!(read(HYPERCALL) & !0xffe, at | 1);
    check_eq!(word::<u64>(other), 0, "the other page");
});
