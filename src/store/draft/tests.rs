//! Compares a draft with a simple model (a byte vector), on slots that detect every broken rule.

use super::*;
use crate::crypto::MasterKey;
use crate::store::Side;
use crate::xet::Hash;
use proptest::prelude::*;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;

/// Slots in memory. A slot is written once between its allocation and its release.
#[derive(Default)]
struct Pool {
    inner: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    next: u64,
    bytes: HashMap<SlotId, Vec<u8>>,
    reserved: BTreeSet<SlotId>,
    full: bool,
}

impl SlotIo for Pool {
    fn allocate(&self) -> io::Result<SlotId> {
        let mut inner = self.inner.lock().unwrap();
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.next += 1;
        let slot = SlotId(inner.next);
        inner.reserved.insert(slot);
        Ok(slot)
    }

    fn cancel(&self, slot: SlotId) {
        let mut inner = self.inner.lock().unwrap();
        assert!(inner.reserved.remove(&slot), "a slot is released once");
        inner.bytes.remove(&slot);
    }

    fn read(&self, slot: SlotId, out: &mut [u8]) -> io::Result<()> {
        out.copy_from_slice(&self.inner.lock().unwrap().bytes[&slot]);
        Ok(())
    }

    fn write(&self, slot: SlotId, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        assert!(inner.reserved.contains(&slot));
        assert!(inner.bytes.insert(slot, bytes.to_vec()).is_none(), "no slot is written twice");
        Ok(())
    }
}

impl Pool {
    fn flip(&self, slot: SlotId, at: usize) {
        self.inner.lock().unwrap().bytes.get_mut(&slot).unwrap()[at] ^= 1;
    }
}

/// A base version with known bytes.
#[derive(Default)]
struct Fixed {
    bytes: Vec<u8>,
    id: [u8; 24],
    shared: bool,
}

struct FixedObject(Vec<u8>);

#[async_trait]
impl Object for FixedObject {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Bytes, Error> {
        let start = (offset as usize).min(self.0.len());
        Ok(Bytes::copy_from_slice(&self.0[start..self.0.len().min(start + len)]))
    }
}

#[async_trait]
impl Bases for Fixed {
    async fn open(&self, _: &Version) -> Result<Arc<dyn Object>, Error> {
        Ok(Arc::new(FixedObject(self.bytes.clone())))
    }

    async fn file_id(&self, _: &Version) -> Result<FileId, Error> {
        Ok(FileId(self.id))
    }

    async fn sealed(&self, version: &Version, records: Range<u64>) -> Result<Bytes, Error> {
        let Side::Encrypted(format) = version.side else { return Err(Error::WrongSide) };
        let cipher = keys().records(format, &FileId(self.id));
        let mut sealed = Vec::new();
        for index in records {
            let mut slot = [0; RECORD_LEN];
            slot[NONCE_LEN..][..RECORD_PLAIN]
                .copy_from_slice(&self.bytes[index as usize * RECORD_PLAIN..][..RECORD_PLAIN]);
            // A draft would draw another nonce. This one shows that a record was copied.
            cipher.seal(index, &[0xab; NONCE_LEN], &mut slot);
            sealed.extend_from_slice(&slot);
        }
        Ok(sealed.into())
    }

    fn is_shared(&self, _: &Version) -> bool {
        self.shared
    }
}

fn keys() -> Arc<Keys> {
    Arc::new(Keys::derive(&MasterKey::from_bytes([7; 32])))
}

fn sealed(format: Format, padding: Padding) -> Medium {
    Medium::Sealed { keys: keys(), format, padding }
}

fn version(stored_len: u64, format: Format) -> Version {
    Version { id: Hash([9; 32]).into(), stored_len, side: Side::Encrypted(format) }
}

