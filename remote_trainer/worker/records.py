"""What is written down beside the artifacts in the object store: a record for each complete unit, and the manifest of an attempt.

    <tenant>/<job>/a<n>/<folder>/<digest>/<name>           the files, as in the output folder; another content has another key
    <tenant>/<job>/a<n>/farewell.tar                       see ``outbox_key``; counts for nothing
    <tenant>/<job>/records/a<n>/unit-<time>-<name>.json    all files of one unit; written when each of them is verified
    <tenant>/<job>/records/a<n>/manifest-<digest>.json     all artifacts of the attempt; written last

So nothing but the object store is needed to know what counts, and to find the state to resume from.

Rules for editing: canonical JSON (sorted keys, no spaces). The names of records sort from old to new. What cannot be read, or is
not there as recorded, does not count: it is logged and passed over.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from remote_trainer import log
from remote_trainer.document import from_json, to_document
from remote_trainer.errors import DigestMismatch, Incomplete, NotFound
from remote_trainer.model import Artifact, Checkpoint, JobId, Manifest, OutputKind
from remote_trainer.ports import Objects
from remote_trainer.threads import to_end
from remote_trainer.worker.outputs import Unit, padded

T = TypeVar("T")

AT_ONCE = 4
_DIGITS = 16  # of a file's SHA-256, in its key
_log = log.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A complete unit: all its files are verified in the object store."""

    attempt: int
    output: str
    kind: OutputKind
    unit: str
    mtime: int
    artifacts: tuple[Artifact, ...]
    key: str = ""

    @property
    def checkpoint(self) -> Checkpoint:
        """The unit as state to resume from."""
        return Checkpoint(attempt=self.attempt, unit=self.unit, artifacts=self.artifacts)


def files_prefix(tenant: str, job: JobId, attempt: int) -> str:
    """Return the prefix of an attempt's files, with its slash."""
    return f"{tenant}/{job}/a{attempt}/"


def file_key(tenant: str, job: JobId, attempt: int, path: str, sha256: str) -> str:
    """Return the key of one version of a file. No worker, however late, can put another content in its place."""
    folder, slash, name = path.rpartition("/")
    return f"{files_prefix(tenant, job, attempt)}{folder}{slash}{sha256[:_DIGITS]}/{name}"


def outbox_key(tenant: str, job: JobId, attempt: int) -> str:
    """Return the key under which a machine that everybody has left puts all of its outputs, as one tar file that nobody has verified."""
    return f"{files_prefix(tenant, job, attempt)}farewell.tar"


def path_of(key: str, prefix: str) -> str | None:
    """Return the path of the file that lies under a key below its attempt's prefix, None if it is no file of ours."""
    *folders, digest, name = key.removeprefix(prefix).split("/") if key.count("/", len(prefix)) else ("", "")
    return "/".join([*folders, name]) if re.fullmatch(f"[0-9a-f]{{{_DIGITS}}}", digest) else None


def records_prefix(tenant: str, job: JobId, attempt: int) -> str:
    """Return the prefix of an attempt's records, with its slash."""
    return f"{tenant}/{job}/records/a{attempt}/"


