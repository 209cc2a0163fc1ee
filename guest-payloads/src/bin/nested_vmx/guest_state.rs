//! VM-entry checks on the guest state (SDM volume 3, "Checking and Loading Guest State"): a failed check
//! is a VM exit with reason 33 and bit 31, after which the VMCS's guest state is as it was.
//!
//! Reserved bits of access rights are not tried: VMWRITE of some processors drops them.

use super::checks::{each_invalid, enters, enters_with, invalid_with, too_wide};
use super::vm;
use payload_rt::reg::{self, CR0_PE, CR0_PG, CR4_PAE, CR4_PCIDE, FLAG_IF, FLAG_TF};
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::exit::{Kind, event};
use payload_rt::vmx::{Field, Vm, get, set};
use payload_rt::{apic, check_ok, frames, mem, skip, test};

const NOT_CANONICAL: u64 = 0x4000_0000_0000_0000;

// Qualifications (SDM, "VM-Entry Failures During or After Loading Guest State").
const PDPTE: u64 = 2;
const LINK_POINTER: u64 = 4;

/// Flips each bit of a register that is fixed in VMX operation.
fn fixed_bits(vm: &mut Vm, field: Field, fixed0: u64, fixed1: u64) {
    let good = get(field);
    for bit in (0..64).map(|bit| 1 << bit) {
        if fixed0 & bit != 0 {
            invalid_with(vm, 0, &[(field, good & !bit)], "a bit that is fixed to 1");
        } else if fixed1 & bit == 0 {
            invalid_with(vm, 0, &[(field, good | bit)], "a bit that is fixed to 0");
        }
    }
    enters(vm, "with nothing changed");
}

test!(guest_cr0_fixed, "Guest CR0 must keep the bits that are fixed in VMX operation.", || {
    let (zero, one) = (caps::read(CR0_FIXED0), caps::read(CR0_FIXED1));
    fixed_bits(&mut vm(), Field::GUEST_CR0, zero, one);
});

test!(guest_cr4_fixed, "Guest CR4 must keep the bits that are fixed in VMX operation.", || {
    let (zero, one) = (caps::read(CR4_FIXED0), caps::read(CR4_FIXED1));
    fixed_bits(&mut vm(), Field::GUEST_CR4, zero, one);
});

test!(
    guest_cr0_unrestricted,
    "An unrestricted guest may clear PE and PG, but PG needs PE, and 64-bit mode both.",
    || {
        let mut vm = vm();
        vm.with_ept();
        vm.add(Field::CPU_CONTROLS2, CPU2_UNRESTRICTED);
        let cr0 = get(Field::GUEST_CR0);
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::GUEST_CR0, cr0 & !CR0_PE, "PG without PE"),
                (Field::GUEST_CR0, cr0 & !CR0_PG, "IA-32e mode guest without PG"),
                (Field::GUEST_CR0, cr0 & !(CR0_PE | CR0_PG), "IA-32e mode guest without PE"),
                (Field::GUEST_CR0, cr0 & !reg::CR0_NE, "NE clear"),
            ],
        );
    }
);

test!(guest_64_bit_mode, "IA-32e mode guest needs CR4.PAE; PCIDE needs IA-32e mode.", || {
    let mut vm = vm();
    let cr4 = get(Field::GUEST_CR4);
    each_invalid(&mut vm, 0, &[(Field::GUEST_CR4, cr4 & !CR4_PAE, "PAE clear")]);
    if caps::read(CR4_FIXED1) & CR4_PCIDE != 0 {
        pae(&mut vm);
        let changes = [(Field::GUEST_CR4, cr4 | CR4_PCIDE)];
        invalid_with(&mut vm, 0, &changes, "PCIDE outside of IA-32e mode");
    }
});

test!(guest_cr3, "Guest CR3 beyond the physical width fails the entry.", || {
    let mut vm = vm();
    let cr3 = get(Field::GUEST_CR3);
    each_invalid(
        &mut vm,
        0,
        &[
            (Field::GUEST_CR3, cr3 | too_wide(), "too wide"),
            (Field::GUEST_CR3, cr3 | 1 << 51, "bit 51"),
            (Field::GUEST_CR3, cr3 | 1 << 63, "bit 63"),
        ],
    );
});

