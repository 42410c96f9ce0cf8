"""Settings for the clients of this folder, and a secret text with a search for it where it must not be."""

import uuid

import pytest
from conftest import ACCESS, SECRET
from test_objects import MIB, content, keys, read

__all__ = ["ACCESS", "MIB", "REGION", "SECRET", "address", "bodies", "content", "keys", "read", "secret"]

REGION = "us-east-1"


def address(gateway):
    """Returns host and port, for clients that have a separate option for TLS."""
    return gateway.url.removeprefix("http://")


def bodies(secret):
    """Returns contents by name, each with the secret text. Most clients send the last one in parts."""
    text = secret.encode()
    return {
        "small.txt": text,
        "deep/er/medium": text + content(1, 300_000),
        "with space + & ü%25.bin": content(2, 70_000) + text,
        "large.bin": text + content(3, 18 * MIB) + text,
    }


def files_with(text, *folders):
    """Returns the files that contain a text, or have it in their name. A folder may be a file."""
    paths = [path for folder in folders for path in [folder, *folder.rglob("*")] if path.is_file()]
    return [path for path in paths if text in str(path) or text.encode() in path.read_bytes()]


@pytest.fixture
def secret(gateway, home):
    """A text for names and contents. With a key no file of the Hub and of the gateway may contain it.

    Each test leaves an object with this text in its name. Without a key the search must find that name, and a second
    text that is only in the content of the last object. This proves that the search works.
    """
    text, only_content = (f"secret{uuid.uuid4().hex}" for _ in range(2))
    yield text
    gateway.client().put_object(Bucket="data", Key="last", Body=content(8, 1000) + only_content.encode())
    own = [gateway.data, gateway.cache, gateway.access_log, home / "gateway.log"]
    for searched in (text, only_content):
        if gateway.options:
            assert files_with(searched, home / "hub", *own) == []
        else:
            assert files_with(searched, home / "hub") != []
