"""How long running jobs are without a worker when theirs is killed: from `kill -9` until each is followed by another one.

    python -m bench.takeover [--count 200] [--lease 10] [--rounds 3]

"standing by": a second worker of another machine (another host name, here) was running already, so it has to wait for the leases to run
out. "started again": the service manager starts a new one at once, which finds that the holder of the leases is a dead process of its own
machine and does not wait. Many kills of few jobs, and a worker that stands by on the same machine: recover.py.

Rules for editing: the host side is the stand-in of standin.py, each job on a host of its own, so each takeover is a new login.
"""

from __future__ import annotations

import argparse
import asyncio
import time

from bench.follow import queue, until
from bench.rig import Rig, StandIn


async def takeover(count: int, lease_s: float, standby: bool) -> float:
    """Return the seconds of one takeover."""
    with Rig(max_jobs=count + 10, lease_s=lease_s) as rig, StandIn(rig.folder) as hosts:
        tool = rig.tool("endless", "true\n")
        async with rig.app() as app:
            await queue(app, tool, count, hosts.driver_options)
            worker = rig.worker()
            await until(lambda: hosts.follows()[0] == count, 60 + count / 10)
            if standby:
                rig.worker(machine="elsewhere")
            hosts.rate(1)
            await asyncio.sleep(3)
            begun = hosts.follows()[1]
            killed = time.monotonic()
            worker.kill()
            if not standby:
                rig.worker()
            await until(lambda: hosts.follows()[1] >= begun + count, 60 + count / 10)
            return time.monotonic() - killed


async def main(count: int, lease_s: float, rounds: int) -> None:
    """Print the table."""
    print(
        f"| takeover of {count} running jobs after `kill -9`, lease {lease_s:g} s | seconds, each round | target |\n|---|---|---|"
    )
    for standby, target in ((True, f"{lease_s + 3:g}"), (False, "")):
        took = [await takeover(count, lease_s, standby) for _ in range(rounds)]
        what = "a worker of another machine standing by" if standby else "the worker started again"
        print(f"| {what} | {', '.join(f'{each:.1f}' for each in took)} | {target} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--lease", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(main(given.count, given.lease, given.rounds))
