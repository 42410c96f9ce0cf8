//! What the Hub API speaks of, as types (Hub API spec, sections 2 to 4).

use crate::xet::Hash;
use std::fmt;
use std::str::FromStr;
use time::OffsetDateTime;

/// `namespace/name` of a bucket. Both parts are checked: letters, digits, `-`, `_`, `.`; not empty,
/// not `.` or `..`, at most 96 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketId {
    namespace: String,
    name: String,
}

impl BucketId {
    /// Checks and joins the two parts.
    pub fn new(namespace: &str, name: &str) -> Result<Self, super::Error> {
        for part in [namespace, name] {
            let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            if part.is_empty() || part.len() > 96 || part == "." || part == ".." || !part.bytes().all(legal) {
                return Err(super::Error::InvalidId(format!("{namespace}/{name}")));
            }
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Returns true if `self` is not just another spelling of `asked`: the bucket has moved. `me` stands for the
    /// user's own namespace.
    pub fn has_moved_from(&self, asked: &Self) -> bool {
        let is_own = asked.namespace == "me" || self.namespace.eq_ignore_ascii_case(&asked.namespace);
        !is_own || !self.name.eq_ignore_ascii_case(&asked.name)
    }

    /// The owner.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The bucket's own name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for BucketId {
    type Err = super::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| super::Error::InvalidId(text.to_owned()))?;
        Self::new(namespace, name)
    }
}

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RepoKind {
    /// A model. Its web address has no prefix.
    Model,
    /// A dataset.
    Dataset,
    /// A space.
    Space,
}

impl RepoKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Model, Self::Dataset, Self::Space];

    /// Returns its name in the API: `model`, `dataset` or `space`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "dataset",
            Self::Space => "space",
        }
    }

    /// Returns the path component of the API: `models`, `datasets` or `spaces`.
    pub fn route(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
            Self::Space => "spaces",
        }
    }

    /// Returns the kind of a path component of the API.
    pub fn of_route(component: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.route() == component)
    }

    /// Returns what stands before names in web addresses and in paths of files.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
            Self::Space => "spaces/",
        }
    }
}

impl fmt::Display for RepoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind and name of a repository. The name is `namespace/name`, or for some old models one component, such as `gpt2`.
///
/// `Display` prints the name behind `datasets/` or `spaces/`, and the name alone of a model, as in web addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepoId {
    kind: RepoKind,
    name: String,
}

impl RepoId {
    /// Checks a name: one or two components, each by the rules of [`BucketId`].
    pub fn new(kind: RepoKind, name: &str) -> Result<Self, super::Error> {
        let (namespace, last) = name.split_once('/').unwrap_or(("alone", name));
        match BucketId::new(namespace, last) {
            Ok(_) => Ok(Self { kind, name: name.to_owned() }),
            Err(_) => Err(super::Error::InvalidRepoId(name.to_owned())),
        }
    }

    /// Its kind.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// `namespace/name`, or one component.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.prefix(), self.name)
    }
}

/// A commit of a repository, which a branch or a tag named when it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Name that the repository has now. The Hub knows some by several names.
    pub repo: RepoId,
    /// Commit id: 40 hex digits.
    pub id: String,
    /// Time of the last change of the repository.
    pub modified: Option<OffsetDateTime>,
    /// True if only its owners see it.
    pub private: bool,
    /// True if its owner lets users in one by one.
    pub gated: bool,
}

/// Content of a file of a repository that is not in Xet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Git blob id: of the content, or of its LFS pointer.
    pub id: [u8; 20],
    /// SHA-256 of the content, if it is in LFS.
    pub sha256: Option<[u8; 32]>,
}

/// The reason why the Hub stores nothing at a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKey {
    /// It is empty, starts or ends with a slash, or has two slashes in a row.
    #[error("empty path component")]
    EmptyComponent,
    /// A component is `.` or `..`.
    #[error("path component . or ..")]
    DotComponent,
    /// A component ends in `..`: the Hub refuses `../` wherever it occurs, and a trailing `..`.
    #[error("path component that ends in two dots")]
    TrailingDots,
    /// It contains `\`.
    #[error("backslash in the path")]
    Backslash,
    /// It contains a NUL byte.
    #[error("NUL byte in the path")]
    Nul,
}

