//! Scripts that a guest plays with real instructions, and how it tells what its registers got.
//!
//! A script is text, in the form that `vmm replay` takes. A guest can do part of it: `in`, `out`, `read`,
//! `write`, `ram` and `advance`, which for a guest is a wait. Of what is expected it can see what a read
//! gives. Its machine is what it is, so the lines about that, and those of effects, are nobody's here.
//!
//! Around a script the guest writes [`BEGIN`] and [`END`] to [`TELL`], and after each read the two halves
//! of RAX, low one first. So a recording of its exits says what each instruction left in the register.

/// Port that the guest tells by, 4 bytes at a time. No device is there.
pub const TELL: u16 = 0x1ac0;
/// Told before the first operation.
pub const BEGIN: u32 = 0x5c21_9701;
/// Told after the last one.
pub const END: u32 = 0x5c21_9702;

/// The longest line that a guest reads, in bytes.
pub const LONGEST: usize = 512;

/// What RAX holds before operation `op` (the first is 0): no two bytes are alike, so that a read that
/// changes too much or too little shows. A write leaves its value in the low bytes.
pub const fn before(op: u64) -> u64 {
    0xf0e1_d2c3_b4a5_9687_u64.rotate_left((op % 64) as u32)
}

/// What RAX holds after a read of `size` bytes that gave `value`: 1 and 2 bytes leave the others as they
/// were, 4 bytes clear them (SDM volume 1, 3.4.1.1).
pub const fn after(before: u64, size: u8, value: u64) -> u64 {
    match size {
        1 => before & !0xff | value & 0xff,
        2 => before & !0xffff | value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

/// What a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// An access.
    Access {
        /// To a port, or to memory that is none.
        port: bool,
        /// Where.
        addr: u64,
        /// 1, 2, 4 or 8 bytes; the last not of a port.
        size: u8,
        /// What is written; `None` for a read.
        write: Option<u64>,
        /// What a read must give, if the script says.
        expect: Option<u64>,
    },
    /// Memory gets bytes.
    Ram {
        /// Where.
        addr: u64,
        /// Two characters for each [`byte`], which may be none.
        digits: &'a [u8],
    },
    /// It waits so long, in nanoseconds.
    Wait(u64),
}

/// Plain loops, here and below: where CPL 0 is interpreted, instructions are dear.
fn number(word: &[u8]) -> Option<u64> {
    let (digits, base) = match word {
        [b'0', b'x', digits @ ..] => (digits, 16),
        digits => (digits, 10),
    };
    let mut number = 0_u64;
    for &byte in digits {
        let digit = digit(byte).filter(|&digit| digit < base)?;
        number = number.checked_mul(base)?.checked_add(digit)?;
    }
    (!digits.is_empty()).then_some(number)
}

fn digit(byte: u8) -> Option<u64> {
    match byte {
        b'0'..=b'9' => Some(u64::from(byte - b'0')),
        b'a'..=b'f' => Some(u64::from(byte - b'a' + 10)),
        b'A'..=b'F' => Some(u64::from(byte - b'A' + 10)),
        _ => None,
    }
}

/// The byte that two hexadecimal digits stand for.
pub fn byte(digits: &[u8]) -> Option<u8> {
    match digits {
        &[high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    }
}

/// Reads a line, without its newline. `None` if it says nothing to a guest.
///
/// # Errors
///
/// What is wrong with it: nothing that a guest can do, or no operation at all.
pub fn parse(line: &[u8]) -> Result<Option<Op<'_>>, &'static str> {
    // What is indented is an effect.
    if matches!(line.first(), None | Some(b' ' | b'\t' | b'#')) {
        return Ok(None);
    }
    let mut words = line.split(|&byte| byte <= b' ').filter(|word| !word.is_empty());
    let mut next = || words.next().filter(|word| !word.starts_with(b"#"));
    let word = next().unwrap_or_default();
    let op = match word {
        b"machine" | b"effects" => return Ok(None),
        b"in" | b"out" | b"read" | b"write" => {
            let port = matches!(word, b"in" | b"out");
            let addr = next().and_then(number).ok_or("no address")?;
            let size = next().and_then(number).ok_or("no width")?;
            if !matches!((port, size), (_, 1 | 2 | 4) | (false, 8)) {
                return Err("no width that an instruction has");
            }
            let write = match word {
                b"out" | b"write" => Some(next().and_then(number).ok_or("no value")?),
                _ => None,
            };
            let expect = match (write, next()) {
                (_, None) => None,
                (None, Some(b"->")) => {
                    Some(next().and_then(number).ok_or("no value that a read gives")?)
                }
                (Some(_), Some(b"->")) => {
                    next().filter(|&word| word == b"ok").ok_or("a write that is not taken")?;
                    None
                }
                _ => return Err("a word too many"),
            };
            Op::Access { port, addr, size: size as u8, write, expect }
        }
        b"ram" => {
            let addr = next().and_then(number).ok_or("no address")?;
            let digits = next().ok_or("no bytes")?;
            if next() == Some(b"after") {
                return Err("memory that changes amid an operation");
            }
            // No bytes at all have two quotes.
            let digits = if digits == b"\"\"" { &[][..] } else { digits };
            if digits.len() % 2 == 1 {
                return Err("no bytes");
            }
            Op::Ram { addr, digits }
        }
        b"advance" => Op::Wait(next().and_then(number).ok_or("no time")?),
        _ => return Err("nothing that a guest can do"),
    };
    Ok(Some(op))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_can_do_is_read() {
        let access = |port, addr, size, write, expect| {
            Ok(Some(Op::Access { port, addr, size, write, expect }))
        };
        assert_eq!(parse(b"in 0x3fd 1 -> 0x60"), access(true, 0x3fd, 1, None, Some(0x60)));
        assert_eq!(parse(b"out 0x80 4 17 -> ok # why"), access(true, 0x80, 4, Some(17), None));
        assert_eq!(parse(b"read 0xff000000 8"), access(false, 0xff00_0000, 8, None, None));
        assert_eq!(parse(b"write 4096 2 0xff"), access(false, 4096, 2, Some(0xff), None));
        assert_eq!(parse(b"ram 0x10 00fF"), Ok(Some(Op::Ram { addr: 16, digits: b"00fF" })));
        assert_eq!(parse(b"ram 0x10 \"\""), Ok(Some(Op::Ram { addr: 16, digits: b"" })));
        assert_eq!(parse(b"advance 5 -> ok\r"), Ok(Some(Op::Wait(5))));
        for nothing in ["", "# exitlab script 1", "machine pc memory=2M", "  line 4 high"] {
            assert_eq!(parse(nothing.as_bytes()), Ok(None), "{nothing}");
        }
    }

    #[test]
    fn what_a_guest_cannot_do_is_refused() {
        for bad in [
            "reset",
            "timer -> ok",
            "in 0x3fd 8",
            "in 0x3fd 3",
            "in 0x3fd",
            "out 0x3fd 1",
            "out 0xf4 1 0 -> stop exit 0x0",
            "in 0x3fd 1 0x60",
            "in 0x3fd 1 -> ok",
            "ram 0x10 001",
            "in 0x 1",
            "in 0x10000000000000000 1",
            "in 1f 1",
            "ram 0x10 00 after 1",
            "advance soon",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_byte_has_two_digits() {
        assert_eq!(byte(b"fE"), Some(0xfe));
        for bad in ["zz", "0", "000", "0x", "+1"] {
            assert_eq!(byte(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn a_register_gets_what_the_width_says() {
        let old = 0x1122_3344_5566_7788;
        assert_eq!(after(old, 1, 0xff), 0x1122_3344_5566_77ff);
        assert_eq!(after(old, 2, 0xffee), 0x1122_3344_5566_ffee);
        assert_eq!(after(old, 4, 0xffee_ddcc), 0xffee_ddcc);
        assert_eq!(after(old, 8, 1), 1);
        assert_ne!(before(0), before(1));
    }
}
