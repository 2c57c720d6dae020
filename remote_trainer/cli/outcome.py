"""What a command says when a job it waited for has ended, or when what it found is an error that carries more than words.

Rules for editing: an end that is not DONE is raised, so that its class gives the exit code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from remote_trainer.cli import documents, out
from remote_trainer.cli.lines import last_lines
from remote_trainer.errors import JobFailed, RemoteTrainerError

if TYPE_CHECKING:
    from remote_trainer.model import Job
    from remote_trainer.service.app import App
    from remote_trainer.service.jobs import Snapshot

_LAST_LINES = 20


async def tell(app: App, seen: Snapshot, *, as_json: bool, with_log: bool = True) -> None:
    """Print the result of an ended job; raises JobFailed or JobCancelled unless it is DONE."""
    from remote_trainer.service import jobs

    document = {
        **documents.job(seen.job, cost=seen.cost, elapsed_s=jobs.elapsed_s(seen.job, app.clock.now())),
        "metrics": dict(seen.values),
        "artifacts": documents.artifacts(seen.job),
    }
    try:
        jobs.raise_unless_done(seen.job)
    except JobFailed as error:
        if as_json:
            fail(error, {"job": document})
        await _explain(app, seen.job, with_log=with_log)
        raise
    if as_json:
        out.document({"job": document})
    else:
        _praise(seen, document)


def fail(error: RemoteTrainerError, document: Mapping[str, Any]) -> NoReturn:
    """Print an error as JSON with what is known all the same, and end with its exit code."""
    out.document(documents.failure(error, document))
    raise typer.Exit(error.exit_code) from error


def _praise(seen: Snapshot, document: dict[str, Any]) -> None:
    job = seen.job
    cost = f", cost ${seen.cost:.2f}" if seen.cost else ""
    out.line(
        f"done in {out.duration(document['elapsed_s'])}{cost}: {out.plural(len(document['artifacts']), 'artifact')}, verified"
    )
    show_artifacts(job)
    if document["artifacts"]:
        out.line(f"download with: remote-trainer artifacts {job.id} --download DIR")


async def _explain(app: App, job: Job, *, with_log: bool) -> None:
    from remote_trainer.service import jobs

    run = documents.current_run(job)
    if with_log and (lines := last_lines(await jobs.tail(app, job.id), _LAST_LINES)):
        out.problem(f"the last lines of {run.key if run else 'the log'}:")
        for text in lines:
            out.problem(f"  {text}")
    if run and run.exit_code:
        out.problem(f"step {run.key} ended with exit code {run.exit_code}")
    if kept := documents.artifacts(job):
        out.problem(f"{out.plural(len(kept), 'artifact')} kept: remote-trainer artifacts {job.id}")
    out.problem(f"whole log: remote-trainer logs {job.id}; once more: remote-trainer retry {job.id}")


def show_artifacts(job: Job) -> None:
    """Print the table of kept files."""
    rows = [(each["path"], out.size(each["size"]), each["kind"], each["sha256"][:16]) for each in documents.artifacts(job)]
    if rows:
        out.table(("artifact", "size", "kind", "sha256"), rows)
