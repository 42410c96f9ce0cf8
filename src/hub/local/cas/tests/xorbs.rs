//! Uploads of xorbs, direct and by grant.

use super::*;
use crate::hub::local::cas::intake::Intake;
use serde_json::json;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/xet/");
const VECTOR_HASH: &str = "cbb825aee83600a7386a2ff3f0730e3604ee93cbf02a5482cd24dd5500a6832e";

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(format!("{VECTORS}{name}")).unwrap()
}

#[tokio::test]
async fn xorbs_of_the_reference_are_taken_with_and_without_footer() {
    for scheme in ["none", "lz4", "bg4lz4"] {
        for (form, prefix) in [("upload", "default"), ("footer", "default-merkledb")] {
            let dir = tempfile::tempdir().unwrap();
            let site = Site::open(dir.path()).await;
            let path = format!("/v1/xorbs/{prefix}/{VECTOR_HASH}");
            for was_inserted in [true, false] {
                let response = site.post(&path, vector(&format!("xorb3_{scheme}.{form}.bin"))).send().await.unwrap();
                assert_eq!(response.status(), StatusCode::OK, "{scheme} {form}");
                assert_eq!(json(response).await, json!({ "was_inserted": was_inserted }));
            }
            // Stored is what the reference stores: the chunks and its own footer, but for the nonce.
            let stored = std::fs::read(dir.path().join("xorbs/cb").join(VECTOR_HASH)).unwrap();
            let footer = vector(&format!("xorb3_{scheme}.footer.bin"));
            assert_eq!(xorb::parse_footer(&stored).unwrap(), xorb::parse_footer(&footer).unwrap());
            assert_eq!(stored.len(), footer.len());
            let head = site.request_for(site.bucket, Scope::Read, Method::HEAD, &path).send().await.unwrap();
            assert_eq!(
                head.headers()["content-length"],
                vector(&format!("xorb3_{scheme}.upload.bin")).len().to_string()
            );
        }
    }
}

#[tokio::test]
async fn a_body_that_is_not_the_xorb_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let good = vector("xorb3_lz4.upload.bin");
    let mut flipped = good.clone();
    flipped[12] ^= 1;
    let mut unknown_scheme = good.clone();
    unknown_scheme[4] = 99;
    let footer_only = vector("xorb3_lz4.footer.bin").split_off(good.len());
    let bodies = [
        ("empty", Vec::new()),
        ("cut short", good[..good.len() - 1].to_vec()),
        ("cut in a header", good[..good.len() - 200].to_vec()),
        ("a chunk fewer", good[..145].to_vec()),
        ("a byte more", [good.as_slice(), &[0]].concat()),
        ("flipped bit", flipped),
        ("unknown scheme", unknown_scheme),
        ("no chunks", footer_only),
        ("chunk twice", [good.as_slice(), &good[..19]].concat()),
    ];
    for (name, body) in bodies {
        let response = site.post(&format!("/v1/xorbs/default/{VECTOR_HASH}"), body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{name}");
    }
    for hash in ["", "zz", &VECTOR_HASH[1..], &format!("{VECTOR_HASH}0"), &VECTOR_HASH.replace('c', "g")] {
        let response = site.post(&format!("/v1/xorbs/default/{hash}"), good.clone()).send().await.unwrap();
        assert!(response.status().is_client_error(), "{hash}");
    }
    let other = site.post(&format!("/v1/xorbs/other/{VECTOR_HASH}"), good.clone()).send().await.unwrap();
    assert_eq!(other.status(), StatusCode::NOT_FOUND);
    assert!(!dir.path().join("xorbs").exists());
    let staged = std::fs::read_dir(dir.path().join("staging")).unwrap();
    assert!(staged.flatten().all(|folder| std::fs::read_dir(folder.path()).unwrap().next().is_none()));
}

