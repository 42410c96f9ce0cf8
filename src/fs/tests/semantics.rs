//! Semantics of each operation, as a program sees them.

use super::Mount;
use crate::fs::lock::lock;
use crate::fs::memory_view::MemoryView;
use crate::fs::{Access, Create, Error, FileKind, Ino, NewAttrs, SetAttr};
use crate::store::deadline::within;
use crate::store::{Change, Len, stored_mtime};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use time::OffsetDateTime;

fn map(files: &[(&str, &[u8])]) -> std::collections::BTreeMap<String, Vec<u8>> {
    files.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect()
}

macro_rules! refused {
    ($result:expr, $errno:ident) => {
        match $result {
            Ok(_) => panic!("not refused"),
            Err(error) => assert_eq!(error.errno(), libc::$errno, "{error}"),
        }
    };
}

#[tokio::test]
async fn written_file_reads_back_immediately_and_is_uploaded_by_flush() {
    let mount = Mount::new().await;
    let data: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    mount.write("a", &data).await.unwrap();
    assert_eq!(mount.read("a").await.unwrap(), data);
    assert!(mount.remote().is_empty());
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", &data)]));
    assert_eq!(mount.read("a").await.unwrap(), data);
    assert_eq!(mount.stat("a").await.unwrap().len, 200_000);
}

#[tokio::test]
async fn edit_in_middle_keeps_rest() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", &[b'x'; 150_000]);
    mount.write_at("a", 70_000, b"yes").await.unwrap();
    let mut expected = vec![b'x'; 150_000];
    expected[70_000..70_003].copy_from_slice(b"yes");
    assert_eq!(mount.read("a").await.unwrap(), expected);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", &expected)]));
}

#[tokio::test]
async fn write_past_end_and_longer_truncation_fill_with_zeros() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.write_at("a", 70_000, b"2").await.unwrap();
    mount.truncate("a", 140_000).await.unwrap();
    let mut expected = vec![0; 140_000];
    (expected[0], expected[70_000]) = (b'1', b'2');
    assert_eq!(mount.read("a").await.unwrap(), expected);
    mount.truncate("a", 3).await.unwrap();
    mount.truncate("a", 5).await.unwrap();
    assert_eq!(mount.read("a").await.unwrap(), b"1\0\0\0\0");
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"1\0\0\0\0")]));
}

#[tokio::test]
async fn append_ignores_offset_of_kernel() {
    let mount = Mount::new().await;
    mount.view.put_foreign("log", b"one ");
    let handle = mount.open("log", libc::O_WRONLY | libc::O_APPEND).await.unwrap();
    mount.put(handle, 0, b"two ").await.unwrap();
    mount.put(handle, 1, b"three").await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.read("log").await.unwrap(), b"one two three");
}

#[tokio::test]
async fn exclusive_create_of_existing_file_is_refused() {
    let mount = Mount::new().await;
    mount.view.put_foreign("there", b"");
    refused!(mount.open("there", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).await, EEXIST);
    mount.write("new", b"").await.unwrap();
    refused!(mount.open("new", libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL).await, EEXIST);
}

#[tokio::test]
async fn empty_file_is_uploaded() {
    let mount = Mount::new().await;
    mount.write("empty", b"").await.unwrap();
    mount.view.put_foreign("full", b"full");
    mount.truncate("full", 0).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("empty", b""), ("full", b"")]));
}

#[tokio::test]
async fn removed_file_stays_readable_and_writable_while_open() {
    let mount = Mount::new().await;
    mount.view.put_foreign("clean", b"clean");
    mount.write("dirty", b"dirty").await.unwrap();
    let clean = mount.open("clean", libc::O_RDONLY).await.unwrap();
    let dirty = mount.open("dirty", libc::O_RDWR).await.unwrap();
    mount.unlink("clean").await.unwrap();
    mount.unlink("dirty").await.unwrap();
    assert!(mount.names("").await.is_empty());
    mount.put(dirty, 5, b" more").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.read_all(clean).await.unwrap(), b"clean");
    assert_eq!(mount.read_all(dirty).await.unwrap(), b"dirty more");
    mount.close(clean).await.unwrap();
    mount.close(dirty).await.unwrap();
    assert!(mount.remote().is_empty());
    mount.staging_empties().await;
}

#[tokio::test]
async fn file_removed_before_flush_is_never_uploaded() {
    let mount = Mount::new().await;
    mount.write("a", b"secret").await.unwrap();
    mount.unlink("a").await.unwrap();
    mount.flush().await;
    assert!(mount.view.take_commits().is_empty());
}

#[tokio::test]
async fn removed_and_recreated_file_is_one_change_at_remote() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    mount.view.put_foreign("b", b"old");
    // A batch in flight keeps the removal in the queue.
    let held = mount.view.hold_commits().await;
    mount.unlink("b").await.unwrap();
    while !mount.vfs.journal.ledger().queue().iter().any(|(op, _)| mount.vfs.schedule.is_running(op)) {
        tokio::task::yield_now().await;
    }
    mount.unlink("a").await.unwrap();
    mount.write("a", b"new").await.unwrap();
    drop(held);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"new")]));
    let commits = mount.view.take_commits().concat();
    let changes: Vec<_> = commits.iter().filter(|op| op.path.as_str() == "a").map(|op| &op.change).collect();
    assert!(matches!(changes[..], [Change::Put { .. }]), "{} changes", changes.len());
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn file_recreated_during_commit_of_removal_is_kept() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    let held = mount.view.hold_commits().await;
    mount.unlink("a").await.unwrap();
    while !mount.vfs.journal.ledger().queue().iter().any(|(op, _)| mount.vfs.schedule.is_running(op)) {
        tokio::task::yield_now().await;
    }
    mount.write("a", b"new").await.unwrap();
    drop(held);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"new")]));
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn editor_save_by_rename_commits_once() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    mount.write("a.tmp", b"new").await.unwrap();
    mount.rename("a.tmp", "a").await.unwrap();
    assert_eq!(mount.names("").await, ["a"]);
    assert_eq!(mount.read("a").await.unwrap(), b"new");
    mount.flush().await;
    let commits = mount.view.take_commits();
    assert_eq!(commits.iter().map(Vec::len).sum::<usize>(), 1);
    assert_eq!(mount.remote(), map(&[("a", b"new")]));
}

