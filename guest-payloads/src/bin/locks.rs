//! Locked accesses that no single cache line holds: split locks, and what KVM makes of bus locks (Intel SDM
//! volume 3, "Locked Atomic Operations"; Linux, Documentation/virt/kvm/api.rst, KVM_CAP_X86_BUS_LOCK_EXIT).
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use payload_rt::lab::{self, Errno, Rule, kind, kvm};
use payload_rt::*;

/// Bytes of a cache line.
const LINE: u64 = 64;
/// Times that each CPU changes a word.
const TIMES: u64 = 8000;

// KVM_CAP_X86_BUS_LOCK_EXIT: bus locks do not leave the guest, or they do.
const OFF: u64 = 1;
const EXIT: u64 = 2;

/// An address three bytes before a boundary between two pages.
fn across_pages() -> u64 {
    let pages = frames::alloc_range(2, frames::PAGE);
    for page in 0..2 {
        check_ok!(mem::write_bytes(pages + page * frames::PAGE, &[0; 4096]));
    }
    pages + frames::PAGE - 3
}

/// An address three bytes before a boundary between two cache lines of one page.
fn across_lines() -> u64 {
    across_pages() - 4 * LINE
}

/// All CPUs do `work` at once, a number of times; `at` is what they change.
fn all(at: u64, work: fn(u64)) -> u64 {
    let cpus = smp::start() as u64;
    smp::on_all(|_| (0..TIMES).for_each(|_| work(at)));
    cpus * TIMES
}

fn add(at: u64) {
    insn_raw!("lock add qword ptr [{}], 1"; in(reg) at);
}

fn exchange_and_add(at: u64) {
    insn_raw!("lock xadd qword ptr [{}], {}"; in(reg) at, inout(reg) 1_u64 => _);
}

fn compare_and_exchange(at: u64) {
    insn_raw!(
        "mov rax, [{at}]", "2: lea {new}, [rax + 1]", "lock cmpxchg qword ptr [{at}], {new}", "jne 2b";
        at = in(reg) at, new = out(reg) _, out("rax") _
    );
}

/// Takes a lock by XCHG that lies across a boundary, changes the word behind it without one.
fn under_lock(at: u64) {
    insn_raw!(
        "2: mov eax, 1", "xchg dword ptr [{at}], eax", "test eax, eax", "jz 3f", "pause", "jmp 2b",
        "3: inc qword ptr [{at} + 64]", "mov dword ptr [{at}], 0";
        at = in(reg) at, out("rax") _
    );
}

test!(lines, "LOCK across two cache lines loses no update of any CPU.", || {
    for work in [add, exchange_and_add, compare_and_exchange] {
        let at = across_lines();
        let sum = all(at, work);
        check_eq!(mem::read(at), Ok(sum), "the word");
    }
});

test!(pages, "LOCK across two pages loses no update of any CPU.", || {
    for work in [add, exchange_and_add, compare_and_exchange] {
        let at = across_pages();
        let sum = all(at, work);
        check_eq!(mem::read(at), Ok(sum), "the word");
    }
});

test!(exchange_lines, "XCHG across two cache lines is a lock without a prefix.", || {
    let at = across_lines();
    let sum = all(at, under_lock);
    check_eq!(mem::read(at + 64), Ok(sum), "the word that the lock guards");
});

// SDM volume 3, "Page-Fault Exceptions": the access is a write, whatever comes of it.
test!(
    second_page,
    "LOCK across two pages of which the second is read-only faults and changes nothing.",
    || {
        const AT: u64 = 0x6000_0000;
        let at = across_pages();
        let first = at & !0xfff;
        paging::map(AT, first, paging::Size::K4, paging::Flags::RW);
        paging::map(AT + frames::PAGE, first + frames::PAGE, paging::Size::K4, paging::Flags::P);
        check_ok!(reg::set_cr0(reg::cr0() | reg::CR0_WP));
        let fault = insn!("lock add qword ptr [{}], 1"; in(reg) AT + frames::PAGE - 3);
        let trap = check_trap!(fault, trap::PF, 3, "LOCK ADD");
        check_eq!(trap.cr2, AT + frames::PAGE, "CR2");
        check_eq!(mem::read(at), Ok(0_u64), "the word");
    }
);

test!(device, "LOCK on a device's register reads it and writes it.", || {
    testdev::require();
    let at = testdev::MEMORY + 0x10;
    check_ok!(mem::write(at, 40_u32));
    check_ok!(insn!("lock add dword ptr [{}], 2"; in(reg) at));
    check_eq!(mem::read(at), Ok(42_u32), "the register");
    let old: u32;
    check_ok!(
        insn!("xchg dword ptr [{at}], {old:e}"; at = in(reg) at, old = inout(reg) 7_u32 => old)
    );
    check_eq!((old, mem::read(at)), (42, Ok(7_u32)), "what was there, and what is");
});

test!(modes, "KVM_CAP_X86_BUS_LOCK_EXIT takes one of its modes, and nothing else.", || {
    let offered = lab::check_extension(kvm::cap::X86_BUS_LOCK_EXIT);
    check!(offered == 0 || offered == OFF | EXIT, "what is offered: {offered:#x}");
    let set = |mode| lab::enable_cap(kvm::cap::X86_BUS_LOCK_EXIT, mode);
    for mode in [OFF | EXIT, 4, EXIT | 1 << 63] {
        check_eq!(set(mode), Err(Errno::EINVAL), "mode {mode:#x}");
    }
    check_ok!(set(OFF), "off");
});

test!(exit, "With its exit on, each bus lock leaves the guest, and the guest goes on.", || {
    check_ok!(lab::enable_cap(kvm::cap::X86_BUS_LOCK_EXIT, EXIT));
    let at = across_lines();
    let log = check_ok!(lab::record(&[Rule::on(kind::BUS_LOCK)]));
    add(at);
    compare_and_exchange(at);
    insn_raw!("lock add qword ptr [{}], 1"; in(reg) at & !(LINE - 1));
    check_ok!(log.stop());
    check_eq!(log.count(), 2, "bus locks");
    check_eq!(mem::read(at), Ok(2_u64), "the word");
});
