//! The `vmm` program as its user meets it: what it is given, and what comes back.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const VMM: &str = env!("CARGO_BIN_EXE_vmm");

/// mov dx, 0x3f8; mov al, 'A'; out dx, al; mov al, 7; out 0xf4, al; hlt
const PRINTS_AND_EXITS: &[u8] = &[0xba, 0xf8, 3, 0xb0, 0x41, 0xee, 0xb0, 7, 0xe6, 0xf4, 0xf4];
/// Echoes the serial port until it has echoed a q, then exits with 0.
const ECHOES: &[u8] = &[
    0xba, 0xfd, 3, 0xec, 0xa8, 1, 0x74, 0xf8, 0xba, 0xf8, 3, 0xec, 0xee, 0x3c, 0x71, 0x75, 0xef,
    0xb0, 0, 0xe6, 0xf4,
];
/// mov al, 0xfe; out 0x64, al; hlt
const RESETS: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4];
/// cli; hlt
const HALTS: &[u8] = &[0xfa, 0xf4];
/// mov dx, 0x3f8; mov al, 'A'; then out dx, al for ever
const CHATTY: &[u8] = &[0xba, 0xf8, 3, 0xb0, 0x41, 0xee, 0xeb, 0xfd];
/// jmp $
const SPINS: &[u8] = &[0xeb, 0xfe];
/// Prints A, sets the waking vector of ACPI's FACS to 0x7d00, enables the PM event `event`, lets the
/// RTC's alarm go off each second, and goes to sleep in S3.
const fn sleeps(event: u8) -> [u8; 68] {
    [
        0xba, 0xf8, 3, 0xb0, 0x41, 0xee, // mov dx, 0x3f8; mov al, 'A'; out dx, al
        0xb8, 0, 0xf0, 0x8e, 0xd8, // mov ax, 0xf000; mov ds, ax
        0x66, 0xc7, 6, 0x4c, 0, 0, 0x7d, 0, 0, // mov dword [0x4c], 0x7d00
        0xba, 2, 6, 0xb8, 0, event, 0xef, // mov dx, 0x602; mov ax, event << 8; out dx, ax
        0xb0, 1, 0xe6, 0x70, 0xb0, 0xc0, 0xe6,
        0x71, // second, minute and hour of the alarm: any
        0xb0, 3, 0xe6, 0x70, 0xb0, 0xc0, 0xe6, 0x71, //
        0xb0, 5, 0xe6, 0x70, 0xb0, 0xc0, 0xe6, 0x71, //
        0xb0, 0xb, 0xe6, 0x70, 0xb0, 0x22, 0xe6, 0x71, // register B: AIE and 24 hours
        0xba, 4, 6, 0xb8, 0, 0x24, 0xef, // mov dx, 0x604; mov ax, 0x2400; out dx, ax
        0xeb, 0xfe, // jmp $
    ]
}
/// At 0x7d00: prints W, and exits with 0 if the PM1 status says that the RTC woke the machine.
const WAKES: &[u8] = &[
    0xba, 0xf8, 3, 0xb0, 0x57, 0xee, // mov dx, 0x3f8; mov al, 'W'; out dx, al
    0xba, 0, 6, 0xed, 0x80, 0xfc, 0x84, // mov dx, 0x600; in ax, dx; cmp ah, 0x84
    0x0f, 0x95, 0xc0, 0xe6, 0xf4, // setne al; out 0xf4, al
];
/// A folder of its own for each test, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("vmm-cli-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a temporary folder");
        Folder(path)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).expect("a temporary file");
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it being gone.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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

fn vmm(args: &[&str], guest: Option<&Path>, input: &[u8]) -> Output {
    let mut command = Command::new(VMM);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(guest) = guest {
        command.arg("--kernel").arg(guest).args(["--boot", "flat:0x7c00:real16"]);
        if !args.contains(&"--timeout") {
            command.args(["--timeout", "20s"]);
        }
    }
    let mut child = command.spawn().expect("vmm");
    // A guest that has ended reads no more.
    let _ = child.stdin.take().expect("piped").write_all(input);
    child.wait_with_output().expect("vmm")
}

