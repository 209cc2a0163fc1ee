//! Events that L1 injects, and those that come while L2 runs (SDM volume 3, "Event Injection",
//! "Information for VM Exits That Occur During Event Delivery", "External-Interrupt Exiting" and NMIs).

use super::checks::{CONTROLS, refused_with};
use super::{L1, check_l1, vm};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::idt::Gate;
use payload_rt::reg::FLAG_IF;
use payload_rt::trap::{BP, DB, NMI, NP, OF, PF, UD};
use payload_rt::vmx::caps;
use payload_rt::vmx::exit::{EVENT_VALID, Kind, event, event_with_error};
use payload_rt::vmx::{Field, Reason, Vm, get, set};
use payload_rt::{asm_code, check_eq, check_ok, irq, mem, test};

pub const VECTOR: u8 = 0x51;

pub static SEEN: AtomicU64 = AtomicU64::new(0);
pub static ERROR: AtomicU64 = AtomicU64::new(0);
pub static RIP: AtomicU64 = AtomicU64::new(0);

/// Lets L2's handler of a vector note what it gets.
pub fn note(vector: u8) {
    irq::handle(vector, |frame| {
        SEEN.fetch_add(1 << 32 | frame.vector, SeqCst);
        ERROR.store(frame.error_code, SeqCst);
        RIP.store(frame.rip, SeqCst);
    });
    forget();
}

pub fn forget() {
    for word in [&SEEN, &ERROR, &RIP] {
        word.store(0, SeqCst);
    }
}

/// What the handler noted if it ran once for this vector.
pub const fn once(vector: u8) -> u64 {
    1 << 32 | vector as u64
}

// Hardware exceptions and interrupts push RIP; software ones RIP and the instruction length.
test!(
    inject,
    "Events of each type arrive through L2's IDT with vector, error code and RIP; the field is cleared.",
    || {
        let mut vm = vm();
        for (kind, vector, error, length) in [
            (Kind::External, VECTOR, None, 0),
            (Kind::External, 0xff, None, 0),
            (Kind::Nmi, NMI, None, 0),
            (Kind::Hardware, 0, None, 0),
            (Kind::Hardware, DB, None, 0),
            (Kind::Hardware, UD, None, 0),
            (Kind::Hardware, 10, Some(0x1238), 0),
            (Kind::Hardware, 11, Some(0), 0),
            (Kind::Hardware, 12, Some(0x48), 0),
            (Kind::Hardware, 13, Some(0x7fff), 0),
            (Kind::Hardware, PF, Some(6), 0),
            (Kind::Hardware, 17, Some(0), 0),
            (Kind::Hardware, 16, None, 0),
            (Kind::Hardware, 18, None, 0),
            (Kind::Software, VECTOR, None, 2),
            (Kind::Software, 0x80, None, 4),
            (Kind::PrivilegedSoftware, DB, None, 1),
            (Kind::SoftwareException, BP, None, 1),
            (Kind::SoftwareException, OF, None, 1),
        ] {
            note(vector);
            let at = vm.start(asm_code!("nop", "nop", "nop", "nop"));
            set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
            let info = match error {
                Some(_) => event_with_error(kind, vector),
                None => event(kind, vector),
            };
            set(Field::ENTRY_EVENT, info);
            set(Field::ENTRY_EVENT_ERROR, error.unwrap_or(0x5555));
            set(Field::ENTRY_EVENT_LENGTH, length);
            let l1 = L1::now();
            let exit = vm.run_until(Reason::VMCALL, "behind the handler");
            check_eq!(SEEN.load(SeqCst), once(vector), "handlers run, {kind:?} {vector}");
            check_eq!(ERROR.load(SeqCst), error.unwrap_or(0), "error code, {kind:?} {vector}");
            check_eq!(RIP.load(SeqCst), at + length, "RIP pushed, {kind:?} {vector}");
            check_eq!(get(Field::ENTRY_EVENT) & EVENT_VALID, 0, "the field, {kind:?} {vector}");
            check_eq!(exit.vectoring & EVENT_VALID, 0, "vectoring, {kind:?} {vector}");
            check_l1(&exit, l1, "injection");
            irq::unhandle(vector);
        }
    }
);

