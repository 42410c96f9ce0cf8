//! Permission rules: tables, and a comparison with the kernel.

use super::*;
use crate::fs::Ino;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

const OWNER: u32 = 1000;
const GROUP: u32 = 2000;
const OTHER: u32 = 3000;

fn attr(ino: u64, kind: FileKind, mode: u16) -> Attr {
    let time = SystemTime::UNIX_EPOCH;
    Attr {
        ino: Ino(ino),
        kind,
        len: 0,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        mode,
        nlink: 1,
        uid: OWNER,
        gid: GROUP,
        device: 0,
        is_certain: true,
    }
}

fn file(mode: u16) -> Attr {
    attr(2, FileKind::File, mode)
}

fn directory(ino: u64, mode: u16) -> Attr {
    attr(ino, FileKind::Directory, mode)
}

fn caller(uid: u32, gid: u32, groups: &[u32]) -> Caller<'_> {
    Caller { uid, gid, groups }
}

/// Returns the errno of a refusal, 0 for none.
fn errno<T>(result: Result<T, Error>) -> i32 {
    result.err().map_or(0, |error| error.errno())
}

const YES: i32 = 0;
const NO: i32 = libc::EACCES;
const NOT_YOURS: i32 = libc::EPERM;

#[test]
fn first_class_that_fits_decides_access() {
    let [owner, member, other] = [caller(OWNER, 1, &[]), caller(OTHER, 1, &[7, GROUP]), caller(OTHER, 1, &[7])];
    for (mode, access, expected) in [
        (0o400, READ, [YES, NO, NO]),
        (0o040, READ, [NO, YES, NO]),
        (0o004, READ, [NO, NO, YES]),
        (0o640, READ | WRITE, [YES, NO, NO]),
        (0o077, READ, [NO, YES, YES]),
        (0o707, EXECUTE, [YES, NO, YES]),
        (0o111, EXECUTE, [YES, YES, YES]),
        (0o7000, READ, [NO, NO, NO]),
        (0, 0, [YES, YES, YES]),
    ] {
        let found = [owner, member, other].map(|caller| errno(caller.check_access(&file(mode), access)));
        assert_eq!(found, expected, "{mode:o} {access:o}");
    }
    assert_eq!(errno(caller(OTHER, GROUP, &[]).check_access(&file(0o040), READ)), YES);
}

#[test]
fn root_may_do_everything_but_execute_what_no_one_may() {
    let root = caller(0, 0, &[]);
    assert_eq!(errno(root.check_access(&file(0), READ | WRITE)), YES);
    assert_eq!(errno(root.check_access(&file(0o666), EXECUTE)), NO);
    for mode in [0o100, 0o010, 0o001] {
        assert_eq!(errno(root.check_access(&file(mode), READ | WRITE | EXECUTE)), YES);
    }
    assert_eq!(errno(root.check_access(&directory(3, 0), READ | WRITE | EXECUTE)), YES);
}

#[test]
fn entry_of_sticky_directory_is_removed_by_its_owner_the_directorys_owner_or_root() {
    let (plain, sticky) = (directory(3, 0o777), directory(3, 0o1777));
    let foreign = Attr { uid: 5, ..file(0o666) };
    for (uid, entry, expected) in [
        (OWNER, &foreign, YES),
        (5, &foreign, YES),
        (0, &foreign, YES),
        (OTHER, &foreign, NOT_YOURS),
        (OTHER, &file(0o666), NOT_YOURS),
    ] {
        assert_eq!(errno(caller(uid, 1, &[]).check_remove(&sticky, entry)), expected, "{uid}");
        assert_eq!(errno(caller(uid, 1, &[]).check_remove(&plain, entry)), YES);
    }
    // Without access to the directory, its stickiness doesn't matter.
    assert_eq!(errno(caller(OTHER, 1, &[]).check_remove(&directory(3, 0o1775), &foreign)), NO);
    assert_eq!(errno(caller(OTHER, 1, &[]).check_create(&directory(3, 0o772))), NO);
    assert_eq!(errno(caller(OTHER, 1, &[]).check_create(&directory(3, 0o773))), YES);
}

#[test]
fn rename_needs_both_directories_the_replaced_entry_and_a_moved_directory() {
    let other = caller(OTHER, 1, &[]);
    let (open, closed, sticky) = (directory(3, 0o777), directory(4, 0o755), directory(5, 0o1777));
    let rename = |from: &Attr, entry: &Attr, to: &Attr, replaced: Option<&Attr>| {
        errno(other.check_rename(from, entry, to, replaced))
    };
    assert_eq!(rename(&open, &file(0), &open, None), YES);
    assert_eq!(rename(&open, &file(0), &closed, None), NO);
    assert_eq!(rename(&closed, &file(0), &open, None), NO);
    assert_eq!(rename(&open, &file(0), &sticky, None), YES);
    assert_eq!(rename(&open, &file(0), &sticky, Some(&file(0o666))), NOT_YOURS);
    assert_eq!(rename(&sticky, &file(0o666), &open, None), NOT_YOURS);
    assert_eq!(rename(&open, &directory(9, 0o755), &directory(8, 0o777), None), NO);
    assert_eq!(rename(&open, &directory(9, 0o777), &directory(8, 0o777), None), YES);
    assert_eq!(rename(&open, &directory(9, 0o755), &open, None), YES);
}

