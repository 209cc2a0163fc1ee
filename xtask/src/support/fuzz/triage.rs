//! Findings to causes: one group for each, and a regression ready to be committed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use fuzz::targets;

use super::tool::{Cause, Judged, Tool};
use super::{Shop, build, cannot};
use crate::support::{Failure, Out};

/// Findings of one cause.
struct Group {
    target: String,
    /// The smallest first.
    files: Vec<PathBuf>,
}

/// Files that a fuzzer wrote about inputs: of each target that has some, with its name.
fn findings(shop: Shop<'_>) -> Result<Vec<(String, PathBuf)>, Failure> {
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
/// Something cannot be read, written or judged.
pub fn run(shop: Shop<'_>, out: &mut Out) -> Result<(), Failure> {
    let tool = Tool {
        program: build::build(shop, build::Flavour::Tool, "fuzz-tool")?,
        shop,
        environment: Vec::new(),
    };
    let mut groups: BTreeMap<Cause, Group> = BTreeMap::new();
    let (mut all, mut sound) = (0, 0);
    for (target, file) in findings(shop)? {
        all += 1;
        match tool.judge(&target, &file, 1)? {
            Some(Judged { cause, .. }) => {
                let new = || Group { target: target.clone(), files: Vec::new() };
                groups.entry(cause).or_insert_with(new).files.push(file);
            }
            None => {
                // It has reached something once, so it is worth keeping as an input.
                let corpus = build::directory(shop.corpus(&target))?;
                let to = corpus.join(file.file_name().unwrap_or_default());
                fs::rename(&file, &to).map_err(cannot("move to the corpus", &file))?;
                sound += 1;
            }
        }
    }
    for (cause, group) in &mut groups {
        group
            .files
            .sort_by_key(|file| (fs::metadata(file).map_or(u64::MAX, |m| m.len()), file.clone()));
        let (first, others) = group.files.split_first().expect("a group has a finding");
        let to = place(shop, &group.target, cause);
        let state = match to.exists() {
            true => "known as",
            false => {
                let dir = to.parent().expect("a regression lies in a directory");
                build::directory(dir.to_owned())?;
                let made = tool.min(&group.target, first, &to)?;
                if let (Some(_), true) = (made, is_script(&to)) {
                    explain(&to, cause)?;
                }
                "now"
            }
        };
        for other in others {
            fs::remove_file(other).map_err(cannot("remove", other))?;
        }
        let shown = to.strip_prefix(shop.root).unwrap_or(&to).display();
        writeln!(
            out,
            "{cause}\n  {} findings of {}, {state} {shown}",
            1 + others.len(),
            group.target
        );
    }
    writeln!(
        out,
        "{all} findings, {} causes; {sound} broke no law any more and went to their corpora",
        groups.len()
    );
    Ok(())
}

/// Where the regression of a cause lies.
fn place(shop: Shop<'_>, target: &str, cause: &Cause) -> PathBuf {
    let scripts = targets::named(target).is_some_and(|target| target.board().is_some());
    // What reads inputs that are no scripts is found by the directory's name.
    let (dir, end) = if scripts { (&cause.device[..], "script") } else { (target, "input") };
    shop.regressions()
        .join(slug(dir))
        .join(format!("{}.{end}", slug(&format!("{} {}", cause.law, cause.what))))
}

fn is_script(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "script")
}

/// Words as a file's name.
fn slug(text: &str) -> String {
    let mut slug = String::new();
    for c in text.chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_alphanumeric() => slug.push(c),
            _ if !slug.ends_with('-') => slug.push('-'),
            _ => {}
        }
        if slug.len() >= 80 {
            break;
        }
    }
    slug.trim_matches('-').to_owned()
}

/// Puts the cause behind a script's first line.
fn explain(path: &Path, cause: &Cause) -> Result<(), Failure> {
    let text = fs::read_to_string(path).map_err(cannot("read", path))?;
    if let Some((first, rest)) = text.split_once('\n') {
        let cause = cause.to_string().replace(['\n', '\r'], " ");
        fs::write(path, format!("{first}\n# Was: {cause}\n{rest}"))
            .map_err(cannot("write", path))?;
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
        let script = place(shop, "board", &cause);
        let name = "panic-index-out-of-bounds-the-len-is-n-vmm-chips-uart-rs-7.script";
        assert_eq!(script, Path::new("/r/fuzz/regressions/uart").join(name));
        let input = place(shop, "wire", &cause);
        assert!(input.starts_with("/r/fuzz/regressions/wire") && !is_script(&input), "{input:?}");
    }
}
