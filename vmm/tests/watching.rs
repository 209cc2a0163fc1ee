//! What `vmm run` tells of exits, as its user meets it: `--stats`, `--control` and `vmm top`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use vmm::control::{Client, ClientError};
use vmm::stats::{ReasonRow, Snapshot, UNCLAIMED, VcpuSnapshot};

const VMM: &str = env!("CARGO_BIN_EXE_vmm");
/// How often [`COUNTS`] goes round.
const ROUNDS: u64 = 1000;
/// mov cx, 1000; mov dx, 0x3ff; out dx, al; in al, 1; loop to the out; mov al, 7; out 0xf4, al
const COUNTS: &[u8] =
    &[0xb9, 0xe8, 3, 0xba, 0xff, 3, 0xee, 0xe4, 1, 0xe2, 0xfb, 0xb0, 7, 0xe6, 0xf4];
/// mov dx, 0x3ff; out dx, al; in al, 1; jmp to the out
const FOR_EVER: &[u8] = &[0xba, 0xff, 3, 0xee, 0xe4, 1, 0xeb, 0xfb];
/// mov al, 0xfe; out 0x64, al; hlt
const RESETS: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];

/// Whether guests can run here. Where they cannot, says so, and fails if they must.
fn kvm() -> bool {
    let there = std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if !there {
        let required = std::env::var("EXITLAB_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|r| r == "kvm"), "/dev/kvm is required, and not usable");
        eprintln!("not tested: /dev/kvm cannot be opened");
    }
    there
}

/// A folder with a guest in it.
fn guest(code: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("guest");
    std::fs::write(&path, code).expect("a file");
    (folder, path)
}

fn command(guest: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(VMM);
    command.args(["run", "--boot", "flat:0x7c00:real16", "--kernel"]).arg(guest).args(args);
    if !args.contains(&"--timeout") {
        command.args(["--timeout", "60s"]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(guest: &Path, args: &[&str]) -> Output {
    command(guest, args).output().expect("vmm")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Ends a VM whatever becomes of the test.
struct Running(Child);

impl Running {
    /// Asks for the end, and gives the status.
    fn end(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        self.0.wait().expect("vmm").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A VM that counts for ever, with a control socket.
fn controlled(code: &[u8], args: &[&str]) -> (tempfile::TempDir, PathBuf, Running) {
    let (folder, guest) = guest(code);
    let socket = folder.path().join("control");
    let mut args = args.to_vec();
    args.extend(["--control", socket.to_str().expect("UTF-8")]);
    let child = command(&guest, &args).spawn().expect("vmm");
    (folder, socket, Running(child))
}

/// A client of a VM that has just been started.
fn client(socket: &Path) -> Client {
    let start = Instant::now();
    loop {
        match Client::connect(socket) {
            Ok(client) => return client,
            Err(ClientError::Connect { .. }) if start.elapsed() < Duration::from_secs(20) => {
                std::thread::yield_now();
            }
            Err(e) => panic!("{e}"),
        }
    }
}

fn row<'a>(vcpu: &'a VcpuSnapshot, name: &str) -> &'a ReasonRow {
    vcpu.reasons.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn accesses(vcpu: &VcpuSnapshot) -> Vec<(&str, u64)> {
    vcpu.devices.iter().map(|device| (device.name.as_str(), device.count)).collect()
}

/// What holds of every snapshot of a VM that has ended.
fn check(snapshot: &Snapshot) {
    for vcpu in snapshot.vcpus.iter().chain([&snapshot.total]) {
        for row in &vcpu.reasons {
            for times in [&row.user, &row.kvm] {
                assert_eq!(times.buckets.iter().map(|(_, n)| n).sum::<u64>(), row.count);
                let order = [times.p50_ns, times.p90_ns, times.p99_ns, times.max_ns];
                assert!(order.is_sorted() && times.total_ns >= times.max_ns, "{row:?}");
            }
        }
        for device in &vcpu.devices {
            assert_eq!(device.user.buckets.iter().map(|(_, n)| n).sum::<u64>(), device.count);
        }
        let spent = vcpu.user_ns + vcpu.kvm_ns + vcpu.own_ns;
        assert!(spent <= snapshot.elapsed_ns * snapshot.vcpus.len() as u64, "{spent}");
    }
}

#[test]
fn every_exit_is_counted_whichever_way_it_goes() {
    if !kvm() {
        return;
    }
    let (folder, guest) = guest(COUNTS);
    let trace = folder.path().join("trace");
    let trace = trace.to_str().expect("UTF-8");
    let ways: [&[&str]; 6] = [
        &[],
        &["--exit-rips"],
        &["--trace", trace],
        &["--lab"],
        &["--pci", "on"],
        &["--cpus", "2"],
    ];
    for args in ways {
        let json = folder.path().join("stats.json");
        let option = format!("--stats={}", json.display());
        let output = run(&guest, &[args, &[&option]].concat());
        assert_eq!(output.status.code(), Some(15), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
        let text = std::fs::read_to_string(&json).expect("a file");
        let snapshot: Snapshot = serde_json::from_str(&text).expect("a snapshot");
        check(&snapshot);
        let total = &snapshot.total;
        assert_eq!(total.exits, 2 * ROUNDS + 1, "{args:?}");
        assert_eq!(row(total, "io out").count, ROUNDS + 1, "{args:?}");
        assert_eq!(row(total, "io in").count, ROUNDS, "{args:?}");
        let mut devices = accesses(total);
        devices.sort_unstable();
        assert_eq!(devices, [("com1", ROUNDS), ("debug-exit", 1), (UNCLAIMED, ROUNDS)], "{args:?}");
        assert!(row(total, "io in").kvm.p50_ns > 100, "an exit takes longer: {args:?}");
        assert_eq!(snapshot.vcpus.len(), if args.contains(&"--cpus") { 2 } else { 1 });
        assert_eq!(snapshot.vcpus[0].exits, total.exits, "the others wait");
        if snapshot.kvm.lacks.is_none() {
            assert_eq!(snapshot.kvm.vcpus.len(), snapshot.vcpus.len());
            let exits = snapshot.kvm.vcpus[0].iter().find(|m| m.name == "exits").expect("exits");
            // Those that KVM answers itself are not told to anybody else.
            assert!(exits.values[0] >= total.exits, "{exits:?} of {}", total.exits);
        }
    }
}

#[test]
fn a_table_is_told_after_the_guests_end_however_that_is() {
    if !kvm() {
        return;
    }
    let (_folder, counts) = guest(COUNTS);
    let output = run(&counts, &["--stats"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(15), "{said}");
    let line = |start: &str| {
        let found = said.lines().find(|line| line.trim_start().starts_with(start));
        found.unwrap_or_else(|| panic!("no {start:?} in:\n{said}")).to_owned()
    };
    assert!(line("vCPU 0:").contains("2001 exits"), "{said}");
    assert!(line("unclaimed").contains(" 1000 "), "{said}");
    assert!(said.contains("KVM's own statistics"), "{said}");
    let (_folder, spins) = guest(FOR_EVER);
    let output = run(&spins, &["--stats", "--timeout", "300ms"]);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(124), "{said}");
    assert!(said.contains("is over") && said.contains("io out"), "{said}");
}

#[test]
fn what_cannot_be_told_is_said_before_the_guest_starts_where_it_can_be() {
    let (folder, guest) = guest(COUNTS);
    let file = folder.path().join("file");
    std::fs::write(&file, "text").expect("a file");
    let taken = file.to_str().expect("UTF-8");
    for (args, parts) in [
        (&["--stats=/no/folder/x"][..], ["/no/folder/x", "may be written to"]),
        (&["--control", taken], [taken, "a file is there already"]),
        (&["--control", "/no/folder/x"], ["/no/folder/x", "No such file"]),
        (&["--control", ""], ["control", "value"]),
    ] {
        let output = run(&guest, args);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for part in parts {
            assert!(said.contains(part), "{args:?}: {part:?} is not in: {said}");
        }
    }
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "text");
    if kvm() {
        let output = run(&guest, &["--stats=/dev/full"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(14), "{said}");
        assert!(said.contains("could not be written to `/dev/full`"), "{said}");
    }
}

#[test]
fn a_running_vm_is_asked_and_goes_on_whatever_clients_do() {
    if !kvm() {
        return;
    }
    let (_folder, socket, mut vm) = controlled(FOR_EVER, &[]);
    let mut asks = client(&socket);
    let first: Snapshot = asks.ask("stats").expect("an answer");
    // Rubbish, a line without an end, requests whose answers nobody reads, and hanging up.
    let mut others: Vec<UnixStream> =
        (0..4).map(|_| UnixStream::connect(&socket).expect("a connection")).collect();
    others[0].write_all(b"\xff\xfe rubbish\n{\"command\":\"quit\"}\n{").expect("sent");
    others[1].write_all(&[b'x'; 60_000]).expect("sent");
    others[2].write_all(&b"{\"command\":\"stats\"}\n".repeat(1000)).expect("sent");
    drop(others.pop());
    let start = Instant::now();
    let last = loop {
        let snapshot: Snapshot = asks.ask("stats").expect("an answer");
        if snapshot.total.exits > first.total.exits + 1000 {
            break snapshot;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "the guest goes on");
    };
    assert!(last.elapsed_ns > first.elapsed_ns);
    assert_eq!(vm.end(), Some(130));
    assert!(!socket.exists(), "the socket goes with its VM");
    assert!(matches!(asks.ask::<Snapshot>("stats"), Err(ClientError::Ended { .. })));
    let mut said = Vec::new();
    let mut errors = vm.0.stderr.take().expect("piped");
    errors.read_to_end(&mut said).expect("to its end");
    assert_eq!(String::from_utf8_lossy(&said), "", "a client is no reason to say anything");
}

#[test]
fn a_guest_that_starts_again_is_counted_on_and_its_clients_stay() {
    if !kvm() {
        return;
    }
    let (_folder, socket, mut vm) = controlled(RESETS, &["--on-reset", "reboot"]);
    let mut asks = client(&socket);
    let start = Instant::now();
    loop {
        let snapshot: Snapshot = asks.ask("stats").expect("an answer");
        if snapshot.total.exits > 3 {
            assert_eq!(accesses(&snapshot.total), [("i8042", snapshot.total.exits)]);
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "it starts again");
    }
    assert_eq!(vm.end(), Some(130));
}

/// Runs `vmm top` of that VM.
fn top(socket: &Path, option: &str) -> Output {
    let output = Command::new(VMM).arg("top").arg(socket).arg(option).stdin(Stdio::null()).output();
    output.expect("vmm")
}

#[test]
fn top_tells_once_what_a_running_vm_counts() {
    if !kvm() {
        return;
    }
    let (_folder, socket, mut vm) = controlled(FOR_EVER, &["--cpus", "2"]);
    let mut asks = client(&socket);
    while asks.ask::<Snapshot>("stats").expect("an answer").total.exits < 10 {}
    let output = top(&socket, "--once");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    for part in ["2 vCPUs:", "vCPU 1: 0 exits", "io out", "unclaimed", "KVM's own statistics"] {
        assert!(said.contains(part), "{part:?} is not in:\n{said}");
    }
    let output = top(&socket, "--json");
    let snapshot: Snapshot = serde_json::from_slice(&output.stdout).expect("a snapshot");
    let devices = accesses(&snapshot.total);
    let count = |name| devices.iter().find(|row| row.0 == name).map_or(0, |row| row.1);
    assert!(
        count("com1").abs_diff(count(UNCLAIMED)) <= 2,
        "the guest does both in turn: {devices:?}"
    );
    assert_eq!(vm.end(), Some(130));
    let output = top(&socket, "--once");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("no VM can be reached") && said.contains("--control PATH"), "{said}");
}

#[test]
fn top_without_a_terminal_says_what_needs_none() {
    if !kvm() {
        return;
    }
    let (_folder, socket, _vm) = controlled(FOR_EVER, &[]);
    client(&socket);
    let mut top = Command::new("setsid");
    top.arg(VMM).arg("top").arg(&socket).stdin(Stdio::null());
    let output = top.output().expect("setsid");
    assert_eq!(output.status.code(), Some(14), "{}", stderr(&output));
    assert!(stderr(&output).contains("--once"), "{}", stderr(&output));
}

#[test]
fn top_ends_with_its_terminal() {
    if !kvm() {
        return;
    }
    let (_folder, socket, _vm) = controlled(FOR_EVER, &[]);
    client(&socket);
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::CLOEXEC;
    let mut other = std::fs::File::from(rustix::pty::openpt(flags).expect("a pty"));
    rustix::pty::unlockpt(&other).expect("a pty");
    let name = rustix::pty::ptsname(&other, Vec::new()).expect("a pty");
    let terminal = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("ASCII"))
        .expect("a pty");
    let ends = || Stdio::from(terminal.try_clone().expect("a descriptor"));
    // As a shell has it: what controls a session is hung up when it goes, and then reads as ended for ever.
    let mut top = Running(
        Command::new("setsid")
            .args(["--ctty", VMM, "top", socket.to_str().expect("UTF-8"), "--interval", "100ms"])
            .stdin(ends())
            .stdout(ends())
            .stderr(Stdio::null())
            .spawn()
            .expect("setsid"),
    );
    drop(terminal);
    let mut seen = [0; 4096];
    assert!(other.read(&mut seen).expect("it draws") > 0);
    drop(other);
    let start = Instant::now();
    while top.0.try_wait().expect("vmm").is_none() {
        assert!(start.elapsed() < Duration::from_secs(20), "top goes on without a terminal");
        std::thread::yield_now();
    }
}
