//! Instructions of a VMM between two entries into the guest, counted one by one.
//!
//! The VMM's thread is stepped (ptrace(2)) from where KVM_RUN returns to where it is called again, so the
//! count is exact on any host, without performance counters. The guest says which exits are counted: it
//! writes 0xb5 to port 0x80 before them and something else after them, as the payload `exits` does.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::user_regs_struct;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use payload_abi::exits;

/// `KVM_RUN`: `_IO(KVMIO, 0x80)`.
const KVM_RUN: u64 = 0xae80;
/// ioctl(2) on x86-64.
const IOCTL: u64 = 16;
/// The instruction that enters the kernel.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Where `struct kvm_run` has the exit's reason; where of a port access direction, size, port and the data's
/// offset; the reason of one, and the direction of a write (KVM's API, "The kvm_run structure").
const REASON: u64 = 8;
const ACCESS: u64 = 32;
const EXIT_IO: u32 = 2;
const OUT: u8 = 1;
/// More than any exit takes: the thread does something else.
const MOST: u64 = 1_000_000;

/// Why nothing was counted.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// A system call failed.
    #[error(
        "{what}: {source}; a VMM is stepped by ptrace, which containers and \
             /proc/sys/kernel/yama/ptrace_scope may forbid"
    )]
    Call {
        /// What was tried.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// It ended, and never counted.
    #[error("the guest marked no exits to count: it ended before")]
    Unmarked,
    /// It ended, and had not counted all.
    #[error("the VMM ended at an exit that was to be counted")]
    Gone,
    /// It let the time pass.
    #[error("{} s went by before the guest had marked the end of its exits", .0.as_secs())]
    Late(Duration),
    /// It does not come back to KVM_RUN.
    #[error("after {MOST} instructions the vCPU's thread had not called KVM_RUN again")]
    Lost,
}

fn call(what: &'static str) -> impl Fn(Errno) -> StepError {
    move |errno| StepError::Call { what, source: errno.into() }
}

fn io(what: &'static str) -> impl Fn(io::Error) -> StepError {
    move |source| StepError::Call { what, source }
}

/// What one exit took.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    /// Instructions in user mode, with that of the system call that ends it.
    pub instructions: u64,
    /// System calls before that one.
    pub calls: u64,
}

/// Runs a program that is a VMM with one vCPU, and counts what each exit takes that its guest marks.
///
/// # Errors
/// It cannot be run or stepped, or its guest marks nothing.
pub fn count(command: &Command) -> Result<Vec<Taken>, StepError> {
    run(command, Stdio::inherit(), Stdio::inherit(), None)
}

/// As [`count`], for a VMM that may not end by itself: it is ended where its guest marks the end, or after
/// `limit`. It reads from `input`, and what it has to tell goes to `errors`.
///
/// # Errors
/// As of [`count`]; its guest is not done in time.
pub fn count_to_end(
    command: &Command,
    input: Stdio,
    errors: Stdio,
    limit: Duration,
) -> Result<Vec<Taken>, StepError> {
    run(command, input, errors, Some(limit))
}

fn run(
    command: &Command,
    input: Stdio,
    errors: Stdio,
    limit: Option<Duration>,
) -> Result<Vec<Taken>, StepError> {
    // It stops itself before it becomes the VMM, so that nothing of it runs unseen.
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec \"$0\" \"$@\""]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    shell.stdin(input).stdout(Stdio::null()).stderr(errors);
    let child = shell.spawn().map_err(io("start sh"))?;
    let pid = Pid::from_raw(child.id() as i32);
    // The thread that steps waits for nothing but the VMM, so another one looks at the clock.
    let (done, wait) = channel::<()>();
    let is_late = Arc::new(AtomicBool::new(false));
    let watch = limit.map(|limit| {
        let is_late = is_late.clone();
        std::thread::spawn(move || {
            if wait.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                is_late.store(true, Ordering::SeqCst);
                // Nobody waited for it yet, so the number is still its.
                let _ = kill(pid, Signal::SIGKILL);
            }
        })
    });
    let stepper = Stepper { pid, taken: Vec::new(), to_end: limit.is_some(), ended: false };
    let counted = attach(pid).and_then(|()| stepper.run());
    drop(done);
    if let Some(watch) = watch {
        let _ = watch.join();
    }
    let counted = match limit {
        Some(limit) if is_late.load(Ordering::SeqCst) => Err(StepError::Late(limit)),
        _ => counted,
    };
    if counted.is_err() || limit.is_some() {
        // It may be gone.
        let _ = kill(pid, Signal::SIGKILL);
        reap(pid);
    }
    counted
}

/// Waits for the end of a process that was killed: each of its threads that is traced is waited for by itself.
fn reap(pid: Pid) {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    while let Ok(status) = waitpid(None, Some(flags)) {
        let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
        if ended && status.pid() == Some(pid) {
            break;
        }
    }
}

fn attach(pid: Pid) -> Result<(), StepError> {
    waitpid(pid, Some(WaitPidFlag::WUNTRACED)).map_err(call("wait for sh"))?;
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(pid, options).map_err(call("PTRACE_SEIZE"))?;
    kill(pid, Signal::SIGCONT).map_err(call("kill"))
}

struct Stepper {
    pid: Pid,
    taken: Vec<Taken>,
    /// Whether the guest's mark is the end.
    to_end: bool,
    ended: bool,
}

/// What is known of the vCPU's thread.
struct Vcpu {
    thread: Pid,
    memory: File,
    /// Where its shared page is.
    page: u64,
    /// It is inside of KVM_RUN.
    runs: bool,
    marked: bool,
}

