//! The columns of the page: what became of each case on a host, or where it is to run.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::case::Case;
use crate::facts::{HostFacts, KvmFlavour, Processor};
use crate::need::{HostNeed, Met, Need};
use crate::report::json::SCHEMA;

/// What became of a case on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It passed.
    Pass,
    /// It failed, or was an error.
    Fail,
    /// It was a skip.
    Skip,
    /// It was not run yet; nothing that it says keeps it from running there.
    Runs,
}

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// What `--host` calls it.
    pub name: String,
    /// Whether the marks are of a run.
    pub ran: bool,
    /// The cases, by id; one that is not there does not run on this host.
    pub marks: BTreeMap<String, Mark>,
}

/// The hosts as the cases tell where they run. `own` are the facts of this machine, whose KVM is a
/// column if it can be used.
///
/// What an emulated host offers is only known once it has run, so on those a case counts if no need
/// of its for a kind of processor keeps it away.
pub fn planned(cases: &[Case], own: &dyn HostFacts) -> Vec<Column> {
    let mut columns = Vec::new();
    if own.kvm().is_ok() {
        let runs = |case: &Case| {
            case.spec.needs.iter().all(|need| need.check(own) == Met::Yes)
                && !stays_away(case, own.processor())
        };
        columns.push(column("kvm", cases, runs));
    }
    for (name, flavour, processor) in
        [("amd", KvmFlavour::Amd, Processor::Tcg), ("intel", KvmFlavour::Intel, Processor::Bochs)]
    {
        let runs = |case: &Case| {
            case.spec.needs.iter().all(|need| allows(need, flavour)) && !stays_away(case, processor)
        };
        columns.push(column(name, cases, runs));
    }
    columns
}

fn column(name: &str, cases: &[Case], runs: impl Fn(&Case) -> bool) -> Column {
    let marks = cases.iter().filter(|case| runs(case));
    let marks = marks.map(|case| (case.id.to_string(), Mark::Runs)).collect();
    Column { name: name.into(), ran: false, marks }
}

/// Whether the case is not to run where this executes instructions.
fn stays_away(case: &Case, processor: Processor) -> bool {
    case.spec.deviates.on(processor).is_some_and(|(_, deviation)| !deviation.run)
}

/// Whether a KVM of this kind can meet the need at all.
fn allows(need: &Need, flavour: KvmFlavour) -> bool {
    match need {
        Need::Host(HostNeed::Intel) => flavour == KvmFlavour::Intel,
        Need::Host(HostNeed::Amd) => flavour == KvmFlavour::Amd,
        Need::Cpuid(name) if name == "vmx" => flavour == KvmFlavour::Intel,
        Need::Cpuid(name) if name == "svm" => flavour == KvmFlavour::Amd,
        Need::Module { module, .. } if module == "kvm_intel" => flavour == KvmFlavour::Intel,
        Need::Module { module, .. } if module == "kvm_amd" => flavour == KvmFlavour::Amd,
        _ => true,
    }
}

#[derive(Deserialize)]
struct Version {
    schema: u32,
}

#[derive(Deserialize)]
struct Report {
    hosts: Vec<Host>,
    cases: Vec<Ran>,
}

#[derive(Deserialize)]
struct Host {
    name: String,
}

#[derive(Deserialize)]
struct Ran {
    host: String,
    id: String,
    outcome: String,
}

