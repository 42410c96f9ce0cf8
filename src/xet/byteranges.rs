//! `multipart/byteranges` bodies (Xet spec, 10.2): the answer to a request for several ranges of a xorb.
//!
//! Parts are found by the lengths in their `Content-Range` headers, never by searching the data for
//! the boundary: stored chunks are arbitrary bytes and may contain it. Ranges are end exclusive
//! here and inclusive on the wire. Failure: [`Error::Malformed`].

use super::Error;
use bytes::Bytes;
use std::ops::Range;

/// Most parts of a body that is accepted; a URL rarely covers more than 500.
const MAX_PARTS: usize = 8_192;
/// Longest line before and inside a part's headers, in bytes: ours are below 100.
const MAX_LINE: usize = 1_024;
/// Most header lines of a part, and most empty lines before it.
const MAX_LINES: usize = 32;
/// Longest boundary that RFC 2046 allows, in bytes.
const MAX_BOUNDARY: usize = 70;

/// One part of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where in the resource its bytes are.
    pub range: Range<u64>,
    /// As many bytes as `range` says. Shares the body's memory.
    pub data: Bytes,
}

/// The boundary of a `Content-Type` header's value, or `None` where it isn't `multipart/byteranges` with one.
pub fn boundary(content_type: &str) -> Option<&str> {
    let (kind, mut rest) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    loop {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => {
                let (value, after) = after.split_at(after.find(';').unwrap_or(after.len()));
                (value.trim_end(), after)
            }
        };
        if name.trim().eq_ignore_ascii_case("boundary") {
            return is_boundary(value).then_some(value);
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// Whether `text` may be a boundary: short, printable, and not ending in a space, which a line may gain or lose.
fn is_boundary(text: &str) -> bool {
    let printable = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
    (1..=MAX_BOUNDARY).contains(&text.len()) && text.bytes().all(printable) && !text.ends_with(' ')
}

/// Splits a body into its parts, ascending by offset.
pub fn parse(boundary: &str, body: &Bytes) -> Result<Vec<Part>, Error> {
    let mut rest = Cursor { body, at: 0 };
    let mut parts = Vec::new();
    while next_part(boundary, &mut rest)? {
        if parts.len() == MAX_PARTS {
            return Err(malformed("too many parts"));
        }
        let range = part_range(&mut rest)?;
        let data = rest.take(range.end - range.start)?;
        parts.push(Part { range, data });
    }
    parts.sort_by_key(|part| (part.range.start, part.range.end));
    Ok(parts)
}

/// What goes before the data of a part, of a resource of `total` bytes; `range` isn't empty.
pub fn part_head(boundary: &str, range: &Range<u64>, total: u64) -> String {
    format!("\r\n--{boundary}\r\nContent-Range: bytes {}-{}/{total}\r\n\r\n", range.start, range.end - 1)
}

/// What goes behind the last part.
pub fn end(boundary: &str) -> String {
    format!("\r\n--{boundary}--\r\n")
}

/// Reads the delimiter: `true` before a part, `false` at the end.
fn next_part(boundary: &str, rest: &mut Cursor<'_>) -> Result<bool, Error> {
    for _ in 0..MAX_LINES {
        let line = rest.line()?;
        if line.is_empty() {
            continue;
        }
        let delimiter = line.strip_prefix(b"--").and_then(|line| line.strip_prefix(boundary.as_bytes()));
        return match delimiter.map(<[u8]>::trim_ascii_end) {
            Some(b"") => Ok(true),
            Some(b"--") => Ok(false),
            _ => Err(malformed("no boundary where a part ends")),
        };
    }
    Err(malformed("no boundary"))
}

/// Reads a part's headers for its range.
fn part_range(rest: &mut Cursor<'_>) -> Result<Range<u64>, Error> {
    let mut range = None;
    for _ in 0..MAX_LINES {
        let line = rest.line()?;
        if line.is_empty() {
            return range.ok_or_else(|| malformed("a part without Content-Range"));
        }
        let line = str::from_utf8(line).map_err(|_| malformed("a header that is not text"))?;
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a header without a colon"))?;
        if name.trim().eq_ignore_ascii_case("content-range") {
            range = Some(content_range(value).ok_or_else(|| malformed("a bad Content-Range"))?);
        }
    }
    Err(malformed("too many headers"))
}

/// The range of a `Content-Range` value, `bytes a-b/total` or `bytes a-b/*`.
pub fn content_range(value: &str) -> Option<Range<u64>> {
    let (unit, value) = value.trim().split_once(' ')?;
    let (range, total) = value.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
    let fits = total.trim() == "*" || number(total)? >= end;
    (unit.eq_ignore_ascii_case("bytes") && first < end && fits).then_some(first..end)
}

/// Digits only: `parse` would also take a sign.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// A place in a body.
struct Cursor<'a> {
    body: &'a Bytes,
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next line without its end. The last one need not have an end.
    fn line(&mut self) -> Result<&'a [u8], Error> {
        let rest = &self.body[self.at..];
        if rest.is_empty() {
            return Err(malformed("cut short"));
        }
        let searched = &rest[..rest.len().min(MAX_LINE)];
        let line = match searched.iter().position(|&byte| byte == b'\n') {
            Some(len) => &rest[..=len],
            None if searched.len() == rest.len() => rest,
            None => return Err(malformed("a line that is too long")),
        };
        self.at += line.len();
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn take(&mut self, len: u64) -> Result<Bytes, Error> {
        let end = usize::try_from(len).ok().and_then(|len| self.at.checked_add(len));
        let end = end.filter(|&end| end <= self.body.len()).ok_or_else(|| malformed("a part is cut short"))?;
        let data = self.body.slice(self.at..end);
        self.at = end;
        Ok(data)
    }
}

fn malformed(why: &str) -> Error {
    Error::Malformed { what: "multipart body", why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn body_of(boundary: &str, parts: &[Part]) -> Bytes {
        let mut body = Vec::new();
        for part in parts {
            body.extend_from_slice(part_head(boundary, &part.range, 1 << 40).as_bytes());
            body.extend_from_slice(&part.data);
        }
        body.extend_from_slice(end(boundary).as_bytes());
        body.into()
    }

    fn part(start: u64, data: &[u8]) -> Part {
        Part { range: start..start + data.len() as u64, data: Bytes::copy_from_slice(data) }
    }

    fn any_part() -> impl Strategy<Value = Part> {
        // Data that looks like structure.
        let data = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..100),
            prop::collection::vec(prop::sample::select(&b"\r\n-x"[..]), 1..40),
            Just(b"\r\n--x--\r\n".to_vec()),
        ];
        (0..1_000_000u64, data).prop_map(|(start, data)| part(start, &data))
    }

    proptest! {
        #[test]
        fn written_parts_are_read_in_order(mut parts in prop::collection::vec(any_part(), 0..10)) {
            let body = body_of("x", &parts);
            parts.sort_by_key(|part| (part.range.start, part.range.end));
            prop_assert_eq!(parse("x", &body).unwrap(), parts);
        }

        #[test]
        fn arbitrary_bodies_do_not_panic(body in prop::collection::vec(prop::sample::select(&b"\r\n-x: 019/bytesContent-Range"[..]), 0..200)) {
            let _ = parse("x", &body.into());
        }
    }

    #[test]
    fn a_body_cut_anywhere_is_rejected() {
        let parts = [part(0, b"0123"), part(10, b"\r\n--b--\r\n")];
        let body = body_of("b", &parts);
        assert_eq!(parse("b", &body).unwrap(), parts);
        // The line end of the last delimiter may be missing.
        for len in 0..body.len() - 2 {
            assert!(parse("b", &body.slice(..len)).is_err(), "cut to {len}");
        }
        assert!(parse("c", &body).is_err());
    }

    #[test]
    fn other_servers_layouts_are_read() {
        let body = "--b\nContent-Type: application/octet-stream\ncontent-RANGE:bytes 5-6/*\n\nab\n--b  \r\n\
                    Content-Range: bytes 0-0/7\r\n\r\nc\r\n--b--\r\nepilogue";
        assert_eq!(parse("b", &body.into()).unwrap(), [part(0, b"c"), part(5, b"ab")]);
    }

    #[test]
    fn parts_without_a_sound_range_are_rejected() {
        for head in ["", "Content-Range: bytes 0-0\r\n", "Content-Range 0-0/1\r\n", "X: \u{fffd}\r\n"] {
            let body = format!("--b\r\n{head}\r\na\r\n--b--\r\n");
            assert!(parse("b", &body.into()).is_err(), "{head:?}");
        }
        let endless = format!("--b\r\n{}", "A: b\r\n".repeat(10_000));
        assert!(parse("b", &endless.into()).is_err());
        assert!(parse("b", &"\r\n".repeat(10_000).into()).is_err());
        assert!(parse("b", &"a".repeat(10_000).into()).is_err());
    }

    #[test]
    fn the_number_of_parts_is_limited() {
        let body = |count| body_of("b", &vec![part(0, b"a"); count]);
        assert_eq!(parse("b", &body(MAX_PARTS)).unwrap().len(), MAX_PARTS);
        assert!(parse("b", &body(MAX_PARTS + 1)).is_err());
    }

    #[test]
    fn content_ranges_are_inclusive_and_checked() {
        assert_eq!(content_range("bytes 0-0/1"), Some(0..1));
        assert_eq!(content_range(" Bytes 3-9/10 "), Some(3..10));
        assert_eq!(content_range("bytes 3-9/*"), Some(3..10));
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 1-0/10",
            "bytes 0-10/10",
            "bytes +0-1/10",
            "bytes -1/10",
            "bytes 0-/10",
            "bytes 0-1/",
            "bytes 0-18446744073709551615/*",
            "bytes 0-99999999999999999999/*",
            "lines 0-1/10",
            "bytes 0-1/x",
        ] {
            assert_eq!(content_range(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn boundaries_are_found_quoted_or_not() {
        for (header, expected) in [
            ("multipart/byteranges; boundary=abc", "abc"),
            ("Multipart/ByteRanges;BOUNDARY=\"a b;c\"", "a b;c"),
            ("multipart/byteranges; charset=x; boundary=abc ; x=y", "abc"),
            ("multipart/byteranges; x=\"boundary=no\"; boundary=yes", "yes"),
        ] {
            assert_eq!(boundary(header), Some(expected), "{header}");
        }
        let long = format!("multipart/byteranges; boundary={}", "a".repeat(71));
        for bad in [
            "",
            "multipart/byteranges",
            "multipart/byteranges; boundary=",
            "multipart/byteranges; boundary=\"\"",
            "multipart/byteranges; boundary=\"open",
            "multipart/byteranges; boundary=\"a \"",
            "multipart/byteranges; boundary=\"a\nb\"",
            "multipart/mixed; boundary=a",
            "text/plain",
            &long,
        ] {
            assert_eq!(boundary(bad), None, "{bad:?}");
        }
    }
}
