//! Who may see and change what: a user owns the namespace of that name; public buckets are for everybody to read.
//!
//! A bucket that a caller may not see is answered exactly as one that doesn't exist: 404, or 401 to a caller
//! without a token.

use super::{Call, Target};
use crate::hub::local::accounts::{self, Holder, LOCAL_USER, Role};
use crate::hub::local::errors::ApiError;
use crate::hub::local::{Site, db};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use rusqlite::{Connection, OptionalExtension};

/// What a namespace of `me` stands for: the caller's own.
const MINE: &str = "me";

/// Whoever sent a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// No token.
    Anonymous,
    /// The process that serves the directory to itself; as it has that, it may do everything.
    Process,
    /// A token of the database.
    User(Holder),
}

impl Caller {
    /// Returns the error for a bucket that isn't there, or that the caller may not know of.
    pub(super) fn repo_not_found(&self) -> ApiError {
        match self {
            Self::Anonymous => ApiError::repo_needs_token(),
            Self::Process | Self::User(_) => ApiError::repo_not_found(),
        }
    }

    /// User name.
    pub(super) fn name(&self) -> Option<&str> {
        match self {
            Self::Anonymous => None,
            Self::Process => Some(LOCAL_USER),
            Self::User(holder) => Some(&holder.name),
        }
    }

    /// `namespace`, with `me` replaced by the caller's own.
    pub(super) fn resolve(&self, namespace: &str) -> Result<String, ApiError> {
        if namespace != MINE {
            return Ok(namespace.to_owned());
        }
        self.name().map(str::to_owned).ok_or_else(ApiError::token_needed)
    }

    /// Whether private buckets of a namespace are the caller's to read.
    pub(super) fn sees_private(&self, namespace: &str) -> bool {
        match self {
            Self::Anonymous => false,
            Self::Process => true,
            Self::User(holder) => holder.name == namespace,
        }
    }

    /// An error unless the caller may write in a namespace.
    pub(super) fn may_write(&self, namespace: &str) -> Result<(), ApiError> {
        match self {
            Self::Anonymous => Err(ApiError::token_needed()),
            Self::Process => Ok(()),
            Self::User(holder) if holder.name != namespace => {
                Err(ApiError::forbidden(format!("You have no write access to namespace {namespace}")))
            }
            Self::User(holder) if holder.role == Role::Read => Err(ApiError::forbidden("This token may only read")),
            Self::User(_) => Ok(()),
        }
    }
}

/// Returns the sender of these headers. A bad token is an error even if none is needed. Where the
/// process serves itself, it alone is let in: other users of the machine can reach the port too,
/// and the tokens of the database may be well known.
pub(super) async fn identify(site: &Site, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let ours = site.options.process_token.as_deref();
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return if ours.is_none() { Ok(Caller::Anonymous) } else { Err(ApiError::token_needed()) };
    };
    let bearer = value.to_str().ok().and_then(|text| text.split_once(' '));
    let Some(("Bearer" | "bearer", token)) = bearer else { return Err(ApiError::bad_credentials()) };
    let token = token.trim();
    if let Some(ours) = ours {
        // Digests are compared, and in constant time: neither length nor content of the process's token shows.
        let is_ours = blake3::hash(ours.as_bytes()) == blake3::hash(token.as_bytes());
        return if is_ours { Ok(Caller::Process) } else { Err(ApiError::bad_credentials()) };
    }
    let token = zeroize::Zeroizing::new(token.to_owned());
    let holder = site.shared.db.read(move |c| accounts::holder(c, &token)).await?;
    holder.map(Caller::User).ok_or_else(ApiError::bad_credentials)
}

/// A bucket's row.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) id: i64,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) private: bool,
    pub(super) created: i64,
    pub(super) updated: i64,
    pub(super) size: i64,
    pub(super) files: i64,
    pub(super) region: Option<String>,
    pub(super) resource_group: Option<String>,
    /// Number of the newest change in the table `events`.
    pub(super) event_seq: i64,
    /// Time up to which no changes were recorded there.
    pub(super) event_since: i64,
}

/// Columns of [`Bucket::from_row`].
pub(super) const COLUMNS: &str =
    "buckets.id, buckets.namespace, buckets.name, private, created, updated, size, files, region,
     resource_group, event_seq, event_since";

