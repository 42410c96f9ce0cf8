//! Lists in memory and in a folder.

use super::*;
use crate::chunker::MAX_CHUNK;
use crate::hash::keyed_chunk_hash;
use crate::merkle::{file_hash, xorb_hash};
use proptest::prelude::*;

fn chunks(seed: u8, count: usize) -> Vec<(Hash, u32)> {
    (0..count).map(|i| (Hash([seed.wrapping_add(i as u8); 32]), 1 + i as u32 * 7)).collect()
}

fn wide(chunks: &[(Hash, u32)]) -> Vec<(Hash, u64)> {
    chunks.iter().map(|&(hash, len)| (hash, u64::from(len))).collect()
}

fn over(dir: &Path, disk: u64) -> Known {
    Known::open(Options { dir: Some(dir.to_owned()), disk, ..Options::default() }).unwrap()
}

proptest! {
    #[test]
    fn lists_survive_the_disk_and_no_other_bytes_do(count in 0usize..60, at: prop::sample::Index, bits in 1u8..) {
        let chunks = chunks(1, count);
        let hash = file_hash(&wide(&chunks));
        let list = ChunkList::proven(Kind::File, &hash, chunks.clone()).unwrap();
        let mut bytes = list.to_bytes();
        if count == 1 {
            // Nothing would show that its length was altered.
            prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes).is_err());
            return Ok(());
        }
        prop_assert_eq!(&ChunkList::parse(Kind::File, &hash, &bytes).unwrap(), &list);
        prop_assert!(list.iter().eq(chunks));
        let at = at.index(bytes.len());
        prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes[..at]).is_err());
        bytes[at] ^= bits;
        prop_assert!(ChunkList::parse(Kind::File, &hash, &bytes).is_err());
    }

    #[test]
    fn told_lists_survive_the_disk_and_no_other_bytes_do(
        count in 1usize..60, key: [u8; 32], expires: u64, at: prop::sample::Index, bits in 1u8..,
    ) {
        let xorb = Hash([7; 32]);
        let list = ToldList::new(key, expires, chunks(1, count)).unwrap();
        let mut bytes = list.to_bytes(&xorb);
        prop_assert_eq!(&ToldList::parse(&xorb, &bytes).unwrap(), &list);
        prop_assert!(ToldList::parse(&Hash([8; 32]), &bytes).is_err(), "of another xorb");
        let at = at.index(bytes.len());
        prop_assert!(ToldList::parse(&xorb, &bytes[..at]).is_err());
        bytes[at] ^= bits;
        prop_assert!(ToldList::parse(&xorb, &bytes).is_err());
    }

    #[test]
    fn told_lists_of_hostile_bytes_are_what_they_say_or_none(
        magic: bool, mut body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if magic {
            body.splice(..0, *list::TOLD);
        }
        let xorb = Hash([7; 32]);
        let bytes = [&body[..], &ToldList::sum(&xorb, &body)].concat();
        if let Ok(list) = ToldList::parse(&xorb, &bytes) {
            prop_assert_eq!(list.to_bytes(&xorb), bytes);
        }
    }

    #[test]
    fn excerpts_are_what_the_list_has(
        count in 1usize..40, told: bool, a in 0u32..50, b in 0u32..50, wanted: (prop::sample::Index, prop::sample::Index),
    ) {
        let (chunks, range) = (chunks(1, count), a.min(b)..a.max(b));
        let xorb = xorb_hash(&wide(&chunks));
        let key = if told { [9; 32] } else { [0; 32] };
        let keyed = |hash: &Hash| if told { keyed_chunk_hash(&key, hash) } else { *hash };
        let excerpt = match told {
            true => ToldList::new(key, 9, chunks.iter().map(|(hash, len)| (keyed(hash), *len))).unwrap().excerpt(&xorb, &range),
            false => ChunkList::proven(Kind::Xorb, &xorb, chunks.clone()).unwrap().excerpt(&xorb, &range),
        };
        let there: Vec<_> = (0u32..).zip(&chunks).filter(|(index, _)| range.contains(index)).collect();
        let len: u64 = there.iter().map(|(_, (_, len))| u64::from(*len)).sum();
        prop_assert!(excerpt.measures(there.len(), len) && !excerpt.measures(there.len(), len + 1));
        prop_assert!(!excerpt.measures(there.len() + 1, len));
        let mut at = 0;
        for (index, (hash, len)) in &there {
            let place = at..at + u64::from(*len);
            prop_assert!(excerpt.has(*index, hash) && !excerpt.has(*index + 1, hash) && !excerpt.has(*index, &Hash([0xee; 32])));
            prop_assert_eq!(excerpt.has(*index, &keyed(hash)), !told);
            prop_assert!(excerpt.lies_at(*index, &place) && !excerpt.lies_at(*index + 1, &place));
            prop_assert!(!excerpt.lies_at(*index, &(place.start + 1..place.end)) && !excerpt.lies_at(*index, &(place.start..place.end + 1)));
            at = place.end;
        }
        for outside in [range.start.wrapping_sub(1), range.end, u32::MAX] {
            prop_assert!(!excerpt.lies_at(outside, &(0..1)) && there.iter().all(|(_, (hash, _))| !excerpt.has(outside, hash)));
        }
        prop_assert!(excerpt.around(&(0..len + 1)).is_none() && excerpt.around(&(0..0)).is_none());
        if len > 0 {
            let (a, b) = (wanted.0.index(len as usize) as u64, wanted.1.index(len as usize) as u64);
            let wanted = a.min(b)..a.max(b) + 1;
            let (indexes, bytes) = excerpt.around(&wanted).unwrap();
            prop_assert!(bytes.start <= wanted.start && wanted.end <= bytes.end);
            let ends = |chunk: u32| there.iter().take_while(|(index, _)| *index < chunk).map(|(_, (_, len))| u64::from(*len)).sum::<u64>();
            prop_assert_eq!((ends(indexes.start), ends(indexes.end)), (bytes.start, bytes.end));
            prop_assert!(ends(indexes.start + 1) > wanted.start && ends(indexes.end - 1) < wanted.end);
        }
    }

    #[test]
    fn hostile_bytes_are_never_a_list(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&list::PROVEN[..], &bytes].concat();
        prop_assert!(ChunkList::parse(Kind::Xorb, &Hash([3; 32]), &bytes).is_err());
    }
}

