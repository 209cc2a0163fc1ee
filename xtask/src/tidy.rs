//! `cargo xtask tidy`: the rules of the house that a program can check.
//!
//! The rules are data, in the constants at the top. Each is a function from the repository's files to
//! what breaks it, and each has a test with a text that does.

use std::process::ExitCode;

use crate::flags;
use crate::support::lex::{self, NamedPath};
use crate::support::repository::{Finding, Repository};
use crate::support::{Out, Outcome, root};

/// The modules of `vmm`, from the inside out. A module may name itself and those before it.
const LAYERS: &[&str] = &[
    "units", "words", "planted", "access", "ram", "device", "state", "laws", "cpu", "cpuid",
    "hyperv", "chips", "bus", "exit", "machine", "script", "boot", "payload", "sabotage", "stats",
    "hv", "lab", "run", "host", "control", "launch",
];

/// Paths that files below a place must not name, and why.
const FORBIDDEN: &[Forbidden] = &[
    Forbidden {
        below: "",
        except: &["vmm/src/hv/kvm"],
        paths: &["kvm_ioctls", "kvm_bindings"],
        why: "only vmm/src/hv/kvm knows KVM",
    },
    Forbidden {
        below: "vmm/src/chips",
        except: &[],
        paths: &[
            "libc",
            "std::env",
            "std::fs",
            "std::net",
            "std::process",
            "std::thread",
            "std::time",
        ],
        why: "a chip owns registers and nothing else: it sees time as env.now and memory as env.ram",
    },
];

/// Where `unsafe` may stand.
const UNSAFE: &[&str] = &["vmm/src/hv", "vmm/src/host", "guest-payloads/rt/", "fuzz/src/watch.rs"];

/// A file where `unsafe` may stand so many times: the test table's `Sync`.
const UNSAFE_ONCE: (&str, usize) = ("guest-payloads/abi/src/lib.rs", 1);

/// What stands at the top of the repository; names that begin with a dot may, too.
const TOP: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "README.md",
    "benches",
    "fuzz",
    "guest-payloads",
    "testcases",
    "vmm",
    "xtask",
];

/// Words that mean unfinished work (split here, so that this file holds none).
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Files that are searched for unfinished work: by the end of their name.
const TEXTS: &[&str] = &[".rs", ".toml", ".md", ".sh", ".yml", ".S", ".ld", ".ci/run"];

/// A longer file gets a warning. Lines.
const LONG: usize = 500;

/// A fuzz target has fewer lines of code than this.
const FUZZ_TARGET_LINES: usize = 10;

/// Files of `xtask/src` that are not commands.
const XTASK_FRAME: &[&str] = &["main.rs", "flags.rs"];

/// The rules.
const RULES: &[(&str, Check)] = &[
    ("layers", layers),
    ("forbidden names", forbidden),
    ("unsafe", unsafe_code),
    ("file length", length),
    ("fuzz targets", fuzz_targets),
    ("top level", top_level),
    ("unfinished work", unfinished),
    ("commands", commands),
];

/// Finds what breaks a rule.
type Check = fn(&Repository) -> Vec<Finding>;

/// One entry of [`FORBIDDEN`].
struct Forbidden {
    /// The beginning of the paths of the files it is about.
    below: &'static str,
    /// Among these, beginnings of those it is not about.
    except: &'static [&'static str],
    /// The first words of what must not be named.
    paths: &'static [&'static str],
    /// The reason.
    why: &'static str,
}

