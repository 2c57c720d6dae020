"""Arguments and options that several commands share, and what their texts mean.

Rules for editing: an option means the same wherever it is found.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from remote_trainer.errors import UsageError

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id, the beginning of it, or its name")]
Tool = Annotated[str, typer.Option("--tool", metavar="NAME[@VERSION]", help="What is to run (remote-trainer tools list)")]
Dataset = Annotated[str | None, typer.Option("--dataset", metavar="DIR", help="A folder, an archive, or s3://bucket/prefix")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of words")]
Detach = Annotated[bool, typer.Option("--detach", help="Return as soon as the job is queued, with its id")]
Host = Annotated[str | None, typer.Option("--host", metavar="USER@BOX[:PORT]", help="The machine, for --driver ssh")]
DriverOption = Annotated[
    list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help="An option of the driver; may be repeated")
]

Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the tool; may be repeated")]
Presets = Annotated[
    str | None, typer.Option("--presets", metavar="FILE", help="A file of presets in place of the tool's own (docs/tools.md)")
]
MaxCost = Annotated[str | None, typer.Option("--max-cost", metavar="USD", help="Stop before it costs more; 0: no cap")]


def source(dataset: str | None) -> str | None:
    """Return where a dataset is: a path in this machine's manner, or an address."""
    return str(Path(dataset)) if dataset and "://" not in dataset else dataset


def driver_options(host: str | None, options: Sequence[str] | None) -> dict[str, str]:
    """Return a driver's options from ``--host`` and ``--option``. UsageError lists what is not of the form key=value."""
    pairs = [option.partition("=") for option in options or ()]
    wrong = [f"{key!r}" for key, equals, _ in pairs if not equals or not key]
    if wrong:
        raise UsageError(f"--option takes key=value, not {', '.join(wrong)}")
    found = {key.strip(): value for key, _, value in pairs}
    return {**found, "host": host} if host is not None else found


def terms(*, strategy: str | None, spot: bool | None, race: int | None) -> dict[str, Any]:
    """Return how machines are to be got, as far as it was said. UsageError for an unknown strategy."""
    from remote_trainer.model import Strategy

    found: dict[str, Any] = {key: value for key, value in (("spot", spot), ("race", race)) if value is not None}
    if strategy is not None:
        try:
            found["strategy"] = Strategy(strategy)
        except ValueError:
            raise UsageError(f"--strategy takes {', '.join(Strategy)}, not {strategy!r}") from None
    return found


def money(text: str | None) -> Decimal | None:
    """Return an amount of US dollars. UsageError for anything else."""
    if text is None:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise UsageError(f"--max-cost takes an amount of US dollars such as 12.50, not {text!r}")
    return amount
