//! The history as one page without scripts, pictures or anything from elsewhere.

use super::chart::{self, Mark};
use super::history::{Comparison, Point, Series};
use super::judge::{Judged, Verdict, figure};
use super::record::{Kind, Machine};
use super::stats::median;
use crate::support::html::{STYLE, escape};

const OWN_STYLE: &str = "svg{max-width:100%;height:auto}svg text{font-size:11px;fill:#777}.g{stroke:#8884}\
.c0{--c:#06c}.c1{--c:#d60}.c2{--c:#090}.c3{--c:#909}.c4{--c:#0aa}\
g line{stroke:var(--c);stroke-width:2;opacity:.5}circle{fill:var(--c);stroke:var(--c)}.h circle{fill:none}\
svg polyline{stroke:var(--c)}rect{fill:var(--c);opacity:.55}\
.worse{color:#c00;font-weight:bold}.better{color:#080;font-weight:bold}.unknown{color:#888}\n\
@media(prefers-color-scheme:dark){.c0{--c:#6af}.c1{--c:#fa5}.worse{color:#f66}.better{color:#6c6}}\n";

/// The page; `date` writes a time.
pub fn page(
    series: &[Series],
    comparison: Option<&Comparison>,
    now: i64,
    date: &dyn Fn(i64) -> String,
) -> String {
    let columns = commits(series);
    let machines = machines(series);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>exitlab: what exits cost\
         </title>\n<style>\n{STYLE}{OWN_STYLE}</style></head>\n<body><h1>What exits cost</h1>\n\
         <p>{} metrics of {} commits. Written {} UTC.</p>\n",
        series.len(),
        columns.len(),
        escape(&date(now))
    );
    text += "<h2>Machines</h2>\n<ul>\n";
    for (line, machine) in machines.iter().enumerate() {
        let name = machine.map_or("one of which nothing is known".to_owned(), Machine::to_string);
        text += &format!("<li>{}: {}</li>\n", letter(line), escape(&name));
    }
    text += "</ul>\n<h2>The last comparison</h2>\n";
    text += &comparison.map_or_else(
        || "<p>None was made: <code>cargo xtask perf compare REV</code>.</p>\n".to_owned(),
        |comparison| verdicts(comparison, date),
    );
    text += "<h2>Over commits</h2>\n<p>A point is a run: its middle sample, with the line from the first to the \
             third quartile. A hollow one is of a tree with changes that are in no commit.</p>\n";
    for series in series {
        text += &over_commits(series, &columns, &machines, date);
    }
    text += "<h2>Distributions</h2>\n<p>Samples of each metric's newest run as bars, and of the run before on that \
             machine as a line. The last bar holds all beyond.</p>\n";
    let noisy: Vec<String> =
        series.iter().filter(|s| s.metric.kind == Kind::Noisy).filter_map(distribution).collect();
    if noisy.is_empty() {
        text += "<p>No times were measured.</p>\n";
    }
    text + &noisy.concat() + "</body></html>\n"
}

/// Commits by age, the oldest first.
fn commits(series: &[Series]) -> Vec<&str> {
    let mut all: Vec<(i64, &str)> = Vec::new();
    for Point { commit, at, .. } in series.iter().flat_map(|series| &series.points) {
        let at = commit.committed.unwrap_or(*at);
        match all.iter_mut().find(|(_, id)| *id == commit.id) {
            Some(known) => known.0 = known.0.min(at),
            None => all.push((at, &commit.id)),
        }
    }
    all.sort_unstable();
    all.into_iter().map(|(_, id)| id).collect()
}

