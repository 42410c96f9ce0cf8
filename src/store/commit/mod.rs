//! Changes a bucket's namespace. Nothing else in the client does. Checks expectations, forms and orders
//! batches, and determines their results (format spec, section 5 "Operations"; Hub API spec, 4.3; DESIGN,
//! promises 4 and 5).
//!
//! Operations are split into rounds of operations that touch no common path. A round is sent as few batches.
//! The objects at its keys are read immediately before and compared with the expectations. Keys that were
//! read more than five seconds ago are read again before a line is sent. A batch without an answer is not
//! assumed to have failed: its keys are read and compared with the old and the new hash.
//!
//! Errors contain no plaintext. Every operation may be repeated. A change that finds its own result counts as
//! done.

mod batches;
mod plan;
mod queue;
#[cfg(test)]
mod tests;

pub(super) use plan::{Held, Place, SidecarKey, Slot, Spot};
pub(super) use queue::{Execute, Queue};

use super::memory::{InProgress, Memory, Sharing};
use super::remote::Remote;
use super::{Change, ContentId, Error, Expect, MovedFile, Op, Outcome, PlainPath, Side, Stored, Version};
use crate::hub::FileEntry;
use crate::xet::Hash;
use async_trait::async_trait;
use batches::Batches;
use bytes::Bytes;
use plan::{Impossible, Plan};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use time::OffsetDateTime;
use tokio::time::Instant;

/// Operations of one round. The limit keeps the data read at its start fresh for most of its lines.
const MAX_ROUND: usize = 2000;

/// Rules that a kind of view adds to a commit.
#[async_trait]
pub(super) trait Layout: Send + Sync {
    /// Returns the place where a path is stored. Fails if writing there is not allowed.
    fn place(&self, path: &PlainPath) -> Result<Place, Error>;
    /// Returns the side and format of a slot.
    fn side(&self, slot: Slot) -> Side;
    /// Returns, for each of these paths without an own entry, if it has a read-only plaintext file.
    async fn occupied(&self, paths: &[PlainPath]) -> Result<Vec<bool>, Error>;
    /// Fails if a directory may not be moved there.
    async fn check_directory_move(&self, from: &PlainPath, to: &PlainPath) -> Result<(), Error>;
    /// Returns every file below a directory, in both formats.
    async fn files_below(&self, directory: &PlainPath) -> Result<Subtree, Error>;
    /// Checks that these may be overwritten. A damaged file may be good data of another program (format spec,
    /// section 5).
    async fn check_replaceable(&self, versions: &[Version]) -> Vec<Result<(), Error>>;
    /// Returns the content sealed in the newer format. A file in format 2 is never written in format 1 again.
    async fn in_newer_format(&self, stored: &Stored) -> Result<Stored, Error>;
    /// Caches the content of sidecars that were created.
    async fn keep_sidecars(&self, sidecars: Vec<(Hash, Bytes)>);
    /// Records paths (by primary key) that now hold an own file, and paths that no longer do.
    async fn settled(&self, added: Vec<String>, removed: Vec<String>);
}

/// Files of a directory.
#[derive(Default)]
pub(super) struct Subtree {
    /// By path.
    pub(super) files: BTreeMap<PlainPath, [Option<Held>; 2]>,
    /// Entries that this key can't read.
    pub(super) unreadable: u64,
}

/// Carries out operations.
pub(super) struct Committer<'a> {
    pub(super) remote: &'a Remote,
    pub(super) memory: &'a Memory,
    pub(super) layout: &'a dyn Layout,
}

/// Reason why a change wasn't made.
enum Failure {
    Conflict(Option<Hash>),
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Conflict(found) => Outcome::Conflict { found: found.map(ContentId::Xet) },
            Failure::Error(error) => Outcome::Failed(error),
        }
    }
}

impl From<Impossible> for Failure {
    fn from(why: Impossible) -> Self {
        Self::Error(match why {
            Impossible::NameTooLong => Error::NameTooLong,
            Impossible::NoContent => Error::NoContent,
        })
    }
}

/// Keys of an operation's paths.
struct Target {
    from: Place,
    to: Option<Place>,
}

/// Objects at an operation's paths.
struct Spots {
    from: Spot,
    to: Option<Spot>,
}

