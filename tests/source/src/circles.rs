//! Import circles: files that import each other, directly or through others.
//!
//! A file that names its own parent module does not count: a folder and its root file belong together.

use crate::names::names;
use crate::{PACKAGES, Source};
use std::collections::{BTreeSet, HashMap};

/// Returns the circles among the files below the module `under`, the largest first, each sorted. `sources` should be
/// without tests.
pub fn circles(sources: &[Source], under: &[&str]) -> Vec<Vec<String>> {
    let files: Vec<&Source> =
        sources.iter().filter(|source| source.module.iter().take(under.len()).eq(under.iter())).collect();
    let modules: HashMap<&[String], usize> = files.iter().zip(0..).map(|(file, at)| (&file.module[..], at)).collect();
    let edges: Vec<BTreeSet<usize>> = files.iter().map(|file| imports(file, &modules)).collect();
    let reach: Vec<BTreeSet<usize>> = (0..files.len()).map(|from| reachable(from, &edges)).collect();
    let mut found: BTreeSet<BTreeSet<usize>> = BTreeSet::new();
    for at in 0..files.len() {
        let circle: BTreeSet<usize> = reach[at].iter().copied().filter(|other| reach[*other].contains(&at)).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    let name = |at: usize| files[at].file.display().to_string();
    let sorted = |circle: BTreeSet<usize>| circle.into_iter().map(name).collect::<BTreeSet<_>>().into_iter().collect();
    let mut circles: Vec<Vec<String>> = found.into_iter().map(sorted).collect();
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}

fn imports(file: &Source, modules: &HashMap<&[String], usize>) -> BTreeSet<usize> {
    let layer = file.module.first().map_or("", String::as_str);
    let root = &file.module[..usize::from(PACKAGES.contains(&layer))];
    let named = names(&file.tokens, &file.module, root, layer == "bin");
    let target = |path: &[String]| {
        let module = (1..=path.len()).rev().map(|len| &path[..len]).find(|module| modules.contains_key(module))?;
        (!file.module.starts_with(module)).then(|| modules[module])
    };
    named.iter().filter_map(|name| target(&name.path)).collect()
}

fn reachable(from: usize, edges: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(at) = open.pop() {
        open.extend(edges[at].iter().filter(|next| seen.insert(**next)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::circles;
    use crate::Source;
    use std::path::Path;

    fn source(file: &str, text: &str) -> Source {
        Source::new(Path::new(file), text).unwrap()
    }

    #[test]
    fn circle_through_every_kind_of_import_is_found() {
        let sources = [
            source("fs/mod.rs", "mod a; mod b; mod c; mod d; use a::A; use crate::fs::b::B;"),
            source("fs/a.rs", "use super::b; use super::A;"),
            source("fs/b.rs", "use crate::fs::{c::C, d};"),
            source("fs/c.rs", "fn f() { super::a::f() }"),
            source("fs/d.rs", "use super::*; use crate::hub::a;"),
            source("hub/a.rs", "use crate::fs::d;"),
        ];
        assert_eq!(circles(&sources, &["fs"]), [["fs/a.rs", "fs/b.rs", "fs/c.rs"]]);
        assert!(circles(&sources, &["hub"]).is_empty());
    }

    #[test]
    fn circle_through_a_root_file_of_another_folder_is_found() {
        let sources = [
            source("hub/mod.rs", "mod db; mod cas;"),
            source("hub/db.rs", "use super::cas;"),
            source("hub/cas/mod.rs", "mod xorbs; use xorbs::Xorbs;"),
            source("hub/cas/xorbs.rs", "use super::Error; use crate::hub::db::Db;"),
        ];
        assert_eq!(circles(&sources, &["hub"]), [["hub/cas/mod.rs", "hub/cas/xorbs.rs", "hub/db.rs"]]);
    }
}
