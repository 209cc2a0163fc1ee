//! The newest figures for services that watch such over time.
//!
//! Bencher Metric Format: <https://bencher.dev/docs/reference/bencher-metric-format>. What
//! github-action-benchmark takes as `customSmallerIsBetter`: its README, "Tool: custom".

use serde_json::{Map, Value, json};

use super::history::{Point, Series};
use super::record::{Better, Kind};
use super::stats::{median, quantile};

/// A metric's newest figure.
struct Newest<'a> {
    /// What was measured, without which measure.
    benchmark: String,
    /// Which.
    measure: &'a str,
    series: &'a Series,
    point: &'a Point,
    value: f64,
    /// Between these lie all but a twentieth of the samples at each end; of exact ones, all.
    low: f64,
    high: f64,
}

/// Of each metric the newest figure: of the youngest commit, then the last run.
fn newest(all: &[Series]) -> Vec<Newest<'_>> {
    let one = |series| newest_of(series, all);
    all.iter().filter_map(one).collect()
}

fn newest_of<'a>(series: &'a Series, all: &'a [Series]) -> Option<Newest<'a>> {
    let point = series.points.last()?;
    let value = median(&point.samples)?;
    let ends = if series.metric.kind == Kind::Exact { (0.0, 1.0) } else { (0.05, 0.95) };
    let (low, high) = (quantile(&point.samples, ends.0)?, quantile(&point.samples, ends.1)?);
    let name = &series.metric.name;
    let (benchmark, measure) = name.rsplit_once('/').unwrap_or((name, "value"));
    // Two hosts that have the same metric are two benchmarks.
    let on_others = all.iter().any(|s| s.metric == series.metric && s.host != series.host);
    let benchmark = match on_others {
        true => format!("{benchmark} on {}", series.host),
        false => benchmark.to_owned(),
    };
    Some(Newest { benchmark, measure, series, point, value, low, high })
}

/// Bencher's measure of a unit: it has its own for nanoseconds, which is called latency.
fn measure(newest: &Newest<'_>) -> String {
    match &newest.series.metric.unit[..] {
        "ns" => "latency".to_owned(),
        unit => format!("{}-{}", newest.measure, unit.to_lowercase().replace(' ', "-")),
    }
}

/// In the Bencher Metric Format: benchmark, measure, value and its bounds.
pub fn bencher(all: &[Series]) -> String {
    let mut benchmarks: Map<String, Value> = Map::new();
    for newest in newest(all) {
        let measures = benchmarks.entry(newest.benchmark.clone()).or_insert_with(|| json!({}));
        measures[measure(&newest)] =
            json!({"value": newest.value, "lower_value": newest.low, "upper_value": newest.high});
    }
    pretty(&Value::Object(benchmarks))
}

/// As `customSmallerIsBetter`, and the names of what had to be left out, because more of it is better.
pub fn github(all: &[Series]) -> (String, Vec<String>) {
    let (smaller, larger): (Vec<_>, Vec<_>) =
        newest(all).into_iter().partition(|n| n.series.metric.better == Better::Lower);
    let entry = |newest: &Newest<'_>| {
        let Newest { series, point, .. } = newest;
        let machine = point.machine.as_ref().map_or_else(String::new, |m| format!("\n{m}"));
        json!({
            "name": format!("{}/{}", newest.benchmark, newest.measure),
            "unit": series.metric.unit,
            "value": newest.value,
            "range": format!("± {}", (newest.high - newest.low) / 2.0),
            "extra": format!("{}, host {}{machine}", point.commit, series.host),
        })
    };
    let text = pretty(&smaller.iter().map(entry).collect());
    (text, larger.iter().map(|newest| newest.series.metric.name.clone()).collect())
}

fn pretty(value: &Value) -> String {
    // Numbers, strings and maps of them always have a text.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

#[cfg(test)]
mod tests {
    use super::super::record::{Commit, Machine, Metric};
    use super::*;

    fn series(metric: Metric, host: &str, points: &[&[f64]]) -> Series {
        let point = |samples: &&[f64]| Point {
            commit: Commit { id: "cafe".repeat(10), dirty: false, committed: Some(1) },
            at: 2,
            machine: Some(Machine::this("release")),
            tool: "bench exact".to_owned(),
            samples: samples.to_vec(),
        };
        Series { metric, host: host.to_owned(), points: points.iter().map(point).collect() }
    }

    fn some() -> Vec<Series> {
        let higher = Metric { better: Better::Higher, ..Metric::time("any/speed", "ops/s") };
        vec![
            series(
                Metric::instructions("exits/port_read/user"),
                "kvm",
                &[&[90.0], &[95.0, 95.0, 97.0]],
            ),
            series(Metric::time("exits/port_read/latency", "TSC ticks"), "amd", &[&[700.0]]),
            series(Metric::time("exits/port_read/latency", "TSC ticks"), "kvm", &[&[2000.0]]),
            series(Metric::time("run/nothing/time", "ns"), "kvm", &[&[1.5e6, 2.5e6]]),
            series(higher, "kvm", &[&[1.0]]),
        ]
    }

    #[test]
    fn bencher_gets_measures_of_benchmarks() {
        let value: Value = serde_json::from_str(&bencher(&some())).expect("JSON");
        let bounds = |value, lower_value, upper_value| json!({"value": value, "lower_value": lower_value, "upper_value": upper_value});
        assert_eq!(
            value,
            json!({
                "exits/port_read": {"user-instructions": bounds(95.0, 95.0, 97.0)},
                "exits/port_read on amd": {"latency-tsc-ticks": bounds(700.0, 700.0, 700.0)},
                "exits/port_read on kvm": {"latency-tsc-ticks": bounds(2000.0, 2000.0, 2000.0)},
                "run/nothing": {"latency": bounds(2.0e6, 1.55e6, 2.45e6)},
                "any": {"speed-ops/s": bounds(1.0, 1.0, 1.0)},
            })
        );
        assert_eq!(bencher(&[]), "{}\n");
    }

    #[test]
    fn github_gets_a_list_of_what_is_better_smaller() {
        let (text, left_out) = github(&some());
        assert_eq!(left_out, ["any/speed"]);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        let list = value.as_array().expect("a list");
        assert_eq!(list.len(), 4);
        for entry in list {
            assert!(entry["name"].is_string() && entry["unit"].is_string(), "{entry}");
            assert!(entry["value"].is_number(), "{entry}");
        }
        assert_eq!(list[0]["name"], "exits/port_read/user");
        assert_eq!((&list[0]["value"], &list[0]["range"]), (&json!(95.0), &json!("± 1")));
        assert!(list[0]["extra"].as_str().expect("text").starts_with("cafecafeca, host kvm\n"));
        assert_eq!(list[1]["name"], "exits/port_read on amd/latency");
    }
}
