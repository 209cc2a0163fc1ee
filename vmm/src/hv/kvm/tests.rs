//! KVM itself. Where there is none, a test says so and fails if EXITLAB_REQUIRE names kvm.

use std::path::Path;

use super::*;
use crate::access::{Access, Size, Space};
use crate::cpu::{CS, Segment};
use crate::exit::{Entry, Exit};
use crate::hv::{Activity, Kick, Vcpu, Vm};
use crate::ram::{Backing, GuestRam};

pub(super) fn host() -> Option<Host> {
    match Host::open(Path::new(DEV_KVM)) {
        Ok(host) => Some(host),
        Err(e) => {
            let required = std::env::var("EXITLAB_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r == "kvm"), "required, and not there: {e}");
            eprintln!("not tested: {e}");
            None
        }
    }
}

/// A VM whose first vCPU is about to run `code` at 0x1000 in real mode.
fn guest(host: &Host, code: &[u8], irqchip: Irqchip) -> (KvmVm, KvmVcpu) {
    let config = KvmConfig { irqchip, cpus: 1, ..KvmConfig::default() };
    let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
    ram.write(0x1000, code).expect("RAM");
    let vm = host.create_vm(&config, Some(ram)).expect("a VM");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let mut state = vcpu.state().expect("registers");
    let flat = |s: &Segment| Segment { selector: 0, base: 0, ..*s };
    state.segments = state.segments.map(|s| flat(&s));
    assert_eq!(state.segments[CS].base, 0);
    (state.rip, state.rflags) = (0x1000, 2);
    vcpu.start(&state).expect("registers");
    (vm, vcpu)
}

#[test]
fn what_is_not_kvm_is_refused_with_a_way_out() {
    let none = Host::open(Path::new("/nonexistent/kvm")).expect_err("no such file").to_string();
    assert!(none.contains("/nonexistent/kvm") && none.contains("modprobe"), "{none}");
    let null = Host::open(Path::new("/dev/null")).expect_err("not KVM").to_string();
    assert!(null.contains("KVM_GET_API_VERSION"), "{null}");
}

#[test]
fn a_guest_reads_and_writes_ports_through_exits() {
    let Some(host) = host() else { return };
    // in al, 0x71; out 0x80, al; hlt
    let (_vm, mut vcpu) = guest(&host, &[0xe4, 0x71, 0xe6, 0x80, 0xf4], Irqchip::None);
    vcpu.bind();
    let read = Exit::Io(Access::read(Space::Port, 0x71, Size::B1));
    assert_eq!(vcpu.run(Entry::Resume), read);
    let write = Exit::Io(Access::write(Space::Port, 0x80, Size::B1, 0x5a));
    assert_eq!(vcpu.run(Entry::Read(0x5a)), write);
    assert_eq!(vcpu.run(Entry::Resume), Exit::Hlt);
}

#[test]
fn a_string_instruction_comes_in_items() {
    let Some(host) = host() else { return };
    // mov cx, 3; mov si, 0x1000; mov dx, 0x3f8; rep outsb; hlt
    let code = [0xb9, 3, 0, 0xbe, 0, 0x10, 0xba, 0xf8, 3, 0xf3, 0x6e, 0xf4];
    let (_vm, mut vcpu) = guest(&host, &code, Irqchip::None);
    vcpu.bind();
    for byte in [0xb9, 3, 0] {
        let item = Exit::Io(Access::write(Space::Port, 0x3f8, Size::B1, byte));
        assert_eq!(vcpu.run(Entry::Resume), item);
    }
    assert_eq!(vcpu.run(Entry::Resume), Exit::Hlt);
}

#[test]
fn the_vga_window_leaves_the_guest() {
    let Some(host) = host() else { return };
    // mov ax, 0xa000; mov ds, ax; mov ax, [4]; mov [4], ax; hlt
    let code = [0xb8, 0, 0xa0, 0x8e, 0xd8, 0xa1, 4, 0, 0xa3, 4, 0, 0xf4];
    let (_vm, mut vcpu) = guest(&host, &code, Irqchip::None);
    vcpu.bind();
    let read = Exit::Io(Access::read(Space::Mmio, 0xa0004, Size::B2));
    assert_eq!(vcpu.run(Entry::Resume), read);
    let write = Exit::Io(Access::write(Space::Mmio, 0xa0004, Size::B2, 0x1234));
    assert_eq!(vcpu.run(Entry::Read(0x1234)), write);
    assert_eq!(vcpu.run(Entry::Resume), Exit::Hlt);
}

#[test]
fn a_kick_before_or_during_a_run_ends_it() {
    let Some(host) = host() else { return };
    // jmp $
    let (_vm, mut vcpu) = guest(&host, &[0xeb, 0xfe], Irqchip::None);
    let kicker = vcpu.bind();
    kicker.kick();
    assert_eq!(vcpu.run(Entry::Resume), Exit::Interrupted);
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(vcpu.run(Entry::Resume), Exit::Interrupted);
    late.join().expect("no panic");
}

#[test]
fn a_kick_needs_no_room_in_the_queue_of_signals() {
    let Some(host) = host() else { return };
    // jmp $
    let (_vm, mut vcpu) = guest(&host, &[0xeb, 0xfe], Irqchip::None);
    let kicker = vcpu.bind();
    // SAFETY: both structures are plain numbers that live through the calls.
    unsafe {
        let mut before: libc::rlimit = std::mem::zeroed();
        assert_eq!(libc::getrlimit(libc::RLIMIT_SIGPENDING, &mut before), 0);
        let none = libc::rlimit { rlim_cur: 0, ..before };
        assert_eq!(libc::setrlimit(libc::RLIMIT_SIGPENDING, &none), 0);
        kicker.kick();
        assert_eq!(libc::setrlimit(libc::RLIMIT_SIGPENDING, &before), 0);
    }
    // A lost kick fails the test, and does not hang it.
    let (done, wait) = std::sync::mpsc::channel();
    let lost = std::thread::spawn(move || {
        let lost = wait.recv_timeout(std::time::Duration::from_secs(20)).is_err();
        if lost {
            kicker.kick();
        }
        lost
    });
    assert_eq!(vcpu.run(Entry::Resume), Exit::Interrupted);
    // It has ended if it gave up.
    let _ = done.send(());
    assert!(!lost.join().expect("no panic"), "the kick was lost");
}

#[test]
fn a_halted_vcpu_is_seen_to_be() {
    let Some(host) = host() else { return };
    // cli; hlt
    let (_vm, mut vcpu) = guest(&host, &[0xfa, 0xf4], Irqchip::Kernel);
    let kicker = vcpu.bind();
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        kicker.kick();
    });
    assert_eq!(vcpu.run(Entry::Resume), Exit::Interrupted);
    late.join().expect("no panic");
    assert_eq!(vcpu.activity().expect("its state"), Activity::Halted);
}