#[tokio::test]
async fn a_full_xorb_is_taken_and_a_longer_body_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    // 64 MiB raw and the headers on top: more than 64 MiB serialised.
    let chunk = splitmix64(5, 131_072);
    let chunks: Vec<Vec<u8>> = (0..512u32).map(|i| [&i.to_le_bytes()[..], &chunk[4..]].concat()).collect();
    let mut body = Vec::new();
    let mut leaves = Vec::new();
    for chunk in &chunks {
        let header = xorb::ChunkHeader { stored_len: 131_072, scheme: Scheme::None, raw_len: 131_072 };
        body.extend_from_slice(&header.to_bytes());
        body.extend_from_slice(chunk);
        leaves.push((hash::chunk_hash(chunk), 131_072));
    }
    let path = format!("/v1/xorbs/default/{}", merkle::xorb_hash(&leaves));
    let mut longer = body.clone();
    longer.resize(xorb::MAX_SERIALISED + 1, 0);
    assert_eq!(site.post(&path, longer).send().await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(site.post(&path, body).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn more_chunks_than_a_xorb_has_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let chunk =
        [xorb::ChunkHeader { stored_len: 1, scheme: Scheme::None, raw_len: 1 }.to_bytes().as_slice(), b"x"].concat();
    for (count, status) in [(xorb::MAX_CHUNKS, StatusCode::OK), (xorb::MAX_CHUNKS + 1, StatusCode::BAD_REQUEST)] {
        let hash = merkle::xorb_hash(&vec![(hash::chunk_hash(b"x"), 1); count]);
        let response = site.post(&format!("/v1/xorbs/default/{hash}"), chunk.repeat(count)).send().await.unwrap();
        assert_eq!(response.status(), status, "{count}");
    }
}

/// A request for a grant, and what it says.
async fn ask(site: &Site, body: &[u8], hash: &Hash) -> Response {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, body);
    ask_with(site, hash, json!({ "length": body.len(), "checksum": { "algo": "crc64nvme", "value": crc.to_string() } }))
        .await
}

async fn ask_with(site: &Site, hash: &Hash, request: serde_json::Value) -> Response {
    site.post(&format!("/v1/xorb-grants/default/{hash}"), request.to_string()).send().await.unwrap()
}

async fn put(site: &Site, grant: &serde_json::Value, body: impl Into<reqwest::Body>) -> StatusCode {
    assert_eq!(grant["method"], "PUT");
    let mut request = site.http.put(grant["url"].as_str().unwrap()).body(body);
    for (name, value) in grant["headers"].as_object().unwrap() {
        request = request.header(name, value.as_str().unwrap());
    }
    request.send().await.unwrap().status()
}

async fn commit(site: &Site, hash: &Hash, id: &str) -> StatusCode {
    site.post(&format!("/v1/xorb-commits/default/{hash}/grant/{id}"), "").send().await.unwrap().status()
}

