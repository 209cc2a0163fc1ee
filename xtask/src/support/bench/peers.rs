//! Other VMMs: where they are, how they are told to run the guests, and what they take.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use benches::peers::Guest;
use benches::start::Subject;
use benches::steps;
use hosts::fetch::{Fetcher, Own};
use payload_abi::exits::COLD;
use testcases::nearest;

use super::exact::Spread;
use super::start::{self, LIMIT, Row, subject};
use crate::support::emulated::CACHE;
use crate::support::fetching::Bar;
use crate::support::out::complain;
use crate::support::{Failure, Out, Outcome, cargo};

/// Where alioth is installed, below the workspace, and of which version it is.
const TOOLS: &str = "target/tools";
const ALIOTH: &str = "0.12.0";

/// A VMM that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Qemu,
    Kvmtool,
    Alioth,
}

impl Known {
    const ALL: [Known; 3] = [Known::Qemu, Known::Kvmtool, Known::Alioth];

    fn name(self) -> &'static str {
        match self {
            Known::Qemu => "qemu",
            Known::Kvmtool => "kvmtool",
            Known::Alioth => "alioth",
        }
    }

    fn of(name: &str) -> Option<Known> {
        Known::ALL.into_iter().find(|known| known.name() == name)
    }

    /// It, at `program`, with as few devices as it lets one have.
    fn subject(self, program: PathBuf) -> Subject {
        let words = match self {
            // The machine without firmware for PC hardware, which would start first.
            Known::Qemu => {
                "-M microvm -accel kvm -cpu host -m 256 -smp 1 -nodefaults -no-user-config -display none \
                 -serial stdio -kernel {elf}"
            }
            Known::Kvmtool => {
                "run --console serial --cpus 1 --mem 256 --network mode=none --kernel {flat}"
            }
            Known::Alioth => "boot --cpu count=1 --memory size=256M --pvh {elf}",
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        // alioth's serial port gives up without a terminal.
        Subject { terminal: self == Known::Alioth, ..subject(self.name(), program, &words) }
    }
}

/// What the user wants measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    name: String,
    /// It was asked for: what cannot be measured of it is a failure.
    named: bool,
    /// Where it is and how it is started, if the user says so.
    own: Option<Subject>,
}

/// What to measure, of `--peers` and `--peer`.
///
/// # Errors
///
/// A name is unknown, a path is not there, or it is not said how a VMM that nobody knows is started.
pub fn choose(names: &[String], own: &[String]) -> Result<Vec<Wanted>, Failure> {
    let mut chosen: Vec<Wanted> = Vec::new();
    for text in own {
        let subject = given(text)?;
        if chosen.iter().any(|wanted| wanted.name == subject.name) {
            return Err(Failure::input(format!("--peer {text}: {} is given twice", subject.name)));
        }
        chosen.push(Wanted { name: subject.name.clone(), named: true, own: Some(subject) });
    }
    for name in names {
        if chosen.iter().any(|wanted| wanted.name == *name) {
            continue;
        }
        if Known::of(name).is_none() {
            let all = Known::ALL.map(Known::name);
            return Err(Failure::input(format!(
                "no peer is called `{name}`{}; known are {}, and `--peer '{name}=PATH OPTIONS {{elf}}'` says how to \
                 start another one",
                nearest::hint(name, all),
                all.join(", ")
            )));
        }
        chosen.push(Wanted { name: name.clone(), named: true, own: None });
    }
    if chosen.is_empty() {
        let one = |known: Known| Wanted { name: known.name().into(), named: false, own: None };
        chosen = Known::ALL.map(one).to_vec();
    }
    Ok(chosen)
}

/// One that the user gives, as NAME=PATH or as NAME=PATH OPTIONS.
fn given(text: &str) -> Result<Subject, Failure> {
    let bad = |why: String| Failure::input(format!("--peer {text}: {why}"));
    let (name, command) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| bad("it is NAME=PATH, as in qemu=/usr/bin/qemu-system-x86_64".to_owned()))?;
    if [start::OURS, start::BARE, start::NO_CPUID].contains(&name) {
        return Err(bad("that is what peers are held against; give it another name".to_owned()));
    }
    let known = Known::of(name);
    let has_guest = command.contains("{elf}") || command.contains("{flat}");
    let (path, words) = match (has_guest, known) {
        (true, _) => {
            let mut words = command.split_whitespace();
            (words.next().unwrap_or_default(), words.collect::<Vec<_>>())
        }
        (false, Some(_)) => (command, Vec::new()),
        (false, None) => {
            return Err(bad(format!(
                "how {name} is started is not known: give its options, too, with {{elf}} for an ELF that is \
                 entered by PVH or multiboot, or {{flat}} for a flat image for 1000:0000 in real mode; for 256 MiB \
                 of memory, one vCPU, and the first serial port on standard output"
            )));
        }
    };
    let program = PathBuf::from(path);
    if !program.is_file() {
        return Err(bad(format!("there is no file `{path}`; give the path of the program")));
    }
    Ok(match (has_guest, known) {
        (false, Some(known)) => known.subject(program),
        _ => subject(name, program, &words),
    })
}

