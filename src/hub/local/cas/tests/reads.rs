//! Reconstructions, data URLs, chunk queries, and the server's own reader.

use super::*;
use crate::xet::byteranges;
use futures::StreamExt;
use serde_json::{Value, json};
use std::collections::HashMap;

const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/xet/");

#[tokio::test]
async fn what_is_uploaded_is_what_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let samples = [
        Sample::new(b"x".to_vec(), Scheme::None),
        Sample::random(1, 1_000_000),
        Sample::new(text(1_000_000), Scheme::Lz4),
        Sample::new(text(700_001), Scheme::Bg4Lz4),
    ];
    for sample in &samples {
        site.put(sample).await;
        for version in [1, 2] {
            let answer = site.reconstruct(version, &sample.hash(), None).await.unwrap();
            assert_eq!(site.read_terms(&answer).await, sample.content);
        }
        let len = sample.content.len();
        let head = site.request_for(site.bucket, Scope::Read, Method::HEAD, &format!("/v1/files/{}", sample.hash()));
        assert_eq!(head.send().await.unwrap().headers()["content-length"], len.to_string());
    }
}

/// The inputs of `pipeline.json`.
fn vector_input(input: &Value) -> Vec<u8> {
    let number = |name: &str| input[name].as_u64().unwrap();
    match input["kind"].as_str().unwrap() {
        "splitmix64" => splitmix64(number("seed"), number("len") as usize),
        "floats" => splitmix64_words(number("seed"))
            .take(number("count") as usize)
            .flat_map(|z| ((z >> 41) as u32 | 0x3F80_0000).to_le_bytes())
            .collect(),
        "text" => text(number("len") as usize),
        "repeat" => vector_input(&input["of"]).repeat(number("times") as usize),
        "concat" => input["parts"].as_array().unwrap().iter().flat_map(vector_input).collect(),
        kind => panic!("input {kind}"),
    }
}

/// Takes out what depends on the encoder or on us: URLs, and the serialised bytes of each range,
/// which are given to `check`.
fn strip(answer: &mut Value, check: &mut dyn FnMut(&str, &Value, &Value)) {
    for name in ["fetch_info", "xorbs"] {
        for (xorb, fetches) in answer[name].as_object_mut().into_iter().flatten() {
            for fetch in fetches.as_array_mut().unwrap() {
                fetch["url"] = Value::Null;
                let fetch = fetch.as_object_mut().unwrap();
                if let Some(bytes) = fetch.remove("url_range") {
                    check(xorb, &fetch["range"], &bytes);
                }
                for range in fetch.get_mut("ranges").and_then(Value::as_array_mut).into_iter().flatten() {
                    let bytes = range.as_object_mut().unwrap().remove("bytes").unwrap();
                    check(xorb, &range["chunks"], &bytes);
                }
            }
        }
    }
}

#[tokio::test]
async fn the_answers_of_the_reference_are_ours() {
    let vectors: Value = serde_json::from_slice(&std::fs::read(format!("{VECTORS}pipeline.json")).unwrap()).unwrap();
    for set in vectors["sets"].as_array().unwrap() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::open(dir.path()).await;
        let inputs: Vec<Vec<u8>> = set["inputs"].as_array().unwrap().iter().map(vector_input).collect();
        let by_hash: HashMap<String, &[u8]> = inputs
            .iter()
            .flat_map(|input| chunks(input))
            .map(|chunk| (hash::chunk_hash(chunk).to_string(), chunk))
            .collect();
        let [expected] = set["xorbs_auto_compression"].as_array().unwrap().as_slice() else { panic!("one xorb a set") };
        let listed = expected["chunks"].as_array().unwrap().iter();
        let xorb = Xorb::of(listed.map(|chunk| by_hash[chunk["chunk_hash"].as_str().unwrap()]), Scheme::None);
        assert_eq!(xorb.index.hash.to_string(), expected["xorb_hash"]);
        site.put_xorb(&xorb).await;
        let shard = std::fs::read(format!("{VECTORS}{}", set["shard_upload"]["file"].as_str().unwrap())).unwrap();
        let response = site.post("/v1/shards", shard).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{}", set["name"]);

        let file = set["reconstruction"]["file_hash"].as_str().unwrap();
        for case in set["reconstruction"]["cases"].as_array().unwrap() {
            for version in ["v1", "v2"] {
                let mut request = site.get(&format!("/{version}/reconstructions/{file}"));
                if let Some(range) = case["range_header"].as_str() {
                    request = request.header("range", range);
                }
                let response = request.send().await.unwrap();
                assert_eq!(response.status().as_u16(), case["status"].as_u64().unwrap() as u16, "{case}");
                if response.status() != StatusCode::OK {
                    continue;
                }
                let mut ours = json(response).await;
                let mut theirs = case[version].clone();
                strip(&mut theirs, &mut |_, _, _| ());
                strip(&mut ours, &mut |_, chunks, bytes| {
                    let [start, end] = ["start", "end"].map(|name| chunks[name].as_u64().unwrap() as usize);
                    let before = start.checked_sub(1).map_or(0, |i| xorb.index.chunks[i].stored_end);
                    let last = xorb.index.chunks[end - 1].stored_end - 1;
                    assert_eq!(bytes, &json!({ "start": before, "end": last }));
                });
                assert_eq!(ours, theirs);
            }
        }
    }
}

