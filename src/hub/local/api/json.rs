//! Shapes and texts that several answers share: times, links to the next page, reading optional members.

use super::Call;
use crate::hub::local::auth;
use crate::hub::local::errors::ApiError;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::macros::format_description;

/// What may not stand bare in a URL inside a `Link` header. Some clients split that at commas, so none may be left.
const LINK_UNSAFE: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b',')
    .add(b';')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// ISO 8601 in UTC with milliseconds (Hub API spec, 1.6). `millis` since the epoch.
pub(super) fn iso_time(millis: i64) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    at(millis).format(&form).unwrap_or_default()
}

/// The form of `Last-Modified`.
pub(super) fn http_time(millis: i64) -> String {
    let form =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    at(millis).format(&form).unwrap_or_default()
}

/// First and last millisecond that both forms can show: the years 0001 to 9999.
pub(super) const TIME_RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

fn at(millis: i64) -> OffsetDateTime {
    let millis = millis.clamp(*TIME_RANGE.start(), *TIME_RANGE.end());
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// An optional string member; `null` counts as absent.
pub(super) fn text_member(body: &Map<String, Value>, name: &str) -> Result<Option<String>, ApiError> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(ApiError::bad_request(format!("{name:?} must be a string"))),
    }
}

/// `private`, or `visibility` as newer clients say it.
pub(super) fn privacy(body: &Map<String, Value>) -> Result<Option<bool>, ApiError> {
    let private = match body.get("private") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(private)) => Some(*private),
        Some(_) => return Err(ApiError::bad_request("\"private\" must be true or false")),
    };
    match text_member(body, "visibility")?.as_deref() {
        None => Ok(private),
        Some("private") => Ok(Some(true)),
        Some("public") => Ok(Some(false)),
        Some(_) => Err(ApiError::bad_request("\"visibility\" must be \"public\" or \"private\"")),
    }
}

/// Adds the link to the next page: this request with another cursor.
pub(super) fn link_next(call: &Call, response: &mut Response, cursor: &[u8]) -> Result<(), ApiError> {
    let uri = &call.parts.uri;
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    let pairs = url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    query.extend_pairs(pairs.filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", &auth::to_hex(cursor));
    let path = utf8_percent_encode(uri.path(), LINK_UNSAFE);
    let link = format!("<{}{path}?{}>; rel=\"next\"", call.base(), query.finish());
    let link = HeaderValue::try_from(link).map_err(|e| ApiError::internal(&e))?;
    response.headers_mut().insert(header::LINK, link);
    Ok(())
}

/// The cursor of a request, as [`link_next`] made it.
pub(super) fn cursor(call: &Call) -> Result<Option<Vec<u8>>, ApiError> {
    let Some(text) = call.query("cursor") else { return Ok(None) };
    auth::from_hex(text.as_bytes()).map(Some).ok_or_else(|| ApiError::bad_request("malformed cursor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_iso_and_http_dates() {
        assert_eq!(iso_time(1_770_399_477_042), "2026-02-06T17:37:57.042Z");
        assert_eq!(http_time(1_770_399_477_042), "Fri, 06 Feb 2026 17:37:57 GMT");
        assert_eq!(iso_time(-1), "1969-12-31T23:59:59.999Z");
        assert_eq!(iso_time(i64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(iso_time(i64::MIN), "0001-01-01T00:00:00.000Z");
    }

    proptest::proptest! {
        #[test]
        fn shown_time_is_parsed_as_same_millisecond(millis in proptest::prop_oneof![TIME_RANGE, -100_000..100_000i64]) {
            let parsed = crate::hub::parse::time(Some(iso_time(millis)));
            proptest::prop_assert_eq!(parsed.map(crate::hub::mtime_millis), Some(millis));
        }
    }
}
