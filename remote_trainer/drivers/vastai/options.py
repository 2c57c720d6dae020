"""The options of the driver: their schema, and what a profile wishes for.

Rules for editing: an option is one entry with its meaning and its default in words; docs/vastai.md has the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from remote_trainer.drivers.vastai.choose import Wishes

URL = "https://console.vast.ai"
IMAGE = "vastai/base-image:@vastai-automatic-tag"
LAG_S = 60.0
USER = "root"  # as everywhere at the provider; a simulated one may know another user only


def _texts(description: str) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "string"}, "description": description}


def _least(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "description": description, **more}


SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "url": {"type": "string", "minLength": 1, "description": f"the service; default: $VAST_URL, else {URL}"},
        "image": {"type": "string", "minLength": 1, "description": f"container image; default: the tool's, else {IMAGE}"},
        "user": {"type": "string", "minLength": 1, "description": f"who logs in to its machines; default: {USER}"},
        "visibility_lag_s": _least(f"how long a new machine may be missing from the listing; default: {LAG_S:g}"),
        "gpu_names": _texts("kinds of GPU ('RTX 4090') or classes of them (A100, hopper, datacenter); default: any"),
        "gpu_speeds": {
            "type": "object",
            "additionalProperties": {"type": "number", "exclusiveMinimum": 0},
            "description": "how fast one GPU of a kind or class trains, RTX 3090 = 1; default: by its public figures",
        },
        "regions": _texts("two-letter country codes; default: any"),
        "verified": {"type": "boolean", "description": "only machines that the provider verified; default: true"},
        "min_reliability": _least("0 to 1; default: 0.98", maximum=1),
        "min_download_mbit": _least("the machine's own word, Mbit/s; default: 200"),
        "min_cuda": _least("newest CUDA the machine's driver can run; default: 12.4"),
        "min_compute_cap": _least("GPU generation as CUDA counts it; default: 8.0, the first with bf16"),
        "min_hours": _least("how long the offer must last; default: 24"),
        "max_price": _least("US dollars an hour with the disk, a spot machine's with the least bid; default: no cap"),
        "blocked_machines": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "machine ids that are never rented",
        },
    },
    "additionalProperties": False,
}

_READ: Mapping[str, Callable[[Any], Any]] = {
    "gpu_names": tuple,
    "regions": tuple,
    "max_price": lambda price: Decimal(str(price)),
    "blocked_machines": frozenset,
}
_NO_WISHES = ("url", "image", "user", "visibility_lag_s")


def wishes(options: Mapping[str, Any]) -> Wishes:
    """Return what a profile's options, which keep to the schema, say of machines."""
    return Wishes(**{key: _READ.get(key, _as_is)(value) for key, value in options.items() if key not in _NO_WISHES})


def _as_is(value: Any) -> Any:
    return value
