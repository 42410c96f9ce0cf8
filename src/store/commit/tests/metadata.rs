//! Metadata objects go with their files.

use crate::hub::BatchOp;
use crate::store::testing::{Fault, Keyed, hash_of, path, put, rename};
use crate::store::{Change, Expect, Op, Outcome};
use crate::xet::Hash;

/// Returns an operation that puts content with metadata.
fn described(at: &str, content: &str, expect: Expect) -> Op {
    let mut op = put(at, content, expect);
    let Change::Put { metadata, .. } = &mut op.change else { unreachable!() };
    *metadata = Some(of(content).into());
    op
}

fn of(content: &str) -> Hash {
    hash_of(&format!("metadata of {content}"))
}

/// Returns the metadata object at a path.
fn metadata(view: &Keyed, at: &str) -> Option<Hash> {
    view.hub.contents().get(&view.place(at).metadata).copied()
}

fn done(outcome: Outcome) {
    assert!(matches!(outcome, Outcome::Done(_) | Outcome::Moved(_)), "{outcome:?}");
}

fn op(at: &str, expect: Expect, change: Change) -> Op {
    Op { path: path(at), expect, change }
}

#[tokio::test(start_paused = true)]
async fn metadata_is_sent_before_its_file_in_one_batch() {
    let view = Keyed::new().await;
    done(view.commit(described("f", "one", Expect::Absent)).await);
    let [batch] = &view.hub.take_batches()[..] else { panic!("one batch") };
    let added = |line: &BatchOp| match line {
        BatchOp::Add { hash, .. } => *hash,
        other => panic!("{other:?}"),
    };
    assert_eq!(batch.iter().map(added).collect::<Vec<_>>(), [of("one"), hash_of("one")]);
    done(view.commit(described("f", "two", Expect::Any)).await);
    assert_eq!(metadata(&view, "f"), Some(of("two")));
    // A program that knows no metadata replaces the file alone.
    done(view.commit(put("f", "three", Expect::Any)).await);
    assert_eq!((view.shown("f"), metadata(&view, "f")), (Some(hash_of("three")), Some(of("two"))));
}

#[tokio::test(start_paused = true)]
async fn put_that_is_refused_leaves_the_metadata_of_the_other() {
    let view = Keyed::new().await;
    done(view.commit(described("f", "one", Expect::Absent)).await);
    let refused = view.commit(described("f", "two", Expect::Absent)).await;
    assert!(matches!(refused, Outcome::Conflict { .. }), "{refused:?}");
    assert_eq!((view.shown("f"), metadata(&view, "f")), (Some(hash_of("one")), Some(of("one"))));
}

#[tokio::test(start_paused = true)]
async fn put_without_answer_is_found_with_its_metadata() {
    for lost in 0..=2 {
        let view = Keyed::new().await;
        view.hub.fault(Some(Fault::Lose(lost)));
        done(view.commit(described("f", "one", Expect::Absent)).await);
        assert_eq!((view.shown("f"), metadata(&view, "f")), (Some(hash_of("one")), Some(of("one"))), "{lost}");
    }
}

#[tokio::test(start_paused = true)]
async fn put_whose_metadata_is_refused_fails() {
    let view = Keyed::new().await;
    view.hub.always(Some(Fault::Refuse([view.place("f").metadata].into())));
    let refused = view.commit(described("f", "one", Expect::Absent)).await;
    assert!(matches!(refused, Outcome::Failed(_)), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn move_takes_metadata_along_and_removal_removes_it() {
    let view = Keyed::new().await;
    done(view.commit(described("d/f", "one", Expect::Absent)).await);
    done(view.commit(rename("d/f", "d/g", Expect::Any, Expect::Absent)).await);
    assert_eq!((metadata(&view, "d/f"), metadata(&view, "d/g")), (None, Some(of("one"))));
    done(view.commit(view.move_directory("d", "e")).await);
    assert_eq!((metadata(&view, "d/g"), metadata(&view, "e/g")), (None, Some(of("one"))));
    done(view.commit(op("e/g", Expect::Any, Change::Delete)).await);
    assert!(view.hub.contents().is_empty(), "{:?}", view.hub.contents());
}

#[tokio::test(start_paused = true)]
async fn copy_has_its_own_metadata_or_that_of_its_source() {
    let view = Keyed::new().await;
    done(view.commit(described("f", "one", Expect::Absent)).await);
    let copy = |to: &str, metadata| {
        let change = Change::Copy { to: path(to), expect_to: Expect::Absent, metadata };
        op("f", Expect::Any, change)
    };
    done(view.commit(copy("same", None)).await);
    done(view.commit(copy("other", Some(of("other").into()))).await);
    assert_eq!((metadata(&view, "same"), metadata(&view, "other")), (Some(of("one")), Some(of("other"))));
    assert_eq!(metadata(&view, "f"), Some(of("one")));
}

#[tokio::test(start_paused = true)]
async fn only_the_expected_version_is_described() {
    let view = Keyed::new().await;
    done(view.commit(put("f", "one", Expect::Absent)).await);
    let describe = |at: &str, of_content: &str| {
        let change = Change::Describe { metadata: of("new").into() };
        op(at, Expect::Is(hash_of(of_content).into()), change)
    };
    for (at, content) in [("f", "two"), ("missing", "one")] {
        let refused = view.commit(describe(at, content)).await;
        assert!(matches!(refused, Outcome::Conflict { .. }), "{refused:?}");
    }
    assert_eq!(metadata(&view, "f"), None);
    done(view.commit(describe("f", "one")).await);
    assert_eq!((view.shown("f"), metadata(&view, "f")), (Some(hash_of("one")), Some(of("new"))));
}
