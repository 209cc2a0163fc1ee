//! How the first process of an emulated host reports: messages in frames, on a channel that others
//! write to as well.
//!
//! The debug console of a PC (port 0xE9) has no end, no flow control and one writer that this crate
//! does not know: the firmware. So a frame says where it begins and how long it is, and holds a
//! checksum; what stands between frames is garbage that a [`Decoder`] counts and keeps some of.
//!
//! | bytes | meaning |
//! |---|---|
//! | 4 | [`MAGIC`] |
//! | 4 | length of the payload, little endian; at most [`MAX_PAYLOAD`] |
//! | 4 | the same with every bit inverted: a broken length must not swallow what follows |
//! | 4 | CRC-32 (IEEE 802.3) of the payload, little endian |
//! | n | an [`Envelope`] in postcard's format |
//! | 1 | [`END`]: a frame that lost a byte must not take the next one's first in its place |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::Bounded;
use crate::facts_table::FactsTable;
use crate::job::REFERENCE;
use crate::process::Stream;
use crate::runner::CaseReport;

/// The version of the messages. Both ends come from one build; this tells when they do not.
pub const PROTOCOL: u32 = 3;

/// How a frame begins: no text and no UTF-8 has these bytes in a row.
pub const MAGIC: [u8; 4] = [0x00, b'X', b'L', 0xff];

/// How a frame ends; not as one begins.
pub const END: u8 = b'\n';

/// The longest payload of a frame, in bytes.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// The length of what stands before the payload, in bytes.
const HEADER: usize = 16;

/// The length of what stands around the payload.
const AROUND: usize = HEADER + 1;

/// What is kept of the garbage: so much of its beginning and of its end. Bytes.
const KEEP: (usize, usize) = (16 << 10, 16 << 10);

/// A message, and when it was sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The sender's `CLOCK_MONOTONIC`, in nanoseconds.
    pub at: u64,
    /// The message.
    pub message: Message,
}

/// What an agent reports. `Hello` comes first and `Bye` last; `Facts` come before any case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The agent has been started.
    Hello(Hello),
    /// Something did not work. What follows says how bad it is: `Bye`, if the agent gave up.
    Trouble(String),
    /// What the host offers, with the modules loaded.
    Facts(Box<FactsTable>),
    /// How fast guests run.
    Speed(Speed),
    /// A case starts now.
    Started {
        /// Its index in the job.
        index: u32,
    },
    /// A case ended.
    Ended {
        /// Its index in the job.
        index: u32,
        /// What came out of it.
        report: Box<CaseReport>,
    },
    /// A command wrote this.
    Output {
        /// Where to.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
    },
    /// The agent is alive. Sent every [`ALIVE`] of the host's time, whatever else is.
    Alive,
    /// The agent is done, and the host is about to be switched off.
    Bye {
        /// The exit status of the command or the shell; for other jobs 0 if it was done.
        status: u8,
    },
}

/// How often [`Message::Alive`] is sent, in the host's time.
pub const ALIVE: Duration = Duration::from_secs(1);

/// Who reports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's [`PROTOCOL`].
    pub protocol: u32,
    /// The kernel's release.
    pub kernel: String,
    /// The kernel's command line.
    pub cmdline: String,
}

/// How fast guests run on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    /// What the least guest took from the start of `vmm` to its end, by the host's clock.
    pub least: Duration,
}

impl Speed {
    /// How many times slower than an ordinary machine that is; 1 at least.
    pub fn slowness(&self) -> f64 {
        (self.least.as_secs_f64() / REFERENCE.as_secs_f64()).max(1.0)
    }
}

/// Why there is no frame for a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is too long, with so many bytes.
    #[error("a message of {0} bytes is longer than the {MAX_PAYLOAD} that a frame takes")]
    TooLong(usize),
    /// It cannot be written down.
    #[error("a message cannot be encoded: {0}")]
    Encoding(#[from] postcard::Error),
}

impl Envelope {
    /// The message's frame.
    ///
    /// # Errors
    /// When it is too long for one.
    pub fn frame(&self) -> Result<Vec<u8>, FrameError> {
        let payload = postcard::to_stdvec(self)?;
        match payload.len() {
            ..=MAX_PAYLOAD => Ok(frame(&payload)),
            len => Err(FrameError::TooLong(len)),
        }
    }
}

/// The frame around a payload, which must not be longer than [`MAX_PAYLOAD`].
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let len = payload.len() as u32;
    let words = [len, !len, crc32fast::hash(payload)].map(u32::to_le_bytes);
    [&MAGIC[..], words.as_flattened(), payload, &[END]].concat()
}

/// Finds frames in a stream of bytes.
///
/// It holds at most one frame and the excerpt of the garbage, whatever it is fed.
#[derive(Clone, Debug)]
pub struct Decoder {
    /// What may yet become a frame: empty, or beginning as one does.
    pending: Vec<u8>,
    garbage: Bounded,
}

