//! Checks the contract of [`View`]. Every view has to pass this list.
//!
//! The list runs on the views of this layer over the embedded Hub, and on the in-memory view that the tests
//! of `fs` use. So results of those tests hold on a real source too.
//!
//! Each check works in a directory of its own, which is empty before. The view must be writable. Files that
//! only one kind of view has (read-only ones, damaged ones) are tested with that kind.

use super::draft::DraftState;
use super::staging::{SlotId, SlotIo};
use super::testing::path;
use super::{
    Change, Content, ContentId, Entry, Error, Expect, Hidden, Kind, Len, MovedFile, Op, Outcome, PlainPath, Stored,
    Version, View,
};
use futures::TryStreamExt;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use time::OffsetDateTime;
use time::macros::datetime;

/// Runs the list.
pub(crate) async fn all(view: &dyn View) {
    missing_paths_have_no_entry(view).await;
    listing_shows_direct_children_in_order(view).await;
    directory_ends_with_its_last_file(view).await;
    content_reads_back_by_range(view).await;
    stream_agrees_with_read(view).await;
    stream_of_wrong_length_is_refused(view).await;
    registered_content_is_there_while_its_session_goes_on(view).await;
    frozen_draft_becomes_a_version(view).await;
    lens_are_those_of_the_content(view).await;
    put_obeys_its_expectation(view).await;
    repeated_put_is_done(view).await;
    delete_obeys_its_expectation(view).await;
    delete_of_missing_file_is_done(view).await;
    rename_obeys_both_expectations(view).await;
    repeated_rename_is_done(view).await;
    rename_to_itself_compares_only(view).await;
    copy_is_an_independent_file(view).await;
    directory_move_keeps_content_and_times(view).await;
    directory_move_refuses_occupied_target(view).await;
    repeated_directory_move_is_done(view).await;
    directory_move_into_itself_is_refused(view).await;
    operations_of_one_commit_build_on_each_other(view).await;
    failed_operation_fails_alone(view).await;
    root_is_not_a_file(view).await;
    twins_are_found_and_reachable(view).await;
    files_are_found_at_exactly_their_paths(view).await;
    invalid_names_are_refused(view).await;
    sealed_payload_opens(view).await;
    entity_tag_is_id_of_content(view).await;
    git_blob_is_refused_as_content(view).await;
}

const MTIME: OffsetDateTime = datetime!(2026-02-06 17:37:57.123 UTC);

/// A pool of slots in memory.
#[derive(Default)]
pub(super) struct Pool(Mutex<BTreeMap<u64, Vec<u8>>>);

impl SlotIo for Pool {
    fn allocate(&self) -> io::Result<SlotId> {
        let mut slots = self.0.lock().unwrap();
        let next = slots.last_key_value().map_or(1, |(last, _)| last + 1);
        slots.insert(next, Vec::new());
        Ok(SlotId(next))
    }

    fn cancel(&self, slot: SlotId) {
        self.0.lock().unwrap().remove(&slot.0);
    }

    fn read(&self, slot: SlotId, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.0.lock().unwrap()[&slot.0]);
        Ok(())
    }

    fn write(&self, slot: SlotId, bytes: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert(slot.0, bytes.to_vec());
        Ok(())
    }
}

fn stream(content: &[u8], len: Option<u64>) -> Content {
    Content::Stream { reader: Box::new(io::Cursor::new(content.to_vec())), len }
}

async fn store(view: &dyn View, content: &[u8]) -> Stored {
    let session = view.put().await.unwrap();
    let stored = session.add(stream(content, Some(content.len() as u64))).await.unwrap();
    session.finish().await.unwrap();
    stored
}

fn op(at: &str, expect: Expect, change: Change) -> Op {
    Op { path: path(at), expect, change }
}

fn put(at: &str, expect: Expect, stored: Stored) -> Op {
    op(at, expect, Change::Put { stored, mtime: MTIME, metadata: None })
}

fn delete(at: &str, expect: Expect) -> Op {
    op(at, expect, Change::Delete)
}

fn rename(at: &str, expect: Expect, to: &str, expect_to: Expect) -> Op {
    op(at, expect, Change::Rename { to: path(to), expect_to })
}

