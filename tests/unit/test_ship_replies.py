"""What a host answers while it takes data: bounded, as everything that it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_trainer.errors import HostError
from remote_trainer.model import Chunk, Input
from remote_trainer.worker.ship import _Errand, _Transfer
from remote_trainer.worker.way import Traffic, Way

GIVEN = Input(name="dataset", source="x", digest="d" * 64, size=1, files=1, chunks=(Chunk(sha256="0" * 64, size=1),))


class Babble:
    """A channel on which the host talks without ever ending a line."""

    heard = 0

    async def read(self, limit: int = 1 << 16) -> bytes:
        self.heard += 1000
        return b"o" * 1000


async def test_a_host_that_answers_without_end_does_not_fill_our_memory() -> None:
    """A line is short; whoever sends more of one is not believed."""
    depot = SimpleNamespace(transport=SimpleNamespace(address="host"))
    errand = _Errand(cast(Any, depot), "job", Way(Traffic(), "job"))
    transfer = _Transfer(errand, GIVEN, cast(Any, None), lambda done: None, set(), {})
    babble = Babble()
    with pytest.raises(HostError, match="host answers without end"):
        await transfer._hear(cast(Any, babble), set())
    assert babble.heard < 10_000
