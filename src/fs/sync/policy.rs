//! Decides which local content is uploaded.
//!
//! Content that isn't uploaded is *kept*. It is in staging and journal like all local content, so it outlives the
//! mount, but no flush concerns it. A file is kept while its name is on the list and the Hub has never had the file.
//! Once the file is renamed to another name, it is uploaded. In the local layer of an overlay all files are kept.

use crate::fs::errno::Error;
use crate::store::PlainPath;

/// Names that desktop programs create in every folder and that do not belong in a bucket. Names that begin with
/// [`FILTERED_PREFIX`] are treated like them.
const FILTERED: [&str; 7] =
    [".DS_Store", ".Spotlight-V100", ".Trashes", ".fseventsd", "__MACOSX", "Thumbs.db", "desktop.ini"];
const FILTERED_PREFIX: &str = "._";

/// The error for a change that would remove a file from the Hub because of its new name, or copy a file at the Hub to
/// such a name.
pub(crate) const KEPT_HERE: Error = Error::Denied("files of that name are kept on this machine and not uploaded");

/// The rule that decides which files are kept. See the module.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Keep files with [`FILTERED`] names, and all files in folders with such names.
    pub(crate) filter_os_files: bool,
    /// Keep all files: they are the local layer of an overlay.
    pub(crate) keep_all: bool,
}

impl Policy {
    /// Returns true if new content at this path isn't uploaded.
    pub(crate) fn keeps(self, path: &PlainPath) -> bool {
        let is_filtered = |name: &str| FILTERED.contains(&name) || name.starts_with(FILTERED_PREFIX);
        self.keep_all || (self.filter_os_files && path.as_str().split('/').any(is_filtered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn desktop_file_names_are_kept_at_any_depth() {
        let path = |text| PlainPath::new(text).unwrap();
        let policy = Policy { filter_os_files: true, keep_all: false };
        for kept in [".DS_Store", "a/.DS_Store", "._a", "a/._b/c", "__MACOSX/a", "Thumbs.db"] {
            assert!(policy.keeps(&path(kept)), "{kept}");
            assert!(!Policy { filter_os_files: false, keep_all: false }.keeps(&path(kept)), "{kept}");
        }
        for uploaded in ["DS_Store", "a.DS_Store", "a._b", "thumbs", "_._"] {
            assert!(!policy.keeps(&path(uploaded)), "{uploaded}");
        }
    }
}
