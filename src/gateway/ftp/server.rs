//! The FTP server: connections and their limits, and a stop with a deadline.

use super::data::Ports;
use super::folders::Emptied;
use super::login::Failures;
use super::session::Session;
use crate::gateway::task::Task;
use crate::gateway::{AccessKeys, Gateway};
use std::collections::HashMap;
use std::fmt::Write;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// Pause after a failed accept (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Longest time without progress of a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(120);

/// Options of a server.
pub struct ServerOptions {
    /// Where it listens.
    pub listen: SocketAddr,
    /// TLS, if it is wanted.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Access keys: user names and passwords.
    pub keys: AccessKeys,
    /// True if the users `anonymous` and `ftp` may do everything, with any password.
    pub anonymous: bool,
    /// True if clients on other machines may log in and transfer without TLS.
    pub allow_cleartext: bool,
    /// True if `MKD` and `RMD` at the root create and remove buckets.
    pub allow_bucket_changes: bool,
    /// True if the server may open data connections to the client (`PORT`, `EPRT`).
    pub active: bool,
    /// Ports of passive data connections. `None`: any free one.
    pub passive_ports: Option<RangeInclusive<u16>>,
    /// Address that `PASV` names. `None`: that of the control connection.
    pub passive_address: Option<Ipv4Addr>,
    /// Connections at once. Further ones are told to come back.
    pub connections: usize,
    /// Connections at once of one address.
    pub connections_per_address: usize,
    /// Time without a command after which a session ends.
    pub idle: Duration,
    /// How long a stop waits for transfers.
    pub stop_deadline: Duration,
}

/// TLS of both kinds of connections.
pub(super) struct Tls {
    pub(super) control: TlsAcceptor,
    pub(super) data: TlsAcceptor,
}

impl Tls {
    fn new(control: Arc<rustls::ServerConfig>) -> Self {
        // The client of an upload may close its connection without having read anything. A ticket that it has not read
        // would make that a reset, and the upload look cut.
        let mut data = (*control).clone();
        data.send_tls13_tickets = 0;
        Self { control: control.into(), data: TlsAcceptor::from(Arc::new(data)) }
    }
}

/// State that all sessions share.
pub(super) struct Shared {
    pub(super) gateway: Arc<Gateway>,
    pub(super) options: ServerOptions,
    pub(super) tls: Option<Tls>,
    pub(super) ports: Arc<Ports>,
    pub(super) emptied: Emptied,
    pub(super) failures: Failures,
    pub(super) metrics: Arc<Metrics>,
    connections: Mutex<HashMap<IpAddr, usize>>,
}

/// Counters of a server.
#[derive(Default)]
pub struct Metrics {
    sessions: AtomicU64,
    connections: AtomicU64,
    refused: AtomicU64,
    pub(super) failed_logins: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) sent: AtomicU64,
}

impl Metrics {
    /// Returns the counters in the text format of Prometheus (version 0.0.4).
    pub fn text(&self) -> String {
        let counters = [
            ("hugbucket_ftp_connections", "gauge", &self.connections),
            ("hugbucket_ftp_sessions_total", "counter", &self.sessions),
            ("hugbucket_ftp_refused_connections_total", "counter", &self.refused),
            ("hugbucket_ftp_failed_logins_total", "counter", &self.failed_logins),
            ("hugbucket_ftp_received_bytes_total", "counter", &self.received),
            ("hugbucket_ftp_sent_bytes_total", "counter", &self.sent),
        ];
        let mut text = String::new();
        for (name, kind, value) in counters {
            // Writing to a String doesn't fail.
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {}", value.load(Ordering::Relaxed));
        }
        text
    }
}

/// A connection that counts as long as this lives.
struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.metrics.connections.fetch_sub(1, Ordering::Relaxed);
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                connections.remove(&self.address);
            }
        }
    }
}

impl Shared {
    /// Takes a place for a connection. `None`: there are too many.
    fn place(self: &Arc<Self>, address: IpAddr) -> Option<Place> {
        let address = address.to_canonical();
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: u64 = self.metrics.connections.load(Ordering::Relaxed);
        let own = connections.entry(address).or_default();
        if all >= self.options.connections as u64 || *own >= self.options.connections_per_address {
            self.metrics.refused.fetch_add(1, Ordering::Relaxed);
            if *own == 0 {
                connections.remove(&address);
            }
            return None;
        }
        *own += 1;
        self.metrics.connections.fetch_add(1, Ordering::Relaxed);
        self.metrics.sessions.fetch_add(1, Ordering::Relaxed);
        Some(Place { shared: self.clone(), address })
    }
}

/// A running server. Dropping it stops it without waiting.
pub struct Server {
    task: Task,
    metrics: Arc<Metrics>,
}

impl Server {
    /// Binds and serves.
    pub async fn start(gateway: Arc<Gateway>, options: ServerOptions) -> io::Result<Self> {
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        let metrics = Arc::<Metrics>::default();
        let shared = Arc::new(Shared {
            gateway,
            tls: options.tls.clone().map(Tls::new),
            ports: Ports::new(options.passive_ports.clone()),
            options,
            emptied: Emptied::default(),
            failures: Failures::default(),
            metrics: metrics.clone(),
            connections: Mutex::default(),
        });
        let task = Task::start(address, |stopped| accept(listener, shared, stopped));
        Ok(Self { task, metrics })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.task.address()
    }

    /// Returns the counters of the server.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Takes no more commands, and waits for transfers that run until the deadline.
    pub async fn stop(mut self) {
        self.task.stop().await;
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut sessions = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = sessions.join_next() => continue,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, client)) => {
                let (shared, stopped) = (shared.clone(), stopped.clone());
                sessions.spawn(session(stream, client, shared, stopped));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let finished = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(shared.options.stop_deadline, finished).await.is_err() {
        tracing::warn!("transfers that still ran at the deadline of the stop were cut");
    }
}

async fn session(mut stream: TcpStream, client: SocketAddr, shared: Arc<Shared>, stopped: watch::Receiver<bool>) {
    let Some(_place) = shared.place(client.ip()) else {
        let _ = stream.write_all(b"421 Too many connections, come back later.\r\n").await;
        return;
    };
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, REPLY_TIMEOUT.as_millis() as u32);
    let ended = match Session::new(shared, stream, client, stopped) {
        Ok(session) => session.run().await,
        Err(error) => Err(error),
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended");
    }
}
