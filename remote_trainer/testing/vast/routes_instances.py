"""The dialect of instances: listing, looking at one, changing, keys, logs, the end.

Rules for editing: as in ``routes``. Logs and commands are answered with a link that works a little later.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any

from remote_trainer.testing.vast import life, spot
from remote_trainer.testing.vast.account import invalid_key, too_frequent
from remote_trainer.testing.vast.instances import Instance
from remote_trainer.testing.vast.market import meets
from remote_trainer.testing.vast.provider import Provider
from remote_trainer.testing.vast.reply import Reply, no_such_instance, ok, refusal
from remote_trainer.testing.vast.routes import Request, Route

PAGE_MAX, _PAGE_LEAST, _LABEL_MAX = 25, 5, 1024
_STORED = {
    "id", "label", "actual_status", "intended_status", "cur_state", "next_state", "gpu_name", "verification", "machine_id", "host_id",
    "image_uuid", "start_date", "geolocation", "is_bid",
}  # fmt: skip
_NOT_YET = 2  # times that a link answers 403 first
_COMMANDS = ("ls", "rm", "du")


def instance_of(sim: Provider, number: int) -> Instance:
    """Return an instance, or refuse."""
    found = sim.find(number)
    if found is None:
        raise no_such_instance(number)
    return found


# -- looking


def deprecated(sim: Provider, request: Request) -> Reply:
    """Refuse the old list."""
    raise refusal(410, "deprecated_endpoint", "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead.")


def listing(sim: Provider, request: Request) -> Reply:
    """List instances, a page at a time."""
    if sim.faults.strike("list-410"):
        return deprecated(sim, request)
    if sim.faults.strike("list-502"):
        return Reply(status=502, body="<html><body>502 Bad Gateway</body></html>")
    if sim.faults.strike("list-unsuccessful"):
        return Reply(body={"success": False, "error": "server_error", "msg": "Something went wrong."})
    if (fault := sim.faults.strike("list-empty")) is not None:
        sim.lists_nothing_until = sim.now + fault.lasts(3.0)
    now, filters = sim.now, _json(request.query.get("select_filters"), {})
    for name in filters:
        if name not in _STORED:
            raise refusal(400, "invalid_request", f"{name} is not a valid search key")
    there = [
        each
        for each in sim.live.values()
        if max(each.listed_at, sim.lists_nothing_until) <= now and ("label" not in filters or each.found_by_label_at <= now)
    ]
    rows = [row for row in (_row(sim, each) for each in there) if meets(row, filters)]
    for order in reversed(_json(request.query.get("order_by"), [{"col": "id", "dir": "asc"}])):
        column = str(order["col"])
        rows.sort(key=lambda row: _key(row.get(column)), reverse=order.get("dir") == "desc")
    start, limit = _start(rows, request.query.get("after_token")), int(request.query.get("limit") or PAGE_MAX)
    page = rows[start : start + (_PAGE_LEAST if limit <= 0 else min(limit, PAGE_MAX))]
    more = start + len(page) < len(rows)
    if sim.faults.strike("list-page-missing"):
        page = []
    token = _token(rows[start + max(1, len(page)) - 1]["id"]) if more else None
    return ok(
        instances_found=len(page), total_instances=len(rows), label_counts=_label_counts(rows), next_token=token, instances=page
    )


def _row(sim: Provider, instance: Instance, *, by_id: bool = False) -> dict[str, Any]:
    return instance.row(sim.now, by_id=by_id, floor=float(sim.market.offers[int(instance.offer["id"])]["min_bid"]))


def _label_counts(rows: list[dict[str, Any]]) -> dict[str, int]:
    labels = [row["label"] or "" for row in rows]
    return {label: labels.count(label) for label in dict.fromkeys(labels)}


def _token(instance_id: int) -> str:
    return base64.b64encode(json.dumps({"values": {"id": instance_id}}).encode()).decode()


def _start(rows: list[dict[str, Any]], token: str | None) -> int:
    """Return where the page after a token begins."""
    if not token:
        return 0
    try:
        last = int(json.loads(base64.b64decode(token))["values"]["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise refusal(400, "invalid_token", "The pagination token is invalid.") from error
    places = [place for place, row in enumerate(rows) if row["id"] == last]
    return places[0] + 1 if places else next((place for place, row in enumerate(rows) if row["id"] > last), len(rows))


def filters(sim: Provider, request: Request) -> Reply:
    """List what the listing can be filtered by."""
    names = ("actual_status", "verification", "gpu_name")
    rows = [_row(sim, each) for each in sim.live.values()]
    return Reply(body={"filters": [{name: row[name] for name in names} for row in rows]})


def show(sim: Provider, request: Request) -> Reply:
    """Show one instance; one that is not there is null."""
    found = sim.find(request.number)
    return Reply(body={"instances": None if found is None else _row(sim, found, by_id=True)})


# -- changing


def update(sim: Provider, request: Request) -> Reply:
    """Start, stop or label an instance."""
    return _update(sim, instance_of(sim, request.number), request.fields)


def update_many(sim: Provider, request: Request) -> Reply:
    """Start or stop several."""
    for number in request.fields.get("ids") or ():
        _update(sim, instance_of(sim, int(number)), request.fields)
    return ok()


def _update(sim: Provider, instance: Instance, fields: Mapping[str, Any]) -> Reply:
    if "label" in fields:
        if len(str(fields["label"])) > _LABEL_MAX:
            raise refusal(400, "label_too_long", "The label is too long.")
        instance.label = str(fields["label"] or "")
    match fields.get("state"):
        case "stopped" if instance.intended != "stopped" or instance.queued:
            instance.queued = False
            life.stop(sim, instance, "asked for")
            spot.settle(sim, int(instance.offer["id"]))
        case "running" if instance.intended != "running":
            return _start_again(sim, instance)
    return ok()


def _start_again(sim: Provider, instance: Instance) -> Reply:
    if sim.account.credit <= 0:
        raise refusal(400, "missing_billing", "Your account lacks credit.")
    offer_id = int(instance.offer["id"])
    instance.queued = True
    spot.settle(sim, offer_id)
    if instance.queued:
        message = "Required resources are currently unavailable, state change queued."
        return Reply(body={"success": False, "error": "resources_unavailable", "msg": message})
    return ok()


def change_bid(sim: Provider, request: Request) -> Reply:
    """Bid anew; without a price, as much as wins."""
    instance = instance_of(sim, request.number)
    price, offer_id = request.fields.get("price"), int(instance.offer["id"])
    if instance.bid is None:
        return Reply(body={"success": False, "error": "invalid_request", "msg": "The instance is on demand: there is no bid."})
    instance.bid = spot.floor(sim, offer_id, besides=instance) if price is None else float(price)
    spot.settle(sim, offer_id)
    return ok()


def reboot(sim: Provider, request: Request) -> Reply:
    """Reboot an instance, or make its container anew; here that is the same."""
    life.reboot(sim, instance_of(sim, request.number))
    return ok()


def destroy(sim: Provider, request: Request) -> Reply:
    """End an instance, or what its fault makes of that."""
    instance = instance_of(sim, request.number)
    fault = sim.faults.strike("destroy-", label=instance.label, offer=int(instance.offer["id"]))
    match fault.name if fault else "":
        case "destroy-429":
            raise too_frequent(0, 3.0)
        case "destroy-500":
            raise refusal(500, "server_error", "Something went wrong on the server")
        case "destroy-bad-key":
            raise invalid_key()
        case "destroy-no-such":
            sim.destroy(instance)
            raise no_such_instance(instance.id)
        case "destroy-dropped":
            sim.destroy(instance)
            return Reply(body={"success": True}, dropped=True)
        case "destroy-late":
            assert fault is not None
            sim.destroy(instance)
            return Reply(body={"success": True}, delay_s=fault.lasts(40.0))
        case "destroy-lingers":
            assert fault is not None
            sim.destroy(instance, lingers_s=fault.lasts(120.0))
        case _:
            sim.destroy(instance)
    return ok()


def destroy_many(sim: Provider, request: Request) -> Reply:
    """End several."""
    for number in request.fields.get("instance_ids") or ():
        sim.destroy(instance_of(sim, int(number)))
    return ok()


# -- keys


def attach_key(sim: Provider, request: Request) -> Reply:
    """Let a key into an instance."""
    instance, key = instance_of(sim, request.number), str(request.fields.get("ssh_key") or "").strip()
    if not key.startswith(("ssh-", "ecdsa-", "sk-")) or len(key.splitlines()) != 1:
        raise refusal(400, "invalid_args", "error 400/3467: ssh_key is no public key")
    if key in instance.keys.values():
        return Reply(body={"success": False, "msg": "SSH key is already associated with this instance."})
    instance.keys[max(instance.keys, default=0) + 1] = key
    if instance.fault != "boot-key-denied":
        sim.hands.do(instance.id, "let_in", instance.id, tuple(instance.keys.values()))
    return ok(msg="SSH key added to instance.")


def show_keys(sim: Provider, request: Request) -> Reply:
    """List an instance's keys, as text of JSON."""
    keys = instance_of(sim, request.number).keys
    return ok(ssh_keys=json.dumps([{"id": number, "public_key": key} for number, key in keys.items()]))


