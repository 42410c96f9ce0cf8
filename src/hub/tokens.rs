//! CAS tokens of one bucket: cached per scope, refreshed early, asked for once however many want
//! one (Hub API spec, 4.4).

use super::{BucketId, Error, Hub};
use crate::xet;
use crate::xet::{CasToken, Scope, TokenSource, deadline};
use async_trait::async_trait;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::Mutex;

/// A token counts as expired this long before it is, in seconds: a request under way should end
/// before. What the reference client takes.
const EARLY: u64 = 30;

/// CAS tokens of one bucket: cached per scope, refreshed 30 s before expiry or when the CAS refused one; single flight.
///
/// Transient failures become `xet::Error::Network` or `xet::Error::Status`. All others become `xet::Error::Token`
/// around an `Arc<hub::Error>`.
pub fn bucket_tokens(hub: Arc<dyn Hub>, bucket: BucketId) -> Arc<dyn TokenSource> {
    Arc::new(BucketTokens { hub, bucket, read: Mutex::default(), write: Mutex::default(), now: unix_now })
}

struct BucketTokens {
    hub: Arc<dyn Hub>,
    bucket: BucketId,
    /// Each is held while the Hub is asked: whoever else wants a token waits for that answer. A caller that is dropped
    /// while it asks leaves the lock to the next one, who asks anew.
    read: Mutex<Option<Latest>>,
    write: Mutex<Option<Latest>>,
    /// Unix seconds.
    now: fn() -> u64,
}

/// The Hub's last answer, and when it came.
struct Latest {
    at: Instant,
    answer: Result<CasToken, Arc<Error>>,
}

#[async_trait]
impl TokenSource for BucketTokens {
    async fn token(&self, scope: Scope, refused: Option<&CasToken>) -> Result<CasToken, xet::Error> {
        let asked = Instant::now();
        let lock = match scope {
            Scope::Read => self.read.lock(),
            Scope::Write => self.write.lock(),
        };
        // Another operation asks, whose deadline may be later.
        let late = || xet::Error::Network("no CAS token by the deadline of the operation".to_owned());
        let mut latest = deadline::timely(lock).await.ok_or_else(late)?;
        if let Some(answer) = latest.as_ref().and_then(|latest| self.usable(latest, asked, refused)) {
            return answer;
        }
        let answer = self.hub.cas_token(&self.bucket, scope).await.map_err(Arc::new);
        *latest = Some(Latest { at: Instant::now(), answer: answer.clone() });
        match answer {
            Ok(token) if Some(&token) == refused => Err(xet::Error::Unauthorized),
            Ok(token) => Ok(token),
            Err(error) => Err(outward(error)),
        }
    }
}

impl BucketTokens {
    /// The last answer, if it may serve a caller that came at `asked`: a token that is good for a
    /// while, or anything that came while that caller waited. So neither a failing Hub nor a clock
    /// that is off makes a queue in which each asks for itself.
    fn usable(
        &self,
        latest: &Latest,
        asked: Instant,
        refused: Option<&CasToken>,
    ) -> Option<Result<CasToken, xet::Error>> {
        let meanwhile = latest.at > asked;
        match &latest.answer {
            Ok(token) if Some(token) == refused => None,
            Ok(token) => {
                let fresh = token.expires > (self.now)().saturating_add(EARLY);
                (fresh || meanwhile).then(|| Ok(token.clone()))
            }
            Err(error) => meanwhile.then(|| Err(outward(error.clone()))),
        }
    }
}

