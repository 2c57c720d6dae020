"""A machine of the user's, lent over SSH: nothing is rented, nothing is destroyed.

Rules for editing: drivers see ports, model, errors and transports only. One transport per machine and pinned key, shared by its jobs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from remote_trainer.drivers.options import check_options
from remote_trainer.errors import ConfigError, Permanent, Transient, TransportError
from remote_trainer.model import Instance, Offer, Resources
from remote_trainer.ports import Abilities, DriverSettings, Spec, Transport
from remote_trainer.transport.hostkeys import HostKeys, read_key
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.transport.target import parse_target


class SshDriver:
    """Runs jobs on one machine that the user can log in to."""

    name = "ssh"
    abilities = Abilities(borrowed=True)
    option_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "host": {"type": "string", "minLength": 1, "description": "user@box[:port], or an alias of ~/.ssh/config"},
            "host_key": {
                "type": "string",
                "description": "its public key ('ssh-ed25519 AAAA…'); default: known_hosts, else first use",
            },
            "identity": {"type": "string", "minLength": 1, "description": "private key file; default: the agent and ~/.ssh"},
            "root": {"type": "string", "minLength": 1, "description": "folder on the host; default: ~/.remote-trainer"},
        },
        "required": ["host"],
        "additionalProperties": False,
    }

    def __init__(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        check_options(self.name, self.option_schema, options)
        self._host: str = options["host"]
        self._key: str = options.get("host_key", "")
        self._identity = Path(options["identity"]).expanduser() if "identity" in options else None
        self._root: str = options.get("root", "~/.remote-trainer")
        self._settings = settings
        self._transports: list[tuple[str, SshTransport]] = []
        parse_target(self._host)
        HostKeys(self._key)
        if self._identity and not self._identity.is_file():
            raise ConfigError(f"the key file {self._identity} is not there: check the option identity")

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        return [Offer(id=self._host, driver=self.name, description=self._host)]

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        address = {"host": self._host, "root": self._root}
        return Instance(id=self._host, label=label, borrowed=True, address=address, host_key=self._key)

    async def instances(self, prefix: str) -> Sequence[Instance]:
        return []

    async def destroy(self, instance: Instance) -> None:
        """Borrowed: it stays."""

    async def guard(self, instance: Instance, until: datetime) -> None:
        """Borrowed: it costs nothing."""

    async def connect(self, instance: Instance) -> Transport:
        return self._transport(str(instance.address.get("host", self._host)), instance.host_key or self._key)

    async def check(self) -> str:
        transport = self._transport(self._host, self._key)
        try:
            await transport.run(["true"])
        except TransportError as error:
            kind = Transient if error.transient else Permanent
            raise kind(str(error), driver=self.name, operation="check") from error
        return f"{transport.address} answers with the host key {read_key(transport.host_key).get_fingerprint()}"

    async def close(self) -> None:
        for _, transport in self._transports:
            await transport.close()

    def _transport(self, host: str, host_key: str) -> SshTransport:
        """Return the one to that machine; the key that a job has stored, or that the first use has shown, tells machines apart."""
        for known_host, transport in self._transports:
            if known_host == host and host_key in ("", transport.host_key):
                return transport
        made = SshTransport(host, self._settings, host_key=host_key, identity=self._identity)
        self._transports.append((host, made))
        return made
