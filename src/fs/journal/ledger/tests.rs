//! Tests of the ledger alone: merging with listings, readiness, and completeness of snapshots.

use super::*;
use crate::fs::journal::queue::OpKind;
use crate::fs::tests::shortest;
use crate::fs::tree::queued::LocalChild;
use crate::store::{Binding, Hash, RecordRef, Side};
use proptest::prelude::*;

fn path(text: &str) -> PlainPath {
    PlainPath::new(text).unwrap()
}

fn apply(ledger: &mut Ledger, entries: Vec<Entry>) {
    entries.iter().for_each(|entry| ledger.apply(entry).unwrap());
}

fn track(file: u64, at: &str) -> Entry {
    Entry::Track { file: FileNo(file), path: Some(path(at)), remote: Remote::Absent, mtime: None }
}

fn queue(op: u64, what: QueuedOp) -> Entry {
    Entry::Queue { op: OpNo(op), what }
}

fn move_directory(from: &str, to: &str) -> QueuedOp {
    QueuedOp::RenameDirectory { from: path(from), to: path(to) }
}

fn sources(ledger: &Ledger, at: &str) -> Vec<String> {
    ledger.queued_changes(&path(at), None).sources.iter().map(|path| path.as_str().to_owned()).collect()
}

#[test]
fn moved_directory_is_listed_at_old_and_new_path() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, vec![queue(1, move_directory("a", "b")), queue(2, move_directory("b/c", "d"))]);
    assert_eq!(sources(&ledger, "b"), ["a", "b"]);
    assert_eq!(sources(&ledger, "d"), ["a/c", "b/c", "d"]);
    assert_eq!(sources(&ledger, "d/x"), ["a/c/x", "b/c/x", "d/x"]);
    assert_eq!(sources(&ledger, "a"), [""; 0], "what is there is on its way out");
    assert_eq!(sources(&ledger, ""), [""]);
    let root = ledger.queued_changes(&path(""), None);
    for name in ["a", "b", "d"] {
        assert!(root.governed.contains(name), "{name}");
    }
    assert_eq!(root.children.keys().collect::<Vec<_>>(), ["b", "d"]);
}

#[test]
fn operation_queued_before_move_applies_to_new_name() {
    let mut ledger = Ledger::default();
    let gone = QueuedOp::Delete { file: FileNo(1), path: path("a/gone") };
    apply(&mut ledger, vec![track(1, "a/gone"), queue(1, gone), queue(2, move_directory("a", "b"))]);
    assert!(ledger.queued_changes(&path("b"), None).governed.contains("gone"));
    // A file that appears at the old name later is a different one.
    assert!(!ledger.queued_changes(&path("a"), None).governed.contains("gone"));
}

#[test]
fn operation_waits_only_for_earlier_overlapping_ones() {
    let mut ledger = Ledger::default();
    let delete = |file, at| QueuedOp::Delete { file: FileNo(file), path: path(at) };
    apply(&mut ledger, vec![track(1, "a/x"), track(2, "b"), track(3, "a!")]);
    let ops = [delete(1, "a/x"), move_directory("a", "c"), delete(2, "b"), delete(3, "a!"), move_directory("c/d", "e")];
    for (op, what) in ops.into_iter().enumerate() {
        apply(&mut ledger, vec![queue(op as u64 + 1, what)]);
    }
    let taken = |ledger: &mut Ledger, kind| {
        let taken = ledger.queue_mut().take_ready(kind, 9);
        taken.into_iter().map(|(op, _)| op.0).collect::<Vec<_>>()
    };
    assert_eq!(taken(&mut ledger, OpKind::Batched), [1, 3, 4]);
    assert_eq!(taken(&mut ledger, OpKind::DirectoryRename), [0; 0]);
    apply(&mut ledger, vec![Entry::Finish { op: OpNo(1) }]);
    assert_eq!(taken(&mut ledger, OpKind::DirectoryRename), [2], "one that is held keeps back what overlaps it");
    let overlapping = |at| ledger.queue().overlapping(&path(at)).map(|(op, _)| op.0).collect::<Vec<_>>();
    assert_eq!(overlapping("c/d/e"), [2, 5]);
    assert_eq!(overlapping("a"), [2]);
    assert_eq!(overlapping("a!"), [4]);
    assert_eq!(overlapping(""), [2, 3, 4, 5]);
}

