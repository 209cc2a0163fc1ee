//! What goes over a control socket: lines of JSON, each an object.
//!
//! The VM says a [`Greeting`] first. A client then sends a [`Request`] a line, and gets a [`Response`] for each, in
//! order. Lines of the VM's that are neither (with an `event`) may come in later versions; a client passes them
//! over.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version of this protocol. It grows only where an old client would misunderstand a new VM.
pub const PROTOCOL: u32 = 1;

/// What the VM says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// Who it is.
    pub exitlab: About,
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The program's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// What it can be asked for.
    pub commands: Vec<String>,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Comes back with the answer.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub id: Value,
    /// The command.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub arguments: Value,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Response {
    /// The request's.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub id: Value,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was done.
    #[serde(rename = "return")]
    Return(Value),
    /// It was not.
    #[serde(rename = "error")]
    Error(Refusal),
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people.
    pub message: String,
}

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalKind {
    /// The line is no request. The connection ends if it was too long.
    BadRequest,
    /// There is no such command.
    UnknownCommand,
    /// The command takes other arguments.
    BadArguments,
    /// It cannot be done now.
    Failed,
    /// There are too many clients. The connection ends.
    Busy,
}

impl Refusal {
    /// One of this kind.
    pub fn new(kind: RefusalKind, message: impl Into<String>) -> Refusal {
        Refusal { kind, message: message.into() }
    }
}
