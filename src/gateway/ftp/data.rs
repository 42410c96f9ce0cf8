//! Data connections: passive ones, which the client opens, and active ones, which the server opens.
//!
//! A passive port takes a connection from the client's address only, so
//! nobody else can take its place. An active one goes to the client's address and to no port below 1024, so the server
//! can't be made to talk to others (RFC 2577).

use super::reply::Reply;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

/// Longest wait for a data connection.
const OPEN: Duration = Duration::from_secs(30);
/// Longest wait for a free passive port.
const PORT: Duration = Duration::from_secs(10);
/// Pause between two looks for one.
const LOOK: Duration = Duration::from_millis(50);

/// How the next transfer gets its data connection.
#[derive(Default)]
pub(super) enum Data {
    /// No command has said it.
    #[default]
    Unset,
    /// The client connects to a port of ours. Ends after [`OPEN`], so a port isn't in use for longer.
    Passive(AbortOnDropHandle<io::Result<TcpStream>>),
    /// The server connects to this address.
    Active(SocketAddr),
}

/// A passive port that waits for its client.
pub(super) struct Listener {
    listener: TcpListener,
    /// The port in use. Dropped with the listener.
    _port: Option<Port>,
}

impl Listener {
    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Waits for the client in the background. The port is free again once it has connected.
    pub(super) fn wait_for(self, client: IpAddr) -> Data {
        let accepted = async move {
            let accepted = timeout(OPEN, accept(&self.listener, client)).await;
            accepted.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        };
        Data::Passive(AbortOnDropHandle::new(tokio::spawn(accepted)))
    }
}

impl Data {
    /// Opens the data connection to a client.
    pub(super) async fn open(self) -> Result<TcpStream, Reply> {
        let opened = match self {
            Self::Unset => return Err(Reply::new(425, "Say PASV or EPSV first.")),
            Self::Passive(accepted) => Ok(accepted.await.map_err(io::Error::other).flatten()),
            Self::Active(address) => timeout(OPEN, TcpStream::connect(address)).await,
        };
        match opened {
            Ok(Ok(stream)) => {
                // A transfer that makes no progress ends.
                let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, super::STALL.as_millis() as u32);
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) if error.kind() != io::ErrorKind::TimedOut => {
                Err(Reply::new(425, "The data connection can't be opened."))
            }
            Ok(Err(_)) | Err(_) => Err(Reply::new(425, "No data connection was opened in 30 seconds.")),
        }
    }
}

/// Takes the connection of a client. Those of others are closed.
async fn accept(listener: &TcpListener, client: IpAddr) -> io::Result<TcpStream> {
    loop {
        let (stream, peer) = listener.accept().await?;
        if same(peer.ip(), client) {
            return Ok(stream);
        }
        tracing::warn!(%peer, "closed a data connection that is not the client's");
    }
}

/// Compares addresses. An IPv4 address may be written as one of IPv6.
pub(super) fn same(one: IpAddr, other: IpAddr) -> bool {
    one.to_canonical() == other.to_canonical()
}

/// The passive ports of a server.
pub(super) struct Ports {
    /// `None`: the system chooses.
    range: Option<RangeInclusive<u16>>,
    used: Mutex<HashSet<u16>>,
}

/// A port in use.
struct Port {
    ports: Arc<Ports>,
    port: u16,
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ports.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.port);
    }
}

impl Ports {
    pub(super) fn new(range: Option<RangeInclusive<u16>>) -> Arc<Self> {
        Arc::new(Self { range, used: Mutex::default() })
    }

    /// Listens at a free port of an address. Waits a while for one: a port is in use until its client has connected.
    pub(super) async fn listen(self: &Arc<Self>, address: IpAddr) -> io::Result<Listener> {
        let Some(range) = self.range.clone() else {
            return Ok(Listener { listener: bind(address, 0)?, _port: None });
        };
        let deadline = Instant::now() + PORT;
        loop {
            for port in range.clone() {
                let Some(port) = self.take(port) else { continue };
                // Another program may have it.
                if let Ok(listener) = bind(address, port.port) {
                    return Ok(Listener { listener, _port: Some(port) });
                }
            }
            if Instant::now() >= deadline {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn take(self: &Arc<Self>, port: u16) -> Option<Port> {
        let is_free = self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        is_free.then(|| Port { ports: self.clone(), port })
    }
}

fn bind(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Earlier connections of the port may still be closing.
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(address, port))?;
    socket.listen(8)
}

/// Parses the argument of `PORT`: `h1,h2,h3,h4,p1,p2`.
pub(super) fn parse_port(text: &str) -> Option<SocketAddr> {
    let numbers = text.split(',').map(|number| number.trim().parse()).collect::<Result<Vec<u8>, _>>().ok()?;
    let &[a, b, c, d, high, low] = numbers.as_slice() else { return None };
    Some((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low])).into())
}

