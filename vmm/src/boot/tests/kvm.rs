//! KVM takes each start state, and code runs in it. Where there is no KVM, the test says so and
//! fails if EXITLAB_REQUIRE names kvm.

use std::path::Path;

use super::image::{link, multiboot, pvh_note, seg};
use super::*;
use crate::access::{Access, Dir, Space};
use crate::boot::{FLAT, Mode, Protocol};
use crate::exit::{Entry, Exit};
use crate::hv::kvm::{DEV_KVM, Host, Irqchip, KvmConfig};
use crate::hv::{Vcpu, Vm};

/// mov eax, 0x10; mov ds, ax; ljmp 0x08:0x10000e: both selectors come from the table in memory.
const RELOAD_32: [u8; 14] = [0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8, 0xea, 0x0e, 0, 0x10, 0, 8, 0];

/// Runs what was loaded until it halts, and returns what it wrote to port 0x80.
fn run(host: &Host, ram: GuestRam, loaded: &Loaded) -> Vec<u64> {
    let config = KvmConfig { irqchip: Irqchip::None, cpus: 1, ..KvmConfig::default() };
    let vm = host.create_vm(&config, Some(ram)).expect("a VM");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let cpuid = host.supported_cpuid().expect("a table");
    vcpu.set_cpuid(&cpuid).expect("KVM's own table");
    vcpu.start(&loaded.start).expect("a state that KVM takes");
    vcpu.bind();
    let mut written = Vec::new();
    loop {
        match vcpu.run(Entry::Resume) {
            Exit::Io(Access { space: Space::Port, addr: 0x80, dir: Dir::Write(value), .. })
                if written.len() < 8 =>
            {
                written.push(value);
            }
            Exit::Hlt => return written,
            other => panic!("{other:?} after {written:x?}, {:x?}", vcpu.state()),
        }
    }
}

#[test]
fn code_runs_in_every_start_state() {
    let host = match Host::open(Path::new(DEV_KVM)) {
        Ok(host) => host,
        Err(e) => {
            let required = std::env::var("EXITLAB_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|r| r == "kvm"), "required, and not there: {e}");
            eprintln!("not tested: {e}");
            return;
        }
    };
    const ADDR: u64 = 0x10_0000;
    // mov eax, [ebx]; out 0x80, eax; hlt
    let tell = [&RELOAD_32[..], &[0x8b, 0x03, 0xe7, 0x80, 0xf4]].concat();
    let pvh = link(true, 0, &[seg(ADDR, &tell, 64), pvh_note(ADDR as u32)]);
    // out 0x80, eax, then as above; the header is behind the code.
    let mut code = [&[0x90, 0xe7, 0x80][..], &RELOAD_32, &tell[RELOAD_32.len()..]].concat();
    // The far jump goes to the instruction behind it, three bytes further.
    code[11] += 3;
    code.resize(code.len().next_multiple_of(4), 0xf4);
    code.extend(multiboot(0, &[]));
    let mb = link(false, ADDR, &[seg(ADDR, &code, 64)]);
    // push dword [ebx]; pop eax; out 0x80, eax; hlt
    let pop = [0xff, 0x33, 0x58, 0xe7, 0x80, 0xf4];
    let elf32 = link(false, ADDR, &[seg(ADDR, &[&RELOAD_32[..], &pop].concat(), 64)]);
    // mov eax, 0x10; mov ds, eax; push 8; lea rax, [rip + 5]; push rax; retfq;
    // push [rdi]; pop rax; out 0x80, eax; hlt
    let code = [
        &[0xb8, 0x10, 0, 0, 0, 0x8e, 0xd8, 0x6a, 8, 0x48, 0x8d, 5, 3, 0, 0, 0, 0x50, 0x48, 0xcb],
        &[0xff, 0x37, 0x58, 0xe7, 0x80, 0xf4][..],
    ]
    .concat();
    let elf64 = link(true, ADDR, &[seg(ADDR, &code, 64)]);
    // call +0; pop ax; out 0x80, ax; mov ax, cs; out 0x80, ax; hlt
    let real = [0xe8, 0, 0, 0x58, 0xe7, 0x80, 0x8c, 0xc8, 0xe7, 0x80, 0xf4];
    let flat = |addr, mode| Protocol::Flat { addr, mode };
    let (info, auto) = (0x336e_c578, Protocol::Auto);
    for (image, protocol, written) in [
        (&pvh[..], auto, &[info][..]),
        (&mb, auto, &[0x2bad_b002, 0b10_0100_1101]),
        (&elf32, auto, &[info]),
        (&elf64, auto, &[info]),
        (&tell, flat(ADDR, Mode::Protected32), &[info]),
        (&code, flat(0x20_0000, Mode::Long64), &[info]),
        (&real, FLAT, &[0x7c03, 0]),
        (&real, flat(0x8_0000, Mode::Real16), &[3, 0x8000]),
    ] {
        let ram = ram(4 * MIB);
        let loaded = loaded(&Request { protocol, ..Request::new(image, "k", &ram) });
        assert_eq!(run(&host, ram, &loaded), written, "{loaded}");
    }
}
