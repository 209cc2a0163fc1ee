//! Tests of the runner, not of a hypervisor: payloads that end in every way there is, good or bad.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::test::payload_abi::ExitValue;
use payload_rt::{
    apic, check, check_eq, insn, irq, mem, println, reg, report, serial, skip, smp, test,
};

test!(pass, "Passes.", || check!(true));

test!(fail, "Fails, on a check that does not hold.", || {
    let two = 2;
    check_eq!(two + two, 5, "two and two");
});

test!(skip, "Skips itself.", || skip!("nothing to see here"));

test!(error, "Is broken: panics.", || panic!("on purpose"));

test!(interrupted, "Is broken: gets an interrupt that nobody registered for.", || {
    apic::local().enable();
    apic::local().self_ipi(0x55);
    irq::let_in(1_000_000);
});

test!(reports_values, "Reports figures, among them the largest.", || {
    report::value("zero", 0);
    report::value("largest", u64::MAX);
});

test!(prints_much, "Prints a hundred lines of free text before it passes.", || {
    for i in 0..100 {
        println!("line {i} of a payload that talks a lot");
    }
});

test!(long_reason, "Fails with a reason of several lines, which become one.", || {
    payload_rt::fail!("first line\nsecond line\r\nthird {:?}", [7_u8; 64]);
});

test!(hang, "Never ends: a loop with interrupts off.", || {
    reg::cli();
    loop {
        reg::pause();
    }
});

test!(halt_forever, "Never ends: halts with interrupts off.", || report::stop());

test!(triple_fault, "Shuts the CPU down: an invalid opcode with an empty IDT.", || {
    payload_rt::check_ok!(reg::lidt(reg::Table { base: 0, limit: 0 }));
    let _ = insn!("ud2");
});

test!(silent, "Writes the exit value of a pass without any word on how it went.", || {
    report::exit(ExitValue::Pass)
});

test!(unknown_exit, "Writes an exit value that means nothing.", || report::exit_raw(0x15));

test!(wrong_end, "Says pass, but writes the exit value of a failure.", || {
    serial::write(b"## pass wrong_end\n");
    report::exit(ExitValue::Fail)
});

test!(wrong_name, "Says that another test passed.", || {
    serial::write(b"## pass somebody_else\n");
    report::exit(ExitValue::Pass)
});

test!(ends_twice, "Says pass, and then fail.", || {
    serial::write(b"## pass ends_twice\n## fail ends_twice: changed its mind\n");
    report::exit(ExitValue::Fail)
});

test!(
    garbage,
    "Prints bytes of all values and an endless line, then ends without a verdict.",
    || {
        let mut bytes = [0; 256];
        for (value, byte) in bytes.iter_mut().enumerate() {
            *byte = value as u8;
        }
        serial::write(&bytes);
        for _ in 0..64 {
            serial::write(&[b'#'; 64]);
        }
        serial::write(b"\n## pass\n## passed garbage\n## value garbage x y\n##  pass garbage\n");
        report::exit(ExitValue::Pass)
    }
);

test!(half_a_line, "Ends in the middle of its verdict.", || {
    serial::write(b"## pass half_a_line");
    report::exit(ExitValue::Pass)
});

test!(fails_on_another_cpu, "Fails on CPU 1, while CPU 0 waits for it; needs two CPUs.", || {
    if smp::start() < 2 {
        skip!("one CPU");
    }
    smp::run_on(1, || check_eq!(payload_rt::cpu::index(), 0, "index of the CPU"));
});

test!(touches_nothing, "Reads and writes addresses where nothing is, then passes.", || {
    for address in [0xd000_0000, 0xfeb0_0000, 0xffe0_0000] {
        // What comes back is the machine's business.
        let _ = mem::read::<u32>(address);
        let _ = mem::write(address, 0_u32);
    }
});
