"""Python clients with their default settings: each writes, lists, reads ranges, overwrites, copies and removes."""

import random
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pytest
from settings import ACCESS, MIB, REGION, SECRET, address, bodies, content, keys, read, secret  # noqa: F401

# Names in the environment, for clients that have no option for them.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": REGION}


def test_obstore(s3, gateway, secret):
    import obstore
    from obstore.exceptions import AlreadyExistsError
    from obstore.store import S3Store

    store = S3Store(
        "data", endpoint=gateway.url, access_key_id=ACCESS, secret_access_key=SECRET, region=REGION,
        client_options={"allow_http": True},
    )
    files = {f"{secret}/{name}": body for name, body in bodies(secret).items()}
    for name, body in files.items():
        obstore.put(store, name, body)
        assert bytes(obstore.get(store, name).bytes()) == body == read(s3, name)
    listed = {entry["path"]: entry["size"] for batch in obstore.list(store) for entry in batch}
    assert listed == {name: len(body) for name, body in files.items()}
    level = obstore.list_with_delimiter(store, secret)
    assert [str(prefix) for prefix in level["common_prefixes"]] == [f"{secret}/deep"] and len(level["objects"]) == 3
    large, body = f"{secret}/large.bin", files[f"{secret}/large.bin"]
    assert bytes(obstore.get_range(store, large, start=70_000, end=9 * MIB)) == body[70_000 : 9 * MIB]
    starts = [0, 5, 65_536, 8 * MIB, len(body) - 10]
    ranges = obstore.get_ranges(store, large, starts=starts, ends=[start + 10 for start in starts])
    assert [bytes(part) for part in ranges] == [body[start : start + 10] for start in starts]
    assert obstore.head(store, large)["e_tag"] == s3.head_object(Bucket="data", Key=large)["ETag"]
    with pytest.raises(AlreadyExistsError):
        obstore.put(store, large, b"x", mode="create")
    obstore.put(store, large, content(4, 6 * MIB), attributes={"Content-Type": "a/b", "user": "me"}, use_multipart=True)
    assert read(s3, large) == content(4, 6 * MIB), "an overwrite"
    assert obstore.get(store, large).attributes == {"Content-Type": "a/b", "user": "me"}
    obstore.copy(store, large, "copy")
    obstore.rename(store, "copy", "moved")
    assert bytes(obstore.get(store, "moved").bytes()) == content(4, 6 * MIB) and "copy" not in keys(s3)
    obstore.delete(store, [*files, "missing"])
    assert keys(s3) == ["moved"]
    obstore.put(store, f"{secret}/small.txt", secret.encode())


def test_opendal(s3, gateway, secret):
    import opendal

    store = opendal.Operator(
        "s3", bucket="data", endpoint=gateway.url, access_key_id=ACCESS, secret_access_key=SECRET, region=REGION
    )
    files = {f"{secret}/{name}": body for name, body in bodies(secret).items()}
    for name, body in files.items():
        store.write(name, body)
        assert bytes(store.read(name)) == body == read(s3, name)
    assert {entry.path for entry in store.scan("") if not entry.path.endswith("/")} == set(files)
    assert f"{secret}/deep/" in {entry.path for entry in store.list(f"{secret}/")}
    large, body = f"{secret}/large.bin", files[f"{secret}/large.bin"]
    assert store.stat(large).content_length == len(body)
    with store.open(large, "rb") as file:
        file.seek(9 * MIB)
        assert file.read(100) == body[9 * MIB :][:100]
    with store.open(large, "wb") as file:
        for _ in range(3):
            file.write(content(5, 6 * MIB))
    assert read(s3, large) == 3 * content(5, 6 * MIB)
    store.copy(large, "copy")
    assert read(s3, "copy") == 3 * content(5, 6 * MIB)
    store.create_dir("folder/")
    assert store.exists("folder/") and not store.exists("missing")
    store.delete("copy")
    store.remove_all("folder/")
    store.remove_all(f"{secret}/deep/")
    assert set(keys(s3)) == {name for name in files if "deep" not in name}


