"""The supervisor on a host, spoken to over any transport: SupervisedHost implements ports.Host.

Rules for editing: each verb is one exec, two where a large script or secrets must travel on stdin. Nothing is remembered between calls
that a restarted worker would miss. What the host says is read in protocol.py.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import math
import secrets
import shlex
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from remote_trainer.host import protocol, scripts, watchman
from remote_trainer.host.depot import Depot, relative
from remote_trainer.host.follow import PING_S, LogFollow
from remote_trainer.model import HostFacts, Token
from remote_trainer.ports import Completed, Follow, Progress, RemoteFile, StepSpec, StepStatus, Transport

#: The folder on the host for everything of ours.
DEFAULT_ROOT = "~/.remote-trainer"

_IN_THE_COMMAND = 60_000  # bytes: Linux takes 128 KiB for one argument, and the login shell gets the whole line as one
_START_TRIES = 5


class SupervisedHost:
    """Our supervisor, installed below ``root`` on the other end of ``transport``."""

    def __init__(self, transport: Transport, root: str = DEFAULT_ROOT) -> None:
        self._transport, self._root = transport, root
        self._depot = Depot(transport, root)

    @property
    def transport(self) -> Transport:
        return self._transport

    @property
    def root(self) -> str:
        """Return the folder on the host for everything of ours; may start with ``~``."""
        return self._root

    async def bootstrap(self, incarnation: str) -> HostFacts:
        done = await self._transport.run(scripts.call(self._root, "supervisor", "init", incarnation))
        if done.code in (protocol.NOT_INSTALLED, protocol.WIPED):
            done = await scripts.install(self._transport, self._root, "supervisor", "init", incarnation)
        self._check(done, "setting the host up")
        return protocol.parse_facts(_text(done), self._transport.host_key)

    async def start(self, key: str, token: Token, spec: StepSpec, *, incarnation: str, deadman_s: float) -> StepStatus:
        what = f"starting {key} {spec.key}"
        if spec.secrets:
            self._check(await self._run("secrets", key, spec.key, stdin=_secret_lines(spec.secrets)), what)
        inline = len(shlex.quote(spec.script)) <= _IN_THE_COMMAND
        if not inline:
            script = spec.script.encode()
            self._check(await self._run("prep", key, spec.key, str(len(script)), stdin=script), what)
        verb, more = ("launch", [spec.script]) if inline else ("start", [])
        for tries in range(1, _START_TRIES + 1):
            nonce = secrets.token_hex(8)
            times = [_seconds(spec.stop_grace_s), _seconds(deadman_s)]
            done = await self._run(verb, key, spec.key, str(token), incarnation, nonce, *times, *more)
            if done.code != protocol.NOT_YET or tries == _START_TRIES:
                break
            await asyncio.sleep(0.1 * tries)
        self._check(done, what)
        return protocol.parse_started(_text(done))

    async def status(self, key: str, step_keys: Sequence[str]) -> Mapping[str, StepStatus]:
        if not step_keys:
            return {}
        done = await self._run("statuses", key, *step_keys)
        self._check(done, f"the status of {key}")
        return protocol.parse_states(_text(done), step_keys)

    @contextlib.asynccontextmanager
    async def follow(
        self, key: str, step_key: str, offset: int, *, metrics: str = "", every_s: float = PING_S
    ) -> AsyncIterator[Follow]:
        ping = f"P {relative(metrics) if metrics else '-'}\n".encode()
        argv = scripts.call(self._root, "supervisor", "follow", key, step_key, str(offset))
        async with contextlib.AsyncExitStack() as stack:
            for again in (True, False):
                channel = await stack.enter_async_context(self._transport.open(argv))
                follow = LogFollow(channel, self._transport.address, f"{key} {step_key}", offset)
                try:
                    await stack.enter_async_context(follow.running(ping, min(every_s, PING_S)))
                    break
                except protocol.NotInstalled:
                    if not again:
                        raise
                    await scripts.install(self._transport, self._root)
            yield follow

    async def cancel(self, key: str, step_key: str, token: Token) -> StepStatus:
        done = await self._run("cancel", key, step_key, str(token))
        self._check(done, f"cancelling {key} {step_key}")
        return protocol.parse_state(_text(done))

    async def stop(self, key: str, step_key: str, token: Token, *, grace_s: float) -> StepStatus:
        done = await self._run("stop", key, step_key, str(token), _seconds(grace_s))
        self._check(done, f"stopping {key} {step_key}")
        return protocol.parse_state(_text(done))

    async def clean(self, key: str, token: Token) -> None:
        self._check(await self._run("clean", key, str(token), timeout_s=600), f"removing the folders of {key}")

    async def keep_watch(self, key: str, orders: watchman.Orders) -> None:
        """Have the machine end itself should all of us be gone."""
        await watchman.keep(self._transport, self._root, key, orders)

    async def digests(self) -> frozenset[str]:
        return await self._depot.digests()

    async def outputs(self, key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        return await self._depot.outputs(key, globs, settled_s=settled_s)

    async def fetch(self, key: str, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        await self._transport.pull(f"{self._root}/j/{key}/w/output/{relative(path)}", target, size=size, progress=progress)

    async def read(self, key: str, path: str, *, offset: int, limit: int = 1 << 20) -> bytes:
        return await self._depot.read(key, path, offset=offset, limit=limit)

    async def _run(self, *words: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        return await scripts.run(self._transport, self._root, "supervisor", *words, stdin=stdin, timeout_s=timeout_s)

    def _check(self, done: Completed, what: str) -> None:
        if done.code != 0:
            raise protocol.failure(done, self._transport.address, what)


def _text(done: Completed) -> str:
    return done.stdout.decode(errors="replace")


def _seconds(value: float) -> str:
    """Return whole seconds, rounded up: the supervisor counts no fractions, and 0 would mean never."""
    return str(math.ceil(value))


def _secret_lines(values: Mapping[str, str]) -> bytes:
    """Return the form the supervisor reads; the last line proves that all have arrived."""
    lines = [f"{name}={base64.b64encode(value.encode()).decode()}" for name, value in values.items()]
    return "\n".join([*lines, ".", ""]).encode()