#[tokio::test]
async fn editor_save_with_backup_keeps_both_files() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    mount.rename("a", "a~").await.unwrap();
    mount.write("a", b"new").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"new"), ("a~", b"old")]));
    mount.unlink("a~").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"new")]));
}

#[tokio::test]
async fn renamed_file_replaces_target() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    mount.view.put_foreign("d/b", b"b");
    refused!(mount.rename_as("a", "d/b", false).await, EEXIST);
    mount.rename("a", "d/b").await.unwrap();
    refused!(mount.stat("a").await, ENOENT);
    assert_eq!(mount.read("d/b").await.unwrap(), b"a");
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("d/b", b"a")]));
    refused!(mount.rename("d/b", "d").await, EISDIR);
    refused!(mount.rename("d", "d/b").await, EINVAL);
}

#[tokio::test]
async fn dirty_file_renamed_before_flush_is_committed_at_new_path_only() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.rename("a", "b").await.unwrap();
    mount.rename("b", "c").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("c", b"1")]));
    let paths: Vec<_> = mount.view.take_commits().into_iter().flatten().map(|op| op.path.as_str().to_owned()).collect();
    assert_eq!(paths, ["c"]);
}

#[tokio::test]
async fn edited_file_renamed_before_flush_is_removed_from_old_path() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"old");
    mount.write_at("a", 0, b"new").await.unwrap();
    mount.rename("a", "b").await.unwrap();
    mount.write_at("b", 3, b"er").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("b", b"newer")]));
}

#[tokio::test]
async fn directory_rename_moves_all_entries() {
    let mount = Mount::new().await;
    mount.view.put_foreign("d/x/one", b"1");
    mount.view.put_foreign("d/two", b"2");
    mount.write("d/x/three", b"3").await.unwrap();
    mount.mkdir("d/empty").await.unwrap();
    mount.write_at("d/two", 1, b"!").await.unwrap();
    mount.mkdir("e").await.unwrap();
    mount.rename("d", "e/f").await.unwrap();
    let before = mount.tree().await;
    let keys: Vec<_> = before.keys().map(String::as_str).collect();
    assert_eq!(keys, ["e", "e/f", "e/f/empty", "e/f/two", "e/f/x", "e/f/x/one", "e/f/x/three"]);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("e/f/two", b"2!"), ("e/f/x/one", b"1"), ("e/f/x/three", b"3")]));
    assert_eq!(mount.tree().await, before);
}

#[tokio::test]
async fn renamed_directory_listing_is_equal_before_during_and_after_commit() {
    let mount = Mount::new().await;
    for i in 0..20 {
        mount.view.put_foreign(&format!("d/{i}"), b"x");
    }
    mount.view.put_foreign("d/gone", b"x");
    let held = mount.view.hold_commits().await;
    mount.unlink("d/gone").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    mount.mkdir("d").await.unwrap();
    mount.write("d/new", b"n").await.unwrap();
    assert_eq!(mount.names("e").await.len(), 20);
    assert_eq!(mount.names("d").await, ["new"]);
    assert_eq!(mount.names("").await, ["d", "e"]);
    drop(held);
    mount.flush().await;
    assert_eq!(mount.names("e").await.len(), 20);
    assert_eq!(mount.names("d").await, ["new"]);
    assert_eq!(mount.remote().len(), 21);
}

#[tokio::test]
async fn directory_rename_replaces_only_empty_directory() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a/f", b"");
    mount.view.put_foreign("b/f", b"");
    refused!(mount.rename("a", "b").await, ENOTEMPTY);
    mount.view.put_foreign("file", b"");
    refused!(mount.rename("a", "file").await, ENOTDIR);
    mount.unlink("b/f").await.unwrap();
    mount.rename("a", "b").await.unwrap();
    assert_eq!(mount.names("").await, ["b", "file"]);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("b/f", b""), ("file", b"")]));
}

#[tokio::test]
async fn directory_stays_until_removed() {
    let mount = Mount::new().await;
    mount.mkdir("empty").await.unwrap();
    mount.view.put_foreign("d/f", b"");
    mount.unlink("d/f").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.names("").await, ["d", "empty"]);
    refused!(mount.mkdir("empty").await, EEXIST);
    refused!(mount.unlink("empty").await, EISDIR);
    mount.rmdir("empty").await.unwrap();
    mount.rmdir("d").await.unwrap();
    assert!(mount.names("").await.is_empty());
}

#[tokio::test]
async fn removal_of_non_empty_directory_is_refused() {
    let mount = Mount::new().await;
    mount.view.put_foreign("d/f", b"");
    refused!(mount.rmdir("d").await, ENOTEMPTY);
    refused!(mount.rmdir("d/f").await, ENOTDIR);
    mount.mkdir("hidden").await.unwrap();
    mount.view.set_unreadable("hidden", 3);
    refused!(mount.rmdir("hidden").await, ENOTEMPTY);
    refused!(mount.rename("hidden", "moved").await, ENOTEMPTY);
}

#[tokio::test]
async fn removed_tree_stays_removed_while_remote_still_has_it() {
    let mount = Mount::new().await;
    for i in 0..5 {
        mount.view.put_foreign(&format!("d/{i}"), b"x");
    }
    let held = mount.view.hold_commits().await;
    for i in 0..5 {
        mount.unlink(&format!("d/{i}")).await.unwrap();
    }
    mount.rmdir("d").await.unwrap();
    assert!(mount.names("").await.is_empty());
    mount.mkdir("d").await.unwrap();
    assert!(mount.names("d").await.is_empty());
    mount.write("d/1", b"new").await.unwrap();
    assert_eq!(mount.names("d").await, ["1"]);
    drop(held);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("d/1", b"new")]));
}

