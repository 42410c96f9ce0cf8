//! Views over the embedded Hub, its CAS and the whole client, through HTTP.

mod metadata;
mod stream;

use crate::crypto::geometry::{HEADER_LEN, NONCE_LEN, Padding, PlainLen, RECORD_LEN};
use crate::crypto::{FileId, Format, Header, Keys};
use crate::hub::local::faults::{Fault, Faults, Rule};
use crate::hub::local::{LocalHub, ServeOptions, Server};
use crate::hub::token::TokenProvider;
use crate::hub::{BatchOp, BucketId, Endpoint, Hub};
use crate::store::conformance::{self, Pool};
use crate::store::draft::DraftState;
use crate::store::testing::{bucket, counting_keys, long_name, other_keys, path};
use crate::store::{
    CacheMode, Change, Content, DiskCacheOptions, Error, Expect, Kind, Len, Op, OpenOptions, Outcome, PlainPath,
    Source, Stored, Version, View, open,
};
use crate::xet::compression::Policy;
use crate::xet::http::{self, HttpCas};
use crate::xet::{Hash, UploadSession};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use time::OffsetDateTime;

const TOKEN: &str = "hf_store_tests";

/// A Hub in a directory, with small pages and the raw prefixes of the real one.
struct Stack {
    hub: TempDir,
    cache: TempDir,
    faults: Arc<Faults>,
    endpoint: Arc<Endpoint>,
    _server: Server,
}

impl Stack {
    async fn new() -> Self {
        let (hub, cache, faults) = (TempDir::new().unwrap(), TempDir::new().unwrap(), Arc::new(Faults::default()));
        let options = ServeOptions {
            process_token: Some(TOKEN.into()),
            page_size: Some(3),
            raw_prefix: true,
            faults: Some(faults.clone()),
            ..ServeOptions::default()
        };
        let server = LocalHub::open(hub.path()).unwrap().serve((Ipv4Addr::LOCALHOST, 0).into(), options).await.unwrap();
        let address = format!("http://{}", server.address());
        let endpoint = Arc::new(Endpoint::open(&address, TokenProvider::fixed(TOKEN.into())).await.unwrap());
        Self { hub, cache, faults, endpoint, _server: server }
    }

    fn options(&self, keys: Option<Arc<Keys>>) -> OpenOptions {
        OpenOptions { keys, create: true, cache_dir: Some(self.cache.path().to_owned()), ..OpenOptions::default() }
    }

    async fn open_at(&self, prefix: &str, options: OpenOptions) -> Result<Arc<dyn View>, Error> {
        let source = Source::Bucket { id: bucket(), prefix: prefix.into() };
        Ok(open(self.endpoint.clone(), &source, options).await?.view)
    }

    async fn open(&self, options: OpenOptions) -> Arc<dyn View> {
        self.open_at("", options).await.unwrap()
    }

    async fn keyed(&self) -> Arc<dyn View> {
        self.open(self.options(Some(counting_keys()))).await
    }

    async fn of_format(&self, format: Format) -> Arc<dyn View> {
        self.open(OpenOptions { format: Some(format), ..self.options(Some(counting_keys())) }).await
    }

    async fn plain(&self) -> Arc<dyn View> {
        self.open(self.options(None)).await
    }

    /// Returns every key of the bucket.
    async fn keys(&self) -> Vec<String> {
        let entries = self.endpoint.client().tree(&bucket(), "", true).await.unwrap();
        entries.iter().map(|entry| entry.key().to_owned()).collect()
    }

    /// Stores bytes under a key unchanged.
    async fn raw(&self, key: &str, bytes: &[u8]) -> Hash {
        let client = self.endpoint.client();
        let tokens = crate::hub::client::bucket_tokens(client.clone(), bucket());
        let cas = Arc::new(HttpCas::new(self.endpoint.http(), tokens, http::Options::default()));
        let session = UploadSession::new(cas, crate::xet::upload::Options::default());
        let hash = session.add(bytes, Policy::Never).await.unwrap().hash;
        session.finish().await.unwrap();
        let mtime = OffsetDateTime::UNIX_EPOCH;
        let add = BatchOp::Add { key: key.to_owned(), hash, mtime, content_type: None };
        assert_eq!(client.batch(&bucket(), &[add]).await.unwrap().failed, []);
        hash
    }

    /// Counts requests whose path holds `part`.
    fn count(&self, part: &'static str) -> Arc<Mutex<usize>> {
        let count = Arc::new(Mutex::new(0));
        let counter = count.clone();
        self.faults.record(move |request| *counter.lock().unwrap() += usize::from(request.url.contains(part)));
        count
    }
}

/// Returns bytes that can't be compressed or deduplicated.
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

fn stream(content: &[u8]) -> Content {
    Content::Stream { reader: Box::new(std::io::Cursor::new(content.to_vec())), len: Some(content.len() as u64) }
}

async fn store(view: &dyn View, content: Content) -> Stored {
    let session = view.put().await.unwrap();
    let stored = session.add(content).await.unwrap();
    session.finish().await.unwrap();
    stored
}

fn put(at: &str, stored: Stored, expect: Expect) -> Op {
    Op { path: path(at), expect, change: Change::Put { stored, mtime: OffsetDateTime::UNIX_EPOCH, metadata: None } }
}

async fn commit(view: &dyn View, operation: Op) -> Outcome {
    view.commit(&[operation]).await.pop().unwrap()
}

async fn done(view: &dyn View, operation: Op) -> Option<Version> {
    match commit(view, operation).await {
        Outcome::Done(version) => version,
        Outcome::Moved(_) => None,
        other => panic!("{other:?}"),
    }
}

