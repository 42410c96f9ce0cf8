//! Repositories of models, datasets and Spaces: names, files of each commit, history, and imports (Hub API spec, 5).
//!
//! A repository is a history of commits, as in Git, and each commit is a tree of files. Small files are stored in the
//! database. Large ones are in Xet: their content belongs to the repository's own row in the table `buckets`, which
//! CAS tokens are bound to.
//!
//! * [`git`]: ids of Git objects. [`id`]: names of repositories. [`trees`]: files and folders of a commit.
//!   [`history`]: commits, branches and tags.
//! * [`import`]: puts a folder into a repository, from [`folder`] through [`content`] to [`record`].
//!
//! Clients can only read repositories.

mod content;
mod error;
mod folder;
pub(super) mod git;
pub(super) mod history;
mod id;
mod import;
mod record;
pub(super) mod repository;
pub(super) mod trees;

pub use error::ImportError;
pub use folder::FolderError;
pub use id::{InvalidRepositoryId, RepositoryId};
pub use import::ImportOptions;
pub use record::Imported;
