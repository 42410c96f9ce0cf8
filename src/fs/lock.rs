//! Locks of the filesystem, each with a rank, so that any test that takes locks in a wrong order fails.
//!
//! Two threads that take two locks in opposite orders can wait for each other without end. [`Rank`] is therefore one
//! order for all locks of `fs`: a thread takes a lock only if its rank is higher than that of every lock that it
//! holds. In debug builds, each thread keeps a list of the locks that it holds. Taking a lock out of order panics
//! with both names. In release builds, [`Mutex`] is the standard mutex and nothing else.
//!
//! A panic in a detached task is easy to miss. After the first violation in a process, taking any lock panics with
//! the message of that violation. So a test or a daemon can't continue as if nothing had happened.
//!
//! **Async locks.** A file's draft and a directory's gate are async locks. They are held across awaits, and the task
//! that holds one moves between threads. A list per thread can't track them, so they have no rank here. Only one half
//! of their rule is checked: a task that waits for one of them (or for the journal) must hold no [`Mutex`], see
//! [`before_wait`]. The other half is simple enough to be kept by reading: a task holds at most one draft, and takes
//! no gate while it holds one.

use std::sync::PoisonError;
#[cfg(debug_assertions)]
use {std::any::type_name, std::cell::RefCell, std::panic::Location, std::sync::OnceLock};

/// Order of the locks, first to last. A lock is taken only while all locks that the thread holds come before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Rank {
    /// Threads of the journal, while they are joined.
    Threads,
    /// The inode table.
    Tree,
    /// Length, times and generations of one edit.
    Meta,
    /// Slots that are promised to accepted changes.
    Promises,
    /// The ledger and the queue of the journal.
    Journal,
    /// Tables of open handles.
    Handles,
    /// All edits, by file.
    Edits,
    /// Failures and progress of the schedule.
    Work,
    /// Every lock under which no other one is taken.
    Leaf,
}

#[cfg(debug_assertions)]
impl Rank {
    const ALL: [Self; 9] = [
        Self::Threads,
        Self::Tree,
        Self::Meta,
        Self::Promises,
        Self::Journal,
        Self::Handles,
        Self::Edits,
        Self::Work,
        Self::Leaf,
    ];
}

/// A mutex with a [`Rank`]. The rank is given as a number, because a type parameter can't be an enum.
#[derive(Default)]
pub(crate) struct Mutex<T, const RANK: u8 = { Rank::Leaf as u8 }>(std::sync::Mutex<T>);

impl<T, const RANK: u8> Mutex<T, RANK> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::sync::Mutex::new(value))
    }
}

/// The guard of a [`Mutex`]. It can't move to another thread, so a spawned task can't hold it across an await.
pub(crate) struct MutexGuard<'a, T, const RANK: u8 = { Rank::Leaf as u8 }> {
    value: std::sync::MutexGuard<'a, T>,
    held: Held,
}

impl<T, const RANK: u8> std::ops::Deref for MutexGuard<'_, T, RANK> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, const RANK: u8> std::ops::DerefMut for MutexGuard<'_, T, RANK> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Locks a mutex. Ignores poisoning: the request that panicked under the lock already got an error, and the others
/// can continue.
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn lock<T, const RANK: u8>(mutex: &Mutex<T, RANK>) -> MutexGuard<'_, T, RANK> {
    // The check comes first, so that a violation is reported instead of a deadlock.
    let held = Held::enter::<T>(RANK);
    MutexGuard { value: mutex.0.lock().unwrap_or_else(PoisonError::into_inner), held }
}

/// A condition variable for a [`Mutex`].
#[derive(Default)]
pub(crate) struct Condvar(std::sync::Condvar);

impl Condvar {
    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }

    /// Releases the lock, waits for a notification, and locks again.
    pub(crate) fn wait<'a, T, const RANK: u8>(&self, guard: MutexGuard<'a, T, RANK>) -> MutexGuard<'a, T, RANK> {
        let MutexGuard { value, held } = guard;
        MutexGuard { value: self.0.wait(value).unwrap_or_else(PoisonError::into_inner), held }
    }

    /// Waits while `condition` is true, but not longer than `timeout`.
    pub(crate) fn wait_timeout_while<T, const RANK: u8>(
        &self,
        guard: MutexGuard<'_, T, RANK>,
        timeout: std::time::Duration,
        condition: impl FnMut(&mut T) -> bool,
    ) {
        let MutexGuard { value, held: _held } = guard;
        drop(self.0.wait_timeout_while(value, timeout, condition));
    }
}

