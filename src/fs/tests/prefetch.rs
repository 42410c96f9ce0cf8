//! Read-ahead of open files: what it costs at the remote, and when it ends.

use super::Mount;
use crate::fs::HandleNo;

const STEP: usize = 128 << 10;

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ (at >> 9) ^ (at >> 17)) as u8).collect()
}

impl Mount {
    /// Reads from `at` to the end, as the kernel does for a program that reads in order.
    async fn read_in_order(&self, handle: HandleNo, mut at: usize) -> Vec<u8> {
        let mut read = Vec::new();
        loop {
            let part = self.vfs.read(handle, at as u64, STEP).await.unwrap();
            if part.is_empty() {
                return read;
            }
            at += part.len();
            read.extend_from_slice(&part);
        }
    }
}

#[tokio::test]
async fn sequential_read_of_edited_file_needs_as_few_requests_as_of_unedited_one() {
    let mount = Mount::new().await;
    let mut expected = content(32 << 20);
    mount.view.put_foreign("a", &expected);
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    mount.view.take_reads();
    assert!(mount.read_in_order(handle, 0).await == expected);
    let unedited = mount.view.take_reads();
    mount.vfs.release(handle).await.unwrap();
    for at in [0, 10_000_000, 20 << 20, (32 << 20) - 4] {
        mount.write_at("a", at as u64, b"edit").await.unwrap();
        expected[at..at + 4].copy_from_slice(b"edit");
    }
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    mount.view.take_reads();
    assert!(mount.read_in_order(handle, 0).await == expected);
    let edited = mount.view.take_reads();
    assert!(edited <= unedited + unedited / 2, "{edited} requests, and {unedited} without edits");
    assert!(unedited < 32);
}

#[tokio::test]
async fn file_that_is_committed_while_it_is_read_in_order_has_the_bytes_of_one_version() {
    let mount = Mount::new().await;
    let mut expected = content(24 << 20);
    mount.view.put_foreign("a", &expected);
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    mount.write_at("a", 12 << 20, b"edit").await.unwrap();
    expected[12 << 20..(12 << 20) + 4].copy_from_slice(b"edit");
    let mut read = Vec::new();
    for number in 0..48 {
        read.extend_from_slice(&mount.vfs.read(handle, (number * STEP) as u64, STEP).await.unwrap());
    }
    mount.flush().await;
    mount.view.put_foreign("a", &vec![0; 24 << 20]);
    read.extend(mount.read_in_order(handle, 48 * STEP).await);
    assert!(read == expected);
}

#[tokio::test]
async fn requests_of_a_closed_file_end() {
    let mount = Mount::new().await;
    mount.view.put_foreign("a", &content(32 << 20));
    let handle = mount.open("a", libc::O_RDONLY).await.unwrap();
    for number in 0..2 {
        mount.vfs.read(handle, number * STEP as u64, STEP).await.unwrap();
    }
    let _source_hangs = mount.view.hold_reads().await;
    let vfs = mount.vfs.clone();
    let read = tokio::spawn(async move { vfs.read(handle, 2 * STEP as u64, STEP).await });
    while mount.view.reads_in_progress() < 2 {
        tokio::task::yield_now().await;
    }
    read.abort();
    mount.vfs.release(handle).await.unwrap();
    for _ in 0..10_000 {
        if mount.view.reads_in_progress() == 0 {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("{} requests go on", mount.view.reads_in_progress());
}