fn copy(at: &str, expect: Expect, to: &str, expect_to: Expect) -> Op {
    op(at, expect, Change::Copy { to: path(to), expect_to, metadata: None })
}

fn move_directory(at: &str, to: &str) -> Op {
    op(at, Expect::Any, Change::RenameDirectory { to: path(to) })
}

async fn commit(view: &dyn View, op: Op) -> Outcome {
    let mut outcomes = view.commit(&[op]).await;
    assert_eq!(outcomes.len(), 1);
    outcomes.remove(0)
}

#[track_caller]
fn done(outcome: Outcome) -> Option<Version> {
    match outcome {
        Outcome::Done(version) => version,
        other => panic!("not done: {other:?}"),
    }
}

#[track_caller]
fn moved(outcome: Outcome) -> Vec<MovedFile> {
    match outcome {
        Outcome::Moved(mut files) => {
            files.sort_by(|one, other| one.path.cmp(&other.path));
            files
        }
        other => panic!("not moved: {other:?}"),
    }
}

#[track_caller]
fn conflict(outcome: Outcome) -> Option<ContentId> {
    match outcome {
        Outcome::Conflict { found } => found,
        other => panic!("no conflict: {other:?}"),
    }
}

#[track_caller]
fn failure(outcome: Outcome) -> Error {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("not failed: {other:?}"),
    }
}

/// Writes a file and returns its version.
async fn write(view: &dyn View, at: &str, content: &[u8]) -> Version {
    let stored = store(view, content).await;
    let version = done(commit(view, put(at, Expect::Any, stored)).await);
    assert_eq!(version, Some(stored.version));
    stored.version
}

/// Returns the version at a path, with its size and time.
async fn file(view: &dyn View, at: &str) -> Option<(Version, Len, Option<OffsetDateTime>)> {
    match view.stat(&path(at)).await.unwrap()?.kind {
        Kind::File { version: Some(version), len, mtime, read_only: false } => Some((version, len, mtime)),
        other => panic!("{at} is not an ordinary file: {other:?}"),
    }
}

async fn version(view: &dyn View, at: &str) -> Option<Version> {
    file(view, at).await.map(|(version, ..)| version)
}

async fn read(view: &dyn View, at: &str) -> Vec<u8> {
    let (version, ..) = file(view, at).await.unwrap_or_else(|| panic!("{at} is missing"));
    let object = view.open(&version).await.unwrap();
    object.read(0, object.len() as usize).await.unwrap().to_vec()
}

async fn entries(view: &dyn View, directory: &str) -> Vec<Entry> {
    let listing = view.list(&path(directory)).await.unwrap();
    assert_eq!(listing.hidden, Hidden::default());
    assert!(listing.entries.is_sorted_by(|one, other| one.name < other.name));
    listing.entries
}

async fn names(view: &dyn View, directory: &str) -> Vec<String> {
    entries(view, directory).await.into_iter().map(|entry| entry.name).collect()
}

fn is_directory(entry: &Entry) -> bool {
    entry.kind == Kind::Directory { read_only: false }
}

async fn missing_paths_have_no_entry(view: &dyn View) {
    write(view, "missing/f", b"f").await;
    for at in ["missing/x", "missing/f/x", "missing/x/y", "missin", "missing/"] {
        let Ok(at) = PlainPath::new(at) else { continue };
        assert_eq!(view.stat(&at).await.unwrap(), None);
        assert!(view.list(&at).await.unwrap().entries.is_empty());
    }
    let root = view.stat(&PlainPath::root()).await.unwrap().expect("the root is there");
    assert!(root.name.is_empty() && matches!(root.kind, Kind::Directory { .. }));
}