async fn write(view: &dyn View, at: &str, content: &[u8]) {
    let stored = store(view, stream(content)).await;
    done(view, put(at, stored, Expect::Any)).await;
}

async fn version(view: &dyn View, at: &str) -> (Version, Len) {
    let entry = view.stat(&path(at)).await.unwrap().unwrap_or_else(|| panic!("{at:.30} is not there"));
    match entry.kind {
        Kind::File { version: Some(version), len, .. } => (version, len),
        other => panic!("{other:?}"),
    }
}

async fn read(view: &dyn View, at: &str) -> Vec<u8> {
    let (version, len) = version(view, at).await;
    let object = view.open(&version).await.unwrap();
    assert_eq!(len, Len::Known(object.len()));
    object.read(0, usize::MAX).await.unwrap().to_vec()
}

async fn names(view: &dyn View, directory: &str) -> Vec<String> {
    view.list(&path(directory)).await.unwrap().entries.into_iter().map(|entry| entry.name).collect()
}

fn delete(at: &str) -> Op {
    Op { path: path(at), expect: Expect::Any, change: Change::Delete }
}

fn rename(from: &str, to: &str) -> Op {
    let change = Change::Rename { to: path(to), expect_to: Expect::Any };
    Op { path: path(from), expect: Expect::Any, change }
}

fn move_directory(from: &str, to: &str) -> Op {
    Op { path: path(from), expect: Expect::Any, change: Change::RenameDirectory { to: path(to) } }
}

#[tokio::test]
async fn plain_view_keeps_contract() {
    conformance::all(&*Stack::new().await.plain().await).await;
}

#[tokio::test]
async fn merged_view_keeps_contract() {
    conformance::all(&*Stack::new().await.keyed().await).await;
}

#[tokio::test]
async fn encrypted_view_keeps_contract_in_both_formats() {
    for format in [Format::V1, Format::V2] {
        let stack = Stack::new().await;
        let options = stack.options(Some(counting_keys()));
        let view = stack.open(OpenOptions { encrypted_only: true, format: Some(format), ..options }).await;
        conformance::all(&*view).await;
    }
}

#[tokio::test]
async fn content_reads_back_whole_and_in_ranges() {
    let stack = Stack::new().await;
    let mut views = vec![("plain", stack.plain().await)];
    for (folder, format, padding) in
        [("one", Format::V1, Padding::None), ("two", Format::V2, Padding::None), ("padded", Format::V2, Padding::Padme)]
    {
        let options = stack.options(Some(counting_keys()));
        views.push((folder, stack.open(OpenOptions { format: Some(format), padding, ..options }).await));
    }
    for (folder, view) in views {
        for len in [0, 1, 65_535, 65_536, 65_537, 700_000, 1_300_000] {
            let (at, content) = (format!("{folder}/{len}"), bytes(len as u64 + 1, len));
            write(&*view, &at, &content).await;
            assert!(read(&*view, &at).await == content, "{at}");
            let (version, _) = version(&*view, &at).await;
            let object = view.open(&version).await.unwrap();
            for offset in [0, 1, 65_535, 65_536, 100_000, len.saturating_sub(1), len, len + 1] {
                for count in [0, 1, 2, 65_536, 65_537, 1_200_000] {
                    let (from, to) = (offset.min(len), (offset + count).min(len));
                    let part = object.read(offset as u64, count).await.unwrap();
                    assert!(part == content[from..to.max(from)], "{at}: {count} at {offset}");
                }
            }
            let verified = object.verify().await.unwrap();
            assert_eq!((verified.damaged, verified.stale_tail), (0, false));
        }
    }
}

#[tokio::test]
async fn format_1_file_moves_to_format_2_with_next_version() {
    let stack = Stack::new().await;
    let (old, new) = (stack.of_format(Format::V1).await, stack.keyed().await);
    write(&*old, "d/f", b"first").await;
    write(&*new, "d/g", b"beside").await;
    assert_eq!(names(&*new, "d").await, ["f", "g"]);
    let (base, _) = version(&*new, "d/f").await;
    let stored = store(&*new, stream(b"second")).await;
    done(&*new, put("d/f", stored, Expect::Is(base.id))).await;
    assert_eq!(read(&*old, "d/f").await, b"second");
    assert_eq!(stack.keys().await.len(), 2);
}

#[tokio::test]
async fn file_in_format_2_is_not_written_in_format_1_again() {
    let stack = Stack::new().await;
    let (old, new) = (stack.of_format(Format::V1).await, stack.keyed().await);
    write(&*new, "f", b"first").await;
    let (base, _) = version(&*new, "f").await;
    let content = bytes(5, 200_000);
    let stored = store(&*old, stream(&content)).await;
    let operation = put("f", stored, Expect::Is(base.id));
    let committed = done(&*old, operation.clone()).await.unwrap();
    assert_eq!(committed.side, crate::store::Side::Encrypted(Format::V2));
    assert!(read(&*new, "f").await == content);
    assert_eq!(stack.keys().await.len(), 1);
    assert_eq!(done(&*old, operation).await, Some(committed), "a repeat finds its own result");
    write(&*old, "g", b"new in format 1").await;
    assert_eq!(version(&*new, "g").await.0.side, crate::store::Side::Encrypted(Format::V1));
}

