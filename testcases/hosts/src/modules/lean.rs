//! Leaves out of a module what only costs time where it is loaded.

use super::section;

/// How a signed module ends (Linux, include/linux/module_signature.h).
const SIGNATURE: &[u8] = b"~Module signature appended~\n";

/// What stands before that: a structure whose last four bytes are the length of the signature, with
/// its most significant byte first.
const SIGNATURE_INFO: usize = 12;

/// The section with the types for BPF programs.
const TYPES: &str = ".BTF";

/// The offset of `sh_name` in a section header, and its size.
const SH_NAME: std::ops::Range<usize> = 0..4;

/// The module without its signature, and with its type information where no kernel looks for it.
///
/// Checking the signature and taking in the types is half of what loading kvm.ko costs, and on a machine
/// that executes 50 million instructions a second that is seconds. The code is the distribution's,
/// bit for bit. What is no such module is returned as it is.
pub(super) fn lean(mut elf: Vec<u8>) -> Vec<u8> {
    if let Some(unsigned) = unsigned(&elf) {
        elf.truncate(unsigned);
    }
    if let Ok(Some((at, _))) = section(&elf, TYPES) {
        // A section without a name: the empty string begins each table of names.
        elf[at + SH_NAME.start..at + SH_NAME.end].fill(0);
    }
    elf
}

/// The length without the signature, if there is one.
fn unsigned(elf: &[u8]) -> Option<usize> {
    let rest = elf.strip_suffix(SIGNATURE)?;
    let (rest, info) = rest.split_at_checked(rest.len().checked_sub(SIGNATURE_INFO)?)?;
    let length = u32::from_be_bytes(info.last_chunk().copied()?);
    rest.len().checked_sub(usize::try_from(length).ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signed(module: &[u8], length: u32) -> Vec<u8> {
        [module, &[7; 5], &[0; 8], &length.to_be_bytes(), SIGNATURE].concat()
    }

    #[test]
    fn a_signature_is_left_out_and_a_wrong_length_is_not_believed() {
        assert_eq!(lean(signed(b"module", 5)), b"module");
        let wrong = signed(b"module", 500);
        assert_eq!(lean(wrong.clone()), wrong);
        assert_eq!(lean(SIGNATURE.to_vec()), SIGNATURE);
    }

    #[test]
    fn the_types_lose_their_name_and_nothing_else_changes() {
        // Two sections: the names, and the types.
        let names = b"\0.shstrtab\0.BTF\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x28] = 64 + 16;
        elf[0x3c] = 2;
        elf.extend_from_slice(names);
        let section = |name: u8, offset: u8, size: u8| {
            let mut section = [0; 64];
            (section[0], section[24], section[32]) = (name, offset, size);
            section
        };
        elf.extend(section(1, 64, 16));
        elf.extend(section(11, 64, 0));
        let changed = lean(elf.clone());
        let differs: Vec<_> = (0..elf.len()).filter(|&i| elf[i] != changed[i]).collect();
        assert_eq!(differs, [64 + 16 + 64]);
        assert_eq!(changed[64 + 16 + 64], 0);
        assert_eq!(lean(changed.clone()), changed);
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(mut bytes in prop::collection::vec(any::<u8>(), 0..300), elf: bool) {
            if elf && bytes.len() > 6 {
                bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            }
            let length = bytes.len();
            prop_assert!(lean(bytes).len() <= length);
        }
    }
}