async fn listing_shows_direct_children_in_order(view: &dyn View) {
    let b = write(view, "list/b", b"four").await;
    for at in ["list/a/deep/file", "list/c", "list/B", "list/a.txt", "list/ü", "listed"] {
        write(view, at, at.as_bytes()).await;
    }
    assert_eq!(names(view, "list").await, ["B", "a", "a.txt", "b", "c", "ü"]);
    assert_eq!(names(view, "list/a").await, ["deep"]);
    for entry in entries(view, "list").await {
        assert_eq!(is_directory(&entry), entry.name == "a", "{}", entry.name);
        let found = view.stat(&path("list").join(&entry.name).unwrap()).await.unwrap().unwrap();
        assert_eq!((is_directory(&found), &found.name), (is_directory(&entry), &entry.name));
        let Kind::File { version, len, mtime, read_only } = entry.kind else { continue };
        assert!(!read_only && mtime == Some(MTIME) && matches!(len, Len::Known(_) | Len::Unread));
        if entry.name == "b" {
            assert_eq!(version, Some(b));
        }
    }
    assert_eq!(file(view, "list/b").await, Some((b, Len::Known(4), Some(MTIME))));
    assert!(is_directory(&view.stat(&path("list/a/deep")).await.unwrap().unwrap()));
}

async fn directory_ends_with_its_last_file(view: &dyn View) {
    for at in ["ends/d/one", "ends/d/two", "ends/keep"] {
        write(view, at, b"x").await;
    }
    done(commit(view, delete("ends/d/one", Expect::Any)).await);
    assert_eq!(names(view, "ends").await, ["d", "keep"]);
    done(commit(view, rename("ends/d/two", Expect::Any, "ends/two", Expect::Any)).await);
    assert_eq!(names(view, "ends").await, ["keep", "two"]);
    assert_eq!(view.stat(&path("ends/d")).await.unwrap(), None);
}

async fn content_reads_back_by_range(view: &dyn View) {
    for len in [0_usize, 1, 65_536, 200_001] {
        let content: Vec<u8> = (0..len).map(|i| (i * i / 7 % 251) as u8).collect();
        let at = format!("content/{len}");
        let session = view.put().await.unwrap();
        let progress = session.progress();
        let stored = session.add(stream(&content, None)).await.unwrap();
        assert!(progress().read >= len as u64);
        session.finish().await.unwrap();
        assert_eq!(stored.plain_len, len as u64);
        assert_eq!(done(commit(view, put(&at, Expect::Absent, stored)).await), Some(stored.version));
        assert_eq!(file(view, &at).await, Some((stored.version, Len::Known(len as u64), Some(MTIME))));
        let object = view.open(&stored.version).await.unwrap();
        assert_eq!((object.len(), object.is_empty()), (len as u64, len == 0));
        for (offset, count) in [(0, len), (0, len + 1), (1, 3), (65_535, 2), (len, 1), (len + 9, 9), (len / 2, len)] {
            let (from, to) = (offset.min(len), offset.saturating_add(count).min(len));
            assert!(object.read(offset as u64, count).await.unwrap() == content[from..to], "{count} at {offset}");
        }
        assert!(object.read(u64::MAX, usize::MAX).await.unwrap().is_empty());
        assert_eq!(object.verify().await.unwrap().damaged, 0);
    }
}

async fn stream_agrees_with_read(view: &dyn View) {
    let content: Vec<u8> = (0..2_500_000_u64).map(|i| (i * i / 7 % 251) as u8).collect();
    for (at, content) in [("stream/empty", &content[..0]), ("stream/large", &content)] {
        let object = view.open(&write(view, at, content).await).await.unwrap();
        let len = content.len() as u64;
        for range in [0..len, 0..u64::MAX, 1..2, 65_535..65_537, 1_000_000..len, len..len + 1, 7..7] {
            let (from, to) = (range.start.min(len) as usize, range.end.min(len) as usize);
            let pieces: Vec<_> = object.clone().stream(range.clone()).try_collect().await.unwrap();
            assert!(pieces.iter().all(|piece: &bytes::Bytes| !piece.is_empty()));
            assert!(pieces.concat() == content[from..to.max(from)], "{range:?} of {at}");
        }
    }
}

async fn stream_of_wrong_length_is_refused(view: &dyn View) {
    let session = view.put().await.unwrap();
    for announced in [0, 4, 6] {
        let refused = session.add(stream(b"five!", Some(announced))).await;
        assert!(matches!(refused, Err(Error::LengthMismatch)), "{announced}: {refused:?}");
    }
    let stored = session.add(stream(b"five!", Some(5))).await.unwrap();
    session.finish().await.unwrap();
    done(commit(view, put("length/f", Expect::Absent, stored)).await);
    assert_eq!(read(view, "length/f").await, b"five!");
}