#[tokio::test]
async fn every_range_of_a_file_is_read_right() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(6, 400_000);
    site.put_xorb(&sample.xorb).await;
    // Many short terms, so that pages of terms have ends inside.
    let last = sample.xorb.index.chunks.len() as u32;
    let runs: Vec<_> = (0..700u32).map(|i| i % last..(i % last + 1 + i % 2).min(last)).collect();
    let file = sample.xorb.file(&runs);
    let shard = Shard { files: vec![file.clone()], xorbs: vec![], footer: None };
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);
    let raw = chunks(&sample.content);
    let content: Vec<u8> = runs.iter().flat_map(|run| raw[run.start as usize..run.end as usize].concat()).collect();
    let len = content.len() as u64;
    let ends: Vec<u64> = file
        .segments
        .iter()
        .scan(0, |end, s| {
            *end += u64::from(s.raw_len);
            Some(*end)
        })
        .collect();
    // Around the ends of terms, of pages (128 terms), and of the file.
    let mut ranges = vec![(0, 0), (0, len - 1), (len - 1, len - 1), (5, len + 7), (len - 1, u64::MAX)];
    for i in [0, 1, 126, 127, 128, 255, 256, 698] {
        ranges.extend([
            (ends[i] - 1, ends[i]),
            (ends[i], ends[i]),
            (ends[i] - 1, ends[i] - 1),
            (ends[i], ends[i] + 300_000),
        ]);
    }
    for (first, last) in ranges {
        let answer = site.reconstruct(2, &file.hash, Some(&format!("bytes={first}-{last}"))).await.unwrap();
        let wanted = &content[first as usize..(last.min(len - 1) + 1) as usize];
        let first_chunk = sample.xorb.index.chunks[answer.terms[0].chunks.start as usize].raw_len;
        assert!(answer.skip < u64::from(first_chunk));
        let mut read = site.read_terms(&answer).await;
        assert!(read.len() < wanted.len() + 131_072, "whole chunks behind the range are trimmed");
        read.truncate(wanted.len());
        assert!(read == wanted, "{first}-{last}");
        let own = site.store().read_file(&file.hash, first..last.saturating_add(1)).await.unwrap();
        let own: Vec<Bytes> = own.map(Result::unwrap).collect().await;
        assert!(own.concat() == wanted, "{first}-{last}");
    }
    for range in
        [format!("bytes={len}-"), format!("bytes={len}-{len}"), "bytes=-0".into(), format!("bytes={}-", u64::MAX)]
    {
        let status = site.reconstruct(1, &file.hash, Some(&range)).await.err();
        assert_eq!(status, Some(StatusCode::RANGE_NOT_SATISFIABLE), "{range}");
    }
    for range in ["bytes=5-4", "bytes=", "bytes=-", "bytes=a-b", "bytes=1-2,4-5", "lines=1-2", "bytes=+1-2"] {
        let status = site.reconstruct(1, &file.hash, Some(range)).await.err();
        assert_eq!(status, Some(StatusCode::BAD_REQUEST), "{range}");
    }
    let to_the_end = site.reconstruct(1, &file.hash, Some("bytes=1-99999999999999999999")).await.unwrap();
    assert_eq!(site.read_terms(&to_the_end).await, content[1..]);
    let suffix = site.reconstruct(1, &file.hash, Some("bytes=-10")).await.unwrap();
    assert!(content.ends_with(&site.read_terms(&suffix).await));
    let nothing: Vec<_> = site.store().read_file(&file.hash, len..len + 5).await.unwrap().collect().await;
    assert!(nothing.is_empty());
}

