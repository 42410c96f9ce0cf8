//! Shows a file and a folder of one name.
//!
//! A bucket has keys only, so `a` and `a/b` can both exist. A file system can't show both under one name. The
//! folder keeps the name, and the file is shown next to it under a name with [`MARK`], its *alias*. The
//! object keeps its key. Every change of the alias is a change of that object.
//!
//! An alias follows from the names of its directory, so every client computes the same one. A view also
//! remembers the aliases that it has shown. So a change that was made through an alias still finds its object
//! after the folder has been removed.

use super::{Change, Error, Expect, Op, Outcome, PlainPath};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, PoisonError};

/// Text that every alias contains.
const MARK: &str = " (conflict with folder";
/// Longest name that file systems accept, in bytes.
const MAX_NAME: usize = 255;
/// Numbers tried to find a free alias.
const TRIES: u32 = 100;
/// Aliases that a view remembers, at most. Each takes some hundred bytes.
const MAX_KNOWN: usize = 4096;
/// Names in one directory up to which each is queried by itself. For more names the directory is listed.
pub(super) const FEW: usize = 8;
/// Directories that are queried concurrently.
pub(super) const LOOKS: usize = 8;

/// Returns `name` with `mark` before its extension, truncated to the longest allowed name.
pub fn marked_name(name: &str, mark: &str) -> String {
    let (stem, extension) = match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() && extension.len() <= 16 => (stem, format!(".{extension}")),
        _ => (name, String::new()),
    };
    let room = MAX_NAME.saturating_sub(mark.len() + extension.len());
    let mut end = stem.len().min(room);
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{mark}{extension}", &stem[..end])
}

/// Returns the first alias of `name` that isn't taken.
fn alias(name: &str, taken: impl Fn(&str) -> bool) -> Option<String> {
    let mut numbered = (1..=TRIES).map(|number| match number {
        1 => marked_name(name, &format!("{MARK})")),
        _ => marked_name(name, &format!("{MARK} {number})")),
    });
    numbered.find(|alias| !taken(alias))
}

/// Returns the aliases of `twins` in a directory that holds `names`, each with its real name.
pub(super) fn aliases<'a>(names: &BTreeSet<&str>, twins: impl Iterator<Item = &'a str>) -> Vec<(String, &'a str)> {
    let mut used: BTreeSet<String> = BTreeSet::new();
    let mut found = Vec::new();
    for twin in twins {
        let Some(alias) = alias(twin, |alias| names.contains(alias) || used.contains(alias)) else { continue };
        used.insert(alias.clone());
        found.push((alias, twin));
    }
    found
}

/// Returns true if the path may be an alias.
pub(super) fn may_be_alias(path: &PlainPath) -> bool {
    path.split().is_some_and(|(_, name)| name.contains(MARK))
}

/// Aliases that a view has shown, each with its real name. The lock is never held over an await.
#[derive(Default)]
pub(super) struct Twins(Mutex<HashMap<PlainPath, String>>);

impl Twins {
    /// Remembers an alias.
    pub(super) fn note(&self, directory: &PlainPath, alias: &str, name: &str) {
        let Ok(path) = directory.join(alias) else { return };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MAX_KNOWN || known.contains_key(&path) {
            known.insert(path, name.to_owned());
        }
    }

    /// Gives the file `name` an alias that isn't taken, and remembers it.
    pub(super) fn show(&self, directory: &PlainPath, name: &str, taken: &dyn Fn(&str) -> bool) -> Option<String> {
        let alias = alias(name, taken)?;
        self.note(directory, &alias, name);
        Some(alias)
    }

    /// Returns the path that `path` means in a directory that holds `names`. `twins` are the names that a
    /// file and a folder have.
    pub(super) fn target<'a>(
        &self,
        path: &PlainPath,
        names: &BTreeSet<&str>,
        twins: impl Iterator<Item = &'a str>,
    ) -> PlainPath {
        let Some((parent, name)) = path.split() else { return path.clone() };
        if names.contains(name) {
            return path.clone();
        }
        let found = aliases(names, twins).into_iter().find(|(alias, _)| alias == name);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner).get(path).cloned();
        let target = found.map(|(_, twin)| twin.to_owned()).or_else(known);
        target.and_then(|target| parent.join(&target).ok()).unwrap_or_else(|| path.clone())
    }
}

/// Returns the paths of an operation that may be aliases. A path that is expected to be absent, or for which
/// anything is accepted, means itself.
pub(super) fn asked_by(op: &Op) -> Vec<&PlainPath> {
    let is_given = |expect: &Expect| matches!(expect, Expect::Is(_));
    let from = is_given(&op.expect).then_some(&op.path);
    let to = match &op.change {
        Change::Rename { to, expect_to } | Change::Copy { to, expect_to, .. } => {
            (is_given(expect_to) || *to == op.path).then_some(to)
        }
        Change::Put { .. }
        | Change::Describe { .. }
        | Change::SetModified { .. }
        | Change::Delete
        | Change::RenameDirectory { .. } => None,
    };
    from.into_iter().chain(to).filter(|path| may_be_alias(path)).collect()
}

/// Real paths of the aliases in a batch of operations.
#[derive(Default)]
pub(super) struct Targets {
    found: HashMap<PlainPath, PlainPath>,
    /// Directories that could not be listed.
    failed: HashMap<PlainPath, Error>,
}

impl Targets {
    /// Adds the real paths of aliases in `parent`, or the error of its listing.
    pub(super) fn add(&mut self, parent: PlainPath, found: Result<Vec<(PlainPath, PlainPath)>, Error>) {
        match found {
            Ok(found) => self.found.extend(found),
            Err(error) => drop(self.failed.insert(parent, error)),
        }
    }

