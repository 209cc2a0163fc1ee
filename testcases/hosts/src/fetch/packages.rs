//! Gets a piece from packages: fetched before, or now, from the best suite that yields it.

use std::path::Path;

use super::archive::{self, Archive};
use super::cache::{self, Record};
use super::index::Package;
use super::piece::{self, Piece};
use super::{FetchError, Fetcher};
use crate::pieces::BochsFirmware;

/// Names under which an apt configuration may know a suite of Debian beside its codename.
const ALIASES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];

/// How many bytes apt's state for a suite takes, and what it takes to make it.
const INDEX: u64 = 100_000_000;

/// What came of opening a suite on a mirror.
pub(super) struct Opened<'a> {
    suite: String,
    mirror: String,
    archive: Result<Archive<'a>, String>,
}

/// Why one suite on one mirror did not yield a piece.
pub(super) enum Failed {
    /// Another may.
    Suite(String),
    /// None will.
    All(FetchError),
}

impl From<FetchError> for Failed {
    fn from(error: FetchError) -> Failed {
        Failed::All(error)
    }
}

impl<'a> Fetcher<'a> {
    /// A piece from packages: fetched before, or now.
    pub(super) fn ensure(
        &mut self,
        piece: Piece,
        mut tried: Vec<String>,
        newest_only: bool,
    ) -> Result<Record, FetchError> {
        if let Some(record) = self.cached(piece) {
            return Ok(record);
        }
        if self.offline {
            tried.push("it has not been fetched yet".into());
            return Err(FetchError::Unavailable {
                piece: piece.name().to_owned(),
                tried,
                instead: piece.instead().to_owned(),
            });
        }
        let lock = self.cache.lock(self.cancel, self.progress)?;
        // Another process may have been faster.
        if let Some(record) = self.cached(piece) {
            return Ok(record);
        }
        let unavailable = |tried| FetchError::Unavailable {
            piece: piece.name().to_owned(),
            tried,
            instead: piece.instead().to_owned(),
        };
        let fetched = self.renew(piece, newest_only, &mut tried);
        drop(lock);
        match fetched {
            Ok(Some(record)) => Ok(record),
            Ok(None) => Err(unavailable(tried)),
            Err(error @ FetchError::Tool { .. }) => {
                tried.push(error.to_string());
                Err(unavailable(tried))
            }
            Err(error) => Err(error),
        }
    }

    fn cached(&self, piece: Piece) -> Option<Record> {
        self.cache.record(piece.key()).filter(|record| self.cache.is_whole(record))
    }

    /// Fetches and unpacks a piece; `None` if it cannot be had, for the reasons that are in `tried`.
    fn renew(
        &mut self,
        piece: Piece,
        newest_only: bool,
        tried: &mut Vec<String>,
    ) -> Result<Option<Record>, FetchError> {
        let needed = ["apt-get", "apt-cache", "dpkg-deb"];
        if let Some(none) = needed.iter().find(|name| self.tools.find(name).is_none()) {
            tried.push(format!(
                "Debian packages cannot be fetched, since there is no {none} on PATH"
            ));
            return Ok(None);
        }
        // The tree was damaged; the packages it was made of may still be here.
        if let Some(record) = self.cache.record(piece.key())
            && archive::bad(&self.cache.debs(), &record.packages)?.is_empty()
        {
            match self.unpack(piece, &record.suite, &record.packages) {
                Ok(record) => return Ok(Some(record)),
                Err(Failed::Suite(why)) => {
                    tried.push(format!("the packages fetched before: {why}"))
                }
                Err(Failed::All(error)) => return Err(error),
            }
        }
        let known: Vec<&str> = self.suites.iter().map(|s| &s[..]).chain(ALIASES).collect();
        let mirrors = archive::mirrors(&self.tools, &known, self.cancel, &self.cache.dir)?;
        if mirrors.is_empty() {
            tried.push("apt is configured with no Debian archive here".to_owned());
        }
        let mut suites = self.suites.clone();
        suites.truncate(if newest_only { 1 } else { suites.len() });
        let mut failed: Vec<String> = Vec::new();
        for suite in suites {
            for mirror in &mirrors {
                match self.attempt(piece, &suite, mirror) {
                    Ok(record) => {
                        if !failed.is_empty() {
                            let (piece, why) = (piece.name(), failed.join("; "));
                            self.progress.note(&format!("{piece} is from Debian {suite}: {why}"));
                        }
                        return Ok(Some(record));
                    }
                    Err(Failed::All(error)) => return Err(error),
                    Err(Failed::Suite(why)) if failed.contains(&why) => {}
                    Err(Failed::Suite(why)) => failed.push(why),
                }
            }
        }
        tried.append(&mut failed);
        Ok(None)
    }

