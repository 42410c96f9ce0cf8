//! Containers of both formats.

use std::collections::HashMap;

use super::*;
use crate::geometry::{
    CipherLen, HEADER_LEN, Padding, PlainLen, RECORD_LEN, RecordIndex, object_len, record_offset, records_for,
    records_of, records_of_range,
};
use crate::testing::{Script, open, open_record, read, seeded, verify, write, write_as, write_records};
use crate::wide::WideCipher;
use crate::{Error, FileId, Header, fuzz, probe};

/// File id and nonces in the order in which a writer draws them.
fn script(case: &Value) -> Script {
    let nonces = case["nonces_hex"].as_array().unwrap().iter();
    let nonces = nonces.flat_map(|nonce| hex::decode(nonce.as_str().unwrap()).unwrap());
    Script::new(bytes(case, "file_id_hex").into_iter().chain(nonces).collect())
}

fn plaintext(case: &Value) -> Vec<u8> {
    seeded(number(case, "seed"), number(case, "len") as usize)
}

/// Ranges of seeded streams, or zeros, one behind the other.
fn parts(list: &Value) -> Vec<u8> {
    let part = |part: &Value| match part["zeros"].as_u64() {
        Some(len) => vec![0; len as usize],
        None => seeded(number(part, "seed"), number(part, "to") as usize).split_off(number(part, "from") as usize),
    };
    list.as_array().unwrap().iter().flat_map(part).collect()
}

fn fuzz_container(object: &[u8]) {
    let head = &object[..object.len().min(HEADER_LEN)];
    fuzz::container_header(&[&(object.len() as u64).to_le_bytes(), head].concat());
}

#[test]
fn sizes_of_format_1_containers() {
    let file = load("content.json");
    for case in list(&file, "size_map") {
        let records = records_for(Format::V1, PlainLen(number(case, "plaintext")), Padding::None).unwrap();
        let len = object_len(records).unwrap();
        assert_eq!(len.0, number(case, "container"));
        assert_eq!(records_of(len), Ok(records));
    }
    for len in list(&file, "invalid_container_lengths") {
        let len = len.as_u64().unwrap();
        assert!(records_of(CipherLen(len)).is_err());
        assert!(matches!(probe(&bytes(&list(&file, "cases")[0], "header_hex"), len), Err(Error::Malformed(_))));
    }
}

#[test]
fn sizes_and_padding_of_format_2_containers() {
    let file = load("format2_content.json");
    for case in list(&file, "size_map") {
        for (padding, records, len) in
            [(Padding::None, "records_none", "container_none"), (Padding::Padme, "records_padme", "container_padme")]
        {
            let count = records_for(Format::V2, PlainLen(number(case, "plaintext")), padding).unwrap();
            assert_eq!(count, number(case, records));
            assert_eq!(object_len(count), Ok(CipherLen(number(case, len))));
        }
    }
    for case in list(&file, "padme") {
        let plain = PlainLen(number(case, "records") * 65536);
        assert_eq!(records_for(Format::V2, plain, Padding::Padme), Ok(number(case, "padded")));
    }
    let head = bytes(&list(&file, "cases")[0], "header_hex");
    for len in list(&file, "invalid_container_lengths") {
        assert!(matches!(probe(&head, len.as_u64().unwrap()), Err(Error::Malformed(_))), "{len}");
    }
}