/// Parses the argument of `EPRT` (RFC 2428, section 2): `|1|132.235.1.2|6275|`, with any delimiter.
pub(super) fn parse_eprt(text: &str) -> Option<SocketAddr> {
    let delimiter = text.chars().next()?;
    let fields: Vec<&str> = text.split(delimiter).collect();
    let &["", protocol, address, port, ""] = fields.as_slice() else { return None };
    let address: IpAddr = address.parse().ok()?;
    let is_right = matches!((protocol, address), ("1", IpAddr::V4(_)) | ("2", IpAddr::V6(_)));
    is_right.then_some(SocketAddr::new(address, port.parse().ok()?))
}

/// Writes the reply to `PASV`.
pub(super) fn pasv_reply(address: Ipv4Addr, port: u16) -> Reply {
    let ([a, b, c, d], [high, low]) = (address.octets(), port.to_be_bytes());
    Reply::new(227, format!("Entering passive mode ({a},{b},{c},{d},{high},{low})."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn addresses_are_those_of_the_standards() {
        assert_eq!(parse_port("127,0,0,1,4,1"), Some("127.0.0.1:1025".parse().unwrap()));
        assert_eq!(parse_eprt("|1|132.235.1.2|6275|"), Some("132.235.1.2:6275".parse().unwrap()));
        assert_eq!(parse_eprt("@2@1080::8@5282@"), Some("[1080::8]:5282".parse().unwrap()));
        for wrong in ["", "1,2,3,4,5", "1,2,3,4,5,256", "1,2,3,4,5,6,7", "a,2,3,4,5,6", "-1,2,3,4,5,6"] {
            assert_eq!(parse_port(wrong), None, "{wrong}");
        }
        for wrong in ["", "|", "|1|1080::8|1|", "|2|1.2.3.4|1|", "|3|x|1|", "|1|1.2.3.4|65536|", "|1|1.2.3.4|1"] {
            assert_eq!(parse_eprt(wrong), None, "{wrong}");
        }
        let reply = pasv_reply(Ipv4Addr::new(10, 0, 0, 1), 30_001);
        assert_eq!(reply, Reply::new(227, "Entering passive mode (10,0,0,1,117,49)."));
    }

    #[tokio::test]
    async fn ports_of_the_range_are_used_and_used_again() {
        // A range that is free here.
        let free = bind(HERE, 0).unwrap().local_addr().unwrap().port();
        let ports = Ports::new(Some(free..=free));
        let first = ports.listen(HERE).await.unwrap();
        assert_eq!(first.port().unwrap(), free);
        let second = ports.listen(HERE);
        let mut second = std::pin::pin!(second);
        assert!(second.as_mut().now_or_never().is_none(), "it waits");
        let client = TcpStream::connect((HERE, free)).await.unwrap();
        let opened = first.wait_for(HERE).open().await.unwrap();
        let second = second.await.unwrap();
        assert_eq!(second.port().unwrap(), free, "although a connection of the port is open");
        drop((client, opened));
    }

    #[tokio::test(start_paused = true)]
    async fn port_is_free_again_if_nobody_connects() {
        let free = bind(HERE, 0).unwrap().local_addr().unwrap().port();
        let ports = Ports::new(Some(free..=free));
        let data = ports.listen(HERE).await.unwrap().wait_for(HERE);
        tokio::time::sleep(OPEN + Duration::from_secs(1)).await;
        assert_eq!(ports.listen(HERE).await.unwrap().port().unwrap(), free);
        assert_eq!(data.open().await.err().map(|reply| reply.code), Some(425));
    }

    #[tokio::test]
    async fn connection_of_somebody_else_is_not_taken() {
        let ports = Ports::new(None);
        let listener = ports.listen(HERE).await.unwrap();
        let port = listener.port().unwrap();
        let stranger = TcpStream::connect((HERE, port)).await.unwrap();
        let open = listener.wait_for("127.0.0.2".parse().unwrap()).open();
        let mut open = std::pin::pin!(open);
        assert!(tokio::time::timeout(Duration::from_millis(200), open.as_mut()).await.is_err());
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let client = socket.connect((HERE, port).into()).await.unwrap();
        let opened = open.await.unwrap();
        assert_eq!(opened.peer_addr().unwrap(), client.local_addr().unwrap());
        drop(stranger);
    }
}
