//! Shards kept in a folder: those of own uploads, and answers to chunk queries.
//!
//! For dedup they are hints, never believed ([`super`]): a chunk found in one says which question
//! to ask. Own ones hold more, for a later session that composes a file of parts of uploaded ones:
//! the file section (terms) and the xorb sections (chunk hashes and lengths, so boundaries) of all
//! that was registered, in the server-stored form of the Xet spec, 7.6.
//!
//! A folder belongs to one bucket or repository of one CAS. Any number of processes may use it: files are written aside
//! and renamed, named by the hash of their content, and only read whole; what does not match its name, is expired, or
//! is no shard, is deleted. Bounded in bytes and files: the oldest go first. All of it is a cache: failures are logged
//! and cost dedup, nothing else. Everything here blocks.

use super::is_eligible;
use crate::Hash;
use crate::hash::{chunk_hash, keyed_chunk_hash};
use crate::shard::{Footer, MAX_SHARD, Shard, XorbInfo};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long an own shard is kept, in seconds: three weeks, as the reference does.
const OWN_LIFE: u64 = 21 * 86_400;
/// Ends the name of a shard.
const SUFFIX: &str = ".shard";
/// Ends the name of a file that is being written.
const UNFINISHED: &str = ".tmp";
/// An unfinished file of this age is nobody's any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Bytes of a shard per chunk: bounds the hints by the bytes of the folder.
const RECORD: u64 = 48;
/// Different keys at a time: a chunk is hashed once for each.
const MAX_KEYS: usize = 8;

/// Bounds of a folder of shards.
#[derive(Clone, Copy, Debug)]
pub struct LocalLimits {
    /// Bytes of all shards. Some 16 bytes of memory per 48 of them.
    pub max_bytes: u64,
    /// Number of shards.
    pub max_files: usize,
}

impl Default for LocalLimits {
    /// 32 MiB: the chunks of some 44 GiB.
    fn default() -> Self {
        Self { max_bytes: 32 * 1024 * 1024, max_files: 2048 }
    }
}

/// A folder of shards of earlier sessions. Cheap to clone; one per folder and process.
#[derive(Clone)]
pub struct LocalShards(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    limits: LocalLimits,
    hints: Mutex<Hints>,
    /// Part of the names of unfinished files.
    written: AtomicU64,
}

impl std::fmt::Debug for LocalShards {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalShards").field("dir", &self.0.dir).field("limits", &self.0.limits).finish()
    }
}

impl LocalShards {
    /// Opens the folder, made if it isn't there, and reads what is in it. Blocks.
    pub fn open(dir: PathBuf, limits: LocalLimits) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let inner = Inner { dir, limits, hints: Mutex::default(), written: AtomicU64::new(0) };
        inner.reload(SystemTime::now())?;
        Ok(Self(Arc::new(inner)))
    }

    /// The chunk to ask for, if `chunk` was in a shard here.
    pub(super) fn hint(&self, chunk: &Hash) -> Option<Hash> {
        self.0.hints().find(chunk)
    }

    /// Keeps a shard that was registered.
    pub(in crate::upload) fn keep_own(&self, shard: &Shard) {
        let now = SystemTime::now();
        let created = seconds(now);
        let footer = Footer { hmac_key: [0; 32], created, expires: created + OWN_LIFE };
        let bytes = shard.to_stored(&footer, false);
        self.0.keep(&Name { hash: chunk_hash(&bytes), question: None }, &bytes, now);
        self.0.hints().add(shard, &footer, None);
    }

    /// Keeps the answer to a question, until it expires.
    pub(super) fn keep_answer(&self, question: &Hash, bytes: &[u8], expires: u64) {
        let now = SystemTime::now();
        if expires > seconds(now) {
            self.0.keep(&Name { hash: chunk_hash(bytes), question: Some(*question) }, bytes, now);
        }
    }
}

impl Inner {
    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room, then reads all that is left.
    fn reload(&self, now: SystemTime) -> io::Result<()> {
        let mut hints = Hints::default();
        for (name, path) in self.trim(now)? {
            match read(&name, &path, now) {
                Ok(Some((shard, footer))) => hints.add(&shard, &footer, name.question),
                Ok(None) => remove(&path),
                // Taken away by another process, or not for us to read.
                Err(error) => tracing::debug!(%error, "cannot read a shard"),
            }
        }
        *self.hints() = hints;
        Ok(())
    }

