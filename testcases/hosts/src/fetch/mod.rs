//! Finds the pieces of an emulated host on the machine, or fetches them as Debian packages, without
//! root.
//!
//! For each piece, in this order:
//!
//! 1. what the user points to ([`Own`]); if that cannot be used, it is an error and nothing else is
//!    tried;
//! 2. QEMU, Bochs and a statically linked busybox on PATH. QEMU from 7.2 on is good enough. Bochs is
//!    from 3.0 on, which brings APICv and posted interrupts; an older one is used if 3.0 cannot be
//!    fetched;
//! 3. what was fetched before: no program is started for it, and no network used;
//! 4. packages of the newest stable Debian known here, from the mirror that the machine's own apt
//!    configuration names. They run on an older Debian with their own loader and libraries;
//! 5. packages of the machine's own Debian.
//!
//! A kernel is never taken from the machine unasked, so that the same host boots everywhere. QEMU is,
//! since it is what people have; who compares deterministic runs across machines compares the
//! version as well, which every [`Program`] tells.
//!
//! Every package is held against the SHA-256 sum in the archive's signed index before it is unpacked.
//! What was fetched stays until its directory is removed; nothing is renewed by itself.

mod archive;
mod cache;
mod error;
mod index;
mod own;
mod piece;
#[cfg(test)]
mod tests;
mod tool;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub use error::FetchError;
pub use own::Own;
pub use piece::Flavour;

use crate::pieces::{BochsFirmware, Kernel, Program};
use archive::Archive;
use cache::{Cache, Record};
use index::Package;
use piece::Piece;
use tool::Tools;

/// The stable Debian whose packages are tried first, wherever a Debian archive can be reached.
const NEWEST: &str = "trixie";

/// Names under which an apt configuration may know a suite of Debian beside its codename.
const ALIASES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];

/// How many bytes apt's state for a suite takes, and what it takes to make it.
const INDEX: u64 = 100_000_000;

/// What the user is told while something is fetched.
pub trait Progress {
    /// Something begins; it is done after this many bytes, if that is known.
    fn started(&mut self, what: &str, bytes: Option<u64>);
    /// So many bytes of it are done.
    fn at(&mut self, bytes: u64);
    /// It has ended, well or not.
    fn done(&mut self);
    /// A sentence the user should know.
    fn note(&mut self, text: &str);
}

/// Finds and fetches pieces.
pub struct Fetcher<'a> {
    cache: Cache,
    own: Own,
    tools: Tools,
    /// The suites to try, the best first.
    suites: Vec<String>,
    cancel: &'a AtomicBool,
    progress: &'a mut dyn Progress,
    /// What came of opening a suite on a mirror: it is tried once.
    opened: Vec<Opened<'a>>,
}

struct Opened<'a> {
    suite: String,
    mirror: String,
    archive: Result<Archive<'a>, String>,
}

