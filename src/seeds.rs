//! Replays every fuzz seed, and every input that a fuzzer found, through its target's body.

use crate::{crypto, gateway, hub, xet};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

type Body = fn(&[u8]);

/// Every target of `fuzz/`.
const TARGETS: &[(&str, Body)] = &[
    ("base91", crypto::fuzz::base91),
    ("byteranges", xet::fuzz::byteranges),
    ("cache_entry", xet::fuzz::cache_entry),
    ("chunk_header", xet::fuzz::chunk_header),
    ("chunker", xet::fuzz::chunker),
    ("chunk_list", xet::fuzz::chunk_list),
    ("compression", xet::fuzz::compression),
    ("container_header", crypto::fuzz::container_header),
    ("dedup", xet::fuzz::dedup),
    ("gateway_ftp", gateway::fuzz::ftp),
    ("gateway_key", gateway::fuzz::key),
    ("gateway_record", gateway::fuzz::record),
    ("gateway_request", gateway::fuzz::request),
    ("hub_answers", hub::fuzz::answers),
    ("hub_key", hub::fuzz::key),
    ("hub_link", hub::fuzz::link),
    ("hub_words", hub::fuzz::words),
    ("key_file", crypto::fuzz::key_file),
    ("ndjson", xet::fuzz::ndjson),
    ("reconstruction", xet::fuzz::reconstruction),
    ("record", crypto::fuzz::record),
    ("shard", xet::fuzz::shard),
    ("stored_name", crypto::fuzz::stored_name),
    ("stretch", xet::fuzz::stretch),
    ("tree", hub::fuzz::tree),
    ("upload_shards", xet::fuzz::upload_shards),
    ("xorb", xet::fuzz::xorb),
];

fn fuzz_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn names_in(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn every_seed_passes_through_its_body() {
    for (target, body) in TARGETS {
        let seeds: Vec<PathBuf> =
            std::fs::read_dir(fuzz_dir("seeds").join(target)).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(seeds.len() >= 5, "{target} has {} seeds", seeds.len());
        seeds.iter().for_each(|seed| body(&std::fs::read(seed).unwrap()));
    }
}

#[test]
fn every_fuzz_target_is_replayed_here() {
    let here: BTreeSet<String> = TARGETS.iter().map(|(target, _)| (*target).to_owned()).collect();
    assert_eq!(names_in(&fuzz_dir("fuzz_targets")), here);
    assert_eq!(names_in(&fuzz_dir("seeds")), here);
}
