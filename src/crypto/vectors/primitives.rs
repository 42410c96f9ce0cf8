//! Keys, key files, basE91 and the bare ciphers.

use aegis::aegis128x2::{Aegis128X2, Aegis128X2Mac};
use hkdf::Hkdf;
use sha2::Sha256;
use turboshake::TurboShake128;
use turboshake::digest::{ExtendableOutput, Update, XofReader};

use super::*;
use crate::geometry::{HEADER_LEN, PlainLen};
use crate::testing::Script;
use crate::wide::WideCipher;
use crate::{Error, FileId, Header, JournalCipher, NameCipher, base91, fuzz, keyfile};

#[test]
fn subkeys_of_format_1_are_derived() {
    let file = load("hkdf.json");
    for case in list(&file, "cases") {
        let (prk, _) = Hkdf::<Sha256>::extract(Some(text(&file, "salt_utf8").as_bytes()), &bytes(case, "master_hex"));
        assert_eq!(prk[..], bytes(case, "prk_hex"));
        let keys = keys(case, "master_hex");
        assert_eq!(keys.content(Format::V1).expose()[..], bytes(case, "content_key_hex"));
        let names = NameCipher::v1(&secret(case, "path_key_hex"));
        assert_eq!(keys.names(Format::V1).seal("p", "name"), names.seal("p", "name"));
    }
}

#[test]
fn subkeys_of_format_2_are_derived() {
    let file = load("format2_hkdf.json");
    for case in list(&file, "cases") {
        let (prk, _) = Hkdf::<Sha256>::extract(Some(text(&file, "salt_utf8").as_bytes()), &bytes(case, "master_hex"));
        assert_eq!(prk[..], bytes(case, "prk2_hex"));
        let keys = keys(case, "master_hex");
        assert_eq!(keys.id().to_string(), text(case, "key_id"));
        assert_eq!(keys.content(Format::V2).expose()[..], bytes(case, "content_key_hex"));
        let names = NameCipher::v2(&secret(case, "path_key_hex"), secret(case, "long_name_key_hex"));
        for name in ["name", &"n".repeat(200)] {
            assert_eq!(keys.names(Format::V2).seal("p", name), names.seal("p", name));
        }
        assert_header_key(&keys, &WideCipher::new(&secret(case, "header_key_hex")));
        assert_journal_key(&keys, &JournalCipher::new(secret(case, "journal_key_hex")));
    }
}

fn assert_header_key(keys: &Keys, cipher: &WideCipher) {
    let header = Header { format: Format::V2, plain_len: PlainLen(5), records: 1, file_id: FileId([9; 24]) };
    let head = keys.seal_header(&header).unwrap();
    let mut inner = [0; HEADER_LEN - 6];
    cipher.decrypt(&head[6..], b"HFEB\x02\x02\x01\0\0\0\0\0\0\0", &mut inner);
    assert!(inner.starts_with(b"AEGISRAF"));
}

fn assert_journal_key(keys: &Keys, journal: &JournalCipher) {
    let sealed = keys.journal().seal(&[3; 32], 7, b"payload", &mut Script::new(vec![1; 16])).unwrap();
    assert_eq!(*journal.open(&[3; 32], 7, &sealed).unwrap(), b"payload");
}

#[test]
fn key_files_parse_or_are_refused() {
    let file = load("hkdf.json");
    for case in list(&file, "key_files") {
        let id = text(case, "id");
        let content = bytes(case, "file_hex");
        fuzz::key_file(&content);
        let parsed = keyfile::parse(&content);
        if case["error"].is_string() {
            assert!(matches!(parsed, Err(Error::KeyFile(_))), "{id}");
            continue;
        }
        let parsed = parsed.unwrap_or_else(|error| panic!("{id}: {error}"));
        assert_eq!(parsed.master.expose()[..], bytes(case, "master_hex"), "{id}");
        assert_eq!(!parsed.warnings.is_empty(), case["warn"] == true, "{id}");
        assert_eq!(parsed.form == keyfile::Form::Raw, content.len() == 32, "{id}");
    }
}

