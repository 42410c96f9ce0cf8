//! Tests of the journal on disk: the records that survive, are truncated or are refused.

use super::*;
use crate::disk::RealDisk;
use crate::fs::ids::{FileNo, OpNo};
use crate::fs::journal::ledger::Unconfirmed;
use crate::fs::journal::ledger::{QueuedOp, Remote};
use crate::fs::memory_view::sealer;
use crate::store::{Binding, ContentId, Delta, DraftState, PlainPath, RecordRef, SlotIo};
use time::OffsetDateTime;

const SLOT: usize = 4096;

fn open(folder: &Path) -> Result<(Arc<Journal>, Arc<Pool>), Error> {
    Journal::open(Arc::new(RealDisk), folder, [3; 32], SLOT, sealer())
}

fn path(text: &str) -> PlainPath {
    PlainPath::new(text).unwrap()
}

fn directory(text: &str) -> Entry {
    Entry::Directory { path: path(text) }
}

/// Returns entries for a file with a draft.
fn begin(file: u64) -> Vec<Entry> {
    let (file, state, mtime) = (FileNo(file), DraftState::default(), OffsetDateTime::UNIX_EPOCH);
    let place = Some(path(&format!("f{}", file.0)));
    vec![
        Entry::Track { file, path: place, remote: Remote::Absent, mtime: None },
        Entry::Begin { file, state, generation: 1, mtime },
    ]
}

/// Returns an entry that moves record 0 of the file to a new slot, filled with `byte`.
fn extend(pool: &Pool, file: u64, byte: u8) -> (SlotId, Entry) {
    let slot = pool.allocate().unwrap();
    pool.write(slot, &[byte; SLOT]).unwrap();
    (slot, place(pool, file, slot))
}

fn place(pool: &Pool, file: u64, slot: SlotId) -> Entry {
    let record = RecordRef { slot, binding: Binding::default() };
    let delta = Delta { len: 9, placed: vec![(0, record)], ..Delta::default() };
    Entry::Extend {
        file: FileNo(file),
        generation: 2,
        mtime: OffsetDateTime::UNIX_EPOCH,
        delta: Some(delta),
        checksums: vec![pool.checksum(slot)],
    }
}

async fn add(journal: &Journal, entries: Vec<Entry>) -> Ticket {
    let ticket = journal.append(Purpose::Work, entries).unwrap();
    journal.written(ticket).await.unwrap();
    ticket
}

fn directories(journal: &Journal) -> Vec<String> {
    let ledger = journal.ledger();
    let all = ledger.directories_within(&PlainPath::root()).map(|path| path.as_str().to_owned()).collect();
    drop(ledger);
    all
}

/// Returns the file, and the offsets of its records.
fn records(folder: &Path) -> (Vec<u8>, Vec<usize>) {
    let bytes = std::fs::read(folder.join("journal")).unwrap();
    let mut starts = Vec::new();
    let mut at = HEADER_LEN;
    while at + RECORD_HEADER_LEN <= bytes.len() {
        let len = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        starts.push(at);
        at += (RECORD_HEADER_LEN + len).next_multiple_of(8);
    }
    (bytes, starts)
}

fn rewrite(folder: &Path, bytes: &[u8]) {
    std::fs::write(folder.join("journal"), bytes).unwrap();
}

#[tokio::test]
async fn records_survive_kill() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    for name in ["a", "b", "a/c"] {
        add(&journal, vec![directory(name)]).await;
    }
    drop(journal);
    let (journal, _) = open(dir.path()).unwrap();
    assert_eq!(directories(&journal), ["a", "a/c", "b"]);
}

#[tokio::test]
async fn tail_torn_at_any_byte_is_truncated() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    add(&journal, vec![directory("b")]).await;
    // A kill and not an orderly end: nothing is synced.
    let (bytes, starts) = records(dir.path());
    let last = *starts.last().unwrap();
    drop(journal);
    for cut in (last..bytes.len() - 8).step_by(13) {
        rewrite(dir.path(), &bytes[..cut]);
        let (journal, _) = open(dir.path()).unwrap();
        assert_eq!(directories(&journal), ["a"], "cut at {cut}");
    }
    for flip in (last..bytes.len() - 8).step_by(29) {
        let mut bytes = bytes.clone();
        bytes[flip] ^= 0x10;
        rewrite(dir.path(), &bytes);
        let (journal, _) = open(dir.path()).unwrap();
        assert_eq!(directories(&journal), ["a"], "flipped at {flip}");
    }
}

