//! Runs concurrent commits of one view: keeps commits of the same paths apart and merges the others into batches.
//!
//! A commit reads the state of its paths, compares it with the expectations of its caller, and then changes
//! it. Another commit of these paths must not come in between. One lock over all commits would be enough, but
//! then a small file waits for minutes while a large directory is moved, and many small commits take two or
//! three round trips each, one after the other.
//!
//! **Paths.** A commit waits for earlier commits whose paths overlap with its own (equal, above or below),
//! and for no others. Commits of one path therefore keep their order. Operations of one caller are split into
//! parts by [`super::rounds`], and each part waits for the part before it. All parts take their place in the
//! order when the caller arrives, so a later caller never comes in between them.
//!
//! **Batches.** Parts that wait for nothing are gathered. They are sent as one batch when the batch before
//! them has returned, or immediately if none is in flight. A lone caller therefore never waits for others to
//! join. A batch that takes longer than [`GATHER`] no longer delays the next one, so a slow request delays
//! others by that time at most. A directory move always runs alone, concurrently with the batches.
//!
//! **Domains.** Paths that don't overlap may still share an object in the bucket: the sidecar of a directory
//! above them that has a long name. A commit deletes a sidecar when no object needs it any more. Another
//! commit that adds a file below the directory at that moment would lose it. The view therefore returns the
//! domain of an operation (the outermost such directory), and of each domain only one batch is in flight.
//! Inside one batch the plan handles shared sidecars.
//!
//! **Cancellation.** A batch is driven by its callers. The one that polls first drives it for all. A caller
//! that is dropped leaves the queue, or its batch. A batch that all callers have left stops immediately, and
//! its paths are released.
//!
//! **Cost.** Joining, leaving and being chosen take time logarithmic in the number of waiting parts,
//! multiplied by the depth of their paths. At most [`MAX_BATCHES`] batches of at most
//! [`MAX_ROUND`](super::MAX_ROUND) operations and [`MAX_MOVES`] directory moves are in flight.

use super::{MAX_ROUND, ancestors, rounds};
use crate::hub;
use crate::store::{Change, Error, Op, Outcome, PlainPath, twin};
use crate::xet::deadline;
use futures::FutureExt;
use futures::future::{BoxFuture, Either, Shared, select};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Time for which a batch in flight delays the next one, so that commits gather. Several round trips of the
/// real Hub fit into it. A request that hangs delays others by this time only.
const GATHER: Duration = Duration::from_secs(1);
/// Batches in flight. More than one only if all but the last are slow.
const MAX_BATCHES: usize = 8;
/// Directory moves in flight. Each holds the list of the directory's files in memory.
const MAX_MOVES: usize = 4;

/// Carries out operations that touch no common path, and returns one outcome for each.
pub(in crate::store) type Execute = Arc<dyn Fn(Vec<Op>) -> BoxFuture<'static, Vec<Outcome>> + Send + Sync>;

/// The commits of one view. Clones share them.
#[derive(Clone, Default)]
pub(in crate::store) struct Queue {
    /// Never held over an await, and never while a batch or the sender of one is dropped, because that locks
    /// it too.
    state: Arc<Mutex<State>>,
}

impl Queue {
    /// Carries out `operations` in order with `execute`, which must be equal for all calls. `domains` returns
    /// the domains of an operation.
    pub(in crate::store) async fn commit(
        &self,
        operations: &[Op],
        domains: impl Fn(&Op) -> Vec<String> + Send,
        execute: &Execute,
    ) -> Vec<Outcome> {
        let parts = self.enqueue(operations, &domains);
        let mut outcomes = Vec::with_capacity(operations.len());
        for (part, range) in parts {
            outcomes.extend(part.run(operations[range].to_vec(), execute).await);
        }
        outcomes
    }

    fn enqueue(
        &self,
        operations: &[Op],
        domains: &(impl Fn(&Op) -> Vec<String> + Send),
    ) -> Vec<(Ticket, Range<usize>)> {
        let rounds = rounds(operations);
        let parts: Vec<Part> = rounds.iter().map(|round| Part::new(&operations[round.clone()], domains)).collect();
        let mut state = self.lock();
        let tickets = parts.into_iter().map(|part| Ticket { queue: self.clone(), number: state.enqueue(part) });
        tickets.zip(rounds).collect()
    }

    /// Returns true if no part waits and none is in flight.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let state = self.lock();
        let is_empty = state.parts.is_empty() && state.places.is_empty() && state.domains.is_empty();
        is_empty && state.ready.is_empty() && state.ready_moves.is_empty() && state.batches + state.moves == 0
    }

    /// Returns how many parts were checked so far.
    #[cfg(test)]
    pub(super) fn steps(&self) -> u64 {
        self.lock().steps
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then starts the parts that may start.
    fn update(&self, change: impl FnOnce(&mut State)) {
        let started = {
            let mut state = self.lock();
            change(&mut state);
            state.start_ready(self)
        };
        // A caller may have been dropped meanwhile. Then the batch is dropped here, which locks the state again.
        for (caller, share) in started {
            drop(caller.send(share));
        }
    }
}