#[tokio::test]
async fn several_ranges_come_as_one_multipart_answer() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(6, 900_000);
    site.put_xorb(&sample.xorb).await;
    let file = sample.xorb.file(&[5..6, 0..2, 3..4]);
    let shard = Shard { files: vec![file.clone()], xorbs: vec![], footer: None };
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);
    let answer = site.reconstruct(2, &file.hash, None).await.unwrap();
    assert_eq!(answer.fetches.len(), 3);
    assert!(answer.fetches.iter().all(|fetch| fetch.url == answer.fetches[0].url), "one URL for all");
    let list: Vec<_> = answer.fetches.iter().map(|f| format!("{}-{}", f.bytes.start, f.bytes.end - 1)).collect();

    let response = site.fetch(&answer.fetches[0].url, &format!("bytes={}", list.join(","))).await;
    assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    let announced: usize = response.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let body = response.bytes().await.unwrap();
    assert_eq!(body.len(), announced);
    let parts = byteranges::parse(byteranges::boundary(&content_type).unwrap(), &body).unwrap();
    assert_eq!(parts.len(), 3);
    for (part, fetch) in parts.iter().zip(&answer.fetches) {
        assert_eq!(part.range, fetch.bytes);
        assert_eq!(part.data, sample.xorb.body[part.range.start as usize..part.range.end as usize]);
    }
    // Backwards or overlapping would let one request cost many times the xorb.
    for bad in [format!("{},{}", list[1], list[0]), format!("{},{}", list[0], list[0])] {
        let response = site.fetch(&answer.fetches[0].url, &format!("bytes={bad}")).await;
        assert_eq!(response.status(), StatusCode::BAD_REQUEST);
    }
    // v1 has a URL for each.
    let answer = site.reconstruct(1, &file.hash, None).await.unwrap();
    let response = site.fetch(&answer.fetches[0].url, &format!("bytes={}", list[1])).await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn many_ranges_of_a_xorb_are_spread_over_urls() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let pieces: Vec<Vec<u8>> = (0..1400u32).map(|i| i.to_le_bytes().to_vec()).collect();
    let xorb = Xorb::of(pieces.iter().map(Vec::as_slice), Scheme::None);
    site.put_xorb(&xorb).await;
    let runs: Vec<_> = (0..700).map(|i| 2 * i..2 * i + 1).collect();
    let file = xorb.file(&runs);
    let shard = Shard { files: vec![file.clone()], xorbs: vec![xorb.section()], footer: None };
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);
    let answer = site.reconstruct(2, &file.hash, None).await.unwrap();
    let urls: std::collections::HashSet<_> = answer.fetches.iter().map(|fetch| fetch.url.clone()).collect();
    assert_eq!(urls.len(), 2);
    assert!(urls.iter().all(|url| url.len() < 16 * 1024));
    let expected: Vec<u8> = (0..700).flat_map(|i| pieces[2 * i].clone()).collect();
    assert_eq!(site.read_terms(&answer).await, expected);
}

#[tokio::test]
async fn a_batch_answers_for_the_files_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let (a, b, unknown) = (Sample::random(1, 300_000), Sample::random(2, 300_000), Sample::random(3, 1000));
    site.put(&a).await;
    site.put(&b).await;
    let overlap = a.xorb.run(1..3);
    let shard = Shard { files: vec![overlap.clone()], xorbs: vec![], footer: None };
    site.put_shard(&shard).await;
    let hashes = [a.hash(), unknown.hash(), overlap.hash, b.hash(), Hash::ZERO];
    let query: Vec<_> = hashes.iter().map(|hash| format!("file_id={hash}")).collect();
    let items: Vec<_> = hashes.iter().map(|hash| json!({ "prefix": "default", "hash": hash })).collect();
    let by_get = site.get(&format!("/v1/reconstructions?{}", query.join("&"))).send().await.unwrap();
    let by_post = site.post("/v1/reconstructions", json!(items).to_string()).send().await.unwrap();
    for response in [by_get, by_post] {
        assert_eq!(response.status(), StatusCode::OK);
        let answer = json(response).await;
        let files = answer["files"].as_object().unwrap();
        assert_eq!(files.len(), 4);
        assert_eq!(files[&Hash::ZERO.to_string()], json!([]));
        for (hash, content) in [(a.hash(), &a.content), (b.hash(), &b.content)] {
            // Each file's part is a v1 answer.
            let one = json!({ "offset_into_first_range": 0, "terms": files[&hash.to_string()], "fetch_info": answer["fetch_info"] });
            let one = reconstruction::parse_v1(one.to_string().as_bytes()).unwrap();
            assert_eq!(&site.read_terms(&one).await, content);
        }
        assert_eq!(
            answer["fetch_info"][a.xorb.index.hash.to_string()].as_array().unwrap().len(),
            1,
            "merged over files"
        );
    }
    for body in ["", "{}", "[1]", r#"[{"hash":"x"}]"#] {
        let response = site.post("/v1/reconstructions", body).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{body}");
    }
    let malformed = site.get("/v1/reconstructions?file_id=x").send().await.unwrap();
    assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
}

