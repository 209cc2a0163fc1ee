//! The `--cpu` option: what of a processor is to differ from the host's.

use std::fmt;
use std::str::FromStr;

use super::base::Base;
use super::table::{feature, nearest};
use super::{CpuidError, Feature};

/// Words of the option that are no features.
const WORDS: &[&str] = &[
    "host",
    "max",
    "force",
    "enforce",
    "kvm",
    "host-phys-bits",
    "vendor",
    "model-name",
    "phys-bits",
    "family",
    "model",
    "stepping",
];

/// A feature turned on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Which.
    pub feature: Feature,
    /// On or off.
    pub on: bool,
}

/// A processor: all that the host supports, or what of it a model has, and these changes.
///
/// Its text form is `host,+x2apic,-pcid,vendor=AuthenticAMD,phys-bits=40`:
///
/// | word | meaning |
/// |---|---|
/// | `host`, `max` | the first word, and may be left out: all that the host supports |
/// | `qemu64`, `IvyBridge` … | the first word: no features of the processor but the model's; see [`super::MODELS`] |
/// | `+NAME`, `NAME`, `NAME=on` | the feature is there; an error if the host does not support it |
/// | `-NAME`, `NAME=off` | it is not, and no feature that needs it; the last word on a feature counts |
/// | `vendor=` | twelve characters, `GenuineIntel` |
/// | `model-name=` | up to 47 characters, without a comma |
/// | `family=`, `model=`, `stepping=` | numbers, as `/proc/cpuinfo` shows them |
/// | `phys-bits=`, `host-phys-bits` | physical address bits, 32 to 52; the host's |
/// | `kvm=off` | the leaves that tell the hypervisor are hidden |
/// | `force` | the guest is told also what the host does not support |
/// | `enforce=off` | what the host does not support is left out, and no error |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuModel {
    /// The model whose features it has; `None` for all that the host supports.
    pub base: Option<&'static Base>,
    /// The features turned on and off, in the order in which they were.
    pub switches: Vec<Switch>,
    /// The vendor's characters, instead of the host's.
    pub vendor: Option<[u8; 12]>,
    /// The name, instead of the host's.
    pub name: Option<String>,
    /// The family, 0 to 270, instead of the host's.
    pub family: Option<u32>,
    /// The model, 0 to 255, instead of the host's.
    pub model: Option<u32>,
    /// The stepping, 0 to 15, instead of the host's.
    pub stepping: Option<u32>,
    /// Physical address bits, 32 to 52, instead of the host's.
    pub phys_bits: Option<u8>,
    /// Whether the hypervisor's leaves are hidden.
    pub hide_kvm: bool,
    /// Whether features that the host does not support are announced all the same.
    pub force: bool,
    /// Whether features that the host does not support are left out, instead of being an error.
    pub lenient: bool,
}

impl CpuModel {
    /// The model of this name, without any changes, if there is one.
    fn named_model(name: &str) -> Option<CpuModel> {
        if matches!(name, "host" | "max") {
            return Some(CpuModel::default());
        }
        let base = Base::named(name)?;
        Some(CpuModel {
            base: Some(base),
            family: Some(base.family),
            model: Some(base.model),
            stepping: Some(base.stepping),
            phys_bits: Some(Base::PHYS_BITS),
            ..CpuModel::default()
        })
    }

    /// Whether a model has this name: `host`, `max`, or one of [`super::MODELS`].
    pub fn is_model(name: &str) -> bool {
        CpuModel::named_model(name).is_some()
    }

    /// Turns a feature on or off; the last word on it counts.
    pub fn switch(&mut self, feature: Feature, on: bool) {
        self.switches.push(Switch { feature, on });
    }

    fn word(&mut self, word: &str) -> Result<(), CpuidError> {
        if let Some(name) = word.strip_prefix('+') {
            return self.named(word, name, true);
        }
        if let Some(name) = word.strip_prefix('-') {
            return self.named(word, name, false);
        }
        match word.split_once('=') {
            Some((key, value)) => self.pair(word, &key.replace('_', "-"), value),
            None if word == "force" => {
                self.force = true;
                Ok(())
            }
            None if word == "enforce" => {
                self.lenient = false;
                Ok(())
            }
            None if word == "host-phys-bits" => {
                self.phys_bits = None;
                Ok(())
            }
            None => self.named(word, word, true),
        }
    }

