"""Rents machines of Vast.ai: ``ports.Driver`` over ``VastApi``.

Rules for editing: drivers see ports, model, errors and transports only. What a row means is in ``rows``, which offers serve in ``choose``,
what a reply means in ``envelope``; here they are put together.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar

from remote_trainer.drivers.options import check_options
from remote_trainer.drivers.vastai import examine, records, rows
from remote_trainer.drivers.vastai.access import Access
from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.choose import disk_to_rent, query, sieve, wide_query
from remote_trainer.drivers.vastai.contacts import Contact, Contacts
from remote_trainer.drivers.vastai.ends import Ends
from remote_trainer.drivers.vastai.envelope import Gone, OfferGone
from remote_trainer.drivers.vastai.farewell import farewell, last_resort
from remote_trainer.drivers.vastai.guards import Guards
from remote_trainer.drivers.vastai.market import Market
from remote_trainer.drivers.vastai.options import IMAGE, LAG_S, SCHEMA, URL, USER, wishes
from remote_trainer.drivers.vastai.pace import INTERVALS_S
from remote_trainer.errors import Ambiguous, ConfigError, DriverError, RemoteTrainerError, Transient
from remote_trainer.model import Instance, InstanceState, Offer, Resources
from remote_trainer.ports import Abilities, Charge, DriverSettings, Finding, Spec, Survey, Transport

_ABILITIES = Abilities(spot=True, records=True, scheduler=True, visibility_lag_s=LAG_S)
# Some images bring a folder that sshd does not trust.
_ON_START = 'chmod 700 ~/.ssh; chmod 600 ~/.ssh/authorized_keys; chown -R "$(id -u)" ~/.ssh; touch ~/.no_auto_tmux; true'
_ASK_S = 15.0  # for so long the reply to a request to rent may wait for the key to be attached
_LAST_S = 3600.0  # so long after nobody needs it a machine ends itself, whoever has forgotten it
_CHORES_S = 10.0  # and the end of this process for what is cleared away


class VastDriver:
    """Rents machines with one account."""

    name = "vastai"
    abilities = _ABILITIES
    option_schema: ClassVar[Mapping[str, Any]] = SCHEMA

    def __init__(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        check_options(self.name, self.option_schema, options)
        self._settings = settings
        self._url = str(options.get("url") or os.environ.get("VAST_URL") or URL).rstrip("/")
        self._image = str(options.get("image", ""))
        lag_s = float(options.get("visibility_lag_s", LAG_S))
        self.abilities = replace(_ABILITIES, visibility_lag_s=lag_s, rents_every_s=INTERVALS_S["create"])
        self._wishes = wishes(options)
        self._opened: VastApi | None = None
        self._market = Market()
        self._contacts = Contacts()
        self._access = Access(lambda: self._api, settings, str(options.get("user", USER)))
        self._guards = Guards(lambda: self._api, lambda: self._api.now())
        self._ends = Ends(lambda: self._api)
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def _api(self) -> VastApi:
        """The connection; ConfigError without a key."""
        if self._opened is None:
            key = self._settings.find_secret("VAST_API_KEY")
            if not key:
                raise ConfigError("no Vast.ai key: set VAST_API_KEY, or put it into a file of that name in the secrets folder")
            self._opened = VastApi(self._url, key)
        return self._opened

    # -- the market

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        found = await self._market.look(self._api, query(self._wishes, wanted, spot=spot))
        suitable, _ = sieve(found, self._wishes, wanted, spot=spot)
        return suitable

    async def survey(self, wanted: Resources, *, spot: bool = False) -> Survey:
        found = await self._market.look(self._api, query(self._wishes, wanted, spot=spot))
        suitable, _ = sieve(found, self._wishes, wanted, spot=spot)
        every = [*found, *await self._api.offers(wide_query(wanted, spot=spot))]
        _, refused = sieve(every, self._wishes, wanted, spot=spot)
        return Survey(offers=suitable, refused=refused)

    # -- renting and giving back

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        body = {
            "client_id": "me",
            "image": self._image or spec.image or IMAGE,
            "disk": float(disk_to_rent(spec.disk_gb)),
            "label": label,
            "runtype": "ssh_direc ssh_proxy",
            "env": {},
            "onstart": self._on_start(spec),
            "price": float(offer.price_per_hour - offer.disk_per_hour) if offer.spot else None,
            "cancel_unavail": True,
        }
        self._market.take(offer.id)
        try:
            made = str(await self._api.create(offer.id, body, left_s=spec.left_s))
        except OfferGone as error:
            if error.leftover is not None:
                await self._give_back(str(error.leftover), label)
            raise
        # At once, while it boots: until a key is known on the machine it takes minutes. Whoever connects asks again.
        with contextlib.suppress(RemoteTrainerError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                await self._access.ask(self._contacts.of(made))
        return Instance(
            id=made,
            label=label,
            state=InstanceState.STARTING,
            price_per_hour=offer.price_per_hour,
            disk_per_hour=offer.disk_per_hour,
        )

    def _on_start(self, spec: Spec) -> str:
        if spec.until is None:
            return _ON_START
        # After the provider's scheduler would have: this is for machines that were made, and nobody was left to have them scheduled.
        left_s = max(0.0, spec.until.timestamp() - self._api.now()) + _LAST_S
        return f"{_ON_START}\n{last_resort(self._url, left_s)}"

    async def _give_back(self, leftover: str, label: str) -> None:
        try:
            await self._api.destroy(leftover)
        except DriverError as error:
            message = f"the offer is gone, but Vast.ai made instance {leftover}, which could not be given back: {error}"
            raise Ambiguous(message, driver=self.name, operation="create", label=label) from error

    async def instances(self, prefix: str) -> Sequence[Instance]:
        listed = await self._api.instances()
        ids = {str(row.get("id")) for row in listed}
        await self._doubt(ids)
        self._part(ids)
        self._ends.forget(ids)
        found = (rows.instance(row) for row in listed)
        return [one for one in found if one is not None and one.label.startswith(prefix)]

    async def _doubt(self, listed: Collection[str]) -> None:
        """Do not believe a listing that lacks a machine which we are on and which is there: what is not listed is given up, and ended."""
        for contact in self._contacts.all():
            missing = bool(contact.transports) and not contact.ending and contact.id not in listed
            if missing and await self._api.instance(contact.id) is not None:
                message = f"Vast.ai's listing lacks instance {contact.id}, which is there: not believed"
                raise Transient(message, driver=self.name, operation="list")

    async def destroy(self, instance: Instance) -> None:
        await self._ends.end(instance.id)
        self._contacts.of(instance.id).ending = True

    async def guard(self, instance: Instance, until: datetime) -> None:
        try:
            await self._guards.put(self._contacts.of(instance.id), until.timestamp())
        except Gone as error:  # whether it is, the listing says
            message = f"Vast.ai does not know instance {instance.id}, whose end was to be scheduled: {error}"
            raise Transient(message, driver=self.name, operation="guard", label=instance.label) from error

    async def bid(self, instance: Instance, price: Decimal) -> None:
        with contextlib.suppress(Gone):
            await self._api.bid(instance.id, price)

    async def connect(self, instance: Instance) -> Transport:
        return await self._access.transport(self._contacts.of(instance.id), instance)

    # -- what the provider knows

    async def recorded(self, offer: Offer, label: str, since: datetime) -> Sequence[Instance]:
        made = list(records.made_since(await self._api.audit_log(), since.timestamp()))
        if not made:
            return []
        listed = {str(row.get("id")): row for row in await self._api.instances()}
        found: list[Instance] = []
        for each in made:
            if each.label not in ("", label):
                continue
            row = listed.get(each.id) or await self._api.instance(each.id)
            one = rows.instance(row) if row is not None else None
            # Without a label of its own it is ours only if the log says so: somebody else's may have none.
            if one is not None and (one.label or each.label) == label:
                found.append(replace(one, label=label))
        return found

    async def credit(self) -> Decimal:
        return examine.credit(await self._api.account())

    async def charges(self, since: datetime, until: datetime) -> Sequence[Charge]:
        return records.charges(await self._api.charges(*records.whole_days(since, until)))

    @property
    def farewell(self) -> str:
        return farewell(self._url)

    async def check(self) -> str:
        return f"{self._url}: {await self.credit():.2f} $ of credit"

    async def examine(self) -> Sequence[Finding]:
        return [finding async for finding in examine.examine(self._api, self._access)]

    # -- leaving

    def _part(self, listed: set[str]) -> None:
        """Clear away, aside, what belongs to instances that are gone."""
        for contact in self._contacts.parted(listed, asyncio.get_running_loop().time()):
            chore = asyncio.create_task(self._clear_away(contact), name=f"after instance {contact.id}")
            self._chores.add(chore)
            chore.add_done_callback(self._chores.discard)

    async def _clear_away(self, contact: Contact) -> None:
        for transport in contact.transports.values():
            await transport.close()
        with contextlib.suppress(DriverError):  # what is left behind asks for the end of what is not there, and is over in a day
            if await self._api.instance(contact.id) is None:  # a second word for it: without its guard nobody else would end it
                await self._guards.take_back(contact)

    async def close(self) -> None:
        await self._ends.close()
        if self._chores:
            await asyncio.wait(self._chores, timeout=_CHORES_S)
        for contact in self._contacts.all():
            for transport in contact.transports.values():
                await transport.close()
        for chore in tuple(self._chores):
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        if self._opened is not None:
            await self._opened.close()
