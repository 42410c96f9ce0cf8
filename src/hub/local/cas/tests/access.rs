//! Tokens, links, signed URLs, and routes that aren't there.

use super::*;

/// Every route with a token, and whether it writes.
fn routes() -> Vec<(Method, String, bool)> {
    let zero = Hash::ZERO;
    [
        ("POST", format!("/v1/xorbs/default/{zero}"), true),
        ("HEAD", format!("/v1/xorbs/default/{zero}"), false),
        ("POST", format!("/v1/xorb-grants/default/{zero}"), true),
        ("POST", format!("/v1/xorb-commits/default/{zero}/grant/x"), true),
        ("POST", "/v1/shards".into(), true),
        ("POST", "/v2/shards".into(), true),
        ("GET", format!("/v1/reconstructions/{zero}"), false),
        ("GET", format!("/v2/reconstructions/{zero}"), false),
        ("GET", format!("/v1/reconstructions?file_id={zero}"), false),
        ("POST", "/v1/reconstructions".into(), false),
        ("HEAD", format!("/v1/files/{zero}"), false),
        ("GET", format!("/v1/chunks/default/{zero}"), false),
    ]
    .map(|(method, path, writes)| (method.parse().unwrap(), path, writes))
    .into()
}

#[tokio::test]
async fn no_route_works_without_a_good_token() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let good = site.token_of(site.bucket, Scope::Write, now_seconds() + 600);
    let expired = site.token_of(site.bucket, Scope::Write, now_seconds() - 1);
    for (method, path, writes) in routes() {
        let request = || site.http.request(method.clone(), site.url(&path)).body(vec![0; 100_000]);
        let refused = [
            request(),
            request().header("authorization", good.clone()),
            request().header("authorization", format!("Basic {good}")),
            request().bearer_auth(""),
            request().bearer_auth("hf_local"),
            request().bearer_auth(format!("{good}0")),
            request().bearer_auth(expired.clone()),
        ];
        for request in refused {
            assert_eq!(request.send().await.unwrap().status(), StatusCode::UNAUTHORIZED, "{method} {path}");
        }
        let read =
            request().bearer_auth(site.token_of(site.bucket, Scope::Read, now_seconds() + 600)).send().await.unwrap();
        assert_eq!(read.status() == StatusCode::FORBIDDEN, writes, "{method} {path}: {}", read.status());
        let write = request().bearer_auth(good.clone()).send().await.unwrap();
        assert!(![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&write.status()), "{method} {path}");
    }
}

#[tokio::test]
async fn an_early_refusal_of_a_long_body_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let body = vec![0; 64 * 1024 * 1024];
    for path in [format!("/v1/xorbs/default/{}", Hash::ZERO), "/v2/shards".into(), "/v9/nothing".into()] {
        let response = site.http.post(site.url(&path)).body(body.clone()).send().await.unwrap();
        assert!(response.status().is_client_error(), "{path}");
    }
}

#[tokio::test]
async fn a_file_is_read_by_the_buckets_it_is_linked_to() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let other = site.make_bucket("second").await;
    let sample = Sample::random(1, 300_000);
    site.put(&sample).await;
    let hash = sample.hash();
    let path = format!("/v2/reconstructions/{hash}");
    let as_other = || site.request_for(other, Scope::Write, Method::GET, &path).send();
    assert_eq!(as_other().await.unwrap().status(), StatusCode::NOT_FOUND);

    let linked = async |hash, bucket| {
        let find = move |c: &rusqlite::Connection| CasStore::linked_file_len(c, bucket, &hash);
        site.hub.shared.db.read(find).await.unwrap()
    };
    let len = Some(sample.content.len() as u64);
    assert_eq!((linked(hash, site.bucket).await, linked(hash, other).await), (len, None));
    let link = move |t: &rusqlite::Transaction<'_>| CasStore::link_file(t, other, &hash);
    assert_eq!(site.hub.shared.db.write(link).await.unwrap(), len);
    assert_eq!(as_other().await.unwrap().status(), StatusCode::OK);
    assert_eq!(linked(hash, other).await, len);

    let unknown = Hash([7; 32]);
    let link = move |t: &rusqlite::Transaction<'_>| CasStore::link_file(t, other, &unknown);
    assert_eq!(site.hub.shared.db.write(link).await.unwrap(), None);
    assert_eq!((linked(unknown, other).await, linked(Hash::ZERO, other).await), (None, Some(0)));
}

