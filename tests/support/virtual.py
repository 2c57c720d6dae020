"""Life in virtual time: hours pass in no time, and exactly, however busy the machine is."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from remote_trainer.testing.sim.loop import VirtualLoop


def lived(life: Coroutine[Any, Any, None]) -> None:
    """Run it in no time."""
    loop = VirtualLoop()  # type: ignore[abstract]
    try:
        loop.run_until_complete(life)
    finally:
        loop.close()
