//! Rows of the table `repositories`.

use super::id::RepositoryId;
use crate::hub::local::db;
use rusqlite::{Connection, OptionalExtension};

/// A repository's row.
#[derive(Clone, Debug)]
pub(in crate::hub::local) struct Repository {
    /// Row, also of its content in the table `buckets`: CAS tokens are bound to it.
    pub(in crate::hub::local) row: i64,
    pub(in crate::hub::local) id: RepositoryId,
    pub(in crate::hub::local) private: bool,
    /// Only its owner reads more than its description.
    pub(in crate::hub::local) gated: bool,
    /// Milliseconds since the epoch.
    pub(in crate::hub::local) created: i64,
}

impl Repository {
    /// Returns the repository of this name.
    pub(in crate::hub::local) fn find(connection: &Connection, id: &RepositoryId) -> Result<Option<Self>, db::Error> {
        let sql =
            "SELECT id, private, gated, created FROM repositories WHERE kind = ?1 AND namespace = ?2 AND name = ?3";
        let mut statement = connection.prepare_cached(sql)?;
        let found = statement.query_row((id.kind().as_str(), id.namespace(), id.name()), |row| {
            let (private, gated) = (row.get(1)?, row.get(2)?);
            Ok(Self { row: row.get(0)?, id: id.clone(), private, gated, created: row.get(3)? })
        });
        Ok(found.optional()?)
    }
}
