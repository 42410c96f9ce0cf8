use hctr2_rs::Hctr2_128;
use proptest::prelude::*;

use super::*;
use crate::testing::counting_keys;
use crate::{Keys, MasterKey};

/// The path keys of the counting master key (vectors `hkdf.json`, `format2_hkdf.json`).
const PATH_KEYS: [(Format, &str); 2] =
    [(Format::V1, "0ed68542acb5efef937a12fc2f7ded66"), (Format::V2, "5dd23be6ccee8835adf84c4cd1421ec2")];

/// A stored text that holds `input` as it is, whatever a writer would make of it.
fn stored_raw(format: Format, parent: &str, input: &[u8]) -> String {
    let key = PATH_KEYS.iter().find(|(of, _)| *of == format).unwrap().1;
    let mut sealed = vec![0; input.len()];
    Hctr2_128::new(&hex::decode(key).unwrap()).encrypt(input, parent.as_bytes(), &mut sealed).unwrap();
    let mut text = base91::encode(&sealed);
    if format == Format::V2 {
        replace_symbols(&mut text);
    }
    text
}

fn zeros_and(name: &[u8], len: usize) -> Vec<u8> {
    let mut input = vec![0; len];
    input[len - name.len()..].copy_from_slice(name);
    input
}

/// Any name of the format: any scalar values but NUL and slash, any length that fits.
fn any_name(format: Format) -> impl Strategy<Value = String> {
    let most = if format == Format::V1 { MAX_SHORT } else { MAX_LONG };
    proptest::collection::vec(any::<char>(), 1..=most).prop_filter_map("not a name", move |chars| {
        let mut name: String = chars.into_iter().filter(|c| !matches!(c, '\0' | '/')).collect();
        while name.len() > most {
            name.pop();
        }
        (!matches!(name.as_str(), "" | "." | "..")).then_some(name)
    })
}

fn open_fully(names: &NameCipher, parent: &str, stored: &StoredName) -> Verdict {
    match &stored.sidecar {
        None => names.open(parent, &stored.text),
        Some(sidecar) => {
            assert_eq!(names.open(parent, &stored.text), Verdict::NeedsSidecar(sidecar.text.clone()));
            names.open_long(parent, &stored.text, &sidecar.bytes)
        }
    }
}

#[test]
fn every_length_seals_with_the_layout_of_the_format() {
    let keys = counting_keys();
    for format in [Format::V1, Format::V2] {
        for len in 1..=MAX_SHORT {
            let name = "n".repeat(len);
            let input = match (len, format) {
                (..=180, _) => (len + 12).div_ceil(32) * 32,
                (_, Format::V1) => len + 12,
                (_, Format::V2) => 206,
            };
            let stored = keys.names(format).seal("a/b", &name).unwrap();
            assert_eq!(stored.text, stored_raw(format, "a/b", &zeros_and(name.as_bytes(), input)), "{len}");
            assert_eq!(stored.sidecar, None);
            assert_eq!(keys.names(format).open("a/b", &stored.text), Verdict::Own(name));
        }
    }
}

#[test]
fn names_of_195_bytes_are_long_in_format_2_and_too_long_in_format_1() {
    let keys = counting_keys();
    for len in [195, 200, 254, 255] {
        let name = "é".repeat(len / 2) + &"x".repeat(len % 2);
        assert_eq!(keys.names(Format::V1).seal("", &name), Err(Error::NameTooLong(len)));
        let stored = keys.names(Format::V2).seal("", &name).unwrap();
        let sidecar = stored.sidecar.as_ref().unwrap();
        assert!(stored.text.starts_with("-L2") && (40..=43).contains(&stored.text.len()));
        assert_eq!(stored.text.strip_prefix("-L2"), sidecar.text.strip_prefix("-N2"));
        assert_eq!(sidecar.bytes.len(), SIDECAR_LEN);
        assert_eq!(open_fully(keys.names(Format::V2), "", &stored), Verdict::Own(name));
    }
    assert_eq!(keys.names(Format::V2).check(&"n".repeat(256)), Err(Error::NameTooLong(256)));
}

