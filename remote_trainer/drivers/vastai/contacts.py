"""What this process remembers of each instance: whether it lets us in, the ways to it, when the provider ends it by itself.

All of it can be found out again: what is forgotten here costs a request, never an instance.

Rules for editing: memory only, and when it may go; requests are sent by ``access`` and ``guards``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from remote_trainer.transport.ssh import SshTransport

_GONE_AFTER_S = 600.0  # a listing may lack an instance that is there, for a while


@dataclass(slots=True)
class Contact:
    """One instance."""

    id: str
    let_in_at: float | None = None  # when it was asked to let our key in, by the loop's clock
    refused: bool = False  # it has refused our key since then
    transports: dict[str, SshTransport] = field(default_factory=dict)  # by address: it may come back at another one
    guard: Guard | None = None
    ending: bool = False  # its end was asked for
    absent_since: float | None = None  # it is missing from listings, by the loop's clock


@dataclass(frozen=True, slots=True)
class Guard:
    """A request that the provider will make by itself."""

    start: int  # seconds since the epoch
    job_id: int | None = None  # None: it did not tell


class Contacts:
    """Of every instance that was dealt with, until it is gone."""

    def __init__(self) -> None:
        self._known: dict[str, Contact] = {}

    def of(self, instance_id: str) -> Contact:
        """Return what is remembered of an instance; nothing yet of a new one."""
        return self._known.setdefault(instance_id, Contact(instance_id))

    def all(self) -> Sequence[Contact]:
        """Return everything."""
        return tuple(self._known.values())

    def parted(self, listed: Collection[str], now: float) -> Sequence[Contact]:
        """Return, and forget, what is gone by a complete listing: at once if its end was asked for, else if it stays away."""
        for contact in self._known.values():
            there = contact.id in listed
            contact.absent_since = None if there else (now if contact.absent_since is None else contact.absent_since)
        gone = [
            contact
            for contact in self._known.values()
            if contact.absent_since is not None and (contact.ending or now - contact.absent_since >= _GONE_AFTER_S)
        ]
        for contact in gone:
            del self._known[contact.id]
        return gone
