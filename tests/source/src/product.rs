//! Separates the product from its tests.

use crate::Source;
use crate::tokens::{Token, closing};

/// Removes all test code: items under a `#[cfg(..)]` that names `test`, and the files of test modules.
pub fn without_tests(sources: Vec<Source>) -> Vec<Source> {
    let mut tests: Vec<Vec<String>> = Vec::new();
    let mut sources: Vec<Source> = sources
        .into_iter()
        .map(|mut source| {
            let (tokens, modules) = strip(&source.tokens);
            tests.extend(modules.into_iter().map(|name| [&source.module[..], &[name]].concat()));
            source.tokens = tokens;
            source
        })
        .collect();
    sources.retain(|source| !tests.iter().any(|test| source.module.starts_with(test)));
    sources
}

/// Returns the tokens without test items, and the names of the test modules that have a file of their own.
fn strip(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < tokens.len() {
        if is_test_attribute(tokens, at) {
            let (end, module) = item_end(tokens, closing(tokens, at + 1) + 1);
            modules.extend(module);
            at = end;
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    (kept, modules)
}

fn is_test_attribute(tokens: &[Token], at: usize) -> bool {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    if (text(at), text(at + 1), text(at + 2)) != ("#", "[", "cfg") {
        return false;
    }
    let inside = &tokens[at + 2..closing(tokens, at + 1).min(tokens.len())];
    inside.iter().any(|token| token.text == "test") && !inside.iter().any(|token| token.text == "not")
}

/// Returns the index after the item, statement, field or argument that starts at `at`, and its name if it is `mod
/// name;`.
fn item_end(tokens: &[Token], mut at: usize) -> (usize, Option<String>) {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    while text(at) == "#" {
        at = closing(tokens, at + 1) + 1;
    }
    let mut start = at;
    if text(start) == "pub" {
        start = if text(start + 1) == "(" { closing(tokens, start + 1) + 1 } else { start + 1 };
    }
    const ITEMS: &[&str] = &[
        "mod",
        "fn",
        "async",
        "unsafe",
        "impl",
        "use",
        "struct",
        "enum",
        "const",
        "static",
        "type",
        "trait",
        "let",
        "macro_rules",
        "extern",
        "match",
        "if",
    ];
    let is_item = ITEMS.contains(&text(start));
    let module = (text(start) == "mod" && text(start + 2) == ";").then(|| text(start + 1).to_owned());
    while at < tokens.len() {
        match text(at) {
            ";" => return (at + 1, module),
            "," if !is_item => return (at + 1, module),
            ")" | "]" | "}" => return (at, module),
            "{" if is_item && text(start) != "use" && text(start) != "let" => return (closing(tokens, at) + 1, module),
            "(" | "[" | "{" => at = closing(tokens, at) + 1,
            _ => at += 1,
        }
    }
    (at, module)
}

#[cfg(test)]
mod tests {
    use super::strip;
    use crate::tokens::lex;

    #[test]
    fn test_items_fields_and_statements_are_removed_and_the_rest_stays() {
        let text = "
            mod a; #[cfg(test)] mod tests; #[cfg(test)] pub(crate) mod more;
            #[cfg(any(test, fuzzing))] fn gone<A, B>(a: A, b: B) { x; }
            #[cfg(not(test))] fn kept() {}
            #[cfg(test)] use gone::{a, b};
            struct S { one: u8, #[cfg(test)] gone: Map<u8, u8>, two: u8, #[cfg(test)] gone: u8 }
            fn f() { S { one: 1, #[cfg(test)] gone: g(1, 2), two: 2 }; #[cfg(test)] (gone += 1); kept() }
            #[cfg(test)] mod tests { fn gone() {} } const KEPT: u8 = 1;
        ";
        let (tokens, modules) = strip(&lex(text).unwrap());
        assert_eq!(modules, ["tests", "more"]);
        let text: Vec<&str> = tokens.iter().map(|token| token.text.as_str()).collect();
        assert!(!text.contains(&"gone"), "{text:?}");
        for kept in ["a", "kept", "one", "two", "KEPT", "f"] {
            assert!(text.contains(&kept), "{kept}");
        }
    }
}
