//! What a file holds, without copying it.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

/// The bytes of a file. A regular file is mapped, so that only what is looked at costs anything:
/// reading a payload that is mostly debug information took a tenth of a small guest's whole time on
/// an emulated host. Anything else (a pipe) is read to its end.
///
/// A file must not be cut short meanwhile: the kernel ends a process that looks at bytes which are no
/// longer there (SIGBUS). Writers that put a new file in the old one's place are harmless.
#[derive(Debug)]
pub struct Contents(Held);

#[derive(Debug)]
enum Held {
    Mapped { at: NonNull<u8>, len: usize },
    Read(Vec<u8>),
}

// SAFETY: the bytes are only read, from any thread, and the mapping belongs to no thread.
unsafe impl Send for Contents {}
// SAFETY: as above.
unsafe impl Sync for Contents {}

impl Contents {
    /// What the file at `path` holds now.
    ///
    /// # Errors
    ///
    /// It cannot be opened, mapped or read.
    pub fn of(path: &Path) -> io::Result<Contents> {
        let mut file = File::open(path)?;
        let about = file.metadata()?;
        let len = usize::try_from(about.len()).map_err(io::Error::other)?;
        if about.is_file() && len > 0 {
            return Contents::map(&file, len);
        }
        // A file of no bytes cannot be mapped; those below /proc say so and have some all the same.
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Contents(Held::Read(bytes)))
    }

    fn map(file: &File, len: usize) -> io::Result<Contents> {
        let (access, kind) = (libc::PROT_READ, libc::MAP_PRIVATE);
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, file.as_raw_fd(), 0) };
        match NonNull::new(at.cast()).filter(|_| at != libc::MAP_FAILED) {
            Some(at) => Ok(Contents(Held::Mapped { at, len })),
            None => Err(io::Error::last_os_error()),
        }
    }
}

impl Deref for Contents {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: the mapping is `len` bytes that can be read, and lives as long as `self`.
            // Nothing in this process writes into it: it is private and was never writable.
            Held::Mapped { at, len } => unsafe { std::slice::from_raw_parts(at.as_ptr(), *len) },
            Held::Read(bytes) => bytes,
        }
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        if let Held::Mapped { at, len } = self.0 {
            // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
            // What the call returns says nothing that could be acted upon.
            unsafe { libc::munmap(at.as_ptr().cast(), len) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_pipe_hold_what_was_written() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        for text in ["", "x", &"long ".repeat(5000)] {
            std::fs::write(&file, text).expect("written");
            assert_eq!(&*Contents::of(&file).expect("contents"), text.as_bytes());
        }
        // What no length is known of: a file of the kernel's.
        let status = Contents::of(Path::new("/proc/self/status")).expect("contents");
        assert!(status.starts_with(b"Name:"), "{status:?}");
    }

    #[test]
    fn what_was_mapped_stays_when_the_file_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, draft) = (dir.path().join("file"), dir.path().join("draft"));
        std::fs::write(&file, "old").expect("written");
        let old = Contents::of(&file).expect("contents");
        std::fs::write(&draft, "new and longer").expect("written");
        std::fs::rename(&draft, &file).expect("put in place");
        assert_eq!(&*old, b"old");
        assert_eq!(&*Contents::of(&file).expect("contents"), b"new and longer");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(Contents::of(&dir.path().join("none")).is_err());
        assert!(Contents::of(dir.path()).is_err(), "a directory");
    }
}
