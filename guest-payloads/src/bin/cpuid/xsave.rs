//! XSAVE: leaf 0xd against XCR0 (SDM volume 1, 13.2 and 13.3; AMD APM volume 2, 11.5).

use payload_rt::cpuid::{self, leaf};
use payload_rt::trap::{GP, UD};
use payload_rt::{check, check_eq, check_ok, check_trap, println, reg, test};

const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const MPX: u64 = 0b11 << 3;
const AVX512: u64 = 0b111 << 5;
const PKRU: u64 = 1 << 9;
const AMX: u64 = 0b11 << 17;
/// Legacy area and header.
const BASIC: u32 = 576;

/// Turns XSAVE on; the components that XCR0 may have.
fn supported() -> u64 {
    cpuid::XSAVE.require();
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSXSAVE), "set CR4.OSXSAVE");
    let words = leaf(0xd, 0);
    u64::from(words.eax) | u64::from(words.edx) << 32
}

/// Bytes of the standard format for some components, by their own subleaves.
fn size(components: u64) -> u32 {
    let end = |i| {
        let words = leaf(0xd, i);
        words.ebx + words.eax
    };
    let used = (2..63).filter(|i| components & 1 << i != 0);
    used.map(end).max().unwrap_or(BASIC).max(BASIC)
}

test!(
    xsave_sizes,
    "Leaf 0xd's sizes are those of the components in XCR0, as XCR0 changes.",
    || {
        let all = supported();
        println!("components {all:#x}");
        check_eq!(all & (X87 | SSE), X87 | SSE, "components that XSAVE always has");
        check_eq!(leaf(0xd, 0).ecx, size(all), "ECX, the size for {all:#x}");
        for add in [0, SSE, SSE | AVX, SSE | PKRU, SSE | AVX | AVX512, SSE | AVX | AMX, all] {
            let value = X87 | add & all;
            check_ok!(reg::xsetbv(0, value), "XCR0 = {value:#x}");
            check_eq!(reg::xgetbv(0), Ok(value), "XCR0");
            check_eq!(leaf(0xd, 0).ebx, size(value), "EBX, the size for XCR0 = {value:#x}");
        }
    }
);

test!(xsave_components, "Each component has a place that no other one overlaps.", || {
    let all = supported();
    let place = |i: u32| (leaf(0xd, i).ebx, leaf(0xd, i).ebx + leaf(0xd, i).eax);
    for i in (2..63).filter(|i| all & 1 << i != 0) {
        let (start, end) = place(i);
        check!(start >= BASIC && end > start, "component {i} is at {start:#x} to {end:#x}");
        check_eq!(leaf(0xd, i).ecx & 1, 0, "component {i} is for XCR0, not for IA32_XSS");
        for other in (2..i).filter(|other| all & 1 << other != 0) {
            let (from, to) = place(other);
            check!(end <= from || to <= start, "components {i} and {other} overlap");
        }
    }
    let supervisor = leaf(0xd, 1);
    let supervisor = u64::from(supervisor.ecx) | u64::from(supervisor.edx) << 32;
    let neither = !(all | supervisor);
    for i in (2..63).filter(|i| neither & 1 << i != 0) {
        let words = leaf(0xd, i);
        check_eq!([words.eax, words.ebx, words.ecx, words.edx], [0; 4], "leaf 0xd.{i}");
    }
});

// SDM volume 1, 13.4.3: in the compacted format components follow each other, some aligned to 64.
test!(
    xsave_compact,
    "Leaf 0xd.1 has the size of the compacted format for XCR0 and IA32_XSS.",
    || {
        let all = supported();
        cpuid::XSAVEC.require();
        let xss = if cpuid::XSAVES.present() { check_ok!(reg::rdmsr(0xda0)) } else { 0 };
        for value in [X87, X87 | SSE, X87 | SSE | AVX & all, all] {
            check_ok!(reg::xsetbv(0, value), "XCR0 = {value:#x}");
            let mut end = BASIC;
            for i in (2..63).filter(|i| (value | xss) & 1 << i != 0) {
                let words = leaf(0xd, i);
                end = if words.ecx & 2 != 0 { end.next_multiple_of(64) } else { end } + words.eax;
            }
            check_eq!(leaf(0xd, 1).ebx, end, "EBX for XCR0 = {value:#x}, IA32_XSS = {xss:#x}");
        }
    }
);

// SDM volume 2, XSETBV; volume 1, 13.3.
test!(xcr0, "XCR0 refuses components that are not there or lack the ones they need.", || {
    let all = supported();
    let old = check_ok!(reg::xgetbv(0));
    let refuse = |value: u64| {
        check_trap!(reg::xsetbv(0, value), GP, 0, "XCR0 = {value:#x}");
        check_eq!(reg::xgetbv(0), Ok(old), "XCR0 after the refused {value:#x}");
    };
    for value in [0, SSE, SSE | AVX, AVX, X87 | AVX] {
        refuse(value);
    }
    for bit in (0..64).filter(|bit| all & 1 << bit == 0) {
        refuse(X87 | SSE | 1 << bit);
    }
    if all & MPX != 0 {
        refuse(X87 | SSE | 1 << 3);
        refuse(X87 | SSE | 1 << 4);
    }
    if all & AVX512 != 0 {
        refuse(X87 | SSE | AVX512);
        for part in [0b001 << 5, 0b010 << 5, 0b100 << 5, 0b011 << 5, 0b110 << 5] {
            refuse(X87 | SSE | AVX | part);
        }
    }
    if all & AMX != 0 {
        refuse(X87 | SSE | 1 << 17);
        refuse(X87 | SSE | 1 << 18);
    }
    for index in [1, 2, 0x8000_0000, u32::MAX] {
        check_trap!(reg::xsetbv(index, X87), GP, 0, "XCR{index:#x} = 1");
    }
    for index in [2, 0x8000_0000, u32::MAX] {
        check_trap!(reg::xgetbv(index), GP, 0, "read XCR{index:#x}");
    }
});

test!(no_osxsave, "Without CR4.OSXSAVE, XGETBV is #UD.", || {
    check_ok!(reg::set_cr4(reg::cr4() & !reg::CR4_OSXSAVE));
    check_trap!(reg::xgetbv(0), UD, 0, "xgetbv");
});

test!(no_osxsave_set, "Without CR4.OSXSAVE, XSETBV is #UD.", || {
    check_ok!(reg::set_cr4(reg::cr4() & !reg::CR4_OSXSAVE));
    check_trap!(reg::xsetbv(0, X87), UD, 0, "xsetbv");
});
