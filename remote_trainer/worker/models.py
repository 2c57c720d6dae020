"""Models of the hub that a job's steps will fetch: looked up once more right before a machine is rented for them.

Between submit and now a licence may have been withdrawn, a token have expired; and only here is the token that the steps get. A hub
that does not answer ends nothing: the machine may reach it, and what it fetched before lies in its cache. Nor does HF_HUB_OFFLINE.

Rules for editing: asks and never fetches; a model that was found is believed for a while.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from remote_trainer import log
from remote_trainer.errors import HubUnreachable, ModelRefused
from remote_trainer.hub.client import Hub, offline
from remote_trainer.hub.look import TOKEN, check, pin
from remote_trainer.model import HubModel, Job

_log = log.get()

_BELIEVED_S = 600.0


class Models:
    """Shared by all jobs of a worker."""

    def __init__(self, find_secret: Callable[[str], str | None], *, now: Callable[[], float] | None = None) -> None:
        self._find_secret, self._now = find_secret, now or (lambda: asyncio.get_running_loop().time())
        self._found: dict[tuple[HubModel, str | None], float] = {}  # until when

    async def check(self, job: Job, *, rents: bool) -> None:
        """Raise ModelRefused if a model cannot be had. ``rents``: the machine comes without a token of its own."""
        if offline():
            return
        token = self._find_secret(TOKEN) if any(TOKEN in step.secrets for step in job.plan.steps) else None
        for model in self._unknown(job.plan.models, token):
            try:
                async with Hub(model.endpoint, token) as hub:
                    await check(hub, await pin(hub, model))
            except HubUnreachable as error:
                _log.warning(log.event("provisioning"), action="model_not_looked_up", model=str(model), error=str(error))
            except ModelRefused as error:
                if rents or not error.tokenless:
                    raise
                _log.warning(log.event("provisioning"), action="model_needs_token", model=str(model), error=str(error))
            else:
                self._found[model, token] = self._now() + _BELIEVED_S

    def _unknown(self, models: Iterable[HubModel], token: str | None) -> list[HubModel]:
        now = self._now()
        return [model for model in models if self._found.get((model, token), now) <= now]
