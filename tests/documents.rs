//! Holds the documents to what they are about: README's commands to CI, docs/cli.md to the programs, links to files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The repository's own Markdown.
fn documents() -> Vec<PathBuf> {
    let folders = [root().to_owned(), root().join("docs")];
    let entries = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap());
    let found: Vec<PathBuf> =
        entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    assert!(found.len() >= 7, "{found:?}");
    found
}

/// Lines indented as code, outside fences.
fn code_lines(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("    ")).collect()
}

#[test]
fn the_first_two_commands_of_the_readme_are_what_ci_runs() {
    let (readme, ci) = (read("README.md"), read(".ci/run"));
    let commands = &code_lines(&readme)[..2];
    let mut run: Vec<&str> = Vec::new();
    for line in ci.lines().filter(|line| line.starts_with("./")) {
        // It starts the first one twice: the second time finds what the first has made.
        if !run.contains(&line) {
            run.push(line);
        }
    }
    assert_eq!(run, commands);
    for command in commands {
        let script = command.split(' ').next().unwrap();
        assert!(root().join(script).is_file(), "{script}");
    }
}

#[test]
fn relative_links_lead_somewhere() {
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if target.starts_with("http") {
                continue;
            }
            let path = if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            assert!(path.exists(), "{} links to {target}", document.display());
            if !anchor.is_empty() {
                let there = fs::read_to_string(&path).unwrap();
                let has = there.lines().filter(|line| line.starts_with('#')).any(|line| anchor_of(line) == anchor);
                assert!(has, "{} links to {target}", document.display());
            }
        }
    }
}

fn anchor_of(heading: &str) -> String {
    let words = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = words.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// `--help` of a program or of one of its commands.
fn help(program: &str, command: &[&str]) -> String {
    let done = Command::new(program).args(command).arg("--help").output().unwrap();
    assert!(done.status.success(), "{program} {command:?} --help");
    String::from_utf8(done.stdout).unwrap()
}

/// The long options in a text.
fn options(text: &str) -> BTreeSet<String> {
    let is_name = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-';
    let found = text.match_indices("--").map(|(at, _)| text[at..].chars().take_while(is_name).collect::<String>());
    found.filter(|option| option.as_bytes().get(2).is_some_and(u8::is_ascii_lowercase)).collect()
}

/// The names under `Commands:` of a help text.
fn commands(help: &str) -> Vec<String> {
    let Some((_, list)) = help.split_once("\nCommands:\n") else { return Vec::new() };
    let lines = list.lines().take_while(|line| !line.is_empty());
    // A command starts its line; what is indented deeper goes on with a description.
    let names = lines.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    names.filter_map(|line| line.split(' ').next()).filter(|name| *name != "help").map(str::to_owned).collect()
}

/// The help of a program and of everything below it.
fn all_help(program: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let text = help(program, &words);
        open.extend(commands(&text).into_iter().map(|name| [&path[..], &[name]].concat()));
        found.push((path.join(" "), text));
    }
    found
}

const PROGRAMS: [(&str, &str); 4] = [
    ("hf-mount", env!("CARGO_BIN_EXE_hf-mount")),
    ("hf-mount-fuse", env!("CARGO_BIN_EXE_hf-mount-fuse")),
    ("hfcrypt", env!("CARGO_BIN_EXE_hfcrypt")),
    ("hugbucket", env!("CARGO_BIN_EXE_hugbucket")),
];

#[test]
fn every_command_and_option_is_in_the_manual_and_no_other() {
    let manual = read("docs/cli.md");
    let documented = options(&manual);
    let mut there = BTreeSet::new();
    for (name, program) in PROGRAMS {
        let helps = all_help(program);
        assert!(name == "hf-mount-fuse" || helps.len() > 2, "{name} has commands");
        for (command, text) in helps {
            there.extend(options(&text));
            let last = command.rsplit(' ').next().unwrap();
            assert!(manual.contains(last), "docs/cli.md says nothing of `{name} {command}`");
        }
    }
    let missing: Vec<_> = there.difference(&documented).collect();
    assert!(missing.is_empty(), "not in docs/cli.md: {missing:?}");
    let invented: Vec<_> = documented.difference(&there).collect();
    assert!(invented.is_empty(), "only in docs/cli.md: {invented:?}");
}

