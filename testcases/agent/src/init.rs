//! Process 1: mounts, starts the one that works, waits, and switches the machine off.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use rustix::mount::{MountFlags, mount};
use rustix::process::{WaitOptions, WaitStatus};
use rustix::system::{RebootCommand, reboot};
use testcases::wire::{Envelope, Message};
use vmm::host::debug_console::DebugConsole;

use crate::{WORK, report};

/// This program, in the image.
const SELF: &str = "/init";

/// What is mounted: type and place.
const MOUNTS: [(&str, &str); 5] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
];

/// Where the kernel's debugging files are mounted, if it has any.
const DEBUG: &str = "/sys/kernel/debug";

/// Settings of the kernel, where it has them: file and content.
const SETTINGS: [(&str, &str); 4] = [
    // Guests ask for more memory than the machine has, and use little of it.
    ("/proc/sys/vm/overcommit_memory", "1"),
    // Taking a VM apart waits for each CPU to pass a quiet point: ask them instead of waiting for
    // their clock ticks. It halves the time of a small guest.
    ("/sys/kernel/rcu_expedited", "1"),
    // Clearing 2 MiB for a process that writes into 100 KiB is dear here. Guests that ask for huge
    // pages get them.
    ("/sys/kernel/mm/transparent_hugepage/enabled", "madvise"),
    // A VMM runs code from all over its file, which is in memory: map more of it at each fault.
    ("/sys/kernel/debug/fault_around_bytes", "1048576"),
];

/// Runs as process 1.
pub fn main() -> ExitCode {
    // Without this the kernel would panic, and say less.
    std::panic::set_hook(Box::new(|panic| {
        complain(&format!("the agent panicked: {panic}"));
        power_off();
    }));
    if let Err(trouble) = run() {
        complain(&trouble);
    }
    power_off();
    ExitCode::FAILURE
}

/// Starts the second process and waits until it ended.
///
/// # Errors
/// What went wrong and was not told by anybody yet.
fn run() -> Result<(), String> {
    for (kind, place) in MOUNTS {
        mount(kind, place, kind, MountFlags::empty(), None)
            .map_err(|e| format!("cannot mount {kind} at {place}: {e}"))?;
    }
    // A kernel that was built without them has no such directory.
    if Path::new(DEBUG).exists() {
        mount("debugfs", DEBUG, "debugfs", MountFlags::empty(), None)
            .map_err(|e| format!("cannot mount debugfs at {DEBUG}: {e}"))?;
    }
    for (path, value) in SETTINGS.iter().filter(|(path, _)| Path::new(path).exists()) {
        fs::write(path, value).map_err(|e| format!("cannot write {value} to {path}: {e}"))?;
    }
    let worker = Command::new(SELF)
        .arg0("agent")
        .arg(WORK)
        .spawn()
        .map_err(|e| format!("cannot start {SELF} a second time: {e}"))?;
    loop {
        let (pid, status) = match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some(ended)) => ended,
            Ok(None) | Err(rustix::io::Errno::INTR) => continue,
            Err(e) => return Err(format!("cannot wait for the second process: {e}")),
        };
        // Any other one is an orphan, which became a child of this process.
        if pid.as_raw_nonzero().get().unsigned_abs() == worker.id() {
            return told(status);
        }
    }
}

/// Whether the second process told how it ended: it does, unless something ended it.
fn told(status: WaitStatus) -> Result<(), String> {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(0), _) => Ok(()),
        (_, Some(signal)) => {
            Err(format!("the agent's second process was killed by signal {signal}"))
        }
        (status, None) => Err(format!(
            "the agent's second process ended with status {}",
            status.unwrap_or_default()
        )),
    }
}

/// Tells the owner of the machine what went wrong, by all means there are.
fn complain(trouble: &str) {
    report::print(trouble);
    if let Ok(mut console) = DebugConsole::take() {
        for message in [Message::Trouble(trouble.to_owned()), Message::Bye { status: 1 }] {
            if let Ok(frame) = (Envelope { at: report::now(), message }).frame() {
                console.write(&frame);
            }
        }
    }
}

fn power_off() {
    rustix::fs::sync();
    // It comes back only if this is not a machine of its own, or has no switch.
    if let Err(e) = reboot(RebootCommand::PowerOff) {
        report::print(&format!("cannot switch the machine off: {e}"));
    }
}
