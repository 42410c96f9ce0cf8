//! Times that are set alone.

use crate::store::testing::{Fault, Keyed, hash_of, path, put};
use crate::store::{Change, Expect, Op, Outcome};
use time::OffsetDateTime;

const EARLIER: OffsetDateTime = time::macros::datetime!(1999-01-02 03:04:05 UTC);

fn set_modified(content: &str) -> Op {
    let change = Change::SetModified { mtime: EARLIER };
    Op { path: path("f"), expect: Expect::Is(hash_of(content).into()), change }
}

#[tokio::test(start_paused = true)]
async fn earlier_time_is_set_and_the_content_stays() {
    // With the answer, and without it before and after it was carried out.
    for fault in [None, Some(Fault::Lose(0)), Some(Fault::Lose(1))] {
        let view = Keyed::new().await;
        view.commit(put("f", "one", Expect::Absent)).await;
        view.hub.fault(fault.clone());
        let outcome = view.commit(set_modified("one")).await;
        assert!(matches!(outcome, Outcome::Done(Some(_))), "{outcome:?}");
        assert_eq!(view.hub.mtime(&view.place("f").primary), Some(EARLIER), "{fault:?}");
        assert_eq!(view.shown("f"), Some(hash_of("one")));
        view.hub.take_batches();
        view.commit(set_modified("one")).await;
        assert!(view.hub.take_batches().is_empty(), "a time that is there is not sent again");
    }
}

#[tokio::test(start_paused = true)]
async fn time_of_another_version_is_not_set() {
    let view = Keyed::new().await;
    let missing = view.commit(set_modified("one")).await;
    assert!(matches!(missing, Outcome::Conflict { found: None }), "{missing:?}");
    view.commit(put("f", "one", Expect::Absent)).await;
    let refused = view.commit(set_modified("two")).await;
    assert!(matches!(refused, Outcome::Conflict { found: Some(_) }), "{refused:?}");
    assert_ne!(view.hub.mtime(&view.place("f").primary), Some(EARLIER));
}
