//! Xorbs that come in block by block.

use super::*;
use crate::hub::local::cas::intake::BLOCK;
use futures::{FutureExt, stream};
use std::io;
use std::time::Duration;

/// A xorb whose body has exactly this length.
fn xorb_of_len(len: usize) -> Xorb {
    let content = splitmix64(len as u64, len);
    let mut rest = content.as_slice();
    let mut chunks = Vec::new();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at(if rest.len() > 130_000 { 100_000 } else { rest.len() });
        chunks.push(&chunk[xorb::CHUNK_HEADER_LEN..]);
        rest = after;
    }
    let xorb = Xorb::of(chunks, Scheme::None);
    assert_eq!(xorb.body.len(), len);
    xorb
}

/// What is staged, by anybody.
fn staged(dir: &Path) -> usize {
    let folders = std::fs::read_dir(dir.join("staging")).unwrap().flatten();
    folders.map(|folder| std::fs::read_dir(folder.path()).map_or(0, Iterator::count)).sum()
}

#[tokio::test]
async fn bodies_that_end_about_the_edges_of_blocks_are_stored_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    for len in [BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 3, 2 * BLOCK, 3 * BLOCK + 9] {
        for with_footer in [false, true] {
            // The footer's start is cut in two where the body without one ends with the block.
            let mut xorb = xorb_of_len(if with_footer { len - 4 } else { len });
            let area = xorb.body.clone();
            let footer = xorb::write_footer(&xorb.index);
            if with_footer {
                xorb.body = [&area[..], &footer].concat().into();
            }
            assert!(site.put_xorb(&xorb).await, "{len}");
            let name = xorb.index.hash.to_string();
            let stored = std::fs::read(dir.path().join("xorbs").join(&name[..2]).join(&name)).unwrap();
            assert!(stored == [&area[..], &footer].concat(), "{len}, {with_footer}");
        }
    }
    assert_eq!(staged(dir.path()), 0);
}

#[tokio::test]
async fn damage_in_any_block_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let xorb = xorb_of_len(3 * BLOCK + 500);
    let path = format!("/v1/xorbs/default/{}", xorb.index.hash);
    // The version of the first chunk's header, and bytes of chunks.
    for at in [0, 8, BLOCK - 1, BLOCK, 2 * BLOCK + 7, xorb.body.len() - 1] {
        let mut body = xorb.body.to_vec();
        body[at] ^= 1;
        assert_eq!(site.post(&path, body).send().await.unwrap().status(), StatusCode::BAD_REQUEST, "{at}");
        assert_eq!(staged(dir.path()), 0);
    }
    for len in [BLOCK, 2 * BLOCK + 1, xorb.body.len() - 1] {
        let body = xorb.body.slice(..len);
        assert_eq!(site.post(&path, body).send().await.unwrap().status(), StatusCode::BAD_REQUEST, "cut to {len}");
        assert_eq!(staged(dir.path()), 0);
    }
    assert!(!dir.path().join("xorbs").exists());
    assert!(site.put_xorb(&xorb).await);
}

#[tokio::test]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let xorb = xorb_of_len(3 * BLOCK);
    let path = format!("/v1/xorbs/default/{}", xorb.index.hash);
    let half = stream::iter([Ok(xorb.body.slice(..2 * BLOCK)), Err(io::Error::other("gone"))]);
    assert!(site.post(&path, reqwest::Body::wrap_stream(half)).send().await.is_err());
    // The server notices when it does.
    while staged(dir.path()) > 0 || site.store().bodies.take(usize::MAX).now_or_never().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!dir.path().join("xorbs").exists());
    assert!(site.put_xorb(&xorb).await);
}

#[tokio::test]
async fn uploads_wait_for_their_share_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open(dir.path()).await;
    let xorb = xorb_of_len(1000);
    let bodies = site.store().bodies;
    let all = bodies.take(usize::MAX).await.unwrap();
    let mut upload = Box::pin(site.put_xorb(&xorb));
    // A request that needs no share is answered meanwhile.
    tokio::select! {
        _ = &mut upload => panic!("stored without a share"),
        answer = site.get("/health").send() => assert!(answer.is_ok()),
    }
    drop(all);
    assert!(upload.await);
}
