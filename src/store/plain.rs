//! Shows a bucket, or a subfolder of it, as it is stored. Also used for the plaintext side of a merged view.
//!
//! The encrypted tree is a folder with random-looking names here. Nothing below it may be written without its
//! key: a rename there would leave names that can't be read any more (format spec, section 5 "Mixed
//! buckets").

use super::commit::{Committer, Execute, Held, Layout, Place, Queue, Slot, Subtree, held};
use super::draft::{Bases, Medium};
use super::hidden::HiddenSums;
use super::memory::Memory;
use super::metadata::{self, Described, MetadataObject};
use super::names::is_in_encrypted_tree;
use super::object::Opener;
use super::put::Session;
use super::remote::{self, Child, Remote};
use super::twin::{self, Twins};
use super::{
    Draft, DraftState, Entry, Error, Hidden, Kind, Len, Listing, Object, Op, Outcome, PlainPath, PutSession, Sealer,
    Side, SlotIo, Stored, Version, View,
};
use crate::hub::{BucketId, FileEntry, check_key};
use crate::xet::Hash;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Longest name that file systems accept, in bytes.
const MAX_NAME: usize = 255;

/// The plaintext objects of a bucket below a prefix.
pub(super) struct PlainTree {
    pub(super) remote: Arc<Remote>,
    pub(super) prefix: PlainPath,
    /// True on the plaintext side of a view with a key: writing is not allowed, and the encrypted tree isn't
    /// shown.
    pub(super) beside_encrypted: bool,
    /// True if a file and a directory may have one name in a listing.
    pub(super) exact_names: bool,
    pub(super) twins: Twins,
}

impl PlainTree {
    /// A tree that may be written.
    pub(super) fn new(remote: Arc<Remote>, prefix: PlainPath, exact_names: bool) -> Self {
        Self { remote, prefix, beside_encrypted: false, exact_names, twins: Twins::default() }
    }

    /// Returns the object key of a path.
    pub(super) fn key(&self, path: &PlainPath) -> String {
        path.rebase(&PlainPath::root(), &self.prefix).unwrap_or_default().as_str().to_owned()
    }

    fn read_only(&self, key: &str) -> bool {
        self.beside_encrypted || is_in_encrypted_tree(key)
    }