#[tokio::test]
async fn long_names_move_and_their_deletion_leaves_no_object() {
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    let lens = [194, 195, 230, 255];
    for len in lens {
        let (directory, file) = (long_name(len, 1), long_name(len, 2));
        write(&*view, &format!("{directory}/{file}"), file.as_bytes()).await;
        write(&*view, &format!("{directory}/{directory}/{file}"), directory.as_bytes()).await;
    }
    let fresh = stack.open(OpenOptions { cache_dir: None, ..stack.options(Some(counting_keys())) }).await;
    let mut directories: Vec<String> = lens.map(|len| long_name(len, 1)).to_vec();
    directories.sort();
    assert_eq!(names(&*fresh, "").await, directories);
    for len in lens {
        let (directory, file) = (long_name(len, 1), long_name(len, 2));
        assert_eq!(names(&*fresh, &directory).await, [directory.clone(), file.clone()]);
        assert_eq!(read(&*fresh, &format!("{directory}/{file}")).await, file.as_bytes());
        done(&*fresh, rename(&format!("{directory}/{file}"), &file)).await;
        done(&*fresh, move_directory(&directory, &format!("m{len}/{directory}"))).await;
        let moved = format!("m{len}/{directory}/{directory}/{file}");
        assert_eq!(read(&*fresh, &moved).await, directory.as_bytes());
        done(&*fresh, delete(&moved)).await;
        done(&*fresh, delete(&file)).await;
    }
    assert_eq!(stack.keys().await, Vec::<String>::new());
    assert!(matches!(view.check_name(&PlainPath::root(), &"x".repeat(256)), Err(Error::NameTooLong)));
    let old = stack.of_format(Format::V1).await;
    assert!(matches!(old.check_name(&PlainPath::root(), &"x".repeat(195)), Err(Error::NameTooLong)));
}

#[tokio::test]
async fn wrong_key_fails_unless_new_key_is_requested() {
    let stack = Stack::new().await;
    write(&*stack.plain().await, "plain.txt", b"plain").await;
    let view = stack.keyed().await;
    write(&*view, "a", b"a").await;
    write(&*view, "b/c", b"c").await;
    for prefix in ["", "b", "elsewhere"] {
        let wrong = stack.open_at(prefix, stack.options(Some(other_keys()))).await;
        assert!(matches!(wrong, Err(Error::WrongKey { entries: 2 })), "{prefix}");
    }
    let options = OpenOptions { new_key: true, ..stack.options(Some(other_keys())) };
    let other = stack.open(options).await;
    assert_eq!(other.list(&PlainPath::root()).await.unwrap().hidden.foreign, 2);
    write(&*other, "a", b"the other's").await;
    // Now it's a key of this bucket.
    let other = stack.open(stack.options(Some(other_keys()))).await;
    assert_eq!(names(&*other, "").await, ["a", "plain.txt"]);
    assert_eq!(read(&*view, "a").await, b"a");
}

#[tokio::test]
async fn plaintext_is_shown_next_to_encrypted_tree() {
    let stack = Stack::new().await;
    let (plain, view) = (stack.plain().await, stack.keyed().await);
    write(&*view, "both", b"own both").await;
    write(&*view, "d/o", b"own o").await;
    write(&*plain, "readme", b"plain readme").await;
    write(&*plain, "both", b"plain both").await;
    write(&*plain, "d/p", b"plain p").await;
    assert_eq!(names(&*view, "").await, ["both", "d", "readme"]);
    assert_eq!(names(&*view, "d").await, ["o", "p"]);
    assert_eq!(read(&*view, "both").await, b"own both");
    assert_eq!(read(&*view, "readme").await, b"plain readme");
    assert_eq!(view.hidden().shadowed, 1);
    let refused = commit(&*view, delete("readme")).await;
    assert!(matches!(refused, Outcome::Failed(Error::ReadOnly)), "{refused:?}");
    let strict = stack.open(OpenOptions { encrypted_only: true, ..stack.options(Some(counting_keys())) }).await;
    assert_eq!(names(&*strict, "").await, ["both", "d"]);
    assert_eq!(names(&*strict, "d").await, ["o"]);
    assert_eq!(strict.identity(), view.identity());
}

#[tokio::test]
async fn subfolder_shows_its_files_under_shorter_paths() {
    let stack = Stack::new().await;
    let (plain, view) = (stack.plain().await, stack.keyed().await);
    let folder = format!("data/{}", long_name(210, 4));
    write(&*view, &format!("{folder}/own/f"), b"own").await;
    write(&*plain, &format!("{folder}/plain"), b"plain").await;
    write(&*plain, "data/outside", b"outside").await;
    let inner = stack.open_at(&format!("/{folder}/"), stack.options(Some(counting_keys()))).await.unwrap();
    assert_eq!(names(&*inner, "").await, ["own", "plain"]);
    assert_eq!(read(&*inner, "own/f").await, b"own");
    assert_eq!(read(&*inner, "plain").await, b"plain");
    write(&*inner, "own/g", b"from inside").await;
    done(&*inner, move_directory("own", "moved")).await;
    assert_eq!(read(&*view, &format!("{folder}/moved/g")).await, b"from inside");
    assert_eq!(names(&*view, &folder).await, ["moved", "plain"]);
    let plain_inner = stack.open_at(&folder, stack.options(None)).await.unwrap();
    assert_eq!(names(&*plain_inner, "").await, ["plain"]);
    let identities = [&view, &inner, &plain, &plain_inner].map(|view| view.identity());
    assert_eq!(std::collections::BTreeSet::from(identities).len(), 4);
}

