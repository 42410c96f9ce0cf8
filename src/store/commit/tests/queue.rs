//! Concurrent commits: their order, their batches, and the state after a caller was dropped.

use crate::crypto::Format::V2;
use crate::hub::BatchOp;
use crate::store::commit::queue::{Execute, Places, Queue};
use crate::store::testing::{Keyed, hash_of, long_name, path, put};
use crate::store::{Change, Error, Expect, Op, Outcome, PlainPath, Side, Stored, Version, View};
use futures::future::{FutureExt, join_all};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

fn delete(at: &str) -> Op {
    Op { path: path(at), expect: Expect::Any, change: Change::Delete }
}

fn move_directory(from: &str, to: &str) -> Op {
    Op { path: path(from), expect: Expect::Any, change: Change::RenameDirectory { to: path(to) } }
}

fn put_plain(at: &str, content: &str) -> Op {
    let version = Version { id: hash_of(content).into(), stored_len: 65_638, side: Side::Plain };
    let change = Change::Put {
        stored: Stored { version, plain_len: 65_638 },
        mtime: OffsetDateTime::UNIX_EPOCH,
        metadata: None,
    };
    Op { path: path(at), expect: Expect::Any, change }
}

/// Returns a put whose header the encrypted view finds.
fn put_sealed(keyed: &Keyed, at: &str, content: &str) -> Op {
    let operation = put(at, content, Expect::Any);
    keyed.learn(&operation);
    operation
}

fn all_done(outcomes: &[Outcome]) {
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Done(_) | Outcome::Moved(_))), "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn commit_of_other_file_finishes_while_directory_move_hangs() {
    let keyed = Keyed::new().await;
    keyed.object("big/f", V2, "moved");
    let plain = keyed.plain();
    keyed.hub.put("big/f", hash_of("moved"), 1);
    let encrypted = keyed.view.clone();
    let views: [(&dyn View, String, Op); 2] = [
        (&*encrypted, keyed.key("moved/f", V2), put_sealed(&keyed, "file", "content")),
        (&plain, "moved/f".to_owned(), put_plain("file", "content")),
    ];
    for (view, hung, operation) in views {
        let answers = keyed.hub.hang(&hung);
        let (moves, other, below) =
            ([move_directory("big", "moved")], [operation], [Op { path: path("big/g"), ..delete("big/g") }]);
        let mut moving = view.commit(&moves);
        assert!((&mut moving).now_or_never().is_none());
        // The time is that of the test's clock. It only advances when a timer is awaited.
        let in_time = async { timeout(Duration::from_secs(5), view.commit(&other)).await };
        let outcome = tokio::select! {
            _ = &mut moving => panic!("the move hangs"),
            outcome = in_time => outcome.expect("it doesn't wait for the move"),
        };
        all_done(&outcome);
        let mut blocked = view.commit(&below);
        tokio::select! {
            _ = &mut moving => panic!("the move hangs"),
            _ = &mut blocked => panic!("it is below the directory that is moved"),
            () = sleep(Duration::from_secs(60)) => {}
        }
        answers.add_permits(10);
        let (moved, deleted) = tokio::join!(moving, blocked);
        all_done(&moved);
        all_done(&deleted);
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_small_commits_share_few_batches() {
    let keyed = Keyed::new().await;
    keyed.hub.on_read(Duration::from_millis(20), |_| {});
    let plain = keyed.plain();
    let encrypted = keyed.view.clone();
    for (view, sealed) in [(&*encrypted as &dyn View, true), (&plain, false)] {
        keyed.hub.take_batches();
        let operations: Vec<[Op; 1]> = (0..64)
            .map(|number| {
                let at = format!("d/{number}");
                [if sealed { put_sealed(&keyed, &at, &at) } else { put_plain(&at, &at) }]
            })
            .collect();
        for outcomes in join_all(operations.iter().map(|operations| view.commit(operations))).await {
            all_done(&outcomes);
        }
        let batches = keyed.hub.take_batches();
        assert_eq!(batches.iter().map(Vec::len).sum::<usize>(), 64);
        assert!(batches.len() <= 2, "{}", batches.len());
    }
}

#[tokio::test(start_paused = true)]
async fn sidecar_stays_while_another_commit_adds_below_its_directory() {
    let keyed = Keyed::new().await;
    let long = long_name(220, 0);
    let at = |name: &str| format!("{long}/{name}");
    let first = keyed.view.commit(&[put_sealed(&keyed, &at("a"), "a")]).await;
    all_done(&first);
    // The removal of the last file has already checked that the sidecar isn't needed when the other commit
    // arrives.
    let sidecar = keyed.place(&at("a")).sidecars[0].key.clone();
    let answers = keyed.hub.hang(&sidecar);
    let (removal, addition) = ([delete(&at("a"))], [put_sealed(&keyed, &at("b"), "b")]);
    let mut removing = keyed.view.commit(&removal);
    let mut adding = keyed.view.commit(&addition);
    tokio::select! {
        _ = &mut removing => panic!("the removal of the sidecar hangs"),
        () = sleep(Duration::from_secs(3)) => {}
    }
    // It runs concurrently with the removal, if that is allowed.
    let early = tokio::select! {
        _ = &mut removing => panic!("the removal of the sidecar hangs"),
        outcomes = &mut adding => Some(outcomes),
        () = sleep(Duration::from_secs(60)) => None,
    };
    answers.add_permits(10);
    all_done(&removing.await);
    all_done(&match early {
        Some(outcomes) => outcomes,
        None => adding.await,
    });
    assert_eq!(keyed.shown(&at("b")), Some(hash_of("b")));
}

/// A Hub that records the operations, and answers when there is a permit.
#[derive(Default)]
struct Recorder {
    batches: Mutex<Vec<Vec<PlainPath>>>,
    running: Mutex<Vec<PlainPath>>,
    ended: AtomicUsize,
    gate: Option<Semaphore>,
}

impl Recorder {
    fn gated() -> Arc<Self> {
        Arc::new(Self { gate: Some(Semaphore::new(0)), ..Self::default() })
    }

    fn open(&self, batches: usize) {
        self.gate.as_ref().unwrap().add_permits(batches);
    }

    fn batches(&self) -> Vec<Vec<PlainPath>> {
        self.batches.lock().unwrap().clone()
    }

    fn execute(self: &Arc<Self>) -> Execute {
        let this = self.clone();
        Arc::new(move |operations: Vec<Op>| {
            let this = this.clone();
            async move {
                let paths: Vec<PlainPath> = operations.iter().map(|op| op.path.clone()).collect();
                this.batches.lock().unwrap().push(paths.clone());
                for path in &paths {
                    let mut running = this.running.lock().unwrap();
                    assert!(!running.iter().any(|other| overlap(other, path)), "two changes of one path");
                    running.push(path.clone());
                }
                let _running = Removal(&this, &paths);
                if let Some(gate) = &this.gate {
                    gate.acquire().await.unwrap().forget();
                }
                tokio::task::yield_now().await;
                this.ended.fetch_add(operations.len(), SeqCst);
                operations.iter().map(|_| Outcome::Done(None)).collect()
            }
            .boxed()
        })
    }
}

/// Guard that removes paths from `running`, also when the batch is dropped.
struct Removal<'a>(&'a Recorder, &'a [PlainPath]);

impl Drop for Removal<'_> {
    fn drop(&mut self) {
        self.0.running.lock().unwrap().retain(|path| !self.1.contains(path));
    }
}

