//! What the user points to, and what the machine has on PATH.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::kernel;
use crate::pieces::{BochsFirmware, Kernel, Program};

use super::FetchError;
use super::piece::Piece;
use super::tool::{self, Tools};

/// How long a program may take to tell its version, on a busy machine.
const TELL_LIMIT: Duration = Duration::from_secs(60);

/// The oldest QEMU that is known to work: Debian 12's.
pub(super) const QEMU: [u32; 2] = [7, 2];

/// The oldest Bochs that is known to work: Debian 12's.
pub(super) const BOCHS: [u32; 2] = [2, 7];

/// The Bochs that brings APICv and posted interrupts.
pub(super) const BOCHS_APICV: [u32; 2] = [3, 0];

/// The CPU model of the Bochs machine.
const BOCHS_MODEL: &str = "corei7_skylake_x";

/// What the user has and wants to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// `--qemu` or `EXITLAB_QEMU`: qemu-system-x86_64.
    pub qemu: Option<PathBuf>,
    /// `--bochs` or `EXITLAB_BOCHS`: bochs.
    pub bochs: Option<PathBuf>,
    /// `--host-kernel` or `EXITLAB_HOST_KERNEL`: a bzImage, or a directory with `boot` and
    /// `lib/modules`.
    pub kernel: Option<PathBuf>,
}

impl Own {
    /// What no flag gave is taken from the environment, in which `variable` looks up a name. An
    /// empty variable is as good as none.
    pub fn or_environment(self, variable: impl Fn(&str) -> Option<OsString>) -> Own {
        let or = |flag: Option<PathBuf>, name: &str| {
            let value = || variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
            flag.or_else(value)
        };
        Own {
            qemu: or(self.qemu, "EXITLAB_QEMU"),
            bochs: or(self.bochs, "EXITLAB_BOCHS"),
            kernel: or(self.kernel, "EXITLAB_HOST_KERNEL"),
        }
    }
}

/// What a program tells of its version, or why it cannot be used.
///
/// # Errors
///
/// The user interrupted it.
pub(super) fn tell(
    piece: Piece,
    program: &Program,
    cancel: &AtomicBool,
) -> Result<Result<String, String>, FetchError> {
    // What is asked, what stands before the version in the answer; what is asked next, and a line
    // that must begin so.
    let (ask, before, can, line): (&[&str], _, &[&str], _) = match piece {
        Piece::Qemu => (&["--version"], "QEMU emulator version ", &["-accel", "help"], "tcg"),
        Piece::Llvm => (&["--version"], "LLVM version ", &["--help"], "Usage: llvm-cov"),
        _ => (&["--help"], "Bochs x86 Emulator ", &["--help", "cpu"], BOCHS_MODEL),
    };
    let run = |args: &[&str]| {
        let mut command = program.command();
        command.args(args).env("LC_ALL", "C.UTF-8");
        // Bochs tells its version on standard error.
        match tool::run_both(&mut command, TELL_LIMIT, cancel, &program.path) {
            Ok((out, err)) => Ok(Ok(out + "\n" + &err)),
            Err(FetchError::Cancelled) => Err(FetchError::Cancelled),
            Err(error) => Ok(Err(error.to_string())),
        }
    };
    let text = match run(ask)? {
        Ok(text) => text,
        Err(why) => return Ok(Err(why)),
    };
    let Some(version) = version_after(&text, before) else {
        return Ok(Err(format!("`{}` does not tell a version of {}", ask[0], piece.name())));
    };
    Ok(match run(can)? {
        Ok(text) if text.lines().any(|l| l.trim_start().starts_with(line)) => Ok(version),
        Ok(_) => Err(format!("`{}` does not name {line}", can.join(" "))),
        Err(why) => Err(why),
    })
}

/// The word after `before`: a version, which begins with a digit.
fn version_after(text: &str, before: &str) -> Option<String> {
    let (_, after) = text.split_once(before)?;
    let word = after.split_whitespace().next()?;
    word.starts_with(|c: char| c.is_ascii_digit()).then(|| word.to_owned())
}

/// Whether a version, `10.0.13`, is not older than `least`.
pub(super) fn is_at_least(version: &str, least: [u32; 2]) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    let mut next = || numbers.next().flatten().unwrap_or(0_u32);
    [next(), next()] >= least
}

/// A program of the machine's own.
pub(super) fn program(path: PathBuf, origin: String) -> Program {
    Program {
        path,
        loader: None,
        env: Vec::new(),
        data: Vec::new(),
        version: String::new(),
        origin,
    }
}

/// The file that a flag names: a path, or the name of a program on PATH.
pub(super) fn named(path: &Path, tools: &Tools) -> PathBuf {
    let bare = path.to_str().filter(|name| !name.contains('/') && !path.exists());
    bare.and_then(|name| tools.find(name))
        .unwrap_or_else(|| std::path::absolute(path).unwrap_or_else(|_| path.to_owned()))
}

