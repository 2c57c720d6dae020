"""Finds tools and scripts (folders), driver profiles (files) and drivers (entry points), and says what there is.

Searched are the folders that are given, then ``tools/``, ``scripts/`` and ``drivers/`` of the project (the current folder), of the
user's configuration and of the package. Nothing shadows anything: what is found twice is refused with both places. Rules for editing:
importing this and listing names must stay cheap; YAML, schemas and drivers are loaded when one is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_trainer.errors import ConfigError, Conflict, Fault, NotFound, RecipeError
from remote_trainer.model import Resources, Strategy

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from remote_trainer.ports import Driver, DriverSettings
    from remote_trainer.recipe.recipe import Recipe

DRIVER_GROUP = "remote_trainer.drivers"
_RECIPE_FILE = "tool.yaml"
#: What the numbers and words of a profile's limits and provision are.
_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "max_hours": float,
    "max_cost": lambda cost: Decimal(str(cost)),
    "max_attempts": int,
    "strategy": Strategy,
    "race": int,
    "spot": bool,
    "max_evictions": int,
    "bid_margin": lambda margin: Decimal(str(margin)),
    "raise_bid": bool,
    "min_mbit": float,
}
#: What is never shipped with a tool; as shutil.copytree takes it.
LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".DS_Store", ".*_cache")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that was found: its recipe is not read yet."""

    name: str
    version: int
    file: Path  # its tool.yaml

    @property
    def ref(self) -> str:
        """Return ``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A named configuration of a driver, or a list of them; ``file`` is None for a driver used by its own name."""

    name: str
    driver: str  # empty for a list
    members: tuple[str, ...] = ()  # of a list: the profiles, first choice first
    description: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    limits: Mapping[str, Any] = field(default_factory=dict)  # fields of model.Limits that a job takes if it names none
    provision: Mapping[str, Any] = field(default_factory=dict)  # likewise of model.Provision
    file: Path | None = None


def bundled() -> Path:
    """Return the folder with the tools, scripts and drivers that come with the package."""
    package = Path(__file__).resolve().parent
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parent


