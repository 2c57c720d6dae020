"""A simulated Vast.ai whose instances are OpenSSH servers on this machine, for installations that rent from it.

Rules for editing: whoever uses it ends with an account on which nothing is alive; that is looked at when the block is left in peace.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from remote_trainer.testing.vast import demo
from remote_trainer.testing.vast.local import LocalMachines
from remote_trainer.testing.vast.server import SimVast
from tests.support.sshtarget import SshTarget

#: What the driver has to know of it.
OPTIONS: Mapping[str, Any] = {"user": getpass.getuser(), "visibility_lag_s": 1}


@contextmanager
def vast_here(folder: Path, offers: int = 6, **options: Any) -> Iterator[SimVast]:
    """A service with so many offers, numbered from 100 and hardly dearer each; this process and its workers have its key."""
    machines = folder / "instances"
    rows = [demo.offer(number, dph_base=0.3 + number / 10_000) for number in range(100, 100 + offers)]
    with pytest.MonkeyPatch.context() as patch, SimVast(rows, machines=LocalMachines(machines), **options) as sim:
        patch.setenv("VAST_URL", sim.url)
        patch.setenv("VAST_API_KEY", sim.key)
        yield sim
    assert sim.record.alive() == []
    assert not any(path.is_dir() for path in machines.iterdir())


def nowhere(folder: Path) -> SshTarget:
    """The host of an installation that rents all its machines."""
    return SshTarget(folder, "127.0.0.1", 1, getpass.getuser())
