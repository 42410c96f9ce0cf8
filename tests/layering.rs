//! Holds the source to the layers of `src/lib.rs`: which module may name which, and where `unsafe` may not stand.
//!
//! It reads tokens, not text: comments, strings and raw strings don't count, `use` groups, `super` chains and inline
//! modules do. What would get around it is refused outright: an alias or a glob of the crate root, `#[path]`,
//! `include!`, and `extern crate`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Every top module and what it may name besides itself. A layer that is not here fails the test.
const LAYERS: &[(&str, &[&str])] = &[
    ("disk", &[]),
    ("crypto", &[]),
    ("xet", &[]),
    ("hub", &["disk", "xet"]),
    ("store", &["crypto", "xet", "hub"]),
    ("fs", &["disk", "store"]),
    ("gateway", &["store"]),
    ("cli", &["crypto", "xet", "hub", "store", "fs", "gateway"]),
    ("bin", &["cli"]),
    // Tests only: replays the seeds of fuzz/ through the decoders' bodies.
    ("seeds", &["crypto", "xet", "hub"]),
];

/// Layers that are packages of their own: there `crate` is the layer. The compiler keeps them from naming anything
/// that their manifest
/// doesn't, so what is left to check is the manifest.
const PACKAGES: &[&str] = &["crypto", "xet"];

/// Where the keyword `unsafe` may not stand at all.
const SAFE: &[&str] = &["crypto", "xet", "hub", "store", "gateway"];

#[test]
fn source_keeps_to_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&root, &mut files);
    assert!(files.len() > 20, "only {} files found below {}", files.len(), root.display());
    let broken: Vec<String> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap();
            check(file.strip_prefix(&root).unwrap(), &text)
        })
        .collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn packages_of_lower_layers_depend_on_no_other_layer() {
    for layer in PACKAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(layer).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap();
        let own = format!("name = \"hfcrypt-{layer}\"");
        let named: Vec<&str> = manifest
            .lines()
            .map(|line| line.split('#').next().unwrap_or(""))
            .filter(|line| *line != own && !line.starts_with("description") && line.contains("hfcrypt"))
            .collect();
        assert!(manifest.contains(&own), "{}", path.display());
        assert_eq!(named, Vec::<&str>::new(), "{}", path.display());
        assert!(!manifest.contains("path = \".."), "{}", path.display());
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// What one file, named relative to `src`, breaks.
fn check(file: &Path, text: &str) -> Vec<String> {
    let module = module_of(file);
    let layer = module.first().map_or("", String::as_str);
    let mut broken = BTreeSet::new();
    let mut say = |line: usize, what: String| {
        broken.insert((line, what));
    };
    let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
    if allowed.is_none() && !layer.is_empty() {
        say(0, format!("`{layer}` is no layer: give it a place in tests/layering.rs"));
    }
    let tokens = tokens(text);
    let root = module.iter().take(usize::from(PACKAGES.contains(&layer))).cloned().collect::<Vec<_>>();
    for name in names(&tokens, &module, &root, layer == "bin") {
        match name.path.first().map(String::as_str) {
            None => say(name.line, "names the crate root as a whole".to_owned()),
            Some(first) if first == layer => {}
            Some(first) if !LAYERS.iter().any(|(known, _)| *known == first) => {
                say(name.line, format!("names `{first}`, which is no layer"));
            }
            Some(first) if allowed.is_some_and(|allowed| allowed.contains(&first)) => {}
            Some(first) => say(name.line, format!("`{layer}` may not name `{first}`")),
        }
    }
    for (i, token) in tokens.iter().enumerate() {
        let is = |at: usize, text: &str| tokens.get(at).is_some_and(|t| t.text == text);
        match token.text.as_str() {
            "unsafe" if SAFE.contains(&layer) => say(token.line, format!("`unsafe` in `{layer}`")),
            "extern" if is(i + 1, "crate") => say(token.line, "`extern crate`".to_owned()),
            "path" if i > 0 && is(i - 1, "[") && is(i + 1, "=") => say(token.line, "`#[path]`".to_owned()),
            "include" if is(i + 1, "!") => say(token.line, "`include!`".to_owned()),
            _ => {}
        }
    }
    broken.into_iter().map(|(line, what)| format!("src/{}:{line}: {what}", file.display())).collect()
}

/// `a/b.rs` and `a/b/mod.rs` are `[a, b]`; `lib.rs` is the root; every file of `bin` is a crate of its own.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().expect("our own file names").to_owned()).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

struct Token {
    text: String,
    line: usize,
}

/// Identifiers, `::` and single punctuation marks. Literals come as one token that no rule looks for.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut found = Vec::new();
    let (mut i, mut line) = (0, 1);
    while i < chars.len() {
        let start = i;
        let text = match chars[i] {
            c if c.is_whitespace() => {
                i += 1;
                None
            }
            '/' if at(i + 1) == '/' => {
                i += chars[i..].iter().take_while(|&&c| c != '\n').count();
                None
            }
            '/' if at(i + 1) == '*' => {
                i = block_comment_end(&chars, i);
                None
            }
            '"' => {
                i = string_end(&chars, i);
                Some("\"".to_owned())
            }
            '\'' => {
                i = quote_end(&chars, i);
                Some("'".to_owned())
            }
            c if c == '_' || c.is_alphanumeric() => {
                while at(i) == '_' || at(i).is_alphanumeric() {
                    i += 1;
                }
                let word: String = chars[start..i].iter().collect();
                Some(match word.as_str() {
                    "r" | "br" | "cr" if at(i) == '"' || (at(i) == '#' && matches!(at(i + 1), '#' | '"')) => {
                        i = raw_string_end(&chars, i);
                        "\"".to_owned()
                    }
                    // A raw identifier: `r#super` is none of the path keywords.
                    "r" if at(i) == '#' => {
                        i += 1;
                        continue;
                    }
                    "b" | "c" if at(i) == '"' => {
                        i = string_end(&chars, i);
                        "\"".to_owned()
                    }
                    "b" if at(i) == '\'' => {
                        i = quote_end(&chars, i);
                        "'".to_owned()
                    }
                    _ => word,
                })
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                Some("::".to_owned())
            }
            c => {
                i += 1;
                Some(c.to_string())
            }
        };
        found.extend(text.map(|text| Token { text, line }));
        line += chars[start..i].iter().filter(|&&c| c == '\n').count();
    }
    found
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut i, mut depth) = (start, 0);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

