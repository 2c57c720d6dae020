"""The contracts between the core and the world: Store, Driver, Transport, Host, Objects, Clock.

Each docstring states behaviour: idempotent? may it block? what if absent? which errors? Every implementation passes the suite of the
same name in ``remote_trainer.testing``. Rules for editing: protocols and the values they exchange only; a new verb needs a case in
the suite first. Nothing here may be specific to one provider, database or shell.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from remote_trainer.model import (
    Event,
    HostFacts,
    Instance,
    Job,
    JobId,
    Lease,
    LogChunk,
    Metric,
    Offer,
    Phase,
    Resources,
    StepState,
    Token,
)

# ---------------------------------------------------------------------------------------------------------------- clock


class Clock(Protocol):
    """The only source of time for the shell; the core is handed ``now``."""

    def now(self) -> datetime:
        """Return the aware UTC wall time."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; cancellable."""
        ...


# ---------------------------------------------------------------------------------------------------------------- store


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Everything one save writes for one job: all of it, or (stale token) none of it."""

    job_id: JobId
    token: Token
    job: Job | None = None  # None: the document stays as it is
    events: tuple[Event, ...] = ()
    logs: tuple[LogChunk, ...] = ()
    metrics: tuple[Metric, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQuery:
    """Which jobs to list, newest first. ``after`` is the ``cursor`` of the page before."""

    phases: frozenset[Phase] | None = None
    tenant: str | None = None
    name: str | None = None
    limit: int = 50
    after: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One page of jobs; ``cursor`` is None on the last one."""

    jobs: tuple[Job, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renew found: still ours, and which of those the user wants cancelled."""

    held: frozenset[JobId]
    cancelling: frozenset[JobId]


class Store(Protocol):
    """Durable truth about jobs. All verbs raise StoreUnavailable when it cannot be reached; nothing was written then, or all of it.

    A lease is judged by the store's clock only. Tokens are per job, start at 1 and grow by one with each claim. Documents newer than
    this program raise DocumentTooNew from ``get`` and are never handed out by ``claim``.
    """

    async def migrate(self) -> str:
        """Create or upgrade tables, indexes, validators.

        Idempotent. Returns a sentence on what it is ("sqlite 3.40.1, journal …").
        """
        ...

    async def close(self) -> None:
        """Release every resource. Idempotent."""
        ...

    async def deployment(self) -> str:
        """Return this store's id (6 lower-case letters/digits, made once): part of every instance label."""
        ...

    async def submit(self, job: Job) -> None:
        """Insert a QUEUED job. Conflict if the id exists, or its name is that of an unfinished job of the same tenant."""
        ...

    async def get(self, job_id: JobId) -> Job:
        """Return the job, ``cancel_requested_at`` included. NotFound if there is none."""
        ...

    async def find(self, query: JobQuery) -> Page:
        """Return a page of jobs, newest first; ids never repeat over the pages of an unchanged store."""
        ...

    async def claim(self, holder: str, *, lease_s: float, limit: int) -> Sequence[Lease]:
        """Take up to ``limit`` unfinished jobs that nobody holds (or whose lease ran out): priority, then age.

        One winner under any contention; each lease carries a token larger than any before for that job.
        """
        ...

    async def renew(self, holder: str, leases: Mapping[JobId, Token], *, lease_s: float) -> Renewal:
        """Extend all leases in one write. What is not in ``held`` is lost (taken over, or unknown): drop it at once.

        A lease that ran out but that nobody took is renewed.
        """
        ...

    async def release(self, leases: Mapping[JobId, Token]) -> None:
        """Give leases back at once, so that the next worker need not wait. Stale ones are ignored. Idempotent."""
        ...

    async def evict(self, holder: str) -> int:
        """Let every lease of ``holder`` run out now (its process is known to be dead). Returns how many."""
        ...

    async def holders(self) -> Sequence[str]:
        """Return all holders with a lease that has not run out."""
        ...

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        """Write each change atomically under its token, all in one transaction where the backend can. Returns the stale ones' ids.

        Of a stale change nothing is written: no document, event, log or metric. A log chunk must begin where the stream ends: one that
        begins earlier is cut to its new part (so a repeated write changes nothing); a gap raises InvariantBroken. ``cancel_requested_at``
        of the document is ignored.
        """
        ...

    async def request_cancel(self, job_id: JobId) -> None:
        """Note the user's wish.

        Idempotent; NotFound if absent; Conflict if the job has ended. A QUEUED job nobody holds is still cancelled by a
        worker.
        """
        ...

    async def events(self, job_id: JobId, *, after: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return events with ``seq > after`` in order."""
        ...

    async def log_streams(self, job_id: JobId) -> Mapping[str, int]:
        """Return each log stream of the job with its size in bytes, in order of first write."""
        ...

    async def read_log(self, job_id: JobId, stream: str, *, offset: int = 0, limit: int = 1 << 20) -> bytes:
        """Return up to ``limit`` bytes from ``offset``; empty at the end or for an unknown stream."""
        ...

    async def metrics(self, job_id: JobId, *, after: int = 0, limit: int = 10000) -> Sequence[tuple[int, Metric]]:
        """Return (seq, metric) with ``seq > after`` in order."""
        ...

    def watch(self, job_id: JobId | None = None) -> AsyncGenerator[None, None]:
        """Yield once at the start and then whenever something another connection wrote may concern the job (or any job).

        Spurious wakes are allowed, missed ones are not: what was written before a wake is readable after it. Wakes come within tens of
        milliseconds, also across processes. Closing the iterator frees it.
        """
        ...

    def export(self) -> AsyncIterator[Mapping[str, Any]]:
        """Yield every record as a JSON-ready mapping with a ``kind`` (job, event, log (base64), metric)."""
        ...


# ------------------------------------------------------------------------------------------------------------ transport


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended. ``code`` is its exit status, negative for a signal."""

    code: int
    stdout: bytes
    stderr: bytes


class Channel(Protocol):
    """A running command with its three streams.

    Used as an async context manager; leaving it ends the channel (EOF, then close).
    """

    async def read(self, limit: int = 1 << 16) -> bytes:
        """Return some bytes of stdout, b'' at EOF. HostUnreachable if the connection broke."""
        ...

    async def read_error(self, limit: int = 1 << 16) -> bytes:
        """Return some bytes of stderr, b'' at EOF. HostUnreachable if the connection broke."""
        ...

    async def read_both(self, limit: int = 1 << 16) -> tuple[bytes, bytes]:
        """Return some bytes of stdout and of stderr, waiting for either; both empty at the end of both.

        Instead of, never beside, the other two. HostUnreachable if the connection broke.
        """
        ...

    async def write(self, data: bytes) -> None:
        """Send to stdin, with flow control. HostUnreachable if the connection broke."""
        ...

    async def end(self) -> None:
        """Send EOF on stdin. Idempotent."""
        ...

    async def wait(self) -> int:
        """Return the exit status once the command ended.

        HostUnreachable if the connection broke first (never read that as an exit).
        """
        ...

    async def __aenter__(self) -> Channel: ...

    async def __aexit__(self, *exc: object) -> None: ...


Progress = Callable[[int, int], None]  # (bytes done, bytes in all)


class Transport(Protocol):
    """The way to one host: commands and files. Safe to use from many tasks; connects on first use and again after a break.

    Every verb raises HostUnreachable (nothing known about what runs there) or HostKeyMismatch (permanent).
    """

    @property
    def address(self) -> str:
        """Return the host in words, for messages: ``user@box:22``."""
        ...

    @property
    def host_key(self) -> str:
        """Return the OpenSSH public key line seen at the last connect; empty where there is none."""
        ...

    @property
    def shares_files(self) -> bool:
        """Is the host's file system ours too (this machine)? Then local paths are readable there."""
        ...

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float = 60.0) -> Completed:
        """Run a command to its end; arguments arrive exactly as given. CommandTimeout when it takes longer (it may still run)."""
        ...

    def open(self, argv: Sequence[str]) -> AbstractAsyncContextManager[Channel]:
        """Start a command and talk to it."""
        ...

    async def push(self, files: Sequence[Path], folder: str, *, progress: Progress | None = None) -> None:
        """Copy local files into a folder of the host (made if missing) under their own names.

        Resumable, atomic per file, existing complete ones skipped by name and size.
        """
        ...

    async def pull(self, path: str, target: Path, *, size: int, progress: Progress | None = None) -> None:
        """Copy one file of the host; resumes a partial ``target``; ``size`` is what was announced.

        More bytes are refused (DigestMismatch).
        """
        ...

    async def close(self) -> None:
        """End the connection. Idempotent."""
        ...


# ----------------------------------------------------------------------------------------------------------------- host


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
    """The host is there: the log's size now."""

    size: int


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

    def follow(self, key: str, step_key: str, offset: int) -> AbstractAsyncContextManager[Follow]:
        """Follow a step's log from a byte offset; claim, sizes and exit come on the same channel."""
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


# -------------------------------------------------------------------------------------------------------------- objects


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What the object store says of a key. ``sha256`` is of the bytes as they were verified when put."""

    key: str
    size: int
    sha256: str


class Objects(Protocol):
    """A bucket (or folder) of immutable objects. All verbs raise ObjectsUnavailable when it cannot be reached or refuses us."""

    async def put(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> StoredObject:
        """Store a file under a key.

        The bytes are hashed while sent: DigestMismatch (and nothing kept) if they are not ``sha256``. Same key and digest:
        nothing is sent.
        """
        ...

    async def get(self, key: str, path: Path, *, sha256: str, progress: Progress | None = None) -> None:
        """Write an object to a file (temp, then rename), verified. NotFound if absent."""
        ...

    async def head(self, key: str) -> StoredObject | None:
        """Return what is known of a key, None if absent."""
        ...

    async def verify(self, key: str, *, size: int, sha256: str) -> None:
        """Make sure the stored bytes are those: Incomplete if absent, DigestMismatch if other."""
        ...

    def list(self, prefix: str) -> AsyncIterator[StoredObject]:
        """Yield all objects below a prefix, in key order; follows paging."""
        ...

    async def delete(self, key: str) -> None:
        """Remove; absent is success."""
        ...

    async def presign(self, key: str, *, expires_s: int) -> str:
        """Return a URL to download the object without credentials (a file:// one for a folder)."""
        ...

    async def check(self) -> str:
        """Prove that it can be written, read and deleted; returns it in words. Raises ObjectsUnavailable or ConfigError."""
        ...


# --------------------------------------------------------------------------------------------------------------- driver


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Facts the core needs about a driver."""

    borrowed: bool = False  # machines are only lent to us: nothing is rented, listed or destroyed
    spot: bool = False
    visibility_lag_s: float = 0.0  # a created instance may be missing from the listing for that long
    scheduler: bool = False  # the provider can destroy by itself at a set time


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to put on the rented machine."""

    image: str = ""
    disk_gb: int = 0
    public_key: str = ""


class Driver(Protocol):
    """Rents and returns instances of one kind. It never sleeps, polls, retries, persists, picks an offer or sees a job.

    Errors: Transient, Permanent, Ambiguous. Found by the entry point group ``remote_trainer.drivers``; constructed as
    ``Driver(options: Mapping, settings: DriverSettings)``, which raises ConfigError on bad options and opens no connection.
    """

    name: str
    abilities: Abilities

    async def offers(self, wanted: Resources) -> Sequence[Offer]:
        """Return what could be rented now. May block for one request."""
        ...

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        """Send at most one request.

        The reply is a hint; a time-out is Ambiguous. A borrowed machine: no effect, the instance is returned.
        """
        ...

    async def instances(self, prefix: str) -> Sequence[Instance]:
        """Return every instance whose label starts with ``prefix``: complete, or raises; never partial.

        Borrowed: always empty.
        """
        ...

    async def destroy(self, instance: Instance) -> None:
        """Ask for its end.

        Absent is success, "still going" is success; called again until the listing agrees. Borrowed: no effect.
        """
        ...

    async def connect(self, instance: Instance) -> Transport:
        """Return the way to the host; opens no connection yet. One transport per machine, shared by all its jobs."""
        ...

    async def check(self) -> str:
        """Prove credentials, balance or reachability; returns it in words."""
        ...

    async def close(self) -> None:
        """Close every transport handed out."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSettings:
    """What the installation gives every driver."""

    state_dir: Path  # the product's own folder on this machine
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    connect_timeout_s: float = 20.0
    keepalive_s: float = 15.0
