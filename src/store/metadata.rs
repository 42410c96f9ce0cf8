//! Metadata of an object in addition to its content: content type, user metadata and ETag.
//!
//! This module is an interface without storage for now. A gateway needs the three of each object that it
//! lists, reads or writes, and they have to pass through [`View`](super::View) in both directions. Content
//! type and user metadata need a stored format first (see DESIGN, "Object metadata needs a format"). Until
//! then nothing is stored. [`Entry::metadata`] is empty, and
//! [`PutSession::add_with`](super::PutSession::add_with) refuses an object that has metadata, so none is
//! dropped silently. The Hub's own content type ([`BatchOp`](crate::hub::BatchOp)) stays unset.

use super::{Entry, Error, Kind};
use std::collections::BTreeMap;

/// Properties of an object that are not part of its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Media type, as the writer gave it. It is never guessed.
    pub content_type: Option<String>,
    /// Names and values that the writer gave. On a source with a key they are secret, like paths.
    pub user: BTreeMap<String, String>,
}

impl Metadata {
    /// Fails if the metadata can't be stored. Only empty metadata can.
    pub(super) fn check_storable(&self) -> Result<(), Error> {
        if *self == Self::default() { Ok(()) } else { Err(Error::Unstorable("content type or user metadata")) }
    }
}

impl Entry {
    /// Returns the metadata of a file. It is empty until a format can store it.
    pub fn metadata(&self) -> Metadata {
        Metadata::default()
    }

    /// Returns the entity tag of a file, in the quotes of HTTP. It needs no format: the id of the stored object names
    /// the content. Equal tags mean equal content. On a source with a key the opposite isn't true, because equal
    /// content is sealed to another object each time. `None`: a directory, or an object without an id.
    pub fn etag(&self) -> Option<String> {
        match &self.kind {
            Kind::File { version, .. } => version.map(|version| format!("\"{}\"", version.id)),
            Kind::Directory { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::hash_of;
    use crate::store::{Len, Side, Version};

    #[test]
    fn etag_is_hash_of_version() {
        let file = |content| {
            let version = Some(Version { id: hash_of(content).into(), stored_len: 1, side: Side::Plain });
            let kind = Kind::File { version, len: Len::Known(1), mtime: None, read_only: false };
            Entry { name: "f".into(), kind }
        };
        assert_eq!(file("a").etag(), Some(format!("\"{}\"", hash_of("a"))));
        assert_ne!(file("a").etag(), file("b").etag());
        assert_eq!(file("a").metadata(), Metadata::default());
        assert_eq!(Entry { name: "d".into(), kind: Kind::Directory { read_only: false } }.etag(), None);
    }

    #[test]
    fn metadata_without_format_is_refused() {
        assert!(Metadata::default().check_storable().is_ok());
        let typed = Metadata { content_type: Some("text/plain".into()), ..Metadata::default() };
        let tagged = Metadata { user: [("k".to_owned(), "v".to_owned())].into(), ..Metadata::default() };
        for metadata in [typed, tagged] {
            assert!(matches!(metadata.check_storable(), Err(Error::Unstorable(_))));
        }
    }
}
