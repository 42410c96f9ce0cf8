//! Who a request comes from, and what the Hub's CAS tokens say.
//!
//! Access tokens are stored as BLAKE3 digests only (they are random, so a fast hash is as good as a slow one). CAS
//! tokens are not stored at all: they carry bucket, scope and expiry under a MAC whose key is in the database, so one
//! from any process that serves the directory is good in all of them. The two kinds are never taken for each other: an
//! access token has no MAC, and a CAS token is in no table. Times are Unix seconds.

use super::db;
use crate::xet::Scope;
use rusqlite::{OptionalExtension, Transaction};
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// Lifetime of a CAS token, in seconds: clients refresh up to 60 s early, and a token outlives
/// its revocation by this much.
pub(crate) const CAS_TOKEN_LIFE: u64 = 900;
/// What a CAS token starts with, so that people and secret scanners can tell it from an access token.
const CAS_PREFIX: &str = "xet_";
/// Payload of a CAS token: version, bucket id (big-endian), scope, expiry (big-endian).
const CAS_PAYLOAD: usize = 1 + 8 + 1 + 8 + CAS_NONCE;
/// Random bytes in a CAS token: one that was refused is never given out again, whatever the clock says.
const CAS_NONCE: usize = 8;
/// Version of that payload.
const CAS_VERSION: u8 = 1;
/// Purpose of the MAC in a CAS token.
const CAS_PURPOSE: &str = "cas token v1";
/// Name of the MAC key in the table `secrets`.
const KEY_NAME: &str = "mac";

/// What a CAS token was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CasGrant {
    /// Row of the bucket.
    pub(crate) bucket: i64,
    /// What it may do; `Write` includes `Read`.
    pub(crate) scope: Scope,
    /// Unix seconds.
    pub(crate) expires: u64,
}

/// Why a CAS token is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefused {
    /// None, or none of ours: 401.
    #[error("invalid CAS token")]
    Invalid,
    /// It was good once: 401.
    #[error("expired CAS token")]
    Expired,
    /// A read token for a write: 403.
    #[error("this CAS token may only read")]
    ReadOnly,
}

/// Keys of the Hub. Shared by all processes that serve the directory.
pub(crate) struct Auth {
    key: Zeroizing<[u8; 32]>,
}

impl Auth {
    /// Loads the key, or makes it the first time.
    pub(crate) fn load(transaction: &Transaction<'_>) -> Result<Self, db::Error> {
        let mut key = Zeroizing::new([0; 32]);
        let stored = transaction
            .query_row("SELECT value FROM secrets WHERE name = ?1", [KEY_NAME], |row| row.get::<_, [u8; 32]>(0))
            .optional()?;
        match stored {
            Some(stored) => *key = stored,
            None => {
                random(key.as_mut_slice())?;
                transaction.execute("INSERT INTO secrets (name, value) VALUES (?1, ?2)", (KEY_NAME, key.as_slice()))?;
            }
        }
        Ok(Self { key })
    }

    /// MAC of `message` for `purpose`. Comparing two is constant-time.
    pub(crate) fn mac(&self, purpose: &str, message: &[u8]) -> blake3::Hash {
        let subkey = blake3::keyed_hash(&self.key, purpose.as_bytes());
        blake3::keyed_hash(subkey.as_bytes(), message)
    }

    /// A CAS token.
    pub(crate) fn cas_token(&self, grant: CasGrant) -> Result<String, db::Error> {
        let mut payload = [0; CAS_PAYLOAD];
        payload[0] = CAS_VERSION;
        payload[1..9].copy_from_slice(&grant.bucket.to_be_bytes());
        payload[9] = match grant.scope {
            Scope::Read => 0,
            Scope::Write => 1,
        };
        payload[10..18].copy_from_slice(&grant.expires.to_be_bytes());
        random(&mut payload[18..])?;
        let mac = self.mac(CAS_PURPOSE, &payload);
        Ok(format!("{CAS_PREFIX}{}{}", to_hex(&payload), mac.to_hex()))
    }

