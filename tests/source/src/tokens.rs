//! Flat tokens of a file.

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// An identifier, a delimiter, `::`, or another punctuation mark. A literal is a single `"`.
#[derive(Clone, Debug)]
pub struct Token {
    /// The text. Raw identifiers keep their `r#`.
    pub text: String,
    /// Line of its first character.
    pub line: usize,
}

/// Lexes a file.
pub fn lex(text: &str) -> Result<Vec<Token>, String> {
    let stream: TokenStream = text.parse().map_err(|error| format!("{error}"))?;
    let mut tokens = Vec::new();
    flatten(stream, &mut tokens);
    Ok(tokens)
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        let mut push = |text: &str, line| tokens.push(Token { text: text.to_owned(), line });
        match tree {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::None => ("", ""),
                };
                push(open, line);
                let end = group.span_close().end().line;
                flatten(group.stream(), tokens);
                tokens.push(Token { text: close.to_owned(), line: end });
            }
            TokenTree::Punct(punct) if punct.as_char() == ':' && punct.spacing() == Spacing::Joint => {
                match trees.peek() {
                    Some(TokenTree::Punct(next)) if next.as_char() == ':' => {
                        trees.next();
                        push("::", line);
                    }
                    _ => push(":", line),
                }
            }
            // `'a`: the mark and the name of a lifetime.
            TokenTree::Punct(punct) => push(&punct.as_char().to_string(), line),
            TokenTree::Ident(ident) => push(&ident.to_string(), line),
            TokenTree::Literal(_) => push("\"", line),
        }
    }
}

/// Returns the index of the delimiter that closes the one at `open`, or the number of tokens.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return at;
        }
    }
    tokens.len()
}