#[tokio::test]
async fn a_shard_of_another_bucket_links_the_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let other = site.make_bucket("second").await;
    let sample = Sample::random(1, 300_000);
    site.put(&sample).await;
    let request = site.request_for(other, Scope::Write, Method::POST, "/v1/shards").body(sample.shard().to_upload());
    assert_eq!(json(request.send().await.unwrap()).await["result"], 0);
    let path = format!("/v1/reconstructions/{}", sample.hash());
    let response = site.request_for(other, Scope::Read, Method::GET, &path).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_deleted_bucket_takes_its_links_along_and_its_tokens_write_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 300_000);
    site.put(&sample).await;
    let bucket = site.bucket;
    let delete = move |t: &rusqlite::Transaction<'_>| {
        Ok::<_, db::Error>(t.execute("DELETE FROM buckets WHERE id = ?1", [bucket])?)
    };
    site.hub.shared.db.write(delete).await.unwrap();
    assert_eq!(site.reconstruct(1, &sample.hash(), None).await.err(), Some(StatusCode::NOT_FOUND));
    let chunk = format!("/v1/chunks/default/{}", sample.xorb.index.chunks[0].hash);
    assert_eq!(site.get(&chunk).send().await.unwrap().status(), StatusCode::NOT_FOUND);
    assert_eq!(site.put_shard(&sample.shard()).await.status(), StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_data_url_needs_no_token_and_gives_what_it_was_signed_for() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let sample = Sample::random(1, 600_000);
    let body = &sample.xorb.body;
    site.put(&sample).await;
    let answer = site.reconstruct(2, &sample.hash(), Some("bytes=200000-400000")).await.unwrap();
    let [fetch] = answer.fetches.as_slice() else { panic!("one stretch") };
    let (start, end) = (fetch.bytes.start, fetch.bytes.end);
    assert!(start > 0 && end < body.len() as u64);

    let whole = site.fetch(&fetch.url, &format!("bytes={start}-{}", end - 1)).await;
    assert_eq!(whole.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(whole.headers()["content-range"], format!("bytes {start}-{}/{}", end - 1, body.len()));
    assert_eq!(whole.bytes().await.unwrap(), body[start as usize..end as usize]);
    let part = site.fetch(&fetch.url, &format!("bytes={}-{}", start + 5, start + 9)).await;
    assert_eq!(part.bytes().await.unwrap(), body[start as usize + 5..start as usize + 10]);
    let without_header = site.http.get(&*fetch.url).send().await.unwrap();
    assert_eq!(without_header.bytes().await.unwrap(), body[start as usize..end as usize]);

    for (range, status) in [
        (format!("bytes={}-{}", start - 1, end - 1), StatusCode::FORBIDDEN),
        (format!("bytes={start}-{end}"), StatusCode::FORBIDDEN),
        (format!("bytes={start}-"), StatusCode::FORBIDDEN),
        ("bytes=-1".into(), StatusCode::FORBIDDEN),
        (format!("bytes={}-", body.len()), StatusCode::RANGE_NOT_SATISFIABLE),
        ("bytes=5-4".into(), StatusCode::BAD_REQUEST),
        (format!("bytes={}", vec!["1-2"; 501].join(",")), StatusCode::BAD_REQUEST),
    ] {
        assert_eq!(site.fetch(&fetch.url, &range).await.status(), status, "{range}");
    }
}

#[tokio::test]
async fn an_altered_or_expired_data_url_is_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let (sample, other) = (Sample::random(1, 600_000), Sample::random(2, 600_000));
    site.put(&sample).await;
    site.put(&other).await;
    let answer = site.reconstruct(1, &sample.hash(), None).await.unwrap();
    let url = url::Url::parse(&answer.fetches[0].url).unwrap();
    let query: std::collections::HashMap<String, String> = url.query_pairs().into_owned().collect();
    let (ranges, expires, mac) = (&query["r"], &query["e"], &query["s"]);
    let xorb = sample.xorb.index.hash;
    let make = |xorb: Hash, r: &str, e: &str, s: &str| site.url(&format!("/data/{xorb}?r={r}&e={e}&s={s}"));
    let status = async |url: String| site.fetch(&url, "bytes=0-9").await.status();

    assert_eq!(status(make(xorb, ranges, expires, mac)).await, StatusCode::PARTIAL_CONTENT);
    let later = (expires.parse::<u64>().unwrap() + 1).to_string();
    let zeros = "0".repeat(64);
    let forged = [
        make(other.xorb.index.hash, ranges, expires, mac),
        make(xorb, "0-9", expires, mac),
        make(xorb, &format!("{ranges}_0-9"), expires, mac),
        make(xorb, ranges, &later, mac),
        make(xorb, ranges, expires, &zeros),
        make(xorb, ranges, expires, &mac[1..]),
        make(xorb, ranges, expires, ""),
        make(xorb, ranges, "x", mac),
        site.url(&format!("/data/{xorb}")),
        site.url(&format!("/data/{xorb}?r={ranges}&e={expires}")),
        site.url(&format!("/data/{xorb}?r={ranges}&r=0-9&e={expires}&s={mac}")),
    ];
    for url in forged {
        assert_eq!(status(url.clone()).await, StatusCode::FORBIDDEN, "{url}");
    }
    let past = now_seconds() - 1;
    let mac = site.hub.shared.auth.mac("cas data url v1", format!("{xorb}\n{past}\n{ranges}").as_bytes());
    let expired = make(xorb, ranges, &past.to_string(), mac.to_hex().as_str());
    assert_eq!(status(expired).await, StatusCode::FORBIDDEN);
    let future = now_seconds() + 60;
    let mac = site.hub.shared.auth.mac("cas data url v1", format!("{xorb}\n{future}\n{ranges}").as_bytes());
    let good = make(xorb, ranges, &future.to_string(), mac.to_hex().as_str());
    assert_eq!(status(good).await, StatusCode::PARTIAL_CONTENT, "what expired was else well signed");
}

