//! Who logs in, and what that access key may do.

use crate::gateway::{AccessKey, AccessKeys, Error, Permission};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Delay of the first failed login of an address. Each further one takes twice as long.
const FIRST_DELAY: Duration = Duration::from_millis(250);
/// Longest delay.
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// Time after which failures of an address are forgotten.
const FORGET: Duration = Duration::from_secs(600);
/// Most addresses that are remembered. When there are more, all are forgotten.
const MAX_ADDRESSES: usize = 10_000;

/// The access key of a session. `None`: an anonymous one, where those are allowed.
#[derive(Clone)]
pub(super) struct Caller(Option<Arc<AccessKey>>);

impl Caller {
    /// Checks name and password. `None`: they are wrong.
    pub(super) fn log_in(keys: &AccessKeys, anonymous: bool, name: &str, password: &str) -> Option<Self> {
        if let Some(key) = keys.get(name) {
            return key.has_secret(password).then(|| Self(Some(Arc::new(key.clone()))));
        }
        let is_anonymous = ["anonymous", "ftp"].iter().any(|known| name.eq_ignore_ascii_case(known));
        (anonymous && is_anonymous).then_some(Self(None))
    }

    /// Fails if the caller may not do `needed` with a key, or with all keys that begin with one.
    pub(super) fn check(&self, needed: Permission, bucket: &str, key: &str) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |caller| caller.check(needed, Some(bucket), Some(key)))
    }

    /// Fails if the caller may not create and remove buckets.
    pub(super) fn check_buckets(&self, bucket: &str) -> Result<(), Error> {
        self.0.as_ref().map_or(Ok(()), |caller| caller.check(Permission::Write, Some(bucket), None))
    }

    /// Returns true if the caller may know of a folder. `prefix`: that of its keys.
    pub(super) fn may_enter(&self, bucket: &str, prefix: &str) -> bool {
        self.0.as_ref().is_none_or(|caller| caller.may_enter(bucket, prefix))
    }

    /// Returns true if the caller may do `needed` with a key.
    pub(super) fn may(&self, needed: Permission, bucket: &str, key: &str) -> bool {
        self.check(needed, bucket, key).is_ok()
    }

    /// Returns the name for the log.
    pub(super) fn name(&self) -> &str {
        self.0.as_ref().map_or("anonymous", |caller| &caller.access_key_id)
    }
}

/// Failed logins by address. Never locked over an await.
#[derive(Default)]
pub(super) struct Failures(Mutex<HashMap<IpAddr, (u32, Instant)>>);

impl Failures {
    /// Counts a failure. Returns the delay of its answer.
    pub(super) fn count(&self, address: IpAddr) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_ADDRESSES {
            failures.clear();
        }
        let (count, last) = failures.entry(address.to_canonical()).or_insert((0, Instant::now()));
        *count = if last.elapsed() < FORGET { count.saturating_add(1) } else { 1 };
        *last = Instant::now();
        FIRST_DELAY.saturating_mul(1 << (*count - 1).min(16)).min(LONGEST_DELAY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_an_address_take_longer_and_longer() {
        let failures = Failures::default();
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let delays: Vec<u128> = (0..8).map(|_| failures.count(one).as_millis()).collect();
        assert_eq!(delays, [250, 500, 1000, 2000, 4000, 8000, 8000, 8000]);
        assert_eq!(failures.count("::ffff:10.0.0.1".parse().unwrap()), LONGEST_DELAY, "the same address");
        assert_eq!(failures.count(other), FIRST_DELAY);
    }

    #[test]
    fn only_the_right_secret_logs_in() {
        let text =
            "[[key]]\naccess_key_id = \"a\"\nsecret_access_key = \"s\"\npermission = \"read\"\nscopes = [\"b/x/\"]";
        let keys = AccessKeys::new(AccessKeys::parse(text).unwrap()).unwrap();
        for (name, password) in [("a", "S"), ("a", ""), ("b", "s"), ("anonymous", "s"), ("", "")] {
            assert!(Caller::log_in(&keys, false, name, password).is_none(), "{name} {password}");
        }
        assert!(Caller::log_in(&keys, true, "a", "wrong").is_none());
        let anonymous = Caller::log_in(&keys, true, "Anonymous", "me@here").unwrap();
        assert!(anonymous.may(Permission::Write, "any", "key") && anonymous.check_buckets("any").is_ok());
        let caller = Caller::log_in(&keys, false, "a", "s").unwrap();
        assert!(caller.may(Permission::Read, "b", "x/y") && !caller.may(Permission::Write, "b", "x/y"));
        assert!(!caller.may(Permission::Read, "b", "y") && caller.check_buckets("b").is_err());
        assert!(caller.may_enter("b", "") && !caller.may_enter("c", "") && caller.name() == "a");
    }
}
