"""A host as one worker process has it: the supervisor's verbs, and the way for files, over the process's line.

Rules for editing: what happens on the machine is in machine.py; here is what becomes of messages and files on their way.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from remote_trainer.errors import Conflict, HostUnreachable, HostWiped, Incomplete, NotFound
from remote_trainer.model import HostFacts, Instance, StepState, Token
from remote_trainer.ports import Completed, Ended, Heartbeat, Output, Progress, RemoteFile, StepSpec, StepStatus
from remote_trainer.testing.sim.bucket import flipped
from remote_trainer.testing.sim.line import Line
from remote_trainer.testing.sim.machine import File, Machine

T = TypeVar("T")

_SILENCE_S = 15.0  # until a connection to a host that does not answer is given up
#: What a plan's last step says, so that the machine knows what it leaves.
LAST = "the last step"


class SimHost:
    """``ports.Host``, as far as a worker needs it."""

    root = "~"

    def __init__(self, line: Line, instance: Instance) -> None:
        self._line, self._world = line, line.world
        self._rented = None if instance.borrowed else line.world.provider.rented[instance.id]
        machine = self._rented.machine if self._rented else line.world.own
        assert machine is not None
        self._machine: Machine = machine
        self.transport = SimTransport(self, f"sim:{instance.id}")

    async def bootstrap(self, incarnation: str) -> HostFacts:
        def install() -> HostFacts:
            self._machine.installed = True
            return HostFacts(incarnation=self._machine.incarnation, boot="b")

        return await self.send(install, installing=True)

    async def start(self, key: str, token: Token, spec: StepSpec, *, incarnation: str, deadman_s: float) -> StepStatus:
        last = LAST in spec.script
        return await self.send(lambda: self._machine.start(key, spec.key, token, incarnation, last=last, deadman_s=deadman_s))

    async def stop(self, key: str, step_key: str, token: Token, *, grace_s: float) -> StepStatus:
        return await self.send(lambda: self._machine.stop(key, step_key, token, grace_s))

    async def clean(self, key: str, token: Token) -> None:
        def remove() -> None:
            self._machine.check(key, token)
            if any(run.label == key and self._world.now < run.ends for run in self._machine.runs.values()):
                raise Conflict(f"{key}: a step still runs")

        await self.send(remove)

    async def keep_watch(self, key: str, orders: object) -> None:
        """Hear the orders; nobody acts on them."""
        await self.send(lambda: None, heavy=False)

    async def status(self, key: str, step_keys: Sequence[str]) -> Mapping[str, StepStatus]:
        return await self.send(lambda: {each: self._machine.look(key, each) for each in step_keys}, heavy=False)

    async def outputs(self, key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        def listed() -> Sequence[RemoteFile]:
            now = self._world.now
            files = self._machine.files(key).values()
            settled = sorted((file for file in files if file.written <= now - settled_s), key=lambda file: file.path)
            return [RemoteFile(path=each.path, size=len(each.data), mtime=each.written, sha256=each.sha256) for each in settled]

        return await self.send(listed, heavy=False)

    async def fetch(self, key: str, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        """Append what is missing of a file: sometimes a part of it, sometimes with a bit turned around."""
        file = await self.send(lambda: self._machine.files(key).get(path), heavy=False)
        if file is None or len(file.data) < size:
            raise Incomplete(f"{path} is not there any more")
        there = target.read_bytes() if target.exists() else b""  # noqa: ASYNC240 - there are no threads in this world
        data = there + file.data[len(there) : size]
        if self._world.deal("transfer-damaged", self._world.faults.damage):
            data = flipped(data, self._world.dice.getrandbits(16))
        if self._world.deal("ssh-flap", self._world.faults.loss):
            target.write_bytes(data[: self._world.dice.randrange(len(data) + 1)])  # noqa: ASYNC240 - likewise
            raise HostUnreachable("the transfer broke off")
        target.write_bytes(data)  # noqa: ASYNC240 - likewise

    async def read(self, key: str, path: str, *, offset: int, limit: int = 1 << 20) -> bytes:
        return await self.send(lambda: self._machine.metrics(key)[offset : offset + limit], heavy=False)

    @asynccontextmanager
    async def follow(
        self, key: str, step_key: str, offset: int, *, metrics: str = "", every_s: float = 20.0
    ) -> AsyncIterator[SimFollow]:
        """Follow a log: bytes as they come, a sign of life now and then, at last the end."""

        def there() -> None:
            if self._machine.look(key, step_key).state is StepState.NONE:
                raise NotFound(f"not started: {key} {step_key}")

        await self.send(there, heavy=False)
        yield SimFollow(self._line, self._machine, (key, step_key), offset, min(20.0, every_s))

    async def receive(self, key: str, name: str, data: bytes) -> None:
        """Take a file that was pushed and verified."""

        def place() -> None:
            file = File(name.removeprefix("output/"), data, self._world.now, hashlib.sha256(data).hexdigest())
            self._machine.restored.setdefault(key, {})[file.path] = file
            self._world.promises.restored(key, file)

        await self.send(place)

    async def has_input(self, digest: str) -> bool:
        """Is an input there? Some other job brings it in a while."""
        inputs, now = self._machine.inputs, self._world.now
        return await self.send(lambda: inputs.setdefault(digest, now + self._world.dice.uniform(0, 10)) <= self._world.now)

    async def send(self, act: Callable[[], T], *, heavy: bool = True, installing: bool = False) -> T:
        """Ask the machine, if it can be reached and has our scripts."""

        def there() -> T:
            if not self._machine.answers() or (self._rented and not self._rented.ready):
                raise HostUnreachable("no connection")
            if not self._machine.installed and not installing:
                raise HostWiped("the folder of the supervisor is gone")
            return act()

        return await self._line.send(there, HostUnreachable, heavy=heavy)


class SimTransport:
    """``ports.Transport``, as far as inputs and checkpoints take that way: speaks for depot.sh."""

    host_key = ""

    def __init__(self, host: SimHost, address: str) -> None:
        self._host, self.address = host, address
        self._pushed: dict[str, bytes] = {}

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Answer as the depot does."""
        match argv[6:]:
            case ["begin", digest, _]:
                answer = b"present\n" if await self._host.has_input(digest) else b"busy\n"
            case ["space"]:
                answer = await self._host.send(lambda: b"1000000000 /data\n", heavy=False)
            case ["place", key, inbox]:
                answer = await self._place(key, inbox, stdin)
            case other:
                raise NotImplementedError(f"no simulated depot does {other}")
        return Completed(0, answer, b"")

    async def push(self, files: Sequence[Path], folder: str, *, progress: Progress | None = None) -> None:
        """Bring files to a folder; one may be damaged on the way."""
        world = self._host._world
        for file in files:
            data = file.read_bytes()
            if world.deal("transfer-damaged", world.faults.damage):
                data = flipped(data, world.dice.getrandbits(16))
            self._pushed[f"{folder}/{file.name}"] = data
        await self._host.send(lambda: None)

    async def _place(self, key: str, inbox: str, wanted: bytes) -> bytes:
        placed = []
        for line in wanted.decode().splitlines():
            name, sha256, path = line.split(" ", 2)
            data = self._pushed.get(f"{inbox}/{name}", b"")
            if hashlib.sha256(data).hexdigest() == sha256:
                await self._host.receive(key, path, data)
                placed.append(f"ok {path}\n")
        return "".join(placed).encode()


