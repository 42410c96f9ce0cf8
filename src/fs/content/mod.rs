//! Contents of files: reading, local edits, copies, and the disk space that they may take.

pub(crate) mod copy;
pub(crate) mod edit;
pub(crate) mod quota;
pub(crate) mod read;
pub(crate) mod write;
