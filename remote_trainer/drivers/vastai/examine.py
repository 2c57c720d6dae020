"""Whether an account and its key have what renting needs, asked by requests that change nothing.

What a key may do is told by nothing but a refusal: each permission is tried on something that needs it and is not there to be harmed.

Rules for editing: one function per question; each answer is a sentence with what to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from decimal import Decimal

from remote_trainer.drivers.vastai.access import Access
from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.envelope import KEY_REFUSED
from remote_trainer.drivers.vastai.rows import Row, money
from remote_trainer.errors import DriverError, Permanent, RemoteTrainerError
from remote_trainer.ports import Finding

_DAY_S = 86_400
_NOWHERE = 0  # the id of no scheduled request: nothing can be taken back by it


async def examine(api: VastApi, access: Access) -> AsyncIterator[Finding]:
    """Give one finding after the other; only the key's if the key is refused."""
    try:
        account = await api.account()
    except DriverError as error:
        yield Finding("key", False, str(error))
        return
    yield Finding("key", True, "accepted, and may read the account (user_read)")
    yield _credit(account)
    yield await _may("instance_read", api.instances(), "lists machines")
    yield await _may("schedule", api.scheduled(), "reads what Vast.ai will do by itself (instance_read)")
    yield await _may_write(api)
    yield await _may("misc", api.audit_log(), "searches offers, and reads the log that settles doubts about a request to rent")
    now = api.now()
    yield await _may("billing_read", api.charges(now - _DAY_S, now), "reads what was billed", needed=False)
    yield await _ssh_key(access)


def credit(account: Row) -> Decimal:
    """Return what is left to spend, US dollars. Permanent if the provider does not say."""
    if account.get("credit") is None:
        raise Permanent("Vast.ai does not say how much credit the account has", driver="vastai", operation="account")
    return money(account, "credit")


def _credit(account: Row) -> Finding:
    try:
        left = credit(account)
    except Permanent as error:
        return Finding("credit", None, str(error))
    return Finding("credit", left > 0, f"{left:.2f} $" if left > 0 else f"{left:.2f} $: add credit, or nothing can be rented")


async def _may(permission: str, request: Awaitable[object], use: str, *, needed: bool = True) -> Finding:
    try:
        await request
    except DriverError as error:
        return Finding(permission, False if needed else None, f"{error} (it {use})")
    return Finding(permission, True, use)


async def _may_write(api: VastApi) -> Finding:
    """Try to take back what is not there: however that is refused, if not for the key's sake, the key may."""
    question, use = "instance_write", "rents, schedules and gives back machines"
    try:
        await api.unschedule(_NOWHERE)
    except Permanent as error:
        if str(error).startswith(KEY_REFUSED):
            return Finding(question, False, f"{error} (it {use})")
    except DriverError as error:
        return Finding(question, None, f"{error}: not known whether the key {use}")
    return Finding(question, True, use)


async def _ssh_key(access: Access) -> Finding:
    try:
        public = await access.public_key()
    except RemoteTrainerError as error:
        return Finding("ssh key", False, str(error))
    kind = public.split()[0] if public.split() else "empty"
    return Finding("ssh key", kind.startswith(("ssh-", "ecdsa-", "sk-")), f"{kind}, which rented machines let in")
