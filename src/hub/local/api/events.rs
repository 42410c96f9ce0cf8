//! `GET …/events` (Hub API spec, 4.6): the changes of a bucket's files as server-sent events.
//!
//! A client that shows a bucket would otherwise list it again and again to notice what others changed. It opens a
//! stream instead and is sent
//! each change. Several processes may serve one directory, so changes come from the database: every batch adds its
//! changes to the table
//! `events` in its own transaction, and a stream polls that table.
//!
//! The log of a bucket is bounded to [`KEPT`] changes. A client that resumes before the oldest one, or that reads
//! so slowly that the
//! log has passed it, is sent `reset` and has to list the bucket. A stream holds one event at most, made when the
//! connection can take it.
//! It ends with `reconnect` after [`LIFE`] and when the server stops, and without a word when its reader may no
//! longer see the bucket.

use super::access::{Bucket, Caller, Found, find};
use super::json::iso_time;
use super::tree::Object;
use super::{Call, Target};
use crate::hub::local::db::{self, Db};
use crate::hub::local::errors::ApiError;
use crate::xet::Hash;
use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use futures::stream;
use rusqlite::{Connection, Transaction};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep_until};

/// Streams that a server has open at most, far below its number of connections: streams can't keep other requests out.
pub(in crate::hub::local) const STREAMS: usize = 128;
/// Changes of a bucket that are kept: those of the largest batch. With the longest keys they take 40 MB.
const KEPT: i64 = 10_000;
/// Changes in one event at most. An event is 2.5 MB at most: the longest keys, of control characters that JSON
/// escapes with six bytes each.
const EVENT: i64 = 100;
/// Pause between two polls of the database: how late a change is seen.
const POLL: Duration = Duration::from_millis(500);
/// Silence after which a comment is sent. The official client takes a stream for dead after 90 s without a byte.
const PING: Duration = Duration::from_secs(30);
/// Life of a stream. A reader whose token was revoked goes on reading for this long, as with a CAS token.
const LIFE: Duration = Duration::from_secs(900);

