use super::*;

/// A directory with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }
    dir
}

const TWO: &str = "[a]\nfile = a.flat\ngroups = g nodefault\n[b]\nfile = b.flat\narch = i386\n\
                   check = /sys/module/kvm_intel/parameters/ept=Y\n";

#[test]
fn a_tree_and_a_folder_are_suites() {
    let tree = folder(&[
        ("config.mak", "SRC=x\nARCH=i386\n"),
        ("x86/unittests.cfg", TWO),
        ("x86/b.flat", ""),
    ]);
    let suite = Suite::open(tree.path()).expect("a suite");
    assert_eq!((&suite.arch[..], suite.configs.len()), ("i386", 2));
    let files = suite.files(&suite.cases(true)[1..]);
    let names: Vec<_> = files.iter().map(|(name, _)| &name[..]).collect();
    assert_eq!(names, [TREE, CONFIG, "b.flat"]);

    // With those files, another directory is the same suite.
    let copy = folder(&[]);
    for (name, path) in &files {
        fs::copy(path, copy.path().join(name)).expect("a copy");
    }
    let copied = Suite::open(copy.path()).expect("a suite");
    assert_eq!((&copied.arch, &copied.configs), (&suite.arch, &suite.configs));
    assert_eq!(copied.cases(true)[1].spec.needs, suite.cases(true)[1].spec.needs);
}

#[test]
fn a_configuration_is_a_case() {
    let dir = folder(&[(CONFIG, TWO), ("a.flat", ""), ("b.flat", "")]);
    let suite = Suite::open(dir.path()).expect("a suite");
    let why = |all: bool, at: usize| match suite.cases(all).remove(at).spec.subject {
        Subject::Image(image) => image.why_not,
        other => panic!("{other:?}"),
    };
    assert_eq!(why(false, 0), "it is in the group nodefault; --all runs it");
    assert_eq!((why(true, 0), suite.arch.as_str()), (String::new(), "x86_64"));
    assert_eq!(why(true, 1), "it is for i386, and the images are for x86_64");
    let case = &suite.cases(true)[1];
    assert_eq!(
        (case.id.to_string(), case.spec.subject.to_string()),
        ("kut/b".into(), "b::b".into())
    );
    assert_eq!(
        case.spec.needs,
        [Need::try_from("module:kvm_intel.ept=Y".to_string()).expect("a need")]
    );
    assert_eq!(suite.cases(true)[0].spec.tags, [Tag("g".into()), Tag("nodefault".into())]);
}

#[test]
fn what_is_no_suite_says_what_is_missing() {
    for (files, says) in [
        (&[][..], "neither x86/unittests.cfg nor unittests.cfg"),
        (&[(CONFIG, TWO)], "none of the 2 images"),
        (&[(CONFIG, TWO), (TREE, "ARCH=x86_64"), ("c.flat", "")], "build them there: make"),
        (&[(CONFIG, "x"), ("a.flat", "")], "unittests.cfg: line 1: `x` is neither"),
        (&[(CONFIG, TWO), (TREE, "ARCH=arm64\n"), ("a.flat", "")], "configured for arm64"),
    ] {
        let dir = folder(files);
        let error = Suite::open(dir.path()).expect_err(says).to_string();
        assert!(error.contains(says), "{says}: {error}");
    }
    let long = folder(&[(CONFIG, &"#".repeat(MAX_BYTES as usize + 1)), ("a.flat", "")]);
    assert!(
        Suite::open(long.path()).expect_err("too long").to_string().contains("no such file has")
    );
}
