"""A socket's transport that hands on together what was written in one turn of the event loop.

asyncssh writes each packet, and an empty one before it, by itself: two system calls, and two turns of the server, for 32 KiB.

Rules for editing: nothing waits longer than for the end of the turn in which it was written, and the order stays.
"""

from __future__ import annotations

import asyncio
from typing import Any

_ENOUGH = 128 << 10  # bytes: more at once saves little, and would all lie before a keepalive on a slow line


class Gathering(asyncio.Transport):
    """Writes what is gathered when enough has come, and at the latest when everything else of this turn was done."""

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__()
        self._inner = inner
        self._loop = asyncio.get_running_loop()
        self._gathered = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered += data
        if len(self._gathered) >= _ENOUGH:
            self._flush()

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        if gathered:
            self._inner.write(gathered)

    def close(self) -> None:
        self._flush()
        self._inner.close()

    def abort(self) -> None:
        self._flush()  # a farewell, if the socket takes it at once
        self._inner.abort()

    def write_eof(self) -> None:
        self._flush()
        self._inner.write_eof()

    def get_write_buffer_size(self) -> int:
        return len(self._gathered) + self._inner.get_write_buffer_size()

    # -- the socket's own

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._inner.get_extra_info(name, default)

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def can_write_eof(self) -> bool:
        return self._inner.can_write_eof()

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def is_reading(self) -> bool:
        return self._inner.is_reading()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._inner.set_write_buffer_limits(high, low)
