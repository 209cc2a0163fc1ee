//! `unittests.cfg`: the configurations of kvm-unit-tests, after the comment at the top of that file
//! and docs/unittests.md of its sources.
//!
//! A configuration is a section `[NAME]` with lines `KEY = VALUE`. What the file's own runner leaves
//! to a shell (quotes, backticks) is left as it stands here; see [`super::words`].

use std::time::Duration;

use vmm::units;

use crate::nearest;

/// The longest file that is read, in bytes: the real one has 13 KiB.
pub const MAX_BYTES: u64 = 1 << 20;

/// How long a configuration may run that does not say: what the file's own runner has.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);

/// The longest time that is given to a configuration which has no limit of its own, or a longer one.
pub const LONGEST: Duration = Duration::from_secs(600);

/// Keys whose lines are read. The last one is for another VMM, and means nothing here.
const KEYS: [&str; 13] = [
    "file",
    "smp",
    "test_args",
    "extra_params",
    "qemu_params",
    "groups",
    "arch",
    "machine",
    "accel",
    "check",
    "timeout",
    "disabled_if",
    "kvmtool_params",
];

/// One section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Its name.
    pub name: String,
    /// The line it begins on.
    pub line: usize,
    /// The image's file name.
    pub file: String,
    /// Number of vCPUs, as it stands there.
    pub smp: Option<String>,
    /// QEMU options, as they stand there.
    pub params: String,
    /// The guest's command line, as it stands there.
    pub args: String,
    /// The groups it is in.
    pub groups: Vec<String>,
    /// The only architecture it is for.
    pub arch: Option<String>,
    /// The only machine type it is for.
    pub machine: Option<String>,
    /// The only accelerator it is for.
    pub accel: Option<String>,
    /// Files of the host and what each must hold.
    pub check: Vec<(String, String)>,
    /// How long it may run.
    pub timeout: Option<Duration>,
    /// The shell command that says whether it is to be left out.
    pub disabled_if: Option<String>,
}

/// Reads the text of a `unittests.cfg`.
///
/// # Errors
/// Every line that is wrong, each with its number.
pub fn parse(text: &str) -> Result<Vec<Config>, Vec<String>> {
    let mut configs: Vec<Config> = Vec::new();
    let mut wrong = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((number, line)) = lines.next() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut complain = |why: String| wrong.push(format!("line {number}: {why}"));
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if !is_name(name) {
                complain(format!(
                    "`[{}]` is no name: write letters, digits, - _ + and ., 100 at most",
                    shown(name)
                ));
            }
            if let Some(first) = configs.iter().find(|c| c.name == name) {
                complain(format!("`{name}` is there already, in line {}", first.line));
            }
            configs.push(Config { name: name.into(), line: number, ..Config::default() });
            continue;
        }
        let Some((key, value)) = line.split_once('=').map(|(k, v)| (k.trim(), v.trim())) else {
            complain(format!("`{}` is neither [NAME] nor KEY = VALUE", shown(line)));
            continue;
        };
        // A value in three quotes goes on over the lines.
        let value = match value.strip_prefix("\"\"\"") {
            None => value.to_owned(),
            Some(first) => match quoted(first, &mut lines) {
                Some(value) => value,
                None => {
                    complain(format!("`{}` begins with \"\"\" that nothing ends", shown(key)));
                    break;
                }
            },
        };
        match configs.last_mut() {
            Some(config) => {
                if let Err(why) = set(config, key, value) {
                    complain(why);
                }
            }
            None => complain(format!("`{}` stands before the first [NAME]", shown(key))),
        }
    }
    for config in &configs {
        if config.file.is_empty() {
            wrong.push(format!("line {}: `[{}]` has no `file`", config.line, shown(&config.name)));
        }
    }
    if wrong.is_empty() { Ok(configs) } else { Err(wrong) }
}