    /// Returns the entries of a directory.
    pub(super) async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let (listing, aliases) = self.list_twins(&self.key(directory)).await?;
        aliases.iter().for_each(|(alias, name)| self.twins.note(directory, alias, name));
        Ok(listing)
    }

    /// Returns the entries of the directory with this full key.
    pub(super) async fn list_key(&self, key: &str) -> Result<Listing, Error> {
        Ok(self.list_twins(key).await?.0)
    }

    /// Returns the entries of a directory, and the aliases among them with their real names.
    async fn list_twins(&self, key: &str) -> Result<(Listing, Vec<(String, String)>), Error> {
        let mut twins: BTreeMap<String, Kind> = BTreeMap::new();
        let mut listing = Listing::default();
        let mut entries: BTreeMap<String, Kind> = BTreeMap::new();
        for Child { name, file } in self.remote.children(key).await? {
            let child = if key.is_empty() { name.clone() } else { format!("{key}/{name}") };
            if self.beside_encrypted && is_in_encrypted_tree(&child) {
                continue;
            }
            if name.len() > MAX_NAME || PlainPath::root().join(&name).is_err() {
                listing.hidden.unreachable += 1;
                continue;
            }
            let kind = self.kind(&child, file.as_ref());
            match entries.get_mut(&name) {
                None => drop(entries.insert(name, kind)),
                // The directory keeps the name, because otherwise everything below it would be unreachable.
                Some(shown) if matches!(kind, Kind::Directory { .. }) => {
                    twins.insert(name, std::mem::replace(shown, kind));
                }
                Some(_) => drop(twins.insert(name, kind)),
            }
        }
        if self.exact_names {
            let all = entries.into_iter().chain(twins).map(|(name, kind)| Entry { name, kind });
            listing.entries = all.collect();
            listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
            return Ok((listing, Vec::new()));
        }
        let names: BTreeSet<&str> = entries.keys().map(String::as_str).collect();
        let aliases = twin::aliases(&names, twins.keys().map(String::as_str));
        let aliases: Vec<_> = aliases.into_iter().map(|(alias, name)| (alias, name.to_owned())).collect();
        listing.hidden.shadowed += (twins.len() - aliases.len()) as u64;
        for (alias, name) in &aliases {
            entries.extend(twins.remove(name).map(|kind| (alias.clone(), kind)));
        }
        listing.entries = entries.into_iter().map(|(name, kind)| Entry { name, kind }).collect();
        Ok((listing, aliases))
    }

    /// Returns the path that a path means. It differs only for an alias (see [`twin`]).
    async fn target(&self, path: &PlainPath) -> Result<PlainPath, Error> {
        let may_be_alias = !self.exact_names && twin::may_be_alias(path);
        let Some((parent, _)) = path.split().filter(|_| may_be_alias) else { return Ok(path.clone()) };
        let found = self.targets(&parent, vec![path.clone()]).await?;
        Ok(found.into_iter().next().map_or_else(|| path.clone(), |(_, target)| target))
    }

    /// Returns paths of one directory, each with its real path. Lists the directory once.
    async fn targets(&self, parent: &PlainPath, paths: Vec<PlainPath>) -> Result<Vec<(PlainPath, PlainPath)>, Error> {
        let children = self.remote.children(&self.key(parent)).await?;
        let mut kinds: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
        for child in &children {
            kinds.entry(&child.name).or_default()[usize::from(child.file.is_some())] = true;
        }
        let names = kinds.keys().copied().collect();
        let twins = || kinds.iter().filter(|(_, kinds)| **kinds == [true, true]).map(|(name, _)| *name);
        let target = |path: PlainPath| (path.clone(), self.twins.target(&path, &names, twins()));
        Ok(paths.into_iter().map(target).collect())
    }

    /// Returns those of `files` that are directories too, and those of `folders` that are files too.
    async fn doubled(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        let keys: Vec<String> = folders.iter().map(|path| self.key(path)).collect();
        let found = self.remote.files(&keys).await?;
        let folders = folders.iter().zip(&keys).filter(|(_, key)| found.contains_key(*key));
        let mut doubled: Vec<PlainPath> = folders.map(|(path, _)| path.clone()).collect();
        let looks = twin::by_parent(files).into_iter().map(|(parent, paths)| self.directories_among(parent, paths));
        let mut looks = futures::stream::iter(looks).buffer_unordered(twin::LOOKS);
        while let Some(found) = looks.try_next().await? {
            doubled.extend(found);
        }
        Ok(doubled)
    }

    /// Returns those of some paths in `parent` that are directories.
    async fn directories_among(&self, parent: PlainPath, paths: Vec<PlainPath>) -> Result<Vec<PlainPath>, Error> {
        let mut found = Vec::new();
        if paths.len() <= twin::FEW {
            for path in paths {
                found.extend(self.remote.has_children(&self.key(&path)).await?.then_some(path));
            }
            return Ok(found);
        }
        let children = self.remote.children(&self.key(&parent)).await?;
        let directories: BTreeSet<&str> =
            children.iter().filter(|child| child.file.is_none()).map(|child| child.name.as_str()).collect();
        let is_directory = |path: &PlainPath| path.split().is_some_and(|(_, name)| directories.contains(name));
        found.extend(paths.into_iter().filter(is_directory));
        Ok(found)
    }

    fn kind(&self, key: &str, file: Option<&FileEntry>) -> Kind {
        let read_only = self.read_only(key);
        let Some(file) = file else { return Kind::Directory { read_only } };
        let version = remote::content_id(file).map(|id| Version { id, stored_len: file.size, side: Side::Plain });
        Kind::File { version, len: Len::Known(file.size), mtime: file.mtime.or(file.uploaded_at), read_only }
    }

    /// Returns one entry.
    pub(super) async fn stat(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        let target = self.target(path).await?;
        let is_alias = target != *path;
        let path = &target;
        let key = self.key(path);
        if path.is_root() {
            return Ok(Some(Kind::Directory { read_only: self.read_only(&key) }));
        }
        if path.as_str().split('/').any(|name| name.len() > MAX_NAME) {
            return Ok(None);
        }
        let keys = [key.clone()];
        let (files, is_directory) = tokio::try_join!(self.remote.files(&keys), self.remote.has_children(&key))?;
        if is_directory && !is_alias {
            return Ok(Some(self.kind(&key, None)));
        }
        Ok(files.get(&key).map(|file| self.kind(&key, Some(file))))
    }

    /// Returns the files at these paths, with their metadata objects.
    pub(super) async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        let is_reachable = |path: &PlainPath| path.as_str().split('/').all(|name| name.len() <= MAX_NAME);
        let keys: Vec<Option<String>> =
            paths.iter().map(|path| (!path.is_root() && is_reachable(path)).then(|| self.key(path))).collect();
        // Plaintext beside an encrypted tree has none that could be trusted.
        let beside = |key: &String| (!self.beside_encrypted).then(|| metadata::plain_key(key));
        let asked = keys.iter().flatten().flat_map(|key| std::iter::once(key.clone()).chain(beside(key))).collect();
        let found = self.remote.files(&Vec::from_iter(BTreeSet::<String>::into_iter(asked))).await?;
        let described = |key: &Option<String>| {
            let file = key.as_ref().and_then(|key| Some(self.kind(key, Some(found.get(key)?))));
            let metadata = key.as_ref().and_then(beside).and_then(|key| MetadataObject::of(found.get(&key)?));
            Described { file, metadata }
        };
        Ok(keys.iter().map(described).collect())
    }

    /// Carries out operations. No other commit touches their paths meanwhile.
    async fn commit(&self, memory: &Memory, operations: &[Op]) -> Vec<Outcome> {
        let mut targets = twin::Targets::default();
        for (parent, paths) in twin::asked_by_all(operations).into_iter().filter(|_| !self.exact_names) {
            let found = self.targets(&parent, paths).await;
            targets.add(parent, found);
        }
        let committer = Committer { remote: &self.remote, memory, layout: self };
        let outcomes = committer.commit(&targets.resolve(operations)).await;
        targets.outcomes(operations, outcomes)
    }

    /// Returns every file below a directory.
    async fn subtree(&self, directory: &PlainPath) -> Result<Subtree, Error> {
        let key = self.key(directory);
        let mut subtree = Subtree::default();
        for (rest, file) in self.remote.subtree(&key).await? {
            match rest.split('/').try_fold(directory.clone(), |path, name| path.join(name)) {
                Ok(path) => drop(subtree.files.insert(path, [Some(held(&file)), None::<Held>])),
                Err(_) => subtree.unreadable += 1,
            }
        }
        Ok(subtree)
    }
}

