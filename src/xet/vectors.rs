//! The vectors of `tests/vectors/xet`: made by the reference implementation, see their README.

use super::compression::{self, Scheme};
use super::hash::{chunk_hash, keyed_chunk_hash, term_hash};
use super::merkle::{self, file_hash, xorb_hash};
use super::reconstruction::{parse_v1, parse_v2};
use super::shard::{FileInfo, Footer, Segment, Shard, ShardChunk, XorbInfo};
use super::testdata::{self, Input, chunks};
use super::xorb::{self, ChunkEntry, ChunkHeader, XorbIndex};
use super::{Error, Hash, plan};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::ops::Range;

fn file(name: &str) -> Vec<u8> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/vectors/xet").join(name);
    std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

pub(super) fn json<T: DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&file(name)).unwrap()
}

/// Every binary file.
pub(super) fn binaries() -> impl Iterator<Item = Vec<u8>> {
    let xorbs =
        ["none", "lz4", "bg4lz4"].map(|scheme| ["upload", "footer"].map(|part| format!("xorb3_{scheme}.{part}.bin")));
    let shards =
        ["full", "upload", "server_stored", "dedup_unkeyed", "dedup_keyed"].map(|form| format!("shard3.{form}.bin"));
    let pipeline = ["repeat", "two_files"].map(|set| format!("pipeline_{set}.shard.upload.bin"));
    xorbs.into_iter().flatten().chain(shards).chain(pipeline).map(|name| file(&name))
}

fn sha256_hex(data: &[u8]) -> String {
    hex::encode(Sha256::digest(data))
}

pub(super) fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn hash(value: &Value) -> Hash {
    value.as_str().unwrap().parse().unwrap()
}

pub(super) fn list(value: &Value) -> &[Value] {
    let list = value.as_array().unwrap();
    assert!(!list.is_empty());
    list
}

fn number(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.parse().unwrap(),
        other => other.as_u64().unwrap(),
    }
}

#[test]
fn hashes_and_tables_are_the_reference_s() {
    let v: Value = json("basics.json");
    let text = &v["hash_string"];
    assert_eq!(hash(&text["string"]).0.as_slice(), bytes(&text["raw_hex"]));
    assert_eq!(hash(&text["string"]).to_string(), text["string"]);

    for case in list(&v["chunk_hashes"]) {
        let data = match &case["data_hex"] {
            Value::String(digits) => hex::decode(digits).unwrap(),
            _ => testdata::random(1, number(&case["data_len"]) as usize),
        };
        assert_eq!(sha256_hex(&data), case["data_sha256"]);
        assert_eq!(chunk_hash(&data), hash(&case["hash"]));
        assert_eq!(chunk_hash(&data).0.as_slice(), bytes(&case["hash_raw_hex"]));
        assert_eq!(merkle::node_hash(&data), hash(&case["internal_node_hash_of_same_bytes"]));
    }

    let hmac = &v["hmac"];
    let key = bytes(&hmac["key_raw_hex"]).try_into().unwrap();
    assert_eq!(keyed_chunk_hash(&key, &hash(&hmac["message_hash"])), hash(&hmac["hmac"]));

    for case in list(&v["global_dedup_eligibility"]) {
        let chunk = chunk_hash(&bytes(&case["data_hex"]));
        assert_eq!(chunk, hash(&case["hash"]));
        assert_eq!(chunk.modulo(1024) == 0, case["eligible"].as_bool().unwrap());
    }

    let table: Vec<u8> = gearhash::DEFAULT_TABLE.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    assert_eq!(sha256_hex(&table), v["gear_table"]["sha256_of_all_entries_as_le_u64"]);
    let mut gear = gearhash::Hasher::default();
    gear.update(b"hello world");
    assert_eq!(format!("{:016x}", gear.get_hash()), v["gear_hash_of_hello_world"]);
}

#[test]
fn inputs_are_generated_as_described() {
    let v: Value = json("basics.json");
    assert_eq!(testdata::random(1, 24), bytes(&v["splitmix64_check"]["first_24_bytes_hex"]));
    assert_eq!(testdata::text(64), v["text_check"]["first_64_bytes"].as_str().unwrap().as_bytes());
    assert_eq!(testdata::floats(1, 4), bytes(&v["floats_check"]["first_4_values_hex"]));
}

