//! `hugbucket s3`, `ftp` and `serve`: the gateways.

use super::args::{FormatArgs, HubArgs, parse_size, read_keys};
use super::dirs;
use super::exit::{Exit, Failure, Outcome};
use super::signals::Signals;
use crate::cli::term::say;
use crate::gateway::admin::{Admin, Counters};
#[cfg(feature = "ftp")]
use crate::gateway::ftp;
use crate::gateway::s3;
use crate::gateway::state::State;
#[cfg(feature = "postgres")]
use crate::gateway::state::postgres::Postgres;
use crate::gateway::state::sqlite::Sqlite;
use crate::gateway::{AccessKey, AccessKeys, Gateway, MIN_PART, Namespaces, Options, PATIENCE, Permission};
use crate::store::buckets::Buckets;
use crate::store::{CacheMode, DiskCacheOptions, OpenOptions};
use clap::{Args, ValueEnum};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// A place for the metadata of objects.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataPlace {
    /// In the bucket, sealed if there is a key
    Bucket,
    /// In the gateway's state only
    State,
}

/// A protocol that is served.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The S3 REST API
    S3,
    /// FTP
    #[cfg(feature = "ftp")]
    Ftp,
}

/// `hugbucket s3`.
#[derive(Args)]
#[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
pub struct S3Command {
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub s3: S3Args,
}

/// `hugbucket ftp`.
#[cfg(feature = "ftp")]
#[derive(Args)]
#[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
pub struct FtpCommand {
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub ftp: FtpArgs,
}

/// `hugbucket serve`.
#[derive(Args)]
#[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
pub struct ServeCommand {
    /// Protocols to serve
    #[arg(long, value_enum, env = "MODE", value_delimiter = ',', default_value = "s3,ftp", value_name = "PROTOCOLS")]
    pub mode: Vec<Mode>,
    #[command(flatten)]
    pub gateway: GatewayArgs,
    #[command(flatten)]
    pub s3: S3Args,
    #[cfg(feature = "ftp")]
    #[command(flatten)]
    pub ftp: FtpArgs,
}

/// Options of all gateways.
#[derive(Args)]
pub struct GatewayArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
    pub hub: HubArgs,
    /// Settings, a TOML file: each key is the name of an option
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Key file: everything is encrypted on this machine
    #[arg(long, value_name = "FILE", env = "HFCRYPT_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "a doc comment on a flattened field would become the help text of the group")]
    pub format: FormatArgs,
    /// Hide the plaintext of buckets
    #[arg(long)]
    pub encrypted_only: bool,
    /// Start a further key in buckets that this key can't read
    #[arg(long)]
    pub new_key: bool,
    /// Refuse all writes, of objects and of buckets
    #[arg(long)]
    pub read_only: bool,
    /// Access keys, a TOML file; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY name a further one
    #[arg(long, value_name = "FILE")]
    pub credentials_file: Option<PathBuf>,
    /// Let requests without credentials do everything
    #[arg(long)]
    pub anonymous: bool,
    /// Serve the buckets of this namespace too, as NAMESPACE.BUCKET (repeatable)
    #[arg(long, value_name = "NAMESPACE")]
    pub namespace: Vec<String>,
    /// Where metadata and entity tags of objects are kept: in the bucket, or only in the gateway's state
    #[arg(long, value_enum, default_value_t = MetadataPlace::Bucket)]
    pub metadata: MetadataPlace,
    /// PostgreSQL database for the state of several gateways: postgres://USER:PASSWORD@HOST/DATABASE
    #[cfg(feature = "postgres")]
    #[arg(long, value_name = "URL", env = "HUGBUCKET_STATE", hide_env_values = true, conflicts_with = "data_dir")]
    pub state: Option<String>,
    /// Folder of the gateway's state [default: $XDG_DATA_HOME/hugbucket]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Folder of the caches [default: $XDG_CACHE_HOME/hugbucket]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Disk cache of data read; 0 for none
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "512Mi")]
    pub cache_size: u64,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,
    /// Certificate chain, a PEM file: serve https
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate, a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Connections at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections: u32,
    /// Content that all uploads together hold in memory, at least 96Mi
    #[arg(long, value_name = "SIZE", value_parser = parse_size, default_value = "192Mi")]
    pub upload_memory: u64,
    /// Seconds for which a stop waits for requests
    #[arg(long, value_name = "S", default_value_t = 30)]
    pub stop_timeout_secs: u32,
}

