//! The files of a cache folder (layout in [`super`]).
//!
//! Names are resolved from an open folder and never through a symlink; what bears no name of ours, or is no regular
//! file, is left as it is. Calls block. Whoever writes holds a lock on a file of its own ([`Owner`]), so that what a
//! dead process left can be told from what a living one is at.

use super::entry::Kind;
use crate::Hash;
use rustix::fd::OwnedFd;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, Stat, flock, fstat, fstatvfs, mkdirat,
    openat, renameat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{DirBuilder, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Mode of folders.
const FOLDER: Mode = Mode::RWXU;
/// Mode of files.
const FILE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How folders are opened.
const AS_FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
/// How files are opened. `NONBLOCK`: a foreign pipe must not hold us up.
const AS_FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::RDONLY).union(OFlags::NONBLOCK);

/// Folder of lock files and of entries being written.
const WRITING: &str = "writing";
/// Held, for moments, while writers are claimed and swept and while the index is opened or replaced.
const GATE: &str = "lock";
/// Held by the process that compares files and index.
const SCAN: &str = "scan";
/// The index; SQLite puts its companions beside it.
const INDEX: &str = "index.sqlite";
/// What SQLite puts behind the name of a database.
const COMPANIONS: [&str; 3] = ["", "-wal", "-shm"];
/// Folders that the entries of one kind are spread over, by the first byte of their hash.
pub(super) const SHARDS: u16 = 256;

/// Which entry: its name on disk, and its row in the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) hash: Hash,
    /// First chunk; 0 of a file.
    pub(super) first: u32,
    /// Chunks; 0 of a file, whose number is not known before the last one has come.
    pub(super) count: u32,
}

impl Key {
    /// Of a whole file.
    pub(super) fn file(hash: &Hash) -> Self {
        Self { kind: Kind::File, hash: *hash, first: 0, count: 0 }
    }

    /// Of `count` chunks of a xorb.
    pub(super) fn xorb(hash: &Hash, first: u32, count: u32) -> Self {
        Self { kind: Kind::Xorb, hash: *hash, first, count }
    }

    fn name(&self) -> String {
        match self.kind {
            Kind::Xorb => format!("{}-{}-{}", self.hash, self.first, self.count),
            Kind::File => self.hash.to_string(),
        }
    }

    fn parse(kind: Kind, name: &str) -> Option<Self> {
        let key = match kind {
            Kind::File => Self::file(&name.parse().ok()?),
            Kind::Xorb => {
                let (hash, range) = name.split_once('-')?;
                let (first, count) = range.split_once('-')?;
                Self::xorb(&hash.parse().ok()?, first.parse().ok()?, count.parse().ok()?)
            }
        };
        let sound = kind == Kind::File || (key.count > 0 && key.first.checked_add(key.count).is_some());
        (sound && key.name() == name).then_some(key)
    }

    fn shard(&self) -> u8 {
        self.hash.0[0]
    }
}

/// A file as the file system tells it apart from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    fn of(stat: &Stat) -> Self {
        #[allow(clippy::unnecessary_cast, reason = "the types of these fields differ from system to system")]
        Self(stat.st_dev as u64, stat.st_ino as u64)
    }
}

/// An entry found on disk.
pub(super) struct Found {
    pub(super) key: Key,
    /// Bytes.
    pub(super) len: u64,
    /// When it was written, Unix milliseconds.
    pub(super) written: i64,
}

/// An open cache folder.
pub(super) struct Folder {
    path: PathBuf,
    root: OwnedFd,
    /// The errno that every write fails with, for tests; 0: none.
    #[cfg(test)]
    pub(super) fault: std::sync::atomic::AtomicI32,
}

