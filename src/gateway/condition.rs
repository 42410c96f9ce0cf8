//! Conditions of requests (RFC 9110, section 13; S3's conditional reads, writes and copies).

use super::Error;
use time::OffsetDateTime;

/// What `If-Match` or `If-None-Match` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// `*`: any object.
    Any,
    /// One of these entity tags, without quotes.
    Of(Vec<String>),
}

impl Tags {
    /// Parses the value of a header: `*`, or a list of entity tags. S3 clients send tags without quotes too. Weak tags
    /// (`W/"…"`) name the same version here, since every version has one tag.
    pub fn parse(text: &str) -> Self {
        if text.trim() == "*" {
            return Self::Any;
        }
        let bare = |tag: &str| {
            let tag = tag.trim();
            let tag = tag.strip_prefix("W/").unwrap_or(tag);
            tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).unwrap_or(tag).to_owned()
        };
        Self::Of(text.split(',').map(bare).collect())
    }

    fn matches(&self, etag: Option<&str>) -> bool {
        match (self, etag) {
            (_, None) => false,
            (Self::Any, Some(_)) => true,
            (Self::Of(tags), Some(etag)) => tags.iter().any(|tag| tag == etag),
        }
    }
}

/// Conditions on the present version of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// The version must be one of these.
    pub if_match: Option<Tags>,
    /// The version must be none of these.
    pub if_none_match: Option<Tags>,
    /// The version must be newer.
    pub if_modified_since: Option<OffsetDateTime>,
    /// The version must not be newer.
    pub if_unmodified_since: Option<OffsetDateTime>,
    /// A removal: the version must have this size in bytes.
    pub size: Option<u64>,
    /// A removal: the version must have been changed in this second.
    pub modified: Option<OffsetDateTime>,
}

/// The present version of an object.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    /// Its entity tag, without quotes.
    pub etag: &'a str,
    /// Time of its last change.
    pub modified: OffsetDateTime,
    /// Its size in bytes.
    pub size: u64,
}

impl Conditions {
    /// Returns true if there is no condition.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks a read of an existing object, in the order of RFC 9110, section 13.2.2. `If-Unmodified-Since` counts only
    /// without `If-Match`, and `If-Modified-Since` only without `If-None-Match`.
    pub fn check_read(&self, present: Present<'_>) -> Result<(), Error> {
        let modified = present.modified.unix_timestamp();
        match (&self.if_match, self.if_unmodified_since) {
            (Some(tags), _) if !tags.matches(Some(present.etag)) => return Err(Error::PreconditionFailed("If-Match")),
            (None, Some(since)) if modified > since.unix_timestamp() => {
                return Err(Error::PreconditionFailed("If-Unmodified-Since"));
            }
            _ => {}
        }
        match (&self.if_none_match, self.if_modified_since) {
            (Some(tags), _) if tags.matches(Some(present.etag)) => Err(Error::NotModified),
            (None, Some(since)) if modified <= since.unix_timestamp() => Err(Error::NotModified),
            _ => Ok(()),
        }
    }