#[tokio::test]
async fn foreign_changes_and_removals_are_shown() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"1");
    assert_eq!(mount.read("a").await.unwrap(), b"1");
    mount.view.put_foreign("a", b"22");
    mount.view.put_foreign("b", b"");
    assert_eq!(mount.stat("a").await.unwrap().len, 2);
    assert_eq!(mount.read("a").await.unwrap(), b"22");
    mount.view.delete_foreign("a");
    assert_eq!(mount.names("").await, ["b"]);
    mount.view.delete_foreign("b");
    mount.view.put_foreign("b/c", b"");
    assert_eq!(mount.stat("b").await.unwrap().kind, FileKind::Directory);
}

#[tokio::test]
async fn reader_keeps_version_that_it_opened() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"first version");
    let old = mount.find("a").await.unwrap();
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    assert_eq!(&mount.vfs.read(handle, 0, 5).await.unwrap()[..], b"first");
    mount.view.put_foreign("a", b"other content");
    assert_eq!(mount.read("a").await.unwrap(), b"other content");
    assert_eq!(mount.read_all(handle).await.unwrap(), b"first version");
    // The kernel's pages belong to an inode. So two versions that are open concurrently need two inodes.
    assert_ne!(mount.find("a").await.unwrap(), old);
}

#[tokio::test]
async fn reader_sees_writes_of_same_mount() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"first");
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    assert_eq!(mount.read_all(handle).await.unwrap(), b"first");
    mount.write("a", b"second").await.unwrap();
    assert_eq!(mount.read_all(handle).await.unwrap(), b"second");
    mount.flush().await;
    assert_eq!(mount.read_all(handle).await.unwrap(), b"second");
}

#[tokio::test]
async fn page_cache_is_kept_only_for_equal_content() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"1");
    let ino = mount.find("a").await.unwrap();
    let open = async || {
        let opened = mount.vfs.open(mount.find("a").await.unwrap(), Access::from_flags(libc::O_RDONLY)).await.unwrap();
        mount.vfs.release(opened.handle).await.unwrap();
        opened.keep_cache
    };
    assert!(!open().await);
    assert!(open().await);
    mount.view.put_foreign("a", b"2");
    assert!(!open().await);
    assert_eq!(mount.find("a").await.unwrap(), ino);
}

#[tokio::test]
async fn open_directory_is_paged_as_when_opened() {
    let mount = Mount::new().await;
    for name in ["a", "b", "c"] {
        mount.view.put_foreign(name, b"");
    }
    let handle = mount.vfs.opendir(Ino::ROOT).await.unwrap();
    mount.unlink("a").await.unwrap();
    mount.write("b2", b"").await.unwrap();
    let mut seen: Vec<(String, u64)> = Vec::new();
    loop {
        let offset = seen.last().map_or(0, |(_, next)| *next);
        let mut page = Vec::new();
        let one = |entry: &crate::fs::Listed, next| {
            page.push((entry.name.clone(), next));
            true
        };
        mount.vfs.readdir(handle, offset, one).unwrap();
        if page.is_empty() {
            break;
        }
        seen.append(&mut page);
    }
    let seen: Vec<_> = seen.into_iter().map(|(name, _)| name).collect();
    assert_eq!(seen, [".", "..", "a", "b", "c"]);
}

#[tokio::test]
async fn listing_with_attributes_counts_reference_per_accepted_entry() {
    let mount = Mount::new().await;
    mount.view.hide_sizes();
    mount.view.put_foreign("a", b"123");
    mount.view.put_foreign("b", b"4");
    let handle = mount.vfs.opendir(Ino::ROOT).await.unwrap();
    mount.vfs.measure_page(handle, 0).await.unwrap();
    let mut lens = Vec::new();
    mount
        .vfs
        .readdirplus(handle, 2, |entry, attr, _| {
            lens.push((entry.name.clone(), attr.len, attr.is_certain));
            entry.name == "b"
        })
        .unwrap();
    assert_eq!(lens, [("a".into(), 3, true), ("b".into(), 1, true)]);
    let (a, b) = (mount.find("a").await.unwrap(), mount.find("b").await.unwrap());
    mount.vfs.releasedir(handle).unwrap();
    mount.unlink("a").await.unwrap();
    mount.unlink("b").await.unwrap();
    assert!(mount.vfs.getattr(a).await.is_ok(), "the kernel still has it");
    refused!(mount.vfs.getattr(b).await, ENOENT);
    mount.vfs.forget(a, 1);
    refused!(mount.vfs.getattr(a).await, ENOENT);
}

#[tokio::test]
async fn unreadable_size_fails_lookup_but_not_listing() {
    let mount = Mount::with(|options| options.metadata_ttl = Duration::from_secs(60)).await;
    mount.view.hide_sizes();
    mount.view.put_foreign("a", b"123");
    assert_eq!(mount.names("").await, ["a"]);
    mount.view.set_offline(true);
    refused!(mount.vfs.lookup(Ino::ROOT, "a").await, EIO);
    let handle = mount.vfs.opendir(Ino::ROOT).await.unwrap();
    mount.vfs.measure_page(handle, 0).await.unwrap();
    let mut certain = Vec::new();
    mount
        .vfs
        .readdirplus(handle, 2, |_, attr, _| {
            certain.push(attr.is_certain);
            false
        })
        .unwrap();
    assert_eq!(certain, [false]);
}

#[tokio::test]
async fn missed_name_created_remotely_is_found_within_metadata_ttl() {
    let mount = Mount::with(|options| {
        options.metadata_ttl = Duration::from_secs(3600);
        options.negative_ttl = Duration::ZERO;
    })
    .await;
    mount.view.put_foreign("old", b"old");
    refused!(mount.stat("new").await, ENOENT);
    mount.view.put_foreign("new", b"new");
    mount.view.put_foreign("folder/deep/file", b"new");
    assert_eq!(mount.read("new").await.unwrap(), b"new");
    assert_eq!(mount.read("folder/deep/file").await.unwrap(), b"new");
    assert_eq!(mount.vfs.absent_for(Ino::ROOT), Duration::ZERO);
    mount.view.take_listed();
    for _ in 0..100 {
        assert!(mount.stat("old").await.is_ok() && mount.stat("folder/deep/file").await.is_ok());
    }
    assert_eq!(mount.view.take_listed(), 0, "names that are there cost nothing");
}

