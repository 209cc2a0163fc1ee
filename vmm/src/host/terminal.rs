//! The terminal that a guest's serial line is connected to.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Mutex;

/// How the terminal was before [`RawTerminal`] changed it. Global, as there is one standard input.
static BEFORE: Mutex<Option<libc::termios>> = Mutex::new(None);

/// Standard input as a raw terminal: every key goes to the guest. It is put back when this is
/// dropped, and by [`restore`], which a panic hook may call.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw; `None` if it is no terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn new() -> io::Result<Option<RawTerminal>> {
        // SAFETY: `termios` is filled by the call whose success is checked.
        unsafe {
            if libc::isatty(0) == 0 {
                return Ok(None);
            }
            let mut termios = MaybeUninit::uninit();
            if libc::tcgetattr(0, termios.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            let before = termios.assume_init();
            let mut raw = before;
            libc::cfmakeraw(&mut raw);
            // Output is still processed: the VMM's own messages share the screen.
            raw.c_oflag = before.c_oflag;
            if libc::tcsetattr(0, libc::TCSANOW, &raw) != 0 {
                return Err(io::Error::last_os_error());
            }
            *BEFORE.lock().unwrap_or_else(|e| e.into_inner()) = Some(before);
        }
        Ok(Some(RawTerminal(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, if it was changed.
pub fn restore() {
    let before = BEFORE.lock().unwrap_or_else(|e| e.into_inner()).take();
    if let Some(before) = before {
        // SAFETY: a valid termios from tcgetattr. There is nothing to do if it fails.
        unsafe { libc::tcsetattr(0, libc::TCSANOW, &before) };
    }
}
