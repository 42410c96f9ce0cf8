//! Names of both formats.

use super::*;
use crate::{Error, NameCipher, SealedPath, Verdict, base91, fuzz};

/// Opens every component of a sealed path and checks that it gives the path back.
fn assert_path_opens(names: &NameCipher, path: &str, sealed: &SealedPath) {
    let mut sidecars = sealed.sidecars.iter();
    let mut parent = String::new();
    for stored in sealed.key.split('/').skip(1) {
        let mut verdict = names.open(&parent, stored);
        let mut sidecar_bytes = [].as_slice();
        if let Verdict::NeedsSidecar(text) = &verdict {
            let sidecar = sidecars.next().unwrap();
            assert!(sidecar.text.ends_with(&format!("/{text}")));
            sidecar_bytes = &sidecar.bytes;
            verdict = names.open_long(&parent, stored, sidecar_bytes);
        }
        fuzz::stored_name(&[parent.as_bytes(), stored.as_bytes(), sidecar_bytes].join(&0));
        let Verdict::Own(name) = verdict else { panic!("{path}: {stored} is {verdict:?}") };
        if !parent.is_empty() {
            parent.push('/');
        }
        parent.push_str(&name);
    }
    assert_eq!(parent, path);
    assert!(sidecars.next().is_none());
}

/// The other format must take every name for another key's, except that format 2 would ask for a `-L2`'s sidecar.
fn assert_foreign_to(names: &NameCipher, parent: &str, stored: &str) {
    if !stored.starts_with('-') {
        assert_eq!(names.open(parent, stored), Verdict::Foreign);
    }
}

#[test]
fn paths_of_format_1_seal_and_open() {
    let file = load("names.json");
    let keys = keys(&file, "master_hex");
    let names = keys.names(Format::V1);
    for case in list(&file, "cases") {
        let path = text(case, "path");
        let sealed = names.seal_path(path).unwrap();
        assert_eq!(sealed.key, text(case, "object_key"), "{path}");
        assert_path_opens(names, path, &sealed);
        // Not every case shows what is between.
        for (component, name) in case["components"].as_array().into_iter().flatten().zip(path.split('/')) {
            let parent = String::from_utf8(bytes(component, "tweak_hex")).unwrap();
            let stored = names.seal(&parent, name).unwrap();
            assert_eq!(name.as_bytes(), bytes(component, "name_hex"));
            assert_eq!(stored.text, text(component, "text"));
            assert_eq!(base91::decode(&stored.text), Some(bytes(component, "ciphertext_hex")));
            assert_foreign_to(keys.names(Format::V2), &parent, &stored.text);
        }
    }
    assert_eq!(names.seal_path("").unwrap().key, text(&file["root"], "object_key"));
    let subfolder = &file["subfolder"];
    let path = format!("{}/{}", text(subfolder, "prefix"), text(subfolder, "inner"));
    assert_eq!(names.seal_path(&path).unwrap().key, text(subfolder, "object_key"));
}

#[test]
fn paths_of_format_2_seal_and_open() {
    let file = load("format2_names.json");
    let keys = keys(&file, "master_hex");
    let names = keys.names(Format::V2);
    for case in list(&file, "cases") {
        let path = text(case, "path");
        let sealed = names.seal_path(path).unwrap();
        assert_eq!(sealed.key, text(case, "object_key"), "{path}");
        assert_path_opens(names, path, &sealed);
        let mut sidecars = sealed.sidecars.iter();
        for (component, name) in list(case, "components").iter().zip(path.split('/')) {
            let parent = String::from_utf8(bytes(component, "tweak_hex")).unwrap();
            let stored = names.seal(&parent, name).unwrap();
            assert_eq!(name.len() as u64, number(component, "name_len"));
            assert_eq!(stored.text, text(component, "text"));
            assert_foreign_to(keys.names(Format::V1), &parent, &stored.text);
            if component["sidecar_key"].is_string() {
                let sidecar = sidecars.next().unwrap();
                assert_eq!(sidecar.text, text(component, "sidecar_key"));
                assert_eq!(sidecar.bytes, bytes(component, "sidecar_hex"));
                assert_token(component, &stored.text[3..], "token_hex");
            } else {
                assert_token(component, &stored.text, "ciphertext_hex");
            }
        }
        assert!(sidecars.next().is_none());
    }
}

/// The stored text is the base91 of `field`, except where the case says what it was before symbols were replaced.
fn assert_token(component: &Value, stored: &str, field: &str) {
    let encoded = component["base91"].as_str().unwrap_or(stored);
    assert_eq!(base91::decode(encoded), Some(bytes(component, field)));
}

#[test]
fn stored_lengths_are_those_of_the_tables() {
    for (file, format) in [("names.json", Format::V1), ("format2_names.json", Format::V2)] {
        let file = load(file);
        let keys = keys(&file, "master_hex");
        for case in list(&file, "length_table") {
            let name = "n".repeat(number(case, "name_len") as usize);
            let Some(input) = case["input_len"].as_u64() else {
                assert_eq!(keys.names(format).seal("", &name), Err(Error::NameTooLong(name.len())));
                continue;
            };
            let stored = keys.names(format).seal("", &name).unwrap();
            match &stored.sidecar {
                Some(sidecar) => assert_eq!(sidecar.bytes.len() as u64, 5 + input),
                None => {
                    // A symbol replaced by `-` keeps the length.
                    let text = stored.text.replace('-', "B");
                    assert!(text.len() <= base91::max_len(input as usize));
                    assert!(text.len() > base91::max_len(input as usize) * 13 / 14 - 2);
                }
            }
            if let Some(most) = case["stored_len_max"].as_u64() {
                assert_eq!(base91::max_len(input as usize) as u64, most);
            }
        }
    }
}

