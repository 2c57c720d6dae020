"""What both stores do alike with records: cutting log chunks, times, cursors, export.

Rules for editing: pure, or through the Store port; nothing of a particular database.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from remote_trainer import log
from remote_trainer.document import job_from_document, to_document
from remote_trainer.errors import ConfigError, DocumentTooNew, InvariantBroken, Overdrawn
from remote_trainer.model import Entry, JobId, Lease, LogChunk, Phase, Token
from remote_trainer.ports import Store

_log = log.get()

OPEN_PHASES = tuple(phase.value for phase in Phase if not phase.terminal)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_part(job_id: JobId, chunk: LogChunk, size: int) -> bytes:
    """Return what of a chunk is new to a stream of ``size`` bytes; InvariantBroken if bytes are missing between."""
    if chunk.offset > size:
        raise InvariantBroken(
            f"job {job_id}: log {chunk.stream} ends at byte {size}, the next chunk begins at {chunk.offset}: bytes are missing"
        )
    return chunk.data[size - chunk.offset :]


def microseconds(time: datetime) -> int:
    """Return an aware time as whole microseconds since the epoch: orders exactly, unlike text or floats."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_seconds(seconds: float | None) -> datetime | None:
    """Return the aware time of a number of seconds since the epoch."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def with_wish(document: Mapping[str, Any], wish: datetime | None) -> dict[str, Any]:
    """Return a stored document with the cancel wish of the store's own column."""
    return {**document, "cancel_requested_at": wish and wish.astimezone(UTC).isoformat()}


def lease_of(document: Mapping[str, Any], wish: datetime | None, *, token: int, holder: str) -> Lease | None:
    """Return the lease on a job that was claimed; None for one this version cannot read, which is left alone until its lease ends."""
    try:
        return Lease(job=job_from_document(with_wish(document, wish)), token=Token(token), holder=holder)
    except DocumentTooNew as error:
        _log.error("training.store", action="job_left_alone", error=str(error))
        return None


def cursor(created_us: int, job_id: str) -> str:
    """Return the page cursor that points behind a job."""
    return f"{created_us}-{job_id}"


def parse_cursor(text: str) -> tuple[int, str]:
    """Return what `cursor` was made of."""
    created_us, _, job_id = text.partition("-")
    if not created_us.isdecimal() or not job_id:
        raise ConfigError(f"{text!r} is not a page cursor: give the one that came with the page before")
    return int(created_us), job_id


async def records_of(store: Store, job_id: JobId) -> AsyncIterator[Mapping[str, Any]]:
    """Yield a job's events, logs and metrics for an export."""
    after = 0
    while events := await store.events(job_id, after=after):
        after = events[-1].seq
        for event in events:
            yield {"kind": "event", "job": job_id, "event": to_document(event)}
    for stream in await store.log_streams(job_id):
        offset = 0
        while data := await store.read_log(job_id, stream, offset=offset):
            yield {"kind": "log", "job": job_id, "stream": stream, "offset": offset, "data": base64.b64encode(data).decode()}
            offset += len(data)
    after = 0
    while metrics := await store.metrics(job_id, after=after):
        after = metrics[-1][0]
        for seq, metric in metrics:
            yield {"kind": "metric", "job": job_id, "seq": seq, "metric": to_document(metric)}


def micros(amount: Decimal) -> int:
    """Return US dollars as whole millionths; InvariantBroken if they are not."""
    scaled = amount.scaleb(6)
    if scaled != scaled.to_integral_value():
        raise InvariantBroken(f"{amount} is not a whole number of millionths: round it before it is posted")
    return int(scaled)


def dollars(millionths: int) -> Decimal:
    """Return what `micros` was made of."""
    return Decimal(millionths).scaleb(-6)


def overdrawn(tenant: str, there: int, wanted: int) -> Overdrawn:
    """Return the refusal of a tenant that has less than is wanted, both in millionths of a dollar."""
    return Overdrawn(
        f"the account of {tenant} holds {dollars(there):.2f} $, and the job may cost {dollars(wanted):.2f} $: lower --max-cost, "
        "wait for other jobs to end, or have more granted (remote-trainer ledger grant)"
    )


def entry_record(entry: Entry) -> Mapping[str, Any]:
    """Return an entry for an export."""
    return {"kind": "entry", "tenant": entry.tenant, "entry": to_document(entry)}