class SimFollow:
    """``ports.Follow``."""

    def __init__(self, line: Line, machine: Machine, run: tuple[str, str], offset: int, every_s: float) -> None:
        self._world, self._line, self._machine, self._run = line.world, line, machine, run
        self._offset, self._every_s, self._pinged = offset, every_s, -1e9
        self._disk = machine.incarnation

    def __aiter__(self) -> SimFollow:
        return self

    async def __anext__(self) -> Output | Heartbeat | Ended:
        world, machine, (label, key) = self._world, self._machine, self._run
        while True:
            if not machine.answers():
                await asyncio.sleep(_SILENCE_S)
                raise HostUnreachable("the host fell silent")
            if machine.incarnation != self._disk or world.deal("ssh-flap", world.faults.loss):
                raise HostUnreachable("the connection broke")
            status = machine.look(label, key)
            if status.size > self._offset:
                end = status.size if world.quiet else world.dice.randint(self._offset + 1, status.size)
                start, self._offset = self._offset, end
                return Output(machine.runs[label, key].log(start, end))
            if world.now >= self._pinged + self._every_s:
                self._pinged = world.now
                return self._ping(label)
            if status.state is not StepState.RUNNING:
                return Ended(status)
            await asyncio.sleep(min(world.dice.uniform(1, 8), max(0.05, machine.runs[label, key].ends - world.now)))

    def _ping(self, label: str) -> Heartbeat:
        self._machine.hear(label)
        files = self._machine.files(label)
        newest = max((file.written for file in files.values()), default=0.0)
        return Heartbeat(self._offset, len(self._machine.metrics(label)), f"{len(files)}-{newest}")

    async def ack(self, offset: int) -> None:
        """Nothing to give back."""
