//! Writes cpio archives as the kernel unpacks them into its first file system (Linux,
//! Documentation/driver-api/early-userspace/buffer-format.rst): format newc, header `070701`.
//!
//! The same entries give the same bytes: sorted by path, numbered in that order, owned by root, and
//! as old as time 0. Archives may follow each other in one file; a later entry of the same path
//! takes the place of an earlier one.
//!
//! ```
//! use hosts::cpio::Archive;
//! let mut archive = Archive::default();
//! archive.file("bin/true", 0o755, &b"\x7fELF"[..])?;
//! archive.device("dev/console", 0o600, (5, 1))?;
//! assert!(archive.to_bytes().starts_with(b"070701"));
//! # Ok::<(), hosts::cpio::CpioError>(())
//! ```

use std::borrow::Cow;
use std::collections::btree_map::{self, BTreeMap};

/// Archives are padded to this, in bytes, so that another one may follow.
const ALIGN: usize = 512;
/// The longest path, and the longest target of a link: with its zero, PATH_MAX. The kernel leaves
/// out an entry with a longer one, silently (Linux, init/initramfs.c).
const MAX_PATH: usize = 4095;
/// The header's size: the magic number and thirteen fields of eight hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;

/// An archive that is being put together.
#[derive(Clone, Debug, Default)]
pub struct Archive<'a> {
    entries: BTreeMap<String, Entry<'a>>,
}

#[derive(Clone, Debug)]
struct Entry<'a> {
    /// The kind and the permissions, as in `st_mode`.
    mode: u32,
    data: Cow<'a, [u8]>,
    device: (u32, u32),
}

/// Why an entry cannot be in an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpioError {
    /// The path.
    #[error(
        "`{path}` cannot be in an archive: write a path of at most {MAX_PATH} bytes, relative, \
         without `.`, `..`, a double slash or a zero byte"
    )]
    Path {
        /// What was given.
        path: String,
    },
    /// There is something else already.
    #[error("`{path}` is in the archive already{}", if *.as_directory { ", and not as a directory" } else { "" })]
    Twice {
        /// Where.
        path: String,
        /// Whether a directory was wanted there.
        as_directory: bool,
    },
    /// The file has 4 GiB or more.
    #[error("`{path}` has {len} bytes: the format ends at {}", u32::MAX)]
    Long {
        /// Its path.
        path: String,
        /// Its length.
        len: u64,
    },
    /// The target of a symbolic link.
    #[error(
        "the link `{path}` cannot lead to `{target}`: 1 to {MAX_PATH} bytes, none of them zero"
    )]
    Target {
        /// The link.
        path: String,
        /// Where it was to lead.
        target: String,
    },
}

