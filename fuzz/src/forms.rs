//! Inputs of readers: what they are made of, so that most are taken.
//!
//! The first byte says how an input is made. Mostly the others choose among what a reader knows, and the
//! input is sound; sometimes it is damaged then, and rarely the other bytes are the input themselves. The
//! first byte is chosen anew whenever an input is varied ([`HOW`]): what is refused in a new way is quickly
//! kept, and all its offspring would be refused, too.

/// Where the byte is that says how an input is made.
pub const HOW: usize = 0;

/// How an input is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// As its reader takes it.
    Sound,
    /// So, and then damaged.
    Damaged,
    /// It is what the bytes are.
    Raw,
}

/// What the first byte of such an input makes of it to be the bytes that follow.
pub const RAW: u8 = 0xff;

/// Has an input, if there is anything of it, made in the way that this byte says.
pub fn remake(input: &mut [u8], how: u8) {
    if let Some(byte) = input.get_mut(HOW) {
        *byte = how;
    }
}

/// How these bytes make an input, and with which.
pub fn how(bytes: &[u8]) -> (How, &[u8]) {
    let (&first, rest) = bytes.split_first().unwrap_or((&0, &[]));
    let how = match first {
        0..=235 => How::Sound,
        236..=251 => How::Damaged,
        252..=RAW => How::Raw,
    };
    (how, rest)
}

/// The input that makes these bytes.
pub fn raw(bytes: &[u8]) -> Vec<u8> {
    [&[RAW], bytes].concat()
}

/// Bytes that choose; 0 when there are no more.
#[derive(Debug)]
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        byte
    }

    /// A number below `n`, which is from 1 to 256.
    pub fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    /// A number of so many bits: mostly a small one, or one at which something may change.
    pub fn number(&mut self, bits: u32) -> u64 {
        let most = u64::MAX >> (64 - bits);
        let number = match self.byte() % 8 {
            0..=2 => u64::from(self.byte() & 15),
            3 => u64::from(self.byte()),
            4 => most,
            5 => 1 << (self.byte() % 64),
            6 => (1u64 << (self.byte() % 64)) - 1,
            _ => (0..8).fold(0, |all, i| all | u64::from(self.byte()) << (8 * i)),
        };
        number & most
    }
}

/// A word in angle brackets, and what may stand in its place.
pub type Rule = (&'static str, &'static [&'static str]);

/// The most bytes of a text.
const MOST: usize = 4096;

/// What a grammar makes of these bytes, beginning with its first rule. In a rule, `<word>` stands for the
/// rule of that name, `<word*>` for up to eight of it, `<N>` for a number of N bits, and `<letters>` for a
/// name.
///
/// # Panics
/// When a rule is named that there is not.
pub fn text(grammar: &[Rule], bytes: &[u8]) -> Vec<u8> {
    let mut out = String::new();
    expand(grammar, grammar[0].1, &mut Choices(bytes), &mut out);
    out.into_bytes()
}

fn expand(grammar: &[Rule], from: &[&str], choices: &mut Choices<'_>, out: &mut String) {
    let mut rest = from[choices.below(from.len())];
    while let Some((before, after)) = rest.split_once('<') {
        out.push_str(before);
        let (word, next) = after.split_once('>').expect("a bracket that is closed");
        rest = next;
        if out.len() > MOST {
            continue;
        }
        if let Ok(bits) = word.parse() {
            let number = choices.number(bits);
            let hex = choices.byte() & 1 == 1;
            out.push_str(&if hex { format!("{number:#x}") } else { number.to_string() });
        } else if word == "decimal" {
            out.push_str(&choices.number(16).to_string());
        } else if word == "letters" {
            let len = 1 + choices.below(6);
            out.extend((0..len).map(|_| char::from(b'a' + choices.byte() % 26)));
        } else {
            let (name, times) = match word.strip_suffix('*') {
                Some(name) => (name, if choices.0.is_empty() { 0 } else { choices.below(9) }),
                None => (word, 1),
            };
            let rule = grammar.iter().find(|(of, _)| *of == name).expect("a rule of that name");
            (0..times).for_each(|_| expand(grammar, rule.1, choices, out));
        }
    }
    out.push_str(rest);
}

/// The input of a grammar's reader that these bytes make.
pub fn made(grammar: &[Rule], bytes: &[u8]) -> Vec<u8> {
    match how(bytes) {
        (How::Raw, rest) => rest.to_vec(),
        (How::Sound, rest) => text(grammar, rest),
        (How::Damaged, rest) => {
            let mut text = text(grammar, rest);
            damage(&mut text, rest);
            text
        }
    }
}

/// Changes a byte or a few, or a number, at a place that `from` says.
pub fn damage(input: &mut Vec<u8>, from: &[u8]) {
    let mut choices = Choices(from);
    for _ in 0..1 + choices.byte() % 2 {
        let at = choices.below(256) | choices.below(256) << 8;
        let at = at % (input.len() + 1);
        let (kind, value) = (choices.byte(), choices.byte());
        match (kind % 8, input.get_mut(at)) {
            (0, Some(byte)) => *byte = value,
            (1, Some(byte)) => *byte ^= 1 << (value & 7),
            (2, Some(_)) => {
                drop(input.drain(at..(at + 1 + usize::from(value & 7)).min(input.len())))
            }
            (3, _) => input.truncate(at),
            (4, Some(_)) => {
                let again = input[at..(at + usize::from(value & 15)).min(input.len())].to_vec();
                input.splice(at..at, again);
            }
            (6 | 7, _) => renumber(input, at, value),
            _ => input.insert(at, value),
        }
    }
}

/// A number in a text, the first from `at` on, becomes one at which something may change.
fn renumber(text: &mut Vec<u8>, at: usize, how: u8) {
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let Some(start) = text.iter().skip(at).position(is_digit).map(|digit| at + digit) else {
        return;
    };
    let end = start + text[start..].iter().take_while(|byte| is_digit(byte)).count();
    let bits = how >> 2;
    let number = match how & 3 {
        0 => u64::MAX >> bits,
        1 => 1 << bits,
        2 => (1 << bits) + 1,
        _ => u64::MAX - (1 << bits),
    };
    text.splice(start..end, number.to_string().into_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: &[Rule] = &[("start", &["a<more*>z"]), ("more", &["[<8>]", "(<letters>)", "-"])];

    #[test]
    fn a_grammar_makes_the_same_of_the_same_bytes() {
        assert_eq!(text(GRAMMAR, &[]), b"az");
        assert_eq!(text(GRAMMAR, &[0, 3, 0, 4, 1, 1, 1, 2, 3, 2]), b"a[0xff](cd)-z");
        let long = text(GRAMMAR, &[8; 60]);
        assert_eq!(long, text(GRAMMAR, &[8; 60]));
    }

    #[test]
    fn inputs_are_mostly_sound() {
        let of = |kind| (0..=255).filter(|&first| how(&[first]).0 == kind).count();
        assert!(of(How::Damaged) + of(How::Raw) < 25 && of(How::Raw) > 0);
        assert_eq!(how(&raw(b"x")), (How::Raw, &b"x"[..]));
        assert_eq!(made(GRAMMAR, &raw(b"x")), b"x");
        assert_eq!(made(GRAMMAR, &[]), b"az");
        let damaged = (0..200u8).filter(|&n| made(GRAMMAR, &[236, 0, n, 0, n % 6, n, 5]) != b"az");
        assert!(damaged.count() > 100);
    }
}
