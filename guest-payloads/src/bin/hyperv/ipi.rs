//! IPIs by hypercall: HvCallSendSyntheticClusterIpi and its form with sets of processors (TLFS, Virtual
//! Interrupt Controller).

use crate::*;
use payload_rt::{check_eq, check_err, irq, simd_fn, smp, test, time, trap};

const VECTOR: u8 = 0x59;

/// Formats of a set of processors: banks of 64, or all.
const SPARSE: u64 = 0;
const ALL: u64 = 1;

fn start() -> usize {
    irq::count_only(VECTOR);
    let cpus = smp::start();
    check!(cpus >= 4, "{cpus} CPUs: the case must give the machine four");
    introduce();
    cpus
}

/// Makes a call, and checks which processors take an interrupt.
fn expect(cpus: usize, mask: u64, what: &str, send: impl FnOnce() -> u64) {
    let mut before = [0; 16];
    (0..cpus).for_each(|cpu| before[cpu] = irq::count_on(cpu, VECTOR));
    check_eq!(send(), status::SUCCESS, "{what}");
    let took = |cpu: usize| irq::count_on(cpu, VECTOR) - before[cpu];
    let wanted = |cpu: usize| (mask >> cpu & 1) as u32;
    time::wait_until(PATIENCE, || {
        irq::let_in(1);
        (0..cpus).all(|cpu| took(cpu) >= wanted(cpu))
    });
    irq::let_in(SETTLE);
    for cpu in 0..cpus {
        check_eq!(took(cpu), wanted(cpu), "interrupts at cpu {cpu}: {what}");
    }
}

const MASKS: [u64; 5] = [0b1, 0b10, 0b1000, 0b1010, 0b1111];

test!(ipi_fast, "The fast call sends an IPI to each processor of the mask.", || {
    let cpus = start();
    for mask in MASKS {
        let send = || call(code::SEND_IPI | FAST, VECTOR.into(), mask);
        expect(cpus, mask, "fast", send);
    }
});

test!(ipi_slow, "The call with its input in memory does the same.", || {
    let cpus = start();
    let input = page();
    for mask in MASKS {
        put(input, u64::from(VECTOR));
        put(input + 8, mask);
        expect(cpus, mask, "slow", || call(code::SEND_IPI, input, 0));
    }
});

test!(ipi_absent, "Processors that are not there are no error, and get nothing.", || {
    let cpus = start();
    let send = |mask: u64| call(code::SEND_IPI | FAST, VECTOR.into(), mask);
    expect(cpus, 0, "nobody", || send(0));
    expect(cpus, 0, "no such processor", || send(1 << 63));
    expect(cpus, 0b100, "one of two", || send(1 << 63 | 0b100));
});

// Vectors 0x10 to 0xff.
test!(ipi_vector_range, "A vector below 16 or above 255 is INVALID_HYPERCALL_INPUT.", || {
    start();
    let input = page();
    for vector in [0u64, 15, 0x100, 0xffff_ffff] {
        let result = call(code::SEND_IPI | FAST, vector, 1);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "vector {vector:#x}, fast");
        put(input, vector as u32);
        put(input + 8, 1u64);
        let result = call(code::SEND_IPI, input, 0);
        check_eq!(result, status::INVALID_HYPERCALL_INPUT, "vector {vector:#x}, slow");
    }
    // What is reserved behind the vector.
    let result = call(code::SEND_IPI | FAST, 1 << 40 | u64::from(VECTOR), 1);
    check_eq!(result, status::INVALID_HYPERCALL_INPUT, "reserved bits");
});

/// An input of the form with sets: vector, format, valid banks, banks.
fn ex(format: u64, valid: u64, banks: &[u64]) -> u64 {
    let input = page();
    let words = [u64::from(VECTOR), format, valid];
    for (at, word) in (input..).step_by(8).zip(words.iter().chain(banks)) {
        put(at, *word);
    }
    call((banks.len() as u64) << VARIABLE | code::SEND_IPI_EX, input, 0)
}

test!(
    ipi_sets,
    "A set of processors is by banks of 64, of which those that count are told.",
    || {
        let cpus = start();
        for mask in MASKS {
            expect(cpus, mask, "bank 0", || ex(SPARSE, 1, &[mask]));
            expect(cpus, mask, "banks 0 and 2", || ex(SPARSE, 0b101, &[mask, u64::MAX]));
            expect(cpus, 0, "bank 1", || ex(SPARSE, 0b10, &[mask]));
        }
        expect(cpus, 0, "no bank", || ex(SPARSE, 0, &[]));
        expect(cpus, 0b1111, "all", || ex(ALL, 0, &[]));
    }
);

test!(
    ipi_bad_sets,
    "A header of another length than the set's is INVALID_HYPERCALL_INPUT.",
    || {
        start();
        for (valid, banks) in [(0b11, &[1u64][..]), (1, &[]), (0, &[1]), (0b1, &[1, 1])] {
            let result = ex(SPARSE, valid, banks);
            check_eq!(result, status::INVALID_HYPERCALL_INPUT, "valid {valid:#b}, {banks:?}");
        }
        irq::let_in(SETTLE);
        check_eq!(irq::count(VECTOR), 0, "interrupts");
    }
);

simd_fn! {
    /// A fast hypercall with more words in XMM0.
    fn call_xmm(at: u64, input: u64, first: u64, second: u64, words: &[u64; 2]) -> Result<u64, trap::Trap> {
        let result: u64;
        insn!(
            "movdqu xmm0, [{words}]", "call {at}";
            at = in(reg) at, words = in(reg) words.as_ptr(), out("rax") result,
            inout("rcx") input => _, inout("rdx") first => _, inout("r8") second => _,
            out("r9") _, out("r10") _, out("r11") _
        )?;
        Ok(result)
    }
}

fn enable_sse() {
    check_ok!(reg::set_cr0(reg::cr0() & !reg::CR0_EM | reg::CR0_MP));
    check_ok!(reg::set_cr4(reg::cr4() | reg::CR4_OSFXSR | reg::CR4_OSXMMEXCPT));
}

// XMM fast hypercall input: leaf 0x40000003, EDX bit 4.
test!(ipi_xmm, "A fast call takes what has no room in RDX and R8 from XMM registers.", || {
    check!(cpuid::leaf(FEATURES, 0).edx >> 4 & 1 == 1, "it is not announced");
    let cpus = start();
    enable_sse();
    let at = CALLS.load(Relaxed);
    for mask in MASKS {
        // Vector and format in RDX and R8; valid banks and bank 0 in XMM0.
        let input = 1 << VARIABLE | FAST | code::SEND_IPI_EX;
        let send = || check_ok!(call_xmm(at, input, VECTOR.into(), SPARSE, &[1, mask]));
        expect(cpus, mask, "by XMM0", send);
    }
});

// KVM_CAP_HYPERV_ENFORCE_CPUID.
test!(ipi_xmm_not_announced, "Without XMM input a fast call that would need it is #UD.", || {
    check!(cpuid::leaf(FEATURES, 0).edx >> 4 & 1 == 0, "it is announced");
    start();
    enable_sse();
    let at = CALLS.load(Relaxed);
    let input = 1 << VARIABLE | FAST | code::SEND_IPI_EX;
    let outcome = trap::catch(|| call_xmm(at, input, VECTOR.into(), SPARSE, &[1, 1]));
    let fault = check_err!(outcome, "the call");
    check!(fault.is(trap::UD, 0), "{fault}");
});