#[test]
fn a_remapped_page_keeps_its_contents() {
    let Some(host) = host() else { return };
    let (vm, mut vcpu) = guest(&host, &[0xe6, 0x80, 0xe6, 0x80, 0xf4], Irqchip::None);
    vcpu.bind();
    assert!(matches!(vcpu.run(Entry::Resume), Exit::Io(_)));
    vm.remap_page(0x1000).expect("RAM");
    vm.remap_page(0xa0000).expect("nothing to do");
    assert!(matches!(vcpu.run(Entry::Resume), Exit::Io(_)));
    assert_eq!(vcpu.run(Entry::Resume), Exit::Hlt);
}

#[test]
fn exits_bring_rip_along_if_asked_to() {
    let Some(host) = host() else { return };
    let config =
        KvmConfig { irqchip: Irqchip::None, cpus: 1, sync_regs: true, ..Default::default() };
    let vm = host.create_vm(&config, None).expect("a VM");
    assert!(vm.create_vcpu(0).expect("a vCPU").synced_rip().is_some());
    let (_vm, vcpu) = guest(&host, &[0xf4], Irqchip::None);
    assert_eq!(vcpu.synced_rip(), None);
}

#[test]
fn memory_of_smm_is_there_or_is_refused() {
    let Some(host) = host() else { return };
    let of = |smm| {
        let config = KvmConfig { cpus: 1, smm, ..KvmConfig::default() };
        let ram = GuestRam::new(2 << 20, Backing::Auto).expect("2 MiB");
        host.create_vm(&config, Some(ram)).map(|_| ())
    };
    of(Smm::Auto).expect("whatever the host has");
    of(Smm::Off).expect("nothing to ask for");
    assert_eq!(host.address_spaces(Smm::Off), 1);
    match (host.address_spaces(Smm::Auto), of(Smm::On)) {
        (2, on) => on.expect("the host has it"),
        (_, on) => {
            let error = on.expect_err("the host has it not").to_string();
            assert!(error.contains("KVM_CAP_X86_SMM") && error.contains("--smm on"), "{error}");
        }
    }
}

#[test]
fn too_many_vcpus_are_refused() {
    let Some(host) = host() else { return };
    let config = KvmConfig { cpus: 1_000_000, ..KvmConfig::default() };
    let error = host.create_vm(&config, None).expect_err("nobody has as many").to_string();
    assert!(error.contains("1000000 vCPUs") && error.contains("--cpus"), "{error}");
}

#[test]
fn cpuid_that_was_asked_for_ahead_is_the_same() {
    let Some(host) = host() else { return };
    let leaves = |supported: Supported| {
        let cpuid = supported.of(&host).expect("KVM tells");
        cpuid.0.iter().map(|leaf| (leaf.leaf, leaf.subleaf)).collect::<Vec<_>>()
    };
    let ahead = Supported::ahead(host.path());
    // Long enough for its thread to be first, now and then.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let later = leaves(Supported::later());
    assert_eq!(leaves(ahead), later);
    assert_eq!(leaves(Supported::ahead(host.path())), later);
    // It could not ask; then the one who wants to know does.
    assert_eq!(leaves(Supported::ahead(Path::new("/no/such/kvm"))), later);
}