def test_polars(s3, gateway, secret):
    import polars

    options = {
        "aws_endpoint_url": gateway.url, "aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET,
        "aws_region": REGION, "aws_allow_http": "true",
    }
    random.seed(1)
    rows = 300_000
    table = polars.DataFrame({"n": range(rows), "x": [random.random() for _ in range(rows)], "text": [secret] * rows})
    table.write_parquet(f"s3://data/{secret}/one.parquet", storage_options=options, compression="uncompressed")
    table.lazy().sink_parquet(f"s3://data/{secret}/two.parquet", storage_options=options, row_group_size=50_000)
    assert polars.read_parquet(f"s3://data/{secret}/one.parquet", storage_options=options).equals(table)
    both = polars.scan_parquet(f"s3://data/{secret}/*.parquet", storage_options=options)
    assert both.select(polars.len()).collect().item() == 2 * rows
    two = polars.scan_parquet(f"s3://data/{secret}/two.parquet", storage_options=options)
    assert two.filter(polars.col("n") == 77_777).select("x").collect().item() == table["x"][77_777]
    table.head(3).write_parquet(f"s3://data/{secret}/one.parquet", storage_options=options)
    assert polars.read_parquet(f"s3://data/{secret}/one.parquet", storage_options=options).equals(table.head(3))
    table.head(5).write_csv(f"s3://data/{secret}/t.csv", storage_options=options)
    assert polars.scan_csv(f"s3://data/{secret}/t.csv", storage_options=options).collect().equals(table.head(5))
    assert set(keys(s3)) == {f"{secret}/{name}" for name in ("one.parquet", "two.parquet", "t.csv")}
    parts = polars.PartitionBy(f"s3://data/{secret}/parts/", key="part")
    thirds = table.with_columns(part=polars.col("n") % 3)
    thirds.lazy().sink_parquet(parts, storage_options=options)
    again = polars.scan_parquet(f"s3://data/{secret}/parts/", storage_options=options, hive_partitioning=True).collect()
    assert again.select(thirds.columns).sort("n").equals(thirds)


def test_duckdb(s3, gateway, secret):
    import duckdb
    import duckdb_extension_httpfs

    base = duckdb.connect()
    extensions = Path(duckdb_extension_httpfs.__file__).parent / "extensions" / f"v{duckdb.__version__}"
    base.load_extension(str(extensions / "httpfs.duckdb_extension"))
    base.sql(
        f"CREATE SECRET (TYPE s3, KEY_ID '{ACCESS}', SECRET '{SECRET}', REGION '{REGION}', "
        f"ENDPOINT '{address(gateway)}', URL_STYLE 'path', USE_SSL false)"
    )
    base.sql(f"CREATE TABLE t AS SELECT i, hash(i) AS x, '{secret}' || i AS text FROM range(500_000) r(i)")
    base.sql(f"COPY t TO 's3://data/{secret}/t.parquet' (COMPRESSION uncompressed)")
    base.sql(f"COPY t TO 's3://data/{secret}/t.csv'")
    parquet = f"read_parquet('s3://data/{secret}/t.parquet')"
    assert base.sql(f"SELECT count(*), bit_xor(x) FROM {parquet}").fetchall() == base.sql(
        "SELECT count(*), bit_xor(x) FROM t"
    ).fetchall()
    assert base.sql(f"SELECT text FROM {parquet} WHERE i = 333333").fetchall() == [(f"{secret}333333",)]
    assert base.sql(f"SELECT count(*) FROM (FROM {parquet} EXCEPT FROM t)").fetchall() == [(0,)]
    assert base.sql(f"SELECT count(*) FROM (FROM read_csv('s3://data/{secret}/*.csv'))").fetchall() == [(500_000,)]
    base.sql(f"COPY (FROM t LIMIT 10) TO 's3://data/{secret}/t.parquet'")
    assert base.sql(f"SELECT count(*) FROM {parquet}").fetchall() == [(10,)], "an overwrite"
    base.sql(f"COPY (SELECT *, i % 3 AS part FROM t) TO 's3://data/{secret}/parts' (FORMAT parquet, PARTITION_BY part)")
    many = f"read_parquet('s3://data/{secret}/parts/*/*.parquet', hive_partitioning = true)"
    assert base.sql(f"SELECT count(*), count(DISTINCT part) FROM {many}").fetchall() == [(500_000, 3)]
    assert base.sql(f"SELECT count(*) FROM {many} WHERE part = 1").fetchall() == [(166_667,)]
    globbed = [row[0] for row in base.sql(f"FROM glob('s3://data/{secret}/**')").fetchall()]
    assert sorted(globbed) == sorted(f"s3://data/{key}" for key in keys(s3)) and len(globbed) >= 5


