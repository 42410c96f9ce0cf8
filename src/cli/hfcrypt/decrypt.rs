//! `decrypt`.

use super::{KeyArgs, is_dash, refuse_existing, report_each, report_hidden, threads};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term;
use crate::crypto::{Keys, names};
use crate::store::Error;
use crate::store::offline::{open_container, tree};
use clap::Args;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `decrypt`.
#[derive(Args)]
pub(super) struct DecryptArgs {
    #[command(flatten)]
    key: KeyArgs,
    /// A container, `-`, or a downloaded folder that holds `.enc/` (or is it)
    input: PathBuf,
    /// A new file, `-`, or a folder
    output: PathBuf,
    /// Copy what lies beside `.enc/` too
    #[arg(long)]
    with_plaintext: bool,
}

pub(super) fn decrypt(args: &DecryptArgs) -> Outcome<ExitCode> {
    let keys = args.key.keys()?;
    if !is_dash(&args.input) && args.input.is_dir() {
        return folder(&keys, args);
    }
    if args.with_plaintext {
        return Err(Failure::new(Exit::Usage, "--with-plaintext is for folders"));
    }
    one(&keys, args)
}

fn one(keys: &Keys, args: &DecryptArgs) -> Outcome<ExitCode> {
    let mut input = match is_dash(&args.input) {
        // The header's authenticity depends on the object's length: the ciphertext waits in an unnamed file.
        true => {
            let mut spool = tempfile::tempfile()?;
            io::copy(&mut io::stdin().lock(), &mut spool)?;
            spool.rewind()?;
            spool
        }
        false => File::open(&args.input).map_err(|e| Failure::from(e).about(args.input.display()))?,
    };
    let metadata = input.metadata()?;
    let len = metadata.len();
    let about = |e: Error| Failure::from(e).about(format!("cannot decrypt {}", args.input.display()));
    if is_dash(&args.output) {
        let mut out = BufWriter::with_capacity(256 * 1024, io::stdout().lock());
        open_container(keys, None, &mut input, len, &mut out).map_err(about)?;
        out.flush()?;
    } else {
        refuse_existing(&args.output)?;
        let mtime = metadata.modified().ok().filter(|_| !is_dash(&args.input));
        tree::write_whole(&args.output, mtime, |writer| open_container(keys, None, &mut input, len, writer))
            .map_err(about)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn folder(keys: &Keys, args: &DecryptArgs) -> Outcome<ExitCode> {
    if is_dash(&args.output) {
        return Err(Failure::new(Exit::Usage, "a folder can't be written to standard output"));
    }
    let root = tree::root_of(&args.input).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("{} holds no `.enc` folder", args.input.display()))
            .hint("it has to be a downloaded bucket, or the `.enc` of one")
    })?;
    check_empty(&args.output)?;
    let found = tree::walk(keys, &root)?;
    report_hidden(found.hidden);
    found.check_key()?;
    fs::create_dir_all(&args.output).map_err(|e| Failure::from(e).about(args.output.display()))?;
    let progress = term::byte_progress(found.objects.iter().map(|object| object.stored_len).sum(), "decrypting");
    let failures = tree::in_parallel(&found.objects, threads(), |object| {
        let done = tree::decrypt(keys, object, &args.output).map(drop);
        progress.inc(object.stored_len);
        done
    });
    progress.finish_and_clear();
    let integrity = failures.iter().any(|(_, error)| error.is_integrity());
    let failures: Vec<(String, Error)> =
        failures.into_iter().map(|(i, error)| (found.objects[i].path.as_str().to_owned(), error)).collect();
    report_each("cannot decrypt", &failures);
    eprintln!("decrypted {} files", found.objects.len() - failures.len());
    if args.with_plaintext && args.input.file_name().is_none_or(|name| name != names::ROOT) {
        let copied = copy_beside(&args.input, &args.output)?;
        eprintln!("copied {copied} plaintext files");
    }
    if failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let exit = if integrity { Exit::Integrity } else { Exit::Failure };
    Err(Failure::new(exit, format!("{} of {} files could not be decrypted", failures.len(), found.objects.len()))
        .hint("altered, or made with another key; the other files were decrypted"))
}

/// Fails if the folder exists and holds something.
fn check_empty(folder: &Path) -> Outcome<()> {
    if folder.is_dir() && fs::read_dir(folder)?.next().is_some() {
        return Err(
            Failure::new(Exit::Usage, format!("{} is not empty", folder.display())).hint("decrypt into a new folder")
        );
    }
    Ok(())
}

/// Copies everything but `.enc`. An encrypted file of the same path wins: it is authentic.
fn copy_beside(from: &Path, to: &Path) -> Outcome<u64> {
    fn copy(from: &Path, to: &Path, top: bool, copied: &mut u64) -> io::Result<()> {
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if top && entry.file_name() == names::ROOT {
                continue;
            }
            if kind.is_dir() && !target.is_file() {
                copy(&source, &target, false, copied)?;
            } else if kind.is_file() && target.symlink_metadata().is_err() {
                fs::create_dir_all(to)?;
                fs::copy(&source, &target)?;
                // The content matters more than a time that this file system can't hold.
                let _ = File::options()
                    .write(true)
                    .open(&target)
                    .and_then(|copy| copy.set_modified(entry.metadata()?.modified()?));
                *copied += 1;
            } else {
                eprintln!(
                    "note: {} is hidden by an encrypted entry of the same name",
                    term::escape(&source.display().to_string())
                );
            }
        }
        Ok(())
    }
    let mut copied = 0;
    copy(from, to, true, &mut copied)?;
    Ok(copied)
}