#[tokio::test]
async fn file_and_folder_of_one_name_are_reachable_on_both_sides() {
    for keys in [None, Some(counting_keys())] {
        let stack = Stack::new().await;
        let view = stack.open(stack.options(keys)).await;
        for name in ["n.txt", "m", "o", "p"] {
            write(&*view, name, name.as_bytes()).await;
            write(&*view, &format!("{name}/i"), b"below").await;
        }
        let (n, m, o, p) = (
            "n (conflict with folder).txt",
            "m (conflict with folder)",
            "o (conflict with folder)",
            "p (conflict with folder)",
        );
        assert_eq!(names(&*view, "").await, ["m", m, n, "n.txt", "o", o, "p", p]);
        assert_eq!((view.hidden().total(), read(&*view, n).await), (0, b"n.txt".to_vec()));
        assert!(matches!(view.stat(&path("n.txt")).await.unwrap().unwrap().kind, Kind::Directory { .. }));
        let twins = view.twins(&["n.txt", "n.txt/i"].map(path), &["m", "q"].map(path)).await.unwrap();
        assert_eq!(twins, ["m", "n.txt"].map(path));
        let expect = async |at: &str| Expect::Is(version(&*view, at).await.0.id);
        done(&*view, Op { expect: expect(n).await, ..rename(n, "moved") }).await;
        done(&*view, Op { expect: expect(m).await, ..delete(m) }).await;
        let stored = store(&*view, stream(b"edited")).await;
        done(&*view, Op { expect: expect(p).await, ..put(p, stored, Expect::Any) }).await;
        // The folder is removed between the check and the change.
        let seen = expect(o).await;
        done(&*view, delete("o/i")).await;
        done(&*view, Op { expect: seen, ..delete(o) }).await;
        assert_eq!(names(&*view, "").await, ["m", "moved", "n.txt", "p", p]);
        assert_eq!((read(&*view, "moved").await, read(&*view, p).await), (b"n.txt".to_vec(), b"edited".to_vec()));
        done(&*view, delete("p/i")).await;
        assert_eq!(read(&*view, "p").await, b"edited");
        assert_eq!(names(&*view, "").await, ["m", "moved", "n.txt", "p"]);
    }
}

#[tokio::test]
async fn plain_view_refuses_names_refused_by_hub() {
    let view = Stack::new().await.plain().await;
    for (parent, name) in
        [("", "back\\slash"), ("", "dots.."), ("", "..."), ("a", "x.."), ("dots..", "x"), ("b\\s", "x")]
    {
        assert!(matches!(view.check_name(&path(parent), name), Err(Error::InvalidName)), "{parent}/{name}");
    }
    for name in ["..a", "a..b", "a.", "...a", "%5C"] {
        assert!(view.check_name(&path("a"), name).is_ok(), "{name}");
    }
}

#[tokio::test]
async fn plain_listing_counts_objects_with_too_long_names() {
    let stack = Stack::new().await;
    let view = stack.plain().await;
    stack.raw(&format!("d/{}", "x".repeat(256)), b"").await;
    assert_eq!(names(&*view, "").await, ["d"]);
    let listing = view.list(&path("d")).await.unwrap();
    assert_eq!((listing.entries.len(), listing.hidden.nameless(), view.hidden().total()), (0, 1, 1));
}

#[tokio::test]
async fn plain_view_shows_file_with_name_of_directory_under_alias() {
    let stack = Stack::new().await;
    let view = stack.plain().await;
    write(&*view, "d/f", b"below").await;
    write(&*view, "d_old/f", b"raw-prefix sibling").await;
    stack.raw("d", b"hidden by its directory").await;
    let listing = view.list(&PlainPath::root()).await.unwrap();
    let names_of: Vec<&str> = listing.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names_of, ["d", "d (conflict with folder)", "d_old"]);
    assert_eq!(listing.hidden.total(), 0);
    assert_eq!(read(&*view, "d (conflict with folder)").await, b"hidden by its directory");
    assert!(matches!(view.stat(&path("d")).await.unwrap().unwrap().kind, Kind::Directory { read_only: false }));
    assert_eq!(names(&*view, "d").await, ["f"]);
    done(&*view, rename("d/f", "e/g")).await;
    done(&*view, move_directory("e", "f/h")).await;
    assert_eq!(read(&*view, "f/h/g").await, b"below");
    assert_eq!(names(&*view, "").await, ["d", "d_old", "f"]);
    assert_eq!(read(&*view, "d").await, b"hidden by its directory");
}

#[tokio::test]
async fn plain_view_refuses_writes_to_encrypted_tree() {
    let stack = Stack::new().await;
    write(&*stack.keyed().await, "f", b"own").await;
    let (plain, before) = (stack.plain().await, stack.keys().await);
    let stored = store(&*plain, stream(b"x")).await;
    write(&*plain, "x", b"x").await;
    for operation in [
        put(".enc/x", stored, Expect::Any),
        put(".enc", stored, Expect::Any),
        delete(&before[0]),
        rename(&before[0], "y"),
        rename("x", ".enc/y"),
        move_directory(".enc", "z"),
        move_directory("z", ".enc/z"),
    ] {
        let outcome = commit(&*plain, operation).await;
        assert!(matches!(outcome, Outcome::Failed(Error::ReadOnly)), "{outcome:?}");
    }
    assert!(matches!(plain.check_name(&PlainPath::root(), ".enc"), Err(Error::ReadOnly)));
    assert!(plain.check_name(&PlainPath::root(), ".encrypted").is_ok());
    assert!(matches!(plain.stat(&path(".enc")).await.unwrap().unwrap().kind, Kind::Directory { read_only: true }));
    assert_eq!(stack.keys().await.len(), before.len() + 1);
}

