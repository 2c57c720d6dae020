"""What a decision is made from (``Seen``) and what it asks for (effects).

``Seen`` is what this worker found out about one job since it took it: empty after every takeover, filled by effects. Unknown is never
"no": a field that nobody looked at is None or missing. An effect is a wish, repeated by every decision until ``Seen`` shows that it is
fulfilled; the shell runs equal ones once at a time and ends those that are no longer wished for. So every effect is idempotent, except
``Create``, which a decision emits exactly once (see lifecycle).

Rules for editing: values only; a new effect needs a branch in ``worker/perform.py`` (checked by mypy) and a line in docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum

from remote_trainer.model import Checkpoint, HostFacts, Instance, Manifest, Offer, Reason
from remote_trainer.ports import StepStatus

# -------------------------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class ChooseOffer:
    """Ask the driver what there is and pick one. Fills ``offer``."""


@dataclass(frozen=True, slots=True)
class Create:
    """Rent the attempt's offer under its label: at most one request. Fills ``created`` (a hint) or nothing."""

    label: str


@dataclass(frozen=True, slots=True)
class FindInstance:
    """List what carries the attempt's label. Fills ``instances``.

    ``after`` is the time of the last listing: each one that comes in makes the next look a new wish, and one that takes long is not
    cut short by the next.
    """

    label: str
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """Let the provider end the attempt's instance by itself soon after ``until``, should all of us be gone. Fills ``guarded``."""

    label: str
    until: datetime


@dataclass(frozen=True, slots=True)
class PrepareHost:
    """Connect, install the supervisor, check what the plan needs. Fills ``host``."""

    label: str


@dataclass(frozen=True, slots=True)
class ShipInputs:
    """Bring the inputs, and the checkpoint to resume from, to the host. Fills ``shipped``."""

    label: str
    restore: Checkpoint | None


@dataclass(frozen=True, slots=True)
class FindCheckpoint:
    """Look for the newest verified checkpoint of earlier attempts. Fills ``resume``."""


@dataclass(frozen=True, slots=True)
class StartStep:
    """Start (or adopt) a step run. Fills ``steps``."""

    label: str
    step_key: str


@dataclass(frozen=True, slots=True)
class FollowStep:
    """Copy the log into the store and watch for the exit. Fills ``steps`` and ``drained``."""

    label: str
    step_key: str


@dataclass(frozen=True, slots=True)
class StopStep:
    """Ask the step's processes to end; takes the start away if it had not started. Fills ``steps``."""

    label: str
    step_key: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class CollectOutputs:
    """Bring settled outputs to the object store: over and over while a step runs, or once and for all.

    Fills ``checkpoint``, ``collected``.
    """

    label: str
    final: bool


@dataclass(frozen=True, slots=True)
class CleanHost:
    """Remove the attempt's folders from a borrowed host. Fills ``cleaned``."""

    label: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Ask the provider to end an instance. ``round`` makes each request a new wish; only the listing says that it is gone."""

    label: str
    instance_id: str
    round: int = 0


Effect = (
    ChooseOffer
    | Create
    | FindInstance
    | Guard
    | PrepareHost
    | ShipInputs
    | FindCheckpoint
    | StartStep
    | FollowStep
    | StopStep
    | CollectOutputs
    | CleanHost
    | Destroy
)

# ---------------------------------------------------------------------------------------------------------- observation


class Severity(StrEnum):
    """What a failed effect means for the attempt."""

    RETRY = "retry"  # says nothing about the job: try again with backoff
    UNSUITABLE = "unsuitable"  # this instance cannot serve: end the attempt
    FATAL = "fatal"  # no attempt can succeed: end the job
    WIPED = "wiped"  # the host lost our files: the attempt is lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """The last failure of one kind of effect; ``count`` in a row. Cleared by its next success."""

    severity: Severity
    reason: Reason
    message: str
    at: datetime
    retry_at: datetime
    count: int = 1
    error: str = ""  # its class, and since when every failure has been of that class
    alike_since: datetime | None = None
    retry_after_s: float | None = None  # the other side's own wish


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The outcome of a final collect: everything listed is verified in the object store."""

    manifest: Manifest
    missing: tuple[str, ...] = ()  # names of required outputs of which nothing was found


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything observed about a job by this worker. Merged from effects' results; never saved."""

    since: datetime  # when this worker took the job, by its own clock
    broken: str = ""  # a bug of ours that keeps the job from being moved by its rules
    offer: Offer | None = None
    created: Instance | None = None  # the reply to Create
    creating: bool = False  # a Create of ours is under way
    answered_at: datetime | None = None  # when it ended, well or not
    instances: tuple[Instance, ...] | None = None
    instances_at: datetime | None = None
    missing_since: datetime | None = None  # since when each listing has lacked our instance
    guarded: bool = False
    host: HostFacts | None = None
    resume: Checkpoint | None = None
    resume_known: bool = False
    shipped: bool = False
    steps: Mapping[str, StepStatus] = field(default_factory=dict)
    drained: frozenset[str] = frozenset()
    checkpoint: Checkpoint | None = None
    collected: Collected | None = None
    cleaned: bool = False
    troubles: Mapping[type[Effect], Trouble] = field(default_factory=dict)

    def with_step(self, key: str, status: StepStatus, *, drained: bool = False) -> Seen:
        """Return this plus a supervisor's word on one step."""
        return replace(self, steps={**self.steps, key: status}, drained=self.drained | {key} if drained else self.drained)

    def with_trouble(self, effect: type[Effect], trouble: Trouble | None) -> Seen:
        """Return this plus (or, with None, without) a failure of one kind of effect."""
        others = {kind: known for kind, known in self.troubles.items() if kind is not effect}
        return replace(self, troubles=others if trouble is None else {**others, effect: trouble})
