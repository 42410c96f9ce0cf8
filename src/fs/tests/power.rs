//! Runs random histories on simulated disks. At any moment the power is cut or the daemon is killed. After each
//! restart, the tree must be one of the history, and not older than the last promised state. At the end, the remote
//! must have all of it.
//!
//! A power cut may undo the latest changes that weren't promised to be on disk. A kill undoes nothing that was
//! acknowledged. Both also happen in the middle of an operation, of a flush and of a start: at the n-th call of the
//! disk, or at the n-th request to the remote.

#[cfg(feature = "local-hub")]
mod hub;

use super::Mount;
use super::bench::options;
use super::model::{Model, Step, Tree, absence, cases, outline, outline_files, perform, step_at};
use crate::disk::sim::SimDisk;
use crate::fs::memory_view::MemoryView;
use crate::fs::{Options, Vfs};
use crate::store::buckets::BucketId;
use crate::store::{
    Draft, DraftState, Entry, Error, Hidden, HubError, Kind, Len, Listing, Object, Op, Outcome, PlainPath, PutSession,
    Sealer, SlotIo, Version, View,
};
use async_trait::async_trait;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::RwLock;

/// The way in which a daemon ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The machine loses its power. The seed determines the effect on the disk.
    Cut(u64),
    /// `kill -9`.
    Kill,
}

#[derive(Clone, Debug)]
enum Event {
    Do(Step),
    /// `fsync` of a file.
    Sync(String),
    SyncFolder,
    /// The sync of the background, which no operation waits for.
    Tick,
    Compact,
    /// Commits are read back.
    ReadBack,
    End(End),
    /// Ends the daemon at a later call of the disk or request to the remote, after this number of them.
    EndAfter(u64, End),
    /// Ends the next start at a call of the disk, after this number of them.
    EndStart(u64, End),
    /// The machine of the remote loses its power, now or at a call of its disk, after this number of them.
    CutFar(u64),
    CutFarAfter(u64, u64),
    /// Both machines lose their power.
    CutBoth(u64),
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![3 => any::<u64>().prop_map(End::Cut), 1 => Just(End::Kill)]
}

/// Returns names that often coincide. Most steps find the entries that they need.
fn path() -> impl Strategy<Value = String> {
    "[ab]|d/[ab]|d|e"
}

fn event() -> impl Strategy<Value = Event> {
    let step = step_at(path).prop_filter("ends are our own", |step| !matches!(step, Step::Kill));
    prop_oneof![
        20 => step.prop_map(Event::Do),
        5 => ("[ab]|d/[ab]", 0..200usize, any::<u8>()).prop_map(|(path, len, byte)| write(&path, len, byte)),
        4 => Just(Event::Do(Step::Flush)),
        2 => path().prop_map(Event::Sync),
        1 => Just(Event::SyncFolder),
        1 => Just(Event::Tick),
        1 => Just(Event::Compact),
        2 => Just(Event::ReadBack),
        2 => end().prop_map(Event::End),
        2 => (0..60u64, end()).prop_map(|(calls, end)| Event::EndAfter(calls, end)),
        1 => (0..25u64, end()).prop_map(|(calls, end)| Event::EndStart(calls, end)),
    ]
}

/// A remote as one boot of a machine sees it. It is removed when that boot ends.
struct Plug {
    view: Arc<dyn View>,
    disk: SimDisk,
    /// Held for reading by every request.
    requests: RwLock<()>,
}

impl Plug {
    async fn ask<T>(&self, request: impl Future<Output = T>) -> Result<T, Error> {
        let _request = self.requests.read().await;
        let unplugged = || Error::Hub(HubError::Network("unplugged".into()));
        // The machine may end before it sends the request, and after the request was carried out but before the
        // response arrives.
        self.disk.step().map_err(|_| unplugged())?;
        let answer = tokio::select! {
            biased;
            answer = request => answer,
            () = self.disk.ended() => return Err(unplugged()),
        };
        self.disk.step().map_err(|_| unplugged())?;
        Ok(answer)
    }

