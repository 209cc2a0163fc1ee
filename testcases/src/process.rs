//! Runs one child process to its end, or ends it: its own process group, output taken as it comes,
//! a deadline that holds however the child behaves.

use std::fmt;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::{Deserialize, Serialize};
use vmm::host::child::die_with_parent;

/// How often the flag that cancels a run is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How long output may still come after the process has ended (from a pipe that is not empty yet).
const DRAIN: Duration = Duration::from_millis(500);

/// How long a process that was asked to end may take before it is killed.
const LEAVE: Duration = Duration::from_secs(3);

/// How long a killed process may take to be gone. A thread inside a system call that cannot be
/// interrupted delays it.
const REAP: Duration = Duration::from_secs(5);

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// By itself, with this exit status.
    Exited(u8),
    /// By this signal, which was not ours.
    Signalled(i32),
    /// It ran past the deadline and was killed; if it is not reaped, even that did not end it.
    Killed {
        /// Whether it is gone.
        reaped: bool,
    },
    /// The run was cancelled, and it was killed.
    Cancelled,
    /// It could not be started, because of this.
    NotStarted(String),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Exited(status) => write!(f, "the process ended with status {status}"),
            Ended::Signalled(signal) => write!(f, "the process was killed by signal {signal}"),
            Ended::Killed { reaped: true } => {
                f.write_str("the process did not end by its deadline and was killed")
            }
            Ended::Killed { reaped: false } => f.write_str(
                "the process did not end by its deadline, and not even after SIGKILL: a system \
                 call holds it; look at /proc/PID/stack",
            ),
            Ended::Cancelled => f.write_str("the run was cancelled"),
            Ended::NotStarted(why) => write!(f, "the process could not be started: {why}"),
        }
    }
}

/// Which of the child's outputs bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Its standard output.
    Out,
    /// Its standard error.
    Err,
}

/// Starts `command` with no input and both outputs taken, in a process group of its own, and waits
/// until it ended. `output` gets the bytes as they come. After `limit`, or when `cancel` becomes
/// true, the whole group is killed; it is killed as well once its leader has ended, so nothing is
/// left behind. The leader ends with this process, too, however that ends.
pub fn run(
    command: &mut Command,
    limit: Duration,
    cancel: &AtomicBool,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Ended {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    supervise(command, limit, cancel, output, false)
}

/// As [`run`], but the child's outputs are the caller's own, and it is asked to end (SIGTERM) before
/// it is killed, because it may have children in groups of their own.
pub fn run_inherited(command: &mut Command, limit: Duration, cancel: &AtomicBool) -> Ended {
    supervise(command, limit, cancel, &mut |_, _| {}, true)
}

fn supervise(
    command: &mut Command,
    limit: Duration,
    cancel: &AtomicBool,
    output: &mut dyn FnMut(Stream, &[u8]),
    gently: bool,
) -> Ended {
    let deadline = Instant::now() + limit;
    // This thread waits for the child, so the child ends early only with the whole process.
    die_with_parent(command);
    let mut child = match command.stdin(Stdio::null()).process_group(0).spawn() {
        Ok(child) => child,
        Err(e) => {
            return Ended::NotStarted(format!("{}: {e}", command.get_program().to_string_lossy()));
        }
    };
    let pid = Pid::from_child(&child);
    // Until the child is reaped, its id cannot come to mean another process.
    let ended = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => watch(&mut child, pidfd.as_fd(), deadline, cancel, output),
        Err(e) => {
            kill_group(pid);
            Some(Ended::NotStarted(format!("the started process cannot be watched: {e}")))
        }
    };
    let mut status = None;
    if gently && ended.is_some() {
        // That the group is gone already is what is wanted.
        let _ = kill_process_group(pid, Signal::TERM);
        status = reap(&mut child, LEAVE);
    }
    // Not once the leader is reaped: its id could come to mean another group.
    if status.is_none() {
        kill_group(pid);
        status = reap(&mut child, REAP);
    }
    match (ended, status) {
        (Some(Ended::Killed { .. }), status) => Ended::Killed { reaped: status.is_some() },
        (Some(ended), _) => ended,
        (None, Some(status)) => match (status.code(), status.signal()) {
            (Some(code), _) => Ended::Exited(code as u8),
            (None, signal) => Ended::Signalled(signal.unwrap_or(0)),
        },
        (None, None) => Ended::Killed { reaped: false },
    }
}

