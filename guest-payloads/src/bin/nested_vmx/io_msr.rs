//! I/O and MSRs of L2 (SDM volume 3, "I/O-Bitmap Addresses", "MSR-Bitmap Address", table "Exit
//! Qualification for I/O Instructions").

use super::{exits_with, passes, vm};
use payload_rt::vmx::caps::*;
use payload_rt::vmx::{Field, Reason, Regs, Vm, get, set};
use payload_rt::{asm_code, check, check_eq, check_ok, frames, mem, reg, test};

const IN: u64 = 1 << 3;
const STRING: u64 = 1 << 4;
const REP: u64 = 1 << 5;
const IMMEDIATE: u64 = 1 << 6;

/// Qualification of an I/O instruction of `bytes` bytes.
const fn io(port: u64, bytes: u64, more: u64) -> u64 {
    (bytes - 1) | more | port << 16
}

/// The POST port, which takes anything and means nothing.
const POST: u64 = 0x80;

fn at_post(regs: &mut Regs) {
    regs.rdx = POST;
}

test!(
    io_unconditional,
    "IN and OUT of every size and form exit under unconditional I/O exiting, with size, direction and port.",
    || {
        let mut vm = vm();
        passes(&mut vm, asm_code!("out 0x80, al"), "OUT without the control");
        vm.add(Field::CPU_CONTROLS, CPU_IO);
        for (code, qualification) in [
            (asm_code!("in al, dx"), io(POST, 1, IN)),
            (asm_code!("in ax, dx"), io(POST, 2, IN)),
            (asm_code!("in eax, dx"), io(POST, 4, IN)),
            (asm_code!("out dx, al"), io(POST, 1, 0)),
            (asm_code!("out dx, ax"), io(POST, 2, 0)),
            (asm_code!("out dx, eax"), io(POST, 4, 0)),
            (asm_code!("in al, 0x71"), io(0x71, 1, IN | IMMEDIATE)),
            (asm_code!("in ax, 0xf0"), io(0xf0, 2, IN | IMMEDIATE)),
            (asm_code!("out 0x71, eax"), io(0x71, 4, IMMEDIATE)),
        ] {
            exits_with(&mut vm, code, Reason::IO, qualification, "an I/O instruction", at_post);
        }
        exits_with(
            &mut vm,
            asm_code!("out dx, al"),
            Reason::IO,
            io(0xffff, 1, 0),
            "0xffff",
            |regs| {
                regs.rdx = 0x1_ffff;
            },
        );
    }
);

// Table "... as Used for INS and OUTS": address size in bits 9:7, segment of OUTS in 17:15.
test!(
    io_strings,
    "INS and OUTS exit, with string and REP, the operand's linear address, address size and segment.",
    || {
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS, CPU_IO);
        let prepare = |regs: &mut Regs| {
            regs.rdx = POST;
            regs.rcx = 3;
            regs.rsi = 0x11_2000;
            regs.rdi = 0x11_3000;
        };
        for (code, qualification, linear, info) in [
            (asm_code!("outsb"), io(POST, 1, STRING), 0x11_2000, Some(2 << 7 | 3 << 15)),
            (asm_code!("outsw"), io(POST, 2, STRING), 0x11_2000, Some(2 << 7 | 3 << 15)),
            (asm_code!("rep outsd"), io(POST, 4, STRING | REP), 0x11_2000, Some(2 << 7 | 3 << 15)),
            (asm_code!("insb"), io(POST, 1, STRING | IN), 0x11_3000, None),
            (asm_code!("rep insd"), io(POST, 4, STRING | REP | IN), 0x11_3000, None),
            (asm_code!(".byte 0x67, 0x6e"), io(POST, 1, STRING), 0x11_2000, Some(1 << 7 | 3 << 15)),
        ] {
            exits_with(&mut vm, code, Reason::IO, qualification, "a string", prepare);
            check_eq!(get(Field::LINEAR), linear, "linear address");
            if let Some(info) = info {
                check_eq!(get(Field::INSTRUCTION_INFO) & 0x3_8380, info, "instruction information");
            }
        }
        // The segment's base counts.
        set(Field::FS_BASE, 0x7000);
        set(Field::GUEST_FS, 0x10);
        set(Field::FS_LIMIT, 0xffff_ffff);
        set(Field::FS_RIGHTS, 0xc093);
        let code = asm_code!(".byte 0x64, 0x6e");
        exits_with(&mut vm, code, Reason::IO, io(POST, 1, STRING), "OUTS by FS", prepare);
        check_eq!(get(Field::LINEAR), 0x11_9000, "linear address by FS");
        check_eq!(get(Field::INSTRUCTION_INFO) & 0x3_8380, 2 << 7 | 4 << 15, "FS");
    }
);