def detach_key(sim: Provider, request: Request) -> Reply:
    """Let a key in no more."""
    instance, key_id = instance_of(sim, request.number), int(request.parts[1])
    if instance.keys.pop(key_id, None) is None:
        raise refusal(404, "no_such_ssh_key", f"SSH key {key_id} not found.")
    sim.hands.do(instance.id, "let_in", instance.id, tuple(instance.keys.values()))
    return ok()


# -- what comes by a link


def logs(sim: Provider, request: Request) -> Reply:
    """Promise an instance's log."""
    instance = instance_of(sim, request.number)
    if instance.actual in (None, "created", "loading"):
        raise refusal(400, "invalid_request", "instance log channel is starting")
    lines = [f"{entry.at:.0f} {entry.what} {entry.detail}" for entry in sim.record.entries() if entry.instance == instance.id]
    wanted = str(request.fields.get("filter") or "")
    kept = [line for line in lines if wanted in line][-int(request.fields.get("tail") or 1000) :]
    return _promise(sim, request, "".join(f"{line}\n" for line in kept))


def command(sim: Provider, request: Request) -> Reply:
    """Promise what one of the few commands prints."""
    instance, asked = instance_of(sim, request.number), str(request.fields.get("command") or "")
    if asked.split(" ")[0] not in _COMMANDS or len(asked) > 512:
        raise refusal(400, "invalid_args", "Invalid command given")
    return _promise(sim, request, f"{asked}: simulated on {instance.id}\n", writeable_path="/var/lib/simulated")


