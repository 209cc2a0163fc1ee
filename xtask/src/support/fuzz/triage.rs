//! Findings to causes: one group for each, and a regression ready to be committed.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::targets;

use super::build::{Flavour, Nightly};
use super::tool::{Cause, Judged, Tool};
use super::{Shop, build, cannot, run};
use crate::support::out::complain;
use crate::support::{Failure, Out};

/// A finding and the target that it is an input of.
type Finding = (String, PathBuf);

/// Findings of one cause.
#[derive(Default)]
struct Group {
    /// The smallest first.
    findings: Vec<Finding>,
    /// Only AddressSanitizer sees it.
    asan: bool,
}

/// What judges: the tool, and the one with AddressSanitizer once it is needed.
pub struct Judges<'a> {
    tool: Tool<'a>,
    asan: OnceCell<Option<Tool<'a>>>,
}

impl<'a> Judges<'a> {
    /// Builds the tool.
    ///
    /// # Errors
    ///
    /// It does not build.
    pub fn new(shop: Shop<'a>) -> Result<Judges<'a>, Failure> {
        Ok(Judges { tool: Tool::new(shop, Flavour::Tool)?, asan: OnceCell::new() })
    }

    /// What an input breaks, and whether only AddressSanitizer sees it; asked of that one, too, if the file's
    /// name says that it took a fuzzer along.
    ///
    /// # Errors
    ///
    /// As [`Tool::judge`].
    pub fn judge(&self, target: &str, file: &Path) -> Result<Option<(Judged, bool)>, Failure> {
        if let Some(judged) = self.tool.judge(target, file, 1)? {
            return Ok(Some((judged, false)));
        }
        let Some(asan) = self.asan(file)? else { return Ok(None) };
        Ok(asan.judge(target, file, 1)?.map(|judged| (judged, true)))
    }

    /// The tool that sees what this file shows if the other sees nothing; none if it would not, or there is no
    /// nightly compiler, which is said.
    ///
    /// # Errors
    ///
    /// It does not build.
    pub fn asan(&self, file: &Path) -> Result<Option<&Tool<'a>>, Failure> {
        if !is_crash(file) {
            return Ok(None);
        }
        if self.asan.get().is_none() {
            let tool = match Nightly::find() {
                Ok(_) => Some(Tool::new(self.tool.shop, Flavour::ToolAsan)?),
                Err(why) => {
                    complain(format_args!(
                        "{why}: what only AddressSanitizer sees is not seen here; such findings stay where \
                         they are"
                    ));
                    None
                }
            };
            // It was empty.
            let _ = self.asan.set(tool);
        }
        Ok(self.asan.get().and_then(Option::as_ref))
    }

    /// The one that sees it.
    pub fn of(&self, asan: bool) -> &Tool<'a> {
        self.asan.get().and_then(Option::as_ref).filter(|_| asan).unwrap_or(&self.tool)
    }
}

/// Whether a file's name says that it took a fuzzer along, other than by the time or the memory it took.
fn is_crash(file: &Path) -> bool {
    let name = file.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    name.starts_with("crash-") || name.starts_with("leak-")
}

/// Files that a fuzzer wrote about inputs: of each target that has some, with its name.
fn findings(shop: Shop<'_>) -> Result<Vec<Finding>, Failure> {
    let mut found = Vec::new();
    for target in targets::ALL {
        let dir = shop.artifacts(target.name);
        let files = fuzz::stable::files(&dir).map_err(cannot("read the findings in", &dir))?;
        found.extend(files.into_iter().map(|(path, _)| (target.name.to_owned(), path)));
    }
    Ok(found)
}

/// Groups the findings, drops what is twice there, and writes a regression for each cause that has none.
///
/// # Errors
///
/// Something cannot be read or written, or the tool does not build.
pub fn run(shop: Shop<'_>, out: &mut Out) -> Result<(), Failure> {
    sort(shop, &Judges::new(shop)?, out)
}