#[tokio::test]
async fn missed_names_cause_one_listing_per_negative_ttl() {
    for misses in [10, 100, 1000] {
        let mount = Mount::with(|options| {
            (options.metadata_ttl, options.negative_ttl) = (Duration::from_secs(3600), Duration::from_secs(1800));
        })
        .await;
        mount.view.put_foreign("old", b"old");
        for name in 0..misses {
            refused!(mount.stat(&format!("missed{name}")).await, ENOENT);
        }
        assert_eq!(mount.view.take_listed(), 1);
        let left = mount.vfs.absent_for(Ino::ROOT);
        assert!(!left.is_zero() && left <= Duration::from_secs(1800), "{left:?}");
    }
}

#[tokio::test]
async fn missed_names_in_large_directories_seldom_list_them() {
    for misses in [100, 1000] {
        let mount = Mount::with(|options| {
            (options.metadata_ttl, options.negative_ttl) = (Duration::from_secs(3600), Duration::ZERO);
        })
        .await;
        for directory in 0..4 {
            for file in 0..2500 {
                mount.view.put_foreign(&format!("{directory}/{file}"), b"");
            }
        }
        let began = Instant::now();
        for name in 0..misses {
            refused!(mount.stat(&format!("{}/missed{name}", name % 4)).await, ENOENT);
        }
        // The first listing of each, those of the first 10,000 entries, and 5,000 entries per second after that.
        let most = 5 + 4 + 4 + 2 * (began.elapsed().as_secs() as usize + 1);
        let listed = mount.view.take_listed() as usize;
        assert!((5..=most).contains(&listed), "{listed} of {most}");
    }
}

#[tokio::test]
async fn concurrently_missed_names_share_listing() {
    let mount = Mount::with(|options| {
        (options.metadata_ttl, options.negative_ttl) = (Duration::from_secs(3600), Duration::ZERO);
    })
    .await;
    assert!(mount.names("").await.is_empty());
    mount.view.take_listed();
    let held = mount.view.hold_listings().await;
    let lookups = futures::future::join_all((0..100).map(|name| {
        let vfs = mount.vfs.clone();
        async move { vfs.lookup(Ino::ROOT, &format!("missed{name}")).await.is_err() }
    }));
    let (missed, ()) = futures::future::join(lookups, async {
        tokio::task::yield_now().await;
        drop(held);
    })
    .await;
    assert!(missed.into_iter().all(|missed| missed));
    // Lookups that came after the first listing had begun share the second one.
    assert_eq!(mount.view.take_listed(), 2);
}

#[tokio::test]
async fn missed_name_uses_last_listing_while_remote_is_offline() {
    let mount = Mount::with(|options| {
        (options.metadata_ttl, options.negative_ttl) = (Duration::from_secs(3600), Duration::from_millis(1));
    })
    .await;
    assert!(mount.names("").await.is_empty());
    mount.view.set_offline(true);
    while !mount.vfs.absent_for(Ino::ROOT).is_zero() {
        tokio::task::yield_now().await;
    }
    mount.view.take_listed();
    refused!(mount.stat("missed").await, ENOENT);
    assert_eq!(mount.view.take_listed(), 1);
    mount.write("made here", b"1").await.unwrap();
}

#[tokio::test]
async fn failed_listing_is_error_not_empty_directory() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"");
    mount.view.set_offline(true);
    refused!(mount.list("").await, EIO);
    refused!(mount.stat("a").await, EIO);
    refused!(mount.stat("nothing").await, EIO);
}

#[tokio::test]
async fn local_files_are_usable_while_remote_is_offline() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.view.set_offline(true);
    mount.write_at("a", 1, b"2").await.unwrap();
    assert_eq!(mount.read("a").await.unwrap(), b"12");
    let drained = mount.vfs.flush(Some(Duration::from_millis(50))).await;
    assert_eq!((drained.flushed, drained.pending), (0, 1));
    let status = mount.vfs.status();
    assert_eq!((status.pending_files, status.pending_bytes, status.parked_files), (1, 2, 0));
    assert!(status.last_error.unwrap().contains("unplugged"));
    mount.view.set_offline(false);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"12")]));
}

#[tokio::test]
async fn plaintext_entries_of_mount_with_key_are_read_only() {
    let mount = Mount::new().await;
    for path in ["plain", "own", "d/f"] {
        mount.view.put_foreign(path, b"text");
    }
    mount.view.set_read_only("plain");
    mount.view.set_read_only("d");
    refused!(mount.open("plain", libc::O_WRONLY).await, EACCES);
    refused!(mount.open("plain", libc::O_RDONLY | libc::O_TRUNC).await, EACCES);
    refused!(mount.write("plain", b"").await, EACCES);
    refused!(mount.truncate("plain", 0).await, EACCES);
    refused!(mount.unlink("plain").await, EACCES);
    refused!(mount.rename("plain", "new").await, EACCES);
    refused!(mount.rename("own", "plain").await, EACCES);
    refused!(mount.rename("d", "e").await, EACCES);
    mount.write("d/new", b"encrypted").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.read("plain").await.unwrap(), b"text");
    assert_eq!(mount.remote()["d/new"], b"encrypted");
}

#[tokio::test]
async fn damaged_file_is_shown_but_never_overwritten() {
    let mount = Mount::new().await;
    mount.view.put_foreign("bad", b"garbage");
    mount.view.put_foreign("good", b"good");
    mount.view.set_damaged("bad");
    assert_eq!(mount.stat("bad").await.unwrap().len, 0);
    refused!(mount.read("bad").await, EIO);
    refused!(mount.open("bad", libc::O_WRONLY | libc::O_TRUNC).await, EIO);
    refused!(mount.truncate("bad", 0).await, EIO);
    refused!(mount.rename("good", "bad").await, EIO);
    let create = Create { access: Access::from_flags(libc::O_WRONLY), ..Create::default() };
    refused!(mount.vfs.create(Ino::ROOT, "bad", create).await, EIO);
    mount.unlink("bad").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("good", b"good")]));
}

