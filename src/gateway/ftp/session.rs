//! The session of a client: its control connection, its login, and one command after the other.

use super::command::{Command, Syntax, parse};
use super::data::{Data, parse_eprt, parse_port, pasv_reply, same};
use super::entry::Facts;
use super::login::Caller;
use super::place::Place;
use super::reply::Reply;
use super::server::Shared;
use super::wire::{Control, Line, Wire};
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Time for a login.
const LOGIN: Duration = Duration::from_secs(60);
/// Failed logins after which the connection is closed.
const TRIES: u32 = 5;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(30);
/// Commands that a client may send ahead during a transfer. After that, nothing is read until its end.
const AHEAD: usize = 16;

/// Waits until the server stops.
async fn stop(stopped: &mut watch::Receiver<bool>) {
    drop(stopped.wait_for(|&stopped| stopped).await);
}

/// The session of a client.
pub(super) struct Session {
    pub(super) shared: Arc<Shared>,
    control: Control,
    client: SocketAddr,
    /// Address of this end of the control connection.
    local: IpAddr,
    user: Option<String>,
    pub(super) caller: Option<Caller>,
    failures: u32,
    pub(super) folder: Place,
    data: Data,
    /// True after `EPSV ALL`: no other command may say how data connections are opened.
    only_epsv: bool,
    /// True if data connections use TLS.
    protect: bool,
    /// Offset of the next transfer.
    pub(super) rest: u64,
    /// The file or folder that `RNTO` will rename.
    pub(super) renamed: Option<(Place, bool)>,
    pub(super) facts: Facts,
    /// Lines that came during a transfer.
    ahead: VecDeque<Line>,
    /// When a client that hasn't logged in has to go.
    login_ends: Instant,
    /// Lines before the login that are no commands.
    unknown: u32,
    is_over: bool,
    /// Becomes true when the server stops.
    stopped: watch::Receiver<bool>,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        stream: TcpStream,
        client: SocketAddr,
        stopped: watch::Receiver<bool>,
    ) -> io::Result<Self> {
        Ok(Self {
            shared,
            stopped,
            local: stream.local_addr()?.ip().to_canonical(),
            control: Control::new(stream)?,
            client,
            user: None,
            caller: None,
            failures: 0,
            folder: Place::Root,
            data: Data::Unset,
            only_epsv: false,
            protect: false,
            rest: 0,
            renamed: None,
            facts: Facts::ALL,
            ahead: VecDeque::new(),
            login_ends: Instant::now() + LOGIN,
            unknown: 0,
            is_over: false,
        })
    }

    /// Answers commands until the client or the server ends the session.
    pub(super) async fn run(mut self) -> io::Result<()> {
        self.control.send(&Reply::new(220, "hugbucket is ready.")).await?;
        while !self.is_over {
            let idle = Instant::now() + self.shared.options.idle;
            let deadline = if self.caller.is_none() { self.login_ends.min(idle) } else { idle };
            let line = tokio::select! {
                line = Self::next_line(&mut self.ahead, &mut self.control) => line?,
                () = tokio::time::sleep_until(deadline) => {
                    self.control.send(&Reply::new(421, "No command came in time.")).await?;
                    break;
                }
                () = stop(&mut self.stopped) => {
                    self.control.send(&Reply::new(421, "The server stops.")).await?;
                    break;
                }
            };
            let reply = match line {
                Line::End => return Ok(()),
                Line::TooLong => Reply::new(500, "The line is too long."),
                Line::Text(line) => self.answer(&line).await?,
            };
            self.control.send(&reply).await?;
            if reply.code == 234 && !self.secure().await {
                return Ok(());
            }
        }
        self.control.close().await;
        Ok(())
    }

    async fn next_line(ahead: &mut VecDeque<Line>, control: &mut Control) -> io::Result<Line> {
        match ahead.pop_front() {
            Some(line) => Ok(line),
            None => control.line().await,
        }
    }

    /// Carries out a line. Fails if the control connection does.
    async fn answer(&mut self, line: &[u8]) -> io::Result<Reply> {
        let command = match parse(line) {
            Ok(command) => command,
            Err(syntax) => return Ok(self.no_command(line, syntax)),
        };
        // An offset is good for the next transfer. These commands come between the two.
        let keeps_offset = matches!(command, Command::Rest(_) | Command::Pasv | Command::Epsv(_) | Command::Type(_))
            || matches!(command, Command::Port(_) | Command::Eprt(_));
        let (rest, renamed) = (self.rest, self.renamed.take());
        let reply = match command {
            Command::User(name) => self.user(name),
            Command::Pass(password) => self.pass(&password).await,
            Command::Quit => {
                self.is_over = true;
                Ok(Reply::new(221, "Goodbye."))
            }
            Command::Auth(mechanism) => self.auth(&mechanism),
            Command::Pbsz | Command::Prot(_) => self.protection(command),
            Command::Port(_) | Command::Eprt(_) | Command::Pasv | Command::Epsv(_) if self.caller.is_some() => {
                self.set_data(command).await
            }
            command => match self.without_login(&command) {
                Some(reply) => Ok(reply),
                None if self.caller.is_none() => Err(Reply::new(530, "Log in with USER and PASS first.")),
                None => {
                    self.renamed = renamed;
                    Box::pin(self.work(command)).await
                }
            },
        };
        if !keeps_offset && self.rest == rest {
            self.rest = 0;
        }
        Ok(reply.unwrap_or_else(|refused| refused))
    }

    /// Answers a line that is no command. A web page can make a browser send a request here, with commands in its body:
    /// such a session ends.
    fn no_command(&mut self, line: &[u8], syntax: Syntax) -> Reply {
        let has = |text: &[u8]| line.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text));
        let is_http = has(b" HTTP/1.") || [&b"Host:"[..], b"Origin:"].iter().any(|name| line.starts_with(name));
        self.unknown += u32::from(self.caller.is_none() && syntax == Syntax::Unknown);
        if is_http || self.unknown >= TRIES {
            self.is_over = true;
            return Reply::new(421, "This is an FTP server.");
        }
        syntax.into()
    }

    /// Logs the client out, if it is logged in. It has time for another login.
    fn log_out(&mut self) {
        if self.caller.take().is_some() {
            self.login_ends = Instant::now() + LOGIN;
        }
    }

    /// Answers commands that need no login.
    fn without_login(&mut self, command: &Command) -> Option<Reply> {
        Some(match command {
            Command::Opts(text) => self.options(text).unwrap_or_else(|refused| refused),
            Command::Feat => Reply::new(211, self.features()),
            Command::Syst => Reply::new(215, "UNIX Type: L8"),
            Command::Noop => Reply::new(200, "Nothing done."),
            Command::Clnt => Reply::new(200, "Noted."),
            Command::Help => Reply::new(214, "See docs/ftp.md of hugbucket for the commands."),
            Command::Abor => Reply::new(226, "No transfer runs."),
            _ => return None,
        })
    }

    fn features(&self) -> String {
        let mut lines = vec!["Features:".to_owned()];
        if self.shared.tls.is_some() {
            lines.extend(["AUTH TLS", "PBSZ", "PROT"].map(str::to_owned));
        }
        lines.extend(self.shared.options.active.then(|| "EPRT".to_owned()));
        lines.extend(["EPSV", "MDTM", "MFMT"].map(str::to_owned));
        lines.push(self.facts.feature());
        lines.extend(["REST STREAM", "SITE UTIME", "SIZE", "TVFS", "UTF8", "XMD5", "End"].map(str::to_owned));
        lines.join("\n")
    }

    /// Returns true if what the client sends may go in clear.
    fn may_be_clear(&self) -> bool {
        self.shared.options.allow_cleartext || self.client.ip().to_canonical().is_loopback()
    }

    fn user(&mut self, name: String) -> Result<Reply, Reply> {
        self.log_out();
        self.folder = Place::Root;
        if !self.control.is_secure() && !self.may_be_clear() {
            return Err(Reply::new(530, "A login needs TLS here: say AUTH TLS first."));
        }
        self.user = Some(name);
        Ok(Reply::new(331, "Send the password."))
    }

    async fn pass(&mut self, password: &str) -> Result<Reply, Reply> {
        let name = self.user.take().ok_or_else(|| Reply::new(503, "Say USER first."))?;
        let options = &self.shared.options;
        if let Some(caller) = Caller::log_in(&options.keys, options.anonymous, &name, password) {
            tracing::info!(client = %self.client, user = caller.name(), tls = self.control.is_secure(), "a client logged in");
            self.caller = Some(caller);
            return Ok(Reply::new(230, "Logged in."));
        }
        tracing::warn!(client = %self.client, "a login failed");
        self.shared.metrics.failed_logins.fetch_add(1, Ordering::Relaxed);
        tokio::time::sleep(self.shared.failures.count(self.client.ip())).await;
        self.failures += 1;
        if self.failures >= TRIES {
            self.is_over = true;
            return Err(Reply::new(421, "Too many failed logins."));
        }
        Err(Reply::new(530, "Name or password is wrong."))
    }

    fn auth(&mut self, mechanism: &str) -> Result<Reply, Reply> {
        if !matches!(mechanism, "TLS" | "TLS-C" | "SSL") {
            return Err(Reply::new(504, "Only AUTH TLS is known."));
        }
        if self.shared.tls.is_none() {
            return Err(Reply::new(431, "This server has no certificate."));
        }
        if self.control.is_secure() {
            return Err(Reply::new(503, "TLS has begun already."));
        }
        Ok(Reply::new(234, "Begin TLS."))
    }

    /// Begins TLS. The client has to log in again: what it said before could be somebody else's.
    async fn secure(&mut self) -> bool {
        self.log_out();
        (self.user, self.folder) = (None, Place::Root);
        (self.renamed, self.rest, self.data) = (None, 0, Data::Unset);
        self.ahead.clear();
        let Some(tls) = &self.shared.tls else { return false };
        let began = timeout(HANDSHAKE, self.control.secure(&tls.control)).await;
        let has_begun = matches!(began, Ok(Ok(())));
        if !has_begun {
            tracing::debug!(client = %self.client, "a TLS handshake failed");
        }
        has_begun
    }

    fn protection(&mut self, command: Command) -> Result<Reply, Reply> {
        if !self.control.is_secure() {
            return Err(Reply::new(503, "Say AUTH TLS first."));
        }
        match command {
            Command::Prot(level) if level == "P" => {
                self.protect = true;
                Ok(Reply::new(200, "Data connections use TLS."))
            }
            Command::Prot(level) if level == "C" && self.may_be_clear() => {
                self.protect = false;
                Ok(Reply::new(200, "Data connections are in clear."))
            }
            Command::Prot(level) if level == "C" => Err(Reply::new(534, "Data connections need TLS here.")),
            Command::Prot(_) => Err(Reply::new(536, "Only PROT P and PROT C are known.")),
            _ => Ok(Reply::new(200, "PBSZ=0")),
        }
    }

    async fn set_data(&mut self, command: Command) -> Result<Reply, Reply> {
        self.data = Data::Unset;
        if self.only_epsv && !matches!(command, Command::Epsv(_)) {
            return Err(Reply::new(503, "After EPSV ALL only EPSV is allowed."));
        }
        match command {
            Command::Port(text) => self.set_active(parse_port(&text)),
            Command::Eprt(text) => self.set_active(parse_eprt(&text)),
            Command::Epsv(protocol) => self.epsv(&protocol).await,
            _ => self.pasv().await,
        }
    }

    fn set_active(&mut self, address: Option<SocketAddr>) -> Result<Reply, Reply> {
        let address = address.ok_or_else(|| Reply::new(501, "Wrong argument: an address and a port."))?;
        if !self.shared.options.active {
            return Err(Reply::new(502, "This server opens no connections: use PASV or EPSV."));
        }
        if !same(address.ip(), self.client.ip()) || address.port() < 1024 {
            tracing::warn!(client = %self.client, "refused to open a data connection to another host or service");
            return Err(Reply::new(504, "Only ports of your own address, from 1024, are allowed."));
        }
        self.data = Data::Active(address);
        Ok(Reply::new(200, "The next transfer connects there."))
    }

    async fn pasv(&mut self) -> Result<Reply, Reply> {
        let address = match (self.shared.options.passive_address, self.local) {
            (Some(address), _) | (None, IpAddr::V4(address)) => address,
            (None, IpAddr::V6(_)) => return Err(Reply::new(425, "PASV has no IPv6 addresses: use EPSV.")),
        };
        let port = self.listen().await?;
        Ok(pasv_reply(address, port))
    }

    async fn epsv(&mut self, protocol: &str) -> Result<Reply, Reply> {
        match (protocol, self.local) {
            ("ALL", _) => {
                self.only_epsv = true;
                return Ok(Reply::new(200, "Only EPSV from now on."));
            }
            ("", _) | ("1", IpAddr::V4(_)) | ("2", IpAddr::V6(_)) => {}
            ("1" | "2", _) => return Err(Reply::new(522, "The control connection has the other protocol.")),
            _ => return Err(Reply::new(501, "Wrong argument: 1, 2 or ALL.")),
        }
        let port = self.listen().await?;
        Ok(Reply::new(229, format!("Entering extended passive mode (|||{port}|).")))
    }

    async fn listen(&mut self) -> Result<u16, Reply> {
        let busy = |error: io::Error| {
            tracing::warn!(%error, "no passive port is free");
            Reply::new(425, "No passive port is free, try later.")
        };
        let listener = self.shared.ports.listen(self.local).await.map_err(busy)?;
        let port = listener.port().map_err(busy)?;
        self.data = listener.wait_for(self.client.ip());
        Ok(port)
    }

    /// Opens the data connection and runs a transfer over it. Meanwhile `ABOR` and the end of the control connection
    /// end it; other commands wait. `opening`: text of the first reply.
    pub(super) async fn transfer<W>(
        &mut self,
        opening: String,
        work: impl FnOnce(Wire, super::wire::Pulse) -> W,
    ) -> Result<Reply, Reply>
    where
        W: Future<Output = Result<Reply, Reply>> + Send,
    {
        if !self.protect && !self.may_be_clear() {
            return Err(Reply::new(521, "Data connections need TLS here: say PROT P first."));
        }
        let (open, mut stopped) = (std::mem::take(&mut self.data).open(), self.stopped.clone());
        let open = async move {
            tokio::select! {
                opened = open => opened,
                // A client that doesn't connect would hold up the stop.
                () = stop(&mut stopped) => Err(Reply::new(425, "The server stops.")),
            }
        };
        let stream = self.watch(open).await?;
        let gone = |_| Reply::new(426, "The control connection was cut.");
        self.control.send(&Reply::new(150, opening)).await.map_err(gone)?;
        let mut wire = Wire::Plain(stream);
        if self.protect {
            let shared = self.shared.clone();
            let secured = async move {
                let tls = shared.tls.as_ref().ok_or_else(|| Reply::new(431, "There is no certificate."))?;
                let secured = timeout(HANDSHAKE, wire.secure(&tls.data)).await;
                secured.ok().and_then(Result::ok).ok_or_else(|| Reply::new(522, "TLS on the data connection failed."))
            };
            wire = self.watch(secured).await?;
        }
        let work = work(wire, self.control.pulse());
        self.watch(work).await
    }

    /// Waits for a part of a transfer, and for what ends it.
    async fn watch<T>(&mut self, work: impl Future<Output = Result<T, Reply>>) -> Result<T, Reply> {
        let mut work = std::pin::pin!(work);
        loop {
            let line = tokio::select! {
                // A transfer that has ended counts, whatever came at the same time.
                biased;
                done = &mut work => return done,
                line = self.control.line(), if self.ahead.len() < AHEAD => line,
            };
            match line {
                Ok(Line::Text(line)) if parse(&line) == Ok(Command::Abor) => break,
                Ok(line @ (Line::Text(_) | Line::TooLong)) => self.ahead.push_back(line),
                Ok(Line::End) | Err(_) => {
                    self.is_over = true;
                    return Err(Reply::new(426, "The control connection was cut."));
                }
            }
        }
        let _ = self.control.send(&Reply::new(426, "The transfer was cut.")).await;
        Err(Reply::new(226, "Done: the transfer was cut."))
    }
}
