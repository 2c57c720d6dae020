"""Inspecting: what a training would stumble over is found and named before anything is rented."""

from __future__ import annotations

import io
import random
import shutil
from pathlib import Path

import pytest

from remote_trainer.dataset.images import Fault, examine
from remote_trainer.dataset.inspect import inspect
from remote_trainer.errors import DatasetError

CATS = Path(__file__).parents[1] / "fixtures" / "muybridge-cat"
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)
GIF = b"GIF89a\x02\x00\x03\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff,\x00\x00\x00\x00\x02\x00\x03\x00\x00\x02\x02\x84Q\x00;"


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CATS, tmp_path / "cats"))


async def test_a_good_dataset_has_no_faults() -> None:
    """Real photographs with captions: all counted, nothing complained of."""
    report = await inspect(str(CATS))
    assert (report.images, report.formats["JPEG"], report.corrupt) == (32, 32, {})
    assert sum(report.resolutions.values()) == 32
    assert (report.captions_missing, report.captions_empty, report.duplicates) == ((), (), ())
    report.check()


async def test_faults_are_named(cats: Path) -> None:
    """Missing and empty captions, copies and an image cut short are each told with their names."""
    (cats / "cat00.txt").unlink()
    (cats / "cat01.txt").write_text(" \n")
    shutil.copy(cats / "cat02.jpg", cats / "copy.jpg")
    shutil.copy(cats / "cat02.txt", cats / "copy.txt")
    whole = (cats / "cat03.jpg").read_bytes()
    (cats / "cat03.jpg").write_bytes(whole[: len(whole) // 2])
    report = await inspect(str(cats))
    assert report.captions_missing == ("cat00.jpg",)
    assert report.captions_empty == ("cat01.txt",)
    assert report.duplicates == (("cat02.jpg", "copy.jpg"),)
    with pytest.raises(DatasetError, match=r"cat03\.jpg is cut short; replace or remove"):
        report.check()


async def test_captions_are_no_duty(tmp_path: Path) -> None:
    """Where no image has a caption, none is missing."""
    shutil.copy(CATS / "cat00.jpg", tmp_path)
    assert (await inspect(str(tmp_path))).captions_missing == ()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\xff\xd8\xff", PNG[:40]])
async def test_what_is_no_image_is_corrupt(tmp_path: Path, content: bytes) -> None:
    """An empty file, an error page and a stump are found whatever their suffix says."""
    (tmp_path / "a.png").write_bytes(content)
    assert list((await inspect(str(tmp_path))).corrupt) == ["a.png"]


@pytest.mark.parametrize(("data", "expected"), [(PNG, ("PNG", 1, 1)), (GIF, ("GIF", 2, 3))])
def test_sizes_come_from_the_header(data: bytes, expected: tuple[str, int, int]) -> None:
    """Format, width and height are read without a decoder."""
    image = examine(data)
    assert (image.format, image.width, image.height) == expected


def test_a_damaged_png_is_found_without_a_decoder() -> None:
    """PNG carries check sums: one wrong bit is a fault."""
    with pytest.raises(Fault, match="damaged"):
        examine(PNG[:45] + bytes([PNG[45] ^ 1]) + PNG[46:])


def test_every_stump_of_an_image_is_a_fault() -> None:
    """However short an image is cut, it is not taken for whole."""
    for data in (PNG, GIF, (CATS / "cat00.jpg").read_bytes()):
        for end in {*range(0, len(data) - 2, 97), len(data) - 2}:
            with pytest.raises(Fault):
                examine(data[:end])


def test_nonsense_raises_nothing_else() -> None:
    """Whatever bytes follow an image's first ones, the answer is an image or a Fault, soon."""
    noise = random.Random(1)
    for start in (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x00\x00\x00\x00WEBP", b"GIF89a", b"BM"):
        for _ in range(300):
            try:
                examine(start + noise.randbytes(noise.randrange(200)))
            except Fault:
                continue


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_what_pillow_writes_is_understood(kind: str) -> None:
    """Every format and its size are read as Pillow wrote them, and its first two thirds are a fault."""
    pillow = pytest.importorskip("PIL.Image")
    buffer = io.BytesIO()
    pillow.effect_noise((67, 45), 50).convert("RGB").save(buffer, kind)
    data = buffer.getvalue()
    image = examine(data)
    assert (image.format.upper(), image.width, image.height) == (kind, 67, 45)
    with pytest.raises(Fault):
        examine(data[: len(data) * 2 // 3])
