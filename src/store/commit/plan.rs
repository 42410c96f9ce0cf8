//! Plans the keys that a change adds and deletes, and their order (format spec, section 4b "Two formats in
//! one tree" and section 5 "Operations").
//!
//! A change takes several requests, and the client may crash between them. The order must be safe at each
//! point.
//!
//! Pure. [`Plan::new`] turns changes of known objects into lines that wait for each other. [`Run`] returns
//! the next batch from the results of the previous ones. These rules hold at every point of interruption:
//!
//! - no batch has adds and deletes; a delete waits for every add of its change;
//! - a sidecar is added in a line before that of its object, and deleted after the last object that needs it,
//!   inner ones first;
//! - of a path in both formats the newer object is added first and deleted last, so that the hidden one never
//!   becomes visible;
//! - an object that would hide a moved object at its new path is deleted before the old path.

use crate::hub::replacing_mtime;
use crate::store::ContentId;
use crate::xet::Hash;
use crate::xet::{hash::chunk_hash, merkle::file_hash};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use time::OffsetDateTime;

/// Keys under which a path is stored.
#[derive(Clone, Debug)]
pub(in crate::store) struct Place {
    /// Key in format 2, or the key on a plain source.
    pub(in crate::store) primary: String,
    /// Sidecars that the primary key needs, outermost first.
    pub(in crate::store) sidecars: Vec<SidecarKey>,
    /// Key in format 1, if the path has one.
    pub(in crate::store) legacy: Option<String>,
    /// Key of the file's metadata object.
    pub(in crate::store) metadata: String,
}

/// A long-name sidecar.
#[derive(Clone, Debug)]
pub(in crate::store) struct SidecarKey {
    /// Its object key.
    pub(in crate::store) key: String,
    /// Key of the file or directory that it names.
    pub(in crate::store) names: String,
    /// Its content.
    pub(in crate::store) bytes: Vec<u8>,
    /// The Xet hash of its content.
    pub(in crate::store) hash: Hash,
}

impl SidecarKey {
    /// Creates a sidecar from the output of the name cipher: `.enc/…/-N2x`.
    pub(in crate::store) fn new(key: String, bytes: Vec<u8>) -> Self {
        use crate::crypto::names::{LONG_PREFIX, SIDECAR_PREFIX};
        let (parent, name) = key.rsplit_once('/').unwrap_or(("", &key));
        let token = name.strip_prefix(SIDECAR_PREFIX).unwrap_or(name);
        let names = format!("{parent}/{LONG_PREFIX}{token}");
        // It is far smaller than the smallest chunk, so it is one chunk.
        let hash = file_hash(&[(chunk_hash(&bytes), bytes.len() as u64)]);
        Self { key, names, bytes, hash }
    }
}

/// One of a place's two keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Slot {
    /// Format 2, or plain.
    Primary,
    /// Format 1.
    Legacy,
}

/// An existing object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) struct Held {
    /// Xet hash. `None`: an object without one.
    pub(in crate::store) hash: Option<Hash>,
    /// Stored size in bytes.
    pub(in crate::store) size: u64,
    /// Time that a move keeps.
    pub(in crate::store) mtime: Option<OffsetDateTime>,
}

impl Held {
    /// Returns the id of the content.
    pub(in crate::store) fn id(&self) -> Option<ContentId> {
        self.hash.map(ContentId::Xet)
    }
}

/// A path and the objects at its keys.
#[derive(Clone, Debug)]
pub(in crate::store) struct Spot {
    pub(in crate::store) place: Place,
    pub(in crate::store) primary: Option<Held>,
    pub(in crate::store) legacy: Option<Held>,
    /// Keys of the place's sidecars that exist with the right content.
    pub(in crate::store) sidecars: BTreeSet<String>,
    /// The metadata object.
    pub(in crate::store) metadata: Option<Held>,
}