    /// Fetches and unpacks a piece from one suite on one mirror.
    fn attempt(&mut self, piece: Piece, suite: &str, mirror: &str) -> Result<Record, Failed> {
        let index = self.open(suite, mirror)?;
        let archive = match &self.opened[index].archive {
            Ok(archive) => archive,
            Err(why) => return Err(Failed::Suite(why.clone())),
        };
        let from = |failed| match failed {
            Failed::Suite(why) => Failed::Suite(format!("Debian {suite} from {mirror}: {why}")),
            all => all,
        };
        let packages = archive.packages(piece.roots(), piece.follow()).map_err(from)?;
        let debs = self.cache.debs();
        let missing = archive::bad(&debs, &packages)?;
        let needed = missing.iter().map(|(package, _)| package.size).sum::<u64>()
            + packages.iter().map(|package| package.installed << 10).sum::<u64>();
        room(&debs, needed)?;
        let what = format!("{}: {} packages of Debian {suite}", piece.name(), packages.len());
        archive.download(&what, &packages, self.progress)?;
        self.unpack(piece, suite, &packages).map_err(from)
    }

    /// Opens a suite on a mirror, once; where it is in `self.opened`. A mirror that could not be
    /// reached for one suite is not asked for another.
    fn open(&mut self, suite: &str, mirror: &str) -> Result<usize, Failed> {
        let is_lost =
            |opened: &Opened| opened.archive.as_ref().is_err_and(|why| is_unreachable(why));
        let is_it = |o: &Opened| o.mirror == mirror && (o.suite == suite || is_lost(o));
        if let Some(index) = self.opened.iter().position(is_it) {
            return Ok(index);
        }
        self.progress.started(&format!("index of Debian {suite}"), None);
        let debs = self.cache.debs();
        let (tools, dir) = (self.tools.clone(), &self.cache.dir);
        let archive = room(dir, INDEX)
            .and_then(|()| Archive::open(tools, self.cancel, dir, &debs, mirror, suite));
        self.progress.done();
        let archive = match archive {
            Ok(archive) => Ok(archive),
            Err(error @ FetchError::Tool { .. }) => {
                Err(format!("Debian {suite} from {mirror}: {error}"))
            }
            Err(error) => return Err(Failed::All(error)),
        };
        let (suite, mirror) = (suite.to_owned(), mirror.to_owned());
        self.opened.push(Opened { suite, mirror, archive });
        Ok(self.opened.len() - 1)
    }

    /// Unpacks packages that are there to a tree, tries what is in it, and records it.
    fn unpack(
        &mut self,
        piece: Piece,
        suite: &str,
        packages: &[Package],
    ) -> Result<Record, Failed> {
        let tree = self.cache.begin_tree()?;
        let bytes = packages.iter().map(|package| package.size).sum();
        self.progress.started(&format!("unpacking {}", piece.name()), Some(bytes));
        let debs = self.cache.debs();
        let unpacked =
            archive::unpack(&self.tools, self.cancel, &debs, packages, &tree, self.progress);
        self.progress.done();
        let version = unpacked.map_err(Failed::All).and_then(|()| self.prove(piece, &tree));
        let finish = |version: String| {
            Ok(self.cache.finish_tree(&tree, piece.key(), suite, &version, packages)?)
        };
        let record = version.and_then(finish);
        if record.is_err() {
            // It may be what fills the disk. Left behind, it would be removed the next time.
            let _ = std::fs::remove_dir_all(&tree);
        }
        record
    }

    /// Tries what was unpacked; its version.
    fn prove(&self, piece: Piece, tree: &Path) -> Result<String, Failed> {
        let lacks = || Failed::Suite(format!("its packages hold no {}", piece.name()));
        match piece {
            Piece::Qemu | Piece::Bochs | Piece::Llvm => {
                let program = piece.program(tree).ok_or_else(lacks)?;
                self.tell(piece, &program)?.map_err(Failed::Suite)
            }
            Piece::Kernel(_) => Ok(piece::kernel(tree).ok_or_else(lacks)?.release),
            Piece::Busybox => piece::busybox(tree).map(|_| String::new()).ok_or_else(lacks),
            Piece::BochsFirmware => {
                let BochsFirmware { bios, vga } = piece::firmware(tree);
                (bios.is_file() && vga.is_file()).then(String::new).ok_or_else(lacks)
            }
        }
    }
}

/// Whether there is room for `needed` bytes more in `dir`, as far as that can be told.
fn room(dir: &Path, needed: u64) -> Result<(), FetchError> {
    match cache::free(dir) {
        Some(free) if free < needed => Err(FetchError::full(dir, Some(needed))),
        _ => Ok(()),
    }
}

/// Whether apt's words mean that there is no way to the mirror.
fn is_unreachable(why: &str) -> bool {
    const WORDS: [&str; 6] = [
        "Temporary failure resolving",
        "Could not resolve",
        "Could not connect",
        "Unable to connect",
        "Network is unreachable",
        "onnection timed out",
    ];
    WORDS.iter().any(|words| why.contains(words))
}