#[test]
fn base91_encodes_and_decodes() {
    let file = load("base91.json");
    for case in list(&file, "upper_bound") {
        let most = base91::max_len(number(case, "bytes") as usize);
        assert_eq!(most as u64, number(case, "symbols"));
        assert_eq!(most <= 255, case["fits_255"] == true);
    }
    for case in list(&file, "encode") {
        let data = bytes(case, "data_hex");
        assert_eq!(base91::encode(&data), text(case, "text"));
        assert_eq!(base91::decode(text(case, "text")), Some(data.clone()));
        fuzz::base91(&data);
        fuzz::base91(text(case, "text").as_bytes());
    }
}

#[test]
fn base91_alphabet_is_in_index_order() {
    let file = load("base91.json");
    // The first symbol of a lone byte is its value modulo 91.
    let symbols: String = (0..91u8).map(|value| base91::encode(&[value]).remove(0)).collect();
    assert_eq!(symbols, text(&file, "alphabet"));
}

#[test]
fn base91_aliases_decode_but_do_not_encode_back() {
    let file = load("base91.json");
    for case in list(&file, "aliases") {
        let data = bytes(case, "data_hex");
        assert_eq!(base91::decode(text(case, "alias")).as_ref(), Some(&data));
        assert_eq!(base91::decode(text(case, "canonical")).as_ref(), Some(&data));
        assert_eq!(base91::encode(&data), text(case, "canonical"));
        fuzz::base91(text(case, "alias").as_bytes());
    }
}

#[test]
fn odd_base91_texts_decode_as_documented() {
    let file = load("base91.json");
    for case in list(&file, "decode_edge") {
        let stored = text(case, "text");
        fuzz::base91(stored.as_bytes());
        let decoded = base91::decode(stored);
        let lenient = case["lenient"]["data_hex"].as_str().map(|data| hex::decode(data).unwrap());
        assert_eq!(decoded, lenient, "{stored}");
        let canonical = decoded.is_some_and(|data| base91::encode(&data) == stored);
        assert_eq!(canonical, text(case, "strict") == "ok", "{stored}");
    }
}

#[test]
fn hctr2_agrees_both_ways() {
    for case in list(&load("hctr2.json"), "cases") {
        let cipher = WideCipher::new(&secret(case, "key_hex"));
        let (plain, sealed, tweak) =
            (bytes(case, "plaintext_hex"), bytes(case, "ciphertext_hex"), bytes(case, "tweak_hex"));
        let mut out = vec![0; plain.len()];
        cipher.encrypt(&plain, &tweak, &mut out);
        assert_eq!(out, sealed);
        cipher.decrypt(&sealed, &tweak, &mut out);
        assert_eq!(out, plain);
    }
}

#[test]
fn kdf_aead_and_mac_of_the_crates_are_those_of_the_format() {
    let file = load("content.json");
    for case in list(&file["primitives"], "kdf") {
        assert_eq!(text(case, "domain"), "1f");
        let (mut hash, mut out) = (TurboShake128::default(), [0; 32]);
        hash.update(&bytes(case, "message_hex"));
        hash.finalize_xof().read(&mut out);
        assert_eq!(out[..], bytes(case, "out_hex"));
    }
    for case in list(&file["primitives"], "aead") {
        let cipher = Aegis128X2::<16>::new(&array(case, "key_hex"), &array(case, "nonce_hex"));
        let (mut body, ad) = (bytes(case, "msg_hex"), bytes(case, "ad_hex"));
        let tag = cipher.encrypt_in_place(&mut body, &ad);
        assert_eq!((&body, &tag[..]), (&bytes(case, "ct_hex"), &bytes(case, "tag_hex")[..]));
        cipher.decrypt_in_place(&mut body, &tag, &ad).unwrap();
        assert_eq!(body, bytes(case, "msg_hex"));
    }
    for case in list(&file["primitives"], "mac") {
        let mut mac = Aegis128X2Mac::<16>::new_with_nonce(&array(case, "key_hex"), &array(case, "nonce_hex"));
        mac.update(&bytes(case, "data_hex"));
        assert_eq!(mac.finalize()[..], bytes(case, "tag_hex"));
    }
}