impl Spot {
    /// Returns the object that a reader sees: the newer format.
    pub(in crate::store) fn shown(&self) -> Option<(Slot, Held)> {
        let primary = self.primary.map(|held| (Slot::Primary, held));
        primary.or(self.legacy.map(|held| (Slot::Legacy, held)))
    }

    /// Returns the hash of the object that a reader sees.
    pub(in crate::store) fn shown_id(&self) -> Option<ContentId> {
        self.shown().and_then(|(_, held)| held.id())
    }

    /// Returns true if its name, or one above it, can't be read because its sidecar is missing.
    pub(in crate::store) fn lacks_sidecars(&self) -> bool {
        self.sidecars.len() < self.place.sidecars.len()
    }

    fn key(&self, slot: Slot) -> Option<&str> {
        match slot {
            Slot::Primary => Some(&self.place.primary),
            Slot::Legacy => self.place.legacy.as_deref(),
        }
    }

    fn held(&self, slot: Slot) -> Option<Held> {
        match slot {
            Slot::Primary => self.primary,
            Slot::Legacy => self.legacy,
        }
    }
}

/// A change, with all data that it needs.
#[derive(Clone, Debug)]
pub(in crate::store) enum Change {
    /// New content.
    Put {
        at: Spot,
        slot: Slot,
        hash: Hash,
        mtime: OffsetDateTime,
        /// The format-1 object is the version that the content replaces, so it is deleted after the content
        /// was added. A hidden one stays.
        replaces_legacy: bool,
        /// New metadata.
        metadata: Option<Hash>,
    },
    /// New metadata of the file that is there.
    Describe { at: Spot, metadata: Hash },
    /// Another time of the file that is there.
    SetModified { at: Spot, mtime: OffsetDateTime },
    /// Deletes everything at the path.
    Delete { at: Spot },
    /// Moves everything at one path to the other.
    Move { from: Spot, to: Spot },
    /// Copies the object that is shown at one path to the other. `metadata`: that of the copy. `None`: the same.
    Copy { from: Spot, to: Spot, metadata: Option<Hash> },
}

/// Reason why a change can't be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Impossible {
    /// Format 1 can't store the name.
    NameTooLong,
    /// An object without a Xet hash can't be put under another key.
    NoContent,
}

impl Change {
    /// Checks that every object has a key at its new path. A change that fails the check gets no lines.
    pub(in crate::store) fn check(&self) -> Result<(), Impossible> {
        let (moved, to) = match self {
            Self::Put { slot, at, .. } => {
                return at.key(*slot).map(|_| ()).ok_or(Impossible::NameTooLong);
            }
            Self::Delete { .. } | Self::Describe { .. } | Self::SetModified { .. } => return Ok(()),
            Self::Move { from, to } => (vec![(Slot::Primary, from.primary), (Slot::Legacy, from.legacy)], to),
            Self::Copy { from, to, .. } => {
                (from.shown().map(|(slot, held)| (slot, Some(held))).into_iter().collect(), to)
            }
        };
        for (slot, held) in moved {
            let Some(held) = held else { continue };
            to.key(slot).ok_or(Impossible::NameTooLong)?;
            held.hash.ok_or(Impossible::NoContent)?;
        }
        Ok(())
    }
}

impl Change {
    /// Returns the paths that it concerns.
    pub(in crate::store) fn spots(&self) -> Vec<&Spot> {
        match self {
            Self::Put { at, .. } | Self::Delete { at } | Self::Describe { at, .. } | Self::SetModified { at, .. } => {
                vec![at]
            }
            Self::Move { from, to } | Self::Copy { from, to, .. } => vec![from, to],
        }
    }

    /// Returns every key of an entry that it concerns, without sidecars.
    pub(in crate::store) fn keys(&self) -> Vec<String> {
        let places = self.spots().into_iter().map(|spot| &spot.place);
        places.flat_map(|place| std::iter::once(&place.primary).chain(&place.legacy)).cloned().collect()
    }

