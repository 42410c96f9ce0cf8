//! Sums of what listings did not show.

use super::Hidden;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Directories that are counted one by one; those of further ones are only added up, since a server may have any number of them.
const MAX_DIRECTORIES: usize = 65_536;

impl Hidden {
    /// Returns how many entries are not shown, whatever the reason.
    pub fn total(&self) -> u64 {
        [self.foreign, self.suspicious, self.shadowed, self.unreachable].into_iter().fold(0, u64::saturating_add)
    }

    /// Returns how many entries are there although no entry of their name is shown. They keep their directory from
    /// being removed.
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

/// What the directories listed so far did not show, each as of its last listing.
#[derive(Default)]
pub(super) struct HiddenSums(Mutex<HashMap<String, Hidden>>);

impl HiddenSums {
    /// Notes the latest listing of the directory with this stored key.
    pub(super) fn note(&self, directory: &str, hidden: Hidden) {
        let mut directories = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hidden == Hidden::default() {
            directories.remove(directory);
        } else if directories.len() < MAX_DIRECTORIES || directories.contains_key(directory) {
            directories.insert(directory.to_owned(), hidden);
        } else {
            // Not a key of any directory.
            *directories.entry("//".to_owned()).or_default() += hidden;
        }
    }

    /// The sum.
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
    fn the_last_listing_of_a_directory_counts() {
        let sums = HiddenSums::default();
        sums.note("a", Hidden { foreign: 2, ..Hidden::default() });
        sums.note("b", Hidden { foreign: 1, shadowed: 4, ..Hidden::default() });
        sums.note("a", Hidden { foreign: 1, ..Hidden::default() });
        assert_eq!(sums.sum(), Hidden { foreign: 2, shadowed: 4, ..Hidden::default() });
        sums.note("b", Hidden::default());
        assert_eq!(sums.sum(), Hidden { foreign: 1, ..Hidden::default() });
    }
}
