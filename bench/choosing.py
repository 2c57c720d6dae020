"""What a run costs by how its machine is chosen: ours against the rules of SkyPilot and dstack, on markets made up from seeds.

    python -m bench.choosing [--markets 1000]

Each rule searches the same market through the simulated service, with its own query, and takes machines in its own order until one works.
"Expected" is our estimate of the run on the first one taken; "simulated" is what it comes to, machines that failed included.

Rules for editing: rules differ in what they take, in nothing else: who fails is the market's truth, what is paid is the provider's rule,
and everybody goes on with the next of his order. A peer's rule is what its source does (named beside it), at its best.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.markets import Market, Row
from remote_trainer.drivers.vastai.choose import ROWS_MAX, Wishes, disk_to_rent, query, sieve
from remote_trainer.drivers.vastai.rows import offer
from remote_trainer.model import Limits, Resources, Strategy
from remote_trainer.policy import Estimate, Lot, expected_cost, fits, is_avoided, pick
from remote_trainer.testing.vast.market import Market as Service

_MONTH_H = 720  # of storage
_GIVEN_UP_S = 600.0  # so long everybody waits for a machine that does not boot
_LOOK_S = 90.0  # and so long it takes to see that one which runs is of no use
_TAIL_S = 150.0  # that the provider bills after the end
_UPLINK_MBIT = 500.0  # ours
_MORE = 25  # machines tried at most


@dataclass(frozen=True, slots=True)
class Job:
    """What is to run."""

    name: str
    run: Estimate
    wanted: Resources


JOBS = (
    Job("short: 0.5 h, 0.1 GB in", Estimate(hours=0.5, gb_in=0.1, gb_out=1), Resources(gpus=1, vram_gb=16, disk_gb=40)),
    Job("a LoRA: 2 h, 1 GB in", Estimate(hours=2, gb_in=1, gb_out=2), Resources(gpus=1, vram_gb=24, disk_gb=60)),
    Job("long: 20 h, 1 GB in", Estimate(hours=20, gb_in=1, gb_out=5), Resources(gpus=1, vram_gb=24, disk_gb=60)),
    Job("much data: 2 h, 120 GB in", Estimate(hours=2, gb_in=120, gb_out=5), Resources(gpus=1, vram_gb=24, disk_gb=300)),
    Job("much memory: 8 h, 10 GB in", Estimate(hours=8, gb_in=10, gb_out=20), Resources(gpus=1, vram_gb=48, disk_gb=120)),
)

Rule = Callable[[Market, Service, Job], Iterator[Row]]


def ours(market: Market, service: Service, job: Job) -> Iterator[Row]:
    """Search, sieve, choose; what failed is avoided from then on."""
    dice = random.Random(f"dice {market.seed}")
    wishes, failed = Wishes(), frozenset[str]()
    for _ in range(_MORE):
        wanted = query(wishes, job.wanted)
        found = service.search(wanted)
        if len(found) >= ROWS_MAX:  # as the driver does
            found += service.search({**wanted, "order": [["dlperf", "desc"]]})
        suitable = [one for one in sieve(found, wishes, job.wanted)[0] if not fits(one, job.wanted, Limits())]
        lots = [Lot(offer=one, avoided=is_avoided(one, failed)) for one in suitable]
        picked = pick(lots, job.run, Strategy.PREFERRED, dice=dice.random())
        if not picked or picked[0].avoided:
            return
        chosen = picked[0].offer
        yield service.offers[int(chosen.id)]
        failed |= {chosen.id, chosen.machine}


def skypilot(market: Market, service: Service, job: Job) -> Iterator[Row]:
    """The kind of GPU with the lowest median price in its catalog; of that kind `search_offers()` in its own order, by score.

    Of the kinds that fit, for whoever names them all (`sky/catalog`, `sky/provision/vast/utils.py`).
    """
    prices: dict[str, list[float]] = {}
    for row in service.offers.values():
        if row["gpu_ram"] >= job.wanted.vram_gb * 1000:
            prices.setdefault(row["gpu_name"], []).append(row["dph_base"])
    for kind in sorted(prices, key=lambda name: statistics.median(prices[name])):
        filters = {"num_gpus": {"eq": 1}, "gpu_name": {"eq": kind}, "disk_space": {"gte": job.wanted.disk_gb}}
        yield from service.search({**filters, "order": [["score", "desc"]], "allocated_storage": 5.0})


def dstack(market: Market, service: Service, job: Job) -> Iterator[Row]:
    """The cheapest an hour of what fits (`core/backends/vastai/compute.py` and gpuhunt's conditions)."""
    conditions: Mapping[str, Any] = {
        "direct_port_count": {"gte": 1},
        "reliability2": {"gte": 0.9},
        "inet_down": {"gt": 128},
        "cuda_max_good": {"gte": 12.8},
        "compute_cap": {"gte": 600},
        "gpu_ram": {"gte": job.wanted.vram_gb * 1000},
        "disk_space": {"gte": job.wanted.disk_gb},
        "num_gpus": {"eq": 1},
    }
    yield from service.search({**conditions, "order": [["dph_total", "asc"]], "allocated_storage": job.wanted.disk_gb})


RULES: Mapping[str, Rule] = {"ours": ours, "SkyPilot": skypilot, "dstack": dstack}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule came to in one market."""

    expected: float
    simulated: float
    machines: int
    hours: float


def outcome(rule: Rule, market: Market, service: Service, job: Job) -> Outcome | None:
    """Take machines by a rule until one has done the job; None if none of them did."""
    expected, paid, hours = 0.0, 0.0, 0.0
    for number, row in enumerate(rule(market, service, job), 1):
        if number == 1:
            expected = float(_estimate(row, job))
        cost, took, done = _rental(market, row, job)
        paid, hours = paid + cost, hours + took
        if done:
            return Outcome(expected, paid, number, hours)
        if number == _MORE:
            break
    return None


def _estimate(row: Row, job: Job) -> float:
    known = offer(row, disk_gb=disk_to_rent(job.wanted.disk_gb), spot=False, speeds={})
    assert known is not None
    return float(expected_cost(known, job.run))


def _rental(market: Market, row: Row, job: Job) -> tuple[float, float, bool]:
    """Return what renting it costs, $, how long it takes, hours, and whether the job was done."""
    machine = market.truth(row)
    disk = disk_to_rent(job.wanted.disk_gb) * row["storage_cost"] / _MONTH_H
    if machine.broken and not machine.usable_look:
        return disk * _GIVEN_UP_S / 3600, _GIVEN_UP_S / 3600, False
    boot = machine.boot_s / 3600
    if machine.broken:
        return disk * boot + (row["dph_base"] + disk) * (_LOOK_S + _TAIL_S) / 3600, boot + _LOOK_S / 3600, False
    moving = 8000 * (job.run.gb_in + job.run.gb_out) / min(machine.mbit, _UPLINK_MBIT) / 3600
    work = job.run.hours / machine.speed + moving
    lasts = row["duration"] / 3600 - boot
    ran = min(work, lasts)  # the provider stops it when the offer ends, and all of it is to do again
    share = ran / work
    traffic = (job.run.gb_in * row["inet_down_cost"] + job.run.gb_out * row["inet_up_cost"]) * min(1.0, share)
    paid = disk * boot + (row["dph_base"] + disk) * (ran + _TAIL_S / 3600) + traffic
    return paid, boot + ran, ran == work


def compare(markets: int, job: Job) -> dict[str, list[Outcome]]:
    """Return each rule's outcomes, in the markets where every rule finds a machine."""
    found: dict[str, list[Outcome]] = {name: [] for name in RULES}
    for seed in range(markets):
        market = Market(seed)
        service = Service(market.rows)
        each = {name: outcome(rule, market, service, job) for name, rule in RULES.items()}
        if all(each.values()):
            for name, came in each.items():
                assert came is not None
                found[name].append(came)
    return found


def row_of(job: Job, name: str, outcomes: Sequence[Outcome], best: Sequence[Outcome]) -> str:
    """Return a line of the table; ``best`` are ours."""
    mean = statistics.fmean
    simulated, reference = mean(o.simulated for o in outcomes), mean(o.simulated for o in best)
    dearer = statistics.fmean(one.simulated > other.simulated * 1.000001 for one, other in zip(outcomes, best, strict=True))
    ratio = "" if name == "ours" else f"×{simulated / reference:.2f}, dearer in {dearer:.0%}"
    return (
        f"| {job.name if name == 'ours' else ''} | {name} | {mean(o.expected for o in outcomes):.3f} | {simulated:.3f} | {ratio} "
        f"| {mean(o.machines for o in outcomes):.2f} | {mean(o.hours for o in outcomes):.1f} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.choosing", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--markets", type=int, default=1000)
    markets = parser.parse_args().markets
    print("| job | rule | expected $ | simulated $ | against ours | machines rented | hours |\n|---|---|---|---|---|---|---|")
    for job in JOBS:
        found = compare(markets, job)
        for name, outcomes in found.items():
            print(row_of(job, name, outcomes, found["ours"]), flush=True)
        print(f"| | | | | {len(found['ours'])} of {markets} markets | | |", flush=True)


if __name__ == "__main__":
    main()
