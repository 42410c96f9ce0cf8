//! Commits, branches and tags of a repository.

use super::git::Oid;
use super::trees::{self, Entry};
use crate::hub::local::db;
use rusqlite::{Connection, OptionalExtension, Row};

/// The branch of a repository that is meant if a request names no revision.
pub(in crate::hub::local) const MAIN: &str = "main";
/// Fewest digits of an abbreviated commit id.
const SHORTEST: usize = 7;

/// A commit.
#[derive(Clone, Debug)]
pub(in crate::hub::local) struct Commit {
    pub(in crate::hub::local) row: i64,
    pub(in crate::hub::local) oid: Oid,
    /// Row of the commit before.
    pub(in crate::hub::local) parent: Option<i64>,
    /// Row of its tree.
    pub(in crate::hub::local) tree: i64,
    /// Milliseconds since the epoch.
    pub(in crate::hub::local) created: i64,
    /// `Name <address>`.
    pub(in crate::hub::local) author: String,
    pub(in crate::hub::local) message: String,
    /// Sum of the sizes of its files in bytes.
    pub(in crate::hub::local) size: i64,
}

/// Columns of [`Commit::from_row`].
const COLUMNS: &str = "git_commits.id, oid, parent, tree, created, author, message, size";

impl Commit {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            row: row.get(0)?,
            oid: row.get(1)?,
            parent: row.get(2)?,
            tree: row.get(3)?,
            created: row.get(4)?,
            author: row.get(5)?,
            message: row.get(6)?,
            size: row.get(7)?,
        })
    }

    /// First line of the message.
    pub(in crate::hub::local) fn title(&self) -> &str {
        self.message.lines().next().unwrap_or_default()
    }

    /// Returns the commit that a revision of a repository names: a whole commit id, a branch, a tag, `refs/heads/…`,
    /// `refs/tags/…`, or the first digits of a commit id that no other one has. The first of these that exists counts.
    pub(in crate::hub::local) fn find(
        connection: &Connection,
        repository: i64,
        revision: &str,
    ) -> Result<Option<Self>, db::Error> {
        if let Some(oid) = Oid::parse(revision)
            && let Some(commit) = Self::by_oid(connection, repository, oid)?
        {
            return Ok(Some(commit));
        }
        let names = [
            ("heads", Some(revision)),
            ("tags", Some(revision)),
            ("heads", revision.strip_prefix("refs/heads/")),
            ("tags", revision.strip_prefix("refs/tags/")),
        ];
        for (kind, name) in names.into_iter().filter_map(|(kind, name)| Some((kind, name?))) {
            if let Some(commit) = Self::by_ref(connection, repository, kind, name)? {
                return Ok(Some(commit));
            }
        }
        Self::by_short_id(connection, repository, revision)
    }

    /// Returns the commit of a repository that has this id.
    pub(in crate::hub::local) fn by_oid(
        connection: &Connection,
        repository: i64,
        oid: Oid,
    ) -> Result<Option<Self>, db::Error> {
        let sql = format!("SELECT {COLUMNS} FROM git_commits WHERE repository = ?1 AND oid = ?2");
        Ok(connection.prepare_cached(&sql)?.query_row((repository, oid), Self::from_row).optional()?)
    }

    /// Returns the commit of a branch (`heads`) or tag (`tags`).
    pub(in crate::hub::local) fn by_ref(
        connection: &Connection,
        repository: i64,
        kind: &str,
        name: &str,
    ) -> Result<Option<Self>, db::Error> {
        let sql = format!(
            "SELECT {COLUMNS} FROM git_refs JOIN git_commits ON git_commits.id = target
             WHERE git_refs.repository = ?1 AND kind = ?2 AND name = ?3"
        );
        Ok(connection.prepare_cached(&sql)?.query_row((repository, kind, name), Self::from_row).optional()?)
    }

    /// Returns the only commit whose id starts with these digits.
    fn by_short_id(connection: &Connection, repository: i64, digits: &str) -> Result<Option<Self>, db::Error> {
        let bound =
            |filler: &str| Oid::parse(&format!("{digits}{}", filler.repeat(40usize.checked_sub(digits.len())?)));
        let (Some(first), Some(last)) = (bound("0"), bound("f")) else { return Ok(None) };
        if digits.len() < SHORTEST {
            return Ok(None);
        }
        let sql = format!(
            "SELECT {COLUMNS} FROM git_commits WHERE repository = ?1 AND oid BETWEEN ?2 AND ?3 ORDER BY oid LIMIT 2"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        let found = statement.query_map((repository, first, last), Self::from_row)?;
        let mut found: Vec<Self> = found.collect::<Result<_, _>>()?;
        Ok(if found.len() == 1 { found.pop() } else { None })
    }

    /// Returns the commit before this one.
    pub(in crate::hub::local) fn parent(&self, connection: &Connection) -> Result<Option<Self>, db::Error> {
        let Some(parent) = self.parent else { return Ok(None) };
        let sql = format!("SELECT {COLUMNS} FROM git_commits WHERE id = ?1");
        Ok(connection.prepare_cached(&sql)?.query_row([parent], Self::from_row).optional()?)
    }
}

/// Returns this commit and those before it, newest first, at most `limit`.
pub(in crate::hub::local) fn log(
    connection: &Connection,
    from: Commit,
    limit: usize,
) -> Result<Vec<Commit>, db::Error> {
    let mut commits = vec![from];
    while commits.len() < limit
        && let Some(parent) = commits.last().map(|last| last.parent(connection)).transpose()?.flatten()
    {
        commits.push(parent);
    }
    Ok(commits)
}

/// A branch or tag: kind (`heads` or `tags`), name, commit.
pub(in crate::hub::local) type Ref = (String, String, Oid);

/// Returns all branches and tags of a repository, by kind and name.
pub(in crate::hub::local) fn refs(connection: &Connection, repository: i64) -> Result<Vec<Ref>, db::Error> {
    let mut statement = connection.prepare_cached(
        "SELECT kind, name, oid FROM git_refs JOIN git_commits ON git_commits.id = target
         WHERE git_refs.repository = ?1 ORDER BY kind, name",
    )?;
    let rows = statement.query_map([repository], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// Returns for each entry of `commit` the newest commit that has changed it. Costs a look-up of each entry in each
/// commit since its change.
pub(in crate::hub::local) fn last_commits(
    connection: &Connection,
    commit: &Commit,
    entries: &[Entry],
) -> Result<Vec<Commit>, db::Error> {
    let mut last: Vec<Option<Commit>> = vec![None; entries.len()];
    let mut open: Vec<usize> = (0..entries.len()).collect();
    let mut commit = commit.clone();
    while !open.is_empty() {
        let parent = commit.parent(connection)?;
        let mut unchanged = Vec::new();
        for at in open {
            let before = match &parent {
                Some(parent) => trees::find(connection, parent.tree, &entries[at].path)?,
                None => None,
            };
            match before.is_some_and(|before| (before.oid, before.mode) == (entries[at].oid, entries[at].mode)) {
                true => unchanged.push(at),
                false => last[at] = Some(commit.clone()),
            }
        }
        open = unchanged;
        let Some(parent) = parent else { break };
        commit = parent;
    }
    Ok(last.into_iter().flatten().collect())
}
