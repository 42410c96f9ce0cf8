"""What the tests of the FTP gateway share: the gateway itself, and sessions that speak to it line by line."""

import ftplib
import io
import os
import socket
import struct
import subprocess
from urllib.parse import urlsplit

from conftest import Program

USER, PASSWORD = "test-user", "test-password"


class Ftp(Program):
    """`hugbucket ftp` over the Hub of a test."""

    def __init__(self, home, *options, name="ftp", env=None, command=("ftp", "--listen", "127.0.0.1:0")):
        env = {**os.environ, "FTP_USERNAME": USER, "FTP_PASSWORD": PASSWORD, **(env or {})}
        env = {name: value for name, value in env.items() if value is not None}
        folders = ["--cache-dir", home / name / "cache", "--data-dir", home / name / "data"]
        ports = [] if "--passive-ports" in options else ["--passive-ports", "0"]
        self.log_file = home / f"{name}.log"
        super().__init__("hugbucket", *command, *folders, *ports, *options, env=env, log=self.log_file)

    @property
    def address(self):
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    def session(self, user=USER, password=PASSWORD, **options):
        """An ftplib session that has logged in."""
        ftp = ftplib.FTP(timeout=60, encoding="utf-8", **options)
        ftp.connect(*self.address)
        ftp.login(user, password)
        return ftp

    def talk(self, login=True):
        return Talk(self.address, login)

    def open_files(self):
        """The number of files and connections that the gateway has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def curl(self, *options, check=True, user=f"{USER}:{PASSWORD}"):
        done = subprocess.run(["curl", "-sS", "-u", user, *map(str, options)], capture_output=True, timeout=120)
        assert not check or done.returncode == 0, done.stderr.decode()
        return done.stdout if check else done


class Talk:
    """A session of lines, with nothing in between."""

    def __init__(self, address, login=True):
        self.socket = socket.create_connection(address, timeout=60)
        self.file = self.socket.makefile("rb")
        assert self.reply().startswith("220 ")
        if login:
            assert self.ask(f"USER {USER}").startswith("331 ")
            assert self.ask(f"PASS {PASSWORD}").startswith("230 ")

    def reply(self):
        """The last line of the next reply, or of several lines joined with newlines; empty at the end."""
        line = self.file.readline().decode()
        if line[3:4] != "-":
            return line.rstrip("\r\n")
        lines = [line]
        while not lines[-1].startswith(f"{line[:3]} "):
            lines.append(self.file.readline().decode())
            assert lines[-1], lines
        return "".join(lines).replace("\r\n", "\n").rstrip("\n")

    def send(self, line):
        data = line if isinstance(line, bytes) else line.encode() + b"\r\n"
        self.socket.sendall(data)

    def ask(self, line):
        self.send(line)
        return self.reply()

    def code(self, line):
        return int(self.ask(line)[:3])

    def data(self, buffer=None):
        """Opens a passive data connection. `buffer`: bytes that the kernel keeps for each direction."""
        reply = self.ask("EPSV")
        assert reply.startswith("229 "), reply
        port = int(reply.split("|||")[1].split("|")[0])
        connection = socket.socket(self.socket.family)
        connection.settimeout(60)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF) if buffer else ():
            connection.setsockopt(socket.SOL_SOCKET, option, buffer)
        connection.connect((self.socket.getpeername()[0], port))
        return connection

    def leave(self, rudely=False):
        """Ends the control connection, `rudely` with a reset."""
        self.file.close()
        reset(self.socket) if rudely else self.socket.close()


def reset(connection):
    """Closes a connection so that the other side sees an error."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def put(session, path, content, command="STOR", **options):
    """Writes a file. Returns the last reply."""
    return session.storbinary(f"{command} {path}", io.BytesIO(content), **options)


def get(session, path, **options):
    content = bytearray()
    session.retrbinary(f"RETR {path}", content.extend, **options)
    return bytes(content)


def absent(session, path):
    """True if there is no such file."""
    try:
        session.size(path)
    except ftplib.error_perm as error:
        assert str(error).startswith("550 "), error
        return True
    return False
