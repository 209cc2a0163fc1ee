//! The decoder of what emulated hosts report finds what is there, on streams that no fuzzer chose.

mod common;

use common::input;
use fuzz::stream::{self, Stream};
use testcases::wire::{Decoder, MAX_PAYLOAD, frame};

#[test]
fn the_decoder_finds_what_is_there() {
    for n in 0..3000 {
        let stream = stream::generate(&input(n));
        if let Err(what) = stream::check(&stream) {
            panic!("input {n}: {what}\n{stream:02x?}");
        }
    }
}

#[test]
fn the_longest_frames_and_none_at_all() {
    let longest = frame(&vec![0xff; MAX_PAYLOAD]);
    let longer = frame(&vec![0; MAX_PAYLOAD + 1]);
    for bytes in [vec![], longest.clone(), longest[..MAX_PAYLOAD].to_vec(), longer] {
        let stream = Stream { bytes, pieces: vec![4096, 1] };
        assert_eq!(stream::check(&stream), Ok(()), "{} bytes", stream.bytes.len());
    }
    assert_eq!(stream::generate(&[]), Stream { bytes: vec![], pieces: vec![1] });
}

/// A generator that reaches nothing finds nothing, and looks well.
#[test]
fn the_streams_hold_messages_and_garbage_and_both_entangled() {
    let mut seen = [0; 3];
    for n in 0..3000 {
        let stream = stream::generate(&input(n));
        let mut decoder = Decoder::default();
        let mut messages = decoder.push(&stream.bytes).len();
        let late = decoder.finish().len();
        messages += late;
        let of = [messages > 5, messages > 1 && decoder.garbage_bytes() > 100, late > 0];
        seen.iter_mut().zip(of).for_each(|(seen, of)| *seen += usize::from(of));
    }
    assert!(
        seen.iter().all(|&n| n >= 20),
        "many messages, some in garbage, some at the end: {seen:?}"
    );
}
