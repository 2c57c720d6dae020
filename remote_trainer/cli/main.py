"""``remote-trainer``: everything about jobs but submitting them, and about the installation.

Rules for editing: a module for each noun adds its own commands; here they only get their order.
"""

from __future__ import annotations

from typing import NoReturn

import typer

from remote_trainer.cli import database, dataset, drivers, guard, install, jobs, ledger, offers, rented, simulate, tools, worker

app = typer.Typer(
    name="remote-trainer",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Jobs on rented and borrowed machines. A job is submitted with run-training.",
)
for noun in (worker, jobs, tools, drivers, offers, rented, ledger, dataset, install, database, simulate):
    noun.register(app)


def main() -> NoReturn:
    """Run ``remote-trainer``."""
    guard.run(app, "remote-trainer")
