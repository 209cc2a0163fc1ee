//! Five levels in nested guests on SVM (APM volume 2, 15.5.1, 15.25.3: guest and host have a CR4 each, and the
//! nested tables have as many levels as the host's own paging).

use crate::{AT, frame_with, map};
use payload_rt::levels;
use payload_rt::paging::ADDRESS;
use payload_rt::svm::npt::Npt;
use payload_rt::svm::{self, Guest, NPT, exit, vmcb};
use payload_rt::*;

/// L2 reads RCX to RAX.
fn load() -> Guest {
    svm::enable();
    Guest::new(asm_code!("mov rax, [rcx]", "vmmcall"))
}

/// Runs L2; RAX at its end, or the vector of its trap.
fn run(guest: &mut Guest, rcx: u64, start: u64) -> Result<u64, u8> {
    guest.regs.rcx = rcx;
    guest.vmcb.set(vmcb::RIP, start);
    let exit = guest.run();
    check_eq!(exit.code, exit::VMMCALL, "{exit:?}");
    match guest.trap() {
        Some(trap) => Err(trap.vector),
        None => Ok(guest.vmcb.get(vmcb::RAX)),
    }
}

/// L1 with five levels (and nested tables of five), L2 with four, and then with five.
fn under_five(nested: bool) {
    let four = reg::cr3();
    let five = levels::five();
    let low = 0x5432_1000_0000;
    map(AT, frame_with(0x57));
    map(low, frame_with(0x48));
    let mut guest = load();
    if nested {
        NPT.require();
        guest.vmcb.add(vmcb::NP_ENABLE, 1);
        guest.vmcb.set(vmcb::N_CR3, levels::top_over(Npt::identity().root()));
    }
    let start = guest.rip();
    for round in 0..3 {
        guest.vmcb.set(vmcb::CR3, four & ADDRESS);
        guest.vmcb.remove(vmcb::CR4, reg::CR4_LA57);
        check_eq!(run(&mut guest, low, start), Ok(0x48), "round {round}: L2 with four levels");
        check_eq!(run(&mut guest, AT, start), Err(trap::GP), "round {round}: 57 bits with four");
        guest.vmcb.set(vmcb::RSP, guest.stack_top() - 8);
        check_eq!(reg::cr3(), five, "L1's CR3");
        check!(reg::cr4() & reg::CR4_LA57 != 0, "L1's CR4.LA57");
        check_eq!(mem::read::<u64>(AT), Ok(0x57), "round {round}: L1");
        guest.vmcb.set(vmcb::CR3, five);
        guest.vmcb.add(vmcb::CR4, reg::CR4_LA57);
        check_eq!(run(&mut guest, AT, start), Ok(0x57), "round {round}: L2 with five levels");
        check_eq!(run(&mut guest, low, start), Ok(0x48), "round {round}: low, with five levels");
    }
}

/// L1 with four levels, L2 with five.
fn under_four(nested: bool) {
    cpuid::LA57.require();
    let four = reg::cr3();
    let five = levels::top_over(four & ADDRESS);
    // L2's tables, made while they are L1's.
    levels::switch(five, true);
    map(AT, frame_with(0x57));
    levels::switch(four, false);
    let mut guest = load();
    if nested {
        NPT.require();
        guest.nest(&Npt::identity());
    }
    let start = guest.rip();
    guest.vmcb.set(vmcb::CR3, five);
    guest.vmcb.add(vmcb::CR4, reg::CR4_LA57);
    for round in 0..3 {
        check_eq!(run(&mut guest, AT, start), Ok(0x57), "round {round}: L2 with five levels");
        check_eq!(run(&mut guest, 1 << 56, start), Err(trap::GP), "round {round}: 58 bits");
        guest.vmcb.set(vmcb::RSP, guest.stack_top() - 8);
        check_eq!((reg::cr3(), reg::cr4() & reg::CR4_LA57), (four, 0), "L1");
        check_trap!(mem::read::<u64>(AT), trap::GP, 0, "round {round}: L1 has four levels");
    }
}

test!(svm_under_five, "An L1 with five levels runs L2 with four and with five.", || {
    under_five(false)
});

test!(
    svm_under_five_nested,
    "So it does by nested paging, with nested tables of five levels.",
    || under_five(true)
);

test!(svm_under_four, "An L1 with four levels runs an L2 with five.", || under_four(false));

test!(
    svm_under_four_nested,
    "So it does by nested paging, with nested tables of four levels.",
    || under_four(true)
);

// APM volume 2, 15.5.1: "Any MBZ bit of CR4 is set".
test!(svm_hidden, "VMRUN with CR4.LA57 where CPUID lacks it is VMEXIT_INVALID.", || {
    if cpuid::LA57.present() {
        skip!("CPUID has LA57");
    }
    let mut guest = load();
    guest.vmcb.add(vmcb::CR4, reg::CR4_LA57);
    check_eq!(guest.run().code, exit::INVALID);
});

test!(svm_fixed, "L2 in long mode cannot change its CR4.LA57, either way.", || {
    cpuid::LA57.require();
    for five in [false, true] {
        let mut guest = {
            svm::enable();
            Guest::new(asm_code!("mov cr4, rcx", "vmmcall"))
        };
        let cr4 = reg::cr4() | if five { reg::CR4_LA57 } else { 0 };
        if five {
            guest.vmcb.set(vmcb::CR3, levels::top_over(reg::cr3() & ADDRESS));
            guest.vmcb.set(vmcb::CR4, cr4);
        }
        let start = guest.rip();
        check_eq!(run(&mut guest, cr4 ^ reg::CR4_LA57, start), Err(trap::GP), "from {cr4:#x}");
        check_eq!(guest.vmcb.get(vmcb::CR4), cr4, "L2's CR4");
    }
});
