//! A remote that is empty and takes nothing. It has the key of another one.
//!
//! The [`Vfs`](crate::fs::Vfs) of sealed local files stands on it: new files get the drafts and the sealed journal of
//! the remote with the key, and no operation reaches that remote.

use crate::store::buckets::BucketId;
use crate::store::{
    Draft, DraftState, Entry, Error, Hidden, Kind, Len, Listing, Object, Op, Outcome, PlainPath, PutSession, Sealer,
    SlotIo, Version, View,
};
use async_trait::async_trait;
use std::sync::Arc;

/// The empty remote. See the module.
pub struct Detached(Arc<dyn View>);

impl Detached {
    /// Returns an empty remote with the key of `view`.
    pub fn new(view: Arc<dyn View>) -> Arc<Self> {
        Arc::new(Self(view))
    }
}

#[async_trait]
impl View for Detached {
    async fn list(&self, _directory: &PlainPath) -> Result<Listing, Error> {
        Ok(Listing::default())
    }

    async fn stat(&self, _path: &PlainPath) -> Result<Option<Entry>, Error> {
        Ok(None)
    }

    async fn files(&self, paths: &[PlainPath]) -> Result<Vec<Option<Kind>>, Error> {
        Ok(vec![None; paths.len()])
    }

    async fn lens(&self, versions: &[Version]) -> Vec<Result<Len, Error>> {
        versions.iter().map(|_| Err(Error::NotFound)).collect()
    }

    async fn open(&self, _version: &Version) -> Result<Arc<dyn Object>, Error> {
        Err(Error::NotFound)
    }

    async fn put(&self) -> Result<Box<dyn PutSession>, Error> {
        Err(Error::ReadOnly)
    }

    async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        operations.iter().map(|_| Outcome::Failed(Error::ReadOnly)).collect()
    }

    async fn adopt(&self, _version: &Version, _from: &BucketId) -> Result<(), Error> {
        Err(Error::ReadOnly)
    }

    async fn twins(&self, _files: &[PlainPath], _folders: &[PlainPath]) -> Result<Vec<PlainPath>, Error> {
        Ok(Vec::new())
    }

    fn show_beside(&self, _: &PlainPath, _: &str, _: &dyn Fn(&str) -> bool) -> Option<String> {
        None
    }

    fn check_name(&self, parent: &PlainPath, name: &str) -> Result<(), Error> {
        self.0.check_name(parent, name)
    }

    fn check_format_1(&self, path: &PlainPath) -> Result<(), Error> {
        self.0.check_format_1(path)
    }

    fn draft(&self, state: DraftState, slots: Arc<dyn SlotIo>) -> Result<Draft, Error> {
        self.0.draft(state, slots)
    }

    fn slot_len(&self) -> usize {
        self.0.slot_len()
    }

    fn sealer(&self) -> Arc<dyn Sealer> {
        self.0.sealer()
    }

    async fn revision(&self) -> Result<Option<String>, Error> {
        Ok(None)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn identity(&self) -> [u8; 32] {
        self.0.identity()
    }

    fn key_id(&self) -> Option<String> {
        self.0.key_id()
    }

    fn log_name(&self, path: &PlainPath) -> String {
        self.0.log_name(path)
    }

    fn hidden(&self) -> Hidden {
        Hidden::default()
    }
}