/// Takes output until the process ended (`None`) or is to be killed (why).
fn watch(
    child: &mut Child,
    pidfd: BorrowedFd<'_>,
    deadline: Instant,
    cancel: &AtomicBool,
    output: &mut dyn FnMut(Stream, &[u8]),
) -> Option<Ended> {
    #[derive(Clone, Copy)]
    enum Source {
        Output(Stream),
        Process,
    }
    let pid = Pid::from_child(child);
    let mut out = child.stdout.take();
    let mut err = child.stderr.take();
    let mut drain_until = None;
    let mut buffer = vec![0; 16 << 10];
    loop {
        if drain_until.is_some() && out.is_none() && err.is_none() {
            return None;
        }
        if cancel.load(Ordering::Relaxed) {
            return Some(Ended::Cancelled);
        }
        let now = Instant::now();
        let until = drain_until.unwrap_or(deadline);
        if now >= until {
            return drain_until.is_none().then_some(Ended::Killed { reaped: true });
        }
        let sources: Vec<(Source, BorrowedFd<'_>)> = [
            (Source::Output(Stream::Out), out.as_ref().map(AsFd::as_fd)),
            (Source::Output(Stream::Err), err.as_ref().map(AsFd::as_fd)),
            (Source::Process, drain_until.is_none().then_some(pidfd)),
        ]
        .into_iter()
        .filter_map(|(source, fd)| Some((source, fd?)))
        .collect();
        let mut fds: Vec<_> =
            sources.iter().map(|(_, fd)| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        let wait = Timespec { tv_sec: 0, tv_nsec: (until - now).min(TICK).as_nanos() as i64 };
        if poll(&mut fds, Some(&wait)).is_err() {
            // Interrupted by a signal: what it meant is in `cancel`.
            continue;
        }
        let ready = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        let ready: Vec<Source> = ready.map(|((source, _), _)| *source).collect();
        for source in ready {
            match source {
                Source::Output(stream @ Stream::Out) => {
                    take(&mut out, stream, &mut buffer, output);
                }
                Source::Output(stream @ Stream::Err) => {
                    take(&mut err, stream, &mut buffer, output);
                }
                Source::Process => {
                    // What it left running would hold the pipes open.
                    kill_group(pid);
                    drain_until = Some(Instant::now() + DRAIN);
                }
            }
        }
    }
}

/// Reads what a pipe holds, and drops the pipe at its end.
fn take<P: Read>(
    pipe: &mut Option<P>,
    stream: Stream,
    buffer: &mut [u8],
    output: &mut dyn FnMut(Stream, &[u8]),
) {
    match pipe.as_mut().map(|pipe| pipe.read(buffer)) {
        Some(Ok(n)) if n > 0 => output(stream, &buffer[..n]),
        _ => *pipe = None,
    }
}

fn kill_group(pid: Pid) {
    // That the group is gone already is what is wanted.
    let _ = kill_process_group(pid, Signal::KILL);
}

/// Waits a bounded time for a process that has ended or was told to.
fn reap(child: &mut Child, limit: Duration) -> Option<std::process::ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: u64) -> (Ended, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let ended = run(
            Command::new("sh").args(["-c", script]),
            Duration::from_millis(limit),
            &AtomicBool::new(false),
            &mut |stream, bytes| match stream {
                Stream::Out => out.extend_from_slice(bytes),
                Stream::Err => err.extend_from_slice(bytes),
            },
        );
        let text = |bytes| String::from_utf8(bytes).expect("text");
        (ended, text(out), text(err))
    }

    #[test]
    fn status_and_output_arrive_whole() {
        let (ended, out, err) = sh("echo out; echo err >&2; exit 77", 60_000);
        assert_eq!((ended, &out[..], &err[..]), (Ended::Exited(77), "out\n", "err\n"));
        let (ended, out, _) = sh("head -c 1000000 /dev/zero | tr '\\0' x", 60_000);
        assert_eq!((ended, out.len()), (Ended::Exited(0), 1_000_000));
    }

    #[test]
    fn a_signal_is_told_from_a_status() {
        assert_eq!(sh("kill -SEGV $$", 60_000).0, Ended::Signalled(11));
        assert_eq!(sh("exit 139", 60_000).0, Ended::Exited(139));
    }

    /// Waits until a process is gone or a zombie that its new parent has not reaped yet: a signal
    /// takes a moment to end it.
    fn is_gone(pid: &str) -> bool {
        (0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        })
    }

    #[test]
    fn the_deadline_holds_for_the_whole_group() {
        let (ended, out, _) = sh("sleep 600 & echo $!; sleep 600", 300);
        assert_eq!(ended, Ended::Killed { reaped: true });
        assert!(is_gone(&out), "process {out} was left behind");
    }

    #[test]
    fn what_a_process_leaves_running_does_not_outlive_it() {
        // The grandchild inherits the pipe, and would hold it open.
        let (ended, out, _) = sh("sleep 600 & echo $!", 60_000);
        assert_eq!(ended, Ended::Exited(0));
        assert!(is_gone(&out), "process {out} was left behind");
    }

    #[test]
    fn a_flood_does_not_outlast_the_deadline() {
        let mut bytes = 0_u64;
        let ended = run(
            Command::new("sh").args(["-c", "yes"]),
            Duration::from_millis(300),
            &AtomicBool::new(false),
            &mut |_, chunk| bytes += chunk.len() as u64,
        );
        assert_eq!(ended, Ended::Killed { reaped: true });
        assert!(bytes > 0);
    }

    #[test]
    fn a_cancelled_run_ends_before_its_deadline() {
        let cancel = AtomicBool::new(true);
        let mut command = Command::new("sleep");
        let ended = run_inherited(command.arg("600"), Duration::from_secs(600), &cancel);
        assert_eq!(ended, Ended::Cancelled);
    }

    #[test]
    fn a_command_of_a_person_is_asked_to_end_before_it_is_killed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let said = dir.path().join("said");
        let started = dir.path().join("started");
        let script = format!(
            "trap 'echo bye > {}; exit' TERM; echo > {}; while :; do sleep 0.01; done",
            said.display(),
            started.display()
        );
        let cancel = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !started.exists() {
                    std::thread::sleep(Duration::from_millis(5));
                }
                cancel.store(true, Ordering::Relaxed);
            });
            let mut command = Command::new("sh");
            run_inherited(command.args(["-c", &script]), Duration::from_secs(600), &cancel)
        });
        assert_eq!(ended, Ended::Cancelled);
        assert_eq!(std::fs::read_to_string(said).expect("its last words"), "bye\n");
    }

    #[test]
    fn what_cannot_be_started_says_why() {
        let cancel = AtomicBool::new(false);
        match run_inherited(&mut Command::new("/no/such/vmm"), Duration::from_secs(1), &cancel) {
            Ended::NotStarted(why) => assert!(why.contains("/no/such/vmm"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}
