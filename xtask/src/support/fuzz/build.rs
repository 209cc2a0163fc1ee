//! Builds of the fuzzers: what libFuzzer's instrumentation takes is a handful of compiler flags, so no
//! cargo-fuzz is needed, but a nightly compiler.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use testcases::process::{self, Ended};

use super::{Shop, cannot};
use crate::support::out::complain;
use crate::support::{Failure, cargo};

/// The triple that is built for: with one named, cargo does not put the flags on build scripts.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// A first build on two slow cores fits.
const LIMIT: Duration = Duration::from_secs(3600);

/// libFuzzer's view of the code: edges counted in place, and a table of them. It is told nothing of comparisons,
/// which takes a fifth of the time: inputs are records that generators read, or texts whose words the targets
/// name, so the other side of a comparison is hardly ever what is to be put into one.
const LIBFUZZER: [&str; 4] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=3",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
];

/// What `fuzz::watch` stands before: where libFuzzer hears of the counters.
const WRAPPED: [&str; 2] = ["8bit_counters_init", "pcs_init"];

/// What AddressSanitizer is not to look at: who makes and judges inputs. It has no unsafe code, and what
/// it reads and writes is twice as much as what a chip does.
const UNCHECKED: [&str; 3] = [
    "-Cllvm-args=-asan-instrument-reads=0",
    "-Cllvm-args=-asan-instrument-writes=0",
    "-Cllvm-args=-asan-instrument-atomics=0",
];

/// What it looks at: the devices, and what reads bytes. Each counter costs every execution a little, and
/// what the generators do is not what an input is to be kept for.
const WATCHED: [&str; 10] = [
    "vmm",
    "testcases",
    "payload-abi",
    "goblin",
    "scroll",
    "toml",
    "toml_parser",
    "winnow",
    "postcard",
    "cobs",
];

/// What is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// libFuzzer with AddressSanitizer.
    Asan,
    /// libFuzzer alone.
    Plain,
    /// libFuzzer, and a device or a parser that has a flaw.
    Planted,
    /// The tool, with the stable compiler.
    Tool,
    /// The tool with AddressSanitizer, for findings that nothing else sees.
    ToolAsan,
    /// The tool with flaws.
    ToolPlanted,
    /// The tool with the compiler's counters of regions.
    Cover,
    /// libFuzzer with the compiler's counters of regions: what OSS-Fuzz builds coverage reports from.
    Profile,
}

impl Flavour {
    /// Whether it takes a nightly compiler.
    pub fn is_nightly(self) -> bool {
        !matches!(self, Flavour::Tool | Flavour::ToolPlanted | Flavour::Cover)
    }

    fn directory(self) -> &'static str {
        match self {
            Flavour::Asan => "target/fuzz-asan",
            Flavour::Plain => "target/fuzz",
            Flavour::Planted => "target/fuzz-planted",
            Flavour::Tool => "target/fuzz-tool",
            Flavour::ToolAsan => "target/fuzz-tool-asan",
            Flavour::ToolPlanted => "target/fuzz-tool-planted",
            Flavour::Cover => "target/fuzz-cover",
            Flavour::Profile => "target/fuzz-profile",
        }
    }

    /// Flags for every package.
    fn flags(self) -> &'static str {
        match self {
            // The devices have no unsafe code, so what the library checks of its callers' is never wrong,
            // and no pointer to a local variable leaves its bounds. A check of a pointer is a call: as
            // code of its own it would be edges and comparisons to libFuzzer, twice as many as there are.
            Flavour::Asan => {
                "-Cdebug-assertions -Zub-checks=no --cfg fuzzing -Zsanitizer=address \
                 -Cllvm-args=-asan-instrumentation-with-call-threshold=0 -Cllvm-args=-asan-stack=0"
            }
            Flavour::Plain | Flavour::Planted => "-Cdebug-assertions -Zub-checks=no --cfg fuzzing",
            Flavour::Tool | Flavour::ToolPlanted => "-Cdebug-assertions",
            Flavour::ToolAsan => "-Cdebug-assertions -Zsanitizer=address",
            Flavour::Cover | Flavour::Profile => {
                "-Cdebug-assertions -Cinstrument-coverage --cfg fuzzing"
            }
        }
    }

    /// Whether libFuzzer watches what it runs.
    fn is_watched(self) -> bool {
        matches!(self, Flavour::Asan | Flavour::Plain | Flavour::Planted)
    }

    fn features(self) -> &'static str {
        match self {
            Flavour::Asan | Flavour::Plain | Flavour::Profile => "libfuzzer",
            Flavour::Planted => "libfuzzer,planted",
            Flavour::Tool | Flavour::ToolAsan | Flavour::Cover => "",
            Flavour::ToolPlanted => "planted",
        }
    }
}

/// How a nightly cargo is started.
#[derive(Clone, Debug)]
pub struct Nightly(Vec<OsString>);

