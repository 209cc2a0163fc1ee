//! Where canonical addresses of 57 bits end (SDM volume 1, 3.3.7.1; volume 3, 5.5 and chapter 4; APM volume 2,
//! 5.3.1).

use crate::{AT, frame_of_ret, frame_with, map};
use payload_rt::cpu::{FREE_SELECTOR, set_descriptor};
use payload_rt::legacy::table::{self, segment};
use payload_rt::levels::{self, LOWER_END, UPPER};
use payload_rt::reg::{rdmsr, wrmsr};
use payload_rt::*;

/// Addresses that are not canonical with 57 bits: the edges first.
const NOT_CANONICAL: [u64; 6] =
    [LOWER_END, UPPER - 1, LOWER_END + 0x1000, UPPER - 0x1000, 1 << 63, i64::MAX as u64];

test!(canonical, "Loads, stores and fetches beyond 57 bits are #GP(0), never #PF.", || {
    levels::five();
    for at in NOT_CANONICAL {
        check_trap!(mem::read::<u8>(at), trap::GP, 0, "a read at {at:#x}");
        check_trap!(mem::write(at, 0_u8), trap::GP, 0, "a write at {at:#x}");
        check_trap!(mem::call(at), trap::GP, 0, "a call of {at:#x}");
    }
});

test!(canonical_stack, "Through RBP and RSP they are #SS(0).", || {
    levels::five();
    for at in NOT_CANONICAL {
        let by_rbp = trap::catch(|| {
            insn_raw!(
                "xchg rbp, {0}", "mov al, [rbp]", "xchg rbp, {0}";
                inout(reg) at => _, out("al") _
            );
        });
        check_trap!(by_rbp, trap::SS, 0, "a read by RBP at {at:#x}");
    }
});

test!(
    straddle,
    "An access whose last bytes are beyond the lower half of 57 bits is #GP(0).",
    || {
        levels::five();
        let last = LOWER_END - 0x1000;
        map(last, frame_of_ret());
        check_ok!(mem::read::<u64>(last + 0xff8), "the last word");
        for offset in 0xff9..0x1000 {
            let at = last + offset;
            check_trap!(mem::read::<u64>(at), trap::GP, 0, "a read at {at:#x}");
            check_trap!(mem::write(at, 0_u64), trap::GP, 0, "a write at {at:#x}");
        }
        check_eq!(
            mem::read::<u64>(last + 0xff8),
            Ok(u64::from_le_bytes([crate::RET; 8])),
            "memory"
        );
    }
);

test!(jumps, "RET and far returns to what is not canonical are #GP(0).", || {
    levels::five();
    for at in NOT_CANONICAL {
        let ret = trap::catch(|| {
            insn_raw!("push {0}", "ret"; in(reg) at);
        });
        check_trap!(ret, trap::GP, 0, "a return to {at:#x}");
        let far = trap::catch(|| {
            insn_raw!("push 8", "push {0}", "retfq"; in(reg) at);
        });
        check_trap!(far, trap::GP, 0, "a far return to {at:#x}");
    }
    // The last byte before the edge may be an instruction's.
    map(LOWER_END - 0x1000, frame_of_ret());
    check_ok!(mem::call(LOWER_END - 1), "a call of the last byte");
});

test!(falls_off, "Code that runs on beyond the lower half is #GP(0).", || {
    levels::five();
    let frame = frame_of_ret();
    check_ok!(mem::write(frame + 0xfff, 0x90_u8));
    map(LOWER_END - 0x1000, frame);
    check_trap!(mem::call(LOWER_END - 1), trap::GP, 0, "NOP at the last byte");
});

// SDM volume 2, INVLPG: no fault on an address that is not canonical.
test!(
    invlpg,
    "INVLPG forgets a 57-bit address, and does nothing to one that is not canonical.",
    || {
        levels::five();
        let frames = [frame_with(1), frame_with(2)];
        for at in [AT, LOWER_END - 0x1000, UPPER] {
            let leaf = map(at, frames[0]);
            for round in 0..8 {
                let n = round % 2;
                leaf.set(frames[n] | paging::Flags::RW.0);
                paging::invlpg(at + 0x7ff);
                check_eq!(mem::read::<u64>(at), Ok(n as u64 + 1), "{at:#x} after INVLPG");
            }
        }
        for at in NOT_CANONICAL {
            check_ok!(insn!("invlpg [{}]"; in(reg) at), "INVLPG of {at:#x}");
        }
    }
);

/// MSRs of linear addresses that both makers check.
const MSRS: [(&str, u32); 5] = [
    ("LSTAR", reg::LSTAR),
    ("CSTAR", reg::CSTAR),
    ("FS_BASE", reg::FS_BASE),
    ("GS_BASE", reg::GS_BASE),
    ("KERNEL_GS_BASE", reg::KERNEL_GS_BASE),
];

test!(msrs_take, "MSRs of linear addresses take and keep all 57 bits.", || {
    levels::five();
    for (name, msr) in MSRS {
        for value in [LOWER_END - 1, UPPER, 1 << 48, 0xff80_0000_0000_1000, 0] {
            check_ok!(wrmsr(msr, value), "write {value:#x} to {name}");
            check_eq!(rdmsr(msr), Ok(value), "{name}");
        }
    }
});