#[test]
fn operation_finished_during_listing_still_governs_it() {
    let mut ledger = Ledger::default();
    let delete = QueuedOp::Delete { file: FileNo(1), path: path("a") };
    apply(&mut ledger, vec![track(1, "a"), queue(1, delete)]);
    let stamp = ledger.begin_listing();
    apply(&mut ledger, vec![Entry::Finish { op: OpNo(1) }]);
    assert!(ledger.queued_changes(&path(""), Some(stamp)).governed.contains("a"));
    let later = ledger.begin_listing();
    assert!(!ledger.queued_changes(&path(""), Some(later)).governed.contains("a"));
    ledger.end_listing(stamp);
    ledger.end_listing(later);
    assert!(ledger.finished.ops.is_empty() && ledger.finished.order.is_empty());
}

#[test]
fn entries_that_arrive_during_listing_are_reported_by_name() {
    let mut ledger = Ledger::default();
    let put = QueuedOp::Put { file: FileNo(1), generation: 1, path: path("a/b/c") };
    apply(&mut ledger, vec![track(1, "a/b/c"), queue(1, put), queue(2, move_directory("d", "e/f"))]);
    let stamp = ledger.begin_listing();
    apply(&mut ledger, vec![Entry::Finish { op: OpNo(1) }, Entry::Finish { op: OpNo(2) }]);
    apply(&mut ledger, vec![queue(3, move_directory("a", "g"))]);
    let arrived = |at: &str, since| {
        let mut names: Vec<_> = ledger.queued_changes(&path(at), Some(since)).arrived.into_iter().collect();
        names.sort_unstable();
        names
    };
    assert_eq!(arrived("", stamp), ["a", "e"]);
    assert_eq!(arrived("g/b", stamp), ["c"], "it came to the place where the directory still was");
    assert_eq!(arrived("e", stamp), ["f"]);
    assert_eq!(arrived("", stamp + 1), [""; 0]);
}

#[test]
fn directory_with_queued_rename_outlives_commit_of_its_files() {
    let version = Version { id: Hash([4; 32]).into(), stored_len: 5, side: Side::Plain };
    let mut ledger = Ledger::default();
    let put = QueuedOp::Put { file: FileNo(1), generation: 1, path: path("old/x") };
    let begin = Entry::Begin {
        file: FileNo(1),
        state: DraftState::default(),
        generation: 1,
        mtime: OffsetDateTime::UNIX_EPOCH,
    };
    apply(&mut ledger, vec![track(1, "old/x"), begin, queue(1, put), queue(2, move_directory("old", "p/new"))]);
    apply(&mut ledger, vec![Entry::Committed { file: FileNo(1), generation: 1, version }]);
    apply(&mut ledger, vec![Entry::Finish { op: OpNo(1) }, Entry::End { file: FileNo(1) }]);
    assert!(ledger.file(FileNo(1)).is_none(), "nothing else tells of it");
    assert_eq!(ledger.queued_changes(&path("p"), None).children["new"], LocalChild::Directory);
}

#[test]
fn local_files_and_directories_show_with_their_ancestors() {
    let mut ledger = Ledger::default();
    apply(&mut ledger, vec![track(1, "a/b/c"), Entry::Directory { path: path("d/e") }, track(2, "f")]);
    let root = ledger.queued_changes(&path(""), None).children;
    assert_eq!(root["a"], LocalChild::Directory);
    assert_eq!(root["d"], LocalChild::Directory);
    assert_eq!(root["f"], LocalChild::File(FileNo(2)));
    assert_eq!(ledger.queued_changes(&path("a/b"), None).children["c"], LocalChild::File(FileNo(1)));
    assert!(ledger.queued_changes(&path("f"), None).children.is_empty());
}

