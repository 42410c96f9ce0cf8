//! A tap on the wire: clients fall back in silence from newer routes to older ones, so that a file
//! which arrives doesn't prove which it took.

use crate::server::Server;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What the clients of a server have sent, connection by connection. Dropping it cuts them off.
pub(crate) struct Tap {
    heard: Heard,
    _tasks: JoinSet<()>,
}

type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

impl Tap {
    /// Puts itself between `server` and the clients made after this.
    pub(crate) async fn on(server: &mut Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (start, rest) = server.token.url.split_once("//").unwrap();
        let (upstream, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let upstream = upstream.to_owned();
        // Both servers make the URLs that they hand out from the request's `Host`: those lead here, too.
        server.token.url = format!("{start}//{address}{path}");
        let (heard, mut tasks) = (Heard::default(), JoinSet::new());
        tasks.spawn(accept(listener, upstream, Arc::clone(&heard)));
        Self { heard, _tasks: tasks }
    }

    /// Whether anybody has sent `words`.
    pub(crate) fn has_heard(&self, words: &str) -> bool {
        let words = words.as_bytes();
        self.heard.lock().unwrap().iter().any(|sent| sent.windows(words.len()).any(|window| window == words))
    }
}

async fn accept(listener: TcpListener, upstream: String, heard: Heard) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let Ok(server) = TcpStream::connect(&upstream).await else { return };
        // Else every request would wait for an acknowledgement.
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (from_client, mut to_client) = client.into_split();
        let (mut from_server, to_server) = server.into_split();
        connections.spawn(listen(from_client, to_server, Arc::clone(&heard)));
        connections.spawn(async move {
            let _ = copy(&mut from_server, &mut to_client).await;
        });
    }
}

/// Passes on what a client sends, and keeps it.
async fn listen(mut client: OwnedReadHalf, mut server: OwnedWriteHalf, heard: Heard) {
    let connection = {
        let mut heard = heard.lock().unwrap();
        heard.push(Vec::new());
        heard.len() - 1
    };
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = client.read(&mut buffer).await {
        heard.lock().unwrap()[connection].extend_from_slice(&buffer[..len]);
        if server.write_all(&buffer[..len]).await.is_err() {
            break;
        }
    }
}
