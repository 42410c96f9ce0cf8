//! `encrypt`.

use super::{WriteArgs, is_dash, refuse_existing, report_each, threads};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term;
use crate::crypto::{Format, Keys, SystemRandom};
use crate::store::offline::{self, tree};
use crate::store::{Error, PlainPath};
use clap::Args;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `encrypt`.
#[derive(Args)]
pub(super) struct EncryptArgs {
    #[command(flatten)]
    write: WriteArgs,
    /// A file, `-`, or a folder (then names are encrypted too)
    input: PathBuf,
    /// A new file, `-`, or a folder that will hold `.enc/`
    output: PathBuf,
}

/// Files of a folder, and what the format has no place for.
#[derive(Default)]
struct Inputs {
    files: Vec<(PathBuf, PlainPath, u64)>,
    refused: Vec<(String, &'static str)>,
    empty_folders: u64,
}

pub(super) fn encrypt(args: &EncryptArgs) -> Outcome<ExitCode> {
    args.write.format.check()?;
    let keys = args.write.key.keys()?;
    let format = args.write.format.encryption_format.into();
    if !is_dash(&args.input) && args.input.is_dir() {
        return folder(&keys, format, args);
    }
    one(&keys, format, args)
}

fn one(keys: &Keys, format: Format, args: &EncryptArgs) -> Outcome<ExitCode> {
    let padding = args.write.format.size_padding.into();
    let mut mtime = None;
    let mut input: Box<dyn io::Read> = match is_dash(&args.input) {
        true => Box::new(io::stdin().lock()),
        false => {
            let file = File::open(&args.input).map_err(|e| Failure::from(e).about(args.input.display()))?;
            let metadata = file.metadata()?;
            // A pipe has no time of its own.
            mtime = metadata.modified().ok().filter(|_| metadata.is_file());
            Box::new(file)
        }
    };
    if is_dash(&args.output) {
        // The header comes first and holds the size: the records wait, sealed, in an unnamed file.
        let mut spool = tempfile::tempfile()?;
        offline::seal_unknown_len(keys, format, padding, &mut input, &mut spool, &mut SystemRandom)?;
        spool.rewind()?;
        io::copy(&mut spool, &mut io::stdout().lock())?;
        return Ok(ExitCode::SUCCESS);
    }
    refuse_existing(&args.output)?;
    tree::write_whole(&args.output, mtime, |writer| {
        // Through the buffer's file: the header is patched at the end.
        writer.flush()?;
        let mut file = *writer.get_ref();
        let mut buffered = io::BufWriter::with_capacity(256 * 1024, &mut file);
        let sealed = offline::seal_unknown_len(keys, format, padding, &mut input, &mut buffered, &mut SystemRandom)?;
        buffered.flush()?;
        Ok(sealed.stored_len)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn folder(keys: &Keys, format: Format, args: &EncryptArgs) -> Outcome<ExitCode> {
    if is_dash(&args.output) {
        return Err(Failure::new(Exit::Usage, "a folder can't be written to standard output"));
    }
    refuse_existing(&args.output.join(crate::crypto::names::ROOT))?;
    let mut inputs = Inputs::default();
    collect(&args.input, &PlainPath::root(), &mut inputs).map_err(|e| Failure::from(e).about(args.input.display()))?;
    let names = keys.names(format);
    inputs.files.retain(|(file, path, _)| {
        let fits = path.as_str().split('/').all(|name| names.check(name).is_ok());
        if !fits {
            inputs.refused.push((file.display().to_string(), "a name in its path is too long for this format"));
        }
        fits
    });
    let progress = term::byte_progress(inputs.files.iter().map(|(_, _, len)| len).sum(), "encrypting");
    let padding = args.write.format.size_padding.into();
    let failures = tree::in_parallel(&inputs.files, threads(), |(file, path, len)| {
        tree::encrypt(keys, format, padding, file, path, &args.output).map(|_| progress.inc(*len))
    });
    progress.finish_and_clear();
    let failures: Vec<(String, Error)> =
        failures.into_iter().map(|(i, e)| (inputs.files[i].0.display().to_string(), e)).collect();
    report_each("cannot encrypt", &failures);
    for (object, why) in &inputs.refused {
        eprintln!("error: cannot encrypt {}: {why}", term::escape(object));
    }
    if inputs.empty_folders > 0 {
        eprintln!("note: {} empty folders have no place in the format and were left out", inputs.empty_folders);
    }
    let failed = failures.len() + inputs.refused.len();
    eprintln!("encrypted {} files", inputs.files.len() - failures.len());
    match failed {
        0 => Ok(ExitCode::SUCCESS),
        n => Err(Failure::new(
            Exit::Failure,
            format!("{n} of {} files were not encrypted", inputs.files.len() + inputs.refused.len()),
        )),
    }
}

/// Lists a folder. Links and special files are refused by name: the format can't keep them.
fn collect(folder: &Path, path: &PlainPath, inputs: &mut Inputs) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    inputs.empty_folders += u64::from(entries.is_empty());
    for entry in entries {
        let file = entry.path();
        let shown = file.display().to_string();
        let Ok(name) = entry.file_name().into_string() else {
            inputs.refused.push((shown, "its name is not UTF-8"));
            continue;
        };
        let Ok(inner) = path.join(&name) else {
            inputs.refused.push((shown, "its name can't be stored"));
            continue;
        };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&file, &inner, inputs)?;
        } else if kind.is_file() {
            inputs.files.push((file, inner, entry.metadata()?.len()));
        } else {
            inputs.refused.push((shown, "it is a link or a special file, which the format can't keep"));
        }
    }
    Ok(())
}