/// A source without a key.
pub(super) struct Plain {
    tree: Arc<PlainTree>,
    opener: Arc<Opener>,
    hidden: HiddenSums,
    read_only: bool,
    identity: [u8; 32],
    commits: Queue,
    execute: Execute,
}

impl Plain {
    pub(super) fn new(tree: PlainTree, memory: Arc<Memory>, read_only: bool, identity: [u8; 32]) -> Self {
        let opener = Arc::new(Opener { remote: tree.remote.clone(), memory: memory.clone(), sealed: None });
        let tree = Arc::new(tree);
        let execute: Execute = {
            let tree = tree.clone();
            Arc::new(move |operations| {
                let (tree, memory) = (tree.clone(), memory.clone());
                async move { tree.commit(&memory, &operations).await }.boxed()
            })
        };
        let (hidden, commits) = (HiddenSums::default(), Queue::default());
        Self { tree, opener, hidden, read_only, identity, commits, execute }
    }
}

/// Sealer of a source without a key. It leaves payloads unchanged, because the bucket holds their data in
/// plaintext anyway.
struct Unsealed;

impl Sealer for Unsealed {
    fn seal(&self, _journal: &[u8; 32], _sequence: u64, payload: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(payload.to_vec())
    }

    fn open(&self, _journal: &[u8; 32], _sequence: u64, sealed: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(sealed.to_vec())
    }
}