#[test]
fn offsets_find_their_chunks() {
    let chunks = vec![(Hash([1; 32]), 10), (Hash([2; 32]), 5)];
    let list = ChunkList::proven(Kind::Xorb, &xorb_hash(&wide(&chunks)), chunks).unwrap();
    assert_eq!([0, 9, 10, 14, 15, 99].map(|at| list.containing(at)), [0, 0, 1, 1, 2, 2]);
    assert_eq!([0, 9, 10, 14, 15].map(|at| list.starting_at(at)), [Some(0), None, Some(1), None, None]);
    assert_eq!([0, 1, 2, 3].map(|index| list.start(index)), [Some(0), Some(10), Some(15), None]);
}

#[tokio::test]
async fn only_what_proves_itself_is_learnt() {
    let known = Known::in_memory();
    let chunks = chunks(1, 9);
    let (file, xorb) = (file_hash(&wide(&chunks)), xorb_hash(&wide(&chunks)));
    assert!(known.note_file(&xorb, chunks.clone()).is_err());
    assert!(known.note_xorb(&file, chunks.clone()).is_err());
    assert!(known.note_file(&file, chunks[1..].to_vec()).is_err());
    assert!(known.file(&file).await.is_none());
    known.note_file(&file, chunks.clone()).unwrap();
    known.note_xorb(&xorb, chunks).unwrap();
    assert_eq!(known.file(&file).await.unwrap().len(), 9);
    assert_eq!(known.xorb(&xorb).await.unwrap().len(), 9);
    assert!(known.xorb(&file).await.is_none());
    let none: [(Hash, u32); 0] = [];
    known.note_file(&Hash::ZERO, none).unwrap();
    assert!(known.note_file(&Hash([1; 32]), [(Hash([1; 32]), 0)]).is_err());
    assert!(known.note_file(&Hash([1; 32]), [(Hash([1; 32]), MAX_CHUNK as u32 + 1)]).is_err());
}

