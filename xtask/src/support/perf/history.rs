//! What was measured before: runs, what came of comparisons, and both again by metric.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::judge::{Judged, Verdict};
use super::record::{Better, Commit, Kind, Machine, Measurement, Metric, Run};
use super::schema;
use crate::support::out::complain;
use crate::support::{Failure, root};

/// Where it is unless somebody says.
const PLACE: &str = "target/perf/history.db";

/// The database.
pub struct History {
    path: PathBuf,
    connection: Connection,
}

/// What one run saw of one metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The sources.
    pub commit: Commit,
    /// When it was measured. Seconds since 1970.
    pub at: i64,
    /// On which machine, if that was told.
    pub machine: Option<Machine>,
    /// What measured.
    pub tool: String,
    /// What was seen.
    pub samples: Vec<f64>,
}

/// A metric on a host, and all that was seen of it: by age of the commits, then as measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The metric.
    pub metric: Metric,
    /// The host.
    pub host: String,
    /// What was seen.
    pub points: Vec<Point>,
}

/// A comparison that was made.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// When. Seconds since 1970.
    pub at: i64,
    /// With what it compared, and what.
    pub base: String,
    /// As above.
    pub new: String,
    /// Where.
    pub machine: Machine,
    /// What it came to.
    pub verdicts: Vec<Judged>,
}

impl History {
    /// Opens the history, or begins it.
    ///
    /// # Errors
    ///
    /// As of [`schema::open`].
    pub fn open(given: Option<&Path>) -> Result<History, Failure> {
        let path = place(given);
        if given.is_none()
            && let Some(dir) = path.parent()
        {
            std::fs::create_dir_all(dir)
                .map_err(|e| Failure::input(format!("cannot create {}: {e}", dir.display())))?;
        }
        let connection = schema::open(&path, &mut |line| complain(line))?;
        Ok(History { path, connection })
    }

    /// Opens a history that has something in it.
    ///
    /// # Errors
    ///
    /// As of [`History::open`], or there is none.
    pub fn existing(given: Option<&Path>) -> Result<History, Failure> {
        let path = place(given);
        let none = || {
            let db = given.map_or_else(String::new, |given| format!(" --db {}", given.display()));
            Failure::input(format!(
                "there is no history in {} yet; `cargo xtask bench exact --save{db}` or `cargo xtask perf \
                 measure{db}` begins one",
                path.display()
            ))
        };
        if !path.exists() {
            return Err(none());
        }
        let history = History::open(given)?;
        let runs: i64 =
            history.ask(|db| db.query_row("SELECT count(*) FROM run", [], |r| r.get(0)))?;
        if runs == 0 { Err(none()) } else { Ok(history) }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn ask<T>(&self, ask: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Failure> {
        ask(&self.connection).map_err(|e| self.failed("read", &e))
    }

    fn failed(&self, what: &str, why: &rusqlite::Error) -> Failure {
        Failure::bad(format!("cannot {what} the history {}: {why}", self.path.display()))
    }

    /// Keeps a run.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn save(&mut self, run: &Run) -> Result<(), Failure> {
        let write = |db: &mut Connection| {
            let db = db.transaction()?;
            let machine =
                run.machine.as_ref().map(|machine| machine_id(&db, machine)).transpose()?;
            let commit = &run.commit;
            db.execute(
                "INSERT INTO run (at, commit_id, dirty, host, tool, machine, committed) \
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
                params![
                    run.at,
                    commit.id,
                    commit.dirty,
                    run.host,
                    run.tool,
                    machine,
                    commit.committed
                ],
            )?;
            let id = db.last_insert_rowid();
            for Measurement { metric, samples } in &run.measurements {
                let metric = metric_id(&db, metric)?;
                let samples = serde_json::to_string(samples).unwrap_or_default();
                db.execute(
                    "INSERT INTO measurement VALUES (?, ?, ?)",
                    params![id, metric, samples],
                )?;
            }
            db.commit()
        };
        write(&mut self.connection).map_err(|e| self.failed("write", &e))
    }

    /// Keeps what a comparison came to.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub fn save_comparison(&mut self, comparison: &Comparison) -> Result<(), Failure> {
        let write = |db: &mut Connection| {
            let db = db.transaction()?;
            let machine = machine_id(&db, &comparison.machine)?;
            let Comparison { at, base, new, .. } = comparison;
            db.execute(
                "INSERT INTO comparison (at, base, new, machine) VALUES (?, ?, ?, ?)",
                params![at, base, new, machine],
            )?;
            let id = db.last_insert_rowid();
            for judged in &comparison.verdicts {
                let metric = metric_id(&db, &judged.metric)?;
                let Judged { verdict, before, after, change, why, .. } = judged;
                db.execute(
                    "INSERT INTO verdict VALUES (?, ?, ?, ?, ?, ?, ?)",
                    params![id, metric, verdict.word(), before, after, change, why],
                )?;
            }
            db.commit()
        };
        write(&mut self.connection).map_err(|e| self.failed("write", &e))
    }

