//! Scripts that guests do with real instructions under KVM: whether the board and they say the same.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fuzz::direct::{self, Difference, Prepared, Preparer, Why};
use fuzz::generators::{self, MAX_OPS};
use fuzz::minimise;
use fuzz::mutate::Rng;
use fuzz::targets::{self, Target};
use payload_abi::ExitValue;
use testcases::process::{self, Ended, Stream};
use testcases::program;
use testcases::runner::shell_line;
use vmm::script::{self, BoardSpec, Op, Script};

use super::{Shop, build, cannot};
use crate::support::out::complain;
use crate::support::{self, Failure, Out, cargo};

/// About how many a guest does in one boot: starting one costs as much as some hundred of them.
const BATCH: usize = 2000;
/// How many boots a script that differs is shortened in.
const BOOTS: usize = 150;
/// How long a guest may take: the slowest KVM needs a millisecond an operation.
const LIMIT: Duration = Duration::from_secs(120);

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// How many scripts are drawn for each target, and taken from its corpus at most.
    pub runs: usize,
    /// Where chance begins.
    pub seed: u64,
    /// The way in which the VMM is to be wrong, if it is.
    pub sabotage: Option<&'a str>,
}

/// What guests are made of.
struct Guests<'a> {
    shop: Shop<'a>,
    vmm: PathBuf,
    payload: PathBuf,
    options: Options<'a>,
}

impl<'a> Guests<'a> {
    fn new(shop: Shop<'a>, options: Options<'a>) -> Result<Guests<'a>, Failure> {
        let wrong = options.sabotage.is_some();
        let vmm = program::build_vmm(shop.root, &cargo(), wrong, shop.cancel);
        let vmm = vmm.map_err(Failure::bad)?;
        let catalog = support::payloads(shop.root)?;
        let payload = catalog.get("replay").ok_or_else(|| {
            Failure::bad(
                "there is no payload `replay` in guest-payloads/src/bin, which plays scripts",
            )
        })?;
        Ok(Guests { shop, vmm, payload: payload.path.clone(), options })
    }

    /// Has a guest do the script, and compares; the serial port's log comes with a difference.
    fn play(&self, name: &str, script: &Script) -> Result<Result<Played, Found>, Failure> {
        let dir = build::directory(self.shop.root.join("target/fuzz-direct"))?;
        let file = |end: &str| dir.join(format!("{name}.{end}"));
        let (module, trace) = (file("script"), file("trace"));
        std::fs::write(&module, script.to_string()).map_err(cannot("write the script", &module))?;
        // What an earlier run left there must not be taken for this one's.
        let _ = std::fs::remove_file(&trace);
        let mut command = Command::new(&self.vmm);
        command.args(["run", "--test", "script", "--payload"]).arg(&self.payload);
        command.arg("--module").arg(&module).arg("--trace").arg(&trace);
        command.args(["--timeout", "100s"]).args(direct::arguments(&script.board));
        if let Some(flaw) = self.options.sabotage {
            command.env("EXITLAB_SABOTAGE", flaw);
        }
        let (mut serial, mut errors) = (Vec::new(), Vec::new());
        let ended =
            process::run(
                &mut command,
                LIMIT,
                self.shop.cancel,
                &mut |stream, bytes| match stream {
                    Stream::Out => serial.extend_from_slice(bytes),
                    Stream::Err => errors.extend_from_slice(bytes),
                },
            );
        let words: Vec<String> = [command.get_program()]
            .into_iter()
            .chain(command.get_args())
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let log = || {
            let (serial, errors) = (serial.escape_ascii(), String::from_utf8_lossy(&errors));
            format!("{ended}\nserial port: {serial}\n{errors}{}", shell_line(&words))
        };
        match ended {
            Ended::Cancelled => return Err(Failure::stopped()),
            // Bad input, or the host failed: nothing was compared.
            Ended::Exited(2 | 14) | Ended::NotStarted(_) => return Err(Failure::bad(log())),
            _ => {}
        }
        let text = std::fs::read(&trace).map_err(cannot("read the recording", &trace))?;
        let recording = script::parse(&text)
            .map_err(|e| Failure::bad(format!("recording {}: {e}\n{}", trace.display(), log())))?;
        match direct::compare(script, &recording) {
            Err(difference) => Ok(Err(Found { difference, log: log() })),
            Ok(compared) => {
                let passed = ended == Ended::Exited(ExitValue::Pass.status());
                if compared.ended.is_none() && !passed {
                    return Err(Failure::bad(format!(
                        "the guest did all of {} and did not pass: {}",
                        module.display(),
                        log()
                    )));
                }
                let file = module;
                Ok(Ok(Played { ops: compared.ops, ended: compared.ended, file }))
            }
        }
    }
}

