//! The listening side: connections, their limits, and a stop with a deadline.

use super::errors::ApiError;
#[cfg(feature = "faults")]
use super::faults::{Cut, Faults};
use super::gate::Gate;
use super::wire::Wire;
use super::{CAS_PREFIX, ServeOptions, Shared, Site, api, body, cas};
use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
#[cfg(not(feature = "faults"))]
use std::convert::Infallible as Cut;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Longest time for a request's header, and for an idle connection. Above the 90 s for which clients
/// keep idle connections, so that it isn't we who close one that a request is just being sent on.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// Read buffer of a connection, and so the largest request header: a cursor and a percent-encoded
/// key of the greatest length fit.
const HEADER_LIMIT: usize = 128 * 1024;
/// How long a stop waits for requests under way.
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// Pause after a failed accept (out of file descriptors, mostly): trying again at once would only burn time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The stages of a request, in this order.
struct Front {
    gate: Gate,
    #[cfg(feature = "faults")]
    faults: Arc<Faults>,
    router: Router,
}

impl Front {
    /// Answers a request that has passed the gate.
    async fn route(&self, request: Request) -> Response {
        let Ok(response) = TowerToHyperService::new(self.router.clone()).call(request).await;
        response
    }
}

/// A running server. Dropping it stops it without waiting.
pub struct Server {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops taking requests and waits for those under way, ten seconds at most. What was
    /// acknowledged is on disk anyway.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Binds and serves.
pub(super) async fn start(shared: Arc<Shared>, address: SocketAddr, options: ServeOptions) -> io::Result<Server> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    #[cfg(feature = "faults")]
    let faults = options.faults.clone().unwrap_or_default();
    let gate = Gate::new(address, options.public_base.as_deref());
    let (stop, stopped) = watch::channel(false);
    let site = Arc::new(Site {
        shared,
        options,
        address,
        bodies: body::budget(api::BODIES_MIB),
        streams: Arc::new(Semaphore::new(api::STREAMS)),
        stopped: stopped.clone(),
    });
    let router = Router::new()
        .nest(CAS_PREFIX, cas::router(Arc::clone(&site)))
        // Nesting leaves this one out, and the Hub would refuse the CAS token that comes with it.
        .route("/cas/", any(async || ApiError::not_found()))
        .fallback(move |request: Request| {
            let site = Arc::clone(&site);
            async move { api::answer(&site, request).await }
        });
    let front = Front {
        gate,
        #[cfg(feature = "faults")]
        faults,
        router,
    };
    let task = tokio::spawn(accept(listener, Arc::new(front), stopped));
    Ok(Server { address, stop, task })
}

async fn accept(listener: TcpListener, front: Arc<Front>, mut stopped: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            listener.accept().await.map(|(stream, _)| (stream, permit))
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stopped.changed() => break,
        };
        match accepted {
            Ok((stream, permit)) => {
                let connection = connection(stream, Arc::clone(&front), stopped.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    // Beyond the deadline the set is dropped, and with it every connection.
    let _ = tokio::time::timeout(STOP_DEADLINE, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(stream: TcpStream, front: Arc<Front>, mut stopped: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| answer(Arc::clone(&front), request));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_LIMIT)
        .serve_connection(TokioIo::new(Wire::new(stream)), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        _ = served.as_mut() => {}
        _ = stopped.changed() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}

/// Answers one request. An error closes the connection: an injected fault, where the build has them.
async fn answer(front: Arc<Front>, request: hyper::Request<Incoming>) -> Result<Response, Cut> {
    if let Err(refusal) = front.gate.check(&request) {
        return Ok(numbered(refusal.into_response()));
    }
    let request = request.map(Body::new);
    #[cfg(feature = "faults")]
    let answered = front.faults.answer(request, |request| front.route(request)).await;
    #[cfg(not(feature = "faults"))]
    let answered = Ok(front.route(request).await);
    answered.map(numbered)
}

/// With a number, unless it has one.
fn numbered(mut response: Response) -> Response {
    let id = uuid::Uuid::now_v7().simple().to_string();
    if let (false, Ok(id)) = (response.headers().contains_key(REQUEST_ID), HeaderValue::try_from(id)) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}
