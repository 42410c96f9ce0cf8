//! Maps plaintext paths to the object keys that they are stored under, in both formats (format spec, sections
//! 2, 4b and 5).
//!
//! Pure. Paths are relative to the view, keys are full object keys. A path is stored in one format in all its
//! components.

use super::commit::{Place, SidecarKey};
use super::{Error, PlainPath};
use crate::crypto::{Format, Keys, NameCipher, SealedPath, Verdict};
use crate::hub::check_key;
use std::sync::Arc;

/// The formats that a name at the root of the encrypted tree is tried in, in this order.
pub(super) const BOTH: &[Format] = &[Format::V2, Format::V1];

/// Returns true if this is the root of the encrypted tree or below it.
pub(super) fn is_in_encrypted_tree(key: &str) -> bool {
    key.strip_prefix(crate::crypto::names::ROOT).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The names of one view with a key.
pub(super) struct Names {
    keys: Arc<Keys>,
    prefix: PlainPath,
}

/// A stored directory, and the formats that names in it are tried in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredDirectory {
    pub(super) key: String,
    pub(super) formats: &'static [Format],
}

/// Class of a stored component (format spec, section 5), after its sidecar was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Own(Format, String),
    Extension,
    Foreign,
    Suspicious,
}

impl Names {
    pub(super) fn new(keys: Arc<Keys>, prefix: PlainPath) -> Self {
        Self { keys, prefix }
    }

    /// Returns the path from the bucket's root.
    pub(super) fn full(&self, path: &PlainPath) -> PlainPath {
        // Every path is within the root.
        path.rebase(&PlainPath::root(), &self.prefix).unwrap_or_default()
    }

    fn cipher(&self, format: Format) -> &NameCipher {
        self.keys.names(format)
    }

    /// Returns the path as an object key of `format`.
    pub(super) fn sealed(&self, format: Format, path: &PlainPath) -> Result<SealedPath, Error> {
        Ok(self.cipher(format).seal_path(self.full(path).as_str())?)
    }

    /// Returns the place of a path. Only its key in format 1 may be missing.
    pub(super) fn place(&self, path: &PlainPath) -> Result<Place, Error> {
        let sealed = self.sealed(Format::V2, path)?;
        let legacy = match self.sealed(Format::V1, path) {
            Ok(legacy) => Some(legacy.key),
            Err(Error::NameTooLong) => None,
            Err(other) => return Err(other),
        };
        let sidecars = sealed.sidecars.into_iter().map(|s| SidecarKey::new(s.text, s.bytes)).collect();
        let metadata = self.keys.metadata().key(self.full(path).as_str());
        Ok(Place { primary: sealed.key, sidecars, legacy, metadata })
    }

    /// Returns the stored directories that make up a directory.
    pub(super) fn directories(&self, path: &PlainPath) -> Result<Vec<StoredDirectory>, Error> {
        let newer = self.sealed(Format::V2, path)?.key;
        if self.full(path).is_root() {
            return Ok(vec![StoredDirectory { key: newer, formats: BOTH }]);
        }
        let mut directories = vec![StoredDirectory { key: newer, formats: &[Format::V2] }];
        match self.sealed(Format::V1, path) {
            Ok(older) => directories.push(StoredDirectory { key: older.key, formats: &[Format::V1] }),
            Err(Error::NameTooLong) => {}
            Err(other) => return Err(other),
        }
        Ok(directories)
    }

    /// Checks a name that is about to be created in `format`.
    pub(super) fn check(&self, format: Format, parent: &PlainPath, name: &str) -> Result<(), Error> {
        self.check_path(format, &parent.join(name)?)
    }

    /// Checks that a path can be stored in `format`. One stored name of format 1 in about 8,000 ends in `..`, which
    /// the Hub refuses.
    pub(super) fn check_path(&self, format: Format, path: &PlainPath) -> Result<(), Error> {
        check_key(&self.sealed(format, path)?.key).map_err(|_| Error::InvalidName)
    }

    /// Returns the name of a path for logs.
    pub(super) fn log_name(&self, path: &PlainPath) -> String {
        self.sealed(Format::V2, path).map_or_else(|_| "(name cannot be stored)".to_owned(), |sealed| sealed.key)
    }

    /// Returns the sidecar that must be fetched to classify `stored`.
    pub(super) fn sidecar_of(&self, formats: &[Format], stored: &str) -> Option<String> {
        if !formats.contains(&Format::V2) {
            return None;
        }
        match self.cipher(Format::V2).open("", stored) {
            Verdict::NeedsSidecar(name) => Some(name),
            _ => None,
        }
    }

    /// Classifies a stored component below the directory with the full plaintext path `parent`. `sidecar`
    /// returns the bytes of a sidecar next to it, by stored component, or `None` if no object there could be
    /// one.
    pub(super) fn classify<'a>(
        &self,
        formats: &[Format],
        parent: &str,
        stored: &str,
        sidecar: impl Fn(&str) -> Option<&'a [u8]>,
    ) -> Class {
        for &format in formats {
            let cipher = self.cipher(format);
            let verdict = match cipher.open(parent, stored) {
                Verdict::NeedsSidecar(beside) => match sidecar(&beside) {
                    Some(bytes) => cipher.open_long(parent, stored, bytes),
                    None => Verdict::Foreign,
                },
                other => other,
            };
            match verdict {
                Verdict::Own(name) => return Class::Own(format, name),
                Verdict::Extension => return Class::Extension,
                Verdict::Suspicious => return Class::Suspicious,
                Verdict::Foreign | Verdict::NeedsSidecar(_) => {}
            }
        }
        Class::Foreign
    }
}