/// Runs the command.
pub fn run(_: &flags::NoFlags, out: &mut Out) -> Outcome {
    let repository = Repository::read(&root())?;
    let (mut broken, mut warnings) = (0, 0);
    for (rule, check) in RULES {
        for finding in check(&repository) {
            let kind = if finding.warning { "warning" } else { "error" };
            writeln!(out, "{}: {kind}: {rule}: {}", finding.place, finding.message);
            *if finding.warning { &mut warnings } else { &mut broken } += 1;
        }
    }
    writeln!(
        out,
        "tidy: {} files, {} rules, {broken} errors, {warnings} warnings",
        repository.files.len(),
        RULES.len()
    );
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// The module path of a source file of `vmm`, if it is one of its library's. The program (`main`,
/// `cli`) may name everything.
fn vmm_module(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("vmm/src/")?.strip_suffix(".rs")?;
    if matches!(inner, "lib" | "main") || inner.starts_with("cli/") {
        return None;
    }
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    Some(inner.split('/').map(str::to_string).collect())
}

/// The top module of `vmm` that a path leads to from within `here`, if it leads through the root.
fn target(here: &[String], named: &NamedPath) -> Option<String> {
    let mut words = named.words.iter();
    let mut at: Vec<&String> = here.iter().chain(&named.modules).collect();
    let mut word = words.next()?;
    match word.as_str() {
        "crate" => at.clear(),
        "super" => {
            while word == "super" {
                at.pop();
                word = words.next()?;
            }
            return if at.is_empty() { Some(word.clone()) } else { None };
        }
        _ => return None,
    }
    words.next().cloned()
}

fn layers(repository: &Repository) -> Vec<Finding> {
    let rank = |module: &str| LAYERS.iter().position(|layer| *layer == module);
    let mut findings = Vec::new();
    for (path, tokens) in repository.rust() {
        // A test may put together what the code must not.
        let Some(here) = vmm_module(path).filter(|m| !m.iter().any(|m| m == "tests")) else {
            continue;
        };
        let Some(own) = rank(&here[0]) else {
            let message = format!("module `{}` has no place in tidy's LAYERS", here[0]);
            findings.push(Finding::new(path, 1, message));
            continue;
        };
        for named in lex::paths(&tokens) {
            // A word that is no module is an item or a macro of the root.
            let Some(other) = target(&here, &named) else { continue };
            if named.modules.iter().any(|m| m == "tests") {
                continue;
            }
            if rank(&other).is_some_and(|other| other > own) {
                let message = format!("`{}` names `{other}`, which is further out", here[0]);
                findings.push(Finding::new(path, named.line, message));
            }
        }
    }
    findings
}

fn forbidden(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, tokens) in repository.rust() {
        for rule in FORBIDDEN {
            if !path.starts_with(rule.below) || rule.except.iter().any(|e| path.starts_with(e)) {
                continue;
            }
            let paths =
                lex::paths(&tokens).into_iter().map(|p| (p.words.join("::") + "::", p.line));
            // A crate can also be named alone, as in `use libc as c`.
            let words = tokens.iter().map(|token| (token.text.clone() + "::", token.line));
            let mut named: Vec<(&str, usize)> = Vec::new();
            for (text, line) in paths.chain(words) {
                let bad = rule.paths.iter().filter(|bad| text.starts_with(&format!("{bad}::")));
                named.extend(bad.map(|bad| (*bad, line)));
            }
            named.sort();
            named.dedup();
            let message = |bad| format!("names `{bad}`: {}", rule.why);
            findings
                .extend(named.iter().map(|(bad, line)| Finding::new(path, *line, message(bad))));
        }
    }
    findings
}

fn unsafe_code(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, tokens) in repository.rust() {
        if UNSAFE.iter().any(|place| path.starts_with(place)) {
            continue;
        }
        let allowed = if path == UNSAFE_ONCE.0 { UNSAFE_ONCE.1 } else { 0 };
        for token in tokens.iter().filter(|t| t.text == "unsafe").skip(allowed) {
            let message = format!("`unsafe` stands only in {}", UNSAFE.join(", "));
            findings.push(Finding::new(path, token.line, message));
        }
    }
    findings
}

fn length(repository: &Repository) -> Vec<Finding> {
    let rust = repository.files.iter().filter(|(path, _)| path.ends_with(".rs"));
    let long = rust.map(|(path, text)| (path, text.lines().count())).filter(|(_, n)| *n > LONG);
    long.map(|(path, n)| Finding {
        warning: true,
        ..Finding::new(path, n, format!("{n} lines are more than {LONG}; can it be two files?"))
    })
    .collect()
}

fn fuzz_targets(repository: &Repository) -> Vec<Finding> {
    let targets = repository.rust().filter(|(path, _)| path.starts_with("fuzz/fuzz_targets/"));
    let mut findings = Vec::new();
    for (path, tokens) in targets {
        let mut lines: Vec<usize> = tokens.iter().map(|t| t.line).collect();
        lines.dedup();
        if lines.len() >= FUZZ_TARGET_LINES {
            let message = format!(
                "{} lines of code; a target has fewer than {FUZZ_TARGET_LINES} and no logic",
                lines.len()
            );
            findings.push(Finding::new(path, 1, message));
        }
    }
    findings
}

fn top_level(repository: &Repository) -> Vec<Finding> {
    let mut tops: Vec<&str> =
        repository.files.keys().filter_map(|path| path.split('/').next()).collect();
    tops.dedup();
    let strange = tops.into_iter().filter(|top| !top.starts_with('.') && !TOP.contains(top));
    strange
        .map(|top| Finding::new(top, 1, format!("the top level holds only {}", TOP.join(", "))))
        .collect()
}

