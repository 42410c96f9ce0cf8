//! Reads a downloaded `.enc/` tree as local files, and creates one to upload (format spec, sections 3, 4b and
//! 5).

use super::{open_container, seal};
use crate::crypto::geometry::Padding;
use crate::crypto::{Format, Keys, NameCipher, SystemRandom, Verdict, names};
use crate::store::{Error, Hidden, PlainPath};
use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

/// Deepest tree that is walked. A path of 1024 bytes, the longest object key, can't be deeper.
const MAX_DEPTH: usize = 512;

/// A file of an encrypted tree.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its plaintext path.
    pub path: PlainPath,
    /// The local file that holds its container.
    pub stored: PathBuf,
    /// Format of its name.
    pub format: Format,
    /// Stored bytes.
    pub stored_len: u64,
}

/// Result of a walk.
#[derive(Debug, Default)]
pub struct Found {
    /// Files of this key, by plaintext path.
    pub objects: Vec<Object>,
    /// Counts of entries that are not shown.
    pub hidden: Hidden,
    /// Number of stored names that authenticated in any way. 0 in a tree that isn't empty means the wrong
    /// key.
    pub authentic: u64,
    /// Stored entries seen at the root of the tree.
    pub root_entries: u64,
}

impl Found {
    /// Checks the key (format spec, section 5): a key that opens nothing in a tree that isn't empty is the
    /// wrong one.
    pub fn check_key(&self) -> Result<(), Error> {
        if self.authentic == 0 && self.root_entries > 0 {
            return Err(Error::WrongKey { entries: self.root_entries });
        }
        Ok(())
    }
}

/// Returns the `.enc` folder that `folder` holds or is.
pub fn root_of(folder: &Path) -> Option<PathBuf> {
    if folder.file_name().is_some_and(|name| name == names::ROOT) {
        return Some(folder.to_owned());
    }
    let inner = folder.join(names::ROOT);
    inner.is_dir().then_some(inner)
}

/// Walks the tree below `root` (a local `.enc` folder). Links aren't followed, because a download has none.
pub fn walk(keys: &Keys, root: &Path) -> Result<Found, Error> {
    let mut found = Found::default();
    let mut files = BTreeMap::new();
    let mut opened = HashSet::new();
    found.root_entries = fs::read_dir(root)?.count() as u64;
    for format in [Format::V2, Format::V1] {
        let mut walk =
            Walk { names: keys.names(format), format, found: &mut found, files: &mut files, opened: &mut opened };
        walk.directory(root, &PlainPath::root(), 0)?;
    }
    // Of a file and a directory with one plaintext path the directory is shown, in any format.
    let mut directories = HashSet::new();
    for path in files.keys() {
        let mut at = path.clone();
        while let Some((parent, _)) = at.split() {
            directories.insert(parent.clone());
            at = parent;
        }
    }
    for (path, object) in files {
        if directories.contains(&path) {
            found.hidden.shadowed += 1;
        } else {
            found.objects.push(object);
        }
    }
    Ok(found)
}

struct Walk<'a> {
    names: &'a NameCipher,
    format: Format,
    found: &'a mut Found,
    files: &'a mut BTreeMap<PlainPath, Object>,
    /// Stored names at the root that format 2 opened. The pass of format 1 sees them as names of another key.
    opened: &'a mut HashSet<String>,
}