#[test]
fn trees_have_the_reference_s_roots() {
    let v: Value = json("merkle.json");
    let leaf = |i: u64| chunk_hash(&i.to_le_bytes());
    let mut special = 0;
    for tree in list(&v["trees"]) {
        let n = number(&tree["num_leaves"]);
        let leaves: Vec<(Hash, u64)> = match tree["name"].as_str() {
            None => (0..n).map(|i| (leaf(i), 1000 + i)).collect(),
            Some(name) => {
                special += 1;
                match name.split(' ').next().unwrap() {
                    "empty" => vec![],
                    "30" => vec![(leaf(5), 1005); 30],
                    "four" => vec![(Hash::ZERO, 0); 4],
                    "17" => (0..17).map(|i| (leaf(i), u64::from(u32::MAX) * (i + 1))).collect(),
                    _ => panic!("no rule for {name}"),
                }
            }
        };
        assert_eq!(leaves.len() as u64, n);
        assert_eq!(xorb_hash(&leaves), hash(&tree["xorb_hash"]), "{n} leaves, {}", tree["name"]);
        assert_eq!(file_hash(&leaves), hash(&tree["file_hash"]), "{n} leaves, {}", tree["name"]);
        // Whatever level one starts from, the root is the same.
        for level in tree["levels"].as_array().into_iter().flatten() {
            let level: Vec<_> = list(level).iter().map(|entry| (hash(&entry[0]), number(&entry[1]))).collect();
            assert_eq!(xorb_hash(&level), hash(&tree["xorb_hash"]));
        }
    }
    assert_eq!(special, 4);
}

#[derive(Deserialize)]
struct Chunking {
    cases: Vec<ChunkingCase>,
}

#[derive(Deserialize)]
struct ChunkingCase {
    name: String,
    input: Input,
    input_sha256: String,
    chunk_lengths: Vec<usize>,
    chunk_hashes: Vec<Hash>,
    aggregated_hash_of_all_chunks: Hash,
    file_hash: Hash,
    verification_range_hash_of_all_chunks: Hash,
}

#[test]
fn files_are_cut_and_hashed_as_the_reference_does() {
    let cases = json::<Chunking>("chunking.json").cases;
    assert_eq!(cases.len(), 12);
    for case in cases {
        let data = case.input.bytes();
        assert_eq!(sha256_hex(&data), case.input_sha256, "{}", case.name);
        let chunks = chunks(&data);
        assert_eq!(chunks.iter().map(|c| c.len()).collect::<Vec<_>>(), case.chunk_lengths, "{}", case.name);
        let hashes: Vec<Hash> = chunks.iter().map(|c| chunk_hash(c)).collect();
        assert_eq!(hashes, case.chunk_hashes);
        let leaves: Vec<_> = hashes.iter().zip(&chunks).map(|(hash, chunk)| (*hash, chunk.len() as u64)).collect();
        assert_eq!(xorb_hash(&leaves), case.aggregated_hash_of_all_chunks);
        assert_eq!(file_hash(&leaves), case.file_hash);
        assert_eq!(term_hash(hashes), case.verification_range_hash_of_all_chunks);
    }
}

fn scheme(name: &Value) -> Option<Scheme> {
    match name.as_str().unwrap() {
        "none" => Some(Scheme::None),
        "lz4" => Some(Scheme::Lz4),
        "bg4-lz4" => Some(Scheme::Bg4Lz4),
        "auto" => None,
        other => panic!("no scheme {other}"),
    }
}

#[test]
fn chunks_compressed_by_the_reference_decode() {
    let v: Value = json("compression.json");
    for case in list(&v["bg4"]) {
        let raw = bytes(&case["input_hex"]);
        assert_eq!(compression::split(&raw), bytes(&case["split_hex"]), "{} bytes", raw.len());
    }
    for case in list(&v["serialized_chunks"]) {
        let serialised = bytes(&case["serialized_chunk_hex"]);
        let (header, stored) = serialised.split_first_chunk().unwrap();
        let header = ChunkHeader::parse(header).unwrap();
        assert_eq!(header.scheme as u64, number(&case["stored_scheme"]));
        assert_eq!(u64::from(header.raw_len), number(&case["len"]));
        assert_eq!(header.stored_len as usize, stored.len());
        let mut raw = Vec::new();
        compression::decompress(header.scheme, stored, header.raw_len as usize, &mut raw).unwrap();
        assert_eq!(sha256_hex(&raw), case["data_sha256"]);
        assert_eq!(chunk_hash(&raw), hash(&case["chunk_hash"]));

        // Our encoder decides alike.
        let wanted = scheme(&case["requested"]).unwrap_or_else(|| compression::choose(&raw));
        assert_eq!(compression::compress(wanted, &raw, &mut Vec::new()), header.scheme, "{}", case["data"]);
    }
}

/// The index that a vector's chunk list describes.
fn index_of(xorb: &Value) -> XorbIndex {
    let chunks = list(&xorb["chunks"]).iter().map(|chunk| ChunkEntry {
        hash: hash(&chunk["chunk_hash"]),
        raw_len: number(&chunk["uncompressed_len"]) as u32,
        stored_end: number(&chunk["end"]) as u32,
    });
    XorbIndex { hash: hash(&xorb["xorb_hash"]), chunks: chunks.collect() }
}

