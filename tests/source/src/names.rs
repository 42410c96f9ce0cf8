//! The paths that a file names, resolved from the crate root.

use crate::tokens::Token;

/// A path from the crate root that the source names. An empty one is the root itself, by alias or glob.
#[derive(Debug)]
pub struct Name {
    /// Its segments.
    pub path: Vec<String>,
    /// Line of its first segment.
    pub line: usize,
}

/// Returns all paths that start at `crate`, `super`, `self` or a child module of the file; in a binary also at the
/// library.
///
/// `file` is the module of the file, and `root` the module that `crate` stands for.
pub fn names(tokens: &[Token], file: &[String], root: &[String], binary: bool) -> Vec<Name> {
    let mut module = file.to_vec();
    let children = children(tokens);
    // Brace depths at which inline modules end.
    let mut ends: Vec<usize> = Vec::new();
    let mut depth = 0;
    let mut found = Vec::new();
    let text = |i: usize| tokens.get(i).map_or("", |token| token.text.as_str());
    for i in 0..tokens.len() {
        let begins_path = i == 0 || text(i - 1) != "::";
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
            "crate" | "super" | "self" | "hfcrypt" if begins_path => {
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
            child if begins_path && text(i + 1) == "::" && ends.is_empty() && children.contains(&child) => {
                follow(tokens, i + 1, [&module[..], &[child.to_owned()]].concat(), &mut found);
            }
            _ => {}
        }
    }
    found
}

/// Modules that the file declares without a body.
fn children(tokens: &[Token]) -> Vec<&str> {
    let declared = tokens.windows(3).filter(|three| three[0].text == "mod" && three[2].text == ";");
    declared.map(|three| three[1].text.as_str()).collect()
}

fn parent(module: &[String]) -> Vec<String> {
    module[..module.len().saturating_sub(1)].to_vec()
}

/// Reads the rest of a path whose segments so far stand for `path`. Returns the index after it.
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
            // A glob, or generic arguments after `::`: the path ends here.
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