/// How an object gets to another path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carry {
    Move,
    /// With this metadata, or with that of the source.
    Copy(Option<Hash>),
}

/// An operation that passed all checks.
struct Decided {
    change: plan::Change,
    /// Version that will be at the (new) path.
    version: Option<Version>,
}

/// Object at a key: none, or an object with (or without) a Xet hash.
type Seen = Option<Option<Hash>>;

/// Objects that were read from the bucket.
struct Snapshot {
    files: HashMap<String, FileEntry>,
    at: Instant,
}

impl Snapshot {
    fn held(&self, key: &str) -> Option<Held> {
        self.files.get(key).map(held)
    }

    fn seen(&self, key: &str) -> Seen {
        self.held(key).map(|held| held.hash)
    }

    fn spot(&self, place: &Place) -> Spot {
        let right = |sidecar: &&SidecarKey| self.seen(&sidecar.key) == Some(Some(sidecar.hash));
        Spot {
            primary: self.held(&place.primary),
            legacy: place.legacy.as_deref().and_then(|key| self.held(key)),
            sidecars: place.sidecars.iter().filter(right).map(|sidecar| sidecar.key.clone()).collect(),
            metadata: self.held(&place.metadata),
            place: place.clone(),
        }
    }
}

/// Returns the properties of a listed object that a commit needs.
pub(super) fn held(file: &FileEntry) -> Held {
    Held { hash: file.hash, size: file.size, mtime: file.mtime.or(file.uploaded_at) }
}

