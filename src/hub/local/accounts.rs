//! Users and access tokens of an embedded Hub, for `hugbucket hub user|token` and for requests.
//!
//! A user owns the namespace of the same name. A fresh directory has the user `local` with the well-known token
//! `hf_local`. That
//! token is good until it is revoked: a new token for any user leaves it alone. A server with a process token
//! ([`super::ServeOptions::process_token`]) accepts none of them.

use super::db;
use super::{Error, LocalHub, auth};
use crate::hub::BucketId;
use rusqlite::{Connection, OptionalExtension, Transaction};
use std::time::{SystemTime, UNIX_EPOCH};
use zeroize::Zeroizing;

/// The user that a directory starts with.
pub(crate) const LOCAL_USER: &str = "local";
/// The token that a directory starts with.
const DEFAULT_TOKEN: &str = "hf_local";
/// Random bytes in a token.
const TOKEN_BYTES: usize = 20;
/// Last characters of a token that a listing shows, to tell tokens apart.
const HINT: usize = 4;

/// What a token may do in the namespace of its user. Public buckets of others can always be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Read.
    Read,
    /// Read and write.
    Write,
}

impl Role {
    /// As the API and the database spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
        }
    }

    fn parse(text: &str) -> Self {
        if text == "write" { Self::Write } else { Self::Read }
    }
}

/// An access token as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number, for revoking it.
    pub id: i64,
    /// Its user.
    pub user: String,
    /// What it may do.
    pub role: Role,
    /// Its last characters.
    pub hint: String,
    /// Milliseconds since the epoch.
    pub created: i64,
}

/// An access token just made: the only time that it can be read.
pub struct NewToken {
    /// Its number, for revoking it.
    pub id: i64,
    /// The token itself.
    pub secret: Zeroizing<String>,
}

/// Who holds a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) user: i64,
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) hint: String,
    pub(crate) created: i64,
}

impl LocalHub {
    /// Adds a user, with the namespace of that name.
    pub async fn add_user(&self, name: &str) -> Result<(), Error> {
        BucketId::new(name, "x").map_err(|_| Error::Local(format!("invalid user name {name:?}")))?;
        if name == "me" {
            return Err(Error::Local("the name \"me\" is reserved: it means the user of the token".into()));
        }
        let name = name.to_owned();
        self.change(move |t| {
            let added = t.execute(
                "INSERT INTO users (name, created) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
                (&name, now_millis()),
            )?;
            if added == 0 { Err(Error::Local(format!("user {name} exists already")).into()) } else { Ok(()) }
        })
        .await
    }

    /// Names of all users.
    pub async fn list_users(&self) -> Result<Vec<String>, Error> {
        self.look(|c| {
            let mut statement = c.prepare("SELECT name FROM users ORDER BY name")?;
            let names = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok(names)
        })
        .await
    }

    /// Removes a user with all tokens. The buckets stay, for whoever has that name next.
    pub async fn remove_user(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.change(move |t| match t.execute("DELETE FROM users WHERE name = ?1", [&name])? {
            0 => Err(no_user(&name)),
            _ => Ok(()),
        })
        .await
    }

    /// Creates a token for a user. All others stay good, the well-known one among them.
    pub async fn add_token(&self, user: &str, role: Role) -> Result<NewToken, Error> {
        let user = user.to_owned();
        self.change(move |t| {
            let owner = t.query_row("SELECT id FROM users WHERE name = ?1", [&user], |row| row.get(0)).optional()?;
            let owner: i64 = owner.ok_or_else(|| no_user(&user))?;
            let secret = random_token()?;
            let id = insert_token(t, owner, &secret, role)?;
            Ok(NewToken { id, secret })
        })
        .await
    }

