//! What tests with a real VMM on a real KVM have in common.

use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use testcases::facts::HostFacts;
use testcases::need::Need;
use testcases::program::build_vmm;
use testcases::require::{Require, VARIABLE};
use testcases::skip::Cause;

/// The workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace")
}

/// The VMM, built; none where there is no KVM, which is told as `untested`, and is wrong where one is
/// required.
pub fn vmm(facts: &dyn HostFacts, untested: &str) -> Option<PathBuf> {
    if let Err(why) = facts.kvm() {
        let required = std::env::var(VARIABLE).unwrap_or_default();
        assert!(
            !Require::parse(&required).expect(VARIABLE).forbids(&Cause::Need(Need::Kvm)),
            "{VARIABLE}={required}, but {why}"
        );
        // Not by a macro: the test harness would keep that to itself.
        let note = format!("\nNOT TESTED: {untested}: {why}\n\n");
        std::io::stderr().write_all(note.as_bytes()).expect("standard error");
        return None;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let cancel = AtomicBool::new(false);
    Some(build_vmm(workspace(), &cargo, false, &cancel).expect("the vmm program"))
}
