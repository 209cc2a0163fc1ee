//! The cache: packages as they were fetched, trees they were unpacked to, a record of each piece.
//!
//! ```text
//! DIR/lock              held by who changes anything here
//! DIR/qemu.json         the record of a piece: its packages with their sums, its tree with its files
//! DIR/trees/qemu-1234…  the tree, named for the packages and their sums
//! DIR/debs/*.deb        packages
//! DIR/apt/SUITE         apt's own state for a suite, about 65 MB
//! DIR/unpacking-0       a tree that is not whole yet
//! ```
//!
//! A tree is made whole before it is renamed to its name, and a record is written after that. So
//! whoever reads needs no lock.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::index::Package;
use super::{FetchError, Progress};

/// The version of the record's format; a record of another version is not used.
const FORMAT: u32 = 1;

/// How the names of trees begin that are not whole yet.
const UNPACKING: &str = "unpacking-";

/// What a package holds for people and installers, and no host uses.
const UNUSED: [&str; 8] = [
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/icons",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
];

/// What is known of a piece that was fetched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub format: u32,
    /// The suite its packages are from.
    pub suite: String,
    /// What the program or the kernel tells of its version.
    pub version: String,
    /// The name of the tree.
    pub tree: String,
    pub packages: Vec<Package>,
    /// The files of the tree that a host may use, with their lengths in bytes; of a symbolic link,
    /// the length of its target.
    pub files: BTreeMap<PathBuf, u64>,
}

/// A directory with fetched pieces.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub dir: PathBuf,
}

impl Cache {
    /// Where packages are kept.
    pub fn debs(&self) -> PathBuf {
        self.dir.join("debs")
    }

    /// Where the tree of a record is.
    pub fn tree(&self, record: &Record) -> PathBuf {
        self.dir.join("trees").join(&record.tree)
    }

    /// The record of a piece, if there is one that can be read.
    pub fn record(&self, piece: &str) -> Option<Record> {
        let text = fs::read(self.dir.join(format!("{piece}.json"))).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        let is_name = |name: &str| !name.is_empty() && !name.contains(['/', '.']);
        (record.format == FORMAT && is_name(&record.tree)).then_some(record)
    }

    /// Whether every file of a record's tree is there, with its length.
    pub fn is_whole(&self, record: &Record) -> bool {
        let tree = self.tree(record);
        let is_there = |(file, length): (&PathBuf, &u64)| {
            fs::symlink_metadata(tree.join(file)).is_ok_and(|m| m.len() == *length && !m.is_dir())
        };
        !record.files.is_empty() && record.files.iter().all(is_there)
    }

    /// An empty directory for a tree that is being unpacked. Whoever calls it holds the lock.
    pub fn begin_tree(&self) -> Result<PathBuf, FetchError> {
        make_dir(&self.dir)?;
        let error = || FetchError::io("read", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(error())? {
            let entry = entry.map_err(error())?;
            if entry.file_name().to_string_lossy().starts_with(UNPACKING) {
                // What a killed process left. If its child still writes there, it stays for now.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for number in 0_u64.. {
            let dir = self.dir.join(format!("{UNPACKING}{number}"));
            match fs::create_dir(&dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| dir.clone()).map_err(FetchError::io("create", &dir)),
            }
        }
        Err(error()(io::ErrorKind::AlreadyExists.into()))
    }

    /// Takes a tree that was unpacked over as what `packages` are for `piece`, and records it.
    pub fn finish_tree(
        &self,
        unpacked: &Path,
        piece: &str,
        suite: &str,
        version: &str,
        packages: &[Package],
    ) -> Result<Record, FetchError> {
        let mut files = BTreeMap::new();
        list(unpacked, Path::new(""), &mut files)?;
        let record = Record {
            format: FORMAT,
            suite: suite.to_owned(),
            version: version.to_owned(),
            tree: tree_name(piece, packages),
            packages: packages.to_vec(),
            files,
        };
        let tree = self.tree(&record);
        make_dir(&self.dir.join("trees"))?;
        if tree.exists() {
            fs::remove_dir_all(&tree).map_err(FetchError::io("remove", &tree))?;
        }
        fs::rename(unpacked, &tree).map_err(FetchError::io("rename to", &tree))?;
        let path = self.dir.join(format!("{piece}.json"));
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec(&record).map_err(io::Error::other);
        text.and_then(|text| fs::write(&new, text)).map_err(FetchError::io("write", &new))?;
        fs::rename(&new, &path).map_err(FetchError::io("rename to", &path))?;
        Ok(record)
    }

    /// Waits until no other process changes the cache, and keeps them from it until the lock is
    /// dropped.
    pub fn lock(
        &self,
        cancel: &AtomicBool,
        progress: &mut dyn Progress,
    ) -> Result<File, FetchError> {
        make_dir(&self.dir)?;
        let path = self.dir.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(FetchError::io("open", &path))?;
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(e)) => return Err(FetchError::io("lock", &path)(e)),
                Err(TryLockError::WouldBlock) if !told => {
                    progress.note(&format!(
                        "waiting for another process that fetches to {}",
                        self.dir.display()
                    ));
                    told = true;
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            }
            if cancel.load(Ordering::Relaxed) {
                return Err(FetchError::Cancelled);
            }
        }
    }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<(), FetchError> {
    fs::create_dir_all(dir).map_err(FetchError::io("create", dir))
}

/// How many bytes a user may still write to the file system that holds `dir`.
pub(super) fn free(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    stat.f_bavail.checked_mul(stat.f_frsize)
}

/// The SHA-256 sum of a file, in hexadecimal digits.
pub(super) fn sha256(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A tree is named for what is in it.
fn tree_name(piece: &str, packages: &[Package]) -> String {
    let mut lines: Vec<_> =
        packages.iter().map(|p| format!("{}={}={}\n", p.name, p.version, p.sha256)).collect();
    lines.sort();
    let digest = hex(&Sha256::digest(lines.concat()));
    format!("{piece}-{}", &digest[..16])
}

/// Every file under `tree` that is not a directory, with its length.
fn list(tree: &Path, below: &Path, files: &mut BTreeMap<PathBuf, u64>) -> Result<(), FetchError> {
    let dir = tree.join(below);
    let error = || FetchError::io("read", &dir);
    for entry in fs::read_dir(&dir).map_err(error())? {
        let entry = entry.map_err(error())?;
        let path = below.join(entry.file_name());
        let metadata = entry.metadata().map_err(error())?;
        if !metadata.is_dir() {
            files.insert(path, metadata.len());
        } else if !UNUSED.iter().any(|unused| path == Path::new(unused)) {
            list(tree, &path, files)?;
        }
    }
    Ok(())
}
