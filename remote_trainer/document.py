"""Values to JSON-ready documents and back, for every store and for ``--json``.

Rules for editing: no field is named here; the types in model.py are the schema. Times become ISO 8601 text, money becomes text.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from remote_trainer.errors import DocumentTooNew
from remote_trainer.model import SCHEMA, Job

T = TypeVar("T")


@cache  # building one costs milliseconds
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, kind))


def to_document(value: Any) -> dict[str, Any]:
    """Return the value as plain JSON types."""
    document: dict[str, Any] = _adapter(cast(Hashable, type(value))).dump_python(value, mode="json")
    return document


def from_document(kind: type[T], document: Mapping[str, Any]) -> T:
    """Return the value a document holds; unknown fields are ignored."""
    return cast(T, _adapter(cast(Hashable, kind)).validate_python(document))


def to_json(value: Any) -> bytes:
    """Return the value as JSON text, without the detour over Python objects."""
    return _adapter(cast(Hashable, type(value))).dump_json(value)


def from_json(kind: type[T], text: bytes | str) -> T:
    """Return the value JSON text holds."""
    return cast(T, _adapter(cast(Hashable, kind)).validate_json(text))


def job_from_document(document: Mapping[str, Any]) -> Job:
    """Return the job, or raise DocumentTooNew for one that a newer version wrote: by its number, or by values unknown here."""
    schema = int(document.get("schema", 0))
    if schema > SCHEMA:
        raise DocumentTooNew(
            f"job {document.get('id')} was written with document schema {schema}, "
            f"this program knows {SCHEMA}: upgrade remote-trainer"
        )
    try:
        return from_document(Job, document)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)}))
        raise DocumentTooNew(
            f"job {document.get('id')} holds values that this program does not know in {fields}: upgrade remote-trainer"
        ) from error
