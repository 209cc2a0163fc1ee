//! The Intel machine: Bochs, an emulator that has VMX.
//!
//! A boot has a directory with everything in it: the two memory images and the boot ROM that start the
//! kernel ([`memory`], [`rom`]), the configuration, the logs. The kernel is the vmlinux, not the
//! bzImage: unpacking it in the emulated machine would take longer than the rest of the boot.

pub mod memory;
pub mod rom;

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use self::memory::{Layout, LayoutError, Piece};
use self::rom::RomError;
use crate::boots;
use crate::pieces::{BochsFirmware, Program};

/// The CPU model: the newest that boots. It has EPT, unrestricted guests, VPID, PML, TSC scaling and
/// VMCS shadowing.
const MODEL: &str = "corei7_skylake_x";

/// How many instructions make up one second of the machine's time. What waits for time waits for
/// instructions, so fewer make waiting cheap; but a timer must not go off faster than its interrupts
/// are handled.
pub const INSTRUCTIONS_PER_SECOND: u64 = 20_000_000;

/// The version from which on the size of a block of memory can be chosen.
const BLOCK_SIZE_SINCE: (u32, u32) = (3, 0);

/// The block sizes: chosen, and what older versions have. Bytes.
const BLOCKS: (u64, u64) = (8 << 20, 128 << 10);

/// A kernel as it lies in memory.
#[derive(Clone, Copy, Debug)]
pub struct KernelImage<'a> {
    /// The physical address.
    pub address: u64,
    /// The bytes from there on.
    pub bytes: &'a [u8],
    /// The PVH entry point. Physical address.
    pub entry: u32,
}

/// What boots.
#[derive(Clone, Debug)]
pub struct Boot<'a> {
    /// An empty directory of its own.
    pub dir: &'a Path,
    /// The kernel.
    pub kernel: KernelImage<'a>,
    /// The initramfs.
    pub initrd: &'a [u8],
    /// A second archive, which tells the agent what to do.
    pub job: &'a [u8],
    /// The kernel's command line.
    pub command_line: &'a str,
    /// RAM in MiB.
    pub memory: u32,
    /// Whether standard input and output of the machine's first serial port are this device (a
    /// pseudo-terminal), instead of the console log.
    pub console: Option<&'a Path>,
}

/// Why a machine cannot be put together.
#[derive(Debug, Error)]
pub enum BochsError {
    /// Something has no room.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The ROM cannot be made.
    #[error(transparent)]
    Rom(#[from] RomError),
    /// A file cannot be written.
    #[error("cannot write {0}: {1}; is the disk full?")]
    Write(PathBuf, io::Error),
    /// A path that Bochs's configuration cannot hold.
    #[error(
        "Bochs's configuration cannot hold the path {0:?}: it has a comma, a quote or a newline"
    )]
    Path(PathBuf),
}

/// The names of the files in a boot's directory.
const MEMORY: &str = "memory.img";
const JOB: &str = "job.img";
const ROM: &str = "boot.rom";
const CONFIGURATION: &str = "bochsrc";
const DEBUGGER: &str = "debugger";

