//! What a payload finds when it starts: what the loader said, and the state the runtime made.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

#[path = "boot/entry.rs"]
mod entry;
#[path = "boot/memory.rs"]
mod memory;

use payload_rt::boot::{self, Kind, Protocol};
use payload_rt::{check, check_eq, cpu, frames, idt, mem, port, println, reg, report, test, time};

test!(prints, "Free text reaches the serial port in whole lines, however long.", || {
    println!("hello");
    println!("{:>200}|", "two hundred columns");
    println!("{:#x} {} {:?}", 0xfeed_beef_u64, i64::MIN, Some("text"));
});

test!(time_to_test, "Reports the TSC ticks from the entry to the first line of a test.", || {
    let ticks = time::rdtsc() - boot::entry_tsc();
    report::value("entry_to_print_ticks", boot::print_tsc() - boot::entry_tsc());
    report::value("entry_to_test_ticks", ticks);
    report::value("tsc_hz", time::tsc_hz());
});

test!(
    protocol,
    "The loader spoke PVH or multiboot; `protocol=` says which it must have been.",
    || {
        let info = boot::info();
        println!("{:?}: {}", info.protocol(), info.command_line().escape_ascii());
        match boot::argument("protocol") {
            Some("pvh") => check_eq!(info.protocol(), Protocol::Pvh),
            Some("multiboot") => check_eq!(info.protocol(), Protocol::Multiboot),
            Some(other) => {
                report::error(format_args!("protocol={other}: it takes pvh or multiboot"))
            }
            None => {}
        }
        check!(!info.truncated(), "the loader said more than the runtime keeps");
    }
);

test!(
    command_line,
    "Arguments arrive as they were given: this wants `word=a,b number=0x2a`.",
    || {
        if boot::argument("word").is_none() {
            payload_rt::skip!("needs word=a,b number=0x2a on the command line");
        }
        check_eq!(boot::argument("word"), Some("a,b"));
        check_eq!(boot::number("number"), Some(42));
        check_eq!(boot::argument("wor"), None);
    }
);

test!(memory_map, "The memory map has RAM, holds the payload, and no two ranges overlap.", || {
    let regions = boot::info().regions();
    for region in regions {
        println!("{:#014x} {:#014x} {:?}", region.start, region.end(), region.kind);
    }
    let image = 0x10_0000..frames::image_end();
    let holds =
        |r: &&boot::Region| r.kind == Kind::Ram && r.start <= image.start && image.end <= r.end();
    check_eq!(regions.iter().filter(holds).count(), 1, "ranges of RAM that hold the payload");
    for (i, a) in regions.iter().enumerate() {
        check!(a.len > 0, "range {i} is empty");
        check!(a.start.checked_add(a.len).is_some(), "range {i} wraps around");
        for b in &regions[i + 1..] {
            let apart = a.end() <= b.start || b.end() <= a.start;
            check!(apart, "{:#x} and {:#x} overlap", a.start, b.start);
        }
    }
});

test!(
    ram_is_ram,
    "The last page of each range of RAM below 4 GiB holds what is written to it.",
    || {
        let ram = boot::info().regions().iter().filter(|r| r.kind == Kind::Ram);
        for region in ram.filter(|r| r.len >= 0x1000 && r.end() <= 1 << 32) {
            let last = (region.end() - 8) & !7;
            let old = payload_rt::check_ok!(mem::read::<u64>(last), "read {last:#x}");
            for value in [!old, 0x0123_4567_89ab_cdef, old] {
                payload_rt::check_ok!(mem::write(last, value), "write {last:#x}");
                check_eq!(mem::read(last), Ok(value), "at {last:#x}");
            }
        }
    }
);

test!(
    modules,
    "Each module lies in RAM, outside the payload; prints the first bytes of each.",
    || {
        let info = boot::info();
        if let Some(n) = boot::number("modules") {
            check_eq!(info.modules().len() as u64, n, "modules");
        }
        for module in info.modules() {
            let end = module.start + module.len;
            let in_ram =
                |r: &boot::Region| r.kind == Kind::Ram && r.start <= module.start && end <= r.end();
            check!(
                info.regions().iter().any(in_ram),
                "module at {:#x} is not in RAM",
                module.start
            );
            let apart = end <= 0x10_0000 || module.start >= frames::image_end();
            check!(apart, "module at {:#x} lies over the payload", module.start);
            let mut start = [0; 16];
            let len = start.len().min(module.len as usize);
            payload_rt::check_ok!(mem::read_bytes(module.start, &mut start[..len]));
            println!("{:#x}+{:#x}: {}", module.start, module.len, start[..len].escape_ascii());
        }
    }
);

