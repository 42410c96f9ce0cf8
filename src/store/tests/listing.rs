//! Listings: the vectors' mixed bucket and wrong keys, and faults that must not remove files from them.

use crate::crypto::Format::{V1, V2};
use crate::store::beside::Beside;
use crate::store::encrypted::KeyVerdict;
use crate::store::merged::Merged;
use crate::store::plain::PlainTree;
use crate::store::testing::{Keyed, hash_of, long_name, path, put, vectors};
use crate::store::{Change, Entry, Error, Expect, Hidden, Kind, Len, Op, Outcome, PlainPath, Side, Version, View};
use bytes::Bytes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Returns the bucket of the vectors' `merged`.
fn mixed_bucket(all: &Value) -> Keyed {
    let view = Keyed::of_format(V2);
    let merged = &all["merged"];
    for key in merged["stored"].as_array().unwrap().iter().chain(merged["plain"].as_array().unwrap()) {
        let key = key.as_str().unwrap();
        view.hub.put(key, hash_of(key), 65_638);
    }
    for sidecar in merged["sidecars"].as_array().unwrap() {
        let bytes = hex::decode(sidecar["hex"].as_str().unwrap()).unwrap();
        view.sidecar(sidecar["key"].as_str().unwrap(), bytes);
    }
    view
}

fn merged(view: &Keyed) -> Arc<Merged> {
    let plain = PlainTree { beside_encrypted: true, ..PlainTree::new(view.remote(), PlainPath::root(), false) };
    Merged::new(view.encrypted(), Beside::new(plain))
}

#[tokio::test]
async fn aliases_of_one_batch_need_one_listing_of_their_directory() {
    let keyed = Keyed::of_format(V2);
    let plain = keyed.plain();
    let encrypted = keyed.encrypted();
    let sides: [&dyn View; 2] = [&*encrypted, &plain];
    for view in sides {
        let mut listings = Vec::new();
        for count in [1, 20] {
            let alias = |number| path(&format!("d/{number} (conflict with folder)"));
            let delete =
                |number| Op { path: alias(number), expect: Expect::Is(hash_of("old").into()), change: Change::Delete };
            let operations: Vec<_> = (0..count).map(delete).collect();
            keyed.hub.take_listings();
            assert_eq!(view.commit(&operations).await.len(), count);
            listings.push(keyed.hub.take_listings());
        }
        assert!(listings[0] > 0);
        assert_eq!(listings[0], listings[1]);
    }
}

/// Returns every entry that a view shows, by path, and the sums of hidden ones.
async fn walk(view: &dyn View) -> (BTreeMap<String, Entry>, Hidden) {
    let (mut all, mut hidden) = (BTreeMap::new(), Hidden::default());
    let mut directories = vec![PlainPath::root()];
    while let Some(directory) = directories.pop() {
        let listing = view.list(&directory).await.unwrap();
        hidden += listing.hidden;
        assert!(listing.entries.is_sorted_by(|a, b| a.name < b.name));
        for entry in listing.entries {
            let child = directory.join(&entry.name).unwrap();
            if matches!(entry.kind, Kind::Directory { .. }) {
                directories.push(child.clone());
            }
            all.insert(child.as_str().to_owned(), entry);
        }
    }
    assert_eq!(view.hidden(), hidden);
    (all, hidden)
}