#[test]
fn xorbs_of_the_reference_verify_and_their_footers_match() {
    let v: Value = json("xorb3.json");
    let data: Vec<Vec<u8>> = list(&v["chunk_data_hex"]).iter().map(bytes).collect();
    assert_eq!(list(&v["variants"]).len(), 3);
    for variant in list(&v["variants"]) {
        let body = file(variant["files"]["upload_body"].as_str().unwrap());
        let whole = file(variant["files"]["with_footer"].as_str().unwrap());
        let index = index_of(variant);
        assert_eq!(xorb::verify_upload(&body, &index.hash, false).unwrap(), (index.clone(), body.len()));
        assert_eq!(xorb::verify_upload(&whole, &index.hash, true).unwrap(), (index.clone(), body.len()));
        assert!(xorb::verify_upload(&whole, &index.hash, false).is_err());

        let footer = xorb::write_footer(&index);
        assert_eq!([body.as_slice(), &footer].concat(), whole);
        assert_eq!(footer.len() as u64 - 4, number(&variant["footer_info_length"]));
        assert_eq!(xorb::parse_footer(&whole).unwrap(), index);

        let mut decoded = Vec::new();
        xorb::decode_chunks(&body, |raw| {
            decoded.push(raw.to_vec());
            Ok(())
        })
        .unwrap();
        assert_eq!(decoded, data);

        // Our builder makes a xorb of the same hash and schemes.
        let mut builder = xorb::Builder::default();
        for (raw, chunk) in data.iter().zip(list(&variant["chunks"])) {
            let scheme = [Scheme::None, Scheme::Lz4, Scheme::Bg4Lz4][number(&chunk["scheme"]) as usize];
            builder.push(chunk_hash(raw), raw, scheme);
        }
        let (ours, built) = builder.finish();
        assert_eq!(xorb::verify_upload(&ours, &index.hash, false).unwrap(), (built, ours.len()));
        for (chunk, end) in list(&variant["chunks"]).iter().zip(&index.chunks) {
            let start = number(&chunk["start"]) as usize;
            assert_eq!(body[start..start + 8], bytes(&chunk["header_hex"]));
            assert_eq!(u64::from(end.stored_end), number(&chunk["end"]));
        }
    }
}

/// The file and the xorb that `shard3.json` describes.
fn shard3(v: &Value) -> Shard {
    Shard { files: vec![file_info(&v["file"])], xorbs: vec![xorb_info(&v["xorb"])], footer: None }
}

fn file_info(v: &Value) -> FileInfo {
    let segments = list(&v["segments"]).iter().map(|s| Segment {
        xorb: hash(&s["xorb_hash"]),
        raw_len: number(&s["unpacked_segment_bytes"]) as u32,
        start: number(&s["chunk_index_start"]) as u32,
        end: number(&s["chunk_index_end"]) as u32,
    });
    let sha256 = v["sha256_hex"].as_str().map(|digits| hex::decode(digits).unwrap().try_into().unwrap());
    FileInfo {
        hash: hash(&v["file_hash"]),
        segments: segments.collect(),
        verification: list(&v["verification"]).iter().map(hash).collect(),
        sha256,
    }
}

fn xorb_info(v: &Value) -> XorbInfo {
    let chunks = list(&v["chunks"]).iter().map(|c| ShardChunk {
        hash: hash(&c["chunk_hash"]),
        raw_start: number(&c["chunk_byte_range_start"]) as u32,
        raw_len: number(&c["unpacked_segment_bytes"]) as u32,
        flags: number(&c["flags"]) as u32,
    });
    XorbInfo {
        hash: hash(&v["xorb_hash"]),
        raw_len: number(&v["num_bytes_in_xorb"]) as u32,
        stored_len: number(&v["num_bytes_on_disk_in_shard"]) as u32,
        chunks: chunks.collect(),
    }
}

fn footer(v: &Value) -> Footer {
    Footer {
        hmac_key: bytes(&v["chunk_hash_hmac_key_raw"]).try_into().unwrap(),
        created: number(&v["shard_creation_timestamp"]),
        expires: number(&v["shard_key_expiry"]),
    }
}

