//! The shared page, filled as KVM would fill it, without KVM.

use super::*;

/// Room for the page and 4 KiB of string data behind it.
struct Fake {
    memory: Box<[u64; 1024]>,
}

impl Fake {
    fn new() -> Fake {
        Fake { memory: Box::new([0; 1024]) }
    }

    /// The page, and a way to fill it.
    fn page(&mut self, fill: impl FnOnce(&mut kvm_run)) -> RunPage {
        let run = self.memory.as_mut_ptr().cast::<kvm_run>();
        // SAFETY: the memory is zeroed, aligned, larger than the page and lives for the test.
        unsafe {
            fill(&mut *run);
            RunPage::new(run, 8192)
        }
    }

    fn byte(&self, at: usize) -> u8 {
        (self.memory[at / 8] >> (8 * (at % 8))) as u8
    }
}

fn port(run: &mut kvm_run, direction: u32, size: u8, port: u16, count: u32, data: &[u8]) {
    run.exit_reason = KVM_EXIT_IO;
    run.__bindgen_anon_1.io = kvm_run__bindgen_ty_1__bindgen_ty_4 {
        direction: direction as u8,
        size,
        port,
        count,
        data_offset: 4096,
    };
    // SAFETY: the fake has 8 KiB.
    unsafe {
        let at = (run as *mut kvm_run).cast::<u8>().add(4096);
        std::ptr::copy_nonoverlapping(data.as_ptr(), at, data.len());
    }
}

fn mmio(run: &mut kvm_run, addr: u64, len: u32, write: bool, data: [u8; 8]) {
    run.exit_reason = KVM_EXIT_MMIO;
    run.__bindgen_anon_1.mmio =
        kvm_run__bindgen_ty_1__bindgen_ty_6 { phys_addr: addr, data, len, is_write: write.into() };
}

fn io(space: Space, addr: u64, size: Size, dir: Dir) -> Exit {
    Exit::Io(Access { space, addr, size, dir })
}

#[test]
fn a_string_write_comes_item_by_item() {
    let mut fake = Fake::new();
    let data = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66];
    let mut page = fake.page(|run| port(run, KVM_EXIT_IO_OUT, 2, 0x80, 3, &data));
    let item = |v| io(Space::Port, 0x80, Size::B2, Dir::Write(v));
    assert_eq!(page.decode(3), item(0x2211));
    assert_eq!(page.complete(Some(0)), Some(item(0x4433)));
    assert_eq!(page.complete(Some(0)), Some(item(0x6655)));
    assert_eq!(page.complete(Some(0)), None);
    assert_eq!(page.complete(Some(0)), None);
}

#[test]
fn a_string_read_fills_every_item() {
    let mut fake = Fake::new();
    let mut page = fake.page(|run| port(run, KVM_EXIT_IO_IN, 1, 0x60, 3, &[]));
    let item = io(Space::Port, 0x60, Size::B1, Dir::Read);
    assert_eq!(page.decode(3), item);
    assert_eq!(page.complete(Some(0xa1)), Some(item));
    assert_eq!(page.complete(Some(0xa2)), Some(item));
    assert_eq!(page.complete(Some(0xa3)), None);
    let bytes: Vec<u8> = (4096..4100).map(|at| fake.byte(at)).collect();
    assert_eq!(bytes, [0xa1, 0xa2, 0xa3, 0]);
}

#[test]
fn an_mmio_access_of_natural_width_stays_whole() {
    for (addr, len) in [(0x1000, 1), (0x1003, 2), (0x1002, 4), (0x1001, 8)] {
        let mut fake = Fake::new();
        let mut page = fake.page(|run| mmio(run, addr, len, true, [1, 2, 3, 4, 5, 6, 7, 8]));
        let size = Size::from_bytes(len.into()).expect("a width");
        let value = 0x0807_0605_0403_0201 & size.mask();
        assert_eq!(page.decode(3), io(Space::Mmio, addr, size, Dir::Write(value)));
        assert_eq!(page.complete(Some(0)), None);
    }
}

