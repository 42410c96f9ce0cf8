//! Sends a plan to the Hub in batches, and keeps the known state of each key.
//!
//! Ends when no more line may be sent. A line is sent [`TRIES`] times at most. The effect of a batch without
//! an answer is read from its keys.

use super::plan::{self, Action, Plan, Run, SidecarKey, Step};
use super::{Failure, Seen, Snapshot};
use crate::hub::{self, BatchOp};
use crate::store::Error;
use crate::store::remote::Remote;
use crate::xet::{self, Hash, UploadSession, compression::Policy};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;
use tokio::time::Instant;

/// Time for which the state read of a key counts as its present state (DESIGN, promise 5).
const FRESH: Duration = Duration::from_secs(5);
/// Lines of one request: the most that any client sends (Hub API spec, 4.3).
const MAX_LINES: usize = 1000;
/// Times that a line is sent before it counts as refused. Some refusals of single lines have disappeared by
/// themselves.
const TRIES: u32 = 3;
/// Pause before a line is sent again, multiplied by the number of tries so far.
const PAUSE: Duration = Duration::from_millis(200);

/// A plan in progress, and the known state of its keys.
pub(super) struct Batches<'a> {
    remote: &'a Remote,
    run: Run,
    /// Last known object at each key, and the time when it was known.
    believed: HashMap<String, (Seen, Instant)>,
    /// Keys that must not change while a change is in progress.
    watched: Vec<Vec<String>>,
    /// Lines of each change.
    lines_of: Vec<Vec<usize>>,
    failures: HashMap<usize, Failure>,
    words: HashMap<usize, Error>,
}

impl<'a> Batches<'a> {
    pub(super) fn new(remote: &'a Remote, plan: Plan, changes: &[plan::Change], snapshot: &Snapshot) -> Self {
        let run = Run::new(plan, TRIES);
        let watched: Vec<Vec<String>> = changes.iter().map(plan::Change::keys).collect();
        let mut believed = HashMap::new();
        let line_keys = run.lines().iter().map(|line| &line.key);
        for key in watched.iter().flatten().chain(line_keys) {
            believed.insert(key.clone(), (snapshot.seen(key), snapshot.at));
        }
        let mut lines_of = vec![Vec::new(); changes.len()];
        for (index, line) in run.lines().iter().enumerate() {
            line.owners.iter().for_each(|&owner| lines_of[owner].push(index));
        }
        Self { remote, run, believed, watched, lines_of, failures: HashMap::new(), words: HashMap::new() }
    }

    /// Uploads the content of the sidecars to be added. Returns the uploaded contents.
    pub(super) async fn upload_sidecars(&mut self, changes: &[plan::Change]) -> Vec<(Hash, Bytes)> {
        let added: HashMap<&str, usize> = self
            .run
            .lines()
            .iter()
            .enumerate()
            .filter(|(_, line)| line.is_sidecar && line.action != Action::Delete)
            .map(|(index, line)| (line.key.as_str(), index))
            .collect();
        if added.is_empty() {
            return vec![];
        }
        let places = changes.iter().flat_map(plan::Change::spots).flat_map(|spot| &spot.place.sidecars);
        let wanted: BTreeMap<&str, &SidecarKey> =
            places.filter(|sidecar| added.contains_key(sidecar.key.as_str())).map(|s| (s.key.as_str(), s)).collect();
        if let Err(error) = upload_all(self.remote, wanted.values().copied()).await {
            let lines: Vec<usize> = added.into_values().collect();
            self.give_up(&lines, &error);
            return vec![];
        }
        wanted.values().map(|sidecar| (sidecar.hash, Bytes::copy_from_slice(&sidecar.bytes))).collect()
    }

    pub(super) async fn send_all(&mut self) {
        while let Some(step) = self.run.next(MAX_LINES) {
            if let Err(error) = self.send_step(step).await {
                // The error that stopped this request would stop the others too.
                let pending: Vec<usize> =
                    (0..self.run.lines().len()).filter(|line| self.run.is_pending(*line)).collect();
                self.give_up(&pending, &error);
            }
        }
    }

