//! What a process that holds keys does to itself first, and how one is recognised later.

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Open files that a mount may need at once: sockets, staging pools, handles.
const OPEN_FILES: u64 = 65_536;

/// No core dumps (they would hold keys and plaintext), and enough file descriptors. Best effort:
/// none of it can fail the start.
pub fn harden() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = rustix::process::setrlimit(Resource::Core, none);
    let _ = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if limit.current.is_some_and(|current| current < wanted) {
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    }
}

/// When a process was started, in the kernel's ticks since boot; `None`: it is not there. With the
/// pid it names one process for good.
pub fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; field 22 is the 20th behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    if matches!(fields.first(), Some(&"Z" | &"X")) {
        return None;
    }
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_a_start_time_and_pid_zero_has_none() {
        assert!(super::start_time(std::process::id()).is_some());
        assert_eq!(super::start_time(0), None);
    }
}
