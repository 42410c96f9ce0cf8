//! Limits, deadlines, and the order of what goes to disk.

use super::*;
use crate::disk::{Beyond, Disk, DiskFile, Existing, RealDisk};
use crate::hub::local::body::Refused;
use crate::hub::local::budget::Busy;
use crate::hub::local::cas::error::Error;
use crate::hub::local::cas::intake::Intake;
use crate::hub::local::disk::Publisher;
use axum::response::IntoResponse;
use futures::StreamExt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[tokio::test]
async fn a_server_without_room_says_when_to_come_again() {
    for busy in [Error::from(Busy), Error::from(Refused::Busy(Busy)), db::Error::Busy.into()] {
        let response = busy.into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn the_last_frame_is_repeated_while_nothing_happens() {
    use crate::hub::local::cas::shards::{Frame, frame_lines};
    let (sender, frames) = tokio::sync::mpsc::channel(4);
    let mut lines = Box::pin(frame_lines(frames));
    let mut next = async || String::from_utf8(lines.next().await.unwrap().unwrap().to_vec()).unwrap();
    sender.send(Frame::Committing { stage: "syncing" }).await.unwrap();
    let committing = "{\"type\":\"committing\",\"stage\":\"syncing\"}\n";
    for _ in 0..3 {
        assert_eq!(next().await, committing);
    }
    sender.send(Frame::Result).await.unwrap();
    assert_eq!(next().await, "{\"type\":\"result\"}\n");
    drop(sender);
    assert!(lines.next().await.is_none());
}

#[tokio::test]
async fn a_long_answer_holds_its_share_until_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(6, 400_000);
    site.put_xorb(&sample.xorb).await;
    let runs: Vec<_> = (0..3000).map(|i| i % 3..i % 3 + 1).collect();
    let file = sample.xorb.file(&runs);
    let shard = Shard { files: vec![file.clone()], xorbs: vec![], footer: None };
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);

    let terms = site.store().terms;
    let all = terms.take(reconstruction::MAX_TERMS).await.unwrap();
    let path = format!("/v1/reconstructions/{}", file.hash);
    let mut whole = Box::pin(site.get(&path).send());
    // A short answer passes; what the long one waits for is its share alone.
    assert!(site.reconstruct(1, &file.hash, Some("bytes=0-9")).await.is_ok());
    tokio::select! {
        _ = &mut whole => panic!("answered without its share"),
        answer = site.reconstruct(1, &file.hash, Some("bytes=-9")) => assert!(answer.is_ok()),
    }
    drop(all);
    let answer = reconstruction::parse_v1(&whole.await.unwrap().bytes().await.unwrap()).unwrap();
    assert_eq!(answer.terms.len(), 3000);
    let _all = terms.take(reconstruction::MAX_TERMS).await.unwrap();
}

#[tokio::test]
async fn reading_indexes_anew_is_part_of_the_effort() {
    use crate::hub::local::cas::shards::Effort;
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::random(6, 400_000);
    Site::open(dir.path()).await.put_xorb(&sample.xorb).await;
    // Opened anew: nothing is cached.
    let store = Site::open(dir.path()).await.store();
    let (xorb, chunks) = (sample.xorb.index.hash, sample.xorb.index.chunks.len() as u64);
    let mut effort = Effort::of(chunks);
    assert!(effort.find(&store, &xorb).is_ok());
    assert!(effort.find(&store, &xorb).is_ok(), "the second time it is at hand");
    let store = Site::open(dir.path()).await.store();
    assert!(matches!(effort.find(&store, &xorb), Err(Error::Invalid(_))));
}

#[test]
fn a_full_disk_is_507_and_a_locked_database_503() {
    let status = |error: Error| error.into_response().status();
    let io = |kind: io::ErrorKind| Error::io("write")(kind.into());
    assert_eq!(status(io(io::ErrorKind::StorageFull)), StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(status(io(io::ErrorKind::PermissionDenied)), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(status(db::Error::Busy.into()), StatusCode::SERVICE_UNAVAILABLE);
    assert!(io(io::ErrorKind::StorageFull).is_retryable() && !Error::Invalid("x".into()).is_retryable());
}

/// What was done to the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Done {
    Write(PathBuf),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    MakeFolder(PathBuf),
    SyncFolder(PathBuf),
}

/// The real disk, with a log.
#[derive(Clone, Default)]
struct LogDisk(Arc<Mutex<Vec<Done>>>);

struct LogFile(Box<dyn DiskFile>, PathBuf, LogDisk);

impl LogDisk {
    fn log(&self, done: Done) {
        self.0.lock().unwrap().push(done);
    }

    /// Whether a power cut now would leave `path` below `root`, whole.
    fn survives(&self, root: &Path, path: &Path) -> bool {
        let log = self.0.lock().unwrap();
        let position = |wanted: &dyn Fn(&Done) -> bool| log.iter().position(wanted);
        let after = |at: usize, wanted: &Done| log[at..].contains(wanted);
        let Some(named) = position(&|done| matches!(done, Done::Rename(_, to) if to == path)) else { return false };
        let Done::Rename(staged, _) = &log[named] else { unreachable!() };
        let Some(written) = log[..named].iter().rposition(|done| *done == Done::Write(staged.clone())) else {
            return false;
        };
        let content = log[written..named].contains(&Done::Sync(staged.clone()));
        let name = after(named, &Done::SyncFolder(path.parent().unwrap().into()));
        let folders = path.ancestors().skip(1).take_while(|folder| *folder != root).all(|folder| {
            position(&|done| *done == Done::MakeFolder(folder.into()))
                .is_some_and(|made| after(made, &Done::SyncFolder(folder.parent().unwrap().into())))
        });
        content && name && folders
    }
}

impl Disk for LogDisk {
    fn create(&self, path: &Path, existing: Existing) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(LogFile(RealDisk.create(path, existing)?, path.into(), self.clone())))
    }
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        RealDisk.open(path)
    }
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<bool> {
        self.log(Done::Rename(from.into(), to.into()));
        RealDisk.rename_new(from, to)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.log(Done::Rename(from.into(), to.into()));
        RealDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.log(Done::MakeFolder(path.into()));
        RealDisk.create_folder(path)
    }
    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.log(Done::SyncFolder(path.into()));
        RealDisk.sync_folder(path)
    }
}

