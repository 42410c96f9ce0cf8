//! Lines that are sent, and lines that are not: expectations, refused lines, lost answers, changes by other
//! clients.

use crate::crypto::Format::{V1, V2};
use crate::hub::BatchOp;
use crate::store::draft::NEW_ID_LIMIT;
use crate::store::testing::{Fault, Keyed, hash_of, long_name, path, put, rename};
use crate::store::{Change, ContentId, Error, Expect, Op, Outcome, View};
use std::collections::BTreeSet;
use std::time::Duration;
use time::OffsetDateTime;

fn delete(at: &str, expect: Expect) -> Op {
    Op { path: path(at), expect, change: Change::Delete }
}

fn copy(from: &str, to: &str) -> Op {
    Op {
        path: path(from),
        expect: Expect::Any,
        change: Change::Copy { to: path(to), expect_to: Expect::Absent, metadata: None },
    }
}

fn refuse(keys: &[String]) -> Option<Fault> {
    Some(Fault::Refuse(keys.iter().cloned().collect()))
}

fn is(content: &str) -> Expect {
    Expect::Is(hash_of(content).into())
}

fn done(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Done(_) | Outcome::Moved(_)), "{outcome:?}");
}

fn conflict(outcome: Outcome, found: Option<&str>) {
    match outcome {
        Outcome::Conflict { found: there } => assert_eq!(there, found.map(|content| hash_of(content).into())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn put_replaces_expected_content_only() {
    let view = Keyed::new().await;
    done(view.commit(put("f", "one", Expect::Absent)).await);
    conflict(view.commit(put("f", "two", Expect::Absent)).await, Some("one"));
    conflict(view.commit(put("f", "two", is("zero"))).await, Some("one"));
    conflict(view.commit(put("g", "two", is("one"))).await, None);
    assert_eq!(view.shown("f"), Some(hash_of("one")));
    done(view.commit(put("f", "two", is("one"))).await);
    done(view.commit(put("f", "three", Expect::Any)).await);
    // A repeat finds its own result.
    done(view.commit(put("f", "three", is("one"))).await);
    assert_eq!(view.shown("f"), Some(hash_of("three")));
}

#[tokio::test(start_paused = true)]
async fn time_of_replaced_object_rises_and_is_newer_than_any_copy() {
    let view = Keyed::new().await;
    let old = OffsetDateTime::UNIX_EPOCH;
    let mtime = |at: &str| view.hub.mtime(&view.key(at, V2)).unwrap();
    done(view.commit(put("f", "one", Expect::Absent)).await);
    done(view.commit(put("g", "other", Expect::Absent)).await);
    assert_eq!((mtime("f"), mtime("g")), (old, old));
    let before = OffsetDateTime::now_utc();
    done(view.commit(put("f", "two", is("one"))).await);
    let first = mtime("f");
    assert!(first > before + time::Duration::SECOND);
    let before = OffsetDateTime::now_utc();
    done(view.commit(put("f", "three", is("two"))).await);
    let second = mtime("f");
    assert!(second > first && second > before + time::Duration::SECOND);
    // A repeat sends nothing.
    done(view.commit(put("f", "three", is("two"))).await);
    assert_eq!(mtime("f"), second);
    // A new name keeps the time, a replaced one doesn't.
    done(view.commit(rename("f", "h", is("three"), Expect::Absent)).await);
    assert_eq!(mtime("h"), second);
    done(view.commit(rename("g", "h", is("other"), is("three"))).await);
    assert!(mtime("h") > second);
    let (g, h) = (mtime("h"), view.shown("h"));
    assert_eq!(h, Some(hash_of("other")));
    let to = path("h");
    done(view.commit(put("i", "fourth", Expect::Absent)).await);
    let copy = Change::Copy { to, expect_to: Expect::Any, metadata: None };
    done(view.commit(Op { path: path("i"), expect: Expect::Any, change: copy }).await);
    assert!(mtime("h") > g && mtime("i") == old);
}

#[tokio::test(start_paused = true)]
async fn delete_of_missing_file_is_done_and_of_changed_file_conflicts() {
    let view = Keyed::new().await;
    done(view.commit(delete("f", is("one"))).await);
    view.object("f", V2, "two");
    conflict(view.commit(delete("f", is("one"))).await, Some("two"));
    done(view.commit(delete("f", is("two"))).await);
    assert_eq!(view.hub.contents().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn operations_on_one_path_keep_order_and_others_share_batch() {
    let view = Keyed::new().await;
    let operations = [
        put("a", "one", Expect::Absent),
        put("b", "two", Expect::Absent),
        rename("a", "c", is("one"), Expect::Absent),
        put("a", "three", Expect::Absent),
        delete("b", is("two")),
    ];
    let outcomes = view.view.commit(&operations).await;
    outcomes.into_iter().for_each(done);
    assert_eq!(view.shown("a"), Some(hash_of("three")));
    assert_eq!(view.shown("b"), None);
    assert_eq!(view.shown("c"), Some(hash_of("one")));
    let sizes: Vec<usize> = view.hub.take_batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 1, 1, 1, 1], "two adds; the rename's add and delete; add and delete of the last two");
}

#[tokio::test(start_paused = true)]
async fn batch_with_lost_answer_is_checked_by_reading() {
    for applied in [0, 1, 2] {
        let view = Keyed::new().await;
        view.hub.fault(Some(Fault::Lose(applied)));
        let outcomes = view.view.commit(&[put("a", "one", Expect::Absent), put("b", "two", Expect::Absent)]).await;
        outcomes.into_iter().for_each(done);
        let sizes: Vec<usize> = view.hub.take_batches().iter().map(Vec::len).collect();
        assert_eq!(sizes, [vec![2, 2], vec![2, 1], vec![2]][applied]);
    }
}

#[tokio::test(start_paused = true)]
async fn third_content_after_lost_answer_is_conflict() {
    let view = Keyed::new().await;
    view.object("a", V2, "old");
    view.hub.fault(Some(Fault::Lose(0)));
    let key = view.key("a", V2);
    view.hub.meddle(move |files| files.get_mut(&key).unwrap().hash = Some(hash_of("theirs")));
    conflict(view.commit(put("a", "new", is("old"))).await, Some("theirs"));
    assert_eq!(view.shown("a"), Some(hash_of("theirs")));
}

#[tokio::test(start_paused = true)]
async fn batch_without_answer_fails_after_three_tries() {
    let view = Keyed::new().await;
    view.hub.always(Some(Fault::Lose(0)));
    let outcome = view.commit(put("a", "one", Expect::Absent)).await;
    assert!(matches!(outcome, Outcome::Failed(Error::Hub(ref error)) if error.is_transient()), "{outcome:?}");
    assert_eq!(view.hub.take_batches().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn batch_is_not_repeated_after_read_state_is_stale() {
    let view = Keyed::new().await;
    view.hub.fault(refuse(&[view.key("a", V2)]));
    done(view.commit(put("a", "one", Expect::Absent)).await);
    let fresh = Duration::from_secs(5);
    assert_eq!(view.hub.take_repeats(), [fresh, fresh - Duration::from_millis(200)], "the second came after a pause");
}

#[tokio::test(start_paused = true)]
async fn commit_with_status_503_is_returned_to_caller() {
    let view = Keyed::new().await;
    view.hub.always(Some(Fault::PutOff));
    let outcome = view.commit(put("a", "one", Expect::Absent)).await;
    assert!(matches!(outcome, Outcome::Failed(Error::Hub(ref error)) if error.is_transient()), "{outcome:?}");
    assert_eq!(view.hub.take_batches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn batch_with_lost_answer_fails_while_hub_is_unreadable() {
    let view = Keyed::new().await;
    view.hub.fault(Some(Fault::Lose(1)));
    view.hub.reads_fail_after(1);
    let outcome = view.commit(put("a", "one", Expect::Absent)).await;
    assert!(matches!(outcome, Outcome::Failed(Error::Hub(_))), "{outcome:?}");
    view.hub.no_more_faults();
    done(view.commit(put("a", "one", Expect::Absent)).await);
    assert_eq!(view.hub.take_batches().len(), 1, "it existed already");
}

#[tokio::test(start_paused = true)]
async fn refused_add_is_repeated_and_its_old_path_stays() {
    let view = Keyed::new().await;
    view.object("a", V2, "one");
    view.object("b", V2, "two");
    view.hub.always(refuse(&[view.key("c", V2)]));
    let operations = [rename("a", "c", is("one"), Expect::Absent), rename("b", "d", is("two"), Expect::Absent)];
    let mut outcomes = view.view.commit(&operations).await.into_iter();
    let refused = outcomes.next().unwrap();
    assert!(matches!(refused, Outcome::Failed(Error::Refused(_))), "{refused:?}");
    done(outcomes.next().unwrap());
    assert_eq!(view.shown("a"), Some(hash_of("one")));
    assert_eq!((view.shown("b"), view.shown("d")), (None, Some(hash_of("two"))));
    let tries =
        view.hub.take_batches().iter().filter(|batch| batch.iter().any(|op| op.key() == view.key("c", V2))).count();
    assert_eq!(tries, 3);
    view.hub.no_more_faults();
    done(view.commit(rename("a", "c", is("one"), Expect::Absent)).await);
    assert_eq!((view.shown("a"), view.shown("c")), (None, Some(hash_of("one"))));
}

#[tokio::test(start_paused = true)]
async fn denied_request_stops_other_requests() {
    let view = Keyed::new().await;
    view.hub.always(Some(Fault::Deny));
    let operations: Vec<Op> = (0..1500).map(|i| put(&format!("f{i}"), "x", Expect::Absent)).collect();
    let outcomes = view.view.commit(&operations).await;
    assert_eq!(outcomes.len(), 1500);
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(Error::Hub(crate::hub::Error::Forbidden(_)))))
    );
    assert_eq!(view.hub.take_batches().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn state_read_six_seconds_ago_is_read_again() {
    for meddles in [false, true] {
        let view = Keyed::new().await;
        view.object("a", V2, "old");
        let key = view.key("a", V2);
        let mut reads = 0;
        view.hub.on_read(Duration::from_secs(6), move |files| {
            reads += 1;
            if meddles && reads == 2 {
                files.get_mut(&key).unwrap().hash = Some(hash_of("theirs"));
            }
        });
        let outcome = view.commit(put("a", "new", is("old"))).await;
        if meddles {
            conflict(outcome, Some("theirs"));
            assert_eq!(view.hub.take_batches().len(), 0);
        } else {
            done(outcome);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn rename_does_not_delete_file_changed_by_others() {
    let view = Keyed::new().await;
    view.object("a", V2, "mine");
    let key = view.key("a", V2);
    let mut reads = 0;
    view.hub.on_read(Duration::from_secs(6), move |files| {
        reads += 1;
        // Before the add (twice), before the delete.
        if reads == 3 {
            files.get_mut(&key).unwrap().hash = Some(hash_of("theirs"));
        }
    });
    conflict(view.commit(rename("a", "b", is("mine"), Expect::Absent)).await, Some("theirs"));
    assert_eq!((view.shown("a"), view.shown("b")), (Some(hash_of("theirs")), Some(hash_of("mine"))));
}

#[tokio::test(start_paused = true)]
async fn damaged_file_is_not_overwritten_but_may_be_deleted() {
    let view = Keyed::new().await;
    view.hub.put(&view.key("a", V2), hash_of("broken"), 100);
    view.object("b", V2, "good");
    for operation in
        [put("a", "new", Expect::Any), put("a", "new", is("broken")), rename("b", "a", Expect::Any, Expect::Any)]
    {
        let outcome = view.commit(operation).await;
        assert!(matches!(outcome, Outcome::Failed(Error::Unauthentic(_))), "{outcome:?}");
    }
    assert_eq!(view.hub.take_batches().len(), 0);
    done(view.commit(delete("a", Expect::Any)).await);
}

#[tokio::test(start_paused = true)]
async fn file_with_unreadable_header_is_not_overwritten() {
    let view = Keyed::new().await;
    view.hub.put(&view.key("a", V2), hash_of("unread"), 65_638);
    let outcome = view.commit(put("a", "new", Expect::Any)).await;
    assert!(matches!(outcome, Outcome::Failed(Error::Cas(_))), "{outcome:?}");
    assert_eq!(view.shown("a"), Some(hash_of("unread")));
}

#[tokio::test(start_paused = true)]
async fn large_content_under_two_paths_is_marked_before_sending() {
    let view = Keyed::new().await;
    view.sized_object("a", V2, "large", 1025);
    const { assert!(NEW_ID_LIMIT < 1025 * 65_568) };
    view.hub.always(refuse(&[view.key("a", V2)]));
    let half = view.commit(rename("a", "b", Expect::Any, Expect::Absent)).await;
    assert!(matches!(half, Outcome::Failed(_)), "{half:?}");
    assert!(view.memory.is_shared(&hash_of("large")), "both names exist");
    view.hub.no_more_faults();
    done(view.commit(rename("a", "b", Expect::Any, Expect::Absent)).await);
    assert!(!view.memory.is_shared(&hash_of("large")));
    done(view.commit(copy("b", "c")).await);
    done(view.commit(rename("c", "d", Expect::Any, Expect::Absent)).await);
    assert!(view.memory.is_shared(&hash_of("large")), "a copy stays permanently");
}

#[tokio::test(start_paused = true)]
async fn sidecar_stays_while_file_needs_it() {
    let view = Keyed::new().await;
    let long = long_name(240, 3);
    let (one, two) = (format!("{long}/one"), format!("{long}/two"));
    view.commit_all(&[put(&one, "one", Expect::Absent), put(&two, "two", Expect::Absent)]).await;
    assert_eq!(view.hub.contents().len(), 3, "two files, one sidecar");
    assert_eq!(view.hub.take_batches().len(), 1);
    done(view.commit(delete(&one, Expect::Any)).await);
    assert_eq!(view.hub.contents().len(), 2);
    done(view.commit(delete(&two, Expect::Any)).await);
    assert_eq!(view.hub.contents().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn delete_below_nested_long_names_removes_inner_sidecar_first() {
    let view = Keyed::new().await;
    let deep = format!("{}/{}/x", long_name(200, 1), long_name(220, 2));
    view.commit_all(&[put(&deep, "x", Expect::Absent)]).await;
    view.hub.take_batches();
    done(view.commit(delete(&deep, Expect::Any)).await);
    let deleted: Vec<String> = view.hub.take_batches().concat().iter().map(|op| op.key().to_owned()).collect();
    let sealed = view.place(&deep);
    let [outer, inner] = &sealed.sidecars[..] else { panic!("two sidecars") };
    assert_eq!(deleted, [sealed.primary.clone(), inner.key.clone(), outer.key.clone()]);
}

#[tokio::test(start_paused = true)]
async fn old_path_stays_until_new_path_is_readable() {
    let view = Keyed::new().await;
    let long = long_name(200, 5);
    view.object("a", V2, "one");
    view.hub.always(refuse(&[view.place(&long).sidecars[0].key.clone()]));
    let half = view.commit(rename("a", &long, Expect::Any, Expect::Absent)).await;
    assert!(matches!(half, Outcome::Failed(Error::Refused(_))), "{half:?}");
    assert_eq!((view.shown("a"), view.shown(&long)), (Some(hash_of("one")), None));
    view.hub.no_more_faults();
    done(view.commit(rename("a", &long, Expect::Any, Expect::Absent)).await);
    assert_eq!((view.shown("a"), view.shown(&long)), (None, Some(hash_of("one"))));
}

#[tokio::test(start_paused = true)]
async fn missing_sidecar_is_added_by_commit_below() {
    let view = Keyed::new().await;
    let long = long_name(200, 5);
    view.object(&format!("{long}/there"), V2, "there");
    assert_eq!(view.hub.contents().len(), 1);
    view.commit_all(&[put(&format!("{long}/new"), "new", Expect::Absent)]).await;
    assert!(view.hub.contents().contains_key(&view.place(&long).sidecars[0].key));
}

#[tokio::test(start_paused = true)]
async fn rename_to_itself_restores_missing_sidecar() {
    let view = Keyed::new().await;
    let long = format!("{}/x", long_name(200, 5));
    view.object(&long, V2, "x");
    done(view.commit(rename(&long, &long, Expect::Is(hash_of("x").into()), Expect::Any)).await);
    assert!(view.hub.contents().contains_key(&view.place(&long).sidecars[0].key));
    assert_eq!((view.hub.contents().len(), view.shown(&long)), (2, Some(hash_of("x"))));
    view.hub.take_batches();
    done(view.commit(rename(&long, &long, Expect::Is(hash_of("x").into()), Expect::Any)).await);
    assert!(view.hub.take_batches().is_empty(), "nothing is missing");
}

#[tokio::test(start_paused = true)]
async fn directory_with_unreadable_entries_is_not_moved() {
    let view = Keyed::new().await;
    view.object("d/a", V2, "a");
    let directory = view.key("d", V2);
    view.hub.put(&format!("{directory}/not-ours"), hash_of("x"), 10);
    view.hub.put(&format!("{directory}/-k1-extension"), hash_of("x"), 10);
    let outcome = view.commit(view.move_directory("d", "e")).await;
    assert!(matches!(outcome, Outcome::Failed(Error::NotEmpty(2))), "{outcome:?}");
    assert_eq!(view.hub.take_batches().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn directory_move_in_both_formats_continues_after_interruption() {
    let view = Keyed::new().await;
    for (at, format) in [("d/a", V2), ("d/a", V1), ("d/b", V1), ("d/e/f", V2)] {
        view.object(at, format, &format!("{at} {format:?}"));
    }
    view.object("d2/a", V2, "beside");
    view.hub.fault(Some(Fault::Lose(2)));
    view.hub.fault(refuse(&[view.key("d/b", V1)]));
    view.hub.always(refuse(&[view.key("d/a", V2), view.key("d/b", V1), view.key("d/a", V1)]));
    let outcome = view.commit(view.move_directory("d", "n")).await;
    assert!(matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    view.hub.no_more_faults();
    // The repeat is as after a crash between the end of the move and the journal's entry.
    for _ in 0..2 {
        let Outcome::Moved(moved) = view.commit(view.move_directory("d", "n")).await else { panic!("not moved") };
        let moved: BTreeSet<_> = moved.into_iter().map(|file| (file.path, file.version.id)).collect();
        let shown = [("n/a", "d/a V2"), ("n/b", "d/b V1"), ("n/e/f", "d/e/f V2")];
        assert_eq!(moved, shown.map(|(at, content)| (path(at), ContentId::Xet(hash_of(content)))).into());
    }
    let expected: BTreeSet<_> = [
        ("n/a", V2, "d/a V2"),
        ("n/a", V1, "d/a V1"),
        ("n/b", V1, "d/b V1"),
        ("n/e/f", V2, "d/e/f V2"),
        ("d2/a", V2, "beside"),
    ]
    .into_iter()
    .map(|(at, format, content)| (view.key(at, format), hash_of(content)))
    .collect();
    assert_eq!(view.hub.contents().into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn directory_is_not_moved_onto_directory_with_files() {
    let view = Keyed::new().await;
    view.object("d/a", V2, "a");
    view.object("e/b", V1, "b");
    let outcome = view.commit(view.move_directory("d", "e")).await;
    assert!(matches!(outcome, Outcome::Failed(Error::NotEmpty(1))), "{outcome:?}");
    let inside = view.commit(view.move_directory("d", "d/x")).await;
    assert!(matches!(inside, Outcome::Failed(Error::InvalidName)), "{inside:?}");
}

#[tokio::test(start_paused = true)]
async fn adds_and_deletes_never_share_a_batch() {
    let view = Keyed::new().await;
    view.object("old", V1, "old");
    view.object("a", V2, "a");
    let operations =
        [put("old", "new", is("old")), rename("a", "b", Expect::Any, Expect::Absent), put("c", "c", Expect::Any)];
    view.commit_all(&operations).await;
    for batch in view.hub.take_batches() {
        let adds = batch.iter().filter(|op| matches!(op, BatchOp::Add { .. })).count();
        assert!(adds == 0 || adds == batch.len(), "{batch:?}");
    }
    assert_eq!(view.hub.contents().len(), 3, "the format-1 object is deleted");
}

#[tokio::test(start_paused = true)]
async fn content_of_other_side_is_refused() {
    let view = Keyed::new().await;
    let mut operation = put("a", "x", Expect::Any);
    let Change::Put { stored, .. } = &mut operation.change else { unreachable!() };
    stored.version.side = crate::store::Side::Plain;
    let outcome = view.commit(operation).await;
    assert!(matches!(outcome, Outcome::Failed(Error::WrongSide)), "{outcome:?}");
}