/// Checks that the thread holds no [`Mutex`]. The caller is about to wait for another task.
#[cfg_attr(debug_assertions, track_caller)]
pub(crate) fn before_wait(what: &'static str) {
    #[cfg(debug_assertions)]
    check(|held| match held.last() {
        Some(last) => Err(format!("lock order: waiting for {what} at {} while {last} is held", Location::caller())),
        None => Ok(()),
    });
    #[cfg(not(debug_assertions))]
    let _ = what;
}

/// The mark of a lock that the thread holds. It is empty in release builds.
struct Held {
    #[cfg(debug_assertions)]
    rank: Rank,
}

#[cfg(not(debug_assertions))]
impl Held {
    fn enter<T>(_: u8) -> Self {
        Self {}
    }
}

/// A lock that a thread holds.
#[cfg(debug_assertions)]
struct Name {
    rank: Rank,
    /// The type of the locked value.
    what: &'static str,
    at: &'static Location<'static>,
}

#[cfg(debug_assertions)]
impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} ({}, locked at {})", self.rank, self.what, self.at)
    }
}

#[cfg(debug_assertions)]
thread_local! {
    static HELD: RefCell<Vec<Name>> = const { RefCell::new(Vec::new()) };
}

/// The first violation of this process.
#[cfg(debug_assertions)]
static VIOLATION: OnceLock<String> = OnceLock::new();

/// Panics if `check` finds a violation, or if one was found earlier in the process. Does nothing while the thread is
/// already panicking.
#[cfg(debug_assertions)]
fn check(check: impl FnOnce(&mut Vec<Name>) -> Result<(), String>) {
    // A thread that is ending may have dropped its list already.
    let outcome = HELD.try_with(|held| check(&mut held.borrow_mut())).unwrap_or(Ok(()));
    if std::thread::panicking() {
        return;
    }
    if let Err(why) = outcome {
        let _ = VIOLATION.set(why);
    }
    if let Some(why) = VIOLATION.get() {
        panic!("{why}");
    }
}

/// Adds a lock to the list of held locks. Fails if the order is violated.
#[cfg(debug_assertions)]
fn push(held: &mut Vec<Name>, name: Name) -> Result<(), String> {
    let outcome = match held.iter().find(|earlier| earlier.rank >= name.rank) {
        Some(earlier) => Err(format!("lock order: {name} is taken while {earlier} is held")),
        None => Ok(()),
    };
    held.push(name);
    outcome
}

/// Removes a lock from the list of held locks. Guards may be dropped in any order.
#[cfg(debug_assertions)]
fn pop(held: &mut Vec<Name>, rank: Rank) {
    if let Some(at) = held.iter().rposition(|name| name.rank == rank) {
        held.remove(at);
    }
}

#[cfg(debug_assertions)]
impl Held {
    #[track_caller]
    fn enter<T>(rank: u8) -> Self {
        let rank = Rank::ALL[usize::from(rank)];
        let at = Location::caller();
        check(|held| push(held, Name { rank, what: type_name::<T>(), at }));
        Self { rank }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        // A thread that is ending may have dropped its list already.
        let _ = HELD.try_with(|held| pop(&mut held.borrow_mut(), self.rank));
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[track_caller]
    fn name(rank: Rank) -> Name {
        Name { rank, what: "test", at: Location::caller() }
    }

    #[test]
    fn rank_list_matches_discriminants() {
        for (at, rank) in Rank::ALL.into_iter().enumerate() {
            assert_eq!(rank as usize, at);
        }
    }

    #[test]
    fn lock_of_rank_not_above_held_one_is_refused_with_both_names() {
        for (first, second) in [(Rank::Journal, Rank::Meta), (Rank::Journal, Rank::Journal)] {
            let mut held = Vec::new();
            assert_eq!(push(&mut held, name(Rank::Tree)), Ok(()));
            assert_eq!(push(&mut held, name(first)), Ok(()));
            let why = push(&mut held, name(second)).unwrap_err();
            let names = [format!("{second:?} (test"), format!("while {first:?} (test")];
            assert!(names.iter().all(|name| why.contains(name)), "{why}");
        }
    }

    #[test]
    fn lock_released_out_of_order_is_no_longer_held() {
        let (tree, journal) = (Mutex::<_, { Rank::Tree as u8 }>::new(1), Mutex::<_, { Rank::Journal as u8 }>::new(2));
        for _ in 0..2 {
            let first = lock(&tree);
            let second = lock(&journal);
            drop(first);
            assert_eq!(HELD.with_borrow(|held| held.iter().map(|name| name.rank).collect::<Vec<_>>()), [Rank::Journal]);
            drop(second);
            before_wait("a test");
        }
    }
}
