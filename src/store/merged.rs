//! Shows the encrypted tree and, next to it, the bucket's plaintext, read-only (format spec, section 5 "Mixed
//! buckets"). This is the default view with a key.
//!
//! Own entries take precedence, even those that can't be opened. Directories of one name are merged. The
//! plaintext side is not authenticated, so a server can put any content there. A path that this machine
//! remembers as own is therefore never shown from it. A listing needs both sides.

use super::beside::Beside;
use super::buckets::BucketId;
use super::commit::{Execute, Layout, Place, Slot, Subtree};
use super::encrypted::{Encrypted, Unlisted, executing};
use super::hidden::HiddenSums;
use super::metadata::{Described, MetadataObject};
use super::{
    Draft, DraftState, Entry, Error, Hidden, Kind, Len, Listing, Object, Op, Outcome, PlainPath, PutSession, Sealer,
    Side, SlotIo, Stored, Version, View,
};
use crate::xet::Hash;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

/// Both sides of a bucket under one key.
pub(super) struct Merged {
    own: Arc<Encrypted>,
    plain: Beside,
    /// Counts of the plaintext side.
    hidden: HiddenSums,
    execute: Execute,
}

impl Merged {
    pub(super) fn new(own: Arc<Encrypted>, plain: Beside) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let execute = executing(this.clone(), |view| &view.own);
            Self { own, plain, hidden: HiddenSums::default(), execute }
        })
    }

    /// Merges the plaintext entries of a directory into the own ones.
    async fn merge(
        &self,
        directory: &PlainPath,
        own: Vec<Entry>,
        plain: Listing,
    ) -> Result<(Vec<Entry>, Hidden), Error> {
        let mut hidden = plain.hidden;
        // With exact names a file and a directory of one name are two entries.
        let exact = self.own.exact_names();
        let place = |name: String, kind: &Kind| (name, exact && matches!(kind, Kind::File { .. }));
        let own = own.into_iter().map(|entry| (place(entry.name, &entry.kind), entry.kind));
        let mut entries: BTreeMap<(String, bool), Kind> = own.collect();
        if entries.is_empty() && !plain.entries.is_empty() && self.is_below_own_file(directory).await? {
            hidden.shadowed += plain.entries.len() as u64;
            return Ok((vec![], hidden));
        }
        let mut beside = Vec::new();
        for Entry { name, kind } in plain.entries {
            let place = place(name, &kind);
            match (entries.get_mut(&place), &kind) {
                (None, _) => beside.push((place, kind)),
                (Some(Kind::Directory { read_only }), Kind::Directory { .. }) => *read_only = true,
                (Some(_), _) => hidden.shadowed += 1,
            }
        }
        let were_own = self.were_own(directory, &beside).await?;
        let mut vanished = Unlisted::default();
        for ((place, kind), was_own) in beside.into_iter().zip(were_own) {
            // The memory is of files. With exact names a directory of the name of a file hides nothing.
            let is_allowed = exact && matches!(kind, Kind::Directory { .. });
            match was_own.filter(|_| !is_allowed) {
                Some(key) => {
                    hidden.shadowed += 1;
                    vanished.add(key);
                }
                None => drop(entries.insert(place, kind)),
            }
        }
        let log_name = self.own.log_name(directory);
        vanished.report(&log_name, "encrypted files are missing, and plaintext objects have their paths: not shown");
        Ok((entries.into_iter().map(|((name, _), kind)| Entry { name, kind }).collect(), hidden))
    }

    /// Returns the memory key of each of these entries that this machine remembers as an own file.
    async fn were_own(
        &self,
        directory: &PlainPath,
        entries: &[((String, bool), Kind)],
    ) -> Result<Vec<Option<String>>, Error> {
        let key = |name: &str| self.own.memory_key(&directory.join(name).ok()?);
        let keys: Vec<Option<String>> = entries.iter().map(|((name, _), _)| key(name)).collect();
        let known: Vec<String> = keys.iter().flatten().cloned().collect();
        let mut were_own = self.own.memory().were_own(&known).await?.into_iter();
        Ok(keys.into_iter().map(|key| key.filter(|_| were_own.next().unwrap_or(false))).collect())
    }

    /// Returns true if the path or one above it is or was an own file. Then nothing of the plaintext side is
    /// at or below it.
    async fn is_below_own_file(&self, path: &PlainPath) -> Result<bool, Error> {
        let mut paths = Vec::new();
        let mut at = path.clone();
        while let Some((parent, _)) = at.split() {
            paths.push(std::mem::replace(&mut at, parent));
        }
        let keys: Vec<String> = paths.iter().filter_map(|path| self.own.memory_key(path)).collect();
        Ok(self.own.memory().were_own(&keys).await?.contains(&true) || self.own.any_file(&paths).await?)
    }

    /// Returns the entry of the encrypted side at a path. `None` also if the path can't be stored there.
    async fn find_own(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        match self.own.find(path).await {
            Err(Error::NameTooLong) => Ok(None),
            found => found,
        }
    }

    async fn kind(&self, path: &PlainPath) -> Result<Option<Kind>, Error> {
        match self.find_own(path).await? {
            Some(Kind::Directory { .. }) => {
                Ok(Some(Kind::Directory { read_only: self.plain.is_directory(path).await? }))
            }
            Some(file) => Ok(Some(self.own.with_len(file).await?)),
            None => match self.plain.stat(path).await? {
                Some(kind) if !self.is_below_own_file(path).await? => Ok(Some(kind)),
                _ => Ok(None),
            },
        }
    }
}