#[tokio::test]
async fn a_grant_takes_the_xorb_it_was_given_for_once() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 200_000);
    let (hash, body) = (sample.xorb.index.hash, sample.xorb.body.clone());
    let response = ask(&site, &body, &hash).await;
    assert_eq!(response.status(), StatusCode::CREATED);
    let grant = json(response).await;
    let id = grant["id"].as_str().unwrap();
    assert_eq!(commit(&site, &hash, id).await, StatusCode::NOT_FOUND);
    assert_eq!(put(&site, &grant, body.clone()).await, StatusCode::OK);
    assert_eq!(put(&site, &grant, body.clone()).await, StatusCode::PRECONDITION_FAILED);
    assert_eq!(commit(&site, &hash, id).await, StatusCode::OK);
    assert_eq!(commit(&site, &hash, id).await, StatusCode::OK, "a commit whose answer was lost is repeated");
    assert_eq!(ask(&site, &body, &hash).await.status(), StatusCode::OK);
    assert_eq!(site.put_shard(&sample.shard()).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_grant_refuses_anything_else() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 200_000);
    let (hash, body) = (sample.xorb.index.hash, sample.xorb.body.to_vec());
    let grant = json(ask(&site, &body, &hash).await).await;
    let id = grant["id"].as_str().unwrap().to_owned();

    let mut flipped = body.clone();
    flipped[100] ^= 1;
    assert_eq!(put(&site, &grant, flipped.clone()).await, StatusCode::BAD_REQUEST, "checksum");
    assert_eq!(put(&site, &grant, body[1..].to_vec()).await, StatusCode::BAD_REQUEST, "shorter");
    assert_eq!(put(&site, &grant, [&body[..], &[0]].concat()).await, StatusCode::BAD_REQUEST, "longer");
    // Granted as it is, but not the xorb; or the xorb, but with a footer.
    let footer = [&body[..], &xorb::write_footer(&sample.xorb.index)].concat();
    for wrong in [flipped, footer] {
        let grant = json(ask(&site, &wrong, &hash).await).await;
        assert_eq!(put(&site, &grant, wrong).await, StatusCode::BAD_REQUEST);
        assert_eq!(commit(&site, &hash, grant["id"].as_str().unwrap()).await, StatusCode::NOT_FOUND);
    }

    let url = grant["url"].as_str().unwrap();
    let other = Sample::random(2, 1000).xorb.index.hash;
    let altered = [
        url.replace(&hash.to_string(), &other.to_string()),
        url.replace(&id, &id.replacen('-', "0-", 1)),
        url.replace(&id, &format!("{id}-")),
        url.replace(&id, &format!("+{id}")),
        url.replace(&id, "x"),
    ];
    for altered in altered {
        assert_ne!(altered, url);
        let status = site.http.put(&altered).body(body.clone()).send().await.unwrap().status();
        assert_eq!(status, StatusCode::FORBIDDEN, "{altered}");
    }
    for bad_id in ["x", "..", "%2e%2e", "1-2-3-4"] {
        assert_eq!(commit(&site, &hash, bad_id).await, StatusCode::NOT_FOUND);
    }
    assert_eq!(commit(&site, &other, &id).await, StatusCode::NOT_FOUND);
    assert_eq!(put(&site, &grant, body).await, StatusCode::OK, "none of this has used it up");
}

#[tokio::test]
async fn a_malformed_request_for_a_grant_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let checksum = json!({ "algo": "crc64nvme", "value": "1" });
    let requests = [
        json!({}),
        json!({ "length": 0, "checksum": checksum }),
        json!({ "length": 64 * 1024 * 1024 + 8 * 8192 + 1, "checksum": checksum }),
        json!({ "length": -1, "checksum": checksum }),
        json!({ "length": 10, "checksum": { "algo": "md5", "value": "1" } }),
        json!({ "length": 10, "checksum": { "algo": "crc64nvme", "value": "0x1" } }),
        json!({ "length": 10, "checksum": { "algo": "crc64nvme", "value": 1 } }),
        json!({ "length": 10, "checksum": checksum, "more": "x".repeat(5000) }),
    ];
    for request in requests {
        let status = ask_with(&site, &Hash::ZERO, request.clone()).await.status();
        assert_eq!(status, StatusCode::BAD_REQUEST, "{request}");
    }
    let other_prefix = site.post(&format!("/v1/xorb-grants/other/{}", Hash::ZERO), "{}").send().await.unwrap();
    assert_eq!(other_prefix.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_same_chunks_compressed_otherwise_do_not_replace_what_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let content = text(300_000);
    let (plain, packed) = (Sample::new(content.clone(), Scheme::None), Sample::new(content, Scheme::Lz4));
    assert_eq!(plain.xorb.index.hash, packed.xorb.index.hash);
    let site = Site::open(dir.path()).await;
    site.put(&plain).await;
    let (store, hash, body) = (site.store(), plain.xorb.index.hash, packed.xorb.body.clone());
    // Past the check that an upload begins with, as where two processes race.
    let inserted = tokio::task::spawn_blocking(move || Intake::new(&store, hash, true).store(&body));
    assert!(!inserted.await.unwrap().unwrap());
    let answer = site.reconstruct(2, &plain.hash(), None).await.unwrap();
    assert_eq!(site.read_terms(&answer).await, plain.content);
}