async fn query(site: &Site, bucket: i64, prefix: &str, chunk: &Hash) -> Option<Shard> {
    let path = format!("/v1/chunks/{prefix}/{chunk}");
    let response = site.request_for(bucket, Scope::Read, Method::GET, &path).send().await.unwrap();
    if response.status() == StatusCode::NOT_FOUND {
        return None;
    }
    assert_eq!(response.status(), StatusCode::OK);
    Some(Shard::parse(&response.bytes().await.unwrap()).unwrap())
}

#[tokio::test]
async fn eligible_chunks_are_found_with_the_whole_shard() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    // A chunk that is eligible by its hash, not by its place.
    let eligible = (0u64..).map(|i| i.to_le_bytes()).find(|c| hash::chunk_hash(c).modulo(1024) == 0).unwrap();
    let pieces: [&[u8]; 4] = [b"first", b"second", &eligible, b"flagged"];
    let xorb = Xorb::of(pieces, Scheme::None);
    let other = Sample::random(7, 300_000);
    site.put_xorb(&xorb).await;
    site.put_xorb(&other.xorb).await;
    let mut section = xorb.section();
    section.chunks[3].flags = 0x8000_0000;
    let files = vec![xorb.run(0..4), other.file.clone()];
    let shard = Shard { files, xorbs: vec![section, other.xorb.section()], footer: None };
    assert_eq!(site.put_shard(&shard).await.status(), StatusCode::OK);

    for (piece, is_found) in pieces.iter().zip([true, false, true, true]) {
        for prefix in ["default", "default-merkledb", "anything"] {
            let found = query(&site, site.bucket, prefix, &hash::chunk_hash(piece)).await;
            assert_eq!(found.is_some(), is_found, "{piece:?}");
        }
    }
    // The chunk's xorb and those that the shard lists behind it; a shard lists them by hash.
    let last = shard.xorbs.iter().map(|xorb| xorb.hash).max().unwrap();
    let first_of =
        |hash: Hash| if hash == xorb.index.hash { hash::chunk_hash(b"first") } else { other.xorb.index.chunks[0].hash };
    let answer = query(&site, site.bucket, "default", &first_of(last)).await.unwrap();
    assert_eq!(answer.xorbs.iter().map(|xorb| xorb.hash).collect::<Vec<_>>(), [last]);
    let least = shard.xorbs.iter().map(|xorb| xorb.hash).min().unwrap();
    let answer = query(&site, site.bucket, "default", &first_of(least)).await.unwrap();
    let footer = answer.footer.unwrap();
    assert_eq!((footer.hmac_key, footer.expires > now_seconds() + 86_400), ([0; 32], true));
    assert_eq!(answer.xorbs.len(), 2);
    for listed in &answer.xorbs {
        let stored = if listed.hash == xorb.index.hash { &xorb } else { &other.xorb };
        assert!(
            listed.chunks.iter().zip(&stored.index.chunks).all(|(a, b)| (a.hash, a.raw_len) == (b.hash, b.raw_len))
        );
        assert_eq!(listed.chunks.len(), stored.index.chunks.len());
        assert_eq!(listed.stored_len as usize, stored.body.len());
    }
    assert_eq!(site.get("/v1/chunks/default/x").send().await.unwrap().status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_chunk_query_tells_a_bucket_only_what_it_told_us() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let stranger = site.make_bucket("second").await;
    let sample = Sample::random(8, 500_000);
    site.put(&sample).await;
    let first = sample.xorb.index.chunks[0].hash;
    assert!(query(&site, site.bucket, "default", &first).await.is_some());
    assert!(query(&site, stranger, "default", &first).await.is_none());

    // The stranger knows the first chunk and proves it: that file it gets, the hashes of the other chunks it doesn't.
    let known = Shard { files: vec![sample.xorb.run(0..1)], xorbs: vec![], footer: None };
    let response = site.request_for(stranger, Scope::Write, Method::POST, "/v1/shards").body(known.to_upload());
    assert_eq!(response.send().await.unwrap().status(), StatusCode::OK);
    assert!(query(&site, stranger, "default", &first).await.is_none());
}