#[async_trait]
impl Layout for Merged {
    fn place(&self, path: &PlainPath) -> Result<Place, Error> {
        self.own.place(path)
    }

    fn side(&self, slot: Slot) -> Side {
        self.own.side(slot)
    }

    async fn occupied(&self, paths: &[PlainPath]) -> Result<Vec<bool>, Error> {
        let mut occupied = Vec::with_capacity(paths.len());
        for path in paths {
            // An entry that isn't shown from the plaintext side doesn't block the path.
            let was_own = match self.own.memory_key(path) {
                Some(key) => self.own.memory().was_own(&key)?,
                None => false,
            };
            occupied.push(!was_own && self.plain.is_file(path).await?);
        }
        Ok(occupied)
    }

    async fn check_directory_move(&self, from: &PlainPath, to: &PlainPath) -> Result<(), Error> {
        let directories = self.plain.is_directory(from).await? || self.plain.is_directory(to).await?;
        let occupied = self.occupied(std::slice::from_ref(to)).await?.contains(&true);
        if directories || occupied { Err(Error::ReadOnly) } else { Ok(()) }
    }

    async fn files_below(&self, directory: &PlainPath) -> Result<Subtree, Error> {
        self.own.files_below(directory).await
    }

    async fn check_replaceable(&self, versions: &[Version]) -> Vec<Result<(), Error>> {
        self.own.check_replaceable(versions).await
    }

    async fn in_newer_format(&self, stored: &Stored) -> Result<Stored, Error> {
        self.own.in_newer_format(stored).await
    }

    async fn keep_sidecars(&self, sidecars: Vec<(Hash, Bytes)>) {
        self.own.keep_sidecars(sidecars).await;
    }

    async fn settled(&self, added: Vec<String>, removed: Vec<String>) {
        self.own.settled(added, removed).await;
    }
}

#[async_trait]
impl View for Merged {
    async fn list(&self, directory: &PlainPath) -> Result<Listing, Error> {
        let (own, plain) = tokio::try_join!(self.own.list_own(directory), self.plain.list(directory))?;
        let (entries, beside) = self.merge(directory, own.entries, plain).await?;
        self.hidden.note(directory.as_str(), beside);
        let mut hidden = own.hidden;
        hidden += beside;
        Ok(Listing { entries, hidden })
    }

    async fn stat(&self, path: &PlainPath) -> Result<Option<Entry>, Error> {
        let name = path.split().map(|(_, name)| name.to_owned()).unwrap_or_default();
        Ok(self.kind(path).await?.map(|kind| Entry { name, kind }))
    }

    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        Ok(self.described(paths).await?.into_iter().map(|described| described.file).collect())
    }

    async fn described(&self, paths: &[PlainPath]) -> Result<Vec<Described>, Error> {
        let mut all = self.own.own_files(paths).await?;
        for (path, found) in paths.iter().zip(&mut all).filter(|(_, found)| found.file.is_none()) {
            if self.plain.is_file(path).await? && !self.is_below_own_file(path).await? {
                // Plaintext beside the tree has none that could be trusted.
                *found = Described { file: self.plain.file(path).await?, metadata: None };
            }
        }
        Ok(all)
    }

    async fn metadata(&self, object: &MetadataObject) -> Result<Option<Bytes>, Error> {
        self.own.metadata(object).await
    }

    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        self.own.lens(versions).await
    }

    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        self.own.open(version).await
    }

    async fn adopt(&self, version: &Version, from: &BucketId) -> Result<(), Error> {
        self.own.adopt(version, from).await
    }

    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        self.own.put().await
    }

    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        self.own.enqueue(self, &self.execute, operations).await
    }

    async fn twins(&self, files: &[PlainPath], folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        self.own.twins(files, folders).await
    }

    fn show_beside(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        self.own.show_beside(directory, name, taken)
    }

    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        self.own.check_name(parent, name)
    }

    fn check_format_1(&self, path: &PlainPath) -> Result<(), Error> {
        self.own.check_format_1(path)
    }

    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        self.own.draft(state, slots)
    }

    fn slot_len(&self) -> usize {
        self.own.slot_len()
    }

    fn sealer(&self) -> Arc<dyn Sealer> {
        self.own.sealer()
    }

    async fn revision(&self) -> Result<Option<String>, Error> {
        self.own.revision().await
    }

    fn read_only(&self) -> bool {
        self.own.read_only()
    }

    fn identity(&self) -> [u8; 32] {
        self.own.identity()
    }

    fn key_id(&self) -> Option<String> {
        self.own.key_id()
    }

    fn log_name(&self, path: &PlainPath) -> String {
        self.own.log_name(path)
    }

    fn hidden(&self) -> Hidden {
        let mut hidden = self.own.hidden();
        hidden += self.hidden.sum();
        hidden
    }
}
