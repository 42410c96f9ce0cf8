//! Lists, creates and removes buckets, for programs that serve more than one.

use super::Error;
use super::metadata::is_metadata;
use super::remote::MAX_PAGES;
use crate::hub::{Endpoint, Hub, TreeEntry};
use std::sync::Arc;

pub use crate::hub::{BucketId, BucketInfo};

/// The buckets that the token of an endpoint gives access to.
#[derive(Clone)]
pub struct Buckets {
    hub: Arc<dyn Hub>,
    /// Kept alive: an embedded Hub stops when its endpoint is dropped.
    endpoint: Option<Arc<Endpoint>>,
}

impl Buckets {
    /// The buckets at an endpoint.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        Self { hub: endpoint.client(), endpoint: Some(endpoint) }
    }

    /// Returns the endpoint.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.endpoint.as_ref()
    }

    /// Returns the name of the user whose token is used.
    pub async fn user(&self) -> Result<String, Error> {
        Ok(self.hub.whoami().await?.name)
    }

    /// Returns the buckets of a namespace that the user may see. Their order is the Hub's.
    pub async fn list(&self, namespace: &str) -> Result<Vec<BucketInfo>, Error> {
        Ok(self.hub.list_buckets(namespace).await?)
    }

    /// Returns a bucket's description.
    pub async fn info(&self, bucket: &BucketId) -> Result<BucketInfo, Error> {
        Ok(self.hub.bucket_info(bucket).await?)
    }

    /// Creates a private bucket. Fails with [`hub::Error::Conflict`](crate::hub::Error::Conflict) if it exists.
    pub async fn create(&self, bucket: &BucketId) -> Result<(), Error> {
        Ok(self.hub.create_bucket(bucket, true, false).await?)
    }

    /// Removes a bucket that holds no file, or only metadata of files that another program has removed. The Hub has no
    /// such operation: it removes a bucket with all files. So the number of files is read right before, and a file that
    /// another client adds in between is lost with the bucket. Fails with [`Error::NotEmpty`], which holds the number
    /// of files.
    pub async fn remove_empty(&self, bucket: &BucketId) -> Result<(), Error> {
        let info = self.hub.bucket_info(bucket).await?;
        // The listing decides: the number of files may be older, and counts the metadata of removed files.
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            let page = self.hub.tree_page(&info.id, "", true, cursor.as_ref()).await?;
            let is_file = |entry: &TreeEntry| matches!(entry, TreeEntry::File(file) if !is_metadata(&file.key));
            match page.entries.iter().filter(|entry| is_file(entry)).count() as u64 {
                0 => cursor = page.next,
                files => return Err(Error::NotEmpty(files)),
            }
            if cursor.is_none() {
                return Ok(self.hub.delete_bucket(&info.id).await?);
            }
        }
        Err(crate::hub::Error::Malformed("a listing that does not end".into()).into())
    }
}
