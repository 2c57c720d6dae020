"""A whole installation that a test may abuse: a store, an OpenSSH host, workers as processes of their own, and the host's own record.

What really happened is taken from files that the steps write outside every folder of the product: one line for each start, the very
bytes of each log, the digest of each artifact. `check` compares them with what the store and the object store say.

Rules for editing: moments are found by watching the store or the record, never by sleeping; every process started here is gone when the
block is left; workers get their settings from the environment, as users' do.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from remote_trainer import config
from remote_trainer.errors import Transient
from remote_trainer.model import Event, Job, JobId, Phase, log_stream
from remote_trainer.service import jobs
from remote_trainer.service.app import App
from remote_trainer.service.submit import Order, submit
from tests.support.patience import PATIENCE_S
from tests.support.sshtarget import SshTarget

#: The heavy rounds that are too long for every run.
LONG = bool(os.environ.get("REMOTE_TRAINER_TEST_LONG"))

_Test = TypeVar("_Test", bound=Callable[..., Any])


def heavy(test: _Test) -> _Test:
    """A test of the heavy rounds only: elsewhere it is not there, rather than left out."""
    test.__test__ = LONG  # type: ignore[attr-defined]
    return test


# Two steps, so that what follows a step is abused too. Each start is one appended line; each line goes to the record and to the log.
_TOOL = """\
name: NAME
version: 1
description: Prints lines, leaves a checkpoint and an artifact, and keeps a record of its own.
parameters:
  record: {type: string, description: Folder for the record}
  lines: {type: integer, default: 10, description: Lines of the second step}
  delay_s: {type: number, default: 0.1, description: Pause after each line}
  kb: {type: integer, default: 64, description: Size of the artifact}
  flood_kb: {type: integer, default: 0, description: Bytes poured into the log first}
  gated: {type: boolean, default: false, description: 'Go on behind the last line until it may end'}
  stubborn: {type: boolean, default: false, description: 'Ignore TERM, and leave a child and a daemon behind'}
  exit_code: {type: integer, default: 0, description: How it ends}
  silent: {type: boolean, default: false, description: Leave no artifact}
inputs:
  dataset: {description: Any files}
steps:
  - name: first
    run: |
      echo "$RT_JOB first.$RT_TRY $$" >>{{ record }}/starts
      echo "first" | tee -a {{ record }}/"$RT_JOB.first.log"
  - name: second
    stop_grace_s: 1
    timeout_s: TIMEOUT
    run: |
      echo "$RT_JOB second.$RT_TRY $$" >>{{ record }}/starts
      copy={{ record }}/"$RT_JOB.second.log"
      {% if stubborn %}
      trap '' TERM
      sleep 1000 &
      setsid sh -c 'trap "" TERM; while :; do sleep 0.2; done' &
      {% endif %}
      mkdir -p "$RT_OUTPUT/part"
      head -c 5000 /dev/urandom >"$RT_OUTPUT/part/early.bin"
      (cd "$RT_OUTPUT" && sha256sum part/early.bin) >>{{ record }}/"$RT_JOB.sums"
      {% if flood_kb %}
      head -c $(({{ flood_kb | raw }} * 1024)) /dev/urandom >"$RT_WORK/flood"
      cat "$RT_WORK/flood" >>"$copy"
      cat "$RT_WORK/flood"
      {% endif %}
      line=1
      while [ "$line" -le {{ lines }} ]{% if gated %} || [ ! -e {{ record }}/"$RT_JOB.end" ]{% endif %}; do
        text="line $line of $RT_JOB $(date +%s.%N)"
        printf '%s\\n' "$text" >>"$copy"
        printf '%s\\n' "$text"
        sleep {{ delay_s }}
        line=$((line + 1))
      done
      {% if not silent %}
      mkdir -p "$RT_OUTPUT/final"
      head -c $(({{ kb | raw }} * 1024)) /dev/urandom >"$RT_OUTPUT/final/result.bin"
      (cd "$RT_OUTPUT" && sha256sum final/result.bin) >>{{ record }}/"$RT_JOB.sums"
      {% endif %}
      exit {{ exit_code }}
