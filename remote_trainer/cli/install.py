"""``remote-trainer doctor`` and ``version``: this installation.

Rules for editing: nothing is changed on the machine but that the embedded store is made where there is none.
"""

from __future__ import annotations

from typing import Annotated

import typer

from remote_trainer.cli import options, out, session
from remote_trainer.cli.options import DriverOption, Host, Json, Set
from remote_trainer.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("doctor")(doctor)
    app.command("version")(version)


def doctor(
    driver: Annotated[
        str | None, typer.Option("--driver", help="Also what this driver or profile needs (remote-trainer drivers list)")
    ] = None,
    tool: Annotated[
        str, typer.Option("--tool", metavar="NAME[@VERSION]", help="With --driver: what renting for this tool would cost now")
    ] = "",
    settings: Set = None,
    host: Host = None,
    option: DriverOption = None,
    as_json: Json = False,
) -> None:
    """Check programs, packages, settings, store, object store and disk, and a driver; say what is missing and for what. Rents nothing."""
    from remote_trainer.config import load
    from remote_trainer.service.doctor import examine, examine_driver
    from remote_trainer.service.submit import Order

    findings = session.wait_for(examine(load()))
    if driver is not None and not any(finding.ok is False for finding in findings if finding.question == "store"):
        order = Order(tool=tool, driver=driver, settings=settings or (), driver_options=options.driver_options(host, option))
        findings += session.run(lambda app: examine_driver(app, order))
    wrong = [finding.question for finding in findings if finding.ok is False]
    if as_json and not wrong:
        out.document({"findings": [{"question": f.question, "ok": f.ok, "answer": f.answer} for f in findings]})
    elif not as_json:
        marks = {True: "ok", False: "WRONG", None: "-"}
        out.table(("", "what", "found"), [(marks[finding.ok], finding.question, finding.answer) for finding in findings])
    if wrong:
        answers = "; ".join(f"{finding.question}: {finding.answer}" for finding in findings if finding.ok is False)
        raise ConfigError(f"this installation has faults: {answers}")


def version(as_json: Json = False) -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    number = installed("remote-trainer")
    if as_json:
        out.document({"version": number})
    else:
        out.line(number)
