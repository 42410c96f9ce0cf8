//! Health and metrics of a gateway, on a port of their own: `/healthz`, `/readyz`, `/metrics`.

use super::Gateway;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Longest time of a check whether the Hub and the state can be reached.
const READY: Duration = Duration::from_secs(5);
/// Longest time for a request's header, and for an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns counters in the text format of Prometheus (version 0.0.4).
pub type Counters = Box<dyn Fn() -> String + Send + Sync>;

/// The running server of health and metrics. Dropping it stops it.
pub struct Admin {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Admin {
    /// Binds and serves.
    pub async fn start(listen: SocketAddr, gateway: Arc<Gateway>, counters: Vec<Counters>) -> io::Result<Self> {
        let counters = Arc::new(counters);
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let (gateway, counters) = (gateway.clone(), counters.clone());
                tokio::spawn(async move {
                    let answer = service_fn(move |request: Request<Incoming>| {
                        let (gateway, counters) = (gateway.clone(), counters.clone());
                        async move { Ok::<_, Infallible>(answer(request, &gateway, &counters).await) }
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

async fn answer(request: Request<Incoming>, gateway: &Gateway, counters: &[Counters]) -> Response<Full<bytes::Bytes>> {
    let (status, text) = match request.uri().path() {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => match tokio::time::timeout(READY, gateway.check()).await {
            Ok(Ok(())) => (StatusCode::OK, "ready\n".to_owned()),
            Ok(Err(error)) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the Hub does not answer\n".to_owned()),
        },
        "/metrics" => (StatusCode::OK, counters.iter().map(|text| text()).collect()),
        _ => (StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}
