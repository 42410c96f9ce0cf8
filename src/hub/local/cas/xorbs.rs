//! The xorb files of the store.
//!
//! A xorb is one file, `xorbs/<first two digits>/<hash>`: the chunk area as it was uploaded and a footer that we built
//! from the verified chunks. It exists where the file does and is never removed. It is replaced only where it is
//! damaged, by the next upload, since the same chunks compressed otherwise have other offsets and other processes hold
//! the old ones; these take notice when they next open the file.

use super::indexes::{Cache, Known};
use super::{CasStore, Error, blocking};
use crate::disk::DiskFile;
use crate::hub::local::disk::{Publisher, Staged};
use crate::xet::hash::chunk_hash;
use crate::xet::xorb::{self, MAX_CHUNKS, MAX_SERIALISED, XorbIndex};
use crate::xet::{self, Hash};
use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Longest info block, in bytes: version 1 with the most chunks.
const MAX_INFO: u64 = 92 + 40 * MAX_CHUNKS as u64;

/// Chunks that are looked at together in the search for damage: 2 MiB at most.
const PIECE: u32 = 16;

/// Bytes of a xorb's chunk area.
pub(super) fn stored_len(index: &XorbIndex) -> u64 {
    index.chunks.last().map_or(0, |chunk| u64::from(chunk.stored_end))
}

/// The xorb files.
pub(super) struct Xorbs {
    publisher: Publisher,
    cache: Mutex<Cache>,
}

impl Xorbs {
    /// Those below the publisher's root.
    pub(super) fn new(publisher: Publisher) -> Self {
        Self { publisher, cache: Mutex::default() }
    }

    /// The index of a xorb; `None` where there is no such xorb. Blocks.
    pub(super) fn find(&self, hash: &Hash) -> Result<Option<Arc<XorbIndex>>, Error> {
        match self.cached(hash) {
            Some(index) => Ok(Some(index)),
            None => Ok(self.try_open(hash)?.map(|file| self.read_index(file.as_ref(), hash)).transpose()?),
        }
    }

    /// The index of a xorb that a registered file names. Blocks.
    pub(super) fn index(&self, hash: &Hash) -> Result<Arc<XorbIndex>, Error> {
        self.find(hash)?.ok_or_else(|| missing(hash))
    }

    /// Opens a xorb that exists. Gives the index of what is in the file now: another process may
    /// have replaced a damaged one. Blocks.
    pub(super) fn open(&self, hash: &Hash) -> Result<(Box<dyn DiskFile>, Arc<XorbIndex>), Error> {
        let file = self.try_open(hash)?.ok_or_else(|| missing(hash))?;
        let len = file.size().map_err(Error::io("read a xorb's length"))?;
        let known =
            self.cache.lock().ok().and_then(|mut cache| cache.touch(hash)).filter(|known| known.file_len == len);
        let index = match known {
            Some(known) => known.index,
            None => self.read_index(file.as_ref(), hash)?,
        };
        Ok((file, index))
    }

    /// Whether a xorb exists; if so it is on disk when this returns. Blocks.
    pub(super) fn contains(&self, hash: &Hash) -> Result<bool, Error> {
        let found = self.find(hash)?.is_some();
        if found {
            self.make_durable([hash])?;
        }
        Ok(found)
    }

    /// [`Self::contains`], with a look at every chunk: where this says no, an upload heals what is damaged. Costs about
    /// as much as an upload of the xorb. Blocks.
    pub(super) fn contains_sound(&self, hash: &Hash) -> Result<bool, Error> {
        let sound = self.examine(hash)? == Health::Sound;
        if sound {
            self.make_durable([hash])?;
        }
        Ok(sound)
    }

