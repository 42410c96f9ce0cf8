//! Against `aegis::raf`, the container code of the crate whose format 1 is: the same bytes from the same
//! randomness, and each reads what the other wrote.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use aegis::raf::{self, RafBuilder, RafIo, RafRng};
use proptest::prelude::*;

use super::*;
use crate::geometry::{HEADER_LEN, Padding, PlainLen, RECORD_LEN, records_for};
use crate::testing::{Script, counting_keys, open, open_record, read, seeded, verify, write, write_as};
use crate::wide::WideCipher;
use crate::{Error, Format, Keys, Random};

/// Bytes in front of what the crate knows as its file: magic, version, algorithm.
const PREFIX_LEN: usize = 6;

type Raf = raf::Raf<raf::Aegis128X2>;

/// A file in memory that outlives the crate's handle.
#[derive(Clone, Default)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl RafIo for Memory {
    fn read_at(&mut self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let file = self.0.borrow();
        let bytes = file.get(offset as usize..offset as usize + buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut file = self.0.borrow_mut();
        let end = offset as usize + buf.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset as usize..end].copy_from_slice(buf);
        Ok(())
    }

    fn get_size(&mut self) -> io::Result<u64> {
        Ok(self.0.borrow().len() as u64)
    }

    fn set_size(&mut self, size: u64) -> io::Result<()> {
        self.0.borrow_mut().resize(size as usize, 0);
        Ok(())
    }
}

impl RafRng for Script {
    fn fill(&mut self, buf: &mut [u8]) -> Result<(), raf::Error> {
        Random::fill(self, buf).map_err(|_| raf::Error::Rng)
    }
}

impl Memory {
    fn object(&self) -> Vec<u8> {
        [b"HFEB\x01\x02", &self.0.borrow()[..]].concat()
    }

    fn of_object(object: &[u8]) -> Self {
        Self(Rc::new(RefCell::new(object[PREFIX_LEN..].to_vec())))
    }

    fn create(&self, keys: &Keys, random: Script) -> Raf {
        RafBuilder::with_rng(random)
            .chunk_size(65_536)
            .truncate(true)
            .create(self.clone(), keys.content(Format::V1).expose())
            .unwrap()
    }

    fn open(&self, key: &[u8; 16]) -> Result<Raf, raf::Error> {
        RafBuilder::with_rng(Script::new(seeded(99, 1 << 16))).open(self.clone(), key)
    }
}

/// Random bytes for a container of up to a hundred records.
fn random(seed: u64) -> Script {
    Script::new(seeded(seed, 24 + 16 * 100))
}

fn read_all(raf: &mut Raf) -> Vec<u8> {
    let mut plain = vec![0; raf.size() as usize];
    assert_eq!(raf.read(&mut plain, 0).unwrap(), plain.len());
    plain
}

/// Sizes around every boundary of the first records.
const SIZES: [usize; 14] = [0, 1, 15, 16, 17, 255, 65_535, 65_536, 65_537, 131_071, 131_072, 131_073, 196_608, 200_000];

#[test]
fn the_same_randomness_gives_the_same_container_as_the_crate() {
    let keys = counting_keys();
    for size in SIZES {
        let plain = seeded(size as u64, size);
        let memory = Memory::default();
        let mut raf = memory.create(&keys, random(7));
        assert_eq!(raf.write(&plain, 0).unwrap(), size);
        raf.sync().unwrap();
        drop(raf);
        let ours = write(&keys, Format::V1, &plain, &mut random(7));
        assert!(ours == memory.object(), "{size}");
        assert!(read(&keys, Format::V1, &memory.object()) == Ok(plain), "{size}");
    }
}

#[test]
fn the_crate_reads_our_containers() {
    let keys = counting_keys();
    for size in SIZES {
        let plain = seeded(size as u64, size);
        let object = write(&keys, Format::V1, &plain, &mut random(8));
        let mut raf = Memory::of_object(&object).open(keys.content(Format::V1).expose()).unwrap();
        assert!(read_all(&mut raf) == plain, "{size}");
    }
}

#[test]
fn the_crate_reads_the_inside_of_our_format_2_containers() {
    let keys = counting_keys();
    // The header key of the counting master key (vector `format2_hkdf.json`).
    let header_key = hex::decode("3acb06995f1469e59175b4e8a5ebe7ff").unwrap();
    let unseal = WideCipher::new(&crate::secret::Secret::fill(|place| place.copy_from_slice(&header_key)));
    for size in SIZES {
        let plain = seeded(size as u64, size);
        let plain_len = PlainLen(size as u64);
        let records = records_for(Format::V2, plain_len, Padding::None).unwrap() + 2;
        let object = write_as(&keys, Format::V2, plain_len, records, &plain, &mut random(9));
        let mut inner = object.clone();
        let tweak = [&object[..PREFIX_LEN], &records.to_le_bytes()].concat();
        unseal.decrypt(&object[PREFIX_LEN..HEADER_LEN], &tweak, &mut inner[PREFIX_LEN..HEADER_LEN]);
        let mut raf = Memory::of_object(&inner).open(keys.content(Format::V2).expose()).unwrap();
        assert!(read_all(&mut raf) == plain, "{size}");
        assert_eq!(verify(&keys, Format::V2, &object), Ok(()));
    }
}

