"""The gateway while its Hub refuses, dies or loses bytes, and while clients leave, are slow or overwrite each other.

GATEWAY_FAULT_ROUNDS=N makes random work N times longer. With N above 1, what takes minutes runs too: waits that no
option shortens. After each test, no gateway may have answered with status 500 or panicked.
"""

import hashlib
import itertools
import json
import os
import random
import socket
import threading
import time
from pathlib import Path

import pytest
from botocore.exceptions import BotoCoreError, ClientError, IncompleteReadError, ResponseStreamingError
from campaign import Writer, failures
from faults import CUTS, KINDS, REFUSALS, HubProxy, Talk, Wire, together
from proxy import ANSWERED, BEFORE, HANDLED
from test_multipart import PART, begin, complete, etag_of, part
from test_objects import MIB, content, keys, put, read

ROUNDS = int(os.environ.get("GATEWAY_FAULT_ROUNDS", "1"))
only_long = pytest.mark.skipif(ROUNDS < 2, reason="takes minutes: set GATEWAY_FAULT_ROUNDS to 2 or more")
# What a busy or broken Hub becomes (docs/gateway.md, "Errors").
CODES = {fault: "SlowDown" if fault.startswith("429") else "ServiceUnavailable" for fault in (*REFUSALS, *CUTS)}


@pytest.fixture
def proxy(hub):
    proxy = HubProxy(hub)
    yield proxy
    proxy.rule = None
    proxy.close()


@pytest.fixture
def wire(proxy, monkeypatch):
    wire = Wire(proxy.url)
    monkeypatch.setenv("HF_ENDPOINT", wire.url)
    yield wire
    wire.every = 0
    wire.close()


@pytest.fixture
def gateways(wire, gateways):
    """Gateways that reach the Hub through the wire and the proxy, and keep no data that they read."""
    started = []

    def start(*options, **named):
        started.append(gateways("--cache-size", "0", *options, **named))
        return started[-1]

    yield start
    for gateway in started:
        gateway.stop()
        answers = [json.loads(line) for line in gateway.access_log.read_text().splitlines()]
        wrong = [answer for answer in answers if answer["status"] == 500]
        assert not wrong, f"status 500 means a bug of the gateway: {wrong}"
        assert "panicked" not in Path(gateway.log.name).read_text()


def upload(s3, bodies, key):
    """Uploads parts. Returns the arguments of their completion."""
    number = begin(s3, key)
    return number, [part(s3, number, at, body, key) for at, body in enumerate(bodies, 1)]


def completion(gateway, key, number, parts):
    """Returns a request that completes an upload, which the test sends itself."""
    listed = "".join(f"<Part><PartNumber>{p['PartNumber']}</PartNumber><ETag>{p['ETag']}</ETag></Part>" for p in parts)
    xml = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
    return Talk(gateway, "POST", f"/data/{key}?uploadId={number}", xml)


@pytest.fixture
def sides(hub, gateways, key):
    """Starts a plain and an encrypted gateway, which work at the same time. Each has a proxy of its own."""
    proxies = []

    def start(name=""):
        for side, options in {"plain": [], "encrypted": ["--encryption-key-file", key]}.items():
            proxies.append(HubProxy(hub))
            # Uploads to dozens of buckets hang at the same time: each bucket needs a session.
            options = [*options, "--upload-memory", "4Gi"]
            yield side, proxies[-1], gateways(*options, name=f"{side}{name}", env={"HF_ENDPOINT": proxies[-1].url})

    yield start
    for proxy in proxies:
        proxy.rule = None
        proxy.close()


# --- The Hub refuses, or loses requests and answers -------------------------------------------------------------------