impl DiskFile for LogFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.2.log(Done::Write(self.1.clone()));
        self.0.write_all_at(bytes, offset)
    }
    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn allocate(&self, offset: u64, len: u64, beyond: Beyond) -> io::Result<()> {
        self.0.allocate(offset, len, beyond)
    }
    fn sync(&self) -> io::Result<()> {
        self.2.log(Done::Sync(self.1.clone()));
        self.0.sync()
    }
    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

fn store_on(dir: &Path, disk: &LogDisk) -> CasStore {
    let (db, ()) = db::Db::open(dir, |_| Ok(())).unwrap();
    CasStore::new(db, Publisher::open(dir, Arc::new(disk.clone())).unwrap())
}

/// Whether it was new.
fn put(store: &CasStore, xorb: &Xorb) -> bool {
    Intake::new(store, xorb.index.hash, true).store(&xorb.body).unwrap()
}

#[tokio::test]
async fn a_stored_xorb_survives_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = LogDisk::default();
    let store = store_on(dir.path(), &disk);
    for seed in 0..3 {
        let xorb = Sample::random(seed, 100_000).xorb;
        assert!(put(&store, &xorb));
        let name = xorb.index.hash.to_string();
        assert!(disk.survives(dir.path(), &dir.path().join("xorbs").join(&name[..2]).join(&name)));
    }
}

#[tokio::test]
async fn a_xorb_of_another_process_is_synced_before_it_is_vouched_for() {
    let dir = tempfile::tempdir().unwrap();
    let xorb = Sample::random(1, 100_000).xorb;
    put(&store_on(dir.path(), &LogDisk::default()), &xorb);
    let disk = LogDisk::default();
    let store = store_on(dir.path(), &disk);
    disk.0.lock().unwrap().clear();
    let folder = dir.path().join("xorbs");
    let fan_out = folder.join(&xorb.index.hash.to_string()[..2]);
    for _ in 0..2 {
        assert!(store.xorbs().contains(&xorb.index.hash).unwrap());
        // Once for each process and xorb.
        let expected = [&fan_out, &folder, &dir.path().to_owned()].map(|folder| Done::SyncFolder(folder.clone()));
        assert_eq!(*disk.0.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn a_shard_syncs_each_folder_once() {
    let dir = tempfile::tempdir().unwrap();
    let other = store_on(dir.path(), &LogDisk::default());
    let hashes: Vec<Hash> = (0..3)
        .map(|seed| {
            let xorb = Sample::random(seed, 100_000).xorb;
            put(&other, &xorb);
            xorb.index.hash
        })
        .collect();
    let disk = LogDisk::default();
    let store = store_on(dir.path(), &disk);
    hashes.iter().for_each(|hash| assert!(store.xorbs().find(hash).unwrap().is_some()));
    disk.0.lock().unwrap().clear();
    store.xorbs().make_durable(&hashes).unwrap();
    let folders: std::collections::BTreeSet<PathBuf> = hashes
        .iter()
        .map(|hash| dir.path().join("xorbs").join(&hash.to_string()[..2]))
        .chain([dir.path().join("xorbs"), dir.path().to_owned()])
        .collect();
    let expected: Vec<Done> = folders.into_iter().rev().map(Done::SyncFolder).collect();
    assert_eq!(*disk.0.lock().unwrap(), expected);
    store.xorbs().make_durable(&hashes).unwrap();
    assert_eq!(disk.0.lock().unwrap().len(), expected.len(), "known by then");
}

#[tokio::test]
async fn a_replaced_xorb_survives_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let xorb = Sample::random(1, 100_000).xorb;
    let name = xorb.index.hash.to_string();
    let path = dir.path().join("xorbs").join(&name[..2]).join(&name);
    let disk = LogDisk::default();
    let store = store_on(dir.path(), &disk);
    assert!(put(&store, &xorb));
    let made: Vec<Done> = disk.0.lock().unwrap().iter().filter(|d| matches!(d, Done::MakeFolder(_))).cloned().collect();
    std::fs::write(&path, b"damaged").unwrap();
    disk.0.lock().unwrap().retain(|done| made.contains(done) || matches!(done, Done::SyncFolder(_)));
    assert!(!disk.survives(dir.path(), &path));
    assert!(put(&store, &xorb));
    assert!(disk.survives(dir.path(), &path));
}
