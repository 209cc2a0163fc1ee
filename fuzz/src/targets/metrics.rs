//! KVM's statistics: files as a host writes them, damaged ones, and any bytes.

use vmm::hv::kvm::stats::{Layout, parse};
use vmm::stats::metric::{Metric, merged};
use vmm::stats::{kvm_table, name_of, value_of};

use super::{Said, Subject, Target};
use crate::forms::{Choices, How, how};

/// Bytes of a file's header, and of a descriptor before its name (Linux, Documentation/virt/kvm/api.rst, 4.133).
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// The most bytes of one part of a file that are read.
const MOST: usize = 1 << 20;

pub static KVM_STATS: Target = Target {
    name: "kvm-stats",
    about: "the statistics that KVM tells of itself",
    subject: Subject::Bytes {
        make: made,
        check,
        canary: |b| parse(b).is_ok_and(|m| m.len() > 2 && m.iter().any(Metric::is_histogram)),
    },
    sources: &["vmm/src/hv/kvm/stats/format.rs"],
    beyond: &[],
    floor: 90,
    uncovered: "",
    words: &[],
    seeds: Vec::new,
};

/// A file that these bytes make.
fn made(bytes: &[u8]) -> Vec<u8> {
    let (how, rest) = how(bytes);
    if how == How::Raw {
        return rest.to_vec();
    }
    let mut choices = Choices(rest);
    let mut file = sound(&mut choices);
    if how == How::Damaged {
        for _ in 0..=choices.below(3) {
            let word = (choices.number(32) as u32).to_le_bytes();
            // Mostly a number of the header or of the first descriptors.
            let at = 4 * choices.below(40) % file.len().saturating_sub(3).max(1);
            if let Some(bytes) = file.get_mut(at..at + 4) {
                bytes.copy_from_slice(&word);
            }
        }
        if choices.byte() & 3 == 0 {
            file.truncate(file.len() * choices.below(256) / 256);
        }
    }
    file
}

/// A file that is right. A few of its statistics are of kinds that nobody knows.
fn sound(choices: &mut Choices<'_>) -> Vec<u8> {
    let (count, name) = (choices.below(7), 8 + choices.below(56));
    let (mut descriptors, mut values) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let mut digit = |known: usize| match choices.byte() {
            0..=7 => 15,
            byte => usize::from(byte) % known,
        };
        let (kind, unit, base) = (digit(5), digit(5), digit(2));
        let flags = (kind | unit << 4 | base << 8) as u32;
        let size = if kind >= 3 { choices.below(70) } else { 1 };
        descriptors.extend(flags.to_le_bytes());
        descriptors.extend((choices.number(16) as u16).to_le_bytes());
        descriptors.extend((size as u16).to_le_bytes());
        descriptors.extend((8 * values.len() as u32).to_le_bytes());
        descriptors.extend((choices.number(32) as u32).to_le_bytes());
        let letters = 1 + choices.below(name - 1);
        let text = (0..letters).map(|_| b'a' + choices.byte() % 26);
        descriptors.extend(text.chain(std::iter::repeat_n(0, name - letters)));
        values.extend((0..size).map(|_| choices.number(64)));
    }
    let at = HEADER + choices.below(64);
    let words = [0, name, count, HEADER, at, at + descriptors.len()];
    let mut file: Vec<u8> = words.iter().flat_map(|&word| (word as u32).to_le_bytes()).collect();
    file.resize(at, b'x');
    file.extend(descriptors);
    file.extend(values.iter().flat_map(|value: &u64| value.to_le_bytes()));
    file
}

/// What is told of a file takes no more memory than it may, has names that a terminal can show, and is read as the
/// live view reads it: header and descriptors once, values again.
fn check(bytes: &[u8]) -> Said {
    let metrics = parse(bytes).map_err(|e| e.to_string())?;
    let values: usize = metrics.iter().map(|metric| metric.values.len()).sum();
    assert!(8 * values <= MOST, "{values} values");
    assert!(DESCRIPTOR * metrics.len() <= bytes.len(), "more statistics than descriptors");
    for metric in &metrics {
        assert!(!metric.name.is_empty() && metric.name.bytes().all(|b| b.is_ascii_graphic()));
        assert!([2, 10].contains(&metric.base));
        assert!(name_of(metric).starts_with(&metric.name));
        let told = value_of(metric);
        let shown = metric.values.iter().filter(|value| **value != 0).count();
        assert!(!metric.is_histogram() || told.split_whitespace().count() == shown, "{told}");
    }
    let twice = merged([&metrics[..], &metrics].into_iter());
    assert!(twice.len() <= metrics.len());
    assert!(kvm_table(&twice).lines().count() <= metrics.len());
    let at = bytes[16..20].try_into().map_or(0, u32::from_le_bytes) as usize;
    let layout = Layout::new(bytes, &bytes[at.min(bytes.len())..]).map_err(|e| e.to_string())?;
    let (data, len) = layout.data_at();
    let data = usize::try_from(data).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
    let data = data.get(..len).unwrap_or(data);
    assert_eq!(layout.metrics(data).as_ref(), Ok(&metrics), "read in parts");
    Ok(())
}