fn unfinished(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in &repository.files {
        if !TEXTS.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if let Some(word) = words.find(|word| UNFINISHED.contains(word)) {
                let message = format!("`{word}`: finish it, or open an issue");
                findings.push(Finding::new(path, number + 1, message));
            }
        }
    }
    findings
}

fn commands(repository: &Repository) -> Vec<Finding> {
    let mut findings = Vec::new();
    let declared: Vec<String> = repository
        .files
        .get("xtask/src/flags.rs")
        .map(|text| lex::variants(&lex::tokens(text), "Command"))
        .unwrap_or_default();
    for command in &declared {
        let file = format!("xtask/src/{command}.rs");
        if !repository.files.contains_key(&file) {
            findings.push(Finding::new(&file, 1, format!("command `{command}` has no file")));
        }
    }
    for path in repository.files.keys() {
        let Some(name) = path.strip_prefix("xtask/src/") else { continue };
        if name.starts_with("support/") || XTASK_FRAME.contains(&name) {
            continue;
        }
        if !name.strip_suffix(".rs").is_some_and(|name| declared.iter().any(|c| c == name)) {
            let message = "neither a command of flags.rs nor below support/";
            findings.push(Finding::new(path, 1, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a rule finds in these files, as `place: message` lines.
    fn found(rule: &str, files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (path.to_string(), text.to_string())).collect();
        let (_, check) = RULES.iter().find(|(name, _)| *name == rule).expect("a rule");
        let findings = check(&Repository { files });
        findings.into_iter().map(|f| format!("{}: {}", f.place, f.message)).collect()
    }

    /// Each text breaks the rule once, at that line.
    fn breaks(rule: &str, cases: &[(&str, &str, usize)]) {
        for (path, text, line) in cases {
            let found = found(rule, &[(path, text)]);
            assert_eq!(found.len(), 1, "{path} {text}: {found:?}");
            assert!(found[0].starts_with(&format!("{path}:{line}: ")), "{text}: {found:?}");
        }
    }

    /// None of the texts breaks the rule.
    fn keeps(rule: &str, cases: &[(&str, &str)]) {
        for (path, text) in cases {
            assert_eq!(found(rule, &[(path, text)]), Vec::<String>::new(), "{path} {text}");
        }
    }

    #[test]
    fn an_arrow_never_points_outward() {
        breaks(
            "layers",
            &[
                ("vmm/src/chips/uart.rs", "\nuse crate::bus::Bus;", 2),
                ("vmm/src/chips/mod.rs", "use crate::{access, hv::kvm};", 1),
                ("vmm/src/chips/uart.rs", "use super::super::host;", 1),
                ("vmm/src/chips/uart.rs", "mod inner { use super::super::super::run::x; }", 1),
                ("vmm/src/bus.rs", "fn f() { crate::machine::pc() }", 1),
                ("vmm/src/bus.rs", "use super::machine;", 1),
                ("vmm/src/access.rs", "use crate::ram::GuestRam;", 1),
                ("vmm/src/nowhere.rs", "", 1),
            ],
        );
        keeps(
            "layers",
            &[
                ("vmm/src/chips/uart.rs", "use crate::{access, device::At}; use super::bus::x;"),
                ("vmm/src/bus.rs", "// crate::hv\nfn f() { \"crate::hv\"; }"),
                ("vmm/src/bus/map.rs", "mod inner { use super::super::run; }"),
                ("vmm/src/bus/map.rs", "mod tests { use crate::run; }"),
                ("vmm/src/bus/tests/all.rs", "use crate::run;"),
                ("vmm/src/bus/tests.rs", "use crate::run;"),
                ("vmm/src/host/disk.rs", "use crate::hv::kvm;"),
                ("vmm/src/lib.rs", "use crate::host;"),
                ("vmm/src/main.rs", "use crate::host;"),
                ("vmm/src/cli/run.rs", "use crate::host;"),
                ("fuzz/src/lib.rs", "use crate::host;"),
            ],
        );
    }

    #[test]
    fn some_names_are_forbidden_in_some_places() {
        breaks(
            "forbidden names",
            &[
                ("vmm/src/chips/uart.rs", "use std::time::Instant;", 1),
                ("vmm/src/chips/uart.rs", "use std::{fmt,\n fs};", 2),
                ("vmm/src/chips/uart.rs", "fn f() { libc::close(1) }", 1),
                ("vmm/src/run.rs", "use kvm_bindings::kvm_run;", 1),
                ("testcases/src/facts.rs", "use kvm_ioctls::Kvm;", 1),
                ("testcases/src/facts.rs", "use kvm_ioctls as k;", 1),
            ],
        );
        keeps(
            "forbidden names",
            &[
                ("vmm/src/hv/kvm/mod.rs", "use kvm_ioctls::Kvm;"),
                ("vmm/src/hv/kvm.rs", "use kvm_ioctls::Kvm;"),
                ("vmm/src/chips/uart.rs", "// std::fs::read\nuse std::fmt;"),
                ("vmm/src/host/file.rs", "use std::fs::File;"),
            ],
        );
    }

    #[test]
    fn unsafe_has_its_places() {
        breaks(
            "unsafe",
            &[
                ("vmm/src/ram.rs", "fn f() {\nunsafe { g() } }", 2),
                ("guest-payloads/src/bin/apic.rs", "#[unsafe(no_mangle)] fn f() {}", 1),
                ("guest-payloads/abi/src/lib.rs", "unsafe impl Sync for A {}\nunsafe fn f() {}", 2),
            ],
        );
        keeps(
            "unsafe",
            &[
                ("vmm/src/hv/kvm.rs", "unsafe {}"),
                ("vmm/src/host/tap.rs", "unsafe {}"),
                ("guest-payloads/rt/src/boot.rs", "unsafe {}"),
                ("guest-payloads/abi/src/lib.rs", "unsafe impl Sync for A {}"),
                ("vmm/src/ram.rs", "// unsafe\n\"unsafe\"; unsafe_op"),
            ],
        );
    }

    #[test]
    fn a_long_file_is_a_warning() {
        let long = "\n".repeat(LONG + 1);
        breaks("file length", &[("vmm/src/ram.rs", &long, LONG + 1)]);
        let repository = Repository { files: [("a.rs".to_string(), long)].into() };
        assert!(length(&repository)[0].warning);
        keeps("file length", &[("vmm/src/ram.rs", &"\n".repeat(LONG))]);
    }

    #[test]
    fn a_fuzz_target_is_small() {
        let lines = |n: usize| "// why\n\nf();\n".repeat(n);
        breaks("fuzz targets", &[("fuzz/fuzz_targets/x.rs", &lines(FUZZ_TARGET_LINES), 1)]);
        keeps(
            "fuzz targets",
            &[
                ("fuzz/fuzz_targets/x.rs", &lines(FUZZ_TARGET_LINES - 1)),
                ("fuzz/src/x.rs", &lines(FUZZ_TARGET_LINES)),
            ],
        );
    }

    #[test]
    fn the_top_level_is_fixed() {
        breaks("top level", &[("notes.md", "", 1)]);
        assert_eq!(found("top level", &[("src/a.rs", ""), ("src/b.rs", "")]).len(), 1);
        keeps("top level", &[("vmm/notes.md", ""), (".ci/run", ""), ("README.md", "")]);
    }

    #[test]
    fn unfinished_work_is_found_in_comments_too() {
        for word in UNFINISHED {
            breaks(
                "unfinished work",
                &[
                    ("vmm/src/ram.rs", &format!("a\n// {word}: later"), 2),
                    ("README.md", &format!("{word}(me)"), 1),
                ],
            );
            keeps(
                "unfinished work",
                &[
                    ("vmm/src/ram.rs", &format!("// 0x{word} {word}S {word}_")),
                    ("fuzz/seeds/one.bin", word),
                ],
            );
        }
    }

    #[test]
    fn a_command_is_a_file() {
        let flags = "enum Command { /// Doc.\n Test(Test), PerfHistory(PerfHistory), }";
        let frame = [("xtask/src/flags.rs", flags), ("xtask/src/main.rs", "")];
        let with =
            |more: &[(&'static str, &'static str)]| found("commands", &[&frame[..], more].concat());
        let whole = [("xtask/src/test.rs", ""), ("xtask/src/perf_history.rs", "")];
        assert_eq!(with(&[&whole[..], &[("xtask/src/support/x.rs", "")]].concat()).len(), 0);
        assert!(with(&whole[..1])[0].contains("`perf_history` has no file"));
        let stray = [&whole[..], &[("xtask/src/helper.rs", "")]].concat();
        assert!(with(&stray)[0].starts_with("xtask/src/helper.rs:1: neither"));
        let nested = [&whole[..], &[("xtask/src/test/mod.rs", "")]].concat();
        assert_eq!(with(&nested).len(), 1);
    }

    #[test]
    fn this_repository_is_read() {
        let repository = Repository::read(&root()).expect("git");
        assert!(repository.files["xtask/src/tidy.rs"].contains("this_repository_is_read"));
    }
}
