//! Runs random histories of operations on a mount and on a simple tree in memory. Both must return the same results
//! and show the same tree. After a flush, the remote must have the same files, whatever flushes, kills and listings
//! of other clients occur in between.

use super::Mount;
use crate::fs::{Error, drop_order};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Write {
        path: String,
        len: usize,
        byte: u8,
    },
    WriteAt {
        path: String,
        offset: u64,
        len: usize,
    },
    Truncate {
        path: String,
        len: u64,
    },
    Unlink {
        path: String,
    },
    Symlink {
        path: String,
    },
    Link {
        from: String,
        to: String,
    },
    Copy {
        from: String,
        to: String,
    },
    Mkdir {
        path: String,
    },
    Rmdir {
        path: String,
    },
    Rename {
        from: String,
        to: String,
        replace: bool,
    },
    Check,
    Flush,
    /// Starts a flush that continues during the following steps.
    FlushMeanwhile,
    Kill,
}

/// Target of every symbolic link.
const TARGET: &str = "elsewhere";
/// The form in which [`Mount::tree`] shows a symbolic link.
const LINK: &[u8] = b"-> elsewhere";

/// Entries by path. A directory is `None`, a symbolic link is [`LINK`].
pub(super) type Tree = BTreeMap<String, Option<Vec<u8>>>;

/// The simple filesystem in memory. Its errors are errno numbers.
#[derive(Clone, Default)]
pub(super) struct Model(pub(super) Tree);

impl Model {
    fn parent_is_there(&self, path: &str) -> Result<(), i32> {
        match path.rsplit_once('/') {
            None => Ok(()),
            Some((parent, _)) => match self.0.get(parent) {
                Some(None) => Ok(()),
                Some(Some(_)) => Err(libc::ENOTDIR),
                None => Err(self.parent_is_there(parent).err().unwrap_or(libc::ENOENT)),
            },
        }
    }

    fn get(&self, path: &str) -> Result<&Option<Vec<u8>>, i32> {
        self.parent_is_there(path)?;
        self.0.get(path).ok_or(libc::ENOENT)
    }

    fn file(&mut self, path: &str) -> Result<&mut Vec<u8>, i32> {
        self.get(path)?;
        let file = self.0.get_mut(path).and_then(Option::as_mut).ok_or(libc::EISDIR)?;
        // The kernel follows links by itself.
        if file == LINK { Err(libc::EINVAL) } else { Ok(file) }
    }

    fn write(&mut self, path: &str, content: Vec<u8>) -> Result<(), i32> {
        self.parent_is_there(path)?;
        if self.0.contains_key(path) {
            self.file(path)?;
        }
        self.0.insert(path.to_owned(), Some(content));
        Ok(())
    }

    fn must_be_free(&self, path: &str) -> Result<(), i32> {
        self.parent_is_there(path)?;
        if self.0.contains_key(path) { Err(libc::EEXIST) } else { Ok(()) }
    }

    fn has_children(&self, path: &str) -> bool {
        self.0.keys().any(|key| key.starts_with(&format!("{path}/")))
    }