outputs:
  - {name: part, kind: artifact, glob: part/*}
  - {name: final, kind: final, glob: final/result.bin}
"""


@dataclass
class WorkerProcess:
    """One worker as users run it."""

    process: subprocess.Popen[bytes]
    log_path: Path
    store_url: str

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait(PATIENCE_S)

    def freeze(self) -> None:
        """Stop it in mid-air, as a machine that pauses would; but not while it keeps all others from the embedded store."""
        while True:
            self.process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)
            if not self.store_url.startswith("sqlite:") or _is_free(self.store_url.removeprefix("sqlite:///")):
                return
            self.thaw()
            time.sleep(0.01)

    def thaw(self) -> None:
        """Let it go on as if nothing had happened."""
        self.process.send_signal(signal.SIGCONT)

    def drain(self) -> None:
        """Ask it to end, as a service manager does, and wait until it has."""
        self.process.terminate()
        assert self.process.wait(PATIENCE_S) == 0, self.log


@dataclass
class Rig:
    """One installation; made by `installation`."""

    folder: Path
    host: SshTarget
    app: App
    workers: list[WorkerProcess] = field(default_factory=list)
    host_root: str = ""  # the product's folder on the host

    # -- workers

    def worker(self, **environment: str) -> WorkerProcess:
        """Start a worker and return at once."""
        path = self.folder / f"worker{len(self.workers)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "remote_trainer", "worker"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONFAULTHANDLER": "1", **environment},
                start_new_session=True,
            )
        self.workers.append(WorkerProcess(process, path, self.app.settings.store_url))
        return self.workers[-1]

    # -- jobs

    @property
    def record(self) -> Path:
        """Where the steps of `abused@1` write down what happened to them: a host on this machine is needed for that."""
        return self.folder / "record"

    def on_host(self, folder: str) -> None:
        """Use that folder of the host: for a host with a disk of its own."""
        self.host_root = folder

    def driver_options(self, link_port: int | None) -> dict[str, str]:
        """What the ssh driver needs."""
        where = f"127.0.0.1:{link_port}" if link_port else f"{self.host.host}:{self.host.port}"
        return {
            "host": f"{self.host.user}@{where}",
            "identity": str(self.host.key_path),
            "host_key": self.host.host_key_public,
            "root": self.host_root,
        }

    async def submit(
        self, *, tool: str = "abused@1", dataset: Path | None = None, host_port: int | None = None, **settings: object
    ) -> Job:
        """Submit a job; settings are the tool's parameters, `host_port` is that of a link in front of the host."""
        if tool in ("abused@1", "limited@1"):
            settings = {"record": self.record, **settings}
        order = Order(
            tool=tool,
            driver="ssh",
            driver_options=self.driver_options(host_port),
            dataset=None if dataset is None else str(dataset),
            settings=[f"{name}={_text(value)}" for name, value in settings.items()],
        )
        async with asyncio.timeout(PATIENCE_S):
            while True:
                with contextlib.suppress(Transient):  # a busy host answers later than a cut is noticed here
                    return await submit(self.app, order)

    async def until(self, job: Job, happened: Callable[[Job], object], *, patience_s: float = PATIENCE_S) -> Job:
        """Return the job as soon as the store shows it so."""
        seen = job
        try:
            async with asyncio.timeout(patience_s), contextlib.aclosing(self.app.store.watch(job.id)) as wakes:
                async for _ in wakes:
                    seen = await self.app.store.get(job.id)
                    if happened(seen):
                        return seen
                    assert not seen.phase.terminal, f"the job ended first: {seen.phase} {seen.message}{self.story()}"
        except TimeoutError:
            pytest.fail(f"job {job.id} is still {seen.phase} ({seen.note}){self.story()}")
        raise AssertionError("the feed ended")

    async def phase(self, job: Job, phase: Phase) -> Job:
        """Wait until a job has reached a phase."""
        return await self.until(job, lambda seen: seen.phase is phase)

    async def ended(self, job: Job, phase: Phase = Phase.DONE, *, patience_s: float = PATIENCE_S) -> Job:
        """Wait for a job's end, which must be that one."""
        seen = await self.until(job, lambda seen: seen.phase.terminal, patience_s=patience_s)
        assert seen.phase is phase, f"{seen.phase}: {seen.message}{self.story()}"
        return seen

    async def reached(self, job: Job, phase: Phase) -> Job:
        """Wait until a job has reached a phase, or is past it already: whoever looks may be too slow to see it."""
        order = list(Phase)
        return await self.until(job, lambda seen: order.index(seen.phase) >= order.index(phase))

    async def let_end(self, *given: Job) -> None:
        """Let gated jobs come to their end."""
        for job in given:
            known = job if job.attempt else await self.app.store.get(job.id)
            (self.record / f"{_attempt(known).label}.end").touch()

    async def log_has(
        self, job: Job, size: int, step: str = "second.1", attempt: int = 1, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Wait until that many bytes of a step's log are readable in the store."""
        stream = log_stream(attempt, step)
        try:
            async with asyncio.timeout(patience_s), contextlib.aclosing(self.app.store.watch(job.id)) as wakes:
                async for _ in wakes:
                    if (await self.app.store.log_streams(job.id)).get(stream, 0) >= size:
                        return
        except TimeoutError:
            there = dict(await self.app.store.log_streams(job.id))
            seen = await self.app.store.get(job.id)
            pytest.fail(f"{stream} of {job.id}, {seen.phase} ({seen.note}), is not {size} bytes long: {there}{self.story()}")

    async def log(self, job: Job, step: str = "second.1", attempt: int = 1) -> bytes:
        """Return a step's log as the store has it."""
        found = b""
        while data := await self.app.store.read_log(job.id, log_stream(attempt, step), offset=len(found)):
            found += data
        return found

    async def events(self, job: Job) -> list[Event]:
        """Return what happened to a job."""
        return await jobs.events(self.app, job.id)

    # -- what the host says

    def started(self) -> Counter[tuple[str, str]]:
        """How often each step of each job was started: (job, step) → times."""
        path = self.record / "starts"
        lines = path.read_text().splitlines() if path.exists() else []
        return Counter((line.split()[0].split("-")[2], line.split()[1]) for line in lines)

    def recorded(self, job: Job, step: str = "second") -> bytes:
        """What a step has written, by its own account."""
        return next(self.record.glob(f"*{job.id}*.{step}.log")).read_bytes()

    def sums(self, job: Job) -> dict[str, str]:
        """Path → SHA-256 of what a job's step has left, by its own account."""
        lines = next(self.record.glob(f"*{job.id}*.sums")).read_text().splitlines()
        return {line.split()[1]: line.split()[0] for line in lines}

    async def check(self, job: Job) -> None:
        """A job that is DONE: each step started once, logs equal byte for byte, every artifact as the host wrote it."""
        assert job.phase is Phase.DONE
        starts = {step: times for (job_id, step), times in self.started().items() if job_id == job.id}
        assert starts == {"first.1": 1, "second.1": 1}, self.story()
        assert [run.key for run in _attempt(job).steps] == ["first.1", "second.1"]
        for step in ("first", "second"):
            assert await self.log(job, f"{step}.1") == self.recorded(job, step), f"the log of {step} differs{self.story()}"
        assert await self.artifacts(job) == self.sums(job)

    async def artifacts(self, job: Job) -> dict[str, str]:
        """Path → SHA-256 of what the object store really holds."""
        manifest = _attempt(job).manifest
        assert manifest is not None
        found = {}
        for artifact in manifest.artifacts:
            path = await jobs.download(self.app, artifact, self.folder / "downloads" / job.id)
            found[artifact.path] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def story(self) -> str:
        """What the workers have to say, for the message of a failure."""
        return "".join(f"\n--- worker {number}\n{worker.log[-6000:]}" for number, worker in enumerate(self.workers))


@contextlib.asynccontextmanager
async def installation(folder: Path, host: SshTarget, *, lease_s: float = 3.0, **settings: object) -> AsyncIterator[Rig]:
    """An installation in `folder` for as long as the block lasts; `settings` are the product's own, by name."""
    (folder / "record").mkdir(parents=True)
    for name, timeout_s in (("abused", 0), ("limited", 2)):
        (folder / "tools" / name / "1").mkdir(parents=True)
        recipe = _TOOL.replace("NAME", name).replace("TIMEOUT", str(timeout_s))
        (folder / "tools" / name / "1" / "tool.yaml").write_text(recipe)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("data", "state", "cache", "config"):
            patch.setenv(f"XDG_{name.upper()}_HOME", str(folder / name))
        # Short, so that a cut is noticed soon: what is tried here does not depend on how long things take.
        given = {
            "tools_path": folder / "tools",
            "lease_s": lease_s,
            "keepalive_s": 1,
            "connect_timeout_s": 3,
            "log_format": "json",
            **settings,
        }
        for name, value in given.items():
            patch.setenv(f"REMOTE_TRAINER_{name.upper()}", _text(value))
        async with App(config.load()) as app:
            rig = Rig(folder, host, app, host_root=str(folder / "host"))
            try:
                yield rig
            finally:
                _end(rig.workers)


def _is_free(jobs_file: str) -> bool:
    """Whether nobody is for long in the middle of reading or writing."""
    with contextlib.closing(sqlite3.connect(jobs_file, timeout=1, isolation_level=None)) as database:
        try:
            database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            return False
    return True


def _end(workers: Sequence[WorkerProcess]) -> None:
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait(PATIENCE_S)


def wait_for(happened: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Wait for something that only the operating system knows."""
    deadline = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < deadline, f"waited {patience_s:g} s for {what}"
        time.sleep(0.02)


def job_of(label: str) -> JobId:
    """The job in an attempt's label."""
    return JobId(label.split("-")[2])


def _attempt(job: Job) -> Any:
    assert job.attempt is not None
    return job.attempt


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
