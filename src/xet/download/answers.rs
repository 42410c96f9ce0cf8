//! Reconstruction answers, kept while they are of use.
//!
//! An answer's terms are good for ever and its URLs for about an hour. So a kept answer goes on telling where things
//! are, e.g. in the chunk cache, and is asked for again only before something is fetched by it. One that is denied
//! (403) is dropped and asked for once by all who were under it. Equal questions that are open at the same time are one
//! request; it is given up when nobody waits for it any more.
//!
//! Bounded in number and memory; the least recently used go first.

use super::layout::Layout;
use crate::{Cas, Error, Hash, Lookups, deadline};
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::sleep;

/// Most answers kept.
const MAX_ANSWERS: usize = 1024;
/// Most memory that they take, in bytes.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Pause before a shared question that failed is asked again by an operation whose deadline isn't over.
const AGAIN: Duration = Duration::from_secs(1);

type Question = (Hash, Range<u64>);
type Asking = BoxFuture<'static, Result<Arc<Layout>, Error>>;

/// Cheap to clone.
#[derive(Clone)]
pub(super) struct Answers {
    cas: Arc<dyn Cas>,
    /// How long URLs are used that don't say.
    life: Duration,
    lookups: Arc<Lookups>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    kept: HashMap<Hash, Vec<Kept>>,
    count: usize,
    bytes: usize,
    /// Counts uses.
    clock: u64,
    asking: HashMap<Question, WeakShared<Asking>>,
}

struct Kept {
    layout: Arc<Layout>,
    bytes: usize,
    used: u64,
}

impl Answers {
    pub(super) fn new(cas: Arc<dyn Cas>, life: Duration, lookups: Arc<Lookups>) -> Self {
        Self { cas, life, lookups, state: Arc::default() }
    }

    /// An answer that covers `range`: a kept one if no more than `slack` bytes beyond it would be fetched, else that to
    /// `question`, which contains `range`. Its URLs may be stale.
    pub(super) async fn find(
        &self,
        file: &Hash,
        range: &Range<u64>,
        slack: u64,
        question: Range<u64>,
    ) -> Result<Arc<Layout>, Error> {
        let most = (range.end - range.start).saturating_add(slack);
        let kept = self.state().find(file, |layout| layout.covers(range) && layout.cost(range) <= most);
        self.lookups.count(kept.is_some());
        if let Some(layout) = kept {
            return Ok(layout);
        }
        let layout = self.ask(file, question).await?;
        if layout.covers(range) {
            return Ok(layout);
        }
        match layout.covered().end <= range.start {
            true => Err(Error::RangeNotSatisfiable),
            false => Err(super::layout::malformed("it covers only a part of the range")),
        }
    }

    /// A kept answer that covers `range`, whatever fetching by it would cost.
    pub(super) fn kept(&self, file: &Hash, range: &Range<u64>) -> Option<Arc<Layout>> {
        self.state().find(file, |layout| layout.covers(range))
    }

    /// The same with other URLs, instead of an answer that is stale or was denied.
    pub(super) async fn renewed(&self, old: &Arc<Layout>) -> Result<Arc<Layout>, Error> {
        let other = {
            let mut state = self.state();
            state.remove(old);
            state.find(&old.file, |layout| layout.asked == old.asked)
        };
        match other {
            Some(layout) => Ok(layout),
            None => self.ask(&old.file, old.asked.clone()).await,
        }
    }

    /// Forgets what was said of `file`: reading by it failed in a way that another answer may not.
    pub(super) fn forget(&self, file: &Hash) {
        let mut state = self.state();
        for kept in state.kept.remove(file).unwrap_or_default() {
            state.count -= 1;
            state.bytes -= kept.bytes;
        }
    }

