"""What the tests of the driver rent, and how."""

from __future__ import annotations

from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.model import Instance, Offer, Resources
from remote_trainer.ports import Spec
from remote_trainer.testing.vast.server import SimVast

LABEL = "rt-dep-j1-a1"
WANTED = Resources(gpus=1, disk_gb=8)


async def rent(driver: VastDriver, *, spot: bool = False, label: str = LABEL) -> tuple[Offer, Instance]:
    offer, *_ = await driver.offers(WANTED, spot=spot)
    return offer, await driver.create(offer, Spec(image="i", disk_gb=WANTED.disk_gb), label)


def asked(sim: SimVast, method: str, part: str) -> int:
    return sum(1 for each, path in sim.requests if each == method and part in path)
