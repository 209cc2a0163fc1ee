//! The programs of emulated hosts build, and know nothing of where that was.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use hosts::programs;

#[test]
fn programs_are_static_and_name_no_place_of_this_machine() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let root = fs::canonicalize(root).expect("the workspace");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let built = match programs::build(&root, &cargo, programs::Kind::Cases, &AtomicBool::new(false))
    {
        Ok(built) => built,
        Err(error) => panic!("{error}"),
    };
    let home = std::env::home_dir().expect("a home directory");
    for program in [built.agent, built.vmm] {
        let bytes = fs::read(&program).expect("a program");
        for place in
            [root.join("vmm"), root.join("target"), home.join(".cargo"), home.join(".rustup")]
        {
            let place = place.as_os_str().as_encoded_bytes();
            let found = bytes.windows(place.len()).position(|window| window == place);
            let text = found.map(|at| String::from_utf8_lossy(&bytes[at..at + 200]).into_owned());
            assert_eq!(text, None, "{}", program.display());
        }
    }
}