#[test]
fn names_that_cannot_be_stored_are_refused() {
    for (file, format) in [("names.json", Format::V1), ("format2_names.json", Format::V2)] {
        let file = load(file);
        let keys = keys(&file, "master_hex");
        let names = keys.names(format);
        for case in list(&file, "encrypt_errors") {
            // Not UTF-8: refused by the type, before this layer.
            let Ok(name) = String::from_utf8(bytes(case, "name_hex")) else { continue };
            let refused = names.seal("", &name).unwrap_err();
            assert_eq!(names.check(&name), Err(refused.clone()));
            match text(case, "error") {
                "name-too-long" => assert_eq!(refused, Error::NameTooLong(name.len())),
                _ => assert!(matches!(refused, Error::NameInvalid(_)), "{case}"),
            }
        }
    }
}

#[test]
fn stored_names_that_format_1_refuses() {
    for case in list(&load("names_reject.json"), "cases") {
        let names = NameCipher::v1(&secret(case, "path_key_hex"));
        let expected = match text(case, "strict_error") {
            "not-authentic" | "too-short" | "base91-invalid-padding" | "base91-invalid-character" => Verdict::Foreign,
            _ => Verdict::Suspicious,
        };
        assert_eq!(names.open(text(case, "parent"), text(case, "stored")), expected, "{}", text(case, "id"));
        fuzz::stored_name(format!("{}\0{}", text(case, "parent"), text(case, "stored")).as_bytes());
    }
}

#[test]
fn stored_names_that_format_2_refuses() {
    let file = load("format2_names_reject.json");
    for case in list(&file, "cases") {
        let keys = keys_of_case(&file, case);
        let sidecar = case["sidecar_hex"].as_str().map(|sidecar| hex::decode(sidecar).unwrap());
        let (parent, stored) = (text(case, "parent"), text(case, "stored"));
        let class = classify(keys.names(Format::V2), parent, stored, sidecar.as_deref());
        assert_eq!(class, text(case, "class"), "{}", text(case, "id"));
        fuzz::stored_name(&[parent.as_bytes(), stored.as_bytes(), &sidecar.unwrap_or_default()].join(&0));
    }
}

fn classify(names: &NameCipher, parent: &str, stored: &str, sidecar: Option<&[u8]>) -> &'static str {
    match names.open(parent, stored) {
        Verdict::NeedsSidecar(text) => {
            assert_eq!(text.strip_prefix("-N2"), stored.strip_prefix("-L2"));
            match sidecar.map_or(Verdict::Foreign, |bytes| names.open_long(parent, stored, bytes)) {
                Verdict::Own(_) => "own",
                Verdict::Suspicious => "suspicious",
                _ => "foreign",
            }
        }
        Verdict::Own(_) => "own",
        Verdict::Extension => "extension",
        Verdict::Foreign => "foreign",
        Verdict::Suspicious => "suspicious",
    }
}

#[test]
fn a_key_is_right_when_one_entry_of_the_root_authenticates() {
    let file = load("format2_names.json");
    let keys = keys(&file, "master_hex");
    for case in list(&file["wrong_key"], "cases") {
        let stored: Vec<_> = case["stored"].as_array().unwrap().iter().map(|key| key.as_str().unwrap()).collect();
        let roots: Vec<_> = stored.iter().map(|key| key.split('/').nth(1).unwrap()).collect();
        let sidecar = case["sidecar_hex"].as_str().map(|bytes| hex::decode(bytes).unwrap());
        let authentic = roots.iter().any(|root| {
            [Format::V2, Format::V1].into_iter().any(|format| {
                let class = classify(keys.names(format), "", root, sidecar.as_deref());
                class == "own" || class == "suspicious"
            })
        });
        let verdict = match authentic {
            _ if stored.is_empty() => "new-tree",
            true => "right-key",
            false => "wrong-key",
        };
        assert_eq!(verdict, text(case, "verdict"), "{}", text(case, "id"));
    }
}

#[test]
fn extensions_that_were_not_adopted_are_skipped() {
    let file = load("extensions.json");
    let keys = keys(&file, "master_hex");
    let check = text(&file["key_check"], "object_key").strip_prefix(".enc/").unwrap();
    for format in [Format::V1, Format::V2] {
        let names = keys.names(format);
        assert_eq!(names.open("", check), Verdict::Extension);
        for case in list(&file, "long_names") {
            let parent = text(case, "parent");
            for stored in [text(case, "stored"), text(case, "sidecar")] {
                assert_eq!(names.open(parent, stored), Verdict::Extension);
                assert_eq!(names.open_long(parent, stored, &bytes(case, "sidecar_hex")), Verdict::Foreign);
            }
        }
    }
}
