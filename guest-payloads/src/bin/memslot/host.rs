//! What the host does with memory while the guest has it.
//!
//! KVM API, KVM_SET_USER_MEMORY_REGION: "changes in the backing of the memory region are automatically
//! reflected into the guest" (KVM_CAP_SYNC_MMU).

use crate::{AREA, LARGE, MARK, PAGE, backing, show, start_all};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use payload_rt::lab::{self, Advice, Backing, Errno, Memory, Protection, Rule, kind, kvm, op};
use payload_rt::*;

test!(dropped, "A page that the host drops reads as zero, whoever had a translation.", || {
    let (memory, _) = show(4, 0);
    check_ok!(memory.slot(AREA + LARGE, 0, 4 * PAGE, 0));
    for round in 1..12u64 {
        for page in 0..4 {
            check_ok!(mem::write(AREA + page * PAGE, round));
            check_eq!(mem::read::<u64>(AREA + LARGE + page * PAGE), Ok(round));
        }
        let gone = round % 4;
        check_ok!(memory.advise(gone * PAGE, PAGE, Advice::Drop));
        for page in 0..4 {
            let wanted = if page == gone { 0 } else { round };
            let both = [AREA, AREA + LARGE].map(|at| mem::read::<u64>(at + page * PAGE));
            check_eq!(both, [Ok(wanted); 2], "round {round}: page {page}");
        }
        check_ok!(mem::write(AREA + gone * PAGE + 8, MARK));
        check_eq!(memory.read_u64(gone * PAGE + 8), Ok(MARK), "round {round}: written again");
    }
});

test!(dropped_in_large, "A small page dropped out of a large one leaves the others.", || {
    let memory = check_ok!(Memory::new(LARGE, Backing::Transparent));
    check_ok!(memory.slot(AREA, 0, LARGE, 0));
    for page in 0..512 {
        check_ok!(mem::write(AREA + page * PAGE + 8, page + 1));
    }
    let gone = [0, 77, 511];
    for page in gone {
        check_ok!(memory.advise(page * PAGE, PAGE, Advice::Drop));
    }
    for page in 0..512 {
        let wanted = if gone.contains(&page) { 0 } else { page + 1 };
        check_eq!(mem::read::<u64>(AREA + page * PAGE + 8), Ok(wanted), "page {page}");
    }
    check_ok!(memory.advise(0, LARGE, Advice::Drop));
    for page in 0..512 {
        check_eq!(mem::read::<u64>(AREA + page * PAGE + 8), Ok(0), "page {page}, all dropped");
    }
});

test!(dropped_code, "Code that the host drops and writes anew is what runs.", || {
    let (memory, _) = show(1, 0);
    for value in 1..8u8 {
        // mov eax, value; ret
        check_ok!(memory.write(0x10, &[0xb8, value, 0, 0, 0, 0xc3]));
        check_eq!(mem::call(AREA + 0x10), Ok(value.into()));
        check_ok!(memory.advise(0, PAGE, Advice::Drop));
    }
});

test!(collapsed, "Small pages that become a large one, and back, keep their bytes.", || {
    let memory = check_ok!(Memory::new(LARGE, Backing::Transparent));
    // Touched one by one while large pages are not wanted, so small at first.
    check_ok!(memory.advise(0, LARGE, Advice::Small));
    check_ok!(memory.slot(AREA, 0, LARGE, 0));
    for page in 0..512 {
        check_ok!(mem::write(AREA + page * PAGE + 16, MARK ^ page));
    }
    check_ok!(memory.advise(0, LARGE, Advice::Huge));
    for round in 0..3u64 {
        match memory.advise(0, LARGE, Advice::Collapse) {
            Err(Errno::EINVAL) => skip!("this kernel has no MADV_COLLAPSE or no large pages"),
            done => check_ok!(done, "collapse"),
        }
        for page in 0..512 {
            check_eq!(mem::read::<u64>(AREA + page * PAGE + 16), Ok(MARK ^ page), "page {page}");
        }
        check_ok!(mem::write(AREA + 100 * PAGE, round));
        check_eq!(memory.read_u64(100 * PAGE), Ok(round));
        // Dropping one splits it.
        check_ok!(memory.advise(200 * PAGE, PAGE, Advice::Drop));
        check_eq!(mem::read::<u64>(AREA + 200 * PAGE + 16), Ok(0));
        check_ok!(mem::write(AREA + 200 * PAGE + 16, MARK ^ 200));
    }
});

