//! The emulated hosts that there are.

use std::fmt;
use std::str::FromStr;

use crate::plan::Params;

/// Which emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// kvm-amd, on QEMU's TCG.
    Amd,
    /// kvm-intel, on Bochs.
    Intel,
}

impl Name {
    /// All of them.
    pub const ALL: [Name; 2] = [Name::Amd, Name::Intel];

    /// The word for it on command lines and in reports.
    pub const fn word(self) -> &'static str {
        match self {
            Name::Amd => "amd",
            Name::Intel => "intel",
        }
    }

    /// The module that makes it a KVM host; the others are those it depends on.
    pub const fn module(self) -> &'static str {
        match self {
            Name::Amd => "kvm-amd",
            Name::Intel => "kvm-intel",
        }
    }

    /// The parameters that its modules are loaded with unless the user says otherwise.
    ///
    /// Bochs 3.0 refuses a posted-interrupt descriptor that does not begin a page, where the SDM (volume
    /// 3C, 31.6) asks for 64 bytes; so with APICv no guest of KVM starts there.
    pub fn params(self) -> Params {
        let fixed: &[(&str, &str, &str)] = match self {
            Name::Amd => &[],
            Name::Intel => &[("kvm_intel", "enable_apicv", "N")],
        };
        let entry = |&(m, p, v): &(&str, &str, &str)| ((m.to_string(), p.to_string()), v.into());
        Params(fixed.iter().map(entry).collect())
    }

    /// What it is, for people.
    pub const fn about(self) -> &'static str {
        match self {
            Name::Amd => "kvm-amd on a machine that QEMU's TCG emulates",
            Name::Intel => "kvm-intel on a machine that Bochs emulates",
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let all = Name::ALL.map(Name::word).join(", ");
        let found = Name::ALL.into_iter().find(|name| name.word() == text);
        found.ok_or_else(|| format!("no emulated host is called `{text}`: there are {all}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_found_by_its_word() {
        for name in Name::ALL {
            assert_eq!(name.word().parse(), Ok(name));
        }
        let error = "arm".parse::<Name>().unwrap_err();
        assert!(error.contains("`arm`") && error.contains("amd, intel"), "{error}");
    }
}
