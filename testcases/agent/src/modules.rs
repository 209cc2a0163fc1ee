//! Loads the kernel modules of the image.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::system::finit_module;

/// Where the image has its modules: `index` names their files in the order in which they load.
pub const DIR: &str = "/modules";

/// The kernel's log.
const KMSG: &str = "/dev/kmsg";

/// Lines of the kernel's log that are told of a module that does not load.
const LINES: usize = 10;

/// KVM's switch for splitting huge pages that a guest runs code from (iTLB multihit).
const NX_HUGE_PAGES: &str = "/sys/module/kvm/parameters/nx_huge_pages";

/// Where KVM has no need to split huge pages, tells it that it never will: each VM is spared a thread
/// that would join them again. Linux 6.1 knows no `never`, and keeps the thread.
pub fn spare_recovery_threads() {
    if fs::read_to_string(NX_HUGE_PAGES).is_ok_and(|now| now.trim() == "N") {
        let _ = fs::write(NX_HUGE_PAGES, "never");
    }
}

/// The name of a module: of its file, with `-` as `_`, as the kernel has it.
fn normal(name: &str) -> String {
    name.strip_suffix(".ko").unwrap_or(name).replace('-', "_")
}

/// The files of the modules that are wanted, each with its parameters, in the order of the index; and
/// the wanted ones that the index does not have.
fn in_order(
    index: &str,
    wanted: &BTreeMap<String, String>,
) -> (Vec<(String, String)>, Vec<String>) {
    let mut wanted: BTreeMap<_, _> =
        wanted.iter().map(|(name, params)| (normal(name), params)).collect();
    let mut load = Vec::new();
    for file in index.split_whitespace() {
        let name = Path::new(file).file_name().unwrap_or_default().to_string_lossy();
        if let Some(params) = wanted.remove(&normal(&name)) {
            load.push((file.to_owned(), params.clone()));
        }
    }
    (load, wanted.into_keys().collect())
}

/// Loads the modules that are wanted, each with its parameters. Returns what did not work; the
/// others are loaded all the same.
pub fn load(wanted: &BTreeMap<String, String>) -> Vec<String> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let dir = Path::new(DIR);
    let index = match fs::read_to_string(dir.join("index")) {
        Ok(index) => index,
        Err(e) => return vec![format!("cannot read {DIR}/index: {e}; no module is loaded")],
    };
    let (files, absent) = in_order(&index, wanted);
    let mut troubles: Vec<_> =
        absent.iter().map(|name| format!("module {name}: the image has no such module")).collect();
    for (file, params) in files {
        let mut log = KernelLog::open();
        if let Err(e) = load_one(&dir.join(&file), &params) {
            let with = if params.is_empty() { String::new() } else { format!(" with `{params}`") };
            let said = log.as_mut().map_or_else(String::new, KernelLog::said);
            troubles.push(format!("module {file}{with} does not load: {e}{said}"));
        }
    }
    troubles
}

fn load_one(path: &Path, params: &str) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let params = CString::new(params).map_err(|e| e.to_string())?;
    finit_module(file, &params, 0).map_err(|e| e.to_string())
}

/// What the kernel says from a moment on.
struct KernelLog(File);

impl KernelLog {
    /// From now on; `None` if the kernel lets nobody listen.
    fn open() -> Option<KernelLog> {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new().read(true).custom_flags(nonblocking).open(KMSG).ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(KernelLog(file))
    }

    /// The last lines since, as the rest of a sentence; empty if there are none.
    fn said(&mut self) -> String {
        let mut lines = Vec::new();
        let mut record = [0; 8192];
        // A read gives one record. It fails when there is none left, and once for records that were
        // overwritten before they could be read: what follows is told then.
        while let Ok(len @ 1..) = self.0.read(&mut record) {
            lines.extend(text_of(&String::from_utf8_lossy(&record[..len])));
        }
        match &lines[lines.len().saturating_sub(LINES)..] {
            [] => String::new(),
            last => format!("; the kernel says: {}", last.join("; ")),
        }
    }
}

/// The text of a record, `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT` with further lines that begin with a
/// space (Documentation/ABI/testing/dev-kmsg).
fn text_of(record: &str) -> Option<String> {
    let (_, text) = record.lines().next()?.split_once(';')?;
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_gives_the_order() {
        let wanted = [("kvm-amd", "npt=0"), ("kvm", ""), ("irqbypass", ""), ("vfio", "")];
        let wanted = wanted.map(|(name, params)| (name.to_owned(), params.to_owned())).into();
        let (load, absent) = in_order("irqbypass.ko\nkvm.ko\nkvm_amd.ko\nkvm-intel.ko\n", &wanted);
        let load: Vec<_> = load.iter().map(|(file, params)| (&file[..], &params[..])).collect();
        assert_eq!(load, [("irqbypass.ko", ""), ("kvm.ko", ""), ("kvm_amd.ko", "npt=0")]);
        assert_eq!(absent, ["vfio"]);
    }

    #[test]
    fn a_record_of_the_kernels_log_has_its_text() {
        let record = "6,1071,4894712,-;kvm_amd: SVM not supported; no\n SUBSYSTEM=cpu\n";
        assert_eq!(text_of(record).as_deref(), Some("kvm_amd: SVM not supported; no"));
        assert_eq!(text_of("nothing"), None);
    }
}