test!(
    guest_debug_registers,
    "DR7 above 32 bits and reserved bits of IA32_DEBUGCTL fail the entry, if they are loaded.",
    || {
        let mut vm = vm();
        vm.remove(Field::ENTRY_CONTROLS, ENTRY_LOAD_DEBUG);
        if get(Field::ENTRY_CONTROLS) & ENTRY_LOAD_DEBUG == 0 {
            let changes = [(Field::GUEST_DR7, 1 << 32 | 0x400), (Field::GUEST_DEBUGCTL, 1 << 63)];
            enters_with(&mut vm, &changes, "debug controls that are not loaded");
        }
        vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_DEBUG);
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::GUEST_DR7, 1 << 32 | 0x400, "bit 32 of DR7"),
                (Field::GUEST_DR7, 1 << 63 | 0x400, "bit 63 of DR7"),
                (Field::GUEST_DEBUGCTL, 1 << 3, "bit 3 of IA32_DEBUGCTL"),
                (Field::GUEST_DEBUGCTL, 1 << 16, "bit 16 of IA32_DEBUGCTL"),
                (Field::GUEST_DEBUGCTL, 1 << 63, "bit 63 of IA32_DEBUGCTL"),
            ],
        );
    }
);

test!(guest_sysenter, "SYSENTER addresses that are not canonical fail the entry.", || {
    each_invalid(
        &mut vm(),
        0,
        &[
            (Field::GUEST_SYSENTER_ESP, NOT_CANONICAL, "IA32_SYSENTER_ESP"),
            (Field::GUEST_SYSENTER_EIP, NOT_CANONICAL, "IA32_SYSENTER_EIP"),
        ],
    );
});

test!(guest_pat, "Guest PAT that is loaded must have memory types only: 0, 1, 4, 5, 6, 7.", || {
    let mut vm = vm();
    vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_PAT);
    let good = check_ok!(reg::rdmsr(reg::PAT));
    set(Field::GUEST_PAT, good);
    for byte in [0, 3, 7] {
        let with = |kind: u64| good & !(0xff << (8 * byte)) | kind << (8 * byte);
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::GUEST_PAT, with(2), "type 2"),
                (Field::GUEST_PAT, with(3), "type 3"),
                (Field::GUEST_PAT, with(8), "type 8"),
                (Field::GUEST_PAT, with(0x86), "bit 7 of a byte"),
            ],
        );
    }
});

test!(
    guest_efer,
    "Guest EFER that is loaded must have no reserved bit, LMA as the entry control and, with PG, LME.",
    || {
        let mut vm = vm();
        vm.add(Field::ENTRY_CONTROLS, ENTRY_LOAD_EFER);
        let good = check_ok!(reg::rdmsr(reg::EFER));
        set(Field::GUEST_EFER, good);
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::GUEST_EFER, good & !reg::EFER_LMA, "LMA clear"),
                (Field::GUEST_EFER, good & !reg::EFER_LME, "LME clear"),
                (Field::GUEST_EFER, good & !(reg::EFER_LMA | reg::EFER_LME), "both clear"),
                (Field::GUEST_EFER, good | 1 << 1, "bit 1"),
                (Field::GUEST_EFER, good | 1 << 9, "bit 9"),
                (Field::GUEST_EFER, good | 1 << 63, "bit 63"),
            ],
        );
        vm.remove(Field::ENTRY_CONTROLS, ENTRY_LOAD_EFER);
        enters_with(&mut vm, &[(Field::GUEST_EFER, u64::MAX)], "an EFER that is not loaded");
    }
);

test!(guest_rip, "A RIP that is not canonical fails the entry to 64-bit mode.", || {
    each_invalid(
        &mut vm(),
        0,
        &[
            (Field::GUEST_RIP, NOT_CANONICAL, "not canonical"),
            (Field::GUEST_RIP, 1 << 63, "bit 63"),
        ],
    );
});

test!(guest_rip_32, "A RIP above 32 bits fails the entry outside of 64-bit mode.", || {
    // Compatibility mode: CS.L clear, D set.
    let compatibility = [(Field::CS_RIGHTS, 0xc09b), (Field::GUEST_RIP, 1 << 32)];
    invalid_with(&mut vm(), 0, &compatibility, "bit 32 in compatibility mode");
});

test!(
    guest_rflags,
    "RFLAGS with a reserved bit, without bit 1, or with VM in 64-bit mode fails the entry.",
    || {
        each_invalid(
            &mut vm(),
            0,
            &[
                (Field::GUEST_RFLAGS, 0, "bit 1 clear"),
                (Field::GUEST_RFLAGS, 2 | 1 << 3, "bit 3"),
                (Field::GUEST_RFLAGS, 2 | 1 << 5, "bit 5"),
                (Field::GUEST_RFLAGS, 2 | 1 << 15, "bit 15"),
                (Field::GUEST_RFLAGS, 2 | 1 << 22, "bit 22"),
                (Field::GUEST_RFLAGS, 2 | 1 << 63, "bit 63"),
                (Field::GUEST_RFLAGS, 2 | 1 << 17, "VM in IA-32e mode"),
            ],
        );
    }
);