impl Committer<'_> {
    /// Carries out `operations` in order. Returns one outcome each.
    pub(super) async fn commit(&self, operations: &[Op]) -> Vec<Outcome> {
        let mut outcomes = Vec::with_capacity(operations.len());
        for round in rounds(operations) {
            match &operations[round.clone()] {
                [Op { path, change: Change::RenameDirectory { to }, .. }] => {
                    let outcome = self.move_directory(path, to).await;
                    outcomes.push(outcome.map_or_else(Outcome::from, Outcome::Moved));
                }
                several => outcomes.extend(self.round(several).await),
            }
        }
        outcomes
    }

    /// Carries out operations that touch no common path.
    async fn round(&self, operations: &[Op]) -> Vec<Outcome> {
        let targets: Vec<Result<Target, Error>> = operations.iter().map(|op| self.target(op)).collect();
        let keys: BTreeSet<String> = targets.iter().flatten().flat_map(Target::keys).collect();
        let snapshot = match self.read(keys.into_iter().collect()).await {
            Ok(snapshot) => snapshot,
            Err(error) => return operations.iter().map(|_| Outcome::Failed(error.again())).collect(),
        };
        let mut spots: Vec<Result<Spots, Error>> = Vec::with_capacity(operations.len());
        for target in targets {
            spots.push(
                target.map(|Target { from, to }| Spots {
                    from: snapshot.spot(&from),
                    to: to.map(|to| snapshot.spot(&to)),
                }),
            );
        }
        self.refuse_plaintext(operations, &mut spots).await;
        let mut decisions: Vec<Result<Decided, Outcome>> = Vec::with_capacity(operations.len());
        for (op, spots) in operations.iter().zip(spots) {
            decisions.push(match spots {
                Ok(spots) => self.decide(op, spots).await,
                Err(error) => Err(Outcome::Failed(error)),
            });
        }
        self.refuse_damaged(&mut decisions).await;
        let _moving = self.moving(decisions.iter().flatten().map(|decided| &decided.change));
        self.refuse_unmarked(&mut decisions).await;
        let going: Vec<&Decided> = decisions.iter().flatten().collect();
        let changes: Vec<plan::Change> = going.iter().map(|decided| decided.change.clone()).collect();
        let mut results = self.run(changes, &snapshot).await.into_iter();
        let mut outcomes = Vec::with_capacity(operations.len());
        for decision in decisions {
            outcomes.push(match decision {
                Err(outcome) => outcome,
                Ok(decided) => match results.next() {
                    Some(Ok(())) => Outcome::Done(decided.version),
                    Some(Err(failure)) => failure.into(),
                    None => Outcome::Failed(Error::Refused("not carried out".into())),
                },
            });
        }
        outcomes
    }

    fn target(&self, op: &Op) -> Result<Target, Error> {
        let to = target_path(op).map(|to| self.layout.place(to)).transpose()?;
        Ok(Target { from: self.layout.place(&op.path)?, to })
    }

    async fn read(&self, keys: Vec<String>) -> Result<Snapshot, Error> {
        let at = Instant::now();
        Ok(Snapshot { files: self.remote.files(&keys).await?, at })
    }

    /// Refuses operations that would touch the plaintext side of a view with a key.
    async fn refuse_plaintext(&self, operations: &[Op], spots: &mut [Result<Spots, Error>]) {
        let mut asked = Vec::new();
        for (index, (op, spots)) in operations.iter().zip(&*spots).enumerate() {
            let Ok(Spots { from, to }) = spots else { continue };
            let paths = [(Some(&op.path), Some(from)), (target_path(op), to.as_ref())];
            for (path, spot) in paths {
                if let (Some(path), Some(spot)) = (path, spot)
                    && spot.shown().is_none()
                {
                    asked.push((index, path.clone()));
                }
            }
        }
        let (indexes, paths): (Vec<usize>, Vec<PlainPath>) = asked.into_iter().unzip();
        let occupied = match self.layout.occupied(&paths).await {
            Ok(occupied) => occupied,
            Err(error) => {
                indexes.into_iter().for_each(|index| spots[index] = Err(error.again()));
                return;
            }
        };
        for (index, _) in indexes.into_iter().zip(occupied).filter(|(_, occupied)| *occupied) {
            spots[index] = Err(Error::ReadOnly);
        }
    }

    /// Compares the objects at an operation's paths with its expectations.
    async fn decide(&self, op: &Op, Spots { from, to }: Spots) -> Result<Decided, Outcome> {
        let decided = match (&op.change, to) {
            (Change::Put { stored, mtime, metadata }, _) => {
                self.decide_put(op.expect, stored, *mtime, *metadata, from).await?
            }
            (Change::Describe { metadata }, _) => self.decide_describe(op.expect, *metadata, from)?,
            (Change::SetModified { mtime }, _) => self.decide_set_modified(op.expect, *mtime, from)?,
            (Change::Delete, _) => decide_delete(op.expect, from)?,
            (Change::Rename { expect_to, .. }, Some(to)) => {
                self.decide_move(op.expect, *expect_to, from, to, Carry::Move)?
            }
            (Change::Copy { expect_to, metadata, .. }, Some(to)) => {
                let metadata = metadata.map(|id| id.xet()).transpose().map_err(Outcome::Failed)?;
                self.decide_move(op.expect, *expect_to, from, to, Carry::Copy(metadata))?
            }
            // A directory has a round of its own. The other operations have a target.
            _ => return Err(Outcome::Failed(Error::InvalidName)),
        };
        decided.change.check().map_err(|why| Outcome::from(Failure::from(why)))?;
        Ok(decided)
    }

    async fn decide_put(
        &self,
        expect: Expect,
        stored: &Stored,
        mtime: OffsetDateTime,
        metadata: Option<ContentId>,
        at: Spot,
    ) -> Result<Decided, Outcome> {
        let mut stored = *stored;
        if stored.version.side != self.layout.side(Slot::Primary) {
            if stored.version.side != self.layout.side(Slot::Legacy) {
                return Err(Outcome::Failed(Error::WrongSide));
            }
            if at.primary.is_some() {
                stored = self.layout.in_newer_format(&stored).await.map_err(Outcome::Failed)?;
            }
        }
        let slot = if stored.version.side == self.layout.side(Slot::Primary) { Slot::Primary } else { Slot::Legacy };
        let hash = stored.version.id.xet().map_err(Outcome::Failed)?;
        let (shown, legacy) = (at.shown(), at.legacy.and_then(|held| held.id()));
        let already = shown.is_some_and(|(at, held)| at == slot && held.hash == Some(hash));
        if !already && !meets(expect, &at) {
            return Err(Outcome::Conflict { found: at.shown_id() });
        }
        // A hidden format-1 object isn't the base of the new version, unless an earlier try has hidden it.
        let began_from_legacy = matches!(expect, Expect::Is(base) if legacy == Some(base));
        let replaces_legacy = at.primary.is_none() || (already && began_from_legacy);
        let metadata = metadata.map(|id| id.xet()).transpose().map_err(Outcome::Failed)?;
        let change = plan::Change::Put { at, slot, hash, mtime, replaces_legacy, metadata };
        Ok(Decided { change, version: Some(stored.version) })
    }

    fn decide_describe(&self, expect: Expect, metadata: ContentId, at: Spot) -> Result<Decided, Outcome> {
        let Some((slot, held)) = at.shown() else { return Err(Outcome::Conflict { found: None }) };
        if !meets(expect, &at) {
            return Err(Outcome::Conflict { found: at.shown_id() });
        }
        let (version, metadata) = (self.version(slot, held), metadata.xet().map_err(Outcome::Failed)?);
        Ok(Decided { change: plan::Change::Describe { at, metadata }, version })
    }

    fn decide_set_modified(&self, expect: Expect, mtime: OffsetDateTime, at: Spot) -> Result<Decided, Outcome> {
        let Some((slot, held)) = at.shown() else { return Err(Outcome::Conflict { found: None }) };
        if !meets(expect, &at) {
            return Err(Outcome::Conflict { found: at.shown_id() });
        }
        if held.hash.is_none() {
            return Err(Outcome::Failed(Error::NoContent));
        }
        let version = self.version(slot, held);
        Ok(Decided { change: plan::Change::SetModified { at, mtime }, version })
    }

    fn decide_move(
        &self,
        expect: Expect,
        expect_to: Expect,
        from: Spot,
        to: Spot,
        carry: Carry,
    ) -> Result<Decided, Outcome> {
        let Some((slot, held)) = from.shown() else {
            return Err(self.without_source(expect, &to, carry == Carry::Move));
        };
        if !meets(expect, &from) {
            return Err(Outcome::Conflict { found: from.shown_id() });
        }
        let version = self.version(slot, held);
        if from.place.primary == to.place.primary {
            // A client that removed the last other file below a stored name may have removed the sidecar of
            // the name too.
            if let (true, Some(hash)) = (slot == Slot::Primary && from.lacks_sidecars(), held.hash) {
                let mtime = held.mtime.unwrap_or_else(OffsetDateTime::now_utc);
                let (replaces_legacy, metadata) = (false, None);
                let change = plan::Change::Put { at: from, slot, hash, mtime, replaces_legacy, metadata };
                return Ok(Decided { change, version });
            }
            return Err(Outcome::Done(version));
        }
        let already = held.hash.is_some() && to.shown_id() == held.id();
        if !already && !meets(expect_to, &to) {
            return Err(Outcome::Conflict { found: to.shown_id() });
        }
        let change = match carry {
            Carry::Move => plan::Change::Move { from, to },
            Carry::Copy(metadata) => plan::Change::Copy { from, to, metadata },
        };
        Ok(Decided { change, version })
    }

    /// Returns the outcome of a move or copy whose source doesn't exist.
    fn without_source(&self, expect: Expect, to: &Spot, moves: bool) -> Outcome {
        match (expect, to.shown()) {
            // An earlier try did it all.
            (Expect::Is(id), Some((slot, held))) if moves && held.id() == Some(id) => {
                Outcome::Done(self.version(slot, held))
            }
            (Expect::Is(_), _) => Outcome::Conflict { found: None },
            _ => Outcome::Failed(Error::NotFound),
        }
    }

    fn version(&self, slot: Slot, held: Held) -> Option<Version> {
        held.id().map(|id| Version { id, stored_len: held.size, side: self.layout.side(slot) })
    }

    /// Refuses changes that would overwrite a file that can't be opened.
    async fn refuse_damaged(&self, decisions: &mut [Result<Decided, Outcome>]) {
        let mut asked: Vec<(usize, Version)> = Vec::new();
        for (index, decision) in decisions.iter_mut().enumerate() {
            let Ok(decided) = decision else { continue };
            for (slot, held) in decided.change.replaced() {
                match self.version(slot, held) {
                    Some(version) => asked.push((index, version)),
                    None if self.layout.side(slot) == Side::Plain => {}
                    None => {
                        *decision = Err(Outcome::Failed(Error::NoContent));
                        break;
                    }
                }
            }
        }
        let versions: Vec<Version> = asked.iter().map(|(_, version)| *version).collect();
        for ((index, _), answer) in asked.iter().zip(self.layout.check_replaceable(&versions).await) {
            if let Err(error) = answer {
                decisions[*index] = Err(Outcome::Failed(error));
            }
        }
    }

    /// Marks content that is about to be under two paths, on disk, before the second one is sent (format
    /// spec, section 4, last row of the table). Refuses changes whose content can't be marked.
    async fn refuse_unmarked(&self, decisions: &mut [Result<Decided, Outcome>]) {
        let changes = decisions.iter().flatten().map(|decided| &decided.change);
        let Err(error) = self.mark_shared(changes).await else { return };
        for decision in decisions {
            if decision.as_ref().is_ok_and(|decided| !shared_hashes(&decided.change).is_empty()) {
                *decision = Err(Outcome::Failed(error.again()));
            }
        }
    }

    /// Counts the renames among `changes` as in progress until the guard is dropped.
    fn moving<'c>(&self, changes: impl Iterator<Item = &'c plan::Change>) -> InProgress<'_> {
        let moves = changes.filter(|change| matches!(change, plan::Change::Move { .. }));
        self.memory.begin_moving(moves.flat_map(shared_hashes).collect())
    }

    async fn mark_shared(&self, changes: impl Iterator<Item = &plan::Change>) -> Result<(), Error> {
        let (mut moved, mut copied) = (Vec::new(), Vec::new());
        for change in changes {
            let marks = if matches!(change, plan::Change::Copy { .. }) { &mut copied } else { &mut moved };
            marks.extend(shared_hashes(change));
        }
        self.memory.mark_shared(Sharing::Copied, copied).await?;
        self.memory.mark_shared(Sharing::Moving, moved).await
    }

    /// Moves everything below a directory.
    async fn move_directory(&self, from: &PlainPath, to: &PlainPath) -> Result<Vec<MovedFile>, Failure> {
        if from == to {
            return Ok(Vec::new());
        }
        if from.is_root() || to.is_within(from) {
            return Err(Error::InvalidName.into());
        }
        let begun = (self.layout.place(from)?.primary, self.layout.place(to)?.primary);
        self.layout.check_directory_move(from, to).await?;
        let at = Instant::now();
        let subtree = self.layout.files_below(from).await?;
        if subtree.unreadable > 0 {
            return Err(Error::NotEmpty(subtree.unreadable).into());
        }
        // An earlier try may have stopped in the middle. Then its files at the target are this client's own,
        // and the move continues.
        let resumes = self.memory.is_moving(&begun.0, &begun.1).await?;
        let there = self.layout.files_below(to).await?;
        let occupied = there.files.len() as u64 + there.unreadable;
        if occupied > 0 && !resumes && !subtree.files.is_empty() {
            return Err(Error::NotEmpty(occupied).into());
        }
        let mut moved = self.moved(from, to, &subtree);
        if resumes || subtree.files.is_empty() {
            // An earlier try has moved these files.
            let left: HashSet<_> = moved.iter().map(|file| file.path.clone()).collect();
            moved.extend(self.moved(to, to, &there).into_iter().filter(|file| !left.contains(&file.path)));
        }
        let (changes, mut files) = self.directory_changes(from, to, subtree, &there).await?;
        self.memory.set_moving(&begun.0, &begun.1, true).await?;
        let _moving = self.moving(changes.iter());
        self.mark_shared(changes.iter()).await?;
        files.extend(changes.iter().flat_map(known_files));
        for result in self.run(changes, &Snapshot { files, at }).await {
            result?;
        }
        self.memory.set_moving(&begun.0, &begun.1, false).await?;
        Ok(moved)
    }

    /// Returns the files of a directory, at their new paths.
    fn moved(&self, from: &PlainPath, to: &PlainPath, subtree: &Subtree) -> Vec<MovedFile> {
        let moved = |(path, [primary, legacy]): (&PlainPath, &[Option<Held>; 2])| {
            let primary = primary.map(|held| (Slot::Primary, held));
            let (slot, held) = primary.or(legacy.map(|held| (Slot::Legacy, held)))?;
            Some(MovedFile { path: path.rebase(from, to)?, version: self.version(slot, held)?, mtime: held.mtime })
        };
        subtree.files.iter().filter_map(moved).collect()
    }

    /// Returns the moves of all files, and the existing sidecars that the moves need or make obsolete.
    async fn directory_changes(
        &self,
        from: &PlainPath,
        to: &PlainPath,
        subtree: Subtree,
        there: &Subtree,
    ) -> Result<(Vec<plan::Change>, HashMap<String, FileEntry>), Failure> {
        let mut moves = Vec::with_capacity(subtree.files.len());
        let mut sidecars = BTreeSet::new();
        for (path, held) in subtree.files {
            let target = path.rebase(from, to).ok_or(Error::InvalidName)?;
            let places = (self.layout.place(&path)?, self.layout.place(&target)?);
            let both = places.0.sidecars.iter().chain(&places.1.sidecars);
            sidecars.extend(both.map(|sidecar| sidecar.key.clone()));
            sidecars.extend([&places.0, &places.1].map(|place| place.metadata.clone()));
            moves.push((places, held, there.files.get(&target).copied().unwrap_or_default()));
        }
        let sidecars = self.read(sidecars.into_iter().collect()).await?;
        let mut changes = Vec::with_capacity(moves.len());
        for ((from, to), held, there) in moves {
            for (moved, found) in held.iter().zip(there) {
                let differs = |found: &Held| moved.is_none_or(|moved| moved.hash != found.hash);
                if let Some(found) = found.filter(differs) {
                    return Err(Failure::Conflict(found.hash));
                }
            }
            let [primary, legacy] = held;
            let from = Spot { primary, legacy, ..sidecars.spot(&from) };
            let [primary, legacy] = there;
            let to = Spot { primary, legacy, ..sidecars.spot(&to) };
            let change = plan::Change::Move { from, to };
            change.check()?;
            changes.push(change);
        }
        Ok((changes, sidecars.files))
    }

    /// Carries out changes. Returns one result each.
    async fn run(&self, changes: Vec<plan::Change>, snapshot: &Snapshot) -> Vec<Result<(), Failure>> {
        let plan = Plan::new(&changes, OffsetDateTime::now_utc());
        let mut batches = Batches::new(self.remote, plan, &changes, snapshot);
        let sidecars = batches.upload_sidecars(&changes).await;
        self.layout.keep_sidecars(sidecars).await;
        batches.send_all().await;
        let results = batches.results(changes.len());
        self.take_note(&changes, &results).await;
        results
    }

    async fn take_note(&self, changes: &[plan::Change], results: &[Result<(), Failure>]) {
        let (mut added, mut removed, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for (change, _) in changes.iter().zip(results).filter(|(_, result)| result.is_ok()) {
            match change {
                plan::Change::Put { at, .. } => added.push(at.place.primary.clone()),
                plan::Change::Describe { .. } | plan::Change::SetModified { .. } => {}
                plan::Change::Delete { at } => removed.push(at.place.primary.clone()),
                plan::Change::Copy { to, .. } => added.push(to.place.primary.clone()),
                plan::Change::Move { from, to } => {
                    moved.extend(shared_hashes(change));
                    added.push(to.place.primary.clone());
                    removed.push(from.place.primary.clone());
                }
            }
        }
        // After a successful rename the content has one path again.
        self.memory.unmark_moved(moved).await;
        self.layout.settled(added, removed).await;
    }
}

