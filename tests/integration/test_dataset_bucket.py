"""A dataset that lies in a bucket: what it becomes, what is refused, and what each thing that can be wrong is called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from remote_trainer.dataset import bucket as module
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.inspect import inspect
from remote_trainer.dataset.pack import pack
from remote_trainer.dataset.sources import open_source
from remote_trainer.errors import ConfigError, DatasetError
from remote_trainer.model import Facts
from remote_trainer.testing.netfault import Link
from tests.integration.depot_host import FILES
from tests.support import commandline, s3
from tests.support.s3 import S3Bucket, S3Server

TREE = {name: content for name, content in FILES.items() if "\\" not in name} | {"images/big.bin": bytes(range(256)) * 4096}
SECRET = "a-secret-that-is-wrong"


def access(server: S3Server) -> dict[str, str]:
    """What boto3 reads from the environment."""
    return {
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_ENDPOINT_URL_S3": server.endpoint_url,
        "AWS_CA_BUNDLE": str(server.ca_bundle),
    }


@pytest.fixture(autouse=True)
def environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "s3_server" in request.fixturenames:
        for name, value in access(request.getfixturevalue("s3_server")).items():
            monkeypatch.setenv(name, value)


@pytest.fixture
def link(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Link]:
    """The way to the server, which counts bytes."""
    with Link("127.0.0.1", urlsplit(s3_server.endpoint_url).port or 0) as link:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"https://127.0.0.1:{link.port}")
        yield link


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def put(bucket: S3Bucket, files: dict[str, bytes], prefix: str = "") -> None:
    client = bucket.server.client()
    for name, content in files.items():
        client.put_object(Bucket=bucket.bucket, Key=prefix + name, Body=content)


def folder(path: Path, files: dict[str, bytes]) -> str:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return str(path)


async def test_same_digest_as_the_folder(s3_bucket: S3Bucket, cache: Cache, tmp_path: Path) -> None:
    """The objects below a prefix are the same input as the same files in a folder; their neighbours are not in it."""
    put(s3_bucket, TREE, "some/where/")
    put(s3_bucket, {"some/where-else": b"neighbour", "some/other/x": b"neighbour"})
    from_bucket = await pack(f"s3://{s3_bucket.bucket}/some/where", cache)
    from_folder = await pack(folder(tmp_path / "data", TREE), Cache(tmp_path / "other"))
    assert (from_bucket.digest, from_bucket.files, from_bucket.size) == (from_folder.digest, len(TREE), from_folder.size)
    assert from_bucket.source == f"s3://{s3_bucket.bucket}/some/where"


async def test_a_bucket_is_counted_from_its_list(s3_bucket: S3Bucket, cache: Cache, link: Link) -> None:
    """No object is downloaded for it, and packing what was counted does not list again."""
    put(s3_bucket, {"a.png": b"x" * 100_000, "sub/b.JPG": b"y", "a.txt": b"z"}, "some/where/")
    opened = open_source(f"s3://{s3_bucket.bucket}/some/where")
    assert opened.facts() == Facts(images=2, files=3)
    assert link.bytes_down < 50_000
    put(s3_bucket, {"late.png": b"z"}, "some/where/")
    assert (await pack(opened, cache)).files == 3


async def test_a_whole_bucket(s3_bucket: S3Bucket, cache: Cache, tmp_path: Path) -> None:
    """A URL without a prefix, with or without a slash at its end, is all of the bucket."""
    put(s3_bucket, {"a/b.txt": b"one", "c": b"two"})
    packed = [await pack(f"s3://{s3_bucket.bucket}{end}", cache) for end in ("", "/")]
    expected = await pack(folder(tmp_path / "data", {"a/b.txt": b"one", "c": b"two"}), Cache(tmp_path / "other"))
    assert {each.digest for each in packed} == {expected.digest}


async def test_more_objects_than_a_page(s3_bucket: S3Bucket, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of several pages is read to its end."""
    monkeypatch.setattr(module, "_PAGE", 3)
    put(s3_bucket, {f"set/{number:02}.txt": b"%d" % number for number in range(10)})
    assert (await pack(f"s3://{s3_bucket.bucket}/set", cache)).files == 10


