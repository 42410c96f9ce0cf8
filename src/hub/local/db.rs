//! The database of an embedded Hub: everything its processes share, but for the content-addressed files.
//!
//! SQLite in WAL mode with `synchronous=FULL`: when [`Db::write`] returns, its commit is on disk.
//! Any number of processes may have the database open. Within one process a single thread writes:
//! it takes what has queued up, runs each piece of work in a savepoint of its own and commits them
//! together, so that many callers share one sync. Between processes `BEGIN IMMEDIATE` queues on
//! SQLite's lock; as no work starts before that lock is held, none ever has to be run twice.
//!
//! Failure: work that returns an error leaves no trace and takes no other work with it. A database
//! that stays locked longer than [`BUSY_WAIT`] is [`Error::Busy`] to all who wait for it. Work
//! whose caller has gone, or that has waited longer than [`QUEUE_WAIT`], is not done: nobody would
//! know that it was. Times in the tables are milliseconds since the epoch, sizes are bytes.

use super::schema::{self, Migration};
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Name of the database in the Hub's directory.
pub(super) const FILE: &str = "hub.sqlite";
/// How long work waits for another process that holds the write lock. Far above any commit, below a client's patience.
const BUSY_WAIT: Duration = Duration::from_secs(20);
/// Longest time that work may be queued before it is begun. Above [`BUSY_WAIT`], and below the minute for
/// which clients wait for an answer.
const QUEUE_WAIT: Duration = Duration::from_secs(30);
/// Connections for reading, and so reads under way: beyond that they queue.
const READERS: usize = 8;
/// Pieces of work that share one commit at most: bounds how long the first of them waits for the last.
const GROUP: usize = 64;
/// Pieces of work that may wait for the writer before callers wait themselves.
const QUEUE: usize = 256;
/// Size to which the write-ahead log is cut back after a checkpoint, in bytes.
const LOG_LIMIT: u32 = 64 * 1024 * 1024;

/// What can go wrong in the database.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// SQLite's own.
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    /// Another process held the write lock for too long, or too much was queued; the work was not done.
    #[error("the database is busy")]
    Busy,
    /// The work panicked and was rolled back.
    #[error("a database task panicked")]
    Panicked,
    /// The writer is gone.
    #[error("the database is closed")]
    Closed,
    /// The commit that the work was part of failed.
    #[error("commit failed: {0}")]
    Commit(String),
    /// Written by a later version of this program.
    #[error("the database has schema version {found}, this program knows versions up to {known}")]
    TooNew {
        /// Version in the file.
        found: u32,
        /// Newest version known here.
        known: u32,
    },
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        if is_busy(&error) { Self::Busy } else { Self::Sqlite(error) }
    }
}

/// The opened database; clones share it.
#[derive(Clone)]
pub(crate) struct Db {
    readers: Arc<Readers>,
    queue: mpsc::Sender<Box<dyn Job>>,
    #[cfg(test)]
    pub(super) synced: SyncedLog,
}

impl Db {
    /// Opens or makes the database of the Hub in `dir`, brings its schema up to date and runs `set_up` in the same
    /// transaction (again, if that had to be rolled back). Blocks.
    pub(crate) fn open<T>(
        dir: &Path,
        set_up: impl Fn(&Transaction<'_>) -> Result<T, Error>,
    ) -> Result<(Self, T), Error> {
        let path = dir.join(FILE);
        let (mut connection, outcome) = open_migrated(&path, &set_up)?;
        let (queue, mut jobs) = mpsc::channel(QUEUE);
        #[cfg(test)]
        let synced = SyncedLog::new(&path);
        #[cfg(test)]
        let committed = synced.clone();
        let committed = move || {
            #[cfg(test)]
            committed.grows();
        };
        std::thread::Builder::new()
            .name("hub-writer".into())
            .spawn(move || while write_group(&mut connection, &mut jobs, &committed) {})
            .map_err(|e| Error::Commit(format!("cannot start the writer thread: {e}")))?;
        let readers = Readers { path, idle: Mutex::default(), permits: Arc::new(Semaphore::new(READERS)) };
        let db = Self {
            readers: Arc::new(readers),
            queue,
            #[cfg(test)]
            synced,
        };
        Ok((db, outcome))
    }

    /// Runs `work` on a blocking thread, over one snapshot of the database.
    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let permit = Arc::clone(&readers.permits).acquire_owned().await.map_err(|_| Error::Closed)?;
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            readers.run(work)
        });
        task.await.unwrap_or_else(|_| Err(Error::Panicked.into()))
    }

    /// Runs `work` in a transaction of the writer; when this returns `Ok`, it is on disk. Where `work` fails, nothing
    /// of it stays. If the returned future is dropped, work that has begun is carried out, and other work is not.
    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let deadline = Instant::now() + QUEUE_WAIT;
        let (reply, answer) = oneshot::channel();
        let job = Work { work: Some(work), deadline, outcome: None, reply };
        let place = tokio::time::timeout_at(deadline.into(), self.queue.reserve()).await;
        place.map_err(|_| Error::Busy)?.map_err(|_| Error::Closed)?.send(Box::new(job));
        answer.await.unwrap_or_else(|_| Err(Error::Closed.into()))
    }
}