#[tokio::test]
async fn damage_on_disk_is_an_error_and_never_wrong_bytes() {
    let sample = Sample::random(9, 500_000);
    let name = sample.xorb.index.hash.to_string();
    let area = sample.xorb.body.len();
    type Damage = Box<dyn Fn(&Path)>;
    let alter = |change: fn(&mut Vec<u8>, usize)| -> Damage {
        Box::new(move |path| {
            let mut bytes = std::fs::read(path).unwrap();
            change(&mut bytes, area);
            std::fs::write(path, bytes).unwrap();
        })
    };
    let damages: Vec<(&str, Damage, bool)> = vec![
        ("gone", Box::new(|path| std::fs::remove_file(path).unwrap()), false),
        ("emptied", alter(|bytes, _| bytes.clear()), false),
        ("three bytes", alter(|bytes, _| bytes.truncate(3)), false),
        ("cut short", alter(|bytes, _| bytes.truncate(bytes.len() - 1)), false),
        ("no footer", alter(|bytes, area| bytes.truncate(area)), false),
        ("a chunk hash", alter(|bytes, area| bytes[area + 60] ^= 1), false),
        (
            "a stored offset",
            alter(|bytes, area| {
                let at = bytes.len() - 40;
                bytes[at] ^= 1;
                let _ = area;
            }),
            false,
        ),
        (
            "footer length",
            alter(|bytes, _| {
                let at = bytes.len() - 1;
                bytes[at] ^= 0x80;
            }),
            false,
        ),
        ("a byte more in front", alter(|bytes, _| bytes.insert(0, 0)), false),
        ("zeros", alter(|bytes, _| bytes.fill(0)), false),
        // Only the reader that decodes sees this one; a client checks what it gets itself.
        ("a data byte", alter(|bytes, _| bytes[300_000] ^= 1), true),
        ("a chunk header", alter(|bytes, _| bytes[1] ^= 1), true),
    ];
    for (damage, apply, is_in_data) in damages {
        let dir = tempfile::tempdir().unwrap();
        Site::open(dir.path()).await.put(&sample).await;
        apply(&dir.path().join("xorbs").join(&name[..2]).join(&name));
        // Opened anew: nothing is cached.
        let site = Site::open(dir.path()).await;
        let answer = site.reconstruct(2, &sample.hash(), None).await;
        let expected = (!is_in_data).then_some(StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(answer.err(), expected, "{damage}");
        let stream = site.store().read_file(&sample.hash(), 0..u64::MAX).await.unwrap();
        let pieces: Vec<_> = stream.collect().await;
        assert!(pieces.iter().any(Result::is_err), "{damage}");
        let read: Vec<u8> = pieces.into_iter().flatten().flat_map(|piece| piece.to_vec()).collect();
        assert!(sample.content.starts_with(&read), "{damage}");
    }
}

#[tokio::test]
async fn damaged_rows_are_errors() {
    let sample = Sample::random(9, 500_000);
    for sql in [
        "UPDATE cas_terms SET terms = x'00'",
        "UPDATE cas_terms SET terms = x''",
        "UPDATE cas_terms SET terms = 'text'",
        "UPDATE cas_terms SET at = 5",
        "UPDATE cas_terms SET terms = zeroblob(44)",
        "UPDATE cas_terms SET terms = zeroblob(88)",
        "DELETE FROM cas_terms",
        "UPDATE cas_files SET len = len + 1",
        "UPDATE cas_files SET len = -1",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::open(dir.path()).await;
        site.put(&sample).await;
        let damage = move |transaction: &rusqlite::Transaction<'_>| Ok::<_, db::Error>(transaction.execute_batch(sql)?);
        site.hub.shared.db.write(damage).await.unwrap();
        let status = site.reconstruct(2, &sample.hash(), None).await.err();
        assert_eq!(status, Some(StatusCode::INTERNAL_SERVER_ERROR), "{sql}");
    }
    for (sql, due) in [
        ("UPDATE cas_shards SET xorbs = x'00'", StatusCode::INTERNAL_SERVER_ERROR),
        ("UPDATE cas_chunks SET position = -1", StatusCode::INTERNAL_SERVER_ERROR),
        // A xorb that isn't there any more: who is told nothing uploads it again.
        ("UPDATE cas_shards SET xorbs = zeroblob(32)", StatusCode::NOT_FOUND),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::open(dir.path()).await;
        site.put(&sample).await;
        let damage = move |transaction: &rusqlite::Transaction<'_>| Ok::<_, db::Error>(transaction.execute_batch(sql)?);
        site.hub.shared.db.write(damage).await.unwrap();
        let path = format!("/v1/chunks/default/{}", sample.xorb.index.chunks[0].hash);
        let status = site.get(&path).send().await.unwrap().status();
        assert_eq!(status, due, "{sql}");
    }
}