fn overlap(one: &PlainPath, other: &PlainPath) -> bool {
    one.is_within(other) || other.is_within(one)
}

fn no_domains(_: &Op) -> Vec<String> {
    Vec::new()
}

fn spawn(queue: &Queue, execute: &Execute, operations: Vec<Op>) -> tokio::task::JoinHandle<Vec<Outcome>> {
    let (queue, execute) = (queue.clone(), execute.clone());
    tokio::spawn(async move { queue.commit(&operations, no_domains, &execute).await })
}

/// Lets all tasks run until each waits for something.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn lone_caller_does_not_wait_for_others() {
    let (queue, recorder) = (Queue::default(), Arc::new(Recorder::default()));
    let began = Instant::now();
    all_done(&queue.commit(&[delete("a")], no_domains, &recorder.execute()).await);
    assert_eq!(began.elapsed(), Duration::ZERO);
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn commits_gather_while_a_batch_is_in_flight() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let callers: Vec<_> = ["a", "b", "c", "b/below", "d"].map(|at| spawn(&queue, &execute, vec![delete(at)])).into();
    settle().await;
    assert_eq!(recorder.batches(), [vec![path("a")]]);
    recorder.open(1);
    settle().await;
    assert_eq!(recorder.batches()[1..], [["b", "c", "d"].map(path).to_vec()]);
    recorder.open(1);
    settle().await;
    assert_eq!(recorder.batches()[2..], [vec![path("b/below")]]);
    recorder.open(1);
    for caller in callers {
        all_done(&caller.await.unwrap());
    }
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn slow_batch_delays_next_one_for_bounded_time() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let slow = spawn(&queue, &execute, vec![delete("slow")]);
    settle().await;
    let next = spawn(&queue, &execute, vec![delete("next")]);
    sleep(Duration::from_millis(900)).await;
    assert_eq!(recorder.batches().len(), 1);
    sleep(Duration::from_millis(200)).await;
    assert_eq!(recorder.batches()[1..], [vec![path("next")]]);
    recorder.open(2);
    all_done(&slow.await.unwrap());
    all_done(&next.await.unwrap());
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn overlapping_commits_keep_order_of_callers() {
    let (queue, recorder) = (Queue::default(), Arc::new(Recorder::default()));
    let execute = recorder.execute();
    // The second part of the first caller comes before the second caller.
    let first = spawn(&queue, &execute, vec![delete("a"), delete("a/b")]);
    let second = spawn(&queue, &execute, vec![delete("a/b/c"), delete("x")]);
    let third = spawn(&queue, &execute, vec![move_directory("x", "y"), delete("a")]);
    for caller in [first, second, third] {
        all_done(&caller.await.unwrap());
    }
    let batches = recorder.batches();
    let expected = [vec!["a"], vec!["a/b"], vec!["a/b/c", "x"], vec!["x"], vec!["a"]];
    assert_eq!(batches, expected.map(|batch| batch.into_iter().map(path).collect::<Vec<_>>()));
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn dropped_caller_leaves_nothing_locked() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    // It has a second part, whose turn never comes.
    let running = spawn(&queue, &execute, vec![delete("a"), delete("a/b/c")]);
    settle().await;
    let gathered = spawn(&queue, &execute, vec![delete("b")]);
    let blocked = spawn(&queue, &execute, vec![delete("a/b"), delete("c")]);
    let moving = spawn(&queue, &execute, vec![move_directory("m", "n")]);
    settle().await;
    let last = spawn(&queue, &execute, vec![delete("a"), delete("b"), delete("c"), delete("m")]);
    settle().await;
    for caller in [running, gathered, blocked, moving] {
        caller.abort();
        assert!(caller.await.unwrap_err().is_cancelled());
    }
    settle().await;
    recorder.open(1);
    all_done(&timeout(Duration::from_secs(60), last).await.expect("no commit blocks it").unwrap());
    assert_eq!(recorder.ended.load(SeqCst), 4, "no dropped part ended");
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn batch_continues_after_its_driving_caller_is_dropped() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let first = spawn(&queue, &execute, vec![delete("first")]);
    settle().await;
    let leaving = spawn(&queue, &execute, vec![delete("a")]);
    settle().await;
    let staying = spawn(&queue, &execute, vec![delete("b")]);
    settle().await;
    recorder.open(1);
    all_done(&first.await.unwrap());
    settle().await;
    assert_eq!(recorder.batches()[1..], [["a", "b"].map(path).to_vec()]);
    leaving.abort();
    settle().await;
    recorder.open(1);
    all_done(&staying.await.unwrap());
    assert_eq!(recorder.batches().len(), 2, "it was not started again");
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn caller_stops_waiting_at_its_deadline() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let first = spawn(&queue, &execute, vec![delete("a")]);
    settle().await;
    let began = Instant::now();
    let operations = [delete("a/b"), delete("c")];
    let waiting = queue.commit(&operations, no_domains, &execute);
    let waiting = crate::store::deadline::within(Duration::from_secs(9), waiting);
    let outcomes = timeout(Duration::from_secs(60), waiting).await.expect("it has a deadline");
    assert_eq!(began.elapsed(), Duration::from_secs(9));
    for outcome in outcomes {
        assert!(matches!(&outcome, Outcome::Failed(Error::Hub(error)) if error.is_transient()), "{outcome:?}");
    }
    recorder.open(1);
    all_done(&first.await.unwrap());
    assert!(queue.is_idle());
}

