//! Checks the source against the layers of `src/lib.rs`: which module may name which, and where
//! `unsafe` is not allowed.
//!
//! It reads tokens (`tests/source`): comments and strings do not count; `use` groups, `super` chains and inline modules
//! do. Ways around it are errors: an alias or a glob of the crate root, `#[path]`, `include!`, and `extern crate`.

use hfcrypt_source::names::names;
use hfcrypt_source::{PACKAGES, Source, circles, product};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Every top module and what it may name besides itself. A layer that is not here fails the test.
const LAYERS: &[(&str, &[&str])] = &[
    ("disk", &[]),
    ("crypto", &[]),
    ("xet", &[]),
    ("hub", &["disk", "xet"]),
    ("store", &["crypto", "disk", "hub", "xet"]),
    ("fs", &["disk", "store"]),
    ("gateway", &["store"]),
    ("cli", &["crypto", "xet", "hub", "store", "fs", "gateway"]),
    ("bin", &["cli"]),
    // Tests only: replays the seeds of fuzz/ through the decoders' bodies.
    ("seeds", &["crypto", "xet", "hub", "gateway"]),
];

/// Where the keyword `unsafe` may not stand at all.
const SAFE: &[&str] = &["crypto", "xet", "hub", "store", "gateway"];

fn sources() -> Vec<Source> {
    let sources = Source::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    assert!(sources.len() > 20, "only {} files found", sources.len());
    sources
}

#[test]
fn source_keeps_to_the_layers() {
    let broken: Vec<String> = sources().iter().flat_map(check).collect();
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

#[test]
fn files_of_embedded_hub_and_upload_session_import_each_other_in_one_direction() {
    let sources = product::without_tests(sources());
    for under in [["hub", "local"], ["xet", "upload"]] {
        assert_eq!(circles::circles(&sources, &under), Vec::<Vec<String>>::new(), "{under:?}");
    }
}

/// Fault injection is for tests: neither the default features nor a program may switch it on.
#[test]
fn release_build_has_no_fault_injection() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let (product, _) = manifest.split_once("[dev-dependencies]").unwrap();
    let named: Vec<&str> = product.lines().filter(|line| !line.starts_with('#') && line.contains("faults")).collect();
    assert_eq!(named, ["faults = [\"local-hub\"]"], "the feature is declared and used nowhere else");
    let hub = fs::read_to_string(root.join("src/hub/local/mod.rs")).unwrap();
    assert!(hub.contains("#[cfg(feature = \"faults\")]\npub mod faults;"));
}

#[test]
fn packages_of_lower_layers_depend_on_no_other_layer() {
    for layer in PACKAGES {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(layer).join("Cargo.toml");
        let manifest = fs::read_to_string(&path).unwrap();
        let own = format!("name = \"hfcrypt-{layer}\"");
        let named: Vec<&str> = manifest
            .lines()
            .map(|line| line.split('#').next().unwrap_or(""))
            .filter(|line| *line != own && !line.starts_with("description") && line.contains("hfcrypt"))
            .collect();
        assert!(manifest.contains(&own), "{}", path.display());
        assert_eq!(named, Vec::<&str>::new(), "{}", path.display());
        assert!(!manifest.contains("path = \".."), "{}", path.display());
    }
}

/// Returns the rules that a file breaks.
fn check(source: &Source) -> Vec<String> {
    let Source { file, module, tokens } = source;
    let layer = module.first().map_or("", String::as_str);
    let mut broken = BTreeSet::new();
    let mut say = |line: usize, what: String| {
        broken.insert((line, what));
    };
    let allowed = LAYERS.iter().find(|(name, _)| *name == layer).map(|(_, allowed)| *allowed);
    if allowed.is_none() && !layer.is_empty() {
        say(0, format!("`{layer}` is no layer: give it a place in tests/layering.rs"));
    }
    let root = module.iter().take(usize::from(PACKAGES.contains(&layer))).cloned().collect::<Vec<_>>();
    for name in names(tokens, module, &root, layer == "bin") {
        match name.path.first().map(String::as_str) {
            None => say(name.line, "names the crate root as a whole".to_owned()),
            Some(first) if first == layer => {}
            Some(first) if !LAYERS.iter().any(|(known, _)| *known == first) => {
                say(name.line, format!("names `{first}`, which is no layer"));
            }
            Some(first) if allowed.is_some_and(|allowed| allowed.contains(&first)) => {}
            Some(first) => say(name.line, format!("`{layer}` may not name `{first}`")),
        }
    }
    for (i, token) in tokens.iter().enumerate() {
        let is = |at: usize, text: &str| tokens.get(at).is_some_and(|t| t.text == text);
        match token.text.as_str() {
            "unsafe" if SAFE.contains(&layer) => say(token.line, format!("`unsafe` in `{layer}`")),
            "extern" if is(i + 1, "crate") => say(token.line, "`extern crate`".to_owned()),
            "path" if i > 0 && is(i - 1, "[") && is(i + 1, "=") => say(token.line, "`#[path]`".to_owned()),
            "include" if is(i + 1, "!") => say(token.line, "`include!`".to_owned()),
            _ => {}
        }
    }
    broken.into_iter().map(|(line, what)| format!("src/{}:{line}: {what}", file.display())).collect()
}

#[cfg(test)]
mod samples {
    use hfcrypt_source::Source;
    use std::path::Path;

    fn check(file: &str, text: &str) -> Vec<String> {
        super::check(&Source::new(Path::new(file), text).unwrap())
    }

    fn broken(file: &str, text: &str) -> usize {
        check(file, text).len()
    }