#[tokio::test]
async fn merged_view_shows_and_hides_entries_of_vectors() {
    let all = vectors("format2_names.json");
    let keyed = mixed_bucket(&all);
    let (mut shown, hidden) = walk(&*merged(&keyed)).await;
    let all_shown = shown.len();
    shown.retain(|path, _| !path.contains(" (conflict with folder)"));
    let aliases = (all_shown - shown.len()) as u64;
    let expected = all["merged"]["view"].as_array().unwrap();
    let paths: BTreeSet<&str> = expected.iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(shown.keys().map(String::as_str).collect::<BTreeSet<_>>(), paths);
    for entry in expected {
        let kind = &shown[entry["path"].as_str().unwrap()].kind;
        match kind {
            Kind::Directory { read_only } => {
                assert_eq!(entry["kind"], "dir");
                assert_eq!(entry["plain"], *read_only, "{}", entry["path"]);
            }
            Kind::File { version: Some(version), read_only, .. } => {
                assert_eq!(version.id.xet().unwrap(), hash_of(entry["object_key"].as_str().unwrap()));
                let side = match &entry["format"] {
                    format if format == 1 => Side::Encrypted(V1),
                    format if format == 2 => Side::Encrypted(V2),
                    _ => Side::Plain,
                };
                assert_eq!((version.side, *read_only), (side, side == Side::Plain));
            }
            Kind::File { version: None, .. } => panic!("every object has a hash"),
        }
    }
    let count = |reasons: &[&str]| {
        let hidden = all["merged"]["hidden"].as_array().unwrap().iter();
        hidden.filter(|entry| reasons.contains(&entry["reason"].as_str().unwrap())).count() as u64
    };
    let counted = Hidden {
        foreign: count(&["foreign"]),
        suspicious: count(&["suspicious"]),
        shadowed: count(&["format-1-hidden", "plain-hidden"]),
        unreachable: 0,
    };
    assert_eq!(hidden, counted);
    // The file next to a directory of its name, which the vectors hide, has a name of its own.
    assert_eq!(aliases, count(&["directory-wins"]));
    assert_eq!(counted.foreign + counted.suspicious + counted.shadowed + aliases + count(&["extension"]), 17);
}

#[tokio::test]
async fn stat_agrees_with_listing() {
    let all = vectors("format2_names.json");
    let keyed = mixed_bucket(&all);
    keyed.learn_all_headers();
    let view = merged(&keyed);
    for (at, entry) in walk(&*view).await.0 {
        if let Kind::File { version: Some(Version { id, side: Side::Encrypted(format), .. }), .. } = entry.kind
            && at.contains("(conflict with folder)")
        {
            keyed.remember(id.xet().unwrap(), keyed.head(format).into());
        }
        let found = view.stat(&path(&at)).await.unwrap().unwrap_or_else(|| panic!("{at} is not found"));
        match (&entry.kind, &found.kind) {
            (Kind::File { version, .. }, Kind::File { version: found, len, .. }) => {
                assert_eq!(version, found, "{at}");
                assert!(matches!(len, Len::Known(_)), "{at}");
            }
            (listed, found) => assert_eq!(listed, found, "{at}"),
        }
        assert_eq!(entry.name, found.name);
    }
    for absent in ["nothing", "data/nothing", "README.md/below", "both.txt/below", "old/q"] {
        assert_eq!(view.stat(&path(absent)).await.unwrap(), None, "{absent}");
    }
}

#[tokio::test]
async fn key_check_agrees_with_vectors() {
    let all = vectors("format2_names.json");
    for case in all["wrong_key"]["cases"].as_array().unwrap() {
        let view = Keyed::of_format(V2);
        for key in case["stored"].as_array().unwrap() {
            let key = key.as_str().unwrap();
            match case["sidecar_hex"].as_str().filter(|_| key.contains("/-N2")) {
                Some(hex) => view.sidecar(key, hex::decode(hex).unwrap()),
                None => view.hub.put(key, hash_of(key), 65_638),
            }
        }
        let verdict = view.view.check_key().await.unwrap();
        let expected = match case["verdict"].as_str().unwrap() {
            "new-tree" => KeyVerdict::NewTree,
            "right-key" => KeyVerdict::RightKey,
            "wrong-key" => KeyVerdict::WrongKey { entries: distinct_entries(&case["stored"]) },
            other => panic!("{other}"),
        };
        assert_eq!(verdict, expected, "{}", case["id"]);
    }
}

fn distinct_entries(stored: &Value) -> u64 {
    let names = stored.as_array().unwrap().iter().map(|key| key.as_str().unwrap().split('/').nth(1).unwrap());
    names.collect::<BTreeSet<_>>().len() as u64
}