/// Puts the machine together and returns the command that starts it. The debug console is its
/// standard output.
///
/// # Errors
///
/// Something has no room, or a file cannot be written.
pub fn command(
    bochs: &Program,
    firmware: &BochsFirmware,
    boot: &Boot<'_>,
) -> Result<Command, BochsError> {
    let chosen = version(&bochs.version) >= BLOCK_SIZE_SINCE;
    let block = if chosen { BLOCKS.0 } else { BLOCKS.1 };
    let memory = u64::from(boot.memory) << 20;
    let (layout, pieces) = Layout::new(
        block,
        memory.min(rom::LOW_MEMORY),
        boot.kernel.address,
        boot.kernel.bytes,
        boot.initrd,
        boot.job.len() as u64,
    )?;
    let rom = rom::rom(&layout, boot.kernel.entry, memory, boot.command_line)?;
    write_pieces(&boot.dir.join(MEMORY), &pieces)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = boot.dir.join(name);
        fs::write(&path, bytes).map_err(|e| BochsError::Write(path, e))
    };
    write(JOB, boot.job)?;
    write(ROM, &rom)?;
    let block_size = if chosen { format!(", block_size={}", block >> 10) } else { String::new() };
    let console = match boot.console {
        Some(device) => format!("term, dev={}", name(device)?),
        None => format!("file, dev={}", name(&boot.dir.join(boots::CONSOLE))?),
    };
    let configuration = format!(
        "memory: guest={size}, host={size}{block_size}\n\
         romimage: file={bios}\n\
         vgaromimage: file={vga}\n\
         optromimage1: file={rom}, address={rom_address:#x}\n\
         optramimage1: file={image}, address={kernel:#x}\n\
         optramimage2: file={job}, address={job_address:#x}\n\
         cpu: model={MODEL}, count=1, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, \
         ignore_bad_msrs=1\n\
         clock: sync=none, time0=1\n\
         display_library: rfb, options=\"timeout=0\"\n\
         sound: driver=dummy\n\
         plugin_ctrl: speaker=0, gameport=0, parallel=0\n\
         com1: enabled=1, mode={console}\n\
         port_e9_hack: enabled=1\n\
         panic: action=fatal\n\
         error: action=ignore\n\
         info: action=ignore\n\
         debug: action=ignore\n\
         log: {log}\n",
        size = boot.memory,
        bios = name(&firmware.bios)?,
        vga = name(&firmware.vga)?,
        rom = name(&boot.dir.join(ROM))?,
        rom_address = rom::ADDRESS,
        image = name(&boot.dir.join(MEMORY))?,
        kernel = layout.kernel,
        job = name(&boot.dir.join(JOB))?,
        job_address = layout.job,
        log = name(&boot.dir.join(boots::LOG))?,
    );
    write(CONFIGURATION, configuration.as_bytes())?;
    // Debian's build stops in its debugger first; this goes on.
    write(DEBUGGER, b"c\n")?;
    let mut command = bochs.command();
    command.arg("-q").arg("-f").arg(boot.dir.join(CONFIGURATION));
    command.arg("-rc").arg(boot.dir.join(DEBUGGER)).current_dir(boot.dir);
    Ok(command)
}

/// A path as Bochs's configuration reads it: to the next comma or the end of the line.
fn name(path: &Path) -> Result<&str, BochsError> {
    let plain = |text: &&str| !text.contains([',', '"', '\n', '$']);
    path.to_str().filter(plain).ok_or_else(|| BochsError::Path(path.into()))
}

/// The first two numbers of a version; zeros where there are none.
fn version(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Writes the pieces; what lies between them becomes holes of the file.
fn write_pieces(path: &Path, pieces: &[Piece<'_>]) -> Result<(), BochsError> {
    let write = || -> io::Result<()> {
        let mut file = File::create(path)?;
        for piece in pieces {
            file.seek(SeekFrom::Start(piece.offset))?;
            file.write_all(piece.bytes.as_ref())?;
        }
        Ok(())
    };
    write().map_err(|e| BochsError::Write(path.into(), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("3.0+dfsg-1"), (3, 0));
        assert!(version("2.7") < BLOCK_SIZE_SINCE && version("10.1") > BLOCK_SIZE_SINCE);
        assert_eq!(version(""), (0, 0));
    }

    #[test]
    fn a_path_that_the_configuration_cannot_hold_is_refused() {
        assert_eq!(name(Path::new("/a b/c")).expect("a name"), "/a b/c");
        for path in ["/a,b", "/a\"b", "/a\nb", "/$HOME"] {
            assert!(matches!(name(Path::new(path)), Err(BochsError::Path(_))), "{path:?}");
        }
    }

    #[test]
    fn the_pieces_lie_at_their_offsets() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        let (_, pieces) = Layout::new(1 << 20, 256 << 20, 16 << 20, &[7; 3 << 20], &[9; 100], 4)
            .expect("a layout");
        write_pieces(&path, &pieces).expect("a file");
        let file = fs::read(&path).expect("a file");
        for piece in &pieces {
            let bytes = piece.bytes.as_ref();
            assert_eq!(&file[piece.offset as usize..][..bytes.len()], bytes);
        }
        let error = write_pieces(&dir.path().join("no/image"), &pieces).unwrap_err().to_string();
        assert!(error.contains("no/image"), "{error}");
    }
}