    /// Resolves when the machine, which has ended, has no request in flight any more.
    async fn is_silent(&self) {
        drop(self.requests.write().await);
    }
}

#[async_trait]
impl View for Plug {
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        self.ask(self.view.list(directory)).await?
    }
    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error> {
        self.ask(self.view.stat(path)).await?
    }
    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        self.ask(self.view.files(paths)).await?
    }
    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        self.view.lens(versions).await
    }
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.ask(self.view.open(version)).await?
    }
    async fn adopt(&self, version: &Version, from: &BucketId) -> Result<(), Error> {
        self.ask(self.view.adopt(version, from)).await?
    }
    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        self.ask(self.view.put()).await?
    }
    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        self.ask(self.view.commit(operations)).await.unwrap_or_else(|_| {
            let failed = |_| Outcome::Failed(Error::Hub(HubError::Network("unplugged".into())));
            operations.iter().map(failed).collect()
        })
    }
    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        self.ask(self.view.twins(files, folders)).await?
    }
    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        self.view.show_beside(directory, name, taken)
    }
    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        self.view.check_name(parent, name)
    }
    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        self.view.draft(state, slots)
    }
    fn slot_len(&self) -> usize {
        self.view.slot_len()
    }
    fn sealer(&self) -> Arc<dyn Sealer> {
        self.view.sealer()
    }
    async fn revision(&self) -> Result<Option<String>, Error> {
        self.ask(self.view.revision()).await?
    }
    fn read_only(&self) -> bool {
        self.view.read_only()
    }
    fn identity(&self) -> [u8; 32] {
        self.view.identity()
    }
    fn key_id(&self) -> Option<String> {
        self.view.key_id()
    }
    fn log_name(&self, path: &PlainPath) -> String {
        self.view.log_name(path)
    }
    fn hidden(&self) -> Hidden {
        self.view.hidden()
    }
}

/// A remote that a machine mounts.
#[async_trait]
trait Far: Send + Sync + Sized {
    /// Returns the view of a machine that has just started.
    async fn view(&mut self) -> Arc<dyn View>;
    /// Returns all files of the remote.
    async fn files(&mut self) -> BTreeMap<String, Vec<u8>>;
    /// Cuts the power of the remote's machine and starts it again.
    async fn cut(&mut self, _seed: u64) {}
    /// Makes the machine end at a call of its disk.
    fn end_after(&mut self, _calls: u64, _seed: u64) {}
    /// Resolves when the machine has ended.
    async fn ended(&self) {
        std::future::pending().await
    }
    /// Starts the machine again.
    async fn restart(&mut self) {}
    /// Makes sure that the machine is up and stays up.
    async fn stay(&mut self) {}
}

#[async_trait]
impl Far for Arc<MemoryView> {
    async fn view(&mut self) -> Arc<dyn View> {
        self.clone()
    }
    async fn files(&mut self) -> BTreeMap<String, Vec<u8>> {
        MemoryView::files(self)
    }
}

/// Runs one request until it ends or the machine ends. If the machine of the remote ends, it starts again
/// immediately.
async fn run<F: Far, T>(disk: &SimDisk, far: &mut F, request: impl Future<Output = T>) -> Option<T> {
    let mut request = std::pin::pin!(request);
    loop {
        tokio::select! {
            biased;
            answer = &mut request => return Some(answer),
            () = disk.ended() => return None,
            () = far.ended() => {}
        }
        far.restart().await;
    }
}

/// The reason to expect a mount: only a machine that is up is asked for it.
const UP: &str = "it is up";

