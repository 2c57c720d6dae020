"""Packing: the same tree gives the same digest anywhere, and what cannot be shipped is refused by name."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_trainer.dataset import manifest, tree
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.manifest import Entry, Part, lay_out
from remote_trainer.dataset.pack import pack
from remote_trainer.dataset.tree import blocks, scan
from remote_trainer.errors import DatasetError
from remote_trainer.model import Input

FILES = {
    "a.jpg": b"one",
    "a/b.txt": b"",
    "a.txt": b"caption",
    "ü/日本 語.txt": "grüße".encode(),
    "deep/" * 30 + "x" * 120: b"long",
}
GOLDEN = "24d530a1d6b387a42f6fd8cc0429db3b546560c4c10cd2077d654f9ec202a8f8"


def make(folder: Path, files: dict[str, bytes] = FILES, *, empty: Iterable[str] = ("nothing/in/here",)) -> Path:
    for name in empty:
        (folder / name).mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def unpack(given: Input, cache: Cache) -> dict[str, bytes | None]:
    """What Python's own tar reader finds in the bundles, None for folders."""
    found: dict[str, bytes | None] = {}
    packed = cache.open(given)
    for number, chunk in enumerate(given.chunks):
        content = b"".join(packed.read(number))
        if chunk.path:
            found[chunk.path] = (found.get(chunk.path) or b"") + content
            continue
        with tarfile.open(fileobj=io.BytesIO(content + bytes(1024)), errorlevel=2) as bundle:
            for member in bundle:
                body = bundle.extractfile(member)
                found[member.name] = body.read() if body else None
    return found


async def test_the_digest_is_known(tmp_path: Path, cache: Cache) -> None:
    """The digest of a tree never changes between versions and machines unless FORMAT does."""
    packed = await pack(str(make(tmp_path / "data")), cache)
    assert (manifest.FORMAT, packed.digest) == (1, GOLDEN)


async def test_order_times_modes_and_umask_do_not_matter(tmp_path: Path, cache: Cache) -> None:
    """Two trees with the same names and bytes have the same digest, however they were made."""
    first = make(tmp_path / "first")
    before = os.umask(0o077)
    try:
        second = make(tmp_path / "second", dict(reversed(FILES.items())))
    finally:
        os.umask(before)
    os.utime(second / "a.jpg", (1, 1))
    (second / "a.txt").chmod(0o755)
    assert (await pack(str(first), cache)).digest == (await pack(str(second), cache)).digest


async def test_every_name_and_byte_is_in_it(tmp_path: Path, cache: Cache) -> None:
    """Unicode and long names, empty files and empty folders come out as they went in."""
    found = unpack(await pack(str(make(tmp_path / "data")), cache), cache)
    assert {name: content for name, content in found.items() if content is not None} == FILES
    assert {name for name, content in found.items() if content is None} >= {"nothing", "nothing/in", "nothing/in/here", "ü"}


@pytest.mark.parametrize("change", ["byte", "name", "extra", "folder"])
async def test_any_change_changes_the_digest(tmp_path: Path, cache: Cache, change: str) -> None:
    """A byte, a name, a file or an empty folder more: another digest."""
    data = make(tmp_path / "data")
    before = await pack(str(data), cache)
    match change:
        case "byte":
            (data / "a.jpg").write_bytes(b"One")
        case "name":
            (data / "a.jpg").rename(data / "b.jpg")
        case "extra":
            (data / "extra").write_bytes(b"")
        case _:
            (data / "extra").mkdir()
    assert (await pack(str(data), cache)).digest != before.digest


async def test_droppings_of_systems_are_left_out(tmp_path: Path, cache: Cache) -> None:
    """A .git folder or a .DS_Store changes nothing."""
    data = make(tmp_path / "data")
    before = await pack(str(data), cache)
    make(data, {".DS_Store": b"x", ".git/config": b"x", "a/__pycache__/m.pyc": b"x"}, empty=())
    assert (await pack(str(data), cache)).digest == before.digest


async def test_big_files_travel_in_pieces(tmp_path: Path, cache: Cache) -> None:
    """A file bigger than a chunk becomes pieces that join to the file again, holes included."""
    data = make(tmp_path / "data", {"small": b"s"}, empty=())
    with (data / "big").open("wb") as file:
        file.write(b"head")
        file.seek(manifest.SMALL_CHUNK * 2 + 5)
        file.write(b"tail")
    packed = await pack(str(data), cache)
    pieces = [chunk for chunk in packed.chunks if chunk.path]
    assert [piece.offset for piece in pieces] == [0, manifest.SMALL_CHUNK, 2 * manifest.SMALL_CHUNK]
    assert unpack(packed, cache)["big"] == (data / "big").read_bytes()


def test_a_long_list_is_cut_at_file_boundaries() -> None:
    """No bundle is bigger than a chunk, and every file is in exactly one."""
    entries = [Entry(f"{number:05}", 1 << 20) for number in range(100)] + [Entry("folder", folder=True)]
    parts = lay_out(entries)
    assert parts[0].members == (Entry(".", folder=True), Entry("folder", folder=True))
    assert all(part.size <= manifest.SMALL_CHUNK for part in parts)
    assert [member for part in parts[1:] for member in part.members] == entries[:-1]


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="/"), min_size=1, max_size=60
).filter(lambda name: name not in (".", "..") and len(name.encode()) <= 255)


