//! The whole user interface: every command and every flag.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use crate::support::bench::flags::{Bench, BenchAction, Counted, Counts, Exact, Peers, Start};
pub use crate::support::perf::flags::{Compare, Perf, PerfAction};

/// exitlab: tests, fuzzing and measurements around a KVM virtual machine monitor.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
pub struct Xtask {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands; each one is a file of its name.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the test cases.
    Test(Test),
    /// Runs images of kvm-unit-tests, unmodified, as their unittests.cfg says.
    Kut(Kut),
    /// Runs everything a change must pass, the likeliest failure first.
    Ci(Ci),
    /// Tells what this machine offers, and what to do about what is missing.
    Doctor(NoFlags),
    /// Checks the rules of the house that a program can check.
    Tidy(NoFlags),
    /// Builds the guest payloads and lists their tests.
    Payloads(Payloads),
    /// Tells what of KVM's API and of the manuals is tested, on which host, and what is not yet.
    CoverageMap(CoverageMap),
    /// Sets up emulated hosts, lists them, and gives a shell or runs a command on one.
    Host(HostCommand),
    /// Fuzzes devices and parsers, and makes regressions of what is found.
    Fuzz(Fuzz),
    /// Measures what exits cost.
    Bench(Bench),
    /// Keeps what was measured, compares, and reports.
    Perf(Perf),
}

/// Where cases run, in the order of a report's columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Host {
    /// This machine's own /dev/kvm.
    Kvm,
    /// kvm-amd on a machine that QEMU emulates.
    Amd,
    /// kvm-intel on a machine that Bochs emulates.
    Intel,
    /// All of them.
    All,
}

/// An emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Emulated {
    /// kvm-amd on a machine that QEMU emulates.
    Amd,
    /// kvm-intel on a machine that Bochs emulates.
    Intel,
}

/// What emulated hosts are made of and how they are started. What is not given is found on the
/// machine or fetched.
#[derive(Clone, Debug, Default, Args)]
pub struct Make {
    /// Loads KVM's modules with this parameter on emulated hosts, such as ept=0 or
    /// kvm.ignore_msrs=1; may be given more than once.
    #[arg(long, value_name = "[MODULE.]PARAM=VALUE")]
    pub kvm_param: Vec<String>,
    /// Adds words to the command line of an emulated host's kernel.
    #[arg(long, value_name = "WORDS")]
    pub host_cmdline: Option<String>,
    /// Gives host amd these devices, separated by commas: iommu, edu, e1000e, virtio-net, usb-stick.
    /// NAME:vfio gives a PCI device to vfio-pci, and brings an IOMMU with it. The host is then a q35
    /// machine with a kernel that has all drivers.
    #[arg(long, value_name = "DEVICES", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Counts time in instructions on host amd, with one processor: two runs are equal.
    #[arg(long)]
    pub deterministic: bool,
    /// The kernel of emulated hosts: a bzImage with its modules in /lib/modules, or a directory with
    /// boot and lib/modules. EXITLAB_HOST_KERNEL does the same.
    #[arg(long, value_name = "PATH")]
    pub host_kernel: Option<PathBuf>,
    /// The qemu-system-x86_64 of host amd. EXITLAB_QEMU does the same.
    #[arg(long, value_name = "PATH")]
    pub qemu: Option<PathBuf>,
    /// The bochs of host intel. EXITLAB_BOCHS does the same.
    #[arg(long, value_name = "PATH")]
    pub bochs: Option<PathBuf>,
}

/// Flags of `test`.
#[derive(Debug, Args)]
pub struct Test {
    /// How cases run.
    #[command(flatten)]
    pub running: Running,
    /// Runs the cases against a VMM that is wrong on purpose, in one way after another, and tells which
    /// case noticed; of all ways if none is named.
    #[arg(long, value_name = "FLAWS", num_args = 0.., require_equals = true, value_delimiter = ',')]
    #[arg(conflicts_with_all = ["junit", "fail_fast", "require"])]
    pub sabotage: Option<Vec<String>>,
}