def test_all_requests_succeed_if_each_request_to_the_hub_fails_once(sides):
    faults = (*REFUSALS, *CUTS)

    def single(s3, bucket):
        # Each bucket has tokens, commits and lists of its own.
        place, body = {"Bucket": bucket, "Key": "k"}, content(bucket, 70_000)
        s3.create_bucket(Bucket=bucket)
        s3.put_object(**place, Body=body)
        assert s3.get_object(**place)["Body"].read() == body
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 1

    def multipart(s3, place):
        bodies = [content(1, PART), content(2, 70_000)]
        s3.create_bucket(Bucket=place["Bucket"])
        number = s3.create_multipart_upload(**place)["UploadId"]
        parts = [
            {"PartNumber": at, "ETag": s3.upload_part(**place, UploadId=number, PartNumber=at, Body=body)["ETag"]}
            for at, body in enumerate(bodies, 1)
        ]
        done = s3.complete_multipart_upload(**place, UploadId=number, MultipartUpload={"Parts": parts})
        assert done["ETag"] == etag_of(*bodies) and s3.get_object(**place)["Body"].read() == b"".join(bodies)

    def work(side, proxy, gateway):
        proxy.fail_each_once(faults)
        buckets = [f"{side}-{number}" for number in range(len(faults))]
        together(
            lambda: multipart(gateway.client(), {"Bucket": f"{side}-parts", "Key": "k"}),
            *(lambda bucket=bucket: single(gateway.client(), bucket) for bucket in buckets),
        )
        for kind in KINDS:
            assert {fault for at, fault in proxy.failed if at == kind} == set(faults), (side, kind)

    together(*(lambda side=side: work(*side) for side in sides()))


# Operations, and the kind of their requests to the Hub that always fails. All other kinds pass.
AT_THE_HUB = [
    ("put", "commit"), ("put", "token"), ("part", "token"), ("complete", "commit"), ("complete", "paths-info"),
    ("get", "paths-info"), ("list", "listing"),
]
# Failures after which the gateway tries again for longer than half a minute: those of tokens, and refusals with
# Retry-After. A commit is tried again for a few seconds only.
LONG_WAITS = [
    (name, kind, fault)
    for (name, kind), fault in itertools.product(AT_THE_HUB, REFUSALS)
    if kind == "token" or (fault == "429 later" and kind != "commit")
]
IN_STORAGE = [
    ("put", "xorb"), ("put", "shard"), ("part", "xorb"), ("complete", "reconstruction"), ("complete", "xorb"),
    ("get", "reconstruction"), ("get", "data"),
]


class Lasting:
    """An operation on a bucket of its own. All its requests of one kind to the Hub fail.

    The client has its default timeouts.
    """

    def __init__(self, side, gateway, name, kind, fault):
        self.s3, self.name, self.kind, self.fault = gateway.client(), name, kind, fault
        self.bucket = f"{side}-{name}-{kind}-{fault}".replace(" ", "-")
        self.place = {"Bucket": self.bucket, "Key": "k"}

    def prepare(self):
        self.s3.create_bucket(Bucket=self.bucket)
        # A bucket without a write has no token for one.
        if self.kind != "token":
            self.old = self.s3.put_object(**self.place, Body=b"old")["ETag"]
        self.upload, self.parts = self.s3.create_multipart_upload(**self.place)["UploadId"], []
        if self.name == "complete":
            # If there are several parts, the gateway reads them back and writes the object once more.
            bodies = [content(self.bucket, PART), b"new"] if (self.name, self.kind) in IN_STORAGE else [b"new"]
            self.parts = [self.send_part(at, body) for at, body in enumerate(bodies, 1)]

    def send_part(self, number, body):
        answer = self.s3.upload_part(**self.place, UploadId=self.upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def work(self):
        match self.name:
            case "put":
                return self.s3.put_object(**self.place, Body=b"new")
            case "part":
                return self.send_part(1, b"new")
            case "complete":
                done = {"UploadId": self.upload, "MultipartUpload": {"Parts": self.parts}}
                return self.s3.complete_multipart_upload(**self.place, **done, IfMatch=self.old)
            case "get":
                return self.s3.get_object(**self.place)["Body"].read()
            case "list":
                return self.s3.list_objects_v2(Bucket=self.bucket)

    def fails_rightly(self):
        """Returns the bucket and the error if it isn't the right one, else None."""
        try:
            return self.bucket, self.work()
        except ClientError as error:
            status, code = error.response["ResponseMetadata"]["HTTPStatusCode"], error.response["Error"]["Code"]
            # The answer to a completion begins after 10 s, with the status 200. boto3 shows the status 500 for it.
            is_begun = self.name == "complete" and self.kind != "commit"
            is_right = code == CODES[self.fault] and (status == 503 or is_begun)
            return None if is_right else (self.bucket, error)
        except (ResponseStreamingError, IncompleteReadError) as error:
            # The content is read after the answer has begun.
            return None if self.kind in ("data", "reconstruction") else (self.bucket, error)
        except BotoCoreError as error:
            return self.bucket, error

    def has_changed_nothing(self):
        """Returns the bucket and what has changed, else None. The operation has to succeed now."""
        found = [entry["Key"] for entry in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])]
        if found != ([] if self.kind == "token" else ["k"]):
            return self.bucket, found
        if found and (body := self.s3.get_object(**self.place)["Body"].read()) != b"old":
            return self.bucket, body
        parts = self.s3.list_parts(**self.place, UploadId=self.upload).get("Parts", [])
        if len(parts) != len(self.parts):
            return self.bucket, parts
        try:
            self.work()
        except (BotoCoreError, ClientError) as error:
            return self.bucket, "failed again", error