impl Walk<'_> {
    fn directory(&mut self, stored: &Path, plain: &PlainPath, depth: usize) -> Result<(), Error> {
        if depth > MAX_DEPTH {
            self.found.hidden.unreachable += 1;
            return Ok(());
        }
        for entry in fs::read_dir(stored)? {
            let entry = entry?;
            let text = entry.file_name().into_string();
            let verdict = match &text {
                Ok(text) => self.verdict(stored, plain, text)?,
                Err(_) => Verdict::Foreign,
            };
            let text = text.unwrap_or_default();
            let name = match verdict {
                Verdict::Own(name) => name,
                Verdict::Suspicious => {
                    self.found.authentic += 1;
                    self.found.hidden.suspicious += 1;
                    self.opened.insert(text);
                    continue;
                }
                Verdict::Extension => continue,
                Verdict::Foreign | Verdict::NeedsSidecar(_) => {
                    self.count_foreign(plain, &text);
                    continue;
                }
            };
            self.found.authentic += 1;
            self.own(&entry, &plain.join(&name)?, depth)?;
            if plain.is_root() {
                self.opened.insert(text);
            }
        }
        Ok(())
    }

    fn own(&mut self, entry: &fs::DirEntry, path: &PlainPath, depth: usize) -> Result<(), Error> {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            return self.directory(&entry.path(), path, depth + 1);
        }
        if !kind.is_file() {
            self.found.hidden.unreachable += 1;
        } else if self.files.contains_key(path) {
            // Format 2 was walked first and takes precedence.
            self.found.hidden.shadowed += 1;
        } else {
            let object = Object {
                path: path.clone(),
                stored: entry.path(),
                format: self.format,
                stored_len: entry.metadata()?.len(),
            };
            self.files.insert(path.clone(), object);
        }
        Ok(())
    }

    /// Counts a foreign entry. At the root both formats see each entry, and it is foreign only if neither
    /// opens it.
    fn count_foreign(&mut self, plain: &PlainPath, text: &str) {
        let counted_by_the_other = match self.format {
            Format::V2 => true,
            Format::V1 => self.opened.contains(text),
        };
        if !(plain.is_root() && counted_by_the_other) {
            self.found.hidden.foreign += 1;
        }
    }

    fn verdict(&self, stored: &Path, plain: &PlainPath, text: &str) -> Result<Verdict, Error> {
        match self.names.open(plain.as_str(), text) {
            Verdict::NeedsSidecar(sidecar) => match read_sidecar(&stored.join(sidecar))? {
                Some(bytes) => Ok(self.names.open_long(plain.as_str(), text, &bytes)),
                None => Ok(Verdict::Foreign),
            },
            other => Ok(other),
        }
    }
}

/// Reads a sidecar of the right size. A file of another size is not a sidecar.
pub fn read_sidecar(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() && metadata.len() == names::SIDECAR_LEN as u64 => Ok(Some(fs::read(path)?)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Runs `work` over all items on `threads` threads and returns the failures, in item order.
pub fn in_parallel<T: Sync, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Vec<(usize, E)> {
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, items.len().max(1)) {
            scope.spawn(|| {
                while let Some((index, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, items.get(i)?)))
                {
                    if let Err(error) = work(item) {
                        failures.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push((index, error));
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    failures.sort_by_key(|(index, _)| *index);
    failures
}

/// Writes `target` through a temporary file next to it, so that it is never partial. Fails if `target`
/// exists. Parents are created. The file gets the time `mtime`, if one is given and the file system can hold
/// it.
pub fn write_whole(
    target: &Path,
    mtime: Option<SystemTime>,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<u64, Error>,
) -> Result<u64, Error> {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let temporary = tempfile::Builder::new()
        .prefix(".hfcrypt-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
        .tempfile_in(parent)?;
    let mut writer = BufWriter::with_capacity(256 * 1024, temporary.as_file());
    let len = write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    if let Some(mtime) = mtime {
        // The content matters more than a time that this file system can't hold.
        let _ = temporary.as_file().set_modified(mtime);
    }
    temporary.persist_noclobber(target).map_err(|e| e.error)?;
    Ok(len)
}

/// Decrypts one object of a walk to its place below `out`, and keeps the time of the container.
pub fn decrypt(keys: &Keys, object: &Object, out: &Path) -> Result<u64, Error> {
    let mut stored = File::open(&object.stored)?;
    let mtime = stored.metadata()?.modified().ok();
    write_whole(&out.join(object.path.as_str()), mtime, |writer| {
        open_container(keys, Some(object.format), &mut stored, object.stored_len, writer)
    })
}

/// Verifies every record of one object of a walk.
pub fn verify(keys: &Keys, object: &Object) -> Result<u64, Error> {
    open_container(keys, Some(object.format), &mut File::open(&object.stored)?, object.stored_len, &mut io::sink())
}

/// Encrypts one local file to its place below `out` (`out/.enc/…`), with the sidecars that it needs. `path`
/// is its plaintext path in the bucket. The container gets the time of the file.
pub fn encrypt(
    keys: &Keys,
    format: Format,
    padding: Padding,
    file: &Path,
    path: &PlainPath,
    out: &Path,
) -> Result<u64, Error> {
    let sealed = keys.names(format).seal_path(path.as_str())?;
    for sidecar in &sealed.sidecars {
        write_whole(&out.join(&sidecar.text), None, |writer| {
            writer.write_all(&sidecar.bytes)?;
            Ok(sidecar.bytes.len() as u64)
        })?;
    }
    let mut plain = File::open(file)?;
    let metadata = plain.metadata()?;
    let (len, mtime) = (metadata.len(), metadata.modified().ok());
    write_whole(&out.join(&sealed.key), mtime, |writer| {
        seal(keys, format, padding, len, &mut plain, writer, &mut SystemRandom).map(|sealed| sealed.stored_len)
    })
}
