//! A guest's recording against the script that it did, and against the board.

use std::fmt;

use payload_abi::replay::{BEGIN, END, TELL, after, before};
use vmm::access::{Access, Dir, Size, Space};
use vmm::exit::Exit;
use vmm::script::replay::{self, Trace};
use vmm::script::{Answer, Op, Script, Step};

use super::prepare::survives;
use super::{pieces, player};

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    /// How many operations of the script were compared.
    pub ops: usize,
    /// Why not all of them, if it is so: what the guest does afterwards means nothing.
    pub ended: Option<&'static str>,
}

/// Something that is not the same directly and in the guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Difference {
    /// The operation of the script, if it was one; the first is 0.
    pub op: Option<usize>,
    /// It as text.
    pub text: String,
    /// What there is directly.
    pub direct: String,
    /// What there is in the guest.
    pub guest: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { op, text, direct, guest } = self;
        if let Some(op) = op {
            write!(f, "operation {}, ", op + 1)?;
        }
        write!(f, "`{text}`: direct: {direct}; guest: {guest}")
    }
}

/// Holds the recording of a guest that did `script` against the script and against the board.
///
/// # Errors
/// The first difference.
///
/// # Panics
/// When the recording's board cannot be built.
pub fn compare(script: &Script, recording: &Script) -> Result<Compared, Difference> {
    let begin = position(&recording.steps, BEGIN);
    let Some(begin) = begin else {
        return Err(Difference {
            op: None,
            text: "begin".to_owned(),
            direct: "the script begins".to_owned(),
            guest: "no word of it: look at its serial port".to_owned(),
        });
    };
    let (trace, ended) = play(recording, begin);
    replay::check(recording, &trace).map_err(|d| {
        let (op, text) = (None, format!("{} ({} of the recording)", d.op, d.step + 1));
        Difference { op, text, direct: d.got, guest: d.expected }
    })?;
    let until = ended.map_or(recording.steps.len(), |(at, _)| at + 1);
    let mut seen = Seen { steps: &recording.steps[..until], at: begin + 1 };
    for (n, step) in script.steps.iter().enumerate() {
        let told = seen.operation(n, &step.op);
        let (direct, guest) = match told {
            Ok(()) => continue,
            Err(Unlike::Over) if ended.is_some() => {
                return Ok(Compared { ops: n, ended: ended.map(|(_, why)| why) });
            }
            Err(Unlike::Over) => ("goes on".to_owned(), "ended".to_owned()),
            Err(Unlike::Other(direct, guest)) => (direct, guest),
        };
        return Err(Difference { op: Some(n), text: step.op.to_string(), direct, guest });
    }
    match seen.next() {
        Some(access) if ended.is_none() && access.dir != Dir::Write(END.into()) => {
            let (text, guest) = ("end".to_owned(), format!("`{}`", Op::io(access)));
            Err(Difference { op: None, text, direct: "the script is over".to_owned(), guest })
        }
        _ => Ok(Compared { ops: script.steps.len(), ended: ended.map(|(_, why)| why) }),
    }
}

fn position(steps: &[Step], word: u32) -> Option<usize> {
    steps.iter().position(|step| is_told(&step.op, word))
}

/// Plays a recording directly. And where the guest stops to mean anything, if it does, with the reason: what
/// depends on the time can end it although no rehearsal did.
fn play(recording: &Script, begin: usize) -> (Trace, Option<(usize, &'static str)>) {
    let mut player = player(&recording.board);
    let (mut outcomes, mut ended, mut over) = (Vec::new(), None, false);
    for (at, step) in recording.steps.iter().enumerate() {
        let outcome = player.step(&step.op);
        over |= at > begin && is_told(&step.op, END);
        if at > begin && !over && ended.is_none() {
            let why = survives(&player, &outcome).err();
            // The recorder's own `ram` operations lie anywhere.
            let why = why.filter(|_| !matches!(step.op, Op::Ram { .. }));
            ended = why.map(|why| (at, why.words()));
        }
        outcomes.push(outcome);
    }
    (Trace { outcomes, end: player.end() }, ended)
}

fn is_told(op: &Op, word: u32) -> bool {
    let told = Access::write(Space::Port, TELL.into(), Size::B4, word.into());
    matches!(op, Op::Exit { exit: Exit::Io(access), .. } if *access == told)
}

/// Why a guest's exits are not an operation.
enum Unlike {
    /// There are no more.
    Over,
    /// What there is directly, and in the guest.
    Other(String, String),
}

/// A recording that is gone through.
struct Seen<'a> {
    steps: &'a [Step],
    at: usize,
}

impl Seen<'_> {
    /// The next access and its answer, past what happened without the guest. Another exit is told as text.
    fn step(&mut self) -> Result<(Access, Option<Answer>), Unlike> {
        loop {
            let step = self.steps.get(self.at).ok_or(Unlike::Over)?;
            self.at += 1;
            match &step.op {
                Op::Exit { exit: Exit::Io(access), .. } => return Ok((*access, step.expect)),
                Op::Exit { .. } => {
                    return Err(Unlike::Other("an access".to_owned(), format!("`{}`", step.op)));
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Option<Access> {
        self.step().ok().map(|(access, _)| access)
    }

    /// What the guest told.
    fn word(&mut self) -> Result<u64, Unlike> {
        let (access, _) = self.step()?;
        match access {
            Access { space: Space::Port, addr, size: Size::B4, dir: Dir::Write(word) }
                if addr == u64::from(TELL) =>
            {
                Ok(word)
            }
            other => {
                let (direct, guest) = ("one exit for it", format!("then `{}`", Op::io(other)));
                Err(Unlike::Other(direct.to_owned(), guest))
            }
        }
    }

    /// Goes past the exits of operation `n`, which must be these.
    fn operation(&mut self, n: usize, op: &Op) -> Result<(), Unlike> {
        let Op::Exit { exit: Exit::Io(access), .. } = op else { return Ok(()) };
        let mut answered = 0;
        for (done, piece) in pieces(access) {
            let (got, answer) = self.step()?;
            if got != piece {
                let text = |access| format!("`{}`", Op::io(access));
                return Err(Unlike::Other(text(piece), text(got)));
            }
            if let Some(Answer::Value(value)) = answer {
                answered |= value << (8 * done);
            }
        }
        if access.dir != Dir::Read {
            return Ok(());
        }
        let told = self.word()? | self.word()? << 32;
        let before = before(n as u64);
        let size = access.size.bytes() as u8;
        let must = after(before, size, answered);
        if told == must {
            return Ok(());
        }
        Err(Unlike::Other(
            format!("{answered:#x}, so that RAX goes from {before:#x} to {must:#x}"),
            format!("RAX is {told:#x}"),
        ))
    }
}