#[test]
fn names_that_break_a_rule_are_refused_by_writers() {
    let keys = counting_keys();
    for name in ["", ".", "..", "/", "a/b", "a/", "\0", "a\0", "\0a"] {
        for format in [Format::V1, Format::V2] {
            assert!(matches!(keys.names(format).check(name), Err(Error::NameInvalid(_))), "{name:?}");
            assert!(keys.names(format).seal("", name).is_err());
        }
    }
    for name in ["...", ".enc", "-L2", " ", "\n", "\\", "\u{feff}", "CON", "a:b"] {
        assert_eq!(keys.names(Format::V2).check(name), Ok(()), "{name:?}");
    }
}

#[test]
fn authentic_texts_that_no_writer_makes_are_suspicious() {
    let inputs: &[Vec<u8>] = &[
        vec![0; 32],
        zeros_and(b".", 32),
        zeros_and(b"..", 32),
        zeros_and(b"a/b", 32),
        zeros_and(b"a\0b", 32),
        zeros_and(b"\xff", 32),
        zeros_and(b"abc", 33),
        zeros_and(b"abc", 64),
        zeros_and(&[b'n'; 195], 207),
        zeros_and(&[b'n'; 300], 312),
        zeros_and(&[b'n'; 5000], 5012),
    ];
    let keys = counting_keys();
    for format in [Format::V1, Format::V2] {
        for input in inputs {
            let stored = stored_raw(format, "p", input);
            assert_eq!(keys.names(format).open("p", &stored), Verdict::Suspicious);
            assert_eq!(keys.names(format).open("q", &stored), Verdict::Foreign);
        }
    }
}

#[test]
fn less_than_twelve_zeros_or_32_bytes_are_foreign() {
    let keys = counting_keys();
    for format in [Format::V1, Format::V2] {
        for zeros in 0..12 {
            let mut input = [b'n'; 32];
            input[..zeros].fill(0);
            assert_eq!(keys.names(format).open("", &stored_raw(format, "", &input)), Verdict::Foreign);
        }
        for len in 16..32 {
            assert_eq!(keys.names(format).open("", &stored_raw(format, "", &zeros_and(b"n", len))), Verdict::Foreign);
        }
    }
}

#[test]
fn replaced_symbols_have_one_spelling() {
    let keys = counting_keys();
    let names = keys.names(Format::V2);
    let (mut colons, mut dots) = (0, 0);
    for number in 0..40_000 {
        // 65 bytes: a length whose texts end with a full stop often enough.
        let name = format!("{number:065}");
        let text = names.seal("", &name).unwrap().text;
        assert!(!text[1..].starts_with(':') && !text.ends_with('.'));
        assert!(text.bytes().enumerate().all(|(at, byte)| byte != b'-' || at == 1 || at + 1 == text.len()));
        for (literal, seen) in [
            (text[1..].starts_with('-').then(|| format!("{}:{}", &text[..1], &text[2..])), &mut colons),
            (text.strip_suffix('-').map(|text| format!("{text}.")), &mut dots),
        ] {
            let Some(literal) = literal else { continue };
            *seen += 1;
            assert_eq!(names.open("", &text), Verdict::Own(name.clone()));
            assert_eq!(names.open("", &literal), Verdict::Suspicious);
        }
    }
    assert!(colons > 100 && dots > 50, "{colons} {dots}");
}

#[test]
fn hyphens_elsewhere_are_foreign_and_in_front_extensions() {
    let keys = counting_keys();
    for stored in ["a-b", "ab-c", "--", "-", "-x", "-l2abc", "-L", "-N2abc", "-L1abc", "-k1-00"] {
        let verdict = keys.names(Format::V2).open("", stored);
        assert_eq!(verdict, if stored.starts_with('-') { Verdict::Extension } else { Verdict::Foreign });
    }
    assert_eq!(keys.names(Format::V2).open("", "-L2abc"), Verdict::NeedsSidecar("-N2abc".into()));
    assert_eq!(keys.names(Format::V1).open("", "-L2abc"), Verdict::Foreign);
}

#[test]
fn hostile_texts_of_any_kind_are_foreign() {
    let keys = counting_keys();
    let long = "B".repeat(100_000);
    for stored in ["", "A", "é", "é-", "-é", "\0", "\u{10ffff}", "a:", ":", ".", "x-", "é:", "🦀-🦀", &long] {
        for format in [Format::V1, Format::V2] {
            let verdict = keys.names(format).open("", stored);
            assert!(!matches!(verdict, Verdict::Own(_) | Verdict::Suspicious), "{stored:?}");
            assert_eq!(keys.names(format).open_long("", stored, stored.as_bytes()), Verdict::Foreign);
        }
    }
}

