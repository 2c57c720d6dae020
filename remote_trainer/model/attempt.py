"""One try of a job on one instance, and what it kept. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from remote_trainer.model.basics import JobId, Reason, Verdict
from remote_trainer.model.machine import HostFacts, Instance, Offer
from remote_trainer.model.plan import OutputKind


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
    place: int = 0  # which of the job's places it runs at
    offer: Offer | None = None
    rivals: tuple[Offer, ...] = ()  # rented at the same time, under the same label, until one of them all has proved good
    rivals_gone_at: datetime | None = None  # when only ours was listed any more
    requested_at: datetime | None = None  # saved before the create requests are sent
    refused: tuple[str, ...] = ()  # offers that were asked for in vain
    dropped: tuple[str, ...] = ()  # instances under our label that cannot serve
    traced: bool = False  # the instance is known from the provider's records alone
    raised_at: datetime | None = None  # when more was last bid for it: the offer has the new price
    instance: Instance | None = None
    facts: HostFacts | None = None
    steps: tuple[StepRun, ...] = ()
    restored: Checkpoint | None = None
    checkpoint: Checkpoint | None = None  # newest verified one of this attempt
    manifest: Manifest | None = None
    bytes_in: int = 0  # brought to the machine
    bytes_out: int = 0  # and fetched from it
    ready_at: datetime | None = None  # since when the provider charges for more than the disk
    executing_at: datetime | None = None
    fetching_at: datetime | None = None
    releasing_at: datetime | None = None
    ended_at: datetime | None = None
    verdict: Verdict | None = None
    reason: Reason | None = None
    message: str = ""
