//! Processes that this one starts.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};

/// Makes the process that `command` starts end by SIGKILL as soon as the *thread* that starts it ends,
/// and so with this process however that ends (prctl(2), PR_SET_PDEATHSIG). For a thread that waits
/// until the child has ended.
///
/// What the child starts in turn is not killed. With this, the standard library forks for the child,
/// where it would call `posix_spawn`.
pub fn die_with_parent(command: &mut Command) {
    let parent = process::id();
    let ask = move || {
        // SAFETY: PR_SET_PDEATHSIG takes a number, and getppid nothing; neither touches memory.
        let (refused, now) = unsafe {
            let signal = libc::SIGKILL as libc::c_ulong;
            (libc::prctl(libc::PR_SET_PDEATHSIG, signal) != 0, libc::getppid())
        };
        if refused {
            return Err(io::Error::last_os_error());
        }
        // A parent that went before that sends nothing. An error without a text allocates nothing.
        if now.unsigned_abs() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        Ok(())
    };
    // SAFETY: after the fork the closure only makes system calls that are async-signal-safe, and reads
    // `errno`: it takes no lock and allocates nothing (std, CommandExt::pre_exec).
    unsafe { command.pre_exec(ask) };
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// The state of a process as /proc tells it; none once it is gone.
    fn state(pid: u32) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    }

    #[test]
    fn a_child_lives_as_long_as_the_thread_that_started_it() {
        let (told, started) = std::sync::mpsc::channel();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = thread::spawn(move || {
            let mut command = Command::new("sleep");
            die_with_parent(command.arg("600"));
            told.send(command.spawn().expect("sleep")).expect("the test listens");
            let _ = wait.recv();
        });
        let mut child = started.recv().expect("a child");
        assert!(
            matches!(state(child.id()), Some('S' | 'R' | 'D')),
            "it lives while the thread does"
        );
        drop(go);
        thread.join().expect("no panic");
        let status = child.wait().expect("a status");
        let signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert_eq!((signal, state(child.id())), (Some(libc::SIGKILL), None));
    }

    #[test]
    fn a_child_dies_with_a_parent_that_is_killed() {
        // The test itself, started again, is the parent.
        const MARK: &str = "EXITLAB_TEST_PARENT";
        if std::env::var_os(MARK).is_some() {
            let mut command = Command::new("sleep");
            die_with_parent(command.arg("600"));
            let mut child = command.spawn().expect("sleep");
            println!("child {}", child.id());
            let _ = child.wait();
            return;
        }
        let name = "host::child::tests::a_child_dies_with_a_parent_that_is_killed";
        let mut parent = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", name, "--nocapture"])
            .env(MARK, "")
            .stdout(process::Stdio::piped())
            .spawn()
            .expect("this program again");
        let out = io::BufReader::new(parent.stdout.take().expect("a pipe"));
        let child = io::BufRead::lines(out)
            .map_while(Result::ok)
            .find_map(|line| line.split_once("child ")?.1.trim().parse().ok())
            .expect("the child's id");
        assert!(state(child).is_some());
        parent.kill().expect("it runs");
        parent.wait().expect("a status");
        // Whoever inherits it may take its time to reap it.
        let gone = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            matches!(state(child), None | Some('Z' | 'X'))
        });
        assert!(gone, "process {child} outlived its parent");
    }
}
