use super::Error;
use std::fmt;

/// A checked plaintext path from the root of the view. Components are joined with `/`. There is no slash at
/// the ends, and the root is empty. No component is empty, `.`, `..` or contains NUL. The path is a secret:
/// it has no `Display`, and `Debug` hides it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct PlainPath(String);

impl PlainPath {
    /// Returns the root.
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks a text and returns it as a path.
    pub fn new(text: &str) -> Result<Self, Error> {
        let mut path = Self::root();
        if !text.is_empty() {
            for name in text.split('/') {
                path = path.join(name)?;
            }
        }
        Ok(path)
    }

    /// Returns the path of a child.
    pub fn join(&self, name: &str) -> Result<Self, Error> {
        if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
            return Err(Error::InvalidName);
        }
        Ok(Self(if self.0.is_empty() { name.to_owned() } else { format!("{}/{name}", self.0) }))
    }

    /// Returns the path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns true if it is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns parent and name. `None` for the root.
    pub fn split(&self) -> Option<(Self, &str)> {
        match self.0.rsplit_once('/') {
            Some((parent, name)) => Some((Self(parent.to_owned()), name)),
            None if self.0.is_empty() => None,
            None => Some((Self::root(), &self.0)),
        }
    }

    /// Returns true if it is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root()
            || self.0 == other.0
            || (self.0.starts_with(&other.0) && self.0.as_bytes().get(other.0.len()) == Some(&b'/'))
    }

    /// Returns the path with the leading `from` replaced by `to`. `None` if it isn't within `from`.
    pub fn rebase(&self, from: &Self, to: &Self) -> Option<Self> {
        if !self.is_within(from) {
            return None;
        }
        let rest = self.0[from.0.len()..].trim_start_matches('/');
        Some(match (to.is_root(), rest.is_empty()) {
            (_, true) => to.clone(),
            (true, false) => Self(rest.to_owned()),
            (false, false) => Self(format!("{}/{rest}", to.0)),
        })
    }
}

impl fmt::Debug for PlainPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainPath(hidden)")
    }
}