    async fn send_step(&mut self, step: Step) -> Result<(), Error> {
        let before = step.lines.len();
        let step = self.without_needed(step).await?;
        if let Some(failed) = step.lines.iter().map(|&line| self.run.tries(line)).max().filter(|failed| *failed > 0) {
            tokio::time::sleep(PAUSE * failed).await;
        }
        self.refresh(&step).await?;
        let lines: Vec<usize> = step.lines.iter().copied().filter(|line| self.run.is_pending(*line)).collect();
        // Lines that are not needed or impossible now change the set of lines that may be sent with the
        // others.
        if lines.len() < before {
            return Ok(());
        }
        let operations: Vec<BatchOp> = lines.iter().map(|&line| self.batch_op(line)).collect();
        match self.remote.hub.batch_within(&self.remote.bucket, &operations, self.fresh_for(&lines)).await {
            Ok(outcome) => {
                let refused: HashMap<String, String> = outcome.failed.into_iter().collect();
                for line in lines {
                    // A line that was refused is sent as an ordinary one the next time.
                    if let Action::Add { hash, .. } = self.run.lines()[line].action {
                        self.remote.disown(&hash);
                    }
                    match refused.get(&self.run.lines()[line].key) {
                        Some(words) => self.refused(line, Error::Refused(words.clone())),
                        None => self.succeeded(line),
                    }
                }
                Ok(())
            }
            Err(error) if error.is_unanswered() => {
                // The Hub asks for a longer wait than the compared state stays fresh. The caller has to
                // repeat the whole operation.
                let is_put_off = matches!(error, hub::Error::Status { status: 503, .. });
                let error: Error = error.into();
                self.find_out(&lines, error.again()).await?;
                let is_left = lines.iter().any(|&line| self.run.is_pending(line)) && is_put_off;
                if is_left { Err(error) } else { Ok(()) }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Returns how long the known state of the keys of these lines' changes stays fresh.
    fn fresh_for(&self, lines: &[usize]) -> Duration {
        let owners: BTreeSet<usize> =
            lines.iter().flat_map(|&line| self.run.lines()[line].owners.iter().copied()).collect();
        let keys = owners.iter().flat_map(|&owner| &self.watched[owner]);
        let oldest = keys.filter_map(|key| self.believed.get(key)).map(|(_, at)| *at).min();
        oldest.map_or(FRESH, |at| FRESH.saturating_sub(at.elapsed()))
    }

    fn batch_op(&self, line: usize) -> BatchOp {
        let line = &self.run.lines()[line];
        let key = line.key.clone();
        match line.action {
            Action::Add { hash, mtime } => match self.remote.adopted(&hash) {
                Some(from) => BatchOp::Copy { key, hash, from, mtime },
                None => BatchOp::Add { key, hash, mtime, content_type: None },
            },
            Action::SetModified { hash, mtime } => BatchOp::Add { key, hash, mtime, content_type: None },
            Action::Delete => BatchOp::Delete { key },
        }
    }

    /// Removes deletes of sidecars that an object still needs from the step.
    async fn without_needed(&mut self, mut step: Step) -> Result<Step, Error> {
        let mut needed = HashSet::new();
        for &line in &step.lines {
            let Some(names) = self.run.lines()[line].unless_needed.clone() else { continue };
            let used = self.remote.has_children(&names).await? || !self.remote.files(&[names]).await?.is_empty();
            if used {
                needed.insert(line);
            }
        }
        for &line in &needed {
            self.run.done(line);
        }
        step.lines.retain(|line| !needed.contains(line));
        Ok(step)
    }

    /// Reads keys of the changes in this step again if their state is older than [`FRESH`]. Stops changes
    /// whose keys another client has changed.
    async fn refresh(&mut self, step: &Step) -> Result<(), Error> {
        let at = Instant::now();
        let old = |key: &String| self.believed.get(key).is_none_or(|(_, then)| at.duration_since(*then) > FRESH);
        let owners: BTreeSet<usize> =
            step.lines.iter().flat_map(|&line| self.run.lines()[line].owners.iter().copied()).collect();
        let keys: BTreeSet<String> =
            owners.iter().flat_map(|&owner| &self.watched[owner]).filter(|key| old(key)).cloned().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let keys: Vec<String> = keys.into_iter().collect();
        let found = Snapshot { files: self.remote.files(&keys).await?, at };
        for owner in owners {
            self.compare(owner, &found);
        }
        Ok(())
    }

    /// Compares the state found at a change's keys with the last known one.
    fn compare(&mut self, owner: usize, found: &Snapshot) {
        for key in self.watched[owner].clone() {
            let Some((believed, at)) = self.believed.get_mut(&key) else { continue };
            if *at >= found.at {
                continue;
            }
            let now = found.seen(&key);
            *at = found.at;
            if now == *believed {
                continue;
            }
            *believed = now;
            let ours = self.lines_of[owner].iter().copied().find(|&line| {
                let line_at = &self.run.lines()[line];
                line_at.key == key && self.run.is_pending(line) && settles(line_at.action) == now
            });
            match ours {
                Some(line) => self.run.done(line),
                None => self.conflict(owner, now.flatten()),
            }
        }
    }

    /// Reads the result of the lines of a batch that wasn't answered.
    async fn find_out(&mut self, lines: &[usize], error: Error) -> Result<(), Error> {
        let keys: Vec<String> = lines.iter().map(|&line| self.run.lines()[line].key.clone()).collect();
        let at = Instant::now();
        let found = match self.remote.files(&keys).await {
            Ok(files) => Snapshot { files, at },
            // Then nothing is known about it, and the first error says more.
            Err(_) => return Err(error),
        };
        for (&line, key) in lines.iter().zip(&keys) {
            let now = found.seen(key);
            let old = self.believed.get(key).and_then(|(seen, _)| *seen);
            let action = self.run.lines()[line].action;
            let has_time = match action {
                // The content tells nothing: it was there before.
                Action::SetModified { mtime, .. } => found.files.get(key).is_some_and(|file| file.mtime == Some(mtime)),
                Action::Add { .. } | Action::Delete => true,
            };
            if now == settles(action) && has_time {
                self.succeeded(line);
            } else if now == old {
                self.believed.insert(key.clone(), (now, at));
                self.refused(line, error.again());
            } else {
                self.believed.insert(key.clone(), (now, at));
                for owner in self.run.lines()[line].owners.clone() {
                    self.conflict(owner, now.flatten());
                }
            }
        }
        Ok(())
    }

    fn succeeded(&mut self, line: usize) {
        let at = &self.run.lines()[line];
        self.believed.insert(at.key.clone(), (settles(at.action), Instant::now()));
        self.run.done(line);
    }

    fn refused(&mut self, line: usize, error: Error) {
        self.run.failed(line);
        self.words.insert(line, error);
    }

    fn give_up(&mut self, lines: &[usize], error: &Error) {
        for &line in lines {
            self.run.drop_line(line);
            self.words.insert(line, error.again());
        }
    }

    fn conflict(&mut self, owner: usize, found: Option<Hash>) {
        for line in self.lines_of[owner].clone() {
            self.run.drop_line(line);
        }
        self.failures.insert(owner, Failure::Conflict(found));
    }

    pub(super) fn results(mut self, changes: usize) -> Vec<Result<(), Failure>> {
        (0..changes)
            .map(|owner| {
                if let Some(failure) = self.failures.remove(&owner) {
                    return Err(failure);
                }
                let open: Vec<usize> =
                    self.lines_of[owner].iter().copied().filter(|&line| !self.run.is_done(line)).collect();
                if open.is_empty() {
                    return Ok(());
                }
                // Lines that were never sent wait for one that has an error.
                let error = open.iter().find_map(|line| self.words.get(line)).map(Error::again);
                Err(Failure::Error(error.unwrap_or_else(|| Error::Refused("not carried out".into()))))
            })
            .collect()
    }
}

/// Returns the state of a key after its line was carried out.
fn settles(action: Action) -> Seen {
    match action {
        Action::Add { hash, .. } | Action::SetModified { hash, .. } => Some(Some(hash)),
        Action::Delete => None,
    }
}

async fn upload_all(remote: &Remote, sidecars: impl Iterator<Item = &SidecarKey>) -> Result<(), Error> {
    let options = xet::upload::Options { global_dedup: false, ..Default::default() };
    let session = UploadSession::new(remote.cas.clone(), options);
    for sidecar in sidecars {
        let uploaded = session.add(&sidecar.bytes[..], Policy::Never).await?;
        if uploaded.hash != sidecar.hash {
            return Err(xet::Error::HashMismatch { what: "sidecar", expected: sidecar.hash }.into());
        }
    }
    session.finish().await?;
    Ok(())
}
