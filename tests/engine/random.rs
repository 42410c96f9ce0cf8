//! A campaign: random files, sessions and faults, several at once on all routes.
//!
//! `PROPTEST_CASES` says how many cases each test plays; a failure names the smallest case that still fails.

use super::*;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Cases of each test unless told otherwise: most of the time of one is waits.
const CASES: u32 = 60;

const ROUTES: [&str; 12] = [
    RECONSTRUCTION,
    "/cas/v1/reconstructions/*",
    DATA,
    GRANT,
    GRANTED,
    COMMIT,
    XORB,
    SHARD,
    SHARD_V1,
    CHUNK,
    "/cas/*",
    TOKEN,
];

/// A file by its recipe. Recipes come again, so that sessions find chunks of earlier ones.
#[derive(Clone, Debug)]
struct Recipe {
    seed: u64,
    len: usize,
    is_text: bool,
    /// Bytes of another seed behind it.
    tail: usize,
}

impl Recipe {
    fn content(&self) -> Vec<u8> {
        let mut content = if self.is_text { text(self.len) } else { random_bytes(self.seed, self.len) };
        content.extend(random_bytes(self.seed + 100, self.tail));
        content
    }

    fn policy(&self) -> Policy {
        if self.is_text { Policy::Auto } else { Policy::Never }
    }
}

fn any_recipe() -> impl Strategy<Value = Recipe> {
    let len = prop_oneof![1 => 0..3usize, 2 => 1..20_000usize, 3 => 100_000..900_000usize];
    (0..20u64, len, any::<bool>(), prop_oneof![2 => Just(0), 1 => 1..200_000usize])
        .prop_map(|(seed, len, is_text, tail)| Recipe { seed, len, is_text, tail })
}

fn any_fault() -> impl Strategy<Value = Fault> {
    let at = || prop_oneof![2 => 0..300u64, 1 => 0..900_000u64];
    let ms = |range: Range<u64>| range.prop_map(Duration::from_millis);
    let status = select(&[400, 401, 403, 404, 408, 409, 412, 416, 429, 500, 501, 502, 503, 504][..]);
    let announced = prop_oneof![Just(None), at().prop_map(Some), Just(Some(1 << 32))];
    let content_range = select(&["", "bytes 0-0/1", "bytes 1-99/100", "bytes */7", "lines 0-9/10"][..]);
    let content_type = select(&["multipart/byteranges; boundary=x", "multipart/byteranges", "text/html"][..]);
    prop_oneof![
        2 => ms(0..400).prop_map(Fault::Delay),
        4 => status.prop_map(|status| Fault::Status { status, retry_after: None, rate_limit: None }),
        2 => (select(&[200, 201, 204, 206, 301, 500][..]), select(&["", "{}", "<html>", "{\"type\":\"error\"}\n"][..]))
            .prop_map(|(status, body)| Fault::Garbage { status, body }),
        2 => Just(Fault::Refuse),
        2 => Just(Fault::LoseAnswer),
        3 => at().prop_map(|after| Fault::CutBody { after }),
        1 => at().prop_map(|after| Fault::Stall { after }),
        2 => (2_000..60_000usize, ms(0..30)).prop_map(|(bytes, every)| Fault::Drip { bytes, every }),
        3 => at().prop_map(|to| Fault::Resize { to }),
        3 => at().prop_map(|at| Fault::CorruptByte { at }),
        1 => content_range.prop_map(|value| Fault::Header { name: "content-range", value }),
        1 => content_type.prop_map(|value| Fault::Header { name: "content-type", value }),
        2 => (select(&[200, 201, 206, 400, 500][..]), announced, ms(0..5))
            .prop_map(|(status, announced, every)| Fault::Zeros { status, announced, every }),
        3 => at().prop_map(|after| Fault::CutUpload { after }),
        1 => at().prop_map(|after| Fault::StallUpload { after }),
        2 => Just(Fault::ExpiredUrls),
        1 => Just(Fault::ExpiredToken),
    ]
}

fn any_rules() -> impl Strategy<Value = Vec<Rule>> {
    let count = prop_oneof![3 => 1..4u64, 1 => Just(u64::MAX)];
    let rule = (select(&ROUTES[..]), 0..3u64, count, any_fault()).prop_map(|(route, skip, count, fault)| Rule {
        skip,
        count,
        ..Rule::once(route, fault)
    });
    prop::collection::vec(rule, 1..5)
}

