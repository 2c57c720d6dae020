"""One opened installation: settings, store, object store, plugins. What a command opens first and closes last."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from remote_trainer import plugins
from remote_trainer.config import Settings, find_secret
from remote_trainer.objects.open import open_objects
from remote_trainer.policy import Policy
from remote_trainer.ports import Driver, Objects, Store
from remote_trainer.store.open import open_store
from remote_trainer.worker.clock import SystemClock
from remote_trainer.worker.shop import Shop
from remote_trainer.worker.writer import Writer


class App:
    """Use as ``async with App(settings) as app``. The store is migrated on entry, since that is cheap and safe to repeat."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.store: Store = open_store(settings.store_url)
        self.objects: Objects = open_objects(settings.objects_url, settings.s3)

    async def __aenter__(self) -> Self:
        try:
            await self.store.migrate()
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.store.close()

    def driver(self, name: str, options: Mapping[str, Any]) -> Driver:
        """Return a new driver; ConfigError if its options are wrong. The caller closes it."""
        return plugins.make_driver(name, options, self.settings.driver_settings)

    async def shop(self) -> Shop:
        """Return what a worker needs."""
        settings = self.settings
        return Shop(
            store=self.store,
            writer=Writer(self.store, self.clock),
            objects=self.objects,
            make_driver=self.driver,
            find_secret=lambda name: find_secret(name, settings.secrets_dir),
            clock=self.clock,
            policy=Policy(),
            deployment=settings.deployment or await self.store.deployment(),
            cache_dir=settings.cache_dir,
            spool_dir=settings.state_dir / "spool",
            collect_interval_s=settings.collect_interval_s,
            spending=settings.spending,
            alarm_command=settings.alarm_command,
        )