    pub(super) fn apply(&mut self, step: &Step) -> Result<(), i32> {
        match step {
            Step::Write { path, len, byte } => self.write(path, vec![*byte; *len])?,
            Step::Copy { from, to } => {
                let content = self.file(from)?.clone();
                self.write(to, content)?;
            }
            Step::Symlink { path } => {
                self.must_be_free(path)?;
                self.0.insert(path.clone(), Some(LINK.to_vec()));
            }
            Step::Link { from, to } => {
                let content = self.get(from)?.clone();
                self.must_be_free(to)?;
                self.0.insert(to.clone(), Some(content.ok_or(libc::EISDIR)?));
            }
            Step::WriteAt { path, offset, len } => {
                let file = self.file(path)?;
                let end = *offset as usize + len;
                if file.len() < end {
                    file.resize(end, 0);
                }
                file[*offset as usize..end].fill(b'w');
            }
            Step::Truncate { path, len } => self.file(path)?.resize(*len as usize, 0),
            Step::Unlink { path } => {
                self.get(path)?.as_ref().ok_or(libc::EISDIR)?;
                self.0.remove(path);
            }
            Step::Mkdir { path } => {
                self.must_be_free(path)?;
                self.0.insert(path.clone(), None);
            }
            Step::Rmdir { path } => {
                if self.get(path)?.is_some() {
                    return Err(libc::ENOTDIR);
                }
                if self.has_children(path) {
                    return Err(libc::ENOTEMPTY);
                }
                self.0.remove(path);
            }
            Step::Rename { from, to, replace } => return self.rename(from, to, *replace),
            Step::Check | Step::Flush | Step::FlushMeanwhile | Step::Kill => {}
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str, replace: bool) -> Result<(), i32> {
        self.parent_is_there(from)?;
        self.parent_is_there(to)?;
        let is_directory = self.get(from)?.is_none();
        let target = self.0.get(to);
        if target.is_some() && !replace {
            return Err(libc::EEXIST);
        }
        if from == to {
            return Ok(());
        }
        if is_directory && to.starts_with(&format!("{from}/")) {
            return Err(libc::EINVAL);
        }
        match (is_directory, target) {
            (true, Some(Some(_))) => return Err(libc::ENOTDIR),
            (false, Some(None)) => return Err(libc::EISDIR),
            _ => {}
        }
        if is_directory && self.has_children(to) {
            return Err(libc::ENOTEMPTY);
        }
        self.0.remove(to);
        let below = format!("{from}/");
        let moved: Vec<_> = self.0.keys().filter(|key| *key == from || key.starts_with(&below)).cloned().collect();
        for key in moved {
            let value = self.0.remove(&key).expect("just listed");
            self.0.insert(format!("{to}{}", &key[from.len()..]), value);
        }
        Ok(())
    }

    pub(super) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.0.iter().filter_map(|(path, content)| Some((path.clone(), content.clone()?)));
        files.filter(|(_, content)| content != LINK).collect()
    }
}

fn path() -> impl Strategy<Value = String> {
    // There are few names, so that operations often use the same one.
    "[ab](/[ab]){0,2}"
}

fn step() -> impl Strategy<Value = Step> {
    step_at(path)
}

/// Returns a step on paths of the given strategy.
pub(super) fn step_at<P: Strategy<Value = String> + 'static>(path: impl Fn() -> P) -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0..40usize, 1 => 65_000..70_000usize];
    let offset = prop_oneof![4 => 0..50u64, 1 => 65_500..66_000u64];
    prop_oneof![
        5 => (path(), len, 1..=9u8).prop_map(|(path, len, byte)| Step::Write { path, len, byte }),
        3 => (path(), offset.clone(), 1..30usize).prop_map(|(path, offset, len)| Step::WriteAt { path, offset, len }),
        2 => (path(), offset).prop_map(|(path, len)| Step::Truncate { path, len }),
        3 => path().prop_map(|path| Step::Unlink { path }),
        3 => path().prop_map(|path| Step::Symlink { path }),
        2 => (path(), path()).prop_map(|(from, to)| Step::Link { from, to }),
        2 => (path(), path()).prop_filter("one file", |(a, b)| a != b).prop_map(|(from, to)| Step::Copy { from, to }),
        4 => path().prop_map(|path| Step::Mkdir { path }),
        2 => path().prop_map(|path| Step::Rmdir { path }),
        5 => (path(), path(), prop::bool::weighted(0.9))
            .prop_map(|(from, to, replace)| Step::Rename { from, to, replace }),
        2 => Just(Step::Check),
        1 => Just(Step::Flush),
        2 => Just(Step::FlushMeanwhile),
        1 => Just(Step::Kill),
    ]
}

pub(super) async fn perform<V: ?Sized>(mount: &Mount<V>, step: &Step) -> Result<(), Error> {
    match step {
        Step::Write { path, len, byte } => mount.write(path, &vec![*byte; *len]).await,
        Step::WriteAt { path, offset, len } => mount.write_at(path, *offset, &vec![b'w'; *len]).await,
        Step::Truncate { path, len } => mount.truncate(path, *len).await,
        Step::Unlink { path } => mount.unlink(path).await,
        Step::Symlink { path } => mount.symlink(path, TARGET).await,
        Step::Link { from, to } => mount.link(from, to).await,
        Step::Copy { from, to } => mount.copy(from, to).await.map(drop),
        Step::Mkdir { path } => mount.mkdir(path).await,
        Step::Rmdir { path } => mount.rmdir(path).await,
        Step::Rename { from, to, replace } => mount.rename_as(from, to, *replace).await,
        Step::Check | Step::Flush | Step::FlushMeanwhile | Step::Kill => Ok(()),
    }
}

