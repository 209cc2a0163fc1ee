//! Lines of source that a corpus reaches, and those that no input can.
//!
//! What is counted comes from `llvm-cov export -format=lcov`: `SF:FILE`, then `DA:LINE,COUNT` for each line
//! that holds code. What only tests have is not there, since the program is built without them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;

use fuzz::targets::Beyond;

/// How often each line of a file was run.
pub type Counts = BTreeMap<usize, u64>;

/// A source file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its path from the workspace.
    pub name: String,
    /// Its lines that count.
    pub counts: Counts,
}

impl Source {
    /// How many of its lines were reached.
    pub fn covered(&self) -> usize {
        self.counts.values().filter(|&&count| count > 0).count()
    }

    /// Leaves out what no input reaches, and was not reached: what only a planted flaw does, too.
    pub fn leave_out(&mut self, text: &str, beyond: &[&Beyond]) {
        let lines: Vec<&str> = text.lines().collect();
        let planted = planted(&lines);
        self.counts.retain(|line, count| *count > 0 || !planted.contains(line));
        for Beyond { function, text: says, .. } in beyond {
            let within = match function.is_empty() {
                true => vec![1..=lines.len()],
                false => extents(&lines, function),
            };
            let within = within.into_iter().flatten();
            let out: BTreeSet<usize> =
                within.filter(|line| lines[line - 1].contains(says)).collect();
            self.counts.retain(|line, count| *count > 0 || !out.contains(line));
        }
    }

    /// What was not reached: the function, and the lines of it, as people write them.
    pub fn missed(&self, text: &str) -> Vec<(String, String)> {
        let lines: Vec<&str> = text.lines().collect();
        let mut missed: Vec<(String, Vec<RangeInclusive<usize>>)> = Vec::new();
        let mut before = None;
        for (&line, &count) in &self.counts {
            if count == 0 {
                let function = function_at(&lines, line);
                let next = before == Some(line - 1);
                match missed.last_mut() {
                    Some((of, ranges)) if *of == function => match ranges.last_mut() {
                        Some(range) if next => *range = *range.start()..=line,
                        _ => ranges.push(line..=line),
                    },
                    _ => missed.push((function, vec![line..=line])),
                }
                before = Some(line);
            }
        }
        let show = |range: RangeInclusive<usize>| match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}-{}", range.start(), range.end()),
        };
        let join = |ranges: Vec<_>| ranges.into_iter().map(show).collect::<Vec<_>>().join(", ");
        missed.into_iter().map(|(function, ranges)| (function, join(ranges))).collect()
    }
}

/// Reads the text of `llvm-cov export -format=lcov`.
pub fn read(text: &str, root: &Path) -> Vec<Source> {
    let mut sources: Vec<Source> = Vec::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            let path = Path::new(path);
            let name = path.strip_prefix(root).unwrap_or(path).display().to_string();
            sources.push(Source { name, counts: Counts::new() });
        } else if let Some((line, count)) = line.strip_prefix("DA:").and_then(|d| d.split_once(','))
            && let (Ok(line), Ok(count)) = (line.parse(), count.parse::<u64>())
            && let Some(source) = sources.last_mut()
        {
            *source.counts.entry(line).or_default() += count;
        }
    }
    sources
}

/// The name of the function that a line begins, if it begins one.
fn begins(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let words = before.split_whitespace();
    let qualified = |word: &str| {
        matches!(word, "pub" | "const" | "async" | "unsafe" | "extern")
            || word.starts_with("pub(")
            || word == "super)"
            || word == "in"
    };
    let name = after.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (words.into_iter().all(qualified) && !name.is_empty()).then_some(name)
}