    /// Deletes the oldest shards beyond the limits, and unfinished files that nobody finishes. Gives what is left.
    fn trim(&self, now: SystemTime) -> io::Result<Vec<(Name, PathBuf)>> {
        let mut shards = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            // Whatever another process has just deleted or renamed.
            let Ok(meta) = entry.metadata() else { continue };
            let written = meta.modified().unwrap_or(UNIX_EPOCH);
            let Some(text) = entry.file_name().to_str().map(str::to_owned).filter(|_| meta.is_file()) else { continue };
            if let Some(name) = Name::parse(&text) {
                shards.push((written, meta.len(), name, entry.path()));
            } else if text.ends_with(UNFINISHED) && now.duration_since(written).is_ok_and(|age| age > ABANDONED) {
                remove(&entry.path());
            }
        }
        shards.sort_by_key(|(written, ..)| std::cmp::Reverse(*written));
        let (mut bytes, mut files) = (0u64, 0);
        let mut kept = Vec::new();
        for (_, len, name, path) in shards {
            bytes = bytes.saturating_add(len);
            files += 1;
            if bytes > self.limits.max_bytes || files > self.limits.max_files {
                remove(&path);
            } else {
                kept.push((name, path));
            }
        }
        Ok(kept)
    }

    fn keep(&self, name: &Name, bytes: &[u8], now: SystemTime) {
        let kept = self.publish(name, bytes).and_then(|()| {
            let most = 2 * self.limits.max_bytes / RECORD;
            // Those of deleted shards stay until they would be too many.
            if self.hints().count as u64 > most { self.reload(now) } else { self.trim(now).map(drop) }
        });
        if let Err(error) = kept {
            tracing::debug!(%error, "cannot keep a shard");
        }
    }

    /// Writes a file aside and renames it. A torn one is found out by its hash.
    fn publish(&self, name: &Name, bytes: &[u8]) -> io::Result<()> {
        let nth = self.written.fetch_add(1, Ordering::Relaxed);
        let aside = self.dir.join(format!("{}-{}-{nth}{UNFINISHED}", name.hash, std::process::id()));
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).and_then(|mut file| {
            file.write_all(bytes)?;
            fs::rename(&aside, self.dir.join(name.to_string()))
        });
        written.inspect_err(|_| remove(&aside))
    }
}

/// The name of a shard's file: the hash of its content, and what it is the answer to.
struct Name {
    hash: Hash,
    question: Option<Hash>,
}

impl Name {
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

/// The shard in a file; `None`: it is damaged or expired.
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

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => tracing::debug!(%error, "cannot delete a shard"),
        _ => {}
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Which question is answered with which chunks.
#[derive(Default)]
struct Hints {
    questions: Vec<Hash>,
    /// Per key: truncated chunk hashes, keyed, and the question.
    tables: Vec<([u8; 32], HashMap<u64, u32>)>,
    count: usize,
}

impl Hints {
    fn find(&self, chunk: &Hash) -> Option<Hash> {
        self.tables.iter().find_map(|(key, table)| {
            let hash = if *key == [0; 32] { *chunk } else { keyed_chunk_hash(key, chunk) };
            table.get(&hash.truncated()).map(|question| self.questions[*question as usize])
        })
    }

