//! A control socket with clients of every kind, without a VM.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use serde_json::json;

use super::wire::{Greeting, RefusalKind};
use super::*;

/// Says back what it is told, or a megabyte.
struct Echo;

impl Commands for Echo {
    fn names(&self) -> &'static [&'static str] {
        &["echo", "much"]
    }

    fn run(&self, command: &str, arguments: &Value) -> Result<Value, Refusal> {
        match (command, arguments) {
            ("much", _) => Ok("x".repeat(1 << 20).into()),
            (_, Value::String(_)) => {
                Err(Refusal::new(RefusalKind::BadArguments, "`echo` takes no text"))
            }
            (_, arguments) => Ok(arguments.clone()),
        }
    }
}

/// A served socket in a folder of its own.
fn served() -> (tempfile::TempDir, PathBuf, ControlSocket) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let socket = ControlSocket::bind(&path).expect("a socket");
    socket.serve(Arc::new(Echo)).expect("a thread");
    (folder, path, socket)
}

/// A client that has been greeted.
fn connect(path: &Path) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(path).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time limit");
    let mut stream = BufReader::new(stream);
    let greeting: Greeting = serde_json::from_str(&line(&mut stream)).expect("a greeting");
    assert_eq!(greeting.exitlab.commands, ["echo", "much"]);
    assert_eq!((greeting.exitlab.protocol, greeting.exitlab.pid), (1, std::process::id()));
    stream
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("a line");
    line
}

/// Sends that, and gives the answer.
fn ask(stream: &mut BufReader<UnixStream>, text: &[u8]) -> Value {
    stream.get_mut().write_all(text).expect("sent");
    serde_json::from_str(&line(stream)).expect("JSON")
}

/// What kind of refusal it is.
fn kind(answer: &Value) -> &str {
    answer["error"]["kind"].as_str().unwrap_or("none")
}

#[test]
fn the_socket_is_its_users_alone_and_goes_with_its_vm() {
    let (_folder, path, socket) = served();
    let mode = std::fs::symlink_metadata(&path).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(socket);
    assert!(!path.exists(), "it is removed");
}

#[test]
fn a_socket_that_is_somebody_elses_by_now_is_not_removed() {
    let (_folder, path, socket) = served();
    std::fs::remove_file(&path).expect("a file");
    std::fs::write(&path, "another's").expect("a file");
    drop(socket);
    assert_eq!(std::fs::read_to_string(&path).expect("it is still there"), "another's");
}

#[test]
fn what_is_there_already_is_named_and_left_alone() {
    let (folder, path, socket) = served();
    let said = |path: &Path| ControlSocket::bind(path).expect_err("it is taken").to_string();
    assert!(said(&path).contains("another program listens there"), "{}", said(&path));
    let file = folder.path().join("file");
    std::fs::write(&file, "text").expect("a file");
    assert!(said(&file).contains("a file is there already"), "{}", said(&file));
    assert_eq!(std::fs::read_to_string(&file).expect("it is still there"), "text");
    let stale = folder.path().join("stale");
    drop(UnixListener::bind(&stale).expect("a socket"));
    assert!(said(&stale).contains("nobody listens at"), "{}", said(&stale));
    let long = folder.path().join("x".repeat(200));
    assert!(said(&long).contains("at most 107 bytes"), "{}", said(&long));
    let nowhere = folder.path().join("no/folder");
    assert!(said(&nowhere).contains("No such file"), "{}", said(&nowhere));
    drop(socket);
}

#[test]
fn requests_are_answered_in_order_with_their_ids() {
    let (_folder, path, _socket) = served();
    let mut client = connect(&path);
    let answer =
        ask(&mut client, b"{\"id\": 7, \"command\": \"echo\", \"arguments\": {\"a\": 1}}\n");
    assert_eq!(answer, json!({"id": 7, "return": {"a": 1}}));
    // In pieces, and two at once with an empty line between.
    client.get_mut().write_all(b"{\"id\": \"x\", \"comm").expect("sent");
    let answer = ask(&mut client, b"and\": \"echo\"}\n\r\n{\"id\": 9, \"command\": \"echo\"}\n");
    assert_eq!(answer["id"], "x");
    assert_eq!(serde_json::from_str::<Value>(&line(&mut client)).expect("JSON")["id"], 9);
}

#[test]
fn rubbish_is_refused_and_the_next_request_is_answered() {
    let (_folder, path, _socket) = served();
    let mut client = connect(&path);
    let deep = [&b"["[..]; 20_000].concat();
    for (rubbish, wanted) in [
        (&b"hello"[..], "bad-request"),
        (b"\xff\xfe\x00", "bad-request"),
        (b"{}", "bad-request"),
        (b"[1, 2]", "bad-request"),
        (b"{\"command\": 1}", "bad-request"),
        (b"{\"command\": \"echo\", \"argument\": 1}", "bad-request"),
        (&deep, "bad-request"),
        (b"{\"command\": \"quit\"}", "unknown-command"),
        (b"{\"command\": \"echo\", \"arguments\": \"text\"}", "bad-arguments"),
    ] {
        let answer = ask(&mut client, &[rubbish, b"\n"].concat());
        assert_eq!(kind(&answer), wanted, "{answer}");
    }
    assert_eq!(
        ask(&mut client, b"{\"command\":\"echo\",\"arguments\":[1]}\n")["return"],
        json!([1])
    );
}

