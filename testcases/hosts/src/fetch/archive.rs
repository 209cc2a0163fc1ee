//! One suite of the Debian archive, through the machine's own apt and without root: apt's state is
//! in the cache, and what the machine has installed does not matter.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::cache::{make_dir, sha256};
use super::index::{self, Package, Source};
use super::packages::Failed;
use super::tool::{self, Tools};
use super::{FetchError, Progress};

/// Where Debian's package debian-archive-keyring puts the keys of the archive.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// How long fetching an index may take, over a slow line.
const INDEX_LIMIT: Duration = Duration::from_secs(300);

/// How long fetching packages may take, over a slow line.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(3600);

/// How long a command that needs no network may take, on a busy machine.
const LOCAL_LIMIT: Duration = Duration::from_secs(120);

/// How often the size of what is being fetched is looked at.
const TICK: Duration = Duration::from_millis(100);

/// apt's options. The machine's own configuration stays in force for proxies, passwords and
/// certificates. Cleared is what would act on the machine (hooks) or make the result depend on it:
/// preferences, foreign architectures, indices that nothing here reads.
const CONFIGURATION: &str = r#"#clear APT::Update;
#clear APT::Architectures;
#clear DPkg;
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Default-Release "";
// apt, when root, fetches as a user who could not write here.
APT::Sandbox::User "root";
// An index that cannot be fetched is an error, not a warning.
APT::Update::Error-Mode "any";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "";
"#;

/// A suite of the Debian archive, with its index fetched.
#[derive(Debug)]
pub(super) struct Archive<'a> {
    tools: Tools,
    cancel: &'a AtomicBool,
    /// apt's state for this suite.
    dir: PathBuf,
    /// Where packages are put.
    debs: PathBuf,
}

/// The archives that the machine's apt is configured to use for one of `suites`, without repeats.
///
/// # Errors
///
/// apt does not work here.
pub(super) fn mirrors(
    tools: &Tools,
    suites: &[&str],
    cancel: &AtomicBool,
    dir: &Path,
) -> Result<Vec<String>, FetchError> {
    let mut command = tools.command("apt-get");
    let text = tool::run(command.args(["--print-uris", "update"]), LOCAL_LIMIT, cancel, dir)?;
    let mut mirrors = Vec::new();
    for Source { uri, suite } in index::sources(&text) {
        if suites.contains(&&suite[..]) && !mirrors.contains(&uri) {
            mirrors.push(uri);
        }
    }
    Ok(mirrors)
}