/// Removes a file while the Hub accepts no changes of it.
async fn removed_later(mount: &Mount, path: &str) {
    mount.view.refuse_for_now(path);
    mount.unlink(path).await.unwrap();
    mount.vfs.flush(Some(Duration::from_millis(50))).await;
}

#[tokio::test]
async fn new_file_in_place_of_damaged_one_whose_removal_waits_is_committed() {
    for rename in [false, true] {
        let mount = Mount::new().await;
        mount.view.put_foreign("bad", b"garbage");
        mount.view.set_damaged("bad");
        removed_later(&mount, "bad").await;
        if rename {
            mount.write("new", b"good").await.unwrap();
            mount.rename("new", "bad").await.unwrap();
        } else {
            mount.write("bad", b"draft").await.unwrap();
            mount.unlink("bad").await.unwrap();
            mount.write("bad", b"good").await.unwrap();
        }
        mount.view.allow("bad");
        let drained = mount.vfs.flush(Some(Duration::from_secs(20))).await;
        assert_eq!((drained.pending, mount.vfs.status().parked_files, drained.conflicts), (0, 0, 0));
        assert_eq!(mount.remote(), map(&[("bad", b"good")]));
    }
}

#[tokio::test]
async fn new_file_in_place_of_one_that_turns_out_damaged_after_its_removal_is_committed() {
    let mount = Mount::new().await;
    mount.view.hide_sizes();
    mount.view.put_foreign("bad", b"garbage");
    assert_eq!(mount.names("").await, ["bad"]);
    mount.view.set_damaged("bad");
    removed_later(&mount, "bad").await;
    mount.write("bad", b"good").await.unwrap();
    mount.view.allow("bad");
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("bad", b"good")]));
}

#[tokio::test]
async fn rename_of_a_file_that_is_damaged_or_cannot_be_read_is_refused() {
    let mount = Mount::with(|options| options.metadata_ttl = Duration::from_secs(60)).await;
    mount.view.hide_sizes();
    mount.view.put_foreign("bad", b"garbage");
    mount.view.put_foreign("unread", b"content");
    mount.view.set_damaged("bad");
    refused!(mount.rename("bad", "moved").await, EIO);
    mount.view.set_offline(true);
    refused!(mount.rename("unread", "moved").await, EIO);
    mount.view.set_offline(false);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("bad", b"garbage"), ("unread", b"content")]));
    mount.rename("unread", "moved").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("bad", b"garbage"), ("moved", b"content")]));
}

#[tokio::test]
async fn read_only_mount_refuses_changes() {
    let mount = Mount::with(|options| options.read_only = true).await;
    mount.view.put_foreign("a", b"a");
    assert_eq!(mount.read("a").await.unwrap(), b"a");
    assert_eq!(mount.stat("a").await.unwrap().mode, 0o444);
    refused!(mount.write("a", b"").await, EROFS);
    refused!(mount.write("b", b"").await, EROFS);
    refused!(mount.mkdir("d").await, EROFS);
    refused!(mount.unlink("a").await, EROFS);
    refused!(mount.rename("a", "b").await, EROFS);
    refused!(mount.truncate("a", 0).await, EROFS);
}

#[tokio::test]
async fn unstorable_name_is_refused_before_any_change() {
    let mount = Mount::new().await;
    mount.write("a", b"").await.unwrap();
    let long = "x".repeat(256);
    refused!(mount.write(&long, b"").await, ENAMETOOLONG);
    refused!(mount.mkdir(&long).await, ENAMETOOLONG);
    refused!(mount.rename("a", &long).await, ENAMETOOLONG);
    refused!(mount.vfs.mkdir(Ino::ROOT, "..", NewAttrs::default()).await, EINVAL);
    assert_eq!(mount.names("").await, ["a"]);
}

#[tokio::test]
async fn file_cannot_exceed_size_limit() {
    let mount = Mount::new().await;
    mount.write("a", b"").await.unwrap();
    refused!(mount.truncate("a", 1 << 60).await, EFBIG);
    refused!(mount.write_at("a", 1 << 60, b"x").await, EFBIG);
    assert_eq!(mount.stat("a").await.unwrap().len, 0);
}

#[tokio::test]
async fn mtime_set_before_flush_is_committed() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let ino = mount.find("a").await.unwrap();
    let set = SetAttr { mtime: Some(time), mode: Some(0o600), ..SetAttr::default() };
    let attr = mount.vfs.setattr(ino, set).await.unwrap();
    assert_eq!((attr.mtime, attr.mode), (time, 0o600));
    mount.flush().await;
    assert_eq!(mount.view.mtime("a"), OffsetDateTime::from(time));
    assert_eq!(mount.stat("a").await.unwrap().mode, 0o600);
}

#[tokio::test]
async fn times_of_written_file_are_equal_before_and_after_flush() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.write("b", b"old").await.unwrap();
    mount.flush().await;
    mount.write("b", b"new").await.unwrap();
    let odd = SystemTime::UNIX_EPOCH - Duration::new(54, 749_123_456);
    let set = SetAttr { mtime: Some(odd), atime: Some(odd), ..SetAttr::default() };
    mount.vfs.setattr(mount.find("b").await.unwrap(), set).await.unwrap();
    let before = (mount.stat("a").await.unwrap(), mount.stat("b").await.unwrap());
    for time in [before.0.mtime, before.0.ctime, before.1.mtime, before.1.atime, before.1.ctime] {
        assert_eq!(OffsetDateTime::from(time).nanosecond() % 1_000_000, 0);
    }
    assert_eq!(before.1.mtime, SystemTime::UNIX_EPOCH - Duration::from_millis(54_750));
    mount.flush().await;
    assert_eq!((mount.stat("a").await.unwrap(), mount.stat("b").await.unwrap()), before);
    assert_eq!(mount.view.mtime("b"), OffsetDateTime::from(before.1.mtime));
}