#[test]
fn attributes_are_changed_by_the_owner_or_root_within_limits() {
    let (root, owner, other) = (caller(0, 0, &[]), caller(OWNER, 7, &[8]), caller(OTHER, 7, &[8]));
    let now = SystemTime::UNIX_EPOCH;
    let set =
        |caller: Caller<'_>, set: SetAttr, times_are_now| errno(caller.check_setattr(&file(0o646), set, times_are_now));
    let none = SetAttr::default();
    for (change, times_are_now, expected) in [
        (SetAttr { mode: Some(0o600), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { uid: Some(5), ..none }, false, [YES, NOT_YOURS, NOT_YOURS]),
        (SetAttr { uid: Some(OWNER), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { gid: Some(5), ..none }, false, [YES, NOT_YOURS, NOT_YOURS]),
        (SetAttr { gid: Some(8), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { gid: Some(GROUP), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { mtime: Some(now), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { mtime: Some(now), ..none }, true, [YES, YES, YES]),
        (SetAttr { atime: Some(now), ..none }, false, [YES, YES, NOT_YOURS]),
        (SetAttr { len: Some(0), ..none }, false, [YES, YES, YES]),
    ] {
        let found = [root, owner, other].map(|caller| set(caller, change, times_are_now));
        assert_eq!(found, expected, "{change:?}");
    }
    let touch = SetAttr { mtime: Some(now), ..none };
    assert_eq!(errno(other.check_setattr(&file(0o644), touch, true)), NO);
    assert_eq!(errno(owner.check_setattr(&file(0o444), SetAttr { len: Some(0), ..none }, false)), NO);
}

#[test]
fn mode_loses_its_set_group_id_bit_if_the_caller_is_not_in_the_group() {
    let mode = |caller: Caller<'_>, gid| {
        let set = SetAttr { mode: Some(0o2755), gid, ..SetAttr::default() };
        caller.check_setattr(&file(0o755), set, false).unwrap().mode
    };
    assert_eq!(mode(caller(OWNER, 7, &[]), None), Some(0o755));
    assert_eq!(mode(caller(OWNER, 7, &[]), Some(7)), Some(0o2755));
    assert_eq!(mode(caller(OWNER, 7, &[GROUP]), None), Some(0o2755));
    assert_eq!(mode(caller(0, 0, &[]), None), Some(0o2755));
}

/// Runs a shell script in `folder` as a user, and returns its lines.
fn lines_of(folder: &Path, uid: u32, gid: u32, script: &str) -> Vec<String> {
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).uid(uid).gid(gid).output().unwrap();
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
#[ignore = "needs root and /dev/fuse"]
fn access_and_removal_are_allowed_exactly_if_the_kernel_allows_them() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let make = |path: &Path, kind, mode, uid| {
        match kind {
            FileKind::Directory => fs::create_dir(path).unwrap(),
            _ => fs::write(path, b"").unwrap(),
        }
        chown(path, Some(uid), Some(GROUP)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in 0..0o1000_u32 {
        make(&root.join(format!("f{mode}")), FileKind::File, mode, OWNER);
        make(&root.join(format!("d{mode}")), FileKind::Directory, mode, OWNER);
    }
    let probe = "for f in f* d*; do for a in r w x; do test -$a $f && echo $f $a; done; done; true";
    let callers = [(0, 0), (OWNER, 1), (OTHER, GROUP), (OTHER, 1)];
    for (uid, gid) in callers {
        let mut expected = Vec::new();
        for mode in 0..0o1000_u16 {
            for (letter, attr) in [("f", file(mode)), ("d", directory(3, mode))] {
                let allowed = |access| caller(uid, gid, &[]).check_access(&attr, access).is_ok();
                let allowed =
                    [("r", READ), ("w", WRITE), ("x", EXECUTE)].map(|(a, access)| allowed(access).then_some(a));
                expected.extend(allowed.into_iter().flatten().map(|a| format!("{letter}{mode} {a}")));
            }
        }
        let mut found = lines_of(root, uid, gid, probe);
        found.sort();
        expected.sort();
        assert!(found == expected, "as {uid}:{gid}");
    }
    for (number, mode) in [0o755, 0o777, 0o1777, 0o1775, 0o1757, 0o773].into_iter().enumerate() {
        for (uid, gid) in callers {
            let (folder, path) = (directory(3, mode), root.join(format!("s{number}-{uid}-{gid}")));
            make(&path, FileKind::Directory, mode.into(), OWNER);
            let mut expected = Vec::new();
            for (name, owner) in [("mine", OTHER), ("theirs", OWNER), ("foreign", 5)] {
                make(&path.join(name), FileKind::File, 0o666, owner);
                let entry = Attr { uid: owner, ..file(0o666) };
                if caller(uid, gid, &[]).check_remove(&folder, &entry).is_ok() {
                    expected.push(name.to_owned());
                }
            }
            let script = "for f in mine theirs foreign; do rm -f $f 2>/dev/null && echo $f; done; true";
            assert_eq!(lines_of(&path, uid, gid, script), expected, "{mode:o} as {uid}:{gid}");
        }
    }
}