/// Those that are there, or can be had, and why the others are not.
type Found = (Vec<Subject>, Vec<(String, String)>);

/// Finds them. What was asked for by name is fetched or built, where that can be done.
///
/// # Errors
///
/// The user wants to stop.
pub fn find(chosen: &[Wanted], root: &Path, cancel: &AtomicBool) -> Result<Found, Failure> {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for wanted in chosen {
        let one = match (&wanted.own, Known::of(&wanted.name)) {
            (Some(own), _) => Ok(own.clone()),
            (None, Some(Known::Qemu)) => qemu(root, wanted.named, cancel),
            (None, Some(Known::Alioth)) => alioth(root, wanted.named),
            (None, Some(Known::Kvmtool)) => kvmtool(),
            (None, None) => Err("nobody knows it".to_owned()),
        };
        if cancel.load(Ordering::Relaxed) {
            return Err(Failure::stopped());
        }
        match one {
            Ok(subject) => found.push(subject),
            Err(why) => missing.push((wanted.name.clone(), why)),
        }
    }
    Ok((found, missing))
}

fn on_path(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    names.iter().flat_map(|name| dirs.iter().map(move |dir| dir.join(name))).find(|p| p.is_file())
}

fn qemu(root: &Path, fetch: bool, cancel: &AtomicBool) -> Result<Subject, String> {
    let own = Own { qemu: std::env::var_os("EXITLAB_QEMU").map(PathBuf::from), ..Own::default() };
    let mut bar = Bar::default();
    let fetcher = Fetcher::new(&root.join(CACHE), own, cancel, &mut bar);
    let found = if fetch { fetcher } else { fetcher.offline() }.qemu().map_err(|e| {
        let more = "; `--peers qemu` fetches it from Debian, `--peer qemu=PATH` names your own";
        format!("{e}{}", if fetch { "" } else { more })
    })?;
    let command = found.command();
    let mut qemu = Known::Qemu.subject(command.get_program().into());
    let mut words: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    for dir in &found.data {
        words.extend(["-L".into(), dir.clone().into_os_string()]);
    }
    words.append(&mut qemu.arguments);
    (qemu.arguments, qemu.env) = (words, found.env);
    Ok(qemu)
}

fn kvmtool() -> Result<Subject, String> {
    on_path(&["lkvm", "kvmtool", "lkvm-run"]).map(|path| Known::Kvmtool.subject(path)).ok_or_else(|| {
        "neither lkvm nor kvmtool is on PATH; `make` in its sources builds lkvm, and `--peer kvmtool=PATH` names it"
            .to_owned()
    })
}

fn alioth(root: &Path, install: bool) -> Result<Subject, String> {
    let tools = root.join(TOOLS);
    let own = tools.join("bin/alioth");
    if let Some(path) = on_path(&["alioth"]).or_else(|| own.is_file().then(|| own.clone())) {
        return Ok(Known::Alioth.subject(path));
    }
    let version = format!("={ALIOTH}");
    let words = ["install", "alioth-cli", "--version", &version, "--locked", "--root"];
    let again = format!("cargo {} {}", words.join(" "), tools.display());
    if !install {
        return Err(format!("not there; `--peers alioth` installs it ({again})"));
    }
    complain(format_args!("installing alioth, once: {again}"));
    let mut command = Command::new(cargo());
    command.args(words).arg(&tools).arg("--target-dir").arg(tools.join("build"));
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(Known::Alioth.subject(own)),
        Ok(status) => Err(format!("it could not be installed ({status}); `{again}` tells why")),
        Err(e) => Err(format!("cannot run cargo: {e}")),
    }
}

/// What each kind of exit takes of a VMM's own instructions, or why that is not known.
pub type Counts = Vec<[Result<Spread, String>; 3]>;