/// Place of a part in the order. Dropping it removes the part from the queue, unless it has started.
struct Ticket {
    queue: Queue,
    number: u64,
}

impl Ticket {
    /// Carries out the part when its turn comes. Fails at the operation's deadline.
    async fn run(self, operations: Vec<Op>, execute: &Execute) -> Vec<Outcome> {
        let count = operations.len();
        let (caller, started) = oneshot::channel();
        let waiting = Waiting { operations, execute: execute.clone(), caller, end: deadline::current() };
        self.queue.update(|state| state.arm(self.number, waiting));
        match deadline::timely(started).await {
            Some(Ok(share)) => share.outcomes(count).await,
            _ => late(count),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.queue.update(|state| state.cancel(self.number));
    }
}

/// Part of a batch that belongs to one caller.
struct Share {
    batch: Shared<BoxFuture<'static, ()>>,
    /// Outcomes of all callers, once the batch has ended.
    outcomes: Arc<Mutex<Vec<Option<Outcome>>>>,
    range: Range<usize>,
    /// Deadline of the batch: the latest of its callers.
    end: Option<Instant>,
}

impl Share {
    async fn outcomes(self, count: usize) -> Vec<Outcome> {
        // The error of a request that ran into the deadline says more than the end of the wait.
        if deadline::current() == self.end {
            self.batch.await;
        } else if deadline::timely(self.batch).await.is_none() {
            return late(count);
        }
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = || Outcome::Failed(Error::Refused("not carried out".into()));
        self.range.map(|index| outcomes.get_mut(index).and_then(Option::take).unwrap_or_else(missing)).collect()
    }
}

fn late(count: usize) -> Vec<Outcome> {
    let late = || Outcome::Failed(hub::Error::Network("no answer before the deadline".into()).into());
    std::iter::repeat_with(late).take(count).collect()
}

/// Operations of one caller that touch no common path.
struct Part {
    paths: Vec<PlainPath>,
    domains: Vec<String>,
    moves_directory: bool,
    stage: Stage,
}

/// Progress of a part.
enum Stage {
    /// Its caller still waits for the part before it.
    Later,
    /// It waits for others with overlapping paths.
    Blocked(Waiting),
    /// It may start.
    Ready(Waiting),
    /// It is in a batch.
    Started,
}

/// A waiting caller.
struct Waiting {
    operations: Vec<Op>,
    execute: Execute,
    caller: oneshot::Sender<Share>,
    end: Option<Instant>,
}

impl Part {
    fn new(operations: &[Op], domains: &impl Fn(&Op) -> Vec<String>) -> Self {
        let moves_directory = matches!(operations, [Op { change: Change::RenameDirectory { .. }, .. }]);
        let paths = operations.iter().flat_map(locked).collect();
        Self { paths, domains: operations.iter().flat_map(domains).collect(), moves_directory, stage: Stage::Later }
    }
}

/// Returns the paths that no other operation may touch while an operation runs. The real path of an alias is
/// known only after its directory was listed. Therefore the whole directory is locked for an alias.
fn locked(operation: &Op) -> Vec<PlainPath> {
    let aliases = twin::asked_by(operation);
    let lock = |path: &PlainPath| match path.split() {
        Some((parent, _)) if aliases.contains(&path) => parent,
        _ => path.clone(),
    };
    super::paths(operation).into_iter().map(lock).collect()
}

#[derive(Default)]
struct State {
    next: u64,
    /// All parts that wait or have started.
    parts: HashMap<u64, Part>,
    places: Places,
    /// Parts that may start, in order.
    ready: BTreeSet<u64>,
    ready_moves: BTreeSet<u64>,
    /// Domains in flight, each with the parts that wait only for this domain.
    domains: HashMap<String, Vec<u64>>,
    batches: usize,
    /// First part of the last batch, while it is in flight and not slow.
    gathering: Option<u64>,
    moves: usize,
    /// Number of parts checked.
    #[cfg(test)]
    steps: u64,
}

/// Senders to the callers of a batch, each with its share.
type Started = Vec<(oneshot::Sender<Share>, Share)>;

impl State {
    fn enqueue(&mut self, part: Part) -> u64 {
        self.next += 1;
        self.places.add(self.next, &part.paths);
        self.parts.insert(self.next, part);
        self.next
    }

