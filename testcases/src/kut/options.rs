//! QEMU's options, as far as configurations use them, to a machine of ours.
//!
//! What our machine lacks is told by its name, and so is what is not known: nothing that a
//! configuration asks for is left out in silence. What is the same here whatever is said, because our
//! machine has no such thing (a display, a network card, an HPET), is accepted.

use vmm::cpuid::{CpuModel, feature};

use super::config::Config;
use super::words::split;
use crate::case::{Boot, Cpu, Device, Hyperv, Irqchip, Machine, Pit, Size, Smm, Vcpus};

/// QEMU's memory if nothing is said. MiB.
const MEMORY: u64 = 128;

/// QEMU's processor if nothing is said.
const CPU: &str = "qemu64";

/// Options without a value that ask for nothing our machine does not do anyhow.
const PLAIN: [&str; 6] =
    ["-enable-kvm", "-no-reboot", "-nodefaults", "-nographic", "-no-hpet", "-no-user-config"];

/// Options with a value for which the same is true.
const VALUED: [(&str, &[&str]); 6] = [
    ("-accel", &["kvm"]),
    ("-display", &["none"]),
    ("-vga", &["none"]),
    ("-net", &["none"]),
    ("-nic", &["none"]),
    ("-serial", &["stdio"]),
];

/// Devices that our board has.
const DEVICES: [&str; 4] =
    ["pc-testdev", "hyperv-testdev", "isa-debug-exit,iobase=0xf4,iosize=0x4", "isa-debug-exit"];

/// Devices that it can have on its PCI bus.
const PCI: [Device; 2] = [Device::PciTestdev, Device::Edu];

/// Devices that it has not, and what is missing with them.
const MISSING: [(&str, &str); 1] = [("amd-iommu", "an IOMMU")];

/// A configuration's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The machine.
    pub machine: Machine,
    /// What the configuration asks for that our machine lacks or that is not known, as the object of
    /// "it wants"; empty if that is nothing.
    pub lacks: Vec<String>,
}

/// What is found on the way.
struct Translator {
    machine: Machine,
    cpu: String,
    lacks: Vec<String>,
}

/// Translates what a configuration asks for. A command line that asks for the time keeps the request, which
/// [`timed`](super::timed) grants.
pub fn translate(config: &Config) -> Translated {
    let machine = Machine {
        boot: Some(Boot::Multiboot),
        memory: Some(Size(format!("{MEMORY}M"))),
        acpi: true,
        // The runner of these tests always asks for it, as for the devices that our board has anyhow.
        devices: vec![Device::PciTestdev],
        ..Machine::default()
    };
    let mut translator = Translator { machine, cpu: CPU.into(), lacks: Vec::new() };
    if let Some(smp) = &config.smp {
        translator.option("-smp", smp);
    }
    for (key, line) in [("test_args", &config.args), ("qemu_params", &config.params)] {
        match split(line) {
            Ok(words) if key == "test_args" => translator.arguments(&words.join(" ")),
            Ok(words) => translator.options(&words),
            Err(why) => translator.lacks.push(format!("a shell: its {key} {why}")),
        }
    }
    let Translator { mut machine, cpu, mut lacks } = translator;
    match cpu_model(&cpu) {
        Ok((cpu, hyperv)) => (machine.cpu, machine.hyperv) = (Some(cpu), hyperv),
        Err(why) => lacks.push(why),
    }
    lacks.dedup();
    Translated { machine, lacks }
}

impl Translator {
    fn lacks(&mut self, what: impl Into<String>) {
        self.lacks.push(what.into());
    }

    /// Words of a QEMU command line.
    fn options(&mut self, words: &[String]) {
        let mut words = words.iter();
        while let Some(word) = words.next() {
            // Both spellings are QEMU's.
            let option = match word.strip_prefix("--") {
                Some(name) => format!("-{name}"),
                None => word.clone(),
            };
            if PLAIN.contains(&&option[..]) {
                continue;
            }
            if !option.starts_with('-') {
                self.lacks(format!("the word `{option}`, which is no option of QEMU"));
                continue;
            }
            match words.next() {
                Some(value) => self.option(&option, value),
                None => self.lacks(format!("the QEMU option `{option}`, without a value")),
            }
        }
    }