#[test]
fn containers_of_format_1_are_made_and_read() {
    let file = load("content.json");
    let keys = keys(&file, "master_hex");
    assert_eq!(keys.content(Format::V1).expose()[..], bytes(&file, "content_key_hex"));
    for case in list(&file, "cases") {
        let id = text(case, "id");
        let plain = plaintext(&case["plaintext"]);
        let mut random = script(case);
        let object = write(&keys, Format::V1, &plain, &mut random);
        assert_eq!(random.rest(), 0);
        assert_eq!(object[..HEADER_LEN], bytes(case, "header_hex"), "{id}");
        assert_eq!(object.len() as u64, number(case, "container_len"));
        assert_eq!(sha256(&object), text(case, "container_sha256"), "{id}");
        if let Some(name) = case["file"].as_str() {
            assert!(object == load_bytes(name), "{id}");
        }
        let file_keys = keys.content(Format::V1).file_keys(&FileId(array(case, "file_id_hex")));
        assert_eq!(file_keys.record()[..], bytes(case, "enc_key_hex"));
        assert_eq!(file_keys.header()[..], bytes(case, "hdr_key_hex"));
        for record in case["records"].as_array().unwrap() {
            assert_record(record, &object);
        }
        assert_eq!(sha256(&read(&keys, Format::V1, &object).unwrap()), text(&case["plaintext"], "sha256"));
        assert_eq!(verify(&keys, Format::V1, &object), Ok(()));
        assert_eq!(open(&keys, Format::V2, &object), Err(Error::FormatMismatch));
        fuzz_container(&object);
    }
}

fn assert_record(record: &Value, object: &[u8]) {
    let at = record_offset(RecordIndex(number(record, "index"))).unwrap().0 as usize;
    assert_eq!(at as u64, number(record, "object_offset"));
    let slot = &object[at..at + RECORD_LEN];
    assert_eq!(slot[16..48], bytes(record, "ciphertext_first_32_hex"));
    assert_eq!(slot[RECORD_LEN - 48..RECORD_LEN - 16], bytes(record, "ciphertext_last_32_hex"));
    assert_eq!(slot[RECORD_LEN - 16..], bytes(record, "tag_hex"));
    assert_eq!(sha256(slot), text(record, "record_sha256"));
    fuzz::record(&[&number(record, "index").to_le_bytes(), slot].concat());
}

#[test]
fn containers_of_format_2_are_made_and_read() {
    let file = load("format2_content.json");
    let keys = keys(&file, "master_hex");
    let unseal = WideCipher::new(&secret(&file, "header_key_hex"));
    assert_eq!(keys.content(Format::V2).expose()[..], bytes(&file, "content_key_hex"));
    for case in list(&file, "cases") {
        let id = text(case, "id");
        let plain = plaintext(&case["plaintext"]);
        let (plain_len, records) = (PlainLen(plain.len() as u64), number(case, "records"));
        let object = write_as(&keys, Format::V2, plain_len, records, &plain, &mut script(case));
        assert_eq!(object[..HEADER_LEN], bytes(case, "header_hex"), "{id}");
        assert_eq!(object.len() as u64, number(case, "container_len"));
        assert_eq!(sha256(&object), text(case, "container_sha256"), "{id}");
        if let Some(name) = case["file"].as_str() {
            assert!(object == load_bytes(name), "{id}");
        }
        let mut inner = [0; 64];
        unseal.decrypt(&object[6..HEADER_LEN], &bytes(case, "tweak_hex"), &mut inner);
        assert_eq!(inner[..], bytes(case, "inner_header_hex"));
        for (record, sum) in object[HEADER_LEN..].chunks(RECORD_LEN).zip(list(case, "record_sha256")) {
            assert_eq!(sha256(record), sum.as_str().unwrap());
        }
        let header = open(&keys, Format::V2, &object).unwrap();
        assert_eq!(header.data_records(), number(case, "data_records"));
        assert_eq!((header.plain_len, header.records), (plain_len, records));
        assert_eq!(sha256(&read(&keys, Format::V2, &object).unwrap()), text(&case["plaintext"], "sha256"));
        assert_eq!(verify(&keys, Format::V2, &object), Ok(()));
        assert_eq!(open(&keys, Format::V1, &object), Err(Error::FormatMismatch));
        fuzz_container(&object);
    }
}

#[test]
fn policies_give_the_record_counts_of_the_containers() {
    for case in list(&load("format2_content.json"), "cases") {
        let padding = match text(case, "policy") {
            "none" => Padding::None,
            "padme" => Padding::Padme,
            _ => continue,
        };
        let plain_len = PlainLen(number(&case["plaintext"], "len"));
        assert_eq!(records_for(Format::V2, plain_len, padding), Ok(number(case, "records")));
    }
}

