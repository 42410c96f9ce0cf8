//! Random histories of operations against an obvious tree in memory: same outcomes, same tree, and after a flush the same source, whatever
//! flushes, kills and foreign listings come between.

use super::Mount;
use crate::fs::Error;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Clone, Debug)]
enum Step {
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
    /// Starts a flush that goes on during what follows.
    FlushMeanwhile,
    Kill,
}

/// A directory is `None`.
type Tree = BTreeMap<String, Option<Vec<u8>>>;

/// The obvious filesystem; errors are errno numbers.
#[derive(Default)]
struct Model(Tree);

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
        self.0.get_mut(path).and_then(Option::as_mut).ok_or(libc::EISDIR)
    }

    fn has_children(&self, path: &str) -> bool {
        self.0.keys().any(|key| key.starts_with(&format!("{path}/")))
    }

    fn apply(&mut self, step: &Step) -> Result<(), i32> {
        match step {
            Step::Write { path, len, byte } => {
                self.parent_is_there(path)?;
                if self.0.get(path) == Some(&None) {
                    return Err(libc::EISDIR);
                }
                self.0.insert(path.clone(), Some(vec![*byte; *len]));
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
                self.file(path)?;
                self.0.remove(path);
            }
            Step::Mkdir { path } => {
                self.parent_is_there(path)?;
                if self.0.contains_key(path) {
                    return Err(libc::EEXIST);
                }
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

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.iter().filter_map(|(path, content)| Some((path.clone(), content.clone()?))).collect()
    }
}

fn path() -> impl Strategy<Value = String> {
    // Few names, so that they meet.
    "[ab](/[ab]){0,2}"
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 0..40usize, 1 => 65_000..70_000usize];
    let offset = prop_oneof![4 => 0..50u64, 1 => 65_500..66_000u64];
    prop_oneof![
        5 => (path(), len, 1..=9u8).prop_map(|(path, len, byte)| Step::Write { path, len, byte }),
        3 => (path(), offset.clone(), 1..30usize).prop_map(|(path, offset, len)| Step::WriteAt { path, offset, len }),
        2 => (path(), offset).prop_map(|(path, len)| Step::Truncate { path, len }),
        3 => path().prop_map(|path| Step::Unlink { path }),
        4 => path().prop_map(|path| Step::Mkdir { path }),
        2 => path().prop_map(|path| Step::Rmdir { path }),
        5 => (path(), path(), prop::bool::weighted(0.9)).prop_map(|(from, to, replace)| Step::Rename { from, to, replace }),
        2 => Just(Step::Check),
        1 => Just(Step::Flush),
        2 => Just(Step::FlushMeanwhile),
        1 => Just(Step::Kill),
    ]
}

async fn perform(mount: &Mount, step: &Step) -> Result<(), Error> {
    match step {
        Step::Write { path, len, byte } => mount.write(path, &vec![*byte; *len]).await,
        Step::WriteAt { path, offset, len } => mount.write_at(path, *offset, &vec![b'w'; *len]).await,
        Step::Truncate { path, len } => mount.truncate(path, *len).await,
        Step::Unlink { path } => mount.unlink(path).await,
        Step::Mkdir { path } => mount.mkdir(path).await,
        Step::Rmdir { path } => mount.rmdir(path).await,
        Step::Rename { from, to, replace } => mount.rename_as(from, to, *replace).await,
        Step::Check | Step::Flush | Step::FlushMeanwhile | Step::Kill => Ok(()),
    }
}

/// A tree that fits a message: lengths and a checksum in the place of contents.
fn outline(tree: &Tree) -> Vec<String> {
    let content = |content: &Option<Vec<u8>>| match content {
        None => "directory".to_owned(),
        Some(bytes) => format!("{} bytes, {:08x}", bytes.len(), crate::fs::slots::checksum(bytes)),
    };
    tree.iter().map(|(path, found)| format!("{path}: {}", content(found))).collect()
}

fn outline_files(files: BTreeMap<String, Vec<u8>>) -> Vec<String> {
    outline(&files.into_iter().map(|(path, content)| (path, Some(content))).collect())
}

/// Which of several missing or unfit parents is found first is the kernel's affair.
fn absence(errno: i32) -> i32 {
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

/// A few tenths of a second each; more on request.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn histories_match_the_model(steps in proptest::collection::vec(step(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(run(steps))?;
    }
}
