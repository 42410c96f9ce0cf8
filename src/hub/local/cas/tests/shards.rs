//! Shards: what is registered, and everything that isn't.

use super::*;
use crate::xet::shard::Footer;

#[tokio::test]
async fn a_shard_registers_its_files_and_says_whether_they_are_new() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    site.put_xorb(&sample.xorb).await;
    for result in [1, 0] {
        let answer = json(site.put_shard(&sample.shard()).await).await;
        assert_eq!(answer["result"], result);
        assert_eq!(answer["shard_hash"], hash::chunk_hash(&sample.shard().to_upload()).to_string());
    }
}

async fn frames(site: &Site, shard: Vec<u8>) -> (StatusCode, Vec<serde_json::Value>) {
    let response = site.post("/v2/shards", shard).send().await.unwrap();
    let status = response.status();
    let body = response.text().await.unwrap();
    if status != StatusCode::OK {
        return (status, Vec::new());
    }
    (status, body.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

#[tokio::test]
async fn v2_reports_progress_and_ends_with_one_result() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    site.put_xorb(&sample.xorb).await;
    let (status, frames) = frames(&site, sample.shard().to_upload()).await;
    assert_eq!(status, StatusCode::OK);
    let kinds: Vec<_> = frames.iter().map(|frame| frame["type"].as_str().unwrap()).collect();
    assert_eq!(kinds.last(), Some(&"result"));
    assert_eq!(kinds.iter().filter(|kind| **kind == "result").count(), 1);
    assert!(kinds.contains(&"validating") && kinds.contains(&"committing"), "{kinds:?}");
    assert!(frames.iter().all(|f| f["type"] != "validating" || f["total"] == 2));
    assert!(site.reconstruct(1, &sample.hash(), None).await.is_ok());
}

#[tokio::test]
async fn v2_refuses_in_a_frame_that_is_not_retryable() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    let (status, frames) = frames(&site, sample.shard().to_upload()).await;
    assert_eq!(status, StatusCode::OK);
    let last = frames.last().unwrap();
    assert_eq!((&last["type"], &last["retryable"]), (&"error".into(), &false.into()));
    assert!(last["message"].as_str().unwrap().contains("is not stored"));
    assert_eq!(site.post("/v2/shards", "no shard").send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_shard_with_a_trailing_footer_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    site.put_xorb(&sample.xorb).await;
    let footer = Footer { hmac_key: [0; 32], created: 0, expires: u64::MAX };
    let keyed = Footer { hmac_key: [1; 32], ..footer.clone() };
    let response = site.post("/v1/shards", sample.shard().to_stored(&keyed, false)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST, "keyed hashes prove nothing");
    let response = site.post("/v1/shards", sample.shard().to_stored(&footer, true)).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn every_false_claim_is_refused_and_registers_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    let absent = Sample::random(4, 1000);
    let last = sample.xorb.index.chunks.len() as u32;
    assert!(last > 4);
    site.put_xorb(&sample.xorb).await;

    type Lie = Box<dyn Fn(&mut Shard)>;
    let in_file = |lie: fn(&mut FileInfo)| -> Lie { Box::new(move |shard| lie(&mut shard.files[0])) };
    let in_xorb = |lie: fn(&mut XorbInfo)| -> Lie { Box::new(move |shard| lie(&mut shard.xorbs[0])) };
    let lies: Vec<(&str, Lie)> = vec![
        ("no verification", in_file(|f| f.verification.clear())),
        ("wrong verification", in_file(|f| f.verification[0].0[0] ^= 1)),
        ("wrong file hash", in_file(|f| f.hash.0[31] ^= 1)),
        ("the empty file's hash", in_file(|f| f.hash = Hash::ZERO)),
        ("a longer term", in_file(|f| f.segments[0].raw_len += 1)),
        ("a shorter term", in_file(|f| f.segments[0].raw_len -= 1)),
        ("a chunk behind the last", in_file(|f| f.segments[0].end += 1)),
        ("a chunk fewer", in_file(|f| f.segments[0].end -= 1)),
        ("another first chunk", in_file(|f| f.segments[0].start += 1)),
        ("no chunks", in_file(|f| f.segments[0].end = f.segments[0].start)),
        ("backwards", in_file(|f| f.segments[0].start = f.segments[0].end + 1)),
        ("all chunks there are", in_file(|f| f.segments[0].end = u32::MAX)),
        ("no terms", in_file(|f| (f.segments, f.verification) = (vec![], vec![]))),
        (
            "a term in a xorb that is not stored",
            Box::new({
                let segment = absent.file.segments[0];
                move |shard| shard.files[0].segments[0] = segment
            }),
        ),
        (
            "a term of chunks that it does not name",
            Box::new({
                // Right file hash and lengths, but another term's proof.
                let whole = sample.file.clone();
                let xorb = sample.xorb.clone();
                move |shard| {
                    let mut split = xorb.file(&[0..2, 2..last]);
                    assert_eq!(split.hash, whole.hash);
                    split.verification.swap(0, 1);
                    shard.files[0] = split;
                }
            }),
        ),
        ("another xorb's hash", in_xorb(|x| x.hash.0[0] ^= 1)),
        (
            "a xorb that is not stored",
            Box::new({
                let section = absent.xorb.section();
                move |shard| shard.xorbs.push(section.clone())
            }),
        ),
        ("a xorb's length", in_xorb(|x| x.raw_len += 1)),
        ("a chunk's hash", in_xorb(|x| x.chunks[1].hash.0[5] ^= 1)),
        ("a chunk's length", in_xorb(|x| x.chunks[1].raw_len -= 1)),
        ("a chunk's start", in_xorb(|x| x.chunks[1].raw_start += 1)),
        ("a chunk less in the section", in_xorb(|x| x.chunks.truncate(1))),
        ("a chunk more in the section", in_xorb(|x| x.chunks.push(x.chunks[0]))),
        ("chunks in another order", in_xorb(|x| x.chunks.swap(0, 1))),
    ];
    for (name, lie) in lies {
        let mut shard = sample.shard();
        lie(&mut shard);
        let response = site.put_shard(&shard).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{name}");
        let (_, frames) = frames(&site, shard.to_upload()).await;
        assert!(frames.last().is_none_or(|frame| frame["type"] == "error"), "{name}");
        let found = site.reconstruct(1, &shard.files[0].hash, None).await.err();
        assert!(found == Some(StatusCode::NOT_FOUND) || shard.files[0].hash == Hash::ZERO, "{name}");
    }
    assert_eq!(site.put_shard(&sample.shard()).await.status(), StatusCode::OK, "and the truth is taken");
}

#[tokio::test]
async fn bytes_that_are_no_shard_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 100_000);
    site.put_xorb(&sample.xorb).await;
    let good = sample.shard().to_upload();
    for body in
        [Vec::new(), good[..47].to_vec(), good[..good.len() - 1].to_vec(), [&good[..], &[7]].concat(), vec![0; 4096]]
    {
        let response = site.post("/v1/shards", body.clone()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{} bytes", body.len());
    }
    let mut longer = good.clone();
    longer.resize(crate::xet::shard::MAX_SHARD + 1, 0);
    assert_eq!(site.post("/v1/shards", longer).send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_shard_whose_terms_name_too_many_chunks_is_refused_before_any_work() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 100_000);
    let mut shard = sample.shard();
    let term = Segment { end: u32::MAX, ..shard.files[0].segments[0] };
    shard.files[0].segments = vec![term; 1000];
    shard.files[0].verification = vec![Hash::ZERO; 1000];
    let response = site.put_shard(&shard).await;
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    assert!(response.text().await.unwrap().contains("too large"));
}