test!(
    guest_rflags_if,
    "Injecting an external interrupt with RFLAGS.IF clear fails the entry.",
    || {
        each_invalid(
            &mut vm(),
            0,
            &[(Field::ENTRY_EVENT, event(Kind::External, 0x40), "IF clear")],
        );
    }
);

test!(
    guest_activity,
    "An activity state that there is not, or that is not offered, fails the entry.",
    || {
        let mut vm = vm();
        let misc = caps::read(caps::MISC);
        for state in 1..4 {
            if misc & 1 << (5 + state) == 0 {
                invalid_with(&mut vm, 0, &[(Field::ACTIVITY, state)], "not offered");
            }
        }
        each_invalid(
            &mut vm,
            0,
            &[(Field::ACTIVITY, 4, "4"), (Field::ACTIVITY, 0x8000_0000, "bit 31")],
        );
    }
);

/// A guest that can be entered in the HLT state: should it halt, a timer gets L1 out of it.
fn to_halt() -> Vm {
    let mut vm = vm();
    if caps::read(caps::MISC) & 1 << 6 == 0 {
        skip!("no activity state HLT in IA32_VMX_MISC");
    }
    vm.add(Field::PIN_CONTROLS, PIN_EXTERNAL);
    let apic = apic::set_mode(apic::Mode::X2Apic);
    apic.enable();
    apic.set_timer(apic::Timer::Periodic, 0x51);
    apic.start_timer(50_000_000);
    set(Field::ACTIVITY, 1);
    vm
}

test!(
    guest_halted_blocked,
    "The HLT state with blocking by STI or MOV SS fails the entry.",
    || {
        let mut vm = to_halt();
        let flags = (Field::GUEST_RFLAGS, 2 | FLAG_IF);
        for (blocking, what) in [(1, "blocking by STI"), (2, "blocking by MOV SS")] {
            invalid_with(&mut vm, 0, &[flags, (Field::INTERRUPTIBILITY, blocking)], what);
        }
    }
);

test!(guest_halted_cpl3, "The HLT state with a DPL of SS above 0 fails the entry.", || {
    let cpl3 = [
        (Field::GUEST_CS, 0x2b),
        (Field::CS_RIGHTS, 0xa0fb),
        (Field::GUEST_SS, 0x23),
        (Field::SS_RIGHTS, 0xc0f3),
    ];
    invalid_with(&mut to_halt(), 0, &cpl3, "HLT at CPL 3");
});

test!(
    guest_halted_events,
    "The HLT state with an injected exception other than #DB and #MC fails the entry.",
    || {
        let mut vm = to_halt();
        for vector in [0, 6, 16] {
            let fault = [(Field::ENTRY_EVENT, event(Kind::Hardware, vector))];
            invalid_with(&mut vm, 0, &fault, "HLT with a fault");
        }
    }
);

test!(
    guest_interruptibility,
    "Reserved interruptibility bits, STI with MOV SS, STI without IF, and SMI outside of SMM fail the entry.",
    || {
        let mut vm = vm();
        each_invalid(
            &mut vm,
            0,
            &[
                (Field::INTERRUPTIBILITY, 1 << 5, "bit 5"),
                (Field::INTERRUPTIBILITY, 1 << 31, "bit 31"),
                (Field::INTERRUPTIBILITY, 1, "blocking by STI with IF clear"),
                (Field::INTERRUPTIBILITY, 4, "blocking by SMI outside of SMM"),
            ],
        );
        let on = (Field::GUEST_RFLAGS, 2 | FLAG_IF);
        let both = [on, (Field::INTERRUPTIBILITY, 3)];
        invalid_with(&mut vm, 0, &both, "blocking by STI and by MOV SS");
        for blocking in [1, 2] {
            let interrupt = (Field::ENTRY_EVENT, event(Kind::External, 0x40));
            let changes = [on, (Field::INTERRUPTIBILITY, blocking), interrupt];
            invalid_with(&mut vm, 0, &changes, "an external interrupt under blocking");
        }
        let nmi = [(Field::INTERRUPTIBILITY, 2), (Field::ENTRY_EVENT, event(Kind::Nmi, 2))];
        // Qualification 3 is for an NMI under blocking by STI.
        invalid_with(&mut vm, 0, &nmi, "an NMI under blocking by MOV SS");
    }
);

