//! Shows the entries under `.enc/` that belong to this key, in both formats (format spec, sections 4b "Two
//! formats in one tree" and 5).
//!
//! A stored directory is read with the format that opened it, the root with both. Every stored child is own,
//! an extension, foreign or suspicious. Only own ones are shown, the others are counted. Logs contain stored
//! paths only.

use super::commit::{Committer, Execute, Held, Layout, Place, Queue, Slot, Subtree, held, sidecar_domains};
use super::draft::{Bases, Medium};
use super::headers::Headers;
use super::hidden::HiddenSums;
use super::memory::{Memory, Seen};
use super::metadata::{Described, MetadataObject};
use super::names::{BOTH, Class, Names, StoredDirectory};
use super::object::Opener;
use super::put::{Sealing, Session};
use super::remote::{Child, Remote, content_id};
use super::twin::{self, Twins};
use super::{
    Content, Draft, DraftState, Entry, Error, Hidden, Kind, Len, Listing, Object, Op, Outcome, PlainPath, PutSession,
    Sealer, Side, SlotIo, Stored, Version, View,
};
use crate::crypto::geometry::Padding;
use crate::crypto::metadata::DIRECTORY as METADATA_DIRECTORY;
use crate::crypto::names::{LONG_PREFIX, ROOT, SIDECAR_LEN, SIDECAR_PREFIX};
use crate::crypto::{Format, Keys, SystemRandom};
use crate::hub::{BucketId, FileEntry};
use crate::xet::Hash;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio_util::io::StreamReader;

/// Bytes read per step when content is sealed again in the other format.
const RESEAL_STEP: usize = 4 << 20;
/// Names decrypted before other tasks get their turn: about a millisecond.
const CHILDREN_AT_ONCE: usize = 1024;
/// Directories whose last listing is known to be in the memory. When there are more, all are forgotten.
const MAX_NOTED: usize = 16_384;
/// Contents whose version in the newer format is known.
const MAX_RESEALED: usize = 4096;

/// Parameters of a view with a key.
pub(super) struct Setup {
    pub(super) remote: Arc<Remote>,
    pub(super) keys: Arc<Keys>,
    pub(super) prefix: PlainPath,
    pub(super) format: Format,
    pub(super) padding: Padding,
    pub(super) headers: Arc<Headers>,
    pub(super) memory: Arc<Memory>,
    pub(super) read_only: bool,
    /// True if a file and a directory may have one name in a listing.
    pub(super) exact_names: bool,
    pub(super) identity: [u8; 32],
}

/// The encrypted side of a bucket under one key.
pub(super) struct Encrypted {
    setup: Setup,
    names: Names,
    opener: Arc<Opener>,
    hidden: HiddenSums,
    twins: Twins,
    /// True if format 1 was seen in the tree. If a tree never had it, a server can't bring back old data in
    /// it.
    legacy_seen: AtomicBool,
    /// True if the memory has recorded that the tree has entries.
    tree_noted: AtomicBool,
    /// Digests of the own names of directories that the memory has. Never held over an await.
    noted: Mutex<HashMap<String, u64>>,
    /// Format-1 content that was sealed again in format 2, so that a repeated commit finds its own result.
    /// Never held over an await.
    resealed: Mutex<HashMap<Hash, Stored>>,
    commits: Queue,
    execute: Execute,
}

/// Children of a directory, decrypted.
#[derive(Default)]
pub(super) struct Decrypted {
    pub(super) names: BTreeMap<String, Node>,
    hidden: Hidden,
    /// True if some of them are in format 1.
    legacy: bool,
}

/// Objects that have one plaintext name.
#[derive(Default)]
pub(super) struct Node {
    directory: bool,
    primary: Option<FileEntry>,
    legacy: Option<FileEntry>,
}

impl Node {
    fn file(&self) -> Option<(Format, &FileEntry)> {
        let primary = self.primary.as_ref().map(|file| (Format::V2, file));
        primary.or(self.legacy.as_ref().map(|file| (Format::V1, file)))
    }

    /// Returns the number of objects that the shown one hides.
    fn shadowed(&self) -> u64 {
        u64::from(self.primary.is_some() && self.legacy.is_some())
    }

    /// Returns true if it is a file and a directory.
    fn is_twin(&self) -> bool {
        self.directory && self.file().is_some()
    }
}

impl Decrypted {
    fn all_names(&self) -> BTreeSet<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    /// Returns the names that a file and a directory have.
    fn twins(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, node)| node.is_twin()).map(|(name, _)| name.as_str())
    }
}

/// Entries that are reported together, because a server may have any number of them.
#[derive(Default)]
pub(super) struct Unlisted {
    count: u64,
    first: Option<String>,
}