/// I/O bitmaps that let everything through.
fn with_io_bitmaps(vm: &mut Vm) -> (u64, u64) {
    let (a, b) = (frames::alloc().address(), frames::alloc().address());
    set(Field::IO_BITMAP_A, a);
    set(Field::IO_BITMAP_B, b);
    vm.add(Field::CPU_CONTROLS, CPU_IO_BITMAPS);
    (a, b)
}

fn set_bit(bitmap: u64, bit: u64, on: bool) {
    let at = bitmap + bit / 8;
    let old = check_ok!(mem::read::<u8>(at));
    let mask = 1 << (bit % 8);
    check_ok!(mem::write::<u8>(at, if on { old | mask } else { old & !mask }));
}

/// One access of L2 to a port, and whether it exits.
fn io_exits(vm: &mut Vm, port: u64, bytes: u64) -> bool {
    let code = match bytes {
        1 => asm_code!("in al, dx"),
        2 => asm_code!("in ax, dx"),
        _ => asm_code!("in eax, dx"),
    };
    vm.start(code);
    vm.regs.rdx = port;
    let exit = vm.run();
    check!(exit.reason == Reason::IO || exit.reason == Reason::VMCALL, "IN of {port:#x}: {exit}");
    if exit.reason == Reason::IO {
        check_eq!(exit.qualification, io(port, bytes, IN), "qualification, port {port:#x}");
    }
    exit.reason == Reason::IO
}

test!(
    io_bitmaps,
    "With I/O bitmaps an access exits if the bit of any of its ports is set, over both bitmaps.",
    || {
        let mut vm = vm();
        let (a, b) = with_io_bitmaps(&mut vm);
        for port in [0x80u64, 0x0fff, 0x7fff, 0x8000, 0xc123, 0xffff] {
            let (bitmap, bit) = if port < 0x8000 { (a, port) } else { (b, port - 0x8000) };
            check!(!io_exits(&mut vm, port, 1), "IN of {port:#x} exits with its bit clear");
            set_bit(bitmap, bit, true);
            check!(io_exits(&mut vm, port, 1), "IN of {port:#x} does not exit");
            for (start, bytes) in [(port - 1, 2), (port - 3, 4)] {
                check!(io_exits(&mut vm, start, bytes), "{bytes} bytes from {start:#x}: no exit");
            }
            check!(!io_exits(&mut vm, port - 1, 1), "the port before {port:#x} exits");
            check!(!io_exits(&mut vm, port - 4, 4), "4 bytes before {port:#x} exit");
            set_bit(bitmap, bit, false);
        }
    }
);

test!(
    io_wraps,
    "With I/O bitmaps an access that wraps around port 0xffff exits, whatever they say.",
    || {
        let mut vm = vm();
        with_io_bitmaps(&mut vm);
        for (port, bytes) in [(0xffff, 2), (0xffff, 4), (0xfffd, 4)] {
            check!(io_exits(&mut vm, port, bytes), "{bytes} bytes from {port:#x}: no exit");
        }
        check!(!io_exits(&mut vm, 0xfffc, 4), "4 bytes from 0xfffc exit");
    }
);

test!(io_bitmaps_rule, "With I/O bitmaps unconditional I/O exiting is ignored.", || {
    let mut vm = vm();
    let (a, _) = with_io_bitmaps(&mut vm);
    vm.add(Field::CPU_CONTROLS, CPU_IO);
    check!(!io_exits(&mut vm, POST, 1), "IN exits with its bit clear");
    set_bit(a, POST, true);
    check!(io_exits(&mut vm, POST, 1), "IN does not exit with its bit set");
});

/// One access of L2 to an MSR, and whether it exits. What it reads is in RAX and RDX.
fn msr_exits(vm: &mut Vm, msr: u64, write: Option<u64>) -> bool {
    let (code, reason) = match write {
        Some(_) => (asm_code!("wrmsr"), Reason::WRMSR),
        None => (asm_code!("rdmsr"), Reason::RDMSR),
    };
    vm.start(code);
    vm.regs.rcx = msr;
    let value = write.unwrap_or(0);
    (vm.regs.rax, vm.regs.rdx) = (value & 0xffff_ffff, value >> 32);
    let regs = vm.regs;
    let exit = vm.run();
    if exit.reason == reason {
        check_eq!((exit.qualification, exit.length), (0, 2), "qualification and length, {msr:#x}");
        check_eq!(vm.regs, regs, "registers, MSR {msr:#x}");
        return true;
    }
    check_eq!(exit.reason, Reason::VMCALL, "MSR {msr:#x}: {exit}");
    false
}