def fail_all(cases, proxies):
    """Runs all cases at the same time, because each takes until the gateway gives up."""
    wrong = together(*(case.fails_rightly for case in cases))
    for proxy in proxies:
        proxy.rule = None
    wrong = [case for case in wrong + together(*(case.has_changed_nothing for case in cases)) if case]
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("is_long", [False, pytest.param(True, marks=only_long)], ids=["short", "long"])
def test_lasting_failure_of_the_hub_is_reported_as_such_and_changes_nothing(sides, is_long):
    cases, proxies = [], []
    wanted = [(*what, fault) for what, fault in itertools.product(AT_THE_HUB, REFUSALS)]
    wanted = [failure for failure in wanted if (failure in LONG_WAITS) == is_long]
    for side, proxy, gateway in sides():
        own = [Lasting(side, gateway, *failure) for failure in wanted]
        together(*(case.prepare for case in own))
        failing = {case.bucket: case for case in own}

        def rule(request, kind, failing=failing):
            case = next((failing[part] for part in request.start.split("/") if part in failing), None)
            return case.fault if case and case.kind == kind else None

        proxy.rule = rule
        cases, proxies = cases + own, [*proxies, proxy]
    fail_all(cases, proxies)


@only_long
@pytest.mark.parametrize("fault", ["429", "503", "refuse", "cut answer"])
def test_lasting_failure_of_storage_is_reported_as_such_and_changes_nothing(sides, fault):
    cases, proxies = [], []
    # An upload whose answer is cut has been stored, so it may succeed when it is repeated.
    failing = [(name, kind) for name, kind in IN_STORAGE if fault != "cut answer" or kind in ("reconstruction", "data")]
    for number, (name, kind) in enumerate(failing):
        for side, proxy, gateway in sides(number):
            cases.append(Lasting(side, gateway, name, kind, fault))
            cases[-1].prepare()
            proxy.rule = lambda request, at, kind=kind: fault if at == kind else None
            proxies.append(proxy)
    fail_all(cases, proxies)


# --- The Hub is killed ------------------------------------------------------------------------------------------------

# When the Hub is killed: at a request of a kind, or at any time.
MOMENTS = [
    None, ("commit", HANDLED), ("xorb", BEFORE), ("shard", HANDLED), ("commit", BEFORE), None,
    ("reconstruction", HANDLED), ("commit", ANSWERED), ("data", BEFORE), ("xorb", HANDLED), ("paths-info", HANDLED),
    ("shard", BEFORE),
]
# Number of moments in a short run, for each kind of bucket.
MOMENTS_OF_ONE = 3