fn sort(shop: Shop<'_>, judges: &Judges<'_>, out: &mut Out) -> Result<(), Failure> {
    let mut groups: BTreeMap<Cause, Group> = BTreeMap::new();
    let (mut all, mut sound, mut left) = (0, 0, 0);
    for (target, file) in findings(shop)? {
        all += 1;
        match judges.judge(&target, &file) {
            _ if shop.stopped() => return Err(Failure::stopped()),
            Ok(Some((judged, asan))) => {
                let group = groups.entry(judged.cause).or_default();
                group.asan |= asan;
                group.findings.push((target, file));
            }
            // Nobody looked with the eyes that it takes.
            Ok(None) if is_crash(&file) && judges.asan(&file)?.is_none() => left += 1,
            Ok(None) => {
                // It has reached something once, so it is worth keeping as an input.
                let corpus = build::directory(shop.corpus(&target))?;
                let bytes = fs::read(&file).map_err(cannot("read", &file))?;
                run::put(&corpus, &bytes)?;
                fs::remove_file(&file).map_err(cannot("remove", &file))?;
                sound += 1;
            }
            Err(failure) => {
                left += 1;
                complain(format_args!("{} stays where it is: {}", file.display(), failure.message));
            }
        }
    }
    for (cause, group) in &mut groups {
        if shop.stopped() {
            return Err(Failure::stopped());
        }
        one(shop, judges, cause, group, out)?;
    }
    writeln!(
        out,
        "{all} findings, {} causes; {sound} broke no law any more and went to their corpora{}",
        groups.len(),
        if left > 0 { format!("; {left} stay, for the reasons above") } else { String::new() }
    );
    Ok(())
}

/// Sees to it that a cause has its regression.
fn one(
    shop: Shop<'_>,
    judges: &Judges<'_>,
    cause: &Cause,
    group: &mut Group,
    out: &mut Out,
) -> Result<(), Failure> {
    let size = |file: &Path| fs::metadata(file).map_or(u64::MAX, |m| m.len());
    group.findings.sort_by_key(|(_, file)| (size(file), file.clone()));
    let ((target, first), others) = group.findings.split_first().expect("a group has a finding");
    let tool = judges.of(group.asan);
    let shows = |file: &Path| {
        tool.judge(target, file, 1).is_ok_and(|found| found.is_some_and(|j| j.cause == *cause))
    };
    // Two causes may have one name, as the numbers of lines in it change, and long ones are cut.
    let mut names = (1..).map(|n| place(shop, target, cause, n));
    let to = names.find(|to| !to.exists() || shows(to)).expect("names without end");
    let mut shown = to.clone();
    let mut state = "known as";
    if !to.exists() {
        (shown, state) = match regression(tool, target, first, &to, cause, group.asan)? {
            Some(file) if shows(&file) => (file, "now"),
            // What cannot be said in a file for good.
            other => {
                if let Some(file) = other {
                    fs::remove_file(&file).map_err(cannot("remove", &file))?;
                }
                (first.clone(), "not again once it is shortened, so it stays")
            }
        };
    }
    for (_, other) in others {
        fs::remove_file(other).map_err(cannot("remove", other))?;
    }
    let shown = shown.strip_prefix(shop.root).unwrap_or(&shown).display();
    let hint = if group.asan { " (only AddressSanitizer sees it)" } else { "" };
    writeln!(out, "{cause}{hint}\n  {} findings of {target}, {state} {shown}", 1 + others.len());
    Ok(())
}

/// Writes the least input with this cause: a script as `to`, what is none as the input of its target.
fn regression(
    tool: &Tool<'_>,
    target: &str,
    finding: &Path,
    to: &Path,
    cause: &Cause,
    asan: bool,
) -> Result<Option<PathBuf>, Failure> {
    build::directory(to.parent().expect("a regression lies in a directory").to_owned())?;
    if tool.min(target, finding, to)?.is_none() {
        return Ok(None);
    }
    let bytes = fs::read(to).map_err(cannot("read", to))?;
    let hint = if asan { "; only AddressSanitizer sees it" } else { "" };
    let why = format!("Was: {}{hint}", cause.to_string().replace(['\n', '\r'], " "));
    if to.extension().is_some_and(|end| end == "script") {
        if bytes.starts_with(b"# exitlab script") {
            explain(to, &why)?;
            return Ok(Some(to.to_owned()));
        }
        // It takes the process along before there is a script: it stays the input that it is.
        let dir = to.parent().and_then(Path::parent).expect("the regressions").join(target);
        let input = build::directory(dir)?.join(to.file_stem().unwrap_or_default());
        let input = input.with_extension("input");
        fs::rename(to, &input).map_err(cannot("rename to", &input))?;
        return beside(&input, &why).map(|()| Some(input));
    }
    beside(to, &why).map(|()| Some(to.to_owned()))
}