/// Connections for reading: as many as are in use at once, at most [`READERS`].
struct Readers {
    path: PathBuf,
    /// Those not in use. The lock is only held to push and pop.
    idle: Mutex<Vec<Connection>>,
    permits: Arc<Semaphore>,
}

impl Readers {
    fn run<T, E: From<Error>>(&self, work: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E> {
        let idle = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let mut connection = match idle {
            Some(connection) => connection,
            None => open_reader(&self.path)?,
        };
        let snapshot = connection.transaction().map_err(Error::from)?;
        let outcome = work(&snapshot);
        // Dropping a transaction rolls it back, which is how a read ends; a connection where that
        // fails is not used again.
        if snapshot.finish().is_ok()
            && let Ok(mut idle) = self.idle.lock()
        {
            idle.push(connection);
        }
        outcome
    }
}

/// A piece of work with its caller.
trait Job: Send {
    /// Runs it; whether it is to be kept.
    fn run(&mut self, transaction: &Transaction<'_>) -> bool;
    /// Tells the caller, after the commit (`Ok`) or instead of it.
    fn finish(self: Box<Self>, commit: Result<(), Error>);
}

struct Work<F, T, E> {
    work: Option<F>,
    /// When it is too late to begin.
    deadline: Instant,
    outcome: Option<Result<T, E>>,
    reply: oneshot::Sender<Result<T, E>>,
}

impl<F, T, E> Job for Work<F, T, E>
where
    F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send,
    T: Send,
    E: From<Error> + Send,
{
    fn run(&mut self, transaction: &Transaction<'_>) -> bool {
        let Some(work) = self.work.take().filter(|_| !self.reply.is_closed()) else { return false };
        if self.deadline <= Instant::now() {
            self.outcome = Some(Err(Error::Busy.into()));
            return false;
        }
        let outcome =
            catch_unwind(AssertUnwindSafe(|| work(transaction))).unwrap_or_else(|_| Err(Error::Panicked.into()));
        let keep = outcome.is_ok();
        self.outcome = Some(outcome);
        keep
    }

    fn finish(self: Box<Self>, commit: Result<(), Error>) {
        let outcome = match (commit, self.outcome) {
            (Ok(()), Some(outcome)) => outcome,
            // It failed by itself and was rolled back: its own error says more than that of the commit.
            (Err(_), Some(Err(error))) => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(()), None) => Err(Error::Closed.into()),
        };
        let _ = self.reply.send(outcome);
    }
}

/// How much of the write-ahead log holds commits that somebody was told of: what a power cut mustn't touch.
#[cfg(test)]
#[derive(Clone)]
pub(super) struct SyncedLog {
    log: PathBuf,
    len: Arc<std::sync::atomic::AtomicU64>,
}

#[cfg(test)]
impl SyncedLog {
    fn new(database: &Path) -> Self {
        let mut log = database.as_os_str().to_owned();
        log.push("-wal");
        let synced = Self { log: log.into(), len: Arc::default() };
        synced.grows();
        synced
    }

    fn grows(&self) {
        let len = std::fs::metadata(&self.log).map_or(0, |found| found.len());
        self.len.store(len, std::sync::atomic::Ordering::Release);
    }

