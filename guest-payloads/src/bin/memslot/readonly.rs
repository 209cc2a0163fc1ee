//! Slots that only read: RAM to a read, MMIO to a write.
//!
//! KVM API, KVM_SET_USER_MEMORY_REGION: "writes to it will be posted to userspace as KVM_EXIT_MMIO
//! exits".

use crate::tables::{TABLES, flush, lay};
use crate::{AREA, AT, MARK, PAGE, check_exits, check_pieces, ones, read, show, watch, write};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{Backing, Memory, kvm};
use payload_rt::paging::Flags;
use payload_rt::*;

const READONLY: u32 = kvm::slot::READONLY;

test!(
    ro_access,
    "Reads give RAM; writes leave the guest with their data, and store nothing.",
    || {
        let (memory, _) = show(2, READONLY);
        check_ok!(memory.fill(0, 2 * PAGE, MARK));
        let log = watch(AREA, AREA + 2 * PAGE);
        for (n, size) in [1, 2, 4, 8].into_iter().enumerate() {
            let at = AREA + 0xff0 + 0x20 * n as u64;
            check_eq!(read(at, size), MARK & ones(size), "before, {size} bytes at {at:#x}");
            write(at, size, !MARK);
            let exit = (at, size, 1, !MARK & ones(size));
            check_exits(&log, n as u64, "a write", &[exit]);
            check_eq!(read(at, size), MARK & ones(size), "after, {size} bytes at {at:#x}");
        }
        // The host still writes it.
        check_ok!(memory.write_u64(8, 5));
        check_eq!(mem::read::<u64>(AREA + 8), Ok(5));
    }
);

test!(ro_read_modify_write, "A read-modify-write reads RAM and writes an exit.", || {
    let (memory, _) = show(1, READONLY);
    check_ok!(memory.fill(0, PAGE, 100));
    let log = watch(AREA, AREA + PAGE);
    check_ok!(insn!("add qword ptr [{}], 11"; in(reg) AREA));
    check_ok!(insn!("lock inc dword ptr [{}]"; in(reg) AREA + 8));
    let old: u64;
    check_ok!(insn!("xchg [{}], {}"; in(reg) AREA + 16, inout(reg) MARK => old));
    check_eq!(old, 100, "what `xchg` read");
    check_ok!(
        insn!("lock cmpxchg [{}], {}"; in(reg) AREA + 24, in(reg) 7u64, inout("rax") 100u64 => _)
    );
    let wanted =
        [(AREA, 8, 1, 111), (AREA + 8, 4, 1, 101), (AREA + 16, 8, 1, MARK), (AREA + 24, 8, 1, 7)];
    check_exits(&log, 0, "read-modify-write", &wanted);
    for offset in [0, 8, 16, 24] {
        check_eq!(memory.read_u64(offset), Ok(100), "the word at {offset}");
    }
});

test!(ro_execute, "Code in a read-only slot runs.", || {
    let (memory, _) = show(1, READONLY);
    let log = watch(AREA, AREA + PAGE);
    for value in [5u8, 6] {
        // mov eax, value; ret
        check_ok!(memory.write(0x20, &[0xb8, value, 0, 0, 0, 0xc3]));
        check_eq!(mem::call(AREA + 0x20), Ok(value.into()));
    }
    check_eq!(log.count(), 0, "exits");
});

test!(ro_stack, "A push to a read-only stack is an exit; a pop reads RAM.", || {
    let (memory, _) = show(1, READONLY);
    check_ok!(memory.fill(0, PAGE, 33));
    let log = watch(AREA, AREA + PAGE);
    let popped: u64;
    check_ok!(insn!(
        "mov r8, rsp", "mov rsp, {top}", "push {value}", "pop {value}", "mov rsp, r8";
        top = in(reg) AREA + 0x800, value = inout(reg) MARK => popped, out("r8") _
    ));
    check_eq!(popped, 33, "what the pop read");
    check_exits(&log, 0, "the push", &[(AREA + 0x7f8, 8, 1, MARK)]);
    check_eq!(memory.read_u64(0x7f8), Ok(33));
});

