"""A step's log on its way into the store and to a reader: whatever way it is cut, no byte and no character is lost or doubled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remote_trainer.cli.printing import LogPrinter
from remote_trainer.document import to_json
from remote_trainer.errors import HostUnreachable
from remote_trainer.model import Event, JobId, Pattern, Plan, StepState, Token
from remote_trainer.ports import Change, Ended, FollowItem, Heartbeat, Output, StepStatus
from remote_trainer.service.jobs import LogPiece
from remote_trainer.worker.clock import SystemClock
from remote_trainer.worker.follow import LogCopy
from remote_trainer.worker.writer import Writer

TEXT = "step 1/2 – größer ✓ 🙂\r\nloss=0.5\n".encode() * 3
ENDED = StepStatus(state=StepState.EXITED, exit_code=0, size=len(TEXT))


class Kept:
    """A store, as far as logs go: what is appended must begin where the log ends or before."""

    def __init__(self) -> None:
        self.log = bytearray()
        self.metrics: list[dict[str, float]] = []

    async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
        await asyncio.sleep(0)
        for change in changes:
            for chunk in change.logs:
                assert chunk.offset <= len(self.log), "a gap"
                self.log += chunk.data[len(self.log) - chunk.offset :]
            self.metrics += [dict(metric.values) for metric in change.metrics]
        return frozenset()


class Cut:
    """A follow that gives the log in these pieces from an offset on, and breaks after so many of them."""

    def __init__(self, offset: int, sizes: Sequence[int], breaks_after: int | None) -> None:
        self._offset, self._sizes, self._left = offset, sizes, breaks_after

    async def ack(self, offset: int) -> None:
        assert offset <= len(TEXT)

    async def __aiter__(self) -> AsyncIterator[FollowItem]:
        for size in [*self._sizes, len(TEXT)]:
            if self._left == 0:
                raise HostUnreachable("the connection broke")
            self._left = None if self._left is None else self._left - 1
            data = TEXT[self._offset : self._offset + size]
            self._offset += len(data)
            yield Output(data) if data else Heartbeat(self._offset)
        yield Ended(ENDED)


async def copied(cuts: Sequence[tuple[Sequence[int], int]]) -> Kept:
    """Copy the log through follows that break, and one that does not."""
    kept = Kept()
    writer = Writer(cast(Any, kept), SystemClock(), linger_s=0.0)
    writing = asyncio.create_task(writer.run())
    plan = Plan(tool="t@1", parameters={}, steps=(), patterns=(Pattern(regex=r"loss=(?P<loss>[0-9.]+)"),))
    try:
        for sizes, breaks_after in [*cuts, ((), None)]:
            copy = LogCopy(writer, JobId("j"), Token(1), "a1/s.1", plan, lambda: datetime.now(UTC))
            offset = len(kept.log)
            try:
                await copy.run(cast(Any, Cut(offset, sizes, breaks_after)), offset, bytes(kept.log[-4096:]), lambda _: None)
            except HostUnreachable:
                await writer.flush()
    finally:
        writing.cancel()
    return kept


_CUTS = st.lists(st.tuples(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 30)), max_size=4)


@given(_CUTS)
@settings(max_examples=60, deadline=None)
def test_a_log_that_is_cut_anywhere_arrives_byte_for_byte(cuts: list[tuple[list[int], int]]) -> None:
    """Pieces end within characters, connections break between any two of them; lines are read once and whole all the same."""
    kept = asyncio.run(copied(cuts))
    assert bytes(kept.log) == TEXT
    assert kept.metrics == [{"loss": 0.5}] * 3


@given(st.lists(st.integers(1, 9), max_size=100))
@settings(max_examples=60, deadline=None)
def test_characters_that_pieces_cut_are_printed_whole(sizes: list[int]) -> None:
    """The texts of a stream's pieces, put together, are the log's text."""
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("remote_trainer.cli.out.record", lambda row: printed.append(json.loads(json.dumps(row))["text"]))
        printer, offset = LogPrinter(as_json=True), 0
        for size in [*sizes, len(TEXT)]:
            printer.print(LogPiece(stream="a1/s.1", offset=offset, data=TEXT[offset : offset + size]))
            offset += size
    assert "".join(printed) == TEXT.decode()


async def test_what_cannot_be_written_is_one_jobs_trouble() -> None:
    """Words of somebody else's may hold half a character: the changes of other jobs are written, and the writer lives."""

    class Strict(Kept):
        async def save(self, changes: Sequence[Change]) -> frozenset[JobId]:
            for change in changes:
                for event in change.events:
                    to_json(event)
            return await super().save(changes)

    writer = Writer(cast(Any, Strict()), SystemClock(), linger_s=0.0)
    bad, good = (
        writer.put(Change(job_id=JobId(name), token=Token(1), events=(Event(at=datetime.now(UTC), kind="note", message=words),)))
        for name, words in (("a", "\udcff"), ("b", "fine"))
    )
    await writer.flush()
    await good
    with pytest.raises(ValueError, match="surrogates"):
        await bad