    fn named(&mut self, word: &str, name: &str, on: bool) -> Result<(), CpuidError> {
        let unknown =
            || CpuidError::Unknown { word: word.to_owned(), nearest: nearest(name, WORDS) };
        self.switch(feature(name).ok_or_else(unknown)?, on);
        Ok(())
    }

    fn pair(&mut self, word: &str, key: &str, value: &str) -> Result<(), CpuidError> {
        let wrong =
            |expected| CpuidError::Value { key: key.to_owned(), value: value.to_owned(), expected };
        let number = |from: u32, to: u32, expected| {
            let value =
                value.strip_prefix("0x").map_or(value.parse(), |hex| u32::from_str_radix(hex, 16));
            value.ok().filter(|v| (from..=to).contains(v)).ok_or_else(|| wrong(expected))
        };
        let switch = || match value {
            "on" | "yes" => Ok(true),
            "off" | "no" => Ok(false),
            _ => Err(wrong("on or off")),
        };
        match key {
            "vendor" => {
                let bytes = value.as_bytes().try_into().ok();
                let bytes = bytes.filter(|bytes: &[u8; 12]| bytes.iter().all(u8::is_ascii_graphic));
                self.vendor = Some(bytes.ok_or_else(|| wrong("twelve characters of ASCII"))?);
            }
            "model-name" => {
                let fits = value.len() <= 47 && value.bytes().all(|b| (b' '..=b'~').contains(&b));
                let name = fits.then(|| value.to_owned());
                self.name = Some(name.ok_or_else(|| wrong("at most 47 characters of ASCII"))?);
            }
            "family" => self.family = Some(number(0, 0x10e, "a number from 0 to 270")?),
            "model" => self.model = Some(number(0, 0xff, "a number from 0 to 255")?),
            "stepping" => self.stepping = Some(number(0, 0xf, "a number from 0 to 15")?),
            "phys-bits" => {
                self.phys_bits = Some(number(32, 52, "a number from 32 to 52")? as u8);
            }
            "host-phys-bits" => {
                if switch()? {
                    self.phys_bits = None;
                }
            }
            "kvm" => self.hide_kvm = !switch()?,
            "force" => self.force = switch()?,
            "enforce" => self.lenient = !switch()?,
            name => match feature(name) {
                Some(feature) => self.switch(feature, switch()?),
                None => {
                    let nearest = nearest(name, WORDS);
                    return Err(CpuidError::Unknown { word: word.to_owned(), nearest });
                }
            },
        }
        Ok(())
    }
}

impl FromStr for CpuModel {
    type Err = CpuidError;

    fn from_str(text: &str) -> Result<CpuModel, CpuidError> {
        let mut model = CpuModel::default();
        for (i, word) in text.split(',').enumerate() {
            let word = word.trim();
            match CpuModel::named_model(word).filter(|_| i == 0) {
                Some(named) => model = named,
                None => model.word(word)?,
            }
        }
        Ok(model)
    }
}

/// The option that makes this model.
impl fmt::Display for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuModel {
            base,
            switches,
            vendor,
            name,
            family,
            model,
            stepping,
            phys_bits,
            hide_kvm,
            force,
            lenient,
        } = self;
        f.write_str(base.map_or("host", |base| base.name))?;
        if *lenient {
            f.write_str(",enforce=off")?;
        }
        for Switch { feature, on } in switches {
            write!(f, ",{}{}", if *on { '+' } else { '-' }, feature.name)?;
        }
        if let Some(vendor) = vendor {
            write!(f, ",vendor={}", String::from_utf8_lossy(vendor))?;
        }
        if let Some(name) = name {
            write!(f, ",model-name={name}")?;
        }
        for (key, value) in [("family", family), ("model", model), ("stepping", stepping)] {
            if let Some(value) = value {
                write!(f, ",{key}={value}")?;
            }
        }
        match phys_bits {
            Some(bits) => write!(f, ",phys-bits={bits}")?,
            None if base.is_some() => f.write_str(",host-phys-bits")?,
            None => {}
        }
        if *hide_kvm {
            f.write_str(",kvm=off")?;
        }
        if *force {
            f.write_str(",force")?;
        }
        Ok(())
    }
}
