//! `vmm run`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use vmm::boot::Protocol;
use vmm::cpuid::{CpuModel, Topology};
use vmm::exit::Stop;
use vmm::host::contents::Contents;
use vmm::hv::kvm::{DEV_KVM, Irqchip, KvmConfig, Smm};
use vmm::hyperv::Enlightenments;
use vmm::launch::{self, Options, Serial};
use vmm::machine::{IommuConfig, PciDevice};
use vmm::payload::{self, PayloadError};
use vmm::ram::Backing;
use vmm::units;

use payload_abi::{CMDLINE_CPUS, CMDLINE_TEST};

use super::watching::WatchArgs;
use super::{USAGE, complain, say};

/// Exit status when what was counted cannot be told.
const UNTOLD: u8 = 14;

/// Interrupt controllers in the kernel.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum IrqchipArg {
    /// Local APICs, I/O APIC and PICs.
    Kernel,
    /// Local APICs only; the I/O APIC is the board's, and there are no PICs.
    Split,
    /// None: one vCPU, and no interrupts.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PitArg {
    /// The kernel's.
    Kernel,
    /// None.
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnOff {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SmmArg {
    Auto,
    On,
    Off,
}

/// What backs guest memory.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum HugeArg {
    /// Pages of 4 KiB only.
    Off,
    /// As the host's policy has it.
    Auto,
    /// Transparent huge pages are asked for.
    Thp,
    /// hugetlbfs pages of 2 MiB.
    #[value(name = "2M")]
    Two,
    /// hugetlbfs pages of 1 GiB.
    #[value(name = "1G")]
    One,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnReset {
    /// The VM ends, with status 10.
    Stop,
    /// The guest starts again, from its image.
    Reboot,
}

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeviceArg {
    /// On the PCI bus.
    Pci(PciDevice),
    /// Between it and memory.
    Iommu(IommuConfig),
}

impl DeviceArg {
    fn pci(self) -> Option<PciDevice> {
        match self {
            DeviceArg::Pci(device) => Some(device),
            DeviceArg::Iommu(_) => None,
        }
    }

    fn name(self) -> &'static str {
        self.pci().map_or("intel-iommu", PciDevice::name)
    }
}

impl fmt::Display for DeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceArg, String> {
        let iommu = |interrupts| Ok(DeviceArg::Iommu(IommuConfig { interrupts }));
        match text {
            "intel-iommu" | "intel-iommu,intremap=off" => iommu(false),
            "intel-iommu,intremap=on" => iommu(true),
            _ => text.parse().map(DeviceArg::Pci).map_err(|e: String| {
                format!("{e}, and intel-iommu, with `,intremap=on` if it remaps interrupts")
            }),
        }
    }
}

/// Run a guest until it ends.
#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: odd is the guest's own word, value * 2 + 1 of what it wrote to port 0xf4 (payloads
and kvm-unit-tests: 1 pass, 3 fail, 77 skip, 127 error). Even is the VMM's: 0 the guest switched
itself off, 2 bad input or something missing, 4 triple fault, 6 an exit that the board has no
answer to, 8 every vCPU halted for ever, 10 reset, 12 the guest crashed, 14 the VMM or the host
failed, 124 timeout, 130 interrupted. After 4, 6, 8, 12 and 124 a report is on standard error.")]
pub struct Run {
    /// The image: ELF (PVH, multiboot or plain), or a flat binary with --boot flat.
    #[arg(long, short, value_name = "FILE", required_unless_present = "payload")]
    #[arg(conflicts_with = "payload")]
    kernel: Option<PathBuf>,

    /// A payload: an image with a table of tests. --test names the one to run.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,

    /// The payload's test to run.
    #[arg(long, value_name = "NAME", requires = "payload")]
    test: Option<String>,

    /// The guest's command line.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    cmdline: String,

    /// The initial ramdisk, or the first multiboot module.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,

    /// A further module; its command line follows the first space.
    #[arg(long, value_name = "FILE [TEXT]")]
    module: Vec<String>,

    /// How the image is entered: auto, pvh, multiboot, elf, flat[:ADDR[:MODE]].
    #[arg(long, value_name = "PROTOCOL", default_value = "auto")]
    boot: Protocol,

