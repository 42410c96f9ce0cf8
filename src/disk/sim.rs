//! A disk in memory whose power can be cut, for tests.
//!
//! What [`Disk`] promises it keeps, and nothing else. At a cut:
//!
//! - Of each file, every sector of 512 bytes is as it was at the file's last sync, or as any write
//!   since has left it, each by itself. The length is that of the last sync, or any that the file
//!   has had since. What was never written reads as zeros.
//! - Of the changes of names since their folders were synced any set has happened, but that changes of one name happen
//!   in their order, and a rename all at once. A file's name says nothing of its content, nor that of a folder above.
//!
//! That is what POSIX allows, and more than most file systems do: ext4 keeps changes of names in order, and without
//! `data=writeback` a new length only comes with its bytes. Left out: sectors torn within, old bytes of other files
//! where nothing was written, disks that lie about a sync, syncs that fail.
//!
//! A disk is mounted at a root, which each restart chooses anew; that of a machine that is gone
//! fails all calls (EIO), so what is left of the old process can do no harm. [`SimDisk::kill`] ends
//! only the process: what was written is there, and still not synced.

use super::{Beyond, Disk, DiskFile, Existing};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Bytes that are written all or none.
const SECTOR: usize = 512;

/// See the module. Clones are the same disk of the same boot.
#[derive(Clone)]
pub(crate) struct SimDisk {
    root: PathBuf,
    boot: u64,
    world: Arc<World>,
}

struct World {
    state: Mutex<State>,
    /// The boot that is running. Changed under the lock.
    boot: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    files: Vec<Content>,
    names: Names,
    durable_names: Names,
    /// Since their folders were synced, in order.
    changes: Vec<Change>,
    calls: u64,
    /// The call that is the last one.
    last_call: Option<u64>,
}

/// A file's bytes.
#[derive(Default)]
struct Content {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// What makes the one of the other.
    unsynced: Vec<Write>,
}

enum Write {
    Bytes(usize, Vec<u8>),
    Len(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    File(usize),
    Folder,
}

/// A name in a folder.
type Place = (PathBuf, OsString);
/// What places hold from then on.
type Change = Vec<(Place, Option<Entry>)>;

/// Folders with what is in them, by their path below the root.
#[derive(Clone)]
struct Names(BTreeMap<PathBuf, BTreeMap<OsString, Entry>>);

impl Default for Names {
    fn default() -> Self {
        Self(BTreeMap::from([(PathBuf::new(), BTreeMap::new())]))
    }
}

impl Names {
    fn find(&self, (folder, name): &Place) -> Option<Entry> {
        self.0.get(folder)?.get(name).copied()
    }

    fn apply(&mut self, change: &Change) {
        for ((folder, name), entry) in change {
            let entries = self.0.entry(folder.clone()).or_default();
            match entry {
                Some(entry) => drop(entries.insert(name.clone(), *entry)),
                None => drop(entries.remove(name)),
            }
            if *entry == Some(Entry::Folder) {
                self.0.entry(folder.join(name)).or_default();
            }
        }
    }

    /// Forgets folders that have no name.
    fn sweep(&mut self) {
        let all: Vec<_> = self.0.keys().cloned().collect();
        for folder in all {
            // Sorted: those above come first.
            let place = folder.parent().zip(folder.file_name());
            let has_name =
                place.is_none_or(|(above, name)| self.find(&(above.into(), name.into())) == Some(Entry::Folder));
            if !has_name {
                self.0.remove(&folder);
            }
        }
    }
}

impl Content {
    fn change(&mut self, write: Write) {
        write.apply(&mut self.now);
        self.unsynced.push(write);
    }

    fn sync(&mut self) {
        for write in self.unsynced.drain(..) {
            write.apply(&mut self.durable);
        }
    }

