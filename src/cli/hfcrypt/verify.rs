//! `verify`.

use super::{KeyArgs, report_hidden, threads};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term::say;
use crate::cli::{print_json, term};
use crate::store::Error;
use crate::store::offline::{open_container, tree};
use clap::Args;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

/// `verify`.
#[derive(Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// A container, or a downloaded folder that holds `.enc/` (or is it)
    target: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Problem {
    path: String,
    error: String,
}

#[derive(Serialize)]
struct Verdict {
    verified: usize,
    unreadable_entries: u64,
    problems: Vec<Problem>,
}

pub(super) fn verify(args: &VerifyArgs) -> Outcome<ExitCode> {
    let text = args.target.to_string_lossy();
    if text.starts_with("hf://") {
        return Err(Failure::new(Exit::Usage, "verifying a bucket in place comes with a later version")
            .hint("download it, then verify the folder"));
    }
    let keys = args.key.keys()?;
    let about = |e: io::Error| Failure::from(e).about(args.target.display());
    let verdict = if args.target.is_dir() {
        let root = tree::root_of(&args.target)
            .ok_or_else(|| Failure::new(Exit::NotFound, format!("{} holds no `.enc` folder", args.target.display())))?;
        let found = tree::walk(&keys, &root)?;
        report_hidden(found.hidden);
        found.check_key()?;
        let progress = term::byte_progress(found.objects.iter().map(|object| object.stored_len).sum(), "verifying");
        let failures = tree::in_parallel(&found.objects, threads(), |object| {
            let done = tree::verify(&keys, object).map(drop);
            progress.inc(object.stored_len);
            done
        });
        progress.finish_and_clear();
        let problem = |(i, error): (usize, Error)| Problem {
            path: found.objects[i].path.as_str().to_owned(),
            error: error.to_string(),
        };
        let verified = found.objects.len() - failures.len();
        let unreadable_entries = found.hidden.foreign + found.hidden.suspicious;
        Verdict { verified, unreadable_entries, problems: failures.into_iter().map(problem).collect() }
    } else {
        let mut file = File::open(&args.target).map_err(about)?;
        let len = file.metadata().map_err(about)?.len();
        match open_container(&keys, None, &mut file, len, &mut io::sink()) {
            Ok(_) => Verdict { verified: 1, unreadable_entries: 0, problems: vec![] },
            Err(error) if error.is_integrity() => {
                let problem = Problem { path: text.into_owned(), error: error.to_string() };
                Verdict { verified: 0, unreadable_entries: 0, problems: vec![problem] }
            }
            Err(error) => return Err(Failure::from(error).about(args.target.display())),
        }
    };
    tell(&verdict, args.json)
}

fn tell(verdict: &Verdict, json: bool) -> Outcome<ExitCode> {
    if json {
        print_json(verdict)?;
    } else {
        for problem in &verdict.problems {
            say!("{}: {}", term::escape(&problem.path), term::escape(&problem.error));
        }
        say!("{} files are whole, {} are not", verdict.verified, verdict.problems.len());
    }
    Ok(if verdict.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(Exit::Problems as u8) })
}