#[tokio::test]
async fn altered_record_fails_read_and_is_named_by_verify() {
    let stack = Stack::new().await;
    let view = stack.open(OpenOptions { padding: Padding::Padme, ..stack.options(Some(counting_keys())) }).await;
    let content = bytes(9, 9 * 65_536 - 10);
    write(&*view, "f", &content).await;
    let (stored, _) = version(&*view, "f").await;
    assert_eq!(stored.stored_len, (HEADER_LEN + 10 * RECORD_LEN) as u64, "one pad record");
    // The stored bytes are read through a plain view of the encrypted tree.
    let key = stack.keys().await.pop().unwrap();
    let mut container = read(&*stack.plain().await, &key).await;
    for record in [2, 9] {
        container[HEADER_LEN + record * RECORD_LEN + 1000] ^= 1;
    }
    let hash = stack.raw(&key, &container).await;
    let object = view.open(&Version { id: hash.into(), ..stored }).await.unwrap();
    assert!(object.read(0, 2 * 65_536).await.unwrap() == content[..2 * 65_536]);
    assert!(object.read(3 * 65_536, content.len()).await.unwrap() == content[3 * 65_536..]);
    let error = object.read(2 * 65_536 - 1, 2).await.err().unwrap();
    assert!(error.is_integrity(), "{error}");
    let whole = object.read(0, content.len()).await.err().unwrap();
    assert!(whole.is_integrity(), "{whole}");
    let verified = object.verify().await.unwrap();
    assert_eq!((verified.records, verified.damaged, verified.named), (10, 2, vec![2, 9]));
    // With one record less, the header belongs to another object.
    container.truncate(container.len() - RECORD_LEN);
    stack.raw(&key, &container).await;
    assert_eq!(version(&*view, "f").await.1, Len::Damaged);
    let refused = commit(&*view, put("f", store(&*view, stream(b"x")).await, Expect::Any)).await;
    assert!(matches!(refused, Outcome::Failed(Error::Unauthentic(_))), "{refused:?}");
    done(&*view, delete("f")).await;
}

#[tokio::test]
async fn container_under_name_of_other_format_is_damaged() {
    let stack = Stack::new().await;
    let (old, new) = (stack.of_format(Format::V1).await, stack.keyed().await);
    write(&*old, "old", b"content").await;
    write(&*new, "new", b"content").await;
    let raw = stack.plain().await;
    let mut containers = Vec::new();
    for key in stack.keys().await {
        containers.push((read(&*raw, &key).await, key));
    }
    stack.raw(&containers[0].1, &containers[1].0).await;
    stack.raw(&containers[1].1, &containers[0].0).await;
    for name in ["old", "new"] {
        let (version, len) = version(&*new, name).await;
        assert_eq!(len, Len::Damaged);
        let error = new.open(&version).await.err().unwrap();
        assert!(matches!(error, Error::Unauthentic(crate::crypto::Error::FormatMismatch)), "{error}");
    }
}

#[tokio::test]
async fn newer_container_version_has_its_own_error() {
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    write(&*view, "f", b"content").await;
    let key = stack.keys().await.pop().unwrap();
    let mut container = read(&*stack.plain().await, &key).await;
    container[4] = 3;
    stack.raw(&key, &container).await;
    let (version, len) = version(&*view, "f").await;
    assert_eq!(len, Len::Damaged);
    let error = view.open(&version).await.err().unwrap();
    assert!(matches!(error, Error::Unauthentic(crate::crypto::Error::NewerVersion(3))), "{error}");
}

#[tokio::test]
async fn stream_of_unannounced_length_fails_alone() {
    let stack = Stack::new().await;
    for (at, view) in [("plain", stack.plain().await), ("sealed", stack.keyed().await)] {
        let session = view.put().await.unwrap();
        let content = bytes(3, 100_000);
        for announced in [99_999, 100_001, 65_536, 0, 1 << 40] {
            let reader = Box::new(std::io::Cursor::new(content.clone()));
            let outcome = session.add(Content::Stream { reader, len: Some(announced) }).await;
            assert!(matches!(outcome, Err(Error::LengthMismatch)), "{announced}: {outcome:?}");
        }
        let stored = session.add(stream(&content)).await.unwrap();
        session.finish().await.unwrap();
        done(&*view, put(at, stored, Expect::Any)).await;
        assert!(read(&*view, at).await == content);
    }
}

#[tokio::test]
async fn stream_of_unknown_length_is_stored_in_one_pass() {
    let stack = Stack::new().await;
    for view in [stack.plain().await, stack.keyed().await] {
        for (i, len) in [0, 1, 65_536, 65_537, 3_000_000].into_iter().enumerate() {
            let content = bytes(i as u64, len);
            // A pipe has no length and can't be read twice.
            let (mut source, reader) = tokio::io::duplex(50_000);
            let feeding = async {
                tokio::io::AsyncWriteExt::write_all(&mut source, &content).await.unwrap();
                drop(source);
            };
            let unmeasured = Content::Stream { reader: Box::new(reader), len: None };
            let (stored, ()) = tokio::join!(store(&*view, unmeasured), feeding);
            assert_eq!(stored.plain_len, len as u64);
            let at = format!("piped {}", stored.version.id);
            done(&*view, put(&at, stored, Expect::Absent)).await;
            assert!(read(&*view, &at).await == content, "{len} bytes");
            assert_eq!(version(&*view, &at).await.1, Len::Known(len as u64));
        }
    }
}

