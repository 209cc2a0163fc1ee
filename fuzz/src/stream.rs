//! Streams of what an emulated host writes to its result channel, and the law that a
//! [`Decoder`] obeys on each.

use arbitrary::{Result, Unstructured};
use testcases::process::{Ended, Stream as Output};
use testcases::runner::{CaseReport, Log};
use testcases::verdict::{Outcome, Verdict};
use testcases::wire::{Decoder, Envelope, MAGIC, MAX_PAYLOAD, Message, frame};

/// The length of what stands before a frame's payload, in bytes.
const HEADER: usize = 16;

/// What a decoder keeps of garbage at most, in bytes: 16 KiB of its beginning, as much of its end, and
/// a line between them.
const MAX_EXCERPT: usize = (32 << 10) + 100;

/// The most parts of a stream.
const MAX_PARTS: usize = 24;

/// A stream, and how it arrives.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stream {
    /// All of its bytes.
    pub bytes: Vec<u8>,
    /// The lengths of the pieces that it comes in, over and over; none is 0.
    pub pieces: Vec<usize>,
}

/// Makes a stream: frames, broken and whole, between garbage that often looks like them.
pub fn generate(bytes: &[u8]) -> Stream {
    let mut input = Unstructured::new(bytes);
    let mut stream = Stream::default();
    // When the input ends within a part, that part is left out.
    let _ = fill(&mut input, &mut stream);
    if stream.pieces.is_empty() {
        stream.pieces.push(1);
    }
    stream
}

fn fill(input: &mut Unstructured<'_>, stream: &mut Stream) -> Result<()> {
    for _ in 0..input.int_in_range(1..=4)? {
        stream.pieces.push(1 + usize::from(input.arbitrary::<u8>()?));
    }
    for _ in 0..MAX_PARTS {
        if input.is_empty() {
            break;
        }
        let part = part(input)?;
        stream.bytes.extend(part);
    }
    Ok(())
}

fn part(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    Ok(match input.int_in_range(0..=6)? {
        0 => few(input)?,
        1 => MAGIC[..input.int_in_range(1..=MAGIC.len())?].to_vec(),
        2 => message(input)?,
        3 => {
            let mut broken = message(input)?;
            let at = input.choose_index(broken.len())?;
            match input.int_in_range(0..=2)? {
                0 => broken[at] = input.arbitrary()?,
                1 => drop(broken.remove(at)),
                _ => broken.truncate(at),
            }
            broken
        }
        // A frame that holds no message, or one and more.
        4 => frame(&few(input)?),
        5 => frame(&message(input)?),
        // A header, often of more than follows.
        _ => {
            let len = match input.arbitrary()? {
                true => input.int_in_range(0..=MAX_PAYLOAD as u32 + 1)?,
                false => input.arbitrary::<u8>()?.into(),
            };
            let words = [len, !len, input.arbitrary()?].map(u32::to_le_bytes);
            [&MAGIC[..], words.as_flattened()].concat()
        }
    })
}

/// Up to 63 bytes.
fn few(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = input.int_in_range(0..=63)?;
    Ok(input.bytes(len)?.to_vec())
}

/// The frame of a message.
fn message(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let message = match input.int_in_range(0..=5)? {
        0 => Message::Alive,
        1 => Message::Started { index: input.arbitrary()? },
        2 => Message::Trouble(text(few(input)?)),
        3 => Message::Output { stream: Output::Out, bytes: few(input)? },
        4 => Message::Bye { status: input.arbitrary()? },
        _ => {
            let unrun = CaseReport::unrun(Verdict::new(Outcome::Fail, text(few(input)?)));
            let ended = Some(Ended::Signalled(input.arbitrary()?));
            let serial = Log { total: input.arbitrary()?, kept: few(input)? };
            let report = Box::new(CaseReport { ended, serial, ..unrun });
            Message::Ended { index: input.arbitrary()?, report }
        }
    };
    let envelope = Envelope { at: input.arbitrary()?, message };
    Ok(envelope.frame().expect("a short message has a frame"))
}

/// Holds a decoder against what a stream is by the definition of frames: the same messages, the same
/// number of other bytes, however the stream is cut, and no more kept of it than is said.
///
/// # Errors
/// What is different.
pub fn check(stream: &Stream) -> std::result::Result<(), String> {
    let (messages, others) = by_definition(&stream.bytes);
    let mut decoder = Decoder::default();
    let (mut found, mut rest) = (Vec::new(), &stream.bytes[..]);
    let mut pieces = stream.pieces.iter().cycle();
    while let (false, Some(&len)) = (rest.is_empty(), pieces.next()) {
        let (piece, later) = rest.split_at(len.clamp(1, rest.len()));
        found.extend(decoder.push(piece));
        rest = later;
    }
    found.extend(decoder.finish());
    if found != messages {
        return Err(format!("messages are {messages:?}, and the decoder finds {found:?}"));
    }
    if decoder.garbage_bytes() != others {
        let counted = decoder.garbage_bytes();
        return Err(format!("{others} bytes are no message, and the decoder counts {counted}"));
    }
    match decoder.garbage().len() {
        0..=MAX_EXCERPT => Ok(()),
        len => Err(format!("the decoder keeps {len} bytes of what is no message")),
    }
}

/// The messages in a stream that is there as a whole, and how many of its bytes are of none.
fn by_definition(bytes: &[u8]) -> (Vec<Envelope>, u64) {
    let (mut messages, mut others, mut at) = (Vec::new(), 0, 0);
    while at < bytes.len() {
        let Some(payload) = payload(&bytes[at..]) else {
            (at, others) = (at + 1, others + 1);
            continue;
        };
        let len = HEADER + payload.len();
        match postcard::take_from_bytes(payload) {
            Ok((envelope, [])) => messages.push(envelope),
            _ => others += len as u64,
        }
        at += len;
    }
    (messages, others)
}

/// The payload of the frame that these bytes begin with.
fn payload(bytes: &[u8]) -> Option<&[u8]> {
    let word = bytes.strip_prefix(&MAGIC)?.first_chunk()?;
    let len = u32::from_le_bytes(*word) as usize;
    let payload = bytes.get(HEADER..HEADER + len).filter(|_| len <= MAX_PAYLOAD)?;
    bytes.starts_with(&frame(payload)).then_some(payload)
}
