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
mod packages;
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
use cache::{Cache, Record};
use packages::Opened;
use piece::Piece;
use tool::Tools;

/// The stable Debian whose packages are tried first, wherever a Debian archive can be reached.
const NEWEST: &str = "trixie";

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
    /// Whether nothing is fetched.
    offline: bool,
    cancel: &'a AtomicBool,
    progress: &'a mut dyn Progress,
    /// What came of opening a suite on a mirror: it is tried once.
    opened: Vec<Opened<'a>>,
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
            offline: false,
            cancel,
            progress,
            opened: Vec::new(),
        }
    }

    /// Fetches nothing: what is not there already cannot be had.
    pub fn offline(self) -> Fetcher<'a> {
        Fetcher { offline: true, ..self }
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

    /// LLVM's `llvm-cov`, with `llvm-profdata` beside it, from packages; what is on the machine is for the
    /// caller to try, since it must read what the compiler at hand writes.
    ///
    /// # Errors
    ///
    /// None can be fetched. `tried` is what else was tried.
    pub fn llvm(&mut self, tried: Vec<String>) -> Result<Program, FetchError> {
        self.program(Piece::Llvm, tried, false)
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
}

/// The codename in the text of os-release(5), if it is of a Debian.
fn codename(release: &str) -> Option<&str> {
    let field = |name: &str| {
        let value = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.trim_matches('"'))
    };
    field("VERSION_CODENAME").filter(|_| field("ID") == Some("debian"))
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
