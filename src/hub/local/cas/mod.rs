//! The CAS server of the embedded Hub (Xet spec, sections 9, 10 and 12), mounted below `/cas`.
//!
//! * [`xorbs`]: xorb files, their indexes, direct upload; [`grants`]: upload by grant; [`intake`]:
//!   what comes in by both.
//! * [`shards`]: validation and registration of shards; [`files`]: the registered files; [`dedup`]: the chunk index.
//! * [`reconstruct`]: what to fetch for a file; [`data`]: signed URLs and the bytes behind them;
//!   [`reader`]: a file's bytes for the Hub itself.
//!
//! Everything that is uploaded is verified before it is acknowledged, and everything that is read back from disk is
//! checked again: an index against its xorb hash, a chunk against its chunk hash where the server itself decodes it.
//! Nothing is ever removed but the links and the dedup index of a deleted bucket. An upload of a xorb that is stored
//! already has that one read and checked wholly; where it is damaged the upload takes its place.
//!
//! **Who may read what.** A token is bound to one bucket. It reads files that are linked to the bucket: registered by a
//! shard that was uploaded with a write token of the bucket (the shard proves that its sender knows the chunks), or put
//! there by the Hub (batch, copy). Chunk queries are answered from the shards of the same bucket, and only with xorbs
//! whose whole chunk list a shard of that bucket gave: otherwise knowing one chunk hash of a foreign xorb would yield
//! the others, and with them the content. That a xorb exists at all is visible to every writer: an upload says so.
//!
//! **Bounds.** Uploads of xorbs and shards share 256 MiB of memory ([`super::body`], [`intake`]),
//! further ones wait unread; a stalled one is dropped after a minute. Indexes are cached to 42 MB
//! ([`indexes`]). Downloads hold one piece of 1 MiB each ([`data`], [`reader`]), answers to chunk
//! queries about 1 MiB ([`dedup`]), reconstructions half of that, and the longer ones some 500 MB
//! together ([`reconstruct`]). A shard costs half a minute of one core at most ([`shards`]).

mod data;
mod dedup;
mod error;
mod files;
mod grants;
mod indexes;
mod intake;
mod pool;
mod reader;
mod reconstruct;
mod shards;
#[cfg(test)]
mod tests;
mod uploads;
mod xorbs;

pub(crate) use error::Error;

use super::Site;
use super::auth::{TokenRefused, now_seconds};
use super::body::{self, Incoming, Received};
use super::budget::Budget;
use super::db::{self, Db};
use super::disk::Publisher;
use crate::xet::{Hash, Scope};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, head, post, put};
use futures::stream::BoxStream;
use pool::Pool;
use rusqlite::{Connection, Transaction};
use std::ops::Range;
use std::sync::Arc;
use xorbs::Xorbs;

/// Memory for the bodies of uploads under way, in MiB: two shards of full size, or 32 xorbs.
/// Further ones wait unread, held back by TCP.
const BODIES_MIB: u32 = 256;
/// Prefixes of xorb routes: both names that clients use.
const PREFIXES: [&str; 2] = ["default", "default-merkledb"];

/// Xorbs, shards and files of one Hub directory. Clones share it.
#[derive(Clone)]
pub(crate) struct CasStore {
    db: Db,
    xorbs: Arc<Xorbs>,
    bodies: Budget,
    /// For uploads of xorbs.
    blocks: Pool,
    /// For downloads.
    pieces: Pool,
    /// Terms that long answers under way may still have ([`reconstruct`]).
    terms: Budget,
}

impl CasStore {
    /// The store in the directory of `db` and `publisher`.
    pub(crate) fn new(db: Db, publisher: Publisher) -> Self {
        Self {
            db,
            xorbs: Arc::new(Xorbs::new(publisher)),
            bodies: body::budget(BODIES_MIB),
            blocks: intake::blocks(),
            pieces: data::pieces(),
            terms: reconstruct::terms_in_flight(),
        }
    }

    /// Size of a registered file that the bucket's tokens may read; `None` where there is none. The empty
    /// file is always there, for everybody.
    pub(crate) fn linked_file_len(connection: &Connection, bucket: i64, hash: &Hash) -> Result<Option<u64>, db::Error> {
        Ok(files::find_linked(connection, bucket, hash)?.map(|file| file.len))
    }