test!(ro_strings, "String stores to a read-only slot are exits item by item.", || {
    let (memory, _) = show(1, READONLY);
    check_ok!(memory.fill(0, PAGE, MARK));
    let log = watch(AREA, AREA + PAGE);
    let (count, to): (u64, u64);
    check_ok!(insn!(
        "rep stosd";
        inout("rcx") 3u64 => count, inout("rdi") AREA + 0x100 => to, in("rax") 0x55aau64
    ));
    check_eq!((count, to), (0, AREA + 0x10c), "RCX and RDI");
    let item = |n: u64| (AREA + 0x100 + 4 * n, 4, 1, 0x55aa);
    check_exits(&log, 0, "`rep stosd`", &[item(0), item(1), item(2)]);
    let mut bytes = [0; 16];
    check_ok!(mem::read_bytes(AREA + 0x100, &mut bytes));
    check_eq!(bytes.as_chunks::<8>().0, [MARK.to_le_bytes(); 2], "`rep movsb` out of it");
    check_eq!(log.count(), 3, "exits of reads");
});

test!(ro_over_edge, "A write from RAM into a read-only slot stores one half.", || {
    let memory = check_ok!(Memory::new(2 * PAGE, Backing::Small));
    check_ok!(memory.slot(AREA, 0, PAGE, 0));
    check_ok!(memory.slot(AREA + PAGE, PAGE, PAGE, READONLY));
    let log = watch(AREA, AREA + 2 * PAGE);
    let mut next = 0;
    for below in 1..8usize {
        check_ok!(memory.fill(PAGE - 8, 16, 0));
        let at = AREA + PAGE - below as u64;
        check_ok!(mem::write(at, MARK));
        let value = MARK.to_le_bytes();
        let (stored, left) = value.split_at(below);
        next = check_pieces(&log, next, "the upper half", AREA + PAGE, true, left);
        check_eq!(log.count(), next, "exits");
        let mut bytes = [0; 16];
        check_ok!(memory.read(PAGE - 8, &mut bytes));
        check_eq!(&bytes[8 - below..8], stored, "the lower half, {below} bytes");
        check_eq!(bytes[8..], [0; 8], "the upper half in memory");
    }
});

test!(ro_logged, "The dirty log of a read-only slot stays empty.", || {
    let (_, slot) = show(4, READONLY | kvm::slot::LOG_DIRTY);
    watch(AREA, AREA + 4 * PAGE);
    for page in 0..4 {
        check_ok!(mem::write(AREA + page * PAGE, 1u8));
    }
    let mut bitmap = [u64::MAX];
    check_ok!(slot.dirty_log(&mut bitmap));
    check_eq!(bitmap, [0]);
});

/// The descriptor of a writable data segment that nobody has accessed, and its accessed bit.
const DATA: u64 = 0x00cf_9200_0000_ffff;
const ACCESSED: u64 = 1 << 40;

/// Has a GDT in a read-only slot, calls `f` with the selectors of a segment that was accessed and of one
/// that was not, and puts the old one back.
fn with_gdt(f: impl FnOnce(u16, u16)) -> Memory {
    let (memory, _) = show(1, READONLY);
    let gdt = check_ok!(reg::sgdt());
    let mut bytes = [0; 128];
    let len = (usize::from(gdt.limit) + 1).min(bytes.len());
    let quiet = cpu::set_descriptor(0, DATA | ACCESSED);
    let fresh = cpu::set_descriptor(1, DATA);
    check_ok!(mem::read_bytes(gdt.base, &mut bytes[..len]));
    check_ok!(memory.write(0, &bytes));
    let es = reg::es();
    check_ok!(reg::lgdt(reg::Table { base: AREA, ..gdt }));
    f(quiet, fresh);
    check_ok!(reg::lgdt(gdt));
    check_ok!(reg::set_es(es));
    memory
}

test!(ro_gdt, "A GDT in a read-only slot serves.", || {
    let log = watch(AREA, AREA + PAGE);
    let memory = with_gdt(|quiet, _| {
        check_ok!(reg::set_es(quiet));
        check_eq!(reg::es(), quiet);
        let fault = check_err!(insn!("ud2"));
        check_eq!(fault.vector, trap::UD, "a trap, whose CS comes from there");
        check_ok!(reg::set_es(0));
    });
    check_eq!(log.count(), 0, "exits");
    check_eq!(memory.read_u64(cpu::FREE_SELECTOR.into()), Ok(DATA | ACCESSED));
});

