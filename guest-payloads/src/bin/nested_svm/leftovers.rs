//! Intercepts and checks for what few processors have, and what VMRUN does with values that the manual
//! leaves open (AMD APM volume 2, 15.5.1, 15.9, 15.14.3, 15.16 and appendix C).

use crate::instructions::{Runs, intercepted};
use crate::invalid::is_invalid;
use crate::l1::L1;
use crate::{guest, run_to, run_to_end};
use payload_rt::cpuid::{self, Feature, Register};
use payload_rt::lab::{self, kind};
use payload_rt::svm::vmcb::{self, Seg};
use payload_rt::svm::{FLUSH_BY_ASID, exit};
use payload_rt::{asm_code, check, check_eq, reg, test, trap};

// APM volume 3, E.4.7: leaf 0x8000_0008, EBX.
const INVLPGB: Feature = Feature::new("invlpgb", 0x8000_0008, 0, Register::Ebx, 3);
const RDPRU: Feature = Feature::new("rdpru", 0x8000_0008, 0, Register::Ebx, 4);
const MCOMMIT: Feature = Feature::new("mcommit", 0x8000_0008, 0, Register::Ebx, 8);

/// Exit codes of the instructions that the runtime has no names for (appendix C).
const INVLPGB_EXIT: u64 = 0xa0;
const MCOMMIT_EXIT: u64 = 0xa3;
const TLBSYNC_EXIT: u64 = 0xa4;

// 15.9: #UD comes before the intercept.
test!(
    absent_instructions,
    "Instructions that CPUID does not have are #UD, intercepted or not.",
    || {
        let mut absent = 0;
        for (feature, exit, code) in [
            (RDPRU, exit::RDPRU, asm_code!(".byte 0x0f, 0x01, 0xfd", "vmmcall")),
            (INVLPGB, INVLPGB_EXIT, asm_code!(".byte 0x0f, 0x01, 0xfe", "vmmcall")),
            (INVLPGB, TLBSYNC_EXIT, asm_code!(".byte 0x0f, 0x01, 0xff", "vmmcall")),
            (MCOMMIT, MCOMMIT_EXIT, asm_code!(".byte 0xf3, 0x0f, 0x01, 0xfa", "vmmcall")),
            (cpuid::INVPCID, exit::INVPCID, asm_code!("invpcid rax, [rbx]", "vmmcall")),
        ] {
            if feature.present() {
                continue;
            }
            absent += 1;
            for on in [false, true] {
                let mut guest = guest(code);
                guest.regs.rbx = guest.stack_top() - 64;
                guest.vmcb.intercept(exit, on);
                let found = guest.run();
                let vector = guest.trap().map(|trap| trap.vector);
                check_eq!(vector, Some(trap::UD), "{feature:?}, intercepted {on}: {found:?}");
            }
        }
        if absent == 0 {
            payload_rt::skip!("CPUID has rdpru, invlpgb, mcommit and invpcid");
        }
    }
);

test!(invpcid_exits, "INVPCID exits, or runs.", || {
    cpuid::INVPCID.require();
    // Type 2: everything, whatever the descriptor, which is a page of zeroes.
    let code = asm_code!("invpcid rax, [rbx]", "vmmcall");
    intercepted(code, exit::INVPCID, Runs, |guest| guest.vmcb.set(vmcb::RAX, 2));
});

test!(rdpru_exits, "RDPRU exits, or runs.", || {
    RDPRU.require();
    intercepted(asm_code!(".byte 0x0f, 0x01, 0xfd", "vmmcall"), exit::RDPRU, Runs, |guest| {
        guest.regs.rcx = 0;
    });
});

// 15.14.3: a shutdown that nobody intercepts is the processor's.
test!(
    shutdown_not_intercepted,
    "A triple fault of a guest that L1 does not intercept shuts L1's own CPU down.",
    || {
        let mut guest = guest(asm_code!("ud2", "vmmcall"));
        guest.vmcb.set_segment(Seg::Idtr, vmcb::Segment::default());
        guest.vmcb.intercept(exit::SHUTDOWN, false);
        guest.vmcb.set(vmcb::EXITCODE, 0x5a5a);
        let ended = lab::until_exit(kind::SHUTDOWN, || guest.run());
        let Err(entry) = ended else { payload_rt::fail!("L1 goes on: {ended:?}") };
        check_eq!(entry.kind, kind::SHUTDOWN, "the exit");
        check_eq!(guest.vmcb.get(vmcb::EXITCODE), 0x5a5a, "EXITCODE: there was no #VMEXIT");
        // The shutdown was a reset for what the host does not put back, VM_HSAVE_PA among it.
        let mut next = crate::guest(asm_code!("mov ebx, 7", "vmmcall"));
        run_to_end(&mut next, "another guest, after L1 was put back");
        check_eq!(next.regs.rbx, 7, "RBX of the other guest");
    }
);

