//! Words as a shell makes them of a line: quotes, backslashes, and the one command that
//! `unittests.cfg` asks for.

use std::time::SystemTime;

/// What stands in a line for the time, in seconds since 1970.
const DATE: &str = "`date +%s`";

/// A word with the time where it asks for it. That is the time when its guest starts: kvmclock_test
/// compares it with its own, and many other guests may have run since the line was read.
pub fn timed(word: &str) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    word.replace(DATE, &now.map_or(0, |now| now.as_secs()).to_string())
}

/// Splits a line into words. What asks for the time is kept in them, for [`timed`].
///
/// # Errors
/// What of a shell is in it that is not done here, as a predicate about the line.
pub fn split(line: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), '`') => return Err("has a backtick that is no command".into()),
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '`') => {
                let rest = chars.as_str().strip_prefix(&DATE[1..]);
                let rest = rest.ok_or("asks a shell for the output of a command")?;
                chars = rest.chars();
                word.get_or_insert_default().push_str(DATE);
            }
            (_, '$') => return Err("has a variable of a shell".into()),
            (_, '\\') => match chars.next() {
                Some(next) => {
                    let word = word.get_or_insert_default();
                    // Between double quotes, only these lose their backslash.
                    if quote == Some('"') && !"\"\\$`".contains(next) {
                        word.push('\\');
                    }
                    word.push(next);
                }
                None => return Err("ends with a backslash".into()),
            },
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '|' | '&' | ';' | '<' | '>' | '(' | ')') => {
                return Err(format!("has `{c}` outside quotes, which a shell would act on"));
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            // A pattern that matches no file stays as it is, and that is what is meant.
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    match quote {
        Some(open) => Err(format!("opens {open} and does not close it")),
        None => {
            words.extend(word);
            Ok(words)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_are_those_of_a_shell() {
        for (line, words) in [
            ("", vec![]),
            ("  a  b ", vec!["a", "b"]),
            ("'cpuid'", vec!["cpuid"]),
            ("-append \"-x ept_access* y\"", vec!["-append", "-x ept_access* y"]),
            ("\"10000000 `date +%s`\"", vec!["10000000 `date +%s`"]),
            ("a'b c'\"d e\"f", vec!["ab cd ef"]),
            ("'' \"\"", vec!["", ""]),
            ("a\\ b \"\\\"\\x\"", vec!["a b", "\"\\x"]),
        ] {
            assert_eq!(
                split(line).as_deref(),
                Ok(&words.iter().map(|w| w.to_string()).collect::<Vec<_>>()[..]),
                "{line}"
            );
        }
    }

    #[test]
    fn what_a_shell_would_do_besides_is_refused() {
        for (line, says) in [
            ("`uname`", "output of a command"),
            ("\"`uname`\"", "output of a command"),
            ("'`date +%s`'", "backtick"),
            ("$HOME", "variable"),
            ("\"$(uname)\"", "variable"),
            ("a; b", "`;`"),
            ("a > b", "`>`"),
            ("'a", "does not close"),
            ("a\\", "backslash"),
        ] {
            assert!(split(line).expect_err(line).contains(says), "{line}");
        }
    }

    #[test]
    fn a_word_gets_the_time_when_it_is_used() {
        let seconds = |word: &str| timed(word).strip_prefix("1 ").expect("1").parse::<u64>();
        let (first, then) = (seconds("1 `date +%s`"), seconds("1 `date +%s`"));
        // The date of this test, which no clock that is right is before.
        assert!(first.is_ok_and(|first| first > 1_795_000_000 && then.is_ok_and(|t| t >= first)));
        assert_eq!(timed("date +%s"), "date +%s");
    }

    proptest! {
        #[test]
        fn any_line_is_words_or_a_reason(line in ".{0,80}") {
            match split(&line) {
                Ok(words) => prop_assert!(words.len() <= line.chars().count()),
                Err(why) => prop_assert!(!why.is_empty()),
            }
        }

        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[^'`]{0,10}", 0..5)) {
            let line: Vec<_> = words.iter().map(|w| format!("'{w}'")).collect();
            prop_assert_eq!(split(&line.join(" ")), Ok(words));
        }
    }
}
