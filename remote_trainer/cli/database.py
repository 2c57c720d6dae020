"""``remote-trainer db``: the job store as a whole.

Rules for editing: nothing here knows which store it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from remote_trainer.cli import out, session
from remote_trainer.cli.options import Json

if TYPE_CHECKING:
    from remote_trainer.service.app import App


def register(app: typer.Typer) -> None:
    """Add the noun and its verbs."""
    group = typer.Typer(help="The job store: migrate and export it.", no_args_is_help=True)
    group.command("migrate")(migrate)
    group.command("export")(export)
    app.add_typer(group, name="db")


def migrate(as_json: Json = False) -> None:
    """Create or upgrade the store's tables and indexes. Safe to repeat."""
    from remote_trainer.service import database

    async def work(app: App) -> None:
        answer = await database.migrate(app)
        if as_json:
            out.document({"store": answer})
        else:
            out.line(answer)

    session.run(work)


def export(as_json: Json = False) -> None:
    """Print every record as JSON Lines: jobs, events, logs (base64) and metrics. (--json changes nothing.)"""
    from remote_trainer.service import database

    async def work(app: App) -> None:
        async for record in database.export(app):
            out.record(record)

    session.run(work)