#[test]
fn later_operation_replaces_unconfirmed_commit() {
    let version = Version { id: Hash([4; 32]).into(), stored_len: 5, side: Side::Plain };
    let other = Version { id: Hash([5; 32]).into(), ..version };
    let commit = |op, at, version| Entry::Unconfirmed {
        op: OpNo(op),
        commit: Unconfirmed { path: path(at), version, len: None, mtime: OffsetDateTime::UNIX_EPOCH, replaced: false },
    };
    let mut ledger = Ledger::default();
    let own = |file| Entry::Remote { file: FileNo(file), remote: Remote::Own(version, 3) };
    apply(&mut ledger, vec![track(1, "b"), own(1), track(2, "e"), own(2)]);
    let ours = [(1, "a/x"), (2, "b"), (3, "a!"), (4, "c")].map(|(op, at)| commit(op, at, version));
    let others = [(5, "b"), (6, "e")].map(|(op, at)| commit(op, at, other));
    apply(&mut ledger, ours.into_iter().chain(others).collect());
    apply(&mut ledger, vec![queue(11, move_directory("a", "d"))]);
    apply(&mut ledger, vec![queue(12, QueuedOp::Delete { file: FileNo(1), path: path("b") })]);
    apply(&mut ledger, vec![queue(13, QueuedOp::Put { file: FileNo(2), generation: 1, path: path("e") })]);
    apply(&mut ledger, vec![Entry::Confirmed { op: OpNo(4) }]);
    let left: Vec<_> = ledger.unconfirmed().all().map(|(op, commit)| (op.0, commit.path.as_str())).collect();
    // Commits of other versions than the expected one are still read back. A rename of a directory takes the commits
    // below it along.
    assert_eq!(left, [(1, "d/x"), (3, "a!"), (5, "b"), (6, "e")]);
}

fn any_path() -> impl Strategy<Value = PlainPath> {
    "[ab](/[ab]){0,2}".prop_map(|text| path(&text))
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let file = || (1..4u64).prop_map(FileNo);
    let op = || (1..6u64).prop_map(OpNo);
    let version = Version { id: Hash([4; 32]).into(), stored_len: 5, side: Side::Plain };
    let mtime = OffsetDateTime::UNIX_EPOCH;
    let slots = || proptest::collection::vec((0..12u64).prop_map(SlotId), 0..4);
    let what = prop_oneof![
        (file(), any_path()).prop_map(|(file, path)| QueuedOp::Put { file, generation: 2, path }),
        (file(), any_path()).prop_map(|(file, path)| QueuedOp::Delete { file, path }),
        (file(), any_path(), any_path(), proptest::option::of(file()))
            .prop_map(|(file, from, to, replaced)| QueuedOp::Rename { file, from, to, replaced }),
        (any_path(), any_path()).prop_map(|(from, to)| QueuedOp::RenameDirectory { from, to }),
        any_path().prop_map(|path| QueuedOp::RemoveDirectory { path }),
    ];
    prop_oneof![
        (file(), proptest::option::of(any_path())).prop_map(|(file, path)| Entry::Track {
            file,
            path,
            remote: Remote::Absent,
            mtime: None
        }),
        (file(), 0..3u64).prop_map(move |(file, generation)| Entry::Begin {
            file,
            state: DraftState { len: 3, base: Some((version, 2)), ..DraftState::default() },
            generation,
            mtime
        }),
        (file(), slots(), proptest::option::of(0..3u64)).prop_map(move |(file, slots, cut)| {
            let record = |slot| RecordRef { slot, binding: Binding([1; 24]) };
            let placed: Vec<_> = slots.into_iter().enumerate().map(|(at, slot)| (at as u64, record(slot))).collect();
            let checksums = placed.iter().map(|(_, record)| record.slot.0 as u32).collect();
            let delta = Delta { len: 9, base_len: 1, placed, cut, ..Delta::default() };
            Entry::Extend { file, generation: 2, mtime, delta: Some(delta), checksums }
        }),
        (file(), slots()).prop_map(move |(file, records)| Entry::Freeze {
            file,
            generation: 2,
            mtime,
            frozen: Arc::new(Frozen { header: None, len: 3, records })
        }),
        file().prop_map(move |file| Entry::Uploaded { file, generation: 2, stored: Stored { version, plain_len: 3 } }),
        file().prop_map(move |file| Entry::Committed { file, generation: 2, version }),
        file().prop_map(|file| Entry::End { file }),
        (file(), proptest::option::of(any_path())).prop_map(|(file, path)| Entry::Move { file, path }),
        any_path().prop_map(|path| Entry::Directory { path }),
        any_path().prop_map(|path| Entry::ForgetDirectory { path }),
        (op(), what).prop_map(|(op, what)| Entry::Queue { op, what }),
        (op(), any_path(), any::<bool>()).prop_map(move |(op, path, replaced)| {
            Entry::Unconfirmed { op, commit: Unconfirmed { path, version, len: Some(3), mtime, replaced } }
        }),
        op().prop_map(|op| Entry::Confirmed { op }),
        op().prop_map(|op| Entry::Finish { op }),
    ]
}