/// Returns the bytes of a frozen version, read back as any reader would.
fn thaw(medium: &Medium, pool: &Pool, frozen: &Frozen) -> Vec<u8> {
    let mut stored: Vec<u8> = frozen.header.clone().unwrap_or_default();
    for slot in &frozen.records {
        stored.extend_from_slice(&pool.inner.lock().unwrap().bytes[slot]);
    }
    let mut plain = match medium {
        Medium::Plain => stored,
        Medium::Sealed { keys, format, .. } => {
            let header = keys.open_header(*format, &stored[..geometry::HEADER_LEN], stored.len() as u64).unwrap();
            assert_eq!(header.plain_len.0, frozen.len);
            assert_eq!(header.records, frozen.records.len() as u64);
            let cipher = keys.records(*format, &header.file_id);
            let mut plain = Vec::new();
            for (index, slot) in stored[geometry::HEADER_LEN..].as_chunks_mut::<RECORD_LEN>().0.iter_mut().enumerate() {
                cipher.open(index as u64, slot).unwrap();
                plain.extend_from_slice(&slot[NONCE_LEN..NONCE_LEN + RECORD_PLAIN]);
            }
            plain
        }
    };
    let past_end = plain.split_off(frozen.len as usize);
    assert!(past_end.iter().all(|b| *b == 0), "no old bytes may stay past the end");
    plain
}

#[derive(Clone, Debug)]
enum Action {
    Write(u64, usize, u8),
    Truncate(u64),
    Read(u64, usize),
    Settle,
    Freeze,
    Restore,
    /// Takes a gap, starting at this record.
    Gap(u64),
    /// Fetches the oldest gap that was taken, and hands it back.
    Fill,
}

fn offsets() -> impl Strategy<Value = u64> {
    // Most mistakes are at boundaries of records.
    let near = (0u64..6, -2i64..3).prop_map(|(record, delta)| (record * PLAIN).saturating_add_signed(delta));
    prop_oneof![near, 0u64..5 * PLAIN]
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let len = prop_oneof![0usize..20, 0usize..3 * RECORD_PLAIN, Just(RECORD_PLAIN), Just(2 * RECORD_PLAIN)];
    let one = prop_oneof![
        6 => (offsets(), len.clone(), any::<u8>()).prop_map(|(at, len, byte)| Action::Write(at, len, byte)),
        2 => offsets().prop_map(Action::Truncate),
        1 => Just(Action::Truncate(0)),
        3 => (offsets(), len).prop_map(|(at, len)| Action::Read(at, len)),
        2 => Just(Action::Settle),
        1 => Just(Action::Freeze),
        1 => Just(Action::Restore),
        2 => (0u64..5).prop_map(Action::Gap),
        2 => Just(Action::Fill),
    ];
    prop::collection::vec(one, 1..30)
}

/// Replays deltas as a journal would.
fn apply(journalled: &mut DraftState, delta: &Delta) {
    if let Some(cut) = delta.cut {
        journalled.records.split_off(&cut);
    }
    journalled.records.extend(delta.placed.iter().copied());
    journalled.len = delta.len;
    journalled.binding = delta.binding;
    if let Some((_, visible)) = &mut journalled.base {
        *visible = delta.base_len;
    }
}