/// A machine with a mount, and the states that its user knows.
struct Machine<F> {
    far: F,
    dir: Arc<tempfile::TempDir>,
    boots: u32,
    disk: SimDisk,
    /// `None` only while it is down.
    mount: Option<Mount<Plug>>,
    /// The trees since the last restart, including those that operations in progress may lead to.
    states: Vec<Tree>,
    /// Numbers of the states that a power cut mustn't undo, and that a kill mustn't undo.
    synced: usize,
    answered: usize,
    /// The way in which the daemon will end, at some call of the disk.
    pending: Option<End>,
    next_start: Option<(u64, End)>,
}

impl<F: Far> Machine<F> {
    async fn new(far: F) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let disk = SimDisk::new(&dir.path().join("0"));
        let mut machine = Self {
            far,
            dir,
            boots: 0,
            disk,
            mount: None,
            states: vec![Tree::new()],
            synced: 0,
            answered: 0,
            pending: None,
            next_start: None,
        };
        assert!(machine.start().await, "nothing ends it");
        machine
    }

    /// Starts the daemon. Returns false if it was ended during the start.
    async fn start(&mut self) -> bool {
        self.far.stay().await;
        let root = self.dir.path().join(self.boots.to_string());
        let options = Options { read_back_after: Duration::ZERO, ..options(&root.join("cache")) };
        let view = Arc::new(Plug { view: self.far.view().await, disk: self.disk.clone(), requests: RwLock::default() });
        let vfs = Vfs::start_on(Arc::new(self.disk.clone()), view.clone(), options.clone()).await;
        match vfs {
            Ok(vfs) => {
                self.mount = Some(Mount { vfs, view, dir: self.dir.clone(), options });
                !self.disk.has_ended()
            }
            Err(error) => {
                assert!(self.disk.has_ended(), "it doesn't start: {error}");
                false
            }
        }
    }

    fn mount(&self) -> &Mount<Plug> {
        self.mount.as_ref().expect(UP)
    }

    /// Returns the whole tree of the mount.
    async fn tree(&mut self) -> Tree {
        let mount = self.mount.as_ref().expect(UP);
        run(&self.disk, &mut self.far, mount.tree()).await.expect("nothing ends it")
    }

    fn model(&self) -> Model {
        Model(self.states[self.answered].clone())
    }

    /// Ends the daemon, starts another one, and checks the tree that it finds.
    async fn restart(&mut self, mut end: End) -> Result<(), TestCaseError> {
        self.pending = None;
        loop {
            self.boots += 1;
            let root = self.dir.path().join(self.boots.to_string());
            self.disk = match end {
                End::Cut(seed) => self.disk.cut(seed, &root),
                End::Kill => self.disk.kill(&root),
            };
            if matches!(end, End::Cut(_)) {
                self.answered = self.synced;
            }
            if let Some(mount) = self.mount.take() {
                mount.vfs.abandon_all();
                mount.view.is_silent().await;
            }
            let ended_by = self.next_start.take();
            if let Some((calls, _)) = ended_by {
                self.disk.end_after(calls);
            }
            if self.start().await {
                self.disk.end_never();
                if !self.disk.has_ended() {
                    break;
                }
            }
            end = ended_by.expect("nothing else ends a start").1;
        }
        let found = self.tree().await;
        let possible = &self.states[self.answered..];
        prop_assert!(
            possible.contains(&found),
            "after {end:?}: found {:?}, possible {:?}",
            outline(&found),
            possible.iter().map(outline).collect::<Vec<_>>()
        );
        // A start makes everything that it finds durable.
        self.states = vec![found];
        (self.synced, self.answered) = (0, 0);
        Ok(())
    }

    /// Records that all changes so far are acknowledged, so that only a power cut may undo them.
    fn is_answered(&mut self) {
        self.answered = self.states.len() - 1;
    }

    async fn event(&mut self, at: usize, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Do(Step::Flush) => self.flush().await?,
            Event::Do(Step::FlushMeanwhile) => {
                let vfs = self.mount().vfs.clone();
                tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
                tokio::task::yield_now().await;
            }
            Event::Do(Step::Check) => {
                if self.pending.is_none() {
                    prop_assert_eq!(outline(&self.tree().await), outline(&self.model().0), "event {}", at);
                }
            }
            Event::Do(step) => self.step(at, step).await?,
            Event::Sync(path) => {
                let mount = self.mount.as_ref().expect(UP);
                let sync = async {
                    let handle = mount.open(path, libc::O_RDWR).await?;
                    let synced = mount.vfs.fsync(handle).await;
                    mount.vfs.release(handle).await?;
                    synced
                };
                if let Some(Ok(())) = run(&self.disk, &mut self.far, sync).await {
                    self.synced = self.synced.max(self.age_of(path));
                }
            }
            Event::SyncFolder => {
                let mount = self.mount.as_ref().expect(UP);
                if let Some(Ok(())) = run(&self.disk, &mut self.far, mount.vfs.fsyncdir()).await {
                    self.synced = self.answered;
                }
            }
            Event::Tick => self.mount().vfs.journal.sync_soon(),
            Event::Compact => self.mount().vfs.journal.compact().unwrap(),
            Event::ReadBack => {
                let mount = self.mount.as_ref().expect(UP);
                run(&self.disk, &mut self.far, mount.vfs.sync.confirm_due()).await;
            }
            Event::End(end) => self.restart(*end).await?,
            Event::EndAfter(calls, end) => {
                self.disk.end_after(*calls);
                self.pending = Some(*end);
            }
            Event::EndStart(calls, end) => self.next_start = Some((*calls, *end)),
            Event::CutFar(seed) => self.far.cut(*seed).await,
            Event::CutFarAfter(calls, seed) => self.far.end_after(*calls, *seed),
            Event::CutBoth(seed) => {
                // Neither machine notices the end of the other one.
                self.far.cut(!*seed).await;
                self.restart(End::Cut(*seed)).await?;
            }
        }
        if self.disk.has_ended() {
            let end = self.pending.expect("nothing else ends it");
            self.restart(end).await?;
        }
        Ok(())
    }

    /// Returns the number of the state that introduced the present content of a file, whatever its name was since
    /// then.
    fn age_of(&self, path: &str) -> usize {
        let states = &self.states[..=self.answered];
        let Some(content) = states[self.answered].get(path).filter(|content| content.is_some()) else { return 0 };
        let without = states.iter().rposition(|state| !state.values().any(|other| other == content));
        without.map_or(0, |at| at + 1)
    }

    async fn step(&mut self, at: usize, step: &Step) -> Result<(), TestCaseError> {
        let mut model = self.model();
        let before = model.clone();
        let expected = model.apply(step).map_err(absence);
        if expected.is_ok() {
            self.states.truncate(self.answered + 1);
            // A file that is opened for writing is empty before it has its content.
            if let Step::Write { path, .. } | Step::Copy { to: path, .. } = step {
                let mut between = before.0;
                between.insert(path.clone(), Some(Vec::new()));
                self.states.push(between);
            }
            self.states.push(model.0);
        }
        let mount = self.mount.as_ref().expect(UP);
        let done = run(&self.disk, &mut self.far, perform(mount, step)).await;
        let done = done.map(|done| done.map_err(|error| absence(error.errno())));
        if self.disk.has_ended() && done != Some(expected) {
            return Ok(());
        }
        prop_assert_eq!(done, Some(expected), "event {}: {:?}", at, step);
        self.is_answered();
        Ok(())
    }

    /// Flushes. After that, the remote has all files, and no power cut can undo that.
    async fn flush(&mut self) -> Result<(), TestCaseError> {
        let mut pending = u64::MAX;
        for _ in 0..200 {
            let mount = self.mount.as_ref().expect(UP);
            let flush = mount.vfs.flush(Some(Duration::from_millis(500)));
            let Some(drained) = run(&self.disk, &mut self.far, flush).await else { return Ok(()) };
            if self.disk.has_ended() {
                return Ok(());
            }
            pending = drained.pending;
            if pending == 0 {
                break;
            }
        }
        self.far.stay().await;
        let status = self.mount().vfs.status();
        prop_assert_eq!((pending, status.parked_files, status.conflicts), (0, 0, 0), "{:?}", status);
        prop_assert_eq!(outline_files(self.far.files().await), outline_files(self.model().files()));
        Ok(())
    }
}