    /// Sees to it that the names of existing xorbs are on disk. Their content is, but another process may have renamed
    /// one just now and not have synced the folders yet. Each folder is synced once.
    pub(super) fn make_durable<'a>(&self, hashes: impl IntoIterator<Item = &'a Hash>) -> Result<(), Error> {
        let is_durable = |hash: &Hash| self.cache.lock().is_ok_and(|cache| cache.is_durable(hash));
        let doubtful: Vec<&Hash> = hashes.into_iter().filter(|hash| !is_durable(hash)).collect();
        // The fan-out folder, the folder of all xorbs, and the root.
        let folders_of =
            |hash: &&Hash| self.path(hash).ancestors().skip(1).take(3).map(Path::to_owned).collect::<Vec<_>>();
        let folders: BTreeSet<PathBuf> = doubtful.iter().flat_map(folders_of).collect();
        for folder in folders.iter().rev() {
            self.publisher.disk().sync_folder(folder).map_err(Error::io("sync a folder of xorbs"))?;
        }
        if let Ok(mut cache) = self.cache.lock() {
            doubtful.into_iter().for_each(|hash| cache.mark_durable(hash));
        }
        Ok(())
    }

    /// Gives the staged chunks of a verified upload their name, durably. `false` where the xorb is
    /// there already. Blocks.
    pub(super) fn publish(&self, mut staged: Staged, index: XorbIndex) -> Result<bool, Error> {
        let hash = index.hash;
        let health = self.examine(&hash)?;
        if health == Health::Sound {
            return self.make_durable([&hash]).map(|()| false);
        }
        let footer = xorb::write_footer(&index);
        staged.write_all(&footer).map_err(Error::io("write a xorb"))?;
        let published = match health {
            Health::Damaged => staged.publish_over(relative_path(&hash)).map(|()| true),
            _ => staged.publish_new(relative_path(&hash)),
        };
        let published = published.map_err(Error::io("publish a xorb"))?;
        if published {
            let file_len = stored_len(&index) + footer.len() as u64;
            self.remember(&hash, &Arc::new(index), file_len, true);
        }
        Ok(published)
    }

    /// Begins the file of a xorb. Blocks.
    pub(super) fn stage(&self) -> Result<Staged, Error> {
        self.publisher.stage().map_err(Error::io("stage a xorb"))
    }

    /// Reads all of a xorb.
    fn examine(&self, hash: &Hash) -> Result<Health, Error> {
        let Some(file) = self.try_open(hash)? else { return Ok(Health::Missing) };
        let checked = self.read_index(file.as_ref(), hash).and_then(|index| {
            let count = index.chunks.len() as u32;
            let mut pieces = (0..count).step_by(PIECE as usize).map(|at| at..count.min(at + PIECE));
            pieces.try_for_each(|chunks| read_chunks(file.as_ref(), &index, chunks).map(drop))
        });
        match checked {
            Ok(()) => Ok(Health::Sound),
            // A sector that can't be read is as lost as one with other bytes.
            Err(why @ (Error::Damaged { .. } | Error::Io { .. })) => {
                tracing::warn!("CAS: {why}; the next upload replaces it");
                self.forget(hash);
                Ok(Health::Damaged)
            }
            Err(other) => Err(other),
        }
    }

    fn try_open(&self, hash: &Hash) -> Result<Option<Box<dyn DiskFile>>, Error> {
        match self.publisher.disk().open(&self.path(hash)) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open a xorb")(e)),
        }
    }

    fn path(&self, hash: &Hash) -> PathBuf {
        self.publisher.path(relative_path(hash))
    }

    /// The index of a xorb where it is at hand.
    pub(super) fn cached(&self, hash: &Hash) -> Option<Arc<XorbIndex>> {
        self.cache.lock().ok()?.touch(hash).map(|known| known.index)
    }

    fn read_index(&self, file: &dyn DiskFile, hash: &Hash) -> Result<Arc<XorbIndex>, Error> {
        let (index, len) = read_index(file, hash)?;
        let index = Arc::new(index);
        self.remember(hash, &index, len, false);
        Ok(index)
    }

    fn remember(&self, hash: &Hash, index: &Arc<XorbIndex>, file_len: u64, durable: bool) {
        if let Ok(mut cache) = self.cache.lock() {
            cache.insert(*hash, Known { index: Arc::clone(index), file_len }, durable);
        }
    }

    fn forget(&self, hash: &Hash) {
        if let Ok(mut cache) = self.cache.lock() {
            cache.remove(hash);
        }
    }
}

