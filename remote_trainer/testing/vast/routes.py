"""The dialect: which request goes where, who may send it and how often; offers and renting.

Rules for editing: a route is one line of a table; its handler gets the request and returns a Reply or raises Refused. The tables of other
modules are joined here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from remote_trainer.testing.vast import spot
from remote_trainer.testing.vast.account import Key, invalid_key, too_frequent
from remote_trainer.testing.vast.provider import Provider, offer_gone
from remote_trainer.testing.vast.reply import Refused, Reply, ok, refusal
from remote_trainer.testing.vast.volumes import Volume, wished

if TYPE_CHECKING:
    from remote_trainer.testing.vast.faults import Armed
    from remote_trainer.testing.vast.instances import Instance

_DAY_S = 86_400
_LABEL_MAX, _SCRIPT_MAX, _DISK_MIN_GB = 256, 4096, 8
_BIDS = 0.001, 128.0


@dataclass(slots=True, kw_only=True)
class Request:
    """One request as it came."""

    method: str
    path: str
    base: str  # where the service answers, for links
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    authorization: str | None = None
    parts: tuple[str, ...] = ()  # what the path's pattern has found
    key: Key | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """Return the body's fields; none where there is no object."""
        return self.body if isinstance(self.body, dict) else {}

    @property
    def number(self) -> int:
        """Return the number in the path."""
        return int(self.parts[0])