impl Folder {
    /// Makes it (0700) where it is missing. One that others can get at is closed to them; one that
    /// is another user's is refused.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = openat(CWD, path, flags, Mode::empty())?;
        let stat = fstat(&root)?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the cache folder belongs to another user"));
        }
        if Mode::from_raw_mode(stat.st_mode) != FOLDER {
            rustix::fs::fchmod(&root, FOLDER)?;
        }
        make_folder(&root, WRITING)?;
        Ok(Self {
            path: path.to_owned(),
            root,
            #[cfg(test)]
            fault: Default::default(),
        })
    }

    /// Waits for the gate; it is open again when the file is dropped.
    pub(super) fn gate(&self) -> io::Result<File> {
        let file = self.lock_file(GATE)?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// The right to compare files and index; `None` while another process does.
    pub(super) fn try_scan(&self) -> io::Result<Option<File>> {
        let file = self.lock_file(SCAN)?;
        Ok(try_lock(&file)?.then_some(file))
    }

    fn lock_file(&self, name: &str) -> io::Result<File> {
        Ok(openat(&self.root, name, AS_FILE | OFlags::CREATE, FILE)?.into())
    }

    /// Where SQLite is to open the index. Makes the file, so that it has our mode.
    pub(super) fn index_path(&self) -> io::Result<PathBuf> {
        openat(&self.root, INDEX, AS_FILE | OFlags::CREATE, FILE)?;
        Ok(self.path.join(INDEX))
    }

    /// The file that the index's path leads to now, if any.
    pub(super) fn index_id(&self) -> Option<FileId> {
        let stat = statat(CWD, self.path.join(INDEX), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileId::of(&stat))
    }

    /// Removes the index. Call it with the gate held.
    pub(super) fn remove_index(&self) -> io::Result<()> {
        COMPANIONS.iter().try_for_each(|suffix| remove(&self.root, &format!("{INDEX}{suffix}")))
    }

    fn shard(&self, key: &Key) -> io::Result<OwnedFd> {
        self.shard_folder(key.kind, key.shard())
    }

    fn shard_folder(&self, kind: Kind, shard: u8) -> io::Result<OwnedFd> {
        let kind = openat(&self.root, folder_of(kind), AS_FOLDER, Mode::empty())?;
        Ok(openat(&kind, format!("{shard:02x}"), AS_FOLDER, Mode::empty())?)
    }

    fn make_shard(&self, key: &Key) -> io::Result<OwnedFd> {
        match self.shard(key) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => return outcome,
        }
        make_folder(&self.root, folder_of(key.kind))?;
        let kind = openat(&self.root, folder_of(key.kind), AS_FOLDER, Mode::empty())?;
        make_folder(&kind, &format!("{:02x}", key.shard()))?;
        self.shard(key)
    }

    /// Opens an entry; its length and its identity besides.
    pub(super) fn open_entry(&self, key: &Key) -> io::Result<(File, u64, FileId)> {
        let file = openat(self.shard(key)?, key.name(), AS_FILE, Mode::empty())?;
        let stat = fstat(&file)?;
        let len = regular_len(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok((file.into(), len, FileId::of(&stat)))
    }

    /// Removes an entry; fine where it is gone, or isn't a file of ours.
    pub(super) fn remove_entry(&self, key: &Key) -> io::Result<()> {
        match self.shard(key) {
            Ok(shard) => remove(&shard, &key.name()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The file that an entry's name leads to now, if any.
    pub(super) fn entry_id(&self, key: &Key) -> Option<FileId> {
        let stat = statat(self.shard(key).ok()?, key.name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(FileId::of(&stat))
    }

    /// Gives a written file its name. A file that has the name goes (the index knows of none);
    /// anything else stays, and that is an error.
    pub(super) fn publish(&self, temp: &mut Temp, key: &Key) -> io::Result<()> {
        self.check_fault()?;
        let (shard, name) = (self.make_shard(key)?, key.name());
        let rename = || renameat_with(&temp.folder, &temp.name, &shard, &name, RenameFlags::NOREPLACE);
        let outcome = match rename() {
            Err(Errno::EXIST) => {
                remove(&shard, &name)?;
                rename()
            }
            // Not every file system has it.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                remove(&shard, &name)?;
                match statat(&shard, &name, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => renameat(&temp.folder, &temp.name, &shard, &name),
                    _ => Err(Errno::EXIST),
                }
            }
            outcome => outcome,
        };
        outcome?;
        temp.kept = true;
        Ok(())
    }

    /// The entries of one shard. What else lies there is not ours.
    pub(super) fn list(&self, kind: Kind, shard: u8) -> io::Result<Vec<Found>> {
        let folder = match self.shard_folder(kind, shard) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            outcome => outcome?,
        };
        let keys = names(&folder)?.into_iter().filter_map(|name| Key::parse(kind, &name));
        let found = keys.filter(|key| key.shard() == shard).filter_map(|key| {
            let stat = statat(&folder, key.name(), AtFlags::SYMLINK_NOFOLLOW).ok()?;
            #[allow(clippy::unnecessary_cast, reason = "the types of these fields differ from system to system")]
            let written = (stat.st_mtime as i64).saturating_mul(1000);
            Some(Found { key, len: regular_len(&stat)?, written })
        });
        Ok(found.collect())
    }

    /// Free bytes of the file system, and all of them.
    pub(super) fn space(&self) -> io::Result<(u64, u64)> {
        let stat = fstatvfs(&self.root)?;
        Ok((stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_blocks.saturating_mul(stat.f_frsize)))
    }

    /// Removes what writers that are gone have left in `writing`, and gives the names of the living.
    ///
    /// Call it with the gate held, so that none is met between making its lock file and locking it.
    pub(super) fn sweep(&self) -> io::Result<BTreeSet<String>> {
        let folder = openat(&self.root, WRITING, AS_FOLDER, Mode::empty())?;
        let names = names(&folder)?;
        let mut living = BTreeSet::new();
        for owner in names.iter().filter_map(|name| owner_of(name)) {
            if !living.contains(owner) && is_alive(&folder, owner) {
                living.insert(owner.to_owned());
            }
        }
        for name in &names {
            if owner_of(name).is_some_and(|owner| !living.contains(owner)) {
                remove(&folder, name)?;
            }
        }
        Ok(living)
    }

    /// Whether the writer of that name lives.
    pub(super) fn is_alive(&self, owner: &str) -> bool {
        let folder = openat(&self.root, WRITING, AS_FOLDER, Mode::empty());
        owner_of(&lock_name(owner)).is_some() && folder.is_ok_and(|folder| is_alive(&folder, owner))
    }

    fn check_fault(&self) -> io::Result<()> {
        #[cfg(test)]
        match self.fault.load(Ordering::Relaxed) {
            0 => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
        Ok(())
    }
}

/// A writer: as long as this lives, what it has in `writing` and has reserved in the index is left alone by all others.
pub(super) struct Owner {
    name: String,
    folder: OwnedFd,
    next: AtomicU64,
    _lock: File,
}

impl Owner {
    /// A new one. Call it with the gate held.
    pub(super) fn claim(folder: &Folder) -> io::Result<Self> {
        let name = uuid::Uuid::now_v7().simple().to_string();
        let folder = openat(&folder.root, WRITING, AS_FOLDER, Mode::empty())?;
        let lock: File = openat(&folder, lock_name(&name), AS_FILE | OFlags::CREATE | OFlags::EXCL, FILE)?.into();
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { name, folder, next: AtomicU64::new(0), _lock: lock })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// A new file to write to.
    pub(super) fn create(&self, at: &Folder) -> io::Result<Temp> {
        at.check_fault()?;
        let name = format!("{}.{}", self.name, self.next.fetch_add(1, Ordering::Relaxed));
        let folder = self.folder.try_clone()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = openat(&folder, &name, flags, FILE)?.into();
        Ok(Temp { file, folder, name, kept: false })
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // Best effort: what stays is swept when a cache is opened here.
        let _ = remove(&self.folder, &lock_name(&self.name));
    }
}

/// A file being written; dropped unpublished it vanishes.
pub(super) struct Temp {
    pub(super) file: File,
    folder: OwnedFd,
    name: String,
    kept: bool,
}

impl Temp {
    /// Appends all pieces.
    pub(super) fn append(&mut self, at: &Folder, pieces: &[&[u8]]) -> io::Result<()> {
        at.check_fault()?;
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the head of an entry whose chunks are there.
    pub(super) fn write_head(&self, at: &Folder, head: &[u8]) -> io::Result<()> {
        at.check_fault()?;
        self.file.write_all_at(head, 0)
    }

    /// Bytes written.
    pub(super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.kept {
            // Best effort: what stays is swept once its owner is gone.
            let _ = remove(&self.folder, &self.name);
        }
    }
}

fn folder_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Xorb => "chunks",
        Kind::File => "files",
    }
}

fn lock_name(owner: &str) -> String {
    format!("{owner}.lock")
}

/// Whose file in `writing` this is; `None`: not one of ours.
fn owner_of(name: &str) -> Option<&str> {
    let (owner, rest) = name.split_once('.')?;
    let ours = owner.len() == 32 && owner.bytes().all(|byte| byte.is_ascii_hexdigit());
    let ours = ours && (rest == "lock" || (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit())));
    ours.then_some(owner)
}

/// Whether somebody holds the writer's lock. Where that can't be told, they do.
fn is_alive(writing: &OwnedFd, owner: &str) -> bool {
    match openat(writing, lock_name(owner), AS_FILE, Mode::empty()) {
        Ok(lock) => !try_lock(&lock.into()).unwrap_or(false),
        Err(errno) => errno != Errno::NOENT,
    }
}

fn try_lock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn make_folder(above: &OwnedFd, name: &str) -> io::Result<()> {
    match mkdirat(above, name, FOLDER) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Removes a regular file, if that is what has the name.
fn remove(folder: &OwnedFd, name: &str) -> io::Result<()> {
    let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        outcome => outcome?,
    };
    if regular_len(&stat).is_none() {
        return Ok(());
    }
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn regular_len(stat: &Stat) -> Option<u64> {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    is_file.then(|| u64::try_from(stat.st_size).ok()).flatten()
}

/// All names that are UTF-8; ours are ASCII.
fn names(folder: &OwnedFd) -> io::Result<Vec<String>> {
    let text = |name: &CStr| name.to_str().ok().map(str::to_owned);
    let entries = Dir::read_from(folder)?;
    entries.filter_map(|entry| entry.map(|entry| text(entry.file_name())).transpose()).map(|name| Ok(name?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn write(folder: &Folder, owner: &Owner, key: &Key, bytes: &[u8]) -> io::Result<()> {
        let mut temp = owner.create(folder)?;
        temp.append(folder, &[bytes])?;
        folder.publish(&mut temp, key)
    }

    #[test]
    fn names_parse_back_and_others_are_foreign() {
        let hash = Hash([0xab; 32]);
        for key in [Key::file(&hash), Key::xorb(&hash, 0, 1), Key::xorb(&hash, 77, 8192)] {
            assert_eq!(Key::parse(key.kind, &key.name()), Some(key));
        }
        let good = Key::xorb(&hash, 1, 2).name();
        for bad in [
            "",
            "x",
            &good[1..],
            &good.to_uppercase(),
            &good.replace("-1-", "-01-"),
            &good.replace("-1-", "-+1-"),
            &good.replace("-2", "-0"),
            &good.replace("-1-2", "-1"),
            &good.replace("-1-2", "-4294967295-1"),
            &format!("{good}-3"),
        ] {
            assert_eq!(Key::parse(Kind::Xorb, bad), None, "{bad}");
        }
        assert_eq!(Key::parse(Kind::File, &good), None);
    }

    #[test]
    fn folders_are_0700_and_files_0600_whatever_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/cache");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let folder = Folder::open(&path).unwrap();
        let owner = Owner::claim(&folder).unwrap();
        let (_gate, _scan) = (folder.gate().unwrap(), folder.try_scan().unwrap());
        let index = folder.index_path().unwrap();
        write(&folder, &owner, &Key::file(&Hash([1; 32])), b"x").unwrap();
        for (name, wanted) in [("", 0o700), (WRITING, 0o700), ("files", 0o700), ("files/01", 0o700)] {
            assert_eq!(mode(&path.join(name)), wanted, "{name}");
        }
        let entry = path.join("files/01").join(Hash([1; 32]).to_string());
        for path in [index, entry, path.join(GATE), path.join(SCAN), path.join(WRITING).join(lock_name(owner.name()))] {
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }

    #[test]
    fn an_entry_is_published_found_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let owner = Owner::claim(&folder).unwrap();
        let key = Key::xorb(&Hash([9; 32]), 4, 2);
        assert_eq!(folder.open_entry(&key).unwrap_err().kind(), io::ErrorKind::NotFound);
        for content in [&b"one"[..], b"three"] {
            write(&folder, &owner, &key, content).unwrap();
            let (_, len, id) = folder.open_entry(&key).unwrap();
            assert_eq!((len, Some(id)), (content.len() as u64, folder.entry_id(&key)));
            let found = folder.list(Kind::Xorb, 9).unwrap();
            assert_eq!(found.iter().map(|found| (found.key, found.len)).collect::<Vec<_>>(), [(key, len)]);
        }
        folder.remove_entry(&key).unwrap();
        folder.remove_entry(&key).unwrap();
        assert!(folder.list(Kind::Xorb, 9).unwrap().is_empty() && folder.list(Kind::File, 9).unwrap().is_empty());
    }

    #[test]
    fn symlinks_and_foreign_files_are_neither_followed_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::write(&outside, b"precious").unwrap();
        let path = dir.path().join("cache");
        let folder = Folder::open(&path).unwrap();
        let owner = Owner::claim(&folder).unwrap();
        let key = Key::file(&Hash([1; 32]));
        let name = path.join("files/01").join(key.name());
        std::fs::create_dir_all(name.parent().unwrap()).unwrap();
        let dead = path.join(WRITING).join(format!("{}.lock", "0".repeat(32)));
        for link in [&name, &dead] {
            symlink(&outside, link).unwrap();
        }
        for foreign in ["files/01/README", "writing/notes.txt", "writing/0.0"] {
            std::fs::write(path.join(foreign), b"").unwrap();
        }
        assert!(folder.open_entry(&key).is_err());
        assert!(folder.list(Kind::File, 1).unwrap().is_empty());
        assert!(write(&folder, &owner, &key, b"x").is_err());
        folder.remove_entry(&key).unwrap();
        folder.sweep().unwrap();
        for left in
            [&name, &dead, &path.join("files/01/README"), &path.join("writing/notes.txt"), &path.join("writing/0.0")]
        {
            assert!(left.symlink_metadata().is_ok(), "{}", left.display());
        }
        assert_eq!(std::fs::read(&outside).unwrap(), b"precious");

        // A shard that is a link leads out of the folder.
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), path.join("files/02")).unwrap();
        assert!(write(&folder, &owner, &Key::file(&Hash([2; 32])), b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path().join("elsewhere")).unwrap().count(), 0);
    }

    #[test]
    fn only_what_the_dead_left_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let (living, dead) = (Owner::claim(&folder).unwrap(), Owner::claim(&folder).unwrap());
        let (kept, mut left) = (living.create(&folder).unwrap(), dead.create(&folder).unwrap());
        let dead_name = dead.name().to_owned();
        let path_of = |temp: &Temp| dir.path().join(WRITING).join(&temp.name);
        let (kept_path, left_path) = (path_of(&kept), path_of(&left));
        left.kept = true;
        drop(left);
        assert!(folder.is_alive(&dead_name));
        drop(dead);
        assert!(folder.is_alive(living.name()) && !folder.is_alive(&dead_name));
        assert_eq!(folder.sweep().unwrap(), BTreeSet::from([living.name().to_owned()]));
        assert!(kept_path.exists() && !left_path.exists());
        drop(kept);
        assert!(!kept_path.exists());
    }
}
