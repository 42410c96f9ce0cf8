//! State of several gateways, in a PostgreSQL database.
//!
//! The tables are made at the first start, in the first schema of the search path, with names that begin with
//! `hugbucket_`. All times are those of the database. Each call is one statement with its own commit, so a gateway that
//! dies leaves nothing half done.

use super::{Claim, RecordRow, State, UploadRow};
use crate::gateway::Error;
use async_trait::async_trait;
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use std::time::Duration;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Config, NoTls, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

/// Connections at once.
const CONNECTIONS: usize = 16;
/// Time for a connection: its set-up, and the wait for one that is free.
const CONNECT: Duration = Duration::from_secs(10);
/// Time after which the database gives up a statement.
const STATEMENT: &str = "15s";
/// Time after which a server that doesn't answer is given up.
const DEAD: Duration = Duration::from_secs(20);
/// Version of the schema.
const VERSION: i32 = 1;
/// Number of the lock that a gateway holds while it makes the tables.
const SCHEMA_LOCK: i64 = 0x6875_6762_7563_6b65;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS hugbucket_version (version int NOT NULL);
    CREATE TABLE IF NOT EXISTS hugbucket_records (
        key bytea PRIMARY KEY, path bytea NOT NULL, written timestamptz NOT NULL, row bytea NOT NULL);
    CREATE INDEX IF NOT EXISTS hugbucket_records_by_path ON hugbucket_records (path);
    CREATE TABLE IF NOT EXISTS hugbucket_uploads (
        id text PRIMARY KEY, source bytea NOT NULL, created timestamptz NOT NULL, row bytea NOT NULL,
        owner text, claimed_until timestamptz NOT NULL DEFAULT '-infinity', result bytea);
    CREATE INDEX IF NOT EXISTS hugbucket_uploads_by_source ON hugbucket_uploads (source, id) WHERE result IS NULL;
    CREATE INDEX IF NOT EXISTS hugbucket_uploads_by_time ON hugbucket_uploads (created);
    CREATE TABLE IF NOT EXISTS hugbucket_parts (
        upload text NOT NULL REFERENCES hugbucket_uploads (id) ON DELETE CASCADE, number int NOT NULL,
        row bytea NOT NULL, PRIMARY KEY (upload, number));
    CREATE TABLE IF NOT EXISTS hugbucket_leases (
        name bytea PRIMARY KEY, owner text NOT NULL, until timestamptz NOT NULL);
";

/// State in a PostgreSQL database.
pub struct Postgres {
    pool: Pool,
}

/// Returns an error with its causes. None of them names a password.
fn failed(error: impl std::error::Error) -> Error {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    Error::State(text)
}

fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

impl Postgres {
    /// Connects to the database of a URL or of a list `host=… user=…`, as libpq reads them. Makes missing tables.
    ///
    /// A connection over the network has to use TLS, unless the URL says `sslmode=disable`. The certificate is checked
    /// against the roots of the system. [`Error::InvalidArgument`]: the URL is not one.
    pub async fn open(url: &str) -> Result<Self, Error> {
        // The parser's message may repeat a part of the URL, and the URL may hold a password.
        let mut config: Config =
            url.parse().map_err(|_| Error::InvalidArgument("the URL of the database is not one of PostgreSQL"))?;
        config.application_name("hugbucket").connect_timeout(CONNECT).tcp_user_timeout(DEAD).keepalives_idle(DEAD);
        let options = config.get_options().unwrap_or_default();
        let options = format!("{options} -c statement_timeout={STATEMENT} -c synchronous_commit=on");
        config.options(options.trim_start());
        if config.get_ssl_mode() == SslMode::Prefer {
            config.ssl_mode(if is_local(&config) { SslMode::Disable } else { SslMode::Require });
        }
        let recycle = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = match config.get_ssl_mode() {
            SslMode::Disable => Manager::from_config(config, NoTls, recycle),
            _ => Manager::from_config(config, MakeRustlsConnect::new(tls()?), recycle),
        };
        let pool = Pool::builder(manager)
            .max_size(CONNECTIONS)
            .runtime(Runtime::Tokio1)
            .create_timeout(Some(CONNECT))
            .wait_timeout(Some(CONNECT))
            .recycle_timeout(Some(CONNECT))
            .build()
            .map_err(failed)?;
        let state = Self { pool };
        state.create_tables().await?;
        Ok(state)
    }

