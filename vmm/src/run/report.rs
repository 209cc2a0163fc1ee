//! What a kernel developer needs to know of a vCPU whose VM ended in a way that nobody asked for.

use std::fmt;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter};

use crate::cpu::{CpuState, Segment};
use crate::exit::Entry;
use crate::hv::{Activity, Detail, HvError, Vcpu};
use crate::machine::{Context, ExitLog};
use crate::ram::{GuestRam, PAGE};

/// Bytes of code that are shown from RIP on.
const CODE_AFTER: usize = 48;
/// Instructions that are shown from RIP on, at most.
const INSTRUCTIONS: usize = 10;

/// One vCPU at the end.
#[derive(Debug)]
pub struct VcpuReport {
    index: usize,
    state: Result<CpuState, HvError>,
    activity: Result<Activity, HvError>,
    detail: Detail,
    /// Bytes from RIP on, as far as they are mapped and RAM.
    code: Vec<u8>,
    log: ExitLog,
    faults: u64,
}

impl VcpuReport {
    /// Asks a vCPU, on its own thread, after its last exit.
    pub fn new<V: Vcpu>(index: usize, vcpu: &V, cx: &Context, ram: &GuestRam) -> VcpuReport {
        let state = vcpu.state();
        let code = state.as_ref().map_or(Vec::new(), |s| code_at(vcpu, ram, s.linear_rip()));
        VcpuReport {
            index,
            state,
            activity: vcpu.activity(),
            detail: vcpu.detail(),
            code,
            log: cx.log.clone(),
            faults: cx.faults.iter().sum(),
        }
    }
}

/// Bytes of guest code from `linear` on: as many as are mapped to RAM.
fn code_at<V: Vcpu>(vcpu: &V, ram: &GuestRam, linear: u64) -> Vec<u8> {
    let mut code = Vec::with_capacity(CODE_AFTER);
    while code.len() < CODE_AFTER {
        let at = linear.wrapping_add(code.len() as u64);
        let in_page = (PAGE - at % PAGE) as usize;
        let mut part = vec![0; in_page.min(CODE_AFTER - code.len())];
        let Some(gpa) = vcpu.translate(at) else { break };
        if ram.read(gpa, &mut part).is_err() {
            break;
        }
        code.extend(part);
    }
    code
}

const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];
const SEGMENTS: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

fn flags(value: u64, names: &[(u32, &str)]) -> String {
    let set: Vec<_> = names.iter().filter(|(bit, _)| value >> bit & 1 == 1).map(|n| n.1).collect();
    format!("{value:#x} [{}]", set.join(" "))
}

fn rflags(v: u64) -> String {
    const NAMES: [(u32, &str); 12] = [
        (0, "CF"),
        (2, "PF"),
        (4, "AF"),
        (6, "ZF"),
        (7, "SF"),
        (8, "TF"),
        (9, "IF"),
        (10, "DF"),
        (11, "OF"),
        (14, "NT"),
        (16, "RF"),
        (17, "VM"),
    ];
    flags(v, &NAMES)
}

fn cr0(v: u64) -> String {
    const NAMES: [(u32, &str); 11] = [
        (0, "PE"),
        (1, "MP"),
        (2, "EM"),
        (3, "TS"),
        (4, "ET"),
        (5, "NE"),
        (16, "WP"),
        (18, "AM"),
        (29, "NW"),
        (30, "CD"),
        (31, "PG"),
    ];
    flags(v, &NAMES)
}

fn cr4(v: u64) -> String {
    const NAMES: [(u32, &str); 20] = [
        (0, "VME"),
        (1, "PVI"),
        (2, "TSD"),
        (3, "DE"),
        (4, "PSE"),
        (5, "PAE"),
        (6, "MCE"),
        (7, "PGE"),
        (8, "PCE"),
        (9, "OSFXSR"),
        (10, "OSXMMEXCPT"),
        (11, "UMIP"),
        (12, "LA57"),
        (13, "VMXE"),
        (16, "FSGSBASE"),
        (17, "PCIDE"),
        (18, "OSXSAVE"),
        (20, "SMEP"),
        (21, "SMAP"),
        (22, "PKE"),
    ];
    flags(v, &NAMES)
}

fn efer(v: u64) -> String {
    flags(v, &[(0, "SCE"), (8, "LME"), (10, "LMA"), (11, "NXE"), (12, "SVME")])
}

