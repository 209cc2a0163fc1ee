//! How exceptions are delivered: stacks, faults on the way, and the end of that.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::cpu::{self, FREE_SELECTOR, KERNEL_CS, KERNEL_DS};
use payload_rt::idt::{self, Gate};
use payload_rt::trap::{AC, DE, DF, Frame, GP, NP, PF, TS, Trap, UD, catch};
use payload_rt::user::{End, User};
use payload_rt::{
    asm_code, check, check_eq, check_ok, check_trap, cpuid, insn, insn_raw, irq, mem, reg, test,
};

/// The error code for an IDT entry, without EXT.
const fn entry(vector: u8) -> u64 {
    (vector as u64) << 3 | 2
}

/// Checks a trap that came on the way of another exception: by Intel's manual its error code has
/// EXT then (SDM volume 3, 7.13); by AMD's, EXT is for events from outside (APM volume 2, 8.4.1).
fn check_second(
    result: Result<(), Trap>,
    vector: u8,
    code: u64,
    what: core::fmt::Arguments,
) -> Trap {
    let trap = payload_rt::check_err!(result, "{what}");
    let intel = &cpuid::signature(0) == b"GenuineIntel";
    let seen = if intel { trap.error_code } else { trap.error_code & !1 };
    let fits = trap.vector == vector && seen == code | u64::from(intel);
    check!(fits, "{what}: {trap}, must be vector {vector} with error {code:#x}, and EXT on Intel");
    trap
}

/// What a handler of #UD saw: the end of its frame on the stack, RSP it interrupted, SS inside.
static TOP: AtomicU64 = AtomicU64::new(0);
static RSP: AtomicU64 = AtomicU64::new(0);
static INSIDE_SS: AtomicU64 = AtomicU64::new(0);

fn note_stacks() {
    irq::handle(UD, |frame| {
        TOP.store(core::ptr::from_ref(frame) as u64 + size_of::<Frame>() as u64, SeqCst);
        RSP.store(frame.rsp, SeqCst);
        INSIDE_SS.store(reg::ss().into(), SeqCst);
        frame.rip += 2; // over `ud2`
    });
}

// SDM volume 3, 7.14.2 to 7.14.5; AMD APM volume 2, 8.9.
test!(stacks, "A trap goes to the stack of its gate, aligned to 16, and comes back.", || {
    note_stacks();
    // On the same stack, whatever RSP is modulo 16.
    for shift in [0_u64, 1, 4, 8, 12, 15] {
        let (before, after): (u64, u64);
        check_ok!(insn!(
            "mov {0}, rsp", "sub rsp, {2}", "sub rsp, 256", "ud2", "add rsp, 256", "add rsp, {2}",
            "mov {1}, rsp";
            out(reg) before, out(reg) after, in(reg) shift
        ));
        check_eq!(before, after, "RSP behind the handler");
        let old = before - shift - 256;
        check_eq!(RSP.load(SeqCst), old, "RSP on the stack");
        check_eq!(TOP.load(SeqCst), old & !15, "top of the handler's frame, RSP {old:#x}");
        check_eq!(INSIDE_SS.load(SeqCst), u64::from(KERNEL_DS), "SS in the handler");
    }
    // On each IST stack, which starts afresh.
    for ist in 1..=cpu::IST_STACKS {
        idt::set_ist(UD, ist as u8);
        for _ in 0..2 {
            check_ok!(insn!("ud2"));
            check_eq!(TOP.load(SeqCst), cpu::ist_range(ist).end, "top of the frame on IST {ist}");
        }
    }
    idt::set_ist(UD, 0);
});

test!(stacks_user, "A trap from CPL 3 goes to RSP0 or an IST stack, with a null SS.", || {
    note_stacks();
    let code = asm_code!("ud2", "nop", "ret");
    let run = || {
        let user = User::new(code);
        // The end at the return is a #UD too, which the handler skips; then there are zeroes.
        let end = user.run().end;
        check!(matches!(end, End::Trap(_)), "the code ended by {end:?}");
    };
    run();
    let top = TOP.load(SeqCst);
    check!(cpu::stack_range().contains(&(top - 1)), "the frame's top {top:#x} is not on RSP0");
    check_eq!(INSIDE_SS.load(SeqCst) & !3, 0, "SS in the handler");
    for ist in 1..=cpu::IST_STACKS {
        idt::set_ist(UD, ist as u8);
        run();
        check_eq!(TOP.load(SeqCst), cpu::ist_range(ist).end, "top of the frame on IST {ist}");
        check_eq!(INSIDE_SS.load(SeqCst) & !3, 0, "SS in the handler on IST {ist}");
    }
    idt::set_ist(UD, 0);
});