    /// Returns the objects whose content it replaces.
    pub(in crate::store) fn replaced(&self) -> Vec<(Slot, Held)> {
        match self {
            Self::Put { at, .. } => at.shown().into_iter().collect(),
            Self::Delete { .. } | Self::Describe { .. } | Self::SetModified { .. } => vec![],
            Self::Move { to, .. } | Self::Copy { to, .. } => {
                let slots = [(Slot::Primary, to.primary), (Slot::Legacy, to.legacy)];
                slots.into_iter().filter_map(|(slot, held)| Some((slot, held?))).collect()
            }
        }
    }
}

/// Effect of a line on its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Action {
    Add {
        hash: Hash,
        mtime: OffsetDateTime,
    },
    /// Adds the object that is there with another time.
    SetModified {
        hash: Hash,
        mtime: OffsetDateTime,
    },
    Delete,
}

/// One line of a future batch.
#[derive(Clone, Debug)]
pub(in crate::store) struct Line {
    pub(in crate::store) key: String,
    pub(in crate::store) action: Action,
    /// Changes that are not complete without it.
    pub(in crate::store) owners: Vec<usize>,
    /// Set if this deletes a sidecar. It must not be sent while an object is at or below this key.
    pub(in crate::store) unless_needed: Option<String>,
    pub(in crate::store) is_sidecar: bool,
    /// Lines that must have succeeded in an earlier batch.
    after: Vec<usize>,
    /// Sidecar lines that must have succeeded, or come before it in its batch.
    beside: Vec<usize>,
}

/// All lines of some changes that touch no common path.
#[derive(Debug, Default)]
pub(in crate::store) struct Plan {
    lines: Vec<Line>,
    sidecar_adds: HashMap<String, usize>,
    /// Sidecars whose last object may be removed, by key, with the lines to wait for.
    leaving: BTreeMap<String, Leaving>,
}

#[derive(Debug, Default)]
struct Leaving {
    names: String,
    after: Vec<usize>,
    inner: BTreeSet<String>,
    owners: BTreeSet<usize>,
}

impl Plan {
    /// Plans changes. `changes[i]` is owner `i` of its lines.
    pub(in crate::store) fn new(changes: &[Change], now: OffsetDateTime) -> Self {
        let mut plan = Self::default();
        for (owner, change) in changes.iter().enumerate() {
            if change.check().is_err() {
                // Without its adds none of its deletes may be planned.
                continue;
            }
            match change {
                Change::Put { at, slot, hash, mtime, replaces_legacy, metadata } => {
                    let held = Held { hash: Some(*hash), size: 0, mtime: Some(*mtime) };
                    plan.describe(owner, at, *metadata, now);
                    let added = plan.add(owner, at, *slot, held, &[], now);
                    if *slot == Slot::Primary && *replaces_legacy {
                        plan.delete(owner, at, Slot::Legacy, &added);
                    }
                }
                Change::Delete { at } => {
                    let older = plan.delete(owner, at, Slot::Legacy, &[]);
                    let newer = plan.delete(owner, at, Slot::Primary, older.as_slice());
                    plan.delete_metadata(owner, at, older.into_iter().chain(newer).collect());
                    if at.primary.is_none() {
                        // An earlier try may have left them.
                        plan.let_sidecars_go(owner, at, None);
                    }
                }
                Change::Describe { at, metadata } => plan.describe(owner, at, Some(*metadata), now),
                Change::SetModified { at, mtime } => plan.set_modified(owner, at, *mtime),
                Change::Move { from, to } => plan.plan_move(owner, from, to, now),
                Change::Copy { from, to, metadata } => {
                    plan.describe(owner, to, metadata.or(from.metadata.and_then(|held| held.hash)), now);
                    plan.plan_copy(owner, from, to, now);
                }
            }
        }
        plan.place_leaving();
        plan
    }

    #[cfg(test)]
    pub(in crate::store) fn line_count(&self) -> usize {
        self.lines.len()
    }

