"""A rig whose worker dies at every failpoint that it meets, and jobs of every kind of life for it to die in.

The steps keep a record of their own, outside every folder of the product: each start, the bytes of each log, the digest of each file. So
does the provider of rented machines. ``verify`` compares what the product says with both.

Rules for editing: nothing waits for luck: a death is in the record of deaths, everything else in the store. Rigs stand side by side in
one test, so nothing here touches this process's environment for longer than the settings are read.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from remote_trainer import config
from remote_trainer.model import Attempt, Job
from remote_trainer.ports import JobQuery
from remote_trainer.service import jobs
from remote_trainer.service.app import App
from tests.support import rented
from tests.support.rig import PATIENCE_S, Rig
from tests.support.sshtarget import SshTarget

_REPOSITORY = Path(__file__).parents[2]

# The first run of the first step fails, so that there is a second. A file named `go` ends the second step: until then it goes on.
_TOOL = """\
name: mortal
version: 1
description: Leaves checkpoints, artifacts and metrics, and keeps a record of its own.
parameters:
  record: {type: string, description: Folder for the record}
  lines: {type: integer, default: 40, description: Lines of the second step}
  doomed: {type: boolean, default: false, description: The first attempt never ends}
  big_kb: {type: integer, default: 0, description: Size of another artifact}
  flood_kb: {type: integer, default: 0, description: Bytes poured into the log now and then}
  gpus: {type: integer, default: 0, description: GPUs that the machine must have}
inputs:
  dataset: {description: Any files}