    /// The chunks of a shard, under the question it answers or, for an own one, one of its chunks that the CAS answers
    /// for: if it may be, one of the same xorb, since an answer need not hold the others.
    fn add(&mut self, shard: &Shard, footer: &Footer, question: Option<Hash>) {
        if question.is_none() && footer.hmac_key != [0; 32] {
            return;
        }
        let nth = match self.tables.iter().position(|(key, _)| *key == footer.hmac_key) {
            Some(nth) => nth,
            None if self.tables.len() == MAX_KEYS => return,
            None => {
                self.tables.push((footer.hmac_key, HashMap::new()));
                self.tables.len() - 1
            }
        };
        let firsts: HashMap<Hash, u32> = shard
            .files
            .iter()
            .filter_map(|file| file.segments.first().map(|segment| (segment.xorb, segment.start)))
            .collect();
        let eligible = |xorb: &XorbInfo| {
            let first = firsts.get(&xorb.hash).and_then(|index| xorb.chunks.get(*index as usize));
            first.or_else(|| xorb.chunks.iter().find(|chunk| is_eligible(&chunk.hash))).map(|chunk| chunk.hash)
        };
        let any = question.or_else(|| shard.xorbs.iter().find_map(eligible));
        for xorb in &shard.xorbs {
            let Some(question) = question.or_else(|| eligible(xorb)).or(any) else { continue };
            if self.questions.last() != Some(&question) {
                self.questions.push(question);
            }
            let question = (self.questions.len() - 1) as u32;
            let table = &mut self.tables[nth].1;
            xorb.chunks.iter().for_each(|chunk| {
                table.entry(chunk.hash.truncated()).or_insert(question);
            });
            self.count += xorb.chunks.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::{FileInfo, Segment, ShardChunk};

    fn chunk(n: u32) -> Hash {
        let mut hash = chunk_hash(&n.to_le_bytes());
        // Never eligible by itself.
        hash.0[24] |= 1;
        hash
    }

    fn xorb(chunks: impl Iterator<Item = Hash>) -> XorbInfo {
        let chunks = chunks.map(|hash| ShardChunk { hash, raw_start: 0, raw_len: 9000, flags: 0 });
        let chunks: Vec<_> = chunks.collect();
        XorbInfo { hash: chunk_hash(&chunks[0].hash.0), raw_len: 0, stored_len: 0, chunks }
    }

    /// Two xorbs; a file starts at the third chunk of the first.
    fn own(n: u32) -> Shard {
        let xorbs = vec![xorb((n..n + 10).map(chunk)), xorb((n + 10..n + 20).map(chunk))];
        let segments = vec![Segment { xorb: xorbs[0].hash, raw_len: 9000, start: 2, end: 3 }];
        let files = vec![FileInfo { hash: chunk(n + 999), segments, verification: vec![chunk(n + 998)], sha256: None }];
        Shard { files, xorbs, footer: None }
    }

    fn files(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn open(dir: &Path) -> LocalShards {
        LocalShards::open(dir.to_owned(), LocalLimits::default()).unwrap()
    }

    #[test]
    fn own_shards_are_found_again_with_their_terms_by_every_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        first.keep_own(&own(0));
        for shards in [first, open(dir.path())] {
            assert_eq!(shards.hint(&chunk(5)), Some(chunk(2)));
            assert_eq!(shards.hint(&chunk(15)), Some(chunk(2)));
            assert_eq!(shards.hint(&chunk(25)), None);
        }
        let kept = Shard::parse(&fs::read(&files(dir.path())[0]).unwrap()).unwrap();
        assert_eq!(kept.files, own(0).files);
        let footer = kept.footer.unwrap();
        assert_eq!(footer.expires - footer.created, 21 * 86_400);
    }

    #[test]
    fn answers_are_hints_to_their_question_also_under_a_key_until_they_expire() {
        let dir = tempfile::tempdir().unwrap();
        let shards = open(dir.path());
        let now = seconds(SystemTime::now());
        let answer = |key: [u8; 32], n: u32, expires| {
            let keyed = (n..n + 10).map(|n| if key == [0; 32] { chunk(n) } else { keyed_chunk_hash(&key, &chunk(n)) });
            let shard = Shard { xorbs: vec![xorb(keyed)], ..Shard::default() };
            shard.to_stored(&Footer { hmac_key: key, created: 0, expires }, true)
        };
        for (key, n, expires) in
            [([0; 32], 0, now + 1000), ([7; 32], 100, now + 1000), ([0; 32], 200, now), ([0; 32], 300, 0)]
        {
            shards.keep_answer(&chunk(n), &answer(key, n, expires), expires);
        }
        let again = open(dir.path());
        assert_eq!((again.hint(&chunk(3)), again.hint(&chunk(103))), (Some(chunk(0)), Some(chunk(100))));
        assert_eq!((again.hint(&chunk(203)), again.hint(&chunk(303))), (None, None));
        // One that expires while it lies there.
        again.0.reload(SystemTime::now() + Duration::from_secs(2000)).unwrap();
        assert_eq!(again.hint(&chunk(3)), None);
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn damaged_files_are_deleted_and_foreign_ones_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path()).keep_own(&own(0));
        let shard = files(dir.path()).remove(0);
        let bytes = fs::read(&shard).unwrap();
        fs::write(dir.path().join("notes.txt"), b"mine").unwrap();
        fs::write(dir.path().join(format!("{}{SUFFIX}", chunk_hash(b"no shard"))), b"no shard").unwrap();
        for damaged in [
            &bytes[..bytes.len() - 1],
            &[&bytes[..], &[0]].concat(),
            &[&bytes[..99], &[1], &bytes[100..]].concat(),
            b"",
        ] {
            fs::write(&shard, damaged).unwrap();
            assert_eq!(open(dir.path()).hint(&chunk(5)), None);
            assert_eq!(files(dir.path()), [dir.path().join("notes.txt")]);
        }
        fs::write(&shard, &bytes).unwrap();
        assert!(open(dir.path()).hint(&chunk(5)).is_some());
    }

    #[test]
    fn folder_keeps_its_bounds_and_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let one = own(0).to_stored(&Footer { hmac_key: [0; 32], created: 0, expires: 0 }, false).len() as u64;
        for limits in
            [LocalLimits { max_bytes: 3 * one, max_files: 99 }, LocalLimits { max_bytes: u64::MAX / 2, max_files: 3 }]
        {
            let shards = LocalShards::open(dir.path().to_owned(), limits).unwrap();
            for n in 0..6u64 {
                shards.keep_own(&own(100 * n as u32));
                // Distinct ages, whatever the file system's clock is.
                let (_, path) = shards.0.trim(SystemTime::now()).unwrap().remove(0);
                let age = Duration::from_secs(60 * (100 - n));
                File::options().write(true).open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
            }
            assert_eq!(files(dir.path()).len(), 3);
            let again = LocalShards::open(dir.path().to_owned(), limits).unwrap();
            assert!(again.hint(&chunk(205)).is_none() && again.hint(&chunk(505)).is_some());
        }
    }

    #[test]
    fn only_abandoned_unfinished_files_are_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let shards = open(dir.path());
        fs::write(dir.path().join("x.tmp"), b"half").unwrap();
        shards.0.trim(SystemTime::now()).unwrap();
        assert_eq!(files(dir.path()).len(), 1);
        shards.0.trim(SystemTime::now() + Duration::from_secs(4000)).unwrap();
        assert!(files(dir.path()).is_empty());
    }
}
