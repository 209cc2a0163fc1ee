//! What KVM counts itself, of a VM and of each vCPU: the file that `KVM_GET_STATS_FD` gives (Linux,
//! Documentation/virt/kvm/api.rst, 4.133).

mod format;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;

pub use format::{FormatError, Layout, parse};
use kvm_bindings::KVM_CAP_BINARY_STATS_FD;

use super::{Host, KvmVcpu, KvmVm};
use crate::hv::HvError;
use crate::stats::metric::Metric;

/// `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

/// Why KVM's statistics cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The call failed.
    #[error(transparent)]
    Hv(#[from] HvError),
    /// The file cannot be read.
    #[error("reading {what} of KVM's statistics of {whose} failed: {source}")]
    Read {
        /// Which part.
        what: &'static str,
        /// Of a VM or a vCPU.
        whose: String,
        /// What the host said.
        source: io::Error,
    },
    /// The file is not in the form that KVM describes.
    #[error("KVM's statistics of {whose}: {source}")]
    Format {
        /// Of a VM or a vCPU.
        whose: String,
        /// What is wrong.
        source: FormatError,
    },
}

/// The statistics of a VM or of a vCPU. It keeps that alive.
#[derive(Debug)]
pub struct StatsFile {
    file: File,
    whose: String,
    layout: Layout,
}

impl Host {
    /// Whether KVM tells statistics (`KVM_CAP_BINARY_STATS_FD`, since Linux 5.14).
    pub fn has_stats(&self) -> bool {
        self.check_extension(KVM_CAP_BINARY_STATS_FD) > 0
    }
}

impl KvmVm {
    /// KVM's statistics of the VM.
    ///
    /// # Errors
    /// When KVM has none, or tells them in another form.
    pub fn stats(&self) -> Result<StatsFile, StatsError> {
        StatsFile::of(self.fd.as_raw_fd(), "the VM".to_owned())
    }
}

impl KvmVcpu {
    /// KVM's statistics of the vCPU.
    ///
    /// # Errors
    /// When KVM has none, or tells them in another form.
    pub fn stats(&self) -> Result<StatsFile, StatsError> {
        StatsFile::of(self.raw, format!("vCPU {}", self.index))
    }
}

impl StatsFile {
    fn of(fd: RawFd, whose: String) -> Result<StatsFile, StatsError> {
        // SAFETY: the descriptor is an open VM's or vCPU's; the call takes no argument.
        let stats = unsafe { libc::ioctl(fd, KVM_GET_STATS_FD, 0) };
        if stats < 0 {
            let what = format!("KVM_GET_STATS_FD of {whose}");
            return Err(HvError::Call { what, source: io::Error::last_os_error() }.into());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        let file = unsafe { File::from_raw_fd(stats) };
        let read = |what, at: u64, len: usize| read(&file, &whose, what, at, len);
        let form = |source| StatsError::Format { whose: whose.clone(), source };
        let header = read("the header", 0, format::HEADER)?;
        let (at, len) = format::descriptors_at(&header).map_err(form)?;
        let descriptors = read("the descriptors", at, len)?;
        let layout = Layout::new(&header, &descriptors).map_err(form)?;
        Ok(StatsFile { file, whose, layout })
    }

    /// How many statistics are of a kind or unit that this program does not know, and left out.
    pub fn unknown(&self) -> usize {
        self.layout.unknown()
    }

    /// The values now.
    ///
    /// # Errors
    /// When KVM does not give them.
    pub fn read(&self) -> Result<Vec<Metric>, StatsError> {
        let (at, len) = self.layout.data_at();
        let data = read(&self.file, &self.whose, "the values", at, len)?;
        let form = |source| StatsError::Format { whose: self.whose.clone(), source };
        self.layout.metrics(&data).map_err(form)
    }
}

/// So many bytes of the file.
fn read(
    file: &File,
    whose: &str,
    what: &'static str,
    at: u64,
    len: usize,
) -> Result<Vec<u8>, StatsError> {
    let mut bytes = vec![0; len];
    let failed = |source| StatsError::Read { what, whose: whose.to_owned(), source };
    file.read_exact_at(&mut bytes, at).map_err(failed)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