/// The lines, from 1 on, that are there for a planted flaw: what stands behind an `if` that asks for one, and the
/// arm of a `match`.
fn planted(lines: &[&str]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    for (at, line) in lines.iter().enumerate() {
        let Some((before, _)) = line.split_once("planted::has(") else { continue };
        let is_arm = line.contains("=> ") || line.ends_with("=>");
        let goes_on = |n: &usize| !lines[at..*n].iter().any(|line| line.ends_with([';', ',', '}']));
        let block = (at..lines.len()).take_while(goes_on).find(|&n| lines[n].ends_with('{'));
        match block {
            _ if before.ends_with('!') => {}
            Some(first) if before.contains("if ") && (first == at || !is_arm) => {
                found.extend(first + 2..=end(lines, first, indent(line)));
            }
            _ if before.contains("if ") && is_arm => drop(found.insert(at + 1)),
            Some(first) if before.contains("match ") => {
                let is_true = |line: &&str| line.trim_start().starts_with("true =>");
                found.extend(lines.get(first + 1).filter(|line| is_true(line)).map(|_| first + 2));
            }
            _ => {}
        }
    }
    found
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The lines, from 1 on, of the functions of this name: rustfmt ends one with a brace below its beginning.
fn extents(lines: &[&str], function: &str) -> Vec<RangeInclusive<usize>> {
    let starts = lines.iter().enumerate().filter(|(_, line)| begins(line) == Some(function));
    let ends = starts.map(|(at, line)| (at, end(lines, at, indent(line))));
    ends.map(|(at, end)| at + 1..=end + 1).collect()
}

/// The last line of what begins at `at`, from 0 on.
fn end(lines: &[&str], at: usize, indent_of: usize) -> usize {
    let is_end = |line: &str| indent(line) == indent_of && line.trim_start().starts_with('}');
    let whole = |line: &str| line.ends_with('}') && line.contains('{');
    if whole(lines[at]) {
        return at;
    }
    (at + 1..lines.len()).find(|&n| is_end(lines[n])).unwrap_or(at)
}

/// The innermost function that holds a line, from 1 on.
fn function_at(lines: &[&str], line: usize) -> String {
    let inside = (0..line).rev().find_map(|at| {
        let name = begins(lines[at])?;
        (line - 1 <= end(lines, at, indent(lines[at]))).then(|| name.to_owned())
    });
    inside.unwrap_or_else(|| "(no function)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
impl A {
    pub fn one(&self) -> u8 {
        if x {
            2
        }
    }
    fn short(&self) -> u8 { 3 }
    pub(super) const fn long(
        &self,
    ) -> u8 {
        4
    }
}
";

    fn source() -> Source {
        let text = "SF:/w/a.rs\nFN:2,_R1\nDA:2,1\nDA:3,1\nDA:4,0\nDA:5,0\nDA:6,1\nDA:7,0\nDA:8,0\nDA:9,0\n\
            DA:11,0\nend_of_record\nSF:/w/b.rs\nDA:1,7\nend_of_record\n";
        let sources = read(text, Path::new("/w"));
        assert_eq!(sources.len(), 2);
        assert_eq!((&sources[1].name[..], sources[1].covered()), ("b.rs", 1));
        sources[0].clone()
    }

    #[test]
    fn what_was_not_reached_is_told_by_function() {
        let source = source();
        assert_eq!((source.counts.len(), source.covered()), (9, 3));
        let pairs = [("one", "4-5"), ("short", "7"), ("long", "8-9, 11")];
        let expected = pairs.map(|(f, l)| (f.to_owned(), l.to_owned()));
        assert_eq!(source.missed(TEXT), expected);
    }

    #[test]
    fn what_a_planted_flaw_does_is_known() {
        let text = "\
fn a() {
    if planted::has(Flaw::A) {
        one();
        two();
    }
    if x || !planted::has(Flaw::B) {
        three();
    } else if y && planted::has(Flaw::C) {
        four()
    } else {
        five()
    }
    if planted::has(Flaw::D)
        && let Some(x) = x
    {
        six();
    }
    let z = match planted::has(Flaw::E) && x {
        true => 7,
        false => 8,
    };
    match z {
        7 if planted::has(Flaw::F) => 9,
        8 if planted::has(Flaw::F) => {
            10
        }
        _ => 11,
    }
    let w = if planted::has(Flaw::G) { 12 } else { 13 };
}
";
        let lines: Vec<&str> = text.lines().collect();
        let found: Vec<_> = planted(&lines).iter().map(|n| lines[n - 1].trim()).collect();
        let expected = ["one();", "two();", "four()", "six();", "true => 7,"];
        assert_eq!(found[..5], expected);
        assert_eq!(found[5..], ["7 if planted::has(Flaw::F) => 9,", "10"]);
    }

    #[test]
    fn what_no_input_reaches_does_not_count() {
        let mut source = source();
        let beyond = |function, text| Beyond { function, text, why: "it is" };
        // Of `one`, only what was not reached.
        let rules = [
            beyond("one", ""),
            beyond("", "-> u8 { 3 }"),
            beyond("long", "4"),
            beyond("longer", ""),
        ];
        source.leave_out(TEXT, &rules.each_ref());
        let missed = source.missed(TEXT);
        assert_eq!(missed, [("long".to_owned(), "8-9".to_owned())]);
        assert_eq!((source.counts.len(), source.covered()), (5, 3));
    }
}
