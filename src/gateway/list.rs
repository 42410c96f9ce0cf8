//! Lists keys in pages, in the order of their UTF-8 bytes.
//!
//! A page is found by walking directories, like [`store::walk`](crate::store::walk), from the key after which it
//! starts. Directories outside the prefix, before the start, or inside a common prefix that was counted already are not
//! entered.
//!
//! **Listings are kept.** A directory can only be listed whole: on an encrypted bucket its stored names have no order.
//! So the first page of a directory costs in proportion to its entries. A listing is kept, sorted, together with the
//! revision that the bucket had before. It is used again while the bucket has that revision, and by pages that continue
//! a list for [`FRESH`] longer: otherwise each write to the bucket would make the next page list everything again. A
//! page that starts at a key of the client's choice continues nothing, so it shows every write that has ended. Each
//! page asks for the revision once. Concurrent pages share the listing of a directory.

use super::key::key_of;
use super::turn::Turns;
use super::{Error, digest};
use crate::store::metadata::is_reserved;
use crate::store::{Entry, Kind, Len, PlainPath, Version, View};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Entries kept for one bucket, over all directories. Each takes about 200 bytes.
const MAX_KEPT: usize = 500_000;
/// Age up to which a page that continues a list uses listings of an earlier revision.
const FRESH: Duration = Duration::from_secs(10);
/// Places that are known as ends of pages. When there are more, all are forgotten.
const MAX_ENDS: usize = 1024;
/// Nesting depth of directories. The limit stops at a server that invents an endless tree.
const MAX_DEPTH: usize = 4096;

/// What a page shows.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Keys must begin with this text.
    pub prefix: String,
    /// Keys that have this text after the prefix are shown as one common prefix that ends with it.
    pub delimiter: Option<String>,
    /// Where the page starts.
    pub after: After,
    /// True if `after` is where an earlier page said that this one starts. `None`: it is if one of the latest pages of
    /// this gateway has ended there.
    pub continues: Option<bool>,
    /// Most keys and common prefixes together.
    pub limit: usize,
}

/// Where a page starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum After {
    /// At the first key.
    #[default]
    Start,
    /// After this key.
    Key(String),
    /// After all keys that begin with this common prefix.
    Prefix(String),
}

impl After {
    /// Returns the place as an opaque text for clients.
    pub fn to_token(&self) -> String {
        match self {
            Self::Start => String::new(),
            Self::Key(key) => digest::base64(format!("k{key}").as_bytes()),
            Self::Prefix(prefix) => digest::base64(format!("p{prefix}").as_bytes()),
        }
    }

    /// Reads such a text.
    pub fn from_token(token: &str) -> Result<Self, Error> {
        let wrong = || Error::InvalidArgument("the continuation token is not one of this gateway");
        let bytes = base64_simd::STANDARD.decode_to_vec(token).map_err(|_| wrong())?;
        let text = String::from_utf8(bytes).map_err(|_| wrong())?;
        match text.split_at_checked(1) {
            Some(("k", key)) => Ok(Self::Key(key.to_owned())),
            Some(("p", prefix)) => Ok(Self::Prefix(prefix.to_owned())),
            _ => Err(wrong()),
        }
    }

    /// Returns true if the page doesn't show this key.
    fn is_past(&self, key: &str) -> bool {
        match self {
            Self::Start => false,
            Self::Key(after) => key <= after.as_str(),
            Self::Prefix(prefix) => key <= prefix.as_str() || key.starts_with(prefix),
        }
    }

    /// Returns true if the page shows no key that begins with `directory`, which ends in a slash.
    fn is_past_directory(&self, directory: &str) -> bool {
        match self {
            Self::Start => false,
            Self::Key(after) => directory < after.as_str() && !after.starts_with(directory),
            Self::Prefix(prefix) => {
                directory.starts_with(prefix.as_str())
                    || (directory < prefix.as_str() && !prefix.starts_with(directory))
            }
        }
    }
}

