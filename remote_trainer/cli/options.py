"""Arguments and options that several commands share, and what their texts mean.

Rules for editing: an option means the same wherever it is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from remote_trainer.errors import UsageError

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, the beginning of it, or its name")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words")]
Detach = Annotated[bool, typer.Option("--detach", help="Return as soon as the job is queued, with its id")]
Host = Annotated[str | None, typer.Option("--host", metavar="USER@BOX[:PORT]", help="The machine, for --driver ssh")]
DriverOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the driver; may be repeated")
]


def driver_options(host: str | None, options: Sequence[str] | None) -> dict[str, str]:
    """Return a driver's options from ``--host`` and ``--option``. UsageError lists what is not of the form key=value."""
    pairs = [option.partition("=") for option in options or ()]
    wrong = [f"{key!r}" for key, equals, _ in pairs if not equals or not key]
    if wrong:
        raise UsageError(f"--option takes key=value, not {', '.join(wrong)}")
    found = {key.strip(): value for key, _, value in pairs}
    return {**found, "host": host} if host is not None else found