    /// All tokens, without their secrets.
    pub async fn list_tokens(&self) -> Result<Vec<Token>, Error> {
        self.look(|c| {
            let mut statement = c.prepare(
                "SELECT tokens.id, users.name, role, hint, tokens.created FROM tokens JOIN users ON users.id = user ORDER BY tokens.id",
            )?;
            let token = |row: &rusqlite::Row<'_>| {
                let role = Role::parse(row.get_ref(2)?.as_str()?);
                Ok(Token { id: row.get(0)?, user: row.get(1)?, role, hint: row.get(3)?, created: row.get(4)? })
            };
            let tokens = statement.query_map([], token)?.collect::<Result<_, _>>()?;
            Ok(tokens)
        })
        .await
    }

    /// Revokes a token. CAS tokens got with it run out by themselves, within minutes.
    pub async fn revoke_token(&self, id: i64) -> Result<(), Error> {
        self.change(move |t| match t.execute("DELETE FROM tokens WHERE id = ?1", [id])? {
            0 => Err(Error::Local(format!("no token {id}")).into()),
            _ => Ok(()),
        })
        .await
    }

    /// Whether the well-known token `hf_local` is still taken: then nobody but this machine should reach the Hub.
    pub async fn takes_default_token(&self) -> Result<bool, Error> {
        self.look(|c| Ok(holder(c, DEFAULT_TOKEN)?.is_some())).await
    }

    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.db.read(work).await.map_err(Error::from)
    }

    async fn change<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Error> {
        self.shared.db.write(work).await.map_err(Error::from)
    }
}

/// Either the database's failure or an answer to the caller.
struct Failure(Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error)
    }
}

impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        Self(Error::Local(error.to_string()))
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        db::Error::from(error).into()
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.0
    }
}

fn no_user(name: &str) -> Failure {
    Error::Local(format!("no user {name:?}")).into()
}

/// Puts user and token into a database that has never been set up.
pub(crate) fn set_up(transaction: &Transaction<'_>) -> Result<(), db::Error> {
    // The keys are made once, right after this; without them the database is new.
    let known: bool = transaction.query_row("SELECT EXISTS (SELECT 1 FROM secrets)", [], |row| row.get(0))?;
    if known {
        return Ok(());
    }
    transaction.execute("INSERT INTO users (name, created) VALUES (?1, ?2)", (LOCAL_USER, now_millis()))?;
    insert_token(transaction, transaction.last_insert_rowid(), DEFAULT_TOKEN, Role::Write)?;
    Ok(())
}

/// Who holds this token, if anybody.
pub(crate) fn holder(connection: &Connection, token: &str) -> Result<Option<Holder>, db::Error> {
    let mut statement = connection.prepare_cached(
        "SELECT users.id, users.name, role, hint, tokens.created FROM tokens JOIN users ON users.id = user WHERE digest = ?1",
    )?;
    let found = statement.query_row([digest(token)], |row| {
        let role = Role::parse(row.get_ref(2)?.as_str()?);
        Ok(Holder { user: row.get(0)?, name: row.get(1)?, role, hint: row.get(3)?, created: row.get(4)? })
    });
    Ok(found.optional()?)
}

/// Milliseconds since the epoch.
pub(crate) fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

fn insert_token(transaction: &Transaction<'_>, user: i64, token: &str, role: Role) -> Result<i64, db::Error> {
    let hint = &token[token.len().saturating_sub(HINT)..];
    transaction.execute(
        "INSERT INTO tokens (user, digest, role, hint, created) VALUES (?1, ?2, ?3, ?4, ?5)",
        (user, digest(token), role.as_str(), hint, now_millis()),
    )?;
    Ok(transaction.last_insert_rowid())
}

fn random_token() -> Result<Zeroizing<String>, db::Error> {
    let mut bytes = Zeroizing::new([0; TOKEN_BYTES]);
    auth::random(bytes.as_mut_slice())?;
    let digits = Zeroizing::new(auth::to_hex(bytes.as_slice()));
    Ok(Zeroizing::new(format!("hf_{}", digits.as_str())))
}

/// What the database keeps of a token.
fn digest(token: &str) -> [u8; 32] {
    *blake3::hash(token.as_bytes()).as_bytes()
}
