//! Failures of an import.

use super::folder::FolderError;
use crate::hub::Error;
use crate::hub::local::db;
use crate::xet;

/// Failure of an import. The repository is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The folder can't be imported.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Not the name of a branch or tag.
    #[error("invalid name of a branch or tag: {0:?}")]
    Ref(String),
    /// Content could not be stored.
    #[error("cannot store {path}: {source}")]
    Store {
        /// The file.
        path: String,
        /// The reason.
        source: xet::Error,
    },
    /// The Hub's directory or database failed.
    #[error(transparent)]
    Hub(#[from] Error),
}

impl ImportError {
    pub(super) fn hub(message: String) -> Self {
        Self::Hub(Error::Local(message))
    }
}

impl From<db::Error> for ImportError {
    fn from(error: db::Error) -> Self {
        Self::hub(error.to_string())
    }
}

impl From<rusqlite::Error> for ImportError {
    fn from(error: rusqlite::Error) -> Self {
        db::Error::from(error).into()
    }
}
