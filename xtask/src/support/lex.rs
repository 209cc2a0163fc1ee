//! A small reader of Rust text: words and punctuation with their lines, without comments, strings
//! and characters; and the paths that these make. Enough for rules about who names whom.

/// A word, or one character of punctuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// The text. A number or a lifetime is a word, too.
    pub text: String,
    /// The line, from 1.
    pub line: usize,
}

/// Splits Rust text into tokens; comments, strings, characters and white space are left out.
pub fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut i, mut line) = (0, 1);
    let mut tokens = Vec::new();
    while i < chars.len() {
        let start = i;
        let c = chars[i];
        if c == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if c == '/' && at(i + 1) == '*' {
            i = block_comment_end(&chars, i);
        } else if let Some(end) = string_end(&chars, i) {
            i = end;
        } else if c == '\'' {
            i = quote_end(&chars, i);
        } else if is_word(c) {
            while is_word(at(i)) {
                i += 1;
            }
            tokens.push(Token { text: chars[start..i].iter().collect(), line });
        } else {
            i += 1;
            if !c.is_whitespace() {
                tokens.push(Token { text: c.to_string(), line });
            }
        }
        line += chars[start..i].iter().filter(|c| **c == '\n').count();
    }
    tokens
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The end of a block comment, which may hold others.
fn block_comment_end(chars: &[char], mut i: usize) -> usize {
    let mut depth = 0;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
            }
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i.min(chars.len())
}

/// The end of a string that starts at `i`, with its prefix (`b`, `c`, `r`, `br`, `cr`), if one does.
fn string_end(chars: &[char], i: usize) -> Option<usize> {
    let mut at = i;
    if matches!(chars[at], 'b' | 'c') && matches!(chars.get(at + 1), Some('"' | 'r')) {
        at += 1;
    }
    let raw = chars[at] == 'r';
    at += usize::from(raw);
    let mut hashes = 0;
    while raw && chars.get(at) == Some(&'#') {
        hashes += 1;
        at += 1;
    }
    if chars.get(at) != Some(&'"') {
        return None;
    }
    at += 1;
    while at < chars.len() {
        match chars[at] {
            '\\' if !raw => at += 2,
            '"' if (0..hashes).all(|h| chars.get(at + 1 + h) == Some(&'#')) => {
                return Some(at + 1 + hashes);
            }
            _ => at += 1,
        }
    }
    Some(chars.len())
}

/// The end of a character literal, or of the quote of a lifetime.
fn quote_end(chars: &[char], i: usize) -> usize {
    match (chars.get(i + 1), chars.get(i + 2)) {
        (Some('\\'), _) => {
            let closing = chars[i + 3..].iter().position(|c| *c == '\'');
            closing.map_or(chars.len(), |n| i + 3 + n + 1)
        }
        (Some(_), Some('\'')) => i + 3,
        _ => i + 1,
    }
}

/// A path such as `crate::bus::Bus`, with groups (`std::{fs, io}`) expanded into one path each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// Its words; the first may be `crate`, `self` or `super`.
    pub words: Vec<String>,
    /// The line it starts in.
    pub line: usize,
    /// The inline modules (`mod tests { .. }`) around it, from the outside in.
    pub modules: Vec<String>,
}

/// All paths of two words or more in a text's tokens.
pub fn paths(tokens: &[Token]) -> Vec<NamedPath> {
    let mut found = Vec::new();
    let mut modules: Vec<(String, usize)> = Vec::new();
    let (mut depth, mut i) = (0, 0);
    while i < tokens.len() {
        let text = |n: usize| tokens.get(i + n).map_or("", |t| t.text.as_str());
        match text(0) {
            "mod" if text(2) == "{" => {
                depth += 1;
                modules.push((text(1).to_string(), depth));
                i += 3;
            }
            "{" => {
                depth += 1;
                i += 1;
            }
            "}" => {
                modules.retain(|(_, at)| *at < depth);
                depth -= 1;
                i += 1;
            }
            word if word.starts_with(is_word) && text(1) == ":" && text(2) == ":" => {
                let around: Vec<String> = modules.iter().map(|(name, _)| name.clone()).collect();
                i = path(tokens, i, &mut Vec::new(), &around, &mut found);
            }
            _ => i += 1,
        }
    }
    found
}

