"""Checks a driver's options against its schema: every fault at once, by name.

Rules for editing: no driver is named here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonschema import Draft202012Validator

from remote_trainer.errors import ConfigError


def check_options(driver: str, schema: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise ConfigError that lists all faults, and what the driver takes."""
    faults = [
        f"{'.'.join(map(str, error.absolute_path)) or 'options'}: {error.message}"
        for error in Draft202012Validator(schema).iter_errors(dict(options))
    ]
    if faults:
        known = ", ".join(schema["properties"]) or "none"
        raise ConfigError("\n".join([f"options of the driver {driver} (it takes: {known})", *(f"  {fault}" for fault in faults)]))