/// Where the instruction lies that must come to its end, and the one behind it.
static AT_LOAD: AtomicU64 = AtomicU64::new(0);
static BEHIND: AtomicU64 = AtomicU64::new(0);
/// How often the timer found the first.
static FOUND: AtomicU64 = AtomicU64::new(0);
const STUCK: u64 = 20;

// SDM volume 3, 3.4.5.1: the processor sets the accessed bit of a descriptor that it loads.
test!(
    ro_gdt_accessed,
    "Loading a segment whose accessed bit cannot be stored comes to an end.",
    || {
        const TIMER: u8 = 0x60;
        irq::handle(TIMER, |frame| {
            if frame.rip == AT_LOAD.load(SeqCst) && FOUND.fetch_add(1, SeqCst) + 1 >= STUCK {
                frame.rip = BEHIND.load(SeqCst);
            }
            apic::eoi();
        });
        watch(AREA, AREA + PAGE);
        let apic = apic::local();
        apic.enable();
        let memory = with_gdt(|_, fresh| {
            apic.set_timer(apic::Timer::Periodic, TIMER);
            apic.start_timer(1_000_000);
            check_ok!(insn!(
                "lea {r}, [rip + 5f]", "mov [{at}], {r}", "lea {r}, [rip + 6f]", "mov [{behind}], {r}",
                "sti", "5:", "mov es, {s:x}", "6:", "cli";
                r = out(reg) _, at = in(reg) AT_LOAD.as_ptr(), behind = in(reg) BEHIND.as_ptr(),
                s = in(reg) fresh
            ));
            apic.start_timer(0);
            let found = FOUND.load(SeqCst);
            check!(found < STUCK, "the guest was at that instruction at {found} ticks of a timer");
            check_eq!(reg::es(), fresh);
        });
        check_eq!(memory.read_u64(u64::from(cpu::FREE_SELECTOR) + 8), Ok(DATA), "the descriptor");
    }
);

test!(ro_idt, "An IDT in a read-only slot serves.", || {
    let (memory, _) = show(1, READONLY);
    let idt = check_ok!(reg::sidt());
    let mut bytes = [0; PAGE as usize];
    check_ok!(mem::read_bytes(idt.base, &mut bytes));
    check_ok!(memory.write(0, &bytes));
    let log = watch(AREA, AREA + PAGE);
    check_ok!(reg::lidt(reg::Table { base: AREA, ..idt }));
    let fault = check_err!(insn!("ud2"));
    check_eq!(fault.vector, trap::UD);
    check_ok!(reg::lidt(idt));
    check_eq!(log.count(), 0, "exits");
});

// KVM leaves A and D alone where tables cannot be written (update_accessed_dirty_bits in
// arch/x86/kvm/mmu/paging_tmpl.h); a processor cannot set them, and KVM executes such an access itself.
test!(ro_page_tables, "Page tables in a read-only slot translate; A and D stay clear.", || {
    let (memory, slot) = show(TABLES, READONLY);
    let frame = frames::alloc().address();
    let leaf = lay(memory, AREA, AT, frame | Flags::RW.0);
    let before = check_ok!(memory.hash(0, TABLES * PAGE));
    let log = watch(AREA, AREA + TABLES * PAGE);
    check_ok!(mem::write(frame + 8, MARK));
    check_eq!(mem::read::<u64>(AT + 8), Ok(MARK), "a read");
    check_ok!(mem::write(AT + 16, !MARK));
    check_eq!(mem::read::<u64>(frame + 16), Ok(!MARK), "a write");
    check_ok!(insn!("lock add qword ptr [{}], 1"; in(reg) AT + 24));
    check_eq!(mem::read::<u64>(frame + 24), Ok(1), "a locked addition");
    check_eq!(log.count(), 0, "exits");
    check_eq!(memory.hash(0, TABLES * PAGE), Ok(before), "the tables");
    check_eq!(memory.read_u64(leaf), Ok(frame | Flags::RW.0), "the leaf");
    // The host changes the leaf. Shadow paging sees no writes of the host's to tables, but a new slot.
    let other = frames::alloc().address();
    check_ok!(mem::write(other + 8, 77u64));
    check_ok!(slot.delete());
    check_ok!(memory.write_u64(leaf, other | Flags::RW.0));
    check_ok!(slot.set());
    flush();
    check_eq!(mem::read::<u64>(AT + 8), Ok(77), "after the leaf was changed");
});
