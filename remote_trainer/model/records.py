"""What is written down beside a job: events, log bytes, numbers. Rules for editing: as in the package's docstring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a job. ``seq`` is given by the store and grows within a job."""

    at: datetime
    kind: str  # "phase", "effect", "fault", "note", "cancel", "alarm", …
    message: str
    data: Mapping[str, Any] = field(default_factory=dict)
    seq: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogChunk:
    """Bytes of one step's log from ``offset``; ``stream`` is ``a<attempt>/<step>.<number>``."""

    stream: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """Values a step reported at one time, e.g. {"step": 12, "loss": 0.13}."""

    at: datetime
    stream: str
    values: Mapping[str, float]


def log_stream(attempt: int, step_key: str) -> str:
    """Return the name of a step run's log in the store."""
    return f"a{attempt}/{step_key}"