async fn registered_content_is_there_while_its_session_goes_on(view: &dyn View) {
    let session = view.put().await.unwrap();
    for (name, content) in [("registered/1", vec![1; 100_000]), ("registered/2", vec![2; 70_000])] {
        let stored = session.add(stream(&content, Some(content.len() as u64))).await.unwrap();
        session.register().await.unwrap();
        done(commit(view, put(name, Expect::Absent, stored)).await);
        assert!(read(view, name).await == content);
    }
    session.finish().await.unwrap();
}

async fn frozen_draft_becomes_a_version(view: &dyn View) {
    let base = write(view, "draft/f", &[7; 100_000]).await;
    let pool = Arc::new(Pool::default());
    let state = DraftState { len: 100_000, base: Some((base, 100_000)), ..DraftState::default() };
    let mut draft = view.draft(state, pool.clone()).unwrap();
    draft.write_at(65_530, b"edited across").await.unwrap();
    draft.truncate(90_000).await.unwrap();
    let (frozen, _) = draft.freeze().await.unwrap();
    let frozen = Arc::new(frozen);
    let mut stored = Vec::new();
    for _ in 0..2 {
        let session = view.put().await.unwrap();
        let content = Content::Frozen { frozen: frozen.clone(), slots: pool.clone() };
        stored.push(session.add(content).await.unwrap());
        session.finish().await.unwrap();
    }
    assert_eq!(stored[0], stored[1], "a retry gives the same version");
    assert_eq!(stored[0].plain_len, 90_000);
    done(commit(view, put("draft/f", Expect::Is(base.id), stored[0])).await);
    let mut content = vec![7; 90_000];
    content[65_530..65_543].copy_from_slice(b"edited across");
    assert!(read(view, "draft/f").await == content);
    assert!(view.slot_len() >= 65_536);
}

async fn lens_are_those_of_the_content(view: &dyn View) {
    let mut versions = Vec::new();
    for len in [0, 3, 70_000] {
        versions.push(write(view, &format!("lens/{len}"), &vec![1; len]).await);
    }
    let lens: Vec<Len> = view.lens(&versions).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(lens, [0, 3, 70_000].map(Len::Known));
    assert!(view.lens(&[]).await.is_empty());
}

async fn put_obeys_its_expectation(view: &dyn View) {
    let (one, two) = (store(view, b"one").await, store(view, b"two").await);
    let other = Expect::Is(two.version.id);
    assert_eq!(conflict(commit(view, put("put/f", other, one)).await), None);
    assert_eq!(version(view, "put/f").await, None);
    assert_eq!(done(commit(view, put("put/f", Expect::Absent, one)).await), Some(one.version));
    let there = Some(one.version.id);
    assert_eq!(conflict(commit(view, put("put/f", Expect::Absent, two)).await), there);
    assert_eq!(conflict(commit(view, put("put/f", other, store(view, b"three").await)).await), there);
    assert_eq!(version(view, "put/f").await, Some(one.version));
    assert_eq!(done(commit(view, put("put/f", Expect::Is(one.version.id), two)).await), Some(two.version));
    assert_eq!(done(commit(view, put("put/f", Expect::Any, one)).await), Some(one.version));
    assert_eq!(read(view, "put/f").await, b"one");
}

async fn repeated_put_is_done(view: &dyn View) {
    let base = write(view, "put again/f", b"base").await;
    let next = store(view, b"next").await;
    for expect in [Expect::Is(base.id), Expect::Is(base.id), Expect::Absent, Expect::Any] {
        assert_eq!(done(commit(view, put("put again/f", expect, next)).await), Some(next.version));
    }
    assert_eq!(read(view, "put again/f").await, b"next");
}

