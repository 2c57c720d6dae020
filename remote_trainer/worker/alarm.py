"""Tells a person what costs money and that nobody but a person may mend: once, and again every hour for as long as it lasts.

A line of the log, and the installation's own command with the message on its stdin. What it is about is found elsewhere; who finds it
rings as often as it likes.

Rules for editing: ringing never waits and never fails; the command gets no argument of ours, a bounded time, and its failure is logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from remote_trainer import log
from remote_trainer.model import Attempt, Job, Phase
from remote_trainer.ports import Clock

_log = log.get()

_AGAIN = timedelta(hours=1)
_COMMAND_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """What somebody must look at. Of one kind and subject is rung once an hour at most."""

    kind: str  # "unreturned", "unclaimed", "credit", "charges"
    subject: str  # an instance's label, a driver
    message: str  # what happened, to what, what to do
    data: tuple[tuple[str, Any], ...] = ()  # more of it, for programs


class Alarm:
    """The bell of one worker."""

    def __init__(self, clock: Clock, deployment: str, command: Sequence[str] = ()) -> None:
        self._clock, self._deployment, self._command = clock, deployment, tuple(command)
        self._rung: dict[tuple[str, str], datetime] = {}
        self._calls: set[asyncio.Task[None]] = set()

    def ring(self, cause: Cause) -> bool:
        """Tell of it, unless that was done within the last hour; returns whether it was done now."""
        now = self._clock.now()
        self._rung = {key: at for key, at in self._rung.items() if now - at < _AGAIN}
        if (cause.kind, cause.subject) in self._rung:
            return False
        self._rung[cause.kind, cause.subject] = now
        told = {"kind": cause.kind, "subject": cause.subject, "message": cause.message, **dict(cause.data)}
        _log.error("training.alarm", action="alarm", **told)
        if self._command:
            document = {"at": now.isoformat(), "deployment": self._deployment, **told}
            call = asyncio.create_task(self._call(json.dumps(document, default=str)), name="alarm command")
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return True

    async def _call(self, document: str) -> None:
        nothing = asyncio.subprocess.DEVNULL
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=nothing, stderr=nothing, start_new_session=True
            )
        except OSError as error:
            _log.error("training.alarm", action="alarm_command_failed", command=self._command[0], error=str(error))
            return
        try:
            async with asyncio.timeout(_COMMAND_S):
                await process.communicate(f"{document}\n".encode())
        except TimeoutError:
            _log.error("training.alarm", action="alarm_command_failed", command=self._command[0], error=f"took {_COMMAND_S:g} s")
        else:
            if process.returncode:
                _log.error(
                    "training.alarm", action="alarm_command_failed", command=self._command[0], exit_code=process.returncode
                )
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what it has left behind
            await process.wait()

    async def close(self) -> None:
        """Let commands that are under way come to their end."""
        await asyncio.gather(*self._calls, return_exceptions=True)


def unreturned(job: Job, now: datetime, after_s: float) -> Cause | None:
    """Return the alarm for a rented machine that should long be gone, None while all is well."""
    attempt = job.attempt
    if job.phase is not Phase.RELEASING or attempt is None or not _rented(attempt):
        return None
    waited_s = (now - attempt.releasing_at).total_seconds() if attempt.releasing_at else 0.0
    if waited_s < after_s:
        return None
    instance = attempt.instance.id if attempt.instance else ""
    return Cause(
        kind="unreturned",
        subject=attempt.label,
        message=(
            f"{f'instance {instance}' if instance else 'what may have been rented'} of job {job.id} ({attempt.label}) was to be given "
            f"back {waited_s / 60:.0f} min ago and is not observed gone: it may still cost money. Its end is asked for again and again; "
            "look at the provider's own list, and destroy it there"
        ),
        data=(("job", job.id), ("instance", instance), ("driver", job.places[attempt.place].driver), ("note", job.note)),
    )


def _rented(attempt: Attempt) -> bool:
    return attempt.requested_at is not None and not (attempt.instance is not None and attempt.instance.borrowed)
