//! Health and metrics of a gateway, on a port of their own: `/healthz`, `/readyz`, `/metrics`.

use crate::gateway::Gateway;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest time of a check whether the Hub and the state can be reached.
const READY: Duration = Duration::from_secs(5);
/// Longest time for a request's header, and for an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Counters of a gateway.
#[derive(Default)]
pub struct Metrics(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    /// By method and status.
    requests: BTreeMap<(String, u16), u64>,
    received: u64,
    sent: u64,
    seconds: f64,
}

impl Metrics {
    /// Counts an answered request.
    pub(super) fn count(&self, method: &Method, status: u16, received: u64, sent: u64, took: Duration) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = matches!(method.as_str(), "GET" | "HEAD" | "PUT" | "POST" | "DELETE" | "OPTIONS");
        let method = if known { method.as_str() } else { "other" };
        *counts.requests.entry((method.to_owned(), status)).or_default() += 1;
        counts.received += received;
        counts.sent += sent;
        counts.seconds += took.as_secs_f64();
    }

    /// Returns the counters in the text format of Prometheus (version 0.0.4).
    pub fn text(&self) -> String {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::from("# TYPE hugbucket_s3_requests_total counter\n");
        for ((method, status), count) in &counts.requests {
            // Writing to a String doesn't fail.
            let _ = writeln!(text, "hugbucket_s3_requests_total{{method=\"{method}\",status=\"{status}\"}} {count}");
        }
        let totals = [
            ("hugbucket_s3_received_bytes_total", counts.received as f64),
            ("hugbucket_s3_sent_bytes_total", counts.sent as f64),
            ("hugbucket_s3_request_seconds_total", counts.seconds),
        ];
        for (name, value) in totals {
            let _ = writeln!(text, "# TYPE {name} counter\n{name} {value}");
        }
        text
    }
}

/// The running server of health and metrics. Dropping it stops it.
pub struct Admin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Admin {
    /// Binds and serves.
    pub async fn start(listen: SocketAddr, gateway: Arc<Gateway>, metrics: Arc<Metrics>) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (gateway, metrics) = (gateway.clone(), metrics.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let (gateway, metrics) = (gateway.clone(), metrics.clone());
                        async move { Ok::<_, Infallible>(answer(request, &gateway, &metrics).await) }
                    });
                    let connection = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .header_read_timeout(HEADER_TIMEOUT)
                        .serve_connection(TokioIo::new(stream), answer);
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection to the admin port ended");
                    }
                });
            }
        });
        Ok(Self { address, task })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(request: Request<Incoming>, gateway: &Gateway, metrics: &Metrics) -> Response<Full<bytes::Bytes>> {
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match tokio::time::timeout(READY, gateway.check()).await {
            Ok(Ok(())) => (StatusCode::OK, "ready\n".to_owned()),
            Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the Hub does not answer\n".to_owned()),
        },
        "/metrics" => (StatusCode::OK, metrics.text()),
        _ => (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_in_the_format_of_prometheus() {
        let metrics = Metrics::default();
        metrics.count(&Method::GET, 200, 0, 5, Duration::from_secs(1));
        metrics.count(&Method::GET, 200, 0, 5, Duration::from_secs(1));
        metrics.count(&Method::from_bytes(b"STRANGE").unwrap(), 404, 7, 0, Duration::ZERO);
        let expected = "# TYPE hugbucket_s3_requests_total counter\n\
            hugbucket_s3_requests_total{method=\"GET\",status=\"200\"} 2\n\
            hugbucket_s3_requests_total{method=\"other\",status=\"404\"} 1\n\
            # TYPE hugbucket_s3_received_bytes_total counter\nhugbucket_s3_received_bytes_total 7\n\
            # TYPE hugbucket_s3_sent_bytes_total counter\nhugbucket_s3_sent_bytes_total 10\n\
            # TYPE hugbucket_s3_request_seconds_total counter\nhugbucket_s3_request_seconds_total 2\n";
        assert_eq!(metrics.text(), expected);
    }
}