    /// Returns `operations` with aliases replaced by their real paths. Operations that name an alias in a
    /// directory that could not be listed are left out.
    pub(super) fn resolve(&self, operations: &[Op]) -> Vec<Op> {
        let known = operations.iter().filter(|op| self.failure(op).is_none());
        known.map(|op| resolved(op, &self.found)).collect()
    }

    /// Returns the outcomes of all `operations`, given those of the operations that [`Targets::resolve`] returned.
    pub(super) fn outcomes(&self, operations: &[Op], carried_out: Vec<Outcome>) -> Vec<Outcome> {
        let mut carried_out = carried_out.into_iter();
        let outcome = |op| match self.failure(op) {
            Some(error) => Some(Outcome::Failed(error.again())),
            None => carried_out.next(),
        };
        operations.iter().filter_map(outcome).collect()
    }

    fn failure(&self, op: &Op) -> Option<&Error> {
        asked_by(op).into_iter().find_map(|path| self.failed.get(&path.split()?.0))
    }
}

/// Returns the paths of a batch that may be aliases, by their directory.
pub(super) fn asked_by_all(operations: &[Op]) -> BTreeMap<PlainPath, Vec<PlainPath>> {
    by_parent(&operations.iter().flat_map(asked_by).cloned().collect::<Vec<_>>())
}

/// Returns paths by their directory.
pub(super) fn by_parent(paths: &[PlainPath]) -> BTreeMap<PlainPath, Vec<PlainPath>> {
    let mut all: BTreeMap<PlainPath, Vec<PlainPath>> = BTreeMap::new();
    for path in paths {
        if let Some((parent, _)) = path.split() {
            all.entry(parent).or_default().push(path.clone());
        }
    }
    all
}

fn resolved(op: &Op, targets: &HashMap<PlainPath, PlainPath>) -> Op {
    let asked: Vec<PlainPath> = asked_by(op).into_iter().cloned().collect();
    let target = |path: &PlainPath| match asked.contains(path) {
        true => targets.get(path).unwrap_or(path).clone(),
        false => path.clone(),
    };
    let mut op = op.clone();
    if matches!(op.expect, Expect::Is(_)) {
        op.path = target(&op.path);
    }
    if let Change::Rename { to, .. } | Change::Copy { to, .. } = &mut op.change {
        *to = target(to);
    }
    op
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mark_stands_before_extension_and_fits() {
        assert_eq!(marked_name("a.txt", " (x)"), "a (x).txt");
        assert_eq!(marked_name(".profile", " (x)"), ".profile (x)");
        assert_eq!(marked_name("a", " (x)"), "a (x)");
        let long = "é".repeat(127);
        let name = marked_name(&format!("{long}.t"), " (x)");
        assert!(name.len() <= 255 && name.ends_with(" (x).t"));
    }

    #[test]
    fn failed_listing_fails_operations_of_its_directory_only() {
        let path = |text| PlainPath::new(text).unwrap();
        let delete = |at| Op {
            path: path(at),
            expect: Expect::Is(crate::xet::hash::chunk_hash(b"n").into()),
            change: Change::Delete,
        };
        let [a, b, c] = ["a/n (conflict with folder)", "b/n (conflict with folder)", "a/other"].map(delete);
        let operations = [a.clone(), b.clone(), c.clone()];
        assert_eq!(asked_by_all(&operations).into_keys().collect::<Vec<_>>(), [path("a"), path("b")]);
        let mut targets = Targets::default();
        targets.add(path("a"), Err(Error::NotFound));
        targets.add(path("b"), Ok(vec![(b.path.clone(), path("b/n"))]));
        let resolved = targets.resolve(&operations);
        assert_eq!(resolved, [Op { path: path("b/n"), ..b }, c]);
        let outcomes = targets.outcomes(&operations, resolved.iter().map(|_| Outcome::Done(None)).collect());
        assert!(matches!(outcomes[..], [Outcome::Failed(Error::NotFound), Outcome::Done(None), Outcome::Done(None)]));
    }

    #[test]
    fn taken_aliases_are_numbered() {
        let names = BTreeSet::from(["n.txt", "n (conflict with folder).txt"]);
        assert_eq!(aliases(&names, ["n.txt"].into_iter()), [("n (conflict with folder 2).txt".to_owned(), "n.txt")]);
        let long = ["x".repeat(255), format!("{}y", "x".repeat(254))];
        let names: BTreeSet<&str> = long.iter().map(String::as_str).collect();
        let found = aliases(&names, names.iter().copied());
        assert!(found.len() == 2 && found[0].0 != found[1].0 && found.iter().all(|(alias, _)| alias.len() <= 255));
    }

    #[test]
    fn name_that_is_there_means_itself() {
        let path = |text| PlainPath::new(text).unwrap();
        let (alias, twins) = (path("d/n (conflict with folder)"), Twins::default());
        let both = BTreeSet::from(["n", "n (conflict with folder)"]);
        assert_eq!(twins.target(&alias, &both, ["n"].into_iter()), alias);
        let one = BTreeSet::from(["n"]);
        assert_eq!(twins.target(&alias, &one, ["n"].into_iter()), path("d/n"));
        assert_eq!(twins.target(&alias, &one, std::iter::empty()), alias);
        twins.note(&path("d"), "n (conflict with folder)", "n");
        assert_eq!(twins.target(&alias, &one, std::iter::empty()), path("d/n"));
    }
}
