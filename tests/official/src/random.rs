//! Random exchanges: sessions one after the other on one server, by either client, of files that are made of each
//! other; all of them read by both clients, whole and in random ranges.
//!
//! Servers live over all cases of a test, so later sessions find chunks of earlier ones by global dedup, in both
//! directions. `PROPTEST_CASES` says how many cases each test plays.

use crate::client::{Official, Ours};
use crate::content::{Sample, chunks, floats, random, text};
use crate::server::{Kind, Server};
use hfcrypt::xet::{Hash, hash, merkle};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::cell::Cell;
use std::ops::Range;
use std::panic::AssertUnwindSafe;

/// Cases of each test unless told otherwise: about half a second each.
const CASES: u32 = 24;

/// A stretch of a file.
#[derive(Clone, Debug)]
enum Part {
    Random {
        seed: u8,
        len: usize,
    },
    Text {
        len: usize,
    },
    Floats {
        seed: u8,
        count: usize,
    },
    Fill {
        byte: u8,
        len: usize,
    },
    /// Of a file of this or an earlier session.
    Earlier {
        file: Index,
        start: Index,
        len: usize,
    },
}

/// Files uploaded together.
#[derive(Clone, Debug)]
struct Session {
    by_us: bool,
    /// By a client that remembers nothing.
    fresh: bool,
    files: Vec<Vec<Part>>,
}

fn any_part() -> impl Strategy<Value = Part> {
    // Short ones, ordinary ones, and now and then one of several chunks per fetch.
    let len = || prop_oneof![2 => 1..20_000usize, 3 => 20_000..300_000usize, 1 => 300_000..2_000_000usize];
    prop_oneof![
        4 => (0..6u8, len()).prop_map(|(seed, len)| Part::Random { seed, len }),
        1 => len().prop_map(|len| Part::Text { len }),
        1 => (0..3u8, 1..100_000usize).prop_map(|(seed, count)| Part::Floats { seed, count }),
        1 => (any::<u8>(), 1..400_000usize).prop_map(|(byte, len)| Part::Fill { byte, len }),
        5 => (any::<Index>(), any::<Index>(), len()).prop_map(|(file, start, len)| Part::Earlier { file, start, len }),
    ]
}

fn any_session() -> impl Strategy<Value = Session> {
    (any::<bool>(), any::<bool>(), vec(vec(any_part(), 0..4), 1..4)).prop_map(|(by_us, fresh, files)| Session {
        by_us,
        fresh,
        files,
    })
}

/// Sessions, and where ranges begin and end.
fn any_exchange() -> impl Strategy<Value = (Vec<Session>, Vec<[Index; 2]>)> {
    (vec(any_session(), 1..4), vec(any::<[Index; 2]>(), 1..4))
}

/// `salt` makes the random parts of each case its own.
fn content(parts: &[Part], earlier: &[Sample], salt: u64) -> Vec<u8> {
    let seed = |seed: u8| 1_000 * salt + u64::from(seed);
    let part = |part: &Part| match part {
        Part::Random { seed: s, len } => random(seed(*s), *len),
        Part::Text { len } => text(*len),
        Part::Floats { seed: s, count } => floats(seed(*s), *count),
        Part::Fill { byte, len } => vec![*byte; *len],
        Part::Earlier { file, start, len } => {
            let Some(bytes) = (!earlier.is_empty()).then(|| &file.get(earlier).bytes) else { return Vec::new() };
            let start = start.index(bytes.len() + 1);
            bytes[start..(start + len).min(bytes.len())].to_vec()
        }
    };
    parts.iter().flat_map(part).collect()
}

fn file_hash(content: &[u8]) -> Hash {
    let chunks: Vec<_> = chunks(content).map(|chunk| (hash::chunk_hash(&chunk), chunk.len() as u64)).collect();
    merkle::file_hash(&chunks)
}

fn range(bounds: &[Index; 2], len: usize) -> Range<u64> {
    let [a, b] = bounds.map(|bound| bound.index(len + 1) as u64);
    a.min(b)..a.max(b)
}

async fn play(server: &Server, sessions: &[Session], bounds: &[[Index; 2]], salt: u64) {
    let (ours, official) = (Ours::new(server).await, Official::new(server));
    let mut samples: Vec<Sample> = Vec::new();
    let mut files = Vec::new();
    for session in sessions {
        let from = samples.len();
        for parts in &session.files {
            let bytes = content(parts, &samples, salt);
            samples.push(Sample { name: "random", bytes });
        }
        let new = &samples[from..];
        let hashes = match (session.by_us, session.fresh) {
            (true, false) => ours.upload(new).await,
            (true, true) => Ours::new(server).await.upload(new).await,
            (false, false) => official.upload(new).await,
            (false, true) => Official::new(server).upload(new).await,
        };
        for (sample, hash) in new.iter().zip(&hashes) {
            assert_eq!(*hash, file_hash(&sample.bytes).to_string());
        }
        files.extend(hashes);
    }
    for (file, sample) in files.iter().zip(&samples) {
        let ranges: Vec<_> = bounds.iter().map(|bounds| range(bounds, sample.bytes.len())).collect();
        ours.check_ranges(file, sample, ranges.clone()).await;
        official.check_ranges(file, sample, ranges).await;
    }
}

fn exchange_on(kind: Kind) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::start(kind));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    let salt = Cell::new(0);
    let outcome = TestRunner::new(config).run(&any_exchange(), |(sessions, bounds)| {
        salt.set(salt.get() + 1);
        let played = AssertUnwindSafe(play(&server, &sessions, &bounds, salt.get()));
        runtime.block_on(futures::FutureExt::catch_unwind(played)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            TestCaseError::fail(
                text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default(),
            )
        })
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn random_sessions_on_the_official_server_are_read_back_by_both_clients() {
    exchange_on(Kind::Official);
}

#[test]
fn random_sessions_on_the_official_server_with_older_routes_are_read_back_by_both_clients() {
    exchange_on(Kind::OfficialV1);
}

#[test]
fn random_sessions_on_our_server_are_read_back_by_both_clients() {
    exchange_on(Kind::Embedded);
}