#[test]
fn a_folder_keeps_lists_for_the_next_process_and_drops_damaged_ones() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (one, two) = (chunks(1, 9), chunks(2, 9));
    let (first, second) = (file_hash(&wide(&one)), file_hash(&wide(&two)));
    let known = over(dir.path(), 1 << 20);
    known.note_file(&first, one.clone()).unwrap();
    known.note_file(&second, two).unwrap();
    fs::write(dir.path().join("f-notes"), "mine").unwrap();

    let path = dir.path().join(format!("f-{second}"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[20] ^= 1;
    fs::write(&path, bytes).unwrap();
    let known = over(dir.path(), 1 << 20);
    assert!(runtime.block_on(known.file(&first)).unwrap().iter().eq(one));
    assert!(runtime.block_on(known.file(&second)).is_none());
    assert!(!path.exists() && dir.path().join("f-notes").exists());
    assert!(runtime.block_on(known.file(&second)).is_none());
}

fn told(known: &Known, xorb: &Hash) -> Option<Arc<ToldList>> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(known.told(xorb))
}

fn is_proven(known: &Known, xorb: &Hash) -> bool {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(known.xorb(xorb)).is_some()
}

#[test]
fn answers_prove_what_they_can_and_tell_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let known = over(dir.path(), 1 << 20);
    let (many, one) = (chunks(1, 9), chunks(5, 1));
    let (xorb, single) = (xorb_hash(&wide(&many)), xorb_hash(&wide(&one)));
    assert!(known.note_answer(&Hash([1; 32]), [0; 32], u64::MAX, &many).is_err(), "not that xorb's");
    known.note_answer(&xorb, [9; 32], u64::MAX, &many).unwrap();
    known.note_answer(&single, [0; 32], u64::MAX, &one).unwrap();
    for known in [&known, &over(dir.path(), 1 << 20)] {
        assert!(!is_proven(known, &xorb) && !is_proven(known, &single), "neither is proven");
        assert!(told(known, &xorb).is_some() && told(known, &single).is_some());
    }
    known.note_answer(&xorb, [0; 32], 0, &many).unwrap();
    for known in [&known, &over(dir.path(), 1 << 20)] {
        assert!(is_proven(known, &xorb));
    }
    assert_eq!((count(dir.path(), "k-"), count(dir.path(), "x-")), (2, 1));
    // What is proven isn't told again.
    let another = chunks(7, 3);
    known.note_answer(&xorb, [9; 32], u64::MAX - 1, &another).unwrap();
    assert!(told(&known, &xorb).unwrap().expires() == u64::MAX);
}

#[test]
fn told_lists_are_used_until_they_expire() {
    let dir = tempfile::tempdir().unwrap();
    let known = over(dir.path(), 1 << 20);
    let (xorb, list) = (Hash([1; 32]), chunks(1, 9));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    for expires in [0, now - 1] {
        known.note_answer(&xorb, [9; 32], expires, &list).unwrap();
        assert!(told(&known, &xorb).is_none() && count(dir.path(), "") == 0);
    }
    known.note_answer(&xorb, [9; 32], now + 1000, &list).unwrap();
    known.note_answer(&xorb, [9; 32], now + 900, &list).unwrap();
    assert_eq!(told(&known, &xorb).unwrap().expires(), now + 1000);
    // A later one takes its place, also where the first is on disk only.
    let known = over(dir.path(), 1 << 20);
    known.note_answer(&xorb, [9; 32], now + 900, &list).unwrap();
    assert_eq!(told(&known, &xorb).unwrap().expires(), now + 1000);
    known.note_answer(&xorb, [8; 32], now + 2000, &list).unwrap();
    assert_eq!(told(&over(dir.path(), 1 << 20), &xorb).unwrap().expires(), now + 2000);
    // Time passes: in memory, and on disk.
    let old = ToldList::new([9; 32], now - 1, list.clone()).unwrap();
    let path = dir.path().join(format!("k-{xorb}"));
    fs::write(&path, old.to_bytes(&xorb)).unwrap();
    known.state().keep(Name::Told(xorb), &List::Told(Arc::new(old)), 1 << 20);
    assert!(told(&known, &xorb).is_none() && !path.exists());
    let state = known.state();
    assert_eq!((state.disk.all, state.memory.all), (0, 0));
}