/// Answers with a stream of events.
pub(super) async fn answer(call: Call, target: Target) -> Result<Response, ApiError> {
    let bucket = match find(&call, &target).await? {
        Found::Here(bucket) => bucket,
        Found::Elsewhere(redirect) => return Ok(redirect),
    };
    let from = Resume::of(&call)?;
    let permit = Arc::clone(&call.site.streams).try_acquire_owned().map_err(|_| ApiError::busy())?;
    let row = bucket.id;
    let start = call.site.shared.db.read(move |c| from.start(c, row)).await?;
    let follower = Follower {
        db: call.site.shared.db.clone(),
        caller: Arc::new(call.caller),
        bucket: row,
        state: start.map_or(State::Lost, State::Replaying),
        stopped: call.site.stopped.clone(),
        end: Instant::now() + LIFE,
        ping: Instant::now() + PING,
        _permit: permit,
    };
    let events = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let mut response = Response::new(Body::from_stream(events));
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // Asks a proxy to pass events on as they come.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

/// The point that a request wants to resume from.
#[derive(Clone, Copy, Debug)]
enum Resume {
    /// After the change `seq` of the bucket in row `bucket`.
    Cursor { bucket: i64, seq: i64 },
    /// After this time, in milliseconds since the epoch.
    Time(i64),
    /// The next change.
    Now,
}

impl Resume {
    fn of(call: &Call) -> Result<Self, ApiError> {
        if let Some(text) = call.query("cursor") {
            let parts = text.split_once('-').and_then(|(bucket, seq)| Some((bucket.parse().ok()?, seq.parse().ok()?)));
            let (bucket, seq) = parts.ok_or_else(|| ApiError::bad_request("malformed cursor"))?;
            return Ok(Self::Cursor { bucket, seq });
        }
        let Some(text) = call.query("since") else { return Ok(Self::Now) };
        let time = OffsetDateTime::parse(&text, &Rfc3339);
        let time = time.map_err(|_| ApiError::bad_request("\"since\" must be an ISO 8601 time"))?;
        Ok(Self::Time((time.unix_timestamp_nanos().div_euclid(1_000_000)) as i64))
    }

    /// Returns the number of the last change that is not to be sent, or `None` if changes after this point may be
    /// missing in the log.
    fn start(self, connection: &Connection, row: i64) -> Result<Option<i64>, ApiError> {
        let bucket = Bucket::by_row(connection, row)?.ok_or_else(ApiError::repo_not_found)?;
        Ok(match self {
            Self::Now => Some(bucket.event_seq),
            Self::Cursor { bucket: of, seq } => (of == row && seq >= 0).then_some(seq),
            Self::Time(since) => after(connection, &bucket, since)?,
        })
    }
}

/// Returns the number of the last change up to a time; `None` if later ones may have been dropped from the log.
fn after(connection: &Connection, bucket: &Bucket, since: i64) -> Result<Option<i64>, db::Error> {
    if since < bucket.event_since {
        return Ok(None);
    }
    let sql = "SELECT coalesce(max(seq), ?2) FROM events WHERE bucket = ?1 AND stamp <= ?3";
    let dropped = dropped(bucket);
    let seq: i64 = connection.prepare_cached(sql)?.query_row((bucket.id, dropped, since), |row| row.get(0))?;
    // If all changes that are kept are later, so may be some that were dropped.
    Ok((seq > dropped || dropped == 0).then_some(seq))
}

/// Number of the newest change that the log has dropped.
fn dropped(bucket: &Bucket) -> i64 {
    (bucket.event_seq - KEPT).max(0)
}

/// Reads changes after `seq`, ascending. Returns `None` if some of them were dropped, or if the bucket has never
/// had so many.
fn read(connection: &Connection, bucket: &Bucket, seq: i64) -> Result<Option<Vec<(i64, Value)>>, db::Error> {
    if !(dropped(bucket)..=bucket.event_seq).contains(&seq) {
        return Ok(None);
    }
    let sql = "SELECT seq, stamp, op, key, hash, size, mtime FROM events WHERE bucket = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
    let mut statement = connection.prepare_cached(sql)?;
    let changes = statement.query_map((bucket.id, seq, EVENT), |row| Ok((row.get(0)?, describe(row)?)))?;
    Ok(Some(changes.collect::<Result<_, _>>()?))
}

/// A change as clients see it.
fn describe(row: &rusqlite::Row<'_>) -> rusqlite::Result<Value> {
    let op = match row.get::<_, i64>(2)? {
        ADD => "add",
        UPDATE => "update",
        _ => "delete",
    };
    let key: Vec<u8> = row.get(3)?;
    let mut change = json!({"op": op, "path": String::from_utf8_lossy(&key)});
    if op != "delete" {
        change["uploadedAt"] = json!(iso_time(row.get(1)?));
    }
    if let Some(hash) = row.get::<_, Option<[u8; 32]>>(4)? {
        change["xetHash"] = json!(Hash(hash));
    }
    if let Some(size) = row.get::<_, Option<i64>>(5)? {
        change["size"] = json!(size);
    }
    if let Some(mtime) = row.get::<_, Option<i64>>(6)? {
        change["mtime"] = json!(iso_time(mtime));
    }
    Ok(change)
}

/// Values of the column `op`.
const ADD: i64 = 0;
const UPDATE: i64 = 1;
const DELETE: i64 = 2;

/// Records the changes of one batch.
pub(super) struct Log<'t> {
    transaction: &'t Transaction<'t>,
    bucket: i64,
    /// Time of every change in this batch; later than all before.
    stamp: i64,
    /// Number of the newest change.
    seq: i64,
}

impl<'t> Log<'t> {
    pub(super) fn new(transaction: &'t Transaction<'t>, bucket: &Bucket, stamp: i64) -> Self {
        Self { transaction, bucket: bucket.id, stamp, seq: bucket.event_seq }
    }

    /// Records that a file was added, or what changed of it.
    pub(super) fn put(
        &mut self,
        key: &[u8],
        old: Option<&Object>,
        hash: &Hash,
        size: i64,
        mtime: Option<i64>,
    ) -> Result<(), db::Error> {
        let Some(old) = old else { return self.add(ADD, key, (Some(hash.0), Some(size), mtime)) };
        let changed = (
            (old.hash != *hash).then_some(hash.0),
            (old.stored_size() != size).then_some(size),
            mtime.filter(|_| old.mtime != mtime),
        );
        self.add(UPDATE, key, changed)
    }

    /// Records that a file was removed.
    pub(super) fn delete(&mut self, key: &[u8]) -> Result<(), db::Error> {
        self.add(DELETE, key, (None, None, None))
    }

    fn add(
        &mut self,
        op: i64,
        key: &[u8],
        (hash, size, mtime): (Option<[u8; 32]>, Option<i64>, Option<i64>),
    ) -> Result<(), db::Error> {
        self.seq += 1;
        let sql = "INSERT INTO events (bucket, seq, stamp, op, key, hash, size, mtime) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let row = (self.bucket, self.seq, self.stamp, op, key, hash, size, mtime);
        self.transaction.prepare_cached(sql)?.execute(row)?;
        Ok(())
    }