#[test]
fn odd_lengths_are_split_and_put_together_again() {
    let mut fake = Fake::new();
    let mut page = fake.page(|run| mmio(run, 0xffd, 7, false, [0; 8]));
    let piece = |addr, size| io(Space::Mmio, addr, size, Dir::Read);
    assert_eq!(page.decode(3), piece(0xffd, Size::B1));
    assert_eq!(page.complete(Some(0x01)), Some(piece(0xffe, Size::B2)));
    assert_eq!(page.complete(Some(0x0302)), Some(piece(0x1000, Size::B4)));
    assert_eq!(page.complete(Some(0x0706_0504)), None);
    let bytes: Vec<u8> = (0..8).map(|i| fake.byte(mmio_data(i))).collect();
    assert_eq!(bytes, [1, 2, 3, 4, 5, 6, 7, 0]);
}

#[test]
fn what_kvm_never_sends_stops_the_vm_and_nothing_else() {
    let mut fake = Fake::new();
    let mut page = fake.page(|run| port(run, KVM_EXIT_IO_IN, 3, 0x60, 1, &[]));
    assert_eq!(page.decode(3), Exit::Unknown(KVM_EXIT_IO));
    let mut page = fake.page(|run| mmio(run, 0, 0, false, [0; 8]));
    assert_eq!(page.decode(3), Exit::Unknown(KVM_EXIT_MMIO));
    // A data offset outside the mapping: reads give all-ones, writes go nowhere.
    let mut page = fake.page(|run| {
        port(run, KVM_EXIT_IO_OUT, 4, 0x60, 1, &[]);
        run.__bindgen_anon_1.io.data_offset = u64::MAX - 1;
    });
    let all = Dir::Write(0xffff_ffff);
    assert_eq!(page.decode(3), io(Space::Port, 0x60, Size::B4, all));
    assert_eq!(page.complete(Some(0)), None);
}

#[test]
fn an_msr_gets_its_value_or_its_fault() {
    let mut fake = Fake::new();
    let mut page = fake.page(|run| {
        run.exit_reason = KVM_EXIT_X86_RDMSR;
        run.__bindgen_anon_1.msr.index = 0x1234;
    });
    assert_eq!(page.decode(3), Exit::Rdmsr { index: 0x1234 });
    assert_eq!(page.complete(Some(77)), None);
    // SAFETY: the member was filled above.
    let msr = unsafe { (*page.data_of_exit()).msr };
    assert_eq!((msr.data, msr.error), (77, 0));
    assert_eq!(page.decode(3), Exit::Rdmsr { index: 0x1234 });
    assert_eq!(page.complete(None), None);
    // SAFETY: as above.
    assert_eq!(unsafe { (*page.data_of_exit()).msr.error }, 1);
}