    #[test]
    fn edges_up_or_sideways_are_caught_in_every_spelling() {
        for text in [
            "use crate::fs::Error;",
            "use crate::fs;",
            "use crate::fs as h;",
            "pub(crate) use crate::fs::*;",
            "use crate::{crypto, xet::hash};",
            "use crate::{\n    xet::{hash, merkle},\n    store::{self, View},\n};",
            "use super::super::fs::Error;",
            "use super::super::{fs::Error};",
            "use super::{super::fs, cas};",
            "use {crate::fs::Error, std::fs};",
            "fn f(e: crate::fs::Error) {}",
            "fn f() { crate :: fs :: local :: open() }",
            "fn f() { let s = 'x'; let r: &'static str = \"//\"; crate::fs::f() }",
            "macro_rules! m { () => { $crate::fs::f() } }",
            "mod tests { use super::super::super::fs::Error; }",
            "mod a { mod b {} use super::super::super::fs::Error; }",
            "impl From<crate::store::Error> for E {}",
            "#[derive(D)] #[d(with = crate::fs::x)] struct S;",
            "fn f() { r#\"\"#; crate::fs::f() }",
            "/* a /* b */ */ use crate::fs;",
            "use crate::unheard_of;",
        ] {
            assert_eq!(broken("hub/http.rs", text), 1, "{text}");
        }
    }

    #[test]
    fn root_itself_is_no_way_around() {
        for text in [
            "use crate::*;",
            "use crate as root;",
            "use crate::{self as root};",
            "use crate::self as root;",
            "use super::super::*;",
            "use super::super as root;",
            "use super::{super as root};",
            "extern crate self as hfcrypt;",
            "#[path = \"../fs/mod.rs\"] mod fs;",
            "include!(\"../fs/mod.rs\");",
        ] {
            assert_eq!(broken("hub/http.rs", text), 1, "{text}");
        }
        assert_eq!(broken("hub/mod.rs", "use super::*;"), 1);
        assert_eq!(broken("hub/mod.rs", "mod tests { use super::super::*; }"), 1);
    }

    #[test]
    fn own_module_lower_layers_and_other_crates_pass() {
        for (file, text) in [
            ("xet/http.rs", "use crate::Error; use super::cas::Cas; use super::*; use self::grant::Grant;"),
            ("xet/http.rs", "mod tests { use super::*; use super::super::hash; } use super::hash;"),
            ("xet/http/retry.rs", "use super::super::{cas, hash}; pub(in super::super) fn f() {}"),
            ("hub/client.rs", "use crate::xet::{hash::Hash, cas}; use std::fs; use http::HeaderMap;"),
            ("store/mod.rs", "use crate::{crypto::Keys, hub, xet::{self, Hash}};"),
            ("store/staging/pool.rs", "use super::{SlotId, SlotIo}; use crate::disk::{Disk, DiskFile};"),
            ("fs/fuse.rs", "use crate::store::View; unsafe { libc::getuid() };"),
            ("cli/exit.rs", "use crate::{crypto, fs, hub, store, xet};"),
            ("bin/hf-mount.rs", "fn main() -> std::process::ExitCode { hfcrypt::cli::mount::hf_mount() }"),
            ("lib.rs", "//! [`crypto`]\npub mod crypto;\npub mod xet;"),
            ("xet/hash.rs", "// crate::hub\n//! crate::hub\n/// [`crate::store::open`]\n/* crate::hub */ fn f() {}"),
            ("xet/hash.rs", "const A: &str = \"crate::hub \\\" crate::hub\"; const B: &str = r#\"\" crate::hub\"#;"),
            ("xet/hash.rs", "fn f(&self) { self.crate_hub(); \"unsafe\"; b'\"'; '\\''; '\"' } fn g<'a>(_: &'a str) {}"),
        ] {
            assert_eq!(check(file, text), Vec::<String>::new(), "{file}: {text}");
        }
    }

    #[test]
    fn front_ends_see_only_the_store_and_mains_only_the_commands() {
        for layer in ["crypto", "xet", "hub", "cli", "gateway"] {
            assert_eq!(broken("fs/read.rs", &format!("use crate::{layer}::X;")), 1, "fs -> {layer}");
        }
        for layer in ["crypto", "xet", "hub", "cli", "fs"] {
            assert_eq!(broken("gateway/s3.rs", &format!("use crate::{layer}::X;")), 1, "gateway -> {layer}");
        }
        for (from, to) in [("disk", "xet"), ("hub", "crypto"), ("hub", "store"), ("store", "fs")] {
            assert_eq!(broken(&format!("{from}/x.rs"), &format!("use crate::{to}::X;")), 1, "{from} -> {to}");
        }
        assert_eq!(broken("bin/hfcrypt.rs", "use hfcrypt::crypto::Keys; fn main() {}"), 1);
        assert_eq!(broken("misc/x.rs", ""), 1, "an unknown top module");
        assert_eq!(broken("misc.rs", ""), 1, "an unknown top module");
    }

    #[test]
    fn unsafe_is_caught_where_it_may_not_stand() {
        for layer in super::SAFE {
            assert_eq!(broken(&format!("{layer}/x.rs"), "fn f() { unsafe { g() } }"), 1);
            assert_eq!(broken(&format!("{layer}/x.rs"), "#![forbid(unsafe_code)] // unsafe"), 0);
        }
        assert_eq!(broken("fs/x.rs", "unsafe fn f() {}"), 0);
    }

    #[test]
    fn a_finding_names_file_and_line() {
        assert_eq!(check("hub/x.rs", "\n/*\n*/ use crate::fs;"), ["src/hub/x.rs:3: `hub` may not name `fs`"]);
    }
}
