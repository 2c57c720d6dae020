"""How instances come to let us in, and the ways to them.

Our key is attached by the provider's API, never written by us: what we wrote ourselves the provider removes again some hours later.

Rules for editing: an instance that refuses us is asked anew, but not while it may only be slow to hear of the key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.contacts import Contact
from remote_trainer.drivers.vastai.envelope import Gone
from remote_trainer.errors import ConfigError, HostUnreachable
from remote_trainer.model import Instance
from remote_trainer.ports import DriverSettings
from remote_trainer.transport.keys import own_key
from remote_trainer.transport.ssh import SshTransport

_SLOW_S = 300.0  # three minutes were seen from the attaching of a key until it works


class Access:
    """With the key of this installation."""

    def __init__(self, api: Callable[[], VastApi], settings: DriverSettings, user: str) -> None:
        self._api, self._settings, self._user = api, settings, user
        self._key_path: Path | None = settings.ssh_key

    async def transport(self, contact: Contact, instance: Instance) -> SshTransport:
        """Return the way to an instance that has an address, and see to it that it lets us in."""
        host, port = instance.address.get("host"), instance.address.get("port")
        if not host:
            raise HostUnreachable(f"instance {instance.id} of Vast.ai has no address yet")
        await self.ask(contact)
        place = f"{self._user}@{host}:{port}"
        known = contact.transports.get(place)
        if known is None or instance.host_key not in ("", known.host_key):
            known = contact.transports[place] = SshTransport(
                place,
                self._settings,
                host_key=instance.host_key,
                identity=await self._key(),
                on_refused=lambda: setattr(contact, "refused", True),
            )
        return known

    async def ask(self, contact: Contact) -> None:
        """Let an instance know our key, if it does not know it yet or no longer."""
        now = asyncio.get_running_loop().time()
        forgotten = contact.refused and contact.let_in_at is not None and now - contact.let_in_at >= _SLOW_S
        if contact.let_in_at is not None and not forgotten:
            return
        public = await self.public_key()
        try:
            news = await self._api().attach_key(contact.id, public)
            if forgotten and not news:  # the provider believes that it knows the key: only a new one is written there
                await self._api().detach_key(contact.id, public)
                await self._api().attach_key(contact.id, public)
        except Gone as error:  # whether it is, the listing says
            raise HostUnreachable(f"instance {contact.id} of Vast.ai cannot be found: {error}") from error
        contact.let_in_at, contact.refused = now, False

    async def public_key(self) -> str:
        """Return the public half of our key. ConfigError if it is not there."""
        path = await self._key()
        public = path.with_name(f"{path.name}.pub")
        try:
            return (await asyncio.to_thread(public.read_text)).strip()
        except OSError as error:
            raise ConfigError(f"the public half of the key {path} is not there: {error}; ssh-keygen -y makes it") from error

    async def _key(self) -> Path:
        """Return the private key that rented machines let in; made once where the user has named none."""
        if self._key_path is None:
            self._key_path = await asyncio.to_thread(own_key, self._settings.state_dir)
        return self._key_path
