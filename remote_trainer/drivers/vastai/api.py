"""One method for each request to Vast.ai that we make: typed, paced, without policy.

Requests that change nothing, or that may be repeated, are tried again a few times; the request to rent is sent exactly once, and whatever
is not a clear refusal of it is Ambiguous. The key travels in one header and nowhere else.

Rules for editing: every reply goes through ``envelope.read``; rows come back as the provider sent them and are read by ``rows``. Paths
end with a slash, except where the provider's own client has none.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from remote_trainer.drivers.vastai.envelope import Already, Gone, Reply, Scheduled, read
from remote_trainer.drivers.vastai.pace import PATIENT_S, Pace, shared
from remote_trainer.errors import Ambiguous, Transient

_DRIVER = "vastai"
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_CREATE_TIMEOUT = httpx.Timeout(100.0, connect=10.0)  # renting takes its time, and its reply is worth waiting for
_HOUR_S = 3600
_PAGE = 25  # the provider's most
_PAGES_MAX = 200
_TRIES = 4
_BODY_MAX = 64 << 20  # bytes; a page of anything is a thousandth of that

_SCHEDULE = "/api/v0/commands/schedule_job/"

Row = Mapping[str, Any]


def instance_path(instance_id: str) -> str:
    """Return where an instance is asked about, and ended."""
    return f"/api/v0/instances/{instance_id}/"


class VastApi:
    """A connection to one account. Close it."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        pace: Pace | None = None,
        now: Callable[[], float] = time.time,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._pace, self.now = pace or shared(url, key), now
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}", "Accept": "application/json", "User-Agent": "remote-trainer"},
            timeout=_TIMEOUT,
            follow_redirects=False,
            transport=transport,
        )

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()

    # -- what there is

    async def account(self) -> Row:
        """Return the account: ``credit`` in US dollars and more."""
        return _mapping(await self._safe("account", "GET", "/api/v0/users/current"), "account")

    async def offers(self, query: Mapping[str, Any]) -> Sequence[Row]:
        """Return what could be rented now: at most 64 rows, whatever the query says."""
        body = await self._safe("search", "POST", "/api/v0/bundles/", body=query)
        return _rows(body, "offers", "search")

    async def instances(self) -> Sequence[Row]:
        """Return every instance of the account: all pages, or an error; never a part."""
        found: list[Row] = []
        total = None
        async for page in self._pages():
            found += _rows(page, "instances", "list")
            total = page.get("total_instances", total) if total is None else total
        ids = {row.get("id") for row in found}
        if isinstance(total, int) and len(ids) != total:
            raise Transient(f"Vast.ai listed {len(ids)} of {total} instances: not believed", driver=_DRIVER, operation="list")
        return found

    async def _pages(self) -> AsyncIterator[Mapping[str, Any]]:
        order = json.dumps([{"col": "id", "dir": "asc"}])
        params = {"select_filters": "{}", "order_by": order, "limit": str(_PAGE)}
        for _ in range(_PAGES_MAX):
            page = _mapping(await self._safe("list", "GET", "/api/v1/instances/", params=params), "list")
            yield page
            if not page.get("next_token"):
                return
            params = {**params, "after_token": str(page["next_token"])}
        raise Transient(f"Vast.ai's listing does not end after {_PAGES_MAX} pages", driver=_DRIVER, operation="list")

    async def instance(self, instance_id: str) -> Row | None:
        """Return one instance, or None for one that is not there (any more), or not yet."""
        try:
            body = _mapping(await self._safe("show", "GET", instance_path(instance_id), params={"owner": "me"}), "show")
        except Gone:
            return None
        if "instances" not in body:
            raise Transient("Vast.ai answered show without instances: not believed", driver=_DRIVER, operation="show")
        row = body["instances"]
        row = row[0] if isinstance(row, list) and len(row) == 1 else row  # seen so, too
        return row if isinstance(row, dict) else None

    async def audit_log(self) -> Sequence[Row]:
        """Return what was asked of the account, newest rows included."""
        return _listed(await self._safe("audit", "GET", "/api/v0/audit_logs/"), "audit")

    async def charges(self, since: float, until: float) -> Sequence[Row]:
        """Return what was billed between two times, seconds since the epoch; the last hours may be missing."""
        found: list[Row] = []
        days = json.dumps({"day": {"gte": int(since), "lte": math.ceil(until)}, "type": {"in": ["instance"]}})
        params = {"select_filters": days, "limit": "500"}
        for _ in range(_PAGES_MAX):
            page = _mapping(await self._safe("charges", "GET", "/api/v0/charges/", params=params), "charges")
            found += _rows(page, "results", "charges")
            if not page.get("next_token"):
                return found
            params = {**params, "after_token": str(page["next_token"])}
        raise Transient("Vast.ai's list of charges does not end", driver=_DRIVER, operation="charges")

    # -- what changes something

    async def create(self, offer_id: str, body: Mapping[str, Any], *, left_s: Callable[[], float] = lambda: math.inf) -> int:
        """Rent; returns the instance's id. Sent once: OfferGone and Permanent are clear refusals, Ambiguous may have rented.

        Not sent at all once no seconds are left: Transient.
        """
        await self._turn_to_create(left_s)
        reply = await self._send("create", "PUT", f"/api/v0/asks/{offer_id}/", body=body, timeout=_CREATE_TIMEOUT)
        made = _whole(reply.get("new_contract")) if isinstance(reply, dict) else None
        if made is None:
            raise Ambiguous("Vast.ai accepted the request to rent and named no instance", driver=_DRIVER, operation="create")
        return made

    async def _turn_to_create(self, left_s: Callable[[], float]) -> None:
        patience_s = left_s()
        try:
            async with asyncio.timeout(None if patience_s == math.inf else patience_s):
                await self._pace.turn("create")
        except TimeoutError:
            pass
        else:
            if left_s() > 0:  # this process may have been paused in its turn
                return
        raise Transient("the request to rent did not come to its turn in time: not sent", driver=_DRIVER, operation="create")

    async def bid(self, instance_id: str, price: Decimal) -> None:
        """Bid so much for a spot instance, US dollars an hour without its disk. Gone if there is none, Permanent if refused."""
        body = {"client_id": "me", "price": float(price)}
        await self._safe("bid", "PUT", f"/api/v0/instances/bid_price/{instance_id}/", body=body)

    async def destroy(self, instance_id: str) -> None:
        """Ask for an instance's end; one that is gone already is fine."""
        try:
            await self._safe("destroy", "DELETE", instance_path(instance_id), body={})
        except Gone:
            return

    async def turn_to_destroy(self) -> None:
        """Wait until a request to destroy may be sent."""
        await self._pace.turn("destroy")

    async def destroy_now(self, instance_ids: Sequence[str]) -> None:
        """Ask for the end of instances, whose turn was waited for: one request, sent once. One that is gone already is fine if alone."""
        try:
            if len(instance_ids) == 1:
                await self._send("destroy", "DELETE", instance_path(instance_ids[0]), body={})
            else:
                numbers = [int(each) for each in instance_ids]
                await self._send("destroy", "DELETE", "/api/v0/instances/", body={"instance_ids": numbers})
        except Gone:
            if len(instance_ids) > 1:
                raise

    async def schedule_destroy(self, instance_id: str, start: int, *, known: int | None = None) -> int | None:
        """Let the provider destroy an instance from ``start`` on, seconds since the epoch; returns the scheduled request's id, if told.

        It acts at minute 0 of each hour from the one that contains ``start``, for a day: the first that works is the last. An earlier
        time is replaced; ``known`` is the id of the request that is to be changed.
        """
        body = {
            "start_time": start,
            "end_time": start + 24 * _HOUR_S,
            "api_endpoint": instance_path(instance_id),
            "request_method": "DELETE",
            "request_body": {},
            "day_of_the_week": None,
            "hour_of_the_day": None,
            "frequency": "HOURLY",
            "instance_id": int(instance_id),
        }
        if known is None:
            try:
                made = await self._safe("schedule", "POST", _SCHEDULE, body=body)
                return _whole(made.get("scheduled_job_id")) if isinstance(made, dict) else None
            except Scheduled as there:
                known = there.job_id
        await self._safe("schedule", "PUT", f"{_SCHEDULE}{known}/", body=body)
        return known

    async def scheduled(self) -> Sequence[Row]:
        """Return what the provider will do by itself."""
        return _listed(await self._safe("schedules", "GET", _SCHEDULE), "schedules")

    async def unschedule(self, job_id: int) -> None:
        """Take a scheduled request back; one that is gone already is fine."""
        try:
            await self._safe("schedule", "DELETE", f"{_SCHEDULE}{job_id}/", body={})
        except Gone:
            return

    async def attach_key(self, instance_id: str, public_key: str) -> bool:
        """Let a public key in; returns whether that is news: one that is there already is fine."""
        try:
            await self._safe("attach", "POST", f"{instance_path(instance_id)}ssh/", body={"ssh_key": public_key})
        except Already:
            return False
        return True

    async def detach_key(self, instance_id: str, public_key: str) -> None:
        """Let a public key in no more; one that is not there is fine."""
        reply = _mapping(await self._safe("keys", "GET", f"{instance_path(instance_id)}ssh/"), "keys")
        for row in _keys(reply.get("ssh_keys")):
            if str(row.get("public_key") or row.get("key") or "").split()[:2] == public_key.split()[:2]:
                await self._safe("detach", "DELETE", f"{instance_path(instance_id)}ssh/{row.get('id')}/", body={})

    # -- sending

    async def _safe(
        self, kind: str, method: str, path: str, *, params: Mapping[str, str] | None = None, body: object = None
    ) -> Any:
        """Send a request that may be repeated, a few times if need be."""
        async for attempt in AsyncRetrying(
            stop=stop_after_attempt(_TRIES),
            wait=wait_exponential_jitter(initial=1.0, max=10.0),
            retry=retry_if_exception(_worth_repeating),
            reraise=True,
        ):
            with attempt:
                await self._pace.turn(kind)
                return await self._send(kind, method, path, params=params, body=body)
        raise AssertionError("tenacity re-raises the last error")

    async def _send(
        self,
        kind: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: object = None,
        timeout: httpx.Timeout = _TIMEOUT,
    ) -> Any:
        lost = Ambiguous if kind == "create" else Transient
        try:
            async with self._client.stream(method, path, params=params, json=body, timeout=timeout) as answer:
                text = await _text(answer, lost, kind)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:  # nothing was sent
            raise Transient(f"Vast.ai cannot be reached: {error}", driver=_DRIVER, operation=kind) from error
        except httpx.HTTPError as error:
            raise lost(f"Vast.ai did not answer {kind}: {type(error).__name__}", driver=_DRIVER, operation=kind) from error
        reply = Reply(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, text)
        try:
            return read(reply, kind, now=self.now())
        except Transient as error:
            if error.retry_after_s:
                self._pace.hold(kind, error.retry_after_s)
            raise


