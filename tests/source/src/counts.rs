//! Counts of methods, function lengths and comment lines.

use crate::tokens::{Token, closing};

/// Widest line of a comment, in columns.
pub const COLUMNS: usize = 120;

/// Returns the number of methods in all `impl <of>` blocks that implement no trait.
pub fn methods(tokens: &[Token], of: &str) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let blocks = (0..tokens.len()).filter(|at| (text(*at), text(at + 1), text(at + 2)) == ("impl", of, "{"));
    blocks.map(|at| functions(&tokens[at + 2..closing(tokens, at + 2)], 1)).sum()
}

/// Counts `fn name` at this depth of braces.
fn functions(tokens: &[Token], at_depth: usize) -> usize {
    let mut depth = 0;
    let mut count = 0;
    for pair in tokens.windows(2) {
        match pair[0].text.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            "fn" if depth == at_depth && is_name(&pair[1].text) => count += 1,
            _ => {}
        }
    }
    count
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c == '_' || c.is_alphabetic())
}

/// Returns the line and the length of all functions with a body. A length is in lines, from `fn` to the closing brace.
pub fn function_lengths(tokens: &[Token]) -> Vec<(usize, usize)> {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let length = |at: usize| {
        let mut next = at + 2;
        while !matches!(text(next), "{" | ";" | "") {
            next = if matches!(text(next), "(" | "[") { closing(tokens, next) + 1 } else { next + 1 };
        }
        let end = if text(next) == "{" { tokens.get(closing(tokens, next))?.line } else { return None };
        Some((tokens[at].line, end - tokens[at].line + 1))
    };
    (0..tokens.len()).filter(|at| text(*at) == "fn" && is_name(text(at + 1))).filter_map(length).collect()
}

/// Returns the value that `percent` of the values do not exceed.
pub fn percentile(values: &mut [usize], percent: usize) -> usize {
    values.sort_unstable();
    let at = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(at).copied().unwrap_or(0)
}

/// The language of a file, as far as comments are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// `//`.
    Rust,
    /// `#`, and strings between triple quotes.
    Python,
    /// `#`.
    Hash,
}

/// Returns the comment lines of a text: their numbers and the whole lines.
///
/// Only lines that consist of a comment count, and code with a comment after it. In Rust a line inside a string that
/// looks like a comment counts too.
pub fn comments(text: &str, language: Language) -> Vec<(usize, &str)> {
    let (mark, mut quoted) = (if language == Language::Rust { "//" } else { "#" }, None);
    let mut is_comment = |line: &str| {
        let start = line.trim_start();
        if language == Language::Python {
            let open = ["\"\"\"", "'''"].into_iter().find(|quotes| line.contains(quotes));
            let is_text = |quotes: &str| start.trim_start_matches(['r', 'f', 'b']).starts_with(quotes);
            match quoted.or(open.map(|quotes| (quotes, is_text(quotes)))) {
                Some((quotes, inside)) => {
                    let toggles = line.matches(quotes).count() % 2 == 1;
                    quoted = if toggles == quoted.is_some() { None } else { Some((quotes, inside)) };
                    return inside;
                }
                None => return start.starts_with(mark) || line.contains("  # "),
            }
        }
        start.starts_with(mark) || (language == Language::Rust && line.contains("; // "))
    };
    (1..).zip(text.lines()).filter(|(_, line)| is_comment(line)).collect()
}

/// Returns true if a comment line of Rust begins with "What" or "Whether".
pub fn begins_with_what(line: &str) -> bool {
    let text = line.trim_start().trim_start_matches(['/', '!']).trim_start();
    matches!(text.split(|c: char| !c.is_alphabetic()).next(), Some("What" | "Whether"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::lex;

    #[test]
    fn methods_of_all_blocks_count_and_those_of_traits_do_not() {
        let text = "impl Vfs { fn a(&self) { fn inner() {} } pub async fn b() {} }
            impl Vfs { const X: fn(u8) = f; fn c(); } impl Debug for Vfs { fn d() {} } impl Other { fn e() {} }";
        assert_eq!(methods(&lex(text).unwrap(), "Vfs"), 3);
    }

    #[test]
    fn functions_are_measured_from_their_name_to_their_brace() {
        let text = "fn a() {}\nfn b(\n    x: [u8; 2],\n) -> u8 {\n    { 1 };\n    2\n}\ntrait T { fn c(); }";
        assert_eq!(function_lengths(&lex(text).unwrap()), [(1, 1), (2, 6)]);
        assert_eq!(percentile(&mut (1..=200).rev().collect::<Vec<_>>(), 99), 198);
    }

    #[test]
    fn comments_are_found_in_every_language() {
        let rust = "/// a\nlet b = 1;\n    // c\nlet url = \"http://x\";\nd(); // e\n";
        assert_eq!(comments(rust, Language::Rust).iter().map(|(at, _)| *at).collect::<Vec<_>>(), [1, 3, 5]);
        let python = "# a\nb = 1\n\"\"\"One line.\"\"\"\n\"\"\"First\nsecond\n\"\"\"\nc = \"#\"\nd = 1  # e\nf = \"\"\"x\n# no\n\"\"\"\n";
        assert_eq!(
            comments(python, Language::Python).iter().map(|(at, _)| *at).collect::<Vec<_>>(),
            [1, 3, 4, 5, 6, 8]
        );
        for (line, what) in
            [("/// What a", true), ("  //! Whether.", true), ("// Whatever", false), ("// a What", false)]
        {
            assert_eq!(begins_with_what(line), what, "{line}");
        }
    }
}
