//! What `cargo xtask fuzz` runs in a process of its own, because an input may take the process along: shows,
//! judges and shortens inputs, and hunts without libFuzzer. One word a command; `USAGE` has them.
//!
//! Built with the feature `planted`, it has the flaw that the environment names.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use fuzz::generators;
use fuzz::judge::{self, Finding};
use fuzz::minimise;
use fuzz::oracles::Restores;
use fuzz::regressions;
use fuzz::stable::{self, Plan};
use fuzz::targets::{self, Target};
use vmm::script::replay::Player;
use vmm::script::{Script, parse};

const USAGE: &str = "fuzz-tool list | flaws | words TARGET | seeds TARGET DIR | show TARGET FILE | \
    check TARGET TIMES FILE... | min TARGET FILE OUT MOST | play FILE | script TARGET FILE OUT | hunt TARGET CORPUS ARTIFACTS RUNS SECONDS SEED | \
    run TARGET DIR... | cmin TARGET FROM TO; TARGET may be - for a script";

/// Why nothing was done; status 2.
type Wrong = String;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match command(&words) {
        Ok(status) => status,
        Err(wrong) => {
            eprintln!("fuzz-tool: {wrong}");
            ExitCode::from(2)
        }
    }
}

fn command(words: &[&str]) -> Result<ExitCode, Wrong> {
    let io = |e: io::Error| e.to_string();
    match words {
        ["list"] => {
            for target in targets::ALL {
                println!("{}\t{}\t{}", target.name, target.board().is_some(), target.about);
            }
        }
        ["flaws"] => flaws()?,
        ["words", name] => print!("{}", dictionary(named(name)?)),
        ["seeds", name, dir] => {
            fs::create_dir_all(dir).map_err(io)?;
            for seed in (named(name)?.seeds)() {
                put(dir, &seed)?;
            }
        }
        ["show", target, file] => return show(target, file),
        ["check", target, times, files @ ..] => {
            judge::listen(false);
            for file in files {
                check(target, number(times)?, file)?;
            }
        }
        ["play", file] => {
            if let Err(back) = regressions::play(Path::new(file)) {
                println!("{}", back.what);
                return Ok(ExitCode::FAILURE);
            }
        }
        ["script", target, file, out] => journal(named(target)?, file, out)?,
        ["min", target, file, out, most] => return min(target, file, out, number(most)?),
        ["hunt", target, corpus, artifacts, runs, seconds, seed] => {
            judge::listen(false);
            let plan = Plan {
                corpus: corpus.into(),
                artifacts: artifacts.into(),
                runs: number(runs)?,
                time: Duration::from_secs(number(seconds)?),
                seed: number(seed)?,
            };
            let (runs, found) = stable::hunt(named(target)?, &plan).map_err(io)?;
            eprintln!("stat::number_of_executed_units: {runs}");
            return Ok(ExitCode::from(if found.is_some() { 77 } else { 0 }));
        }
        ["run", target, dirs @ ..] => {
            judge::listen(false);
            let target = named(target)?;
            let mut ran = 0;
            for dir in dirs {
                for (_, bytes) in
                    stable::files(Path::new(dir)).map_err(|e| format!("{dir}: {e}"))?
                {
                    // What breaks a law has covered what it has.
                    judge::input(target, &bytes);
                    ran += 1;
                }
            }
            println!("{ran}");
        }
        ["cmin", target, from, to] => {
            judge::listen(false);
            let inputs = stable::files(Path::new(from)).map_err(|e| format!("{from}: {e}"))?;
            let (before, least) = (inputs.len(), stable::minimal(named(target)?, inputs));
            fs::create_dir_all(to).map_err(io)?;
            for (_, bytes) in &least {
                put(to, bytes)?;
            }
            println!("{before}\t{}", least.len());
        }
        _ => return Err(USAGE.to_owned()),
    }
    Ok(ExitCode::SUCCESS)
}

fn number(word: &str) -> Result<u64, Wrong> {
    word.parse().map_err(|_| format!("`{word}` is no number; {USAGE}"))
}

