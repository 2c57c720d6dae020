"""``remote-trainer drivers``: where jobs can run, and whether it answers.

Rules for editing: no driver is named here.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from remote_trainer.cli import options, out
from remote_trainer.cli.options import DriverOption, Host, Json


def register(app: typer.Typer) -> None:
    """Add the noun and its verbs."""
    group = typer.Typer(help="Where jobs can run: list and check drivers and their profiles.", no_args_is_help=True)
    group.command("list")(list_drivers)
    group.command("check")(check)
    app.add_typer(group, name="drivers")


def list_drivers(as_json: Json = False) -> None:
    """List what --driver takes: profiles, and drivers by their own names."""
    from remote_trainer import plugins
    from remote_trainer.config import load

    profiles = plugins.find_profiles(load().drivers_path)
    if as_json:
        rows = [{"name": p.name, "driver": p.driver, "description": p.description, "file": str(p.file or "")} for p in profiles]
        out.document({"drivers": rows})
    else:
        out.table(("name", "driver", "description"), [(p.name, p.driver, p.description) for p in profiles])


def check(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A driver or profile (remote-trainer drivers list)")],
    host: Host = None,
    option: DriverOption = None,
    as_json: Json = False,
) -> None:
    """Connect and say what answers: credentials, host key, a folder that can be written."""
    from remote_trainer import plugins
    from remote_trainer.config import load

    settings = load()
    profile = plugins.find_profile(name, settings.drivers_path)
    given = {**profile.options, **options.driver_options(host, option)}

    async def work() -> str:
        driver = plugins.make_driver(profile.driver, given, settings.driver_settings)
        try:
            return await driver.check()
        finally:
            await driver.close()

    answer = asyncio.run(work())
    if as_json:
        out.document({"name": name, "driver": profile.driver, "ok": True, "answer": answer})
    else:
        out.line(answer)