/// An object of a page.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// The path that holds it.
    pub path: PlainPath,
    /// Its version. `None`: it can't be read.
    pub version: Option<Version>,
    /// Its size in bytes; 0 for a damaged one.
    pub len: u64,
    /// Time of its last change.
    pub modified: Option<time::OffsetDateTime>,
}

/// A page.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Objects, ascending by key.
    pub objects: Vec<Listed>,
    /// Common prefixes, ascending.
    pub prefixes: Vec<String>,
    /// Where the next page starts. `None`: this is the last one.
    pub next: Option<After>,
}

/// An entry of a directory, with its place among the others.
struct Item {
    /// Its name, with a slash if it is a directory. The marker of the directory itself comes first, with an empty name.
    name: String,
    kind: Kind,
}

impl Item {
    fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory { .. })
    }

    /// Returns its key, which ends in a slash if it is a directory.
    fn key(&self, directory: &PlainPath) -> String {
        match directory.as_str() {
            "" => self.name.clone(),
            above => format!("{above}/{}", self.name),
        }
    }

    /// Returns true if a page that starts at `after` shows nothing of it. All items before it are past too.
    fn is_past(&self, key: &str, after: &After) -> bool {
        if self.is_directory() { after.is_past_directory(key) } else { after.is_past(key) }
    }
}

/// A directory's entries in the order of keys.
type Sorted = Arc<[Item]>;

/// Kept listings of one bucket. The lock is never held over an await.
#[derive(Default)]
pub(super) struct Listings {
    kept: Mutex<Kept>,
    /// Gates of directories that are being listed.
    gates: Turns,
}

#[derive(Default)]
struct Kept {
    revision: Option<String>,
    /// When the bucket was first found to have this revision.
    since: Option<Instant>,
    directories: HashMap<PlainPath, Sorted>,
    entries: usize,
    /// Where pages have ended, whatever their revision.
    ends: HashSet<After>,
}

impl Listings {
    /// Returns the revision whose listings a page uses. Forgets those of another one.
    fn begin(&self, revision: Option<String>, query: &Query) -> Option<String> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let continues = query.continues.unwrap_or_else(|| kept.ends.contains(&query.after));
        if revision.is_some() && kept.revision == revision {
            return revision;
        }
        if continues && kept.since.is_some_and(|since| since.elapsed() < FRESH) {
            return kept.revision.clone();
        }
        let ends = std::mem::take(&mut kept.ends);
        *kept = Kept { revision: revision.clone(), since: Some(Instant::now()), ends, ..Kept::default() };
        revision
    }

    fn note_end(&self, end: &After) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.ends.len() >= MAX_ENDS {
            kept.ends.clear();
        }
        kept.ends.insert(end.clone());
    }

    fn get(&self, directory: &PlainPath, revision: Option<&str>) -> Option<Sorted> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.revision.as_deref() == revision { kept.directories.get(directory).cloned() } else { None }
    }

    fn keep(&self, directory: &PlainPath, revision: Option<&str>, sorted: &Sorted) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if revision.is_none() || kept.revision.as_deref() != revision {
            return;
        }
        if kept.entries + sorted.len() > MAX_KEPT {
            kept.directories.clear();
            kept.entries = 0;
        }
        if sorted.len() <= MAX_KEPT && kept.directories.insert(directory.clone(), sorted.clone()).is_none() {
            kept.entries += sorted.len();
        }
    }
}

/// Returns a page of a bucket's keys.
pub(super) async fn page(view: &dyn View, listings: &Listings, query: &Query) -> Result<Page, Error> {
    // The revision is read before the listings, so a change in between is noticed by the next page.
    let revision = view.revision().await.map_err(Error::of_store)?;
    let revision = listings.begin(revision, query);
    let mut walk = Walk { view, listings, revision, query, skip: None, page: Page::default(), unread: Vec::new() };
    if query.limit > 0 {
        walk.run().await?;
    }
    let page = walk.finish().await?;
    page.next.iter().for_each(|end| listings.note_end(end));
    Ok(page)
}