impl<'a> Archive<'a> {
    /// Adds a directory, and those above it; that it is there already is fine.
    ///
    /// # Errors
    /// The path cannot be used, or there is something else.
    pub fn directory(&mut self, path: &str) -> Result<(), CpioError> {
        check(path)?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            let path = &path[..end];
            let new = || Entry { mode: 0o40755, data: Cow::Borrowed(&[]), device: (0, 0) };
            if self.entries.entry(path.to_owned()).or_insert_with(new).mode & 0o170000 != 0o40000 {
                return Err(CpioError::Twice { path: path.to_owned(), as_directory: true });
            }
        }
        Ok(())
    }

    /// Adds a file with these permissions, and the directories above it.
    ///
    /// # Errors
    /// The path cannot be used or is there already, or the file is too long for the format.
    pub fn file(
        &mut self,
        path: &str,
        permissions: u32,
        data: impl Into<Cow<'a, [u8]>>,
    ) -> Result<(), CpioError> {
        let data = data.into();
        if u32::try_from(data.len()).is_err() {
            return Err(CpioError::Long { path: path.to_owned(), len: data.len() as u64 });
        }
        self.add(path, Entry { mode: 0o100000 | permissions & 0o7777, data, device: (0, 0) })
    }

    /// Adds a symbolic link, and the directories above it.
    ///
    /// # Errors
    /// The path cannot be used or is there already, or no link can lead to `target`.
    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), CpioError> {
        if target.is_empty() || target.len() > MAX_PATH || target.contains('\0') {
            let (path, target) = (path.to_owned(), target.to_owned());
            return Err(CpioError::Target { path, target });
        }
        let data = Cow::Owned(target.as_bytes().to_vec());
        self.add(path, Entry { mode: 0o120777, data, device: (0, 0) })
    }

    /// Adds a character device with its major and minor number, and the directories above it.
    ///
    /// # Errors
    /// The path cannot be used or is there already.
    pub fn device(
        &mut self,
        path: &str,
        permissions: u32,
        device: (u32, u32),
    ) -> Result<(), CpioError> {
        let mode = 0o20000 | permissions & 0o7777;
        self.add(path, Entry { mode, data: Cow::Borrowed(&[]), device })
    }

    fn add(&mut self, path: &str, entry: Entry<'a>) -> Result<(), CpioError> {
        check(path)?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        match self.entries.entry(path.to_owned()) {
            btree_map::Entry::Vacant(place) => place.insert(entry),
            btree_map::Entry::Occupied(_) => {
                return Err(CpioError::Twice { path: path.to_owned(), as_directory: false });
            }
        };
        Ok(())
    }

    /// The archive, with its end and its padding to a multiple of 512 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let size =
            |(path, entry): (&String, &Entry<'_>)| HEADER + path.len() + entry.data.len() + 7;
        let mut out = Vec::with_capacity(self.entries.iter().map(size).sum::<usize>() + 2 * ALIGN);
        // A directory sorts before what is in it.
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            put(&mut out, number, path, entry);
        }
        let end = Entry { mode: 0, data: Cow::Borrowed(&[]), device: (0, 0) };
        put(&mut out, 0, "TRAILER!!!", &end);
        out.resize(out.len().next_multiple_of(ALIGN), 0);
        out
    }
}