#[tokio::test]
async fn time_of_own_version_stays_until_other_client_changes_it() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    mount.write("b", b"2").await.unwrap();
    let before = mount.stat("a").await.unwrap();
    mount.flush().await;
    // Newer than requested, because the commit replaced another version.
    let listed = stored_mtime(before.mtime) + time::Duration::HOUR;
    mount.view.set_mtime("a", listed);
    assert_eq!(mount.stat("a").await.unwrap(), before);
    assert_eq!(mount.stat("a").await.unwrap(), before);
    mount.view.set_mtime("a", listed + time::Duration::HOUR);
    assert_eq!(mount.stat("a").await.unwrap().mtime, SystemTime::from(listed + time::Duration::HOUR));

    let before = mount.stat("b").await.unwrap().mtime;
    mount.rename("b", "c").await.unwrap();
    mount.flush().await;
    mount.view.set_mtime("c", listed);
    assert_eq!(mount.stat("c").await.unwrap().mtime, before);
    mount.view.put_foreign("c", b"theirs");
    assert_eq!(mount.stat("c").await.unwrap().mtime, SystemTime::UNIX_EPOCH);
}

#[tokio::test]
async fn extended_attributes_show_side_and_hash() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", b"a");
    let ino = mount.find("a").await.unwrap();
    assert_eq!(mount.vfs.getxattr(ino, "user.hf.encrypted").unwrap(), b"0");
    let hash = crate::fs::memory_view::content_id(b"a").to_string();
    assert_eq!(mount.vfs.getxattr(ino, "user.hf.hash").unwrap(), hash.as_bytes());
    refused!(mount.vfs.getxattr(ino, "user.other"), ENODATA);
    mount.write_at("a", 0, b"b").await.unwrap();
    refused!(mount.vfs.getxattr(ino, "user.hf.hash"), ENODATA);
    assert_eq!(mount.vfs.listxattr(ino).unwrap(), b"");
    refused!(mount.vfs.getxattr(Ino::ROOT, "user.hf.hash"), ENODATA);
}

#[tokio::test]
async fn handle_refuses_operations_it_was_not_opened_for() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    let reader = mount.open("a", libc::O_RDONLY).await.unwrap();
    let writer = mount.open("a", libc::O_WRONLY).await.unwrap();
    refused!(mount.put(reader, 0, b"x").await, EBADF);
    refused!(mount.vfs.read(writer, 0, 1).await, EBADF);
    mount.close(reader).await.unwrap();
    refused!(mount.vfs.read(reader, 0, 1).await, EBADF);
}

#[tokio::test]
async fn streaming_writes_are_at_remote_when_close_returns() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    mount.write("a", b"all").await.unwrap();
    assert_eq!(mount.remote(), map(&[("a", b"all")]));
    mount.write("a", b"again").await.unwrap();
    assert_eq!(mount.remote(), map(&[("a", b"again")]));
}

#[tokio::test]
async fn streaming_refuses_edits_of_existing_files() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    mount.view.put_foreign("a", b"old");
    refused!(mount.open("a", libc::O_WRONLY).await, EPERM);
    refused!(mount.truncate("a", 1).await, EPERM);
    let handle = mount.open("b", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"12").await.unwrap();
    refused!(mount.put(handle, 5, b"3").await, EINVAL);
    refused!(mount.truncate("b", 10).await, EPERM);
    refused!(mount.truncate("b", 1).await, EPERM);
    mount.put(handle, 2, b"3").await.unwrap();
    mount.close(handle).await.unwrap();
    // An emptied file that the remote has.
    let handle = mount.open("b", libc::O_WRONLY | libc::O_TRUNC).await.unwrap();
    refused!(mount.unlink("b").await, EPERM);
    mount.close(handle).await.unwrap();
    mount.unlink("b").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"old")]));
}

#[tokio::test]
async fn unwritten_streaming_file_may_be_extended_and_is_written_from_start() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await.unwrap();
    mount.truncate("a", 200_000).await.unwrap();
    mount.truncate("a", 100_000).await.unwrap();
    refused!(mount.put(handle, 1, b"x").await, EINVAL);
    refused!(mount.put(handle, 100_000, b"x").await, EINVAL);
    mount.put(handle, 0, &[1; 70_000]).await.unwrap();
    refused!(mount.truncate("a", 200_000).await, EPERM);
    refused!(mount.put(handle, 100_000, b"x").await, EINVAL);
    mount.put(handle, 70_000, &[2; 10]).await.unwrap();
    mount.close(handle).await.unwrap();
    let expected = [&[1; 70_000][..], &[2; 10], &[0; 29_990]].concat();
    assert_eq!(mount.remote(), map(&[("a", &expected)]));
    // Past the requested size, and emptied in between.
    let handle = mount.open("a", libc::O_WRONLY | libc::O_TRUNC).await.unwrap();
    mount.truncate("a", 2).await.unwrap();
    mount.put(handle, 0, b"123").await.unwrap();
    mount.put(handle, 3, b"4").await.unwrap();
    mount.truncate("a", 0).await.unwrap();
    mount.put(handle, 0, b"56").await.unwrap();
    mount.close(handle).await.unwrap();
    assert_eq!(mount.remote(), map(&[("a", b"56")]));
}

#[tokio::test]
async fn streaming_file_removed_before_first_close_is_never_uploaded() {
    let mount = Mount::with(|options| {
        options.advanced_writes = false;
        options.flush_debounce = Duration::ZERO;
    })
    .await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await.unwrap();
    mount.put(handle, 0, b"12").await.unwrap();
    // Automatic flushes and those that a user requests have committed their files before this returns.
    mount.write("other", b"x").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("other", b"x")]));
    mount.unlink("a").await.unwrap();
    mount.put(handle, 2, b"34").await.unwrap();
    assert_eq!(&mount.vfs.read(handle, 0, 10).await.unwrap()[..], b"1234");
    mount.close(handle).await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("other", b"x")]));
    assert!(!mount.view.has_content(b"12") && !mount.view.has_content(b"1234"));
}

