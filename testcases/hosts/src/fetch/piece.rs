//! What each piece is made of as packages, and where its files are in the unpacked tree.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::pieces::{BochsFirmware, Kernel, Loader, Program};

/// Which kernel of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// With the drivers of virtual machines only: smaller, and boots faster.
    Cloud,
    /// With all drivers.
    Full,
}

/// A piece that packages hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Qemu,
    Bochs,
    BochsFirmware,
    Kernel(Flavour),
    Busybox,
    Llvm,
}

/// The directory of libraries, with and without the merged /usr.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

impl Piece {
    /// The name of its record, and the beginning of its tree's.
    pub fn key(self) -> &'static str {
        match self {
            Piece::Qemu => "qemu",
            Piece::Bochs => "bochs",
            Piece::BochsFirmware => "bochs-firmware",
            Piece::Kernel(Flavour::Cloud) => "kernel-cloud",
            Piece::Kernel(Flavour::Full) => "kernel-full",
            Piece::Busybox => "busybox",
            Piece::Llvm => "llvm",
        }
    }

    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Piece::Qemu => "QEMU",
            Piece::Bochs => "Bochs",
            Piece::BochsFirmware => "Bochs's firmware",
            Piece::Kernel(Flavour::Cloud) => "a kernel for virtual machines",
            Piece::Kernel(Flavour::Full) => "a kernel with all drivers",
            Piece::Busybox => "busybox",
            Piece::Llvm => "LLVM's tools for coverage",
        }
    }

    /// What the user can give in its place, and how.
    pub fn instead(self) -> &'static str {
        match self {
            Piece::Qemu => {
                "Install qemu-system-x86_64 (7.2 or later, with TCG), or name one with --qemu FILE or \
                 EXITLAB_QEMU=FILE"
            }
            Piece::Bochs => {
                "Install Bochs (3.0, or 2.7; with VMX, the model corei7_skylake_x and its debugger), \
                 or name one with --bochs FILE or EXITLAB_BOCHS=FILE"
            }
            Piece::BochsFirmware => {
                "Install the firmware beside Bochs (BIOS-bochs-latest and VGABIOS-lgpl-latest), or \
                 let BXSHARE name its directory"
            }
            Piece::Kernel(_) => {
                "Name a kernel with --host-kernel PATH or EXITLAB_HOST_KERNEL=PATH: a bzImage whose \
                 modules are in /lib/modules, or a directory with boot/vmlinuz-* and lib/modules"
            }
            Piece::Busybox => "Install a statically linked busybox on PATH",
            Piece::Llvm => {
                "Install llvm-profdata and llvm-cov that read profiles of version 10: `rustup component add \
                 llvm-tools` brings the compiler's own, and Debian's package llvm-19 or later has them"
            }
        }
    }

    /// The packages that hold it. Their dependencies come with them as far as [`follow`] goes.
    ///
    /// [`follow`]: Piece::follow
    pub fn roots(self) -> &'static [&'static str] {
        match self {
            // qemu-system-common has TCG where QEMU is built with modules.
            Piece::Qemu => &[
                "qemu-system-x86",
                "qemu-system-common",
                "qemu-system-data",
                "seabios",
                "ipxe-qemu",
            ],
            Piece::Bochs => &["bochs", "bochsbios", "vgabios"],
            Piece::BochsFirmware => &["bochsbios", "vgabios"],
            Piece::Kernel(Flavour::Cloud) => &["linux-image-cloud-amd64"],
            Piece::Kernel(Flavour::Full) => &["linux-image-amd64"],
            Piece::Busybox => &["busybox-static"],
            Piece::Llvm => &["llvm-19"],
        }
    }

    /// Whether it needs a package that one of its packages depends on.
    pub fn follow(self) -> fn(&str) -> bool {
        match self {
            // The metapackage depends on the kernel's real name.
            Piece::Kernel(_) => |name| name.starts_with("linux-image-"),
            Piece::Qemu | Piece::Bochs | Piece::Llvm => is_library,
            Piece::BochsFirmware | Piece::Busybox => |_| false,
        }
    }

    /// What there is to run, if it is a program.
    pub fn program(self, tree: &Path) -> Option<Program> {
        let name = match self {
            Piece::Qemu => "usr/bin/qemu-system-x86_64",
            // usr/bin/bochs is a script that starts this one.
            Piece::Bochs => "usr/bin/bochs-bin",
            // Not the link in usr/bin: llvm-profdata is beside this one.
            Piece::Llvm => "usr/lib/llvm-19/bin/llvm-cov",
            _ => return None,
        };
        let libraries: Vec<_> =
            LIBRARIES.iter().map(|dir| tree.join(dir)).filter(|dir| dir.is_dir()).collect();
        // Not lib64/ld-linux-x86-64.so.2: that may be a link to the machine's own.
        let loaders = libraries.iter().map(|dir| dir.join("ld-linux-x86-64.so.2"));
        let path = loaders.into_iter().find(|path| path.is_file())?;
        let library = tree.join(LIBRARIES[0]);
        let (env, data): (Vec<(&str, PathBuf)>, Vec<PathBuf>) = match self {
            Piece::Qemu => (
                vec![("QEMU_MODULE_DIR", library.join("qemu"))],
                ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"]
                    .map(|dir| tree.join(dir))
                    .into(),
            ),
            Piece::Llvm => (Vec::new(), Vec::new()),
            _ => (
                vec![
                    ("LTDL_LIBRARY_PATH", library.join("bochs/plugins")),
                    ("BXSHARE", tree.join("usr/share/bochs")),
                ],
                vec![tree.join("usr/share/bochs")],
            ),
        };
        let env = env.into_iter().map(|(name, path)| (name.to_owned(), OsString::from(path)));
        Some(Program {
            path: tree.join(name),
            loader: Some(Loader { path, libraries }),
            env: env.collect(),
            data: data.into_iter().filter(|dir| dir.is_dir()).collect(),
            version: String::new(),
            origin: String::new(),
        })
    }
}

