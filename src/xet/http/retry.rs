//! When to try again, and how long to wait before it (Xet spec, section 11). Arithmetic only; the clock and the dice are handed in.

use super::Options;
use crate::Error;
use http::{HeaderMap, StatusCode};
use std::time::Duration;

/// Longest single wait, whatever a server asks for: a mount must not sleep through the deadlines of those who wait for it.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why one try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The same request may succeed later; `after`: the server's wish.
    Transient { error: Error, after: Option<Duration> },
    /// It never will.
    Final(Error),
}

impl Failure {
    pub(super) fn transient(error: Error) -> Self {
        Self::Transient { error, after: None }
    }

    pub(super) fn network(why: impl Into<String>) -> Self {
        Self::transient(Error::Network(why.into()))
    }

    /// A 2xx answer that cannot be used: damaged on its way, for all we know, so it is asked for again.
    pub(super) fn damaged(what: &'static str, why: impl Into<String>) -> Self {
        Self::transient(Error::Malformed { what, why: why.into() })
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Transient { error, .. } | Self::Final(error) => error,
        }
    }
}

/// The tries of one request.
pub(super) struct Backoff {
    left: u32,
    delay: Duration,
}

impl Backoff {
    pub(super) fn new(options: &Options) -> Self {
        Self { left: options.retries, delay: options.first_delay }
    }

    /// For a request that is not worth a second try.
    pub(super) fn none() -> Self {
        Self { left: 0, delay: Duration::ZERO }
    }

    /// The wait before the next try, or the error to give up with. `dice`: uniform, for the jitter.
    pub(super) fn next(&mut self, failure: Failure, dice: u32) -> Result<Duration, Error> {
        match failure {
            Failure::Transient { after, .. } if self.left > 0 => {
                self.left -= 1;
                let wait = after.unwrap_or(Duration::ZERO).max(jittered(self.delay, dice)).min(LONGEST_WAIT);
                self.delay = self.delay.saturating_mul(2).min(LONGEST_WAIT);
                Ok(wait)
            }
            failure => Err(failure.into_error()),
        }
    }
}

/// Half to the whole of `delay`: spread enough that clients cut off together don't return together.
pub fn jittered(delay: Duration, dice: u32) -> Duration {
    delay / 2 + share(delay / 2, dice)
}

/// Nothing to the whole of `duration`.
pub fn share(duration: Duration, dice: u32) -> Duration {
    duration.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

/// The wait that an answer asks for: on 429 the reset time of an exhausted `RateLimit` (`"api";r=0;t=55`), else `Retry-After` in seconds. One
/// second more than asked, since both are rounded down. The date form of `Retry-After` is not read: it needs two clocks to agree.
pub fn asked_wait(status: StatusCode, headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let reset = || text("ratelimit").find_map(exhausted_until);
    let after = || text("retry-after").find_map(|value| value.trim().parse::<u32>().ok());
    let seconds = if status == StatusCode::TOO_MANY_REQUESTS { reset().or_else(after) } else { after() };
    seconds.map(|seconds| Duration::from_secs(u64::from(seconds) + 1))
}

/// `t` of the first item of a `RateLimit` header that has `r=0`.
fn exhausted_until(header: &str) -> Option<u32> {
    header.split(',').find_map(|item| {
        let parameter = |name: &str| {
            item.split(';').skip(1).filter_map(|part| part.trim().split_once('=')).find(|(key, _)| *key == name)
        };
        let number = |name| parameter(name).and_then(|(_, value)| value.trim().parse::<u32>().ok());
        number("t").filter(|_| number("r") == Some(0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(retries: u32) -> Options {
        Options { retries, first_delay: Duration::from_secs(1), ..Options::default() }
    }

    fn asked(status: u16, headers: &[(&'static str, &str)]) -> Option<u64> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        asked_wait(StatusCode::from_u16(status).unwrap(), &map).map(|wait| wait.as_secs())
    }

    #[test]
    fn waits_double_and_end_with_the_error() {
        let mut backoff = Backoff::new(&options(3));
        let waits: Vec<_> =
            (0..3).map(|_| backoff.next(Failure::network("x"), u32::MAX).unwrap().as_secs_f64().round()).collect();
        assert_eq!(waits, [1.0, 2.0, 4.0]);
        assert!(matches!(backoff.next(Failure::network("x"), 0), Err(Error::Network(_))));
    }

    #[test]
    fn final_failure_is_not_tried_again() {
        let mut backoff = Backoff::new(&options(3));
        assert!(matches!(backoff.next(Failure::Final(Error::Unauthorized), 0), Err(Error::Unauthorized)));
    }

    #[test]
    fn wish_of_the_server_is_honoured_up_to_the_cap() {
        let wish = |after| Failure::Transient { error: Error::Unauthorized, after: Some(Duration::from_secs(after)) };
        let mut backoff = Backoff::new(&options(2));
        assert_eq!(backoff.next(wish(7), 0).unwrap(), Duration::from_secs(7));
        assert_eq!(backoff.next(wish(u64::MAX), 0).unwrap(), LONGEST_WAIT);
    }

    #[test]
    fn an_exhausted_rate_limit_wins_over_retry_after_on_429_only() {
        let limit = ("ratelimit", "\"api\";r=0;t=55");
        assert_eq!(asked(429, &[limit, ("retry-after", "7")]), Some(56));
        assert_eq!(asked(503, &[limit, ("retry-after", "7")]), Some(8));
        assert_eq!(asked(429, &[("ratelimit", "\"api\";r=3;t=55"), ("retry-after", "7")]), Some(8));
        assert_eq!(asked(429, &[("ratelimit", "\"a\";r=2;t=9, \"b\"; r=0; t=4")]), Some(5));
        assert_eq!(asked(429, &[("ratelimit", "\"a\";r=2;t=9"), ("ratelimit", "\"b\";t=3;r=0")]), Some(4));
    }

    #[test]
    fn unreadable_waits_count_as_none() {
        for value in ["", "-1", "1.5", "soon", "Wed, 21 Oct 2026 07:28:00 GMT", "99999999999999999999"] {
            assert_eq!(asked(503, &[("retry-after", value)]), None, "{value}");
        }
        for value in ["", ";;;", "r=0;t=5", "\"a\";r=0", "\"a\";r=0;t=-2", "\"a\";r=;t=", "\"a\";r=0;t=99999999999"] {
            assert_eq!(asked(429, &[("ratelimit", value)]), None, "{value}");
        }
        assert_eq!(asked(503, &[("retry-after", "4294967295")]), Some(4294967296));
    }

    proptest! {
        #[test]
        fn jitter_stays_within_half_and_whole(millis in 0u64..100_000, dice: u32) {
            let delay = Duration::from_millis(millis);
            let wait = jittered(delay, dice);
            prop_assert!(wait >= delay / 2 && wait <= delay);
        }
    }
}