    /// Guest memory, with K, M or G.
    #[arg(long, short, value_name = "SIZE", default_value = "256M", value_parser = units::size)]
    memory: u64,

    /// What backs guest memory.
    #[arg(long, value_name = "WHAT", default_value = "auto")]
    hugepages: HugeArg,

    /// vCPUs.
    #[arg(long, short = 'c', value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,

    /// From the APIC ID of one vCPU to that of the next: a power of two, such as 128 for IDs beyond
    /// 255 with few vCPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    apic_id_step: u32,

    /// What CPUID tells the guest: host, then changes (host,-pcid,+x2apic).
    #[arg(long, value_name = "MODEL", default_value = "host", allow_hyphen_values = true)]
    cpu: CpuModel,

    /// Interrupt controllers in the kernel.
    #[arg(long, value_name = "WHICH", default_value = "kernel")]
    irqchip: IrqchipArg,

    /// The interval timer; needs the kernel's interrupt controllers.
    #[arg(long, value_name = "WHICH")]
    pit: Option<PitArg>,

    /// Whether vCPUs keep their processors when they halt, pause or wait.
    #[arg(long, value_name = "WHETHER", default_value = "off")]
    cpu_pm: OnOff,

    /// Whether the guest has memory in system-management mode; auto: where the host has that mode.
    #[arg(long, value_name = "WHETHER", default_value = "auto")]
    smm: SmmArg,

    /// Whether the guest finds ACPI tables, and can sleep in S3.
    #[arg(long, value_name = "WHETHER", default_value = "off")]
    acpi: OnOff,

    /// What of Hyper-V's interfaces the guest is offered: relaxed, vapic, spinlocks[=N], vpindex,
    /// runtime, crash, time, synic, stimer, stimer-direct, tlbflush, tlbflush-ext, ipi, reset,
    /// frequencies, reenlightenment, xmm-input; all for what the host has; enforce-cpuid to have
    /// KVM refuse the rest.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    hyperv: Enlightenments,

    /// Whether the board has a PCI bus; --device gives it one.
    #[arg(long, value_name = "WHETHER")]
    pci: Option<OnOff>,

    /// A device: pci-testdev or edu on the PCI bus, intel-iommu[,intremap=on] behind it. May be given
    /// for each of them.
    #[arg(long, value_name = "NAME")]
    device: Vec<DeviceArg>,

    /// Where the first serial port leads: stdio, null or file:PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    serial: Serial,

    /// The guest may take this long (10s, 500ms, 2m).
    #[arg(long, value_name = "TIME", value_parser = units::duration)]
    timeout: Option<Duration>,

    /// Record every exit into this file, for `vmm replay`.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,

    /// What to do when the guest asks for a reset.
    #[arg(long, value_name = "WHAT", default_value = "stop")]
    on_reset: OnReset,

    /// Let MSR accesses that KVM refuses come to the board, so that a report shows them.
    #[arg(long)]
    msr_exits: bool,

    /// Let KVM pass on the hypercalls that it can pass on.
    #[arg(long)]
    hypercall_exits: bool,

    /// Note where in the guest each exit came from: reports show it with the last exits.
    #[arg(long)]
    exit_rips: bool,

    /// Let the guest ask for KVM ioctls about itself (payload_abi::lab says how).
    #[arg(long, conflicts_with = "trace")]
    lab: bool,

    /// Answer no access between two writes to port 0x80, the first of 0xb5: what the host's part of an exit
    /// costs, beside which this program's is measured.
    #[arg(long, hide = true, conflicts_with_all = ["trace", "lab", "stats", "control"])]
    bare: bool,

    /// Give each vCPU a dirty ring of this many entries, a power of two.
    #[arg(long, value_name = "N", default_value_t = 0)]
    dirty_ring: u32,

    #[command(flatten)]
    watch: WatchArgs,

    /// Let a VM go on whose every vCPU is halted with interrupts off: an NMI may come.
    #[arg(long)]
    keep_halted: bool,

    /// KVM's device node.
    #[arg(long, value_name = "PATH", default_value = DEV_KVM)]
    kvm: PathBuf,
}