/// What a ranged read can't tell from the truth, as nothing that it gets has a hash.
fn may_forge(rules: &[Rule]) -> bool {
    rules.iter().any(|rule| matches!(rule.fault, Fault::CorruptByte { .. }))
}

fn campaign<S: Strategy>(cases: S, play: impl AsyncFn(&Rig, S::Value)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::open());
    let cases_wanted = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(CASES);
    // Shrinking plays a case again and again, and one that hangs takes a minute each time: as much
    // as a patient reader waits for.
    let config = Config {
        cases: cases_wanted,
        max_shrink_iters: 60,
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let outcome = TestRunner::new(config).run(&cases, |case| {
        // Not asserted within: a panic must not leave the rig with the rules of the case.
        let played = std::panic::AssertUnwindSafe(async {
            play(&rig, case).await;
        });
        let outcome = runtime.block_on(futures::FutureExt::catch_unwind(played));
        rig.faults.clear();
        outcome.map_err(|panic| TestCaseError::fail(words(&*panic)))
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_else(|| "?".to_owned())
}

fn arm(rig: &Rig, rules: &[Rule]) {
    rules.iter().for_each(|rule| rig.faults.add(rule.clone()));
}

#[test]
fn what_an_upload_without_error_has_stored_is_right() {
    let cases = (prop::collection::vec(any_recipe(), 1..4), any_rules());
    campaign(cases, async |rig, (recipes, rules)| {
        let contents: Vec<_> = recipes.iter().map(|recipe| (recipe.content(), recipe.policy())).collect();
        let files: Vec<_> = contents.iter().map(|(content, policy)| (&content[..], *policy)).collect();
        let client = rig.fresh_client();
        arm(rig, &rules);
        let uploaded = client.upload_all(&files).await;
        rig.faults.clear();
        match uploaded {
            Ok(hashes) => {
                for (hash, (content, _)) in hashes.iter().zip(&contents) {
                    rig.fresh_client().check(hash, content).await;
                }
            }
            Err(error) => assert!(!matches!(error, Error::Io(_)), "{error:?}"),
        }
        rig.expect_recovery(&client).await;
    });
}

#[test]
fn what_a_download_without_error_gives_is_right() {
    campaign((any_recipe(), any_rules()), async |rig, (recipe, rules)| {
        let content = recipe.content();
        let len = content.len();
        let file = rig.client.upload_all(&[(&content, recipe.policy())]).await.unwrap()[0];
        let client = rig.fresh_client();
        arm(rig, &rules);
        if let Ok(read) = client.download(&file, len).await {
            assert!(read == content, "whole");
        }
        rig.faults.clear();
        arm(rig, &rules);
        if let Ok(read) = client.download_unordered(&file, len).await {
            assert!(read == content, "whole, in any order");
        }
        rig.faults.clear();
        arm(rig, &rules);
        let range = len / 3..len;
        let reads = [
            client.read(&file, range.start as u64..range.end as u64).await.map(|bytes| bytes.to_vec()),
            client.stream(&file, range.start as u64..range.end as u64).await,
        ];
        for read in reads.into_iter().flatten() {
            assert_eq!(read.len(), range.len());
            assert!(read == content[range.clone()] || may_forge(&rules), "a range");
        }
        rig.expect_recovery(&client).await;
    });
}

#[test]
fn transfers_that_are_dropped_anywhere_leave_a_client_that_works() {
    let cases = (any_recipe(), any_rules(), 0..60u64);
    campaign(cases, async |rig, (recipe, rules, ms)| {
        let content = recipe.content();
        let file = rig.client.upload_all(&[(&content, recipe.policy())]).await.unwrap()[0];
        let client = rig.fresh_client();
        arm(rig, &rules);
        let fresh = rig.fresh();
        let transfers = async { tokio::join!(client.upload(&fresh), client.download(&file, content.len())) };
        // A clock is how the drop falls anywhere.
        let _ = tokio::time::timeout(Duration::from_millis(ms), transfers).await;
        rig.expect_recovery(&client).await;
    });
}
