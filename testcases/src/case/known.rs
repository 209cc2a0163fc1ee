//! What is known to go wrong with a case where it runs: bugs of KVM, deviations of emulators.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};

use crate::facts::{KvmFlavour, Processor};

/// A reason to be told in a report, without a full stop at its end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Because(pub String);

impl TryFrom<String> for Because {
    type Error = String;

    fn try_from(text: String) -> Result<Because, String> {
        match text.trim().is_empty() || text.ends_with('.') {
            true => Err(format!(
                "{text:?} is no reason: one or more sentences, without the last full stop"
            )),
            false => Ok(Because(text)),
        }
    }
}

/// A bug of KVM's own that a test shows, and where it lies. Written as a text, if every KVM has it,
/// or as a table with a text for each KVM that has:
///
/// ```toml
/// known_bug.kvm-amd = "..."
/// known_bug.kvm-intel = "..."
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownBug {
    /// Every KVM has it.
    Everywhere(Because),
    /// These have it.
    In(Modules),
}

/// A bug of KVM's own, by the module that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Modules {
    /// In kvm-intel.
    pub kvm_intel: Option<Because>,
    /// In kvm-amd.
    pub kvm_amd: Option<Because>,
    /// In kvm-pvm.
    pub kvm_pvm: Option<Because>,
}

impl KnownBug {
    /// The bug as this KVM has it.
    pub fn of(&self, flavour: KvmFlavour) -> Option<&str> {
        let because = match self {
            KnownBug::Everywhere(because) => Some(because),
            KnownBug::In(modules) => match flavour {
                KvmFlavour::Intel => modules.kvm_intel.as_ref(),
                KvmFlavour::Amd => modules.kvm_amd.as_ref(),
                KvmFlavour::Pvm => modules.kvm_pvm.as_ref(),
                KvmFlavour::Unknown => None,
            },
        };
        because.map(|because| &because.0[..])
    }
}

/// Where emulated processors deviate from what the test shows of a real one: a table with an entry
/// for each emulator that does.
///
/// ```toml
/// [deviates]
/// tcg = "TCG raises #GP where a processor raises #SS (helper_.. in target/i386/tcg)"
/// bochs = { because = "Bochs stops at ..", run = false }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deviates {
    /// QEMU's TCG.
    pub tcg: Option<Deviation>,
    /// Bochs.
    pub bochs: Option<Deviation>,
}

impl Deviates {
    /// The deviation of a host with this processor, and the name of what emulates it.
    pub fn on(&self, processor: Processor) -> Option<(&'static str, &Deviation)> {
        match processor {
            Processor::Hardware => None,
            Processor::Tcg => self.tcg.as_ref().map(|deviation| ("TCG", deviation)),
            Processor::Bochs => self.bochs.as_ref().map(|deviation| ("Bochs", deviation)),
        }
    }
}

/// How an emulator deviates. Written as a text, or as a table with the text as `because`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "TextOr<DeviationTable>")]
pub struct Deviation {
    /// What the emulator does in the place of what, and where that lies.
    pub because: Because,
    /// Whether the case runs there all the same, so that it passes once the emulator is mended. Not
    /// if it brings the host down or takes its time for nothing.
    pub run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeviationTable {
    because: Because,
    #[serde(default = "yes")]
    run: bool,
}

fn yes() -> bool {
    true
}

impl From<TextOr<DeviationTable>> for Deviation {
    fn from(from: TextOr<DeviationTable>) -> Deviation {
        match from {
            TextOr::Text(because) => Deviation { because, run: true },
            TextOr::Table(DeviationTable { because, run }) => Deviation { because, run },
        }
    }
}

impl<'de> Deserialize<'de> for KnownBug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<KnownBug, D::Error> {
        Ok(match TextOr::deserialize(deserializer)? {
            TextOr::Text(because) => KnownBug::Everywhere(because),
            TextOr::Table(modules) => KnownBug::In(modules),
        })
    }
}

/// A text, or a table that says more. An untagged enum would do, but for its errors.
enum TextOr<T> {
    Text(Because),
    Table(T),
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TextOr<T>, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a table")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOr<T>, E> {
                Because::try_from(text.to_string()).map(TextOr::Text).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TextOr<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(TextOr::Table)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Known {
        known_bug: Option<KnownBug>,
        #[serde(default)]
        deviates: Deviates,
    }

    fn known(text: &str) -> Result<Known, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| e.to_string())
    }

    #[test]
    fn a_bug_is_that_of_every_kvm_or_of_those_named() {
        use KvmFlavour::{Amd, Intel, Pvm, Unknown};
        let of = |text: &str| {
            let bug = known(text).expect(text).known_bug.expect(text);
            [Intel, Amd, Pvm, Unknown].map(|flavour| bug.of(flavour).map(str::to_string))
        };
        let text = |text: &str| Some(text.to_string());
        assert_eq!(of("known_bug = \"x\""), [text("x"), text("x"), text("x"), text("x")]);
        assert_eq!(of("known_bug.kvm-amd = \"a\""), [None, text("a"), None, None]);
        assert_eq!(
            of("known_bug = { kvm-intel = \"i\", kvm-pvm = \"p\" }"),
            [text("i"), None, text("p"), None]
        );
    }

    #[test]
    fn a_deviation_is_that_of_one_emulator() {
        let text = "[deviates]\ntcg = \"t\"\nbochs = { because = \"b\", run = false }\n";
        let deviates = known(text).expect("a table").deviates;
        let on = |processor| deviates.on(processor).map(|(who, d)| (who, &d.because.0[..], d.run));
        assert_eq!(on(Processor::Hardware), None);
        assert_eq!(on(Processor::Tcg), Some(("TCG", "t", true)));
        assert_eq!(on(Processor::Bochs), Some(("Bochs", "b", false)));
        let only = known("deviates.tcg.because = \"t\"").expect("a table").deviates;
        assert_eq!(only.on(Processor::Tcg).map(|(_, d)| d.run), Some(true));
        assert_eq!(only.on(Processor::Bochs), None);
    }

    #[test]
    fn what_is_written_wrongly_is_told_with_what_is_right() {
        for (text, says) in [
            ("known_bug = \"It is.\"", "without the last full stop"),
            ("known_bug = 1", "a text or a table"),
            ("known_bug.kvm = \"x\"", "`kvm-intel`"),
            ("known_bug.kvm-amd = \"\"", "is no reason"),
            ("deviates = \"x\"", "expected struct Deviates"),
            ("deviates.qemu = \"x\"", "`tcg`"),
            ("deviates.tcg = \"x.\"", "without the last full stop"),
            ("deviates.tcg = false", "a text or a table"),
            ("deviates.tcg.run = false", "missing field `because`"),
            ("deviates.tcg = { because = \"x\", runs = false }", "`run`"),
        ] {
            let error = known(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
