//! Plays scripts of accesses with real instructions, as `payload_abi::replay` has them.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::replay::{self, BEGIN, END, LONGEST, Op, TELL};
use payload_rt::trap::Trap;
use payload_rt::*;

/// The lines of a script, out of the memory that it lies in.
struct Lines {
    /// What was not copied yet.
    at: u64,
    left: u64,
    buffer: [u8; LONGEST],
    /// What of the buffer was not given yet.
    start: usize,
    end: usize,
}

impl Lines {
    fn new(module: &boot::Module) -> Lines {
        let (at, left) = (module.start, module.len);
        Lines { at, left, buffer: [0; LONGEST], start: 0, end: 0 }
    }

    /// The next one, without its newline.
    fn next(&mut self) -> Option<&[u8]> {
        let newline = |bytes: &[u8]| bytes.iter().position(|&byte| byte == b'\n');
        let mut len = newline(&self.buffer[self.start..self.end]);
        if len.is_none() {
            self.fill();
            len = newline(&self.buffer[self.start..self.end]);
        }
        if self.start == self.end {
            return None;
        }
        let from = self.start;
        match len {
            Some(len) => {
                self.start += len + 1;
                Some(&self.buffer[from..from + len])
            }
            None => {
                let rest = self.end - from;
                if rest == LONGEST {
                    report::error(format_args!("a line has over {LONGEST} bytes"));
                }
                self.start = self.end;
                Some(&self.buffer[from..from + rest])
            }
        }
    }

    fn fill(&mut self) {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = &mut self.buffer[self.end..];
        let now = room.len().min(self.left as usize);
        check_ok!(mem::read_bytes(self.at, &mut room[..now]));
        self.at += now as u64;
        self.left -= now as u64;
        self.end += now;
    }
}

/// One instruction with RAX as its register: what is there afterwards.
fn access(port: bool, addr: u64, size: u8, write: bool, mut rax: u64) -> Result<u64, Trap> {
    if !port && paging::translate(addr).is_none() {
        // Above 4 GiB nothing is mapped at first.
        let page = addr & !(paging::Size::M2.bytes() - 1);
        paging::map(page, page, paging::Size::M2, paging::Flags::RW | paging::Flags::PCD);
    }
    let number = addr as u16;
    match (port, write, size) {
        (true, false, 1) => insn!("in al, dx"; inout("rax") rax, in("dx") number),
        (true, false, 2) => insn!("in ax, dx"; inout("rax") rax, in("dx") number),
        (true, false, _) => insn!("in eax, dx"; inout("rax") rax, in("dx") number),
        (true, true, 1) => insn!("out dx, al"; inout("rax") rax, in("dx") number),
        (true, true, 2) => insn!("out dx, ax"; inout("rax") rax, in("dx") number),
        (true, true, _) => insn!("out dx, eax"; inout("rax") rax, in("dx") number),
        (false, false, 1) => insn!("mov al, byte ptr [rsi]"; inout("rax") rax, in("rsi") addr),
        (false, false, 2) => insn!("mov ax, word ptr [rsi]"; inout("rax") rax, in("rsi") addr),
        (false, false, 4) => insn!("mov eax, dword ptr [rsi]"; inout("rax") rax, in("rsi") addr),
        (false, false, _) => insn!("mov rax, qword ptr [rsi]"; inout("rax") rax, in("rsi") addr),
        (false, true, 1) => insn!("mov byte ptr [rsi], al"; inout("rax") rax, in("rsi") addr),
        (false, true, 2) => insn!("mov word ptr [rsi], ax"; inout("rax") rax, in("rsi") addr),
        (false, true, 4) => insn!("mov dword ptr [rsi], eax"; inout("rax") rax, in("rsi") addr),
        (false, true, _) => insn!("mov qword ptr [rsi], rax"; inout("rax") rax, in("rsi") addr),
    }?;
    Ok(rax)
}

/// What was wrong at an operation.
enum Wrong {
    Trap(Trap),
    /// RAX is not what it must be.
    Register {
        got: u64,
        must: u64,
    },
}

/// Puts bytes into memory that is nobody's.
fn fill(line: u64, addr: u64, digits: &[u8]) {
    let modules = boot::info().modules().iter();
    let end = addr.saturating_add(digits.len() as u64 / 2);
    // The image begins at 1 MiB.
    if end > 0x10_0000 || modules.clone().any(|m| addr < m.start + m.len && m.start < end) {
        report::error(format_args!("line {line}: memory at {addr:#x} is not the script's"));
    }
    let mut bytes = [0; LONGEST / 2];
    let bytes = &mut bytes[..digits.len() / 2];
    for (byte, digits) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let Some(read) = replay::byte(digits) else {
            report::error(format_args!("line {line}: no bytes"));
        };
        *byte = read;
    }
    check_ok!(mem::write_bytes(addr, bytes));
}

/// Plays one script; the line and what was wrong there.
fn play(module: &boot::Module) -> Result<u64, (u64, Wrong)> {
    let mut lines = Lines::new(module);
    let (mut op, mut number, mut wrong) = (0, 0, None);
    port::out32(TELL, BEGIN);
    while let Some(line) = lines.next() {
        number += 1;
        let parsed = match replay::parse(line) {
            Ok(None) => continue,
            Ok(Some(parsed)) => parsed,
            Err(what) => {
                serial::recover();
                report::error(format_args!("line {number}: {what}"));
            }
        };
        let rax = replay::before(op);
        match parsed {
            Op::Access { port, addr, size, write, expect } => {
                // A write takes the low bytes; what lies above them must not matter.
                let low = u64::MAX >> (64 - 8 * u32::from(size));
                let start = write.map_or(rax, |value| rax & !low | value & low);
                let got = access(port, addr, size, write.is_some(), start)
                    .map_err(|trap| (number, Wrong::Trap(trap)))?;
                if write.is_none() {
                    port::out32(TELL, got as u32);
                    port::out32(TELL, (got >> 32) as u32);
                }
                let must = match write {
                    Some(_) => Some(start),
                    None => expect.map(|value| replay::after(rax, size, value)),
                };
                if let Some(must) = must.filter(|&must| must != got && wrong.is_none()) {
                    wrong = Some((number, Wrong::Register { got, must }));
                }
            }
            Op::Ram { addr, digits } => fill(number, addr, digits),
            Op::Wait(nanoseconds) => time::delay(nanoseconds.div_ceil(1000)),
        }
        op += 1;
    }
    port::out32(TELL, END);
    wrong.map_or(Ok(op), Err)
}

test!(
    script,
    "Plays the scripts that are its modules; reads give what they say, in the bytes they say.",
    || {
        let modules = boot::info().modules();
        if modules.is_empty() {
            report::error(format_args!("no script: give one with --module FILE"));
        }
        for (nth, module) in modules.iter().enumerate() {
            let played = play(module);
            // The script had the serial port for itself, perhaps amid a line.
            serial::recover();
            println!("");
            match played {
                Ok(ops) => println!("script {}: {ops} operations", nth + 1),
                Err((line, Wrong::Trap(trap))) => {
                    fail!("script {}, line {line}: {trap}", nth + 1)
                }
                Err((line, Wrong::Register { got, must })) => {
                    fail!("script {}, line {line}: RAX is {got:#x}, not {must:#x}", nth + 1)
                }
            }
        }
    }
);
