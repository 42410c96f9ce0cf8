//! Encodes journal entries as bytes, and decodes them. Numbers are little-endian. A text or a list is its count as
//! u32, followed by its elements. An option is a byte 0 or 1, followed by the value if there is one.
//!
//! The bytes may come from a damaged disk. So every count is compared with the remaining length before anything is
//! allocated, and only zeros may follow the last entry.

use crate::fs::ids::{FileNo, OpNo, Special};
use crate::fs::journal::ledger::Unconfirmed;
use crate::fs::journal::ledger::{Entry, QueuedOp, Remote};
use crate::store::{
    Binding, ContentId, Delta, DraftState, Format, Frozen, Hash, PlainPath, RecordRef, Side, SlotId, Stored, Version,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use time::OffsetDateTime;

/// The error for bytes that aren't journal entries.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a journal entry")]
pub(crate) struct Malformed;

type Result<T> = std::result::Result<T, Malformed>;

/// Encodes the entries of one journal record. No entry begins with a zero byte, so the record may be padded with
/// zeros.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(256));
    entries.iter().for_each(|entry| out.entry(entry));
    out.0
}

/// Decodes the output of [`encode`], including padding.
pub(crate) fn decode(bytes: &[u8]) -> Result<Vec<Entry>> {
    let mut input = Reader(bytes);
    let mut entries = Vec::new();
    while let Some(tag) = input.0.first().copied().filter(|tag| *tag != 0) {
        input.take(1)?;
        entries.push(input.entry(tag)?);
    }
    if input.0.iter().any(|byte| *byte != 0) {
        return Err(Malformed);
    }
    Ok(entries)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).expect("lists of a journal record are cut far below 4 Gi elements"));
        self.0.extend_from_slice(bytes);
    }
    fn path(&mut self, path: &PlainPath) {
        self.bytes(path.as_str().as_bytes());
    }
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }
    fn time(&mut self, time: OffsetDateTime) {
        self.0.extend_from_slice(&time.unix_timestamp_nanos().to_le_bytes());
    }
    fn content_id(&mut self, id: &ContentId) {
        match id {
            ContentId::Xet(hash) => {
                self.u8(XET);
                self.0.extend_from_slice(&hash.0);
            }
            ContentId::Blob(id) => {
                self.u8(BLOB);
                self.0.extend_from_slice(id);
            }
        }
    }
    fn version(&mut self, version: &Version) {
        self.content_id(&version.id);
        self.u64(version.stored_len);
        self.u8(match version.side {
            Side::Plain => 0,
            Side::Encrypted(Format::V1) => 1,
            Side::Encrypted(Format::V2) => 2,
        });
    }
    fn remote(&mut self, remote: &Remote) {
        match remote {
            Remote::Absent => self.u8(0),
            Remote::Own(version, len) => {
                self.u8(1);
                self.version(version);
                self.u64(*len);
            }
            Remote::Replaced(id) => {
                self.u8(2);
                self.content_id(id);
            }
            Remote::Unhashed => self.u8(3),
            Remote::Unreadable(id) => {
                self.u8(4);
                self.content_id(id);
            }
        }
    }
    fn records<'a>(&mut self, records: impl ExactSizeIterator<Item = (u64, &'a RecordRef)>) {
        self.u32(u32::try_from(records.len()).expect("drafts are journalled in portions"));
        for (index, record) in records {
            self.u64(index);
            self.u64(record.slot.0);
            self.0.extend_from_slice(&record.binding.0);
        }
    }
    /// Writes slot numbers as runs of consecutive numbers, because files are mostly written sequentially.
    fn slots(&mut self, slots: &[SlotId]) {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for slot in slots {
            match runs.last_mut() {
                Some((start, count)) if start.checked_add(*count) == Some(slot.0) => *count += 1,
                _ => runs.push((slot.0, 1)),
            }
        }
        self.u32(u32::try_from(runs.len()).expect("a file has less than 4 Gi records"));
        for (start, count) in runs {
            self.u64(start);
            self.u64(count);
        }
    }
    fn delta(&mut self, delta: &Delta) {
        self.u64(delta.len);
        self.0.extend_from_slice(&delta.binding.0);
        self.u64(delta.base_len);
        self.records(delta.placed.iter().map(|(index, record)| (*index, record)).collect::<Vec<_>>().into_iter());
        self.option(delta.cut, Self::u64);
        self.slots(&delta.freed);
    }
    fn op(&mut self, op: &QueuedOp) {
        match op {
            QueuedOp::Put { file, generation, path } => {
                self.u8(1);
                self.u64(file.0);
                self.u64(*generation);
                self.path(path);
            }
            QueuedOp::Delete { file, path } => {
                self.u8(2);
                self.u64(file.0);
                self.path(path);
            }
            QueuedOp::Rename { file, from, to, replaced } => {
                self.u8(3);
                self.u64(file.0);
                self.path(from);
                self.path(to);
                self.option(replaced.map(|file| file.0), Self::u64);
            }
            QueuedOp::RenameDirectory { from, to } => {
                self.u8(4);
                self.path(from);
                self.path(to);
            }
            QueuedOp::RemoveDirectory { path } => {
                self.u8(5);
                self.path(path);
            }
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Track { file, path, remote, mtime } => {
                self.u8(1);
                self.u64(file.0);
                self.option(path.as_ref(), Self::path);
                self.remote(remote);
                self.option(*mtime, Self::time);
            }
            Entry::Begin { file, state, generation, mtime } => {
                self.u8(2);
                self.u64(file.0);
                self.u64(state.len);
                self.0.extend_from_slice(&state.binding.0);
                self.option(state.base.as_ref(), |out, (version, visible)| {
                    out.version(version);
                    out.u64(*visible);
                });
                let records: Vec<_> = state.records.iter().map(|(index, record)| (*index, record)).collect();
                self.records(records.into_iter());
                self.u64(*generation);
                self.time(*mtime);
            }
            Entry::Extend { file, generation, mtime, delta, checksums } => {
                self.u8(3);
                self.u64(file.0);
                self.u64(*generation);
                self.time(*mtime);
                self.option(delta.as_ref(), Self::delta);
                self.u32(u32::try_from(checksums.len()).expect("as many as records"));
                checksums.iter().for_each(|sum| self.u32(*sum));
            }
            Entry::Freeze { file, generation, mtime, frozen } => {
                self.u8(4);
                self.u64(file.0);
                self.u64(*generation);
                self.time(*mtime);
                self.option(frozen.header.as_deref(), Self::bytes);
                self.u64(frozen.len);
                self.slots(&frozen.records);
            }
            Entry::Uploaded { file, generation, stored } => {
                self.u8(5);
                self.u64(file.0);
                self.u64(*generation);
                self.version(&stored.version);
                self.u64(stored.plain_len);
            }
            Entry::End { file } => {
                self.u8(6);
                self.u64(file.0);
            }
            Entry::Move { file, path } => {
                self.u8(7);
                self.u64(file.0);
                self.option(path.as_ref(), Self::path);
            }
            Entry::Remote { file, remote } => {
                self.u8(8);
                self.u64(file.0);
                self.remote(remote);
            }
            Entry::Directory { path } => {
                self.u8(9);
                self.path(path);
            }
            Entry::ForgetDirectory { path } => {
                self.u8(10);
                self.path(path);
            }
            Entry::Queue { op, what } => {
                self.u8(11);
                self.u64(op.0);
                self.op(what);
            }
            Entry::Finish { op } => {
                self.u8(12);
                self.u64(op.0);
            }
            Entry::Committed { file, generation, version } => {
                self.u8(13);
                self.u64(file.0);
                self.u64(*generation);
                self.version(version);
            }
            Entry::Numbers { file, op } => {
                self.u8(14);
                self.u64(*file);
                self.u64(*op);
            }
            Entry::Unconfirmed { op, commit } => {
                self.u8(15);
                self.u64(op.0);
                self.path(&commit.path);
                self.version(&commit.version);
                self.option(commit.len, Self::u64);
                self.time(commit.mtime);
                self.u8(u8::from(commit.replaced));
            }
            Entry::Confirmed { op } => {
                self.u8(16);
                self.u64(op.0);
            }
            Entry::Special { path, special } => {
                self.u8(17);
                self.path(path);
                self.special(special);
            }
            Entry::ForgetSpecial { path } => {
                self.u8(18);
                self.path(path);
            }
        }
    }

    fn special(&mut self, special: &Special) {
        match special {
            Special::Link(target) => {
                self.u8(1);
                self.bytes(target);
            }
            Special::Fifo => self.u8(2),
            Special::Socket => self.u8(3),
            Special::CharDevice(number) => {
                self.u8(4);
                self.u32(*number);
            }
            Special::BlockDevice(number) => {
                self.u8(5);
                self.u32(*number);
            }
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }
    fn u8(&mut self) -> Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }
    /// Reads a count of elements of at least `each` bytes. Fails if fewer bytes remain.
    fn count(&mut self, each: usize) -> Result<usize> {
        let count = self.u32()? as usize;
        let needed = count.checked_mul(each).ok_or(Malformed)?;
        if needed > self.0.len() { Err(Malformed) } else { Ok(count) }
    }
    fn bytes(&mut self) -> Result<&'a [u8]> {
        let len = self.count(1)?;
        self.take(len)
    }
    fn path(&mut self) -> Result<PlainPath> {
        let text = std::str::from_utf8(self.bytes()?).map_err(|_| Malformed)?;
        PlainPath::new(text).map_err(|_| Malformed)
    }
    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<Option<T>> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(Malformed),
        }
    }
    fn bool(&mut self) -> Result<bool> {
        self.option(|_| Ok(())).map(|value| value.is_some())
    }
    fn time(&mut self) -> Result<OffsetDateTime> {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from_le_bytes(self.array()?)).map_err(|_| Malformed)
    }
    fn file(&mut self) -> Result<FileNo> {
        self.u64().map(FileNo)
    }
    fn content_id(&mut self) -> Result<ContentId> {
        match self.u8()? {
            XET => self.array().map(|hash| ContentId::Xet(Hash(hash))),
            BLOB => self.array().map(ContentId::Blob),
            _ => Err(Malformed),
        }
    }
    fn version(&mut self) -> Result<Version> {
        let id = self.content_id()?;
        let stored_len = self.u64()?;
        let side = match self.u8()? {
            0 => Side::Plain,
            1 => Side::Encrypted(Format::V1),
            2 => Side::Encrypted(Format::V2),
            _ => return Err(Malformed),
        };
        Ok(Version { id, stored_len, side })
    }
    fn remote(&mut self) -> Result<Remote> {
        Ok(match self.u8()? {
            0 => Remote::Absent,
            1 => Remote::Own(self.version()?, self.u64()?),
            2 => Remote::Replaced(self.content_id()?),
            3 => Remote::Unhashed,
            4 => Remote::Unreadable(self.content_id()?),
            _ => return Err(Malformed),
        })
    }
    fn records(&mut self) -> Result<Vec<(u64, RecordRef)>> {
        let count = self.count(40)?;
        (0..count)
            .map(|_| {
                let index = self.u64()?;
                let slot = SlotId(self.u64()?);
                Ok((index, RecordRef { slot, binding: Binding(self.array()?) }))
            })
            .collect()
    }
    fn slots(&mut self) -> Result<Vec<SlotId>> {
        let runs = self.count(16)?;
        let mut slots = Vec::new();
        for _ in 0..runs {
            let (start, count) = (self.u64()?, self.u64()?);
            let end = start.checked_add(count).ok_or(Malformed)?;
            if count > MAX_SLOTS - slots.len() as u64 {
                return Err(Malformed);
            }
            slots.extend((start..end).map(SlotId));
        }
        Ok(slots)
    }
    fn delta(&mut self) -> Result<Delta> {
        Ok(Delta {
            len: self.u64()?,
            binding: Binding(self.array()?),
            base_len: self.u64()?,
            placed: self.records()?,
            cut: self.option(Self::u64)?,
            freed: self.slots()?,
        })
    }
    fn op(&mut self) -> Result<QueuedOp> {
        Ok(match self.u8()? {
            1 => QueuedOp::Put { file: self.file()?, generation: self.u64()?, path: self.path()? },
            2 => QueuedOp::Delete { file: self.file()?, path: self.path()? },
            3 => QueuedOp::Rename {
                file: self.file()?,
                from: self.path()?,
                to: self.path()?,
                replaced: self.option(Self::file)?,
            },
            4 => QueuedOp::RenameDirectory { from: self.path()?, to: self.path()? },
            5 => QueuedOp::RemoveDirectory { path: self.path()? },
            _ => return Err(Malformed),
        })
    }

    fn special(&mut self) -> Result<Special> {
        Ok(match self.u8()? {
            1 => Special::Link(self.bytes()?.to_vec()),
            2 => Special::Fifo,
            3 => Special::Socket,
            4 => Special::CharDevice(self.u32()?),
            5 => Special::BlockDevice(self.u32()?),
            _ => return Err(Malformed),
        })
    }

    fn entry(&mut self, tag: u8) -> Result<Entry> {
        Ok(match tag {
            1 => Entry::Track {
                file: self.file()?,
                path: self.option(Self::path)?,
                remote: self.remote()?,
                mtime: self.option(Self::time)?,
            },
            2 => {
                let file = self.file()?;
                let (len, binding) = (self.u64()?, Binding(self.array()?));
                let base = self.option(|input| Ok((input.version()?, input.u64()?)))?;
                let records: BTreeMap<_, _> = self.records()?.into_iter().collect();
                let state = DraftState { len, binding, base, records };
                Entry::Begin { file, state, generation: self.u64()?, mtime: self.time()? }
            }
            3 => {
                let (file, generation, mtime) = (self.file()?, self.u64()?, self.time()?);
                let delta = self.option(Self::delta)?;
                let count = self.count(4)?;
                let checksums = (0..count).map(|_| self.u32()).collect::<Result<Vec<_>>>()?;
                if count != delta.as_ref().map_or(0, |delta| delta.placed.len()) {
                    return Err(Malformed);
                }
                Entry::Extend { file, generation, mtime, delta, checksums }
            }
            4 => {
                let (file, generation, mtime) = (self.file()?, self.u64()?, self.time()?);
                let header = self.option(|input| input.bytes().map(<[u8]>::to_vec))?;
                let frozen = Frozen { header, len: self.u64()?, records: self.slots()? };
                Entry::Freeze { file, generation, mtime, frozen: Arc::new(frozen) }
            }
            5 => Entry::Uploaded {
                file: self.file()?,
                generation: self.u64()?,
                stored: Stored { version: self.version()?, plain_len: self.u64()? },
            },
            6 => Entry::End { file: self.file()? },
            7 => Entry::Move { file: self.file()?, path: self.option(Self::path)? },
            8 => Entry::Remote { file: self.file()?, remote: self.remote()? },
            9 => Entry::Directory { path: self.path()? },
            10 => Entry::ForgetDirectory { path: self.path()? },
            11 => Entry::Queue { op: OpNo(self.u64()?), what: self.op()? },
            12 => Entry::Finish { op: OpNo(self.u64()?) },
            13 => Entry::Committed { file: self.file()?, generation: self.u64()?, version: self.version()? },
            14 => Entry::Numbers { file: self.u64()?, op: self.u64()? },
            15 => Entry::Unconfirmed {
                op: OpNo(self.u64()?),
                commit: Unconfirmed {
                    path: self.path()?,
                    version: self.version()?,
                    len: self.option(Self::u64)?,
                    mtime: self.time()?,
                    replaced: self.bool()?,
                },
            },
            16 => Entry::Confirmed { op: OpNo(self.u64()?) },
            17 => Entry::Special { path: self.path()?, special: self.special()? },
            18 => Entry::ForgetSpecial { path: self.path()? },
            _ => return Err(Malformed),
        })
    }
}