#[test]
fn a_file_that_the_crate_shrank_keeps_old_bytes_and_still_reads() {
    let keys = counting_keys();
    let old = seeded(1, 50_000);
    let memory = Memory::default();
    let mut raf = memory.create(&keys, random(3));
    raf.write(&old, 0).unwrap();
    raf.truncate(100).unwrap();
    raf.sync().unwrap();
    drop(raf);
    let object = memory.object();
    assert_eq!(read(&keys, Format::V1, &object).unwrap(), old[..100]);
    let header = open(&keys, Format::V1, &object).unwrap();
    assert_eq!(open_record(&keys, &header, &object, 0).unwrap()[..50_000], old);
}

/// What the crate is made to do with a file.
#[derive(Debug, Clone)]
enum Edit {
    Write { at: u64, len: usize, seed: u64 },
    Truncate(u64),
}

fn any_edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        3 => (0..200_000u64, 1..100_000usize, any::<u64>()).prop_map(|(at, len, seed)| Edit::Write { at, len, seed }),
        1 => (0..300_000u64).prop_map(Edit::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_the_crate_makes_of_any_edits_reads_as_the_model(edits in proptest::collection::vec(any_edit(), 1..8)) {
        let keys = counting_keys();
        let memory = Memory::default();
        let mut raf = memory.create(&keys, random(5));
        let mut model = Vec::new();
        for edit in edits {
            match edit {
                Edit::Write { at, len, seed } => {
                    let data = seeded(seed, len);
                    raf.write(&data, at).unwrap();
                    let end = at as usize + len;
                    model.resize(model.len().max(end), 0);
                    model[at as usize..end].copy_from_slice(&data);
                }
                Edit::Truncate(size) => {
                    raf.truncate(size).unwrap();
                    model.resize(size as usize, 0);
                }
            }
        }
        raf.sync().unwrap();
        drop(raf);
        prop_assert!(read(&keys, Format::V1, &memory.object()) == Ok(model));
    }

    #[test]
    fn any_altered_bit_of_a_record_is_rejected_by_us_and_the_crate(bit in 0..RECORD_LEN * 8, index in 0..2usize) {
        let keys = counting_keys();
        let mut object = write(&keys, Format::V1, &seeded(6, 131_072), &mut random(6));
        object[HEADER_LEN + index * RECORD_LEN + bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(read(&keys, Format::V1, &object), Err(Error::UnauthenticRecord(index as u64)));
        let mut raf = Memory::of_object(&object).open(keys.content(Format::V1).expose()).unwrap();
        prop_assert!(raf.read(&mut [0; 1], index as u64 * 65_536).is_err());
    }

    #[test]
    fn any_record_opens_as_it_was_sealed(
        seed in any::<u64>(), index in any::<u64>(), nonce in any::<[u8; 16]>(), id in any::<[u8; 24]>(),
    ) {
        let keys = counting_keys();
        let plain = seeded(seed, RECORD_PLAIN);
        for format in [Format::V1, Format::V2] {
            let cipher = keys.records(format, &FileId(id));
            let mut slot = [0; RECORD_LEN];
            slot[PLAIN].copy_from_slice(&plain);
            cipher.seal(index, &nonce, &mut slot);
            prop_assert_eq!(&slot[..16], &nonce[..]);
            prop_assert!(slot[PLAIN] != plain[..]);
            prop_assert_eq!(cipher.open(index, &mut slot), Ok(()));
            prop_assert!(slot[PLAIN] == plain[..]);
        }
    }
}

#[test]
fn a_record_opens_in_its_place_file_format_and_under_its_key_only() {
    let keys = counting_keys();
    let id = FileId([4; 24]);
    let mut sealed = [0x33; RECORD_LEN];
    keys.records(Format::V2, &id).seal(9, &[1; 16], &mut sealed);
    let other_key = Keys::derive(&crate::MasterKey::from_bytes([2; 32]));
    let wrong = [
        (keys.records(Format::V2, &id), 8),
        (keys.records(Format::V2, &id), 9 + (1 << 32)),
        (keys.records(Format::V2, &FileId([5; 24])), 9),
        (keys.records(Format::V1, &id), 9),
        (other_key.records(Format::V2, &id), 9),
    ];
    for (cipher, index) in wrong {
        let mut slot = sealed;
        assert_eq!(cipher.open(index, &mut slot), Err(Error::UnauthenticRecord(index)));
        assert!(slot[PLAIN].iter().all(|&byte| byte == 0), "plaintext of a bad record shows");
    }
    assert_eq!(keys.records(Format::V2, &id).open(9, &mut sealed), Ok(()));
    assert!(sealed[PLAIN].iter().all(|&byte| byte == 0x33));
}

#[test]
fn a_cipher_works_from_many_threads_at_once() {
    let keys = counting_keys();
    let cipher = keys.records(Format::V2, &FileId([6; 24]));
    std::thread::scope(|scope| {
        for index in 0..4u64 {
            let cipher = &cipher;
            scope.spawn(move || {
                let mut slot = [index as u8; RECORD_LEN];
                cipher.seal(index, &[index as u8; 16], &mut slot);
                assert_eq!(cipher.open(index, &mut slot), Ok(()));
                assert_eq!(slot[PLAIN], [index as u8; RECORD_PLAIN]);
            });
        }
    });
}
