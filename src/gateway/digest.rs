//! Digests of content: what clients announce is verified, and what they may ask for later is kept.
//!
//! Content is hashed while it streams to the store. The object is committed only if every announced digest
//! matches. The entity tag is the MD5 of the content, as S3 clients expect. A multipart object has the MD5 of
//! its parts' MD5s and their number.

use super::Error;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use serde::{Deserialize, Serialize};

/// An additional checksum of S3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Algorithm {
    /// CRC-32.
    Crc32,
    /// CRC-32C.
    Crc32c,
    /// CRC-64/NVME.
    Crc64Nvme,
    /// SHA-1.
    Sha1,
    /// SHA-256.
    Sha256,
}

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 5] = [Self::Crc32, Self::Crc32c, Self::Crc64Nvme, Self::Sha1, Self::Sha256];

    /// Returns the name in requests.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crc32 => "CRC32",
            Self::Crc32c => "CRC32C",
            Self::Crc64Nvme => "CRC64NVME",
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
        }
    }

    /// Returns the algorithm of this name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name().eq_ignore_ascii_case(name))
    }

    /// Returns the header that holds a value.
    pub fn header(self) -> &'static str {
        match self {
            Self::Crc32 => "x-amz-checksum-crc32",
            Self::Crc32c => "x-amz-checksum-crc32c",
            Self::Crc64Nvme => "x-amz-checksum-crc64nvme",
            Self::Sha1 => "x-amz-checksum-sha1",
            Self::Sha256 => "x-amz-checksum-sha256",
        }
    }

    /// Returns the length of a value in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Self::Crc32 | Self::Crc32c => 4,
            Self::Crc64Nvme => 8,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// Returns true if the checksum of a whole can be computed from those of its parts, so that S3 gives a multipart
    /// object the checksum of its content.
    pub fn is_linear(self) -> bool {
        matches!(self, Self::Crc32 | Self::Crc32c | Self::Crc64Nvme)
    }
}

/// A value of an additional checksum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checksum {
    /// Its algorithm.
    pub algorithm: Algorithm,
    /// In base64, as S3 writes it.
    pub value: String,
}

/// Digests of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// MD5.
    pub md5: [u8; 16],
    /// The additional checksum that was asked for.
    pub checksum: Option<Checksum>,
}

/// One running additional checksum.
enum Running {
    Crc32(Crc32),
    Crc32c(Crc32c),
    Crc64Nvme(Crc64Nvme),
    Sha1(Sha1),
    Sha256(Sha256),
}

/// Computes digests while content streams by.
pub(super) struct Hasher {
    md5: Option<Md5>,
    checksum: Option<Running>,
}

impl Hasher {
    /// Computes nothing. The MD5 of the result is zero.
    pub(super) fn none() -> Self {
        Self { md5: None, checksum: None }
    }

    /// Computes the MD5, and an additional checksum.
    pub(super) fn new(algorithm: Option<Algorithm>) -> Self {
        let checksum = algorithm.map(|algorithm| match algorithm {
            Algorithm::Crc32 => Running::Crc32(Crc32::new()),
            Algorithm::Crc32c => Running::Crc32c(Crc32c::new()),
            Algorithm::Crc64Nvme => Running::Crc64Nvme(Crc64Nvme::new()),
            Algorithm::Sha1 => Running::Sha1(Sha1::new()),
            Algorithm::Sha256 => Running::Sha256(Sha256::new()),
        });
        Self { md5: Some(Md5::new()), checksum }
    }

