//! What all cases of an area have in common: `AREA/area.toml`.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;

use serde::Deserialize;

use super::Problems;
use crate::case::Case;
use crate::coverage::Cover;

/// The file's name; no case can have it.
pub(super) const FILE: &str = "area.toml";

/// The keys of the file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Area {
    /// What every case of the area covers.
    #[serde(default)]
    covers: Vec<Cover>,
}

/// Reads the file; an area without one has nothing in common.
pub(super) fn read(file: &Path, problems: &mut Problems) -> Area {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(e) if e.kind() == ErrorKind::NotFound => return Area::default(),
        Err(e) => {
            problems.add(file, format!("cannot be read: {e}"));
            return Area::default();
        }
    };
    toml::from_str(&text).unwrap_or_else(|e| {
        problems.add(file, e.to_string());
        Area::default()
    })
}

/// Adds what the area has in common to its cases, and finds what is said twice.
pub(super) fn apply(file: &Path, area: &Area, cases: &mut [Case], problems: &mut Problems) {
    for cover in twice(&area.covers) {
        problems.add(file, format!("`{cover}` is there twice: leave one out"));
    }
    // A variant has its base's list, which is told once.
    for case in cases.iter().filter(|case| case.id.variant.is_none()) {
        for cover in twice(&case.spec.covers) {
            problems.add(&case.file, format!("`{cover}` is there twice: leave one out"));
        }
        for cover in case.spec.covers.iter().filter(|cover| area.covers.contains(cover)) {
            let message =
                format!("every case of the area covers `{cover}`, as {FILE} says: leave it out");
            problems.add(&case.file, message);
        }
    }
    for case in cases {
        let new = area.covers.iter().filter(|cover| !case.spec.covers.contains(cover));
        let new: Vec<_> = new.cloned().collect();
        case.spec.covers.extend(new);
    }
}

fn twice(covers: &[Cover]) -> Vec<&Cover> {
    let mut seen = BTreeSet::new();
    covers.iter().filter(|cover| !seen.insert(*cover)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SMALL, load_files};

    const AREA: &str = "covers = [\"sdm:Paging\", \"apm:2.5\"]\n";

    #[test]
    fn cases_have_what_their_area_covers_and_their_own() {
        let own =
            format!("{SMALL}covers = [\"exit:KVM_EXIT_MMIO\"]\n[variant.v]\ntimeout = \"1s\"\n");
        let files = [("a/area.toml", AREA), ("a/b.toml", &own), ("b/c.toml", SMALL)];
        let cases = load_files(&files).expect("cases");
        let covers = |at: usize| -> Vec<String> {
            cases[at].spec.covers.iter().map(ToString::to_string).collect()
        };
        assert_eq!(cases.len(), 3);
        assert_eq!(covers(0), ["exit:KVM_EXIT_MMIO", "sdm:Paging", "apm:2.5"]);
        assert_eq!(covers(1), covers(0));
        assert_eq!(covers(2), [""; 0]);
    }

    #[test]
    fn what_is_wrong_is_told_of_the_right_file() {
        for (path, text, says) in [
            ("a/area.toml", "covers = [\"sdm:Pageing\"]", "the nearest is `Paging`"),
            ("a/area.toml", "cover = []", "unknown field `cover`"),
            ("a/area.toml", "covers = [\"apm:2.5\", \"apm:2.5\"]", "`apm:2.5` is there twice"),
            ("a/b.toml", "covers = [\"exit:KVM_EXIT_MMI0\"]", "the nearest is `KVM_EXIT_MMIO`"),
            ("a/b.toml", "covers = [\"apm:2.6\", \"apm:2.6\"]", "`apm:2.6` is there twice"),
            ("a/b.toml", "covers = [\"apm:2.5\"]", "as area.toml says: leave it out"),
        ] {
            let case = if path == "a/b.toml" { format!("{SMALL}{text}\n") } else { SMALL.into() };
            let area = if path == "a/area.toml" { text } else { AREA };
            let problems = load_files(&[("a/area.toml", area), ("a/b.toml", &case)]);
            let problems = problems.expect_err(text);
            assert_eq!(problems.0.len(), 1, "{problems}");
            assert!(problems.0[0].file.ends_with(path), "{problems}");
            assert!(problems.0[0].message.contains(says), "{says}: {problems}");
        }
    }
}