    /// Bytes.
    pub(super) fn len(&self) -> u64 {
        self.len.load(std::sync::atomic::Ordering::Acquire)
    }
}

/// Waits for work, runs what there is in one transaction. `false` when no more can come.
/// `committed` is called before anybody is told.
fn write_group(connection: &mut Connection, jobs: &mut mpsc::Receiver<Box<dyn Job>>, committed: &dyn Fn()) -> bool {
    let Some(first) = jobs.blocking_recv() else { return false };
    let mut group = vec![first];
    let commit = run_group(connection, jobs, &mut group);
    committed();
    let failure = commit.as_ref().err().map(ToString::to_string);
    let busy = matches!(commit, Err(Error::Busy));
    // Callers that have queued up meanwhile get the answer immediately. Otherwise the last of them
    // would wait for the lock once for each group before it.
    while busy && let Ok(job) = jobs.try_recv() {
        group.push(job);
    }
    for job in group {
        job.finish(match (&failure, busy) {
            (None, _) => Ok(()),
            (Some(_), true) => Err(Error::Busy),
            (Some(why), false) => Err(Error::Commit(why.clone())),
        });
    }
    true
}

fn run_group(
    connection: &mut Connection,
    jobs: &mut mpsc::Receiver<Box<dyn Job>>,
    group: &mut Vec<Box<dyn Job>>,
) -> Result<(), Error> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut next = 0;
    while next < group.len() {
        run_in_savepoint(&transaction, group[next].as_mut())?;
        next += 1;
        if next == group.len()
            && next < GROUP
            && let Ok(job) = jobs.try_recv()
        {
            group.push(job);
        }
    }
    Ok(transaction.commit()?)
}

fn run_in_savepoint(transaction: &Transaction<'_>, job: &mut dyn Job) -> Result<(), Error> {
    transaction.execute_batch("SAVEPOINT job")?;
    let keep = job.run(transaction);
    // SQLite ends the whole transaction by itself on a full disk or an I/O error: then nothing of
    // the group may be acknowledged.
    if transaction.is_autocommit() {
        return Err(Error::Commit("the transaction was rolled back by SQLite".into()));
    }
    transaction.execute_batch(if keep { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" })?;
    Ok(())
}

type SetUp<'a, T> = dyn Fn(&Transaction<'_>) -> Result<T, Error> + 'a;

/// Opens the database for writing, with its schema up to date. Several processes may do this at once.
fn open_migrated<T>(path: &Path, set_up: &SetUp<'_, T>) -> Result<(Connection, T), Error> {
    let started = Instant::now();
    loop {
        // The switch to WAL and the recovery of a log don't always wait by the busy handler.
        match try_open_migrated(path, set_up) {
            Err(Error::Busy) if started.elapsed() < BUSY_WAIT => std::thread::sleep(Duration::from_millis(20)),
            outcome => return outcome,
        }
    }
}

fn try_open_migrated<T>(path: &Path, set_up: &SetUp<'_, T>) -> Result<(Connection, T), Error> {
    let mut connection = open_connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "journal_size_limit", LOG_LIMIT)?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    migrate(&transaction)?;
    let outcome = set_up(&transaction)?;
    transaction.commit()?;
    Ok((connection, outcome))
}

fn migrate(transaction: &Transaction<'_>) -> Result<(), Error> {
    match schema::migrate(transaction)? {
        Migration::Done => Ok(()),
        Migration::TooNew { found, known } => Err(Error::TooNew { found, known }),
    }
}