/// What the bytes at the beginning of a buffer are.
enum Found {
    /// A frame of this length, and what it holds.
    Frame(usize, Envelope),
    /// This many bytes that are no frame.
    Garbage(usize),
    /// What can be told only with this many bytes.
    Partial(usize),
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder { pending: Vec::new(), garbage: Bounded::new(KEEP.0, KEEP.1) }
    }
}

impl Decoder {
    /// Takes the next bytes of the stream and returns the messages that they complete, in order.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<Envelope> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            // No more than is wanted next is held: a header, and then its payload.
            let wanted = match look(&self.pending) {
                Found::Partial(len) => len,
                _ => HEADER,
            };
            let missing = wanted - self.pending.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
            self.take(&mut messages, false);
        }
        messages
    }

    /// Tells that the stream is over, and returns the messages that stood within what only seemed
    /// the beginning of a longer one.
    pub fn finish(&mut self) -> Vec<Envelope> {
        let mut messages = Vec::new();
        self.take(&mut messages, true);
        messages
    }

    /// Takes out of what is pending what can be told. At the end, that is all.
    fn take(&mut self, messages: &mut Vec<Envelope>, end: bool) {
        let mut done = 0;
        while done < self.pending.len() {
            let garbage = match look(&self.pending[done..]) {
                Found::Frame(len, envelope) => {
                    messages.push(envelope);
                    done += len;
                    continue;
                }
                Found::Garbage(len) => len,
                Found::Partial(_) if end => 1,
                Found::Partial(_) => break,
            };
            self.garbage.push(&self.pending[done..done + garbage]);
            done += garbage;
        }
        self.pending.drain(..done);
    }

    /// How many bytes were no frame.
    pub fn garbage_bytes(&self) -> u64 {
        self.garbage.total()
    }

    /// The beginning and the end of what was no frame.
    pub fn garbage(&self) -> Vec<u8> {
        self.garbage.contents()
    }
}