impl Target {
    fn keys(&self) -> Vec<String> {
        let places = [Some(&self.from), self.to.as_ref()];
        let mut keys = Vec::new();
        for place in places.into_iter().flatten() {
            keys.push(place.primary.clone());
            keys.extend(place.legacy.clone());
            keys.extend(place.sidecars.iter().map(|sidecar| sidecar.key.clone()));
            keys.push(place.metadata.clone());
        }
        keys
    }
}

/// Returns the other path of an operation on a file.
fn target_path(op: &Op) -> Option<&PlainPath> {
    match &op.change {
        Change::Rename { to, .. } | Change::Copy { to, .. } => Some(to),
        Change::Put { .. }
        | Change::Delete
        | Change::Describe { .. }
        | Change::SetModified { .. }
        | Change::RenameDirectory { .. } => None,
    }
}

fn meets(expect: Expect, spot: &Spot) -> bool {
    match expect {
        Expect::Any => true,
        Expect::Absent => spot.shown().is_none(),
        Expect::Is(id) => spot.shown_id() == Some(id),
    }
}

fn decide_delete(expect: Expect, at: Spot) -> Result<Decided, Outcome> {
    // A file that doesn't exist is deleted already, also in a repeat. Its sidecars may still exist.
    if at.shown().is_some() && !meets(expect, &at) {
        return Err(Outcome::Conflict { found: at.shown_id() });
    }
    Ok(Decided { change: plan::Change::Delete { at }, version: None })
}