#[test]
fn shards_of_the_reference_parse_and_are_written_alike() {
    let v: Value = json("shard3.json");
    let plain = shard3(&v);

    let upload = file("shard3.upload.bin");
    assert_eq!(Shard::parse(&upload).unwrap(), plain);
    assert_eq!(plain.to_upload(), upload);
    assert_eq!(plain.upload_len(), upload.len());

    for (form, lookups) in [("full", true), ("server_stored", false), ("dedup_unkeyed", false), ("dedup_keyed", true)] {
        let whole = file(v[form]["file"].as_str().unwrap());
        let footer = footer(&v[form]["footer"]);
        let parsed = Shard::parse(&whole).unwrap();
        assert_eq!(parsed.footer, Some(footer.clone()), "{form}");
        assert_eq!(parsed.to_stored(&footer, lookups), whole, "{form}");

        let mut expected = Shard { footer: Some(footer.clone()), ..plain.clone() };
        if form.starts_with("dedup") {
            expected.files.clear();
        }
        if form == "dedup_keyed" {
            for (chunk, keyed) in expected.xorbs[0].chunks.iter_mut().zip(list(&v[form]["keyed_chunk_hashes"])) {
                chunk.hash = keyed_chunk_hash(&footer.hmac_key, &chunk.hash);
                assert_eq!(chunk.hash, hash(keyed));
            }
        }
        // The server flags chunks for dedup; that is the only other difference.
        for (chunk, found) in expected.xorbs[0].chunks.iter_mut().zip(&parsed.xorbs[0].chunks) {
            assert_eq!(found.flags & 0x7fff_ffff, 0);
            chunk.flags = found.flags;
        }
        assert_eq!(parsed, expected, "{form}");
    }
}

fn without_urls(plan: &plan::Plan) -> [Value; 2] {
    let opaque = |_: &Hash, _: &[Range<u64>]| "<opaque>".to_owned();
    [plan.to_v1(opaque), plan.to_v2(opaque)].map(|json| serde_json::from_slice(&json).unwrap())
}

#[test]
fn uploads_and_reads_are_planned_as_the_reference_does() {
    let v: Value = json("pipeline.json");
    assert_eq!(list(&v["sets"]).len(), 2);
    for set in list(&v["sets"]) {
        let inputs: Vec<Input> = serde_json::from_value(set["inputs"].clone()).unwrap();
        let [xorb] = list(&set["xorbs_auto_compression"]) else { panic!("one xorb is expected") };
        let index = index_of(xorb);

        // Chunks in order of first appearance make the xorb, and with it all hashes of the shard.
        let mut built = xorb::Builder::default();
        let mut seen = Vec::new();
        let mut file_hashes = Vec::new();
        for input in &inputs {
            let data = input.bytes();
            let mut leaves = Vec::new();
            for raw in chunks(&data) {
                let hash = chunk_hash(raw);
                leaves.push((hash, raw.len() as u64));
                if !seen.contains(&hash) {
                    seen.push(hash);
                    built.push(hash, raw, Scheme::None);
                }
            }
            file_hashes.push(file_hash(&leaves));
        }
        assert_eq!(built.finish().1.hash, index.hash);

        let files: Vec<FileInfo> = list(&set["files"]).iter().map(file_info).collect();
        for file in &files {
            assert!(file_hashes.contains(&file.hash));
            for (segment, verification) in file.segments.iter().zip(&file.verification) {
                let chunks = &index.chunks[segment.start as usize..segment.end as usize];
                assert_eq!(term_hash(chunks.iter().map(|chunk| chunk.hash)), *verification);
            }
        }
        let mut raw_start = 0;
        let chunks = index.chunks.iter().map(|chunk| {
            let chunk = ShardChunk { hash: chunk.hash, raw_start, raw_len: chunk.raw_len, flags: 0 };
            raw_start += chunk.raw_len;
            chunk
        });
        let chunks = chunks.collect();
        let xorb = XorbInfo { hash: index.hash, raw_len: raw_start, stored_len: 0, chunks };
        let shard = Shard { files, xorbs: vec![xorb], footer: None };
        let upload = file(set["shard_upload"]["file"].as_str().unwrap());
        assert_eq!(shard.to_upload(), upload);

        let reads = &set["reconstruction"];
        let file = shard.files.iter().find(|file| file.hash == hash(&reads["file_hash"])).unwrap();
        assert_eq!(plan::file_len(&file.segments), number(&reads["file_size"]));
        for case in list(&reads["cases"]) {
            let range = case["range_half_open"].as_array().map(|range| number(&range[0])..number(&range[1]));
            let plan = plan::plan(&file.segments, range, |hash| {
                assert_eq!(*hash, index.hash);
                Ok(&index)
            });
            if number(&case["status"]) == 416 {
                assert!(matches!(plan, Err(Error::RangeNotSatisfiable)));
                continue;
            }
            assert_eq!(without_urls(&plan.unwrap()), [case["v1"].clone(), case["v2"].clone()]);
            let v1 = parse_v1(case["v1"].to_string().as_bytes()).unwrap();
            assert_eq!(v1, parse_v2(case["v2"].to_string().as_bytes()).unwrap());
        }
    }
}
