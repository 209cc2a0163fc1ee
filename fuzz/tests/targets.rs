//! The list of targets, the binaries and what each target does with inputs that no fuzzer chose.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use common::input;
use fuzz::hunt::Hunt;
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

/// A fuzzer that is mostly told that its input is none looks at errors only.
#[test]
fn of_ten_inputs_at_most_one_is_refused() {
    let mut wrong = Vec::new();
    for target in ALL.iter().filter(|target| target.board().is_none()) {
        let mut hunt = Hunt::new(target, 1, 24);
        (target.seeds)().into_iter().for_each(|seed| hunt.add(seed));
        let step = |hunt: &mut Hunt| hunt.step().unwrap_or_else(|found| panic!("{}", found.says));
        (0..1000).for_each(|_| step(&mut hunt));
        let before = (hunt.runs, hunt.taken);
        (0..3000).for_each(|_| step(&mut hunt));
        let (runs, taken) = (hunt.runs - before.0, hunt.taken - before.1);
        println!("{}: {} of {runs} refused", target.name, runs - taken);
        if (runs - taken) * 10 > runs {
            wrong.push(format!("{}: {} of {runs}", target.name, runs - taken));
        }
    }
    assert!(wrong.is_empty(), "too many inputs are refused: {}", wrong.join("; "));
}

/// A reason for code that is no longer there is no reason.
#[test]
fn what_no_input_reaches_is_in_the_sources() {
    let root = here().parent().expect("the workspace");
    let mut rules: BTreeMap<(&str, &str), bool> = BTreeMap::new();
    for target in ALL {
        let sources = target.sources.iter().map(|source| root.join(source));
        let texts: Vec<_> =
            sources.map(|path| std::fs::read_to_string(path).expect("a source")).collect();
        for rule in target.beyond.iter().copied().flatten() {
            assert!(!rule.why.is_empty() && (rule.function, rule.text) != ("", ""), "{rule:?}");
            let function = format!("fn {}", rule.function);
            let is_there = texts.iter().any(|t| t.contains(rule.text) && t.contains(&function));
            *rules.entry((rule.function, rule.text)).or_default() |= is_there;
        }
    }
    let gone: Vec<_> = rules.iter().filter(|(_, is_there)| !**is_there).collect();
    assert!(gone.is_empty(), "{gone:?}");
}
