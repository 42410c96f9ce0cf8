"""Several gateways with their state in one PostgreSQL database. tests/gateway/postgres starts the server.

Each test has tables of its own.
"""

import os
import subprocess
import threading
import time
import uuid

import pytest
from botocore.exceptions import ClientError
from conftest import ACCESS, BIN, SECRET
from test_multipart import PART, begin, complete, etag_of, part
from test_objects import MIB, content, keys, put, read

SERVER = os.environ.get("HFCRYPT_POSTGRES")
pytestmark = pytest.mark.skipif(not SERVER, reason="needs a PostgreSQL server: run it by tests/gateway/postgres")


def sql(statement):
    """Runs a statement. Returns its rows as text."""
    command = ["psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", SERVER, "--command", statement]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def schema():
    """A schema for the tables of one test."""
    name = f"test_{uuid.uuid4().hex}"
    sql(f"CREATE SCHEMA {name}")
    yield name
    sql(f"DROP SCHEMA {name} CASCADE")


@pytest.fixture
def database(schema):
    return f"{SERVER}?options=-c%20search_path%3D{schema}"


@pytest.fixture
def pair(gateways, database, options):
    """Two gateways that share their state. There is a bucket `data`."""
    both = [gateways("--state", database, *options, name=name) for name in ("one", "two")]
    both[0].client().create_bucket(Bucket="data")
    return both


def in_threads(calls):
    """Runs calls at the same time. Returns each result, or the code of its error."""
    results = [None] * len(calls)

    def run(index, call):
        try:
            results[index] = call()
        except ClientError as error:
            results[index] = error.response["Error"]["Code"]

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(calls)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return results


def test_upload_of_a_killed_gateway_is_completed_by_another(pair):
    one, two = pair
    bodies = [content(1, PART), content(2, PART), content(3, 1000)]
    upload = begin(one.client(), ContentType="x/y", Metadata={"a": "1"})
    parts = [part(one.client(), upload, 1, bodies[0]), part(two.client(), upload, 2, bodies[1])]
    parts.append(part(one.client(), upload, 3, bodies[2]))
    one.kill()
    s3 = two.client()
    assert [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket="data")["Uploads"]] == [upload]
    assert len(s3.list_parts(Bucket="data", Key="k", UploadId=upload)["Parts"]) == 3
    assert complete(s3, upload, parts)["ETag"] == etag_of(*bodies)
    one.start()
    assert complete(one.client(), upload, parts)["ETag"] == etag_of(*bodies), "a repetition has the same answer"
    for gateway in pair:
        answer = gateway.client().get_object(Bucket="data", Key="k")
        assert answer["Body"].read() == b"".join(bodies)
        assert (answer["ETag"], answer["ContentType"], answer["Metadata"]) == (etag_of(*bodies), "x/y", {"a": "1"})


def test_completion_by_a_killed_gateway_is_taken_over(pair):
    one, two = pair
    bodies = [content(number, PART) for number in range(3)]
    for wait in (0.02, 0.08):
        upload = begin(one.client())
        parts = [part(one.client(), upload, number, body) for number, body in enumerate(bodies, 1)]

        def begin_to_complete():
            try:
                complete(one.client(), upload, parts)
            except Exception:
                pass

        thread = threading.Thread(target=begin_to_complete)
        thread.start()
        time.sleep(wait)
        one.kill()
        thread.join()
        # The claim of the dead gateway ends after 10 s.
        assert complete(two.client(), upload, parts)["ETag"] == etag_of(*bodies)
        assert read(two.client(), "k") == b"".join(bodies)
        two.client().delete_object(Bucket="data", Key="k")
        one.start()


def test_concurrent_completions_on_two_gateways_have_one_answer(pair):
    bodies = [content(1, PART), content(2, PART)]
    upload = begin(pair[0].client())
    parts = [part(pair[1].client(), upload, number, body) for number, body in enumerate(bodies, 1)]
    done = lambda gateway: complete(gateway.client(), upload, parts)["ETag"]
    answers = in_threads([lambda gateway=gateway: done(gateway) for gateway in pair * 3])
    assert answers == [etag_of(*bodies)] * 6


def test_compare_and_set_holds_between_writers_of_two_gateways(pair):
    put(pair[0].client(), "counter", b"0")

    def add(gateway):
        """Adds one by compare-and-set, until that has succeeded."""
        s3 = gateway.client()
        for _ in range(500):
            found = s3.get_object(Bucket="data", Key="counter")
            value = int(found["Body"].read())
            try:
                s3.put_object(Bucket="data", Key="counter", Body=b"%d" % (value + 1), IfMatch=found["ETag"])
                return "added"
            except ClientError as error:
                code = error.response["Error"]["Code"]
                assert code in ("PreconditionFailed", "ConditionalRequestConflict"), code
        return "never"

    done = in_threads([lambda gateway=gateway: [add(gateway) for _ in range(3)] for gateway in pair * 4])
    assert done == [["added"] * 3] * 8
    assert read(pair[0].client(), "counter") == read(pair[1].client(), "counter") == b"24"