#[tokio::test]
async fn open_streaming_file_counts_as_pending_except_for_flush() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    let handle = mount.open("a", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await.unwrap();
    mount.put(handle, 0, b"half").await.unwrap();
    let removed = mount.open("b", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await.unwrap();
    mount.put(removed, 0, b"nothing").await.unwrap();
    mount.unlink("b").await.unwrap();
    let kept = mount.open(".DS_Store", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await.unwrap();
    mount.put(kept, 0, b"here").await.unwrap();
    let status = mount.vfs.status();
    assert_eq!((status.pending_files, status.pending_bytes, status.kept_files), (1, 4, 1));
    let listed = mount.vfs.pending(None, 10);
    assert_eq!(listed.iter().map(|pending| pending.path.as_str()).collect::<Vec<_>>(), ["a"]);
    let drained = mount.vfs.flush_unless_stalled(Duration::from_secs(3600)).await;
    assert_eq!((drained.pending, mount.vfs.status().pending_files), (0, 1));
    let drained = mount.vfs.shutdown(Duration::from_secs(20)).await;
    assert_eq!((drained.flushed, drained.pending), (0, 1));
    let mount = mount.killed().await;
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"half")]));
    assert_eq!(mount.vfs.status().pending_files, 0);
}

#[tokio::test]
async fn streaming_close_reports_error_of_remote() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::Forbidden));
    refused!(mount.write("a", b"all").await, EACCES);
    assert_eq!(mount.vfs.status().parked_files, 1);
    mount.view.set_fault(None);
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"all")]));
}

#[tokio::test]
async fn refused_file_is_parked_and_does_not_block_others() {
    let mount = Mount::new().await;
    mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::Forbidden));
    mount.write("a", b"1").await.unwrap();
    let drained = mount.vfs.flush(Some(Duration::from_secs(20))).await;
    assert_eq!((drained.flushed, drained.pending), (0, 1));
    assert_eq!(mount.vfs.status().parked_files, 1);
    mount.view.set_fault(None);
    mount.write("b", b"2").await.unwrap();
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"1"), ("b", b"2")]));
}

