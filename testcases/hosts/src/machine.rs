//! An emulated host that is ready to boot: everything it is made of, and what it shall look like.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use sha2::{Digest, Sha256};
use tempfile::TempDir;
use testcases::facts_table::FactsTable;
use testcases::job::{self, Job, Task};
use testcases::wire::{Envelope, Message, PROTOCOL};
use thiserror::Error;
use vmm::host::tsc;

use crate::bochs::{self, BochsError, KernelImage};
use crate::boots;
use crate::cpio::Archive;
use crate::device::Devices;
use crate::kernel::{self, KernelError};
use crate::modules::Module;
use crate::name::Name;
use crate::pieces::{BochsFirmware, Kernel, Program};
use crate::plan::Params;
use crate::qemu::{self, QemuError};
use crate::session::{self, Ending, Patience, Session};
use crate::whole;

/// What executes the machine's instructions, with what it takes.
#[derive(Clone, Debug)]
pub enum Emulator {
    /// QEMU.
    Qemu(Program),
    /// Bochs with its firmware.
    Bochs(Program, BochsFirmware),
}

impl Emulator {
    /// The program.
    pub fn program(&self) -> &Program {
        match self {
            Emulator::Qemu(program) | Emulator::Bochs(program, _) => program,
        }
    }

    /// Its name, for people.
    pub fn name(&self) -> &'static str {
        match self {
            Emulator::Qemu(_) => "QEMU",
            Emulator::Bochs(..) => "Bochs",
        }
    }

    /// The agent's word for it on the kernel's command line.
    fn word(&self) -> &'static str {
        match self {
            Emulator::Qemu(_) => "tcg",
            Emulator::Bochs(..) => "bochs",
        }
    }
}

/// An emulated host that is ready to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Which one.
    pub name: Name,
    /// What executes its instructions.
    pub emulator: Emulator,
    /// Its kernel.
    pub kernel: Kernel,
    /// Its initramfs.
    pub image: PathBuf,
    /// The hash of the initramfs.
    pub digest: String,
    /// The modules in the initramfs, in the order they are loaded.
    pub modules: Vec<Module>,
    /// The directory for what is kept between runs, and for what a boot needs.
    pub cache: PathBuf,
    /// RAM in MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u16,
    /// How many vCPUs run side by side in it.
    pub jobs: usize,
    /// Whether two runs are to be equal: QEMU only, with one processor.
    pub deterministic: bool,
    /// The devices that it has besides: QEMU only.
    pub devices: Devices,
    /// More words for the kernel's command line.
    pub command_line: Vec<String>,
    /// How long it may be silent.
    pub patience: Patience,
    /// Variables of the environment of what runs there.
    pub environment: BTreeMap<String, String>,
}

/// What a boot is for, with what it takes besides the image.
#[derive(Clone, Debug)]
pub struct Errand {
    /// What to do.
    pub task: Task,
    /// Files beside the job: where the host has each, and where it is here.
    pub files: Vec<(String, PathBuf)>,
}

impl From<Task> for Errand {
    fn from(task: Task) -> Errand {
        Errand { task, files: Vec::new() }
    }
}