def test_s3fs_of_fsspec(s3, gateway, secret, home):
    import s3fs

    region = {"region_name": REGION}
    files = s3fs.S3FileSystem(key=ACCESS, secret=SECRET, endpoint_url=gateway.url, client_kwargs=region)
    wanted = {f"data/{secret}/{name}": body for name, body in bodies(secret).items()}
    for name, body in wanted.items():
        files.pipe_file(name, body)
        assert files.cat_file(name) == body == read(s3, name.removeprefix("data/"))
    assert set(files.find("data")) == set(wanted)
    assert f"data/{secret}/deep" in files.ls(f"data/{secret}", detail=False)
    assert files.isdir(f"data/{secret}/deep") and not files.exists("data/missing")
    large, body = f"data/{secret}/large.bin", wanted[f"data/{secret}/large.bin"]
    assert files.cat_file(large, start=100, end=200) == body[100:200] and files.tail(large, 50) == body[-50:]
    with files.open(large) as file:
        file.seek(10 * MIB)
        assert file.read(1000) == body[10 * MIB :][:1000]
    with files.open(large, "wb", block_size=5 * MIB) as file:
        for _ in range(3):
            file.write(content(6, 6 * MIB))
    assert read(s3, f"{secret}/large.bin") == 3 * content(6, 6 * MIB)
    with files.open(f"data/{secret}/small.txt", "ab") as file:
        file.write(b" and more")
    assert files.cat_file(f"data/{secret}/small.txt") == secret.encode() + b" and more"
    with files.open(large, "ab") as file:
        file.write(b"end")
    assert read(s3, f"{secret}/large.bin") == 3 * content(6, 6 * MIB) + b"end", "the old content is a copied part"
    files.setxattr(large, kind="test")
    assert files.getxattr(large, "kind") == "test" and files.info(large)["size"] == 18 * MIB + 3
    files.copy(large, "data/copy")
    files.mv("data/copy", "data/moved")
    assert keys(s3, Prefix="moved") == ["moved"] and keys(s3, Prefix="copy") == []
    files.get(f"data/{secret}/", f"{home / 'out'}/", recursive=True)
    assert (home / "out" / "large.bin").read_bytes() == read(s3, "moved")
    files.put(f"{home / 'out'}/", f"data/{secret}-again/", recursive=True)
    again = {key.replace("-again", "") for key in keys(s3, Prefix=f"{secret}-again/")}
    assert again == set(keys(s3, Prefix=f"{secret}/"))
    with urllib.request.urlopen(files.sign(f"data/{secret}/small.txt")) as answer:
        assert answer.read() == secret.encode() + b" and more"
    files.rm(f"data/{secret}-again", recursive=True)
    files.rm("data/moved")
    assert {f"data/{key}" for key in keys(s3)} == set(wanted)
    files.mkdir("made")
    assert "made" in files.ls("", detail=False, refresh=True)
    files.rmdir("made")


def test_smart_open(s3, gateway, secret):
    from smart_open import open, s3 as bucket

    client = boto3.client(
        "s3", endpoint_url=gateway.url, aws_access_key_id=ACCESS, aws_secret_access_key=SECRET, region_name=REGION
    )
    given = {"transport_params": {"client": client}}
    files = bodies(secret)
    for name, body in files.items():
        with open(f"s3://data/{secret}/{name}", "wb", **given) as file:
            file.write(body)
        with open(f"s3://data/{secret}/{name}", "rb", **given) as file:
            assert file.read() == body == read(s3, f"{secret}/{name}")
    with open(f"s3://data/{secret}/large.bin", "rb", **given) as file:
        assert file.read(10) == files["large.bin"][:10]
        assert file.seek(12 * MIB) == 12 * MIB and file.read(10) == files["large.bin"][12 * MIB :][:10]
        file.seek(-5, 2)
        assert file.read() == files["large.bin"][-5:]
    lines = [f"{secret} {number}\n" for number in range(20_000)]
    for name in ("lines.txt.gz", "lines.txt"):
        with open(f"s3://data/{secret}/{name}", "w", **given) as file:
            file.writelines(lines)
        with open(f"s3://data/{secret}/{name}", **given) as file:
            assert list(file) == lines
    with open(f"s3://data/{secret}/lines.txt", "w", **given) as file:
        file.write("")
    assert read(s3, f"{secret}/lines.txt") == b"", "an overwrite with nothing"
    found = bucket.iter_bucket(
        "data", prefix=f"{secret}/deep", client_kwargs={"endpoint_url": gateway.url},
        session_kwargs={"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": REGION},
    )
    assert dict(found) == {f"{secret}/deep/er/medium": files["deep/er/medium"]}


