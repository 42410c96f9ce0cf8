//! Seals or opens one container, from a reader to a writer (format spec, section 4).

use crate::crypto::geometry::{self, HEADER_LEN, NONCE_LEN, Padding, PlainLen, RECORD_LEN, RECORD_PLAIN};
use crate::crypto::{self, FileId, Format, Header, Keys, Random, RecordCipher, header, record};
use crate::store::Error;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use zeroize::Zeroizing;

/// Sizes of a sealed container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Plaintext bytes.
    pub plain_len: u64,
    /// Stored bytes.
    pub stored_len: u64,
}

/// Returns a buffer for one slot. It is wiped when it is dropped.
fn slot() -> Box<Zeroizing<[u8; RECORD_LEN]>> {
    Box::new(Zeroizing::new([0; RECORD_LEN]))
}

/// Fills `out` until it is full or the reader ends. Returns the number of bytes read.
fn read_full(reader: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match reader.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// Seals records from `reader` until it ends or `at_most` plaintext bytes were read. Returns the number of
/// plaintext bytes.
fn seal_records(
    cipher: &RecordCipher,
    reader: &mut impl Read,
    at_most: u64,
    writer: &mut impl Write,
    random: &mut dyn Random,
) -> Result<u64, Error> {
    let mut slot = slot();
    let mut done = 0u64;
    loop {
        let want = (at_most - done).min(RECORD_PLAIN as u64) as usize;
        let plain = &mut slot[record::PLAIN];
        let n = read_full(reader, &mut plain[..want])?;
        if n == 0 {
            return Ok(done);
        }
        plain[n..].fill(0);
        write_record(cipher, done / RECORD_PLAIN as u64, &mut slot, writer, random)?;
        done += n as u64;
        if n < RECORD_PLAIN {
            return Ok(done);
        }
    }
}

fn write_record(
    cipher: &RecordCipher,
    index: u64,
    slot: &mut [u8; RECORD_LEN],
    writer: &mut impl Write,
    random: &mut dyn Random,
) -> Result<(), Error> {
    let mut nonce = [0; NONCE_LEN];
    random.fill(&mut nonce)?;
    cipher.seal(index, &nonce, slot);
    Ok(writer.write_all(&slot[..])?)
}

/// Appends records of zeros from `from` up to `records`.
fn pad(
    cipher: &RecordCipher,
    from: u64,
    records: u64,
    writer: &mut impl Write,
    random: &mut dyn Random,
) -> Result<(), Error> {
    let mut slot = slot();
    for index in from..records {
        slot[record::PLAIN].fill(0);
        write_record(cipher, index, &mut slot, writer, random)?;
    }
    Ok(())
}

/// Seals exactly `len` bytes of `reader` into `writer`. A reader of another length is
/// [`Error::LengthMismatch`].
pub fn seal(
    keys: &Keys,
    format: Format,
    padding: Padding,
    len: u64,
    reader: &mut impl Read,
    writer: &mut impl Write,
    random: &mut dyn Random,
) -> Result<Sealed, Error> {
    let records = geometry::records_for(format, PlainLen(len), padding)?;
    let header = Header { format, plain_len: PlainLen(len), records, file_id: FileId::generate(random)? };
    let cipher = keys.records(format, &header.file_id);
    writer.write_all(&keys.seal_header(&header)?)?;
    let done = seal_records(&cipher, reader, len, writer, random)?;
    if done != len || read_full(reader, &mut [0])? != 0 {
        return Err(Error::LengthMismatch);
    }
    pad(&cipher, header.data_records(), records, writer, random)?;
    Ok(Sealed { plain_len: len, stored_len: geometry::object_len(records)?.0 })
}

/// Seals all of `reader` into `file`. The header is written last, when the size is known.
pub fn seal_unknown_len(
    keys: &Keys,
    format: Format,
    padding: Padding,
    reader: &mut impl Read,
    file: &mut (impl Write + Seek),
    random: &mut dyn Random,
) -> Result<Sealed, Error> {
    let file_id = FileId::generate(random)?;
    let cipher = keys.records(format, &file_id);
    file.write_all(&[0; HEADER_LEN])?;
    let len = seal_records(&cipher, reader, u64::MAX, file, random)?;
    let records = geometry::records_for(format, PlainLen(len), padding)?;
    let header = Header { format, plain_len: PlainLen(len), records, file_id };
    pad(&cipher, header.data_records(), records, file, random)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&keys.seal_header(&header)?)?;
    Ok(Sealed { plain_len: len, stored_len: geometry::object_len(records)?.0 })
}

/// Opens a container of `object_len` bytes. Verifies every record, pad records too, and writes the plaintext
/// to `writer`. `name` is the format of the container's name. Without it (a single file) the version byte of
/// the container decides. Returns the plaintext size.
///
/// Verified records may have been written before a later one fails. The caller must then discard the output.
pub fn open_container(
    keys: &Keys,
    name: Option<Format>,
    reader: &mut impl Read,
    object_len: u64,
    writer: &mut impl Write,
) -> Result<u64, Error> {
    let mut head = [0; HEADER_LEN];
    let n = read_full(reader, &mut head)?;
    let head = &head[..n];
    let name = match name {
        Some(format) => format,
        None => header::probe(head, object_len)?.format,
    };
    let header = keys.open_header(name, head, object_len)?;
    let cipher = keys.records(header.format, &header.file_id);
    let mut slot = slot();
    for index in 0..header.records {
        if read_full(reader, &mut slot[..])? != RECORD_LEN {
            return Err(crypto::Error::Malformed("the file ends inside a record").into());
        }
        cipher.open(index, &mut slot)?;
        let plain = &slot[record::PLAIN];
        header.check_tail(index, plain)?;
        writer.write_all(&plain[..header.plain_in(index)])?;
    }
    if read_full(reader, &mut [0])? != 0 {
        return Err(crypto::Error::Malformed("the file grew while it was read").into());
    }
    Ok(header.plain_len.0)
}