test!(
    guest_nmi_blocked,
    "Injecting an NMI with virtual NMIs under blocking by NMI fails the entry.",
    || {
        let mut vm = vm();
        vm.add(Field::PIN_CONTROLS, PIN_NMI | PIN_VIRTUAL_NMIS);
        let nmi = [(Field::INTERRUPTIBILITY, 8), (Field::ENTRY_EVENT, event(Kind::Nmi, 2))];
        invalid_with(&mut vm, 0, &nmi, "an NMI under blocking by NMI");
    }
);

test!(guest_pending_debug, "Reserved bits of the pending debug exceptions fail the entry.", || {
    each_invalid(
        &mut vm(),
        0,
        &[
            (Field::PENDING_DEBUG, 1 << 4, "bit 4"),
            (Field::PENDING_DEBUG, 1 << 13, "bit 13"),
            (Field::PENDING_DEBUG, 1 << 15, "bit 15"),
        ],
    );
});

test!(
    guest_pending_debug_step,
    "Under blocking by STI or MOV SS, BS in the pending debug exceptions must be as RFLAGS.TF.",
    || {
        let mut vm = vm();
        let blocked = (Field::INTERRUPTIBILITY, 2);
        let stepping = (Field::GUEST_RFLAGS, 2 | FLAG_TF);
        let missing = [blocked, stepping, (Field::PENDING_DEBUG, 0)];
        invalid_with(&mut vm, 0, &missing, "TF under blocking without BS");
        let unfit = [blocked, (Field::PENDING_DEBUG, 1 << 14)];
        invalid_with(&mut vm, 0, &unfit, "BS under blocking without TF");
    }
);

test!(
    guest_pending_debug_high,
    "Bits above 31 of the pending debug exceptions fail the entry.",
    || {
        each_invalid(
            &mut vm(),
            0,
            &[(Field::PENDING_DEBUG, 1 << 32, "bit 32"), (Field::PENDING_DEBUG, 1 << 63, "bit 63")],
        );
    }
);

test!(
    guest_link_pointer,
    "A VMCS link pointer that is neither all ones nor a VMCS fails the entry, with qualification 4.",
    || {
        let mut vm = vm();
        let page = frames::alloc().address();
        check_ok!(mem::write(page, caps::revision() ^ 1));
        each_invalid(
            &mut vm,
            LINK_POINTER,
            &[
                (Field::LINK, page, "another revision"),
                (Field::LINK, page + 8, "not aligned"),
                (Field::LINK, page | too_wide(), "too wide"),
                (Field::LINK, 1 << 63, "far too wide"),
            ],
        );
        // Bit 31 of the revision must be as VMCS shadowing is.
        check_ok!(mem::write(page, caps::revision() | 1 << 31));
        invalid_with(&mut vm, LINK_POINTER, &[(Field::LINK, page)], "a shadow VMCS, no shadowing");
    }
);

test!(
    guest_pdptes,
    "Under PAE paging a PDPTE with reserved bits fails the entry: in the VMCS with EPT, in memory without.",
    || {
        let mut vm = vm();
        pae(&mut vm);
        let pdpt = get(Field::GUEST_CR3);
        for bad in [1 | 1 << 1, 1 | 1 << 8, 1 | too_wide(), 1 | 1 << 63] {
            check_ok!(mem::write(pdpt + 8, bad));
            invalid_with(&mut vm, PDPTE, &[], "a PDPTE in memory");
            check_ok!(mem::write(pdpt + 8, 0u64));
        }
        enters(&mut vm, "with good PDPTEs in memory");
        vm.with_ept();
        for field in [Field::GUEST_PDPTE1, Field::GUEST_PDPTE3] {
            for bad in [1 | 1 << 1, 1 | 1 << 8, 1 | too_wide(), 1 | 1 << 63] {
                invalid_with(&mut vm, PDPTE, &[(field, bad)], "a PDPTE in the VMCS");
            }
        }
    }
);

/// Makes it a 32-bit guest with PAE paging: the code's 2 MiB and no more.
pub fn pae(vm: &mut Vm) {
    let (pdpt, pd) = (frames::alloc().address(), frames::alloc().address());
    check_ok!(mem::write(pdpt, pd | 1));
    for i in 0..512u64 {
        check_ok!(mem::write(pd + 8 * i, i << 21 | 0x83));
    }
    vm.remove(Field::ENTRY_CONTROLS, ENTRY_GUEST64);
    set(Field::GUEST_CR3, pdpt);
    set(Field::CS_RIGHTS, 0xc09b);
    set(Field::GUEST_PDPTE0, pd | 1);
}