/// Touches a page that the host may not use so: an exit with EFAULT, at which the host gives the rights
/// back. The guest goes on as if nothing had been.
fn check_protected(protection: Protection, touch: impl FnOnce()) {
    let (memory, _) = show(2, 0);
    check_ok!(memory.fill(0, 2 * PAGE, MARK));
    check_eq!(mem::read::<u64>(AREA + PAGE), Ok(MARK));
    check_ok!(mem::write(AREA + PAGE + 32, 1u64));
    let mut chain = lab::Chain::new();
    chain.ask(op::PROTECT, &[memory.number(), PAGE, PAGE, Protection::Write as u64]);
    let kinds = kind::RUN_ERROR | kind::MEMORY_FAULT;
    let log = check_ok!(lab::record(&[Rule::on(kinds).then(&chain).limit(3)]));
    check_ok!(memory.protect(PAGE, PAGE, protection));
    check_ok!(mem::write(AREA, 5u64), "the page beside it");
    check_eq!(log.count(), 0, "exits of the page beside it");
    if protection == Protection::Read {
        check_eq!(mem::read::<u64>(AREA + PAGE), Ok(MARK), "a read of what may be read");
        check_eq!(log.count(), 0, "exits of a read");
    }
    touch();
    check_eq!(log.count(), 1, "exits");
    check_ok!(chain.all_ok());
    if let Some(exit) = log.get(0) {
        match exit.kind {
            kind::RUN_ERROR => check_eq!(exit.words[0], Errno::EFAULT.0.into()),
            _ => check_eq!(exit.words[1] & !(PAGE - 1), AREA + PAGE, "where"),
        }
    }
    check_eq!(memory.read_u64(PAGE), mem::read::<u64>(AREA + PAGE).map_err(|_| Errno(0)));
}

test!(protected_none, "A page without rights is an error of KVM_RUN, not of the guest.", || {
    check_protected(Protection::None, || {
        check_eq!(mem::read::<u64>(AREA + PAGE + 8), Ok(MARK));
    });
});

test!(protected_read, "A page that may be read gives an error for a write alone.", || {
    check_protected(Protection::Read, || {
        check_ok!(mem::write(AREA + PAGE + 8, 77u64));
        check_eq!(mem::read::<u64>(AREA + PAGE + 8), Ok(77));
    });
});

static SEEN: AtomicU64 = AtomicU64::new(0);

fn looker(last: u64) -> u64 {
    loop {
        let word = check_ok!(mem::read::<u64>(AREA + 0x100));
        let before = SEEN.swap(word, SeqCst);
        check!(word >= before, "{word} after {before}");
        if word == last {
            return word;
        }
        reg::pause();
    }
}

test!(written_by_host, "What the host writes is seen by a CPU that looks, in its order.", || {
    start_all();
    const LAST: u64 = 20;
    let (memory, _) = show(1, 0);
    let job = smp::spawn(1, looker, LAST);
    for round in 1..=LAST {
        check_ok!(memory.write_u64(0x100, round));
        let seen = time::wait_until(8_000_000, || SEEN.load(SeqCst) == round);
        check!(seen, "round {round}: the other CPU reads {}", SEEN.load(SeqCst));
    }
    check_eq!(job.wait(), LAST);
});

// KVM API, KVM_PRE_FAULT_MEMORY.
test!(
    pre_fault,
    "Memory mapped before it is touched has its bytes, and its writes are logged.",
    || {
        let (backing, size) = backing();
        let memory = check_ok!(Memory::new(size, backing));
        let slot = check_ok!(memory.slot(AREA, 0, size, kvm::slot::LOG_DIRTY));
        check_ok!(memory.fill(3 * PAGE, 8, MARK));
        let range = kvm::PreFault { gpa: AREA, size: 16 * PAGE, ..Default::default() };
        match lab::swap(kvm::PRE_FAULT_MEMORY, range) {
            Err(Errno::EOPNOTSUPP) => skip!("KVM maps nothing in advance with shadow paging"),
            Err(e) => fail!("{e}"),
            Ok(left) => check_eq!((left.gpa, left.size), (AREA + 16 * PAGE, 0), "what is left"),
        }
        check_eq!(mem::read::<u64>(AREA + 3 * PAGE), Ok(MARK));
        let mut bitmap = [0; 16];
        check_ok!(slot.dirty_log(&mut bitmap));
        check_ok!(mem::write(AREA + 4 * PAGE, 1u8));
        check_ok!(slot.dirty_log(&mut bitmap));
        check_eq!(bitmap[0], 1 << 4);
        let nowhere = kvm::PreFault { gpa: AREA + size, size: PAGE, ..Default::default() };
        check_eq!(lab::swap(kvm::PRE_FAULT_MEMORY, nowhere).err(), Some(Errno::ENOENT), "no slot");
        let odd = kvm::PreFault { gpa: AREA + 8, size: PAGE, ..Default::default() };
        check_eq!(lab::swap(kvm::PRE_FAULT_MEMORY, odd).err(), Some(Errno::EINVAL), "no page");
    }
);