/// Returns hashes that the change leaves under two paths, at least for a while, if an edit in place would
/// keep their file id.
fn shared_hashes(change: &plan::Change) -> Vec<Hash> {
    let large = |held: &Held| held.size > super::draft::NEW_ID_LIMIT;
    let spot = match change {
        plan::Change::Put { .. }
        | plan::Change::Delete { .. }
        | plan::Change::Describe { .. }
        | plan::Change::SetModified { .. } => return vec![],
        plan::Change::Move { from, .. } | plan::Change::Copy { from, .. } => from,
    };
    spot.primary.iter().chain(&spot.legacy).filter(|held| large(held)).filter_map(|held| held.hash).collect()
}

/// Returns the objects that a change assumes at its keys.
fn known_files(change: &plan::Change) -> Vec<(String, FileEntry)> {
    let mut files = Vec::new();
    for spot in change.spots() {
        let keys = [Some(&spot.place.primary), spot.place.legacy.as_ref()];
        for (key, held) in keys.into_iter().zip([spot.primary, spot.legacy]) {
            if let (Some(key), Some(held)) = (key, held) {
                let file = FileEntry {
                    key: key.clone(),
                    size: held.size,
                    hash: held.hash,
                    blob: None,
                    mtime: held.mtime,
                    uploaded_at: None,
                };
                files.push((key.clone(), file));
            }
        }
    }
    files
}