/// Returns a tree that fits into a message: it shows lengths and checksums instead of contents.
pub(super) fn outline(tree: &Tree) -> Vec<String> {
    let content = |content: &Option<Vec<u8>>| match content {
        Some(link) if link == LINK => "link".to_owned(),
        None => "directory".to_owned(),
        Some(bytes) => format!("{} bytes, {:08x}", bytes.len(), crate::store::staging::checksum(bytes)),
    };
    tree.iter().map(|(path, found)| format!("{path}: {}", content(found))).collect()
}

pub(super) fn outline_files(files: BTreeMap<String, Vec<u8>>) -> Vec<String> {
    outline(&files.into_iter().map(|(path, content)| (path, Some(content))).collect())
}

/// Maps `ENOTDIR` to `ENOENT`. If several parents are missing or unsuitable, the order of the kernel's checks decides
/// which error is returned.
pub(super) fn absence(errno: i32) -> i32 {
    if errno == libc::ENOTDIR { libc::ENOENT } else { errno }
}

async fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut mount = Mount::new().await;
    let mut model = Model::default();
    for (at, step) in steps.iter().enumerate() {
        let expected = model.apply(step).map_err(absence);
        let done = perform(&mount, step).await.map_err(|error| absence(error.errno()));
        prop_assert_eq!(done, expected, "step {}: {:?}", at, step);
        match step {
            Step::Flush => {
                mount.flush().await;
                prop_assert_eq!(outline_files(mount.remote()), outline_files(model.files()), "step {}", at);
            }
            Step::FlushMeanwhile => {
                let vfs = mount.vfs.clone();
                tokio::spawn(async move { vfs.flush(Some(Duration::from_secs(20))).await });
                tokio::task::yield_now().await;
            }
            Step::Kill => mount = mount.killed().await,
            Step::Check => prop_assert_eq!(outline(&mount.tree().await), outline(&model.0), "step {}", at),
            _ => {}
        }
    }
    prop_assert_eq!(outline(&mount.tree().await), outline(&model.0), "at the end");
    mount.flush().await;
    prop_assert_eq!(outline_files(mount.remote()), outline_files(model.files()));
    prop_assert_eq!(outline(&mount.tree().await), outline(&model.0), "after the flush");
    prop_assert_eq!(mount.vfs.status().conflicts, 0);
    Ok(())
}

/// A change by another client.
#[derive(Clone, Debug)]
enum Foreign {
    Put { path: String },
    Delete { path: String },
}

fn foreign() -> impl Strategy<Value = Foreign> {
    prop_oneof![
        3 => path().prop_map(|path| Foreign::Put { path }),
        1 => path().prop_map(|path| Foreign::Delete { path }),
    ]
}

/// Changes by both sides that don't know of each other. A flush follows them.
#[derive(Clone, Debug)]
struct Round {
    ours: Vec<Step>,
    theirs: Vec<Foreign>,
    kill: bool,
}

fn round() -> impl Strategy<Value = Round> {
    let ours = proptest::collection::vec(step(), 1..12);
    let theirs = proptest::collection::vec(foreign(), 0..5);
    (ours, theirs, any::<bool>()).prop_map(|(ours, theirs, kill)| Round { ours, theirs, kill })
}

/// Returns the contents of all files.
fn contents(files: impl IntoIterator<Item = Vec<u8>>) -> BTreeSet<Vec<u8>> {
    files.into_iter().collect()
}

/// Returns true if the step concerns the remote. Symbolic links stay on this machine.
fn is_for_remote(step: &Step) -> bool {
    !matches!(step, Step::Symlink { .. })
}

/// Returns true if a key of the remote hides others: a file has the same name as a directory.
fn has_shadows(remote: &BTreeMap<String, Vec<u8>>) -> bool {
    let above = |path: &str| path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect::<Vec<_>>();
    remote.keys().any(|path| above(path).iter().any(|folder| remote.contains_key(folder)))
}