/// The page is written by `UPDATE=1 cargo test --test documents`.
#[test]
fn page_about_options_of_mounts_is_made_from_their_definitions() {
    let (path, page) = ("docs/mount-flags.md", hfcrypt::cli::mount::flags_page());
    if std::env::var_os("UPDATE").is_some() {
        fs::write(root().join(path), &page).unwrap();
    }
    assert_eq!(read(path), page, "run UPDATE=1 cargo test --test documents");
    assert!(page.contains("| `--metadata-ttl-ms MS` | 10000 |") && page.contains("| `--revision R` |"), "{page}");
}

#[test]
fn every_exit_code_is_in_the_manual_and_no_other() {
    let manual = read("docs/cli.md");
    let (_, section) = manual.split_once("## Exit codes").unwrap();
    let row = |line: &str| line.strip_prefix("| ")?.split(' ').next()?.parse::<u8>().ok();
    let documented: BTreeSet<u8> = section.split("\n## ").next().unwrap().lines().filter_map(row).collect();
    use hfcrypt::cli::exit::Exit as E;
    let codes = [
        E::Failure,
        E::Usage,
        E::NotFound,
        E::NoAccess,
        E::Unavailable,
        E::MountPoint,
        E::System,
        E::Full,
        E::NewerFormat,
        E::WrongKey,
        E::Integrity,
        E::Conflicts,
        E::Problems,
        E::Pending,
        E::Interrupted,
    ];
    let mut there: BTreeSet<u8> = codes.iter().map(|code| *code as u8).collect();
    there.insert(0);
    assert_eq!(documented, there);
}

#[test]
fn programs_in_the_readme_are_the_ones_that_are_built() {
    let readme = read("README.md");
    for (name, _) in PROGRAMS {
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
}

/// What `failed_tests` of scripts/lib.sh prints for a step whose results are in a folder.
fn failed_tests(files: &[(&str, &str)]) -> String {
    let results = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(results.path().join(name), text).unwrap();
    }
    let script = ". scripts/lib.sh; failed_tests step \"$1\"";
    let done = Command::new("bash").args(["-c", script, "bash"]).arg(results.path()).current_dir(root()).output();
    let done = done.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn each_failed_test_of_a_step_is_listed_in_one_line() {
    let nextest = "<testsuites><testsuite name='hfcrypt'><testcase name='fs::good' classname='hfcrypt'/>\
        <testcase name='fs::bad' classname='hfcrypt'><failure type='test failure'>panicked\nat 1</failure></testcase>\
        </testsuite></testsuites>";
    let pytest = "<testsuites><testsuite name='pytest'><testcase classname='tests.posix.test_a' name='test_b[x y]'><failure \
        message='assert'>E</failure></testcase><testcase classname='c' name='d'><error>E</error></testcase><testcase \
        classname='e' name='f'><skipped/></testcase></testsuite></testsuites>";
    let doctests = "failures:\n\n---- src/lib.rs - a (line 3) stdout ----\n\nfailures:\n    src/lib.rs - a (line 3)\n";
    let listed = failed_tests(&[("a.xml", nextest), ("b.xml", pytest), ("c.xml", "<testsui"), ("doctests", doctests)]);
    let lines = ["hfcrypt fs::bad", "tests.posix.test_a test_b[x y]", "c d", "src/lib.rs - a (line 3)"];
    assert_eq!(listed, lines.map(|line| format!("step: {line}\n")).concat());
    // A step whose build broke has no results.
    assert_eq!(failed_tests(&[]), "step: no single test; its output is above\n");
}