impl Unlisted {
    pub(super) fn add(&mut self, stored: String) {
        self.count += 1;
        self.first.get_or_insert(stored);
    }

    pub(super) fn report(&self, directory: &str, what: &'static str) {
        if let Some(first) = &self.first {
            tracing::warn!(directory, count = self.count, ?first, "{what}");
        }
    }
}

/// Result of checking the key against the root of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyVerdict {
    NewTree,
    RightKey,
    WrongKey { entries: u64 },
}

impl Encrypted {
    pub(super) fn new(setup: Setup, legacy_seen: bool) -> Arc<Self> {
        let sealed = Some((setup.keys.clone(), setup.headers.clone()));
        let opener = Arc::new(Opener { remote: setup.remote.clone(), memory: setup.memory.clone(), sealed });
        Arc::new_cyclic(|this: &Weak<Self>| Self {
            names: Names::new(setup.keys.clone(), setup.prefix.clone()),
            opener,
            hidden: HiddenSums::default(),
            twins: Twins::default(),
            legacy_seen: AtomicBool::new(legacy_seen),
            tree_noted: AtomicBool::new(false),
            noted: Mutex::default(),
            resealed: Mutex::default(),
            commits: Queue::default(),
            execute: executing(this.clone(), |view| view),
            setup,
        })
    }

    /// Returns true if a file and a directory may have one name in a listing.
    pub(super) fn exact_names(&self) -> bool {
        self.setup.exact_names
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.setup.memory
    }

    /// Returns the key that identifies a path in this machine's memory. `None`: the path can't be stored.
    pub(super) fn memory_key(&self, path: &PlainPath) -> Option<String> {
        self.names.sealed(Format::V2, path).ok().map(|sealed| sealed.key)
    }

    /// Lists the stored directories of a directory and decrypts their children.
    pub(super) async fn decrypt_directory(&self, directory: &PlainPath) -> Result<Decrypted, Error> {
        let stored = self.names.directories(directory)?;
        let listings = stored.iter().map(|stored| self.setup.remote.children(&stored.key));
        let listings = futures::future::try_join_all(listings).await?;
        let parent = self.names.full(directory);
        let mut all = Decrypted::default();
        for (stored, children) in stored.iter().zip(listings) {
            self.decrypt_children(stored, parent.as_str(), children, &mut all).await?;
        }
        all.names.values().for_each(|node| all.hidden.shadowed += node.shadowed());
        self.note_formats(&all).await;
        self.hidden.note(&stored[0].key, all.hidden);
        Ok(all)
    }

    async fn decrypt_children(
        &self,
        stored: &StoredDirectory,
        parent: &str,
        children: Vec<Child>,
        all: &mut Decrypted,
    ) -> Result<(), Error> {
        let sidecars = self.sidecars_beside(stored.formats, &children).await?;
        let mut authentic = Vec::new();
        let mut suspicious = Unlisted::default();
        for (index, Child { name, file }) in children.into_iter().enumerate() {
            if index % CHILDREN_AT_ONCE == CHILDREN_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let beside = |text: &str| sidecars.get(text).map(|(_, bytes)| &bytes[..]);
            let class = self.names.classify(stored.formats, parent, &name, beside);
            if matches!(class, Class::Own(..) | Class::Suspicious)
                && let Some(token) = name.strip_prefix(LONG_PREFIX)
            {
                authentic.extend(sidecars.get(&format!("{SIDECAR_PREFIX}{token}")).cloned());
            }
            match class {
                Class::Extension => {}
                Class::Foreign => all.hidden.foreign += 1,
                Class::Suspicious => suspicious.add(name),
                Class::Own(format, plain) => {
                    all.legacy |= format == Format::V1;
                    let node = all.names.entry(plain).or_default();
                    match (file, format) {
                        (None, _) => node.directory = true,
                        (Some(file), Format::V2) => node.primary = Some(file),
                        (Some(file), Format::V1) => node.legacy = Some(file),
                    }
                }
            }
        }
        all.hidden.suspicious += suspicious.count;
        suspicious.report(&stored.key, "stored names authenticate but break a rule: not shown");
        self.setup.headers.learn(authentic).await;
        Ok(())
    }

    /// Returns the content of the sidecars that children need, by stored name.
    async fn sidecars_beside(
        &self,
        formats: &[Format],
        children: &[Child],
    ) -> Result<HashMap<String, (Hash, Bytes)>, Error> {
        let wanted: HashSet<String> =
            children.iter().filter_map(|child| self.names.sidecar_of(formats, &child.name)).collect();
        let there = children.iter().filter(|child| wanted.contains(&child.name));
        let there = there.filter_map(|child| Some((child.name.clone(), sidecar_hash(child.file.as_ref()?)?)));
        self.fetch_sidecars(there.collect()).await
    }

