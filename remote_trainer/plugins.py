"""Finds tools (folders), scripts (folders), driver profiles (files) and drivers (entry points), and says what there is.

One search path for all: an explicit folder, the project's, the user's configuration, the bundled one; each holds ``tools/``,
``scripts/`` and ``drivers/``. Nothing shadows anything: what is found twice is refused with both places. Rules for editing: importing
this and listing names must stay cheap; YAML, schemas and drivers are loaded when one is used.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from remote_trainer.errors import ConfigError, Conflict, Fault, NotFound, RecipeError
from remote_trainer.model import Limits, Resources

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from remote_trainer.ports import Driver
    from remote_trainer.recipe.recipe import Recipe

DRIVER_GROUP = "remote_trainer.drivers"
_RECIPE_FILE = "tool.yaml"
_LITTER = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", ".DS_Store", ".*_cache")


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that was found: its recipe is not read yet."""

    name: str
    version: int
    folder: Path

    @property
    def ref(self) -> str:
        """Return ``name@version``."""
        return f"{self.name}@{self.version}"

    @property
    def file(self) -> Path:
        """Return its tool.yaml."""
        return self.folder / _RECIPE_FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A named configuration of a driver; ``file`` is None for a driver used by its own name."""

    name: str
    driver: str
    description: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    limits: Limits = field(default_factory=Limits)
    file: Path | None = None


def search_path(*, explicit: Path | None = None, project: Path | None = None, config_dir: Path | None = None) -> tuple[Path, ...]:
    """Return the folders to search, in order, each once: in a checkout the project's and the bundled one are the same."""
    candidates = [explicit, project, config_dir, bundled()]
    return tuple(dict.fromkeys(path.resolve() for path in candidates if path is not None and path.is_dir()))


def bundled() -> Path:
    """Return the folder with the tools, scripts and drivers that come with the package."""
    package = Path(__file__).resolve().parent
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parent


