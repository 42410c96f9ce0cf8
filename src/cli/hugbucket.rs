//! `hugbucket`: serves buckets by the protocols S3 and FTP, and an embedded Hub directory.

use super::exit::{Exit, Failure, Outcome};
use super::signals::Signals;
use super::{CommonArgs, print_json, run};
use crate::cli::term::say;
use crate::hub::local::{ImportOptions, LocalHub, RepositoryId, Role, ServeOptions};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  AWS_ACCESS_KEY_ID=me AWS_SECRET_ACCESS_KEY=secret hugbucket s3 --encryption-key-file ~/key
                                                         serve it to S3 clients at http://127.0.0.1:9000
  MODE=s3,ftp hugbucket                                  both, at 0.0.0.0, as in the container
  hugbucket serve --config /etc/hugbucket.toml           both, as a file says
  hugbucket hub --dir /srv/hub                           serve it; HF_ENDPOINT=http://127.0.0.1:8080 HF_TOKEN=hf_local hf buckets ls
  hugbucket hub --dir /srv/hub user add alice
  hugbucket hub --dir /srv/hub token add alice --role write
  hugbucket hub --dir /srv/hub import ./model alice/model --tag v1";

/// Longest wait of `hugbucket health`. The gateway itself waits for 5 s for the Hub.
#[cfg(feature = "s3")]
const HEALTH: std::time::Duration = std::time::Duration::from_secs(8);

/// Serve Hugging Face Storage Buckets.
#[derive(Parser)]
#[command(name = "hugbucket", version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve buckets to S3 clients, encrypted if there is a key
    #[cfg(feature = "s3")]
    #[command(mut_arg("s3_listen", |arg| arg.long("listen").visible_alias("s3-listen")))]
    S3(Box<super::gateway::S3Command>),
    /// Serve buckets to FTP clients, encrypted if there is a key
    #[cfg(feature = "ftp")]
    #[command(mut_arg("ftp_listen", |arg| arg.long("listen").visible_alias("ftp-listen")))]
    Ftp(Box<super::gateway::FtpCommand>),
    /// Serve both in one process
    #[cfg(feature = "s3")]
    Serve(Box<super::gateway::ServeCommand>),
    /// Ask a running gateway whether it can reach the Hub: exit code 0, or 5
    #[cfg(feature = "s3")]
    Health {
        /// Where it answers: its --admin-listen
        #[arg(long, default_value = "http://127.0.0.1:8081/readyz", value_name = "URL")]
        url: String,
    },
    /// Settings of the gateways
    #[cfg(feature = "s3")]
    #[command(subcommand)]
    Config(ConfigAction),
    /// Serve an embedded Hub directory to any Hub client, or manage who may in
    Hub(HubCommand),
}

