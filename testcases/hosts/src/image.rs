//! The initramfs of an emulated host: one archive with all that runs there but the job, kept under
//! the hash of its contents.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use testcases::load::Catalog;

use crate::cpio::{Archive, CpioError};
use crate::modules::Module;
use crate::programs::Programs;
use crate::whole;

/// How many images are kept: those of every host for the last few states of the sources.
const KEPT: usize = 8;

/// The directories that the agent mounts something on.
const MOUNT_POINTS: [&str; 5] = ["dev", "proc", "run", "sys", "tmp"];

/// What an image is made of.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// Its `/init` and `/bin/vmm`.
    pub programs: &'a Programs,
    /// Its `/bin/busybox`, for those who want a shell.
    pub busybox: Option<&'a Path>,
    /// Its `/payloads`.
    pub payloads: &'a Catalog,
    /// The directory of its `/cases`.
    pub cases: &'a Path,
    /// Its `/modules`, in the order in which they are to be loaded. Those that are built in have no
    /// file.
    pub modules: &'a [Module],
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The archive. Its length is a multiple of 512 bytes, so that another one may follow.
    pub path: PathBuf,
    /// The SHA-256 of its contents, in hexadecimal digits.
    pub digest: String,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Something that it is made of cannot be read.
    #[error("cannot read {} for the image of a host: {source}", path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A name that is no text.
    #[error("{} cannot be in the image of a host: its name is no UTF-8; rename it", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// Something cannot be in an archive.
    #[error("the image of a host: {0}")]
    Archive(#[from] CpioError),
    /// The image cannot be written.
    #[error(
        "cannot keep an image of {len} bytes in {}: {source}; make room there, or remove the \
         directory: it holds nothing that is not made anew",
        dir.display()
    )]
    Keep {
        /// Where.
        dir: PathBuf,
        /// How long it is.
        len: usize,
        /// Why not.
        source: io::Error,
    },
}

/// Puts an image together in `dir`, unless it is there already, and removes the oldest ones there.
/// The same contents give the same bytes.
///
/// # Errors
/// Something cannot be read, or the image cannot be written; then nothing of it is left.
pub fn build(contents: &Contents<'_>, dir: &Path) -> Result<Image, ImageError> {
    let bytes = archive(contents)?.to_bytes();
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    let path = dir.join(format!("{digest}.cpio"));
    keep(&path, dir, &bytes).map_err(|source| {
        let dir = dir.to_owned();
        ImageError::Keep { dir, len: bytes.len(), source }
    })?;
    Ok(Image { path, digest })
}

fn archive<'a>(contents: &Contents<'a>) -> Result<Archive<'a>, ImageError> {
    let mut archive = Archive::default();
    for dir in MOUNT_POINTS {
        archive.directory(dir)?;
    }
    // The kernel opens it for its first process, before that can mount anything.
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, read(&contents.programs.agent)?)?;
    archive.file("bin/vmm", 0o755, read(&contents.programs.vmm)?)?;
    if let Some(busybox) = contents.busybox {
        archive.file("bin/busybox", 0o755, read(busybox)?)?;
    }
    archive.directory("payloads")?;
    for (name, payload) in contents.payloads.iter() {
        archive.file(&format!("payloads/{name}"), 0o644, read(&payload.path)?)?;
    }
    add_tree(&mut archive, "cases", contents.cases)?;
    let mut index = String::new();
    for module in contents.modules {
        if let Some(elf) = &module.elf {
            let file = format!("{}.ko", module.name);
            archive.file(&format!("modules/{file}"), 0o644, &elf[..])?;
            index += &format!("{file}\n");
        }
    }
    archive.file("modules/index", 0o644, index.into_bytes())?;
    Ok(archive)
}

/// Adds a directory with the files and directories in it.
fn add_tree(archive: &mut Archive<'_>, name: &str, from: &Path) -> Result<(), ImageError> {
    archive.directory(name)?;
    for entry in fs::read_dir(from).map_err(cannot_read(from))? {
        let path = entry.map_err(cannot_read(from))?.path();
        let Some(file) = path.file_name().and_then(|file| file.to_str()) else {
            return Err(ImageError::Name { path });
        };
        let name = format!("{name}/{file}");
        match path.is_dir() {
            true => add_tree(archive, &name, &path)?,
            false => archive.file(&name, 0o644, read(&path)?)?,
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(cannot_read(path))
}

fn cannot_read(path: &Path) -> impl FnOnce(io::Error) -> ImageError + use<> {
    let path = path.to_owned();
    move |source| ImageError::Read { path, source }
}

/// Writes an image so that it is there whole or not at all, or marks the one that is there as used;
/// removes those that were not used for longest.
fn keep(path: &Path, dir: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        File::open(path)?.set_modified(SystemTime::now())?;
        return Ok(());
    }
    whole::write(path, bytes)?;
    let mut images = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        // Another process may remove images, too.
        if let (true, Ok(data)) = (is_image(&entry.path()), entry.metadata()) {
            images.push((data.modified()?, entry.path()));
        }
    }
    images.sort();
    for (_, old) in images.iter().rev().skip(KEPT).filter(|(_, old)| old != path) {
        if let Err(e) = fs::remove_file(old)
            && e.kind() != io::ErrorKind::NotFound
        {
            return Err(e);
        }
    }
    Ok(())
}

