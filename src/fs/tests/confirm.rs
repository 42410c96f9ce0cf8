//! Commits are read back: what somebody overwrote in the moment of ours isn't lost in silence.

use super::Mount;
use crate::fs::{OnConflict, Options};
use crate::store::Change;
use std::time::Duration;

fn at_once(options: &mut Options) {
    options.read_back_after = Duration::ZERO;
}

fn later(options: &mut Options) {
    options.read_back_after = Duration::from_secs(3600);
}

impl Mount {
    fn unconfirmed(&self) -> usize {
        self.vfs.journal.ledger().unconfirmed().len()
    }

    /// Reads back what is due, until nothing is left.
    async fn confirm(&self) {
        for _ in 0..2000 {
            self.vfs.confirm_due().await;
            if self.unconfirmed() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} commits stay unconfirmed", self.unconfirmed());
    }

    /// The same mount, killed and started with other options.
    async fn restarted(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self.killed().await
    }
}

/// The conflict copy's content, where there is one.
fn copy(mount: &Mount) -> Option<Vec<u8>> {
    mount.remote().into_iter().find(|(path, _)| path.contains(" (conflict ")).map(|(_, content)| content)
}

#[tokio::test]
async fn a_commit_that_was_overwritten_is_noticed_and_goes_by_the_policy() {
    for (policy, at_path, copied) in [
        (OnConflict::KeepBoth, &b"theirs"[..], Some(b"ours".to_vec())),
        (OnConflict::Overwrite, b"ours", None),
        (OnConflict::Fail, b"theirs", Some(b"ours".to_vec())),
    ] {
        let mount = Mount::with(|options| {
            later(options);
            options.on_conflict = policy;
        })
        .await;
        mount.write("a", b"ours").await.unwrap();
        mount.flush().await;
        mount.view.put_foreign("a", b"theirs");
        // The note survives, and is taken up at the next start.
        let mount = mount.restarted(at_once).await;
        assert_eq!(mount.unconfirmed(), 1);
        mount.confirm().await;
        assert_eq!((mount.remote()["a"].as_slice(), copy(&mount)), (at_path, copied), "{policy:?}");
        assert_eq!(mount.vfs.status().conflicts, 1);
        assert_eq!(mount.read("a").await.unwrap(), at_path);
    }
}

#[tokio::test]
async fn a_rename_that_was_overwritten_is_noticed_too() {
    let mount = Mount::with(later).await;
    mount.view.put_foreign("a", b"ours");
    mount.rename("a", "b").await.unwrap();
    mount.flush().await;
    mount.view.put_foreign("b", b"theirs");
    let mount = mount.restarted(at_once).await;
    mount.confirm().await;
    assert_eq!((mount.remote()["b"].as_slice(), copy(&mount).unwrap().as_slice()), (&b"theirs"[..], &b"ours"[..]));
}

#[tokio::test]
async fn what_is_as_it_was_committed_is_confirmed_and_nothing_is_changed() {
    let mount = Mount::with(later).await;
    for file in 0..5 {
        mount.write(&format!("f{file}"), b"ours").await.unwrap();
    }
    mount.flush().await;
    let before = mount.remote();
    let mount = mount.restarted(at_once).await;
    mount.view.take_commits();
    mount.confirm().await;
    assert_eq!(mount.remote(), before);
    let requests = mount.view.take_commits();
    assert_eq!((requests.len(), requests[0].len()), (1, 5), "one request compares them all");
    let itself = |op: &crate::store::Op| matches!(&op.change, Change::Rename { to, .. } if *to == op.path);
    assert!(requests[0].iter().all(itself));
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn nothing_is_read_back_before_its_time() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.take_commits();
    mount.vfs.confirm_due().await;
    assert!(mount.view.take_commits().is_empty());
    assert_eq!(mount.unconfirmed(), 1);
}

#[tokio::test]
async fn what_others_remove_later_stays_removed() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    mount.view.delete_foreign("a");
    let mount = mount.restarted(at_once).await;
    mount.confirm().await;
    assert!(mount.remote().is_empty());
    assert_eq!(mount.vfs.status().conflicts, 0);
}

#[tokio::test]
async fn our_own_later_changes_are_no_foreign_ones() {
    let mount = Mount::with(later).await;
    for path in ["edited", "moved", "gone", "d/x", "dirty"] {
        mount.view.put_foreign("d/x", b"x");
        if path != "d/x" {
            mount.write(path, path.as_bytes()).await.unwrap();
        }
    }
    mount.flush().await;
    mount.write("edited", b"again").await.unwrap();
    mount.rename("moved", "moved2").await.unwrap();
    mount.unlink("gone").await.unwrap();
    mount.rename("d", "e").await.unwrap();
    mount.flush().await;
    mount.write("dirty", b"more").await.unwrap();
    let mount = mount.restarted(at_once).await;
    mount.confirm().await;
    mount.flush().await;
    mount.confirm().await;
    assert_eq!(mount.vfs.status().conflicts, 0);
    assert_eq!(mount.remote().keys().collect::<Vec<_>>(), ["dirty", "e/x", "edited", "moved2"]);
}

#[tokio::test]
async fn what_cannot_be_read_back_stays_unconfirmed() {
    let mount = Mount::with(later).await;
    mount.write("a", b"ours").await.unwrap();
    mount.flush().await;
    let mount = mount.restarted(at_once).await;
    mount.view.set_offline(true);
    mount.vfs.confirm_due().await;
    assert_eq!(mount.unconfirmed(), 1);
    mount.view.set_offline(false);
    let mount = mount.killed().await;
    mount.confirm().await;
}