#[test]
fn old_bytes_behind_the_end_are_read_over_in_format_1() {
    let file = load("content.json");
    let keys = keys(&file, "master_hex");
    for case in list(&file, "accept_stale_tail") {
        let expect = &case["expect"];
        let old = seeded(number(case, "seed"), 50_000);
        let len = PlainLen(number(expect, "len"));
        let object = write_as(&keys, Format::V1, len, 1, &old, &mut script(case));
        assert_eq!(object[..HEADER_LEN], bytes(case, "header_hex"));
        assert_eq!(sha256(&object), text(case, "container_sha256"));
        assert_eq!(sha256(&read(&keys, Format::V1, &object).unwrap()), text(expect, "sha256"));
        let header = open(&keys, Format::V1, &object).unwrap();
        let plain = open_record(&keys, &header, &object, 0).unwrap();
        assert_eq!(!header.tail_is_zero(0, &plain), expect["tail_nonzero"] == true);
    }
}

#[test]
fn ranged_reads_fetch_whole_records() {
    let file = load("content.json");
    let keys = keys(&file, "master_hex");
    let reads = &file["ranged_reads"];
    let case = list(&file, "cases").iter().find(|case| case["id"] == reads["case"]).unwrap();
    let object = write(&keys, Format::V1, &plaintext(&case["plaintext"]), &mut script(case));
    let header = open(&keys, Format::V1, &object).unwrap();
    for read in list(reads, "reads") {
        let start = number(read, "offset").min(header.plain_len.0);
        let end = start.saturating_add(number(read, "len")).min(header.plain_len.0);
        let records = records_of_range(PlainLen(start), PlainLen(end));
        let mut plain = Vec::new();
        for index in records.clone() {
            plain.extend(open_record(&keys, &header, &object, index).unwrap());
        }
        let skip = (start - records.start * 65536) as usize;
        let wanted = plain.get(skip..skip + (end - start) as usize).unwrap_or_default();
        assert_eq!(wanted.len() as u64, number(read, "returns"), "{read}");
        assert_eq!(sha256(wanted), text(read, "sha256"), "{read}");
        match read["object_range"].as_array().map(Vec::as_slice) {
            Some([first, end]) => {
                let bounds = [records.start, records.end].map(|index| object_len(index).unwrap().0);
                assert_eq!([first.as_u64().unwrap(), end.as_u64().unwrap()], bounds, "{read}");
            }
            _ => assert!(records.is_empty(), "{read}"),
        }
    }
}

/// The error that a label of the vectors stands for.
fn expected_error(label: &str) -> Error {
    let index = |number: &str| number.parse().unwrap();
    match label.split_once(':').unwrap_or((label, "")) {
        ("header-not-authentic", _) => Error::Unauthentic,
        ("chunk-not-authentic" | "record-not-authentic", at) => Error::UnauthenticRecord(index(at)),
        ("nonzero-padding", at) => Error::BytesBehindEnd(index(at)),
        ("format-mismatch", _) => Error::FormatMismatch,
        ("truncated-header", _) => Error::Malformed("shorter than a header"),
        ("bad-magic", _) => Error::Malformed("no HFEB magic"),
        ("unknown-algorithm", _) => Error::Malformed("unknown algorithm"),
        ("bad-raf-magic", _) => Error::Malformed("no AEGISRAF magic"),
        ("bad-raf-header-size", _) => Error::Malformed("inner header size is not 64"),
        ("unsupported-raf-version", _) => Error::Malformed("inner version is not 1"),
        ("algorithm-mismatch", _) => Error::Malformed("inner algorithm differs"),
        ("bad-chunk-size", _) => Error::Malformed("record size is not 65536"),
        ("size-mismatch", _) => Error::Malformed("size does not fit the number of records"),
        ("bad-length", _) => Error::Malformed("length is not that of whole records"),
        ("unsupported-version", _) => Error::NewerVersion(3),
        other => panic!("unknown label {other:?}"),
    }
}

