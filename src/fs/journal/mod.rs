//! Pending changes, stored so that no crash loses them. The ledger is the state, and the journal file makes it
//! durable.

pub(crate) mod codec;
pub(crate) mod file;
pub(crate) mod ledger;
pub(crate) mod queue;
