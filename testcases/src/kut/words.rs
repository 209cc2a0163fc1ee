//! Words as a shell makes them of a line: quotes, backslashes, and the one command that
//! `unittests.cfg` asks for.

/// What stands in a line for the time, in seconds since 1970, after its first backtick.
const DATE: &str = "date +%s`";

/// Splits a line into words. The time in it is `now`.
///
/// # Errors
/// What of a shell is in it that is not done here, as a predicate about the line.
pub fn split(line: &str, now: u64) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '`') => {
                let rest = chars.as_str().strip_prefix(DATE);
                let rest = rest.ok_or("asks a shell for the output of a command")?;
                chars = rest.chars();
                word.get_or_insert_default().push_str(&now.to_string());
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
            ("\"10000000 `date +%s`\"", vec!["10000000 77"]),
            ("a'b c'\"d e\"f", vec!["ab cd ef"]),
            ("'' \"\"", vec!["", ""]),
            ("a\\ b \"\\\"\\x\"", vec!["a b", "\"\\x"]),
            ("'`date +%s`'", vec!["`date +%s`"]),
        ] {
            assert_eq!(
                split(line, 77).as_deref(),
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
            ("$HOME", "variable"),
            ("\"$(uname)\"", "variable"),
            ("a; b", "`;`"),
            ("a > b", "`>`"),
            ("'a", "does not close"),
            ("a\\", "backslash"),
        ] {
            assert!(split(line, 0).expect_err(line).contains(says), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_line_is_words_or_a_reason(line in ".{0,80}") {
            match split(&line, 0) {
                Ok(words) => prop_assert!(words.len() <= line.chars().count()),
                Err(why) => prop_assert!(!why.is_empty()),
            }
        }

        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[^'`]{0,10}", 0..5)) {
            let line: Vec<_> = words.iter().map(|w| format!("'{w}'")).collect();
            prop_assert_eq!(split(&line.join(" "), 0), Ok(words));
        }
    }
}
