"""Following steps over SSH through what goes wrong: cut connections, many jobs, a terminal's Ctrl-C."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from remote_trainer.errors import HostUnreachable
from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import StepState
from remote_trainer.ports import DriverSettings, Ended, Output
from remote_trainer.testing.host_contract import KEY, read_to_end, start
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.command import CommandTransport
from remote_trainer.transport.ssh import SshTransport
from tests.support.patience import PATIENCE_S
from tests.support.sshd import SshdServer


@pytest.fixture
async def host_behind(tmp_path: Path) -> AsyncIterator[Callable[..., SupervisedHost]]:
    """Makes hosts behind a server's port, or a link's in front of it."""
    made: list[SshTransport] = []

    def make(server: SshdServer, port: int = 0, **timing: float) -> SupervisedHost:
        settings = DriverSettings(state_dir=tmp_path, ssh_key=server.key_path, **timing)  # type: ignore[arg-type]
        target = f"{server.user}@{server.host}:{port or server.port}"
        made.append(SshTransport(target, settings, host_key=server.host_key_public))
        return SupervisedHost(made[-1], f"{server.home}/rt")

    yield make
    for transport in made:
        await transport.close()


@pytest.mark.fault("network-cut")
@pytest.mark.parametrize("how", ["reset", "silence"])
async def test_a_log_survives_broken_links(own_sshd: SshdServer, host_behind: Callable[..., SupervisedHost], how: str) -> None:
    """A log followed over a link that breaks again and again is equal to the host's, byte for byte."""
    kept, breaks = b"", 0
    with Link(own_sshd.host, own_sshd.port) as link:
        patient = host_behind(own_sshd)
        facts = await patient.bootstrap("first")
        await start(patient, facts, "seq.1", "for part in 1 2 3 4 5 6; do seq 1 30000; sleep 0.15; done")
        host = host_behind(own_sshd, link.port, keepalive_s=0.5)  # a silence is noticed soon
        status = None
        async with asyncio.timeout(PATIENCE_S):
            while status is None:
                try:
                    async with host.follow(KEY, "seq.1", len(kept)) as follow:
                        async for item in follow:
                            match item:
                                case Output(data):
                                    kept += data
                                    if breaks < 3 and len(kept) > 200_000 * (breaks + 1):
                                        breaks += 1
                                        (link.reset if how == "reset" else link.cut)()
                                case Ended(status):
                                    pass
                except HostUnreachable:
                    link.heal()
    expected = b"".join(b"%d\n" % number for number in range(1, 30001)) * 6
    assert (breaks, hashlib.sha256(kept).hexdigest()) == (3, hashlib.sha256(expected).hexdigest())
    assert (status.state, status.size) == (StepState.EXITED, len(expected))


async def test_forty_follows_on_a_stock_server(
    start_sshd: Callable[..., SshdServer], host_behind: Callable[..., SupervisedHost]
) -> None:
    """Forty steps are followed at once on a server that takes ten sessions a connection, and can still be asked and stopped."""
    server = start_sshd(max_sessions=10, max_startups=10)
    host = host_behind(server)
    facts = await host.bootstrap("first")
    names = [f"step{number}.1" for number in range(40)]
    for name in names:
        await start(host, facts, name, f'echo {name}; while [ ! -e "$RT_WORK/go" ]; do sleep 0.3; done')
    async with asyncio.timeout(PATIENCE_S):
        following = [asyncio.create_task(read_to_end(host, name)) for name in names]
        states = await host.status(KEY, names)
        assert {status.state for status in states.values()} == {StepState.RUNNING}
        await start(host, facts, "go.1", 'touch "$RT_WORK/go"')
        ends = await asyncio.gather(*following)
    assert [log for log, _ in ends] == [f"{name}\n".encode() for name in names]
    assert {status.exit_code for _, status in ends} == {0}


@pytest.mark.fault("network-cut")
async def test_a_lost_reply_to_a_start_starts_nothing_twice(
    own_sshd: SshdServer, host_behind: Callable[..., SupervisedHost]
) -> None:
    """When the connection dies around a start, asking again finds or starts the step: it ran once."""
    with Link(own_sshd.host, own_sshd.port) as link:
        host = host_behind(own_sshd, link.port)
        facts = await host.bootstrap("first")
        for number in range(6):
            asking = asyncio.create_task(start(host, facts, f"once{number}.1", 'echo ran >>"$RT_WORK/$RT_STEP"; sleep 0.1'))
            await asyncio.sleep(0.01 * number)  # at, or before, another point of the start each time
            link.reset()
            await asyncio.gather(asking, return_exceptions=True)
            link.heal()
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    try:
                        await start(host, facts, f"once{number}.1", 'echo ran >>"$RT_WORK/$RT_STEP"; sleep 0.1')
                        break
                    except HostUnreachable:
                        continue
            await read_to_end(host, f"once{number}.1")
            assert (own_sshd.home / "rt/j" / KEY / "w" / f"once{number}.1").read_text() == "ran\n"


_WORKER = """
import asyncio, sys
from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import Token
from remote_trainer.ports import Output, StepSpec
from remote_trainer.transport.command import CommandTransport

async def main():
    host = SupervisedHost(CommandTransport(), sys.argv[1])
    facts = await host.bootstrap("first")
    spec = StepSpec(key="train.1", script='echo up; until [ -e "$RT_WORK/go" ]; do sleep 0.02; done; echo survived')
    await host.start("rt-contract-job-a1", Token(1), spec, incarnation=facts.incarnation, deadman_s=600)
    async with host.follow("rt-contract-job-a1", "train.1", 0) as follow:
        async for item in follow:
            print(item, flush=True)

asyncio.run(main())
"""


async def test_ctrl_c_reaches_no_step(tmp_path: Path) -> None:
    """Ctrl-C in the terminal of a worker on this machine ends the worker; the step goes on to its end."""
    worker = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _WORKER,
        str(tmp_path / "rt"),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert worker.stdout
    async with asyncio.timeout(PATIENCE_S):
        while b"up" not in await worker.stdout.readline():
            pass
        os.killpg(worker.pid, signal.SIGINT)
        await worker.wait()
    (tmp_path / "rt/j" / KEY / "w/go").touch()
    log, status = await read_to_end(SupervisedHost(CommandTransport(), str(tmp_path / "rt")), "train.1")
    assert (log, status.exit_code) == (b"up\nsurvived\n", 0)
