//! Waits until pending changes are at the remote: `flush`, and the end of a mount.

use crate::fs::content::edit::Edit;
use crate::fs::ids::{FileNo, OpNo};
use crate::fs::journal::queue::PathSet;
use crate::fs::options::Drained;
use crate::fs::sync::Sync;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Shortest and longest interval at which a waiting flush checks if uploads advance.
const STALL_CHECK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// The changes that a flush waits for.
struct Remaining {
    /// Files, with the generations that they had at the start of the flush. The newest file comes first.
    files: Vec<(u64, Arc<Edit>)>,
    /// The last operation that was in the queue.
    last: Option<OpNo>,
}

impl Sync {
    /// Waits until the remote has all changes that were pending at the call, or the deadline has passed.
    pub(crate) async fn flush(&self, deadline: Option<Duration>) -> Drained {
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        self.flush_until(over).await
    }

    /// Flushes for as long as there is progress. Ends early when, for `stalled`, no upload has advanced and no commit
    /// has succeeded.
    pub(crate) async fn flush_unless_stalled(&self, stalled: Duration) -> Drained {
        let over = async {
            let achieved = || self.schedule.progress();
            let (mut last, mut since) = (achieved(), Instant::now());
            loop {
                tokio::time::sleep((stalled / 4).clamp(STALL_CHECK.0, STALL_CHECK.1)).await;
                let now = achieved();
                if now != last {
                    (last, since) = (now, Instant::now());
                } else if since.elapsed() >= stalled {
                    return;
                }
            }
        };
        self.flush_until(over).await
    }

    async fn flush_until(&self, over: impl Future<Output = ()>) -> Drained {
        let before = self.schedule.counters().flushed;
        let mut remaining = self.remaining();
        self.schedule.clear_failures();
        remaining.files.iter().for_each(|(_, edit)| self.schedule.flush_early(edit));
        self.schedule.wake();
        let mut progress = self.schedule.changes();
        let mut stop = self.stop.subscribe();
        let work = async {
            while !self.is_flushed(&mut remaining) {
                if progress.changed().await.is_err() {
                    return;
                }
            }
            self.find_committed_twins().await;
        };
        // Changes that aren't done by then are counted below.
        tokio::select! {
            () = work => {}
            () = over => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        let pending = self.left(&remaining);
        let counters = self.schedule.counters();
        Drained { flushed: counters.flushed - before, pending, conflicts: counters.conflicts }
    }

    /// Counts files and changes of names that the remote lacks. Later changes, and files that wait for their `close`,
    /// don't belong to this flush.
    fn left(&self, remaining: &Remaining) -> u64 {
        let is_left = |(generation, edit): &&(u64, Arc<Edit>)| {
            !edit.has_committed(*generation) && self.schedule.is_to_be_flushed(edit.file)
        };
        let files = remaining.files.iter().filter(is_left).count();
        let ledger = self.journal.ledger();
        let ops = ledger.queue().iter().take_while(|(op, _)| Some(*op) <= remaining.last);
        (files + ops.filter(|(_, what)| what.changes_names()).count()) as u64
    }

    fn remaining(&self) -> Remaining {
        let dirty = self.schedule.edits().into_iter().rev().filter(|edit| edit.is_dirty());
        let files = dirty.map(|edit| (edit.generation(), edit)).collect();
        let last = self.journal.ledger().queue().iter().next_back().map(|(op, _)| op);
        Remaining { files, last }
    }

    /// Returns true if the remote has all of `remaining`, except those that wait for the user: parked changes, and
    /// those that are queued after a parked one. It is called after each change, so files that are committed are
    /// dropped from `remaining` and checked only once.
    fn is_flushed(&self, remaining: &mut Remaining) -> bool {
        while remaining.files.last().is_some_and(|(generation, edit)| edit.has_committed(*generation)) {
            remaining.files.pop();
        }
        let Some(waiting) = self.waiting_for_user(remaining.last) else { return false };
        let is_undone = |(generation, edit): &(u64, Arc<Edit>)| {
            !edit.has_committed(*generation)
                && self.schedule.is_to_be_flushed(edit.file)
                && !self.schedule.is_parked(edit)
                && !waiting.contains(&edit.file)
        };
        !remaining.files.iter().rev().any(is_undone)
    }

    /// Returns the files whose commits are parked, or are queued after a parked operation. Returns `None` if an
    /// operation up to `last` is still to be carried out.
    fn waiting_for_user(&self, last: Option<OpNo>) -> Option<HashSet<FileNo>> {
        let ledger = self.journal.ledger();
        let mut files = HashSet::new();
        if !self.schedule.has_parked_ops() {
            let is_later = ledger.queue().iter().next().is_none_or(|(op, _)| Some(op) > last);
            return is_later.then_some(files);
        }
        let mut waiting = PathSet::default();
        for (op, what) in ledger.queue().iter() {
            if self.schedule.is_op_parked(op) || what.paths().any(|path| waiting.overlaps(path)) {
                what.paths().for_each(|path| waiting.insert(path));
                files.extend(what.put_file());
            } else if Some(op) <= last {
                return None;
            }
        }
        Some(files)
    }
}