fn write_segment(f: &mut fmt::Formatter<'_>, name: &str, s: &Segment) -> fmt::Result {
    let Segment { selector, base, limit, kind, dpl, .. } = *s;
    write!(f, "  {name:<3} {selector:04x}  base {base:#018x}  limit {limit:#010x}")?;
    write!(f, "  type {kind:#x} dpl {dpl}")?;
    let bits = [
        (s.present, " present"),
        (s.code_or_data, " s"),
        (s.long, " long"),
        (s.default_32, " d32"),
        (s.granular, " g"),
        (s.unusable, " unusable"),
    ];
    for (_, word) in bits.iter().filter(|b| b.0) {
        f.write_str(word)?;
    }
    writeln!(f)
}

fn write_state(f: &mut fmt::Formatter<'_>, s: &CpuState) -> fmt::Result {
    for row in 0..4 {
        for (name, value) in GPRS.iter().zip(s.gpr).skip(row * 4).take(4) {
            write!(f, "  {name:<3} {value:016x}")?;
        }
        writeln!(f)?;
    }
    writeln!(f, "  rip {:016x}  rflags {}", s.rip, rflags(s.rflags))?;
    writeln!(f, "  cr0 {}  cr2 {:#x}  cr3 {:#x}", cr0(s.cr0), s.cr2, s.cr3)?;
    writeln!(f, "  cr4 {}  cr8 {:#x}", cr4(s.cr4), s.cr8)?;
    writeln!(f, "  efer {}  apic base {:#x}", efer(s.efer), s.apic_base)?;
    for (name, segment) in SEGMENTS.iter().zip(&s.segments) {
        write_segment(f, name, segment)?;
    }
    write_segment(f, "tr", &s.tr)?;
    write_segment(f, "ldt", &s.ldt)?;
    write!(f, "  gdt {:#018x} limit {:#06x}", s.gdt.base, s.gdt.limit)?;
    writeln!(f, "  idt {:#018x} limit {:#06x}", s.idt.base, s.idt.limit)
}

/// Disassembles `code`, which lies at `at`, as code of `bitness` bits.
fn write_code(f: &mut fmt::Formatter<'_>, code: &[u8], at: u64, bitness: u32) -> fmt::Result {
    let mut decoder = Decoder::with_ip(bitness, code, at, DecoderOptions::NONE);
    let mut formatter = IntelFormatter::new();
    let mut instruction = Instruction::default();
    for i in 0..INSTRUCTIONS {
        if !decoder.can_decode() {
            break;
        }
        let start = decoder.position();
        decoder.decode_out(&mut instruction);
        let end = decoder.position();
        // The last bytes may be the beginning of an instruction that goes on.
        if instruction.is_invalid() && end >= code.len() && i > 0 {
            break;
        }
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        let bytes: String = code[start..end].iter().map(|b| format!("{b:02x}")).collect();
        let mark = if i == 0 { "->" } else { "  " };
        writeln!(f, "  {mark} {:016x}  {bytes:<30} {text}", instruction.ip())?;
    }
    Ok(())
}

impl fmt::Display for VcpuReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}", self.index)?;
        match &self.activity {
            Ok(activity) => writeln!(f, ", {activity:?}")?,
            Err(e) => writeln!(f, ", state unknown: {e}")?,
        }
        let bitness = match &self.state {
            Ok(state) => {
                write_state(f, state)?;
                writeln!(f, "  code ({}-bit), from rip on:", state.bitness())?;
                match self.code.is_empty() {
                    true => writeln!(f, "     rip {:#x} is not mapped to RAM", state.linear_rip())?,
                    false => write_code(f, &self.code, state.linear_rip(), state.bitness())?,
                }
                state.bitness()
            }
            Err(e) => {
                writeln!(f, "  registers unknown: {e}")?;
                64
            }
        };
        if !self.detail.data.is_empty() {
            let words: Vec<_> = self.detail.data.iter().map(|w| format!("{w:#x}")).collect();
            writeln!(f, "  KVM's data words: {}", words.join(" "))?;
        }
        if let (Some(bytes), Ok(state)) = (&self.detail.instruction, &self.state) {
            writeln!(
                f,
                "  the instruction that KVM could not emulate, of these {} bytes:",
                bytes.len()
            )?;
            write_code(f, bytes, state.linear_rip(), bitness)?;
        }
        writeln!(f, "  {} exits, {} accesses refused; the last:", self.log.count(), self.faults)?;
        for (n, logged) in self.log.iter() {
            write!(f, "  {n:>9}  ")?;
            if let Some(rip) = logged.rip {
                write!(f, "rip {rip:016x}  ")?;
            }
            write!(f, "{}", logged.exit)?;
            match logged.entry {
                Entry::Read(value) => writeln!(f, " -> {value:#x}")?,
                Entry::Resume => writeln!(f)?,
                Entry::Fault => writeln!(f, " -> #GP")?,
                Entry::Stop(stop) => writeln!(f, " -> stop: {stop}")?,
            }
        }
        Ok(())
    }
}
