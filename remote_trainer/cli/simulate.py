"""``remote-trainer sim-vast``: a simulated Vast.ai on this machine, for trying out what would cost money.

Rules for editing: thin; the service itself is ``remote_trainer.testing.vast``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from remote_trainer.cli import out
from remote_trainer.cli.options import Json
from remote_trainer.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sim-vast")(sim_vast)


def sim_vast(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1; 0: any that is free")] = 0,
    offers: Annotated[
        Path | None, typer.Option("--offers", metavar="FILE", help="Offers as JSON, a list of rows; default: a made-up market")
    ] = None,
    boot_s: Annotated[float, typer.Option("--boot", metavar="SECONDS", min=0, help="How long an instance takes to run")] = 1.0,
    speed: Annotated[float, typer.Option("--speed", min=0.1, help="How much faster than real time money and time run")] = 1.0,
    limits: Annotated[bool, typer.Option("--limits", help="Keep the published limits of requests")] = False,
    as_json: Json = False,
) -> None:
    """Run a simulated Vast.ai until Ctrl-C: made-up money, and instances that are OpenSSH servers on this machine."""
    import signal
    import tempfile
    import threading

    from remote_trainer.testing.vast.clock import RunningClock
    from remote_trainer.testing.vast.instances import Timings
    from remote_trainer.testing.vast.local import LocalMachines
    from remote_trainer.testing.vast.server import SimVast

    rows = _rows(offers) if offers is not None else None
    slow = boot_s * speed  # as long for a watcher, however fast the time runs
    timings = Timings(
        scheduled_s=slow * 0.1, created_s=slow * 0.1, loading_s=slow * 0.8, reboot_s=slow * 0.5, destroy_s=slow * 0.2
    )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with tempfile.TemporaryDirectory(prefix="sim-vast-") as folder:
        machines = LocalMachines(Path(folder))
        with SimVast(rows, port=port, machines=machines, clock=RunningClock(speed), timings=timings) as sim:
            sim.account.limits.on = limits
            _tell(sim.url, sim.key, machines.user, as_json)
            ended.wait()


def _rows(file: Path) -> list[dict[str, Any]]:
    import json

    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"the offers in {file} cannot be read: {error}") from error
    rows = rows.get("offers") if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) and isinstance(row.get("id"), int) for row in rows):
        raise UsageError(f"{file} holds no list of offers, each an object with an id")
    from remote_trainer.testing.vast import demo

    return [{**demo.offer(row["id"]), **row} for row in rows]


def _tell(url: str, key: str, user: str, as_json: bool) -> None:
    if as_json:
        return out.record({"VAST_URL": url, "VAST_API_KEY": key, "user": user})
    # The key opens nothing but this simulation: it is shown on purpose.
    return out.harmless(
        f"""\
export VAST_URL={url}
export VAST_API_KEY={key}

In another terminal, with these two lines:
  remote-trainer drivers check vastai
  run-training --tool hello@1 --driver vastai --option user={user} --option visibility_lag_s=0 --max-cost 1 --dataset DIR
  curl -s $VAST_URL/admin/record/       what happened, what is alive, what it has cost
  curl -s $VAST_URL/admin/faults/       everything that can go wrong, by name
  curl -s $VAST_URL/admin/faults/ -d '{{"name": "create-dropped"}}'

A spot machine (--spot), and its eviction while it runs:
  curl -s $VAST_URL/admin/faults/ -d '{{"name": "run-outbid"}}'

Instances run as {user} on this machine, without a sandbox. Ctrl-C ends them all.
"""
    )
