"""``remote-trainer drivers``: where jobs can run, and whether it answers.

Rules for editing: no driver is named here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from remote_trainer.cli import options, out, session
from remote_trainer.cli.options import DriverOption, Host, Json
from remote_trainer.errors import UsageError

if TYPE_CHECKING:
    from remote_trainer.plugins import Profile


def register(app: typer.Typer) -> None:
    """Add the noun and its verbs."""
    group = typer.Typer(help="Where jobs can run: list and check drivers and their profiles.", no_args_is_help=True)
    group.command("list")(list_drivers)
    group.command("check")(check)
    app.add_typer(group, name="drivers")


def list_drivers(as_json: Json = False) -> None:
    """List what --driver takes, profiles and drivers by their own names, with their options."""
    from remote_trainer import plugins
    from remote_trainer.config import load

    rows = [_document(profile) for profile in plugins.find_profiles(load().drivers_path)]
    if as_json:
        out.document({"drivers": rows})
        return
    for row in rows:
        what = row["description"] or (f"driver {row['driver']}" if row["driver"] else "several")
        first_of = f" ({', '.join(row['members'])})" if row["members"] else ""
        out.line(f"{row['name']}: {what}{first_of}  {row['file']}".rstrip())
        for key, meaning in row["options"].items():
            preset = f" (preset: {out.value(row['preset'][key])})" if key in row["preset"] else ""
            out.line(f"    {key}: {meaning}{preset}")
        if row["fault"]:
            out.line(f"    {row['fault']}")


def _document(profile: Profile) -> dict[str, Any]:
    from remote_trainer import plugins

    options, fault = {}, None
    try:
        schemas = {} if profile.members else plugins.driver_options(profile.driver)
        options = {key: schema.get("description", "") for key, schema in schemas.items()}
    except UsageError as error:
        fault = str(error)
    return {
        "name": profile.name,
        "driver": profile.driver,
        "members": list(profile.members),
        "description": profile.description,
        "file": str(profile.file or ""),
        "preset": dict(profile.options),
        "options": options,
        "fault": fault,
    }


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
    profile = plugins.find_one(name, settings.drivers_path)
    given = plugins.read_options(profile.driver, {**profile.options, **options.driver_options(host, option)})

    async def work() -> str:
        driver = plugins.make_driver(profile.driver, given, settings.driver_settings)
        try:
            return await driver.check()
        finally:
            await driver.close()

    answer = session.wait_for(work())
    if as_json:
        out.document({"name": name, "driver": profile.driver, "ok": True, "answer": answer})
    else:
        out.line(answer)
