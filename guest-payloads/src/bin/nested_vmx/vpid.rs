//! VPIDs (SDM volume 3, "Virtual Processor Identifiers (VPIDs)", "INVVPID"), and L2's page tables without
//! EPT.

use super::vm;
use payload_rt::paging::{self, Flags, Size};
use payload_rt::vmx::caps::{self, *};
use payload_rt::vmx::{Field, Reason, Refusal, Vm, get, invvpid, set};
use payload_rt::{asm_code, check, check_eq, check_ok, frames, mem, reg, test};

const LINEAR: u64 = 0x60_0000_0000;

/// Reads at [`LINEAR`] in L2.
fn read(vm: &mut Vm) -> u64 {
    vm.start(asm_code!("mov rax, [rbx]"));
    vm.regs.rbx = LINEAR;
    vm.run_until(Reason::VMCALL, "a read");
    vm.regs.rax
}

/// Two pages with different words, and the entry that maps the first at [`LINEAR`].
fn two_pages() -> (u64, u64, paging::Entry) {
    let (a, b) = (frames::alloc().address(), frames::alloc().address());
    check_ok!(mem::write(a, 0xaau64));
    check_ok!(mem::write(b, 0xbbu64));
    let entry = paging::map(LINEAR, a, Size::K4, Flags::RW | Flags::A | Flags::D);
    (a, b, entry)
}

test!(
    entry_flushes_without_vpid,
    "Without a VPID each entry and exit flushes: what L1 changed in L2's page tables L2 sees at once.",
    || {
        let mut vm = vm();
        let (a, b, entry) = two_pages();
        for _ in 0..4 {
            for (page, word) in [(a, 0xaa), (b, 0xbb)] {
                entry.set(page | 0x63);
                check_eq!(read(&mut vm), word, "what L2 read");
                // L1's own translation is not left behind, either.
                check_eq!(mem::read(LINEAR), Ok(word), "what L1 read behind the exit");
            }
        }
    }
);

test!(
    invvpid_is_seen,
    "With a VPID what L1 changed in L2's page tables L2 sees behind INVVPID of each type.",
    || {
        caps::require_ept_vpid(VPID_INVVPID, "INVVPID");
        let mut vm = vm();
        vm.add(Field::CPU_CONTROLS2, CPU2_VPID);
        set(Field::VPID, 7);
        let (a, b, entry) = two_pages();
        for (kind, cap) in
            [(0, VPID_ADDRESS), (1, VPID_SINGLE), (2, VPID_ALL), (3, VPID_SINGLE_NON_GLOBAL)]
        {
            if caps::ept_vpid() & cap == 0 {
                continue;
            }
            for (page, word) in [(a, 0xaa), (b, 0xbb)] {
                entry.set(page | 0x63);
                check_eq!(invvpid(kind, [7, LINEAR]), Ok(()), "INVVPID type {kind}");
                check_eq!(read(&mut vm), word, "what L2 read behind INVVPID type {kind}");
            }
        }
    }
);

test!(
    vpids_are_apart,
    "Two guests with VPIDs of their own and different page tables each see their own memory, in turns.",
    || {
        let mut first = vm();
        let mut second = Vm::new();
        let (_, b, _) = two_pages();
        // The second's page tables: the first's, but for the table of level 4.
        let top = frames::alloc().address();
        let mut words = [0u8; 4096];
        check_ok!(mem::read_bytes(reg::cr3() & paging::ADDRESS, &mut words));
        check_ok!(mem::write_bytes(top, &words));
        let (l3, l2, l1) =
            (frames::alloc().address(), frames::alloc().address(), frames::alloc().address());
        let at = |table: u64, shift: u32| table + 8 * (LINEAR >> shift & 0x1ff);
        check_ok!(mem::write(at(l3, 30), l2 | 3));
        check_ok!(mem::write(at(l2, 21), l1 | 3));
        check_ok!(mem::write(at(l1, 12), b | 3));
        // LINEAR is below entry 0 of level 4, with all else: so level 3 is a copy, too.
        let old = check_ok!(mem::read::<u64>(top)) & paging::ADDRESS;
        check_ok!(mem::read_bytes(old, &mut words));
        check_ok!(mem::write_bytes(l3, &words));
        check_ok!(mem::write(at(l3, 30), l2 | 3));
        check_ok!(mem::write(top, l3 | 7));
        for (vm, vpid) in [(&mut first, 1), (&mut second, 2)] {
            vm.load();
            vm.add(Field::CPU_CONTROLS2, CPU2_VPID);
            set(Field::VPID, vpid);
        }
        set(Field::GUEST_CR3, top);
        for _ in 0..4 {
            for (vm, word) in [(&mut first, 0xaa), (&mut second, 0xbb)] {
                vm.load();
                check_eq!(read(vm), word, "what a guest read");
            }
        }
    }
);

test!(
    invvpid_errors,
    "INVVPID of a type that there is not, of VPID 0, of a wide VPID or of a bad address is error 28.",
    || {
        caps::require_ept_vpid(VPID_INVVPID, "INVVPID");
        let _vm = vm();
        let refused = Err(Refusal::Valid(28));
        for kind in [4, 5, 1 << 32, u64::MAX] {
            check_eq!(invvpid(kind, [1, 0]), refused, "INVVPID type {kind:#x}");
        }
        for kind in [0, 1, 3] {
            check_eq!(invvpid(kind, [0, 0]), refused, "INVVPID type {kind} of VPID 0");
        }
        for kind in 0..4 {
            for vpid in [1 << 16 | 1, 1 << 63 | 1] {
                check_eq!(invvpid(kind, [vpid, 0]), refused, "INVVPID type {kind} of {vpid:#x}");
            }
        }
        check_eq!(invvpid(0, [1, 1 << 62]), refused, "INVVPID of an address that is not canonical");
        check_eq!(invvpid(2, [0, 0]), Ok(()), "INVVPID of all contexts");
    }
);

test!(
    cr3_of_l2,
    "Without EPT L2 loads CR3 and changes its page tables by itself, and L1's CR3 stays.",
    || {
        let mut vm = vm();
        let (_, b, entry) = two_pages();
        let cr3 = reg::cr3();
        // L2 maps the other page, invalidates, reads; then reloads CR3 and reads again.
        let code = asm_code!(
            "mov rcx, [rbx]",
            "mov [r8], r9",
            "invlpg [rbx]",
            "mov rdx, [rbx]",
            "mov [r8], r10",
            "mov rax, cr3",
            "mov cr3, rax",
            "mov rsi, [rbx]"
        );
        vm.start(code);
        vm.regs.rbx = LINEAR;
        vm.regs.r8 = entry.at;
        vm.regs.r9 = b | 0x63;
        vm.regs.r10 = entry.value | 0x60;
        vm.run_until(Reason::VMCALL, "page tables of L2's own");
        let seen = (vm.regs.rcx, vm.regs.rdx, vm.regs.rsi);
        check_eq!(seen, (0xaa, 0xbb, 0xaa), "words that L2 read");
        check_eq!((vm.regs.rax, reg::cr3()), (cr3, cr3), "CR3 of L2 and L1");
        check!(get(Field::GUEST_CR3) == cr3, "CR3 in the VMCS is {:#x}", get(Field::GUEST_CR3));
    }
);
