"""What a dataset holds, and what is wrong with it: counts, sizes, captions, duplicates, images that are not whole.

Rules for editing: blocking work in a thread; reads every byte once. Faults are what a training would stumble over; the rest is only told.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from remote_trainer.dataset.facts import facts_of
from remote_trainer.dataset.images import SUFFIXES, Fault, Image, decode_fault, examine
from remote_trainer.dataset.sources import open_source
from remote_trainer.dataset.threads import Gone, in_thread
from remote_trainer.dataset.tree import Found, Tree
from remote_trainer.errors import DatasetError
from remote_trainer.model import Facts

_CAPTIONS = (".txt", ".caption")
_AT_ONCE = 4
_NAMED = 5  # files named in a message; the report has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A dataset in numbers. Paths are relative and sorted."""

    source: str
    files: int
    bytes: int
    formats: Mapping[str, int] = field(default_factory=dict)  # "JPEG" → images; ".txt" → other files, by suffix
    images: int = 0
    resolutions: Mapping[str, int] = field(default_factory=dict)  # "1024×768" → images, most frequent first
    captions_missing: tuple[str, ...] = ()  # images without one; only where some image has one
    captions_empty: tuple[str, ...] = ()
    duplicates: tuple[tuple[str, ...], ...] = ()  # images of equal bytes
    corrupt: Mapping[str, str] = field(default_factory=dict)  # path → why
    facts: Facts = field(default_factory=Facts)  # what presets are chosen by

    def check(self) -> None:
        """Raise DatasetError that names the images a training would fail on."""
        if not self.corrupt:
            return
        named = [f"{path} {why}" for path, why in list(self.corrupt.items())[:_NAMED]]
        more = f" (and {len(self.corrupt) - _NAMED} more)" if len(self.corrupt) > _NAMED else ""
        raise DatasetError(
            f"{self.source} holds {len(self.corrupt)} image{'s' * (len(self.corrupt) > 1)} that cannot be used: {'; '.join(named)}{more}; "
            "replace or remove them"
        )


async def inspect(source: str, *, outside_links: bool = False) -> Report:
    """Look into a folder, archive or bucket. DatasetError if it cannot be read; what is in it is reported, not raised."""
    return await in_thread(lambda gone: _inspect(source, outside_links, gone))


def _inspect(source: str, outside_links: bool, gone: Gone) -> Report:
    with open_source(source, outside_links=outside_links).tree() as tree:
        files = sorted((found for found in tree.found.values() if not found.entry.folder), key=lambda found: found.entry.path)
        pictures = [found for found in files if _suffix(found) in SUFFIXES]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            looks = list(pool.map(lambda found: _look(found, gone), pictures))
        whole = [look.image for look in looks if look.image]
        missing, empty = _captions(pictures, tree)
        return Report(
            source=source,
            files=len(files),
            bytes=sum(found.entry.size for found in files),
            formats=_counted(
                [*(image.format for image in whole), *(_suffix(found) for found in files if _suffix(found) not in SUFFIXES)]
            ),
            images=len(pictures),
            resolutions=_counted(f"{image.width}×{image.height}" for image in whole),
            captions_missing=missing,
            captions_empty=empty,
            duplicates=_duplicates(looks),
            corrupt={look.path: look.fault for look in looks if look.fault},
            facts=facts_of(found.entry.path for found in files),
        )


@dataclass(frozen=True, slots=True)
class _Look:
    path: str
    sha256: str
    image: Image | None
    fault: str = ""


def _look(found: Found, gone: Gone) -> _Look:
    gone.check()
    path = found.entry.path
    try:
        data = Path(found.place).read_bytes()
    except OSError as error:
        raise DatasetError(f"cannot read {found.place}: {error.strerror}; check that you may read it") from error
    sha256 = hashlib.sha256(data).hexdigest()
    try:
        image = examine(data)
    except Fault as fault:
        return _Look(path, sha256, None, str(fault))
    undecodable = decode_fault(Path(found.place))
    return _Look(path, sha256, None if undecodable else image, undecodable)


def _captions(pictures: Iterable[Found], tree: Tree) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (images without a caption, captions without words); no image is missed one where none has one."""
    missing, empty, some = [], [], False
    for found in pictures:
        stem = PurePosixPath(found.entry.path).with_suffix("")
        caption = next((tree.found[f"{stem}{suffix}"] for suffix in _CAPTIONS if f"{stem}{suffix}" in tree.found), None)
        if caption is None:
            missing.append(found.entry.path)
            continue
        some = True
        if not Path(caption.place).read_bytes().strip():
            empty.append(caption.entry.path)
    return (tuple(missing) if some else ()), tuple(empty)


def _duplicates(looks: Iterable[_Look]) -> tuple[tuple[str, ...], ...]:
    groups: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        groups[look.sha256].append(look.path)
    return tuple(tuple(paths) for paths in groups.values() if len(paths) > 1)


def _counted(words: Iterable[str]) -> Mapping[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda item: (-item[1], item[0])))


def _suffix(found: Found) -> str:
    return PurePosixPath(found.entry.path).suffix.lower()
