//! "Did you mean": the known name that is closest to one that is not known.

use vmm::words::distance;

/// The candidate with the smallest edit distance to `name`, if any is close enough to be what was
/// meant: two edits or a third of the name away at most, or containing it.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let rate = |candidate: &'a str| {
        let d = if candidate.contains(name) { 0 } else { distance(name, candidate) };
        let longer = name.len().max(candidate.len());
        (d < longer && d <= (longer / 3).max(2)).then_some((d, candidate))
    };
    candidates.into_iter().filter_map(rate).min().map(|(_, candidate)| candidate)
}

/// `; the nearest is X`, or nothing: what an error message appends.
pub fn hint<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map(|c| format!("; the nearest is `{c}`")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_close_is_offered() {
        let known = ["x2apic_self_ipi", "x2apic_msr", "tsc_deadline"];
        assert_eq!(nearest("x2apic_self_api", known), Some("x2apic_self_ipi"));
        assert_eq!(nearest("deadline", known), Some("tsc_deadline"));
        assert_eq!(nearest("paging", known), None);
        assert_eq!(hint("x2apic_mrs", known), "; the nearest is `x2apic_msr`");
        assert_eq!(hint("paging", known), "");
    }
}
