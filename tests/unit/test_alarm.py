"""Alarms: rung once and again every hour, by a log line and the installation's command, for machines that should be gone."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from remote_trainer import config
from remote_trainer.errors import ConfigError
from remote_trainer.model import Attempt, Instance, Job, Phase
from remote_trainer.policy import Policy
from remote_trainer.ports import Change
from remote_trainer.worker import alarm as alarms
from remote_trainer.worker import loop
from remote_trainer.worker.alarm import Alarm, Cause, unreturned
from remote_trainer.worker.loop import Worker
from tests.unit.life import NOW, a_job

CAUSE = Cause(kind="unreturned", subject="rt-dep-j1-a1", message="it stays", data=(("instance", "777"),))


class HandClock:
    """Stands until it is set."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def releasing(seconds: float, **changes: Any) -> Job:
    """A job that has been giving its machine back for so long."""
    attempt = Attempt(
        number=1,
        label="rt-dep-j1-a1",
        started_at=NOW,
        requested_at=NOW,
        releasing_at=NOW - timedelta(seconds=seconds),
        instance=Instance(id="777", label="rt-dep-j1-a1"),
    )
    return replace(a_job(), phase=Phase.RELEASING, attempts=(replace(attempt, **changes),))


def test_it_rings_once_and_again_after_an_hour() -> None:
    """Whoever finds the cause may ring as often as it likes; another subject is another cause."""
    clock = HandClock()
    bell = Alarm(clock, "dep")
    with capture_logs() as lines:
        assert bell.ring(CAUSE)
        assert not bell.ring(CAUSE)
        assert bell.ring(replace(CAUSE, subject="another"))
        clock.time += timedelta(minutes=59)
        assert not bell.ring(CAUSE)
        clock.time += timedelta(minutes=1)
        assert bell.ring(CAUSE)
    assert [(line["log_level"], line["subject"]) for line in lines] == [
        ("error", each) for each in ("rt-dep-j1-a1", "another", "rt-dep-j1-a1")
    ]


async def test_the_command_is_given_the_message(tmp_path: Path) -> None:
    """As one JSON object on stdin; closing waits for it."""
    heard = tmp_path / "heard"
    bell = Alarm(HandClock(), "dep", ["sh", "-c", 'cat >"$0"', str(heard)])
    bell.ring(CAUSE)
    await bell.close()
    assert json.loads(heard.read_text()) == {
        "at": NOW.isoformat(),
        "deployment": "dep",
        "kind": "unreturned",
        "subject": "rt-dep-j1-a1",
        "message": "it stays",
        "instance": "777",
    }


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["sh", "-c", "exit 3"], {"exit_code": 3}),
        (["/nowhere/mail"], {"error": "[Errno 2] No such file or directory: '/nowhere/mail'"}),
        (["sh", "-c", "sleep 100 & sleep 100"], {"error": "took 0.1 s"}),
    ],
    ids=["fails", "absent", "hangs"],
)
async def test_a_command_that_fails_is_told(command: list[str], told: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends within its time, and its failure is one line of the log."""
    monkeypatch.setattr(alarms, "_COMMAND_S", 0.1 if "sleep" in command[-1] else 30.0)
    bell = Alarm(HandClock(), "dep", command)
    with capture_logs() as lines:
        bell.ring(CAUSE)
        await bell.close()
    assert {**lines[-1], **told} == lines[-1]
    assert lines[-1]["action"] == "alarm_command_failed"


def test_a_machine_that_should_be_gone_is_a_cause() -> None:
    """Five minutes after its end was due, also where no instance is known; a borrowed one, or none, never is."""
    cause = unreturned(releasing(301), NOW, Policy().alarm_after_s)
    assert cause is not None
    assert "instance 777 of job" in cause.message and "5 min ago" in cause.message
    assert unreturned(releasing(301, instance=None), NOW, 300) is not None
    assert unreturned(releasing(299), NOW, 300) is None
    assert unreturned(releasing(301, requested_at=None, instance=None), NOW, 300) is None
    assert unreturned(releasing(301, instance=Instance(id="h", label="l", borrowed=True)), NOW, 300) is None
    assert unreturned(replace(releasing(301), phase=Phase.EXECUTING), NOW, 300) is None


async def test_a_worker_rings_whatever_keeps_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at its own jobs, not at what the provider answers; each ring is an event of the job."""
    monkeypatch.setattr(loop, "_ALARM_EVERY_S", 0.0)
    clock, saved = HandClock(), list[Change]()
    shop = SimpleNamespace(
        clock=clock, policy=Policy(), alarm=Alarm(clock, "dep"), writer=SimpleNamespace(put=saved.append), store=None
    )
    worker = Worker(cast(Any, shop), lease_s=10, max_jobs=1, name="w")
    job = releasing(400)
    worker._runners[job.id] = cast(Any, SimpleNamespace(job=job, token=1))
    watching = asyncio.create_task(worker._alarms())
    for _ in range(20):
        await asyncio.sleep(0)
    clock.time += timedelta(hours=1)
    for _ in range(20):
        await asyncio.sleep(0)
    watching.cancel()
    assert [event.kind for change in saved for event in change.events] == ["alarm", "alarm"]


def test_the_command_is_a_list_or_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment it is one line, as for a shell; one that is none is a fault like any other."""
    monkeypatch.setenv("REMOTE_TRAINER_ALARM_COMMAND", "mail -s 'machine stays' ops")
    assert config.load().alarm_command == ("mail", "-s", "machine stays", "ops")
    monkeypatch.setenv("REMOTE_TRAINER_ALARM_COMMAND", "mail 'ops")
    with pytest.raises(ConfigError, match="ALARM_COMMAND"):
        config.load()