#[cfg(feature = "s3")]
#[derive(Subcommand)]
enum ConfigAction {
    /// Print each setting and where its value comes from; secrets are hidden
    Show {
        /// The TOML file to read
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct HubCommand {
    /// The directory; made where it is missing
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where to listen; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Base URL that clients reach it by, behind a proxy
    #[arg(long, value_name = "URL")]
    public_base: Option<String>,
    /// Listen beyond loopback although the default token is still good
    #[arg(long)]
    anonymous: bool,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Subcommand)]
enum Action {
    /// Users
    #[command(subcommand)]
    User(UserAction),
    /// Tokens
    #[command(subcommand)]
    Token(TokenAction),
    /// Put a folder into a repository, as one commit
    Import(ImportArgs),
}

#[derive(Args)]
struct ImportArgs {
    /// The folder; `.git` in it is left out
    folder: PathBuf,
    /// The repository: [datasets/|spaces/]namespace/name; created if it is missing
    #[arg(value_name = "REPOSITORY")]
    id: String,
    /// Branch that gets the commit; created if it is missing [default: main]
    #[arg(long, value_name = "BRANCH")]
    revision: Option<String>,
    /// Tag the commit too; a tag of that name is moved
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
    /// Let only the owner see the repository
    #[arg(long)]
    private: bool,
    /// Let only the owner read files of the repository
    #[arg(long)]
    gated: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum UserAction {
    /// Add a user
    Add {
        /// Name
        name: String,
    },
    /// List users
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove a user and the user's tokens; buckets stay
    Remove {
        /// Name
        name: String,
    },
}

#[derive(Subcommand)]
enum TokenAction {
    /// Make a token and print it, once
    Add {
        /// Its user
        user: String,
        /// What it may do
        #[arg(long, value_enum, default_value = "write")]
        role: RoleArg,
    },
    /// List tokens, without their secrets
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Revoke a token
    Revoke {
        /// Its number, as listed
        id: i64,
    },
}

#[derive(ValueEnum, Clone, Copy)]
enum RoleArg {
    Read,
    Write,
}

impl From<RoleArg> for Role {
    fn from(arg: RoleArg) -> Self {
        match arg {
            RoleArg::Read => Role::Read,
            RoleArg::Write => Role::Write,
        }
    }
}

/// `hugbucket`.
pub fn hugbucket() -> ExitCode {
    let cli = match parse() {
        Ok(cli) => cli,
        Err(failure) => return failure.report(),
    };
    cli.common.init_logging(tracing::Level::INFO);
    run(async move {
        match cli.command {
            #[cfg(feature = "s3")]
            Command::S3(command) => command.run().await,
            #[cfg(feature = "ftp")]
            Command::Ftp(command) => command.run().await,
            #[cfg(feature = "s3")]
            Command::Serve(command) => command.run().await,
            #[cfg(feature = "s3")]
            Command::Health { url } => health(&url).await,
            #[cfg(feature = "s3")]
            Command::Config(ConfigAction::Show { config, json }) => show_config(config, json),
            Command::Hub(command) => hub(command).await,
        }
    })
}

#[cfg(feature = "s3")]
fn parse() -> Outcome<Cli> {
    let settings = super::config::parse(Cli::command(), std::env::args_os().collect())?;
    Cli::from_arg_matches(&settings.matches).map_err(|error| error.exit())
}

#[cfg(not(feature = "s3"))]
fn parse() -> Outcome<Cli> {
    Ok(Cli::parse())
}

/// Asks the admin port of a gateway.
#[cfg(feature = "s3")]
async fn health(url: &str) -> Outcome<ExitCode> {
    let unavailable = |why: String| Failure::new(Exit::Unavailable, why).about(url);
    let client = crate::hub::process_client().map_err(|error| unavailable(error.to_string()))?;
    let asked = client.get(url).timeout(HEALTH).send().await;
    let answer = asked.map_err(|error| unavailable(error.without_url().to_string()))?;
    let status = answer.status();
    let text = answer.text().await.unwrap_or_default();
    match status.is_success() {
        true => {
            say!("{}", text.trim());
            Ok(ExitCode::SUCCESS)
        }
        false => Err(unavailable(text.trim().to_owned())),
    }
}

#[cfg(feature = "s3")]
fn show_config(config: Option<PathBuf>, json: bool) -> Outcome<ExitCode> {
    // With MODE in the environment, the settings are those of `hugbucket` alone.
    let command = (!super::config::is_set("MODE")).then(|| OsString::from("serve"));
    let file = config.map(|path| {
        let mut option = OsString::from("--config=");
        option.push(path);
        option
    });
    let line = std::iter::once("hugbucket".into()).chain(command).chain(file);
    let settings = super::config::parse(Cli::command(), line.collect())?.list(&Cli::command());
    if json {
        print_json(&serde_json::json!({ "settings": settings }))?;
        return Ok(ExitCode::SUCCESS);
    }
    for setting in settings {
        say!("{:<30} {:<32} {}", setting.name, setting.values.join(", "), setting.source);
    }
    Ok(ExitCode::SUCCESS)
}

async fn hub(command: HubCommand) -> Outcome<ExitCode> {
    let missing = || Failure::new(Exit::Usage, "--dir is missing").hint("name the directory of the embedded Hub");
    let hub = LocalHub::open(command.dir.as_deref().ok_or_else(missing)?)?;
    match command.action {
        None => serve(&hub, &command).await?,
        Some(Action::User(action)) => user(&hub, action).await?,
        Some(Action::Token(action)) => token(&hub, action).await?,
        Some(Action::Import(args)) => import(&hub, args).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn serve(hub: &LocalHub, command: &HubCommand) -> Outcome {
    let mut signals = Signals::new()?;
    if !command.listen.ip().is_loopback() && !command.anonymous && hub.takes_default_token().await? {
        let message =
            format!("{} can be reached from outside, and the well-known token hf_local is still good", command.listen);
        let hint = "revoke it (`token list`, `token revoke`), listen on 127.0.0.1, or pass --anonymous";
        return Err(Failure::new(Exit::Usage, message).hint(hint));
    }
    let options = ServeOptions { public_base: command.public_base.clone(), ..ServeOptions::default() };
    let server = hub.serve(command.listen, options).await?;
    say!("http://{}", server.address());
    signals.next().await;
    server.stop().await;
    Ok(())
}

async fn import(hub: &LocalHub, args: ImportArgs) -> Outcome {
    let id: RepositoryId = args.id.parse()?;
    let options = ImportOptions { revision: args.revision, tag: args.tag, private: args.private, gated: args.gated };
    let done = hub.import_folder(&args.folder, &id, &options).await?;
    if args.json {
        return print_json(&serde_json::json!({
            "repository": id.to_string(), "commit": done.commit, "new": done.is_new, "files": done.files,
            "size": done.size,
        }));
    }
    say!("{}", done.commit);
    match done.is_new {
        true => eprintln!("imported {} files into {id}, {} bytes", done.files, done.size),
        false => eprintln!("nothing new: {id} has exactly these files already, in this commit"),
    }
    Ok(())
}

async fn user(hub: &LocalHub, action: UserAction) -> Outcome {
    match action {
        UserAction::Add { name } => hub.add_user(&name).await?,
        UserAction::Remove { name } => hub.remove_user(&name).await?,
        UserAction::List { json } => {
            let users = hub.list_users().await?;
            match json {
                true => print_json(&serde_json::json!({ "users": users }))?,
                false => users.iter().for_each(|user| say!("{user}")),
            }
        }
    }
    Ok(())
}

async fn token(hub: &LocalHub, action: TokenAction) -> Outcome {
    match action {
        TokenAction::Add { user, role } => {
            let token = hub.add_token(&user, role.into()).await?;
            say!("{}", *token.secret);
            eprintln!("number {}; it is not shown again", token.id);
            if hub.takes_default_token().await? {
                eprintln!(
                    "note: the well-known token hf_local is still good; revoke it with `token list` and `token revoke`"
                );
            }
        }
        TokenAction::Revoke { id } => hub.revoke_token(id).await?,
        TokenAction::List { json } => {
            let tokens = hub.list_tokens().await?;
            if json {
                let row = |t: &crate::hub::local::Token| serde_json::json!({ "id": t.id, "user": t.user, "role": t.role.as_str(), "hint": t.hint });
                print_json(&serde_json::json!({ "tokens": tokens.iter().map(row).collect::<Vec<_>>() }))?;
            } else {
                for token in tokens {
                    say!("{:>4}  {:<20} {:<6} {}", token.id, token.user, token.role.as_str(), token.hint);
                }
            }
        }
    }
    Ok(())
}
