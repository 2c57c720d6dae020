"""Asked before each rent: do the installation's caps, the tenant's budget and the provider's credit leave room for it now?

A closed gate is SpendingHeld: the job says so and asks again. The gates of one worker let one job through at a time, and remember for a
while what they let through; two workers may pass at the same moment, each with a machine that alone would fit.

Rules for editing: what is too much is decided in ``policy.spending``; here it is found out what is spent. A gate that nobody has set asks
nobody. What cannot be found out at the provider closes no gate: renting from it is about to fail too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING

from remote_trainer import log
from remote_trainer.errors import DocumentTooNew, DriverError, SpendingHeld
from remote_trainer.model import Job, Offer, Phase
from remote_trainer.policy import committed, estimate, left_of, needed, too_dear
from remote_trainer.ports import Biller, Driver, JobQuery
from remote_trainer.worker.alarm import Cause

if TYPE_CHECKING:
    from remote_trainer.worker.shop import Shop

_log = log.get()

_LISTED = timedelta(seconds=30)  # a listing may be so old
_PASSED_S = 120.0  # what was let through shows in listing and store by then
_CREDIT_S = 60.0  # for so long the provider's credit is known
_PAGE = 200
_OLDEST = timedelta(days=32)  # jobs that ended before the month began were submitted at most so long before it
_AGAIN_S = {"hour": 15.0, "budget": 120.0, "credit": 60.0}  # how long to wait before the next look

_RENTING = frozenset(phase for phase in Phase if not phase.terminal and phase is not Phase.QUEUED)


@dataclass(frozen=True, slots=True)
class _Passed:
    tenant: str
    price: Decimal  # an hour
    need: Decimal  # of the run
    at: float  # by the loop's clock


class Gates:
    """The gates of one worker."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._passed: dict[str, _Passed] = {}  # by label
        self._credit: dict[int, tuple[float, Decimal | None]] = {}  # by driver: when it was asked, and what it said
        self._turn = asyncio.Lock()

    def refusal(self, job: Job, offer: Offer) -> str:
        """Return why an offer is never to be rented for a job, or an empty string."""
        left = left_of(job, self._shop.clock.now())
        return too_dear(offer, estimate(job), self._shop.spending, tenant=job.tenant, left=left)

    async def check(self, job: Job, offers: Sequence[Offer], driver: Driver) -> None:
        """Let a job pass that is about to rent these, or raise SpendingHeld."""
        price = sum((offer.price_per_hour for offer in offers), Decimal(0))
        if driver.abilities.borrowed or not price:
            return
        need = sum((needed(offer, estimate(job)) for offer in offers), Decimal(0))
        label = job.attempts[-1].label
        async with self._turn:
            await self._check_hour(label, price)
            await self._check_budget(job, need)
            await self._check_credit(driver, need)
            self._passed[label] = _Passed(job.tenant, price, need, asyncio.get_running_loop().time())

    async def _check_hour(self, label: str, price: Decimal) -> None:
        cap = self._shop.spending.max_hourly_spend
        if not cap:
            return
        rented = await self._hourly(label)
        if rented + price > cap:
            message = (
                f"machines for {rented:.3f} $ an hour are rented, this one costs {price:.3f} $, and max_hourly_spend is {cap} $"
            )
            raise SpendingHeld(f"{message}: it is rented once others are given back", retry_after_s=_AGAIN_S["hour"])

    async def _hourly(self, label: str) -> Decimal:
        """Return what an hour of everything costs that is rented, asked for or about to be, but for one label."""
        spent = await self._listed()
        with contextlib.suppress(DocumentTooNew):  # what newer versions have asked for is seen once it is listed
            async for job in self._jobs(JobQuery(phases=_RENTING, limit=_PAGE)):
                attempt = job.attempt
                if attempt is not None and attempt.offer is not None and attempt.requested_at and not attempt.ended_at:
                    asked = (attempt.offer, *(() if attempt.rivals_gone_at else attempt.rivals))
                    spent.setdefault(attempt.label, sum((each.price_per_hour for each in asked), Decimal(0)))
        for each, passed in self._lately().items():
            spent.setdefault(each, passed.price)
        spent.pop(label, None)
        return sum(spent.values(), Decimal(0))

    def _lately(self) -> dict[str, _Passed]:
        """Return what was let through and may not show elsewhere yet."""
        now = asyncio.get_running_loop().time()
        self._passed = {label: passed for label, passed in self._passed.items() if now - passed.at < _PASSED_S}
        return self._passed

    async def _listed(self) -> dict[str, Decimal]:
        """Return what an hour of the instances costs that are listed, by label; several drivers may be of one account."""
        found: dict[tuple[str, str], tuple[str, Decimal]] = {}
        since = self._shop.clock.now() - _LISTED
        for driver in self._shop.drivers():
            if not driver.abilities.borrowed:
                for one in (await self._shop.listing(driver).since(since)).instances:
                    found[driver.name, one.id] = (one.label, one.price_per_hour)
        spent: dict[str, Decimal] = {}
        for label, price in found.values():
            spent[label] = spent.get(label, Decimal(0)) + price
        return spent

    async def _check_budget(self, job: Job, need: Decimal) -> None:
        now = self._shop.clock.now()
        periods = self._shop.spending.budget(job.tenant).periods(now)
        if not periods:
            return
        used = dict.fromkeys(periods, Decimal(0))
        oldest = min(since for _, since in periods.values()) - _OLDEST
        seen = {job.attempts[-1].label}
        async for other in self._jobs(JobQuery(tenant=job.tenant, limit=_PAGE), oldest):
            for name, (_, since) in periods.items():
                used[name] += committed(other, since, now)
            seen |= {attempt.label for attempt in other.attempts if attempt.requested_at is not None}
        coming = sum(
            (each.need for label, each in self._lately().items() if each.tenant == job.tenant and label not in seen), need
        )
        for name, (cap, _) in periods.items():
            if used[name] + coming > cap:
                rest = f"{used[name] + coming - need:.2f} $ of it are used, and this machine needs {need:.2f} $"
                message = f"{job.tenant} may spend {cap} $ a {name}, {rest}: it is rented once there is room (days and months are of UTC)"
                raise SpendingHeld(message, retry_after_s=_AGAIN_S["budget"])

    async def _check_credit(self, driver: Driver, need: Decimal) -> None:
        if not isinstance(driver, Biller):
            return
        credit = await self._credit_of(driver, driver)
        if credit is not None and credit < need:
            message = f"{driver.name} has {credit:.2f} $ of credit left, and this machine needs {need:.2f} $: pay some in"
            self._shop.alarm.ring(Cause(kind="credit", subject=driver.name, message=message, data=(("credit_usd", str(credit)),)))
            raise SpendingHeld(message, retry_after_s=_AGAIN_S["credit"])

    async def _credit_of(self, driver: Driver, biller: Biller) -> Decimal | None:
        now = asyncio.get_running_loop().time()
        asked_at, credit = self._credit.get(id(driver), (float("-inf"), None))
        if now - asked_at > _CREDIT_S:
            try:
                credit = await biller.credit()
            except DriverError as error:
                _log.warning("training.gates", action="credit_unknown", driver=driver.name, error=str(error))
                credit = None
            self._credit[id(driver)] = (now, credit)
        return credit

    async def _jobs(self, query: JobQuery, oldest: datetime | None = None) -> AsyncIterator[Job]:
        """Yield what a query finds, page by page, down to those that were submitted then."""
        after: str | None = None
        while True:
            page = await self._shop.store.find(JobQuery(phases=query.phases, tenant=query.tenant, limit=query.limit, after=after))
            for job in page.jobs:
                if oldest is not None and job.created_at < oldest:
                    return
                yield job
            if page.cursor is None:
                return
            after = page.cursor
