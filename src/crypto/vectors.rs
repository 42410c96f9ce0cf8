//! Every vector of `tests/vectors/crypto` through every function that applies, and through the fuzz bodies. The
//! README there says what the fields mean; the classes of failure expected here are those of the format spec.

mod content;
mod metadata;
mod names;
mod primitives;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::secret::Secret;
use super::{Format, Keys, MasterKey};

/// A vector file.
fn load(file: &str) -> Value {
    serde_json::from_slice(&load_bytes(file)).unwrap()
}

fn load_bytes(file: &str) -> Vec<u8> {
    let path = format!("{}/../../tests/vectors/crypto/{file}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The cases under `field`; a list that went missing or empty fails the test that meant to run it.
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let list = value[field].as_array().unwrap_or_else(|| panic!("no list `{field}`"));
    assert!(!list.is_empty(), "`{field}` is empty");
    list
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no text `{field}` in {value}"))
}

fn number(value: &Value, field: &str) -> u64 {
    value[field].as_u64().unwrap_or_else(|| panic!("no number `{field}` in {value}"))
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(value, field)).unwrap()
}

fn array<const N: usize>(value: &Value, field: &str) -> [u8; N] {
    bytes(value, field).try_into().unwrap()
}

fn secret<const N: usize>(value: &Value, field: &str) -> Secret<N> {
    Secret::fill(|place| *place = array(value, field))
}

fn keys(value: &Value, field: &str) -> Keys {
    Keys::derive(&MasterKey::from_bytes(array(value, field)))
}

/// The keys of a case that names its own master key, or the file's.
fn keys_of_case(file: &Value, case: &Value) -> Keys {
    keys(if case["master_hex"].is_string() { case } else { file }, "master_hex")
}

fn format(number: u64) -> Format {
    match number {
        1 => Format::V1,
        2 => Format::V2,
        other => panic!("format {other}"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn the_users_document_shows_the_vectors() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
    let document: String = std::fs::read_to_string(path).unwrap().split_whitespace().collect();
    let shows = |case: &Value, fields: &[&str]| {
        for field in fields {
            let shown: String = text(case, field).split_whitespace().collect();
            assert!(document.contains(&shown), "{field}: {shown}");
        }
    };
    let find = |file: &str, id: &str| {
        let file = load(file);
        list(&file, "cases").iter().find(|case| case["id"] == id || case["path"] == id).unwrap().clone()
    };
    shows(&find("hkdf.json", "counting"), &["path_key_hex", "content_key_hex"]);
    let two = ["path_key_hex", "content_key_hex", "header_key_hex", "key_id"];
    shows(&find("format2_hkdf.json", "counting"), &two);
    for file in ["names.json", "format2_names.json"] {
        let case = find(file, "a");
        shows(&case, &["object_key"]);
        shows(&case["components"][0], &["ciphertext_hex"]);
    }
    shows(&find("content.json", "size-15"), &["file_id_hex", "enc_key_hex", "hdr_key_hex", "header_hex"]);
    shows(
        &find("format2_content.json", "none-1-records-1"),
        &["file_id_hex", "tweak_hex", "inner_header_hex", "header_hex"],
    );
}
