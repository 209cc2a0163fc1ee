//! The table of tests in a payload's file.

use super::elf::{ElfError, Image};
use payload_abi::{TEST_DESC_SIZE, TEST_MAGIC, TEST_SECTION};
use std::collections::BTreeSet;

/// A test of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestInfo {
    /// Its name: what `test=` on the payload's command line takes.
    pub name: String,
    /// One sentence on what it shows.
    pub about: String,
}

/// Longest name, in bytes.
const MAX_NAME: u64 = 100;
/// Longest sentence, in bytes.
const MAX_ABOUT: u64 = 1000;

/// The tests that a payload holds, by name; read from the file alone.
pub fn list_tests(elf_bytes: &[u8]) -> Result<Vec<TestInfo>, ElfError> {
    let image = Image::parse(elf_bytes)?;
    let table = image.section(TEST_SECTION)?.bytes;
    let (entries, rest) = table.as_chunks::<TEST_DESC_SIZE>();
    if !rest.is_empty() {
        let reason = format!("{} bytes where {TEST_DESC_SIZE} belong", rest.len());
        return Err(ElfError::Test { index: entries.len(), reason });
    }
    let mut tests = Vec::new();
    let mut names = BTreeSet::new();
    for (index, entry) in entries.iter().enumerate() {
        let test = read(&image, entry).map_err(|reason| ElfError::Test { index, reason })?;
        if !names.insert(test.name.clone()) {
            let reason = format!("a second test is called {}", test.name);
            return Err(ElfError::Test { index, reason });
        }
        tests.push(test);
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

fn read(image: &Image, entry: &[u8; TEST_DESC_SIZE]) -> Result<TestInfo, String> {
    let mut words = [0; TEST_DESC_SIZE / 8];
    for (word, bytes) in words.iter_mut().zip(entry.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*bytes);
    }
    let [head, name, name_len, about, about_len, _run] = words;
    let (magic, flags) = (head as u32, head >> 32);
    if magic != TEST_MAGIC || flags != 0 {
        return Err(format!(
            "magic {magic:#x} and flags {flags:#x}, where {TEST_MAGIC:#x} and 0 belong: \
             payload and runner differ in version, or the section holds something else"
        ));
    }
    let text = |what: &str, at: u64, len: u64, max: u64| {
        if len == 0 || len > max {
            return Err(format!("its {what} has {len} bytes, where 1 to {max} may be"));
        }
        let bytes = image.at(at, len);
        let bytes = bytes.ok_or_else(|| format!("its {what} at {at:#x} is not in the file"))?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned).map_err(|_| format!("its {what} at {at:#x} is not UTF-8"))
    };
    let name = text("name", name, name_len, MAX_NAME)?;
    // It is a word of report lines and command lines.
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return Err(format!("its name {name:?} has more than letters, digits and underscores"));
    }
    Ok(TestInfo { name, about: text("sentence", about, about_len, MAX_ABOUT)? })
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{Part, elf};
    use super::*;

    const TEXT: &[u8] = b"alphabetaOne.Two: \xff";
    const AT: u64 = 0x10_0000;

    fn desc(magic: u32, name: (u64, u64), about: (u64, u64)) -> Vec<u8> {
        [u64::from(magic), name.0, name.1, about.0, about.1, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn list(table: &[u8]) -> Result<Vec<TestInfo>, ElfError> {
        list_tests(&elf(
            &[Part(".rodata", AT, TEXT, 2, 1), Part(TEST_SECTION, AT + 0x100, table, 2, 1)],
            &[],
        ))
    }

    #[test]
    fn tests_are_listed_by_name() {
        let table =
            [desc(TEST_MAGIC, (AT + 5, 4), (AT + 13, 4)), desc(TEST_MAGIC, (AT, 5), (AT + 9, 4))];
        let test = |name: &str, about: &str| TestInfo { name: name.into(), about: about.into() };
        assert_eq!(list(&table.concat()), Ok(vec![test("alpha", "One."), test("beta", "Two:")]));
        assert_eq!(list(&[]), Ok(vec![]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let good = desc(TEST_MAGIC, (AT, 5), (AT + 9, 4));
        for (table, word) in [
            (good[..47].to_vec(), "47 bytes"),
            ([&good[..], &good].concat(), "second test"),
            (desc(7, (AT, 5), (AT + 9, 4)), "magic"),
            (desc(TEST_MAGIC, (AT, 0), (AT + 9, 4)), "0 bytes"),
            (desc(TEST_MAGIC, (AT, u64::MAX), (AT + 9, 4)), "bytes, where"),
            (desc(TEST_MAGIC, (AT - 1, 5), (AT + 9, 4)), "not in the file"),
            (desc(TEST_MAGIC, (u64::MAX, 5), (AT + 9, 4)), "not in the file"),
            (desc(TEST_MAGIC, (AT, 5), (AT + 18, 1)), "UTF-8"),
            (desc(TEST_MAGIC, (AT + 13, 5), (AT + 9, 4)), "letters"),
        ] {
            let error = list(&table).unwrap_err().to_string();
            assert!(error.contains(word), "{error:?} does not say {word:?}");
        }
        assert_eq!(list_tests(&elf(&[], &[])), Err(ElfError::NoSection(TEST_SECTION)));
    }
}
