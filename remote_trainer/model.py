"""The frozen values everything else speaks of: job, plan, attempt, instance, step, artifact.

Rules for editing: values only (no behaviour beyond derived properties), no clock, no randomness, no I/O. Times are aware UTC,
durations end in ``_s``, sizes are bytes, money is ``Decimal`` (US dollars). A field that is added needs a default, so that documents
written before still load; a field that is removed or changes its meaning raises ``SCHEMA``. Documents are made in document.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, NewType

#: Version of the stored job document. A worker leaves a job with a higher one alone.
SCHEMA = 1

JobId = NewType("JobId", str)
#: Fencing token: handed out by the store at each claim of a job; only grows.
Token = NewType("Token", int)


class Phase(StrEnum):
    """Where a job is. The table of legal moves is ``lifecycle.TRANSITIONS``."""

    QUEUED = "queued"
    PROVISIONING = "provisioning"
    TRANSFERRING = "transferring"
    EXECUTING = "executing"
    FETCHING = "fetching"
    RELEASING = "releasing"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        """True when nothing can follow and nothing costs money any more."""
        return self in (Phase.DONE, Phase.FAILED, Phase.CANCELLED)


class Verdict(StrEnum):
    """How an attempt, or the job, ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # the instance or the process vanished: another attempt may follow