#[test]
fn hyperv_exits_are_told_by_their_type_and_get_their_results() {
    let fill = |kind: u32, words: [u64; 4]| {
        move |run: &mut kvm_run| {
            run.exit_reason = KVM_EXIT_HYPERV;
            // SAFETY: plain numbers in zeroed memory; every member begins with these words.
            unsafe {
                let exit = &mut run.__bindgen_anon_1.hyperv;
                exit.type_ = kind;
                let at = (&raw mut exit.u).cast::<[u64; 4]>();
                at.write(words);
            }
        }
    };
    let mut fake = Fake::new();
    let mut page = fake.page(fill(KVM_EXIT_HYPERV_SYNIC, [0x4000_0083, 1, 0x5001, 0x6001]));
    let (msr, control) = (0x4000_0083, 1);
    let synic = Exit::HypervSynic { vp: 3, msr, control, events: 0x5001, messages: 0x6001 };
    assert_eq!((page.decode(3), page.complete(Some(9))), (synic, None));

    // The result lies between the input and the parameters.
    let mut page = fake.page(fill(KVM_EXIT_HYPERV_HCALL, [0x1_005c, 0, 7, 8]));
    let call = Exit::HypervCall { input: 0x1_005c, params: [7, 8] };
    assert_eq!((page.decode(3), page.complete(Some(0x12))), (call, None));
    // SAFETY: the fake's page, filled as a hypercall's.
    assert_eq!(unsafe { (*page.data_of_exit()).hyperv.u.hcall.result }, 0x12);

    let mut page = fake.page(fill(KVM_EXIT_HYPERV_SYNDBG, [0x4000_00f1, 1, 0, 0]));
    let debug = Exit::HypervDebug { msr: 0x4000_00f1 };
    assert_eq!((page.decode(3), page.complete(Some(5))), (debug, None));
    // SAFETY: the fake's page, filled as a debugger's.
    assert_eq!(unsafe { (*page.data_of_exit()).hyperv.u.syndbg.status }, 5);

    let mut page = fake.page(fill(99, [0; 4]));
    assert_eq!(page.decode(3), Exit::Unknown(KVM_EXIT_HYPERV));
}

#[test]
fn every_rare_reason_has_its_exit() {
    let cases = [
        (KVM_EXIT_HLT, Exit::Hlt),
        (KVM_EXIT_SHUTDOWN, Exit::Shutdown),
        (KVM_EXIT_INTERNAL_ERROR, Exit::InternalError { suberror: 0 }),
        (KVM_EXIT_FAIL_ENTRY, Exit::FailEntry { reason: 0, cpu: 0 }),
        (KVM_EXIT_UNKNOWN, Exit::FailEntry { reason: 0, cpu: Exit::NO_CPU }),
        (KVM_EXIT_DEBUG, Exit::Debug { vector: 0, pc: 0, dr6: 0 }),
        (KVM_EXIT_HYPERCALL, Exit::Hypercall { nr: 0, args: [0; 3] }),
        (KVM_EXIT_X86_WRMSR, Exit::Wrmsr { index: 0, value: 0 }),
        (KVM_EXIT_IOAPIC_EOI, Exit::IoapicEoi(0)),
        (KVM_EXIT_SET_TPR, Exit::SetTpr),
        (KVM_EXIT_IRQ_WINDOW_OPEN, Exit::IrqWindow),
        (KVM_EXIT_MEMORY_FAULT, Exit::MemoryFault { flags: 0, gpa: 0, size: 0 }),
        (KVM_EXIT_DIRTY_RING_FULL, Exit::DirtyRingFull),
        (KVM_EXIT_X86_BUS_LOCK, Exit::BusLock),
        (KVM_EXIT_NOTIFY, Exit::Notify),
        (KVM_EXIT_INTR, Exit::Interrupted),
        (4711, Exit::Unknown(4711)),
    ];
    for (reason, exit) in cases {
        let mut fake = Fake::new();
        let mut page = fake.page(|run| run.exit_reason = reason);
        assert_eq!(page.decode(3), exit);
    }
}

#[test]
fn an_emulation_failure_tells_its_instruction() {
    let mut fake = Fake::new();
    let page = fake.page(|run| {
        run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
        // SAFETY: plain numbers in zeroed memory.
        unsafe {
            let failure = &mut run.__bindgen_anon_1.emulation_failure;
            failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
            failure.ndata = 3;
            failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES.into();
            let insn = &mut failure.__bindgen_anon_1.__bindgen_anon_1;
            insn.insn_size = 200;
            insn.insn_bytes[..2].copy_from_slice(&[0x0f, 0x57]);
        }
    });
    let detail = page.detail();
    assert_eq!(detail.data.len(), 3);
    let bytes = detail.instruction.expect("the flag is set");
    assert_eq!((bytes.len(), &bytes[..2]), (15, &[0x0f, 0x57][..]));
}
