//! Lets the writers of one object take turns.
//!
//! A writer with a condition checks the present version and then commits. No other writer of this gateway may commit in
//! between: the store alone would accept two writers of equal content, because it takes the second one for a repetition
//! of the first.

use crate::store::PlainPath;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::OwnedMutexGuard;

/// The turns of the objects of one bucket. The outer lock is never held over an await.
#[derive(Default)]
pub(super) struct Turns(Mutex<HashMap<PlainPath, Weak<tokio::sync::Mutex<()>>>>);

/// Number of objects at which those without a writer are removed.
const SWEEP: usize = 1024;

impl Turns {
    /// Waits for the turn of a writer. It ends when the result is dropped.
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
}