/// The firmware in a tree that has it.
pub(super) fn firmware(tree: &Path) -> BochsFirmware {
    BochsFirmware {
        bios: tree.join("usr/share/bochs/BIOS-bochs-latest"),
        vga: tree.join("usr/share/vgabios/vgabios.bin"),
    }
}

/// The kernel in a tree that has one.
pub(super) fn kernel(tree: &Path) -> Option<Kernel> {
    let mut dirs = ["usr/lib/modules", "lib/modules"].map(|dir| tree.join(dir)).into_iter();
    let modules = dirs.find_map(|dir| {
        let mut releases = fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        releases.find(|path| path.is_dir())
    })?;
    let release = modules.file_name()?.to_str()?.to_owned();
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    image.is_file().then_some(Kernel { image, modules, release, origin: String::new() })
}

/// The busybox in a tree that has one.
pub(super) fn busybox(tree: &Path) -> Option<PathBuf> {
    ["usr/bin/busybox", "bin/busybox"].map(|file| tree.join(file)).into_iter().find(|f| f.is_file())
}

/// Whether a package holds libraries that programs are linked with.
fn is_library(name: &str) -> bool {
    const OTHER: [&str; 6] = ["-bin", "-common", "-config", "-data", "-dev", "-modules"];
    name == "zlib1g" || name.starts_with("lib") && !OTHER.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_told_from_what_comes_with_them() {
        for name in ["libc6", "zlib1g", "libglib2.0-0t64", "libsdl2-2.0-0"] {
            assert!(is_library(name), "{name}");
        }
        for name in ["libgtk-3-common", "libx11-data", "libpam-modules", "debconf", "zlib"] {
            assert!(!is_library(name), "{name}");
        }
    }
}
