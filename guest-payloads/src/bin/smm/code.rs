//! SMM code, and what it shares with the test.
//!
//! What is at SMBASE + 8000h counts, has the host carry out a chain of the lab's if there is one, goes on
//! with what the test gave it, and resumes. None of it but the test's changes a flag.

use payload_rt::lab::{self, Chain, kvm};
use payload_rt::mem::{self, Word};
use payload_rt::{asm_code, check_eq, check_ok, reg};

/// SMBASE after a reset (APM 10.2.1).
pub const SMBASE: u64 = 0x3_0000;
/// Offset of the first instruction (APM 10.2.1).
pub const ENTRY: u64 = 0x8000;
/// What SMM code and test share: the words below.
const SHARED: u64 = 0x3_6000;
/// SMIs that were taken.
const COUNT: u64 = 0;
/// The chain that is carried out in SMM; 0 for none.
const CHAIN: u64 = 4;
/// Images of IDTR and GDTR.
const IDTR: u64 = 0x10;
const GDTR: u64 = 0x20;
/// A second chain, for the test's own code.
const SECOND: u64 = 0x30;
/// What the test's own code writes and reads.
pub const NOTE: u64 = 0x40;
/// What [`POKE`] changes: the address of a word, what it keeps, what it adds.
const POKED: u64 = 0x50;
/// The IDT of SMM code in real mode, and its handlers in the same segment.
const IDT: u64 = 0x3_7000;
const HANDLERS: u64 = 0x800;
/// Where code in 64-bit mode goes.
const CODE64: u64 = 0x3_7c00;

/// What every SMI begins with.
fn prologue() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov esi, 0x36000",
        "mov ecx, dword ptr [esi]",
        "lea ecx, [ecx + 1]",
        "mov dword ptr [esi], ecx",
        "mov ecx, dword ptr [esi + 4]",
        "jecxz 2f",
        "mov eax, ecx",
        "mov dx, 0x1ab0",
        "out dx, eax",
        "2:",
    )
}

/// Where the host finds RIP in a chain that is carried out in SMM.
pub fn rip_in_chain() -> u64 {
    ENTRY + prologue().len() as u64
}

/// Changes the word of the map that [`poke`] named.
pub fn poking() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov edi, dword ptr [esi + 0x50]",
        "mov eax, dword ptr [edi]",
        "and eax, dword ptr [esi + 0x54]",
        "or eax, dword ptr [esi + 0x58]",
        "mov dword ptr [edi], eax",
    )
}

/// Loads a stack and the IDT of [`set_vector`].
pub fn stack_and_idt() -> &'static [u8] {
    asm_code!(".code16", "mov ax, 0x3700", "mov ss, ax", "mov sp, 0x7f0", "lidt [esi + 0x10]",)
}

/// Has the host carry out the chain of [`ask_second`].
pub fn asking_second() -> &'static [u8] {
    asm_code!(".code16", "mov eax, dword ptr [esi + 0x30]", "mov dx, 0x1ab0", "out dx, eax", "nop",)
}

/// Goes to 64-bit mode, in the test's own page tables and with its GDT, and on to the code of
/// [`put_long`].
pub fn entering_long_mode() -> &'static [u8] {
    asm_code!(
        ".code16",
        "mov eax, 0x20",
        "mov cr4, eax",
        "mov edi, 0x3ff50",
        "mov eax, dword ptr [edi]",
        "mov cr3, eax",
        "mov ecx, 0xc0000080",
        "mov eax, 0x100",
        "mov edx, 0",
        "wrmsr",
        ".byte 0x67, 0x66, 0x0f, 0x01, 0x56, 0x20", // lgdt [esi + 0x20], with all 32 bits of the base
        "mov eax, cr0",
        "or eax, 0x80000001",
        "mov cr0, eax",
        ".byte 0x66, 0xea",
        ".long 0x37c00",
        ".short 0x08",
    )
}

fn put(address: u64, bytes: &[u8]) {
    check_ok!(mem::write_bytes(address, bytes), "SMM code at {address:#x}");
}

/// Puts SMM code to [`SMBASE`]: the prologue, these pieces, RSM. Nothing is counted or asked yet.
pub fn install(pieces: &[&[u8]]) {
    install_at(SMBASE, pieces);
}

/// As [`install`], for another SMBASE.
pub fn install_at(smbase: u64, pieces: &[&[u8]]) {
    put(SHARED, &[0; 0x100]);
    put(IDT, &[0; 0x400]);
    set_shared(IDTR, 0x3ff_u16);
    set_shared(IDTR + 2, IDT as u32);
    let mut at = smbase + ENTRY;
    for piece in [prologue()].iter().chain(pieces).chain([&asm_code!("rsm")]) {
        put(at, piece);
        at += piece.len() as u64;
    }
}

/// Puts 64-bit code behind [`entering_long_mode`]; it ends with RSM by itself.
pub fn put_long(code: &[u8]) {
    let gdt = check_ok!(reg::sgdt());
    set_shared(GDTR, gdt.limit);
    set_shared(GDTR + 2, gdt.base as u32);
    put(CODE64, code);
    put(CODE64 + code.len() as u64, asm_code!("rsm"));
}

/// Lets a vector that is raised in SMM lead to this code, which ends with IRET by itself.
pub fn set_vector(vector: u8, code: &[u8]) {
    let offset = HANDLERS + 0x40 * u64::from(vector & 7);
    check_ok!(mem::write(IDT + 4 * u64::from(vector), 0x3700_0000_u32 | offset as u32));
    put(IDT + offset, code);
    put(IDT + offset + code.len() as u64, asm_code!(".code16", "iret"));
}

fn set_shared<T: Word>(at: u64, value: T) {
    check_ok!(mem::write(SHARED + at, value));
}

/// A word that SMM code and test share, from [`NOTE`] on.
pub fn note(index: u64) -> u32 {
    check_ok!(mem::read(SHARED + NOTE + 4 * index))
}

/// Sets such a word.
pub fn set_note(index: u64, value: u32) {
    set_shared(NOTE + 4 * index, value);
}

/// SMIs that were taken since [`install`].
pub fn count() -> u32 {
    check_ok!(mem::read(SHARED + COUNT))
}

/// Has the host carry out a chain in every SMI from now on.
pub fn ask(chain: &Chain) {
    set_shared(CHAIN, chain.address());
}

/// The chain of [`asking_second`].
pub fn ask_second(chain: &Chain) {
    set_shared(SECOND, chain.address());
}

/// Has [`poking`] change the word at `offset` of the map: what it keeps of it, what it adds.
pub fn poke(offset: u64, keep: u32, add: u32) {
    set_shared(POKED, (SMBASE + offset) as u32);
    set_shared(POKED + 4, keep);
    set_shared(POKED + 8, add);
}

/// What the map of the last SMI holds at an offset from SMBASE.
pub fn saved<T: Word>(offset: u64) -> T {
    check_ok!(mem::read(SMBASE + offset))
}

/// Takes one SMI of the host's, right behind the lab's OUT.
pub fn smi() {
    let before = count();
    check_ok!(lab::call(kvm::SMI), "KVM_SMI");
    check_eq!(count(), before + 1, "SMIs taken");
}

/// A chain that makes an SMI pending, for a test's own OUT.
pub fn smi_chain() -> Chain {
    let mut chain = Chain::new();
    chain.call(kvm::SMI, 0);
    chain
}