    async fn create_tables(&self) -> Result<(), Error> {
        let mut connection = self.connection().await?;
        let transaction = connection.transaction().await.map_err(failed)?;
        // Two gateways that start at the same time must not make the tables at the same time.
        transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&SCHEMA_LOCK]).await.map_err(failed)?;
        transaction.batch_execute(SCHEMA).await.map_err(failed)?;
        let found = transaction.query_opt("SELECT version FROM hugbucket_version", &[]).await.map_err(failed)?;
        match found.map(|row| row.try_get::<_, i32>(0)).transpose().map_err(failed)? {
            None => {
                let note = "INSERT INTO hugbucket_version (version) VALUES ($1)";
                transaction.execute(note, &[&VERSION]).await.map_err(failed)?;
            }
            Some(VERSION) => {}
            Some(other) => {
                let why = format!("the database has version {other}, and this program knows {VERSION}");
                return Err(Error::State(why));
            }
        }
        transaction.commit().await.map_err(failed)
    }

    async fn connection(&self) -> Result<Object, Error> {
        self.pool.get().await.map_err(failed)
    }

    async fn rows(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let connection = self.connection().await?;
        timely(connection, async |connection| {
            connection.query(&connection.prepare_cached(statement).await?, values).await
        })
        .await
    }

    async fn change(&self, statement: &str, values: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        let connection = self.connection().await?;
        timely(connection, async |connection| {
            connection.execute(&connection.prepare_cached(statement).await?, values).await
        })
        .await
    }
}

/// Runs a statement. If the server says nothing for [`DEAD`], the connection is given up with it.
async fn timely<T>(
    connection: Object,
    work: impl AsyncFnOnce(&Object) -> Result<T, tokio_postgres::Error>,
) -> Result<T, Error> {
    match tokio::time::timeout(DEAD, work(&connection)).await {
        Ok(result) => result.map_err(failed),
        Err(_) => {
            drop(Object::take(connection));
            Err(Error::State(format!("the database has not answered for {} seconds", DEAD.as_secs())))
        }
    }
}

/// Returns true if all hosts are on this machine.
fn is_local(config: &Config) -> bool {
    // An address takes the place of the name.
    if !config.get_hostaddrs().is_empty() {
        return config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
    }
    config.get_hosts().iter().all(|host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => {
            name == "localhost" || name.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
        }
    })
}

fn tls() -> Result<rustls::ClientConfig, Error> {
    use rustls_platform_verifier::BuilderVerifierExt;
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(failed)?;
    Ok(builder.with_platform_verifier().map_err(failed)?.with_no_client_auth())
}

fn upload_row(row: &Row) -> Result<UploadRow, Error> {
    let source: Vec<u8> = row.try_get(1).map_err(failed)?;
    let source = source.try_into().map_err(|_| Error::State("an upload is damaged".into()))?;
    Ok(UploadRow {
        id: row.try_get(0).map_err(failed)?,
        source,
        created: row.try_get(2).map_err(failed)?,
        row: row.try_get(3).map_err(failed)?,
    })
}

