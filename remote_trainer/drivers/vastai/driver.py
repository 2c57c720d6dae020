"""Rents machines of Vast.ai: ``ports.Driver`` over ``VastApi``.

Rules for editing: drivers see ports, model, errors and transports only. What a row means is in ``rows``, which offers serve in ``choose``,
what a reply means in ``envelope``; here they are put together.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from remote_trainer.drivers.options import check_options
from remote_trainer.drivers.vastai import rows
from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.choose import Wishes, query, sieve, wide_query
from remote_trainer.drivers.vastai.envelope import Gone, OfferGone
from remote_trainer.errors import ConfigError, HostUnreachable
from remote_trainer.model import Instance, InstanceState, Offer, Resources
from remote_trainer.ports import Abilities, DriverSettings, Spec, Survey, Transport
from remote_trainer.transport.keys import own_key
from remote_trainer.transport.ssh import SshTransport

_URL = "https://console.vast.ai"
_IMAGE = "vastai/base-image:@vastai-automatic-tag"
_DISK_MIN_GB = 10
_LAG_S = 60.0
_USER = "root"  # as everywhere at the provider; a simulated one may know another user only


class VastDriver:
    """Rents machines with one account."""

    name = "vastai"
    abilities = Abilities(visibility_lag_s=_LAG_S, scheduler=True)
    option_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "url": {"type": "string", "minLength": 1, "description": f"the service; default: $VAST_URL, else {_URL}"},
            "image": {"type": "string", "minLength": 1, "description": f"container image; default: the tool's, else {_IMAGE}"},
            "user": {"type": "string", "minLength": 1, "description": f"who logs in to its machines; default: {_USER}"},
            "visibility_lag_s": {
                "type": "number",
                "minimum": 0,
                "description": f"how long a new machine may be missing from the listing; default: {_LAG_S:g}",
            },
            "gpu_names": {
                "type": "array",
                "items": {"type": "string"},
                "description": "GPUs as the provider spells them ('RTX 4090'); default: any",
            },
            "regions": {"type": "array", "items": {"type": "string"}, "description": "two-letter country codes; default: any"},
            "verified": {"type": "boolean", "description": "only machines that the provider verified; default: true"},
            "min_reliability": {"type": "number", "minimum": 0, "maximum": 1, "description": "0 to 1; default: 0.98"},
            "min_download_mbit": {"type": "number", "minimum": 0, "description": "the machine's own word, Mbit/s; default: 200"},
            "min_cuda": {
                "type": "number",
                "minimum": 0,
                "description": "newest CUDA the machine's driver can run; default: 12.4",
            },
            "min_hours": {"type": "number", "minimum": 0, "description": "how long the offer must last; default: 24"},
            "max_price": {"type": "number", "minimum": 0, "description": "US dollars an hour with the disk; default: no cap"},
            "blocked_machines": {
                "type": "array",
                "items": {"type": "integer"},
                "description": "machine ids that are never rented",
            },
        },
        "additionalProperties": False,
    }

    def __init__(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        check_options(self.name, self.option_schema, options)
        self._settings = settings
        self._url = str(options.get("url") or os.environ.get("VAST_URL") or _URL).rstrip("/")
        self._image = str(options.get("image", ""))
        self._user = str(options.get("user", _USER))
        self.abilities = Abilities(visibility_lag_s=float(options.get("visibility_lag_s", _LAG_S)), scheduler=True)
        self._wishes = _wishes(options)
        self._opened: VastApi | None = None
        self._key_path: Path | None = settings.ssh_key
        self._let_in: set[str] = set()  # instances that know our key
        self._transports: dict[tuple[str, str], SshTransport] = {}

    @property
    def _api(self) -> VastApi:
        """The connection; ConfigError without a key."""
        if self._opened is None:
            key = self._settings.find_secret("VAST_API_KEY")
            if not key:
                raise ConfigError("no Vast.ai key: set VAST_API_KEY, or put it into a file of that name in the secrets folder")
            self._opened = VastApi(self._url, key)
        return self._opened

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        suitable, _ = sieve(await self._api.offers(query(self._wishes, wanted)), self._wishes, wanted)
        return suitable

    async def survey(self, wanted: Resources, *, spot: bool = False) -> Survey:
        found = await self._api.offers(query(self._wishes, wanted))
        suitable, _ = sieve(found, self._wishes, wanted)
        _, refused = sieve([*found, *await self._api.offers(wide_query(wanted))], self._wishes, wanted)
        return Survey(offers=suitable, refused=refused)

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        body = {
            "client_id": "me",
            "image": self._image or spec.image or _IMAGE,
            "disk": float(max(_DISK_MIN_GB, spec.disk_gb)),
            "label": label,
            "runtype": "ssh_direc ssh_proxy",
            "env": {},
            "price": None,
            "cancel_unavail": True,
        }
        try:
            made = await self._api.create(offer.id, body)
        except OfferGone as error:
            if error.leftover is not None:
                await self._api.destroy(str(error.leftover))
            raise
        return Instance(id=str(made), label=label, state=InstanceState.STARTING, price_per_hour=offer.price_per_hour)

    async def instances(self, prefix: str) -> Sequence[Instance]:
        found = (rows.instance(row) for row in await self._api.instances())
        return [one for one in found if one is not None and one.label.startswith(prefix)]

    async def destroy(self, instance: Instance) -> None:
        await self._api.destroy(instance.id)
        self._let_in.discard(instance.id)

    async def guard(self, instance: Instance, until: datetime) -> None:
        await self._api.schedule_destroy(instance.id, until.timestamp())

    async def connect(self, instance: Instance) -> Transport:
        host, port = instance.address.get("host"), instance.address.get("port")
        if not host:
            raise HostUnreachable(f"instance {instance.id} of Vast.ai has no address yet")
        path = await self._key()
        if instance.id not in self._let_in:
            await self._let_us_in(instance.id, path)
        place = (instance.id, f"{self._user}@{host}:{port}")
        known = self._transports.get(place)
        if known is None or instance.host_key not in ("", known.host_key):
            known = self._transports[place] = SshTransport(place[1], self._settings, host_key=instance.host_key, identity=path)
        return known

    async def _let_us_in(self, instance_id: str, path: Path) -> None:
        public = path.with_name(f"{path.name}.pub")
        try:
            key = (await asyncio.to_thread(public.read_text)).strip()
        except OSError as error:
            raise ConfigError(f"the public half of the key {path} is not there: {error}; ssh-keygen -y makes it") from error
        try:
            await self._api.attach_key(instance_id, key)
        except Gone as error:  # whether it is, the listing says
            raise HostUnreachable(f"instance {instance_id} of Vast.ai cannot be found: {error}") from error
        self._let_in.add(instance_id)

    async def check(self) -> str:
        account = await self._api.account()
        return f"{self._url}: {rows.money(account, 'credit'):.2f} $ of credit"

    async def close(self) -> None:
        for transport in self._transports.values():
            await transport.close()
        if self._opened is not None:
            await self._opened.close()

    async def _key(self) -> Path:
        """Return the private key that rented machines let in; made once where the user has named none."""
        if self._key_path is None:
            self._key_path = await asyncio.to_thread(own_key, self._settings.state_dir)
        return self._key_path


def _wishes(options: Mapping[str, Any]) -> Wishes:
    given = {key: value for key, value in options.items() if key not in ("url", "image", "user", "visibility_lag_s")}
    for name in ("gpu_names", "regions"):
        if name in given:
            given[name] = tuple(given[name])
    if "max_price" in given:
        given["max_price"] = Decimal(str(given["max_price"]))
    if "blocked_machines" in given:
        given["blocked_machines"] = frozenset(given["blocked_machines"])
    return Wishes(**given)
