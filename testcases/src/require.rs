//! Which skips are not accepted.
//!
//! `--require NAMES` and the environment variable `EXITLAB_REQUIRE` name needs, separated by commas.
//! A skip for a named need becomes an error. Three names are special: `kvm` (a usable `/dev/kvm`),
//! `guest` (a skip that the guest decided itself) and `all` (every skip).

use crate::need::Need;

/// The environment variable that requires as `--require` does.
pub const VARIABLE: &str = "EXITLAB_REQUIRE";

/// A set of needs that must be met.
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
            if !matches!(name.as_str(), "guest" | "all") {
                Need::try_from(name.clone())
                    .map_err(|e| format!("cannot require `{name}`: {e}, guest or all"))?;
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

    /// Whether a skip for this need is an error. `None` stands for the guest's own skip.
    pub fn forbids(&self, need: Option<&Need>) -> bool {
        let name = need.map_or("guest".into(), Need::to_string);
        self.names.iter().any(|n| *n == name || n == "all")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_skips_are_forbidden_and_others_are_not() {
        let require = Require::parse("kvm, cpuid:x2apic").expect("names");
        let x2apic = Need::Cpuid("x2apic".into());
        assert!(require.forbids(Some(&Need::Kvm)) && require.forbids(Some(&x2apic)));
        assert!(!require.forbids(Some(&Need::Cpuid("pcid".into()))) && !require.forbids(None));
        let all = Require::parse("all").expect("names");
        assert!(all.forbids(None) && all.forbids(Some(&x2apic)));
        let guest = Require::parse("guest").expect("names").and(Require::default());
        let both = require.clone().and(Require::parse("guest,kvm").expect("names"));
        assert_eq!(both.to_string(), "cpuid:x2apic,guest,kvm");
        assert!(guest.forbids(None) && !guest.forbids(Some(&Need::Kvm)));
        assert!(!Require::parse("").expect("no names").forbids(Some(&Need::Kvm)));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        let error = Require::parse("kvm,kmv").unwrap_err();
        assert!(error.contains("cannot require `kmv`"), "{error}");
    }
}
