//! What every [`Hub`] has to do, as one list: run against each implementation and each way of setting one up.
//!
//! It uses empty files only, so it needs no CAS. Buckets are named after the facts and left behind,
//! except the deleted one.

use super::{BatchOp, BucketId, Cursor, EMPTY_FILE, Error, FileEntry, Hub, TreeEntry};
use crate::xet::{Hash, Scope};
use time::OffsetDateTime;
use time::macros::datetime;

/// Runs the list with a token that may write its own namespace.
pub(super) async fn all(hub: &dyn Hub) {
    let user = hub.whoami().await.unwrap().name;
    let bucket = async |name: &str| {
        let id = BucketId::new(&user, name).unwrap();
        hub.create_bucket(&id, true, false).await.unwrap();
        id
    };
    buckets_are_made_once_and_found(hub, &bucket("made").await).await;
    buckets_are_deleted_with_all_in_them(hub, &bucket("deleted").await).await;
    unknown_buckets_are_not_found(hub, &BucketId::new(&user, "unknown").unwrap()).await;
    a_prefix_is_a_folder_not_a_string(hub, &bucket("prefix").await).await;
    long_listings_come_whole_and_in_order(hub, &bucket("long").await).await;
    odd_keys_are_kept_byte_for_byte(hub, &bucket("odd").await).await;
    invalid_keys_are_refused_alone(hub, &bucket("invalid").await).await;
    lines_of_a_batch_apply_in_order_and_fail_alone(hub, &bucket("batch").await).await;
    a_repeated_batch_changes_nothing(hub, &bucket("repeat").await).await;
    every_change_shows_in_updated_at(hub, &bucket("updated").await).await;
    paths_info_knows_files_only(hub, &bucket("paths").await).await;
    tokens_have_an_address_and_a_future(hub, &bucket("tokens").await).await;
}

const MTIME: OffsetDateTime = datetime!(2026-02-06 17:37:57.123 UTC);

fn add(key: &str) -> BatchOp {
    BatchOp::Add { key: key.to_owned(), hash: EMPTY_FILE, mtime: MTIME, content_type: None }
}

fn delete(key: &str) -> BatchOp {
    BatchOp::Delete { key: key.to_owned() }
}

async fn put(hub: &dyn Hub, bucket: &BucketId, keys: &[&str]) {
    let operations: Vec<_> = keys.iter().map(|key| add(key)).collect();
    assert_eq!(hub.batch(bucket, &operations).await.unwrap().failed, []);
}

/// Keys of a listing; a directory's ends with a slash here.
async fn listed(hub: &dyn Hub, bucket: &BucketId, prefix: &str, recursive: bool) -> Vec<String> {
    let entries = hub.tree(bucket, prefix, recursive).await.unwrap();
    let shown = |entry: &TreeEntry| match entry {
        TreeEntry::File(file) => file.key.clone(),
        TreeEntry::Directory { key, .. } => format!("{key}/"),
    };
    entries.iter().map(shown).collect()
}

fn not_found<T: std::fmt::Debug>(result: Result<T, Error>) {
    assert!(matches!(result, Err(Error::BucketNotFound(_))), "{result:?}");
}

async fn buckets_are_made_once_and_found(hub: &dyn Hub, id: &BucketId) {
    assert!(matches!(hub.create_bucket(id, true, false).await, Err(Error::Conflict(there)) if there == *id));
    hub.create_bucket(id, false, true).await.unwrap();
    let info = hub.bucket_info(id).await.unwrap();
    assert_eq!((&info.id, info.private, info.size, info.total_files), (id, true, 0, 0));
    assert!(info.created_at.is_some());
    for namespace in [id.namespace(), "me"] {
        assert_eq!(hub.list_buckets(namespace).await.unwrap().iter().filter(|bucket| bucket.id == *id).count(), 1);
    }
    assert_eq!(listed(hub, id, "", false).await, [""; 0]);
    assert_eq!(listed(hub, id, "nothing/here", true).await, [""; 0]);
    let open = BucketId::new(id.namespace(), "made-public").unwrap();
    hub.create_bucket(&open, false, false).await.unwrap();
    assert!(!hub.bucket_info(&open).await.unwrap().private);
}

async fn buckets_are_deleted_with_all_in_them(hub: &dyn Hub, id: &BucketId) {
    put(hub, id, &["a"]).await;
    hub.delete_bucket(id).await.unwrap();
    not_found(hub.bucket_info(id).await);
    not_found(hub.delete_bucket(id).await);
    hub.create_bucket(id, true, false).await.unwrap();
    assert_eq!(listed(hub, id, "", true).await, [""; 0]);
    hub.delete_bucket(id).await.unwrap();
}