/// Puts the reason beside what has no place for it.
fn beside(input: &Path, why: &str) -> Result<(), Failure> {
    let text = input.with_extension("txt");
    fs::write(&text, format!("{why}\n")).map_err(cannot("write", &text))
}

/// Where the regression of a cause may lie, by its name and a number behind it.
fn place(shop: Shop<'_>, target: &str, cause: &Cause, n: usize) -> PathBuf {
    let scripts = targets::named(target).is_some_and(|target| target.board().is_some());
    // What reads inputs that are no scripts is found by the directory's name.
    let (dir, end) = if scripts { (folder(target, cause), "script") } else { (target, "input") };
    let number = if n > 1 { format!("-{n}") } else { String::new() };
    let name = slug(&format!("{} {}", cause.law, cause.what));
    shop.regressions().join(slug(dir)).join(format!("{name}{number}.{end}"))
}

/// The device whose regression it is. A board may call a chip otherwise than its own target does.
fn folder<'a>(target: &'a str, cause: &'a Cause) -> &'a str {
    let device = &cause.device[..];
    let is_chip = |target: &str| {
        targets::named(target).and_then(|t| t.board()).is_some_and(|b| b.spec.kind == target)
    };
    match device {
        _ if cause.law == "panic" || targets::named(device).is_some() => device,
        "com1" | "com2" | "com3" | "com4" => "uart",
        _ if is_chip(target) => target,
        _ => device,
    }
}

/// Words as a file's name, cut between two of them.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        if !slug.is_empty() {
            if slug.len() + word.len() >= 80 {
                break;
            }
            slug.push('-');
        }
        slug += &word.to_ascii_lowercase();
    }
    slug.truncate(80);
    slug
}

