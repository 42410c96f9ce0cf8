//! What the CAS has from elsewhere: other sessions, other clients (Xet spec, 8.2 and 10.4).
//!
//! A chunk of another session is only ever used because an answer of *this* session says which xorb
//! holds it. Shards on disk, of earlier sessions ([`LocalShards`]), are hints: they say which
//! question will be answered with a xorb that has the chunk, and nothing of their content is
//! believed. So a CAS that has lost its data, or a new one at an old address, gets everything again,
//! where a client that trusts its own cache would register files over xorbs that exist nowhere.
//!
//! Questions cost a round trip and a shard. They are asked for chunks of the kind that the CAS answers for, at least
//! [`SPACING`] chunks apart in a file, [`AT_ONCE`] at a time, and never twice. A file waits for an answer at most
//! [`PATIENCE`], and not at all while answers are of no use. Errors are no answer.

#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod known;
mod local;

pub(super) use known::{Known, KnownXorb};
pub use local::{LocalLimits, LocalShards};

use super::content::Chunk;
use crate::offload::offload;
use crate::shard::Shard;
use crate::{Cas, Hash};
use futures::future::join_all;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A chunk whose hash is 0 modulo this may be asked for, as may the first one of a file.
const ELIGIBLE: u64 = 1024;
/// Chunks of a file between two that are asked for.
const SPACING: u64 = 256;
/// Questions under way.
const AT_ONCE: usize = 2;
/// How long a file waits for an answer: a slow one is of use to what comes later.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long an answer is waited for at all.
const DEADLINE: Duration = Duration::from_secs(30);
/// Answers without a xorb, one after the other, after which no file waits any more until there is one.
const USELESS: u32 = 3;
/// Bytes of content that are worth a question of their own: an answer may be as long.
const WORTH_ASKING: u64 = 256 * 1024;
/// Xorbs of an answer whose chunks later reads are checked against: each is a file on disk. An
/// answer with more is one of small ones.
const MAX_NOTED: usize = 1024;
/// Questions of a session: bounds what is remembered of them.
const MAX_QUESTIONS: usize = 1 << 16;

/// Whether the CAS answers for this chunk wherever it stands in its file.
pub(super) fn is_eligible(chunk: &Hash) -> bool {
    chunk.modulo(ELIGIBLE) == 0
}

/// What a session asks the CAS. Dropping it ends the questions under way.
pub(super) struct Dedup {
    cas: Arc<dyn Cas>,
    local: Option<LocalShards>,
    /// What reads are checked against; learns what answers tell.
    lists: Option<crate::Known>,
    shared: Arc<Mutex<State>>,
    asking: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    known: Known,
    asked: HashSet<Hash>,
    /// Answers without a xorb since the last one with one.
    useless: u32,
}

/// Where a file stands.
#[derive(Default)]
pub(super) struct Asker {
    /// Chunks seen.
    seen: u64,
    /// The last one asked for.
    last: Option<u64>,
}

impl Dedup {
    pub(super) fn new(cas: Arc<dyn Cas>, local: Option<LocalShards>, lists: Option<crate::Known>) -> Self {
        Self { cas, local, lists, shared: Arc::default(), asking: Mutex::default() }
    }

