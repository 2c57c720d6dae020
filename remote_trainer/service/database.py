"""The job store as a whole: bring it up to date, write everything out.

Rules for editing: nothing here knows which store it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from remote_trainer.service.app import App


async def migrate(app: App) -> str:
    """Create or upgrade tables, indexes and validators; return a sentence on what the store is."""
    return await app.store.migrate()


def export(app: App) -> AsyncIterator[Mapping[str, Any]]:
    """Yield every record as plain JSON types: jobs, events, logs (base64), metrics."""
    return app.store.export()