async fn delete_obeys_its_expectation(view: &dyn View) {
    let here = write(view, "delete/f", b"here").await;
    let other = store(view, b"other").await.version.id;
    for expect in [Expect::Absent, Expect::Is(other)] {
        assert_eq!(conflict(commit(view, delete("delete/f", expect)).await), Some(here.id));
    }
    assert_eq!(version(view, "delete/f").await, Some(here));
    assert_eq!(done(commit(view, delete("delete/f", Expect::Is(here.id))).await), None);
    assert_eq!(version(view, "delete/f").await, None);
    write(view, "delete/f", b"again").await;
    assert_eq!(done(commit(view, delete("delete/f", Expect::Any)).await), None);
    assert_eq!(names(view, "delete").await, [""; 0]);
}

async fn delete_of_missing_file_is_done(view: &dyn View) {
    let gone = write(view, "delete again/f", b"here").await;
    for at in ["delete again/f", "delete again/f", "delete again/never was"] {
        assert_eq!(done(commit(view, delete(at, Expect::Is(gone.id))).await), None);
    }
    for expect in [Expect::Absent, Expect::Any] {
        assert_eq!(done(commit(view, delete("delete again/f", expect)).await), None);
    }
}

async fn rename_obeys_both_expectations(view: &dyn View) {
    let (a, b) = (write(view, "rename/a", b"a").await, write(view, "rename/b", b"b").await);
    let (is_a, is_b) = (Expect::Is(a.id), Expect::Is(b.id));
    assert_eq!(conflict(commit(view, rename("rename/a", is_b, "rename/c", Expect::Absent)).await), Some(a.id));
    assert_eq!(conflict(commit(view, rename("rename/a", Expect::Absent, "rename/c", Expect::Any)).await), Some(a.id));
    assert_eq!(conflict(commit(view, rename("rename/a", is_a, "rename/b", Expect::Absent)).await), Some(b.id));
    assert_eq!(conflict(commit(view, rename("rename/a", is_a, "rename/b", is_a)).await), Some(b.id));
    assert_eq!(conflict(commit(view, rename("rename/a", is_a, "rename/c", is_b)).await), None);
    assert_eq!(names(view, "rename").await, ["a", "b"]);
    assert_eq!(done(commit(view, rename("rename/a", is_a, "rename/b", is_b)).await), Some(a));
    assert_eq!(names(view, "rename").await, ["b"]);
    assert_eq!(read(view, "rename/b").await, b"a");
    assert_eq!(done(commit(view, rename("rename/b", Expect::Any, "rename/d/e", Expect::Absent)).await), Some(a));
    assert_eq!(version(view, "rename/d/e").await, Some(a));
    assert!(matches!(
        failure(commit(view, rename("rename/x", Expect::Any, "rename/y", Expect::Any)).await),
        Error::NotFound
    ));
    assert_eq!(conflict(commit(view, rename("rename/x", is_a, "rename/y", Expect::Any)).await), None);
}

async fn repeated_rename_is_done(view: &dyn View) {
    let a = write(view, "rename again/a", b"a").await;
    let operation = rename("rename again/a", Expect::Is(a.id), "rename again/b", Expect::Absent);
    for _ in 0..2 {
        assert_eq!(done(commit(view, operation.clone()).await), Some(a));
        assert_eq!(names(view, "rename again").await, ["b"]);
    }
    // An earlier try may have added the new name and left the old one.
    done(commit(view, copy("rename again/b", Expect::Any, "rename again/a", Expect::Any)).await);
    assert_eq!(done(commit(view, operation.clone()).await), Some(a));
    assert_eq!(names(view, "rename again").await, ["b"]);
    write(view, "rename again/b", b"another").await;
    assert_eq!(conflict(commit(view, operation).await), None);
}

async fn rename_to_itself_compares_only(view: &dyn View) {
    let a = write(view, "itself/a", b"a").await;
    let other = store(view, b"other").await.version.id;
    let compare = |at, expect| rename(at, expect, at, Expect::Any);
    for expect in [Expect::Is(a.id), Expect::Any] {
        assert_eq!(done(commit(view, compare("itself/a", expect)).await), Some(a));
    }
    assert_eq!(conflict(commit(view, compare("itself/a", Expect::Is(other))).await), Some(a.id));
    assert_eq!(conflict(commit(view, compare("itself/b", Expect::Is(other))).await), None);
    assert_eq!(file(view, "itself/a").await, Some((a, Len::Known(1), Some(MTIME))));
}

