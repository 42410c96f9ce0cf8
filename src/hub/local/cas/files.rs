//! Registered files: length, terms, and the buckets that may read them.
//!
//! The terms of a file are kept in pages, so that a range of a long file doesn't cost reading them
//! all. A page is up to [`PAGE`] terms of 44 bytes: xorb hash, then uncompressed bytes, first chunk
//! and chunk behind the last as little-endian u32.

use super::Error;
use crate::hub::local::db;
use crate::xet::Hash;
use crate::xet::shard::Segment;
use rusqlite::{Connection, OptionalExtension, Row, Transaction};
use std::ops::Range;

/// Terms of a page: 5.6 KB, a few GiB of an ordinary file.
const PAGE: usize = 128;
/// Bytes of a stored term.
const TERM: usize = 44;

/// A row of `cas_files`.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    /// Row; `None` for the empty file, which has none.
    id: Option<i64>,
    /// File hash.
    pub(super) hash: Hash,
    /// Length.
    pub(super) len: u64,
}

/// The file with 64 zeros for a hash: always there, for everybody.
const EMPTY: File = File { id: None, hash: Hash::ZERO, len: 0 };

/// A registered file, whoever may read it.
pub(super) fn find(connection: &Connection, hash: &Hash) -> Result<Option<File>, db::Error> {
    if *hash == Hash::ZERO {
        return Ok(Some(EMPTY));
    }
    let mut query = connection.prepare_cached("SELECT id, len FROM cas_files WHERE hash = ?1")?;
    let row = query.query_row([hash.0], |row| Ok((row.get(0)?, unsigned(row, 1)?))).optional()?;
    Ok(row.map(|(id, len)| File { id: Some(id), hash: *hash, len }))
}

/// A registered file that the tokens of `bucket` may read.
pub(super) fn find_linked(connection: &Connection, bucket: i64, hash: &Hash) -> Result<Option<File>, db::Error> {
    let Some(file) = find(connection, hash)? else { return Ok(None) };
    let Some(id) = file.id else { return Ok(Some(file)) };
    let mut query = connection.prepare_cached("SELECT 1 FROM cas_links WHERE bucket = ?1 AND file = ?2")?;
    Ok(query.exists((bucket, id))?.then_some(file))
}

/// Lets the tokens of `bucket` read `file`.
pub(super) fn link(transaction: &Transaction<'_>, bucket: i64, file: &File) -> Result<(), db::Error> {
    let Some(id) = file.id else { return Ok(()) };
    let mut insert = transaction.prepare_cached("INSERT OR IGNORE INTO cas_links (bucket, file) VALUES (?1, ?2)")?;
    insert.execute((bucket, id))?;
    Ok(())
}

/// Registers a file whose terms were validated. `false` where the hash is registered already; the terms it has stay.
pub(super) fn register(
    transaction: &Transaction<'_>,
    hash: &Hash,
    segments: &[Segment],
) -> Result<(File, bool), db::Error> {
    if let Some(file) = find(transaction, hash)? {
        return Ok((file, false));
    }
    let len: u64 = segments.iter().map(|segment| u64::from(segment.raw_len)).sum();
    transaction.prepare_cached("INSERT INTO cas_files (hash, len) VALUES (?1, ?2)")?.execute((hash.0, signed(len)))?;
    let id = transaction.last_insert_rowid();
    let mut insert = transaction.prepare_cached("INSERT INTO cas_terms (file, at, terms) VALUES (?1, ?2, ?3)")?;
    let mut at = 0u64;
    for page in segments.chunks(PAGE) {
        let terms: Vec<u8> = page.iter().flat_map(encode).collect();
        insert.execute((id, signed(at), terms))?;
        at += page.iter().map(|segment| u64::from(segment.raw_len)).sum::<u64>();
    }
    Ok((File { id: Some(id), hash: *hash, len }, true))
}

/// How many terms [`terms`] reads for this range, at most.
pub(super) fn count_terms(connection: &Connection, file: &File, range: &Range<u64>) -> Result<usize, Error> {
    let mut query = connection.prepare_cached(
        "SELECT count(*) FROM cas_terms WHERE file = ?1 AND at < ?3
         AND at >= (SELECT max(at) FROM cas_terms WHERE file = ?1 AND at <= ?2)",
    )?;
    let pages: i64 = query.query_row((file.id, signed(range.start), signed(range.end)), |row| row.get(0))?;
    Ok(usize::try_from(pages).unwrap_or(0).saturating_mul(PAGE))
}

/// Consecutive terms of a file.
pub(super) struct Terms {
    /// File offset of the first byte of the first term.
    pub(super) start: u64,
    /// In file order.
    pub(super) segments: Vec<Segment>,
}

/// The terms that hold `range`, which lies in the file and isn't empty, and few more.
pub(super) fn terms(connection: &Connection, file: &File, range: &Range<u64>) -> Result<Terms, Error> {
    let damaged = |why: &str| Error::damaged("file", &file.hash, why);
    let mut query = connection.prepare_cached(
        "SELECT at, terms FROM cas_terms WHERE file = ?1 AND at < ?3
         AND at >= (SELECT max(at) FROM cas_terms WHERE file = ?1 AND at <= ?2) ORDER BY at",
    )?;
    let mut rows = query.query((file.id, signed(range.start), signed(range.end)))?;
    let mut terms: Option<Terms> = None;
    let mut end = 0u64;
    while let Some(row) = rows.next()? {
        let at = unsigned(row, 0)?;
        let page = row.get_ref(1)?.as_blob().map_err(|_| damaged("its terms are no bytes"))?;
        let terms = terms.get_or_insert_with(|| {
            end = at;
            Terms { start: at, segments: Vec::new() }
        });
        if at != end {
            return Err(damaged("a page of terms is missing"));
        }
        let (page, []) = page.as_chunks::<TERM>() else { return Err(damaged("a page of terms is cut short")) };
        if page.len() > PAGE {
            return Err(damaged("a page has too many terms"));
        }
        for term in page {
            let segment = decode(term);
            end = end.checked_add(u64::from(segment.raw_len)).ok_or_else(|| damaged("it is too long"))?;
            terms.segments.push(segment);
        }
    }
    terms
        .filter(|terms| terms.start <= range.start && range.end <= end)
        .ok_or_else(|| damaged("its terms don't cover it"))
}

/// For SQLite, whose integers are signed. Lengths of files fit; of what a client names, nothing lies beyond.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn unsigned(row: &Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    let value: i64 = row.get(column)?;
    u64::try_from(value).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, value))
}

fn encode(segment: &Segment) -> [u8; TERM] {
    let mut term = [0; TERM];
    term[..32].copy_from_slice(&segment.xorb.0);
    for (field, value) in term[32..].chunks_exact_mut(4).zip([segment.raw_len, segment.start, segment.end]) {
        field.copy_from_slice(&value.to_le_bytes());
    }
    term
}

fn decode(term: &[u8; TERM]) -> Segment {
    let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| term[at + i]));
    let xorb = Hash(std::array::from_fn(|i| term[i]));
    Segment { xorb, raw_len: word(32), start: word(36), end: word(40) }
}
