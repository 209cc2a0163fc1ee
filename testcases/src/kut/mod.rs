//! kvm-unit-tests as they are: images that others built, run as their `unittests.cfg` says.
//!
//! [`config`] reads that file, [`options`] makes machines of ours of the QEMU options in it, and
//! [`image`] judges what an image did. A configuration becomes a [`Case`] like any other, with the
//! image as its [subject](Subject::Image), so that what runs, watches and reports cases does it for
//! these.
//!
//! A configuration that asks for what our machine lacks is a skip that names it.

pub mod config;
pub mod image;
pub mod options;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::case::{About, Case, CaseId, Deviates, Expect, Spec, Subject, Tag, Timeout};
use crate::need::Need;
use config::{Config, DEFAULT_TIMEOUT, MAX_BYTES};
use image::Image;
use options::translate;
pub use words::timed;

/// The area of the cases.
pub const AREA: &str = "kut";

/// The file with the configurations.
pub const CONFIG: &str = "unittests.cfg";

/// The file in which a tree that was configured says for what.
pub const TREE: &str = "config.mak";

/// The group of configurations that run only if they are asked for.
const NODEFAULT: &str = "nodefault";

/// Where a kernel shows the parameters of a module: before its name, and before the parameter's.
const PARAMETERS: (&str, &str) = ("/sys/module/", "/parameters/");

/// Images and their configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    /// The directory that holds the images and their `unittests.cfg`.
    pub dir: PathBuf,
    /// The `config.mak` of the tree, if it has one.
    pub tree: Option<PathBuf>,
    /// What the images were built for: `x86_64` or `i386`.
    pub arch: String,
    /// The configurations.
    pub configs: Vec<Config>,
}

/// Why there is no suite.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// There are no configurations.
    #[error(
        "{dir} has neither x86/{CONFIG} nor {CONFIG}; name a tree of kvm-unit-tests that was built \
         (`./configure && make`), or a folder with images and their {CONFIG}"
    )]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no list of configurations.
    #[error("{}", .wrong.iter().map(|line| format!("{}: {line}", .path.display())).collect::<Vec<_>>().join("\n"))]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        wrong: Vec<String>,
    },
    /// The tree is for other processors.
    #[error(
        "{path}: the tree was configured for {arch}; only images for x86_64 or i386 run here: \
         `./configure --arch=x86_64 && make`"
    )]
    Arch {
        /// The file that says so.
        path: PathBuf,
        /// For which.
        arch: String,
    },
    /// No image is there.
    #[error(
        "{dir} has none of the {count} images that its {CONFIG} names; build them there: {make}"
    )]
    NotBuilt {
        /// The directory.
        dir: PathBuf,
        /// How many.
        count: usize,
        /// The command.
        make: &'static str,
    },
}

impl Suite {
    /// Opens a tree that was built, or a folder with images.
    ///
    /// # Errors
    /// There is no `unittests.cfg`, it is wrong, no image is built, or they are for another
    /// architecture.
    pub fn open(dir: &Path) -> Result<Suite, SuiteError> {
        let place =
            [dir.join("x86"), dir.to_owned()].into_iter().find(|d| d.join(CONFIG).is_file());
        let place = place.ok_or_else(|| SuiteError::NoConfig { dir: dir.to_owned() })?;
        // It lies beside the folder of the images, or, where they were put together, in it.
        let tree = Some(dir.join(TREE)).filter(|tree| tree.is_file());
        let arch = match &tree {
            Some(path) => arch(&read(path)?).unwrap_or_else(|| "x86_64".into()),
            None => "x86_64".into(),
        };
        if let (Some(path), false) = (&tree, ["x86_64", "i386"].contains(&&arch[..])) {
            return Err(SuiteError::Arch { path: path.clone(), arch });
        }
        let path = place.join(CONFIG);
        let configs = config::parse(&read(&path)?)
            .map_err(|wrong| SuiteError::Config { path: path.clone(), wrong })?;
        let files: BTreeSet<&str> = configs.iter().map(|c| &c.file[..]).collect();
        if !files.iter().any(|file| place.join(file).is_file()) {
            let make = if tree.is_some() { "make" } else { "./configure && make" };
            return Err(SuiteError::NotBuilt { dir: place, count: files.len(), make });
        }
        Ok(Suite { dir: place, tree, arch, configs })
    }