/// Options of the S3 gateway.
#[derive(Args)]
pub struct S3Args {
    /// Where S3 is served; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:9000", value_name = "ADDRESS")]
    pub s3_listen: SocketAddr,
    /// Domain below which each bucket has a host name (repeatable)
    #[arg(long, value_name = "DOMAIN")]
    pub domain: Vec<String>,
    /// Origin that browsers may call from, or * (repeatable)
    #[arg(long, value_name = "ORIGIN")]
    pub cors_origin: Vec<String>,
    /// Append a JSON line for each request to this file; - for stdout
    #[arg(long, value_name = "FILE")]
    pub access_log: Option<PathBuf>,
    /// Requests at once; more wait for 20 s and are then told to come back
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_requests: u32,
    /// Hours after which a multipart upload that is not completed is removed
    #[arg(long, value_name = "HOURS", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    pub upload_ttl_hours: u32,
}

/// Options of the FTP gateway.
#[cfg(feature = "ftp")]
#[derive(Args)]
pub struct FtpArgs {
    /// Where FTP is served; port 0 takes a free one and prints it
    #[arg(long, default_value = "127.0.0.1:2121", value_name = "ADDRESS")]
    pub ftp_listen: SocketAddr,
    /// Ports of passive data connections; 0 for any free one
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports, default_value = "30000-30099")]
    pub passive_ports: Ports,
    /// IPv4 address that PASV names, behind NAT [default: that of the connection]
    #[arg(long, value_name = "ADDRESS")]
    pub passive_address: Option<Ipv4Addr>,
    /// Refuse active mode, in which the server connects to the client
    #[arg(long)]
    pub no_active: bool,
    /// Let clients on other machines log in and transfer without TLS
    #[arg(long)]
    pub allow_cleartext: bool,
    /// Let MKD and RMD at the root create and remove buckets
    #[arg(long)]
    pub allow_bucket_changes: bool,
    /// Connections at once of one address
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_connections_per_address: u32,
    /// Seconds without a command after which a session ends
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub idle_timeout_secs: u32,
}

/// Ports of passive data connections. `None`: any free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Option<RangeInclusive<u16>>);

/// Parses `--passive-ports`.
fn parse_ports(text: &str) -> Result<Ports, String> {
    if text == "0" {
        return Ok(Ports(None));
    }
    let wrong = || "ports have the form FIRST-LAST, both from 1 to 65535, or are 0".to_owned();
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range: RangeInclusive<u16> = first.parse().map_err(|_| wrong())?..=last.parse().map_err(|_| wrong())?;
    if range.is_empty() || *range.start() == 0 { Err(wrong()) } else { Ok(Ports(Some(range))) }
}

impl S3Command {
    /// Serves until SIGTERM or SIGINT.
    pub async fn run(self) -> Outcome<ExitCode> {
        let wanted = Wanted { s3: Some(self.s3.options(&self.gateway)?), ..Wanted::default() };
        wanted.run(&self.gateway, self.s3.upload_ttl_hours).await
    }
}

#[cfg(feature = "ftp")]
impl FtpCommand {
    /// Serves until SIGTERM or SIGINT.
    pub async fn run(self) -> Outcome<ExitCode> {
        let wanted = Wanted { ftp: Some(self.ftp.options(&self.gateway)?), ..Wanted::default() };
        wanted.run(&self.gateway, UPLOAD_TTL_HOURS).await
    }
}

impl ServeCommand {
    /// Serves until SIGTERM or SIGINT.
    pub async fn run(self) -> Outcome<ExitCode> {
        let mut wanted = Wanted::default();
        if self.mode.contains(&Mode::S3) {
            wanted.s3 = Some(self.s3.options(&self.gateway)?);
        }
        #[cfg(feature = "ftp")]
        if self.mode.contains(&Mode::Ftp) {
            wanted.ftp = Some(self.ftp.options(&self.gateway)?);
        }
        wanted.run(&self.gateway, self.s3.upload_ttl_hours).await
    }
}