fn named(name: &str) -> Result<&'static Target, Wrong> {
    targets::named(name).ok_or_else(|| format!("there is no target `{name}`"))
}

#[cfg(feature = "planted")]
fn flaws() -> Result<(), Wrong> {
    for flaw in vmm::planted::Flaw::ALL {
        println!("{}\t{}\t{}", flaw.name(), flaw.target(), flaw.what());
    }
    Ok(())
}

#[cfg(not(feature = "planted"))]
fn flaws() -> Result<(), Wrong> {
    Err("this build has no flaws: it lacks the feature `planted`".to_owned())
}

/// The words of a target in libFuzzer's form.
fn dictionary(target: &Target) -> String {
    let mut text = String::new();
    for word in target.words.iter().filter(|word| !word.is_empty()).collect::<BTreeSet<_>>() {
        let escaped: String = word
            .iter()
            .map(|&byte| match byte {
                b'"' | b'\\' => format!("\\{}", char::from(byte)),
                b' '..=b'~' => char::from(byte).to_string(),
                _ => format!("\\x{byte:02x}"),
            })
            .collect();
        text += &format!("\"{escaped}\"\n");
    }
    text
}

/// An input, as a thing to be judged.
enum Input {
    Script(Script),
    Bytes(&'static Target, Vec<u8>),
}

fn load(target: &str, file: &str) -> Result<Input, Wrong> {
    let bytes = fs::read(file).map_err(|e| format!("input {file} cannot be read: {e}"))?;
    let target = if target == "-" { None } else { Some(named(target)?) };
    match target {
        Some(target) if target.board().is_none() => Ok(Input::Bytes(target, bytes)),
        Some(target) if !bytes.starts_with(b"# exitlab") => {
            let board = target.board().ok_or("a target without a board")?;
            Ok(Input::Script(generators::script(&bytes, &board).script))
        }
        _ => parse(&bytes).map(Input::Script).map_err(|e| format!("script {file}, {e}")),
    }
}

impl Input {
    /// What it breaks: asked as the fuzzer asks, and then with a save after each operation.
    fn judge(&self) -> Option<(Restores, Finding)> {
        let both = [Restores::Eight, Restores::Each];
        match self {
            Input::Script(script) => {
                let board = targets::board(script.board.clone());
                both.into_iter().find_map(|r| Some((r, judge::script(script, &board, r)?)))
            }
            Input::Bytes(target, bytes) => Some((Restores::Eight, judge::input(target, bytes)?)),
        }
    }