test!(
    long_mode,
    "The CPU is in 64-bit mode with paging, write protection and the runtime's IDT.",
    || {
        let cr0 = reg::cr0();
        let want = reg::CR0_PE | reg::CR0_PG | reg::CR0_WP | reg::CR0_NE;
        check_eq!(cr0 & want, want, "CR0");
        check_eq!(cr0 & (reg::CR0_EM | reg::CR0_TS | reg::CR0_CD | reg::CR0_NW), 0, "CR0");
        check!(reg::cr4() & reg::CR4_PAE != 0, "CR4 is {:#x}: no PAE", reg::cr4());
        let efer = payload_rt::check_ok!(reg::rdmsr(reg::EFER));
        let want = reg::EFER_LME | reg::EFER_LMA;
        check_eq!(efer & want, want, "EFER");
        check_eq!(reg::cs(), cpu::KERNEL_CS);
        check_eq!(reg::ss(), cpu::KERNEL_DS);
        check_eq!(reg::str(), Ok(cpu::TSS_SELECTOR));
        check_eq!(reg::sidt(), Ok(reg::Table { base: idt::base(), limit: idt::LIMIT }));
        check_eq!(reg::rflags() & (reg::FLAG_IF | reg::FLAG_DF | reg::FLAG_TF), 0, "RFLAGS");
    }
);

test!(stack, "The stack lies in the CPU's block, and the ABI's alignment holds.", || {
    #[inline(never)]
    extern "C" fn aligned(probe: &mut [u128; 2]) -> u64 {
        probe.as_ptr() as u64
    }
    let at = aligned(&mut [0, 0]);
    check_eq!(at % 16, 0, "address of a 16-byte aligned local");
    let range = cpu::stack_range();
    check!(range.contains(&at), "{at:#x} is not in {range:#x?}");
});

test!(statics, "Zeroed data is zero and initialised data is as written, on every start.", || {
    use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static ZERO: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];
    static SET: AtomicU64 = AtomicU64::new(0x5e7);
    for word in &ZERO {
        check_eq!(word.swap(u64::MAX, Relaxed), 0);
    }
    check_eq!(SET.swap(0, Relaxed), 0x5e7);
});

test!(frames, "Pages from the pool are RAM, zeroed, distinct, and come back.", || {
    let mut a = frames::alloc();
    let b = frames::alloc();
    check!(a.address() != b.address());
    check!(a.address() >= frames::image_end());
    check!(a.bytes().iter().all(|&byte| byte == 0));
    a.bytes().fill(0xa5);
    let at = a.address();
    a.free();
    let mut again = frames::alloc();
    check_eq!(again.address(), at);
    check!(again.bytes().iter().all(|&byte| byte == 0));
});

test!(
    faults_are_values,
    "Faults of the runtime's accessors come back as errors, in place.",
    || {
        let fault = payload_rt::check_err!(mem::read::<u32>(0x5000_0000_0000));
        check_eq!(fault.vector, payload_rt::trap::PF);
        check_eq!(fault.cr2, 0x5000_0000_0000);
        check_eq!(fault.error_code, 0);
        let fault = payload_rt::check_err!(mem::write(0x5000_0000_0000, 1u8));
        check_eq!((fault.vector, fault.error_code), (payload_rt::trap::PF, 2));
        let fault = payload_rt::check_err!(mem::read::<u64>(0x8000_0000_0000_0000));
        check!(fault.is(payload_rt::trap::GP, 0), "{fault}");
        let fault = payload_rt::check_err!(reg::ltr(0xfff8));
        check!(fault.is(payload_rt::trap::GP, 0xfff8), "{fault}");
        let fault = payload_rt::check_err!(payload_rt::insn!("ud2"));
        check!(fault.is(payload_rt::trap::UD, 0), "{fault}");
        check_eq!(payload_rt::insn!("nop"), Ok(()));
    }
);

test!(
    faults_leave_a_closure,
    "A trap anywhere below `catch` comes back to it, nested too.",
    || {
        use payload_rt::trap::{self, catch};
        let inner = catch(|| {
            let inner = mem::call(0x5000_0000_0000);
            check_eq!(inner.map_err(|t| (t.vector, t.rip)), Err((trap::PF, 0x5000_0000_0000)));
            7
        });
        check_eq!(inner, Ok(7));
        let mut code = frames::alloc();
        code.bytes()[..3].copy_from_slice(&[0x31, 0xc0, 0xc3]); // xor eax, eax; ret
        check_eq!(mem::call(code.address()), Ok(0));
        code.bytes()[..2].copy_from_slice(&[0x0f, 0x0b]); // ud2
        let fault = payload_rt::check_err!(mem::call(code.address()));
        check_eq!((fault.vector, fault.rip), (trap::UD, code.address()));
    }
);

test!(
    names_are_unique,
    "No two tests of a payload share a name, and each says what it shows.",
    || {
        for (i, (name, about)) in test::all().enumerate() {
            check!(!about.is_empty() && about.ends_with('.'), "{name}: {about:?} is no sentence");
            check_eq!(test::all().skip(i + 1).find(|(other, _)| *other == name), None);
        }
    }
);

test!(port_61, "A port read and write reach a device: the gate of the PIT's channel 2.", || {
    let old = port::in8(0x61);
    if old == 0xff {
        payload_rt::skip!("port 0x61 is not there");
    }
    port::out8(0x61, old & !1 | 1);
    check_eq!(port::in8(0x61) & 3, old & 2 | 1);
    port::out8(0x61, old & 3);
});