/// What is done to the low word of a gate.
type Change<'a> = &'a dyn Fn(u64) -> u64;

/// Writes the low word of a vector's gate.
fn raw_gate(vector: u8, change: impl Fn(u64) -> u64) {
    let at = idt::base() + 16 * u64::from(vector);
    let low = check_ok!(mem::read::<u64>(at));
    check_ok!(mem::write(at, change(low)));
}

fn put_back(vector: u8) {
    idt::set(vector, Gate::stub(vector));
}

// SDM volume 3, 7.12 and 7.13: the checks of the gate and of its code segment.
test!(
    bad_gates,
    "#UD through a bad gate becomes #NP or #GP that names the gate or its segment.",
    || {
        let absent = cpu::set_descriptor(0, 0x00af_1b00_0000_ffff);
        let data = KERNEL_DS;
        let beyond = FREE_SELECTOR + 8 * cpu::GDT_FREE_SLOTS as u16;
        let code32 = cpu::KERNEL_CS32;
        let select = |gate: u64, selector: u16| gate & !0xffff_0000 | u64::from(selector) << 16;
        let kind = |gate: u64, kind: u64| gate & !(0x1f << 40) | kind << 40;
        let cases: [(&str, Change, u8, u64); 10] = [
            ("not present", &|gate| gate & !(1 << 47), NP, entry(UD)),
            ("a call gate", &|gate| kind(gate, 0xc), GP, entry(UD)),
            ("a TSS", &|gate| kind(gate, 0x9), GP, entry(UD)),
            ("a 16-bit gate", &|gate| kind(gate, 0x6), GP, entry(UD)),
            ("a code segment", &|gate| kind(gate, 0x1b), GP, entry(UD)),
            ("a null selector", &|gate| select(gate, 0), GP, 0),
            ("a data segment", &|gate| select(gate, data), GP, u64::from(data)),
            ("a selector beyond", &|gate| select(gate, beyond), GP, u64::from(beyond)),
            ("an absent segment", &|gate| select(gate, absent), NP, u64::from(absent)),
            ("a 32-bit segment", &|gate| select(gate, code32), GP, u64::from(code32)),
        ];
        for (what, change, vector, code) in cases {
            raw_gate(UD, change);
            let ud = insn!("ud2");
            put_back(UD);
            let trap = check_second(ud, vector, code, format_args!("#UD by a gate with {what}"));
            check!(trap.rflags & reg::FLAG_RF != 0, "no RF in {:#x}, {what}", trap.rflags);
            check_trap!(insn!("ud2"), UD, 0, "#UD through its own gate again");
        }
    }
);

test!(idt_limit, "An exception beyond the IDT's limit is #GP that names its entry.", || {
    let cr0 = reg::cr0();
    check_ok!(reg::set_cr0(cr0 | reg::CR0_AM));
    let mut user = User::new(asm_code!("mov rbx, [rsp - 63]"));
    user.regs.rflags |= reg::FLAG_AC;
    // #AC is 17: one byte too short, and just long enough.
    for (limit, vector, code) in [(17 * 16 + 14, GP, entry(AC)), (17 * 16 + 15, AC, 0)] {
        let table = reg::Table { base: idt::base(), limit };
        check_ok!(reg::lidt(table));
        let end = user.run().end;
        check_ok!(reg::lidt(reg::Table { limit: idt::LIMIT, ..table }));
        let End::Trap(trap) = end else { payload_rt::fail!("{end:?}") };
        if vector == AC {
            check!(trap.is(AC, 0), "limit {limit:#x}: {trap}, must be #AC");
        } else {
            check_second(Err(trap), vector, code, format_args!("limit {limit:#x}"));
        }
    }
    check_ok!(reg::set_cr0(cr0));
});

/// Raises each of these at CPL 0.
fn raise(vector: u8) {
    match vector {
        DE => insn_raw!("div ecx"; inout("eax") 1 => _, inout("edx") 0 => _, in("ecx") 0),
        UD => insn_raw!("ud2"),
        GP => insn_raw!("mov {}, [{}]"; out(reg) _, in(reg) 1_u64 << 63),
        PF => insn_raw!("mov {}, [{}]"; out(reg) _, in(reg) NOWHERE),
        NP => {
            insn_raw!("mov ds, {:e}"; in(reg) u32::from(cpu::set_descriptor(3, 0x00cf_1300_0000_ffff)))
        }
        _ => payload_rt::report::error(format_args!("no way to raise {vector}")),
    }
}

/// Nothing is mapped there.
const NOWHERE: u64 = 0x6abc_d000_0000;