    fn arm(&mut self, number: u64, waiting: Waiting) {
        if let Some(part) = self.parts.get_mut(&number) {
            part.stage = Stage::Blocked(waiting);
            self.unblock(number);
        }
    }

    fn cancel(&mut self, number: u64) {
        if self.parts.get(&number).is_some_and(|part| !matches!(part.stage, Stage::Started)) {
            self.ready.remove(&number);
            self.ready_moves.remove(&number);
            self.remove(number);
        }
    }

    /// Removes a part, and makes parts ready that waited for it.
    fn remove(&mut self, number: u64) {
        let Some(part) = self.parts.remove(&number) else { return };
        for next in self.places.remove(number, &part.paths) {
            self.unblock(next);
        }
    }

    fn unblock(&mut self, number: u64) {
        #[cfg(test)]
        (self.steps += 1);
        let Some(part) = self.parts.get_mut(&number) else { return };
        if !matches!(part.stage, Stage::Blocked(_)) || self.places.is_blocked(number, &part.paths) {
            return;
        }
        if let Stage::Blocked(waiting) = std::mem::replace(&mut part.stage, Stage::Later) {
            part.stage = Stage::Ready(waiting);
            self.make_ready(number);
        }
    }

    fn make_ready(&mut self, number: u64) {
        let Some(part) = self.parts.get(&number).filter(|part| matches!(part.stage, Stage::Ready(_))) else { return };
        let ready = if part.moves_directory { &mut self.ready_moves } else { &mut self.ready };
        ready.insert(number);
    }

    /// Forms batches of the ready parts.
    fn start_ready(&mut self, queue: &Queue) -> Started {
        let mut started = Started::new();
        while self.moves < MAX_MOVES {
            let Some(number) = self.ready_moves.pop_first() else { break };
            let mut claimed = HashSet::new();
            if self.claim(number, &mut claimed) {
                self.moves += 1;
                started.extend(self.start(queue, vec![number], claimed, true));
            }
        }
        while self.gathering.is_none() && self.batches < MAX_BATCHES {
            let mut claimed = HashSet::new();
            let numbers = self.gather(&mut claimed);
            let Some(first) = numbers.first() else { break };
            (self.batches, self.gathering) = (self.batches + 1, Some(*first));
            started.extend(self.start(queue, numbers, claimed, false));
        }
        started
    }

    /// Removes parts from the front of the order until a batch is full.
    fn gather(&mut self, claimed: &mut HashSet<String>) -> Vec<u64> {
        let (mut numbers, mut operations) = (Vec::new(), 0);
        while let Some(&number) = self.ready.first() {
            let Some(Part { stage: Stage::Ready(waiting), .. }) = self.parts.get(&number) else {
                self.ready.remove(&number);
                continue;
            };
            let more = waiting.operations.len();
            if !numbers.is_empty() && operations + more > MAX_ROUND {
                break;
            }
            self.ready.remove(&number);
            if self.claim(number, claimed) {
                operations += more;
                numbers.push(number);
            }
        }
        numbers
    }

    /// Claims the domains of a part for a batch that has already `claimed` some. If one is in use, the part
    /// waits for it.
    fn claim(&mut self, number: u64, claimed: &mut HashSet<String>) -> bool {
        #[cfg(test)]
        (self.steps += 1);
        let Some(part) = self.parts.get(&number) else { return false };
        for domain in &part.domains {
            if let Some(waiting) = self.domains.get_mut(domain).filter(|_| !claimed.contains(domain)) {
                waiting.push(number);
                return false;
            }
        }
        for domain in &part.domains {
            self.domains.entry(domain.clone()).or_default();
            claimed.insert(domain.clone());
        }
        true
    }

    fn start(&mut self, queue: &Queue, numbers: Vec<u64>, domains: HashSet<String>, moves: bool) -> Started {
        let mut operations = Vec::new();
        let (mut callers, mut execute) = (Vec::new(), None);
        let mut end: Option<Option<Instant>> = None;
        for number in &numbers {
            let Some(part) = self.parts.get_mut(number) else { continue };
            let Stage::Ready(waiting) = std::mem::replace(&mut part.stage, Stage::Started) else { continue };
            let range = operations.len()..operations.len() + waiting.operations.len();
            operations.extend(waiting.operations);
            callers.push((waiting.caller, range));
            execute.get_or_insert(waiting.execute);
            // No deadline is later than any deadline.
            end = Some(match (end, waiting.end) {
                (None, end) => end,
                (Some(Some(one)), Some(other)) => Some(one.max(other)),
                _ => None,
            });
        }
        let (Some(execute), end) = (execute, end.flatten()) else { return Vec::new() };
        let outcomes = Arc::new(Mutex::new(Vec::new()));
        let running = Running { queue: queue.clone(), numbers, domains, moves };
        let batch = deadline::apart(run(running, execute, operations, outcomes.clone(), end)).boxed().shared();
        let share = |range| Share { batch: batch.clone(), outcomes: outcomes.clone(), range, end };
        callers.into_iter().map(|(caller, range)| (caller, share(range))).collect()
    }