test!(inject_once, "An event is injected once: the next entry injects nothing.", || {
    let mut vm = vm();
    note(VECTOR);
    for _ in 0..2 {
        forget();
        vm.start(asm_code!("vmcall"));
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        set(Field::ENTRY_EVENT, event(Kind::External, VECTOR));
        let exit = vm.run_until(Reason::VMCALL, "the first entry");
        vm.skip(&exit);
        vm.run_until(Reason::VMCALL, "the second entry");
        check_eq!(SEEN.load(SeqCst), once(VECTOR), "handlers run");
    }
});

// "Checks on VMX Controls", VM-entry control fields: event injection.
test!(
    inject_checks,
    "An event of a reserved type, or whose vector, error code or length does not fit, is refused.",
    || {
        let mut vm = vm();
        set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
        let bad = |vm: &mut Vm, info: u64, what: &str| {
            refused_with(vm, CONTROLS, &[(Field::ENTRY_EVENT, info)], what);
        };
        bad(&mut vm, EVENT_VALID | 1 << 8 | 0x40, "type 1");
        for bit in [12, 13, 20, 30] {
            bad(&mut vm, event(Kind::Hardware, UD) | 1 << bit, "a reserved bit");
        }
        for vector in [0, 3, 0x40] {
            bad(&mut vm, event(Kind::Nmi, vector), "an NMI that is not vector 2");
        }
        for vector in [32, 0x40, 0xff] {
            bad(&mut vm, event(Kind::Hardware, vector), "a hardware exception above 31");
        }
        for kind in [Kind::External, Kind::Nmi, Kind::Software, Kind::SoftwareException] {
            let vector = if kind == Kind::Nmi { NMI } else { 13 };
            let changes = [
                (Field::ENTRY_EVENT, event_with_error(kind, vector)),
                (Field::ENTRY_EVENT_LENGTH, 1),
                (Field::ENTRY_EVENT_ERROR, 0),
            ];
            refused_with(&mut vm, CONTROLS, &changes, "an error code with no hardware exception");
        }
        // Bit 56 of IA32_VMX_BASIC takes the rule away.
        if caps::read(caps::BASIC) & 1 << 56 == 0 {
            for vector in [8, 10, 11, 12, 13, PF, 17] {
                bad(&mut vm, event(Kind::Hardware, vector), "no error code where there is one");
            }
            for vector in [0, 1, 5, UD, 7, 16, 18, 19] {
                bad(
                    &mut vm,
                    event_with_error(Kind::Hardware, vector),
                    "an error code where there is none",
                );
            }
        }
        for error in [1 << 16, 1 << 31] {
            let changes = [
                (Field::ENTRY_EVENT, event_with_error(Kind::Hardware, 13)),
                (Field::ENTRY_EVENT_ERROR, error),
            ];
            refused_with(&mut vm, CONTROLS, &changes, "an error code above 16 bits");
        }
        for (kind, vector) in
            [(Kind::Software, 0x40), (Kind::PrivilegedSoftware, DB), (Kind::SoftwareException, BP)]
        {
            for length in [16, 17, 0x8000_0001] {
                let changes = [
                    (Field::ENTRY_EVENT, event(kind, vector)),
                    (Field::ENTRY_EVENT_LENGTH, length),
                ];
                refused_with(&mut vm, CONTROLS, &changes, "an instruction length above 15");
            }
            if caps::read(caps::MISC) & 1 << 30 == 0 {
                let changes =
                    [(Field::ENTRY_EVENT, event(kind, vector)), (Field::ENTRY_EVENT_LENGTH, 0)];
                refused_with(&mut vm, CONTROLS, &changes, "an instruction length of 0");
            }
        }
    }
);

