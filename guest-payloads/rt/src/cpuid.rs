//! CPUID.

use core::arch::x86_64::{__cpuid_count, CpuidResult};

/// Leaf `leaf`, subleaf `subleaf`, whether or not the CPU announces it.
pub fn leaf(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// Leaf `number`, subleaf `subleaf`, if the CPU says that its range reaches that far.
pub fn get(number: u32, subleaf: u32) -> Option<CpuidResult> {
    let first = number & 0xffff_0000;
    let last = leaf(first, 0).eax;
    // A range that is not there answers with the last basic leaf or with zeroes.
    (last & 0xffff_0000 == first && number <= last).then(|| leaf(number, subleaf))
}

/// A register of a CPUID leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The registers they are named for.
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A feature bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    leaf: u32,
    subleaf: u32,
    register: Register,
    bit: u8,
}

impl Feature {
    /// A feature by where its bit is.
    pub const fn new(
        name: &'static str,
        leaf: u32,
        subleaf: u32,
        register: Register,
        bit: u8,
    ) -> Feature {
        Feature { name, leaf, subleaf, register, bit }
    }

    /// Whether the CPU announces it.
    pub fn present(self) -> bool {
        let Some(words) = get(self.leaf, self.subleaf) else {
            return false;
        };
        let word = match self.register {
            Register::Eax => words.eax,
            Register::Ebx => words.ebx,
            Register::Ecx => words.ecx,
            Register::Edx => words.edx,
        };
        word & 1 << self.bit != 0
    }

    /// Ends the test with `skip` unless the CPU announces the feature.
    pub fn require(self) {
        if !self.present() {
            crate::skip!("no {} in CPUID", self.name);
        }
    }
}

macro_rules! features {
    ($($const:ident = $name:literal, $leaf:literal, $sub:literal, $register:ident, $bit:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $const: Feature = Feature::new($name, $leaf, $sub, Register::$register, $bit);
        )*

        /// All features named here.
        pub const ALL: &[Feature] = &[$($const),*];
    };
}
features! {
    PCLMULQDQ = "pclmulqdq", 1, 0, Ecx, 1;
    MONITOR = "monitor", 1, 0, Ecx, 3;
    VMX = "vmx", 1, 0, Ecx, 5;
    CX16 = "cx16", 1, 0, Ecx, 13;
    PDCM = "pdcm", 1, 0, Ecx, 15;
    PCID = "pcid", 1, 0, Ecx, 17;
    X2APIC = "x2apic", 1, 0, Ecx, 21;
    POPCNT = "popcnt", 1, 0, Ecx, 23;
    TSC_DEADLINE = "tsc-deadline", 1, 0, Ecx, 24;
    AES = "aes", 1, 0, Ecx, 25;
    XSAVE = "xsave", 1, 0, Ecx, 26;
    OSXSAVE = "osxsave", 1, 0, Ecx, 27;
    AVX = "avx", 1, 0, Ecx, 28;
    RDRAND = "rdrand", 1, 0, Ecx, 30;
    HYPERVISOR = "hypervisor", 1, 0, Ecx, 31;
    DE = "de", 1, 0, Edx, 2;
    PSE = "pse", 1, 0, Edx, 3;
    TSC_BIT = "tsc", 1, 0, Edx, 4;
    APIC_BIT = "apic", 1, 0, Edx, 9;
    SEP = "sep", 1, 0, Edx, 11;
    MTRR = "mtrr", 1, 0, Edx, 12;
    PGE = "pge", 1, 0, Edx, 13;
    MCA = "mca", 1, 0, Edx, 14;
    PAT_BIT = "pat", 1, 0, Edx, 16;
    ARAT = "arat", 6, 0, Eax, 2;
    FSGSBASE = "fsgsbase", 7, 0, Ebx, 0;
    TSC_ADJUST = "tsc-adjust", 7, 0, Ebx, 1;
    SMEP = "smep", 7, 0, Ebx, 7;
    INVPCID = "invpcid", 7, 0, Ebx, 10;
    RDSEED = "rdseed", 7, 0, Ebx, 18;
    SMAP = "smap", 7, 0, Ebx, 20;
    UMIP = "umip", 7, 0, Ecx, 2;
    PKU = "pku", 7, 0, Ecx, 3;
    OSPKE = "ospke", 7, 0, Ecx, 4;
    WAITPKG = "waitpkg", 7, 0, Ecx, 5;
    LA57 = "la57", 7, 0, Ecx, 16;
    RDPID = "rdpid", 7, 0, Ecx, 22;
    SPEC_CTRL = "spec-ctrl", 7, 0, Edx, 26;
    ARCH_CAPABILITIES = "arch-capabilities", 7, 0, Edx, 29;
    LAM = "lam", 7, 1, Eax, 26;
    XSAVEC = "xsavec", 0xd, 1, Eax, 1;
    XSAVES = "xsaves", 0xd, 1, Eax, 3;
    SVM = "svm", 0x8000_0001, 0, Ecx, 2;
    SYSCALL_BIT = "syscall", 0x8000_0001, 0, Edx, 11;
    NX = "nx", 0x8000_0001, 0, Edx, 20;
    FXSR_OPT = "fxsr-opt", 0x8000_0001, 0, Edx, 25;
    PAGE_1G = "pdpe1gb", 0x8000_0001, 0, Edx, 26;
    RDTSCP = "rdtscp", 0x8000_0001, 0, Edx, 27;
    INVARIANT_TSC = "invtsc", 0x8000_0007, 0, Edx, 8;
    KVM_CLOCK = "kvmclock", 0x4000_0001, 0, Eax, 3;
    KVM_PV_EOI = "kvm-pv-eoi", 0x4000_0001, 0, Eax, 6;
    KVM_CLOCK_STABLE = "kvmclock-stable", 0x4000_0001, 0, Eax, 24;
}

/// The twelve letters by which a range of leaves names its maker: 0 for the CPU, 0x4000_0000 for
/// the hypervisor. Registers in the order EBX, then EDX and ECX (CPU) or ECX and EDX.
pub fn signature(base: u32) -> [u8; 12] {
    let words = leaf(base, 0);
    let order = match base {
        0 => [words.ebx, words.edx, words.ecx],
        _ => [words.ebx, words.ecx, words.edx],
    };
    let mut letters = [0; 12];
    for (chunk, word) in letters.chunks_mut(4).zip(order) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    letters
}

/// Physical address bits, from leaf 0x8000_0008; 36 if that is not there.
pub fn physical_bits() -> u8 {
    get(0x8000_0008, 0).map_or(36, |words| words.eax as u8)
}
