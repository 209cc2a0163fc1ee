//! How hypercalls are made (TLFS, Hypercall Interface).

use crate::*;
use payload_rt::lab::{self, Rule, kind};
use payload_rt::user::{End, User};
use payload_rt::{asm_code, fail, test};

test!(call_unknown_code, "A call code that nobody knows is INVALID_HYPERCALL_CODE.", || {
    introduce();
    for unknown in [0, code::NONE, 0x7f, 0x3ff] {
        for fast in [0, FAST] {
            let result = call(unknown | fast, 0, 0);
            check_eq!(result, status::INVALID_HYPERCALL_CODE, "call {unknown:#x}, {fast:#x}");
        }
    }
});

test!(call_reserved_bits, "Reserved bits of the input are INVALID_HYPERCALL_INPUT.", || {
    introduce();
    check_eq!(call(code::LONG_SPIN_WAIT | FAST, 1, 0), status::SUCCESS, "none of them");
    for bit in (27..31).chain(44..48).chain(60..64) {
        let result = call(1 << bit | code::LONG_SPIN_WAIT | FAST, 1, 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "bit {bit}");
    }
});

// HvCallNotifyLongSpinWait: a simple call without a variable header.
test!(call_simple, "A simple call takes neither a rep count, a start index nor a header.", || {
    introduce();
    for bits in [1 << REPS, 1 << START, 1 << REPS | 1 << START, 1 << VARIABLE] {
        let result = call(bits | code::LONG_SPIN_WAIT | FAST, 1, 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "input bits {bits:#x}");
    }
});

test!(call_rep, "A rep call has a count, and a start index below it.", || {
    introduce();
    let list = page();
    // Address space 0, all spaces, all processors; then the addresses.
    put(list + 8, 3u64);
    for (bits, expected) in [
        (0, status::INVALID_HYPERCALL_INPUT),
        (1 << START, status::INVALID_HYPERCALL_INPUT),
        (2 << REPS | 2 << START, status::INVALID_HYPERCALL_INPUT),
        (2 << REPS, 2 << REPS),
        (1 << REPS, 1 << REPS),
    ] {
        check_eq!(call(bits | code::FLUSH_LIST, list, 0), expected, "input bits {bits:#x}");
    }
});

test!(call_rep_start, "A rep call goes on from its start index.", || {
    introduce();
    let list = page();
    put(list + 8, 3u64);
    let result = call(3 << REPS | 1 << START | code::FLUSH_LIST, list, 0);
    check_eq!(result, 3 << REPS, "elements done");
});

// A hypercall is made at CPL 0, in protected mode or long mode; else it is #UD.
test!(call_user_mode, "A hypercall of CPL 3 is #UD.", || {
    introduce();
    let outcome = match amd() {
        true => User::new(asm_code!("vmmcall", "ret")).run(),
        false => User::new(asm_code!("vmcall", "ret")).run(),
    };
    let End::Trap(fault) = outcome.end else { fail!("{:?}", outcome.end) };
    check!(fault.is(trap::UD, 0), "{fault}");
});

// With an identity, hypercalls are Hyper-V's; KVM's own come back without one.
test!(call_is_whose, "The guest's identity decides whose hypercalls there are.", || {
    let bare = |input: u64| {
        let result: u64;
        let done = if amd() {
            insn!("vmmcall"; inout("rax") input => result, in("rcx") input, in("rdx") 0u64, in("r8") 0u64)
        } else {
            insn!("vmcall"; inout("rax") input => result, in("rcx") input, in("rdx") 0u64, in("r8") 0u64)
        };
        check_ok!(done);
        result
    };
    // KVM_ENOSYS of a KVM that knows no such number.
    check_eq!(bare(code::NONE) as i64, -1000, "without an identity");
    write(GUEST_OS_ID, IDENTITY);
    check_eq!(bare(code::NONE), status::INVALID_HYPERCALL_CODE, "with one");
    write(GUEST_OS_ID, 0);
    check_eq!(bare(code::NONE) as i64, -1000, "without it again");
});

// api.rst, KVM_EXIT_HYPERV_HCALL: input, two parameters, and the result that the VMM gives.
test!(
    calls_leave_the_guest,
    "HvPostMessage leaves the guest with its input and parameters.",
    || {
        introduce();
        let log = check_ok!(lab::record(&[Rule::on(kind::HYPERV).value(0x1234)]));
        let at = page();
        check_eq!(call(code::POST_MESSAGE, at, 0x5678), 0x1234, "the VMM's result");
        check_ok!(log.stop());
        check_eq!(log.count(), 1);
        let Some(exit) = log.get(0) else { fail!("no room") };
        let words = [kind::HYPERV_CALL, code::POST_MESSAGE, at, 0x5678, 0];
        check_eq!((exit.kind, exit.words), (kind::HYPERV, words));
    }
);
