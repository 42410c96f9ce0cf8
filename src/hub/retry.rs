//! Bounded retry for the Hub API (Hub API spec, 1.3): which failures are worth another try, and after what wait.
//!
//! Pure: time and randomness are arguments, the waiting itself is done by the caller. Retries end at the deadline
//! of the operation that
//! the call is a part of ([`crate::xet::deadline`]), or after a bounded time where it has none.

pub(super) use crate::xet::http::retry::asked_wait;

use crate::xet::http::retry::{fitting, jittered, share};
use http::StatusCode;
use std::time::Duration;

/// How often and how long.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Most retries after the first try. Normally time ends them.
    pub retries: u32,
    /// First delay; doubles, with jitter. `Retry-After` and `RateLimit` (t=) win.
    pub first: Duration,
    /// Longest wait of the back-off.
    pub longest: Duration,
    /// Deadline of one request, headers and body.
    pub request: Duration,
    /// Where the operation has no deadline: time after which no retry begins, unless the Hub asked for a longer wait.
    pub give_up: Duration,
    /// Deadline of one call with all its retries, if the operation has none. No request and no wait lasts longer.
    pub total: Duration,
}

impl Default for Policy {
    /// Retries for half a minute: long enough for a restart of the Hub, short enough for a person who mistyped an
    /// endpoint. A Hub that is
    /// back is noticed within 5 s. 60 s carry the largest answer that is taken (32 MiB) at 0.6 MB/s.
    fn default() -> Self {
        Self {
            retries: u32::MAX,
            first: Duration::from_millis(500),
            longest: Duration::from_secs(5),
            request: Duration::from_secs(60),
            give_up: Duration::from_secs(30),
            total: Duration::from_secs(120),
        }
    }
}

impl Policy {
    /// The defaults, but no call takes longer than `patience`.
    pub fn within(patience: Duration) -> Self {
        let all = Self::default();
        let [request, give_up, total] = [all.request, all.give_up, all.total].map(|time| time.min(patience));
        Self { request, give_up, total, ..all }
    }

    /// Returns the wait before retry number `retry` (from 0): what the server `asked` for, else the back-off.
    /// `None`: no retry begins in the
    /// time that is `left`. `random` spreads clients that failed together. Never earlier than asked.
    pub(super) fn wait(&self, retry: u32, asked: Option<Duration>, random: u32, left: Duration) -> Option<Duration> {
        let step = self.first.saturating_mul(1u32.checked_shl(retry).unwrap_or(u32::MAX)).min(self.longest);
        match asked {
            Some(asked) => Some(asked.saturating_add(share(self.first, random))).filter(|wait| *wait < left),
            None => fitting(jittered(step, random), left, self.first),
        }
    }
}

/// When a call may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads: on every transient failure.
    Freely,
    /// Writes: only where it is certain that the Hub hasn't carried it out, because it never got
    /// the request or said so (429, 503). A repeat after a lost answer could undo what somebody
    /// else did in between, so that is for the caller to judge.
    WhenRefused,
    /// Best-effort questions: never.
    Never,
}

impl Repeat {
    /// Whether an answer with `status` is worth a repeat.
    pub(super) fn after(self, status: StatusCode) -> bool {
        match self {
            Self::Freely => matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504),
            Self::WhenRefused => matches!(status.as_u16(), 429 | 503),
            Self::Never => false,
        }
    }

    /// Whether a request that got no answer is; `sent`: it may have reached the Hub.
    pub(super) fn after_silence(self, sent: bool) -> bool {
        match self {
            Self::Freely => true,
            Self::WhenRefused => !sent,
            Self::Never => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_stay_within_their_step_and_never_pass_the_longest() {
        let policy = Policy::default();
        for (retry, step) in [(0, 500), (1, 1000), (2, 2000), (4, 5000), (31, 5000), (200, 5000)] {
            let step = Duration::from_millis(step);
            assert_eq!(policy.wait(retry, None, 0, Duration::MAX), Some(step / 2), "{retry}");
            assert_eq!(policy.wait(retry, None, u32::MAX, Duration::MAX), Some(step), "{retry}");
        }
    }

    #[test]
    fn last_waits_shrink_so_that_retries_go_on_until_the_end() {
        let policy = Policy::default();
        let seconds = Duration::from_secs;
        assert_eq!(policy.wait(9, None, u32::MAX, seconds(4)), Some(seconds(2)));
        assert_eq!(policy.wait(9, None, u32::MAX, policy.first / 2), None);
        assert_eq!(policy.wait(9, None, 0, Duration::ZERO), None);
    }

    #[test]
    fn asked_wait_is_kept_or_not_begun() {
        let policy = Policy::default();
        let seconds = Duration::from_secs;
        assert_eq!(policy.wait(9, Some(seconds(3)), 0, seconds(4)), Some(seconds(3)));
        assert_eq!(policy.wait(0, Some(seconds(300)), u32::MAX, seconds(301)), Some(seconds(300) + policy.first));
        assert_eq!(policy.wait(0, Some(seconds(3)), 0, seconds(3)), None);
        assert_eq!(policy.wait(0, Some(seconds(u64::from(u32::MAX) + 1)), u32::MAX, seconds(3)), None);
    }

    #[test]
    fn writes_are_repeated_only_where_the_hub_has_not_acted() {
        let repeated = |repeat: Repeat| -> Vec<u16> {
            (100..600).filter(|s| repeat.after(StatusCode::from_u16(*s).unwrap())).collect()
        };
        assert_eq!(repeated(Repeat::Freely), [408, 429, 500, 502, 503, 504]);
        assert_eq!(repeated(Repeat::WhenRefused), [429, 503]);
        assert!(repeated(Repeat::Never).is_empty());
        assert!(Repeat::WhenRefused.after_silence(false) && !Repeat::WhenRefused.after_silence(true));
        assert!(Repeat::Freely.after_silence(true) && !Repeat::Never.after_silence(false));
    }
}