/// A script that a guest did as the board does.
struct Played {
    ops: usize,
    ended: Option<&'static str>,
    file: PathBuf,
}

/// One that it did not.
struct Found {
    difference: Difference,
    log: String,
}

/// Has guests do scripts for each target: drawn ones, and from corpora and regressions. Returns whether
/// everything was the same.
///
/// # Errors
///
/// Something cannot be built, read or started.
pub fn run(
    shop: Shop<'_>,
    targets: &[&'static Target],
    options: Options<'_>,
    out: &mut Out,
) -> Result<bool, Failure> {
    let guests = Guests::new(shop, options)?;
    let regressions = fuzz::regressions::files(&shop.regressions())
        .map_err(cannot("read the regressions in", &shop.regressions()))?;
    let mut good = true;
    for target in targets {
        if shop.stopped() {
            return Err(Failure::stopped());
        }
        let Some(board) = target.board() else { continue };
        // Targets are given other scripts each.
        let named =
            target.name.bytes().fold(0, |all: u64, byte| all.rotate_left(7) ^ u64::from(byte));
        let mut rng = Rng::new(options.seed ^ named << 32);
        let mut scripts: Vec<Vec<Op>> = Vec::new();
        for path in
            regressions.iter().filter(|path| path.extension().is_some_and(|e| e == "script"))
        {
            let script = super::script(path)?;
            // `pc` is the kind of board of the targets that are no chip's.
            if script.board.kind == board.spec.kind
                && script.board.pci.is_some() == board.spec.pci.is_some()
            {
                scripts.push(direct::ops_of(script));
            }
        }
        let corpus = shop.corpus(target.name);
        let mut inputs =
            fuzz::stable::files(&corpus).map_err(cannot("read the corpus", &corpus))?;
        for _ in 0..options.runs.min(inputs.len()) {
            let (_, bytes) = inputs.swap_remove(rng.below(inputs.len()));
            scripts.push(direct::ops_of(generators::script(&bytes, &board).script));
        }
        scripts.extend((0..options.runs).filter_map(|_| direct::drawn(target, &mut rng, MAX_OPS)));
        good &= one(&guests, target.name, &direct::board(&board), scripts, out)?;
    }
    Ok(good)
}

fn one(
    guests: &Guests<'_>,
    name: &str,
    spec: &BoardSpec,
    scripts: Vec<Vec<Op>>,
    out: &mut Out,
) -> Result<bool, Failure> {
    let homeward = direct::homeward(spec);
    let (count, mut boots, mut ops) = (scripts.len(), 0, 0);
    let (mut left_out, mut good) = ([0; Why::ALL.len()], true);
    let mut scripts = scripts.into_iter().peekable();
    while scripts.peek().is_some() {
        let mut preparer = Preparer::new(spec);
        while preparer.len() < BATCH
            && let Some(script) = scripts.next()
        {
            preparer.add(homeward.iter().cloned());
            preparer.add(script);
        }
        let prepared = preparer.finish();
        for (all, one) in left_out.iter_mut().zip(prepared.left_out) {
            *all += one;
        }
        boots += 1;
        let file = format!("{name}-{}-{boots}", guests.options.seed);
        match guests.play(&file, &prepared.script)? {
            Ok(played) => {
                ops += played.ops;
                if let Some(why) = played.ended {
                    let file = played.file.display();
                    writeln!(out, "  {file}: ended after {} operations: {why}", played.ops);
                }
            }
            Err(found) => {
                good = false;
                tell(guests, &file, prepared.script, found, out)?;
            }
        }
    }
    let left: Vec<String> = Why::ALL
        .iter()
        .zip(left_out)
        .filter(|(_, n)| *n > 0)
        .map(|(why, n)| format!("{n} {}", why.words()))
        .collect();
    let said = if good { "as on the board" } else { "NOT as on the board" };
    writeln!(
        out,
        "{:16} {count} scripts, {ops} operations in {boots} boots {said}; left out: {}",
        name,
        if left.is_empty() { "none".to_owned() } else { left.join(", ") }
    );
    Ok(good)
}

/// Says what differs, and keeps the least script that does.
fn tell(
    guests: &Guests<'_>,
    name: &str,
    mut script: Script,
    found: Found,
    out: &mut Out,
) -> Result<(), Failure> {
    if let Some(op) = found.difference.op {
        script.steps.truncate(op + 1);
    }
    let dir = build::directory(guests.shop.artifacts("direct"))?;
    let file = dir.join(format!("{name}.script"));
    let keep = |script: &Script| {
        std::fs::write(&file, script.to_string()).map_err(cannot("write the script", &file))
    };
    // Shortening takes a while, and may be stopped.
    keep(&script)?;
    complain(format_args!("{}: shortening {}", found.difference, file.display()));
    let (Found { difference, log }, note) = match shorter(guests, &script) {
        Some((least, found)) => {
            keep(&least)?;
            (found, format!("{} operations", least.steps.len()))
        }
        None => (found, format!("{} operations, which did not show it again", script.steps.len())),
    };
    let shown = file.strip_prefix(guests.shop.root).unwrap_or(&file).display();
    writeln!(out, "{difference}\n{log}\n  {note}; again: cargo xtask fuzz direct --script {shown}");
    if guests.shop.stopped() { Err(Failure::stopped()) } else { Ok(()) }
}

/// The least script that a guest does otherwise than the board, and what differs then: operations are left out
/// and made simpler, with a boot for each try. None, if not even this one shows it by itself.
fn shorter(guests: &Guests<'_>, script: &Script) -> Option<(Script, Found)> {
    let last = RefCell::new(None);
    let shows = |tried: &Script| {
        if guests.shop.stopped() {
            return false;
        }
        // A guest that ends otherwise than it was meant to is not what is looked for.
        let played = guests.play("shorter", &prepared(tried.clone()).script);
        let Ok(Err(found)) = played else { return false };
        last.replace(Some(found));
        true
    };
    if !shows(script) {
        return None;
    }
    let least = minimise::simplify(script, BOOTS, shows);
    last.into_inner().map(|found| (least, found))
}

/// A script as a guest can do it, on a PC like the board that it names.
fn prepared(script: Script) -> Prepared {
    let mut preparer = Preparer::new(&direct::board(&targets::board(script.board.clone())));
    preparer.add(direct::ops_of(script));
    preparer.finish()
}

/// Has a guest do the script in a file, on a PC like the board that it names.
/// Returns whether everything was the same.
///
/// # Errors
///
/// As [`run`], and when it is no script.
pub fn again(
    shop: Shop<'_>,
    file: &Path,
    options: Options<'_>,
    out: &mut Out,
) -> Result<bool, Failure> {
    let script = super::script(file)?;
    let prepared = prepared(script);
    for (why, n) in Why::ALL.iter().zip(prepared.left_out).filter(|(_, n)| *n > 0) {
        writeln!(out, "left out: {n} {}", why.words());
    }
    let guests = Guests::new(shop, options)?;
    match guests.play("again", &prepared.script)? {
        Ok(played) => {
            let ended = played.ended.map_or_else(String::new, |why| format!(", then: {why}"));
            writeln!(out, "{} operations as on the board{ended}", played.ops);
            Ok(true)
        }
        Err(found) => {
            writeln!(out, "{}\n{}", found.difference, found.log);
            Ok(false)
        }
    }
}
