//! The serial port that everything is printed to: a 16550 at 0x3f8, polled.

use crate::port;
use crate::sync::SpinLock;
use core::fmt;
use payload_abi::SERIAL_PORT;

/// Bytes the transmitter takes without being asked in between.
const FIFO: usize = 16;

/// 115200 baud, 8N1, FIFOs on, no interrupts.
pub(crate) fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 0x03), (2, 0x07)] {
        port::out8(SERIAL_PORT + register, value);
    }
}

/// Makes the port usable again after a test that wrote to its registers: out of loop-back, and begun anew.
pub fn recover() {
    // The modem control register has bit 4 for that, and lies there whatever the divisor latch says.
    port::out8(SERIAL_PORT + 4, 0);
    init();
}

/// Sends bytes as they are. Each access leaves the guest, so the line status is read once for
/// every 16 bytes, and waited for within bounds: a port that never gets ready is not there.
pub fn write(bytes: &[u8]) {
    for chunk in bytes.chunks(FIFO) {
        for _ in 0..100_000 {
            // Transmitter holding register empty.
            if port::in8(SERIAL_PORT + 5) & 0x20 != 0 {
                break;
            }
        }
        chunk.iter().for_each(|&byte| port::out8(SERIAL_PORT, byte));
    }
}

static LOCK: SpinLock<()> = SpinLock::new(());

/// Text on its way out: collected, so that it leaves in full FIFOs, one CPU at a time.
pub(crate) struct Out {
    buffer: [u8; 96],
    used: usize,
    /// Newlines become spaces, and what is indented behind them is not.
    one_line: bool,
    /// A newline has become a space, and nothing but spaces followed.
    indenting: bool,
}

impl Out {
    /// Runs `f` with the port for itself. A CPU that was stopped while it printed (a trap that is
    /// recovered from, an interrupt handler that prints) must not silence the others, so the lock
    /// is only waited for so long.
    pub(crate) fn with(f: impl FnOnce(&mut Out)) {
        let _held = LOCK.lock_within(1_000_000);
        let mut out = Out { buffer: [0; 96], used: 0, one_line: false, indenting: false };
        f(&mut out);
        out.flush();
    }

    pub(crate) fn text(&mut self, text: &str) {
        if !self.one_line {
            return self.bytes(text.as_bytes());
        }
        for piece in text.split_inclusive(['\n', '\r']) {
            let line = piece.trim_end_matches(['\n', '\r']);
            let line = if self.indenting { line.trim_start_matches(' ') } else { line };
            self.indenting &= line.is_empty();
            self.bytes(line.as_bytes());
            if piece.ends_with(['\n', '\r']) && !self.indenting {
                self.bytes(b" ");
                self.indenting = true;
            }
        }
    }

    fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.used == self.buffer.len() {
                self.flush();
            }
            let free = &mut self.buffer[self.used..];
            let (now, later) = bytes.split_at(bytes.len().min(free.len()));
            free[..now.len()].copy_from_slice(now);
            self.used += now.len();
            bytes = later;
        }
    }

    /// Formats `args` with its newlines as spaces.
    pub(crate) fn line_of(&mut self, args: fmt::Arguments) {
        self.one_line = true;
        // `write_str` below never fails.
        let _ = fmt::write(self, args);
        self.one_line = false;
    }

    fn flush(&mut self) {
        write(&self.buffer[..self.used]);
        self.used = 0;
    }
}

impl fmt::Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text(text);
        Ok(())
    }
}

/// What [`println!`](crate::println) calls.
pub fn print(args: fmt::Arguments, end: &str) {
    Out::with(|out| {
        let _ = fmt::write(out, args);
        out.text(end);
    });
}

/// Prints free text, which the runner shows to people and does not read.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::serial::print(::core::format_args!($($arg)*), "") };
}

/// Prints a line of free text.
#[macro_export]
macro_rules! println {
    ($($arg:tt)*) => { $crate::serial::print(::core::format_args!($($arg)*), "\n") };
}