/// The firmware that belongs to a Bochs of the machine's own: where BXSHARE says, beside it, or
/// where distributions put it.
pub(super) fn firmware(bochs: &Path, share: Option<OsString>) -> Option<BochsFirmware> {
    let prefix = bochs.parent().and_then(Path::parent).map(|prefix| prefix.join("share/bochs"));
    let usual = ["/usr/local/share/bochs", "/usr/share/bochs"].map(PathBuf::from);
    let dirs: Vec<_> = share.map(PathBuf::from).into_iter().chain(prefix).chain(usual).collect();
    let find = |names: &[&str], more: &[PathBuf]| {
        let files = dirs.iter().flat_map(|dir| names.iter().map(|name| dir.join(name)));
        files.chain(more.iter().cloned()).find(|file| file.is_file())
    };
    Some(BochsFirmware {
        bios: find(&["BIOS-bochs-latest"], &[])?,
        vga: find(
            &["VGABIOS-lgpl-latest", "VGABIOS-lgpl-latest.bin"],
            &["/usr/share/vgabios/vgabios.bin".into()],
        )?,
    })
}

/// The kernel that the user points to: a bzImage, or a directory that holds one in `boot` (or
/// itself) and its modules in `lib/modules`.
///
/// # Errors
///
/// There is no such thing; the text says what is wrong with which file.
pub(super) fn kernel_at(path: &Path) -> Result<Kernel, String> {
    let metadata = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let (image, release) = match metadata.is_dir() {
        false => (path.to_owned(), release(path)?),
        true => image_in(path)?,
    };
    let image = image.canonicalize().map_err(|e| format!("{}: {e}", image.display()))?;
    let parent = image.parent().unwrap_or(Path::new("/"));
    let mut dirs = Vec::new();
    if metadata.is_dir() {
        dirs.push(path.to_owned());
    }
    dirs.extend([parent, parent.parent().unwrap_or(parent), Path::new("/")].map(Path::to_owned));
    let places =
        dirs.iter().flat_map(|dir| ["lib/modules", "usr/lib/modules"].map(|m| dir.join(m)));
    let mut places: Vec<_> = places.map(|dir| dir.join(&release)).collect();
    // Some distributions keep the image beside the modules.
    places.insert(0, parent.to_owned());
    let is_it = |dir: &PathBuf| dir.ends_with(&release) && dir.join("kernel").is_dir();
    match places.iter().find(|dir| is_it(dir)) {
        Some(modules) => Ok(Kernel {
            modules: modules.canonicalize().unwrap_or_else(|_| modules.clone()),
            origin: format!("{} of the user's own", image.display()),
            image,
            release,
        }),
        None => Err(format!(
            "{} is the kernel {release}, and its modules are in none of {}. A kernel that you built \
             gets them by `make modules_install INSTALL_MOD_PATH=DIR`; put the bzImage into DIR/boot \
             and name DIR",
            image.display(),
            places[1..].iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// The one kernel image in a directory or its `boot`.
fn image_in(dir: &Path) -> Result<(PathBuf, String), String> {
    let (mut images, mut others) = (Vec::new(), Vec::new());
    for dir in [dir.join("boot"), dir.to_owned()] {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_image =
                name.to_str().is_some_and(|n| n.starts_with("vmlinuz") || n == "bzImage");
            match is_image.then(|| release(&entry.path())) {
                None => {}
                Some(Ok(release)) => images.push((entry.path(), release)),
                Some(Err(why)) => others.push(why),
            }
        }
    }
    images.sort();
    // vmlinuz is often a link to the newest vmlinuz-RELEASE.
    images.dedup_by(|a, b| a.1 == b.1);
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err(format!(
            "{} holds no bzImage that can be read (vmlinuz* or bzImage, in it or in its directory \
             boot){}{}",
            dir.display(),
            if others.is_empty() { "" } else { ": " },
            others.join("; ")
        )),
        _ => {
            let names: Vec<_> = images.iter().map(|(p, _)| p.display().to_string()).collect();
            Err(format!(
                "{} holds several kernels: name one of {}",
                dir.display(),
                names.join(", ")
            ))
        }
    }
}

/// The release of a bzImage.
fn release(image: &Path) -> Result<String, String> {
    let error = |e: std::io::Error| format!("{}: {e}", image.display());
    // The set-up code, which tells it, has at most 64 sectors and follows the boot sector.
    let mut start = Vec::new();
    let file = fs::File::open(image).map_err(error)?;
    file.take(65 * 512).read_to_end(&mut start).map_err(error)?;
    let release =
        kernel::release(&image.to_string_lossy(), &start).map_err(|error| error.to_string())?;
    // It names a directory.
    match release.starts_with('.') || release.contains('/') {
        false => Ok(release),
        true => Err(format!("{}: its release, {release}, is no name", image.display())),
    }
}

/// Whether a file is an ELF program that needs no loader.
pub(super) fn is_static(file: &Path) -> bool {
    let bytes = fs::read(file).unwrap_or_default();
    goblin::elf::Elf::parse(&bytes).is_ok_and(|elf| elf.interpreter.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for version in ["7.2", "7.2.22", "7.10", "10.0.13", "8", "7.2-rc1"] {
            assert!(is_at_least(version, QEMU), "{version}");
        }
        for version in ["7.1.99", "6", "", "x", "0.9", "99999999999999999999"] {
            assert!(!is_at_least(version, QEMU), "{version}");
        }
        let text = "  Bochs x86 Emulator 3.0\n";
        assert_eq!(version_after(text, "Bochs x86 Emulator "), Some("3.0".to_owned()));
        assert_eq!(version_after("Bochs x86 Emulator devel", "Bochs x86 Emulator "), None);
        assert_eq!(version_after("Bochs x86 Emulator ", "Bochs x86 Emulator "), None);
    }
}
