//! Bodies of the fuzz targets: one for each decoder. None may panic, whatever the input.
//!
//! They check what must hold for every input: what was accepted encodes back to the same bytes, and what was made
//! from the input opens again. Plain tests replay the vectors through them; fuzz/ feeds them with coverage.

use std::sync::OnceLock;

use super::geometry::{HEADER_LEN, NONCE_LEN, PlainLen, RECORD_LEN, object_len};
use super::record::PLAIN;
use super::{FileId, Format, Header, Keys, MasterKey, Verdict, base91, header, keyfile, probe};

/// A key file in any form.
pub fn key_file(data: &[u8]) {
    let Ok(parsed) = keyfile::parse(data) else { return };
    let hex = keyfile::to_hex(&parsed.master);
    let again = keyfile::parse(hex.as_bytes()).expect("our own hex parses");
    assert_eq!(again.form, keyfile::Form::Hex);
    assert_eq!(again.master.expose(), parsed.master.expose());
    if parsed.form == keyfile::Form::Raw {
        assert_eq!(parsed.master.expose()[..], *data);
    }
}

/// basE91 text, and the same bytes as data.
pub fn base91(data: &[u8]) {
    let text = base91::encode(data);
    assert!(text.len() <= base91::max_len(data.len()));
    assert_eq!(base91::decode(&text).as_deref(), Some(data));
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(bytes) = base91::decode(text) else { return };
    // An alias differs from the canonical text by one `A` at the end, present or not.
    let canonical = base91::encode(&bytes);
    assert_eq!(canonical.trim_end_matches('A'), text.trim_end_matches('A'));
    assert!(canonical.len().abs_diff(text.len()) <= 1);
}

/// `parent NUL stored NUL sidecar` as hostile stored names, and the same parts as plain ones.
pub fn stored_name(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let mut text = || String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let (parent, name) = (text(), text());
    let sidecar = parts.next().unwrap_or_default();
    for format in [Format::V1, Format::V2] {
        open_stored(format, &parent, &name, sidecar);
        seal_plain(format, &parent, &name);
    }
}

fn open_stored(format: Format, parent: &str, stored: &str, sidecar: &[u8]) {
    let names = keys().names(format);
    for verdict in [names.open(parent, stored), names.open_long(parent, stored, sidecar)] {
        match verdict {
            Verdict::Own(name) => {
                assert_eq!(names.seal(parent, &name).expect("an own name seals").text, stored);
            }
            Verdict::NeedsSidecar(text) => assert!(stored.starts_with("-L2") && text.starts_with("-N2")),
            Verdict::Extension => assert!(stored.starts_with('-')),
            Verdict::Foreign | Verdict::Suspicious => {}
        }
    }
}

fn seal_plain(format: Format, parent: &str, name: &str) {
    let names = keys().names(format);
    let sealed = names.seal(parent, name);
    assert_eq!(sealed.is_ok(), names.check(name).is_ok());
    let Ok(stored) = sealed else { return };
    assert!((37..=254).contains(&stored.text.len()));
    let verdict = match &stored.sidecar {
        None => names.open(parent, &stored.text),
        Some(sidecar) => {
            assert_eq!(names.open(parent, &stored.text), Verdict::NeedsSidecar(sidecar.text.clone()));
            names.open_long(parent, &stored.text, &sidecar.bytes)
        }
    };
    assert_eq!(verdict, Verdict::Own(name.to_owned()));
}

/// `object length, 8 bytes | header` as a hostile container, and a header of the fields in it.
pub fn container_header(data: &[u8]) {
    let Some((len, head)) = data.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    if let Ok(probe) = probe(head, len) {
        assert_eq!(object_len(probe.records).map(|len| len.0), Ok(len));
    }
    for format in [Format::V1, Format::V2] {
        if let Ok(header) = keys().open_header(format, head, len) {
            assert_eq!(header.format, format);
            assert_eq!(keys().seal_header(&header).expect("an authentic header seals")[..], head[..HEADER_LEN]);
        }
    }
    if let Some(fields) = head.first_chunk() {
        seal_fields(fields);
    }
}

