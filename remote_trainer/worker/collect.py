"""Brings what a job writes into its output folder to the object store, while it runs and at its end.

Each round lists the files that have settled, pulls the new and changed ones into the spool folder, puts them into the object store,
verifies them there and only then removes the spooled copy. A unit counts when all its files are verified: then it is recorded, and
only then are units beyond ``keep`` dropped. The last round writes the manifest.

Each version of a file has a key of its own. So a worker that was asleep and comes back with what it saw cannot replace what its
successor has verified, and a file that changes is there in its former version until the new one is verified.

Rules for editing: a restart loses nothing: what is kept is asked of the object store, what is half pulled lies in the spool. While
the object store is down, pulling goes on (the host may vanish). The listing is the host's word: see outputs.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from remote_trainer import log
from remote_trainer.errors import ArtifactError, DigestMismatch, Incomplete, ObjectsUnavailable
from remote_trainer.model import Artifact, Checkpoint, JobId, Manifest, Output, OutputKind
from remote_trainer.ports import Host, Objects, RemoteFile
from remote_trainer.threads import to_end
from remote_trainer.worker import records
from remote_trainer.worker.outputs import Unit, arrange, locate, recorded, wanted_globs
from remote_trainer.worker.records import Record, newest_checkpoint, read_manifest, verify_manifest

__all__ = ["CollectResult", "Collector", "newest_checkpoint", "read_manifest", "verify_manifest"]

SETTLED_S = 3.0  # a file that did not change for that long is taken for written
_ROUNDS = 3  # at the end: how often to try a file that changes while it is fetched
_SPARE = 64 << 20  # bytes to leave free on the spool's disk

_log = log.get()


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectResult:
    """What is kept so far, all of it verified. The manifest is there after a final collect only."""

    artifacts: tuple[Artifact, ...]
    missing: tuple[str, ...] = ()  # required outputs of which nothing was found; known at the end only
    checkpoint: Checkpoint | None = None  # newest of this attempt
    manifest: Manifest | None = None


@dataclass
class _Round:
    """What went wrong in one round."""

    changed: dict[str, ArtifactError] = field(default_factory=dict)  # by path: tried again in the next round
    outage: ObjectsUnavailable | None = None


@dataclass(kw_only=True)
class Collector:
    """Collects the outputs of one attempt."""

    host: Host
    objects: Objects
    outputs: Sequence[Output]
    tenant: str
    job_id: JobId
    attempt: int
    label: str
    spool: Path
    count: Callable[[int], None] = lambda size: None  # told of bytes that were fetched
    _asked: bool = False  # the object store, what it has
    _stored: set[Artifact] = field(default_factory=set)  # what it has, every version
    _known: dict[str, Artifact] = field(default_factory=dict)  # by path, the version that counts
    _verified: set[Artifact] = field(default_factory=set)
    _fetched: set[Artifact] = field(default_factory=set)  # in the spool and hashed
    _records: dict[tuple[str, str], Record] = field(default_factory=dict)  # by output and unit

    async def collect(self, final: bool = False, complete: bool = True) -> CollectResult:
        """Do one round; ``final`` takes everything and ends with the manifest, ``complete`` unless the attempt went wrong.

        HostUnreachable when the way to the host breaks, ObjectsUnavailable when the object store is down: nothing is lost, call again.
        DigestMismatch at the end for a file that does not stop changing.
        """
        outage = await self._remember()
        for _ in range(_ROUNDS if final else 1):
            done = await self._round(_Round(outage=outage), settled_s=0.0 if final else SETTLED_S)
            if not done.changed:
                break
        if done.outage:
            raise done.outage
        if not final:
            return CollectResult(artifacts=self._artifacts(), checkpoint=self._checkpoint())
        if done.changed:
            path, error = next(iter(done.changed.items()))
            raise DigestMismatch(f"{len(done.changed)} output files cannot be fetched as they are listed, first {path}: {error}")
        return await self._finish(complete)

    # -- one round

    async def _round(self, this: _Round, *, settled_s: float) -> _Round:
        globs = wanted_globs(self.outputs)
        listing = await self.host.outputs(self.label, globs, settled_s=settled_s) if globs else ()
        units, refused = arrange(self.outputs, listing)
        for path in refused:
            _log.warning(log.event("fetching"), action="output_refused", path=repr(path)[:200])
        for unit in reversed([unit for unit in units if recorded(unit.output)]):  # the newest first: the host may vanish
            if not self._vanishing(unit) and await self._keep_all(unit.output, unit.files, this):
                await self._record(unit)
        for output in self.outputs:
            if not recorded(output):
                await self._keep_all(output, [file for unit in units if unit.output == output for file in unit.files], this)
        if not this.outage:
            await self._drop_old()
        return this

    async def _keep_all(self, output: Output, files: Sequence[RemoteFile], this: _Round) -> bool:
        """Bring files to the object store; True when each is verified there."""

        async def one(file: RemoteFile) -> None:
            artifact = self._artifact(output, file.path, file.size, file.sha256)
            try:
                await self._keep(artifact, this)
            except ObjectsUnavailable as error:
                this.outage = error
            except (DigestMismatch, Incomplete) as error:
                this.changed[file.path] = error
                _log.info(log.event("fetching"), action="output_changed", path=file.path, why=str(error))

        await records.each_of(files, one)
        return all(self._artifact(output, file.path, file.size, file.sha256) in self._verified for file in files)

    async def _keep(self, artifact: Artifact, this: _Round) -> None:
        if artifact not in self._verified:
            spooled = self._spooled(artifact)
            if artifact not in self._stored:
                await self._pull(artifact, spooled)
                if this.outage:  # asking again for each file would take minutes
                    return
                await self.objects.put(artifact.key, spooled, sha256=artifact.sha256)
                self._stored.add(artifact)
            try:
                await self.objects.verify(artifact.key, size=artifact.size, sha256=artifact.sha256)
            except (DigestMismatch, Incomplete):
                self._stored.discard(artifact)
                await self.objects.delete(artifact.key)  # or the next put would find it there
                raise
            self._verified.add(artifact)
            self._fetched.discard(artifact)
            await to_end(lambda: spooled.unlink(missing_ok=True))
            _log.debug(log.event("fetching"), action="artifact_kept", path=artifact.path, size=artifact.size)
        former = self._known.get(artifact.path)
        self._known[artifact.path] = artifact
        if former and former != artifact and former not in self._recorded():
            await self._drop([former])

    async def _pull(self, artifact: Artifact, spooled: Path) -> None:
        """Fetch a file into the spool; what is there of it already is not fetched again."""
        try:
            there = await to_end(lambda: _make_room(spooled, artifact))
            if artifact in self._fetched and there == artifact.size:  # waits for the object store: not hashed again each round
                return
            if there < artifact.size or not artifact.size:
                await self._fetch(artifact, spooled, there)
            found = await asyncio.to_thread(_digest, spooled)
        except OSError as error:
            raise ObjectsUnavailable(
                f"{artifact.path} cannot be put into the spool folder {self.spool} ({error}): make room"
            ) from error
        if found != artifact.sha256:
            await to_end(lambda: spooled.unlink(missing_ok=True))  # a stale worker of this machine may have been quicker
            raise DigestMismatch(f"{artifact.path} changed while it was fetched")
        self._fetched.add(artifact)

    async def _fetch(self, artifact: Artifact, spooled: Path, there: int) -> None:
        at = there

        def progress(done: int, total: int) -> None:
            nonlocal at
            self.count(max(0, done - at))
            at = done

        await self.host.fetch(self.label, artifact.path, spooled, size=artifact.size, progress=progress)

    def _vanishing(self, unit: Unit) -> bool:
        """Is the job just removing a unit we have? Its marker is as recorded, and files are missing."""
        record = self._records.get((unit.output.name, unit.name))
        if record is None or record.mtime != unit.mtime:
            return False
        return {file.path for file in unit.files} < {artifact.path for artifact in record.artifacts}

    async def _record(self, unit: Unit) -> None:
        artifacts = tuple(self._known[file.path] for file in unit.files)
        record = records.record_of(unit, self.attempt, artifacts, self._records_prefix)
        before = self._records.get((record.output, record.unit))
        if record == before:
            return
        await records.write(self.objects, record.key, record)
        self._records[record.output, record.unit] = record
        if before:
            await self.objects.delete(before.key)
            await self._drop([artifact for artifact in before.artifacts if artifact not in self._recorded()])

    async def _drop_old(self) -> None:
        """Drop units beyond what their output keeps: the record first, so that no record speaks of what is not there."""
        for output in self.outputs:
            units = sorted(
                (record for record in self._records.values() if record.output == output.name), key=lambda each: each.key
            )
            for record in units[: -output.keep] if output.keep else ():
                await self.objects.delete(record.key)
                del self._records[record.output, record.unit]
                await self._drop(record.artifacts)

    async def _drop(self, artifacts: Iterable[Artifact]) -> None:
        for artifact in artifacts:
            await self.objects.delete(artifact.key)
            self._stored.discard(artifact)
            self._verified.discard(artifact)
            if self._known.get(artifact.path) == artifact:
                del self._known[artifact.path]

    # -- the end

    async def _finish(self, complete: bool) -> CollectResult:
        artifacts = self._artifacts()
        # Parts of units that never got complete, and versions that a killed worker left.
        await self._drop([each for each in self._stored if each not in artifacts])
        await records.check_there(self.objects, [each for each in artifacts if each in self._verified])
        await records.verify(self.objects, [each for each in artifacts if each not in self._verified])
        there = {artifact.output for artifact in artifacts}
        needed = [output.name for output in self.outputs if output.required or output.kind is OutputKind.FINAL]
        missing = tuple(name for name in needed if name not in there)
        whole = complete and not missing
        manifest = records.manifest_of(self.job_id, self.attempt, artifacts, whole, self._records_prefix)
        await records.write(self.objects, manifest.key, manifest)
        await to_end(lambda: shutil.rmtree(self._spool_folder, ignore_errors=True))
        return CollectResult(artifacts=artifacts, missing=missing, checkpoint=self._checkpoint(), manifest=manifest)

    # -- what is there

    async def _remember(self) -> ObjectsUnavailable | None:
        """Ask the object store, once, what an earlier worker has kept of this attempt; return why it cannot be asked now."""
        if self._asked:
            return None
        prefix = records.files_prefix(self.tenant, self.job_id, self.attempt)
        try:
            async for each in self.objects.list(prefix):
                path = records.path_of(each.key, prefix)
                if path and (place := locate(self.outputs, path)):
                    artifact = self._artifact(place[0], path, each.size, each.sha256)
                    if artifact.key == each.key:
                        self._stored.add(artifact)
            async for record in records.records(self.objects, self._records_prefix):
                if self._stored.issuperset(record.artifacts):
                    self._records[record.output, record.unit] = record
        except ObjectsUnavailable as error:
            return error
        self._known = {artifact.path: artifact for artifact in self._stored}
        self._known |= {artifact.path: artifact for record in self._records.values() for artifact in record.artifacts}
        self._asked = True
        return None

    def _recorded(self) -> set[Artifact]:
        """Return the files of units that are whole."""
        return {artifact for record in self._records.values() for artifact in record.artifacts}

    def _artifacts(self) -> tuple[Artifact, ...]:
        """Return what counts: files of recorded units, and files that count by themselves."""
        single = {output.name for output in self.outputs if not recorded(output)}
        counting = self._recorded().union(known for known in self._known.values() if known.output in single)
        return tuple(sorted(counting, key=lambda artifact: artifact.path))

    def _checkpoint(self) -> Checkpoint | None:
        found = [record for record in self._records.values() if record.kind is OutputKind.CHECKPOINT]
        return max(found, key=lambda record: record.key).checkpoint if found else None

    def _artifact(self, output: Output, path: str, size: int, sha256: str) -> Artifact:
        key = records.file_key(self.tenant, self.job_id, self.attempt, path, sha256)
        return Artifact(path=path, size=size, sha256=sha256, output=output.name, kind=output.kind, key=key)

    @property
    def _records_prefix(self) -> str:
        return records.records_prefix(self.tenant, self.job_id, self.attempt)

    @property
    def _spool_folder(self) -> Path:
        return self.spool / self.job_id / f"a{self.attempt}"

    def _spooled(self, artifact: Artifact) -> Path:
        """Return where a file waits; another content has another name, so that a half pulled one is never continued with it."""
        return self._spool_folder / hashlib.sha256(f"{artifact.path}\0{artifact.sha256}".encode()).hexdigest()


def _make_room(spooled: Path, artifact: Artifact) -> int:
    """Return how much of a file is spooled already; ObjectsUnavailable if the rest does not fit."""
    spooled.parent.mkdir(parents=True, exist_ok=True)
    there = spooled.stat().st_size if spooled.exists() else 0
    free = shutil.disk_usage(spooled.parent).free
    if free < artifact.size - there + _SPARE:
        raise ObjectsUnavailable(
            f"{artifact.path} has {artifact.size / 1e6:.1f} MB, the spool folder {spooled.parent} has {free / 1e6:.1f} MB free: make room"
        )
    return there


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
