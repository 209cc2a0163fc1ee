//! The table of tests in a payload, read from its file: an ELF section of
//! [`TestDesc`](payload_abi::TestDesc) entries, whose pointers lead through the program headers.

use std::path::{Path, PathBuf};

use goblin::elf::Elf;
use goblin::elf::program_header::PT_LOAD;
use payload_abi::{TEST_DESC_SIZE, TEST_MAGIC, TEST_SECTION};

/// The longest name or sentence that is believed, in bytes.
const MAX_TEXT: u64 = 4096;

/// One test of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestInfo {
    /// What `test=` on the command line names it by.
    pub name: String,
    /// One sentence on what it shows.
    pub about: String,
}

/// Why a payload's tests cannot be told, or one cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The file cannot be read.
    #[error(
        "payload `{path}` cannot be read: {source}; build payloads with `cargo xtask payloads`"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: std::io::Error,
    },
    /// It is no payload, or a damaged one.
    #[error("payload `{path}`: {what}; an image without a table of tests is run with --kernel")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The test is not in its table.
    #[error("payload `{path}` has no test `{test}`; it has: {known}")]
    NoTest {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        test: String,
        /// What there is.
        known: String,
    },
    /// No test was named.
    #[error("name one of the tests of payload `{path}` with --test: {known}")]
    NoName {
        /// The file.
        path: PathBuf,
        /// What there is.
        known: String,
    },
}

/// The tests of the payload whose file holds `image`, in the order of its table.
///
/// # Errors
/// What is wrong with the image, in one sentence.
pub fn tests(image: &[u8]) -> Result<Vec<TestInfo>, String> {
    let elf = Elf::parse(image).map_err(|e| format!("is no ELF image ({e})"))?;
    let section = elf
        .section_headers
        .iter()
        .find(|s| elf.shdr_strtab.get_at(s.sh_name) == Some(TEST_SECTION))
        .ok_or_else(|| format!("has no section {TEST_SECTION}"))?;
    let table = section
        .file_range()
        .and_then(|range| image.get(range))
        .ok_or_else(|| format!("section {TEST_SECTION} lies outside the file"))?;
    let (entries, rest) = table.as_chunks::<TEST_DESC_SIZE>();
    if !rest.is_empty() {
        return Err(format!(
            "section {TEST_SECTION} has {} bytes, which is no multiple of {TEST_DESC_SIZE}",
            table.len()
        ));
    }
    entries.iter().enumerate().map(|(i, entry)| test(&elf, image, i, entry)).collect()
}

fn test(
    elf: &Elf<'_>,
    image: &[u8],
    index: usize,
    entry: &[u8; TEST_DESC_SIZE],
) -> Result<TestInfo, String> {
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
    let magic = word(0) as u32;
    if magic != TEST_MAGIC {
        return Err(format!(
            "entry {index}: magic is {magic:#x}, not {TEST_MAGIC:#x}: built for another version?"
        ));
    }
    let text = |what: &str, address: u64, len: u64| {
        text(elf, image, address, len).ok_or_else(|| {
            format!(
                "entry {index}: its {what}, {len} bytes at {address:#x}, is no text of the image"
            )
        })
    };
    Ok(TestInfo {
        name: text("name", word(8), word(16))?,
        about: text("sentence", word(24), word(32))?,
    })
}

/// The text at a guest virtual address.
fn text(elf: &Elf<'_>, image: &[u8], address: u64, len: u64) -> Option<String> {
    if len == 0 || len > MAX_TEXT {
        return None;
    }
    let segment = elf.program_headers.iter().find(|p| {
        p.p_type == PT_LOAD
            && address
                .checked_sub(p.p_vaddr)
                .is_some_and(|at| at < p.p_filesz && len <= p.p_filesz - at)
    })?;
    let start = segment.p_offset.checked_add(address - segment.p_vaddr)?;
    let range = usize::try_from(start).ok()?..usize::try_from(start.checked_add(len)?).ok()?;
    let text = std::str::from_utf8(image.get(range)?).ok()?;
    text.chars().all(|c| !c.is_control()).then(|| text.to_owned())
}

/// The tests of the payload in `path`.
///
/// # Errors
/// When it cannot be read or is no payload.
pub fn read(path: &Path) -> Result<Vec<TestInfo>, PayloadError> {
    let image = std::fs::read(path)
        .map_err(|source| PayloadError::File { path: path.to_owned(), source })?;
    tests(&image).map_err(|what| PayloadError::Table { path: path.to_owned(), what })
}

