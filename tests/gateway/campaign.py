#!/usr/bin/env python3
"""Kills a gateway again and again while it works, and checks each time that every object is the old one or the new one.

    tests/gateway/campaign.py [--rounds N] [--seed S] [--plain]

Each round overwrites objects by single requests and by multipart uploads, kills the gateway with SIGKILL at a random
moment, starts it again, repeats what had no answer, and compares all contents. Repeated completions have to give the
answer that the first one would have given.
"""

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

PART = 5 << 20
ERRORS = None


def failures():
    """What a client sees of a gateway that is killed."""
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, ConnectionError


class Writer(threading.Thread):
    """Overwrites one key until it has no answer. `now` and `next` are the contents that the key may have."""

    def __init__(self, gateway, key, seed):
        super().__init__()
        self.client, self.key, self.random = gateway.client(), key, random.Random(seed)
        self.now, self.next, self.completion, self.writes = None, None, None, 0

    def run(self):
        try:
            while True:
                self.step()
                self.now, self.completion = self.next, None
                self.writes += 1
        except failures() as error:
            self.error = error

    def step(self):
        place = {"Bucket": "data", "Key": self.key}
        if self.random.random() < 0.5:
            self.next = self.random.randbytes(self.random.randrange(200_000))
            self.client.put_object(**place, Body=self.next)
            return
        bodies = [self.random.randbytes(PART), self.random.randbytes(self.random.randrange(200_000))]
        upload = self.client.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number, body in enumerate(bodies, 1):
            answer = self.client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        # From here on the object may be the new one.
        self.next, self.completion = b"".join(bodies), {"UploadId": upload, "MultipartUpload": {"Parts": parts}}
        self.client.complete_multipart_upload(**place, **self.completion)

    def check(self, client):
        """Compares the object, and finishes what had no answer."""
        place = {"Bucket": "data", "Key": self.key}
        allowed = [body for body in (self.now, self.next) if body is not None]
        found = content(client, place)
        assert found in allowed or (found is None and self.now is None), f"{self.key} has neither content"
        if self.completion:
            client.complete_multipart_upload(**place, **self.completion)
            assert content(client, place) == self.next, f"{self.key} is not what was completed"


def content(client, place):
    try:
        return client.get_object(**place)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None


def rounds(gateway, count, seed):
    """Runs rounds. Returns their number."""
    choice = random.Random(seed)
    for number in range(count):
        writers = [Writer(gateway, f"{number}/{index}", choice.random()) for index in range(3)]
        [writer.start() for writer in writers]
        time.sleep(choice.uniform(0.05, 1.5))
        gateway.kill()
        [writer.join() for writer in writers]
        gateway.start()
        client = gateway.client()
        [writer.check(client) for writer in writers]
        # The claim of a completion that was killed runs out by itself, and its upload completes all the same.
    return count


def main():
    from conftest import Gateway, Program, run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--plain", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gateway-campaign-") as folder:
        home = Path(folder)
        hub = Program("hugbucket", "hub", "--dir", home / "hub", "--listen", "127.0.0.1:0")
        options = []
        if not arguments.plain:
            run("hfcrypt", "keygen", home / "key")
            options = ["--encryption-key-file", home / "key"]
        gateway = Gateway(home, *options, env={"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_local", "HOME": str(home)})
        try:
            gateway.client().create_bucket(Bucket="data")
            print(f"{rounds(gateway, arguments.rounds, arguments.seed)} rounds passed, seed {arguments.seed}")
        finally:
            gateway.kill()
            hub.stop()


if __name__ == "__main__":
    main()