def test_one_of_many_creates_an_object(pair):
    for round in range(3):
        create = lambda gateway: put(gateway.client(), f"new{round}", b"same", IfNoneMatch="*")
        results = in_threads([lambda gateway=gateway: create(gateway) for gateway in pair * 4])
        codes = [result for result in results if isinstance(result, str)]
        assert len(codes) == 7 and set(codes) <= {"PreconditionFailed", "ConditionalRequestConflict"}, codes


def test_writer_of_a_killed_gateway_blocks_others_for_seconds_only(pair):
    one, two = pair
    stop = threading.Event()

    def write():
        while not stop.is_set():
            try:
                put(one.client(), "k", b"one")
            except Exception:
                return

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.5)
    one.kill()
    stop.set()
    thread.join()
    begun = time.monotonic()
    put(two.client(), "k", b"two")
    assert time.monotonic() - begun < 20 and read(two.client(), "k") == b"two"


@pytest.mark.parametrize("place", ["bucket", "state"])
def test_object_and_its_metadata_are_seen_by_the_other_gateway_at_once(gateways, database, options, place):
    one, two = (gateways("--state", database, "--metadata", place, *options, name=name).client() for name in ("1", "2"))
    one.create_bucket(Bucket="data")
    for number in range(10):
        writer, reader = (one, two) if number % 2 else (two, one)
        tag = put(writer, "k", b"%d" % number, ContentType=f"x/{number}", Metadata={"n": str(number)})["ETag"]
        head = reader.head_object(Bucket="data", Key="k")
        assert (head["ETag"], head["ContentType"], head["Metadata"]) == (tag, f"x/{number}", {"n": str(number)})
        assert reader.list_objects_v2(Bucket="data")["Contents"][0]["ETag"] == tag
    one.delete_object(Bucket="data", Key="k")
    assert keys(two) == []


def test_nothing_acknowledged_is_lost_with_a_server_that_crashes(pair):
    one, two = (gateway.client() for gateway in pair)
    bodies = [content(1, PART), content(2, 1000)]
    upload = begin(one)
    parts = [part(one, upload, 1, bodies[0])]
    subprocess.run([*os.environ["HFCRYPT_POSTGRES_CTL"].split(), "stop", "-m", "immediate"], check=True)
    try:
        with pytest.raises(ClientError) as refused:
            begin(two)
        answer = refused.value.response
        assert (answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"]) == ("ServiceUnavailable", 503)
    finally:
        subprocess.run([*os.environ["HFCRYPT_POSTGRES_CTL"].split(), "start"], check=True)
    parts.append(part(two, upload, 2, bodies[1]))
    assert complete(one, upload, parts)["ETag"] == etag_of(*bodies)
    assert read(two, "k") == b"".join(bodies)


def test_database_holds_no_names_if_there_is_a_key(pair, options, schema):
    secret = f"secret{uuid.uuid4().hex}"
    s3 = pair[0].client()
    put(s3, secret, b"body", Metadata={"kind": secret})
    upload = begin(s3, f"{secret}/parts", Metadata={"kind": secret})
    part(s3, upload, 1, b"part", f"{secret}/parts")
    tables = ("records", "uploads", "parts")
    rows = "".join(sql(f"SELECT encode(row, 'escape') FROM {schema}.hugbucket_{table}") for table in tables)
    assert len(rows) > 300 and (secret in rows) == (not options)


def start(*options, **env):
    """Starts a gateway that can't start. Returns its exit code and stderr."""
    env = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, **env}
    command = [BIN / "hugbucket", "s3", "--listen", "127.0.0.1:0", *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_password_is_in_no_message(hub):
    wrong = SERVER.replace("@127.0.0.1", "x@127.0.0.1")
    code, message = start("--state", wrong)
    assert code == 5 and "password authentication failed" in message
    password = SERVER.split("@")[0].split(":")[2]
    assert password not in message
    code, message = start(HUGBUCKET_STATE=wrong)
    assert code == 5 and password not in message
    for bad in ("postgres://user:sesame@127.0.0.1:notaport/x", "mysql://user:sesame@host/x", "sesame"):
        code, message = start("--state", bad)
        assert code == 2 and "sesame" not in message, message


def test_certificate_of_the_server_is_checked(gateways, hub, database):
    secured = f"{database}&sslmode=require"
    code, message = start("--state", secured)
    assert code == 5 and "certificate" in message
    gateway = gateways("--state", secured, env={"SSL_CERT_FILE": os.environ["HFCRYPT_POSTGRES_CERT"]})
    s3 = gateway.client()
    s3.create_bucket(Bucket="data")
    put(s3, "k", content(1, MIB))
    assert read(s3, "k") == content(1, MIB)
    ours = "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name = 'hugbucket'"
    assert set(sql(ours).split()) == {"t"}
