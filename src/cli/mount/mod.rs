//! `hf-mount` and `hf-mount-fuse`.

mod control;
mod daemon;
mod mountpoint;
mod pending;
mod quickstart;
mod registry;
mod start;
mod status;
mod stop;

use super::args::{MountArgs, SourceCommand};
use super::exit::Outcome;
use super::{CommonArgs, run};
use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  hf-mount quickstart ~/vault                            no account needed: key, Hub and encrypted mount
  hf-mount start --encryption-key-file key.bin bucket me/data ~/data
  hf-mount start --hub-endpoint file:///srv/hub --create bucket local/data ~/data
  hf-mount status
  hf-mount pending list ~/data                           what is not on the Hub yet, and why
  hf-mount stop ~/data";

/// Mount Hugging Face Storage Buckets as local folders, encrypted on this machine.
#[derive(Parser)]
#[command(name = "hf-mount", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount in the background
    Start(Box<StartArgs>),
    /// Flush and unmount
    Stop(StopArgs),
    /// List mounts
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Wait until all that is pending is on the Hub
    Flush {
        /// The mount point
        mountpoint: PathBuf,
    },
    /// What is not on the Hub yet, or was refused: list it, try it again, copy it out, give it up
    #[command(subcommand)]
    Pending(pending::Command),
    /// A key, an embedded Hub and an encrypted mount in one step
    Quickstart {
        /// An empty folder; a missing last component is made
        mountpoint: PathBuf,
    },
    /// The background process of `start`; its orders come on stdin
    #[command(hide = true)]
    Daemon,
}

/// `start`.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub(super) struct StartArgs {
    #[command(flatten)]
    mount: MountArgs,
    #[command(subcommand)]
    source: SourceCommand,
}

/// `stop`.
#[derive(Args)]
struct StopArgs {
    /// The mount point
    #[arg(required_unless_present = "all")]
    mountpoint: Option<PathBuf>,
    /// Every mount of this user
    #[arg(long, conflicts_with = "mountpoint")]
    all: bool,
    /// Detach a busy mount; who has files open in it keeps them until they are closed
    #[arg(long)]
    force: bool,
}

/// `hf-mount`.
pub fn hf_mount() -> ExitCode {
    let cli = Cli::parse();
    if !matches!(cli.command, Command::Daemon) {
        cli.common.init_logging(tracing::Level::WARN);
    }
    run(async move {
        match cli.command {
            Command::Start(args) => start::start(&cli.common, *args).await,
            Command::Stop(args) => match args.mountpoint {
                Some(mountpoint) if !args.all => stop::stop(&mountpoint, args.force).await,
                _ => stop::stop_all(args.force).await,
            },
            Command::Status { json } => status::status(json).await,
            Command::Flush { mountpoint } => stop::flush(&mountpoint).await,
            Command::Pending(command) => pending::run(command).await,
            Command::Quickstart { mountpoint } => quickstart::quickstart(&cli.common, mountpoint).await,
            Command::Daemon => daemon::background().await,
        }
    })
}

/// The same sources and options, in the foreground.
#[derive(Parser)]
#[command(name = "hf-mount-fuse", version, about = "Mount a Hugging Face Storage Bucket in the foreground (FUSE)")]
struct Foreground {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    start: StartArgs,
}

/// `hf-mount-fuse`.
pub fn hf_mount_fuse() -> ExitCode {
    let cli = Foreground::parse();
    cli.common.init_logging(tracing::Level::INFO);
    run(async move {
        let (orders, made) = start::orders(&cli.common, cli.start)?;
        let ready = |notices: Vec<start::Notice>| {
            let source = orders.source()?;
            notices.iter().for_each(|notice| notice.print(&source));
            made.keep();
            Ok(())
        };
        daemon::serve(&orders, ready).await.map(stop::exit_code)
    })
}

/// What `stop`, `flush` and the daemon tell each other of a drain.
type DrainOutcome = Outcome<crate::fs::Drained>;
