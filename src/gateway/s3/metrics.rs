//! Counters of the S3 gateway.

use http::Method;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

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
