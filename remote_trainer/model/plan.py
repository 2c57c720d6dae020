"""A recipe and its parameters, frozen at submit. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from remote_trainer.model.inputs import Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a host must have; zero means no wish."""

    gpus: int = 0
    vram_gb: int = 0  # of each GPU, GB
    disk_gb: int = 0  # free on the host's disk, GB (10^9 bytes)
    ram_gb: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """How often a failed step is run again within an attempt, and how long to wait before."""

    max: int = 0  # runs after the first one
    backoff_s: float = 10.0  # before the first retry; doubles each time
    backoff_max_s: float = 300.0
    #: Exit codes worth another run; empty means any but 0.
    on_exit: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One item of a plan: a POSIX shell script and everything that decides how it is run. Rendered; nothing is left to expand."""

    name: str
    run: str  # POSIX sh script text
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()  # names of secrets put into this step's environment
    workdir: str = "."  # relative to the attempt's work folder
    timeout_s: float = 0.0  # 0: only the job's max_hours bounds it
    stop_grace_s: float = 30.0  # between TERM and KILL
    retries: Retries = Retries()


class OutputKind(StrEnum):
    """What an output is for."""

    ARTIFACT = "artifact"  # kept
    CHECKPOINT = "checkpoint"  # kept, and restored on the next attempt
    FINAL = "final"  # kept, and the job is not DONE without it


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Files of the output folder that are kept.

    ``glob`` is relative to the output folder (``*``, ``?``, ``**``). With ``marker`` a folder matching ``glob`` is one unit that counts
    only once a file of that name lies in it (written last).
    """

    name: str
    kind: OutputKind
    glob: str
    marker: str = ""
    required: bool = False
    keep: int = 0  # newest units kept in the object store; 0 keeps all


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A regular expression with named groups, searched in each log line (after the last carriage return)."""

    regex: str
    kind: str = "metric"  # "metric" or "progress" (groups ``step`` and ``total``)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPreset:
    """Which preset completed a plan's parameters, and why: words for people. What it did stands in the parameters."""

    name: str
    facts: Facts  # by which it was chosen
    reasons: Mapping[str, str] = field(default_factory=dict)  # parameter it has set → why
    kept: Mapping[str, Any] = field(default_factory=dict)  # parameter that the user had set → what the preset has for it
    advice: tuple[str, ...] = ()  # what is left to the user


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A recipe and its parameters, rendered and frozen at submit.

    ``digest`` is the SHA-256 of its canonical JSON without itself and without the words about the preset.
    """

    tool: str  # "sdxl-lora@1"
    parameters: Mapping[str, Any]
    steps: tuple[PlannedStep, ...]
    outputs: tuple[Output, ...] = ()
    patterns: tuple[Pattern, ...] = ()
    resources: Resources = Resources()
    image: str = ""  # container image for drivers that rent containers; empty: bare
    metrics_file: str = "metrics.jsonl"  # in the work folder; appended by the steps, one JSON object a line
    cleanup: str = ""  # shell script run once, best effort, before the host is given back
    required_secrets: tuple[str, ...] = ()  # of all the steps' secrets, those without which none can run
    health: str = ""  # shell script run on the host before the first step; non-zero means unsuitable
    expected_hours: float = 0.0  # on a GPU of speed 1, for comparing offers; 0: unknown
    preset: ChosenPreset | None = None  # None: the tool has none, or the user wanted none
    digest: str = ""