impl Stepper {
    fn run(mut self) -> Result<Vec<Taken>, StepError> {
        let mut vcpu: Option<Vcpu> = None;
        loop {
            // Threads of this process have children of their own.
            let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
            let status = match waitpid(None, Some(flags)) {
                Ok(status) => status,
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(call("waitpid")(errno)),
            };
            match status {
                WaitStatus::PtraceSyscall(thread) => {
                    self.called(thread, &mut vcpu)?;
                    if self.ended {
                        break;
                    }
                }
                WaitStatus::PtraceEvent(thread, _, _) => resume(thread, &vcpu, None)?,
                WaitStatus::Stopped(thread, signal) => {
                    let ours = matches!(signal, Signal::SIGTRAP | Signal::SIGSTOP);
                    resume(thread, &vcpu, (!ours).then_some(signal))?;
                }
                WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _) if pid == self.pid => {
                    break;
                }
                _ => {}
            }
        }
        match self.taken.is_empty() {
            true => Err(StepError::Unmarked),
            false => Ok(self.taken),
        }
    }

    /// A thread is about to make a system call, or has made one.
    fn called(&mut self, thread: Pid, vcpu: &mut Option<Vcpu>) -> Result<(), StepError> {
        let registers = ptrace::getregs(thread).map_err(call("PTRACE_GETREGS"))?;
        let is_run = (registers.orig_rax, registers.rsi) == (IOCTL, KVM_RUN);
        if !is_run {
            return resume(thread, vcpu, None);
        }
        if vcpu.is_none() {
            *vcpu = Some(Vcpu {
                thread,
                memory: File::open(format!("/proc/{}/mem", self.pid)).map_err(io("open mem"))?,
                page: page(self.pid).map_err(io("read maps"))?,
                runs: false,
                marked: false,
            });
        }
        let Some(vcpu) = vcpu.as_mut().filter(|vcpu| vcpu.thread == thread) else {
            return ptrace::syscall(thread, None).map_err(call("PTRACE_SYSCALL"));
        };
        vcpu.runs = !vcpu.runs;
        if !vcpu.runs {
            if let Some((port, value)) = vcpu.written().map_err(io("read the vCPU's page"))?
                && port == exits::FENCE
            {
                self.ended = vcpu.marked && value != exits::BEGIN && self.to_end;
                vcpu.marked = value == exits::BEGIN;
            } else if vcpu.marked {
                self.taken.push(vcpu.step()?);
            }
        }
        ptrace::syscall(thread, None).map_err(call("PTRACE_SYSCALL"))
    }
}

impl Vcpu {
    /// The port and the byte that the guest wrote, if the exit was for that.
    fn written(&self) -> io::Result<Option<(u16, u8)>> {
        let mut reason = [0; 4];
        self.memory.read_exact_at(&mut reason, self.page + REASON)?;
        if u32::from_le_bytes(reason) != EXIT_IO {
            return Ok(None);
        }
        let mut access = [0; 16];
        self.memory.read_exact_at(&mut access, self.page + ACCESS)?;
        let [direction, _, low, high, _, _, _, _, offset @ ..] = access;
        if direction != OUT {
            return Ok(None);
        }
        let mut value = [0];
        self.memory.read_exact_at(&mut value, self.page + u64::from_le_bytes(offset))?;
        Ok(Some((u16::from_le_bytes([low, high]), value[0])))
    }

    /// Steps the thread to where it calls KVM_RUN again.
    fn step(&self) -> Result<Taken, StepError> {
        let (mut instructions, mut calls) = (1, 0);
        loop {
            let registers = match ptrace::getregs(self.thread) {
                Err(Errno::ESRCH) => return Err(StepError::Gone),
                registers => registers.map_err(call("PTRACE_GETREGS"))?,
            };
            let calls_now = self.is_at_call(&registers).map_err(io("read an instruction"))?;
            if calls_now && (registers.rax, registers.rsi) == (IOCTL, KVM_RUN) {
                return Ok(Taken { instructions, calls });
            }
            if instructions >= MOST {
                return Err(StepError::Lost);
            }
            match ptrace::step(self.thread, None) {
                Err(Errno::ESRCH) => return Err(StepError::Gone),
                stepped => stepped.map_err(call("PTRACE_SINGLESTEP"))?,
            }
            // Another thread's stop waits until this one is asked for.
            waitpid(self.thread, Some(WaitPidFlag::__WALL)).map_err(call("waitpid"))?;
            instructions += 1;
            calls += u64::from(calls_now);
        }
    }

    fn is_at_call(&self, registers: &user_regs_struct) -> io::Result<bool> {
        let mut code = [0; 2];
        self.memory.read_exact_at(&mut code, registers.rip)?;
        Ok(code == SYSCALL)
    }
}

/// Lets a thread go on to its next system call; threads that are no vCPU, to their end.
fn resume(thread: Pid, vcpu: &Option<Vcpu>, signal: Option<Signal>) -> Result<(), StepError> {
    let is_other = vcpu.as_ref().is_some_and(|vcpu| vcpu.thread != thread);
    let resumed = match is_other {
        true => ptrace::cont(thread, signal),
        false => ptrace::syscall(thread, signal),
    };
    match resumed {
        // It was killed meanwhile.
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(call("PTRACE_SYSCALL")(errno)),
    }
}

/// Where the first vCPU's page is mapped.
fn page(pid: Pid) -> io::Result<u64> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with("anon_inode:kvm-vcpu:0"));
    let start = line.and_then(|line| line.split_once('-')).map(|(start, _)| start);
    let start = start.and_then(|start| u64::from_str_radix(start, 16).ok());
    start.ok_or_else(|| io::Error::other("it maps no vCPU's page"))
}