#[test]
fn a_sidecar_opens_only_its_own_text() {
    let keys = counting_keys();
    let names = keys.names(Format::V2);
    let [one, two] = ["1", "2"].map(|digit| names.seal("p", &digit.repeat(200)).unwrap());
    let sidecar = &one.sidecar.as_ref().unwrap().bytes;
    assert_eq!(names.open_long("p", &two.text, sidecar), Verdict::Suspicious);
    assert_eq!(names.open_long("q", &one.text, sidecar), Verdict::Foreign);
    assert_eq!(names.open_long("p", &one.text, &[]), Verdict::Foreign);
    assert_eq!(names.open_long("p", &one.text, &sidecar[..SIDECAR_LEN - 1]), Verdict::Foreign);
    assert_eq!(names.open_long("p", &one.text, &[sidecar.as_slice(), &[0]].concat()), Verdict::Foreign);
    for bit in 0..SIDECAR_LEN * 8 {
        let mut altered = sidecar.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(names.open_long("p", &one.text, &altered), Verdict::Foreign, "bit {bit}");
    }
    let other = Keys::derive(&MasterKey::from_bytes([5; 32]));
    assert_eq!(other.names(Format::V2).open_long("p", &one.text, sidecar), Verdict::Foreign);
}

#[test]
fn empty_components_are_no_path() {
    let keys = counting_keys();
    for path in ["/", "/a", "a/", "a//b", ".", "a/../b"] {
        assert!(matches!(keys.names(Format::V2).seal_path(path), Err(Error::NameInvalid(_))), "{path}");
    }
    assert_eq!(keys.names(Format::V1).seal_path("").unwrap(), SealedPath { key: ".enc".into(), sidecars: vec![] });
}

#[test]
fn long_directories_put_their_sidecars_beside_them() {
    let keys = counting_keys();
    let names = keys.names(Format::V2);
    let (dir, file) = ("d".repeat(200), "f".repeat(220));
    let sealed = names.seal_path(&format!("a/{dir}/{file}")).unwrap();
    let a = names.seal("", "a").unwrap().text;
    let d = names.seal("a", &dir).unwrap();
    let f = names.seal(&format!("a/{dir}"), &file).unwrap();
    assert_eq!(sealed.key, format!(".enc/{a}/{}/{}", d.text, f.text));
    let [outer, inner] = &sealed.sidecars[..] else { panic!("two sidecars") };
    assert_eq!(outer.text, format!(".enc/{a}/{}", d.sidecar.unwrap().text));
    assert_eq!(inner.text, format!(".enc/{a}/{}/{}", d.text, f.sidecar.unwrap().text));
}

proptest! {
    #[test]
    fn any_name_of_format_1_comes_back(parent in ".{0,40}", name in any_name(Format::V1)) {
        let keys = counting_keys();
        let names = keys.names(Format::V1);
        let stored = names.seal(&parent, &name).unwrap();
        prop_assert!(stored.text.len() <= 254);
        prop_assert_eq!(open_fully(names, &parent, &stored), Verdict::Own(name));
        prop_assert_eq!(keys.names(Format::V2).open(&parent, &stored.text), Verdict::Foreign);
    }

    #[test]
    fn any_name_of_format_2_comes_back(parent in ".{0,40}", name in any_name(Format::V2)) {
        let keys = counting_keys();
        let names = keys.names(Format::V2);
        let stored = names.seal(&parent, &name).unwrap();
        prop_assert!(stored.text.len() <= 254);
        prop_assert_eq!(open_fully(names, &parent, &stored), Verdict::Own(name));
        prop_assert_eq!(open_fully(names, &(parent + "x"), &stored), Verdict::Foreign);
    }

    #[test]
    fn any_altered_symbol_is_no_own_name(name in any_name(Format::V2), at in any::<prop::sample::Index>(), to in any::<char>()) {
        let keys = counting_keys();
        let names = keys.names(Format::V2);
        let stored = names.seal("", &name).unwrap();
        let mut symbols: Vec<char> = stored.text.chars().collect();
        *at.get_mut(&mut symbols) = to;
        let altered: String = symbols.into_iter().collect();
        prop_assume!(altered != stored.text);
        prop_assert!(!matches!(names.open("", &altered), Verdict::Own(_)));
        if let Some(sidecar) = &stored.sidecar {
            prop_assert!(!matches!(names.open_long("", &altered, &sidecar.bytes), Verdict::Own(_)));
        }
    }
}
