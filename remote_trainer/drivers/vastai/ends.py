"""Asks for the end of instances: those that wait for the same turn share one request, since the limit is one in three seconds.

Of jobs that end together none pays for the others' turns. What the provider did the listing says: an instance that was part of such a
request and is asked for again is asked for by itself, as are all of one that the provider did not take.

Rules for editing: one request at a time; whoever waits no longer takes nothing from the others, and the end stays asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from remote_trainer.drivers.vastai.api import VastApi
from remote_trainer.errors import Permanent, Transient


class Ends:
    """Of one account."""

    def __init__(self, api: Callable[[], VastApi]) -> None:
        self._api = api
        self._waiting: dict[str, asyncio.Future[None]] = {}
        self._shared: set[str] = set()  # were part of a request with others, and not asked for since
        self._sending: asyncio.Task[None] | None = None

    async def end(self, instance_id: str) -> None:
        """Ask for an instance's end; returns when the provider has taken the request. One that is gone already is fine."""
        api = self._api()
        if instance_id in self._shared:
            self._shared.discard(instance_id)
            await api.destroy(instance_id)
            return
        waiting = self._waiting.setdefault(instance_id, asyncio.get_running_loop().create_future())
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send(api), name="ends of instances")
        await asyncio.shield(waiting)

    def forget(self, listed: Collection[str]) -> None:
        """Note what is there still: nothing needs to be known of the rest."""
        self._shared.intersection_update(listed)

    async def _send(self, api: VastApi) -> None:
        while self._waiting:
            turn = await asyncio.gather(api.turn_to_destroy(), return_exceptions=True)
            batch, self._waiting = self._waiting, {}
            refused = dict.fromkeys(batch, turn[0]) if turn[0] else await self._ask(api, tuple(batch))
            for instance_id, waiting in batch.items():
                if (error := refused.get(instance_id)) is None:
                    waiting.set_result(None)
                else:
                    waiting.set_exception(error)
                    waiting.exception()  # nobody may be waiting any more

    async def close(self) -> None:
        """Send nothing more."""
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])

    async def _ask(self, api: VastApi, batch: tuple[str, ...]) -> dict[str, BaseException]:
        """Ask at once, since the turn was waited for; return what was not taken, and why."""
        try:
            await api.destroy_now(batch)
        except Transient as error:
            if len(batch) > 1 or error.retry_after_s:
                return dict.fromkeys(batch, error)
        except Permanent as error:
            if len(batch) == 1:
                return {batch[0]: error}
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            return dict.fromkeys(batch, error)
        else:
            self._shared.update(batch if len(batch) > 1 else ())
            return {}
        # Alone and disturbed, or it does not take such requests, or one of them is gone: each by itself then.
        outcomes = await asyncio.gather(*(api.destroy(instance_id) for instance_id in batch), return_exceptions=True)
        return {instance_id: error for instance_id, error in zip(batch, outcomes, strict=True) if error is not None}
