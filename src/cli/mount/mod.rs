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
use clap::{Arg, Args, CommandFactory, Parser, Subcommand};
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

/// Returns the page about the options of `start` (docs/mount-flags.md), made from their definitions.
pub fn flags_page() -> String {
    let mut page = String::from(
        "# Options of mounts\n\n\
         `hf-mount start` and `hf-mount-fuse` have these options. The page is made from their definitions; the meaning of\n\
         each is described in [cli.md](cli.md#options-of-start).\n\n\
         | option | default | |\n|---|---|---|\n",
    );
    let command = Cli::command();
    let start = command.find_subcommand("start").expect("a command of this program");
    let repo = start.find_subcommand("repo").expect("a source of this command");
    let named = start.get_arguments().chain(repo.get_arguments().filter(|arg| arg.get_id() == "revision"));
    let mut rows: Vec<String> = named.filter_map(flag_row).collect();
    rows.sort();
    page.extend(rows);
    page
}

/// Returns the row of an option. `None`: it is no long option, or one of every program.
fn flag_row(arg: &Arg) -> Option<String> {
    let name = arg.get_long().filter(|name| !matches!(*name, "help" | "version"))?;
    let takes_value = arg.get_action().takes_values();
    let value = arg.get_value_names().filter(|_| takes_value).and_then(|names| names.first());
    let value = value.map_or(String::new(), |value| format!(" {value}"));
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    let default = match takes_value {
        true => defaults.join(","),
        false => "off".to_owned(),
    };
    let variable = arg.get_env().map(|name| format!(" (variable `{}`)", name.to_string_lossy())).unwrap_or_default();
    let help = arg.get_help().map(|help| help.to_string().replace('|', "\\|")).unwrap_or_default();
    Some(format!("| `--{name}{value}` | {default} | {help}{variable} |\n"))
}

/// What `stop`, `flush` and the daemon tell each other of a drain.
type DrainOutcome = Outcome<crate::fs::Drained>;