    fn end(&mut self, running: &Running) {
        if running.moves {
            self.moves -= 1;
        } else {
            self.batches -= 1;
        }
        self.stop_gathering(running);
        for number in &running.numbers {
            self.remove(*number);
        }
        for domain in &running.domains {
            for number in self.domains.remove(domain).unwrap_or_default() {
                self.make_ready(number);
            }
        }
    }

    fn stop_gathering(&mut self, running: &Running) {
        self.gathering = self.gathering.filter(|first| running.moves || running.numbers.first() != Some(first));
    }
}

/// A batch in flight. Dropping it releases its paths and starts parts that waited for them.
struct Running {
    queue: Queue,
    numbers: Vec<u64>,
    domains: HashSet<String>,
    moves: bool,
}

impl Drop for Running {
    fn drop(&mut self) {
        let queue = self.queue.clone();
        queue.update(|state| state.end(self));
    }
}

async fn run(
    running: Running,
    execute: Execute,
    operations: Vec<Op>,
    outcomes: Arc<Mutex<Vec<Option<Outcome>>>>,
    end: Option<Instant>,
) {
    let work = async {
        let work = execute(operations);
        match select(work, pin!(tokio::time::sleep(GATHER))).await {
            Either::Left((found, _)) => found,
            Either::Right(((), work)) => {
                running.queue.update(|state| state.stop_gathering(&running));
                work.await
            }
        }
    };
    let found = match end {
        Some(end) => deadline::within(end.saturating_duration_since(Instant::now()), work).await,
        None => work.await,
    };
    *outcomes.lock().unwrap_or_else(PoisonError::into_inner) = found.into_iter().map(Some).collect();
}

/// Index of parts by path, to find those that overlap. Parts are identified by number, in order of arrival.
#[derive(Default)]
pub(super) struct Places(HashMap<PlainPath, Place>);

#[derive(Default)]
struct Place {
    /// Parts that have this path.
    here: BTreeSet<u64>,
    /// Parts that have a path below it.
    below: BTreeSet<u64>,
}

impl Places {
    pub(super) fn add(&mut self, number: u64, paths: &[PlainPath]) {
        for path in paths {
            self.0.entry(path.clone()).or_default().here.insert(number);
            for ancestor in above(path) {
                self.0.entry(ancestor).or_default().below.insert(number);
            }
        }
    }

    /// Returns true if an earlier part has a path that overlaps with one of `paths`.
    pub(super) fn is_blocked(&self, number: u64, paths: &[PlainPath]) -> bool {
        let is_earlier = |parts: &BTreeSet<u64>| parts.first().is_some_and(|first| *first < number);
        paths.iter().any(|path| {
            let at = self.0.get(path);
            at.is_some_and(|place| is_earlier(&place.here) || is_earlier(&place.below))
                || above(path).any(|ancestor| self.0.get(&ancestor).is_some_and(|place| is_earlier(&place.here)))
        })
    }

    /// Removes a part. Returns the parts that may have waited for it.
    pub(super) fn remove(&mut self, number: u64, paths: &[PlainPath]) -> BTreeSet<u64> {
        for path in paths {
            self.remove_at(path, |place| place.here.remove(&number));
            for ancestor in above(path) {
                self.remove_at(&ancestor, |place| place.below.remove(&number));
            }
        }
        let first = |path: &PlainPath| self.0.get(path).and_then(|place| place.here.first().copied());
        let mut next = BTreeSet::new();
        for path in paths {
            let other = above(path).chain([path.clone()]).filter_map(|path| first(&path));
            let other: BTreeSet<u64> = other.collect();
            // Parts below the path may all proceed, up to the next one that has the whole directory.
            let end = other.first().copied().unwrap_or(u64::MAX);
            next.extend(self.0.get(path).into_iter().flat_map(|place| place.below.range(..end)));
            next.extend(other);
        }
        next
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn remove_at(&mut self, path: &PlainPath, remove: impl FnOnce(&mut Place) -> bool) {
        let Some(place) = self.0.get_mut(path) else { return };
        remove(place);
        if place.here.is_empty() && place.below.is_empty() {
            self.0.remove(path);
        }
    }
}

/// Returns the directories above a path, including the root.
fn above(path: &PlainPath) -> impl Iterator<Item = PlainPath> {
    let root = (!path.is_root()).then(PlainPath::root);
    ancestors(path).chain(root)
}
