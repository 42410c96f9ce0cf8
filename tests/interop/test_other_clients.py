"""Hub clients other than the official Python one against the embedded Hub: npm `@huggingface/hub` and opendal."""

import json
import random
import shutil

import pytest

from conftest import CI, ROOT, run

NODE = ROOT / ".venv" / "node"
needs_node = pytest.mark.skipif(
    not CI and not (shutil.which("node") and (NODE / "node_modules").exists()),
    reason="no JavaScript client here: `scripts/test interop` installs it",
)


@needs_node
def test_javascript_client_works_on_a_bucket(hub):
    script = ROOT / "tests/interop/node/client.mjs"
    seen = json.loads(run("node", script, NODE, hub.url, "hf_local", "local/js").stdout)
    assert seen == {
        "level": ["directory d"],
        "below": ["file d/big", "file d/empty"],
        "info": [{"size": 300_000, "xet": True}, {"size": 0, "xet": True}, None],
        "whole": True,
        "range": True,
        "empty": 0,
        "missing": None,
        "copied": True,
        "left": ["file copy"],
        "gone": 404,
    }


def test_opendal_works_on_a_bucket(api, hub):
    import opendal
    from opendal.exceptions import NotFound

    # opendal creates no buckets, and its service for the Hub copies nothing.
    api.create_bucket("local/dal", private=True)
    dal = opendal.Operator("hf", repo_type="bucket", repo_id="local/dal", endpoint=hub.url, token="hf_local")
    content = random.Random(1).randbytes(300_000)
    dal.write("d/big", content)
    dal.write("d/empty", b"")
    assert sorted(entry.path for entry in dal.list("d/")) == ["d/big", "d/empty"]
    assert sorted(entry.path for entry in dal.scan("") if not entry.path.endswith("/")) == ["d/big", "d/empty"]
    assert dal.stat("d/big").content_length == len(content)
    assert dal.stat("d/empty").content_length == 0
    with pytest.raises(NotFound):
        dal.stat("d/none")
    assert bytes(dal.read("d/big")) == content
    assert bytes(dal.read("d/empty")) == b""
    with dal.open("d/big", "rb") as file:
        file.seek(100_000)
        assert file.read(50_000) == content[100_000:150_000]
    dal.delete("d/big")
    assert not dal.exists("d/big")
    assert [entry.path for entry in api.list_bucket_tree("local/dal")] == ["d/empty"]
