//! Prints counts of the source beside their bounds. Ends with 1 if one is over its bound (`scripts/counts`).

use hfcrypt_source::circles::circles;
use hfcrypt_source::counts::{self, Language};
use hfcrypt_source::product::without_tests;
use hfcrypt_source::{Source, files};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A count that must not exceed its bound.
struct Count {
    what: &'static str,
    /// Its value at commit 09e8742, before the work on it began.
    before: usize,
    now: usize,
    /// Fails above this. Lower it when the count has fallen.
    bound: usize,
    /// The bound to reach.
    goal: usize,
    /// Places to look at, if the count is over its bound.
    details: Vec<String>,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let counts = match count(&root) {
        Ok(counts) => counts,
        Err(why) => {
            eprintln!("error: cannot count: {why}");
            return ExitCode::FAILURE;
        }
    };
    println!("{:<58} {:>6} {:>6} {:>6} {:>6}", "", "before", "now", "bound", "goal");
    let mut code = ExitCode::SUCCESS;
    for count in &counts {
        println!("{:<58} {:>6} {:>6} {:>6} {:>6}", count.what, count.before, count.now, count.bound, count.goal);
    }
    for count in counts.iter().filter(|count| count.now > count.bound) {
        code = ExitCode::FAILURE;
        eprintln!("error: {}: {} is over the bound of {}", count.what, count.now, count.bound);
        count.details.iter().take(60).for_each(|detail| eprintln!("    {detail}"));
    }
    code
}

fn count(root: &Path) -> Result<Vec<Count>, String> {
    let product = without_tests(Source::read_all(&root.join("src"))?);
    let circle = |under: &[&str]| {
        let found = circles(&product, under);
        (found.first().map_or(0, Vec::len), found.iter().map(|circle| circle.join(", ")).collect::<Vec<_>>())
    };
    let methods: usize = product
        .iter()
        .filter(|source| source.module.first().is_some_and(|layer| layer == "fs"))
        .map(|source| counts::methods(&source.tokens, "Vfs"))
        .sum();
    let (lengths, longest) = functions(&product);
    let (whats, what_lines) = whats_per_thousand(root)?;
    let wide = wide_comments(root)?;
    let (in_fs, in_hub, in_upload) = (circle(&["fs"]), circle(&["hub", "local"]), circle(&["xet", "upload"]));
    let count = |what, before, now, bound, goal, details| Count { what, before, now, bound, goal, details };
    Ok(vec![
        count("methods on Vfs, in all impl blocks of src/fs", 177, methods, METHODS, 60, Vec::new()),
        count("files in the largest import circle of src/fs", 16, in_fs.0, FS_CIRCLE, 3, in_fs.1),
        count("files in the largest import circle of src/hub/local", 13, in_hub.0, 0, 0, in_hub.1),
        count("files in the largest import circle of src/xet/upload", 2, in_upload.0, 0, 0, in_upload.1),
        count("comment lines that begin with What or Whether, per 1,000", 117, whats, WHATS, 5, what_lines),
        count("comment lines over 120 columns", 809, wide.len(), WIDE, 0, wide),
        count("lines of a production function, 99th percentile", 38, lengths, LONGEST, 38, longest),
    ])
}

/// Bounds: the goals of the count.
const METHODS: usize = 60;
const FS_CIRCLE: usize = 3;
const WHATS: usize = 5;
const WIDE: usize = 0;
const LONGEST: usize = 38;

/// Returns the 99th percentile of the lengths of all functions of `src` outside tests, and the longest ones.
///
/// A length is the number of lines from `fn` to the closing brace.
fn functions(product: &[Source]) -> (usize, Vec<String>) {
    let mut all: Vec<(usize, String)> = Vec::new();
    for source in product {
        let found = counts::function_lengths(&source.tokens).into_iter();
        all.extend(found.map(|(line, len)| (len, format!("src/{}:{line}: {len} lines", source.file.display()))));
    }
    let mut lengths: Vec<usize> = all.iter().map(|(len, _)| *len).collect();
    all.sort_by(|a, b| b.cmp(a));
    (counts::percentile(&mut lengths, 99), all.into_iter().map(|(_, place)| place).collect())
}

/// Counts in `src/fs` and `src/store`, tests included; rounded up.
fn whats_per_thousand(root: &Path) -> Result<(usize, Vec<String>), String> {
    let (mut all, mut found) = (0, Vec::new());
    for layer in ["src/fs", "src/store"] {
        for path in files(&root.join(layer), "rs").map_err(|error| error.to_string())? {
            let text = read(&path)?;
            for (line, comment) in counts::comments(&text, Language::Rust) {
                all += 1;
                if counts::begins_with_what(comment) {
                    found.push(place(root, &path, line));
                }
            }
        }
    }
    Ok(((found.len() * 1000).div_ceil(all.max(1)), found))
}

fn wide_comments(root: &Path) -> Result<Vec<String>, String> {
    let mut wide = Vec::new();
    for (path, language) in commented(root)? {
        let text = read(&path)?;
        let lines = counts::comments(&text, language);
        let is_wide = |line: &&(usize, &str)| line.1.chars().count() > counts::COLUMNS;
        wide.extend(lines.iter().filter(is_wide).map(|(line, _)| place(root, &path, *line)));
    }
    Ok(wide)
}

/// All files whose comments count.
fn commented(root: &Path) -> Result<Vec<(PathBuf, Language)>, String> {
    let mut all = Vec::new();
    for folder in ["src", "tests", "benches", "fuzz", "scripts"] {
        let folder = root.join(folder);
        for (extension, language) in [("rs", Language::Rust), ("py", Language::Python), ("sh", Language::Hash)] {
            let found = files(&folder, extension).map_err(|error| error.to_string())?;
            all.extend(found.into_iter().map(|path| (path, language)));
        }
    }
    for script in ["scripts/test", "scripts/fuzz", "scripts/quickstart", "scripts/counts", "benches/compare/run"] {
        all.push((root.join(script), Language::Hash));
    }
    all.retain(|(path, _)| !path.components().any(|part| part.as_os_str() == "target"));
    Ok(all)
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn place(root: &Path, path: &Path, line: usize) -> String {
    format!("{}:{line}", path.strip_prefix(root).unwrap_or(path).display())
}