@given(st.lists(NAMES, min_size=1, max_size=8), st.integers(0, 3 << 33))
@settings(max_examples=300, deadline=None)
def test_headers_are_read_back(names: list[str], size: int) -> None:
    """For any path and size, Python's tar reader finds exactly that path and size, in as many bytes as were planned."""
    entry = Entry("/".join(names), size)
    head = manifest.header(entry)
    with tarfile.open(fileobj=io.BytesIO(head), ignore_zeros=True) as archive:
        read = archive.next()
    assert read is not None
    assert (read.name, read.size, read.mode, read.mtime, read.uid) == (entry.path, size, 0o444, 0, 0)
    assert manifest.packed_size(entry) == len(head) + size + manifest.padding(size)


# -- refused


def refusal(folder: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(folder)
    return str(caught.value)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """A pipe is named and refused, not read for ever."""
    os.mkfifo(make(tmp_path / "data") / "pipe")
    assert "pipe" in refusal(tmp_path / "data")


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket is named and refused."""
    monkeypatch.chdir(make(tmp_path / "data"))  # socket paths are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        assert "neither a file nor a folder" in refusal(tmp_path / "data")


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """A link that leaves the folder is refused, unless that was asked for."""
    (tmp_path / "secret").write_text("s")
    (make(tmp_path / "data") / "link").symlink_to("../secret")
    assert "leaves the folder" in refusal(tmp_path / "data")
    assert scan(tmp_path / "data", outside_links=True).found["link"].entry.size == 1


def test_a_link_inside_is_followed(tmp_path: Path) -> None:
    """A link inside the folder counts as what it leads to."""
    (make(tmp_path / "data") / "link").symlink_to("a.jpg")
    (tmp_path / "data" / "folder").symlink_to("a")
    found = scan(tmp_path / "data").found
    assert found["link"].entry.size == 3 and "folder/b.txt" in found


def test_a_link_that_turns_round_is_refused(tmp_path: Path) -> None:
    """A link to a folder it lies in is refused instead of followed for ever."""
    (make(tmp_path / "data") / "a" / "up").symlink_to("..")
    assert "lies in" in refusal(tmp_path / "data")


def test_a_dead_link_is_refused(tmp_path: Path) -> None:
    """A link that leads nowhere is named with its target."""
    (make(tmp_path / "data") / "dead").symlink_to("gone.jpg")
    assert "gone.jpg" in refusal(tmp_path / "data")


@pytest.mark.parametrize(("name", "why"), [(b"bad\xff", "UTF-8"), (b"two\nlines", "control characters")])
def test_an_odd_name_is_refused(tmp_path: Path, name: bytes, why: str) -> None:
    """Names that could not come back as they are, or would break listings, are refused."""
    (Path(os.fsdecode(os.fsencode(make(tmp_path / "data")) + b"/" + name))).write_bytes(b"")
    assert why in refusal(tmp_path / "data")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without files is no dataset."""
    (tmp_path / "data" / "sub").mkdir(parents=True)
    assert "holds no files" in refusal(tmp_path / "data")


@pytest.mark.parametrize("source", ["nowhere", "nowhere.tar"])
async def test_what_is_not_there_is_refused(tmp_path: Path, cache: Cache, source: str) -> None:
    """A missing source is named with what may be given."""
    with pytest.raises(DatasetError, match=r"nowhere.*give a folder"):
        await pack(str(tmp_path / source), cache)


async def test_weights_in_one_file_are_a_tree_of_that_file(tmp_path: Path, cache: Cache) -> None:
    """Under the name that was given, also where that is a link; nothing beside it is shipped, and a change of it is noticed."""
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "model.safetensors").symlink_to("blob")
    given = await pack(str(tmp_path / "model.safetensors"), cache)
    assert (given.files, given.size > 7) == (1, True)
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "model.safetensors").write_bytes(b"weights")
    assert (await pack(str(alone), cache)).digest == given.digest
    (tmp_path / "blob").write_bytes(b"others")
    assert (await pack(str(tmp_path / "model.safetensors"), cache)).digest != given.digest


