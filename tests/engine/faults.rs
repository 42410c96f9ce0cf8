//! Each kind of fault by itself, on every route that a transfer takes.

use super::*;

/// The routes of an upload by grant, and of a download.
const UPLOAD: [&str; 4] = [GRANT, GRANTED, COMMIT, SHARD];
const DOWNLOAD: [&str; 2] = [RECONSTRUCTION, DATA];

/// One `fault` on each route in turn, which a retry or another way must make good.
async fn survived(fault: Fault) {
    survived_on(&[&UPLOAD[..], &DOWNLOAD[..]].concat(), fault).await;
}

async fn survived_on(routes: &[&str], fault: Fault) {
    let rig = Rig::open().await;
    for route in routes {
        rig.faults.add(Rule::once(*route, fault.clone()));
        let content = rig.fresh();
        let transfer = async {
            let file = rig.client.upload(&content).await?;
            rig.client.download(&file, content.len()).await.map(|read| (file, read))
        };
        let (file, read) = transfer.await.unwrap_or_else(|error| panic!("{fault:?} on {route}: {error}"));
        assert!(read == content, "{fault:?} on {route}");
        assert!(!rig.faults.is_armed(), "{fault:?} was never met on {route}");
        rig.fresh_client().check(&file, &content).await;
    }
}

/// `fault` for as long as it takes, on each route in turn: what must fail gives an error that
/// `fits`, in time, and harms nothing.
async fn failed_on(routes: &[&str], fault: Fault, fits: impl Fn(&Error) -> bool) {
    let rig = Rig::open().await;
    let known = rig.fresh();
    let file = rig.client.upload(&known).await.unwrap();
    for route in routes {
        rig.faults.add(Rule::always(*route, fault.clone()));
        let client = rig.fresh_client();
        let error = match DOWNLOAD.contains(route) {
            true => client.download(&file, known.len()).await.err(),
            false => client.upload(&rig.fresh()).await.err(),
        };
        let error = error.unwrap_or_else(|| panic!("{fault:?} on {route} was not noticed"));
        assert!(fits(&error), "{fault:?} on {route}: {error:?}");
        rig.expect_recovery(&client).await;
    }
}

fn status(status: u16) -> Fault {
    Fault::Status { status, retry_after: None, rate_limit: None }
}

fn is_status(wanted: u16) -> impl Fn(&Error) -> bool {
    move |error| matches!(error, Error::Status { status, .. } if *status == wanted)
}

fn is_network(error: &Error) -> bool {
    matches!(error, Error::Network(_))
}