test!(
    msr_bitmap,
    "RDMSR and WRMSR of L2 exit by the four parts of the MSR bitmap, each bit for itself.",
    || {
        let mut vm = vm();
        let bitmap = get(Field::MSR_BITMAP);
        let value = 0x7654_3210;
        for (msr, offset) in [(reg::SYSENTER_ESP, 0), (reg::SYSENTER_EIP, 0), (reg::LSTAR, 0x400)] {
            let old = check_ok!(reg::rdmsr(msr));
            let bit = u64::from(msr & 0x1fff);
            let msr = u64::from(msr);
            for (part, write) in [(offset, None), (offset + 0x800, Some(value))] {
                check!(!msr_exits(&mut vm, msr, write), "MSR {msr:#x} exits with its bit clear");
                set_bit(bitmap + part, bit, true);
                check!(msr_exits(&mut vm, msr, write), "MSR {msr:#x} does not exit, {part:#x}");
                let other = write.is_none().then_some(value);
                check!(!msr_exits(&mut vm, msr, other), "the other access to {msr:#x} exits");
                set_bit(bitmap + part, bit, false);
                for neighbour in [bit - 1, bit + 1] {
                    set_bit(bitmap + part, neighbour, true);
                    check!(!msr_exits(&mut vm, msr, write), "MSR {msr:#x}, a neighbour's bit");
                    set_bit(bitmap + part, neighbour, false);
                }
            }
            check_ok!(reg::wrmsr(msr as u32, old));
        }
    }
);

test!(
    msr_out_of_range,
    "RDMSR and WRMSR of an MSR that the bitmap does not cover always exit.",
    || {
        let mut vm = vm();
        for msr in [0x2000, 0x8000, 0x3fff_ffff, 0x4000_0000, 0xbfff_ffff, 0xc000_2000, 0xffff_ffff]
        {
            check!(msr_exits(&mut vm, msr, None), "RDMSR of {msr:#x} does not exit");
            check!(msr_exits(&mut vm, msr, Some(0)), "WRMSR of {msr:#x} does not exit");
        }
    }
);

test!(msr_no_bitmap, "Without an MSR bitmap each RDMSR and WRMSR of L2 exits.", || {
    let mut vm = vm();
    vm.remove(Field::CPU_CONTROLS, CPU_MSR_BITMAPS);
    for msr in [0x10, 0x174, 0x1fff, 0xc000_0080, 0xc000_1fff] {
        check!(msr_exits(&mut vm, msr, None), "RDMSR of {msr:#x} does not exit");
        check!(msr_exits(&mut vm, msr, Some(0)), "WRMSR of {msr:#x} does not exit");
    }
});

test!(
    msrs_of_the_vmcs,
    "L2 reads the SYSENTER MSRs, FS and GS base from its VMCS; what it writes, the VM exit saves.",
    || {
        let mut vm = vm();
        for (msr, field, value) in [
            (reg::SYSENTER_CS, Field::GUEST_SYSENTER_CS, 0x1234),
            (reg::SYSENTER_ESP, Field::GUEST_SYSENTER_ESP, 0x1111_2222_3333),
            (reg::SYSENTER_EIP, Field::GUEST_SYSENTER_EIP, 0x2222_3333_4444),
            (reg::FS_BASE, Field::FS_BASE, 0x3333_4444_5555),
            (reg::GS_BASE, Field::GS_BASE, 0xffff_8888_7777_6666),
        ] {
            let l1 = check_ok!(reg::rdmsr(msr));
            set(field, value);
            check!(!msr_exits(&mut vm, msr.into(), None), "RDMSR of {msr:#x} exits");
            let seen = vm.regs.rax & 0xffff_ffff | vm.regs.rdx << 32;
            check_eq!(seen, value, "MSR {msr:#x} in L2");
            check!(!msr_exits(&mut vm, msr.into(), Some(value + 8)), "WRMSR of {msr:#x} exits");
            check_eq!(get(field), value + 8, "{field} behind the exit");
            check_eq!(reg::rdmsr(msr), Ok(l1), "MSR {msr:#x} of L1");
        }
    }
);
