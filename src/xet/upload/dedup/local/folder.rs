//! The files of a folder of shards, and their bounds.
//!
//! An upload session stores one small file. Listing the folder for each of them costs time in proportion to all earlier
//! sessions. So the folder is listed when it is opened, and its names, sizes and ages stay in memory: a new file is
//! added to them, and the oldest files are deleted by name as soon as the bounds are exceeded.
//!
//! Other processes may use the folder too. This process does not see their new files until it lists the folder again,
//! which it does after it has written a quarter of the bounds itself ([`RELIST`]). So `n` processes together exceed the
//! bounds by a quarter for each of them. A file is written under a temporary name and then renamed, and its name is
//! the hash of its content: a reader that meets a torn, altered or deleted file notices it. Everything here blocks.

use super::LocalLimits;
use crate::Hash;
use crate::hash::chunk_hash;
use crate::shard::{Footer, MAX_SHARD, Shard};
use std::collections::{BTreeSet, HashMap};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Suffix of a shard's file name.
const SUFFIX: &str = ".shard";
/// Suffix of a file that is being written.
const UNFINISHED: &str = ".tmp";
/// Age at which an unfinished file is deleted: its writer has crashed.
const ABANDONED: Duration = Duration::from_secs(3600);
/// The folder is listed again after 1/`RELIST` of the bounds was written, in bytes or files. The cost of a listing is
/// then spread over so many writes that each pays for a few entries, whatever the size of the folder.
const RELIST: u64 = 4;

/// A folder of shards.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    limits: LocalLimits,
    files: HashMap<Name, Entry>,
    /// All files by age, the oldest first.
    by_age: BTreeSet<(SystemTime, Name)>,
    /// Bytes of all files.
    bytes: u64,
    /// Bytes and files written since the folder was listed.
    written: (u64, u64),
    /// Part of the names of unfinished files.
    next_unfinished: u64,
    /// Directory listings and file status calls so far.
    #[cfg(test)]
    pub(super) looked: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    modified: SystemTime,
    len: u64,
}