#[tokio::test]
async fn size_read_once_is_not_requested_again() {
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    for i in 0..5 {
        write(&*view, &format!("f{i}"), &bytes(i, 1000 + i as usize)).await;
    }
    let reconstructions = stack.count("/reconstructions/");
    let known = |entries: Vec<crate::store::Entry>| -> Vec<Len> {
        let lens = entries.into_iter().map(|entry| match entry.kind {
            Kind::File { len, .. } => len,
            other => panic!("{other:?}"),
        });
        lens.collect()
    };
    let expected: Vec<Len> = (0..5).map(|i| Len::Known(1000 + i)).collect();
    // A new view over this cache lists own uploads.
    let again = stack.keyed().await;
    assert_eq!(known(again.list(&PlainPath::root()).await.unwrap().entries), expected);
    assert_eq!(*reconstructions.lock().unwrap(), 0);
    // Another machine reads each header once.
    let elsewhere = TempDir::new().unwrap();
    let options =
        || OpenOptions { cache_dir: Some(elsewhere.path().to_owned()), ..stack.options(Some(counting_keys())) };
    let other = stack.open(options()).await;
    let entries = other.list(&PlainPath::root()).await.unwrap().entries;
    let versions: Vec<Version> = entries
        .iter()
        .map(|entry| match entry.kind {
            Kind::File { version: Some(version), len: Len::Unread, .. } => version,
            ref other => panic!("{other:?}"),
        })
        .collect();
    let lens: Vec<Len> = other.lens(&versions).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(lens, expected);
    assert_eq!(*reconstructions.lock().unwrap(), 5);
    drop(other);
    let other = stack.open(options()).await;
    assert_eq!(known(other.list(&PlainPath::root()).await.unwrap().entries), expected);
    assert_eq!(*reconstructions.lock().unwrap(), 5);
}

#[tokio::test]
async fn missing_source_and_writes_to_read_only_source_are_refused() {
    let stack = Stack::new().await;
    let missing = stack.open_at("", OpenOptions { create: false, ..stack.options(None) }).await;
    assert!(matches!(missing, Err(Error::Hub(crate::hub::Error::BucketNotFound(_)))));
    let missing = stack.open_at("", OpenOptions { read_only: true, ..stack.options(None) }).await;
    assert!(missing.is_err(), "no bucket is created for a reader");
    write(&*stack.keyed().await, "f", b"content").await;
    for keys in [None, Some(counting_keys())] {
        let view = stack.open(OpenOptions { read_only: true, ..stack.options(keys) }).await;
        assert!(view.read_only());
        assert!(matches!(view.put().await.err(), Some(Error::ReadOnly)));
        let refused = commit(&*view, delete("f")).await;
        assert!(matches!(refused, Outcome::Failed(Error::ReadOnly)));
    }
}

#[tokio::test]
async fn format_1_file_truncated_by_libaegis_reads_with_hint_in_verify() {
    // libaegis rewrites the header only. The last record keeps the old bytes.
    let (keys, file_id) = (counting_keys(), FileId([9; 24]));
    let header = Header { format: Format::V1, plain_len: PlainLen(100), records: 1, file_id };
    let mut slot = Box::new([0; RECORD_LEN]);
    let written = bytes(4242, 50_000);
    slot[NONCE_LEN..][..written.len()].copy_from_slice(&written);
    keys.records(Format::V1, &file_id).seal(0, &[1; NONCE_LEN], &mut slot);
    let container = [&keys.seal_header(&header).unwrap()[..], &slot[..]].concat();
    let stack = Stack::new().await;
    let view = stack.of_format(Format::V1).await;
    write(&*view, "f", b"placeholder").await;
    let key = stack.keys().await.pop().unwrap();
    stack.raw(&key, &container).await;
    let content = read(&*view, "f").await;
    assert!(content == written[..100]);
    let (version, _) = version(&*view, "f").await;
    let verified = view.open(&version).await.unwrap().verify().await.unwrap();
    assert_eq!((verified.damaged, verified.stale_tail), (0, true));
}

#[tokio::test]
async fn lost_answer_of_batch_is_replaced_by_reading_keys() {
    use crate::hub::local::faults::{Fault, Rule};
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    let stored = store(&*view, stream(b"content")).await;
    stack.faults.add(Rule::once("*/batch", Fault::LoseAnswer));
    done(&*view, put("a", stored, Expect::Absent)).await;
    stack.faults.add(Rule::once("*/batch", Fault::LoseAnswer));
    done(&*view, rename("a", "b")).await;
    assert_eq!(names(&*view, "").await, ["b"]);
    assert_eq!(stack.keys().await.len(), 1);
}

#[tokio::test]
async fn view_keeps_embedded_hub_of_endpoint_alive() {
    let folder = TempDir::new().unwrap();
    let address = format!("file://{}", folder.path().display());
    let endpoint = Arc::new(Endpoint::open(&address, TokenProvider::anonymous()).await.unwrap());
    let options = OpenOptions { keys: Some(counting_keys()), create: true, ..OpenOptions::default() };
    let source = Source::Bucket { id: bucket(), prefix: String::new() };
    let view = open(endpoint, &source, options).await.unwrap().view;
    write(&*view, "f", b"content").await;
    assert_eq!(read(&*view, "f").await, b"content");
}

