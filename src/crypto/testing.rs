//! What the tests of this layer share: scripted randomness, seeded plaintext, and a plain writer and reader of
//! whole containers.

use super::geometry::{
    CipherLen, HEADER_LEN, Padding, PlainLen, RECORD_LEN, RECORD_PLAIN, RecordIndex, record_offset, records_for,
};
use super::record::PLAIN;
use super::{Error, FileId, Format, Header, Keys, MasterKey, Random};

/// Hands out given bytes in order and fails when they run out.
pub(super) struct Script(std::vec::IntoIter<u8>);

impl Script {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes.into_iter())
    }

    pub(super) fn rest(&self) -> usize {
        self.0.len()
    }
}

impl Random for Script {
    fn fill(&mut self, out: &mut [u8]) -> Result<(), Error> {
        for byte in out {
            *byte = self.0.next().ok_or_else(|| Error::Random("script ended".into()))?;
        }
        Ok(())
    }
}

/// The master key of most vectors: bytes 0 to 31.
pub(super) fn counting_keys() -> Keys {
    Keys::derive(&MasterKey::from_bytes(std::array::from_fn(|i| i as u8)))
}

/// splitmix64 (vectors, README).
pub(super) fn seeded(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ z >> 31).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A whole container of `plain` with as few records as the format allows.
pub(super) fn write(keys: &Keys, format: Format, plain: &[u8], random: &mut dyn Random) -> Vec<u8> {
    let plain_len = PlainLen(plain.len() as u64);
    let records = records_for(format, plain_len, Padding::None).unwrap();
    write_as(keys, format, plain_len, records, plain, random)
}

/// A container whose records hold `content` and zeros, with a header that says `plain_len` and `records`.
pub(super) fn write_as(
    keys: &Keys,
    format: Format,
    plain_len: PlainLen,
    records: u64,
    content: &[u8],
    random: &mut dyn Random,
) -> Vec<u8> {
    let file_id = FileId::generate(random).unwrap();
    let head = keys.seal_header(&Header { format, plain_len, records, file_id }).unwrap();
    let mut object = head.to_vec();
    object.extend(write_records(keys, format, &file_id, records, content, random));
    object
}

pub(super) fn write_records(
    keys: &Keys,
    format: Format,
    file_id: &FileId,
    records: u64,
    content: &[u8],
    random: &mut dyn Random,
) -> Vec<u8> {
    let cipher = keys.records(format, file_id);
    let mut object = Vec::new();
    for index in 0..records {
        let mut slot = [0; RECORD_LEN];
        let part = content.chunks(RECORD_PLAIN).nth(index as usize).unwrap_or_default();
        slot[PLAIN][..part.len()].copy_from_slice(part);
        let mut nonce = [0; 16];
        random.fill(&mut nonce).unwrap();
        cipher.seal(index, &nonce, &mut slot);
        object.extend_from_slice(&slot);
    }
    object
}

/// The opened record `index` of an object.
pub(super) fn open_record(keys: &Keys, header: &Header, object: &[u8], index: u64) -> Result<Vec<u8>, Error> {
    let CipherLen(start) = record_offset(RecordIndex(index))?;
    let mut slot: [u8; RECORD_LEN] = object[start as usize..][..RECORD_LEN].try_into().unwrap();
    if let Err(error) = keys.records(header.format, &header.file_id).open(index, &mut slot) {
        assert!(slot[PLAIN].iter().all(|&byte| byte == 0), "nothing of a bad record shows");
        return Err(error);
    }
    header.check_tail(index, &slot[PLAIN])?;
    Ok(slot[PLAIN].to_vec())
}

/// The whole plaintext: data records only.
pub(super) fn read(keys: &Keys, name: Format, object: &[u8]) -> Result<Vec<u8>, Error> {
    let header = open(keys, name, object)?;
    let mut plain = Vec::new();
    for index in 0..header.data_records() {
        let record = open_record(keys, &header, object, index)?;
        plain.extend_from_slice(&record[..header.plain_in(index)]);
    }
    Ok(plain)
}

/// Checks every record, pad records too.
pub(super) fn verify(keys: &Keys, name: Format, object: &[u8]) -> Result<(), Error> {
    let header = open(keys, name, object)?;
    (0..header.records).try_for_each(|index| open_record(keys, &header, object, index).map(drop))
}

pub(super) fn open(keys: &Keys, name: Format, object: &[u8]) -> Result<Header, Error> {
    keys.open_header(name, &object[..object.len().min(HEADER_LEN)], object.len() as u64)
}