/// Returns the paths of an operation.
fn paths(op: &Op) -> Vec<&PlainPath> {
    match &op.change {
        Change::Rename { to, .. } | Change::Copy { to, .. } | Change::RenameDirectory { to } => vec![&op.path, to],
        Change::Put { .. } | Change::Delete | Change::Describe { .. } | Change::SetModified { .. } => vec![&op.path],
    }
}

/// Returns the keys of the directories above an operation's paths that have a sidecar. Other paths may share
/// it. Only the outermost directory of each path is returned.
pub(super) fn sidecar_domains(layout: &dyn Layout, op: &Op) -> Vec<String> {
    let domain = |path: &PlainPath| Some(layout.place(path).ok()?.sidecars.into_iter().next()?.names);
    paths(op).into_iter().filter_map(domain).collect()
}

/// Splits operations into consecutive rounds that touch no common path. Directories are moved in a round of
/// their own.
fn rounds(operations: &[Op]) -> Vec<std::ops::Range<usize>> {
    let mut rounds = Vec::new();
    let mut touched = Touched::default();
    let mut start = 0;
    for (index, op) in operations.iter().enumerate() {
        let paths = paths(op);
        let alone = matches!(op.change, Change::RenameDirectory { .. });
        let full = index - start >= MAX_ROUND;
        if index > start && (alone || full || touched.alone || paths.iter().any(|path| touched.meets(path))) {
            rounds.push(start..index);
            (start, touched) = (index, Touched::default());
        }
        touched.alone = alone;
        paths.into_iter().for_each(|path| touched.add(path));
    }
    if start < operations.len() {
        rounds.push(start..operations.len());
    }
    rounds
}

/// Paths of a round, and all their ancestors.
#[derive(Default)]
struct Touched {
    paths: HashSet<PlainPath>,
    ancestors: HashSet<PlainPath>,
    alone: bool,
}

impl Touched {
    fn add(&mut self, path: &PlainPath) {
        self.ancestors.extend(ancestors(path));
        self.paths.insert(path.clone());
    }

    fn meets(&self, path: &PlainPath) -> bool {
        self.paths.contains(path)
            || self.ancestors.contains(path)
            || ancestors(path).any(|ancestor| self.paths.contains(&ancestor))
    }
}

fn ancestors(path: &PlainPath) -> impl Iterator<Item = PlainPath> {
    let mut next = path.split().map(|(parent, _)| parent);
    std::iter::from_fn(move || {
        let current = next.take()?;
        next = current.split().map(|(parent, _)| parent);
        (!current.is_root()).then_some(current)
    })
}
