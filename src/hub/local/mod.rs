//! The embedded Hub: buckets, tokens and the Xet CAS over a directory, served over HTTP (Hub API
//! spec; Xet spec for the CAS).
//!
//! A directory holds one SQLite database (`db`) and content-addressed files (`disk`). Any number of processes may have
//! it open and serve it at once: nothing that decides correctness is kept in a process's memory. A 2xx answer is sent
//! when what it acknowledges is on disk.
//!
//! Layout over HTTP: the Hub's routes at the root (`api`), the CAS below `/cas` (`cas`). Every request passes the
//! `gate` and then, in a build with the feature `faults`, the fault injector and recorder (`faults`). Sizes are bytes.
//! `errors` has the one form of an error response.

mod accounts;
mod api;
mod auth;
mod body;
mod budget;
mod cas;
mod db;
mod disk;
mod errors;
#[cfg(feature = "faults")]
pub mod faults;
mod gate;
mod private;
mod range;
mod repos;
mod schema;
mod server;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod wire;

pub use accounts::{NewToken, Role, Token};
pub use repos::{FolderError, ImportError, ImportOptions, Imported, InvalidRepositoryId, RepositoryId};
pub use server::Server;

use super::Error;
use crate::disk::{Disk, RealDisk, make_folder};
use auth::Auth;
use axum::http::{HeaderMap, header};
use budget::Budget;
use cas::CasStore;
use db::Db;
use disk::Publisher;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::{Semaphore, watch};

/// Where the CAS is served; `casUrl` is the base URL with this behind it.
const CAS_PREFIX: &str = "/cas";
/// Entries per page of a listing unless [`ServeOptions::page_size`] says otherwise.
const PAGE_SIZE: usize = 1000;

/// An opened Hub directory. Any number of processes may have one open at once. Clones share it.
#[derive(Clone)]
pub struct LocalHub {
    shared: Arc<Shared>,
}

/// What all servers of one opened directory have in common.
pub(crate) struct Shared {
    pub(crate) db: Db,
    pub(crate) auth: Auth,
    pub(crate) cas: CasStore,
    /// The directory, without symbolic links.
    dir: PathBuf,
}

/// How it serves.
#[derive(Clone, Default)]
pub struct ServeOptions {
    /// Base URL to put into answers instead of the request's `Host`.
    pub public_base: Option<String>,
    /// The one token that is taken, instead of those in the database and of callers without any:
    /// this process serves nobody but itself. It stands for user `local`; as its holder has the
    /// directory itself, it may read and write every namespace.
    pub process_token: Option<String>,
    /// Entries per page of a listing (default 1000, at most 5000).
    pub page_size: Option<usize>,
    /// Answer listings as the real Hub does: by raw key prefix, so that `logs` lists `logs_old/x`
    /// too. Clients must cope with that.
    pub raw_prefix: bool,
    /// Faults to inject (tests).
    #[cfg(feature = "faults")]
    pub faults: Option<Arc<faults::Faults>>,
}

impl std::fmt::Debug for ServeOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServeOptions").field("public_base", &self.public_base).finish_non_exhaustive()
    }
}

/// A Hub as one server shows it: the state of every request.
pub(crate) struct Site {
    pub(crate) shared: Arc<Shared>,
    pub(crate) options: ServeOptions,
    address: SocketAddr,
    bodies: Budget,
    /// One permit for each event stream.
    streams: Arc<Semaphore>,
    /// Becomes true, or closes, when the server stops.
    stopped: watch::Receiver<bool>,
}

impl LocalHub {
    /// Opens or makes the directory (0700), its database (0600) and folders; what is open to other users is closed to
    /// them. First time: user `local` with token `hf_local`.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_on(Arc::new(RealDisk), dir)
    }

    /// Opens a Hub whose content-addressed files are on `disk`, below the same path. The database and
    /// all locks are on the real disk.
    pub(crate) fn open_on(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        Self::open_shared(disk, dir)
            .map(|shared| Self { shared: Arc::new(shared) })
            .map_err(|e| Error::Local(format!("cannot open {}: {e}", dir.display())))
    }

    fn open_shared(disk: Arc<dyn Disk>, dir: &Path) -> Result<Shared, OpenError> {
        make_folder(&*disk, dir)?;
        private::make_folder(dir)?;
        let publisher = Publisher::open(dir, disk)?;
        private::make_database(dir, &publisher)?;
        let (db, auth) = Db::open(dir, |transaction| {
            accounts::set_up(transaction)?;
            Auth::load(transaction)
        })?;
        publisher.disk().sync_folder(dir)?;
        let cas = CasStore::new(db.clone(), publisher);
        Ok(Shared { db, auth, cas, dir: dir.canonicalize()? })
    }

    /// Serves on `address` (port 0: a free one).
    pub async fn serve(&self, address: SocketAddr, options: ServeOptions) -> Result<Server, Error> {
        server::start(Arc::clone(&self.shared), address, options)
            .await
            .map_err(|e| Error::Local(format!("cannot listen on {address}: {e}")))
    }
}

/// Why a directory can't be opened.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Db(#[from] db::Error),
}

impl Site {
    /// Base URL for absolute links in an answer, without a trailing slash: the configured one, else
    /// what the client called us.
    pub(crate) fn base(&self, headers: &HeaderMap) -> String {
        if let Some(base) = &self.options.public_base {
            return base.trim_end_matches('/').to_owned();
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| is_plain_host(host));
        host.map_or_else(|| format!("http://{}", self.address), |host| format!("http://{host}"))
    }

    /// Base URL of the CAS, without a trailing slash.
    pub(crate) fn cas_base(&self, headers: &HeaderMap) -> String {
        self.base(headers) + CAS_PREFIX
    }

    /// Entries per page of a listing.
    pub(crate) fn page_size(&self) -> usize {
        self.options.page_size.unwrap_or(PAGE_SIZE)
    }
}

/// Whether a `Host` can be put into a URL and a header as it is.
fn is_plain_host(host: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !host.is_empty() && host.len() <= 255 && host.bytes().all(plain)
}