async fn copy_is_an_independent_file(view: &dyn View) {
    let a = write(view, "copy/a", b"a").await;
    let is_a = Expect::Is(a.id);
    assert_eq!(done(commit(view, copy("copy/a", is_a, "copy/b", Expect::Absent)).await), Some(a));
    assert_eq!(done(commit(view, copy("copy/a", is_a, "copy/b", Expect::Absent)).await), Some(a), "a repeat");
    write(view, "copy/a", b"edited").await;
    assert_eq!((read(view, "copy/a").await, read(view, "copy/b").await), (b"edited".to_vec(), b"a".to_vec()));
    let edited = version(view, "copy/a").await.unwrap();
    assert_eq!(conflict(commit(view, copy("copy/a", is_a, "copy/c", Expect::Absent)).await), Some(edited.id));
    assert_eq!(conflict(commit(view, copy("copy/a", Expect::Any, "copy/b", Expect::Absent)).await), Some(a.id));
    done(commit(view, delete("copy/a", Expect::Any)).await);
    assert_eq!(read(view, "copy/b").await, b"a");
    assert_eq!(conflict(commit(view, copy("copy/a", is_a, "copy/c", Expect::Absent)).await), None);
    // Unlike a rename, a copy needs the old path: content at the new one doesn't prove that it is a copy.
    assert_eq!(conflict(commit(view, copy("copy/a", is_a, "copy/b", Expect::Any)).await), None);
    let missing = commit(view, copy("copy/a", Expect::Any, "copy/c", Expect::Absent)).await;
    assert!(matches!(failure(missing), Error::NotFound));
}

async fn directory_move_keeps_content_and_times(view: &dyn View) {
    let (f, g) = (write(view, "move/from/f", b"f").await, write(view, "move/from/d/g", b"g").await);
    write(view, "move/from2", b"beside").await;
    let files = moved(commit(view, move_directory("move/from", "move/below/to")).await);
    let expected = [("move/below/to/d/g", g), ("move/below/to/f", f)];
    for (file, (at, version)) in files.iter().zip(expected) {
        assert_eq!((&file.path, file.version, file.mtime), (&path(at), version, Some(MTIME)));
    }
    assert_eq!(files.len(), 2);
    assert_eq!(names(view, "move").await, ["below", "from2"]);
    assert_eq!(read(view, "move/below/to/d/g").await, b"g");
    assert_eq!(file(view, "move/below/to/f").await, Some((f, Len::Known(1), Some(MTIME))));
}

async fn directory_move_refuses_occupied_target(view: &dyn View) {
    for at in ["occupied/from/f", "occupied/to/g", "occupied/to/h"] {
        write(view, at, b"x").await;
    }
    let refused = failure(commit(view, move_directory("occupied/from", "occupied/to")).await);
    assert!(matches!(refused, Error::NotEmpty(2)), "{refused:?}");
    assert_eq!((names(view, "occupied/from").await, names(view, "occupied/to").await.len()), (vec!["f".to_owned()], 2));
}

async fn repeated_directory_move_is_done(view: &dyn View) {
    let f = write(view, "move again/from/f", b"f").await;
    for _ in 0..2 {
        let files = moved(commit(view, move_directory("move again/from", "move again/to")).await);
        assert_eq!(files.len(), 1);
        assert_eq!((&files[0].path, files[0].version), (&path("move again/to/f"), f));
    }
    assert!(moved(commit(view, move_directory("move again/none", "move again/nowhere")).await).is_empty());
    assert!(moved(commit(view, move_directory("move again/to", "move again/to")).await).is_empty());
    assert_eq!(names(view, "move again").await, ["to"]);
}

async fn directory_move_into_itself_is_refused(view: &dyn View) {
    write(view, "into/d/f", b"f").await;
    let refused = failure(commit(view, move_directory("into/d", "into/d/e")).await);
    assert!(matches!(refused, Error::InvalidName), "{refused:?}");
    assert_eq!(names(view, "into/d").await, ["f"]);
}

