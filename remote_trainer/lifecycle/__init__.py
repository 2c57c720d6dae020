"""The life of a job as data, and the one function that moves it: ``decide(job, seen, now, policy, abilities)``.

Theory of operation. A worker that holds a job's lease repeats: observe, decide, save, perform. ``decide`` is pure and total: it is
given the saved job and what this worker has seen since it took the job, and returns the job as it should be saved plus the effects that
are wished for now. Wishes are repeated until ``Seen`` shows them fulfilled; nothing is remembered in between, so a crash costs one tick.

The one effect that is not repeated is ``Create``: it goes out only with the very decision that saves ``requested_at``, after that save;
the shell notes ``Seen.creating`` with it. Whoever finds ``requested_at`` saved and no instance looks for the label instead, and asks
anew only when the answers, or the provider, have shown that there is none (``visibility_lag_s`` over, complete listing, and the
provider's records where it keeps any). A race sends several requests with that decision, all under the attempt's label.

Cancelling: a wish that the store accepted ends in CANCELLED, whatever else happens, and what there is of artifacts is kept. (A wish
that arrives while the save that ends the job is on its way finds the job ended.)

Rules for editing: everything that moves a phase is in this file, and every move is in ``TRANSITIONS`` (``_move`` refuses others).
A new phase needs a row there, a function in ``_DECIDE``, a line in docs/lifecycle.md (generated: ``make docs``). Time is an argument;
deadlines come from saved timestamps. Never read "unknown" as "no".
"""

from __future__ import annotations

from collections.abc import Callable

from remote_trainer.lifecycle.machines import listed
from remote_trainer.lifecycle.renting import provisioning, queued, transferring
from remote_trainer.lifecycle.returning import releasing
from remote_trainer.lifecycle.rules import (
    TRANSITIONS,
    Decision,
    Moment,
    attempt_of,
    forget,
    job_of,
    label_of,
    prefix_of,
    standing,
)
from remote_trainer.lifecycle.running import executing, fetching
from remote_trainer.model import Job, Phase

__all__ = ["TRANSITIONS", "Decision", "Moment", "attempt_of", "decide", "forget", "job_of", "label_of", "listed", "prefix_of"]

_DECIDE: dict[Phase, Callable[[Job, Moment], Decision]] = {
    Phase.QUEUED: queued,
    Phase.PROVISIONING: provisioning,
    Phase.TRANSFERRING: transferring,
    Phase.EXECUTING: executing,
    Phase.FETCHING: fetching,
    Phase.RELEASING: releasing,
}


def decide(job: Job, moment: Moment) -> Decision:
    """Return the next state of a job and what to do about it. Pure and total."""
    if job.phase.terminal:
        return Decision(job=job)
    if moment.seen.broken and job.phase not in (Phase.QUEUED, Phase.RELEASING):
        return standing(job, moment)
    return _DECIDE[job.phase](job, moment)
