//! Reads the Rust source of this project: tokens, the paths that a file names, import circles, and counts.
//!
//! `tests/layering.rs` checks imports with it, and `scripts/counts` prints the counts. It works on tokens, so comments
//! and strings do not matter, and paths inside macros and attributes are found too. Lines count from 1.

pub mod circles;
pub mod counts;
pub mod names;
pub mod product;
pub mod tokens;

use std::fs;
use std::path::{Path, PathBuf};
use tokens::Token;

/// Layers that are packages of their own: there `crate` is the layer.
pub const PACKAGES: &[&str] = &["crypto", "xet"];

/// A file below `src`.
pub struct Source {
    /// Path relative to `src`.
    pub file: PathBuf,
    /// Its module, from the crate root: `a/b.rs` and `a/b/mod.rs` are `[a, b]`.
    pub module: Vec<String>,
    /// Its tokens.
    pub tokens: Vec<Token>,
}

impl Source {
    /// Lexes the text of a file.
    pub fn new(file: &Path, text: &str) -> Result<Self, String> {
        let tokens = tokens::lex(text).map_err(|why| format!("{}: {why}", file.display()))?;
        Ok(Self { file: file.to_owned(), module: module_of(file), tokens })
    }

    /// Reads all files below `root`, in the order of their paths.
    pub fn read_all(root: &Path) -> Result<Vec<Self>, String> {
        let files = files(root, "rs").map_err(|error| error.to_string())?;
        let read = |file: &PathBuf| {
            let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            Self::new(file.strip_prefix(root).map_err(|error| error.to_string())?, &text)
        };
        files.iter().map(read).collect()
    }
}

/// Returns all files below `dir` with this extension, sorted.
pub fn files(dir: &Path, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let (mut found, mut folders) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// `lib.rs` is the root. Every file of `bin` is a crate of its own.
fn module_of(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}