async fn unknown_buckets_are_not_found(hub: &dyn Hub, id: &BucketId) {
    not_found(hub.bucket_info(id).await);
    not_found(hub.tree_page(id, "", false, None).await);
    not_found(hub.paths_info(id, &["a".to_owned()]).await);
    not_found(hub.batch(id, &[delete("a")]).await);
    not_found(hub.cas_token(id, Scope::Read).await);
    not_found(hub.cas_token(id, Scope::Write).await);
}

async fn a_prefix_is_a_folder_not_a_string(hub: &dyn Hub, id: &BucketId) {
    put(hub, id, &["logs/x", "logs/d/y", "logs/d/e/z", "logs_old/x", "logs#1", "log", "top", "logs/d0"]).await;
    assert_eq!(listed(hub, id, "logs", false).await, ["logs/d/", "logs/d0", "logs/x"]);
    assert_eq!(listed(hub, id, "logs", true).await, ["logs/d/e/z", "logs/d/y", "logs/d0", "logs/x"]);
    assert_eq!(listed(hub, id, "logs/d", false).await, ["logs/d/e/", "logs/d/y"]);
    assert_eq!(listed(hub, id, "", false).await, ["log", "logs#1", "logs/", "logs_old/", "top"]);
    assert_eq!(listed(hub, id, "", true).await.len(), 8);
    for file_or_nothing in ["top", "log", "logs#1", "lo", "logs/d/y", "logs_"] {
        assert_eq!(listed(hub, id, file_or_nothing, false).await, [""; 0], "{file_or_nothing}");
        assert_eq!(listed(hub, id, file_or_nothing, true).await, [""; 0], "{file_or_nothing}");
    }
}