Handler = Callable[[Provider, Request], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One line of a table. `{}` in the path is a number."""

    method: str
    path: str
    handler: Handler
    group: str = ""  # the permission it needs; none: no key either
    kind: str = ""  # how often it may be sent
    audit: str = ""  # its name in the audit log, where it changes something
    own: bool = False  # an instance's own key may, on that instance
    name: str = ""  # by which a key's permissions name it
    bare: bool = False  # also without the slash at the end


class Routes:
    """All of them."""

    def __init__(self, *tables: Sequence[Route]) -> None:
        self._routes = [(re.compile(route.path.replace("{}", r"(\d+)") + "$"), route) for table in tables for route in table]

    def answer(self, sim: Provider, request: Request) -> Reply:
        """Answer a request."""
        sim.tick()
        with sim.lock:
            try:
                reply = self._answer(sim, request)
            except Refused as refused:
                reply = refused.reply
        sim.tick()
        return reply

    def _answer(self, sim: Provider, request: Request) -> Reply:
        route = self._find(request)
        if route.group:
            if sim.faults.strike("account-key-revoked"):
                raise invalid_key()
            request.key = sim.account.who(request.authorization)
            number = request.number if request.parts else None
            name = route.name or route.audit or f"{route.method} {route.path}"
            sim.account.may(request.key, route.group, name, number=number, self_service=route.own)
        key_id = 0 if request.key is None else request.key.id
        sim.account.limits.check(route.kind, key_id)
        reply = route.handler(sim, request)
        if route.audit and reply.status == 200:
            made = reply.body.get("new_contract") if isinstance(reply.body, dict) else None
            contract = made or (request.number if request.parts and not route.audit.startswith("api.ask") else None)
            sim.audited(route.audit, {**request.fields, "contract_id": contract}, key_id=key_id)
        return reply

    def _find(self, request: Request) -> Route:
        path = request.path
        for pattern, route in self._routes:
            found = pattern.match(path) or (pattern.match(f"{path}/") if route.bare else None)
            if found and route.method == request.method:
                request.parts = found.groups()
                return route
        if not path.endswith("/") and request.method != "GET":
            raise refusal(400, "invalid_request", "Request body must be valid JSON")
        raise refusal(404, "not_found", f"no route for {request.method} {path}")


# -- offers


def search(sim: Provider, request: Request) -> Reply:
    """Find offers; both forms of the search."""
    midnight = (int(sim.now) // _DAY_S + 1) * _DAY_S
    if sim.faults.strike("search-quota"):
        sim.account.searches_from = midnight
    if sim.now < sim.account.searches_from:
        body = {"success": False, "error": "search_quota_exceeded", "msg": "Daily search quota exceeded."}
        return Reply(status=429, body=body, headers={"X-RateLimit-Reset": str(midnight)})
    query = request.fields.get("q", request.fields)
    bids = {int(each.offer["id"]) for each in sim.live.values() if each.bid is not None}
    return Reply(body={"offers": sim.market.search(query, {number: spot.floor(sim, number) for number in bids})})


def gpu_names(sim: Provider, request: Request) -> Reply:
    """List the kinds of GPU."""
    return Reply(body={"gpu_names": sim.market.gpu_names})


# -- renting


def create(sim: Provider, request: Request) -> Reply:
    """Rent an offer, or what its fault makes of that."""
    offer_id, body = request.number, request.fields
    label = str(body.get("label") or "")
    fault = _create_fault(sim, label, offer_id)
    try:
        return _rent(sim, offer_id, body, fault)
    except Refused as refused:
        sim.refuse(offer_id, label, f"{refused.reply.status} {refused.reply.body}")
        raise


def create_many(sim: Provider, request: Request) -> Reply:
    """Rent several offers, each by itself: what was made, and what was refused why."""
    made, failed = [], []
    for number in request.fields.get("ids") or ():
        each = {name: value for name, value in request.fields.items() if name != "ids"}
        try:
            reply = create(sim, replace(request, parts=(str(number),), body=each))
        except Refused as refused:
            failed.append({"id": number, "msg": str(refused)})
        else:
            made.append({"id": number, **(reply.body if isinstance(reply.body, dict) else {})})
    return ok(results=made, failed=failed)


def launch(sim: Provider, request: Request) -> Reply:
    """Search and rent the first that is found."""
    found = sim.market.search(request.fields.get("q") or {})
    if not found:
        raise refusal(400, "no_such_ask", "No offers match the query.")
    return create(sim, replace(request, parts=(str(found[0]["id"]),)))


def _create_fault(sim: Provider, label: str, offer_id: int) -> Armed | None:
    """Return what befalls this request; a duplicate is a matter of the offer."""
    for armed in sim.faults.armed("create-"):
        if armed.name != "create-duplicate":
            fault = sim.faults.strike(armed.name, label=label, offer=offer_id)
            if fault is not None:
                return fault
    return None


def _rent(sim: Provider, offer_id: int, body: Mapping[str, Any], fault: Armed | None) -> Reply:
    name = fault.name if fault else ""
    if name in _REFUSALS:
        raise _REFUSALS[name](offer_id)
    _check_order(body)
    offer = sim.market.offers.get(offer_id, {})
    parks = _check_offer(sim, offer_id, body) or name == "create-parked"
    volume = _volume(sim, offer, body)
    made = sim.create(offer_id, body, parked=parks)
    if volume is not None:
        volume.users.add(made.id)
    if parks:
        return _parked(made)
    reply = ok(new_contract=made.id, instance_api_key=made.api_key)
    match name:
        case "create-dropped":
            return Reply(body=reply.body, dropped=True)
        case "create-late":
            assert fault is not None
            return Reply(body=reply.body, delay_s=fault.lasts(30.0))
        case "create-504":
            raise Refused(Reply(status=504, body="<html><body>504 Gateway Time-out</body></html>"))
        case _:
            return reply


def _volume(sim: Provider, offer: Mapping[str, Any], body: Mapping[str, Any]) -> Volume | None:
    """Return the volume that an instance is to have, made if that is wished; one of another machine is refused."""
    number, size = wished(body)
    if size:
        name = body["volume_info"].get("name")
        return sim.volumes.make(offer, size, str(name or ""), sim.now)
    if number is None:
        return None
    volume = sim.volumes.there.get(number)
    if volume is None or volume.offer["machine_id"] != offer["machine_id"]:
        raise refusal(400, "invalid_args", f"error 400/3467: volume {number} is not on this machine")
    return volume


def _check_order(body: Mapping[str, Any]) -> None:
    price = body.get("price")
    faults = (
        (not body.get("image") and not body.get("template_hash_id"), "invalid_args", "image is missing"),
        (len(str(body.get("image") or "")) > 1024, "invalid_args", "image is too long"),
        (len(str(body.get("label") or "")) > _LABEL_MAX, "invalid_args", "label is too long"),
        (len(str(body.get("onstart") or "")) > _SCRIPT_MAX, "invalid_args", "onstart is too long"),
        (not isinstance(body.get("env") or {}, dict), "invalid_args", "env is no object"),
        (float(body.get("disk") or 10) < _DISK_MIN_GB, "invalid_args", "disk is too small"),
        (price is not None and not _BIDS[0] <= float(price) <= _BIDS[1], "invalid_price", "price is out of bounds"),
    )
    for wrong, error, message in faults:
        if wrong:
            raise refusal(400, error, f"error 400/3467: {message}")


def _check_offer(sim: Provider, offer_id: int, body: Mapping[str, Any]) -> bool:
    """Refuse what cannot be rented; returns whether a bid is too low and the instance is made all the same, without its GPU."""
    offer = sim.market.offers.get(offer_id)
    if offer is None:
        raise offer_gone(404, offer_id)
    if offer["rented"] or float(body.get("disk") or 10) > float(offer["disk_space"]):
        raise offer_gone(410, offer_id)
    if sim.account.credit <= 0:
        raise no_credit(offer_id)
    price = body.get("price")
    low = price is not None and float(price) < spot.floor(sim, offer_id)
    if low and body.get("cancel_unavail", False):
        raise offer_gone(410, offer_id)
    return low


def _parked(made: Instance) -> Reply:
    """Return the reply for an instance that is there, stopped, and paid for its disk."""
    message = "Required resources are currently unavailable."
    return Reply(body={"success": False, "error": "resources_unavailable", "msg": message, "new_contract": made.id})


def no_credit(_: int = 0) -> Refused:
    """Return how an account without money is refused."""
    return refusal(400, "insufficient_credit", "Your account lacks credit; see the billing page.")


_REFUSALS: Mapping[str, Callable[[int], BaseException]] = {
    "create-no-ask-400": lambda offer_id: offer_gone(400, offer_id),
    "create-no-ask-404": lambda offer_id: offer_gone(404, offer_id),
    "create-no-ask-410": lambda offer_id: offer_gone(410, offer_id),
    "create-conflict": lambda _: refusal(409, "conflict", "The request conflicts with another one."),
    "create-500": lambda _: refusal(500, "server_error", "Something went wrong on the server"),
    "create-429-text": lambda _: too_frequent(0, 4.5),
    "create-429-json": lambda _: too_frequent(3, 4.5),
    "create-no-credit": no_credit,
}


TABLE = (
    Route(method="GET", path="/api/v0/gpu_names/unique/", handler=gpu_names),
    Route(method="POST", path="/api/v0/bundles/", handler=search, kind="search"),
    Route(method="PUT", path="/api/v0/search/asks/", handler=search, kind="search"),
    Route(method="PUT", path="/api/v0/asks/{}/", handler=create, group="instance_write", kind="create", audit="api.ask_PUT"),
    Route(method="POST", path="/api/v0/asks/bulk/", handler=create_many, group="instance_write", kind="create"),
    Route(
        method="PUT",
        path="/api/v0/launch_instance/",
        handler=launch,
        group="instance_write",
        kind="launch",
        audit="api.launch_PUT",
    ),
)