test!(df_new_stack, "A #DF finds its stack, when nothing has touched that yet.", || {
    raw_gate(DE, |gate| gate & !(1 << 47));
    let result = catch(|| raise(DE));
    put_back(DE);
    check_trap!(result, DF, 0, "#NP on the way of #DE");
});

// SDM volume 3, tables 7-4 and 7-5: benign, contributory, page fault.
test!(nested, "A fault on the way of an exception follows it, or both become #DF.", || {
    check_ok!(mem::write(cpu::ist_range(1).end - 8, 0_u64), "touch the stack of #DF");
    // The second fault is #NP, which is contributory: the first one's gate is absent.
    for (first, second, code) in [(UD, NP, entry(UD)), (DE, DF, 0), (GP, DF, 0), (PF, DF, 0)] {
        raw_gate(first, |gate| gate & !(1 << 47));
        let result = catch(|| raise(first));
        put_back(first);
        if second == NP {
            check_second(result, NP, code, format_args!("#NP on the way of vector {first}"));
        } else {
            check_trap!(result, second, code, "#NP on the way of vector {first}");
        }
    }
    // The second fault is #PF: the first one's stack is not there.
    let ist4 = cpu::tss_address() + 36 + 8 * 3;
    let old = check_ok!(mem::read::<u64>(ist4));
    for (first, second) in [(UD, PF), (DE, PF), (GP, PF), (NP, PF), (PF, DF)] {
        check_ok!(mem::write(ist4, NOWHERE + 0x1000));
        idt::set_ist(first, 4);
        if first == PF {
            // #DF has a stack of its own.
            check_eq!(idt::get(DF).ist, 1, "the IST stack of #DF");
        }
        let result = catch(|| raise(first));
        put_back(first);
        check_ok!(mem::write(ist4, old));
        let code = if second == PF { 2 } else { 0 };
        let trap = check_trap!(result, second, code, "#PF on the way of vector {first}");
        if second == PF {
            let within = (NOWHERE + 0x1000 - 64..NOWHERE + 0x1000).contains(&trap.cr2);
            check!(within, "CR2 is {:#x}, not on the stack below {NOWHERE:#x}", trap.cr2);
        }
    }
});

// SDM volume 3, 7.14.4 and 7.15, #TS: a stack pointer beyond the TSS's limit.
test!(tss_limit, "An IST stack pointer beyond the TSS's limit is #TS that names the TSS.", || {
    let old = check_ok!(reg::sgdt()).base + u64::from(cpu::TSS_SELECTOR);
    let low = check_ok!(mem::read::<u64>(old));
    let high = check_ok!(mem::read::<u64>(old + 8));
    // Available, and as long as IST 3: IST 4 lies at 60.
    let available = low & !(0xffff | 0xf << 40 | 0xf << 48) | 9 << 40;
    for (limit, faults) in [(59, true), (66, true), (67, false)] {
        let selector = cpu::set_descriptor(0, available | limit);
        cpu::set_descriptor(1, high);
        check_ok!(reg::ltr(selector));
        idt::set_ist(UD, 4);
        let result = insn!("ud2");
        idt::set_ist(UD, 0);
        if faults {
            let what = format_args!("IST 4 with TSS limit {limit}");
            check_second(result, TS, selector.into(), what);
        } else {
            check_trap!(result, UD, 0, "IST 4 with TSS limit {limit}");
        }
    }
});

// SDM volume 3, 7.15, #DF: a fault on the way of #DF shuts the CPU down.
test!(triple_no_idt, "With an empty IDT the first exception shuts the CPU down.", || {
    check_ok!(reg::lidt(reg::Table { base: 0, limit: 0 }));
    insn_raw!("ud2");
});

test!(triple_absent, "With the gates of #GP and #DF absent, a #GP shuts the CPU down.", || {
    raw_gate(GP, |gate| gate & !(1 << 47));
    raw_gate(DF, |gate| gate & !(1 << 47));
    raise(GP);
});

test!(triple_stack, "Without a stack to write to, a #PF shuts the CPU down.", || {
    idt::set_ist(DF, 0);
    insn_raw!("mov rsp, {}", "push rax"; in(reg) NOWHERE);
});

test!(triple_user, "At CPL 3, with no stack for CPL 0, an exception shuts the CPU down.", || {
    idt::set_ist(DF, 4);
    let ist4 = cpu::tss_address() + 36 + 8 * 3;
    check_ok!(mem::write(ist4, NOWHERE));
    raw_gate(PF, |gate| gate & !(1 << 47));
    let mut user = User::new(asm_code!("mov rax, [rbx]"));
    user.regs.rbx = NOWHERE;
    let end = user.run().end;
    payload_rt::fail!("the CPU goes on, with {end:?}, CS {KERNEL_CS:#x}");
});