    /// Checks a bearer text for `need` at time `now`.
    pub(crate) fn check_cas_token(&self, bearer: &str, need: Scope, now: u64) -> Result<CasGrant, TokenRefused> {
        let grant = self.open_cas_token(bearer).ok_or(TokenRefused::Invalid)?;
        if grant.expires <= now {
            return Err(TokenRefused::Expired);
        }
        if need == Scope::Write && grant.scope == Scope::Read {
            return Err(TokenRefused::ReadOnly);
        }
        Ok(grant)
    }

    fn open_cas_token(&self, bearer: &str) -> Option<CasGrant> {
        let text = bearer.strip_prefix(CAS_PREFIX)?.as_bytes();
        let (payload, mac) = text.split_at_checked(2 * CAS_PAYLOAD)?;
        let payload = from_hex(payload)?;
        let mac: [u8; 32] = from_hex(mac)?.try_into().ok()?;
        if self.mac(CAS_PURPOSE, &payload) != mac {
            return None;
        }
        let (&[version], rest) = payload.split_first_chunk()?;
        let (bucket, rest) = rest.split_first_chunk()?;
        let (&[scope], rest) = rest.split_first_chunk()?;
        let scope = match scope {
            0 => Scope::Read,
            1 => Scope::Write,
            _ => return None,
        };
        let expires = u64::from_be_bytes(*rest.first_chunk()?);
        (version == CAS_VERSION).then_some(CasGrant { bucket: i64::from_be_bytes(*bucket), scope, expires })
    }
}

/// Fills `bytes` with randomness of the system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), db::Error> {
    getrandom::fill(bytes).map_err(|e| db::Error::Commit(format!("no randomness: {e}")))
}

/// Seconds since the epoch.
pub(crate) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Lower-case hex.
pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of a hex text, either case.
pub(crate) fn from_hex(text: &[u8]) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_chunks::<2>() else { return None };
    let digit = |byte: u8| (byte as char).to_digit(16);
    pairs.iter().map(|&[high, low]| u8::try_from(digit(high)? << 4 | digit(low)?).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth() -> Auth {
        Auth { key: Zeroizing::new([7; 32]) }
    }

    #[test]
    fn a_cas_token_is_good_for_its_scope_until_it_expires() {
        let auth = auth();
        let read = CasGrant { bucket: 5, scope: Scope::Read, expires: 100 };
        let write = CasGrant { scope: Scope::Write, ..read };
        let (read_token, write_token) = (auth.cas_token(read).unwrap(), auth.cas_token(write).unwrap());
        assert_ne!(read_token, auth.cas_token(read).unwrap(), "no token is given out twice");
        assert_eq!(auth.check_cas_token(&read_token, Scope::Read, 99), Ok(read));
        assert_eq!(auth.check_cas_token(&write_token, Scope::Read, 99), Ok(write));
        assert_eq!(auth.check_cas_token(&write_token, Scope::Write, 99), Ok(write));
        assert_eq!(auth.check_cas_token(&read_token, Scope::Write, 99), Err(TokenRefused::ReadOnly));
        assert_eq!(auth.check_cas_token(&read_token, Scope::Read, 100), Err(TokenRefused::Expired));
    }

    #[test]
    fn an_altered_or_foreign_cas_token_is_invalid() {
        let auth = auth();
        let token = auth.cas_token(CasGrant { bucket: 5, scope: Scope::Read, expires: 100 }).unwrap();
        for at in 0..token.len() {
            let mut altered = token.clone().into_bytes();
            altered[at] = if altered[at] == b'0' { b'1' } else { b'0' };
            let altered = String::from_utf8(altered).unwrap();
            assert_eq!(auth.check_cas_token(&altered, Scope::Read, 1), Err(TokenRefused::Invalid), "byte {at}");
        }
        for hostile in ["", "xet_", "hf_local", &token[..token.len() - 1], &format!("{token}0"), "xet_é"] {
            assert_eq!(auth.check_cas_token(hostile, Scope::Read, 1), Err(TokenRefused::Invalid));
        }
        let other = Auth { key: Zeroizing::new([8; 32]) };
        assert_eq!(other.check_cas_token(&token, Scope::Read, 1), Err(TokenRefused::Invalid));
    }
}
