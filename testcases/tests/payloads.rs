//! The payloads of this workspace build, pass the build's checks, and say what they hold.

use std::path::Path;
use testcases::build::{Options, build_payloads, list_tests};

#[test]
fn payloads_are_built_and_listed() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let built = match build_payloads(&workspace, &Options::default()) {
        Ok(built) => built,
        Err(error) => panic!("{error}"),
    };
    for (area, payload) in built.catalog.iter() {
        assert_eq!(payload.path, built.dir.join(area));
        assert!(!payload.tests.is_empty(), "{area} holds no test");
        let listed = list_tests(&std::fs::read(&payload.path).unwrap()).unwrap();
        assert_eq!(listed.len(), payload.tests.len(), "{area}");
    }
    let selftest = built.catalog.get("selftest").expect("a payload selftest");
    let skip = selftest.tests.iter().find(|(name, _)| name == "skip").expect("its test skip");
    assert_eq!(skip.1, "Skips itself.");
}
