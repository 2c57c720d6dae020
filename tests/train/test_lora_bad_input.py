"""Bad input: each case is one error that names the file or the field, before anything expensive."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.support.patience import PATIENCE_S
from tests.support.smalldisk import fill, small_disk
from tests.train.conftest import PHOTOGRAPHS, SCRIPTS, TINY, Train, arguments, chosen_options, tool

TRAIN = SCRIPTS / "sd15_lora" / "train.py"
CAT = PHOTOGRAPHS / "cat00.jpg"


def image(mode: str = "RGB", size: tuple[int, int] = (64, 64), colour: object = None) -> Image.Image:
    return Image.new(mode, size) if colour is None else Image.new(mode, size, colour)  # type: ignore[arg-type]


def saved(made: Image.Image) -> Callable[[Path], None]:
    return lambda path: made.save(path)


def content(data: bytes) -> Callable[[Path], None]:
    return lambda path: Path(path).write_bytes(data) and None


def animated(path: Path) -> None:
    frames = [image(colour=(n, 0, 0)) for n in (0, 99, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def bomb(path: Path) -> None:
    """A PNG of some bytes that says it is 60,000 px wide and high."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def sizeless(path: Path) -> None:
    """A TIFF with a second page of no size, at which Pillow stumbles."""
    image().save(path)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * count, len(data))
    path.write_bytes(data + struct.pack("<HHHIII", 1, 259, 3, 1, 1, 0))


UNREADABLE = "it cannot be read as an image"
IMAGES = {
    "truncated.jpg": (content(CAT.read_bytes()[:900]), UNREADABLE),
    "sizeless.tif": (sizeless, "it cannot be read as an image (Missing dimensions)"),
    "text.png": (content(b"not a picture"), UNREADABLE),
    "empty.webp": (content(b""), UNREADABLE),
    "bomb.png": (bomb, "exceeds limit"),
    "cmyk.jpg": (saved(image("CMYK", colour=(9, 9, 9, 9))), "its colours are CMYK"),
    "deep.png": (saved(image("I;16", colour=40000)), "more than 8 bits"),
    "glass.png": (saved(image("RGBA", colour=(9, 9, 9, 99))), "transparent parts"),
    "tiny.png": (saved(image(size=(64, 15))), "64×15 px; the shorter side must be at least 16"),
    "strip.png": (saved(image(size=(20, 600))), "20×600 px: its bucket, 32×128, would show only 13% of it"),
    "moving.gif": (animated, "animated or has several pages (3)"),
    "nowhere.png": (lambda path: path.symlink_to("gone.png"), "a link that leads nowhere"),
    "circle.png": (lambda path: path.symlink_to(path.name), "a link that leads nowhere"),
    "x" * 251 + ".png": (content(b""), UNREADABLE),
    "größe 図\u202e.png": (content(b""), UNREADABLE),
    "two\nstep 9 loss 0.1.png": (content(b""), UNREADABLE),
    os.fsdecode(b"latin-\xe9.png"): (content(b""), UNREADABLE),
}


def test_every_bad_image_is_named_on_one_line_of_one_error(tmp_path: Path) -> None:
    """Whatever is wrong with them and however they are called, all are listed at once with the reason, and the good one is not."""
    from lora.files import shown

    saved(image())(tmp_path / "good.png")
    for name, (write, _) in IMAGES.items():
        write(tmp_path / name)
    message = refusal(tmp_path, trigger="x")
    lines = dict(line.strip().split(": ", 1) for line in message.splitlines()[1:])
    assert message.startswith(f"{len(IMAGES)} images cannot be used in ") and set(lines) == {shown(name) for name in IMAGES}
    assert all(why in lines[shown(name)] for name, (_, why) in IMAGES.items())
    assert message.isprintable() is False and message.replace("\n", "").isprintable()


def refusal(dataset: Path, **more: object) -> str:
    from lora.data import survey
    from lora.ends import BadInput

    with pytest.raises(BadInput) as caught:
        survey(chosen_options(**{"dataset": dataset, "resolution": 64, "bucket_step": 32, **more}))
    return str(caught.value)


