"""Who asks, what they may, how often, and what is left of the money.

Rules for editing: refusals are those of the real service: no key is 403, an unknown one 404, a missing permission 401.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from remote_trainer.testing.vast.market import meets
from remote_trainer.testing.vast.reply import Refused, Reply, refusal

#: Least seconds between two requests of a kind with one key, as published.
THRESHOLDS_S: Mapping[str, float] = {
    "search": 6.0,
    "create": 4.5,
    "destroy": 3.0,
    "show": 2.0,
    "list": 1.0,
    "update": 1.0,
    "reboot": 1.0,
    "bid": 5.5,
    "execute": 1.5,
    "charges": 1.0,
    "invoices": 3.0,
    "volumes": 5.5,
    "launch": 5.0,
    "ssh-key": 1.0,
    "detach": 2.0,
    "api-key": 2.0,
    "secrets": 3.0,
}
_CREATE_PENALTY_S = 12.0
_BOUND = 401, "auth_error", "lacks proper privileges for this action due to a constraint on id"


@dataclass(slots=True, kw_only=True)
class Key:
    """A key to the account, or to one instance."""

    id: int
    value: str
    instance: int | None = None
    name: str = ""
    #: Permission group → the routes in it, each with its constraints; no routes: all of them. None: all groups.
    permissions: Mapping[str, Any] | None = None
    revoked: bool = False

    def row(self) -> dict[str, Any]:
        """Return what a list of keys shows."""
        permissions = {"api": dict(self.permissions)} if self.permissions is not None else {}
        return {"id": self.id, "name": self.name, "key_hint": self.value[:6], "permissions": permissions}


@dataclass(slots=True)
class Limits:
    """The least time between requests, if the service is to keep it."""

    on: bool = False
    now: Callable[[], float] = time.monotonic
    _next: dict[tuple[str, int], float] = field(default_factory=dict)
    _refused: int = 0

    def check(self, kind: str, key: int) -> None:
        """Refuse what comes too soon; a refused request to rent is punished."""
        threshold = THRESHOLDS_S.get(kind)
        if not self.on or threshold is None:
            return
        now, due = self.now(), self._next.get((kind, key), 0.0)
        if now >= due:
            self._next[kind, key] = now + threshold
            return
        if kind == "create":
            self._next[kind, key] = now + _CREATE_PENALTY_S
        self._refused += 1
        raise too_frequent(self._refused, threshold)


def too_frequent(shape: int, threshold: float) -> Refused:
    """Return a refusal in one of the shapes that were seen."""
    bodies: tuple[Any, ...] = (
        "API requests too frequent",
        f"API requests too frequent: endpoint threshold={threshold}",
        {"detail": f"API requests too frequent endpoint threshold={threshold}"},
        {"success": False, "error": "rate_limit_exceeded", "msg": "Too many requests."},
        {"success": False, "error": "rate_limit_exceeded", "msg": "Too many requests.", "retry_after": threshold},
    )
    return Refused(Reply(status=429, body=bodies[shape % len(bodies)]))


class Account:
    """One account with its keys and its credit."""

    def __init__(self, credit: Decimal = Decimal(25)) -> None:
        self.credit = credit
        self.payments: list[tuple[float, Decimal, str]] = []  # when, how much, why
        self.children: dict[int, dict[str, Any]] = {}  # sub-accounts
        self.searches_from = 0.0  # the daily quota of searches is used up until then
        self.ssh_keys: dict[int, dict[str, Any]] = {}
        self.keys: list[Key] = []
        self.key = self.new_key()
        self.limits = Limits()
        self._next_ssh_key = 1

    def new_key(
        self,
        *,
        instance: int | None = None,
        groups: frozenset[str] | None = None,
        permissions: Mapping[str, Any] | None = None,
        name: str = "",
    ) -> Key:
        """Add a key: for everything, for some groups, for some routes of them, or for one instance."""
        if groups is not None:
            permissions = {group: {} for group in sorted(groups)}
        number, value = len(self.keys) + 1, secrets.token_hex(32)
        key = Key(id=number, value=value, instance=instance, permissions=permissions, name=name)
        self.keys.append(key)
        return key

    def pay(self, amount: Decimal, at: float, why: str) -> None:
        """Add to the credit, or take from it."""
        self.credit += amount
        self.payments.append((at, amount, why))

    def who(self, header: str | None) -> Key:
        """Return whose key an ``Authorization`` header carries."""
        if not header or not header.startswith("Bearer "):
            raise refusal(403, "auth_error", "This action requires login.")
        value = header.removeprefix("Bearer ").strip()
        for key in self.keys:
            if key.value == value and not key.revoked:
                return key
        raise invalid_key()

    def may(self, key: Key, group: str, route: str, *, number: int | None, self_service: bool) -> None:
        """Refuse what a key is not for; a key of an instance is for that instance alone. `number` is the one in the path."""
        if key.instance is not None and (not self_service or number not in (None, key.instance)):
            raise refusal(*_BOUND)
        if key.permissions is None:
            return
        if group not in key.permissions:
            raise refusal(401, "auth_error", f"lacks the {group} permission group")
        routes = key.permissions[group]
        if isinstance(routes, Mapping) and routes:
            if route not in routes:
                raise refusal(401, "auth_error", f"lacks the {route} route access")
            if not meets({"id": number}, (routes[route] or {}).get("constraints") or {}):
                raise refusal(*_BOUND)

    def add_ssh_key(self, public: str, at: float) -> dict[str, Any]:
        """Keep a key that new instances get."""
        number = self._next_ssh_key
        self._next_ssh_key += 1
        row = {"id": number, "user_id": 1, "public_key": public, "key": public, "created_at": at, "deleted_at": None}
        self.ssh_keys[number] = row
        return row

    def document(self) -> dict[str, Any]:
        """Return what ``show user`` reads."""
        return {
            "id": 1,
            "key_id": self.key.id,
            "email": "simulated@example.org",
            "username": "simulated",
            "fullname": "",
            "credit": round(float(self.credit), 6),
            "balance": 0,
            "balance_threshold": 0,
            "balance_threshold_enabled": False,
            "billed_expected": 0,
            "ssh_key": "",
            "sid": "",
            "has_billing": True,
            "has_payout": False,
            "host_agreement_accepted": False,
        }


def invalid_key() -> Refused:
    """Return how a key that is not known is refused."""
    return refusal(404, "auth_error", "Invalid user key")