    fn plan_move(&mut self, owner: usize, from: &Spot, to: &Spot, now: OffsetDateTime) {
        self.describe(owner, to, from.metadata.and_then(|held| held.hash), now);
        let mut before = Vec::new();
        for (slot, held) in [(Slot::Primary, from.primary), (Slot::Legacy, from.legacy)] {
            if let Some(held) = held {
                before.extend(self.add(owner, to, slot, held, &before.clone(), now));
            }
        }
        if from.primary.is_none() {
            // A newer object there would hide the moved one.
            before.extend(self.delete(owner, to, Slot::Primary, &before.clone()));
        } else if from.legacy.is_none() && !same(from.primary, to.primary) {
            // The replaced file is deleted in both formats. After an earlier try its format-1 object may be
            // the moved one. Then it stays.
            self.delete(owner, to, Slot::Legacy, &before);
        }
        before.extend(self.delete(owner, from, Slot::Legacy, &before.clone()));
        before.extend(self.delete(owner, from, Slot::Primary, &before.clone()));
        self.delete_metadata(owner, from, before);
    }

    /// Adds the metadata object of a file, before the file's own object. Until that is there, the metadata names
    /// another content and means nothing.
    fn describe(&mut self, owner: usize, at: &Spot, metadata: Option<Hash>, now: OffsetDateTime) {
        let Some(hash) = metadata else { return };
        if at.metadata.is_some_and(|held| held.hash == Some(hash)) {
            return;
        }
        let (key, action) = (at.place.metadata.clone(), Action::Add { hash, mtime: now });
        let (owners, after, beside) = (vec![owner], vec![], vec![]);
        self.push(Line { key, action, owners, unless_needed: None, is_sidecar: false, after, beside });
    }

    /// Gives the object that is shown another time.
    fn set_modified(&mut self, owner: usize, at: &Spot, mtime: OffsetDateTime) {
        let Some((slot, Held { hash: Some(hash), mtime: held, .. })) = at.shown() else { return };
        let Some(key) = at.key(slot).filter(|_| held != Some(mtime)) else { return };
        let (key, action) = (key.to_owned(), Action::SetModified { hash, mtime });
        let (owners, after, beside) = (vec![owner], vec![], vec![]);
        self.push(Line { key, action, owners, unless_needed: None, is_sidecar: false, after, beside });
    }

    /// Deletes the metadata object of a file, if it exists, after the file's own objects.
    fn delete_metadata(&mut self, owner: usize, at: &Spot, after: Vec<usize>) {
        if at.metadata.is_none() {
            return;
        }
        let (key, action, owners) = (at.place.metadata.clone(), Action::Delete, vec![owner]);
        self.push(Line { key, action, owners, unless_needed: None, is_sidecar: false, after, beside: vec![] });
    }

    fn plan_copy(&mut self, owner: usize, from: &Spot, to: &Spot, now: OffsetDateTime) {
        let Some((slot, held)) = from.shown() else { return };
        let added = self.add(owner, to, slot, held, &[], now);
        match slot {
            // Like an edit: the version that was shown is replaced, a hidden one stays.
            Slot::Primary if to.primary.is_none() => drop(self.delete(owner, to, Slot::Legacy, &added)),
            Slot::Primary => {}
            Slot::Legacy => drop(self.delete(owner, to, Slot::Primary, &added)),
        }
    }

