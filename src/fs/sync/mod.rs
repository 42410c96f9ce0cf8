//! Uploads pending contents, commits pending changes, and compares with the Hub what was committed.

pub(crate) mod commit;
pub(crate) mod conflict;
pub(crate) mod pending;
pub(crate) mod policy;
pub(crate) mod readback;
pub(crate) mod schedule;
pub(crate) mod twins;
