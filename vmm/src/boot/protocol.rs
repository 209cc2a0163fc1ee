//! Names of the ways to start an image, as a person types them.

use std::fmt;
use std::str::FromStr;

use super::cpu::Mode;

/// How an image is loaded and entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// PVH if the image has the note, else multiboot if it has the header, else as a plain ELF.
    #[default]
    Auto,
    /// Xen's direct boot of x86/HVM guests: 32-bit entry named by an ELF note.
    Pvh,
    /// Multiboot 1 (specification 0.6.96).
    Multiboot,
    /// An ELF entered at `e_entry`: ELF64 in 64-bit mode, ELF32 in flat protected mode.
    Elf,
    /// Raw bytes, entered at the first one.
    Flat {
        /// Guest-physical address of the first byte.
        addr: u64,
        /// Mode it is entered in.
        mode: Mode,
    },
}

/// A flat image that says no more: where a PC's BIOS puts a boot sector.
pub const FLAT: Protocol = Protocol::Flat { addr: 0x7c00, mode: Mode::Real16 };

/// A protocol that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "boot protocol {text:?}: {why}; write auto, pvh, multiboot, elf, or flat[:ADDR[:MODE]] with MODE \
     real16, prot32 or long64 (flat alone is flat:0x7c00:real16)"
)]
pub struct ProtocolError {
    /// What was written.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl FromStr for Protocol {
    type Err = ProtocolError;

    fn from_str(text: &str) -> Result<Protocol, ProtocolError> {
        let refuse = |why: String| Err(ProtocolError { text: text.to_owned(), why });
        let plain = match text {
            "auto" => Protocol::Auto,
            "pvh" => Protocol::Pvh,
            "multiboot" => Protocol::Multiboot,
            "elf" => Protocol::Elf,
            "flat" => FLAT,
            _ => {
                let Some(rest) = text.strip_prefix("flat:") else {
                    return refuse("there is none of that name".to_owned());
                };
                let (addr, mode) = rest.split_once(':').unwrap_or((rest, Mode::Real16.word()));
                let number = match addr.strip_prefix("0x") {
                    // `from_str_radix` takes a sign; an address has none.
                    Some(hex) if !hex.starts_with('+') => u64::from_str_radix(hex, 16).ok(),
                    None if !addr.starts_with('+') => addr.parse().ok(),
                    _ => None,
                };
                let Some(addr) = number else {
                    return refuse(format!("{addr:?} is not an address of 64 bits"));
                };
                let modes = [Mode::Real16, Mode::Protected32, Mode::Long64];
                let Some(mode) = modes.into_iter().find(|m| m.word() == mode) else {
                    return refuse(format!("{mode:?} is not a mode"));
                };
                Protocol::Flat { addr, mode }
            }
        };
        Ok(plain)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Auto => f.write_str("auto"),
            Protocol::Pvh => f.write_str("pvh"),
            Protocol::Multiboot => f.write_str("multiboot"),
            Protocol::Elf => f.write_str("elf"),
            Protocol::Flat { addr, mode } => write!(f, "flat:{addr:#x}:{mode}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_again() {
        for mode in [Mode::Real16, Mode::Protected32, Mode::Long64] {
            for addr in [0, 0x7c00, u64::MAX] {
                let p = Protocol::Flat { addr, mode };
                assert_eq!(p.to_string().parse(), Ok(p));
            }
        }
        for p in [Protocol::Auto, Protocol::Pvh, Protocol::Multiboot, Protocol::Elf] {
            assert_eq!(p.to_string().parse(), Ok(p));
        }
        assert_eq!("flat".parse(), Ok(FLAT));
        let at_32k = Protocol::Flat { addr: 0x8000, mode: Mode::Real16 };
        assert_eq!("flat:32768:real16".parse(), Ok(at_32k));
        assert_eq!("flat:0x8000".parse(), Ok(at_32k));
    }

    #[test]
    fn what_cannot_be_read_is_told_why() {
        for (text, why) in [
            ("", "none of that name"),
            ("PVH", "none of that name"),
            ("flat:", "\"\" is not an address"),
            ("flat:real16", "\"real16\" is not an address"),
            ("flat:0x8000:", "\"\" is not a mode"),
            ("flat:0x:real16", "\"0x\" is not an address"),
            ("flat:+1:real16", "\"+1\" is not an address"),
            ("flat:0x+1:real16", "\"0x+1\" is not an address"),
            ("flat:0x10000000000000000:real16", "is not an address of 64 bits"),
            ("flat:0x8000:real", "\"real\" is not a mode"),
        ] {
            let error = text.parse::<Protocol>().expect_err(text).to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
