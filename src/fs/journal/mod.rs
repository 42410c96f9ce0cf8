//! Pending changes, kept so that no crash loses them: the ledger is the state, the journal file makes it durable.

pub(crate) mod codec;
pub(crate) mod file;
pub(crate) mod ledger;
pub(crate) mod queue;
