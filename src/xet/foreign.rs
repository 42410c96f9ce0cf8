//! Foreign text made fit for our errors, logs and terminals: what servers say, and names that anybody may have chosen.
//!
//! The one set of rules, for all layers above too: nothing that moves a cursor or turns text
//! around, no credentials, no page of markup, and an end.

use serde_json::Value;

/// Longest text of a server that an error carries, in characters: a line or three on a terminal.
pub const MAX: usize = 300;
/// What stands for a credential.
const TOKEN: &str = "[token]";
/// What tokens of kinds that we know begin with, and the length in bytes from which a word with it is taken for one.
const KINDS: [(&str, usize); 3] = [("hf_", 20), ("xet_", 40), ("eyJ", 40)];
/// Bytes of a token that are a part of it, at the end of a text that was cut.
const TAIL: usize = 6;

/// `text` with everything escaped that isn't seen as it is: control characters, and marks without
/// width, for direction, for lines.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => {
                out.extend(c.escape_unicode())
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Returns the text of a server on one line of at most [`MAX`] characters: escaped, without `token` (what
/// the request was sent with; servers echo headers) nor anything that looks like another, and
/// without the queries of URLs, where signatures live.
pub fn tame(text: &str, token: Option<&str>) -> String {
    let text = match token.filter(|token| !token.is_empty()) {
        Some(token) => without(text, token),
        None => text.to_owned(),
    };
    let words: Vec<String> = text.split_whitespace().map(tame_word).collect();
    let text = words.join(" ");
    match text.char_indices().nth(MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// Blanks a token, also one of which the text has only the beginning, as it was cut there.
fn without(text: &str, token: &str) -> String {
    let mut text = text.replace(token, TOKEN);
    let mut parts = (TAIL..token.len()).rev().filter(|&len| token.is_char_boundary(len));
    if let Some(len) = parts.find(|&len| text.ends_with(&token[..len])) {
        text.truncate(text.len() - len);
        text.push_str(TOKEN);
    }
    text
}

fn tame_word(word: &str) -> String {
    if KINDS.iter().any(|(start, len)| word.len() >= *len && word.contains(start)) {
        return TOKEN.to_owned();
    }
    let word = match word.split_once('?') {
        Some((path, query)) if path.contains("://") || query.contains('=') => path,
        _ => word,
    };
    let word: String = word.chars().take(MAX + 1).collect();
    escape(&without_users(&word))
}

/// URLs without user names and passwords.
fn without_users(word: &str) -> String {
    let mut parts = word.split("://");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (authority, rest) = part.split_at(part.find('/').unwrap_or(part.len()));
        out.push_str("://");
        out.push_str(authority.rsplit('@').next().unwrap_or_default());
        out.push_str(rest);
    }
    out
}

/// The words in the body of an answer that says no: `error` (text or list), `error_description`, `message`,
/// `errors[].message`; a body that is neither JSON nor markup is taken as it is. To be tamed.
pub fn spoken(body: &[u8]) -> Option<String> {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        let text = String::from_utf8_lossy(body);
        return Some(text.trim().to_owned()).filter(|text| !text.is_empty() && !text.starts_with('<'));
    };
    let mut parts: Vec<&str> = Vec::new();
    match &answer["error"] {
        Value::Array(list) => parts.extend(list.iter().filter_map(Value::as_str)),
        other => parts.extend(other.as_str()),
    }
    parts.extend(answer["error_description"].as_str());
    parts.extend(answer["message"].as_str());
    let list = answer["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    parts.extend(list.iter().filter_map(|error| error["message"].as_str()));
    Some(parts.join("; ")).filter(|text| !text.is_empty())
}

/// Where and how JSON is not what was expected, without quoting it.
pub fn json_fault(error: &serde_json::Error) -> String {
    let why = match error.classify() {
        serde_json::error::Category::Eof => "ends early",
        serde_json::error::Category::Data => "lacks a field, or has one of another type or too many items",
        _ => "is not JSON",
    };
    format!("line {} column {}: {why}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_as_it_is_is_escaped() {
        assert_eq!(escape("a\x1b[2J\nb\u{202e}c é"), "a\\u{1b}[2J\\nb\\u{202e}c é");
        assert_eq!(escape("\u{61c}\u{200b}\u{2028}\u{2066}\u{feff}\u{85}").matches("\\u{").count(), 6);
        assert_eq!(tame("a\u{1b}[31m\r\n b ", None), "a\\u{1b}[31m b");
    }

    #[test]
    fn the_token_is_blanked_also_where_the_text_was_cut_in_it() {
        let token = "s3cr3t-t0ken.of+the/store";
        let say = |text: &str| tame(text, Some(token));
        assert_eq!(
            say(&format!("authorization: Bearer {token}; again {token}")),
            "authorization: Bearer [token]; again [token]"
        );
        for cut in TAIL..token.len() {
            assert_eq!(say(&format!("Bearer {}", &token[..cut])), "Bearer [token]", "{cut}");
        }
        assert_eq!(say("s3cr3"), "s3cr3", "too short to be it");
        assert_eq!(tame("x", Some("")), "x");
    }

    #[test]
    fn tokens_of_known_kinds_are_blanked_whosever_they_are() {
        for token in
            [format!("hf_{}", "a".repeat(34)), format!("\"xet_{}\"", "0".repeat(116)), format!("eyJ{}", "a".repeat(90))]
        {
            assert_eq!(tame(&format!("bad {token} sent"), None), "bad [token] sent");
        }
        assert_eq!(tame("hf_hub and xet_core are fine", None), "hf_hub and xet_core are fine");
    }

    #[test]
    fn urls_lose_what_is_secret_in_them() {
        assert_eq!(tame("at https://h/x?sig=abc ok?", None), "at https://h/x ok?");
        assert_eq!(tame("see <a href=\"https://h/p?sig=SECRET\">it</a>", None), "see <a href=\"https://h/p");
        assert_eq!(tame("at=http://u:SECRET@h/,https://SECRET@i", None), "at=http://h/,https://i");
        for text in ["http://h/?SECRET", "/data/x?r=0-1&s=SECRET", "https:\\/\\/h\\/p?s=SECRET", "a://b@c://SECRET@d/"]
        {
            assert!(!tame(text, None).contains("SECRET"), "{text}");
        }
    }

    #[test]
    fn texts_have_an_end() {
        for text in ["é".repeat(5000), "a ".repeat(5000), "\u{1b}".repeat(5000)] {
            assert_eq!(tame(&text, None).chars().count(), MAX + 3);
        }
    }

    #[test]
    fn words_of_a_body_are_found_and_pages_are_not_read() {
        for (body, words) in [
            (r#"{"error":"no such thing"}"#, Some("no such thing")),
            (r#"{"error":["a","b"],"message":"c"}"#, Some("a; b; c")),
            (r#"{"errors":[{"message":"m"},{"x":1}],"error_description":"d"}"#, Some("d; m")),
            (" upstream is busy\n", Some("upstream is busy")),
            ("<html><body>502</body></html>", None),
            ("\r\n <!DOCTYPE html>", None),
            ("<?xml version=\"1.0\"?><Error><Signature>x</Signature></Error>", None),
            ("", None),
            ("7", None),
            ("{}", None),
        ] {
            assert_eq!(spoken(body.as_bytes()).as_deref(), words, "{body}");
        }
    }

    #[test]
    fn faults_of_json_quote_nothing() {
        let fault = serde_json::from_str::<u64>("\"https://h/x?sig=SECRET\"").unwrap_err();
        assert!(fault.to_string().contains("SECRET") && !json_fault(&fault).contains("SECRET"));
    }
}