def record_of(unit: Unit, attempt: int, artifacts: tuple[Artifact, ...], prefix: str) -> Record:
    """Return the record of a unit under a name that sorts by the unit's age."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", padded(unit.name))[-100:]
    named = "\0".join([unit.output.name, unit.name, *(artifact.sha256 for artifact in artifacts)])
    unique = hashlib.sha256(named.encode()).hexdigest()[:_DIGITS]
    return Record(
        attempt=attempt,
        output=unit.output.name,
        kind=unit.output.kind,
        unit=unit.name,
        mtime=unit.mtime,
        artifacts=artifacts,
        key=f"{prefix}unit-{unit.mtime:012}-{readable}-{unique}.json",
    )


def manifest_of(job: JobId, attempt: int, artifacts: tuple[Artifact, ...], complete: bool, prefix: str) -> Manifest:
    """Return the manifest of an attempt under a key that no other manifest has."""
    named = "\0".join([str(complete), *(artifact.key for artifact in artifacts), *(artifact.sha256 for artifact in artifacts)])
    unique = hashlib.sha256(named.encode()).hexdigest()[:_DIGITS]
    return Manifest(job=job, attempt=attempt, artifacts=artifacts, complete=complete, key=f"{prefix}manifest-{unique}.json")


async def write(objects: Objects, key: str, value: Record | Manifest) -> None:
    """Put a value as canonical JSON, verified."""
    text = json.dumps(to_document(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    digest = hashlib.sha256(text).hexdigest()
    with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
        path = Path(folder) / "record"
        await to_end(lambda: path.write_bytes(text))
        await objects.put(key, path, sha256=digest)
    try:
        await objects.verify(key, size=len(text), sha256=digest)
    except (DigestMismatch, Incomplete):
        await objects.delete(key)  # or the next put would find it there
        raise


async def read(objects: Objects, kind: type[T], key: str, sha256: str) -> T | None:
    """Return a value that was written, None if it is not there or cannot be read."""
    with tempfile.TemporaryDirectory(prefix="remote-trainer-") as folder:
        path = Path(folder) / "record"
        try:
            await objects.get(key, path, sha256=sha256)
            return from_json(kind, await asyncio.to_thread(path.read_bytes))
        except (NotFound, DigestMismatch, ValidationError) as error:
            _log.warning(log.event("fetching"), action="record_unreadable", key=key, why=type(error).__name__)
            return None


async def records(objects: Objects, prefix: str) -> AsyncIterator[Record]:
    """Yield the records below a prefix, oldest first."""
    found = [each async for each in objects.list(prefix) if "/unit-" in each.key]
    for each in found:
        record = await read(objects, Record, each.key, each.sha256)
        if record:
            yield record


async def newest_checkpoint(objects: Objects, tenant: str, job: JobId, refused: Collection[Checkpoint] = ()) -> Checkpoint | None:
    """Return the newest checkpoint of any attempt whose files are all there as recorded; None if there is none.

    Those that are ``refused`` turned out to be damaged when they were read.
    """
    found = [each async for each in objects.list(f"{tenant}/{job}/records") if "/unit-" in each.key]
    for each in sorted(found, key=lambda each: padded(each.key), reverse=True):  # a10 is newer than a9
        record = await read(objects, Record, each.key, each.sha256)
        if record is None or record.kind is not OutputKind.CHECKPOINT or record.checkpoint in refused:
            continue
        try:
            await verify(objects, record.artifacts)
        except (Incomplete, DigestMismatch) as error:
            _log.warning(log.event("transferring"), action="checkpoint_passed_over", unit=record.unit, why=str(error))
            continue
        return record.checkpoint
    return None


async def read_manifest(objects: Objects, manifest: Manifest) -> Manifest | None:
    """Return an attempt's manifest as it is in the object store, None if it is not there as it was written."""
    found = await objects.head(manifest.key)
    return await read(objects, Manifest, manifest.key, found.sha256) if found else None


async def verify_manifest(objects: Objects, manifest: Manifest) -> None:
    """Make sure that everything a manifest lists is in the object store as listed: Incomplete or DigestMismatch if not."""
    await verify(objects, manifest.artifacts)


async def verify(objects: Objects, artifacts: Iterable[Artifact]) -> None:
    """Make sure that artifacts are in the object store as listed."""

    async def one(artifact: Artifact) -> None:
        await objects.verify(artifact.key, size=artifact.size, sha256=artifact.sha256)

    await each_of(tuple(artifacts), one)


async def check_there(objects: Objects, artifacts: Iterable[Artifact]) -> None:
    """Make sure that what was verified a while ago has not vanished since: Incomplete if it has."""

    async def one(artifact: Artifact) -> None:
        found = await objects.head(artifact.key)
        if found is None or (found.size, found.sha256) != (artifact.size, artifact.sha256):
            raise Incomplete(f"{artifact.key} has vanished from the object store since it was verified: it is fetched again")

    await each_of(tuple(artifacts), one)


async def each_of(items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do the work for all items, a few at a time; the first error ends the rest and is raised as itself."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(min(AT_ONCE, len(items))):
                group.create_task(worker(), name=f"artifacts {number}")
    except ExceptionGroup as several:
        raise several.exceptions[0] from several
