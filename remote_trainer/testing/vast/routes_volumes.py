"""The dialect of volumes: finding room for one, making, listing and deleting it.

Rules for editing: as in ``routes``.
"""

from __future__ import annotations

from remote_trainer.testing.vast.market import Market
from remote_trainer.testing.vast.provider import Provider, offer_gone
from remote_trainer.testing.vast.reply import Reply, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route
from remote_trainer.testing.vast.volumes import OFFER_IDS, offered


def search(sim: Provider, request: Request) -> Reply:
    """Find machines with room."""
    room = Market([offered(row) for row in sim.market.offers.values()])
    return Reply(body={"offers": room.search(request.fields)})


def make(sim: Provider, request: Request) -> Reply:
    """Make a volume of whole GB on one machine."""
    offer = sim.market.offers.get(int(request.fields.get("id") or 0) - OFFER_IDS)
    size = int(request.fields.get("size") or 15)
    if offer is None:
        raise offer_gone(404, int(request.fields.get("id") or 0))
    if not 1 <= size <= float(offer["disk_space"]):
        raise refusal(400, "invalid_args", f"error 400/3467: size {size}")
    made = sim.volumes.make(offer, size, str(request.fields.get("name") or ""), sim.now)
    return ok(volume_name=made.name, msg="Volume created.")


def listing(sim: Provider, request: Request) -> Reply:
    """List the account's volumes."""
    return ok(volumes=[each.row(sim.now) for each in sim.volumes.there.values()])


def delete(sim: Provider, request: Request) -> Reply:
    """Delete one that no instance uses, nor did half a minute ago."""
    number = int(request.query.get("id") or request.fields.get("id") or 0)
    volume = sim.volumes.there.get(number)
    if volume is None:
        raise refusal(404, "not_found", f"Volume {number} not found.")
    if volume.users or sim.now < volume.free_at:
        raise refusal(400, "volume_in_use", f"Volume {number} is in use by an instance.")
    sim.volumes.delete(number)
    return ok(msg="Volume deleted.")


_ALL = "/api/v0/volumes/"
TABLE = (
    Route(method="POST", path=_ALL + "search/", handler=search, kind="volumes"),
    Route(method="PUT", path=_ALL, handler=make, group="instance_write", kind="volumes"),
    Route(method="GET", path=_ALL, handler=listing, group="instance_read", bare=True),
    Route(method="DELETE", path=_ALL, handler=delete, group="instance_write", kind="volumes"),
)
