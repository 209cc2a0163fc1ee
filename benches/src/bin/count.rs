//! Counts the instructions of one `Machine::handle`, for each workload.
//!
//! It runs itself under valgrind's callgrind, once for a number of exits and once for twice as
//! many: what both runs have in common falls out of the difference, and what is left is one call
//! and one turn of the loop around it.

use std::hint::black_box;
use std::process::{Command, ExitCode};

use benches::{Rig, WORKLOADS, Workload};

/// Exits of the shorter run.
const EXITS: u64 = 10_000;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match &args[..] {
        [] => WORKLOADS.iter().try_for_each(report),
        [name, exits] => run(name, exits),
        _ => Err("usage: count, or count WORKLOAD EXITS (to be run under valgrind)".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("count: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What runs under valgrind.
fn run(name: &str, exits: &str) -> Result<(), String> {
    let names = || WORKLOADS.map(|w| w.name).join(", ");
    let workload = WORKLOADS.iter().find(|w| w.name == name);
    let workload = workload.ok_or_else(|| format!("no workload `{name}`; one of {}", names()))?;
    let exits: u64 = exits.parse().map_err(|e| format!("number of exits `{exits}`: {e}"))?;
    let mut rig = Rig::new();
    let entry = rig.machine.handle(&mut rig.cx, &workload.exit);
    if entry != workload.entry {
        return Err(format!("workload `{name}` is answered {entry:?}: the board has changed"));
    }
    for _ in 0..exits {
        black_box(rig.machine.handle(&mut rig.cx, black_box(&workload.exit)));
    }
    Ok(())
}

fn report(workload: &Workload) -> Result<(), String> {
    let (less, more) =
        (instructions(workload.name, EXITS)?, instructions(workload.name, 2 * EXITS)?);
    let one = (more.saturating_sub(less)) as f64 / EXITS as f64;
    println!("{:20} {one:8.1} instructions", workload.name);
    Ok(())
}

fn instructions(name: &str, exits: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| format!("this program has no path: {e}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args([name, &exits.to_string()])
        .output()
        .map_err(|e| format!("valgrind cannot be run: {e}; install it"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    // ==1234== Collected : 567890
    let count =
        text.lines().find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match count {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(format!("valgrind on `{name}` ended with {}:\n{text}", output.status)),
    }
}
