"""When outputs and metrics of a running job are collected."""

import asyncio

import pytest

from remote_trainer.ports import Heartbeat
from remote_trainer.worker.news import News
from tests.support.patience import PATIENCE_S


def beat(metrics: int, outputs: str) -> Heartbeat:
    return Heartbeat(0, metrics, outputs)


async def test_a_silent_job_is_left_alone() -> None:
    """Heartbeats of a job that makes no files ask for nothing."""
    news = News()
    for _ in range(3):
        news.hear(beat(0, ""))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await news.wait()


async def test_grown_metrics_are_read_once() -> None:
    """One reading for each growth; outputs that are the same are not listed for it."""
    news = News()
    news.hear(beat(10, ""))
    new = await news.wait()
    assert (new.metrics, new.outputs) == (True, False)
    news.collected(new)
    news.hear(beat(10, ""))
    news.hear(beat(30, ""))
    new = await news.wait()
    assert (new.beat.metrics, new.metrics, new.outputs) == (30, True, False)


async def test_changed_outputs_are_collected_until_they_have_settled() -> None:
    """A file that was too young for the first round is there for the next: after a heartbeat without a change nothing is left."""
    news = News(settles_s=0)
    news.hear(beat(0, "a"))
    first = await news.wait()
    news.collected(first)
    assert (first.outputs, first.settled) == (True, False)
    news.hear(beat(0, "a"))
    second = await news.wait()
    news.collected(second)
    assert (second.outputs, second.settled) == (True, True)
    news.hear(beat(0, "a"))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await news.wait()


async def test_a_heartbeat_that_comes_soon_settles_nothing() -> None:
    """What is heard of every second is collected until the last change is as old as a file must be, however often it is heard of."""
    news = News(settles_s=3600)
    for _ in range(3):
        news.hear(beat(0, "a"))
        new = await news.wait()
        news.collected(new)
        assert (new.outputs, new.settled) == (True, False)


async def test_a_waiting_collector_is_woken() -> None:
    """News that come while somebody waits are handed on at once."""
    news = News()
    waiting = asyncio.create_task(news.wait())
    await asyncio.sleep(0)
    news.hear(beat(0, "a"))
    async with asyncio.timeout(PATIENCE_S):
        assert (await waiting).outputs