struct Walk<'a> {
    view: &'a dyn View,
    listings: &'a Listings,
    revision: Option<String>,
    query: &'a Query,
    /// Keys that begin with this common prefix are counted already.
    skip: Option<String>,
    page: Page,
    /// Objects of the page whose size is not known yet, with their versions.
    unread: Vec<(usize, Version)>,
}

/// What a walk does next.
enum Step {
    Next,
    Enter(PlainPath),
    Full,
}

impl Walk<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        let start = self.query.prefix.rsplit_once('/').map_or("", |(directory, _)| directory);
        // A prefix that isn't a path has no keys.
        let Ok(start) = PlainPath::new(start) else { return Ok(()) };
        let items = self.sorted(&start).await?;
        let at = self.first(&start, &items);
        let mut levels = vec![(start, items, at)];
        while let Some((directory, items, at)) = levels.last_mut() {
            let Some(item) = items.get(*at) else {
                levels.pop();
                continue;
            };
            *at += 1;
            match self.step(directory, item)? {
                Step::Next => {}
                Step::Full => return Ok(()),
                Step::Enter(below) => {
                    if levels.len() == MAX_DEPTH {
                        return Err(Error::State("a directory tree that does not end".into()));
                    }
                    let items = self.sorted(&below).await?;
                    let at = self.first(&below, &items);
                    levels.push((below, items, at));
                }
            }
        }
        // The walk has ended, so no page follows.
        self.page.next = None;
        Ok(())
    }

    /// Lists a directory, or takes the kept listing.
    async fn sorted(&self, directory: &PlainPath) -> Result<Sorted, Error> {
        if let Some(sorted) = self.listings.get(directory, self.revision.as_deref()) {
            return Ok(sorted);
        }
        let _gate = self.listings.gates.of(directory).await;
        if let Some(sorted) = self.listings.get(directory, self.revision.as_deref()) {
            return Ok(sorted);
        }
        let listing = self.view.list(directory).await.map_err(Error::of_store)?;
        let sorted = sort(directory, listing.entries);
        self.listings.keep(directory, self.revision.as_deref(), &sorted);
        Ok(sorted)
    }

    /// Returns the index of the first item of a directory that the page doesn't start behind.
    fn first(&self, directory: &PlainPath, items: &[Item]) -> usize {
        items.partition_point(|item| item.is_past(&item.key(directory), &self.query.after))
    }

    fn step(&mut self, directory: &PlainPath, item: &Item) -> Result<Step, Error> {
        let Query { prefix, delimiter, after, limit, .. } = self.query;
        let key = item.key(directory);
        let is_directory = item.is_directory();
        let may_hold = key.starts_with(prefix) || (is_directory && prefix.starts_with(&key));
        if !may_hold || item.is_past(&key, after) || self.skip.as_ref().is_some_and(|skip| key.starts_with(skip)) {
            return Ok(Step::Next);
        }
        match common_prefix(&key, prefix, delimiter.as_deref()) {
            Some(common) => self.step_common(common, &key, is_directory),
            None if is_directory => Ok(Step::Enter(directory_of(&key)?)),
            None if self.is_full(*limit) => Ok(Step::Full),
            None => {
                self.add(directory, item, key)?;
                Ok(Step::Next)
            }
        }
    }

    /// Adds a common prefix. All keys below a directory have the common prefix that its own key has.
    fn step_common(&mut self, common: String, key: &str, is_directory: bool) -> Result<Step, Error> {
        // A page that starts inside the prefix shows it only if a later key has it.
        let is_partly_past = matches!(&self.query.after, After::Key(after) if after.starts_with(&common));
        if is_partly_past && is_directory {
            return Ok(Step::Enter(directory_of(key)?));
        }
        if self.is_full(self.query.limit) {
            return Ok(Step::Full);
        }
        self.skip = Some(common.clone());
        self.page.prefixes.push(common.clone());
        self.page.next = Some(After::Prefix(common));
        Ok(Step::Next)
    }

    fn is_full(&self, limit: usize) -> bool {
        self.page.objects.len() + self.page.prefixes.len() >= limit
    }

    fn add(&mut self, directory: &PlainPath, item: &Item, key: String) -> Result<(), Error> {
        let Kind::File { version, len, mtime, .. } = &item.kind else { return Ok(()) };
        let path = match item.name.is_empty() {
            true => directory.join(super::key::MARKER).map_err(Error::of_store)?,
            false => directory.join(&item.name).map_err(Error::of_store)?,
        };
        let known = match (len, version) {
            (Len::Known(len), _) => *len,
            (Len::Unread, Some(version)) => {
                self.unread.push((self.page.objects.len(), *version));
                0
            }
            (Len::Unread | Len::Damaged, _) => 0,
        };
        self.page.next = Some(After::Key(key.clone()));
        self.page.objects.push(Listed { key, path, version: *version, len: known, modified: *mtime });
        Ok(())
    }

    async fn finish(mut self) -> Result<Page, Error> {
        let versions: Vec<Version> = self.unread.iter().map(|(_, version)| *version).collect();
        let lens = self.view.lens(&versions).await;
        for ((index, _), len) in self.unread.into_iter().zip(lens) {
            self.page.objects[index].len = match len.map_err(Error::of_store)? {
                Len::Known(len) => len,
                Len::Unread | Len::Damaged => 0,
            };
        }
        Ok(self.page)
    }
}

