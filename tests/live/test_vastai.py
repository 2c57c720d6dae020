"""One machine of the real Vast.ai, from the search to the bill: what its documentation leaves open is noted and printed.

Runs only where it is asked for (docs/testing.md): it spends about two cents of the account behind VAST_API_KEY, and five at most.

Rules for editing: asserted is only what the product relies on; everything else is a finding. Whatever happens, the machine is given back.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from remote_trainer.drivers.vastai.api import VastApi, instance_path
from remote_trainer.drivers.vastai.driver import VastDriver
from remote_trainer.drivers.vastai.options import URL
from remote_trainer.errors import RemoteTrainerError
from remote_trainer.model import Instance, InstanceState, Offer, Resources
from remote_trainer.ports import DriverSettings, Spec, Transport
from tests.support import network
from tests.support.environment import ORIGINAL

pytestmark = [pytest.mark.live, pytest.mark.timeout(2400)]

CAP = Decimal("0.05")  # US dollars, for everything
TAIL_S = 300.0  # billed after a machine's end
LONGEST_S = 900.0
PREFIX = "rt-live-"
WANTED = Resources(gpus=1, disk_gb=8)
_FACTS = """\
df -P -B1 / | tail -n 1
nvidia-smi -L 2>&1 | head -n 1
(tr '\\0' '\\n' </proc/1/environ | sed -n 's/^\\([A-Z_]*\\)=.*/\\1/p' | sort | tr '\\n' ' ') 2>&1
for name in curl wget python3 rsync; do command -v $name; done
"""


@dataclass
class Account:
    """The account, through our driver and by plain requests."""

    driver: VastDriver
    api: VastApi
    http: httpx.AsyncClient
    folder: Path
    notes: dict[str, Any] = field(default_factory=dict)

    async def plainly(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """Send a request as it is, and return what came, without values that could be secret."""
        reply = await self.http.request(method, path, **more)
        limits = {name: value for name, value in reply.headers.items() if "retry" in name or "ratelimit" in name}
        return {"status": reply.status_code, **limits, "body": _outline(reply)}


def _outline(reply: httpx.Response) -> Any:
    try:
        body = reply.json()
    except ValueError:
        return reply.text[:200]
    told = ("success", "error", "msg", "message", "detail", "scheduled_job_id", "instances_found", "total_instances")
    return (
        {key: value if key in told else f"<{type(value).__name__}>" for key, value in body.items()}
        if isinstance(body, dict)
        else len(body)
    )


@pytest.fixture
async def account(tmp_path: Path) -> AsyncIterator[Account]:
    """With an SSH key of its own; whatever an earlier run has left behind is given back first."""
    network.lift()
    key, url = ORIGINAL["VAST_API_KEY"], ORIGINAL.get("VAST_URL") or URL
    settings = DriverSettings(state_dir=tmp_path, find_secret=lambda name: key)
    driver = VastDriver({"url": url, "min_hours": 1, "min_reliability": 0.95, "min_download_mbit": 100}, settings)
    headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}
    api = VastApi(url, key)
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as http:
        for left in await driver.instances(PREFIX):
            await driver.destroy(left)
        yield Account(driver, api, http, tmp_path)
    await api.close()
    await driver.close()


async def test_one_machine_from_the_search_to_the_bill(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    """Rents the cheapest machine, tries everything that our driver relies on, lets it end itself, and sees it gone."""
    label = f"{PREFIX}{secrets.token_hex(4)}-a1"
    began, credit = datetime.now(UTC), await account.driver.credit()
    offer = min(await account.driver.offers(WANTED), key=lambda each: each.price_per_hour)
    lasts_s = min(LONGEST_S, float(CAP / offer.price_per_hour) * 3600 - TAIL_S)
    assert lasts_s > 120, f"the cheapest machine costs {offer.price_per_hour} $ an hour: too dear for this test"
    try:
        await look_around(account)
        async with asyncio.timeout(lasts_s):
            made = await rent(account, offer, label)
            ready = await boot(account, made)
            await visit(account, ready)
            await read_the_log(account, offer, label, made, began)
            await end_itself(account, ready)
            await account.driver.destroy(ready)
    finally:
        await give_back(account, label)
        account.notes["too_frequent"] = [await account.plainly("GET", "/api/v1/instances/?limit=1") for _ in range(4)][-1]
        account.notes["credit"] = {
            "before": str(credit),
            "after": str(await account.driver.credit()),
            "price": str(offer.price_per_hour),
        }
        account.notes["bills"] = await tried(lambda: account.driver.charges(began - timedelta(days=1), datetime.now(UTC)), str)
        with capsys.disabled():
            print("\n" + json.dumps(account.notes, indent=2, default=str))


async def look_around(account: Account) -> None:
    """What the key may, how many offers are shown, and what bids are for: a GPU, or a machine."""
    account.notes["doctor"] = {each.question: (each.ok, each.answer) for each in await account.driver.examine()}
    account.notes["account_fields"] = sorted(await account.api.account())
    query = {"type": "bid", "limit": 500, "order": [["dph_total", "asc"]]}
    rows = await account.api.offers({**query, "num_gpus": {"gte": 1}})
    account.notes["offers_shown"] = len(rows)
    several = await account.api.offers({**query, "num_gpus": {"gte": 2}})
    prices = ("num_gpus", "gpu_name", "min_bid", "dph_base", "dph_total")
    account.notes["least_bids"] = [{key: row.get(key) for key in prices} for row in several[:8]]
    account.notes["types_of_gpu"] = dict(Counter(str(row.get("gpu_name")) for row in rows))


async def rent(account: Account, offer: Offer, label: str) -> Instance:
    """Request, switch and key; and what a listing shows at once."""
    asked_at = time.monotonic()
    made = await account.driver.create(offer, Spec(image=os.environ.get("REMOTE_TRAINER_TEST_IMAGE", "")), label)
    account.notes["create_s"] = round(time.monotonic() - asked_at, 1)
    await asyncio.sleep(0 if account.notes["create_s"] > 2 else 2)  # not too soon after the driver's own
    chosen = json.dumps({"label": {"eq": label}})
    account.notes["listed_by_label_at_once"] = await account.plainly(
        "GET", f"/api/v1/instances/?limit=25&select_filters={chosen}"
    )
    account.notes["shown_by_id_at_once"] = await account.api.instance(made.id) is not None
    await account.driver.guard(made, datetime.now(UTC) + timedelta(minutes=30))
    again = {
        "start_time": int(time.time()) + 7200, "end_time": int(time.time()) + 90_000, "api_endpoint": instance_path(made.id),
        "request_method": "DELETE", "request_body": {}, "day_of_the_week": None, "hour_of_the_day": None, "frequency": "HOURLY",
        "instance_id": int(made.id),
    }  # fmt: skip
    account.notes["scheduled_twice"] = await account.plainly("POST", "/api/v0/commands/schedule_job/", json=again)
    account.notes["schedule"] = [
        row for row in await account.api.scheduled() if row.get("api_endpoint") == instance_path(made.id)
    ]
    return made


async def boot(account: Account, made: Instance) -> Instance:
    """Wait until it is ready, as a worker does, and note every state that is shown meanwhile."""
    seen: list[str] = []
    began = time.monotonic()
    while True:
        rows = [row for row in await account.api.instances() if str(row.get("id")) == made.id]
        (one,) = [each for each in await account.driver.instances(PREFIX) if each.id == made.id] or [made]
        for row in rows:
            now = "/".join(str(row.get(name)) for name in ("actual_status", "intended_status", "cur_state", "next_state"))
            if seen[-1:] != [now]:
                seen.append(now)
        if one.state is not InstanceState.STARTING:
            break
        await asyncio.sleep(10)
    by_id = await account.api.instance(made.id) or {}
    account.notes["boot"] = {"states": seen, "s": round(time.monotonic() - began), "message": one.message}
    account.notes["ports"] = {
        "listed": rows[0].get("ports") if rows else None,
        "by_id": by_id.get("ports"),
        "runtype": by_id.get("image_runtype"),
    }
    account.notes["prices"] = {
        key: by_id.get(key)
        for key in ("dph_base", "dph_total", "min_bid", "is_bid", "storage_total_cost", "disk_space", "instance")
    }
    assert one.state is InstanceState.READY, f"it did not boot: {one.state} {one.message}"
    return one


async def visit(account: Account, ready: Instance) -> None:
    """Log in with the key that was attached, and see what is there."""
    public = next(account.folder.rglob("*.pub")).read_text().strip()
    account.notes["key_attached_twice"] = await account.plainly(
        "POST", f"{instance_path(ready.id)}ssh/", json={"ssh_key": public}
    )
    transport, began, refusals = await account.driver.connect(ready), time.monotonic(), list[str]()
    while True:
        try:
            done = await transport.run(["sh", "-c", _FACTS])
            break
        except RemoteTrainerError as error:
            refusals.append(type(error).__name__)
            await asyncio.sleep(5)
    account.notes["login"] = {"after_s": round(time.monotonic() - began), "refusals": dict(Counter(refusals))}
    account.notes["machine"] = done.stdout.decode(errors="replace").splitlines()


async def read_the_log(account: Account, offer: Offer, label: str, made: Instance, began: datetime) -> None:
    """What the audit log says of our request, and that our reading of it finds the machine."""
    ours = [row for row in await account.api.audit_log() if made.id in json.dumps(row, default=str)]
    account.notes["audit"] = [{**row, "args": sorted(row.get("args") or {}), "ip_address": "…"} for row in map(dict, ours)]
    account.notes["recorded"] = await tried(
        lambda: account.driver.recorded(offer, label, began), lambda found: [each.id for each in found]
    )


async def end_itself(account: Account, ready: Instance) -> None:
    """Run the farewell there; how long the row stays."""
    transport: Transport = await account.driver.connect(ready)
    began = time.monotonic()
    try:
        done = await transport.run(["sh", "-s"], stdin=account.driver.farewell.encode(), timeout_s=90)
        account.notes["farewell"] = {"exit": done.code, "stderr": done.stderr.decode(errors="replace")[-300:]}
    except RemoteTrainerError as error:  # it may be gone before it has said so
        account.notes["farewell"] = {"lost": str(error)}
    for _ in range(20):
        if await account.api.instance(ready.id) is None:
            account.notes["farewell"]["gone_after_s"] = round(time.monotonic() - began)
            return
        await asyncio.sleep(3)


async def give_back(account: Account, label: str) -> None:
    """Destroy until two listings in a row lack it; takes as long as it takes."""
    missing = 0
    while missing < 2:
        try:
            there = await account.driver.instances(label)
            missing = 0 if there else missing + 1
            for one in there:
                await account.driver.destroy(one)
        except RemoteTrainerError as error:
            missing = 0
            account.notes.setdefault("giving_back", []).append(str(error))
        await asyncio.sleep(5)
    await asyncio.sleep(5)
    left = [row for row in await account.api.scheduled() if row.get("request_method") == "DELETE"]
    account.notes["left_in_the_schedule"] = len(left)


async def tried(ask: Callable[[], Any], show: Callable[[Any], Any]) -> Any:
    """Return what came, or the error in words: a finding too."""
    try:
        return show(await ask())
    except RemoteTrainerError as error:
        return f"{type(error).__name__}: {error}"
