"""Looking at the market: one look for all jobs that come together, and a second one where the first cannot have shown everything.

The provider shows 64 rows, and lets us ask ten times a minute. The rows are those with the most performance for the money; if there are
more, the fastest are asked for too, which may be worth their price and would never be among the first.

Rules for editing: what was seen is kept for seconds only, and what was asked for is seen no more.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.drivers.vastai.choose import ROWS_MAX
from remote_trainer.drivers.vastai.rows import Row

_FRESH_S = 15.0


class Market:
    """What one driver has seen of it."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, Sequence[Row]]] = {}
        self._looking = asyncio.Lock()

    async def look(self, api: VastApi, query: Mapping[str, Any]) -> Sequence[Row]:
        """Return what a query finds; some rows may be there twice."""
        key = json.dumps(query, sort_keys=True)
        async with self._looking:
            now = asyncio.get_running_loop().time()
            self._seen = {each: (at, rows) for each, (at, rows) in self._seen.items() if now - at < _FRESH_S}
            if key not in self._seen:
                rows = list(await api.offers(query))
                if len(rows) >= ROWS_MAX:
                    rows += await api.offers({**query, "order": [["dlperf", "desc"]]})
                self._seen[key] = asyncio.get_running_loop().time(), rows
            return self._seen[key][1]

    def take(self, offer_id: str) -> None:
        """Show an offer no more: it was asked for, and is ours or somebody else's now. What is used up so is looked for anew."""
        left = {each: (at, [row for row in rows if str(row.get("id")) != offer_id]) for each, (at, rows) in self._seen.items()}
        self._seen = {each: (at, rows) for each, (at, rows) in left.items() if rows or not self._seen[each][1]}