#[tokio::test]
async fn append_after_truncated_tail_works() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    drop(journal);
    let (bytes, _) = records(dir.path());
    rewrite(dir.path(), &[&bytes[..], &[0xff; 100]].concat());
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("b")]).await;
    drop(journal);
    let (journal, _) = open(dir.path()).unwrap();
    assert_eq!(directories(&journal), ["a", "b"]);
}

#[tokio::test]
async fn bad_record_in_middle_is_error_and_file_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    let first = add(&journal, vec![directory("a")]).await;
    journal.synced(first).await.unwrap();
    // This record says that the first one was durable.
    add(&journal, vec![directory("b")]).await;
    let (bytes, starts) = records(dir.path());
    drop(journal);
    for at in [starts[1], starts[1] + 6, starts[1] + 40] {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        rewrite(dir.path(), &bytes);
        match open(dir.path()) {
            Err(Error::Journal { why, .. }) => assert!(why.contains("damaged"), "{why}"),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a hole was taken for a tail"),
        }
        assert_eq!(std::fs::read(dir.path().join("journal")).unwrap(), bytes);
    }
}

#[tokio::test]
async fn journal_of_other_remote_or_with_damaged_header_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    drop(journal);
    let (bytes, _) = records(dir.path());
    assert!(matches!(
        Journal::open(Arc::new(RealDisk), dir.path(), [4; 32], SLOT, sealer()),
        Err(Error::Journal { .. })
    ));
    assert!(matches!(
        Journal::open(Arc::new(RealDisk), dir.path(), [3; 32], SLOT + 1, sealer()),
        Err(Error::Journal { .. })
    ));
    for broken in [&bytes[..100], &[], b"not a journal at all"] {
        rewrite(dir.path(), broken);
        assert!(matches!(open(dir.path()), Err(Error::Journal { .. })));
        assert_eq!(std::fs::read(dir.path().join("journal")).unwrap(), broken);
    }
}

