"""A recipe as values: what load.py found correct in a tool.yaml, templates not yet rendered.

Rules for editing: values only. A field here has a field of the same name in schema.json, which explains it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from remote_trainer.errors import Fault
from remote_trainer.model import Output, Pattern, Retries

#: The files a recipe may ship from the scripts folder begin so; all others lie in the tool's own folder.
SCRIPTS_PREFIX = "scripts/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step with its templates: ``run`` is a shell template, ``when`` an expression (empty: always)."""

    name: str
    run: str
    when: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    workdir: str = "."
    timeout_s: float = 0.0
    stop_grace_s: float = 30.0
    retries: Retries = field(default_factory=Retries)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRule:
    """A tree the steps find in ``$RT_<NAME>``. With ``parameter``, that parameter's value is the path, if such a path exists."""

    name: str
    description: str = ""
    required: bool = False
    parameter: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRule:
    """A secret that steps may ask for."""

    name: str
    description: str = ""
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetValue:
    """What a preset sets one parameter to. Text may be a template; ``when`` is an expression (empty: always)."""

    value: Any
    because: str
    when: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """A sentence for whoever takes the preset."""

    text: str
    when: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Values for what a user has not set, for data of which ``when`` is true (empty: any)."""

    name: str
    values: Mapping[str, PresetValue]
    description: str = ""
    when: str = ""
    advice: tuple[Advice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A checked tool.yaml. ``parameters`` maps names to their JSON Schemas."""

    name: str
    version: int
    description: str
    steps: tuple[Step, ...]
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # with presets also the parameter ``preset``
    presets: tuple[Preset, ...] = ()
    resources: Mapping[str, int | str] = field(default_factory=dict)  # fields of model.Resources; texts are templates
    expected_hours: float | str = 0.0  # on a GPU of speed 1; text is a template
    image: str = ""
    files: tuple[str, ...] = ()
    inputs: tuple[InputRule, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRule, ...] = ()
    health: str = ""
    patterns: tuple[Pattern, ...] = ()
    metrics_file: str = "metrics.jsonl"
    outputs: tuple[Output, ...] = ()  # globs are templates
    resume: str = ""
    cleanup: str = ""
    file: str = ""
    lines: Mapping[str, int] = field(default_factory=dict, repr=False, compare=False)  # by JSON pointer
    presets_file: str = ""  # where the presets come from, if not from ``file``; their lines are among ``lines``

    @property
    def tool(self) -> str:
        """Return ``name@version``."""
        return f"{self.name}@{self.version}"

    def input(self, name: str) -> InputRule | None:
        """Return the rule of an input, None if the tool takes no such input."""
        return next((rule for rule in self.inputs if rule.name == name), None)

    def fault(self, pointer: str, message: str) -> Fault:
        """Return a fault at a place of the file."""
        file = self.presets_file if pointer.startswith("/presets/") and self.presets_file else self.file
        return Fault(message, file=file, line=self.lines.get(pointer, 0), field=pointer)
