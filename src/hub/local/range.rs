//! `Range` headers: `bytes=first-last`, `bytes=first-`, `bytes=-count`, or a list of these.

use axum::http::{HeaderMap, header};
use std::ops::Range;

/// A header that is none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed Range header")]
pub(crate) struct Malformed;

/// The ranges that a request asks for, in its order; `None` where it has no such header.
pub(super) fn wanted_ranges(headers: &HeaderMap) -> Result<Option<Vec<Wanted>>, Malformed> {
    let Some(value) = headers.get(header::RANGE) else { return Ok(None) };
    let list = value.to_str().ok().and_then(|value| value.trim().strip_prefix("bytes=")).ok_or(Malformed)?;
    list.split(',').map(|range| Wanted::parse(range.trim()).ok_or(Malformed)).collect::<Result<_, _>>().map(Some)
}

/// One range of a `Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// First and last byte.
    Closed(u64, u64),
    /// From here to the end.
    From(u64),
    /// So many bytes before the end.
    Last(u64),
}

impl Wanted {
    /// Parses one range.
    pub(super) fn parse(text: &str) -> Option<Self> {
        // What is too large to be a number here lies behind every end.
        let digits = |text: &str| {
            let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            all.then(|| text.parse().unwrap_or(u64::MAX))
        };
        match text.split_once('-')? {
            ("", count) => digits(count).map(Self::Last),
            (first, "") => digits(first).map(Self::From),
            (first, last) => match (digits(first)?, digits(last)?) {
                (first, last) if first <= last => Some(Self::Closed(first, last)),
                _ => None,
            },
        }
    }

    /// The bytes of something `len` long, end exclusive; `None` where that is nothing.
    pub(super) fn resolve(self, len: u64) -> Option<Range<u64>> {
        let range = match self {
            Self::Closed(first, last) => first..last.saturating_add(1).min(len),
            Self::From(first) => first..len,
            Self::Last(count) => len.saturating_sub(count)..len,
        };
        (range.start < range.end).then_some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_resolve_as_rfc_9110_says() {
        for (text, len, expected) in [
            ("0-0", 1, Some(0..1)),
            ("0-9", 5, Some(0..5)),
            ("4-4", 5, Some(4..5)),
            ("5-5", 5, None),
            ("2-", 5, Some(2..5)),
            ("5-", 5, None),
            ("-2", 5, Some(3..5)),
            ("-9", 5, Some(0..5)),
            ("-0", 5, None),
            ("-1", 0, None),
            ("0-18446744073709551615", u64::MAX, Some(0..u64::MAX)),
            ("0-99999999999999999999999", 5, Some(0..5)),
            ("99999999999999999999999-", 5, None),
            ("-99999999999999999999999", 5, Some(0..5)),
        ] {
            assert_eq!(Wanted::parse(text).unwrap().resolve(len), expected, "{text} of {len}");
        }
        for text in ["", "-", "1", "2-1", "+1-2", "1-+2", "1 -2", "a-", "-b", "1-2-3", "\u{664}-"] {
            assert_eq!(Wanted::parse(text), None, "{text}");
        }
    }

    #[test]
    fn headers_are_lists_of_ranges_or_malformed() {
        let wanted = |text: &str| wanted_ranges(&[(header::RANGE, text.parse().unwrap())].into_iter().collect());
        assert_eq!(wanted_ranges(&HeaderMap::new()), Ok(None));
        assert_eq!(wanted("bytes=5-"), Ok(Some(vec![Wanted::From(5)])));
        assert_eq!(wanted(" bytes= 0-1, -5 "), Ok(Some(vec![Wanted::Closed(0, 1), Wanted::Last(5)])));
        for text in ["", "bytes", "bytes=", "bytes=5-4", "bytes=0-1,", "bytes=-", "items=0-1", "0-1"] {
            assert_eq!(wanted(text), Err(Malformed), "{text}");
        }
    }
}
