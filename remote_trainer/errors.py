"""Every error the product raises, as one tree.

    RemoteTrainerError
    ├── UsageError                    the caller can fix it; never retried
    │   ├── RecipeError               file, line, field: all faults of a recipe at once
    │   ├── DatasetError              the data cannot be used as it is
    │   ├── ConfigError               a setting, profile or credential is wrong
    │   ├── NotFound                  no such job, tool, driver, step
    │   ├── Conflict                  the name or id is taken, or the move is illegal
    │   ├── ModelRefused              a model of the hub is missing, closed to us, or of another kind
    │   └── Overdrawn                 the tenant's account does not hold what the job may cost
    ├── LeaseLost                     control flow: drop the job, log at info
    ├── SpendingHeld                  a cap, a budget or the provider's credit leaves no room now
    ├── DriverError                   driver, operation, attempt label; one of three kinds
    │   ├── Transient                 try again later (``retry_after_s``)
    │   ├── Permanent                 trying again cannot help
    │   │   └── NoCapacity                no machine fits what is wanted
    │   └── Ambiguous                 it may have taken effect: observe, never repeat blindly
    ├── TransportError                the way to the host
    │   ├── HostUnreachable           says nothing about what runs there
    │   │   ├── HostSilent                nobody takes the connection, and nobody refuses it
    │   │   └── LoginRefused              it answers and does not let us in: a person must look
    │   ├── HostKeyMismatch           permanent: somebody else answers
    │   └── CommandTimeout            the command may still run
    ├── HostError                     the host answered and cannot do it
    │   ├── HostLacks                 a program or capability is missing
    │   ├── HostFull                  no space left on it
    │   ├── HostWiped                 the supervisor's folder is not the one we set up
    │   └── Fenced                    the host has seen a newer token: somebody else owns the job
    ├── StoreError
    │   ├── StoreUnavailable          down, locked or unreachable: try again
    │   └── DocumentTooNew            written by a newer version: leave it alone
    ├── ArtifactError
    │   ├── DigestMismatch            the bytes are not those that were announced
    │   ├── Incomplete                an announced file is missing
    │   └── ObjectsUnavailable        the object store is down: try again
    ├── HubUnreachable                the model hub does not answer: says nothing about the model
    ├── JobFailed                     CLI only: the job ended FAILED (JobCancelled: CANCELLED)
    └── InvariantBroken               our bug: stop this job, keep the instance visible

Rules for editing: a class says who can do something about it, never where it was raised. Every message says what happened, to
what, and what the user can do. ``exit_code`` is the CLI's, ``http_status`` the API's; both are documented in docs/errors.md and a
test compares. A user's program that fails is data (an exit code), never an exception. Messages never carry secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


class RemoteTrainerError(Exception):
    """Base of all errors of this product."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    #: May the same operation succeed later without anybody changing anything?
    transient: ClassVar[bool] = False


class UsageError(RemoteTrainerError):
    """The request cannot be carried out as given; nothing was changed."""

    exit_code = 2
    http_status = 400


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with one place of a file: ``line`` is 1-based, ``field`` a JSON pointer, both empty when unknown."""

    message: str
    file: str = ""
    line: int = 0
    field: str = ""

    def __str__(self) -> str:
        where = self.file + (f":{self.line}" if self.line else "")
        what = f"{self.field}: {self.message}" if self.field else self.message
        return f"{where}: {what}" if where else what


class RecipeError(UsageError):
    """A recipe, or the parameters given for it, break its schema; carries every fault at once."""

    exit_code = 3

    def __init__(self, headline: str, faults: tuple[Fault, ...] = ()) -> None:
        self.faults = faults
        super().__init__("\n".join([headline, *(f"  {fault}" for fault in faults)]))


class DatasetError(UsageError):
    """The dataset is missing, empty, unreadable or holds what cannot be shipped."""

    exit_code = 4


class ConfigError(UsageError):
    """A setting, profile or credential is missing or wrong."""

    exit_code = 5


class NotFound(UsageError):
    """There is no such thing."""

    exit_code = 6
    http_status = 404


class Conflict(UsageError):
    """It is already taken, or the move is not legal now."""

    exit_code = 7
    http_status = 409


class ModelRefused(UsageError):
    """A model of the hub is missing, closed to the token that there is, or not what the tool trains."""

    exit_code = 12

    def __init__(self, message: str, *, tokenless: bool = False, closed: bool = False) -> None:
        self.tokenless = tokenless  # the hub was asked without a token, and one might open it
        self.closed = closed or tokenless  # another token might open it
        super().__init__(message)


class Overdrawn(UsageError):
    """The tenant's account does not hold what the job may cost."""

    exit_code = 8
    http_status = 402


