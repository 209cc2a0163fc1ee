//! A log that cannot grow without end: its beginning and its end are kept, the middle is counted.

use std::collections::VecDeque;

/// Bytes of which at most `head + tail` are kept.
#[derive(Clone, Debug)]
pub struct Bounded {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    head_limit: usize,
    tail_limit: usize,
    total: u64,
}

impl Bounded {
    /// Keeps the first `head` and the last `tail` bytes.
    pub fn new(head: usize, tail: usize) -> Bounded {
        Bounded {
            head: Vec::new(),
            tail: VecDeque::new(),
            head_limit: head,
            tail_limit: tail,
            total: 0,
        }
    }

    /// Appends bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(self.head_limit - self.head.len()));
        self.head.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.tail_limit)..];
        let over = (self.tail.len() + rest.len()).saturating_sub(self.tail_limit);
        self.tail.drain(..over);
        self.tail.extend(rest);
    }

    /// Bytes that were pushed, kept or not.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// What was kept, with a line in the place of what was not.
    pub fn contents(&self) -> Vec<u8> {
        let dropped = self.total - (self.head.len() + self.tail.len()) as u64;
        let mut all = self.head.clone();
        if dropped > 0 {
            all.extend_from_slice(format!("\n[{dropped} bytes are left out here]\n").as_bytes());
        }
        all.extend(&self.tail);
        all
    }
}

/// The lines of a log as text that is safe to print: what is not printable is escaped, a long line
/// is cut, empty ones are left out. Of many lines only the first `head` and the last `tail` are
/// there, with a line in between that counts the others.
pub fn excerpt(bytes: &[u8], head: usize, tail: usize) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let printable = |lines: &[&str]| lines.iter().map(|line| printable(line)).collect::<Vec<_>>();
    if lines.len() <= head + tail {
        return printable(&lines);
    }
    let mut shown = printable(&lines[..head]);
    if head > 0 {
        shown.push(format!("[{} lines are left out here]", lines.len() - head - tail));
    }
    shown.extend(printable(&lines[lines.len() - tail..]));
    shown
}

/// A line with what is not printable escaped, and cut if it is long.
fn printable(line: &str) -> String {
    const WIDTH: usize = 400;
    let mut out = String::new();
    for c in line.trim_end().chars().take(WIDTH) {
        match c {
            '\t' => out.push(c),
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    if line.chars().count() > WIDTH {
        out.push_str(" ...");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_log_is_kept_whole() {
        let mut log = Bounded::new(4, 4);
        for chunk in ["a", "bc", "", "defg"] {
            log.push(chunk.as_bytes());
        }
        assert_eq!(log.contents(), b"abcdefg");
        assert_eq!(log.total(), 7);
    }

    #[test]
    fn a_long_log_loses_its_middle_and_says_so() {
        for chunk in [1, 3, 1000] {
            let bytes: Vec<u8> = (0..1000_u32).map(|i| b'a' + (i % 26) as u8).collect();
            let mut log = Bounded::new(4, 4);
            bytes.chunks(chunk).for_each(|c| log.push(c));
            let text = String::from_utf8(log.contents()).expect("ASCII");
            assert_eq!(text, "abcd\n[992 bytes are left out here]\nijkl", "chunks of {chunk}");
            assert_eq!(log.total(), 1000);
        }
    }

    #[test]
    fn an_excerpt_is_printable() {
        let lines = excerpt(b"one\n\ntwo\x1b[31m\r\n\xff\tx", 0, 2);
        assert_eq!(lines, ["two\\u{1b}[31m", "\u{fffd}\tx"]);
        assert_eq!(excerpt(b"", 3, 3), Vec::<String>::new());
        assert!(excerpt(&[b'x'; 5000], 0, 1)[0].len() < 500);
    }

    #[test]
    fn an_excerpt_has_both_ends_and_counts_the_middle() {
        let log = b"1\n2\n3\n4\n5\n";
        assert_eq!(excerpt(log, 2, 3), ["1", "2", "3", "4", "5"]);
        assert_eq!(excerpt(log, 1, 2), ["1", "[2 lines are left out here]", "4", "5"]);
    }
}