fn open_reader(path: &Path) -> Result<Connection, Error> {
    // Read-write, as a reader of a WAL database may have to recover the log of a process that died.
    let connection = open_connection(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

fn open_connection(path: &Path, flags: OpenFlags) -> Result<Connection, Error> {
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

fn is_busy(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked))
}

/// A database in memory with the present schema.
#[cfg(test)]
pub(crate) fn in_memory() -> Connection {
    let mut connection = Connection::open_in_memory().expect("memory is there");
    let transaction = connection.transaction().expect("nobody else has it");
    migrate(&transaction).expect("the schema is valid");
    transaction.commit().expect("nobody else has it");
    connection
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn open(dir: &tempfile::TempDir) -> Result<Db, Error> {
        Db::open(dir.path(), |_| Ok(())).map(|(db, ())| db)
    }

    fn count(connection: &Connection) -> Result<i64, Error> {
        Ok(connection.query_row("SELECT count(*) FROM users", [], |row| row.get(0))?)
    }

    fn add(transaction: &Transaction<'_>, name: &str) -> Result<(), Error> {
        transaction.execute("INSERT INTO users (name, created) VALUES (?1, 0)", [name])?;
        Ok(())
    }

    #[tokio::test]
    async fn failed_and_panicked_work_leaves_no_trace_and_harms_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).unwrap();
        let failing = db.write(|t| {
            add(t, "a")?;
            Err::<(), _>(Error::Closed)
        });
        let panicking = db.write(|t| -> Result<(), Error> {
            add(t, "b")?;
            panic!("as the test wants");
        });
        let good = db.write(|t| add(t, "c"));
        let (failing, panicking, good) = tokio::join!(failing, panicking, good);
        assert!(matches!(failing, Err(Error::Closed)));
        assert!(matches!(panicking, Err(Error::Panicked)));
        good.unwrap();
        assert_eq!(db.read(count).await.unwrap(), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_handles_on_one_directory_write_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let handles = [open(&dir).unwrap(), open(&dir).unwrap()];
        let tasks: Vec<_> = (0..60)
            .map(|i| {
                let db = handles[i % 2].clone();
                tokio::spawn(async move { db.write(move |t| add(t, &format!("user{i}"))).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        for db in &handles {
            assert_eq!(db.read(count).await.unwrap(), 60);
        }
    }

    /// Another process, which holds the write lock.
    fn locked(dir: &tempfile::TempDir) -> Connection {
        let other = Connection::open(dir.path().join(FILE)).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        other
    }

    #[tokio::test]
    async fn work_whose_caller_has_gone_is_not_done_later() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).unwrap();
        let lock = locked(&dir);
        // The first one has the writer wait for the lock, the others queue up behind it.
        let patient = tokio::spawn({
            let db = db.clone();
            async move { db.write(|t| add(t, "patient")).await }
        });
        for _ in 0..3 {
            let abandoned = db.write(|t| add(t, "abandoned"));
            assert!(abandoned.now_or_never().is_none(), "the lock is held");
        }
        lock.execute_batch("ROLLBACK").unwrap();
        patient.await.unwrap().unwrap();
        db.write(|t| add(t, "last")).await.unwrap();
        assert_eq!(db.read(count).await.unwrap(), 2);
    }

    #[test]
    fn work_that_has_waited_too_long_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let (mut connection, ()) = open_migrated(&dir.path().join(FILE), &|_| Ok(())).unwrap();
        let (queue, mut jobs) = mpsc::channel::<Box<dyn Job>>(2);
        let (reply, mut late) = oneshot::channel();
        let work = |t: &Transaction<'_>| add(t, "late");
        let job = Work { work: Some(work), deadline: Instant::now(), outcome: None, reply };
        assert!(queue.try_send(Box::new(job)).is_ok());
        assert!(write_group(&mut connection, &mut jobs, &|| ()));
        assert!(matches!(late.try_recv(), Ok(Err(Error::Busy))));
        assert_eq!(count(&connection).unwrap(), 0);
    }

    #[test]
    fn a_lock_that_is_not_given_up_fails_all_that_have_queued_up() {
        let dir = tempfile::tempdir().unwrap();
        let (mut connection, ()) = open_migrated(&dir.path().join(FILE), &|_| Ok(())).unwrap();
        connection.busy_timeout(Duration::ZERO).unwrap();
        let _lock = locked(&dir);
        let (queue, mut jobs) = mpsc::channel::<Box<dyn Job>>(QUEUE);
        let mut answers: Vec<_> = (0..3)
            .map(|_| {
                let (reply, answer) = oneshot::channel();
                let deadline = Instant::now() + QUEUE_WAIT;
                let work = |t: &Transaction<'_>| add(t, "x");
                assert!(queue.try_send(Box::new(Work { work: Some(work), deadline, outcome: None, reply })).is_ok());
                answer
            })
            .collect();
        assert!(write_group(&mut connection, &mut jobs, &|| ()));
        for answer in &mut answers {
            assert!(matches!(answer.try_recv(), Ok(Err(Error::Busy))));
        }
    }

    #[tokio::test]
    async fn a_read_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let db = open(&dir).unwrap();
        let outcome = db.read(|c| Ok::<_, Error>(c.execute("DELETE FROM users", [])?)).await;
        assert!(outcome.is_err());
    }

    #[tokio::test]
    async fn database_of_version_1_is_migrated_and_knows_no_earlier_changes() {
        let dir = tempfile::tempdir().unwrap();
        let connection = Connection::open(dir.path().join(FILE)).unwrap();
        schema::MIGRATIONS[0].iter().for_each(|sql| connection.execute_batch(sql).unwrap());
        let sql = "INSERT INTO buckets (namespace, name, private, created, updated) VALUES ('local', 'b', 0, 5, 7)";
        connection.execute(sql, []).unwrap();
        connection.pragma_update(None, "user_version", 1).unwrap();
        drop(connection);
        let bucket = |c: &Connection| {
            let columns = c.query_row("SELECT updated, event_since, event_seq FROM buckets", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?))
            });
            Ok::<_, Error>(columns?)
        };
        assert_eq!(open(&dir).unwrap().read(bucket).await.unwrap(), (7, 7, 0));
    }

    #[test]
    fn a_database_of_a_later_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir).unwrap());
        let connection = Connection::open(dir.path().join(FILE)).unwrap();
        connection.pragma_update(None, "user_version", 999).unwrap();
        assert!(matches!(open(&dir), Err(Error::TooNew { found: 999, .. })));
    }
}