resources: {gpus: '{{ gpus }}'}
steps:
  - name: prepare
    retries: {max: 1, backoff_s: 0.5, on_exit: [75]}
    run: |
      echo "$RT_JOB prepare.$RT_TRY" >>{{ record }}/starts
      echo "$RT_WORK" >>{{ record }}/"$RT_JOB.places"
      (cd "$RT_DATASET" && find . -type f | sort | xargs sha256sum) >>{{ record }}/"$RT_JOB.data"
      echo "try $RT_TRY" | tee -a {{ record }}/"$RT_JOB.prepare.$RT_TRY.log"
      [ "$RT_TRY" -ge 2 ] || exit 75
  - name: train
    stop_grace_s: 2
    run: |
      echo "$RT_JOB train.$RT_TRY" >>{{ record }}/starts
      copy={{ record }}/"$RT_JOB.train.1.log"
      cd "$RT_OUTPUT"
      [ ! -d checkpoints ] || sha256sum checkpoints/*/state >>{{ record }}/"$RT_JOB.restored"
      keep() { mkdir -p "${1%/*}" && cat >"$1" && sha256sum "$1" >>{{ record }}/"$RT_JOB.sums"; }
      {% if big_kb %}
      head -c $(({{ big_kb | raw }} * 1024)) /dev/urandom | keep part/big.bin
      {% endif %}
      line=1 last={{ lines }}
      {% if doomed %}
      [ "$RT_ATTEMPT" -ge 2 ] || last=1000000
      {% endif %}
      while [ "$line" -le "$last" ]; do
        text="line $line of $RT_JOB $(date +%s.%N)"
        printf '%s\\n' "$text" >>"$copy"
        printf '%s\\n' "$text"
        printf '{"line": %d}\\n' "$line" >>"$RT_METRICS"
        if [ $((line % 10)) -eq 1 ]; then
          unit=checkpoints/line-$(printf %06d "$line")
          head -c 3000 /dev/urandom | keep "$unit/state"
          echo "$line" | keep "$unit/done"
          {% if flood_kb %}
          head -c $(({{ flood_kb | raw }} * 1024)) /dev/urandom >"$RT_WORK/flood"
          cat "$RT_WORK/flood" >>"$copy"
          cat "$RT_WORK/flood"
          {% endif %}
        fi
        sleep 0.1
        line=$((line + 1))
      done
      head -c 30000 /dev/urandom | keep final/result.bin
outputs:
  - {name: checkpoints, kind: checkpoint, glob: checkpoints/line-*, marker: done, keep: 2}
  - {name: part, kind: artifact, glob: part/*}
  - {name: final, kind: final, glob: final/result.bin}
resume: What lies in $RT_OUTPUT/checkpoints is noted.
"""

ENDLESS = 100_000  # lines: until it is stopped


@dataclass
class MortalRig(Rig):
    """An installation whose every process dies at the armed points."""

    environment: Mapping[str, str] = field(default_factory=dict)
    provider: rented.Provider = field(default_factory=lambda: rented.Provider(Path()))
    armed: Sequence[str] = ()
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def deaths(self) -> list[str]:
        """The points that something died at."""
        return [line.split()[0] for line in self._deaths()]

    @property
    def kills(self) -> int:
        """How often something died; one death may be at several points."""
        return len({line.split()[1] for line in self._deaths()})

    def _deaths(self) -> list[str]:
        path = self.folder / "deaths"
        return path.read_text().splitlines() if path.exists() else []

    def forget_data(self) -> None:
        """Remove the packed data of this machine: what was submitted before and is not on its host cannot be shipped any more."""
        shutil.rmtree(self.app.settings.cache_dir / "chunks")

    @property
    def log_path(self) -> Path:
        """What all processes have to say."""
        return self.folder / "said"

    def story(self) -> str:
        """What happened, for the message of a failure."""
        said = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return f"\n--- {self.folder}\ndeaths: {self.deaths[-20:]}\n{said[-2000:]}"

    # -- processes that die

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with self.log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "remote_trainer.testing.failpoints", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if arguments[0] != "worker" else log,
                stderr=log,
                env={
                    **self.environment,
                    "RT_FAILPOINTS": ",".join(self.armed),
                    "RT_FAILPOINTS_RECORD": str(self.folder / "deaths"),
                },
                cwd=self.folder,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def undying_worker(self) -> subprocess.Popen[bytes]:
        """Start a worker that comes back after each death."""
        return self._start("worker")

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run a command, again after each death, to its end: its exit status and what the last life printed."""
        process = self._start(*arguments)
        said, _ = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
        return process.returncode, said.decode()

    async def drained(self, worker: subprocess.Popen[bytes]) -> None:
        """Ask a worker to end, as often as it takes."""
        async with asyncio.timeout(PATIENCE_S):
            while worker.poll() is None:  # the one that was asked may have died of something else meanwhile
                worker.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.2)
        # Asked again before it had its ears, or after it had closed them, it ends by the signal: that is fine, too.
        assert worker.returncode in (0, 128 + signal.SIGTERM, -signal.SIGTERM), f"ended with {worker.returncode}{self.story()}"

    def end(self) -> None:
        """Leave no process behind."""
        for machine in self.provider.machines():
            self.provider.end(machine.id)
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
            if process.stdout is not None:
                process.stdout.close()

    # -- jobs

    async def order(self, name: str, dataset: Path, *, driver: str = "ssh", **settings: object) -> Job:
        """Submit a job by the command line, which may die at it; a name tells whether it was submitted before the death."""
        options = {**self.driver_options(None), **({"provider": str(self.provider.folder)} if driver == "market" else {})}
        words = ["--tool", "mortal@1", "--driver", driver, "--dataset", str(dataset), "--name", name, "--detach"]
        words += [word for key, value in options.items() if value for word in ("--option", f"{key}={value}")]
        words += [word for key, value in {"record": self.record, **settings}.items() for word in ("--set", f"{key}={value}")]
        code, _ = await self.command("run-training", *words)
        found = (await jobs.list_jobs(self.app, JobQuery(name=name))).jobs
        assert len(found) == 1, f"{name}: {code}{self.story()}"
        return found[0]

    async def cancel(self, job: Job) -> None:
        """Cancel a job by the command line, which may die at it."""
        code, _ = await self.command("cancel", job.id)
        assert code == 0, self.story()

    # -- what the hosts and the provider say

    def starts(self) -> Counter[tuple[str, str]]:
        """How often each run of each step was started: (label, run) → times."""
        path = self.record / "starts"
        return (
            Counter((line.split()[0], line.split()[1]) for line in path.read_text().splitlines()) if path.exists() else Counter()
        )

    async def verify(self, job: Job) -> None:
        """Whatever became of a job: no run was started twice, and nothing that is kept differs from what its host had."""
        for (label, key), times in self.starts().items():
            assert times == 1, f"{key} of {label} was started {times} times{self.story()}"
        for attempt in job.attempts:
            for run in attempt.steps:
                kept = await self.log(job, run.key, attempt.number)
                path = self.record / f"{attempt.label}.{run.key}.log"
                written = path.read_bytes() if path.exists() else b""
                if run.stop_at is not None:  # the shell's own last word
                    kept = kept.removesuffix(b"Terminated\n")
                assert written.startswith(kept), f"{path.name}: {len(kept)} bytes kept, {len(written)} written{self.story()}"
                if attempt.verdict == "succeeded":
                    assert kept == written, f"{path.name}: {len(kept)} bytes kept, {len(written)} written{self.story()}"
            await self._verify_kept(attempt, job)

    async def _verify_kept(self, attempt: Attempt, job: Job) -> None:
        if attempt.manifest is None:
            assert attempt.verdict != "succeeded"
            return
        sums = self._sums(f"{attempt.label}.sums")
        for artifact in attempt.manifest.artifacts:
            path = await jobs.download(self.app, artifact, self.folder / "downloads" / attempt.label)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == sums[artifact.path], artifact.path
        if attempt.verdict == "succeeded":
            kept = {artifact.path for artifact in attempt.manifest.artifacts}
            units = sorted(path for path in sums if path.startswith("checkpoints/") and path.endswith("/done"))
            wanted = {path for path in sums if not path.startswith("checkpoints/")} | set(units[-2:])
            assert wanted <= kept, f"not kept: {wanted - kept}{self.story()}"

    def verify_data(self, attempt: Attempt, dataset: Path) -> None:
        """An attempt's host had the dataset, byte for byte."""
        here = {f"./{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in dataset.iterdir()}
        assert self._sums(f"{attempt.label}.data") == here

    def verify_place(self, attempt: Attempt) -> None:
        """An attempt ran on the disk of its own machine, and on no other."""
        assert attempt.instance is not None
        disk, places = self.provider.disk(attempt.instance.id), (self.record / f"{attempt.label}.places").read_text().splitlines()
        assert all(Path(place).is_relative_to(disk) for place in places), f"{attempt.label} ran in {places}, not in {disk}"

    def verify_restored(self, before: Attempt, after: Attempt) -> None:
        """An attempt began with a checkpoint that an earlier one had written."""
        assert after.restored is not None, self.story()
        state = f"{after.restored.unit}/state"
        assert self._sums(f"{after.label}.restored")[state] == self._sums(f"{before.label}.sums")[state]

    def verify_money(self, ended: Iterable[Job]) -> None:
        """At no time were two machines alive under one label, and none outlived its job's end."""
        machines = self.provider.machines()
        for machine in machines:
            others = [other for other in machines if other.label == machine.label and other is not machine]
            assert not any(other.alive(machine.rented_at) for other in others), f"two at a time: {machines}{self.story()}"
        for job in ended:
            assert job.finished_at is not None
            late = [each for each in machines if f"-{job.id}-" in each.label and each.alive(job.finished_at.timestamp())]
            assert late == [], f"{job.id} ended with a machine alive{self.story()}"

    def leftovers(self) -> list[Path]:
        """What lies on hosts or in the spool, though every job has ended; drafts and small temporary files have sweepers of their own."""
        spool = self.app.settings.state_dir / "spool"
        return [*spool.glob("*"), *Path(self.host_root).glob("j/*/[slw]*"), *self.provider.folder.glob("disks/*")]

    def _sums(self, name: str) -> dict[str, str]:
        lines = (self.record / name).read_text().splitlines()
        return {line.split(maxsplit=1)[1]: line.split(maxsplit=1)[0] for line in lines}


@contextlib.asynccontextmanager
async def mortal_rig(folder: Path, host: SshTarget, armed: Sequence[str], **settings: object) -> AsyncIterator[MortalRig]:
    """A rig in ``folder`` for as long as the block lasts; ``settings`` are the product's own, by name."""
    for path in ("record", "temporary", "tools/mortal/1", "drivers"):
        (folder / path).mkdir(parents=True)
    (folder / "drivers/market.yaml").write_text("driver: rented\nprovision: {spot: true, raise_bid: true}\n")
    (folder / "tools/mortal/1/tool.yaml").write_text(_TOOL)
    given = {
        "tools_path": folder / "tools",
        "drivers_path": folder / "drivers",
        "lease_s": 10,  # the dead one is noticed at once; a slow one must not be taken for dead
        "keepalive_s": 1,
        "connect_timeout_s": 5,
        "log_format": "json",
        "collect_interval_s": 0.5,
        **settings,
    }
    variables = {f"REMOTE_TRAINER_{name.upper()}": str(value) for name, value in given.items()}
    variables |= {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("DATA", "STATE", "CACHE", "CONFIG")}
    variables |= {"TMPDIR": str(folder / "temporary"), "PYTHONPATH": f"{_REPOSITORY}:{rented.install(folder / 'plugins')}"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        opened = config.load()
        environment = dict(os.environ)
    async with App(opened) as app:
        provider = rented.Provider(folder / "provider")
        rig = MortalRig(folder, host, app, [], str(folder / "host"), environment, provider, armed)
        with _no_background_worker(app):
            try:
                yield rig
            finally:
                rig.end()


@contextlib.contextmanager
def _no_background_worker(app: App) -> Iterator[None]:
    """What is submitted here is served by the test's own workers only."""
    app.settings.state_dir.mkdir(parents=True, exist_ok=True)
    with (app.settings.state_dir / "worker.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
