"""``remote-trainer worker``: the long-lived process that drives jobs.

Rules for editing: what it says goes to the log (stderr), structured; stdout stays empty but for ``--json``'s last word.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from remote_trainer.cli import out
from remote_trainer.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("worker")(worker)


def worker(
    max_jobs: Annotated[int | None, typer.Option("--max-jobs", min=1, help="Jobs to drive at the same time")] = None,
    until_idle: Annotated[
        float | None, typer.Option("--until-idle", metavar="SECONDS", min=0, help="End after so long without a job")
    ] = None,
    as_json: Json = False,
) -> None:
    """Drive jobs until SIGTERM or Ctrl-C; trainings on their hosts go on, and the next worker takes them over."""
    from remote_trainer import config, log
    from remote_trainer.service import background

    settings = config.load()
    log.configure(settings.log_level, "json" if as_json else settings.log_format)
    asyncio.run(background.serve(settings, until_idle_s=until_idle, max_jobs=max_jobs))
    if as_json:
        out.document({"stopped": True})