#[async_trait]
impl Layout for PlainTree {
    fn place(&self, path: &PlainPath) -> Result<Place, Error> {
        let key = self.key(path);
        if self.read_only(&key) {
            return Err(Error::ReadOnly);
        }
        if path.is_root() {
            return Err(Error::InvalidName);
        }
        let metadata = metadata::plain_key(&key);
        Ok(Place { primary: key, sidecars: vec![], legacy: None, metadata })
    }

    fn side(&self, _slot: Slot) -> Side {
        Side::Plain
    }

    async fn occupied(&self, paths: &[PlainPath]) -> Result<Vec<bool>, Error> {
        Ok(vec![false; paths.len()])
    }

    async fn check_directory_move(&self, _from: &PlainPath, _to: &PlainPath) -> Result<(), Error> {
        Ok(())
    }

    async fn files_below(&self, directory: &PlainPath) -> Result<Subtree, Error> {
        self.subtree(directory).await
    }

    async fn check_replaceable(&self, versions: &[Version]) -> Vec<Result<(), Error>> {
        versions.iter().map(|_| Ok(())).collect()
    }

    async fn in_newer_format(&self, stored: &Stored) -> Result<Stored, Error> {
        Ok(*stored)
    }

    async fn keep_sidecars(&self, _sidecars: Vec<(Hash, Bytes)>) {}

    async fn settled(&self, _added: Vec<String>, _removed: Vec<String>) {}
}

#[async_trait]
impl View for Plain {
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let listing = self.tree.list(directory).await?;
        self.hidden.note(&self.tree.key(directory), listing.hidden);
        Ok(listing)
    }

    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error> {
        let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
        Ok(self.tree.stat(path).await?.map(|kind| Entry { name, kind }))
    }

    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        Ok(self.tree.files(paths).await?.into_iter().map(|described| described.file).collect())
    }

    async fn described(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        self.tree.files(paths).await
    }

    async fn metadata(&self, object: &MetadataObject) -> Result<Option<Bytes>, Error> {
        object.read(&self.tree.remote.contents, None).await
    }

    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        let len = |version: &Version| match version.side {
            Side::Plain => Ok(Len::Known(version.stored_len)),
            Side::Encrypted(_) => Err(Error::WrongSide),
        };
        versions.iter().map(len).collect()
    }

    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.opener.open(version).await
    }

    async fn adopt(&self, version: &Version, from: &BucketId) -> Result<(), Error> {
        self.tree.remote.adopt(version.id.xet()?, from);
        Ok(())
    }

    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        Ok(Box::new(Session::new(&self.tree.remote, None)))
    }

    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        if self.read_only {
            return operations.iter().map(|_| Outcome::Failed(Error::ReadOnly)).collect();
        }
        // Paths of a plain source share nothing.
        self.commits.commit(operations, |_| Vec::new(), &self.execute).await
    }

    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        self.tree.doubled(files, folders).await
    }

    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        self.tree.twins.show(directory, name, taken)
    }

    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        let path = parent.join(name)?;
        if name.len() > MAX_NAME {
            return Err(Error::NameTooLong);
        }
        self.tree.place(&path)?;
        check_key(&self.tree.key(&path)).map_err(|_| Error::InvalidName)
    }

    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        Ok(Draft::new(Medium::Plain, self.opener.clone(), slots, state))
    }

    fn slot_len(&self) -> usize {
        Medium::Plain.slot_len()
    }

    fn sealer(&self) -> Arc<dyn Sealer> {
        Arc::new(Unsealed)
    }

    async fn revision(&self) -> Result<Option<String>, Error> {
        self.tree.remote.revision().await
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn identity(&self) -> [u8; 32] {
        self.identity
    }

    fn key_id(&self) -> Option<String> {
        None
    }

    fn log_name(&self, path: &PlainPath) -> String {
        self.tree.key(path)
    }

    fn hidden(&self) -> Hidden {
        self.hidden.sum()
    }
}