/// Returns the start of a journal of the earlier layout: the header, made by hand, and the head of a first record.
fn earlier_journal() -> Vec<u8> {
    let mut bytes = b"HFCJRNL1".to_vec();
    bytes.extend((SLOT as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend([9; 32]);
    bytes.extend([3; 32]);
    bytes.extend(1u64.to_le_bytes());
    bytes.extend([0; 36]);
    bytes.extend(checksum(&bytes).to_le_bytes());
    assert_eq!(bytes.len(), 128);
    bytes.extend([9; 28]);
    bytes
}

#[test]
fn journal_of_earlier_layout_is_refused_and_kept() {
    let whole = earlier_journal();
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    for bytes in [&whole[..], &whole[..8], &whole[..100], &damaged] {
        let dir = tempfile::tempdir().unwrap();
        let pool = [7; SLOT];
        rewrite(dir.path(), bytes);
        std::fs::write(dir.path().join("pool"), pool).unwrap();
        match open(dir.path()).err() {
            Some(error @ Error::EarlierJournal(_)) => {
                let named = dir.path().join("journal").display().to_string();
                assert_eq!(error.errno(), libc::EIO);
                let why = "it was written by an earlier version of this program; the file is kept as it is";
                assert_eq!(error.to_string(), format!("journal {named}: {why}"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(std::fs::read(dir.path().join("journal")).unwrap(), bytes);
        assert_eq!(std::fs::read(dir.path().join("pool")).unwrap(), pool);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "nothing was added");
    }
}

#[tokio::test]
async fn record_at_wrong_position_is_bad() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    add(&journal, vec![directory("b")]).await;
    drop(journal);
    let (bytes, starts) = records(dir.path());
    let end = bytes.len();
    let swapped = [&bytes[..starts[1]], &bytes[starts[2]..end], &bytes[starts[1]..starts[2]]].concat();
    rewrite(dir.path(), &swapped);
    let (journal, _) = open(dir.path()).unwrap();
    assert!(directories(&journal).is_empty());
}

#[tokio::test]
async fn replaced_slot_is_freed_only_after_replacing_record_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    add(&journal, begin(1)).await;
    let (old, entry) = extend(&pool, 1, 1);
    add(&journal, vec![entry]).await;
    let (new, entry) = extend(&pool, 1, 2);
    let ticket = add(&journal, vec![entry]).await;
    assert_eq!(pool.used(), 2, "{old:?} {new:?}");
    journal.synced(ticket).await.unwrap();
    // The slots are freed by the thread that synced, right after it reported the sync.
    while pool.used() != 1 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pool.allocate().unwrap(), old);
}

#[tokio::test]
async fn frozen_version_keeps_slots_until_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    add(&journal, begin(1)).await;
    let (old, entry) = extend(&pool, 1, 1);
    let frozen = Arc::new(crate::store::Frozen { header: None, len: 9, records: vec![old] });
    let freeze = Entry::Freeze { file: FileNo(1), generation: 2, mtime: OffsetDateTime::UNIX_EPOCH, frozen };
    add(&journal, vec![entry, freeze]).await;
    let (_, entry) = extend(&pool, 1, 2);
    let ticket = add(&journal, vec![entry]).await;
    journal.synced(ticket).await.unwrap();
    let ticket = add(&journal, vec![Entry::Directory { path: path("d") }]).await;
    journal.synced(ticket).await.unwrap();
    assert_eq!(pool.used(), 2);
    drop((journal, pool));
    let (journal, pool) = open(dir.path()).unwrap();
    assert_eq!(pool.used(), 2);
    let ticket = add(&journal, vec![Entry::End { file: FileNo(1) }]).await;
    journal.synced(ticket).await.unwrap();
    while pool.used() != 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn frozen_slot_keeps_checksum_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    add(&journal, begin(1)).await;
    let (old, entry) = extend(&pool, 1, 1);
    let sum = pool.checksum(old);
    let frozen = Arc::new(crate::store::Frozen { header: None, len: 9, records: vec![old] });
    let freeze = Entry::Freeze { file: FileNo(1), generation: 2, mtime: OffsetDateTime::UNIX_EPOCH, frozen };
    let (new, later) = extend(&pool, 1, 2);
    add(&journal, vec![entry, freeze, later]).await;
    drop((journal, pool));
    for _ in 0..2 {
        // Each start compacts the journal.
        let (journal, pool) = open(dir.path()).unwrap();
        assert_eq!((pool.checksum(old), pool.used()), (sum, 2));
        let ledger = journal.ledger();
        let draft = ledger.file(FileNo(1)).unwrap().draft.as_ref().unwrap();
        assert_eq!(draft.state.records.values().map(|record| record.slot).collect::<Vec<_>>(), [new]);
        assert_eq!(draft.frozen.as_ref().unwrap().frozen.records, [old]);
    }
}

#[tokio::test]
async fn record_naming_unwritten_slot_belongs_to_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    let ticket = add(&journal, begin(1)).await;
    journal.synced(ticket).await.unwrap();
    let (slot, entry) = extend(&pool, 1, 1);
    add(&journal, vec![entry]).await;
    add(&journal, vec![directory("after")]).await;
    let image = std::fs::read(dir.path().join("journal")).unwrap();
    drop((journal, pool));
    // The power was cut before the slot's bytes reached the disk.
    rewrite(dir.path(), &image);
    let bytes = std::fs::read(dir.path().join("pool")).unwrap();
    let mut torn = bytes.clone();
    torn[slot.0 as usize * SLOT..][..512].fill(0);
    std::fs::write(dir.path().join("pool"), &torn).unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    assert!(directories(&journal).is_empty(), "what came after goes too: order counts");
    let generation = journal.ledger().file(FileNo(1)).unwrap().draft.as_ref().unwrap().generation;
    assert_eq!(generation, 1);
}

#[tokio::test]
async fn reallocated_slot_is_not_taken_for_torn_one() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    add(&journal, begin(1)).await;
    let (old, entry) = extend(&pool, 1, 1);
    add(&journal, vec![entry]).await;
    let (_, entry) = extend(&pool, 1, 2);
    let ticket = add(&journal, vec![entry]).await;
    journal.synced(ticket).await.unwrap();
    while pool.used() != 1 {
        tokio::task::yield_now().await;
    }
    // The slot is reused. The kill comes before any later record could say that the others were durable.
    assert_eq!(pool.allocate().unwrap(), old);
    pool.write(old, &[9; SLOT]).unwrap();
    drop((journal, pool));
    let (journal, pool) = open(dir.path()).unwrap();
    let record = journal.ledger().file(FileNo(1)).unwrap().clone();
    assert_eq!(record.draft.unwrap().generation, 2);
    assert_eq!(pool.used(), 1);
}

