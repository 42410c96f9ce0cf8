//! The URLs of the API (Hub API spec, 1.4, 1.5): keys into paths, `Link` headers back into URLs,
//! and which URLs may see the token.
//!
//! Pure. A URL that fails here is `Error::Malformed`.

use super::{BucketId, Error, RepoId};
use http::HeaderMap;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use url::Url;

/// What stays as it is in a path segment: the unreserved characters of RFC 3986.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Longest link followed, in bytes. It names a prefix and, as cursor, a key: each up to 4 KiB, and
/// three times that when encoded.
const MAX_LINK: usize = 32 * 1024;

/// `/api/buckets/{id}` and what follows.
pub(super) fn bucket(id: &BucketId, rest: &str) -> String {
    format!("/api/buckets/{id}{rest}")
}

/// Path of one page of a listing, query included.
pub(super) fn tree(id: &BucketId, prefix: &str, recursive: bool, limit: usize) -> String {
    let below = match prefix {
        "" => String::new(),
        _ if is_literal(prefix) => format!("/{}", encode(prefix, "/")),
        // The slash at the end keeps `..` alone from being a path segment; the Hub reads `x/` as `x`.
        _ => format!("/{}%2F", encode(prefix, "%2F")),
    };
    bucket(id, &format!("/tree{below}?recursive={recursive}&limit={limit}"))
}

/// Path of an object's bytes. `None` for the two keys that no URL can name.
pub(super) fn resolve(id: &BucketId, key: &str) -> Option<String> {
    let slash = if is_literal(key) { "/" } else { "%2F" };
    (!matches!(key, "" | "." | "..")).then(|| format!("/buckets/{id}/resolve/{}", encode(key, slash)))
}

/// `/api/{kind}/{name}` of a repository, and what follows.
pub(super) fn repo(id: &RepoId, rest: &str) -> String {
    format!("/api/{}/{}{rest}", id.kind().route(), id.name())
}

/// Path of a repository at a revision, which is one path segment.
pub(super) fn revision(id: &RepoId, route: &str, revision: &str) -> String {
    repo(id, &format!("/{route}/{}", encode(revision, "%2F")))
}

/// Path of one page of a folder of a repository, query included. `None` for folders that no URL can name.
pub(super) fn repo_tree(id: &RepoId, commit: &str, folder: &str, recursive: bool, limit: usize) -> Option<String> {
    let below = match folder {
        "" => String::new(),
        _ if is_literal(folder) => format!("/{}", encode(folder, "/")),
        _ => return None,
    };
    let query = format!("?recursive={recursive}&expand=false&limit={limit}");
    Some(revision(id, "tree", commit) + &below + &query)
}

/// Path of the bytes of a file of a repository. `None` for files that no URL can name.
pub(super) fn repo_resolve(id: &RepoId, commit: &str, path: &str) -> Option<String> {
    let is_nameable = !path.is_empty() && is_literal(path);
    is_nameable.then(|| format!("/{id}/resolve/{}/{}", encode(commit, "%2F"), encode(path, "/")))
}

/// Returns true if a key can be in a path with its slashes as they are: it has no component that URL parsers drop or
/// resolve. All other keys are sent as one segment, because the Hub accepts `%2F` too.
fn is_literal(key: &str) -> bool {
    key.split('/').all(|component| !matches!(component, "" | "." | ".."))
}

fn encode(key: &str, slash: &str) -> String {
    let components: Vec<String> = key.split('/').map(|part| utf8_percent_encode(part, SEGMENT).to_string()).collect();
    components.join(slash)
}