class Overwriter(Writer):
    """Overwrites one key until it is told to stop, or until an answer takes longer than two seconds.

    Its last write may be there or not. A completion that had no answer is repeated.
    """

    def __init__(self, gateway, *arguments):
        super().__init__(gateway, *arguments)
        # The gateway itself waits for the Hub longer than the Hub is away.
        self.client, self.is_over = gateway.client(read_timeout=2), threading.Event()

    def run(self):
        try:
            while not self.is_over.is_set():
                self.step()
                self.now, self.completion = self.next, None
                self.writes += 1
        except failures() as error:
            self.error = error


def test_object_is_old_or_new_after_sigkill_of_the_hub_at_any_time(proxy, hub, gateway, s3):
    choice, is_encrypted, writes, broken = random.Random(1), bool(gateway.options), 0, 0
    # A plain bucket meets other moments than an encrypted one, in a short run.
    moments = MOMENTS * ROUNDS if ROUNDS > 1 else MOMENTS[is_encrypted * MOMENTS_OF_ONE :][:MOMENTS_OF_ONE]
    for number, moment in enumerate(moments):
        writers = [Overwriter(gateway, f"{number}/{index}", choice.random()) for index in range(3)]
        killed = threading.Event()

        def kill():
            hub.kill()
            killed.set()

        for writer in writers:
            writer.now = content(writer.key, 1000)
            put(s3, writer.key, writer.now)
            writer.start()
        try:
            if moment:
                proxy.set(*moment, choice.randrange(3), kill)
                assert killed.wait(30), moment
            else:
                time.sleep(choice.uniform(0.05, 1))
                kill()
            time.sleep(choice.uniform(0, 4))
            hub.start()
            proxy.follow(hub)
            time.sleep(choice.uniform(0, 0.5))
        finally:
            [writer.is_over.set() for writer in writers]
            [writer.join() for writer in writers]
        # The gateway was not restarted.
        [writer.check(s3) for writer in writers]
        writes += sum(writer.writes for writer in writers)
        broken += sum(hasattr(writer, "error") for writer in writers)
    assert writes and broken, "no write had an answer, or all had"


# --- Connections to the Hub end early ---------------------------------------------------------------------------------


# Content of an object that doesn't exist.
ABSENT = "absent"


def attempt(call):
    """Returns the result of a call, ABSENT, or None if it failed as a client sees a busy or broken gateway."""
    try:
        return call()
    except failures() as error:
        code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
        assert code in ("", "NoSuchKey", "ServiceUnavailable", "SlowDown"), error
        return ABSENT if code == "NoSuchKey" else None


def test_body_is_whole_or_short_if_connections_end_anywhere(wire, gateway, s3):
    """Requests and answers end in the middle of a body. A read may end short, but never has a wrong byte."""
    large = content(0, 2 * MIB)
    put(s3, "read", large)
    wire.every = 4 * MIB

    def work(seed):
        client, key, possible, whole = gateway.client(), f"k{seed}", [ABSENT], 0
        for number in range(2 * ROUNDS):
            new = content(10 * number + seed, MIB)
            possible = [new] if attempt(lambda: put(client, key, new)) else [*possible, new]
            assert attempt(lambda: read(client, key)) in [None, *possible]
            found = attempt(lambda: read(client, "read"))
            assert found in (None, large)
            whole += found is not None
        return key, possible, whole

    results = together(*(lambda seed=seed: work(seed) for seed in range(1, 5)))
    wire.every = 0
    assert wire.count and sum(whole for *_, whole in results), "too few ends or reads to tell"
    assert read(s3, "read") == large
    for key, possible, _ in results:
        assert attempt(lambda: read(s3, key)) in possible


# --- Clients that leave or are slow -----------------------------------------------------------------------------------

# Limits so small that a few leaked requests, uploads or connections reach them.
SMALL = ("--max-requests", "8", "--max-connections", "16", "--upload-memory", "48Mi")


