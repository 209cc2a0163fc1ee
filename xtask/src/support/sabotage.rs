//! Whether cases can fail: runs them against a VMM that is wrong on purpose, in one way after another.
//!
//! A case notices a flaw if it passes on the same host without it, and does not pass with it. Each flaw
//! names the areas that should notice, and only their cases are run; the first that notices ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::Serialize;
use testcases::case::Case;
use testcases::nearest;
use testcases::program;
use testcases::runner::CaseResult;
use testcases::verdict::Outcome as Verdict;

use super::out::complain;
use super::ready::{Common, Ready};
use super::{Failure, Out, Outcome, cargo};
use crate::flags;

/// What names the flaw in the VMM's environment.
const VARIABLE: &str = "EXITLAB_SABOTAGE";

/// A way in which the VMM can be wrong, as `vmm flaws` lists it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Flaw {
    name: String,
    areas: Vec<String>,
    what: String,
}

/// A case that noticed.
#[derive(Debug, Serialize)]
struct Catch {
    host: String,
    case: String,
    outcome: &'static str,
    reason: String,
}

/// What came of a flaw.
#[derive(Debug, Serialize)]
struct Caught {
    #[serde(flatten)]
    flaw: Flaw,
    /// How many cases that pass without it ran with it.
    ran: usize,
    caught_by: Vec<Catch>,
}

