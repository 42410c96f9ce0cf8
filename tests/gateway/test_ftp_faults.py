"""Failures of clients, connections, the FTP gateway and the Hub in the middle of FTP commands.

After each failure a file is the old one or the new one, whole. FTP_FAULT_ROUNDS is the number of rounds of the tests
that end something at a random moment; the default suits CI. With 40 or more, waits of a minute are tested too.
"""

import ftplib
import itertools
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from conftest import Program, run
from faults import HubProxy, together
from ftp import PASSWORD, USER, absent, get, put, reset
from proxy import ANSWERED, BEFORE, HANDLED
from test_ftp import certificate, servers  # noqa: F401 (fixture)
from test_objects import MIB, content

ROUNDS = int(os.environ.get("FTP_FAULT_ROUNDS", "12"))
only_long = pytest.mark.skipif(ROUNDS < 40, reason="takes minutes: set FTP_FAULT_ROUNDS to 40 or more")
OLD, NEW = content(11, 2 * MIB + 7), content(12, 3 * MIB + 1)
# Bytes that stay in the test of REST.
KEPT = 70_000
# Commands that write, with the content of the file afterwards if it was OLD before.
WRITES = {"STOR": NEW, "APPE": OLD + NEW, "REST": OLD[:KEPT] + NEW}
# Replies to an upload or a download whose Hub can't be reached.
FAILED = ("426", "450", "451")


def settled(server, path, allowed):
    """Returns the content of a file for a new session, which must be one of these. `None`: there is no file."""
    with server.session() as session:
        found = None if absent(session, path) else get(session, path)
    is_allowed = found in allowed
    # Contents are too long to show.
    assert is_allowed, (path, found and len(found), [body and len(body) for body in allowed])
    return found


def begin(server, command, path, **options):
    """Returns a session whose upload has begun, and its data connection."""
    talk = server.talk()
    data = talk.data(**options)
    if command == "REST":
        assert talk.ask(f"REST {KEPT}").startswith("350 ")
    assert talk.ask(f"{'STOR' if command == 'REST' else command} {path}").startswith("150 ")
    return talk, data


def pour(data, body):
    """Sends until the server ends the connection."""
    try:
        data.sendall(body)
    except OSError:
        pass


@pytest.fixture
def server(servers, options):  # noqa: F811
    return servers(*options)


@pytest.fixture
def proxies(hub):
    """Starts proxies between a gateway and the Hub."""
    started = []

    def start(hub=hub):
        started.append(HubProxy(hub))
        return started[-1]

    yield start
    for proxy in started:
        proxy.rule = None
        proxy.close()


# --- Uploads that end early -------------------------------------------------------------------------------------------

# Ends of an upload in the middle. Each leaves the file as it was.
ENDS = (
    "reset data", "reset both", "close control", "reset control", "close control, data go on", "abort",
    "abort, then end data", "quit, then reset data",
)