fn outward(error: Arc<Error>) -> xet::Error {
    match &*error {
        Error::Network(_) => xet::Error::Network(error.to_string()),
        Error::Status { status, message } if error.is_transient() => {
            xet::Error::Status { status: *status, message: format!("CAS token: {message}") }
        }
        _ => xet::Error::Token(error),
    }
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{BatchOp, BatchOutcome, BucketInfo, Cursor, FileEntry, Identity, TreePage};
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// A Hub that has nothing but tokens: it answers in turn, each answer when a permit is there.
    struct Tokens {
        answers: std::sync::Mutex<VecDeque<Result<CasToken, Error>>>,
        permits: Semaphore,
        asked: AtomicUsize,
    }

    fn absent<T>() -> Result<T, Error> {
        Err(Error::Local("a Hub of tokens only".to_owned()))
    }

    #[async_trait]
    impl Hub for Tokens {
        async fn whoami(&self) -> Result<Identity, Error> {
            absent()
        }
        async fn create_bucket(&self, _: &BucketId, _: bool, _: bool) -> Result<(), Error> {
            absent()
        }
        async fn bucket_info(&self, _: &BucketId) -> Result<BucketInfo, Error> {
            absent()
        }
        async fn list_buckets(&self, _: &str) -> Result<Vec<BucketInfo>, Error> {
            absent()
        }
        async fn delete_bucket(&self, _: &BucketId) -> Result<(), Error> {
            absent()
        }
        async fn tree_page(&self, _: &BucketId, _: &str, _: bool, _: Option<&Cursor>) -> Result<TreePage, Error> {
            absent()
        }
        async fn paths_info(&self, _: &BucketId, _: &[String]) -> Result<Vec<FileEntry>, Error> {
            absent()
        }
        async fn batch_within(&self, _: &BucketId, _: &[BatchOp], _: Duration) -> Result<BatchOutcome, Error> {
            absent()
        }
        async fn cas_token(&self, _: &BucketId, _: Scope) -> Result<CasToken, Error> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            self.permits.acquire().await.unwrap().forget();
            self.answers.lock().unwrap().pop_front().unwrap_or_else(absent)
        }
    }

    /// The tests' clock, in Unix seconds.
    const NOW: u64 = 1_000_000;

    fn token(name: &str, expires: u64) -> CasToken {
        CasToken { url: "http://c".to_owned(), token: name.to_owned(), expires }
    }

    fn source(answers: Vec<Result<CasToken, Error>>, permits: usize) -> (Arc<Tokens>, Arc<BucketTokens>) {
        let answers = std::sync::Mutex::new(answers.into());
        let hub = Arc::new(Tokens { answers, permits: Semaphore::new(permits), asked: AtomicUsize::new(0) });
        let bucket = BucketId::new("ns", "b").unwrap();
        let tokens =
            BucketTokens { hub: hub.clone(), bucket, read: Mutex::default(), write: Mutex::default(), now: || NOW };
        (hub, Arc::new(tokens))
    }

    fn asked(hub: &Tokens) -> usize {
        hub.asked.load(Ordering::SeqCst)
    }

    /// Tasks that all want a read token; they have come to their wait when this returns.
    async fn crowd(tokens: &Arc<BucketTokens>) -> Vec<tokio::task::JoinHandle<Result<CasToken, xet::Error>>> {
        let want = || {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.token(Scope::Read, None).await })
        };
        let tasks: Vec<_> = (0..8).map(|_| want()).collect();
        for _ in 0..32 {
            tokio::task::yield_now().await;
        }
        tasks
    }

    #[tokio::test]
    async fn a_token_is_kept_per_scope_until_30_seconds_before_its_end() {
        let (hub, tokens) =
            source(vec![Ok(token("r1", NOW + 31)), Ok(token("w", NOW + 30)), Ok(token("w2", NOW + 99))], 9);
        for _ in 0..3 {
            assert_eq!(tokens.token(Scope::Read, None).await.unwrap().token, "r1");
        }
        assert_eq!(asked(&hub), 1);
        assert_eq!(tokens.token(Scope::Write, None).await.unwrap().token, "w");
        assert_eq!(tokens.token(Scope::Write, None).await.unwrap().token, "w2");
        assert_eq!(asked(&hub), 3);
    }

    #[tokio::test]
    async fn a_crowd_asks_once() {
        for answer in [token("t", NOW + 99), token("expired by our clock", 0)] {
            let (hub, tokens) = source(vec![Ok(answer.clone())], 0);
            let tasks = crowd(&tokens).await;
            hub.permits.add_permits(9);
            for task in tasks {
                assert_eq!(task.await.unwrap().unwrap(), answer);
            }
            assert_eq!(asked(&hub), 1);
        }
    }

    #[tokio::test]
    async fn a_crowd_shares_a_failure_and_the_next_caller_asks_anew() {
        let (hub, tokens) = source(vec![Err(Error::Network("down".to_owned())), Ok(token("t", NOW + 99))], 0);
        let tasks = crowd(&tokens).await;
        hub.permits.add_permits(9);
        for task in tasks {
            assert!(matches!(task.await.unwrap(), Err(xet::Error::Network(_))));
        }
        assert_eq!(asked(&hub), 1);
        assert_eq!(tokens.token(Scope::Read, None).await.unwrap().token, "t");
    }

    #[tokio::test]
    async fn who_is_dropped_while_asking_leaves_it_to_the_next() {
        let (hub, tokens) = source(vec![Ok(token("t", NOW + 99))], 0);
        let mut tasks = crowd(&tokens).await;
        assert_eq!(asked(&hub), 1);
        let first = tasks.remove(0);
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        hub.permits.add_permits(9);
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap().token, "t");
        }
        assert_eq!(asked(&hub), 2);
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_once() {
        let (hub, tokens) = source(vec![Ok(token("old", NOW + 99)), Ok(token("new", NOW + 99))], 9);
        let old = tokens.token(Scope::Read, None).await.unwrap();
        assert_eq!(tokens.token(Scope::Read, Some(&old)).await.unwrap().token, "new");
        // Another request was refused with the old one too, but comes later: the new one is there.
        assert_eq!(tokens.token(Scope::Read, Some(&old)).await.unwrap().token, "new");
        assert_eq!(asked(&hub), 2);
    }

    #[tokio::test]
    async fn the_refused_token_is_never_handed_out_again() {
        let old = token("old", NOW + 99);
        let (_hub, tokens) = source(vec![Ok(old.clone()), Ok(old.clone()), Ok(old.clone())], 9);
        tokens.token(Scope::Read, None).await.unwrap();
        for _ in 0..2 {
            assert!(matches!(tokens.token(Scope::Read, Some(&old)).await, Err(xet::Error::Unauthorized)));
        }
    }

    #[tokio::test]
    async fn failures_keep_their_kind() {
        let busy = Error::Status { status: 503, message: "busy".to_owned() };
        let (_hub, tokens) = source(vec![Err(busy), Err(Error::Forbidden("no".to_owned()))], 9);
        let error = tokens.token(Scope::Write, None).await.unwrap_err();
        assert!(error.is_transient() && matches!(error, xet::Error::Status { status: 503, .. }));
        let Err(xet::Error::Token(source)) = tokens.token(Scope::Write, None).await else {
            panic!("not a token error")
        };
        assert!(matches!(source.downcast_ref::<Error>(), Some(Error::Forbidden(_))));
    }
}
