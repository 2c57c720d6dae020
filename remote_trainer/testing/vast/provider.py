"""The whole service behind the API: rents, moves time, bills, breaks and gives back.

Rules for editing: time moves only in `tick`, from one thing that is due to the next, so that a clock that jumps bills what it jumped over.
One lock around everything; what takes real time is done by `Hands`. What a request looks like is in ``routes``.
"""

from __future__ import annotations

import math
import secrets
import threading
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from remote_trainer.testing.vast import life, spot
from remote_trainer.testing.vast.account import Account
from remote_trainer.testing.vast.clock import RunningClock, SimClock
from remote_trainer.testing.vast.doors import Door
from remote_trainer.testing.vast.faults import Armed, Faults
from remote_trainer.testing.vast.instances import QUICK, Instance, Step, Timings
from remote_trainer.testing.vast.machines import Address, Hands, Machines, NoMachines, Order
from remote_trainer.testing.vast.market import Market
from remote_trainer.testing.vast.record import Entry, Record
from remote_trainer.testing.vast.reply import refusal
from remote_trainer.testing.vast.schedule import Job, Schedule
from remote_trainer.testing.vast.volumes import Volumes

_FIRST_ID = 770_001
_DUE_MAX = 100_000  # things due in one tick; more is a bug


class Provider:
    """One simulated Vast.ai with one account."""

    def __init__(
        self,
        offers: Sequence[Mapping[str, Any]],
        *,
        machines: Machines | None = None,
        clock: SimClock | None = None,
        timings: Timings = QUICK,
        credit: Decimal = Decimal(25),
    ) -> None:
        self.clock: SimClock = clock or RunningClock()
        self.market = Market(offers)
        self.account = Account(credit)
        self.faults = Faults(lambda: self.now)
        self.schedule = Schedule()
        self.spot = spot.Spot()
        self.volumes = Volumes()
        self.secrets: dict[str, str] = {}  # of the account: in the environment of every instance
        self.lists_nothing_until = 0.0
        self.charges_lag_s = 0.0  # so long the list of charges is behind
        self.record = Record()
        self.audit: list[dict[str, Any]] = []
        self.live: dict[int, Instance] = {}
        self.past: list[Instance] = []  # their rows are gone
        self.promised: dict[str, tuple[int, str]] = {}  # results that are fetched by a link: refusals before it is there, text
        self.timings = timings
        self.hands = Hands(machines or NoMachines())
        self.lock = threading.RLock()
        self._next_id = _FIRST_ID
        self._billed_to = self.clock.now()
        self._tails: list[Instance] = []  # gone, and still billed

    @property
    def now(self) -> float:
        """Return the time up to which everything that was due is done: whatever happens, happens then."""
        return self._billed_to

    # -- renting and giving back

    def create(self, offer_id: int, body: Mapping[str, Any], *, parked: bool = False) -> Instance:
        """Rent an offer that is there; `parked`: only its disk."""
        offer, now, label = self.market.offers[offer_id], self.now, str(body.get("label") or "")
        made = Instance(
            id=self._next_id,
            offer=dict(offer),
            label=label,
            disk_gb=float(body.get("disk") or 10),
            body=dict(body),
            bid=None if body.get("price") is None else float(body["price"]),
            api_key=secrets.token_hex(32),
            created_at=now,
            listed_at=now + self._lag("list-lag", label, offer_id),
            found_by_label_at=now + self._lag("list-label-lag", label, offer_id),
        )
        self._next_id += 1
        self.account.new_key(instance=made.id).value = made.api_key
        made.keys = {number: str(row["public_key"]) for number, row in self.account.ssh_keys.items()}
        self.live[made.id] = made
        self.note("created", made, f"${made.gpu_price}/h")
        if parked:
            made.actual = made.intended = made.current = made.coming = "stopped"
            made.queued = made.bid is not None
        else:
            life.begin(self, made)
        if not self.faults.strike("create-duplicate", label=label, offer=offer_id):
            spot.settle(self, offer_id)
        return made

    def _lag(self, name: str, label: str, offer_id: int) -> float:
        fault = self.faults.strike(name, label=label, offer=offer_id)
        return fault.lasts(3.0) if fault else 0.0

    def destroy(self, instance: Instance, *, lingers_s: float = 0.0) -> None:
        """Begin an instance's end; again is fine."""
        if instance.ended_at is not None:
            return
        now = self.now
        instance.ended_at, instance.ran_at_end = now, instance.gpu_on
        instance.plan = []
        instance.removal = self.hands.do(instance.id, "remove", instance.id)
        instance.schedule(now + self.timings.destroy_s + lingers_s, Step.GONE)
        self.note("ended", instance)

    def find(self, instance_id: int) -> Instance | None:
        """Return an instance whose row is there."""
        return self.live.get(instance_id)

    def order(self, instance: Instance) -> Order:
        """Return what to boot for an instance."""
        offer, env = instance.offer, dict(instance.body.get("env") or {})
        gpus = [
            f"{number}, {offer.get('gpu_name')}, {offer.get('gpu_ram')}, {offer.get('driver_version')}"
            for number in range(int(offer.get("num_gpus") or 0))
        ]
        own = {"CONTAINER_ID": str(instance.id), "CONTAINER_API_KEY": instance.api_key, "GPU_COUNT": str(len(gpus))}
        named = {name: str(value) for name, value in env.items() if not name.startswith("-")}
        return Order(
            instance=instance.id,
            keys=tuple(instance.keys.values()),
            env={**self.secrets, **named, **own, "VAST_CONTAINERLABEL": f"C.{instance.id}"},
            onstart=str(instance.body.get("onstart") or ""),
            files={".vast_api_key": instance.api_key, ".vast_containerlabel": f"C.{instance.id}"},
            gpus=gpus,
        )

    def door(self, how: str, address: Address) -> Door:
        """Return a way in that does not open."""
        return Door(how, address)

    def note(self, what: str, instance: Instance, detail: str = "") -> None:
        """Keep what happened."""
        offer = int(instance.offer["id"])
        now = self.now
        self.record.add(Entry(at=now, what=what, instance=instance.id, label=instance.label, offer=offer, detail=detail))

    def refuse(self, offer_id: int, label: str, detail: str) -> None:
        """Keep that a request to rent was refused."""
        self.record.add(Entry(at=self.now, what="refused", label=label, offer=offer_id, detail=detail))

    def wanted_elsewhere(self, offer_id: int, seconds: float | None) -> None:
        """Somebody else rents an offer on demand for so long; None: for ever."""
        self.spot.demand[offer_id] = math.inf if seconds is None else self.now + seconds
        spot.settle(self, offer_id)

    # -- money

    def cost(self, label: str = "") -> Decimal:
        """Return what all instances and volumes whose label begins so have cost."""
        instances = (each.meter.total for each in (*self.live.values(), *self.past) if each.label.startswith(label))
        volumes = (each.meter.total for each in self.volumes.every() if each.label.startswith(label))
        return sum((*instances, *volumes), Decimal(0))

    def carry(self, instance: Instance, *, down_gb: float = 0.0, up_gb: float = 0.0) -> None:
        """Bytes came to an instance, or went from it."""
        self.account.credit -= instance.carry(self.now, down_gb=down_gb, up_gb=up_gb)

    def _bill(self, until: float) -> None:
        since, self._billed_to = self._billed_to, max(self._billed_to, until)
        for instance in (*self.live.values(), *self._tails):
            self.account.credit -= instance.bill(since, until)
        self.account.credit -= self.volumes.bill(since, until)
        self._tails = [each for each in self._tails if (each.billed_until or 0.0) > until]
        if self.account.credit <= 0:
            self._stop_everything()

    def _stop_everything(self) -> None:
        for instance in self.live.values():
            if instance.intended != "stopped" and instance.ended_at is None:
                life.stop(self, instance, "the credit is used up")
                spot.settle(self, int(instance.offer["id"]))

    # -- time

    def tick(self) -> None:
        """Do everything that is due by now, in order."""
        with self.lock:
            now = self.clock.now()
            for _ in range(_DUE_MAX):
                due = self._next_due()
                if due is None or due > now:
                    break
                self._bill(max(due, self._billed_to))
                self._do(max(due, self._billed_to))
            else:
                raise RuntimeError("the simulated service does not come to rest")
            if self.faults.strike("account-no-credit"):
                self.account.credit = Decimal(0)
            self._bill(now)

    def _next_due(self) -> float | None:
        steps = [due for each in self.live.values() if (due := each.due()) is not None]
        strikes = [due for each in self.live.values() for _, due in self._strikes(each)]
        others = [due for due in (self.schedule.next_due(), self.spot.next_due()) if due is not None]
        return min((*steps, *strikes, *others), default=None)

    def _strikes(self, instance: Instance) -> list[tuple[Armed, float]]:
        """Return which armed faults will strike an instance that runs, and when."""
        since = instance.running_since
        if since is None or instance.actual != "running" or instance.ended_at is not None:
            return []
        offer = int(instance.offer["id"])
        return [
            (each, since + each.after_s)
            for each in self.faults.armed("run-")
            if each.name not in instance.suffered and instance.label.startswith(each.label) and each.offer in (None, offer)
        ]

    def _do(self, now: float) -> None:
        for instance in list(self.live.values()):
            while (due := instance.due()) is not None and due <= now:
                life.take(self, instance, instance.plan.pop(0)[1], now)
            for fault, at in self._strikes(instance):
                if at <= now and self.faults.use(fault):
                    life.strike(self, instance, fault, now)
        self.spot.do(self, now)
        for job in self.schedule.fire(now):
            self._fire(job)

    def _fire(self, job: Job) -> None:
        """Make a scheduled request: only the end of an instance is ever scheduled."""
        number = job.endpoint.strip("/").rpartition("/")[2]
        instance = self.find(int(number)) if job.method == "DELETE" and number.isdecimal() else None
        if instance is not None:
            self.audited("api.instance_DELETE", {"contract_id": instance.id}, key_id=0)
            self.destroy(instance)

    def vanish(self, instance: Instance, now: float) -> None:
        """Take away the row of an instance whose end has come."""
        if instance.removal is not None:
            instance.removal.result()  # its processes did end
        del self.live[instance.id]
        instance.gone_at, instance.running_since = now, None
        self.past.append(instance)
        self._tails.append(instance)
        self.hands.forget(instance.id)
        spot.settle(self, int(instance.offer["id"]))
        self.volumes.leave(instance.id, now)
        if instance.door is not None:
            instance.door.close()
        self.note("gone", instance, f"${instance.meter.total:.6f}")

    def audited(self, route: str, arguments: Mapping[str, Any], *, key_id: int) -> None:
        """Keep a request that changed something, as the audit log shows it."""
        row = {"api_route": route, "args": dict(arguments), "api_key_id": key_id, "ip_address": "127.0.0.1"}
        self.audit.append({"created_at": self.now, **row})

    def close(self) -> None:
        """End every machine. The record stays as it is: this is the end of the world, not of a contract."""
        for instance in self.live.values():
            self.hands.do(instance.id, "remove", instance.id)
            if instance.door is not None:
                instance.door.close()
        self.hands.close()
        if self.hands.failures:
            raise self.hands.failures[0]


def offer_gone(status: int, offer_id: int) -> Exception:
    """Return the refusal for an offer that is not there (any more)."""
    message = f"error 404/3603: no_such_ask Instance type by id {offer_id} is not available."
    return refusal(status, "no_such_ask" if status == 410 else "invalid_args", message)