/// `text` as a URL that may be sent the endpoint's token: same scheme, host and port as `base`,
/// nothing in the place of a user name.
pub(super) fn same_origin(base: &Url, text: &str) -> Result<Url, Error> {
    if text.len() > MAX_LINK {
        return Err(Error::Malformed("a link of unreasonable length".to_owned()));
    }
    let mut url = Url::parse(text).map_err(|_| Error::Malformed("a link that is no URL".to_owned()))?;
    if url.origin() != base.origin() || !url.origin().is_tuple() || has_user(&url) {
        return Err(Error::Malformed("a link that leads away from the endpoint".to_owned()));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Reads a redirect to the same route of another bucket: returns the old and the new id, and what follows them in
/// the path. `None` for any
/// other redirect.
pub(super) fn moved(base: &Url, from: &Url, to: &Url) -> Option<(BucketId, BucketId, String)> {
    let root = format!("{}/api/buckets/", base.path().trim_end_matches('/'));
    let split = |url: &Url| {
        let mut parts = url.path().strip_prefix(&root)?.splitn(3, '/');
        let id = BucketId::new(parts.next()?, parts.next()?).ok()?;
        Some((id, parts.next().unwrap_or_default().to_owned()))
    };
    let ((old, route), (new, same)) = (split(from)?, split(to)?);
    let matches = to.origin() == base.origin() && old != new && route == same && from.query() == to.query();
    matches.then_some((old, new, route))
}

/// Whether a URL carries credentials.
pub(super) fn has_user(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// The target of the first `rel=next` link of an answer to `request`. A `Link` header that can't be read is an error:
/// taking it for "no further page" would cut the listing short in silence.
pub(super) fn next_page(base: &Url, request: &Url, headers: &HeaderMap) -> Result<Option<Url>, Error> {
    let unreadable = || Error::Malformed("an unreadable Link header".to_owned());
    for value in headers.get_all("link") {
        let links = links(value.to_str().map_err(|_| unreadable())?).ok_or_else(unreadable)?;
        if let Some((target, _)) = links.into_iter().find(|(_, next)| *next) {
            let target = request.join(target).map_err(|_| unreadable())?;
            return same_origin(base, target.as_str()).map(Some);
        }
    }
    Ok(None)
}

/// The links of one header value (RFC 8288, section 3): target, and whether `rel` names `next`.
/// `None` where it breaks the grammar.
fn links(value: &str) -> Option<Vec<(&str, bool)>> {
    let mut found = Vec::new();
    let mut rest = value.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let (target, tail) = rest.strip_prefix('<')?.split_once('>')?;
        let mut next = None;
        rest = tail.trim_start_matches([' ', '\t']);
        while let Some(tail) = rest.strip_prefix(';') {
            let (name, content, tail) = parameter(tail)?;
            // Only the first `rel` counts.
            if name.eq_ignore_ascii_case("rel") && next.is_none() {
                next = Some(content.split_ascii_whitespace().any(|rel| rel.eq_ignore_ascii_case("next")));
            }
            rest = tail;
        }
        if !rest.is_empty() && !rest.starts_with(',') {
            return None;
        }
        found.push((target, next.unwrap_or(false)));
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    Some(found)
}

/// One `name[=value]` after a semicolon, and what follows it. Escapes in quoted values are kept as
/// they are: no relation type has any.
fn parameter(text: &str) -> Option<(&str, &str, &str)> {
    const BLANK: [char; 2] = [' ', '\t'];
    let text = text.trim_start_matches(BLANK);
    let end = text.find(['=', ';', ',']).unwrap_or(text.len());
    let (name, tail) = (text[..end].trim_end_matches(BLANK), &text[end..]);
    let Some(value) = tail.strip_prefix('=') else { return Some((name, "", tail)) };
    let value = value.trim_start_matches(BLANK);
    let (content, tail) = match value.strip_prefix('"') {
        Some(quoted) => {
            let end = closing_quote(quoted)?;
            (&quoted[..end], &quoted[end + 1..])
        }
        None => {
            let end = value.find([';', ',', ' ', '\t']).unwrap_or(value.len());
            (&value[..end], &value[end..])
        }
    };
    Some((name, content, tail.trim_start_matches(BLANK)))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|b| {
        let closes = b == b'"' && !escaped;
        escaped = b == b'\\' && !escaped;
        closes
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id() -> BucketId {
        BucketId::new("ns", "b").unwrap()
    }

    fn base() -> Url {
        Url::parse("http://127.0.0.1:8080/hub").unwrap()
    }

    fn next(values: &[&str]) -> Result<Option<String>, Error> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("link", value.parse().unwrap());
        }
        let request = Url::parse("http://127.0.0.1:8080/hub/api/x?cursor=1").unwrap();
        Ok(next_page(&base(), &request, &headers)?.map(String::from))
    }

    #[test]
    fn prefixes_keep_their_slashes_and_encode_all_else() {
        assert_eq!(tree(&id(), "", false, 9), "/api/buckets/ns/b/tree?recursive=false&limit=9");
        assert_eq!(tree(&id(), "a/b-._~c", true, 9), "/api/buckets/ns/b/tree/a/b-._~c?recursive=true&limit=9");
        assert_eq!(
            tree(&id(), "ä #?%&+/\0", false, 9),
            "/api/buckets/ns/b/tree/%C3%A4%20%23%3F%25%26%2B/%00?recursive=false&limit=9"
        );
    }

    proptest! {
        #[test]
        fn no_key_can_leave_its_route(key in "([a.?#%/\\\\:@ é\0]|\\.\\.|%2e){0,12}") {
            prop_assume!(!key.is_empty());
            let decoded = |path: &str| {
                let url = Url::parse(&format!("http://h{path}")).unwrap();
                percent_encoding::percent_decode_str(url.path()).decode_utf8().unwrap().into_owned()
            };
            let listed = decoded(&tree(&id(), &key, false, 1));
            let below = listed.strip_prefix("/api/buckets/ns/b/tree/").unwrap();
            prop_assert!(below == key || below.strip_suffix('/') == Some(&key), "{listed}");
            if let Some(path) = resolve(&id(), &key) {
                prop_assert_eq!(decoded(&path), format!("/buckets/ns/b/resolve/{}", key));
            }
        }

        #[test]
        fn any_link_header_is_read_or_refused(value in "[<>;,=\" \\\\a-z:/.]{0,60}") {
            let _ = next(&[&value]);
        }
    }

    #[test]
    fn next_links_are_found_in_every_legal_spelling() {
        let url = "http://127.0.0.1:8080/api/x?cursor=a%2Cb";
        for value in [
            format!("<{url}>; rel=\"next\""),
            format!("<{url}>;rel=next"),
            format!(" , <{url}> ; title=\"a, b; c \\\" >\" ; REL = \"prev Next\" ,"),
            format!("<http://elsewhere/>; rel=\"prev\", <{url}>; rel=\"next\"; foo"),
            format!("<{url}#part>; rel=next; rel=prev"),
            "</api/x?cursor=a%2Cb>; rel=next".to_owned(),
        ] {
            assert_eq!(next(&[&value]).unwrap().as_deref(), Some(url), "{value}");
        }
        assert_eq!(
            next(&["<http://elsewhere/>; rel=first", &format!("<{url}>; rel=next")]).unwrap().as_deref(),
            Some(url)
        );
        for value in
            ["", "<http://elsewhere/>; rel=prev", "<http://elsewhere/>", "<x>; title=next", "<x>; rel=prev; rel=next"]
        {
            assert_eq!(next(&[value]).unwrap(), None, "{value}");
        }
    }

    #[test]
    fn next_links_that_leave_the_endpoint_or_break_the_grammar_are_refused() {
        for target in [
            "https://127.0.0.1:8080/x",
            "http://127.0.0.1:8081/x",
            "http://127.0.0.1/x",
            "http://evil.example:8080/x",
            "//evil.example/x",
            "http://u:p@127.0.0.1:8080/x",
            "http://u@127.0.0.1:8080/x",
            "file:///etc/passwd",
            "data:x",
            "http://",
        ] {
            assert!(matches!(next(&[&format!("<{target}>; rel=next")]), Err(Error::Malformed(_))), "{target}");
        }
        for value in ["x; rel=next", "<x; rel=next", "<x>; rel=\"next", "<x> rel=next", "<x>; rel=next <y>; rel=next"] {
            assert!(matches!(next(&[value]), Err(Error::Malformed(_))), "{value}");
        }
        let long = format!("<http://127.0.0.1:8080/{}>; rel=next", "x".repeat(MAX_LINK));
        assert!(matches!(next(&[&long]), Err(Error::Malformed(_))));
    }
}