/// The hosts of JSON reports (`cargo xtask test --json`), each given with the file's name. Where two
/// tell of one case on one host, the later report is right.
///
/// # Errors
///
/// A text that is no such report, and what to do.
pub fn results<'a>(
    reports: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<Column>, String> {
    let mut columns: Vec<Column> = Vec::new();
    for (file, text) in reports {
        let bad = |e: serde_json::Error| {
            format!("{file} is no report of `cargo xtask test --json FILE`: {e}")
        };
        let Version { schema } = serde_json::from_str(text).map_err(bad)?;
        if schema != SCHEMA {
            return Err(format!(
                "{file} is a report of schema {schema}, and {SCHEMA} is read: run the cases again \
                 with `cargo xtask test --json FILE`"
            ));
        }
        let Report { hosts, cases } = serde_json::from_str(text).map_err(bad)?;
        for Host { name } in hosts {
            if columns.iter().all(|column| column.name != name) {
                columns.push(Column { name, ran: true, marks: BTreeMap::new() });
            }
        }
        for Ran { host, id, outcome } in cases {
            let mark = match outcome.as_str() {
                "pass" => Mark::Pass,
                "skip" => Mark::Skip,
                "fail" | "error" => Mark::Fail,
                _ => return Err(format!("{file}: {id} has the unknown outcome `{outcome}`")),
            };
            match columns.iter_mut().find(|column| column.name == host) {
                Some(column) => column.marks.insert(id, mark),
                None => {
                    return Err(format!("{file}: {id} ran on `{host}`, which no host is called"));
                }
            };
        }
    }
    Ok(columns)
}

#[cfg(test)]
mod tests {
    use super::super::map::tests::cases;
    use super::*;
    use crate::facts::fake::FakeFacts;
    use crate::report::{json, sample};

    fn ids(column: &Column) -> Vec<&str> {
        column.marks.keys().map(String::as_str).collect()
    }

    #[test]
    fn needs_and_deviations_tell_where_a_case_runs() {
        let cases = cases(&[
            ("a/any", ""),
            ("a/amd", "needs = [\"host:amd\"]"),
            ("a/svm", "needs = [\"cpuid:svm\"]"),
            ("a/ept", "needs = [\"module:kvm_intel.ept=N\"]"),
            ("a/not_bochs", "deviates.bochs = { because = \"it hangs\", run = false }"),
            ("a/not_right", "deviates.bochs = \"it is wrong\""),
        ]);
        let own = FakeFacts { cpuid: vec![("svm", false)], ..FakeFacts::default() };
        let columns = planned(&cases, &own);
        let names: Vec<_> = columns.iter().map(|column| &column.name[..]).collect();
        assert_eq!(names, ["kvm", "amd", "intel"]);
        assert_eq!(ids(&columns[0]), ["a/any", "a/not_bochs", "a/not_right"]);
        assert_eq!(ids(&columns[1]), ["a/amd", "a/any", "a/not_bochs", "a/not_right", "a/svm"]);
        assert_eq!(ids(&columns[2]), ["a/any", "a/ept", "a/not_right"]);
        let none = FakeFacts { no_kvm: Some("no".into()), ..FakeFacts::default() };
        assert_eq!(planned(&cases, &none).len(), 2);
    }

    #[test]
    fn reports_are_read_and_the_later_one_is_right() {
        let one = json::write(&sample::runs()).expect("a report");
        let two = json::write(&sample::two_hosts()).expect("a report");
        let columns = results([("1.json", &one[..])]).expect("columns");
        assert_eq!((columns.len(), columns[0].marks.len()), (1, 4));
        assert_eq!(columns[0].marks["apic/bad"], Mark::Fail);
        assert_eq!(columns[0].marks["tsc/broken"], Mark::Fail, "an error");
        let later = one.replace("\"outcome\": \"error\"", "\"outcome\": \"pass\"");
        let columns = results([("2.json", &two[..]), ("1.json", &later)]).expect("columns");
        assert_eq!(columns.len(), 2);
        assert_eq!(columns[0].marks["tsc/broken"], Mark::Pass);
        assert_eq!(columns[1].marks["apic/good"], Mark::Fail, "the other host's");
    }

    #[test]
    fn what_is_no_report_is_told_with_the_file() {
        let good = json::write(&sample::runs()).expect("a report");
        for (text, says) in [
            ("", "x.json is no report of"),
            ("{}", "missing field `schema`"),
            ("{\"schema\": 1}", "x.json is a report of schema 1, and 2 is read"),
            ("{\"schema\": 2}", "x.json is no report of"),
            (&good.replace("\"skip\",", "\"gone\","), "unknown outcome `gone`"),
            (&good.replace("\"host\": \"kvm\"", "\"host\": \"k\""), "no host is called"),
        ] {
            let error = results([("x.json", text)]).expect_err(says);
            assert!(error.contains(says), "{says}: {error}");
        }
    }
}
