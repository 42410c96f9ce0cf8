//! Builds drafts for the tests of the layers above: plain slots over objects that the test has.

use super::{Bases, Draft, DraftState, Error, FileId, Medium, Object, SlotIo, Version};
use async_trait::async_trait;
use std::sync::Arc;

type Open = dyn Fn(&Version) -> Result<Arc<dyn Object>, Error> + Send + Sync;

struct Opener(Arc<Open>);

#[async_trait]
impl Bases for Opener {
    async fn open(&self, version: &Version) -> Result<Arc<dyn Object>, Error> {
        (self.0)(version)
    }

    async fn file_id(&self, _: &Version) -> Result<FileId, Error> {
        Err(Error::WrongSide)
    }

    async fn sealed(&self, _: &Version, _: std::ops::Range<u64>) -> Result<bytes::Bytes, Error> {
        Err(Error::WrongSide)
    }

    fn is_shared(&self, _: &Version) -> bool {
        false
    }
}

impl Draft {
    /// Returns a draft whose bases `open` opens.
    pub(crate) fn over(open: Arc<Open>, slots: Arc<dyn SlotIo>, state: DraftState) -> Self {
        Self::new(Medium::Plain, Arc::new(Opener(open)), slots, state)
    }
}