    async fn fetch_sidecars(&self, there: Vec<(String, Hash)>) -> Result<HashMap<String, (Hash, Bytes)>, Error> {
        if there.is_empty() {
            return Ok(HashMap::new());
        }
        let hashes: HashSet<Hash> = there.iter().map(|(_, hash)| *hash).collect();
        let contents = self.setup.headers.sidecars(hashes.into_iter().collect()).await?;
        let content = |(name, hash): (String, Hash)| Some((name, (hash, contents.get(&hash)?.clone())));
        Ok(there.into_iter().filter_map(content).collect())
    }

    /// Logs the first entry of format 1 in a tree that had none.
    async fn note_formats(&self, decrypted: &Decrypted) {
        if !decrypted.legacy || self.legacy_seen.swap(true, Ordering::Relaxed) {
            return;
        }
        tracing::warn!(bucket = %self.setup.remote.bucket, "entries of format 1 have appeared in a tree that had none");
        if let Err(error) = self.memory().note_seen(Seen { legacy: true }).await {
            tracing::warn!(%error, "cannot remember that the tree has format 1");
        }
    }

    /// Remembers the files of a listing as own files, unless they are remembered already.
    async fn note_own(&self, directory: &PlainPath, decrypted: &Decrypted) {
        let files: Vec<&String> =
            decrypted.names.iter().filter(|(_, node)| node.file().is_some()).map(|(name, _)| name).collect();
        let mut hasher = DefaultHasher::new();
        files.hash(&mut hasher);
        let digest = hasher.finish();
        let Some(directory_key) = self.memory_key(directory) else { return };
        {
            let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
            if noted.get(&directory_key) == Some(&digest) {
                return;
            }
            if noted.len() >= MAX_NOTED {
                noted.clear();
            }
            noted.insert(directory_key.clone(), digest);
        }
        let keys =
            files.into_iter().filter_map(|name| self.memory_key(&directory.join(name).ok()?)).collect::<Vec<_>>();
        if let Err(error) = self.memory().note_own(&keys, &[]).await {
            tracing::warn!(%error, directory = %directory_key, "cannot remember which files are our own");
            self.noted.lock().unwrap_or_else(PoisonError::into_inner).remove(&directory_key);
        }
    }

    /// Returns the entries of a directory. Sizes that are in the local cache are known.
    pub(super) async fn list_own(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let decrypted = self.decrypt_directory(directory).await?;
        self.note_own(directory, &decrypted).await;
        let mut entries: Vec<Entry> = Vec::with_capacity(decrypted.names.len());
        let mut versions = Vec::new();
        let mut shown: Vec<(&str, &Node, bool)> = Vec::with_capacity(decrypted.names.len());
        shown.extend(decrypted.names.iter().map(|(name, node)| (name.as_str(), node, node.directory)));
        let exact = self.setup.exact_names;
        let aliases = match exact {
            true => Vec::new(),
            false => twin::aliases(&decrypted.all_names(), decrypted.twins()),
        };
        shown.extend(decrypted.twins().filter(|_| exact).map(|name| (name, &decrypted.names[name], false)));
        for (alias, name) in &aliases {
            self.twins.note(directory, alias, name);
            shown.push((alias, &decrypted.names[*name], false));
        }
        shown.sort_unstable_by_key(|(name, ..)| *name);
        for (name, node, is_directory) in shown {
            let kind = match node.file() {
                Some((format, file)) if !is_directory => {
                    let kind = file_kind(format, file);
                    if let Kind::File { version: Some(version), .. } = &kind {
                        versions.push((entries.len(), *version));
                    }
                    kind
                }
                _ => Kind::Directory { read_only: false },
            };
            entries.push(Entry { name: name.to_owned(), kind });
        }
        self.mark_copies(versions.iter().map(|(_, version)| version)).await;
        let known =
            self.setup.headers.cached_lens(&versions.iter().map(|(_, version)| *version).collect::<Vec<_>>()).await;
        for ((index, _), known) in versions.into_iter().zip(known) {
            if let Kind::File { len, .. } = &mut entries[index].kind {
                *len = known;
            }
        }
        Ok(Listing { entries, hidden: decrypted.hidden })
    }