fn stored_file(dir: &Path, hash: &Hash) -> std::path::PathBuf {
    let name = hash.to_string();
    dir.join("xorbs").join(&name[..2]).join(&name)
}

/// What may happen to a file: a bit flips in a chunk or in the footer, or its end is lost.
fn damages(sound: &[u8]) -> [Vec<u8>; 4] {
    let flipped = |at: usize| {
        let mut bytes = sound.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    [flipped(50_000), flipped(sound.len() - 100), sound[..sound.len() / 2].to_vec(), Vec::new()]
}

#[tokio::test]
async fn a_damaged_xorb_is_replaced_by_the_next_upload_and_a_sound_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 200_000);
    let (hash, body) = (sample.xorb.index.hash, sample.xorb.body.clone());
    site.put(&sample).await;
    let path = stored_file(dir.path(), &hash);
    let sound = std::fs::read(&path).unwrap();
    for damaged in damages(&sound) {
        std::fs::write(&path, &damaged).unwrap();
        let flipped = [&[body[0] ^ 1], &body[1..]].concat();
        let refused = site.post(&format!("/v1/xorbs/default/{hash}"), flipped).send().await.unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
        assert_eq!(std::fs::read(&path).unwrap(), damaged, "only what is verified replaces it");
        // Another process, which has nothing cached, and this one.
        let sites = [Site::open(dir.path()).await, Site::open(dir.path()).await];
        assert!(sites[0].put_xorb(&sample.xorb).await);
        assert_eq!(std::fs::read(&path).unwrap().len(), sound.len());
        assert!(!sites[1].put_xorb(&sample.xorb).await);
        let answer = site.reconstruct(2, &sample.hash(), None).await.unwrap();
        assert_eq!(site.read_terms(&answer).await, sample.content);
    }
}

#[tokio::test]
async fn a_damaged_xorb_is_replaced_by_grant_too() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 200_000);
    let (hash, body) = (sample.xorb.index.hash, sample.xorb.body.clone());
    site.put(&sample).await;
    let path = stored_file(dir.path(), &hash);
    for damaged in damages(&std::fs::read(&path).unwrap()) {
        std::fs::write(&path, damaged).unwrap();
        let response = ask(&site, &body, &hash).await;
        assert_eq!(response.status(), StatusCode::CREATED);
        let grant = json(response).await;
        assert_eq!(put(&site, &grant, body.clone()).await, StatusCode::OK);
        assert_eq!(commit(&site, &hash, grant["id"].as_str().unwrap()).await, StatusCode::OK);
        assert_eq!(ask(&site, &body, &hash).await.status(), StatusCode::OK, "there, and sound");
        let answer = site.reconstruct(2, &sample.hash(), None).await.unwrap();
        assert_eq!(site.read_terms(&answer).await, sample.content);
    }
}

#[tokio::test]
async fn a_replacement_with_other_offsets_is_noticed_by_who_knew_the_old_ones() {
    let dir = tempfile::tempdir().unwrap();
    let content = text(300_000);
    let (plain, packed) = (Sample::new(content.clone(), Scheme::None), Sample::new(content, Scheme::Lz4));
    let hash = plain.xorb.index.hash;
    let (knowing, other) = (Site::open(dir.path()).await, Site::open(dir.path()).await);
    knowing.put(&plain).await;
    std::fs::write(stored_file(dir.path(), &hash), b"damaged").unwrap();
    assert!(other.put_xorb(&packed.xorb).await);
    let (_, index) = knowing.store().xorbs().open(&hash).unwrap();
    assert_eq!(index.chunks, packed.xorb.index.chunks);
    let answer = knowing.reconstruct(2, &plain.hash(), None).await.unwrap();
    assert_eq!(knowing.read_terms(&answer).await, plain.content);
}
