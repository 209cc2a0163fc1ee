//! Finds vector and x87 instructions in a payload.
//!
//! The compiler is told to use none; but the core library came compiled for a target that has
//! them, and assembly says what it likes. On a host that interprets CPL 0 such an instruction ends
//! the machine, far from its cause. So each executable section is disassembled. The sections'
//! names are those of guest-payloads/rt/payload.ld: code asks for vector instructions by being in
//! `.text.sse`, where `payload_rt::simd_fn!` puts it.

use iced_x86::{
    CpuidFeature, Decoder, DecoderOptions, Formatter, Instruction, IntelFormatter, Mnemonic,
    OpKind, Register,
};
use vmm::payload::{ElfError, Image, Section, Symbol};

/// The section that may hold vector instructions.
const ALLOWED: &str = ".text.sse";

/// A vector or x87 instruction where none may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "function {function} holds `{instruction}` at {address:#x}, which hosts that interpret CPL 0 \
     may not run; keep it out, or put the function into payload_rt::simd_fn! to ask for it"
)]
pub struct Found {
    /// The symbol it follows.
    pub function: String,
    /// Its address.
    pub address: u64,
    /// The instruction, Intel syntax.
    pub instruction: String,
}

/// The first vector or x87 instruction outside of `.text.sse`.
pub fn find(image: &Image) -> Result<Option<Found>, ElfError> {
    let code = |section: &&Section| section.executable && section.name != ALLOWED;
    let symbols = image.symbols()?;
    Ok(image.sections().iter().filter(code).find_map(|section| find_in(&symbols, section)))
}

fn find_in(symbols: &[Symbol], section: &Section) -> Option<Found> {
    let bits = match section.name {
        ".boot" => 32,
        ".trampoline" => 16,
        _ => 64,
    };
    let end = section.address.checked_add(section.bytes.len() as u64)?;
    let inside = |symbol: &&Symbol| (section.address..end).contains(&symbol.address);
    // Each symbol is a fresh start, so that data between functions cannot hide what follows.
    let starts: Vec<(u64, &str)> = std::iter::once((section.address, section.name))
        .chain(symbols.iter().filter(inside).map(|symbol| (symbol.address, symbol.name)))
        .collect();
    for (i, &(start, function)) in starts.iter().enumerate() {
        let stop = starts.get(i + 1).map_or(end, |next| next.0);
        let bytes =
            &section.bytes[(start - section.address) as usize..(stop - section.address) as usize];
        let mut decoder = Decoder::with_ip(bits, bytes, start, DecoderOptions::NONE);
        let refused = decoder.iter().find(uses_vector_unit);
        if let Some(instruction) = refused {
            return Some(Found {
                function: function.to_owned(),
                address: instruction.ip(),
                instruction: text(&instruction),
            });
        }
    }
    None
}

fn text(instruction: &Instruction) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(instruction, &mut text);
    text
}