// 15.16.1, table 15-9: values but 0, 1, 3 and 7 are reserved, 3 and 7 where CPUID has no flushbyasid. The
// manual does not say what VMRUN does with them: it may refuse, and harm nothing.
test!(
    tlb_control_reserved,
    "A reserved TLB_CONTROL is refused or taken, and harms nothing.",
    || {
        let reserved = |value: &u64| match value {
            0 | 1 => false,
            3 | 7 => !FLUSH_BY_ASID.present(),
            _ => true,
        };
        let mut refused = 0;
        for value in (0..=255).filter(reserved) {
            let mut odd = guest(asm_code!("mov ebx, 7", "vmmcall"));
            odd.vmcb.set(vmcb::TLB_CONTROL, value);
            let l1 = L1::now();
            let found = odd.run();
            l1.check_intact("after a reserved TLB_CONTROL");
            if is_invalid(found) {
                refused += 1;
                check_eq!(
                    odd.regs.rbx,
                    0,
                    "RBX of a guest that was refused, TLB_CONTROL {value:#x}"
                );
            } else {
                check_eq!(found.code, exit::VMMCALL, "TLB_CONTROL {value:#x}: {found:?}");
                check_eq!(odd.regs.rbx, 7, "RBX of a guest that ran, TLB_CONTROL {value:#x}");
            }
        }
        payload_rt::report::value("refused", refused);
        let mut good = guest(asm_code!("mov ebx, 9", "vmmcall"));
        run_to_end(&mut good, "a good VMCB afterwards");
        check_eq!(good.regs.rbx, 9, "RBX of the good guest");
    }
);

// 15.5.1: also the bases of GDTR and IDTR, by which the guest goes on.
test!(
    table_bases_canonicalise,
    "VMRUN makes the bases of GDTR and IDTR canonical, and the guest uses them.",
    || {
        let mut guest = guest(asm_code!("ud2", "vmmcall"));
        let mut bases = [0; 2];
        for (segment, base) in [Seg::Gdtr, Seg::Idtr].into_iter().zip(&mut bases) {
            let mut value = guest.vmcb.segment(segment);
            *base = value.base;
            value.base |= 0x1200_0000_0000_0000;
            guest.vmcb.set_segment(segment, value);
        }
        let found = guest.run();
        let Some(trap) = guest.trap() else { payload_rt::fail!("no #UD by its IDT: {found:?}") };
        check_eq!(trap.vector, trap::UD, "the vector");
        for (segment, base) in [Seg::Gdtr, Seg::Idtr].into_iter().zip(bases) {
            check_eq!(guest.vmcb.segment(segment).base, base, "the base of {segment:?}");
        }
    }
);

// 15.9, table 15-7: the selective intercept is of MOV to CR0 and of LMSW.
test!(cr0_sel_write_lmsw, "The selective intercept takes LMSW that changes PE to EM.", || {
    let code = asm_code!("lmsw ax", "vmmcall");
    let mut guest = guest(code);
    guest.intercept(&[exit::CR0_SEL_WRITE]);
    guest.vmcb.set(vmcb::RAX, (reg::cr0() ^ reg::CR0_EM) & 0xffff);
    run_to(&mut guest, exit::CR0_SEL_WRITE, "EM changes");
    check_eq!(guest.rip(), code.as_ptr() as u64, "RIP at the exit");
    let mut guest = crate::guest(code);
    guest.intercept(&[exit::CR0_SEL_WRITE]);
    guest.vmcb.set(vmcb::RAX, (reg::cr0() ^ reg::CR0_TS) & 0xffff);
    run_to_end(&mut guest, "TS changes");
    check!(guest.vmcb.get(vmcb::CR0) & reg::CR0_TS != 0, "CR0.TS of the guest");
});