    /// One option with its value.
    fn option(&mut self, option: &str, value: &str) {
        let (first, rest) =
            value.split_once(',').map_or((value, ""), |(first, rest)| (first, rest));
        match option {
            "-append" => self.arguments(value),
            "-cpu" => self.cpu = value.into(),
            "-smp" => match count(value) {
                Some(cpus) => self.machine.vcpus = Vcpus(cpus),
                None => self.lacks(format!("`-smp {value}`: 1 to 255 CPUs, one a core, are known")),
            },
            "-m" => match memory(value) {
                Some(mib) => self.machine.memory = Some(Size(format!("{mib}M"))),
                None => self.lacks(format!("`-m {value}`: no size of at least 1 MiB")),
            },
            "-machine" | "-M" => value.split(',').enumerate().for_each(|(i, word)| match word {
                // The images look at what both have.
                "pc" | "type=pc" | "q35" | "type=q35" if i == 0 => {}
                "kernel-irqchip=split" | "kernel_irqchip=split" => {
                    self.machine.irqchip = Some(Irqchip::Split);
                }
                "accel=kvm" | "pit=on" | "hpet=on" | "hpet=off" | "vmport=off" | "vmport=auto" => {}
                "smm=off" => self.machine.smm = Some(Smm::Off),
                "smm=on" => self.machine.smm = Some(Smm::On),
                "usb=off" | "kernel-irqchip=on" | "kernel_irqchip=on" => {}
                "pit=off" => self.machine.pit = Some(Pit::None),
                "vmport=on" => self.lacks("VMware's port (`-machine vmport=on`)"),
                word => self.lacks(format!("`-machine {word}`")),
            }),
            "-overcommit" if value == "cpu-pm=on" => self.machine.cpu_pm = true,
            "-overcommit" if value == "cpu-pm=off" => self.machine.cpu_pm = false,
            // It is how time catches up after ticks were lost, and the runner of these tests always says it.
            "-global" if value == "kvm-pit.lost_tick_policy=discard" => {}
            "-device" if DEVICES.contains(&value) => {}
            "-device" if PCI.iter().any(|device| device.word() == value) => {
                let more = PCI.into_iter().filter(|device| device.word() == value);
                let new = more.filter(|device| !self.machine.devices.contains(device));
                self.machine.devices.extend(new.collect::<Vec<_>>());
            }
            "-device" if first == "intel-iommu" => self.iommu(rest),
            "-device" => match MISSING.iter().find(|(name, _)| *name == first) {
                Some((_, what)) => self.lacks(format!("{what} (`-device {first}`)")),
                None => self.lacks(format!("the device `{value}`")),
            },
            _ if VALUED.iter().any(|(o, values)| *o == option && values.contains(&value)) => {}
            _ => {
                let more = if rest.is_empty() { "" } else { ",…" };
                self.lacks(format!("the QEMU option `{option} {first}{more}`"));
            }
        }
    }

    /// An IOMMU with these properties.
    fn iommu(&mut self, properties: &str) {
        let mut device = Device::Iommu;
        for property in properties.split(',').filter(|property| !property.is_empty()) {
            match property {
                "intremap=on" => device = Device::IommuInterrupts,
                "intremap=off" | "eim=off" => {}
                _ => self.lacks(format!("an IOMMU with `{property}`")),
            }
        }
        self.machine.devices.push(device);
    }

    fn arguments(&mut self, text: &str) {
        self.machine.cmdline = (!text.is_empty()).then(|| text.to_owned());
    }
}

/// `N` or `cpus=N`, from 1 to 255.
fn count(value: &str) -> Option<u8> {
    let number = value.strip_prefix("cpus=").unwrap_or(value);
    number.parse().ok().filter(|&cpus| cpus > 0)
}