    /// Adds an object and its missing sidecars, unless they exist. Returns the lines. The object can't be
    /// read until all of them have succeeded.
    fn add(
        &mut self,
        owner: usize,
        to: &Spot,
        slot: Slot,
        held: Held,
        after: &[usize],
        now: OffsetDateTime,
    ) -> Vec<usize> {
        let mut lines = if slot == Slot::Primary { self.add_sidecars(owner, to, now) } else { vec![] };
        let (Some(key), Some(hash)) = (to.key(slot), held.hash) else { return lines };
        if !same(to.held(slot), Some(held)) {
            // Clients that compare size and time must notice that the object was replaced.
            let replaced = to.held(slot).map(|replaced| replaced.mtime.unwrap_or(now));
            let mtime = replacing_mtime(held.mtime.unwrap_or(now), replaced, now);
            let (key, action) = (key.to_owned(), Action::Add { hash, mtime });
            let (after, beside) = (after.to_vec(), lines.clone());
            let (owners, unless_needed, is_sidecar) = (vec![owner], None, false);
            lines.push(self.push(Line { key, action, owners, unless_needed, is_sidecar, after, beside }));
        }
        lines
    }

    fn add_sidecars(&mut self, owner: usize, to: &Spot, now: OffsetDateTime) -> Vec<usize> {
        let missing = to.place.sidecars.iter().filter(|sidecar| !to.sidecars.contains(&sidecar.key));
        let mut lines = Vec::new();
        for sidecar in missing {
            if let Some(&line) = self.sidecar_adds.get(&sidecar.key) {
                self.lines[line].owners.push(owner);
                lines.push(line);
                continue;
            }
            let action = Action::Add { hash: sidecar.hash, mtime: now };
            let line = self.push(Line {
                key: sidecar.key.clone(),
                action,
                owners: vec![owner],
                unless_needed: None,
                is_sidecar: true,
                after: vec![],
                beside: vec![],
            });
            self.sidecar_adds.insert(sidecar.key.clone(), line);
            lines.push(line);
        }
        lines
    }

    /// Deletes an object, if it exists.
    fn delete(&mut self, owner: usize, at: &Spot, slot: Slot, after: &[usize]) -> Option<usize> {
        at.held(slot)?;
        let key = at.key(slot)?.to_owned();
        let line = self.push(Line {
            key,
            action: Action::Delete,
            owners: vec![owner],
            unless_needed: None,
            is_sidecar: false,
            after: after.to_vec(),
            beside: vec![],
        });
        if slot == Slot::Primary {
            self.let_sidecars_go(owner, at, Some(line));
        }
        Some(line)
    }

    fn let_sidecars_go(&mut self, owner: usize, at: &Spot, line: Option<usize>) {
        let there: Vec<&SidecarKey> =
            at.place.sidecars.iter().filter(|sidecar| at.sidecars.contains(&sidecar.key)).collect();
        for (depth, sidecar) in there.iter().enumerate() {
            let leaving = self.leaving.entry(sidecar.key.clone()).or_default();
            leaving.names.clone_from(&sidecar.names);
            leaving.after.extend(line);
            leaving.inner.extend(there[depth + 1..].iter().map(|inner| inner.key.clone()));
            leaving.owners.insert(owner);
        }
    }

    /// Adds the lines that delete sidecars, inner ones first: a directory whose sidecar is deleted can't be
    /// read any more.
    fn place_leaving(&mut self) {
        let mut leaving: Vec<_> = std::mem::take(&mut self.leaving).into_iter().collect();
        // Inner sidecars have longer keys.
        leaving.sort_by_key(|(key, _)| std::cmp::Reverse(key.len()));
        let mut placed: HashMap<String, usize> = HashMap::new();
        let adds = self.lines.iter().filter(|line| line.action != Action::Delete);
        let added: BTreeSet<String> = adds.map(|line| line.key.clone()).collect();
        for (key, Leaving { names, mut after, inner, owners }) in leaving {
            if added.contains(&key) || any_within(&added, &names) {
                continue;
            }
            after.extend(inner.iter().filter_map(|inner| placed.get(inner)));
            let line = self.push(Line {
                key: key.clone(),
                action: Action::Delete,
                owners: owners.into_iter().collect(),
                unless_needed: Some(names),
                is_sidecar: true,
                after,
                beside: vec![],
            });
            placed.insert(key, line);
        }
    }