#[tokio::test]
async fn frozen_draft_uploads_edited_content() {
    let stack = Stack::new().await;
    let old = stack.of_format(Format::V1).await;
    for (at, view) in [("plain", stack.plain().await), ("old", old), ("new", stack.keyed().await)] {
        let mut content = bytes(1, 2_000_000);
        write(&*view, at, &content).await;
        let (base, _) = version(&*view, at).await;
        let pool = Arc::new(Pool::default());
        let state =
            DraftState { len: content.len() as u64, base: Some((base, content.len() as u64)), ..DraftState::default() };
        let mut draft = view.draft(state, pool.clone()).unwrap();
        draft.write_at(70_000, b"edited").await.unwrap();
        content[70_000..70_006].copy_from_slice(b"edited");
        draft.truncate(1_900_000).await.unwrap();
        content.truncate(1_900_000);
        let (frozen, _) = draft.freeze().await.unwrap();
        let frozen = Arc::new(frozen);
        let stored = store(&*view, Content::Frozen { frozen: frozen.clone(), slots: pool.clone() }).await;
        assert_eq!(stored.plain_len, 1_900_000);
        let again = store(&*view, Content::Frozen { frozen, slots: pool }).await;
        assert_eq!(stored, again, "a retry sends the same bytes");
        done(&*view, put(at, stored, Expect::Is(base.id))).await;
        assert!(read(&*view, at).await == content, "{at}");
    }
}

/// Counter of requests for xorb data.
struct DataRequests {
    count: Arc<AtomicUsize>,
}