    /// What a cut leaves.
    fn cut(&mut self, chance: &mut Chance) {
        let writes = std::mem::take(&mut self.unsynced);
        let mood = chance.mood();
        let lens = std::iter::once(self.durable.len()).chain(writes.iter().scan(self.durable.len(), |len, write| {
            *len = write.len_after(*len);
            Some(*len)
        }));
        let lens: Vec<_> = lens.collect();
        let len = lens[chance.upto(mood, writes.len())];
        // How many of the writes a sector has seen.
        let mut seen: HashMap<usize, usize> = HashMap::new();
        for (number, write) in writes.iter().enumerate() {
            for sector in write.sectors(self.durable.len()) {
                if number < *seen.entry(sector).or_insert_with(|| chance.upto(mood, writes.len())) {
                    write.apply_to_sector(&mut self.durable, sector);
                }
            }
        }
        self.durable.resize(len, 0);
        self.now = self.durable.clone();
    }
}

impl Write {
    fn apply(&self, content: &mut Vec<u8>) {
        content.resize(self.len_after(content.len()), 0);
        if let Self::Bytes(at, bytes) = self {
            content[*at..at + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn len_after(&self, len: usize) -> usize {
        match self {
            Self::Bytes(at, bytes) => len.max(at + bytes.len()),
            Self::Len(len) => *len,
        }
    }

    /// Sectors that it changes of a file of `len` bytes: a cut zeros what is behind it.
    fn sectors(&self, len: usize) -> std::ops::Range<usize> {
        match self {
            Self::Bytes(at, bytes) => at / SECTOR..(at + bytes.len()).div_ceil(SECTOR),
            Self::Len(cut) => cut / SECTOR..len.div_ceil(SECTOR).max(cut / SECTOR),
        }
    }

    /// Applies what concerns one sector, whatever the length.
    fn apply_to_sector(&self, content: &mut Vec<u8>, sector: usize) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        if content.len() < range.end {
            content.resize(range.end, 0);
        }
        match self {
            Self::Bytes(at, bytes) => {
                let (start, end) = (range.start.max(*at), range.end.min(at + bytes.len()));
                content[start..end].copy_from_slice(&bytes[start - at..end - at]);
            }
            Self::Len(cut) => content[range.start.max(*cut)..range.end].fill(0),
        }
    }
}

impl State {
    /// Makes the changes of a folder durable, and what they rest on: earlier ones of the same names.
    fn sync_folder(&mut self, folder: &Path) {
        let mut needed: HashSet<Place> = HashSet::new();
        let mut durable = vec![false; self.changes.len()];
        for (at, change) in self.changes.iter().enumerate().rev() {
            durable[at] = change.iter().any(|(place, _)| place.0 == folder || needed.contains(place));
            if durable[at] {
                needed.extend(change.iter().map(|(place, _)| place.clone()));
            }
        }
        let mut at = durable.into_iter();
        let (durable, rest) = std::mem::take(&mut self.changes).into_iter().partition(|_| at.next() == Some(true));
        self.changes = rest;
        durable.iter().for_each(|change: &Change| self.durable_names.apply(change));
    }

    fn change(&mut self, change: Change) {
        self.names.apply(&change);
        self.changes.push(change);
    }

    fn cut(&mut self, chance: &mut Chance) {
        self.files.iter_mut().for_each(|file| file.cut(chance));
        let mood = chance.mood();
        let mut undone: HashSet<Place> = HashSet::new();
        for change in std::mem::take(&mut self.changes) {
            let rests_on_it = change.iter().any(|(place, _)| undone.contains(place));
            if !rests_on_it && chance.happens(mood) {
                self.durable_names.apply(&change);
            } else {
                undone.extend(change.into_iter().map(|(place, _)| place));
            }
        }
        self.durable_names.sweep();
        self.names = self.durable_names.clone();
    }

    fn file(&mut self, place: &Place) -> io::Result<usize> {
        match self.names.find(place) {
            Some(Entry::File(file)) => Ok(file),
            Some(Entry::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn is_last_call(&self) -> bool {
        self.last_call.is_some_and(|last| self.calls >= last)
    }
}

/// What a cut does to one file, or to names: a disk mostly wrote nothing yet, or all, but for one file or two.
#[derive(Clone, Copy)]
enum Mood {
    Lost,
    Kept,
    Torn,
}

/// The same for the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33
    }

    fn mood(&mut self) -> Mood {
        match self.next() % 4 {
            0 => Mood::Lost,
            1 => Mood::Kept,
            _ => Mood::Torn,
        }
    }

    fn happens(&mut self, mood: Mood) -> bool {
        self.upto(mood, 1) == 1
    }

    /// How many of `count` things happened before the power went.
    fn upto(&mut self, mood: Mood, count: usize) -> usize {
        match mood {
            Mood::Lost => 0,
            Mood::Kept => count,
            Mood::Torn => match self.next() % 3 {
                0 => 0,
                1 => count,
                _ => self.next() as usize % (count + 1),
            },
        }
    }
}

fn gone() -> io::Error {
    rustix::io::Errno::IO.into()
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<R>(&self, boot: u64, act: impl FnOnce(&mut State) -> io::Result<R>) -> io::Result<R> {
        let mut state = self.state();
        if boot != *self.boot.borrow() {
            return Err(gone());
        }
        state.calls += 1;
        let outcome = act(&mut state);
        if state.is_last_call() {
            // It may have done its work, but nobody will hear of it.
            state.last_call = None;
            self.boot.send_modify(|boot| *boot += 1);
            return Err(gone());
        }
        outcome
    }
}

impl SimDisk {
    /// An empty disk at `root`.
    pub(crate) fn new(root: &Path) -> Self {
        let world = World { state: Mutex::default(), boot: watch::channel(0).0 };
        Self { root: root.to_owned(), boot: 0, world: Arc::new(world) }
    }

    /// Cuts the power, and mounts what is left at another root.
    pub(crate) fn cut(&self, seed: u64, root: &Path) -> Self {
        self.end(root, |state| state.cut(&mut Chance(seed | 1)))
    }

    /// Ends the process that uses the disk; the machine goes on.
    pub(crate) fn kill(&self, root: &Path) -> Self {
        self.end(root, |_| ())
    }

    /// No call comes between.
    fn end(&self, root: &Path, act: impl FnOnce(&mut State)) -> Self {
        let mut state = self.world.state();
        act(&mut state);
        state.last_call = None;
        self.world.boot.send_modify(|boot| *boot += 1);
        let boot = *self.world.boot.borrow();
        drop(state);
        Self { root: root.to_owned(), boot, world: self.world.clone() }
    }

    /// Has the call after `calls` further ones be the last: it is carried out, a write half, and
    /// not answered, and all calls after it fail.
    pub(crate) fn end_after(&self, calls: u64) {
        let mut state = self.world.state();
        state.last_call = Some(state.calls + calls + 1);
    }

    /// Takes that back, unless it has happened.
    pub(crate) fn end_never(&self) {
        self.world.state().last_call = None;
    }

    /// Counts as a call. An error once the machine is gone: what somebody asks of others ends with it too.
    pub(crate) fn step(&self) -> io::Result<()> {
        self.call(|_| Ok(()))
    }

    /// Whether the machine is gone.
    pub(crate) fn has_ended(&self) -> bool {
        self.boot != *self.world.boot.borrow()
    }

    /// Resolves when it is.
    pub(crate) async fn ended(&self) {
        // The sender lives as long as this.
        let _ = self.world.boot.subscribe().wait_for(|boot| *boot != self.boot).await;
    }

    fn call<R>(&self, act: impl FnOnce(&mut State) -> io::Result<R>) -> io::Result<R> {
        self.world.call(self.boot, act)
    }

    /// A path below the root. What is above it is no affair of this disk.
    fn below(&self, path: &Path) -> Option<PathBuf> {
        path.strip_prefix(&self.root).ok().map(Path::to_owned)
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let path = self.below(path).ok_or(io::ErrorKind::NotFound)?;
        let (above, name) = path.parent().zip(path.file_name()).ok_or(io::ErrorKind::InvalidInput)?;
        Ok((above.to_owned(), name.to_owned()))
    }

    fn handle(&self, file: usize) -> Box<dyn DiskFile> {
        Box::new(SimFile { file, boot: self.boot, world: self.world.clone() })
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let place = self.place(path)?;
        self.call(|state| state.file(&place)).map(|file| self.handle(file))
    }

    fn create(&self, path: &Path, existing: Existing) -> io::Result<Box<dyn DiskFile>> {
        let place = self.place(path)?;
        let file = self.call(|state| {
            if !state.names.0.contains_key(&place.0) {
                return Err(io::ErrorKind::NotFound.into());
            }
            match (state.file(&place), existing) {
                (Ok(_), Existing::Refused) => Err(io::ErrorKind::AlreadyExists.into()),
                (Ok(file), Existing::Kept) => Ok(file),
                (Ok(file), Existing::Emptied) => {
                    state.files[file].change(Write::Len(0));
                    Ok(file)
                }
                (Err(error), _) if error.kind() != io::ErrorKind::NotFound => Err(error),
                (Err(_), _) => {
                    state.files.push(Content::default());
                    let file = state.files.len() - 1;
                    state.change(vec![(place, Some(Entry::File(file)))]);
                    Ok(file)
                }
            }
        });
        file.map(|file| self.handle(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.place(from)?, self.place(to)?);
        self.call(|state| {
            let file = state.file(&from)?;
            if !state.names.0.contains_key(&to.0) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if from != to {
                state.change(vec![(from, None), (to, Some(Entry::File(file)))]);
            }
            Ok(())
        })
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<bool> {
        let (old, new) = (self.place(from)?, self.place(to)?);
        self.call(|state| {
            let file = state.file(&old)?;
            let free = state.names.find(&new).is_none();
            if free {
                state.change(vec![(old, None), (new, Some(Entry::File(file)))]);
            }
            Ok(free)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let place = self.place(path)?;
        self.call(|state| {
            state.file(&place)?;
            state.change(vec![(place, None)]);
            Ok(())
        })
    }

    fn create_folder(&self, path: &Path) -> io::Result<()> {
        if self.root.starts_with(path) {
            return self.call(|_| Ok(()));
        }
        let place = self.place(path)?;
        self.call(|state| match state.names.find(&place) {
            Some(Entry::Folder) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            None if !state.names.0.contains_key(&place.0) => Err(io::ErrorKind::NotFound.into()),
            None => {
                state.change(vec![(place, Some(Entry::Folder))]);
                Ok(())
            }
        })
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let below = self.below(path);
        self.call(|state| match below {
            Some(folder) if state.names.0.contains_key(&folder) => {
                state.sync_folder(&folder);
                Ok(())
            }
            Some(_) => Err(io::ErrorKind::NotFound.into()),
            None => Ok(()),
        })
    }
}

struct SimFile {
    file: usize,
    boot: u64,
    world: Arc<World>,
}

impl SimFile {
    fn call<R>(&self, act: impl FnOnce(&mut Content, bool) -> io::Result<R>) -> io::Result<R> {
        self.world.call(self.boot, |state| {
            let is_last = state.is_last_call();
            act(&mut state.files[self.file], is_last)
        })
    }
}

impl DiskFile for SimFile {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.call(|content, _| {
            let end = (offset as usize).checked_add(buffer.len()).filter(|end| *end <= content.now.len());
            let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
            buffer.copy_from_slice(&content.now[offset as usize..end]);
            Ok(())
        })
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.call(|content, is_last| {
            let len = if is_last { bytes.len() / 2 } else { bytes.len() };
            content.change(Write::Bytes(offset as usize, bytes[..len].to_vec()));
            Ok(())
        })
    }

    fn size(&self) -> io::Result<u64> {
        self.call(|content, _| Ok(content.now.len() as u64))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call(|content, _| {
            content.change(Write::Len(len as usize));
            Ok(())
        })
    }

    fn allocate(&self, offset: u64, len: u64, beyond: Beyond) -> io::Result<()> {
        self.call(|content, _| {
            let end = (offset + len) as usize;
            if beyond == Beyond::Lengthens && end > content.now.len() {
                content.change(Write::Len(end));
            }
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call(|content, _| {
            content.sync();
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }
}

#[cfg(test)]
mod tests;