#[test]
fn a_line_that_does_not_end_is_refused_and_takes_no_memory() {
    let (_folder, path, _socket) = served();
    let mut client = connect(&path);
    let mut sender = client.get_ref().try_clone().expect("another handle");
    // The other side hangs up in the midst of it.
    let sending = std::thread::spawn(move || {
        let block = vec![b'x'; LINE];
        (0..1000).take_while(|_| sender.write_all(&block).is_ok()).count()
    });
    let answer: Value = serde_json::from_str(&line(&mut client)).expect("JSON");
    assert_eq!(kind(&answer), "bad-request");
    assert!(sending.join().expect("no panic") < 100, "it was not read to its end");
    assert_eq!(client.read_line(&mut String::new()).unwrap_or(0), 0, "it is disconnected");
    connect(&path);
}

#[test]
fn a_client_that_reads_nothing_keeps_nobody_waiting() {
    let (_folder, path, socket) = served();
    let mut slow = connect(&path);
    for _ in 0..50 {
        slow.get_mut().write_all(b"{\"command\": \"much\"}\n").expect("sent");
    }
    let mut other = connect(&path);
    assert_eq!(ask(&mut other, b"{\"command\": \"echo\"}\n"), json!({"return": null}));
    // One that hangs up with answers unread.
    let mut gone = connect(&path);
    gone.get_mut().write_all(b"{\"command\": \"much\"}\n").expect("sent");
    drop(gone);
    assert_eq!(ask(&mut other, b"{\"command\": \"echo\"}\n"), json!({"return": null}));
    // Who reads at last gets all.
    for _ in 0..50 {
        assert!(line(&mut slow).len() > 1 << 20);
    }
    slow.get_mut().write_all(b"{\"command\": \"much\"}\n").expect("sent");
    // Nor does it keep the end waiting.
    drop(socket);
}

#[test]
fn a_client_that_ends_its_side_gets_its_answers_first() {
    let (_folder, path, _socket) = served();
    let mut client = connect(&path);
    client
        .get_mut()
        .write_all(b"{\"command\": \"much\"}\n{\"id\": 1, \"command\": \"echo\"}")
        .expect("sent");
    client.get_ref().shutdown(std::net::Shutdown::Write).expect("a socket");
    let mut all = String::new();
    client.read_to_string(&mut all).expect("to the end");
    assert_eq!(all.lines().count(), 2);
    assert!(all.ends_with("{\"id\":1,\"return\":null}\n"));
}

#[test]
fn one_client_too_many_is_told_so() {
    let (_folder, path, _socket) = served();
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(&path)).collect();
    let said = Client::connect(&path).expect_err("there is no room").to_string();
    assert!(said.contains("16 clients are connected"), "{said}");
    drop(clients);
    let start = Instant::now();
    while Client::connect(&path).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20), "there is room again");
    }
}

#[test]
fn a_client_asks_and_learns_when_its_vm_has_ended() {
    let (folder, path, socket) = served();
    let mut client = Client::connect(&path).expect("it listens");
    assert_eq!(client.about().commands, ["echo", "much"]);
    assert_eq!(client.ask::<Value>("echo").expect("an answer"), Value::Null);
    let said = client.ask::<u32>("echo").expect_err("null is no number").to_string();
    assert!(said.contains("its answer to `echo`"), "{said}");
    let said = client.ask::<Value>("quit").expect_err("no such command").to_string();
    assert!(said.contains("there are echo, much"), "{said}");
    drop(socket);
    assert!(matches!(client.ask::<Value>("echo"), Err(ClientError::Ended { .. })));
    let said = Client::connect(&path).expect_err("nobody is there").to_string();
    assert!(said.contains("--control PATH"), "{said}");
    let foreign = folder.path().join("foreign");
    let listener = UnixListener::bind(&foreign).expect("a socket");
    let speaks = std::thread::spawn(move || {
        for words in [
            "SSH-2.0\n",
            "{\"exitlab\":{\"protocol\":9,\"version\":\"9\",\"pid\":1,\"commands\":[]}}\n",
        ] {
            let (mut stream, _) = listener.accept().expect("a client");
            stream.write_all(words.as_bytes()).expect("sent");
        }
    });
    let said = Client::connect(&foreign).expect_err("it is something else").to_string();
    assert!(said.contains("\"SSH-2.0\\n\""), "{said}");
    let said = Client::connect(&foreign).expect_err("it is something else").to_string();
    assert!(said.contains("it speaks protocol 9 (version 9)"), "{said}");
    speaks.join().expect("no panic");
}
