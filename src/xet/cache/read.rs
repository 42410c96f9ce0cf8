//! Reads an entry: its head and directory, the pages of the table that name what is wanted, and
//! that. Each is checked before it is used.

use super::Cached;
use super::entry::{Damaged, Directory, HEAD_LEN, Head, Row};
use super::folder::{FileId, Folder, Key};
use crate::Hash;
use crate::chunker::MAX_CHUNK;
use crate::hash::chunk_hash;
use bytes::{Buf, Bytes};
use rustix::buffer::spare_capacity;
use rustix::io::{pread, retry_on_intr};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Why an entry gave nothing.
#[derive(Debug)]
pub(super) enum Miss {
    /// It isn't there, or not what it should be: it is to go. The file, if there was one.
    Lost(&'static str, Option<FileId>),
    /// This time it can't be read.
    Failed(io::Error),
}

/// An open entry whose head and directory are sound.
pub(super) struct Reader {
    file: File,
    id: FileId,
    directory: Directory,
}

impl Reader {
    /// Opens the entry and checks that it is the one that is meant.
    pub(super) fn open(folder: &Folder, key: &Key) -> Result<Self, Miss> {
        let (file, len, id) = folder.open_entry(key).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::InvalidData => Miss::Lost("it is not there", None),
            _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                Miss::Lost("it is a symlink", None)
            }
            _ => Miss::Failed(error),
        })?;
        let lost = |Damaged(why)| Miss::Lost(why, Some(id));
        let mut bytes = [0; HEAD_LEN];
        read_exact(&file, &mut bytes, 0, id)?;
        let head = Head::parse(&bytes, len).map_err(lost)?;
        let mut rest = vec![0; (head.directory().end - head.directory().start) as usize];
        read_exact(&file, &mut rest, head.directory().start, id)?;
        let directory = Directory::open(head, &bytes, &rest).map_err(lost)?;
        let head = directory.head();
        let found = Key { kind: head.kind, hash: head.hash, first: head.first, count: head.count };
        let whole_file = head.kind == super::entry::Kind::File && Key { count: 0, ..found } == *key;
        if found != *key && !whole_file {
            return Err(Miss::Lost("it is another entry", Some(id)));
        }
        Ok(Self { file, id, directory })
    }

    /// Bytes of all chunks together.
    pub(super) fn data_len(&self) -> u64 {
        self.directory.head().data_len
    }

    /// Some of its chunks, counted from its first one.
    pub(super) fn chunks(&self, wanted: Range<u32>) -> Result<Vec<Cached>, Miss> {
        let mut found = Vec::with_capacity(wanted.len());
        for page in self.directory.page_of(wanted.start)..=self.directory.page_of(wanted.end.saturating_sub(1)) {
            let rows = self.rows(page)?;
            let before = (page * super::entry::PAGE_ROWS) as u32;
            let from = wanted.start.saturating_sub(before) as usize;
            let to = (wanted.end.saturating_sub(before) as usize).min(rows.len());
            for row in rows.get(from..to).unwrap_or_default() {
                found.push(Cached { hash: row.hash, bytes: self.chunk(row)? });
            }
        }
        if found.len() != wanted.len() {
            return Err(Miss::Lost("it has fewer chunks", Some(self.id)));
        }
        Ok(found)
    }

    /// Some of its bytes, which must not be empty. They are nobody else's.
    pub(super) fn bytes(&self, wanted: Range<u64>) -> Result<Bytes, Miss> {
        if wanted.is_empty() || wanted.end > self.data_len() {
            return Err(Miss::Lost("it has fewer bytes", Some(self.id)));
        }
        let pages = self.directory.page_at(wanted.start)..=self.directory.page_at(wanted.end - 1);
        let mut rows = Vec::new();
        for page in pages {
            let touched = |row: &Row| row.offset < wanted.end && row.end() > wanted.start;
            rows.extend(self.rows(page)?.into_iter().filter(touched));
        }
        read_rows(&self.file, HEAD_LEN as u64, &rows, wanted).map_err(|error| miss(error, self.id))
    }

    fn rows(&self, page: usize) -> Result<Vec<Row>, Miss> {
        let range = self.directory.page_bytes(page);
        let mut bytes = vec![0; (range.end - range.start) as usize];
        read_exact(&self.file, &mut bytes, range.start, self.id)?;
        self.directory.page(page, &bytes).map_err(|Damaged(why)| Miss::Lost(why, Some(self.id)))
    }

    fn chunk(&self, row: &Row) -> Result<Bytes, Miss> {
        let read = read_chunk(&self.file, HEAD_LEN as u64 + row.offset, row.len as usize, &row.hash);
        read.map_err(|error| miss(error, self.id))
    }
}

/// A chunk on its own.
fn read_chunk(file: &File, at: u64, len: usize, hash: &Hash) -> io::Result<Bytes> {
    let bytes = read_up(file, at, len)?;
    if chunk_hash(&bytes) != *hash {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk does not match its hash"));
    }
    Ok(bytes.into())
}

/// The bytes `wanted` of the data that begins at `start`: all that `rows`, which touch each other
/// and cover it, hold of it. Every one of them is checked.
pub(super) fn read_rows(file: &File, start: u64, rows: &[Row], wanted: Range<u64>) -> io::Result<Bytes> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    if first.offset > wanted.start || last.end() < wanted.end {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // At most a chunk more than was asked for on either side.
    let span = (last.end() - first.offset) as usize;
    debug_assert!(span as u64 <= wanted.end - wanted.start + 2 * MAX_CHUNK as u64);
    let bytes = read_up(file, start + first.offset, span)?;
    let mut rest = &bytes[..];
    for row in rows {
        let chunk = rest.split_off(..row.len as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        if chunk_hash(chunk) != row.hash {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a chunk does not match its hash"));
        }
    }
    let mut bytes = Bytes::from(bytes);
    bytes.advance((wanted.start - first.offset) as usize);
    bytes.truncate((wanted.end - wanted.start) as usize);
    Ok(bytes)
}

/// Exactly `len` bytes from offset `at`, into memory that is not cleared first.
fn read_up(file: &File, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = at + bytes.len() as u64;
        if retry_on_intr(|| pread(file, spare_capacity(&mut bytes), at))? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    // The allocator may have given more than was asked for.
    bytes.truncate(len);
    Ok(bytes)
}

fn read_exact(file: &File, bytes: &mut [u8], at: u64, id: FileId) -> Result<(), Miss> {
    file.read_exact_at(bytes, at).map_err(|error| miss(error, id))
}

/// A file that ends early or lies on a bad place of the disk is as good as none; any other fault says nothing about it.
fn miss(error: io::Error, id: FileId) -> Miss {
    let bad_disk = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Miss::Lost("it is cut short", Some(id)),
        io::ErrorKind::InvalidData => Miss::Lost("a chunk does not match its hash", Some(id)),
        _ if bad_disk => Miss::Lost("the disk can't read it", Some(id)),
        _ => Miss::Failed(error),
    }
}