    /// Marks copies. Two large files of one hash are copies that another machine created. An edit of either
    /// takes a new file id (format spec, section 4).
    async fn mark_copies(&self, versions: impl Iterator<Item = &Version>) {
        let mut seen = HashSet::new();
        let large = versions.filter(|version| version.stored_len > super::draft::NEW_ID_LIMIT);
        let large = large.filter_map(|version| version.id.xet().ok());
        let copies = large.filter(|hash| !seen.insert(*hash));
        let copies: Vec<Hash> = copies.filter(|hash| !self.memory().is_shared(hash)).collect();
        if let Err(error) = self.memory().mark_shared(super::memory::Sharing::Copied, copies).await {
            tracing::warn!(%error, "cannot mark copies");
        }
    }

    /// Returns the path that a path means. It differs only for an alias (see [`twin`]).
    pub(super) async fn target(&self, path: &PlainPath) -> Result<PlainPath, Error> {
        let may_be_alias = !self.setup.exact_names && twin::may_be_alias(path);
        let Some((parent, _)) = path.split().filter(|_| may_be_alias) else { return Ok(path.clone()) };
        let found = self.targets(&parent, vec![path.clone()]).await?;
        Ok(found.into_iter().next().map_or_else(|| path.clone(), |(_, target)| target))
    }

    /// Returns paths of one directory, each with its real path. Lists the directory once.
    async fn targets(&self, parent: &PlainPath, paths: Vec<PlainPath>) -> Result<Vec<(PlainPath, PlainPath)>, Error> {
        let decrypted = self.decrypt_directory(parent).await?;
        let names = decrypted.all_names();
        let target = |path: PlainPath| (path.clone(), self.twins.target(&path, &names, decrypted.twins()));
        Ok(paths.into_iter().map(target).collect())
    }

