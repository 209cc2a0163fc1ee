//! The list of targets, the binaries and what each target does with inputs that no fuzzer chose.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::input;
use fuzz::targets::{ALL, Subject, build, named};
use vmm::script::replay::Player;

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn each_target_has_a_binary_of_its_name_and_no_binary_is_without() {
    let manifest = std::fs::read_to_string(here().join("Cargo.toml")).expect("the manifest");
    let mut files = BTreeSet::new();
    for target in ALL {
        let name = target.name;
        let file = format!("fuzz_targets/{}.rs", name.replace('-', "_"));
        let entry = format!(
            "[[bin]]\nname = \"{name}\"\npath = \"{file}\"\nrequired-features = [\"libfuzzer\"]\n\
             test = false\nbench = false\ndoc = false\n"
        );
        assert!(manifest.contains(&entry), "fuzz/Cargo.toml is to have:\n{entry}");
        let text = std::fs::read_to_string(here().join(&file)).unwrap_or_default();
        let expected = format!(
            "//! libFuzzer on the target `{name}`.\n#![no_main]\nfuzz::target!(\"{name}\");\n"
        );
        assert_eq!(text, expected, "{file}");
        files.insert(here().join(file));
    }
    let there = here().join("fuzz_targets").read_dir().expect("the binaries");
    let there: BTreeSet<_> = there.map(|entry| entry.expect("an entry").path()).collect();
    assert_eq!(there, files, "a binary without a target");
    assert_eq!(manifest.matches("fuzz_targets/").count(), ALL.len(), "fuzz/Cargo.toml has more");
}

#[test]
fn targets_have_names_of_their_own_and_sources_that_exist() {
    let root = here().parent().expect("the workspace");
    for target in ALL {
        assert!(std::ptr::eq(named(target.name).expect("its name"), *target), "{}", target.name);
        assert!(!target.sources.is_empty(), "{}", target.name);
        for source in target.sources {
            assert!(root.join(source).is_file(), "{}: there is no {source}", target.name);
        }
        let full = target.floor >= 90;
        assert!(full || !target.uncovered.is_empty(), "{}: why so little?", target.name);
    }
    assert!(named("virtio-everything").is_none());
}

/// A chip that is on a PC and in no target would not be fuzzed by itself.
#[test]
fn every_device_of_a_pc_is_on_the_board_of_a_target() {
    let devices = |name: &str| -> BTreeSet<&'static str> {
        let board = named(name).expect("a target").board().expect("a board");
        let player = Player::new(&board.spec, &build).expect("a board that can be built");
        player.machine().devices().collect()
    };
    let pc: BTreeSet<_> = devices("board").union(&devices("pci")).copied().collect();
    let others =
        ALL.iter().map(|target| target.name).filter(|name| !["board", "pci"].contains(name));
    let alone: BTreeSet<_> = others
        .filter(|name| matches!(named(name).expect("it").subject, Subject::Board { .. }))
        .flat_map(devices)
        .collect();
    assert_eq!(pc.difference(&alone).collect::<Vec<_>>(), [&""; 0]);
}

#[test]
fn every_target_takes_nothing_its_seeds_and_anything() {
    for target in ALL {
        target.run(&[]);
        for seed in (target.seeds)() {
            target.run(&seed);
        }
        for word in target.words {
            target.run(word);
        }
        for n in 0..60 {
            target.run(&input(n));
        }
    }
}