async def test_another_kind_of_file_is_refused(tmp_path: Path, cache: Cache) -> None:
    """A file that is no archive is refused."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DatasetError, match="neither a folder nor an archive"):
        await pack(str(tmp_path / "notes.txt"), cache)


# -- changing sources


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """Bytes of two versions of a file never make one chunk."""
    data = make(tmp_path / "data", {"f": bytes(3 << 20)}, empty=())
    found = scan(data)
    reading = blocks(lay_out(found.entries)[-1], found)
    (data / "f").write_bytes(bytes(2 << 20))
    with pytest.raises(DatasetError, match="changed while"):
        list(reading)


def test_a_file_that_grows_in_mid_read_is_refused(tmp_path: Path) -> None:
    """Also when the change comes between two blocks of the same file."""
    data = make(tmp_path / "data", {"f": bytes(manifest.SMALL_CHUNK + (3 << 20))}, empty=())
    found = scan(data)
    reading = blocks(Part((found.found["f"].entry,), 3 << 20, True, 0), found)
    next(reading)
    with (data / "f").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DatasetError, match="changed while"):
        list(reading)


async def test_an_unchanged_folder_is_not_read_again(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pack of the same folder opens no file of it."""
    data = make(tmp_path / "data")
    first = await pack(str(data), cache)
    found = scan(data)
    cache.remember(first, tree=found, signature=found.signature)  # as if packed later: a change time cannot be set
    monkeypatch.setattr("remote_trainer.dataset.pack.blocks", None)
    assert await pack(str(data), cache) == first


async def test_a_folder_changed_just_now_is_read_again(tmp_path: Path, cache: Cache) -> None:
    """Within the grain of the clock, times prove nothing: a same-size edit is seen."""
    data = make(tmp_path / "data")
    first = await pack(str(data), cache)
    status = (data / "a.jpg").stat()
    (data / "a.jpg").write_bytes(b"two")
    os.utime(data / "a.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (await pack(str(data), cache)).digest != first.digest


async def test_small_data_outlives_its_source(tmp_path: Path, cache: Cache) -> None:
    """A queued job keeps small data as it was submitted, whatever happens to the folder."""
    data = make(tmp_path / "data")
    packed = await pack(str(data), cache)
    (data / "a.jpg").write_bytes(b"edited later")
    assert unpack(packed, cache)["a.jpg"] == b"one"


async def test_an_edit_of_big_data_is_noticed(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data too big to keep is read from its folder again; an edit in between is a clear error."""
    monkeypatch.setattr("remote_trainer.dataset.pack.KEEP_BELOW", 0)
    data = make(tmp_path / "data")
    packed = await pack(str(data), cache)
    assert unpack(packed, cache)["a.jpg"] == b"one"
    (data / "a.jpg").write_bytes(b"edited later")
    with pytest.raises(DatasetError, match=r"a\.jpg changed"):
        unpack(packed, cache)


async def test_a_deleted_cache_is_said(tmp_path: Path, cache: Cache) -> None:
    """Without the cache nobody knows the bytes any more, and the user is told what to do."""
    packed = await pack(str(make(tmp_path / "data")), cache)
    with pytest.raises(DatasetError, match="submit again"):
        Cache(tmp_path / "other").open(packed)


# -- archives


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.xz", "zip"])
async def test_an_archive_is_what_it_holds(tmp_path: Path, cache: Cache, kind: str) -> None:
    """An archive has the digest of the folder it was made from, and needs neither afterwards."""
    data = make(tmp_path / "data")
    archive = tmp_path / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(data.rglob("*")):
                file.write(path, path.relative_to(data))
    else:
        with tarfile.open(archive, "w:gz" if "gz" in kind else "w:xz" if "xz" in kind else "w") as tar:
            tar.add(data, ".")
    packed = await pack(str(archive), cache)
    assert packed.digest == (await pack(str(data), cache)).digest
    archive.unlink()
    assert unpack(packed, cache)["a.jpg"] == b"one"


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
async def test_an_archive_that_escapes_is_refused(tmp_path: Path, cache: Cache, kind: str, name: str) -> None:
    """A member that would leave the folder is refused before anything is written."""
    archive = tmp_path / f"evil.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(zipfile.ZipInfo(name), b"x")
    else:
        with tarfile.open(archive, "w") as tar:
            tar.addfile(tarfile.TarInfo(name))
    with pytest.raises(DatasetError, match="leaves the folder"):
        await pack(str(archive), cache)


async def test_links_in_an_archive_are_refused(tmp_path: Path, cache: Cache) -> None:
    """A link inside an archive may lead anywhere: refused."""
    member = tarfile.TarInfo("link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(member)
    with pytest.raises(DatasetError, match="neither a file nor a folder"):
        await pack(str(tmp_path / "evil.tar"), cache)


async def test_a_damaged_archive_is_refused(tmp_path: Path, cache: Cache) -> None:
    """An archive cut short is named, not half used."""
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(DatasetError, match="cannot unpack"):
        await pack(str(tmp_path / "cut.zip"), cache)


def test_the_list_of_droppings_is_public() -> None:
    """docs/datasets.md names exactly what is left out."""
    text = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert all(f"`{name}`" in text for name in tree.SKIPPED)


async def test_what_a_killed_process_left_is_swept(tmp_path: Path, cache: Cache) -> None:
    """A draft that nobody has written for a day is removed by the next packing; one that may still be written stays."""
    drafts = tmp_path / "cache" / "drafts"
    drafts.mkdir(parents=True)
    for name in ("old", "new"):
        (drafts / name).write_bytes(b"half")
    os.utime(drafts / "old", (0, 0))
    await pack(str(make(tmp_path / "data")), cache)
    assert [path.name for path in drafts.iterdir()] == ["new"]
