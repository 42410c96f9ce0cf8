//! Faults that a test asks for, and a recorder of every request.
//!
//! A rule names requests (method, pattern of the raw path), how many of them to let through and how many to hit. The first rule
//! that fits a request is used up by one. Without rules and recorder nothing is touched.

use super::errors::ApiError;
use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Largest body that the recorder takes up, in bytes: above every body the protocols allow.
const RECORD_LIMIT: usize = 128 * 1024 * 1024;

/// What to do to a request or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Waits before the request is handled.
    Delay(Duration),
    /// Answers this status without handling the request.
    Status {
        /// HTTP status.
        status: u16,
        /// `Retry-After` in seconds.
        retry_after: Option<u64>,
        /// `RateLimit: "api";r=0;t=…` with this many seconds.
        rate_limit: Option<u64>,
    },
    /// Answers this status and body, HTML perhaps, without handling the request.
    Garbage {
        /// HTTP status.
        status: u16,
        /// Body.
        body: &'static str,
    },
    /// Closes the connection without handling the request.
    Refuse,
    /// Handles the request, then closes the connection instead of answering: the client can't know what happened.
    LoseAnswer,
    /// Closes the connection after this many bytes of the answer's body.
    CutBody {
        /// Bytes sent before.
        after: u64,
    },
    /// Flips a bit of the answer's body.
    CorruptByte {
        /// Offset in the body.
        at: u64,
    },
    /// Token routes: gives a token that has run out, but says it's good for a while.
    ExpiredToken,
}

/// Which requests a fault is for.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Only this method.
    pub method: Option<Method>,
    /// Pattern of the raw, still encoded path; `*` stands for any run of characters.
    pub path: String,
    /// Fitting requests to let through first.
    pub skip: u64,
    /// Fitting requests to hit after that; `u64::MAX` for all.
    pub count: u64,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// Hits the next request for `path`, whatever its method.
    pub fn once(path: impl Into<String>, fault: Fault) -> Self {
        Self { method: None, path: path.into(), skip: 0, count: 1, fault }
    }

    fn fits(&self, request: &Request) -> bool {
        self.method.as_ref().is_none_or(|method| method == request.method())
            && matches(self.path.as_bytes(), request.uri().path().as_bytes())
    }
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Method.
    pub method: Method,
    /// Raw path and query.
    pub url: String,
    /// Headers, credentials included.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

type Recorder = Arc<dyn Fn(&Recorded) + Send + Sync>;

/// A set of faults, changed while the server runs.
#[derive(Default)]
pub struct Faults {
    rules: Mutex<Vec<Rule>>,
    recorder: Mutex<Option<Recorder>>,
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faults").field("rules", &*lock(&self.rules)).finish_non_exhaustive()
    }
}

impl Faults {
    /// Adds a rule behind those there are.
    pub fn add(&self, rule: Rule) {
        lock(&self.rules).push(rule);
    }

    /// Drops all rules.
    pub fn clear(&self) {
        lock(&self.rules).clear();
    }

    /// Shows every request from now on to `recorder`, before it is handled and before any fault. Bodies are read whole for that.
    pub fn record(&self, recorder: impl Fn(&Recorded) + Send + Sync + 'static) {
        *lock(&self.recorder) = Some(Arc::new(recorder));
    }

    /// Lets a request in: records it, waits where a rule says so, and tells what is to become of it.
    pub(super) async fn meet(&self, mut request: Request) -> Result<(Request, Plan), Cut> {
        let recorder = lock(&self.recorder).clone();
        if let Some(recorder) = recorder {
            request = record(request, &recorder).await?;
        }
        let fault = self.take(&request);
        match fault {
            Some(Fault::Refuse) => return Err(Cut),
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::ExpiredToken) => {
                request.extensions_mut().insert(ExpiredToken);
            }
            _ => {}
        }
        Ok((request, Plan(fault)))
    }

    fn take(&self, request: &Request) -> Option<Fault> {
        for rule in lock(&self.rules).iter_mut().filter(|rule| rule.count > 0 && rule.fits(request)) {
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            if rule.count != u64::MAX {
                rule.count -= 1;
            }
            return Some(rule.fault.clone());
        }
        None
    }
}