/// The rest of a value in three quotes; a backslash at the end of a line joins it with the next.
fn quoted<'a>(first: &str, lines: &mut impl Iterator<Item = (usize, &'a str)>) -> Option<String> {
    let mut value = String::new();
    let mut line = first;
    loop {
        if let Some((end, _)) = line.split_once("\"\"\"") {
            value.push_str(end);
            return Some(value);
        }
        match line.strip_suffix('\\').filter(|rest| !rest.ends_with('\\')) {
            Some(rest) => value.push_str(rest),
            None => value.push_str(line),
        }
        value.push(' ');
        line = lines.next()?.1;
    }
}

fn set(config: &mut Config, key: &str, value: String) -> Result<(), String> {
    let filled = |value: String| (!value.is_empty()).then_some(value);
    match key {
        "file" => {
            if !is_name(&value) {
                return Err(format!(
                    "`file = {}`: write the name of a file beside unittests.cfg",
                    shown(&value)
                ));
            }
            config.file = value;
        }
        "smp" => config.smp = filled(value),
        "test_args" => config.args = value,
        "extra_params" | "qemu_params" => config.params = value,
        "groups" => config.groups = value.split_whitespace().map(str::to_owned).collect(),
        "arch" => config.arch = filled(value),
        "machine" => config.machine = filled(value),
        "accel" => config.accel = filled(value),
        "check" => {
            for word in value.split_whitespace() {
                let (path, value) = word
                    .split_once('=')
                    .ok_or_else(|| format!("`check = {}`: write FILE=VALUE", shown(word)))?;
                if !["/proc/", "/sys/"].iter().any(|dir| path.starts_with(dir))
                    || path.split('/').any(|part| part == "..")
                {
                    return Err(format!(
                        "`check` of {}: it is to be a file below /proc or /sys",
                        shown(path)
                    ));
                }
                config.check.push((path.into(), value.into()));
            }
        }
        "timeout" => config.timeout = timeout(&value)?,
        "disabled_if" => config.disabled_if = filled(value),
        "kvmtool_params" => {}
        key => {
            return Err(format!(
                "no key is called `{}`{}; known are {}",
                shown(key),
                nearest::hint(key, KEYS),
                KEYS.join(", ")
            ));
        }
    }
    Ok(())
}

/// What `timeout` of the coreutils takes: a number with `s`, `m`, `h` or `d`; 0 is no limit.
fn timeout(value: &str) -> Result<Option<Duration>, String> {
    let wrong = || {
        let value = shown(value);
        format!("`timeout = {value}`: write a number of seconds, or one with s, m or h behind it")
    };
    if value.is_empty() {
        return Ok(None);
    }
    let text = match value.ends_with(|c: char| c.is_ascii_digit()) {
        true => format!("{value}s"),
        false => value.to_owned(),
    };
    let time = match text.strip_suffix('h') {
        Some(hours) => hours.parse::<u32>().ok().map(|h| Duration::from_secs(3600 * u64::from(h))),
        None => units::duration(&text).ok(),
    };
    let time = time.ok_or_else(wrong)?;
    Ok(Some(if time.is_zero() { LONGEST } else { time.min(LONGEST) }))
}

/// Whether a text can name a configuration or an image, and so a file.
fn is_name(text: &str) -> bool {
    (1..=100).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_+.".contains(&b))
}