def test_tensorstore(s3, gateway, secret, monkeypatch):
    import numpy
    import tensorstore

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = {"driver": "s3", "bucket": "data", "endpoint": gateway.url, "aws_region": REGION}
    store |= {"path": f"{secret}/array/"}
    spec = {"driver": "zarr3", "kvstore": store}
    shape = (600, 500)
    array = tensorstore.open(
        {**spec, "metadata": {"attributes": {"text": secret}}}, create=True, dtype=tensorstore.float64, shape=shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=(100, 250)),
    ).result()
    numbers = numpy.random.default_rng(1).random(shape)
    array.write(numbers).result()
    again = tensorstore.open(spec).result()
    assert numpy.array_equal(again.read().result(), numbers)
    assert numpy.array_equal(again[90:110, 240:260].read().result(), numbers[90:110, 240:260])
    numbers[95:105, 10:20] = 7
    array[95:105, 10:20].write(numbers[95:105, 10:20]).result()
    assert numpy.array_equal(tensorstore.open(spec).result().read().result(), numbers), "parts of chunks were rewritten"
    again.resize(exclusive_max=(700, 500)).result()
    assert tensorstore.open(spec).result().shape == (700, 500)
    with pytest.raises(ValueError, match="ALREADY_EXISTS"):
        tensorstore.open(spec, create=True, dtype=tensorstore.float64, shape=shape).result()
    values = tensorstore.KvStore.open({**store, "path": f"{secret}/values/"}).result()
    values.write("a", secret.encode()).result()
    written = values.write("b", content(7, MIB)).result()
    assert values.read("b").result().value == content(7, MIB)
    values.write("b", b"second", if_equal=written.generation).result()
    assert values.write("b", b"third", if_equal=written.generation).result().generation != written.generation
    assert values["b"] == b"second", "a stale condition writes nothing"
    assert sorted(values.list().result()) == [b"a", b"b"]
    del values["b"]
    assert values.read("b").result().state == "missing"
    values.delete_range(tensorstore.KvStore.KeyRange("b", "c")).result()
    assert values.list().result() == [b"a"] and len(keys(s3, Prefix=f"{secret}/array/")) == 13


def test_lance(s3, gateway, secret):
    import lance
    import pyarrow

    options = {
        "endpoint": gateway.url, "access_key_id": ACCESS, "secret_access_key": SECRET, "region": REGION,
        "allow_http": "true",
    }
    place = f"s3://data/{secret}/set.lance"
    open_again = lambda **more: lance.dataset(place, storage_options=options, **more)
    table = pyarrow.table({"n": range(100_000), "text": [f"{secret}{number}" for number in range(100_000)]})
    lance.write_dataset(table, place, storage_options=options)
    assert open_again().to_table() == table
    assert open_again().take([5, 99_999]).column("text").to_pylist() == [f"{secret}5", f"{secret}99999"]
    lance.write_dataset(table.slice(0, 10), place, mode="append", storage_options=options)
    dataset = open_again()
    assert dataset.count_rows() == 100_010 and dataset.version == 2
    dataset.delete("n >= 50000")
    assert open_again().count_rows() == 50_010
    dataset.update({"text": "'new'"}, where="n = 7")
    assert open_again().to_table(filter="text = 'new'").num_rows == 2
    dataset.create_scalar_index("n", "BTREE")
    assert open_again().to_table(filter="n = 4242").column("text").to_pylist() == [f"{secret}4242"]
    assert open_again(version=1).count_rows() == 100_000
    dataset.optimize.compact_files()
    lance.write_dataset(table.slice(0, 3), place, mode="overwrite", storage_options=options)
    assert open_again().to_table() == table.slice(0, 3)
    before = len(keys(s3))
    removed = open_again().cleanup_old_versions(timedelta(0), delete_unverified=True)
    assert removed.old_versions > 0 and len(keys(s3)) < before
    assert open_again().to_table() == table.slice(0, 3)