async fn history<F: Far>(far: F, events: Vec<Event>) -> Result<(), TestCaseError> {
    let mut machine = Machine::new(far).await;
    let first = Event::Do(Step::Mkdir { path: "d".into() });
    for (at, event) in std::iter::once(&first).chain(&events).enumerate() {
        machine.event(at, event).await?;
    }
    if let Some(end) = machine.pending {
        machine.restart(end).await?;
    }
    machine.flush().await?;
    let last = machine.states[machine.answered].clone();
    prop_assert_eq!(outline(&machine.tree().await), outline(&last), "after the last flush");
    machine.restart(End::Cut(events.len() as u64)).await?;
    machine.flush().await?;
    // All files are as they were committed, and no other client was there. So nothing is restored or kept twice.
    machine.mount().confirm().await;
    machine.flush().await
}

fn block_on(run: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(run);
    // No other task waits for tasks of machines that have ended.
    runtime.shutdown_background();
    outcome
}

/// Runs a history with a kill, and with power cuts of the given number of seeds.
async fn for_ends(cuts: u64, events: impl Fn(End) -> Vec<Event>) {
    let ends = (1..=cuts).map(|seed| End::Cut(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))).chain([End::Kill]);
    for end in ends {
        let events = events(end);
        if let Err(error) = history(MemoryView::new(false), events.clone()).await {
            panic!("{error}: {events:?}");
        }
    }
}