    fn ops(&self) -> usize {
        match self {
            Input::Script(script) => script.steps.len(),
            Input::Bytes(_, bytes) => bytes.len(),
        }
    }
}

/// A line of `ok`, or the cause, the step, how many operations there are, and how often it was found.
fn check(target: &str, times: u64, file: &str) -> Result<(), Wrong> {
    let input = load(target, file)?;
    let Some((_, first)) = input.judge() else {
        println!("{file}\tok");
        return Ok(());
    };
    let again = (1..times).filter(|_| input.judge().is_some_and(|(_, f)| f.cause == first.cause));
    let found = 1 + again.count();
    let (c, step) = (&first.cause, first.step.unwrap_or(0));
    println!("{file}\t{}\t{}\t{}\t{step}\t{}\t{found}", c.device, c.law, c.what, input.ops());
    Ok(())
}

/// Writes the script of an input operation by operation, each before it is done: what is there is right even
/// if one of them does not end.
fn journal(target: &Target, file: &str, out: &str) -> Result<(), Wrong> {
    let bytes = fs::read(file).map_err(|e| format!("input {file} cannot be read: {e}"))?;
    let board = target.board().ok_or("inputs of this target are no scripts")?;
    let mut to = fs::File::create(out).map_err(|e| format!("{out} cannot be written: {e}"))?;
    write!(to, "{}", Script::new(board.spec.clone(), [])).map_err(|e| format!("{out}: {e}"))?;
    generators::journal(move |op| {
        // What is lost here is found missing when the script is played.
        let _ = writeln!(to, "{op}");
    });
    drop(generators::script(&bytes, &board));
    Ok(())
}

fn min(target: &str, file: &str, out: &str, most: u64) -> Result<ExitCode, Wrong> {
    judge::listen(false);
    let (input, most) = (load(target, file)?, usize::try_from(most).unwrap_or(usize::MAX));
    let Some((restores, found)) = input.judge() else {
        return Err(format!(
            "input {file} breaks no law in this build; nothing is left to shorten"
        ));
    };
    let least = match &input {
        Input::Script(script) => {
            let board = targets::board(script.board.clone());
            let shows = |script: &Script| {
                judge::script(script, &board, restores).is_some_and(|f| f.cause == found.cause)
            };
            minimise::simplify(script, most, shows).to_string().into_bytes()
        }
        Input::Bytes(target, bytes) => minimise::input(target, bytes, most, |bytes| {
            judge::input(target, bytes).is_some_and(|f| f.cause == found.cause)
        }),
    };
    fs::write(out, &least).map_err(|e| format!("{out} cannot be written: {e}"))?;
    check(target, 1, out)?;
    Ok(ExitCode::SUCCESS)
}

fn show(target: &str, file: &str) -> Result<ExitCode, Wrong> {
    let input = load(target, file)?;
    let mut out = io::stdout();
    // A reader that goes away ends the output, not the judgement.
    let mut tell = |text: String| drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
    match &input {
        Input::Script(script) => {
            tell(format!("{script}\n"));
            let board = targets::board(script.board.clone());
            let mut player = Player::new(&script.board, board.build).map_err(|e| e.to_string())?;
            judge::listen(true);
            for (at, step) in script.steps.iter().enumerate() {
                // Before it is done: it may not end.
                tell(format!("{:4}  {}", at + 1, step.op));
                let step = std::panic::AssertUnwindSafe(|| player.step(&step.op));
                let Ok(outcome) = std::panic::catch_unwind(step) else {
                    tell("  panics\n".to_owned());
                    break;
                };
                tell(format!(" -> {}\n", outcome.answer));
                outcome.effects.iter().for_each(|effect| tell(format!("        {effect}\n")));
            }
        }
        Input::Bytes(target, bytes) => {
            let made = target.made(bytes).unwrap_or_default();
            for (at, line) in made.chunks(16).enumerate() {
                let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
                let shown = |&b: &u8| if (b' '..=b'~').contains(&b) { char::from(b) } else { '.' };
                let text: String = line.iter().map(shown).collect();
                tell(format!("{:4x}  {:47}  {text}\n", at * 16, hex.join(" ")));
            }
        }
    }
    judge::listen(true);
    let Some((_, found)) = input.judge() else {
        tell("\nno law is broken\n".to_owned());
        return Ok(ExitCode::SUCCESS);
    };
    let message = found.message.lines().next().unwrap_or("").to_owned();
    tell(format!("\n{message}\ncause: {}\n", found.cause));
    if !found.stack.is_empty() {
        tell(format!("stack:\n{}", ours(&found.stack)));
    }
    Ok(ExitCode::FAILURE)
}

/// Of a stack, the frames of this workspace.
fn ours(stack: &str) -> String {
    let lines: Vec<&str> = stack.lines().collect();
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        let name = line.trim_start().split_once(": ").map_or("", |(_, name)| name);
        let is_ours = ["vmm::", "fuzz::", "testcases::", "<vmm::", "<fuzz::", "<testcases::"];
        if !is_ours.iter().any(|start| name.starts_with(start)) || name.starts_with("fuzz::judge") {
            continue;
        }
        let place = lines.get(at + 1).map_or("", |next| next.trim());
        text += &format!("  {name}\n    {}\n", place.strip_prefix("at ").unwrap_or(place));
    }
    text
}

fn put(dir: &str, input: &[u8]) -> Result<bool, String> {
    stable::put(Path::new(dir), input).map_err(|(path, e)| format!("{}: {e}", path.display()))
}
