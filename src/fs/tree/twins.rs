//! New names of this mount that still have to be compared with the remote, see [`crate::fs::sync::twins`].

use crate::fs::ids::Ino;
use crate::fs::lock::{Mutex, lock};
use crate::store::PlainPath;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Limit of the names that wait for their check, and of those that were reported. Each takes some hundred bytes.
/// Names beyond the limit are neither checked nor reported.
const MAX_NAMES: usize = 65_536;
/// Time that a folder counts as new after this mount created it. In that time, it is unlikely that other clients have
/// put folders into it. So unpacking an archive costs no request for each of its folders.
const NEW_FOLDER: Duration = Duration::from_secs(60);
/// Number of folders that are looked up in one request.
const BATCH: usize = 1000;

/// The names to compare. See the module. No other lock is taken while one of these is held, and none is held across
/// an await.
#[derive(Default)]
pub(crate) struct Twins {
    made: Mutex<NewNames>,
    reported: Mutex<HashSet<PlainPath>>,
    /// Folders that this mount created, with the time.
    new_folders: Mutex<NewFolders>,
    /// Number of remote entries that files of this machine hide, by directory.
    covered: Mutex<HashMap<Ino, u64>>,
    /// The lock that allows one check at a time, so that `flush` can wait for a check in progress.
    pub(crate) looking: tokio::sync::Mutex<()>,
}

/// Folders that this mount created, with the time, at most [`MAX_NAMES`].
#[derive(Default)]
struct NewFolders {
    made: HashMap<PlainPath, Instant>,
    /// All of them, oldest first. A folder that was created again is in it twice.
    order: VecDeque<(Instant, PlainPath)>,
}

impl NewFolders {
    fn add(&mut self, path: PlainPath, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && now.saturating_duration_since(*at) >= NEW_FOLDER
        {
            let Some((at, path)) = self.order.pop_front() else { break };
            if self.made.get(&path) == Some(&at) {
                self.made.remove(&path);
            }
        }
        if self.order.len() < MAX_NAMES {
            self.order.push_back((now, path.clone()));
            self.made.insert(path, now);
        }
    }
}

#[derive(Default)]
struct NewNames {
    /// New files by the folder that holds them. They are looked up as folders.
    files: BTreeMap<PlainPath, BTreeSet<PlainPath>>,
    /// Folders that hold new files. They are looked up as files.
    folders: BTreeSet<PlainPath>,
    /// Groups of names that wait for their check, in that order.
    waiting: VecDeque<Group>,
    /// Number of all names that are waiting here or being looked up.
    len: usize,
}

/// Names that are looked up together: files of one folder, or folders.
#[derive(Default)]
pub(crate) struct Group {
    pub(crate) files: Vec<PlainPath>,
    pub(crate) folders: Vec<PlainPath>,
}

impl Group {
    fn len(&self) -> usize {
        self.files.len() + self.folders.len()
    }
}

impl NewNames {
    fn add_folders(&mut self, mut at: Option<PlainPath>) {
        while let Some(folder) = at.filter(|folder| !folder.is_root()) {
            at = folder.split().map(|(parent, _)| parent);
            if !self.folders.insert(folder) {
                break;
            }
            self.len += 1;
        }
    }

    /// Appends new names to the queue. Returns the length of the queue.
    fn queue(&mut self) -> usize {
        let folders: Vec<PlainPath> = std::mem::take(&mut self.folders).into_iter().collect();
        let batches = folders.chunks(BATCH).map(|batch| Group { folders: batch.to_vec(), ..Group::default() });
        self.waiting.extend(batches);
        let files = std::mem::take(&mut self.files).into_values();
        self.waiting.extend(files.map(|files| Group { files: files.into_iter().collect(), ..Group::default() }));
        self.waiting.len()
    }

    /// Appends a group whose check failed to the queue. Folders are split in two halves each time, so that a folder
    /// that can't be looked up ends up in a group of its own.
    fn requeue(&mut self, mut group: Group) {
        if group.folders.len() > 1 {
            let folders = group.folders.split_off(group.folders.len() / 2);
            self.waiting.push_back(Group { folders, ..Group::default() });
        }
        self.waiting.push_back(group);
    }
}

impl Twins {
    /// Records that this mount created a folder.
    pub(crate) fn record_new_folder(&self, path: PlainPath) {
        lock(&self.new_folders).add(path, Instant::now());
    }

