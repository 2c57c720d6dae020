"""Reading a document that an earlier check may have found wrong, without stumbling over it again.

Rules for editing: nothing here raises, whatever the document holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from remote_trainer.errors import Fault
from remote_trainer.recipe.source import Source


def mapping(value: Any) -> Mapping[str, Any]:
    """Return the value if it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    """Return the value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def meant(name: str, known: Collection[str]) -> str:
    """Return the end of a sentence about a name that is not known: what may have been meant, or what there is."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known) or 'none'}"


def twice(source: Source, pointer: str, name: Any, seen: dict[str, int]) -> Iterator[Fault]:
    """Yield a fault if the name was seen before; note it with its line."""
    if isinstance(name, str):
        if name in seen:
            yield source.fault(pointer, f"the name {name!r} is used twice; first in line {seen[name]}")
        seen.setdefault(name, source.line(pointer))
