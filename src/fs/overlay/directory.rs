//! Open directories of an overlay.
//!
//! A directory shows the entries of one branch after those of another. An entry whose name an earlier branch has is
//! left out. Offsets count the entries of all branches, left-out ones too, so that paging is stable.

use super::local_layer::PAGE;
use super::nodes::{Inos, Nodes};
use super::{Overlay, is_missing};
use crate::fs::lock::{Mutex, lock};
use crate::fs::{Attr, AttrSink, EntrySink, Error, FileKind, HandleNo, Ino, Listed};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Number of the entries `.` and `..`, with which each branch begins.
const DOTS: u64 = 2;

/// All open directories.
#[derive(Default)]
pub(super) struct OpenDirectories(Mutex<(u64, HashMap<HandleNo, Arc<OpenDirectory>>)>);

/// An open directory.
struct OpenDirectory {
    ino: Ino,
    parent: Ino,
    parts: Vec<Part>,
    names: BTreeMap<String, Shown>,
}

/// A name of an open directory.
struct Shown {
    /// The branch that decides about it, and the kind that it has there.
    branch: usize,
    kind: FileKind,
    /// True if it is a folder of several branches.
    is_merged: bool,
}

/// The entries of one branch.
struct Part {
    branch: usize,
    handle: HandleNo,
    /// Offset of its first entry.
    base: u64,
    entries: Vec<(String, FileKind)>,
}

impl Part {
    fn end(&self) -> u64 {
        self.base + self.entries.len() as u64
    }
}

impl OpenDirectory {
    /// Adds the entries of a branch.
    fn add(&mut self, branch: usize, handle: HandleNo, entries: Vec<(String, FileKind)>) {
        for (name, kind) in entries.iter().skip(DOTS as usize) {
            match self.names.get_mut(name) {
                None => drop(self.names.insert(name.clone(), Shown { branch, kind: *kind, is_merged: false })),
                Some(shown) => shown.is_merged |= (*kind, shown.kind) == (FileKind::Directory, FileKind::Directory),
            }
        }
        let base = self.parts.last().map_or(0, Part::end);
        self.parts.push(Part { branch, handle, base, entries });
    }

    /// Returns true if an entry of a branch is shown. The dots are shown once.
    fn shows(&self, part: &Part, name: &str) -> bool {
        match name {
            "." | ".." => part.base == 0,
            name => self.names.get(name).is_some_and(|shown| shown.branch == part.branch),
        }
    }

    fn dot(&self, name: &str) -> Option<Ino> {
        match name {
            "." => Some(self.ino),
            ".." => Some(self.parent),
            _ => None,
        }
    }

    /// Returns the parts that have entries from `offset` on, as far as one page reaches.
    fn page(&self, offset: u64) -> impl Iterator<Item = (&Part, u64)> {
        let parts = self.parts.iter().filter(move |part| part.end() > offset && part.base < page_end(offset));
        parts.map(move |part| (part, offset.saturating_sub(part.base)))
    }
}

fn page_end(offset: u64) -> u64 {
    offset.saturating_add(PAGE as u64)
}

fn inos_of(branch: usize, ino: Ino) -> Inos {
    let mut inos = Inos::default();
    inos[branch] = Some(ino);
    inos
}

impl Overlay {
    fn open_directory_of(&self, handle: HandleNo) -> Result<Arc<OpenDirectory>, Error> {
        lock(&self.directories.0).1.get(&handle).cloned().ok_or(Error::BadHandle)
    }

    /// Opens a directory in each branch that has it.
    pub(super) async fn open_directory(&self, ino: Ino) -> Result<HandleNo, Error> {
        let inos = self.directory(ino)?.inos;
        let parent = lock(&self.nodes).parent(ino);
        let mut open = OpenDirectory { ino, parent, parts: Vec::new(), names: BTreeMap::new() };
        for (branch, there) in self.branches.iter().enumerate() {
            let Some(inode) = inos[branch] else { continue };
            let handle = match there.opendir(inode).await {
                Ok(handle) => handle,
                Err(error) if is_missing(&error) => continue,
                Err(error) => {
                    self.close_parts(&open);
                    return Err(error);
                }
            };
            let mut entries = Vec::new();
            let listed = there.readdir(handle, 0, &mut |entry, _| {
                entries.push((entry.name.clone(), entry.kind));
                false
            });
            open.add(branch, handle, entries);
            if let Err(error) = listed {
                self.close_parts(&open);
                return Err(error);
            }
        }
        if open.parts.is_empty() {
            return Err(Error::NotFound);
        }
        let mut directories = lock(&self.directories.0);
        directories.0 += 1;
        let handle = HandleNo(directories.0);
        directories.1.insert(handle, Arc::new(open));
        Ok(handle)
    }