class Reason(StrEnum):
    """Why: the enum that explains a verdict. Each is documented in docs/operations.md."""

    COMPLETED = "completed"
    STEP_FAILED = "step_failed"
    STEP_TIMEOUT = "step_timeout"
    CANCELLED_BY_USER = "cancelled_by_user"
    TIME_LIMIT = "time_limit"
    COST_LIMIT = "cost_limit"
    NO_CAPACITY = "no_capacity"
    PROVISIONING_FAILED = "provisioning_failed"
    HOST_UNSUITABLE = "host_unsuitable"
    HOST_KEY_MISMATCH = "host_key_mismatch"
    TRANSFER_FAILED = "transfer_failed"
    ARTIFACTS_MISSING = "artifacts_missing"
    INSTANCE_GONE = "instance_gone"
    HOST_REBOOTED = "host_rebooted"
    SUPERVISOR_LOST = "supervisor_lost"
    HOST_WIPED = "host_wiped"
    DEADMAN = "deadman"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    INTERNAL = "internal"


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a host must have; zero means no wish."""

    gpus: int = 0
    vram_gb: int = 0  # of each GPU, GB
    disk_gb: int = 0  # free on the host's disk, GB (10^9 bytes)
    ram_gb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a failed step is run again within an attempt, and how long to wait before."""

    max: int = 0  # runs after the first one
    backoff_s: float = 10.0  # before the first retry; doubles each time
    backoff_max_s: float = 300.0
    #: Exit codes worth another run; empty means any but 0.
    on_exit: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One item of a plan: a POSIX shell script and everything that decides how it is run. Rendered; nothing is left to expand."""

    name: str
    run: str  # POSIX sh script text
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()  # names of secrets put into this step's environment
    workdir: str = "."  # relative to the attempt's work folder
    timeout_s: float = 0.0  # 0: only the job's max_hours bounds it
    stop_grace_s: float = 30.0  # between TERM and KILL
    retries: Retries = Retries()


class OutputKind(StrEnum):
    """What an output is for."""

    ARTIFACT = "artifact"  # kept
    CHECKPOINT = "checkpoint"  # kept, and restored on the next attempt
    FINAL = "final"  # kept, and the job is not DONE without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Files of the output folder that are kept.

    ``glob`` is relative to the output folder (``*``, ``?``, ``**``). With ``marker`` a folder matching ``glob`` is one unit that counts
    only once a file of that name lies in it (written last).
    """

    name: str
    kind: OutputKind
    glob: str
    marker: str = ""
    required: bool = False
    keep: int = 0  # newest units kept in the object store; 0 keeps all


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A regular expression with named groups, searched in each log line (after the last carriage return)."""

    regex: str
    kind: str = "metric"  # "metric" or "progress" (groups ``step`` and ``total``)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe and its parameters, rendered and frozen at submit. ``digest`` is the SHA-256 of its canonical JSON without itself."""

    tool: str  # "sdxl-lora@1"
    parameters: Mapping[str, Any]
    steps: tuple[PlannedStep, ...]
    outputs: tuple[Output, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    resources: Resources = Resources()
    image: str = ""  # container image for drivers that rent containers; empty: bare
    metrics_file: str = "metrics.jsonl"  # in the work folder; appended by the steps, one JSON object a line
    cleanup: str = ""  # shell script run once, best effort, before the host is given back
    required_secrets: tuple[str, ...] = ()  # of all the steps' secrets, those without which none can run
    health: str = ""  # shell script run on the host before the first step; non-zero means unsuitable
    digest: str = ""


# -------------------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A part of an input that travels and is verified by itself, named by its SHA-256 (hex).

    Without ``path`` it is a tar of whole files; with one it is the bytes of that big file from ``offset`` on.
    """

    sha256: str
    size: int
    path: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A tree shipped to the host under its digest: the dataset, the tool's own files, a base model.

    ``digest`` is the SHA-256 (hex) of the list of its chunks (dataset/manifest.py), so it is the same wherever the tree is packed.
    """

    name: str  # "dataset", "tool", "base"
    source: str  # where it was read from, for people
    digest: str
    size: int  # bytes of all chunks
    files: int
    chunks: tuple[Chunk, ...]


# ------------------------------------------------------------------------------------------------------------- machine


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What could be rented (or borrowed), with its price."""

    id: str
    driver: str
    description: str = ""
    price_per_hour: Decimal = Decimal(0)
    resources: Resources = Resources()
    facts: Mapping[str, Any] = field(default_factory=dict)


class InstanceState(StrEnum):
    """What the provider says of an instance, in our words."""

    STARTING = "starting"
    READY = "ready"  # an address to connect to is known
    STOPPED = "stopped"  # preempted or stopped: costs storage, runs nothing
    BROKEN = "broken"  # will not become ready


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What is rented (costs money) or borrowed (``borrowed``: somebody else's machine that is never destroyed)."""

    id: str
    label: str
    state: InstanceState = InstanceState.READY
    borrowed: bool = False
    address: Mapping[str, Any] = field(default_factory=dict)  # what the driver's connect() needs; no secrets
    host_key: str = ""  # pinned OpenSSH public key line; empty until first use
    price_per_hour: Decimal = Decimal(0)
    created_at: datetime | None = None
    message: str = ""  # the provider's own words


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What bootstrap found on a host."""

    incarnation: str  # random, written once on the host's disk: tells a wiped disk
    boot: str  # tells a reboot or container restart
    disk_free: int = 0
    disk_total: int = 0
    mem_total: int = 0
    cpus: int = 0
    gpus: tuple[str, ...] = ()  # "NVIDIA L40S, 46068 MiB, 570.86"
    gpu_mem_mib: tuple[int, ...] = ()  # MiB, as many as gpus
    has: frozenset[str] = frozenset()  # "rsync", "python3", "openssl", "sha256sum", "tar", …
    host_key: str = ""  # OpenSSH public key line seen on the connection; empty where there is none


# ------------------------------------------------------------------------------------------------------------- attempt


class StepState(StrEnum):
    """What the supervisor says of a step, plus UNKNOWN for "could not find out"."""

    UNKNOWN = "unknown"
    NONE = "none"  # never started
    RUNNING = "running"
    EXITED = "exited"
    CANCELLED = "cancelled"  # the claim was taken by a cancel: it can never start
    ORPHAN = "orphan"  # supervisor gone, command alive
    LOST = "lost"  # provably not running, exit code unknowable


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """One run of one step: ``number`` counts from 1 within the attempt. Saved before the start is sent."""

    name: str
    number: int
    state: StepState = StepState.NONE
    exit_code: int | None = None
    why: str = ""  # the supervisor's word: "deadman", "stop", "reboot", …
    started_at: datetime | None = None  # when the start was first asked for
    ended_at: datetime | None = None
    log_size: int | None = None  # final size, known with the exit
    stop_at: datetime | None = None  # when we asked it to stop, and why
    stop_reason: Reason | None = None

    @property
    def key(self) -> str:
        """The step's name on the host and of its log: ``train.1``."""
        return f"{self.name}.{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One kept file: verified against ``sha256`` in the object store."""

    path: str  # relative to the output folder
    size: int
    sha256: str
    output: str  # name of the plan's output it belongs to
    kind: OutputKind
    key: str = ""  # object key; empty until it is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All kept files of an attempt; written last, complete or not there."""

    job: JobId
    attempt: int
    artifacts: tuple[Artifact, ...]
    complete: bool  # False when the attempt did not end well: partial results
    key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Resumable state of an earlier attempt: all files of one unit, verified in the object store."""

    attempt: int
    unit: str  # folder relative to the output folder, e.g. "checkpoints/step-000100"
    artifacts: tuple[Artifact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of the job on one instance. Saved, with its label, before anything is rented."""

    number: int
    label: str  # rt-<deployment>-<job>-a<n>
    started_at: datetime
    offer: Offer | None = None
    requested_at: datetime | None = None  # saved before the create request is sent
    instance: Instance | None = None
    facts: HostFacts | None = None
    steps: tuple[StepRun, ...] = ()
    restored: Checkpoint | None = None
    checkpoint: Checkpoint | None = None  # newest verified one of this attempt
    manifest: Manifest | None = None
    executing_at: datetime | None = None
    fetching_at: datetime | None = None
    releasing_at: datetime | None = None
    ended_at: datetime | None = None
    verdict: Verdict | None = None
    reason: Reason | None = None
    message: str = ""


# ----------------------------------------------------------------------------------------------------------------- job


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a job's spending and patience."""

    max_hours: float = 24.0  # wall time from the first attempt's start, hours
    max_cost: Decimal = Decimal(0)  # US dollars; 0: no cap
    max_attempts: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The durable request: this plan, this data, this budget; and how far it is."""

    id: JobId
    name: str
    plan: Plan
    driver: str
    created_at: datetime
    tenant: str = "default"
    driver_options: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"host": "user@box:22"}; no secrets
    inputs: tuple[Input, ...] = ()
    limits: Limits = Limits()
    priority: int = 0  # higher first
    retry_of: JobId | None = None  # an earlier job whose checkpoints may be resumed from
    schema: int = SCHEMA

    phase: Phase = Phase.QUEUED
    since: datetime | None = None  # when the phase was entered
    attempts: tuple[Attempt, ...] = ()
    note: str = ""  # what it waits for, for people: "host unreachable since …"
    verdict: Verdict | None = None
    reason: Reason | None = None
    message: str = ""
    finished_at: datetime | None = None

    #: Set by the store from its own column, never by save(): the user's wish must not be lost to a worker's write.
    cancel_requested_at: datetime | None = None

    @property
    def attempt(self) -> Attempt | None:
        """The current, or last, attempt."""
        return self.attempts[-1] if self.attempts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to act on a job until it is not renewed in time (by the store's clock)."""

    job: Job
    token: Token
    holder: str


# -------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. ``seq`` is given by the store and grows within a job."""

    at: datetime
    kind: str  # "phase", "effect", "fault", "note", "cancel", …
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Bytes of one step's log from ``offset``; ``stream`` is ``a<attempt>/<step>.<number>``."""

    stream: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Values a step reported at one time, e.g. {"step": 12, "loss": 0.13}."""

    at: datetime
    stream: str
    values: Mapping[str, float]


def log_stream(attempt: int, step_key: str) -> str:
    """Return the name of a step run's log in the store."""
    return f"a{attempt}/{step_key}"
