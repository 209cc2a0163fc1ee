//! The page: Markdown whose tables are also readable as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::map::is_in_every_guest;
use super::{Column, Cover, Kind, Map, Mark, Row};
use crate::case::Case;

/// Areas that a row names at most.
const AREAS: usize = 4;

/// The page of these cases; `columns` are the hosts.
pub fn page(cases: &[Case], columns: &[Column]) -> String {
    let page = Page { map: Map::of(cases), columns };
    let mut text = String::from("# What is tested\n\n");
    let ran = columns.iter().any(|column| column.ran);
    let cells = match ran {
        true => {
            "Under a host is what became of them there: `passed/failed/skipped`, errors among the \
             failed. On a host a row is covered if one of them passed."
        }
        false => {
            "Under a host is how many of them say nothing that keeps them from running there; \
             `--json FILE` shows what became of them."
        }
    };
    let count = cases.len();
    let _ = writeln!(
        text,
        "Made by `cargo xtask coverage-map` from {count} cases. Each row tells how many of them \
         cover it, and in which areas they are; `not yet` is none. {cells}\n"
    );
    text.push_str(&page.summary());
    for kind in Kind::ALL {
        text.push_str(&page.section(kind));
    }
    text.push_str(&page.rest(cases));
    text
}

struct Page<'a> {
    map: Map<'a>,
    columns: &'a [Column],
}

impl Page<'_> {
    /// How many rows of each kind are covered.
    fn summary(&self) -> String {
        let mut head = vec!["".to_string(), "rows".into(), "with a case".into()];
        head.extend(self.columns.iter().map(|column| column.name.clone()));
        let mut table = vec![head];
        for kind in Kind::ALL {
            let rows: Vec<_> = kind.rows().into_iter().filter(|row| row.x86).collect();
            let count = |covered: &dyn Fn(&[&Case]) -> bool| {
                let covered = |row: &&Row| covered(self.map.cases(&row.cover));
                rows.iter().filter(covered).count().to_string()
            };
            let mut line = vec![title(kind).to_string(), rows.len().to_string()];
            line.push(count(&|cases| !cases.is_empty()));
            line.extend(self.columns.iter().map(|column| count(&|cases| column.covers(cases))));
            table.push(line);
        }
        markdown(&table)
    }

    /// The rows of one kind. Of CPUID features only those with a case are rows, as most of a
    /// processor's are of no concern to a hypervisor; the others follow by name.
    fn section(&self, kind: Kind) -> String {
        let mut text = format!("\n## {}\n\n", title(kind));
        let mut head: Vec<String> = [first(kind), "", "what it is", "cases"].map(Into::into).into();
        head.extend(self.columns.iter().map(|column| column.name.clone()));
        head.push("where".into());
        let mut table = vec![head];
        let mut others = Vec::new();
        for row in kind.rows() {
            let cases = self.map.cases(&row.cover);
            if kind == Kind::Cpuid && cases.is_empty() {
                others.push(row.cover.name().to_string());
                continue;
            }
            let count = match cases.len() {
                _ if !row.x86 => "not of x86".into(),
                0 => "not yet".into(),
                count => count.to_string(),
            };
            let mut line = vec![name(&row), row.number, row.about.into(), count];
            line.extend(self.columns.iter().map(|column| column.cell(cases)));
            line.push(self.places(&row.cover));
            table.push(line);
        }
        drop_empty(&mut table);
        text.push_str(&markdown(&table));
        if !others.is_empty() {
            let _ = writeln!(text, "\nNot yet: {}.", others.join(", "));
        }
        text
    }

    /// The areas with cases of a feature, those with most of them first; of one that every guest
    /// covers, those with cases that are about it.
    fn places(&self, cover: &Cover) -> String {
        let every = is_in_every_guest(cover);
        let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
        for case in self.map.cases(cover) {
            if !every || case.spec.covers.contains(cover) {
                *areas.entry(&case.id.area).or_default() += 1;
            }
        }
        let mut areas: Vec<_> = areas.into_iter().collect();
        areas.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let more = areas.len().saturating_sub(AREAS);
        let named = areas.iter().take(AREAS).map(|(area, count)| format!("{area} {count}"));
        let mut named: Vec<_> = named.collect();
        if more > 0 {
            named.push(format!("{more} more"));
        }
        match (every, named.join(", ")) {
            (false, named) => named,
            (true, named) if named.is_empty() => "every guest".into(),
            (true, named) => format!("every guest; about it: {named}"),
        }
    }

    /// What the tables do not show: cases that name no chapter, and results without a case.
    fn rest(&self, cases: &[Case]) -> String {
        let mut areas: BTreeMap<&str, usize> = BTreeMap::new();
        for case in cases {
            let chapter = |cover: &Cover| matches!(cover.kind(), Kind::Sdm | Kind::Apm);
            if !case.spec.covers.iter().any(chapter) {
                *areas.entry(&case.id.area).or_default() += 1;
            }
        }
        let mut text = String::new();
        if !areas.is_empty() {
            let areas: Vec<_> = areas.iter().map(|(area, n)| format!("{area} {n}")).collect();
            let _ = writeln!(text, "\nCases that name no chapter: {}.", areas.join(", "));
        }
        let known: BTreeSet<String> = cases.iter().map(|case| case.id.to_string()).collect();
        for column in self.columns.iter().filter(|column| column.ran) {
            let unknown = column.marks.keys().filter(|id| !known.contains(*id)).count();
            if unknown > 0 {
                let name = &column.name;
                let _ =
                    writeln!(text, "\n{unknown} results of {name} are of no case of this tree.");
            }
        }
        text
    }
}