def _promise(sim: Provider, request: Request, text: str, **more: Any) -> Reply:
    token = secrets.token_hex(16)
    sim.promised[token] = (_NOT_YET, text)
    return ok(result_url=f"{request.base}/results/{token}/", msg="The result will be there soon.", **more)


def result(sim: Provider, request: Request) -> Reply:
    """Give what was promised, after a while."""
    token = request.parts[0]
    if token not in sim.promised:
        return Reply(status=404, body="<Error><Code>NoSuchKey</Code></Error>")
    waits, text = sim.promised[token]
    sim.promised[token] = (waits - 1, text)
    return Reply(status=403, body="<Error><Code>AccessDenied</Code></Error>") if waits > 0 else Reply(body=text)


def _json(text: str | None, otherwise: Any) -> Any:
    try:
        return json.loads(text) if text else otherwise
    except ValueError as error:
        raise refusal(400, "invalid_request", f"not JSON: {text!r}") from error


def _key(value: Any) -> tuple[bool, bool, Any]:
    """Return something that any column sorts by, missing values last."""
    return (value is None, isinstance(value, str), 0 if value is None else value)


_ONE = "/api/v0/instances/{}/"
TABLE = (
    Route(method="GET", path="/api/v0/instances/", handler=deprecated, group="instance_read", own=True),
    Route(method="GET", path="/api/v1/instances/", handler=listing, group="instance_read", kind="list"),
    Route(method="GET", path="/api/v0/instances/filters/", handler=filters, group="instance_read"),
    Route(method="PUT", path="/api/v0/instances/", handler=update_many, group="instance_write", kind="update"),
    Route(method="DELETE", path="/api/v0/instances/", handler=destroy_many, group="instance_write", kind="destroy"),
    Route(method="GET", path=_ONE, handler=show, group="instance_read", kind="show", own=True),
    Route(method="PUT", path=_ONE, handler=update, group="instance_write", kind="update", audit="api.instance_PUT", own=True),
    Route(
        method="DELETE", path=_ONE, handler=destroy, group="instance_write", kind="destroy", audit="api.instance_DELETE", own=True
    ),
    Route(method="PUT", path="/api/v0/instances/bid_price/{}/", handler=change_bid, group="instance_write", kind="bid"),
    Route(method="PUT", path="/api/v0/instances/reboot/{}/", handler=reboot, group="instance_write", kind="reboot"),
    Route(method="PUT", path="/api/v0/instances/recycle/{}/", handler=reboot, group="instance_write", kind="reboot"),
    Route(method="POST", path=_ONE + "ssh/", handler=attach_key, group="instance_write"),
    Route(method="GET", path=_ONE + "ssh/", handler=show_keys, group="instance_read"),
    Route(method="DELETE", path=_ONE + "ssh/{}/", handler=detach_key, group="instance_write", kind="detach"),
    Route(
        method="PUT",
        path="/api/v0/instances/request_logs/{}/",
        handler=logs,
        group="instance_read",
        name="api.instance.request_logs",
    ),
    Route(method="PUT", path="/api/v0/instances/command/{}/", handler=command, group="instance_write", kind="execute"),
    Route(method="GET", path=r"/results/([0-9a-f]+)/", handler=result),
)