/// Starts a guest with pipes that the caller holds.
fn start(guest: &Path, timeout: &str) -> Child {
    Command::new(VMM)
        .args(["run", "--boot", "flat:0x7c00:real16", "--timeout", timeout, "--kernel"])
        .arg(guest)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("vmm")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn bad_input_is_one_paragraph_and_status_2() {
    let folder = Folder::new("bad");
    let text = folder.file("text", b"this is no kernel\n");
    let flat = folder.file("flat", PRINTS_AND_EXITS);
    let huge =
        folder.file("huge", b"# exitlab script 1\nmachine pc memory=9999G cpus=1 unix-time=0\n");
    let [text, flat, huge] = [&text, &flat, &huge].map(|p| p.to_str().expect("UTF-8"));
    let cases: &[(&[&str], &[&str])] = &[
        (&["run"], &["--kernel"]),
        (&["run", "--kernel", "/no/such/file"], &["/no/such/file", "No such file"]),
        (&["run", "--kernel", text], &["text", "looks like text"]),
        (&["run", "--payload", text], &["not a 64-bit little-endian ELF", "--kernel"]),
        (&["run", "--payload", "/no/such/file", "--test", "x"], &["cargo xtask payloads"]),
        (&["run", "--kernel", flat, "--boot", "flut"], &["flut"]),
        (&["run", "--kernel", flat, "--memory", "12"], &["12", "256M"]),
        (&["run", "--kernel", flat, "--boot", "flat", "--memory", "1M"], &["at least 2097152"]),
        (&["run", "--kernel", flat, "--boot", "flat", "--memory", "9999999G"], &["more than the"]),
        (&["run", "--kernel", flat, "--cpus", "0"], &["--cpus"]),
        (&["run", "--kernel", flat, "--cpu", "host,-x3apic"], &["x3apic"]),
        (&["run", "--kernel", flat, "--serial", "tcp:1"], &["stdio, null or file:PATH"]),
        (&["run", "--kernel", flat, "--irqchip", "none", "--cpus", "2"], &["only one vCPU"]),
        (&["run", "--kernel", flat, "--irqchip", "none", "--pit", "kernel"], &["leave one"]),
        (
            &["run", "--kernel", flat, "--boot", "flat", "--kvm", "/no/kvm"],
            &["/no/kvm", "modprobe"],
        ),
        (
            &["run", "--kernel", flat, "--boot", "flat", "--kvm", "/dev/null"],
            &["KVM_GET_API_VERSION"],
        ),
        (&["run", "--kernel", flat, "--device", "warp-drive"], &["--device"]),
        (
            &["run", "--kernel", flat, "--trace", "/tmp/x", "--on-reset", "reboot"],
            &["a recording is of one run"],
        ),
        (&["replay", huge], &["more than 1099511627776"]),
        (&["replay", "/no/such/script"], &["/no/such/script"]),
        (&["replay", text], &["text", "line 1"]),
    ];
    for (args, parts) in cases {
        let output = vmm(args, None, b"");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(output.stdout.is_empty(), "{args:?} printed on standard output");
        for part in *parts {
            assert!(said.contains(part), "{args:?}: {part:?} is not in: {said}");
        }
        assert!(!said.contains("panicked"), "{args:?}: {said}");
    }
}

/// Name, code, options; then the status, what is printed, and a part of what is reported.
type Ending =
    (&'static str, &'static [u8], &'static [&'static str], i32, &'static str, &'static str);

#[test]
fn the_exit_status_says_how_the_guest_ended() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("status");
    let reported = "rip 0000000000007c";
    let cases: &[Ending] = &[
        ("exit", PRINTS_AND_EXITS, &[], 15, "A", ""),
        ("reset", RESETS, &[], 10, "", ""),
        ("reboot", RESETS, &["--on-reset", "reboot", "--timeout", "500ms"], 124, "", "is over"),
        ("halt", HALTS, &[], 8, "", "nothing will wake"),
        ("halt-no-irqchip", HALTS, &["--irqchip", "none"], 8, "", reported),
        ("kept-halted", HALTS, &["--keep-halted", "--timeout", "500ms"], 124, "", "is over"),
        ("spin", SPINS, &["--timeout", "300ms"], 124, "", "jmp short 7C00h"),
        ("split", PRINTS_AND_EXITS, &["--irqchip", "split"], 15, "A", ""),
    ];
    for (name, code, args, status, printed, told) in cases {
        let guest = folder.file(name, code);
        let output = vmm(&[&["run"], *args].concat(), Some(&guest), b"");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(*status), "{name}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), *printed, "{name}");
        assert!(said.contains(told), "{name}: {told:?} is not in: {said}");
        assert!(!told.is_empty() || said.is_empty(), "{name}: {said}");
    }
}

#[test]
fn input_reaches_the_guest_byte_by_byte_and_none_is_lost() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("echo");
    let guest = folder.file("echo", ECHOES);
    let input = [&b"All work and no play. ".repeat(100)[..], b"q"].concat();
    let output = vmm(&["run"], Some(&guest), &input);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(output.stdout, input);
}

#[test]
fn a_recording_replays_and_a_changed_one_is_caught() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("trace");
    let guest = folder.file("echo", ECHOES);
    let trace = folder.0.join("trace");
    let name = trace.to_str().expect("UTF-8");
    let output = vmm(&["run", "--trace", name], Some(&guest), b"hello q");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let replayed = vmm(&["replay", name], None, b"");
    assert_eq!(replayed.status.code(), Some(0), "{}", stderr(&replayed));
    assert!(String::from_utf8_lossy(&replayed.stdout).contains("output of com1: 7 bytes"));
    let text = std::fs::read_to_string(&trace).expect("a script");
    let changed = text.replacen("output com1 \"h\"", "output com1 \"j\"", 1);
    assert_ne!(changed, text);
    std::fs::write(&trace, changed).expect("a script");
    let replayed = vmm(&["replay", name], None, b"");
    assert_eq!(replayed.status.code(), Some(6));
    assert!(stderr(&replayed).contains("\"j\""), "{}", stderr(&replayed));
}

