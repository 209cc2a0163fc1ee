//! The AMD machine: QEMU's TCG, an emulator that has SVM.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::boots;
use crate::device::Devices;
use crate::pieces::Program;

/// What boots.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// An empty directory of its own.
    pub dir: &'a Path,
    /// The kernel: a bzImage, or an ELF with a PVH entry.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initrd: &'a Path,
    /// A second archive, which tells the agent what to do.
    pub job: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// RAM in MiB.
    pub memory: u32,
    /// Processors.
    pub cpus: u16,
    /// Whether time is counted in instructions, so that two runs are equal; with one processor only.
    pub deterministic: bool,
    /// The devices that the machine has besides.
    pub devices: &'a Devices,
    /// Whether the first serial port is this process's standard input and output, and the debug
    /// console a file, instead of the debug console being the standard output.
    pub interactive: bool,
}

/// Why a machine cannot be put together.
#[derive(Debug, Error)]
#[error("cannot write {path}: {error}; is the disk full?")]
pub struct QemuError {
    /// The file.
    pub path: PathBuf,
    /// The error.
    pub error: io::Error,
}

/// The processor: all that TCG has, but for what makes Linux clear and copy memory byte by byte. TCG
/// does one turn of a REP at a time, so that words of eight bytes take an eighth: a tenth of all that
/// a small guest costs.
const CPU: &str = "max,-erms,-fsrm";

/// Puts the machine together and returns the command that starts it. The debug console is its
/// standard output.
///
/// # Errors
///
/// A file cannot be written.
pub fn command(qemu: &Program, boot: &Boot<'_>) -> Result<Command, QemuError> {
    // QEMU takes one file.
    let initrd = boot.dir.join("initrd.img");
    let join = || -> io::Result<()> {
        fs::copy(boot.initrd, &initrd)?;
        let mut file = File::options().append(true).open(&initrd)?;
        io::Write::write_all(&mut file, boot.job)
    };
    join().map_err(cannot_write(&initrd))?;
    let mut command = qemu.command();
    for dir in &qemu.data {
        command.arg("-L").arg(dir);
    }
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-m", &boot.memory.to_string(), "-smp", &boot.cpus.to_string()]);
    if boot.deterministic {
        command.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]);
        // What would differ from run to run: the host's random numbers, its clock, QEMU's own seed.
        command.args(["-cpu", &format!("{CPU},-rdrand,-rdseed"), "-seed", "1"]);
        command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-cpu", CPU]);
    }
    command.arg("-kernel").arg(boot.kernel).arg("-initrd").arg(&initrd);
    command.args(["-append", boot.command_line]);
    command.args(boot.devices.options(boot.dir).map_err(cannot_write(boot.dir))?);
    if boot.interactive {
        command.args(["-chardev", "stdio,id=console,signal=off"]);
        command.arg("-chardev").arg(file("results", &boot.dir.join("results")));
    } else {
        command.arg("-chardev").arg(file("console", &boot.dir.join(boots::CONSOLE)));
        command.args(["-chardev", "stdio,id=results,signal=off"]);
    }
    command.args(["-serial", "chardev:console"]);
    command.args(["-device", "isa-debugcon,iobase=0xe9,chardev=results"]);
    Ok(command)
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> QemuError + use<> {
    let path = path.to_owned();
    move |error| QemuError { path, error }
}

/// A character device that is a file.
fn file(id: &str, at: &Path) -> String {
    format!("file,id={id},path={}", path(at))
}

/// A path within an option, where a comma is written twice.
pub(crate) fn path(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Program {
        Program {
            path: "/q/qemu".into(),
            loader: None,
            env: vec![],
            data: vec!["/q/share".into()],
            version: "10.0".into(),
            origin: "a test".into(),
        }
    }

    static NONE: Devices = Devices::NONE;

    fn boot(dir: &Path) -> Boot<'_> {
        Boot {
            dir,
            kernel: Path::new("/q/vmlinuz"),
            initrd: Path::new("/no/such/initrd"),
            job: b"job",
            command_line: "quiet",
            memory: 512,
            cpus: 2,
            deterministic: false,
            devices: &NONE,
            interactive: false,
        }
    }

    fn words(command: &Command) -> Vec<String> {
        command.get_args().map(|a| a.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_job_stands_behind_the_image() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::write(&image, "image-").expect("a file");
        let boot = Boot { initrd: &image, ..boot(dir.path()) };
        let words = words(&command(&program(), &boot).expect("a command"));
        let at = words.iter().position(|w| w == "-initrd").expect("an initrd");
        assert_eq!(fs::read(&words[at + 1]).expect("a file"), b"image-job");
        assert!(words.join(" ").contains("-smp 2 -accel tcg,thread=multi"), "{words:?}");
        assert_eq!(words[..2], ["-L", "/q/share"]);
    }

    #[test]
    fn an_image_that_is_not_there_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = command(&program(), &boot(dir.path())).unwrap_err().to_string();
        assert!(error.contains("initrd.img"), "{error}");
    }

    #[test]
    fn a_deterministic_machine_has_no_source_of_chance() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = dir.path().join("image");
        fs::write(&image, "").expect("a file");
        let boot = Boot { initrd: &image, deterministic: true, cpus: 1, ..boot(dir.path()) };
        let line = words(&command(&program(), &boot).expect("a command")).join(" ");
        for part in ["thread=single", "shift=0,sleep=off", "-rdrand", "-seed 1", "clock=vm"] {
            assert!(line.contains(part), "{part} in {line}");
        }
    }

    #[test]
    fn a_comma_in_a_path_is_written_twice() {
        assert_eq!(file("x", Path::new("/a,b")), "file,id=x,path=/a,,b");
    }
}
