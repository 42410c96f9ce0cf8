//! The simulator keeps what a disk promises, and loses all it may.

use super::*;
use std::collections::BTreeSet;

const ROOT: &str = "/sim";

fn at(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

/// What the cuts of many seeds leave of what `make` does.
fn outcomes<T: Ord>(make: impl Fn(&SimDisk), look: impl Fn(&SimDisk) -> T) -> BTreeSet<T> {
    let outcome = |seed: u64| {
        let disk = SimDisk::new(Path::new(ROOT));
        make(&disk);
        look(&disk.cut(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15), Path::new(ROOT)))
    };
    (1..4000).map(outcome).collect()
}

fn write(disk: &SimDisk, name: &str, bytes: &[u8]) -> Box<dyn DiskFile> {
    let file = disk.create(&at(name), Existing::Kept).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

fn read(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    let file = disk.open(&at(name)).ok()?;
    let mut bytes = vec![0; file.size().unwrap() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    Some(bytes)
}

fn sync_root(disk: &SimDisk) {
    disk.sync_folder(Path::new(ROOT)).unwrap();
}

#[test]
fn what_was_synced_is_there_and_nothing_else_is_sure() {
    let make = |synced: bool, named: bool| {
        outcomes(
            |disk| {
                let file = write(disk, "a", b"content");
                if synced {
                    file.sync_data().unwrap();
                }
                if named {
                    sync_root(disk);
                }
            },
            |disk| read(disk, "a"),
        )
    };
    let (all, nothing) = (Some(b"content".to_vec()), Some(Vec::new()));
    assert_eq!(make(true, true), BTreeSet::from([all.clone()]));
    assert_eq!(make(true, false), BTreeSet::from([None, all.clone()]));
    assert_eq!(make(false, true), BTreeSet::from([nothing, Some(vec![0; 7]), all]));
}

#[test]
fn every_sector_is_lost_by_itself() {
    let kept = outcomes(
        |disk| {
            let file = write(disk, "a", &[1; 3 * SECTOR]);
            file.sync().unwrap();
            sync_root(disk);
            file.write_all_at(&[2; 3 * SECTOR], 0).unwrap();
            file.write_all_at(&[3; 2 * SECTOR], SECTOR as u64 / 2).unwrap();
        },
        |disk| read(disk, "a").unwrap(),
    );
    let firsts: BTreeSet<_> = kept.iter().map(|bytes| [0, SECTOR, 2 * SECTOR].map(|at| bytes[at])).collect();
    let all = [1, 2].into_iter().flat_map(|a| [1, 2, 3].map(|b| [1, 2, 3].map(|c| [a, b, c])));
    assert_eq!(firsts, all.flatten().collect());
    assert!(kept.iter().all(|bytes| bytes.chunks(SECTOR / 2).all(|half| half.iter().all(|byte| *byte == half[0]))));
}

#[test]
fn a_length_is_one_that_the_file_had() {
    let lens = outcomes(
        |disk| {
            let file = write(disk, "a", &[1; 100]);
            file.sync().unwrap();
            sync_root(disk);
            file.set_len(10).unwrap();
            file.allocate(0, 200, Beyond::Reserves).unwrap();
            file.allocate(0, 5000, Beyond::Lengthens).unwrap();
        },
        |disk| {
            let bytes = read(disk, "a").unwrap();
            assert!(bytes.iter().skip(100).all(|byte| *byte == 0));
            bytes.len()
        },
    );
    assert_eq!(lens, BTreeSet::from([10, 100, 5000]));
}

#[test]
fn a_rename_leaves_one_name_and_a_synced_one_the_new() {
    let names = |synced: bool| {
        outcomes(
            |disk| {
                disk.create_folder(&at("d")).unwrap();
                write(disk, "a", b"new").sync().unwrap();
                write(disk, "d/b", b"old").sync().unwrap();
                sync_root(disk);
                disk.sync_folder(&at("d")).unwrap();
                assert!(!disk.rename_new(&at("a"), &at("d/b")).unwrap());
                disk.rename(&at("a"), &at("d/b")).unwrap();
                if synced {
                    disk.sync_folder(&at("d")).unwrap();
                }
            },
            |disk| (read(disk, "a"), read(disk, "d/b")),
        )
    };
    let (old, new) = (Some(b"old".to_vec()), Some(b"new".to_vec()));
    assert_eq!(names(true), BTreeSet::from([(None, new.clone())]));
    assert_eq!(names(false), BTreeSet::from([(None, new.clone()), (new, old)]));
}

#[test]
fn a_folder_that_was_not_synced_above_may_go_with_all_that_is_in_it() {
    let names = outcomes(
        |disk| {
            disk.create_folder(&at("d")).unwrap();
            write(disk, "d/a", b"x").sync().unwrap();
            disk.sync_folder(&at("d")).unwrap();
        },
        |disk| read(disk, "d/a"),
    );
    assert_eq!(names, BTreeSet::from([None, Some(b"x".to_vec())]));
}

#[test]
fn the_old_machine_can_do_nothing_more() {
    let disk = SimDisk::new(Path::new(ROOT));
    let file = write(&disk, "a", b"x");
    let after = disk.kill(Path::new("/other"));
    assert!(file.write_all_at(b"y", 0).is_err() && file.sync().is_err() && disk.open(&at("a")).is_err());
    assert!(disk.has_ended() && !after.has_ended());
    let mut byte = [0];
    after.open(Path::new("/other/a")).unwrap().read_exact_at(&mut byte, 0).unwrap();
    assert_eq!(byte, *b"x");
}

#[test]
fn a_kill_syncs_nothing() {
    let disk = SimDisk::new(Path::new(ROOT));
    write(&disk, "a", b"x");
    let lost = (1..100).any(|seed| {
        let disk = SimDisk::new(Path::new(ROOT));
        write(&disk, "a", b"x");
        let disk = disk.kill(Path::new(ROOT));
        assert!(read(&disk, "a").is_some());
        read(&disk.cut(seed * 0x9e37_79b9, Path::new(ROOT)), "a").is_none()
    });
    assert!(lost);
}

#[test]
fn the_last_call_is_half_done_and_not_answered() {
    let disk = SimDisk::new(Path::new(ROOT));
    let file = write(&disk, "a", b"1234");
    disk.end_after(1);
    file.write_all_at(b"56", 4).unwrap();
    assert!(file.write_all_at(b"7890", 6).is_err());
    assert!(disk.has_ended() && file.size().is_err());
    assert_eq!(read(&disk.kill(Path::new(ROOT)), "a").unwrap(), b"12345678");
}