    /// Everything, by metric and host.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn series(&self) -> Result<Vec<Series>, Failure> {
        let rows = self.ask(|db| {
            let mut ask = db.prepare(
                "SELECT m.name, m.unit, m.better, m.kind, r.host, r.commit_id, r.dirty, r.committed, r.at, r.tool, \
                 s.samples, c.cpu, c.kernel, c.profile, c.qemu \
                 FROM measurement s JOIN run r ON r.id = s.run JOIN metric m ON m.id = s.metric \
                 LEFT JOIN machine c ON c.id = r.machine \
                 ORDER BY m.name, r.host, coalesce(r.committed, r.at), r.at, r.id",
            )?;
            let rows = ask.query_map([], |row| {
                let commit =
                    Commit { id: row.get(5)?, dirty: row.get(6)?, committed: row.get(7)? };
                let text: String = row.get(10)?;
                let samples: Vec<f64> = serde_json::from_str(&text).map_err(|e| odd(10, e))?;
                let machine = match row.get::<_, Option<String>>(11)? {
                    Some(_) => Some(machine(row, 11)?),
                    None => None,
                };
                let point = Point { commit, at: row.get(8)?, machine, tool: row.get(9)?, samples };
                Ok((metric(row, 0)?, row.get::<_, String>(4)?, point))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        let mut all: BTreeMap<(Metric, String), Vec<Point>> = BTreeMap::new();
        for (metric, host, point) in rows {
            all.entry((metric, host)).or_default().push(point);
        }
        let series = |((metric, host), points)| Series { metric, host, points };
        Ok(all.into_iter().map(series).collect())
    }

    /// The last comparison, if there was one.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn last_comparison(&self) -> Result<Option<Comparison>, Failure> {
        self.ask(|db| {
            let last = db.query_row(
                "SELECT o.at, o.base, o.new, c.cpu, c.kernel, c.profile, c.qemu, o.id \
                 FROM comparison o JOIN machine c ON c.id = o.machine ORDER BY o.id DESC LIMIT 1",
                [],
                |row| {
                    let verdicts = Vec::new();
                    let (at, base, new) = (row.get(0)?, row.get(1)?, row.get(2)?);
                    let machine = machine(row, 3)?;
                    Ok((row.get(7)?, Comparison { at, base, new, machine, verdicts }))
                },
            );
            let last: Option<(i64, Comparison)> = last.optional()?;
            let Some((id, mut comparison)) = last else { return Ok(None) };
            let mut ask = db.prepare(
                "SELECT m.name, m.unit, m.better, m.kind, v.verdict, v.before, v.after, v.change, v.why \
                 FROM verdict v JOIN metric m ON m.id = v.metric WHERE v.comparison = ? ORDER BY m.name",
            )?;
            let rows = ask.query_map([id], |row| {
                Ok(Judged {
                    metric: metric(row, 0)?,
                    verdict: word(row, 4, Verdict::of)?,
                    before: row.get(5)?,
                    after: row.get(6)?,
                    change: row.get(7)?,
                    why: row.get(8)?,
                })
            })?;
            comparison.verdicts = rows.collect::<rusqlite::Result<Vec<_>>>()?;
            Ok(Some(comparison))
        })
    }

    /// By how much a metric differed in comparisons on a machine that called it the same: what it does by itself.
    ///
    /// # Errors
    ///
    /// It cannot be read.
    pub fn changes_without_cause(
        &self,
        metric: &Metric,
        machine: &Machine,
    ) -> Result<Vec<f64>, Failure> {
        self.ask(|db| {
            let mut ask = db.prepare(
                "SELECT v.change FROM verdict v JOIN comparison o ON o.id = v.comparison \
                 JOIN metric m ON m.id = v.metric JOIN machine c ON c.id = o.machine \
                 WHERE v.verdict = 'same' AND v.change IS NOT NULL AND m.name = ? AND m.unit = ? AND c.cpu = ? \
                 AND c.kernel = ? AND c.profile = ? ORDER BY o.id DESC LIMIT 100",
            )?;
            let Machine { cpu, kernel, profile, .. } = machine;
            let rows = ask
                .query_map(params![metric.name, metric.unit, cpu, kernel, profile], |r| r.get(0))?;
            rows.collect()
        })
    }

    /// A time as people write it, in UTC.
    pub fn date(&self, at: i64) -> String {
        let date = "SELECT strftime('%Y-%m-%d %H:%M', ?, 'unixepoch')";
        self.connection.query_row(date, [at], |row| row.get(0)).unwrap_or_default()
    }
}

fn place(given: Option<&Path>) -> PathBuf {
    given.map_or_else(|| root().join(PLACE), Path::to_owned)
}

/// A column does not hold what it must.
fn odd(column: usize, why: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(why))
}

fn word<T>(row: &Row<'_>, at: usize, of: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let word: String = row.get(at)?;
    of(&word).ok_or_else(|| odd(at, std::io::Error::other(format!("`{word}` is no word of ours"))))
}

fn metric(row: &Row<'_>, at: usize) -> rusqlite::Result<Metric> {
    Ok(Metric {
        name: row.get(at)?,
        unit: row.get(at + 1)?,
        better: word(row, at + 2, Better::of)?,
        kind: word(row, at + 3, Kind::of)?,
    })
}

fn machine(row: &Row<'_>, at: usize) -> rusqlite::Result<Machine> {
    let (cpu, kernel) = (row.get(at)?, row.get(at + 1)?);
    Ok(Machine { cpu, kernel, profile: row.get(at + 2)?, qemu: row.get(at + 3)? })
}

fn metric_id(db: &Connection, metric: &Metric) -> rusqlite::Result<i64> {
    let Metric { name, unit, better, kind } = metric;
    let values = params![name, unit, better.word(), kind.word()];
    db.execute(
        "INSERT OR IGNORE INTO metric (name, unit, better, kind) VALUES (?, ?, ?, ?)",
        values,
    )?;
    let ask = "SELECT id FROM metric WHERE (name, unit, better, kind) = (?, ?, ?, ?)";
    db.query_row(ask, values, |row| row.get(0))
}

fn machine_id(db: &Connection, machine: &Machine) -> rusqlite::Result<i64> {
    let Machine { cpu, kernel, profile, qemu } = machine;
    let values = params![cpu, kernel, profile, qemu];
    db.execute(
        "INSERT OR IGNORE INTO machine (cpu, kernel, profile, qemu) VALUES (?, ?, ?, ?)",
        values,
    )?;
    let ask = "SELECT id FROM machine WHERE (cpu, kernel, profile, qemu) = (?, ?, ?, ?)";
    db.query_row(ask, values, |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temporary() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("history.db");
        (dir, path)
    }

    fn run(id: &str, committed: i64, at: i64, samples: &[f64]) -> Run {
        let metric = Metric::instructions("exits/port_read/user");
        Run {
            commit: Commit { id: id.to_owned(), dirty: false, committed: Some(committed) },
            at,
            host: "kvm".to_owned(),
            tool: "bench exact".to_owned(),
            machine: Some(Machine::this("release")),
            measurements: vec![Measurement { metric, samples: samples.to_vec() }],
        }
    }

    #[test]
    fn what_is_saved_comes_back_by_the_age_of_commits() {
        let (_dir, path) = temporary();
        let mut history = History::open(Some(&path)).expect("opened");
        let runs = [run("bbb", 20, 100, &[5.0]), run("aaa", 10, 200, &[4.5, 4.0, 1e-3])];
        runs.iter().for_each(|run| history.save(run).expect("saved"));
        drop(history);
        let series = History::existing(Some(&path)).expect("opened").series().expect("read");
        assert_eq!(series.len(), 1);
        assert_eq!(
            (&series[0].metric, &series[0].host[..]),
            (&runs[0].measurements[0].metric, "kvm")
        );
        let seen: Vec<(&str, &[f64])> =
            series[0].points.iter().map(|p| (&p.commit.id[..], &p.samples[..])).collect();
        assert_eq!(seen, [("aaa", &[4.5, 4.0, 1e-3][..]), ("bbb", &[5.0][..])]);
        assert_eq!(series[0].points[0].machine, runs[0].machine);
        assert_eq!(series[0].points[0].at, 200);
    }

    #[test]
    fn no_history_says_how_one_begins() {
        let (_dir, path) = temporary();
        let why = History::existing(Some(&path)).err().expect("none").message;
        assert!(why.contains("no history in") && why.contains("bench exact --save --db"), "{why}");
        assert!(!path.exists(), "asking makes no file");
        drop(History::open(Some(&path)).expect("made"));
        let why = History::existing(Some(&path)).err().expect("an empty one").message;
        assert!(why.contains("no history in"), "{why}");
    }

    /// The file is written as the first schema had it, and not by what is tested.
    #[test]
    fn a_history_of_the_first_schema_keeps_all_it_has() {
        let (_dir, path) = temporary();
        let old = Connection::open(&path).expect("opened");
        old.execute_batch(
            "PRAGMA application_id = 0x786c6162; PRAGMA user_version = 1;
             CREATE TABLE run (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, commit_id TEXT NOT NULL,
                 dirty INTEGER NOT NULL, host TEXT NOT NULL, tool TEXT NOT NULL) STRICT;
             CREATE TABLE metric (id INTEGER PRIMARY KEY, name TEXT NOT NULL, unit TEXT NOT NULL,
                 better TEXT NOT NULL CHECK (better IN ('lower', 'higher')),
                 kind TEXT NOT NULL CHECK (kind IN ('exact', 'noisy')),
                 UNIQUE (name, unit, better, kind)) STRICT;
             CREATE TABLE measurement (run INTEGER NOT NULL REFERENCES run ON DELETE CASCADE,
                 metric INTEGER NOT NULL REFERENCES metric, samples TEXT NOT NULL,
                 PRIMARY KEY (run, metric)) STRICT, WITHOUT ROWID;
             INSERT INTO run VALUES (7, 1000, 'cafe', 1, 'amd', 'bench exact');
             INSERT INTO metric VALUES (3, 'exits/port_read/over', 'instructions', 'lower', 'exact');
             INSERT INTO measurement VALUES (7, 3, '[65.0,66.0]');",
        )
        .expect("made");
        drop(old);
        let mut history = History::existing(Some(&path)).expect("migrated");
        let version: i64 = history
            .ask(|db| db.pragma_query_value(None, "user_version", |row| row.get(0)))
            .expect("a number");
        assert_eq!(version, 2);
        let series = history.series().expect("read");
        let commit = Commit { id: "cafe".to_owned(), dirty: true, committed: None };
        let (tool, samples) = ("bench exact".to_owned(), vec![65.0, 66.0]);
        let point = Point { commit, at: 1000, machine: None, tool, samples };
        assert_eq!((&series[0].host[..], &series[0].points), ("amd", &vec![point]));
        // And it takes what is measured now.
        let mut now = run("aaa", 2000, 3000, &[70.0]);
        now.host = "amd".to_owned();
        now.measurements[0].metric = Metric::instructions("exits/port_read/over");
        history.save(&now).expect("saved");
        assert_eq!(history.series().expect("read")[0].points.len(), 2);
    }

    #[test]
    fn samples_that_are_none_are_an_error_that_names_the_file() {
        let (_dir, path) = temporary();
        let mut history = History::open(Some(&path)).expect("opened");
        history.save(&run("aaa", 1, 2, &[1.0])).expect("saved");
        history.connection.execute("UPDATE measurement SET samples = 'x'", []).expect("set");
        let why = history.series().expect_err("no numbers").message;
        assert!(why.contains("cannot read the history") && why.contains("history.db"), "{why}");
    }

    #[test]
    fn the_last_comparison_comes_back_and_the_same_make_a_fence() {
        let (_dir, path) = temporary();
        let mut history = History::open(Some(&path)).expect("opened");
        assert_eq!(history.last_comparison().expect("read"), None);
        let metric = Metric::time("run/nothing/time", "ns");
        let machine = Machine::this("release");
        let comparison = |verdict, change| Comparison {
            at: 5,
            base: "aaa".to_owned(),
            new: "bbb with changes".to_owned(),
            machine: machine.clone(),
            verdicts: vec![Judged {
                metric: metric.clone(),
                verdict,
                before: Some(10.0),
                after: Some(10.0 * (1.0 + change)),
                change: Some(change),
                why: "p 0.5".to_owned(),
            }],
        };
        for (verdict, change) in
            [(Verdict::Same, 0.01), (Verdict::Worse, 0.5), (Verdict::Same, -0.02)]
        {
            history.save_comparison(&comparison(verdict, change)).expect("saved");
        }
        let last = history.last_comparison().expect("read").expect("one");
        assert_eq!(last, comparison(Verdict::Same, -0.02));
        let changes = history.changes_without_cause(&metric, &machine).expect("read");
        assert_eq!(changes, [-0.02, 0.01]);
        let other = Machine { cpu: "another".to_owned(), ..machine };
        assert!(history.changes_without_cause(&metric, &other).expect("read").is_empty());
        assert_eq!(history.date(1_000_000_000), "2001-09-09 01:46");
    }
}
