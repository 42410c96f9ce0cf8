//! What happens where the source holds something else than an operation expected: both are kept, and it is said so.
//!
//! First, what looks like a conflict may be our own doing: an answer was lost, or the daemon was killed before it could note one. What carries the
//! hash that we sent is ours. Then:
//!
//! | operation | found | what happens |
//! |---|---|---|
//! | commit | another version | ours goes to `name (conflict <host> <time>).ext` |
//! | removal | another version | it stays |
//! | rename | another version at the source | it stays there; ours appears at the new name |
//! | rename | another version at the target | that one goes to a conflict name, ours takes the place |

use super::commit::{after_local_move, left_by};
use super::inode::Ino;
use super::journal::Purpose;
use super::ledger::{Entry, FileNo, OpNo, QueuedOp, Remote};
use super::{Error, Vfs, lock};
use crate::store::{Change, Entry as Listed, Expect, Hash, Kind, Op, Outcome, PlainPath, Stored, Version};
use std::sync::Arc;
use time::OffsetDateTime;
use time::macros::format_description;

/// Numbers tried to find a conflict name that is free.
const TRIES: u32 = 100;
/// Bytes of a host's name that go into a file name.
const HOST_LEN: usize = 32;

/// What lies at a path of the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Nothing,
    Content(Hash),
    /// A directory, or an object that has no hash.
    Other,
}

impl Vfs {
    /// Resolves a conflict of an operation, or leaves it to be tried again.
    pub(super) async fn resolve(self: &Arc<Self>, op: OpNo, what: QueuedOp, request: &Op, found: Option<Hash>) {
        let outcome = match &what {
            QueuedOp::Put { file, generation, path } => {
                let Change::Put { stored, .. } = request.change else { return };
                if found == Some(stored.version.hash) {
                    self.put_done(op, &what, *file, *generation, stored);
                    return;
                }
                match found {
                    Some(_) => self.keep_both(op, &what, *file, path),
                    // Removed by somebody else: there is no second version to keep, ours is put where it belongs.
                    None => {
                        self.put_anew(op, &what, *file);
                        Ok(())
                    }
                }
            }
            QueuedOp::Delete { file, path } => {
                if found.is_some() {
                    self.note_conflict(path);
                }
                self.finish(op, &what, vec![Entry::Remote { file: *file, remote: Remote::Absent }]);
                Ok(())
            }
            QueuedOp::Rename { file, from, to, replaced } => {
                self.resolve_rename(op, &what, *file, from, to, *replaced).await
            }
            QueuedOp::RenameDirectory { .. } | QueuedOp::RemoveDirectory { .. } => Err(Error::Exists),
        };
        if let Err(error) = outcome {
            self.flusher.op_failed(op, error);
        }
    }

    /// Says so, and looks at the directory again.
    fn note_conflict(&self, path: &PlainPath) {
        self.flusher.conflict();
        tracing::warn!(path = self.view.log_name(path), "changed by somebody else meanwhile; both versions are kept");
        let mut tree = lock(&self.tree);
        let parent = path.split().and_then(|(parent, _)| tree.find(&parent));
        if let Some(Ok(directory)) = parent.map(|ino| tree.directory_mut(ino)) {
            directory.loaded = None;
        }
    }

    /// A commit met another version: our file moves to a name of its own and is committed there.
    fn keep_both(self: &Arc<Self>, op: OpNo, what: &QueuedOp, file: FileNo, path: &PlainPath) -> Result<(), Error> {
        let now = self.journal.ledger().file(file).and_then(|record| record.path.clone());
        let free = vec![Entry::Remote { file, remote: Remote::Absent }];
        match now {
            // Moved already, so the place is not ours to dispute; or removed, and the removal is in the queue.
            Some(now) if now != *path => self.finish(op, what, free),
            None => self.finish(op, what, free),
            Some(_) => {
                self.note_conflict(path);
                self.step_aside(op, what, file, path, free)?;
            }
        }
        self.flush_soon(file);
        Ok(())
    }

    /// The commit is made again, for a path at which nothing is.
    fn put_anew(&self, op: OpNo, what: &QueuedOp, file: FileNo) {
        self.finish(op, what, vec![Entry::Remote { file, remote: Remote::Absent }]);
        self.flush_soon(file);
    }

    fn flush_soon(&self, file: FileNo) {
        if let Some(edit) = self.flusher.edit(file) {
            edit.hurry();
            self.flusher.touch(&edit);
        }
        self.flusher.wake();
    }

    fn step_aside(
        &self,
        op: OpNo,
        what: &QueuedOp,
        file: FileNo,
        path: &PlainPath,
        mut entries: Vec<Entry>,
    ) -> Result<(), Error> {
        let (parent, name) = path.split().ok_or(Error::Invalid("the root is no file"))?;
        let mut tree = lock(&self.tree);
        let directory = tree.find(&parent);
        let taken = |name: &str| directory.is_some_and(|ino| tree.child(ino, name).is_ok_and(|child| child.is_some()));
        let name_now = self.conflict_name(&parent, name, taken)?;
        entries.push(Entry::Move { file, path: Some(parent.join(&name_now)?) });
        entries.push(Entry::Finish { op });
        self.journal.append(Purpose::Relief, entries)?;
        let ino = self.flusher.edit(file).and_then(|edit| edit.ino());
        if let (Some(ino), Some(directory)) = (ino, directory)
            && tree.child(directory, name)? == Some(ino)
        {
            tree.relocate(ino, directory, &name_now)?;
        }
        drop(tree);
        self.flusher.op_finished(op, super::commit::put_file(what));
        Ok(())
    }