/// Whether a file's name is one that [`build`] gives: nobody else's file is removed.
fn is_image(path: &Path) -> bool {
    let digest = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".cpio"));
    digest.is_some_and(|d| d.len() == 64 && d.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;
    use testcases::load::Payload;

    use super::*;
    use crate::cpio::tests::read as entries;

    /// Files of which an image is made, each holding its name.
    struct Source {
        dir: TempDir,
        programs: Programs,
        payloads: Catalog,
        modules: Vec<Module>,
    }

    impl Source {
        fn new() -> Source {
            let dir = tempfile::tempdir().expect("a directory");
            let file = |name: &str| {
                let path = dir.path().join(name);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                fs::write(&path, name).expect("a file");
                path
            };
            file("cases/b/two.toml");
            file("cases/a/one.toml");
            let mut payloads = Catalog::new();
            payloads.add("boot", Payload { path: file("boot"), tests: vec![] });
            let module = |name: &str, elf: Option<&[u8]>| Module {
                name: name.into(),
                depends: vec![],
                parameters: vec![],
                elf: elf.map(Vec::from),
            };
            let modules = vec![
                module("kvm", Some(b"ELF")),
                module("irqbypass", None),
                module("a_module", Some(b"elf")),
            ];
            let programs = Programs { agent: file("agent"), vmm: file("vmm") };
            file("busybox");
            Source { programs, payloads, modules, dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn build(&self, busybox: bool) -> Result<Image, ImageError> {
            let (cases, path) = (self.path("cases"), self.path("busybox"));
            let contents = Contents {
                programs: &self.programs,
                busybox: busybox.then_some(&path),
                payloads: &self.payloads,
                cases: &cases,
                modules: &self.modules,
            };
            build(&contents, &self.path("images"))
        }
    }

    #[test]
    fn an_image_has_everything_at_its_place() {
        let source = Source::new();
        let image = source.build(true).expect("an image");
        let bytes = fs::read(&image.path).expect("the image");
        let found = entries(&bytes).into_iter();
        let found: Vec<_> = found
            .map(|e| format!("{:o} {} {}", e.mode, e.path, String::from_utf8_lossy(&e.data)))
            .collect();
        let expected = [
            "40755 bin ",
            "100755 bin/busybox busybox",
            "100755 bin/vmm vmm",
            "40755 cases ",
            "40755 cases/a ",
            "100644 cases/a/one.toml cases/a/one.toml",
            "40755 cases/b ",
            "100644 cases/b/two.toml cases/b/two.toml",
            "40755 dev ",
            "20600 dev/console ",
            "100755 init agent",
            "40755 modules ",
            "100644 modules/a_module.ko elf",
            "100644 modules/index kvm.ko\na_module.ko\n",
            "100644 modules/kvm.ko ELF",
            "40755 payloads ",
            "100644 payloads/boot boot",
            "40755 proc ",
            "40755 run ",
            "40755 sys ",
            "40755 tmp ",
        ];
        assert_eq!(found, expected);
        assert_eq!(image.path, source.path(&format!("images/{}.cpio", image.digest)));
    }

    #[test]
    fn the_same_contents_are_the_same_image_wherever_they_are() {
        let (source, other) = (Source::new(), Source::new());
        let image = source.build(false).expect("an image");
        assert_eq!(other.build(false).expect("an image").digest, image.digest);
        assert_ne!(source.build(true).expect("an image").digest, image.digest);
        // Permissions and times of the sources do not count.
        File::open(source.path("vmm"))
            .and_then(|f| f.set_modified(SystemTime::UNIX_EPOCH))
            .expect("a time");
        assert_eq!(source.build(false).expect("an image"), image);
        // A file that is not what its name says is mended.
        fs::write(&image.path, "bent").expect("a file");
        assert_eq!(source.build(false).expect("an image"), image);
        assert_eq!(entries(&fs::read(&image.path).expect("the image")).len(), 20);
        fs::write(source.path("boot"), "changed").expect("a file");
        assert_ne!(source.build(false).expect("an image").digest, image.digest);
    }

    #[test]
    fn those_not_used_for_longest_go() {
        let source = Source::new();
        let used = source.build(false).expect("an image");
        let hour = |n: usize| SystemTime::now() - Duration::from_secs(3600 * n as u64);
        fs::write(source.path("images/notes.cpio"), "a user's").expect("a file");
        for n in 0..KEPT + 3 {
            fs::write(source.path("boot"), n.to_string()).expect("a file");
            let image = source.build(false).expect("an image");
            File::open(&image.path).and_then(|f| f.set_modified(hour(100 - n))).expect("a time");
            fs::write(source.path("boot"), "boot").expect("a file");
            assert_eq!(source.build(false).expect("an image"), used);
        }
        assert!(used.path.exists(), "the one that was used");
        let left = fs::read_dir(source.path("images")).expect("images").count();
        assert_eq!(left, KEPT + 1, "with the user's own file");
    }

    #[test]
    fn what_cannot_be_read_or_kept_is_named() {
        let source = Source::new();
        fs::remove_file(source.path("boot")).expect("gone");
        let error = source.build(false).unwrap_err().to_string();
        assert!(error.contains(&source.path("boot").display().to_string()), "{error}");
        fs::write(source.path("boot"), "boot").expect("a file");
        fs::write(source.path("images"), "no directory").expect("a file");
        let error = source.build(false).unwrap_err().to_string();
        let place = source.path("images").display().to_string();
        assert!(error.contains(&place) && error.contains("make room"), "{error}");
    }
}
