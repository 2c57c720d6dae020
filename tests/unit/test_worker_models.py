"""A worker looks models up once more before it rents."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.effects import ChooseOffer, Seen, Severity
from remote_trainer.errors import HostLacks, ModelRefused
from remote_trainer.model import HostFacts, HubModel, Job, Phase, Reason, Resources, Verdict
from remote_trainer.transport.command import CommandTransport
from remote_trainer.worker.machine import Machine
from remote_trainer.worker.models import Models
from tests.support import hub as hubs
from tests.support.hub import FakeHub
from tests.unit.life import BORROWED, NOW, RENTED, Life, a_job

FILES = {"model_index.json": b'{"_class_name": "P"}', "unet/config.json": b"{}", "unet/x.safetensors": b"x"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a gated model that Grete may have."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with hubs.running() as hub:
        hub.tokens = {"hf_grete": "grete"}
        hub.models = {"acme/m": hubs.HubModel([FILES], gated=True, readers={"grete"})}
        yield hub


def job_for(hub: FakeHub, name: str = "acme/m") -> Job:
    """A job whose step gets the token and fetches that model."""
    job, model = a_job(), HubModel(input="base", name=name, folders=("unet",), endpoint=hub.url)
    steps = tuple(replace(step, secrets=("HF_TOKEN",)) for step in job.plan.steps)
    return replace(job, plan=replace(job.plan, steps=steps, models=(model,)))


async def test_the_token_that_the_step_will_get_decides(hub: FakeHub) -> None:
    """With it nothing is said; without it a job that rents is refused, and one on a borrowed machine may have another there."""
    secrets: dict[str, str] = {}
    models = Models(secrets.get)
    with pytest.raises(ModelRefused, match="there is no HF_TOKEN"):
        await models.check(job_for(hub), rents=True)
    await models.check(job_for(hub), rents=False)
    secrets["HF_TOKEN"] = "hf_grete"
    await models.check(job_for(hub), rents=True)
    with pytest.raises(ModelRefused, match="no model acme/nothing"):
        await models.check(job_for(hub, "acme/nothing"), rents=False)


async def test_a_model_that_was_found_is_believed_for_a_while(hub: FakeHub) -> None:
    """Jobs that come together ask once; ten minutes later it is asked again."""
    now = [0.0]
    models = Models({"HF_TOKEN": "hf_grete"}.get, now=lambda: now[0])
    for now[0] in (0.0, 1.0, 599.0):
        await models.check(job_for(hub), rents=True)
    asked = len(hub.asked)
    now[0] = 601.0
    await models.check(job_for(hub), rents=True)
    assert (asked, len(hub.asked)) == (2, 4)


async def test_a_hub_that_does_not_answer_ends_nothing(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may reach it; where it is not to be asked at all it is not."""
    hub.down = True
    await Models({"HF_TOKEN": "hf_grete"}.get).check(job_for(hub), rents=True)
    asked = len(hub.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    await Models({"HF_TOKEN": "hf_grete"}.get).check(job_for(hub), rents=True)
    assert len(hub.asked) == asked == 3


def test_a_refused_model_ends_the_job_before_anything_is_asked_for() -> None:
    """It fails with its own reason, no request to rent is sent, and no other machine is tried."""
    life = Life(a_job(), RENTED)
    life.tick()
    life.trouble(ChooseOffer, Severity.FATAL, Reason.MODEL_REFUSED)
    [attempt] = life.job.attempts
    assert attempt.requested_at is None and (attempt.verdict, attempt.reason) == (Verdict.FAILED, Reason.MODEL_REFUSED)
    assert life.job.phase in (Phase.RELEASING, Phase.FAILED)


class Box:
    """A borrowed machine with 2 MB of disk less than a job for a model of 3 MB asks for."""

    def __init__(self, root: Path) -> None:
        self.host = SimpleNamespace(transport=CommandTransport(address="box"), root=str(root))

    async def facts(self, host: object, *, anew: bool = False) -> HostFacts:
        return HostFacts(incarnation="i", boot="b", disk_free=10**9 - 2_000_000)

    async def prepare(self) -> HostFacts | None:
        """What the job's machine is, once it is found fit."""
        job, shop = a_job(), SimpleNamespace(facts=self.facts)
        model = HubModel(input="base", name="acme/m", folders=("unet",), size=3_000_000)
        job = replace(job, plan=replace(job.plan, models=(model,), resources=Resources(disk_gb=1)))
        patient = SimpleNamespace(job=job, seen=Seen(since=NOW), driver=SimpleNamespace(abilities=BORROWED))
        patient.observe = lambda change: setattr(patient, "seen", change(patient.seen))
        machine = Machine(cast(Any, shop), cast(Any, patient))
        machine.host = lambda: asyncio.sleep(0, self.host)  # type: ignore[method-assign, return-value, assignment]
        await machine.prepare_host()
        return patient.seen.host


async def test_a_size_that_no_cache_has_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a host's programs print."""
    (tmp_path / "hub" / "models--acme--m").mkdir(parents=True)
    du = tmp_path / "bin" / "du"
    du.parent.mkdir()
    du.write_text(f"#!/bin/sh\necho {'9' * 5000} /x\n")
    du.chmod(0o755)
    monkeypatch.setenv("PATH", f"{du.parent}:{os.environ['PATH']}")
    with pytest.raises(HostLacks, match="free disk"):
        await Box(tmp_path).prepare()


async def test_what_is_in_the_cache_needs_no_room(tmp_path: Path) -> None:
    """A machine that has a model from a job before is not refused for the disk that fetching it would take."""
    box = Box(tmp_path)
    with pytest.raises(HostLacks, match="free disk"):
        await box.prepare()
    blobs = tmp_path / "hub" / "models--acme--m" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "half").write_bytes(os.urandom(1_000_000))
    with pytest.raises(HostLacks, match="free disk"):
        await box.prepare()
    (blobs / "rest").write_bytes(os.urandom(2_000_000))
    assert await box.prepare() is not None
