//! The command line: arguments, daemon, progress, text or JSON output, exit codes (docs/cli.md).

pub mod args;
pub mod dirs;
pub mod exit;
pub mod hfcrypt;
#[cfg(feature = "local-hub")]
pub mod hugbucket;
#[cfg(feature = "fuse")]
pub mod mount;
pub mod process;
pub mod term;

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use std::process::ExitCode;

/// Options of every command.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
pub struct CommonArgs {
    /// Say more (repeatable); RUST_LOG wins
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of log lines
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// `--log-format`.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl CommonArgs {
    /// Starts logging to stderr. Only the first call counts.
    pub fn init_logging(&self, quiet: tracing::Level) {
        use tracing_subscriber::{EnvFilter, fmt};
        let level = match (self.verbose, quiet) {
            (0, quiet) => quiet,
            (1, tracing::Level::WARN) => tracing::Level::INFO,
            (1, _) => tracing::Level::DEBUG,
            (2, tracing::Level::WARN) => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        };
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(format!("hfcrypt={level}")));
        let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
        // A second subscriber can't be set; the first one goes on.
        let _ = match self.log_format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().try_init(),
        };
    }
}

/// Runs a command on a runtime of its own and turns its outcome into the process's exit code.
pub fn run<F: Future<Output = exit::Outcome<ExitCode>>>(command: F) -> ExitCode {
    process::harden();
    // More workers than cores: local disk I/O of small requests runs on them.
    let workers = std::thread::available_parallelism().map_or(4, |n| n.get().max(4));
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return exit::Failure::from(error).about("cannot start").report(),
    };
    let outcome = runtime.block_on(command);
    // A blocking thread that is stuck in a dead disk or mount must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome.unwrap_or_else(|failure| failure.report())
}

/// Prints a value as one JSON document on stdout.
pub fn print_json(value: &impl Serialize) -> exit::Outcome {
    use std::io::Write;
    let mut text = serde_json::to_string_pretty(value).map_err(std::io::Error::from)?;
    text.push('\n');
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