    /// Adds the next bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.md5.iter_mut().for_each(|md5| md5.update(bytes));
        match &mut self.checksum {
            None => {}
            Some(Running::Crc32(running)) => running.update(bytes),
            Some(Running::Crc32c(running)) => running.update(bytes),
            Some(Running::Crc64Nvme(running)) => running.update(bytes),
            Some(Running::Sha1(running)) => running.update(bytes),
            Some(Running::Sha256(running)) => running.update(bytes),
        }
    }

    /// Returns the digests.
    pub(super) fn finish(self) -> Digests {
        let checksum = self.checksum.map(|running| {
            let (algorithm, value) = match running {
                Running::Crc32(running) => (Algorithm::Crc32, base64(&running.finalize())),
                Running::Crc32c(running) => (Algorithm::Crc32c, base64(&running.finalize())),
                Running::Crc64Nvme(running) => (Algorithm::Crc64Nvme, base64(&running.finalize())),
                Running::Sha1(running) => (Algorithm::Sha1, base64(running.finalize().as_ref())),
                Running::Sha256(running) => (Algorithm::Sha256, base64(running.finalize().as_ref())),
            };
            Checksum { algorithm, value }
        });
        Digests { md5: self.md5.map(Md5::finalize).unwrap_or_default(), checksum }
    }
}

/// Digests that a client announced for its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The header `Content-MD5`.
    pub md5: Option<[u8; 16]>,
    /// A checksum header. Its value may come after the content, in a trailer.
    pub checksum: Option<Checksum>,
}

impl Announced {
    /// Parses the header `Content-MD5`.
    pub fn parse_md5(text: &str) -> Result<[u8; 16], Error> {
        let bytes = base64_simd::STANDARD.decode_to_vec(text).map_err(|_| Error::InvalidDigest("Content-MD5"))?;
        bytes.try_into().map_err(|_| Error::InvalidDigest("Content-MD5"))
    }

    /// Checks the form of a checksum value.
    pub fn parse_checksum(algorithm: Algorithm, text: &str) -> Result<Checksum, Error> {
        let bytes = base64_simd::STANDARD.decode_to_vec(text).ok();
        match bytes.filter(|bytes| bytes.len() == algorithm.digest_len()) {
            Some(_) => Ok(Checksum { algorithm, value: text.to_owned() }),
            None => Err(Error::InvalidDigest(algorithm.header())),
        }
    }

    /// Fails if the content has another digest.
    pub fn verify(&self, found: &Digests) -> Result<(), Error> {
        if self.md5.is_some_and(|md5| md5 != found.md5) {
            return Err(Error::BadDigest("Content-MD5"));
        }
        match &self.checksum {
            Some(checksum) if Some(checksum) != found.checksum.as_ref() => {
                Err(Error::BadDigest(checksum.algorithm.header()))
            }
            _ => Ok(()),
        }
    }
}

/// Returns base64 with padding.
pub(super) fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

/// Returns lowercase hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String doesn't fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns SHA-256 over the parts, each with its length.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize()
}

/// Returns the entity tag of a multipart object: the MD5 of its parts' MD5s, and their number.
pub(super) fn multipart_etag(parts: &[[u8; 16]]) -> String {
    let mut md5 = Md5::new();
    parts.iter().for_each(|part| md5.update(part));
    let md5 = md5.finalize();
    format!("{}-{}", hex(&md5), parts.len())
}

/// Returns the checksum of checksums of a multipart object, with the number of parts: S3's type `COMPOSITE`.
pub(super) fn composite(algorithm: Algorithm, parts: &[Checksum]) -> Option<Checksum> {
    let mut hasher = Hasher::new(Some(algorithm));
    for part in parts {
        hasher.update(&base64_simd::STANDARD.decode_to_vec(&part.value).ok()?);
    }
    let checksum = hasher.finish().checksum?;
    Some(Checksum { algorithm, value: format!("{}-{}", checksum.value, parts.len()) })
}

