//! From exec to a guest's first byte on the serial line, and what a VMM takes of memory beside its guest's.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::peers::{Guest, MARK};

/// Memory of each guest, in bytes: the command lines say the same.
pub const GUEST: u64 = 256 << 20;
/// How long after its first byte a VMM is looked at, when its start is over.
const SETTLED: Duration = Duration::from_millis(500);
/// How often somebody who waits looks whether the user wants to stop. Milliseconds.
const LOOK: u8 = 100;
/// So many last lines of standard error are told.
const LINES: usize = 4;

/// Why there is no first byte.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program cannot be run.
    #[error("cannot run {}: {source}", program.display())]
    NotRun {
        /// The program.
        program: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// It ended, or let the time pass.
    #[error("{how}, and its guest had written nothing to the serial line{said}")]
    Silent {
        /// How it went.
        how: String,
        /// The end of what it said.
        said: String,
    },
    /// Something of the host's failed.
    #[error("{what}: {source}")]
    Host {
        /// What was tried.
        what: String,
        /// What the host said.
        source: io::Error,
    },
    /// The user wants to stop.
    #[error("stopped")]
    Stopped,
}

fn host(what: impl Into<String>) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Host { what: what.into(), source }
}

/// A VMM and how it is told to run a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// Its name in reports.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments; `{elf}` and `{flat}` stand for the guest.
    pub arguments: Vec<OsString>,
    /// Variables that it needs.
    pub env: Vec<(String, OsString)>,
    /// It wants a terminal to read from.
    pub terminal: bool,
}

impl Subject {
    /// A command that runs one of the guests in `dir`.
    pub fn command(&self, dir: &Path, guest: Guest) -> Command {
        let mut command = Command::new(&self.program);
        for argument in &self.arguments {
            let Some(text) = argument.to_str() else {
                command.arg(argument);
                continue;
            };
            let file = |kind: &str| path(dir, guest, kind).display().to_string();
            command.arg(text.replace("{elf}", &file("elf")).replace("{flat}", &file("flat")));
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// What it reads from: nothing, or a terminal on which nobody types. The terminal lasts as long as the
    /// second value.
    ///
    /// # Errors
    /// The host has no terminal left.
    pub fn input(&self) -> Result<(Stdio, Option<OwnedFd>), StartError> {
        if !self.terminal {
            return Ok((Stdio::null(), None));
        }
        let pty = nix::pty::openpty(None, None).map_err(|e| host("openpty")(e.into()))?;
        Ok((pty.slave.into(), Some(pty.master)))
    }
}

/// Where an image of a guest is.
fn path(dir: &Path, guest: Guest, kind: &str) -> PathBuf {
    dir.join(format!("{}.{kind}", guest.name()))
}

/// Writes the images of all guests into `dir`.
///
/// # Errors
/// They cannot be written.
pub fn write_guests(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for guest in [&[Guest::First][..], &Guest::EXITS].concat() {
        fs::write(path(dir, guest, "elf"), guest.elf())?;
        fs::write(path(dir, guest, "flat"), guest.flat())?;
    }
    Ok(())
}

/// A VMM whose guest has written its first byte. It ends with this value.
#[derive(Debug)]
pub struct Started {
    /// From just before the process was made to the byte.
    pub took: Duration,
    child: Child,
    _output: ChildStdout,
    _terminal: Option<OwnedFd>,
}

impl Drop for Started {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // With all that it started; it may have ended by itself.
    let _ = killpg(Pid::from_raw(child.id() as i32), Signal::SIGKILL);
    let _ = child.wait();
}

/// Starts a VMM, and waits for its guest's first byte.
///
/// # Errors
/// There is none, within `limit`.
pub fn first_byte(
    subject: &Subject,
    dir: &Path,
    limit: Duration,
    cancel: &AtomicBool,
) -> Result<Started, StartError> {
    let log = dir.join("stderr");
    let said = File::create(&log).map_err(host(format!("create {}", log.display())))?;
    let (input, terminal) = subject.input()?;
    let mut command = subject.command(dir, Guest::First);
    command.stdin(input).stdout(Stdio::piped()).stderr(said).process_group(0);
    let start = Instant::now();
    let child = command.spawn();
    let mut child =
        child.map_err(|source| StartError::NotRun { program: subject.program.clone(), source })?;
    let output = child.stdout.take();
    let found = output.ok_or_else(|| io::Error::other("no pipe")).and_then(|mut output| {
        let found = wait_for_mark(&mut output, start + limit, cancel)?;
        Ok((Instant::now(), found, output))
    });
    let (now, found, output) = match found {
        Ok(found) => found,
        Err(e) => {
            end(&mut child);
            return Err(host("read what the guest writes")(e));
        }
    };
    if found == Waited::Found {
        return Ok(Started { took: now - start, child, _output: output, _terminal: terminal });
    }
    let how = match child.try_wait() {
        _ if found == Waited::Cancelled => String::new(),
        _ if found == Waited::Late => format!("{} s went by", limit.as_secs()),
        Ok(Some(status)) => format!("it ended ({status})"),
        // Its output has ended, so it is about to.
        _ => child.wait().map_or("it ended".to_owned(), |status| format!("it ended ({status})")),
    };
    end(&mut child);
    if found == Waited::Cancelled {
        return Err(StartError::Stopped);
    }
    let said = fs::read(&log).unwrap_or_default();
    Err(StartError::Silent { how, said: last_lines(&String::from_utf8_lossy(&said)) })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waited {
    Found,
    Ended,
    Late,
    Cancelled,
}

fn wait_for_mark(
    output: &mut ChildStdout,
    end: Instant,
    cancel: &AtomicBool,
) -> io::Result<Waited> {
    let mut bytes = [0; 4096];
    loop {
        let mut waits = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waits, PollTimeout::from(LOOK))? > 0 {
            match output.read(&mut bytes)? {
                0 => return Ok(Waited::Ended),
                n if bytes[..n].contains(&MARK) => return Ok(Waited::Found),
                _ => {}
            }
        }
        if cancel.load(Ordering::Relaxed) {
            return Ok(Waited::Cancelled);
        }
        if Instant::now() >= end {
            return Ok(Waited::Late);
        }
    }
}

/// The end of what a program said, to be appended to a sentence.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    if last.is_empty() { String::new() } else { format!("; it said: {}", last.join(" | ")) }
}

/// What a process has in memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages that it maps and that are there (Rss of /proc/PID/smaps_rollup), without the guest's.
    pub rss: u64,
    /// The same, a page that is mapped n times counted as its n-th part (Pss).
    pub pss: u64,
    /// What the guest touched of its own memory.
    pub guest: u64,
}

