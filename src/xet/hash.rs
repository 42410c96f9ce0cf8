//! Xet hashes and their text form (Xet spec, sections 2 and 4).

use super::chunker::Chunker;
use std::cmp::Ordering;
use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

/// BLAKE3 key of chunk hashes (and of a shard object's name).
const CHUNK_KEY: [u8; 32] = [
    0x66, 0x97, 0xf5, 0x77, 0x5b, 0x95, 0x50, 0xde, 0x31, 0x35, 0xcb, 0xac, 0xa5, 0x97, 0x18, 0x1c, //
    0x9d, 0xe4, 0x21, 0x10, 0x9b, 0xeb, 0x2b, 0x58, 0xb4, 0xd0, 0xb0, 0x4b, 0x93, 0xad, 0xf2, 0x29,
];
/// BLAKE3 key of term verification hashes.
const TERM_KEY: [u8; 32] = [
    0x7f, 0x18, 0x57, 0xd6, 0xce, 0x56, 0xed, 0x66, 0x12, 0x7f, 0xf9, 0x13, 0xe7, 0xa5, 0xc3, 0xf3, //
    0xa4, 0xcd, 0x26, 0xd5, 0xb5, 0xdb, 0x49, 0xe6, 0x41, 0x24, 0x98, 0x7f, 0x28, 0xfb, 0x94, 0xc3,
];

/// Bytes read at once by [`chunk_hashes`]: some chunks' worth.
const READ: usize = 1 << 20;

/// A 32-byte Xet hash: of a chunk, a xorb, a file or a term.
///
/// Its text form prints four little-endian words; it sorts as that text does.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// 32 zero bytes: the hash of the empty file.
    pub const ZERO: Hash = Hash([0; 32]);

    fn words(&self) -> [u64; 4] {
        let (words, _) = self.0.as_chunks::<8>();
        std::array::from_fn(|i| u64::from_le_bytes(words[i]))
    }

    /// `hash mod n` as the tree rule and the dedup rule mean it: the last word modulo `n`.
    pub fn modulo(&self, n: u64) -> u64 {
        self.words()[3] % n
    }

    /// The first word: a shard's "truncated hash".
    pub fn truncated(&self) -> u64 {
        self.words()[0]
    }
}

impl Ord for Hash {
    fn cmp(&self, other: &Self) -> Ordering {
        self.words().cmp(&other.words())
    }
}

impl PartialOrd for Hash {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Trees hash this text, so it is made without the machinery of formats.
        let mut text = [0; 64];
        let (digits, _) = text.as_chunks_mut::<2>();
        let bytes = self.words().map(u64::to_be_bytes);
        for (digits, byte) in digits.iter_mut().zip(bytes.as_flattened()) {
            *digits = [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]];
        }
        f.write_str(std::str::from_utf8(&text).expect("digits are ASCII"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a hash: 64 hex digits are needed")]
pub struct ParseHashError;

impl FromStr for Hash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let text = text.as_bytes();
        if text.len() != 64 {
            return Err(ParseHashError);
        }
        let mut raw = [0; 32];
        for (word, out) in text.as_chunks::<16>().0.iter().zip(raw.as_chunks_mut::<8>().0) {
            let mut value = 0u64;
            for &digit in word {
                let digit = (digit as char).to_digit(16).ok_or(ParseHashError)?;
                value = value << 4 | u64::from(digit);
            }
            *out = value.to_le_bytes();
        }
        Ok(Self(raw))
    }
}

impl serde::Serialize for Hash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Hash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Hash of one chunk's uncompressed bytes.
pub fn chunk_hash(data: &[u8]) -> Hash {
    Hash(*blake3::keyed_hash(&CHUNK_KEY, data).as_bytes())
}

