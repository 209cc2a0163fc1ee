//! What a case says, and what of it is tested.

use std::fmt;

use serde::Deserialize;
use vmm::host::test::HostTest;

use super::{About, Because, Deviates, Expect, KnownBug, Machine, Tag, Timeout};
use crate::coverage::Cover;
use crate::kut::image::Image;
use crate::nearest;
use crate::need::Need;

/// The content of a case: the keys of its file, after a variant's overlay.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Spec {
    /// One sentence: what holds if the case passes.
    pub about: About,
    /// The test.
    pub subject: Subject,
    /// What the host must offer; see [`crate::need`].
    pub needs: Vec<Need>,
    /// Why the needs are what they are: told with the reason of a skip.
    pub because: Option<Because>,
    /// A bug of KVM's own that the test shows, and where it lies. While it is there, a fail that the
    /// guest reports is a skip with this reason; `--require known-bugs` makes it an error.
    pub known_bug: Option<KnownBug>,
    /// Where emulated processors deviate from a real one. On such a host a fail, and an error that the
    /// guest reports, is a skip with this reason; `--require deviations` makes it an error.
    pub deviates: Deviates,
    /// How long the guest may run, written like `10s`; within [`TIMEOUTS`](super::TIMEOUTS).
    pub timeout: Timeout,
    /// The right outcome, `pass` if not given; see [`Expect`].
    pub expect: Expect,
    /// Words to choose cases by (`tag:WORD` as a filter).
    pub tags: Vec<Tag>,
    /// What is covered on purpose, besides what the rest of the case tells; see [`crate::coverage`].
    pub covers: Vec<Cover>,
    /// The machine the test runs on.
    pub machine: Machine,
}

/// What is tested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A virtual machine: the test of a payload, written `payload = "PAYLOAD::TEST"`.
    Guest(TestRef),
    /// The host itself, by a test of `vmm host-test`, written `host-test = "TEST"`.
    Host(HostTest),
    /// An image that others made, which says by its exit status alone what came of it; no case file
    /// has one: see [`crate::kut`].
    Image(Box<Image>),
}

impl Subject {
    /// The payload or image; `host` if there is no guest.
    pub fn payload(&self) -> &str {
        match self {
            Subject::Guest(test) => &test.payload,
            Subject::Host(_) => "host",
            Subject::Image(image) => image.name(),
        }
    }

    /// The test, as its report names it.
    pub fn test(&self) -> &str {
        match self {
            Subject::Guest(test) => &test.test,
            Subject::Host(test) => test.name(),
            Subject::Image(image) => &image.config,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.payload(), self.test())
    }
}

/// A test of a payload, written `payload::test`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct TestRef {
    /// The payload's name.
    pub payload: String,
    /// The test's name in it.
    pub test: String,
}

impl TryFrom<String> for TestRef {
    type Error = String;

    fn try_from(text: String) -> Result<TestRef, String> {
        match text.split_once("::") {
            Some((payload, test)) if !payload.is_empty() && !test.is_empty() => {
                Ok(TestRef { payload: payload.into(), test: test.into() })
            }
            _ => Err(format!("payload `{text}`: write PAYLOAD::TEST, like apic::x2apic_self_ipi")),
        }
    }
}

impl fmt::Display for TestRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}::{}", self.payload, self.test)
    }
}

/// The keys of a case as they stand in its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    about: About,
    payload: Option<TestRef>,
    #[serde(rename = "host-test")]
    host_test: Option<String>,
    #[serde(default)]
    needs: Vec<Need>,
    because: Option<Because>,
    known_bug: Option<KnownBug>,
    #[serde(default)]
    deviates: Deviates,
    #[serde(default)]
    timeout: Timeout,
    #[serde(default)]
    expect: Expect,
    #[serde(default)]
    tags: Vec<Tag>,
    #[serde(default)]
    covers: Vec<Cover>,
    #[serde(default)]
    machine: Machine,
}

impl TryFrom<Written> for Spec {
    type Error = String;

    fn try_from(written: Written) -> Result<Spec, String> {
        let Written { about, payload, host_test, needs, because, known_bug, .. } = written;
        let Written { deviates, timeout, expect, tags, covers, machine, .. } = written;
        let subject = match (payload, host_test) {
            (Some(test), None) => Subject::Guest(test),
            (None, Some(name)) => Subject::Host(named(&name)?),
            (None, None) => {
                return Err("nothing is tested: write `payload = \"PAYLOAD::TEST\"`, or \
                            `host-test = \"TEST\"` for a test without a guest"
                    .into());
            }
            (Some(_), Some(_)) => {
                return Err(
                    "`payload` and `host-test`: a case is one test, of a guest or of the host; \
                            leave one out"
                        .into(),
                );
            }
        };
        if matches!(subject, Subject::Host(_))
            && (machine != Machine::default() || expect != Expect::Pass)
        {
            return Err("`host-test` has no guest, so neither `machine` nor `expect`".into());
        }
        let mut needs = needs;
        for need in machine.needs() {
            if !needs.contains(&need) {
                needs.push(need);
            }
        }
        Ok(Spec {
            about,
            subject,
            needs,
            because,
            known_bug,
            deviates,
            timeout,
            expect,
            tags,
            covers,
            machine,
        })
    }
}

fn named(name: &str) -> Result<HostTest, String> {
    HostTest::named(name).ok_or_else(|| {
        let names = HostTest::ALL.map(HostTest::name);
        let hint = nearest::hint(name, names);
        format!("no host-test is called `{name}`{hint}; known are {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<Spec, String> {
        toml::from_str(&format!("about = \"x\"\n{text}")).map_err(|e| e.to_string())
    }

    #[test]
    fn a_case_tests_a_guest_or_the_host() {
        let guest = spec("payload = \"apic::ipi\"").expect("a case").subject;
        assert_eq!((guest.payload(), guest.test()), ("apic", "ipi"));
        let host = spec("host-test = \"vfio\"").expect("a case").subject;
        assert_eq!(
            (&host, host.to_string()),
            (&Subject::Host(HostTest::Vfio), "host::vfio".into())
        );
    }

    #[test]
    fn a_case_that_tests_nothing_or_too_much_is_refused() {
        for (text, says) in [
            ("", "nothing is tested: write `payload"),
            ("payload = \"a::b\"\nhost-test = \"vfio\"", "leave one out"),
            ("host-test = \"vifo\"", "no host-test is called `vifo`; the nearest is `vfio`"),
            ("host-test = \"kernel\"", "known are vfio"),
            ("host-test = \"vfio\"\nexpect = \"reset\"", "neither `machine` nor `expect`"),
            ("host-test = \"vfio\"\nmachine.vcpus = 2", "neither `machine` nor `expect`"),
            ("host_test = \"vfio\"", "`host-test`"),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
