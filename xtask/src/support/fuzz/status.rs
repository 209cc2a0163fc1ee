//! A soak's page: one file without scripts, pictures or anything from elsewhere.

use super::state::{Known, Moment, State};
use crate::support::html::{STYLE, escape};

/// Width and height of a curve. Pixels.
const SIZE: (f64, f64) = (220.0, 44.0);

/// The page, as it is at `now` (seconds since 1970).
pub fn page(state: &State, now: u64) -> String {
    let executions: u64 = state.targets.values().map(|k| k.executions).sum();
    let seconds: u64 = state.targets.values().map(|k| k.seconds).sum();
    let last = state.targets.values().map(|k| k.last_find).max().unwrap_or(0);
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"refresh\" content=\"60\"><title>exitlab soak</title>\n<style>\n{STYLE}</style></head>\n\
         <body><h1>exitlab soak</h1>\n<p>{} executions in {} of fuzzing, in {} starts over {}. \
         Last find {}. {} causes of crashes. Written {now} s after 1970.</p>\n",
        thousands(executions),
        span(seconds),
        state.starts,
        span(now.saturating_sub(state.since)),
        ago(last, now),
        state.crashes.len(),
    );
    text += &all(state);
    text += "<h2>Crashes</h2>\n";
    if state.crashes.is_empty() {
        text += "<p>None.</p>\n";
    } else {
        text += "<table><tr><th>cause</th><th>target</th><th>times</th><th>first</th><th>last</th>\
                 <th>file</th></tr>\n";
        for (cause, crash) in &state.crashes {
            text += &format!(
                "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escape(cause),
                escape(&crash.target),
                crash.times,
                ago(crash.first, now),
                ago(crash.last, now),
                escape(&crash.file)
            );
        }
        text += "</table>\n";
    }
    text += &format!("<h2>Old crashes</h2>\n<p>Looked at {}: ", ago(state.looked, now));
    match &state.back[..] {
        [] => text += "all stay fixed.</p>\n",
        back => {
            text += "these are back.</p>\n<ul>";
            back.iter().for_each(|b| text += &format!("<li>{}</li>", escape(b)));
            text += "</ul>\n";
        }
    }
    text += "<h2>Targets</h2>\n<table><tr><th>target</th><th>executions</th><th>time</th><th>a second</th>\
             <th>edges</th><th>edges over its time</th><th>inputs</th><th>last find</th><th>deaths</th></tr>\n";
    for (name, known) in &state.targets {
        text += &row(name, known, now);
    }
    text + "</table>\n</body></html>\n"
}

fn row(name: &str, known: &Known, now: u64) -> String {
    let deaths = match known.deaths {
        0 => "0".to_owned(),
        n => format!("<span title=\"{}\">{n}</span>", escape(&known.last_death)),
    };
    // Without libFuzzer nobody sees edges.
    let edges = known.edges > 0;
    let points: Vec<(u64, u64)> =
        known.curve.iter().map(|p| (p.at, if edges { p.edges } else { p.answers })).collect();
    let what = if edges { "edges" } else { "answers" };
    let reached = match what {
        "edges" => known.edges.to_string(),
        answers => format!("{} {answers}", known.answers),
    };
    format!(
        "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
         <td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{deaths}</td></tr>\n",
        escape(name),
        thousands(known.executions),
        span(known.seconds),
        thousands(known.executions / known.seconds.max(1)),
        reached,
        curve(&points, what),
        known.inputs,
        ago(known.last_find, now)
    )
}

/// What all targets came to, over the time.
fn all(state: &State) -> String {
    type Of = fn(&Moment) -> u64;
    let curves: [(&str, Of); 3] = [
        ("executions", |m| m.executions),
        ("causes of crashes", |m| m.crashes),
        ("s since the last find", |m| m.idle),
    ];
    let mut text = "<h2>All targets</h2>\n<div class=\"all\">\n".to_owned();
    for (what, of) in curves {
        let points: Vec<(u64, u64)> =
            state.moments.iter().map(|m| (m.at.saturating_sub(state.since), of(m))).collect();
        let most = points.iter().map(|p| p.1).max().unwrap_or(0);
        let last = points.last().map_or(0, |p| p.1);
        let (last, most) = (thousands(last), thousands(most));
        text += &format!(
            "<figure>{}<figcaption>{what}: {last}, at most {most}</figcaption></figure>\n",
            curve(&points, what)
        );
    }
    text + "</div>\n"
}

/// A curve as SVG, from 0 to its highest; `points` are seconds and values.
fn curve(points: &[(u64, u64)], what: &str) -> String {
    let (width, height) = SIZE;
    let most_at = points.last().map_or(1, |p| p.0).max(1);
    let most = points.iter().map(|p| p.1).max().unwrap_or(0);
    let at = |&(at, value): &(u64, u64)| {
        let x = at as f64 / most_at as f64 * width;
        let y = height - 2.0 - value as f64 / most.max(1) as f64 * (height - 4.0);
        format!("{x:.1},{y:.1}")
    };
    let line: Vec<String> = ["0,42".to_owned()].into_iter().chain(points.iter().map(at)).collect();
    format!(
        "<svg width=\"{width}\" height=\"{height}\" role=\"img\"><title>{} {what} after {}</title>\
         <polyline points=\"{}\"/></svg>",
        most,
        span(most_at),
        line.join(" ")
    )
}

/// A number with a thin space between thousands.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{2009}');
        }
        text.push(digit);
    }
    text
}

/// A length of time in its two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

fn ago(then: u64, now: u64) -> String {
    if then == 0 { "never".to_owned() } else { format!("{} ago", span(now.saturating_sub(then))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::fuzz::state::{Crash, Point};

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        let mut state = State { since: 1000, starts: 2, ..State::default() };
        let curve =
            [(60, 90), (120, 100)].map(|(at, edges)| Point { at, edges, inputs: 9, answers: 0 });
        let known = Known {
            executions: 1_234_567,
            seconds: 120,
            edges: 100,
            curve: curve.into(),
            ..Known::default()
        };
        state.targets.insert("uart".into(), known);
        let crash =
            Crash { target: "rtc".into(), times: 3, first: 2000, last: 2100, file: "f".into() };
        state.crashes.insert("rtc: panic: <script> & \"N\"".into(), crash);
        state.back.push("fuzz/regressions/x.script: again".into());
        let stable = Point { at: 9, edges: 0, inputs: 2, answers: 77 };
        let stable = Known { answers: 77, curve: vec![stable], ..Known::default() };
        state.targets.insert("rtc".into(), stable);
        let moment = |at, executions| Moment { at, executions, crashes: 1, idle: 0 };
        state.moments = vec![moment(1050, 500), moment(1100, 1000)];
        let page = page(&state, 4000);
        for part in [
            "1\u{2009}234\u{2009}567",
            "<polyline points=\"0,42 110.0,",
            "are back",
            "uart",
            "77 answers after 9 s",
            "executions: 1\u{2009}000, at most 1\u{2009}000",
            "<polyline points=\"0,42 110.0,22.0 220.0,2.0\"",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(page.contains("&lt;script&gt; &amp; &quot;N&quot;") && !page.contains("<script"));
        assert!(!page.contains("http://") && !page.contains("https://") && !page.contains("src="));
        assert_eq!([span(59), span(3700), span(90_000)], ["59 s", "1 h 1 min", "1 d 1 h"]);
    }
}
