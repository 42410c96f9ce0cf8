//! Repositories: imports, every route, who may read what, and what buckets have to do with them: nothing.

use super::*;
use std::path::Path;

/// A commit of these files.
async fn import(rig: &Rig, id: &str, files: &[(&str, &[u8])], options: &ImportOptions) -> Imported {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    rig.hub.import_folder(dir.path(), &id.parse().unwrap(), options).await.unwrap()
}

fn on(branch: &str) -> ImportOptions {
    ImportOptions { revision: Some(branch.into()), ..ImportOptions::default() }
}

fn tagged(tag: &str) -> ImportOptions {
    ImportOptions { tag: Some(tag.into()), ..ImportOptions::default() }
}

/// Status, code and named commit of an answer.
async fn outcome(rig: &Rig, path: &str) -> (u16, Option<String>, Option<String>) {
    let response = rig.get(path).await;
    let text = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    (response.status().as_u16(), text("x-error-code"), text("x-repo-commit"))
}

async fn status(rig: &Rig, method: &str, path: &str) -> u16 {
    let request = rig.request(method.parse().unwrap(), path).json(&json!({"private": false}));
    request.send().await.unwrap().status().as_u16()
}

async fn bytes(rig: &Rig, path: &str) -> Vec<u8> {
    let response = rig.get(path).await;
    assert_eq!(response.status(), 200, "{path}");
    response.bytes().await.unwrap().to_vec()
}

/// A CAS token: its URL and itself.
async fn token(rig: &Rig, path: &str) -> (String, String) {
    let token = rig.get_json(path).await;
    (token["casUrl"].as_str().unwrap().to_owned(), token["accessToken"].as_str().unwrap().to_owned())
}

async fn reconstruct(rig: &Rig, (url, token): &(String, String), hash: &str) -> u16 {
    let url = format!("{url}/v1/reconstructions/{hash}");
    rig.http.get(url).bearer_auth(token).send().await.unwrap().status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_buckets_never_reach_content_of_repositories() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("x").await.unwrap();
    let content = noise(1, 50_000);
    for id in ["local/m", "gpt2", "datasets/local/d"] {
        import(&rig, id, &[("a.bin", &content)], &ImportOptions::default()).await;
    }
    // As if the row had a name that a request can have: not the name keeps it apart.
    let rename = "UPDATE buckets SET namespace = 'local', name = 'hidden', private = 0 WHERE name = 'local/m'";
    let renamed = rig.hub.shared.db.write(move |t| Ok::<_, db::Error>(t.execute(rename, [])?)).await.unwrap();
    assert_eq!(renamed, 1);
    let ids = [
        "local/hidden",
        "local/m",
        "/gpt2",
        "%20/gpt2",
        "/local%2Fm",
        "%2F/gpt2",
        "local%2Fhidden/",
        "x/%2E%2E%2Flocal%2Fm",
    ];
    for token in [Some("hf_local"), Some(PROCESS), None] {
        let server = rig.hub.serve(([127, 0, 0, 1], 0).into(), options(token)).await.unwrap();
        let token = token.map(str::to_owned);
        let rig = &Rig { hub: rig.hub.clone(), server, http: rig.http.clone(), token };
        for id in ids {
            for (method, path) in [
                ("GET", format!("/api/buckets/{id}")),
                ("DELETE", format!("/api/buckets/{id}")),
                ("PUT", format!("/api/buckets/{id}/settings")),
                ("POST", format!("/api/buckets/{id}/resource-group")),
                ("POST", format!("/api/buckets/{id}/batch")),
                ("GET", format!("/api/buckets/{id}/tree")),
                ("GET", format!("/api/buckets/{id}/events")),
                ("GET", format!("/api/buckets/{id}/xet-read-token")),
                ("GET", format!("/api/buckets/{id}/xet-write-token")),
                ("GET", format!("/buckets/{id}/resolve/a.bin")),
            ] {
                let status = status(rig, method, &path).await;
                assert!(matches!(status, 400 | 401 | 404), "{method} {path}: {status}");
            }
        }
    }
    assert_eq!(rig.list("/api/buckets/local").await, Vec::<String>::new());
    for (from, to) in [("local/hidden", "local/mine"), ("/gpt2", "local/mine"), ("local/hidden", "local/m")] {
        let moved = rig.post("/api/repos/move", json!({"fromRepo": from, "toRepo": to, "type": "bucket"})).await;
        assert!(matches!(moved.status().as_u16(), 400 | 404), "{from} {to}");
    }
    // A bucket may have the name of a repository, and neither knows of the other.
    rig.bucket("local/m").await;
    assert_eq!(rig.list("/api/buckets/local/m/tree").await, Vec::<String>::new());
    assert_eq!(status(&rig, "DELETE", "/api/buckets/local/m").await, 200);
    rig.token = None;
    for path in ["/local/m", "/gpt2", "/datasets/local/d"] {
        assert_eq!(bytes(&rig, &format!("{path}/resolve/main/a.bin")).await, content);
    }
}