    /// Returns those of some paths in `parent` that are directories.
    async fn directories_among(&self, parent: PlainPath, paths: Vec<PlainPath>) -> Result<Vec<PlainPath>, Error> {
        let mut found = Vec::new();
        if paths.len() > twin::FEW {
            // The stored names of the paths are known, so no other name has to be decrypted.
            let mut directories: HashSet<String> = HashSet::new();
            for stored in self.names.directories(&parent)? {
                let children = self.setup.remote.children(&stored.key).await?;
                let key = |child: Child| match stored.key.as_str() {
                    "" => child.name,
                    above => format!("{above}/{}", child.name),
                };
                directories.extend(children.into_iter().filter(|child| child.file.is_none()).map(key));
            }
            for path in paths {
                if keys_of(&self.names.place(&path)?).any(|key| directories.contains(&key)) {
                    found.push(path);
                }
            }
            return Ok(found);
        }
        for path in paths {
            for key in keys_of(&self.names.place(&path)?) {
                if self.is_stored_directory(&key).await? {
                    found.push(path);
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Returns the entry at a path on this side, without reading its size.
    pub(super) async fn find(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        if path.is_root() {
            return Ok(Some(Kind::Directory { read_only: false }));
        }
        let target = self.target(path).await?;
        let place = self.names.place(&target)?;
        let keys: Vec<String> = std::iter::once(&place.primary).chain(&place.legacy).cloned().collect();
        let directories = futures::future::try_join_all(keys.iter().map(|key| self.is_stored_directory(key)));
        let (files, directories) = tokio::try_join!(self.setup.remote.files(&keys), directories)?;
        if directories.contains(&true) && target == *path {
            return Ok(Some(Kind::Directory { read_only: false }));
        }
        let primary = files.get(&place.primary).map(|file| file_kind(Format::V2, file));
        let legacy = || Some(file_kind(Format::V1, files.get(place.legacy.as_ref()?)?));
        Ok(primary.or_else(legacy))
    }

    /// Returns the files at these paths on this side, with their metadata objects.
    pub(super) async fn own_files(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        let place = |path: &PlainPath| match self.names.place(path) {
            _ if path.is_root() => Ok(None),
            Ok(place) => Ok(Some(place)),
            Err(Error::NameTooLong) => Ok(None),
            Err(error) => Err(error),
        };
        let places = paths.iter().map(place).collect::<Result<Vec<_>, Error>>()?;
        let all = |place: &Place| keys_of(place).chain([place.metadata.clone()]).collect::<Vec<_>>();
        let keys: Vec<String> = places.iter().flatten().flat_map(all).collect();
        let files = self.setup.remote.files(&keys).await?;
        let kind = |place: &Place| {
            let primary = files.get(&place.primary).map(|file| file_kind(Format::V2, file));
            primary.or_else(|| Some(file_kind(Format::V1, files.get(place.legacy.as_ref()?)?)))
        };
        let described = |place: &Option<Place>| {
            let metadata = place.as_ref().and_then(|place| MetadataObject::of(files.get(&place.metadata)?));
            Described { file: place.as_ref().and_then(kind), metadata }
        };
        let mut kinds: Vec<Described> = places.iter().map(described).collect();
        let mut unread: Vec<(&mut Len, Version)> = Vec::new();
        for kind in kinds.iter_mut().filter_map(|described| described.file.as_mut()) {
            if let Kind::File { version: Some(version), len, .. } = kind {
                unread.push((len, *version));
            }
        }
        let versions: Vec<Version> = unread.iter().map(|(_, version)| *version).collect();
        for ((len, _), read) in unread.into_iter().zip(self.setup.headers.lens(&versions).await) {
            *len = read?;
        }
        Ok(kinds)
    }

    /// Returns true if an entry other than orphaned sidecars lies below a key. Those don't count as content
    /// of a directory.
    async fn is_stored_directory(&self, key: &str) -> Result<bool, Error> {
        let mut any = false;
        let entry = |child: &Child| {
            any |= !child.name.starts_with(SIDECAR_PREFIX);
            any
        };
        self.setup.remote.children_until(key, entry).await?;
        Ok(any)
    }

    /// Returns true if one of these paths is an own file.
    pub(super) async fn any_file(&self, paths: &[PlainPath]) -> Result<bool, Error> {
        let places = paths.iter().filter_map(|path| self.names.place(path).ok());
        let keys: Vec<String> = places.flat_map(|place| std::iter::once(place.primary).chain(place.legacy)).collect();
        Ok(!self.setup.remote.files(&keys).await?.is_empty())
    }

    /// Reads the size of a file.
    pub(super) async fn with_len(&self, mut kind: Kind) -> Result<Kind, Error> {
        if let Kind::File { version: Some(version), len, .. } = &mut kind {
            let mut lens = self.setup.headers.lens(std::slice::from_ref(version)).await;
            *len = lens.pop().unwrap_or(Ok(Len::Unread))?;
        }
        Ok(kind)
    }

    /// Checks the key against the root of the tree (format spec, section 5 "Wrong key is an error").
    pub(super) async fn check_key(&self) -> Result<KeyVerdict, Error> {
        let (mut entries, mut authentic) = (0, false);
        let (mut long, mut sidecars) = (Vec::new(), Vec::new());
        let look = |child: &Child| {
            if child.name == METADATA_DIRECTORY {
                return false;
            }
            if child.name.starts_with(SIDECAR_PREFIX) {
                sidecars.extend(child.file.as_ref().and_then(sidecar_hash).map(|hash| (child.name.clone(), hash)));
                return false;
            }
            entries += 1;
            match self.names.classify(BOTH, "", &child.name, |_| None) {
                Class::Own(..) | Class::Suspicious => authentic = true,
                Class::Foreign | Class::Extension => {
                    long.extend(self.names.sidecar_of(BOTH, &child.name).map(|beside| (child.name.clone(), beside)))
                }
            }
            authentic
        };
        self.setup.remote.children_until(ROOT, look).await?;
        if authentic {
            return Ok(KeyVerdict::RightKey);
        }
        let wanted: HashSet<&String> = long.iter().map(|(_, beside)| beside).collect();
        sidecars.retain(|(name, _)| wanted.contains(name));
        let contents = self.fetch_sidecars(sidecars).await?;
        let opens = |(stored, _): &(String, String)| {
            let beside = |text: &str| contents.get(text).map(|(_, bytes)| &bytes[..]);
            matches!(self.names.classify(BOTH, "", stored, beside), Class::Own(..) | Class::Suspicious)
        };
        Ok(match entries {
            _ if long.iter().any(opens) => KeyVerdict::RightKey,
            0 => KeyVerdict::NewTree,
            _ => KeyVerdict::WrongKey { entries },
        })
    }

    /// Returns true if the tree holds an entry in format 1. Then its root does, since a path has one format
    /// in all its components.
    pub(super) async fn has_legacy(&self) -> Result<bool, Error> {
        let mut found = false;
        let look = |child: &Child| {
            found |= matches!(self.names.classify(BOTH, "", &child.name, |_| None), Class::Own(Format::V1, _));
            found
        };
        self.setup.remote.children_until(ROOT, look).await?;
        Ok(found)
    }

    /// Returns the settings for sealing new content.
    fn sealing(&self, format: Format) -> Sealing {
        let Setup { keys, padding, headers, .. } = &self.setup;
        Sealing { keys: keys.clone(), format, padding: *padding, headers: headers.clone() }
    }

    /// Queues operations that `execute` carries out. `layout` is this view, or the merged one around it.
    pub(super) async fn enqueue(&self, layout: &dyn Layout, execute: &Execute, operations: &[Op]) -> Vec<Outcome> {
        if self.setup.read_only {
            return operations.iter().map(|_| Outcome::Failed(Error::ReadOnly)).collect();
        }
        self.commits.commit(operations, |op| sidecar_domains(layout, op), execute).await
    }

    /// Carries out operations with the rules of `layout`. No other commit touches their paths meanwhile.
    async fn commit_as(&self, layout: &dyn Layout, operations: &[Op]) -> Vec<Outcome> {
        let mut targets = twin::Targets::default();
        for (parent, paths) in twin::asked_by_all(operations).into_iter().filter(|_| !self.setup.exact_names) {
            let found = self.targets(&parent, paths).await;
            targets.add(parent, found);
        }
        let committer = Committer { remote: &self.setup.remote, memory: &self.setup.memory, layout };
        let outcomes = committer.commit(&targets.resolve(operations)).await;
        // The recorded names of a directory may have been removed again.
        self.noted.lock().unwrap_or_else(PoisonError::into_inner).clear();
        targets.outcomes(operations, outcomes)
    }

    /// Adds every object below a stored directory to `all`, decrypted.
    async fn stored_below(
        &self,
        stored: &StoredDirectory,
        directory: &PlainPath,
        all: &mut Subtree,
    ) -> Result<(), Error> {
        let objects = self.setup.remote.subtree(&stored.key).await?;
        let sidecars = self.fetch_sidecars(sidecars_needed(&objects)).await?;
        let mut opened: HashMap<&str, Option<PlainPath>> = HashMap::new();
        for (key, file) in &objects {
            // A sidecar is moved with the object that it names. An orphaned one isn't an entry.
            if stored.formats.contains(&Format::V2) && named_by_sidecar(key).is_some() {
                continue;
            }
            let (mut path, mut at) = (Some(directory.clone()), "");
            for prefix in prefixes(key) {
                let open = || self.open_below(stored.formats, path.as_ref()?, at, prefix, &sidecars);
                let known = opened.get(prefix).cloned();
                path = known.unwrap_or_else(open);
                opened.entry(prefix).or_insert_with(|| path.clone());
                at = prefix;
            }
            match path {
                Some(path) => {
                    let slot = usize::from(stored.formats != [Format::V2]);
                    all.files.entry(path).or_insert([None::<Held>; 2])[slot] = Some(held(file));
                }
                None => all.unreadable += 1,
            }
        }
        Ok(())
    }

    /// Returns the path of `key`, a child of the stored directory `directory`, whose path is `parent`. Keys
    /// are relative.
    fn open_below(
        &self,
        formats: &[Format],
        parent: &PlainPath,
        directory: &str,
        key: &str,
        sidecars: &HashMap<String, (Hash, Bytes)>,
    ) -> Option<PlainPath> {
        let name = key.rsplit_once('/').map_or(key, |(_, name)| name);
        let beside = |text: &str| {
            let key = if directory.is_empty() { text.to_owned() } else { format!("{directory}/{text}") };
            sidecars.get(&key).map(|(_, bytes)| &bytes[..])
        };
        match self.names.classify(formats, self.names.full(parent).as_str(), name, beside) {
            Class::Own(_, name) => parent.join(&name).ok(),
            // An entry of any kind that would stay in the old directory counts.
            Class::Extension | Class::Foreign | Class::Suspicious => None,
        }
    }
}

/// Returns the function that carries out the commits of `view`, whose encrypted side is `own`.
pub(super) fn executing<V: Layout + 'static>(view: Weak<V>, own: fn(&V) -> &Encrypted) -> Execute {
    Arc::new(move |operations| {
        let view = view.upgrade();
        async move {
            match view {
                Some(view) => own(&view).commit_as(&*view, &operations).await,
                // Each caller borrows the view, so this can't happen.
                None => Vec::new(),
            }
        }
        .boxed()
    })
}

/// Returns the keys of a place in both formats.
fn keys_of(place: &Place) -> impl Iterator<Item = String> + use<> {
    std::iter::once(place.primary.clone()).chain(place.legacy.clone())
}

/// Returns the hash of an object that may be a sidecar. Other objects needn't be fetched.
fn sidecar_hash(file: &FileEntry) -> Option<Hash> {
    if file.size == SIDECAR_LEN as u64 { file.hash } else { None }
}

/// Returns a file as it is listed. An object without a Xet hash is not a container.
fn file_kind(format: Format, file: &FileEntry) -> Kind {
    let version = content_id(file).map(|id| Version { id, stored_len: file.size, side: Side::Encrypted(format) });
    let len = if version.is_some() { Len::Unread } else { Len::Damaged };
    Kind::File { version, len, mtime: file.mtime.or(file.uploaded_at), read_only: false }
}

/// Returns the key and all its prefixes: `a`, `a/b`, `a/b/c` for `a/b/c`.
fn prefixes(key: &str) -> impl Iterator<Item = &str> {
    key.match_indices('/').map(|(at, _)| &key[..at]).chain(std::iter::once(key))
}

/// Returns the key of the object that a sidecar key names. `None`: it is not a sidecar key.
fn named_by_sidecar(key: &str) -> Option<String> {
    let (directory, name) = key.rsplit_once('/').map_or(("", key), |(directory, name)| (directory, name));
    let token = name.strip_prefix(SIDECAR_PREFIX)?;
    Some(if directory.is_empty() {
        format!("{LONG_PREFIX}{token}")
    } else {
        format!("{directory}/{LONG_PREFIX}{token}")
    })
}

/// Returns the sidecars that an object below needs, by relative key.
fn sidecars_needed(objects: &[(String, FileEntry)]) -> Vec<(String, Hash)> {
    let keys: HashSet<&str> = objects.iter().flat_map(|(key, _)| prefixes(key)).collect();
    let needed = |(key, file): &(String, FileEntry)| {
        let named = named_by_sidecar(key)?;
        keys.contains(named.as_str()).then_some((key.clone(), sidecar_hash(file)?))
    };
    objects.iter().filter_map(needed).collect()
}

#[async_trait]
impl Layout for Encrypted {
    fn place(&self, path: &PlainPath) -> Result<Place, Error> {
        if path.is_root() {
            return Err(Error::InvalidName);
        }
        self.names.place(path)
    }

    fn side(&self, slot: Slot) -> Side {
        Side::Encrypted(match slot {
            Slot::Primary => Format::V2,
            Slot::Legacy => Format::V1,
        })
    }

    async fn occupied(&self, paths: &[PlainPath]) -> Result<Vec<bool>, Error> {
        Ok(vec![false; paths.len()])
    }

    async fn check_directory_move(&self, _from: &PlainPath, _to: &PlainPath) -> Result<(), Error> {
        Ok(())
    }

    async fn files_below(&self, directory: &PlainPath) -> Result<Subtree, Error> {
        let mut all = Subtree::default();
        for stored in self.names.directories(directory)? {
            self.stored_below(&stored, directory, &mut all).await?;
        }
        Ok(all)
    }

    async fn check_replaceable(&self, versions: &[Version]) -> Vec<Result<(), Error>> {
        let lens = self.setup.headers.lens(versions).await;
        let check = async |(version, len): (&Version, Result<Len, Error>)| match len {
            // The cause says more than "damaged".
            Ok(Len::Damaged) => self.setup.headers.header(version).await.map(|_| ()),
            Ok(Len::Known(_) | Len::Unread) => Ok(()),
            Err(error) => Err(error),
        };
        futures::future::join_all(versions.iter().zip(lens).map(check)).await
    }

    async fn in_newer_format(&self, stored: &Stored) -> Result<Stored, Error> {
        let hash = stored.version.id.xet()?;
        let known = self.resealed.lock().unwrap_or_else(PoisonError::into_inner).get(&hash).copied();
        if let Some(known) = known {
            return Ok(known);
        }
        let object = self.opener.open(&stored.version).await?;
        let len = object.len();
        let pieces = futures::stream::try_unfold((object, 0), |(object, offset)| async move {
            let piece = object.read(offset, RESEAL_STEP).await.map_err(std::io::Error::other)?;
            let next = offset + piece.len() as u64;
            Ok::<_, std::io::Error>((!piece.is_empty()).then_some((piece, (object, next))))
        });
        let session = Box::new(Session::new(&self.setup.remote, Some(self.sealing(Format::V2))));
        let reader = Box::new(StreamReader::new(pieces.boxed()));
        let newer = session.add(Content::Stream { reader, len: Some(len) }).await?;
        session.finish().await?;
        let mut resealed = self.resealed.lock().unwrap_or_else(PoisonError::into_inner);
        if resealed.len() >= MAX_RESEALED {
            resealed.clear();
        }
        resealed.insert(hash, newer);
        Ok(newer)
    }

    async fn keep_sidecars(&self, sidecars: Vec<(Hash, Bytes)>) {
        self.setup.headers.learn(sidecars).await;
    }

    async fn settled(&self, added: Vec<String>, removed: Vec<String>) {
        if let Err(error) = self.memory().note_own(&added, &removed).await {
            tracing::warn!(%error, "cannot remember which files are our own");
        }
        if added.is_empty() || self.tree_noted.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.memory().note_seen(Seen { legacy: false }).await {
            tracing::warn!(%error, "cannot remember the tree");
        }
    }
}

/// Sealer of journals, with the journal subkey.
struct JournalSealer(Arc<Keys>);

impl Sealer for JournalSealer {
    fn seal(&self, journal: &[u8; 32], sequence: u64, payload: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.journal().seal(journal, sequence, payload, &mut SystemRandom)?)
    }

    fn open(&self, journal: &[u8; 32], sequence: u64, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(std::mem::take(&mut *self.0.journal().open(journal, sequence, sealed)?))
    }
}

#[async_trait]
impl View for Encrypted {
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        self.list_own(directory).await
    }

    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error> {
        let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
        match self.find(path).await? {
            Some(kind) => Ok(Some(Entry { name, kind: self.with_len(kind).await? })),
            None => Ok(None),
        }
    }

    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        Ok(self.own_files(paths).await?.into_iter().map(|described| described.file).collect())
    }