impl<'a> Archive<'a> {
    /// Fetches the signed index of `suite` from `mirror`.
    ///
    /// # Errors
    ///
    /// The mirror has no such suite, cannot be reached, or its signature is not Debian's.
    pub fn open(
        tools: Tools,
        cancel: &'a AtomicBool,
        cache: &Path,
        debs: &Path,
        mirror: &str,
        suite: &str,
    ) -> Result<Archive<'a>, FetchError> {
        let archive =
            Archive { tools, cancel, dir: cache.join("apt").join(suite), debs: debs.to_owned() };
        make_dir(&archive.dir.join("lists/partial"))?;
        make_dir(&archive.debs.join("partial"))?;
        let write = |name: &str, text: &str| {
            let path = archive.dir.join(name);
            fs::write(&path, text).map_err(FetchError::io("write", &path))
        };
        let keyring = KEYRINGS.into_iter().find(|path| Path::new(path).exists());
        // Without Debian's own keys it is those that the machine trusts for everything.
        let signed = keyring.map_or(String::new(), |path| format!(" signed-by={path}"));
        write("apt.conf", CONFIGURATION)?;
        write(
            "sources.list",
            &format!("deb [arch=amd64 lang=none target=Packages{signed}] {mirror} {suite} main\n"),
        )?;
        // Nothing is installed, so nothing that is keeps apt from choosing the archive's version.
        write("status", "")?;
        let mut command = archive.apt("apt-get");
        tool::run(command.arg("update"), INDEX_LIMIT, cancel, &archive.dir)?;
        Ok(archive)
    }

    /// A command of apt that knows this suite alone.
    fn apt(&self, program: &str) -> Command {
        let mut command = self.tools.command(program);
        command.arg("-c").arg(self.dir.join("apt.conf"));
        for (name, path) in [
            ("Dir::Etc::SourceList", self.dir.join("sources.list")),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::State::status", self.dir.join("status")),
            ("Dir::Cache", self.dir.clone()),
            ("Dir::Cache::archives", self.debs.clone()),
        ] {
            let mut option = std::ffi::OsString::from(format!("{name}="));
            option.push(path);
            command.arg("-o").arg(option);
        }
        command.current_dir(&self.debs);
        command
    }

    /// The packages of `roots`, and those they depend on that `follow` says yes to, and so on; in
    /// the order of their names.
    ///
    /// # Errors
    ///
    /// One of `roots` is not in the suite. A dependency that is not there is left to the trial that
    /// every piece is put to.
    pub fn packages(
        &self,
        roots: &[&str],
        follow: fn(&str) -> bool,
    ) -> Result<Vec<Package>, Failed> {
        let mut found: Vec<Package> = Vec::new();
        let mut asked: Vec<String> = Vec::new();
        let mut next: Vec<String> = roots.iter().map(|name| (*name).to_owned()).collect();
        while !next.is_empty() {
            let mut command = self.apt("apt-cache");
            command.args(["show", "--no-all-versions"]).args(&next);
            let level = match tool::run(&mut command, LOCAL_LIMIT, self.cancel, &self.dir) {
                Ok(text) => index::packages(&text),
                // apt-cache fails if it knows none of the names.
                Err(FetchError::Tool { .. }) => Vec::new(),
                Err(error) => return Err(Failed::All(error)),
            };
            asked.append(&mut next);
            for name in level.iter().flat_map(|package| &package.depends) {
                if follow(name) && !asked.contains(name) && !next.contains(name) {
                    next.push(name.clone());
                }
            }
            found.extend(level);
        }
        let is_there = |root: &&&str| found.iter().any(|package| package.name == **root);
        if let Some(root) = roots.iter().find(|root| !is_there(root)) {
            return Err(Failed::Suite(format!("it has no package {root}")));
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found.dedup_by(|a, b| a.name == b.name);
        Ok(found)
    }

    /// Fetches those of `packages` that are not there with the right sum.
    ///
    /// # Errors
    ///
    /// One cannot be fetched, or has the wrong sum when fetched for the second time.
    pub fn download(
        &self,
        what: &str,
        packages: &[Package],
        progress: &mut dyn Progress,
    ) -> Result<(), FetchError> {
        let mut missing = bad(&self.debs, packages)?;
        for _ in 0..2 {
            if missing.is_empty() {
                return Ok(());
            }
            let wanted: Vec<&Package> = missing.iter().map(|(package, _)| *package).collect();
            progress.started(what, Some(wanted.iter().map(|package| package.size).sum()));
            let fetched = self.fetch(&wanted, progress);
            progress.done();
            fetched?;
            missing = bad(&self.debs, packages)?;
        }
        match missing.into_iter().next() {
            None => Ok(()),
            Some((package, found)) => Err(FetchError::Corrupt {
                file: self.debs.join(package.file()),
                expected: package.sha256.clone(),
                found,
            }),
        }
    }

    fn fetch(&self, wanted: &[&Package], progress: &mut dyn Progress) -> Result<(), FetchError> {
        let mut command = self.apt("apt-get");
        command.args(["download", "-q"]);
        command.args(wanted.iter().map(|p| format!("{}={}", p.name, p.version)));
        let partial = self.debs.join("partial");
        let length = |file: &Path| file.metadata().map_or(0, |metadata| metadata.len());
        std::thread::scope(|scope| {
            let run = || tool::run(&mut command, DOWNLOAD_LIMIT, self.cancel, &self.debs);
            let running = scope.spawn(run);
            while !running.is_finished() {
                let here = wanted.iter().map(|package| {
                    let file = package.file();
                    length(&self.debs.join(&file)).max(length(&partial.join(&file)))
                });
                progress.at(here.sum());
                std::thread::sleep(TICK);
            }
            match running.join() {
                Ok(ended) => {
                    ended?;
                    progress.at(wanted.iter().map(|package| package.size).sum());
                    Ok(())
                }
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// The packages that are not in `debs` with the right sum, each with what is wrong. What has a wrong
/// sum is removed.
pub(super) fn bad<'p>(
    debs: &Path,
    packages: &'p [Package],
) -> Result<Vec<(&'p Package, String)>, FetchError> {
    let mut bad = Vec::new();
    for package in packages {
        let file = debs.join(package.file());
        match sha256(&file) {
            Ok(sum) if sum == package.sha256 => {}
            Ok(sum) => {
                fs::remove_file(&file).map_err(FetchError::io("remove", &file))?;
                bad.push((package, sum));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                bad.push((package, "no file".to_owned()));
            }
            Err(e) => return Err(FetchError::io("read", &file)(e)),
        }
    }
    Ok(bad)
}

/// Unpacks `packages` into `tree`, one after the other.
///
/// # Errors
///
/// A package cannot be unpacked, or the disk is full.
pub(super) fn unpack(
    tools: &Tools,
    cancel: &AtomicBool,
    debs: &Path,
    packages: &[Package],
    tree: &Path,
    progress: &mut dyn Progress,
) -> Result<(), FetchError> {
    let mut bytes = 0;
    for package in packages {
        let mut command = tools.command("dpkg-deb");
        command.arg("-x").arg(debs.join(package.file())).arg(tree);
        tool::run(&mut command, LOCAL_LIMIT, cancel, tree)?;
        bytes += package.size;
        progress.at(bytes);
    }
    Ok(())
}