    /// Publishes what was recorded, and drops the oldest changes beyond [`KEPT`].
    pub(super) fn store(&self) -> Result<(), db::Error> {
        let sql = "UPDATE buckets SET event_seq = ?1 WHERE id = ?2";
        self.transaction.prepare_cached(sql)?.execute((self.seq, self.bucket))?;
        let sql = "DELETE FROM events WHERE bucket = ?1 AND seq <= ?2";
        self.transaction.prepare_cached(sql)?.execute((self.bucket, self.seq - KEPT))?;
        Ok(())
    }
}

/// How far a stream is. Numbers are those of the last change that was sent.
#[derive(Clone, Copy, Debug)]
enum State {
    /// Sends what happened before the stream was opened.
    Replaying(i64),
    /// `ready` was sent.
    Following(i64),
    /// Changes are missing.
    Lost,
    Over,
}

/// An open stream.
struct Follower {
    db: Db,
    caller: Arc<Caller>,
    bucket: i64,
    state: State,
    stopped: watch::Receiver<bool>,
    /// When it ends.
    end: Instant,
    /// When a comment is due unless something else is sent.
    ping: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// Waits for the next event. Returns `None` at the end of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let (seq, is_ready) = match self.state {
                State::Replaying(seq) => (seq, false),
                State::Following(seq) => (seq, true),
                State::Lost => {
                    self.state = State::Over;
                    return Some(event("reset", &json!({"reason": "cursor_too_old"})));
                }
                State::Over => return None,
            };
            // A closed channel is a server that was dropped.
            if self.end <= Instant::now() || *self.stopped.borrow() || self.stopped.has_changed().is_err() {
                return Some(self.reconnect(seq));
            }
            let Ok(page) = self.poll(seq).await else { return Some(self.reconnect(seq)) };
            let Some(changes) = page? else {
                self.state = State::Lost;
                continue;
            };
            if let Some(&(last, _)) = changes.last() {
                self.state = if is_ready { State::Following(last) } else { State::Replaying(last) };
                let changes: Vec<Value> = changes.into_iter().map(|(_, change)| change).collect();
                return Some(self.send("changes", &json!({"cursor": self.cursor(last), "changes": changes})));
            }
            if !is_ready {
                self.state = State::Following(seq);
                return Some(self.send("ready", &json!({"cursor": self.cursor(seq)})));
            }
            let until = (Instant::now() + POLL).min(self.ping).min(self.end);
            tokio::select! {
                _ = self.stopped.changed() => {}
                () = sleep_until(until) => {}
            }
            if self.ping <= Instant::now() {
                self.ping = Instant::now() + PING;
                return Some(Bytes::from_static(b": ping\n\n"));
            }
        }
    }

    /// Reads changes after `seq`, as [`read`] does. Returns `None` if the reader may no longer see the bucket.
    async fn poll(&self, seq: i64) -> Result<Option<Option<Vec<(i64, Value)>>>, db::Error> {
        let (row, caller) = (self.bucket, Arc::clone(&self.caller));
        let work = move |c: &Connection| {
            let bucket = Bucket::by_row(c, row)?.filter(|bucket| bucket.visible_to(&caller));
            bucket.map(|bucket| read(c, &bucket, seq)).transpose()
        };
        self.db.read(work).await
    }

    fn send(&mut self, name: &str, data: &Value) -> Bytes {
        self.ping = Instant::now() + PING;
        event(name, data)
    }

    fn reconnect(&mut self, seq: i64) -> Bytes {
        self.state = State::Over;
        event("reconnect", &json!({"cursor": self.cursor(seq)}))
    }

    /// The row is part of it: a bucket that was deleted and created again has other changes.
    fn cursor(&self, seq: i64) -> String {
        format!("{}-{seq}", self.bucket)
    }
}