class LeaseLost(RemoteTrainerError):
    """Another worker owns the job now: drop it and touch nothing."""


class SpendingHeld(RemoteTrainerError):
    """A cap of the installation, a budget of the tenant or the provider's credit leaves no room for another machine now."""

    exit_code = 9
    http_status = 402
    transient = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class DriverError(RemoteTrainerError):
    """A driver's operation failed; one of Transient, Permanent, Ambiguous."""

    exit_code = 20
    http_status = 502

    def __init__(self, message: str, *, driver: str = "", operation: str = "", label: str = "") -> None:
        self.driver, self.operation, self.label = driver, operation, label
        super().__init__(message)


class Transient(DriverError):
    """Rate limited or down: the same call may succeed later."""

    transient = True

    def __init__(
        self, message: str, *, driver: str = "", operation: str = "", label: str = "", retry_after_s: float | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, driver=driver, operation=operation, label=label)


class Permanent(DriverError):
    """Authentication, balance, an offer that is gone, no capacity, an invalid request: the same call cannot succeed."""

    exit_code = 21


class NoCapacity(Permanent):
    """The driver has no machine that fits what the job wants."""

    exit_code = 29


class Ambiguous(DriverError):
    """The request may have taken effect. Never repeat it; observe."""

    exit_code = 22


class TransportError(RemoteTrainerError):
    """The way to the host failed."""

    exit_code = 23
    http_status = 502


class HostUnreachable(TransportError):
    """No connection. It says nothing about what runs there."""

    transient = True


class HostSilent(HostUnreachable):
    """No answer at all, not even a refusal: the machine is off, or its network takes nothing in. Says nothing about what runs there."""


class LoginRefused(HostUnreachable):
    """The host answers and does not let us in with the keys we have. Says nothing about what runs there, and no retry mends it."""

    exit_code = 28
    transient = False


class HostKeyMismatch(TransportError):
    """The host answers with another key than the pinned one. Permanent: it may be somebody else's machine."""

    exit_code = 24


class CommandTimeout(TransportError):
    """The command did not answer in time; it may still run."""

    transient = True


class HostError(RemoteTrainerError):
    """The host answered, and cannot do what was asked."""

    exit_code = 25


class HostLacks(HostError):
    """A program, capability or amount of disk that the job needs is not there."""

    exit_code = 26


class HostFull(HostError):
    """No space left on the host's disk."""

    exit_code = 27


class HostWiped(HostError):
    """The supervisor's folder is gone or another one: the disk was reset. Never start again blindly."""


class Fenced(HostError):
    """The host has seen a newer fencing token: another worker owns the job."""


class StoreError(RemoteTrainerError):
    """The job store failed."""

    exit_code = 30
    http_status = 503


class StoreUnavailable(StoreError):
    """Down, locked or unreachable: the same call may succeed later."""

    transient = True


class DocumentTooNew(StoreError):
    """The document was written by a newer version of this program: leave it alone and upgrade."""

    exit_code = 31


class ArtifactError(RemoteTrainerError):
    """An artifact could not be kept as promised."""

    exit_code = 40


class DigestMismatch(ArtifactError):
    """The bytes that arrived are not the bytes that were announced."""

    transient = True


class Incomplete(ArtifactError):
    """An announced or required file is missing."""


class ObjectsUnavailable(ArtifactError):
    """The object store is down or refuses us: kept locally and tried again."""

    exit_code = 41
    transient = True


class HubUnreachable(RemoteTrainerError):
    """The model hub does not answer, or is out of order. It says nothing about the model."""

    exit_code = 13
    http_status = 502
    transient = True


class JobFailed(RemoteTrainerError):
    """The job reached FAILED (the CLI's way to say it by exit code)."""

    exit_code = 10


class JobCancelled(JobFailed):
    """The job reached CANCELLED."""

    exit_code = 11


class InvariantBroken(RemoteTrainerError):
    """A bug of ours: the job is stopped where it is, its instance stays visible, a human must look."""

    exit_code = 70