impl Bucket {
    pub(super) fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get(0)?,
            namespace: row.get(1)?,
            name: row.get(2)?,
            private: row.get(3)?,
            created: row.get(4)?,
            updated: row.get(5)?,
            size: row.get(6)?,
            files: row.get(7)?,
            region: row.get(8)?,
            resource_group: row.get(9)?,
            event_seq: row.get(10)?,
            event_since: row.get(11)?,
        })
    }

    /// The bucket that has this name now.
    pub(super) fn find(connection: &Connection, namespace: &str, name: &str) -> Result<Option<Self>, db::Error> {
        let sql = format!("SELECT {COLUMNS} FROM buckets WHERE namespace = ?1 AND name = ?2 AND kind = 0");
        let mut statement = connection.prepare_cached(&sql)?;
        Ok(statement.query_row((namespace, name), Self::from_row).optional()?)
    }

    /// The bucket in this row.
    pub(super) fn by_row(connection: &Connection, row: i64) -> Result<Option<Self>, db::Error> {
        let sql = format!("SELECT {COLUMNS} FROM buckets WHERE id = ?1 AND kind = 0");
        let mut statement = connection.prepare_cached(&sql)?;
        Ok(statement.query_row([row], Self::from_row).optional()?)
    }

    /// The bucket that has this name, or else had it.
    pub(super) fn find_anywhere(
        connection: &Connection,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Self>, db::Error> {
        match Self::find(connection, namespace, name)? {
            None => Self::find_moved(connection, namespace, name),
            here => Ok(here),
        }
    }

    /// The bucket that had this name before it was moved.
    pub(super) fn find_moved(connection: &Connection, namespace: &str, name: &str) -> Result<Option<Self>, db::Error> {
        let sql = format!(
            "SELECT {COLUMNS} FROM moved JOIN buckets ON buckets.id = moved.bucket
             WHERE moved.namespace = ?1 AND moved.name = ?2 AND kind = 0"
        );
        let mut statement = connection.prepare_cached(&sql)?;
        Ok(statement.query_row((namespace, name), Self::from_row).optional()?)
    }

    /// Whether a caller may know of it and read it.
    pub(super) fn visible_to(&self, caller: &Caller) -> bool {
        !self.private || caller.sees_private(&self.namespace)
    }
}

/// What a request's bucket turned out to be.
pub(super) enum Found {
    /// There it is, and the caller may read it.
    Here(Bucket),
    /// It has another name now: the answer that says so.
    Elsewhere(Response),
}

/// Finds the bucket that a caller names, wherever it is now. Fails with `RepoNotFound` if there is none that the
/// caller may see: 404, or 401
/// to a caller without a token.
pub(super) async fn find(call: &Call, target: &Target) -> Result<Found, ApiError> {
    let namespace = call.caller.resolve(&target.namespace)?;
    let name = target.name.clone();
    let (here, moved) = call
        .site
        .shared
        .db
        .read(move |c| {
            let here = Bucket::find(c, &namespace, &name)?;
            let moved = if here.is_none() { Bucket::find_moved(c, &namespace, &name)? } else { None };
            Ok::<_, ApiError>((here, moved))
        })
        .await?;
    if let Some(bucket) = here.filter(|bucket| bucket.visible_to(&call.caller)) {
        return Ok(Found::Here(bucket));
    }
    // Who deletes by an old name may well mean something else than what is there now.
    let moved = moved.filter(|bucket| bucket.visible_to(&call.caller) && call.method() != Method::DELETE);
    moved.and_then(|bucket| redirect(call, &bucket)).map(Found::Elsewhere).ok_or_else(|| call.caller.repo_not_found())
}

/// The same request with a bucket's present name: relative, as some clients follow nothing else on `HEAD`.
fn redirect(call: &Call, bucket: &Bucket) -> Option<Response> {
    let path = call.parts.uri.path();
    let prefix = if path.starts_with("/api/") { "/api/buckets/" } else { "/buckets/" };
    let behind = path.strip_prefix(prefix)?.splitn(3, '/').nth(2);
    let mut location = format!("{prefix}{}/{}", bucket.namespace, bucket.name);
    for (mark, part) in [('/', behind), ('?', call.parts.uri.query())] {
        if let Some(part) = part {
            location.push(mark);
            location.push_str(part);
        }
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    response.headers_mut().insert(header::LOCATION, HeaderValue::try_from(location).ok()?);
    Some(response)
}