fn string_end(chars: &[char], quote: usize) -> usize {
    let mut i = quote + 1;
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], hashes: usize) -> usize {
    let count = chars[hashes..].iter().take_while(|&&c| c == '#').count();
    let mut i = hashes + count + 1;
    while i < chars.len() {
        if chars[i] == '"' && chars[i + 1..].iter().take(count).filter(|&&c| c == '#').count() == count {
            return i + 1 + count;
        }
        i += 1;
    }
    chars.len()
}

/// A character literal, or only the mark of a lifetime.
fn quote_end(chars: &[char], quote: usize) -> usize {
    match (chars.get(quote + 1), chars.get(quote + 2)) {
        (Some('\\'), _) => {
            let rest = chars[(quote + 3).min(chars.len())..].iter().position(|&c| c == '\'');
            rest.map_or(chars.len(), |end| quote + 4 + end)
        }
        (Some(_), Some('\'')) => quote + 3,
        _ => quote + 1,
    }
}

/// A path from the crate root that the source names. Empty: the root itself, by alias or glob.
struct Name {
    path: Vec<String>,
    line: usize,
}

/// All paths that start at `crate`, `super` or `self` (and, in a binary, at the library's name), resolved. `root`
/// is the module that
/// `crate` stands for.
fn names(tokens: &[Token], file: &[String], root: &[String], binary: bool) -> Vec<Name> {
    let mut module = file.to_vec();
    // Brace depths at which inline modules end.
    let mut ends: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut found = Vec::new();
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    for i in 0..tokens.len() {
        match text(i) {
            "{" => {
                depth += 1;
                if i >= 2 && text(i - 2) == "mod" {
                    module.push(text(i - 1).to_owned());
                    ends.push(depth);
                }
            }
            "}" => {
                if ends.last() == Some(&depth) {
                    ends.pop();
                    module.pop();
                }
                depth -= 1;
            }
            "crate" | "super" | "self" | "hfcrypt" if i == 0 || text(i - 1) != "::" => {
                let visibility = i >= 2 && text(i - 1) == "(" && text(i - 2) == "pub";
                let alias = text(i + 1) == "as" || matches!((text(i + 1), text(i + 2)), ("::", "self"));
                if visibility || (text(i + 1) != "::" && !alias) {
                    continue;
                }
                let start = match text(i) {
                    // In a binary `crate` is the binary.
                    "crate" if binary => continue,
                    "crate" => root.to_vec(),
                    "hfcrypt" if binary => Vec::new(),
                    "hfcrypt" => continue,
                    "super" => parent(&module),
                    _ => module.clone(),
                };
                follow(tokens, i + 1, start, &mut found);
            }
            _ => {}
        }
    }
    found
}