#[tokio::test(start_paused = true)]
async fn deadline_of_one_caller_does_not_end_batch_of_another() {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let first = spawn(&queue, &execute, vec![delete("first")]);
    settle().await;
    let short = {
        let (queue, execute) = (queue.clone(), execute.clone());
        let operations = [delete("a")];
        let commit = async move { queue.commit(&operations, no_domains, &execute).await };
        tokio::spawn(crate::store::deadline::within(Duration::from_secs(2), commit))
    };
    settle().await;
    let long = spawn(&queue, &execute, vec![delete("b")]);
    settle().await;
    recorder.open(1);
    all_done(&first.await.unwrap());
    let short = timeout(Duration::from_secs(60), short).await.expect("it has a deadline").unwrap();
    assert!(matches!(short[..], [Outcome::Failed(_)]));
    recorder.open(1);
    all_done(&long.await.unwrap());
    assert!(queue.is_idle());
}

/// Returns the steps of the state machine for each of `callers` waiting commits. Half of them have
/// overlapping paths.
async fn cost_of(callers: usize) -> f64 {
    let (queue, recorder) = (Queue::default(), Recorder::gated());
    let execute = recorder.execute();
    let first = spawn(&queue, &execute, vec![delete("d/first")]);
    settle().await;
    let waiting: Vec<_> = (0..callers)
        .map(|number| {
            let at = if number % 2 == 0 { "d/same".to_owned() } else { format!("d/{number}") };
            spawn(&queue, &execute, vec![delete(&at)])
        })
        .collect();
    settle().await;
    recorder.open(callers + 1);
    all_done(&first.await.unwrap());
    for caller in waiting {
        all_done(&caller.await.unwrap());
    }
    assert!(queue.is_idle());
    queue.steps() as f64 / callers as f64
}