/// Where nothing is to be counted.
pub fn uncounted(rows: &[Row]) -> Counts {
    rows.iter().map(|_| [const { Err(String::new()) }; 3]).collect()
}

/// Steps each VMM through each kind of exit; none for those that did not start.
///
/// # Errors
///
/// The user wants to stop.
pub fn count(
    subjects: &[Subject],
    rows: &[Row],
    dir: &Path,
    cancel: &AtomicBool,
) -> Result<Counts, Failure> {
    let mut counts = Vec::new();
    for (subject, row) in subjects.iter().zip(rows) {
        let mut kinds = [const { Err(String::new()) }; 3];
        if row.seen.is_ok() {
            for (count, guest) in kinds.iter_mut().zip(Guest::EXITS) {
                if cancel.load(Ordering::Relaxed) {
                    return Err(Failure::stopped());
                }
                *count = stepped(subject, dir, guest);
            }
        }
        counts.push(kinds);
    }
    Ok(counts)
}

/// Steps a VMM through one kind of exit.
pub fn stepped(subject: &Subject, dir: &Path, guest: Guest) -> Result<Spread, String> {
    let (input, _terminal) = subject.input().map_err(|e| e.to_string())?;
    let log = dir.join("stderr");
    let errors = File::create(&log).map_err(|e| format!("create {}: {e}", log.display()))?;
    let command = subject.command(dir, guest);
    let taken = steps::count_to_end(&command, input, errors.into(), LIMIT);
    let taken = taken.map_err(|e| e.to_string())?;
    let counts = taken.iter().skip(COLD).map(|taken| taken.instructions).collect();
    Spread::of(counts).ok_or_else(|| format!("only {} exits were seen", taken.len()))
}

/// All of it, a line each, and who is missing.
pub fn table(rows: &[Row], counts: &Counts, missing: &[(String, String)], out: &mut Out) {
    writeln!(out, "{:12} {:>10} {:>10} {:>10}", "", "claimed", "nobody's", "MMIO");
    for (row, kinds) in rows.iter().zip(counts).filter(|(row, _)| row.seen.is_ok()) {
        let cell = |kind: &Result<Spread, String>| {
            kind.as_ref().map_or_else(|_| "-".to_owned(), Spread::to_string)
        };
        let [claimed, nobody, mmio] = kinds.each_ref().map(cell);
        writeln!(out, "{:12} {claimed:>10} {nobody:>10} {mmio:>10}", row.name);
    }
    writeln!(
        out,
        "user-space instructions of a read of one byte from a port, and of four from an address that is nobody's"
    );
    writeln!(out);
    start::table(rows, out);
    let told = failures(rows, counts, missing);
    if !told.is_empty() {
        writeln!(out, "\nnot measured:");
    }
    for (name, why) in told {
        writeln!(out, "  {name}: {why}");
    }
}

/// What could not be measured, and why.
pub fn failures(
    rows: &[Row],
    counts: &Counts,
    missing: &[(String, String)],
) -> Vec<(String, String)> {
    let mut told = missing.to_vec();
    for (row, kinds) in rows.iter().zip(counts) {
        if let Err(why) = &row.seen {
            let more = if row.name == start::OURS {
                ""
            } else {
                "; `--peer` says how to start it otherwise"
            };
            told.push((row.name.clone(), format!("{why}{more}")));
            continue;
        }
        for (kind, guest) in kinds.iter().zip(Guest::EXITS) {
            if let Err(why) = kind
                && !why.is_empty()
            {
                told.push((row.name.clone(), format!("exits of kind {}: {why}", guest.name())));
            }
        }
    }
    told
}

