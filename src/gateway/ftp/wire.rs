//! Connections, in clear or over TLS, and the lines of the control connection.

use super::command::MAX_LINE;
use super::reply::Reply;
use bytes::{Buf, BytesMut};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// A connection.
pub(super) enum Wire {
    /// In clear.
    Plain(TcpStream),
    /// Over TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    /// Begins TLS, as its server.
    pub(super) async fn secure(self, tls: &TlsAcceptor) -> io::Result<Self> {
        match self {
            Self::Plain(stream) => Ok(Self::Tls(Box::new(tls.accept(stream).await?))),
            Self::Tls(_) => Err(io::Error::other("the connection has TLS already")),
        }
    }

    pub(super) fn is_secure(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Lets the peer see that the connection was cut: without this, the end of the stream looks like that of a file.
    pub(super) fn cut(self) {
        // It is closed either way.
        let _ = rustix::net::sockopt::set_socket_linger(self.socket(), Some(std::time::Duration::ZERO));
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// Tells whether the client of a control connection is still there. An upload ends with the end of its data
/// connection, and a client that dies closes both: the kernel closes the older one first.
#[derive(Clone)]
pub(super) struct Pulse(Arc<OwnedFd>);

impl Pulse {
    /// Returns true if the client has closed its side, or is gone. Bytes that it sent before may still be unread.
    pub(super) fn is_gone(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, poll};
        let mut socket = [PollFd::new(&*self.0, PollFlags::RDHUP)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // A poll that fails tells nothing.
        poll(&mut socket, Some(&now)).is_ok_and(|ready| ready > 0)
    }
}

/// The control connection.
pub(super) struct Control {
    /// `None` only while TLS begins, and after that has failed.
    wire: Option<Wire>,
    buffer: BytesMut,
    /// True while the rest of a line that is too long is dropped.
    skipping: bool,
    pulse: Pulse,
}

/// A line that the client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Its text, without its end.
    Text(BytesMut),
    /// It is too long.
    TooLong,
    /// There is none: the connection has ended.
    End,
}

impl Control {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        // Clients send the last byte before ABOR, or its end, as urgent data (RFC 959, section 4.1.3).
        rustix::net::sockopt::set_socket_oobinline(&stream, true)?;
        let pulse = Pulse(Arc::new(stream.as_fd().try_clone_to_owned()?));
        Ok(Self { wire: Some(Wire::Plain(stream)), buffer: BytesMut::new(), skipping: false, pulse })
    }

    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    pub(super) fn is_secure(&self) -> bool {
        self.wire.as_ref().is_some_and(Wire::is_secure)
    }

    /// Begins TLS. What was read before and not used is dropped: somebody in between could have sent it.
    pub(super) async fn secure(&mut self, tls: &TlsAcceptor) -> io::Result<()> {
        self.buffer.clear();
        self.skipping = false;
        let wire = self.wire.take().ok_or(io::ErrorKind::NotConnected)?;
        self.wire = Some(wire.secure(tls).await?);
        Ok(())
    }

    /// Sends a reply.
    pub(super) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let wire = self.wire.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        wire.write_all(&reply.to_bytes()).await?;
        wire.flush().await
    }

    /// Returns the next line. May be dropped while it waits: nothing is lost.
    pub(super) async fn line(&mut self) -> io::Result<Line> {
        loop {
            if let Some(line) = next_line(&mut self.buffer, &mut self.skipping) {
                return Ok(line);
            }
            if self.read().await? == 0 {
                return Ok(Line::End);
            }
        }
    }

    /// Reads the bytes that have come. Returns their number; 0 at the end.
    async fn read(&mut self) -> io::Result<usize> {
        self.buffer.reserve(MAX_LINE);
        match self.wire.as_mut().ok_or(io::ErrorKind::NotConnected)? {
            // A read ends at urgent data, although more has come. Tokio's own takes a short read for the last one.
            Wire::Plain(stream) => loop {
                stream.readable().await?;
                match stream.try_read_buf(&mut self.buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            },
            Wire::Tls(stream) => stream.read_buf(&mut self.buffer).await,
        }
    }

    /// Ends the connection.
    pub(super) async fn close(mut self) {
        if let Some(mut wire) = self.wire.take() {
            let _ = wire.shutdown().await;
        }
    }
}

/// Takes the next line from a buffer. `None`: it isn't whole yet. `skipping`: whether the rest of a line that is too
/// long is still to come.
fn next_line(buffer: &mut BytesMut, skipping: &mut bool) -> Option<Line> {
    loop {
        match buffer.iter().position(|&byte| byte == b'\n') {
            Some(at) => {
                let mut line = buffer.split_to(at + 1);
                if std::mem::take(skipping) {
                    continue;
                }
                line.truncate(at);
                if line.ends_with(b"\r") {
                    line.truncate(at - 1);
                }
                return Some(if line.len() > MAX_LINE { Line::TooLong } else { Line::Text(line) });
            }
            None if *skipping => {
                buffer.clear();
                return None;
            }
            None if buffer.len() > MAX_LINE + 1 => {
                buffer.advance(buffer.len());
                *skipping = true;
                return Some(Line::TooLong);
            }
            None => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Line> {
        let (mut buffer, mut skipping, mut lines) = (BytesMut::new(), false, Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            while let Some(line) = next_line(&mut buffer, &mut skipping) {
                lines.push(line);
            }
            assert!(buffer.len() <= MAX_LINE + 1, "what is kept is bounded");
        }
        lines
    }

    fn text(text: &str) -> Line {
        Line::Text(text.into())
    }

    #[test]
    fn long_line_is_told_once_and_the_next_one_is_read() {
        let long = vec![b'x'; 64 << 10];
        assert_eq!(lines(&[&long, &long, b"y\r\nNOOP\r\n"]), [Line::TooLong, text("NOOP")]);
        let longest = vec![b'x'; MAX_LINE];
        let all = lines(&[&longest, b"\r\n", &longest, b"x\r\n", b"A\n\r\n"]);
        assert_eq!(all, [Line::Text(longest[..].into()), Line::TooLong, text("A"), text("")]);
    }

    proptest! {
        #[test]
        fn lines_are_the_same_however_they_arrive(sent in "(ab|\r|\n|x){0,20}", cuts in prop::collection::vec(0usize..40, 0..5)) {
            let bytes = sent.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|&cut| cut <= bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            prop_assert_eq!(lines(&pieces), lines(&[bytes]));
        }
    }
}