async fn history(medium: Medium, base: Vec<u8>, actions: Vec<Action>) {
    let pool = Arc::new(Pool::default());
    let bases = Arc::new(Fixed { bytes: base.clone(), ..Fixed::default() });
    let len = base.len() as u64;
    let start = DraftState { len, base: Some((version(len, Format::V2), len)), ..DraftState::default() };
    let mut journalled = start.clone();
    let mut draft = Draft::new(medium.clone(), bases.clone(), pool.clone(), start);
    let mut model = base;
    let mut bindings = BTreeSet::new();
    let mut gaps = std::collections::VecDeque::new();
    for action in actions {
        match action {
            Action::Write(at, len, byte) => {
                draft.write_at(at, &vec![byte; len]).await.unwrap();
                if len > 0 {
                    model.resize(model.len().max(at as usize + len), 0);
                    model[at as usize..at as usize + len].fill(byte);
                }
            }
            Action::Truncate(len) => {
                draft.truncate(len).await.unwrap();
                model.resize(len as usize, 0);
            }
            Action::Read(at, len) => {
                let from = (at as usize).min(model.len());
                let to = model.len().min(from + len);
                assert_eq!(draft.read_at(at, len).await.unwrap(), &model[from..to]);
            }
            Action::Settle => {
                if let Some(delta) = draft.settle().await.unwrap() {
                    apply(&mut journalled, &delta);
                }
                assert_eq!(draft.state(), &journalled, "the deltas add up to the state");
            }
            Action::Freeze => {
                let (frozen, delta) = draft.freeze().await.unwrap();
                if let Some(delta) = delta {
                    apply(&mut journalled, &delta);
                }
                assert_eq!(draft.state(), &journalled);
                assert_eq!(thaw(&medium, &pool, &frozen), model);
                if let Some(header) = &frozen.header {
                    assert!(bindings.insert(header.clone()), "two frozen versions never share a header");
                }
            }
            Action::Gap(from) => gaps.extend(draft.gap(from).await.unwrap()),
            Action::Fill => {
                if let Some(gap) = gaps.pop_front() {
                    draft.fill(gap.fetch().await.unwrap());
                }
            }
            Action::Restore => {
                if let Some(delta) = draft.settle().await.unwrap() {
                    apply(&mut journalled, &delta);
                }
                draft = Draft::new(medium.clone(), bases.clone(), pool.clone(), journalled.clone());
            }
        }
        assert_eq!(draft.len(), model.len() as u64);
    }
    assert_eq!(draft.read_at(0, model.len() + 1).await.unwrap(), &model[..]);
}

fn run(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn draft_behaves_as_byte_vector(actions in actions(), base in 0usize..4 * RECORD_PLAIN, medium in 0..4) {
        let medium = match medium {
            0 => Medium::Plain,
            1 => sealed(Format::V1, Padding::None),
            2 => sealed(Format::V2, Padding::None),
            _ => sealed(Format::V2, Padding::Padme),
        };
        run(history(medium, vec![0xa5; base], actions));
    }
}

#[test]
fn slots_hold_ciphertext_only_and_altered_slot_is_refused() {
    run(async {
        let pool = Arc::new(Pool::default());
        let mut draft = Draft::new(
            sealed(Format::V2, Padding::None),
            Arc::new(Fixed::default()),
            pool.clone(),
            DraftState::default(),
        );
        draft.write_at(0, &b"canary".repeat(30_000)).await.unwrap();
        let delta = draft.settle().await.unwrap().unwrap();
        for bytes in pool.inner.lock().unwrap().bytes.values() {
            assert_eq!(bytes.len(), RECORD_LEN);
            assert!(!bytes.windows(6).any(|w| w == b"canary"));
        }
        pool.flip(delta.placed[0].1.slot, 100);
        let error = draft.read_at(0, 10).await.unwrap_err();
        assert!(error.is_integrity(), "{error}");
    });
}

#[test]
fn settle_in_full_pool_fails_and_keeps_bytes() {
    run(async {
        let pool = Arc::new(Pool::default());
        let mut draft = Draft::new(
            sealed(Format::V2, Padding::None),
            Arc::new(Fixed::default()),
            pool.clone(),
            DraftState::default(),
        );
        draft.write_at(0, b"kept").await.unwrap();
        pool.inner.lock().unwrap().full = true;
        assert!(matches!(draft.settle().await, Err(Error::Io(e)) if e.kind() == io::ErrorKind::StorageFull));
        assert_eq!(draft.read_at(0, 10).await.unwrap(), &b"kept"[..]);
        pool.inner.lock().unwrap().full = false;
        assert!(draft.settle().await.unwrap().is_some());
    });
}