    /// Asks, or waits for the answer to the same question: until the operation's deadline, if it has one.
    async fn ask(&self, file: &Hash, range: Range<u64>) -> Result<Arc<Layout>, Error> {
        let question = (*file, range);
        let mut last = None;
        loop {
            let asking = {
                let mut state = self.state();
                match state.asking.get(&question).and_then(WeakShared::upgrade) {
                    Some(asking) => asking,
                    None => self.begin(&mut state, question.clone()),
                }
            };
            match deadline::timely(asking).await {
                Some(Err(error)) if error.is_transient() && deadline::current().is_some() => {
                    last = Some(error);
                    // It ended by itself, after a minute or so: this is no storm.
                    if deadline::timely(sleep(AGAIN)).await.is_some() {
                        continue;
                    }
                }
                Some(answer) => return answer,
                None => {}
            }
            let late = || Error::Network("reconstruction: not done by the deadline of the operation".to_owned());
            return Err(last.unwrap_or_else(late));
        }
    }

    fn begin(&self, state: &mut State, question: Question) -> Shared<Asking> {
        let answers = self.clone();
        let (file, range) = question.clone();
        let asking = async move {
            let result = answers.ask_unkept(&file, range.clone()).await.map(Arc::new);
            let mut state = answers.state();
            state.asking.remove(&(file, range));
            if let Ok(layout) = &result {
                state.keep(Arc::clone(layout));
            }
            result
        };
        // It belongs to all who wait for it.
        let asking = deadline::apart(asking).boxed().shared();
        // Those that were given up leave nothing but this.
        state.asking.retain(|_, asking| asking.upgrade().is_some_and(|asking| asking.peek().is_none()));
        if let Some(weak) = asking.downgrade() {
            state.asking.insert(question, weak);
        }
        asking
    }

    /// Asks, and keeps nothing.
    pub(super) async fn ask_unkept(&self, file: &Hash, range: Range<u64>) -> Result<Layout, Error> {
        Layout::of(*file, range.clone(), self.cas.reconstruction(file, Some(range)).await?, self.life)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, file: &Hash, fits: impl Fn(&Layout) -> bool) -> Option<Arc<Layout>> {
        self.clock += 1;
        // Later answers first: they are fresher.
        let kept = self.kept.get_mut(file)?.iter_mut().rev().find(|kept| fits(&kept.layout))?;
        kept.used = self.clock;
        Some(Arc::clone(&kept.layout))
    }

    fn keep(&mut self, layout: Arc<Layout>) {
        let bytes = layout.footprint();
        if bytes > MAX_BYTES / 4 {
            return;
        }
        self.clock += 1;
        let of_file = self.kept.entry(layout.file).or_default();
        of_file.retain(|kept| {
            let replaced = kept.layout.asked == layout.asked;
            (self.count, self.bytes) =
                if replaced { (self.count - 1, self.bytes - kept.bytes) } else { (self.count, self.bytes) };
            !replaced
        });
        of_file.push(Kept { layout, bytes, used: self.clock });
        (self.count, self.bytes) = (self.count + 1, self.bytes + bytes);
        while self.count > MAX_ANSWERS || self.bytes > MAX_BYTES {
            self.evict();
        }
    }

    /// Drops the tenth that was used longest ago: seldom enough that looking at all of them costs nothing.
    fn evict(&mut self) {
        let mut used: Vec<u64> = self.kept.values().flatten().map(|kept| kept.used).collect();
        let nth = used.len() / 10;
        let (_, &mut latest, _) = used.select_nth_unstable(nth);
        self.retain(|kept| kept.used > latest);
    }

    fn remove(&mut self, layout: &Arc<Layout>) {
        if let Some(of_file) = self.kept.get_mut(&layout.file) {
            let before = of_file.len();
            of_file.retain(|kept| {
                let is_it = Arc::ptr_eq(&kept.layout, layout);
                self.bytes -= if is_it { kept.bytes } else { 0 };
                !is_it
            });
            self.count -= before - of_file.len();
        }
    }

    fn retain(&mut self, stays: impl Fn(&Kept) -> bool) {
        self.kept.retain(|_, of_file| {
            of_file.retain(&stays);
            !of_file.is_empty()
        });
        self.count = self.kept.values().map(Vec::len).sum();
        self.bytes = self.kept.values().flatten().map(|kept| kept.bytes).sum();
    }
}