#[tokio::test]
async fn what_is_not_offered_is_404() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let zero = Hash::ZERO;
    for (method, path) in [
        ("GET", "/nothing".to_owned()),
        ("GET", "/v1".to_owned()),
        ("GET", "/v1/shards".to_owned()),
        ("PUT", format!("/v1/xorbs/default/{zero}")),
        ("GET", format!("/v1/xorb-grants/default/{zero}")),
        ("DELETE", format!("/v1/reconstructions/{zero}")),
        ("GET", format!("/v2/file-chunk-hashes/{zero}")),
        ("POST", format!("/data/{zero}")),
        ("GET", format!("/v1/get_xorb/default/{zero}")),
    ] {
        let status =
            site.request_for(site.bucket, Scope::Write, method.parse().unwrap(), &path).send().await.unwrap().status();
        assert_eq!(status, StatusCode::NOT_FOUND, "{method} {path}");
    }
    assert_eq!(site.http.get(site.url("/health")).send().await.unwrap().status(), StatusCode::OK);
    let telemetry = site.post("/v1/telemetry", r#"{"event":"x"}"#).send().await.unwrap();
    assert_eq!((telemetry.status(), telemetry.bytes().await.unwrap().len()), (StatusCode::OK, 0));
    for version in [1, 2] {
        assert_eq!(site.reconstruct(version, &Hash([1; 32]), None).await.err(), Some(StatusCode::NOT_FOUND));
        let malformed = site.get(&format!("/v{version}/reconstructions/xyz")).send().await.unwrap();
        assert_eq!(malformed.status(), StatusCode::BAD_REQUEST);
    }
}