    /// The cases, in the order of the file. Those of the group `nodefault` are skips unless `all` of
    /// them are wanted.
    pub fn cases(&self, all: bool) -> Vec<Case> {
        self.configs.iter().map(|config| self.case(config, all)).collect()
    }

    fn case(&self, config: &Config, all: bool) -> Case {
        let translated = translate(config);
        let mut why_not = Vec::new();
        if let Some(arch) = config.arch.as_ref().filter(|arch| **arch != self.arch) {
            why_not.push(format!("it is for {arch}, and the images are for {}", self.arch));
        }
        if let Some(accel) = config.accel.as_ref().filter(|accel| *accel != "kvm") {
            why_not.push(format!("it is for the accelerator {accel}, and not for KVM"));
        }
        if let Some(machine) = config.machine.as_ref().filter(|machine| *machine != "pc") {
            why_not.push(format!("it is for the machine {machine}, and ours is a pc"));
        }
        if config.groups.iter().any(|group| group == NODEFAULT) && !all {
            why_not.push(format!("it is in the group {NODEFAULT}; --all runs it"));
        }
        if let Some(command) = &config.disabled_if {
            why_not.push(format!("a shell is to say whether it runs: `{command}`"));
        }
        if !translated.lacks.is_empty() {
            why_not.push(format!("it wants {}", translated.lacks.join(", and ")));
        }
        let path = self.dir.join(&config.file);
        if why_not.is_empty() && !path.is_file() {
            why_not.push(format!("the image {} is not built", config.file));
        }
        let (mut needs, mut checks) = (translated.machine.needs(), Vec::new());
        for (path, value) in &config.check {
            match module_need(path, value) {
                Some(need) => needs.push(need),
                None => checks.push((PathBuf::from(path), value.clone())),
            }
        }
        let image =
            Image { path, config: config.name.clone(), why_not: why_not.join("; "), checks };
        Case {
            id: CaseId { area: AREA.into(), name: config.name.clone(), variant: None },
            file: self.dir.join(CONFIG),
            spec: Spec {
                about: About(format!("The image {} passes as `{}`.", config.file, config.name)),
                subject: Subject::Image(Box::new(image)),
                needs,
                because: None,
                known_bug: None,
                deviates: Deviates::default(),
                timeout: Timeout(config.timeout.unwrap_or(DEFAULT_TIMEOUT)),
                expect: Expect::Pass,
                tags: config.groups.iter().cloned().map(Tag).collect(),
                covers: vec![],
                machine: translated.machine,
            },
        }
    }

    /// The files that running these cases elsewhere takes: the name that each is to have in a
    /// directory there, which is a suite then, and the file.
    pub fn files<'a>(&self, cases: impl IntoIterator<Item = &'a Case>) -> Vec<(String, PathBuf)> {
        let images: BTreeSet<&Path> = cases
            .into_iter()
            .filter_map(|case| match &case.spec.subject {
                Subject::Image(image) => Some(image.path.as_path()),
                _ => None,
            })
            .collect();
        let name =
            |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let config = self.dir.join(CONFIG);
        let tree = self.tree.iter().map(PathBuf::as_path);
        tree.chain([config.as_path()])
            .chain(images)
            .map(|path| (name(path), path.to_owned()))
            .collect()
    }
}

/// The parameter of a module that a file shows, as what a host must have: an emulated one is booted
/// with it.
fn module_need(path: &str, value: &str) -> Option<Need> {
    let (module, param) = path.strip_prefix(PARAMETERS.0)?.split_once(PARAMETERS.1)?;
    Need::try_from(format!("module:{module}.{param}={value}")).ok()
}

/// What a tree was configured for.
fn arch(text: &str) -> Option<String> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("ARCH="))?;
    Some(line.trim().to_owned())
}

fn read(path: &Path) -> Result<String, SuiteError> {
    let failed = |source| SuiteError::Read { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        let why = format!("it has {length} bytes, and no such file has more than {MAX_BYTES}");
        return Err(failed(io::Error::other(why)));
    }
    fs::read_to_string(path).map_err(failed)
}

#[cfg(test)]
mod tests;
