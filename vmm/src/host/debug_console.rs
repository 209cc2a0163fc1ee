//! The debug console of an emulated PC: I/O port 0xE9, whose every byte goes to a file of the
//! machine's owner. Bochs has it (`port_e9_hack`), and QEMU (`isa-debugcon`).

use std::io;
use std::marker::PhantomData;

/// The port. Where the console is, reading it answers with its own number.
const PORT: u16 = 0xe9;

/// The debug console, for the thread that took it. Threads and processes that this thread starts
/// may access the port, too; others may not.
#[derive(Debug)]
pub struct DebugConsole {
    /// The permission is the thread's.
    _of_this_thread: PhantomData<*const ()>,
}

/// Why there is no debug console.
#[derive(Debug, thiserror::Error)]
pub enum DebugConsoleError {
    /// The kernel does not let this process access the port.
    #[error(
        "cannot get access to I/O port 0xe9 (ioperm): {0}; it takes CAP_SYS_RAWIO and a kernel \
         with CONFIG_X86_IOPL_IOPERM"
    )]
    Access(#[source] io::Error),
    /// Something else is at the port, or nothing.
    #[error(
        "this machine has no debug console: port 0xe9 reads {0:#04x}; start QEMU with `-device \
         isa-debugcon,iobase=0xe9,chardev=ID`, or Bochs with `port_e9_hack: enabled=1`"
    )]
    Absent(u8),
}

impl DebugConsole {
    /// Takes the console for this thread.
    ///
    /// # Errors
    /// When the kernel refuses access to the port, or the console is not there.
    pub fn take() -> Result<DebugConsole, DebugConsoleError> {
        // SAFETY: the call changes which ports this thread may access, and no memory.
        if unsafe { libc::ioperm(PORT.into(), 1, 1) } != 0 {
            return Err(DebugConsoleError::Access(io::Error::last_os_error()));
        }
        let answer: u8;
        // SAFETY: access to the port was granted. Reading it has no effect where the console is;
        // no device that Linux drives in a PC is at this port.
        unsafe {
            std::arch::asm!("in al, dx", out("al") answer, in("dx") PORT,
                options(nomem, nostack, preserves_flags));
        }
        match answer {
            found if u16::from(found) == PORT => Ok(DebugConsole { _of_this_thread: PhantomData }),
            other => Err(DebugConsoleError::Absent(other)),
        }
    }

    /// Writes bytes. It takes them as fast as they come.
    pub fn write(&mut self, bytes: &[u8]) {
        // SAFETY: this thread has access to the port: `take` was called on it, and the value cannot
        // leave it. The instruction reads `bytes` and nothing else, upwards, because the ABI has the
        // direction flag clear.
        unsafe {
            std::arch::asm!("rep outsb", in("dx") PORT, inout("rsi") bytes.as_ptr() => _,
                inout("rcx") bytes.len() => _, options(readonly, nostack, preserves_flags));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_one_says_so() {
        // On a machine that has one, this is what the name of the test is not about.
        if let Err(e) = DebugConsole::take() {
            let text = e.to_string();
            assert!(text.contains("0xe9") && text.contains("start QEMU") | text.contains("ioperm"));
        }
    }
}
