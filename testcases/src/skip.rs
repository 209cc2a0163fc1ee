//! Why a case is skipped.

use serde::{Deserialize, Serialize};

use crate::need::Need;

/// What makes a skip of a case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// The host does not offer this.
    Need(Need),
    /// The guest decided it.
    Guest,
    /// A bug of KVM's that the case is known to show.
    KnownBug,
    /// The configuration of an image asks for what our machine or this host lacks, or is not for it.
    Configuration,
    /// The host's processor is emulated, and known to deviate from a real one in this.
    Deviation,
}

impl Cause {
    /// The word for its kind.
    pub const fn word(&self) -> &'static str {
        match self {
            Cause::Need(_) => "need",
            Cause::Guest => "guest",
            Cause::KnownBug => "known-bug",
            Cause::Configuration => "configuration",
            Cause::Deviation => "deviation",
        }
    }

    /// The need, if it is one.
    pub const fn need(&self) -> Option<&Need> {
        match self {
            Cause::Need(need) => Some(need),
            _ => None,
        }
    }
}

/// A skip, besides the reason that is told of the case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// What makes it.
    pub cause: Cause,
    /// The reason as far as other cases may share it.
    pub brief: String,
}
