//! The directories of boots. Each goes away with its boot; what a killed run left is removed later.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::machine::HostError;
use crate::name::Name;

/// The host's console in such a directory.
pub const CONSOLE: &str = "console.log";

/// What its emulator has to say there.
pub const LOG: &str = "emulator.log";

/// How long a directory stays that no boot writes to any more: that of a host that died, for people to
/// look at, or of a run that was killed.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Makes a directory for a boot below `cache`, and removes old ones that were left there.
///
/// # Errors
/// It cannot be made.
pub fn directory(cache: &Path, name: Name) -> Result<TempDir, HostError> {
    let boots = cache.join("boots");
    let failed = |what, path: &Path| {
        let path = path.to_path_buf();
        move |error| HostError::File { what, path, error }
    };
    fs::create_dir_all(&boots).map_err(failed("make the directory", &boots))?;
    prune(&boots, SystemTime::now() - KEPT);
    tempfile::Builder::new()
        .prefix(&format!("{name}-"))
        .tempdir_in(&boots)
        .map_err(failed("make a directory in", &boots))
}

/// Removes the directories in which nothing was written since `then`. What cannot be removed is
/// somebody else's, or gone already.
fn prune(boots: &Path, then: SystemTime) {
    for entry in fs::read_dir(boots).into_iter().flatten().flatten() {
        let dir = entry.path();
        if written(&dir).is_some_and(|last| last < then) {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// When something was last written in a directory: the results of a host that lives are every second.
fn written(dir: &Path) -> Option<SystemTime> {
    let files = fs::read_dir(dir).ok()?.flatten();
    let times = files.filter_map(|file| file.metadata().ok()?.modified().ok());
    times.chain(fs::metadata(dir).and_then(|dir| dir.modified())).max()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_was_left_for_a_day_goes_and_what_is_written_to_stays() {
        let cache = tempfile::tempdir().expect("a directory");
        let now = SystemTime::now();
        let old = now - KEPT - Duration::from_secs(60);
        let make = |name: &str, file: SystemTime, dir: SystemTime| {
            let path = cache.path().join("boots").join(name);
            fs::create_dir_all(&path).expect("a directory");
            let log = File::create(path.join(CONSOLE)).expect("a file");
            log.set_modified(file).expect("a time");
            File::open(&path).and_then(|path| path.set_modified(dir)).expect("a time");
            path
        };
        let left = make("amd-left", old, old);
        let lives = make("amd-lives", now, old);
        let new = make("amd-new", old, now);
        let stray = cache.path().join("boots/stray");
        File::create(&stray).and_then(|file| file.set_modified(old)).expect("a file");
        let own = directory(cache.path(), Name::Amd).expect("a directory");
        assert!(!left.exists() && lives.exists() && new.exists() && stray.exists());
        let path = own.path().to_path_buf();
        assert!(path.is_dir() && path.starts_with(cache.path().join("boots")));
        drop(own);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told() {
        let cache = tempfile::tempdir().expect("a directory");
        fs::write(cache.path().join("boots"), "").expect("a file");
        let error = directory(cache.path(), Name::Intel).unwrap_err().to_string();
        assert!(error.contains("make the directory") && error.contains("/boots"), "{error}");
    }
}
