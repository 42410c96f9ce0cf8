//! An embedded Hub on a machine whose power can be cut.
//!
//! Xorbs are on a simulated disk ([`SimDisk`]). The database is on the real one, as SQLite is no code
//! of ours; its cut is modelled by a copy of the database and its log, of which every sector that was
//! written since the last commit that anybody was told of is kept or lost by itself. A checkpoint
//! would begin the log anew, so that its length no longer told what is behind that commit: nothing of
//! such a log is lost. One comes after 1000 pages, which takes longer than a test lets a machine live.
//!
//! Clients speak to a front with one address over all restarts. Before the power goes it has
//! dropped every connection: nobody is told of anything later.

use super::{LocalHub, ServeOptions, Server, db};
use crate::disk::sim::SimDisk;
use crate::hub::retry::Policy;
use crate::hub::token::TokenProvider;
use crate::hub::{Client, transport};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// The token that the machine takes.
const TOKEN: &str = "hf_power";
/// First pause of a client whose request has failed.
pub(crate) const IMPATIENCE: Duration = Duration::from_millis(10);
/// Bytes of a log from which it may have been begun anew: 1000 pages with their headers.
const CHECKPOINTED: u64 = 1000 * (4096 + 24);
/// Bytes that a disk writes all or none.
const SECTOR: usize = 512;

/// See the module.
pub(crate) struct Machine {
    dir: tempfile::TempDir,
    boots: u32,
    disk: SimDisk,
    front: Front,
    running: (LocalHub, Server),
}

impl Machine {
    /// With an empty Hub.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("0");
        let disk = SimDisk::new(&root);
        let front = Front::open().await;
        let running = start(&disk, &root, &front).await;
        Self { dir, boots: 0, disk, front, running }
    }

    /// A client of it that is impatient, as restarts take no time, and what it sends requests with.
    pub(crate) fn client(&self) -> (Arc<Client>, reqwest::Client) {
        let http = transport::build(&|_| None).unwrap();
        let policy = Policy { first: IMPATIENCE, longest: 8 * IMPATIENCE, ..Policy::default() };
        let (url, token) = (format!("http://{}", self.front.address), TokenProvider::fixed(TOKEN.into()));
        (Arc::new(Client::new(&url, http.clone(), token, policy).unwrap()), http)
    }

    /// The disk of this boot.
    pub(crate) fn disk(&self) -> &SimDisk {
        &self.disk
    }

    /// Cuts the power and starts again.
    pub(crate) async fn cut(&mut self, seed: u64) {
        self.front.close().await;
        self.boots += 1;
        let old = self.dir.path().join((self.boots - 1).to_string());
        let root = self.dir.path().join(self.boots.to_string());
        self.disk = self.disk.cut(seed, &root);
        std::fs::create_dir(&root).unwrap();
        copy_database(&old, &root, self.running.0.shared.db.synced.len(), seed);
        self.running = start(&self.disk, &root, &self.front).await;
    }
}

async fn start(disk: &SimDisk, root: &Path, front: &Front) -> (LocalHub, Server) {
    let (on, at) = (Arc::new(disk.clone()), root.to_owned());
    let hub = tokio::task::spawn_blocking(move || LocalHub::open_on(on, &at).unwrap()).await.unwrap();
    let options = ServeOptions { process_token: Some(TOKEN.into()), ..ServeOptions::default() };
    let server = hub.serve((Ipv4Addr::LOCALHOST, 0).into(), options).await.unwrap();
    front.lead_to(server.address());
    (hub, server)
}

/// What a cut leaves of the database: all that is before `synced` in its log.
fn copy_database(from: &Path, to: &Path, synced: u64, seed: u64) {
    let log = format!("{}-wal", db::FILE);
    // First the log: what is in it later needn't be there.
    let mut bytes = std::fs::read(from.join(&log)).unwrap_or_default();
    std::fs::copy(from.join(db::FILE), to.join(db::FILE)).unwrap();
    if (bytes.len() as u64) < CHECKPOINTED {
        let mut chance = seed | 1;
        for sector in (synced as usize / SECTOR..bytes.len().div_ceil(SECTOR)).map(|sector| sector * SECTOR) {
            chance = chance.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            if chance >> 63 == 0 {
                let end = bytes.len().min(sector + SECTOR);
                bytes[sector.max(synced as usize)..end].fill(0);
            }
        }
    }
    std::fs::write(to.join(&log), bytes).unwrap();
    // Recovered and brought into the database, so that the next log begins empty, and its length tells again.
    let connection = rusqlite::Connection::open(to.join(db::FILE)).unwrap();
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
}

/// One address for whatever machine is behind it.
struct Front {
    address: SocketAddr,
    state: Arc<Mutex<FrontState>>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct FrontState {
    /// `None`: nobody is at home.
    behind: Option<SocketAddr>,
    connections: JoinSet<()>,
}

impl Front {
    async fn open() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(FrontState::default()));
        let accepting = tokio::spawn(accept(listener, state.clone()));
        Self { address, state, accepting }
    }

    fn lead_to(&self, behind: SocketAddr) {
        self.state.lock().unwrap().behind = Some(behind);
    }

    /// Drops every connection; when this returns nothing passes any more.
    async fn close(&self) {
        let mut connections = {
            let mut state = self.state.lock().unwrap();
            state.behind = None;
            std::mem::take(&mut state.connections)
        };
        connections.shutdown().await;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, state: Arc<Mutex<FrontState>>) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut state = state.lock().unwrap();
        while state.connections.try_join_next().is_some() {}
        let Some(behind) = state.behind else { continue };
        state.connections.spawn(async move {
            let _ = client.set_nodelay(true);
            let Ok(mut server) = TcpStream::connect(behind).await else { return };
            let _ = server.set_nodelay(true);
            // A connection that breaks is what this is for.
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        });
    }
}
