//! A kernel's modules: which files must be loaded for those that are wanted, in which order, and
//! which module has a parameter.
//!
//! A package that was unpacked and not installed has no `modules.dep`, which depmod would have
//! made. So what a module needs is read where depmod does not change it: in its `.modinfo` section
//! (Linux, include/linux/module.h, MODULE_INFO and scripts/mod/modpost.c), as are its parameters and
//! the kernel that it is for.

mod lean;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{self, header64};
use goblin::elf::section_header::SectionHeader;
use testcases::nearest;

use crate::compression::{self, CompressionError};
use crate::pieces::Kernel;

/// The largest module, in bytes.
const MAX_MODULE: u64 = 256 << 20;

/// The modules that a kernel has.
#[derive(Clone, Debug)]
pub struct Modules {
    dir: PathBuf,
    release: String,
    /// Files by name, with `_` for `-`.
    files: BTreeMap<String, PathBuf>,
    /// What is in the kernel itself, with its parameters.
    builtin: BTreeMap<String, Vec<String>>,
}

/// A module that is to be loaded, or is in the kernel already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its name as the kernel has it, `kvm_amd`.
    pub name: String,
    /// The modules that it needs, by name.
    pub depends: Vec<String>,
    /// The names of its parameters, sorted.
    pub parameters: Vec<String>,
    /// What to load: its ELF, decompressed, without its signature and its types. Nothing if it is
    /// built in.
    pub elf: Option<Vec<u8>>,
}

/// Why modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// A file or directory could not be read.
    #[error("cannot read {} of kernel {release}: {source}; are its modules unpacked there?", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The kernel.
        release: String,
        /// Why not.
        source: io::Error,
    },
    /// There is no such module.
    #[error(
        "kernel {release} has no module `{name}`, and it is not built in{hint}; looked at {count} \
         modules below {}; use a kernel that has it: Debian's linux-image-amd64 and \
         linux-image-cloud-amd64 have KVM, the first one also devices",
        dir.display()
    )]
    Missing {
        /// Which.
        name: String,
        /// The kernel.
        release: String,
        /// What needs it, or what might have been meant.
        hint: String,
        /// How many there are.
        count: usize,
        /// Where.
        dir: PathBuf,
    },
    /// It is no module.
    #[error("module {} is damaged: {why}; unpack or install the kernel's package again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is for another kernel.
    #[error(
        "module {} is for kernel {found}, and the kernel is {release}; give the modules that were \
         built with it",
        path.display()
    )]
    OtherKernel {
        /// The file.
        path: PathBuf,
        /// The first word of its vermagic.
        found: String,
        /// The kernel.
        release: String,
    },
}

/// Why a parameter cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// Not written as one.
    #[error("`{text}` is no parameter: write NAME=VALUE or MODULE.NAME=VALUE, without spaces")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// None of the modules has it.
    #[error("no parameter `{name}`{hint}; known are {known}")]
    Unknown {
        /// The name, with its module if one was given.
        name: String,
        /// What might have been meant.
        hint: String,
        /// All there are, by module.
        known: String,
    },
    /// Several modules have it.
    #[error("parameter `{name}` is one of several modules: write {}", choices.join(" or "))]
    Ambiguous {
        /// Its name.
        name: String,
        /// The name with each module.
        choices: Vec<String>,
    },
}

/// The name that the kernel has for a module: `-` and `_` are the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name in a path such as `kernel/arch/x86/kvm/kvm-amd.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|end| file.strip_suffix(end)?.strip_suffix(".ko"))?;
    Some(canonical(stem))
}

