//! What a soak knows, in a file that is written anew as a whole.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::engine::Hunted;
use super::export::replace;
use super::{cannot, status};
use crate::support::Failure;
use crate::support::out::complain;

/// Points of a target's curve at most; then every other one goes.
const POINTS: usize = 400;

/// One point of a target's curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds of this target's own time.
    pub at: u64,
    /// Edges that were reached.
    pub edges: u64,
    /// Inputs.
    pub inputs: u64,
    /// What the board answered, in the stable fuzzer's measure, which sees no edges.
    #[serde(default)]
    pub answers: u64,
}

/// A point of the curves of all targets together, after a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// When, in seconds since 1970.
    pub at: u64,
    /// Executions so far.
    pub executions: u64,
    /// Causes of crashes so far.
    pub crashes: u64,
    /// Seconds since something new was found.
    pub idle: u64,
}

/// What is known of a target.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Slices that it had.
    pub slices: u64,
    /// Executions.
    pub executions: u64,
    /// Time that it had, in seconds.
    pub seconds: u64,
    /// The most edges that were reached.
    pub edges: u64,
    /// The most answers that the stable fuzzer saw.
    #[serde(default)]
    pub answers: u64,
    /// Inputs in its corpus.
    pub inputs: u64,
    /// When something new was found last, in seconds since 1970.
    pub last_find: u64,
    /// Edges a minute that it still finds: a mean that forgets.
    pub rate: f64,
    /// Its curve.
    pub curve: Vec<Point>,
    /// Slices that died otherwise than by a finding.
    pub deaths: u64,
    /// How the last of them did.
    pub last_death: String,
}

/// A finding's cause, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Crash {
    /// The target that found it first.
    pub target: String,
    /// A file with it.
    pub file: String,
    /// How often it was found.
    pub times: u64,
    /// When first, and when last, in seconds since 1970.
    pub first: u64,
    /// See there.
    pub last: u64,
}

/// All that a soak knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// When the first soak began, in seconds since 1970.
    pub since: u64,
    /// How often one was begun.
    pub starts: u64,
    /// By target.
    pub targets: BTreeMap<String, Known>,
    /// By cause.
    pub crashes: BTreeMap<String, Crash>,
    /// How it went.
    #[serde(default)]
    pub moments: Vec<Moment>,
    /// Regressions that came back, as they were looked at last.
    pub back: Vec<String>,
    /// When they were.
    pub looked: u64,
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Reads the state. One that cannot be read is put aside, and said to be.
///
/// # Errors
///
/// The file cannot be read, or cannot be moved.
pub fn load(path: &Path) -> Result<State, Failure> {
    if !path.exists() {
        return Ok(State::default());
    }
    let bytes = fs::read(path).map_err(cannot("read the state of the soak", path))?;
    serde_json::from_slice(&bytes).or_else(|e| {
        let aside = path.with_extension("damaged");
        fs::rename(path, &aside).map_err(cannot("put aside", path))?;
        complain(format_args!(
            "{}: {e}; it is {} now, and counting begins anew (corpora and findings are where they were)",
            path.display(),
            aside.display()
        ));
        Ok(State::default())
    })
}

impl Known {
    /// Takes up what a slice came to.
    pub fn learn(&mut self, ran: &Hunted, time: u64) {
        self.slices += 1;
        self.executions += ran.stat.runs;
        let seconds = ran.took.as_secs().max(1);
        self.seconds += seconds;
        // A slice that died early has not seen its corpus.
        let (best, reached) = match ran.stat.edges {
            0 => (&mut self.answers, ran.stat.features),
            edges => (&mut self.edges, edges),
        };
        let grown = reached.saturating_sub(*best);
        if grown > 0 {
            self.last_find = time;
        }
        *best += grown;
        self.inputs = self.inputs.max(ran.stat.inputs);
        // The first slice finds most of all there is, which tells nothing of the next.
        let rate = if self.slices == 1 { 0.0 } else { grown as f64 * 60.0 / seconds as f64 };
        self.rate = self.rate * 0.7 + rate * 0.3;
        let Known { seconds: at, edges, inputs, answers, .. } = *self;
        self.curve.push(Point { at, edges, inputs, answers });
        thin(&mut self.curve);
    }

    /// What it reached: edges, or the stable fuzzer's answers where nobody saw edges.
    pub fn reached(&self) -> u64 {
        if self.edges > 0 { self.edges } else { self.answers }
    }
}

impl State {
    /// Notes how it stands.
    pub fn look(&mut self, time: u64) {
        let last = self.targets.values().map(|k| k.last_find).max().unwrap_or(0);
        self.moments.push(Moment {
            at: time,
            executions: self.targets.values().map(|k| k.executions).sum(),
            crashes: self.crashes.len() as u64,
            idle: time.saturating_sub(last.max(self.since)),
        });
        thin(&mut self.moments);
    }
}

/// Takes every other point of a curve that has too many, but the last.
fn thin<T>(curve: &mut Vec<T>) {
    if curve.len() > POINTS {
        let last = curve.len() - 1;
        let mut at = 0;
        curve.retain(|_| {
            at += 1;
            at % 2 == 0 || at > last
        });
    }
}

/// Writes state and page, each as a whole.
///
/// # Errors
///
/// One of them cannot be written; the old one is there.
pub fn keep(home: &Path, state: &State) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(state).map_err(|e| Failure::bad(e.to_string()))?;
    let files: [(&str, Vec<u8>); 3] = [
        ("state.json", text.clone()),
        ("status.json", text),
        ("status.html", status::page(state, now()).into_bytes()),
    ];
    for (name, bytes) in files {
        let path: PathBuf = home.join(name);
        replace(&path, &bytes).map_err(cannot("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::fuzz::engine::ran;

    #[test]
    fn a_curve_stays_short_and_keeps_its_ends() {
        let mut known = Known::default();
        for edges in 0..3000 {
            known.learn(&ran(edges, 1), 1);
        }
        assert!(known.curve.len() <= POINTS + 1, "{}", known.curve.len());
        assert_eq!(known.curve.last().map(|p| p.edges), Some(2999));
        assert!(known.curve.is_sorted_by_key(|p| p.at));
    }

    #[test]
    fn answers_count_where_nobody_sees_edges() {
        let mut known = Known::default();
        let mut slice = ran(0, 10);
        slice.stat.features = 70;
        known.learn(&slice, 5);
        assert_eq!((known.edges, known.reached(), known.last_find), (0, 70, 5));
        assert_eq!(known.curve.last().map(|p| p.answers), Some(70));
        known.learn(&ran(30, 10), 6);
        assert_eq!(known.reached(), 30, "edges are another measure");
    }

    #[test]
    fn a_state_that_is_damaged_is_put_aside() {
        let dir = std::env::temp_dir().join(format!("exitlab-soak-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("state.json");
        let mut state = State { since: 5, starts: 2, ..State::default() };
        state.targets.entry("uart".into()).or_default().learn(&ran(9, 9), 9);
        state.look(12);
        assert_eq!((state.moments[0].executions, state.moments[0].idle), (100, 3));
        keep(&dir, &state).expect("written");
        assert_eq!(load(&path).expect("read"), state);
        fs::write(&path, b"{ half of").expect("written");
        assert_eq!(load(&path).expect("put aside"), State::default());
        assert_eq!(fs::read(dir.join("state.damaged")).expect("aside"), b"{ half of");
        fs::remove_dir_all(&dir).expect("removed");
    }
}
