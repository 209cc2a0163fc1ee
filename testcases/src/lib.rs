//! What is tested: declarative cases by area, and the runner.
//!
//! A case ([`case`]) is a TOML file that names a test of a payload, the machine it runs on, what it
//! needs of the host ([`need`], [`facts`]) and the outcome that is right; or a test of the host itself.
//! [`load`] reads the cases and checks them against the payloads that [`build`] makes; [`select`]
//! chooses; [`kut`] makes cases of the images of kvm-unit-tests; [`runner`] runs each in a process of its own ([`process`]), as many side by side as fit
//! ([`schedule`]); [`transcript`] reads what the guest says and [`verdict`] judges; [`skip`] is why a case was left out, and [`require`] tells
//! which of that is not accepted; [`report`] tells people, CI systems and programs. [`coverage`] tells
//! what of KVM's API and of the manuals has a case, and what has none yet.
//!
//! An emulated host gets a [`job`] and reports by messages on a [`wire`].

pub mod bounded;
pub mod build;
pub mod caps;
pub mod case;
pub mod coverage;
pub mod facts;
pub mod facts_table;
pub mod job;
pub mod kut;
pub mod load;
pub mod nearest;
pub mod need;
pub mod process;
pub mod program;
pub mod report;
pub mod reproducible;
pub mod require;
pub mod runner;
pub mod schedule;
pub mod select;
pub mod skip;
pub mod status;
pub mod transcript;
pub mod verdict;
pub mod wire;