async fn long_listings_come_whole_and_in_order(hub: &dyn Hub, id: &BucketId) {
    let keys: Vec<String> = (0..2300).map(|i| format!("d{}/{i:04}", i % 3)).collect();
    put(hub, id, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(listed(hub, id, "", true).await, sorted);
    assert_eq!(listed(hub, id, "", false).await, ["d0/", "d1/", "d2/"]);
    // A page is good while others write: what was there before and stays is listed exactly once.
    let first = hub.tree_page(id, "", true, None).await.unwrap();
    put(hub, id, &["a", "d1/new", "z"]).await;
    let mut seen: Vec<String> = first.entries.iter().map(|entry| entry.key().to_owned()).collect();
    let mut cursor: Option<Cursor> = first.next;
    while let Some(next) = cursor {
        let page = hub.tree_page(id, "", true, Some(&next)).await.unwrap();
        seen.extend(page.entries.iter().map(|entry| entry.key().to_owned()));
        cursor = page.next;
    }
    seen.retain(|key| key.len() > 1 && !key.ends_with("new"));
    assert_eq!(seen, sorted);
    let files = hub.paths_info(id, &keys).await.unwrap();
    assert_eq!(files.len(), keys.len());
    let removals: Vec<_> = keys.iter().map(|key| delete(key)).collect();
    assert_eq!(hub.batch(id, &removals).await.unwrap().failed, []);
    assert_eq!(listed(hub, id, "", true).await, ["a", "d1/new", "z"]);
}

async fn odd_keys_are_kept_byte_for_byte(hub: &dyn Hub, id: &BucketId) {
    let names = [
        "ü",
        "u\u{308}",
        "a b",
        "%2F",
        "a%b",
        "?x=1",
        "#",
        "&",
        "+",
        "'\"",
        "...x",
        "x..x",
        "a:b",
        "\u{1}\n\t",
        "🗝",
        "-",
        "~",
    ];
    let keys: Vec<String> = names.iter().map(|name| format!("{name}/{name}")).collect();
    put(hub, id, &keys.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut sorted = keys.clone();
    sorted.sort();
    assert_eq!(listed(hub, id, "", true).await, sorted);
    for (name, key) in names.iter().zip(&keys) {
        assert_eq!(listed(hub, id, name, false).await, std::slice::from_ref(key), "{name:?}");
    }
    assert_eq!(hub.paths_info(id, &keys).await.unwrap().len(), keys.len());
    for prefix in [".", "..", "ü/..", "./ü", "ü//ü", "ü/./ü"] {
        assert_eq!(listed(hub, id, prefix, true).await, [""; 0], "{prefix}");
    }
}

async fn invalid_keys_are_refused_alone(hub: &dyn Hub, id: &BucketId) {
    let invalid = ["back\\slash", "dots../x", "x/dots..", "...", "./x", "x/../y", "/x", "x//y"];
    let operations: Vec<_> = invalid.iter().copied().chain(["good"]).map(add).collect();
    let outcome = hub.batch(id, &operations).await.unwrap();
    assert_eq!(outcome.failed.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), invalid);
    assert_eq!(listed(hub, id, "", true).await, ["good"]);
}

async fn lines_of_a_batch_apply_in_order_and_fail_alone(hub: &dyn Hub, id: &BucketId) {
    let unknown = Hash([0xab; 32]);
    let stranger = |key: &str| BatchOp::Add { key: key.to_owned(), hash: unknown, mtime: MTIME, content_type: None };
    let operations = [add("a"), stranger("b"), add("c"), delete("a"), add("d"), delete("never was"), add("e/f")];
    let outcome = hub.batch(id, &operations).await.unwrap();
    assert_eq!(outcome.failed.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(listed(hub, id, "", true).await, ["c", "d", "e/f"]);
    let outcome = hub.batch(id, &[stranger("x"), stranger("c")]).await.unwrap();
    assert_eq!(outcome.failed.len(), 2, "all lines failed, and that is an outcome");
    assert_eq!(listed(hub, id, "", true).await, ["c", "d", "e/f"]);
    // The name of a directory is no file.
    assert_eq!(hub.batch(id, &[delete("e")]).await.unwrap().failed, []);
    assert_eq!(listed(hub, id, "", true).await, ["c", "d", "e/f"]);
    assert_eq!(hub.batch(id, &[]).await.unwrap().failed, []);
    assert_eq!(hub.bucket_info(id).await.unwrap().total_files, 3);
}

async fn a_repeated_batch_changes_nothing(hub: &dyn Hub, id: &BucketId) {
    let operations = [add("a"), add("b"), delete("b")];
    for _ in 0..2 {
        assert_eq!(hub.batch(id, &operations).await.unwrap().failed, []);
        assert_eq!(listed(hub, id, "", true).await, ["a"]);
        assert_eq!(hub.bucket_info(id).await.unwrap().total_files, 1);
    }
}

async fn every_change_shows_in_updated_at(hub: &dyn Hub, id: &BucketId) {
    let mut before = hub.bucket_info(id).await.unwrap().updated_at;
    for operation in [add("a"), add("a"), delete("a")] {
        assert_eq!(hub.batch(id, &[operation]).await.unwrap().failed, []);
        let after = hub.bucket_info(id).await.unwrap().updated_at;
        assert!(after.is_some() && after != before);
        before = after;
    }
    assert_eq!(hub.bucket_info(id).await.unwrap().updated_at, before);
}

async fn paths_info_knows_files_only(hub: &dyn Hub, id: &BucketId) {
    put(hub, id, &["a", "d/e"]).await;
    let keys = ["a", "d", "d/e", "d/", "none", "", "a"].map(str::to_owned);
    let mut files = hub.paths_info(id, &keys).await.unwrap();
    files.sort_by(|one, other| one.key.cmp(&other.key));
    let TreeEntry::File(expected) = &hub.tree(id, "", false).await.unwrap()[0] else { panic!("a is a file") };
    assert_eq!(files[0], *expected);
    assert_eq!(files.iter().map(|file| file.key.as_str()).collect::<Vec<_>>(), ["a", "d/e"]);
    let FileEntry { size, hash, mtime, uploaded_at, .. } = &files[0];
    assert_eq!((*size, *hash, *mtime), (0, Some(EMPTY_FILE), Some(MTIME)));
    assert!(uploaded_at.is_some());
    assert_eq!(hub.paths_info(id, &[]).await.unwrap(), []);
}

async fn tokens_have_an_address_and_a_future(hub: &dyn Hub, id: &BucketId) {
    let now = OffsetDateTime::now_utc().unix_timestamp() as u64;
    for scope in [Scope::Read, Scope::Write] {
        let token = hub.cas_token(id, scope).await.unwrap();
        assert!(token.url.starts_with("http") && !token.url.ends_with('/'), "{}", token.url);
        assert!(token.expires > now + 60, "good for {} s", token.expires.saturating_sub(now));
        assert!(!token.token.is_empty());
    }
}
