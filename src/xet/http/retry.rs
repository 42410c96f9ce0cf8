//! When to try again, and how long to wait before it (Xet spec, section 11). Arithmetic only; the
//! clock and the dice are handed in.

use super::Options;
use crate::Error;
use http::{HeaderMap, StatusCode};
use std::time::Duration;
use tokio::time::Instant;

/// Longest wait of the back-off: a server that is back should be noticed within seconds.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// Longest wait that a server may ask for, where the operation has no deadline.
const LONGEST_ASKED: Duration = Duration::from_secs(60);

/// Why one try failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// An error after which the request may succeed later. `after`: the wait that the server asks for. `silent`: time
    /// without progress.
    Transient { error: Error, after: Option<Duration>, silent: Duration },
    /// It never will.
    Final(Error),
}

impl Failure {
    pub(super) fn transient(error: Error) -> Self {
        Self::Transient { error, after: None, silent: Duration::ZERO }
    }

    /// Nothing moved for `silent`.
    pub(super) fn stalled(why: impl Into<String>, silent: Duration) -> Self {
        Self::Transient { error: Error::Network(why.into()), after: None, silent }
    }

    pub(super) fn network(why: impl Into<String>) -> Self {
        Self::transient(Error::Network(why.into()))
    }

    /// A 2xx answer that cannot be used: damaged on its way, for all we know, so it is asked for again.
    pub(super) fn damaged(what: &'static str, why: impl Into<String>) -> Self {
        Self::transient(Error::Malformed { what, why: why.into() })
    }

    /// Returns the error once more, if the failure may pass.
    pub(super) fn repeated(&self) -> Option<Error> {
        match self {
            Self::Transient { error, .. } => Some(error.clone()),
            Self::Final(_) => None,
        }
    }

    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Transient { error, .. } | Self::Final(error) => error,
        }
    }
}

/// The tries of one request. They end at the operation's deadline; where it has none, when nothing has moved for
/// [`Options::give_up`].
pub(super) struct Backoff {
    left: u32,
    first: Duration,
    delay: Duration,
    give_up: Duration,
    asked_for: Duration,
    /// Since when nothing has moved.
    failing: Option<Instant>,
}

impl Backoff {
    pub(super) fn new(options: &Options) -> Self {
        let (first, give_up) = (options.first_delay, options.give_up);
        Self { left: options.retries, first, delay: first, give_up, asked_for: options.asked_for, failing: None }
    }

    /// For a request that is not worth a second try.
    pub(super) fn none() -> Self {
        let zero = Duration::ZERO;
        Self { left: 0, first: zero, delay: zero, give_up: zero, asked_for: zero, failing: None }
    }

    /// Notes that bytes have come: the time to give up starts again.
    pub(super) fn progressed(&mut self) {
        self.failing = None;
    }

    /// Returns the wait before the next try, or the error to give up with. `end`: the operation's deadline.
    /// `dice`: uniform, for the
    /// jitter.
    pub(super) fn next(
        &mut self,
        failure: Failure,
        dice: u32,
        now: Instant,
        end: Option<Instant>,
    ) -> Result<Duration, Error> {
        let wait = match &failure {
            Failure::Transient { after, silent, .. } if self.left > 0 => self.wait(*after, *silent, dice, now, end),
            _ => None,
        };
        let Some(wait) = wait else { return Err(failure.into_error()) };
        self.left -= 1;
        self.delay = self.delay.saturating_mul(2).min(LONGEST_BACKOFF);
        Ok(wait)
    }

    /// Returns the wait, or `None` where no further try begins in time.
    fn wait(
        &mut self,
        after: Option<Duration>,
        silent: Duration,
        dice: u32,
        now: Instant,
        end: Option<Instant>,
    ) -> Option<Duration> {
        let since = *self.failing.get_or_insert(now.checked_sub(silent).unwrap_or(now));
        let given = if after.is_some() { self.asked_for } else { self.give_up };
        let left = match end {
            Some(end) => end.saturating_duration_since(now),
            None => given.saturating_sub(now.saturating_duration_since(since)),
        };
        let wait = jittered(self.delay, dice);
        match after {
            Some(asked) => {
                let asked = if end.is_some() { asked } else { asked.min(LONGEST_ASKED) };
                Some(asked.max(wait)).filter(|wait| *wait < left)
            }
            None => fitting(wait, left, self.first),
        }
    }
}

