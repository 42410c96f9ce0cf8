//! Git objects: their ids, and the text that the ids are computed of.
//!
//! The Hub shows the ids of Git. They are the SHA-1 of an object's type, its length, a NUL byte and its content. A
//! folder is a tree: a sorted list of names, modes and ids. A commit is a text that names its tree and its parent. A
//! file that is kept outside of Git is a blob too: of a short text, the LFS pointer, that names its SHA-256.
//!
//! Does no I/O and reads no clock.

use crate::hub::local::auth::{from_hex, to_hex};
use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use sha1::{Digest, Sha1};
use std::fmt;

/// Bytes of an id.
const OID: usize = 20;
/// First line of an LFS pointer file.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n";

/// Id of a Git object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::hub::local) struct Oid(pub(in crate::hub::local) [u8; OID]);

impl Oid {
    /// Parses 40 hex digits.
    pub(in crate::hub::local) fn parse(text: &str) -> Option<Self> {
        from_hex(text.as_bytes())?.try_into().ok().map(Self)
    }

    fn of(kind: &str, content: &[u8]) -> Self {
        let hash = Sha1::new().chain_update(format!("{kind} {}\0", content.len())).chain_update(content);
        Self(hash.finalize().into())
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

impl ToSql for Oid {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for Oid {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        <[u8; OID]>::column_result(value).map(Self)
    }
}

/// Returns the id of a file with this content.
pub(in crate::hub::local) fn blob_id(content: &[u8]) -> Oid {
    Oid::of("blob", content)
}

/// Returns true if Git LFS would take the content for a pointer.
pub(in crate::hub::local) fn is_pointer(content: &[u8]) -> bool {
    content.starts_with(POINTER.as_bytes())
}

/// Returns the LFS pointer file of a file with this SHA-256 and size in bytes.
pub(in crate::hub::local) fn pointer(sha256: &[u8; 32], size: u64) -> String {
    format!("{POINTER}oid sha256:{}\nsize {size}\n", to_hex(sha256))
}

/// Entry of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::hub::local) enum Mode {
    /// File.
    File,
    /// File that may be executed.
    Executable,
    /// Folder.
    Folder,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::File => "100644",
            Self::Executable => "100755",
            Self::Folder => "40000",
        }
    }
}

/// Returns the id of a tree. Its entries are in the order of Git: by name, with a `/` after those of folders. The names
/// given here end without that slash.
pub(in crate::hub::local) fn tree_id<'a>(entries: impl Iterator<Item = (&'a [u8], Mode, Oid)>) -> Oid {
    let mut content = Vec::new();
    for (name, mode, oid) in entries {
        content.extend_from_slice(mode.as_str().as_bytes());
        content.push(b' ');
        content.extend_from_slice(name);
        content.push(0);
        content.extend_from_slice(&oid.0);
    }
    Oid::of("tree", &content)
}

/// Content of a commit object.
#[derive(Clone, Copy, Debug)]
pub(in crate::hub::local) struct CommitText<'a> {
    pub(in crate::hub::local) tree: Oid,
    pub(in crate::hub::local) parent: Option<Oid>,
    /// Author and committer: `Name <address>`.
    pub(in crate::hub::local) author: &'a str,
    /// Unix seconds.
    pub(in crate::hub::local) seconds: i64,
    /// The message, without a line break at its end.
    pub(in crate::hub::local) message: &'a str,
}

impl CommitText<'_> {
    /// Returns the id of the commit. Its time zone is UTC.
    pub(in crate::hub::local) fn id(&self) -> Oid {
        let parent = self.parent.map(|parent| format!("parent {parent}\n")).unwrap_or_default();
        let by = format!("{} {} +0000", self.author, self.seconds);
        let text = format!("tree {}\n{parent}author {by}\ncommitter {by}\n\n{}\n", self.tree, self.message);
        Oid::of("commit", text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::path::Path;
    use std::process::{Command, Stdio};

    /// Runs Git with fixed author and time; gives the first word of its output.
    fn git(folder: &Path, arguments: &[&str], input: &[u8]) -> String {
        let mut command = Command::new("git");
        for (name, value) in [
            ("GIT_AUTHOR_NAME", "A U"),
            ("GIT_AUTHOR_EMAIL", "a@example.org"),
            ("GIT_AUTHOR_DATE", "1700000000 +0000"),
            ("GIT_COMMITTER_NAME", "A U"),
            ("GIT_COMMITTER_EMAIL", "a@example.org"),
            ("GIT_COMMITTER_DATE", "1700000000 +0000"),
        ] {
            command.env(name, value);
        }
        let command = command.args(arguments).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success(), "git {arguments:?}");
        String::from_utf8(done.stdout).unwrap().split_whitespace().next().unwrap_or_default().to_owned()
    }

    fn has_git() -> bool {
        Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok_and(|status| status.success())
    }

    #[test]
    fn known_objects_have_their_published_ids() {
        assert_eq!(blob_id(b"").to_string(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(blob_id(b"hello\n").to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(tree_id(std::iter::empty()).to_string(), "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        let id = blob_id(b"x");
        assert_eq!(Oid::parse(&id.to_string()), Some(id));
        assert_eq!((Oid::parse("e69d"), Oid::parse(&"g".repeat(40))), (None, None));
    }

    #[test]
    fn ids_are_those_of_git() {
        if !has_git() {
            eprintln!("skipped: no git here");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let git = |arguments: &[&str], input: &[u8]| git(dir.path(), arguments, input);
        git(&["init", "--quiet"], b"");
        let pointer = pointer(&[0xab; 32], 12_345_678_901);
        for content in [&b""[..], b"text\n", pointer.as_bytes(), &[0; 70_000]] {
            assert_eq!(git(&["hash-object", "-w", "--stdin"], content), blob_id(content).to_string());
        }
        let blob = blob_id(b"text\n");
        let inner = tree_id([(&b"z"[..], Mode::File, blob)].into_iter());
        assert_eq!(git(&["mktree"], format!("100644 blob {blob}\tz\n").as_bytes()), inner.to_string());
        // A folder `a` stands after `a-b` and before `a0`: as if its name ended with a slash.
        let listed = format!("100755 blob {blob}\ta-b\n040000 tree {inner}\ta\n100644 blob {blob}\ta0\n");
        let tree = tree_id(
            [(&b"a-b"[..], Mode::Executable, blob), (b"a", Mode::Folder, inner), (b"a0", Mode::File, blob)].into_iter(),
        );
        assert_eq!(git(&["mktree"], listed.as_bytes()), tree.to_string());
        let text = CommitText {
            tree,
            parent: None,
            author: "A U <a@example.org>",
            seconds: 1_700_000_000,
            message: "Title\n\nMore of it: ü",
        };
        let first = text.id();
        let tree = tree.to_string();
        assert_eq!(git(&["commit-tree", &tree, "-m", text.message], b""), first.to_string());
        let second = CommitText { parent: Some(first), message: "Second", ..text }.id();
        let parent = first.to_string();
        assert_eq!(git(&["commit-tree", &tree, "-p", &parent, "-m", "Second"], b""), second.to_string());
    }
}