#[tokio::test]
async fn unfetchable_header_is_error_and_not_missing_file() {
    let view = Keyed::new().await;
    view.hub.put(&view.key("f", V2), hash_of("unread"), 65_638);
    assert!(matches!(view.view.stat(&path("f")).await, Err(Error::Cas(_))));
    let listing = view.view.list(&PlainPath::root()).await.unwrap();
    let [Entry { kind: Kind::File { version: Some(version), len, .. }, .. }] = &listing.entries[..] else { panic!() };
    assert_eq!(*len, Len::Unread);
    assert!(matches!(view.view.lens(&[*version]).await[..], [Err(Error::Cas(_))]));
    assert!(matches!(view.view.open(version).await, Err(Error::Cas(_))));
}

#[tokio::test]
async fn unfetchable_sidecar_fails_listing() {
    let view = Keyed::new().await;
    let place = view.place(&long_name(200, 0));
    view.hub.put(&place.primary, hash_of("x"), 65_638);
    view.hub.put(&place.sidecars[0].key, hash_of("unread"), 293);
    assert!(matches!(view.view.list(&PlainPath::root()).await, Err(Error::Cas(_))));
    // An object of another length is not a sidecar. That is known without fetching it.
    view.hub.put(&place.sidecars[0].key, hash_of("unread"), 292);
    let listing = view.view.list(&PlainPath::root()).await.unwrap();
    assert_eq!((listing.entries.len(), listing.hidden.foreign), (0, 1));
}

#[tokio::test]
async fn merged_listing_needs_both_sides() {
    let keyed = Keyed::new().await;
    keyed.hub.put("plain.txt", hash_of("plain"), 5);
    let view = merged(&keyed);
    assert_eq!(view.list(&PlainPath::root()).await.unwrap().entries.len(), 1);
    for reads in [0, 1] {
        keyed.hub.reads_fail_after(reads);
        assert!(matches!(view.list(&PlainPath::root()).await, Err(Error::Hub(_))));
    }
}

#[tokio::test]
async fn damaged_own_file_is_shown_and_does_not_open() {
    let view = Keyed::new().await;
    view.hub.put(&view.key("short", V2), hash_of("a"), 69);
    view.hub.put(&view.key("odd", V2), hash_of("b"), 71);
    view.hub.put(&view.key("empty", V1), crate::xet::Hash::ZERO, 0);
    for name in ["short", "odd", "empty"] {
        let entry = view.view.stat(&path(name)).await.unwrap().unwrap();
        let Kind::File { version: Some(version), len, .. } = entry.kind else { panic!("{name}") };
        assert_eq!(len, Len::Damaged, "{name}");
        let error = view.view.open(&version).await.err().unwrap();
        assert!(error.is_integrity() && !error.is_transient(), "{name}: {error}");
    }
}

#[tokio::test]
async fn plaintext_side_is_read_only() {
    let keyed = Keyed::new().await;
    keyed.hub.put("p.txt", hash_of("p"), 5);
    keyed.hub.put("dir/q.txt", hash_of("q"), 5);
    keyed.object("own", V2, "own");
    keyed.object("mixed/own", V2, "own2");
    keyed.hub.put("mixed/plain", hash_of("r"), 5);
    let view = merged(&keyed);
    let refused = [
        put("p.txt", "new", Expect::Any),
        put("p.txt", "new", Expect::Is(hash_of("p").into())),
        put("dir/q.txt", "new", Expect::Absent),
        crate::store::testing::rename("p.txt", "elsewhere", Expect::Any, Expect::Any),
        crate::store::testing::rename("own", "p.txt", Expect::Any, Expect::Any),
        keyed.move_directory("dir", "dir2"),
        keyed.move_directory("mixed", "mixed2"),
        keyed.move_directory("own-directory", "dir"),
    ];
    for operation in refused {
        let outcome = view.commit(std::slice::from_ref(&operation)).await.pop().unwrap();
        assert!(matches!(outcome, Outcome::Failed(Error::ReadOnly)), "{outcome:?}");
    }
    assert_eq!(keyed.hub.take_batches().len(), 0);
    // New names inside a plaintext directory are encrypted.
    let outcome = view.commit(&[put("dir/new", "new", Expect::Absent)]).await.pop().unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    assert!(keyed.hub.contents().contains_key(&keyed.key("dir/new", V2)));
}