/// A text that may be anything, as a line of an error can hold it.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_section_has_all_its_keys_in_either_spelling() {
        let text = "# a comment\n\n[x2apic]\nfile = apic.flat\nsmp = 2\n\
                    qemu_params = -cpu qemu64,+x2apic -append \"a 'b' c\"\narch = x86_64\n\
                    timeout = 30\ngroups = apic nodefault\naccel = kvm\n\
                    check = /sys/module/kvm/parameters/x=Y /proc/sys/kernel/y=0\n\
                    kvmtool_params = --x\n[old]\nfile=b.flat\nextra_params = -m 2g\n\
                    test_args = 'cpuid'\n";
        let [new, old] = &parse(text).expect("sections")[..] else { panic!("two of them") };
        assert_eq!((&new.name[..], new.line, &new.file[..]), ("x2apic", 3, "apic.flat"));
        assert_eq!(new.smp.as_deref(), Some("2"));
        assert_eq!(new.params, "-cpu qemu64,+x2apic -append \"a 'b' c\"");
        assert_eq!((new.arch.as_deref(), new.accel.as_deref()), (Some("x86_64"), Some("kvm")));
        assert_eq!(new.groups, ["apic", "nodefault"]);
        assert_eq!(new.timeout, Some(Duration::from_secs(30)));
        let check = |path: &str, value: &str| (path.to_string(), value.to_string());
        assert_eq!(
            new.check,
            [check("/sys/module/kvm/parameters/x", "Y"), check("/proc/sys/kernel/y", "0")]
        );
        assert_eq!((&old.params[..], &old.args[..], old.timeout), ("-m 2g", "'cpuid'", None));
    }

    #[test]
    fn a_value_in_three_quotes_goes_on_over_lines() {
        let text =
            "[a]\nfile = a.flat\nextra_params = \"\"\"-cpu max \\\n-append 'x\ny'\"\"\"\nsmp = 3\n";
        let configs = parse(text).expect("a section");
        assert_eq!(configs[0].params, "-cpu max  -append 'x y'");
        assert_eq!(configs[0].smp.as_deref(), Some("3"));
    }

    #[test]
    fn times_are_those_of_timeout() {
        let secs = |n| Ok(Some(Duration::from_secs(n)));
        for (text, time) in [
            ("", Ok(None)),
            ("90", secs(90)),
            ("2m", secs(120)),
            ("0", secs(600)),
            ("1h", secs(600)),
        ] {
            assert_eq!(timeout(text), time, "{text}");
        }
        assert!(timeout("soon").is_err() && timeout("-1").is_err());
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, says) in [
            ("[a]\nsmp = 1\n", "line 1: `[a]` has no `file`"),
            ("[a]\nfile = ../a\n", "line 2: `file = ../a`"),
            ("[a]\nfile = .a\n", "line 2: `file = .a`"),
            ("[a/b]\nfile = a\n", "line 1: `[a/b]` is no name"),
            ("[]\nfile = a\n", "`[]` is no name"),
            ("file = a\n", "before the first [NAME]"),
            ("[a]\nfile = a\n[a]\nfile = b\n", "line 3: `a` is there already, in line 1"),
            ("[a]\nfile = a\nextra_parms = -x\n", "the nearest is `extra_params`"),
            ("[a]\nfile = a\nnothing\n", "line 3: `nothing` is neither"),
            ("[a]\nfile = a\ncheck = /etc/shadow=x\n", "below /proc or /sys"),
            ("[a]\nfile = a\ncheck = /proc/../etc/shadow=x\n", "below /proc or /sys"),
            ("[a]\nfile = a\ncheck = /proc/x\n", "FILE=VALUE"),
            ("[a]\nfile = a\ntimeout = soon\n", "`timeout = soon`"),
            ("[a]\nfile = a\nextra_params = \"\"\"-x\n", "nothing ends"),
        ] {
            let wrong = parse(text).expect_err(text).join("\n");
            assert!(wrong.contains(says), "{text}: {wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_sections_or_lines_that_are_wrong(
            text in prop_oneof![
                ".{0,200}",
                "((\\[[a-z./]{0,4}\\]|[a-z_]{1,8} ?=? ?[ -~]{0,20}|timeout = [0-9]{0,30}[smhd]?|\"\"\")\n){0,12}",
            ],
        ) {
            match parse(&text) {
                Ok(configs) => prop_assert!(
                    configs.iter().all(|c| is_name(&c.name) && is_name(&c.file))
                ),
                Err(wrong) => {
                    prop_assert!(!wrong.is_empty());
                    prop_assert!(wrong.iter().all(|line| !line.contains('\n')), "{wrong:?}");
                }
            }
        }
    }
}