/// Flags of `kut`.
#[derive(Debug, Args)]
pub struct Kut {
    /// The images: a tree of kvm-unit-tests that was built, or a folder of images with their
    /// unittests.cfg.
    #[arg(long, value_name = "DIR")]
    pub images: PathBuf,
    /// Runs what is in the group nodefault, too.
    #[arg(long)]
    pub all: bool,
    /// How they run.
    #[command(flatten)]
    pub running: Running,
}

/// How cases run and what is told of them.
#[derive(Debug, Args)]
pub struct Running {
    /// Which cases: a part of an id, a pattern with * and ?, or tag:WORD. All if none is given.
    pub filters: Vec<String>,
    /// Lists the chosen cases and runs nothing.
    #[arg(long)]
    pub list: bool,
    /// Takes each filter as a whole id.
    #[arg(long, requires = "filters")]
    pub exact: bool,
    /// The hosts to run on, separated by commas: kvm, amd, intel, or all. Without it, kvm where
    /// /dev/kvm works and amd elsewhere.
    #[arg(long, value_name = "HOSTS", value_enum, value_delimiter = ',')]
    pub host: Vec<Host>,
    /// What emulated hosts are made of.
    #[command(flatten)]
    pub make: Make,
    /// Makes an error of each skip for one of these, separated by commas: needs (kvm, cpuid:x2apic
    /// ..), guest (decided by the guest), known-bugs, configurations (of kvm-unit-tests), deviations,
    /// or all. EXITLAB_REQUIRE adds to it.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true)]
    pub require: String,
    /// How many vCPUs run side by side; twice as many as there are processors if not given, since
    /// cases wait for about half of their time.
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: Option<u16>,
    /// Writes a JUnit report to this file.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Writes a JSON report to this file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Stops after the first fail or error.
    #[arg(long, conflicts_with = "keep_going")]
    pub fail_fast: bool,
    /// Runs all cases whatever happens; this is the default.
    #[arg(long)]
    pub keep_going: bool,
}

/// Flags of `ci`.
#[derive(Debug, Args)]
pub struct Ci {
    /// As for `test`, and for the tests of the packages.
    #[arg(long, value_name = "NAMES", default_value = "", hide_default_value = true)]
    pub require: String,
}

/// Flags of `doctor` and `tidy`: there are none.
#[derive(Debug, Args)]
pub struct NoFlags {}

/// Flags of `payloads`.
#[derive(Debug, Args)]
pub struct Payloads {
    /// Only builds and checks; lists nothing.
    #[arg(long)]
    pub check: bool,
    /// Runs clippy on the payloads instead, with the flags they are built with.
    #[arg(long, conflicts_with = "check")]
    pub lint: bool,
}

/// Flags of `coverage-map`.
#[derive(Debug, Args)]
pub struct CoverageMap {
    /// Shows what became of the cases, from reports that `test --json FILE` wrote. Where two tell of
    /// one case on one host, the later one counts.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub json: Vec<PathBuf>,
    /// Writes the page to this file, not to standard output.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Only checks what the cases say that they cover, and counts.
    #[arg(long, conflicts_with_all = ["json", "out"])]
    pub check: bool,
}

/// Flags of `host`.
#[derive(Debug, Args)]
pub struct HostCommand {
    /// What to do.
    #[command(subcommand)]
    pub action: HostAction,
}