#[tokio::test]
async fn own_path_never_shows_plaintext_object() {
    let keyed = Keyed::new().await;
    keyed.object("mine", V2, "mine");
    keyed.object("given-up", V2, "given-up");
    let view = merged(&keyed);
    assert_eq!(view.list(&PlainPath::root()).await.unwrap().entries.len(), 2);
    let delete =
        |at: &str| crate::store::Op { path: path(at), expect: Expect::Any, change: crate::store::Change::Delete };
    view.commit(&[delete("given-up")]).await;
    keyed.hub.remove(&keyed.key("mine", V2));
    for invented in ["mine", "given-up", "other"] {
        keyed.hub.put(invented, hash_of("invented"), 5);
    }
    let listing = view.list(&PlainPath::root()).await.unwrap();
    let names: Vec<&str> = listing.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["given-up", "other"]);
    assert_eq!(listing.hidden.shadowed, 1);
    assert_eq!(view.stat(&path("mine")).await.unwrap(), None);
    keyed.hub.put("mine/below", hash_of("invented"), 5);
    assert_eq!(view.stat(&path("mine/below")).await.unwrap(), None);
    assert_eq!(view.list(&path("mine")).await.unwrap().entries, []);
    // A file may be created at its path again.
    let outcome = view.commit(&[put("mine", "again", Expect::Absent)]).await.pop().unwrap();
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

#[tokio::test]
async fn encrypted_tree_is_not_shown_from_plaintext_side() {
    let keyed = Keyed::new().await;
    keyed.object("own", V2, "own");
    let view = merged(&keyed);
    assert_eq!(view.stat(&path(".enc")).await.unwrap(), None);
    assert_eq!(view.list(&path(".enc")).await.unwrap().entries, []);
    let names: Vec<String> = view.list(&PlainPath::root()).await.unwrap().entries.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["own"]);
    // An encrypted entry may have that name.
    keyed.object(".enc", V2, "odd");
    assert!(view.stat(&path(".enc")).await.unwrap().is_some());
}

#[tokio::test]
async fn first_entry_of_format_1_is_remembered() {
    use crate::store::memory::Seen;
    let keyed = Keyed::new().await;
    keyed.memory.note_seen(Seen { legacy: false }).await.unwrap();
    let view = keyed.encrypted_with(false);
    view.list(&PlainPath::root()).await.unwrap();
    assert_eq!(keyed.memory.seen().await.unwrap(), Some(Seen { legacy: false }));
    keyed.object("old/f", V1, "old");
    view.list(&PlainPath::root()).await.unwrap();
    assert_eq!(keyed.memory.seen().await.unwrap(), Some(Seen { legacy: true }));
}

#[tokio::test]
async fn cached_header_is_verified_at_every_use() {
    let view = Keyed::new().await;
    view.object("f", V2, "f");
    let mut head = view.head(V2);
    head[40] ^= 1;
    view.remember(hash_of("f"), Bytes::from(head));
    // The cached header doesn't open, so it is fetched. Here this fails.
    assert!(matches!(view.view.stat(&path("f")).await, Err(Error::Cas(_))));
}

#[test]
fn format_1_refuses_names_stored_with_trailing_dots() {
    let (old, new) = (Keyed::of_format(V1), Keyed::of_format(V2));
    // The possible lengths depend on the bits that are left for the last two symbols.
    let lengths = [20, 50, 80, 110, 140, 170, 182, 186, 190, 194];
    let mut names = (0..50_000).flat_map(|number| lengths.map(|length| format!("{number:0length$}")));
    let name = names.find(|name| old.key(name, V1).ends_with("..")).expect("one in about 8,000");
    for (at, last) in [("", name.as_str()), (name.as_str(), "below")] {
        assert!(matches!(old.view.check_name(&path(at), last), Err(Error::InvalidName)));
        assert!(new.view.check_name(&path(at), last).is_ok());
    }
    assert!(matches!(new.view.check_format_1(&path(&name)), Err(Error::InvalidName)));
    assert!(new.view.check_format_1(&path("file")).is_ok());
}