#[test]
fn edit_of_large_file_keeps_id_unless_shared() {
    run(async {
        for shared in [false, true] {
            let bytes = vec![1; NEW_ID_LIMIT as usize + 1];
            let len = bytes.len() as u64;
            let base = version(geometry::object_len(1025).unwrap().0, Format::V2);
            let bases = Arc::new(Fixed { bytes, id: [3; 24], shared });
            let state = DraftState { len, base: Some((base, len)), ..DraftState::default() };
            let medium = sealed(Format::V2, Padding::None);
            let pool = Arc::new(Pool::default());
            let mut draft = Draft::new(medium, bases, pool.clone(), state);
            draft.write_at(5, b"edit").await.unwrap();
            let delta = draft.settle().await.unwrap().unwrap();
            assert_eq!(delta.binding == Binding([3; 24]), !shared);
            // Unchanged records keep their bytes exactly if they keep their id. The last one is not whole.
            let (frozen, _) = draft.freeze().await.unwrap();
            let inner = pool.inner.lock().unwrap();
            let is_copy = |slot: &SlotId| inner.bytes[slot][..NONCE_LEN] == [0xab; NONCE_LEN];
            let copies: Vec<_> = frozen.records.iter().map(is_copy).collect();
            let expected: Vec<_> = (0..1025).map(|index| !shared && index != 0 && index != 1024).collect();
            assert_eq!(copies, expected);
        }
    });
}

#[test]
fn file_truncated_to_zero_takes_new_id_at_any_later_size() {
    run(async {
        let len = NEW_ID_LIMIT + 1;
        let base = version(geometry::object_len(1025).unwrap().0, Format::V2);
        let bases = Arc::new(Fixed { bytes: vec![1; len as usize], id: [3; 24], shared: false });
        let state = DraftState { len, base: Some((base, len)), ..DraftState::default() };
        let pool = Arc::new(Pool::default());
        let mut draft = Draft::new(sealed(Format::V2, Padding::None), bases, pool, state);
        draft.truncate(0).await.unwrap();
        draft.truncate(len).await.unwrap();
        draft.write_at(5, b"new").await.unwrap();
        let delta = draft.settle().await.unwrap().unwrap();
        assert_ne!(delta.binding, Binding([3; 24]));
        draft.freeze().await.unwrap();
        assert!(draft.state().records.values().all(|record| record.binding == delta.binding));
    });
}

#[test]
fn draft_without_gaps_freezes_without_base() {
    run(async {
        let len = 300 * PLAIN + 5;
        let bases = Arc::new(Fixed { bytes: vec![7; len as usize], ..Fixed::default() });
        let state = DraftState { len, base: Some((version(len, Format::V2), len)), ..DraftState::default() };
        let (medium, pool) = (sealed(Format::V2, Padding::None), Arc::new(Pool::default()));
        let mut draft = Draft::new(medium.clone(), bases, pool.clone(), state);
        draft.write_at(70 * PLAIN, b"edit").await.unwrap();
        let (mut from, mut pieces) = (0, 0);
        while let Some(gap) = draft.gap(from).await.unwrap() {
            from = gap.end();
            draft.fill(gap.fetch().await.unwrap());
            pieces += 1;
        }
        assert!(pieces >= 6, "fetched in pieces, so that writers get their turn");
        draft.bases = Arc::new(Fixed::default());
        let (frozen, _) = draft.freeze().await.unwrap();
        let plain = thaw(&medium, &pool, &frozen);
        assert!(plain.len() as u64 == len && &plain[70 * RECORD_PLAIN..][..5] == b"edit\x07");
        // A filling that comes late releases its slots.
        let slots = pool.inner.lock().unwrap().reserved.len();
        assert_eq!(slots, frozen.records.len());
    });
}

#[test]
fn writes_to_full_pool_stop_before_memory_is_full() {
    run(async {
        let pool = Arc::new(Pool::default());
        pool.inner.lock().unwrap().full = true;
        let mut draft =
            Draft::new(sealed(Format::V2, Padding::None), Arc::new(Fixed::default()), pool, DraftState::default());
        for i in 0..100u64 {
            let _full = draft.write_at(i * 8 * PLAIN, &vec![1; 8 * RECORD_PLAIN]).await;
        }
        assert!(draft.hot.len() <= MAX_HOT + 8, "{} records are buffered", draft.hot.len());
    });
}
