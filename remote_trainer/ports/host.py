"""The shell end of an instance, with our supervisor on it. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from remote_trainer.model import (
    HostFacts,
    StepState,
    Token,
)
from remote_trainer.ports.transport import Progress, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSpec:
    """What the supervisor needs to start a step: ``key`` is ``<step>.<number>``."""

    key: str
    script: str
    secrets: Mapping[str, str] = field(default_factory=dict)
    stop_grace_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStatus:
    """The supervisor's word on a step."""

    state: StepState
    exit_code: int | None = None
    size: int = 0  # bytes of log so far; final when the state is not RUNNING
    why: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes of the log, in order, from the offset asked for."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The host is there: the log's size now, the metrics file's, and a word that is another one once an output has changed."""

    size: int
    metrics: int = 0
    outputs: str = ""


@dataclass(frozen=True, slots=True)
class Ended:
    """The step is over; comes after the last byte of its log."""

    status: StepStatus


FollowItem = Output | Heartbeat | Ended


class Follow(Protocol):
    """A running follow. Iterate until Ended; a break raises HostUnreachable: follow again from what was kept."""

    def __aiter__(self) -> AsyncIterator[FollowItem]: ...

    async def ack(self, offset: int) -> None:
        """Say that everything below ``offset`` is durably ours, so that the host may give the space back. Best effort."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of the output folder as the host lists it. ``sha256`` is what the host computed; checked again on arrival."""

    path: str  # relative, normalised, no ``..``, no symlink
    size: int
    mtime: float  # seconds since the epoch, the host's clock
    sha256: str = ""


class Host(Protocol):
    """The shell end of an instance, with our supervisor on it. ``key`` names one attempt's folder (its label).

    ``token`` is the fencing token: the host remembers the highest per key and answers Fenced to lower ones.
    """

    @property
    def transport(self) -> Transport:
        """Return the way to it."""
        ...

    async def bootstrap(self, incarnation: str) -> HostFacts:
        """Install the supervisor and say what the host is.

        Idempotent; the incarnation that is already there wins. HostLacks if it cannot serve.
        """
        ...

    async def start(self, key: str, token: Token, spec: StepSpec, *, incarnation: str, deadman_s: float) -> StepStatus:
        """Start the step at most once, whoever asks how often; returns its state (adopted or started). Fenced, HostWiped."""
        ...

    async def status(self, key: str, step_keys: Sequence[str]) -> Mapping[str, StepStatus]:
        """Return the state of steps in one round trip; NONE for one never started."""
        ...

    def follow(
        self, key: str, step_key: str, offset: int, *, metrics: str = "", every_s: float = 20.0
    ) -> AbstractAsyncContextManager[Follow]:
        """Follow a step's log from a byte offset; claim, sizes and exit come on the same channel.

        A Heartbeat comes each ``every_s`` seconds (some 20 at most); ``metrics`` is the file of the work folder whose size it tells.
        """
        ...

    async def cancel(self, key: str, step_key: str, token: Token) -> StepStatus:
        """Take the start away: CANCELLED if it had not started (it never will), else its state."""
        ...

    async def stop(self, key: str, step_key: str, token: Token, *, grace_s: float) -> StepStatus:
        """Ask the whole process tree to end: TERM, grace, KILL. Returns at once; the exit comes through follow or status."""
        ...

    async def clean(self, key: str, token: Token) -> None:
        """Remove the attempt's folders; the fence stays. Absent is success. Conflict while a step runs."""
        ...

    async def digests(self) -> frozenset[str]:
        """Return the digests of the inputs that are unpacked and verified on the host."""
        ...

    async def outputs(self, key: str, globs: Sequence[str], *, settled_s: float) -> Sequence[RemoteFile]:
        """List files of the output folder matching any glob and unchanged for ``settled_s`` seconds (0: all), with digests.

        Symlinks, devices and paths that leave the folder are not listed. Absent folder: empty.
        """
        ...

    async def fetch(self, key: str, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        """Copy one file of the output folder; as Transport.pull. Incomplete if it is not there any more or shorter than ``size``."""
        ...

    async def read(self, key: str, path: str, *, offset: int, limit: int = 1 << 20) -> bytes:
        """Return bytes of a file of the work folder; empty if absent or at its end."""
        ...