    /// Checks a write, whose object may be missing. A condition that names a version of a missing object gives
    /// [`Error::NoSuchKey`], as in S3.
    pub fn check_write(&self, present: Option<Present<'_>>) -> Result<(), Error> {
        let etag = present.map(|present| present.etag);
        match &self.if_match {
            Some(_) if present.is_none() => return Err(Error::NoSuchKey),
            Some(tags) if !tags.matches(etag) => return Err(Error::PreconditionFailed("If-Match")),
            _ => {}
        }
        match &self.if_none_match {
            Some(tags) if tags.matches(etag) => return Err(Error::PreconditionFailed("If-None-Match")),
            _ => {}
        }
        let Some(present) = present else { return Ok(()) };
        let modified = present.modified.unix_timestamp();
        if self.size.is_some_and(|size| size != present.size) {
            return Err(Error::PreconditionFailed("x-amz-if-match-size"));
        }
        if self.modified.is_some_and(|time| time.unix_timestamp() != modified) {
            return Err(Error::PreconditionFailed("x-amz-if-match-last-modified-time"));
        }
        match (self.if_unmodified_since, self.if_modified_since) {
            (Some(since), _) if modified > since.unix_timestamp() => {
                Err(Error::PreconditionFailed("If-Unmodified-Since"))
            }
            (_, Some(since)) if modified <= since.unix_timestamp() => {
                Err(Error::PreconditionFailed("If-Modified-Since"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the source of a copy. All failures are [`Error::PreconditionFailed`]: a copy has no "not modified".
    pub fn check_copy(&self, present: Present<'_>) -> Result<(), Error> {
        match self.check_read(present) {
            Err(Error::NotModified) if self.if_none_match.is_some() => {
                Err(Error::PreconditionFailed("x-amz-copy-source-if-none-match"))
            }
            Err(Error::NotModified) => Err(Error::PreconditionFailed("x-amz-copy-source-if-modified-since")),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const TIME: OffsetDateTime = datetime!(2026-02-06 17:37:57.9 UTC);

    fn present(etag: &str) -> Present<'_> {
        Present { etag, modified: TIME, size: 7 }
    }

    fn tags(text: &str) -> Option<Tags> {
        Some(Tags::parse(text))
    }

    #[test]
    fn tags_are_read_with_and_without_quotes() {
        assert_eq!(Tags::parse("*"), Tags::Any);
        for text in ["abc", "\"abc\"", "W/\"abc\"", " \"abc\" "] {
            assert_eq!(Tags::parse(text), Tags::Of(vec!["abc".into()]), "{text}");
        }
        assert_eq!(Tags::parse("\"a\", b"), Tags::Of(vec!["a".into(), "b".into()]));
        assert!(!Tags::parse("\"\"").matches(Some("abc")));
    }

    #[test]
    fn read_conditions_follow_rfc_9110() {
        let same = TIME.replace_nanosecond(0).unwrap();
        let (before, after) = (same - time::Duration::SECOND, same + time::Duration::SECOND);
        let check = |conditions: Conditions| match conditions.check_read(present("a")) {
            Ok(()) => 200,
            Err(Error::NotModified) => 304,
            Err(Error::PreconditionFailed(_)) => 412,
            Err(other) => panic!("{other}"),
        };
        let none = Conditions::default();
        assert!(none.is_empty());
        let cases = [
            (none.clone(), 200),
            (Conditions { if_match: tags("a"), ..none.clone() }, 200),
            (Conditions { if_match: tags("b"), ..none.clone() }, 412),
            (Conditions { if_none_match: tags("a"), ..none.clone() }, 304),
            (Conditions { if_none_match: tags("b"), ..none.clone() }, 200),
            (Conditions { if_none_match: tags("*"), ..none.clone() }, 304),
            // A date has whole seconds, and the object changed within that second.
            (Conditions { if_modified_since: Some(same), ..none.clone() }, 304),
            (Conditions { if_modified_since: Some(before), ..none.clone() }, 200),
            (Conditions { if_unmodified_since: Some(same), ..none.clone() }, 200),
            (Conditions { if_unmodified_since: Some(before), ..none.clone() }, 412),
            // The tag wins over the date.
            (Conditions { if_match: tags("a"), if_unmodified_since: Some(before), ..none.clone() }, 200),
            (Conditions { if_none_match: tags("b"), if_modified_since: Some(after), ..none.clone() }, 200),
        ];
        for (conditions, status) in cases {
            assert_eq!(check(conditions.clone()), status, "{conditions:?}");
        }
    }

    #[test]
    fn write_conditions_compare_present_version() {
        let (absent, exists) = (Conditions { if_none_match: tags("*"), ..Default::default() }, tags("a"));
        assert!(absent.check_write(None).is_ok());
        assert!(matches!(absent.check_write(Some(present("a"))), Err(Error::PreconditionFailed(_))));
        let swap = Conditions { if_match: exists, ..Default::default() };
        assert!(swap.check_write(Some(present("a"))).is_ok());
        assert!(matches!(swap.check_write(Some(present("b"))), Err(Error::PreconditionFailed(_))));
        assert!(matches!(swap.check_write(None), Err(Error::NoSuchKey)));
        for (size, modified, holds) in [(7, TIME, true), (8, TIME, false), (7, TIME - time::Duration::SECOND, false)] {
            let removal = Conditions { size: Some(size), modified: Some(modified), ..Default::default() };
            assert_eq!(removal.check_write(Some(present("a"))).is_ok(), holds);
        }
    }

    #[test]
    fn copy_conditions_fail_with_412() {
        let conditions = Conditions { if_none_match: tags("a"), ..Default::default() };
        assert!(matches!(conditions.check_copy(present("a")), Err(Error::PreconditionFailed(_))));
        assert!(conditions.check_copy(present("b")).is_ok());
    }
}
