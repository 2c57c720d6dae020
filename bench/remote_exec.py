"""What the way to a host costs: commands, starts, followed lines, pushed bytes, over a loopback OpenSSH server.

Run by hand from the checkout: `python -m bench.remote_exec`. Figures are medians of one run on a machine that does nothing else;
CPU is that of this process only.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from remote_trainer.host.client import SupervisedHost
from remote_trainer.model import HostFacts, Token
from remote_trainer.ports import DriverSettings, Output, StepSpec
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.ssh import SshTransport
from tests.support import sshd

KEY = "rt-bench-job-a1"


async def timed(count: int, act: Callable[[int], Awaitable[object]]) -> float:
    """Return the median duration in ms."""
    durations = []
    for number in range(count):
        began = time.perf_counter()
        await act(number)
        durations.append((time.perf_counter() - began) * 1e3)
    return statistics.median(durations)


def say(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


class Bench:
    """One server and the means to reach it."""

    def __init__(self, server: sshd.SshdServer, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.host_key = server.host_key_public

    def transport(self, port: int = 0) -> SshTransport:
        settings = DriverSettings(state_dir=self.folder, ssh_key=self.server.key_path)
        return SshTransport(f"{self.server.user}@{self.server.host}:{port or self.server.port}", settings, host_key=self.host_key)

    def host(self, transport: SshTransport) -> SupervisedHost:
        return SupervisedHost(transport, f"{self.server.home}/rt")

    async def commands(self) -> None:
        async def anew(_: int) -> None:
            transport = self.transport()
            await transport.run(["true"])
            await transport.close()

        cold = [*self.server.ssh_command(), "true"]
        say("a cold `ssh host true`, ms", f"{await timed(10, lambda _: asyncio.to_thread(subprocess.run, cold, check=True)):.0f}")
        say("command, new connection, ms", f"{await timed(20, anew):.1f}")
        transport = self.transport()
        await transport.run(["true"])
        say("command, open connection, ms", f"{await timed(100, lambda _: transport.run(['true'])):.1f}")
        await transport.close()

    async def starts(self) -> None:
        facts = await self.host(transport := self.transport()).bootstrap("first")
        host = self.host(transport)

        async def launch(host: SupervisedHost, name: str) -> None:
            await host.start(KEY, Token(1), StepSpec(key=name, script="true"), incarnation=facts.incarnation, deadman_s=600)

        async def anew(number: int) -> None:
            fresh = self.transport()
            await launch(self.host(fresh), f"new{number}.1")
            await fresh.close()

        say("bootstrap of a host that has the supervisor, ms", f"{await timed(10, lambda _: host.bootstrap('first')):.0f}")
        say("start of a step, new connection, ms", f"{await timed(15, anew):.0f}")
        say("start of a step, open connection, ms", f"{await timed(30, lambda number: launch(host, f'open{number}.1')):.0f}")
        await self.follow(host, facts)
        await self.many_lines(host, facts)
        await transport.close()

    async def follow(self, host: SupervisedHost, facts: HostFacts) -> None:
        """Each line carries the moment it was written; both ends have the same clock."""
        script = "n=0; while [ $n -lt 200 ]; do date +%s.%N; sleep 0.05; n=$((n+1)); done"
        await host.start(KEY, Token(1), StepSpec(key="ticks.1", script=script), incarnation=facts.incarnation, deadman_s=600)
        late = []
        async with host.follow(KEY, "ticks.1", 0) as follow:
            async for item in follow:
                if isinstance(item, Output):
                    now = time.time()
                    late += [(now - float(line)) * 1e3 for line in item.data.split()]
        late.sort()
        say("line written → in the worker, ms, p50 / p99", f"{late[len(late) // 2]:.1f} / {late[int(len(late) * 0.99)]:.1f}")

    async def many_lines(self, host: SupervisedHost, facts: HostFacts) -> None:
        """Lines that come one by one, 200 a second."""
        script = 'n=0; while [ $n -lt 2000 ]; do echo "step $n loss 0.1234"; sleep 0.003; n=$((n+1)); done'
        await host.start(KEY, Token(1), StepSpec(key="lines.1", script=script), incarnation=facts.incarnation, deadman_s=600)
        pieces, began = 0, time.process_time()
        async with host.follow(KEY, "lines.1", 0) as follow:
            async for item in follow:
                pieces += isinstance(item, Output)
        say(
            "CPU per delivered piece of log, µs",
            f"{(time.process_time() - began) / pieces * 1e6:.0f} ({pieces} pieces of 2000 lines)",
        )

    async def files(self) -> None:
        source = self.folder / "source"
        source.mkdir()
        files = [source / f"chunk{number:02}" for number in range(8)]
        for file in files:
            file.write_bytes(os.urandom(16 << 20))
        size = sum(file.stat().st_size for file in files)
        with Link(self.server.host, self.server.port) as link:
            for rtt_s in (0.0, 0.1):
                link.set(rtt_s=rtt_s)
                transport = self.transport(link.port if rtt_s else 0)
                await transport.run(["true"])
                target = self.folder / f"there{rtt_s}"
                began = time.perf_counter()
                await transport.push(files, str(target))
                taken = time.perf_counter() - began
                say(f"push of 8 x 16 MiB, round trip {rtt_s * 1e3:.0f} ms, MB/s", f"{size / taken / 1e6:.0f}")
                began = time.perf_counter()
                await transport.push(files, str(target))
                say("the same again, nothing to send, ms", f"{(time.perf_counter() - began) * 1e3:.0f}")
                began = time.perf_counter()
                await transport.pull(f"{target}/chunk00", self.folder / f"back{rtt_s}", size=16 << 20)
                say("pull of 16 MiB, MB/s", f"{(16 << 20) / (time.perf_counter() - began) / 1e6:.0f}")
                await transport.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as name, sshd.running(sshd.prepare(Path(name) / "sshd")) as server:
        bench = Bench(server, Path(name))
        print("| measure | figure |\n|---|---|")
        await bench.commands()
        await bench.starts()
        await bench.files()


if __name__ == "__main__":
    asyncio.run(main())
