"""How tests and people steer the simulation from outside: faults, money, offers, time, and the record. Below ``/admin/``, without a key.

Rules for editing: whatever can be done here can be done on the objects too; the real service has none of this.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol, runtime_checkable

from remote_trainer.testing.vast import spot
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply, no_such_instance, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route


@runtime_checkable
class _Moves(Protocol):
    def advance(self, seconds: float) -> None: ...


def show_faults(sim: Provider, request: Request) -> Reply:
    """List the menu, what is armed and what has struck."""
    return Reply(body=sim.faults.documents())


def arm(sim: Provider, request: Request) -> Reply:
    """Arm a fault: name, and as many of times, for_s, label, offer, seconds, after_s, shape as are wanted."""
    fields = dict(request.fields)
    try:
        sim.faults.arm(str(fields.pop("name", "")), **fields)
    except (ValueError, TypeError) as error:
        raise refusal(400, "invalid_args", str(error)) from error
    return ok()


def disarm(sim: Provider, request: Request) -> Reply:
    """Take back every armed fault."""
    sim.faults.disarm()
    return ok()


def record(sim: Provider, request: Request) -> Reply:
    """Show what happened, what is wrong with it, and what it has cost."""
    cost = {"cost": float(sim.cost()), "credit": float(sim.account.credit)}
    return Reply(body={"entries": sim.record.documents(), "alive": sim.record.alive(), "doubles": sim.record.doubles(), **cost})


def credit(sim: Provider, request: Request) -> Reply:
    """Set the credit, US dollars."""
    sim.account.pay(Decimal(str(request.fields["credit"])) - sim.account.credit, sim.now, "by hand")
    return ok()


def traffic(sim: Provider, request: Request) -> Reply:
    """Let an instance have received `down_gb` and sent `up_gb`: the simulation itself does not count bytes."""
    instance = sim.find(request.number)
    if instance is None:
        raise no_such_instance(request.number)
    sim.carry(instance, down_gb=float(request.fields.get("down_gb") or 0), up_gb=float(request.fields.get("up_gb") or 0))
    return ok()


def charges(sim: Provider, request: Request) -> Reply:
    """Let the list of charges be `lag_s` seconds behind."""
    sim.charges_lag_s = float(request.fields.get("lag_s") or 0)
    return ok()


def change_offer(sim: Provider, request: Request) -> Reply:
    """Change fields of an offer: min_bid evicts bids below it."""
    if request.number not in sim.market.offers:
        raise refusal(404, "not_found", f"no offer {request.number}")
    sim.market.offers[request.number].update(request.fields)
    spot.settle(sim, request.number)
    return ok()


def demand(sim: Provider, request: Request) -> Reply:
    """Let somebody else rent an offer on demand: bids are evicted. For `for_s` seconds, or for ever."""
    if request.number not in sim.market.offers:
        raise refusal(404, "not_found", f"no offer {request.number}")
    seconds = request.fields.get("for_s")
    sim.wanted_elsewhere(request.number, None if seconds is None else float(seconds))
    return ok()


def moves(sim: Provider, request: Request) -> Reply:
    """Let the least bids move: `every_s`, `swing` (0.3), `seed` (1); without `every_s` they stand still again."""
    fields = dict(request.fields)
    if fields.get("every_s"):
        sim.spot.let_move(
            sim, every_s=float(fields["every_s"]), swing=float(fields.get("swing", 0.3)), seed=int(fields.get("seed", 1))
        )
    else:
        sim.spot.moves = None
    return ok()


def advance(sim: Provider, request: Request) -> Reply:
    """Jump ahead in time."""
    if isinstance(sim.clock, _Moves):
        sim.clock.advance(float(request.fields["seconds"]))
    return ok(now=sim.clock.now())


def limits(sim: Provider, request: Request) -> Reply:
    """Keep the published limits of requests, or not."""
    sim.account.limits.on = bool(request.fields.get("on", True))
    return ok()


TABLE = (
    Route(method="GET", path="/admin/faults/", handler=show_faults),
    Route(method="POST", path="/admin/faults/", handler=arm),
    Route(method="DELETE", path="/admin/faults/", handler=disarm),
    Route(method="GET", path="/admin/record/", handler=record),
    Route(method="POST", path="/admin/credit/", handler=credit),
    Route(method="POST", path="/admin/charges/", handler=charges),
    Route(method="POST", path="/admin/instances/{}/traffic/", handler=traffic),
    Route(method="POST", path="/admin/offers/{}/", handler=change_offer),
    Route(method="POST", path="/admin/offers/{}/demand/", handler=demand),
    Route(method="POST", path="/admin/market/", handler=moves),
    Route(method="POST", path="/admin/clock/", handler=advance),
    Route(method="POST", path="/admin/limits/", handler=limits),
)
