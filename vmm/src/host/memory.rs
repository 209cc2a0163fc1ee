//! How much memory the host has.

/// Bytes of RAM and swap that the host has in all, or `None` if it does not say.
pub fn total() -> Option<u64> {
    // SAFETY: an all-zero `sysinfo` is valid, and the call fills it; its success is checked.
    let info = unsafe {
        let mut info: libc::sysinfo = std::mem::zeroed();
        (libc::sysinfo(&mut info) == 0).then_some(info)
    }?;
    (info.totalram.checked_add(info.totalswap)?).checked_mul(info.mem_unit.into())
}

/// Whether the host's administrator lets programs ask for more memory than there is
/// (`vm.overcommit_memory` is 1; Linux, Documentation/admin-guide/sysctl/vm.rst).
pub fn is_overcommitted() -> bool {
    std::fs::read_to_string("/proc/sys/vm/overcommit_memory").is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_host_has_some() {
        let total = super::total().expect("Linux says");
        assert!((16 << 20..1 << 60).contains(&total), "{total}");
    }
}