CAPTIONS = {
    "latin-1": ("Müller".encode("latin-1"), "a.txt: it is not UTF-8 (byte 1: "),
    "utf-16": ("a cat".encode("utf-16"), "a.txt: it is UTF-16 (byte 0: "),
    "utf-16 without a mark": ("a cat".encode("utf-16-le"), "a.txt: it holds U+0000"),
    "binary": (b"a\x07cat", "a.txt: it holds U+0007"),
    "empty": (b" \n\t", "have no caption (a .txt file beside the image"),
    "missing": (None, "have no caption (a .txt file beside the image"),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_a_caption_that_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    """Another encoding is no mojibake, a binary file no caption, and none at all a fault unless it is allowed."""
    data, expected = CAPTIONS[case]
    saved(image())(tmp_path / "a.png")
    if data is not None:
        (tmp_path / "a.txt").write_bytes(data)
    message = refusal(tmp_path)
    assert expected in message and "a.png" in message


METADATA = {
    "no JSON": ("nonsense", "metadata.jsonl:1: it is not JSON"),
    "nested without end": ("[" * 100_000, "metadata.jsonl:1: it is not JSON"),
    "no object": ("[1]", "metadata.jsonl:1: it needs file_name and one of text, caption, prompt, both text"),
    "no text": ('{"file_name": "a.png", "text": 5}', "metadata.jsonl:1: it needs file_name and one of"),
    "gone": ('\n{"file_name": "b.png", "text": "x"}', "metadata.jsonl:2: the image b.png is not there"),
    "no name": (json.dumps({"file_name": "a\0.png", "text": "x"}), "metadata.jsonl:1: the image a\\x00.png is not there"),
    "too long": (json.dumps({"file_name": "a" * 999, "text": "x"}), "is not there"),
    "half a character": ('{"file_name": "a.png", "text": "\\ud83d"}', "metadata.jsonl:1: it holds U+D83D"),
    "twice": ('{"file_name": "a.png", "text": "x"}\n' * 2, "metadata.jsonl:2: the image a.png has a caption in an earlier line"),
    "not UTF-8": (b"\xff\xfe{}", "metadata.jsonl: it is UTF-16"),
}


@pytest.mark.parametrize("case", METADATA)
def test_wrong_metadata_is_named_with_its_line(case: str, tmp_path: Path) -> None:
    """File, line and reason."""
    data, expected = METADATA[case]
    saved(image())(tmp_path / "a.png")
    (tmp_path / "metadata.jsonl").write_bytes(data if isinstance(data, bytes) else data.encode())
    assert expected in refusal(tmp_path)


FOLDERS = {
    "a file": (lambda folder: folder.write_text(""), {}, "is not a folder"),
    "absent": (lambda folder: None, {}, "does not exist"),
    "empty": (lambda folder: folder.mkdir(), {}, "there is no image in"),
    "empty prior": (lambda folder: folder.mkdir(), {"dataset": PHOTOGRAPHS, "prior": ""}, "there is no image in"),
    "output within": (lambda folder: folder.mkdir(), {"output": "out"}, "out lies inside the dataset"),
    "cache within": (lambda folder: folder.mkdir(), {"cache": "cache"}, "cache lies inside the dataset"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_cannot_be_used_is_named(case: str, tmp_path: Path) -> None:
    """Absent, empty, no folder at all, or one that the training would write its own pictures into."""
    make, more, expected = FOLDERS[case]
    folder = tmp_path / "photos"
    make(folder)
    places = {name: value if name == "dataset" else folder / value for name, value in more.items()}
    message = refusal(**{"dataset": folder, **places})
    assert expected in message and str(folder) in message


def test_links_and_folders_that_are_called_like_images(tmp_path: Path) -> None:
    """A folder named x.png is a folder, a link to a folder is followed once however it loops, and hidden ones are passed over."""
    from lora.data import survey

    for folder in ("x.png", ".thumbnails", "elsewhere"):
        (tmp_path / folder).mkdir()
        saved(image())(tmp_path / folder / "a.jpg")
    (tmp_path / "elsewhere").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    (tmp_path / "x.png" / "back").symlink_to(tmp_path)
    found = survey(chosen_options(dataset=tmp_path, resolution=64, bucket_step=32, trigger="x"))
    assert [str(photo.path.relative_to(tmp_path)) for photo in found] == ["linked/a.jpg", "x.png/a.jpg"]


def test_likely_mistakes_are_told(tmp_path: Path) -> None:
    """Told and accepted: the same image twice, two images with one caption file, ones that lose more than half or cannot be read."""
    from lora.data import survey
    from lora.report import report

    for name, size in (("a.jpg", (64, 64)), ("a.png", (70, 70)), ("b.png", (70, 70)), ("long.png", (640, 64))):
        saved(image(size=size))(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text("a thing, \x85" + "very " * 9000)
    for name in ("c.HEIC", "d.heic", "e.psd"):
        (tmp_path / name).touch()
    options = chosen_options(dataset=tmp_path, prior=tmp_path, resolution=64, bucket_step=32)
    said = report(options, survey(options))
    assert "dataset: 4 prior images are images of the dataset, too, such as a.jpg, a.png, b.png" in said
    assert "dataset: files are passed over (2 .heic, 1 .psd): make JPEG, PNG or WebP of them to train on them" in said
    assert "dataset: 1 images have the shape of no bucket and lose more than half, such as long.png" in said
    assert "dataset: a.png and b.png are the same image" in said and "dataset: a.jpg and a.png share one caption file" in said
    assert all(line.isprintable() for line in said) and max(map(len, said)) < 200


FIELDS = {
    "rank": ({"rank": 500}, "--rank is 500: the base's layer "),
    "conv_rank": ({"conv_rank": 999, "targets": "locon"}, "--conv-rank is 999: the base's layer "),
    "text_rank": ({"text_rank": 300, "text_lr": 1.0}, "--text-rank is 300: the base's layer "),
    "dropout": (
        {"dropout": 0.9, "network": "loha"},
        "--dropout is 0.9: the base's layer .* outputs, and loha would leave out all",
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_what_a_layer_is_too_small_for_is_refused(case: str, base: Path) -> None:
    """By the headers of the base's files, before it is loaded; a LoKr may be of any rank."""
    from lora.adapters import check
    from lora.base import find
    from lora.ends import BadInput

    options, expected = FIELDS[case]
    found, family = find(str(base), tool("sdxl").kind), tool("sdxl").family()
    with pytest.raises(BadInput, match=expected):
        check(found, family, chosen_options(**options))
    check(found, family, chosen_options(**{**options, "network": "lokr", "dropout": 0.5}))


def test_a_target_that_the_base_lacks_is_refused(bases: Callable[[str], Path]) -> None:
    """The error names the flag and what was looked for."""
    from lora.adapters import check
    from lora.base import find
    from lora.ends import BadInput

    class Other(tool("sd15").family()):  # type: ignore[misc]
        TARGETS = {"attention": ("to_x",)}  # noqa: RUF012

    with pytest.raises(BadInput, match="--targets attention: the base has no layer that ends in to_x"):
        check(find(str(bases("sd15")), tool("sd15").kind), Other, chosen_options("sd15"))


def test_a_full_disk_leaves_what_was_whole(train: Train, tmp_path: Path) -> None:
    """Full during a checkpoint or the export, the checkpoint before stays and nothing half written; with room again, the same files."""
    from lora.checkpoint import newest
    from safetensors import SafetensorError

    options = {"steps": 2, "checkpoint_every": 1, "targets": "attention", "no_tensorboard": True}
    options["metrics"] = tmp_path / "metrics.jsonl"
    whole = train("sd15", **options, output=tmp_path / "whole")
    with small_disk(tmp_path / "disk", "100m") as disk:

        def full() -> None:
            if (disk / "checkpoints" / "step-000001").exists() and not (disk / "fill").exists():
                fill(disk)

        def fails(stopping: Callable[[], None], last: str) -> None:
            with pytest.raises((OSError, SafetensorError), match="No space left"):
                train("sd15", stopping, **options, output=disk)
            found = newest(disk / "checkpoints")
            assert found is not None and found.path.name == last
            assert [path.name for path in disk.rglob("*") if path.name.startswith(".") or path.suffix == ".part"] == []

        fails(full, "step-000001")
        (disk / "fill").unlink()
        shutil.rmtree(train("sd15", **options, output=disk) / "final")
        fill(disk)
        fails(lambda: None, "step-000002")
        assert list(disk.glob("final/*")) == []
        (disk / "fill").unlink()
        train("sd15", **options, output=disk)
        for path in whole.glob("final/*.safetensors"):
            assert (disk / "final" / path.name).read_bytes() == path.read_bytes()


def test_a_full_disk_ends_with_code_74(bases: Callable[[str], Path], photographs: Path, tmp_path: Path) -> None:
    """While images are encoded, too; the message says so, and the entries that were written stay."""
    with small_disk(tmp_path / "disk", "64k") as disk:
        places = {"base": bases("sd15"), "dataset": photographs, "cache": disk, "output": tmp_path / "output"}
        command = [sys.executable, str(TRAIN), *arguments(**{**TINY, **places, "steps": 1, "targets": "attention"})]
        process = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        assert process.returncode == 74 and "No space left on device" in process.stderr and "run again" in process.stderr
        kept = sorted(disk.rglob("*.safetensors"))
        assert kept and not list(disk.rglob("*.part")) and "Traceback" not in process.stderr
