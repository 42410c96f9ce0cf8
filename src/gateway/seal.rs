//! Seals the rows of the state. On a source without a key a row is kept as it is.
//!
//! A row is sealed with the journal subkey of the source's key (`docs/format.md`, section 12). Each row takes a random
//! journal id of its own, so no nonce is used twice. The purpose of the row is part of what is sealed. A row that was
//! moved to another key of the table doesn't open.
//!
//! ```text
//! row     = journal id (32 random bytes) | sealed(journal id, sequence number 0, payload)
//! payload = length of the purpose, u16 LE | purpose | content
//! ```

use super::Error;
use crate::store::View;

const ID: usize = 32;

/// Seals the content of the row with this purpose.
pub(super) fn seal(view: &dyn View, purpose: &[u8], content: &[u8]) -> Result<Vec<u8>, Error> {
    let mut id = [0; ID];
    getrandom::fill(&mut id).map_err(|error| Error::State(format!("no randomness: {error}")))?;
    let mut payload = Vec::with_capacity(2 + purpose.len() + content.len());
    let len = u16::try_from(purpose.len()).map_err(|_| Error::State("the name of a row is too long".into()))?;
    payload.extend(len.to_le_bytes());
    payload.extend(purpose);
    payload.extend(content);
    let mut row = id.to_vec();
    row.extend(view.sealer().seal(&id, 0, &payload)?);
    Ok(row)
}

/// Opens the row with this purpose.
pub(super) fn open(view: &dyn View, purpose: &[u8], row: &[u8]) -> Result<Vec<u8>, Error> {
    let damaged = || Error::State("a row of the state is damaged, or belongs elsewhere".into());
    let (id, sealed) = row.split_first_chunk::<ID>().ok_or_else(damaged)?;
    let payload = view.sealer().open(id, 0, sealed).map_err(|_| damaged())?;
    let (len, rest) = payload.split_first_chunk::<2>().ok_or_else(damaged)?;
    let (found, content) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len))).ok_or_else(damaged)?;
    if found != purpose { Err(damaged()) } else { Ok(content.to_vec()) }
}
