//! What was measured, of what, where and when.

use std::fmt;

/// Whether a figure repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// To the instruction.
    Exact,
    /// Never: a time.
    Noisy,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

impl Kind {
    /// Its word in the history.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Exact => "exact",
            Kind::Noisy => "noisy",
        }
    }

    /// The kind of a word.
    pub fn of(word: &str) -> Option<Kind> {
        [Kind::Exact, Kind::Noisy].into_iter().find(|kind| kind.word() == word)
    }
}

impl Better {
    /// Its word in the history.
    pub fn word(self) -> &'static str {
        match self {
            Better::Lower => "lower",
            Better::Higher => "higher",
        }
    }

    /// The direction of a word.
    pub fn of(word: &str) -> Option<Better> {
        [Better::Lower, Better::Higher].into_iter().find(|better| better.word() == word)
    }
}

/// A quantity.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Metric {
    /// Its name, such as `exits/port_read/user`: what is measured, and last which measure of it.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// Which way is good.
    pub better: Better,
    /// Whether it repeats.
    pub kind: Kind,
}

impl Metric {
    /// A count of instructions.
    pub fn instructions(name: impl Into<String>) -> Metric {
        let (unit, better) = ("instructions".to_owned(), Better::Lower);
        Metric { name: name.into(), unit, better, kind: Kind::Exact }
    }

    /// A time.
    pub fn time(name: impl Into<String>, unit: &str) -> Metric {
        let (unit, better) = (unit.to_owned(), Better::Lower);
        Metric { name: name.into(), unit, better, kind: Kind::Noisy }
    }
}

/// A quantity and what was seen of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The quantity.
    pub metric: Metric,
    /// All that was seen, in its order.
    pub samples: Vec<f64>,
}

/// The sources that were measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// The whole id.
    pub id: String,
    /// The sources had changes that are in no commit.
    pub dirty: bool,
    /// When it was made. Seconds since 1970; a history of the first schema does not say.
    pub committed: Option<i64>,
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short: String = self.id.chars().take(10).collect();
        write!(f, "{short}{}", if self.dirty { " with changes" } else { "" })
    }
}

/// What a machine is told by: times of two are not to be compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Machine {
    /// The model of the processor.
    pub cpu: String,
    /// The kernel's release; of an emulated host, of that.
    pub kernel: String,
    /// How the VMM was built.
    pub profile: String,
    /// QEMU's version where it emulates the host; else nothing.
    pub qemu: String,
}

impl Machine {
    /// This machine, with a VMM of this profile.
    pub fn this(profile: &str) -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        let cpu = model(&read("/proc/cpuinfo"));
        Machine { cpu, kernel, profile: profile.to_owned(), qemu: String::new() }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Linux {}, profile {}", self.cpu, self.kernel, self.profile)?;
        if !self.qemu.is_empty() {
            write!(f, ", QEMU {}", self.qemu)?;
        }
        Ok(())
    }
}

/// The processor's model, of what /proc/cpuinfo says.
fn model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = line.and_then(|line| line.split_once(':')).map(|(_, model)| model.trim());
    model.unwrap_or("an unknown processor").to_owned()
}

/// One run of something that measures.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// The sources.
    pub commit: Commit,
    /// When. Seconds since 1970.
    pub at: i64,
    /// The host that guests ran on: kvm, amd; or none.
    pub host: String,
    /// What measured.
    pub tool: String,
    /// The machine; a history of the first schema does not say.
    pub machine: Option<Machine>,
    /// What came out.
    pub measurements: Vec<Measurement>,
}

/// Now, in seconds since 1970.
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_lead_back() {
        for kind in [Kind::Exact, Kind::Noisy] {
            assert_eq!(Kind::of(kind.word()), Some(kind));
        }
        for better in [Better::Lower, Better::Higher] {
            assert_eq!(Better::of(better.word()), Some(better));
        }
        assert_eq!((Kind::of("else"), Better::of("")), (None, None));
    }

    #[test]
    fn a_machine_is_told_by_its_model() {
        assert_eq!(model("processor\t: 0\nmodel name\t: A: B 3\nmodel name\t: C\n"), "A: B 3");
        assert_eq!(model(""), "an unknown processor");
        let machine = Machine { qemu: "10.0".into(), ..Machine::this("release") };
        assert!(machine.to_string().ends_with("profile release, QEMU 10.0"), "{machine}");
        assert!(!machine.kernel.is_empty());
    }
}