#[tokio::test]
async fn long_journal_is_compacted_to_equal_state() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, pool) = open(dir.path()).unwrap();
    add(&journal, begin(1)).await;
    add(&journal, begin(2)).await;
    let (_, entry) = extend(&pool, 1, 1);
    add(&journal, vec![entry]).await;
    let rename = QueuedOp::RenameDirectory { from: path("old"), to: path("new") };
    add(&journal, vec![directory("old/empty"), Entry::Queue { op: OpNo(1), what: rename }]).await;
    add(&journal, vec![directory("old")]).await;
    let name = "x".repeat(200);
    let mut longest = 0;
    for i in 0..40_000 {
        journal.append(Purpose::Work, vec![directory(&format!("{name}{}", i % 3))]).unwrap();
        if i % 1000 == 0 {
            journal.written(journal.last()).await.unwrap();
            longest = longest.max(std::fs::metadata(dir.path().join("journal")).unwrap().len());
        }
    }
    journal.synced(journal.last()).await.unwrap();
    let len = std::fs::metadata(dir.path().join("journal")).unwrap().len();
    assert!(len.max(longest) < 2 * COMPACT_LEN, "{len} {longest}");
    let before = directories(&journal);
    let files: Vec<_> = journal.ledger().files().map(|(file, record)| (file, record.clone())).collect();
    let ops: Vec<_> = journal.ledger().queue().iter().map(|(op, what)| (op, what.clone())).collect();
    drop((journal, pool));
    let (journal, pool) = open(dir.path()).unwrap();
    assert_eq!(directories(&journal), before);
    assert_eq!(journal.ledger().files().map(|(file, record)| (file, record.clone())).collect::<Vec<_>>(), files);
    assert_eq!(journal.ledger().queue().iter().map(|(op, what)| (op, what.clone())).collect::<Vec<_>>(), ops);
    assert_eq!(pool.used(), 1);
}

#[tokio::test]
async fn append_cost_with_nothing_pending_is_independent_of_ledger_size() {
    let link = |text: &str| Entry::Special { path: path(text), special: crate::fs::Special::Link(vec![b'x'; 40]) };
    let mut costs = Vec::new();
    for count in [1_000_u32, 10_000, 100_000] {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path()).unwrap();
        let mut last = journal.last();
        for number in 0..count {
            let entry = if number % 2 == 0 { link(&format!("link{number}")) } else { directory(&format!("d{number}")) };
            last = journal.append(Purpose::Work, vec![entry]).unwrap();
        }
        journal.written(last).await.unwrap();
        let (times, bytes) = journal.compactions();
        // Each compaction comes after the same amount was appended again.
        assert!(times <= 20, "{times} compactions for {count} appends");
        costs.push(bytes / u64::from(count));
        drop(journal);
        let (journal, _) = open(dir.path()).unwrap();
        assert_eq!(directories(&journal).len() as u32, count / 2);
    }
    assert!(costs.iter().all(|cost| *cost < 1000), "bytes rewritten per append: {costs:?}");
}

#[tokio::test]
async fn compaction_in_flight_is_not_followed_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    let before = journal.compactions().0;
    let mut number = 0;
    while journal.compactions().0 == before {
        number += 1;
        journal.append(Purpose::Work, vec![directory(&format!("d{number}"))]).unwrap();
    }
    // There is no await in between. The writer may or may not have begun.
    for more in 0..100 {
        journal.append(Purpose::Work, vec![directory(&format!("more{more}"))]).unwrap();
        std::thread::yield_now();
    }
    assert_eq!(journal.compactions().0, before + 1);
}

#[tokio::test]
async fn crash_during_compaction_leaves_old_journal() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    drop(journal);
    std::fs::write(dir.path().join("journal.new"), b"half of it").unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    assert_eq!(directories(&journal), ["a"]);
}