    /// `name (conflict <host> <time>).ext`, storable and free.
    fn conflict_name(&self, parent: &PlainPath, name: &str, taken: impl Fn(&str) -> bool) -> Result<String, Error> {
        let time = OffsetDateTime::now_utc().format(format_description!("[year][month][day]T[hour][minute][second]Z"));
        let time = time.unwrap_or_default();
        let host =
            rustix::system::uname().nodename().to_string_lossy().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let host = host.get(..HOST_LEN).unwrap_or(&host);
        let free = (1..=TRIES).map(|number| {
            let number = if number == 1 { String::new() } else { format!(" {number}") };
            aside(name, &format!(" (conflict {host} {time}{number})"))
        });
        let free = free.filter(|name| !taken(name)).find(|name| self.view.check_name(parent, name).is_ok());
        free.ok_or(Error::Exists)
    }

    async fn look(&self, path: &PlainPath) -> Result<Found, Error> {
        Ok(match self.view.stat(path).await? {
            None => Found::Nothing,
            Some(Listed { kind: Kind::File { version: Some(version), .. }, .. }) => Found::Content(version.hash),
            Some(_) => Found::Other,
        })
    }

    async fn resolve_rename(
        self: &Arc<Self>,
        op: OpNo,
        what: &QueuedOp,
        file: FileNo,
        from: &PlainPath,
        to: &PlainPath,
        replaced: Option<FileNo>,
    ) -> Result<(), Error> {
        let (remote, at_target, entries, dirty) = {
            let ledger = self.journal.ledger();
            let record = ledger.file(file);
            let dirty = record.and_then(|record| record.draft.as_ref()).is_some_and(|draft| draft.is_dirty());
            let remote = record.map_or(Remote::Absent, |record| record.remote);
            (remote, left_by(&ledger, replaced), after_local_move(&ledger, file, replaced), dirty)
        };
        let Remote::Own(version, len) = remote else {
            // Only what was replaced was to be removed; whatever is there now isn't that.
            self.note_conflict(from);
            self.finish(op, what, entries);
            return Ok(());
        };
        let ours = Found::Content(version.hash);
        let (source, target) = (self.look(from).await?, self.look(to).await?);
        if target == ours {
            // The answer was lost after the first half.
            if source == ours {
                self.ask(Op { path: from.clone(), expect: Expect::Is(version.hash), change: Change::Delete }).await?;
            }
            self.finish(op, what, Vec::new());
            return Ok(());
        }
        if !matches_expected(target, at_target) {
            return self.clear_target(op, what, to, target, replaced).await;
        }
        // The source is another version, or gone.
        self.note_conflict(from);
        if dirty {
            self.finish(op, what, entries);
            return Ok(());
        }
        let stored = Stored { version, plain_len: len };
        let change = Change::Put { stored, mtime: OffsetDateTime::now_utc() };
        self.ask(Op { path: to.clone(), expect: at_target.expect(), change }).await?;
        self.finish(op, what, vec![Entry::Remote { file, remote: Remote::Own(version, len) }]);
        Ok(())
    }

    /// Moves a foreign version away from where a rename is to put ours, and has the rename tried again.
    async fn clear_target(
        &self,
        op: OpNo,
        what: &QueuedOp,
        to: &PlainPath,
        target: Found,
        replaced: Option<FileNo>,
    ) -> Result<(), Error> {
        match target {
            Found::Other => return Err(Error::Exists),
            Found::Nothing => {}
            Found::Content(hash) => {
                self.note_conflict(to);
                let (parent, name) = to.split().ok_or(Error::Invalid("the root is no file"))?;
                let directory = lock(&self.tree).find(&parent);
                let aside = self.conflict_name(&parent, name, |name| self.is_child(directory, name))?;
                let change = Change::Rename { to: parent.join(&aside)?, expect_to: Expect::Absent };
                self.ask(Op { path: to.clone(), expect: Expect::Is(hash), change }).await?;
            }
        }
        let _ = what;
        if let Some(file) = replaced {
            self.journal.append(Purpose::Relief, vec![Entry::Remote { file, remote: Remote::Absent }])?;
        }
        self.flusher.op_again(op);
        Ok(())
    }

    fn is_child(&self, directory: Option<Ino>, name: &str) -> bool {
        directory.is_some_and(|ino| lock(&self.tree).child(ino, name).is_ok_and(|child| child.is_some()))
    }

    /// One operation by itself; a conflict is an error that makes the whole be looked at again.
    async fn ask(&self, op: Op) -> Result<Option<Version>, Error> {
        match self.view.commit(std::slice::from_ref(&op)).await.into_iter().next() {
            Some(Outcome::Done(version)) => Ok(version),
            Some(Outcome::Failed(error)) => Err(error.into()),
            Some(Outcome::Conflict { .. }) | None => Err(Error::TimedOut),
        }
    }
}

fn matches_expected(found: Found, expected: Remote) -> bool {
    match (found, expected.expect()) {
        (_, Expect::Any) | (Found::Nothing, Expect::Absent) => true,
        (Found::Content(hash), Expect::Is(expected)) => hash == expected,
        _ => false,
    }
}

/// A name with `mark` before its extension, cut to what a name may have.
fn aside(name: &str, mark: &str) -> String {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 16 => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let room = super::dir::NAME_MAX.saturating_sub(mark.len() + extension.len());
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{mark}{extension}", &stem[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_stands_before_the_extension_and_fits() {
        assert_eq!(aside("a.txt", " (x)"), "a (x).txt");
        assert_eq!(aside(".profile", " (x)"), ".profile (x)");
        assert_eq!(aside("a", " (x)"), "a (x)");
        let long = "é".repeat(127);
        let name = aside(&format!("{long}.t"), " (x)");
        assert!(name.len() <= 255 && name.ends_with(" (x).t"));
    }
}