/// Marks a request whose CAS token is to have run out already.
#[derive(Clone, Copy, Debug)]
pub(super) struct ExpiredToken;

/// The connection is to be closed.
#[derive(Debug, thiserror::Error)]
#[error("connection cut on purpose")]
pub(super) struct Cut;

/// What is to become of a request.
pub(super) struct Plan(Option<Fault>);

impl Plan {
    /// The answer to give without handling the request.
    pub(super) fn instead(&self) -> Option<Response> {
        match &self.0 {
            Some(Fault::Status { status, retry_after, rate_limit }) => {
                let mut response = ApiError::injected(*status).into_response();
                let headers = response.headers_mut();
                if let Some(seconds) = retry_after {
                    headers.insert(RETRY_AFTER, HeaderValue::from(*seconds));
                }
                if let Some(seconds) = rate_limit {
                    let limit = format!("\"api\";r=0;t={seconds}");
                    let limit = HeaderValue::try_from(limit).expect("quotes and digits make a header value");
                    headers.insert(HeaderName::from_static("ratelimit"), limit);
                    let policy = HeaderValue::from_static("\"fixed window\";\"api\";q=500;w=300");
                    headers.insert(HeaderName::from_static("ratelimit-policy"), policy);
                }
                Some(response)
            }
            Some(Fault::Garbage { status, body }) => {
                let mut response = Response::new(Body::from(*body));
                *response.status_mut() = status_of(*status);
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
                Some(response)
            }
            _ => None,
        }
    }

    /// The answer as it goes out.
    pub(super) fn spoil(self, response: Response) -> Result<Response, Cut> {
        Ok(match self.0 {
            Some(Fault::LoseAnswer) => return Err(Cut),
            Some(Fault::CutBody { after }) => response.map(|body| cut(body, after)),
            Some(Fault::CorruptByte { at }) => response.map(|body| corrupt(body, at)),
            _ => response,
        })
    }
}

/// Status of an injected answer; nonsense becomes 500.
pub(super) fn status_of(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

async fn record(request: Request, recorder: &Recorder) -> Result<Request, Cut> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, RECORD_LIMIT).await.map_err(|_| Cut)?;
    let url = parts.uri.path_and_query().map_or("/", |url| url.as_str()).to_owned();
    let recorded = Recorded { method: parts.method.clone(), url, headers: parts.headers.clone(), body: body.clone() };
    recorder(&recorded);
    Ok(Request::from_parts(parts, Body::from(body)))
}

fn cut(body: Body, after: u64) -> Body {
    let kept = body.into_data_stream().scan(after, |left, piece| {
        let outcome = match piece {
            Ok(_) if *left == 0 => None,
            Ok(mut piece) => {
                piece.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= piece.len() as u64;
                Some(Ok(piece))
            }
            Err(error) => Some(Err(axum::BoxError::from(error))),
        };
        std::future::ready(outcome)
    });
    // An error in a body makes the server close the connection, whatever length it announced.
    Body::from_stream(kept.chain(stream::once(std::future::ready(Err(axum::BoxError::from(Cut))))))
}

fn corrupt(body: Body, at: u64) -> Body {
    Body::from_stream(body.into_data_stream().scan(at, |left, piece| {
        let spoilt = piece.map(|piece| match usize::try_from(*left) {
            Ok(offset) if offset < piece.len() => {
                let mut bytes = piece.to_vec();
                bytes[offset] ^= 1;
                *left = u64::MAX;
                Bytes::from(bytes)
            }
            _ => {
                *left = left.saturating_sub(piece.len() as u64);
                piece
            }
        });
        std::future::ready(Some(spoilt))
    }))
}

/// Whether `text` fits a pattern in which `*` stands for any run of bytes.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|skipped| matches(rest, &text[skipped..])),
        Some((byte, rest)) => text.split_first().is_some_and(|(first, text)| first == byte && matches(rest, text)),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_runs() {
        for (pattern, text, fits) in [
            ("*", "", true),
            ("/api/*/batch", "/api/buckets/a/b/batch", true),
            ("/api/*/batch", "/api/buckets/a/b/batches", false),
            ("*xorbs*", "/cas/v1/xorbs/default/00", true),
            ("/a", "/a/", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }
}
