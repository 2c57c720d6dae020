"""Following a job until it ends, or until the user has had enough of watching.

Ctrl-C detaches: it says how to come back and how to cancel, and waits two seconds for a second one, which cancels the job. After that
the job is followed to its end; one more leaves at once.

Rules for editing: leaving never touches the job, only a second Ctrl-C does, and that is always said.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer

from remote_trainer.cli import out
from remote_trainer.cli.guard import INTERRUPTED
from remote_trainer.cli.views import PlainView, SilentView, View

if TYPE_CHECKING:
    from remote_trainer.model import JobId
    from remote_trainer.service.app import App
    from remote_trainer.service.jobs import Snapshot

#: A second Ctrl-C within that time cancels the job, seconds.
SECOND_WITHIN_S = 2.0
#: A job still queued after that time makes us ask whether a worker runs, seconds.
_UNSERVED_S = 10.0


def choose_view(*, as_json: bool) -> View:
    """Return the view for this stdout."""
    if as_json:
        return SilentView()
    if not out.is_terminal():
        return PlainView()
    from remote_trainer.cli.live import LiveView

    return LiveView()


async def follow(app: App, job_id: JobId, view: View) -> Snapshot:
    """Show the job until it has ended and return what it came to. Raises Exit(130) when the user left before."""
    watching = asyncio.create_task(_watch(app, job_id, view), name="watch")
    worried = asyncio.create_task(_worry(app, job_id, view), name="worry")
    try:
        with Interrupts() as interrupts:
            if not await _unless_interrupted(watching, interrupts):
                await _detach_or_cancel(app, job_id, view, interrupts)
                if not await _unless_interrupted(watching, interrupts):
                    view.close()
                    out.problem(f"left; the cancelled job goes on ending: remote-trainer show {job_id}")
                    raise typer.Exit(INTERRUPTED)
        return watching.result()
    finally:
        for task in (watching, worried):
            task.cancel()
        await asyncio.gather(watching, worried, return_exceptions=True)
        view.close()


class Interrupts:
    """Counts what Ctrl-C sends, instead of letting it end the program."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[None] = asyncio.Queue()

    def __enter__(self) -> Self:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._waiting.put_nowait, None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    async def next(self) -> None:
        """Return at the next Ctrl-C that nobody has been told of."""
        await self._waiting.get()


async def _watch(app: App, job_id: JobId, view: View) -> Snapshot:
    from remote_trainer.service import jobs

    async with aclosing(jobs.follow_job(app, job_id)) as seen:
        async for each in seen:
            if isinstance(each, jobs.LogPiece):
                view.log(each)
                continue
            view.state(each)
            if each.job.phase.terminal:
                return each
    raise AssertionError("the feed of a job ended before the job")


async def _worry(app: App, job_id: JobId, view: View) -> None:
    """Say that a worker must run if nobody takes the job."""
    from remote_trainer.service import background, jobs

    await asyncio.sleep(_UNSERVED_S)
    job = await jobs.get_job(app, job_id)
    if not job.attempts and not job.phase.terminal:
        view.say(background.unserved(app))


async def _unless_interrupted(watching: asyncio.Task[Snapshot], interrupts: Interrupts) -> bool:
    """Wait for the end of the watching; return whether it came before the next Ctrl-C."""
    asked = asyncio.create_task(interrupts.next(), name="interrupt")
    done, _ = await asyncio.wait({watching, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    return watching in done


async def _detach_or_cancel(app: App, job_id: JobId, view: View, interrupts: Interrupts) -> None:
    """Tell how to come back; raise Exit unless a second Ctrl-C cancels the job."""
    from remote_trainer.service import jobs

    view.close()
    out.problem(
        f"\ndetached: job {job_id} goes on.\n"
        f"  watch it   remote-trainer logs -f {job_id}   or   remote-trainer wait {job_id}\n"
        f"  cancel it  remote-trainer cancel {job_id}   (or Ctrl-C again within {SECOND_WITHIN_S:g} s)"
    )
    try:
        async with asyncio.timeout(SECOND_WITHIN_S):
            await interrupts.next()
    except TimeoutError:
        raise typer.Exit(INTERRUPTED) from None
    await jobs.cancel(app, job_id)
    out.problem(f"cancelling job {job_id}; what it has made so far is kept. Ctrl-C leaves without waiting.")
    view.open()
