//! `cargo xtask coverage-map`: what of KVM's API and of the manuals is tested, on which host, and what
//! is not yet.

use std::fs;
use std::process::ExitCode;

use testcases::coverage::{Kind, Map, page, planned, results};
use testcases::facts_table::FactsTable;
use testcases::load;

use crate::flags;
use crate::support::{self, Failure, Out, Outcome};

/// Runs the command.
pub fn run(flags: &flags::CoverageMap, out: &mut Out) -> Outcome {
    let dir = support::root().join("testcases/cases");
    let cases = load::load(&dir).map_err(|e| Failure::bad(format!("bad cases:\n{e}")))?;
    if flags.check {
        let map = Map::of(&cases);
        let covered: Vec<_> = Kind::ALL
            .iter()
            .map(|kind| {
                let rows = kind.rows().into_iter().filter(|row| row.x86);
                let (with, all) = rows.fold((0, 0), |(with, all), row| {
                    (with + usize::from(!map.cases(&row.cover).is_empty()), all + 1)
                });
                format!("{} {with}/{all}", kind.word())
            })
            .collect();
        writeln!(out, "{} cases; rows with one: {}", cases.len(), covered.join(", "));
        return Ok(ExitCode::SUCCESS);
    }
    let columns = match &flags.json[..] {
        [] => planned(&cases, &FactsTable::collect()),
        files => {
            let mut reports = Vec::new();
            for file in files {
                let name = file.display().to_string();
                let text = fs::read_to_string(file)
                    .map_err(|e| Failure::input(format!("--json {name}: cannot be read: {e}")))?;
                reports.push((name, text));
            }
            let reports = reports.iter().map(|(name, text)| (&name[..], &text[..]));
            results(reports).map_err(Failure::input)?
        }
    };
    let text = page(&cases, &columns);
    match &flags.out {
        None => out.bytes(text.as_bytes()),
        Some(file) => fs::write(file, text).map_err(|e| {
            Failure::input(format!("--out {}: cannot be written: {e}", file.display()))
        })?,
    }
    Ok(ExitCode::SUCCESS)
}