    fn push(&mut self, line: Line) -> usize {
        self.lines.push(line);
        self.lines.len() - 1
    }
}

/// Returns true if a key is `directory` or lies below it.
fn any_within(keys: &BTreeSet<String>, directory: &str) -> bool {
    let below = format!("{directory}/");
    keys.contains(directory) || keys.range(below.clone()..).next().is_some_and(|key| key.starts_with(&below))
}

/// Returns true if both have equal content.
fn same(a: Option<Held>, b: Option<Held>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a.hash.is_some() && a.hash == b.hash)
}

/// Progress of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not sent successfully yet. `failed` tries were refused.
    Pending { failed: u32 },
    /// It succeeded, or is not needed.
    Done,
    /// It is not sent (again).
    Dropped,
}

/// Lines to be sent in one batch, all of one kind, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store) struct Step {
    pub(in crate::store) deletes: bool,
    pub(in crate::store) lines: Vec<usize>,
}

/// A plan in progress.
#[derive(Debug)]
pub(in crate::store) struct Run {
    lines: Vec<Line>,
    states: Vec<State>,
    tries: u32,
}

impl Run {
    /// Starts a plan. Each line is sent `tries` times at most. An added sidecar is sent once more, since its
    /// object may exist without it.
    pub(in crate::store) fn new(plan: Plan, tries: u32) -> Self {
        let states = vec![State::Pending { failed: 0 }; plan.lines.len()];
        Self { lines: plan.lines, states, tries }
    }

    pub(in crate::store) fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Returns the next batch, of `most` lines at most. Adds first.
    pub(in crate::store) fn next(&self, most: usize) -> Option<Step> {
        let adds = self.ready(most, |line| line.action != Action::Delete);
        if !adds.is_empty() {
            return Some(Step { deletes: false, lines: adds });
        }
        let deletes = self.ready(most, |line| line.action == Action::Delete);
        (!deletes.is_empty()).then_some(Step { deletes: true, lines: deletes })
    }

    fn ready(&self, most: usize, kind: impl Fn(&Line) -> bool) -> Vec<usize> {
        let mut chosen: Vec<usize> = Vec::new();
        for (index, line) in self.lines.iter().enumerate() {
            if chosen.len() == most {
                break;
            }
            let done = |other: &usize| self.states[*other] == State::Done;
            if kind(line)
                && self.may_be_sent(index)
                && line.after.iter().all(done)
                && line.beside.iter().all(|other| done(other) || chosen.binary_search(other).is_ok())
            {
                chosen.push(index);
            }
        }
        chosen
    }

    fn may_be_sent(&self, index: usize) -> bool {
        let line = &self.lines[index];
        let tries = self.tries + u32::from(line.is_sidecar && line.action != Action::Delete);
        matches!(self.states[index], State::Pending { failed } if failed < tries)
    }

    /// Records that the line has succeeded or is not needed.
    pub(in crate::store) fn done(&mut self, line: usize) {
        self.states[line] = State::Done;
    }

    /// Records that the line was refused.
    pub(in crate::store) fn failed(&mut self, line: usize) {
        if let State::Pending { failed } = &mut self.states[line] {
            *failed += 1;
        }
    }

    /// Drops a line that must not be sent (again). Lines that wait for it are not sent either.
    pub(in crate::store) fn drop_line(&mut self, line: usize) {
        if matches!(self.states[line], State::Pending { .. }) {
            self.states[line] = State::Dropped;
        }
    }

    /// Returns how often the line was refused.
    pub(in crate::store) fn tries(&self, line: usize) -> u32 {
        match self.states[line] {
            State::Pending { failed } => failed,
            State::Done | State::Dropped => 0,
        }
    }

    pub(in crate::store) fn is_done(&self, line: usize) -> bool {
        self.states[line] == State::Done
    }

    pub(in crate::store) fn is_pending(&self, line: usize) -> bool {
        matches!(self.states[line], State::Pending { .. })
    }
}
