//! Chooses cases by the filters of a command line.

use crate::case::Case;
use crate::nearest;
use crate::runner::shell_line;

/// Chooses the cases that any filter matches; all of them if there is no filter.
///
/// A filter is a part of an id (`apic`, `ipi@smp2`), a pattern for the whole id with `*` (anything)
/// and `?` (one character), or `tag:WORD`. With `exact` it is a whole id. `command` is what lists the
/// cases, after `cargo xtask`.
///
/// # Errors
///
/// A filter that matches nothing: it is a mistake, and a run of nothing would look like a success.
pub fn select(
    cases: &[Case],
    filters: &[String],
    exact: bool,
    command: &[String],
) -> Result<Vec<Case>, String> {
    for filter in filters {
        if !cases.iter().any(|case| matches(case, filter, exact)) {
            let ids: Vec<String> = cases.iter().map(|case| case.id.to_string()).collect();
            let hint = nearest::hint(filter, ids.iter().map(String::as_str));
            return Err(format!(
                "no case matches `{filter}`{hint}; `cargo xtask {} --list` shows all {} cases",
                shell_line(command),
                cases.len()
            ));
        }
    }
    let chosen = |case: &&Case| {
        filters.is_empty() || filters.iter().any(|filter| matches(case, filter, exact))
    };
    Ok(cases.iter().filter(chosen).cloned().collect())
}

fn matches(case: &Case, filter: &str, exact: bool) -> bool {
    let id = case.id.to_string();
    if exact {
        id == filter
    } else if let Some(tag) = filter.strip_prefix("tag:") {
        case.spec.tags.iter().any(|t| t.0 == tag)
    } else if filter.contains(['*', '?']) {
        glob(filter.as_bytes(), id.as_bytes())
    } else {
        id.contains(filter)
    }
}

/// Whether the pattern matches all of the text. Goes back to the last `*` only, so its time is
/// bounded by the product of the lengths.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == text[t] => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((star_p, star_t)) => {
                    p = star_p + 1;
                    t = star_t + 1;
                    star = Some((star_p, t));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::CaseId;

    fn case(area: &str, name: &str, variant: Option<&str>) -> Case {
        let text = "about = \"x\"\npayload = \"a::b\"\ntags = [\"smoke\"]\n";
        let id =
            CaseId { area: area.into(), name: name.into(), variant: variant.map(str::to_string) };
        let mut spec: crate::case::Spec = toml::from_str(text).expect("a case");
        if variant.is_some() {
            spec.tags.clear();
        }
        Case { id, file: "x.toml".into(), spec }
    }

    fn chosen(filters: &[&str], exact: bool) -> Result<Vec<String>, String> {
        let cases =
            [case("apic", "ipi", None), case("apic", "ipi", Some("smp2")), case("tsc", "x", None)];
        let filters: Vec<String> = filters.iter().map(|f| f.to_string()).collect();
        let chosen = select(&cases, &filters, exact, &["test".into()])?;
        Ok(chosen.iter().map(|case| case.id.to_string()).collect())
    }

    #[test]
    fn filters_choose_by_part_pattern_tag_and_whole_id() {
        let all = vec!["apic/ipi", "apic/ipi@smp2", "tsc/x"];
        for (filters, exact, ids) in [
            (vec![], false, all.clone()),
            (vec!["apic"], false, vec!["apic/ipi", "apic/ipi@smp2"]),
            (vec!["apic/ipi"], true, vec!["apic/ipi"]),
            (vec!["*@smp?"], false, vec!["apic/ipi@smp2"]),
            (vec!["apic/*", "tsc"], false, all.clone()),
            (vec!["tag:smoke"], false, vec!["apic/ipi", "tsc/x"]),
        ] {
            let got = chosen(&filters, exact).expect("some");
            assert_eq!(got, ids, "{filters:?}");
        }
    }

    #[test]
    fn a_filter_that_matches_nothing_is_an_error() {
        for (filters, exact) in [
            (vec!["apci/ipi"], false),
            (vec!["apic", "nothing"], false),
            (vec!["apic"], true),
            (vec!["apic/?"], false),
            (vec!["tag:slow"], false),
        ] {
            let error = chosen(&filters, exact).unwrap_err();
            assert!(error.contains("no case matches"), "{error}");
        }
        assert!(chosen(&["apci/ipi"], false).unwrap_err().contains("nearest is `apic/ipi`"));
    }

    #[test]
    fn patterns() {
        for (pattern, text, yes) in [
            ("*", "", true),
            ("a*c", "abc", true),
            ("a*c", "abd", false),
            ("*b*d", "abcd", true),
            ("?", "", false),
            ("a?", "ab", true),
            ("**", "ab", true),
            ("a*ab", "aaab", true),
            ("abc", "ab", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), yes, "{pattern} {text}");
        }
    }
}