impl Nightly {
    /// The one that runs us, if it is one; or rustup's.
    ///
    /// # Errors
    ///
    /// There is none: why, and what to install.
    pub fn find() -> Result<Nightly, String> {
        let is_nightly = |words: &[OsString]| {
            let mut command = command_of(words);
            command.arg("--version").stdin(Stdio::null());
            match command.output() {
                Ok(out) if out.status.success() => {
                    String::from_utf8_lossy(&out.stdout).contains("nightly")
                }
                _ => false,
            }
        };
        let own = vec![cargo()];
        let rustups = ["rustup", "run", "nightly", "cargo"].map(OsString::from).to_vec();
        [own, rustups].into_iter().find(|words| is_nightly(words)).map(Nightly).ok_or_else(|| {
            "there is no nightly compiler, which libFuzzer's instrumentation takes \
             (`rustup toolchain install nightly --profile minimal` installs one)"
                .to_owned()
        })
    }
}

fn command_of(words: &[OsString]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    // What one cargo tells another is about its own toolchain.
    if words.len() > 1 {
        for name in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN", "RUSTC_WRAPPER"] {
            command.env_remove(name);
        }
    }
    command
}

/// Builds a program of the package `fuzz`, and returns where it is. Its name is a target's, `fuzz-any`
/// (every target in one), or `fuzz-tool`.
///
/// # Errors
///
/// There is no nightly compiler for what takes one, or it does not build.
pub fn build(shop: Shop<'_>, flavour: Flavour, program: &str) -> Result<PathBuf, Failure> {
    let words = match flavour.is_nightly() {
        true => Nightly::find().map_err(Failure::input)?.0,
        false => vec![cargo()],
    };
    complain(format_args!("building {program} ({})", flavour.directory()));
    let mut command = command_of(&words);
    command.args(["build", "--quiet", "--release", "--package", "fuzz", "--bin", program]);
    command.args(["--target", TRIPLE, "--target-dir", flavour.directory()]);
    if !flavour.features().is_empty() {
        command.args(["--features", flavour.features()]);
    }
    if flavour.is_watched() {
        command.arg("-Zprofile-rustflags");
        let mut rustflags = |package: &str, flags: &[&str]| {
            let flags = flags.iter().map(|flag| format!("{flag:?}")).collect::<Vec<_>>().join(",");
            command.arg("--config");
            command.arg(format!("profile.release.package.{package}.rustflags=[{flags}]"));
        };
        WATCHED.iter().for_each(|package| rustflags(package, &LIBFUZZER));
        if flavour == Flavour::Asan {
            rustflags("fuzz", &UNCHECKED);
        }
    }
    let mut flags = flavour.flags().to_owned();
    if flavour.is_watched() {
        flags += " --cfg watched";
        for name in WRAPPED {
            flags += &format!(" -Clink-arg=-Wl,--wrap=__sanitizer_cov_{name}");
        }
    }
    command.current_dir(shop.root).env("RUSTFLAGS", flags);
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    // libFuzzer itself is not what is looked at, and half as fast with checks of its own.
    let mut flags = std::env::var_os("CXXFLAGS").unwrap_or_default();
    flags.push(" -fno-sanitize=all");
    command.env("CXXFLAGS", flags);
    // To link a fuzzer over and over is not worth what it gains; to build a package in one piece is.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1");
    match process::run_inherited(&mut command, LIMIT, shop.cancel) {
        Ended::Exited(0) => {}
        Ended::Cancelled => return Err(Failure::stopped()),
        ended => {
            return Err(Failure::bad(format!("{program} ({}): {ended}", flavour.directory())));
        }
    }
    Ok(shop.root.join(flavour.directory()).join(TRIPLE).join("release").join(program))
}

/// What hunts: libFuzzer, or the tool where no nightly compiler is.
#[derive(Clone, Debug)]
pub enum Hunter {
    /// A binary of libFuzzer.
    LibFuzzer(PathBuf),
    /// The tool.
    Stable(PathBuf),
}

/// What hunts for findings in `program`; without a nightly compiler, or where `stable` asks for it, the
/// tool. Tells what is lost then.
///
/// # Errors
///
/// It does not build.
pub fn hunter(
    shop: Shop<'_>,
    flavour: Flavour,
    program: &str,
    stable: bool,
) -> Result<Hunter, Failure> {
    let why = match (stable, Nightly::find()) {
        (false, Ok(_)) => return build(shop, flavour, program).map(Hunter::LibFuzzer),
        (true, _) => "--stable".to_owned(),
        (false, Err(why)) => why,
    };
    complain(format_args!(
        "{why}: hunting with the stable compiler. Lost are coverage of the code as a guide (inputs are kept \
         by what the board answers), AddressSanitizer and two thirds of the speed"
    ));
    let tool = if flavour == Flavour::Planted { Flavour::ToolPlanted } else { Flavour::Tool };
    build(shop, tool, "fuzz-tool").map(Hunter::Stable)
}

/// Makes a directory, or empties it.
///
/// # Errors
///
/// It cannot be emptied or made.
pub fn empty(path: PathBuf) -> Result<PathBuf, Failure> {
    if path.exists() {
        std::fs::remove_dir_all(&path).map_err(cannot("empty the directory", &path))?;
    }
    directory(path)
}

/// Makes a directory, with those it lies in.
///
/// # Errors
///
/// It cannot be made.
pub fn directory(path: PathBuf) -> Result<PathBuf, Failure> {
    std::fs::create_dir_all(&path).map_err(cannot("make the directory", &path))?;
    Ok(path)
}