/// Checks that the payload in `path` has the test called `test`, before a guest is started for it.
///
/// # Errors
/// When it has not, none was named, or the file is no payload.
pub fn check(path: &Path, test: Option<&str>) -> Result<(), PayloadError> {
    let tests = read(path)?;
    let known = || tests.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ");
    let path = path.to_owned();
    match test {
        None => Err(PayloadError::NoName { path, known: known() }),
        Some(test) if tests.iter().any(|t| t.name == test) => Ok(()),
        Some(test) => Err(PayloadError::NoTest { path, test: test.to_owned(), known: known() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ELF64 with one segment (all of the file at 1 MiB) and one section, the table.
    fn image(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        const BASE: u64 = 1 << 20;
        let strings = [b"\0" as &[u8], TEST_SECTION.as_bytes(), b"\0.shstrtab\0"].concat();
        let (headers, strtab_at) = (64 + 56, 64 + 56);
        let texts_at = headers + strings.len();
        let (mut texts, mut table) = (Vec::new(), Vec::new());
        for (magic, name, about) in entries {
            table.extend(magic.to_le_bytes());
            table.extend([0; 4]);
            for text in [name, about] {
                table.extend((BASE + (texts_at + texts.len()) as u64).to_le_bytes());
                table.extend((text.len() as u64).to_le_bytes());
                texts.extend(text.as_bytes());
            }
            table.extend([0; 8]);
        }
        let table_at = texts_at + texts.len();
        let sections_at = table_at + table.len();
        let size = sections_at + 3 * 64;
        let mut out = Vec::new();
        out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let half = |out: &mut Vec<u8>, v: u16| out.extend(v.to_le_bytes());
        let word = |out: &mut Vec<u8>, v: u32| out.extend(v.to_le_bytes());
        let long = |out: &mut Vec<u8>, v: u64| out.extend(v.to_le_bytes());
        half(&mut out, 2);
        half(&mut out, 62);
        word(&mut out, 1);
        [BASE, 64, sections_at as u64].into_iter().for_each(|v| long(&mut out, v));
        word(&mut out, 0);
        [64, 56, 1, 64, 3, 2].into_iter().for_each(|v| half(&mut out, v));
        word(&mut out, PT_LOAD);
        word(&mut out, 5);
        [0, BASE, BASE, size as u64, size as u64, 4096].into_iter().for_each(|v| long(&mut out, v));
        out.extend(&strings);
        out.extend(&texts);
        out.extend(&table);
        out.extend([0; 64]);
        let sections = [
            (1, 1, table_at, table.len()),
            (TEST_SECTION.len() as u32 + 2, 3, strtab_at, strings.len()),
        ];
        for (name, kind, at, len) in sections {
            word(&mut out, name);
            word(&mut out, kind);
            [0, 0, at as u64, len as u64, 0, 8, 0].into_iter().for_each(|v| long(&mut out, v));
        }
        assert_eq!(out.len(), size);
        out
    }

    #[test]
    fn a_table_is_read() {
        let found = tests(&image(&[(TEST_MAGIC, "one", "First."), (TEST_MAGIC, "two", "Second.")]));
        let info = |name: &str, about: &str| TestInfo { name: name.into(), about: about.into() };
        assert_eq!(found, Ok(vec![info("one", "First."), info("two", "Second.")]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |image: &[u8]| tests(image).expect_err("wrong");
        assert!(wrong(b"nothing").contains("no ELF"));
        assert!(wrong(&image(&[(7, "one", "First.")])).contains("magic is 0x7"));
        assert!(wrong(&image(&[(TEST_MAGIC, "", "First.")])).contains("its name, 0 bytes"));
        assert!(wrong(&image(&[(TEST_MAGIC, "one", "a\u{7}")])).contains("its sentence"));
        let plain = image(&[(TEST_MAGIC, "one", "First.")]);
        let renamed: Vec<u8> = String::from_utf8_lossy(TEST_SECTION.as_bytes()).bytes().collect();
        let at = plain.windows(renamed.len()).position(|w| w == renamed).expect("its name");
        let mut other = plain.clone();
        other[at + 1] = b'X';
        assert!(wrong(&other).contains("has no section"));
    }

    #[test]
    fn no_damage_is_answered_with_a_panic() {
        let good = image(&[(TEST_MAGIC, "one", "First."), (TEST_MAGIC, "two", "Second.")]);
        for len in 0..good.len() {
            let _ = tests(&good[..len]);
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = tests(&bad);
            }
        }
    }
}
