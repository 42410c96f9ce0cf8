//! Contents of files: reads, local edits, copies, and the limit of their disk space.

pub(crate) mod attr;
pub(crate) mod copy;
pub(crate) mod edit;
pub(crate) mod prefetch;
pub(crate) mod promises;
pub(crate) mod quota;
pub(crate) mod read;
pub(crate) mod write;

use crate::fs::gate::WriteGate;
use crate::fs::handle::Handles;
use crate::fs::journal::file::Journal;
use crate::fs::options::Options;
use crate::fs::sync::policy::Policy;
use crate::fs::sync::schedule::Schedule;
use crate::fs::tree::inode::InodeTable;
use crate::fs::tree::listing::Directories;
use crate::store::View;
use crate::store::staging::Pool;
use prefetch::Budget;
use quota::Quota;
use std::sync::Arc;

/// Reads and changes contents and attributes of files.
pub(crate) struct Contents {
    pub(in crate::fs) view: Arc<dyn View>,
    pub(in crate::fs) options: Arc<Options>,
    pub(in crate::fs) tree: Arc<InodeTable>,
    pub(in crate::fs) handles: Arc<Handles>,
    pub(in crate::fs) journal: Arc<Journal>,
    pub(in crate::fs) pool: Arc<Pool>,
    pub(in crate::fs) schedule: Arc<Schedule>,
    pub(in crate::fs) gate: Arc<WriteGate>,
    pub(in crate::fs) policy: Policy,
    pub(in crate::fs) directories: Arc<Directories>,
    pub(in crate::fs) quota: Arc<Quota>,
    /// Memory for the read-ahead of all handles.
    pub(in crate::fs) read_ahead: Budget,
}