/// Checks that the last writes of both sides end up at the remote, under any names, and that nothing stays pending.
async fn run_with_others(rounds: Vec<Round>) -> Result<(), TestCaseError> {
    let mut mount = Mount::new().await;
    let mut number = 0u32;
    let mut unique = |whose: &str| {
        number += 1;
        format!("{whose} {number}").into_bytes()
    };
    for (at, Round { ours, theirs, kill }) in rounds.into_iter().enumerate() {
        let before = contents(mount.remote().into_values());
        mount.view.refuse_for_now("");
        for step in ours.iter().filter(|step| is_for_remote(step)) {
            // Steps may fail, because another client may have taken the name.
            let _ = match step {
                Step::Write { path, .. } => mount.write(path, &unique("ours")).await,
                other => perform(&mount, other).await,
            };
        }
        let local = contents(mount.tree().await.into_values().flatten());
        let written: Vec<_> = local.difference(&before).cloned().collect();
        let mut foreign = BTreeMap::new();
        for change in theirs {
            match change {
                Foreign::Put { path } => {
                    let content = unique("theirs");
                    mount.view.put_foreign(&path, &content);
                    foreign.insert(path, content);
                }
                Foreign::Delete { path } => {
                    mount.view.delete_foreign(&path);
                    foreign.remove(&path);
                }
            }
        }
        if kill {
            mount = mount.killed().await;
        }
        mount.view.allow("");
        let drained = mount.vfs.flush(Some(Duration::from_secs(20))).await;
        prop_assert_eq!(drained.pending, 0, "round {}: {:?}", at, mount.vfs.pending(None, 9));
        let remote = mount.remote();
        let after = contents(remote.values().cloned());
        for content in written.iter().chain(foreign.values()) {
            prop_assert!(after.contains(content), "round {}: {:?} is lost", at, String::from_utf8_lossy(content));
        }
        if has_shadows(&remote) {
            return Ok(());
        }
        let tree = mount.tree().await;
        if tree.iter().any(|(path, content)| content.is_none() && remote.contains_key(path)) {
            // A directory of ours hides another client's file. That is normal.
            return Ok(());
        }
        let shown = tree.into_iter().filter_map(|(path, content)| Some((path, content?))).collect();
        prop_assert_eq!(outline_files(shown), outline_files(remote), "round {}", at);
    }
    Ok(())
}

/// Checks that after all changes are discarded, the mount shows the remote's files, and the remote is unchanged.
async fn run_and_discard(first: Vec<Step>, then: Vec<Step>, kill: bool) -> Result<(), TestCaseError> {
    let mut mount = Mount::new().await;
    for step in first.iter().filter(|step| is_for_remote(step)) {
        let _ = perform(&mount, step).await;
    }
    mount.flush().await;
    let remote = mount.remote();
    mount.view.refuse_for_now("");
    for step in then.iter().filter(|step| is_for_remote(step)) {
        let _ = perform(&mount, step).await;
        if matches!(step, Step::FlushMeanwhile) {
            mount.vfs.flush(Some(Duration::from_millis(20))).await;
        }
    }
    if kill {
        mount = mount.killed().await;
    }
    let mut numbers: Vec<_> = mount.vfs.pending(None, usize::MAX).into_iter().map(|pending| pending.number).collect();
    drop_order(&mut numbers);
    let refused: Vec<_> = mount.vfs.drop_pending(&numbers).await.unwrap().into_iter().flatten().collect();
    if !refused.is_empty() {
        // A refusal is correct if a change in flight or a local change depends on the discarded one. Then nothing of
        // that may be lost.
        mount.view.allow("");
        let shown = mount.tree().await;
        mount.flush().await;
        prop_assert_eq!(outline(&mount.tree().await), outline(&shown), "after {:?}", refused);
        return Ok(());
    }
    mount.view.allow("");
    for again in [false, true] {
        if again {
            mount = mount.killed().await;
        }
        let shown = mount.tree().await.into_iter().filter_map(|(path, content)| Some((path, content?))).collect();
        prop_assert_eq!(outline_files(shown), outline_files(remote.clone()), "killed: {}", again);
        mount.flush().await;
        prop_assert_eq!(outline_files(mount.remote()), outline_files(remote.clone()));
    }
    Ok(())
}

/// Returns the number of cases. The default takes some tenths of a second per test. `PROPTEST_CASES` overrides it.
pub(super) fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn random_history_matches_model(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(steps))?;
    }

    #[test]
    fn random_writes_of_two_sides_are_all_kept(rounds in proptest::collection::vec(round(), 1..4)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run_with_others(rounds))?;
    }

    #[test]
    fn discarded_changes_leave_remote_state(
        first in proptest::collection::vec(step(), 0..15),
        then in proptest::collection::vec(step(), 1..15),
        kill in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run_and_discard(first, then, kill))?;
    }
}