impl Memory {
    /// Of what /proc/PID/smaps_rollup and /proc/PID/smaps say. Guest memory is what is mapped readable and
    /// writable in one piece of at least half its size.
    fn of(rollup: &str, smaps: &str) -> Option<Memory> {
        let field = |line: &str, key: &str| -> Option<u64> {
            let value = line.strip_prefix(key)?.trim().strip_suffix("kB")?;
            Some(value.trim().parse::<u64>().ok()? << 10)
        };
        let of_rollup = |key: &str| rollup.lines().find_map(|line| field(line, key));
        let (mut guest_rss, mut guest_pss, mut is_guest) = (0, 0, false);
        for line in smaps.lines() {
            if let Some((size, rights)) = mapping(line) {
                is_guest = size >= GUEST / 2 && rights.starts_with("rw");
            } else if is_guest {
                guest_rss += field(line, "Rss:").unwrap_or(0);
                guest_pss += field(line, "Pss:").unwrap_or(0);
            }
        }
        let (rss, pss) = (of_rollup("Rss:")?, of_rollup("Pss:")?);
        Some(Memory {
            rss: rss - guest_rss.min(rss),
            pss: pss - guest_pss.min(pss),
            guest: guest_rss,
        })
    }
}

/// The size and the rights of a mapping, if a line of smaps begins one.
fn mapping(line: &str) -> Option<(u64, &str)> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some((number(end)?.checked_sub(number(start)?)?, words.next()?))
}

impl Started {
    /// What the process has in memory half a second after the first byte.
    ///
    /// # Errors
    /// It has ended, or the host does not tell.
    pub fn memory(&self) -> Result<Memory, StartError> {
        std::thread::sleep(SETTLED);
        let read = |name: &str| {
            let path = format!("/proc/{}/{name}", self.child.id());
            fs::read_to_string(&path).map_err(host(format!("read {path}")))
        };
        let none =
            || host("understand smaps_rollup")(io::Error::other("no Rss or Pss; has it ended?"));
        Memory::of(&read("smaps_rollup")?, &read("smaps")?).ok_or_else(none)
    }
}