test!(msrs_refuse, "MSRs of linear addresses refuse what has more than 57 bits.", || {
    levels::five();
    for (name, msr) in MSRS {
        let before = check_ok!(rdmsr(msr));
        for value in NOT_CANONICAL {
            check_trap!(wrmsr(msr, value), trap::GP, 0, "write {value:#x} to {name}");
            check_eq!(rdmsr(msr), Ok(before), "{name} after {value:#x}");
        }
    }
});

// SDM volume 3, chapter 4 on canonicality: WRMSR goes by what the processor has, not by CR4.LA57.
test!(
    msrs_with_four,
    "With four levels MSRs of linear addresses take 57 bits all the same.",
    || {
        cpuid::LA57.require();
        for (name, msr) in MSRS {
            for value in [LOWER_END - 1, UPPER, 0] {
                check_ok!(wrmsr(msr, value), "write {value:#x} to {name}");
                check_eq!(rdmsr(msr), Ok(value), "{name}");
            }
        }
    }
);

test!(bases, "FS and GS with 57-bit bases lead there, and #GP(0) beyond.", || {
    levels::five();
    let frame = frame_with(0xf5f5);
    map(AT, frame);
    for base in [AT, AT - 0x4_0000_0000] {
        check_ok!(wrmsr(reg::FS_BASE, base));
        check_ok!(wrmsr(reg::GS_BASE, base));
        let (by_fs, by_gs): (u64, u64);
        check_ok!(insn!(
            "mov {f}, fs:[{offset}]", "mov {g}, gs:[{offset}]";
            f = out(reg) by_fs, g = out(reg) by_gs, offset = in(reg) AT - base
        ));
        check_eq!((by_fs, by_gs), (0xf5f5, 0xf5f5), "by base {base:#x}");
    }
    check_ok!(wrmsr(reg::FS_BASE, LOWER_END - 0x1000));
    check_ok!(wrmsr(reg::GS_BASE, UPPER));
    let by_fs = insn!("mov {0}, fs:[{0}]"; inout(reg) 0x1000_u64 => _);
    check_trap!(by_fs, trap::GP, 0, "FS, behind the lower half");
    let by_gs = insn!("mov {0}, gs:[{0}]"; inout(reg) -8_i64 => _);
    check_trap!(by_gs, trap::GP, 0, "GS, before the upper half");
});

test!(table_registers, "LGDT and LIDT take bases of 57 bits.", || {
    levels::five();
    let (gdt, idt) = (check_ok!(reg::sgdt()), check_ok!(reg::sidt()));
    for base in [LOWER_END - 0x1000, UPPER, AT] {
        let table = |limit| reg::Table { base, limit };
        // Nothing may be loaded or come in between: both go back at once.
        check_ok!(reg::lgdt(table(gdt.limit)), "LGDT of {base:#x}");
        check_eq!(reg::sgdt(), Ok(table(gdt.limit)), "GDTR");
        check_ok!(reg::lgdt(gdt));
        check_ok!(reg::lidt(table(idt.limit)), "LIDT of {base:#x}");
        let found = reg::sidt();
        check_ok!(reg::lidt(idt));
        check_eq!(found, Ok(table(idt.limit)), "IDTR");
    }
});

test!(table_registers_refuse, "LGDT and LIDT refuse what is not canonical with 57 bits.", || {
    levels::five();
    let (gdt, idt) = (check_ok!(reg::sgdt()), check_ok!(reg::sidt()));
    for base in NOT_CANONICAL {
        let table = |limit| reg::Table { base, limit };
        check_trap!(reg::lgdt(table(gdt.limit)), trap::GP, 0, "LGDT of {base:#x}");
        check_trap!(reg::lidt(table(idt.limit)), trap::GP, 0, "LIDT of {base:#x}");
        check_eq!(reg::sgdt(), Ok(gdt), "GDTR");
        check_eq!(reg::sidt(), Ok(idt), "IDTR");
    }
});

test!(ldt, "An LDT at a 57-bit address serves.", || {
    levels::five();
    let page = frames::alloc().address();
    check_ok!(mem::write(page + 8, segment(0x7000, 0xfff, table::WRITABLE)));
    map(AT, page);
    // 24:31 and 32:63 of the base lie in the upper byte of the first word and in the second.
    let selector = set_descriptor(0, segment(AT as u32, 15, table::AN_LDT));
    check_eq!(selector, FREE_SELECTOR);
    set_descriptor(1, AT >> 32);
    check_ok!(insn!("lldt {:x}"; in(reg) selector));
    check_ok!(reg::set_fs(8 | 4), "a selector of the LDT");
    check_eq!(rdmsr(reg::FS_BASE), Ok(0x7000), "base of FS");
    check_ok!(reg::set_fs(0));
    check_ok!(insn!("lldt {:x}"; in(reg) 0));
});

test!(ldt_refused, "LLDT of a base that is not canonical with 57 bits is #GP(selector).", || {
    levels::five();
    for base in NOT_CANONICAL {
        let selector = set_descriptor(0, segment(base as u32, 15, table::AN_LDT));
        set_descriptor(1, base >> 32);
        let lldt = insn!("lldt {:x}"; in(reg) selector);
        check_trap!(lldt, trap::GP, u64::from(selector), "LLDT of base {base:#x}");
    }
});