/// Why a host did not do what it was to.
#[derive(Debug, Error)]
pub enum HostError {
    /// A file or directory cannot be used.
    #[error("cannot {what} {path}: {error}; is the disk full, or somebody else's?")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// The kernel cannot be used.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Bochs cannot be set up.
    #[error(transparent)]
    Bochs(#[from] BochsError),
    /// QEMU cannot be set up.
    #[error(transparent)]
    Qemu(#[from] QemuError),
    /// The job cannot be written down.
    #[error("the job for host {0} cannot be written down: {1}")]
    Job(Name, String),
    /// It did not tell what it offers.
    #[error("host {name} {what}\n{story}\n`cargo xtask host shell {name}` shows it")]
    Failed {
        /// The host.
        name: Name,
        /// What happened.
        what: String,
        /// Its console, and what its emulator says.
        story: String,
    },
    /// The user wants to stop.
    #[error("stopped before host {0} was done")]
    Cancelled(Name),
}

/// A boot that is put together: the command that starts it, and its directory.
pub struct Prepared {
    /// The command.
    pub command: Command,
    /// Its directory, which goes away with this value.
    pub dir: TempDir,
}

impl Machine {
    /// The kernel's command line, but for what differs from boot to boot.
    fn command_line(&self) -> String {
        let mut words = vec![
            // What a kernel says is wanted only when it says that something is wrong.
            "console=ttyS0".to_string(),
            "quiet".into(),
            // A kernel that panics has no more to say.
            "panic=-1".into(),
            // The same kernel at the same place in each boot.
            "nokaslr".into(),
            // An emulator leaks nothing through its caches; what guards against it only costs.
            "mitigations=off".into(),
            "nopti".into(),
            "audit=0".into(),
            "apparmor=0".into(),
            "selinux=0".into(),
            // Nothing keeps time that is better than the TSC, and on a busy machine what compares
            // it with others would distrust it.
            "tsc=reliable".into(),
            "no_timer_check".into(),
            "cryptomgr.notests".into(),
            // A VM begins with pages that are zeroed before they are written: a tenth of its instructions.
            "init_on_alloc=0".into(),
            "random.trust_cpu=on".into(),
            format!("exitlab.processor={}", self.emulator.word()),
        ];
        words.extend(self.devices.command_line().map(str::to_owned));
        words.extend(self.command_line.iter().cloned());
        words.join(" ")
    }

    /// How fast the machine's TSC counts, in kHz. A kernel cannot find out on a busy machine, and a KVM
    /// that is wrong about it sets timers wrong.
    fn tsc_khz(&self) -> u64 {
        match self.emulator {
            // Its CPUID says 3.5 GHz, and its TSC counts instructions.
            Emulator::Bochs(..) => bochs::INSTRUCTIONS_PER_SECOND / 1000,
            // Each instruction is a nanosecond.
            Emulator::Qemu(_) if self.deterministic => 1_000_000,
            // TCG reads this machine's.
            Emulator::Qemu(_) => tsc::frequency_khz(),
        }
    }

    /// Puts a boot together that does the errand.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written, or the kernel is damaged.
    pub fn prepare(
        &self,
        errand: impl Into<Errand>,
        params: &Params,
        interactive: Option<&Path>,
    ) -> Result<Prepared, HostError> {
        let Errand { task, files } = errand.into();
        let dir = boots::directory(&self.cache, self.name)?;
        let params = self.devices.params().and(params);
        let modules = self.modules.iter().filter(|m| m.elf.is_some());
        let modules = modules.map(|m| (m.name.clone(), params.of(&m.name))).collect();
        let job = serde_json::to_vec(&Job { modules, environment: self.environment.clone(), task })
            .map_err(|e| HostError::Job(self.name, e.to_string()))?;
        let mut archive = Archive::default();
        let mut add = |name: &str, bytes: Vec<u8>| {
            let added = archive.file(name.trim_start_matches('/'), 0o644, bytes);
            added.map_err(|e| HostError::Job(self.name, e.to_string()))
        };
        add(job::PATH, job)?;
        for (name, path) in files {
            add(&name, read(&path)?)?;
        }
        let job = archive.to_bytes();
        let command_line = format!("{} tsc_early_khz={}", self.command_line(), self.tsc_khz());
        let command = match &self.emulator {
            Emulator::Qemu(program) => qemu::command(
                program,
                &qemu::Boot {
                    dir: dir.path(),
                    kernel: &match self.vmlinux() {
                        // It decompresses itself, in the machine's time: a third of its boot.
                        Err(HostError::Kernel(_)) => self.kernel.image.clone(),
                        vmlinux => vmlinux?,
                    },
                    initrd: &self.image,
                    job: &job,
                    command_line: &command_line,
                    memory: self.memory,
                    cpus: self.cpus,
                    deterministic: self.deterministic,
                    devices: &self.devices,
                    interactive: interactive.is_some(),
                },
            )?,
            Emulator::Bochs(program, firmware) => {
                let kernel = read(&self.vmlinux()?)?;
                let name = self.kernel.image.display().to_string();
                let flat = kernel::flat(&name, &kernel)?;
                let initrd = read(&self.image)?;
                let kernel = KernelImage {
                    address: flat.address,
                    bytes: &flat.bytes,
                    entry: flat.pvh_entry,
                };
                bochs::command(
                    program,
                    firmware,
                    &bochs::Boot {
                        dir: dir.path(),
                        kernel,
                        initrd: &initrd,
                        job: &job,
                        command_line: &command_line,
                        memory: self.memory,
                        console: interactive,
                    },
                )?
            }
        };
        Ok(Prepared { command, dir })
    }

    /// The uncompressed kernel, kept between runs: one that can be entered by PVH.
    fn vmlinux(&self) -> Result<PathBuf, HostError> {
        let (name, bytes) = (self.kernel.image.display().to_string(), self.bzimage()?);
        let kept = self.cache.join(format!("vmlinux-{}", hash(&[&bytes])));
        if !kept.exists() {
            let vmlinux = kernel::vmlinux(&name, &bytes)?;
            kernel::flat(&name, &vmlinux)?;
            write_whole(&kept, &vmlinux)?;
        }
        Ok(kept)
    }

    fn bzimage(&self) -> Result<Vec<u8>, HostError> {
        read(&self.kernel.image)
    }

    /// Boots it for the errand, and runs it to its end. What a boot that did not end well wrote stays in
    /// its directory, which the session's story names.
    ///
    /// # Errors
    ///
    /// It could not be put together; what becomes of it after that is the session's.
    pub fn boot(
        &self,
        errand: impl Into<Errand>,
        params: &Params,
        cancel: &[&AtomicBool],
        each: &mut dyn FnMut(Envelope) -> ControlFlow<String>,
    ) -> Result<Session, HostError> {
        let mut prepared = self.prepare(errand, params, None)?;
        let (console, log) =
            (prepared.dir.path().join(boots::CONSOLE), prepared.dir.path().join(boots::LOG));
        let command = &mut prepared.command;
        let mut session =
            session::run(command, &console, &log, self.patience, cancel, &mut |envelope| {
                if let Message::Hello(hello) = &envelope.message
                    && hello.protocol != PROTOCOL
                {
                    return ControlFlow::Break(format!(
                        "its agent speaks protocol {}, not {PROTOCOL}: `cargo xtask host setup` \
                         makes a new image",
                        hello.protocol
                    ));
                }
                each(envelope)
            });
        if !matches!(session.ending, Ending::Done(_) | Ending::Cancelled) {
            let kept = prepared.dir.keep();
            session.story.push(format!("its files are kept in {}", kept.display()));
        }
        Ok(session)
    }

    /// What the host offers when it is started with these parameters: asked once, and kept as long
    /// as nothing that it is made of changes.
    ///
    /// # Errors
    ///
    /// It cannot be booted, or does not tell.
    pub fn facts(&self, params: &Params, cancel: &[&AtomicBool]) -> Result<FactsTable, HostError> {
        if let Some(facts) = self.known_facts(params)? {
            return Ok(facts);
        }
        let mut told = None;
        let session = self.boot(Task::Facts, params, cancel, &mut |envelope| {
            if let Message::Facts(facts) = envelope.message {
                told = Some(*facts);
            }
            ControlFlow::Continue(())
        })?;
        let facts = match (session.ending.clone(), told) {
            (Ending::Cancelled, _) => return Err(HostError::Cancelled(self.name)),
            (Ending::Done(_), Some(facts)) => facts,
            (ending, _) => return Err(self.failed(&ending, &session)),
        };
        if let Err(why) = &facts.kvm {
            let what = format!("has no usable KVM: {why}");
            return Err(HostError::Failed {
                name: self.name,
                what,
                story: session.story.join("\n"),
            });
        }
        self.keep_facts(params, &facts)?;
        Ok(facts)
    }

    /// What the host told when it was asked before.
    ///
    /// # Errors
    ///
    /// The kernel cannot be read.
    pub fn known_facts(&self, params: &Params) -> Result<Option<FactsTable>, HostError> {
        let text = fs::read(self.facts_path(params)?).ok();
        Ok(text.and_then(|text| serde_json::from_slice(&text).ok()))
    }

    /// Keeps what the host told of itself.
    fn keep_facts(&self, params: &Params, facts: &FactsTable) -> Result<(), HostError> {
        let text = serde_json::to_vec_pretty(facts)
            .map_err(|e| HostError::Job(self.name, e.to_string()))?;
        write_whole(&self.facts_path(params)?, &text)
    }

    fn facts_path(&self, params: &Params) -> Result<PathBuf, HostError> {
        let program = self.emulator.program();
        let key = hash(&[
            &self.bzimage()?,
            self.digest.as_bytes(),
            program.path.as_os_str().as_encoded_bytes(),
            program.version.as_bytes(),
            self.command_line().as_bytes(),
            format!("{} {} {}", self.memory, self.cpus, self.deterministic).as_bytes(),
            self.devices.to_string().as_bytes(),
            params.show().as_bytes(),
        ]);
        Ok(self.cache.join("facts").join(format!("{}-{key}.json", self.name)))
    }

    /// The error for a session that did not do what it was to.
    pub fn failed(&self, ending: &Ending, session: &Session) -> HostError {
        let what = match ending {
            Ending::Cancelled => return HostError::Cancelled(self.name),
            ending => ending.to_string(),
        };
        HostError::Failed { name: self.name, what, story: session.story.join("\n") }
    }
}

/// The SHA-256 of parts, each told from the next, in hexadecimal digits; the first half of it.
fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Vec<u8>, HostError> {
    fs::read(path).map_err(|error| HostError::File { what: "read", path: path.into(), error })
}

/// Writes a file so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), HostError> {
    whole::write(path, bytes).map_err(|error| HostError::File {
        what: "write",
        path: path.into(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_a_file_that_cannot_be_written_is_named() {
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a");
        write_whole(&path, b"x").expect("a file");
        let error = write_whole(&path.join("c"), b"z").unwrap_err().to_string();
        assert!(error.contains("a/c"), "{error}");
    }
}