#[tokio::test]
async fn one_sync_serves_many() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    let all = (0..100).map(|i| {
        let journal = journal.clone();
        async move {
            let ticket = journal.append(Purpose::Work, vec![directory(&format!("d{i}"))]).unwrap();
            journal.synced(ticket).await.unwrap();
        }
    });
    futures::future::join_all(all).await;
    assert_eq!(directories(&journal).len(), 100);
}

#[tokio::test]
async fn record_that_fits_in_part_stops_journal_and_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    assert!(journal.append(Purpose::Work, vec![directory("b"), Entry::End { file: FileNo(9) }]).is_err());
    assert!(journal.append(Purpose::Relief, vec![directory("c")]).is_err(), "it would build on half a record");
    assert!(!journal.compact_if_worthwhile());
    drop(journal);
    let (journal, _) = open(dir.path()).unwrap();
    assert_eq!(directories(&journal), ["a"]);
}

#[tokio::test]
async fn invalid_entry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    assert!(journal.append(Purpose::Work, vec![Entry::End { file: FileNo(9) }]).is_err());
    add(&journal, vec![directory("a")]).await;
    assert_eq!(directories(&journal), ["a"]);
}

/// Returns the cells of the tables in a section of docs/journal.md.
fn documented(section: &str) -> Vec<Vec<String>> {
    let text = include_str!("../../../../docs/journal.md");
    let (_, section) = text.split_once(&format!("\n## {section}\n")).unwrap();
    let lines = section.split("\n## ").next().unwrap().lines();
    let rows = lines.filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"));
    rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

#[tokio::test]
async fn documented_layout_matches_file() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path()).unwrap();
    add(&journal, vec![directory("a")]).await;
    let (bytes, starts) = records(dir.path());
    let rows = documented("Layout");
    let number = |cell: &str| cell.parse::<usize>().unwrap();
    let header: Vec<_> = rows.iter().skip_while(|row| row[0] != "0").take_while(|row| row[0] != "offset").collect();
    let record: Vec<_> = rows.iter().rev().take_while(|row| row[0] != "offset").collect();
    let field = |rows: &[&Vec<String>], what: &str| {
        let row = rows.iter().find(|row| row[2].starts_with(what)).unwrap_or_else(|| panic!("{what}"));
        number(&row[0])..number(&row[0]) + number(&row[1])
    };
    let mut end = 0;
    for row in &header {
        assert_eq!(number(&row[0]), end, "{row:?}");
        end += number(&row[1]);
    }
    assert_eq!(end, HEADER_LEN);
    assert_eq!(&bytes[field(&header, &format!("`{}`", MAGIC.escape_ascii()))], MAGIC);
    assert_eq!(bytes[field(&header, "slot length")], (SLOT as u32).to_le_bytes());
    assert_eq!(bytes[field(&header, "identity")], [3; 32]);
    let crc = field(&header, "CRC-32C");
    assert_eq!(bytes[crc.clone()], checksum(&bytes[..crc.start]).to_le_bytes());

    let at = *starts.last().unwrap();
    let last = &bytes[at..];
    let read =
        |range: std::ops::Range<usize>| last[range].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    assert_eq!(last[field(&record, "the first 4 bytes")], bytes[field(&header, "journal id")][..4]);
    let len = read(field(&record, "length of the payload")) as usize;
    assert!(record.iter().any(|row| row[2].contains("at most 67,108,864")) && MAX_PAYLOAD == 67_108_864);
    let before = &bytes[starts[starts.len() - 2]..];
    let sequence = field(&record, "sequence number");
    assert_eq!(last[sequence.clone()][0], before[sequence][0] + 1);
    let payload = number(&record.iter().find(|row| row[2] == "payload").unwrap()[0]);
    assert_eq!(payload, RECORD_HEADER_LEN);
    let crc = field(&record, "CRC-32C");
    let sum = checksum(&[&last[4..24], &last[payload..payload + len]].concat());
    assert_eq!(read(crc), u64::from(sum));
    let sealed_for: [u8; 32] = std::array::from_fn(|i| bytes[16 + i]);
    let opened = sealer().open(&sealed_for, read(field(&record, "sequence number")), &last[payload..payload + len]);
    assert_eq!(opened.unwrap().len() % PADDING, 0);
}

