//! Streams of an emulated host's messages, and what a decoder must make of them.
//!
//! A stream is whole frames, damaged ones, frames with any payload, and garbage. However it is cut,
//! the decoder finds the same; whatever surrounds it, it finds each whole frame that holds a
//! message; and it does not panic.

use std::collections::VecDeque;

use arbitrary::{Arbitrary, Unstructured};
use testcases::process::Stream;
use testcases::wire::{Decoder, Envelope, MAGIC, Message, frame};

/// The most pieces of one stream.
pub const MAX_PIECES: usize = 64;

/// A piece of a stream.
#[derive(Clone, Debug, Arbitrary)]
pub enum Piece {
    /// The frame of a message.
    Whole(Words),
    /// One with these bits of the byte at this place, modulo its length, inverted; or, if there are
    /// none, without that byte.
    Damaged(Words, u16, u8),
    /// The frame around these bytes.
    Around(Vec<u8>),
    /// Bytes that are no frame.
    Garbage(Vec<u8>),
    /// As a frame begins, with this length.
    Beginning(u32),
}

/// A message.
#[derive(Clone, Debug, Arbitrary)]
pub enum Words {
    /// The least one.
    Alive(u64),
    /// One with a number.
    Started(u32),
    /// One with text.
    Trouble(String),
    /// One with bytes.
    Output(Vec<u8>),
}

impl Words {
    fn envelope(&self) -> Envelope {
        let (at, message) = match self.clone() {
            Words::Alive(at) => (at, Message::Alive),
            Words::Started(index) => (1, Message::Started { index }),
            Words::Trouble(text) => (2, Message::Trouble(text)),
            Words::Output(bytes) => (3, Message::Output { stream: Stream::Out, bytes }),
        };
        Envelope { at, message }
    }
}

impl Piece {
    /// Its bytes; and the message, if it is a whole frame of one.
    fn bytes(&self) -> (Vec<u8>, Option<Envelope>) {
        let framed = |words: &Words| {
            let envelope = words.envelope();
            let payload = postcard::to_stdvec(&envelope).expect("a message is plain data");
            (frame(&payload), envelope)
        };
        match self {
            Piece::Whole(words) => {
                let (bytes, envelope) = framed(words);
                (bytes, Some(envelope))
            }
            Piece::Damaged(words, at, bits) => {
                let (mut bytes, _) = framed(words);
                let at = usize::from(*at) % bytes.len();
                match bits {
                    0 => drop(bytes.remove(at)),
                    bits => bytes[at] ^= bits,
                }
                (bytes, None)
            }
            Piece::Around(payload) => (frame(payload), None),
            Piece::Garbage(bytes) => (bytes.clone(), None),
            Piece::Beginning(len) => {
                let words = [*len, !*len, 0].map(u32::to_le_bytes);
                ([&MAGIC[..], words.as_flattened()].concat(), None)
            }
        }
    }
}

/// What a decoder found, and how many bytes it left over.
pub fn decode(stream: &[u8], mut cut: impl FnMut() -> usize) -> (Vec<Envelope>, u64) {
    let mut decoder = Decoder::default();
    let (mut found, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let (now, later) = rest.split_at(cut().clamp(1, rest.len()));
        found.extend(decoder.push(now));
        rest = later;
    }
    found.extend(decoder.finish());
    (found, decoder.garbage_bytes())
}

/// The stream that `bytes` describe, and the lengths of the parts it comes in.
pub fn stream(bytes: &[u8]) -> (Vec<Piece>, [u8; 4]) {
    let mut input = Unstructured::new(bytes);
    let cuts = input.arbitrary().unwrap_or_default();
    let mut pieces = Vec::new();
    while !input.is_empty() && pieces.len() < MAX_PIECES {
        pieces.extend(input.arbitrary::<Piece>());
    }
    (pieces, cuts)
}

/// What the target `wire` does with its input. Returns how many messages and how much garbage there
/// was.
///
/// # Panics
/// When the decoder does what it must not.
pub fn check(bytes: &[u8]) -> (usize, u64) {
    check_with(bytes, false)
}

/// The same; with `whole`, a message that is whole comes last.
///
/// # Panics
/// As [`check`].
pub fn check_with(bytes: &[u8], whole: bool) -> (usize, u64) {
    let (mut pieces, cuts) = stream(bytes);
    if whole {
        pieces.push(Piece::Whole(Words::Alive(bytes.len() as u64)));
    }
    let (mut stream, mut sent) = (Vec::new(), VecDeque::new());
    for piece in &pieces {
        let (bytes, whole) = piece.bytes();
        stream.extend(bytes);
        sent.extend(whole);
    }
    let (found, garbage) = decode(&stream, || usize::MAX);
    let mut cuts = cuts.iter().cycle().map(|&cut| usize::from(cut));
    let (cut, left) = decode(&stream, || cuts.next().unwrap_or(1));
    assert!(found == cut && garbage == left, "it matters how the stream is cut: {pieces:?}");
    assert!(garbage + 17 * found.len() as u64 <= stream.len() as u64, "{pieces:?}");
    // What is damaged, or only seems to begin here, may hold whole frames of its own.
    for envelope in &found {
        if sent.front() == Some(envelope) {
            sent.pop_front();
        }
    }
    assert!(sent.is_empty(), "{sent:?} of {pieces:?} are lost");
    (found.len(), garbage)
}
