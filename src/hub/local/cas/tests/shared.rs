//! One directory, several openings: what holds between processes holds between these.

use super::*;
use std::sync::Arc;

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let sample = Sample::random(1, 1_000_000);
    let first = Site::open(dir.path()).await;
    first.put(&sample).await;
    let answer = first.reconstruct(2, &sample.hash(), None).await.unwrap();
    let old_url = url::Url::parse(&answer.fetches[0].url).unwrap();
    let Site { hub, server, .. } = first;
    server.stop().await;
    drop(hub);

    let second = Site::open(dir.path()).await;
    let answer = second.reconstruct(2, &sample.hash(), None).await.unwrap();
    assert_eq!(second.read_terms(&answer).await, sample.content);
    assert!(!second.put_xorb(&sample.xorb).await);
    // URLs live longer than the process that signed them.
    let mut url = old_url;
    url.set_port(Some(second.server.address().port())).unwrap();
    assert_eq!(second.fetch(url.as_str(), "bytes=0-9").await.status(), StatusCode::PARTIAL_CONTENT);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn openings_of_one_directory_work_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let sites = [Arc::new(Site::open(dir.path()).await), Arc::new(Site::open(dir.path()).await)];
    assert_eq!(sites[0].bucket, sites[1].bucket);
    // Each content through both at once, in both compressions: the offsets of one must never meet
    // the bytes of the other.
    let mut tasks = tokio::task::JoinSet::new();
    let contents: Vec<_> = (0..6usize).map(|i| text(200_000 + 40_000 * i)).collect();
    for (i, content) in contents.iter().enumerate() {
        for (site, scheme) in sites.iter().zip([Scheme::None, Scheme::Lz4]) {
            let (site, sample) = (Arc::clone(site), Sample::new(content.clone(), scheme));
            tasks.spawn(async move {
                if i % 2 == 0 {
                    site.put(&sample).await;
                } else {
                    put_by_grant(&site, &sample.xorb).await;
                    assert_eq!(site.put_shard(&sample.shard()).await.status(), StatusCode::OK);
                }
                let answer = site.reconstruct(2, &sample.hash(), None).await.unwrap();
                assert!(site.read_terms(&answer).await == sample.content);
            });
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for content in contents {
        let hash = Sample::new(content.clone(), Scheme::None).hash();
        let answers =
            [sites[0].reconstruct(1, &hash, None).await.unwrap(), sites[1].reconstruct(1, &hash, None).await.unwrap()];
        let bytes = answers.clone().map(|answer| answer.fetches.into_iter().map(|f| f.bytes).collect::<Vec<_>>());
        assert_eq!(bytes[0], bytes[1]);
        // Each reads what the other says.
        assert!(sites[0].read_terms(&answers[1]).await == content);
        assert!(sites[1].read_terms(&answers[0]).await == content);
    }
}

async fn put_by_grant(site: &Site, xorb: &Xorb) {
    let hash = xorb.index.hash;
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &xorb.body);
    let request = serde_json::json!({
        "length": xorb.body.len(), "checksum": { "algo": "crc64nvme", "value": crc.to_string() },
    });
    let response = site.post(&format!("/v1/xorb-grants/default/{hash}"), request.to_string()).send().await.unwrap();
    if response.status() == StatusCode::OK {
        return;
    }
    let grant = json(response).await;
    let put = site.http.put(grant["url"].as_str().unwrap()).body(xorb.body.clone()).send().await.unwrap().status();
    assert!(put == StatusCode::OK || put == StatusCode::PRECONDITION_FAILED, "{put}");
    let id = grant["id"].as_str().unwrap();
    let commit = site.post(&format!("/v1/xorb-commits/default/{hash}/grant/{id}"), "").send().await.unwrap();
    assert_eq!(commit.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_grant_of_one_opening_is_good_at_another() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (Site::open(dir.path()).await, Site::open(dir.path()).await);
    let sample = Sample::random(1, 100_000);
    let (hash, body) = (sample.xorb.index.hash, sample.xorb.body.clone());
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &body);
    let request = serde_json::json!({
        "length": body.len(), "checksum": { "algo": "crc64nvme", "value": crc.to_string() },
    });
    let grant =
        json(first.post(&format!("/v1/xorb-grants/default/{hash}"), request.to_string()).send().await.unwrap()).await;
    let mut url = url::Url::parse(grant["url"].as_str().unwrap()).unwrap();
    url.set_port(Some(second.server.address().port())).unwrap();
    assert_eq!(second.http.put(url).body(body).send().await.unwrap().status(), StatusCode::OK);
    let commit = format!("/v1/xorb-commits/default/{hash}/grant/{}", grant["id"].as_str().unwrap());
    assert_eq!(first.post(&commit, "").send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(first.put_shard(&sample.shard()).await.status(), StatusCode::OK);
    assert!(second.reconstruct(1, &sample.hash(), None).await.is_ok());
}
