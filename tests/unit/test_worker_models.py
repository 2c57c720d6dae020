"""A worker looks models up once more before it rents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from remote_trainer.effects import ChooseOffer, Severity
from remote_trainer.errors import ModelRefused
from remote_trainer.model import HubModel, Job, Phase, Reason, Verdict
from remote_trainer.worker.models import Models
from tests.support import hub as hubs
from tests.support.hub import FakeHub
from tests.unit.life import RENTED, Life, a_job

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