/// Returns true if two ledgers have equal states.
fn same(one: &Ledger, other: &Ledger) -> bool {
    let names = |ledger: &Ledger| -> BTreeMap<_, _> {
        ledger.slots.iter().map(|(slot, used)| (*slot, (used.count, used.checksum))).collect()
    };
    one.files == other.files
        && one.directories.keys().eq(other.directories.keys())
        && one.queue.iter().eq(other.queue.iter())
        && one.unconfirmed == other.unconfirmed
        && names(one) == names(other)
}

/// Returns false for an entry that the callers of the ledger never produce.
fn makes_sense(ledger: &Ledger, entry: &Entry) -> bool {
    match entry {
        Entry::Track { file, path, .. } => {
            let taken = path.as_ref().is_some_and(|path| ledger.places.contains_key(&PathKey::new(path)));
            !ledger.files.contains_key(file) && !taken
        }
        Entry::Move { path: Some(path), .. } => !ledger.places.contains_key(&PathKey::new(path)),
        Entry::Queue { op, what } => {
            // The file at the target is moved by the operation, or was moved before. A directory at the target is
            // empty.
            let free = |to: &PlainPath| {
                ledger.queued_changes(to, None).children.is_empty() && !ledger.places.contains_key(&PathKey::new(to))
            };
            let fits = match what {
                QueuedOp::Rename { from, to, file, replaced } => {
                    from != to
                        && Some(*file) != *replaced
                        && free(to)
                        && ledger.files.get(file).is_some_and(|r| r.path.is_some())
                }
                QueuedOp::RenameDirectory { from, to } => !to.is_within(from) && !from.is_within(to) && free(to),
                _ => true,
            };
            fits && ledger.queue.get(*op).is_none() && op.0 > ledger.last_op
        }
        _ => true,
    }
}

proptest! {
    #[test]
    fn snapshot_restores_equal_ledger(entries in proptest::collection::vec(any_entry(), 0..60)) {
        let mut ledger = Ledger::default();
        for entry in entries {
            if makes_sense(&ledger, &entry) {
                // An entry that doesn't fit is refused and changes nothing.
                let _ = ledger.apply(&entry);
            }
        }
        let mut copy = Ledger::default();
        for entry in ledger.snapshot() {
            prop_assert!(copy.apply(&entry).is_ok(), "{entry:?}");
        }
        prop_assert!(same(&ledger, &copy), "{:?}\n{:?}", ledger.snapshot(), copy.snapshot());
    }
}