/// Returns the common prefix of a key: up to the first delimiter after the prefix, including it.
fn common_prefix(key: &str, prefix: &str, delimiter: Option<&str>) -> Option<String> {
    let rest = key.get(prefix.len()..)?;
    let end = rest.find(delimiter?)? + delimiter?.len();
    Some(key[..prefix.len() + end].to_owned())
}

/// Returns the path of a directory's key.
fn directory_of(key: &str) -> Result<PlainPath, Error> {
    PlainPath::new(key.trim_end_matches('/')).map_err(Error::of_store)
}

/// Sorts the entries of a directory by their keys.
fn sort(directory: &PlainPath, entries: Vec<Entry>) -> Sorted {
    let item = |entry: Entry| {
        let is_directory = matches!(entry.kind, Kind::Directory { .. });
        let at = format!("x/{}", entry.name);
        let is_marker = !is_directory && !directory.is_root() && key_of(&at) != at;
        let name = match (is_marker, is_directory) {
            (true, _) => String::new(),
            (false, true) => format!("{}/", entry.name),
            (false, false) => entry.name,
        };
        Item { name, kind: entry.kind }
    };
    let is_shown = |entry: &Entry| !PlainPath::new(&entry.name).is_ok_and(|path| is_reserved(&path));
    let shown = entries.into_iter().filter(|entry| !directory.is_root() || is_shown(entry));
    let mut items: Vec<Item> = shown.map(item).collect();
    items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    items.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn items_behind_which_a_page_starts_come_first(
            names in prop::collection::btree_set("[a/-]{1,3}", 1..12),
            below: bool,
            after in "(d/)?[a/-]{0,4}",
            is_prefix: bool,
        ) {
            let directory = if below { PlainPath::new("d").unwrap() } else { PlainPath::root() };
            // As `sort` leaves them: a slash only at the end of a name, and in order.
            let file = Kind::File { version: None, len: Len::Known(0), mtime: None, read_only: false };
            let item = |name: &String| match name.trim_end_matches('/') {
                start if start.is_empty() || start.contains('/') => None,
                start if start.len() == name.len() => Some(Item { name: name.clone(), kind: file.clone() }),
                start => Some(Item { name: format!("{start}/"), kind: Kind::Directory { read_only: false } }),
            };
            let mut items: Vec<Item> = names.iter().filter_map(item).collect();
            items.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let after = if is_prefix && !after.is_empty() { After::Prefix(after) } else { After::Key(after) };
            let past: Vec<bool> = items.iter().map(|item| item.is_past(&item.key(&directory), &after)).collect();
            prop_assert!(past.is_sorted_by(|a, b| a >= b), "{after:?}");
        }
    }
}