/// Why one suite on one mirror did not yield a piece.
enum Failed {
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
    /// Keeps what it fetches in `cache`, a directory that need not exist; prefers what the user owns.
    pub fn new(
        cache: &Path,
        own: Own,
        cancel: &'a AtomicBool,
        progress: &'a mut dyn Progress,
    ) -> Fetcher<'a> {
        // apt would take a relative path as one below /.
        let dir = std::path::absolute(cache).unwrap_or_else(|_| cache.to_owned());
        let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = codename(&release).filter(|name| *name != NEWEST);
        let suites = [NEWEST].into_iter().chain(codename).map(str::to_owned);
        Fetcher {
            cache: Cache { dir },
            own,
            tools: Tools { path: std::env::var_os("PATH").unwrap_or_default() },
            suites: suites.collect(),
            cancel,
            progress,
            opened: Vec::new(),
        }
    }

    /// QEMU's emulator of x86-64 machines.
    ///
    /// # Errors
    ///
    /// The user's own cannot be used, or there is none and none can be fetched.
    pub fn qemu(&mut self) -> Result<Program, FetchError> {
        if let Some(path) = self.own.qemu.clone() {
            return self.given(Piece::Qemu, &path, "--qemu (or EXITLAB_QEMU)");
        }
        let mut tried = Vec::new();
        match self.on_path(Piece::Qemu, &["qemu-system-x86_64"], &mut tried)? {
            Some(found) if own::is_at_least(&found.version, own::QEMU) => return Ok(found),
            Some(found) => tried.push(format!("{} is version {}", found.origin, found.version)),
            None => {}
        }
        self.program(Piece::Qemu, tried, false)
    }

    /// Bochs with its firmware.
    ///
    /// # Errors
    ///
    /// As [`qemu`](Fetcher::qemu).
    pub fn bochs(&mut self) -> Result<(Program, BochsFirmware), FetchError> {
        if let Some(path) = self.own.bochs.clone() {
            let program = self.given(Piece::Bochs, &path, "--bochs (or EXITLAB_BOCHS)")?;
            return self.with_firmware(program);
        }
        let mut tried = Vec::new();
        let found = self.on_path(Piece::Bochs, &["bochs-bin", "bochs"], &mut tried)?;
        let older = match found {
            Some(found) if own::is_at_least(&found.version, own::BOCHS_APICV) => {
                return self.with_firmware(found);
            }
            Some(found) if own::is_at_least(&found.version, own::BOCHS) => Some(found),
            Some(found) => {
                tried.push(format!("{} is version {}", found.origin, found.version));
                None
            }
            None => None,
        };
        match (self.program(Piece::Bochs, tried, older.is_some()), older) {
            (Err(FetchError::Unavailable { .. }), Some(older)) => self.with_firmware(older),
            (fetched, _) => {
                let program = fetched?;
                // Both are in one tree: usr/bin/bochs-bin and usr/share.
                let tree = program.path.ancestors().nth(3).unwrap_or(Path::new("/"));
                let firmware = piece::firmware(tree);
                Ok((program, firmware))
            }
        }
    }

    /// A Linux kernel with its modules. The user's own is every flavour.
    ///
    /// # Errors
    ///
    /// As [`qemu`](Fetcher::qemu).
    pub fn kernel(&mut self, flavour: Flavour) -> Result<Kernel, FetchError> {
        if let Some(path) = &self.own.kernel {
            return own::kernel_at(path).map_err(|why| {
                FetchError::Own(format!("--host-kernel (or EXITLAB_HOST_KERNEL): {why}"))
            });
        }
        let piece = Piece::Kernel(flavour);
        let record = self.ensure(piece, Vec::new(), false)?;
        let kernel = piece::kernel(&self.cache.tree(&record));
        let kernel = kernel.ok_or_else(|| vanished(&self.cache.tree(&record)))?;
        Ok(Kernel { origin: origin(piece, &record), ..kernel })
    }

    /// A statically linked busybox.
    ///
    /// # Errors
    ///
    /// There is none and none can be fetched.
    pub fn busybox(&mut self) -> Result<PathBuf, FetchError> {
        if let Some(found) = self.tools.find("busybox").filter(|file| own::is_static(file)) {
            return Ok(found);
        }
        let tried = vec!["no statically linked busybox on PATH".to_owned()];
        let record = self.ensure(Piece::Busybox, tried, false)?;
        let tree = self.cache.tree(&record);
        piece::busybox(&tree).ok_or_else(|| vanished(&tree))
    }

    /// The user's own program.
    fn given(&self, piece: Piece, path: &Path, flag: &str) -> Result<Program, FetchError> {
        let path = own::named(path, &self.tools);
        let wrong = |why: &str| {
            FetchError::Own(format!(
                "{flag} names {}, which cannot be used as {}: {why}",
                path.display(),
                piece.name()
            ))
        };
        if !tool::is_executable(&path) {
            return Err(wrong("it is no file that may be executed"));
        }
        let program = own::program(path.clone(), format!("{} of the user's own", path.display()));
        match self.tell(piece, &program)? {
            Ok(version) => Ok(Program { version, ..program }),
            Err(why) => Err(wrong(&why)),
        }
    }

    /// The first of `names` on PATH, if it can be used; else what was tried.
    fn on_path(
        &self,
        piece: Piece,
        names: &[&str],
        tried: &mut Vec<String>,
    ) -> Result<Option<Program>, FetchError> {
        let found = names.iter().find_map(|name| Some((name, self.tools.find(name)?)));
        let Some((name, path)) = found else {
            tried.push(format!("no {} on PATH", names.join(" or ")));
            return Ok(None);
        };
        let program = own::program(path, format!("{name} on PATH"));
        match self.tell(piece, &program)? {
            Ok(version) => Ok(Some(Program { version, ..program })),
            Err(why) => {
                tried.push(format!("{} on PATH: {why}", program.path.display()));
                Ok(None)
            }
        }
    }

    fn tell(&self, piece: Piece, program: &Program) -> Result<Result<String, String>, FetchError> {
        own::tell(piece, program, self.cancel)
    }

    /// The firmware of a Bochs that is not ours, from beside it or from packages.
    fn with_firmware(&mut self, bochs: Program) -> Result<(Program, BochsFirmware), FetchError> {
        if let Some(firmware) = own::firmware(&bochs.path, std::env::var_os("BXSHARE")) {
            return Ok((bochs, firmware));
        }
        let tried = vec![format!("none beside {}", bochs.path.display())];
        let record = self.ensure(Piece::BochsFirmware, tried, false)?;
        Ok((bochs, piece::firmware(&self.cache.tree(&record))))
    }

    /// A program from packages.
    fn program(
        &mut self,
        piece: Piece,
        tried: Vec<String>,
        newest_only: bool,
    ) -> Result<Program, FetchError> {
        let record = self.ensure(piece, tried, newest_only)?;
        let tree = self.cache.tree(&record);
        let program = piece.program(&tree).ok_or_else(|| vanished(&tree))?;
        Ok(Program { version: record.version.clone(), origin: origin(piece, &record), ..program })
    }

    /// A piece from packages: fetched before, or now.
    fn ensure(
        &mut self,
        piece: Piece,
        mut tried: Vec<String>,
        newest_only: bool,
    ) -> Result<Record, FetchError> {
        if let Some(record) = self.cached(piece) {
            return Ok(record);
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
            Piece::Qemu | Piece::Bochs => {
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

/// The codename in the text of os-release(5), if it is of a Debian.
fn codename(release: &str) -> Option<&str> {
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"'))
    };
    field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian"))
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

/// Where a piece is from, for people.
fn origin(piece: Piece, record: &Record) -> String {
    let root = record.packages.iter().find(|package| package.name == piece.roots()[0]);
    let version = root.map_or("", |package| &package.version);
    format!("package {} {version} of Debian {}", piece.roots()[0], record.suite)
}

/// The error for a tree that lost files after it was found whole.
fn vanished(tree: &Path) -> FetchError {
    FetchError::io("use", tree)(std::io::Error::from(std::io::ErrorKind::NotFound))
}