/// Returns a wait of the back-off that ends before the time that is `left` is over: the last tries come closer to
/// each other, so that
/// they go on until the end. `None` where less than half of the `first` wait would be left.
pub fn fitting(wait: Duration, left: Duration, first: Duration) -> Option<Duration> {
    if wait < left {
        return Some(wait);
    }
    Some(left / 2).filter(|wait| *wait >= first / 2 && !wait.is_zero())
}

/// Half to the whole of `delay`: spread enough that clients cut off together don't return together.
pub fn jittered(delay: Duration, dice: u32) -> Duration {
    delay / 2 + share(delay / 2, dice)
}

/// Nothing to the whole of `duration`.
pub fn share(duration: Duration, dice: u32) -> Duration {
    duration.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

/// The wait that an answer asks for: on 429 the reset time of an exhausted `RateLimit` (`"api";r=0;t=55`), else
/// `Retry-After` in seconds. One second more than asked, since both are rounded down. The date form of `Retry-After` is
/// not read: it needs two clocks to agree.
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

    /// The waits of a request that fails again as soon as it is tried, in seconds, until it is given up.
    fn waits(backoff: &mut Backoff, failure: impl Fn() -> Failure, end: Option<Duration>) -> (Vec<f64>, Duration) {
        let began = Instant::now();
        let (mut now, mut waits) = (began, Vec::new());
        while let Ok(wait) = backoff.next(failure(), u32::MAX, now, end.map(|end| began + end)) {
            waits.push(wait.as_secs_f64());
            now += wait;
        }
        (waits, now - began)
    }

    #[test]
    fn waits_double_up_to_five_seconds_and_end_at_the_deadline() {
        let failure = || Failure::network("x");
        let seconds = Duration::from_secs;
        let (found, ended) = waits(&mut Backoff::new(&options(u32::MAX)), failure, Some(seconds(30)));
        assert_eq!(found[..6], [1.0, 2.0, 4.0, 5.0, 5.0, 5.0], "{found:?}");
        assert!(ended < seconds(30) && ended > seconds(28), "{ended:?}");
        assert!(found.len() < 14, "no storm at the end: {found:?}");
        // Without a deadline, when nothing has moved for as long as the options say.
        let give_up = Options::default().give_up;
        let (_, ended) = waits(&mut Backoff::new(&options(u32::MAX)), failure, None);
        assert!(ended < give_up && ended > give_up - seconds(2), "{ended:?}");
        let stalled = |time| waits(&mut Backoff::new(&options(u32::MAX)), move || Failure::stalled("x", time), None).0;
        assert!(stalled(give_up).is_empty());
        assert!(!stalled(Options::default().idle).is_empty(), "a connection that died in silence gets a second one");
    }

    #[test]
    fn tries_end_with_the_error_when_their_number_is_used_up() {
        let mut backoff = Backoff::new(&options(3));
        assert_eq!(waits(&mut backoff, || Failure::network("x"), None).0, [1.0, 2.0, 4.0]);
        let error = backoff.next(Failure::network("x"), 0, Instant::now(), None);
        assert!(matches!(error, Err(Error::Network(_))));
    }

    #[test]
    fn progress_starts_the_time_to_give_up_again() {
        let mut backoff = Backoff::new(&options(u32::MAX));
        let mut now = Instant::now();
        for _ in 0..10 {
            backoff.next(Failure::network("x"), 0, now, None).unwrap();
            now += Duration::from_secs(40);
            backoff.progressed();
        }
        backoff.next(Failure::network("x"), 0, now, None).unwrap();
        now += Options::default().give_up;
        assert!(backoff.next(Failure::network("x"), 0, now, None).is_err());
    }

    #[test]
    fn final_failure_is_not_tried_again() {
        let mut backoff = Backoff::new(&options(3));
        let next = backoff.next(Failure::Final(Error::Unauthorized), 0, Instant::now(), None);
        assert!(matches!(next, Err(Error::Unauthorized)));
    }

    #[test]
    fn asked_wait_is_kept_up_to_the_deadline() {
        let asked = |after| Failure::Transient {
            error: Error::Unauthorized,
            after: Some(Duration::from_secs(after)),
            silent: Duration::ZERO,
        };
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let mut backoff = Backoff::new(&options(9));
        assert_eq!(backoff.next(asked(7), 0, now, None).unwrap(), seconds(7));
        assert_eq!(backoff.next(asked(u64::MAX), 0, now, None).unwrap(), LONGEST_ASKED);
        assert_eq!(backoff.next(asked(200), 0, now, Some(now + seconds(201))).unwrap(), seconds(200));
        assert!(backoff.next(asked(200), 0, now, Some(now + seconds(200))).is_err(), "no sleep that ends too late");
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