impl DataRequests {
    fn of(stack: &Stack) -> Self {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        stack.faults.record(move |request| {
            if request.url.contains("/data/") {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Self { count: asked }
    }

    fn take(&self) -> usize {
        self.count.swap(0, Ordering::SeqCst)
    }
}

/// Reads until no request is sent any more. Caches are filled in the background.
async fn read_until_kept(view: &dyn View, at: &str, content: &[u8], requests: &DataRequests) {
    for _ in 0..500 {
        requests.take();
        assert!(read(view, at).await == content);
        if requests.take() == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("it is fetched again and again");
}

#[tokio::test]
async fn disk_cache_holds_stored_bytes_and_damage_is_repaired() {
    for mode in [CacheMode::Chunk, CacheMode::File] {
        let stack = Stack::new().await;
        let requests = DataRequests::of(&stack);
        let disk_cache = Some(DiskCacheOptions { mode, max_bytes: 1 << 30 });
        for keys in [Some(counting_keys()), None] {
            let at = if keys.is_some() { "sealed" } else { "plain" };
            let options = OpenOptions { disk_cache, ..stack.options(keys) };
            let view = stack.open(options.clone()).await;
            let content = "canary in the cache ".repeat(20_000).into_bytes();
            write(&*view, at, &content).await;
            read_until_kept(&*view, at, &content, &requests).await;
            drop(view);
            // Another mount finds the cache later.
            let view = stack.open(options.clone()).await;
            read_until_kept(&*view, at, &content, &requests).await;
            let entries: Vec<_> = files_below(stack.cache.path())
                .into_iter()
                .filter(|file| {
                    file.components().any(|part| ["chunks", "files"].contains(&&*part.as_os_str().to_string_lossy()))
                })
                .collect();
            assert!(!entries.is_empty());
            if at == "sealed" {
                assert!(entries.iter().all(|file| !holds(&std::fs::read(file).unwrap(), "canary")));
            }
            for file in entries {
                let mut damaged = std::fs::read(&file).unwrap();
                damaged.iter_mut().skip(200).step_by(997).for_each(|byte| *byte ^= 1);
                std::fs::write(&file, damaged).unwrap();
            }
            requests.take();
            assert!(read(&*view, at).await == content, "{at}, {mode:?}");
            assert!(requests.take() > 0, "damaged data is fetched again");
        }
    }
}

#[tokio::test]
async fn range_of_plain_file_is_checked_against_known_chunks() {
    let stack = Stack::new().await;
    let view = stack.plain().await;
    let content = bytes(3, 400_000);
    write(&*view, "f", &content).await;
    let (version, _) = version(&*view, "f").await;
    // Another process, without the writer's chunk list, reads damaged data. It has read the whole file once,
    // so it knows the chunks.
    let stranger = OpenOptions { cache_dir: None, ..stack.options(None) };
    let view = stack.open(stranger).await;
    view.open(&version).await.unwrap().verify().await.unwrap();
    damaged_range_is_refused(&stack, &*view, &version, &content).await;
    // A third process finds the chunk list of the writer.
    let view = stack.plain().await;
    damaged_range_is_refused(&stack, &*view, &version, &content).await;
}

async fn damaged_range_is_refused(stack: &Stack, view: &dyn View, version: &Version, content: &[u8]) {
    stack.faults.add(Rule { count: u64::MAX, ..Rule::once("*/data/*", Fault::CorruptByte { at: 1000 }) });
    let read = view.open(version).await.unwrap().read(0, 10_000).await;
    assert!(read.is_err(), "a wrong byte was returned");
    stack.faults.clear();
    assert_eq!(view.open(version).await.unwrap().read(0, 10_000).await.unwrap(), &content[..10_000]);
}

#[tokio::test]
async fn dedup_replies_of_upload_check_ranges_of_others_files() {
    let stack = Stack::new().await;
    let content = bytes(5, 3_000_000);
    write(&*stack.plain().await, "first", &content).await;
    let cache = TempDir::new().unwrap();
    let open = || stack.open(OpenOptions { cache_dir: Some(cache.path().to_owned()), ..stack.options(None) });
    let view = open().await;
    let (version, _) = version(&*view, "first").await;
    // The CAS is asked for a block. Its data starts at most one chunk earlier, so this byte of it is read.
    let (at, len) = (9 << 18, 200_000);
    let expected = &content[at as usize..at as usize + len];
    let rule = |count| Rule { count, ..Rule::once("*/data/*", Fault::CorruptByte { at: 150_000 }) };
    stack.faults.add(rule(u64::MAX));
    assert!(
        view.open(&version).await.unwrap().read(at, len).await.unwrap() != expected,
        "without chunk lists damage is not detected"
    );
    stack.faults.clear();

    // The upload shares the data before that block. The answer of the CAS may be too late, so it is tried
    // more than once.
    let has_list = || {
        files_below(&cache.path().join("known"))
            .iter()
            .any(|file| file.file_name().unwrap().as_encoded_bytes().starts_with(b"x-"))
    };
    for nth in 0..20 {
        if !has_list() {
            write(&*view, &format!("second-{nth}"), &[&content[..2_000_000], &bytes(6 + nth, 300_000)].concat()).await;
        }
    }
    assert!(has_list());
    // The chunk list is used now, and after another mount.
    for view in [view, open().await] {
        let file = view.open(&version).await.unwrap();
        stack.faults.add(rule(1));
        assert_eq!(file.read(at, len).await.unwrap(), expected, "damaged data is fetched again");
        stack.faults.clear();
        stack.faults.add(rule(u64::MAX));
        assert!(file.read(at, len).await.is_err(), "a wrong byte was returned");
        stack.faults.clear();
    }
}

#[tokio::test]
async fn edit_of_large_file_sends_changed_records_only() {
    let stack = Stack::new().await;
    let stored_bytes = || files_below(stack.hub.path()).iter().map(|file| file.metadata().unwrap().len()).sum::<u64>();
    let mut content = bytes(1, 66 << 20);
    write(&*stack.keyed().await, "f", &content).await;
    // Another daemon finds its knowledge of the first upload on disk.
    let view = stack.keyed().await;
    let (base, _) = version(&*view, "f").await;
    let pool = Arc::new(Pool::default());
    let len = content.len() as u64;
    let state = DraftState { len, base: Some((base, len)), ..DraftState::default() };
    let mut draft = view.draft(state, pool.clone()).unwrap();
    draft.write_at(30 << 20, b"edited").await.unwrap();
    content[30 << 20..][..6].copy_from_slice(b"edited");
    let (frozen, _) = draft.freeze().await.unwrap();
    let before = stored_bytes();
    let stored = store(&*view, Content::Frozen { frozen: Arc::new(frozen), slots: pool }).await;
    done(&*view, put("f", stored, Expect::Is(base.id))).await;
    let sent = stored_bytes() - before;
    // Data that is packed before the CAS has answered is sent again: a xorb of a third of the session's memory, on a
    // busy machine a second one.
    assert!(sent < 36 << 20, "{sent} bytes of {len} were stored for six");
    assert!(read(&*view, "f").await == content);
}

/// Returns true if `needle` occurs in `haystack`.
fn holds(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn no_plaintext_is_sent_or_stored() {
    let stack = Stack::new().await;
    let sent = Arc::new(Mutex::new(Vec::new()));
    let log = sent.clone();
    stack.faults.record(move |request| {
        let mut log = log.lock().unwrap();
        log.extend_from_slice(request.url.as_bytes());
        log.extend_from_slice(&request.body);
    });
    let long = format!("canary-long-{}", "n".repeat(200));
    for format in [Format::V1, Format::V2] {
        let view = stack.of_format(format).await;
        let target = format!("canary-{format:?}");
        let content = "canary-content ".repeat(10_000);
        write(&*view, "canary-folder/canary-file", content.as_bytes()).await;
        write(&*view, "canary-folder/canary-other", content.as_bytes()).await;
        if format == Format::V2 {
            write(&*view, &format!("{long}/canary-file"), content.as_bytes()).await;
        }
        names(&*view, "canary-folder").await;
        done(&*view, rename("canary-folder/canary-file", "canary-moved")).await;
        done(&*view, move_directory("canary-folder", &target)).await;
        done(&*view, delete("canary-moved")).await;
        read(&*view, &format!("{target}/canary-other")).await;
        assert!(!view.log_name(&path("canary-folder")).contains("canary"));
        let error = commit(&*view, move_directory(&target, &format!("{target}/canary-x"))).await;
        assert!(!format!("{error:?}").contains("canary"));
    }
    let sent = sent.lock().unwrap();
    assert!(sent.len() > 300_000, "everything was recorded");
    assert!(!holds(&sent, "canary"));
    let files: Vec<_> = [stack.hub.path(), stack.cache.path()].into_iter().flat_map(files_below).collect();
    assert!(files.len() > 4);
    for file in files {
        assert!(!holds(&std::fs::read(&file).unwrap(), "canary"), "{}", file.display());
    }
}

#[tokio::test]
async fn buckets_have_different_identities() {
    let stack = Stack::new().await;
    let view = stack.keyed().await;
    let elsewhere = Source::Bucket { id: BucketId::new("local", "elsewhere").unwrap(), prefix: String::new() };
    let other = open(stack.endpoint.clone(), &elsewhere, stack.options(Some(counting_keys()))).await.unwrap().view;
    assert_ne!(view.identity(), other.identity());
    assert_eq!(view.identity(), stack.keyed().await.identity());
    assert_eq!(view.key_id(), Some(counting_keys().id().to_string()));
    let before = view.revision().await.unwrap();
    write(&*view, "f", b"content").await;
    assert_ne!(view.revision().await.unwrap(), before);
}
