//! Random operations on a cache against an obvious model of it, and random damage to its index.

use super::*;
use proptest::prelude::*;
use proptest::sample::Index as Pick;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Xorbs, and chunks of each, that operations fall on: few, so that they meet.
const XORBS: u8 = 3;
const CHUNKS: u32 = 24;

#[derive(Clone, Debug)]
enum Op {
    Insert(u8, Range<u32>),
    Read(u8, Range<u32>),
    /// Flips bits of a byte of an entry.
    Flip(Pick, Pick, u8),
    /// Cuts an entry.
    Cut(Pick, Pick),
    Delete(Pick),
    /// What a killed writer may have left.
    Litter(u128),
    Reopen,
    /// Without the index.
    Rebuild,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let range = || (0..CHUNKS, 1..=8u32).prop_map(|(start, len)| start..(start + len).min(CHUNKS));
    let op = prop_oneof![
        8 => (0..XORBS, range()).prop_map(|(xorb, range)| Op::Insert(xorb, range)),
        8 => (0..XORBS, range()).prop_map(|(xorb, range)| Op::Read(xorb, range)),
        2 => (any::<Pick>(), any::<Pick>(), 1..=255u8).prop_map(|(entry, at, bits)| Op::Flip(entry, at, bits)),
        1 => (any::<Pick>(), any::<Pick>()).prop_map(|(entry, at)| Op::Cut(entry, at)),
        1 => any::<Pick>().prop_map(Op::Delete),
        1 => any::<u128>().prop_map(Op::Litter),
        1 => Just(Op::Reopen),
        1 => Just(Op::Rebuild),
    ];
    prop::collection::vec(op, 1..60)
}

/// What is wrong with an entry.
#[derive(Clone, Debug, Default)]
struct Damage {
    all: bool,
    chunks: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
struct Entry {
    chunks: Range<u32>,
    used: u64,
    damage: Damage,
}

/// The cache as it is meant.
#[derive(Default)]
struct Model {
    entries: BTreeMap<(u8, u32), Entry>,
    now: u64,
    max_entries: usize,
}

impl Model {
    fn insert(&mut self, xorb: u8, range: Range<u32>) {
        let covered: BTreeSet<u32> = self.of(xorb).flat_map(|entry| entry.chunks.clone()).collect();
        let mut gaps: Vec<Range<u32>> = Vec::new();
        for at in range.filter(|at| !covered.contains(at)) {
            match gaps.last_mut() {
                Some(gap) if gap.end == at => gap.end += 1,
                _ => gaps.push(at..at + 1),
            }
        }
        if gaps.len() > self.max_entries {
            return;
        }
        while self.entries.len() + gaps.len() > self.max_entries {
            let oldest = *self.entries.iter().min_by_key(|(_, entry)| entry.used).unwrap().0;
            self.entries.remove(&oldest);
        }
        for gap in gaps {
            self.now += 1;
            self.entries.insert((xorb, gap.start), Entry { chunks: gap, used: self.now, damage: Damage::default() });
        }
    }

    fn of(&self, xorb: u8) -> impl Iterator<Item = &Entry> {
        self.entries.range((xorb, 0)..=(xorb, u32::MAX)).map(|(_, entry)| entry)
    }

    /// Whether the range is there. The first damaged entry that shows is dropped.
    fn read(&mut self, xorb: u8, range: Range<u32>) -> bool {
        let touches = |entry: &Entry| entry.chunks.start < range.end && entry.chunks.end > range.start;
        let touched: Vec<u32> = self.of(xorb).filter(|entry| touches(entry)).map(|entry| entry.chunks.start).collect();
        let mut wanted = range.clone();
        for first in &touched {
            let entry = &self.entries[&(xorb, *first)];
            if entry.chunks.contains(&wanted.start) {
                wanted.start = entry.chunks.end.min(wanted.end);
            }
        }
        if !wanted.is_empty() {
            return false;
        }
        for first in touched {
            let key = (xorb, first);
            let Damage { all, chunks } = &self.entries[&key].damage;
            if *all || chunks.range(range.clone()).next().is_some() {
                self.entries.remove(&key);
                return false;
            }
            self.now += 1;
            self.entries.get_mut(&key).unwrap().used = self.now;
        }
        true
    }

    fn pick(&self, pick: &Pick) -> Option<(u8, u32)> {
        let keys: Vec<_> = self.entries.keys().copied().collect();
        (!keys.is_empty()).then(|| *pick.get(&keys))
    }
}

struct World {
    rig: Rig,
    cache: Option<ChunkCache>,
    model: Model,
}

impl World {
    async fn new(max_entries: usize) -> Self {
        let rig = Rig::new(max_entries as u64 * SMALL);
        let cache = Some(rig.open().await);
        Self { rig, cache, model: Model { max_entries, ..Model::default() } }
    }

    fn path(&self, (xorb, first): (u8, u32)) -> PathBuf {
        self.rig.entry(xorb, self.model.entries[&(xorb, first)].chunks.clone())
    }

    fn cache(&self) -> &ChunkCache {
        self.cache.as_ref().unwrap()
    }

