//! Batches and listings against an obvious model.

use super::access::Caller;
use super::batch::{self, Batch};
use super::folders;
use super::tree::{Entry, Listing};
use crate::hub::local::db;
use proptest::prelude::*;
use rusqlite::Connection;
use std::collections::BTreeMap;

const EMPTY: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Keys with the time of their upload.
type Model = BTreeMap<String, i64>;

#[derive(Clone, Debug)]
enum Step {
    Put(String),
    Delete(String),
}

fn key() -> impl Strategy<Value = String> {
    // Bytes before and behind the slash, so that siblings sort into and around a directory's range.
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a.", "a0", "a!", "ü"]), 1..4)
        .prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![3 => key().prop_map(Step::Put), 2 => key().prop_map(Step::Delete)]
}

fn apply(connection: &mut Connection, model: &mut Model, steps: &[Step]) {
    let lines: Vec<String> = steps
        .iter()
        .map(|step| match step {
            Step::Put(key) => serde_json::json!({"type": "addFile", "path": key, "xetHash": EMPTY, "mtime": 0}),
            Step::Delete(key) => serde_json::json!({"type": "deleteFile", "path": key}),
        })
        .map(|line| line.to_string())
        .collect();
    let operations = batch::parse(lines.join("\n").as_bytes()).unwrap();
    let transaction = connection.transaction().unwrap();
    let failed = Batch::new(&transaction, 1, &Caller::Process).unwrap().run(&operations).unwrap();
    assert_eq!(failed, []);
    transaction.commit().unwrap();
    let stamp = connection.query_row("SELECT updated FROM buckets", [], |row| row.get(0)).unwrap();
    for step in steps {
        match step {
            Step::Put(key) => drop(model.insert(key.clone(), stamp)),
            Step::Delete(key) => drop(model.remove(key)),
        }
    }
}

/// Path, and newest upload for a directory.
type Listed = (String, Option<i64>);

fn expected(model: &Model, prefix: &str, recursive: bool) -> Vec<Listed> {
    let mut listed: Vec<Listed> = Vec::new();
    let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    if model.contains_key(prefix) {
        listed.push((prefix.to_owned(), None));
    }
    for (key, &uploaded) in model.iter().filter(|(key, _)| key.starts_with(&below)) {
        let directory = key[below.len()..].find('/').filter(|_| !recursive).map(|slash| &key[..below.len() + slash]);
        match (directory, listed.last_mut()) {
            (None, _) => listed.push((key.clone(), None)),
            (Some(path), Some((last, Some(newest)))) if last == path => *newest = uploaded.max(*newest),
            (Some(path), _) => listed.push((path.to_owned(), Some(uploaded))),
        }
    }
    listed
}

fn listed(connection: &Connection, prefix: &str, recursive: bool, limit: usize) -> Vec<Listed> {
    let mut all = Vec::new();
    let mut from = None;
    loop {
        let listing = Listing { bucket: 1, prefix: prefix.as_bytes().to_vec(), recursive, raw: false, limit };
        let page = listing.page(connection, from).unwrap();
        assert!(page.entries.len() <= limit);
        all.extend(page.entries.into_iter().map(|entry| match entry {
            Entry::File(object) => (String::from_utf8(object.key).unwrap(), None),
            Entry::Directory(path, newest) => (String::from_utf8(path).unwrap(), Some(newest)),
        }));
        match page.next {
            Some(next) => from = Some(next),
            None => return all,
        }
    }
}

/// Files inside each directory.
fn folders(model: &Model) -> BTreeMap<String, i64> {
    let mut folders = BTreeMap::new();
    for key in model.keys() {
        key.match_indices('/').for_each(|(slash, _)| *folders.entry(key[..slash].to_owned()).or_default() += 1);
    }
    folders
}

fn stored_folders(connection: &Connection) -> BTreeMap<String, i64> {
    let mut statement = connection.prepare("SELECT CAST(path AS TEXT), files FROM folders").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

fn with_bucket() -> Connection {
    let connection = db::in_memory();
    let sql = "INSERT INTO buckets (namespace, name, private, created, updated) VALUES ('local', 'b', 0, 0, 0)";
    connection.execute(sql, []).unwrap();
    connection
}

proptest! {
    #[test]
    fn listings_and_totals_are_those_of_the_model(
        batches in prop::collection::vec(prop::collection::vec(step(), 1..12), 1..8),
        prefix in prop_oneof![Just(String::new()), key()],
        limit in 1usize..6,
    ) {
        let mut connection = with_bucket();
        let mut model = Model::new();
        for steps in &batches {
            apply(&mut connection, &mut model, steps);
            for (prefix, recursive) in [(prefix.as_str(), false), (prefix.as_str(), true), ("", false), ("a", false)] {
                prop_assert_eq!(listed(&connection, prefix, recursive, limit), expected(&model, prefix, recursive));
            }
            let files: i64 = connection.query_row("SELECT files FROM buckets", [], |row| row.get(0)).unwrap();
            prop_assert_eq!(files, i64::try_from(model.len()).unwrap());
            prop_assert_eq!(stored_folders(&connection), folders(&model));
        }
    }
}

#[test]
fn directories_too_deep_to_be_tracked_are_listed_too() {
    let mut connection = with_bucket();
    let mut model = Model::new();
    let deep = vec!["d"; 2000].join("/");
    apply(&mut connection, &mut model, &[Step::Put(deep.clone()), Step::Put(format!("{deep}/x"))]);
    let above = vec!["d"; 1999].join("/");
    assert_eq!(listed(&connection, &above, false, 10), expected(&model, &above, false));
    assert!(stored_folders(&connection).len() < 100);
    let newest = folders::newest(&connection, 1, deep.as_bytes()).unwrap();
    assert_eq!(newest, model[&deep]);
}
