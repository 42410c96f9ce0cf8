//! Listings that are not made again while the remote reports no change.

use super::Mount;
use std::time::Duration;

/// Longer than it takes until a revision counts.
const SETTLED: Duration = Duration::from_millis(2_200);
const HOUR: Duration = Duration::from_secs(3600);

/// Returns a mount that is polled each `poll`, over five files in a folder.
async fn mount(ttl: Duration, poll: Duration) -> Mount {
    let mount = Mount::with(|options| {
        options.metadata_ttl = ttl;
        options.negative_ttl = Duration::ZERO;
        options.poll_interval = Some(poll);
    })
    .await;
    mount.view.report_revisions();
    (0..5).for_each(|number| mount.view.put_foreign(&format!("d/{number}"), b"x"));
    // The poll of the start may have come before.
    mount.vfs.freshness.ask(Duration::ZERO).await.unwrap();
    mount
}

#[tokio::test]
async fn directory_is_not_listed_again_while_revision_is_the_same() {
    let ttl = Duration::from_millis(20);
    let mount = mount(ttl, HOUR).await;
    assert_eq!(mount.names("d").await.len(), 5);
    tokio::time::sleep(SETTLED).await;
    mount.names("d").await;
    mount.view.take_listed();
    mount.view.take_asked();
    for _ in 0..10 {
        tokio::time::sleep(ttl).await;
        assert_eq!(mount.names("d").await.len(), 5);
    }
    let (listed, asked) = (mount.view.take_listed(), mount.view.take_asked());
    assert_eq!(listed, 0, "the root and the folder hold");
    // Each access concerns two directories, and one question serves both.
    assert!((10..=12).contains(&asked), "{asked}");
    // A change by another client is found at the end of the TTL, and one by this mount is shown at once.
    mount.view.put_foreign("d/new", b"y");
    tokio::time::sleep(ttl).await;
    assert_eq!(mount.names("d").await.len(), 6);
    mount.write("d/own", b"z").await.unwrap();
    assert_eq!(mount.names("d").await.len(), 7);
    mount.flush().await;
    tokio::time::sleep(ttl).await;
    assert_eq!(mount.names("d").await.len(), 7);
}

#[tokio::test]
async fn missed_names_of_an_unchanged_directory_cost_no_listing() {
    let mount = mount(HOUR, HOUR).await;
    tokio::time::sleep(SETTLED).await;
    mount.names("d").await;
    mount.view.take_listed();
    for _ in 0..20 {
        assert!(mount.find("d/none").await.is_err());
    }
    assert_eq!(mount.view.take_listed(), 0);
    mount.view.put_foreign("d/none", b"now");
    assert!(mount.find("d/none").await.is_ok(), "a missed name is looked for");
}

#[tokio::test]
async fn poll_shows_changes_before_the_metadata_ttl_has_passed() {
    let mount = mount(HOUR, Duration::from_millis(50)).await;
    assert_eq!(mount.names("d").await.len(), 5);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(mount.vfs.status().last_poll.is_some());
    mount.view.put_foreign("d/new", b"y");
    mount.view.delete_foreign("d/0");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(mount.names("d").await, ["1", "2", "3", "4", "new"]);
    // A Hub that doesn't answer changes nothing that was listed.
    let polled = mount.vfs.status().last_poll;
    mount.view.set_offline(true);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(mount.names("d").await.len(), 5);
    mount.view.set_offline(false);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(mount.vfs.status().last_poll > polled);
}
