//! `xet`: what the Hub's storage calls a file, what its formats hold, and raw transfers.
//!
//! Raw means stored bytes: nothing here knows a key. What is uploaded as plaintext is plaintext at the Hub, what is
//! downloaded from `.enc/` is a container.

mod hash;
mod inspect;
mod transfer;

use crate::cli::exit::Outcome;
use clap::Subcommand;
use std::path::PathBuf;
use std::process::ExitCode;

/// `xet`.
#[derive(Subcommand)]
pub(super) enum XetCommand {
    /// The hash that the Hub will show for a file
    Hash {
        /// The files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Its chunks too
        #[arg(long)]
        chunks: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What a xorb or a shard holds; every hash in a xorb is recomputed
    Inspect {
        /// The xorb or shard
        file: PathBuf,
        /// Every chunk and every term too
        #[arg(long)]
        chunks: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Put files into a bucket as they are, without encryption
    Upload(transfer::UploadArgs),
    /// Get an object of a bucket as it is stored, checked against its hash
    Download(transfer::DownloadArgs),
}

pub(super) async fn xet(command: XetCommand) -> Outcome<ExitCode> {
    match command {
        XetCommand::Hash { files, chunks, json } => {
            super::blocking(move || hash::hash_files(&files, chunks, json)).await
        }
        XetCommand::Inspect { file, chunks, json } => {
            super::blocking(move || inspect::inspect(&file, chunks, json)).await
        }
        XetCommand::Upload(args) => transfer::upload(&args).await,
        XetCommand::Download(args) => transfer::download(&args).await,
    }
}
