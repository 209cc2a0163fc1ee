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

/// Unmaps the pages of this program's file: its code and its constants, most of which only the start needed. What is
/// needed on is mapped again from the page cache when it is touched. Nothing happens while somebody traces this
/// process, since a debugger's breakpoints are in such pages.
pub fn forget_program() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !is_traced(&status) {
        // SAFETY: the callback has the type that is asked for, and keeps nothing.
        unsafe { libc::dl_iterate_phdr(Some(forget_segments), std::ptr::null_mut()) };
    }
}

/// Whether /proc/PID/status tells of a tracer, or of nothing.
fn is_traced(status: &str) -> bool {
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_none_or(|pid| pid.trim() != "0")
}

/// Unmaps what is never written of the first object that there is, which is the program.
extern "C" fn forget_segments(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    const PAGE: u64 = 4096;
    // SAFETY: the C library calls this with a description of an object that is loaded, whose headers are mapped.
    let (base, headers) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
        (info.dlpi_addr, headers)
    };
    let is_constant =
        |h: &&libc::Elf64_Phdr| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_W == 0;
    for header in headers.iter().filter(is_constant) {
        let start = (base + header.p_vaddr) & !(PAGE - 1);
        let len = base + header.p_vaddr + header.p_filesz - start;
        // SAFETY: the range is a private mapping of a file, which nobody writes: its pages come back as they were,
        // those of this very code, too. Where the host refuses, nothing has changed.
        unsafe { libc::madvise(start as *mut _, len as usize, libc::MADV_DONTNEED) };
    }
    1
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_program_goes_on_without_its_pages() {
        let text = "a constant of this program".to_owned();
        for _ in 0..3 {
            super::forget_program();
            assert_eq!(text, "a constant of this program");
        }
        assert!(!super::is_traced("Name:\tvmm\nTracerPid:\t0\n"));
        assert!(super::is_traced("TracerPid:\t17\n") && super::is_traced(""));
    }

    #[test]
    fn a_host_has_some() {
        let total = super::total().expect("Linux says");
        assert!((16 << 20..1 << 60).contains(&total), "{total}");
    }
}