def test_deltalake(s3, gateway, secret):
    import pyarrow
    from deltalake import DeltaTable, write_deltalake

    options = {
        "AWS_ENDPOINT_URL": gateway.url, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": REGION, "AWS_ALLOW_HTTP": "true",
    }
    place = f"s3://data/{secret}/table"
    table = pyarrow.table({"n": range(50_000), "part": [n % 3 for n in range(50_000)], "text": [secret] * 50_000})
    write_deltalake(place, table, partition_by=["part"], storage_options=options)
    kept_open = DeltaTable(place, storage_options=options)
    for version in range(1, 13):
        write_deltalake(place, table.slice(version, 1), mode="append", storage_options=options)
        # It asks for the entries of the log after its version, also right after a write.
        kept_open.update_incremental()
        assert kept_open.version() == version
    rows = lambda **more: pyarrow.table(DeltaTable(place, storage_options=options, **more).to_pyarrow_table()).num_rows
    assert rows() == 50_012 and rows(version=3) == 50_003
    kept_open.delete("n < 10000")
    kept_open.update(updates={"text": "'new'"}, predicate="n = 20000")
    found = DeltaTable(place, storage_options=options).to_pyarrow_table(filters=[("n", "=", 20_000)])
    assert found.column("text").to_pylist() == ["new"] and rows() == 40_000
    kept_open.create_checkpoint()
    kept_open.optimize.compact()
    before = len(keys(s3))
    kept_open.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    assert len(keys(s3)) < before and rows() == 40_000
    write_deltalake(place, table.slice(0, 2), mode="overwrite", storage_options=options)
    assert rows() == 2


def test_icechunk(s3, gateway, secret):
    import icechunk
    import numpy
    import zarr

    storage = lambda: icechunk.s3_storage(
        bucket="data", prefix=f"{secret}/repo", endpoint_url=gateway.url, allow_http=True, force_path_style=True,
        access_key_id=ACCESS, secret_access_key=SECRET, region=REGION,
    )
    repository = icechunk.Repository.create(storage())
    numbers = numpy.random.default_rng(2).random((400, 300))
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=numbers.shape, chunks=(100, 100), dtype="f8")
    array.attrs["text"] = secret
    array[:] = numbers
    first = session.commit("first")
    read_back = lambda **at: zarr.open_array(
        icechunk.Repository.open(storage()).readonly_session(**at).store, path="a", mode="r"
    )
    assert numpy.array_equal(read_back(branch="main")[:], numbers)
    session, stale = repository.writable_session("main"), repository.writable_session("main")
    zarr.open_array(session.store, path="a")[50:60, 50:60] = 1
    session.commit("second")
    zarr.open_array(stale.store, path="a")[0, 0] = 2
    with pytest.raises(icechunk.ConflictError):
        stale.commit("from an old state")
    changed = numbers.copy()
    changed[50:60, 50:60] = 1
    assert numpy.array_equal(read_back(branch="main")[:], changed)
    assert numpy.array_equal(read_back(snapshot_id=first)[:], numbers), "the old state stays"
    repository.create_tag("v1", first)
    repository.create_branch("other", first)
    assert repository.list_tags() == {"v1"} and repository.list_branches() == {"main", "other"}
    assert numpy.array_equal(read_back(tag="v1")[:], numbers)
    assert [entry.message for entry in repository.ancestry(branch="main")][:2] == ["second", "first"]
    repository.delete_branch("other")
    before = len(keys(s3))
    repository.delete_tag("v1")
    repository.reset_branch("main", first)
    now = datetime.now(timezone.utc)
    assert repository.garbage_collect(now).snapshots_deleted >= 1 and len(keys(s3)) < before
    assert numpy.array_equal(read_back(branch="main")[:], numbers)