async def _text(answer: httpx.Response, lost: type[Ambiguous] | type[Transient], kind: str) -> str:
    """Return the body, if it is of a size that can be meant."""
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        if len(body) > _BODY_MAX:
            raise lost(f"Vast.ai answers {kind} without end: not believed", driver=_DRIVER, operation=kind)
    return body.decode(errors="replace")


def _worth_repeating(error: BaseException) -> bool:
    return isinstance(error, Transient) and (error.retry_after_s or 0.0) <= PATIENT_S


def _mapping(body: Any, operation: str) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise Transient(f"Vast.ai answered {operation} with something else", driver=_DRIVER, operation=operation)
    return body


def _rows(body: Any, name: str, operation: str) -> list[Row]:
    rows = body.get(name) if isinstance(body, dict) else None
    if not isinstance(rows, list):
        raise Transient(f"Vast.ai answered {operation} without {name}: not believed", driver=_DRIVER, operation=operation)
    return [row for row in rows if isinstance(row, dict)]


def _listed(body: Any, operation: str) -> list[Row]:
    """Return the rows of an answer that is a list, or that has exactly one, whatever it is called."""
    lists = [body] if isinstance(body, list) else [each for each in _mapping(body, operation).values() if isinstance(each, list)]
    if len(lists) != 1:
        raise Transient(f"Vast.ai answered {operation} without a list: not believed", driver=_DRIVER, operation=operation)
    return [row for row in lists[0] if isinstance(row, dict)]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _keys(value: object) -> list[Row]:
    """Return the rows of a list of keys, which comes as text of JSON."""
    try:
        rows = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        rows = None
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
