//! Files and folders of one name of which this mount made one.
//!
//! A Hub keeps `a` and `a/b` beside each other, so no commit is refused for that. After a new name was committed it is
//! looked up whether the source has the other kind under it: a folder where a file was made, or a file where a folder
//! above the new name is. Each such name is counted as a conflict, once. `flush` looks before it answers, everything
//! else is looked up in the background.
//!
//! Of two mounts, the one whose commit came later finds the other's, so one of them reports it. The exception is a file
//! in a folder that was made here less than a minute ago, see [`NEW_FOLDER`].

use super::inode::Ino;
use super::lock::Mutex;
use super::{Error, Vfs, lock};
use crate::store::PlainPath;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// New names that wait for their look, and names that were reported, at most: some hundred bytes each. Others are
/// neither.
const MAX_NAMES: usize = 65_536;
/// How long a folder that was made here counts as new: it is unlikely that others have put folders into it. Unpacking an archive
/// costs no request for each of its folders then.
const NEW_FOLDER: Duration = Duration::from_secs(60);
/// Names that are looked up together.
const BATCH: usize = 1000;

/// See the module. Nothing is locked under these locks, and none is held over an await.
#[derive(Default)]
pub(super) struct Twins {
    made: Mutex<Made>,
    reported: Mutex<HashSet<PlainPath>>,
    /// Folders that were made here, and when.
    new_folders: Mutex<HashMap<PlainPath, Instant>>,
    /// Folders of the source that files of this machine hide, by directory.
    covered: Mutex<HashMap<Ino, u64>>,
    /// One look at a time, so that `flush` waits for one that is in progress.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Made {
    /// New files. They are looked up as folders.
    files: BTreeSet<PlainPath>,
    /// Folders that hold new files. They are looked up as files.
    folders: BTreeSet<PlainPath>,
}

impl Twins {
    /// Remembers that a folder was made here.
    pub(super) fn note_new_folder(&self, path: PlainPath) {
        let mut folders = lock(&self.new_folders);
        if folders.len() >= MAX_NAMES {
            folders.retain(|_, made| made.elapsed() < NEW_FOLDER);
        }
        if folders.len() < MAX_NAMES {
            folders.insert(path, Instant::now());
        }
    }

    fn is_in_new_folder(&self, path: &PlainPath) -> bool {
        let folders = lock(&self.new_folders);
        let made = path.split().and_then(|(parent, _)| folders.get(&parent));
        made.is_some_and(|made| made.elapsed() < NEW_FOLDER)
    }

    /// Has a file that was committed under a new name looked up, and the folders above it.
    pub(super) fn note_made(&self, path: &PlainPath) {
        let is_in_new_folder = self.is_in_new_folder(path);
        let mut made = lock(&self.made);
        if made.files.len() + made.folders.len() >= MAX_NAMES {
            return;
        }
        let mut at = path.split().map(|(parent, _)| parent);
        while let Some(folder) = at.filter(|folder| !folder.is_root()) {
            at = folder.split().map(|(parent, _)| parent);
            if !made.folders.insert(folder) {
                break;
            }
        }
        if !is_in_new_folder {
            made.files.insert(path.clone());
        }
    }

    /// Sets how many folders of the source aren't shown in a directory because of files of this machine.
    pub(super) fn note_covered(&self, directory: Ino, count: u64) {
        let mut covered = lock(&self.covered);
        match count {
            0 => drop(covered.remove(&directory)),
            _ => drop(covered.insert(directory, count)),
        }
    }

    /// Returns the sum of those.
    pub(super) fn covered(&self) -> u64 {
        lock(&self.covered).values().sum()
    }

    fn take_made(&self) -> (Vec<PlainPath>, Vec<PlainPath>) {
        let mut made = lock(&self.made);
        let mut files = Vec::new();
        let mut folders = Vec::new();
        while files.len() < BATCH
            && let Some(path) = made.files.pop_first()
        {
            files.push(path);
        }
        while folders.len() < BATCH
            && let Some(path) = made.folders.pop_first()
        {
            folders.push(path);
        }
        (files, folders)
    }

    fn give_back(&self, files: Vec<PlainPath>, folders: Vec<PlainPath>) {
        let mut made = lock(&self.made);
        made.files.extend(files);
        made.folders.extend(folders);
    }

    /// Returns true the first time.
    fn report(&self, path: &PlainPath) -> bool {
        let mut reported = lock(&self.reported);
        reported.len() < MAX_NAMES && reported.insert(path.clone())
    }
}

impl Vfs {
    /// Looks up what was committed under new names since the last time. What can't be looked up now is left for the
    /// next time.
    pub(super) async fn find_twins(&self) -> Result<(), Error> {
        let _one_at_a_time = self.twins.looking.lock().await;
        loop {
            let (files, folders) = self.twins.take_made();
            if files.is_empty() && folders.is_empty() {
                return Ok(());
            }
            // Given back where the look fails or is given up.
            let taken = Taken { twins: &self.twins, paths: Some((files, folders)) };
            let (files, folders) = taken.paths.as_ref().expect("just put there");
            let found = self.view.twins(files, folders).await?;
            taken.done();
            found.iter().filter(|path| self.twins.report(path)).for_each(|path| self.note_twin(path));
        }
    }

    fn note_twin(&self, path: &PlainPath) {
        tracing::warn!(path = self.view.log_name(path), "a file and a folder have this name; both are kept");
        self.flusher.conflict();
        if let Some((parent, _)) = path.split() {
            self.look_again(&parent);
        }
    }

    /// Does as [`Vfs::find_twins`]; a failure is logged, because what was flushed is flushed all the same.
    pub(super) async fn find_committed_twins(&self) {
        if let Err(error) = self.find_twins().await {
            tracing::warn!(%error, "cannot look for folders with the names of new files");
        }
    }
}

struct Taken<'a> {
    twins: &'a Twins,
    paths: Option<(Vec<PlainPath>, Vec<PlainPath>)>,
}

impl Taken<'_> {
    fn done(mut self) {
        self.paths = None;
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some((files, folders)) = self.paths.take() {
            self.twins.give_back(files, folders);
        }
    }
}
