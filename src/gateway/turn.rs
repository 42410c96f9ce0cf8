//! Lets the writers of one object take turns.
//!
//! A writer with a condition checks the present version and then commits. No other writer may commit in between: the
//! store alone would accept two writers of equal content, because it takes the second one for a repetition of the
//! first. Writers of one gateway wait for a lock. Gateways that share their state also take a lease of the object
//! there.

use super::record::path_digest;
use super::state::State;
use super::{Bucket, Error, WAIT, random_name};
use crate::store::PlainPath;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Number of objects at which those without a writer are removed.
const SWEEP: usize = 1024;
/// Time after which the lease of a gateway that has died ends. It is renewed long before.
const LEASE: Duration = Duration::from_secs(15);
/// Part of it for which the gateway trusts its clock.
const SURE: Duration = Duration::from_secs(12);
/// First and longest time between two tries to take a lease.
const LOOKS: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(200));

/// The locks of the objects of one bucket. The outer lock is never held over an await.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<PlainPath, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits for the other writers of this gateway.
    pub(super) async fn of(&self, path: &PlainPath) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if turns.len() >= SWEEP {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            match turns.get(path).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    turns.insert(path.clone(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// The turn of a writer. It ends when this is dropped.
pub(super) struct Turn {
    /// Empty once the turn has ended.
    own: Option<OwnedMutexGuard<()>>,
    lease: Option<Lease>,
}

impl Turn {
    /// Fails if another gateway may have the turn by now.
    pub(super) fn check(&self) -> Result<(), Error> {
        let lost = self.lease.as_ref().is_some_and(|lease| lease.valid().is_none_or(|valid| Instant::now() >= valid));
        if lost { Err(Error::Busy) } else { Ok(()) }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let (own, Some(lease)) = (self.own.take(), self.lease.take()) else { return };
        lease.renewal.abort();
        // The next writer of this gateway waits until the lease has ended, else it would find it taken.
        tokio::spawn(async move {
            if let Err(error) = lease.state.end_lease(lease.name, &lease.owner).await {
                tracing::warn!(%error, "cannot end the lease of an object: writers of other gateways wait for 15 s");
            }
            drop(own);
        });
    }
}

/// Until when a lease holds for certain. `None`: it is lost. Never held over an await.
type Valid = Arc<Mutex<Option<Instant>>>;

/// A lease of the shared state.
struct Lease {
    state: Arc<dyn State>,
    name: [u8; 32],
    owner: String,
    valid: Valid,
    renewal: JoinHandle<()>,
}

impl Lease {
    /// Takes a lease, after waiting for the gateway that has it.
    async fn take(state: Arc<dyn State>, name: [u8; 32], gateway: &str) -> Result<Self, Error> {
        let owner = format!("{gateway} {}", random_name()?);
        let (deadline, mut wait) = (Instant::now() + WAIT, LOOKS.0);
        let taken = loop {
            let asked = Instant::now();
            if state.lease(name, &owner, LEASE).await? {
                break asked;
            }
            if Instant::now() >= deadline {
                return Err(Error::Busy);
            }
            tokio::time::sleep(wait).await;
            wait = (2 * wait).min(LOOKS.1);
        };
        let valid = Valid::new(Mutex::new(Some(taken + SURE)));
        let renewal = tokio::spawn(renew(state.clone(), name, owner.clone(), valid.clone()));
        Ok(Self { state, name, owner, valid, renewal })
    }

    fn valid(&self) -> Option<Instant> {
        *self.valid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Renews a lease until it is lost. A lease that has run out is lost, also if nobody has it: somebody may have had it
/// meanwhile.
async fn renew(state: Arc<dyn State>, name: [u8; 32], owner: String, valid: Valid) {
    let set = |until| *valid.lock().unwrap_or_else(PoisonError::into_inner) = until;
    let get = || *valid.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        tokio::time::sleep(LEASE / 5).await;
        let asked = Instant::now();
        let Some(left) = get().map(|until| until.saturating_duration_since(asked)).filter(|left| !left.is_zero())
        else {
            return set(None);
        };
        match tokio::time::timeout(left, state.lease(name, &owner, LEASE)).await {
            Ok(Ok(true)) => set(Some(asked + SURE)),
            // The state can't be reached, but the lease still has time.
            Ok(Err(_)) => {}
            _ => return set(None),
        }
    }
}

impl Bucket {
    /// Waits for the turn of a writer of an object, at most as long as the state's failure or another gateway allows.
    pub(super) async fn turn(&self, path: &PlainPath) -> Result<Turn, Error> {
        let own = Some(self.turns.of(path).await);
        let lease = match self.state.is_shared() {
            true => Some(Lease::take(self.state.clone(), path_digest(&*self.view, path), &self.owner).await?),
            false => None,
        };
        Ok(Turn { own, lease })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::PlainPath;
    use futures::FutureExt;

    #[tokio::test]
    async fn writers_of_one_object_take_turns_and_others_do_not_wait() {
        let turns = Turns::default();
        let path = |text: &str| PlainPath::new(text).unwrap();
        let first = turns.of(&path("a")).await;
        assert!(turns.of(&path("a")).now_or_never().is_none());
        for number in 0..3 * SWEEP {
            drop(turns.of(&path(&number.to_string())).await);
        }
        assert!(turns.0.lock().unwrap().len() <= SWEEP);
        assert!(turns.of(&path("a")).now_or_never().is_none());
        drop(first);
        assert!(turns.of(&path("a")).now_or_never().is_some());
    }

    fn turn(lease: Lease) -> Turn {
        Turn { own: Arc::new(tokio::sync::Mutex::new(())).try_lock_owned().ok(), lease: Some(lease) }
    }

    #[tokio::test]
    async fn lease_lasts_while_its_turn_does_and_its_loss_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let state: Arc<dyn State> =
            Arc::new(crate::gateway::state::sqlite::Sqlite::open(&folder.path().join("s")).unwrap());
        let first = turn(Lease::take(state.clone(), [1; 32], "one").await.unwrap());
        let others = tokio::spawn(Lease::take(state.clone(), [1; 32], "two"));
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!others.is_finished() && first.check().is_ok());
        drop(first);
        let second = others.await.unwrap().unwrap();
        // As if the gateway had been frozen for longer than the lease, and another one had taken it.
        state.end_lease([1; 32], &second.owner).await.unwrap();
        assert!(state.lease([1; 32], "three", LEASE).await.unwrap());
        let second = turn(second);
        tokio::time::timeout(LEASE / 2, async {
            while second.check().is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the renewal finds the lease taken");
        drop(second);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(!state.lease([1; 32], "four", LEASE).await.unwrap(), "the lease of the new owner stays");
    }
}
