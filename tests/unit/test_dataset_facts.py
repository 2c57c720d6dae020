"""What is known of a dataset at submit: counted from its names, and not looked into twice."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from remote_trainer.config import Settings
from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.facts import facts_of
from remote_trainer.dataset.sources import open_source
from remote_trainer.errors import DatasetError
from remote_trainer.model import Facts
from remote_trainer.service import data
from tests.unit.test_dataset_inspect import PNG

NAMES = ["a.png", "sub/b.PNG", "a.txt", "sub/a.mask.png", ".hidden.png", "__MACOSX/a.png", "folder.png/readme"]
FACTS = Facts(images=2, files=6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return tmp_path / "data"


def test_images_are_what_a_training_sees_as_such() -> None:
    """Not masks, hidden files, what is never shipped, or a folder named like an image; other formats that trainings read are."""
    assert facts_of(NAMES) == FACTS
    assert facts_of(["a.tif", "b.TIFF", "c.avif", "d.jpeg", "e.gif", "f.webp", "g.bmp", "h.jfif"]).images == 8


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_any_source_is_counted_alike(folder: Path, kind: str) -> None:
    """A folder, an archive, compressed or not."""
    source = folder
    if kind == "zip":
        source = folder.with_suffix(".zip")
        with zipfile.ZipFile(source, "w") as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
    elif kind != "folder":
        source = folder.with_name(f"data.{kind}")
        with tarfile.open(source, "w:gz" if kind == "tar.gz" else "w") as tar:
            tar.add(folder, ".")
    assert open_source(str(source)).facts() == FACTS


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    """With what to do."""
    (tmp_path / "a.zip").write_bytes(b"PK broken")
    with pytest.raises(DatasetError, match="check the archive"):
        open_source(str(tmp_path / "a.zip")).facts()


async def test_what_was_examined_before_is_known(folder: Path, tmp_path: Path) -> None:
    """An inspection counts, too; once that is noted, unchanged data is neither examined nor counted again, and changed data is both."""
    settings, source = Settings(cache_dir=tmp_path / "cache"), str(folder)
    first = await data.examine(settings, source, wants_facts=True)
    assert first.report is not None and first.facts == first.report.facts == FACTS
    noted = Facts(images=99, files=99)
    Cache(settings.cache_dir).note_sound(source, first.signature, noted)
    again = await data.examine(settings, source, wants_facts=True)
    assert (again.facts, again.report, await data.count(settings, source)) == (noted, None, noted)
    (folder / "c.png").write_bytes(PNG)
    changed = Facts(images=3, files=7)
    assert await data.count(settings, source) == changed
    last = await data.examine(settings, source, wants_facts=False)
    assert last.report is not None and last.facts == changed


async def test_without_a_dataset_nothing_is_known(tmp_path: Path) -> None:
    """Nor asked for."""
    assert (await data.examine(Settings(cache_dir=tmp_path), None, wants_facts=True)).facts is None