impl Modules {
    /// Looks through the directory of a kernel's modules, without reading them.
    ///
    /// # Errors
    /// It cannot be listed.
    pub fn open(kernel: &Kernel) -> Result<Modules, ModuleError> {
        let (dir, release) = (kernel.modules.clone(), kernel.release.clone());
        let read = |path: &Path| {
            let (path, release) = (path.to_owned(), release.clone());
            move |source| ModuleError::Read { path, release, source }
        };
        let mut files = BTreeMap::new();
        let mut todo = vec![dir.clone()];
        while let Some(below) = todo.pop() {
            for entry in fs::read_dir(&below).map_err(read(&below))? {
                let entry = entry.map_err(read(&below))?;
                let path = entry.path();
                // Links such as `build` lead to the kernel's sources; a linked module is taken.
                if entry.file_type().map_err(read(&path))?.is_dir() {
                    todo.push(path);
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        let optional = |name: &str| match fs::read(dir.join(name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(read(&dir.join(name))),
        };
        let list = optional("modules.builtin")?;
        let names =
            String::from_utf8_lossy(&list).lines().filter_map(|l| name_of(l.as_ref())).collect();
        let builtin = builtin(names, &optional("modules.builtin.modinfo")?);
        Ok(Modules { dir, release, files, builtin })
    }

    /// The modules of these names with all that they need, each after what it needs; `-` and `_`
    /// are the same. (Soft dependencies are not followed: no module of KVM or of a device that the
    /// hosts have has one.)
    ///
    /// # Errors
    /// One is missing, cannot be read, is damaged, or is for another kernel.
    pub fn closure<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<Module>, ModuleError> {
        let (mut seen, mut found) = (BTreeSet::new(), Vec::new());
        for name in names {
            self.visit(&canonical(name.as_ref()), None, &mut seen, &mut found)?;
        }
        Ok(found)
    }

    fn visit(
        &self,
        name: &str,
        needed_by: Option<&str>,
        seen: &mut BTreeSet<String>,
        found: &mut Vec<Module>,
    ) -> Result<(), ModuleError> {
        if !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let module = self.read(name, needed_by)?;
        for needed in &module.depends {
            self.visit(needed, Some(name), seen, found)?;
        }
        found.push(module);
        Ok(())
    }

    /// Reads one module, which another one needs or which was asked for.
    fn read(&self, name: &str, needed_by: Option<&str>) -> Result<Module, ModuleError> {
        let Some(path) = self.files.get(name) else {
            return match self.builtin.get(name) {
                Some(parameters) => Ok(Module {
                    name: name.to_owned(),
                    depends: Vec::new(),
                    parameters: parameters.clone(),
                    elf: None,
                }),
                None => Err(self.missing(name, needed_by)),
            };
        };
        let damaged = |why| ModuleError::Damaged { path: path.clone(), why };
        let release = self.release.clone();
        let bytes = fs::read(path).map_err(|source| ModuleError::Read {
            path: path.clone(),
            release,
            source,
        })?;
        let elf = match bytes.starts_with(header::ELFMAG) {
            true => bytes,
            false => compression::decompress(&bytes, MAX_MODULE).map_err(|e| match e {
                CompressionError::Unknown { what } => damaged(format!("it is no ELF, and {what}")),
                e => damaged(e.to_string()),
            })?,
        };
        let info = modinfo(&elf).map_err(damaged)?;
        let values = |key| info.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str());
        let Some(vermagic) = values("vermagic").next() else {
            return Err(damaged("its .modinfo has no vermagic, so no kernel takes it".to_owned()));
        };
        let found = vermagic.split(' ').next().unwrap_or_default();
        if found != self.release {
            let (found, release) = (found.to_owned(), self.release.clone());
            return Err(ModuleError::OtherKernel { path: path.clone(), found, release });
        }
        let depends = values("depends").flat_map(|list| list.split(','));
        let depends = depends.filter(|name| !name.is_empty()).map(canonical).collect();
        let parameters = parameters(values("parmtype"));
        Ok(Module { name: name.to_owned(), depends, parameters, elf: Some(lean::lean(elf)) })
    }

    fn missing(&self, name: &str, needed_by: Option<&str>) -> ModuleError {
        let known = self.files.keys().chain(self.builtin.keys()).map(String::as_str);
        let hint = match needed_by {
            Some(other) => format!("; `{other}` needs it"),
            None => nearest::hint(name, known),
        };
        ModuleError::Missing {
            name: name.to_owned(),
            release: self.release.clone(),
            hint,
            count: self.files.len(),
            dir: self.dir.clone(),
        }
    }
}

/// What is built in, from its names and the text of `modules.builtin.modinfo`: `MODULE.KEY=VALUE`,
/// each ended by a zero.
fn builtin(names: Vec<String>, info: &[u8]) -> BTreeMap<String, Vec<String>> {
    let mut types: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in entries(info) {
        if let Some((module, "parmtype")) = key.rsplit_once('.') {
            types.entry(module.to_owned()).or_default().push(value);
        }
    }
    let with_parameters = |name: String| {
        let parameters = types.get(&name).map_or_else(Vec::new, parameters);
        (name, parameters)
    };
    names.into_iter().map(with_parameters).collect()
}

/// The names in `parmtype` entries, `NAME:TYPE`. Every parameter has one; few have a `parm`.
fn parameters<S: AsRef<str>>(types: impl IntoIterator<Item = S>) -> Vec<String> {
    let name = |text: S| text.as_ref().split(':').next().unwrap_or_default().to_owned();
    let names: BTreeSet<String> = types.into_iter().map(name).collect();
    names.into_iter().collect()
}

/// The `KEY=VALUE` entries of a `.modinfo` section.
fn entries(section: &[u8]) -> Vec<(String, String)> {
    let texts = section.split(|b| *b == 0).map(String::from_utf8_lossy);
    texts
        .filter_map(|text| text.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect()
}

/// The entries of a module's `.modinfo`, or what is wrong with the ELF.
fn modinfo(elf: &[u8]) -> Result<Vec<(String, String)>, String> {
    if !elf.starts_with(header::ELFMAG) {
        return Err("it is no ELF".to_owned());
    }
    let head = header64::Header::parse(elf).map_err(|e| format!("its ELF header: {e}"))?;
    if (head.e_type, head.e_machine) != (header::ET_REL, header::EM_X86_64) {
        return Err("it is no relocatable ELF for x86-64".to_owned());
    }
    let section = section(elf, ".modinfo")?;
    let (_, section) = section.ok_or("it has no section .modinfo, so it is no kernel module")?;
    let bytes = contents(elf, &section).ok_or_else(|| cut("section .modinfo"))?;
    Ok(entries(bytes))
}

/// What is wrong with an ELF of which a part is missing.
fn cut(what: &str) -> String {
    format!("its {what} is not in the file, which was cut off")
}

/// What a section of an ELF holds.
fn contents<'a>(elf: &'a [u8], section: &SectionHeader) -> Option<&'a [u8]> {
    let start = usize::try_from(section.sh_offset).ok()?;
    elf.get(start..start.checked_add(usize::try_from(section.sh_size).ok()?)?)
}

/// The section of this name in an ELF of 64 bits, and where in the file its header is; or what is
/// wrong with the ELF.
fn section(elf: &[u8], name: &str) -> Result<Option<(usize, SectionHeader)>, String> {
    let head = header64::Header::parse(elf).map_err(|e| format!("its ELF header: {e}"))?;
    let ctx = Ctx::new(Container::Big, Endian::Little);
    let sections = usize::try_from(head.e_shoff)
        .ok()
        .and_then(|at| Some((at, SectionHeader::parse(elf, at, head.e_shnum.into(), ctx).ok()?)));
    let (start, sections) = sections.ok_or_else(|| cut("table of sections"))?;
    let names = sections.get(usize::from(head.e_shstrndx)).and_then(|s| contents(elf, s));
    let names = names.ok_or_else(|| cut("table of section names"))?;
    let is_it = |section: &SectionHeader| {
        let rest = names.get(section.sh_name..).and_then(|n| n.strip_prefix(name.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    let at = sections.iter().position(is_it);
    Ok(at.map(|at| (start + at * SectionHeader::size(ctx), sections[at].clone())))
}

/// Which of `modules` the parameter in `text` (`ept=0`, or `kvm_intel.ept=0`) is one of: an entry of
/// [`Params`](crate::plan::Params), the module's and the parameter's name and the value. The kernel
/// itself only logs a parameter that it does not know.
///
/// # Errors
/// No such parameter (the known ones are named), several modules have it, or it is not written so.
pub fn assign(
    modules: &[Module],
    text: &str,
) -> Result<((String, String), String), ParameterError> {
    let syntax = || ParameterError::Syntax { text: text.to_owned() };
    let (given, value) = text.split_once('=').ok_or_else(syntax)?;
    // A value with a space would be two parameters, one with a quote would swallow the next.
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == '"';
    let (module, name) = match given.split_once('.') {
        Some((module, name)) => (Some(canonical(module)), name),
        None => (None, given),
    };
    if name.is_empty() || text.contains(odd) {
        return Err(syntax());
    }
    let same = |parameter: &&String| canonical(parameter) == canonical(name);
    let owners: Vec<(&Module, &String)> = modules
        .iter()
        .filter(|m| module.as_ref().is_none_or(|module| *module == m.name))
        .filter_map(|m| Some((m, m.parameters.iter().find(same)?)))
        .collect();
    match owners[..] {
        [(owner, name)] => Ok(((owner.name.clone(), name.clone()), value.to_owned())),
        [] => {
            let all = modules.iter().flat_map(|m| m.parameters.iter().map(String::as_str));
            let known = modules.iter().filter(|m| !m.parameters.is_empty());
            let known: Vec<String> =
                known.map(|m| format!("of {}: {}", m.name, m.parameters.join(", "))).collect();
            Err(ParameterError::Unknown {
                name: given.to_owned(),
                hint: nearest::hint(name, all),
                known: if known.is_empty() { "none".to_owned() } else { known.join("; ") },
            })
        }
        _ => {
            let choice = |(m, name): &(&Module, &String)| format!("`{}.{name}={value}`", m.name);
            let choices = owners.iter().map(choice).collect();
            Err(ParameterError::Ambiguous { name: name.to_owned(), choices })
        }
    }
}

#[cfg(test)]
#[path = "modules/tests.rs"]
pub(crate) mod tests;
