"""What collecting is tried against: a folder as host, a folder as object store that can be down."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_trainer.errors import ObjectsUnavailable
from remote_trainer.model import JobId, Output, OutputKind
from remote_trainer.objects.local import LocalObjects
from remote_trainer.ports import Progress, RemoteFile, StoredObject
from remote_trainer.threads import Watch
from remote_trainer.worker.collect import CollectResult
from remote_trainer.worker.records import path_of
from tests.support.patience import PATIENCE_S

CHECKPOINTS = Output(name="checkpoints", kind=OutputKind.CHECKPOINT, glob="checkpoints/*", marker="done.json", keep=2)
LORA = Output(name="lora", kind=OutputKind.FINAL, glob="lora.bin")
SAMPLES = Output(name="samples", kind=OutputKind.ARTIFACT, glob="samples/**")
JOB = JobId("j1")


@dataclass
class FolderHost:
    """A host whose output folder is a folder here; ``on_fetch`` may meddle before a file is copied."""

    folder: Path
    fetched: list[str] = field(default_factory=list)
    settled: list[float] = field(default_factory=list)
    on_fetch: Callable[[str], None] = lambda path: None
    lies: list[RemoteFile] = field(default_factory=list)

    def write(self, path: str, data: bytes = b"data", mtime: float = 1000) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        os.utime(target, (mtime, mtime))

    def checkpoint(self, step: int, *, marker: bool = True, mtime: float = 1000) -> None:
        self.write(f"checkpoints/step-{step}/weights", b"w%d" % step, mtime)
        if marker:
            self.write(f"checkpoints/step-{step}/done.json", b"{}", mtime)

    async def outputs(self, key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        self.settled.append(settled_s)
        return [*map(self._listed, sorted(each for each in self.folder.rglob("*") if each.is_file())), *self.lies]

    def _listed(self, path: Path) -> RemoteFile:
        data, stat = path.read_bytes(), path.stat()
        name = path.relative_to(self.folder).as_posix()
        return RemoteFile(path=name, size=stat.st_size, mtime=stat.st_mtime, sha256=hashlib.sha256(data).hexdigest())

    async def fetch(self, key: str, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        self.on_fetch(path)
        self.fetched.append(path)
        with target.open("ab") as sink:
            sink.write((self.folder / path).read_bytes()[sink.tell() : size])


class FlakyObjects(LocalObjects):
    """A folder that can be down, for writing only or altogether, and hold up what is being written."""

    down = silent = False
    puts = 0

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.writing, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()

    async def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        if self.silent:
            raise ObjectsUnavailable("silent")
        async for each in super().list(prefix):
            yield each

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        self.puts += 1
        if self.down:
            raise ObjectsUnavailable("down")
        return await super().put(key, path, sha256=sha256, progress=progress)

    def _put(self, key: str, source: Path, sha256: str, watch: Watch) -> StoredObject:
        self.writing.set()
        self.goes_on.wait(PATIENCE_S)
        return super()._put(key, source, sha256, watch)


async def stored(objects: LocalObjects, prefix: str = "t/j1/a1") -> list[str]:
    return sorted([path_of(each.key, "t/j1/a1/") or each.key async for each in objects.list(prefix)])


def paths(result: CollectResult) -> list[str]:
    return [artifact.path for artifact in result.artifacts]