/// How a xorb is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Missing,
    Sound,
    Damaged,
}

fn missing(hash: &Hash) -> Error {
    Error::damaged("xorb", hash, "its file is missing")
}

fn relative_path(hash: &Hash) -> PathBuf {
    let name = hash.to_string();
    PathBuf::from("xorbs").join(&name[..2]).join(&name)
}

/// The decoded bytes of some chunks of a xorb, each checked against its hash. Blocks.
pub(super) fn read_chunks(file: &dyn DiskFile, index: &XorbIndex, chunks: Range<u32>) -> Result<Vec<u8>, Error> {
    let damaged = |why: &dyn std::fmt::Display| Error::damaged("xorb", &index.hash, why.to_string());
    let before = (chunks.start as usize).checked_sub(1).and_then(|last| index.chunks.get(last));
    let before = before.map_or(0, |chunk| chunk.stored_end);
    let chunks = index.chunks.get(chunks.start as usize..chunks.end as usize).unwrap_or_default();
    let end = chunks.last().ok_or_else(|| damaged(&"chunks are missing"))?.stored_end;
    let mut stored = vec![0; (end - before) as usize];
    file.read_exact_at(&mut stored, u64::from(before)).map_err(Error::io("read a xorb"))?;
    let mut raw = Vec::with_capacity(chunks.iter().map(|chunk| chunk.raw_len as usize).sum());
    let mut expected = chunks.iter();
    let each = |chunk: &[u8]| match expected.next() {
        Some(entry) if chunk_hash(chunk) == entry.hash => {
            raw.extend_from_slice(chunk);
            Ok(())
        }
        Some(entry) => Err(xet::Error::HashMismatch { what: "chunk", expected: entry.hash }),
        None => Err(xet::Error::NotFound(index.hash)),
    };
    xorb::decode_chunks(&stored, each).map_err(|e| damaged(&e))?;
    if expected.next().is_some() {
        return Err(damaged(&"chunks are missing"));
    }
    Ok(raw)
}

/// Reads the index at the end of a xorb file, and checks all of it that can be checked without the
/// chunks. Gives the file's length too.
fn read_index(file: &dyn DiskFile, hash: &Hash) -> Result<(XorbIndex, u64), Error> {
    let damaged = |why: &str| Error::damaged("xorb", hash, why);
    let read = |buffer: &mut [u8], offset| file.read_exact_at(buffer, offset).map_err(Error::io("read a xorb's index"));
    let size = file.size().map_err(Error::io("read a xorb's length"))?;
    let info_end = size.checked_sub(4).ok_or_else(|| damaged("no footer"))?;
    let mut info_len = [0; 4];
    read(&mut info_len, info_end)?;
    let info_len = u64::from(u32::from_le_bytes(info_len));
    if info_len > MAX_INFO || size > MAX_SERIALISED as u64 {
        return Err(damaged("its footer or its file is longer than any"));
    }
    let area_len = info_end.checked_sub(info_len).ok_or_else(|| damaged("footer longer than the file"))?;
    let mut info = vec![0; info_len as usize];
    read(&mut info, area_len)?;
    let index = xorb::parse_info(&info, area_len as usize).map_err(|e| Error::damaged("xorb", hash, e))?;
    if index.hash != *hash {
        return Err(damaged("it holds another xorb"));
    }
    Ok((index, size))
}

/// [`Xorbs::contains_sound`], from async code.
pub(super) async fn contains_sound(store: &CasStore, hash: Hash) -> Result<bool, Error> {
    let store = store.clone();
    blocking(move || store.xorbs().contains_sound(&hash)).await
}

/// [`Xorbs::contains`], from async code.
pub(super) async fn contains(store: &CasStore, hash: Hash) -> Result<bool, Error> {
    let store = store.clone();
    blocking(move || store.xorbs().contains(&hash)).await
}