async fn operations_of_one_commit_build_on_each_other(view: &dyn View) {
    let (one, two) = (store(view, b"one").await, store(view, b"two").await);
    let (is_one, is_two) = (Expect::Is(one.version.id), Expect::Is(two.version.id));
    let operations = [
        put("order/a", Expect::Absent, one),
        put("order/a", is_one, two),
        rename("order/a", is_two, "order/d/b", Expect::Absent),
        move_directory("order/d", "order/e"),
        copy("order/e/b", is_two, "order/c", Expect::Absent),
        delete("order/e/b", is_two),
        put("order/e", Expect::Absent, one),
    ];
    let outcomes = view.commit(&operations).await;
    assert_eq!(outcomes.len(), operations.len());
    for outcome in outcomes {
        assert!(matches!(outcome, Outcome::Done(_) | Outcome::Moved(_)), "{outcome:?}");
    }
    assert_eq!(names(view, "order").await, ["c", "e"]);
    assert_eq!((read(view, "order/c").await, read(view, "order/e").await), (b"two".to_vec(), b"one".to_vec()));
    assert!(view.commit(&[]).await.is_empty());
}

async fn failed_operation_fails_alone(view: &dyn View) {
    let there = write(view, "alone/there", b"there").await;
    let new = store(view, b"new").await;
    let operations = [
        put("alone/a", Expect::Absent, new),
        put("alone/there", Expect::Absent, new),
        rename("alone/none", Expect::Any, "alone/x", Expect::Any),
        put("alone/b", Expect::Absent, new),
    ];
    let outcomes = view.commit(&operations).await;
    assert!(
        matches!(
            &outcomes[..],
            [
                Outcome::Done(Some(_)),
                Outcome::Conflict { found: Some(found) },
                Outcome::Failed(Error::NotFound),
                Outcome::Done(Some(_)),
            ] if *found == there.id
        ),
        "{outcomes:?}"
    );
    assert_eq!(names(view, "alone").await, ["a", "b", "there"]);
}

async fn root_is_not_a_file(view: &dyn View) {
    let f = write(view, "root/f", b"f").await;
    let stored = Stored { version: f, plain_len: 1 };
    for operation in [
        put("", Expect::Any, stored),
        delete("", Expect::Any),
        rename("root/f", Expect::Any, "", Expect::Any),
        copy("root/f", Expect::Any, "", Expect::Any),
        move_directory("", "root/all"),
    ] {
        let refused = failure(commit(view, operation).await);
        assert!(matches!(refused, Error::InvalidName), "{refused:?}");
    }
    assert_eq!(read(view, "root/f").await, b"f");
}

async fn twins_are_found_and_reachable(view: &dyn View) {
    let n = write(view, "twins/n.txt", b"file").await;
    write(view, "twins/n.txt/i", b"below").await;
    let alias = "n (conflict with folder).txt";
    assert_eq!(names(view, "twins").await, [alias, "n.txt"]);
    assert!(is_directory(&view.stat(&path("twins/n.txt")).await.unwrap().unwrap()));
    let alias = format!("twins/{alias}");
    assert_eq!((version(view, &alias).await, read(view, &alias).await), (Some(n), b"file".to_vec()));
    let twins =
        view.twins(&["twins/n.txt", "twins/n.txt/i"].map(path), &["twins/n.txt", "twins/x"].map(path)).await.unwrap();
    assert_eq!(twins, ["twins/n.txt", "twins/n.txt"].map(path));
    let other = store(view, b"other").await;
    assert_eq!(conflict(commit(view, put(&alias, Expect::Is(other.version.id), other)).await), Some(n.id));
    done(commit(view, put(&alias, Expect::Is(n.id), other)).await);
    assert_eq!(read(view, &alias).await, b"other");
    let is_other = Expect::Is(other.version.id);
    done(commit(view, rename(&alias, is_other, "twins/moved", Expect::Absent)).await);
    assert_eq!(names(view, "twins").await, ["moved", "n.txt"]);
    assert_eq!(read(view, "twins/moved").await, b"other");
    assert_eq!(names(view, "twins/n.txt").await, ["i"]);
    let shown = view.show_beside(&path("twins"), "k", &|name| name == "k").unwrap();
    assert!(shown != "k" && shown.contains('k'));
}