    async fn reopen(&mut self, without_index: bool) {
        self.cache().settle().await;
        drop(self.cache.take());
        while self.rig.writing().iter().any(|name| name.ends_with(".lock")) {
            tokio::task::yield_now().await;
        }
        if without_index {
            std::fs::remove_file(self.rig.path().join("index.sqlite")).unwrap();
        }
        self.cache = Some(self.rig.open().await);
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Insert(xorb, range) => {
                insert(self.cache(), xorb, range.clone()).await;
                self.model.insert(xorb, range);
            }
            Op::Read(xorb, range) => {
                let expected = self.model.read(xorb, range.clone());
                assert_eq!(has(self.cache(), xorb, range).await, expected);
                self.cache().settle().await;
            }
            Op::Flip(pick, at, bits) => self.flip(&pick, &at, bits),
            Op::Cut(pick, at) => {
                let Some(key) = self.model.pick(&pick) else { return };
                let Ok(file) = std::fs::File::options().write(true).open(self.path(key)) else { return };
                let len = file.metadata().unwrap().len() as usize;
                file.set_len(at.index(len.max(1)) as u64).unwrap();
                self.model.entries.get_mut(&key).unwrap().damage.all = true;
            }
            Op::Delete(pick) => {
                let Some(key) = self.model.pick(&pick) else { return };
                let _ = std::fs::remove_file(self.path(key));
                self.model.entries.get_mut(&key).unwrap().damage.all = true;
            }
            Op::Litter(name) => {
                std::fs::write(self.rig.path().join(format!("writing/{name:032x}.0")), b"half").unwrap();
            }
            Op::Reopen => {
                self.reopen(false).await;
                assert!(self.rig.writing().iter().all(|name| name.ends_with(".lock")));
            }
            Op::Rebuild => {
                self.reopen(true).await;
                let paths: BTreeMap<_, _> = self.model.entries.keys().map(|key| (*key, self.path(*key))).collect();
                self.model.entries.retain(|key, _| paths[key].exists());
                // The order of use is lost: it is set again by using all.
                for (xorb, first) in
                    paths.into_keys().filter(|key| self.model.entries.contains_key(key)).collect::<Vec<_>>()
                {
                    let Some(entry) = self.model.entries.get(&(xorb, first)) else { continue };
                    let range = entry.chunks.clone();
                    let expected = self.model.read(xorb, range.clone());
                    assert_eq!(has(self.cache(), xorb, range).await, expected);
                    self.cache().settle().await;
                }
            }
        }
    }

    fn flip(&mut self, pick: &Pick, at: &Pick, bits: u8) {
        let Some(key) = self.model.pick(pick) else { return };
        let path = self.path(key);
        let Ok(mut bytes) = std::fs::read(&path) else { return };
        let entry = self.model.entries.get_mut(&key).unwrap();
        if bytes.is_empty() || entry.damage.all {
            return;
        }
        let at = at.index(bytes.len());
        bytes[at] ^= bits;
        std::fs::write(&path, bytes).unwrap();
        let mut end = 96;
        let hit = entry.chunks.clone().find(|index| {
            end += chunk(key.0, *index).1.len();
            at >= 96 && at < end
        });
        match hit {
            // Flipped twice it may be right again, which is not worth telling apart: it is cut, too.
            Some(index) if entry.damage.chunks.insert(index) => {}
            Some(_) => {
                std::fs::write(&path, b"").unwrap();
                entry.damage.all = true;
            }
            None => entry.damage.all = true,
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn any_sequence_of_inserts_reads_damage_and_reopening_is_as_the_model_says(ops in ops(), max_entries in 3..9usize) {
        runtime().block_on(async {
            let mut world = World::new(max_entries).await;
            for op in ops {
                world.apply(op).await;
                assert!(world.rig.cost() <= max_entries as u64 * SMALL);
            }
        });
    }

    #[test]
    fn whatever_happens_to_the_index_no_wrong_byte_is_read(
        flips in prop::collection::vec((0..3usize, any::<Pick>(), 1..=255u8), 1..20),
        open in any::<bool>(),
    ) {
        runtime().block_on(async {
            let rig = Rig::new(12 * SMALL);
            let mut cache = Some(rig.open().await);
            for number in 0..4 {
                insert(cache.as_ref().unwrap(), number, 0..4).await;
                insert(cache.as_ref().unwrap(), number, 8..12).await;
            }
            if !open {
                cache = None;
                while !rig.writing().is_empty() {
                    tokio::task::yield_now().await;
                }
            }
            for (file, at, bits) in flips {
                let path = rig.path().join(["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"][file]);
                let Ok(file) = std::fs::File::options().read(true).write(true).open(path) else { continue };
                let len = file.metadata().unwrap().len() as usize;
                if len > 0 {
                    let mut byte = [0];
                    let at = at.index(len) as u64;
                    file.read_exact_at(&mut byte, at).unwrap();
                    file.write_all_at(&[byte[0] ^ bits], at).unwrap();
                }
            }
            let cache = match cache {
                Some(cache) => cache,
                None => rig.open().await,
            };
            for _ in 0..2 {
                for number in 0..5 {
                    has(&cache, number, 0..4).await;
                    has(&cache, number, 2..11).await;
                    insert(&cache, number, 0..12).await;
                }
            }
            drop(cache);
            while !rig.writing().is_empty() {
                tokio::task::yield_now().await;
            }
            // Without the index all is as it was, and the bound holds again.
            std::fs::remove_file(rig.path().join("index.sqlite")).unwrap();
            let cache = rig.open().await;
            assert_eq!(cache.shared.store.total(), rig.cost());
            for number in 0..5 {
                has(&cache, number, 0..12).await;
                insert(&cache, 77 + number, 0..12).await;
            }
            assert!(rig.cost() <= 12 * SMALL && has(&cache, 81, 0..12).await);
        });
    }
}