#[tokio::test]
async fn file_is_flushed_automatically_after_quiet_time() {
    let mount = Mount::with(|options| options.flush_debounce = Duration::from_millis(20)).await;
    mount.write("a", b"1").await.unwrap();
    for _ in 0..1000 {
        if !mount.remote().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(mount.remote(), map(&[("a", b"1")]));
}

#[tokio::test]
async fn file_written_during_flush_is_flushed_again() {
    let mount = Mount::new().await;
    mount.write("a", b"1").await.unwrap();
    let held = mount.view.hold_commits().await;
    let vfs = mount.vfs.clone();
    let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    while mount.vfs.journal.ledger().queue().iter().count() == 0 {
        tokio::task::yield_now().await;
    }
    mount.write_at("a", 1, b"2").await.unwrap();
    drop(held);
    flush.await.unwrap();
    assert_eq!(mount.remote(), map(&[("a", b"1")]));
    mount.flush().await;
    assert_eq!(mount.remote(), map(&[("a", b"12")]));
}

#[tokio::test]
async fn names_change_while_a_commit_is_in_progress() {
    let mount = Mount::new().await;
    for (name, then) in [("moved", 0), ("removed", 1), ("replaced", 2)] {
        mount.write(name, name.as_bytes()).await.unwrap();
        let held = mount.view.hold_commits().await;
        let vfs = mount.vfs.clone();
        let flush = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
        while mount.vfs.journal.ledger().queue().iter().count() == 0 {
            tokio::task::yield_now().await;
        }
        match then {
            0 => mount.rename(name, "new name").await.unwrap(),
            1 => mount.unlink(name).await.unwrap(),
            _ => {
                mount.write("other", b"other").await.unwrap();
                mount.rename("other", name).await.unwrap();
            }
        }
        drop(held);
        flush.await.unwrap();
        mount.flush().await;
    }
    assert_eq!(mount.remote(), map(&[("new name", b"moved"), ("replaced", b"other")]));
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn staging_is_empty_after_flush_and_close() {
    let mount = Mount::new().await;
    for i in 0..30 {
        mount.write(&format!("f{i}"), &[b'x'; 100_000]).await.unwrap();
    }
    mount.flush().await;
    mount.staging_empties().await;
    assert!(mount.vfs.journal.ledger().is_blank());
}

#[tokio::test]
async fn second_mount_of_remote_is_refused_while_first_lives() {
    let mount = Mount::new().await;
    let view: Arc<dyn crate::store::View> = MemoryView::new(false);
    let second = crate::fs::Vfs::start(view, mount.options.clone()).await;
    assert!(matches!(second, Err(Error::Busy(pid)) if pid == std::process::id()));
}

#[tokio::test]
async fn sequential_reads_of_long_file_return_its_bytes() {
    let mount = Mount::new().await;
    let data: Vec<u8> = (0..9_000_000u32).map(|i| (i / 251) as u8 ^ i as u8).collect();
    mount.view.put_foreign("a", &data);
    assert_eq!(mount.read("a").await.unwrap(), data);
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    // In the order of the kernel's requests: in parallel and not sequential.
    let reads = (0..90u64).map(|i| {
        if i % 3 == 0 {
            i + 1
        } else if i % 3 == 1 {
            i - 1
        } else {
            i
        }
    });
    let reads = reads.map(|i| {
        let vfs = mount.vfs.clone();
        async move { (i, vfs.read(handle, i * 100_000, 100_000).await.unwrap()) }
    });
    for (i, bytes) in futures::future::join_all(reads).await {
        let at = i as usize * 100_000;
        assert_eq!(bytes, data[at..at + 100_000]);
    }
}

#[tokio::test]
async fn stalled_read_does_not_block_other_operations() {
    let mount = Mount::new().await;
    mount.view.put_foreign("slow", b"slow");
    mount.write("local", b"local").await.unwrap();
    let handle = mount.open("slow", libc::O_RDONLY).await.unwrap();
    let held = mount.view.hold_reads().await;
    let vfs = mount.vfs.clone();
    let stalled = tokio::spawn(async move { vfs.read(handle, 0, 4).await });
    assert_eq!(mount.read("local").await.unwrap(), b"local");
    assert_eq!(mount.stat("slow").await.unwrap().len, 4);
    drop(held);
    assert_eq!(&stalled.await.unwrap().unwrap()[..], b"slow");
}

#[tokio::test]
async fn file_is_readable_and_writable_while_base_is_fetched() {
    let mount = Mount::new().await;
    let mut expected = vec![7; 1 << 20];
    mount.view.put_foreign("f", &expected);
    let handle = mount.open("f", libc::O_RDWR).await.unwrap();
    mount.put(handle, 0, &[1; 65536]).await.unwrap();
    let held = mount.view.hold_reads().await;
    let vfs = mount.vfs.clone();
    let flushing = tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
    // Once the fetch has begun, other operations can lock the draft.
    for i in 0..200u8 {
        mount.put(handle, 0, &[i; 65536]).await.unwrap();
        assert_eq!(&mount.vfs.read(handle, 10, 2).await.unwrap()[..], [i, i]);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!flushing.is_finished());
    drop(held);
    assert_eq!(flushing.await.unwrap().pending, 0);
    mount.close(handle).await.unwrap();
    mount.flush().await;
    expected[..65536].fill(199);
    assert!(mount.remote()["f"] == expected);
}

#[tokio::test]
async fn streaming_close_waits_for_offline_remote_until_deadline() {
    let mount = Mount::with(|options| options.advanced_writes = false).await;
    let handle = mount.open("f", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"content").await.unwrap();
    mount.view.set_offline(true);
    let began = std::time::Instant::now();
    let flushed = within(Duration::from_millis(500), mount.vfs.flush_file(handle)).await;
    assert!(flushed.unwrap_err().is_transient());
    assert!((500..10_000).contains(&began.elapsed().as_millis()));
    let back = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        mount.view.set_offline(false);
    };
    let (flushed, ()) = futures::join!(within(Duration::from_secs(60), mount.vfs.flush_file(handle)), back);
    flushed.unwrap();
    assert_eq!(mount.remote(), map(&[("f", b"content")]));
    // A permanent refusal is reported without waiting.
    mount.view.set_fault(Some(crate::fs::memory_view::InjectedFault::Forbidden));
    let handle = mount.open("g", libc::O_WRONLY | libc::O_CREAT).await.unwrap();
    mount.put(handle, 0, b"content").await.unwrap();
    let began = std::time::Instant::now();
    within(Duration::from_secs(60), mount.vfs.flush_file(handle)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[tokio::test]
async fn flush_ends_after_time_without_progress() {
    let mount = Mount::new().await;
    mount.write("f", b"content").await.unwrap();
    mount.view.set_offline(true);
    let began = std::time::Instant::now();
    let drained = mount.vfs.flush_unless_stalled(Duration::from_millis(300)).await;
    assert_eq!(drained.pending, 1);
    assert!((300..10_000).contains(&began.elapsed().as_millis()));
    mount.view.set_offline(false);
    assert_eq!(mount.vfs.flush_unless_stalled(Duration::from_secs(45)).await.pending, 0);
}

#[tokio::test]
async fn flush_of_many_bytes_ends_when_remote_hangs() {
    let mount = Mount::new().await;
    mount.write("f", &vec![1; 20 << 20]).await.unwrap();
    mount.view.set_pace(Duration::from_secs(3600));
    let began = std::time::Instant::now();
    let drained = mount.vfs.flush_unless_stalled(Duration::from_millis(300)).await;
    assert_eq!(drained.pending, 1);
    assert!((300..20_000).contains(&began.elapsed().as_millis()));
}

#[tokio::test]
async fn flush_waits_while_an_upload_advances() {
    let mount = Mount::new().await;
    mount.write("f", &[1; 50 * 65_536]).await.unwrap();
    mount.view.set_pace(Duration::from_millis(50));
    let began = std::time::Instant::now();
    let drained = mount.vfs.flush_unless_stalled(Duration::from_secs(1)).await;
    assert_eq!((drained.flushed, drained.pending), (1, 0));
    assert!(began.elapsed() > Duration::from_secs(2), "the upload was no longer than the wait");
}

#[tokio::test]
async fn shutdown_takes_one_deadline_while_remote_and_reader_hang() {
    let mount = Mount::new().await;
    mount.view.put_foreign("base", &[7; 300_000]);
    mount.write("f", b"content").await.unwrap();
    let handle = mount.open("base", libc::O_RDWR).await.unwrap();
    mount.put(handle, 10, b"edit").await.unwrap();
    mount.view.set_offline(true);
    let _reads = mount.view.hold_reads().await;
    let (vfs, began) = (mount.vfs.clone(), std::time::Instant::now());
    let held = tokio::spawn(async move { vfs.write(handle, 200_000, "more".into()).await });
    tokio::task::yield_now().await;
    let drained = mount.vfs.shutdown(Duration::from_secs(1)).await;
    assert!(drained.pending > 0);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    held.abort();
}

#[tokio::test]
async fn edit_of_version_that_was_just_listed_measures_it() {
    let mount = Mount::new().await;
    mount.view.put_foreign("f", b"a new version");
    let ino = mount.vfs.lookup(Ino::ROOT, "f").await.unwrap().ino;
    // A real listing tells of a version, but not of its size.
    lock(&mount.vfs.tree).file_mut(ino).unwrap().len = Len::Unread;
    assert!(mount.vfs.contents.begin_edit(ino).unwrap().is_none(), "not damaged, only not measured yet");
    mount.write_at("f", 0, b"A").await.unwrap();
    assert_eq!(mount.read("f").await.unwrap(), b"A new version");
}
