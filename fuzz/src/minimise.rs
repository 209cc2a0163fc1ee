//! The least script, or the least input, that still shows something.

use vmm::access::{Access, Dir, Size, Space};
use vmm::exit::Exit;
use vmm::script::{Op, Script};

use crate::targets::Target;

/// How often an input may be tried, so that a large one ends.
const TRIES: usize = 4000;

/// Removes steps from `script`, in runs that get shorter, as long as `shows` holds for what is
/// left. If it does not hold for the script itself, that is what is returned.
pub fn minimise(script: &Script, shows: impl Fn(&Script) -> bool) -> Script {
    shorten(script, TRIES, &mut 0, &shows)
}

/// As [`minimise`], and then makes what is left simpler, operation by operation: values get fewer bits,
/// memory and input fewer bytes, time fewer digits, exits fewer details. `most` bounds how often `shows` is
/// asked.
pub fn simplify(script: &Script, most: usize, shows: impl Fn(&Script) -> bool) -> Script {
    let mut tries = 0;
    let mut least = shorten(script, most, &mut tries, &shows);
    loop {
        let mut better = false;
        for at in 0..least.steps.len() {
            // What is simpler is looked at anew: it may have got simpler still.
            while let Some(found) = simpler(&least.steps[at].op).into_iter().find_map(|op| {
                let mut tried = least.clone();
                tried.steps[at].op = op;
                tries += 1;
                (tries <= most && shows(&tried)).then_some(tried)
            }) {
                (least, better) = (found, true);
            }
        }
        if !better || tries > most {
            return least;
        }
        least = shorten(&least, most, &mut tries, &shows);
    }
}

fn shorten(
    script: &Script,
    most: usize,
    tries: &mut usize,
    shows: impl Fn(&Script) -> bool,
) -> Script {
    let mut least = script.clone();
    let mut run = least.steps.len().div_ceil(2);
    while run > 0 {
        let (mut at, mut shorter) = (0, false);
        while at < least.steps.len() && *tries < most {
            let mut tried = least.clone();
            tried.steps.drain(at..(at + run).min(least.steps.len()));
            *tries += 1;
            if shows(&tried) {
                (least, shorter) = (tried, true);
            } else {
                at += run;
            }
        }
        // Single steps are gone over until none can go.
        if run > 1 || !shorter || *tries >= most {
            run /= 2;
        }
    }
    least
}

/// Operations that do less than this one, the least first. Each is less by a measure that cannot grow, so
/// that going from one to the next ends.
fn simpler(op: &Op) -> Vec<Op> {
    match op {
        Op::Exit { cpu, exit } => {
            let exits = match *exit {
                Exit::Io(access) => accesses(access).into_iter().map(Exit::Io).collect(),
                Exit::Rdmsr { index } => {
                    let less = numbers(index.into()).into_iter();
                    less.map(|index| Exit::Rdmsr { index: index as u32 }).collect()
                }
                Exit::Wrmsr { index, value } => {
                    numbers(value).into_iter().map(|value| Exit::Wrmsr { index, value }).collect()
                }
                Exit::Hypercall { nr, args } => {
                    let less = numbers(args[0]).into_iter();
                    less.map(|first| Exit::Hypercall { nr, args: [first, args[1], args[2]] })
                        .collect()
                }
                _ => Vec::new(),
            };
            exits.into_iter().map(|exit| Op::Exit { cpu: *cpu, exit }).collect()
        }
        Op::Ram { addr, bytes, after } => {
            let mut less: Vec<_> = contents(bytes)
                .into_iter()
                .filter(|bytes| !bytes.is_empty())
                .map(|bytes| Op::Ram { addr: *addr, bytes, after: *after })
                .collect();
            if *after > 0 {
                less.push(Op::Ram { addr: *addr, bytes: bytes.clone(), after: 0 });
            }
            less
        }
        Op::Input { device, bytes } => contents(bytes)
            .into_iter()
            .map(|bytes| Op::Input { device: device.clone(), bytes })
            .collect(),
        Op::Advance(by) => {
            let mut less = vec![1, by / 2, by / 10 * 10, by / 1000 * 1000];
            let digits = by.checked_ilog10().unwrap_or(0);
            less.push(10u64.saturating_pow(digits));
            less.retain(|less| less < by && *less > 0);
            less.sort_unstable();
            less.into_iter().map(Op::Advance).collect()
        }
        Op::Timer | Op::SaveRestore | Op::Reset => Vec::new(),
    }
}

fn accesses(access: Access) -> Vec<Access> {
    let Access { space, addr, size, dir } = access;
    let mut less = Vec::new();
    for narrower in Size::ALL.into_iter().filter(|narrower| *narrower < size) {
        let dir = match dir {
            Dir::Read => Dir::Read,
            Dir::Write(value) => Dir::Write(value & narrower.mask()),
        };
        less.push(Access { space, addr, size: narrower, dir });
    }
    if let Dir::Write(value) = dir {
        let values = numbers(value & size.mask()).into_iter();
        less.extend(values.map(|value| Access::write(space, addr, size, value)));
    }
    // Where MMIO lies on no dword, the dword may do.
    if space == Space::Mmio && addr % 4 != 0 {
        less.push(Access { addr: addr & !3, ..access });
    }
    less
}