def usage(gateway):
    """Returns the number of open files, and resident memory in MiB."""
    process = Path("/proc") / str(gateway.process.pid)
    pages = int((process / "statm").read_text().split()[1])
    return len(list((process / "fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE") // MIB


@pytest.fixture
def small(gateway, gateways):
    return gateways(*gateway.options, *SMALL, name="small")


@pytest.mark.parametrize("framed", [False, True], ids=["length", "aws-chunked"])
def test_clients_that_leave_store_nothing_and_leave_nothing_open(small, s3, framed):
    s3, body = small.client(), content(1, 300_000)
    put(s3, "read", content(2, 4 * MIB))
    number = begin(s3, "parts")
    part_path = f"/data/parts?uploadId={number}&partNumber="

    def leave(at):
        """Leaves a request in a way that depends on its number."""
        rudely, share = at % 2 == 0, (at % 7 + 1) / 8
        match at % 4:
            case 0:
                Talk(small, "PUT", f"/data/cut-{at}", body, framed).send(share).leave(rudely)
            case 1:
                Talk(small, "PUT", f"{part_path}{at}", body, framed).send(share).leave(not rudely)
            case 2:
                Talk(small, "PUT", f"/data/sent-{at}", body, framed).send().leave(rudely)
            case 3:
                talk = Talk(small, "GET", "/data/read").send()
                assert talk.status() == 200
                talk.leave(not rudely)

    files = usage(small)[0]
    [leave(at) for at in range(40)]
    memory = usage(small)[1]
    [leave(at) for at in range(40, 200)]
    began = time.monotonic()
    put(s3, "after", b"x")
    assert read(s3, "after") == b"x" and time.monotonic() - began < 5
    end = time.monotonic() + 20
    # Connections to the Hub are kept, but few of them.
    while usage(small)[0] > files + 20 and time.monotonic() < end:
        time.sleep(0.1)
    assert usage(small)[0] <= files + 20 and usage(small)[1] <= memory + 32
    sent = [key for key in keys(s3) if key.startswith("sent-")]
    assert sorted(keys(s3)) == sorted(["after", "read", *sent]), "an upload that was cut was stored"
    assert all(read(s3, key) == body for key in sent)
    assert "Parts" not in s3.list_parts(Bucket="data", Key="parts", UploadId=number)
    # Whole requests of the same form are stored.
    for path in (f"{part_path}1", "/data/whole"):
        assert Talk(small, "PUT", path, body, framed).send().status() == 200
    assert read(s3, "whole") == body and len(s3.list_parts(Bucket="data", Key="parts", UploadId=number)["Parts"]) == 1


def test_completion_goes_on_if_its_client_leaves(gateway, s3):
    bodies = [content(1, PART), b"last"]
    number, parts = upload(s3, bodies, "k")
    [completion(gateway, "k", number, parts).send().leave(rudely) for rudely in (True, False)]
    end = time.monotonic() + 20
    while not keys(s3):
        assert time.monotonic() < end, "the upload was not completed"
        time.sleep(0.05)
    assert complete(s3, number, parts)["ETag"] == etag_of(*bodies) and read(s3, "k") == b"".join(bodies)


def test_completion_whose_body_is_cut_completes_nothing(gateway, s3):
    ready = upload(s3, [b"x"], "k")
    for share in (0, 0.5, 0.99):
        [completion(gateway, "k", *ready).send(share).leave(rudely) for rudely in (True, False)]
        # This client ends its request early, but waits for the answer.
        talk = completion(gateway, "k", *ready).send(share)
        talk.connection.shutdown(socket.SHUT_WR)
        assert talk.status() == 400
    assert keys(s3) == []
    assert complete(s3, *ready, "k")["ETag"] == etag_of(b"x") and read(s3, "k") == b"x"


def test_slow_clients_do_not_block_others(gateway, s3):
    body, seconds = content(1, 60), 2
    put(s3, "read", content(2, 2 * MIB))
    writers = [Talk(gateway, "PUT", f"/data/slow-{at}", body, framed=at % 2 == 0) for at in range(10)]
    readers = [Talk(gateway, "GET", "/data/read").send() for _ in range(10)]
    [writer.send(0) for writer in writers]
    left = [writer.body for writer in writers]
    end = time.monotonic() + seconds
    while any(left):
        for at, writer in enumerate(writers):
            # The last bytes are sent when others have worked for some time.
            count = 5 if len(left[at]) > 5 or time.monotonic() > end else 0
            writer.connection.sendall(left[at][:count])
            left[at] = left[at][count:]
        [reader.connection.recv(10) for reader in readers]
        began = time.monotonic()
        put(s3, "fast", body)
        assert read(s3, "fast") == body and time.monotonic() - began < 2
    assert [writer.status() for writer in writers] == [200] * len(writers)
    assert all(read(s3, f"slow-{at}") == body for at in range(len(writers)))
    [talk.leave() for talk in writers + readers]


def test_slow_uploads_of_large_objects_hold_no_memory(gateway, gateways, s3):
    """More of them than there is memory for, each with a part of its body. Others are as fast as without them."""
    gateway = gateways(*gateway.options, "--upload-memory", "96Mi", name="slow")
    slow = [Talk(gateway, "PUT", f"/data/slow-{at}", content(at, 48 * MIB)).send(0.1) for at in range(12)]
    client, began = gateway.client(read_timeout=30), time.monotonic()
    for size in (1, MIB, 30 * MIB):
        put(client, "k", content(size, size))
        assert read(client, "k") == content(size, size)
    assert time.monotonic() - began < 15
    slow[0].connection.sendall(slow[0].body[int(len(slow[0].body) * 0.1) :])
    assert slow[0].status() == 200 and read(client, "slow-0") == content(0, 48 * MIB)
    [talk.leave() for talk in slow]


@only_long
def test_stalled_client_is_ended_after_a_minute(gateway, s3):
    def stall(framed):
        talk, began = Talk(gateway, "PUT", "/data/k", content(1, 100_000), framed), time.monotonic()
        talk.connection.settimeout(90)
        assert talk.send(0.5).status() == 400
        assert 55 < time.monotonic() - began < 75
        talk.leave()

    together(lambda: stall(framed=False), lambda: stall(framed=True))
    assert keys(s3) == []


# --- Concurrent completions, reads and writes -------------------------------------------------------------------------


def test_concurrent_completions_have_one_answer_while_the_hub_fails_at_random(proxy, gateway, s3):
    for number in range(ROUNDS):
        key, bodies = f"k{number}", [content(number, PART), content(-number, 1000)]
        ready = upload(s3, bodies, key)
        proxy.fail_at_random((*REFUSALS, *CUTS), 0.2)

        def completed():
            client, tags = gateway.client(), []
            for _ in range(2):
                answer = attempt(lambda: complete(client, *ready, key))
                tags += [answer["ETag"]] if answer else []
            return tags

        tags = sum(together(*[completed] * 4), [])
        proxy.rule = None
        assert complete(s3, *ready, key)["ETag"] == etag_of(*bodies)
        assert set(tags) <= {etag_of(*bodies)} and proxy.failed
        assert read(s3, key) == b"".join(bodies)
        assert s3.head_object(Bucket="data", Key=key)["ETag"] == etag_of(*bodies)


def test_read_during_overwrites_has_one_whole_version(gateway, s3):
    written, end = {}, time.monotonic() + 2 * ROUNDS

    def write(seed):
        client, choice = gateway.client(), random.Random(seed)
        while time.monotonic() < end:
            body = choice.randbytes(choice.choice([0, 100, 70_000, MIB]))
            written[f'"{hashlib.md5(body).hexdigest()}"'] = body
            put(client, "k", body)

    def write_parts():
        client, choice = gateway.client(), random.Random(0)
        while time.monotonic() < end:
            bodies = [choice.randbytes(PART), choice.randbytes(1000)]
            written[etag_of(*bodies)] = b"".join(bodies)
            complete(client, *upload(client, bodies, "k"), "k")

    def watch():
        client, seen = gateway.client(), set()
        while time.monotonic() < end:
            answer = client.get_object(Bucket="data", Key="k")
            assert answer["Body"].read() == written[answer["ETag"]]
            seen.add(answer["ETag"])
        return len(seen)

    put(s3, "k", b"")
    written[f'"{hashlib.md5(b"").hexdigest()}"'] = b""
    seen = together(lambda: write(1), lambda: write(2), write_parts, watch, watch)[3:]
    assert min(seen) > 2, "readers saw too few versions to tell"
