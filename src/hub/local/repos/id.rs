//! Names of repositories: `[datasets/|spaces/]namespace/name`.

use crate::hub::RepoKind;
use std::fmt;
use std::str::FromStr;

/// Longest namespace or name in bytes.
const LONGEST: usize = 96;
/// Names that routes use after or in the place of a repository's name: a repository of that name could not be told
/// from a route of another.
const RESERVED: &[&str] = &[
    "api",
    "auth-check",
    "buckets",
    "cas",
    "commits",
    "datasets",
    "kernels",
    "models",
    "paths-info",
    "refs",
    "resolve",
    "revision",
    "spaces",
    "tree",
    "xet-read-token",
];

/// Id of a repository of this Hub. Its parts are checked: letters, digits, `-`, `_` and `.`, at most 96 bytes, and no
/// word that routes use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepositoryId {
    kind: RepoKind,
    namespace: String,
    name: String,
}

/// A text that is not the id of a repository.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid repository id {0:?}: it has the form [datasets/|spaces/]namespace/name")]
pub struct InvalidRepositoryId(String);

impl RepositoryId {
    /// Checks and joins the parts. The namespace is empty for a name of one segment.
    pub fn new(kind: RepoKind, namespace: &str, name: &str) -> Result<Self, InvalidRepositoryId> {
        let id = Self { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let is_valid = is_valid(name) && (namespace.is_empty() || is_valid(namespace));
        if is_valid { Ok(id) } else { Err(InvalidRepositoryId(id.to_string())) }
    }

    /// The kind.
    pub fn kind(&self) -> RepoKind {
        self.kind
    }

    /// The owner; empty for a name of one segment.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The repository's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the id without its kind: `namespace/name`, or `name`.
    pub(in crate::hub::local) fn path(&self) -> String {
        let slash = if self.namespace.is_empty() { "" } else { "/" };
        format!("{}{slash}{}", self.namespace, self.name)
    }
}

fn is_valid(part: &str) -> bool {
    let is_legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let is_named = !part.is_empty() && part.len() <= LONGEST && part.bytes().all(is_legal);
    is_named && part != "." && part != ".." && !RESERVED.contains(&part)
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.kind.prefix(), self.path())
    }
}

impl FromStr for RepositoryId {
    type Err = InvalidRepositoryId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let [_, prefixed @ ..] = RepoKind::ALL;
        let found = prefixed.into_iter().find_map(|kind| Some((kind, text.strip_prefix(kind.prefix())?)));
        let (kind, path) = found.unwrap_or((RepoKind::Model, text));
        let (namespace, name) = match path.split_once('/') {
            Some(("", _)) => return Err(InvalidRepositoryId(text.to_owned())),
            Some(parts) => parts,
            None => ("", path),
        };
        Self::new(kind, namespace, name).map_err(|_| InvalidRepositoryId(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_a_kind_and_one_or_two_segments() {
        for (text, kind, namespace, name) in [
            ("a/b", RepoKind::Model, "a", "b"),
            ("gpt2", RepoKind::Model, "", "gpt2"),
            ("datasets/a/b.c", RepoKind::Dataset, "a", "b.c"),
            ("datasets/squad", RepoKind::Dataset, "", "squad"),
            ("spaces/a/b_c-D", RepoKind::Space, "a", "b_c-D"),
        ] {
            let id: RepositoryId = text.parse().unwrap();
            assert_eq!((id.kind(), id.namespace(), id.name()), (kind, namespace, name));
            assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn texts_that_routes_cannot_name_are_no_ids() {
        let long = "x".repeat(97);
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a/b/c",
            "a/..",
            "./a",
            "ü/a",
            "a b",
            "a/tree",
            "resolve",
            "models/a",
            "datasets/",
            &long,
        ] {
            assert!(text.parse::<RepositoryId>().is_err(), "{text}");
        }
    }
}
