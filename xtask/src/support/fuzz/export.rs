//! A target as OSS-Fuzz and ClusterFuzzLite expect it in `$OUT`: a binary, and beside it what has its name.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fuzz::targets::Target;

use super::build::{self, Flavour};
use super::{Shop, cannot, run};
use crate::support::{Failure, Out};

/// libFuzzer's options, as ClusterFuzz reads them.
const OPTIONS: &str = "[libfuzzer]\nmax_len = 4096\ntimeout = 10\nrss_limit_mb = 2048\n";

/// Writes the binary, `TARGET_seed_corpus.zip`, `TARGET.dict` (if the target has words) and
/// `TARGET.options` for each target. `sanitizer` is OSS-Fuzz's word: `address`, `coverage` or `none`.
///
/// # Errors
///
/// There is no such sanitizer here, or something cannot be built or written.
pub fn run(
    shop: Shop<'_>,
    targets: &[&'static Target],
    sanitizer: &str,
    to: &Path,
    out: &mut Out,
) -> Result<(), Failure> {
    let flavour = match sanitizer {
        "address" => Flavour::Asan,
        "coverage" => Flavour::Profile,
        "none" => Flavour::Plain,
        other => {
            return Err(Failure::input(format!(
                "--sanitizer {other}: there are address, coverage and none; the others are for C"
            )));
        }
    };
    build::directory(to.to_owned())?;
    for target in targets {
        let program = build::build(shop, flavour, target.name)?;
        let at = |end: &str| to.join(format!("{}{end}", target.name));
        let binary = at("");
        fs::copy(&program, &binary).map_err(cannot("copy the fuzzer to", &binary))?;
        let seeds = at("_seed_corpus.zip");
        fs::write(&seeds, zip(&inputs(shop, target)?)).map_err(cannot("write", &seeds))?;
        let options = at(".options");
        let mut text = OPTIONS.to_owned();
        if !target.words.is_empty() {
            text += &format!("dict = {}.dict\n", target.name);
            let dict = at(".dict");
            fs::write(&dict, run::dictionary(target)).map_err(cannot("write", &dict))?;
        }
        fs::write(&options, text).map_err(cannot("write", &options))?;
        let mode = fs::metadata(&binary).map_err(cannot("read", &binary))?.permissions().mode();
        if mode & 0o111 == 0 {
            return Err(Failure::bad(format!("{} cannot be run", binary.display())));
        }
        writeln!(out, "{}", binary.display());
    }
    Ok(())
}

/// What a fuzzer begins with: the target's seeds, and those regressions that are for its board.
fn inputs(shop: Shop<'_>, target: &Target) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut inputs: Vec<Vec<u8>> = (target.seeds)();
    inputs.push(Vec::new());
    let dir = shop.regressions().join(target.name);
    if target.board().is_none() && dir.exists() {
        let files = fuzz::stable::files(&dir).map_err(cannot("read the regressions in", &dir))?;
        inputs.extend(files.into_iter().map(|(_, bytes)| bytes));
    }
    let corpus = shop.corpus(target.name);
    let files = fuzz::stable::files(&corpus).map_err(cannot("read the corpus", &corpus))?;
    // As many as a bot unpacks without a thought.
    inputs.extend(files.into_iter().map(|(_, bytes)| bytes).take(5000));
    inputs.sort();
    inputs.dedup();
    Ok(inputs.into_iter().map(|bytes| (fuzz::stable::name_of(&bytes), bytes)).collect())
}

/// A ZIP archive of these files, stored as they are (APPNOTE.TXT 6.3.10, 4.3). The same files give the same
/// bytes: the time of each is the format's first, 1980.
pub fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    const DATE: u16 = 1 << 5 | 1;
    let (mut body, mut directory) = (Vec::new(), Vec::new());
    // Writing to memory does not fail.
    let write = |to: &mut Vec<u8>, words: &[(u64, usize)]| {
        for (word, len) in words {
            to.extend_from_slice(&word.to_le_bytes()[..*len]);
        }
    };
    for (name, bytes) in files {
        let offset = body.len() as u64;
        let crc = u64::from(crc32fast::hash(bytes));
        let (len, name_len) = (bytes.len() as u64, name.len() as u64);
        // Version, flags, method, time, date, CRC, both sizes, name, extra field.
        let common = [
            (10, 2),
            (0, 2),
            (0, 2),
            (0, 2),
            (DATE.into(), 2),
            (crc, 4),
            (len, 4),
            (len, 4),
            (name_len, 2),
            (0, 2),
        ];
        write(&mut body, &[(0x0403_4b50, 4)]);
        write(&mut body, &common);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(bytes);
        write(&mut directory, &[(0x0201_4b50, 4), (10, 2)]);
        write(&mut directory, &common);
        // Comment, disk, attributes, and where the file is.
        write(&mut directory, &[(0, 2), (0, 2), (0, 2), (0, 4), (offset, 4)]);
        directory.extend_from_slice(name.as_bytes());
    }
    let (at, len, n) = (body.len() as u64, directory.len() as u64, files.len() as u64);
    body.extend_from_slice(&directory);
    let end = [(0x0605_4b50, 4), (0, 2), (0, 2), (n, 2), (n, 2), (len, 4), (at, 4), (0, 2)];
    write(&mut body, &end);
    body
}

/// Writes a file so that whoever looks sees the old one or the new one, and a full disk costs neither.
///
/// # Errors
///
/// It cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&new, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_has_its_directory_at_its_end() {
        let files = [("a".to_owned(), b"hello".to_vec()), ("bc".to_owned(), Vec::new())];
        let bytes = zip(&files);
        let word =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let end = bytes.len() - 22;
        assert_eq!(word(end), 0x0605_4b50);
        let directory = word(end + 16) as usize;
        assert_eq!((word(directory), word(0)), (0x0201_4b50, 0x0403_4b50));
        // CRC-32 of "hello".
        assert_eq!(word(14), 0x3610_a686);
        assert_eq!(&bytes[30..36], b"ahello");
        assert_eq!(word(directory + 47 + 42), 36, "where the second file begins");
    }
}
