//! Runs `operations` of the vectors through the pure planner. The batches and their order must be equal, also
//! if lines fail.

use super::super::plan::{Action, Change, Held, Plan, Run, Slot, Spot};
use crate::crypto::Format;
use crate::store::names::Names;
use crate::store::testing::{counting_keys, hash_of, held_of, long_name, vectors};
use crate::store::{Error, PlainPath};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use time::OffsetDateTime;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

/// Bucket of `merged`. The content of each object is its key.
struct Bucket {
    names: Names,
    objects: BTreeMap<String, Held>,
}

impl Bucket {
    fn new(all: &Value) -> Self {
        let merged = &all["merged"];
        let keys = merged["stored"].as_array().unwrap().iter().map(|key| key.as_str().unwrap());
        let sidecars = merged["sidecars"].as_array().unwrap().iter().map(|sidecar| sidecar["key"].as_str().unwrap());
        let objects = keys.chain(sidecars).map(|key| (key.to_owned(), held_of(key))).collect();
        Self { names: Names::new(counting_keys(), PlainPath::root()), objects }
    }

    fn spot(&self, path: &PlainPath) -> Spot {
        let place = self.names.place(path).unwrap();
        let there = |key: &String| self.objects.get(key).copied();
        Spot {
            primary: there(&place.primary),
            legacy: place.legacy.as_ref().and_then(there),
            metadata: there(&place.metadata),
            sidecars: place.sidecars.iter().map(|s| s.key.clone()).filter(|key| there(key).is_some()).collect(),
            place,
        }
    }

    /// Returns true if an object is at or below a key.
    fn holds(&self, key: &str) -> bool {
        self.objects.keys().any(|there| there == key || there.starts_with(&format!("{key}/")))
    }

    /// Returns the files below a directory, by the view of the vectors.
    fn files_below(&self, all: &Value, directory: &str) -> Vec<PlainPath> {
        let view = all["merged"]["view"].as_array().unwrap().iter();
        let files = view.filter(|entry| entry["kind"] == "file" && entry["format"] != "plain");
        let paths = files.map(|entry| entry["path"].as_str().unwrap());
        let below = paths.filter(|path| path.starts_with(&format!("{directory}/")));
        below.map(|path| PlainPath::new(path).unwrap()).collect()
    }
}

/// Returns a path written as in the vectors' ids. A name given by its length is the one whose stored form
/// occurs in the case.
fn path(text: &str, bucket: &Bucket, case: &Value) -> PlainPath {
    let Some(rest) = text.strip_prefix('(') else { return PlainPath::new(text).unwrap() };
    let len: usize = rest.split(' ').next().unwrap().parse().unwrap();
    let mentioned = case.to_string();
    let mut names = (0..36).map(|start| long_name(len, start)).collect::<Vec<_>>();
    // A name next to another one of the vectors ends in a letter of its own.
    names.extend((0..36).flat_map(|start| ["d", "r", "x", "n"].map(|last| long_name(len - 1, start) + last)));
    let found = names.into_iter().find(|name| {
        let key = bucket.names.sealed(Format::V2, &PlainPath::new(name).unwrap()).unwrap().key;
        mentioned.contains(key.trim_start_matches(".enc/"))
    });
    PlainPath::new(&found.unwrap_or_else(|| long_name(len, 0))).unwrap()
}

fn changes(bucket: &Bucket, all: &Value, case: &Value) -> Vec<Change> {
    let id = case["id"].as_str().unwrap();
    let id = id.split(", ").next().unwrap();
    let (verb, rest) = id.split_once(' ').unwrap();
    let at = |text: &str| bucket.spot(&path(text, bucket, case));
    match verb {
        "create" | "edit" => {
            let at = at(rest);
            let slot = if case["write_format"] == 1 && at.primary.is_none() { Slot::Legacy } else { Slot::Primary };
            let replaces_legacy = at.primary.is_none();
            vec![Change::Put { at, slot, hash: hash_of("new"), mtime: NOW, replaces_legacy, metadata: None }]
        }
        "unlink" => vec![Change::Delete { at: at(rest) }],
        "rename" => {
            let (from, to) = rest.split_once(" -> ").unwrap();
            let Some(directory) = from.strip_suffix('/') else {
                return vec![Change::Move { from: at(from), to: at(to) }];
            };
            let (from, to) = (path(directory, bucket, case), path(to.trim_end_matches('/'), bucket, case));
            let files = bucket.files_below(all, from.as_str());
            files
                .iter()
                .map(|file| Change::Move {
                    from: bucket.spot(file),
                    to: bucket.spot(&file.rebase(&from, &to).unwrap()),
                })
                .collect()
        }
        other => panic!("unknown operation {other}"),
    }
}