#[test]
fn each_entry_is_documented_under_its_tag() {
    let rows = documented("Entries");
    let documented: Vec<_> = rows.iter().filter_map(|row| Some((row[0].parse::<u8>().ok()?, row[1].clone()))).collect();
    let (file, op, mtime, path) = (FileNo(1), OpNo(1), OffsetDateTime::UNIX_EPOCH, path("a"));
    let version = crate::store::Version {
        id: crate::store::Hash([1; 32]).into(),
        stored_len: 1,
        side: crate::store::Side::Plain,
    };
    let stored = crate::store::Stored { version, plain_len: 1 };
    let frozen = Arc::new(crate::store::Frozen { header: None, len: 0, records: Vec::new() });
    let entries = [
        Entry::Track { file, path: None, remote: Remote::Absent, mtime: None },
        Entry::Begin { file, state: DraftState::default(), generation: 1, mtime },
        Entry::Extend { file, generation: 1, mtime, delta: None, checksums: Vec::new() },
        Entry::Freeze { file, generation: 1, mtime, frozen },
        Entry::Uploaded { file, generation: 1, stored },
        Entry::End { file },
        Entry::Move { file, path: None },
        Entry::Remote { file, remote: Remote::Absent },
        Entry::Directory { path: path.clone() },
        Entry::ForgetDirectory { path: path.clone() },
        Entry::Queue { op, what: QueuedOp::RemoveDirectory { path: path.clone() } },
        Entry::Finish { op },
        Entry::Committed { file, generation: 1, version },
        Entry::Numbers { file: 1, op: 1 },
        Entry::Unconfirmed {
            op,
            commit: Unconfirmed { path: path.clone(), version, len: Some(1), mtime, replaced: false },
        },
        Entry::Confirmed { op },
        Entry::Special { path: path.clone(), special: crate::fs::Special::Fifo },
        Entry::ForgetSpecial { path },
    ];
    let name = |entry: &Entry| format!("{entry:?}").split(' ').next().unwrap().to_owned();
    let there: Vec<_> =
        entries.iter().map(|entry| (codec::encode(std::slice::from_ref(entry))[0], name(entry))).collect();
    assert_eq!(documented, there);
}

#[test]
fn every_kind_of_content_id_is_documented_under_its_byte() {
    let rows = documented("Content ids");
    let number = |cell: &str| cell.parse::<usize>().ok();
    let documented: Vec<_> = rows.iter().filter_map(|row| Some((number(&row[0])?, number(&row[2])?))).collect();
    let ids = [ContentId::Xet(crate::store::Hash([0xab; 32])), ContentId::Blob([0xab; 20])];
    let encoded = ids.map(|id| {
        let remote = |remote| codec::encode(&[Entry::Remote { file: FileNo(1), remote }]);
        // Tag, file and the kind of remote stand before the id.
        let bytes = remote(Remote::Replaced(id))[10..].to_vec();
        assert!(bytes[1..].iter().all(|byte| *byte == 0xab));
        (usize::from(bytes[0]), bytes.len() - 1)
    });
    assert_eq!(documented, encoded);
}

#[test]
fn documented_limits_match_code() {
    let text = include_str!("../../../../docs/journal.md").replace('\n', " ");
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    for told in [
        format!("padded with zeros to a multiple of {PADDING} bytes"),
        format!("ahead ({})", mib(RESERVE)),
        format!("longer than {} snapshots", if GROWTH == 4 { "four" } else { "other" }),
        format!("longer than {} ({} KiB if nothing is pending)", mib(COMPACT_LEN), BLANK_LEN >> 10),
        format!("| journal | {} GiB;", MAX_LEN >> 30),
        format!("| payload of a record | {} |", mib(MAX_PAYLOAD as u64)),
        format!("grows by {} slots", crate::store::staging::GROWTH),
        format!("more than {}, or", crate::store::staging::SLACK),
        "read back | 65,536;".to_owned(),
    ] {
        assert!(text.contains(&told), "docs/journal.md doesn't say {told:?}");
    }
    assert_eq!(crate::fs::sync::readback::MAX_UNCONFIRMED, 65_536);
    assert_eq!(crate::fs::persist::TICK, Duration::from_secs(1), "synced every second");
}