impl Column {
    /// Whether one of these cases passed here or, where none was run, is to run.
    fn covers(&self, cases: &[&Case]) -> bool {
        let [passed, .., runs] = self.count(cases);
        passed + runs > 0
    }

    /// What became of these cases here.
    fn cell(&self, cases: &[&Case]) -> String {
        match self.count(cases) {
            [0, 0, 0, 0] => String::new(),
            [passed, failed, skipped, _] if self.ran => format!("{passed}/{failed}/{skipped}"),
            [.., runs] => runs.to_string(),
        }
    }

    /// How many passed, failed, were skipped, and are to run.
    fn count(&self, cases: &[&Case]) -> [usize; 4] {
        let mut counts = [0; 4];
        for mark in cases.iter().filter_map(|case| self.marks.get(&case.id.to_string())) {
            let at = match mark {
                Mark::Pass => 0,
                Mark::Fail => 1,
                Mark::Skip => 2,
                Mark::Runs => 3,
            };
            counts[at] += 1;
        }
        counts
    }
}

const fn title(kind: Kind) -> &'static str {
    match kind {
        Kind::Exit => "Exits of KVM",
        Kind::Ioctl => "Ioctls of KVM",
        Kind::Cap => "Capabilities of KVM",
        Kind::Cpuid => "CPUID features",
        Kind::Sdm => "Chapters of Intel's SDM",
        Kind::Apm => "Chapters of AMD's APM",
    }
}

/// The head of the first column.
const fn first(kind: Kind) -> &'static str {
    match kind {
        Kind::Exit => "exit",
        Kind::Ioctl => "ioctl",
        Kind::Cap => "capability",
        Kind::Cpuid => "feature",
        Kind::Sdm | Kind::Apm => "chapter",
    }
}

fn name(row: &Row) -> String {
    match row.cover.kind() {
        Kind::Sdm | Kind::Apm => row.cover.name().into(),
        _ => format!("`{}`", row.cover.name()),
    }
}

/// Leaves out columns in which no row has anything, but for those of hosts.
fn drop_empty(table: &mut [Vec<String>]) {
    for at in [2, 1] {
        if table.iter().skip(1).all(|line| line[at].is_empty()) {
            table.iter_mut().for_each(|line| drop(line.remove(at)));
        }
    }
}

