//! Metadata objects: their keys, and what is sealed in them.

use super::*;
use crate::Error;
use crate::metadata::MetadataCipher;
use crate::testing::Script;

#[test]
fn subkeys_of_metadata_are_derived() {
    let file = load("metadata.json");
    for case in list(&file, "keys") {
        let (derived, given) = (
            keys(case, "master_hex"),
            MetadataCipher::new(secret(case, "content_key_hex"), secret(case, "name_key_hex")),
        );
        assert_eq!(derived.metadata().key("a/b"), given.key("a/b"));
        let sealed = given.seal(b"{}", &mut Script::new(vec![5; 16])).unwrap();
        assert!(derived.metadata().open(&sealed).unwrap().starts_with(b"{}"));
    }
}

#[test]
fn metadata_of_a_path_has_its_key() {
    let file = load("metadata.json");
    let keys = keys(&file, "master_hex");
    for case in list(&file, "paths") {
        assert_eq!(keys.metadata().key(text(case, "path")), text(case, "key"));
    }
}

#[test]
fn metadata_is_sealed_and_opened() {
    let file = load("metadata.json");
    let keys = keys(&file, "master_hex");
    for case in list(&file, "objects") {
        let json = text(case, "json").as_bytes();
        let sealed = keys.metadata().seal(json, &mut Script::new(bytes(case, "nonce_hex"))).unwrap();
        assert_eq!(sealed.len() as u64, number(case, "len"));
        match case["sealed_hex"].is_string() {
            true => assert_eq!(sealed, bytes(case, "sealed_hex")),
            false => assert_eq!(Sha256::digest(&sealed)[..], bytes(case, "sha256")),
        }
        let opened = keys.metadata().open(&sealed).unwrap();
        assert_eq!(opened.len() as u64, number(case, "padded_len"));
        assert_eq!(opened.trim_ascii_end(), json);
    }
}

#[test]
fn damaged_metadata_is_rejected() {
    let file = load("metadata.json");
    let keys = keys(&file, "master_hex");
    for case in list(&file, "rejects") {
        let opened = keys.metadata().open(&bytes(case, "sealed_hex"));
        assert_eq!(opened.err(), Some(Error::Unauthentic), "{}", text(case, "why"));
    }
}
