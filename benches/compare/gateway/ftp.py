#!/usr/bin/env python3
"""Measures the FTP gateway beside others, in one run on one machine. `run ftp`, beside this file, installs all.

Sides: ours over the embedded Hub, with a key and without; `rclone serve ftp` over a local folder, plainly and through
its `crypt`; vsftpd over a local folder. The Hub is a process of its own. All are asked by the same client, curl, in
clear and over passive connections; small files by Python's ftplib, since curl pauses for up to a second between two
transfers of one session, with some servers. The order of the sides turns from round to round. Printed are medians.

vsftpd has a process for each session, so its CPU time is that of all of them, also of those that have ended.
"""

import argparse
import ftplib
import io
import os
import pwd
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from compare import Sides as HttpSides
from compare import TICK, Cost, Side, cpu, free_port, in_threads, peak, wait_for

SESSIONS, FILES = 8, 400


def with_children(process):
    """User and system seconds of a process and of its children that have ended."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(int(field) for field in fields[11:15]) / TICK


def with_folder(side):
    """Makes the folder that files are stored in."""
    side.url = side.url.replace("http://", "ftp://")
    curl("-Q", "MKD /data", f"{side.url}/")
    return side


class Sides(HttpSides):
    """Starts the sides. Each has a folder `data`, which holds what is written."""

    def all(self):
        sides = {
            "ours, encrypted": lambda home: self.ours(home, True),
            "ours, plain": lambda home: self.ours(home, False),
        }
        if self.arguments.rclone:
            sides["rclone, crypt"] = lambda home: self.rclone(home, True)
            sides["rclone, folder"] = lambda home: self.rclone(home, False)
        if self.arguments.vsftpd:
            sides["vsftpd"] = self.vsftpd
        return sides

    def ours(self, home, encrypted):
        options = ["--allow-bucket-changes", "--passive-ports", "0"]
        return with_folder(super().ours(home, encrypted, "ftp", options))

    def rclone(self, home, encrypted):
        options = ["--passive-port", "32000-32999", "--cache-dir", home / "cache"]
        return with_folder(super().rclone(home, encrypted, "ftp", options))

    def vsftpd(self, home):
        port, files = free_port(), home / "files"
        (files / "data").mkdir(parents=True)
        home.chmod(0o755)
        shutil.chown(files / "data", "ftp")
        settings = {
            "listen": "YES",
            "listen_address": "127.0.0.1",
            "listen_port": port,
            "background": "NO",
            "anonymous_enable": "YES",
            "local_enable": "NO",
            "write_enable": "YES",
            "anon_upload_enable": "YES",
            "anon_other_write_enable": "YES",
            "anon_root": files,
            "no_anon_password": "YES",
            "secure_chroot_dir": home,
            "xferlog_enable": "NO",
            "anon_umask": "022",
            "seccomp_sandbox": "NO",
            "ftp_username": "ftp",
        }
        config = home / "vsftpd.conf"
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        gateway = subprocess.Popen(
            [self.arguments.vsftpd, config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return Side(wait_for(port).replace("http", "ftp"), gateway)


def curl(*options):
    subprocess.run(["curl", "-sf", *map(str, options)], check=True, stdout=subprocess.DEVNULL)


class FtpCost(Cost):
    """As `Cost`, with the CPU time of sessions that have ended."""

    def __init__(self, side, work):
        before = with_children(side.gateway) - cpu(side.gateway)
        super().__init__(side, work)
        # A session ends a moment after its last reply.
        time.sleep(1)
        self.gateway += with_children(side.gateway) - cpu(side.gateway) - before


def measure(side, file, mib):
    gib, found = mib / 1024, {}
    for name, options in (
        ("STOR", ["-T", file, f"{side.url}/data/large"]),
        ("RETR", ["-o", "/dev/null", f"{side.url}/data/large"]),
    ):
        cost = FtpCost(side, lambda options=options: curl(*options))
        found[f"{name} MB/s"] = mib * 1.048576 / cost.seconds
        found[f"{name} CPU s/GiB"], found[f"{name} Hub CPU s/GiB"] = cost.gateway / gib, cost.hub / gib
    found["peak MiB of these"] = peak(side.gateway)
    small, (host, port) = os.urandom(4096), side.url.removeprefix("ftp://").split(":")

    def session(number):
        with ftplib.FTP() as ftp:
            ftp.connect(host, int(port))
            ftp.login()
            for index in range(FILES // SESSIONS):
                ftp.storbinary(f"STOR /data/{number}-{index}", io.BytesIO(small))

    cost = FtpCost(side, lambda: in_threads(SESSIONS, session))
    found["small STOR/s"], found["small STOR CPU ms"] = FILES / cost.seconds, 1000 * cost.gateway / FILES
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--programs", type=Path, required=True, help="folder with hugbucket and hfcrypt, built with --release"
    )
    parser.add_argument("--rclone", help="the program rclone")
    parser.add_argument("--vsftpd", default=shutil.which("vsftpd", path=f"{os.environ['PATH']}:/usr/sbin"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=2048, help="size of the large file")
    arguments = parser.parse_args()
    if arguments.vsftpd and "ftp" not in [user.pw_name for user in pwd.getpwall()]:
        parser.error("vsftpd needs the user ftp")
    sides, results = Sides(arguments).all(), {}
    with tempfile.TemporaryDirectory(prefix="ftp-bench-") as folder:
        file = Path(folder) / "large"
        with open(file, "wb") as large:
            for _ in range(arguments.mib // 16):
                large.write(os.urandom(16 << 20))
        for turn in range(arguments.rounds):
            names = list(sides)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                home = Path(tempfile.mkdtemp(prefix="side-", dir=folder))
                side = sides[name](home)
                try:
                    found = measure(side, file, arguments.mib)
                finally:
                    side.stop()
                    shutil.rmtree(home, ignore_errors=True)
                print(f"{name}, round {turn + 1}: {found}", flush=True)
                for key, value in found.items():
                    results.setdefault(key, {}).setdefault(name, []).append(value)
    print("\n| | " + " | ".join(sides) + " |\n|---|" + "---|" * len(sides))
    for key, values in results.items():
        print(f"| {key} | " + " | ".join(f"{statistics.median(values[name]):.2f}" for name in sides) + " |")


if __name__ == "__main__":
    main()