    fn close_parts(&self, open: &OpenDirectory) {
        for part in &open.parts {
            if let Err(error) = self.branches[part.branch].releasedir(part.handle) {
                tracing::debug!(%error, "a directory of a branch could not be closed");
            }
        }
    }

    pub(super) fn close_directory(&self, handle: HandleNo) -> Result<(), Error> {
        let open = lock(&self.directories.0).1.remove(&handle).ok_or(Error::BadHandle)?;
        self.close_parts(&open);
        Ok(())
    }

    /// Passes entries to `sink`, from `offset` on.
    pub(super) fn page(&self, handle: HandleNo, offset: u64, sink: EntrySink<'_>) -> Result<(), Error> {
        let open = self.open_directory_of(handle)?;
        let nodes = lock(&self.nodes);
        for part in &open.parts {
            let entries = part.entries.iter().zip(part.base + 1..);
            for ((name, kind), next) in entries.filter(|((name, _), next)| *next > offset && open.shows(part, name)) {
                // A file that the kernel doesn't know would get the same number.
                let ino = open.dot(name).unwrap_or_else(|| nodes.listed_number(open.ino, name));
                if sink(&Listed { ino, name: name.clone(), kind: *kind }, next) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Reads the attributes of a page of entries.
    pub(super) async fn measure(&self, handle: HandleNo, offset: u64) -> Result<(), Error> {
        let open = self.open_directory_of(handle)?;
        for (part, offset) in open.page(offset) {
            self.branches[part.branch].measure_page(part.handle, offset).await?;
        }
        Ok(())
    }

    /// Passes entries of a page to `sink` with their attributes. Each that it takes gets one kernel reference.
    pub(super) fn page_with_attrs(&self, handle: HandleNo, offset: u64, sink: AttrSink<'_>) -> Result<(), Error> {
        let open = self.open_directory_of(handle)?;
        let mut surplus = Vec::new();
        let mut is_full = false;
        for (part, from) in open.page(offset) {
            let mut take = |entry: &Listed, attr: &Attr, next: u64| {
                let next = part.base + next;
                if next > page_end(offset) {
                    // Its attributes were not read. The kernel asks for the next page.
                    is_full = true;
                } else if open.shows(part, &entry.name) {
                    let mut nodes = lock(&self.nodes);
                    is_full = open.take(&mut nodes, part, entry, attr, next, sink, &mut surplus);
                } else if open.dot(&entry.name).is_none() {
                    surplus.push((part.branch, entry.ino));
                }
                is_full
            };
            let done = self.branches[part.branch].readdirplus(part.handle, from, &mut take);
            if done.is_err() || is_full {
                self.release_refs(surplus);
                return done;
            }
        }
        self.release_refs(surplus);
        Ok(())
    }
}

impl OpenDirectory {
    /// Passes one entry to `sink`. Returns true if it did not take the entry.
    #[expect(clippy::too_many_arguments, reason = "they are those of the sink, and the state that it changes")]
    fn take(
        &self,
        nodes: &mut Nodes,
        part: &Part,
        entry: &Listed,
        attr: &Attr,
        next: u64,
        sink: AttrSink<'_>,
        surplus: &mut Vec<(usize, Ino)>,
    ) -> bool {
        let inos = inos_of(part.branch, entry.ino);
        let dot = self.dot(&entry.name);
        let ino = dot.unwrap_or_else(|| nodes.number(self.ino, &entry.name, attr.kind, &inos));
        // The other branches of a merged folder are found by a lookup, which the kernel sends for an uncertain entry.
        let is_merged = self.names.get(&entry.name).is_some_and(|shown| shown.is_merged);
        let shown = Attr { ino, is_certain: attr.is_certain && !is_merged, ..*attr };
        let shown = if is_merged { Attr { nlink: 1, ..shown } } else { shown };
        let listed = Listed { ino, name: entry.name.clone(), kind: entry.kind };
        if sink(&listed, &shown, next) {
            return true;
        }
        if dot.is_none() {
            match nodes.adopt(self.ino, &entry.name, attr.kind, inos, false) {
                Ok((_, dropped)) => surplus.extend(dropped),
                Err(_) => surplus.push((part.branch, entry.ino)),
            }
        }
        false
    }
}
