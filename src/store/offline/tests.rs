use super::*;
use crate::crypto::geometry::{Padding, RECORD_PLAIN};
use crate::crypto::{Format, Keys, MasterKey, SystemRandom};
use crate::store::{Error, PlainPath};
use std::io::Cursor;
use std::path::Path;

fn keys(byte: u8) -> Keys {
    Keys::derive(&MasterKey::from_bytes([byte; 32]))
}

fn plain(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

#[test]
fn sealed_content_of_known_or_unknown_length_opens_again() {
    let keys = keys(1);
    for format in [Format::V1, Format::V2] {
        for padding in [Padding::None, Padding::Padme] {
            for len in [0, 1, RECORD_PLAIN - 1, RECORD_PLAIN, RECORD_PLAIN + 1, 10 * RECORD_PLAIN + 5] {
                if format == Format::V1 && padding == Padding::Padme {
                    continue;
                }
                let plain = plain(len);
                let mut known = Vec::new();
                let sealed =
                    seal(&keys, format, padding, len as u64, &mut &plain[..], &mut known, &mut SystemRandom).unwrap();
                let mut unknown = Cursor::new(Vec::new());
                assert_eq!(
                    seal_unknown_len(&keys, format, padding, &mut &plain[..], &mut unknown, &mut SystemRandom).unwrap(),
                    sealed
                );
                for container in [known, unknown.into_inner()] {
                    assert_eq!(container.len() as u64, sealed.stored_len);
                    let mut out = Vec::new();
                    let read =
                        open_container(&keys, None, &mut &container[..], container.len() as u64, &mut out).unwrap();
                    assert_eq!((read, out == plain), (len as u64, true));
                }
            }
        }
    }
}

#[test]
fn file_that_changes_length_while_sealed_is_refused() {
    for (announced, real) in [(10, 9), (10, 11), (RECORD_PLAIN, RECORD_PLAIN + 1), (RECORD_PLAIN, 3)] {
        let result = seal(
            &keys(1),
            Format::V2,
            Padding::None,
            announced as u64,
            &mut &plain(real)[..],
            &mut Vec::new(),
            &mut SystemRandom,
        );
        assert!(matches!(result, Err(Error::LengthMismatch)), "{announced} {real}");
    }
}

#[test]
fn truncated_container_is_refused() {
    let keys = keys(1);
    let mut container = Vec::new();
    seal(&keys, Format::V2, Padding::None, 70_000, &mut &plain(70_000)[..], &mut container, &mut SystemRandom).unwrap();
    for len in [0, 1, 5, 69, 70, 71, 65_637, 65_638, 100_000, container.len() - 1] {
        let error = open_container(&keys, None, &mut &container[..len], len as u64, &mut Vec::new()).unwrap_err();
        assert!(error.is_integrity(), "{len}: {error}");
    }
    // The announced length is the old one, but the file has fewer bytes: it shrinks while it is read.
    let error =
        open_container(&keys, None, &mut &container[..100_000], container.len() as u64, &mut Vec::new()).unwrap_err();
    assert!(error.is_integrity());
}

fn tree(dir: &Path, keys: &Keys, files: &[(&str, Format)]) {
    for (path, format) in files {
        let source = dir.join("source");
        std::fs::write(&source, path.as_bytes()).unwrap();
        tree::encrypt(keys, *format, Padding::None, &source, &PlainPath::new(path).unwrap(), &dir.join("out")).unwrap();
    }
}

fn paths(found: &tree::Found) -> Vec<&str> {
    found.objects.iter().map(|object| object.path.as_str()).collect()
}

#[test]
fn tree_of_both_formats_decrypts_and_prefers_format_2() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    let long = "ü".repeat(127);
    let deep = format!("{long}/x/{long}");
    tree(
        dir.path(),
        &keys,
        &[("a", Format::V1), ("a", Format::V2), ("d/one", Format::V1), ("d/two", Format::V2), (&deep, Format::V2)],
    );
    let found = tree::walk(&keys, &tree::root_of(&dir.path().join("out")).unwrap()).unwrap();
    found.check_key().unwrap();
    assert_eq!(paths(&found), ["a", "d/one", "d/two", &deep]);
    assert_eq!(found.objects[0].format, Format::V2);
    assert_eq!((found.hidden.shadowed, found.hidden.foreign), (1, 0));
    for object in &found.objects {
        tree::decrypt(&keys, object, &dir.path().join("back")).unwrap();
        let back = std::fs::read(dir.path().join("back").join(object.path.as_str())).unwrap();
        assert_eq!(back, object.path.as_str().as_bytes());
    }
}

#[test]
fn foreign_entries_are_counted_and_useless_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    tree(dir.path(), &keys(1), &[("a", Format::V2), ("b/c", Format::V1)]);
    tree(dir.path(), &keys(2), &[("mine", Format::V2)]);
    let root = tree::root_of(&dir.path().join("out")).unwrap();
    let found = tree::walk(&keys(2), &root).unwrap();
    assert_eq!(paths(&found), ["mine"]);
    assert_eq!(found.hidden.foreign, 2);
    let found = tree::walk(&keys(3), &root).unwrap();
    assert!(matches!(found.check_key(), Err(Error::WrongKey { entries: 3 })));
}

#[test]
fn encryption_and_decryption_keep_times_of_files() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    for (index, time) in
        [(1_000_000_000_123i64), 1, 0, -54_750].into_iter().map(crate::store::mtime_from_millis).enumerate()
    {
        let (time, path) = (std::time::SystemTime::from(time), PlainPath::new(&format!("f{index}")).unwrap());
        let source = dir.path().join("source");
        std::fs::write(&source, b"content").unwrap();
        std::fs::File::options().write(true).open(&source).unwrap().set_modified(time).unwrap();
        tree::encrypt(&keys, Format::V2, Padding::None, &source, &path, &dir.path().join("out")).unwrap();
        let found = tree::walk(&keys, &dir.path().join("out/.enc")).unwrap();
        let object = found.objects.iter().find(|object| object.path == path).unwrap();
        assert_eq!(object.stored.metadata().unwrap().modified().unwrap(), time);
        tree::decrypt(&keys, object, &dir.path().join("back")).unwrap();
        let back = dir.path().join("back").join(path.as_str());
        assert_eq!(back.metadata().unwrap().modified().unwrap(), time);
    }
}

#[test]
fn damaged_object_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let keys = keys(1);
    tree(dir.path(), &keys, &[("a", Format::V2)]);
    let found = tree::walk(&keys, &dir.path().join("out/.enc")).unwrap();
    let object = &found.objects[0];
    let mut bytes = std::fs::read(&object.stored).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&object.stored, bytes).unwrap();
    assert!(tree::decrypt(&keys, object, &dir.path().join("back")).unwrap_err().is_integrity());
    assert!(tree::verify(&keys, object).unwrap_err().is_integrity());
    assert_eq!(std::fs::read_dir(dir.path().join("back")).unwrap().count(), 0);
}
