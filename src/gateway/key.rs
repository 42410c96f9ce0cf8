//! Maps object keys to paths of the store, and back.
//!
//! Every key means one path and every path one key, so no two keys ever share an object. A key that the Hub or
//! the format can't store is refused. It is never changed into another one.
//!
//! **Directory markers.** Clients create keys that end in a slash, to have a folder without files. The Hub has no
//! such keys. The marker of `a/` is stored as the object `a/.hugbucket_keep`, the name that the first HugBucket
//! used. So an empty folder also exists for the mount and for other clients, and nothing is hidden by it. A
//! client can't use that name in a key itself.

use super::Error;
use crate::store::{PlainPath, metadata::is_reserved};

/// Longest key in bytes.
pub const MAX_KEY: usize = 1024;
/// Longest component in bytes, as in file systems.
const MAX_COMPONENT: usize = 255;
/// Name of the object that keeps a directory marker.
pub(super) const MARKER: &str = ".hugbucket_keep";

/// The key of an object.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    text: String,
    path: PlainPath,
}

impl Key {
    /// Checks a key. The store may refuse it all the same when it is written: the Hub has rules of its own.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.len() > MAX_KEY {
            return Err(Error::KeyTooLong);
        }
        let (folder, is_marker) = match text.strip_suffix('/') {
            Some(folder) => (folder, true),
            None => (text, false),
        };
        for component in folder.split('/') {
            match component {
                "" => return Err(Error::InvalidKey("it has an empty component")),
                "." | ".." => return Err(Error::InvalidKey("a component is . or ..")),
                _ if component.contains('\0') => return Err(Error::InvalidKey("it has a NUL")),
                _ if component.len() > MAX_COMPONENT => return Err(Error::KeyTooLong),
                _ => {}
            }
        }
        if !is_marker && key_of(folder) != folder {
            return Err(Error::InvalidKey("its last component is reserved for folders"));
        }
        let path = PlainPath::new(folder).map_err(Error::of_store)?;
        if is_reserved(&path) {
            return Err(Error::InvalidKey("its first component is reserved for metadata"));
        }
        let path = if is_marker { path.join(MARKER).map_err(Error::of_store)? } else { path };
        Ok(Self { text: text.to_owned(), path })
    }

    /// Returns the key of a path.
    pub fn of_path(path: &PlainPath) -> Self {
        Self { text: key_of(path.as_str()), path: path.clone() }
    }

    /// Returns the key as clients write it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the path that holds the object.
    pub fn path(&self) -> &PlainPath {
        &self.path
    }

    /// Returns true if the key is a directory marker.
    pub fn is_marker(&self) -> bool {
        self.text.ends_with('/')
    }
}

/// Returns the key of a stored path.
pub(super) fn key_of(path: &str) -> String {
    match path.strip_suffix(MARKER) {
        Some(folder) if folder.ends_with('/') => folder.to_owned(),
        _ => path.to_owned(),
    }
}

/// A key may be a secret, so it isn't printed.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_that_can_not_be_stored_are_refused() {
        for text in ["", "/", "/a", "a//b", "a//", "//", ".", "..", "a/../b", "./a", "a/.", "a\0", "a/.hugbucket_keep"]
        {
            assert!(matches!(Key::parse(text), Err(Error::InvalidKey(_))), "{text:?}");
        }
        let (long, deep) = ("x".repeat(256), "x/".repeat(513));
        for text in [long, deep] {
            assert!(matches!(Key::parse(&text), Err(Error::KeyTooLong)));
        }
    }

    #[test]
    fn marker_is_kept_in_its_folder() {
        let key = Key::parse("a/b/").unwrap();
        assert_eq!((key.path().as_str(), key.is_marker()), ("a/b/.hugbucket_keep", true));
        assert_eq!(Key::of_path(key.path()).as_str(), "a/b/");
        let file = Key::parse("a/b").unwrap();
        assert_eq!((file.path().as_str(), file.is_marker()), ("a/b", false));
        // At the root it is an ordinary object of somebody else.
        for text in [".hugbucket_keep", "a/.hugbucket_keep/", "a/.hugbucket_keep/b"] {
            assert_eq!(Key::of_path(Key::parse(text).unwrap().path()).as_str(), text);
        }
    }

    proptest! {
        #[test]
        fn key_and_path_determine_each_other(text in "(a|/|\\.|ü|\\.hugbucket_keep){0,6}", other in "(a|/|\\.|ü|\\.hugbucket_keep){0,6}") {
            let (key, other) = (Key::parse(&text), Key::parse(&other));
            if let Ok(key) = &key {
                prop_assert_eq!(key.as_str(), &text);
                let back = Key::of_path(key.path());
                prop_assert_eq!(back.as_str(), &text);
                if let Ok(other) = other {
                    prop_assert_eq!(key == &other, key.path() == other.path());
                }
            }
        }
    }
}