fn write(path: &str, len: usize, byte: u8) -> Event {
    Event::Do(Step::Write { path: path.into(), len, byte })
}

fn truncate(path: &str, len: u64) -> Event {
    Event::Do(Step::Truncate { path: path.into(), len })
}

fn unlink(path: &str) -> Event {
    Event::Do(Step::Unlink { path: path.into() })
}

fn rename(from: &str, to: &str) -> Event {
    Event::Do(Step::Rename { from: from.into(), to: to.into(), replace: true })
}

#[tokio::test]
async fn remote_gets_no_change_that_power_cut_could_undo() {
    for_ends(20, |end| {
        vec![write("a", 3, 1), Event::SyncFolder, write("a", 5, 2), Event::Do(Step::Flush), Event::End(end)]
    })
    .await;
}

#[tokio::test]
async fn start_after_kill_truncates_no_slot_named_on_disk() {
    for calls in 0..40 {
        for_ends(3, |end| {
            let start = Event::EndStart(calls, end);
            vec![write("a", 90_000, 1), Event::SyncFolder, unlink("a"), start, Event::End(End::Kill)]
        })
        .await;
    }
}

/// Enough for all calls of the history below.
const CALLS: u64 = 120;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_ended_at_any_call_recovers() {
    for calls in 0..CALLS {
        for_ends(1, |end| {
            vec![
                write("a", 70_000, 1),
                Event::EndAfter(calls, end),
                Event::Sync("a".into()),
                Event::Do(Step::Mkdir { path: "b".into() }),
                rename("a", "b/a"),
                Event::Do(Step::WriteAt { path: "b/a".into(), offset: 65_530, len: 20 }),
                Event::SyncFolder,
                truncate("b/a", 66_000),
                Event::Do(Step::Flush),
                write("a", 10, 2),
                rename("a", "b/a"),
                Event::Compact,
                truncate("b/a", 5),
                unlink("b/a"),
                Event::Do(Step::Flush),
                Event::Do(Step::Rmdir { path: "b".into() }),
            ]
        })
        .await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8 * cases(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn power_cut_or_kill_undoes_no_promised_state(events in proptest::collection::vec(event(), 1..40)) {
        block_on(history(MemoryView::new(false), events))?;
    }
}
