"""Offers, and the search among them as the provider does it: loose types, 64 rows at most, prices at the size of disk that was asked for.

Rules for editing: what is odd here is odd there: a filter on ``id`` finds nothing, and one on ``dph_total`` looks at another price than
the one that is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from remote_trainer.testing.vast.reply import refusal

Row = dict[str, Any]

MONTH_H = 720
ROWS_MAX = 64
_DEFAULT_DISK_GB = 8.0  # what filters on the price are evaluated with
_NOT_FILTERS = {
    "order", "type", "limit", "allocated_storage", "disable_bundling", "extra_ids", "target_reliability", "template_id", "q", "select_cols",
}  # fmt: skip
_DEFAULTS: Mapping[str, Any] = {
    "verified": {"eq": True},
    "external": {"eq": False},
    "rentable": {"eq": True},
    "rented": {"eq": False},
    "num_gpus": {"gte": 1},
}


class Market:
    """What can be rented, by offer id."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.offers: dict[int, Row] = {int(row["id"]): dict(row) for row in rows}

    def search(self, query: Mapping[str, Any], floors: Mapping[int, float] = MappingProxyType({})) -> list[Row]:
        """Return what a query finds, priced for it; `floors` are least bids that are higher than the offer's own."""
        filters = {**_DEFAULTS, **{name: wanted for name, wanted in query.items() if name not in _NOT_FILTERS}}
        every = ({**row, "min_bid": floors.get(number, row.get("min_bid"))} for number, row in self.offers.items())
        found = [row for row in every if all(_meets(_seen(row), name, ops) for name, ops in filters.items())]
        disk_gb, bid = _number(query.get("allocated_storage"), _DEFAULT_DISK_GB), query.get("type") == "bid"
        shown = [priced(row, disk_gb, bid=bid) for row in found]
        for field, direction in reversed(query.get("order") or [["score", "desc"]]):
            shown.sort(key=lambda row: _sort_key(row.get(field)), reverse=direction == "desc")
        return shown[: min(ROWS_MAX, int(_number(query.get("limit"), ROWS_MAX)))]

    def hold(self, offer_id: int, held: bool) -> None:
        """Let nobody else have it, or offer it again."""
        self.offers[offer_id].update(rented=held, rentable=not held)

    @property
    def gpu_names(self) -> list[str]:
        """Return every name, once."""
        return sorted({row["gpu_name"] for row in self.offers.values() if row.get("gpu_name")})


def priced(row: Mapping[str, Any], disk_gb: float, *, bid: bool = False) -> Row:
    """Return an offer with what it costs with that disk, $/h."""
    gpu = float(row["min_bid"] if bid else row["dph_base"])
    disk = disk_gb * float(row.get("storage_cost") or 0) / MONTH_H
    total = round(gpu + disk, 6)
    parts = {
        "gpuCostPerHour": gpu,
        "diskHour": disk,
        "totalHour": total,
        "discountTotalHour": 0.0,
        "discountedTotalPerHour": total,
    }
    return {
        **row,
        "is_bid": bid,
        "dph_total": total,
        "dph_total_adj": total,
        "storage_total_cost": disk,
        "search": parts,
        "instance": parts,
    }


def meets(row: Mapping[str, Any], filters: Mapping[str, Any]) -> bool:
    """Return whether a row meets all filters, ``{field: {op: value}}``."""
    return all(_meets(row, name, wanted) for name, wanted in filters.items())


def _seen(row: Mapping[str, Any]) -> Row:
    """Return an offer as filters see it."""
    country = str(row.get("geolocation") or "").rpartition(", ")[2]
    return {
        **priced(row, _DEFAULT_DISK_GB),
        "id": None,
        "verified": row.get("verification") == "verified",
        "geolocation": country,
    }


def _meets(row: Mapping[str, Any], name: str, wanted: Any) -> bool:
    conditions = wanted if isinstance(wanted, Mapping) else {"eq": wanted}
    for operator, value in conditions.items():
        if operator not in _OPERATORS:
            raise refusal(400, "invalid_args", f"error 400/3467: unknown operator {operator!r} for {name!r}")
        if not _OPERATORS[operator](row.get(name), value):
            return False
    return True


def _same(have: Any, wanted: Any) -> bool:
    return bool(have == _like(have, wanted))


def _like(have: Any, wanted: Any) -> Any:
    """Return a wanted value in the type of what is there: the official client sends numbers and booleans as text."""
    if isinstance(have, bool):
        return wanted if isinstance(wanted, bool) else str(wanted).lower() in ("true", "1")
    if isinstance(have, int | float) and isinstance(wanted, str):
        return _number(wanted, float("nan"))
    return wanted


def _order(compare: Callable[[float, float], bool]) -> Callable[[Any, Any], bool]:
    return lambda have, wanted: isinstance(have, int | float) and compare(have, _number(wanted, float("nan")))


_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": _same,
    "neq": lambda have, wanted: not _same(have, wanted),
    "gt": _order(lambda have, wanted: have > wanted),
    "gte": _order(lambda have, wanted: have >= wanted),
    "lt": _order(lambda have, wanted: have < wanted),
    "lte": _order(lambda have, wanted: have <= wanted),
    "in": lambda have, wanted: any(_same(have, one) for one in wanted),
    "notin": lambda have, wanted: not any(_same(have, one) for one in wanted),
}


def _number(value: Any, otherwise: float) -> float:
    try:
        return otherwise if value is None else float(value)
    except (TypeError, ValueError):
        return otherwise


def _sort_key(value: Any) -> tuple[bool, float, str]:
    return (value is None, value, "") if isinstance(value, int | float) else (value is None, 0.0, str(value))