/// Runs the common cases with each of the flaws named, or with all, on these hosts.
///
/// # Errors
///
/// There is no such flaw, or something cannot be built or written.
pub fn run(
    names: &[String],
    hosts: &[flags::Host],
    common: &Common<'_>,
    json: Option<(PathBuf, File)>,
    out: &mut Out,
) -> Outcome {
    let flaws = choose(list(common)?, names).map_err(Failure::input)?;
    let areas: BTreeSet<&str> = flaws.iter().flat_map(|f| f.areas.iter().map(|a| &a[..])).collect();
    let of_areas = |areas: &dyn Fn(&str) -> bool, cases: &[Case]| -> Vec<Case> {
        cases.iter().filter(|case| areas(&case.id.area)).cloned().collect()
    };
    let chosen = of_areas(&|area| areas.contains(area), common.chosen.cases);
    let runs = common.root.join("target/test-runs/sabotage");
    let mut caught: Vec<Caught> =
        flaws.into_iter().map(|flaw| Caught { flaw, ran: 0, caught_by: vec![] }).collect();
    for host in hosts {
        let mut ready = Ready::new(*host, hosts.len() > 1, common)?;
        let name = ready.place.name.clone();
        ready.set(BTreeMap::new(), runs.join("nothing").join(&name), false);
        complain(format_args!("{name}: {} cases with nothing wrong", chosen.len()));
        let sound = ready.run(&chosen, &mut ());
        let passed = |result: &&CaseResult| result.verdict.outcome == Verdict::Pass;
        let passed: BTreeSet<String> =
            sound.run.results.iter().filter(passed).map(|r| r.case.id.to_string()).collect();
        for entry in &mut caught {
            let Flaw { name: flaw, areas, .. } = &entry.flaw;
            if common.cancel.load(Ordering::Relaxed) {
                return Err(Failure::stopped());
            }
            let start = Instant::now();
            let noticing = of_areas(&|area| areas.iter().any(|a| a == area), &chosen);
            let noticing: Vec<Case> =
                noticing.into_iter().filter(|case| passed.contains(&case.id.to_string())).collect();
            if noticing.is_empty() {
                continue;
            }
            let environment = BTreeMap::from([(VARIABLE.to_string(), flaw.clone())]);
            ready.set(environment, runs.join(flaw).join(&name), true);
            let wrong = ready.run(&noticing, &mut ());
            entry.ran += wrong.run.results.len();
            let bad = wrong.run.results.iter().filter(|r| r.verdict.outcome.is_bad());
            let catches: Vec<Catch> = bad
                .map(|result| Catch {
                    host: name.clone(),
                    case: result.case.id.to_string(),
                    outcome: result.verdict.outcome.word(),
                    reason: result.verdict.reason.clone(),
                })
                .collect();
            let tells = match catches.first() {
                Some(first) => format!("{} {}: {}", first.outcome, first.case, first.reason),
                None => format!("not noticed by {} cases", noticing.len()),
            };
            let took = start.elapsed().as_secs_f64();
            complain(format_args!("{name}: {flaw}: {tells} ({took:.1}s)"));
            entry.caught_by.extend(catches);
        }
    }
    write!(out, "{}", table(&caught));
    if let Some((path, mut file)) = json {
        let cannot = |e: std::io::Error| {
            Failure::input(format!("cannot write the report {}: {e}", path.display()))
        };
        let text = serde_json::to_vec_pretty(&caught).map_err(|e| cannot(e.into()))?;
        file.write_all(&text).map_err(cannot)?;
    }
    let all = caught.iter().all(|entry| !entry.caught_by.is_empty());
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// What `vmm flaws` says.
fn list(common: &Common<'_>) -> Result<Vec<Flaw>, Failure> {
    let vmm = program::build_vmm(common.root, &cargo(), true, common.cancel);
    let vmm = vmm.map_err(Failure::bad)?;
    let output = Command::new(&vmm).arg("flaws").output();
    let shown = vmm.display();
    let output = output.map_err(|e| Failure::bad(format!("cannot start {shown}: {e}")))?;
    parse(&String::from_utf8_lossy(&output.stdout))
        .filter(|_| output.status.success())
        .ok_or_else(|| Failure::bad(format!("`{shown} flaws` lists no flaws: {}", output.status)))
}

/// Lines of a name, areas and a sentence, with tabs between.
fn parse(text: &str) -> Option<Vec<Flaw>> {
    let flaw = |line: &str| {
        let mut parts = line.split('\t');
        let (name, areas, what) = (parts.next()?, parts.next()?, parts.next()?);
        let areas = areas.split(' ').map(str::to_string).collect();
        Some(Flaw { name: name.into(), areas, what: what.into() })
    };
    text.lines().map(flaw).collect::<Option<Vec<_>>>().filter(|flaws| !flaws.is_empty())
}

/// The flaws of these names, or all.
fn choose(flaws: Vec<Flaw>, names: &[String]) -> Result<Vec<Flaw>, String> {
    if let Some(name) = names.iter().find(|name| flaws.iter().all(|f| f.name != **name)) {
        let hint = nearest::hint(name, flaws.iter().map(|f| &f.name[..]));
        let known: Vec<&str> = flaws.iter().map(|f| &f.name[..]).collect();
        return Err(format!("--sabotage: no flaw `{name}`{hint}; there are {}", known.join(", ")));
    }
    let chosen = |flaw: &Flaw| names.is_empty() || names.contains(&flaw.name);
    Ok(flaws.into_iter().filter(chosen).collect())
}

/// A line for each flaw, with who noticed, and how many there are.
fn table(caught: &[Caught]) -> String {
    let width = caught.iter().map(|entry| entry.flaw.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for entry in caught {
        let Caught { flaw, ran, caught_by } = entry;
        let by = match (&caught_by[..], ran) {
            ([], 0) => "NOT TRIED: no case of its areas passes on these hosts".to_string(),
            ([], ran) => format!("NOT NOTICED by {ran} cases"),
            (catches, _) => {
                let mut names: Vec<String> =
                    catches.iter().map(|c| format!("{} {}", c.host, c.case)).collect();
                let more = names.len().saturating_sub(4);
                names.truncate(4);
                if more > 0 {
                    names.push(format!("{more} more"));
                }
                names.join(", ")
            }
        };
        text += &format!("{:width$}  {}\n{:width$}  {by}\n", flaw.name, flaw.what, "");
    }
    let noticed = caught.iter().filter(|entry| !entry.caught_by.is_empty()).count();
    text + &format!("\n{noticed} of {} flaws were noticed\n", caught.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaws() -> Vec<Flaw> {
        parse("slot-stale\tlab tdp\tIt stays.\nmsi-lost\tapic\tIt is lost.\n").expect("flaws")
    }

    #[test]
    fn flaws_are_listed_and_chosen_by_name() {
        let all = flaws();
        assert_eq!(all[0].areas, ["lab", "tdp"]);
        assert_eq!(choose(all.clone(), &[]), Ok(all.clone()));
        assert_eq!(choose(all.clone(), &["msi-lost".into()]), Ok(vec![all[1].clone()]));
        let error = choose(all, &["msi-lots".into()]).unwrap_err();
        assert!(error.contains("msi-lost") && error.contains("slot-stale"), "{error}");
        assert_eq!(parse(""), None);
        assert_eq!(parse("one word\n"), None);
    }

    #[test]
    fn the_table_tells_who_noticed_and_who_did_not() {
        let catch = Catch {
            host: "amd".into(),
            case: "lab/slots".into(),
            outcome: "fail",
            reason: "it is there".into(),
        };
        let [stale, lost] = <[Flaw; 2]>::try_from(flaws()).expect("two");
        let caught = [
            Caught { flaw: stale, ran: 3, caught_by: vec![catch] },
            Caught { flaw: lost, ran: 7, caught_by: vec![] },
        ];
        let text = table(&caught);
        assert!(text.contains("slot-stale  It stays.\n            amd lab/slots\n"), "{text}");
        assert!(text.contains("NOT NOTICED by 7 cases"), "{text}");
        assert!(text.ends_with("\n1 of 2 flaws were noticed\n"), "{text}");
    }
}