impl Run {
    /// Runs the guest; gives the exit status.
    pub fn main(mut self) -> u8 {
        let (on_reset, watch) = (self.on_reset, std::mem::take(&mut self.watch));
        let opened = self.options().and_then(|options| Ok((options, watch.open()?)));
        let (mut options, watching) = match opened {
            Ok(opened) => opened,
            Err(message) => {
                say(format_args!("vmm: {message}\n"));
                return USAGE;
            }
        };
        options.statistics = watching.statistics();
        options.control = watching.control();
        // The time is the guest's in all, however often it starts again.
        let end = options.timeout.map(|timeout| Instant::now() + timeout);
        loop {
            options.timeout = end.map(|end| end.saturating_duration_since(Instant::now()));
            match launch::run(&mut options) {
                Err(e) => {
                    complain(&e);
                    return e.status();
                }
                Ok(finished) => {
                    let stop = finished.ended.stop;
                    if stop == Stop::Reset && on_reset == OnReset::Reboot {
                        options.again = true;
                        continue;
                    }
                    if stop.wants_report() {
                        match finished.ended.vcpu {
                            Some(vcpu) => say(format_args!("\nvmm: vCPU {vcpu}: {stop}\n")),
                            None => say(format_args!("\nvmm: {stop}\n")),
                        }
                        if let Some(why) = finished.lab {
                            say(format_args!("vmm: lab: {why}\n"));
                        }
                        finished.reports.iter().for_each(say);
                    }
                    if let Err(message) = watching.tell() {
                        say(format_args!("vmm: {message}\n"));
                        return UNTOLD;
                    }
                    return stop.status();
                }
            }
        }
    }