/// Appends one entry: header, name with its zero, contents, the latter two padded to 4 bytes.
fn put(out: &mut Vec<u8>, number: u32, path: &str, entry: &Entry<'_>) {
    let links = if entry.mode & 0o170000 == 0o40000 { 2 } else { 1 };
    let (major, minor) = entry.device;
    let (data, name) = (entry.data.len() as u32, path.len() as u32 + 1);
    out.extend_from_slice(b"070701");
    // ino, mode, uid, gid, nlink, mtime, filesize, maj, min, rmaj, rmin, namesize, chksum.
    let fields = [number, entry.mode, 0, 0, links, 0, data, 0, 0, major, minor, name, 0];
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn check(path: &str) -> Result<(), CpioError> {
    let good = path.len() <= MAX_PATH && !path.contains('\0') && path != "TRAILER!!!";
    if good && path.split('/').all(|part| !matches!(part, "" | "." | "..")) {
        return Ok(());
    }
    Err(CpioError::Path { path: path.to_owned() })
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry as it is read back.
    #[derive(Debug, PartialEq)]
    pub(crate) struct Read {
        pub(crate) path: String,
        pub(crate) mode: u32,
        pub(crate) data: Vec<u8>,
        pub(crate) device: (u32, u32),
    }

    /// Reads archives that follow each other, as the kernel's document describes them.
    pub(crate) fn read(bytes: &[u8]) -> Vec<Read> {
        let (mut at, mut found, mut last) = (0, Vec::new(), 0);
        while at < bytes.len() {
            if bytes[at] == 0 {
                at += 1;
                continue;
            }
            assert_eq!(at % 4, 0, "a header is aligned");
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&bytes[at + 6 + n * 8..][..8]).expect("digits");
                u32::from_str_radix(text, 16).expect("digits")
            };
            for (n, value) in [(2, 0), (3, 0), (5, 0), (7, 0), (8, 0), (12, 0)] {
                assert_eq!(field(n), value, "field {n}");
            }
            let (number, mode, len, name) = (field(0), field(1), field(6), field(11) as usize);
            let device = (field(9), field(10));
            let start = at + 110;
            assert_eq!(bytes[start + name - 1], 0);
            let path = String::from_utf8(bytes[start..start + name - 1].to_vec()).expect("text");
            at = (start + name).next_multiple_of(4);
            let data = bytes[at..at + len as usize].to_vec();
            at = (at + len as usize).next_multiple_of(4);
            if path == "TRAILER!!!" {
                last = 0;
                continue;
            }
            assert_eq!(number, last + 1);
            last = number;
            found.push(Read { path, mode, data, device });
        }
        found
    }

    #[test]
    fn entries_are_read_back_in_order_with_their_directories() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, &b"agent"[..]).unwrap();
        archive.symlink("bin/sh", "busybox").unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        archive.directory("proc").unwrap();
        archive.directory("proc").unwrap();
        archive.file("cases/a/b.toml", 0o644, vec![]).unwrap();
        let bytes = archive.to_bytes();
        assert_eq!(bytes.len() % 512, 0);
        assert_eq!(bytes, archive.clone().to_bytes());
        let entry = |path: &str, mode, data: &[u8], device| Read {
            path: path.into(),
            mode,
            data: data.into(),
            device,
        };
        let expected = [
            entry("bin", 0o40755, b"", (0, 0)),
            entry("bin/sh", 0o120777, b"busybox", (0, 0)),
            entry("cases", 0o40755, b"", (0, 0)),
            entry("cases/a", 0o40755, b"", (0, 0)),
            entry("cases/a/b.toml", 0o100644, b"", (0, 0)),
            entry("dev", 0o40755, b"", (0, 0)),
            entry("dev/console", 0o20600, b"", (5, 1)),
            entry("init", 0o100755, b"agent", (0, 0)),
            entry("proc", 0o40755, b"", (0, 0)),
        ];
        assert_eq!(read(&bytes), expected);
        let mut second = Archive::default();
        second.file("job", 0o644, &b"x"[..]).unwrap();
        let both = read(&[bytes, second.to_bytes()].concat());
        assert_eq!(both.len(), expected.len() + 1);
        assert_eq!(both[expected.len()], entry("job", 0o100644, b"x", (0, 0)));
    }

    #[test]
    fn what_the_kernel_would_not_unpack_is_refused() {
        let mut archive = Archive::default();
        let long = "x".repeat(MAX_PATH + 1);
        for path in ["", "/init", "a//b", "a/", "../a", "a/./b", "a\0b", "TRAILER!!!", &long] {
            let error = archive.file(path, 0o644, vec![]).unwrap_err();
            assert_eq!(error, CpioError::Path { path: path.into() });
        }
        for target in ["", "a\0", &long] {
            assert!(matches!(archive.symlink("a", target), Err(CpioError::Target { .. })));
        }
        assert_eq!(read(&archive.to_bytes()), []);
        archive.file("a", 0o644, vec![]).unwrap();
        let twice = archive.file("a", 0o644, vec![]).unwrap_err();
        assert_eq!(twice.to_string(), "`a` is in the archive already");
        let inside = archive.file("a/b", 0o644, vec![]).unwrap_err();
        assert_eq!(inside.to_string(), "`a` is in the archive already, and not as a directory");
    }

    proptest! {
        #[test]
        fn any_files_are_read_back(
            files in prop::collection::btree_map("[a-d]{1,3}(/[e-h]{1,3}){0,2}", any::<Vec<u8>>(), 0..20),
        ) {
            let mut archive = Archive::default();
            let mut added = Vec::new();
            for (path, data) in &files {
                // One may be where another wants a directory.
                if archive.file(path, 0o600, &data[..]).is_ok() {
                    added.push((path.clone(), data.clone()));
                }
            }
            let found = read(&archive.to_bytes()).into_iter().filter(|e| e.mode == 0o100600);
            prop_assert_eq!(found.map(|e| (e.path, e.data)).collect::<Vec<_>>(), added);
        }
    }
}