def search_path(kind: str, extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Return the folders of a kind (tools, scripts, drivers), each once: in a checkout the project is the package's place too."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    standard = (Path.cwd(), Path(config).expanduser() / "remote-trainer", bundled())
    candidates = [*extra, *(base / kind for base in standard)]
    return tuple(dict.fromkeys(path.expanduser().resolve() for path in candidates if path.expanduser().is_dir()))


# --------------------------------------------------------------------------------------------------------------- tools


def find_tools(extra: Sequence[Path] = ()) -> tuple[Tool, ...]:
    """Return all tools by name and version. Conflict if one is there twice."""
    found = _tools(extra)
    for first, second in pairwise(found):
        if first.ref == second.ref:
            raise _twice("tool", first.ref, first.file, second.file)
    return found


def find_tool(ref: str, extra: Sequence[Path] = ()) -> Path:
    """Return the tool.yaml of ``name@version``, or of the newest version of ``name``. NotFound, or Conflict if it is there twice."""
    name, at, version = ref.partition("@")
    found = _tools(extra)
    named = [tool for tool in found if tool.name == name]
    if not named:
        raise _unknown("tool", name, list(dict.fromkeys(tool.name for tool in found)), search_path("tools", extra))
    wanted = version if at else str(named[-1].version)
    matching = [tool for tool in named if str(tool.version) == wanted]
    if not matching:
        raise NotFound(f"there is no version {version!r} of the tool {name}; there are: {', '.join(tool.ref for tool in named)}")
    if len(matching) > 1:
        raise _twice("tool", matching[0].ref, matching[0].file, matching[1].file)
    return matching[0].file


def find_scripts(name: str, extra: Sequence[Path] = ()) -> Path:
    """Return a file or folder of the scripts. NotFound, or Conflict if it is there twice."""
    folders = search_path("scripts", extra)
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        known = sorted({path.name for folder in folders for path in _children(folder)})
        raise _unknown("script", name, known, folders)
    if len(found) > 1:
        raise _twice("script", name, found[0], found[1])
    return found[0]


def tool_files(recipe: Recipe) -> dict[str, Path]:
    """Return what a tool ships: name in ``$RT_TOOL`` → file or folder here. NotFound for what is not there."""
    return {Path(name).name: _tool_file(name, Path(recipe.file).parent) for name in recipe.files}


def copy_tool_files(recipe: Recipe, target: Path) -> None:
    """Copy what a tool ships into a new folder, without caches: the tree that becomes the input "tool"."""
    files = tool_files(recipe)
    target.mkdir(parents=True)
    for name, path in files.items():
        if path.is_dir():
            shutil.copytree(path, target / name, ignore=LITTER)
        else:
            shutil.copy2(path, target / name)


def validate_tool(path: Path) -> list[Fault]:
    """Return everything wrong with the recipe at a path (tool.yaml or its folder), the files it ships included."""
    from remote_trainer.recipe.load import load_recipe, validate

    file = path / _RECIPE_FILE if path.is_dir() else path
    return validate(file) or _file_faults(load_recipe(file))


def _tools(extra: Sequence[Path]) -> tuple[Tool, ...]:
    found = [
        Tool(folder.name, int(version.name), version / _RECIPE_FILE)
        for root in search_path("tools", extra)
        for folder in _children(root)
        for version in _children(folder)
        if version.name.isascii() and version.name.isdigit() and (version / _RECIPE_FILE).is_file()
    ]
    return tuple(sorted(found, key=lambda tool: (tool.name, tool.version)))


def _tool_file(name: str, folder: Path) -> Path:
    first, _, rest = name.partition("/")
    if first == "scripts" and rest:
        return find_scripts(rest)
    if not (folder / name).exists():
        raise NotFound(f"{folder / name} is not there")
    return folder / name


def _file_faults(recipe: Recipe) -> list[Fault]:
    faults: list[Fault] = []
    seen: set[str] = set()
    for index, name in enumerate(recipe.files):
        pointer, last = f"/files/{index}", Path(name).name
        try:
            _tool_file(name, Path(recipe.file).parent)
        except (NotFound, Conflict) as error:
            faults.append(recipe.fault(pointer, str(error)))
        if last in seen:
            faults.append(recipe.fault(pointer, f"another file is called {last!r} in $RT_TOOL already"))
        seen.add(last)
    return faults


# ------------------------------------------------------------------------------------------------------------- drivers


def driver_names() -> tuple[str, ...]:
    """Return the names of all installed drivers; none is imported."""
    return tuple(sorted({point.name for point in _entry_points()}))


def make_driver(name: str, options: Mapping[str, Any], settings: DriverSettings) -> Driver:
    """Import a driver and make one. NotFound; Conflict if two packages bring it; ConfigError for bad options or missing parts."""
    driver: Driver = _driver_class(name)(options, settings)
    return driver


def load_drivers() -> None:
    """Import every installed driver, so that no job waits for it. One that cannot be imported is told when a job asks for it."""
    for name in driver_names():
        with contextlib.suppress(ConfigError, Conflict):
            _driver_class(name)


def driver_options(name: str) -> Mapping[str, Any]:
    """Return the JSON Schemas of a driver's options, by name. Raises as ``make_driver``."""
    schema: Mapping[str, Any] = _driver_class(name).option_schema.get("properties", {})
    return schema


def read_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with what was written as text in the type that the driver wants. Raises as ``make_driver``.

    Text that cannot be read so is left as it is: the driver says what is wrong with it.
    """
    schemas = driver_options(name)
    return {key: _typed(value, schemas.get(key, {})) for key, value in given.items()}


def _typed(value: Any, schema: Mapping[str, Any]) -> Any:
    kind = schema.get("type", "string")
    if not isinstance(value, str) or kind == "string":
        return value
    if kind == "array":
        return [_typed(part.strip(), schema.get("items", {})) for part in value.split(",") if part.strip()]
    try:
        return json.loads(value)
    except ValueError:
        return value


def _driver_class(name: str) -> Any:
    points = [point for point in _entry_points() if point.name == name]
    if not points:
        raise _unknown("driver", name, driver_names())
    if len({point.value for point in points}) > 1:
        raise Conflict(f"the driver {name} is brought by two packages, {points[0].value} and {points[1].value}: uninstall one")
    try:
        return points[0].load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"the driver {name} ({points[0].value}) cannot be loaded: {error}; is its extra installed?") from error


def find_profiles(extra: Sequence[Path] = ()) -> tuple[Profile, ...]:
    """Return every profile, and every driver without one. Conflict if a name is there twice; RecipeError for a bad file."""
    names = {file.stem for file in _profile_files(extra)} | set(driver_names())
    return tuple(find_profile(name, extra) for name in sorted(names))


def find_profile(name: str, extra: Sequence[Path] = ()) -> Profile:
    """Return the profile of that name, or the bare driver. NotFound; Conflict if two files have it; RecipeError if it is bad."""
    every = _profile_files(extra)
    files = [file for file in every if file.stem == name]
    if len(files) > 1:
        raise _twice("driver profile", name, files[0], files[1])
    if files:
        return _read_profile(name, files[0])
    if name in driver_names():
        return Profile(name=name, driver=name)
    known = sorted({*(file.stem for file in every), *driver_names()})
    raise _unknown("driver or profile", name, known, search_path("drivers", extra))


def find_one(name: str, extra: Sequence[Path] = ()) -> Profile:
    """Return a profile of one driver. Raises as ``find_profile``, and for a list."""
    profile = find_profile(name, extra)
    if profile.members:
        raise ConfigError(f"{name} is a list of driver profiles: name one of {', '.join(profile.members)}")
    return profile


def find_places(names: str, extra: Sequence[Path] = ()) -> tuple[Profile, ...]:
    """Return the profiles that ``a,b,c``, or the name of a list, stands for, each of one driver. Raises as ``find_profile``."""
    found: list[Profile] = []
    for name in filter(None, map(str.strip, names.split(","))):
        profile = find_profile(name, extra)
        members = [find_profile(member, extra) for member in profile.members] or [profile]
        for member in members:
            if member.members:
                raise ConfigError(f"the driver list {profile.name} names {member.name}, which is a list itself: name its members")
        found += members
    if not found:
        raise ConfigError("no driver is named: remote-trainer drivers list shows what there is")
    return tuple(found)


def _profile_files(extra: Sequence[Path]) -> list[Path]:
    files = [file for folder in search_path("drivers", extra) for file in _children(folder)]
    return [file for file in files if file.suffix == ".yaml" and file.is_file()]


def _read_profile(name: str, file: Path) -> Profile:
    from remote_trainer.recipe.load import read_limited
    from remote_trainer.recipe.schema import schema_faults
    from remote_trainer.recipe.source import read_source

    source = read_source(read_limited(file), str(file))
    faults = [*source.faults, *(schema_faults(source, "profile.schema.json") if source.data is not None else ())]
    if faults:
        raise RecipeError(f"the driver profile {file} cannot be used:", tuple(faults))
    data = dict(source.data)
    driver = data.pop("driver")
    members = tuple(driver) if isinstance(driver, list) else ()
    limits = {key: _KINDS[key](value) for key, value in data.pop("limits", {}).items()}
    provision = {key: _KINDS[key](value) for key, value in data.pop("provision", {}).items()}
    resources = Resources(**data.pop("resources", {}))
    return Profile(
        name=name, file=file, driver="" if members else driver, members=members,
        resources=resources, limits=limits, provision=provision, **data,
    )  # fmt: skip


def _entry_points() -> Sequence[EntryPoint]:
    return _entry_points_on(tuple(sys.path))


@cache
def _entry_points_on(path: tuple[str, ...]) -> Sequence[EntryPoint]:
    """Read what is installed once for each search path: a worker asks for each job that it takes."""
    from importlib.metadata import entry_points

    return sorted(entry_points(group=DRIVER_GROUP), key=lambda point: (point.name, point.value))


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _unknown(what: str, name: str, known: Collection[str], searched: Sequence[Path] = ()) -> NotFound:
    near = get_close_matches(name, known, n=1)
    meant = f" Did you mean {near[0]!r}?" if near else ""
    places = f" (searched: {', '.join(map(str, searched))})" if searched else ""
    return NotFound(f"there is no {what} {name!r}.{meant} There are: {', '.join(known) or 'none'}{places}")


def _twice(what: str, name: str, first: Path, second: Path) -> Conflict:
    return Conflict(f"the {what} {name} is there twice: {first} and {second}; remove or rename one")
