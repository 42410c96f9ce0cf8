//! The command line: arguments, daemon, progress, text or JSON output, exit codes (docs/cli.md).

pub mod args;
#[cfg(feature = "s3")]
pub mod config;
pub mod dirs;
pub mod exit;
#[cfg(feature = "s3")]
pub mod gateway;
pub mod hfcrypt;
#[cfg(feature = "local-hub")]
pub mod hugbucket;
#[cfg(feature = "fuse")]
pub mod mount;
pub mod process;
pub mod signals;
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
        use tracing_subscriber::filter::filter_fn;
        use tracing_subscriber::layer::{Layer, SubscriberExt};
        use tracing_subscriber::util::SubscriberInitExt;
        use tracing_subscriber::{EnvFilter, fmt};
        let level = match (self.verbose, quiet) {
            (0, quiet) => quiet,
            (1, tracing::Level::WARN) => tracing::Level::INFO,
            (1, _) => tracing::Level::DEBUG,
            (2, tracing::Level::WARN) => tracing::Level::DEBUG,
            _ => tracing::Level::TRACE,
        };
        let wanted = std::env::var(EnvFilter::DEFAULT_ENV).ok();
        let wanted = wanted.and_then(|text| EnvFilter::try_new(own_target(&text)).ok());
        let filter = wanted.unwrap_or_else(|| EnvFilter::new(format!("hfcrypt={level}")));
        let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        let layer = match self.log_format {
            LogFormat::Text => layer.boxed(),
            LogFormat::Json => layer.json().boxed(),
        };
        // The protocol layer of the gateway logs keys and signatures of requests, so it is never heard.
        let quiet = filter_fn(|event| !event.target().starts_with("s3s"));
        // A second subscriber can't be set; the first one goes on.
        let _ = tracing_subscriber::registry().with(filter).with(layer.with_filter(quiet)).try_init();
    }
}

/// Returns log directives with the target `hf_mount` (and modules below it) replaced by our own target. The public
/// program logs under that
/// name, so its users and documents set `RUST_LOG=hf_mount=debug`.
fn own_target(directives: &str) -> String {
    const PUBLIC: &str = "hf_mount";
    let mut depth = 0u32;
    // A comma between brackets separates the fields of a span, not directives.
    let separates = |c: char| {
        match c {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    };
    let own = |directive: &str| {
        let trimmed = directive.trim();
        let rest = trimmed.strip_prefix(PUBLIC).filter(|rest| rest.is_empty() || rest.starts_with(['=', '[', ':']));
        match rest {
            Some(rest) => format!("hfcrypt{}", &rest[rest.find(['=', '[']).unwrap_or(rest.len())..]),
            None => trimmed.to_owned(),
        }
    };
    directives.split(separates).map(own).collect::<Vec<_>>().join(",")
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

#[cfg(test)]
mod tests {
    use super::own_target;

    #[test]
    fn the_public_programs_log_target_stands_for_ours_and_nothing_else_changes() {
        for (given, own) in [
            ("hf_mount=debug", "hfcrypt=debug"),
            ("hf_mount", "hfcrypt"),
            ("warn, hf_mount::virtual_fs=trace ,h2=off", "warn,hfcrypt=trace,h2=off"),
            ("hf_mount[open{a=1,hf_mount=2}]=debug,hf_mount=info", "hfcrypt[open{a=1,hf_mount=2}]=debug,hfcrypt=info"),
            ("hf_mounted=debug", "hf_mounted=debug"),
            ("hfcrypt::fs=debug", "hfcrypt::fs=debug"),
            ("", ""),
        ] {
            assert_eq!(own_target(given), own, "{given}");
        }
    }
}