#[tokio::test]
async fn start_offsets_of_either_kind_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    site.put_xorb(&sample.xorb).await;
    let mut shard = sample.shard();
    let starts = std::iter::once(0).chain(sample.xorb.index.chunks.iter().map(|entry| entry.stored_end));
    for (chunk, start) in shard.xorbs[0].chunks.iter_mut().zip(starts) {
        chunk.raw_start = start;
    }
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn terms_in_xorbs_of_earlier_sessions_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(3, 500_000);
    site.put(&sample).await;
    let part = sample.xorb.file(&[1..3, 0..1, 1..3]);
    let shard = Shard { files: vec![part.clone()], xorbs: vec![], footer: None };
    assert_eq!(json(site.put_shard(&shard).await).await["result"], 1);
    let chunks = chunks(&sample.content);
    let expected = [chunks[1], chunks[2], chunks[0], chunks[1], chunks[2]].concat();
    let answer = site.reconstruct(2, &part.hash, None).await.unwrap();
    assert_eq!(site.read_terms(&answer).await, expected);
}

#[tokio::test]
async fn an_empty_file_is_always_there() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let empty = FileInfo { hash: Hash::ZERO, segments: vec![], verification: vec![], sha256: None };
    for version in [1, 2] {
        for range in [None, Some("bytes=0-0"), Some("bytes=0-"), Some("bytes=-5")] {
            let answer = site.reconstruct(version, &Hash::ZERO, range).await.unwrap();
            assert_eq!((answer.skip, answer.terms.len(), answer.fetches.len()), (0, 0, 0));
        }
        let behind = site.reconstruct(version, &Hash::ZERO, Some("bytes=1-1")).await;
        assert_eq!(behind.err(), Some(StatusCode::RANGE_NOT_SATISFIABLE));
    }
    let shard = Shard { files: vec![empty], xorbs: vec![], footer: None };
    assert_eq!(json(site.put_shard(&shard).await).await["result"], 0);
}