/// A table of Markdown, the first line its head, with columns as wide as they must be.
fn markdown(table: &[Vec<String>]) -> String {
    let columns = table.first().map_or(0, Vec::len);
    let width = |at: usize| table.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(|at| width(at).max(3)).collect();
    let mut text = String::new();
    for (number, line) in table.iter().enumerate() {
        let cells = line.iter().zip(&widths);
        let cells: Vec<_> = cells.map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "| {} |", cells.join(" | "));
        if number == 0 {
            let rules: Vec<_> = widths.iter().map(|&width| "-".repeat(width)).collect();
            let _ = writeln!(text, "|-{}-|", rules.join("-|-"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::map::tests::cases;
    use super::*;

    fn column(name: &str, ran: bool, marks: &[(&str, Mark)]) -> Column {
        let marks = marks.iter().map(|(id, mark)| (id.to_string(), *mark)).collect();
        Column { name: name.into(), ran, marks }
    }

    /// The cells of the row that begins so.
    fn row<'a>(page: &'a str, first: &str) -> Vec<&'a str> {
        let line = page.lines().find(|line| line.starts_with(&format!("| {first} ")));
        let line = line.unwrap_or_else(|| panic!("{first}: {page}"));
        line.trim_matches('|').split('|').map(str::trim).collect()
    }

    fn some() -> Vec<Case> {
        cases(&[
            ("io/one", "covers = [\"exit:KVM_EXIT_MMIO\", \"apm:2.5\"]"),
            ("io/two", "covers = [\"exit:KVM_EXIT_MMIO\"]"),
            ("msr/one", "covers = [\"exit:KVM_EXIT_MMIO\"]\nneeds = [\"cpuid:x2apic\"]"),
        ])
    }

    #[test]
    fn a_row_tells_what_became_of_its_cases() {
        let marks = [("io/one", Mark::Pass), ("io/two", Mark::Skip), ("msr/one", Mark::Fail)];
        let kvm = column("kvm", true, &marks);
        let amd = column("amd", true, &[("io/one", Mark::Skip), ("old/one", Mark::Pass)]);
        let page = page(&some(), &[kvm, amd]);
        let mmio = row(&page, "`KVM_EXIT_MMIO`");
        assert_eq!((mmio[1], &mmio[3..]), ("6", &["3", "1/1/1", "0/0/1", "io 2, msr 1"][..]));
        assert_eq!(row(&page, "`KVM_RUN`")[6], "every guest");
        assert_eq!(row(&page, "`KVM_SMI`")[3..], ["not yet", "", "", ""]);
        assert_eq!(row(&page, "`KVM_EXIT_S390_TSCH`")[2], "", "no word about it");
        assert_eq!(row(&page, "`KVM_EXIT_S390_TSCH`")[3], "not of x86");
        assert_eq!(row(&page, "`x2apic`")[2..], ["1", "0/1/0", "", "msr 1"]);
        assert_eq!(
            row(&page, "2.5")[1..],
            ["Page Translation and Protection", "1", "1/0/0", "0/0/1", "io 1"]
        );
        assert!(page.contains("1 results of amd are of no case"), "{page}");
        assert!(page.contains("Cases that name no chapter: io 1, msr 1."), "{page}");
        // A skip is no pass.
        assert_eq!(row(&page, "Chapters of AMD's APM")[2..], ["1", "1", "0"]);
    }

    #[test]
    fn without_a_run_the_page_tells_where_cases_are_to_run() {
        let marks = [("io/one", Mark::Runs), ("io/two", Mark::Runs)];
        let page = page(&some(), &[column("amd", false, &marks)]);
        assert_eq!(row(&page, "`KVM_EXIT_MMIO`")[3..], ["3", "2", "io 2, msr 1"]);
        assert_eq!(row(&page, "Chapters of AMD's APM")[2..], ["1", "1"]);
        assert!(page.contains("`--json FILE` shows"), "{page}");
    }

    #[test]
    fn all_of_kvms_exits_and_ioctls_have_a_row() {
        let page = page(&[], &[]);
        for kind in [Kind::Exit, Kind::Ioctl, Kind::Cap, Kind::Sdm, Kind::Apm] {
            for each in kind.rows() {
                let cells = row(&page, &name(&each));
                let state = if each.x86 { "not yet" } else { "not of x86" };
                assert!(cells.contains(&state), "{cells:?}");
            }
        }
        assert!(page.contains("Not yet: "), "the features of CPUID");
    }

    #[test]
    fn a_row_names_the_areas_with_most_cases() {
        let all = "covers = [\"sdm:Paging\"]";
        let ids = ["a/1", "b/1", "c/1", "d/1", "e/1", "e/2"];
        let texts: Vec<_> = ids.iter().map(|id| (*id, all)).collect();
        let page = page(&cases(&texts), &[]);
        assert_eq!(row(&page, "Paging")[3], "e 2, a 1, b 1, c 1, 1 more");
    }
}