/// Whether an instruction touches XMM, YMM, ZMM, mask, MMX, tile or x87 registers or MXCSR.
/// `lfence`, `prefetch`, `movnti` and their kin came with SSE and do not; nor do `fxsave` and
/// `xsave`, which move all state.
fn uses_vector_unit(instruction: &Instruction) -> bool {
    let vector = |register: Register| {
        register.is_vector_register()
            || register.is_mm()
            || register.is_st()
            || register.is_k()
            || register.is_tmm()
    };
    let operand =
        |i| instruction.op_kind(i) == OpKind::Register && vector(instruction.op_register(i));
    let implied = matches!(
        instruction.mnemonic(),
        Mnemonic::Ldmxcsr
            | Mnemonic::Stmxcsr
            | Mnemonic::Vldmxcsr
            | Mnemonic::Vstmxcsr
            | Mnemonic::Vzeroupper
            | Mnemonic::Vzeroall
            | Mnemonic::Emms
            | Mnemonic::Femms
            | Mnemonic::Fisttp
            | Mnemonic::Tilerelease
            | Mnemonic::Wait
    );
    let x87 = |feature: &CpuidFeature| {
        matches!(feature, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387)
    };
    (0..instruction.op_count()).any(operand)
        || vector(instruction.memory_index())
        || implied
        || instruction.cpuid_features().iter().any(x87)
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Part, elf};
    use super::super::{BuildError, check};
    use super::*;

    const AT: u64 = 0x10_0000;

    fn found(name: &str, code: &[u8]) -> Option<Found> {
        let file = elf(&[Part(name, AT, code, 6, 1)], &[("first", AT), ("second", AT + 2)]);
        find(&Image::parse(&file).unwrap()).unwrap()
    }

    #[test]
    fn vector_instructions_are_found_with_function_and_address() {
        for (code, instruction) in [
            (&b"\x0f\x57\xc0"[..], "xorps xmm0,xmm0"),
            (b"\x66\x0f\xef\xc9", "pxor xmm1,xmm1"),
            (b"\xc5\xf8\x77", "vzeroupper"),
            (b"\xc5\xfc\x58\xc1", "vaddps ymm0,ymm0,ymm1"),
            (b"\x0f\x6f\xc1", "movq mm0,mm1"),
            (b"\x0f\x77", "emms"),
            (b"\xd9\xee", "fldz"),
            (b"\xd9\x00", "fld st,dword ptr [rax]"),
            (b"\x9b", "fwait"),
            (b"\x0f\xae\x10", "ldmxcsr [rax]"),
            (b"\xdb\x08", "fisttp dword ptr [rax],st"),
        ] {
            let found = found(".text", &[b"\x90\xc3", code].concat()).expect(instruction);
            assert_eq!(found.function, "second", "{instruction}");
            assert_eq!((found.address, found.instruction.as_str()), (AT + 2, instruction));
        }
    }

    #[test]
    fn what_only_came_with_sse_is_no_vector_instruction() {
        for code in [
            &b"\x0f\xae\xe8"[..], // lfence
            b"\xf3\x90",          // pause
            b"\x0f\x18\x08",      // prefetcht0 [rax]
            b"\x0f\xc3\x01",      // movnti [rcx], eax
            b"\x0f\xae\x00",      // fxsave [rax]
            b"\x0f\x01\xd0",      // xgetbv
        ] {
            assert_eq!(found(".text", &[b"\x90\xc3", code, b"\xc3"].concat()), None, "{code:x?}");
        }
    }

    #[test]
    fn code_may_ask_for_them_by_its_section() {
        let code = b"\x90\xc3\x0f\x57\xc0\xc3";
        assert!(found(".text", code).is_some());
        assert_eq!(found(".text.sse", code), None);
    }

    #[test]
    fn data_between_functions_does_not_hide_what_follows() {
        // The two bytes before `second` start an instruction that would swallow its own.
        assert_eq!(found(".text", b"\x48\xb8\x0f\x57\xc0").unwrap().function, "second");
    }

    #[test]
    fn sixteen_and_thirty_two_bit_code_is_read_as_such() {
        // In 32-bit code `dec eax; xorps`; as 64-bit code the first byte is a prefix.
        let found = found(".boot", b"\x90\x48\x0f\x57\xc0").unwrap();
        assert_eq!(found.address, AT + 2);
    }

    #[test]
    fn a_payload_with_sse_is_refused_by_name() {
        let mut code = 0x1bad_b002_u32.to_le_bytes().to_vec();
        code.extend(b"\x0f\x57\xc0");
        let parts = [Part(".text", AT, &code, 6, 1), Part(".exitlab.tests", AT + 64, &[], 2, 1)];
        let file = elf(&parts, &[("_ZN4boot3addE", AT + 4)]);
        let error = check("boot", &file).unwrap_err();
        assert!(matches!(error, BuildError::Vector { .. }), "{error}");
        let error = error.to_string();
        for part in ["boot", "_ZN4boot3addE", "0x100004", "xorps xmm0,xmm0"] {
            assert!(error.contains(part), "{error:?} does not name {part}");
        }
        code.truncate(4);
        let parts = [Part(".text", AT, &code, 6, 1), Part(".exitlab.tests", AT + 64, &[], 2, 1)];
        assert_eq!(check("boot", &elf(&parts, &[])).unwrap(), []);
    }
}