/// Compiles the bare loop (`bare.c`), in whose place nothing of this project's is; `compiler` is a C compiler.
///
/// # Errors
/// What to install, or what the compiler says.
pub fn compile_bare(source: &Path, compiler: &OsStr, to: &Path) -> Result<(), String> {
    let shown = Path::new(compiler).display();
    let mut command = Command::new(compiler);
    command.args(["-O2", "-static", "-o"]).arg(to).arg(source).stdin(Stdio::null());
    let ran = command.output().map_err(|e| {
        format!(
            "the bare loop that VMMs are held against is C, and {shown} cannot be run: {e}; install a C compiler \
             (gcc and libc6-dev on Debian, gcc and glibc-static on Fedora), or name one with CC"
        )
    })?;
    match ran.status.success() {
        true => Ok(()),
        false => Err(format!(
            "{shown} cannot compile {} to a static program ({}); that needs a static C library (libc6-dev on \
             Debian, glibc-static on Fedora) and the kernel's headers (linux-libc-dev, kernel-headers){}",
            source.display(),
            ran.status,
            last_lines(&String::from_utf8_lossy(&ran.stderr))
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Subject {
        Subject {
            name: "sh".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            env: Vec::new(),
            terminal: false,
        }
    }

    fn start(subject: &Subject, limit: Duration) -> Result<Started, StartError> {
        let dir = tempfile::tempdir().expect("a directory");
        write_guests(dir.path()).expect("written");
        first_byte(subject, dir.path(), limit, &AtomicBool::new(false))
    }

    #[test]
    fn the_first_byte_is_found_behind_a_banner_and_memory_is_read() {
        let started =
            start(&shell("echo banner; printf '\\247'; sleep 60"), Duration::from_secs(20));
        let started = started.expect("a byte");
        let memory = started.memory().expect("it runs");
        assert!(
            memory.rss > 100 << 10 && memory.pss <= memory.rss && memory.guest == 0,
            "{memory:?}"
        );
    }

    #[test]
    fn a_vmm_that_cannot_run_the_guest_says_why() {
        let long = Duration::from_secs(20);
        let why =
            start(&shell("echo no >&2; echo such loader >&2; exit 3"), long).expect_err("none");
        let why = why.to_string();
        assert!(
            why.starts_with("it ended (exit status: 3), and its guest had written nothing"),
            "{why}"
        );
        assert!(why.ends_with("; it said: no | such loader"), "{why}");
        let late =
            start(&shell("sleep 60"), Duration::from_millis(1)).expect_err("none").to_string();
        assert!(late.starts_with("0 s went by"), "{late}");
        let nowhere = Subject { program: "/no/such/vmm".into(), ..shell("") };
        let none = start(&nowhere, long).expect_err("none").to_string();
        assert!(none.starts_with("cannot run /no/such/vmm: "), "{none}");
    }

    #[test]
    fn one_that_wants_a_terminal_gets_one() {
        let subject = Subject { terminal: true, ..shell("test -t 0 && printf '\\247'; sleep 60") };
        assert!(start(&subject, Duration::from_secs(20)).is_ok());
        let without = shell("test -t 0 && printf '\\247'");
        assert!(start(&without, Duration::from_secs(20)).is_err());
    }

    #[test]
    fn the_guests_place_in_a_command_line_is_filled_in() {
        let subject = shell("run {elf} as={flat}");
        let command = subject.command(Path::new("/d"), Guest::Mmio);
        let last = command.get_args().last().expect("arguments");
        assert_eq!(last, "run /d/mmio.elf as=/d/mmio.flat");
    }

    #[test]
    fn the_guests_memory_is_not_the_vmms() {
        let smaps = "\
00400000-00500000 r-xp 00000000 fe:00 1 /vmm\nRss:   1000 kB\nPss:   500 kB\n\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 \nSize: 262144 kB\nRss:   108 kB\nPss:   108 kB\n\
7f1000000000-7f1040000000 ---p 00000000 00:00 0 \nRss:     4 kB\nPss:     4 kB\n";
        let rollup = "00400000-7f1040000000 ---p 00000000 00:00 0 [rollup]\nRss:  1112 kB\nPss:  612 kB\nPss_Dirty: 9 kB\n";
        let kib = |n: u64| n << 10;
        let memory = Memory { rss: kib(1004), pss: kib(504), guest: kib(108) };
        assert_eq!(Memory::of(rollup, smaps), Some(memory));
        assert_eq!(Memory::of("", smaps), None);
    }

    #[test]
    fn a_missing_compiler_is_told_with_a_way_out() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("bare/bare.c");
        let dir = tempfile::tempdir().expect("a directory");
        let to = dir.path().join("bare");
        let compile = |compiler: &str| compile_bare(&source, OsStr::new(compiler), &to);
        let missing = compile("/no/such/cc").expect_err("none");
        assert!(
            missing.contains("/no/such/cc") && missing.contains("gcc and libc6-dev"),
            "{missing}"
        );
        let bad = compile("false").expect_err("it fails");
        assert!(bad.contains("cannot compile") && bad.contains("glibc-static"), "{bad}");
    }
}
