//! Intercepts of control and debug registers (AMD APM volume 2, 15.8.1 and 15.9).

use crate::instructions::{Runs, intercepted, intercepts, nothing};
use crate::{guest, run_to, run_to_end};
use payload_rt::svm::{Guest, exit, vmcb};
use payload_rt::{asm_code, check, check_eq, reg, test, trap};

intercepts! {
    cr0_read_exits "A read of CR0 exits, or runs.": exit::cr_read(0), ["mov rax, cr0"], Runs;
    cr2_read_exits "A read of CR2 exits, or runs.": exit::cr_read(2), ["mov rax, cr2"], Runs;
    cr3_read_exits "A read of CR3 exits, or runs.": exit::cr_read(3), ["mov rax, cr3"], Runs;
    cr4_read_exits "A read of CR4 exits, or runs.": exit::cr_read(4), ["mov rax, cr4"], Runs;
    cr8_read_exits "A read of CR8 exits, or runs.": exit::cr_read(8), ["mov rax, cr8"], Runs;
    smsw_exits "SMSW is a read of CR0.": exit::cr_read(0), ["smsw eax"], Runs;
    cr0_write_exits "A write of CR0 exits, or runs.":
        exit::cr_write(0), ["mov cr0, rax"], Runs, |g| g.vmcb.set(vmcb::RAX, reg::cr0());
    cr2_write_exits "A write of CR2 exits, or runs.":
        exit::cr_write(2), ["mov cr2, rax"], Runs;
    cr3_write_exits "A write of CR3 exits, or runs.":
        exit::cr_write(3), ["mov cr3, rax"], Runs, |g| g.vmcb.set(vmcb::RAX, reg::cr3());
    cr4_write_exits "A write of CR4 exits, or runs.":
        exit::cr_write(4), ["mov cr4, rax"], Runs, |g| g.vmcb.set(vmcb::RAX, reg::cr4());
    cr8_write_exits "A write of CR8 exits, or runs.":
        exit::cr_write(8), ["mov cr8, rax"], Runs;
    clts_exits "CLTS is a write of CR0.": exit::cr_write(0), ["clts"], Runs;
    lmsw_exits "LMSW is a write of CR0.":
        exit::cr_write(0), ["lmsw ax"], Runs, |g| g.vmcb.set(vmcb::RAX, reg::cr0() & 0xffff);
}

macro_rules! debug_registers {
    ($code:ident, $line:literal) => {
        for (n, code) in [
            (0, asm_code!(concat!($line, "0"), "vmmcall")),
            (1, asm_code!(concat!($line, "1"), "vmmcall")),
            (2, asm_code!(concat!($line, "2"), "vmmcall")),
            (3, asm_code!(concat!($line, "3"), "vmmcall")),
            (6, asm_code!(concat!($line, "6"), "vmmcall")),
            (7, asm_code!(concat!($line, "7"), "vmmcall")),
        ] {
            intercepted(code, exit::$code(n), Runs, nothing);
        }
    };
}

test!(dr_reads_exit, "A read of each debug register exits, or runs.", || {
    debug_registers!(dr_read, "mov rax, dr");
});

test!(dr_writes_exit, "A write of each debug register exits, or runs.", || {
    for (n, value, code) in [
        (0, 0_u64, asm_code!("mov dr0, rax", "vmmcall")),
        (1, 0, asm_code!("mov dr1, rax", "vmmcall")),
        (2, 0, asm_code!("mov dr2, rax", "vmmcall")),
        (3, 0, asm_code!("mov dr3, rax", "vmmcall")),
        (6, 0xffff_0ff0, asm_code!("mov dr6, rax", "vmmcall")),
        (7, 0x400, asm_code!("mov dr7, rax", "vmmcall")),
    ] {
        let prepare: fn(&mut Guest) = match value {
            0 => nothing,
            0x400 => |g| g.vmcb.set(vmcb::RAX, 0x400),
            _ => |g| g.vmcb.set(vmcb::RAX, 0xffff_0ff0),
        };
        intercepted(code, exit::dr_write(n), Runs, prepare);
    }
});