/// Equal errors, except where the vectors know fewer kinds than we do.
fn assert_error(found: Error, label: &str, id: &str) {
    match (label, &found) {
        // Version 0 is no newer version, and 2 under a format-1 name is the other format.
        ("unsupported-version", Error::Malformed("version 0") | Error::FormatMismatch) => {}
        ("bad-length", Error::Malformed("no record")) => {}
        // Of a format-1 object with an impossible length and size, the vectors name the size.
        ("size-mismatch", Error::Malformed("length is not that of whole records")) => {}
        _ => assert_eq!(found, expected_error(label), "{id}"),
    }
}

/// Compares an outcome with a `{"error": …}` or what `right` says of the good one.
fn assert_outcome<T>(found: Result<T, Error>, expected: &Value, id: &str, right: impl FnOnce(T)) {
    let label = expected["error"].as_str().or(expected.as_str().filter(|&label| label != "ok"));
    match (found, label) {
        (Ok(value), None) => right(value),
        (Err(error), Some(label)) => assert_error(error, label, id),
        (Ok(_), Some(label)) => panic!("{id}: accepted where {label} is expected"),
        (Err(error), None) => panic!("{id}: {error}"),
    }
}

fn assert_read(found: Result<Vec<u8>, Error>, expected: &Value, id: &str) {
    assert_outcome(found, expected, id, |plain| {
        assert_eq!(plain.len() as u64, number(expected, "len"), "{id}");
        assert_eq!(sha256(&plain), text(expected, "sha256"), "{id}");
    });
}

/// Runs the edits of a case on the base containers.
fn edited(bases: &HashMap<String, Vec<u8>>, case: &Value) -> Vec<u8> {
    let mut object = Vec::new();
    for op in list(case, "ops") {
        let at = op["at"].as_u64().unwrap_or(0) as usize;
        let base = op["name"].as_str().map(|name| &bases[name]);
        let range = || number(op, "from") as usize..number(op, "to") as usize;
        match text(op, "op") {
            "base" => object = base.unwrap().clone(),
            "xor" => bytes(op, "mask").iter().zip(&mut object[at..]).for_each(|(mask, byte)| *byte ^= mask),
            "set" => overwrite(&mut object, at, &bytes(op, "hex")),
            "truncate" => object.truncate(number(op, "len") as usize),
            "append" => object.extend(bytes(op, "hex")),
            "append_from" => object.extend_from_slice(&base.unwrap()[range()]),
            "copy" => overwrite(&mut object, at, &base.unwrap()[range()]),
            other => panic!("unknown edit {other}"),
        }
    }
    assert_eq!(object.len() as u64, number(case, "len"));
    assert_eq!(sha256(&object), text(case, "sha256"), "{}", text(case, "id"));
    object
}

fn overwrite(object: &mut [u8], at: usize, with: &[u8]) {
    object[at..at + with.len()].copy_from_slice(with);
}

fn probe_object(object: &[u8]) -> Result<crate::Probe, Error> {
    probe(&object[..object.len().min(HEADER_LEN)], object.len() as u64)
}

