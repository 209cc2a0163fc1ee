//! `vmm top`.

mod model;
mod view;

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{
    self, Event as Typed, KeyCode, KeyEvent, KeyEventKind, KeyModifiers,
};
use vmm::control::{Client, ClientError};
use vmm::host::events::{EndSignals, Event, wait};
use vmm::stats::{Snapshot, table};
use vmm::units;

use super::{USAGE, complain, say};
use model::Model;

/// Exit status when the terminal cannot be drawn on, or nobody reads what is told.
const UNTOLD: u8 = 14;
/// How long a key or a signal may wait.
const BEAT: Duration = Duration::from_millis(50);

/// Show what a running VM's exits cost, live: by reason, by device, by vCPU, and what KVM counts. The
/// VM was started with `vmm run --control PATH`. Rates and percentiles are those of the last interval.
#[derive(Debug, Args)]
pub struct Top {
    /// The VM's control socket.
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// How often to look (500ms, 1s).
    #[arg(long, short, value_name = "TIME", default_value = "1s", value_parser = units::duration)]
    interval: Duration,

    /// Print one table of all since the VM's start, and end.
    #[arg(long)]
    once: bool,

    /// The same as JSON, as --stats=FILE writes it.
    #[arg(long)]
    json: bool,
}

/// Why there is nothing to be seen.
#[derive(Debug, thiserror::Error)]
enum TopError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the terminal cannot be drawn on: {0}; `vmm top --once` needs none")]
    Terminal(io::Error),
    #[error("what was counted cannot be printed: {0}")]
    Output(io::Error),
}

impl Top {
    /// Shows; gives the exit status.
    pub fn main(self) -> u8 {
        match self.show() {
            Ok(()) => 0,
            Err(e) => {
                complain(&e);
                match e {
                    TopError::Client(_) => USAGE,
                    TopError::Terminal(_) | TopError::Output(_) => UNTOLD,
                }
            }
        }
    }

    fn show(&self) -> Result<(), TopError> {
        let mut client = Client::connect(&self.path)?;
        let first: Snapshot = client.ask("stats")?;
        if self.once || self.json {
            let text = match self.json {
                true => serde_json::to_string_pretty(&first).map_err(io::Error::from),
                false => Ok(table(&first)),
            };
            let mut out = io::stdout().lock();
            let written = text.and_then(|text| writeln!(out, "{}", text.trim_end()));
            return match written {
                // Whoever reads it has seen enough.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                written => written.map_err(TopError::Output),
            };
        }
        // Before the terminal is changed: it is put back after these, too.
        let signals = EndSignals::take().map_err(TopError::Terminal)?;
        // Puts the terminal back in a panic hook as well.
        let terminal = ratatui::try_init().map_err(TopError::Terminal);
        let watched = terminal.and_then(|mut terminal| {
            let mut model = Model::default();
            model.update(first);
            self.watch(&mut terminal, &mut client, &mut model, &signals)?;
            Ok(model.ended)
        });
        let restored = ratatui::try_restore().map_err(TopError::Terminal);
        if let Some(why) = watched? {
            say(format_args!("vmm: {why}\n"));
        }
        restored
    }

    /// Draws, and asks again each interval, until the user has seen enough.
    fn watch(
        &self,
        terminal: &mut DefaultTerminal,
        client: &mut Client,
        model: &mut Model,
        signals: &EndSignals,
    ) -> Result<(), TopError> {
        let who = format!("{}, process {}", self.path.display(), client.about().pid);
        let mut next = Instant::now() + self.interval;
        loop {
            let drawn = terminal.draw(|frame| view::draw(frame, model, &who));
            drawn.map_err(TopError::Terminal)?;
            if !self.turn(client, model, signals, &mut next)? {
                return Ok(());
            }
        }
    }

    /// Waits until there is something else to be drawn. `false` at the end.
    fn turn(
        &self,
        client: &mut Client,
        model: &mut Model,
        signals: &EndSignals,
        next: &mut Instant,
    ) -> Result<bool, TopError> {
        let ends = Some(Event::Readable(signals.as_raw_fd()));
        // Where that is none, keys come from the controlling terminal.
        let keys = Some(io::stdin()).filter(io::IsTerminal::is_terminal).map(|tty| tty.as_raw_fd());
        let events = [ends, keys.map(Event::Gone), keys.map(Event::Readable)];
        loop {
            let left = next.saturating_duration_since(Instant::now());
            // Not for crossterm to wait: it reads from a terminal that is gone for ever.
            let [ended, gone, _] =
                wait(events, Some(left.min(BEAT))).map_err(TopError::Terminal)?;
            if ended || gone {
                return Ok(false);
            }
            if event::poll(Duration::ZERO).map_err(TopError::Terminal)? {
                return Ok(match event::read().map_err(TopError::Terminal)? {
                    Typed::Key(key) if key.kind != KeyEventKind::Release => typed(model, key),
                    _ => true,
                });
            }
            if left.is_zero() {
                if model.ended.is_none() {
                    match client.ask("stats") {
                        Ok(snapshot) => model.update(snapshot),
                        // What was seen last stays there.
                        Err(e) => model.ended = Some(e.to_string()),
                    }
                }
                // From the answer on, so that an interval is one even where an answer took long.
                *next = Instant::now() + self.interval;
                return Ok(true);
            }
        }
    }
}

/// A key. `false` if it is the last.
fn typed(model: &mut Model, key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Char('s') => model.sort = model.sort.next(),
        KeyCode::Char('p' | ' ') => model.is_paused = !model.is_paused,
        KeyCode::Tab => model.turn(true),
        KeyCode::BackTab => model.turn(false),
        KeyCode::Right => model.choose(true),
        KeyCode::Left => model.choose(false),
        KeyCode::Down => model.scroll = (model.scroll + 1).min(200),
        KeyCode::Up => model.scroll = model.scroll.saturating_sub(1),
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests;