/// What `host` does.
#[derive(Debug, Subcommand)]
pub enum HostAction {
    /// Finds or fetches all that hosts are made of, and boots each once.
    Setup {
        /// Which hosts; all if none is given.
        #[arg(value_enum)]
        names: Vec<Emulated>,
        /// What they are made of.
        #[command(flatten)]
        make: Make,
    },
    /// Lists the hosts, what they are made of and what they offer.
    List {
        /// What they are made of.
        #[command(flatten)]
        make: Make,
    },
    /// Gives an interactive shell on a host.
    Shell {
        /// The host.
        #[arg(value_enum)]
        name: Emulated,
        /// What it is made of.
        #[command(flatten)]
        make: Make,
    },
    /// Runs a command on a host; its output and its status become this command's.
    Run {
        /// The host.
        #[arg(value_enum)]
        name: Emulated,
        /// What it is made of.
        #[command(flatten)]
        make: Make,
        /// The command: vmm, or one of busybox's.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

/// Flags of `fuzz`.
#[derive(Debug, Args)]
pub struct Fuzz {
    /// What to do.
    #[command(subcommand)]
    pub action: FuzzAction,
}

/// What `fuzz` does.
#[derive(Debug, Subcommand)]
pub enum FuzzAction {
    /// Lists the targets.
    List,
    /// Fuzzes a target, or all one after the other.
    Run {
        /// A target's name, or all.
        target: String,
        /// How long, each target: 30s, 10m. A minute, if neither this nor --runs is given.
        #[arg(long, value_name = "TIME")]
        time: Option<String>,
        /// How many executions at most, each process.
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        runs: Option<u64>,
        /// How many processes side by side.
        #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
        jobs: u16,
        /// Leaves AddressSanitizer out: several times as fast, and blind to what unsafe code does.
        #[arg(long)]
        no_asan: bool,
        /// Hunts with the stable compiler, without coverage as a guide.
        #[arg(long)]
        stable: bool,
        /// Where chance begins; 0 is anywhere.
        #[arg(long, value_name = "N", default_value_t = 0)]
        seed: u32,
    },
    /// Shows an input as a script, what each operation did, and the stack of a panic.
    Repro {
        /// A finding, an input of a corpus, or a script.
        file: PathBuf,
        /// Whose input it is, if it lies in no target's directory.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
    },
    /// Shortens an input by leaving out and simplifying operations, as long as it breaks the same law in
    /// the same place.
    Min {
        /// A finding or a script.
        file: PathBuf,
        /// Whose input it is, if it lies in no target's directory.
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// Where the short one goes; beside it, ending in .min, if not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Plays a regression: its status is 1 if that is back, with what is wrong on standard output.
    #[command(hide = true)]
    Play {
        /// A regression.
        file: PathBuf,
    },
    /// Makes a corpus as small as it can be without losing what it reaches.
    Cmin {
        /// A target's name, or all.
        target: String,
        /// As of `run`.
        #[arg(long)]
        stable: bool,
    },
    /// Tells which lines and regions a corpus reaches, and writes an HTML page.
    Cover {
        /// A target's name, or all.
        target: String,
    },
    /// Measures executions per second of processor time, with and without AddressSanitizer.
    Speed {
        /// Names of targets, or all.
        #[arg(required = true, value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Runs cases under KVM, and makes inputs of what their guests do to devices.
    Record {
        /// Which, as filters of `cargo xtask test`; all that this host can run if there is none.
        #[arg(value_name = "FILTER")]
        filters: Vec<String>,
        /// Takes a recording of `vmm run --trace` instead; may be given more than once.
        #[arg(long, value_name = "FILE", conflicts_with = "filters")]
        file: Vec<PathBuf>,
    },
    /// Hunts from a target's seeds alone, and fails it if it reaches fewer lines than its floor.
    Floors {
        /// A target's name, or all.
        target: String,
        /// How many executions each.
        #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
        runs: u64,
        /// So much processor time each, in the place of --runs.
        #[arg(long, value_name = "TIME", conflicts_with = "runs")]
        time: Option<String>,
        /// How many targets side by side.
        #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
        jobs: u16,
        /// Where chance begins; 0 is anywhere.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u32,
        /// As of `run`.
        #[arg(long)]
        stable: bool,
        /// Begins with nothing, and not with the target's seeds.
        #[arg(long)]
        no_seeds: bool,
    },
    /// Has guests do scripts with real instructions under KVM, and holds what comes of it against the
    /// board alone.
    Direct {
        /// A target's name, or all; those whose inputs are no scripts are left out.
        #[arg(default_value = "all")]
        target: String,
        /// How many scripts are drawn for each target, and taken from its corpus at most.
        #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
        runs: u16,
        /// Where chance begins.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// This script instead.
        #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "seed"])]
        script: Option<PathBuf>,
        /// Uses a VMM that is wrong on purpose in this way.
        #[arg(long, value_name = "FLAW")]
        sabotage: Option<String>,
    },
    /// Groups findings by cause, and writes a regression for each.
    Triage,
    /// Plants known flaws, one at a time, and tells which the fuzzers find from nothing.
    Planted {
        /// Names of flaws; all if none is given.
        names: Vec<String>,
        /// How many hunts side by side.
        #[arg(long, short, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
        jobs: u16,
        /// How much processor time each gets.
        #[arg(long, value_name = "TIME", default_value = "60s")]
        budget: String,
        /// Where chance begins; 0 is anywhere.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u32,
        /// As of `run`.
        #[arg(long)]
        stable: bool,
        /// Writes a JSON report to this file.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Writes a target as OSS-Fuzz and ClusterFuzzLite expect it: binary, seeds, dictionary, options.
    Export {
        /// A target's name, or all.
        target: String,
        /// Where to; target/fuzz-export if not given.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// OSS-Fuzz's word: address, coverage or none.
        #[arg(long, value_name = "NAME", default_value = "address")]
        sanitizer: String,
    },
    /// Fuzzes everything for as long as it may, and writes fuzz/soak/status.html.
    Soak {
        /// How long; until it is stopped, if not given.
        #[arg(long, value_name = "N")]
        hours: Option<f64>,
        /// How long a target has in one piece.
        #[arg(long, value_name = "TIME", default_value = "60s")]
        slice: String,
        /// As of `run`.
        #[arg(long)]
        stable: bool,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        Xtask::command().debug_assert();
    }

    #[test]
    fn wrong_flags_are_refused() {
        for (line, good) in [
            ("test", true),
            ("test apic tsc --require kvm -j 4", true),
            ("test --exact apic/ipi --fail-fast", true),
            ("test --exact", false),
            ("test --jobs 0", false),
            ("test --host kvm,kvm", true),
            ("test --host kvm,", false),
            ("test --host amd", true),
            ("test --host amd,intel --kvm-param ept=0 --deterministic", true),
            ("test --host arm", false),
            ("kut", false),
            ("kut --images d", true),
            ("kut --images d --host amd,intel --kvm-param npt=0 tag:vmx --all", true),
            ("host setup", true),
            ("host setup amd intel", true),
            ("host setup kvm", false),
            ("host shell intel", true),
            ("host run amd -- vmm run --help", true),
            ("host run amd --device iommu,e1000e:vfio --device edu -- ls", true),
            ("host run amd", false),
            ("test --fail-fast --keep-going", false),
            ("ci --require kvm", true),
            ("doctor", true),
            ("payloads --check", true),
            ("coverage-map", true),
            ("coverage-map --json a b --json c --out d", true),
            ("coverage-map --check", true),
            ("coverage-map --check --json a", false),
            ("coverage-map --json", false),
            ("fuzz list", true),
            ("fuzz run uart --runs 1000 --jobs 2 --no-asan", true),
            ("fuzz run uart --runs 0", false),
            ("fuzz run", false),
            ("fuzz repro a/b --target uart", true),
            ("fuzz min a/b --out c", true),
            ("fuzz planted uart-scratch-kept --jobs 2 --budget 10s --json x", true),
            ("fuzz direct", true),
            ("fuzz direct uart --runs 3 --seed 7 --sabotage port-read-bit", true),
            ("fuzz direct --script a/b", true),
            ("fuzz direct --script a/b --seed 1", false),
            ("fuzz direct --runs 0", false),
            ("fuzz soak --hours 0.5 --slice 10s", true),
            ("fuzz export all --out d --sanitizer none", true),
            ("fuzz", false),
            ("", false),
            ("tset", false),
        ] {
            let words = ["cargo xtask"].into_iter().chain(line.split_whitespace());
            assert_eq!(Xtask::try_parse_from(words).is_ok(), good, "{line}");
        }
    }
}
