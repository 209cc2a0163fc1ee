//! The page of this tree's own cases.

use std::path::{Path, PathBuf};

use testcases::case::Case;
use testcases::coverage::{Column, Kind, Map, Mark, page};
use testcases::load::load;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")
}

fn cases() -> Vec<Case> {
    load(&dir()).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn what_cases_cover_is_on_the_lists_and_each_row_leads_to_them() {
    let cases = cases();
    let map = Map::of(&cases);
    let mut covered = 0;
    for kind in Kind::ALL {
        for row in kind.rows() {
            let found = map.cases(&row.cover);
            covered += usize::from(!found.is_empty());
            assert!(row.x86 || found.is_empty(), "{}", row.cover);
        }
    }
    let covers: Vec<_> = map.covers().collect();
    assert_eq!(covers.len(), covered, "a name that is no row of its list");
    assert!(covers.iter().all(|cover| !map.cases(cover).is_empty()));
    for case in &cases {
        for cover in &case.spec.covers {
            let found = map.cases(cover);
            assert!(found.iter().any(|other| other.id == case.id), "{}: {cover}", case.id);
        }
    }
}

#[test]
fn the_page_has_a_row_for_each_exit_and_ioctl_with_what_became_of_it() {
    let cases = cases();
    let marks = cases.iter().map(|case| (case.id.to_string(), Mark::Pass)).collect();
    let page = page(&cases, &[Column { name: "amd".into(), ran: true, marks }]);
    for kind in [Kind::Exit, Kind::Ioctl] {
        for row in kind.rows() {
            let name = format!("| `{}` ", row.cover.name());
            assert_eq!(page.lines().filter(|line| line.starts_with(&name)).count(), 1, "{name}");
        }
    }
    let run = page.lines().find(|line| line.starts_with("| `KVM_RUN` ")).expect("a row");
    assert!(run.contains("every guest"), "{run}");
    let debug = page.lines().find(|line| line.starts_with("| `KVM_EXIT_DEBUG` ")).expect("a row");
    assert!(debug.contains("lab ") && debug.contains("/0/0 "), "{debug}");
}