#[tokio::test(start_paused = true)]
async fn cost_of_commit_does_not_grow_with_waiting_callers() {
    let few = cost_of(30).await;
    for callers in [300, 3000] {
        let many = cost_of(callers).await;
        assert!(many < few * 1.5, "{many:.1} steps for each of {callers} commits, {few:.1} for each of 30");
    }
}

fn some_path() -> impl Strategy<Value = PlainPath> {
    proptest::collection::vec(prop_oneof!["a", "b", "c"], 0..4).prop_map(|names| path(&names.join("/")))
}

proptest! {
    /// Compares the index with the definition: a part waits for earlier parts whose paths overlap with its own.
    #[test]
    fn part_waits_for_earlier_overlapping_parts(
        parts in proptest::collection::vec((proptest::collection::vec(some_path(), 1..3), any::<u8>()), 1..12),
    ) {
        let mut places = Places::default();
        let mut left: BTreeMap<u64, Vec<PlainPath>> = BTreeMap::new();
        for (number, (paths, _)) in (1..).zip(&parts) {
            places.add(number, paths);
            left.insert(number, paths.clone());
        }
        let is_blocked = |left: &BTreeMap<u64, Vec<PlainPath>>, number: u64| {
            let own = &left[&number];
            left.range(..number).any(|(_, paths)| paths.iter().any(|one| own.iter().any(|other| overlap(one, other))))
        };
        // Parts are removed in any order, as callers leave.
        for (_, choice) in &parts {
            let free: BTreeSet<u64> = left.keys().copied().filter(|number| !is_blocked(&left, *number)).collect();
            for number in left.keys() {
                prop_assert_eq!(places.is_blocked(*number, &left[number]), !free.contains(number));
            }
            let number = *left.keys().nth(usize::from(*choice) % left.len()).unwrap();
            let paths = left.remove(&number).unwrap();
            let unblocked = places.remove(number, &paths);
            for other in left.keys() {
                let is_free_now = !is_blocked(&left, *other) && !free.contains(other);
                prop_assert!(!is_free_now || unblocked.contains(other), "{} is not checked again", other);
            }
        }
        prop_assert!(places.is_empty());
    }
}

#[tokio::test]
async fn batch_of_several_callers_keeps_adds_before_deletes() {
    let keyed = Keyed::new().await;
    let plain = keyed.plain();
    for at in ["old/1", "old/2"] {
        keyed.hub.put(at, hash_of(at), 1);
    }
    let change = |number| Change::Rename { to: path(&format!("new/{number}")), expect_to: Expect::Absent };
    let renames =
        [1, 2].map(|number| [Op { path: path(&format!("old/{number}")), expect: Expect::Any, change: change(number) }]);
    let deletes = [[delete("old/3")], [put_plain("new/4", "4")]];
    let commits = renames.iter().chain(&deletes).map(|operations| plain.commit(operations));
    for outcomes in join_all(commits).await {
        all_done(&outcomes);
    }
    for batch in keyed.hub.take_batches() {
        let adds = batch.iter().filter(|op| matches!(op, BatchOp::Add { .. })).count();
        assert!(adds == 0 || adds == batch.len(), "{batch:?}");
    }
    let there: Vec<String> = keyed.hub.contents().into_keys().collect();
    assert_eq!(there, ["new/1", "new/2", "new/4"]);
}
