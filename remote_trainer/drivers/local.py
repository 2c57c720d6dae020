"""This machine as a borrowed host: nothing is rented, nothing is destroyed.

Rules for editing: drivers see ports, model, errors and transports only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from remote_trainer.drivers.options import check_options
from remote_trainer.errors import Permanent
from remote_trainer.model import Instance, Offer, Resources
from remote_trainer.ports import Abilities, DriverSettings, Spec, Transport
from remote_trainer.transport.command import CommandTransport


class LocalDriver:
    """Runs jobs on this machine, in a folder below the product's own."""

    name = "local"
    abilities = Abilities(borrowed=True)
    option_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "properties": {
            "root": {
                "type": "string",
                "minLength": 1,
                "description": "folder for the jobs' files; default: <state folder>/local",
            },
        },
        "additionalProperties": False,
    }

    def __init__(self, options: Mapping[str, Any], settings: DriverSettings) -> None:
        check_options(self.name, self.option_schema, options)
        self._root = Path(options.get("root", settings.state_dir / "local")).expanduser().absolute()
        self._transport = CommandTransport()

    async def offers(self, wanted: Resources, *, spot: bool = False) -> Sequence[Offer]:
        return [Offer(id="local", driver=self.name, description="this machine")]

    async def create(self, offer: Offer, spec: Spec, label: str) -> Instance:
        return Instance(id="local", label=label, borrowed=True, address={"root": str(self._root)})

    async def instances(self, prefix: str) -> Sequence[Instance]:
        return []

    async def destroy(self, instance: Instance) -> None:
        """Borrowed: it stays."""

    async def guard(self, instance: Instance, until: datetime) -> None:
        """Borrowed: it costs nothing."""

    async def connect(self, instance: Instance) -> Transport:
        return self._transport

    async def check(self) -> str:
        existing = next(folder for folder in (self._root, *self._root.parents) if folder.exists())
        if not os.access(existing, os.W_OK | os.X_OK):
            raise Permanent(f"the folder {self._root} cannot be written: change its owner, or the option root", driver=self.name)
        return f"this machine, files in {self._root}"

    async def close(self) -> None:
        await self._transport.close()