/// Computes the changes to merge into a listing by a walk over the whole queue.
fn overlay_by_walk(ledger: &Ledger, directory: &PlainPath, since: u64) -> QueuedChanges {
    let finished = ledger.finished.ops.iter().filter(|(_, (stamp, _))| *stamp >= since);
    let mut ops: Vec<_> = finished.map(|(op, (_, what))| (*op, what, false)).collect();
    ops.extend(ledger.queue.iter().map(|(op, what)| (op, what, true)));
    ops.sort_unstable_by_key(|(op, ..)| std::cmp::Reverse(*op));
    let (mut walk, mut filled) = (Walk::new(directory), Vec::<PlainPath>::new());
    for (_, what, is_queued) in ops {
        let waits = |place: &&PlainPath| what.paths().any(|path| path.is_within(place) || place.is_within(path));
        filled.iter().filter(|place| is_queued && waits(place)).for_each(|place| walk.is_stale(place.clone()));
        filled.extend(walk.step_back(what, is_queued).into_iter().map(|moved| moved.filled));
    }
    let mut queued_changes = walk.finish();
    let key = PathKey::new(directory);
    let mut add = |at: &PathKey, child| queued_changes.add_child(key.relative(at), child);
    ledger.places.range(key.below()).for_each(|(at, file)| add(at, LocalChild::File(*file)));
    ledger.specials.range(key.below()).for_each(|(at, _)| add(at, LocalChild::Special));
    ledger.directories.range(key.below()).for_each(|(at, _)| add(at, LocalChild::Directory));
    queued_changes
}

fn is_same_overlay(mut one: QueuedChanges, mut other: QueuedChanges) -> bool {
    for queued_changes in [&mut one, &mut other] {
        queued_changes.stale.sort();
        queued_changes.stale.dedup();
    }
    (one.sources, one.stale, one.governed, one.arrived, one.children)
        == (other.sources, other.stale, other.governed, other.arrived, other.children)
}

proptest! {
    #[test]
    fn overlay_matches_walk_over_queue(
        entries in proptest::collection::vec((any_entry(), any::<u8>()), 0..60),
    ) {
        let mut ledger = Ledger::default();
        let mut stamps = vec![u64::MAX];
        for (entry, listing) in entries {
            if listing % 8 == 0 {
                stamps.push(ledger.begin_listing());
            }
            if makes_sense(&ledger, &entry) {
                // An entry that doesn't fit is refused and changes nothing.
                let _ = ledger.apply(&entry);
            }
        }
        for directory in ["", "a", "b", "a/b", "b/a", "a/a", "b/b"].map(path) {
            for since in &stamps {
                let fast = ledger.queued_changes(&directory, Some(*since));
                let slow = overlay_by_walk(&ledger, &directory, *since);
                prop_assert!(is_same_overlay(fast, slow), "{directory:?} since {since}: {:?}", ledger.snapshot());
            }
        }
    }
}

/// Returns a ledger with `files` queued removals and as many pending files below `far/`, and two of each in `near`.
fn crowded(files: u64) -> Ledger {
    let mut ledger = Ledger::default();
    for file in 1..=files {
        let (at, op) = (format!("far/{}/{file}", file % 100), file);
        let what = QueuedOp::Delete { file: FileNo(file), path: path(&at) };
        apply(&mut ledger, vec![track(file, &at), queue(op, what), track(files + file, &format!("{at}.new"))]);
    }
    let what = QueuedOp::Delete { file: FileNo(3 * files), path: path("near/a") };
    apply(&mut ledger, vec![track(3 * files, "near/a"), queue(2 * files, what), track(3 * files + 1, "near/b")]);
    ledger
}

#[test]
fn cost_of_operations_is_independent_of_unrelated_ones() {
    let steps = |files: u64| {
        let mut ledger = crowded(files);
        let near = path("near");
        shortest(|| {
            for _ in 0..200 {
                let taken = ledger.queue_mut().take_ready(OpKind::Batched, 4);
                assert_eq!(taken.len(), 4);
                taken.iter().for_each(|(op, _)| ledger.queue_mut().release(*op));
                let stamp = ledger.begin_listing();
                let (near, root) =
                    (ledger.queued_changes(&near, Some(stamp)), ledger.queued_changes(&path(""), Some(stamp)));
                assert_eq!((near.children.len(), root.children.len()), (1, 2));
                ledger.end_listing(stamp);
                assert!(ledger.queue().name_changes() > files && ledger.queue().of_file(FileNo(7)).count() == 1);
                assert_eq!(ledger.queue().after(Some(OpNo(files - 1))).count(), 2);
            }
        })
    };
    let (few, many) = (steps(100), steps(10_000));
    assert!(many < few * 8, "{few:?} with 100 others, {many:?} with 10,000");
}