#[test]
fn told_lists_are_forgotten_and_proven_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let known = over(dir.path(), 1 << 20);
    let list = chunks(1, 9);
    let (proven, keyed) = (xorb_hash(&wide(&list)), Hash([1; 32]));
    known.note_answer(&proven, [0; 32], 0, &list).unwrap();
    known.note_answer(&keyed, [9; 32], u64::MAX, &list).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        known.forget_told(&proven).await;
        known.forget_told(&keyed).await;
    });
    for known in [&known, &over(dir.path(), 1 << 20)] {
        assert!(is_proven(known, &proven) && told(known, &keyed).is_none());
    }
    assert_eq!(known.state().disk.all, BLOCK);
}

fn count(dir: &Path, prefix: &str) -> usize {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().starts_with(prefix)).count()
}

#[test]
fn folder_and_memory_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memory: 2_000, dir: Some(dir.path().to_owned()), disk: 2 * BLOCK + 5 };
    let known = Known::open(options.clone()).unwrap();
    for seed in 0..40 {
        let chunks = chunks(seed, 10);
        known.note_file(&file_hash(&wide(&chunks)), chunks).unwrap();
        assert!(count(dir.path(), "") <= 2 && known.state().memory.all <= 2_000);
    }
    assert_eq!(count(dir.path(), ""), 2);
    assert_eq!(known.state().lists.len(), 5);
    Known::open(Options { disk: 2 * BLOCK - 1, ..options }).unwrap();
    assert_eq!(count(dir.path(), ""), 1);
}

#[test]
fn lists_of_xorbs_leave_those_of_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { memory: 8_000, dir: Some(dir.path().to_owned()), disk: 8 * BLOCK };
    let known = Known::open(options).unwrap();
    for seed in 0..6 {
        let chunks = chunks(seed, 10);
        known.note_file(&file_hash(&wide(&chunks)), chunks).unwrap();
    }
    for seed in 100..140 {
        let chunks = chunks(seed, 10);
        let key = if seed % 2 == 0 { [0; 32] } else { [9; 32] };
        known.note_answer(&xorb_hash(&wide(&chunks)), key, u64::MAX, &chunks).unwrap();
        let state = known.state();
        assert!(state.memory.of_xorbs <= 2_000 && state.memory.all <= 8_000, "{seed}");
        let footprints = |only_xorbs: bool| -> u64 {
            let counted = state.lists.iter().filter(|(name, _)| !only_xorbs || name.is_of_xorb());
            counted.map(|(_, (list, _))| list.footprint()).sum()
        };
        assert_eq!((state.memory.all, state.memory.of_xorbs), (footprints(false), footprints(true)));
    }
    assert_eq!((count(dir.path(), "f-"), count(dir.path(), "x-") + count(dir.path(), "k-")), (6, 2));
    assert_eq!(known.state().lists.keys().filter(|name| !name.is_of_xorb()).count(), 6);
}

#[test]
fn a_list_is_limited() {
    let endless = std::iter::repeat((Hash([1; 32]), 1));
    assert!(ChunkList::proven(Kind::File, &Hash::ZERO, endless.clone()).is_err());
    assert!(ChunkList::proven(Kind::Xorb, &Hash::ZERO, endless.clone()).is_err());
    assert!(ToldList::new([1; 32], 5, endless).is_err());
    let whole = std::iter::repeat_n((Hash([1; 32]), MAX_CHUNK as u32), crate::xorb::MAX_CHUNKS);
    let whole = ToldList::new([1; 32], 5, whole).unwrap();
    assert_eq!(whole.to_bytes(&Hash::ZERO).len(), MAX_XORB_LIST);
    for len in [0, MAX_CHUNK as u32 + 1, u32::MAX] {
        assert!(ToldList::new([1; 32], 5, [(Hash([1; 32]), len)]).is_err());
    }
    assert!(ToldList::new([1; 32], 5, []).is_err());
}