def end(how, talk, data, rest):
    """Ends an upload early. `rest`: content that was not sent."""
    match how:
        case "reset data" | "quit, then reset data":
            if how.startswith("quit"):
                talk.send("QUIT")
            reset(data)
            assert talk.reply().startswith("426 "), how
            assert talk.ask("NOOP").startswith("221 " if how.startswith("quit") else "200 "), how
        case "reset both":
            reset(data)
            talk.leave(rudely=True)
        case "close control" | "reset control":
            talk.leave(rudely=how.startswith("reset"))
            # The data end properly, but their control connection is closed.
            pour(data, rest[: len(rest) // 2])
        case "close control, data go on":
            talk.leave()
            pour(data, rest * 20)
            data.settimeout(20)
            try:
                assert data.recv(1) == b"", "the server ends the data connection"
            except (ConnectionResetError, BrokenPipeError):
                pass
        case "abort" | "abort, then end data":
            talk.send("ABOR")
            if how != "abort":
                data.close()
            assert talk.reply().startswith("426 ") and talk.reply().startswith("226 "), how
            assert talk.ask("NOOP").startswith("200 "), how
    data.close()
    talk.leave()


@pytest.mark.parametrize("command", WRITES)
def test_upload_that_ends_early_changes_nothing(server, command):
    choice = random.Random(command)
    with server.session() as session:
        put(session, "/data/f", OLD)
    files = server.open_files()
    for _ in range(ROUNDS // 2):
        # REST of a file that doesn't exist is refused.
        for how, path in itertools.product(ENDS, ["/data/f"] if command == "REST" else ["/data/f", "/data/none"]):
            talk, data = begin(server, command, path)
            count = choice.randrange(len(NEW))
            data.sendall(NEW[:count])
            end(how, talk, data, NEW[count:])
            settled(server, path, [OLD if path == "/data/f" else None])
    limit = time.monotonic() + 20
    # Connections to the Hub are kept, but few of them.
    while server.open_files() > files + 20:
        assert time.monotonic() < limit, "connections of uploads stay open"
        time.sleep(0.05)
    settled(server, "/data/f", [OLD])


@pytest.mark.parametrize("command", WRITES)
def test_upload_is_stored_if_only_its_data_connection_ends(server, command):
    with server.session() as session:
        put(session, "/data/f", OLD)
    talk, data = begin(server, command, "/data/f", buffer=65536)
    data.sendall(NEW)
    # This client still reads.
    data.shutdown(socket.SHUT_WR)
    assert talk.reply().startswith("226 ") and data.recv(1) == b""
    settled(server, "/data/f", [WRITES[command]])
    assert talk.ask("NOOP").startswith("200 ")


# Forms of ABOR with urgent data: pieces, and whether the last byte of each is urgent. The first one is sent by ftplib
# (`FTP.abort`). The others begin with Interrupt Process and Synch of Telnet (RFC 959, section 4.1.3), whose urgent byte
# is the Data Mark, or the byte before it.
URGENT = {
    "command": [(b"ABOR\r\n", True)],
    "mark": [(b"\xff\xf4", False), (b"\xff\xf2", True), (b"ABOR\r\n", False)],
    "before mark": [(b"\xff\xf4\xff", True), (b"\xf2ABOR\r\n", False)],
}


@pytest.mark.parametrize("form", URGENT)
def test_abort_with_urgent_data_ends_upload(servers, form):  # noqa: F811
    server = servers()
    talk, data = begin(server, "STOR", "/data/f")
    with talk.socket, data:
        data.sendall(NEW[:MIB])
        talk.socket.settimeout(2)
        for piece, is_urgent in URGENT[form]:
            talk.socket.sendall(piece, socket.MSG_OOB if is_urgent else 0)
        assert talk.reply().startswith("426 ") and talk.reply().startswith("226 ")
        assert talk.ask("NOOP").startswith("200 ")
        talk.leave()
    settled(server, "/data/f", [None])


@pytest.mark.parametrize("kind", ["xorb", "shard", "commit"])
def test_upload_that_is_aborted_after_its_last_byte_stores_old_or_new(servers, proxies, kind):  # noqa: F811
    """The requests to the Hub are in progress, so the file may change until they end (docs/ftp.md, "Whole files")."""
    proxy = proxies()
    server, arrived, released = servers(env={"HF_ENDPOINT": proxy.url}), threading.Event(), threading.Event()

    def hold(request, at):
        if at == kind:
            arrived.set()
            released.wait(20)

    with server.session() as session:
        put(session, "/data/f", OLD)
    proxy.rule = hold
    talk, data = begin(server, "STOR", "/data/f")
    data.sendall(NEW)
    data.close()
    assert arrived.wait(20)
    timer = threading.Timer(0.5, released.set)
    timer.start()
    talk.send("ABOR")
    assert talk.reply()[:4] in ("226 ", "426 ") and talk.reply().startswith("226 ")
    settled(server, "/data/f", [OLD, NEW])
    timer.join()
    proxy.quiet()
    settled(server, "/data/f", [OLD, NEW])
    # A further upload comes after it.
    data = talk.data()
    assert talk.ask("STOR /data/f").startswith("150 ")
    data.sendall(OLD + NEW)
    data.close()
    assert talk.reply().startswith("226 ")
    settled(server, "/data/f", [OLD + NEW])


@pytest.mark.parametrize("is_reset", [False, True])
def test_upload_whose_session_ends_during_its_commit_stores_old_or_new(server, is_reset):
    choice, now = random.Random(is_reset), None
    for number in range(ROUNDS // 2):
        body = content(200 + number, MIB)
        talk, data = begin(server, "STOR", "/data/f")
        data.sendall(body)
        data.close()
        time.sleep(choice.uniform(0, 0.05))
        talk.leave(rudely=is_reset)
        settled(server, "/data/f", [now, body])
        with server.session() as session:
            # It comes after the other one, however that ends.
            put(session, "/data/f", body)
        settled(server, "/data/f", [body])
        now = body


# A client with a small buffer, which shows how many bytes it has sent. With `first`, the kernel closes its data
# connection before its control connection when it is killed: it closes lower descriptors first.
CLIENT = """
import ftplib, random, socket, sys
host, port, user, password, command, first = sys.argv[1:]
class Small(ftplib.FTP):
    def ntransfercmd(self, *arguments):
        connection, size = super().ntransfercmd(*arguments)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        assert (connection.fileno() < self.sock.fileno()) == (first == "data")
        return connection, size
class Endless:
    def read(self, size):
        return random.randbytes(size)
sent = 0
def show(block):
    global sent
    sent += len(block)
    print(sent, flush=True)
place = socket.socket()
session = Small()
session.connect(host, int(port))
session.login(user, password)
if first == "data":
    place.close()
session.storbinary(command, Endless(), 8192, show)
"""


@pytest.mark.parametrize("first", ["control", "data"])
def test_client_that_is_killed_changes_nothing(server, first):
    choice = random.Random(first)
    with server.session() as session:
        put(session, "/data/f", OLD)
    for number in range(ROUNDS):
        command = ("STOR /data/f", "APPE /data/f", "STOR /data/none")[number % 3]
        arguments = [*map(str, server.address), USER, PASSWORD, command, first]
        client = subprocess.Popen([sys.executable, "-c", CLIENT, *arguments], stdout=subprocess.PIPE, text=True)
        point = choice.randrange(MIB)
        try:
            while int(client.stdout.readline()) < point:
                pass
        finally:
            client.kill()
            client.wait()
            client.stdout.close()
        path = command.split()[1]
        settled(server, path, [OLD if path == "/data/f" else None])
    time.sleep(0.2)
    settled(server, "/data/f", [OLD])
    settled(server, "/data/none", [None])


def test_upload_over_tls_is_stored_only_with_its_end(servers, options, home):  # noqa: F811
    cert, key = certificate(home)
    server = servers("--tls-cert", cert, "--tls-key", key, *options)
    context, choice, now = ssl.create_default_context(cafile=cert), random.Random("tls"), None
    for number in range(ROUNDS):
        for how in ("FIN only", "reset", "close control", "whole"):
            with ftplib.FTP_TLS(timeout=20, context=context) as session:
                session.connect("localhost", server.address[1])
                session.login(USER, PASSWORD)
                session.prot_p()
                data = session.transfercmd("STOR /data/f")
                new = content(100 + number, MIB + number)
                # Without a byte of content it is an empty file that ends early.
                data.sendall(new if how == "whole" else new[: choice.randrange(len(new)) if number else 0])
                if how == "whole":
                    data.unwrap().close()
                    assert session.voidresp().startswith("226 ")
                    now = new
                    continue
                if how == "close control":
                    control = socket.socket(fileno=session.sock.detach())
                    control.shutdown(socket.SHUT_RDWR)
                    control.close()
                    session.file.close()
                    session.sock = session.file = None
                    # The server may have ended it already.
                    try:
                        data.unwrap()
                    except OSError:
                        pass
                    data.close()
                else:
                    raw = socket.socket(fileno=data.detach())
                    # A close would be a reset, because this client hasn't read the session tickets.
                    raw.shutdown(socket.SHUT_WR) if how == "FIN only" else reset(raw)
                    # A reset may come before the server has read the end of the handshake.
                    codes = "^426" if how == "FIN only" else "^(426|522)"
                    with pytest.raises((ftplib.error_temp, ftplib.error_perm), match=codes):
                        session.voidresp()
                    raw.close()
            settled(server, "/data/f", [now])
        settled(server, "/data/f", [now])


def test_append_that_ended_early_is_continued_from_its_size(server, home):
    choice, whole = random.Random("append"), home / "whole"
    whole.write_bytes(NEW)
    for number in range(ROUNDS // 2):
        path, size, early = f"/data/{number}", 0, 0
        while size < len(NEW) and early < 4:
            talk, data = begin(server, "APPE", path)
            count = choice.randrange(1, MIB)
            data.sendall(NEW[size : size + count])
            if is_early := choice.random() < 0.6:
                end(choice.choice(ENDS), talk, data, NEW[size + count :])
                early += 1
            else:
                data.close()
                assert talk.reply().startswith("226 ")
            with server.session() as session:
                now = 0 if absent(session, path) else session.size(path)
            assert now == (size if is_early else min(size + count, len(NEW)))
            size = now
        curl = ["curl", "-sS", "-u", f"{USER}:{PASSWORD}", "-C", "-", "-T", whole, f"{server.url}{path}"]
        run(*curl, text=False)
        settled(server, path, [NEW])


# --- Downloads that end early -----------------------------------------------------------------------------------------


def test_client_may_leave_a_download_anywhere(server):
    choice, large = random.Random("leave"), content(14, 16 * MIB)
    tail = len(large) - 1000
    with server.session() as session:
        put(session, "/data/f", large)
    files = server.open_files()
    for _ in range(ROUNDS):
        for how in ("reset data", "close data", "close control", "abort"):
            talk = server.talk()
            # What the server sends doesn't fit into the buffers, so it is still sending.
            data = talk.data(buffer=4096)
            assert talk.ask("RETR /data/f").startswith("150 ")
            received, point = bytearray(), choice.randrange(1, MIB)
            while len(received) < point:
                received += data.recv(point - len(received))
            assert large.startswith(received)
            if how == "close control":
                talk.leave()
            elif how == "abort":
                assert talk.ask("ABOR").startswith("426 ") and talk.reply().startswith("226 ")
            else:
                reset(data) if how == "reset data" else data.close()
                assert talk.reply().startswith("426 "), how
            if how != "close control":
                data.close()
                # The session goes on.
                data = talk.data()
                assert talk.ask(f"REST {tail}").startswith("350 ") and talk.ask("RETR /data/f").startswith("150 ")
                assert data.makefile("rb").read() == large[tail:] and talk.reply().startswith("226 ")
                talk.leave()
            data.close()
    limit = time.monotonic() + 20
    while server.open_files() > files + 20:
        assert time.monotonic() < limit, "connections of downloads stay open"
        time.sleep(0.05)


def test_slow_reader_over_tls_gets_all(servers, options, home):  # noqa: F811
    cert, key = certificate(home)
    server = servers("--tls-cert", cert, "--tls-key", key, *options)
    large = content(14, 6 * MIB)
    with server.session() as session:
        put(session, "/data/f", large)
    context = ssl.create_default_context(cafile=cert)

    def read(rest):
        with ftplib.FTP_TLS(timeout=60, context=context) as session:
            session.connect("localhost", server.address[1])
            session.login(USER, PASSWORD)
            session.prot_p()
            data, received = session.transfercmd("RETR /data/f", rest=rest), bytearray()
            # Longer than a server would wait for the end of a connection. Of the sizes below, some fill what the system
            # takes ahead and leave a little with the server.
            time.sleep(4)
            while piece := data.recv(100_000):
                received += piece
            data.close()
            session.voidresp()
            if bytes(received) == large[rest:]:
                whole.append(rest)

    whole, rests = [], range(0, 5 * MIB, 50_000)
    threads = [threading.Thread(target=read, args=(rest,)) for rest in rests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(whole) == list(rests)


def silent_client(server):
    """Opens no data connection. It gets 425 after half a minute."""
    silent, began = [server.talk() for _ in range(2)], time.monotonic()
    for talk, command in zip(silent, ("STOR /data/f", "LIST /data")):
        talk.ask("EPSV")
        talk.send(command)
    with server.session() as session:
        put(session, "/data/f", OLD)
        assert get(session, "/data/f") == OLD
    assert [talk.reply()[:4] for talk in silent] == ["425 "] * 2 and 25 < time.monotonic() - began < 40
    for talk in silent:
        # The session goes on.
        data = talk.data()
        assert talk.ask("STOR /data/late").startswith("150 ")
        data.sendall(b"late")
        data.close()
        assert talk.reply().startswith("226 ")
    settled(server, "/data/f", [OLD])
    settled(server, "/data/late", [b"late"])


class Outage:
    """Transfers that are in progress when the Hub is killed, or when its storage refuses to be read."""

    def __init__(self, server, bucket):
        self.server, self.file, self.other = server, f"/{bucket}/f", f"/{bucket}/other"
        self.large, choice, self.downloads = content(13, 32 * MIB), random.Random(bucket), []
        with server.session() as session:
            session.mkd(f"/{bucket}")
            put(session, self.file, self.large)
            put(session, self.other, OLD)
        # What the gateway keeps of its own uploads is dropped.
        server.stop()
        server.start()
        for _ in range(3):
            talk = server.talk()
            data = talk.data(buffer=65536)
            assert talk.ask(f"RETR {self.file}").startswith("150 ")
            received, point = bytearray(), choice.randrange(1, 4 * MIB)
            while len(received) < point:
                received += data.recv(point - len(received))
            self.downloads.append((talk, data, received))
        self.uploads = [begin(server, command, self.other) for command in ("STOR", "APPE")]
        [data.sendall(NEW[:MIB]) for _, data in self.uploads]

    def end_download(self, talk, data, received):
        with pytest.raises(ConnectionResetError):
            while piece := data.recv(MIB):
                received.extend(piece)
            raise AssertionError(f"{len(received)} bytes end like the file: {talk.reply()}")
        assert talk.reply()[:3] in ("451", "550")
        assert len(received) < len(self.large) and self.large.startswith(received)
        assert talk.ask("NOOP").startswith("200 ")

    def end_upload(self, talk, data):
        pour(data, NEW[MIB:])
        data.close()
        assert talk.reply().startswith(FAILED), "the Hub is away"
        assert talk.ask("NOOP").startswith("200 ")

    def end(self, is_killed):
        """Ends the uploads too if the Hub was killed. Otherwise only downloads fail."""
        ends = [lambda download=download: self.end_download(*download) for download in self.downloads]
        ends += [lambda upload=upload: self.end_upload(*upload) for upload in self.uploads if is_killed]
        together(*ends)

    def check(self, is_killed):
        """Repeats the transfers in their sessions."""
        settled(self.server, self.file, [self.large])
        settled(self.server, self.other, [OLD])
        for (talk, _), following in zip(self.uploads if is_killed else [], (OLD, OLD + NEW)):
            data = talk.data()
            assert talk.ask(f"{'STOR' if following == OLD else 'APPE'} {self.other}").startswith("150 ")
            data.sendall(OLD if following == OLD else NEW)
            data.close()
            assert talk.reply().startswith("226 ")
            settled(self.server, self.other, [following])
        talk, _, _ = self.downloads[0]
        data = talk.data()
        assert talk.ask(f"RETR {self.file}").startswith("150 ")
        assert data.makefile("rb").read() == self.large and talk.reply().startswith("226 ")


def test_waits_of_half_a_minute_end_with_errors_and_whole_files(home, servers, proxies, hub, key):  # noqa: F811
    """All cases run at the same time: a client without data connection, Hubs that are away, storage that refuses.

    A download that fails is reset, so no client takes a part for the whole.
    """
    other = Program("hugbucket", "hub", "--dir", home / "other", "--listen", "127.0.0.1:0")
    cases = list(itertools.product(("plain", "encrypted"), (False, True)))
    ready = threading.Barrier(len(cases) + 1)

    def outage(side, is_killed):
        proxy = proxies(other if is_killed else hub)
        options = ["--encryption-key-file", key] if side == "encrypted" else []
        name, env = f"{side}-{is_killed}".lower(), {"HF_ENDPOINT": proxy.url}
        server = servers(*options, "--cache-size", "0", "--allow-bucket-changes", name=name, env=env)
        outage = Outage(server, name)
        if not is_killed:
            proxy.rule = lambda request, kind: "503" if kind in ("data", "reconstruction") else None
        ready.wait(60)
        # The Hub is killed between the two.
        ready.wait(60)
        outage.end(is_killed)
        return outage, proxy, is_killed

    def kill():
        ready.wait(60)
        other.kill()
        ready.wait(60)

    try:
        begun = [lambda case=case: outage(*case) for case in cases]
        *outages, _, _ = together(*begun, kill, lambda: silent_client(servers(name="silent")))
        other.start()
        for one, proxy, is_killed in outages:
            proxy.rule = None
            if is_killed:
                proxy.follow(other)
            one.check(is_killed)
    finally:
        other.kill()


# --- The Hub is killed ------------------------------------------------------------------------------------------------

# Moments at which the Hub is killed: at a request of a kind, or at any time, then the seconds for which it is away.
MOMENTS = [
    (("commit", BEFORE), 0.2), (None, 0.2), (("commit", HANDLED), 0.1), (("xorb", BEFORE), 0.2), (None, 0.5),
    (("shard", HANDLED), 0.1), (("commit", ANSWERED), 0), (("xorb", HANDLED), 0.1), (None, 0), (("shard", BEFORE), 0.5),
    (("commit", HANDLED), 8), (("commit", BEFORE), 8),
]
# Number of moments in a short run.
SHORT = 8


def test_upload_during_death_of_hub_stores_old_or_new(servers, options, proxies, hub):  # noqa: F811
    proxy, choice = proxies(), random.Random("hub")
    server = servers(*options, env={"HF_ENDPOINT": proxy.url})
    talk, now = server.talk(), OLD
    with server.session() as session:
        put(session, "/data/f", OLD)

    def upload(command, body):
        data = talk.data()
        reply = talk.ask(f"{command} /data/f")
        if reply.startswith("150 "):
            # The server may fail before it has read all.
            pour(data, body)
            data.close()
            reply = talk.reply()
        data.close()
        return reply

    for number, (moment, away) in zip(range(ROUNDS if ROUNDS > 12 else SHORT), itertools.cycle(MOMENTS)):
        command, body = choice.choice(["STOR", "APPE"]), content(20 + number, MIB + number)
        following = now + body if command == "APPE" else body
        killed = threading.Event()

        def kill():
            hub.kill()
            killed.set()

        def restart():
            assert killed.wait(60), moment
            time.sleep(away)
            hub.start()
            proxy.follow(hub)

        if moment:
            proxy.set(*moment, 0, kill)
        else:
            threading.Timer(choice.uniform(0, 0.15), kill).start()
        reply, _ = together(lambda: upload(command, body), restart)
        assert reply.startswith(("226 ", *FAILED)), reply
        found = settled(server, "/data/f", [following] if reply.startswith("226 ") else [now, following])
        if found == now:
            # The same session repeats it.
            assert upload(command, body).startswith("226 "), "the Hub is back"
        now = settled(server, "/data/f", [following])
        if len(now) > 6 * MIB:
            assert upload("STOR", OLD).startswith("226 ")
            now = OLD


# --- The gateway is killed --------------------------------------------------------------------------------------------


class Worker(threading.Thread):
    """Changes the files of a folder of its own until the gateway is killed.

    `now`, `next` and `between` are the states that the folder may have: by name, the content and the time of each file.
    The time is None if the server chose it. Between the two states of a rename, the file has both names.
    """

    def __init__(self, server, folder, kinds, seed):
        super().__init__()
        self.server, self.folder, self.kinds, self.random = server, folder, kinds, random.Random(seed)
        self.now = self.next = {"a": (b"first", None), "b": (content(seed, 200_000), None)}
        self.between, self.error, self.changes = None, None, 0
        with server.session() as session:
            for name, (body, _) in self.now.items():
                put(session, self.path(name), body)

    def path(self, name):
        return f"/data/{self.folder}/{name}"

    def run(self):
        try:
            with self.server.session() as session:
                while True:
                    self.change(session)
                    self.now, self.between = self.next, None
                    self.changes += 1
        except (OSError, EOFError):
            pass
        except Exception as error:
            self.error = error

    def change(self, session):
        kind = self.random.choice(self.kinds)
        name = self.random.choice(sorted(self.now))
        (body, at), new = self.now[name], self.random.randbytes(self.random.choice([10, 70_000, MIB]))
        other = self.random.choice("abcd")
        match kind:
            case "STOR":
                self.next = {**self.now, other: (new, None)}
                put(session, self.path(other), new)
            case "APPE":
                # Files stay small.
                self.next = {**self.now, name: ((body + new)[-3 * MIB :], None)}
                if len(body) + len(new) > 3 * MIB:
                    put(session, self.path(name), self.next[name][0])
                else:
                    put(session, self.path(name), new, command="APPE")
            case "REST":
                kept = self.random.randrange(len(body) + 1)
                self.next = {**self.now, name: (body[:kept] + new, None)}
                put(session, self.path(name), new, rest=kept)
            case "RNTO" if other != name:
                # A file that replaces another one gets a new time (docs/semantics.md, "Times of replaced files").
                self.between = {**self.now, other: (body, None if other in self.now else at)}
                self.next = {key: value for key, value in self.between.items() if key != name}
                session.rename(self.path(name), self.path(other))
            case "DELE" if len(self.now) > 1:
                self.next = {key: value for key, value in self.now.items() if key != name}
                session.delete(self.path(name))
            case "MFMT":
                at = f"20{self.random.randrange(10, 20)}0102030405.{self.random.randrange(1000):03}"
                self.next = {**self.now, name: (body, at)}
                assert session.sendcmd(f"MFMT {at} {self.path(name)}").startswith("213 ")

    def check(self):
        """Compares the folder with both states."""
        with self.server.session() as session:
            facts = {name: facts for name, facts in session.mlsd(f"/data/{self.folder}") if facts["type"] == "file"}
            found = {name: (get(session, self.path(name)), one["modify"]) for name, one in facts.items()}
            assert all(int(facts[name]["size"]) == len(body) for name, (body, _) in found.items())
        for state in filter(None, (self.now, self.next, self.between)):
            if found.keys() == state.keys() and all(matches(found[name], state[name]) for name in found):
                self.now, self.next, self.between = state, state, None
                return
        states = (found, self.now, self.next)
        shown = [{name: (len(body), at) for name, (body, at) in state.items()} for state in states]
        raise AssertionError(f"{self.folder} is neither old nor new: found, old, new are {shown}")


def matches(found, state):
    (body, at), (wanted, wanted_at) = found, state
    return body == wanted and wanted_at in (None, at, at + ".000")


def test_files_are_old_or_new_after_sigkill_of_the_gateway_at_any_time(servers, options, proxies):  # noqa: F811
    proxy, choice, changes = proxies(), random.Random("gateway"), 0
    server = servers(*options, env={"HF_ENDPOINT": proxy.url})
    kinds = [["STOR", "APPE", "REST", "DELE"], ["RNTO", "DELE", "STOR"], ["MFMT", "RNTO"], ["APPE"]]
    for number in range(ROUNDS):
        workers = [Worker(server, f"{number}-{index}", own, 10 * number + index) for index, own in enumerate(kinds)]
        [worker.start() for worker in workers]
        time.sleep(choice.uniform(0.02, 0.4))
        server.kill()
        [worker.join(60) for worker in workers]
        assert not any(worker.is_alive() for worker in workers)
        assert not [worker.error for worker in workers if worker.error]
        # What the dead gateway had sent to the Hub is handled before the files are compared.
        time.sleep(0.1)
        proxy.quiet()
        server.start()
        for worker in workers:
            worker.check()
            changes += worker.changes
            # A further change has its full effect.
            with server.session() as session:
                worker.change(session)
            worker.now, worker.between = worker.next, None
            worker.check()
    assert changes > ROUNDS, "too few changes to tell"


# --- Many, slow and silent clients ------------------------------------------------------------------------------------


def test_two_hundred_sessions_work_at_the_same_time_beside_slow_clients(server):
    with server.session() as session:
        put(session, "/data/large", content(14, 16 * MIB))
    reader = server.talk()
    reading = reader.data(buffer=4096)
    assert reader.ask("RETR /data/large").startswith("150 ")
    writer, writing = begin(server, "STOR", "/data/slow")
    is_over, drops, taken = threading.Event(), [], bytearray()

    def drip():
        """1 KiB per second in each direction."""
        while not is_over.wait(0.1):
            drops.append(os.urandom(102))
            writing.sendall(drops[-1])
            taken.extend(reading.recv(102))

    slow = threading.Thread(target=drip)
    slow.start()
    sessions, count = [], 200
    try:
        sessions = together(*[server.session] * count)
        ready, longest = threading.Barrier(count), []

        def work(number):
            body, path = str(number).encode() * 100, f"/data/{number % 7}/{number}"
            ready.wait(60)
            for turn in range(2):
                began = time.monotonic()
                put(sessions[number], path, body + b"%d" % turn)
                assert get(sessions[number], path) == body + b"%d" % turn
                longest.append(time.monotonic() - began)

        together(*(lambda number=number: work(number) for number in range(count)))
        assert len(longest) == 2 * count and max(longest) < 20
        # The next one works as if it were alone.
        began = time.monotonic()
        put(sessions[0], "/data/alone", b"alone")
        assert get(sessions[0], "/data/alone") == b"alone" and time.monotonic() - began < 2
        names = sessions[0].nlst("/data/3")
        assert sorted(names) == sorted(f"/data/3/{number}" for number in range(3, count, 7))
    finally:
        is_over.set()
        slow.join(60)
        [session.close() for session in sessions]
    assert drops and content(14, 16 * MIB).startswith(taken)
    writing.close()
    assert writer.reply().startswith("226 ")
    settled(server, "/data/slow", [b"".join(drops)])
    # The slow download is still going on, and ends right.
    taken.extend(reading.makefile("rb").read())
    assert taken == content(14, 16 * MIB) and reader.reply().startswith("226 ")


@only_long
def test_stalled_transfer_ends_after_a_minute_and_changes_nothing(server):
    with server.session() as session:
        put(session, "/data/f", OLD)
        put(session, "/data/large", content(14, 16 * MIB))

    def upload():
        talk, data = begin(server, "STOR", "/data/f")
        talk.socket.settimeout(90)
        data.sendall(NEW[:MIB])
        assert talk.reply().startswith("426 ") and talk.ask("NOOP").startswith("200 ")
        return data

    def download():
        talk = server.talk()
        talk.socket.settimeout(90)
        data = talk.data(buffer=4096)
        assert talk.ask("RETR /data/large").startswith("150 ")
        assert talk.reply().startswith("426 ") and talk.ask("NOOP").startswith("200 ")
        return data

    began = time.monotonic()
    kept = together(upload, download)
    assert 55 < time.monotonic() - began < 80
    [data.close() for data in kept]
    settled(server, "/data/f", [OLD])


def test_passive_port_takes_only_its_own_client(server):
    talk = server.talk()
    port = int(talk.ask("EPSV").split("|||")[1].split("|")[0])
    strangers = [
        socket.create_connection(("127.0.0.1", port), 5, source_address=(f"127.0.0.{host}", 0)) for host in (2, 3)
    ]
    strangers[0].sendall(b"theirs")
    talk.send("STOR /data/f")
    for stranger in strangers:
        try:
            assert stranger.recv(1) == b"", "a stranger is not served"
        except ConnectionResetError:
            pass
    with socket.create_connection(("127.0.0.1", port), 5) as data:
        assert talk.reply().startswith("150 ")
        data.sendall(b"mine")
    assert talk.reply().startswith("226 ")
    settled(server, "/data/f", [b"mine"])


# --- Concurrent writers -----------------------------------------------------------------------------------------------


def test_concurrent_uploads_of_one_path_leave_one_of_them_whole(server):
    sessions = [server.session() for _ in range(10)]
    put(sessions[0], "/data/f", OLD)
    for number in range(ROUNDS // 3):
        bodies, ready = [content(1000 + 8 * number + at, MIB // 2 + at) for at in range(8)], threading.Barrier(8)
        allowed, is_over = {OLD, *bodies}, threading.Event()

        def write(at):
            ready.wait(60)
            assert put(sessions[at], "/data/f", bodies[at]).startswith("226 ")

        def read(session):
            while not is_over.is_set():
                assert get(session, "/data/f") in allowed

        writers = [lambda at=at: write(at) for at in range(8)]

        def write_all():
            try:
                together(*writers)
            finally:
                is_over.set()

        together(write_all, lambda: read(sessions[8]), lambda: read(sessions[9]))
        settled(server, "/data/f", bodies)
        put(sessions[0], "/data/f", OLD)
    [session.close() for session in sessions]


def test_concurrent_appends_are_in_once_or_refused(server):
    sessions, stored, refused = [server.session() for _ in range(8)], [], []
    for number in range(ROUNDS):
        ready = threading.Barrier(len(sessions))

        def append(at):
            text = f"<{number}.{at}>".encode() * (1 + 1000 * (at % 2))
            ready.wait(60)
            try:
                assert put(sessions[at], "/data/log", text, command="APPE").startswith("226 ")
                stored.append(text)
            except ftplib.error_temp as error:
                assert str(error).startswith("450 "), error
                refused.append(text)

        together(*(lambda at=at: append(at) for at in range(len(sessions))))
        log = settled_log(server, stored)
        assert stored and not any(text in log for text in refused)
    [session.close() for session in sessions]
    assert refused, "no two appends have met"


def settled_log(server, stored):
    """Returns the content of the log, which must be the stored texts, each once and whole."""
    with server.session() as session:
        log = rest = get(session, "/data/log")
    left = list(stored)
    while rest:
        text = max((text for text in left if rest.startswith(text)), key=len, default=None)
        assert text, (rest[:40], "is not a whole text")
        left.remove(text)
        rest = rest[len(text) :]
    assert not left, [text[:20] for text in left]
    return log