fn machines(series: &[Series]) -> Vec<Option<&Machine>> {
    let points = series.iter().flat_map(|series| &series.points);
    let mut all: Vec<Option<&Machine>> = points.map(|point| point.machine.as_ref()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// What a machine is called on this page.
fn letter(line: usize) -> String {
    let letter = char::from(b'A' + (line % 26) as u8);
    if line < 26 { letter.to_string() } else { format!("{letter}{}", line / 26) }
}

fn short(id: &str) -> String {
    id.chars().take(7).collect()
}

fn verdicts(comparison: &Comparison, date: &dyn Fn(i64) -> String) -> String {
    let Comparison { at, base, new, machine, verdicts } = comparison;
    let mut text = format!(
        "<p>{} against {}, {} UTC, on {}.</p>\n<table><tr><th>verdict</th><th>metric</th><th>before</th>\
         <th>now</th><th>change</th><th>unit</th><th>why</th></tr>\n",
        escape(new),
        escape(base),
        escape(&date(*at)),
        escape(&machine.to_string())
    );
    let mut sorted: Vec<&Judged> = verdicts.iter().collect();
    sorted.sort_by_key(|judged| judged.verdict);
    for Judged { metric, verdict, before, after, change, why } in sorted {
        let value = |value: &Option<f64>| value.map_or("-".to_owned(), figure);
        let class = if *verdict == Verdict::Same { "" } else { verdict.word() };
        text += &format!(
            "<tr><td class=\"{class}\">{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td><td>{}</td><td>{}</td></tr>\n",
            verdict.word(),
            escape(&metric.name),
            value(before),
            value(after),
            change.map_or("-".to_owned(), |change| format!("{:+.1} %", change * 100.0)),
            escape(&metric.unit),
            escape(why)
        );
    }
    text + "</table>\n"
}

fn caption(series: &Series) -> String {
    let Series { metric, host, .. } = series;
    format!("{}, {}, host {host}", metric.name, metric.unit)
}

fn over_commits(
    series: &Series,
    columns: &[&str],
    machines: &[Option<&Machine>],
    date: &dyn Fn(i64) -> String,
) -> String {
    // Only commits that have it: others would be holes.
    let has = |id: &&str| series.points.iter().any(|point| point.commit.id == *id);
    let columns: Vec<&str> = columns.iter().copied().filter(has).collect();
    let mark = |point: &Point| Mark {
        column: columns.iter().position(|id| *id == point.commit.id).unwrap_or(0),
        line: machines.iter().position(|m| *m == point.machine.as_ref()).unwrap_or(0),
        dirty: point.commit.dirty,
        samples: point.samples.clone(),
        title: point.commit.to_string() + &format!(", {}, {}", date(point.at), point.tool),
    };
    let marks: Vec<Mark> = series.points.iter().map(mark).collect();
    let last = series.points.last().and_then(|point| median(&point.samples));
    let names: Vec<String> = columns.iter().map(|id| short(id)).collect();
    let caption = caption(series);
    format!(
        "<figure>{}<figcaption>{}: {}</figcaption></figure>\n",
        chart::over_commits(&marks, &names, &caption),
        escape(&caption),
        last.map_or("-".to_owned(), figure)
    )
}

/// Nothing of a metric whose samples are one.
fn distribution(series: &Series) -> Option<String> {
    // By the time of the run, for here two runs are held together, not two commits.
    let newest = series.points.iter().max_by_key(|point| point.at)?;
    let others =
        series.points.iter().filter(|p| p.machine == newest.machine && p.commit != newest.commit);
    let before = others.max_by_key(|point| point.at);
    if newest.samples.len() < 2 {
        return None;
    }
    let older = before.map_or(&[][..], |point| &point.samples[..]);
    let caption = caption(series);
    let mut text = format!("{caption}: {}", newest.commit);
    text += &before.map_or(String::new(), |before| format!(", before {}", before.commit));
    let chart = chart::distribution(older, &newest.samples, &caption);
    let text = escape(&text);
    Some(format!("<figure>{chart}<figcaption>{text}</figcaption></figure>\n"))
}

#[cfg(test)]
mod tests {
    use super::super::record::{Commit, Metric};
    use super::*;

    fn point(id: &str, committed: i64, at: i64, samples: &[f64]) -> Point {
        Point {
            commit: Commit { id: id.to_owned(), dirty: false, committed: Some(committed) },
            at,
            machine: None,
            tool: "t".to_owned(),
            samples: samples.to_vec(),
        }
    }

    #[test]
    fn the_page_holds_everything_and_needs_nothing() {
        let times = Series {
            metric: Metric::time("run/<nothing>/time", "ns"),
            host: "kvm".to_owned(),
            // The older commit was measured later.
            points: vec![
                point("aaaaaaaaaa", 10, 9, &[7.0, 8.0]),
                point("bbbbbbbbbb", 20, 5, &[9.0; 9]),
            ],
        };
        let counts = Series {
            metric: Metric::instructions("exits/port_read/user"),
            points: vec![point("bbbbbbbbbb", 20, 5, &[95.0])],
            ..times.clone()
        };
        let judged = |verdict, name: &str| Judged {
            metric: Metric::instructions(name),
            verdict,
            before: Some(95.0),
            after: Some(105.0),
            change: Some(0.105),
            why: "10 instructions \"more\"".to_owned(),
        };
        let comparison = Comparison {
            at: 7,
            base: "aaa".to_owned(),
            new: "bbb with changes".to_owned(),
            machine: Machine::this("release"),
            verdicts: vec![judged(Verdict::Same, "first"), judged(Verdict::Worse, "second")],
        };
        let all = [times, counts];
        assert_eq!(commits(&all), ["aaaaaaaaaa", "bbbbbbbbbb"]);
        let page = page(&all, Some(&comparison), 0, &|at| format!("day {at}"));
        for part in [
            "2 metrics of 2 commits",
            "bbb with changes against aaa, day 7 UTC",
            "<td class=\"worse\">worse</td><td>second</td><td class=\"n\">95</td><td class=\"n\">105</td>\
             <td class=\"n\">+10.5 %</td>",
            "10 instructions &quot;more&quot;",
            "run/&lt;nothing&gt;/time, ns, host kvm: 9",
            "aaaaaaaaaa, before bbbbbbbbbb",
            "A: one of which nothing is known",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        // What is bad comes first.
        assert!(page.find(">second<") < page.find(">first<"));
        let from_elsewhere =
            ["<script", "<link", "<img", "http:", "https:", "src=", "url(", "@import"];
        assert!(from_elsewhere.iter().all(|part| !page.contains(part)), "{page}");
    }

    #[test]
    fn a_page_of_little_says_what_is_missing() {
        let page = page(&[], None, 0, &|_| String::new());
        assert!(
            page.contains("None was made") && page.contains("No times were measured"),
            "{page}"
        );
    }
}