/// Checks that the Hub accepts `key` for a new object (Hub API spec, 4.3). The rules hold for each component by
/// itself, so a single name
/// can be checked too. Does not check the length.
///
/// A bucket may hold other keys: older versions of the embedded Hub stored them. They can be read and deleted.
pub fn check_key(key: &str) -> Result<(), InvalidKey> {
    for component in key.split('/') {
        match component {
            "" => return Err(InvalidKey::EmptyComponent),
            "." | ".." => return Err(InvalidKey::DotComponent),
            _ if component.ends_with("..") => return Err(InvalidKey::TrailingDots),
            _ if component.contains('\\') => return Err(InvalidKey::Backslash),
            _ if component.contains('\0') => return Err(InvalidKey::Nul),
            _ => {}
        }
    }
    Ok(())
}

/// Who a token belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// User name.
    pub name: String,
    /// Organisations.
    pub orgs: Vec<String>,
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketInfo {
    /// Its id.
    pub id: BucketId,
    /// Whether only its owners see it.
    pub private: bool,
    /// Sum of file sizes in bytes.
    pub size: u64,
    /// Number of files.
    pub total_files: u64,
    /// Creation time.
    pub created_at: Option<OffsetDateTime>,
    /// Changes with every change of its files; opaque.
    pub updated_at: Option<String>,
}

/// A file of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// Full object key.
    pub key: String,
    /// Stored size in bytes.
    pub size: u64,
    /// Xet hash; `None` for entries without one (they are no containers).
    pub hash: Option<Hash>,
    /// Content outside Xet: only in repositories, and only without a Xet hash.
    pub blob: Option<Blob>,
    /// The writer's time.
    pub mtime: Option<OffsetDateTime>,
    /// The Hub's time of the last upload.
    pub uploaded_at: Option<OffsetDateTime>,
}

/// An entry of a listing.
///
/// Keys are as the Hub stores them, and that may be anything: empty, `.` or `..` components, control characters.
/// Whoever turns them into names judges them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeEntry {
    /// An object.
    File(FileEntry),
    /// A key prefix.
    Directory {
        /// Full key of the directory, no trailing slash.
        key: String,
        /// Newest upload inside.
        uploaded_at: Option<OffsetDateTime>,
    },
}

impl TreeEntry {
    /// Full key.
    pub fn key(&self) -> &str {
        match self {
            Self::File(file) => &file.key,
            Self::Directory { key, .. } => key,
        }
    }
}

/// URL of the next page of a listing. It is followed with a token only if its origin is that of the
/// endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor(pub(crate) String);

/// One page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreePage {
    /// Its entries.
    pub entries: Vec<TreeEntry>,
    /// The next page, if there is one.
    pub next: Option<Cursor>,
}

/// One line of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Puts a registered file hash at a key; replaces what is there.
    Add {
        /// Object key.
        key: String,
        /// File hash ([`Hash::ZERO`]: empty).
        hash: Hash,
        /// Time of the content. Sent in milliseconds, rounded down; negative before 1970.
        mtime: OffsetDateTime,
        /// Content type; never guessed for ciphertext. For the gateway, which gets it from its clients: nothing else
        /// here sets one.
        content_type: Option<String>,
    },
    /// Puts the content of a file of another bucket at a key; replaces what is there. The token must give access to the
    /// other bucket.
    Copy {
        /// Object key.
        key: String,
        /// File hash. A file of `from` has it.
        hash: Hash,
        /// The other bucket.
        from: BucketId,
        /// Time of the content, as in [`BatchOp::Add`].
        mtime: OffsetDateTime,
    },
    /// Removes a key; a missing one is fine.
    Delete {
        /// Object key.
        key: String,
    },
}

impl BatchOp {
    /// The key it is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Add { key, .. } | Self::Copy { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// What became of a batch that was answered: the lines that failed. All others succeeded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchOutcome {
    /// Key and the Hub's words.
    pub failed: Vec<(String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_the_hub_refuses_are_invalid() {
        use InvalidKey::*;
        let refused = [
            (EmptyComponent, vec!["", "/", "/a", "a/", "a//b"]),
            (DotComponent, vec![".", "..", "./a", "a/./b", "a/.", "../a", "a/../b", "a/.."]),
            (TrailingDots, vec!["dots../x", "a/dots..", "x..", "...", ".../a", "a/..../b", "ü.."]),
            (Backslash, vec!["\\", "back\\slash", "a/b\\"]),
            (Nul, vec!["\0", "a\0b", "a/\0"]),
        ];
        for (reason, keys) in refused {
            for key in keys {
                assert_eq!(check_key(key), Err(reason), "{key:?}");
            }
        }
        for key in [
            "a",
            "a/b",
            ".a",
            "..a",
            "...a/b",
            "a..b/c",
            "a.",
            ".a./b.",
            "a b",
            "%2F",
            "%5C",
            "C:x",
            "\u{1}\n",
            "ü/日本",
        ] {
            assert_eq!(check_key(key), Ok(()), "{key:?}");
        }
    }
}