#[test]
fn input_arrives_while_its_sender_still_holds_the_pipe() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("held");
    let guest = folder.file("echo", ECHOES);
    let mut child = start(&guest, "20s");
    let mut input = child.stdin.take().expect("piped");
    input.write_all(&[&[b'x'; 3000][..], b"q"].concat()).expect("room");
    let output = child.wait_with_output().expect("vmm");
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert_eq!(output.stdout.len(), 3001);
    drop(input);
}

#[test]
fn output_that_nobody_reads_holds_up_no_end() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("unread");
    let guest = folder.file("chatty", CHATTY);
    let end = |mut child: Child| {
        // Input that the guest does not take must not hold it up either.
        child.stdin.as_mut().expect("piped").write_all(&[b'x'; 100]).expect("room");
        // Neither end of the two pipes is closed before it has ended.
        child.wait().expect("vmm").code()
    };
    assert_eq!(end(start(&guest, "2s")), Some(124));
    let child = start(&guest, "60s");
    let pid = child.id().to_string();
    let signal = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_secs(2));
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill")
    });
    assert_eq!(end(child), Some(130));
    assert!(signal.join().expect("no panic").success());
}

#[test]
fn a_report_that_nobody_reads_changes_no_status() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("report");
    let mut child = start(&folder.file("spin", SPINS), "300ms");
    drop(child.stderr.take());
    assert_eq!(child.wait().expect("vmm").code(), Some(124));
}

#[test]
fn output_that_breaks_off_is_the_hosts_fault() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("full");
    let guest = folder.file("prints", PRINTS_AND_EXITS);
    for option in ["--serial=file:/dev/full", "--trace=/dev/full"] {
        let output = vmm(&["run", option], Some(&guest), b"");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(14), "{option}: {said}");
        assert!(said.contains("/dev/full") && said.contains("broke off"), "{option}: {said}");
    }
}

#[test]
fn a_signal_ends_the_vm_in_order() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("signal");
    // It prints, so that one knows it is running, and spins.
    let guest = folder.file("spin", &[&PRINTS_AND_EXITS[..6], SPINS].concat());
    let mut child = start(&guest, "20s");
    let mut byte = [0];
    let mut out = child.stdout.take().expect("piped");
    std::io::Read::read_exact(&mut out, &mut byte).expect("the guest prints");
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    assert_eq!(child.wait().expect("vmm").code(), Some(130));
}

#[test]
fn a_reader_that_goes_away_ends_the_vm() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("pipe");
    let guest = folder.file("chatty", CHATTY);
    let mut child = start(&guest, "20s");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("vmm").code(), Some(130));
}

#[test]
fn a_guest_that_starts_again_keeps_what_it_wrote() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("again");
    // Prints an A and resets, for ever.
    let guest = folder.file("again", &[&PRINTS_AND_EXITS[..6], RESETS].concat());
    let serial = folder.0.join("serial");
    let to = format!("file:{}", serial.display());
    let args = ["run", "--on-reset", "reboot", "--serial", &to, "--timeout", "700ms"];
    let output = vmm(&args, Some(&guest), b"");
    assert_eq!(output.status.code(), Some(124), "{}", stderr(&output));
    let written = std::fs::read(&serial).expect("a file");
    assert!(written.len() > 1 && written.iter().all(|&b| b == b'A'), "{written:?}");
}

#[test]
fn a_guest_that_sleeps_in_s3_wakes_with_its_memory_if_anything_can_wake_it() {
    if !kvm() {
        return;
    }
    let folder = Folder::new("s3");
    let image = |event| {
        let mut code = sleeps(event).to_vec();
        code.resize(0x100, 0);
        code.extend(WAKES);
        folder.file(&format!("s3-{event}"), &code)
    };
    // The RTC's event is bit 10; without it, or without ACPI, going to sleep is an end.
    for (event, acpi, status, printed) in
        [(4, "on", 1, "AW"), (0, "on", 0, "A"), (4, "off", 0, "A")]
    {
        let out = vmm(&["run", "--acpi", acpi], Some(&image(event)), b"");
        assert_eq!(out.status.code(), Some(status), "{event} {acpi}: {}", stderr(&out));
        assert_eq!(String::from_utf8_lossy(&out.stdout), printed, "{event} {acpi}");
    }
    let file = folder.0.join("serial.log");
    let serial = format!("file:{}", file.display());
    let out = vmm(&["run", "--acpi", "on", "--serial", &serial], Some(&image(4)), b"");
    assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
    assert_eq!(std::fs::read(file).expect("the log"), b"AW", "what it wrote before stays");
    let tight = ["run", "--acpi", "on", "--timeout", "1ms"];
    assert_eq!(vmm(&tight, Some(&image(4)), b"").status.code(), Some(124));
}