/// Hashes and lengths of the chunks of all that `content` gives: what [`super::merkle::file_hash`]
/// takes. Blocks; holds two MiB, and 40 bytes per chunk.
pub fn chunk_hashes(mut content: impl Read) -> io::Result<Vec<(Hash, u64)>> {
    let mut chunker = Chunker::new();
    let mut hashes = Vec::new();
    let mut buffer = vec![0; READ];
    // The beginning of the chunk that the buffer ended in.
    let mut pending: Vec<u8> = Vec::new();
    loop {
        let read = match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let mut rest = &buffer[..read];
        while let Some(end) = chunker.next_boundary(rest) {
            let (mut chunk, later) = rest.split_at(end);
            if !pending.is_empty() {
                pending.extend_from_slice(chunk);
                chunk = &pending;
            }
            hashes.push((chunk_hash(chunk), chunk.len() as u64));
            pending.clear();
            rest = later;
        }
        pending.extend_from_slice(rest);
    }
    if !pending.is_empty() {
        hashes.push((chunk_hash(&pending), pending.len() as u64));
    }
    Ok(hashes)
}

/// Verification hash of a term: over the raw hashes of exactly its chunks, in order.
pub fn term_hash(chunks: impl IntoIterator<Item = Hash>) -> Hash {
    let mut hasher = blake3::Hasher::new_keyed(&TERM_KEY);
    for chunk in chunks {
        hasher.update(&chunk.0);
    }
    Hash(*hasher.finalize().as_bytes())
}

/// A chunk hash as a dedup shard with this HMAC key lists it.
pub fn keyed_chunk_hash(key: &[u8; 32], chunk: &Hash) -> Hash {
    Hash(*blake3::keyed_hash(key, &chunk.0).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testdata;
    use proptest::prelude::*;

    fn any_hash() -> impl Strategy<Value = Hash> {
        any::<[u8; 32]>().prop_map(Hash)
    }

    proptest! {
        #[test]
        fn text_and_json_forms_parse_back(hash in any_hash()) {
            let text = hash.to_string();
            prop_assert_eq!(text.parse(), Ok(hash));
            prop_assert_eq!(text.to_uppercase().parse(), Ok(hash));
            let json = serde_json::to_string(&hash).unwrap();
            prop_assert_eq!(&json, &format!("\"{text}\""));
            prop_assert_eq!(serde_json::from_str::<Hash>(&json).unwrap(), hash);
        }

        #[test]
        fn order_is_that_of_the_text(a in any_hash(), b in any_hash()) {
            prop_assert_eq!(a.cmp(&b), a.to_string().cmp(&b.to_string()));
        }

        #[test]
        fn truncated_and_modulo_are_the_ends_of_the_text(hash in any_hash(), n in 1..5000u64) {
            let text = hash.to_string();
            prop_assert_eq!(hash.truncated(), u64::from_str_radix(&text[..16], 16).unwrap());
            prop_assert_eq!(hash.modulo(n), u64::from_str_radix(&text[48..], 16).unwrap() % n);
        }
    }

    #[test]
    fn other_texts_are_no_hashes() {
        let zeros = "0".repeat(64);
        assert_eq!(zeros.parse(), Ok(Hash::ZERO));
        let bad =
            ["", "0", &zeros[1..], &format!("{zeros}0"), &format!("+{}", &zeros[1..]), &format!("{}g", &zeros[1..])];
        for text in bad.iter().copied().chain([&*"ö".repeat(32)]) {
            assert_eq!(text.parse::<Hash>(), Err(ParseHashError), "{text:?}");
            assert!(serde_json::from_value::<Hash>(text.into()).is_err());
        }
    }

    #[test]
    fn chunks_of_a_reader_are_those_of_its_content_however_it_gives_it() {
        struct Steps<'a>(&'a [u8], usize);
        impl Read for Steps<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let len = self.1.min(buffer.len());
                self.0.read(&mut buffer[..len])
            }
        }
        for len in [0, 1, READ, 3_000_000] {
            let data = testdata::random(7, len);
            let expected: Vec<_> =
                testdata::chunks(&data).iter().map(|chunk| (chunk_hash(chunk), chunk.len() as u64)).collect();
            for step in [1000, READ, usize::MAX] {
                assert_eq!(chunk_hashes(Steps(&data, step)).unwrap(), expected, "{len} by {step}");
            }
        }
    }

    #[test]
    fn a_term_hash_covers_order_and_count() {
        let (a, b) = (chunk_hash(b"a"), chunk_hash(b"b"));
        assert_ne!(term_hash([a, b]), term_hash([b, a]));
        assert_ne!(term_hash([a]), term_hash([a, a]));
    }
}
