//! Files over HTTP, between each client and each server.

use crate::client::{Official, Ours, context};
use crate::content::{Sample, random, samples, small_samples};
use crate::server::{BUCKET, HUB_TOKEN, Kind, Server};
use crate::tap::Tap;
use hfcrypt::xet::{Error, Hash};
use std::sync::Arc;
use xet_client::cas_client::auth::DirectRefreshRouteTokenRefresher;
use xet_client::cas_client::build_http_client;
use xet_client::common::auth::BearerCredentialHelper;

/// The same facts of every server.
macro_rules! on_each_server {
    ($($server:ident: $kind:expr;)*) => {$(
        mod $server {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn what_we_upload_both_clients_read() {
                let server = Server::start($kind).await;
                let (samples, ours) = (samples(), Ours::new(&server).await);
                let files = ours.upload(&samples).await;
                both_read(&server, &files, &samples).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn what_the_official_client_uploads_both_clients_read() {
                let server = Server::start($kind).await;
                let samples = samples();
                let files = Official::new(&server).upload(&samples).await;
                both_read(&server, &files, &samples).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn many_small_files_of_one_session_are_all_there() {
                let server = Server::start($kind).await;
                let samples = small_samples();
                let files = Ours::new(&server).await.upload(&samples).await;
                assert_eq!(files, Official::new(&server).upload(&samples).await);
                both_read(&server, &files, &samples).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn both_clients_name_a_file_alike_and_upload_it_again_without_harm() {
                let server = Server::start($kind).await;
                let (samples, ours) = (samples(), Ours::new(&server).await);
                let files = ours.upload(&samples).await;
                assert_eq!(files, Official::new(&server).upload(&samples).await);
                assert_eq!(files, ours.upload(&samples).await);
                both_read(&server, &files, &samples).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn the_official_client_finds_our_chunks_and_builds_on_our_xorbs() {
                let server = Server::start($kind).await;
                the_official_client_dedups_against_us(&server).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn our_client_finds_official_chunks_and_builds_on_official_xorbs() {
                let server = Server::start($kind).await;
                our_client_dedups_against_the_official_one(&server).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn reading_past_the_end_is_an_error() {
                let server = Server::start($kind).await;
                reading_past_the_end(&server).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn no_client_takes_an_older_route_than_the_server_has() {
                the_routes_taken($kind).await;
            }
        }
    )*};
}

on_each_server! {
    official: Kind::Official;
    official_v1: Kind::OfficialV1;
    official_narrow: Kind::OfficialNarrow;
    embedded: Kind::Embedded;
}

async fn both_read(server: &Server, files: &[String], samples: &[Sample]) {
    assert_eq!(files.len(), samples.len());
    let (ours, official) = (Ours::new(server).await, Official::new(server));
    for (file, sample) in files.iter().zip(samples) {
        ours.check(file, sample).await;
        official.check(file, sample).await;
    }
}

async fn the_official_client_dedups_against_us(server: &Server) {
    let shared = random(20, 3_000_000);
    let first = [Sample { name: "first", bytes: shared.clone() }];
    Ours::new(server).await.upload(&first).await;
    let second = [Sample { name: "second", bytes: [shared, random(21, 100_000)].concat() }];
    let (files, metrics) = Official::new(server).upload_measured(&second).await;
    // All but the chunk at the seam.
    assert!(metrics.deduped_bytes_by_global_dedup > 2_800_000, "{metrics:?}");
    assert!(metrics.xorb_bytes_uploaded < 300_000, "{metrics:?}");
    both_read(server, &files, &second).await;
}

async fn our_client_dedups_against_the_official_one(server: &Server) {
    let shared = random(22, 3_000_000);
    let first = [Sample { name: "first", bytes: shared.clone() }];
    Official::new(server).upload(&first).await;
    let second = [Sample { name: "random, second", bytes: [shared, random(23, 100_000)].concat() }];
    let (files, report) = Ours::new(server).await.upload_measured(&second).await;
    // All but the chunk at the seam.
    assert!(report.deduplicated > 2_800_000, "{report:?}");
    assert!(report.stored < 300_000, "{report:?}");
    both_read(server, &files, &second).await;
}

async fn reading_past_the_end(server: &Server) {
    let ours = Ours::new(server).await;
    let sample = [Sample { name: "short", bytes: random(30, 5_000) }];
    let file: Hash = ours.upload(&sample).await[0].parse().unwrap();
    let behind = ours.downloader().read(&file, 5_000..5_001).await.unwrap_err();
    assert!(matches!(behind, Error::RangeNotSatisfiable), "{behind}");
    ours.downloader().read(&file, 4_999..5_001).await.expect_err("a byte is missing");
    // The official test server says 416 of a file it doesn't know, where the API says 404.
    let unknown = Hash([9; 32]);
    let missing = ours.downloader().read(&unknown, 0..1).await.unwrap_err();
    let known_to_be_missing = matches!(missing, Error::NotFound(hash) if hash == unknown);
    assert!(
        known_to_be_missing || (server.hub.is_none() && matches!(missing, Error::RangeNotSatisfiable)),
        "{missing}"
    );
}

async fn the_routes_taken(kind: Kind) {
    let sample = [Sample { name: "routed", bytes: random(31, 200_000) }];
    let older = ["/v1/xorbs/", "/v1/shards", "/v1/reconstructions/"];
    let newer = ["/v1/xorb-commits/", "/v2/shards", "/v2/reconstructions/"];
    let taken = if matches!(kind, Kind::OfficialV1) { older } else { newer };
    for we in [true, false] {
        let mut server = Server::start(kind).await;
        let tap = Tap::on(&mut server).await;
        if we {
            let ours = Ours::new(&server).await;
            ours.check(&ours.upload(&sample).await[0], &sample[0]).await;
        } else {
            let official = Official::new(&server);
            official.check(&official.upload(&sample).await[0], &sample[0]).await;
        }
        for route in taken {
            assert!(tap.has_heard(route), "ours: {we}, {route}");
        }
        if taken == newer {
            for route in older {
                assert!(!tap.has_heard(route), "ours: {we}, {route}");
            }
        }
    }
}

/// More than a xorb holds, and a start that comes again in another xorb.
fn large() -> [Sample; 1] {
    let mut bytes = random(40, 65 * 1024 * 1024);
    bytes.extend_from_within(..1024 * 1024);
    [Sample { name: "large", bytes }]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_xorbs_of_ours_is_read_from_the_official_server() {
    let (server, large) = (Server::start(Kind::Official).await, large());
    let files = Ours::new(&server).await.upload(&large).await;
    both_read(&server, &files, &large).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_several_official_xorbs_is_read_from_our_server() {
    let (server, large) = (Server::start(Kind::Embedded).await, large());
    let files = Official::new(&server).upload(&large).await;
    both_read(&server, &files, &large).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_its_token_from_our_token_route() {
    let server = Server::start(Kind::Embedded).await;
    let route = format!("{}/api/buckets/{}/{}/xet-write-token", server.hub.as_ref().unwrap(), BUCKET.0, BUCKET.1);
    let (context, credential) = (context(), BearerCredentialHelper::new(HUB_TOKEN.to_owned(), "test"));
    let http = build_http_client(&context, "", None, None).unwrap();
    let refresher = Arc::new(DirectRefreshRouteTokenRefresher::new(context, route, http, Some(credential)));
    assert_eq!(refresher.get_cas_jwt().await.unwrap().cas_url, server.token.url);
    let sample = [Sample { name: "refreshed", bytes: random(50, 300_000) }];
    let files = Official::refreshing(&server, refresher).upload(&sample).await;
    both_read(&server, &files, &sample).await;
}