    async fn described(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        self.own_files(paths).await
    }

    async fn metadata(&self, object: &MetadataObject) -> Result<Option<Bytes>, Error> {
        object.read(&self.setup.remote.contents, Some(&self.setup.keys)).await
    }

    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        let sealed: Vec<Version> = versions.iter().filter(|version| version.side != Side::Plain).copied().collect();
        let mut lens = self.setup.headers.lens(&sealed).await.into_iter();
        let len = |version: &Version| match version.side {
            Side::Plain => Ok(Len::Known(version.stored_len)),
            Side::Encrypted(_) => lens.next().unwrap_or(Ok(Len::Unread)),
        };
        versions.iter().map(len).collect()
    }

    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.opener.open(version).await
    }

    async fn adopt(&self, version: &Version, from: &BucketId) -> Result<(), Error> {
        let hash = version.id.xet()?;
        self.memory().mark_shared(super::memory::Sharing::Copied, vec![hash]).await?;
        self.setup.remote.adopt(hash, from);
        Ok(())
    }

    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        if self.setup.read_only {
            return Err(Error::ReadOnly);
        }
        let sealing = self.sealing(self.setup.format);
        Ok(Box::new(Session::new(&self.setup.remote, Some(sealing))))
    }

    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        self.enqueue(self, &self.execute, operations).await
    }

    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        let places = folders.iter().map(|path| Ok((path, self.names.place(path)?)));
        let places = places.collect::<Result<Vec<_>, Error>>()?;
        let all: Vec<String> = places.iter().flat_map(|(_, place)| keys_of(place)).collect();
        let found = self.setup.remote.files(&all).await?;
        let is_file = |place: &Place| keys_of(place).any(|key| found.contains_key(&key));
        let folders = places.iter().filter(|(_, place)| is_file(place));
        let mut twins: Vec<PlainPath> = folders.map(|(path, _)| (*path).clone()).collect();
        let looks = twin::by_parent(files).into_iter().map(|(parent, paths)| self.directories_among(parent, paths));
        let mut looks = futures::stream::iter(looks).buffer_unordered(twin::LOOKS);
        while let Some(found) = looks.try_next().await? {
            twins.extend(found);
        }
        Ok(twins)
    }

    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        self.twins.show(directory, name, taken)
    }

    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        self.names.check(self.setup.format, parent, name)
    }

    fn check_format_1(&self, path: &PlainPath) -> Result<(), Error> {
        self.names.check_path(Format::V1, path)
    }

    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        // A file in format 2 is never written in format 1 again.
        let format = match state.base {
            Some((Version { side: Side::Encrypted(Format::V2), .. }, _)) => Format::V2,
            _ => self.setup.format,
        };
        let medium = Medium::Sealed { keys: self.setup.keys.clone(), format, padding: self.setup.padding };
        Ok(Draft::new(medium, self.opener.clone(), slots, state))
    }

    fn slot_len(&self) -> usize {
        crate::crypto::geometry::RECORD_LEN
    }

    fn sealer(&self) -> Arc<dyn Sealer> {
        Arc::new(JournalSealer(self.setup.keys.clone()))
    }

    async fn revision(&self) -> Result<Option<String>, Error> {
        self.setup.remote.revision().await
    }

    fn read_only(&self) -> bool {
        self.setup.read_only
    }

    fn identity(&self) -> [u8; 32] {
        self.setup.identity
    }

    fn key_id(&self) -> Option<String> {
        Some(self.setup.keys.id().to_string())
    }

    fn log_name(&self, path: &PlainPath) -> String {
        self.names.log_name(path)
    }

    fn hidden(&self) -> Hidden {
        self.hidden.sum()
    }
}
