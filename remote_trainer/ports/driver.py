"""Renting and returning machines. Rules for editing: as in the package's docstring."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Protocol, runtime_checkable

from remote_trainer.model import (
    Instance,
    Offer,
    Resources,
)
from remote_trainer.ports.transport import Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """Facts the core needs about a driver."""

    borrowed: bool = False  # machines are only lent to us: nothing is rented, listed or destroyed
    spot: bool = False  # it rents machines that the provider may take back; it is a ``Bidder``
    records: bool = False  # the provider keeps records of what was asked of it; it is a ``Recorder``
    rents_every_s: float = 0.0  # requests to rent are let through no faster than one in that time
    visibility_lag_s: float = 0.0  # a created instance may be missing from the listing for that long
    scheduler: bool = False  # the provider can destroy by itself at a set time


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What to put on the rented machine."""

    image: str = ""
    disk_gb: int = 0
    public_key: str = ""
    #: Seconds in which the request may still be sent, by the caller's clock; one that comes too late is not: Transient, nothing was rented.
    left_s: Callable[[], float] = lambda: math.inf
    #: From then on nobody needs the machine: where it can, it ends itself some time later, also if nobody ever hears of it.
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """An offer that cannot serve."""

    offer: str
    description: str
    condition: str  # what it does not meet, by the name of the option or need: refusals are counted by it
    reason: str  # in words, with the numbers of this offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A look at a market."""

    offers: Sequence[Offer]
    refused: Sequence[Refusal] = ()


class Driver(Protocol):
    """Rents and returns instances of one kind. It never sleeps, polls, retries, persists, picks an offer or sees a job.

    Errors: Transient, Permanent, Ambiguous. Found by the entry point group ``remote_trainer.drivers``; constructed as
    ``Driver(options: Mapping, settings: DriverSettings)``, which raises ConfigError on bad options and opens no connection.
    """

    name: str
    abilities: Abilities

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        """Return what could be rented now: on demand, or at the least bid that would win. May block for one request.

        ``spot`` is asked for only where ``abilities.spot``.
        """
        ...

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        """Send at most one request.

        The reply is a hint. Permanent: refused, and nothing was rented. Transient: nothing was rented, the same may work later. Everything
        else, a time-out for one, is Ambiguous. A borrowed machine: no effect, the instance is returned.
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

    async def guard(self, instance: Instance, until: datetime) -> None:
        """Let the provider end the instance by itself soon after ``until``, whatever becomes of us.

        Idempotent; a later call sets another time. Asked for only where ``abilities.scheduler``; elsewhere: no effect.
        """
        ...

    async def connect(self, instance: Instance) -> Transport:
        """Return the way to the host; opens no connection yet. One transport per machine, shared by all its jobs.

        Machines behind one login, each with a folder of its own as ``address["root"]``, may share one.
        """
        ...

    async def check(self) -> str:
        """Prove credentials, balance or reachability; returns it in words."""
        ...

    async def close(self) -> None:
        """Close every transport handed out."""
        ...


@runtime_checkable
class Surveyor(Protocol):
    """What a driver may have besides: one whose offers are chosen from a market can say what it passed over."""

    async def survey(self, wanted: Resources, *, spot: bool = False) -> Survey:
        """Return the very offers that ``offers()`` would, and what else is on the market with the reason it is refused.

        For people to read, on their request: it may ask the provider more than ``offers()`` does. What is refused may be a sample.
        """
        ...


@runtime_checkable
class Bidder(Protocol):
    """What a driver is besides, where ``abilities.spot``."""

    async def bid(self, instance: Instance, price: Decimal) -> None:
        """Bid so much for a spot machine, US dollars an hour without its disk. Idempotent; one that is gone is no error.

        Permanent: refused, the machine keeps the bid it has.
        """
        ...


@runtime_checkable
class Recorder(Protocol):
    """What a driver is besides, where ``abilities.records``."""

    async def recorded(self, offer: Offer, label: str, since: datetime) -> Sequence[Instance]:
        """Return what requests for that offer made since then by the provider's own records, even where no listing shows it.

        Only what may be the label's: what is known to carry another label, or to be gone, is left out. May block for a few requests.
        Permanent: the records cannot be read with our key, and asking again will not help; the listing alone has to do.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What the provider billed for one instance on one day, US dollars; grows until the provider has counted everything."""

    instance: str
    label: str  # empty where the provider does not say
    day: datetime  # its first moment, UTC
    amount: Decimal


@runtime_checkable
class Biller(Protocol):
    """What a driver may be besides: one whose provider says what it bills."""

    async def credit(self) -> Decimal:
        """Return what is left to spend, US dollars."""
        ...

    async def charges(self, since: datetime, until: datetime) -> Sequence[Charge]:
        """Return what was billed for instances in that time: complete as far as the provider knows, or raises."""
        ...


@dataclass(frozen=True, slots=True)
class Finding:
    """The answer to one question about an installation; ``ok`` None means "not needed unless …"."""

    question: str
    ok: bool | None
    answer: str


@runtime_checkable
class Examiner(Protocol):
    """What a driver may be besides: one that can say, item by item, whether everything is there that renting needs."""

    async def examine(self) -> Sequence[Finding]:
        """Return what was found; changes nothing, rents nothing. For people to read, on their request: it may send several requests."""
        ...


@runtime_checkable
class SelfEnding(Protocol):
    """What a driver may be besides: one whose machines can end themselves with what they find on themselves."""

    @property
    def farewell(self) -> str:
        """POSIX sh text that, run on a rented machine, ends it: exits 0 once the provider has accepted. Holds no secret."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverSettings:
    """What the installation gives every driver."""

    state_dir: Path  # the product's own folder on this machine
    ssh_key: Path | None = None
    known_hosts: Path | None = None
    connect_timeout_s: float = 20.0
    keepalive_s: float = 15.0
    stall_s: float = 240.0  # a transfer that does not move at all for that long goes on over a new connection
    find_secret: Callable[[str], str | None] = lambda name: None  # by name: a provider's key
