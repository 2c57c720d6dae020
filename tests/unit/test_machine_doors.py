"""What a host that does not let us in tells of itself: silence, a late banner, another host key."""

from __future__ import annotations

import socket
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.effects import Seen
from remote_trainer.errors import HostKeyMismatch, HostSilent, HostUnreachable, HostWiped
from remote_trainer.model import Attempt, Instance, Job, JobId, Plan
from remote_trainer.ports import DriverSettings
from remote_trainer.transport.pool import Pool
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.worker.machine import Machine

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HERE, THERE = ({"host": "203.0.113.9", "port": port} for port in (41022, 41023))


def reached(server: socket.socket, folder: Path) -> SshTransport:
    settings = DriverSettings(state_dir=folder, connect_timeout_s=0.5)
    return SshTransport(f"root@127.0.0.1:{server.getsockname()[1]}", settings)


async def test_nobody_takes_the_connection(tmp_path: Path) -> None:
    """What is sent into a hole is told apart from what is refused, or answered late."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        waiting = [socket.socket() for _ in range(4)]  # more than the system queues: from now on it drops what comes
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        with pytest.raises(HostSilent, match="no answer within"):
            await reached(full, tmp_path).run(["true"])
        for each in waiting:
            each.close()


async def test_a_banner_that_is_late_is_no_silence(tmp_path: Path) -> None:
    """Somebody takes the connection before the SSH server is up: that is waited for."""
    with closing(socket.create_server(("127.0.0.1", 0))) as mute, pytest.raises(HostUnreachable) as caught:
        await reached(mute, tmp_path).run(["true"])
    assert not isinstance(caught.value, HostSilent)


async def test_a_host_that_stays_away_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """After thousands of logins that failed the next one waits as long as ever; one that has never let us in is not let wait long."""

    async def nobody() -> Any:
        raise HostUnreachable("gone")

    now = 1000.0
    monkeypatch.setattr("remote_trainer.transport.pool.time", SimpleNamespace(monotonic=lambda: now))
    pool = Pool(nobody, "box")
    pool._failures = 5000
    with pytest.raises(HostUnreachable):
        await pool.channel(cast(Any, None))
    assert 0 < pool._not_before - now <= 2
    pool._met, pool._not_before = True, 0.0
    with pytest.raises(HostUnreachable):
        await pool.channel(cast(Any, None))
    assert 2 < pool._not_before - now <= 10


def machine(listed: Instance) -> Machine:
    pinned = replace(listed, address=HERE, host_key="ssh-ed25519 AAAA")
    attempt = Attempt(number=1, label="l", started_at=NOW, instance=pinned)
    plan = Plan(tool="t@1", parameters={}, steps=())
    job = Job(id=JobId("j"), name="j", plan=plan, driver="vastai", created_at=NOW, attempts=(attempt,))
    patient = SimpleNamespace(job=job, seen=Seen(since=NOW, instances=(listed,), instances_at=NOW))
    return Machine(cast(Any, None), cast(Any, patient))


def test_another_key_at_another_address_is_another_disk() -> None:
    """The provider says where the instance is now; what answers there with a new key has nothing of ours, and no blame of the machine."""
    error = HostKeyMismatch("another key")
    assert isinstance(machine(Instance(id="1", label="l", address=THERE)).explain(error), HostWiped)


def test_another_key_where_the_machine_was_is_somebody_else() -> None:
    """At the address that we know the pinned key is the only one, and no address in the listing changes that."""
    error = HostKeyMismatch("another key")
    assert machine(Instance(id="1", label="l", address=HERE)).explain(error) is error
    assert machine(Instance(id="1", label="l")).explain(error) is error
    assert machine(Instance(id="1", label="l", address=THERE, borrowed=True)).explain(error) is error