fn is_malformed(error: &Error) -> bool {
    matches!(error, Error::Malformed { .. })
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_is_waited_for() {
    survived(Fault::Delay(Duration::from_millis(100))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limits_are_sat_out() {
    survived(status(429)).await;
    failed_on(&[GRANT, SHARD, RECONSTRUCTION, DATA], status(429), is_status(429)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wait_that_a_server_asks_for_is_kept() {
    let rig = Rig::open().await;
    for (route, retry_after, rate_limit) in [(GRANT, Some(0), None), (DATA, None, Some(0))] {
        rig.faults.add(Rule::once(route, Fault::Status { status: 429, retry_after, rate_limit }));
        let (content, start) = (rig.fresh(), std::time::Instant::now());
        let file = rig.client.upload(&content).await.unwrap();
        rig.client.check(&file, &content).await;
        // A second more than asked.
        assert!(start.elapsed() >= Duration::from_secs(1), "{route}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_errors_are_retried() {
    for code in [408, 500, 502, 503, 504] {
        survived_on(&[GRANT, COMMIT, SHARD, RECONSTRUCTION, DATA], status(code)).await;
    }
    failed_on(&[GRANT, COMMIT, SHARD, RECONSTRUCTION, DATA], status(503), is_status(503)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_connections_are_tried_again() {
    survived(Fault::Refuse).await;
    failed_on(&[GRANT, COMMIT, SHARD, RECONSTRUCTION, DATA], Fault::Refuse, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_asked_for_again() {
    survived(Fault::LoseAnswer).await;
    failed_on(&[GRANT, COMMIT, SHARD, RECONSTRUCTION, DATA], Fault::LoseAnswer, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_answers_are_fetched_again() {
    for after in [0, 10, 150_000] {
        survived_on(&[RECONSTRUCTION, DATA], Fault::CutBody { after }).await;
    }
    survived_on(&[GRANT, SHARD], Fault::CutBody { after: 0 }).await;
    failed_on(&[GRANT, SHARD, RECONSTRUCTION, DATA], Fault::CutBody { after: 0 }, is_network).await;
    failed_on(&[DATA], Fault::CutBody { after: 150_000 }, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stalls_is_given_up_and_fetched_again() {
    survived_on(&[GRANT, RECONSTRUCTION], Fault::Stall { after: 0 }).await;
    survived_on(&[DATA], Fault::Stall { after: 150_000 }).await;
    failed_on(&[SHARD, DATA], Fault::Stall { after: 3 }, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_answer_is_waited_for_as_long_as_it_moves() {
    survived_on(&[DATA], Fault::Drip { bytes: 30_000, every: Duration::from_millis(100) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_drops_is_given_up() {
    let drops = Fault::Drip { bytes: 1, every: Duration::from_millis(50) };
    failed_on(&[RECONSTRUCTION, GRANT], drops, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_the_wrong_length_is_no_answer() {
    for to in [0, 5, 299_999, 300_100] {
        survived_on(&[DATA], Fault::Resize { to }).await;
        failed_on(&[DATA], Fault::Resize { to }, is_malformed).await;
    }
    survived_on(&[RECONSTRUCTION, GRANT], Fault::Resize { to: 9 }).await;
    failed_on(&[RECONSTRUCTION, GRANT, SHARD], Fault::Resize { to: 9 }, is_malformed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_range_than_was_asked_for_is_not_taken() {
    let other = Fault::Header { name: "content-range", value: "bytes 1-300032/300100" };
    survived_on(&[DATA], other.clone()).await;
    failed_on(&[DATA], other, is_malformed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_never_reach_the_reader() {
    let rig = Rig::open().await;
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.unwrap();
    // Of the headers and of the content.
    for at in [0, 1, 4, 5, 8, 9, 100_000, 250_000] {
        for persistent in [false, true] {
            let fault = Fault::CorruptByte { at };
            let rule = if persistent { Rule::always(DATA, fault) } else { Rule::once(DATA, fault) };
            rig.faults.add(rule);
            match rig.fresh_client().download(&file, content.len()).await {
                Ok(read) => assert!(read == content && !persistent, "byte {at}"),
                Err(Error::Malformed { .. } | Error::HashMismatch { .. }) => {}
                Err(error) => panic!("byte {at}: {error:?}"),
            }
            rig.faults.clear();
        }
    }
    rig.expect_recovery(&rig.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_never_reach_the_reader_of_a_range_whose_chunks_are_known() {
    let rig = Rig::open().await;
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.unwrap();
    assert!(rig.client.download(&file, content.len()).await.unwrap() == content);
    let range = 100_000..200_000;
    for at in (0..60_000).step_by(1_234) {
        for persistent in [false, true] {
            let fault = Fault::CorruptByte { at };
            rig.faults.add(if persistent { Rule::always(DATA, fault) } else { Rule::once(DATA, fault) });
            match rig.client.read_known(&file, range.start..range.end).await {
                // A stretch may begin before the range: what isn't read may be damaged.
                Ok(read) => assert!(read == content[range.start as usize..range.end as usize], "byte {at}"),
                Err(Error::Malformed { .. } | Error::HashMismatch { .. }) => assert!(persistent, "byte {at}"),
                Err(error) => panic!("byte {at}: {error:?}"),
            }
            rig.faults.clear();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_answer_is_not_believed_for_ever() {
    let rig = Rig::open().await;
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.unwrap();
    // Every few bytes of a reconstruction. What still parses may lead anywhere; what is seen to
    // fail, not a second time.
    for at in (0..800).step_by(5) {
        let client = rig.fresh_client();
        rig.faults.add(Rule::once(RECONSTRUCTION, Fault::CorruptByte { at }));
        let first = client.read(&file, 1_000..250_000).await;
        rig.faults.clear();
        if first.is_ok() {
            continue;
        }
        let again = client.read(&file, 1_000..250_000).await;
        let again = again.unwrap_or_else(|error| panic!("byte {at} of an earlier answer: {error:?}"));
        assert!(again == content[1_000..250_000], "byte {at} of an earlier answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_a_proxy_is_an_error_on_every_route() {
    let page = |status| Fault::Garbage { status, body: "<html>welcome to the lounge</html>" };
    failed_on(&[RECONSTRUCTION, DATA, GRANT, SHARD], page(201), |error| {
        matches!(error, Error::Malformed { .. } | Error::Status { status: 201, .. })
    })
    .await;
    failed_on(&[RECONSTRUCTION, DATA, SHARD], page(200), is_malformed).await;
    failed_on(&[DATA], page(206), is_malformed).await;
    failed_on(&[RECONSTRUCTION, DATA, GRANT, COMMIT, SHARD], page(502), is_status(502)).await;
    failed_on(&[RECONSTRUCTION, GRANT, SHARD], page(400), is_status(400)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_shard_route_may_be_silent_for_a_while_and_not_for_ever() {
    let rig = Rig::open().await;
    rig.faults.add(Rule::always(SHARD, status(404)));
    rig.faults.add(Rule::always(SHARD_V1, Fault::Stall { after: 0 }));
    let error = rig.client.upload(&rig.fresh()).await.unwrap_err();
    assert!(is_network(&error), "{error:?}");
    rig.expect_recovery(&rig.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_reset_is_sent_again() {
    survived_on(&[GRANTED, SHARD], Fault::CutUpload { after: 0 }).await;
    survived_on(&[GRANTED], Fault::CutUpload { after: 100_000 }).await;
    failed_on(&[SHARD], Fault::CutUpload { after: 0 }, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_taking_an_upload_is_given_up() {
    survived_on(&[GRANTED], Fault::StallUpload { after: 100_000 }).await;
    failed_on(&[SHARD], Fault::StallUpload { after: 0 }, is_network).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_grants_end_in_a_direct_upload() {
    let rig = Rig::open().await;
    for fault in [
        status(400),
        status(403),
        status(409),
        status(500),
        Fault::Refuse,
        Fault::LoseAnswer,
        Fault::CutUpload { after: 100_000 },
        Fault::Garbage { status: 302, body: "" },
    ] {
        rig.faults.add(Rule::always(GRANTED, fault.clone()));
        let content = rig.fresh();
        let file = rig.client.upload(&content).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        rig.faults.clear();
        rig.fresh_client().check(&file, &content).await;
    }
    // Granted and put, but the commit finds nothing, however often.
    rig.faults.add(Rule::always(COMMIT, status(404)));
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.unwrap();
    rig.expect_recovery(&rig.client).await;
    rig.client.check(&file, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_grants_and_newer_routes_is_served_by_the_older_ones() {
    let rig = Rig::open().await;
    for route in [GRANT, SHARD, RECONSTRUCTION] {
        rig.faults.add(Rule::always(route, status(404)));
    }
    // And those fail now and then, too.
    for route in [XORB, SHARD_V1, "/cas/v1/reconstructions/*"] {
        for fault in [status(503), Fault::LoseAnswer] {
            rig.faults.add(Rule::once(route, fault.clone()));
        }
    }
    rig.faults.add(Rule::once(XORB, Fault::CutUpload { after: 100_000 }));
    let client = Client::with(&rig.endpoint, &rig.tokens, http::Options { retries: 4, ..impatient() });
    let content = rig.fresh();
    let file = client.upload(&content).await.unwrap();
    client.check(&file, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_that_has_run_out_is_asked_for_again() {
    survived_on(&[GRANT], Fault::ExpiredUrls).await;
    let rig = Rig::open().await;
    rig.faults.add(Rule::always(GRANT, Fault::ExpiredUrls));
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.expect("then directly");
    rig.client.check(&file, &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_url_that_has_run_out_is_asked_for_again_once() {
    survived_on(&[RECONSTRUCTION], Fault::ExpiredUrls).await;
    survived_on(&[DATA], status(403)).await;
    failed_on(&[RECONSTRUCTION], Fault::ExpiredUrls, |error| matches!(error, Error::Forbidden(_))).await;
    failed_on(&[DATA], status(403), |error| matches!(error, Error::Forbidden(_))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_token_is_replaced_once() {
    let rig = Rig::open().await;
    rig.faults.add(Rule::once(TOKEN, Fault::ExpiredToken));
    let content = rig.fresh();
    let file = rig.client.upload(&content).await.unwrap();
    rig.client.check(&file, &content).await;
    assert!(!rig.faults.is_armed());

    let rig = Rig::open().await;
    rig.faults.add(Rule::always(TOKEN, Fault::ExpiredToken));
    let error = rig.client.upload(&rig.fresh()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized), "{error:?}");
    rig.expect_recovery(&rig.client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_without_end_are_not_read_to_their_end() {
    let zeros = |status, announced| Fault::Zeros { status, announced, every: Duration::ZERO };
    for announced in [None, Some(1 << 30)] {
        for status in [200, 206] {
            failed_on(&[DATA], zeros(status, announced), is_malformed).await;
        }
        failed_on(&[RECONSTRUCTION, SHARD], zeros(200, announced), is_malformed).await;
        failed_on(&[GRANT], zeros(201, announced), is_malformed).await;
        failed_on(&[RECONSTRUCTION, DATA, GRANT, COMMIT, SHARD], zeros(500, announced), is_status(500)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_query_that_fails_costs_nothing_but_dedup() {
    let rig = Rig::open().await;
    let content = rig.fresh();
    rig.client.upload(&content).await.unwrap();
    for fault in [
        status(429),
        status(500),
        Fault::Refuse,
        Fault::CutBody { after: 20 },
        Fault::CorruptByte { at: 3 },
        Fault::CorruptByte { at: 150 },
        Fault::Resize { to: 100 },
        Fault::Stall { after: 20 },
        Fault::Garbage { status: 200, body: "<html>" },
        Fault::Zeros { status: 200, announced: None, every: Duration::ZERO },
    ] {
        rig.faults.add(Rule::always(CHUNK, fault.clone()));
        let client = rig.fresh_client();
        let longer = [&content[..], &rig.fresh()[..]].concat();
        let file = client.upload(&longer).await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        rig.faults.clear();
        rig.fresh_client().check(&file, &longer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_transfers_leave_nothing_behind() {
    let rig = Rig::open().await;
    let known = rig.fresh();
    let file = rig.client.upload(&known).await.unwrap();
    for route in [GRANT, GRANTED, COMMIT, SHARD, RECONSTRUCTION, DATA] {
        // More at once than there are permits.
        rig.faults.add(Rule::always(route, Fault::Delay(FOR_EVER)));
        let transfers = (0..2 * impatient().in_flight).map(|_| async {
            match DOWNLOAD.contains(&route) {
                true => rig.client.download(&file, known.len()).await.map(drop),
                false => rig.client.upload(&rig.fresh()).await.map(drop),
            }
        });
        let all = futures::future::join_all(transfers);
        assert!(tokio::time::timeout(Duration::from_millis(300), all).await.is_err(), "{route}");
        rig.expect_recovery(&rig.client).await;
    }
}