class Plugins:
    """What there is on a search path."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(roots)

    # ------------------------------------------------------------------------------------------------------- tools

    def tools(self) -> tuple[Tool, ...]:
        """Return all tools by name and version. Conflict if one is there twice."""
        found = sorted(self._tools(), key=lambda tool: (tool.name, tool.version))
        for first, second in pairwise(found):
            if first.ref == second.ref:
                raise _twice("tool", first.ref, first.folder, second.folder)
        return tuple(found)

    def tool(self, ref: str) -> Tool:
        """Return ``name@version``, or the newest version of ``name``. NotFound, or Conflict if it is there twice."""
        name, at, version = ref.partition("@")
        every = list(self._tools())
        named = [tool for tool in every if tool.name == name]
        if not named:
            raise self._unknown("tool", name, sorted({tool.name for tool in every}))
        wanted = version if at else str(max(tool.version for tool in named))
        matching = [tool for tool in named if str(tool.version) == wanted]
        if not matching:
            versions = ", ".join(tool.ref for tool in sorted(named, key=lambda tool: tool.version))
            raise NotFound(f"there is no version {version!r} of the tool {name}; there are: {versions}")
        if len(matching) > 1:
            raise _twice("tool", matching[0].ref, matching[0].folder, matching[1].folder)
        return matching[0]

    def recipe(self, tool: Tool) -> Recipe:
        """Return a tool's checked recipe, its files found. RecipeError lists every fault."""
        from remote_trainer.recipe.load import load_recipe

        recipe = load_recipe(tool.file)
        faults = self._file_faults(recipe, tool.folder)
        if faults:
            raise RecipeError(f"the recipe {tool.file} ships files that are not there:", tuple(faults))
        return recipe

    def validate(self, path: Path) -> list[Fault]:
        """Return everything wrong with the recipe at a path (tool.yaml or its folder), the files it ships included."""
        from remote_trainer.recipe.load import load_recipe, validate

        file = path / _RECIPE_FILE if path.is_dir() else path
        return validate(file) or self._file_faults(load_recipe(file), file.parent)

    def files(self, recipe: Recipe, folder: Path) -> dict[str, Path]:
        """Return what the tool of a folder ships: name in ``$RT_TOOL`` → file or folder here. NotFound for what is not there."""
        return {Path(name).name: self._file(name, folder) for name in recipe.files}

    def copy_files(self, recipe: Recipe, folder: Path, target: Path) -> None:
        """Copy what the tool ships into a new folder, without caches: the tree that becomes the input "tool"."""
        target.mkdir(parents=True)
        for name, path in self.files(recipe, folder).items():
            if path.is_dir():
                shutil.copytree(path, target / name, ignore=_LITTER)
            else:
                shutil.copy2(path, target / name)

    def scripts(self, name: str) -> Path:
        """Return a folder of the scripts. NotFound, or Conflict if it is there twice."""
        found = [path for root in self.roots if (path := root / "scripts" / name).exists()]
        if not found:
            known = sorted(path.name for root in self.roots for path in _children(root / "scripts") if path.is_dir())
            raise self._unknown("scripts folder", name, known)
        if len(found) > 1:
            raise _twice("scripts folder", name, found[0], found[1])
        return found[0]

    def _tools(self) -> Iterator[Tool]:
        for root in self.roots:
            for folder in _children(root / "tools"):
                for version in _children(folder):
                    if version.name.isascii() and version.name.isdigit() and (version / _RECIPE_FILE).is_file():
                        yield Tool(folder.name, int(version.name), version)

    def _file(self, name: str, folder: Path) -> Path:
        prefix, _, rest = name.partition("/")
        if prefix == "scripts" and rest:
            return self.scripts(rest)
        path = folder / name
        if not path.exists():
            raise NotFound(f"{path} is not there")
        return path

    def _file_faults(self, recipe: Recipe, folder: Path) -> list[Fault]:
        faults, seen = [], set[str]()
        for index, name in enumerate(recipe.files):
            pointer = f"/files/{index}"
            try:
                self._file(name, folder)
            except (NotFound, Conflict) as error:
                faults.append(recipe.fault(pointer, str(error)))
            if Path(name).name in seen:
                faults.append(recipe.fault(pointer, f"another file is called {Path(name).name!r} in $RT_TOOL already"))
            seen.add(Path(name).name)
        return faults

    # ----------------------------------------------------------------------------------------------------- drivers

    def driver_names(self) -> tuple[str, ...]:
        """Return the names of all installed drivers; none is imported."""
        return tuple(sorted({point.name for point in _entry_points()}))

    def driver(self, name: str) -> type[Driver]:
        """Import a driver's class. NotFound, Conflict if two packages bring it, ConfigError if its own parts are missing."""
        points = [point for point in _entry_points() if point.name == name]
        if not points:
            raise self._unknown("driver", name, self.driver_names())
        if len({point.value for point in points}) > 1:
            raise Conflict(
                f"the driver {name} is brought by two packages: {points[0].value} and {points[1].value}; uninstall one"
            )
        try:
            return cast("type[Driver]", points[0].load())
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the driver {name} ({points[0].value}) cannot be loaded: {error}; is its extra installed?"
            ) from error

    def profiles(self) -> tuple[Profile, ...]:
        """Return every profile, and every driver without one. Conflict if a name is there twice; RecipeError for a bad file."""
        names = {file.stem for file in self._profile_files()} | set(self.driver_names())
        return tuple(self.profile(name) for name in sorted(names))

    def profile(self, name: str) -> Profile:
        """Return the profile of that name, or the bare driver. NotFound, Conflict if two files have it, RecipeError if one is bad."""
        files = [file for file in self._profile_files() if file.stem == name]
        if len(files) > 1:
            raise _twice("driver profile", name, files[0], files[1])
        if files:
            return _read_profile(name, files[0])
        if name in self.driver_names():
            return Profile(name=name, driver=name)
        raise self._unknown("driver or profile", name, sorted({*(f.stem for f in self._profile_files()), *self.driver_names()}))

    def _profile_files(self) -> list[Path]:
        return [path for root in self.roots for path in _children(root / "drivers") if path.suffix == ".yaml" and path.is_file()]

    def _unknown(self, what: str, name: str, known: Collection[str]) -> NotFound:
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ";"
        places = ", ".join(str(root) for root in self.roots)
        return NotFound(f"there is no {what} {name!r}{meant} there are: {', '.join(known) or 'none'} (searched: {places})")


def _read_profile(name: str, file: Path) -> Profile:
    from remote_trainer.recipe.load import read_limited
    from remote_trainer.recipe.schema import schema_faults
    from remote_trainer.recipe.source import read_source

    source = read_source(read_limited(file), str(file))
    faults = [*source.faults, *(schema_faults(source, "profile.schema.json") if source.data is not None else ())]
    if faults:
        raise RecipeError(f"the driver profile {file} cannot be used:", tuple(faults))
    data = dict(source.data)
    limits = dict(data.pop("limits", {}))
    if "max_cost" in limits:
        limits["max_cost"] = Decimal(str(limits["max_cost"]))
    return Profile(
        name=name,
        file=file,
        resources=Resources(**data.pop("resources", {})),
        limits=dataclasses.replace(Limits(), **limits),
        **data,
    )


def _entry_points() -> Sequence[EntryPoint]:
    from importlib.metadata import entry_points

    return tuple(entry_points(group=DRIVER_GROUP))


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _twice(what: str, name: str, first: Path, second: Path) -> Conflict:
    return Conflict(f"the {what} {name} is there twice: {first} and {second}; remove or rename one")