    /// What the command line amounts to.
    fn options(self) -> Result<Options, String> {
        let irqchip = match self.irqchip {
            IrqchipArg::Kernel => Irqchip::Kernel,
            IrqchipArg::Split => Irqchip::Split,
            IrqchipArg::None => Irqchip::None,
        };
        let kernel_irqchip = irqchip == Irqchip::Kernel;
        let pit = match self.pit {
            Some(PitArg::Kernel) if !kernel_irqchip => {
                return Err("--pit kernel needs --irqchip kernel: its line leads to the kernel's \
                            interrupt controllers; leave one of the two out"
                    .to_owned());
            }
            Some(pit) => pit == PitArg::Kernel,
            None => kernel_irqchip,
        };
        if self.trace.is_some() && self.on_reset == OnReset::Reboot {
            return Err(
                "--trace with --on-reset reboot: a recording is of one run from power-on, \
                        and ends with the reset; leave one of the two out"
                    .to_owned(),
            );
        }
        if irqchip == Irqchip::None && self.cpus > 1 {
            return Err(format!(
                "--irqchip none with --cpus {}: without local APICs only one vCPU can be started; \
                 leave one of the two out",
                self.cpus
            ));
        }
        let topology = Topology { step: self.apic_id_step, ..Topology::flat(self.cpus) };
        topology.check().map_err(|e| e.to_string())?;
        if !kernel_irqchip && !self.hyperv.is_empty() {
            return Err("--hyperv needs --irqchip kernel: its interrupts and the guest's word that it \
                        is done with them go through the kernel's controllers; leave one of the two \
                        out"
                .to_owned());
        }
        if self.apic_id_step != 1 && !self.hyperv.is_empty() {
            return Err("--hyperv with --apic-id-step: Hyper-V counts virtual processors without gaps, and \
                        here they are told apart by APIC IDs; leave one of the two out"
                .to_owned());
        }
        let mut before = self.device.iter();
        while let Some(device) = before.next_back() {
            if before.as_slice().iter().any(|other| other.name() == device.name()) {
                return Err(format!("--device {device} is given twice; a board has one of it"));
            }
        }
        let pci = match (self.pci, self.device.first()) {
            (Some(OnOff::Off), Some(device)) => {
                return Err(format!(
                    "--pci off with --device {device}: that is on the PCI bus; leave one of the \
                     two out"
                ));
            }
            (Some(OnOff::On), _) | (None, Some(_)) => {
                Some(self.device.iter().filter_map(|device| device.pci()).collect())
            }
            (Some(OnOff::Off) | None, None) => None,
        };
        let iommu = self.device.iter().find_map(|device| match device {
            DeviceArg::Iommu(iommu) => Some(*iommu),
            DeviceArg::Pci(_) => None,
        });
        if iommu.is_some_and(|iommu| iommu.interrupts) && irqchip != Irqchip::Split {
            return Err(
                "--device intel-iommu,intremap=on needs --irqchip split: the kernel's I/O \
                        APIC is not behind it; give that, or leave intremap out"
                    .to_owned(),
            );
        }
        let (mut cmdline, mut image) = (self.cmdline, None);
        let kernel = match (self.kernel, self.payload) {
            (Some(kernel), _) => kernel,
            (None, Some(file)) => {
                let bytes = Contents::of(&file)
                    .map_err(|source| PayloadError::File { path: file.clone(), source })
                    .and_then(|bytes| {
                        payload::check(&file, &bytes, self.test.as_deref()).map(|()| bytes)
                    });
                image = Some(Arc::new(bytes.map_err(|e| e.to_string())?));
                if let Some(test) = &self.test {
                    cmdline = payload_cmdline(test, self.cpus, &cmdline);
                }
                file
            }
            (None, None) => return Err("name an image with --kernel or --payload".to_owned()),
        };
        let module = |m: String| match m.split_once(' ') {
            Some((path, cmdline)) => (path.into(), cmdline.to_owned()),
            None => (m.into(), String::new()),
        };
        let initrd = self.initrd.into_iter().map(|path| (path, String::new()));
        Ok(Options {
            kvm: self.kvm,
            kernel,
            image,
            protocol: self.boot,
            cmdline,
            modules: initrd.chain(self.module.into_iter().map(module)).collect(),
            memory: self.memory,
            backing: match self.hugepages {
                HugeArg::Off => Backing::Small,
                HugeArg::Auto => Backing::Auto,
                HugeArg::Thp => Backing::Transparent,
                HugeArg::Two => Backing::Huge2M,
                HugeArg::One => Backing::Huge1G,
            },
            cpu: self.cpu,
            topology,
            vm: KvmConfig {
                irqchip,
                pit,
                msr_exits: self.msr_exits,
                hypercall_exits: self.hypercall_exits,
                sync_regs: self.exit_rips,
                cpu_pm: self.cpu_pm == OnOff::On,
                smm: match self.smm {
                    SmmArg::Auto => Smm::Auto,
                    SmmArg::On => Smm::On,
                    SmmArg::Off => Smm::Off,
                },
                cpus: topology.cpus(),
                last_apic_id: topology.apic_id(topology.cpus() - 1),
                dirty_ring: self.dirty_ring,
                hyperv: self.hyperv,
            },
            serial: self.serial,
            timeout: self.timeout,
            trace: self.trace,
            lab: self.lab,
            bare: self.bare,
            keep_halted: self.keep_halted,
            acpi: self.acpi == OnOff::On,
            pci,
            iommu,
            statistics: None,
            control: None,
            again: false,
        })
    }
}

/// What a payload is told: its test, the number of CPUs unless the user says another, the rest.
fn payload_cmdline(test: &str, cpus: u32, rest: &str) -> String {
    let is_cpus = |word: &str| word.split_once('=').is_some_and(|(key, _)| key == CMDLINE_CPUS);
    let cpus = match rest.split(' ').any(is_cpus) {
        true => String::new(),
        false => format!(" {CMDLINE_CPUS}={cpus}"),
    };
    format!("{CMDLINE_TEST}={test}{cpus} {rest}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_told_its_test_and_its_cpus() {
        assert_eq!(payload_cmdline("t", 2, ""), "test=t cpus=2");
        assert_eq!(payload_cmdline("t", 2, "x y=1"), "test=t cpus=2 x y=1");
        assert_eq!(payload_cmdline("t", 2, "x cpus=4"), "test=t x cpus=4");
        assert_eq!(payload_cmdline("t", 2, "ncpus=4"), "test=t cpus=2 ncpus=4");
    }
}