#[test]
fn edited_containers_of_format_1_give_the_expected_outcome_at_each_stage() {
    let file = load("content_reject.json");
    let right = keys(&load("content.json"), "master_hex");
    // The wrong content key of the vectors is that of the zero master key.
    let wrong = Keys::derive(&MasterKey::from_bytes([0; 32]));
    let bases = file["bases"].as_object().unwrap().iter().map(|(name, base)| {
        let plain = match &base["plaintext_parts"] {
            Value::Null => plaintext(&base["plaintext"]),
            list => parts(list),
        };
        let object = write(&right, Format::V1, &plain, &mut script(base));
        assert_eq!(sha256(&object), text(base, "sha256"));
        (name.clone(), object)
    });
    let bases: HashMap<_, _> = bases.collect();
    for case in list(&file, "cases") {
        let id = text(case, "id");
        let object = edited(&bases, case);
        fuzz_container(&object);
        let keys = match case["content_key_hex"].as_str() {
            Some(key) => {
                assert_eq!(hex::encode(wrong.content(Format::V1).expose()), key);
                &wrong
            }
            None => &right,
        };
        // With the prefix of format 2 it is one, as far as can be told without a key.
        if id != "hfeb-version-2" {
            assert_outcome(probe_object(&object), &case["probe"], id, |probe| {
                assert_eq!(probe.plain_len.0, number(&case["probe"], "size"), "{id}");
                assert!(probe.file_id.is_some());
            });
        }
        assert_outcome(open(keys, Format::V1, &object), &case["open"], id, drop);
        assert_read(read(keys, Format::V1, &object), &case["read"], id);
        if let (Some(hint), Ok(header)) = (case["tail_nonzero"].as_bool(), open(keys, Format::V1, &object)) {
            let tails = (0..header.records).next_back().map(|last| {
                let plain = open_record(keys, &header, &object, last).unwrap();
                !header.tail_is_zero(last, &plain)
            });
            assert_eq!(tails.unwrap_or(false), hint, "{id}");
        }
    }
}

#[test]
fn edited_containers_of_format_2_give_the_expected_outcome_at_each_stage() {
    let file = load("format2_content_reject.json");
    let right = keys(&file, "master_hex");
    let bases = file["bases"].as_object().unwrap().iter().map(|(name, base)| {
        let object = base_of_format_2_cases(&right, base);
        assert_eq!(sha256(&object), text(base, "sha256"), "{name}");
        (name.clone(), object)
    });
    let bases: HashMap<_, _> = bases.collect();
    for case in list(&file, "cases") {
        let id = text(case, "id");
        let object = edited(&bases, case);
        fuzz_container(&object);
        let keys = keys_of_case(&file, case);
        let name = format(number(case, "under_format"));
        // A probe doesn't know the name.
        if case["probe"]["error"] != "format-mismatch" {
            assert_outcome(probe_object(&object), &case["probe"], id, |probe| {
                if let Some(records) = case["probe"]["records"].as_u64() {
                    assert_eq!((probe.records, probe.plain_len.0), (records, records * 65536), "{id}");
                    assert_eq!(probe.file_id, None);
                }
            });
        }
        assert_outcome(open(&keys, name, &object), &case["open"], id, |header| {
            assert_eq!(header.plain_len.0, number(&case["open"], "size"), "{id}");
        });
        assert_read(read(&keys, name, &object), &case["read"], id);
        assert_outcome(verify(&keys, name, &object), &case["verify"], id, drop);
    }
}

fn base_of_format_2_cases(keys: &Keys, base: &Value) -> Vec<u8> {
    let format = format(number(base, "format"));
    let (size, records) = (PlainLen(number(base, "size")), number(base, "records"));
    write_as(keys, format, size, records, &parts(&base["parts"]), &mut script(base))
}

#[test]
fn records_do_not_depend_on_the_header() {
    let file = load("format2_content.json");
    let keys = keys(&file, "master_hex");
    let case = list(&file, "cases").iter().find(|case| case["id"] == "none-65537-records-2").unwrap();
    let mut random = script(case);
    let file_id = FileId::generate(&mut random).unwrap();
    let plain = plaintext(&case["plaintext"]);
    // As in a stream: records first, then size and count are known and the header is made.
    let records = write_records(&keys, Format::V2, &file_id, 2, &plain, &mut random);
    let header = Header { format: Format::V2, plain_len: PlainLen(plain.len() as u64), records: 2, file_id };
    let object = [&keys.seal_header(&header).unwrap()[..], &records].concat();
    assert_eq!(sha256(&object), text(case, "container_sha256"));
}