/// Returns the checksum of a content from those of its parts, each with the part's size: S3's type `FULL_OBJECT`.
pub(super) fn combined<'a>(
    algorithm: Algorithm,
    parts: impl Iterator<Item = (&'a Checksum, u64)>,
) -> Result<Checksum, Error> {
    let crc = match algorithm {
        Algorithm::Crc32 => crc_fast::CrcAlgorithm::Crc32IsoHdlc,
        Algorithm::Crc32c => crc_fast::CrcAlgorithm::Crc32Iscsi,
        Algorithm::Crc64Nvme => crc_fast::CrcAlgorithm::Crc64Nvme,
        Algorithm::Sha1 | Algorithm::Sha256 => {
            return Err(Error::InvalidArgument("this checksum can't be computed from those of parts"));
        }
    };
    let mut all = crc_fast::checksum(crc, b"");
    for (part, size) in parts {
        let bytes = base64_simd::STANDARD.decode_to_vec(&part.value).map_err(|_| Error::InvalidDigest("a part's"))?;
        let value = bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
        all = crc_fast::checksum_combine(crc, all, value, size);
    }
    Ok(Checksum { algorithm, value: base64(&all.to_be_bytes()[8 - algorithm.digest_len()..]) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_published_check_values() {
        // "123456789": the check values of the CRC catalogue; RFC 1321; FIPS 180.
        let values = [
            (Algorithm::Crc32, "cbf43926"),
            (Algorithm::Crc32c, "e3069283"),
            (Algorithm::Crc64Nvme, "ae8b14860a799888"),
            (Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ];
        for (algorithm, value) in values {
            let mut hasher = Hasher::new(Some(algorithm));
            hasher.update(b"12345");
            hasher.update(b"6789");
            let digests = hasher.finish();
            assert_eq!(hex(&digests.md5), "25f9e794323b453885f5181f1b624d0b");
            let value = base64(
                &(0..value.len() / 2)
                    .map(|at| u8::from_str_radix(&value[2 * at..2 * at + 2], 16).unwrap())
                    .collect::<Vec<_>>(),
            );
            assert_eq!(digests.checksum, Some(Checksum { algorithm, value: value.clone() }));
            let announced =
                |value: &str| Announced { md5: None, checksum: Announced::parse_checksum(algorithm, value).ok() };
            assert!(announced(&value).verify(&digests).is_ok());
            let other = Announced {
                checksum: Some(Checksum { algorithm, value: base64(&vec![0; algorithm.digest_len()]) }),
                md5: None,
            };
            assert!(matches!(other.verify(&digests), Err(Error::BadDigest(_))));
            assert!(matches!(Announced::parse_checksum(algorithm, "AAAA"), Err(Error::InvalidDigest(_))));
            assert_eq!(Algorithm::parse(&algorithm.name().to_lowercase()), Some(algorithm));
        }
    }

    #[test]
    fn checksums_of_parts_combine_to_that_of_the_whole() {
        let of = |algorithm, bytes: &[u8]| {
            let mut hasher = Hasher::new(Some(algorithm));
            hasher.update(bytes);
            hasher.finish().checksum.unwrap()
        };
        for algorithm in Algorithm::ALL {
            let parts = [&b"12345"[..], b"", b"6789"];
            let checksums: Vec<_> = parts.iter().map(|part| (of(algorithm, part), part.len() as u64)).collect();
            let all = combined(algorithm, checksums.iter().map(|(checksum, size)| (checksum, *size)));
            match algorithm.is_linear() {
                true => assert_eq!(all.unwrap(), of(algorithm, b"123456789")),
                false => assert!(all.is_err()),
            }
        }
    }

    #[test]
    fn wrong_md5_is_found() {
        let digests = Hasher::new(None).finish();
        let empty = Announced::parse_md5("1B2M2Y8AsgTpgAmY7PhCfg==").unwrap();
        assert!(Announced { md5: Some(empty), checksum: None }.verify(&digests).is_ok());
        assert!(Announced { md5: Some([0; 16]), checksum: None }.verify(&digests).is_err());
        for text in ["", "x", "1B2M2Y8AsgTpgAmY7PhC"] {
            assert!(matches!(Announced::parse_md5(text), Err(Error::InvalidDigest(_))));
        }
    }
}