// 15.9: an exception that needs no operand in memory comes before the intercept.
test!(absent_crs, "Control registers that do not exist are #UD, intercepted or not.", || {
    for on in [false, true] {
        let codes = [
            asm_code!(".byte 0x0f, 0x20, 0xc8", "vmmcall"),
            asm_code!(".byte 0x0f, 0x20, 0xe8", "vmmcall"),
            asm_code!(".byte 0x0f, 0x22, 0xf8", "vmmcall"),
            asm_code!(".byte 0x44, 0x0f, 0x22, 0xc8", "vmmcall"),
        ];
        for (n, code) in [1_u8, 5, 7, 9].into_iter().zip(codes) {
            let mut guest = guest(code);
            if on {
                guest.intercept(&[exit::cr_read(n), exit::cr_write(n)]);
            }
            let exit = guest.run();
            let vector = guest.trap().map(|trap| trap.vector);
            check_eq!(vector, Some(trap::UD), "CR{n}, intercepted {on}: {exit:?}");
        }
    }
});

// 15.9, table 15-7: CR0_SEL_WRITE.
test!(
    cr0_sel_write_exits,
    "The selective intercept takes writes that change more than TS and MP.",
    || {
        let mut guest = guest(asm_code!("mov cr0, rax", "vmmcall"));
        guest.intercept(&[exit::CR0_SEL_WRITE]);
        let rip = guest.rip();
        guest.vmcb.set(vmcb::RAX, reg::cr0() ^ reg::CR0_AM);
        run_to(&mut guest, exit::CR0_SEL_WRITE, "AM changes");
        check_eq!(guest.rip(), rip, "RIP at the exit");
        check_eq!(guest.vmcb.get(vmcb::CR0), reg::cr0(), "CR0 at the exit");
    }
);

test!(
    cr0_sel_write_ts_mp,
    "The selective intercept lets TS and MP change, by MOV and by CLTS.",
    || {
        let mut guest = guest(asm_code!("mov cr0, rax", "clts", "vmmcall"));
        guest.intercept(&[exit::CR0_SEL_WRITE]);
        let changed = (reg::cr0() | reg::CR0_TS) ^ reg::CR0_MP;
        guest.vmcb.set(vmcb::RAX, changed);
        run_to_end(&mut guest, "TS and MP change");
        check_eq!(guest.vmcb.get(vmcb::CR0), changed & !reg::CR0_TS, "CR0 afterwards");
        check_eq!(reg::cr0() & reg::CR0_TS, 0, "TS of the hypervisor");
    }
);

// 15.5.1 and 15.6: the guest's control registers are the guest's alone.
test!(
    crs_are_apart,
    "What the guest writes to CR0, CR2 and CR4 is in the VMCB, and not in L1.",
    || {
        let mut guest = guest(asm_code!(
            "mov rax, cr0",
            "xor eax, 0x40000",
            "mov cr0, rax",
            "mov rax, cr4",
            "xor eax, 4",
            "mov cr4, rax",
            "mov eax, 0x12345678",
            "mov cr2, rax",
            "vmmcall",
        ));
        let (cr0, cr4) = (reg::cr0(), reg::cr4());
        run_to_end(&mut guest, "the writes");
        check_eq!(guest.vmcb.get(vmcb::CR0), cr0 ^ reg::CR0_AM, "CR0 in the VMCB");
        check_eq!(guest.vmcb.get(vmcb::CR4), cr4 ^ reg::CR4_TSD, "CR4 in the VMCB");
        check_eq!(guest.vmcb.get(vmcb::CR2), 0x1234_5678, "CR2 in the VMCB");
        check_eq!(reg::cr0(), cr0, "CR0 of the hypervisor");
        check_eq!(reg::cr4(), cr4, "CR4 of the hypervisor");
    }
);

// Table B-2: DR6 and DR7 are in the VMCB, DR0 to DR3 are not. 15.6: #VMEXIT disables all breakpoints
// in DR7.
test!(
    debug_registers_switch,
    "DR6 and DR7 switch with the guest, and DR0 to DR3 are shared.",
    || {
        let mut guest = guest(asm_code!(
            "mov eax, 0x1234000",
            "mov dr1, rax",
            "mov rbx, dr0",
            "mov eax, 0x408",
            "mov dr7, rax",
            "vmmcall",
        ));
        check!(reg::set_dr(0, 0xabc_d000).is_ok());
        check!(reg::set_dr(7, 0x402).is_ok());
        run_to_end(&mut guest, "the guest");
        check_eq!(guest.regs.rbx, 0xabc_d000, "DR0 as the guest reads it");
        check_eq!(guest.vmcb.get(vmcb::DR7), 0x408, "DR7 in the VMCB");
        check_eq!(reg::dr(1), Ok(0x123_4000), "DR1 as the guest left it");
        check_eq!(reg::dr(7), Ok(0x400), "DR7 of the hypervisor after the exit");
    }
);
