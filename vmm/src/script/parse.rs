//! Reading the text form. Whatever the bytes are, this ends with a script or with an error that
//! names the place; a reader holds one line and one step at a time.

use std::io::{self, BufRead, Read};

use super::cursor::{Cursor, Line, shown};
use super::{BoardSpec, MAX_BYTES, Script, Step, VERSION};

/// The longest line that is read, in bytes: the widest operation, each of its bytes escaped.
const MAX_LINE: usize = 4 * MAX_BYTES + 1024;

/// The most effects of one operation that are read.
const MAX_EFFECTS: usize = 64 << 10;

/// What is wrong with the text of a script.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: found {found}, expected {expected}")]
pub struct ParseError {
    /// The line; the first is 1.
    pub line: u64,
    /// The byte in that line; the first is 1.
    pub column: usize,
    /// What stands there.
    pub found: String,
    /// What should.
    pub expected: String,
}

/// Why a script could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Its text is wrong.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The host did not give it.
    #[error("after line {line}: the rest cannot be read: {source}")]
    Read {
        /// The last line that was read.
        line: u64,
        /// What the host said.
        source: io::Error,
    },
}

/// Reads a whole script.
///
/// # Errors
/// When the text is no script.
pub fn parse(text: &[u8]) -> Result<Script, ParseError> {
    let all = || -> Result<Script, ScriptError> {
        let mut reader = Reader::new(text)?;
        let mut steps = Vec::new();
        while let Some((_, step)) = reader.next_step()? {
            steps.push(step);
        }
        Ok(Script { board: reader.board, all_effects: reader.all_effects, steps })
    };
    all().map_err(|e| match e {
        ScriptError::Parse(e) => e,
        ScriptError::Read { .. } => unreachable!("bytes in memory can be read"),
    })
}

/// Reads a script step by step, in constant memory.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    buf: Vec<u8>,
    /// `buf` holds a line that has not been looked at.
    ahead: bool,
    cpu: u16,
    pending: Option<(u64, Step)>,
    board: BoardSpec,
    all_effects: bool,
}

impl<R: BufRead> Reader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When it is no header of a script, or cannot be read.
    pub fn new(input: R) -> Result<Reader<R>, ScriptError> {
        let board = BoardSpec::default();
        let (buf, pending) = (Vec::new(), None);
        let mut reader = Reader {
            input,
            line: 0,
            buf,
            ahead: false,
            cpu: 0,
            pending,
            board,
            all_effects: false,
        };
        reader.fill()?;
        reader.first_line()?;
        // A file that ends here leaves an empty line, whose end is then what is found.
        reader.fill_with_words()?;
        reader.board = reader.cursor().board()?;
        if reader.fill_with_words()? {
            let listed = reader.cursor().listed()?;
            (reader.all_effects, reader.ahead) = (listed, !listed);
        }
        Ok(reader)
    }

    /// The board that the script is for.
    pub fn board(&self) -> &BoardSpec {
        &self.board
    }

    /// See [`Script::all_effects`].
    pub fn all_effects(&self) -> bool {
        self.all_effects
    }

    /// The next step and the line of its operation; `None` at the end.
    ///
    /// # Errors
    /// When the text is wrong, or cannot be read.
    pub fn next_step(&mut self) -> Result<Option<(u64, Step)>, ScriptError> {
        loop {
            if !std::mem::take(&mut self.ahead) && !self.fill_with_words()? {
                return Ok(self.pending.take());
            }
            let mut cursor = Cursor::new(self.line, &self.buf);
            match cursor.line(self.cpu, self.board.cpus)? {
                Line::Cpu(cpu) => self.cpu = cpu,
                Line::Effect(effect) => {
                    let expected = match &mut self.pending {
                        Some((_, step)) if step.effects.len() < MAX_EFFECTS => {
                            step.effects.push(effect);
                            continue;
                        }
                        Some(_) => format!("at most {MAX_EFFECTS} effects of one operation"),
                        None => "an operation before its effects".to_owned(),
                    };
                    return Err(cursor.error(1, "an effect".to_owned(), expected).into());
                }
                Line::Step(step) => {
                    if let Some(done) = self.pending.replace((self.line, step)) {
                        return Ok(Some(done));
                    }
                }
            }
        }
    }

    fn cursor(&self) -> Cursor<'_> {
        Cursor::new(self.line, &self.buf)
    }

    /// Gets the next line, without its newline. `false` at the end.
    fn fill(&mut self) -> Result<bool, ScriptError> {
        self.buf.clear();
        let got = (&mut self.input)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut self.buf)
            .map_err(|source| ScriptError::Read { line: self.line, source })?;
        self.line += 1;
        if self.buf.last() == Some(&b'\n') {
            self.buf.pop();
        }
        if self.buf.len() > MAX_LINE {
            let (found, expected) = ("a longer one", format!("a line of {MAX_LINE} bytes or less"));
            return Err(self.cursor().error(MAX_LINE + 1, found.to_owned(), expected).into());
        }
        Ok(got > 0)
    }

    /// Gets the next line that has a word. `false` at the end; the line is then empty.
    fn fill_with_words(&mut self) -> Result<bool, ScriptError> {
        while self.fill()? {
            if !self.cursor().is_blank() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn first_line(&self) -> Result<(), ParseError> {
        let want = format!("# exitlab script {VERSION}");
        let words = || self.buf.split(|b| b.is_ascii_whitespace()).filter(|w| !w.is_empty());
        if words().eq(want.as_bytes().split(|&b| b == b' ')) {
            return Ok(());
        }
        let expected = if words().take(3).eq([&b"#"[..], b"exitlab", b"script"]) {
            format!("`{want}`: this VMM reads no other version")
        } else {
            format!("`{want}`")
        };
        Err(self.cursor().error(1, shown(&self.buf), expected))
    }
}