fn seal_fields(fields: &[u8; HEADER_LEN]) {
    let number = |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().expect("8 bytes"));
    let mut id = [0; 24];
    id.copy_from_slice(&fields[16..40]);
    for format in [Format::V1, Format::V2] {
        let header = Header { format, plain_len: PlainLen(number(0)), records: number(8), file_id: header::FileId(id) };
        let Ok(head) = keys().seal_header(&header) else { continue };
        let len = object_len(header.records).expect("it was sealed").0;
        assert_eq!(keys().open_header(format, &head, len), Ok(header));
        assert!(keys().open_header(format, &head, len.wrapping_add(RECORD_LEN as u64)).is_err());
    }
}

/// `index, 8 bytes | slot` as a hostile record, cut or filled with zeros, and the same bytes as plaintext.
pub fn record(data: &[u8]) {
    let Some((index, body)) = data.split_first_chunk() else { return };
    let index = u64::from_le_bytes(*index);
    let records = keys().records(Format::V2, &FileId([7; 24]));
    let mut slot = Box::new([0; RECORD_LEN]);
    let len = body.len().min(RECORD_LEN);
    slot[..len].copy_from_slice(&body[..len]);

    let plain = slot.clone();
    if records.open(index, &mut slot).is_err() {
        assert!(slot[PLAIN].iter().all(|&byte| byte == 0));
    }
    *slot = *plain;
    let nonce: [u8; NONCE_LEN] = *plain.first_chunk().expect("16 bytes");
    records.seal(index, &nonce, &mut slot);
    assert!(records.open(index, &mut slot).is_ok());
    assert_eq!(slot[PLAIN], plain[PLAIN]);
}

fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(|| Keys::derive(&MasterKey::from_bytes(std::array::from_fn(|i| i as u8))))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BODIES: [fn(&[u8]); 5] = [key_file, base91, stored_name, container_header, record];

    #[test]
    fn odd_inputs_pass_through_every_body() {
        let edges = [0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 69, 70, 77, 78, 79, 255, 293, 4096, 4097, 65_575, 65_577];
        let fills = [0x00, 0x01, 0x20, 0x2d, 0x2e, 0x2f, 0x3a, 0x41, 0x7f, 0x80, 0xc3, 0xff];
        for body in BODIES {
            for len in edges {
                fills.iter().for_each(|&fill| body(&vec![fill; len]));
            }
        }
    }

    #[test]
    fn odd_names_pass() {
        for (parent, name) in [
            ("", "-L2"),
            ("", "-N2"),
            ("a", "-L2-"),
            ("a", "-L2:."),
            ("a/b", "é-"),
            ("/", "."),
            ("\u{10ffff}", ".."),
            ("x", "\u{feff}"),
            ("", &"é".repeat(97)),
            ("", &"é".repeat(98)),
            ("", &"🦀".repeat(63)),
            ("", &"🦀".repeat(64)),
        ] {
            stored_name(format!("{parent}\0{name}").as_bytes());
            stored_name(format!("{parent}\0{name}\0HFEN\x02{}", "z".repeat(288)).as_bytes());
        }
    }

    #[test]
    fn odd_headers_pass() {
        for prefix in [*b"HFEB\x01\x02", *b"HFEB\x02\x02", *b"HFEB\x03\x02", *b"HFEB\x01\x01", *b"HFEC\x01\x02"] {
            for len in [0, 69, 70, 71, 65_638, 131_206, 1 << 63, u64::MAX - 1, u64::MAX] {
                for fill in [0, 1, 0xff] {
                    let head = [&prefix[..], b"AEGISRAF\x40\x00\x01\x02\x00\x00\x01\x00", &[fill; 48]].concat();
                    container_header(&[&u64::to_le_bytes(len), &head[..]].concat());
                    container_header(&[&u64::to_le_bytes(len), &head[6..]].concat());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_short_input_passes_through_every_body(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            for body in BODIES {
                body(&data);
            }
        }
    }
}