/// Looks at the beginning of a buffer.
fn look(bytes: &[u8]) -> Found {
    let magic = MAGIC.len().min(bytes.len());
    if bytes[..magic] != MAGIC[..magic] {
        // The next place where a frame can begin.
        let next = bytes.iter().skip(1).position(|&b| b == MAGIC[0]);
        return Found::Garbage(next.map_or(bytes.len(), |at| at + 1));
    }
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Found::Partial(HEADER);
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (len, crc) = (word(4), word(12));
    if word(8) != !len || len as usize > MAX_PAYLOAD {
        return Found::Garbage(MAGIC.len());
    }
    let Some(payload) = rest.get(..len as usize).filter(|_| rest.len() > len as usize) else {
        return Found::Partial(AROUND + len as usize);
    };
    // After a byte that was lost or added, the next frame may begin within what seems this one.
    if rest[payload.len()] != END || crc32fast::hash(payload) != crc {
        return Found::Garbage(MAGIC.len());
    }
    match postcard::take_from_bytes(payload) {
        Ok((envelope, [])) => Found::Frame(AROUND + payload.len(), envelope),
        _ => Found::Garbage(AROUND + payload.len()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::process::Ended;
    use crate::runner::Log;
    use crate::verdict::{Outcome, Verdict};

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let bytes = || vec(any::<u8>(), 0..300);
        let message = prop_oneof![
            Just(Message::Alive),
            any::<u32>().prop_map(|index| Message::Started { index }),
            "\\PC*".prop_map(Message::Trouble),
            bytes().prop_map(|bytes| Message::Output { stream: Stream::Err, bytes }),
            (any::<u32>(), bytes(), "\\PC*").prop_map(|(index, kept, reason)| {
                let unrun = CaseReport::unrun(Verdict::new(Outcome::Fail, reason));
                let serial = Log { total: 1 << 40, kept };
                let ended = Some(Ended::Exited(3));
                Message::Ended { index, report: Box::new(CaseReport { serial, ended, ..unrun }) }
            }),
        ];
        (any::<u64>(), message).prop_map(|(at, message)| Envelope { at, message })
    }

    /// Garbage, often with what begins a frame.
    fn garbage() -> impl Strategy<Value = Vec<u8>> {
        let magic = (0..=MAGIC.len()).prop_map(|n| MAGIC[..n].to_vec());
        vec(prop_oneof![vec(any::<u8>(), 0..40), magic], 0..4).prop_map(|parts| parts.concat())
    }

    /// What a decoder makes of a stream that comes in pieces of these lengths, over and over.
    fn decode(stream: &[u8], pieces: &[usize]) -> (Vec<Envelope>, u64) {
        let mut decoder = Decoder::default();
        let (mut all, mut rest) = (Vec::new(), stream);
        let mut pieces = pieces.iter().cycle();
        while !rest.is_empty() {
            let (now, later) = rest.split_at((*pieces.next().expect("some")).clamp(1, rest.len()));
            all.extend(decoder.push(now));
            assert!(decoder.pending.len() < AROUND + MAX_PAYLOAD);
            rest = later;
        }
        all.extend(decoder.finish());
        assert!(decoder.garbage().len() as u64 <= decoder.garbage_bytes() + 100);
        (all, decoder.garbage_bytes())
    }

    proptest! {
        #[test]
        fn frames_are_found_in_garbage_wherever_the_stream_is_cut(
            parts in vec((garbage(), envelopes()), 0..8),
            tail in garbage(),
            pieces in vec(1_usize..200, 1..10),
        ) {
            let mut stream = Vec::new();
            for (garbage, envelope) in &parts {
                stream.extend_from_slice(garbage);
                stream.extend(envelope.frame().expect("a short one"));
            }
            stream.extend_from_slice(&tail);
            let (messages, lost) = decode(&stream, &pieces);
            let sent: Vec<_> = parts.iter().map(|(_, envelope)| envelope.clone()).collect();
            prop_assert_eq!(messages, sent);
            let garbage: usize = parts.iter().map(|(garbage, _)| garbage.len()).sum();
            prop_assert_eq!(lost, (garbage + tail.len()) as u64);
        }

        #[test]
        fn a_broken_frame_costs_no_other_one(
            sent in vec(envelopes(), 3..6),
            at in any::<prop::sample::Index>(),
            change in prop_oneof![
                (1_u8..).prop_map(|bits| Some((bits, true))),
                (1_u8..).prop_map(|byte| Some((byte, false))),
                Just(None),
            ],
        ) {
            let frames: Vec<_> = sent.iter().map(|e| e.frame().expect("a short one")).collect();
            let mut broken = frames[1].clone();
            let at = at.index(broken.len());
            match change {
                Some((bits, true)) => broken[at] ^= bits,
                Some((byte, false)) => broken.insert(at, byte),
                None => drop(broken.remove(at)),
            }
            let stream = [&frames[..1], &[broken.clone()], &frames[2..]].concat().concat();
            let (messages, lost) = decode(&stream, &[7]);
            // A byte too many before or after a frame leaves it whole.
            let whole = messages.len() == sent.len();
            let expected: Vec<_> =
                (0..sent.len()).filter(|&i| whole || i != 1).map(|i| sent[i].clone()).collect();
            prop_assert_eq!(messages, expected);
            prop_assert_eq!(lost, if whole { 1 } else { broken.len() as u64 });
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in vec(any::<u8>(), 0..2000), payload in garbage()) {
            decode(&bytes, &[13]);
            let (messages, lost) = decode(&[&frame(&bytes)[..], &frame(&payload)].concat(), &[17]);
            prop_assert!(messages.is_empty() == (lost as usize == bytes.len() + payload.len() + 34));
        }
    }

    #[test]
    fn a_length_that_cannot_be_holds_nothing_up() {
        let alive = Envelope { at: 1, message: Message::Alive };
        let long = (MAX_PAYLOAD as u32 + 1).to_le_bytes();
        let not = (!(MAX_PAYLOAD as u32 + 1)).to_le_bytes();
        let mut stream = [&MAGIC[..], &long, &not, &[0; 4]].concat();
        stream.extend(alive.frame().expect("a short one"));
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&stream), [alive]);
        assert_eq!(decoder.garbage_bytes(), 16);
    }

    #[test]
    fn what_a_cut_off_frame_seems_to_hold_is_found_at_the_end() {
        let alive = Envelope { at: 1, message: Message::Alive };
        let mut stream = frame(&[0; 1000])[..20].to_vec();
        stream.extend(alive.frame().expect("a short one"));
        let mut decoder = Decoder::default();
        assert_eq!(decoder.push(&stream), []);
        assert_eq!(decoder.finish(), [alive]);
        assert_eq!(decoder.garbage_bytes(), 20);
    }

    #[test]
    fn the_longest_message_has_a_frame_and_a_longer_one_has_none() {
        let output = |len: usize| Envelope {
            at: 0,
            message: Message::Output { stream: Stream::Out, bytes: vec![b'x'; len] },
        };
        let over =
            postcard::to_stdvec(&output(MAX_PAYLOAD)).expect("plain data").len() - MAX_PAYLOAD;
        let longest = output(MAX_PAYLOAD - over);
        let (messages, lost) = decode(&longest.frame().expect("it fits"), &[1 << 16]);
        assert_eq!((messages, lost), (vec![longest], 0));
        let longer = output(MAX_PAYLOAD - over + 1).frame();
        assert_eq!(longer, Err(FrameError::TooLong(MAX_PAYLOAD + 1)));
    }
}