    fn is_in_new_folder(&self, path: &PlainPath) -> bool {
        let folders = lock(&self.new_folders);
        let made = path.split().and_then(|(parent, _)| folders.made.get(&parent));
        made.is_some_and(|made| made.elapsed() < NEW_FOLDER)
    }

    /// Queues a check for a file that was committed under a new name, and for the folders above it.
    pub(crate) fn record_created(&self, path: &PlainPath) {
        let Some((parent, _)) = path.split() else { return };
        let is_in_new_folder = self.is_in_new_folder(path);
        let mut made = lock(&self.made);
        if made.len >= MAX_NAMES {
            return;
        }
        made.add_folders(Some(parent.clone()));
        if !is_in_new_folder && made.files.entry(parent).or_default().insert(path.clone()) {
            made.len += 1;
        }
    }

    /// Queues a check for a folder that was moved, and for the folders above it. The files in it aren't looked up,
    /// because each of them was in another folder until now.
    pub(crate) fn record_moved_folder(&self, path: &PlainPath) {
        let mut made = lock(&self.made);
        if made.len < MAX_NAMES {
            made.add_folders(Some(path.clone()));
        }
    }

    /// Sets the number of remote entries that aren't shown in a directory because files of this machine hide them.
    pub(crate) fn record_covered(&self, directory: Ino, count: u64) {
        let mut covered = lock(&self.covered);
        match count {
            0 => drop(covered.remove(&directory)),
            _ => drop(covered.insert(directory, count)),
        }
    }

    /// Returns the sum of these numbers. Drops directories for which `is_there` returns false.
    pub(crate) fn covered(&self, is_there: impl Fn(Ino) -> bool) -> u64 {
        let mut covered = lock(&self.covered);
        covered.retain(|directory, _| is_there(*directory));
        covered.values().sum()
    }

    /// Appends the names that were committed since the last check to the queue. Returns the length of the queue.
    pub(crate) fn queue(&self) -> usize {
        lock(&self.made).queue()
    }

    /// Takes the next groups from the queue, at most `most`.
    pub(crate) fn take(&self, most: usize) -> Vec<Taken<'_>> {
        let mut made = lock(&self.made);
        let count = most.min(made.waiting.len());
        made.waiting.drain(..count).map(|group| Taken { twins: self, group: Some(group) }).collect()
    }

    /// Marks a name as reported. Returns true the first time.
    pub(crate) fn report(&self, path: &PlainPath) -> bool {
        let mut reported = lock(&self.reported);
        reported.len() < MAX_NAMES && reported.insert(path.clone())
    }
}

/// A group that is being looked up. It returns to the queue if the check fails or is cancelled.
pub(crate) struct Taken<'a> {
    twins: &'a Twins,
    pub(crate) group: Option<Group>,
}

impl Taken<'_> {
    pub(crate) fn done(mut self) {
        if let Some(group) = self.group.take() {
            lock(&self.twins.made).len -= group.len();
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            lock(&self.twins.made).requeue(group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_new_folders_are_dropped_oldest_first() {
        let path = |number: usize| PlainPath::new(&number.to_string()).unwrap();
        let (mut folders, began) = (NewFolders::default(), Instant::now());
        (0..MAX_NAMES).for_each(|number| folders.add(path(number), began));
        folders.add(path(MAX_NAMES), began);
        assert_eq!((folders.made.len(), folders.order.len()), (MAX_NAMES, MAX_NAMES));
        folders.add(path(MAX_NAMES), began + NEW_FOLDER);
        assert_eq!((folders.made.len(), folders.order.len()), (1, 1));
        // A folder that was created again is as new as its last creation.
        folders.add(path(MAX_NAMES), began + NEW_FOLDER * 3 / 2);
        folders.add(path(1), began + NEW_FOLDER * 2);
        assert_eq!((folders.made.len(), folders.order.len()), (2, 2));
    }

    #[test]
    fn group_whose_check_is_cancelled_returns_to_end_of_queue() {
        let twins = Twins::default();
        ["a/n", "b/n", "c/n"].iter().for_each(|at| twins.record_created(&PlainPath::new(at).unwrap()));
        assert_eq!(lock(&twins.made).queue(), 4);
        let next = || twins.take(1)[0].group.as_ref().map(|group| group.files.clone()).unwrap();
        let folders = next();
        let taken: Vec<_> = (0..3).flat_map(|_| next()).map(|path| path.as_str().to_owned()).collect();
        assert!(folders.is_empty());
        assert_eq!(taken, ["a/n", "b/n", "c/n"]);
        assert_eq!(lock(&twins.made).len, 6);
    }
}