fn options(token: Option<&str>) -> ServeOptions {
    let process_token = token.filter(|token| *token == PROCESS).map(str::to_owned);
    ServeOptions { process_token, ..ServeOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_branches_tags_and_commit_ids() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let first = import(&rig, "local/m", &[("f", b"1")], &tagged("v1")).await.commit;
    let second = import(&rig, "local/m", &[("f", b"2")], &ImportOptions::default()).await.commit;
    let other = import(&rig, "local/m", &[("f", b"3")], &on("dev/x")).await.commit;
    for (revision, commit, content) in [
        ("main", &second, "2"),
        ("v1", &first, "1"),
        ("dev%2Fx", &other, "3"),
        ("refs%2Fheads%2Fmain", &second, "2"),
        ("refs/heads/main", &second, "2"),
        ("refs%2Ftags%2Fv1", &first, "1"),
        ("refs%2Fheads%2Fdev%2Fx", &other, "3"),
        (&first, &first, "1"),
        (&first[..7], &first, "1"),
        (&other[..12], &other, "3"),
    ] {
        assert_eq!(
            rig.get_json(&format!("/api/models/local/m/revision/{revision}")).await["sha"],
            **commit,
            "{revision}"
        );
        let path = format!("/local/m/resolve/{revision}/f");
        assert_eq!(outcome(&rig, &path).await, (200, None, Some(commit.to_string())), "{revision}");
        assert_eq!(bytes(&rig, &path).await, content.as_bytes());
        assert_eq!(rig.list(&format!("/api/models/local/m/tree/{revision}")).await, ["f"]);
    }
    let upper = first.to_uppercase();
    for revision in ["v2", &first[..6], "dev", "refs%2Fheads%2Fv1", "refs%2Fpr%2F1", "", &"0".repeat(40), &first[1..9]]
    {
        for path in [format!("/local/m/resolve/{revision}/f"), format!("/api/models/local/m/xet-read-token/{revision}")]
        {
            let (status, code, commit) = outcome(&rig, &path).await;
            assert_eq!((status, code.as_deref(), commit), (404, Some("RevisionNotFound"), None), "{path}");
        }
    }
    assert_eq!(rig.get_json(&format!("/api/models/local/m/revision/{upper}")).await["sha"], first);
    // A tag that has the name of a branch is second to it; as a whole ref it is itself.
    import(&rig, "local/m", &[("f", b"4")], &ImportOptions { tag: Some("main".into()), ..on("dev/x") }).await;
    assert_eq!(bytes(&rig, "/local/m/resolve/main/f").await, b"2");
    assert_eq!(bytes(&rig, "/local/m/resolve/refs%2Ftags%2Fmain/f").await, b"4");
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_what_is_due_of_private_and_gated_repositories() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("eve").await.unwrap();
    let eve = rig.hub.add_token("eve", Role::Write).await.unwrap().secret.to_string();
    let files: [(&str, &[u8]); 1] = [("f.bin", b"12")];
    import(&rig, "local/open", &files, &ImportOptions::default()).await;
    import(&rig, "local/private", &files, &ImportOptions { private: true, ..ImportOptions::default() }).await;
    import(&rig, "local/gated", &files, &ImportOptions { gated: true, ..ImportOptions::default() }).await;
    // Neither goes away by itself.
    import(&rig, "local/private", &[("f.bin", b"3")], &ImportOptions::default()).await;
    let routes = |id: &str| {
        let api = |rest: &str| format!("/api/models/{id}/{rest}");
        let rest = ["refs", "commits/main", "tree/main", "xet-read-token/main", "tree/none", "tree/main/none"].map(api);
        rest.into_iter()
            .chain([format!("/{id}/resolve/main/f.bin"), format!("/{id}/resolve/main/none")])
            .collect::<Vec<_>>()
    };
    for (who, private, gated) in [
        (Some("hf_local"), None, None),
        (Some(eve.as_str()), Some((404, "RepoNotFound")), Some((403, "GatedRepo"))),
        (None, Some((401, "RepoNotFound")), Some((403, "GatedRepo"))),
    ] {
        rig.token = who.map(str::to_owned);
        for (id, due, info) in
            [("local/open", None, None), ("local/private", private, private), ("local/gated", gated, None)]
        {
            for path in [format!("/api/models/{id}"), format!("/api/models/{id}/revision/main")] {
                let (status, code, _) = outcome(&rig, &path).await;
                assert_eq!(
                    (status, code.as_deref()),
                    info.map_or((200, None), |(s, c)| (s, Some(c))),
                    "{who:?} {path}"
                );
            }
            for path in routes(id) {
                let (status, code, _) = outcome(&rig, &path).await;
                match due {
                    Some((expected, named)) => {
                        assert_eq!((status, code.as_deref()), (expected, Some(named)), "{who:?} {path}")
                    }
                    None => assert_eq!(status, if path.contains("none") { 404 } else { 200 }, "{who:?} {path}"),
                }
            }
            let asked = rig.post(&format!("/api/models/{id}/paths-info/main"), json!({"paths": ["f.bin"]})).await;
            assert_eq!(asked.status().as_u16(), due.map_or(200, |(status, _)| status), "{who:?} {id}");
        }
    }
    rig.token = Some(PROCESS.into());
    let process = rig.for_the_process().await;
    assert_eq!(bytes(&process, "/local/gated/resolve/main/f.bin").await, b"12");
    assert_eq!(bytes(&process, "/local/private/resolve/main/f.bin").await, b"3");
}

#[tokio::test(flavor = "multi_thread")]
async fn cas_token_of_repository_reads_only_its_own_content() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    rig.bucket("local/b").await;
    let (one, two) = (noise(1, 60_000), noise(2, 60_000));
    import(&rig, "local/one", &[("a.bin", &one)], &ImportOptions::default()).await;
    import(&rig, "local/two", &[("a.bin", &two)], &ImportOptions::default()).await;
    let in_bucket = rig.upload("local/b", &noise(3, 60_000)).await;
    let hash = async |id: &str| {
        let entry = rig.get_json(&format!("/api/models/{id}/tree/main")).await[0].clone();
        entry["xetHash"].as_str().unwrap().to_owned()
    };
    let hashes = [hash("local/one").await, hash("local/two").await, in_bucket];
    let paths = [
        "/api/models/local/one/xet-read-token/main",
        "/api/models/local/two/xet-read-token/main",
        "/api/buckets/local/b/xet-read-token",
    ];
    for (own, path) in paths.iter().enumerate() {
        let token = token(&rig, path).await;
        for (at, hash) in hashes.iter().enumerate() {
            assert_eq!(reconstruct(&rig, &token, hash).await, if at == own { 200 } else { 404 }, "{path} {at}");
        }
        let sent =
            rig.http.post(format!("{}/v1/shards", token.0)).bearer_auth(&token.1).body("x").send().await.unwrap();
        assert_eq!(sent.status(), 403, "it only reads");
    }
    let response = rig.get("/api/models/local/one/xet-write-token/main").await;
    assert_eq!(response.status(), 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_copies_content_of_repositories_that_the_caller_may_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    rig.hub.add_user("eve").await.unwrap();
    let eve = rig.hub.add_token("eve", Role::Write).await.unwrap().secret.to_string();
    let closed = [
        ("datasets/local/open", ImportOptions::default()),
        ("datasets/local/private", ImportOptions { private: true, ..ImportOptions::default() }),
        ("datasets/local/gated", ImportOptions { gated: true, ..ImportOptions::default() }),
    ];
    let mut hashes = Vec::new();
    for (seed, (id, options)) in (0..).zip(&closed) {
        import(&rig, id, &[("x.bin", &noise(seed, 30_000)), ("empty", b"")], options).await;
        let entries = rig.get_json(&format!("/api/{id}/tree/main")).await;
        hashes.push(entries[1]["xetHash"].as_str().unwrap().to_owned());
    }
    let copy = |hash: &str, kind: &str, id: &str| json!({"type": "copyFile", "path": format!("{id}/{kind}/{hash}"), "xetHash": hash, "sourceRepoType": kind, "sourceRepoId": id});
    for (who, bucket, due) in [("hf_local", "local/b", [200; 3]), (eve.as_str(), "eve/b", [200, 422, 422])] {
        rig.token = Some(who.to_owned());
        rig.bucket(bucket).await;
        for ((hash, (id, _)), due) in hashes.iter().zip(&closed).zip(due) {
            let id = id.strip_prefix("datasets/").unwrap();
            assert_eq!(rig.batch(bucket, &[copy(hash, "dataset", id)]).await.0.as_u16(), due, "{bucket} {id}");
            let wrong = [
                (hash.as_str(), "model", id),
                (EMPTY, "dataset", id),
                (hash, "dataset", "local/none"),
                (hash, "kernel", id),
            ];
            for (hash, kind, id) in wrong {
                assert_eq!(rig.batch(bucket, &[copy(hash, kind, id)]).await.0, 422, "{kind} {id}");
            }
        }
        // Content of another repository than the one that is named.
        assert_eq!(rig.batch(bucket, &[copy(&hashes[1], "dataset", "local/open")]).await.0, 422);
        let path = format!("/buckets/{bucket}/resolve/local/open/dataset/{}", hashes[0]);
        assert_eq!(bytes(&rig, &path).await, noise(0, 30_000));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn resolve_gives_headers_ranges_and_bytes_of_both_kinds_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let (small, large) = (noise(1, 3_000_000), noise(2, 3_000_000));
    let commit =
        import(&rig, "local/m", &[("a b/#?%.txt", &small), ("x.bin", &large)], &ImportOptions::default()).await.commit;
    for (path, content) in [("a%20b/%23%3F%25.txt", &small), ("a%20b%2F%23%3F%25.txt", &small), ("x.bin", &large)] {
        let is_xet = path == "x.bin";
        let path = format!("/local/m/resolve/main/{path}");
        let head = rig.request(Method::HEAD, &path).send().await.unwrap();
        assert_eq!((head.status().as_u16(), header(&head, "x-repo-commit")), (200, commit.clone()));
        assert_eq!(header(&head, "content-length"), "3000000");
        assert_eq!(head.headers().contains_key("x-xet-hash"), is_xet);
        assert_eq!(head.headers().contains_key("x-linked-etag"), is_xet);
        if is_xet {
            let auth = format!("<{}/api/models/local/m/xet-read-token/{commit}>; rel=\"xet-auth\"", rig.base());
            assert!(header(&head, "link").starts_with(&auth));
            assert_eq!(
                (header(&head, "x-linked-size"), header(&head, "x-linked-etag")),
                ("3000000".into(), header(&head, "etag"))
            );
        }
        assert!(bytes(&rig, &path).await == *content);
        for (range, expected) in [
            ("bytes=0-0", 0..1),
            ("bytes=1000000-1100000", 1_000_000..1_100_001),
            ("bytes=1048570-", 1_048_570..3_000_000),
            ("bytes=-5", 2_999_995..3_000_000),
            ("bytes=2999999-9999999", 2_999_999..3_000_000),
        ] {
            let part = rig.request(Method::GET, &path).header("range", range).send().await.unwrap();
            assert_eq!(part.status(), 206);
            let shown = format!("bytes {}-{}/3000000", expected.start, expected.end - 1);
            assert_eq!(header(&part, "content-range"), shown);
            assert!(part.bytes().await.unwrap() == content[expected], "{range}");
        }
        let past = rig.request(Method::GET, &path).header("range", "bytes=3000000-").send().await.unwrap();
        assert_eq!((past.status().as_u16(), header(&past, "content-range")), (416, "bytes */3000000".into()));
        let same = rig.request(Method::GET, &path).header("if-none-match", header(&head, "etag")).send().await.unwrap();
        assert_eq!(same.status(), 304);
    }
    for path in ["a%20b", "none", "x.bin/y", "a%20b/", "a%20b%2F..%2Fx.bin", ".%2Fx.bin"] {
        let due = (404, Some("EntryNotFound".to_owned()), Some(commit.clone()));
        assert_eq!(outcome(&rig, &format!("/local/m/resolve/main/{path}")).await, due, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn listing_stays_that_of_its_first_page_while_branch_moves() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::open(&dir, ServeOptions { page_size: Some(2), ..ServeOptions::default() }).await;
    let files: [(&str, &[u8]); 5] = [("a/1", b""), ("a/2", b""), ("b/c/3", b""), ("d,<>\"", b""), ("ü", b"")];
    import(&rig, "local/m", &files, &ImportOptions::default()).await;
    let all = ["a", "a/1", "a/2", "b", "b/c", "b/c/3", "d,<>\"", "ü"];
    assert_eq!(rig.list("/api/models/local/m/tree/main?recursive=true").await, all);
    assert_eq!(rig.list("/api/models/local/m/tree/main?recursive=true&expand=true").await, all);
    assert_eq!(rig.list("/api/models/local/m/tree/main").await, ["a", "b", "d,<>\"", "ü"]);
    assert_eq!(rig.list("/api/models/local/m/tree/main/").await, ["a", "b", "d,<>\"", "ü"]);
    assert_eq!(rig.list("/api/models/local/m/tree/main/b?recursive=true").await, ["b/c", "b/c/3"]);
    assert_eq!(rig.list("/api/models/local/m/tree/main/b%2Fc").await, ["b/c/3"]);
    let first = rig.get("/api/models/local/m/tree/main?recursive=true").await;
    let next = next_page(&first).unwrap();
    import(&rig, "local/m", &[("other", b"")], &ImportOptions::default()).await;
    let next = next.strip_prefix(&rig.base()).unwrap().to_owned();
    assert_eq!(rig.list(&next).await, all[2..]);
    assert_eq!(rig.list("/api/models/local/m/tree/main").await, ["other"]);
    for cursor in ["x", "00", &"00".repeat(20), &"00".repeat(30)] {
        let status = outcome(&rig, &format!("/api/models/local/m/tree/main?cursor={cursor}")).await.0;
        assert!(matches!(status, 400 | 404), "{cursor}: {status}");
    }
    for number in 0..5 {
        import(&rig, "local/m", &[("n", format!("{number}").as_bytes())], &ImportOptions::default()).await;
    }
    assert_eq!(rig.list_commits("/api/models/local/m/commits/main").await, 7);
}

impl Rig {
    /// Number of commits on all pages.
    async fn list_commits(&self, path: &str) -> usize {
        let ids = self.list(path).await;
        assert_eq!(ids.len(), ids.iter().collect::<BTreeSet<_>>().len());
        ids.len()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pointer_files_are_content_and_lead_to_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::new(&dir).await;
    let secret = noise(1, 20_000);
    let private = ImportOptions { private: true, ..ImportOptions::default() };
    // Its tree has the id of one that holds the pointer as a plain file of a model.
    import(&rig, "datasets/local/secret", &[("x.png", &secret)], &private).await;
    let entry = rig.get_json("/api/datasets/local/secret/tree/main").await[0].clone();
    let sha256 = entry["lfs"]["oid"].as_str().unwrap();
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize 20000\n");
    assert_eq!(entry["lfs"]["pointerSize"], pointer.len());
    for (id, name) in [("local/open", "x.png"), ("local/more", "y.bin")] {
        import(&rig, id, &[(name, pointer.as_bytes())], &ImportOptions::default()).await;
    }
    rig.token = None;
    for path in ["/local/open/resolve/main/x.png", "/local/more/resolve/main/y.bin"] {
        assert_eq!(bytes(&rig, path).await, pointer.as_bytes());
    }
    let token = token(&rig, "/api/models/local/open/xet-read-token/main").await;
    assert_eq!(reconstruct(&rig, &token, entry["xetHash"].as_str().unwrap()).await, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_imports_of_one_branch_are_commits_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    // Two processes have the directory open.
    let second = Rig { hub: LocalHub::open(dir.path()).unwrap(), ..Rig::new(&dir).await };
    let contents: Vec<Vec<u8>> = (0..6).map(|seed| noise(seed, 40_000)).collect();
    let none = ImportOptions::default();
    let imports = contents.iter().enumerate().map(|(at, content)| {
        let rig = if at % 2 == 0 { &rig } else { &second };
        let none = &none;
        async move { import(rig, "local/m", &[("f", &content[..10]), ("x.bin", content)], none).await.commit }
    });
    let made: BTreeSet<String> = futures::future::join_all(imports).await.into_iter().collect();
    assert_eq!(made.len(), 6);
    let listed = rig.list("/api/models/local/m/commits/main").await;
    assert_eq!(listed.iter().cloned().collect::<BTreeSet<_>>(), made);
    let mut read = BTreeSet::new();
    for commit in &made {
        let content = bytes(&rig, &format!("/local/m/resolve/{commit}/x.bin")).await;
        assert_eq!(bytes(&rig, &format!("/local/m/resolve/{commit}/f")).await, content[..10]);
        read.insert(content);
    }
    assert_eq!(read, contents.into_iter().collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn import_replaces_all_files_and_failed_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    let first = import(&rig, "local/m", &[("a", b"1"), ("b/c", b"2")], &ImportOptions::default()).await;
    assert_eq!((first.is_new, first.files, first.size), (true, 2, 2));
    let again = import(&rig, "local/m", &[("a", b"1"), ("b/c", b"2")], &ImportOptions::default()).await;
    assert_eq!(again, Imported { is_new: false, ..first.clone() });
    let id: RepositoryId = "local/m".parse().unwrap();
    let failed = rig.hub.import_folder(Path::new("/nowhere/at/all"), &id, &ImportOptions::default()).await;
    assert!(matches!(failed, Err(ImportError::Folder(FolderError::NotAFolder(_)))));
    let failed = rig.hub.import_folder(dir.path(), &id, &on("a..b")).await;
    assert!(matches!(failed, Err(ImportError::Ref(name)) if name == "a..b"));
    assert_eq!(rig.get_json("/api/models/local/m").await["sha"], first.commit);
    let empty = import(&rig, "local/m", &[], &ImportOptions::default()).await;
    assert_eq!((empty.is_new, empty.files), (true, 0));
    assert_eq!(rig.list("/api/models/local/m/tree/main").await, Vec::<String>::new());
    // Files that come back have their contents.
    let back = import(&rig, "local/m", &[("a", b"1"), ("b/c", b"2")], &ImportOptions::default()).await;
    assert!(back.is_new && back.commit != first.commit);
    assert_eq!(bytes(&rig, "/local/m/resolve/main/b/c").await, b"2");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_of_repositories_take_their_methods_and_forms_only() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::new(&dir).await;
    import(&rig, "gpt2", &[("a", b"1"), ("b/c", b"2")], &tagged("v1")).await;
    for (path, allowed) in [
        ("/api/models/gpt2", "GET, HEAD"),
        ("/api/models/gpt2/", "GET, HEAD"),
        ("/api/models/gpt2/revision/main", "GET, HEAD"),
        ("/api/models/gpt2/refs", "GET, HEAD"),
        ("/api/models/gpt2/commits/main", "GET, HEAD"),
        ("/api/models/gpt2/tree/main", "GET, HEAD"),
        ("/api/models/gpt2/tree/main/b", "GET, HEAD"),
        ("/api/models/gpt2/xet-read-token/main", "GET, HEAD"),
        ("/api/models/gpt2/paths-info/main", "POST"),
        ("/gpt2/resolve/main/a", "GET, HEAD"),
    ] {
        for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] {
            let due = allowed.split(", ").any(|allowed| allowed == method);
            let request = rig.request(method.parse().unwrap(), path).json(&json!({"paths": []}));
            let response = request.send().await.unwrap();
            assert_eq!(response.status().as_u16(), if due { 200 } else { 405 }, "{method} {path}");
            assert_eq!(response.headers().get("allow").is_some(), !due);
        }
    }
    for path in
        ["/api/models/gpt2/none", "/api/datasets/gpt2", "/api/models/gpt3", "/gpt2/resolve/main", "/api/models/"]
    {
        assert_eq!(outcome(&rig, path).await.1.as_deref(), Some("RepoNotFound"), "{path}");
    }
    let form = rig.request(Method::POST, "/api/models/gpt2/paths-info/v1");
    let form = form.header("content-type", "application/x-www-form-urlencoded");
    let answered = form.body("paths=b&paths=b%2Fc&paths=none&paths=&expand=True").send().await.unwrap();
    let entries: Vec<Value> = answered.json().await.unwrap();
    let shown: Vec<_> = entries.iter().map(|e| (e["type"].as_str().unwrap(), e["path"].as_str().unwrap())).collect();
    assert_eq!(shown, [("directory", "b"), ("file", "b/c")]);
    assert!(entries.iter().all(|entry| entry["lastCommit"]["title"] == "Import 2 files"));
    let many = json!({"paths": vec!["a"; 2001]});
    assert_eq!(rig.post("/api/models/gpt2/paths-info/main", many).await.status(), 400);
    let info = rig.get_json("/api/models/gpt2?expand=sha&expand=siblings").await;
    let members: Vec<&String> = info.as_object().unwrap().keys().collect();
    assert_eq!(members, ["_id", "id", "sha", "siblings"]);
    // Without a branch `main` there is a description, and nothing else.
    import(&rig, "local/dev", &[("a", b"1")], &on("dev")).await;
    assert_eq!(rig.get_json("/api/models/local/dev").await["sha"], Value::Null);
    assert_eq!(outcome(&rig, "/local/dev/resolve/main/a").await.1.as_deref(), Some("RevisionNotFound"));
    assert_eq!(bytes(&rig, "/local/dev/resolve/dev/a").await, b"1");
}
