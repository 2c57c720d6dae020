"""A simulated Vast.ai without HTTP and without machines, whose time stands still until it is moved.

Rules for editing: what a test asks goes through the same routes as a request over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.clock import StandingClock
from remote_trainer.testing.vast.instances import Instance, Timings
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply
from remote_trainer.testing.vast.routes import Request
from remote_trainer.testing.vast.server import ROUTES

START = 1_800_000_000.0  # on the hour
TIMINGS = Timings(scheduled_s=5, created_s=5, loading_s=50, reboot_s=20, destroy_s=7)


class Standing(Provider):
    """The service; `offers` are numbers, or rows."""

    def __init__(self, *offers: int | Mapping[str, Any], credit: Decimal = Decimal(25)) -> None:
        rows = [demo.offer(each) if isinstance(each, int) else each for each in offers or (111, 112)]
        self.time = StandingClock(START)
        super().__init__(rows, clock=self.time, timings=TIMINGS, credit=credit)

    def ask(self, method: str, path: str, body: object = None, *, key: str | None = None, **query: str) -> Reply:
        """Send a request with the account's key, or with another one."""
        bearer = f"Bearer {self.account.key.value if key is None else key}"
        request = Request(method=method, path=path, base="http://sim", query=query, body=body, authorization=bearer)
        return ROUTES.answer(self, request)

    def rent(self, offer: int = 111, label: str = "rt-x", **more: object) -> Reply:
        """Ask for an offer as our driver does."""
        body = {"image": "i", "disk": 20.0, "label": label, "env": {}, "cancel_unavail": True, **more}
        return self.ask("PUT", f"/api/v0/asks/{offer}/", body)

    def made(self, offer: int = 111, label: str = "rt-x", **more: object) -> Instance:
        """Rent, and return what was made."""
        return self.live[self.rent(offer, label, **more).body["new_contract"]]

    def running(self, offer: int = 111, label: str = "rt-x", **more: object) -> Instance:
        """Rent, and wait until it runs."""
        made = self.made(offer, label, **more)
        self.go(60)
        assert made.actual == "running"
        return made

    def go(self, seconds: float) -> None:
        """Let time pass."""
        self.time.advance(seconds)
        self.tick()

    def listed(self, **query: str) -> list[Any]:
        """Return the rows of the first page."""
        rows = self.ask("GET", "/api/v1/instances/", **query).body["instances"]
        assert isinstance(rows, list)
        return rows

    def shown(self, instance: Instance) -> Any:
        """Return the row of one."""
        return self.ask("GET", f"/api/v0/instances/{instance.id}/").body["instances"]

    def destroy_by_request(self, instance: Instance) -> Reply:
        """Ask for an instance's end."""
        return self.ask("DELETE", f"/api/v0/instances/{instance.id}/", {})
