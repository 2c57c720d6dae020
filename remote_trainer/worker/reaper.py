"""Returns rented machines that no live attempt claims: what a lost reply, a dead worker or a provider's mistake has left behind.

It asks for the end of what nobody claims until the listing agrees. Several workers may do so at once.

Rules for editing: whose a machine is, is decided in ``holdings``; here it is only watched for how long, and its end asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from remote_trainer import log
from remote_trainer.errors import DocumentTooNew, StoreUnavailable
from remote_trainer.model import Instance
from remote_trainer.ports import Driver
from remote_trainer.worker.alarm import Cause
from remote_trainer.worker.holdings import Holding, learn_drivers, look, renting
from remote_trainer.worker.shop import Shop

_log = log.get()

_LEARN_EVERY = 10  # drivers are learnt from jobs at the start and every so many sweeps


class Reaper:
    """Sweeps all drivers that jobs of this store use."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._unclaimed: dict[int, dict[str, float]] = {}  # by driver: instance → since when, by the loop's clock
        self._sweeps = 0

    async def run(self) -> None:
        """Sweep now and then until cancelled."""
        while True:
            await self.sweep()
            await self._shop.clock.sleep(self._shop.policy.reap_every_s)

    async def sweep(self) -> Sequence[Instance]:
        """Look once at every driver; return the machines whose end was asked for."""
        if self._sweeps % _LEARN_EVERY == 0:
            await self._learn()
        self._sweeps += 1
        reaped: list[Instance] = []
        for driver in renting(self._shop.drivers()):
            try:
                due = self._due(driver, await look(self._shop, driver))
            except Exception as error:  # noqa: BLE001 - a driver without its key, or with a bug, ends neither worker nor other sweeps
                _log.warning(
                    "training.reaper", action="sweep_failed", driver=driver.name, error=str(error), kind=type(error).__name__
                )
                continue
            reaped += [holding.instance for holding in due if await self._gave_back(holding)]
        return reaped

    async def _gave_back(self, holding: Holding) -> bool:
        """Ask for one machine's end; the others are asked for all the same, and this one with the next sweep."""
        self._shop.alarm.ring(_nobodys(holding))
        try:
            await give_back(holding)
        except Exception as error:  # noqa: BLE001 - as above
            _log.warning("training.reaper", action="give_back_failed", instance=holding.instance.id, error=str(error))
            return False
        return True

    async def _learn(self) -> None:
        try:
            faults = await learn_drivers(self._shop)
        except (StoreUnavailable, DocumentTooNew) as error:
            _log.warning("training.reaper", action="jobs_unknown", error=str(error))
            return
        for driver, fault in faults.items():
            _log.debug("training.reaper", action="no_driver", driver=driver, error=fault)

    def _due(self, driver: Driver, found: Sequence[Holding]) -> list[Holding]:
        """Return what this process has seen to be nobody's for long enough: clocks elsewhere may be wrong."""
        known, now = self._unclaimed.get(id(driver), {}), asyncio.get_running_loop().time()
        since = {each.instance.id: known.get(each.instance.id, now) for each in found if not each.claimed}
        self._unclaimed[id(driver)] = since
        return [each for each in found if not each.claimed and now - since[each.instance.id] >= each.grace_s]


def _nobodys(holding: Holding) -> Cause:
    instance = holding.instance
    return Cause(
        kind="unclaimed",
        subject=instance.label,
        message=(
            f"instance {instance.id} ({instance.label}) is rented and nobody's: {holding.why}. Its end is asked for until it is gone; "
            "if it stays, destroy it at the provider"
        ),
        data=(("job", holding.job_id), ("instance", instance.id), ("driver", holding.driver.name)),
    )


async def give_back(holding: Holding) -> None:
    """Ask for the end of a machine that was judged to be nobody's."""
    instance, driver = holding.instance, holding.driver
    _log.warning(
        "training.reaper", action="reaped", driver=driver.name, instance=instance.id, label=instance.label, why=holding.why
    )
    await driver.destroy(instance)
