//! How long data URLs are good (Xet spec, 10.7), as far as they say so themselves.
//!
//! Read are the parameters that storage services put into what they sign: a date and a life (`X-Amz-Date`,
//! `X-Amz-Expires`, and the same of others), or Unix seconds (`Expires`, and shorter names). Nothing here is trusted:
//! at worst a URL is thrown away too early, or denied once.

use crate::reconstruction::Fetch;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::macros::format_description;
use time::{OffsetDateTime, PrimitiveDateTime};

/// What a URL is thrown away before its time, for requests on their way and clocks that differ.
const MARGIN: Duration = Duration::from_secs(60);
/// Longest life of an answer, whatever its URLs say: an hour is what the Hub gives, less the margin.
const LONGEST: Duration = Duration::from_secs(59 * 60);

/// How long all of `fetches` may be used; `default`: for URLs that don't say.
pub(super) fn life_of(fetches: &[Fetch], default: Duration) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let lives = fetches.chunk_by(|a, b| a.url == b.url).map(|run| match life(&run[0].url, now) {
        Some(life) => life.saturating_sub(MARGIN),
        None => default,
    });
    lives.min().unwrap_or(default).min(LONGEST)
}

/// How long `url` is good from `now` (since 1970) on, if it says.
fn life(url: &str, now: Duration) -> Option<Duration> {
    let (_, query) = url.split_once('?')?;
    let value = |name: &str| {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    };
    for service in ["X-Amz", "X-Goog"] {
        let seconds = value(&format!("{service}-Expires")).and_then(|value| value.parse::<u32>().ok());
        if let Some(seconds) = seconds {
            let life = Duration::from_secs(u64::from(seconds));
            let signed = value(&format!("{service}-Date")).and_then(date);
            // A date from the future is a clock of ours that is late.
            let age = signed.map_or(Duration::ZERO, |signed| now.saturating_sub(signed));
            return Some(life.saturating_sub(age));
        }
    }
    let until = ["Expires", "exp", "e"].into_iter().find_map(value)?.parse::<u64>().ok()?;
    Some(Duration::from_secs(until).saturating_sub(now))
}

/// `20260102T030405Z`, since 1970.
fn date(text: &str) -> Option<Duration> {
    let format = format_description!("[year][month][day]T[hour][minute][second]Z");
    let date: OffsetDateTime = PrimitiveDateTime::parse(text, &format).ok()?.assume_utc();
    u64::try_from(date.unix_timestamp()).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Hash;

    fn seconds(url: &str) -> Option<u64> {
        // 2026-01-02 03:04:05.
        life(url, Duration::from_secs(1_767_323_045)).map(|life| life.as_secs())
    }

    #[test]
    fn urls_say_how_long_they_are_good() {
        assert_eq!(
            seconds("https://h/p?a=b&X-Amz-Date=20260102T030400Z&X-Amz-Expires=3600&X-Amz-Signature=0"),
            Some(3595)
        );
        assert_eq!(seconds("https://h/p?X-Goog-Expires=60&X-Goog-Date=20260102T020000Z"), Some(0));
        assert_eq!(seconds("https://h/p?X-Amz-Date=20990102T030400Z&X-Amz-Expires=3600"), Some(3600));
        assert_eq!(seconds("https://h/p?X-Amz-Expires=3600"), Some(3600));
        assert_eq!(seconds("https://h/p?Expires=1767323055&Signature=x"), Some(10));
        assert_eq!(seconds("https://h/p?r=1&e=1767323055&s=0"), Some(10));
        assert_eq!(seconds("https://h/p?Expires=5"), Some(0));
    }

    #[test]
    fn urls_that_say_nothing_readable_have_no_expiry() {
        let odd = [
            "",
            "https://h/p",
            "https://h/p?e=",
            "https://h/p?e=-1",
            "https://h/p?Expires=soon",
            "https://h/e=5",
            "?X-Amz-Expires=99999999999",
        ];
        for url in odd {
            assert_eq!(seconds(url), None, "{url}");
        }
    }

    #[test]
    fn the_first_url_to_expire_counts_and_none_lives_for_ever() {
        let fetch = |url: &str| Fetch { xorb: Hash::ZERO, chunks: 0..1, url: url.into(), bytes: 0..9 };
        let default = Duration::from_secs(100);
        assert_eq!(life_of(&[fetch("u"), fetch("v")], default), default);
        assert_eq!(life_of(&[fetch("u?X-Amz-Expires=90"), fetch("v")], default), Duration::from_secs(30));
        assert_eq!(life_of(&[fetch("u?X-Amz-Expires=9")], default), Duration::ZERO);
        assert_eq!(life_of(&[fetch("u?X-Amz-Expires=999999")], default), LONGEST);
        assert_eq!(life_of(&[], Duration::MAX), LONGEST);
    }
}
