"""Where data comes from: a folder, an archive, a bucket. Each can say cheaply whether it changed, and become a tree.

Rules for editing: blocking; called in threads. An archive is somebody else's bytes: nothing is written outside the folder it is unpacked
in, whatever its members are called, and links and devices in it are refused.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from remote_trainer.dataset.facts import facts_of
from remote_trainer.dataset.tree import Tree, scan
from remote_trainer.errors import DatasetError
from remote_trainer.model import Facts

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")


class Source(Protocol):
    """Something that holds a tree."""

    @property
    def name(self) -> str:
        """What the cache knows it by, and what messages call it."""
        ...

    @property
    def fleeting(self) -> bool:
        """Is the tree only there while it is packed?"""
        ...

    def signature(self) -> str:
        """Changes whenever the data changes; cheap."""
        ...

    def facts(self) -> Facts:
        """What the names of the files tell. Cheap, but for a compressed archive, which is read for it."""
        ...

    def tree(self) -> AbstractContextManager[Tree]:
        """The data as files."""
        ...


def open_source(source: str, *, outside_links: bool = False) -> Source:
    """Tell a folder, an archive and a bucket apart. DatasetError if it is none of them."""
    if source.startswith("s3://"):
        from remote_trainer.dataset.bucket import Bucket  # needs the s3 extra

        return Bucket(source)
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DatasetError(f"cannot read {source}: {error.strerror}; give a folder, an archive or s3://bucket/prefix") from error
    if stat.S_ISDIR(mode):
        return Folder(path, outside_links=outside_links)
    if stat.S_ISREG(mode) and path.name.lower().endswith(ARCHIVES):
        return Archive(path)
    raise DatasetError(f"{source} is neither a folder nor an archive ({', '.join(ARCHIVES)}); unpack it and give the folder")


class Folder:
    """A folder of this machine."""

    fleeting = False

    def __init__(self, path: Path, *, outside_links: bool) -> None:
        self.name = os.path.abspath(path)
        self._outside_links = outside_links
        self._tree: Tree | None = None

    def signature(self) -> str:
        self._tree = scan(Path(self.name), outside_links=self._outside_links)
        return self._tree.signature

    def facts(self) -> Facts:
        with self.tree() as tree:
            return facts_of(entry.path for entry in tree.entries if not entry.folder)

    @contextlib.contextmanager
    def tree(self) -> Iterator[Tree]:
        yield self._tree or scan(Path(self.name), outside_links=self._outside_links)


class Archive:
    """A file that holds files; unpacked beside it is never needed: into a folder that is gone afterwards."""

    fleeting = True

    def __init__(self, path: Path) -> None:
        self.name = os.path.abspath(path)

    def signature(self) -> str:
        status = os.stat(self.name)
        return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"

    def facts(self) -> Facts:
        with self._opening():
            if self._zipped:
                with zipfile.ZipFile(self.name) as archive:
                    return facts_of(member.filename for member in archive.infolist() if not member.is_dir())
            with tarfile.open(self.name) as members:
                return facts_of(member.name for member in members if member.isreg())

    @contextlib.contextmanager
    def tree(self) -> Iterator[Tree]:
        with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
            with self._opening():
                if self._zipped:
                    self._unzip(Path(folder))
                else:
                    self._untar(Path(folder))
            yield scan(Path(folder))

    @property
    def _zipped(self) -> bool:
        return self.name.lower().endswith(".zip")

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        try:
            yield
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise DatasetError(
                f"cannot unpack {self.name}: {error}; check the archive, or unpack it and give the folder"
            ) from error

    def _untar(self, folder: Path) -> None:
        with tarfile.open(self.name) as archive:
            for member in archive:
                if not (member.isreg() or member.isdir()):
                    raise DatasetError(f"{self.name} holds {member.name!r:.300}, neither a file nor a folder; repack it without")
                target = folder / self._safe(member.name)
                if member.isdir():
                    target.mkdir(parents=True, exist_ok=True)
                elif content := archive.extractfile(member):
                    self._write(target, content)

    def _unzip(self, folder: Path) -> None:
        with zipfile.ZipFile(self.name) as archive:
            for member in archive.infolist():
                target = folder / self._safe(member.filename)
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise DatasetError(f"{self.name} holds {member.filename!r:.300}, a link; repack it without")
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                else:
                    with archive.open(member) as content:
                        self._write(target, content)

    def _safe(self, name: str) -> PurePosixPath:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name:
            raise DatasetError(f"{self.name} holds {name!r:.300}, a name that leaves the folder it is unpacked in; repack it")
        return path

    @staticmethod
    def _write(target: Path, content: IO[bytes]) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:  # a name that comes twice is refused
            shutil.copyfileobj(content, file, 1 << 20)