/// Reads one path, or one tree of a group, that starts at `i`; returns where it ends.
fn path(
    tokens: &[Token],
    mut i: usize,
    prefix: &mut Vec<String>,
    modules: &[String],
    found: &mut Vec<NamedPath>,
) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let line = tokens[i].line;
    let depth = prefix.len();
    let mut grouped = false;
    loop {
        if text(i) == "{" {
            grouped = true;
            i += 1;
            while i < tokens.len() && text(i) != "}" {
                match text(i).starts_with(|c| is_word(c) || c == '{') {
                    true => i = path(tokens, i, prefix, modules, found),
                    false => i += 1,
                }
            }
            i += 1;
            break;
        }
        if !text(i).starts_with(is_word) {
            i += usize::from(text(i) == "*");
            break;
        }
        prefix.push(text(i).to_string());
        i += 1;
        if text(i) == "as" {
            i += 2;
        }
        if text(i) != ":" || text(i + 1) != ":" {
            break;
        }
        i += 2;
    }
    if !grouped && prefix.len() > 1 {
        found.push(NamedPath { words: prefix.clone(), line, modules: modules.to_vec() });
    }
    prefix.truncate(depth);
    i
}

/// The variants with fields of the enum of this name, in the spelling of files: `PerfHistory(..)` is
/// `perf_history`.
pub fn variants(tokens: &[Token], name: &str) -> Vec<String> {
    let texts: Vec<&str> = tokens.iter().map(|t| t.text.as_str()).collect();
    let Some(start) = texts.windows(3).position(|w| w == ["enum", name, "{"]) else {
        return Vec::new();
    };
    let body: Vec<&str> = texts[start + 3..].iter().copied().take_while(|t| *t != "}").collect();
    let named = body.windows(2).filter(|w| w[1] == "(" && w[0].starts_with(char::is_uppercase));
    let snake = |name: &str| {
        let mut file = String::new();
        for c in name.chars() {
            if c.is_uppercase() && !file.is_empty() {
                file.push('_');
            }
            file.extend(c.to_lowercase());
        }
        file
    };
    named.map(|w| snake(w[0])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        tokens(text).into_iter().map(|t| t.text).collect()
    }

    #[test]
    fn comments_strings_and_characters_are_left_out() {
        for (text, left) in [
            ("a // b\nc", "a c"),
            ("a /* b /* c */ d */ e", "a e"),
            (r#"a "b \" c" d"#, "a d"),
            ("a r#\"b \" c\"# d", "a d"),
            ("a br##\"b \"# c\"## d", "a d"),
            ("a b\"x\" c\"y\" d", "a d"),
            ("a 'b' '\\'' '\\u{41}' d", "a d"),
            ("fn f<'a>(x: &'a str)", "fn f < a > ( x : & a str )"),
            ("r#type", "r # type"),
            ("\"never closed", ""),
            ("/* never closed", ""),
        ] {
            assert_eq!(words(text).join(" "), left, "{text}");
        }
    }

    #[test]
    fn lines_are_counted_through_comments_and_strings() {
        let lines: Vec<_> =
            tokens("a\n/* \n */ b \"\n\n\" c").into_iter().map(|t| t.line).collect();
        assert_eq!(lines, [1, 3, 5]);
    }

    fn shown(text: &str) -> Vec<String> {
        let show = |p: NamedPath| format!("{}{}", "m".repeat(p.modules.len()), p.words.join("::"));
        paths(&tokens(text)).into_iter().map(show).collect()
    }

    #[test]
    fn paths_are_found_and_groups_expanded() {
        for (text, found) in [
            ("use crate::bus::Bus;", vec!["crate::bus::Bus"]),
            (
                "use std::{fs, io::{self, Read}, time::*};",
                vec!["std::fs", "std::io::self", "std::io::Read", "std::time"],
            ),
            ("let x = a::b(c::d);", vec!["a::b", "c::d"]),
            ("use crate::{bus as b, ram};", vec!["crate::bus", "crate::ram"]),
            ("let x: Vec<u8> = y.z;", vec![]),
            ("mod t { use super::*; } use super::a;", vec!["mt", "super::a"]),
            ("mod t { mod u { use super::a; } fn f() { b::c } }", vec!["mmsuper::a", "mb::c"]),
        ] {
            let found: Vec<&str> = found.into_iter().filter(|f| *f != "mt").collect();
            assert_eq!(shown(text), found, "{text}");
        }
    }

    #[test]
    fn variants_are_spelled_as_files() {
        let text = "enum A { X(Y) } enum B { #[a(b)] Test(Test), PerfHistory(P), None }";
        assert_eq!(variants(&tokens(text), "B"), ["test", "perf_history"]);
        assert_eq!(variants(&tokens(text), "C"), Vec::<String>::new());
    }
}
