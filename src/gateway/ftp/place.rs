//! Maps the paths of FTP clients to buckets and paths in them.
//!
//! The root holds the buckets, so a file is `/<bucket>/<key>`. As in file systems, repeated slashes are one, `.` is the
//! folder itself and `..` the folder above. Nothing is above the root: a path that leads there is refused.

use crate::gateway::{Error, Key};
use crate::store::{PlainPath, metadata::is_reserved};

/// A path as a client sent it. It may be a secret, so it isn't printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Argument(String);

impl Argument {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Returns the argument behind the options of `ls` that clients send with it: `-a`, `-la`. Lists show everything
    /// anyway.
    pub(super) fn without_options(text: &str) -> Self {
        let is_option = |word: &str| {
            let letters = word.strip_prefix('-').unwrap_or_default();
            !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let mut rest = text.trim_start_matches(' ');
        while is_option(rest.split(' ').next().unwrap_or_default()) {
            rest = rest.split_once(' ').map_or("", |(_, rest)| rest.trim_start_matches(' '));
        }
        Self::new(rest)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Argument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Argument(hidden)")
    }
}

/// A place that a path names.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The list of buckets.
    Root,
    /// A bucket, or a path in it. The root of the bucket is an empty path.
    In {
        /// Name of the bucket for clients.
        bucket: String,
        /// Path in the bucket.
        path: PlainPath,
    },
}

impl Place {
    /// Returns the place of a path that a client sent while `self` is its current folder.
    pub(super) fn at(&self, argument: &Argument) -> Result<Self, Error> {
        let text = argument.as_str();
        let mut names = match text.starts_with('/') {
            true => Vec::new(),
            false => self.names(),
        };
        for name in text.split('/') {
            match name {
                "" | "." => {}
                ".." => names.pop().map(drop).ok_or(Error::InvalidKey("it leads above the root"))?,
                name => names.push(name),
            }
        }
        let Some((bucket, names)) = names.split_first() else { return Ok(Self::Root) };
        let path = PlainPath::new(&names.join("/")).map_err(|_| Error::InvalidKey("it has a NUL"))?;
        if is_reserved(&path) {
            return Err(Error::InvalidKey("its first component is reserved for metadata"));
        }
        Ok(Self::In { bucket: (*bucket).to_owned(), path })
    }

    /// Returns the place of a path for a file that is written. A slash at its end would name a folder.
    pub(super) fn at_file(&self, argument: &Argument) -> Result<Self, Error> {
        match argument.as_str().ends_with('/') {
            true => Err(Error::InvalidKey("a slash at the end names a folder")),
            false => self.at(argument),
        }
    }

    fn names(&self) -> Vec<&str> {
        match self {
            Self::Root => Vec::new(),
            Self::In { bucket, path } => {
                let below = path.as_str().split('/').filter(|name| !name.is_empty());
                std::iter::once(bucket.as_str()).chain(below).collect()
            }
        }
    }

    /// Returns the folder above. That of the root is the root.
    pub(super) fn parent(&self) -> Self {
        match self {
            Self::Root => Self::Root,
            Self::In { bucket, path } => match path.split() {
                None => Self::Root,
                Some((parent, _)) => Self::In { bucket: bucket.clone(), path: parent },
            },
        }
    }

    /// Returns the last component of the path; empty for the root.
    pub(super) fn name(&self) -> &str {
        self.names().pop().unwrap_or_default()
    }

    /// Returns the absolute path.
    pub(super) fn to_text(&self) -> String {
        format!("/{}", self.names().join("/"))
    }

    /// Returns the absolute path as a reply quotes it: a quote within is doubled (RFC 959, appendix II).
    pub(super) fn quoted(&self) -> String {
        format!("\"{}\"", self.to_text().replace('"', "\"\""))
    }
}

/// Returns the key of a file.
pub(super) fn file_key(path: &PlainPath) -> Result<Key, Error> {
    Key::parse(path.as_str())
}

/// Returns the prefix of the keys in a folder: empty for a bucket, else it ends in `/`.
pub(super) fn prefix(folder: &PlainPath) -> String {
    if folder.is_root() { String::new() } else { format!("{}/", folder.as_str()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(cwd: &str, text: &str) -> Result<String, Error> {
        let cwd = Place::Root.at(&Argument::new(cwd))?;
        cwd.at(&Argument::new(text)).map(|place| place.to_text())
    }

    #[test]
    fn paths_are_resolved_as_in_file_systems() {
        for (cwd, path, place) in [
            ("/", "", "/"),
            ("/", "/", "/"),
            ("/", "data", "/data"),
            ("/data/a", "b", "/data/a/b"),
            ("/data/a", "/other//b/", "/other/b"),
            ("/data/a", "..", "/data"),
            ("/data/a", "../../x/./y", "/x/y"),
            ("/data", " spaces ", "/data/ spaces "),
            ("/data/a", "../../../x", "refused"),
            ("/", "..", "refused"),
            ("/data", "../../etc/passwd", "refused"),
            ("/data", ".hugbucket/metadata", "refused"),
        ] {
            let found = at(cwd, path);
            assert_eq!(found.as_deref().unwrap_or("refused"), place, "{cwd} {path}");
        }
    }

    #[test]
    fn place_has_parent_name_and_quoted_form() {
        let place = Place::Root.at(&Argument::new("/data/a/say \"hi\"")).unwrap();
        assert_eq!((place.name(), place.quoted().as_str()), ("say \"hi\"", "\"/data/a/say \"\"hi\"\"\""));
        assert_eq!(place.parent().to_text(), "/data/a");
        assert_eq!(place.parent().parent().parent().parent().to_text(), "/");
    }

    proptest! {
        #[test]
        fn no_path_leaves_the_root(cwd in "(/|a|\\.\\.|\\.){0,6}", path in "(/|a|ü|\\.\\.|\\.){0,8}") {
            if let Ok(text) = at(&cwd, &path) {
                prop_assert!(text.starts_with('/'));
                prop_assert!(text.split('/').all(|name| name != ".." && name != "."));
                // It names itself.
                prop_assert_eq!(at("/", &text).ok(), Some(text));
            }
        }
    }
}
