"""How fast a dataset reaches a host, beside tar over ssh, rsync -a and scp -r, in one run against a loopback OpenSSH server.

    python -m bench.transfer                        # the rows of docs/benchmarks.md: needs 30 GB of disk and some minutes
    python -m bench.transfer --big 500 --small 5000 --rounds 1

Ours is everything a job pays: scan, pack, hash, send, verify, unpack, publish. The others verify nothing. Each round runs all ways
one after the other into fresh folders, so a ratio compares neighbours in time; the table shows medians.

Rules for editing: the server, its key and all data are made here and removed; other work is noise: print ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remote_trainer.dataset.cache import Cache
from remote_trainer.dataset.pack import pack
from remote_trainer.host import scripts
from remote_trainer.host.depot import Depot
from remote_trainer.ports import DriverSettings
from remote_trainer.testing.netfault import Link
from remote_trainer.transport.command import CommandTransport
from remote_trainer.transport.ssh import SshTransport
from remote_trainer.worker.ship import ship
from tests.support import sshd as servers
from tests.support.sshd import SshdServer


@dataclass(frozen=True)
class Bench:
    """A server, a scratch folder, and the port to reach the server by (the server's, or a slow link's)."""

    server: SshdServer
    scratch: Path
    port: int

    def ssh(self) -> list[str]:
        pinned = self.scratch / f"known_hosts.{self.port}"
        pinned.write_text(f"[{self.server.host}]:{self.port} {self.server.host_key_public}\n")
        options = [
            "-o",
            f"UserKnownHostsFile={pinned}",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "IdentitiesOnly=yes",
        ]
        return ["ssh", "-F", "none", *options, "-i", str(self.server.key_path)]

    def target(self) -> str:
        return f"{self.server.user}@{self.server.host}"

    def fresh(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def tar(self, data: Path, into: Path) -> None:
        ssh = shlex.join([*self.ssh(), "-p", str(self.port), self.target()])
        shell(f"tar -cf - -C {data} . | {ssh} tar -xf - -C {into}")

    def rsync(self, data: Path, into: Path) -> None:
        shell(f"rsync -a -e {shlex.quote(shlex.join([*self.ssh(), '-p', str(self.port)]))} {data}/ {self.target()}:{into}/")

    def scp(self, data: Path, into: Path) -> None:
        shell(f"{shlex.join(['scp', *self.ssh()[1:]])} -q -P {self.port} -r {data} {self.target()}:{into}/")

    def ours(self, data: Path, into: Path) -> None:
        asyncio.run(self._ours(data, into))

    async def _ours(self, data: Path, into: Path) -> None:
        settings = DriverSettings(state_dir=self.scratch / "state", ssh_key=self.server.key_path)
        transport = SshTransport(f"{self.target()}:{self.port}", settings, host_key=self.server.host_key_public)
        try:
            cache = Cache(self.scratch / "cache")
            # As for a job: the worker is connected long before there is something to ship.
            given, _ = await asyncio.gather(pack(str(data), cache), transport.run(["true"]))
            await ship(Depot(transport, str(into)), "rt-bench-a1", [given], cache)
        finally:
            await transport.close()

    def prepare(self, into: Path) -> None:
        """What a job finds: a host that was set up, and a dataset nobody has packed."""
        asyncio.run(scripts.install(CommandTransport(), str(into)))
        (into / "inc").write_text("bench")
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)


def shell(command: str) -> None:
    """Run a pipeline; a failure anywhere in it fails the benchmark."""
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True)


def make_big(folder: Path, megabytes: int) -> Path:
    """Eight incompressible files."""
    folder.mkdir()
    block = os.urandom(1 << 20)
    for number in range(8):
        with (folder / f"shard-{number}.bin").open("wb") as file:
            for at in range(megabytes // 8):
                file.write(at.to_bytes(8, "big") + block[8:])
    return folder


def make_small(folder: Path, files: int, size: int) -> Path:
    """Files in folders of a thousand."""
    block = os.urandom(size)
    for number in range(files):
        path = folder / f"part-{number // 1000:03}" / f"image-{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(number.to_bytes(8, "big") + block[8:])
    return folder


def measure(bench: Bench, data: Path, ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):  # nothing is removed in between: after that, ext4 creates files several times slower for a while
        for way in ways:
            into = bench.fresh()
            bench.prepare(into)
            run: Callable[[Path, Path], None] = getattr(bench, way)
            seconds[way].append(timed(lambda run=run, into=into: run(data, into)))  # type: ignore[misc]
            print(f"  {data.name:10} {way:6} {seconds[way][-1]:7.2f} s", file=sys.stderr, flush=True)
    return seconds


def timed(call: Callable[[], None]) -> float:
    """Seconds a call takes; what earlier ones left unwritten is written first."""
    os.sync()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def clear(folder: Path) -> None:
    """Remove, read-only trees too."""
    shell(f"chmod -R u+w {folder} && rm -rf {folder}")


def row(name: str, data: Path, seconds: dict[str, list[float]]) -> str:
    """One line of the table: seconds, and how much longer or shorter than ours."""
    mine = statistics.median(seconds["ours"])
    size = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    cells = [f"{mine:.2f} s ({size / mine / 1e6:.0f} MB/s)"]
    for way in ("tar", "rsync", "scp"):
        if way in seconds:
            ratio = statistics.median(ours / other for ours, other in zip(seconds["ours"], seconds[way], strict=True))
            cells.append(f"{statistics.median(seconds[way]):.2f} s (×{ratio:.2f})")
        else:
            cells.append("–")
    return f"| {name} | " + " | ".join(cells) + " |"


def again(bench: Bench, data: Path, rounds: int) -> tuple[float, float]:
    """Median seconds of a second run of the same dataset on the same host, and of rsync's."""
    ours, other = bench.fresh(), bench.fresh()
    bench.prepare(ours)
    bench.ours(data, ours)
    bench.rsync(data, other)
    mine = statistics.median(timed(lambda: bench.ours(data, ours)) for _ in range(rounds))
    theirs = statistics.median(timed(lambda: bench.rsync(data, other)) for _ in range(rounds))
    clear(ours)
    clear(other)
    return mine, theirs


