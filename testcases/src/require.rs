//! Which skips are not accepted.
//!
//! `--require NAMES` and the environment variable `EXITLAB_REQUIRE` name needs, separated by commas.
//! A skip for a named need becomes an error. Some names are no needs of a case:
//!
//! | name | these skips are errors |
//! |---|---|
//! | `kvm` | for want of a usable `/dev/kvm` |
//! | `guest` | which the guest decided itself |
//! | `known-bugs` | of cases that a known bug of KVM fails |
//! | `configurations` | of images that are not for our machine or this host, or want what it lacks |
//! | `deviations` | of cases that an emulated processor is known to fail |
//! | `all` | every one |

use crate::need::Need;
use crate::skip::Cause;

/// The environment variable that requires as `--require` does.
pub const VARIABLE: &str = "EXITLAB_REQUIRE";

/// Names that are no needs.
const SPECIAL: [&str; 5] = ["guest", "known-bugs", "configurations", "deviations", "all"];

/// A set of skips that are not accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Require {
    names: Vec<String>,
}

/// The names, separated by commas, as [`Require::parse`] reads them.
impl std::fmt::Display for Require {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.names.join(","))
    }
}

impl Require {
    /// Reads names separated by commas.
    ///
    /// # Errors
    ///
    /// A name that is no need and none of the special ones.
    pub fn parse(text: &str) -> Result<Require, String> {
        let names: Vec<String> =
            text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_string).collect();
        for name in &names {
            if !SPECIAL.contains(&name.as_str()) {
                let (last, others) = SPECIAL.split_last().expect("there are some");
                Need::try_from(name.clone()).map_err(|e| {
                    format!("cannot require `{name}`: {e}, {} or {last}", others.join(", "))
                })?;
            }
        }
        Ok(Require { names })
    }

    /// Adds the names of `other`.
    pub fn and(mut self, other: Require) -> Require {
        self.names.extend(other.names);
        self.names.sort();
        self.names.dedup();
        self
    }

    /// Whether a skip for this cause is an error.
    pub fn forbids(&self, cause: &Cause) -> bool {
        let name = match cause {
            Cause::Need(need) => need.to_string(),
            Cause::Guest => "guest".into(),
            Cause::KnownBug => "known-bugs".into(),
            Cause::Configuration => "configurations".into(),
            Cause::Deviation => "deviations".into(),
        };
        self.names.iter().any(|n| *n == name || n == "all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_skips_are_forbidden_and_others_are_not() {
        let need = |name: &str| Cause::Need(Need::try_from(name.to_string()).expect(name));
        let causes = || {
            let needs = ["kvm", "cpuid:x2apic", "cpuid:pcid"].map(need);
            needs.into_iter().chain([
                Cause::Guest,
                Cause::KnownBug,
                Cause::Deviation,
                Cause::Configuration,
            ])
        };
        for (names, forbidden) in [
            ("", &[][..]),
            ("kvm, cpuid:x2apic", &[0, 1]),
            ("guest", &[3]),
            ("known-bugs", &[4]),
            ("deviations,guest", &[3, 5]),
            ("configurations", &[6]),
            ("all", &[0, 1, 2, 3, 4, 5, 6]),
        ] {
            let require = Require::parse(names).expect(names);
            let got: Vec<_> = causes().map(|cause| require.forbids(&cause)).collect();
            let must: Vec<_> = (0..7).map(|index| forbidden.contains(&index)).collect();
            assert_eq!(got, must, "{names}");
        }
        let guest = Require::parse("guest").expect("names").and(Require::default());
        let both = guest.and(Require::parse("guest,kvm").expect("names"));
        assert_eq!(both.to_string(), "guest,kvm");
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = Require::parse("kvm,kmv").unwrap_err();
        assert!(error.contains("cannot require `kmv`"), "{error}");
        assert!(error.ends_with("guest, known-bugs, configurations, deviations or all"), "{error}");
    }
}