/// Encodes an event. JSON has no line breaks of its own.
fn event(name: &str, data: &Value) -> Bytes {
    format!("event: {name}\ndata: {data}\n\n").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::local::api::batch::{self, Batch};
    use std::sync::Arc;
    use tokio::sync::Semaphore;

    async fn batch(db: &Db, lines: Vec<Value>) {
        let lines: Vec<String> = lines.iter().map(ToString::to_string).collect();
        let operations = batch::parse(lines.join("\n").as_bytes()).unwrap();
        let work = move |t: &Transaction<'_>| Batch::new(t, 1, &Caller::Process)?.run(&operations);
        assert_eq!(db.write(work).await.unwrap(), []);
    }

    fn add(key: &str, mtime: i64) -> Value {
        json!({"type": "addFile", "path": key, "xetHash": Hash::ZERO, "mtime": mtime})
    }

    /// A bucket, and a stream of its events after change 0. The sender stops it.
    async fn followed(dir: &tempfile::TempDir) -> (Db, Follower, watch::Sender<bool>) {
        let (db, ()) = Db::open(dir.path(), |t| {
            let sql = "INSERT INTO buckets (namespace, name, private, created, updated) VALUES ('local', 'b', 1, 0, 0)";
            t.execute(sql, [])?;
            Ok(())
        })
        .unwrap();
        let (stop, stopped) = watch::channel(false);
        let follower = Follower {
            db: db.clone(),
            caller: Arc::new(Caller::Process),
            bucket: 1,
            state: State::Replaying(0),
            stopped,
            end: Instant::now() + LIFE,
            ping: Instant::now() + PING,
            _permit: Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap(),
        };
        (db, follower, stop)
    }

    async fn text(follower: &mut Follower) -> Option<String> {
        follower.next().await.map(|event| String::from_utf8(event.to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_stream_sends_comments_and_ends_with_reconnect() {
        let dir = tempfile::tempdir().unwrap();
        let (_db, mut follower, _stop) = followed(&dir).await;
        let start = Instant::now();
        assert_eq!(text(&mut follower).await.unwrap(), "event: ready\ndata: {\"cursor\":\"1-0\"}\n\n");
        let mut last = Instant::now();
        loop {
            let event = text(&mut follower).await.unwrap();
            assert!(last.elapsed() < PING + 2 * POLL, "{:?}", last.elapsed());
            last = Instant::now();
            if event != ": ping\n\n" {
                assert_eq!(event, "event: reconnect\ndata: {\"cursor\":\"1-0\"}\n\n");
                break;
            }
        }
        assert!((LIFE..LIFE + 2 * POLL).contains(&start.elapsed()), "{:?}", start.elapsed());
        assert_eq!(text(&mut follower).await, None);
    }

    #[tokio::test]
    async fn reader_that_the_log_has_passed_is_reset() {
        let dir = tempfile::tempdir().unwrap();
        let (db, mut follower, _stop) = followed(&dir).await;
        assert!(text(&mut follower).await.unwrap().starts_with("event: ready"));
        let many = || (0..KEPT).map(|number| add(&format!("{number}"), number)).collect();
        batch(&db, many()).await;
        let rows = |c: &Connection| {
            Ok::<_, db::Error>(c.query_row("SELECT count(*), min(seq) FROM events", [], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))
            })?)
        };
        assert_eq!(db.read(rows).await.unwrap(), (KEPT, 1));
        assert!(text(&mut follower).await.unwrap().contains("\"cursor\":\"1-100\""), "the log has all of it");
        batch(&db, many()).await;
        assert_eq!(db.read(rows).await.unwrap(), (KEPT, KEPT + 1), "the log is bounded");
        assert_eq!(text(&mut follower).await.unwrap(), "event: reset\ndata: {\"reason\":\"cursor_too_old\"}\n\n");
        assert_eq!(text(&mut follower).await, None);
        // Times that the log doesn't reach back to, or only just.
        let resumed = |since: Box<dyn Fn(&Bucket) -> i64 + Send>| {
            db.read(move |c| {
                let bucket = Bucket::by_row(c, 1)?.unwrap();
                after(c, &bucket, since(&bucket))
            })
        };
        assert_eq!(resumed(Box::new(|_| 0)).await.unwrap(), None);
        assert_eq!(resumed(Box::new(|bucket| bucket.updated - 1)).await.unwrap(), None);
        assert_eq!(resumed(Box::new(|bucket| bucket.updated)).await.unwrap(), Some(2 * KEPT));
    }

    #[tokio::test]
    async fn update_carries_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (db, mut follower, _stop) = followed(&dir).await;
        batch(&db, vec![add("a\nb", 200_000_000_000), add("a\nb", 200_000_000_001), add("a\nb", 200_000_000_001)])
            .await;
        batch(&db, vec![json!({"type": "deleteFile", "path": "a\nb"}), json!({"type": "deleteFile", "path": "x"})])
            .await;
        let event = text(&mut follower).await.unwrap();
        let data = event.strip_prefix("event: changes\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        let mut data: Value = serde_json::from_str(data).unwrap();
        let stamps: Vec<_> = data["changes"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .map(|c| c.as_object_mut().unwrap().remove("uploadedAt"))
            .collect();
        assert_eq!(stamps.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, true, false]);
        let expected = json!({"cursor": "1-4", "changes": [
            {"op": "add", "path": "a\nb", "size": 0, "xetHash": Hash::ZERO, "mtime": "1976-05-03T19:33:20.000Z"},
            {"op": "update", "path": "a\nb", "mtime": "1976-05-03T19:33:20.001Z"},
            {"op": "update", "path": "a\nb"},
            {"op": "delete", "path": "a\nb"},
        ]});
        assert_eq!(data, expected);
    }
}
