//! `name encrypt` and `name decrypt`.

use super::{KeyArgs, WriteArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::term;
use crate::crypto::{Format, Keys, NameCipher, Verdict, names};
use crate::store::PlainPath;
use crate::store::offline::tree::read_sidecar;
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// `name`.
#[derive(Subcommand)]
pub(super) enum NameCommand {
    /// Plain paths from the bucket root to object keys
    Encrypt {
        #[command(flatten)]
        write: WriteArgs,
        #[command(flatten)]
        lines: Lines,
    },
    /// Object keys to plain paths; format 2 is tried first
    Decrypt {
        #[command(flatten)]
        key: KeyArgs,
        #[command(flatten)]
        lines: Lines,
        /// The `-N2…` object of a `-L2…` component (repeatable, in order)
        #[arg(long, value_name = "FILE")]
        sidecar: Vec<PathBuf>,
    },
}

/// What to translate, and how to print it.
#[derive(Args)]
pub(super) struct Lines {
    /// The paths
    #[arg(required = true)]
    paths: Vec<String>,
    /// Separate by NUL instead of newline
    #[arg(short = '0')]
    nul: bool,
}

impl Lines {
    /// Prints one line: raw for a program, escaped for a person.
    fn print(&self, text: &str) -> Outcome {
        let mut out = std::io::stdout().lock();
        let shown = if out.is_terminal() { term::escape(text) } else { text.to_owned() };
        Ok(out.write_all(shown.as_bytes()).and_then(|()| out.write_all(if self.nul { b"\0" } else { b"\n" }))?)
    }
}

pub(super) fn name(command: NameCommand) -> Outcome<ExitCode> {
    match command {
        NameCommand::Encrypt { write, lines } => {
            write.format.check()?;
            let keys = write.key.keys()?;
            let cipher = keys.names(write.format.encryption_format.into());
            for path in &lines.paths {
                let plain = PlainPath::new(path).map_err(|e| Failure::from(e).about(format!("{path:?}")))?;
                let sealed =
                    cipher.seal_path(plain.as_str()).map_err(|e| Failure::from(e).about(format!("{path:?}")))?;
                lines.print(&sealed.key)?;
            }
        }
        NameCommand::Decrypt { key, lines, sidecar } => {
            let keys = key.keys()?;
            let mut sidecars = sidecar.iter();
            for path in &lines.paths {
                lines.print(&decrypt(&keys, path, &mut sidecars)?)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A stored path is of one format in all its components, so the first component decides.
fn decrypt(keys: &Keys, key: &str, sidecars: &mut std::slice::Iter<'_, PathBuf>) -> Outcome<String> {
    let outside = || {
        Failure::new(Exit::Usage, format!("{key:?} does not begin with .enc/"))
            .hint("give the whole object key, as a listing shows it")
    };
    let inner = key.strip_prefix(names::ROOT).and_then(|rest| rest.strip_prefix('/')).ok_or_else(outside)?;
    let mut failure = None;
    for format in [Format::V2, Format::V1] {
        let mut tried = sidecars.clone();
        match decrypt_with(keys.names(format), inner, &mut tried) {
            Ok(plain) => {
                *sidecars = tried;
                return Ok(plain);
            }
            Err(error) => drop(failure.get_or_insert(error)),
        }
    }
    Err(failure.unwrap_or_else(outside).about(format!("{key:?}")))
}

fn decrypt_with(cipher: &NameCipher, inner: &str, sidecars: &mut std::slice::Iter<'_, PathBuf>) -> Outcome<String> {
    let mut plain = PlainPath::root();
    for stored in inner.split('/') {
        let verdict = match cipher.open(plain.as_str(), stored) {
            Verdict::NeedsSidecar(name) => match sidecars.next() {
                Some(file) => cipher.open_long(plain.as_str(), stored, &sidecar(file)?),
                None => {
                    let message = format!("the long name {stored:?} needs its sidecar");
                    return Err(Failure::new(Exit::NotFound, message)
                        .hint(format!("download {name} from the same folder and pass it with --sidecar")));
                }
            },
            other => other,
        };
        let why = match verdict {
            Verdict::Own(name) => {
                plain = plain.join(&name)?;
                continue;
            }
            Verdict::Suspicious => "authenticates, but no writer makes it",
            Verdict::Extension => "is not a stored name",
            Verdict::Foreign | Verdict::NeedsSidecar(_) => "does not authenticate: another key's, or altered",
        };
        return Err(Failure::new(Exit::Integrity, format!("{stored:?} {why}")));
    }
    Ok(plain.as_str().to_owned())
}

fn sidecar(file: &Path) -> Outcome<Vec<u8>> {
    read_sidecar(file)?.ok_or_else(|| {
        Failure::new(
            Exit::NotFound,
            format!("{} is not a sidecar: a sidecar has {} bytes", file.display(), names::SIDECAR_LEN),
        )
    })
}
