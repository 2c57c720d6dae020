"""Following a host that falls silent."""

from __future__ import annotations

import asyncio

import pytest

from remote_trainer.errors import HostUnreachable
from remote_trainer.host import follow
from remote_trainer.host.follow import LogFollow
from tests.support.virtual import lived


class SilentChannel:
    """Says that the step runs, and then nothing any more."""

    def __init__(self) -> None:
        self.pings = 0
        self._words = [b"C n=1 | running size=0\n"]

    async def read_both(self, limit: int) -> tuple[bytes, bytes]:
        if self._words:
            return b"", self._words.pop()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def write(self, data: bytes) -> None:
        self.pings += 1


def test_silence_ends_a_follow() -> None:
    """Without a byte for too long the host counts as unreachable, whatever TCP believes; pings were sent meanwhile."""
    channel, every_s = SilentChannel(), 15.0

    async def life() -> None:
        with pytest.raises(HostUnreachable, match="said nothing for"):
            async with LogFollow(channel, "box", "train.1", 0).running(b"P\n", every_s) as following:  # type: ignore[arg-type]
                async for _ in following:
                    pass
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]

    lived(life())
    assert channel.pings > follow.SILENCE_S / every_s  # the silence is noticed in time for one more


async def test_a_cancel_of_the_reader_is_not_taken_for_silence() -> None:
    """Whoever is cancelled while following is cancelled."""

    async def forever() -> None:
        async with LogFollow(SilentChannel(), "box", "train.1", 0).running(b"P\n", 0.02) as following:  # type: ignore[arg-type]
            async for _ in following:
                pass

    task = asyncio.create_task(forever())
    while not (task.get_stack() and task.get_stack()[-1].f_code.co_name == "forever"):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
