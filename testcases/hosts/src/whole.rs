//! Files that are there whole or not at all.

use std::fs;
use std::io;
use std::path::Path;

/// Writes a file, so that whoever reads it sees what was there before, or all of `bytes`; makes its
/// directory.
///
/// # Errors
/// It cannot be written; then what was there before is still there.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let draft = tempfile::NamedTempFile::new_in(dir)?;
    fs::write(draft.path(), bytes)?;
    draft.persist(path).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_no_draft_is_left() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b");
        write(&path, b"x").expect("a file");
        write(&path, b"y").expect("a file");
        assert_eq!(fs::read(&path).expect("a file"), b"y");
        assert_eq!(fs::read_dir(dir.path().join("a")).expect("a directory").count(), 1);
        assert!(write(&path.join("c"), b"z").is_err());
        assert_eq!(fs::read(&path).expect("a file"), b"y");
    }
}
