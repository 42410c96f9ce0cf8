//! Adds up the entries that listings did not show.

use super::Hidden;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Directories that are counted one by one. Those of further directories are only added up, because a server
/// may have any number of them.
const MAX_DIRECTORIES: usize = 65_536;

impl Hidden {
    /// Returns the number of entries that are not shown, for any reason.
    pub fn total(&self) -> u64 {
        [self.foreign, self.suspicious, self.shadowed, self.unreachable].into_iter().fold(0, u64::saturating_add)
    }

    /// Returns the number of entries that exist although no entry of their name is shown. A directory that
    /// has some can't be removed.
    pub fn nameless(&self) -> u64 {
        [self.foreign, self.suspicious, self.unreachable].into_iter().fold(0, u64::saturating_add)
    }
}

impl std::ops::AddAssign for Hidden {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in [
            (&mut self.foreign, other.foreign),
            (&mut self.suspicious, other.suspicious),
            (&mut self.shadowed, other.shadowed),
            (&mut self.unreachable, other.unreachable),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Counts of hidden entries of all directories listed so far, each from its last listing.
#[derive(Default)]
pub(super) struct HiddenSums(Mutex<HashMap<String, Hidden>>);

impl HiddenSums {
    /// Records the counts of the latest listing of the directory with this stored key.
    pub(super) fn note(&self, directory: &str, hidden: Hidden) {
        let mut directories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hidden == Hidden::default() {
            directories.remove(directory);
        } else if directories.len() < MAX_DIRECTORIES || directories.contains_key(directory) {
            directories.insert(directory.to_owned(), hidden);
        } else {
            // No directory has this key.
            *directories.entry("//".to_owned()).or_default() += hidden;
        }
    }

    /// Returns the sums over all directories.
    pub(super) fn sum(&self) -> Hidden {
        let mut sum = Hidden::default();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().for_each(|hidden| sum += *hidden);
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_listing_of_directory_replaces_its_counts() {
        let sums = HiddenSums::default();
        sums.note("a", Hidden { foreign: 2, ..Hidden::default() });
        sums.note("b", Hidden { foreign: 1, shadowed: 4, ..Hidden::default() });
        sums.note("a", Hidden { foreign: 1, ..Hidden::default() });
        assert_eq!(sums.sum(), Hidden { foreign: 2, shadowed: 4, ..Hidden::default() });
        sums.note("b", Hidden::default());
        assert_eq!(sums.sum(), Hidden { foreign: 1, ..Hidden::default() });
    }
}