    /// What is known by now. The lock is held for as long.
    pub(super) fn known(&self) -> KnownGuard<'_> {
        KnownGuard(self.state())
    }

    /// Asks, and waits a while for the answers unless `is_last` says that they can't be of use to this file.
    pub(super) async fn ask_all(&self, questions: Vec<Hash>, is_last: bool) {
        let waiting: Vec<_> = questions.into_iter().filter_map(|question| self.ask(question)).collect();
        if !waiting.is_empty() && !is_last && self.state().useless < USELESS {
            // Whatever has come by then is used.
            let _ = timeout(PATIENCE, join_all(waiting)).await;
        }
    }

    /// What is worth asking among the next chunks of a file, of which `is_stored` knows some.
    pub(super) fn questions(
        &self,
        asker: &mut Asker,
        chunks: &[Chunk],
        is_stored: impl Fn(&Hash) -> bool,
    ) -> Vec<Hash> {
        let bytes: u64 = chunks.iter().map(|chunk| u64::from(chunk.raw_len)).sum();
        let state = self.state();
        let mut questions = Vec::new();
        for chunk in chunks {
            let nth = asker.seen;
            asker.seen += 1;
            if questions.len() == AT_ONCE || is_stored(&chunk.hash) || state.known.find(&chunk.hash).is_some() {
                continue;
            }
            let is_new = |question: &Hash| !state.asked.contains(question) && !questions.contains(question);
            if let Some(hint) = self.local.as_ref().and_then(|local| local.hint(&chunk.hash)).filter(is_new) {
                questions.push(hint);
                continue;
            }
            let is_apart = asker.last.is_none_or(|last| nth - last >= SPACING);
            let is_worth = nth > 0 || bytes >= WORTH_ASKING;
            if (nth == 0 || is_eligible(&chunk.hash)) && is_apart && is_worth && is_new(&chunk.hash) {
                asker.last = Some(nth);
                questions.push(chunk.hash);
            }
        }
        questions
    }

    /// Starts to ask, unless enough questions are under way. What is given completes with the answer.
    fn ask(&self, question: Hash) -> Option<oneshot::Receiver<()>> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        while asking.try_join_next().is_some() {}
        let mut state = self.state();
        if asking.len() >= AT_ONCE || state.asked.len() == MAX_QUESTIONS || !state.asked.insert(question) {
            return None;
        }
        let (answered, answer) = oneshot::channel();
        let (cas, local, lists) = (Arc::clone(&self.cas), self.local.clone(), self.lists.clone());
        let shared = Arc::clone(&self.shared);
        asking.spawn(async move {
            let found = match timeout(DEADLINE, cas.query_chunk(&question)).await {
                Ok(Ok(Some(body))) => {
                    // It may write files.
                    let learn = move || learn(&question, &body, &shared, local.as_ref(), lists.as_ref());
                    offload(usize::MAX, learn).await
                }
                _ => note(&shared, 0),
            };
            tracing::debug!(chunk = %question, xorbs = found, "asked for a chunk");
            // Nobody may wait any more.
            let _ = answered.send(());
        });
        Some(answer)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lock on what is known.
pub(super) struct KnownGuard<'a>(MutexGuard<'a, State>);

impl std::ops::Deref for KnownGuard<'_> {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.0.known
    }
}

/// Takes an answer in; gives the number of xorbs learnt.
fn learn(
    question: &Hash,
    body: &[u8],
    shared: &Mutex<State>,
    local: Option<&LocalShards>,
    lists: Option<&crate::Known>,
) -> usize {
    let Some((footer, xorbs)) = Shard::parse(body).ok().and_then(|shard| {
        let key = shard.footer.as_ref()?.hmac_key;
        Some((shard.footer?, known::checked(key, shard.xorbs)))
    }) else {
        return note(shared, 0);
    };
    let count = xorbs.len();
    if let Some(local) = local.filter(|_| count > 0) {
        // A cache: what can't be kept is asked for again.
        local.keep_answer(question, body, footer.expires);
    }
    if let Some(lists) = lists {
        for xorb in xorbs.iter().take(MAX_NOTED) {
            // What isn't plausible was left out already.
            let _ = lists.note_answer(&xorb.hash, footer.hmac_key, footer.expires, xorb.chunks());
        }
    }
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    xorbs.into_iter().for_each(|xorb| state.known.insert(xorb));
    drop(state);
    note(shared, count)
}

fn note(shared: &Mutex<State>, found: usize) -> usize {
    let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
    state.useless = if found > 0 { 0 } else { state.useless.saturating_add(1) };
    found
}