async fn files_are_found_at_exactly_their_paths(view: &dyn View) {
    let file = write(view, "exact/n.txt", b"file").await;
    let below = write(view, "exact/n.txt/i", b"below").await;
    let asked = ["exact/n.txt/i", "exact/n.txt", "exact", "exact/missing", "exact/n (conflict with folder).txt"];
    let mut asked = asked.map(path).to_vec();
    asked.extend([path(&format!("exact/{}", "x".repeat(256))), PlainPath::root()]);
    let found = view.files(&asked).await.unwrap();
    let mut seen = Vec::new();
    for kind in found {
        seen.push(match kind {
            Some(Kind::File { version, len: Len::Known(len), .. }) => Some((version.map(|version| version.id), len)),
            Some(other) => panic!("{other:?}"),
            None => None,
        });
    }
    let mut expected = vec![Some((Some(below.id), 5)), Some((Some(file.id), 4))];
    expected.resize(asked.len(), None);
    assert_eq!(seen, expected);
    assert!(view.files(&[]).await.unwrap().is_empty());
}

async fn invalid_names_are_refused(view: &dyn View) {
    let parent = path("names");
    for name in ["", ".", "..", "a/b", "a\0b"] {
        assert!(matches!(view.check_name(&parent, name), Err(Error::InvalidName)), "{name:?}");
    }
    assert!(matches!(view.check_name(&parent, &"x".repeat(256)), Err(Error::NameTooLong)));
    for name in ["a", "...a", "ü", " ", "a b"] {
        view.check_name(&parent, name).unwrap();
    }
}

async fn sealed_payload_opens(view: &dyn View) {
    let sealer = view.sealer();
    for payload in [&b""[..], b"payload"] {
        let sealed = sealer.seal(&[3; 32], 9, payload).unwrap();
        assert_eq!(sealer.open(&[3; 32], 9, &sealed).unwrap(), payload);
    }
}

async fn entity_tag_is_id_of_content(view: &dyn View) {
    let session = view.put().await.unwrap();
    let stored = session.add(stream(b"text", None)).await.unwrap();
    session.finish().await.unwrap();
    done(commit(view, put("metadata/f", Expect::Absent, stored)).await);
    let entry = view.stat(&path("metadata/f")).await.unwrap().unwrap();
    assert_eq!(entry.etag(), Some(format!("\"{}\"", stored.version.id)));
}

async fn git_blob_is_refused_as_content(view: &dyn View) {
    let there = write(view, "blob/f", b"file").await;
    let blob = Version { id: ContentId::Blob([5; 20]), ..there };
    assert!(matches!(view.open(&blob).await.err(), Some(Error::UnsupportedBlob)));
    let state = DraftState { len: 4, base: Some((blob, 4)), ..DraftState::default() };
    let draft = view.draft(state, Arc::new(Pool::default())).unwrap();
    assert!(matches!(draft.read_at(0, 4).await, Err(Error::UnsupportedBlob)));
    let lens = view.lens(&[blob, there]).await;
    assert!(matches!(lens[..], [Ok(Len::Known(_)) | Err(Error::UnsupportedBlob), Ok(Len::Known(4))]), "{lens:?}");
    let is_blob = Expect::Is(blob.id);
    for expect in [Expect::Absent, Expect::Any, Expect::Is(there.id), is_blob] {
        let refused = failure(commit(view, put("blob/f", expect, Stored { version: blob, plain_len: 4 })).await);
        assert!(matches!(refused, Error::UnsupportedBlob), "{refused:?}");
    }
    // An id of the other kind is other content.
    let stored = store(view, b"new").await;
    for operation in [
        put("blob/f", is_blob, stored),
        delete("blob/f", is_blob),
        rename("blob/f", is_blob, "blob/g", Expect::Absent),
        copy("blob/f", is_blob, "blob/g", Expect::Absent),
    ] {
        assert_eq!(conflict(commit(view, operation).await), Some(there.id));
    }
    assert_eq!((names(view, "blob").await, read(view, "blob/f").await), (vec!["f".to_owned()], b"file".to_vec()));
}