impl Folder {
    /// Opens the folder and lists it. Creates it if it does not exist.
    pub(super) fn open(dir: PathBuf, limits: LocalLimits, now: SystemTime) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let mut folder = Self {
            dir,
            limits,
            files: HashMap::new(),
            by_age: BTreeSet::new(),
            bytes: 0,
            written: (0, 0),
            next_unfinished: 0,
            #[cfg(test)]
            looked: 0,
        };
        folder.list(now)?;
        Ok(folder)
    }

    pub(super) fn limits(&self) -> LocalLimits {
        self.limits
    }

    /// Names and lengths of all shards, the newest first.
    pub(super) fn names(&self) -> Vec<(Name, u64)> {
        self.by_age.iter().rev().map(|(_, name)| (*name, self.files[name].len)).collect()
    }

    /// Reads the folder, deletes abandoned unfinished files, and enforces the bounds.
    pub(super) fn list(&mut self, now: SystemTime) -> io::Result<()> {
        self.files.clear();
        self.by_age.clear();
        (self.bytes, self.written) = (0, (0, 0));
        #[cfg(test)]
        (self.looked += 1);
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            #[cfg(test)]
            (self.looked += 1);
            // Fails for a file that another process has just deleted or renamed.
            let Ok(meta) = entry.metadata() else { continue };
            let modified = meta.modified().unwrap_or(UNIX_EPOCH);
            let Some(text) = entry.file_name().to_str().map(str::to_owned).filter(|_| meta.is_file()) else { continue };
            if let Some(name) = Name::parse(&text) {
                self.add(name, Entry { modified, len: meta.len() });
            } else if text.ends_with(UNFINISHED) && now.duration_since(modified).is_ok_and(|age| age > ABANDONED) {
                delete(&entry.path());
            }
        }
        self.trim();
        Ok(())
    }

    /// Stores a shard under its name, then enforces the bounds.
    pub(super) fn store(&mut self, name: Name, bytes: &[u8], now: SystemTime) -> io::Result<()> {
        self.next_unfinished += 1;
        let unfinished = format!("{}-{}-{}{UNFINISHED}", name.hash, std::process::id(), self.next_unfinished);
        let unfinished = self.dir.join(unfinished);
        let create = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished);
        create
            .and_then(|mut file| {
                file.write_all(bytes)?;
                // The age that this process remembers.
                file.set_modified(now)?;
                fs::rename(&unfinished, self.path(&name))
            })
            .inspect_err(|_| delete(&unfinished))?;
        let len = bytes.len() as u64;
        self.add(name, Entry { modified: now, len });
        self.written = (self.written.0.saturating_add(len), self.written.1 + 1);
        if self.written.0 > self.limits.max_bytes / RELIST || self.written.1 > self.limits.max_files as u64 / RELIST {
            return self.list(now);
        }
        self.trim();
        Ok(())
    }

    /// Reads a shard. Returns `None` if another process has deleted it. Deletes it and returns `None` if it
    /// is damaged or expired.
    pub(super) fn read(&mut self, name: &Name, now: SystemTime) -> io::Result<Option<(Shard, Footer)>> {
        match read(name, &self.path(name), now) {
            Ok(None) => self.remove(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.forget(name),
            read => return read,
        }
        Ok(None)
    }

    /// Deletes a shard. Does nothing if another process has deleted it.
    pub(super) fn remove(&mut self, name: &Name) {
        self.forget(name);
        delete(&self.path(name));
    }

    /// Deletes the oldest shards until the rest is within the bounds.
    fn trim(&mut self) {
        while self.bytes > self.limits.max_bytes || self.files.len() > self.limits.max_files {
            let Some((_, oldest)) = self.by_age.first().copied() else { return };
            self.remove(&oldest);
        }
    }

    fn add(&mut self, name: Name, entry: Entry) {
        self.forget(&name);
        self.bytes = self.bytes.saturating_add(entry.len);
        self.by_age.insert((entry.modified, name));
        self.files.insert(name, entry);
    }

    fn forget(&mut self, name: &Name) {
        if let Some(entry) = self.files.remove(name) {
            self.bytes = self.bytes.saturating_sub(entry.len);
            self.by_age.remove(&(entry.modified, *name));
        }
    }

    fn path(&self, name: &Name) -> PathBuf {
        self.dir.join(name.to_string())
    }
}

/// File name of a shard: the hash of its content and, for the response to a chunk query, the queried chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Name {
    pub(super) hash: Hash,
    pub(super) question: Option<Hash>,
}

impl Name {
    /// The name of one of our own shards with these bytes.
    pub(super) fn of_own(bytes: &[u8]) -> Self {
        Self { hash: chunk_hash(bytes), question: None }
    }

    fn parse(text: &str) -> Option<Self> {
        let stem = text.strip_suffix(SUFFIX)?;
        let (hash, question) = match stem.split_once('-') {
            Some((hash, question)) => (hash, Some(question.parse().ok()?)),
            None => (stem, None),
        };
        Some(Self { hash: hash.parse().ok()?, question })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.question {
            Some(question) => write!(f, "{}-{question}{SUFFIX}", self.hash),
            None => write!(f, "{}{SUFFIX}", self.hash),
        }
    }
}

/// Reads the shard in a file. Returns `None` if it is damaged or expired.
fn read(name: &Name, path: &Path, now: SystemTime) -> io::Result<Option<(Shard, Footer)>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_SHARD as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_SHARD || chunk_hash(&bytes) != name.hash {
        return Ok(None);
    }
    let Ok(mut shard) = Shard::parse(&bytes) else { return Ok(None) };
    let footer = shard.footer.take().filter(|footer| footer.expires > seconds(now));
    Ok(footer.map(|footer| (shard, footer)))
}

fn delete(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::debug!(%error, "cannot delete a shard"),
        _ => {}
    }
}

/// Unix seconds.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
