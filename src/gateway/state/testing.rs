//! What every state must do. Each check uses names of its own, so a database may have other rows.

use super::{Claim, RecordRow, State};
use std::time::Duration;

/// A time that doesn't pass within a test.
const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(200);

pub(super) async fn keeps_all_promises(state: &dyn State) {
    records_are_put_and_old_ones_of_a_path_removed(state).await;
    parts_belong_to_open_uploads(state).await;
    one_owner_completes_an_upload_and_others_get_its_result(state).await;
    stale_and_aborted_uploads_leave_nothing(state).await;
    lease_has_one_owner_at_a_time(state).await;
    state.check().await.unwrap();
}

async fn records_are_put_and_old_ones_of_a_path_removed(state: &dyn State) {
    let record = |key, path| RecordRow { key: [key; 32], path: [path; 32], row: vec![key] };
    for (key, path) in [(1, 9), (2, 9), (4, 8)] {
        state.set_record(record(key, path)).await.unwrap();
    }
    state.set_record(RecordRow { row: b"again".to_vec(), ..record(1, 9) }).await.unwrap();
    tokio::time::sleep(2 * SHORT).await;
    state.set_record(record(3, 9)).await.unwrap();
    state.remove_records([9; 32], Some([1; 32]), LONG).await.unwrap();
    let all = [1, 2, 3, 4, 5].map(|key| [key; 32]);
    assert!(state.records(&all).await.unwrap()[..4].iter().all(Option::is_some), "none is an hour old");
    state.remove_records([9; 32], Some([1; 32]), SHORT).await.unwrap();
    let found = state.records(&all).await.unwrap();
    assert_eq!(found, [Some(b"again".to_vec()), None, Some(vec![3]), Some(vec![4]), None]);
    state.remove_records([9; 32], None, Duration::ZERO).await.unwrap();
    assert_eq!(state.records(&[[1; 32], [3; 32]]).await.unwrap(), [None, None]);
    assert_eq!(state.records(&[]).await.unwrap(), [] as [Option<Vec<u8>>; 0]);
}

async fn parts_belong_to_open_uploads(state: &dyn State) {
    state.create_upload("parts", [7; 32], b"row".to_vec()).await.unwrap();
    assert!(state.create_upload("parts", [7; 32], b"other".to_vec()).await.is_err());
    for (number, row) in [(2, "two"), (1, "one"), (2, "again")] {
        assert!(state.put_part("parts", number, row.into()).await.unwrap());
    }
    assert!(!state.put_part("missing", 1, b"one".to_vec()).await.unwrap());
    let found = state.upload("parts").await.unwrap().unwrap();
    assert_eq!((&*found.id, found.source, &*found.row), ("parts", [7; 32], &b"row"[..]));
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    assert!((now - 60..=now + 60).contains(&found.created));
    assert_eq!(state.uploads(&[7; 32]).await.unwrap(), [found]);
    assert!(state.uploads(&[8; 32]).await.unwrap().is_empty());
    assert_eq!(state.parts("parts").await.unwrap(), [(1, b"one".to_vec()), (2, b"again".to_vec())]);
}

async fn one_owner_completes_an_upload_and_others_get_its_result(state: &dyn State) {
    let claim = async |owner, time| state.claim("claimed", owner, time).await.unwrap();
    assert_eq!(claim("a", LONG).await, Claim::Missing);
    state.create_upload("claimed", [6; 32], b"row".to_vec()).await.unwrap();
    state.put_part("claimed", 1, b"one".to_vec()).await.unwrap();
    assert_eq!(claim("a", LONG).await, Claim::Claimed);
    assert_eq!(claim("b", LONG).await, Claim::Held);
    assert_eq!(claim("a", SHORT).await, Claim::Claimed);
    tokio::time::sleep(2 * SHORT).await;
    // The claim has run out: its owner may be dead.
    assert_eq!(claim("b", LONG).await, Claim::Claimed);
    assert!(!state.complete("claimed", "a", b"late".to_vec()).await.unwrap());
    state.release("claimed", "a").await.unwrap();
    assert_eq!(claim("c", LONG).await, Claim::Held);
    state.release("claimed", "b").await.unwrap();
    assert_eq!(claim("c", LONG).await, Claim::Claimed);
    assert!(state.complete("claimed", "c", b"result".to_vec()).await.unwrap());
    assert_eq!(claim("a", LONG).await, Claim::Done(b"result".to_vec()));
    assert_eq!((state.upload("claimed").await.unwrap(), state.abort("claimed").await.unwrap()), (None, false));
    assert!(state.parts("claimed").await.unwrap().is_empty());
    assert!(!state.put_part("claimed", 2, b"late".to_vec()).await.unwrap());
}

async fn stale_and_aborted_uploads_leave_nothing(state: &dyn State) {
    for id in ["old", "busy", "gone"] {
        state.create_upload(id, [5; 32], b"row".to_vec()).await.unwrap();
        state.put_part(id, 1, b"one".to_vec()).await.unwrap();
    }
    assert_eq!(state.claim("busy", "a", LONG).await.unwrap(), Claim::Claimed);
    assert!(!state.abort("busy").await.unwrap());
    assert!(state.abort("gone").await.unwrap() && !state.abort("gone").await.unwrap());
    assert_eq!(state.remove_stale(LONG).await.unwrap(), 0);
    tokio::time::sleep(2 * SHORT).await;
    state.create_upload("new", [5; 32], b"row".to_vec()).await.unwrap();
    assert!(state.remove_stale(SHORT).await.unwrap() > 0);
    for (id, there) in [("old", false), ("gone", false), ("busy", true), ("new", true)] {
        assert_eq!(state.upload(id).await.unwrap().is_some(), there, "{id}");
        assert_eq!(!state.parts(id).await.unwrap().is_empty(), id == "busy", "{id}");
    }
}

async fn lease_has_one_owner_at_a_time(state: &dyn State) {
    let lease = async |owner, time| state.lease([1; 32], owner, time).await.unwrap();
    assert!(lease("a", LONG).await && lease("a", LONG).await);
    assert!(!lease("b", LONG).await);
    assert!(state.lease([2; 32], "b", LONG).await.unwrap(), "another name");
    state.end_lease([1; 32], "b").await.unwrap();
    assert!(!lease("b", LONG).await, "only its owner ends a lease");
    state.end_lease([1; 32], "a").await.unwrap();
    assert!(lease("b", SHORT).await);
    state.remove_stale(LONG).await.unwrap();
    assert!(!lease("a", LONG).await, "a lease that runs is not stale");
    tokio::time::sleep(2 * SHORT).await;
    assert!(lease("a", LONG).await, "its time has passed");
    assert!(!lease("b", LONG).await);
}