/// A size as QEMU reads it, MiB if it has no unit, in MiB.
fn memory(value: &str) -> Option<u64> {
    let value = value.strip_prefix("size=").unwrap_or(value);
    let (number, shift) = match value.char_indices().next_back()? {
        (at, 'k' | 'K') => (&value[..at], -10),
        (at, 'm' | 'M') => (&value[..at], 0),
        (at, 'g' | 'G') => (&value[..at], 10),
        _ => (value, 0),
    };
    let number: u64 = number.parse().ok()?;
    let mib = if shift < 0 { Some(number >> 10) } else { number.checked_mul(1 << shift) };
    mib.filter(|mib| (1..1 << 30).contains(mib))
}

/// A processor of QEMU's as an option of our VMM, and what of Hyper-V's it has.
///
/// # Errors
/// What of it is not known, as the object of "it wants".
fn cpu_model(text: &str) -> Result<(Cpu, Option<Hyperv>), String> {
    let mut words = text.split(',');
    let model = words.next().unwrap_or_default();
    if !CpuModel::is_model(model) {
        return Err(format!("the CPU model `{model}`"));
    }
    // What the host lacks is left out, as QEMU does with a warning.
    let mut all = vec![model.to_owned(), "enforce=off".into()];
    let mut hyperv: Vec<String> = Vec::new();
    for word in words {
        let (name, value) = match word.split_at_checked(1) {
            Some(("+", name)) => (name, "on"),
            Some(("-", name)) => (name, "off"),
            _ => word.split_once('=').unwrap_or((word, "on")),
        };
        match name.replace('_', "-").as_str() {
            // Whether the guest could be moved: ours can do what the host can.
            "migratable" | "check" if matches!(value, "on" | "off" | "yes" | "no") => {}
            "host-phys-bits" | "phys-bits" | "vendor" | "family" | "model" | "stepping" => {
                all.push(word.to_owned());
            }
            "hv-passthrough" if value == "on" => hyperv.push("all".into()),
            name if let Some(name) = name.strip_prefix("hv-") => match value {
                "off" => hyperv.retain(|have| have != name),
                "on" => hyperv.push(name.into()),
                value => hyperv.push(format!("{name}={value}")),
            },
            _ if feature(name).is_some() => all.push(word.to_owned()),
            _ => return Err(format!("`-cpu {model},{word}`, which is no feature that is known")),
        }
    }
    let cpu = Cpu::try_from(all.join(",")).map_err(|why| format!("what cannot be: {why}"))?;
    let list = hyperv.join(",");
    let hyperv = (!list.is_empty()).then(|| Hyperv::try_from(list)).transpose();
    Ok((cpu, hyperv.map_err(|why| format!("what our machine does not offer: {why}"))?))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn translated(smp: &str, params: &str, args: &str) -> Translated {
        let config = Config {
            smp: (!smp.is_empty()).then(|| smp.into()),
            params: params.into(),
            args: args.into(),
            ..Config::default()
        };
        translate(&config)
    }

    fn words(smp: &str, params: &str, args: &str) -> String {
        let Translated { machine, lacks } = translated(smp, params, args);
        assert_eq!(lacks, [""; 0], "{params}");
        machine.arguments(Path::new("")).join(" ")
    }

    #[test]
    fn what_our_machine_can_do_becomes_its_options() {
        let rest = "--acpi on --device pci-testdev --boot multiboot";
        for (smp, params, args, is) in [
            ("", "", "", format!("--memory 128M --cpu qemu64,enforce=off {rest}")),
            (
                "4",
                "-cpu max,+svm,-npt -m 4g",
                "\"a b\"",
                format!(
                    "--cpus 4 --memory 4096M --cpu max,enforce=off,+svm,-npt {rest} --cmdline a b"
                ),
            ),
            (
                "",
                "-cpu host,migratable=no -append \"x `date +%s`\" -smp cpus=2 -m 2048",
                "",
                format!(
                    "--cpus 2 --memory 2048M --cpu host,enforce=off {rest} --cmdline x `date +%s`"
                ),
            ),
            (
                "",
                "-enable-kvm -machine pit=off -overcommit cpu-pm=on -device pc-testdev --no-reboot",
                "1 `date +%s`",
                format!(
                    "--memory 128M --cpu qemu64,enforce=off --pit none --cpu-pm on {rest} --cmdline 1 `date +%s`"
                ),
            ),
            (
                "2",
                "-cpu host,hv_passthrough -device hyperv-testdev",
                "direct",
                format!(
                    "--cpus 2 --memory 128M --cpu host,enforce=off --hyperv all {rest} --cmdline direct"
                ),
            ),
            (
                "",
                "-cpu host,hv_time,hv-vpindex,+hv-crash,-hv-crash,hv-spinlocks=0x1fff",
                "",
                format!(
                    "--memory 128M --cpu host,enforce=off --hyperv spinlocks=0x1fff,vpindex,time {rest}"
                ),
            ),
            (
                "",
                "-machine smm=on",
                "",
                format!("--memory 128M --cpu qemu64,enforce=off --smm on {rest}"),
            ),
            (
                "",
                "-M q35,kernel-irqchip=split -device intel-iommu,intremap=on,eim=off -device edu",
                "",
                "--memory 128M --cpu qemu64,enforce=off --irqchip split --acpi on --device pci-testdev \
                 --device intel-iommu,intremap=on --device edu --boot multiboot"
                    .to_owned(),
            ),
            (
                "",
                "-cpu IvyBridge,phys-bits=36,host-phys-bits=off",
                "",
                format!(
                    "--memory 128M --cpu IvyBridge,enforce=off,phys-bits=36,host-phys-bits=off {rest}"
                ),
            ),
        ] {
            assert_eq!(words(smp, params, args), is, "{params}");
        }
    }

    #[test]
    fn what_it_lacks_and_what_is_not_known_is_named() {
        for (params, lacks) in [
            ("-device edu,dma_mask=1", "the device `edu,dma_mask=1`"),
            ("-device intel-iommu,eim=on", "an IOMMU with `eim=on`"),
            ("-device amd-iommu", "an IOMMU (`-device amd-iommu`)"),
            ("-device e1000e", "the device `e1000e`"),
            ("-M microvm", "`-machine microvm`"),
            ("-machine vmport=on", "VMware's port (`-machine vmport=on`)"),
            (
                "-cpu host,hv-evmcs",
                "what our machine does not offer: hyperv `evmcs`: Hyper-V option: `evmcs` is no \
                 enlightenment; known are relaxed, vapic, spinlocks, vpindex, runtime, crash, time, \
                 synic, stimer, stimer-direct, tlbflush, tlbflush-ext, ipi, reset, frequencies, \
                 reenlightenment, xmm-input, `all` and `enforce-cpuid`",
            ),
            ("-cpu Z80", "the CPU model `Z80`"),
            ("-cpu max,+vmx-mbec", "`-cpu max,+vmx-mbec`, which is no feature that is known"),
            ("-smp 0", "`-smp 0`: 1 to 255 CPUs, one a core, are known"),
            ("-smp 2,sockets=2", "`-smp 2,sockets=2`: 1 to 255 CPUs, one a core, are known"),
            ("-m lots", "`-m lots`: no size of at least 1 MiB"),
            ("-frobnicate a,b", "the QEMU option `-frobnicate a,…`"),
            ("-serial null", "the QEMU option `-serial null`"),
            ("-m", "the QEMU option `-m`, without a value"),
            ("stray", "the word `stray`, which is no option of QEMU"),
            (
                "-append `uname`",
                "a shell: its qemu_params asks a shell for the output of a command",
            ),
        ] {
            assert_eq!(translated("", params, "").lacks.join("|"), lacks, "{params}");
        }
        assert!(translated("$MAX_SMP", "", "").lacks[0].contains("`-smp $MAX_SMP`"));
    }

    proptest! {
        #[test]
        fn any_text_has_a_machine_that_our_vmm_reads_or_lacks_something(
            params in "(-(cpu|m|smp|device|machine|append|x)? ?[ -~]{0,12} ?){0,4}",
            smp in "[0-9a-z=,]{0,5}",
        ) {
            let Translated { machine, lacks } = translated(&smp, &params, "");
            prop_assert!(lacks.iter().all(|what| !what.is_empty()));
            if let (Some(memory), true) = (machine.memory, lacks.is_empty()) {
                prop_assert!(Size::try_from(memory.0).is_ok());
            }
        }
    }
}