/// Fails if something that was asked for cannot be measured at all, or this project's own not wholly.
///
/// # Errors
///
/// As above.
pub fn outcome(
    chosen: &[Wanted],
    rows: &[Row],
    counts: &Counts,
    missing: &[(String, String)],
) -> Outcome {
    let was_named = |name: &str| chosen.iter().all(|wanted| wanted.name != name || wanted.named);
    let unmeasured = rows.iter().zip(counts).enumerate().filter(|(index, (row, kinds))| {
        let lost = kinds.iter().filter(|kind| kind.is_err()).count();
        // The bare loop and this VMM are first.
        row.seen.is_err() || lost == kinds.len() || (*index < 2 && lost > 0)
    });
    let names =
        unmeasured.map(|(_, (row, _))| &row.name).chain(missing.iter().map(|(name, _)| name));
    let names: Vec<&str> = names.map(|name| &name[..]).filter(|name| was_named(name)).collect();
    match &names[..] {
        [] => Ok(ExitCode::SUCCESS),
        names => Err(Failure::bad(format!("not measured as was asked for: {}", names.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::start::Seen;
    use super::*;

    fn chosen(names: &[&str], own: &[&str]) -> Result<Vec<Wanted>, String> {
        let owned =
            |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        choose(&owned(names), &owned(own)).map_err(|failure| {
            assert_eq!(failure.status, 2);
            failure.message
        })
    }

    #[test]
    fn peers_are_chosen_by_name_by_path_or_by_command() {
        let all = chosen(&[], &[]).expect("right");
        assert!(all.len() == 3 && all.iter().all(|wanted| !wanted.named && wanted.own.is_none()));
        let two = chosen(&["qemu", "kvmtool"], &["kvmtool=/bin/sh", "x=/bin/sh -c {elf}"])
            .expect("right");
        let names: Vec<&str> = two.iter().map(|wanted| &wanted.name[..]).collect();
        assert_eq!(names, ["kvmtool", "x", "qemu"]);
        assert!(two.iter().all(|wanted| wanted.named));
        let own = |index: usize| two[index].own.clone().expect("it is given");
        assert!(
            own(0).program == Path::new("/bin/sh") && own(0).arguments.contains(&"{flat}".into())
        );
        assert_eq!(own(1).arguments, ["-c", "{elf}"]);
        assert_eq!(two[2].own, None);
    }

    #[test]
    fn wrong_peers_are_refused_with_what_to_do() {
        for (names, own, part) in [
            (&["qmeu"][..], &[][..], "no peer is called `qmeu`; the nearest is `qemu`"),
            (&[], &["crosvm=/bin/sh"], "how crosvm is started is not known: give its options"),
            (&[], &["qemu=/no/such/qemu"], "there is no file `/no/such/qemu`"),
            (&[], &["x=/no/such/x {elf}"], "there is no file `/no/such/x`"),
            (&[], &["qemu"], "it is NAME=PATH"),
            (&[], &["=/bin/sh"], "it is NAME=PATH"),
            (&[], &["vmm=/bin/sh {elf}"], "give it another name"),
            (&[], &["qemu=/bin/sh", "qemu=/bin/sh"], "qemu is given twice"),
        ] {
            let why = chosen(names, own).expect_err("wrong");
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn only_what_was_asked_for_fails() {
        let seen = Seen { times: Vec::new(), memory: Vec::new(), ratio: None };
        let row = |name: &str, seen: Result<Seen, String>| Row { name: name.into(), seen };
        let good = || {
            let spread = Spread::of(vec![1]).expect("one");
            [Ok(spread), Ok(spread), Ok(spread)]
        };
        let mut part = good();
        part[2] = Err("it ended".into());
        let all = [row("bare loop", Ok(seen.clone())), row("vmm", Ok(seen.clone()))];
        let with = |last: Row| {
            all.iter().map(|r| row(&r.name, r.seen.clone())).chain([last]).collect::<Vec<_>>()
        };
        let named = chosen(&["alioth"], &[]).expect("right");
        let unnamed = chosen(&[], &[]).expect("right");

        let rows = with(row("alioth", Ok(seen.clone())));
        let counts = vec![good(), good(), part.clone()];
        assert!(outcome(&named, &rows, &counts, &[]).is_ok());
        assert_eq!(failures(&rows, &counts, &[]).len(), 1, "but it is told");
        assert!(outcome(&named, &rows, &vec![good(), part, good()], &[]).is_err(), "our own");

        let rows = with(row("alioth", Err("no such loader".into())));
        let counts = vec![good(), good(), [const { Err(String::new()) }; 3]];
        assert!(outcome(&unnamed, &rows, &counts, &[]).is_ok());
        let why = outcome(&named, &rows, &counts, &[]).expect_err("it was asked for").message;
        assert!(why.ends_with("asked for: alioth"), "{why}");
        let missing = [("qemu".to_owned(), "not there".to_owned())];
        assert!(outcome(&unnamed, &all, &vec![good(), good()], &missing).is_ok());
        assert!(
            outcome(&chosen(&["qemu"], &[]).expect("right"), &all, &vec![good(), good()], &missing)
                .is_err()
        );
    }
}