async def test_markers_and_droppings_are_left_out(s3_bucket: S3Bucket, cache: Cache, tmp_path: Path) -> None:
    """Objects that stand for folders, and what systems drop into folders, are no part of the data."""
    put(s3_bucket, {"set/": b"", "set/sub/": b"", "set/sub/a.txt": b"a", "set/.DS_Store": b"x", "set/.git/HEAD": b"x"})
    packed = await pack(f"s3://{s3_bucket.bucket}/set", cache)
    assert packed.digest == (await pack(folder(tmp_path / "data", {"sub/a.txt": b"a"}), cache)).digest


@pytest.mark.parametrize("s3_server", ["ministack"], indirect=True)  # MinIO takes no such keys
@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["../out"], "no folder can hold"),
        (["a/../../out"], "no folder can hold"),
        (["a/./b"], "no folder can hold"),
        (["/etc/passwd"], "no folder can hold"),
        (["a//b"], "no folder can hold"),
        (["line\nbreak"], "control characters"),
        (["x" * 300], "too long"),
        (["a", "a/b"], "an object and of a folder"),
    ],
)
async def test_names_that_are_refused(keys: list[str], why: str, s3_bucket: S3Bucket, cache: Cache, tmp_path: Path) -> None:
    """A key that would leave the folder, or that no folder holds, is refused by name before anything is downloaded."""
    put(s3_bucket, dict.fromkeys(keys, b"data"), "set/")
    with pytest.raises(DatasetError, match=why) as refused:
        await pack(f"s3://{s3_bucket.bucket}/set", cache)
    assert repr(f"set/{keys[0]}")[:200] in str(refused.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_what_did_not_change_is_not_read_again(s3_bucket: S3Bucket, link: Link, cache: Cache) -> None:
    """The second pack of an unchanged prefix lists it and downloads nothing."""
    put(s3_bucket, {"set/a.bin": bytes(3_000_000)})
    source = f"s3://{s3_bucket.bucket}/set"
    first = await pack(source, cache)
    before = link.bytes_down
    assert before > 3_000_000
    assert await pack(source, cache) == first
    assert link.bytes_down - before < 50_000


async def test_what_changed_is_noticed(s3_bucket: S3Bucket, cache: Cache) -> None:
    """Another object, other bytes of the same size, and a removed object each give another digest."""
    source = f"s3://{s3_bucket.bucket}/set"
    put(s3_bucket, {"set/a": b"one", "set/b": b"two"})
    digests = [(await pack(source, cache)).digest]
    put(s3_bucket, {"set/b": b"TWO"})
    digests.append((await pack(source, cache)).digest)
    put(s3_bucket, {"set/c": b"three"})
    digests.append((await pack(source, cache)).digest)
    s3_bucket.server.client().delete_object(Bucket=s3_bucket.bucket, Key="set/a")
    digests.append((await pack(source, cache)).digest)
    assert len(set(digests)) == 4


async def test_what_is_kept_needs_no_bucket(s3_bucket: S3Bucket, cache: Cache) -> None:
    """A queued job's bytes are in the cache: the objects may go."""
    put(s3_bucket, {"set/a": b"one"})
    given = await pack(f"s3://{s3_bucket.bucket}/set", cache)
    s3_bucket.server.client().delete_object(Bucket=s3_bucket.bucket, Key="set/a")
    assert b"one" in b"".join(bytes(block) for block in cache.open(given).read(1))


async def test_inspect(s3_bucket: S3Bucket) -> None:
    """A bucket can be looked into like a folder."""
    put(s3_bucket, {"set/a.txt": b"a caption", "set/b.jpg": b"no image"})
    report = await inspect(f"s3://{s3_bucket.bucket}/set")
    assert (report.files, report.bytes, list(report.corrupt)) == (2, 17, ["b.jpg"])


async def test_nothing_there(s3_bucket: S3Bucket, cache: Cache) -> None:
    """An empty prefix is an error that names it."""
    put(s3_bucket, {"elsewhere": b"x"})
    with pytest.raises(DatasetError, match=f"s3://{s3_bucket.bucket}/set holds no objects; check the bucket and the prefix"):
        await pack(f"s3://{s3_bucket.bucket}/set", cache)


async def test_no_such_bucket(s3_server: S3Server, cache: Cache) -> None:
    """A bucket that does not exist is an error that names it."""
    with pytest.raises(DatasetError, match=r"cannot list s3://there-is-none/set: .*bucket.*; check the bucket"):
        await pack("s3://there-is-none/set", cache)


@pytest.mark.parametrize("source", ["s3://", "s3:///set", "s3://Not_A Bucket!/set"])
async def test_no_name_of_a_bucket(s3_server: S3Server, source: str, cache: Cache) -> None:
    """What cannot be the name of a bucket is an error before a server is asked."""
    with pytest.raises(DatasetError, match=r"names no bucket|Invalid bucket name"):
        await pack(source, cache)


async def test_no_credentials(s3_server: S3Server, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the error says so."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(DatasetError, match=r"cannot list .*credentials"):
        await pack("s3://bucket/set", cache)


@pytest.mark.parametrize("s3_server", ["juicefs"], indirect=True)  # ministack lets any secret in
async def test_wrong_secret(s3_bucket: S3Bucket, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused secret is an error that does not tell it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    with pytest.raises(DatasetError, match=r"cannot list .*SignatureDoesNotMatch") as refused:
        await pack(f"s3://{s3_bucket.bucket}/set", cache)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(("name", "value"), [("AWS_ENDPOINT_URL_S3", "no url"), ("AWS_PROFILE", "nobody")])
async def test_settings_of_boto3_that_are_wrong(
    s3_server: S3Server, name: str, value: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What boto3 cannot use is told as an error of the configuration."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(value)):
        await pack("s3://bucket/set", cache)


async def test_a_server_that_is_down(
    start_s3: Callable[[s3.Kind], S3Server], cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is away the error says what was asked; afterwards the same call succeeds."""
    server = start_s3("ministack")
    for name, value in access(server).items():
        monkeypatch.setenv(name, value)
    bucket = server.new_bucket()
    put(bucket, {"set/a": b"one"})
    server.stop()
    with pytest.raises(DatasetError, match=f"cannot list s3://{bucket.bucket}/set: .*check the bucket, the endpoint"):
        await pack(f"s3://{bucket.bucket}/set", cache)
    server.start()
    assert (await pack(f"s3://{bucket.bucket}/set", cache)).files == 1


def test_commands(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    """A bucket is inspected, packed and trained on by the same words as a folder."""
    put(s3_bucket, {"set/a.txt": b"a caption"})
    source, known = f"s3://{s3_bucket.bucket}/set", access(s3_bucket.server)
    with commandline.installed(tmp_path / "home") as home:
        looked = home.remote_trainer("dataset", "inspect", source, **known)
        assert (looked.returncode, looked.stderr) == (0, b"")
        packed = home.remote_trainer("dataset", "pack", source, **known)
        assert packed.returncode == 0, packed.stderr
        missing = home.remote_trainer("dataset", "inspect", f"{source}/none", **known)
        assert missing.returncode != 0 and b"holds no objects" in missing.stderr and b"Traceback" not in missing.stderr
        trained = home.run_training(
            "--tool", "hello@1", "--dataset", source, "--set", "name=Grete", "--set", "delay_s=0", **known
        )
        assert trained.returncode == 0, trained.stderr
