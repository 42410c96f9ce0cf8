//! Tells which listings still hold, so that a directory isn't listed again while nothing has changed at the remote.
//!
//! The remote reports a revision, which changes with every change of its files. A listing that began while revision R
//! was the present one still holds if the remote reports R again. One such question serves all directories. It is asked
//! when the metadata TTL of a listing has passed, and by the poll, which runs at an interval of its own.
//!
//! Two changes in one moment may get the same revision. So a revision counts only if it was reported for some time
//! before the listing began ([`SETTLED`]).

use crate::fs::errno::Error;
use crate::fs::lock::{Mutex, lock};
use crate::store::View;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, watch};

/// Time after which a revision that was reported is surely that of a listing.
const SETTLED: Duration = Duration::from_secs(2);
/// Age at which a listing is made again although nothing seems to have changed.
const LONGEST: Duration = Duration::from_secs(600);
/// Longest wait for the answer of a poll.
const POLL_TIMEOUT: Duration = Duration::from_secs(30);

/// A revision, and when the first question began whose answer it was.
#[derive(Clone, PartialEq, Eq)]
struct Reported {
    revision: Arc<str>,
    since: Instant,
}

/// A listing's revision, and the time of the listing.
#[derive(Clone)]
pub(crate) struct Mark {
    revision: Arc<str>,
    listed: Instant,
}

#[derive(Default)]
struct State {
    /// The last answer. `None`: there is none, or the remote reports no revisions.
    reported: Option<Reported>,
    /// Start of the question that got this answer.
    asked: Option<Instant>,
    /// Listings that began before this lack a change of another client.
    stale_before: Option<Instant>,
    /// Last change by this mount.
    own_change: Option<Instant>,
    last_poll: Option<SystemTime>,
}

/// See the module.
pub(crate) struct Freshness {
    view: Arc<dyn View>,
    state: Mutex<State>,
    /// Held while the remote is asked.
    asking: tokio::sync::Mutex<()>,
    /// Limits the repeated listings that run at once.
    pub(crate) again: Semaphore,
}

impl Freshness {
    /// `listings`: repeated listings that may run at once, at least 1.
    pub(crate) fn new(view: Arc<dyn View>, listings: usize) -> Self {
        let (state, asking) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { view, state, asking, again: Semaphore::new(listings.max(1)) }
    }

    /// Asks for the present revision, unless that was asked less than `max_age` ago.
    pub(in crate::fs) async fn ask(&self, max_age: Duration) -> Result<(), Error> {
        let wanted = Instant::now();
        let _one_at_a_time = self.asking.lock().await;
        // An answer to a question that began after this one was wanted serves too.
        let is_enough = |asked: Instant| asked >= wanted || asked.elapsed() < max_age;
        if lock(&self.state).asked.is_some_and(is_enough) {
            return Ok(());
        }
        let began = Instant::now();
        let revision = self.view.revision().await?;
        self.note(began, revision.as_deref());
        Ok(())
    }

    fn note(&self, began: Instant, revision: Option<&str>) {
        let mut state = lock(&self.state);
        let before = state.reported.as_ref().map(|reported| reported.revision.clone());
        if before.as_deref() != revision {
            let was_own = state.own_change.is_some_and(|at| state.asked.is_none_or(|asked| at >= asked));
            if before.is_some() && !was_own {
                state.stale_before = Some(began);
            }
            state.reported = revision.map(|revision| Reported { revision: revision.into(), since: began });
        }
        state.asked = Some(began);
    }

    /// Returns the mark for a listing that began at `listed`. `None`: its revision isn't known.
    pub(crate) fn mark(&self, listed: Instant) -> Option<Mark> {
        let state = lock(&self.state);
        let reported = state.reported.as_ref().filter(|reported| listed >= reported.since + SETTLED)?;
        Some(Mark { revision: reported.revision.clone(), listed })
    }

    /// Returns true if a listing that began then lacks a change that the remote has reported.
    pub(crate) fn is_stale(&self, listed: Instant) -> bool {
        lock(&self.state).stale_before.is_some_and(|before| listed < before)
    }

    /// Asks whether a listing still holds, unless that was asked less than `max_age` ago. Returns the time until which
    /// it is known to hold. `None`: it has to be made again.
    pub(crate) async fn still_holds(&self, mark: &Mark, max_age: Duration) -> Option<Instant> {
        let is_own_change_newer = |state: &State| state.own_change.is_some_and(|at| at >= mark.listed);
        // After a change by this mount the answer is known.
        if mark.listed.elapsed() > LONGEST || is_own_change_newer(&lock(&self.state)) {
            return None;
        }
        self.ask(max_age)
            .await
            .inspect_err(|error| tracing::debug!(%error, "the Hub doesn't say what changed"))
            .ok()?;
        let state = lock(&self.state);
        let is_same = state.reported.as_ref().is_some_and(|reported| reported.revision == mark.revision);
        state.asked.filter(|_| is_same && !is_own_change_newer(&state))
    }

    /// Records that this mount is changing the remote.
    pub(crate) fn note_own_change(&self) {
        lock(&self.state).own_change = Some(Instant::now());
    }

    /// Returns the time of the last poll that got an answer.
    pub(crate) fn last_poll(&self) -> Option<SystemTime> {
        lock(&self.state).last_poll
    }

    /// Polls until the mount stops.
    pub(crate) async fn poll_loop(self: Arc<Self>, interval: Duration, mut stop: watch::Receiver<bool>) {
        loop {
            let answer = tokio::time::timeout(POLL_TIMEOUT, self.ask(Duration::ZERO));
            let answer = tokio::select! {
                answer = answer => answer.unwrap_or(Err(Error::TimedOut)),
                _ = stop.wait_for(|stop| *stop) => return,
            };
            match answer {
                Ok(()) => lock(&self.state).last_poll = Some(SystemTime::now()),
                Err(error) => tracing::warn!(%error, "the poll of the Hub failed"),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::memory_view::MemoryView;

    fn freshness() -> Freshness {
        Freshness::new(MemoryView::new(false), 1)
    }

    /// A time `seconds` after the start of a test's story.
    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn listing_has_the_revision_only_if_it_was_reported_some_time_before() {
        let (fresh, start) = (freshness(), Instant::now());
        assert!(fresh.mark(at(start, 100)).is_none(), "nothing was reported");
        fresh.note(start, Some("a"));
        assert!(fresh.mark(at(start, 1)).is_none());
        assert!(fresh.mark(at(start, 2)).is_some_and(|mark| *mark.revision == *"a"));
        fresh.note(at(start, 3), Some("a"));
        assert!(fresh.mark(at(start, 4)).is_some(), "it is the first report that counts");
        fresh.note(at(start, 5), Some("b"));
        assert!(fresh.mark(at(start, 6)).is_none());
        fresh.note(at(start, 8), None);
        assert!(fresh.mark(at(start, 100)).is_none());
    }

    #[test]
    fn change_by_others_makes_earlier_listings_stale_and_an_own_one_does_not() {
        let (fresh, start) = (freshness(), Instant::now());
        fresh.note(start, Some("a"));
        assert!(!fresh.is_stale(start), "the first report is no change");
        fresh.note(at(start, 5), Some("b"));
        assert!(fresh.is_stale(at(start, 4)) && !fresh.is_stale(at(start, 5)));
        lock(&fresh.state).own_change = Some(at(start, 6));
        fresh.note(at(start, 10), Some("c"));
        assert!(!fresh.is_stale(at(start, 9)));
        fresh.note(at(start, 15), Some("d"));
        assert!(fresh.is_stale(at(start, 14)));
    }
}