    /// Lets the bucket's tokens read a file, and gives its size; `None` where there is no such file. The caller has
    /// checked that whoever asks may read it somewhere.
    pub(crate) fn link_file(transaction: &Transaction<'_>, bucket: i64, hash: &Hash) -> Result<Option<u64>, db::Error> {
        let Some(file) = files::find(transaction, hash)? else { return Ok(None) };
        files::link(transaction, bucket, &file)?;
        Ok(Some(file.len))
    }

    /// The bytes `range` (clipped to the file) of a registered file, in pieces of about 1 MiB, every chunk checked
    /// against its hash. An error in the stream ends it.
    pub(crate) async fn read_file(
        &self,
        hash: &Hash,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, Error>>, Error> {
        reader::read(self.clone(), *hash, range).await
    }

    fn db(&self) -> &Db {
        &self.db
    }

    fn xorbs(&self) -> &Xorbs {
        &self.xorbs
    }

    /// Receives a body of at most `limit` bytes, whose use takes `copies` times its length.
    async fn receive(&self, headers: &HeaderMap, body: Body, limit: usize, copies: usize) -> Result<Received, Error> {
        let mut incoming = Incoming::new(headers, body, &self.bodies);
        let received = incoming.read(limit, copies).await;
        if received.is_err() {
            incoming.drain(limit).await;
        }
        Ok(received?)
    }
}

/// Routes below `/cas`. What isn't one of them, by path or by method, is 404: clients take that,
/// and nothing else, for "not offered".
pub(crate) fn router(site: Arc<Site>) -> Router {
    Router::new()
        .route("/health", get(async || "ok"))
        .route("/v1/xorbs/{prefix}/{hash}", post(uploads::post).head(uploads::head))
        .route("/v1/xorb-grants/{prefix}/{hash}", post(grants::post))
        .route("/v1/xorb-commits/{prefix}/{hash}/grant/{id}", post(grants::commit))
        .route("/grants/{hash}/{id}", put(grants::put))
        .route("/v1/shards", post(shards::post_v1))
        .route("/v2/shards", post(shards::post_v2))
        .route("/v1/reconstructions", get(reconstruct::get_many).post(reconstruct::post_many))
        .route("/v1/reconstructions/{hash}", get(reconstruct::get_v1))
        .route("/v2/reconstructions/{hash}", get(reconstruct::get_v2))
        .route("/v1/files/{hash}", head(reconstruct::head_file))
        .route("/v1/chunks/{prefix}/{hash}", get(dedup::get))
        .route("/data/{hash}", get(data::get))
        .route("/v1/telemetry", post(telemetry))
        .fallback(no_route)
        .method_not_allowed_fallback(no_route)
        // Each route has its own limit.
        .layer(DefaultBodyLimit::disable())
        .with_state(site)
}

/// `POST /v1/telemetry`: nobody looks at it, but a client waits for the answer.
async fn telemetry(body: Body) -> StatusCode {
    /// Bytes of an event that are read before the connection is closed instead.
    const LONGEST: usize = 64 * 1024;
    body::drain(body, LONGEST).await;
    StatusCode::OK
}

async fn no_route(body: Body) -> Error {
    body::drain(body, crate::xet::xorb::MAX_SERIALISED).await;
    Error::NotFound("route")
}

/// The bucket of the request's token, if it is good for `need`.
fn authorize(site: &Site, headers: &HeaderMap, need: Scope) -> Result<i64, Error> {
    let bearer = bearer(headers).ok_or(TokenRefused::Invalid)?;
    Ok(site.shared.auth.check_cas_token(bearer, need, now_seconds())?.bucket)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn parse_hash(text: &str) -> Result<Hash, Error> {
    text.parse().map_err(|e| Error::Invalid(format!("{e}")))
}

fn check_prefix(prefix: &str) -> Result<(), Error> {
    if PREFIXES.contains(&prefix) { Ok(()) } else { Err(Error::NotFound("prefix")) }
}

/// Runs work that blocks or computes for long.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Error::Task))
}

/// The answer to a `HEAD` for something of `len` bytes.
fn head_of_len(len: u64) -> Response {
    ([(header::CONTENT_LENGTH, len)], Body::empty()).into_response()
}
