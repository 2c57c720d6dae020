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
from decimal import Decimal
from enum import StrEnum

from remote_trainer.model import Checkpoint, HostFacts, Instance, Manifest, Offer, Reason
from remote_trainer.ports import StepStatus

# -------------------------------------------------------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class ChooseOffer:
    """Ask the drivers of the job's places what there is and pick. Fills ``offer``, ``rivals``, ``place``."""


@dataclass(frozen=True, slots=True)
class Create:
    """Rent the attempt's offer, or its rival of that number, under its label: at most one request.

    Fills ``created`` (a hint), ``refused``, ``unsent``, or nothing.
    """

    label: str
    number: int = 0  # 0: the offer; n: the n-th of its rivals


@dataclass(frozen=True, slots=True)
class FindInstance:
    """List what carries the attempt's label. Fills ``instances``.

    ``after`` is the time of the last listing: each one that comes in makes the next look a new wish, and one that takes long is not
    cut short by the next.
    """

    label: str
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """Look an unsure request up in the provider's own records. Fills ``traced``. ``after`` is the time of the last look."""

    label: str
    after: datetime | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """Let the provider end an instance by itself soon after ``until``, should all of us be gone. Fills ``guarded``."""

    label: str
    instance_id: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Bid:
    """Bid so much for the attempt's spot machine, US dollars an hour without its disk. Fills ``bid``."""

    label: str
    price: Decimal


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
    """Ask the provider to end an instance. Fills ``destroyed``; only the listing says that it is gone.

    ``round`` makes each request a new wish.
    """

    label: str
    instance_id: str
    round: int = 0


Effect = (
    ChooseOffer
    | Create
    | FindInstance
    | Trace
    | Guard
    | Bid
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

    @property
    def passes(self) -> bool:
        """May repetition mend it?"""
        return self.severity is Severity.RETRY


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
    rivals: tuple[Offer, ...] = ()  # to be rented with it
    place: int = 0  # where they are
    created: Mapping[int, Instance] = field(default_factory=dict)  # replies to Create, by its number
    creating: frozenset[int] = frozenset()  # such requests of ours that are under way
    refused: frozenset[int] = frozenset()  # that made nothing: the offer is gone, or not for us
    unsent: frozenset[int] = frozenset()  # that made nothing, and the offer may still be there
    answered_at: datetime | None = None  # when the last one ended, well or not
    instances: tuple[Instance, ...] | None = None
    instances_at: datetime | None = None
    destroyed: Mapping[str, datetime] = field(default_factory=dict)  # instance → when the provider accepted its end
    empty_since: datetime | None = None  # since when each listing has shown nothing of ours at all
    missing_since: datetime | None = None  # since when each listing has lacked our instance
    traced: tuple[Instance, ...] | None = None
    traced_at: datetime | None = None
    guarded: Mapping[str, datetime] = field(default_factory=dict)  # instance → when the provider is to end it
    bid: Decimal | None = None  # that the provider has accepted from this worker
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
