//! What an emulated host is to do: the file `/job` of its image, as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Where the agent finds its job.
pub const PATH: &str = "/job";

/// Where it finds the images that came with it, as a [suite](crate::kut::Suite).
pub const IMAGES: &str = "/images";

/// What the least guest takes from the start of `vmm` to its end on an ordinary machine: the measure
/// of [`Speed::slowness`](crate::wire::Speed::slowness), and so of how long cases may take.
pub const REFERENCE: Duration = Duration::from_millis(15);

/// A job of the agent.
///
/// ```json
/// {"modules": {"irqbypass": "", "kvm": "", "kvm-amd": "npt=0"},
///  "task": {"cases": {"cases": [[0, "apic/ipi"], [7, "apic/ipi@smp2"]], "jobs": 4}}}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The kernel modules to load, each with its parameters as `name=value name=value`. A module's
    /// name is that of its file without `.ko`, with `-` and `_` alike; the order is that of the
    /// image.
    pub modules: BTreeMap<String, String>,
    /// Variables of the environment of what runs.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// What to do then.
    pub task: Task,
}

/// What to do on an emulated host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Task {
    /// Tell the facts.
    Facts,
    /// Run cases.
    Cases {
        /// The cases: the index by which results name each one, and its id.
        cases: Vec<(u32, String)>,
        /// How many vCPUs may run side by side; 1 at least.
        jobs: usize,
    },
    /// Run configurations of kvm-unit-tests, whose images came with the job.
    Images {
        /// The cases: the index by which results name each one, and its id.
        cases: Vec<(u32, String)>,
        /// How many vCPUs may run side by side; 1 at least.
        jobs: usize,
    },
    /// Run a command, program first.
    Command(Vec<String>),
    /// Be a shell on the console.
    Shell,
}