/// Options of the servers that a process will run. They are made, and so checked, before the Hub is asked.
#[derive(Default)]
struct Wanted {
    s3: Option<s3::server::ServerOptions>,
    #[cfg(feature = "ftp")]
    ftp: Option<ftp::server::ServerOptions>,
}

impl Wanted {
    /// Starts the servers, and serves until SIGTERM or SIGINT.
    async fn run(self, args: &GatewayArgs, upload_ttl_hours: u32) -> Outcome<ExitCode> {
        let mut signals = Signals::new()?;
        let running = tokio::select! {
            running = self.start(args, upload_ttl_hours) => running?,
            // The Hub may be away for long.
            () = signals.next() => return Ok(ExitCode::SUCCESS),
        };
        running.serve(args, signals).await
    }

    async fn start(self, args: &GatewayArgs, upload_ttl_hours: u32) -> Outcome<Running> {
        let gateway = Arc::new(args.open(upload_ttl_hours).await?);
        let mut running = Running {
            gateway: gateway.clone(),
            s3: None,
            #[cfg(feature = "ftp")]
            ftp: None,
        };
        if let Some(options) = self.s3 {
            let listen = options.listen;
            let server = s3::server::Server::start(gateway.clone(), options).await;
            running.s3 = Some(server.map_err(|error| Failure::from(error).about(listen))?);
        }
        #[cfg(feature = "ftp")]
        if let Some(options) = self.ftp {
            let listen = options.listen;
            let server = ftp::server::Server::start(gateway, options).await;
            running.ftp = Some(server.map_err(|error| Failure::from(error).about(listen))?);
        }
        Ok(running)
    }
}

/// The servers of a process.
struct Running {
    gateway: Arc<Gateway>,
    s3: Option<s3::server::Server>,
    #[cfg(feature = "ftp")]
    ftp: Option<ftp::server::Server>,
}

impl Running {
    /// Prints where the servers listen, and serves until SIGTERM or SIGINT.
    async fn serve(self, args: &GatewayArgs, mut signals: Signals) -> Outcome<ExitCode> {
        let admin = match args.admin_listen {
            None => None,
            Some(address) => {
                let admin = Admin::start(address, self.gateway.clone(), self.counters()).await;
                let admin = admin.map_err(|error| Failure::from(error).about(address))?;
                tracing::info!(address = %admin.address(), "serving /healthz, /readyz and /metrics");
                Some(admin)
            }
        };
        if let Some(server) = &self.s3 {
            say!("{}://{}", if args.tls_cert.is_some() { "https" } else { "http" }, server.address());
        }
        #[cfg(feature = "ftp")]
        if let Some(server) = &self.ftp {
            say!("ftp://{}", server.address());
        }
        signals.next().await;
        tracing::info!("finishing what runs");
        let s3 = async {
            if let Some(server) = self.s3 {
                server.stop().await;
            }
        };
        #[cfg(feature = "ftp")]
        let ftp = async {
            if let Some(server) = self.ftp {
                server.stop().await;
            }
        };
        #[cfg(not(feature = "ftp"))]
        let ftp = std::future::ready(());
        tokio::join!(s3, ftp);
        drop(admin);
        Ok(ExitCode::SUCCESS)
    }

    fn counters(&self) -> Vec<Counters> {
        let gateway = self.gateway.clone();
        let mut counters: Vec<Counters> = vec![Box::new(move || gateway.cache_counters())];
        if let Some(server) = &self.s3 {
            let metrics = server.metrics();
            counters.push(Box::new(move || metrics.text()));
        }
        #[cfg(feature = "ftp")]
        if let Some(server) = &self.ftp {
            let metrics = server.metrics();
            counters.push(Box::new(move || metrics.text()));
        }
        counters
    }
}

impl S3Args {
    fn options(&self, args: &GatewayArgs) -> Outcome<s3::server::ServerOptions> {
        Ok(s3::server::ServerOptions {
            listen: self.s3_listen,
            tls: args.tls()?,
            keys: args.access_keys(self.s3_listen)?,
            anonymous: args.anonymous,
            domains: self.domain.clone(),
            cors_origins: self.cors_origin.clone(),
            connections: args.max_connections as usize,
            requests: self.max_requests as usize,
            stop_deadline: args.stop_deadline(),
            access_log: self.access_log()?,
        })
    }