fn parent(module: &[String]) -> Vec<String> {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// Reads on from behind one segment of a path that stands for `path`; gives where the path ended.
fn follow(tokens: &[Token], mut i: usize, mut path: Vec<String>, found: &mut Vec<Name>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    let line = tokens.get(i.saturating_sub(1)).map_or(0, |token| token.line);
    while text(i) == "::" {
        i += 1;
        match text(i) {
            "{" => {
                i += 1;
                while i < tokens.len() && text(i) != "}" {
                    match text(i) {
                        "," => i += 1,
                        "*" => {
                            found.push(Name { path: path.clone(), line: tokens[i].line });
                            i += 1;
                        }
                        "self" => i = follow(tokens, i + 1, path.clone(), found),
                        "super" => i = follow(tokens, i + 1, parent(&path), found),
                        "as" => i += 2,
                        segment => {
                            let inner = [&path[..], &[segment.to_owned()]].concat();
                            i = follow(tokens, i + 1, inner, found);
                        }
                    }
                }
                return i + 1;
            }
            "super" => path = parent(&path),
            "self" => {}
            // A glob, or generic arguments behind a turbofish: the path ends here.
            "*" | "<" => {
                i += 1;
                break;
            }
            segment => path.push(segment.to_owned()),
        }
        i += 1;
    }
    found.push(Name { path, line });
    i
}

#[cfg(test)]
mod samples {
    use super::check;
    use std::path::Path;

    fn broken(file: &str, text: &str) -> usize {
        check(Path::new(file), text).len()
    }

    #[test]
    fn edges_up_or_sideways_are_caught_in_every_spelling() {
        for text in [
            "use crate::fs::Error;",
            "use crate::fs;",
            "use crate::fs as h;",
            "pub(crate) use crate::fs::*;",
            "use crate::{crypto, xet::hash};",
            "use crate::{\n    xet::{hash, merkle},\n    store::{self, View},\n};",
            "use super::super::fs::Error;",
            "use super::super::{fs::Error};",
            "use super::{super::fs, cas};",
            "use {crate::fs::Error, std::fs};",
            "fn f(e: crate::fs::Error) {}",
            "fn f() { crate :: fs :: local :: open() }",
            "fn f() { let s = 'x'; let r: &'static str = \"//\"; crate::fs::f() }",
            "macro_rules! m { () => { $crate::fs::f() } }",
            "mod tests { use super::super::super::fs::Error; }",
            "mod a { mod b {} use super::super::super::fs::Error; }",
            "impl From<crate::store::Error> for E {}",
            "#[derive(D)] #[d(with = crate::fs::x)] struct S;",
            "fn f() { r#\"\"#; crate::fs::f() }",
            "/* a /* b */ */ use crate::fs;",
            "use crate::unheard_of;",
        ] {
            assert_eq!(broken("hub/http.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn root_itself_is_no_way_around() {
        for text in [
            "use crate::*;",
            "use crate as root;",
            "use crate::{self as root};",
            "use crate::self as root;",
            "use super::super::*;",
            "use super::super as root;",
            "use super::{super as root};",
            "extern crate self as hfcrypt;",
            "#[path = \"../fs/mod.rs\"] mod fs;",
            "include!(\"../fs/mod.rs\");",
        ] {
            assert_eq!(broken("hub/http.rs", text), 1, "{text}");
        }
        assert_eq!(broken("hub/mod.rs", "use super::*;"), 1);
        assert_eq!(broken("hub/mod.rs", "mod tests { use super::super::*; }"), 1);
    }

    #[test]
    fn own_module_lower_layers_and_other_crates_pass() {
        for (file, text) in [
            ("xet/http.rs", "use crate::Error; use super::cas::Cas; use super::*; use self::grant::Grant;"),
            ("xet/http.rs", "mod tests { use super::*; use super::super::hash; } use super::hash;"),
            ("xet/http/retry.rs", "use super::super::{cas, hash}; pub(in super::super) fn f() {}"),
            ("hub/client.rs", "use crate::xet::{hash::Hash, cas}; use std::fs; use http::HeaderMap;"),
            ("store/mod.rs", "use crate::{crypto::Keys, hub, xet::{self, Hash}};"),
            ("fs/fuse.rs", "use crate::store::View; unsafe { libc::getuid() };"),
            ("cli/exit.rs", "use crate::{crypto, fs, hub, store, xet};"),
            ("bin/hf-mount.rs", "fn main() -> std::process::ExitCode { hfcrypt::cli::mount::hf_mount() }"),
            ("lib.rs", "//! [`crypto`]\npub mod crypto;\npub mod xet;"),
            ("xet/hash.rs", "// crate::hub\n//! crate::hub\n/// [`crate::store::open`]\n/* crate::hub */ fn f() {}"),
            ("xet/hash.rs", "const A: &str = \"crate::hub \\\" crate::hub\"; const B: &str = r#\"\" crate::hub\"#;"),
            ("xet/hash.rs", "fn f(&self) { self.crate_hub(); \"unsafe\"; b'\"'; '\\''; '\"' } fn g<'a>(_: &'a str) {}"),
        ] {
            assert_eq!(check(Path::new(file), text), Vec::<String>::new(), "{file}: {text}");
        }
    }

    #[test]
    fn front_ends_see_only_the_store_and_mains_only_the_commands() {
        for layer in ["crypto", "xet", "hub", "cli", "gateway"] {
            assert_eq!(broken("fs/read.rs", &format!("use crate::{layer}::X;")), 1, "fs -> {layer}");
        }
        for layer in ["crypto", "xet", "hub", "cli", "fs"] {
            assert_eq!(broken("gateway/s3.rs", &format!("use crate::{layer}::X;")), 1, "gateway -> {layer}");
        }
        for (from, to) in [("disk", "xet"), ("hub", "crypto"), ("hub", "store"), ("store", "fs")] {
            assert_eq!(broken(&format!("{from}/x.rs"), &format!("use crate::{to}::X;")), 1, "{from} -> {to}");
        }
        assert_eq!(broken("bin/hfcrypt.rs", "use hfcrypt::crypto::Keys; fn main() {}"), 1);
        assert_eq!(broken("misc/x.rs", ""), 1, "an unknown top module");
        assert_eq!(broken("misc.rs", ""), 1, "an unknown top module");
    }

    #[test]
    fn unsafe_is_caught_where_it_may_not_stand() {
        for layer in super::SAFE {
            assert_eq!(broken(&format!("{layer}/x.rs"), "fn f() { unsafe { g() } }"), 1);
            assert_eq!(broken(&format!("{layer}/x.rs"), "#![forbid(unsafe_code)] // unsafe"), 0);
        }
        assert_eq!(broken("fs/x.rs", "unsafe fn f() {}"), 0);
    }

    #[test]
    fn a_finding_names_file_and_line() {
        assert_eq!(
            check(Path::new("hub/x.rs"), "\n/*\n*/ use crate::fs;"),
            ["src/hub/x.rs:3: `hub` may not name `fs`"]
        );
    }
}