/// Kind byte of a Xet hash.
const XET: u8 = 0;
/// Kind byte of a Git blob id.
const BLOB: u8 = 1;
/// Limit of the slots in one list: a file of 16 TiB.
const MAX_SLOTS: u64 = 1 << 28;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> impl Strategy<Value = PlainPath> {
        "[a-dé]{1,3}(/[a-d]{1,3}){0,2}".prop_map(|text| PlainPath::new(&text).unwrap())
    }
    fn content_id() -> impl Strategy<Value = ContentId> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(|hash| ContentId::Xet(Hash(hash))),
            any::<[u8; 20]>().prop_map(ContentId::Blob),
        ]
    }
    fn version() -> impl Strategy<Value = Version> {
        (content_id(), any::<u64>(), 0..3u8).prop_map(|(id, stored_len, side)| Version {
            id,
            stored_len,
            side: [Side::Plain, Side::Encrypted(Format::V1), Side::Encrypted(Format::V2)][usize::from(side)],
        })
    }
    fn remote() -> impl Strategy<Value = Remote> {
        prop_oneof![
            Just(Remote::Absent),
            Just(Remote::Unhashed),
            content_id().prop_map(Remote::Replaced),
            content_id().prop_map(Remote::Unreadable),
            (version(), any::<u64>()).prop_map(|(version, len)| Remote::Own(version, len)),
        ]
    }
    fn mtime() -> impl Strategy<Value = OffsetDateTime> {
        (-1i64 << 33..1i64 << 33, 0..1_000_000_000i128).prop_map(|(seconds, nanos)| {
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(seconds) * 1_000_000_000 + nanos).unwrap()
        })
    }
    fn placed() -> impl Strategy<Value = Vec<(u64, RecordRef)>> {
        proptest::collection::btree_map(any::<u64>(), (any::<u64>(), any::<[u8; 24]>()), 0..4).prop_map(|map| {
            let record = |(slot, binding)| RecordRef { slot: SlotId(slot), binding: Binding(binding) };
            map.into_iter().map(|(index, parts)| (index, record(parts))).collect()
        })
    }
    fn slots() -> impl Strategy<Value = Vec<SlotId>> {
        proptest::collection::vec((0..9u64).prop_map(SlotId), 0..9)
    }
    fn op() -> impl Strategy<Value = QueuedOp> {
        let no = any::<u64>().prop_map(FileNo);
        prop_oneof![
            (no.clone(), any::<u64>(), path()).prop_map(|(file, generation, path)| QueuedOp::Put {
                file,
                generation,
                path
            }),
            (no.clone(), path()).prop_map(|(file, path)| QueuedOp::Delete { file, path }),
            (no.clone(), path(), path(), proptest::option::of(no))
                .prop_map(|(file, from, to, replaced)| QueuedOp::Rename { file, from, to, replaced }),
            (path(), path()).prop_map(|(from, to)| QueuedOp::RenameDirectory { from, to }),
            path().prop_map(|path| QueuedOp::RemoveDirectory { path }),
        ]
    }

    fn special() -> impl Strategy<Value = Special> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Special::Link),
            Just(Special::Fifo),
            Just(Special::Socket),
            any::<u32>().prop_map(Special::CharDevice),
            any::<u32>().prop_map(Special::BlockDevice),
        ]
    }

    fn entry() -> impl Strategy<Value = Entry> {
        let no = any::<u64>().prop_map(FileNo);
        let number = any::<u64>();
        let optional = || proptest::option::of(path());
        prop_oneof![
            (no.clone(), optional(), remote(), proptest::option::of(mtime()))
                .prop_map(|(file, path, remote, mtime)| Entry::Track { file, path, remote, mtime }),
            (no.clone(), number, proptest::option::of((version(), number)), placed(), mtime()).prop_map(
                |(file, len, base, records, mtime)| {
                    let state =
                        DraftState { len, binding: Binding([7; 24]), base, records: records.into_iter().collect() };
                    Entry::Begin { file, state, generation: 3, mtime }
                }
            ),
            (no.clone(), mtime(), placed(), proptest::option::of(number), slots()).prop_map(
                |(file, mtime, placed, cut, freed)| {
                    let checksums = placed.iter().map(|(index, _)| *index as u32).collect();
                    let delta = Delta { len: 5, binding: Binding([1; 24]), base_len: 4, placed, cut, freed };
                    Entry::Extend { file, generation: 2, mtime, delta: Some(delta), checksums }
                }
            ),
            (no.clone(), mtime()).prop_map(|(file, mtime)| Entry::Extend {
                file,
                generation: 2,
                mtime,
                delta: None,
                checksums: Vec::new()
            }),
            (no.clone(), mtime(), proptest::option::of(any::<[u8; 70]>()), slots()).prop_map(
                |(file, mtime, header, records)| {
                    let frozen = Frozen { header: header.map(Vec::from), len: 9, records };
                    Entry::Freeze { file, generation: 1, mtime, frozen: Arc::new(frozen) }
                }
            ),
            (no.clone(), version()).prop_map(|(file, version)| Entry::Uploaded {
                file,
                generation: 8,
                stored: Stored { version, plain_len: 77 }
            }),
            no.clone().prop_map(|file| Entry::End { file }),
            (no.clone(), optional()).prop_map(|(file, path)| Entry::Move { file, path }),
            (no.clone(), remote()).prop_map(|(file, remote)| Entry::Remote { file, remote }),
            path().prop_map(|path| Entry::Directory { path }),
            path().prop_map(|path| Entry::ForgetDirectory { path }),
            (number, op()).prop_map(|(no, what)| Entry::Queue { op: OpNo(no), what }),
            number.prop_map(|no| Entry::Finish { op: OpNo(no) }),
            (no, version()).prop_map(|(file, version)| Entry::Committed { file, generation: 4, version }),
            (number, number).prop_map(|(file, op)| Entry::Numbers { file, op }),
            (number, path(), version(), mtime(), any::<bool>()).prop_map(|(op, path, version, mtime, replaced)| {
                let len = (op % 3 > 0).then_some(op ^ 5);
                Entry::Unconfirmed { op: OpNo(op), commit: Unconfirmed { path, version, len, mtime, replaced } }
            }),
            number.prop_map(|op| Entry::Confirmed { op: OpNo(op) }),
            (path(), special()).prop_map(|(path, special)| Entry::Special { path, special }),
            path().prop_map(|path| Entry::ForgetSpecial { path }),
        ]
    }

    proptest! {
        #[test]
        fn encoded_entries_with_padding_decode_to_themselves(
            entries in proptest::collection::vec(entry(), 0..4),
            pad in 0..40usize,
        ) {
            let mut bytes = encode(&entries);
            bytes.resize(bytes.len() + pad, 0);
            prop_assert_eq!(decode(&bytes).unwrap(), entries);
        }

        #[test]
        fn truncated_entries_are_rejected(entry in entry(), at in any::<prop::sample::Index>()) {
            let bytes = encode(&[entry]);
            let cut = 1 + at.index(bytes.len() - 1);
            if cut < bytes.len() {
                // The bytes that were cut off may have been zeros only. Then the rest can't decode to the whole entry
                // either.
                prop_assert_ne!(decode(&bytes[..cut]).map(|entries| encode(&entries)), Ok(bytes.clone()));
            }
        }

        #[test]
        fn arbitrary_bytes_decode_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn huge_run_of_slots_is_rejected() {
        let mut out = Writer(Vec::new());
        out.u8(4);
        out.u64(1);
        out.u64(1);
        out.time(OffsetDateTime::UNIX_EPOCH);
        out.u8(0);
        out.u64(0);
        out.u32(1);
        out.u64(0);
        out.u64(u64::MAX);
        assert_eq!(decode(&out.0), Err(Malformed));
    }
}
