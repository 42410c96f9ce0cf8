//! `hfcrypt`: keys and containers, without a Hub; raw transfers with one.

mod decrypt;
mod encrypt;
mod inspect;
pub mod keygen;
mod name;
mod verify;
mod xet;

use super::args::FormatArgs;
use super::exit::{Exit, Failure, Outcome};
use super::{CommonArgs, run, term};
use crate::crypto::Keys;
use clap::{Args, Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

const EXAMPLES: &str = "\
Examples:
  hfcrypt keygen key.bin
  hf buckets sync hf://buckets/me/data downloaded/ && hfcrypt decrypt --key-file key.bin downloaded/ plain/
  hfcrypt encrypt --key-file key.bin photos/ to-upload/
  hfcrypt name encrypt --key-file key.bin models/a.safetensors
  hfcrypt verify --key-file key.bin downloaded/
  hfcrypt xet hash model.safetensors
  hfcrypt xet upload model.safetensors hf://buckets/me/data/models/";

/// Keys, encryption and decryption for Hugging Face Storage Buckets, offline.
#[derive(Parser)]
#[command(name = "hfcrypt", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key file (never overwrites)
    Keygen {
        /// The file to make
        file: PathBuf,
        /// 64 hex digits instead of 32 raw bytes
        #[arg(long)]
        hex: bool,
    },
    /// Look at key files
    #[command(subcommand)]
    Key(KeyCommand),
    /// Encrypt a file, `-`, or a folder
    Encrypt(encrypt::EncryptArgs),
    /// Decrypt a container, `-`, or a downloaded folder
    Decrypt(decrypt::DecryptArgs),
    /// Translate paths to object keys and back
    #[command(subcommand)]
    Name(name::NameCommand),
    /// What a container's header says, without a key
    Inspect {
        /// The container
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Check every record of a container or of a downloaded folder
    Verify(verify::VerifyArgs),
    /// Xet formats
    #[command(subcommand)]
    Xet(xet::XetCommand),
}

#[derive(Subcommand)]
enum KeyCommand {
    /// Key id and form
    Show {
        /// The key file
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// A key.
#[derive(Args, Clone, Debug)]
struct KeyArgs {
    /// The key file
    #[arg(long, value_name = "FILE", env = "HFCRYPT_KEY_FILE")]
    key_file: PathBuf,
}

impl KeyArgs {
    fn keys(&self) -> Outcome<Arc<Keys>> {
        super::args::read_keys(&self.key_file)
    }
}

/// A key and how to write with it.
#[derive(Args, Clone, Debug)]
struct WriteArgs {
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    format: FormatArgs,
}

/// `hfcrypt`.
pub fn hfcrypt() -> ExitCode {
    let cli = Cli::parse();
    cli.common.init_logging(tracing::Level::WARN);
    run(async move {
        match cli.command {
            Command::Keygen { file, hex } => blocking(move || keygen::keygen(&file, hex)).await,
            Command::Key(KeyCommand::Show { file, json }) => blocking(move || keygen::show(&file, json)).await,
            Command::Encrypt(args) => blocking(move || encrypt::encrypt(&args)).await,
            Command::Decrypt(args) => blocking(move || decrypt::decrypt(&args)).await,
            Command::Name(command) => blocking(move || name::name(command)).await,
            Command::Inspect { file, json } => blocking(move || inspect::inspect(&file, json)).await,
            Command::Verify(args) => blocking(move || verify::verify(&args)).await,
            Command::Xet(command) => xet::xet(command).await,
        }
    })
}

/// Synchronous work on local files.
async fn blocking(work: impl FnOnce() -> Outcome<ExitCode> + Send + 'static) -> Outcome<ExitCode> {
    let internal = |error| Err(Failure::new(Exit::Failure, format!("internal error: {error}")));
    tokio::task::spawn_blocking(work).await.unwrap_or_else(internal)
}

/// Whether an argument means standard input or output.
fn is_dash(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// Threads for work on many files.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Refuses an output that is there already: nothing is overwritten by accident.
fn refuse_existing(out: &Path) -> Outcome {
    match out.symlink_metadata() {
        Ok(_) => Err(Failure::new(Exit::Usage, format!("{} exists already", out.display()))
            .hint("choose another output, or remove it")),
        Err(_) => Ok(()),
    }
}

/// Reports failures of a job over many objects, one line each.
fn report_each(what: &str, failures: &[(String, crate::store::Error)]) {
    for (object, error) in failures {
        eprintln!("error: {what} {}: {}", term::escape(object), term::escape(&error.to_string()));
    }
}

/// Tells what a walk did not show.
fn report_hidden(hidden: crate::store::Hidden) {
    for (count, what) in [
        (hidden.foreign, "are not readable with this key (another key's, or damaged)"),
        (hidden.suspicious, "have names that no writer makes"),
        (hidden.shadowed, "are hidden by another entry of the same name"),
        (hidden.unreachable, "are not files or folders"),
    ] {
        if count > 0 {
            eprintln!("note: {count} entries {what}");
        }
    }
}