def rows(given: argparse.Namespace, near: Bench) -> Iterator[str]:
    """Measure what was asked for, a line of the table at a time."""
    wanted = given.rows.split(",")
    if "big" in wanted:
        big = make_big(near.scratch / "big", given.big)
        yield row(f"{given.big} MB of big files", big, measure(near, big, ["tar", "ours", "rsync", "scp"], given.rounds))
    if "small" in wanted:
        small = make_small(near.scratch / "small", given.small, 8000)
        seconds = measure(near, small, ["tar", "ours", "rsync", "scp"], given.rounds)
        yield row(f"{given.small} files of 8 kB", small, seconds)
    if "far" in wanted:
        far = make_big(near.scratch / "far", given.far)
        with Link(near.server.host, near.server.port) as link:
            link.set(rtt_s=given.rtt)
            seconds = measure(Bench(near.server, near.scratch, link.port), far, ["ours", "rsync"], given.rounds)
        yield row(f"{given.far} MB at {given.rtt * 1000:.0f} ms round trip", far, seconds)
    if "again" in wanted:
        data = near.scratch / "small" if "small" in wanted else make_small(near.scratch / "small", given.small, 8000)
        time.sleep(2.1)  # files as fresh as the clock's grain are hashed again
        ours, rsync = again(near, data, given.rounds)
        yield f"| second run, {given.small} files | {ours:.2f} s | – | {rsync:.2f} s | – |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--big", type=int, default=2000, help="MB of big files")
    options.add_argument("--small", type=int, default=20000, help="number of 8 kB files")
    options.add_argument("--far", type=int, default=1000, help="MB over the slow link")
    options.add_argument("--rtt", type=float, default=0.1, help="round trip of the slow link, seconds")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--rows", default="big,small,far,again")
    given = options.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="rt-bench-"))
    print(
        "| dataset path | ours | tar \\| ssh tar (ours ×) | rsync -a (ours ×) | scp -r (ours ×) |\n|---|---|---|---|---|",
        flush=True,
    )
    try:
        with servers.running(servers.prepare(scratch / "sshd")) as server:
            for line in rows(given, Bench(server, scratch, server.port)):
                print(line, flush=True)
    finally:
        shell(f"chmod -R u+w {scratch}; rm -rf {scratch}")


if __name__ == "__main__":
    main()