/// Puts a gate into L2's IDT.
pub fn set_gate(vm: &Vm, vector: u8, gate: Gate) {
    let at = vm.idt() + 16 * u64::from(vector);
    let [low, high] = gate.encode();
    check_ok!(mem::write(at, low));
    check_ok!(mem::write(at + 8, high));
}

// "Information for VM Exits That Occur During Event Delivery": IDT-vectoring information.
test!(
    vectoring,
    "A fault in the delivery of an injected event exits with that event as IDT-vectoring information.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << NP);
        let absent = |vector| Gate { present: false, ..Gate::stub(vector) };
        // EXT (bit 0) is clear for software events, IDT (bit 1) is set.
        for (kind, vector, length, ext) in [
            (Kind::External, VECTOR, 0, 1),
            (Kind::Nmi, NMI, 0, 1),
            (Kind::Hardware, UD, 0, 1),
            (Kind::Software, VECTOR, 2, 0),
            (Kind::SoftwareException, BP, 1, 0),
        ] {
            set_gate(&vm, vector, absent(vector));
            let at = vm.start(asm_code!("nop"));
            set(Field::GUEST_RFLAGS, 2 | FLAG_IF);
            set(Field::ENTRY_EVENT, event(kind, vector));
            set(Field::ENTRY_EVENT_LENGTH, length);
            let exit = vm.run_until(Reason::EXCEPTION, "an absent gate");
            check_eq!(exit.event, event_with_error(Kind::Hardware, NP), "event, {kind:?}");
            let error = u64::from(vector) << 3 | 2 | ext;
            check_eq!(get(Field::EXIT_EVENT_ERROR), error, "error code, {kind:?}");
            check_eq!(exit.vectoring, event(kind, vector), "vectoring, {kind:?}: {exit}");
            check_eq!(exit.rip, at, "RIP, {kind:?}");
            if length != 0 {
                check_eq!(exit.length, length, "instruction length, {kind:?}");
            }
            set_gate(&vm, vector, Gate::stub(vector));
        }
    }
);

test!(
    vectoring_error,
    "The IDT-vectoring error code is that of the exception whose delivery was interrupted.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << PF);
        vm.start(asm_code!("nop"));
        // No stack: #PF in the delivery of #GP, one after the other.
        set(Field::GUEST_RSP, 0x7000_0000_0000);
        set(Field::ENTRY_EVENT, event_with_error(Kind::Hardware, 13));
        set(Field::ENTRY_EVENT_ERROR, 0x4568);
        let exit = vm.run_until(Reason::EXCEPTION, "no stack");
        check_eq!(exit.event, event_with_error(Kind::Hardware, PF), "event: {exit}");
        check_eq!(exit.vectoring, event_with_error(Kind::Hardware, 13), "vectoring: {exit}");
        check_eq!(get(Field::VECTORING_EVENT_ERROR), 0x4568, "its error code");
        check_eq!(exit.qualification, 0x7000_0000_0000 - 8, "the address");
    }
);

test!(
    vectoring_of_l2,
    "A fault in the delivery of L2's own INT n and exceptions names them as IDT-vectoring information.",
    || {
        let mut vm = vm();
        set(Field::EXCEPTION_BITMAP, 1 << NP);
        for (code, kind, vector) in [
            (asm_code!("int 0x51"), Kind::Software, VECTOR),
            (asm_code!("int3"), Kind::SoftwareException, BP),
            (asm_code!("ud2"), Kind::Hardware, UD),
        ] {
            set_gate(&vm, vector, Gate { present: false, ..Gate::stub(vector) });
            let at = vm.start(code);
            let exit = vm.run_until(Reason::EXCEPTION, "an absent gate");
            check_eq!(exit.event, event_with_error(Kind::Hardware, NP), "event, {kind:?}");
            check_eq!(exit.vectoring, event(kind, vector), "vectoring, {kind:?}: {exit}");
            check_eq!(exit.rip, at, "RIP, {kind:?}");
            if kind != Kind::Hardware {
                check_eq!(exit.length, code.len() as u64, "instruction length, {kind:?}");
            }
            set_gate(&vm, vector, Gate::stub(vector));
        }
    }
);