/// Runs a plan as the vectors do: a failed line isn't repeated, except that of a sidecar whose object exists.
fn steps(bucket: &mut Bucket, changes: &[Change], expected: &[Value]) -> Vec<Value> {
    let mut run = Run::new(Plan::new(changes, NOW), 1);
    let mut steps = Vec::new();
    while let Some(step) = run.next(1000) {
        let needed: Vec<usize> = step
            .lines
            .iter()
            .copied()
            .filter(|&line| run.lines()[line].unless_needed.as_ref().is_some_and(|names| bucket.holds(names)))
            .collect();
        if !needed.is_empty() {
            needed.into_iter().for_each(|line| run.done(line));
            continue;
        }
        let failed: BTreeSet<&str> = expected
            .get(steps.len())
            .and_then(|step| step["failed"].as_array())
            .map(|keys| keys.iter().map(|key| key.as_str().unwrap()).collect())
            .unwrap_or_default();
        let mut lines = Vec::new();
        for index in step.lines {
            let line = run.lines()[index].clone();
            lines.push(match line.action {
                Action::Delete => Value::from(line.key.clone()),
                Action::Add { hash, .. } | Action::SetModified { hash, .. } => {
                    let from =
                        bucket.objects.iter().find(|(_, held)| held.hash == Some(hash)).map(|(key, _)| key.clone());
                    match from {
                        _ if line.is_sidecar => serde_json::json!({"key": line.key, "content": "sidecar"}),
                        Some(from) => serde_json::json!({"key": line.key, "content_of": from}),
                        None => serde_json::json!({"key": line.key, "content": "new version, format of the name"}),
                    }
                }
            });
            if failed.contains(line.key.as_str()) {
                run.failed(index);
                continue;
            }
            run.done(index);
            if line.action == Action::Delete {
                bucket.objects.remove(&line.key);
            }
        }
        let kind = if step.deletes { "delete" } else { "add" };
        let mut step = serde_json::json!({ kind: lines });
        if !failed.is_empty() {
            step["failed"] = failed.into_iter().collect::<Vec<_>>().into();
        }
        steps.push(step);
    }
    steps
}

/// Sorts steps for comparison. Deletes of a step may come in any order. So may adds, if a sidecar comes
/// before its object.
fn sorted(steps: &[Value]) -> Vec<Value> {
    let mut steps = steps.to_vec();
    for step in &mut steps {
        if let Some(adds) = step.get("add").and_then(Value::as_array) {
            let position = |key: &str| adds.iter().position(|add| add["key"] == key);
            for add in adds {
                let object = add["key"].as_str().unwrap().replacen("/-N2", "/-L2", 1);
                if add["content"] == "sidecar"
                    && let Some(at) = position(&object)
                {
                    assert!(position(add["key"].as_str().unwrap()) < Some(at), "{object} comes before its sidecar");
                }
            }
        }
        for kind in ["add", "delete", "failed"] {
            if let Some(lines) = step.get_mut(kind).and_then(Value::as_array_mut) {
                lines.sort_by_key(Value::to_string);
            }
        }
    }
    steps
}

#[test]
fn operation_of_vectors_gives_their_batches() {
    let all = vectors("format2_names.json");
    let cases = all["operations"]["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 25);
    for case in cases {
        let mut bucket = Bucket::new(&all);
        let changes = changes(&bucket, &all, case);
        if let Some(error) = case.get("error") {
            assert_eq!(error, "ENAMETOOLONG");
            let refused = changes.iter().map(Change::check).find(Result::is_err).expect("refused").unwrap_err();
            assert!(matches!(super::super::Failure::from(refused), super::super::Failure::Error(Error::NameTooLong)));
            assert_eq!(Plan::new(&changes, NOW).line_count(), 0);
            continue;
        }
        let expected = case["steps"].as_array().unwrap();
        assert_eq!(sorted(&steps(&mut bucket, &changes, expected)), sorted(expected), "{}", case["id"]);
    }
}
