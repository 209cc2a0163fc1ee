//! Making VMs, and changing them: by the VMM's own parts, and by the same calls of KVM's alone.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm::access::{Access, Size, Space};
use vmm::cpu::{CS, Segment};
use vmm::cpuid::{CpuModel, Topology};
use vmm::exit::{Entry, Exit};
use vmm::host::clock::HostClock;
use vmm::hv::kvm::{BareVm, DEV_KVM, Host, KvmConfig, KvmVm};
use vmm::hv::{Vcpu, Vm};
use vmm::machine::{Nowhere, PcConfig, pc};
use vmm::ram::{Backing, GuestRam, MIN_SIZE};

use crate::Timed;

/// Starts one of them; bare or not.
type Make = fn(bool) -> Result<Timed<'static>, String>;

/// What is measured.
pub const WORKS: [(&str, Make); 3] =
    [("create_to_exit", create), ("create_vcpu", create_vcpu), ("change_memslot", change_slot)];

/// Where the guest begins, in real mode, and what it does: `out 0x80, al`.
const START: u16 = 0x1000;
const CODE: [u8; 2] = [0xe6, 0x80];
/// vCPUs that one VM gets.
const VCPUS: u32 = 32;

fn told(e: impl Display) -> String {
    e.to_string()
}

fn open() -> Result<Host, String> {
    Host::open(Path::new(DEV_KVM)).map_err(told)
}

fn memory() -> Result<GuestRam, String> {
    GuestRam::new(MIN_SIZE, Backing::Small).map_err(told)
}

/// A VM of the VMM's.
fn vm(host: &Host, cpus: u32) -> Result<KvmVm, String> {
    let config = KvmConfig { cpus, last_apic_id: cpus - 1, ..KvmConfig::default() };
    host.create_vm(&config, Some(memory()?)).map_err(told)
}

/// From nothing to the first exit of a guest: memory, a VM with interrupt controllers, a vCPU; the VMM also tells
/// the vCPU what CPUID says, and has a board.
fn create(bare: bool) -> Result<Timed<'static>, String> {
    let host = open()?;
    let once_bare = |host: &Host| {
        let ram = memory()?;
        ram.write(START.into(), &CODE).map_err(told)?;
        let vm = BareVm::new(host, ram, true).map_err(told)?;
        let mut vcpu = vm.create_vcpu(0).map_err(told)?;
        let reason = vcpu.run_from(START).map_err(told)?;
        // KVM_EXIT_IO.
        if reason == 2 { Ok(()) } else { Err(format!("the guest's first exit is {reason}")) }
    };
    let once = |host: &Host| {
        let ram = memory()?;
        ram.write(START.into(), &CODE).map_err(told)?;
        let config = KvmConfig { cpus: 1, ..KvmConfig::default() };
        let vm = host.create_vm(&config, Some(ram.clone())).map_err(told)?;
        let mut vcpu = vm.create_vcpu(0).map_err(told)?;
        let supported = host.supported_cpuid().map_err(told)?;
        let cpuid = CpuModel::default().apply(&supported, 0, &Topology::flat(1)).map_err(told)?;
        vcpu.set_cpuid(&cpuid).map_err(told)?;
        let mut state = vcpu.state().map_err(told)?;
        state.segments[CS] = Segment { selector: 0, base: 0, ..state.segments[CS] };
        (state.rip, state.rflags) = (START.into(), 2);
        vcpu.start(&state).map_err(told)?;
        vcpu.bind();
        let clock = Arc::new(HostClock::start());
        let config = PcConfig { cpus: 1, ..PcConfig::default() };
        let _board = pc(&config, ram, clock, Arc::new(Nowhere)).map_err(told)?;
        let is_first = |access: &Access| {
            (access.space, access.addr, access.size) == (Space::Port, 0x80, Size::B1)
        };
        match vcpu.run(Entry::Resume) {
            Exit::Io(access) if is_first(&access) => Ok(()),
            exit => Err(format!("the guest's first exit is {exit}")),
        }
    };
    Ok(Box::new(move |number| {
        let start = Instant::now();
        for _ in 0..number {
            if bare { once_bare(&host)? } else { once(&host)? }
        }
        Ok(start.elapsed())
    }))
}

/// A vCPU, of a VM with interrupt controllers.
fn create_vcpu(bare: bool) -> Result<Timed<'static>, String> {
    let host = open()?;
    Ok(Box::new(move |number| {
        let (mut left, mut took) = (number, Duration::ZERO);
        while left != 0 {
            let now = left.min(VCPUS.into()) as u32;
            // Made, and dropped, while nobody looks.
            took += if bare {
                let vm = BareVm::new(&host, memory()?, true).map_err(told)?;
                let mut made = Vec::with_capacity(now as usize);
                let start = Instant::now();
                for index in 0..now {
                    made.push(vm.create_vcpu(index).map_err(told)?);
                }
                start.elapsed()
            } else {
                let vm = vm(&host, VCPUS)?;
                let mut made = Vec::with_capacity(now as usize);
                let start = Instant::now();
                for index in 0..now {
                    made.push(vm.create_vcpu(index).map_err(told)?);
                }
                start.elapsed()
            };
            left -= u64::from(now);
        }
        Ok(took)
    }))
}

/// A memslot more, and away again: of a VM with a vCPU.
fn change_slot(bare: bool) -> Result<Timed<'static>, String> {
    let host = open()?;
    let more = memory()?;
    if bare {
        let vm = BareVm::new(&host, memory()?, true).map_err(told)?;
        let vcpu = vm.create_vcpu(0).map_err(told)?;
        return Ok(Box::new(move |number| {
            let _kept = &vcpu;
            let start = Instant::now();
            for _ in 0..number {
                vm.change_slot(&more).map_err(told)?;
            }
            Ok(start.elapsed())
        }));
    }
    let vm = vm(&host, 1)?;
    let vcpu = vm.create_vcpu(0).map_err(told)?;
    Ok(Box::new(move |number| {
        let _kept = &vcpu;
        let start = Instant::now();
        for _ in 0..number {
            vm.change_slot(&more).map_err(told)?;
        }
        Ok(start.elapsed())
    }))
}