    fn access_log(&self) -> Outcome<Option<Box<dyn Write + Send>>> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(path) = &self.access_log else { return Ok(None) };
        if path.as_os_str() == "-" {
            return Ok(Some(Box::new(std::io::stdout())));
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        Ok(Some(Box::new(file.map_err(|error| Failure::from(error).about(path.display()))?)))
    }
}

#[cfg(feature = "ftp")]
impl FtpArgs {
    /// Refuses to take passwords in clear from other machines unless that was asked for.
    fn check(&self, args: &GatewayArgs) -> Outcome {
        if args.tls_cert.is_some() || self.allow_cleartext || self.ftp_listen.ip().is_loopback() {
            return Ok(());
        }
        let message = format!("{} can be reached from other machines, and there is no TLS", self.ftp_listen);
        let hint = "name --tls-cert and --tls-key, or pass --allow-cleartext";
        Err(Failure::new(Exit::Usage, message).hint(hint))
    }

    fn options(&self, args: &GatewayArgs) -> Outcome<ftp::server::ServerOptions> {
        self.check(args)?;
        Ok(ftp::server::ServerOptions {
            listen: self.ftp_listen,
            tls: args.tls()?,
            keys: args.access_keys(self.ftp_listen)?,
            anonymous: args.anonymous,
            allow_cleartext: self.allow_cleartext,
            allow_bucket_changes: self.allow_bucket_changes,
            active: !self.no_active,
            passive_ports: self.passive_ports.0.clone(),
            passive_address: self.passive_address,
            connections: args.max_connections as usize,
            connections_per_address: self.max_connections_per_address as usize,
            idle: Duration::from_secs(u64::from(self.idle_timeout_secs)),
            stop_deadline: args.stop_deadline(),
        })
    }
}

impl GatewayArgs {
    async fn open(&self, upload_ttl_hours: u32) -> Outcome<Gateway> {
        let open = self.open_options()?;
        let state = self.state().await?;
        let buckets = Buckets::new(self.hub.clone().resolved().open_within(Some(PATIENCE)).await?);
        let namespaces = Namespaces::new(buckets.user().await?, self.namespace.clone());
        let upload_ttl = Duration::from_secs(3600 * u64::from(upload_ttl_hours));
        let metadata = self.metadata == MetadataPlace::Bucket;
        let options = Options { open, metadata, upload_ttl, min_part: MIN_PART, upload_memory: self.upload_memory };
        let gateway = Gateway::new(buckets, namespaces, state, options);
        gateway.map_err(|error| Failure::new(Exit::Failure, error.to_string()))
    }

    fn stop_deadline(&self) -> Duration {
        Duration::from_secs(u64::from(self.stop_timeout_secs))
    }