/// Puts the reason behind a script's first line.
fn explain(path: &Path, why: &str) -> Result<(), Failure> {
    let text = fs::read_to_string(path).map_err(cannot("read", path))?;
    if let Some((first, rest)) = text.split_once('\n') {
        fs::write(path, format!("{first}\n# {why}\n{rest}")).map_err(cannot("write", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_regression_is_named_for_what_went_wrong() {
        let (root, cancel) = (Path::new("/r"), AtomicBool::new(false));
        let shop = Shop { root, cancel: &cancel };
        let cause = Cause {
            device: "uart".into(),
            law: "panic".into(),
            what: "index out of bounds: the len is N (vmm/chips/uart.rs:7)".into(),
        };
        let script = place(shop, "board", &cause, 1);
        let name = "panic-index-out-of-bounds-the-len-is-n-vmm-chips-uart-rs-7.script";
        assert_eq!(script, Path::new("/r/fuzz/regressions/uart").join(name));
        let model = Cause { device: "com2".into(), law: "model".into(), what: "x".into() };
        assert_eq!(folder("board", &model), "uart");
        assert_eq!(folder("board", &cause), "uart");
        let second = place(shop, "board", &cause, 2);
        assert!(second.to_string_lossy().ends_with("uart-rs-7-2.script"), "{second:?}");
        let input = place(shop, "wire", &cause, 1);
        assert!(input.starts_with("/r/fuzz/regressions/wire"), "{input:?}");
        assert_eq!(input.extension().and_then(|end| end.to_str()), Some("input"));
    }

    /// Builds the tool with flaws, so `cargo xtask ci` runs it by itself.
    #[test]
    #[ignore = "builds the tool; cargo xtask ci runs it"]
    fn real_findings_become_regressions() {
        let (here, cancel) = (crate::support::root(), AtomicBool::new(false));
        let dir = tempfile::tempdir().expect("a temporary directory");
        let shop = Shop { root: dir.path(), cancel: &cancel };
        let built = Tool::new(Shop { root: &here, cancel: &cancel }, Flavour::ToolPlanted);
        let built = built.expect("the tool builds");
        let with = |flaw: &str| Tool {
            shop,
            environment: vec![("EXITLAB_PLANTED".into(), flaw.into())],
            ..built.clone()
        };
        let put = |target: &str, name: &str, bytes: &[u8]| {
            let dir = build::directory(shop.artifacts(target)).expect("made");
            fs::write(dir.join(name), bytes).expect("written");
        };
        let script =
            |ops: &str| format!("# exitlab script 1\nmachine uart memory=2M cpus=1\n{ops}");
        let divides = "out 0x3fb 1 0x80\nout 0x3f8 1 0x0\n";
        put("uart", "crash-1", script(&format!("in 0x3fd 1\n{divides}in 0x3f8 1\n")).as_bytes());
        put("uart", "crash-2", script(&format!("reset\n{divides}")).as_bytes());
        put("uart", "crash-3", script("in 0x3fd 1\n").as_bytes());
        put("uart", "timeout-4", script("in 0x3f8 1\n").as_bytes());
        put("uart", "crash-5", script("out of this world\n").as_bytes());
        let judges = |flaw| Judges { tool: with(flaw), asan: OnceCell::from(None) };
        let triage = |flaw| sort(shop, &judges(flaw), &mut Out::nowhere()).expect("it is triaged");
        let names = |dir: &Path| -> Vec<String> {
            let files = fuzz::stable::files(dir).expect("a directory").into_iter();
            files
                .map(|(path, _)| path.file_name().expect("a name").to_string_lossy().into())
                .collect()
        };
        triage("uart-divisor-zero");
        // Of two with one cause the smaller stays; what cannot be judged stays, too, and what is sound goes.
        assert_eq!(names(&shop.artifacts("uart")), ["crash-2", "crash-3", "crash-5"]);
        assert_eq!(names(&shop.corpus("uart")).len(), 1);
        let folder = shop.regressions().join("uart");
        let [name] = &names(&folder)[..] else { panic!("one cause, one regression") };
        assert!(name.starts_with("panic-attempt-to-divide-by-zero-vmm-chips-uart-rs-"), "{name}");
        let file = folder.join(name);
        let text = fs::read_to_string(&file).expect("a script");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "# exitlab script 1");
        assert!(lines[1].starts_with("# Was: uart: panic: attempt to divide by zero"), "{text}");
        assert_eq!(lines[3..], ["out 0x3fb 1 0x80", "out 0x3f8 1 0x0"]);
        // It fails with the flaw, and passes without.
        let breaks = |flaw, target| with(flaw).judge(target, &file, 1).expect("judged").is_some();
        assert!(breaks("uart-divisor-zero", "-") && !breaks("none", "-"));
        triage("uart-divisor-zero");
        assert_eq!(names(&folder).len(), 1, "a known cause has its regression");
        // What is no script: the text as it is read, behind the byte that says so.
        let raw = fuzz::forms::raw(script("").replace("2M", "18446744073709551615G").as_bytes());
        put("script", "crash-6", &raw);
        fs::remove_dir_all(shop.artifacts("uart")).expect("removed");
        triage("script-size-wraps");
        let folder = shop.regressions().join("script");
        let [input, why] = &names(&folder)[..] else { panic!("an input and its reason") };
        assert!(input.ends_with(".input") && why.ends_with(".txt"), "{input} {why}");
        let reason = fs::read_to_string(folder.join(why)).expect("a text");
        assert!(reason.starts_with("Was: ") && reason.contains("overflow"), "{reason}");
        let bytes = fs::read(folder.join(input)).expect("an input");
        assert_eq!(bytes[0], fuzz::forms::RAW);
    }
}