/// Numbers with fewer bits than this one.
fn numbers(value: u64) -> Vec<u64> {
    let mut less = vec![0, 1];
    if value.count_ones() > 1 {
        less.extend((0..64).rev().filter(|bit| value >> bit & 1 == 1).map(|bit| 1 << bit));
        let halves = [value & 0xffff_ffff, value & 0xffff_ffff_0000_0000, value & !0xff];
        less.extend(halves);
        less.extend(
            (0..64).rev().filter(|bit| value >> bit & 1 == 1).map(|bit| value & !(1 << bit)),
        );
    }
    less.retain(|&less| less != value && (less.count_ones() < value.count_ones() || less < value));
    less.retain(|&less| less < value);
    less.dedup();
    less
}

/// Bytes that are fewer, or more of them 0.
fn contents(bytes: &[u8]) -> Vec<Vec<u8>> {
    let n = bytes.len();
    let mut less = Vec::new();
    if n > 0 {
        less.push(bytes[..n / 2].to_vec());
        less.push(bytes[..n - 1].to_vec());
        less.push(bytes[1..].to_vec());
    }
    for at in (0..n).filter(|&at| bytes[at] != 0).take(64) {
        let mut zeroed = bytes.to_vec();
        zeroed[at] = 0;
        less.push(zeroed);
    }
    less.retain(|less| less != bytes);
    less
}

/// The least bytes for which `shows` holds, asked at most `most` times: runs of them are taken out, and
/// those that stay become 0 where that will do.
pub fn bytes(input: &[u8], most: usize, shows: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let (mut least, mut tries) = (input.to_vec(), 0);
    let mut run = least.len().div_ceil(2);
    while run > 0 {
        let (mut at, mut shorter) = (0, false);
        while at < least.len() && tries < most {
            let mut tried = least.clone();
            tried.drain(at..(at + run).min(least.len()));
            tries += 1;
            if shows(&tried) {
                (least, shorter) = (tried, true);
            } else {
                at += run;
            }
        }
        if run > 1 || !shorter || tries >= most {
            run /= 2;
        }
    }
    for at in 0..least.len() {
        let was = std::mem::replace(&mut least[at], 0);
        tries += 1;
        if was != 0 && (tries > most || !shows(&least)) {
            least[at] = was;
        }
    }
    least
}

/// The least input of a target whose inputs are no scripts: one that is what the target reads, if that shows
/// the same, so that nothing of it hangs on what other bytes make.
pub fn input(target: &Target, input: &[u8], most: usize, shows: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    match target.verbatim(input) {
        Some((before, whole)) if shows(&whole) => {
            let (before, made) = whole.split_at(before);
            let with = |made: &[u8]| [before, made].concat();
            with(&bytes(made, most, |made| shows(&with(made))))
        }
        _ => bytes(input, most, shows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::script::BoardSpec;

    #[test]
    fn what_does_not_matter_becomes_simple() {
        let write = |addr, value| Op::io(Access::write(Space::Mmio, addr, Size::B8, value));
        let ops = [
            write(0xfed0_0000, 0x1234),
            Op::Advance(123_456_789),
            Op::Input { device: "com1".into(), bytes: vec![1, 2, 3, 4] },
            write(0xfed0_0008, 0xffff_0403),
            Op::Reset,
        ];
        let script = Script::new(BoardSpec::default(), ops);
        // It takes bit 10 of a write, after a second byte of input that is not 0.
        let shows = |script: &Script| {
            let mut input = false;
            script.steps.iter().any(|step| match &step.op {
                Op::Input { bytes, .. } => {
                    input |= bytes.get(1).is_some_and(|&byte| byte > 0);
                    false
                }
                Op::Exit { exit: Exit::Io(Access { dir: Dir::Write(v), .. }), .. } => {
                    input && v >> 10 & 1 == 1
                }
                _ => false,
            })
        };
        let least = simplify(&script, 1000, shows);
        let ops: Vec<String> = least.steps.iter().map(|step| step.op.to_string()).collect();
        assert_eq!(ops, ["input com1 \"\\x00\\x02\"", "write 0xfed00008 2 0x400"]);
    }

    #[test]
    fn bytes_shrink_to_what_matters() {
        let input: Vec<u8> = (1..=200).collect();
        let least = bytes(&input, 1000, |bytes| bytes.contains(&77) && bytes.len() >= 3);
        assert_eq!(least.len(), 3);
        assert_eq!(least.iter().filter(|&&byte| byte == 0).count(), 2, "{least:?}");
    }

    #[test]
    fn what_a_reader_reads_is_said_as_it_is() {
        let options = crate::targets::named("options").expect("a target");
        let sound: Vec<u8> = (0..60).collect();
        let made = options.made(&sound).expect("it reads bytes");
        let word = made.windows(4).next().expect("some bytes").to_vec();
        let has = |bytes: &[u8]| {
            options.made(bytes).is_some_and(|made| made.windows(4).any(|at| *at == word))
        };
        let least = input(options, &sound, 1000, has);
        assert_eq!(least, crate::forms::raw(&word));
    }

    #[test]
    fn what_shows_nothing_stays() {
        let script = Script::new(BoardSpec::default(), [Op::Reset, Op::Timer]);
        assert_eq!(simplify(&script, 1000, |_| false), script);
        assert_eq!(bytes(&[1, 2], 1000, |_| false), [1, 2]);
    }
}