    /// Collects the access keys of the file and of the environment.
    fn access_keys(&self, listen: SocketAddr) -> Outcome<AccessKeys> {
        let mut keys = Vec::new();
        if let Some(path) = &self.credentials_file {
            let usage = |why: String| Failure::new(Exit::Usage, why).about(path.display());
            let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|error| usage(error.to_string()))?);
            use std::os::unix::fs::MetadataExt;
            if std::fs::metadata(path)?.mode() & 0o077 != 0 {
                return Err(usage("other users may read the file".into()).hint("run chmod 600 on it"));
            }
            keys.extend(AccessKeys::parse(&text).map_err(usage)?);
        }
        for (id, secret) in KEY_VARIABLES {
            let key = key_of_environment(id, secret)?;
            // Both pairs may name one key.
            let is_known = |key: &AccessKey| {
                let same = |other: &AccessKey| other.access_key_id == key.access_key_id;
                keys.iter().any(|other| same(other) && other.has_secret(&key.secret_access_key))
            };
            keys.extend(key.filter(|key| !is_known(key)));
        }
        let keys = AccessKeys::new(keys).map_err(|why| Failure::new(Exit::Usage, why))?;
        if keys.is_empty() && !self.anonymous {
            let hint =
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, name a --credentials-file, or pass --anonymous";
            return Err(Failure::new(Exit::Usage, "there is no access key").hint(hint));
        }
        if self.anonymous && !listen.ip().is_loopback() {
            tracing::warn!(address = %listen, "everybody who can reach the gateway may do everything");
        }
        Ok(keys)
    }

    fn open_options(&self) -> Outcome<OpenOptions> {
        self.format.check()?;
        let keys = self.encryption_key_file.as_deref().map(read_keys).transpose()?;
        if keys.is_none() && (self.encrypted_only || self.new_key) {
            return Err(Failure::new(Exit::Usage, "--encrypted-only and --new-key need --encryption-key-file"));
        }
        let cache_dir = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => dirs::cache_home()?.join("hugbucket"),
        };
        make_folder(&cache_dir)?;
        let disk_cache = DiskCacheOptions { mode: CacheMode::Chunk, max_bytes: self.cache_size };
        Ok(OpenOptions {
            keys,
            format: Some(self.format.encryption_format.into()),
            padding: self.format.size_padding.into(),
            encrypted_only: self.encrypted_only,
            new_key: self.new_key,
            create: false,
            read_only: self.read_only,
            exact_names: true,
            cache_dir: Some(cache_dir),
            disk_cache: (self.cache_size > 0).then_some(disk_cache),
            ..OpenOptions::default()
        })
    }

    async fn state(&self) -> Outcome<Arc<dyn State>> {
        #[cfg(feature = "postgres")]
        if let Some(url) = &self.state {
            return match Postgres::open(url).await {
                Ok(state) => Ok(Arc::new(state)),
                Err(error) => {
                    let is_usage = matches!(error, crate::gateway::Error::InvalidArgument(_));
                    let exit = if is_usage { Exit::Usage } else { Exit::Unavailable };
                    Err(Failure::new(exit, error.to_string()).about("--state"))
                }
            };
        }
        let folder = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => dirs::data_home()?.join("hugbucket"),
        };
        make_folder(&folder)?;
        let path = folder.join("gateway.sqlite");
        match Sqlite::open(&path) {
            Ok(state) => Ok(Arc::new(state)),
            Err(error) => Err(Failure::new(Exit::Failure, error.to_string()).about(path.display())),
        }
    }

    fn tls(&self) -> Outcome<Option<Arc<rustls::ServerConfig>>> {
        let (Some(cert), Some(key)) = (&self.tls_cert, &self.tls_key) else { return Ok(None) };
        let usage = |path: &Path, why: String| Failure::new(Exit::Usage, why).about(path.display());
        let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let chain = chain.map_err(|error| usage(cert, format!("no certificate: {error}")))?;
        let secret =
            PrivateKeyDer::from_pem_file(key).map_err(|error| usage(key, format!("no private key: {error}")))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| usage(cert, error.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, secret)
            .map_err(|error| usage(cert, error.to_string()))?;
        // Tickets that are good more than once: FTP clients use one for each of their data connections.
        config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| usage(cert, error.to_string()))?;
        Ok(Some(Arc::new(config)))
    }
}

/// Variables that name an access key without limits, and its secret.
pub(super) const KEY_VARIABLES: [(&str, &str); 2] =
    [("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), ("FTP_USERNAME", "FTP_PASSWORD")];
/// Hours after which multipart uploads are removed where no option says so.
#[cfg(feature = "ftp")]
const UPLOAD_TTL_HOURS: u32 = 24;

fn key_of_environment(id: &str, secret: &str) -> Outcome<Option<AccessKey>> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (variable(id), variable(secret)) {
        (Some(access_key_id), Some(secret)) => Ok(Some(AccessKey {
            access_key_id,
            secret_access_key: Zeroizing::new(secret),
            permission: Permission::Write,
            scopes: Vec::new(),
        })),
        (None, None) => Ok(None),
        _ => {
            let message = format!("{id} and {secret} belong together: one of them is missing");
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn make_folder(path: &Path) -> Outcome {
    dirs::make_private(path).map_err(|error| Failure::from(error).about(path.display()))
}