#[async_trait]
impl State for Postgres {
    async fn records(&self, keys: &[[u8; 32]]) -> Result<Vec<Option<Vec<u8>>>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let wanted: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        let select = "SELECT key, row FROM hugbucket_records WHERE key = ANY ($1)";
        let mut found = std::collections::HashMap::new();
        for row in self.rows(select, &[&wanted]).await? {
            found.insert(row.try_get::<_, Vec<u8>>(0).map_err(failed)?, row.try_get::<_, Vec<u8>>(1).map_err(failed)?);
        }
        Ok(keys.iter().map(|key| found.get(&key[..]).cloned()).collect())
    }

    async fn set_record(&self, record: RecordRow) -> Result<(), Error> {
        let put = "INSERT INTO hugbucket_records (key, path, written, row) VALUES ($1, $2, clock_timestamp(), $3)
            ON CONFLICT (key) DO UPDATE SET written = excluded.written, row = excluded.row";
        self.change(put, &[&&record.key[..], &&record.path[..], &record.row]).await.map(drop)
    }

    async fn remove_records(&self, path: [u8; 32], keep: Option<[u8; 32]>, age: Duration) -> Result<(), Error> {
        let remove = "DELETE FROM hugbucket_records WHERE path = $1 AND key IS DISTINCT FROM $2
            AND written <= clock_timestamp() - make_interval(secs => $3)";
        self.change(remove, &[&&path[..], &keep.as_ref().map(|key| &key[..]), &seconds(age)]).await.map(drop)
    }

    async fn create_upload(&self, id: &str, source: [u8; 32], row: Vec<u8>) -> Result<(), Error> {
        let create = "INSERT INTO hugbucket_uploads (id, source, created, row)
            VALUES ($1, $2, clock_timestamp(), $3)";
        self.change(create, &[&id, &&source[..], &row]).await.map(drop)
    }

    async fn upload(&self, id: &str) -> Result<Option<UploadRow>, Error> {
        let select = "SELECT id, source, floor(extract(epoch FROM created))::bigint, row FROM hugbucket_uploads
            WHERE id = $1 AND result IS NULL";
        self.rows(select, &[&id]).await?.first().map(upload_row).transpose()
    }

    async fn uploads(&self, source: &[u8; 32]) -> Result<Vec<UploadRow>, Error> {
        let select = "SELECT id, source, floor(extract(epoch FROM created))::bigint, row FROM hugbucket_uploads
            WHERE source = $1 AND result IS NULL";
        self.rows(select, &[&&source[..]]).await?.iter().map(upload_row).collect()
    }

    async fn put_part(&self, id: &str, number: u32, row: Vec<u8>) -> Result<bool, Error> {
        // The lock of the upload's row: a completion at the same time comes before or after.
        let put = "INSERT INTO hugbucket_parts (upload, number, row)
            SELECT id, $2, $3 FROM hugbucket_uploads WHERE id = $1 AND result IS NULL FOR SHARE
            ON CONFLICT (upload, number) DO UPDATE SET row = excluded.row";
        let number = i32::try_from(number).map_err(failed)?;
        Ok(self.change(put, &[&id, &number, &row]).await? == 1)
    }

    async fn parts(&self, id: &str) -> Result<Vec<(u32, Vec<u8>)>, Error> {
        let select = "SELECT number, row FROM hugbucket_parts WHERE upload = $1 ORDER BY number";
        let part = |row: &Row| {
            let number: i32 = row.try_get(0).map_err(failed)?;
            Ok((u32::try_from(number).map_err(failed)?, row.try_get(1).map_err(failed)?))
        };
        self.rows(select, &[&id]).await?.iter().map(part).collect()
    }

    async fn claim(&self, id: &str, owner: &str, time: Duration) -> Result<Claim, Error> {
        let claim = "UPDATE hugbucket_uploads
            SET owner = $2, claimed_until = clock_timestamp() + make_interval(secs => $3)
            WHERE id = $1 AND result IS NULL
            AND (owner IS NULL OR owner = $2 OR claimed_until <= clock_timestamp())";
        if self.change(claim, &[&id, &owner, &seconds(time)]).await? == 1 {
            return Ok(Claim::Claimed);
        }
        let rows = self.rows("SELECT result FROM hugbucket_uploads WHERE id = $1", &[&id]).await?;
        let Some(row) = rows.first() else { return Ok(Claim::Missing) };
        let result: Option<Vec<u8>> = row.try_get(0).map_err(failed)?;
        Ok(result.map_or(Claim::Held, Claim::Done))
    }

    async fn complete(&self, id: &str, owner: &str, result: Vec<u8>) -> Result<bool, Error> {
        let complete = "WITH done AS (
                UPDATE hugbucket_uploads SET result = $3 WHERE id = $1 AND owner = $2 AND result IS NULL RETURNING id),
            gone AS (DELETE FROM hugbucket_parts WHERE upload IN (SELECT id FROM done))
            SELECT id FROM done";
        Ok(!self.rows(complete, &[&id, &owner, &result]).await?.is_empty())
    }

    async fn release(&self, id: &str, owner: &str) -> Result<(), Error> {
        let release = "UPDATE hugbucket_uploads SET owner = NULL, claimed_until = '-infinity'
            WHERE id = $1 AND owner = $2";
        self.change(release, &[&id, &owner]).await.map(drop)
    }

    async fn abort(&self, id: &str) -> Result<bool, Error> {
        let abort = "DELETE FROM hugbucket_uploads
            WHERE id = $1 AND result IS NULL AND claimed_until <= clock_timestamp()";
        Ok(self.change(abort, &[&id]).await? == 1)
    }

    async fn remove_stale(&self, age: Duration) -> Result<u64, Error> {
        self.change("DELETE FROM hugbucket_leases WHERE until <= clock_timestamp()", &[]).await?;
        let stale = "DELETE FROM hugbucket_uploads WHERE created <= clock_timestamp() - make_interval(secs => $1)
            AND (result IS NOT NULL OR claimed_until <= clock_timestamp())";
        self.change(stale, &[&seconds(age)]).await
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn lease(&self, name: [u8; 32], owner: &str, time: Duration) -> Result<bool, Error> {
        let lease = "INSERT INTO hugbucket_leases AS held (name, owner, until)
            VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
            ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, until = excluded.until
            WHERE held.owner = excluded.owner OR held.until <= clock_timestamp()";
        Ok(self.change(lease, &[&&name[..], &owner, &seconds(time)]).await? == 1)
    }

    async fn end_lease(&self, name: [u8; 32], owner: &str) -> Result<(), Error> {
        let end = "DELETE FROM hugbucket_leases WHERE name = $1 AND owner = $2";
        self.change(end, &[&&name[..], &owner]).await.map(drop)
    }

    async fn check(&self) -> Result<(), Error> {
        self.rows("SELECT version FROM hugbucket_version", &[]).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn network_needs_tls_and_this_machine_does_not() {
        for (url, local) in [
            ("postgres://me@localhost/state", true),
            ("postgres://me@127.0.0.1,[::1]/state", true),
            ("host=/run/postgresql user=me", true),
            ("postgres://me@db.example/state", false),
            ("postgres://me@localhost,db.example/state", false),
            ("postgres://me@10.0.0.1/state", false),
            ("hostaddr=10.0.0.1 user=me", false),
            ("host=localhost hostaddr=10.0.0.1 user=me", false),
            ("host=db.example hostaddr=127.0.0.1 user=me", true),
        ] {
            assert_eq!(is_local(&url.parse().unwrap()), local, "{url}");
        }
    }

    /// Returns the URL of a schema at the server of `tests/gateway/postgres`.
    fn url(schema: &str) -> String {
        let server = std::env::var("HFCRYPT_POSTGRES").expect("run it by tests/gateway/postgres");
        format!("{server}?options=-c%20search_path%3D{schema}")
    }

    /// Opens a state in a schema of its own.
    async fn open(schema: &str) -> Postgres {
        let url = url(schema);
        let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
        tokio::spawn(connection);
        let create = format!("DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}");
        client.batch_execute(&create).await.unwrap();
        Postgres::open(&url).await.unwrap()
    }

    #[tokio::test]
    #[ignore = "needs a server: run it by tests/gateway/postgres"]
    async fn keeps_what_every_state_keeps() {
        testing::keeps_all_promises(&open("promises").await).await;
    }

    #[tokio::test]
    #[ignore = "needs a server: run it by tests/gateway/postgres"]
    async fn one_of_many_gets_a_claim_and_a_lease() {
        let state = std::sync::Arc::new(open("races").await);
        for round in 0..20 {
            let id = format!("u{round}");
            state.create_upload(&id, [1; 32], Vec::new()).await.unwrap();
            let tries = (0..16).map(|number| {
                let (state, id, owner) = (state.clone(), id.clone(), number.to_string());
                tokio::spawn(async move {
                    let claim = state.claim(&id, &owner, Duration::from_secs(60)).await.unwrap();
                    (claim == Claim::Claimed, state.lease([round; 32], &owner, Duration::from_secs(60)).await.unwrap())
                })
            });
            let got = futures::future::join_all(tries).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
            assert_eq!(got.iter().filter(|(claimed, _)| *claimed).count(), 1);
            assert_eq!(got.iter().filter(|(_, leased)| *leased).count(), 1);
        }
    }

    #[tokio::test]
    #[ignore = "needs a server: run it by tests/gateway/postgres"]
    async fn other_version_is_refused_and_tables_are_made_once() {
        let state = open("versions").await;
        let url = url("versions");
        let all = futures::future::join_all((0..8).map(|_| Postgres::open(&url))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(state.rows("SELECT version FROM hugbucket_version", &[]).await.unwrap().len(), 1);
        state.change("UPDATE hugbucket_version SET version = 99", &[]).await.unwrap();
        assert!(matches!(Postgres::open(&url).await, Err(Error::State(why)) if why.contains("version 99")));
    }
}
